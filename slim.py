"""slim: a schema-less, indexed datastore on MySQL, in one module, after FriendFeed's of 2009.

    >>> import slim
    >>> by_user = slim.Index("index_user_id", "user_id")
    >>> store = slim.Datastore("localhost", "me", "secret", "app", indexes=[by_user])
    >>> key = store.put({"user_id": "bob", "title": "Hello"})  # one round trip, one transaction
    >>> entity = store.get(key)  # None if there is none
    >>> [found["title"] for found in by_user.get_all(store, user_id="bob")]
    ['Hello']
    >>> entity = store.update(key, lambda entity: entity.update(likes=1))  # KeyError if none
    >>> key = store.put({**entity, "title": "Hi"}, expect=entity.version)  # Conflict if it changed
    >>> store.get(key)["title"], len(store), store.delete(key), store.get(key)
    ('Hi', 1, True, None)

It makes these tables, and nothing else:

    entities             added_id (the version), id, updated, body (a pickle, compressed by zlib)
    an Index's table     its properties, entity_id
    entities_history     every version, once a Datastore was opened with history=True
    entities_catalogue   which indexes there are, so that every program maintains all of them

Nothing acknowledged is lost, and an index answers only what is true of its entities. A write whose
connection was lost during COMMIT raises Unknown: read, then decide. A body that names a class which
is not allowed is Untrusted, and nothing of it runs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import contextvars
import copy
import copyreg
import dataclasses
import datetime as dt
import enum
import fractions
import functools
import getpass
import heapq
import io
import ipaddress
import itertools
import json
import math
import os
import pathlib
import pickle
import random
import re
import reprlib
import select
import sys
import time
import types
import uuid
import weakref
import zlib
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn, TypeVar

import MySQLdb
from MySQLdb.constants import CR, ER, FIELD_TYPE
from MySQLdb.converters import conversions

__version__ = "2.0.0"

# Disables the allow-list of classes. Use it only if nobody else can write to the database.
ANY = "any"
# Bytes of a body, decompressed, and compressed (MEDIUMBLOB); a page leaves out larger ones.
MAX_SIZE = 64 << 20
MAX_BODY = (1 << 24) - 1
PAGE_BODY = 32 << 10
# Rows of a page, values of an IN, and entities of a batch; bytes of the bodies of a batch.
PAGE = 1_000
BATCH_BYTES = 2 << 20
# A call is not begun again after so long; a change of the catalogue stops the writers for so long.
RETRY_SECONDS = 30
ALTER_SECONDS = 2

# Rolled back. 1020: MariaDB's innodb_snapshot_isolation. 3024: a time limit. 3101: at COMMIT.
ROLLED_BACK = {ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, 1020, 3024, 3101}
# Not reached, or refused. 1290, 1836: it has become read-only. 3032: offline. 4031: idle too long.
NOT_DONE = {CR.CONNECTION_ERROR, CR.CONN_HOST_ERROR, CR.SERVER_GONE_ERROR, 1290, 1836}
NOT_DONE |= {3032, 4031}
# The connection is of no more use. 1047, 3100: no cluster. 1105: vtgate, for a tablet that is gone.
# 1927: killed. 2012 to 2055: cut off.
LOST = NOT_DONE | {CR.SERVER_LOST, ER.SERVER_SHUTDOWN, ER.ERROR_DURING_COMMIT}
LOST |= {1047, 1105, 1927, 2012, 2014, 2026, 2027, 2055, 3100}
DENIED = {ER.DBACCESS_DENIED_ERROR, ER.TABLEACCESS_DENIED_ERROR, ER.SPECIFIC_ACCESS_DENIED_ERROR}

T = TypeVar("T")
Rows = Sequence[tuple[Any, ...]]
# SQL, and what is bound to its %s; what is called as tqdm.tqdm is.
Statement = tuple[Any, ...]
Progress = Callable[..., Iterable[Any]]


class Error(Exception):
    """What slim's own errors derive from. Those of the driver pass through as MySQLdb's."""

    text: str

    def __init__(self, message: str = "", **attributes: Any) -> None:
        super().__init__(message or self.text.format(**attributes))
        vars(self).update(attributes)


class Conflict(Error):
    """The entity `id` has the version `found` (0: there is none), not the `expected` one."""

    text = "entity {id!r} has version {found} (0: none), not {expected}; get it, and decide again"


class Duplicate(Error):
    """Another entity, `id`, has the same values in the unique `index`."""

    text = "{index}: entity {id!r} already has these values"


class NotPopulated(Error):
    """The index is not there, or not complete yet."""


class Unknown(Error):
    """The connection was lost during COMMIT: whether the entity `id` is stored is not known."""

    id: str | None = None


class Corrupt(Error):
    """A body cannot be read. It is that of the entity `id`; None outside a store."""

    id: str | None = None


class Untrusted(Corrupt):
    """A body names a class that is not allowed. Nothing of it was run."""


# ---- SQL. Identifiers are formatted in, quoted; values are bound to %s. --------------------------

# No default of a server or an account may refuse a statement, cut a result short, or change what
# COMMIT, text and numbers mean. MySQL runs what is in /*!80000 */, MariaDB what is in /*M! */.
# It is one statement with semicolons, as MariaDB would restore sql_mode after a compound one.
SET_SESSION = """\
SET NAMES utf8mb4;
SET SESSION time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',
  sql_safe_updates = 0, sql_select_limit = 9223372036854775807, sql_big_selects = 1,
  sql_auto_is_null = 0, completion_type = 0, autocommit = 1
  /*!80000 , max_execution_time = 0 */
  /*M!100101 , max_statement_time = 0, timestamp = DEFAULT */;
SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE;
SELECT @@max_allowed_packet"""
# What waits for open transactions holds up those who come after it: not for long. vtgate refuses
# GET_LOCK while there is a limit for each SELECT.
SET_DEFINING = f"SET SESSION lock_wait_timeout = {ALTER_SECONDS}, sql_select_limit = DEFAULT"
SET_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
BEGIN_SNAPSHOT = "START TRANSACTION WITH CONSISTENT SNAPSHOT"

ENTITIES = {
    "added_id": "BIGINT UNSIGNED NOT NULL AUTO_INCREMENT",
    "id": "VARCHAR(36) NOT NULL",
    "updated": "TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP",
    "body": "MEDIUMBLOB",
}
# added_id does not follow the order of commits everywhere, so history has its own number.
HISTORY = {**ENTITIES, "number": ENTITIES["added_id"], "added_id": "BIGINT UNSIGNED NOT NULL"}
CATALOGUE = {"id": ENTITIES["id"], "content": "MEDIUMTEXT NOT NULL", "epoch_first": "TINYINT"}
SHOW_COLUMNS = "SHOW FULL COLUMNS FROM {table}"

SELECT_ENTITIES = "SELECT added_id, id, updated, body FROM entities WHERE id IN %s"
LOCK_ENTITIES = SELECT_ENTITIES + " FOR UPDATE"
SELECT_IDS = "SELECT id FROM entities WHERE id IN %s"
SELECT_VERSION = "SELECT added_id, updated FROM entities WHERE id = %s"
PAGE_COLUMNS = f"e.added_id, e.id, e.updated, IF(LENGTH(e.body) <= {PAGE_BODY}, e.body, NULL)"
SELECT_PAGE = f"""\
SELECT {PAGE_COLUMNS} FROM entities AS e WHERE added_id > %s ORDER BY added_id LIMIT %s"""
SELECT_HISTORY = """\
SELECT added_id, id, updated, body FROM entities_history WHERE id = %s ORDER BY number DESC"""
COUNT_ENTITIES = "SELECT COUNT(*) FROM entities"
DELETE_ENTITIES = "DELETE FROM entities WHERE id IN %s"
INSERT_ENTITIES = "INSERT INTO entities (id, body) VALUES "
INSERT_HISTORY = """\
INSERT INTO entities_history (id, added_id, updated, body)
SELECT id, added_id, updated, body FROM entities WHERE id IN %s"""
# Whoever puts the entity meanwhile keeps the version that it puts.
DELETE_HISTORY = """\
DELETE FROM entities_history WHERE id = %s
AND NOT EXISTS (SELECT 1 FROM entities WHERE id = %s)"""

DELETE_ROWS = "DELETE FROM {table} WHERE entity_id IN %s"
INSERT_ROWS = "INSERT INTO {table} ({names}, entity_id) VALUES "
LOCK_ROWS = "SELECT entity_id FROM {table} WHERE entity_id IN %s FOR UPDATE"
SELECT_OWNERS = "SELECT entity_id FROM {table} WHERE ({names}) IN %s AND entity_id NOT IN %s"
# STRAIGHT_JOIN reads the index first, in its order. Otherwise MySQL may sort a small table.
SELECT_MATCH = f"""\
SELECT {PAGE_COLUMNS}, {{index_names}}, i.entity_id
FROM {{table}} AS i STRAIGHT_JOIN entities AS e ON e.id = i.entity_id
WHERE {{where}} AND {{check}} ORDER BY {{order}} LIMIT %s"""
COUNT_MATCH = "SELECT COUNT(*) FROM {table} AS i WHERE {where} AND {check}"
LOCK_COMPARED = f"""\
SELECT {PAGE_COLUMNS}, i.entity_id, {{index_names}}
FROM entities AS e LEFT JOIN {{table}} AS i ON i.entity_id = e.id
WHERE e.added_id > %s ORDER BY e.added_id LIMIT %s FOR UPDATE"""
SELECT_ORPHANS = """\
SELECT i.entity_id FROM {table} AS i LEFT JOIN entities AS e ON e.id = i.entity_id
WHERE i.entity_id > %s AND e.id IS NULL ORDER BY i.entity_id LIMIT %s"""

FIRST_CONTENT = '{"indexes": {}, "history": false}'
SELECT_CATALOGUE = "SELECT id, content FROM entities_catalogue"
INSERT_CATALOGUE = "INSERT INTO entities_catalogue (id, content) VALUES (%s, %s)"
DELETE_CATALOGUE = "DELETE FROM entities_catalogue WHERE id IN %s"
RENAME_EPOCH = "ALTER TABLE entities_catalogue RENAME COLUMN epoch_{old} TO epoch_{new}"
CHECK_EPOCH = "SELECT epoch_{epoch} FROM entities_catalogue WHERE id IN %s"
CHECK_EPOCH_IN_QUERY = "(SELECT epoch_{epoch} FROM entities_catalogue WHERE id = '{epoch}') IS NULL"


def _quote(name: str) -> str:
    """An identifier. Values are bound into the SQL later, so that a % is doubled."""
    return "`" + name.replace("`", "``").replace("%", "%%") + "`"


def _names(names: Iterable[str], prefix: str = "") -> str:
    return ", ".join([prefix + _quote(name) for name in names])


def _insert(sql: str, rows: Sequence[tuple[Any, ...]]) -> Statement:
    """An INSERT of several rows: MySQLdb writes a tuple as (…, …)."""
    return sql + ", ".join(["%s"] * len(rows)), *rows


# ---- Bodies. Knows pickle, zlib and classes; nothing of SQL. -------------------------------------


class Entity(dict[Any, Any]):
    """A dictionary out of the store, with its `version` (int), `updated` at (datetime, UTC)."""

    __slots__ = "updated", "version"
    version: int
    updated: dt.datetime

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (), None, None, iter(self.items())


def _new(cls: Any, *args: Any) -> Any:
    """Makes an object of an application's class, as pickle's opcode NEWOBJ does."""
    return cls.__new__(cls, *args)


# fmt: off
_VALUES = (
    dt.date, dt.time, dt.datetime, dt.timedelta, dt.timezone, zoneinfo.ZoneInfo,
    Decimal, fractions.Fraction, complex, range, slice, uuid.UUID, bytearray, set, frozenset, dict,
    collections.OrderedDict, collections.Counter, collections.deque,
    ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv4Interface,
    ipaddress.IPv6Address, ipaddress.IPv6Network, ipaddress.IPv6Interface,
    pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath)
# fmt: on


class _Allowed(dict[Any, Any]):
    """What a body may name: {(module, name): class}."""


_BUILT_IN = _Allowed({(cls.__module__, cls.__qualname__): cls for cls in _VALUES})
for _path in _VALUES[-4:]:
    # Python 3.13 pickles paths under another module's name.
    _BUILT_IN["pathlib", _path.__name__] = _BUILT_IN["pathlib._local", _path.__name__] = _path


def _allow(classes: Any) -> Any:
    """Python's own values, and the application's classes; ANY stays ANY."""
    if isinstance(classes, _Allowed) or classes == ANY:
        return classes
    if not classes:
        return _BUILT_IN
    moved = classes if isinstance(classes, Mapping) else {}
    own = [*(moved.values() or classes)]
    if not all([isinstance(cls, type) for cls in own]):
        raise TypeError(f"classes= takes classes, not {own!r}")
    names = {(cls.__module__, cls.__qualname__): cls for cls in own}
    names.update({(*name.rsplit(".", 1),): cls for name, cls in moved.items()})
    return _Allowed({**_BUILT_IN, **names})


class _Unpickler(pickle.Unpickler):
    """Reads a pickle, and imports nothing.

    A name in it becomes a new function that calls the class, never the class itself. So the opcode
    NEWOBJ has nothing to work on, and BUILD alters only what dies with this body.
    """

    allowed: _Allowed
    # {function: the class that it calls}; weak, to tell which of them the body has kept.
    functions: weakref.WeakKeyDictionary[Any, Any] | None = None

    def find_class(self, module: str, name: str) -> Any:
        """The function that stands for a class."""
        if self.functions is None:
            self.functions = weakref.WeakKeyDictionary()
        functions = self.functions
        is_new = (module, name) == ("slim", "_new")
        cls: Any = self.allowed.get((module, name))
        if cls is None and not is_new:
            raise Untrusted(f"it names {module}.{name}, which is not in Datastore(classes=…)")

        def call(*args: Any) -> Any:
            return _new(functions[args[0]], *args[1:]) if is_new else cls(*args)

        functions[call] = cls
        return call


class _Pickler(pickle.Pickler):
    """Writes what `_Unpickler` reads. `plain`: it has met built-in values alone."""

    plain = True
    dispatch_table = collections.ChainMap[Any, Any](
        {
            uuid.UUID: lambda value: (uuid.UUID, (value.hex,)),
            # Python 3.10 pickles it without its scope.
            ipaddress.IPv6Address: lambda value: (ipaddress.IPv6Address, (str(value),)),
            zoneinfo.ZoneInfo: lambda value: (zoneinfo.ZoneInfo, (value.key,)),
            collections.defaultdict: lambda value: (dict, (), None, None, iter(value.items())),
        },
        copyreg.dispatch_table,
    )

    def reducer_override(self, value: Any) -> Any:
        """How a value is pickled that has no opcode of its own."""
        self.plain = False
        # Each version of Python has another way to pickle an enum's member.
        if isinstance(value, enum.Enum):
            return type(value), (value.value,)
        if isinstance(value, (type, types.FunctionType)) or type(value) in self.dispatch_table:
            return NotImplemented
        reduced = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        if reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return _new, *reduced[1:]
        return reduced


def encode(entity: Mapping[Any, Any], classes: Any = (), max_size: int = MAX_SIZE) -> bytes:
    """The body of a dictionary: a pickle of protocol 5, compressed by zlib.

    classes, max_size (bytes): as for Datastore. Raises TypeError, ValueError, or Untrusted for what
    decode could not read, or would refuse.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, protocol=5)
    try:
        pickler.dump(dict(entity))
        data = buffer.getvalue()
        if not pickler.plain:
            _load(data, _allow(classes))
    except Untrusted:
        raise
    except Exception as error:
        # Pickling runs the values' own code, which can raise anything.
        raise TypeError(
            f"{reprlib.repr(entity)} cannot be pickled and read again: {error}"
        ) from error
    if len(data) > max_size:
        raise ValueError(f"the entity has {len(data)} bytes when pickled, over max_size={max_size}")
    # At 300 bytes all levels are within 1 %. At 6 kB level 6 saves 7 %, for 1.7 times the time.
    return zlib.compress(data, 1)


def decode(body: bytes, classes: Any = (), max_size: int = MAX_SIZE) -> dict[Any, Any]:
    """The dictionary of a body. classes, max_size (bytes): as for Datastore.

    Raises Untrusted, and Corrupt if it is no zlib, no pickle, no dictionary, or larger.
    """
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(body, max_size)
        if not stream.eof or stream.unused_data:
            raise ValueError(f"it is cut short, or over max_size={max_size} bytes")
        entity = _load(data, _allow(classes))
        if not isinstance(entity, dict):
            raise ValueError("it is no dictionary")
    except Untrusted:
        raise
    except Exception as error:
        # A broken pickle can raise anything.
        raise Corrupt(f"the body cannot be read: {type(error).__name__}: {error}") from error
    return entity


def _load(data: bytes, allowed: Any) -> Any:
    if allowed == ANY:
        return pickle.loads(data)
    # The opcodes EXT are answered from this cache, before find_class is asked.
    copyreg.clear_extension_cache()
    unpickler = _Unpickler(io.BytesIO(data))
    unpickler.allowed = allowed
    value = unpickler.load()
    functions = unpickler.functions
    # Its memo holds the functions. Those that live on are values of the body.
    del unpickler
    if functions:
        raise pickle.UnpicklingError("it holds a class or a function as a value")
    return value


def _new_id() -> str:
    """A UUID of version 7 (RFC 9562): ids sort by the millisecond in which they were made.

    | 48 bits: milliseconds since 1970 | 4: version 7 | 12: random | 2: variant 2 | 62: random |
    """
    number = int.from_bytes(os.urandom(16), "big")
    number &= ~(0xFFFF_FFFF_FFFF << 80 | 0xF << 76 | 0x3 << 62)
    number |= time.time_ns() // 1_000_000 << 80 | 7 << 76 | 2 << 62
    return str(uuid.UUID(int=number))


def _check_id(id: Any) -> str:
    if type(id) is not str:
        raise TypeError(f"an id is a str, not {reprlib.repr(id)} of type {type(id).__name__}")
    if not 1 <= len(id) <= 36 or not _is_unicode(id):
        raise ValueError(f"an id has 1 to 36 characters of Unicode, unlike {reprlib.repr(id)}")
    return id


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 has it: it has no half of a surrogate pair."""
    return text.isascii() or not re.search("[\ud800-\udfff]", text)


# ---- The server. Knows connections and transactions; nothing of entities and indexes. ------------

# By itself MySQLdb writes a large Decimal as a DOUBLE.
CONVERSIONS: dict[Any, Any] = {**conversions, FIELD_TYPE.TIMESTAMP: dt.datetime.fromisoformat}
CONVERSIONS[Decimal] = lambda value, _: format(value, "f")
CONNECT = {"charset": "utf8mb4", "binary_prefix": True, "autocommit": True, "conv": CONVERSIONS}


# How statements begin that answer with rows; SET_SESSION ends with a SELECT.
ANSWERED = "SELECT", "SHOW", "ANALYZE", "SET NAMES"


@dataclasses.dataclass
class _Block:
    """An open transaction."""

    connection: Any
    token: Any = None
    # How many calls and blocks are inside of each other.
    depth: int = 1
    # It was sent to the server; has written; can only be rolled back; is over.
    begun: bool = False
    written: bool = False
    failed: bool = False
    ended: bool = False


class _Server:
    """The connections to a database, and the transaction that is open in this context.

    `exchange` alone sends, `transaction` begins and commits, `repeat` repeats.
    """

    def __init__(self, connect: dict[str, Any]) -> None:
        self.connect = connect
        self.max_packet = 0
        self.mariadb = False
        self._closed = False
        self._idle: collections.deque[Any] = collections.deque()
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._block = contextvars.ContextVar[_Block | None]("block", default=None)
        os.register_at_fork(after_in_child=functools.partial(_abandon, self._connections))

    @property
    def block(self) -> _Block | None:
        """The transaction that is open here."""
        block = self._block.get()
        if block is None or block.depth == 0:
            return None
        if block.ended:
            raise Error("the transaction() around this one has ended")
        try:
            # This fails in another context than that which set it: another thread, or task.
            self._block.reset(block.token)
        except (ValueError, RuntimeError):
            raise Error("a transaction() is for the thread and the task that began it") from None
        block.token = self._block.set(block)
        return block

    def read(self, *packet: Statement) -> list[Rows]:
        """The rows of the statements, which are a part of the block if one is open."""
        block = self.block
        if block:
            return self._send(block, packet)
        with self._connection() as connection:
            return self.exchange(connection, *packet)

    def write(self, block: _Block, packet: list[Statement]) -> list[Rows]:
        """The last packet of a call. If the block is the call's own, it is committed."""
        block.written = True
        return self._send(block, packet, commit=block.depth == 1)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[_Block]:
        """Joins the block that is open here, or opens one, which is committed at its end."""
        outer = self.block
        if outer:
            outer.depth += 1
            try:
                yield outer
            finally:
                outer.depth -= 1
            if outer.ended:
                raise Error("the transaction() around this one has ended before it")
            return
        with self._connection() as connection:
            block = _Block(connection)
            block.token = self._block.set(block)
            try:
                yield block
                if self.block is not block or block.depth > 1 or block.failed:
                    raise Error("a call in this transaction() failed, or another one is open in it")
                if block.begun:
                    self._send(block, [], commit=True)
            finally:
                # The variable keeps the block, for calls of those that are still inside.
                block.ended = True
                block.depth -= 1
                block.connection = block.token = None

    def _send(self, block: _Block, packet: Sequence[Statement], commit: bool = False) -> list[Rows]:
        if block.failed:
            raise Error("a call in this transaction() has failed: leave it")
        begin = [] if block.begun else [("START TRANSACTION",)]
        end = [("COMMIT",)] if commit else []
        try:
            rows = self.exchange(block.connection, *begin, *packet, *end)
        except MySQLdb.Error as error:
            # A stale epoch is found before anything is written: the block goes on.
            block.failed = not _is_stale(error)
            block.begun = True
            if commit and block.written and _code(error) in LOST - NOT_DONE:
                told = "the connection was lost in COMMIT: the write is stored or not"
                raise Unknown(f"{told}; read, then decide ({error.args[-1]})") from None
            raise
        block.begun = not commit
        return rows

    def exchange(self, connection: Any, *packet: Statement) -> list[Rows]:
        """One round trip. Returns the rows of each statement that has some."""
        query = self._query(connection, packet)
        # MySQLdb has no result for a statement without rows, nor for rows that are cut off.
        asked = [sql for sql, *_ in packet if sql.startswith(ANSWERED)]
        try:
            if not _is_quiet(connection):
                # Said before the packet is sent, so that it is known that nothing was done.
                raise MySQLdb.OperationalError(CR.SERVER_GONE_ERROR, "the connection was closed")
            connection.query(query)
            rows = _fetch(connection)
            if len(rows) < len(asked):
                raise MySQLdb.OperationalError(CR.SERVER_LOST, "a result was cut off")
        except BaseException as error:
            # After a signal's exception there is an answer that nobody has read.
            if not isinstance(error, MySQLdb.Error) or _code(error) in LOST:
                connection.close()
            raise
        return rows

    def _query(self, connection: Any, packet: Sequence[Statement]) -> bytes:
        bound = [sql.encode() % tuple(map(connection.literal, args)) for sql, *args in packet]
        query = b";".join(bound)
        if self.mariadb and len(bound) > 1:
            # Galera may abort a transaction between two statements, and run those that follow.
            query = b"BEGIN NOT ATOMIC " + query + b"; END"
        if len(query) >= self.max_packet > 0:
            size = f"{len(query)} bytes, over max_allowed_packet = {self.max_packet}"
            raise ValueError(f"this call needs a packet of {size}")
        return query

    def repeat(self, attempt: Callable[[], T], renew: Callable[[], Any] = lambda: None) -> T:
        """attempt(), again while it did nothing and may succeed. After a stale epoch, renew().

        In a block nothing else is repeated, as what was before is rolled back, too.
        """
        end = time.monotonic() + RETRY_SECONDS
        pause = 0.001
        while True:
            try:
                return attempt()
            except MySQLdb.Error as error:
                stale = _is_stale(error)
                again = stale or _code(error) in ROLLED_BACK | LOST and not self.block
                if not again or time.monotonic() > end:
                    raise
            time.sleep(random.uniform(0, pause))
            pause = min(1, pause * 2)
            if stale:
                renew()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Callable[..., Rows]]:
        """A query(sql, *args) that sees the database as of one moment."""
        if self.block:
            raise Error("a scan inside a transaction() would not see its writes")
        with self._connection() as connection:
            self.exchange(connection, (SET_SNAPSHOT,), (BEGIN_SNAPSHOT,))
            yield lambda *statement: self.exchange(connection, statement)[0]
            self.exchange(connection, ("COMMIT",))

    @contextlib.contextmanager
    def defining(self) -> Iterator[Callable[[str], None]]:
        """A define(sql) for CREATE, ALTER and DROP. One program at a time may have it.

        The server takes the lock back when the connection ends, however that comes about.
        """
        if self.block:
            raise Error("tables and indexes cannot be changed inside a transaction()")

        def define(sql: str) -> None:
            try:
                self.exchange(connection, (sql,))
            except MySQLdb.Error as error:
                if _code(error) not in DENIED:
                    raise
                told = "this account may not do it: let another one do the same, or the DBA"
                raise Error(f"{told} {sql.replace('%%', '%')}") from None

        connection = self._take()
        lock = "SELECT GET_LOCK(%s, %s)", f"slim {self.connect['database']}"[:64], RETRY_SECONDS
        try:
            if not self.exchange(connection, (SET_DEFINING,), lock)[0][0][0]:
                raise Error("another program is changing the indexes: try again later")
            yield define
        finally:
            if connection.open:
                connection.close()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        """A connection, which is rolled back after a failure, or not used again."""
        connection = self._take()
        try:
            yield connection
        except BaseException:
            with contextlib.suppress(MySQLdb.Error):
                self.exchange(connection, ("ROLLBACK",))
                self._give_back(connection)
            raise
        self._give_back(connection)

    def _take(self) -> Any:
        if self._closed:
            raise Error("this Datastore is closed; open another")
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if _is_quiet(connection):
                    return connection
                connection.close()
        connection = MySQLdb.connect(**self.connect)
        self._connections.add(connection)
        self.mariadb = "MariaDB" in connection.get_server_info()  # type: ignore[no-untyped-call]
        self.max_packet = self.exchange(connection, (SET_SESSION,))[0][0][0]
        return connection

    def _give_back(self, connection: Any) -> None:
        self._idle.append(connection)
        # close() may have looked a moment ago.
        if self._closed:
            self.close()

    def close(self) -> None:
        """Closes what is idle now, and what is in use when its call ends."""
        self._closed = True
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()


def _abandon(connections: Iterable[Any]) -> None:
    """In a forked child: to close the parent's connections would say goodbye for it."""
    with open(os.devnull, "r+b") as null:
        for connection in connections:
            with contextlib.suppress(MySQLdb.Error):
                os.dup2(null.fileno(), connection.fileno())


def _is_quiet(connection: Any) -> bool:
    """Whether there is nothing to be read: a server that closes a connection says or ends it."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)


def _fetch(connection: Any) -> list[Rows]:
    rows: list[Rows] = []
    while True:
        result = connection.store_result()
        if result is not None:
            rows.append(result.fetch_row(0))
        if connection.next_result() == -1:
            return rows


def _code(error: BaseException) -> Any:
    """The number of a driver's error, else None. Group Replication calls some deadlocks 1180."""
    if not isinstance(error, MySQLdb.Error) or not error.args:
        return None
    deadlock = error.args[0] == ER.ERROR_DURING_COMMIT and "error 149" in str(error)
    return ER.LOCK_DEADLOCK if deadlock else error.args[0]


def _is_stale(error: BaseException) -> bool:
    """Whether the catalogue's column has another name by now."""
    epoch = re.search("epoch_(first|[0-9a-f]{32})", str(error))
    return _code(error) == ER.BAD_FIELD_ERROR and epoch is not None


# ---- Index. Knows its table, its rows and its conditions; not who sends them. --------------------


class _Column(NamedTuple):
    """A declared type: the class of its values, its column, the most that fits."""

    python: type[Any]
    sql: str
    size: int = 0


# fmt: off
_COLUMNS = {column.python.__name__: column for column in (
    _Column(str, "VARCHAR(191)", 191), _Column(bytes, "VARBINARY(191)", 191),
    _Column(int, "BIGINT", 1 << 63), _Column(Decimal, "DECIMAL(65,30)", 35),
    _Column(float, "DOUBLE"), _Column(bool, "TINYINT(1)"), _Column(uuid.UUID, "BINARY(16)"),
    _Column(dt.date, "DATE"), _Column(dt.datetime, "DATETIME(6)"))}
# fmt: on


def _column(declared: str) -> _Column:
    sized = re.fullmatch(r"(VARCHAR|VARBINARY)\(([1-9]\d*)\)", declared)
    if sized:
        return _Column(str if sized[1] == "VARCHAR" else bytes, declared, int(sized[2]))
    if declared not in _COLUMNS:
        raise TypeError(f"{declared} is none of {', '.join(_COLUMNS)}, VARCHAR(n), VARBINARY(n)")
    return _COLUMNS[declared]


def _fits(column: _Column, value: Any) -> bool:
    """Whether the column holds the value exactly, neither cut nor rounded."""
    if isinstance(value, (str, bytes)):
        return len(value) <= column.size and (isinstance(value, bytes) or _is_unicode(value))
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Decimal):
        exponent: Any = value.as_tuple().exponent
        return value.is_finite() and exponent >= -30 and value.adjusted() < column.size
    return not column.size or -column.size <= value < column.size


def _stored(value: Any) -> Any:
    """The value as it is bound. Raises OverflowError for a datetime that UTC has not."""
    if isinstance(value, dt.datetime) and value.tzinfo:
        return value.astimezone(dt.timezone.utc).replace(tzinfo=None)
    return value.bytes if isinstance(value, uuid.UUID) else value


class Index:
    """A table of its own, in which entities are found by some of their properties.

    table: its name. properties: a name, several names, or a mapping of names to types; a name alone
    is a str. Types: str, int, float, bool, bytes, Decimal, date, datetime (kept in UTC), UUID, and
    "VARCHAR(n)", "VARBINARY(n)". unique: no two entities may have the same values.

    An entity is in it if it has all of the properties, and none is None.
    """

    def __init__(self, table: str, properties: Any, *, unique: bool = False) -> None:
        names = [properties] if isinstance(properties, str) else [*properties]
        types = {**properties} if isinstance(properties, Mapping) else dict.fromkeys(names, str)
        if not names or "entity_id" in names:
            raise ValueError(f"index {table} takes one property or several, and none is entity_id")
        self.table = table
        self.types = {name: str(getattr(cls, "__name__", cls)) for name, cls in types.items()}
        self.unique = unique
        self.columns = {name: _column(type_) for name, type_ in self.types.items()}
        self._names = {"table": _quote(table), "names": _names(names)}
        self._names["index_names"] = _names(names, "i.")

    def __repr__(self) -> str:
        return f"Index({self.table!r}, {self.types!r}, unique={self.unique})"

    def get_all(self, datastore: Datastore, /, **match: Any) -> list[Entity]:
        """The entities that match, in the index's order; [] if there is none.

        A value is an equality, slice(low, high) a half-open range (None: no end), a set or a list
        "one of". Raises TypeError, ValueError, NotPopulated.
        """
        return list(self.find(datastore, match))

    def find(
        self,
        datastore: Datastore,
        match: Mapping[str, Any],
        *,
        reverse: bool = False,
        limit: int | None = None,
        after: Mapping[Any, Any] | None = None,
    ) -> Iterator[Entity]:
        """The same, lazily, in the order of the properties, then of the id.

        reverse: the last first. limit: the most entities. after: an entity, to go on behind it.
        """
        position = () if after is None else self.position(after)
        size = PAGE if limit is None else min(limit, PAGE)
        sign, direction = ("<", " DESC") if reverse else (">", "")
        order = self._order(match, direction)
        conditions = self._conditions(match)
        found = [self._find(datastore, *each, position, sign, order, size) for each in conditions]
        merged = heapq.merge(*found, key=self.position, reverse=reverse)
        return itertools.islice(merged if len(found) > 1 else found[0], limit)

    def count(self, datastore: Datastore, /, **match: Any) -> int:
        """How many entities match. Raises as get_all does."""
        conditions = self._conditions(match)
        asked = [datastore._ask(self, COUNT_MATCH, args, where=sql) for sql, args in conditions]
        return sum([rows[0][0] for rows in asked])

    def put(self, datastore: Datastore, entity: Mapping[Any, Any]) -> None:
        """Stores a stored entity again, and so its row."""
        datastore.update(entity["id"], lambda stored: None)

    def populate(self, datastore: Datastore, *, progress: Progress | None = None) -> int:
        """Makes the table agree with the entities. Returns how many rows it had to change.

        Others may write meanwhile. progress: called as tqdm.tqdm is. Raises TypeError, ValueError
        or Duplicate for an entity that it cannot have.
        """
        return datastore._populate(self, progress)

    def row(self, entity: Mapping[Any, Any]) -> tuple[Any, ...] | None:
        """The entity's values in this index, None if it is not in it."""
        values = [entity.get(name) for name in self.types]
        if any([value is None for value in values]):
            return None
        return tuple(map(self.value, self.types, values))

    def value(self, name: str, value: Any) -> Any:
        """The value as MySQL has it."""
        column = self.columns[name]
        told = f"index {self.table}: property {name} is declared {self.types[name]}, for which"
        mend = f"give another value, or declare another type: Index(…, {{{name!r}: …}})"
        if type(value) is not column.python:
            given = f"{reprlib.repr(value)} is of another type, {type(value).__name__}"
            raise TypeError(f"{told} {given}; {mend}")
        with contextlib.suppress(OverflowError):
            if _fits(column, value):
                return _stored(value)
        raise ValueError(f"{told} {reprlib.repr(value)} is too large or too exact; {mend}")

    def position(self, entity: Mapping[Any, Any]) -> tuple[Any, ...]:
        """Where the entity stands in the index's order."""
        row = self.row(entity) if isinstance(entity, Mapping) else None
        if row is None:
            raise TypeError(f"{self}: after= takes an entity that has all of these properties")
        return *row, _check_id(entity.get("id"))

    def replace_rows(self, rows: Mapping[str, Any], new: bool = False) -> list[Statement]:
        """Statements for {id: row, or None}. new: the ids have no rows yet."""
        delete = [] if new else [(self.sql(DELETE_ROWS), [*rows])]
        # In the order of the key, so that two of them meet fewer deadlocks.
        values = sorted([(*row, id) for id, row in rows.items() if row is not None])
        return [*delete, _insert(self.sql(INSERT_ROWS), values)] if values else delete

    def sql(self, sql: str, **parts: str) -> str:
        """A statement with this index's names in it."""
        return sql.format(**self._names, **parts)

    def _order(self, match: Mapping[str, Any], direction: str) -> str:
        # MariaDB 10.11 would sort by a column that has a single value.
        single = {name for name in match if len(_one_of(match[name])) == 1}
        columns = [name for name in [*self.types, "entity_id"] if name not in single]
        return ", ".join([f"i.{_quote(name)}{direction}" for name in columns])

    def _conditions(self, match: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
        """A condition in SQL with its arguments; several, if "one of" is long."""
        conditions: list[tuple[str, list[Any]]] = [("TRUE", [])]
        for name, asked in match.items():
            terms = self._terms(name, asked)
            conditions = [(f"{a} AND {b}", [*x, *y]) for a, x in conditions for b, y in terms]
        return conditions

    def _terms(self, name: str, asked: Any) -> list[tuple[str, list[Any]]]:
        if name not in self.types:
            raise TypeError(f"{self} has no property {name!r}")
        column = f"i.{_quote(name)}"
        if isinstance(asked, slice):
            ends = {f"{column} >= %s": asked.start, f"{column} < %s": asked.stop}
            ends = {sql: self.value(name, end) for sql, end in ends.items() if end is not None}
            return [(" AND ".join(["TRUE", *ends]), [*ends.values()])]
        # Nothing is IN (NULL): an empty set matches nothing.
        values = sorted({self.value(name, value) for value in _one_of(asked)}) or [None]
        # Each page sends all of its condition again.
        starts = range(0, len(values), PAGE)
        return [(f"{column} IN %s", [values[start : start + PAGE]]) for start in starts]

    def _find(
        self,
        datastore: Datastore,
        where: str,
        args: Any,
        position: Any,
        sign: str,
        order: str,
        size: int,
    ) -> Iterator[Entity]:
        """What meets a condition, behind a position, in pages of a size."""
        columns = [f"i.{_quote(name)}" for name in [*self.types, "entity_id"]]
        more_rows = size > 0
        while more_rows:
            behind, more = _behind(columns, position, sign)
            parts = {"where": f"{where} AND {behind}", "order": order}
            rows = datastore._ask(self, SELECT_MATCH, [*args, *more, size], **parts)
            more_rows = len(rows) == size
            for row in rows:
                position = row[4:]
                entity = datastore._entity(row[:4])
                # On a sharded server the row may be older than the entity.
                if entity and self.row(entity) == position[:-1]:
                    yield entity


def _one_of(asked: Any) -> Any:
    """The values of a condition; none of a range."""
    if isinstance(asked, slice):
        return []
    return asked if isinstance(asked, (set, frozenset, list)) else [asked]


def _behind(columns: Sequence[str], values: Sequence[Any], sign: str) -> tuple[str, list[Any]]:
    """(columns) > (values), in the form for which MySQL and MariaDB use the key; all, if none."""
    if not values:
        return "TRUE", []
    column, value = columns[0], values[0]
    rest, args = _behind(columns[1:], values[1:], sign)
    if not args:
        return f"{column} {sign} %s", [value]
    return f"({column} {sign} %s OR ({column} = %s AND {rest}))", [value, value, *args]


# ---- The catalogue. Knows the server and Index: which indexes there are; nothing of bodies. ------

# It has one column that is never filled. Its name is the catalogue's epoch, and the row of the same
# id lists the indexes. A change writes the row of a new epoch, and renames the column:
#
#   writer    START TRANSACTION; SELECT epoch_a …; (writes what the indexes of a need); COMMIT
#   changer   INSERT row b; RENAME COLUMN epoch_a TO epoch_b (it waits for that COMMIT)
#   writer    START TRANSACTION; SELECT epoch_a …: error 1054. It reads row b, and begins again.
#
# The SELECT finds nothing. It holds a metadata lock until COMMIT, which the renaming waits for; on
# a sharded server its ids lead to the shards that are written to. Of two changers the second gets
# 1054, too. Who dies in between leaves a row that nobody reads.


class _Catalogue(NamedTuple):
    """The indexes as of one epoch. Each attempt of a call works from one."""

    epoch: str
    # {table: {"types", "unique", "populated", "made"}}, None for one that is being dropped.
    entries: dict[str, Any]
    indexes: dict[str, Index]
    history: bool
    # The ids of its rows, also of those that nobody reads.
    rows: list[str]

    def check(self, ids: Sequence[str]) -> Statement:
        """The first statement of a write to these ids: it fails once the epoch is another."""
        return CHECK_EPOCH.format(epoch=self.epoch), ids or [""]

    def entry(self, index: Index, made: str = "") -> dict[str, Any]:
        """What it says of the index, {} if nothing; NotPopulated if it is not `made` then."""
        entry: dict[str, Any] = self.entries.get(index.table) or {}
        if entry and repr(self.indexes[index.table]) != repr(index):
            raise ValueError(f"{self.indexes[index.table]} has this name: remove it before {index}")
        if made and entry.get("made") != made:
            raise NotPopulated(f"{index} was removed, or never added")
        return entry

    def write(self, changes: Mapping[str, Any], new: bool = False) -> list[Statement]:
        """Stores {id: (entity, body)}, or deletes: {id: None}. new: nothing has these ids."""
        ids = [*changes]
        stored = [(id, change[1]) for id, change in changes.items() if change]
        packet: list[Statement] = [] if new else [(DELETE_ENTITIES, ids)]
        packet += [_insert(INSERT_ENTITIES, stored)] if stored else []
        packet += [(INSERT_HISTORY, ids)] if stored and self.history else []
        for index in self.indexes.values():
            rows = {id: change and index.row(change[0]) for id, change in changes.items()}
            packet += index.replace_rows(rows, new)
        return packet


class _Definitions:
    """Reads and changes the catalogue, and the tables that it lists."""

    def __init__(self, server: _Server) -> None:
        self.server = server
        self.catalogue = _Catalogue("", {}, {}, False, [])

    def open(self) -> None:
        """Creates the tables that are missing, and reads the catalogue."""
        if not (self._stands("entities", ENTITIES) and self._stands("entities_catalogue", {})):
            with self.server.defining() as define:
                keys = "PRIMARY KEY (added_id), UNIQUE KEY (id), KEY (updated)"
                self._create(define, "entities", ENTITIES, keys)
                self._create(define, "entities_catalogue", CATALOGUE, "PRIMARY KEY (id)")
        self.renew()

    def keep_history(self) -> None:
        """From then on every writer keeps the versions."""
        with self.server.defining() as define:
            if not self.renew().history:
                keys = "PRIMARY KEY (number), KEY (id, number)"
                self._create(define, "entities_history", HISTORY, keys)
                self._change(define, self.catalogue.entries, history=True)

    def add(self, index: Index) -> None:
        """Creates the table, and lists it: from then on every writer maintains it."""
        with self.server.defining() as define:
            if self.renew().entry(index):
                return
            if index.table in self.catalogue.entries:
                # A program died while it removed it: its columns may be others.
                define(f"DROP TABLE IF EXISTS {_quote(index.table)}")
            columns = {name: f"{column.sql} NOT NULL" for name, column in index.columns.items()}
            columns["entity_id"] = ENTITIES["id"]
            key = _names(index.types if index.unique else columns)
            keys = f"PRIMARY KEY ({key}), UNIQUE (entity_id)"
            try:
                self._create(define, index.table, columns, keys)
                # A sharded server that was not told of the table refuses this, before a writer's.
                self.server.read((index.sql(DELETE_ROWS), [""]))
            except MySQLdb.Error as error:
                if _code(error) != ER.UNKNOWN_ERROR:
                    raise
                mend = f"ALTER VSCHEMA ON {_quote(index.table)} ADD VINDEX … (entity_id) first"
                raise Error(f"{index}: {error.args[-1]}; on a sharded server, {mend}") from None
            entry = {"types": index.types, "unique": index.unique, "made": uuid.uuid4().hex}
            self._change(define, {**self.catalogue.entries, index.table: entry})

    def publish(self, index: Index, made: str) -> None:
        """Says that the index is complete, if it is still the same."""
        with self.server.defining() as define:
            entry = {**self.renew().entry(index, made), "populated": True}
            self._change(define, {**self.catalogue.entries, index.table: entry})

    def remove(self, table: str) -> None:
        """Takes the index from the writers, then drops its table."""
        with self.server.defining() as define:
            entries = {**self.renew().entries}
            if table in entries:
                self._change(define, {**entries, table: None})
                define(f"DROP TABLE IF EXISTS {_quote(table)}")
                del entries[table]
                self._change(define, entries)

    def remove_missing(self) -> bool:
        """Takes out what was dropped by hand. Returns whether there was such a table."""
        missing = [table for table in self.renew().indexes if not self._stands(table, {})]
        for table in missing:
            self.remove(table)
        return bool(missing)

    def renew(self) -> _Catalogue:
        """The catalogue as it is now."""
        self.catalogue = self.server.repeat(self._read)
        return self.catalogue

    def _read(self) -> _Catalogue:
        show = SHOW_COLUMNS.format(table="entities_catalogue")
        # Another program may change it between the two statements.
        for _ in range(10):
            columns, rows = self.server.read((show,), (SELECT_CATALOGUE,))
            epoch = columns[2][0].removeprefix("epoch_")
            # A new table has no row for its first epoch. Any other epoch has its row.
            contents = {"first": FIRST_CONTENT} if epoch == "first" else dict(rows)
            if epoch in contents:
                break
        else:
            raise Error(f"entities_catalogue has no row {epoch!r}: bring it back from a backup")
        content = json.loads(contents[epoch])
        entries = content["indexes"]
        indexes = {
            table: Index(table, entry["types"], unique=entry["unique"])
            for table, entry in entries.items()
            if entry
        }
        return _Catalogue(epoch, entries, indexes, content["history"], [id for id, _ in rows])

    def _change(self, define: Any, entries: Mapping[str, Any], history: bool = False) -> None:
        """Publishes other entries. It waits for writes that began with the old ones."""
        old = self.catalogue
        content = {"indexes": entries, "history": history or old.history}
        if content == {"indexes": old.entries, "history": old.history}:
            return
        epoch = uuid.uuid4().hex
        self.server.read((INSERT_CATALOGUE, epoch, json.dumps(content)))
        # If the answer is lost it may have been done: the row stays in any case.
        define(RENAME_EPOCH.format(old=old.epoch, new=epoch))
        if self.server.mariadb:
            # Galera may replay behind the renaming what was certified before it, unchecked. This
            # claims the table that every write changes, and waits for such a write, or aborts it.
            define("ANALYZE TABLE entities")
        if old.rows:
            self.server.read((DELETE_CATALOGUE, old.rows))
        self.renew()

    def _stands(self, table: str, columns: Mapping[str, str]) -> bool:
        """Whether the table stands. Raises Error if it has not these columns."""
        try:
            (rows,) = self.server.read((SHOW_COLUMNS.format(table=_quote(table)),))
        except MySQLdb.ProgrammingError as error:
            if _code(error) != ER.NO_SUCH_TABLE:
                raise
            return False
        found = {name: (type_, collation) for name, type_, collation, *_ in rows}
        for name, definition in columns.items():
            type_, collation = found.get(name, ("missing", None))
            needed = definition.split()[0].lower()
            # MariaDB has bigint(20); an id may be longer; `updated` may be a DATETIME.
            serves = {"varchar(36)": "varchar", "timestamp": "(timestamp|datetime)"}
            if not re.match(serves.get(needed, re.escape(needed)) + "(?![a-z])", type_):
                raise Error(f"table {table} stands, but its column {name} is {type_}, not {needed}")
            if collation not in (None, self._collation):
                mend = f"ALTER TABLE {_quote(table)} CONVERT TO CHARACTER SET utf8mb4 COLLATE"
                told = f"column {name} of table {table} compares by {collation}, not exactly"
                raise Error(f"{told}: {mend} {self._collation}")
        return True

    def _create(self, define: Any, table: str, columns: Mapping[str, str], keys: str) -> None:
        if not self._stands(table, columns):
            lines = ",\n  ".join([f"{_quote(name)} {sql}" for name, sql in columns.items()])
            options = f"ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE={self._collation}"
            define(f"CREATE TABLE {_quote(table)} (\n  {lines},\n  {keys}\n) {options}")

    @property
    def _collation(self) -> str:
        """Compares text as Python does, spaces at its end, too."""
        return "utf8mb4_nopad_bin" if self.server.mariadb else "utf8mb4_0900_bin"


# ---- Datastore. How reading and writing are put together, then the verbs. ------------------------


class _Store:
    """What the verbs, and an Index, are made of."""

    def __init__(self, server: _Server, classes: Any, max_size: int) -> None:
        self._server = server
        self._definitions = _Definitions(server)
        self._classes = _allow(classes)
        self._max_size = max_size

    def _query(self, *statement: Any) -> Rows:
        return self._server.repeat(lambda: self._server.read(statement)[0])

    def _lock(self, ids: list[str]) -> Rows:
        """Locks entities in a block. The check first: it may have to wait, and must hold no row."""

        def attempt() -> Rows:
            check = self._definitions.catalogue.check(ids)
            return self._server.read(check, (LOCK_ENTITIES, ids))[-1]

        return self._server.repeat(attempt, self._definitions.renew)

    def _ask(self, index: Index, sql: str, args: Sequence[Any], **parts: str) -> Rows:
        """Rows of a query that is answered only if the index is complete."""

        def attempt() -> Rows:
            catalogue = self._definitions.catalogue
            if not catalogue.entry(index).get("populated"):
                catalogue = self._definitions.renew()
            if not catalogue.entry(index).get("populated"):
                raise NotPopulated(f"{index} is missing, or not complete: add_index makes it")
            check = CHECK_EPOCH_IN_QUERY.format(epoch=catalogue.epoch)
            return self._server.read((index.sql(sql, check=check, **parts), *args))[0]

        return self._server.repeat(attempt, self._definitions.renew)

    def _read(self, row: Sequence[Any]) -> Entity:
        version, id, updated, body = row
        try:
            entity = Entity(decode(body or b"", self._classes, self._max_size))
        except Corrupt as error:
            raise type(error)(f"entity {id!r}: {error}", id=id) from None
        entity.setdefault("id", id)
        entity.version = version
        entity.updated = updated.replace(tzinfo=dt.timezone.utc)
        return entity

    def _entity(self, row: Sequence[Any], query: Any = None) -> Entity | None:
        """The same for a row of a page, which has no large body. None if it is gone by now."""
        rows = [row] if row[3] is not None else (query or self._query)(SELECT_ENTITIES, [row[1]])
        return self._read(rows[0]) if rows else None

    def _prepare(self, entity: Any) -> tuple[str, dict[Any, Any], bytes]:
        """The id, the entity with it, and its body."""
        if not isinstance(entity, dict):
            raise TypeError(f"an entity is a dict, not {reprlib.repr(entity)}")
        id = _check_id(entity["id"]) if "id" in entity else _new_id()
        whole = {**entity, "id": id}
        body = encode(whole, self._classes, self._max_size)
        if len(body) > MAX_BODY:
            raise ValueError(f"entity {id!r} has {len(body)} bytes compressed, over {MAX_BODY}")
        return id, whole, body

    def _put(self, changes: Mapping[str, Any], new: bool) -> None:
        """Stores {id: (entity, body)} in one packet. new: there is nothing under these ids."""
        self._transact([*changes], lambda catalogue: catalogue.write(changes, new))

    def _change(self, id: str, decide: Any, expect: Any = None, *reads: Statement) -> Any:
        """Locks an entity, then stores decide(row), an entity and its body, or None to delete it.

        Returns the rows of `reads`, which see it done; None if there was and is nothing.
        """
        if expect is not None and (type(expect) is not int or expect < 0):
            raise TypeError(f"expect is a version, or 0 for no entity, not {expect!r}")

        def look(catalogue: _Catalogue, rows: Rows) -> list[Statement]:
            found = rows[0][0] if rows else 0
            if expect is not None and found != expect:
                raise Conflict(id=id, expected=expect, found=found)
            change = decide(rows[0] if rows else None)
            # Who deletes nothing locks nothing, and must not go on to the index rows.
            packet = catalogue.write({id: change}, new=not rows) if rows or change else []
            return [*packet, *reads]

        return self._transact([id], look, (LOCK_ENTITIES, [id]), new=expect == 0)

    def _transact(self, ids: list[str], look: Any, *locks: Statement, new: bool = False) -> Any:
        """Checks the catalogue, reads what `locks` lock, and sends look(catalogue, *rows).

        One packet if nothing is locked, else two. Returns what the last one reads, None if there is
        nothing to be sent. new: there must be nothing under the id, else it is a Conflict.
        """

        def attempt() -> Any:
            catalogue = self._definitions.catalogue
            check = catalogue.check(ids)
            packet = [] if locks else [check, *look(catalogue)]
            with self._server.transaction() as block:
                if locks:
                    # The check first: it may have to wait, and must hold no row meanwhile.
                    _, *rows = self._server.read(check, *locks)
                    packet = look(catalogue, *rows)
                try:
                    return self._server.write(block, packet) if packet else None
                except MySQLdb.IntegrityError as error:
                    if _code(error) == ER.DUP_ENTRY:
                        self._explain(catalogue, block, packet, ids[0] if new else None)
                    raise
                except Unknown as error:
                    error.id = ids[0] if len(ids) == 1 else None
                    raise

        while True:
            try:
                return self._server.repeat(attempt, self._definitions.renew)
            except MySQLdb.ProgrammingError as error:
                # The table of an index may have been dropped by hand.
                gone = _code(error) == ER.NO_SUCH_TABLE and not self._server.block
                if not gone or not self._definitions.remove_missing():
                    raise

    def _explain(self, catalogue: _Catalogue, block: _Block, packet: Any, new: Any) -> NoReturn:
        """Raises what error 1062 means."""
        for index in catalogue.indexes.values():
            for sql, *rows in packet if index.unique else ():
                if sql.startswith(index.sql(INSERT_ROWS)):
                    self._raise_duplicate(block, index, {row[-1]: row[:-1] for row in rows})
        for found, _ in (
            self._server.exchange(block.connection, (SELECT_VERSION, new))[0] if new else ()
        ):
            raise Conflict(id=new, expected=0, found=found) from None
        message = "two programs were inserting the same id: try it again"
        raise MySQLdb.OperationalError(ER.LOCK_DEADLOCK, message) from None

    def _raise_duplicate(self, block: _Block, index: Index, rows: Mapping[str, Any]) -> None:
        """Raises Duplicate if the rows have the values of each other, or of other entities."""
        owners: dict[Any, str] = {}
        for id, row in rows.items():
            if owners.setdefault(row, id) != id:
                raise Duplicate(index=index, id=owners[row]) from None
        select = index.sql(SELECT_OWNERS)
        for (id,) in self._server.exchange(block.connection, (select, [*owners], [*rows]))[0]:
            raise Duplicate(index=index, id=id) from None

    def _populate(self, index: Index, progress: Progress | None) -> int:
        if self._server.block:
            raise Error("an index cannot be populated inside a transaction()")
        made = self._definitions.renew().entry(index).get("made", "never")
        try:
            changed = self._repair(index, made, progress)
        except MySQLdb.Error as error:
            # Its table is gone, or is another one.
            if _code(error) not in (ER.NO_SUCH_TABLE, ER.BAD_FIELD_ERROR):
                raise
            raise NotPopulated(f"{index} was removed, or never added") from None
        self._server.repeat(lambda: self._definitions.publish(index, made))
        # On Galera another node can write a locked entity: a row that was right when it was
        # inserted may be wrong when it is committed. By now such writes are done.
        return changed + self._repair(index, made, None) if changed else 0

    def _repair(self, index: Index, made: str, progress: Progress | None) -> int:
        """Makes all rows right. Returns how many were wrong."""
        # In a unique index, rows without an entity could have the values of one.
        wrong = sum(self._delete_orphans(index, made))
        looked = self._repair_rows(index, made)
        total = self._query(COUNT_ENTITIES)[0][0] if progress else 0
        return wrong + sum(progress(looked, total=total) if progress else looked)

    def _repair_rows(self, index: Index, made: str) -> Iterator[bool]:
        """For each entity, whether its row was wrong."""
        looked: dict[int, bool] = {0: False}

        def look(catalogue: _Catalogue, rows: Rows) -> list[Statement]:
            catalogue.entry(index, made)
            looked.clear()
            wrong: dict[str, Any] = {}
            for version, id, updated, body, found, *row in rows:
                try:
                    wanted = index.row(self._entity((version, id, updated, body)) or {})
                except (TypeError, ValueError) as error:
                    raise type(error)(f"entity {id!r}: {error}") from None
                looked[version] = wanted != (tuple(row) if found else None)
                if looked[version]:
                    wrong[id] = wanted
            return index.replace_rows(wrong) if wrong else []

        while looked:
            self._transact([], look, (index.sql(LOCK_COMPARED), max(looked), PAGE))
            yield from looked.values()

    def _delete_orphans(self, index: Index, made: str) -> Iterator[int]:
        """How many rows there were without an entity, page by page."""
        orphans: list[str] = []

        def look(catalogue: _Catalogue, locked: Rows, stored: Rows) -> list[Statement]:
            catalogue.entry(index, made)
            orphans[:] = [id for (id,) in {*locked} - {*stored}]
            return [(index.sql(DELETE_ROWS), orphans)] if orphans else []

        ids = [""]
        while ids := [id for (id,) in self._query(index.sql(SELECT_ORPHANS), ids[-1], PAGE)]:
            # Whoever is about to insert one of these rows waits for it; who has done so is seen.
            self._transact(ids, look, (index.sql(LOCK_ROWS), ids), (SELECT_IDS, ids))
            yield len(orphans)


class Datastore(_Store):
    """Entities in a MySQL database. One Datastore serves all threads, tasks and forks of a program.

    host, user, password, database, `connect`: as for MySQLdb.connect; None is left to the option
    file. indexes: to be added. history: True keeps every version from now on. classes: those of the
    application that entities may hold, {"old.module.Name": class} for one that moved, or ANY.
    max_size: the most bytes of a body when decompressed. Raises Error if it may not create a table
    that is missing, or one cannot serve.
    """

    def __init__(
        self,
        host: str | None,
        user: str | None,
        password: str | None,
        database: str,
        indexes: Iterable[Index] = (),
        *,
        history: bool = False,
        classes: Any = (),
        max_size: int = MAX_SIZE,
        **connect: Any,
    ) -> None:
        named = {"host": host, "user": user, "password": password, "database": database}
        connect.update({name: value for name, value in named.items() if value is not None})
        super().__init__(_Server({**connect, **CONNECT}), classes, max_size)
        self._definitions.open()
        if history:
            self._server.repeat(self._definitions.keep_history)
        for index in indexes:
            if not self._definitions.catalogue.entry(index).get("populated"):
                self.add_index(index)

    def __enter__(self) -> Datastore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Datastore cannot be pickled or copied: open one in each process")

    def put(self, entity: dict[Any, Any], *, expect: int | None = None) -> str:
        """Stores the dictionary, whole, under its "id"; without one, under a new one, set in it.

        expect: the version to be replaced (0: none), else Conflict. Returns the id. Raises
        TypeError or ValueError for what cannot be stored, Duplicate, and Unknown.
        """
        id, whole, body = self._prepare(entity)
        changes = {id: (whole, body)}
        if expect is None:
            self._put(changes, new="id" not in entity)
        else:
            self._change(id, lambda row: changes[id], expect)
        entity["id"] = id
        return id

    def put_many(
        self,
        entities: Iterable[dict[Any, Any]],
        *,
        batch: int = PAGE,
        progress: Progress | None = None,
    ) -> int:
        """Stores any number of dictionaries. Of two with one id the later stands. Returns how many.

        batch: the most entities of a transaction. progress: called as tqdm.tqdm is. Raises as put
        does; the transactions before that one stay.
        """
        count = size = 0
        changes: dict[str, Any] = {}
        new = True
        for entity in progress(entities) if progress else entities:
            id, whole, body = self._prepare(entity)
            large = size + len(body) > min(BATCH_BYTES, self._server.max_packet // 8)
            if changes and (large or len(changes) >= batch):
                self._put(changes, new)
                size, changes, new = 0, {}, True
            # Where the id came last, so that its version is the newest.
            changes.pop(id, None)
            changes[id] = whole, body
            new = new and "id" not in entity
            entity["id"] = id
            size += len(body)
            count += 1
        if changes:
            self._put(changes, new)
        return count

    def get(self, id: str, *, version: int | None = None) -> Entity | None:
        """The entity, or None; inside a transaction() locked until that ends.

        version: that one of its versions. Raises Corrupt, Untrusted.
        """
        entity = self.get_many([id]).get(id)
        if version is None or entity and entity.version == version:
            return entity
        return next((kept for kept in self.history(id) if kept.version == version), None)

    def get_many(self, ids: Iterable[str]) -> dict[str, Entity]:
        """{id: entity} of those that there are; otherwise as get."""
        asked = [_check_id(id) for id in ids]
        found = {}
        for start in range(0, len(asked), PAGE):
            page = asked[start : start + PAGE]
            rows = self._lock(page) if self._server.block else self._query(SELECT_ENTITIES, page)
            found.update({row[1]: self._read(row) for row in rows})
        return {id: found[id] for id in asked if id in found}

    def delete(self, id: str, *, expect: int | None = None) -> bool:
        """Deletes the entity. False if there was none. expect: as for put. Raises Unknown."""
        return self._change(_check_id(id), lambda row: None, expect) is not None

    def update(
        self,
        id: str,
        change: Callable[[Entity], None],
        default: Mapping[Any, Any] | None = None,
    ) -> Entity:
        """Lets `change` alter the entity in place, and stores it, atomically. Returns it.

        `change` may be called several times. default: what it gets if there is no entity, else that
        is a KeyError. Raises as put does.
        """
        entity = Entity()

        def decide(row: Any) -> Any:
            nonlocal entity
            if not row and default is None:
                raise KeyError(id)
            entity = (
                self._read(row) if row else Entity(copy.deepcopy({**(default or {}), "id": id}))
            )
            # What `change` has put itself must not be committed if it fails.
            with self.transaction():
                returned: Any = change(entity)  # type: ignore[func-returns-value]
            if returned is not None or entity.get("id") != id:
                raise TypeError("change(entity) alters all but the id in place, and returns None")
            return self._prepare(entity)[1:]

        stamp = SELECT_VERSION, _check_id(id)
        ((entity.version, updated),) = self._change(id, decide, None, stamp)[-1]
        entity.updated = updated.replace(tzinfo=dt.timezone.utc)
        return entity

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done inside is committed together, or rolled back on any exception.

        Inner ones join the outer. It is for the thread and the task that begins it, and is not
        repeated: a deadlock (1213, 1205, 1020) is raised. Raises Unknown.
        """
        with self._server.transaction() as block:
            try:
                yield
            except BaseException:
                # The outer one might catch it, and must not commit the half.
                block.failed = True
                raise

    def scan(self, *, progress: Progress | None = None) -> Iterator[Entity]:
        """Every entity as of one moment, oldest put first; not inside a transaction().

        progress: called as tqdm.tqdm is. Raises Corrupt, Untrusted.
        """
        entities = iter(self)
        return iter(progress(entities, total=len(self))) if progress else entities

    def __iter__(self) -> Iterator[Entity]:
        last = 0
        with self._server.snapshot() as query:
            while rows := query(SELECT_PAGE, last, PAGE):
                for row in rows:
                    entity = self._entity(row, query)
                    if entity:
                        yield entity
                last = rows[-1][0]

    def __len__(self) -> int:
        return int(self._query(COUNT_ENTITIES)[0][0])

    def __bool__(self) -> bool:
        return True

    def __contains__(self, id: str) -> bool:
        return bool(self._query(SELECT_IDS, [_check_id(id)]))

    def history(self, id: str) -> list[Entity]:
        """Every version that was put, newest first, also after a delete. Error if none is kept."""
        if not self._definitions.renew().history:
            raise Error("no history is kept here: open it once by Datastore(…, history=True)")
        return [self._read(row) for row in self._query(SELECT_HISTORY, _check_id(id))]

    def forget(self, id: str) -> None:
        """Deletes the entity, and all its versions. Raises Unknown."""
        kept = self._definitions.renew().history
        versions = [(DELETE_HISTORY, id, id)] if kept else []
        self._change(_check_id(id), lambda row: None, None, *versions)

    def schema(self, *, limit: int | None = None, progress: Progress | None = None) -> Schema:
        """The types of dictionary in the store, or in its oldest `limit` entities."""
        return Schema(itertools.islice(self.scan(progress=progress), limit))

    @property
    def indexes(self) -> list[Index]:
        """The indexes of the database, also those that are not populated."""
        return [*self._definitions.renew().indexes.values()]

    def add_index(
        self, index: Index, *, populate: bool = True, progress: Progress | None = None
    ) -> Index:
        """Creates the index, and populates it, while other programs read and write. Returns it.

        populate: False leaves that for later. Raises ValueError if there is another of this name,
        and as Index.populate does: then it is removed again.
        """
        self._server.repeat(lambda: self._definitions.add(index))
        if populate and not self._definitions.catalogue.entry(index).get("populated"):
            try:
                index.populate(self, progress=progress)
            except (TypeError, ValueError, Duplicate, Corrupt):
                # Else writers would be refused what is stored already.
                self.remove_index(index)
                raise
        return index

    def remove_index(self, index: Index) -> None:
        """Drops the index, if there is one."""
        self._server.repeat(lambda: self._definitions.remove(index.table))

    def close(self) -> None:
        """Closes the connections; those in use when their calls end."""
        self._server.close()


# ---- schema, and the command line. Know Datastore and Index; nothing private of them. ------------


class Shape(NamedTuple):
    """A type of dictionary: its entities, their share, {key: type}, the id of an example."""

    entities: int
    share: float
    fields: dict[str, str]
    example: str


class Schema:
    """The types of dictionary, `shapes`, of `count` entities, the most frequent first."""

    def __init__(self, entities: Iterable[Mapping[Any, Any]]) -> None:
        counts: collections.Counter[Any] = collections.Counter()
        examples: dict[Any, str] = {}
        for entity in entities:
            fields = tuple(sorted([(str(key), type(entity[key]).__name__) for key in entity]))
            counts[fields] += 1
            examples.setdefault(fields, entity["id"])
        self.count = counts.total()
        self.shapes = [
            Shape(count, count / self.count, dict(fields), examples[fields])
            for fields, count in counts.most_common()
        ]

    def __str__(self) -> str:
        """The first of them, on a screen of 24 lines and 80 columns."""
        lines = [f"{self.count:,} entities, {len(self.shapes):,} types of dictionary"]
        for count, share, fields, example in self.shapes[:10]:
            lines.append(f"{count:,} ({share:.1%}), such as {example}")
            lines.append("  " + ", ".join([f"{key}: {type_}" for key, type_ in fields.items()]))
        return "\n".join([_printable(line)[:79] for line in lines])


def _printable(text: str) -> str:
    """The text with control characters shown as escapes, so that no terminal obeys them."""
    return "".join([char if char.isprintable() else repr(char)[1:-1] for char in text])


def _text(thing: Any) -> str:
    """A thing for people; the values of an entity as Python writes them."""
    if not isinstance(thing, Entity):
        return str(thing)
    lines = [f"{k}: {v!r}" for k, v in thing.items()]
    return "\n  ".join(map(_printable, [f"version {thing.version}, {thing.updated}", *lines]))


def _json(value: Any, outer: tuple[int, ...] = ()) -> Any:
    """What JSON has not becomes {"its type": its text}; so does what holds itself."""
    kind = type(value).__name__
    if isinstance(value, (str, int, types.NoneType)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if id(value) in outer:
        return {kind: "…"}
    inner = functools.partial(_json, outer=(*outer, id(value)))
    if isinstance(value, dict):
        return {_key(key): inner(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [*map(inner, value)]
    if isinstance(value, (set, frozenset)):
        return {kind: [*map(inner, value)]}
    return {kind: value.hex() if isinstance(value, bytes) else str(value)}


def _key(key: Any) -> str:
    return key if isinstance(key, str) else repr(key)


EPILOG = """Ranges: slim app find index_city city=London 'born>=1900-01-01' 'born<1950-01-01'. A
property given twice is "one of". What JSON has not becomes {"its type": its text}."""


def _parser() -> argparse.ArgumentParser:
    suppress = argparse.SUPPRESS
    parser = argparse.ArgumentParser(
        "slim", add_help=False, argument_default=suppress, epilog=EPILOG
    )
    add = parser.add_argument
    add("--help", action="help")
    add("-h", "--host")
    add("-P", "--port", type=int)
    add("-S", "--socket", dest="unix_socket")
    add("-u", "--user")
    add("-p", "--password", help="-pSECRET; -p asks for it")
    add("--defaults-file", dest="read_default_file", help="instead of those that mysql reads")
    add("--json", action="store_true", default=False, help="print JSON lines")
    add("database")
    add("verb", choices=["schema", "get", "indexes", "find", "populate"])
    add("what", nargs="?", default="", help="an ID, or an INDEX")
    add("match", nargs="*", default=[], help="property=value 'property>=low' 'property<high'")
    return parser


def _match(index: Index, words: Iterable[str]) -> dict[str, Any]:
    """What find is asked for, from words such as age>=18."""
    match: dict[str, Any] = {}
    for word in words:
        try:
            name, sign, text = re.split("(>=|<(?!=)|=)", word, maxsplit=1)
            cls: Any = index.columns[name].python
            parse = {bool: json.loads, bytes: str.encode}.get(cls, cls)
            value = getattr(cls, "fromisoformat", parse)(text)
            ends = match.get(name, slice(None))
            if sign == "=":
                match.setdefault(name, []).append(value)
            elif sign == "<":
                match[name] = slice(ends.start, value)
            else:
                match[name] = slice(value, ends.stop)
        except (ValueError, LookupError, ArithmeticError, AttributeError):
            raise ValueError(f"{word!r} is no condition for {index}") from None
    return match


def _answer(store: Datastore, as_json: bool, verb: str, what: str, words: Any) -> Iterator[Any]:
    """What a command prints."""
    indexes = {index.table: index for index in store.indexes}
    if verb == "schema":
        schema = store.schema()
        yield from [shape._asdict() for shape in schema.shapes] if as_json else [schema]
    elif verb == "indexes":
        yield from indexes.values()
    elif verb == "get":
        entity = store.get(what)
        if entity is None:
            raise ValueError(f"there is no entity {what!r}")
        yield entity
    elif what not in indexes:
        raise ValueError(f"there is no index {what!r}, but {[*indexes]}")
    elif verb == "find":
        yield from indexes[what].find(store, _match(indexes[what], words))
    else:
        yield f"{indexes[what].populate(store):,} rows were wrong"


def main() -> None:
    """The command line, `python -m slim`. Exits with 1 after an error, with 2 if called wrongly."""
    # As with mysql, -p alone does not take the next word.
    words = ["--password=" if word == "-p" else word for word in sys.argv[1:]]
    options = vars(_parser().parse_intermixed_args(words))
    asked = [options.pop(name) for name in ("json", "verb", "what", "match")]
    try:
        if options.get("password") == "":
            options["password"] = getpass.getpass("Enter password: ")
        options["read_default_group"] = "client"
        # A Datastore would make the tables. Who looks at a database should find it as it was.
        with contextlib.closing(MySQLdb.connect(**options)) as connection:
            connection.query("DO (SELECT COUNT(*) FROM entities_catalogue)")
        with Datastore(**{"host": None, "user": None, "password": None, **options}) as store:
            for thing in _answer(store, *asked):
                line = json.dumps(_json(thing)) if asked[0] else _text(thing)
                print(line, flush=True)
    except (BrokenPipeError, KeyboardInterrupt):
        # The reader closed the pipe. What is flushed at exit would say so again.
        os._exit(1)
    except (Error, MySQLdb.Error, TypeError, ValueError, EOFError, RecursionError) as error:
        text = error.args[-1] if isinstance(error, MySQLdb.Error) else error
        sys.exit("slim: " + _printable(" ".join(str(text).split())))


if __name__ == "__main__":
    main()
