"""slim: a schema-less, indexed datastore on MySQL, in one module, after the design that FriendFeed published in 2009.

Store dictionaries now, query them by a few properties, never run a migration; nothing acknowledged is ever lost.

    >>> import slim
    >>> by_user = slim.Index("index_user_id", "user_id")
    >>> store = slim.Datastore("localhost", "me", "secret", "app", indexes=[by_user])  # makes what is missing
    >>> key = store.put({"user_id": "bob", "title": "Hello"})       # one round trip, one transaction
    >>> [found["title"] for found in by_user.get_all(store, user_id="bob")]     # a list, maybe empty; one join
    ['Hello']
    >>> entity = store.update(key, lambda entity: entity.update(likes=1))       # KeyError where there is none
    >>> key = store.put({**entity, "title": "Hi"}, expect=entity.version)       # else Conflict: another was faster
    >>> store.get(key)["title"], store.delete(key), store.get(key), len(store)  # get: a dict, or None; one round trip
    ('Hi', True, None, 0)

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
import copyreg
import datetime as dt
import enum
import fractions
import functools
import getpass
import io
import ipaddress
import itertools
import json
import operator
import os
import pathlib
import pickle
import random
import re
import reprlib
import socket
import sys
import textwrap
import threading
import time
import types
import uuid
import weakref
import zlib
import zoneinfo
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar, cast

import MySQLdb
from MySQLdb.constants import CR, ER, FIELD_TYPE
from MySQLdb.converters import conversions

__all__ = ["ANY", "Conflict", "Corrupt", "Datastore", "Duplicate", "Entity", "Error", "Index", "NotPopulated", "Schema",
           "Unknown", "Untrusted", "decode", "encode"]
__version__ = "1.0.0"

ANY = "any"                         # classes=ANY reads any pickle, as pickle does: for databases that only you write to
MAX_SIZE = 64 << 20                 # bytes that a body may have when decompressed
MAX_BODY = (1 << 24) - 1            # bytes of a MEDIUMBLOB
MAX_VERSION = (1 << 64) - 1         # a BIGINT UNSIGNED
MAX_OBJECTS = 1 << 20               # lists, dictionaries and sets of a body: one byte of it makes a set of 216 bytes
MAX_TUPLES = 40_000                 # tuples, and calls, of a body: nested, each takes C's stack when what it made is hashed or ends
PAGE, PAGE_BYTES = 5_000, 4 << 20   # rows of one result at the most; bytes of bodies that a page of a scan aims at
BATCH, BATCH_BYTES = 1_000, 4 << 20     # entities, and bytes of SQL at the most, of one transaction of put_many
LEVEL = 1                           # of zlib: at 300 bytes all are within 1 %; at 6 kB 6 saves 7 % of bytes for 1.7 times the time
PROTOCOL = 5                        # of pickle; every Python that runs slim reads it
CLOSED = "this Datastore is closed; open another"
RETRY_SECONDS = 30.0                # how long a call is tried again on deadlocks and lost connections
EXACT = "utf8mb4_0900_bin", "utf8mb4_nopad_bin", None   # collations that compare as Python does; None: bytes
ORPHAN = None, None, True           # the version and row of an entity that is not there, but whose row may be
DROPS = 23                          # characters of a guard's name that tell whether an index was dropped
BUILDING = "~"                      # ends the name of an index table that is not populated yet
COMMENTS = "slim index", "slim unique index"    # by its comment an index table is known

# The server, or the way to it, is gone. 1836: read-only, 1927: killed, 2027: cut off, 3100: no majority, 4031: idle too long
LOST = {CR.CONNECTION_ERROR, CR.CONN_HOST_ERROR, CR.SERVER_GONE_ERROR, CR.SERVER_LOST, CR.SERVER_LOST_EXTENDED,
        CR.SERVER_HANDSHAKE_ERR, ER.UNKNOWN_COM_ERROR, ER.SERVER_SHUTDOWN, ER.ERROR_DURING_COMMIT,
        ER.OPTION_PREVENTS_STATEMENT, 1836, 1927, 2027, 3100, 4031}
# Rolled back, and worth another try; 3101: Group Replication did so at COMMIT, 8002, 8022: TiDB. DUP_ENTRY: two were
# inserting one id. SUBQUERY_NO_1_ROW: CHECK_DELETED found none. TABLE_EXISTS_ERROR: another was faster to create it.
AGAIN = LOST | {ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, ER.DUP_ENTRY, ER.SUBQUERY_NO_1_ROW, ER.NO_SUCH_TABLE,
                ER.TABLE_EXISTS_ERROR, 3101, 8002, 8022}
REFUSED = {ER.OPTION_PREVENTS_STATEMENT, 1836, 4031}            # of LOST, those by which nothing was done
DENIED = {ER.DBACCESS_DENIED_ERROR, ER.TABLEACCESS_DENIED_ERROR, ER.SPECIFIC_ACCESS_DENIED_ERROR, ER.OPTION_PREVENTS_STATEMENT}

T = TypeVar("T")
Progress = Callable[..., Iterable[Any]]
Connection = Any                    # MySQLdb's stubs type neither its connections nor their results


class Error(Exception):
    """What all of slim's own errors derive from. The driver's pass through as MySQLdb's."""

    def __init__(self, *args: Any, **carried: Any) -> None:
        super().__init__(*args)
        vars(self).update(carried)


class Conflict(Error):
    """Another version than the expected one is current. Carries `.id`, `.expected` and `.found` (0: no entity)."""

    id: str
    expected: int
    found: int


class Duplicate(Error):
    """A unique index has these values for another entity. Carries `.index` and `.id`, the other entity's."""

    index: Index
    id: str


class NotPopulated(Error):
    """The index does not stand, or is not filled yet; it never answers with half the truth."""


class Corrupt(Error):
    """A body is no zlib, no pickle or no dictionary, or is too large. Carries `.id` (None outside a store)."""

    id: str | None = None


class Untrusted(Corrupt):
    """A body names a class that is not allowed; nothing of it was run. Carries `.id` (None outside a store)."""


class Unknown(Error, MySQLdb.OperationalError):
    """The connection was lost during COMMIT: whether the write was done is not known. Read, then decide."""

    thread: int                         # of the server: it may be at work still


# SQL by name. Identifiers are quoted into {}, values are bound to %s, always.
SESSION = (b"SET SESSION time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
           b"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", b"SELECT @@max_allowed_packet, VERSION() LIKE '%MariaDB%'",
           b"SHOW VARIABLES LIKE 'wsrep_retry_autocommit'")
WSREP = b"SET SESSION wsrep_retry_autocommit = 0"     # Galera would repeat the last statement alone, without its packet
SNAPSHOT = b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", b"START TRANSACTION WITH CONSISTENT SNAPSHOT"
TABLE_OPTIONS = [f" ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE={collation}" for collation in EXACT[:2]]
CREATE_ENTITIES = """CREATE TABLE entities (
 added_id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, id VARCHAR(36) NOT NULL,
 updated TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, body MEDIUMBLOB, UNIQUE KEY (id), KEY (updated))"""
CREATE_HISTORY = """CREATE TABLE IF NOT EXISTS `entities_history~` (
 id VARCHAR(36) NOT NULL, number BIGINT UNSIGNED NOT NULL, added_id BIGINT UNSIGNED NOT NULL,
 updated TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, body MEDIUMBLOB, PRIMARY KEY (id, number))"""
CREATE_GUARD = "CREATE TABLE {} (id TINYINT NOT NULL PRIMARY KEY) COMMENT='slim guard'"
# On Galera a write that was sent to the other nodes before the guard was renamed, and comes after it, is replayed, its guard
# not asked. A statement that claims the table which every write changes lets none by that began before.
SETTLE = "ANALYZE TABLE entities"
CREATE_INDEX = "CREATE TABLE {table} ({columns}, entity_id {id} NOT NULL UNIQUE, PRIMARY KEY ({key}){more}) COMMENT='{comment}'"
SELECT_AT_WORK = """SELECT id FROM {}_schema.processlist
 WHERE id = %s AND id <> CONNECTION_ID() AND command <> 'Sleep'"""       # a server that was started again counts anew
SELECT_GUARDS = "SHOW TABLES LIKE 'entities\\_guard\\_%%'"
SELECT_CATALOGUE = """SELECT table_name, column_name, column_type, collation_name, table_comment
 FROM information_schema.columns AS c JOIN information_schema.tables AS t USING (table_schema, table_name)
 WHERE table_schema = DATABASE() AND CAST(c.table_name AS BINARY) = CAST(t.table_name AS BINARY)
  AND (table_comment IN %s OR CAST(table_name AS BINARY) IN %s) ORDER BY table_name, ordinal_position"""
SELECT_ENTITY = "SELECT added_id, id, updated, body FROM entities WHERE id IN %s"
SELECT_PAGE = "SELECT added_id, id, updated, body FROM entities WHERE added_id > %s ORDER BY added_id LIMIT %s"
SELECT_NEWEST = "SELECT added_id, id, updated, body FROM entities WHERE added_id < %s ORDER BY added_id DESC LIMIT %s"
SELECT_HISTORY = "SELECT added_id, id, updated, body FROM entities_history WHERE id IN %s ORDER BY number DESC"
SELECT_RECENT = "SELECT id, IF(updated >= NOW() - INTERVAL %s SECOND, body, '') FROM entities WHERE id IN %s"
SELECT_VERSION = "SELECT id, added_id FROM entities WHERE id IN %s"
SELECT_STAMP = "SELECT added_id, updated FROM entities WHERE id IN %s"
SELECT_COUNT = "SELECT COUNT(*), COALESCE(MAX(added_id), 0) FROM entities"
CHECK_DELETED = b"SELECT IF(ROW_COUNT() = 1, 1, (SELECT 1 UNION SELECT 2))"  # else 1242, which ends the packet
DELETE_ENTITY = "DELETE FROM entities WHERE id IN %(ids)s"
EXACTLY = " AND CAST(CONVERT({} USING utf8mb4) AS BINARY) IN %(ids)s"     # where the table's collation would delete Bob for bob
GUARDED = " AND NOT EXISTS (SELECT 1 FROM {})"       # always true; keeps the guard from being renamed until COMMIT
INSERT_ENTITY = b"INSERT INTO entities (id, body, updated) VALUES "  # 2009's `updated` has no default
INSERT_HISTORY = """INSERT INTO entities_history (id, number, added_id, updated, body)
 SELECT e.id, 1 + (SELECT COALESCE(MAX(h.number), 0) FROM entities_history AS h WHERE h.id = e.id), e.added_id,
  e.updated, e.body FROM entities AS e WHERE e.id IN %s"""      # numbered, as added_id need not rise in commit order
DELETE_HISTORY = "DELETE FROM entities_history WHERE id IN %s"
UNLESS_STORED = " AND NOT EXISTS (SELECT 1 FROM entities AS e WHERE e.id IN %s)"
DELETE_ROW = "DELETE FROM {table} WHERE entity_id IN %(ids)s"
INSERT_ROW = "INSERT INTO {table} ({names}, entity_id) VALUES "
SELECT_RANGE = "SELECT id, added_id FROM entities WHERE added_id >= %s AND added_id <= %s"     # in half the time of IN
LOCK_ROW = "SELECT entity_id, NULL FROM {table} WHERE entity_id IN %s FOR UPDATE"
SELECT_OWNER = "SELECT i.entity_id FROM {table} AS i WHERE ({columns}) = %s AND i.entity_id NOT IN %s"
# STRAIGHT_JOIN: read the index first, in its order; on a small table the optimizer would read and sort the entities.
SELECT_MATCH = """SELECT e.added_id, e.id, e.updated, e.body, {place} FROM {table} AS i STRAIGHT_JOIN entities AS e
 ON e.id = i.entity_id WHERE {where} ORDER BY {order} LIMIT %s"""
COUNT_MATCH = "SELECT COUNT(*) FROM {table} AS i WHERE {where}"
SELECT_COMPARED = """SELECT e.added_id, e.id, e.updated, e.body, i.entity_id, {columns} FROM entities AS e
 LEFT JOIN {table} AS i ON i.entity_id = e.id WHERE e.added_id > %s AND e.added_id <= %s ORDER BY e.added_id LIMIT %s"""
SELECT_ORPHANS = """SELECT i.entity_id FROM {table} AS i LEFT JOIN entities AS e ON e.id = i.entity_id
 WHERE i.entity_id > %s AND e.id IS NULL ORDER BY i.entity_id LIMIT %s"""


class Entity(dict[Any, Any]):
    """A dictionary out of the store, with `.version` (int) and `.updated` (aware datetime, UTC). Pickled as a dict."""

    __slots__ = "updated", "version"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (), None, None, iter(self.items())

    def _stamped(self, version: int, updated: dt.datetime) -> Entity:
        self.version, self.updated = version, updated.replace(tzinfo=dt.timezone.utc)   # as the session's time zone is
        return self


def _object(cls: Any, args: Sequence[Any], state: Any) -> Any:
    """An application's object. Pickle has opcodes for it, NEWOBJ and BUILD, by which a body could alter a class, too."""
    value = cls.__new__(cls, *args)
    if state is None or isinstance(value, enum.Enum):           # an enum's member is the process's own
        return value
    if hasattr(cls, "__setstate__"):
        value.__setstate__(state)
    else:
        attributes, slots = state if isinstance(state, tuple) else (state, {})
        if attributes:
            vars(value).update(attributes)
        for name in slots:
            setattr(value, name, slots[name])
    return value


def _defaultdict(factory: str) -> Any:
    return collections.defaultdict(_FACTORIES[factory])


def _python_2(cls: Any, state: Any, *more: Any) -> Any:
    return cls(state.encode("utf-8", "surrogateescape") if isinstance(state, str) else state, *more)


# What a body may name: classes and functions of which a call makes no more than it is given, so that deque, Counter, Fraction and
# Decimal take no range, network, digits or "1e999999999". Sets and the like are opcodes.
_DATES = dt.datetime, dt.date, dt.time, dt.timedelta, dt.timezone
_PATHS = pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath
_FACTORIES = {cls.__name__: cls for cls in (int, str, float, bool, bytes, list, dict, set, tuple)} | {"None": None}
_NAMES = {factory: name for name, factory in _FACTORIES.items()}
_KNOWN: dict[tuple[str, str], Any] = {(cls.__module__, cls.__name__): cls for cls in (
    *_DATES, complex, range, slice, dict, uuid.UUID, zoneinfo.ZoneInfo, collections.OrderedDict, ipaddress.IPv4Address,
    ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network, ipaddress.IPv4Interface, ipaddress.IPv6Interface)} | {
    (module, cls.__name__): cls for module in ("pathlib", "pathlib._local") for cls in _PATHS} | {    # the latter in 3.13
    ("decimal", "Decimal"): lambda text: Decimal("" + text), ("slim", "_object"): _object, ("slim", "_defaultdict"): _defaultdict,
    ("collections", "deque"): lambda items=(), *more: collections.deque(() + items, *more),
    ("collections", "Counter"): lambda items: collections.Counter(dict.copy(items)),
    ("fractions", "Fraction"): lambda *pair: fractions.Fraction(*map(operator.index, pair))}
_KNOWN_2 = {("__builtin__", cls.__name__): cls for cls in (set, frozenset, complex, list, dict, object)} | {     # Python 2's
    ("collections", cls.__name__): cls for cls in (collections.OrderedDict, collections.deque)} | {
    ("datetime", cls.__name__): functools.partial(_python_2, cls) for cls in _DATES} | {
    ("collections", "defaultdict"): lambda factory=None, *more: collections.defaultdict(getattr(factory, "cls", factory), *more),
    ("copy_reg", "_reconstructor"): lambda cls, *_: cls.__new__(cls), ("uuid", "UUID"): uuid.UUID,
    ("decimal", "Decimal"): _KNOWN["decimal", "Decimal"]}
_COPYING = {range, dict, list, set, frozenset, collections.OrderedDict, collections.deque, *_PATHS}      # what they are given
_SIZED = str, bytes, bytearray, list, tuple, dict, set, frozenset, collections.deque

# A run of opcodes that a body may have, then the size of a string if it is of four or eight bytes. Not among them are EXT, INST,
# OBJ, PERSID, and a PUT to so high a place that C's memo, an array, would fill the memory; NEWOBJ and BUILD are of Python 2's
# UUIDs alone, with whose names they are harmless.
_SHORT = b"|".join([re.escape(bytes([size])) + b".{%d}" % size for size in range(256)])
_OPCODES = re.compile(rb"(?s:[\x94N\x88\x89\x85\x86\x87()\]}eausRtdl012.\x8f\x90\x91\x93]{1,99}|[\x8cC\x8aU](?:" + _SHORT +
                      rb")\x94?|K.|M..|[Jj].{4}|[hq\x80].|r..[\0-\x0f]\0|[G\x95].{8}|[pg]\d{1,6}\n|[IFLSV][^\n]*\n|"
                      rb"c[^\n]*\n[^\n]*\n){0,1000}(?s:[XBT\x8b](.{4})|[\x8d\x8e\x96](.{8}))?")
_OPCODES_2 = re.compile(_OPCODES.pattern.replace(b"[", rb"[b\x81", 1))
_TUPLES, _CALLS, _OBJECTS = [[bytes([code]) for code in codes] for codes in (b"\x85\x86\x87t", b"R\x81b", b"]}ld\x8f\x91")]
# The same, one after the other: what is captured are opcodes without an argument.
_STEPS = re.compile(_OPCODES_2.pattern.partition(b"{0,1000}")[0].replace(b"[", b"([", 1).replace(b"{1,99}", b"{1,99})", 1))


def _check_opcodes(data: bytes, allowed: re.Pattern[bytes]) -> None:
    position = tuples = calls = objects = 0
    many = len(data) > MAX_TUPLES < sum(map(data.count, _TUPLES + _CALLS + _OBJECTS))    # perhaps, but most will be text
    while position != len(data):
        start, run = position, cast("re.Match[bytes]", allowed.match(data, position))
        position = run.end()
        if position <= start:
            raise pickle.UnpicklingError(f"opcode {data[start:start + 1]!r} at byte {start} is not allowed, or cut short")
        if many:
            codes = b"".join(_STEPS.findall(data, start, run.start(run.lastindex) - 1 if run.lastindex else position))
            tuples, objects = tuples + sum(map(codes.count, _TUPLES)), objects + sum(map(codes.count, _OBJECTS))
            calls += sum(map(codes.count, _CALLS))              # what they nest takes C's stack, too, when it ends
            if max(tuples, calls) > MAX_TUPLES or objects > MAX_OBJECTS:
                raise pickle.UnpicklingError(f"it has over {MAX_TUPLES:,} tuples, dates or calls, or {MAX_OBJECTS:,} lists, "
                                             "dictionaries and sets: more than one entity may have")
        if run.lastindex:
            position += int.from_bytes(run[run.lastindex], "little")


class _Unpickler(pickle.Unpickler):
    """Reads what `_check_opcodes` let through. Nothing is imported: a name that is not known is Untrusted."""

    known: Mapping[tuple[str, str], Any]
    left: int                                                   # of what the calls may be given in all
    unused: set[Any]                                            # what is named, and not called yet

    def find_class(self, module: str, name: str) -> Any:
        """What a body means by a name."""
        if (module, name) not in self.known:
            raise Untrusted(f"{module}.{name} is not among the types that a body may name; allow the class by Datastore(…, "
                            "classes=[…]), or all by classes=slim.ANY, if nobody else can write to the database")
        found = self.known[module, name]
        if isinstance(found, type) and found not in _COPYING:
            return found

        def call(*args: Any) -> Any:
            """The same, within what is left: a fresh function each time, as BUILD may alter it."""
            sizes = [arg.count("/") + arg.count("\\") >> 2 for arg in args] if found in _PATHS else [
                (arg.bit_length() >> 3) + (arg.bit_length() ** 2 >> 20) if isinstance(arg, int) else len(arg)   # to divide
                for arg in args if isinstance(arg, (int, *_SIZED))]
            self.left -= len(args) + sum(sizes)
            self.unused.discard(found)
            if self.left < 0:                                   # one object was given again and again
                raise pickle.UnpicklingError("its calls would make more than it has")
            return found(*args)
        self.unused.add(found)
        call.cls = found                                        # type: ignore[attr-defined]     # Python 2's defaultdict asks
        return call


class _Pickler(pickle.Pickler):
    dispatch_table = collections.ChainMap[Any, Any]({           # first, what pickle would write with names that are not known
        uuid.UUID: lambda value: (uuid.UUID, (value.hex,)),
        zoneinfo.ZoneInfo: lambda value: (zoneinfo.ZoneInfo, (value.key,)),
        fractions.Fraction: lambda value: (fractions.Fraction, (value.numerator, value.denominator)),
        collections.defaultdict: lambda value: (_defaultdict, (_NAMES[value.default_factory],), None, None,
                                                iter(value.items()))}, copyreg.dispatch_table)
    doubtful = False                                            # whether it met more than is always read again
    met: set[int]                                               # an object met again, before it is memoized, is inside of itself

    def reducer_override(self, value: Any) -> Any:
        """How a value is pickled whose type has no opcode: an application's object by `_object`."""
        if type(value) in (*_DATES, Decimal, uuid.UUID):
            self.met.add(id(type(value)))
            return NotImplemented
        if id(value) in self.met and isinstance(value, type):   # what one of those is made by
            return NotImplemented
        self.doubtful = True
        if type(value) in self.dispatch_table or isinstance(value, (type, types.FunctionType)):
            return NotImplemented
        if isinstance(reduced := value.__reduce_ex__(PROTOCOL), str):       # the name of a global
            return reduced
        call, args, state, *more = reduced = (*reduced, None, None)[:max(5, len(reduced))]
        if call is copyreg.__newobj__:                          # type: ignore[attr-defined]
            if id(value) in self.met:
                raise ValueError(f"an object of {type(value).__qualname__} holds itself; give it the other's id")
            self.met.add(id(value))
            return _object, (args[0], args[1:], state), None, *more
        return reduced


def _allowed(classes: Any) -> Any:
    """What bodies may name, {(module, name): class}, with an application's classes; ANY is ANY."""
    if classes == ANY or isinstance(classes, dict):
        return classes
    return _KNOWN | {(cls.__module__, cls.__qualname__): cls for cls in classes}


def _load(data: bytes, known: Any) -> Any:
    if known == ANY:
        return pickle.loads(data, encoding="utf-8", errors="surrogateescape")
    python_2 = data[:1] != b"\x80" or data[1] <= 2
    _check_opcodes(data, _OPCODES_2 if python_2 else _OPCODES)
    unpickler = _Unpickler(io.BytesIO(data), encoding="utf-8", errors="surrogateescape")
    unpickler.known, unpickler.left, unpickler.unused = _KNOWN_2 if python_2 else known, len(data), set()
    value = unpickler.load()
    if unpickler.unused and not python_2:                       # there, it may be the factory of a defaultdict
        raise pickle.UnpicklingError("it holds a class or function by its name, which only calls of it may have")
    return value


def encode(entity: Mapping[Any, Any], classes: Any = (), max_size: int = MAX_SIZE) -> bytes:
    """The body of a dictionary: a pickle of protocol 5, compressed by zlib.

    classes: the application's classes that may be in it, or ANY; max_size: bytes, the most before it is compressed. Raises
    Untrusted for a value that `decode` would refuse, TypeError for one that cannot be pickled, ValueError if it is larger.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, PROTOCOL)
    pickler.met = set()
    try:
        pickler.dump(dict(entity))
        data = buffer.getvalue()
        if pickler.doubtful or len(data) > MAX_TUPLES:
            _load(data, _allowed(classes))
    except Untrusted:
        raise
    except Exception as error:                                  # pickling runs the values' own code
        raise TypeError(f"the entity {reprlib.repr(entity)} cannot be pickled and read again: {error}") from error
    if len(data) > max_size:
        raise ValueError(f"the entity {reprlib.repr(entity)} has {len(data)} bytes when pickled, over max_size={max_size}")
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


_made, _made_lock = [0], threading.Lock()                       # the time of the newest id, in 1/4096 ms


def _new_id() -> str:
    """A UUID of version 7 (RFC 9562, method 3: 12 further bits of time). Those of a process sort as they were made."""
    with _made_lock:
        _made[0] = made = max(_made[0] + 1, time.time_ns() * 4096 // 1_000_000)
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


def _literal(connection: Connection, value: Any) -> Any:
    if type(value) is str:                                      # the short way for what is frequent
        return connection.string_literal(value.encode())
    return b"%d" % value if type(value) is int else connection.literal(value)


def _listed(quoted: Mapping[str, bytes]) -> bytes:
    return b"(" + b",".join(quoted.values()) + b")"


SQL_TYPES: dict[type, str] = {
    str: "VARCHAR(191)", int: "BIGINT", float: "DOUBLE", bool: "TINYINT(1)", bytes: "VARBINARY(191)",
    Decimal: "DECIMAL(65,30)", dt.date: "DATE", dt.datetime: "DATETIME(6)", uuid.UUID: "BINARY(16)"}
_BITS = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}
_PYTHON: dict[str, Any] = {
    "varchar": str, "char": str, "varbinary": bytes, "binary": bytes, "binary(16)": uuid.UUID, "double": float, "decimal": Decimal,
    "date": dt.date, "datetime": dt.datetime, **dict.fromkeys(_BITS, int), "tinyint(1)": bool}
_FITS: dict[type, Callable[[Any, Any], bool]] = {               # what is rounded or cut would not be found again
    str: lambda column, text: len(text) <= column.size and _is_unicode(text) and not (column.name == "char" and text[-1:] == " "),
    bytes: lambda column, data: len(data) <= column.size and (column.name != "binary" or len(data) == column.size),
    int: lambda column, number: number in column.range,
    float: lambda column, number: abs(number) < float("inf"),
    Decimal: lambda column, number: number.is_finite() and -number.as_tuple().exponent <= column.scale and (
        not number or number.adjusted() < column.size - column.scale),
    dt.datetime: lambda column, moment: moment.microsecond % 10 ** (6 - column.size) == 0}


class _Column:
    """A property of an index: its type in Python and in MySQL, and what fits."""

    def __init__(self, declared: Any) -> None:
        self.sql = next((sql for cls, sql in SQL_TYPES.items() if cls is declared), str(declared))
        parts = re.fullmatch(r"(\w+) *(?:\( *(\d+) *(?:, *(\d+) *)?\))?( +unsigned)?", self.sql.lower())
        if not parts or parts[1] not in _PYTHON or not parts[2] and _PYTHON[parts[1]] in (str, bytes, Decimal) or (
                parts[3] and parts[1] != "decimal" or parts[4] and parts[1] not in _BITS):      # it would round, or refuse
            raise TypeError(f"{declared!r} is no type for a property; take one of {', '.join(cls.__name__ for cls in SQL_TYPES)}, "
                            f"or as a string one of {', '.join(_PYTHON)}, with its size")
        self.name, self.size, self.scale = parts[1], int(parts[2] or 0), int(parts[3] or 0)
        self.python: Any = _PYTHON.get(f"{self.name}({self.size})", _PYTHON[self.name])
        values = 1 << _BITS.get(self.name, 0)
        self.range = range(values) if parts[4] else range(-values // 2, values // 2)

    def to_sql(self, value: Any) -> Any:
        """The value as the driver binds it. Raises TypeError or ValueError with the reason alone."""
        if type(value) is int and self.python is float and int(float(value)) == value:
            value = float(value)
        if type(value) is not self.python:
            raise TypeError(f"is declared {self.python.__name__}, but is of type {type(value).__name__}")
        if self.python in _FITS and not _FITS[self.python](self, value):
            raise ValueError(f"does not fit into {self.sql}")
        if self.python is dt.datetime and value.tzinfo is not None:
            return value.astimezone(dt.timezone.utc).replace(tzinfo=None)
        return value.bytes if self.python is uuid.UUID else value


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
        self.table, self.unique, self._columns = table, unique, ", ".join(f"i.{_quote(name)}" for name in names)
        self.types = {name: _Column(properties[name] if isinstance(properties, Mapping) else str) for name in names}
        self._properties = [(name, column.python) for name, column in self.types.items()]
        self.standing, self.exact, self.delete, self.insert = table, True, b"", b""     # filled by _standing

    @property
    def _populated(self) -> bool:
        """Whether an index as it stands answers: only then its table has its own name."""
        return self.standing == self.table

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
        terms, left = self._terms(match), sys.maxsize if limit is None else operator.index(limit)
        ranged = [name for name in self.types if isinstance(match.get(name), slice)][:1]
        place, sign = [f"i.{_quote(name)}" for name in (*ranged, "entity_id")], "<" if reverse else ">"
        try:
            last = [] if after is None else [*(self._value(name, after[name]) for name in ranged), _check_id(after["id"])]
        except (KeyError, TypeError) as error:
            raise TypeError(f"index {self.table}: after takes an Entity with {', '.join([*ranged, 'id'])}, the last of the page "
                            f"before, not {reprlib.repr(after)}") from error
        while left > 0:
            where, args = _where(terms)
            if last:                                            # (column, id) > (…, …) in a form that both servers range over
                where += f" AND {place[0]} {sign}= %s AND ({place[0]} {sign} %s OR {place[-1]} {sign} %s)"
                args += [last[0], last[0], last[-1]]
            size = min(left, PAGE)
            rows = self._read(datastore, SELECT_MATCH, *args, size, populated=True, where=where, place=", ".join(place),
                              order=", ".join([column + " DESC" * reverse for column in place]))
            for row in rows:
                entity, last = datastore._entity(row[:4]), row[4:]      # the index's row: the entity may be another by now
                if self._has(entity, terms):
                    left -= 1
                    yield entity
            if len(rows) < size:
                return

    def count(self, datastore: Datastore, **match: Any) -> int:
        """How many entities match; 0 where none does."""
        if not self._known(datastore).exact:                    # the table takes Bob for bob: look at the entities
            return len(self.get_all(datastore, **match))
        where, args = _where(self._terms(match))
        return int(self._read(datastore, COUNT_MATCH, *args, populated=True, where=where)[0][0])

    def put(self, datastore: Datastore, entity: Mapping[Any, Any]) -> None:
        """Rewrites the row of an entity in this index, as it is stored. `Datastore.put` does it for all indexes."""
        stored, known = datastore.get(id := _check_id(entity.get("id"))), self._known(datastore)
        known._rewrite(datastore, {id: (stored.version, known._row(stored), True) if stored else ORPHAN})

    def populate(self, datastore: Datastore, *, progress: Progress | None = None) -> int:
        """Makes the table agree with the entities exactly, while readers and writers go on; stop it and run it at any time.

        progress: anything called as tqdm.tqdm is. Returns the number of rows it had to change: 0, all was right.
        Raises TypeError, ValueError or Duplicate for an entity that the index cannot have, with its id.
        """
        changed, drops = 0, list[str]()

        def begin(standing: _Catalogue) -> str:
            """From here on every writer knows the table, or fails."""
            drops[:] = standing.drops
            return "" if self._known(datastore)._populated else standing.renaming()

        def end(standing: _Catalogue) -> str:
            """The table gets its name, but not after a drop: it may be another one."""
            done = self._known(datastore)._populated or drops != standing.drops
            return "" if done else standing.renaming((self.table + BUILDING, self.table))

        while True:
            datastore._define(begin)
            changed += self._known(datastore)._repair(datastore, progress)
            datastore._define(end)
            if self._known(datastore)._populated:
                return changed

    def create(self, datastore: Datastore) -> None:
        """Creates the table where it is missing, to be populated. Raises Error with the statement where that is denied."""
        names = [_quote(name) for name in self.types]
        sql = CREATE_INDEX.format(
            table=_quote(self.table + BUILDING), id=datastore._catalogue.id_type, comment=COMMENTS[self.unique],
            columns=", ".join(f"{name} {column.sql} NOT NULL" for name, column in zip(names, self.types.values())),
            key=", ".join(names + ["entity_id"] * (not self.unique)), more="".join(f", KEY ({name})" for name in names[1:])
        ) + TABLE_OPTIONS[datastore._mariadb]
        new = {self.table} - datastore._names
        datastore._names |= new                                 # one that was made by hand may have no comment to be known by
        try:
            datastore._define(lambda standing: "" if self.table in standing.indexes else sql)
            known = self._known(datastore)
            if known._properties != self._properties or self.unique > known.unique:
                raise ValueError(f"index table {self.table} stands as {known!r}, not as {self!r}: remove it, or take another name")
        except Exception:                                       # another's table, perhaps: no index, and not to be touched
            datastore._names -= new
            datastore._refresh()
            raise

    def drop(self, datastore: Datastore) -> None:
        """Drops the table, if it stands, and is an index that the datastore maintains."""
        if self.table in datastore._refresh().indexes:
            datastore._define(lambda standing: standing.renaming(dropped=True))     # waits for transactions that know the table
            datastore._define(lambda _: f"DROP TABLE IF EXISTS {_quote(self.table)}, {_quote(self.table + BUILDING)}")
            datastore._define(lambda standing: standing.renaming(dropped=True))     # who looked in between knows it still
        datastore._names.discard(self.table)

    def _row(self, entity: Mapping[Any, Any]) -> tuple[Any, ...] | None:
        """The entity's values in this index, None if it is not in it."""
        values = [entity.get(name) for name in self.types]
        if any(value is None for value in values):
            return None
        return tuple([self._value(name, value) for name, value in zip(self.types, values)])

    def _value(self, name: str, value: Any) -> Any:
        try:
            return self.types[name].to_sql(value)
        except (TypeError, ValueError, OverflowError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"index {self.table}: property {name} {error}: {reprlib.repr(value)}; give another value, or "
                       f"declare the type of the property: Index(…, {{{name!r}: …}})") from error

    def _terms(self, match: Mapping[str, Any]) -> list[_Term]:
        terms = list[_Term]()
        for name, asked in match.items():
            if name not in self.types:
                raise TypeError(f"index {self.table} has no property {name!r}; it has {', '.join(self.types)}")
            if isinstance(asked, slice) and asked.step is None:
                ends = {">=": asked.start, "<": asked.stop}
                terms += [(name, sign, self._value(name, end)) for sign, end in ends.items() if end is not None]
            else:
                one_of = asked if isinstance(asked, (set, frozenset, list)) else [asked]
                terms.append((name, "IN", tuple([self._value(name, value) for value in one_of]) or (None,)))
        return terms

    def _has(self, entity: Entity, terms: Iterable[_Term]) -> bool:
        try:
            return all(_SIGNS[sign](self.types[name].to_sql(entity.get(name)), value) for name, sign, value in terms)
        except (TypeError, ValueError, OverflowError):          # the row is not of this entity
            return False

    def _known(self, datastore: Datastore, populated: bool = False) -> Index:
        """The same index as it stands. Raises NotPopulated where it does not, or is not `populated`, if that is asked."""
        for again in False, True:
            known = (datastore._refresh() if again else datastore._catalogue).indexes.get(self.table)
            if known and (known._populated or not populated):
                return known
        raise NotPopulated(f"index {self.table} does not stand, or is not populated: Datastore.add_index makes it, Index.populate "
                           "fills it")

    def _read(self, datastore: Datastore, select: str, *args: Any, populated: bool = False, **parts: str) -> Any:
        """Rows of a statement on the table that stands."""
        def attempt(lost: bool) -> Any:
            table = _quote(self._known(datastore, populated).standing)
            return datastore._ask(select.format(table=table, columns=self._columns, **parts), *args)
        return datastore._run(attempt)

    def _repair(self, datastore: Datastore, progress: Progress | None) -> int:
        """Makes all rows right. Returns how many it had to change."""
        wrong, most = self._wrong(datastore, progress), min(BATCH, datastore._max_packet >> 12)  # a row has less than 4 kB
        batches = iter(lambda: dict(itertools.islice(wrong, most)), {})
        return _overlapped(functools.partial(self._rewrite, datastore), ((batch, len(batch) == most) for batch in batches))

    def _wrong(self, datastore: Datastore, progress: Progress | None) -> Iterator[tuple[str, Any]]:
        """(id, what `_rewrite` takes) of each row that is not as it should be."""
        count, last = datastore._read(SELECT_COUNT)[0]
        # Each entity beside its row as of the same moment. Those that are put later than `last` their writers index.
        rows: Iterable[Any] = _pages(lambda after, size: self._read(datastore, SELECT_COMPARED, after, last, size))
        for version, id, updated, body, found, *row in progress(rows, total=count) if progress else rows:
            try:
                wanted = self._row(datastore._entity((version, id, updated, body)))
            except (TypeError, ValueError) as error:
                raise type(error)(f"entity {id!r}: {error}") from error
            if wanted != (None if found is None else tuple(row)):
                yield id, (version, wanted, found is not None)
        orphans = [("",)]
        while orphans := self._read(datastore, SELECT_ORPHANS, *orphans[-1], BATCH):
            yield from ((id, ORPHAN) for id, in orphans)

    def _rewrite(self, datastore: Datastore, wanted: Mapping[str, Any]) -> int:
        """Makes rows right: {id: (the entity's version, its row, whether there was one)}, or ORPHAN. Returns how many.

        Writers lock an entity, then its rows, and so does this. An entity whose version is gone was put or deleted meanwhile,
        with its rows. Where there is no entity to be locked its row is, and then it is looked for: who is about to insert it
        waits for the row, who has done so is seen. Where no row was there is none to be deleted, unless another populates, too:
        then it is tried again.
        """
        ids, versions = tuple(wanted), [version or 0 for version, _, _ in wanted.values()]
        bounds, tries = (min(versions), max(versions)), iter([not any(had for _, _, had in wanted.values())])

        def attempt(lost: bool) -> int:
            fresh, known, bind = next(tries, False), self._known(datastore), datastore._bind
            lock = [datastore._locking(SELECT_RANGE, *bounds) if bounds[1] - bounds[0] < 8 * len(ids) else
                    datastore._locking(SELECT_VERSION, ids)]
            if not bounds[0]:
                lock += [bind(LOCK_ROW.format(table=_quote(known.standing)), ids), bind(SELECT_VERSION, ids)]
            with datastore.transaction():
                stored = dict(itertools.chain(*datastore._transact(*lock)))
                rows = {id: row for id, (version, row, _) in wanted.items() if stored.get(id, 0) == version}
                if rows:
                    datastore._apply([], datastore._quoted(rows), {known: rows}, fresh=fresh)
                return len(rows)
        return datastore._run(attempt)

    @classmethod
    def _standing(cls, table: str, columns: Mapping[str, Any]) -> Index:
        """The index whose table stands, from {column: (type, collation, the table's comment)}."""
        try:
            *_, comment = columns["entity_id"]
            index = cls(table.removesuffix(BUILDING), {name: columns[name][0] for name in columns if name != "entity_id"},
                        unique=comment == COMMENTS[True])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the table {table} cannot be an index, whose columns are properties and entity_id: {error}; give the "
                             "index another name, or the table another comment") from error
        index.standing, index.exact = table, all(collation in EXACT for _, collation, _ in columns.values())
        delete = DELETE_ROW + EXACTLY.format("entity_id") * (not index.exact)
        index.delete = delete.format(table=_quote(table)).encode()
        index.insert = INSERT_ROW.format(table=_quote(table), names=", ".join(map(_quote, index.types))).encode() % ()
        return index

    def _statements(self, connection: Connection, rows: Mapping[str, Any], quoted: Mapping[str, bytes], fresh: bool) -> list[bytes]:
        """Statements that replace the rows of these ids, in the order of the key, which spares pages, and deadlocks."""
        values = [b"(" + b",".join([_literal(connection, value) for value in row]) + b"," + quoted[id] + b")"
                  for row, id in sorted([(row, id) for id, row in rows.items() if row is not None])]
        delete = [] if fresh else [self.delete % {b"ids": _listed(quoted)}]
        return [*delete, self.insert + b",".join(values)] if values else delete

    def _explain(self, datastore: Datastore, rows: Mapping[str, Any]) -> None:
        """Raises Duplicate if others have these values."""
        select, owners = SELECT_OWNER.format(table=_quote(self.standing), columns=self._columns), dict[Any, str]()
        for id, row in rows.items():
            if row is not None:
                others = datastore._read(select, row, tuple(rows)) or [(owners.setdefault(row, id),)]
                if (other := others[0][0]) != id:
                    raise Duplicate(f"unique index {self.table}: entity {other!r} already has {dict(zip(self.types, row))!r}",
                                    index=self, id=other)


class _Catalogue:
    """What stands in the database: the guards, and {table: {column: (type, collation, the table's comment)}}."""

    def __init__(self, guards: Sequence[str], columns: Mapping[str, Mapping[str, Any]]) -> None:
        self.guards, self.entities, self.history = guards, "entities" in columns, "entities_history" in columns
        self.drops = [guard[:DROPS] for guard in guards]        # other ones: a table was dropped
        type_, collation, _ = columns.get("entities", {}).get("id", ("VARCHAR(36)", None, ""))
        self.id_type = f"{type_} COLLATE {collation}" if collation else type_   # for each entity_id, too, or a join is slow
        self.guarded = "".join([GUARDED.format(_quote(guard)) for guard in guards[:1]])
        self.delete = (DELETE_ENTITY + EXACTLY.format("id") * (collation not in EXACT) + self.guarded).encode()
        self.indexes: dict[str, Index] = {}
        for table in sorted(columns.keys() - {"entities", "entities_history"}):
            index = Index._standing(table, columns[table])
            self.indexes.setdefault(index.table, index)         # a populated one, if another was late to create it

    def renaming(self, *tables: tuple[str, str], dropped: bool = False) -> str:
        """A statement that renames tables and the guard, "" where there is none. It waits for the writes under way (Galera
        aborts them); later ones read the catalogue again. The first half of a guard's name is new where one is dropped.

        MariaDB renames one by one, and back if one is gone: nothing may be before the guard is, which is new when all else is.
        """
        new = {guard: guard[:DROPS * (not dropped)] + _guard_name()[DROPS * (not dropped):] for guard in self.guards}
        pairs = [*((guard, name + BUILDING) for guard, name in new.items()), *tables,
                 *((name + BUILDING, name) for name in new.values())]
        return "RENAME TABLE " * bool(pairs) + ", ".join([f"{_quote(old)} TO {_quote(new)}" for old, new in pairs])


class _Local(threading.local):
    connection: Connection = None
    depth = 0                                                   # of transaction()
    open = False                                                # a transaction is begun on the connection
    doomed = False                                              # a packet of it failed, or a block in it: no way but back


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
                         "conv": {**conversions, FIELD_TYPE.TIMESTAMP: dt.datetime.fromisoformat}}
        self._allowed, self._max_size, self._closed, self._names = _allowed(classes), max_size, False, set[str]()
        self._local, self._connections = _Local(), weakref.WeakSet[Any]()
        _stores.add(self)
        _watch_forks()
        self._catalogue = _Catalogue([], {})
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
        what cannot be stored or indexed, Duplicate, and Unknown if the connection was lost in COMMIT: with `expect`, which is
        not repeated, at once, else when no further try goes through.
        """
        id, *change = self._prepare(entity)
        self._write({id: change}, expect)
        return id

    def put_many(self, entities: Iterable[dict[Any, Any]], *, batch: int = BATCH, progress: Progress | None = None) -> int:
        """Stores any number of dictionaries, each batch in one transaction; of two with one id the later stands.

        batch: the most entities of a transaction. progress: anything called as tqdm.tqdm is. Returns how many were put.
        """
        if progress:
            entities = progress(entities, total=len(entities) if isinstance(entities, Collection) else None)
        return _overlapped(self._put_batch, self._batches(entities, batch))

    def get(self, id: str, *, version: int | None = None) -> Entity | None:
        """The entity, or None. version: that one of its versions, where history is kept."""
        for row in self._read(SELECT_ENTITY, [_check_id(id)]):
            if row[1] == id and version in (None, row[0]):      # a table typed by hand may take Bob for bob
                return self._entity(row)
        versions = self.history(id) if version is not None and (self._catalogue.history or self._refresh().history) else []
        return next((entity for entity in versions if entity.version == version), None)

    def get_many(self, ids: Iterable[str]) -> dict[str, Entity]:
        """{id: entity} of those that there are, in the order asked for."""
        asked = list(dict.fromkeys(map(_check_id, ids)))
        found = {row[1]: self._entity(row) for start in range(0, len(asked), PAGE)
                 for row in self._read(SELECT_ENTITY, asked[start:start + PAGE])}
        return {id: found[id] for id in asked if id in found}

    def delete(self, id: str, *, expect: int | None = None, history: bool = False) -> bool:
        """Deletes the entity and all its index rows, in one transaction. False where there was none (any more).

        expect: as for `put`. history: True erases all its versions as well.
        """
        try:
            self._write({_check_id(id): (None, None, None)}, expect, erase=history)
        except KeyError:
            if history and self._catalogue.history:
                self._run(lambda lost: self._transact(self._bind(DELETE_HISTORY + UNLESS_STORED, [id], [id])))
            return False
        return True

    def update(self, id: str, change: Callable[[Entity], Any], default: dict[Any, Any] | None = None) -> Entity:
        """Reads the entity, lets `change` alter it in place, and stores it, atomically: `change` is called as often as it takes.

        default: where to begin if there is none; else that is a KeyError. Returns the entity as stored. Raises Unknown if
        the connection was lost in COMMIT, and what `put` raises.
        """
        _check_id(id)
        return self._run(lambda lost: self._try_update(id, change, default), once=True)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What this thread does inside is committed together, or rolled back on any exception. Inner ones join the outer.

        The block is yours, and is not run again: a deadlock (1213) or lost connection inside is raised, with nothing done.
        """
        local, thread = self._local, threading.get_ident()
        if self._closed:
            raise Error(CLOSED)
        local.depth += 1
        try:
            yield
            if threading.get_ident() != thread:                 # whose connection it is not
                raise Error("a transaction() is to be left by the thread that began it: nothing of it is committed")
            if local.depth == 1 and (local.open or local.doomed) and local is self._local:  # not in a child forked inside
                self._transact(commit=True)
        except BaseException:
            local.doomed = True
            raise
        finally:
            local.depth = max(0, local.depth - 1)
            if not local.depth:
                self._roll_back(local)

    def scan(self, *, progress: Progress | None = None) -> Iterator[Entity]:
        """Every entity as of now, oldest put first, in pages, on a connection of its own: put and delete meanwhile.

        progress: anything called as tqdm.tqdm is.
        """
        connection = self._run(lambda lost: self._open())
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
        return [self._entity(row) for row in self._read(SELECT_HISTORY, [_check_id(id)]) if row[1] == id]

    def schema(self, *, limit: int | None = None, progress: Progress | None = None) -> Schema:
        """The different types of dictionary that are stored. limit: look only at so many, those put last."""
        if limit is None:
            return Schema(self.scan(progress=progress))
        rows = itertools.islice(_pages(lambda before, size: self._read(SELECT_NEWEST, before or MAX_VERSION, size)), limit)
        return Schema(map(self._entity, progress(rows, total=limit) if progress else rows))

    @property
    def indexes(self) -> list[Index]:
        """The indexes that stand in the database, those not populated yet too."""
        return [*self._refresh().indexes.values()]

    def add_index(self, index: Index, *, populate: bool = True, progress: Progress | None = None) -> Index:
        """Creates the index's table where it is missing, and populates it. Returns the index.

        populate: False leaves that to `index.populate`; till then a query raises NotPopulated. progress: as for tqdm.tqdm.
        """
        index.create(self)
        try:
            if populate and not index._known(self)._populated:
                index.populate(self, progress=progress)
        except (TypeError, ValueError, Duplicate):              # the entities are not such that they could have it
            index.drop(self)
            raise
        return index

    def remove_index(self, index: Index) -> None:
        """Drops the index's table, if it stands: what is not maintained must not stay and answer."""
        index.drop(self)

    def close(self) -> None:
        """Closes all connections; a call that another thread has under way fails, and so does any call after it."""
        self._closed = True
        for connection in list(self._connections):              # at the socket: its thread may be using the rest
            with contextlib.suppress(MySQLdb.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)

    # Entities

    def _prepare(self, entity: Any) -> tuple[str, dict[Any, Any], bytes, Any]:
        if not isinstance(entity, dict):
            raise TypeError(f"an entity is a dict, not {reprlib.repr(entity)} of type {type(entity).__name__}")
        id = _check_id(entity["id"]) if "id" in entity else _new_id()
        whole = entity if "id" in entity else {**entity, "id": id}
        body = encode(whole, self._allowed, self._max_size)
        if len(body) > min(MAX_BODY, self._max_packet):
            raise ValueError(f"entity {id!r} has {len(body)} bytes when compressed; MEDIUMBLOB takes {MAX_BODY}, the server's "
                             f"max_allowed_packet {self._max_packet}")
        return id, whole, body, entity

    def _entity(self, row: Sequence[Any]) -> Entity:
        version, id, updated, body = row
        try:
            entity = Entity(decode(body or b"", self._allowed, self._max_size))
        except Corrupt as error:
            error.id, error.args = id, (f"entity {id!r}: {error}",)
            raise
        entity.setdefault("id", id)
        return entity._stamped(version, updated)

    def _scan(self, connection: Connection) -> Iterator[Entity]:
        try:
            yield from map(self._entity, _pages(
                lambda after, size: self._send(connection, (SELECT_PAGE % (after, size)).encode())[0]))
        finally:
            if connection.open:
                connection.close()

    # Writing: one packet of several statements is one transaction. The server stops at the first that fails.

    def _batches(self, entities: Iterable[Any], batch: int) -> Iterator[tuple[tuple[dict[str, Any], int], bool]]:
        """What `_put_batch` takes, and whether more follows that is not to be waited for."""
        indexes = self._catalogue.indexes.values()
        names = {name for index in indexes for name in index.types}
        count, size, changes = 0, 0, dict[str, Any]()
        for entity in entities:
            id, whole, *change = self._prepare(entity)
            values = sum([len(str(whole[name])) for name in names if name in whole])
            weight = 2 * len(change[0]) + 8 * values + (2 + 2 * len(indexes)) * (3 + 2 * len(id.encode()))  # escaped, at the most
            if len(changes) >= batch or size + weight > min(BATCH_BYTES, self._max_packet) // 2:
                yield (changes, count), not self._local.depth
                count, size, changes = 0, 0, {}
            changes.pop(id, None)                               # so that it is inserted where it came last
            count, size, changes[id] = count + 1, size + weight, (whole, *change)
        if changes:
            yield (changes, count), False

    def _put_batch(self, batch: tuple[dict[str, Any], int]) -> int:
        changes, count = batch
        self._write(changes)
        return count

    def _try_update(self, id: str, change: Callable[[Entity], Any], default: Any) -> Entity:
        local, begun = self._local, self._local.open
        local.depth += 1                                        # what change calls joins in
        try:
            stored = [self._entity(row) for row in self._transact(self._locking(SELECT_ENTITY, [id]))[0] if row[1] == id]
            if not stored and default is None:
                raise KeyError(id)
            entity = stored[0] if stored else Entity({**copy.deepcopy(default), "id": id})
            change(entity)
        finally:
            local.depth -= 1
        if entity.get("id") != id:
            raise ValueError(f"change made {reprlib.repr(entity.get('id'))} of the id {id!r}; put that as an entity of its own")
        _, *changed = self._prepare(entity)
        try:
            return entity._stamped(*self._write({id: changed}, None if stored else 0, stamp=True)[-1][0])
        except Conflict as error:                               # there was none, and another has put one meanwhile
            if begun:                                           # what change has put besides is not undone by itself
                local.doomed = True
                raise
            raise MySQLdb.OperationalError(ER.LOCK_DEADLOCK, str(error)) from error     # so that it is tried again

    def _write(self, changes: Mapping[str, Any], expect: int | None = None, *, erase: bool = False, stamp: bool = False) -> Any:
        """Deletes entities, inserts those that have a body, and rewrites all their index rows: one packet, one transaction.

        changes: {id: (whole, body, the caller's dictionary)}, of a delete three times None. Returns rows, SELECT_STAMP's for
        `stamp` the last. Raises KeyError if there is none to be deleted.
        """
        if expect is not None and (type(expect) is not int or expect < 0):
            raise TypeError(f"expect is the version of an entity, or 0 for none, not {reprlib.repr(expect)}")
        begun, bodies = time.monotonic(), {id: body for id, (_, body, _) in changes.items() if body is not None}

        def attempt(lost: bool) -> Any:
            # If what was cut off stands, once more would be a version more; an older version may be the same, so only new ones
            # count. Where another has put over it that cannot be told.
            if lost and not erase and bodies.items() == {
                    *self._read(SELECT_RECENT, int(time.monotonic() - begun) + 2, tuple(changes))}:
                return []
            catalogue, connection, quoted = self._catalogue, self._local.connection, self._quoted(changes)
            packet = [catalogue.delete % {b"ids": _listed(quoted)}]
            if expect is not None:
                packet[0] += b" AND added_id = %d" % expect
            # Who deletes none has no lock, and another may put one before the index rows are deleted: so they must not be.
            packet += [CHECK_DELETED] * bool(expect or not bodies)
            if bodies:
                packet.append(INSERT_ENTITY + b",".join([b"(%s,%s,CURRENT_TIMESTAMP)" % (quoted[id], connection.literal(body))
                                                         for id, body in bodies.items()]))
            if catalogue.history and (bodies or erase):
                packet.append(self._bind(INSERT_HISTORY if bodies else DELETE_HISTORY, tuple(quoted)))
            rows = {index: {id: whole and index._row(whole) for id, (whole, _, _) in changes.items()}
                    for index in catalogue.indexes.values()}
            fresh = not lost and all(whole is not entity for whole, _, entity in changes.values())  # ids made for this write
            return self._apply(packet, quoted, rows, [self._bind(SELECT_STAMP, tuple(quoted))] if stamp else [], fresh, expect)
        rows = self._run(attempt, once=expect is not None)
        for id in bodies:
            changes[id][2]["id"] = id
        return rows

    def _apply(self, packet: list[bytes], quoted: Mapping[str, bytes], rows: Mapping[Index, Mapping[str, Any]],
               tail: Sequence[bytes] = (), fresh: bool = False, expect: int | None = None) -> list[Any]:
        """Sends a packet with what replaces the rows of these ids in indexes, and raises what its failure means.

        That may be that another was just inserting the same id: then the error is one to be tried again.
        """
        for index, found in rows.items():
            packet += index._statements(self._local.connection, found, quoted, fresh)
        try:
            return self._transact(*packet, *tail)
        except MySQLdb.Error as error:
            if _code(error) in (ER.DUP_ENTRY, ER.SUBQUERY_NO_1_ROW):
                self._explain(error, tuple(quoted), rows, expect)
            raise

    def _explain(self, error: MySQLdb.Error, ids: Sequence[str], rows: Mapping[Index, Any], expect: int | None) -> None:
        local, absent = self._local, _code(error) == ER.SUBQUERY_NO_1_ROW
        if not local.depth:
            self._roll_back(local)
        stored, unique = dict(self._read(SELECT_VERSION, ids)), [index for index in rows if index.unique]
        found = stored.get(ids[0], 0)
        local.doomed = local.depth > 0 and not (absent or expect == 0 and not unique)       # by which the packet changed nothing
        if absent and not expect:
            raise KeyError(ids[0])
        for index in [] if absent else unique:                  # first: in a block, what is found may be what was just inserted
            index._explain(self, rows[index])
        if expect is not None and found != expect and (absent or not expect):
            raise Conflict(f"entity {ids[0]!r}: version {expect} was expected, {found} is current (0: none); get it, decide "
                           "again", id=ids[0], expected=expect, found=found)
        for id in stored.keys() - set(ids):
            raise Error(f"the table entities takes {id!r} for an id that is to be put beside it: give its column id a "
                        f"collation that compares exactly, {EXACT[0]} or {EXACT[1]}") from error

    # The catalogue

    def _create_tables(self, history: bool) -> None:
        options = TABLE_OPTIONS[self._mariadb]
        self._define(lambda standing: "" if standing.entities else CREATE_ENTITIES + options)
        if history and not self._catalogue.history:             # renamed with the guard: programs that are running keep it, too
            self._define(lambda standing: "" if standing.history else CREATE_HISTORY + options)
            self._define(lambda standing: "" if standing.history else standing.renaming(("entities_history~", "entities_history")))
        if not self._catalogue.guards:
            with contextlib.suppress(Error):                    # who may create no table adds no index either
                self._define(lambda standing: "" if standing.guards else CREATE_GUARD.format(_guard_name()) + options)

    def _refresh(self) -> _Catalogue:
        """Reads what stands. The guard first: what is added later renames it, and a write that knows this name fails."""
        named = "entities", "entities_history", *self._names
        for _ in range(100):                                    # MariaDB reads a directory, and may miss what is just renamed
            guards, rows = self._run(lambda lost: self._send(self._local.connection, self._bind(SELECT_GUARDS),
                                                             self._bind(SELECT_CATALOGUE, COMMENTS, named)))
            if guards or not self._catalogue.guards:
                break
            time.sleep(0.01)
        columns: dict[str, dict[str, Any]] = {}
        for table, column, sql, collation, comment in rows:
            columns.setdefault(table, {})[column] = sql, collation, comment
        catalogue = self._catalogue = _Catalogue([guard for guard, in guards], columns)
        return catalogue                                        # another thread's may be older

    def _define(self, statement: Callable[[_Catalogue], str]) -> None:
        """Sends the statement that what stands calls for, "" for none. If another was faster, it looks again."""
        if self._local.depth:
            raise Error("an index cannot be added, populated or removed, nor a table made, inside a transaction(): do it outside")

        def attempt(lost: bool) -> None:
            if not (sql := statement(self._refresh())):
                return
            try:
                for each in [sql, *[SETTLE] * (self._galera and sql.startswith("RENAME"))]:
                    self._send(self._local.connection, self._bind(each))
            except MySQLdb.Error as error:
                if _code(error) not in DENIED or not sql.startswith("CREATE"):
                    raise
                raise Error("a table is missing, and this account may not create it; its DBA can, by what follows (then, for an "
                            "index, restart the programs that write, and populate it): "
                            + sql.replace("%%", "%").replace(BUILDING + "`", "`", 1)) from error
            self._refresh()
        self._run(attempt)

    # The one door to the driver

    def _bind(self, sql: str, *args: Any) -> bytes:
        literal = self._local.connection.literal
        return sql.encode() % tuple([literal(arg) for arg in args])

    def _locking(self, select: str, *args: Any) -> bytes:
        """A statement that locks the entities it selects. The guard before the rows: who held a row and waited for it, behind a
        rename, would stop who is to end first."""
        return self._bind(select + self._catalogue.guarded + " FOR UPDATE", *args)

    def _quoted(self, ids: Iterable[str]) -> dict[str, bytes]:
        return {id: _literal(self._local.connection, id) for id in sorted(ids)}

    def _ask(self, sql: str, *args: Any) -> Any:
        return self._send(self._local.connection, self._bind(sql, *args))[0]

    def _read(self, sql: str, *args: Any) -> Any:
        return self._run(lambda lost: self._ask(sql, *args))

    def _run(self, attempt: Callable[[bool], T], *, once: bool = False) -> T:
        """Calls attempt(lost) till it goes through: the one place that tries again. Never what began in an earlier call.

        lost: whether a try was cut off in its COMMIT, so that it may have been done; `once`: then Unknown is raised.
        """
        local, begun, doomed, end = self._local, self._local.open, self._local.doomed, 0.0
        failed: list[str] = []                                  # what they said
        unknown: Unknown | None = None                          # the latest try that was cut off in its COMMIT
        while True:
            try:
                if self._closed or not (begun or local.connection and local.connection.open):
                    local.connection = self._open()
                # Its thread may be waiting for a lock still, and commit. MySQL's other processlist fails on bytes.
                if unknown and self._ask(SELECT_AT_WORK.format(("performance", "information")[self._mariadb]), unknown.thread):
                    raise MySQLdb.OperationalError(ER.LOCK_WAIT_TIMEOUT, "the server is still at work on what was cut off")
                return attempt(unknown is not None)
            except BaseException as error:
                failed.append(str(error))
                code, end = _code(error), end or time.monotonic() + RETRY_SECONDS
                unknown = error if isinstance(error, Unknown) else unknown
                if not begun:
                    self._roll_back(local)
                again = code in AGAIN and not begun and not self._closed and not (once and unknown) and (
                    len(failed) < 3 or time.monotonic() < end) and (
                    failed.count(str(error)) < 9 or code not in (ER.NO_SUCH_TABLE, ER.TABLE_EXISTS_ERROR))
                local.doomed = doomed if again else local.depth > 0 and (local.doomed or code is not None)
                if unknown and not again and (code is not None or self._closed and isinstance(error, Error)):
                    raise unknown from unknown.__cause__
                if not again:
                    raise
                if code == ER.NO_SUCH_TABLE:                    # the guard was renamed: there are other indexes than we knew
                    self._refresh()
            time.sleep(random.uniform(0, min(1, 0.001 * 2 ** len(failed))))

    def _transact(self, *statements: bytes, commit: bool = False) -> list[Any]:
        """Sends a packet of a transaction: its begin, if it is the first, and the COMMIT, unless this is in a block."""
        local = self._local
        if local.doomed:
            raise Error("the transaction is rolled back, as a call inside it failed: leave it, and begin again")
        commit = commit or not local.depth
        packet = [*[b"START TRANSACTION"] * (not local.open), *statements, *[b"COMMIT"] * commit]
        results = len(packet)
        if self._mariadb:                                       # one statement: between two, Galera may roll back and run the rest
            results = 1 + sum([statement.startswith(b"SELECT") for statement in packet])
            packet = [b"BEGIN NOT ATOMIC " + b";".join(packet) + b";END"]
        if (size := sum(map(len, packet)) + len(packet)) >= self._max_packet:
            raise ValueError(f"this write needs a packet of {size} bytes; max_allowed_packet is {self._max_packet}")
        thread, local.open, local.doomed = local.connection.thread_id(), True, True
        try:
            rows = self._send(local.connection, *packet, results=results)
        except MySQLdb.Error as error:
            if commit and _code(error) in LOST - REFUSED:
                raise Unknown(_code(error), f"the connection was lost; whether the write was done is not known: {error}",
                              thread=thread) from error
            raise
        local.open, local.doomed = not commit, False
        return rows

    def _roll_back(self, local: _Local) -> None:
        """Leaves no transaction open behind a failure."""
        local.doomed = local.doomed and local.depth > 0         # first: a signal handler may raise in what follows
        if local.open:
            connection, local.connection, local.open = local.connection, None, False
            with contextlib.suppress(MySQLdb.Error):            # the failure that brought us here is the one to tell
                self._send(connection, b"ROLLBACK")
                local.connection = connection                   # one in doubt is not used again

    def _send(self, connection: Connection, *statements: bytes, results: int = 0) -> list[Any]:
        """One round trip. Returns the rows of each statement that has some; an error ends the packet."""
        rows, count, more = [], 0, 0
        try:
            connection.query(b";".join(statements))
            with contextlib.suppress(UnicodeDecodeError):       # the driver says nothing of a result that was cut off
                while more == 0:
                    result = connection.store_result()
                    if result is not None:
                        rows.append(result.fetch_row(0))
                    elif connection.field_count():
                        break
                    count, more = count + 1, connection.next_result()
            if count != (results or len(statements)):
                raise MySQLdb.OperationalError(CR.SERVER_LOST, "Lost connection to server in the middle of a result")
        except BaseException as error:
            if connection.open and (_code(error) in LOST or not isinstance(error, MySQLdb.Error)):
                connection.close()                              # a signal handler's, too: the answer is not read
            raise
        return rows

    def _open(self) -> Connection:
        if not self._closed:
            connection: Connection = MySQLdb.connect(**self._connect)
            self._connections.add(connection)
        if self._closed:                                        # perhaps meanwhile, by who did not see this connection
            raise Error(CLOSED)
        ((self._max_packet, self._mariadb),), wsrep = self._send(connection, *SESSION)
        if wsrep:
            self._send(connection, WSREP)
        self._galera = bool(wsrep)                              # or a server that could be of it
        return connection


_stores: weakref.WeakSet[Datastore] = weakref.WeakSet()         # those of this process


@functools.cache
def _watch_forks() -> None:                                     # two threads may both be the first: twice does no harm
    os.register_at_fork(after_in_child=_forget_connections)


def _forget_connections() -> None:
    """In a child: the sockets are the parent's, and what the driver says in farewell must go nowhere."""
    with open(os.devnull, "r+b") as null:
        for store in _stores:
            for connection in store._connections:
                with contextlib.suppress(MySQLdb.Error):        # one that is closed has no socket
                    os.dup2(null.fileno(), connection.fileno())
            store._local, store._connections = _Local(), weakref.WeakSet()


def _code(error: BaseException) -> Any:
    """The number of a driver's error, None for others. Group Replication calls some deadlocks 1180."""
    if not isinstance(error, MySQLdb.Error) or not error.args:
        return None
    return ER.LOCK_DEADLOCK if error.args[0] == ER.ERROR_DURING_COMMIT and "error 149" in str(error) else error.args[0]


def _guard_name() -> str:
    return f"entities_guard_{os.urandom(12).hex()}"


def _overlapped(work: Callable[[T], int], batches: Iterable[tuple[T, bool]]) -> int:
    """The sum of work(batch) over (batch, more). Where more follows, a thread with a connection of its own works while that
    is prepared, so that neither this process nor the server waits for the other; never on two batches at once."""
    total, under_way = 0, list[futures.Future[int]]()
    with futures.ThreadPoolExecutor(1) as worker:
        try:
            for batch, more in batches:
                total += sum(future.result() for future in under_way)
                under_way = [worker.submit(work, batch)] if more else []
                total += 0 if more else work(batch)
        finally:
            total += sum(future.result() for future in under_way)
    return total


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
        found: dict[Any, list[Any]] = {}                        # {shape: [how many, the id of one]}
        for entity in entities:
            found.setdefault(tuple(sorted(_fields(entity).items())), [0, entity.get("id")])[0] += 1
        self.shapes = [Shape(count, dict(shape), example)
                       for shape, (count, example) in sorted(found.items(), key=lambda item: -item[1][0])]
        self.count = sum(shape.entities for shape in self.shapes)
        kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for shape in self.shapes:
            for field, kind in shape.fields.items():
                kinds[field][kind] += shape.entities
        self.fields = {field: {kind: count / self.count for kind, count in counts.most_common()}
                       for field, counts in sorted(kinds.items(), key=lambda item: (-sum(item[1].values()), item[0]))}

    def __str__(self) -> str:
        groups: list[list[Shape]] = []                          # what differs from a frequent one in a key or two joins it
        for shape in self.shapes:
            near = [group for group in groups[:100] if len(group[0].fields.keys() ^ shape.fields.keys()) <= 2]
            near[0].append(shape) if near else groups.append([shape])
        sized = sorted([(sum([shape.entities for shape in group]), group) for group in groups], key=lambda pair: -pair[0])
        width = min(max(map(len, self.fields), default=5), 36)
        lines = [f"{self.count:,} entities, {len(self.shapes):,} types of dictionary in {len(groups):,} groups of like keys", "",
                 "   count   share  types  example and fields"]
        for count, group in sized[:12]:
            lines += [f"{count:8,} {count / self.count:7.1%} {len(group):6,}  {group[0].example}", *textwrap.wrap(
                ", ".join(group[0].fields), 80, initial_indent=" " * 25, subsequent_indent=" " * 25)[:4]]
        lines += [*[f"          … and {len(sized) - 12:,} others"] * (len(sized) > 12), "", f"{'field':{width}}   share  types"]
        for field, kinds in list(self.fields.items())[:50]:
            text = ", ".join(kind if len(kinds) == 1 else f"{kind} {share:.1%}" for kind, share in kinds.items())
            lines.append(f"{field:{width}.{width}} {sum(kinds.values()):7.1%}  {text}"[:80])
        return "\n".join(lines + [f"… and {len(self.fields) - 50:,} others"] * (len(self.fields) > 50))


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
    if value is None or isinstance(value, (str, int)) or isinstance(value, float) and value - value == 0:
        return value
    if isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        items = [_jsonable(item) for item in value]
        return items if isinstance(value, (list, tuple)) else {type(value).__name__: items}
    text = value.hex if isinstance(value, (bytes, bytearray)) else getattr(value, "isoformat", value.__str__)
    return {type(value).__name__: text()}


def _text(thing: Any) -> str:
    if not isinstance(thing, Entity):
        return str(thing)
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    width = max(len(str(key)) for key in thing)
    lines = [f"  {key!s:{width}}  {value if isinstance(value, str) else repr(value)}" for key, value in thing.items()]
    return "\n".join([f"{bold}{thing['id']}{plain}  version {thing.version}, {thing.updated:%Y-%m-%d %H:%M:%S} UTC", *lines])


def _arguments(words: Iterable[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("slim", "slim [option …] DATABASE schema | get ID | find INDEX [key=value …] | indexes | "
                                     "populate INDEX", "Shows what a slim datastore holds. It connects as mysql does, and reads "
                                     "the same option files.", add_help=False)
    parser.add_argument("--help", help="show this, and leave", action="help")
    parser.add_argument("-h", "--host", help="the server")
    parser.add_argument("-P", "--port", help="its TCP port", type=int)
    parser.add_argument("-S", "--socket", help="its Unix socket", dest="unix_socket")
    parser.add_argument("-u", "--user", help="account")
    parser.add_argument("-p", "--password", help="-pSECRET, or -p alone: ask for it")
    parser.add_argument("--defaults-file", help="read this option file alone", dest="read_default_file")
    parser.add_argument("--json", help="print JSON, a line for each thing", action="store_true")
    parser.add_argument("--limit", help="schema, find: look at so many", type=int)
    parser.add_argument("--reverse", help="find: the last first", action="store_true")
    parser.add_argument("database")
    parser.add_argument("verb", choices=["schema", "get", "find", "indexes", "populate"])
    parser.add_argument("what", help="an ID or INDEX", nargs="?")
    parser.add_argument("match", help="or key=low..high (half open), key=a,b (one of)", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(["--password=" if word in ("-p", "--password") else word for word in words])
    if (options.what is None) != (options.verb in ("schema", "indexes")) or options.match and options.verb != "find":
        parser.error(f"too few or too many words for {options.verb}")
    return options


def _match(index: Index, words: Iterable[str]) -> dict[str, Any]:
    match: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in index.types:
            raise ValueError(f"{word!r} is not key=value with a property of index {index.table}: {', '.join(index.types)}")
        cls: Any = index.types[name].python
        parse: Any = {bool: json.loads, bytes: str.encode}.get(cls, getattr(cls, "fromisoformat", cls))
        try:
            match[name] = (slice(*[parse(end) if end else None for end in text.split("..", 1)]) if ".." in text else
                           [parse(value) for value in text.split(",")])
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f"{text!r} is no {cls.__name__}, which {name} is in index {index.table}") from error
    return match


def _answer(options: argparse.Namespace, store: Datastore) -> Iterator[Any]:
    """What a command prints."""
    progress: Any = None
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from tqdm import tqdm as progress
    indexes = {index.table: index for index in store.indexes}
    if options.verb == "schema":
        schema = store.schema(limit=options.limit, progress=progress)
        yield from [shape._asdict() for shape in schema.shapes] if options.json else [schema]
    elif options.verb == "get":
        if (entity := store.get(options.what)) is None:
            raise ValueError(f"there is no entity {options.what!r}")
        yield entity
    elif options.verb == "indexes":
        for index in indexes.values():
            types = {name: column.sql for name, column in index.types.items()}
            yield ({"index": index.table, "properties": types, "unique": index.unique, "populated": index._populated}
                   if options.json else f"{index!r}{'  not populated' * (not index._populated)}")
    elif options.what not in indexes:
        raise ValueError(f"no index {options.what!r} stands in {options.database}, but: {', '.join(indexes) or 'none'}")
    elif options.verb == "find":
        index = indexes[options.what]
        yield from index.find(store, _match(index, options.match), reverse=options.reverse, limit=options.limit)
    else:
        changed = indexes[options.what].populate(store, progress=progress)
        yield {"changed": changed} if options.json else f"{changed:,} rows had to be changed"


class _Viewer(Datastore):
    """One that makes no table: who looks at a database should find it as it was."""

    def _create_tables(self, history: bool) -> None:
        if not self._refresh().entities:
            raise Error(f"the database {self._connect['database']} has no table entities")


def main() -> None:
    """The command line, `python -m slim`. Exits with 1 after an error, with 2 if called wrongly."""
    options = _arguments(sys.argv[1:])
    connect = {name: value for name in ("port", "unix_socket", "read_default_file")
               if (value := getattr(options, name)) is not None}
    sys.stdout.reconfigure(errors="backslashreplace")           # type: ignore[union-attr]     # half a character can be stored
    try:
        password = getpass.getpass("Enter password: ") if options.password == "" else options.password
        with _Viewer(options.host, options.user, password, options.database, read_default_group="client", **connect) as store:
            for thing in _answer(options, store):
                print(json.dumps(_jsonable(thing), ensure_ascii=False) if options.json else _text(thing), flush=True)
    except (BrokenPipeError, KeyboardInterrupt):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)            # who reads has gone: nothing more to say, at exit neither
        sys.exit(1)
    except (Error, MySQLdb.Error, TypeError, ValueError, ArithmeticError, EOFError, RecursionError) as error:
        sys.exit("slim: " + " ".join(str(error.args[-1] if _code(error) else error).split()))


if __name__ == "__main__":
    main()
