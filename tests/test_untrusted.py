"""Bodies written by somebody who may write to the database, and who means harm: nothing runs, nothing fills the memory."""

from __future__ import annotations

import collections
import contextlib
import copyreg
import datetime as dt
import enum
import fractions
import functools
import inspect
import ipaddress
import pathlib
import pickletools
import random
import subprocess
import sys
import tracemalloc
import uuid
import zlib
import zoneinfo
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

import slim

Sql = Callable[..., list[tuple[Any, ...]]]
RAN: list[Any] = []  # what a hostile body has run
ALLOWED = (
    dt.datetime,
    dt.date,
    dt.time,
    dt.timedelta,
    dt.timezone,
    Decimal,
    fractions.Fraction,
    uuid.UUID,
    zoneinfo.ZoneInfo,
    set,
    frozenset,
    bytearray,
    complex,
    collections.OrderedDict,
    collections.defaultdict,
    collections.Counter,
    collections.deque,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv4Interface,
    pathlib.PurePosixPath,
    pathlib.PosixPath,
)


def run(*args: Any) -> dict[Any, Any]:
    RAN.append(args)
    return {}


@dataclass
class Point:
    x: int
    y: int = 0


@dataclass(frozen=True)
class Frozen:
    x: int


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and other.x == self.x


class Pair(NamedTuple):
    left: int
    right: int


class Color(enum.Enum):
    RED = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Outer:
    @dataclass
    class Inner:
        x: int


class Loaded:
    """An application's class whose pickle runs code of its own when it is read."""

    def __setstate__(self, state: Any) -> None:
        run(state)


APPLICATION: list[Any] = [
    Point(1, 2),
    Frozen(1),
    Slotted(1),
    Pair(1, 2),
    Color.RED,
    Access.READ | Access.WRITE,
    Outer.Inner(1),
]


class Stateful:
    """An application's class that pickle does not call to set no state."""

    def __setstate__(self, state: Any) -> None:
        vars(self).update(state)


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def state_for(cls: type) -> Iterator[bytes]:
    """BUILD with each kind of state, on the class itself."""
    push = named(cls.__module__, cls.__name__)
    for state in b"}" + text("__eq__") + b"Ns", b"N}" + text("__eq__") + b"Ns\x86", text("x"):
        yield push + state + b"b"


ESCAPES = [
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "setattr"),
    ("builtins", "__import__"),
    ("builtins", "type"),
    ("builtins", "open"),
    ("__builtin__", "eval"),
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("operator", "attrgetter"),
    ("functools", "partial"),
    ("importlib", "import_module"),
    ("pickle", "loads"),
    ("codecs", "decode"),
    ("copyreg", "__newobj__"),
    ("types", "FunctionType"),
    ("slim", "Datastore"),
    ("slim", "_getattr"),
    ("test_untrusted", "run"),
    ("test_untrusted", "Point"),
    ("test_untrusted", "Loaded"),
    ("no_such_module", "name"),
    ("datetime", "datetime.__reduce__"),
    ("datetime", "sys"),
    ("datetime", "sys.modules"),
    ("collections", "abc.sys"),
    ("uuid", "os.system"),
    ("decimal", "Decimal.__class__"),
    ("builtins", "dict.__class__.__subclasses__"),
    ("zoneinfo", "ZoneInfo.from_file"),
    ("zoneinfo", "ZoneInfo._unpickle"),
    (".", ".."),
]
RUN = named("test_untrusted", "run")
HOSTILE: dict[str, bytes] = {  # pickles, without the opcode that ends them
    **{
        f"GLOBAL {module} {name}": named(module, name) + b"(" + text("run()") + b"tR"
        for module, name in ESCAPES
    },
    **{
        f"STACK_GLOBAL {module} {name}": text(module) + text(name) + b"\x93)R"
        for module, name in ESCAPES
    },
    "INST": b"(itest_untrusted\nrun\n",
    "OBJ": b"(" + RUN + b"o",
    "NEWOBJ": RUN + b")\x81",
    "NEWOBJ_EX": RUN + b")}\x92",
    "INST of an allowed class": b"(icollections\ndeque\n",
    "OBJ of an allowed class": b"(" + named("collections", "deque") + b"o",
    "EXT1": b"\x82\x7b)R",
    "EXT2": b"\x83\x7b\0)R",
    "EXT4": b"\x84\x7b\0\0\0)R",
    "PERSID": b"Pname\n",
    "BINPERSID": text("name") + b"Q",
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"}\x98",
    "__setstate__": named("test_untrusted", "Loaded") + b")\x81}b",
    "getattr of a function": named("builtins", "getattr")
    + named("builtins", "dict")
    + text("__class__")
    + b"\x86R",
    "getattr of a class": named("builtins", "getattr")
    + named("zoneinfo", "ZoneInfo")
    + text("from_file")
    + b"\x86R",
    "getattr of a value": named("builtins", "getattr") + text("x") + text("format") + b"\x86R",
    "getattr altered": named("builtins", "getattr") + b"N}" + text("__defaults__") + b")s\x86b",
    "encode with a codec": named("_codecs", "encode")
    + text("x")
    + text("no_codec")
    + b"\x86R"
    + b"\x85R",
    "_reconstructor of a function": named("copyreg", "_reconstructor")
    + RUN
    + named("builtins", "object")
    + b"N\x87R",
    "defaultdict of a function": named("collections", "defaultdict") + RUN + b"\x85R",
    "defaultdict of getattr": named("collections", "defaultdict")
    + named("builtins", "getattr")
    + b"\x85R"
    + text("x")
    + b"R",
    "zone of a file": named("zoneinfo", "ZoneInfo") + text("../../../etc/passwd") + b"\x85R",
    "empty names": named("", ""),
    "empty name": text("datetime") + text("") + b"\x93",
    "no dictionary": b"]",
    "nothing": b"",
    "mark": b"(",
    "pop of nothing": b"0",
    "memo of nothing": b"h\x07",
    **{
        f"BUILD {cls.__name__} {number}": push
        for cls in ALLOWED
        for number, push in enumerate(state_for(cls))
    },
}


def body(pickled: bytes) -> bytes:
    return zlib.compress(b"\x80\x05" + pickled + b".")


@pytest.fixture(autouse=True)
def unharmed() -> Iterator[None]:
    """Nothing may have been run, and no class have been altered, but for what Python itself notes in one when it is used."""

    def attributes() -> list[Any]:
        return [
            (cls, name, id(value))
            for cls in (*ALLOWED, Color, Point)
            for name, value in list(vars(cls).items())
            if name not in ("__abstractmethods__", "_abc_impl", "__annotations__", "__slotnames__")
        ]

    before = attributes()
    RAN.clear()
    copyreg.add_extension("test_untrusted", "run", 0x7B)  # type: ignore[arg-type]
    yield
    copyreg.remove_extension("test_untrusted", "run", 0x7B)  # type: ignore[arg-type]
    assert RAN == []
    assert attributes() == before
    assert Color.RED.value == 1


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "around",
    [
        lambda pickled: pickled,
        lambda pickled: b"}" + text("key") + pickled + b"s",
        lambda pickled: pickled + b"0}",
    ],
    ids=["bare", "value", "popped"],
)
def test_hostile_body_runs_nothing_and_alters_nothing(
    name: str, around: Callable[[bytes], bytes]
) -> None:
    # What alters only what dies with the body may be read; the fixture looks at the rest.
    with contextlib.suppress(slim.Corrupt):
        read = slim.decode(body(around(HOSTILE[name])))
        assert type(read) is dict
        assert not [value for value in read.values() if callable(value)]


@pytest.mark.parametrize("module, name", ESCAPES)
def test_refusal_of_a_global_names_it_and_the_remedy(module: str, name: str) -> None:
    for pickled in named(module, name), text(module) + text(name) + b"\x93":
        with pytest.raises(slim.Untrusted) as caught:
            slim.decode(body(pickled))
        assert f"{module}.{name}" in str(caught.value) and "classes=" in str(caught.value)


def test_every_reader_says_which_entity_is_hostile(store: slim.Datastore, sql: Sql) -> None:
    by_user = store.add_index(slim.Index("index_user", "user"))
    store.put({"id": "good", "user": "bob"})
    for number, pickled in enumerate(HOSTILE.values()):
        sql(
            "INSERT INTO entities (id, body) VALUES (%s, UNHEX(%s))",
            [f"bad {number}", body(pickled).hex()],
        )
        sql("INSERT INTO index_user VALUES ('bob', %s)", [f"bad {number}"])
    for number in range(len(HOSTILE)):
        for read in store.get, lambda id: store.get_many([id]), lambda id: store.update(id, run):
            with pytest.raises(slim.Corrupt, match=f"^entity 'bad {number}': ") as caught:
                read(f"bad {number}")
            assert caught.value.id == f"bad {number}"
    scan = store.scan()
    assert next(scan)["id"] == "good"
    readers: list[Callable[[], Any]] = [
        lambda: next(scan),
        store.schema,
        lambda: by_user.get_all(store, user="bob"),
        lambda: by_user.populate(store),
    ]
    for whole in readers:
        with pytest.raises(slim.Corrupt, match="^entity 'bad ") as caught:
            whole()
        assert str(caught.value.id).startswith("bad ")


def test_hostile_entity_can_be_replaced_and_deleted(store: slim.Datastore, sql: Sql) -> None:
    for id in "xy":
        sql("INSERT INTO entities (id, body) VALUES (%s, UNHEX(%s))", [id, body(RUN + b")R").hex()])
    store.put({"id": "x"})
    assert store.delete("y")
    assert list(store) == [{"id": "x"}]


# What memory and time a body may take is measured in a process of its own, with 2 GiB of address space.
CHILD = """
import random, resource, sys, zlib
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
import slim

def decode(body):
    try:
        return slim.decode(body)
    except slim.Corrupt as error:
        assert not isinstance(error.__cause__, MemoryError), "it filled the memory"

def peak():
    with open("/proc/self/status") as status:                   # MiB; ru_maxrss would be what the parent had, if that is more
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmHWM"))
"""


def child(code: str, *args: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD + inspect.cleandoc(code), *args],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


BOMBS = {  # expressions: the pickle itself is made in the child
    "set of a range": r"b'c__builtin__\nset\nc__builtin__\nxrange\nI1000000000000\n\x85R\x85R'",
    "NEWOBJ deque of a range": r"b'ccollections\ndeque\ncbuiltins\nrange\nI1000000000000\n\x85R\x85\x81'",
    "NEWOBJ bytearray of a number": r"b'cbuiltins\nbytearray\nI1000000000000\n\x85\x81'",
    "NEWOBJ_EX bytearray of a number": r"b'cbuiltins\nbytearray\nI1000000000000\n\x85}\x92'",
    "bytes of a number": r"b'c__builtin__\nbytes\nI1000000000000\n\x85R'",
    "list of a network": r"b'cbuiltins\nlist\ncipaddress\nIPv6Network\n\x8c\x04::/0\x85R\x85R'",
    "Fraction of a Decimal": r"b'cfractions\nFraction\ncdecimal\nDecimal\n\x8c\x0b1e999999999\x85R\x85R'",
    "NEWOBJ Fraction": r"b'cfractions\nFraction\n\x8c\x0b1e999999999\x85\x81'",
    "int of a Decimal": r"b'cbuiltins\nint\ncdecimal\nDecimal\n\x8c\x0b1e999999999\x85R\x85R'",
    "bytes that are not there": r"b'\x8e' + (1 << 40).to_bytes(8, 'little')",
    "bytearray that is not there": r"b'\x96' + (1 << 40).to_bytes(8, 'little')",
    "text that is not there": r"b'\x8d' + (1 << 40).to_bytes(8, 'little')",
    "number that is not there": r"b'\x8b' + (0x7fffffff).to_bytes(4, 'little')",
    "frame that is not there": r"b'\x95' + (1 << 60).to_bytes(8, 'little')",
    "memo at a high place": r"b'}r\xff\xff\xff\x7f'",
    "memo at a high place, as text": r"b'}p4000000000\n'",
    "decimal digits": r"b'I' + b'9' * 30_000_000 + b'\n'",
    "long of decimal digits": r"b'L' + b'9' * 30_000_000 + b'L\n'",
    "sets": r"b'](' + b'\x8f' * (60 << 20) + b'e'",
    "lists": r"b'](' + b']' * (60 << 20) + b'e'",
    "tuples of one": r"b'N' + b'\x85' * (60 << 20)",
    "tuples of two": r"b'N' + b'2\x86' * (30 << 20)",
    "tuples of three": r"b'N' + b'22\x87' * (20 << 20)",
    "deques": r"b'ccollections\ndeque\n\x940(' + b'h\0)R' * (15 << 20) + b'1}'",
    "NEWOBJ deques": r"b'ccollections\ndeque\n\x940(' + b'h\0)\x81' * (15 << 20) + b'1}'",
    "sets by a call": r"b'cbuiltins\nset\n\x940(' + b'h\0)R' * (15 << 20) + b'1}'",
    "a deep key": r"b'})' + b'\x85' * (1 << 20) + b'Ns'",
    "a deep member": r"b'\x8f()' + b'\x85' * (1 << 20) + b'\x90'",
    "a deep slice": r"b'cbuiltins\nslice\n\x94' + b'h\0' * (1 << 20) + b'N' + b'\x85R' * (1 << 20) + b'0}'",
    "deep lists": r"b']' * (1 << 20) + b'a' * ((1 << 20) - 1) + b'0}'",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_neither_fills_the_memory_nor_ends_the_process(name: str) -> None:
    child(f"""
        decode(zlib.compress(b"\\x80\\x05" + {BOMBS[name]} + b".", 1))
        assert peak() < 1024, peak()
    """)


def test_decompression_stops_at_the_limit() -> None:
    child("""
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
        body = b"\\x78\\x9c" + block * ((1 << 24) // len(block))       # what a MEDIUMBLOB takes: 16 GB of zeros
        decode(body)
        assert peak() < 256, peak()
    """)


def test_ten_thousand_broken_bodies_do_no_harm() -> None:
    child(r"""
        import collections, datetime, decimal, fractions, ipaddress, pathlib, uuid
        good = slim.encode({"id": "x", "text": "bób" * 20, "data": b"x" * 300, "s": {1, 2},
                            "n": [1, 1 << 40, 1 << 900, 1.5, True, None],
                            "when": datetime.datetime(2009, 2, 27, tzinfo=datetime.timezone.utc), "d": decimal.Decimal("1.5"),
                            "f": fractions.Fraction(1, 3), "u": uuid.UUID(int=1), "ip": ipaddress.ip_address("::1"),
                            "o": collections.OrderedDict(a=1), "q": collections.deque([1]), "p": pathlib.PurePosixPath("/a")})
        plain, chance, refused = zlib.decompress(good), random.Random(1), 0
        opcodes = (b"\x80\x94N\x88\x89\x85\x86\x87()]}eausRtdlb012\x81\x8f\x90\x91\x92\x93"
                   b"\x8cC\x8aUKMJjhqrGpgIFLSVcioPQ")
        for number in range(10_000):
            kind, mutated = number % 5, bytearray(plain)
            for _ in range(chance.randint(1, 8)):
                mutated[chance.randrange(len(mutated))] = chance.choice(opcodes) if number % 2 else chance.randrange(256)
            refused += decode([lambda: good[:chance.randrange(len(good))],
                               lambda: zlib.compress(plain[:chance.randrange(len(plain))]),
                               lambda: chance.randbytes(chance.randrange(300)),
                               lambda: zlib.compress(b"\x80\x05" + bytes(chance.choices(opcodes, k=chance.randrange(60))) + b"."),
                               lambda: zlib.compress(bytes(mutated))][kind]()) is None
        assert 8_000 <= refused < 10_000, refused           # some a change leaves whole
        assert peak() < 256, peak()
    """)


@pytest.mark.parametrize("value", APPLICATION, ids=lambda value: type(value).__name__)
def test_class_of_the_application_is_read_where_it_is_allowed_and_nowhere_else(
    connect: dict[str, Any], store: slim.Datastore, value: Any
) -> None:
    entity = {"id": "x", "value": value, "list": [value]}
    with slim.Datastore(**connect, classes=[type(value)]) as knowing:
        knowing.put(entity)
        assert knowing.get("x") == entity
        assert type(knowing.get("x")["value"]) is type(value)  # type: ignore[index]
    with pytest.raises(slim.Untrusted, match=type(value).__qualname__) as caught:
        store.get("x")
    assert caught.value.id == "x"
    with slim.Datastore(**connect, classes=slim.ANY) as trusting:
        assert trusting.get("x") == entity


def test_any_reads_what_a_pickle_runs(connect: dict[str, Any], sql: Sql) -> None:
    with slim.Datastore(**connect, classes=slim.ANY) as store:
        sql(
            "INSERT INTO entities (id, body) VALUES ('x', UNHEX(%s))",
            [body(RUN + text("argument") + b"\x85R").hex()],
        )
        assert store.get("x") == {"id": "x"}
    assert RAN.pop() == ("argument",)


@pytest.mark.parametrize("value", APPLICATION, ids=lambda value: type(value).__name__)
def test_put_refuses_what_get_would_refuse_and_names_class_and_remedy(
    store: slim.Datastore, value: Any
) -> None:
    store.put({"id": "x", "n": 1})
    for put in (
        store.put,
        lambda entity: store.put_many([entity]),
        lambda entity: store.update("x", lambda old: old.update(entity)),
    ):
        with pytest.raises(
            slim.Untrusted, match=rf"test_untrusted\.{type(value).__qualname__}.*classes="
        ):
            put({"id": "x", "value": value})
    assert store.get("x") == {"id": "x", "n": 1}


def test_allowing_a_class_allows_no_other_of_its_module() -> None:
    assert slim.decode(slim.encode({"p": Point(1)}, [Point]), [Point]) == {"p": Point(1)}
    for pickled in (
        RUN,
        named("test_untrusted", "Point.__init__"),
        text("test_untrusted") + text("Point.__class__") + b"\x93",
    ):
        with pytest.raises(slim.Untrusted):
            slim.decode(body(pickled), [Point])


@pytest.mark.parametrize(
    "member",
    [
        named("test_untrusted", "Color") + b"K\x01\x85R",
        named("builtins", "getattr") + named("test_untrusted", "Color") + text("RED") + b"\x86R",
    ],
)
@pytest.mark.parametrize(
    "state", [b"}" + text("_value_") + b"K\x63s", b"N}" + text("_value_") + b"K\x63s\x86"]
)
def test_body_alters_no_member_of_an_allowed_enum(member: bytes, state: bytes) -> None:
    try:
        with pytest.raises(slim.Corrupt):
            slim.decode(body(b"}" + text("color") + member + state + b"bs"), [Color])
        assert Color.RED.value == 1
    finally:
        Color.RED._value_ = 1


def binunicode(value: bytes) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value


MANY = b"".join(b"J" + number.to_bytes(4, "little") + b"N" for number in range(20_000))
AGAIN = {  # a name, and what it is called with again and again: each call would copy it
    "Decimal": (named("decimal", "Decimal"), binunicode(b"7" * 400_000) + b"\x85"),
    "dict": (named("builtins", "dict"), b"}(" + MANY + b"u\x85"),
    "Counter": (named("collections", "Counter"), b"}(" + MANY + b"u\x85"),
    "OrderedDict": (named("collections", "OrderedDict"), b"}(" + MANY + b"u\x85"),
    "deque": (named("collections", "deque"), b"(" + b"N" * 100_000 + b"t\x85"),
    "range": (
        named("builtins", "range"),
        b"K\0\x8b" + (400_000).to_bytes(4, "little") + b"\x7f" * 400_000 + b"\x86",
    ),
    "Fraction": (
        named("fractions", "Fraction"),
        b"K\3\x8b" + (400_000).to_bytes(4, "little") + b"\x7f" * 400_000 + b"\x86",
    ),
    "path": (named("pathlib", "PurePosixPath"), binunicode(b"a/" * 100_000) + b"\x85"),
    "parts": (named("pathlib", "PurePosixPath"), b"(" + b"\x8c\1a" * 100_000 + b"t"),
}


@pytest.mark.parametrize("name", AGAIN)
def test_body_cannot_fill_the_memory_by_calls_with_one_object(name: str) -> None:
    function, argument = AGAIN[name]
    pickled = b"\x80\4](" + function + b"\x94" + argument + b"\x94R" + b"h\0h\1R" * 8_000 + b"e."
    tracemalloc.start()
    with pytest.raises(slim.Corrupt, match="more than it has"):
        slim.decode(zlib.compress(pickled))
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()


def test_many_small_objects_that_share_their_parts_are_read() -> None:
    folder = pathlib.PurePosixPath(
        "/usr/lib/python3/dist-packages/a-name-that-is-long-as-some-are/and/some/more"
    )
    entity = {
        "paths": [folder / str(number) for number in range(1_000)],
        "prices": [Decimal("1.23456789")] * 1_000,
        "others": [Decimal("1.23456789") + 0 for _ in range(1_000)],
        "counts": [collections.Counter("abc") for _ in range(1_000)],
        "lists": [collections.defaultdict(list, a=[1]) for _ in range(1_000)],
        "queues": [collections.deque([1], 5) for _ in range(1_000)],
        "ranges": [range(10**9) for _ in range(1_000)],
    }
    assert slim.decode(slim.encode(entity)) == entity


def test_defaultdict_whose_factory_would_not_come_back_is_refused() -> None:
    for factory in functools.partial(list), type("int", (), {}), lambda: 0:
        with pytest.raises(TypeError, match="cannot be pickled"):
            slim.encode({"x": collections.defaultdict(factory)})


@pytest.mark.parametrize("classes", [[Point], slim.ANY])
def test_object_that_holds_itself_is_refused_and_not_stored_without_its_state(classes: Any) -> None:
    root, child = Point(1, 2), Point(3, 4)
    root.x, child.x = [child], root  # type: ignore[assignment]
    for value in root, child, [child, root], {"x": child}:
        with pytest.raises(TypeError, match="Point holds itself"):
            slim.encode({"value": value}, classes)
    shared = Point(1, 2)
    assert slim.decode(slim.encode({"value": [shared, [shared]]}, classes), classes) == {
        "value": [shared, [shared]]
    }


@pytest.mark.parametrize(
    "cls",
    [
        dict,
        fractions.Fraction,
        collections.deque,
        collections.Counter,
        Decimal,
        pathlib.PurePosixPath,
    ],
)
def test_class_by_itself_is_stored_as_it_is_or_refused(cls: type) -> None:
    with pytest.raises(TypeError, match="by its name"):
        slim.encode({"x": cls})
    assert slim.decode(slim.encode({"x": dt.date}))["x"] is dt.date


@pytest.mark.parametrize(
    "pickled",
    [
        lambda n: (
            b"\x80\4cslim\n_defaultdict\n\x940\x8c\4list\x85\x940"
            + b"h\0h\1RN" * n
            + b"N"
            + b"s" * n
            + b"0}."
        ),
        lambda n: (
            b"\x80\4ccollections\ndeque\n\x940)\x940" + b"h\0h\1R" * n + b"a" * (n - 1) + b"0}."
        ),
        lambda n: (
            b"(dp0\n0S'__doc__'\np3\n0(Ng0\ntp2\n0Np1\n0"
            + b"g0\ng3\ng1\ns0cdatetime\ndate\ng2\nbp1\n0" * n
            + b"(d."
        ),
    ],
)
def test_what_calls_made_one_in_another_does_not_overflow_the_stack_when_it_ends(
    pickled: Any,
) -> None:
    with pytest.raises(slim.Corrupt):
        slim.decode(zlib.compress(pickled(900_000)))
    with contextlib.suppress(slim.Corrupt):  # as deep as it may be
        slim.decode(zlib.compress(pickled(39_000)))


def test_body_cannot_hang_the_process_by_a_division_of_huge_numbers() -> None:
    huge, half = (
        b"\x8b" + size.to_bytes(4, "little") + b"\x7f" * size for size in (2_000_000, 1_000_000)
    )
    with pytest.raises(slim.Corrupt, match="more than it has"):
        slim.decode(
            zlib.compress(
                b"\x80\4}N" + named("builtins", "range") + b"K\0" + huge + half + b"\x87Rs."
            )
        )
    entity = {"range": range(10**500), "fraction": fractions.Fraction(10**500, 3)}
    assert slim.decode(slim.encode(entity)) == entity


class Setting:
    a = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Setting, (), {"a": self.a}, None, None, set_more


def set_more(value: Any, state: Any) -> None:
    vars(value).update(state, more=True)


def test_state_setter_of_a_class_is_called_when_any_reads_it() -> None:
    value = Setting()
    value.a = 99
    assert vars(slim.decode(slim.encode({"x": value}, slim.ANY), slim.ANY)["x"]) == {
        "a": 99,
        "more": True,
    }


def test_entity_with_forty_thousand_dates_is_read() -> None:
    entity = {"dates": [dt.date.min + dt.timedelta(number) for number in range(slim.MAX_TUPLES)]}
    assert slim.decode(slim.encode(entity)) == entity


def test_large_body_of_python_2_with_bytes_beyond_ascii_is_read() -> None:
    text = b"b\\xc3\\xb3b " + b"little tale told " * 10_000
    assert slim.decode(zlib.compress(b"(dS't'\nS'" + text + b"'\ns."))["t"].startswith(
        "b\u00f3b little"
    )


def test_tuples_are_counted_as_they_are_and_not_where_text_has_their_opcodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dice = random.Random(3)

    def value(depth: int = 0) -> Any:
        kind = dice.randrange(6 if depth > 3 else 10)
        return [
            lambda: dice.randrange(10 ** dice.randrange(1, 700)),
            lambda: "tRd]}" * dice.randrange(200),
            lambda: dice.randbytes(dice.randrange(700)),
            dice.random,
            lambda: bytearray(dice.randbytes(9)),
            lambda: Decimal(1),
            lambda: [value(depth + 1) for _ in range(dice.randrange(9))],
            lambda: {1, "R", frozenset([2])},
            lambda: tuple(value(depth + 1) for _ in range(dice.randrange(6))),
            lambda: {str(key): value(depth + 1) for key in range(5)},
        ][kind]()

    for _ in range(60):
        body = slim.encode({str(key): value() for key in range(20)})
        tuples = sum(
            opcode.code in "\x85\x86\x87t"
            for opcode, _, _ in pickletools.genops(zlib.decompress(body))
        )
        with monkeypatch.context() as patched:
            patched.setattr(slim, "MAX_TUPLES", tuples)
            slim.decode(body)
            patched.setattr(slim, "MAX_TUPLES", tuples - 1)
            with pytest.raises(slim.Corrupt, match="tuples"):
                slim.decode(body)


class Single:
    def __reduce__(self) -> str:
        return "SINGLE"


SINGLE = Single()


def test_object_that_is_pickled_by_the_name_of_a_global_is_read_by_any_alone() -> None:
    assert slim.decode(slim.encode({"x": SINGLE}, slim.ANY), slim.ANY)["x"] is SINGLE
    with pytest.raises(slim.Untrusted, match="test_untrusted.SINGLE"):
        slim.encode({"x": SINGLE}, [Single])


def test_object_without_state_is_read_as_pickle_reads_it() -> None:
    assert (
        type(slim.decode(slim.encode({"x": Stateful()}, [Stateful]), [Stateful])["x"]) is Stateful
    )


@pytest.mark.parametrize("cls", [Point, Pair, Color, Slotted], ids=lambda cls: cls.__name__)
def test_body_alters_no_allowed_class_of_the_application(cls: type) -> None:
    for pickled in state_for(cls):
        with pytest.raises(slim.Corrupt):
            slim.decode(body(pickled + b"0}"), [cls])


@pytest.mark.parametrize(
    "state", [b"(c__builtin__\nset\n(t(dNt", b"(S'size'\nI1\nd", b"(N(S'size'\nI1\ndt"]
)
def test_body_in_the_form_of_python_2_alters_nothing_by_which_others_are_read(state: bytes) -> None:
    good = zlib.compress(b"(dS'day'\ncdatetime\ndate\n(S'\\x07\\xd9\\x02\\x1b'\ntRs.")
    for name in (
        b"datetime\ndate",
        b"copy_reg\n_reconstructor",
        b"uuid\nUUID",
        b"collections\ndeque",
        b"decimal\nDecimal",
    ):
        with contextlib.suppress(slim.Corrupt):  # refused, or without effect
            slim.decode(zlib.compress(b"(dS'value'\nc" + name + b"\n" + state + b"bs."))
        assert slim.decode(good) == {"day": dt.date(2009, 2, 27)}
        assert [
            vars(known)
            for known in slim._KNOWN_2.values()
            if not isinstance(known, type) and vars(known)
        ] == []


def test_body_in_the_form_of_python_2_makes_no_function_that_calls_itself() -> None:
    with pytest.raises(slim.Corrupt):  # by BUILD, of what is to be called: it ended the process
        slim.decode(zlib.compress(b"(dS'value'\ncdatetime\ndate\np0\n(g0\n(t(dNtb(tRs."))
