"""The independent check: what SQL and pickle say of a database, with nothing of slim's own `populate`.

And what many tests do: ask in SQL, wait for something, run calls at once, fork, or run a program.
"""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import MySQLdb

T = TypeVar("T")
WAIT_SECONDS = 20
# What a block raises that met another one, or whose connection was lost: begin it again.
TRY_AGAIN = {1205, 1213, 1020, 3101, 2006, 2013}

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
        # It says the same whatever the server's defaults are.
        query(
            "SET autocommit = 1, time_zone = '+00:00', sql_safe_updates = 0, sql_mode = '',"
            " sql_select_limit = 9223372036854775807, completion_type = 0"
        )
        query("SET SESSION TRANSACTION READ WRITE")
        query("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        yield query


# ---- The audit


def wrong(connect: dict[str, Any]) -> list[str]:
    """What is wrong in a database that nobody writes to now; [] is the right answer.

    Every body is a dictionary with its row's id. Every row of every index that the catalogue lists
    is what its entity says, and none is missing in one that is populated.
    """
    with queries(connect) as query:
        entities = {id: load(body) for id, body in query("SELECT id, body FROM entities")}
        found = [
            f"entity {id!r} calls itself {entity.get('id')!r}"
            for id, entity in entities.items()
            if entity.get("id") != id
        ]
        content = catalogue(query)
        for table, entry in content["indexes"].items():
            names = list(entry["types"])
            columns = ", ".join(f"`{name.replace('`', '``')}`" for name in names)
            rows = query(f"SELECT {columns}, entity_id FROM `{table}`")
            differences = _differences(table, entities, names, rows)
            # One that is not populated yet may lack rows, and has no wrong ones.
            if not entry.get("populated"):
                differences = [text for text in differences if not text.endswith("is missing")]
            found += differences
    return found


def load(body: bytes) -> Any:
    """What is in a body, as pickle itself reads it."""
    return pickle.loads(zlib.decompress(body))


def catalogue(query: Query) -> dict[str, Any]:
    """The content of the catalogue's row that counts: the one that its third column is named after."""
    columns = [name for name, *_ in query("SHOW COLUMNS FROM entities_catalogue")]
    (epoch,) = [name for name in columns if name.startswith("epoch_")]
    rows = query(
        "SELECT content FROM entities_catalogue WHERE id = %s", [epoch.removeprefix("epoch_")]
    )
    if not rows:
        assert epoch == "epoch_first", f"the catalogue has no row of {epoch}"
        return {"indexes": {}}
    content: dict[str, Any] = json.loads(rows[0][0])
    return content


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


# ---- Connections


def sessions(query: Query) -> set[int]:
    """The connections to the database, but for this one."""
    ((version,),) = query("SELECT VERSION()")
    # MySQL's information_schema.processlist fails on a body in a statement.
    schema = "information" if "MariaDB" in version else "performance"
    others = (
        f"SELECT id FROM {schema}_schema.processlist"
        " WHERE db = DATABASE() AND id <> CONNECTION_ID()"
    )
    # performance_schema passes over a row that changes at that moment.
    return {int(id) for _ in range(3) for (id,) in query(others)}


def kill_sessions(query: Query) -> None:
    """Ends all connections, as a server does that has had enough of them, or its administrator."""
    for session in sessions(query):
        # It may have ended by itself.
        with contextlib.suppress(MySQLdb.OperationalError):
            query(f"KILL {session}")
    until(lambda: not sessions(query))
    # The end of the stream is under way.
    time.sleep(0.02)


# ---- Calls at once, and again


def in_threads(*calls: Callable[[], T]) -> list[T]:
    """What the calls return, all made at once; raises what one of them raised."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T:
        barrier.wait(WAIT_SECONDS)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def together(block: Callable[[], T], tries: int = 60) -> T:
    """block(), again as its author does who opens a transaction() in it and meets another one."""
    for left in reversed(range(tries)):
        try:
            return block()
        except MySQLdb.OperationalError as error:
            if not left or error.args[0] not in TRY_AGAIN:
                raise
            time.sleep(random.uniform(0, 0.05))
    raise AssertionError("there was no try")


def until(holds: Callable[[], Any], seconds: float = WAIT_SECONDS) -> None:
    """Returns as soon as it holds; an AssertionError after 20 seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


# ---- Processes


def fork(call: Callable[[], Any]) -> int:
    """The process id of a child that makes the call; its exit status is 0 if that returns."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.alarm(WAIT_SECONDS)
        call()
        status = 0
    except BaseException as error:
        sys.stderr.write(f"in the child: {type(error).__name__}: {error}\n")
    finally:
        os._exit(status)


def joined(child: int) -> int:
    """The exit status of a child, which has 20 seconds."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def program(text: str, connect: dict[str, Any], seconds: float = 60) -> str:
    """What a program prints, to which CONNECT and slim are known; fails if it says anything else."""
    done = subprocess.run(
        [sys.executable, "-c", f"import slim, threading, time, os\nCONNECT = {connect!r}\n{text}"],
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()
