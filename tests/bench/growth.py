"""How cost grows: with the distance to the server, with the number of entities, and with none of them in memory and bytes."""
from __future__ import annotations

import random
import resource
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":                      # the child process of `memory`
    HERE = Path(__file__).resolve().parent
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

import documents
from contestants import Slim
from original import Original
from peers import DocumentStore, SQLAlchemy
from proxy import Proxy
from race import Job, race, table
from server import Named, Server

import slim

DELAY = 0.001                   # seconds each way
CALLS = 20
MEMORY = 100_000                # entities that pass through the client while its memory is watched


def show(server: Named, sizes: Sequence[int], contest: Callable[..., Any]) -> None:
    if isinstance(server, Server):
        distance(server)
    size(server, sizes)
    memory(server, max(MEMORY, sizes[-1]))
    stored_bytes(server, contest)


def distance(server: Named) -> None:
    """Round trips, counted and timed by a proxy that holds everything back for a millisecond each way."""
    rows = []
    with Proxy(server.connect["host"], server.connect["port"]) as proxy:
        for count in 0, 3, 10:
            with database(server) as connect:
                indexes = [slim.Index(f"index_{number}", f"p{number}") for number in range(count)]
                with slim.Datastore(**{**connect, "port": proxy.port}, indexes=indexes) as store:
                    entity = {"id": "a", **{f"p{number}": "x" for number in range(10)}}
                    rows.append([f"put, {count} indexes", *timed(proxy, lambda: store.put(entity))])  # noqa: B023
                    if count == 10:
                        ids = [store.put({"p0": "20"}) for _ in range(20)]
                        rows += [["get", *timed(proxy, lambda: store.get("a"))],        # noqa: B023
                                 ["get_many, 20 entities", *timed(proxy, lambda: store.get_many(ids))],     # noqa: B023
                                 ["get_all, 20 entities", *timed(proxy, lambda: indexes[0].get_all(store, p0="20"))],   # noqa: B023
                                 ["update", *timed(proxy, lambda: store.update("a", lambda entity: None))]]  # noqa: B023
        with database(server) as connect:
            original = Original({**connect, "port": proxy.port}, None, True)
            users = documents.synthetic(20)
            for each in users:
                original.put([each])
            rows += [["put, 3 indexes, 2009", *timed(proxy, lambda: original.put(users[:1]))],
                     ["get_all, 20 entities, 2009", *timed(proxy, lambda: original.find(users[0]["user_id"]))]]
            original.close()
    print(f"\n### {server.kind}: a server that is {2 * DELAY * 1000:.0f} ms away\n")
    print(table(["call", "round trips", "ms"], rows), flush=True)


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
    """The cost of a call with so many entities, whose ids are ordered by time or random. All stores take turns."""
    rows = []
    for make_id in documents.ordered_id, documents.random_id:
        stores: list[Sized] = []
        for count in sizes:
            stores.append(Sized(server, count, make_id))
        try:
            for job in (Job("put", "put", lambda each, _: each.fresh(8), 40), Job("get", "get", lambda each, _: each.some(50), 20),
                        Job("find", "find", lambda each, _: each.some_users(10), 20)):
                seconds = race(job, stores)
                first = statistics.median(seconds[stores[0].name])
                for store in stores:
                    rows.append([job.name if job.name != "find" else "find(limit=20)", make_id.__name__.replace("_", " "),
                                 store.count, statistics.median(seconds[store.name]) * 1e6,
                                 statistics.median(seconds[store.name]) / first])
            rows += [["put_many", make_id.__name__.replace("_", " "), store.count, store.filled / store.count * 1e6,
                      store.filled / store.count / (stores[0].filled / stores[0].count)] for store in stores]
        finally:
            for store in stores:
                store.close()
    print(f"\n### {server.kind}: with more entities\n")
    print(table(["call", "ids", "entities", "µs", "times the first"], rows), flush=True)


class Sized:
    """A store of so many entities."""

    def __init__(self, server: Named, count: int, make_id: Callable[[int], str]) -> None:
        self.server, self.count, self.make_id, self.name = server, count, make_id, f"{count}"
        self.context = database(server)
        self.slim = Slim(self.context.connect, None, True)
        self.ids: list[str] = []
        self.users: list[str] = []
        start = time.perf_counter()
        self.slim.store.put_many(self.sampled(stream(count, make_id)))
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

    def some(self, count: int) -> list[str]:
        return random.sample(self.ids, count)

    def some_users(self, count: int) -> list[str]:
        return random.sample(self.users, count)

    def put(self, ready: Any) -> None:
        self.slim.put(ready)

    def get(self, id: str) -> None:
        self.slim.get(id)

    def find(self, user: str) -> None:
        list(self.slim.indexes[0].find(self.slim.store, {"user_id": user}, reverse=True, limit=20))

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


def stream(count: int, make_id: Callable[[int], str] = documents.ordered_id) -> Iterator[dict[str, Any]]:
    for start in range(0, count, 1000):
        yield from documents.synthetic(min(1000, count - start), make_id)


def memory(server: Named, count: int) -> None:
    """Peak of a client that puts and then scans so many entities, after a tenth of them and after all; in a child process."""
    with database(server) as connect:
        done = subprocess.run([sys.executable, __file__, repr(connect), str(count)], capture_output=True, text=True, check=True)
    print(f"\n### {server.kind}: peak memory of the client\n")
    rows = [line.split(",") for line in done.stdout.splitlines()]
    print(table(["call", "entities", "MB"], [[call, int(count), int(megabytes)] for call, count, megabytes in rows]), flush=True)


def watch(connect: dict[str, Any], count: int) -> None:
    with slim.Datastore(**connect, indexes=[slim.Index("index_user_id", "user_id")]) as store:
        print("start", 0, peak(), sep=",")
        for part in count // 10, count - count // 10:
            store.put_many(stream(part))
            print("put_many", len(store), peak(), sep=",")
        for number, _ in enumerate(store.scan(), 1):
            if number in (count // 10, count):
                print("scan", number, peak(), sep=",")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)


def stored_bytes(server: Named, contest: Callable[..., Any]) -> None:
    """Of all tables with their keys, as the server tells them."""
    rows = []
    for title, found in ("synthetic", documents.synthetic(20_000)), ("real", documents.real()):
        with contest(server, [Slim, DocumentStore, SQLAlchemy], found) as contestants:
            for each in contestants:
                name = each.connect["database"]
                tables = [table for table, in server.query(f"SHOW TABLES FROM {name}")]
                for table_name in tables:
                    server.query(f"ANALYZE TABLE {name}.`{table_name}`")
                size, = server.query("SELECT SUM(data_length + index_length) FROM information_schema.tables "
                                     "WHERE table_schema = %s", (name,))[0]
                rows.append([title, each.name, int(size) // len(found)])
    print(f"\n### {server.kind}: bytes stored for each document, three indexes\n")
    print(table(["documents", "by", "bytes"], rows), flush=True)


if __name__ == "__main__":
    watch(eval(sys.argv[1]), int(sys.argv[2]))
