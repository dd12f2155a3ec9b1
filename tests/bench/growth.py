"""What slim costs as the work grows: time, memory, connections, and others' waiting for an index.

Each function prints one table. Whoever reads it compares what is with what should be.
"""

from __future__ import annotations

import contextlib
import cProfile
import functools
import itertools
import multiprocessing
import os
import pstats
import random
import statistics
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import MySQLdb
from contestants import FOUND, Slim, synthetic
from proxy import Proxy, proxied
from server import Named

import slim

# A child begins with nothing loaded, so that its peak is its own.
CONTEXT = multiprocessing.get_context("spawn")
THREADS = 1, 2, 4, 8, 16, 32
ONE_OF = 1, 10, 100, 1_000, 10_000, 100_000
BODIES = 100, 10_000, 1_000_000
INDEXES = 1, 3, 10
LARGE = 8 << 20
OPEN_SECONDS = 60


@contextmanager
def database(server: Named) -> Iterator[dict[str, Any]]:
    """What connects to a database of its own, which is dropped at the end."""
    name = f"slim_bench_{uuid.uuid4().hex}"
    server.query(f"CREATE DATABASE {name}")
    try:
        yield {**server.connect, "database": name}
    finally:
        server.query(f"DROP DATABASE {name}")


@contextmanager
def opened(server: Named, *indexes: slim.Index) -> Iterator[slim.Datastore]:
    with database(server) as connect, slim.Datastore(**connect, indexes=indexes) as store:
        yield store


def table(head: Sequence[Any], body: Sequence[Sequence[Any]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(["| " + " | ".join(map(str, line)) + " |" for line in lines])


def spent(call: Callable[..., Any], *args: Any) -> float:
    """Microseconds."""
    start = time.perf_counter()
    call(*args)
    return (time.perf_counter() - start) * 1e6


def interleaved(calls: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """The median of each call's microseconds. They take turns."""
    times: dict[Any, list[float]] = {size: [] for size in calls}
    for number in range(-1, rounds):
        for size, call in calls.items():
            took = spent(call)
            if number >= 0:
                times[size].append(took)
    return {size: statistics.median(each) for size, each in times.items()}


def scan(store: slim.Datastore) -> int:
    return sum(1 for _ in store.scan())


def line(what: str, should: str, costs: dict[Any, float], per: str = "µs") -> list[str]:
    cells = [f"{size:,}: {cost:,.0f}" for size, cost in costs.items()]
    first, last = min(costs), max(costs)
    return [what, should, f"{per}: {', '.join(cells)}", f"{costs[last] / costs[first]:.2f}"]


# ---- time ----------------------------------------------------------------------------------------


def growth(server: Named, entities: int) -> None:
    body = [
        *by_entities(server, [size for size in (10_000, 100_000, 1_000_000) if size <= entities]),
        *by_indexes(server),
        *by_bodies(server),
        *by_threads(server),
        *by_one_of(server, min(entities, 10_000)),
    ]
    print(table(["by", "should be", "is", "last / first"], body), flush=True)


def by_entities(server: Named, sizes: Sequence[int]) -> Iterator[list[str]]:
    index = slim.Index("index_user_id", "user_id")
    with ExitStack() as stack:
        stores = {size: stack.enter_context(opened(server, index)) for size in sizes}
        kept: dict[int, list[Any]] = {}
        filled: dict[int, float] = {}
        for size, store in stores.items():
            filled[size] = spent(store.put_many, synthetic(size, new=True)) / size
            kept[size] = list(itertools.islice(store.scan(), 1000))
        calls: dict[str, Callable[[int], Any]] = {
            "put": lambda size: stores[size].put({**random.choice(kept[size])}),
            "get": lambda size: stores[size].get(random.choice(kept[size])["id"]),
            f"get_all of {FOUND}": lambda size: index.get_all(
                stores[size], user_id=random.choice(kept[size])["user_id"]
            ),
        }
        yield line("put_many, by entities", "flat", filled, "µs each")
        for name, call in calls.items():
            each = {size: functools.partial(call, size) for size in sizes}
            yield line(f"{name}, by entities", "flat", interleaved(each, 60))
        scans = {size: functools.partial(scan, store) for size, store in stores.items()}
        costs = {size: cost / size for size, cost in interleaved(scans, 1).items()}
        yield line("scan, by entities", "flat", costs, "µs each")


def by_indexes(server: Named) -> Iterator[list[str]]:
    with ExitStack() as stack:
        stores = {}
        for count in INDEXES:
            indexes = [slim.Index(f"index_{n}", {f"n{n}": int}) for n in range(count)]
            stores[count] = stack.enter_context(opened(server, *indexes))
        values = {f"n{n}": n for n in range(max(INDEXES))}
        puts = {count: lambda store=store: store.put({**values}) for count, store in stores.items()}
        yield line("put, by indexes", "linear, with a base", interleaved(puts, 60))
        many = {
            count: lambda store=store: store.put_many([{**values} for _ in range(1000)])
            for count, store in stores.items()
        }
        costs = {count: cost / 1000 for count, cost in interleaved(many, 3).items()}
        yield line("put_many, by indexes", "linear, with a base", costs, "µs each")


def by_bodies(server: Named) -> Iterator[list[str]]:
    with opened(server) as store:
        for size in BODIES:
            store.put({"id": str(size), "data": os.urandom(size)})
        puts = {
            size: lambda size=size: store.put({"id": str(size), "data": os.urandom(size)})
            for size in BODIES
        }
        yield line("put, by bytes of a body", "linear, with a base", interleaved(puts, 20))
        gets = {size: lambda size=size: store.get(str(size)) for size in BODIES}
        yield line("get, by bytes of a body", "linear, with a base", interleaved(gets, 20))


def by_threads(server: Named) -> Iterator[list[str]]:
    with opened(server, slim.Index("index_user_id", "user_id")) as store:
        documents = list(synthetic(1000))
        store.put_many(documents)
        calls: dict[str, Callable[[Any], Any]] = {
            "put": lambda document: store.put({**document}),
            "get": lambda document: store.get(document["id"]),
        }
        for name, call in calls.items():
            costs = {}
            for threads in THREADS:
                with ThreadPoolExecutor(threads) as pool:
                    # Each thread has its connection by then.
                    work(pool, call, documents[:threads])
                    chosen = random.sample(documents, 320)
                    took = spent(work, pool, call, chosen)
                costs[threads] = len(chosen) / took * 1e6
            yield line(f"{name}, by threads", "not falling", costs, "calls a second")


def work(pool: ThreadPoolExecutor, call: Callable[[Any], Any], documents: Sequence[Any]) -> None:
    for _ in pool.map(call, documents):
        pass


def by_one_of(server: Named, entities: int) -> Iterator[list[str]]:
    index = slim.Index("index_user_id", "user_id")
    with opened(server, index) as store:
        documents = list(synthetic(entities))
        store.put_many(documents)
        asked = {
            count: [documents[0]["user_id"], *[f"nobody-{n}" for n in range(count - 1)]]
            for count in ONE_OF
        }
        calls = {
            count: lambda values=values: index.get_all(store, user_id=values)
            for count, values in asked.items()
        }
        costs = interleaved(calls, 3)
        yield line(f"get_all of {FOUND}, by values of one-of", "linear, with a base", costs)


# ---- where the time goes -------------------------------------------------------------------------

# Of a function: its file, or what it is called if it is written in C.
PARTS_OF_TIME = {
    "server": ("Connection.query", "next_result", "store_result"),
    "driver": ("_mysql", "MySQLdb", "<method 'fetch_row'"),
    "pickle, zlib": ("pickle", "zlib", "Compress", "Decompress", "'dump'", "'load'"),
    "slim.py": ("slim.py",),
}


def profile(server: Named, entities: int) -> None:
    """The shares of Python's profiler, which makes calls of Python functions seem dearer than they are."""
    with database(server) as connect, contextlib.closing(Slim("slim", slim, connect)) as who:
        standing = list(synthetic(2_000))
        who.put_many(standing)
        again = itertools.cycle(standing)
        calls: dict[str, Callable[[], Any]] = {
            "put, new": lambda: who.put(next(synthetic(1, new=True))),
            "put, again": lambda: who.put(next(again)),
            "get": lambda: who.get(next(again)["id"]),
            f"get_all, {FOUND}": lambda: who.get_all(next(again)["user_id"]),
            "put_many": lambda: who.put_many(standing[:1_000]),
            "scan": who.scan,
        }
        body = [
            [name, *shares(call, 10 if name in ("put_many", "scan") else 500)]
            for name, call in calls.items()
        ]
    print(table(["share of", *PARTS_OF_TIME, "other"], body), flush=True)


def shares(call: Callable[[], Any], times: int) -> list[str]:
    call()
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(times):
        call()
    profiler.disable()
    spent: Counter[str] = Counter()
    for (path, _, function), (_, _, seconds, *_) in pstats.Stats(profiler).stats.items():
        text = function if path == "~" else path
        parts = [part for part, marks in PARTS_OF_TIME.items() if any(m in text for m in marks)]
        spent[(*parts, "other")[0]] += seconds
    return [f"{spent[part] / spent.total():.0%}" for part in [*PARTS_OF_TIME, "other"]]


# ---- memory --------------------------------------------------------------------------------------


def memory(server: Named, entities: int) -> None:
    """Of a client of its own that makes one call, what it took above what it began with."""
    cases = [(entities // 10, 0), (entities, 0), (10, LARGE), (100, LARGE)]
    heads = [f"{n:,} of {'300 bytes' if not size else f'{size >> 20} MB'}" for n, size in cases]
    found: dict[str, list[str]] = {}
    for count, size in cases:
        with database(server) as connect:
            for call in "put_many", "scan", "populate", "get_all":
                found.setdefault(call, []).append(f"{peak(call, connect, count, size):.0f}")
    should = {"get_all": "what it returns"}
    body = [[call, should.get(call, "flat"), *cells] for call, cells in found.items()]
    print(table(["MB", "should be", *heads], body), flush=True)


def peak(*call: Any) -> float:
    ours, theirs = CONTEXT.Pipe()
    child = CONTEXT.Process(target=consume, args=(theirs, *call))
    child.start()
    theirs.close()
    megabytes = float(ours.recv())
    child.join()
    return megabytes


def consume(pipe: Any, call: str, connect: dict[str, Any], count: int, size: int) -> None:
    index = slim.Index("index_kind", "kind")
    with slim.Datastore(**connect, indexes=[index]) as store:
        if call == "populate":
            # Rows that are there need not be made.
            store.remove_index(index)
            store.add_index(index, populate=False)
        # The peak is counted anew.
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_of_process()
        calls: dict[str, Callable[[], Any]] = {
            "put_many": lambda: store.put_many(documents(count, size)),
            "scan": lambda: scan(store),
            "populate": lambda: index.populate(store),
            "get_all": lambda: index.get_all(store, kind="a"),
        }
        kept = calls[call]()
        pipe.send(peak_of_process() - before)
        del kept


def documents(count: int, size: int) -> Iterator[dict[str, Any]]:
    for document in synthetic(count, new=True):
        yield {**document, "kind": "a", "data": os.urandom(size)}


def peak_of_process() -> float:
    """MB, as Linux tells it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


# ---- connections ---------------------------------------------------------------------------------


def connections(server: Named, entities: int) -> None:
    body = [opening(server, 0), opening(server, 50)]
    with database(server) as connect, proxied(connect) as (proxy, through):
        with slim.Datastore(**connect) as store, slim.Datastore(**through) as counted:
            key = store.put({"a": 1})
            get = functools.partial(store.get, key)
            body.append(
                ["get", requests(proxy, counted, key), middle([spent(get) for _ in range(200)])]
            )
            closed = [closed_while_idle(server, connect["database"], get) for _ in range(20)]
            told = "get, its connection closed while idle"
            body.append([told, requests(proxy, counted, key), middle(closed)])
            times = come_and_go(get)
    body.append(["get, by 200 threads, 20 at a time", "", middle(times)])
    print(table(["", "requests", "ms"], body), flush=True)


def requests(proxy: Proxy, store: slim.Datastore, key: str) -> int:
    """How many a get makes, with the goodbye to a connection. Logging in is not counted."""
    proxy.requests = 0
    store.get(key)
    return proxy.requests


def closed_while_idle(server: Named, name: str, call: Callable[[], Any]) -> float:
    listed = "SELECT id FROM information_schema.processlist WHERE db = %s"
    while found := server.query(listed, (name,)):
        for (id,) in found:
            with contextlib.suppress(MySQLdb.OperationalError):
                server.query(f"KILL {id}")
    return spent(call)


def come_and_go(call: Callable[[], Any]) -> list[float]:
    times: list[float] = []
    for _ in range(10):
        threads = [
            threading.Thread(target=lambda: times.extend([spent(call) for _ in range(5)]))
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return times


def middle(microseconds: Sequence[float]) -> str:
    """Their median, in milliseconds."""
    return f"{statistics.median(microseconds) / 1000:.2f}"


def opening(server: Named, count: int) -> list[Any]:
    indexes = [slim.Index(f"index_{n}", f"n{n}") for n in range(count)]
    with database(server) as connect:
        slim.Datastore(**connect, indexes=indexes).close()
        times = [
            spent(lambda: slim.Datastore(**connect, indexes=indexes).close()) for _ in range(20)
        ]
        with proxied(connect) as (proxy, through), slim.Datastore(**through, indexes=indexes):
            # Logging in is not counted.
            sent = proxy.requests
    return [f"opening a store with {count} indexes", sent, middle(times)]


# ---- deployment ----------------------------------------------------------------------------------


def deployment(server: Named, entities: int) -> None:
    """What a put of another process takes while an index is added."""
    with opened_with(server, entities) as (store, connect), putting(connect) as (puts, stop):
        start = time.monotonic()
        time.sleep(5)
        alone = start, time.monotonic()
        adding, told = add_index(store)
        time.sleep(2)
        holder = threading.Thread(target=hold_open, args=(connect, OPEN_SECONDS))
        holder.start()
        time.sleep(1)
        waiting, told_then = add_index(store)
        holder.join()
        stop.set()
        latencies = puts.recv()
    held = f"the same, a transaction is open for {OPEN_SECONDS} s"
    body = [
        ["nothing", *ranked(latencies, alone)],
        [f"an index for {entities:,} entities: {told}", *ranked(latencies, adding)],
        [f"{held}: {told_then}", *ranked(latencies, waiting)],
    ]
    print(table(["meanwhile", "puts", "median, ms", "99th", "longest"], body), flush=True)


def add_index(store: slim.Datastore) -> tuple[tuple[float, float], str]:
    """When it began and ended, and what came of it. It is removed again."""
    index = slim.Index("index_city", "city")
    start = time.monotonic()
    told = "added"
    try:
        store.add_index(index)
    except (slim.Error, MySQLdb.Error) as error:
        told = f"given up (error {error.args[0]})"
    end = time.monotonic()
    if told == "added":
        store.remove_index(index)
    return (start, end), f"{told} after {end - start:.1f} s"


def ranked(latencies: Sequence[tuple[float, float]], period: tuple[float, float]) -> list[Any]:
    """How many puts began in the period; the median, the 99th of a hundred and the longest."""
    found = sorted([took for start, took in latencies if period[0] <= start < period[1]])
    places = len(found) // 2, len(found) * 99 // 100, len(found) - 1
    return [len(found), *[f"{found[place]:.1f}" for place in places if found]]


@contextmanager
def opened_with(server: Named, entities: int) -> Iterator[Any]:
    with database(server) as connect, slim.Datastore(**connect) as store:
        store.put_many(synthetic(entities, new=True))
        yield store, connect


@contextmanager
def putting(connect: dict[str, Any]) -> Iterator[Any]:
    """A process that puts until it is told to stop, and then tells what each put took."""
    ours, theirs = CONTEXT.Pipe()
    stop = CONTEXT.Event()
    child = CONTEXT.Process(target=put_on, args=(theirs, stop, connect))
    child.start()
    ours.recv()
    try:
        yield ours, stop
    finally:
        stop.set()
        child.join()


def put_on(pipe: Any, stop: Any, connect: dict[str, Any]) -> None:
    latencies: list[tuple[float, float]] = []
    with slim.Datastore(**connect) as store:
        pipe.send("ready")
        while not stop.is_set():
            (document,) = synthetic(1, new=True)
            start = time.monotonic()
            latencies.append((start, spent(store.put, document) / 1000))
    pipe.send(latencies)


def hold_open(connect: dict[str, Any], seconds: float) -> None:
    with slim.Datastore(**connect) as store, store.transaction():
        store.put({"a": 1})
        time.sleep(seconds)


PARTS = {
    "growth": growth,
    "profile": profile,
    "memory": memory,
    "connections": connections,
    "deployment": deployment,
}
