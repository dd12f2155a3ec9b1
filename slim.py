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

It puts into the database, and touches nothing else: `entities` (added_id, id, updated, body), a table for each Index
(its properties, entity_id), `entities_history` where history is kept, and the empty `entities_guard_…`, which is renamed
when the set of indexes changes, so that no running program misses it. A body is a zlib-compressed pickle of the whole
dictionary, and is read through an exact list of harmless types: what names anything else is Untrusted, and runs nothing.

Promises: a put is one transaction, whatever dies. An index answers only what is true of its entities, and each program
that writes maintains all indexes of the database, whether it names them or not. Text compares exactly.
Limits: bodies of 16 MiB (MEDIUMBLOB) or the server's max_allowed_packet, ids of 1 to 36 characters.
"""
from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import datetime as dt
import enum
import fractions
import getpass
import io
import ipaddress
import json
import operator
import os
import pathlib
import pickle
import pickletools
import random
import re
import reprlib
import sys
import textwrap
import threading
import time
import uuid
import weakref
import zlib
import zoneinfo
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

import MySQLdb
from MySQLdb.constants import CR, ER, FIELD_TYPE
from MySQLdb.converters import conversions

__all__ = ["ANY", "Conflict", "Corrupt", "Datastore", "Duplicate", "Entity", "Error", "Index", "NotPopulated", "Schema",
           "Unknown", "Untrusted", "decode", "encode"]
__version__ = "1.0.0"

ANY = "any"                         # classes=ANY reads any pickle, as pickle does: for databases that only you write to
MAX_SIZE = 64 << 20                 # bytes that a body may have when decompressed
MAX_BODY = (1 << 24) - 1            # bytes of a MEDIUMBLOB
MAX_CONTAINERS = 1 << 20            # lists, dictionaries and sets of a body: one byte of it makes a set of 216 bytes
MAX_TUPLES = 40_000                 # tuples and calls of a body: nested, each takes C's stack when hashed,
PAGE, PAGE_BYTES = 5_000, 4 << 20   # rows of one result at the most; bytes of bodies that a page of a scan aims at
BATCH, BATCH_BYTES = 1_000, 4 << 20     # entities, and bytes of SQL at the most, of one transaction of put_many
LEVEL = 1                           # of zlib: below 2 kB all are within 3 %; at 10 kB 6 saves 11 % of bytes for 2.6 times the time
PROTOCOL = 5                        # of pickle; every Python that runs slim reads it
DOOMED = "the transaction is rolled back, as a call inside it failed: leave it, and begin again"
RETRY_SECONDS = 30.0                # how long a call is tried again on deadlocks and lost connections
EXACT = "utf8mb4_0900_bin", "utf8mb4_nopad_bin", None   # collations that compare as Python does; None: bytes
BUILDING = "~"                      # ends the name of an index table that is not populated yet
COMMENTS = "slim index", "slim unique index"    # by its comment an index table is known

# The server, or the way to it, is gone. 1836: read-only, 1927: killed, 2027: cut off, 3100: no majority, 4031: idle too long
LOST = {CR.CONNECTION_ERROR, CR.CONN_HOST_ERROR, CR.SERVER_GONE_ERROR, CR.SERVER_LOST, CR.SERVER_LOST_EXTENDED,
        CR.SERVER_HANDSHAKE_ERR, ER.UNKNOWN_COM_ERROR, ER.SERVER_SHUTDOWN, ER.ERROR_DURING_COMMIT,
        ER.OPTION_PREVENTS_STATEMENT, 1836, 1927, 2027, 3100, 4031}
# Rolled back, and worth another try; 3101: Group Replication did so at COMMIT. DUP_ENTRY: two were inserting one id.
AGAIN = LOST | {ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, ER.DUP_ENTRY, ER.NO_SUCH_TABLE, 3101}
DENIED = {ER.DBACCESS_DENIED_ERROR, ER.TABLEACCESS_DENIED_ERROR, ER.SPECIFIC_ACCESS_DENIED_ERROR, ER.OPTION_PREVENTS_STATEMENT}

T = TypeVar("T")
_UTC = dt.timezone.utc
Progress = Callable[..., Iterable[Any]]
Connection = Any                    # MySQLdb's stubs type neither its connections nor their results


class Error(Exception):
    """What all of slim's own errors derive from. The driver's pass through as MySQLdb's."""


class Conflict(Error):
    """Another version than the expected one is current. Carries `.id`, `.expected` and `.found` (0: no entity)."""

    def __init__(self, id: str, expected: int, found: int) -> None:
        super().__init__(f"entity {id!r}: version {expected} was expected, {found} is current (0: none); get it, decide again")
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


# SQL by name. Identifiers are quoted into {}, values are bound to %s, always.
SESSION = (b"SET SESSION time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
           b"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", b"SELECT @@max_allowed_packet, VERSION() LIKE '%MariaDB%'",
           b"SHOW VARIABLES LIKE 'wsrep_retry_autocommit'")
WSREP = b"SET SESSION wsrep_retry_autocommit = 0"     # Galera would repeat the last statement alone, without its packet
SNAPSHOT = b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", b"START TRANSACTION WITH CONSISTENT SNAPSHOT"
TABLE_OPTIONS = " ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE="
CREATE_ENTITIES = """CREATE TABLE entities (
 added_id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, id VARCHAR(36) NOT NULL,
 updated TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, body MEDIUMBLOB, UNIQUE KEY (id), KEY (updated))"""
CREATE_HISTORY = """CREATE TABLE entities_history (
 id VARCHAR(36) NOT NULL, number BIGINT UNSIGNED NOT NULL, added_id BIGINT UNSIGNED NOT NULL,
 updated TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, body MEDIUMBLOB, PRIMARY KEY (id, number))"""
CREATE_GUARD = "CREATE TABLE {} (id TINYINT NOT NULL PRIMARY KEY) COMMENT='slim guard'"
CREATE_INDEX = "CREATE TABLE {table} ({columns}, entity_id {id} NOT NULL UNIQUE, PRIMARY KEY ({key}){more}) COMMENT='{comment}'"
SELECT_AT_WORK = """SELECT COUNT(*) FROM {}_schema.processlist
 WHERE id = %s AND id <> CONNECTION_ID() AND command <> 'Sleep'"""       # a server that was started again counts anew
SELECT_GUARDS = """SELECT table_name FROM information_schema.tables
 WHERE table_schema = DATABASE() AND table_name LIKE 'entities\\_guard\\_%%' ORDER BY table_name"""
SELECT_CATALOGUE = """SELECT c.table_name, c.column_name, c.column_type, c.collation_name, t.table_comment
 FROM information_schema.columns AS c JOIN information_schema.tables AS t
   ON t.table_schema = c.table_schema AND t.table_name = c.table_name
 WHERE c.table_schema = DATABASE() AND (t.table_comment IN %s OR c.table_name IN %s)
 ORDER BY c.table_name, c.ordinal_position"""
SELECT_ENTITY = "SELECT added_id, id, updated, body FROM entities WHERE id IN %s"
SELECT_PAGE = "SELECT added_id, id, updated, body FROM entities WHERE added_id > %s ORDER BY added_id LIMIT %s"
SELECT_NEWEST = "SELECT added_id, id, updated, body FROM entities ORDER BY added_id DESC LIMIT %s OFFSET %s"
SELECT_HISTORY = "SELECT added_id, id, updated, body FROM entities_history WHERE id IN %s ORDER BY number DESC"
SELECT_RECENT = "SELECT id, body FROM entities_history WHERE id IN %s AND updated >= NOW() - INTERVAL %s SECOND"
SELECT_VERSION = "SELECT id, added_id FROM entities WHERE id IN %s"
SELECT_STAMP = "SELECT added_id, updated FROM entities WHERE id = %s"
SELECT_COUNT = "SELECT COUNT(*), COALESCE(MAX(added_id), 0) FROM entities"
DELETE_ENTITY = "DELETE FROM entities WHERE id IN %s"
EXACTLY = " AND CAST(CONVERT({} USING utf8mb4) AS BINARY) IN %s"     # where the table's collation would delete Bob for bob
GUARDED = " AND NOT EXISTS (SELECT 1 FROM {})"       # always true; keeps the guard from being renamed until COMMIT
INSERT_ENTITY = "INSERT INTO entities (id, body, updated) VALUES "   # 2009's `updated` has no default
INSERT_HISTORY = """INSERT INTO entities_history (id, number, added_id, updated, body)
 SELECT e.id, 1 + (SELECT COALESCE(MAX(h.number), 0) FROM entities_history AS h WHERE h.id = e.id), e.added_id,
  e.updated, e.body FROM entities AS e WHERE e.id IN %s"""      # numbered, as added_id need not rise in commit order
DELETE_HISTORY = "DELETE FROM entities_history WHERE id IN %s"
DELETE_ROW = "DELETE FROM {table} WHERE entity_id IN %s"
INSERT_ROW = "INSERT INTO {table} ({names}, entity_id) VALUES "
SELECT_ROW = "SELECT entity_id, {names} FROM {table} WHERE entity_id IN %s FOR UPDATE"
SELECT_OWNER = "SELECT entity_id FROM {table} WHERE ({names}) = %s AND entity_id NOT IN %s"
# STRAIGHT_JOIN: read the index first, in its order; on a small table the optimizer would read and sort the entities.
SELECT_MATCH = """SELECT e.added_id, e.id, e.updated, e.body FROM {table} AS i STRAIGHT_JOIN entities AS e
 ON e.id = i.entity_id WHERE {where} ORDER BY {order} LIMIT %s"""
COUNT_MATCH = "SELECT COUNT(*) FROM {table} AS i WHERE {where}"
SELECT_COMPARED = """SELECT e.added_id, e.id, e.updated, e.body, i.entity_id, {names} FROM entities AS e
 LEFT JOIN {table} AS i ON i.entity_id = e.id WHERE e.added_id > %s AND e.added_id <= %s ORDER BY e.added_id LIMIT %s"""
SELECT_ORPHANS = """SELECT i.entity_id FROM {table} AS i LEFT JOIN entities AS e ON e.id = i.entity_id
 WHERE i.entity_id > %s AND e.id IS NULL ORDER BY i.entity_id LIMIT %s"""


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


def _make(real: Any, make: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    """make(*args), unless that would unroll into memory what takes no bytes in the body."""
    args = tuple(arg.real if isinstance(arg, _Sealed) else arg for arg in args)
    if real in _KNOWN.values():
        if (real in _FACTORIES and args or kwargs or any(isinstance(arg, _LAZY) for arg in args)
                or real is bytearray and not all(isinstance(arg, (bytes, str)) for arg in args)
                or real is fractions.Fraction and ("e" in str(args).lower() or "d" in str(args).lower())):
            raise pickle.UnpicklingError(f"a body may not call {real!r} so")
        if real in _PLAIN and real is not Decimal and args and isinstance(args[0], str):
            args = args[0].encode("utf-8", "surrogateescape"), *args[1:]        # how Python 2 wrote dates
    return make(*args, **kwargs)


def _getattr(cls: Any, name: str) -> Any:
    if (cls, name) != (zoneinfo.ZoneInfo, "_unpickle") and not (issubclass(cls, enum.Enum) and name in cls.__members__):
        raise pickle.UnpicklingError(f"a body may not take {name!r} of {cls!r}")
    return getattr(cls, name)                                   # how ZoneInfo and some enums are written


# What a body may name. C's own value types cannot be altered, and are used as they are; the others are sealed.
_PLAIN = dt.datetime, dt.date, dt.time, dt.timedelta, dt.timezone, Decimal
_LAZY = range, ipaddress.IPv4Network, ipaddress.IPv6Network
_FACTORIES = int, str, float, bool, bytes, list, dict, tuple, object            # a defaultdict's; called without arguments
_KNOWN: dict[tuple[str, str], Any] = {(cls.__module__, cls.__name__): cls for cls in (
    *_PLAIN, *_LAZY, *_FACTORIES, complex, slice, bytearray, set, frozenset, fractions.Fraction, uuid.UUID,
    zoneinfo.ZoneInfo, collections.OrderedDict, collections.defaultdict, collections.Counter, collections.deque,
    ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Interface, ipaddress.IPv6Interface)}
_KNOWN |= {(module, cls.__name__): cls for module in ("pathlib", "pathlib._local") for cls in (
    pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath)}
_KNOWN |= {("builtins", "getattr"): _getattr, ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
           ("copyreg", "_reconstructor"): lambda cls, *_: cls.__new__(cls)}     # bytes and objects of old protocols
_KNOWN |= {({"builtins": "__builtin__", "copyreg": "copy_reg"}.get(module, module), name): value      # Python 2's names
           for (module, name), value in _KNOWN.items()}
_SEALED = {key: _seal(value) for key, value in _KNOWN.items()}
_MODERN = {key: value if value in _PLAIN else _SEALED[key] for key, value in _KNOWN.items()}   # from protocol 3 on

# The opcodes that a body may have; strings from 256 bytes on are stepped over in _check_opcodes. Not among them are EXT,
# INST, OBJ and PERSID, and a PUT to so high a place that C's memo, an array, would fill the memory.
_OPCODES = re.compile(rb"(?s:[\x94N\x88\x89\x85\x86\x87()\]}eausRtdlb012.\x81\x8f\x90\x91\x92\x93]{1,99}|[\x8cC\x8aU](?:"
                      + rb"|".join(b"%s.{%d}" % (re.escape(bytes([n])), n) for n in range(256)) + rb")\x94?|K.|M..|"
                      rb"[Jj].{4}|[hq\x80].|r..[\0-\x0f]\0|[G\x95].{8}|[pg]\d{1,6}\n|[IFLSV][^\n]*\n|c[^\n]*\n[^\n]*\n){0,1000}")
_TUPLES, _CONTAINERS = (b"\x85", b"\x86", b"\x87", b"t", b"R", b"\x81", b"\x92"), (b"]", b"}", b"l", b"d", b"\x8f", b"\x91")
_COUNTED = {ord("X"): 4, ord("B"): 4, ord("T"): 4, 0x8b: 4, 0x8d: 8, 0x8e: 8, 0x96: 8}  # opcodes with a long count first


def _check_opcodes(data: bytes) -> None:
    position = 0
    while position < len(data):
        start, position = position, _OPCODES.match(data, position).end()    # type: ignore[union-attr]
        if position == start:
            width = _COUNTED.get(data[position])
            if width is None:
                raise pickle.UnpicklingError(f"opcode {data[position:position + 1]!r} at byte {position} is not allowed")
            position += 1 + width + int.from_bytes(data[position + 1:position + 1 + width], "little")
    if position > len(data):
        raise pickle.UnpicklingError("it is cut short")
    if len(data) > MAX_TUPLES < sum(data.count(code) for code in _TUPLES + _CONTAINERS):    # perhaps, but most will be text
        tuples = containers = 0
        for opcode, _, _ in pickletools.genops(data):
            tuples += (code := opcode.code.encode("latin1")) in _TUPLES
            containers += code in _CONTAINERS
            if tuples > MAX_TUPLES or containers > MAX_CONTAINERS:
                raise pickle.UnpicklingError(f"it has over {MAX_TUPLES:,} tuples, dates and the like, or {MAX_CONTAINERS:,} "
                                             "lists, dictionaries and sets: more than one entity may have")


class _Unpickler(pickle.Unpickler):
    """Reads what `_check_opcodes` let through. Nothing is imported: a name is allowed, known, or Untrusted."""

    classes: Mapping[tuple[str, str], Any] = {}
    known = _MODERN
    members: dict[Any, Any]

    def load(self) -> Any:
        self.members = {}
        try:
            return super().load()
        finally:                                                # an enum's member is the process's own: BUILD may not alter it
            for member in self.members:
                if vars(member) != (state := self.members[member]):
                    vars(member).clear()
                    vars(member).update(state)
                    raise pickle.UnpicklingError(f"a body may not alter {member!r}")

    def find_class(self, module: str, name: str) -> Any:
        found = self.classes.get((module, name)) or self.known.get((module, name))
        if found is None:
            raise Untrusted(f"{module}.{name} is not among the types that a body may name; allow the class by Datastore(…, "
                            "classes=[…]), or all by classes=slim.ANY, if nobody else can write to the database")
        if isinstance(found, _Sealed) and isinstance(found.real, enum.EnumMeta):
            self.members |= {member: dict(vars(member)) for member in list[Any](found.real)}
        return found


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
    unpickler = _Unpickler(io.BytesIO(data), encoding="utf-8", errors="surrogateescape")
    unpickler.classes = allowed
    if data[:1] != b"\x80" or data[1] < 3:                      # as Python 2 wrote it
        unpickler.known = _SEALED
    return unpickler.load()


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
        if pickler.doubtful or len(data) > MAX_TUPLES:
            _load(data, _allowed(classes))
    except Untrusted:
        raise
    except Exception as error:                                  # pickling runs the values' own code
        raise TypeError(f"the entity {reprlib.repr(entity)} cannot be pickled and read again: {error}") from error
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
            raise ValueError(f"it has over max_size={max_size} bytes" if len(data) > max_size else "it is no whole zlib stream")
        entity = _load(data, _allowed(classes))
        if not isinstance(entity, dict):
            raise ValueError(f"it is of type {type(entity).__name__}, no dictionary")
    except Untrusted:
        raise
    except Exception as error:                                  # a broken pickle can raise anything
        raise Corrupt(f"the body cannot be read: {type(error).__name__}: {error}") from error
    return entity


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
    if type(id) is not str:
        raise TypeError(f"an id is a str, not {reprlib.repr(id)} of type {type(id).__name__}")
    if not 1 <= len(id) <= 36 or not _is_unicode(id):
        raise ValueError(f"an id has 1 to 36 characters of valid Unicode, unlike {reprlib.repr(id)} with {len(id)}")
    return id


def _is_unicode(text: str) -> bool:
    return text.isascii() or not re.search("[\ud800-\udfff]", text)    # no lone surrogates: UTF-8 has none


def _quote(name: str) -> str:
    """An identifier for SQL that values are bound into by %: backticks and percent signs are data."""
    return "`" + name.replace("`", "``").replace("%", "%%") + "`"


def _bind(connection: Connection, sql: str, *args: Any) -> bytes:
    return sql.encode() % tuple(map(connection.literal, args))


def _bind_rows(connection: Connection, sql: str, rows: Iterable[Sequence[Any]], end: bytes = b")") -> bytes:
    return _bind(connection, sql) + b",".join([connection.literal(row)[:-1] + end for row in rows])


SQL_TYPES: dict[type, str] = {
    str: "VARCHAR(191)", int: "BIGINT", float: "DOUBLE", bool: "TINYINT(1)", bytes: "VARBINARY(191)",
    Decimal: "DECIMAL(65,30)", dt.date: "DATE", dt.datetime: "DATETIME(6)", uuid.UUID: "BINARY(16)"}
_KINDS: dict[str, tuple[type, int]] = {             # for each of MySQL's types the Python type, and bits
    "varchar": (str, 0), "char": (str, 0), "varbinary": (bytes, 0), "binary": (bytes, 0), "double": (float, 0),
    "decimal": (Decimal, 0), "date": (dt.date, 0), "datetime": (dt.datetime, 0), "tinyint": (int, 8), "smallint": (int, 16),
    "mediumint": (int, 24), "int": (int, 32), "bigint": (int, 64)}
_TYPE = re.compile(r"(\w+)(?:\((\d+)(?:,(\d+))?\))?( unsigned)?", re.IGNORECASE)


class _Type:
    """The type of an indexed property: what Python has, what MySQL has, and what fits."""

    def __init__(self, declared: Any) -> None:
        self.sql: Any = SQL_TYPES.get(declared, declared) if isinstance(declared, type) else declared
        parts = _TYPE.fullmatch(re.sub(r"\s*([(,])\s*|\s+(?=\))", r"\1", self.sql)) if isinstance(self.sql, str) else None
        if not parts or parts[1].lower() not in _KINDS:
            raise TypeError(f"{declared!r} is no type for a property; take one of {', '.join(cls.__name__ for cls in SQL_TYPES)}, "
                            f"or as a string one of {', '.join(_KINDS)}")
        self.name, self.size, self.scale = parts[1].lower(), int(parts[2] or 0), int(parts[3] or 0)
        python, bits = _KINDS[self.name]
        self.python: Any = {("tinyint", 1): bool, ("binary", 16): uuid.UUID}.get((self.name, self.size), python)
        self.range = range(1 << bits) if parts[4] else range(-(1 << bits) // 2, (1 << bits) // 2)

    def to_sql(self, value: Any) -> Any:
        """The value as the driver binds it. Raises TypeError or ValueError with the reason alone."""
        if type(value) is int and self.python is float and int(float(value)) == value:
            value = float(value)
        if type(value) is not self.python:
            raise TypeError(f"is declared {self.python.__name__}, but is of type {type(value).__name__}")
        if not self._fits(value):
            raise ValueError(f"does not fit into {self.sql}")
        if self.python is dt.datetime and value.tzinfo is not None:
            return value.astimezone(_UTC).replace(tzinfo=None)
        return int(value) if self.python is bool else value.bytes if self.python is uuid.UUID else value

    def _fits(self, value: Any) -> bool:
        if self.python in (str, bytes):
            low = self.size if self.name == "binary" else 0
            if self.name == "char" and value[-1:] == " ":       # which MySQL would drop
                return False
            return low <= len(value) <= self.size and (self.python is bytes or _is_unicode(value))
        if self.python is Decimal:                              # exactly: what is rounded would not be found
            places = -value.as_tuple().exponent if value.is_finite() else self.scale + 1
            return places <= self.scale and (not value or value.adjusted() < self.size - self.scale)
        return (value in self.range if self.python is int else abs(value) < float("inf") if self.python is float else
                self.python is not dt.datetime or value.microsecond % 10 ** (6 - self.size) == 0)


_Term = tuple[str, str, Any]        # property, sign, and the value as SQL has it
_SIGNS: dict[str, Callable[[Any, Any], Any]] = {">=": operator.ge, "<": operator.lt, "IN": lambda value, one_of: value in one_of}


def _where(terms: Sequence[_Term]) -> tuple[str, list[Any]]:
    return " AND ".join(["TRUE", *(f"i.{_quote(name)} {sign} %s" for name, sign, _ in terms)]), [value for *_, value in terms]


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
                raise ValueError(f"{reprlib.repr(name)} cannot name a table or column: MySQL takes 1 to 63 characters up to "
                                 "U+FFFF, no NUL, no space at the end")
        if table.startswith("entities") or table.endswith(BUILDING):
            raise ValueError(f"index table {table!r}: names like entities… and …{BUILDING} are slim's own")
        if not names or len({name.casefold() for name in [*names, "entity_id"]}) <= len(names):
            raise ValueError(f"index {table}: give at least one property, each once, and none called entity_id, not {names!r}")
        self.table, self.unique, self._names = table, unique, ", ".join(map(_quote, names))
        self.types = {name: _Type(properties[name] if isinstance(properties, Mapping) else str) for name in names}

    def __repr__(self) -> str:
        types = {name: column.sql for name, column in self.types.items()}
        return f"Index({self.table!r}, {types}{', unique=True' * self.unique})"

    def get_all(self, datastore: Datastore, **match: Any) -> list[Entity]:
        """The entities that match, in the index's order, [] where there is none. One query for each 5,000 of them.

        A value is an equality, slice(low, high) a half-open range (None: no end), a set or list is "one of".
        Raises TypeError or ValueError for a property or value that the index cannot have, NotPopulated before it is filled.
        """
        return list(self.find(datastore, match))

    def find(self, datastore: Datastore, match: Mapping[str, Any], *, reverse: bool = False, limit: int | None = None,
             after: Entity | None = None) -> Iterator[Entity]:
        """The same, lazily, ordered by the (first) ranged property, then id; reverse: the other way round.

        limit: the most entities. after: the last Entity of the page before, to go on behind it.
        """
        ranged = [name for name in self.types if isinstance(match.get(name), slice)]
        return self._find(datastore, self._terms(match), ranged[:1], "<" if reverse else ">", limit, after)

    def count(self, datastore: Datastore, **match: Any) -> int:
        """How many entities match; 0 where none does."""
        if not datastore._catalogue.exact.get(self.table, True):    # the table takes Bob for bob: look at the entities
            return sum(1 for _ in self.find(datastore, match))
        where, args = _where(self._terms(match))
        return int(self._read(datastore, COUNT_MATCH, args, where=where)[0][0])

    def put(self, datastore: Datastore, entity: Mapping[Any, Any]) -> None:
        """Rewrites the rows of a stored entity in this index. `Datastore.put` does it for all indexes."""
        stored = datastore.get(id := _check_id(entity.get("id")))
        self._rewrite(datastore, {id: (0, None) if stored is None else (stored.version, self._row(stored))})

    def populate(self, datastore: Datastore, *, progress: Progress | None = None) -> int:
        """Makes the table agree with the entities exactly, while readers and writers go on; stop it and run it at any time.

        progress: anything called as tqdm.tqdm is. Returns the number of rows it had to change: 0, all was right.
        Raises TypeError, ValueError or Duplicate for an entity that the index cannot have, with its id.
        """
        if datastore._refresh().tables.get(self.table) == self.table + BUILDING:
            datastore._rename()                                 # from here on every writer knows the table, or fails
        count, last = datastore._read(SELECT_COUNT)[0]
        # Each entity beside its row as of the same moment. Those that are put later than `last` their writers index.
        rows: Iterable[Any] = _pages(lambda after, size: self._read(datastore, SELECT_COMPARED, (after, last, size)))
        changed, after, batch = 0, "", dict[str, Any]()
        for version, id, updated, body, found, *row in progress(rows, total=count) if progress else rows:
            try:
                wanted = self._row(datastore._entity((version, id, updated, body)))
            except (TypeError, ValueError) as error:
                raise type(error)(f"entity {id!r}: {error}") from error
            if wanted != (None if found is None else tuple(row)):
                batch[id] = version, wanted
            if len(batch) == BATCH:
                changed, batch = changed + self._rewrite(datastore, batch), {}
        changed += self._rewrite(datastore, batch)
        while orphans := self._read(datastore, SELECT_ORPHANS, (after, BATCH)):
            changed += self._rewrite(datastore, {id: (0, None) for id, in orphans})
            after = orphans[-1][0]
        datastore._rename((self.table + BUILDING, self.table))
        return changed

    def create(self, datastore: Datastore) -> None:
        """Creates the table where it is missing, to be populated. Raises Error with the statement where that is denied."""
        if (known := datastore._refresh().indexes.get(self.table)) is not None:
            if [(name, t.python) for name, t in known.types.items()] != [(name, t.python) for name, t in self.types.items()]:
                raise ValueError(f"index table {self.table} stands as {known!r}, not as {self!r}: remove it, or take another name")
            return
        names = [_quote(name) for name in self.types]
        datastore._create(CREATE_INDEX.format(
            table=_quote(self.table + BUILDING), id=datastore._catalogue.id_type, comment=COMMENTS[self.unique],
            columns=", ".join(f"{name} {column.sql} NOT NULL" for name, column in zip(names, self.types.values())),
            key=self._names + ", entity_id" * (not self.unique), more="".join(f", KEY ({name})" for name in names[1:])))

    def drop(self, datastore: Datastore) -> None:
        """Drops the table, if it stands."""
        datastore._refresh()
        datastore._rename()                                     # waits for transactions that know the table
        datastore._read(f"DROP TABLE IF EXISTS {_quote(self.table)}, {_quote(self.table + BUILDING)}")
        datastore._refresh()

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
            raise type(error)(f"index {self.table}: property {name} {error}: {reprlib.repr(value)}; give another value, or "
                              f"declare the type of the property: Index(…, {{{name!r}: …}})") from error

    def _terms(self, match: Mapping[str, Any]) -> list[_Term]:
        terms = list[_Term]()
        for name, asked in match.items():
            if isinstance(asked, slice):
                ends = (">=", asked.start), ("<", asked.stop), ("=", asked.step)     # of a step there is no sense
                terms += [(name, sign, self._value(name, end)) for sign, end in ends if end is not None]
            else:
                one_of = asked if isinstance(asked, (set, frozenset, list)) else [asked]
                terms.append((name, "IN", tuple([self._value(name, value) for value in one_of]) or (None,)))
            if name not in self.types:
                self._value(name, asked)
        return terms

    def _find(self, datastore: Datastore, terms: Sequence[_Term], ranged: Sequence[str], sign: str, limit: int | None,
              after: Entity | None) -> Iterator[Entity]:
        columns = [f"i.{_quote(name)}" for name in (*ranged, "entity_id")]
        order = ", ".join(column + (" DESC" if sign == "<" else "") for column in columns)
        while limit is None or limit > 0:
            where, args = _where(terms)
            if after is not None:                               # (column, id) > (…, …) in a form that both servers range over
                last = [*(self._value(name, after[name]) for name in ranged), after["id"]]
                where += f" AND {columns[0]} {sign}= %s AND ({columns[0]} {sign} %s OR {columns[-1]} {sign} %s)"
                args += [last[0], last[0], last[-1]]
            size = PAGE if limit is None else min(limit, PAGE)
            rows = self._read(datastore, SELECT_MATCH, [*args, size], where=where, order=order)
            for after in map(datastore._entity, rows):
                if self._matches(after, terms):
                    limit = None if limit is None else limit - 1
                    yield after
            if len(rows) < size:
                return

    def _matches(self, entity: Entity, terms: Iterable[_Term]) -> bool:
        try:
            return all(_SIGNS[sign](self.types[name].to_sql(entity.get(name)), value) for name, sign, value in terms)
        except (TypeError, ValueError):                         # the row is not of this entity
            return False

    def _read(self, datastore: Datastore, statement: str, args: Sequence[Any], **parts: str) -> Any:
        """Rows of a statement. What is asked of an index goes to the populated table alone, the rest to the one that stands."""
        table = self.table if parts else datastore._catalogue.tables.get(self.table, self.table)
        try:
            return datastore._read(statement.format(table=_quote(table), names=self._names, **parts), *args)
        except MySQLdb.ProgrammingError as error:
            if _code(error) != ER.NO_SUCH_TABLE:
                raise
            raise NotPopulated(f"index {self.table} does not stand, or is not populated: Datastore.add_index makes it, "
                               "Index.populate fills it") from error

    def _rewrite(self, datastore: Datastore, wanted: Mapping[str, Any]) -> int:
        """Makes the rows of some ids right: wanted is {id: (version, row)}; version 0 is a row without an entity.

        Writers lock an entity, then its rows, and so does this. An orphan has no entity to lock: its row is locked first
        and then the entity looked for; who is about to insert it waits for the row, who has done so is seen.
        An entity of another version was put in between, with its rows.
        """
        def attempt(connection: Connection, _: int) -> int:
            catalogue, ids = datastore._local.catalogue, tuple(sorted(wanted))
            table = catalogue.tables.get(self.table, self.table)
            select = SELECT_ROW.format(table=_quote(table), names=self._names)
            _, locked, found, standing = [rows for _, rows in datastore._send(connection, b"BEGIN", *(
                _bind(connection, sql, ids) for sql in (SELECT_VERSION + " FOR UPDATE", select, SELECT_VERSION)))]
            versions, rows = {**dict.fromkeys(dict(standing), -1), **dict(locked)}, {id: tuple(row) for id, *row in found}
            wrong = {id: row for id, (version, row) in wanted.items()
                     if versions.get(id, 0) == version and rows.get(id) != row}
            try:
                datastore._send(connection, *self._replace(connection, catalogue, wrong), b"COMMIT")
            except MySQLdb.IntegrityError as error:
                datastore._recover(connection, error)
                datastore._explain(connection, self, wrong)
                raise
            return len(wrong)
        return datastore._repeat(attempt) if wanted else 0

    def _replace(self, connection: Connection, catalogue: _Catalogue, rows: Mapping[str, Any],
                 fresh: bool = False) -> Iterator[bytes]:
        """Statements that replace the rows of these ids, in the order of the key, which spares pages, and deadlocks."""
        table, ids = catalogue.tables.get(self.table, self.table), tuple(sorted(rows))
        delete = DELETE_ROW + EXACTLY.format("entity_id") * (not catalogue.exact.get(table, True))
        if rows and not fresh:
            yield _bind(connection, delete.format(table=_quote(table)), *[ids] * delete.count("%s"))
        if values := sorted((*row, id) for id, row in rows.items() if row is not None):
            yield _bind_rows(connection, INSERT_ROW.format(table=_quote(table), names=self._names), values)


class _Catalogue(NamedTuple):
    """What stands in the database; index tables by the index's name, and whose text compares exactly by the table's."""

    guards: list[str]
    history: bool
    indexes: dict[str, Index]
    tables: dict[str, str]
    exact: dict[str, bool]
    id_type: str

    def stamp(self) -> Any:
        return self.guards, self.history, self.tables


class _Local(threading.local):
    connection: Connection = None
    depth = 0                                                   # of transaction()
    doomed = False                                              # a call in the transaction failed: no way but back
    committing = False                                          # a packet was sent that ends with COMMIT
    answered = False                                            # its first statement went through
    catalogue: Any = None                                       # from which the packet was made


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
                         "charset": "utf8mb4", "binary_prefix": True, "autocommit": True,
                         "conv": {**conversions, FIELD_TYPE.TIMESTAMP: _to_utc}}
        self._allowed, self._max_size, self._closed, self._names = _allowed(classes), max_size, False, set[str]()
        self._connections, self._local = weakref.WeakSet[Any](), _Local()
        self._catalogue = _Catalogue([], False, {}, {}, {}, "VARCHAR(36)")
        if hasattr(os, "register_at_fork"):
            forget = weakref.WeakMethod(self._forget)
            os.register_at_fork(after_in_child=lambda: (forget() or bool)())
        self._local.connection = self._open()                   # a wrong password is told at once, not tried again
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
        id, whole, body = self._prepare(entity)
        self._store({id: whole}, {id: body}, expect, fresh="id" not in entity)
        entity["id"] = id
        return id

    def put_many(self, entities: Iterable[dict[Any, Any]], *, batch: int = BATCH, progress: Progress | None = None) -> int:
        """Stores any number of dictionaries, each batch in one transaction; of two with one id the later stands.

        batch: the most entities of a transaction. progress: anything called as tqdm.tqdm is. Returns how many were put.
        """
        if progress:
            entities = progress(entities, total=len(entities) if isinstance(entities, Collection) else None)
        names = {name for index in self._catalogue.indexes.values() for name in index.types}
        count, size, pending = 0, 0, dict[str, Any]()
        for entity in entities:
            id, whole, body = self._prepare(entity)
            weight = 2 * len(body) + 8 * sum(len(str(whole.get(name))) for name in names)   # when escaped, at the most
            if len(pending) >= batch or size + weight > min(BATCH_BYTES, self._max_packet) // 2:
                self._put_batch(pending)
                size, pending = 0, {}
            pending.pop(id, None)                               # so that it is inserted where it came last
            count, size, pending[id] = count + 1, size + weight, (entity, whole, body)
        self._put_batch(pending)
        return count

    def get(self, id: str, *, version: int | None = None) -> Entity | None:
        """The entity, or None. version: that one of its versions, where history is kept."""
        for row in self._read(SELECT_ENTITY, [_check_id(id)]):
            if row[1] == id and version in (None, row[0]):
                return self._entity(row)
        versions = self.history(id) if version is not None and self._catalogue.history else []
        return next((entity for entity in versions if entity.version == version), None)

    def get_many(self, ids: Iterable[str]) -> dict[str, Entity]:
        """{id: entity} of those that there are, in the order asked for."""
        asked = list(dict.fromkeys(map(_check_id, ids)))
        found = {entity["id"]: entity for start in range(0, len(asked), PAGE)
                 for entity in self._select(SELECT_ENTITY, asked[start:start + PAGE])}
        return {id: found[id] for id in asked if id in found}

    def delete(self, id: str, *, expect: int | None = None, history: bool = False) -> bool:
        """Deletes the entity and all its index rows, in one transaction. False where there was none (any more).

        expect: as for `put`. history: True erases all its versions as well.
        """
        return self._store({_check_id(id): None}, {}, expect, history)

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
        local, outer = self._local, self._local.depth == 0
        if outer:
            self._repeat(lambda connection, _: self._send(connection, b"BEGIN"))
        connection, local.depth = local.connection, local.depth + 1
        try:
            yield
            if outer:
                self._commit(connection)
        except BaseException as error:
            local.doomed = True
            if outer:
                self._recover(connection, error)
            raise
        finally:
            local.depth -= 1
            local.doomed = local.doomed and not outer

    def scan(self, *, progress: Progress | None = None) -> Iterator[Entity]:
        """Every entity as of now, oldest put first, in pages, on a connection of its own: put and delete meanwhile.

        progress: anything called as tqdm.tqdm is.
        """
        connection = self._open()
        self._send(connection, *SNAPSHOT)
        entities = self._scan(connection)
        return iter(progress(entities, total=len(self))) if progress else entities

    def __iter__(self) -> Iterator[Entity]:
        return self.scan()

    def __len__(self) -> int:
        return int(self._read(SELECT_COUNT)[0][0])

    def __bool__(self) -> bool:
        return True

    def __contains__(self, id: Any) -> bool:
        return id in dict(self._read(SELECT_VERSION, [_check_id(id)]))

    def history(self, id: str) -> list[Entity]:
        """Every version that was put under this id, newest first, also after a delete; [] where there was none.

        Raises Error where no history is kept.
        """
        if not self._catalogue.history and not self._refresh().history:
            raise Error("no history is kept here: open the database once with Datastore(…, history=True)")
        return list(self._select(SELECT_HISTORY, [_check_id(id)]))

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
        try:
            if populate and self._catalogue.tables[index.table] != index.table:
                index.populate(self, progress=progress)
        except (TypeError, ValueError, Duplicate):              # the entities are not such that they could have it
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
            with contextlib.suppress(MySQLdb.Error):            # one in use: its thread's call fails, and lets it go
                connection.close()

    # Entities

    def _prepare(self, entity: Any) -> tuple[str, dict[Any, Any], bytes]:
        if not isinstance(entity, dict):
            raise TypeError(f"an entity is a dict, not {reprlib.repr(entity)} of type {type(entity).__name__}")
        id = _check_id(entity["id"]) if "id" in entity else _new_id()
        whole = entity if "id" in entity else {**entity, "id": id}
        body = encode(whole, self._allowed)
        if len(body) > min(MAX_BODY, self._max_packet):
            raise ValueError(f"entity {id!r} has {len(body)} bytes when compressed; MEDIUMBLOB takes {MAX_BODY}, the server's "
                             f"max_allowed_packet {self._max_packet}")
        return id, whole, body

    def _entity(self, row: Sequence[Any]) -> Entity:
        version, id, updated, body = row
        try:
            entity = Entity(decode(body or b"", self._allowed, self._max_size))
        except Corrupt as error:
            error.id = id
            raise
        entity.setdefault("id", id)
        entity.version, entity.updated = version, updated
        return entity

    def _select(self, statement: str, ids: Sequence[str]) -> Iterator[Entity]:
        # a table made by hand may take Bob for bob, so the answer is looked at
        return (self._entity(row) for row in self._read(statement, ids) if row[1] in ids)

    def _scan(self, connection: Connection) -> Iterator[Entity]:
        with contextlib.closing(connection):
            yield from map(self._entity, _pages(
                lambda after, size: self._send(connection, _bind(connection, SELECT_PAGE, after, size))[0][1]))

    # Writing: one packet of several statements is one transaction. The server stops at the first that fails.

    def _store(self, wholes: Mapping[str, Any], bodies: Mapping[str, bytes], expect: int | None = None,
               erase: bool = False, fresh: bool = False) -> bool:
        if expect is not None and (type(expect) is not int or expect < 0):
            raise TypeError(f"expect is the version of an entity, or 0 for none, not {reprlib.repr(expect)}")

        begun = time.monotonic()

        def attempt(connection: Connection, lost: int) -> bool:
            if lost and bodies:                                 # if it was done, once more would be a version more
                rows = {(id, body) for _, id, _, body in self._read(SELECT_ENTITY, tuple(bodies))}
                if self._catalogue.history:                     # where another may have put over it since
                    rows |= {*self._read(SELECT_RECENT, tuple(bodies), int(time.monotonic() - begun) + 2)}
                if bodies.items() <= rows:
                    return True
            if expect is not None:
                id, = wholes
                found = dict(self._lock(connection, SELECT_VERSION, id)).get(id, 0)
                if found != expect:
                    raise Conflict(id, expect, found)
            return self._write(connection, wholes, bodies, expect, erase, fresh and not lost)[0][0] > 0
        return self._repeat(attempt, once=expect is not None)

    def _put_batch(self, pending: Mapping[str, Any]) -> None:
        if pending:
            self._store({id: whole for id, (_, whole, _) in pending.items()}, {id: body for id, (_, _, body) in pending.items()},
                        fresh=not any("id" in entity for entity, _, _ in pending.values()))
        for id, (entity, _, _) in pending.items():
            entity["id"] = id

    def _lock(self, connection: Connection, statement: str, id: str) -> Any:
        # The guard before the row: who held the row and waited for the guard, behind a rename, would stop who is to end first.
        begin, guards = [b"BEGIN"] * (self._local.depth == 0), self._local.catalogue.guards[:1]
        select = statement + "".join(map(GUARDED.format, guards)) + " FOR UPDATE"
        return self._send(connection, *begin, _bind(connection, select, [id]))[-1][1]

    def _write(self, connection: Connection, wholes: Mapping[str, Any], bodies: Mapping[str, bytes], expect: int | None,
               erase: bool = False, fresh: bool = False, tail: Sequence[bytes] = ()) -> list[tuple[int, Any]]:
        """Deletes the entities, inserts those that have bodies, and all index rows. Returns the results from the DELETE on.

        expect: the version that was found, and is to be replaced; another's put since then is a duplicate key. fresh: the
        ids were made for this write, so that there are no rows of them to be deleted.
        """
        catalogue, joined, ids = self._local.catalogue, self._local.depth > 0, tuple(sorted(wholes))
        versions = () if expect is None else (expect,)
        begin = [b"BEGIN"] * (expect is None and not joined)
        # Delete before insert, and not REPLACE: under a unique index that would remove another entity's row.
        delete = (DELETE_ENTITY + EXACTLY.format("id") * (not catalogue.exact["entities"])
                  + " AND added_id = %s" * len(versions) + "".join(map(GUARDED.format, catalogue.guards[:1])))
        packet = [_bind(connection, delete, *[ids] * (delete.count("%s") - len(versions)), *versions)]
        if bodies:
            packet.append(_bind_rows(connection, INSERT_ENTITY, bodies.items(), b",CURRENT_TIMESTAMP)"))
        if catalogue.history and (bodies or erase):
            packet.append(_bind(connection, INSERT_HISTORY if bodies else DELETE_HISTORY, ids))
        for index in catalogue.indexes.values():
            rows = {id: None if whole is None else index._row(whole) for id, whole in wholes.items()}
            packet += index._replace(connection, catalogue, rows, fresh)
        packet = begin + packet + [*tail] + [b"COMMIT"] * (not joined)
        if (size := sum(map(len, packet)) + len(packet)) > self._max_packet:
            raise ValueError(f"entity {ids[0]!r} needs a packet of {size} bytes; max_allowed_packet is {self._max_packet}")
        self._local.committing = not joined
        try:
            return self._send(connection, *packet)[len(begin):]
        except MySQLdb.IntegrityError as error:
            self._recover(connection, error)
            for index in filter(lambda index: index.unique, catalogue.indexes.values()):
                self._explain(connection, index, {id: whole and index._row(whole) for id, whole in wholes.items()})
            for id, _ in self._send(connection, _bind(connection, SELECT_VERSION, ids))[0][1]:
                if id not in wholes:
                    raise Error(f"the table entities takes {id!r} for an id that is to be put beside it: give its column id a "
                                f"collation that compares exactly, {EXACT[0]} or {EXACT[1]}") from error
            raise

    def _explain(self, connection: Connection, index: Index, rows: Mapping[str, Any]) -> None:
        """Raises Duplicate if others have these values. Else another was just inserting the same id: the write is repeated."""
        owners: dict[Any, str] = {}
        select = SELECT_OWNER.format(table=_quote(self._catalogue.tables[index.table]), names=index._names)
        for id, row in rows.items():
            if row:
                others = self._send(connection, _bind(connection, select, row, tuple(rows)))[0][1]
                if others or row in owners:
                    raise Duplicate(index, others[0][0] if others else owners[row], row)
                owners[row] = id

    def _update(self, connection: Connection, id: str, change: Callable[[Entity], Any], default: Any) -> Entity:
        local = self._local
        stored = [self._entity(row) for row in self._lock(connection, SELECT_ENTITY, id) if row[1] == id]
        if not stored and default is None:
            raise KeyError(id)
        entity = stored[0] if stored else Entity({**copy.deepcopy(default), "id": id})
        begun, local.depth = local.depth == 0, local.depth + 1  # what change calls joins in
        try:
            change(entity)
        finally:
            local.depth -= 1
        if local.doomed:
            raise Error(DOOMED)
        if entity.get("id") != id:
            raise ValueError(f"change made {reprlib.repr(entity.get('id'))} of the id {id!r}; put that as an entity of its own")
        _, whole, body = self._prepare(entity)
        found = stored[0].version if stored else 0
        results = self._write(connection, {id: whole}, {id: body}, found, tail=[_bind(connection, SELECT_STAMP, id)])
        entity.version, entity.updated = results[-1 - begun][1][0]
        return entity

    # The catalogue

    def _create_tables(self, history: bool) -> None:
        if "entities" not in self._refresh().exact:
            self._create(CREATE_ENTITIES)
        if history and not self._catalogue.history:
            self._create(CREATE_HISTORY)
            self._rename()                                      # so that programs which are running keep it, too
        if not self._catalogue.guards:
            with contextlib.suppress(Error):                    # who may create no table adds no index either
                self._create(CREATE_GUARD.format(_guard_name()))

    def _refresh(self) -> _Catalogue:
        """Reads what stands. The guard first: what is added later renames it, and a write that knows this name fails."""
        named = "entities", "entities_history", *self._names, *(name + BUILDING for name in self._names)
        for _ in range(100):                                    # MariaDB reads a directory, and may miss what is just renamed
            guards, rows = [rows for _, rows in self._repeat(
                lambda connection, _: self._send(connection, _bind(connection, SELECT_GUARDS),
                                                 _bind(connection, SELECT_CATALOGUE, COMMENTS, named)))]
            if guards or not self._catalogue.guards:
                break
            time.sleep(0.01)
        columns: dict[str, list[Any]] = {}
        for table, *column in rows:
            columns.setdefault(table, []).append(column)
        indexes, tables, id_type = {}, {}, "VARCHAR(36)"
        for table in columns.keys() - {"entities", "entities_history"}:
            name = table.removesuffix(BUILDING)
            types = {column: sql for column, sql, _, _ in columns[table] if column != "entity_id"}
            indexes[name], tables[name] = Index(name, types, unique=columns[table][0][3] == COMMENTS[True]), table
        for column, sql, collation, _ in columns.get("entities", ()):
            if column == "id":                                  # an index's entity_id is of the same type, or a join is slow
                id_type = sql + (f" CHARACTER SET {collation.split('_')[0]} COLLATE {collation}" if collation else "")
        exact = {table: all(column[2] in EXACT for column in columns[table]) for table in columns}
        catalogue = self._catalogue = _Catalogue([guard for guard, in guards], "entities_history" in columns,
                                     dict(sorted(indexes.items())), tables, exact, id_type)
        return catalogue                                        # another thread's may be older

    def _create(self, statement: str) -> None:
        statement += TABLE_OPTIONS + str(EXACT[self._mariadb])
        try:
            self._read(statement)
        except MySQLdb.Error as error:
            if _code(error) in DENIED:
                raise Error("a table is missing, and this account may not create it; its DBA can, by: "
                            + statement.replace("%%", "%").replace(BUILDING + "`", "`", 1)) from error
            if _code(error) != ER.TABLE_EXISTS_ERROR:
                raise
        self._refresh()

    def _rename(self, *tables: tuple[str, str]) -> None:
        """Renames tables, those that stand, and the guard: waits for the writes under way; later ones read the catalogue again."""
        def attempt(connection: Connection, _: int) -> None:
            pairs = [(old, new) for old, new in tables if old in self._local.catalogue.tables.values()]
            if pairs or not tables:
                pairs += [(guard, _guard_name()) for guard in self._local.catalogue.guards]
            if pairs:
                sql = "RENAME TABLE " + ", ".join(f"{_quote(old)} TO {_quote(new)}" for old, new in pairs)
                self._send(connection, _bind(connection, sql))
        self._repeat(attempt)
        self._refresh()

    # The one door to the driver

    def _read(self, sql: str, *args: Any) -> Any:
        return self._repeat(lambda connection, _: self._send(connection, _bind(connection, sql, *args))[0][1])

    def _repeat(self, attempt: Callable[[Connection, int], T], *, once: bool = False) -> T:
        """Calls attempt(connection, lost) till it goes through; inside a transaction() once.

        lost: the server's thread of a try that was cut off in its COMMIT, so that it may have been done, else 0; `once`: then
        Unknown is raised.
        """
        local, lost, tries, pause, end = self._local, 0, 0, 0.001, 0.0
        while True:
            if local.doomed:
                raise Error(DOOMED)
            known = local.catalogue = self._catalogue           # other threads may read it again, meanwhile
            local.committing, tries = False, tries + 1
            try:
                if local.connection is None or self._closed:
                    local.connection = self._open()
                self._outlive(local.connection, lost, end)
                result = attempt(local.connection, lost)
                if self._closed:                                # close() could not, as this call was under way
                    local.connection.close()
                return result
            except BaseException as error:
                code, end = _code(error), end or time.monotonic() + RETRY_SECONDS
                if local.depth:
                    if code == ER.NO_SUCH_TABLE and not local.answered and self._refresh().stamp() != known.stamp():
                        continue                                # the guard was renamed, and nothing of the packet was done
                    local.doomed = local.doomed or code is not None or isinstance(error, Duplicate)
                    raise
                local.doomed, thread = False, getattr(local.connection, "thread", 0)
                self._recover(local.connection, error)
                lost = lost or local.committing and code in LOST and thread
                final = (code not in AGAIN or tries > 2 and time.monotonic() > end or self._closed
                         or code == ER.NO_SUCH_TABLE and self._refresh().stamp() == known.stamp() and tries > 8)
                if lost and (once or final):
                    raise Unknown(code, f"the connection was lost; whether the write was done is not known: {error}") from error
                if final:
                    raise
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, 1)

    def _outlive(self, connection: Connection, thread: int, end: float) -> None:
        """Waits until the server has ended a thread whose connection was lost: it may be waiting for a lock still, and commit."""
        select = SELECT_AT_WORK.format(("performance", "information")[self._mariadb])   # MySQL's other one fails on bytes
        while thread and self._send(connection, _bind(connection, select, thread))[0][1][0][0]:
            if time.monotonic() > end:
                raise Unknown(CR.SERVER_LOST, "the connection was lost, and the server is still at work on the write")
            time.sleep(0.01)

    def _commit(self, connection: Connection) -> None:
        if self._local.doomed:
            raise Error(DOOMED)
        try:
            self._send(connection, b"COMMIT")
        except MySQLdb.Error as error:
            if _code(error) in LOST:
                raise Unknown(_code(error), f"the connection was lost; whether the write was done is not known: {error}") from error
            raise

    def _recover(self, connection: Connection, error: BaseException) -> None:
        """Leaves no transaction open behind a failure; a connection in doubt is not used again."""
        with contextlib.suppress(MySQLdb.Error):                # the failure that brought us here is the one to tell
            if isinstance(error, Exception) and _code(error) not in LOST and connection is not None:
                self._send(connection, b"ROLLBACK")
                return
        self._local.connection = None
        with contextlib.suppress(MySQLdb.Error, AttributeError):
            connection.close()

    def _send(self, connection: Connection, *statements: bytes) -> list[tuple[int, Any]]:
        """One round trip. Returns (rows affected, rows of the result) of each statement; an error ends the packet."""
        self._local.answered = False
        connection.query(b";".join(statements))
        self._local.answered, results = True, []
        try:
            while True:
                result = connection.store_result()
                if result is None and connection.field_count():
                    break                                       # the driver says nothing of a result that was cut off
                results.append((connection.affected_rows(), result.fetch_row(0) if result else ()))
                if connection.next_result() == -1:
                    break
        except UnicodeDecodeError:                              # nor of a row
            results.clear()
        if len(results) != len(statements):
            raise MySQLdb.OperationalError(CR.SERVER_LOST, "Lost connection to server in the middle of a result")
        return results

    def _open(self) -> Connection:
        if self._closed:
            raise Error("this Datastore is closed; open another")
        connection: Connection = MySQLdb.connect(**self._connect)
        self._connections.add(connection)
        connection.thread = connection.thread_id()
        *_, limits, (_, galera) = self._send(connection, *SESSION)
        self._max_packet, self._mariadb = limits[1][0]
        if galera:
            self._send(connection, WSREP)
        return connection

    def _forget(self) -> None:
        """In a forked child: the sockets are the parent's. What the child would say on them goes nowhere."""
        for connection in list(self._connections):
            with contextlib.suppress(MySQLdb.Error), open(os.devnull, "r+b") as null:
                os.dup2(null.fileno(), connection.fileno())
        self._connections, self._local = weakref.WeakSet(), _Local()


def _to_utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text + "+00:00")           # TIMESTAMP, in a session whose time zone is that


def _code(error: BaseException) -> Any:
    return error.args[0] if isinstance(error, MySQLdb.Error) and error.args else None


def _guard_name() -> str:
    return f"entities_guard_{os.urandom(8).hex()}"


def _pages(read: Callable[[int, int], Sequence[Any]]) -> Iterator[Any]:
    """The rows of read(after, size), page after page; each of about PAGE_BYTES of bodies, the first ones smaller."""
    after, size = 0, 100
    while rows := read(after, size):
        yield from rows
        after, taken = rows[-1][0], 1 + sum(len(row[3] or b"") for row in rows)
        size = max(1, min(PAGE, 2 * size, PAGE_BYTES * len(rows) // taken))


class Shape(NamedTuple):
    """A type of dictionary: how many entities have it, {field: type}, the id of one."""

    entities: int
    fields: dict[str, str]
    example: Any


class Schema:
    """What is stored: `.count` entities, `.shapes` (the types of dictionary, most frequent first), and `.fields`:
    {field: {type: share of the entities}}. A field of a dictionary in one is address.city, of those in a list tags[].name."""

    def __init__(self, entities: Iterable[Mapping[Any, Any]]) -> None:
        counts, examples = collections.Counter[Any](), dict[Any, Any]()
        types: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for entity in entities:
            shape = tuple(sorted(_fields(entity).items()))
            counts[shape] += 1
            examples.setdefault(shape, entity.get("id"))
        for shape, count in counts.items():
            for field, kind in shape:
                types[field][kind] += count
        self.count = sum(counts.values())
        self.shapes = [Shape(count, dict(shape), examples[shape]) for shape, count in counts.most_common()]
        self.fields = {field: {kind: count / self.count for kind, count in kinds.most_common()}
                       for field, kinds in sorted(types.items(), key=lambda item: (-sum(item[1].values()), item[0]))}

    def __str__(self) -> str:
        groups: list[list[Shape]] = []                          # what differs from a frequent one in a key or two joins it
        for shape in self.shapes:
            near = [group for group in groups[:100] if len(group[0].fields.keys() ^ shape.fields.keys()) <= 2]
            near[0].append(shape) if near else groups.append([shape])
        sizes = {id(group): sum(shape.entities for shape in group) for group in groups}
        groups.sort(key=lambda group: -sizes[id(group)])
        lines = [f"{self.count:,} entities, {len(self.shapes):,} types of dictionary in {len(groups):,} groups of like keys", "",
                 "   count   share  types  example and fields"]
        for group in groups[:12]:
            lines.append(f"{sizes[id(group)]:8,} {sizes[id(group)] / self.count:7.1%} {len(group):6,}  {group[0].example}")
            lines += textwrap.wrap(", ".join(group[0].fields), 80, initial_indent=" " * 25, subsequent_indent=" " * 25)[:4]
        lines += [f"          … and {len(groups) - 12:,} others"] * (len(groups) > 12)
        width = min(max(map(len, self.fields), default=5), 36)
        lines += ["", f"{'field':{width}}   share  types"]
        for field, kinds in list(self.fields.items())[:50]:
            text = ", ".join(kind if len(kinds) == 1 else f"{kind} {share:.1%}" for kind, share in kinds.items())
            lines.append(f"{field:{width}.{width}} {sum(kinds.values()):7.1%}  {text}"[:80])
        lines += [f"… and {len(self.fields) - 50:,} others"] * (len(self.fields) > 50)
        return "\n".join(lines)


def _fields(value: Any, path: str = "") -> dict[str, str]:
    """{field: type} of a value, dictionaries and those in lists gone into."""
    if isinstance(value, dict) and value and (not path or len(value) <= 30):
        return {name: kind for key, item in value.items()
                for name, kind in _fields(item, f"{path}.{key}" if path else str(key)).items()}
    kind = "None" if value is None else type(value).__name__
    if not isinstance(value, (list, tuple, set, frozenset)) or not value:
        return {path: kind}
    inner = {name: found for item in value if isinstance(item, dict) and item for name, found in _fields(item, path + "[]").items()}
    return {path: f"{kind} of {' | '.join(sorted({type(item).__name__ for item in value}))}", **inner}


def _jsonable(value: Any) -> Any:
    """What JSON cannot say becomes {"its type": its text}; bytes are in hex, and keys that are no text as Python writes them."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, (str, int)) or isinstance(value, float) and value - value == 0:
        return value
    return {type(value).__name__: [_jsonable(item) for item in value] if isinstance(value, (set, frozenset, collections.deque)) else
            value.hex() if isinstance(value, (bytes, bytearray)) else getattr(value, "isoformat", value.__str__)()}


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("slim", add_help=False, description="Shows what a slim datastore holds.", epilog=(
        "find takes key=value, key=low..high (half open, either end may be left out), key=a,b (one of). slim connects as mysql "
        "does, and reads the same option files."))
    parser.add_argument("--help", action="help", help="show this, and leave")
    for letter, name, text in (("h", "host", "the server"), ("P", "port", "its TCP port"), ("S", "socket", "its Unix socket"),
                               ("u", "user", "account"), ("p", "password", "-pSECRET, or -p alone: ask for it")):
        parser.add_argument(f"-{letter}", f"--{name}", help=text, type=int if name == "port" else str)
    parser.add_argument("--defaults-file", help="read this option file alone")
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each thing")
    parser.add_argument("database")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="schema | get | find | indexes | populate")
    verbs.add_parser("schema", help="the types of dictionary stored").add_argument("--limit", type=int, help="look at so many")
    verbs.add_parser("get", help="an entity").add_argument("id")
    find = verbs.add_parser("find", help="the entities that an index finds")
    find.add_argument("index")
    find.add_argument("match", nargs="*", metavar="key=value")
    find.add_argument("--limit", type=int, help="at the most so many")
    find.add_argument("--reverse", action="store_true", help="the last first")
    verbs.add_parser("indexes", help="the index tables that stand")
    verbs.add_parser("populate", help="make an index agree with the entities").add_argument("index")
    return parser.parse_args(["--password=" if word in ("-p", "--password") else word for word in words])


def _match(index: Index, words: Iterable[str]) -> dict[str, Any]:
    match: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in index.types:
            raise ValueError(f"{word!r} is not key=value with a property of index {index.table}: {', '.join(index.types)}")
        cls: Any = index.types[name].python
        parse: Any = {bool: {"true": True, "false": False}.__getitem__, bytes: str.encode}.get(
            cls, getattr(cls, "fromisoformat", cls))
        low, dots, high = text.partition("..")
        try:
            match[name] = (slice(parse(low) if low else None, parse(high) if high else None) if dots else
                           {parse(part) for part in text.split(",")} if "," in text else parse(text))
        except (ValueError, ArithmeticError, KeyError) as error:
            raise ValueError(f"{text!r} is no {cls.__name__}, which {name} is in index {index.table}") from error
    return match


def _lines(options: argparse.Namespace, store: Datastore) -> Iterator[Any]:
    """What a command prints: values for JSON, or text."""
    progress: Any = None
    verb, indexes = options.verb, {index.table: index for index in store.indexes}
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from tqdm import tqdm as progress
    if verb in ("find", "populate") and options.index not in indexes:
        raise ValueError(f"no index {options.index!r} stands in {options.database}, but: {', '.join(indexes) or 'none'}")
    if verb == "schema":
        schema = store.schema(limit=options.limit, progress=progress)
        yield from [shape._asdict() for shape in schema.shapes] if options.json else [str(schema)]
    elif verb in ("get", "find"):
        found = iter([store.get(options.id)]) if verb == "get" else indexes[options.index].find(
            store, _match(indexes[options.index], options.match), reverse=options.reverse, limit=options.limit)
        for entity in found:
            if entity is None:
                raise ValueError(f"there is no entity {options.id!r}")
            yield entity if options.json else _text(entity)
    elif verb == "indexes":
        for index in indexes.values():
            types, standing = {name: column.sql for name, column in index.types.items()}, store._catalogue.tables[index.table]
            state = {"index": index.table, "properties": types, "unique": index.unique, "populated": standing == index.table}
            yield state if options.json else (f"{index.table}  {', '.join(f'{name} {sql}' for name, sql in types.items())}"
                                              f"{'  unique' * index.unique}{'  not populated' * (standing != index.table)}")
    else:
        changed = indexes[options.index].populate(store, progress=progress)
        yield {"changed": changed} if options.json else f"{changed:,} rows had to be changed"


def _text(entity: Entity) -> str:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    width = max(map(len, map(str, entity)), default=0)
    lines = [f"  {key!s:{width}}  {value if isinstance(value, str) else repr(value)}" for key, value in entity.items()]
    return "\n".join([f"{bold}{entity.get('id')}{plain}  version {entity.version}, {entity.updated:%Y-%m-%d %H:%M:%S} UTC", *lines])


def main(words: Sequence[str] | None = None) -> int:
    """The command line, `python -m slim`. Returns the exit status: 0, 1 after an error; if called wrongly it exits with 2."""
    options = _arguments(sys.argv[1:] if words is None else words)
    connect = {"port": options.port, "unix_socket": options.socket, "read_default_file": options.defaults_file}
    try:
        password = getpass.getpass("Enter password: ") if options.password == "" else options.password
        with Datastore(options.host, options.user, password, options.database, read_default_group="client", **{
                name: value for name, value in connect.items() if value is not None}) as store:
            for line in _lines(options, store):
                print(json.dumps(_jsonable(line), ensure_ascii=False) if options.json else line, flush=True)
    except (BrokenPipeError, KeyboardInterrupt):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)            # who reads has gone: nothing more to say, at exit neither
        return 1
    except (Error, MySQLdb.Error, TypeError, ValueError) as error:
        print("slim:", " ".join(str(error.args[-1] if _code(error) else error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
