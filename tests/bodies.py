"""The bodies that one Python writes and every other is to read.

    python tests/bodies.py write            prints {its version: {name of a value: body in base64}}
    python tests/bodies.py read < FILE      prints what of such bodies is not read as it was written
    python tests/bodies.py keep < FILE      keeps them in tests/bodies.json, beside those of other versions

It needs no package but Python's own, of 3.10 or later.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime as dt
import enum
import fractions
import ipaddress
import json
import pathlib
import platform
import sys
import uuid
import zoneinfo
from collections.abc import Callable
from decimal import Decimal
from http import HTTPStatus
from typing import Any, Generic, NamedTuple, TypeVar
from unittest import mock

HERE = pathlib.Path(__file__).resolve().parent
KEPT = HERE / "bodies.json"
# Nothing but the codec is used here: another Python's driver need not be installed.
try:
    import MySQLdb  # noqa: F401
except ImportError:
    for name in "MySQLdb", "MySQLdb.constants", "MySQLdb.converters":
        sys.modules[name] = mock.MagicMock()
sys.path.append(str(HERE.parent))
import slim  # noqa: E402

T = TypeVar("T")


class Colour(enum.Enum):
    RED = 1
    CRIMSON = 1
    GREEN = "green"
    BLUE = (0, 0, 255)
    MIXED = [1, 2]  # it has no hash


class Priority(enum.IntEnum):
    LOW = 1
    HIGH = 10


class Word(str, enum.Enum):
    YES = "yes"
    NO = "no"


if sys.version_info >= (3, 11):

    class Line(enum.StrEnum):
        DASHED = enum.auto()

else:

    class Line(str, enum.Enum):
        DASHED = "dashed"
        __str__ = str.__str__
        __format__ = str.__format__


class Permission(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()
    RUN = enum.auto()
    ALL = READ | WRITE | RUN


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2
    FOUR = 4


class Planet(enum.Enum):
    EARTH = ("earth", 5.97e24)
    MARS = ("mars", 6.42e23)

    def __new__(cls, label: str, mass: float) -> Planet:
        member = object.__new__(cls)
        member._value_ = label
        member.mass = mass  # type: ignore[attr-defined]
        return member


class Outer:
    class Inner(enum.Enum):
        A = "a"


Shade = enum.Enum("Shade", "DARK LIGHT", module=__name__)


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0
    tags: list[str] = dataclasses.field(default_factory=list)
    norm: int = dataclasses.field(init=False, default=0)


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: int
    colour: Colour = Colour.RED


@dataclasses.dataclass(slots=True)
class Slotted:
    x: int
    y: Any = None


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class FrozenSlotted:
    x: int


@dataclasses.dataclass(kw_only=True)
class Named(Point):
    name: str


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


class Pair(NamedTuple):
    left: int
    right: Any = None


Triple = collections.namedtuple("Triple", "a b c", defaults=[3], module=__name__)


class ByValue:
    """Instances are equal if they are of one class and hold the same."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.held() == other.held()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return 0

    def held(self) -> Any:
        return vars(self)


class Plain(ByValue):
    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


class WithSlots(ByValue):
    __slots__ = "a", "b"

    def __init__(self, a: Any, b: Any) -> None:
        self.a = a
        self.b = b

    def held(self) -> Any:
        return self.a, self.b


class WithState(ByValue):
    def __init__(self, a: int) -> None:
        self.a = a

    def __getstate__(self) -> Any:
        return [self.a]

    def __setstate__(self, state: Any) -> None:
        (self.a,) = state


class WithReduce(ByValue):
    def __init__(self, a: int) -> None:
        self.a = a

    def __reduce__(self) -> Any:
        return WithReduce, (self.a,)


class Name(str):
    pass


class Tags(list[str]):
    pass


class Settings(dict[str, Any]):
    pass


class Day(dt.date):
    pass


# What the reader allows beside Python's own values.
CLASSES = [
    *(Colour, Priority, Word, Line, Permission, Bits, Planet, Outer.Inner, Shade, HTTPStatus),
    *(Point, Frozen, Slotted, FrozenSlotted, Named, Box, Pair, Triple),
    *(Plain, WithSlots, WithState, WithReduce, Name, Tags, Settings, Day),
]
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
MOMENT = dt.datetime(2024, 10, 27, 2, 30, 15, 123456)
IDENTITY = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")


def values() -> dict[str, Any]:
    """A value of each kind that may be stored, or several in a list, by name."""
    return {
        "none": None,
        "bool": [True, False],
        "int": [0, -1, 255, 256, 1 << 31, 1 << 64, -(1 << 2000)],
        "float": [0.0, -0.0, 0.1, 1e308, float("inf"), float("nan")],
        "complex": [1j, complex(0.5, -2)],
        "str": ["", "é", "\N{GRINNING FACE}", "\ud800", "x" * 300, "\0"],
        "bytes": [b"", b"\xff\0", b"x" * 300],
        "bytearray": [bytearray(), bytearray(b"\xff\0" * 200)],
        "list": [[], [1, [2, [3]]]],
        "tuple": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "dict": [{}, {"a": {1: {(2, 3): None}}}],
        "set": [set(), {1, 2}, {"a", "b", (1, None)}],
        "frozenset": [frozenset(), frozenset([1, "a"]), {frozenset([1])}],
        "range": [range(3), range(10, 0, -2)],
        "slice": [slice(3), slice(None, "b", 1.5)],
        "date": [dt.date.min, dt.date.max, MOMENT.date()],
        "time": [dt.time(), MOMENT.time(), dt.time(2, fold=1), dt.time(2, tzinfo=dt.timezone.utc)],
        "datetime": [dt.datetime.min, MOMENT, MOMENT.replace(fold=1)],
        "datetime with a timezone": [
            MOMENT.replace(tzinfo=dt.timezone.utc),
            MOMENT.replace(tzinfo=dt.timezone(dt.timedelta(hours=5.5), "IST")),
            MOMENT.replace(tzinfo=dt.timezone(-dt.timedelta(seconds=1))),
            MOMENT.replace(tzinfo=BERLIN),
            MOMENT.replace(tzinfo=BERLIN, fold=1),
        ],
        "timedelta": [dt.timedelta(), dt.timedelta.max, dt.timedelta(-1, 2, 3)],
        "timezone": [dt.timezone.utc, dt.timezone(dt.timedelta(hours=-1), "Azores")],
        "ZoneInfo": [BERLIN, zoneinfo.ZoneInfo("UTC")],
        "Decimal": [Decimal("1.10"), Decimal("-0"), Decimal("1E+400"), Decimal("Infinity")],
        "Fraction": [fractions.Fraction(1, 3), fractions.Fraction(-7)],
        "UUID": [IDENTITY, uuid.UUID(int=0)],
        "OrderedDict": [collections.OrderedDict(b=1, a=[2])],
        "Counter": [collections.Counter("abba"), collections.Counter()],
        "defaultdict": [collections.defaultdict(list, a=[1])],
        "deque": [collections.deque([1, 2]), collections.deque([1, 2], maxlen=2)],
        "IPv4": list(map(ipaddress.ip_address, ["127.0.0.1", 0])),
        "IPv6": [ipaddress.ip_address("::1"), ipaddress.ip_address("fe80::1%eth0")],
        "network": [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")],
        "interface": [ipaddress.ip_interface("10.0.0.1/8"), ipaddress.ip_interface("::1/64")],
        "path": [pathlib.PurePosixPath("a/../b"), pathlib.PurePosixPath(), pathlib.Path("/x y")],
        "path of Windows": [pathlib.PureWindowsPath("C:/a/b"), pathlib.PureWindowsPath("b")],
        "enum": [Colour.RED, Colour.CRIMSON, Colour.GREEN, Colour.BLUE, Colour.MIXED],
        "enum as a key": [{Colour.RED: Priority.LOW}, {Word.YES, Word.NO}],
        "enum made otherwise": [Planet.MARS, Outer.Inner.A, list(Shade), HTTPStatus.NOT_FOUND],
        "IntEnum": [Priority.LOW, Priority.HIGH],
        "enum of str": [Word.YES, Line.DASHED],
        "Flag": [Permission.READ, Permission.READ | Permission.RUN, Permission.ALL, Permission(0)],
        "IntFlag": [Bits.ONE, Bits.ONE | Bits.FOUR, Bits(0), Bits(9)],
        "dataclass": [Point(1), Point(1, 2, ["a"]), Named(x=1, name="n"), Box([Point(1)])],
        "frozen dataclass": [Frozen(1), Frozen(2, Colour.BLUE), {Frozen(3)}],
        "dataclass with slots": [Slotted(1), Slotted(2, [Slotted(3)]), FrozenSlotted(4)],
        "named tuple": [Pair(1), Pair(1, Pair(2, [3])), Triple(1, 2)],
        "object": [Plain(), Plain(a=1, b=[Plain()]), WithSlots(1, [2])],
        "object with methods for pickle": [WithState(1), WithReduce(2)],
        "subclass of a value": [Name("n"), Tags(["a"]), Settings(a=1), Day(2024, 1, 2)],
    }


def form(value: Any) -> Any:
    """The value with all its types, for a comparison: NaN equals itself, and True is not 1."""
    kind = type(value)
    if isinstance(value, collections.defaultdict):
        kind = dict
    if isinstance(value, dict):
        return kind, [(form(key), form(item)) for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(repr(form(item)) for item in value)
    if isinstance(value, (list, tuple, collections.deque)):
        return kind, getattr(value, "maxlen", None), [form(item) for item in value]
    if isinstance(value, float):
        return kind, repr(value)
    if isinstance(value, (dt.datetime, dt.time)):
        return kind, value, value.fold, form(value.tzinfo), value.utcoffset()
    return kind, value


def written() -> dict[str, str]:
    bodies = {}
    for name, value in values().items():
        body = slim.encode({"value": value}, classes=CLASSES)
        bodies[name] = base64.b64encode(body).decode()
    return bodies


def misread(version: str, bodies: dict[str, str]) -> list[str]:
    """What this Python reads otherwise than the other one wrote it."""
    wrong = []
    wanted = values()
    for name, text in bodies.items():
        problem = compared(base64.b64decode(text), wanted[name])
        if problem:
            here = platform.python_version()
            wrong.append(f"{name}, written by {version}, read by {here}: {problem}")
    return wrong


def compared(body: bytes, wanted: Any) -> str:
    try:
        found = slim.decode(body, classes=CLASSES)["value"]
    except slim.Error as error:
        return str(error)
    return "" if form(found) == form(wanted) else f"{found!r}, not {wanted!r}"


def write() -> None:
    print(json.dumps({platform.python_version(): written()}))


def read() -> None:
    for version, bodies in json.load(sys.stdin).items():
        for line in misread(version, bodies):
            print(line)


def keep() -> None:
    every = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    every.update(json.load(sys.stdin))
    KEPT.write_text(json.dumps(every, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    # Classes are stored by their module's name, which is not to be __main__.
    import bodies

    verbs: dict[str, Callable[[], None]] = {
        "write": bodies.write,
        "read": bodies.read,
        "keep": bodies.keep,
    }
    verbs[sys.argv[1]]()
