"""Bodies by somebody who may write to the database, and means harm: nothing runs or is altered."""

from __future__ import annotations

import builtins
import collections
import contextlib
import copyreg
import datetime as dt
import enum
import fractions
import inspect
import ipaddress
import pathlib
import pickle
import pickletools
import subprocess
import sys
import types
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
    ("slim", "Entity"),
    ("slim", "_load"),
    ("slim", "_new.__globals__"),
    ("slim", "os.system"),
    ("builtins", "getattr"),
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
    # By protocol 4 and 5 it is a function of this body alone that is altered, or nothing.
    **{
        f"BUILD {attribute} of what is called": named("datetime", "date")
        + b"N}"
        + text(attribute)
        + value
        + b"s\x86b"
        for attribute, value in {
            "__defaults__": b"N\x85",
            "__kwdefaults__": b"}",
            "__globals__": b"}",
            "__code__": b"N",
            "__dict__": b"}",
            "__doc__": b"N",
            "__name__": b"\x8c\x04eval",
            "__class__": named("builtins", "dict"),
            "__builtins__": b"}",
        }.items()
    },
    "BUILD __dict__ of what is called": named("datetime", "date") + b"}" + text("x") + b"Nsb",
    "what is called, altered and called": named("datetime", "date")
    + b"N}"
    + text("__defaults__")
    + b"(K\1K\1K\1ts\x86b)R",
    "NEWOBJ of an allowed class": named("decimal", "Decimal") + b")\x81",
    "NEWOBJ_EX of an allowed class": named("decimal", "Decimal") + b")}\x92",
    "NEWOBJ of slim._new": named("slim", "_new") + b")\x81",
    "slim._new of a function": named("slim", "_new") + RUN + b"\x85R",
    "slim._new of itself": named("slim", "_new") + b"\x94h\0\x85R",
    "slim._new of nothing": named("slim", "_new") + b")R",
    "slim._new of text": named("slim", "_new") + text("datetime.date") + b"\x85R",
    "BUILD of slim._new": named("slim", "_new") + b"N}" + text("__code__") + b"Ns\x86b",
    "what is called as a value": named("datetime", "date"),
    "slim._new as a value": named("slim", "_new"),
    "what is called as a key": b"}" + named("datetime", "date") + b"Ns",
    "what is called in a list": b"](" + named("datetime", "date") + b"e",
    "what is called in a deque": named("collections", "deque")
    + b"("
    + named("datetime", "date")
    + b"t\x85R",
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


# What a body may meet, and must leave as it is.
TABLES = [value for value in vars(slim).values() if isinstance(value, dict)]
MODULES: list[Any] = [slim, copyreg, builtins, pickle, sys.modules[__name__]]


def state() -> list[Any]:
    """Everything of the allowed classes and of the modules that a body could alter.

    Python itself notes some things in a class when it is used.
    """
    noted = "__abstractmethods__", "_abc_impl", "__annotations__", "__slotnames__"
    noted += "__annotations_cache__", "__warningregistry__"
    found: list[Any] = []
    for owner in (*ALLOWED, *map(type, APPLICATION), Color, Loaded, Stateful, *MODULES):
        for name, value in sorted(vars(owner).items()):
            if name not in noted:
                found.append((owner.__name__, name, id(value), inside(value)))
    return found


def inside(value: Any) -> Any:
    """What BUILD alters of a function or a member, and the items of a dictionary of slim's."""
    if isinstance(value, types.FunctionType):
        kept = value.__code__, value.__defaults__, value.__kwdefaults__, value.__globals__
        return [*map(id, kept), sorted(vars(value))]
    if isinstance(value, enum.Enum):
        return sorted((name, id(item)) for name, item in vars(value).items())
    if any(value is table for table in TABLES):
        return [(id(key), id(item)) for key, item in value.items()]
    return None


@pytest.fixture(autouse=True)
def unharmed() -> Iterator[None]:
    """Nothing may have been run, and no class, function or module have been altered."""
    copyreg.add_extension("test_untrusted", "run", 0x7B)  # type: ignore[arg-type]
    # Reading it once fills the cache, from which pickle answers before it asks for a name.
    assert pickle.loads(b"\x82\x7b.") is run
    before = state()
    RAN.clear()
    yield
    ran = [*RAN]
    RAN.clear()
    after = state()
    copyreg.remove_extension("test_untrusted", "run", 0x7B)  # type: ignore[arg-type]
    assert ran == []
    assert after == before


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
def test_refusal_names_what_was_named_and_never_advises_to_allow_it(module: str, name: str) -> None:
    for pickled in named(module, name), text(module) + text(name) + b"\x93":
        with pytest.raises(slim.Untrusted) as caught:
            slim.decode(body(pickled))
        assert f"{module}.{name}" in str(caught.value)
        assert "allow" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
def test_function_is_refused_by_whichever_protocol_it_is_named(protocol: int) -> None:
    for value in [run], {"a": run}, {"text": "a\nb\nc", "a": Point(1)}:
        with pytest.raises(slim.Untrusted):
            slim.decode(zlib.compress(pickle.dumps(value, protocol)))


@pytest.mark.parametrize("opcode", [b"c", b"(i"])
@pytest.mark.parametrize("named", [b"colorsys", b"colorsys\n", b"colorsys\nrgb_to_hls"])
def test_name_that_is_cut_short_imports_nothing(opcode: bytes, named: bytes) -> None:
    sys.modules.pop("colorsys", None)
    for pickled in (
        opcode + named,
        b"\x80\x05" + opcode + named,
        b"\x80\x05" + opcode + named + b".",
    ):
        with pytest.raises(slim.Corrupt):
            slim.decode(zlib.compress(pickled))
    assert "colorsys" not in sys.modules


def test_pickle_has_no_opcode_that_slim_does_not_know() -> None:
    # Before pickle reads a body, slim looks for the opcodes that name something.
    naming = {"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}
    assert {each.proto for each in pickletools.opcodes} == {*range(6)}
    assert {each.code for each in pickletools.opcodes if each.name in naming} == {
        *"ci\x93\x82\x83\x84"
    }


@pytest.mark.parametrize(
    "value",
    ["\n", "a\nb\nc", "\u0082", "\u0083\u0084", "\u0093", "–", 10, [10, 10], 0x93, 0x82, "x" * 10],
)
def test_plain_values_that_look_like_names_are_read(value: Any) -> None:
    entity = {"id": "x", "value": value, "again": [value, (value, {"key": value})]}
    for classes in (), [Point], slim.ANY:
        assert slim.decode(slim.encode(entity, classes), classes) == entity


def test_every_reader_says_which_entity_is_hostile(store: slim.Datastore, sql: Sql) -> None:
    by_user = store.add_index(slim.Index("index_user", "user"))
    store.put({"id": "good", "user": "bob"})
    for number, pickled in enumerate(HOSTILE.values()):
        sql(
            "INSERT INTO entities (id, body) VALUES (%s, UNHEX(%s))",
            [f"bad {number}", body(pickled).hex()],
        )
        sql("INSERT INTO index_user (user, entity_id) VALUES ('bob', %s)", [f"bad {number}"])
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


def test_decompression_stops_at_the_limit() -> None:
    child("""
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
        body = b"\\x78\\x9c" + block * ((1 << 24) // len(block))       # what a MEDIUMBLOB takes: 16 GB of zeros
        decode(body)
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


class Single:
    def __reduce__(self) -> str:
        return "SINGLE"


SINGLE = Single()


def test_object_without_state_is_read_as_pickle_reads_it() -> None:
    assert (
        type(slim.decode(slim.encode({"x": Stateful()}, [Stateful]), [Stateful])["x"]) is Stateful
    )


@pytest.mark.parametrize("cls", [Point, Pair, Color, Slotted], ids=lambda cls: cls.__name__)
def test_body_alters_no_allowed_class_of_the_application(cls: type) -> None:
    for pickled in state_for(cls):
        with contextlib.suppress(slim.Corrupt):
            slim.decode(body(pickled + b"0}"), [cls])


@pytest.mark.parametrize(
    "state", [b"}" + text("__class__") + b"Ns", b"N}" + text("__objclass__") + b"Ns\x86"]
)
def test_body_alters_no_function_that_slim_calls_to_read_the_next(state: bytes) -> None:
    good = slim.encode({"point": Point(1), "day": dt.date(2009, 2, 27)}, [Point])
    for name in (("slim", "_new"), ("test_untrusted", "Point"), ("datetime", "date")):
        with contextlib.suppress(slim.Corrupt):
            slim.decode(body(b"}" + text("x") + named(*name) + state + b"bs"), [Point])
        assert slim.decode(good, [Point])["point"] == Point(1)


def test_class_that_moved_is_read_by_its_old_name_and_written_by_its_new_one() -> None:
    old = b"}" + text("p") + named("old.module", "Spot") + b"K\1K\2\x86Rs"
    moved = {"old.module.Spot": Point}
    assert slim.decode(body(old), moved) == {"p": Point(1, 2)}
    again = slim.encode({"p": Point(1, 2)}, moved)
    assert b"old.module" not in zlib.decompress(again)
    assert slim.decode(again, moved) == slim.decode(again, [Point]) == {"p": Point(1, 2)}
    with pytest.raises(slim.Untrusted, match="old.module.Spot"):
        slim.decode(body(old), [Point])


@pytest.mark.parametrize("value", [dict, dt.date, Point, len, run, lambda: 0, slim.decode])
def test_class_or_function_as_a_value_is_refused_by_put(store: slim.Datastore, value: Any) -> None:
    for entity in {"id": "x", "v": value}, {"id": "x", "v": [{"w": value}]}:
        with pytest.raises((TypeError, slim.Untrusted)):
            store.put(entity)
    assert len(store) == 0


@pytest.mark.parametrize("classes", [[Point], slim.ANY])
def test_values_that_hold_themselves_come_back_so(classes: Any) -> None:
    knot: list[Any] = []
    knot.append(knot)
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    point = Point(1, 2)
    point.x = [point]  # type: ignore[assignment]
    entity = {"knot": knot, "ring": ring, "point": point}
    read = slim.decode(slim.encode(entity, classes), classes)
    assert read["knot"][0] is read["knot"]
    assert read["ring"]["ring"] is read["ring"]
    assert read["point"].x[0] is read["point"]


def test_defaultdict_comes_back_as_a_dict_whatever_its_factory() -> None:
    for factory in list, None, lambda: 0:
        value = collections.defaultdict(factory, a=[1])
        read = slim.decode(slim.encode({"x": value}))["x"]
        assert type(read) is dict and read == {"a": [1]}


def test_members_of_an_enum_are_written_by_class_and_value() -> None:
    both = Access.READ | Access.WRITE
    entity = {"c": Color.RED, "a": both, Color.RED: [Access.READ]}
    written = slim.encode(entity, [Color, Access])
    assert b"getattr" not in zlib.decompress(written)
    read = slim.decode(written, [Color, Access])
    assert read == entity
    assert read["c"] is Color.RED and read["a"] is both


BROKEN = """
import contextlib, datetime as dt, random, resource, uuid, zlib
import slim
# A length, or an index of the memo, may ask for memory that is not there, which is Corrupt, too.
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
good = zlib.decompress(slim.encode({"u": uuid.UUID(int=1), "d": dt.date(2009, 2, 27)}))
dice = random.Random(1)
read = 0
for _ in range(2_000):
    broken = bytearray(good)
    for _ in range(dice.randint(1, 3)):
        broken[dice.randrange(len(broken))] = dice.randrange(256)
    with contextlib.suppress(slim.Corrupt):
        assert isinstance(slim.decode(zlib.compress(bytes(broken))), dict)
        read += 1
print(read)
"""


def test_two_thousand_broken_bodies_do_no_harm() -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True)
    # Python itself complains of a bytearray for which there is no memory.
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 2_000
