"""slim: a schema-less, indexed datastore on MySQL, after FriendFeed's of 2009.

    >>> import slim
    >>> by_user = slim.Index("index_user_id", "user_id")
    >>> store = slim.Datastore("localhost", "me", "secret", "app", indexes=[by_user])
    >>> key = store.put({"user_id": "bob", "title": "Hello"})  # one round trip
    >>> entity = store.get(key)  # None if there is none
    >>> [found["title"] for found in by_user.get_all(store, user_id="bob")]
    ['Hello']
    >>> entity = store.update(key, lambda entity: entity.update(likes=1))  # KeyError if none
    >>> key = store.put(entity, expect=entity.version)  # Conflict if it has changed
    >>> store.delete(key)
    True

Table `entities` holds added_id (the version), id, updated, body (a pickle, compressed by zlib), an
index's table its properties and entity_id, `entities_catalogue` which indexes there are.
"""

from __future__ import annotations

import argparse
import contextvars
import copy
import copyreg
import datetime as dt
import enum
import fractions
import functools
import io
import ipaddress as ip
import itertools
import json
import logging
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
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

import MySQLdb
from MySQLdb.constants import CR, ER, FIELD_TYPE
from MySQLdb.converters import conversions

__version__ = "2.0.0"

# Disables the allow-list of classes: only where nobody else can write.
ANY = "any"
MAX_SIZE = 64 << 20
# Entities of a page, and of a batch; bytes of a batch's bodies.
PAGE = 250
BATCH = 1_000
BATCH_BYTES = 2 << 20
# No call is begun again after this. A change of the indexes stops writers for this.
RETRY_SECONDS = 30
ALTER_SECONDS = 2

# Rolled back. 1020: snapshot isolation. 3024: a time limit. 3101: at COMMIT.
ROLLED_BACK = {ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, 1020, 3024, 3101}
# Not done. 1290, 1836: read-only. 3032: offline. 4031: idle for too long.
NOT_DONE = {CR.CONNECTION_ERROR, CR.CONN_HOST_ERROR, CR.SERVER_GONE_ERROR, 1290, 1836, 3032, 4031}
# Broken off. 1047, 3100: no cluster. 1105: no tablet. 1927: killed. 20xx: by the client.
BROKEN = {CR.SERVER_LOST, ER.SERVER_SHUTDOWN, ER.ERROR_DURING_COMMIT, 1047, 1105, 1927, 3100}
BROKEN |= {2007, 2012, 2014, 2026, 2027, 2055}

_log = logging.getLogger("slim")

T = TypeVar("T")
# Of a result; or a statement: SQL, then its values.
Row = tuple[Any, ...]
Rows = Sequence[Row]


class Error(Exception):
    """The base of slim's own errors. The driver's pass through."""

    id: str | None = None

    def __init__(self, message: str, **attributes: Any) -> None:
        super().__init__(message)
        vars(self).update(attributes)


class Conflict(Error):
    """The entity `id` has the version `found` (0: none), not the `expected` one."""


class Duplicate(Error):
    """Another entity, `id`, has the same values in the unique `index`."""


class NotPopulated(Error):
    """The index is not there, or not complete yet."""


class Unknown(Error):
    """The connection was lost during COMMIT: the entity `id` was written, or not."""


class Corrupt(Error):
    """A body, that of the entity `id`, cannot be read."""


class Untrusted(Corrupt):
    """A body names a class that is not allowed. Nothing of it was run."""


# ---- SQL. Identifiers are formatted in, quoted; values are bound to %s.

# No default of a server may refuse a statement, cut a result short, or change what values mean.
# Galera would run an aborted packet again, and answer twice. 1193: no Galera.
SET_SESSION = """\
SET NAMES utf8mb4;
SET SESSION time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION',
  sql_safe_updates = 0, sql_select_limit = 9223372036854775807, sql_big_selects = 1,
  completion_type = 0, autocommit = 1
  /*!80000 , max_execution_time = 0, range_optimizer_max_mem_size = 0 */
  /*M!100307 , max_statement_time = 0, timestamp = DEFAULT,
    in_predicate_conversion_threshold = 0, max_sort_length = 4096 */;
SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE;
/*M! BEGIN NOT ATOMIC DECLARE CONTINUE HANDLER FOR 1193 DO 0;
  EXECUTE IMMEDIATE 'SET SESSION wsrep_retry_autocommit = 0'; */
SELECT @@max_allowed_packet, VERSION() LIKE '%%MariaDB%%' /*M! ; END */"""
# The lock ends with the connection. vtgate: no sql_select_limit.
LOCK_DEFINITIONS = f"""\
SET SESSION lock_wait_timeout = {ALTER_SECONDS}, sql_select_limit = DEFAULT;
SELECT GET_LOCK(LEFT(CONCAT('slim ', DATABASE()), 64), {RETRY_SECONDS});
SET SESSION sql_select_limit = 9223372036854775807"""
BEGIN_SNAPSHOT = """\
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT"""

ENTITIES = {
    "added_id": "BIGINT UNSIGNED NOT NULL AUTO_INCREMENT",
    "id": "VARCHAR(36) NOT NULL",
    "updated": "TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP",
    "body": "MEDIUMBLOB",
}
CATALOGUE = {"id": ENTITIES["id"], "content": "MEDIUMTEXT NOT NULL"}
SHOW_COLUMNS = "SHOW FULL COLUMNS FROM {table}"
DROP_TABLE = "DROP TABLE IF EXISTS {table}"
CREATE_TABLE = """\
CREATE TABLE IF NOT EXISTS {table} ({columns}, {rest})
ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE={collation}"""

# {check}: NULL, or error 1054 if the indexes have changed. See the catalogue.
CHECK = "(SELECT epoch_{epoch} FROM entities_catalogue WHERE id IN %s LIMIT 0)"

SELECT_ENTITIES = "SELECT added_id, id, updated, body FROM entities WHERE id IN %s"
LOCK_ENTITIES = SELECT_ENTITIES + " AND {check} IS NULL FOR UPDATE"
SELECT_VERSION = "SELECT added_id, updated FROM entities WHERE id = %s"
# Without large bodies.
SELECT_PAGE = """\
SELECT added_id, id, updated, IF(LENGTH(body) > 65536, NULL, body)
FROM entities WHERE added_id > %s ORDER BY added_id LIMIT %s"""
COUNT_ENTITIES = "SELECT COUNT(*) FROM entities"
DELETE_ENTITIES = "DELETE FROM entities WHERE id IN %s AND {check} IS NULL"
INSERT_ENTITIES = "INSERT INTO entities (id, body) VALUES "

DELETE_ROWS = "DELETE FROM {table} WHERE entity_id IN %s"
INSERT_ROWS = "INSERT INTO {table} ({names}, entity_id) VALUES "
SELECT_OWNERS = "SELECT entity_id FROM {table} WHERE ({names}) IN %s AND entity_id NOT IN %s"
# Without STRAIGHT_JOIN MySQL may sort.
SELECT_MATCH = """\
SELECT e.added_id, e.id, e.updated, e.body, {selected}
FROM {table} AS i STRAIGHT_JOIN entities AS e ON e.id = i.entity_id
WHERE {check} IS NULL AND {where} ORDER BY {order} LIMIT %s"""
COUNT_MATCH = "SELECT COUNT(*) FROM {table} AS i WHERE {check} IS NULL AND {where}"
LOCK_ENTITY_PAGE = """\
SELECT e.added_id, e.id, e.updated, IF(LENGTH(e.body) > 65536, NULL, e.body), {selected}
FROM entities AS e LEFT JOIN {table} AS i ON i.entity_id = e.id
WHERE e.added_id > %s ORDER BY e.added_id LIMIT %s FOR UPDATE"""
# First the cursor, then the id. vtgate: no NULL > 1.
LOCK_ROW_PAGE = """\
SELECT i.entity_id, i.entity_id, e.updated,
  IF(IFNULL(LENGTH(e.body), 0) > 65536, NULL, e.body), {selected}
FROM {table} AS i LEFT JOIN entities AS e ON e.id = i.entity_id
WHERE i.entity_id > %s ORDER BY i.entity_id LIMIT %s FOR UPDATE"""

SELECT_CATALOGUE = "SELECT id, content FROM entities_catalogue"
INSERT_CATALOGUE = "INSERT INTO entities_catalogue (id, content) VALUES (%s, %s)"
DELETE_CATALOGUE = "DELETE FROM entities_catalogue WHERE id IN %s"
RENAME_EPOCH = "ALTER TABLE entities_catalogue RENAME COLUMN epoch_{old} TO epoch_{new}"


def _quote(name: str) -> str:
    # Values are bound later: % is doubled.
    return "`" + name.replace("`", "``").replace("%", "%%") + "`"


def _insert(sql: str, rows: Rows) -> Row:
    return sql + ", ".join(["%s"] * len(rows)), *rows


# ---- Bodies. Knows pickle, zlib and classes; nothing of SQL.


class Entity(dict[Any, Any]):
    """A dictionary out of the store, with its `version` and when it was `updated` (UTC)."""

    __slots__ = "updated", "version"
    version: int
    updated: dt.datetime


def _new(cls: Any, *args: Any) -> Any:
    # As NEWOBJ does.
    return cls.__new__(cls, *args)


class _Allowed(dict[str, Any]):
    """{"module.name": class} of what a body may name."""


def _by_name(classes: Iterable[Any]) -> dict[str, Any]:
    # Python 3.13 has its paths in pathlib._local.
    return {
        f"{cls.__module__.removesuffix('._local')}{local}.{cls.__qualname__}": cls
        for cls in classes
        for local in ("", "._local")
    }


# fmt: off
_BUILT_IN = _by_name([
    dt.date, dt.time, dt.datetime, dt.timedelta, dt.timezone, zoneinfo.ZoneInfo,
    Decimal, fractions.Fraction, complex, range, slice, uuid.UUID, bytearray, set, frozenset, dict,
    OrderedDict, Counter, deque,
    ip.IPv4Address, ip.IPv4Network, ip.IPv4Interface,
    ip.IPv6Address, ip.IPv6Network, ip.IPv6Interface,
    pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath])
# fmt: on


def _allow(classes: Any) -> Any:
    if isinstance(classes, _Allowed) or classes == ANY:
        return classes
    moved = classes if isinstance(classes, Mapping) else {}
    return _Allowed({**_BUILT_IN, **_by_name(moved.values() or classes), **moved})


class _Unpickler(pickle.Unpickler):
    """Reads a pickle, and imports nothing.

    A name becomes a new function that calls the class. So the opcode NEWOBJ has no class to work
    on, and BUILD alters only what dies with this body.
    """

    allowed: _Allowed
    # {function: its class}
    functions: dict[Any, Any]

    def find_class(self, module: str, name: str) -> Any:
        functions = self.functions
        name = f"{module}.{name}"
        is_new = f".{name}".endswith(".slim._new")
        cls: Any = _new if is_new else self.allowed.get(name)
        if cls is None:
            raise Untrusted(f"it names {name}, which is not in Datastore(classes=…)")

        def call(*args: Any) -> Any:
            # _new gets such a function in a class's place.
            return _new(functions[args[0]], *args[1:]) if is_new else cls(*args)

        functions[call] = cls
        return call


class _Pickler(pickle.Pickler):
    """Writes what `_Unpickler` reads. `plain`: it met built-in values alone."""

    plain = True
    dispatch_table = ChainMap[Any, Any](
        dict.fromkeys(
            [uuid.UUID, ip.IPv6Address, zoneinfo.ZoneInfo], lambda v: (type(v), (str(v),))
        ),
        dict.fromkeys([defaultdict, Entity], lambda v: (dict, (), None, None, iter(v.items()))),
        copyreg.dispatch_table,
    )

    def reducer_override(self, value: Any) -> Any:
        self.plain = False
        # Pythons pickle enums differently.
        if isinstance(value, enum.Enum):
            return type(value), (value.value,)
        if isinstance(value, (type, types.FunctionType)) or type(value) in self.dispatch_table:
            return NotImplemented
        reduced = value.__reduce_ex__(5)
        if reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return _new, *reduced[1:]
        return reduced


def encode(entity: Mapping[Any, Any], classes: Any = (), max_size: int = MAX_SIZE) -> bytes:
    """The body of a dictionary. classes, max_size: as for Datastore.

    Raises TypeError, ValueError, or Untrusted for what decode could not read, or would refuse.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, 5)
    try:
        pickler.dump(dict(entity))
        data = buffer.getvalue()
        if not pickler.plain:
            _load(data, classes)
    except Untrusted:
        raise
    except Exception as error:
        raise TypeError(f"{reprlib.repr(entity)} cannot be pickled: {error}") from error
    body = zlib.compress(data, 1)
    # MEDIUMBLOB: 16 MiB.
    if len(data) > max_size or len(body) >= 1 << 24:
        raise ValueError(f"{reprlib.repr(entity)} is over max_size={max_size} or 16 MiB compressed")
    return body


def decode(body: bytes, classes: Any = (), max_size: int = MAX_SIZE) -> dict[Any, Any]:
    """The dictionary of a body. Raises Untrusted, and Corrupt if it is none, or larger."""
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(body, max_size)
        if not stream.eof or stream.unused_data:
            raise ValueError(f"it is cut short, or over max_size={max_size}")
        entity = _load(data, classes)
        if not isinstance(entity, dict):
            raise ValueError("it is no dictionary")
    except Untrusted:
        raise
    except Exception as error:
        # A broken pickle can raise anything.
        raise Corrupt(f"the body cannot be read: {type(error).__name__}: {error}") from error
    return entity


def _load(data: bytes, classes: Any) -> Any:
    # To run needs a name: STACK_GLOBAL, EXT1, EXT2, EXT4, or two lines (GLOBAL, INST).
    names = 0x93 in data or 0x82 in data or 0x83 in data or 0x84 in data
    if classes == ANY or not (names or data.count(10) > 1):
        return pickle.loads(data)
    # The opcodes EXT are answered from this cache.
    copyreg.clear_extension_cache()
    unpickler = _Unpickler(io.BytesIO(data))
    unpickler.allowed = _allow(classes)
    unpickler.functions = {}
    value = unpickler.load()
    if unpickler.functions:
        kept = weakref.WeakSet(unpickler.functions)
        unpickler.functions.clear()
        # Its memo holds them, too.
        del unpickler
        if kept:
            raise ValueError("it holds a class or a function as a value")
    return value


def _new_id() -> str:
    # RFC 9562, version 7: milliseconds; version and variant, each before random digits.
    now, digits = f"{time.time_ns() // 10**6:012x}", os.urandom(9).hex()
    return f"{now[:8]}-{now[8:]}-7{digits[:3]}-8{digits[3:6]}-{digits[6:]}"


def _check_id(id: Any) -> str:
    if type(id) is not str or not 1 <= len(id) <= 36:
        error = ValueError if isinstance(id, str) else TypeError
        raise error(f"an id is a str of 1 to 36 characters, not {reprlib.repr(id)}")
    return id


# ---- Connections and transactions. Knows MySQLdb and its errors; nothing of entities.

# By itself MySQLdb writes a large Decimal as a DOUBLE.
CONVERSIONS: dict[Any, Any] = {**conversions, Decimal: lambda value, _: format(value, "f")}
CONVERSIONS[FIELD_TYPE.TIMESTAMP] = lambda text: dt.datetime.fromisoformat(text + "+00:00")
CONNECT = {"charset": "utf8mb4", "binary_prefix": True, "autocommit": True, "conv": CONVERSIONS}


# A transaction. depth: of nesting. single: one call's own, whose last packet commits.
# begun: START was sent. written: the ids. failed: or ended.
_Block = types.SimpleNamespace


class _Client:
    """Connections. `_exchange` alone sends, `_send_in` begins and commits blocks."""

    def __init__(self, connect: dict[str, Any]) -> None:
        self._connect = connect
        self._max_packet = 0
        self._mariadb = self._closed = False
        self._idle = deque[Any]()
        self._current = contextvars.ContextVar[_Block | None]("block", default=None)
        self._probe = contextvars.ContextVar[None]("probe")

    @property
    def _block(self) -> _Block | None:
        block = self._current.get()
        if block is None or block.depth == 0:
            return None
        try:
            # Raises in any other thread or task. A token serves once.
            self._probe.reset(block.token)
        except (ValueError, RuntimeError):
            raise Error("a transaction() is for one thread and task") from None
        block.token = self._probe.set(None)
        return block

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """What is done inside is committed together, or rolled back on any exception.

        Inner ones join the outer. It is for one thread and task, and raises Unknown, and a deadlock
        (1213, 1205, 1020), which is yours to repeat.
        """
        outer = self._block
        if outer:
            outer.depth += 1
            try:
                yield outer
            except BaseException:
                # Who catches it must not commit half.
                outer.failed = True
                raise
            finally:
                outer.depth -= 1
            return
        with self._connection() as conn:
            block = _Block(conn=conn, depth=1, written=set())
            block.single = block.begun = block.failed = False
            try:
                block.token = self._probe.set(None)
                self._current.set(block)
                yield block
                if self._block is not block or block.depth > 1 or block.failed:
                    raise Error("a call in this transaction() failed, or an inner one is open")
                if block.begun:
                    self._send_in(block, ("COMMIT",))
            finally:
                block.failed = True
                block.depth -= 1

    def _send(self, *packet: Row) -> list[Rows]:
        """In a block, as a part of it."""
        block = self._block
        if block:
            return self._send_in(block, *packet)
        conn = self._take()
        try:
            return self._exchange(conn, *packet)
        finally:
            self._give_back(conn)

    def _send_in(self, block: _Block, *packet: Row) -> list[Rows]:
        if block.failed:
            raise Error("this transaction() has failed or ended")
        commit = packet[-1][0] == "COMMIT"
        try:
            if not block.begun:
                packet = ("START TRANSACTION",), *packet
            elif not _is_quiet(block.conn):
                raise MySQLdb.OperationalError(CR.SERVER_GONE_ERROR, "the connection was closed")
            rows = self._exchange(block.conn, *packet)
            block.begun = not commit
            return rows
        except BaseException as error:
            # First: a signal may come. ValueError: not sent. Stale: START was done, no more.
            block.failed = True
            stale = _is_stale(error)
            block.begun |= stale
            block.failed = not (stale or isinstance(error, ValueError))
            if commit and block.written and _code(error) in BROKEN | {ER.QUERY_INTERRUPTED}:
                told = f"COMMIT was done, or not ({error.args[-1]}): read, then decide"
                id = min(block.written) if len(block.written) == 1 else None
                raise Unknown(told, id=id) from None
            raise

    def _exchange(self, conn: Any, *packet: Row) -> list[Rows]:
        """One round trip. The rows of each answer."""
        args = [_literal(conn, arg) for _, *args in packet for arg in args]
        query = ";".join([sql for sql, *_ in packet]).encode() % tuple(args)
        if self._mariadb and len(packet) > 1:
            # Galera may abort it between two statements, and run the rest.
            query = b"BEGIN NOT ATOMIC %s;END" % query
        if len(query) >= self._max_packet > 0:
            raise ValueError(f"{len(query)} bytes are over max_allowed_packet={self._max_packet}")
        try:
            conn.query(query)
            return _fetch(conn)
        except BaseException as error:
            # None: a signal leaves an unread answer.
            if _code(error) in NOT_DONE | BROKEN | {None}:
                conn.close()
            raise

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        # After a failure it is rolled back or closed.
        conn = self._take()
        try:
            yield conn
        except BaseException:
            with suppress(MySQLdb.Error):
                self._exchange(conn, ("ROLLBACK",))
                self._give_back(conn)
            raise
        self._give_back(conn)

    def _take(self) -> Any:
        if self._closed:
            raise Error("this Datastore is closed")
        while conn := self._pop():
            if _is_quiet(conn):
                return conn
            conn.close()
        conn = MySQLdb.connect(**self._connect)
        _CONNECTIONS.add(conn)
        ((self._max_packet, self._mariadb),) = self._exchange(conn, (SET_SESSION,))[0]
        return conn

    def _pop(self) -> Any:
        with suppress(IndexError):
            return self._idle.pop()

    def _give_back(self, conn: Any) -> None:
        if conn.open:
            self._idle.append(conn)
        # close() may have run.
        if self._closed:
            self.close()

    def close(self) -> None:
        """Closes the connections; those in use when their calls end."""
        self._closed = True
        while conn := self._pop():
            conn.close()


def _abandon() -> None:
    # Closing them would say goodbye for the parent.
    with open(os.devnull, "r+b") as null:
        for conn in _CONNECTIONS:
            with suppress(MySQLdb.Error, OSError):
                os.dup2(null.fileno(), conn.fileno())


_CONNECTIONS = weakref.WeakSet[Any]()
os.register_at_fork(after_in_child=_abandon)


def _is_quiet(conn: Any) -> bool:
    # A lost one is readable.
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    return not poll.poll(0)


def _literal(conn: Any, value: Any) -> Any:
    # A faster conn.literal.
    if type(value) is str:
        return conn.string_literal(value.encode())
    if isinstance(value, (list, tuple)):
        return b"(%s)" % b",".join([_literal(conn, item) for item in value])
    return conn.literal(value)


def _fetch(conn: Any) -> list[Rows]:
    rows: list[Rows] = []
    more = 0
    while more != -1:
        result = conn.store_result()
        if result is not None:
            rows.append(result.fetch_row(0))
        more = conn.next_result()
        # A truncated result raises nothing.
        if conn.errno():
            raise MySQLdb.OperationalError(conn.errno(), conn.error())
    return rows


def _code(error: Any) -> Any:
    code = error.args[0] if isinstance(error, MySQLdb.Error) and error.args else None
    # Group Replication calls some deadlocks 1180.
    deadlock = code == ER.ERROR_DURING_COMMIT and "error 149" in str(error)
    return ER.LOCK_DEADLOCK if deadlock else code


def _is_stale(error: Any) -> bool:
    # The catalogue's column has another name by now.
    return _code(error) == ER.BAD_FIELD_ERROR and "epoch_" in str(error)


# ---- Index. Knows its table, its rows and its conditions; not who sends them.

# {declared type: (class, column, what it can hold)}
COLUMNS: dict[str, tuple[Any, str, Callable[[Any], bool]]] = {
    "str": (str, "VARCHAR(191)", lambda v: len(v) <= 191),
    "bytes": (bytes, "VARBINARY(191)", lambda v: len(v) <= 191),
    "int": (int, "BIGINT", lambda v: -(1 << 63) <= v < 1 << 63),
    "Decimal": (
        Decimal,
        "DECIMAL(65,30)",
        lambda v: v.is_finite() and v.as_tuple()[2] >= -30 and v.adjusted() < 35,
    ),
    "float": (float, "DOUBLE", math.isfinite),
    "bool": (bool, "TINYINT(1)", lambda v: True),
    "UUID": (uuid.UUID, "BINARY(16)", lambda v: True),
    "date": (dt.date, "DATE", lambda v: True),
    # UTC lacks parts of the years 1 and 9999.
    "datetime": (dt.datetime, "DATETIME(6)", lambda v: not v.tzinfo or 1 < v.year < 9999),
}


@functools.cache
def _column(declared: str) -> tuple[Any, str, Callable[[Any], bool]]:
    sized = re.fullmatch(r"(VARCHAR|VARBINARY)\(([1-9]\d*)\)", declared)
    if sized:
        size = int(sized[2])
        return str if sized[1] == "VARCHAR" else bytes, declared, lambda v: len(v) <= size
    if declared not in COLUMNS:
        raise TypeError(f"{declared} is none of {[*COLUMNS]}, VARCHAR(n), VARBINARY(n)")
    return COLUMNS[declared]


class Index:
    """A table of the entities that have all of some properties, and none that is None.

    table: its name. properties: a name, several names, or {name: type}; a name alone is a str.
    Types: str, int, float, bool, bytes, Decimal, date, datetime (kept in UTC), UUID, "VARCHAR(n)",
    "VARBINARY(n)". unique: no two entities may have the same values.
    """

    def __init__(self, table: str, properties: Any, *, unique: bool = False) -> None:
        names = [properties] if isinstance(properties, str) else properties
        declared = {**names} if isinstance(names, Mapping) else dict.fromkeys(names, str)
        if not declared or "entity_id" in declared:
            raise ValueError(f"index {table} takes properties, not entity_id")
        self.table = table
        self.types = {name: str(getattr(cls, "__name__", cls)) for name, cls in declared.items()}
        self.unique = unique
        for kind in self.types.values():
            _column(kind)
        self._named = {name: f"i.{_quote(name)}" for name in [*declared, "entity_id"]}
        self._parts = {"table": _quote(table), "names": ", ".join(map(_quote, declared))}
        self._parts["selected"] = ", ".join(self._named.values())
        self._delete, self._insert = self.sql(DELETE_ROWS), self.sql(INSERT_ROWS)

    def __repr__(self) -> str:
        return f"Index({self.table!r}, {self.types!r}, unique={self.unique})"

    def get_all(self, datastore: Datastore, /, **match: Any) -> list[Entity]:
        """The entities that match, in the index's order; [] if there is none.

        A value is an equality, slice(low, high) a half-open range (None: no end), a set or a list
        "one of". Raises TypeError, ValueError, NotPopulated, Corrupt.
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

        reverse: the last first. limit: the most entities. after: the entity to go on behind.
        """
        where, args = self._where(match)
        start: Row = ()
        if after is not None:
            row = self.row(after)
            if row is None:
                raise TypeError(f"{self}: after= takes an entity that is in it")
            start = *row, _check_id(after.get("id"))
        sign, direction = ("<", " DESC") if reverse else (">", "")
        counts = {name: len(_one_of(asked)) for name, asked in match.items()}
        # Left out, else a server may sort: a column of one value; entity_id if unique.
        named = self.types if self.unique else self._named
        order = [self._named[name] + direction for name in named if counts.get(name) != 1]
        # Each page sends all of a long "one of".
        page = PAGE + sum(counts.values())
        size = page if limit is None else min(limit, page)

        def pages(position: Row) -> Iterator[Entity]:
            while True:
                behind, further = _behind(self._named.values(), position, sign)
                parts = {"where": f"{where} AND {behind}", "order": ", ".join(order) or "NULL"}
                rows = datastore._ask(self, SELECT_MATCH, [*args, *further, size], **parts)
                for row in rows:
                    entity, position = datastore._entity(row[:4]), row[4:]
                    plain = *map(entity.get, self.types), row[1]
                    # A shard's row may be older. Plainly equal is faster.
                    if position == plain or self.row(entity) == position[:-1]:
                        yield entity
                if len(rows) < size:
                    return

        return itertools.islice(pages(start), limit)

    def count(self, datastore: Datastore, /, **match: Any) -> int:
        """How many entities match. Raises as get_all does."""
        where, args = self._where(match)
        return int(datastore._ask(self, COUNT_MATCH, args, where=where)[0][0])

    def populate(self, datastore: Datastore) -> int:
        """Makes the rows agree with the entities; others may write. Returns how many did not.

        Raises TypeError, ValueError, Duplicate, Corrupt, NotPopulated.
        """
        return datastore._populate(self)

    def row(self, entity: Mapping[Any, Any]) -> Row | None:
        """The entity's values, None if it is not in the index."""
        values = [entity.get(name) for name in self.types]
        if None in values:
            return None
        return tuple(map(self.value, self.types, values))

    def value(self, name: str, value: Any) -> Any:
        cls, _, holds = _column(self.types[name])
        if type(value) is cls and holds(value):
            if cls is dt.datetime and value.tzinfo:
                return value.astimezone(dt.timezone.utc).replace(tzinfo=None)
            return value.bytes if cls is uuid.UUID else value
        error = ValueError if type(value) is cls else TypeError
        told = f"is declared {self.types[name]}, and cannot hold {reprlib.repr(value)}: put another"
        raise error(f"index {self.table}: property {name} {told} value, or declare another type")

    def replace_rows(self, rows: Any, old: list[str]) -> Rows:
        """SQL to delete the rows of `old`, and insert {id: row}."""
        delete = [(self._delete, old)] if old else []
        # In key order: fewer deadlocks.
        values = sorted([(*row, id) for id, row in rows.items()])
        return [*delete, _insert(self._insert, values)] if values else delete

    def sql(self, sql: str, **parts: str) -> str:
        return sql.format(**self._parts, **parts)

    def _where(self, match: Mapping[str, Any]) -> tuple[str, list[Any]]:
        terms = ["TRUE"]
        args: list[Any] = []
        for name, asked in match.items():
            if name not in self.types:
                raise TypeError(f"{self} has no property {name!r}")
            column = self._named[name]
            if isinstance(asked, slice):
                for sign, end in (">=", asked.start), ("<", asked.stop):
                    if end is not None:
                        terms.append(f"{column} {sign} %s")
                        args.append(self.value(name, end))
            else:
                terms.append(f"{column} IN %s")
                # Nothing is IN (NULL).
                args.append([self.value(name, value) for value in _one_of(asked)] or [None])
        return " AND ".join(terms), args


def _one_of(asked: Any) -> Any:
    if isinstance(asked, slice):
        return []
    return asked if isinstance(asked, (set, frozenset, list)) else [asked]


def _behind(columns: Iterable[str], values: Row, sign: str) -> tuple[str, list[Any]]:
    """(columns) > (values), in a form for which all servers use the key."""
    sql = "FALSE" if values else "TRUE"
    args: list[Any] = []
    for column, value in reversed([*zip(columns, values)]):
        sql = f"({column} {sign} %s OR ({column} = %s AND {sql}))"
        args = [value, value, *args]
    return sql, args


# ---- The catalogue: which indexes there are. Knows connections and Index; nothing of bodies.

# It has a column that is never filled. Its name is the catalogue's epoch, and the row of that id
# lists the indexes. A change writes the row of a new epoch, and renames the column:
#
#   writer    START TRANSACTION; SELECT epoch_a …; (writes what the indexes of a need); COMMIT
#   changer   INSERT row b; RENAME COLUMN epoch_a TO epoch_b (waits for that COMMIT)
#   writer    START TRANSACTION; SELECT epoch_a …: error 1054. It reads row b, and begins again.
#
# The SELECT, alone or in the first statement, reads nothing, and holds a metadata lock, which the
# renaming waits for. Its ids are those of the entities, and choose the shards that are written to.


class _Catalogue(NamedTuple):
    """The indexes as of one epoch. An attempt of a call works from one."""

    epoch: str
    check: str
    # {table: {"types", "unique", "populated", "made"}}
    entries: dict[str, Any]
    indexes: dict[str, Index]
    # {id: content}
    rows: dict[str, str]

    def entry(self, index: Index, made: str = "") -> dict[str, Any]:
        """What is said of it, {} if nothing; NotPopulated if it is not this `made`."""
        entry: dict[str, Any] = self.entries.get(index.table, {})
        if made and entry.get("made") != made:
            raise NotPopulated(f"{index} was removed, or never added")
        if entry and repr(self.indexes[index.table]) != repr(index):
            raise ValueError(f"{self.indexes[index.table]} has this name: remove it first")
        return entry


class _Definitions(_Client):
    _catalogue: _Catalogue

    def _repeat(self, attempt: Callable[[], T]) -> T:
        """attempt(), again while none of it is committed; in a block only if stale."""
        end = time.monotonic() + RETRY_SECONDS
        pause = 0.001
        while True:
            try:
                return attempt()
            except MySQLdb.Error as error:
                stale = _is_stale(error)
                again = _code(error) in ROLLED_BACK | NOT_DONE | BROKEN and not self._block
                if not (stale or again) or time.monotonic() > end:
                    raise
            time.sleep(random.uniform(0, pause))
            pause = min(1, pause * 2)
            if stale:
                self._renew()

    @contextmanager
    def _defining(self) -> Iterator[Any]:
        """A connection for DDL, which one program at a time has, and the catalogue."""
        if self._block:
            raise Error("no index can change inside a transaction()")
        conn = self._take()
        try:
            if not self._exchange(conn, (LOCK_DEFINITIONS,))[0][0][0]:
                raise Error("another program changes the indexes")
            self._finish(conn)
            yield conn, self._renew()
        finally:
            if conn.open:
                conn.close()

    def _finish(self, conn: Any) -> None:
        rows = self._renew().rows
        for id in rows:
            old = json.loads(rows[id]).get("old")
            try:
                # Its program may have died before this. 1054: no. 1142: not allowed here.
                if old in rows:
                    self._rename(conn, old, id)
            except MySQLdb.Error as error:
                if _code(error) not in {1054, 1142}:
                    raise

    def _rename(self, conn: Any, old: str, new: str) -> None:
        self._define(conn, RENAME_EPOCH.format(old=old, new=new))
        if self._mariadb:
            # Galera may replay earlier writes behind it. This waits for them.
            self._define(conn, "ANALYZE TABLE entities")

    def _define(self, conn: Any, sql: str) -> None:
        try:
            self._exchange(conn, (sql,))
        except MySQLdb.Error as error:
            if _code(error) in ROLLED_BACK:
                # Let writers pass.
                time.sleep(ALTER_SECONDS)
            raise type(error)(_code(error), f"{error.args[-1]}: {sql}") from None

    def _open(self) -> None:
        with self._connection() as conn:
            rest = "PRIMARY KEY (added_id), UNIQUE KEY (id), KEY (updated)"
            self._create(conn, "entities", ENTITIES, rest)
            rest = "epoch_first TINYINT, PRIMARY KEY (id)"
            self._create(conn, "entities_catalogue", CATALOGUE, rest)
        self._renew()

    def _add(self, index: Index) -> None:
        with self._defining() as (conn, old):
            if old.entry(index):
                return
            columns = {name: f"{_column(kind)[1]} NOT NULL" for name, kind in index.types.items()}
            # _create compares up to UNI. SHOW says PRI if the primary key has entity_id, too.
            key = "UNIQUE NOT NULL" if index.unique else "NOT NULL UNIQUE"
            columns["entity_id"] = f"VARCHAR(36) {key}"
            key = index.sql("{names}" if index.unique else "{names}, entity_id")
            self._create(conn, index.table, columns, f"PRIMARY KEY ({key})")
            # A sharded server not told of the table refuses this.
            self._send((index.sql(DELETE_ROWS), [""]))
            entry = {"types": index.types, "unique": index.unique, "made": uuid.uuid4().hex}
            self._change(conn, old, index.table, entry)

    def _publish(self, index: Index, made: str) -> None:
        with self._defining() as (conn, old):
            entry = {**old.entry(index, made), "populated": True}
            self._change(conn, old, index.table, entry)

    def _remove(self, index: Index) -> None:
        with self._defining() as (conn, old):
            self._change(conn, old, index.table, None)
            self._define(conn, index.sql(DROP_TABLE))

    def _renew(self) -> _Catalogue:
        # Another thread may put an older one in its place.
        catalogue = self._catalogue = self._repeat(self._read)
        return catalogue

    def _read(self) -> _Catalogue:
        show = SHOW_COLUMNS.format(table="entities_catalogue")
        columns, found = self._send((show,), (SELECT_CATALOGUE,))
        epoch = columns[2][0].removeprefix("epoch_")
        # All but the first have a row. 1213: read again.
        rows = {"first": '{"indexes": {}}', **dict(found)}
        if epoch not in rows:
            lost = f"entities_catalogue has lost row {epoch!r}"
            raise MySQLdb.OperationalError(ER.LOCK_DEADLOCK, lost)
        entries = json.loads(rows[epoch])["indexes"]
        indexes = {
            table: Index(table, entry["types"], unique=entry["unique"])
            for table, entry in entries.items()
        }
        return _Catalogue(epoch, CHECK.format(epoch=epoch), entries, indexes, rows)

    def _change(self, conn: Any, old: _Catalogue, table: str, entry: Any) -> None:
        """Publishes the entry, None: it is gone. Waits for those who write by the old one."""
        entries = {**old.entries, table: entry}
        if entry is None:
            del entries[table]
        if entries == old.entries:
            return
        epoch = uuid.uuid4().hex
        self._send((INSERT_CATALOGUE, epoch, json.dumps({"indexes": entries, "old": old.epoch})))
        # If it fails, the next change finishes it.
        self._rename(conn, old.epoch, epoch)
        self._send((DELETE_CATALOGUE, [*old.rows]))
        self._renew()

    def _create(self, conn: Any, table: str, columns: Mapping[str, str], rest: str) -> None:
        collation = "utf8mb4_nopad_bin" if self._mariadb else "utf8mb4_0900_bin"
        try:
            (rows,) = self._exchange(conn, (SHOW_COLUMNS.format(table=_quote(table)),))
        except MySQLdb.ProgrammingError as error:
            if _code(error) != ER.NO_SUCH_TABLE:
                raise
            defined = ", ".join([f"{_quote(name)} {columns[name]}" for name in columns])
            parts = dict(table=_quote(table), columns=defined, rest=rest, collation=collation)
            return self._define(conn, CREATE_TABLE.format(**parts))
        found = {row[0]: (f"{row[1]} {row[4]} ".lower(), row[2]) for row in rows}
        for name, definition in columns.items():
            kind, compared = found.get(name, ("missing", None))
            wanted = re.findall(r"\S+(?: uni)?", definition.lower())[0]
            if not kind.startswith((f"{wanted} ", f"{wanted}(")):
                raise Error(f"table {table} stands, but {name} is {kind}: rename the table")
            if compared not in (None, collation):
                mend = f"{_quote(table)} CONVERT TO CHARACTER SET utf8mb4 COLLATE {collation}"
                raise Error(f"{name} compares by {compared}, not exactly: ALTER TABLE {mend}")


# ---- Datastore. How reading and writing are put together, then the verbs.


class _Store(_Definitions):
    _allowed: Any
    _max_size: int

    def _query(self, *statement: Any) -> Rows:
        return self._repeat(lambda: self._send(statement)[0])

    def _ask(self, index: Index, sql: str, args: Sequence[Any], **parts: str) -> Rows:
        def attempt() -> Rows:
            catalogue = self._catalogue
            same = repr(catalogue.indexes.get(index.table)) == repr(index)
            if not (same and "populated" in catalogue.entries[index.table]):
                catalogue = self._renew()
                if not catalogue.entry(index).get("populated"):
                    raise NotPopulated(f"{index} is missing or incomplete: add_index makes it")
            return self._send((index.sql(sql, check=catalogue.check, **parts), [""], *args))[0]

        try:
            return self._repeat(attempt)
        except MySQLdb.Error as error:
            # A table or column that is gone is an error before the check.
            if self._block or _code(error) not in {1054, 1146}:
                raise
        self._renew()
        return self._repeat(attempt)

    def _entity(self, row: Sequence[Any], send: Any = None) -> Entity:
        """send: reads a body that its page left out."""
        version, id, updated, body = row
        if body is None and send:
            ((*_, body),) = send((SELECT_ENTITIES, [id]))[0]
        try:
            entity = Entity(decode(body or b"", self._allowed, self._max_size))
        except Corrupt as error:
            raise type(error)(f"entity {id!r}: {error}", id=id) from None
        entity.setdefault("id", id)
        entity.version = version
        entity.updated = updated
        return entity

    def _prepare(self, entity: Any) -> tuple[str, Any, bytes]:
        if not isinstance(entity, dict):
            raise TypeError(f"an entity is a dict, not {reprlib.repr(entity)}")
        id = _check_id(entity["id"]) if "id" in entity else _new_id()
        whole = {**entity, "id": id}
        return id, whole, encode(whole, self._allowed, self._max_size)

    def _transact(self, attempt: Callable[[_Catalogue], T]) -> T:
        """attempt(catalogue) in the open transaction, or in one of its own."""

        def begin() -> T:
            block = self._block
            if block:
                if block.single and block.depth == 1:
                    raise Error("a signal handler or a class can make no call amid another")
                # If update() called it, that commits.
                block.single = False
                return attempt(self._catalogue)
            try:
                with self.transaction() as block:
                    block.single = True
                    return attempt(self._catalogue)
            finally:
                # A signal may leave the block set.
                self._current.set(None)

        return self._repeat(begin)

    def _lock(self, catalogue: _Catalogue, ids: list[str]) -> Rows:
        return self._send((LOCK_ENTITIES.format(check=catalogue.check), ids, ids))[0]

    def _select(self, ids: list[str]) -> Rows:
        if not self._block:
            return self._query(SELECT_ENTITIES, ids)
        return self._transact(lambda catalogue: self._lock(catalogue, ids))

    def _lock_entity(self, catalogue: _Catalogue, id: str, expect: int | None = None) -> Any:
        """Its row, () if there is none."""
        if expect is not None and (type(expect) is not int or expect < 0):
            raise TypeError(f"expect is a version, or 0 for none, not {expect!r}")
        (row,) = self._lock(catalogue, [id]) or [()]
        found = row[0] if row else 0
        if expect is not None and found != expect:
            told = f"entity {id!r} has version {found} (0: none), not {expect}; get it again"
            raise Conflict(told, id=id, expected=expect, found=found)
        return row

    def _write(self, catalogue: _Catalogue, pairs: Any, old: list[str], *after: Row) -> list[Rows]:
        """Deletes the ids `old`, and inserts {id: (entity, body)}: new versions."""
        ids = [*{*old, *pairs}]
        # On MariaDB: no answer.
        packet: list[Row] = [(f"/*M! DO EXISTS */ {catalogue.check}", ids)]
        if old:
            packet = [(DELETE_ENTITIES.format(check=catalogue.check), old, ids)]
        if pairs:
            packet.append(_insert(INSERT_ENTITIES, [(id, pairs[id][1]) for id in pairs]))
        rows = {}
        for index in catalogue.indexes.values():
            rows[index] = {id: row for id in pairs if (row := index.row(pairs[id][0]))}
            packet += index.replace_rows(rows[index], old)
        return self._save([*packet, *after], ids, rows)

    def _save(self, packet: Rows, ids: list[str], rows: dict[Index, Any]) -> list[Rows]:
        """Sends what writes, and COMMIT if the transaction is the call's own."""
        block: Any = self._block
        block.written.update(ids)
        if block.single:
            packet = [*packet, ("COMMIT",)]
        try:
            return self._send_in(block, *packet)
        except MySQLdb.IntegrityError as error:
            if _code(error) == ER.DUP_ENTRY:
                self._explain(block, ids, rows)
            raise

    def _explain(self, block: _Block, ids: list[str], rows: dict[Index, Any]) -> Any:
        """Raises what error 1062 means."""
        for index, mine in rows.items():
            if mine and index.unique:
                owner = {row: id for id, row in reversed(mine.items())}
                twins = [(owner[row],) for id, row in mine.items() if owner[row] != id]
                select = index.sql(SELECT_OWNERS), [*owner], [*ids, *mine]
                for (id,) in twins or self._exchange(block.conn, select)[0]:
                    told = f"{index}: entity {id!r} already has these values"
                    raise Duplicate(told, index=index, id=id) from None
        raise MySQLdb.OperationalError(ER.LOCK_DEADLOCK, "an id was inserted twice") from None

    def _populate(self, index: Index) -> int:
        if self._block:
            raise Error("no index can be populated in a transaction()")
        made = self._renew().entry(index).get("made", "none")
        changed = self._repair(index, made)
        self._repeat(lambda: self._publish(index, made))
        # On Galera another node may have written a locked entity: its mended row is wrong.
        if changed:
            changed += self._repair(index, made)
        return changed

    def _repair(self, index: Index, made: str) -> int:
        """Makes the rows right, a page at a time. Returns how many were not."""
        count = read = 0
        cursor: Any
        # Rows without an entity could have the unique values of one.
        for sql, cursor in ((LOCK_ROW_PAGE, ""), (LOCK_ENTITY_PAGE, 0)):
            while cursor is not None:
                query = index.sql(sql), cursor, PAGE
                page, wrong = self._transact(functools.partial(self._mend, index, made, query))
                # A later put writes its own row.
                cursor = page[-1][0] if len(page) == PAGE else None
                count += wrong
                read += len(page)
                _log.debug("%d read", read)
        return count

    def _mend(self, index: Index, made: str, query: Row, catalogue: _Catalogue) -> tuple[Rows, int]:
        catalogue.entry(index, made)
        page = self._send((catalogue.check, [""]), query)[-1]
        old = []
        rows = {}
        for _, id, updated, body, *values, entity_id in page:
            try:
                wanted = updated and index.row(self._entity((0, id, updated, body), self._send))
            except (TypeError, ValueError) as error:
                raise type(error)(f"entity {id!r}: {error}") from None
            if wanted != (tuple(values) if entity_id else None):
                old.append(id)
                if wanted:
                    rows[id] = wanted
        if old:
            # No ids: repeated, not Unknown.
            self._save(index.replace_rows(rows, old), [], {index: rows})
        return page, len(old)


class Datastore(_Store):
    """Entities in a database, for all threads, tasks and forks of a program.

    host, user, password, database, `connect`: as for MySQLdb.connect. indexes: to be added.
    classes: what entities may hold, {"old.module.Name": class} for one that moved, or ANY.
    max_size: the most bytes of a body when decompressed. Raises Error if a table cannot serve.
    """

    def __init__(
        self,
        host: str | None = None,
        user: str | None = None,
        password: str | None = None,
        database: str | None = None,
        indexes: Iterable[Index] = (),
        *,
        classes: Any = (),
        max_size: int = MAX_SIZE,
        **connect: Any,
    ) -> None:
        connect.update(host=host, user=user, password=password, database=database, **CONNECT)
        super().__init__({name: value for name, value in connect.items() if value is not None})
        self._allowed = _allow(classes)
        self._max_size = max_size
        self._open()
        for index in indexes:
            if not self._catalogue.entry(index).get("populated"):
                self.add_index(index)

    def __enter__(self) -> Datastore:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Datastore cannot be pickled: open one in each process")

    def put(self, entity: dict[Any, Any], *, expect: int | None = None) -> str:
        """Stores the dictionary under its "id", or a new one, set in it. Returns the id.

        expect: the version to be replaced (0: none), else Conflict. Raises TypeError, ValueError,
        Duplicate, Untrusted, Unknown.
        """
        id, whole, body = self._prepare(entity)

        def attempt(catalogue: _Catalogue) -> None:
            stands = "id" in entity if expect is None else self._lock_entity(catalogue, id, expect)
            self._write(catalogue, {id: (whole, body)}, [id] if stands else [])

        self._transact(attempt)
        entity["id"] = id
        return id

    def put_many(self, entities: Iterable[dict[Any, Any]], *, batch: int = BATCH) -> int:
        """Stores any number of dictionaries, in transactions of a batch. Returns how many.

        batch: the most entities of one. Raises as put; the batches before it stay.
        """
        count = size = 0
        pairs: dict[str, Any] = {}
        old: list[str] = []

        def write(catalogue: _Catalogue) -> None:
            self._write(catalogue, pairs, old)

        for entity in entities:
            id, whole, body = self._prepare(entity)
            # SQL may double a body; rows add to it.
            large = size + len(body) > min(BATCH_BYTES, self._max_packet // 8)
            if pairs and (large or len(pairs) >= batch):
                self._transact(write)
                size, pairs, old = 0, {}, []
            if "id" in entity:
                old.append(id)
            # The last of an id is the newest.
            pairs.pop(id, None)
            pairs[id] = whole, body
            entity["id"] = id
            size += len(body)
            count += 1
        if pairs:
            self._transact(write)
        return count

    def get(self, id: str) -> Entity | None:
        """The entity, locked inside a transaction(), or None. Raises Corrupt."""
        rows = self._select([_check_id(id)])
        return self._entity(rows[0]) if rows else None

    def get_many(self, ids: Iterable[str]) -> dict[str, Entity]:
        """{id: entity} of those that there are. Else as get."""
        asked = [_check_id(id) for id in ids]
        found = {}
        for start in range(0, len(asked), PAGE):
            rows = self._select(asked[start : start + PAGE])
            found.update({row[1]: self._entity(row) for row in rows})
        return {id: found[id] for id in asked if id in found}

    def delete(self, id: str, *, expect: int | None = None) -> bool:
        """Deletes the entity. False if there was none. expect: as for put. Raises Unknown."""
        _check_id(id)

        def attempt(catalogue: _Catalogue) -> bool:
            row = self._lock_entity(catalogue, id, expect)
            # If none, any rows are those of a later put.
            if row:
                self._write(catalogue, {}, [id])
            return bool(row)

        return self._transact(attempt)

    def update(self, id: str, change: Callable[[Entity], object], default: Any = None) -> Entity:
        """Lets `change` alter the entity in place, and stores it, atomically. Returns it.

        `change` may be called again. default: what it gets if there is none, else a KeyError.
        """
        _check_id(id)

        def attempt(catalogue: _Catalogue) -> Entity:
            row = self._lock_entity(catalogue, id)
            if not row and default is None:
                raise KeyError(id)
            entity = self._entity(row) if row else Entity(copy.deepcopy({**default, "id": id}))
            # If change fails, what it put must not be committed.
            with self.transaction():
                if change(entity) is not None or entity.get("id") != id:
                    raise TypeError("change alters it in place, not its id, and returns None")
                pair = self._prepare(entity)[1:]
            old = [id] if row else []
            rows = self._write(catalogue, {id: pair}, old, (SELECT_VERSION, id))[-1]
            entity.version, entity.updated = rows[0]
            return entity

        return self._transact(attempt)

    def scan(self) -> Iterator[Entity]:
        """Every entity as of one moment, oldest put first. Raises Corrupt."""
        if self._block:
            raise Error("a scan inside a transaction() would not see its writes")
        with self._connection() as conn:
            send = functools.partial(self._exchange, conn)
            send((BEGIN_SNAPSHOT,))
            rows: Rows = [(0,)]
            read = 0
            while rows:
                (rows,) = send((SELECT_PAGE, rows[-1][0], PAGE))
                for row in rows:
                    yield self._entity(row, send)
                read += len(rows)
                _log.debug("%d read", read)
            send(("COMMIT",))

    __iter__ = scan

    def __len__(self) -> int:
        return int(self._query(COUNT_ENTITIES)[0][0])

    def __bool__(self) -> bool:
        return True

    def __contains__(self, id: str) -> bool:
        return bool(self._query(SELECT_VERSION, _check_id(id)))

    def schema(self) -> Schema:
        """The types of dictionary."""
        return Schema(self.scan())

    @property
    def indexes(self) -> list[Index]:
        """Those of the database."""
        return [*self._renew().indexes.values()]

    def add_index(self, index: Index, *, populate: bool = True) -> Index:
        """Creates the index, and populates it; others may write. Returns it.

        Raises ValueError if another has this name, and as populate: then it is removed again.
        """
        self._repeat(lambda: self._add(index))
        if populate and not self._catalogue.entry(index).get("populated"):
            try:
                index.populate(self)
            except (TypeError, ValueError, Duplicate, Corrupt):
                # Else writers would be refused what is stored.
                self.remove_index(index)
                raise
        return index

    def remove_index(self, index: Index) -> None:
        """Drops the index, if any."""
        if index.table in self._renew().entries:
            self._repeat(lambda: self._remove(index))


# ---- schema, and the command line. Know Datastore and Index; nothing private of them.


class Schema(list[dict[str, Any]]):
    """The types of dictionary, the most frequent first.

    Each is {"entities": how many, "share": of all, "fields": {key: type}, "example": an id}.
    """

    def __init__(self, entities: Iterable[Mapping[Any, Any]]) -> None:
        examples: dict[Any, str] = {}
        counts = Counter[Any]()
        for entity in entities:
            fields = tuple(sorted([(str(key), type(entity[key]).__name__) for key in entity]))
            counts[fields] += 1
            examples.setdefault(fields, entity["id"])
        total = counts.total()
        for key, n in counts.most_common():
            self.append(dict(entities=n, share=n / total, fields=dict(key), example=examples[key]))

    def __str__(self) -> str:
        lines = [f"{len(self):,} types of dictionary"]
        for shape in self[:10]:
            lines.append("{entities:,} ({share:.1%}), such as {example!r}".format(**shape))
            lines.append("  {fields}".format(**shape))
        return "\n".join([line[:79] for line in lines])


def _json(thing: Any) -> str:
    def default(value: Any) -> Any:
        return {type(value).__name__: str(value)}

    try:
        return json.dumps(thing, default=default, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(default(thing))


def _options() -> dict[str, Any]:
    epilog = "A MATCH is property=value (twice: one of), 'property>=low' or 'property<high'."
    parser = argparse.ArgumentParser("slim", conflict_handler="resolve", epilog=epilog)
    parser.set_defaults(read_default_group="client")
    add = functools.partial(parser.add_argument, default=argparse.SUPPRESS)
    add("-h", "--host")
    add("-P", "--port", type=int)
    add("-S", "--socket", dest="unix_socket")
    add("-u", "--user")
    add("-p", "--password")
    add("--defaults-file", dest="read_default_file")
    add("--json", action="store_true")
    add("--all", action="store_true")
    add("database")
    add("verb", choices=["schema", "indexes", "get", "find", "populate"])
    add("what", nargs="?", default="", help="an ID, or an INDEX")
    add("match", nargs="*", default=[])
    return vars(parser.parse_intermixed_args())


def _match(index: Index, words: Iterable[str]) -> dict[str, Any]:
    match: dict[str, Any] = {}
    for word in words:
        try:
            name, sign, text = re.split("(>=|<(?!=)|=)", word, maxsplit=1)
            cls = _column(index.types[name])[0]
            parse = {bool: json.loads, bytes: str.encode}.get(cls, cls)
            value = getattr(cls, "fromisoformat", parse)(text)
            if sign == "=":
                match.setdefault(name, []).append(value)
            else:
                ends = match.get(name, slice(None))
                match[name] = slice(ends.start, value) if sign == "<" else slice(value, ends.stop)
        except Exception:
            raise ValueError(f"{word!r} is no condition for {index}") from None
    return match


def _answer(store: Datastore, whole: bool, verb: str, what: str, words: Any) -> Iterable[Any]:
    if os.isatty(2):
        logging.StreamHandler.terminator = "\r"
        logging.basicConfig(level="DEBUG", format="%(message)s")
    indexes = {index.table: index for index in store.indexes}
    if verb == "schema":
        return store.schema() if whole else [store.schema()]
    if verb == "indexes":
        return indexes.values()
    if what not in (store if verb == "get" else indexes):
        raise ValueError(f"there is no {what!r}; the indexes are {[*indexes]}")
    if verb == "get":
        return [store.get(what)]
    index = indexes[what]
    if verb == "find":
        return index.find(store, _match(index, words))
    return [f"{index.populate(store):,} rows were wrong"]


def main() -> None:
    """The command line. Exits with 1 after an error, 2 if called wrongly."""
    options = _options()
    as_json, whole = options.pop("json", False), options.pop("all", False)
    asked = [options.pop(name) for name in ("verb", "what", "match")]
    try:
        # A Datastore would make the tables.
        with MySQLdb.connect(**options) as conn:
            conn.query("SHOW COLUMNS FROM entities_catalogue")
        with Datastore(**options) as store:
            for thing in _answer(store, as_json or whole, *asked):
                print(_json(thing) if as_json else thing, flush=True)
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)
    except Exception as error:
        text = str(error.args[-1] if isinstance(error, MySQLdb.Error) else error)
        sys.exit("slim: " + "".join([c if c.isprintable() else repr(c)[1:-1] for c in text]))


if __name__ == "__main__":
    main()
