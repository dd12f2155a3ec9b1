"""slim: a schema-less, indexed datastore on MySQL, in one module, after FriendFeed's design of 2009.

Store dictionaries now, query them by a few properties, and never run a migration:

    >>> import slim
    >>> by_user = slim.Index("index_user_id", "user_id")
    >>> store = slim.Datastore("localhost", "me", "secret", "app", indexes=[by_user])

A call is one round trip, and one transaction; those with `expect`, `update` and `delete` take two.

    >>> key = store.put({"user_id": "bob", "title": "Hello"})
    >>> entity = store.get(key)  # None if there is none
    >>> [found["title"] for found in by_user.get_all(store, user_id="bob")]
    ['Hello']
    >>> entity = store.update(key, lambda entity: entity.update(likes=1))  # KeyError if there is none
    >>> key = store.put({**entity, "title": "Hi"}, expect=entity.version)  # Conflict if it changed
    >>> store.get(key)["title"], len(store), store.delete(key), store.get(key)
    ('Hi', 1, True, None)

It makes these tables, and nothing else:

    entities             added_id (the version), id, updated, body (a pickle, compressed by zlib)
    an Index's table     its properties, entity_id
    entities_history     every version, if a Datastore was opened with history=True
    entities_catalogue   which indexes there are, so that every program maintains all of them

Nothing acknowledged is lost, and an index answers only what is true of its entities. A write whose
connection was lost during COMMIT raises Unknown: read, then decide. Bodies are read safely: what
names a class that is not allowed is Untrusted, and nothing of it runs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import contextvars
import copy
import copyreg
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn, TypeVar

import MySQLdb
from MySQLdb.constants import CR, ER, FIELD_TYPE
from MySQLdb.converters import conversions

__all__ = [
    "ANY",
    "Conflict",
    "Corrupt",
    "Datastore",
    "Duplicate",
    "Entity",
    "Error",
    "Index",
    "NotPopulated",
    "Schema",
    "Shape",
    "Unknown",
    "Untrusted",
    "decode",
    "encode",
]
__version__ = "2.0.0"

# Datastore(classes=ANY) disables the allow-list. Use it only if nobody else can write the database.
ANY = "any"
# Bytes of a body when decompressed, and compressed: a MEDIUMBLOB.
MAX_SIZE = 64 << 20
MAX_BODY = (1 << 24) - 1
# Rows of one result, and values of one "IN". A page leaves out larger bodies, which are read singly.
PAGE = 1_000
PAGE_BODY = 32 << 10
# Entities, and bytes of bodies, of one transaction of put_many.
BATCH = 1_000
BATCH_BYTES = 2 << 20
# For so long a call that was rolled back, or not begun, is tried again.
RETRY_SECONDS = 30
# For so long a change of the catalogue holds up the writers before it lets them pass.
ALTER_SECONDS = 2

# The server has rolled the transaction back, and it may be repeated. 1020: MariaDB, where
# innodb_snapshot_isolation is ON. 3024: a time limit. 3101: Group Replication, at COMMIT.
ROLLED_BACK = {ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, 1020, 3024, 3101}
# The server was not reached, or the statement was refused: nothing was done. 1290, 1836: it became
# read-only. 4031: the connection was idle for too long.
NOT_DONE = {CR.CONNECTION_ERROR, CR.CONN_HOST_ERROR, CR.SERVER_GONE_ERROR, 1290, 1836, 4031}
# The connection is of no more use. 1047: no node of a Galera cluster. 1180, 3100: no majority.
# 1927: killed. 2012, 2026, 2027: cut off in a handshake or a packet.
LOST = NOT_DONE | {
    CR.SERVER_LOST,
    CR.SERVER_LOST_EXTENDED,
    CR.SERVER_HANDSHAKE_ERR,
    CR.SSL_CONNECTION_ERROR,
    CR.MALFORMED_PACKET,
    ER.SERVER_SHUTDOWN,
    ER.ERROR_DURING_COMMIT,
    1047,
    1927,
    3100,
}
# The account may not do it.
DENIED = {ER.DBACCESS_DENIED_ERROR, ER.TABLEACCESS_DENIED_ERROR, ER.SPECIFIC_ACCESS_DENIED_ERROR}

# What MySQLdb.connect is to do in any case. Its own converters write a large Decimal as a DOUBLE.
CONNECT = {
    "charset": "utf8mb4",
    "use_unicode": True,
    "binary_prefix": True,
    "autocommit": True,
    "multi_statements": True,
    "conv": {
        **conversions,
        FIELD_TYPE.TIMESTAMP: dt.datetime.fromisoformat,
        Decimal: lambda value, _: format(value, "f"),
    },
}

T = TypeVar("T")
Rows = Sequence[tuple[Any, ...]]
# SQL, and what is bound to its %s.
Statement = tuple[Any, ...]
# Called as tqdm.tqdm is: progress(iterable, total=…).
Progress = Callable[..., Iterable[Any]]


class Error(Exception):
    """What slim's own errors derive from. Those of the driver pass through as MySQLdb's."""


class Conflict(Error):
    """The entity `id` has the version `found` (0: there is none), not the `expected` one."""

    def __init__(self, id: str, expected: int, found: int) -> None:
        super().__init__(id, expected, found)
        self.id = id
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return (
            f"entity {self.id!r}: version {self.expected} was expected, {self.found} is current "
            "(0: none); get it, and decide again"
        )


class Duplicate(Error):
    """The entity `id` has the same values in the unique `index`."""

    def __init__(self, index: Index, id: str) -> None:
        super().__init__(index, id)
        self.index = index
        self.id = id

    def __str__(self) -> str:
        return f"unique index {self.index.table}: entity {self.id!r} already has these values"


class NotPopulated(Error):
    """The index is not in the database, or not complete yet: it never answers half the truth."""


class Unknown(Error):
    """The connection was lost during COMMIT: the write of entity `id` is stored, or it is not."""

    id: str | None = None


class Corrupt(Error):
    """A body is no zlib, no pickle or no dictionary. Its entity is `id`; None outside a store."""

    id: str | None = None


class Untrusted(Corrupt):
    """A body names a class that is not allowed. Nothing of it was run."""


# ---- SQL. Identifiers are formatted in, quoted; values are bound to %s. --------------------------

# No default of a server or an account may refuse a statement, cut a result short, or change what
# COMMIT, text and numbers mean. MySQL runs what is in /*!80000 */, and MariaDB what is in /*M! */.
SET_NAMES = "SET NAMES utf8mb4"
SET_VARIABLES = """
SET SESSION time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',
  sql_safe_updates = 0, sql_select_limit = 18446744073709551615, sql_big_selects = 1,
  sql_auto_is_null = 0, completion_type = 0
  /*!80000 , max_execution_time = 0 */ /*M!100101 , max_statement_time = 0 */"""
SET_ISOLATION = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE"
SELECT_MAX_PACKET = "SELECT @@max_allowed_packet"
BEGIN = "START TRANSACTION"
SET_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
BEGIN_SNAPSHOT = "START TRANSACTION WITH CONSISTENT SNAPSHOT"
COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"

CREATE_TABLE = "CREATE TABLE {table} (\n  {columns},\n  {keys}\n) {options}"
ENTITIES = {
    "added_id": "BIGINT UNSIGNED NOT NULL AUTO_INCREMENT",
    "id": "VARCHAR(36) NOT NULL",
    "updated": "TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP",
    "body": "MEDIUMBLOB",
}
ENTITIES_KEYS = "PRIMARY KEY (added_id), UNIQUE KEY (id), KEY (updated)"
# added_id does not follow the order of commits everywhere, so history has a number of its own.
HISTORY = {
    "number": "BIGINT UNSIGNED NOT NULL AUTO_INCREMENT",
    "id": "VARCHAR(36) NOT NULL",
    "added_id": "BIGINT UNSIGNED NOT NULL",
    "updated": "TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP",
    "body": "MEDIUMBLOB",
}
HISTORY_KEYS = "PRIMARY KEY (number), KEY (id, number)"
CATALOGUE = {
    "id": "VARCHAR(36) NOT NULL",
    "content": "MEDIUMTEXT NOT NULL",
    "epoch_first": "TINYINT",
}
CATALOGUE_KEYS = "PRIMARY KEY (id)"
SHOW_COLUMNS = "SHOW FULL COLUMNS FROM {table}"
DROP_TABLE = "DROP TABLE {table}"

SELECT_ENTITIES = "SELECT added_id, id, updated, body FROM entities WHERE id IN %s"
LOCK_ENTITIES = SELECT_ENTITIES + " FOR UPDATE"
LOCK_VERSION = "SELECT added_id FROM entities WHERE id = %s FOR UPDATE"
SELECT_IDS = "SELECT id FROM entities WHERE id IN %s"
SELECT_STAMP = "SELECT added_id, updated FROM entities WHERE id = %s"
SMALL_BODY = f"IF(LENGTH(e.body) <= {PAGE_BODY}, e.body, NULL)"
SELECT_PAGE = f"""
SELECT e.added_id, e.id, e.updated, {SMALL_BODY} FROM entities AS e
WHERE e.added_id > %s ORDER BY e.added_id LIMIT %s"""
SELECT_NEWEST = f"""
SELECT e.added_id, e.id, e.updated, {SMALL_BODY} FROM entities AS e
WHERE e.added_id < %s ORDER BY e.added_id DESC LIMIT %s"""
SELECT_HISTORY = """
SELECT added_id, id, updated, body FROM entities_history WHERE id = %s ORDER BY number DESC"""
COUNT_ENTITIES = "SELECT COUNT(*) FROM entities"
DELETE_ENTITIES = "DELETE FROM entities WHERE id IN %s"
INSERT_ENTITIES = "INSERT INTO entities (id, body) VALUES {rows}"
INSERT_HISTORY = """
INSERT INTO entities_history (id, added_id, updated, body)
SELECT id, added_id, updated, body FROM entities WHERE id IN %s"""
# Whoever puts the entity meanwhile keeps the version that it puts.
DELETE_HISTORY = """
DELETE FROM entities_history WHERE id = %s
AND NOT EXISTS (SELECT 1 FROM entities WHERE id = %s)"""

DELETE_ROWS = "DELETE FROM {table} WHERE entity_id IN %s"
INSERT_ROWS = "INSERT INTO {table} ({names}, entity_id) VALUES {rows}"
LOCK_ROWS = "SELECT entity_id FROM {table} WHERE entity_id IN %s FOR UPDATE"
SELECT_OWNERS = """
SELECT {names}, entity_id FROM {table} WHERE ({names}) IN %s AND entity_id NOT IN %s"""
# STRAIGHT_JOIN reads the index first, in its order. Otherwise MySQL may sort a small table.
SELECT_MATCH = f"""
SELECT e.added_id, e.id, e.updated, {SMALL_BODY}, {{order_names}}
FROM {{table}} AS i STRAIGHT_JOIN entities AS e ON e.id = i.entity_id
WHERE {{where}} AND {{check}} ORDER BY {{order}} LIMIT %s"""
COUNT_MATCH = "SELECT COUNT(*) FROM {table} AS i WHERE {where} AND {check}"
LOCK_COMPARED = f"""
SELECT e.added_id, e.id, e.updated, {SMALL_BODY}, i.entity_id, {{index_names}}
FROM entities AS e LEFT JOIN {{table}} AS i ON i.entity_id = e.id
WHERE e.added_id > %s ORDER BY e.added_id LIMIT %s FOR UPDATE"""
SELECT_ORPHANS = """
SELECT i.entity_id FROM {table} AS i LEFT JOIN entities AS e ON e.id = i.entity_id
WHERE i.entity_id > %s AND e.id IS NULL ORDER BY i.entity_id LIMIT %s"""

SELECT_CATALOGUE = "SELECT * FROM entities_catalogue"
INSERT_CATALOGUE = "INSERT INTO entities_catalogue (id, content) VALUES (%s, %s)"
DELETE_CATALOGUE = "DELETE FROM entities_catalogue WHERE id IN %s"
RENAME_EPOCH = "ALTER TABLE entities_catalogue RENAME COLUMN epoch_{old} TO epoch_{new}"
CHECK_EPOCH = "SELECT epoch_{epoch} FROM entities_catalogue WHERE id IN %s"
CHECK_EPOCH_IN_QUERY = "(SELECT epoch_{epoch} FROM entities_catalogue WHERE id = '{epoch}') IS NULL"
SET_ALTER_SECONDS = f"SET SESSION lock_wait_timeout = {ALTER_SECONDS}"
GET_LOCK = "SELECT GET_LOCK(%s, %s)"
ANALYZE_ENTITIES = "ANALYZE TABLE entities"
# How statements begin that answer with rows.
ROWS = "SELECT", "SHOW", "ANALYZE"


def _quote(name: str) -> str:
    """An identifier for SQL that values are bound into: backticks and percent signs are data."""
    return "`" + name.replace("`", "``").replace("%", "%%") + "`"


def _names(names: Iterable[str], prefix: str = "") -> str:
    return ", ".join([prefix + _quote(name) for name in names])


def _insert(sql: str, rows: Iterable[Sequence[Any]], **parts: str) -> Statement:
    """INSERT of several rows: a list of tuples is bound to a single %s."""
    values = [tuple(row) for row in rows]
    return sql.format(rows=", ".join(["%s"] * len(values)), **parts), *values


# ---- Bodies. Knows pickle, zlib and classes; nothing of SQL. -------------------------------------


class Entity(dict[Any, Any]):
    """A dictionary out of the store.

    version: its added_id, an int. updated: the time of its put, an aware datetime (UTC).
    """

    __slots__ = "updated", "version"
    version: int
    updated: dt.datetime

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (), None, None, iter(self.items())


def _new(cls: Any, *args: Any) -> Any:
    """Makes an object of an application's class, as pickle's opcode NEWOBJ does."""
    return cls.__new__(cls, *args)


_PATHS = (
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    pathlib.PosixPath,
    pathlib.WindowsPath,
)
_VALUES = (
    dt.date,
    dt.time,
    dt.datetime,
    dt.timedelta,
    dt.timezone,
    zoneinfo.ZoneInfo,
    Decimal,
    fractions.Fraction,
    complex,
    range,
    slice,
    uuid.UUID,
    bytearray,
    set,
    frozenset,
    dict,
    collections.OrderedDict,
    collections.Counter,
    collections.deque,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
)
# {(module, name): class}. Python 3.13 pickles paths under another module's name.
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(cls.__module__, cls.__name__): cls for cls in _VALUES},
    **{("pathlib", cls.__name__): cls for cls in _PATHS},
    **{("pathlib._local", cls.__name__): cls for cls in _PATHS},
}


def _allow(classes: Any) -> Any:
    """What a body may name: the values of Python itself, and an application's classes."""
    if classes == ANY:
        return ANY
    named = classes if isinstance(classes, Mapping) else {}
    for cls in named.values() if named else classes:
        if not isinstance(cls, type):
            raise TypeError(f"classes= takes classes, not {cls!r}")
    own = {(cls.__module__, cls.__qualname__): cls for cls in (named.values() or classes)}
    for name, cls in named.items():
        module, _, qualname = name.rpartition(".")
        own[module, qualname] = cls
    return {**_ALLOWED, **own}


class _Unpickler(pickle.Unpickler):
    """Reads a pickle, and imports nothing.

    A name in it becomes a new function that calls the class, never the class itself. So the opcode
    NEWOBJ has nothing to work on, and BUILD can alter only what dies with this body.
    """

    def __init__(self, data: bytes, allowed: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(io.BytesIO(data))
        self.allowed = allowed
        # {function: the class that it calls}; weak, to tell which of them the body has kept.
        self.classes: weakref.WeakKeyDictionary[Any, Any] | None = None

    def find_class(self, module: str, name: str) -> Any:
        """The function that stands for a class. Raises Untrusted for one that is not allowed."""
        if self.classes is None:
            self.classes = weakref.WeakKeyDictionary()
        classes = self.classes
        if (module, name) == ("slim", "_new"):
            cls = None

            def call(other: Any, *args: Any) -> Any:
                return _new(classes[other], *args)

        elif (module, name) in self.allowed:
            cls = self.allowed[module, name]

            def call(*args: Any) -> Any:
                return cls(*args)

        else:
            raise Untrusted(
                f"it names {module}.{name}, which is no value of Python's own, and none of the "
                "application's classes in Datastore(classes=…); nothing of it was run"
            )
        classes[call] = cls
        return call


class _Pickler(pickle.Pickler):
    """Writes what `_Unpickler` can read. `plain` says that it has met built-in values alone."""

    plain = True
    dispatch_table = collections.ChainMap(
        {
            uuid.UUID: lambda value: (uuid.UUID, (value.hex,)),
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

    classes: the application's classes that may be in it, as for Datastore. max_size: the most bytes
    before it is compressed. Raises Untrusted for a value that `decode` would refuse, TypeError for
    one that cannot be pickled and read again, ValueError for too many bytes.
    """
    return _encode(entity, _allow(classes), max_size)


def decode(body: bytes, classes: Any = (), max_size: int = MAX_SIZE) -> dict[Any, Any]:
    """The dictionary of a body.

    classes: the application's classes that it may name, as for Datastore. max_size: the most bytes
    when it is decompressed. Raises Untrusted if it names another class, and Corrupt if it is no
    zlib, no pickle, no dictionary, or larger.
    """
    return _decode(body, _allow(classes), max_size)


def _encode(entity: Mapping[Any, Any], allowed: Any, max_size: int) -> bytes:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, protocol=5)
    try:
        pickler.dump(dict(entity))
        data = buffer.getvalue()
        if not pickler.plain:
            _load(data, allowed)
    except Untrusted as error:
        raise Untrusted(f"the entity cannot be stored: {error}") from None
    except Exception as error:
        # Pickling runs the values' own code, which can raise anything.
        short = reprlib.repr(entity)
        raise TypeError(f"the entity {short} cannot be pickled and read again: {error}") from error
    if len(data) > max_size:
        raise ValueError(f"the entity has {len(data)} bytes when pickled, over max_size={max_size}")
    # At 300 bytes all levels are within 1 %. At 6 kB level 6 saves 7 %, for 1.7 times the time.
    return zlib.compress(data, 1)


def _decode(body: bytes, allowed: Any, max_size: int) -> dict[Any, Any]:
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(body, max_size)
        if not stream.eof or stream.unused_data:
            raise ValueError(f"it is no whole zlib stream, or has over max_size={max_size} bytes")
        entity = _load(data, allowed)
        if not isinstance(entity, dict):
            raise ValueError(f"it is of type {type(entity).__name__}, no dictionary")
    except Untrusted:
        raise
    except Exception as error:
        # A broken pickle can raise anything.
        raise Corrupt(f"the body cannot be read: {type(error).__name__}: {error}") from error
    return entity


def _load(data: bytes, allowed: Any) -> Any:
    if allowed == ANY:
        return pickle.loads(data)
    # Opcodes EXT are answered from this cache, before find_class is asked.
    copyreg.clear_extension_cache()  # type: ignore[attr-defined]
    unpickler = _Unpickler(data, allowed)
    value = unpickler.load()
    classes = unpickler.classes
    # Its memo holds the functions. Those that live on are values of the body.
    del unpickler
    if classes:
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
        raise ValueError(
            f"an id has 1 to 36 characters of valid Unicode, unlike {reprlib.repr(id)}"
        )
    return id


def _check_expect(expect: Any) -> None:
    if expect is not None and (type(expect) is not int or expect < 0):
        raise TypeError(f"expect is the version of an entity, or 0 for none, not {expect!r}")


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 has it: it has no half of a surrogate pair."""
    return text.isascii() or not re.search("[\ud800-\udfff]", text)


# ---- The server. Knows connections and transactions; nothing of entities and indexes. ------------


class _TooLarge(ValueError):
    """A packet is over the server's max_allowed_packet. It was not sent."""


class _Block:
    """An open transaction."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.process = os.getpid()
        # How many calls, and blocks, are inside of each other.
        self.depth = 1
        # START TRANSACTION was sent; something was written since; it can only be rolled back.
        self.begun = False
        self.written = False
        self.failed = False
        # Its connection is somebody else's now.
        self.ended = False
        self.token: contextvars.Token[_Block | None] | None = None


def _rows(result: Any) -> Any:
    return result.fetch_row(0)


def _named_rows(result: Any) -> Any:
    return [column[0] for column in result.describe()], result.fetch_row(0)


def _fetch(connection: Any, read: Callable[[Any], Any]) -> list[Any]:
    """read(result) of each result of a packet. MySQLdb has None for a result that was cut off."""
    results = []
    while True:
        result = connection.store_result()
        if result is not None:
            results.append(read(result))
        if connection.next_result() == -1:
            return results


class _Server:
    """The connections to one database, and the transaction that is open in this context.

    The one place that sends is `_exchange`; that begins, commits and rolls back, `transaction`; and
    that repeats, `repeat`.
    """

    def __init__(self, **connect: Any) -> None:
        self.connect = connect
        self.max_packet = 0
        self.mariadb = False
        self.closed = False
        self._idle: collections.deque[Any] = collections.deque()
        self._open_connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._block: contextvars.ContextVar[_Block | None] = contextvars.ContextVar(
            "block", default=None
        )
        _watch_forks()
        _servers.add(self)

    @property
    def block(self) -> _Block | None:
        """The transaction that is open here, or None. Raises Error if it is not this context's."""
        block = self._block.get()
        if block is None or block.ended or block.token is None:
            return None
        if block.process != os.getpid():
            raise Error("this transaction() was begun by the parent process: leave it")
        try:
            # Only the context that has set a variable can reset it: no other thread, no other task.
            self._block.reset(block.token)
        except (ValueError, RuntimeError):
            raise Error(
                "a transaction() belongs to the thread and the task that began it"
            ) from None
        block.token = self._block.set(block)
        return block

    def query(self, sql: str, *args: Any) -> Rows:
        """The rows of one statement; in a block, as a part of it."""
        rows = self.read([(sql, *args)])
        return rows[-1] if rows else ()

    def read(self, statements: list[Statement]) -> list[Rows]:
        """The rows of each statement that has some; in a block, as a part of it."""
        block = self.block
        if block:
            return self._send(block, statements)
        with self._connection() as connection:
            return self._exchange(connection, statements)

    def write(self, statements: list[Statement]) -> list[Rows]:
        """The last packet of a call inside transaction(). If that is the call's own, it commits."""
        block = self.block
        assert block is not None
        block.written = True
        if block.depth > 1:
            return self._send(block, statements)
        return self._send_commit(block, statements)

    def table(self, sql: str) -> tuple[list[str], Rows]:
        """The names of a query's columns, and its rows; not in a block."""
        with self._connection() as connection:
            return self._exchange(connection, [(sql,)], _named_rows)[-1]

    def look(self, sql: str, *args: Any) -> Rows:
        """Like query, but in a block that has failed as well: to explain why."""
        block = self.block
        assert block is not None
        return self._exchange(block.connection, [(sql, *args)])[-1]

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
                self._commit(block)
            finally:
                block.ended = True
                with contextlib.suppress(ValueError, RuntimeError):
                    self._block.reset(block.token)

    def _commit(self, block: _Block) -> None:
        if self.block is not block:
            raise Error("a transaction() is to be left where it was begun: nothing was committed")
        if block.depth > 1:
            raise Error("a transaction() inside of this one is still open: nothing was committed")
        if block.failed:
            raise Error("a call in this transaction() failed: nothing was committed")
        if block.written:
            self._send_commit(block, [])
        elif block.begun:
            # It has read only. If the connection is lost here, nothing is.
            self._exchange(block.connection, [(COMMIT,)])

    def _send_commit(self, block: _Block, statements: list[Statement]) -> list[Rows]:
        """Sends the end of a transaction. If the answer is lost, it may have been committed."""
        try:
            rows = self._send(block, [*statements, (COMMIT,)])
        except MySQLdb.Error as error:
            if _code(error) not in LOST - NOT_DONE:
                raise
            raise Unknown(
                f"the connection was lost during COMMIT ({error.args[-1]}): the write is stored, "
                "or it is not; read, then decide"
            ) from None
        block.begun = False
        block.written = False
        return rows

    def _send(self, block: _Block, statements: list[Statement]) -> list[Rows]:
        if block.failed:
            raise Error("a call in this transaction() failed: leave it, and begin another")
        if not block.begun:
            statements = [(BEGIN,), *statements]
        try:
            rows = self._exchange(block.connection, statements)
        except MySQLdb.Error as error:
            # A stale epoch is found by the check, before anything is written: the block goes on.
            block.begun = True
            block.failed = not _is_stale(error)
            raise
        block.begun = True
        return rows

    def _exchange(
        self, connection: Any, statements: list[Statement], read: Callable[[Any], Any] = _rows
    ) -> list[Any]:
        """One round trip. Returns the rows of each statement that has some."""
        packet = self._packet(connection, statements)
        expected = sum([sql.lstrip().startswith(ROWS) for sql, *_ in statements])
        try:
            connection.query(packet)
            results = _fetch(connection, read)
            if len(results) != expected:
                raise MySQLdb.OperationalError(CR.SERVER_LOST, "a result was cut off")
        except BaseException as error:
            # After a signal's exception, for one, there is an answer that nobody has read.
            if not isinstance(error, MySQLdb.Error) or _code(error) in LOST:
                connection.close()
            raise
        return results

    def _packet(self, connection: Any, statements: list[Statement]) -> bytes:
        bound = [sql.encode() % tuple(map(connection.literal, args)) for sql, *args in statements]
        packet = b";".join(bound)
        if self.mariadb and len(bound) > 1:
            # One statement: Galera may abort a transaction between two, and run those that follow.
            packet = b"BEGIN NOT ATOMIC " + packet + b"; END"
        if len(packet) >= self.max_packet > 0:
            raise _TooLarge(
                f"this call needs a packet of {len(packet)} bytes; the server takes "
                f"max_allowed_packet = {self.max_packet}"
            )
        return packet

    def repeat(self, attempt: Callable[[], T], renew: Callable[[], Any] = lambda: None) -> T:
        """attempt(), again while it was not done and may succeed. After a stale epoch, renew().

        In a block only the stale epoch is repeated: all else has rolled back what is not ours.
        """
        end = time.monotonic() + RETRY_SECONDS
        pause = 0.001
        while True:
            try:
                return attempt()
            except MySQLdb.Error as error:
                stale = _is_stale(error)
                lost = not self.block and _code(error) in ROLLED_BACK | LOST
                if not (stale or lost) or time.monotonic() > end:
                    raise
            time.sleep(random.uniform(0, pause))
            pause = min(1, pause * 2)
            if stale:
                renew()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Callable[..., Rows]]:
        """A query(sql, *args) that sees the database as of one moment, beside what others do."""
        if self.block:
            raise Error("a scan cannot be a part of a transaction(): it would not see its writes")
        with self._connection() as connection:
            self._exchange(connection, [(SET_SNAPSHOT,), (BEGIN_SNAPSHOT,)])
            yield lambda sql, *args: self._exchange(connection, [(sql, *args)])[-1]
            self._exchange(connection, [(COMMIT,)])

    @contextlib.contextmanager
    def defining(self) -> Iterator[Callable[[str], None]]:
        """A define(sql) for statements that define tables. One program at a time may have it.

        The server takes the lock back when the connection ends, however that comes about.
        """
        if self.block:
            raise Error("tables and indexes cannot be defined inside a transaction(): do it before")
        connection = self._take()
        lock = (GET_LOCK, f"slim {self.connect['database']}"[:64], RETRY_SECONDS)
        try:
            # A statement that waits for open transactions holds up those who come after it.
            *_, ((locked,),) = self._exchange(connection, [(SET_ALTER_SECONDS,), lock])
            if not locked:
                raise Error("another program is changing the indexes: try again later")
            yield functools.partial(self._define, connection)
        finally:
            connection.close()

    def _define(self, connection: Any, sql: str) -> None:
        """CREATE, ALTER or DROP. It steps back for the writers that it holds up, and tries again."""
        end = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                self._exchange(connection, [(sql,)])
                return
            except MySQLdb.Error as error:
                if _code(error) in DENIED:
                    statement = sql.replace("%%", "%")
                    raise Error(
                        "this account may not define tables; let one that may do the same once, or "
                        f"its DBA run this statement: {statement}"
                    ) from None
                if _code(error) not in ROLLED_BACK or time.monotonic() > end:
                    raise
            time.sleep(random.uniform(0.1, 0.5))

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        """A connection for one call. After a failure it is rolled back, or not used again."""
        connection = self._take()
        try:
            yield connection
        except BaseException:
            with contextlib.suppress(MySQLdb.Error):
                self._exchange(connection, [(ROLLBACK,)])
                self._give_back(connection)
            raise
        self._give_back(connection)

    def _take(self) -> Any:
        """An idle connection that the server has not closed meanwhile, or a new one."""
        if self.closed:
            raise Error("this Datastore is closed; open another")
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if _is_quiet(connection):
                    return connection
                connection.close()
        connection = MySQLdb.connect(**self.connect)
        self._open_connections.add(connection)
        self.mariadb = "MariaDB" in connection.get_server_info()
        session = [(SET_NAMES,), (SET_VARIABLES,), (SET_ISOLATION,), (SELECT_MAX_PACKET,)]
        ((self.max_packet,),) = self._exchange(connection, session)[-1]
        return connection

    def _give_back(self, connection: Any) -> None:
        self._idle.append(connection)
        # close() may have looked a moment ago.
        if self.closed:
            self.close()

    def close(self) -> None:
        """Closes the idle connections; one that is in use is closed when its call ends."""
        self.closed = True
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def leave_to_parent(self) -> None:
        """In a forked child: lets the parent's sockets be, to which closing would say goodbye."""
        with open(os.devnull, "r+b") as null:
            for connection in self._open_connections:
                with contextlib.suppress(MySQLdb.Error):
                    os.dup2(null.fileno(), connection.fileno())


_servers: weakref.WeakSet[_Server] = weakref.WeakSet()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    for server in _servers:
        server.leave_to_parent()


def _is_quiet(connection: Any) -> bool:
    """Whether there is nothing to be read: a server that hangs up says so, or ends the stream."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)


def _code(error: BaseException) -> Any:
    """The number of a driver's error, else None. Group Replication calls some deadlocks 1180."""
    if not isinstance(error, MySQLdb.Error) or not error.args:
        return None
    code = error.args[0]
    deadlock = code == ER.ERROR_DURING_COMMIT and "error 149" in str(error)
    return ER.LOCK_DEADLOCK if deadlock else code


def _is_stale(error: BaseException) -> bool:
    """Whether the catalogue's column has another name by now."""
    epoch = re.search("epoch_(first|[0-9a-f]{32})", str(error))
    return _code(error) == ER.BAD_FIELD_ERROR and epoch is not None


# ---- Index. Knows its table, its rows and its conditions; not who sends them. --------------------


class _Column(NamedTuple):
    """What a declared type means: the class of its values, its column, the most that fits."""

    python: type[Any]
    sql: str
    size: int


# The names by which the catalogue knows them.
_COLUMNS = {
    "str": _Column(str, "VARCHAR(191)", 191),
    "int": _Column(int, "BIGINT", 1 << 63),
    "float": _Column(float, "DOUBLE", 0),
    "bool": _Column(bool, "TINYINT(1)", 0),
    "bytes": _Column(bytes, "VARBINARY(191)", 191),
    "Decimal": _Column(Decimal, "DECIMAL(65,30)", 35),
    "date": _Column(dt.date, "DATE", 0),
    "datetime": _Column(dt.datetime, "DATETIME(6)", 0),
    "UUID": _Column(uuid.UUID, "BINARY(16)", 16),
}
_CLASSES = {column.python: name for name, column in _COLUMNS.items()}


def _column(declared: str) -> _Column:
    """Raises TypeError for what is no type of a property."""
    if declared in _COLUMNS:
        return _COLUMNS[declared]
    sized = re.fullmatch(r"(VARCHAR|VARBINARY)\(([1-9]\d*)\)", declared)
    if not sized:
        raise TypeError(
            f"{declared} is no type of a property; take one of {', '.join(_COLUMNS)}, or "
            '"VARCHAR(n)", "VARBINARY(n)"'
        )
    return _Column(str if sized[1] == "VARCHAR" else bytes, declared, int(sized[2]))


def _fits(column: _Column, value: Any) -> bool:
    """Whether the column holds the value exactly: what is cut or rounded would not be found."""
    if column.python is str:
        return len(value) <= column.size and _is_unicode(value)
    if column.python is bytes:
        return len(value) <= column.size
    if column.python is int:
        return -column.size <= value < column.size
    if column.python is float:
        return math.isfinite(value)
    if column.python is Decimal:
        digits = value.is_finite() and value.as_tuple()
        return bool(digits) and digits.exponent >= -30 and value.adjusted() < column.size
    return True


def _stored(value: Any) -> Any:
    """A value that fits, as it is bound in SQL."""
    if isinstance(value, uuid.UUID):
        return value.bytes
    if isinstance(value, dt.datetime) and value.tzinfo:
        return value.astimezone(dt.timezone.utc).replace(tzinfo=None)
    return value


class Index:
    """A table of its own, in which entities are found by some of their properties.

    table: its name. properties: a name, several names, or a mapping of names to types; a name alone
    means str. Types: str, int, float, bool, bytes, Decimal, date, datetime (kept in UTC), UUID, and
    "VARCHAR(n)", "VARBINARY(n)". unique: no two entities may have the same values.

    An entity is in the index if it has all of its properties, and none is None. Raises TypeError or
    ValueError for a name or a type that cannot be.
    """

    def __init__(
        self,
        table: str,
        properties: str | Iterable[str] | Mapping[str, Any],
        *,
        unique: bool = False,
    ) -> None:
        names = [properties] if isinstance(properties, str) else list(properties)
        _check_names(table, names)
        declared = properties if isinstance(properties, Mapping) else dict.fromkeys(names, str)
        self.table = table
        self.types = {name: _CLASSES.get(declared[name], str(declared[name])) for name in names}
        self.unique = unique
        self.columns = {name: _column(type_) for name, type_ in self.types.items()}

    def __repr__(self) -> str:
        return f"Index({self.table!r}, {self.types!r}, unique={self.unique})"

    # Queries

    def get_all(self, datastore: Datastore, /, **match: Any) -> list[Entity]:
        """The entities that match, in the index's order; [] if there is none.

        A value is an equality, slice(low, high) a half-open range (None: no end), a set or a list
        is "one of". Raises TypeError or ValueError for a property or a value that the index cannot
        have, NotPopulated before it is complete.
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
        """The same, lazily, a thousand at a time, in the order of the properties, then of the id.

        reverse: the last first. limit: the most entities. after: the last entity of the page
        before, to go on behind it.
        """
        queries = _queries(self, match)
        position = None if after is None else self.position(after)
        streams = [_stream(datastore, query, position, reverse, limit) for query in queries]
        merged = heapq.merge(*streams, key=self.position, reverse=reverse)
        found = streams[0] if len(streams) == 1 else merged
        return itertools.islice(found, limit)

    def count(self, datastore: Datastore, /, **match: Any) -> int:
        """How many entities match."""
        queries = _queries(self, match)
        return sum([datastore._store.ask(self, query.count)[0][0] for query in queries])

    def put(self, datastore: Datastore, entity: Mapping[Any, Any]) -> None:
        """Rewrites the row of a stored entity. Datastore.put does it for all indexes."""
        datastore._store.repair(self, _check_id(entity.get("id")))

    def populate(self, datastore: Datastore, *, progress: Progress | None = None) -> int:
        """Makes the table agree with the entities exactly, while readers and writers go on.

        It may be stopped, and run again. progress: called as tqdm.tqdm is. Returns how many rows
        had to be changed: 0 says that the index was right. Raises TypeError, ValueError or
        Duplicate for an entity that the index cannot have, with its id.
        """
        return datastore._store.populate(self, progress)

    # Rows

    def row(self, entity: Mapping[Any, Any]) -> tuple[Any, ...] | None:
        """The entity's values in this index, None if it is not in it. Raises as `value` does."""
        values = [entity.get(name) for name in self.types]
        if any([value is None for value in values]):
            return None
        return tuple([self.value(name, value) for name, value in zip(self.types, values)])

    def value(self, name: str, value: Any) -> Any:
        """The value as MySQL has it. Raises TypeError or ValueError for one that does not fit."""
        column = self.columns[name]
        if type(value) is not column.python:
            raise TypeError(
                f"index {self.table}: property {name} is declared {self.types[name]}, but is of "
                f"type {type(value).__name__}: {reprlib.repr(value)}; give another value, or "
                f"declare its type: Index(…, {{{name!r}: …}})"
            )
        with contextlib.suppress(OverflowError):
            if _fits(column, value):
                return _stored(value)
        raise ValueError(
            f"index {self.table}: property {name} does not fit into {column.sql}: "
            f"{reprlib.repr(value)}; give another value, or declare another type"
        )

    def position(self, entity: Mapping[Any, Any]) -> tuple[Any, ...]:
        """Where the entity stands in the index's order: its values, and its id."""
        row = self.row(entity)
        if row is None:
            raise TypeError(
                f"index {self.table}: {reprlib.repr(entity)} is not in it, as a property is "
                "missing: after= takes the last entity of the page before"
            )
        return *row, _check_id(entity.get("id"))

    def delete_rows(self, ids: Sequence[str]) -> Statement:
        """The statement that deletes the rows of these ids."""
        return self.sql(DELETE_ROWS), ids

    def insert_rows(self, rows: Mapping[str, tuple[Any, ...] | None]) -> list[Statement]:
        """Statements that insert {id: row, or None}, for ids that have no row yet."""
        # In the order of the key, so that two of them meet fewer deadlocks.
        values = sorted([(*row, id) for id, row in rows.items() if row is not None])
        if not values:
            return []
        table = _quote(self.table)
        return [_insert(INSERT_ROWS, values, table=table, names=_names(self.types))]

    def sql(self, sql: str, **parts: str) -> str:
        """A statement with this index's names in it."""
        return sql.format(
            table=_quote(self.table),
            names=_names(self.types),
            index_names=_names(self.types, "i."),
            **parts,
        )

    def create_table(self) -> tuple[dict[str, str], str]:
        """Its columns, and its keys."""
        columns = {name: f"{column.sql} NOT NULL" for name, column in self.columns.items()}
        key = [*self.types] if self.unique else [*self.types, "entity_id"]
        return {**columns, "entity_id": ENTITIES["id"]}, (
            f"PRIMARY KEY ({_names(key)}), UNIQUE KEY (entity_id)"
        )


def _check_names(table: str, properties: Sequence[str]) -> None:
    """MySQL's rules for names, and slim's own. See "Schema Object Names" in MySQL's manual."""
    for name in [table, *properties]:
        good = isinstance(name, str) and 1 <= len(name) <= 64 and not name[-1:].isspace()
        if not good or re.search("[\0\ud800-\udfff\U00010000-\U0010ffff]", name):
            raise ValueError(
                f"{reprlib.repr(name)} cannot name a table or a column: MySQL takes 1 to 64 "
                "characters up to U+FFFF, no NUL, no space at the end"
            )
    if table.lower().startswith("entities"):
        raise ValueError(f"index table {table!r}: names like entities… are slim's own")
    folded = {name.casefold() for name in [*properties, "entity_id"]}
    if not properties or len(folded) <= len(properties):
        raise ValueError(
            f"index {table}: give one property or several, each once and none called entity_id, "
            f"not {list(properties)!r}"
        )


class _Query(NamedTuple):
    """What is asked of an index, in the values that MySQL has."""

    index: Index
    # {property: (low, high)}, where None is no end, and {property: its values}.
    ranges: Mapping[str, tuple[Any, Any]]
    sets: Mapping[str, Sequence[Any]]

    def holds_for(self, entity: Entity) -> bool:
        """The same condition, for an entity."""
        try:
            row = self.index.row(entity)
        except (TypeError, ValueError):
            row = None
        if row is None:
            return False
        values = dict(zip(self.index.types, row))
        for name, (low, high) in self.ranges.items():
            if low is not None and values[name] < low or high is not None and values[name] >= high:
                return False
        return all([values[name] in one_of for name, one_of in self.sets.items()])

    def where(self) -> tuple[str, list[Any]]:
        """The condition in SQL, and its arguments."""
        terms = ["TRUE"]
        args: list[Any] = []
        for name, one_of in self.sets.items():
            terms.append(f"i.{_quote(name)} IN %s")
            # Nothing is IN (NULL): an empty set matches nothing.
            args.append(one_of or [None])
        for name, ends in self.ranges.items():
            for sign, end in zip((">=", "<"), ends):
                if end is not None:
                    terms.append(f"i.{_quote(name)} {sign} %s")
                    args.append(end)
        return " AND ".join(terms), args

    def count(self, check: str) -> Statement:
        """The statement that counts what matches."""
        where, args = self.where()
        return self.index.sql(COUNT_MATCH, where=where, check=check), *args

    @property
    def order(self) -> list[str]:
        """The columns by which the rows are ordered: all that may have different values."""
        free = [name for name in self.index.types if len(self.sets.get(name, "..")) > 1]
        return [*free, "entity_id"]

    def page(self, check: str, position: Sequence[Any], reverse: bool, size: int) -> Statement:
        """The statement for the rows behind a position; () is before the first."""
        where, args = self.where()
        columns = [f"i.{_quote(name)}" for name in self.order]
        if position:
            behind, more = _behind(columns, position, "<" if reverse else ">")
            where += f" AND {behind}"
            args += more
        direction = " DESC" if reverse else ""
        sql = self.index.sql(
            SELECT_MATCH,
            where=where,
            check=check,
            order_names=", ".join(columns),
            order=", ".join([column + direction for column in columns]),
        )
        return sql, *args, size


def _behind(columns: Sequence[str], values: Sequence[Any], sign: str) -> tuple[str, list[Any]]:
    """(columns) > (values), in the form for which MySQL and MariaDB both use the key."""
    column, value = columns[0], values[0]
    if len(columns) == 1:
        return f"{column} {sign} %s", [value]
    rest, args = _behind(columns[1:], values[1:], sign)
    return f"({column} {sign} %s OR ({column} = %s AND {rest}))", [value, value, *args]


def _queries(index: Index, match: Mapping[str, Any]) -> list[_Query]:
    """The query for a match; several where "one of" is long, so that none sorts or repeats all."""
    ranges: dict[str, tuple[Any, Any]] = {}
    sets: dict[str, list[list[Any]]] = {}
    for name, asked in match.items():
        if name not in index.types:
            raise TypeError(
                f"index {index.table} has no property {name!r}; it has {[*index.types]}"
            )
        if isinstance(asked, slice) and asked.step is None:
            low, high = asked.start, asked.stop
            ranges[name] = (
                None if low is None else index.value(name, low),
                None if high is None else index.value(name, high),
            )
        else:
            one_of = asked if isinstance(asked, (set, frozenset, list)) else [asked]
            values = sorted({index.value(name, value) for value in one_of})
            starts = range(0, len(values), PAGE) or [0]
            sets[name] = [values[start : start + PAGE] for start in starts]
    chosen = itertools.product(*sets.values())
    return [_Query(index, ranges, dict(zip(sets, values))) for values in chosen]


def _stream(
    datastore: Datastore,
    query: _Query,
    after: Sequence[Any] | None,
    reverse: bool,
    limit: int | None,
) -> Iterator[Entity]:
    """The entities of one query, page after page."""
    index = query.index
    positions = dict(zip([*index.types, "entity_id"], after or ()))
    position: Sequence[Any] = [positions[name] for name in query.order] if after else ()
    size = PAGE if limit is None else min(limit, PAGE)
    while size:
        page = functools.partial(query.page, position=position, reverse=reverse, size=size)
        rows = datastore._store.ask(index, page)
        for row in rows:
            position = row[4:]
            entity = datastore._store.entity(row[:4])
            # On a sharded server the row may be older than the entity.
            if entity is not None and query.holds_for(entity):
                yield entity
        if len(rows) < size:
            return


# ---- The catalogue. Knows the server and Index: which indexes there are; nothing of bodies. ------

# It has one column that is never filled. Its name is the catalogue's epoch, and the row of the same
# id lists the indexes. A change writes the row of a new epoch, and renames the column:
#
#   writer    START TRANSACTION; SELECT epoch_a …; (writes what the indexes of a need); COMMIT
#   changer   INSERT row b; RENAME COLUMN epoch_a TO epoch_b (it waits for that COMMIT)
#   writer    START TRANSACTION; SELECT epoch_a …: error 1054. It reads row b, and begins again.
#
# The SELECT finds nothing. It holds a metadata lock until COMMIT, which the renaming waits for. On
# a sharded server its ids lead to the shards that are written to. Of two changers one renames; the
# other gets 1054, too. Who dies in between leaves at most a row that nobody reads.


class _Catalogue(NamedTuple):
    """The indexes as of one epoch. A call works from one catalogue, for its rows and its check."""

    epoch: str
    # {"history": bool, "indexes": {table: {"types", "unique", "populated", "made"}}}
    content: dict[str, Any]
    indexes: dict[str, Index]
    # The ids of the catalogue's rows; of the other ones the programs died, or are about to rename.
    rows: list[str]

    def check(self, ids: Sequence[str]) -> Statement:
        """The first statement of a write: it fails once the epoch is another."""
        return CHECK_EPOCH.format(epoch=self.epoch), ids or [""]

    def entry(self, index: Index) -> dict[str, Any] | None:
        """What it says of an index, None if nothing. Raises ValueError if it is another one."""
        entry: dict[str, Any] | None = self.content["indexes"].get(index.table)
        if entry is None:
            return None
        if [*entry["types"].items()] != [*index.types.items()] or entry["unique"] != index.unique:
            raise ValueError(
                f"the database has {self.indexes[index.table]!r}, not {index!r}: remove it first, "
                "or take another name"
            )
        return entry

    def put(self, entities: Mapping[str, Any], bodies: Mapping[str, bytes], new: bool) -> Any:
        """Statements that store {id: entity}, {id: body}. new: there is nothing under these ids."""
        ids = [*entities]
        statements = [] if new else [(DELETE_ENTITIES, ids)]
        statements.append(_insert(INSERT_ENTITIES, bodies.items()))
        if self.content["history"]:
            statements.append((INSERT_HISTORY, ids))
        for index in self.indexes.values():
            rows = {id: index.row(entity) for id, entity in entities.items()}
            statements += [] if new else [index.delete_rows(ids)]
            statements += index.insert_rows(rows)
        return statements

    def delete(self, id: str) -> list[Statement]:
        """Statements that delete an entity and its index rows."""
        rows = [index.delete_rows([id]) for index in self.indexes.values()]
        return [(DELETE_ENTITIES, [id]), *rows]


class _Definitions:
    """Reads and changes the catalogue, and the tables that it lists."""

    def __init__(self, server: _Server) -> None:
        self.server = server
        self.catalogue = _Catalogue("", {}, {}, [])

    @property
    def collation(self) -> str:
        """The one that compares text as Python does, with spaces at the end, too."""
        return "utf8mb4_nopad_bin" if self.server.mariadb else "utf8mb4_0900_bin"

    def open(self, history: bool) -> None:
        """Creates the tables that are missing, and reads the catalogue."""
        if self._stands("entities", ENTITIES) and self._stands("entities_catalogue", CATALOGUE):
            self.renew()
        else:
            with self.server.defining() as define:
                self._create(define, "entities", ENTITIES, ENTITIES_KEYS)
                self._create(define, "entities_catalogue", CATALOGUE, CATALOGUE_KEYS)
            self.renew()
        if history and not self.catalogue.content["history"]:
            with self.server.defining() as define:
                self._create(define, "entities_history", HISTORY, HISTORY_KEYS)
                self._change(define, lambda content: {**content, "history": True})

    def renew(self) -> _Catalogue:
        """The catalogue as it is now. A sharded server may need seconds to learn a new name."""
        self.catalogue = self.server.repeat(self._read)
        return self.catalogue

    def _read(self) -> _Catalogue:
        names, rows = self.server.table(SELECT_CATALOGUE)
        epoch = names[2].removeprefix("epoch_")
        contents = {id: json.loads(content) for id, content, _ in rows}
        # A new table has no row for its first epoch. Any other epoch has its row.
        if epoch == "first":
            contents.setdefault(epoch, {"history": False, "indexes": {}})
        if epoch not in contents:
            raise Error(f"entities_catalogue has no row {epoch!r}: bring it back from a backup")
        indexes = {
            table: Index(table, entry["types"], unique=entry["unique"])
            for table, entry in contents[epoch]["indexes"].items()
        }
        return _Catalogue(epoch, contents[epoch], indexes, [row[0] for row in rows])

    def add(self, index: Index) -> None:
        """Creates the table, and lists it: from then on every writer maintains it."""
        if self.renew().entry(index):
            return
        with self.server.defining() as define:
            if self.renew().entry(index):
                return
            self._create(define, index.table, *index.create_table())
            try:
                # A sharded server that was not told of the table refuses this, before a writer's.
                self.server.query(*index.delete_rows([""]))
            except MySQLdb.Error as error:
                raise Error(
                    f"index table {index.table} cannot be written, and was not added: "
                    f"{error.args[-1]}; on a sharded server, declare it in the VSchema first"
                ) from None
            entry = {"types": index.types, "unique": index.unique, "populated": False}
            entry["made"] = uuid.uuid4().hex
            self._change(define, lambda content: _with(content, index.table, entry))

    def publish(self, index: Index, made: str) -> None:
        """Says that the index is complete, if it is the one still that was populated."""

        def change(content: dict[str, Any]) -> dict[str, Any]:
            entry = content["indexes"].get(index.table)
            if entry is None or entry["made"] != made:
                raise NotPopulated(f"index {index.table} was removed while it was populated")
            return _with(content, index.table, {**entry, "populated": True})

        with self.server.defining() as define:
            self._change(define, change)

    def remove(self, table: str) -> None:
        """Takes the index out of the catalogue, and drops its table. Writes under way go first."""
        with self.server.defining() as define:
            if table in self.renew().indexes:
                self._change(define, lambda content: _with(content, table, None))
                if self._columns(table):
                    define(DROP_TABLE.format(table=_quote(table)))

    def remove_missing(self) -> bool:
        """Takes out what was dropped by hand. Returns whether there was such a table."""
        missing = [table for table in self.renew().indexes if not self._columns(table)]
        for table in missing:
            self.remove(table)
        return bool(missing)

    def _change(self, define: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Publishes change(content). It waits for writes that began with the old content."""
        while True:
            old = self.renew()
            content = change(old.content)
            if content == old.content or self._rename(define, old, content):
                break
        self.renew()

    def _rename(self, define: Any, old: _Catalogue, content: dict[str, Any]) -> bool:
        """Whether the column was renamed. If another program was faster, nothing has changed."""
        epoch = uuid.uuid4().hex
        self.server.query(INSERT_CATALOGUE, epoch, json.dumps(content))
        try:
            define(RENAME_EPOCH.format(old=old.epoch, new=epoch))
        except MySQLdb.Error as error:
            # If the connection was lost the column may have been renamed: then the row has to stay.
            if _code(error) in ROLLED_BACK or _is_stale(error):
                self.server.query(DELETE_CATALOGUE, [epoch])
            if _is_stale(error):
                return False
            raise
        if self.server.mariadb:
            # Galera may replay behind the renaming what was certified before it, unchecked. This
            # claims the table that every write changes, so that it is done or aborted by now.
            define(ANALYZE_ENTITIES)
        if old.rows:
            self.server.query(DELETE_CATALOGUE, old.rows)
        return True

    def _columns(self, table: str) -> dict[str, tuple[str, str | None]]:
        """{column: (type, collation)} of a table that stands, {} if it does not."""
        try:
            rows = self.server.query(SHOW_COLUMNS.format(table=_quote(table)))
        except MySQLdb.ProgrammingError as error:
            if _code(error) != ER.NO_SUCH_TABLE:
                raise
            return {}
        return {name: (type_.lower(), collation) for name, type_, collation, *_ in rows}

    def _stands(self, table: str, columns: Mapping[str, str]) -> bool:
        """Whether the table stands. Raises Error if it is not such as slim needs it."""
        found = self._columns(table)
        for name, definition in columns.items() if found else ():
            if name == "epoch_first":
                continue
            type_ = definition.split()[0].lower()
            stands, collation = found.get(name, ("missing", None))
            if not _same_type(type_, stands):
                raise Error(
                    f"table {table} has a column {name} of type {stands}, where slim needs "
                    f"{type_}: drop or alter it, or take another name"
                )
            if collation and collation != self.collation and type_.startswith("varchar"):
                raise Error(
                    f"table {table}: column {name} compares by {collation}, which takes some texts "
                    f"for the same that are not: ALTER TABLE {_quote(table)} CONVERT TO CHARACTER "
                    f"SET utf8mb4 COLLATE {self.collation}"
                )
        return bool(found)

    def _create(self, define: Any, table: str, columns: Mapping[str, str], keys: str) -> None:
        """Creates the table if it is missing."""
        if not self._stands(table, columns):
            lines = [f"{_quote(name)} {definition}" for name, definition in columns.items()]
            options = f"ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE={self.collation}"
            parts = {"table": _quote(table), "columns": ",\n  ".join(lines), "keys": keys}
            define(CREATE_TABLE.format(**parts, options=options))


def _same_type(needed: str, stands: str) -> bool:
    """Whether a column's type serves: an id may be longer, and `updated` a DATETIME."""
    pattern = {
        "timestamp": "timestamp|datetime",
        "varchar(36)": "varchar",
        "mediumblob": "mediumblob|longblob",
    }.get(needed, re.escape(needed))
    return re.match(f"({pattern})(?![a-z])", stands) is not None


def _with(content: dict[str, Any], table: str, entry: dict[str, Any] | None) -> dict[str, Any]:
    """The catalogue's content with another entry for a table; None takes it out."""
    indexes = {**content["indexes"], table: entry}
    listed = {table: entry for table, entry in indexes.items() if entry is not None}
    return {**content, "indexes": listed}


# ---- Datastore. The verbs, then how a write is put together. -------------------------------------


class Datastore:
    """Entities in a MySQL database. One Datastore serves all threads, tasks and forks of a program.

    host, user, password, database: as for MySQLdb.connect; None leaves it to the option file. So is
    `connect`: port, unix_socket, ssl, connect_timeout … indexes: what `add_index` is called with.
    history: True keeps every version from now on. classes: the application's classes that entities
    may hold; {"old.module.Name": class} for one that moved; ANY. max_size: the most bytes of a body
    when it is decompressed. Creates the tables that are missing. Raises Error where it may not, or
    where one stands that cannot serve, and MySQLdb.OperationalError where there is no access.
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
        given = {name: value for name, value in named.items() if value is not None}
        allowed = _allow(classes)
        self._server = _Server(**{**connect, **given, **CONNECT})
        self._definitions = _Definitions(self._server)
        self._store = _Store(self._server, self._definitions, allowed, max_size)
        self._definitions.open(history)
        for index in indexes:
            entry = self._definitions.catalogue.entry(index)
            if not entry or not entry["populated"]:
                self.add_index(index)

    def __repr__(self) -> str:
        host = self._server.connect.get("host", "localhost")
        return f"<slim.Datastore {self._server.connect['database']} on {host}>"

    def __enter__(self) -> Datastore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Datastore cannot be pickled or copied: open one in each process")

    def put(self, entity: dict[Any, Any], *, expect: int | None = None) -> str:
        """Stores the dictionary, whole, under its "id"; without one, under a new id, written into it.

        expect: the version that it must replace (0: there must be none), else Conflict. Returns the
        id. Raises TypeError or ValueError for what cannot be stored or indexed, Duplicate, and
        Unknown.
        """
        _check_expect(expect)
        id, whole, body = self._store.prepare(entity)
        new = "id" not in entity or expect == 0
        self._store.repeat(
            lambda catalogue: self._store.put(catalogue, {id: (whole, body)}, new, expect), id
        )
        entity["id"] = id
        return id

    def put_many(
        self,
        entities: Iterable[dict[Any, Any]],
        *,
        batch: int = BATCH,
        progress: Progress | None = None,
    ) -> int:
        """Stores any number of dictionaries. Of two with one id the later stands.

        batch: the most entities of a transaction; it ends earlier if they are large. progress:
        called as tqdm.tqdm is. Returns how many were put. What put raises; the batches before the
        failing one stay.
        """
        if progress:
            entities = progress(
                entities, total=len(entities) if isinstance(entities, Sized) else None
            )
        count = size = 0
        changes: dict[str, Any] = {}
        for entity in entities:
            id, whole, body = self._store.prepare(entity)
            if changes and (len(changes) >= batch or size + len(body) > BATCH_BYTES):
                self._store.put_batch(changes)
                size, changes = 0, {}
            # Where the id came last, so that its version is the newest.
            changes.pop(id, None)
            changes[id] = whole, body, entity
            size += len(body)
            count += 1
        if changes:
            self._store.put_batch(changes)
        return count

    def get(self, id: str, *, version: int | None = None) -> Entity | None:
        """The entity, or None. Inside a transaction() it is locked until that ends.

        version: that one of its versions, where history is kept. Raises Corrupt or Untrusted if it
        cannot be read.
        """
        entity = self.get_many([id]).get(id)
        if version is None or entity and entity.version == version:
            return entity
        kept = self.history(id) if self._definitions.renew().content["history"] else []
        return next((entity for entity in kept if entity.version == version), None)

    def get_many(self, ids: Iterable[str]) -> dict[str, Entity]:
        """{id: entity} of those that there are, in the order asked for; locked like get's."""
        asked = [_check_id(id) for id in ids]
        select = LOCK_ENTITIES if self._server.block else SELECT_ENTITIES
        found: dict[str, Any] = {}
        for start in range(0, len(asked), PAGE):
            for row in self._store.query(select, asked[start : start + PAGE]):
                found[row[1]] = self._store.read(row)
        return {id: found[id] for id in asked if id in found}

    def delete(self, id: str, *, expect: int | None = None) -> bool:
        """Deletes the entity and its index rows. False if there was none.

        expect: as for put. Raises Conflict and Unknown.
        """
        _check_expect(expect)
        _check_id(id)
        return self._store.repeat(lambda catalogue: self._store.delete(catalogue, id, expect), id)

    def update(
        self,
        id: str,
        change: Callable[[Entity], None],
        default: Mapping[Any, Any] | None = None,
    ) -> Entity:
        """Reads the entity, lets `change` alter it in place, and stores it, atomically.

        `change` is called as often as it takes, and returns None. default: where it begins if there
        is no entity, which is a KeyError else. Returns the entity as stored. Raises Unknown, and
        what put raises.
        """
        _check_id(id)
        return self._store.repeat(
            lambda catalogue: self._store.update(catalogue, id, change, default), id
        )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done inside is committed together, or rolled back on any exception.

        Inner ones join the outer. It belongs to the thread and the task that began it, and is not
        repeated: a deadlock (1213, 1205, 1020) inside is raised, with nothing done. Raises Unknown.
        """
        with self._store.joined():
            yield

    def scan(self, *, progress: Progress | None = None) -> Iterator[Entity]:
        """Every entity as of one moment, oldest put first, a page at a time.

        progress: called as tqdm.tqdm is. Raises Corrupt or Untrusted for one that cannot be read,
        Error inside of a transaction().
        """
        entities = self._store.scan()
        return iter(progress(entities, total=len(self))) if progress else entities

    def __iter__(self) -> Iterator[Entity]:
        return self.scan()

    def __len__(self) -> int:
        return int(self._store.query(COUNT_ENTITIES)[0][0])

    def __bool__(self) -> bool:
        return True

    def __contains__(self, id: str) -> bool:
        return bool(self._store.query(SELECT_IDS, [_check_id(id)]))

    def history(self, id: str) -> list[Entity]:
        """Every version that was put under this id, newest first, also after a delete.

        [] if there was none. Raises Error where no history is kept.
        """
        _check_id(id)
        if not self._definitions.catalogue.content["history"]:
            if not self._definitions.renew().content["history"]:
                raise Error("no history is kept here: open it once by Datastore(…, history=True)")
        return [self._store.read(row) for row in self._store.query(SELECT_HISTORY, id)]

    def forget(self, id: str) -> None:
        """Deletes the entity, its index rows, and all its versions. Raises Unknown."""
        _check_id(id)
        self._store.repeat(lambda catalogue: self._store.forget(catalogue, id), id)

    def schema(self, *, limit: int | None = None, progress: Progress | None = None) -> Schema:
        """The different types of dictionary that are stored.

        limit: look only at so many, those put last. progress: called as tqdm.tqdm is.
        """
        entities = self._store.scan(limit)
        if progress:
            total = len(self) if limit is None else limit
            return Schema(progress(entities, total=total))
        return Schema(entities)

    @property
    def indexes(self) -> list[Index]:
        """The indexes of the database, those that are not populated yet, too."""
        return [*self._definitions.renew().indexes.values()]

    def add_index(
        self, index: Index, *, populate: bool = True, progress: Progress | None = None
    ) -> Index:
        """Creates the index, and fills it while other programs read and write. Returns it.

        populate: False leaves that to `index.populate`; till then a query raises NotPopulated.
        Raises ValueError if there is another one of this name, and what populate raises: then the
        index is removed again.
        """
        self._server.repeat(lambda: self._definitions.add(index))
        entry = self._definitions.catalogue.entry(index)
        if populate and entry and not entry["populated"]:
            try:
                index.populate(self, progress=progress)
            except (TypeError, ValueError, Duplicate, Corrupt):
                # Else it would refuse the writers what the entities have already.
                self.remove_index(index)
                raise
        return index

    def remove_index(self, index: Index) -> None:
        """Drops the index, if there is one. Writes under way go first; later ones do not know it."""
        self._server.repeat(lambda: self._definitions.remove(index.table))

    def close(self) -> None:
        """Closes the connections; those that other threads use, when their calls end."""
        self._server.close()


class _Store:
    """How entities are read and written. Each attempt of a write works from one catalogue."""

    def __init__(
        self, server: _Server, definitions: _Definitions, allowed: Any, max_size: int
    ) -> None:
        self.server = server
        self._definitions = definitions
        self._allowed = allowed
        self._max_size = max_size

    def query(self, sql: str, *args: Any) -> Rows:
        return self.server.repeat(lambda: self.server.query(sql, *args))

    def ask(self, index: Index, build: Callable[[str], Statement]) -> Rows:
        """Rows of build(check), a query that is answered only if the index is complete."""

        def attempt() -> Rows:
            catalogue = self._definitions.catalogue
            entry = catalogue.entry(index)
            if not entry or not entry["populated"]:
                catalogue = self._definitions.renew()
                entry = catalogue.entry(index)
            if not entry or not entry["populated"]:
                raise NotPopulated(
                    f"index {index.table} is not in the database, or not complete: "
                    "Datastore.add_index makes it, Index.populate fills it"
                )
            return self.server.query(*build(CHECK_EPOCH_IN_QUERY.format(epoch=catalogue.epoch)))

        return self.server.repeat(attempt, self._definitions.renew)

    def read(self, row: Sequence[Any]) -> Entity:
        """The Entity of a row: version, id, updated, body."""
        version, id, updated, body = row
        try:
            entity = Entity(_decode(body or b"", self._allowed, self._max_size))
        except Corrupt as error:
            told = type(error)(f"entity {id!r}: {error}")
            told.id = id
            raise told from None
        entity.setdefault("id", id)
        entity.version = version
        entity.updated = updated.replace(tzinfo=dt.timezone.utc)
        return entity

    def entity(self, row: Sequence[Any], query: Callable[..., Rows] | None = None) -> Entity | None:
        """The same for a row of a page, which has no large bodies. None if it is gone by now."""
        if row[3] is None:
            rows = (query or self.query)(SELECT_ENTITIES, [row[1]])
            return self.read(rows[0]) if rows else None
        return self.read(row)

    def scan(self, limit: int | None = None) -> Iterator[Entity]:
        """Entities as of one moment: all, oldest first, or the newest so many."""
        select, last = (SELECT_PAGE, 0) if limit is None else (SELECT_NEWEST, (1 << 64) - 1)
        left = math.inf if limit is None else limit
        with self.server.snapshot() as query:
            while left and (rows := query(select, last, min(left, PAGE))):
                for row in rows:
                    entity = self.entity(row, query)
                    if entity is not None:
                        yield entity
                left -= len(rows)
                last = rows[-1][0]

    def repeat(self, attempt: Callable[[_Catalogue], T], id: str | None = None) -> T:
        """attempt(catalogue), again while that was not done and may succeed."""
        definitions = self._definitions
        while True:
            try:
                return self.server.repeat(lambda: attempt(definitions.catalogue), definitions.renew)
            except Unknown as error:
                error.id = id
                raise
            except MySQLdb.ProgrammingError as error:
                # An index table may have been dropped by hand.
                if _code(error) != ER.NO_SUCH_TABLE or self.server.block:
                    raise
                if not definitions.remove_missing():
                    raise

    def prepare(self, entity: Any) -> tuple[str, dict[Any, Any], bytes]:
        """The id, the entity with it, and its body."""
        if not isinstance(entity, dict):
            raise TypeError(f"an entity is a dict, not {reprlib.repr(entity)}")
        id = _check_id(entity["id"]) if "id" in entity else _new_id()
        whole = {**entity, "id": id}
        body = _encode(whole, self._allowed, self._max_size)
        if len(body) > MAX_BODY:
            raise ValueError(f"entity {id!r} has {len(body)} bytes compressed, over {MAX_BODY}")
        return id, whole, body

    def put_batch(self, changes: Mapping[str, Any]) -> None:
        """Stores {id: (whole, body, the caller's)} in one transaction, in two if it is too large."""
        new = all(["id" not in entity for _, _, entity in changes.values()])
        stored = {id: (whole, body) for id, (whole, body, _) in changes.items()}
        try:
            self.repeat(lambda catalogue: self.put(catalogue, stored, new))
        except _TooLarge:
            if len(changes) == 1:
                raise
            items = [*changes.items()]
            self.put_batch(dict(items[: len(items) // 2]))
            self.put_batch(dict(items[len(items) // 2 :]))
        for id, (_, _, entity) in changes.items():
            entity["id"] = id

    def put(
        self,
        catalogue: _Catalogue,
        changes: Mapping[str, tuple[Any, bytes]],
        new: bool,
        expect: int | None = None,
    ) -> None:
        """Stores {id: (entity, body)}."""
        entities = {id: entity for id, (entity, _) in changes.items()}
        statements = catalogue.put(entities, {id: body for id, (_, body) in changes.items()}, new)
        with self.server.transaction():
            if expect is None:
                statements = [catalogue.check([*entities]), *statements]
            else:
                self._lock(catalogue, [*entities][0], expect)
            self._store(catalogue, entities, statements, expect)

    def _store(self, catalogue: _Catalogue, entities: Any, statements: Any, expect: Any) -> Any:
        try:
            return self.server.write(statements)
        except MySQLdb.IntegrityError as error:
            if _code(error) == ER.DUP_ENTRY:
                self._explain(catalogue, entities, expect)
            raise

    def delete(self, catalogue: _Catalogue, id: str, expect: int | None) -> bool:
        with self.server.transaction():
            # Who deletes nothing locks nothing, and must not go on to the index rows.
            if not self._lock(catalogue, id, expect):
                return False
            self.server.write(catalogue.delete(id))
        return True

    def forget(self, catalogue: _Catalogue, id: str) -> None:
        with self.server.transaction():
            statements = catalogue.delete(id) if self._lock(catalogue, id) else []
            if catalogue.content["history"]:
                statements.append((DELETE_HISTORY, id, id))
            if statements:
                self.server.write(statements)

    def update(
        self,
        catalogue: _Catalogue,
        id: str,
        change: Callable[[Entity], None],
        default: Mapping[Any, Any] | None,
    ) -> Entity:
        with self.server.transaction():
            *_, rows = self.server.read([catalogue.check([id]), (LOCK_ENTITIES, [id])])
            if not rows and default is None:
                raise KeyError(id)
            entity = self.read(rows[0]) if rows else Entity(copy.deepcopy({**default, "id": id}))
            # If `change` fails what it has put meanwhile must not be committed.
            with self.joined():
                if change(entity) is not None:
                    raise TypeError("change(entity) alters the entity in place, and returns None")
                if entity.get("id") != id:
                    raise ValueError(f"change(entity) made {entity.get('id')!r} of the id {id!r}")
                _, whole, body = self.prepare(entity)
            statements = catalogue.put({id: whole}, {id: body}, not rows)
            statements.append((SELECT_STAMP, id))
            stamp = self._store(catalogue, {id: whole}, statements, None)[-1][0]
        entity.version = stamp[0]
        entity.updated = stamp[1].replace(tzinfo=dt.timezone.utc)
        return entity

    def _lock(self, catalogue: _Catalogue, id: str, expect: int | None = None) -> int:
        """The entity's version, locked until the transaction ends; 0 if there is none."""
        *_, rows = self.server.read([catalogue.check([id]), (LOCK_VERSION, id)])
        found = int(rows[0][0]) if rows else 0
        if expect is not None and found != expect:
            raise Conflict(id, expect, found)
        return found

    def _explain(self, catalogue: _Catalogue, entities: Any, expect: int | None) -> NoReturn:
        """Raises what error 1062 means. The transaction is open still: its own rows count, too."""
        for index in catalogue.indexes.values():
            if index.unique:
                rows = {id: index.row(entity) for id, entity in entities.items()}
                self.raise_duplicate(index, rows)
        if expect == 0:
            (id,) = entities
            for (found,) in self.server.look(LOCK_VERSION, id):
                raise Conflict(id, 0, found) from None
        raise MySQLdb.OperationalError(
            ER.LOCK_DEADLOCK, "another program was inserting the same id; try it again"
        ) from None

    def raise_duplicate(self, index: Index, rows: Mapping[str, Any]) -> None:
        owners: dict[Any, str] = {}
        for id, row in rows.items():
            if row is not None and owners.setdefault(row, id) != id:
                raise Duplicate(index, owners[row]) from None
        if owners:
            select = index.sql(SELECT_OWNERS)
            for *_, owner in self.server.look(select, [*owners], [*rows]):
                raise Duplicate(index, owner) from None

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """A block, of which an exception lets nothing be committed, also if an outer one catches it."""
        with self.server.transaction() as block:
            try:
                yield
            except BaseException:
                block.failed = True
                raise

    def write_rows(self, index: Index, rows: Mapping[str, Any]) -> None:
        """Replaces the index rows of locked entities: {id: row, or None}."""
        try:
            self.server.write([index.delete_rows([*rows]), *index.insert_rows(rows)])
        except MySQLdb.IntegrityError:
            self.raise_duplicate(index, rows)
            raise

    def repair(self, index: Index, id: str) -> None:
        """Rewrites the row of a stored entity."""

        def attempt(catalogue: _Catalogue) -> None:
            with self.server.transaction():
                *_, rows = self.server.read([catalogue.check([id]), (LOCK_ENTITIES, [id])])
                for row in rows:
                    self.write_rows(index, {id: index.row(self.read(row))})

        self.repeat(attempt)

    def populate(self, index: Index, progress: Progress | None) -> int:
        """Makes the index's table right, and says in the catalogue that it is."""
        if self.server.block:
            raise Error("an index cannot be populated inside a transaction(): do it outside")
        entry = self._definitions.renew().entry(index)
        if entry is None:
            raise NotPopulated(f"index {index.table} is not in the database: Datastore.add_index")
        populating = _Populating(self, index, entry["made"])
        changed = populating.repair(progress)
        self.server.repeat(lambda: self._definitions.publish(index, entry["made"]))
        # On Galera a locked entity can be written through another node: a row that was right when
        # it was inserted may be wrong when it is committed. By now such writes are done.
        return changed + populating.repair(None) if changed else 0


class _Populating:
    """Makes the table of an index agree with the entities, a page at a time."""

    def __init__(self, store: _Store, index: Index, made: str) -> None:
        self._store = store
        self._server = store.server
        self._index = index
        self._made = made

    def repair(self, progress: Progress | None) -> int:
        """Looks at all rows. Returns how many were wrong, and are right now."""
        # First those without an entity: in a unique index they could have an entity's values.
        wrong = self._delete_orphans()
        looked = self._look()
        total = self._store.query(COUNT_ENTITIES)[0][0] if progress else 0
        return wrong + sum(progress(looked, total=total) if progress else looked)

    def _look(self) -> Iterator[bool]:
        """For each entity, whether its row was wrong."""
        last = 0
        while looked := self._store.repeat(functools.partial(self._repair_page, after=last)):
            yield from looked.values()
            last = max(looked)

    def _repair_page(self, catalogue: _Catalogue, after: int) -> dict[int, bool]:
        """{version: whether the row was wrong} of the next entities, which are locked meanwhile."""
        index = self._index
        with self._server.transaction():
            # The check first: it may wait for a change of the catalogue, and must hold no row then.
            select = index.sql(LOCK_COMPARED)
            *_, rows = self._server.read([self._check(catalogue, []), (select, after, PAGE)])
            looked: dict[int, bool] = {}
            wrong: dict[str, Any] = {}
            for version, id, updated, body, found, *row in rows:
                wanted = self._wanted((version, id, updated, body))
                looked[version] = wanted != (None if found is None else tuple(row))
                if looked[version]:
                    wrong[id] = wanted
            if wrong:
                self._store.write_rows(index, wrong)
        return looked

    def _wanted(self, row: Sequence[Any]) -> tuple[Any, ...] | None:
        """The row that an entity is to have. Raises with its id for one that it cannot have."""
        try:
            return self._index.row(self._store.entity(row) or {})
        except (TypeError, ValueError) as error:
            raise type(error)(f"entity {row[1]!r}: {error}") from None

    def _delete_orphans(self) -> int:
        """Deletes the rows without an entity. Returns how many."""
        count = 0
        last = ""
        select = self._index.sql(SELECT_ORPHANS)
        while found := [id for (id,) in self._store.query(select, last, PAGE)]:
            count += self._store.repeat(functools.partial(self._delete_page, ids=found))
            last = found[-1]
        return count

    def _delete_page(self, catalogue: _Catalogue, ids: list[str]) -> int:
        """Whoever is about to insert one of these rows waits for it; who has done so is seen."""
        with self._server.transaction():
            locked = (self._index.sql(LOCK_ROWS), ids)
            *_, rows, stored = self._server.read(
                [self._check(catalogue, ids), locked, (SELECT_IDS, ids)]
            )
            orphans = {id for (id,) in rows} - {id for (id,) in stored}
            if orphans:
                self._server.write([self._index.delete_rows([*orphans])])
        return len(orphans)

    def _check(self, catalogue: _Catalogue, ids: list[str]) -> Statement:
        entry = catalogue.entry(self._index)
        if entry is None or entry["made"] != self._made:
            raise NotPopulated(f"index {self._index.table} was removed while it was populated")
        return catalogue.check(ids)


# ---- schema, and the command line. Know Datastore and Index; nothing private of them. ------------

SCREEN = 80, 24


class Shape(NamedTuple):
    """A type of dictionary: how many entities have it, their share, {key: type}, the id of one."""

    count: int
    share: float
    fields: dict[str, str]
    example: str

    def __str__(self) -> str:
        fields = ", ".join([f"{key}: {kind}" for key, kind in self.fields.items()])
        return f"{self.count:10,} {self.share:7.1%}  {self.example}\n{' ' * 12}{_printable(fields)}"


class Schema:
    """What is stored: `.count` entities, and `.shapes`, the most frequent first.

    Its str fits a screen; that of each shape has all of its fields.
    """

    def __init__(self, entities: Iterable[Mapping[Any, Any]]) -> None:
        counts: collections.Counter[Any] = collections.Counter()
        examples: dict[Any, str] = {}
        for entity in entities:
            kinds = sorted([(str(key), _kind(value)) for key, value in entity.items()])
            counts[tuple(kinds)] += 1
            examples.setdefault(tuple(kinds), entity["id"])
        self.count = counts.total()
        self.shapes = [
            Shape(count, count / self.count, dict(kinds), examples[kinds])
            for kinds, count in counts.most_common()
        ]

    def __str__(self) -> str:
        width, height = SCREEN
        lines = [f"{self.count:,} entities, {len(self.shapes):,} types of dictionary"]
        most = (height - 4) // 2
        for shape in self.shapes[:most]:
            lines += [line[: width - 1] for line in str(shape).split("\n")]
        if len(self.shapes) > most:
            lines.append(f"… and {len(self.shapes) - most:,} others")
        return "\n".join(lines)


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _printable(text: str) -> str:
    """The text with control characters shown as escapes, so that no terminal obeys them."""
    return "".join([char if char.isprintable() else repr(char)[1:-1] for char in text])


def _json(value: Any, outer: tuple[int, ...] = ()) -> Any:
    """What JSON cannot say becomes {"its type": its text}; bytes are in hex."""
    if (
        value is None
        or isinstance(value, (str, int))
        or isinstance(value, float)
        and value - value == 0
    ):
        return value
    if id(value) in outer:
        return {"holds": "itself"}
    outer = (*outer, id(value))
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else repr(key): _json(item, outer)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_json(item, outer) for item in value]
    if isinstance(value, (set, frozenset, collections.deque)):
        return {type(value).__name__: [_json(item, outer) for item in value]}
    if isinstance(value, (bytes, bytearray)):
        return {type(value).__name__: value.hex()}
    text = value.isoformat() if hasattr(value, "isoformat") else str(value)
    return {type(value).__name__: text}


def _text(entity: Entity) -> str:
    """An entity for people, its values as Python writes them."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    head = f"{bold}{_printable(entity['id'])}{plain}  version {entity.version}, {entity.updated}"
    width = max([len(str(key)) for key in entity])
    lines = [f"  {_printable(str(key)):{width}}  {value!r}" for key, value in entity.items()]
    return "\n".join([head, *lines])


EPILOG = """\
  slim app schema                               what types of dictionary there are
  slim app indexes
  slim app get 01a2089d-7bfb-7861-ba78-80e658e91f0f
  slim app find index_city city=London          the entities that an index finds
  slim app find index_city city=London city=Paris 'born>=1900-01-01' 'born<1950-01-01'
  slim app populate index_city                  compare an index with the entities, repair it

A property given twice means one of the values; >= and < are a range. With --json, each entity is a
line; what JSON has not is {"its type": its text}. It connects as mysql does, by the same options
and option files.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "slim",
        description="Shows what a slim datastore holds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    add = parser.add_argument
    add("--help", action="help", help="show this")
    add("-h", "--host")
    add("-P", "--port", type=int)
    add("-S", "--socket", dest="unix_socket")
    add("-u", "--user")
    add("-p", "--password", help="-pSECRET, or -p alone to be asked for it")
    add("--defaults-file", dest="read_default_file", help="read this option file alone")
    add("--json", action="store_true", help="print JSON lines")
    add("--all", action="store_true", help="schema: more than a screen")
    add("--limit", type=int, help="schema, find: so many entities")
    add("--reverse", action="store_true", help="find: the last first")
    add("database")
    add("verb", choices=["schema", "get", "find", "indexes", "populate"])
    add("what", nargs="?", help="an ID or an INDEX")
    add("match", nargs="*", help="find: property=value, 'property>=value', 'property<value'")
    return parser


def _match(index: Index, words: Iterable[str]) -> dict[str, Any]:
    """What `find` is asked for, from words like age>=18."""
    match: dict[str, Any] = {}
    for word in words:
        names = [name for name in index.types if re.match(re.escape(name) + "(>=|<|=)", word)]
        if not names:
            raise ValueError(
                f"{word!r} is not property=value, property>=value or property<value with a property "
                f"of index {index.table}: {', '.join(index.types)}"
            )
        name = max(names, key=len)
        sign, text = re.fullmatch("(>=|<|=)(.*)", word[len(name) :], re.DOTALL).groups()  # type: ignore[union-attr]
        value = _parse(index.columns[name].python, text, f"{name} in index {index.table}")
        asked = match.get(name)
        if sign == "=":
            match[name] = [*(asked or []), value]
        else:
            low, high = (asked.start, asked.stop) if asked else (None, None)
            match[name] = slice(value, high) if sign == ">=" else slice(low, value)
    return match


def _parse(cls: Any, text: str, what: str) -> Any:
    parse: Any = {bool: json.loads, bytes: str.encode}.get(cls, getattr(cls, "fromisoformat", cls))
    try:
        return parse(text)
    except (ValueError, ArithmeticError):
        raise ValueError(f"{text!r} is no {cls.__name__}, which is the type of {what}") from None


def _answer(options: argparse.Namespace, store: Datastore) -> Iterator[Any]:
    """What a command prints."""
    progress: Any = None
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from tqdm import tqdm as progress
    indexes = {index.table: index for index in store.indexes}
    if options.verb == "schema":
        schema = store.schema(limit=options.limit, progress=progress)
        yield from schema.shapes if options.json or options.all else [schema]
    elif options.verb == "get":
        entity = store.get(options.what)
        if entity is None:
            raise ValueError(f"there is no entity {options.what!r}")
        yield entity
    elif options.verb == "indexes":
        yield from indexes.values()
    elif options.what not in indexes:
        raise ValueError(f"there is no index {options.what!r}, but: {', '.join(indexes) or 'none'}")
    elif options.verb == "find":
        index = indexes[options.what]
        match = _match(index, options.match)
        yield from index.find(store, match, reverse=options.reverse, limit=options.limit)
    else:
        changed = indexes[options.what].populate(store, progress=progress)
        yield {"changed": changed} if options.json else f"{changed:,} rows had to be changed"


def _line(thing: Any, as_json: bool) -> str:
    if not as_json:
        return _text(thing) if isinstance(thing, Entity) else str(thing)
    if isinstance(thing, Shape):
        thing = thing._asdict()
    if isinstance(thing, Index):
        thing = {"index": thing.table, "properties": thing.types, "unique": thing.unique}
    return json.dumps(_json(thing), ensure_ascii=False)


def main() -> None:
    """The command line, `python -m slim`. Exits with 1 after an error, with 2 if called wrongly."""
    words = ["--password=" if word in ("-p", "--password") else word for word in sys.argv[1:]]
    options = _parser().parse_intermixed_args(words)
    if (options.what is None) != (options.verb in ("schema", "indexes")):
        _parser().error(f"{options.verb}: too few or too many words")
    names = "host", "port", "unix_socket", "user", "password", "database", "read_default_file"
    given = {name: getattr(options, name) for name in names}
    connect = {name: value for name, value in given.items() if value is not None}
    connect["read_default_group"] = "client"
    # Half of a surrogate pair can be stored, and printed as its escape.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        if options.password == "":
            connect["password"] = getpass.getpass("Enter password: ")
        _look_for_tables(connect)
        credentials = {name: connect.pop(name, None) for name in ("host", "user", "password")}
        with Datastore(**credentials, **connect) as store:
            for thing in _answer(options, store):
                print(_line(thing, options.json), flush=True)
    except (BrokenPipeError, KeyboardInterrupt):
        # The reader closed the pipe. What Python flushes at exit must not say so again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (Error, MySQLdb.Error, TypeError, ValueError, EOFError, RecursionError) as error:
        text = error.args[-1] if isinstance(error, MySQLdb.Error) else error
        sys.exit("slim: " + _printable(" ".join(str(text).split())))


def _look_for_tables(connect: Mapping[str, Any]) -> None:
    """Who looks at a database should find it as it was: a Datastore would make the tables."""
    connection = MySQLdb.connect(**connect)
    with contextlib.closing(connection), connection.cursor() as cursor:
        if not cursor.execute("SHOW TABLES LIKE 'entities\\_catalogue'"):
            raise Error(f"the database {connect['database']} holds no slim datastore")


if __name__ == "__main__":
    main()
