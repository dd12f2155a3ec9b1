"""How cost grows: with the distance to the server, with the number of entities, and with none of them in memory and bytes."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import documents
from contestants import BATCH, Slim, connection
from goals import check
from original import Original
from peers import DocumentStore, SQLAlchemy
from proxy import Proxy
from race import Job, race, ratio, table
from server import Named, Server
from spent import watched

import slim

DELAY = 0.001  # seconds each way
CALLS = 20
LEAST, MOST = 100_000, 1_000_000  # entities where what must not grow is looked at once
MOST_RANDOM = 1_000_000  # entities with random ids; more would take a night
POOL = 4 << 30  # bytes of memory that hold the data of some millions
STORED = 20_000  # documents whose bytes are counted


def show(server: Named, sizes: Sequence[int], contest: Callable[..., Any]) -> None:
    if isinstance(server, Server):
        distance(server)
    size(server, sizes)
    for look in latest, memory:
        look(server, min(max(LEAST, sizes[-1]), MOST))
    stored_bytes(server, contest)


def distance(server: Named) -> None:
    """Round trips, counted and timed by a proxy that holds everything back for a millisecond each way."""
    rows = []
    with Proxy(server.connect["host"], server.connect["port"]) as proxy:
        for count in 0, 3, 10:
            with database(server) as connect:
                for name, ours, theirs in calls({**connect, "port": proxy.port}, count):
                    mine, other = timed(proxy, ours), timed(proxy, theirs) if theirs else ("", "")
                    rows.append([name, *mine, *other])
                    check(
                        server.kind,
                        f"round trips of {name}",
                        mine[0],
                        2 if name == "update" else 1,
                        at_least=False,
                    )
    print(f"\n### {server.kind}: a server that is {2 * DELAY * 1000:.0f} ms away\n")
    print(table(["call", "round trips", "ms", "2009's round trips", "ms"], rows), flush=True)


def calls(
    connect: dict[str, Any], count: int
) -> Iterator[tuple[str, Callable[[], Any], Callable[[], Any] | None]]:
    """Calls of a store with so many indexes, each as slim does it and as 2009 did."""
    names = [*documents.PROPERTIES, *(f"p{number}" for number in range(7))][:count]
    indexes = [
        slim.Index(f"index_{name}", {name: documents.PROPERTIES.get(name, str)}) for name in names
    ]
    entities = [
        {**each, **{f"p{number}": "x" for number in range(7)}} for each in documents.synthetic(20)
    ]
    ids, user = [each["id"] for each in entities], entities[0]["user_id"]
    with (
        slim.Datastore(**connect, indexes=indexes) as store,
        closing(Original(connect, None, False)) as original,
    ):
        original.properties = names
        store.put_many(entities)
        yield (
            f"put, {count} indexes",
            lambda: store.put(entities[0]),
            lambda: original.put(entities[:1]),
        )
        if count == 10:
            yield "get", lambda: store.get(ids[0]), lambda: original.get(ids[0])
            yield (
                "get_many, 20 entities",
                lambda: store.get_many(ids),
                lambda: [original.get(id) for id in ids],
            )
            yield (
                "get_all, 20 entities",
                lambda: indexes[0].get_all(store, user_id=user),
                lambda: original.find(user),
            )
            yield "update", lambda: store.update(ids[0], lambda entity: None), None


def timed(proxy: Proxy, call: Callable[[], Any]) -> tuple[float, str]:
    """Requests and milliseconds of one call."""
    call()
    proxy.requests, times = 0, []
    proxy.delay = DELAY
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    proxy.delay = 0
    return proxy.requests / CALLS, f"{statistics.median(times) * 1000:.1f}"


def size(server: Named, sizes: Sequence[int]) -> None:
    """The cost of a call with so many entities, whose ids are ordered by time, or random. Such stores take turns."""
    cells: dict[tuple[str, int], list[Any]] = {}
    leaves: dict[tuple[str, str], list[Any]] = {}
    in_memory = ", in memory" if isinstance(server, Server) and sizes[-1] > LEAST else ""
    for make_id in documents.ordered_id, documents.random_id:
        with ExitStack() as stack:
            stores = [
                stack.enter_context(closing(Sized(server, count, make_id)))
                for count in sizes
                if make_id is documents.ordered_id or count <= MOST_RANDOM
            ]
            found = calls_of(stores)
            if in_memory:
                (pool,) = server.query("SELECT @@innodb_buffer_pool_size")[0]
                hold(server, stores)
                found |= {name + in_memory: seconds for name, seconds in calls_of(stores).items()}
                server.query(f"SET GLOBAL innodb_buffer_pool_size = {pool}")
            found["put_many"] = {store.name: [store.filled / store.count] * 2 for store in stores}
            for store in stores:
                for name, seconds in found.items():
                    times = ratio(seconds[stores[0].name], seconds[store.name])
                    cells.setdefault((name, store.count), []).extend(
                        [statistics.median(seconds[store.name]) * 1e6, times]
                    )
                for name, bytes in zip(
                    ("bytes in entities", "bytes in each of three indexes"), store.bytes()
                ):
                    cells.setdefault((name, store.count), []).extend([bytes, ""])
            for key, rows in stores[-1].rows_on_a_leaf().items():
                leaves.setdefault(key, []).append(rows)
    print(f"\n### {server.kind}: with more entities, whose ids are ordered by time, or random\n")
    print(
        table(
            [
                "µs of",
                "entities",
                "ordered ids",
                "times the first",
                "random ids",
                "times the first",
            ],
            [
                [name, count, *row, *[""] * (4 - len(row))]
                for (name, count), row in sorted(cells.items())
            ],
        ),
        flush=True,
    )
    print(f"\n### {server.kind}: rows on a leaf of {sizes[-1]:,} entities, a page of 16 KiB\n")
    print(
        table(
            ["table", "key", "ordered ids", "random ids"],
            [[*key, *rows] for key, rows in leaves.items()],
        ),
        flush=True,
    )
    for name in (
        "put",
        "get",
        "find(limit=20)",
        *(name + in_memory for name in ("put", "get", "find(limit=20)") if in_memory),
    ):
        what = f"{name} with {sizes[-1]:,} entities, times that with {sizes[0]:,}"
        check(server.kind, what, cells[name, sizes[-1]][1], 1.5, at_least=False)
    print(
        f"\nIds that slim made in one process sort in the order of their making: {sorts(server)}",
        flush=True,
    )


def calls_of(stores: Sequence[Sized]) -> dict[str, Any]:
    return {
        name: race(Job(name, method, make, rounds), stores)
        for name, method, make, rounds in (
            ("put", "put", lambda each, _: each.fresh(8), 40),
            ("get", "get", lambda each, _: random.sample(each.ids, 50), 20),
            ("find(limit=20)", "find", lambda each, _: random.sample(each.users, 10), 20),
        )
    }


def hold(server: Named, stores: Sequence[Sized]) -> None:
    """Makes room in the server's memory for what they hold, and fills it: in its default of 128 MB, reads are from the disk."""
    server.query(f"SET GLOBAL innodb_buffer_pool_size = {POOL}")
    for store in stores:
        for rows in "entities", "entities FORCE INDEX (id)", "index_user_id":
            server.query(f"SELECT COUNT(*) FROM {store.context.name}.{rows}")
        server.query(f"SELECT SUM(LENGTH(body)) FROM {store.context.name}.entities")


def sorts(server: Named) -> bool:
    entities: list[dict[str, Any]] = [{"number": number} for number in range(10 * BATCH)]
    with database(server) as connect, slim.Datastore(**connect) as store:
        store.put_many(entities)
    return entities == sorted(entities, key=lambda entity: str(entity["id"]))


class Sized:
    """A store of so many entities."""

    def __init__(self, server: Named, count: int, make_id: Callable[[int], str]) -> None:
        self.server, self.count, self.make_id, self.name = server, count, make_id, f"{count}"
        self.context = database(server)
        self.slim = Slim(self.context.connect, None, True)
        self.ids: list[str] = []
        self.users: list[str] = []
        start = time.perf_counter()
        self.slim.store.put_many(self.sampled(documents.stream(count, make_id)))
        self.filled = time.perf_counter() - start

    def sampled(self, entities: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Passes them on, and remembers some ids and users."""
        for entity in entities:
            if random.random() < 20_000 / self.count:
                self.ids.append(entity["id"])
                self.users.append(entity["user_id"])
            yield entity

    def fresh(self, count: int) -> list[Any]:
        return [[each] for each in documents.synthetic(count, self.make_id)]

    def put(self, ready: Any) -> None:
        self.slim.put(ready)

    def get(self, id: str) -> None:
        self.slim.get(id)

    def find(self, user: str) -> None:
        list(self.slim.indexes[0].find(self.slim.store, {"user_id": user}, reverse=True, limit=20))

    def bytes(self) -> tuple[int, int]:
        """Of one entity, and of its row in an index, with all keys."""
        sizes = table_bytes(self.server, self.context.name)
        return sizes.pop("entities") // self.count, sum(sizes.values()) // len(
            self.slim.indexes
        ) // self.count

    def rows_on_a_leaf(self) -> dict[tuple[str, str], int]:
        """{(table, key): rows}, by the statistics that `bytes` has had made."""
        pages = self.server.query(
            "SELECT table_name, index_name, stat_value FROM mysql.innodb_index_stats"
            " WHERE database_name = %s AND stat_name = 'n_leaf_pages' ORDER BY 1, 2",
            (self.context.name,),
        )
        return {(table, key): self.count // int(count) for table, key, count in pages if count > 1}

    def close(self) -> None:
        self.slim.close()
        self.context.__exit__()


class database:
    """A database of its own, dropped at the end; its value is what connects to it."""

    def __init__(self, server: Named) -> None:
        self.server, self.name = server, f"slim_bench_{uuid.uuid4().hex}"
        server.query(f"CREATE DATABASE {self.name}")
        self.connect = {**server.connect, "database": self.name}

    def __enter__(self) -> dict[str, Any]:
        return self.connect

    def __exit__(self, *exc_info: object) -> None:
        self.server.query(f"DROP DATABASE {self.name}")


def latest(server: Named, count: int) -> None:
    """The latest twenty of a property that has one value in all entities: what the server reads for them, and its plan."""
    index = slim.Index("index_user_id", "user_id")
    with database(server) as connect, slim.Datastore(**connect, indexes=[index]) as store:
        store.put_many({**each, "user_id": "bob"} for each in documents.stream(count))
        times = []
        for _ in range(CALLS):
            start = time.perf_counter()
            with watched() as sent:
                list(index.find(store, {"user_id": "bob"}, reverse=True, limit=20))
            times.append(time.perf_counter() - start)
        select = sent[1]
        with closing(connection(connect)) as own:

            def ask(sql: bytes) -> Any:
                own.query(sql)
                return own.store_result().fetch_row(0)

            plan = " ".join(str(cell) for row in ask(b"EXPLAIN " + select) for cell in row)
            own.query(b"FLUSH STATUS")
            ask(select)
            read = {
                name: int(value)
                for name, value in ask(b"SHOW SESSION STATUS")
                if name.startswith(("Handler_read", "Sort"))
            }
    rows = read["Handler_read_prev"] + read["Handler_read_next"]
    others = (
        read["Handler_read_rnd"]
        + read["Handler_read_rnd_next"]
        + read["Sort_rows"]
        + ("filesort" in plan)
    )
    print(f"\n### {server.kind}: the latest twenty of {count:,} entities with the same user_id\n")
    print(
        table(
            [
                "ms",
                "index rows read in order",
                "rows read by their key",
                "rows sorted, or read otherwise",
            ],
            [[statistics.median(times) * 1000, rows, read["Handler_read_key"], others]],
        ),
        flush=True,
    )
    check(server.kind, "index rows read for the latest twenty", rows, 20, at_least=False)
    check(
        server.kind,
        "rows read by key for the latest twenty",
        read["Handler_read_key"],
        22,
        at_least=False,
    )
    check(server.kind, "rows sorted for the latest twenty", others, 0, at_least=False)


def memory(server: Named, count: int) -> None:
    """Peak of a client that puts and then scans so many entities, after a tenth of them and after all; in a child process."""
    with database(server) as connect:
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("memory.py"), repr(connect), str(count)],
            capture_output=True,
            text=True,
            check=True,
        )
    rows = [
        [call, int(number), int(megabytes)]
        for call, number, megabytes in map(lambda line: line.split(","), done.stdout.splitlines())
    ]
    print(f"\n### {server.kind}: peak memory of the client\n")
    print(table(["call", "entities", "MB"], rows), flush=True)
    check(
        server.kind,
        f"peak memory with {count:,} entities, times that with a tenth",
        rows[-1][2] / rows[1][2],
        1.2,
        False,
    )


def stored_bytes(server: Named, contest: Callable[..., Any]) -> None:
    """Of all tables with their keys, as the server tells them."""
    rows = []
    for title, found in (
        ("synthetic", documents.synthetic(STORED)),
        ("real", documents.real()[:STORED]),
    ):
        sizes: dict[str, list[Any]] = {}
        for indexed in True, False:
            with contest(server, [Slim, DocumentStore, SQLAlchemy], found, indexed) as contestants:
                for each in contestants:
                    sizes.setdefault(each.name, []).append(
                        sum(table_bytes(server, each.connect["database"]).values()) // len(found)
                    )
        rows += [
            [title, name.replace("SQLAlchemy", "JSON column"), *both]
            for name, both in sizes.items()
        ]
    print(f"\n### {server.kind}: bytes stored for each document\n")
    print(table(["documents", "by", "three indexes", "none"], rows), flush=True)


def table_bytes(server: Named, name: str) -> dict[str, int]:
    for (table_name,) in server.query(f"SHOW TABLES FROM {name}"):
        server.query(f"ANALYZE TABLE {name}.`{table_name}`")
    return {
        table_name: int(size)
        for table_name, size in server.query(
            "SELECT table_name, data_length + index_length FROM information_schema.tables WHERE table_schema = %s",
            (name,),
        )
    }
