"""The independent check: what SQL and slim.decode say of a database, with nothing of slim's own `populate`."""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import MySQLdb

import slim

T = TypeVar("T")
INDEX_COLUMNS = """SELECT c.table_name, c.column_name FROM information_schema.columns AS c
 JOIN information_schema.tables AS t ON t.table_schema = c.table_schema AND t.table_name = c.table_name
 WHERE c.table_schema = DATABASE() AND t.table_comment IN ('slim index', 'slim unique index')
 ORDER BY c.table_name, c.ordinal_position"""
WAIT_SECONDS = 20

Query = Callable[..., "list[tuple[Any, ...]]"]


@contextlib.contextmanager
def queries(connect: dict[str, Any]) -> Iterator[Query]:
    """query("SELECT …", args) gives the rows, on a connection of its own."""
    connection = MySQLdb.connect(**connect, autocommit=True, charset="utf8mb4")

    def query(statement: str, args: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, args)
            return list(cursor.fetchall())

    with contextlib.closing(connection):
        yield query


def wrong(connect: dict[str, Any]) -> list[str]:
    """What is wrong in a database that nobody writes to now; [] is the right answer.

    Every body must decode to a dictionary with its row's id, every row of every index must be what its entity says,
    with none missing, and where history is kept its newest version must be the one that stands.
    """
    with queries(connect) as query:
        bodies = {
            id: (version, body)
            for version, id, body in query("SELECT added_id, id, body FROM entities")
        }
        entities = {id: slim.decode(body) for id, (_, body) in bodies.items()}
        found = [
            f"entity {id!r} calls itself {entity.get('id')!r}"
            for id, entity in entities.items()
            if entity.get("id") != id
        ]
        columns = collections.defaultdict(list)
        for table, column in query(INDEX_COLUMNS):
            columns[table].append(column)
        for table, names in columns.items():
            found += _differences(table, entities, names[:-1], query(f"SELECT * FROM `{table}`"))
        if query("SHOW TABLES LIKE 'entities_history'"):
            newest = {
                id: (version, body)
                for id, version, body in query(
                    "SELECT id, added_id, body FROM entities_history ORDER BY id, number"
                )
            }
            found += [
                f"history's newest of {id!r} is not the one that stands"
                for id in bodies
                if newest.get(id) != bodies[id]
            ]
    return found


def _differences(
    table: str, entities: dict[str, Any], names: list[str], rows: list[tuple[Any, ...]]
) -> list[str]:
    wanted = collections.Counter(
        (*(_as_sql(entity[name]) for name in names), id)
        for id, entity in entities.items()
        if all(entity.get(name) is not None for name in names)
    )
    stored = collections.Counter(rows)
    return [
        *(f"{table}: {row!r} is missing" for row in wanted - stored),
        *(
            f"{table}: {row!r} is {'stale' if row[-1] in entities else 'an orphan'}"
            for row in stored - wanted
        ),
    ]


def _as_sql(value: Any) -> Any:
    """What the driver gives for the value."""
    if isinstance(value, dt.datetime) and value.tzinfo:
        return value.astimezone(dt.timezone.utc).replace(tzinfo=None)
    return value.bytes if isinstance(value, uuid.UUID) else value


def sessions(query: Query) -> set[int]:
    """The connections to the database, but for this one."""
    ((version,),) = query("SELECT VERSION()")
    schema = (
        "information" if "MariaDB" in version else "performance"
    )  # MySQL's other one fails on a body in a statement
    others = f"SELECT id FROM {schema}_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
    return {int(id) for (id,) in query(others)}


def in_threads(*calls: Callable[[], T]) -> list[T]:
    """What the calls return, all made at once; raises what one of them raised."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def until(holds: Callable[[], Any]) -> None:
    """Returns as soon as it holds; an AssertionError after 20 seconds."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)
