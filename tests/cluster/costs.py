"""What a call costs through vtgate on two shards, beside the same on the MySQL under it: one table, one run.

    tests/run cluster -k costs -s       prints it

Each figure is the median of some rounds, which take turns, so that what else the machine does falls on both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import slim

ENTITIES = 1_000
CALLS = 50
ROUNDS = 5
BY_USER = slim.Index("index_user", "user")


def entity(n: int) -> dict[str, Any]:
    return {"id": f"entity-{n}", "user": f"user-{n % 50}", "title": "x" * 200, "n": n}


def calls(store: slim.Datastore) -> dict[str, tuple[int, Callable[[], Any]]]:
    """{name: (how many times what is measured happens in a call, the call)}"""

    def put() -> None:
        for n in range(CALLS):
            store.put(entity(n))

    def get() -> None:
        for n in range(CALLS):
            store.get(f"entity-{n}")

    def find() -> None:
        for n in range(CALLS):
            list(BY_USER.find(store, {"user": f"user-{n}"}, limit=20))

    return {
        "put": (CALLS, put),
        "get": (CALLS, get),
        "find 20": (CALLS, find),
        "scan, an entity": (ENTITIES, lambda: sum(1 for _ in store)),
        "put_many, an entity": (
            ENTITIES,
            lambda: store.put_many(entity(n) for n in range(ENTITIES)),
        ),
    }


def measure(servers: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{call: {server: microseconds}} for {server: what slim.Datastore takes}."""
    stores = {
        name: slim.Datastore(**connect, indexes=[BY_USER]) for name, connect in servers.items()
    }
    taken: dict[str, dict[str, list[float]]] = {}
    for store in stores.values():
        store.put_many(entity(n) for n in range(ENTITIES))
    for _ in range(ROUNDS):
        for name, store in stores.items():
            for call, (count, run) in calls(store).items():
                begun = time.perf_counter()
                run()
                each = (time.perf_counter() - begun) / count * 1e6
                taken.setdefault(call, {}).setdefault(name, []).append(each)
    for store in stores.values():
        store.close()
    return {
        call: {name: statistics.median(each) for name, each in by_server.items()}
        for call, by_server in taken.items()
    }


def table(figures: dict[str, dict[str, float]], asked: dict[str, str]) -> str:
    """The figures, and which shards each call asks, as Markdown."""
    names = list(next(iter(figures.values())))
    lines = [
        f"| microseconds | {' | '.join(names)} | times | asks |",
        "|---" * (len(names) + 3) + "|",
    ]
    for call, by_server in figures.items():
        one, other = (by_server[name] for name in names)
        cells = [f"{by_server[name]:,.0f}" for name in names]
        lines.append(
            f"| {call} | {' | '.join(cells)} | {other / one:.1f} | {asked.get(call, '')} |"
        )
    return "\n".join(lines)
