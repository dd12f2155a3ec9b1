"""slim: a schema-less, indexed datastore on MySQL, in one module, after the design that FriendFeed published in 2009.

Store dictionaries now, query them by a few properties, never run a migration; nothing acknowledged is ever lost.

    >>> import slim
    >>> by_user = slim.Index("index_user_id", "user_id")
    >>> store = slim.Datastore("localhost", "me", "secret", "app", indexes=[by_user])  # makes what is missing
    >>> key = store.put({"user_id": "bob", "title": "Hello"})       # one round trip, one transaction
    >>> entity = store.get(key)                                     # a dict, or None; one round trip
    >>> [found["title"] for found in by_user.get_all(store, user_id="bob")]     # a list, maybe empty; one join
    ['Hello']
    >>> store.put({**entity, "title": "Hi"}, expect=entity.version) == key      # else Conflict: another was faster
    True
    >>> store.update(key, lambda entity: entity.update(likes=1))["likes"]       # KeyError where there is none
    1
    >>> store.delete(key), store.get(key), len(store)
    (True, None, 0)

What it puts into the database, and it touches nothing else:

    entities            added_id BIGINT UNSIGNED AUTO_INCREMENT, id VARCHAR(36), updated TIMESTAMP, body MEDIUMBLOB
    index_user_id       user_id VARCHAR(191), entity_id VARCHAR(36): one such table for each Index
    entities_history    every version that was put, where history is kept
    entities_guard_…    always empty; renamed when the set of indexes changes, so that no older program misses it

A body is a zlib-compressed pickle of the whole dictionary. It is read through an exact list of harmless types:
a body that names anything else raises Untrusted and runs nothing.

Promises: a put is one transaction, whatever dies; an index answers only what is true of its entities; all indexes of
the database are maintained by each program that writes, named there or not; text compares exactly.
Limits: a body of 16 MiB (MEDIUMBLOB), less where the server's max_allowed_packet is lower; ids of 1 to 36 characters.
"""
from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import datetime as dt
import decimal
import enum
import fractions
import getpass
import io
import ipaddress
import itertools
import json
import os
import pathlib
import pickle
import random
import re
import sys
import textwrap
import threading
import time
import uuid
import weakref
import zlib
import zoneinfo
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import MySQLdb
from MySQLdb.constants import CR, ER

__all__ = ["ANY", "Conflict", "Corrupt", "Datastore", "Duplicate", "Entity", "Error", "Index", "NotPopulated", "Schema",
           "Unknown", "Untrusted", "decode", "encode"]
__version__ = "1.0.0"

ANY = "any"                         # classes=ANY reads any pickle, as pickle does: for databases that only you write to
MAX_SIZE = 64 << 20                 # bytes that a body may have when decompressed
MAX_BODY = (1 << 24) - 1            # bytes of a MEDIUMBLOB
PAGE = 5_000                        # rows of one result at the most (Vitess allows 10,000)
PAGE_BYTES = 4 << 20                # bytes of bodies that a page of a scan aims at
BATCH = 1_000                       # entities of one transaction of put_many
BATCH_BYTES = 4 << 20               # bytes of bodies of the same
UNTRUSTED = ("{} is not among the types that a body may name; allow the class by Datastore(…, classes=[…]), or all by "
             "classes=slim.ANY, if nobody else can write to the database")
MAX_OPCODES = 1 << 22               # of a body: each may make an object of some 200 bytes
LEVEL = 1                           # zlib's level: on documents of 300 bytes to 3 KiB, 6 saves 2 to 4 % of size for half the speed
PROTOCOL = 5                        # of pickle; every Python that runs slim reads it
RETRY_SECONDS = 30.0                # how long a call is tried again on deadlocks and lost connections
EXACT = ("utf8mb4_0900_bin", "utf8mb4_nopad_bin", None)     # collations that compare as Python does; None: bytes
BUILDING = "~"                      # ends the name of an index table that is not populated yet
COMMENT, COMMENT_UNIQUE = "slim index", "slim unique index"     # by its comment an index table is known

# The server, or the way to it, is gone: reconnect. MySQL's manual, Server Error Message Reference, and Galera's.
LOST = {CR.CONNECTION_ERROR, CR.CONN_HOST_ERROR, CR.SERVER_GONE_ERROR, CR.SERVER_LOST, CR.SERVER_LOST_EXTENDED,
        CR.SERVER_HANDSHAKE_ERR, ER.UNKNOWN_COM_ERROR, ER.SERVER_SHUTDOWN, ER.ERROR_DURING_COMMIT,
        ER.OPTION_PREVENTS_STATEMENT, 1836, 1927, 3100, 4031}   # read-only; killed; a hook failed; idle too long
CERTIFICATION = 3101                # Group Replication rolled the transaction back at COMMIT
AGAIN = {ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, ER.DUP_ENTRY, ER.NO_SUCH_TABLE, CERTIFICATION}
DENIED = {ER.DBACCESS_DENIED_ERROR, ER.TABLEACCESS_DENIED_ERROR, ER.SPECIFIC_ACCESS_DENIED_ERROR,
          ER.OPTION_PREVENTS_STATEMENT}

T = TypeVar("T")
Progress = Callable[..., Iterable[Any]]
Connection = Any                    # MySQLdb's stubs type neither its connections nor their results


class Error(Exception):
    """What all of slim's own errors derive from. The driver's pass through as MySQLdb's."""


class Conflict(Error):
    """Another version than the expected one is current. Carries `.id`, `.expected` and `.found` (0: no entity)."""

    def __init__(self, id: str, expected: int, found: int) -> None:
        super().__init__(f"entity {id!r}: version {expected} was expected, {found} is current "
                         "(0 is none); get it again, and decide again")
        self.id, self.expected, self.found = id, expected, found


class Duplicate(Error):
    """A unique index has these values for another entity. Carries `.index` and `.id`, the other entity's."""

    def __init__(self, index: Index, id: str, values: Sequence[Any]) -> None:
        super().__init__(f"unique index {index.table}: entity {id!r} already has {dict(zip(index.types, values))!r}")
        self.index, self.id = index, id


class NotPopulated(Error):
    """The index does not stand, or is not filled yet; it never answers with half the truth."""


class Corrupt(Error):
    """A body is no zlib, no pickle or no dictionary, or is too large. Carries `.id` (None outside a store)."""

    id: str | None = None

    def __str__(self) -> str:
        return super().__str__() if self.id is None else f"entity {self.id!r}: {super().__str__()}"


class Untrusted(Corrupt):
    """A body names a class that is not allowed; nothing of it was run. Carries `.id` (None outside a store)."""


class Unknown(Error, MySQLdb.OperationalError):
    """The connection was lost during COMMIT: whether the write was done is not known. Read, then decide."""


# SQL by name. Identifiers are quoted into {} once, values are bound to %s always.
SESSION = """SET SESSION time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',
 autocommit = 1; SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;
 SELECT @@max_allowed_packet, VERSION() LIKE '%%MariaDB%%'"""
WSREP = "SET SESSION wsrep_retry_autocommit = 0"     # Galera would repeat the last statement alone, without its packet
SNAPSHOT = """SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT;
 SELECT COUNT(*) FROM entities WHERE %s"""
TABLE_OPTIONS = " ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE={collation}"
CREATE_ENTITIES = """CREATE TABLE entities (
 added_id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, id VARCHAR(36) NOT NULL,
 updated TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, body MEDIUMBLOB, UNIQUE KEY (id), KEY (updated))"""
CREATE_HISTORY = """CREATE TABLE entities_history (
 id VARCHAR(36) NOT NULL, number BIGINT UNSIGNED NOT NULL, added_id BIGINT UNSIGNED NOT NULL,
 updated TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, body MEDIUMBLOB, PRIMARY KEY (id, number))"""
CREATE_GUARD = "CREATE TABLE {table} (id TINYINT PRIMARY KEY) ENGINE=InnoDB COMMENT='slim guard'"
CREATE_INDEX = "CREATE TABLE {table} ({columns}, entity_id {id} NOT NULL UNIQUE, PRIMARY KEY ({key}){more})"
SELECT_CATALOGUE = """SELECT table_name, '', '', '' FROM information_schema.tables
  WHERE table_schema = DATABASE() AND table_comment = 'slim guard' ORDER BY table_name;
 SELECT c.table_name, c.column_name, c.column_type, c.collation_name, t.table_comment
  FROM information_schema.columns AS c JOIN information_schema.tables AS t
    ON t.table_schema = c.table_schema AND t.table_name = c.table_name
  WHERE c.table_schema = DATABASE() AND (t.table_comment IN %s OR c.table_name IN %s)
  ORDER BY c.table_name, c.ordinal_position"""
SELECT_ENTITY = "SELECT added_id, id, updated, body FROM entities WHERE id IN %s"
SELECT_PAGE = "SELECT added_id, id, updated, body FROM entities WHERE added_id > %s ORDER BY added_id LIMIT %s"
SELECT_NEWEST = "SELECT added_id, id, updated, body FROM entities ORDER BY added_id DESC LIMIT %s OFFSET %s"
SELECT_VERSION = "SELECT id, added_id FROM entities WHERE id IN %s"
SELECT_STAMP = "SELECT added_id, updated FROM entities WHERE id = %s"
SELECT_HISTORY = "SELECT added_id, id, updated, body FROM entities_history WHERE id = %s ORDER BY number DESC"
SELECT_LAST = "SELECT COALESCE(MAX(added_id), 0), COUNT(*) FROM entities"
COUNT_ENTITIES = "SELECT COUNT(*) FROM entities"
FOR_UPDATE = " FOR UPDATE"
DELETE_ENTITY = "DELETE FROM entities WHERE id IN %s"
EXACTLY = " AND CAST(id AS BINARY) IN %s"            # where the table's collation would delete Bob for bob
GUARDED = " AND NOT EXISTS (SELECT 1 FROM {guard})"  # holds the guard's metadata lock until COMMIT
INSERT_ENTITY = "INSERT INTO entities (id, body) VALUES "
INSERT_HISTORY = """INSERT INTO entities_history (id, number, added_id, updated, body)
 SELECT e.id, 1 + (SELECT COALESCE(MAX(h.number), 0) FROM entities_history AS h WHERE h.id = e.id), e.added_id,
  e.updated, e.body FROM entities AS e WHERE e.id IN %s"""
DELETE_HISTORY = "DELETE FROM entities_history WHERE id IN %s"
DELETE_ROW = "DELETE FROM {table} WHERE entity_id IN %s"
INSERT_ROW = "INSERT INTO {table} ({names}, entity_id) VALUES "
SELECT_ROW = "SELECT entity_id, {names} FROM {table} WHERE entity_id IN %s FOR UPDATE"
SELECT_OWNER = "SELECT entity_id FROM {table} WHERE ({names}) = %s AND entity_id <> %s"
# STRAIGHT_JOIN: read the index first, in its order; on a small table the optimizer would read and sort the entities.
SELECT_MATCH = """SELECT e.added_id, e.id, e.updated, e.body FROM {table} AS i STRAIGHT_JOIN entities AS e
 ON e.id = i.entity_id WHERE {where} ORDER BY {order} LIMIT %s"""
COUNT_MATCH = "SELECT COUNT(*) FROM {table} AS i WHERE {where}"
SELECT_COMPARED = """SELECT e.added_id, e.id, e.updated, e.body, i.entity_id, {names} FROM entities AS e
 LEFT JOIN {table} AS i ON i.entity_id = e.id WHERE e.added_id > %s AND e.added_id <= %s
 ORDER BY e.added_id LIMIT %s"""
SELECT_ORPHANS = """SELECT i.entity_id FROM {table} AS i LEFT JOIN entities AS e ON e.id = i.entity_id
 WHERE i.entity_id > %s AND e.id IS NULL ORDER BY i.entity_id LIMIT %s"""


def _quote(name: str) -> str:
    """An identifier for SQL that values are bound into by %: backticks and percent signs are data."""
    return "`" + name.replace("`", "``").replace("%", "%%") + "`"


class Entity(dict[Any, Any]):
    """A dictionary out of the store, with `.version` (int) and `.updated` (aware datetime, UTC). Pickled as a dict."""

    __slots__ = ("updated", "version")
    version: int
    updated: dt.datetime

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (), None, None, iter(self.items())


class _Sealed(type):
    """Stands for a class while a body is read: it can be called as `_make` allows, but not altered by BUILD."""

    real: Any

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return _make(cls.real, cls.real, args, kwargs)

    def __setstate__(cls, state: Any) -> None:
        raise pickle.UnpicklingError(f"a body may not alter {cls.real!r}")


def _seal(real: Any) -> _Sealed:
    return _Sealed("sealed", (), {"real": real, "__new__": lambda cls, *args, **kwargs: _make(
        real, lambda *args, **kwargs: real.__new__(real, *args, **kwargs), args, kwargs)})


def _make(real: Any, make: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    """make(*args), unless that would unroll into memory what takes no bytes in the body."""
    args = tuple(arg.real if isinstance(arg, _Sealed) else arg for arg in args)
    if real in _KNOWN.values():
        if (real in _FACTORIES or kwargs or any(isinstance(arg, _LAZY) for arg in args)
                or real is bytearray and not all(isinstance(arg, (bytes, str)) for arg in args)
                or real is fractions.Fraction and "e" in "".join(map(str, args)).lower()):
            raise pickle.UnpicklingError(f"a body may not call {real!r} so")
        if real in _PLAIN and real is not decimal.Decimal and args and isinstance(args[0], str):
            args = args[0].encode("utf-8", "surrogateescape"), *args[1:]        # how Python 2 wrote dates
    return make(*args, **kwargs)


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")                                # how protocols 0 to 2 write bytes


def _reconstructor(cls: type, base: type, state: Any) -> Any:
    return cls.__new__(cls)                                     # how protocols 0 and 1 write objects


def _getattr(cls: Any, name: str) -> Any:
    if (cls, name) != (zoneinfo.ZoneInfo, "_unpickle") and not issubclass(cls, enum.Enum):
        raise pickle.UnpicklingError(f"a body may not take {name!r} of {cls!r}")
    return getattr(cls, name)                                   # how ZoneInfo and some enums are written


# What a body may name. C's own value types cannot be altered, and are used as they are; the others are sealed.
_PLAIN = dt.datetime, dt.date, dt.time, dt.timedelta, dt.timezone, decimal.Decimal
_LAZY = range, ipaddress.IPv4Network, ipaddress.IPv6Network, fractions.Fraction
_FACTORIES = int, str, float, bool, bytes, list, dict, tuple, object            # a defaultdict's; never called
_KNOWN = {(cls.__module__, cls.__name__): cls for cls in (
    *_PLAIN, *_LAZY, *_FACTORIES, complex, slice, bytearray, set, frozenset, uuid.UUID, zoneinfo.ZoneInfo,
    collections.OrderedDict, collections.defaultdict, collections.Counter, collections.deque, ipaddress.IPv4Address,
    ipaddress.IPv6Address, ipaddress.IPv4Interface, ipaddress.IPv6Interface)}
_KNOWN |= {(module, cls.__name__): cls for module in ("pathlib", "pathlib._local") for cls in (
    pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath)}
_KNOWN |= {("_codecs", "encode"): _latin1, ("copyreg", "_reconstructor"): _reconstructor, ("builtins", "getattr"): _getattr}
_KNOWN |= {(old, name): value for (new, name), value in _KNOWN.items()
           for old in {"builtins": ["__builtin__"], "copyreg": ["copy_reg"]}.get(new, ())}
_SEALED = {key: value if value in _PLAIN else _seal(value) for key, value in _KNOWN.items()}
_SEALED2 = {key: _seal(value) for key, value in _KNOWN.items()}

# The opcodes that a body may have; strings from 256 bytes on are stepped over in _check_opcodes. Not among them are EXT,
# INST, OBJ and PERSID, and a PUT to so high a place that C's memo, an array, would fill the memory.
_OPCODES = re.compile(rb"(?s:[\x94N\x88\x89\x85\x86\x87()\]}eausRtdlb02.\x81\x8f\x90\x91\x92\x931]|[Khq\x80].|M..|[Jj].{4}|"
                      rb"r..[\0-\x0f]\0|[G\x95].{8}|[pg]\d{1,6}\n|[IFLSV][^\n]*\n|c[^\n]*\n[^\n]*\n|"
                      rb"[\x8cC\x8aU](?:" + rb"|".join(b"%s.{%d}" % (re.escape(bytes([n])), n) for n in range(256))
                      + rb")){0,1000}")
_COUNTED = {ord("X"): 4, ord("B"): 4, ord("T"): 4, 0x8b: 4, 0x8d: 8, 0x8e: 8, 0x96: 8}  # opcodes with a long count first


def _check_opcodes(data: bytes) -> None:
    position = matches = 0
    while position < len(data):
        start, position, matches = position, _OPCODES.match(data, position).end(), matches + 1  # type: ignore[union-attr]
        if position == start:
            width = _COUNTED.get(data[position])
            if width is None or matches > MAX_OPCODES // 1000:
                raise pickle.UnpicklingError(f"no opcode {data[position:position + 1]!r} is allowed at byte {position}, or too many")
            position += 1 + width + int.from_bytes(data[position + 1:position + 1 + width], "little")


class _Unpickler(pickle.Unpickler):
    """Reads what `_check_opcodes` let through. Nothing is imported: a name is known, allowed, or Untrusted."""

    def __init__(self, data: bytes, classes: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", errors="surrogateescape")
        self.classes, self.known = classes, _SEALED if data[:1] == b"\x80" and data[1] > 2 else _SEALED2

    def find_class(self, module: str, name: str) -> Any:
        known = self.classes.get((module, name)) or self.known.get((module, name))
        if known is None:
            raise Untrusted(UNTRUSTED.format(f"{module}.{name}"))
        return known


class _Pickler(pickle.Pickler):
    doubtful = False                                            # whether anything else than plain values was met

    def reducer_override(self, value: Any) -> Any:
        self.doubtful = self.doubtful or type(value) not in _PLAIN
        return NotImplemented


def _allowed(classes: Any) -> Any:
    return classes if classes == ANY or isinstance(classes, Mapping) else {
        (cls.__module__, cls.__qualname__): _seal(cls) for cls in classes}


def _load(data: bytes, allowed: Any) -> Any:
    if allowed == ANY:
        return pickle.loads(data, encoding="utf-8", errors="surrogateescape")
    _check_opcodes(data)
    return _Unpickler(data, allowed).load()


def encode(entity: Mapping[Any, Any], classes: Any = ()) -> bytes:
    """The body of a dictionary: a pickle of protocol 5, compressed by zlib.

    classes: the application's classes that may be in it, or ANY. Raises Untrusted for a value that `decode` would
    refuse, TypeError for one that cannot be pickled.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, PROTOCOL)
    try:
        pickler.dump(dict(entity))
        data = buffer.getvalue()
        if pickler.doubtful or len(data) > MAX_OPCODES:
            _load(data, _allowed(classes))
    except Untrusted:
        raise
    except Exception as error:                                  # pickling runs the values' own code
        raise TypeError(f"the entity {_brief(entity)} cannot be pickled and read again: {error}") from error
    return zlib.compress(data, LEVEL)


def decode(body: bytes, classes: Any = (), max_size: int = MAX_SIZE) -> dict[Any, Any]:
    """The dictionary of a body.

    classes: the application's classes that it may name, or ANY; max_size: bytes, the most that it may have when
    decompressed. Raises Untrusted if it names another class, Corrupt if it is no zlib, no pickle, no dictionary or larger.
    """
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(body, max_size + 1)
        if len(data) > max_size or not stream.eof or stream.unused_data:
            raise ValueError(f"it has more than max_size={max_size} bytes" if len(data) > max_size else "it is no whole zlib stream")
        entity = _load(data, _allowed(classes))
        if not isinstance(entity, dict):
            raise ValueError(f"it is of type {type(entity).__name__}, no dictionary")
    except Untrusted:
        raise
    except Exception as error:                                  # a broken pickle can raise anything
        raise Corrupt(f"the body cannot be read: {type(error).__name__}: {error}") from error
    return entity


def _brief(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:                                           # an application's own __repr__
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else text[:79] + "…"


_made = 0                                                       # the time of the newest id, in 1/4096 ms
_made_lock = threading.Lock()


def _new_id() -> str:
    """A UUID of version 7 (RFC 9562, method 3: 12 further bits of time). Those of a process sort as they were made."""
    global _made
    with _made_lock:
        _made = made = max(_made + 1, time.time_ns() * 4096 // 1_000_000)
    number = (made >> 12) << 80 | 7 << 76 | (made & 0xfff) << 64 | 2 << 62 | int.from_bytes(os.urandom(8), "big") >> 2
    return str(uuid.UUID(int=number))


def _check_id(id: Any) -> str:
    if not isinstance(id, str):
        raise TypeError(f"an id is a str, not {_brief(id)} of type {type(id).__name__}")
    if not 1 <= len(id) <= 36 or _is_unencodable(id):
        raise ValueError(f"an id has 1 to 36 characters of valid Unicode, not {len(id)} as {_brief(id)}")
    return str(id)


def _is_unencodable(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


SQL_TYPES: dict[type, str] = {
    str: "VARCHAR(191)", int: "BIGINT", float: "DOUBLE", bool: "TINYINT(1)", bytes: "VARBINARY(191)",
    decimal.Decimal: "DECIMAL(65,30)", dt.date: "DATE", dt.datetime: "DATETIME(6)", uuid.UUID: "BINARY(16)"}
_KINDS: dict[str, type] = {
    "varchar": str, "varbinary": bytes, "binary": bytes, "double": float, "decimal": decimal.Decimal, "date": dt.date,
    "datetime": dt.datetime, "tinyint": int, "smallint": int, "mediumint": int, "int": int, "bigint": int}
_BITS = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}
_TYPE = re.compile(r"(?i)(\w+)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?(\s+unsigned)?\s*")


class _Type:
    """The type of an indexed property: what Python has, what MySQL has, and what fits."""

    def __init__(self, declared: Any) -> None:
        self.sql = SQL_TYPES.get(declared, declared) if isinstance(declared, (type, str)) else ""
        parts = _TYPE.fullmatch(self.sql) if isinstance(self.sql, str) else None
        self.name = parts[1].lower() if parts else ""
        if not parts or self.name not in _KINDS:
            raise TypeError(f"{declared!r} is no type for a property; take one of "
                            f"{', '.join(cls.__name__ for cls in SQL_TYPES)}, or of {', '.join(_KINDS)} as a string")
        self.size, self.scale = int(parts[2] or (10 if self.name == "decimal" else 0)), int(parts[3] or 0)
        sql = re.sub(r"\s", "", self.sql).upper()
        self.python = {SQL_TYPES[bool]: bool, SQL_TYPES[uuid.UUID]: uuid.UUID}.get(sql, _KINDS[self.name])
        bits = _BITS.get(self.name, 0)
        self.low, self.high = (0, 1 << bits) if parts[4] else (-(1 << bits >> 1), 1 << bits >> 1)

    def to_sql(self, value: Any) -> Any:
        """The value as the driver binds it. Raises TypeError or ValueError with the reason alone."""
        if type(value) is int and self.python is float and int(float(value)) == value:
            value = float(value)
        if type(value) is not self.python:
            raise TypeError(f"is declared {self.python.__name__} ({self.sql}), but is of type {type(value).__name__}")
        if not self._fits(value):
            raise ValueError(f"does not fit into {self.sql}")
        if self.python is uuid.UUID:
            return value.bytes
        if self.python is dt.datetime and value.tzinfo is not None:
            return value.astimezone(dt.timezone.utc).replace(tzinfo=None)
        return int(value) if self.python is bool else value

    def _fits(self, value: Any) -> bool:
        if self.python is str:
            return len(value) <= self.size and not _is_unencodable(value)
        if self.python is bytes:
            return len(value) == self.size if self.name == "binary" else len(value) <= self.size
        if self.python is int:
            return self.low <= value < self.high                # type: ignore[no-any-return]
        if self.python is float:
            return abs(value) < float("inf")
        if self.python is decimal.Decimal:
            scale = -value.as_tuple().exponent if value.is_finite() else self.scale + 1
            return scale <= self.scale and value.adjusted() < self.size - self.scale or not value
        return self.python is not dt.datetime or value.microsecond % 10 ** (6 - self.size) == 0


class Index:
    """A table of its own, in which the entities that have all of some properties are found by them.

    table: its name. properties: a name, several names, or a mapping of names to types; a name alone means str. Types:
    str, int, float, bool, bytes, Decimal, date, datetime (kept as UTC), UUID, or an SQL type such as "VARCHAR(500)".
    unique: no two entities may have the same values. Raises TypeError or ValueError for a name or type that cannot be.
    """

    def __init__(self, table: str, properties: str | Iterable[str] | Mapping[str, Any], *, unique: bool = False) -> None:
        names = [properties] if isinstance(properties, str) else list(properties)
        for name in [table, *names]:
            if not isinstance(name, str) or not 1 <= len(name) <= 63 or re.search(r"\s\Z|[\0\ud800-\udfff]|[^\0-\uffff]", name):
                raise ValueError(f"{_brief(name)} cannot name a table or column: MySQL takes 1 to 63 characters up to U+FFFF, "
                                 "no NUL, no space at the end")
        if table.startswith("entities") or table.endswith(BUILDING):
            raise ValueError(f"index table {table!r}: names like entities… and …{BUILDING} are slim's own")
        if not names or len({name.casefold() for name in [*names, "entity_id"]}) <= len(names):
            raise ValueError(f"index {table}: give at least one property, each once, and none called entity_id, not {names!r}")
        self.table, self.unique = table, unique
        self.types = {name: _Type(properties[name] if isinstance(properties, Mapping) else str) for name in names}
        self._names = ", ".join(map(_quote, names))

    def __repr__(self) -> str:
        declared = ", ".join(f"{name!r}: {column.sql!r}" for name, column in self.types.items())
        return f"Index({self.table!r}, {{{declared}}}{', unique=True' * self.unique})"

    def get_all(self, datastore: Datastore, **match: Any) -> list[Entity]:
        """The entities that match, in the index's order, [] where there is none. One query for each 5,000 of them.

        A value is an equality, slice(low, high) a half-open range (None: no end), a set or list is "one of".
        Raises TypeError or ValueError for a property or value that the index cannot have, NotPopulated before it is filled.
        """
        return list(self.find(datastore, match))

    def find(self, datastore: Datastore, match: Mapping[str, Any], *, reverse: bool = False, limit: int | None = None,
             after: Entity | None = None) -> Iterator[Entity]:
        """The same, lazily, ordered by the (first) ranged property, then id; `reverse`: the other way round.

        limit: the most entities. after: the last Entity of the page before, to go on behind it.
        """
        query = _Query(self, match, reverse)
        return query.pages(datastore, limit, after)

    def count(self, datastore: Datastore, **match: Any) -> int:
        """How many entities match; 0 where none does."""
        query = _Query(self, match)
        if not datastore._is_exact(self.table):                 # the table takes Bob for bob: look at the entities
            return sum(1 for _ in query.pages(datastore, None, None))
        return 0 if query.empty else int(query.rows(datastore, COUNT_MATCH, query.where, query.args)[0][0])

    def put(self, datastore: Datastore, entity: Mapping[Any, Any]) -> None:
        """Rewrites the rows of a stored entity in this index. `Datastore.put` does it for all indexes."""
        id = _check_id(entity.get("id"))
        stored = datastore.get(id)
        self._rewrite(datastore, {id: (stored.version, self._row(stored)) if stored is not None else (0, None)})

    def populate(self, datastore: Datastore, *, progress: Progress | None = None) -> int:
        """Makes the table agree with the entities exactly, while readers and writers go on; stop it and run it at any time.

        progress: anything called as tqdm.tqdm is. Returns the number of rows it had to change: 0, all was right.
        Raises TypeError, ValueError or Duplicate for an entity that the index cannot have, with its id.
        """
        datastore._refresh()
        if self._building(datastore):                           # from here on every writer knows the table, or fails
            datastore._rename()
        last, total = datastore._read(SELECT_LAST)[0]
        pages = self._compare(datastore, last)
        rows = (row for page in pages for row in page)
        changed, batch = 0, {}
        for version, id, _, body, found, *row in progress(rows, total=total) if progress else rows:
            try:
                wanted = self._row(datastore._entity((version, id, None, body)))
            except (TypeError, ValueError) as error:
                raise type(error)(f"entity {id!r}: {error}") from error
            if wanted != (tuple(row) if found is not None else None):
                batch[id] = version, wanted
            if len(batch) >= BATCH:
                changed, batch = changed + self._rewrite(datastore, batch), {}
        changed += self._rewrite(datastore, batch)
        after = ""
        while orphans := self._rows(datastore, SELECT_ORPHANS, (after, BATCH)):
            changed += self._rewrite(datastore, {id: (0, None) for id, in orphans})
            after = orphans[-1][0]
        if self._building(datastore):
            datastore._rename((self.table + BUILDING, self.table))
        return changed

    def create(self, datastore: Datastore) -> None:
        """Creates the table where it is missing, to be populated. Raises Error with the statement where that is denied."""
        if (known := datastore._refresh().indexes.get(self.table)) is not None:
            if [column.sql.lower() for column in known.types.values()] != [
                    column.sql.lower().replace(" ", "") for column in self.types.values()] and (
                    {n: t.python for n, t in known.types.items()} != {n: t.python for n, t in self.types.items()}):
                raise ValueError(f"index table {self.table} stands as {known!r}, not as {self!r}: remove it or take another name")
            return
        names = [_quote(name) for name in self.types]
        columns = ", ".join(f"{name} {column.sql} NOT NULL" for name, column in zip(names, self.types.values()))
        more = "".join(f", KEY ({name})" for name in names[1:])
        datastore._create(CREATE_INDEX.format(
            table=_quote(self.table + BUILDING), columns=columns, id=datastore._catalogue.id_type,
            key=self._names if self.unique else f"{self._names}, entity_id", more=more), TABLE_OPTIONS
            + f" COMMENT='{COMMENT_UNIQUE if self.unique else COMMENT}'")

    def drop(self, datastore: Datastore) -> None:
        """Drops the table, if it stands."""
        datastore._execute("DROP TABLE IF EXISTS {}, {}".format(_quote(self.table), _quote(self.table + BUILDING)))
        datastore._refresh()

    def _building(self, datastore: Datastore) -> bool:
        return datastore._catalogue.tables.get(self.table, "").endswith(BUILDING)

    def _row(self, entity: Mapping[Any, Any]) -> tuple[Any, ...] | None:
        """The entity's values in this index, None if it is not in it."""
        values = [entity.get(name) for name in self.types]
        if any(value is None for value in values):
            return None
        return tuple([self._value(name, value) for name, value in zip(self.types, values)])

    def _value(self, name: str, value: Any) -> Any:
        if name not in self.types:
            raise TypeError(f"index {self.table} has no property {name!r}; it has {', '.join(self.types)}")
        try:
            return self.types[name].to_sql(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"index {self.table}: property {name} {error}: {_brief(value)}; store another value, or declare "
                              f"the property otherwise: Index(…, {{{name!r}: …}})") from error

    def _sql(self, statement: str, table: str) -> str:
        return statement.format(table=_quote(table), names=self._names)

    def _rows(self, datastore: Datastore, statement: str, args: Sequence[Any]) -> Any:
        return datastore._repeat(lambda connection, _: datastore._send(
            connection, self._sql(statement, datastore._catalogue.tables.get(self.table, self.table)), args)[0][1])

    def _compare(self, datastore: Datastore, last: int) -> Iterator[Any]:
        """Pages of entities, each beside its row as of the same moment. Those put later than `last` their writers index."""
        after, size = 0, 100
        while rows := self._rows(datastore, SELECT_COMPARED, (after, last, size)):
            yield rows
            after, size = rows[-1][0], _page_size(rows, size)

    def _rewrite(self, datastore: Datastore, wanted: Mapping[str, Any]) -> int:
        """Makes the rows of some ids right: wanted is {id: (version, row)}; version 0 is a row without an entity.

        Writers lock an entity, then its rows, and so does this. An orphan has no entity to lock: its row is locked first
        and then the entity looked for; who is about to insert it waits for the row, who has done so is seen.
        An entity of another version was put in between, with its rows.
        """
        def attempt(connection: Connection, _: bool) -> int:
            table, ids = datastore._catalogue.tables.get(self.table, self.table), tuple(sorted(wanted))
            _, locked, found, standing = [rows for _, rows in datastore._send(connection, "; ".join(
                ["BEGIN", SELECT_VERSION + FOR_UPDATE, self._sql(SELECT_ROW, table), SELECT_VERSION]), (ids, ids, ids))]
            versions, rows = {**dict.fromkeys(dict(standing), -1), **dict(locked)}, {id: tuple(row) for id, *row in found}
            wrong = {id: row for id, (version, row) in wanted.items()
                     if versions.get(id, 0) == version and rows.get(id) != row}
            packet = _Packet(connection)
            packet.rows(self, table, wrong)
            packet.add("COMMIT")
            datastore._send(connection, packet)
            return len(wrong)
        return datastore._repeat(attempt) if wanted else 0


class _Query:
    """What is asked of an index: the SQL of it, and the same test for a decoded entity."""

    def __init__(self, index: Index, match: Mapping[str, Any], reverse: bool = False) -> None:
        self.index, self.direction, self.tests = index, " DESC" if reverse else "", dict[str, Any]()
        where, self.args, ranged = ["TRUE"], list[Any](), list[str]()
        for name, asked in match.items():
            if isinstance(asked, slice):
                bounds = [None if bound is None else index._value(name, bound) for bound in (asked.start, asked.stop)]
                ends = [(sign, bound) for sign, bound in zip((">=", "<"), bounds) if bound is not None]
                ranged.append(name)
            else:
                one_of = asked if isinstance(asked, (set, frozenset, list)) else [asked]
                ends = [("IN", tuple([index._value(name, value) for value in one_of]))]
            where += [f"i.{_quote(name)} {sign} %s" for sign, _ in ends]
            self.args += [bound for _, bound in ends]
            self.tests[name] = ends
        self.ranged = next((name for name in index.types if name in ranged), None)
        self.where, self.empty = " AND ".join(where), () in self.args

    def matches(self, entity: Entity) -> bool:
        try:
            for name, ends in self.tests.items():
                value = self.index._value(name, entity.get(name))
                if not all(value in bound if sign == "IN" else value >= bound if sign == ">=" else value < bound
                           for sign, bound in ends):
                    return False
        except (TypeError, ValueError):                         # the row is older than the index's types
            return False
        return True

    def rows(self, datastore: Datastore, statement: str, where: str, args: Sequence[Any]) -> Any:
        order = [f"i.{_quote(name)}" for name in (self.ranged, "entity_id") if name]
        sql = statement.format(table=_quote(self.index.table), where=where,
                               order=", ".join(column + self.direction for column in order))
        try:
            return datastore._read(sql, *args)
        except MySQLdb.ProgrammingError as error:
            if error.args[0] != ER.NO_SUCH_TABLE:
                raise
            raise NotPopulated(f"index {self.index.table} does not stand, or is not populated yet: datastore.add_index({self.index!r}) "
                               f"sees to both") from error

    def pages(self, datastore: Datastore, limit: int | None, after: Entity | None) -> Iterator[Entity]:
        sign = "<" if self.direction else ">"
        while not self.empty and (limit is None or limit > 0):
            where, args, size = self.where, [*self.args], PAGE if limit is None else min(limit, PAGE)
            if after is not None and self.ranged is not None:
                column, value = f"i.{_quote(self.ranged)}", self.index._value(self.ranged, after[self.ranged])
                where += f" AND {column} {sign}= %s AND ({column} {sign} %s OR i.entity_id {sign} %s)"
                args += [value, value, after["id"]]
            elif after is not None:
                where, args = f"{where} AND i.entity_id {sign} %s", [*args, after["id"]]
            rows = self.rows(datastore, SELECT_MATCH, where, [*args, size])
            for row in rows:
                after = datastore._entity(row)
                if self.matches(after):
                    limit = None if limit is None else limit - 1
                    yield after
            if len(rows) < size:
                return


class _Packet:
    """Several statements that go to the server together, their values bound."""

    def __init__(self, connection: Connection) -> None:
        self.literal, self.statements = connection.literal, list[bytes]()

    def add(self, sql: str, *args: Any) -> None:
        self.statements.append(sql.encode() % tuple(map(self.literal, args)))

    def values(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self.statements.append(sql.encode() % () + b",".join(map(self.literal, rows)))

    def rows(self, index: Index, table: str, rows: Mapping[str, tuple[Any, ...] | None]) -> None:
        """Replaces the rows of these ids; in the order of the key, which spares pages, and deadlocks."""
        if rows:
            self.add(DELETE_ROW.format(table=_quote(table)), tuple(sorted(rows)))
            if values := sorted([(*row, id) for id, row in rows.items() if row is not None]):
                self.values(INSERT_ROW.format(table=_quote(table), names=index._names), values)


class _Catalogue(NamedTuple):
    """What stands in the database: index tables by the index's name, whose text compares exactly, entities' type of id."""

    guards: list[str]
    history: bool
    indexes: dict[str, Index]
    tables: dict[str, str]
    exact: dict[str, bool]
    id_type: str


class _Local(threading.local):
    connection: Connection = None
    depth = 0                                                   # of transaction()
    doomed = False                                              # a call in the transaction failed: no way but back
    committing = False                                          # a packet was sent that ends with COMMIT


class _TooLarge(ValueError):
    """A packet is over the server's limit."""


class Datastore:
    """Entities in a MySQL database. One Datastore serves all threads of a process, and what it forks.

    host, user, password, database: as for MySQLdb.connect, None to leave it to the option file; `connect`: whatever else
    that takes (port, unix_socket, ssl, read_default_file …). indexes: what `add_index` is called with. history: True makes
    the table of versions. classes: the application's classes that entities may hold, or ANY. max_size: bytes, the most
    that a body may have when decompressed. Raises MySQLdb.OperationalError where there is no server or no access.
    """

    def __init__(self, host: str | None, user: str | None, password: str | None, database: str, indexes: Iterable[Index] = (), *,
                 history: bool = False, classes: Any = (), max_size: int = MAX_SIZE, **connect: Any) -> None:
        named = {"host": host, "user": user, "password": password, "database": database}
        self._connect = {**connect, **{name: value for name, value in named.items() if value is not None},
                         "charset": "utf8mb4", "binary_prefix": True, "autocommit": True}
        self._allowed, self._max_size, self._closed, self._names = _allowed(classes), max_size, False, set[str]()
        self._connections, self._local, self._max_packet = weakref.WeakSet[Any](), _Local(), MAX_BODY
        if hasattr(os, "register_at_fork"):
            forget = weakref.WeakMethod(self._forget)
            os.register_at_fork(after_in_child=lambda: (forget() or bool)())
        self._connection()                                      # a wrong password is told at once, not tried again
        self._create_tables(history)
        for index in indexes:
            self.add_index(index)

    def __repr__(self) -> str:
        return "<slim.Datastore {database} on {host}>".format_map({"host": "localhost", **self._connect})

    def __enter__(self) -> Datastore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def put(self, entity: dict[Any, Any], *, expect: int | None = None) -> str:
        """Stores the dictionary, whole, under its "id"; where it has none, a new one is written into it. Returns the id.

        expect: the version that it must replace (0: there must be none), else Conflict. Raises TypeError or ValueError for
        what cannot be stored or indexed, Duplicate, and Unknown if `expect` was given and the connection lost in COMMIT.
        """
        id, whole = self._identify(entity)
        self._store({id: whole}, {id: self._body(whole)}, _check_version(expect))
        entity["id"] = id
        return id

    def put_many(self, entities: Iterable[dict[Any, Any]], *, batch: int = BATCH, progress: Progress | None = None) -> int:
        """Stores any number of dictionaries, each batch in one transaction; of two with one id the later stands.

        batch: the most entities of a transaction. progress: anything called as tqdm.tqdm is. Returns how many were put.
        """
        if progress:
            entities = progress(entities, total=len(entities) if isinstance(entities, Collection) else None)
        count, size, wholes, bodies, new = 0, 0, dict[str, Any](), dict[str, bytes](), list[Any]()
        for entity in entities:
            id, whole = self._identify(entity)
            body = self._body(whole)
            if len(bodies) >= batch or size + len(body) > min(BATCH_BYTES, self._max_packet // 4):
                self._put_batch(wholes, bodies, new)
                size, wholes, bodies, new = 0, {}, {}, []
            for kept, value in (wholes, whole), (bodies, body):
                kept.pop(id, None)                              # so that it is inserted where it came last
                kept[id] = value
            count, size = count + 1, size + len(body)
            new.append((entity, id))
        self._put_batch(wholes, bodies, new)
        return count

    def get(self, id: str, *, version: int | None = None) -> Entity | None:
        """The entity, or None. version: that one of its versions, where history is kept."""
        if version is not None:
            versions = self._select([id]).values() if not self._catalogue.history else self.history(id)
            return next((entity for entity in versions if entity.version == version), None)
        return self._select([_check_id(id)]).get(id)

    def get_many(self, ids: Iterable[str]) -> dict[str, Entity]:
        """{id: entity} of those that there are, in the order asked for."""
        asked = list(dict.fromkeys(map(_check_id, ids)))
        found: dict[str, Entity] = {}
        for start in range(0, len(asked), PAGE):
            found |= self._select(asked[start:start + PAGE])
        return {id: found[id] for id in asked if id in found}

    def delete(self, id: str, *, expect: int | None = None, history: bool = False) -> bool:
        """Deletes the entity and all its index rows, in one transaction. False where there was none.

        expect: as for `put`. history: True erases all its versions as well.
        """
        return self._store({_check_id(id): None}, {}, _check_version(expect), history)

    def update(self, id: str, change: Callable[[Entity], Any], default: dict[Any, Any] | None = None) -> Entity:
        """Reads the entity, lets `change` alter it in place, and stores it, atomically: `change` is called as often as it takes.

        default: where to begin if there is none; else that is a KeyError. Returns the entity as stored.
        """
        _check_id(id)
        return self._repeat(lambda connection, _: self._update(connection, id, change, default), once=True)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What this thread does inside is committed together, or rolled back on any exception. Inner ones join the outer.

        The block is yours, and is not run again: a deadlock (1213) or lost connection inside is raised, with nothing done.
        """
        local = self._local
        if local.depth == 0:
            connection = self._repeat(lambda connection, _: self._send(connection, "BEGIN") and connection)
            local.doomed = False
        local.depth += 1
        try:
            yield
            if local.depth == 1:
                if local.doomed:
                    raise Error("the transaction was rolled back, as a call inside it failed")
                local.committing = True
                self._send(connection, "COMMIT")
        except BaseException as error:
            local.doomed = True
            if local.depth == 1:
                self._recover(connection, error)
                if local.committing and _code(error) in LOST:
                    raise Unknown(*error.args) from error
            raise
        finally:
            local.depth -= 1
            local.committing = False

    def scan(self, *, progress: Progress | None = None) -> Iterator[Entity]:
        """Every entity as of now, oldest put first, in pages, on a connection of its own: put and delete meanwhile.

        progress: anything called as tqdm.tqdm is.
        """
        self._check_open()
        connection = self._open()
        total = self._send(connection, SNAPSHOT, [bool(progress)])[2][1][0][0]
        entities = self._scan(connection)
        return iter(progress(entities, total=total)) if progress else entities

    def __iter__(self) -> Iterator[Entity]:
        return self.scan()

    def __len__(self) -> int:
        return int(self._read(COUNT_ENTITIES)[0][0])

    def __bool__(self) -> bool:
        return True

    def __contains__(self, id: object) -> bool:
        return id in dict(self._read(SELECT_VERSION, [_check_id(id)]))

    def history(self, id: str) -> list[Entity]:
        """Every version that was put under this id, newest first, also after a delete; [] where there was none.

        Raises Error where no history is kept.
        """
        if not self._catalogue.history and not self._refresh().history:
            raise Error("no history is kept here: open it once with Datastore(…, history=True)")
        return [self._entity(row) for row in self._read(SELECT_HISTORY, _check_id(id))]

    def schema(self, *, limit: int | None = None, progress: Progress | None = None) -> Schema:
        """The different types of dictionary that are stored. limit: look only at so many, those put last."""
        if limit is None:
            return Schema(self.scan(progress=progress))
        starts = range(0, limit, PAGE)
        rows = (row for start in starts for row in self._read(SELECT_NEWEST, min(PAGE, limit - start), start))
        return Schema(map(self._entity, progress(rows, total=limit) if progress else rows))

    @property
    def indexes(self) -> list[Index]:
        """The indexes that stand in the database, those not populated yet too."""
        return [*self._refresh().indexes.values()]

    def add_index(self, index: Index, *, populate: bool = True, progress: Progress | None = None) -> Index:
        """Creates the index's table where it is missing, and populates it. Returns the index.

        populate: False leaves that to `index.populate`; till then a query raises NotPopulated. progress: as for tqdm.tqdm.
        """
        self._names.add(index.table)
        index.create(self)
        if populate and index._building(self):
            try:
                index.populate(self, progress=progress)
            except (TypeError, ValueError, Duplicate):          # the entities are not such that they could have it
                index.drop(self)
                raise
        return index

    def remove_index(self, index: Index) -> None:
        """Drops the index's table, if it stands: what is not maintained must not stay and answer."""
        self._names.discard(index.table)
        index.drop(self)

    def close(self) -> None:
        """Closes all connections; a call that another thread has under way fails, and so does any call after it."""
        self._closed = True
        for connection in list(self._connections):
            with contextlib.suppress(MySQLdb.Error):            # one that is in use is closed by its thread's _repeat
                connection.close()

    # Entities

    def _identify(self, entity: Any) -> tuple[str, dict[Any, Any]]:
        if not isinstance(entity, dict):
            raise TypeError(f"an entity is a dict, not {_brief(entity)} of type {type(entity).__name__}")
        if "id" in entity:
            return _check_id(entity["id"]), entity
        id = _new_id()
        return id, {**entity, "id": id}

    def _body(self, entity: Mapping[Any, Any]) -> bytes:
        body = encode(entity, self._allowed)
        if len(body) > min(MAX_BODY, self._max_packet):
            raise ValueError(f"entity {entity['id']!r} has {len(body)} bytes when compressed; MEDIUMBLOB takes {MAX_BODY}, "
                             f"the server's max_allowed_packet {self._max_packet}")
        return body

    def _entity(self, row: Sequence[Any]) -> Entity:
        version, id, updated, body = row
        try:
            entity = Entity(decode(body or b"", self._allowed, self._max_size))
        except Corrupt as error:
            error.id = id
            raise
        entity.version = version
        entity.updated = updated and updated.replace(tzinfo=dt.timezone.utc)
        return entity

    def _select(self, ids: Sequence[str]) -> dict[str, Entity]:
        # a hand-made table may take Bob for bob, so the answer is looked at
        return {row[1]: self._entity(row) for row in self._read(SELECT_ENTITY, ids) if row[1] in ids}

    def _scan(self, connection: Connection) -> Iterator[Entity]:
        try:
            after, size = 0, 100
            while rows := self._send(connection, SELECT_PAGE, (after, size))[0][1]:
                yield from map(self._entity, rows)
                after, size = rows[-1][0], _page_size(rows, size)
        finally:
            connection.close()

    # Writing: one packet of several statements is one transaction. The server stops at the first that fails.

    def _store(self, wholes: Mapping[str, Any], bodies: Mapping[str, bytes], expect: int | None = None,
               erase: bool = False) -> bool:
        def attempt(connection: Connection, lost: bool) -> bool:
            if lost and bodies and self._stands(bodies):
                return True
            if expect is not None:
                self._expect(connection, id=next(iter(wholes)), expect=expect)
            return self._write(connection, wholes, bodies, begun=expect is not None, erase=erase)[0] > 0
        return self._repeat(attempt, once=expect is not None)

    def _stands(self, bodies: Mapping[str, bytes]) -> bool:
        """Whether what was under way when the connection was lost has been done: a second time would be a second version."""
        rows = self._read(SELECT_ENTITY, tuple(bodies))
        return {id: body for _, id, _, body in rows} == bodies

    def _begin(self) -> str:
        return "" if self._local.depth else "BEGIN; "

    def _expect(self, connection: Connection, id: str, expect: int) -> None:
        found = dict(self._send(connection, self._begin() + SELECT_VERSION + FOR_UPDATE, [(id,)])[-1][1]).get(id, 0)
        if found != expect:
            raise Conflict(id, expect, found)

    def _write(self, connection: Connection, wholes: Mapping[str, Any], bodies: Mapping[str, bytes], *, begun: bool,
               erase: bool = False) -> tuple[int, Any]:
        """Deletes the entities, inserts those that have bodies, and their index rows; (how many were deleted, last row)."""
        catalogue, joined, ids, packet = self._catalogue, self._local.depth > 0, tuple(sorted(wholes)), _Packet(connection)
        if not begun and not joined:
            packet.add("BEGIN")
        position = len(packet.statements)
        # Delete before insert, and not REPLACE: under a unique index that would remove another entity's row.
        guard = GUARDED.format(guard=_quote(catalogue.guards[0])) if catalogue.guards else ""
        packet.add(*(DELETE_ENTITY + guard, ids) if catalogue.exact["entities"] else (DELETE_ENTITY + EXACTLY + guard, ids, ids))
        if bodies:
            packet.values(INSERT_ENTITY, bodies.items())
        if catalogue.history and (bodies or erase):
            packet.add(INSERT_HISTORY if bodies else DELETE_HISTORY, ids)
        for name, index in catalogue.indexes.items():
            packet.rows(index, catalogue.tables[name], {id: whole and index._row(whole) for id, whole in wholes.items()})
        packet.add(SELECT_STAMP, ids[0])
        if not joined:
            packet.add("COMMIT")
        if (size := sum(map(len, packet.statements)) + len(packet.statements)) > self._max_packet:
            raise _TooLarge(f"entity {ids[0]!r} needs a packet of {size} bytes, the server's max_allowed_packet is {self._max_packet}")
        self._local.committing = not joined
        try:
            results = self._send(connection, packet)
        except MySQLdb.IntegrityError as error:
            if error.args[0] == ER.DUP_ENTRY:
                self._recover(connection, error)
                self._explain(connection, wholes)
            raise
        return results[position][0], results[-1 if joined else -2][1]

    def _explain(self, connection: Connection, wholes: Mapping[str, Any]) -> None:
        """Raises if a duplicate key will stay one. Else another was just inserting the same id: the write is repeated."""
        for name, index in self._catalogue.indexes.items():
            owners: dict[Any, str] = {}
            for id, whole in wholes.items() if index.unique else ():
                if whole and (row := index._row(whole)) is not None:
                    owner = self._send(connection, index._sql(SELECT_OWNER, self._catalogue.tables[name]), (row, id))[0][1]
                    if owner and owner[0][0] not in wholes or row in owners:
                        raise Duplicate(index, owner[0][0] if owner else owners[row], row)
                    owners[row] = id
        for id, _ in self._send(connection, SELECT_VERSION, [tuple(wholes)])[0][1]:
            if id not in wholes:
                raise Error(f"the table entities takes {id!r} for an id that is to be put beside it; give its column id a collation "
                            "that compares exactly, such as utf8mb4_0900_bin or MariaDB's utf8mb4_nopad_bin")

    def _update(self, connection: Connection, id: str, change: Callable[[Entity], Any], default: Any) -> Entity:
        local = self._local
        rows = self._send(connection, self._begin() + SELECT_ENTITY + FOR_UPDATE, [(id,)])[-1][1]
        stored = [self._entity(row) for row in rows if row[1] == id]
        if not stored and default is None:
            raise KeyError(id)
        entity = stored[0] if stored else Entity(decode(encode(default, self._allowed), self._allowed, self._max_size))
        begun, local.depth = local.depth == 0, local.depth + 1   # what change calls joins in
        try:
            entity.setdefault("id", id)
            change(entity)
        finally:
            local.depth -= 1
        if entity.get("id") != id:
            raise ValueError(f"change made {_brief(entity.get('id'))} of the id {id!r}; put that as an entity of its own")
        _, stamp = self._write(connection, {id: entity}, {id: self._body(entity)}, begun=begun)
        entity.version, entity.updated = stamp[0][0], stamp[0][1].replace(tzinfo=dt.timezone.utc)
        return entity

    def _put_batch(self, wholes: dict[str, Any], bodies: dict[str, bytes], new: Sequence[tuple[Any, str]]) -> None:
        try:
            if bodies:
                self._store(wholes, bodies)
        except _TooLarge:                                       # many long index rows: in two halves
            if len(bodies) == 1:
                raise
            ids = list(bodies)
            for half in ids[:len(ids) // 2], ids[len(ids) // 2:]:
                self._put_batch({id: wholes[id] for id in half}, {id: bodies[id] for id in half}, ())
        for entity, id in new:
            entity["id"] = id

    # The catalogue

    def _create_tables(self, history: bool) -> None:
        self._refresh()
        if "entities" not in self._catalogue.exact:
            self._create(CREATE_ENTITIES)
        if history and not self._catalogue.history:
            self._create(CREATE_HISTORY)
            self._rename()                                      # so that programs which are running keep it, too
        if not self._catalogue.guards:
            with contextlib.suppress(Error):                    # where tables cannot be created, indexes are not added either
                self._create(CREATE_GUARD.format(table=f"entities_guard_{os.urandom(8).hex()}"), "")

    def _refresh(self) -> _Catalogue:
        guards, rows = [rows for _, rows in self._repeat(lambda connection, _: self._send(
            connection, SELECT_CATALOGUE, ((COMMENT, COMMENT_UNIQUE), ("entities", "entities_history", *self._names,
                                                                       *(name + BUILDING for name in self._names)))))]
        columns: dict[str, list[Any]] = {}
        for table, *column in rows:
            columns.setdefault(table, []).append(column)
        indexes, tables, id_type = {}, {}, "VARCHAR(36)"
        for table, described in columns.items():
            if not table.startswith("entities"):
                name = table.removesuffix(BUILDING)
                types = {column: sql for column, sql, _, _ in described if column != "entity_id"}
                indexes[name] = Index(name, types, unique=described[0][3] == COMMENT_UNIQUE)
                tables[name] = table
        for column, sql, collation, _ in columns.get("entities", ()):
            if column == "id":
                id_type = f"{sql} CHARACTER SET {collation.split('_')[0]} COLLATE {collation}" if collation else sql
        self._catalogue = _Catalogue([guard[0] for guard in guards], "entities_history" in columns, indexes, tables, {
            table: all(column[2] in EXACT for column in described) for table, described in columns.items()}, id_type)
        return self._catalogue

    def _is_exact(self, table: str) -> bool:
        return self._catalogue.exact.get(table, True)

    def _create(self, statement: str, options: str = TABLE_OPTIONS) -> None:
        statement += options.replace("{collation}", EXACT[self._mariadb])       # type: ignore[arg-type]
        try:
            self._execute(statement)
        except MySQLdb.Error as error:
            if _code(error) in DENIED:
                raise Error("this account may not create a table that is missing; its DBA can, by: "
                            + statement.replace("%%", "%").replace(BUILDING + "`", "`", 1)) from error
            if _code(error) != ER.TABLE_EXISTS_ERROR:
                raise
        self._refresh()

    def _rename(self, *tables: tuple[str, str]) -> None:
        """Renames tables, and the guard: waits for the writes under way, and none after it goes on as if nothing had changed."""
        def attempt(connection: Connection, _: bool) -> None:
            pairs = [(old, new) for old, new in tables if old in self._catalogue.tables.values()]
            pairs += [(guard, f"entities_guard_{os.urandom(8).hex()}") for guard in self._catalogue.guards]
            if pairs:
                self._send(connection, "RENAME TABLE " + ", ".join(f"{_quote(old)} TO {_quote(new)}" for old, new in pairs))
        self._repeat(attempt)
        self._refresh()

    # The one door to the driver

    def _read(self, sql: str, *args: Any) -> Any:
        return self._repeat(lambda connection, _: self._send(connection, sql, args)[0][1])

    def _execute(self, sql: str) -> None:
        self._repeat(lambda connection, _: self._send(connection, sql))

    def _repeat(self, attempt: Callable[[Connection, bool], T], *, once: bool = False) -> T:
        """Calls attempt(connection, lost) till it goes through, inside a transaction() once.

        lost: whether a try before was cut off in its COMMIT, so that it may have been done; `once`: then Unknown is raised.
        """
        local, lost, pause, end = self._local, False, 0.001, time.monotonic() + RETRY_SECONDS
        while True:
            self._check_open()
            if local.depth and local.doomed:
                raise Error("this transaction was rolled back, as a call inside it failed: leave it, and begin again")
            catalogue, local.committing = getattr(self, "_catalogue", None), False
            try:
                return attempt(self._connection(), lost)
            except BaseException as error:
                code = _code(error)
                if local.depth:
                    local.doomed = local.doomed or isinstance(error, (MySQLdb.Error, Duplicate)) or not isinstance(error, Exception)
                    raise
                self._recover(local.connection, error)
                if self._closed and code is not None:
                    raise Error("this Datastore was closed while the call was under way") from error
                lost = lost or local.committing and code in LOST
                if lost and once:
                    raise Unknown(code, f"whether the write was done is not known, as the connection was lost: {error}") from error
                if code not in AGAIN | LOST or time.monotonic() > end or local.connection is None and code not in LOST:
                    raise
                if code == ER.NO_SUCH_TABLE and self._refresh().tables == getattr(catalogue, "tables", None):
                    raise
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, 1)

    def _recover(self, connection: Connection, error: BaseException) -> None:
        """Leaves no transaction open behind a failure; a connection in doubt is not used again."""
        try:
            if connection is not None and isinstance(error, Exception) and _code(error) not in LOST:
                self._send(connection, "ROLLBACK")
                return
        except MySQLdb.Error:
            pass                                                # the failure that brought us here is the one to tell
        self._local.connection = None
        with contextlib.suppress(MySQLdb.Error):
            if connection is not None:
                connection.close()

    def _send(self, connection: Connection, packet: _Packet | str, args: Sequence[Any] = ()) -> list[tuple[int, Any]]:
        """One round trip. Returns, for each statement, (rows affected, rows of the result)."""
        statement = packet.encode() % tuple(map(connection.literal, args)) if isinstance(packet, str) else b";".join(packet.statements)
        connection.query(statement)
        results = []
        while True:
            result = connection.store_result()
            results.append((connection.affected_rows(), result.fetch_row(0) if result else ()))
            if connection.next_result() == -1:
                return results

    def _connection(self) -> Connection:
        if self._local.connection is None:
            self._local.connection = self._open()
        return self._local.connection

    def _open(self) -> Connection:
        connection = MySQLdb.connect(**self._connect)
        self._connections.add(connection)
        self._max_packet, self._mariadb = self._send(connection, SESSION)[2][1][0]
        if self._send(connection, "SHOW VARIABLES LIKE 'wsrep_retry_autocommit'")[0][1]:
            self._send(connection, WSREP)
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise Error("this Datastore is closed; open another")

    def _forget(self) -> None:
        """In a forked child: the sockets are the parent's. What the child would say on them goes nowhere."""
        for connection in list(self._connections):
            with contextlib.suppress(MySQLdb.Error), open(os.devnull, "r+b") as null:
                os.dup2(null.fileno(), connection.fileno())
        self._connections, self._local = weakref.WeakSet(), _Local()


def _code(error: BaseException) -> Any:
    return error.args[0] if isinstance(error, MySQLdb.Error) and error.args else None


def _page_size(rows: Sequence[Any], size: int) -> int:
    """How many rows the next page has: about PAGE_BYTES of bodies, growing by the double at the most."""
    return max(1, min(PAGE, 2 * size, PAGE_BYTES * len(rows) // (1 + sum(len(row[3] or b"") for row in rows))))


def _check_version(expect: Any) -> int | None:
    if expect is not None and (type(expect) is not int or expect < 0):
        raise TypeError(f"expect is an entity's version, or 0 for none, not {_brief(expect)}")
    return expect


class Shape(NamedTuple):
    """A type of dictionary: how many have it, {field: type}, the id of one."""

    count: int
    fields: dict[str, str]
    example: Any


class Schema:
    """What is stored: `.count` entities, `.shapes` (the types of dictionary, most frequent first), and `.fields`:
    {field: {type: share of the entities}}. A field in a dictionary is address.city, in a list of them tags[].name."""

    def __init__(self, entities: Iterable[Mapping[Any, Any]]) -> None:
        counts, examples = collections.Counter[Any](), dict[Any, Any]()
        for entity in entities:
            shape = tuple(sorted(_fields(entity).items()))
            counts[shape] += 1
            examples.setdefault(shape, entity.get("id"))
        self.count = counts.total()
        self.shapes = [Shape(count, dict(shape), examples[shape]) for shape, count in counts.most_common()]
        types: dict[str, collections.Counter[str]] = {}
        for shape in self.shapes:
            for field, kind in shape.fields.items():
                types.setdefault(field, collections.Counter())[kind] += shape.count
        self.fields = {field: {kind: count / self.count for kind, count in kinds.most_common()}
                       for field, kinds in sorted(types.items(), key=lambda item: (-item[1].total(), item[0]))}

    def __str__(self) -> str:
        groups: list[list[Shape]] = []
        for shape in self.shapes:                               # what differs from a frequent one in a key or two joins it
            near = (group for group in groups if len(group[0].fields.items() ^ shape.fields.items()) <= 4)
            next(near, groups.append([]) or groups[-1]).append(shape)
        groups = sorted(filter(None, groups), key=lambda group: -sum(shape.count for shape in group))
        lines = [f"{self.count:,} entities, {len(self.shapes):,} types of dictionary in {len(groups):,} groups", "",
                 "   count   share  types  an example, and its fields"]
        for group in groups[:12]:
            count = sum(shape.count for shape in group)
            lines.append(f"{count:8,} {count / self.count:7.1%} {len(group):6,}  {group[0].example}")
            lines += textwrap.wrap(", ".join(group[0].fields), 78, initial_indent=" " * 25, subsequent_indent=" " * 25)
        if len(groups) > 12:
            lines.append(f"     … and {len(groups) - 12:,} smaller groups")
        width = min(max(map(len, self.fields), default=5), 32)
        lines += ["", f"{'field':{width}}   share  types"]
        for field, kinds in list(self.fields.items())[:60]:
            kinds_text = ", ".join(kind if len(kinds) == 1 else f"{kind} {share:.1%}" for kind, share in kinds.items())
            lines.append(textwrap.shorten(f"{field:{width}.{width}} {sum(kinds.values()):7.1%}  {kinds_text}".replace(" ", "\0"), 300
                                          ).replace("\0", " ")[:80])
        if len(self.fields) > 60:
            lines.append(f"… and {len(self.fields) - 60:,} rarer fields")
        return "\n".join(lines)


def _fields(value: Any, path: str = "") -> dict[str, str]:
    """{field: type} of a value, dictionaries and those in lists gone into."""
    if isinstance(value, dict) and value and (not path or len(value) <= 30):
        return {name: kind for key, item in value.items()
                for name, kind in _fields(item, f"{path}.{key}" if path else str(key)).items()}
    if isinstance(value, (list, tuple, set, frozenset)) and value:
        inner = " | ".join(sorted({type(item).__name__ for item in value}))
        fields = {path: f"{type(value).__name__} of {inner}"}
        for item in value:
            if isinstance(item, dict) and item:
                fields |= _fields(item, path + "[]")
        return fields
    return {path: "None" if value is None else type(value).__name__}


def _to_json(value: Any) -> Any:
    """What JSON cannot say becomes {"its type": its text}; bytes are base64."""
    if isinstance(value, (set, frozenset, collections.deque)):
        return {type(value).__name__: [*value]}
    return {type(value).__name__: base64.b64encode(value).decode() if isinstance(value, bytes) else
            value.isoformat() if hasattr(value, "isoformat") else str(value)}


def _plain(value: Any) -> Any:
    """The value with keys that JSON can have, and no number that it cannot."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {"float": str(value)} if isinstance(value, float) and value - value else value


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("slim", add_help=False, description="Shows what a slim datastore holds.", epilog=(
        "Values of find: key=value, key=low..high (either may be left out), key=a,b for one of. Connects as mysql does, and "
        "reads the same option files."))
    parser.add_argument("--help", action="help", help="show this, and leave")
    for short, long, text in (("-h", "--host", "name of the server"), ("-P", "--port", "its TCP port"), ("-S", "--socket",
            "its Unix socket"), ("-u", "--user", "account"), ("-p", "--password", "-pSECRET, or -p alone: ask for it")):
        parser.add_argument(short, long, help=text, type=int if short == "-P" else str)
    parser.add_argument("--defaults-file", help="option file to read in place of the user's")
    parser.add_argument("--json", action="store_true", help="print JSON, one line for each thing")
    parser.add_argument("database")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="schema | get | find | indexes | populate")
    verbs.add_parser("schema", help="the types of dictionary stored").add_argument("--limit", type=int, help="look at so many")
    verbs.add_parser("get", help="one entity").add_argument("id")
    find = verbs.add_parser("find", help="the entities that an index finds")
    find.add_argument("index")
    find.add_argument("match", nargs="*", metavar="key=value")
    find.add_argument("--limit", type=int)
    find.add_argument("--reverse", action="store_true")
    verbs.add_parser("indexes", help="the index tables that stand")
    verbs.add_parser("populate", help="make an index agree with the entities").add_argument("index")
    return parser.parse_args(["--password=" if word == "-p" else word for word in words])


def _parse(index: Index, words: Iterable[str]) -> dict[str, Any]:
    """key=value, key=low..high and key=a,b as `Index.find` takes them."""
    def value(name: str, text: str) -> Any:
        cls = index.types[name].python if name in index.types else str
        try:
            return (cls.fromisoformat(text) if issubclass(cls, dt.date) else text.lower() in ("1", "true") if cls is bool      # type: ignore[attr-defined]
                    else text.encode() if cls is bytes else cls(text))
        except (ValueError, decimal.InvalidOperation) as error:
            raise ValueError(f"{text!r} is no {cls.__name__}, as index {index.table} has {name}") from error
    match: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not of the form key=value")
        low, dots, high = text.partition("..")
        match[name] = (slice(low and value(name, low) or None, high and value(name, high) or None) if dots
                       else {value(name, part) for part in text.split(",")} if "," in text else value(name, text))
    return match


def _show(entity: Entity | None, as_json: bool) -> None:
    if as_json or entity is None:
        print(json.dumps(_plain(entity), default=_to_json, ensure_ascii=False))
    else:
        bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
        width = max(map(len, map(str, entity)))
        print(f"{bold}{entity.get('id')}{plain}  version {entity.version}, {entity.updated:%Y-%m-%d %H:%M:%S} UTC")
        for key, value in entity.items():
            print(f"    {key!s:{width}}  {value if isinstance(value, str) else repr(value)}")


def _run(options: argparse.Namespace) -> None:
    connect = {"read_default_file": options.defaults_file or "~/.my.cnf", "read_default_group": "client", "port": options.port,
               "unix_socket": options.socket}
    password = getpass.getpass("Enter password: ") if options.password == "" else options.password
    connect["read_default_file"] = os.path.expanduser(connect["read_default_file"])
    with Datastore(options.host, options.user, password, options.database, classes=ANY if False else (), **{
            name: value for name, value in connect.items() if value is not None}) as store:
        indexes = {index.table: index for index in store.indexes}
        if options.verb in ("find", "populate") and options.index not in indexes:
            raise ValueError(f"no index {options.index!r} stands in {options.database}; there are: {', '.join(indexes) or 'none'}")
        progress = None
        if sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm as progress
        if options.verb == "schema":
            schema = store.schema(limit=options.limit, progress=progress)
            print("\n".join(json.dumps(shape._asdict()) for shape in schema.shapes) if options.json else schema)
        elif options.verb == "get":
            if (entity := store.get(options.id)) is None:
                raise ValueError(f"there is no entity {options.id!r}")
            _show(entity, options.json)
        elif options.verb == "find":
            index = indexes[options.index]
            for entity in index.find(store, _parse(index, options.match), reverse=options.reverse, limit=options.limit):
                _show(entity, options.json)
        elif options.verb == "indexes":
            for index in indexes.values():
                types, rows = {name: column.sql for name, column in index.types.items()}, index.count(store)
                print(json.dumps({"index": index.table, "properties": types, "unique": index.unique, "entities": rows})
                      if options.json else f"{index.table}  {rows:,} entities  {types}{'  unique' * index.unique}")
        else:
            changed = indexes[options.index].populate(store, progress=progress)
            print(json.dumps({"changed": changed}) if options.json else f"{changed:,} rows had to be changed")


def main(words: list[str] | None = None) -> int:
    """The command line: `python -m slim`. Returns the exit status: 0, 1 after an error, 2 (by argparse) if called wrongly."""
    options = _arguments(sys.argv[1:] if words is None else words)
    try:
        _run(options)
        sys.stdout.flush()
    except (BrokenPipeError, KeyboardInterrupt) as error:
        with contextlib.suppress(OSError), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    except (Error, MySQLdb.Error, TypeError, ValueError) as error:
        print("slim:", " ".join(str(error.args[-1] if isinstance(error, MySQLdb.Error) and error.args else error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
