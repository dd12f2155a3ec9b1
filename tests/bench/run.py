#!/usr/bin/env python3
"""What slim costs against the best that can be written by hand, against the way of 2009, and against what users would pick.

    tests/run bench                     on every kind of server that can be started here, in some ten minutes
    tests/run bench --long              more rounds, and up to a million entities; an hour or more
    tests/run bench --millions 10       … up to ten million
    tests/run bench --server mysql --part peers

All take turns on one server, in short rounds; a ratio is slim's rate divided by the other's in the same round: above 1,
slim is faster. Told are the median of the rounds, and in brackets their middle half. Servers run with default durability.
Goals that are missed are told at the end, beside what the floor reaches.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import documents  # noqa: E402
import goals  # noqa: E402
import growth  # noqa: E402
import picture  # noqa: E402
import spent  # noqa: E402
from contestants import BATCH, Slim  # noqa: E402
from floor import Floor, Unguarded  # noqa: E402
from original import Original  # noqa: E402
from peers import Dataset, DocumentStore, Peewee, SQLAlchemy  # noqa: E402
from race import Job, race, ratio, table  # noqa: E402
from server import Named, Server, kinds  # noqa: E402

PARTS = "levels", "peers", "profile", "indexless", "real", "whole", "growth"
STANDING = 4_000  # documents that stand before the clock starts
BATCHES = 3  # transactions of a put_many


@contextmanager
def contest(
    server: Named, classes: Sequence[type], standing: Sequence[dict[str, Any]], indexed: bool = True
) -> Iterator[list[Any]]:
    """Contestants, each with a database of its own in which the documents stand."""
    able = [each for each in classes if each.server in (None, server.kind)]  # type: ignore[attr-defined]
    names = {each: f"slim_bench_{uuid.uuid4().hex}" for each in able}
    x_port = getattr(server, "x_port", None)
    if x_port is None:
        able = [each for each in able if each is not DocumentStore]
    made = []
    try:
        for each in able:
            server.query(f"CREATE DATABASE {names[each]}")
            made.append(each({**server.connect, "database": names[each]}, x_port, indexed))
            for start in range(0, len(standing), BATCH):
                made[-1].fill(standing[start : start + BATCH])
        yield made
    finally:
        for contestant in made:
            contestant.close()
        for name in names.values():
            server.query(f"DROP DATABASE IF EXISTS {name}")


def jobs(
    standing: Sequence[dict[str, Any]], fresh: Callable[[int], list[dict[str, Any]]], times: int
) -> list[Job]:
    """All jobs, `times` as many rounds as the short form has. First the one that needs to know what stands."""
    ids, users = [each["id"] for each in standing], sorted({each["user_id"] for each in standing})
    few = "slim", "floor"

    def new(contestant: Any, _: int) -> list[Any]:
        return [contestant.ready([document]) for document in fresh(8)]

    def changed(contestant: Any, _: int) -> list[Any]:
        return [
            contestant.ready([{**document, "likes": random.randrange(1 << 20)}])
            for document in random.sample(standing, 8)
        ]

    def many(contestant: Any, _: int) -> list[Any]:
        return [contestant.ready(fresh(BATCHES * BATCH))]

    return [
        Job("scan", "scan", lambda _, __: [None], 7 * times, per_call=len(standing)),
        Job("put, new id", "put", new, 25 * times),
        Job("put, replacing", "replace", changed, 25 * times),
        Job("put_many", "put_many", many, 7 * times, per_call=BATCHES * BATCH),
        Job("get", "get", lambda _, __: random.sample(ids, 50), 40 * times),
        Job(
            "find 20",
            "find",
            lambda _, __: random.sample(users, 10),
            40 * times,
            per_call=documents.USERS,
        ),
        Job("put, 16 threads", "put", new, 8 * times, threads=16, against=few),
        Job(
            "get, 16 threads",
            "get",
            lambda _, __: random.sample(ids, 50),
            12 * times,
            threads=16,
            against=few,
        ),
    ]


def compare(
    server: Named,
    title: str,
    classes: Sequence[type],
    standing: list[dict[str, Any]],
    make: Callable[[int], Any],
    times: int,
    only: Sequence[str] = (),
    indexed: bool = True,
) -> dict[str, dict[str, Any]]:
    """Prints a table, and returns {job: {contestant: Ratio}}."""
    results: dict[str, dict[str, Any]] = {}
    rows = []
    with contest(server, classes, standing, indexed) as contestants:
        for job in jobs(standing, make, times):
            if only and job.name not in only:
                continue
            seconds = race(
                job,
                [
                    each
                    for each in contestants
                    if (job.against is None or each.name in job.against)
                    and (job.name, each.name) != ("put_many", "2009")
                ],
            )  # which has none
            slim = seconds.pop("slim")
            results[job.name] = {name: ratio(slim, other) for name, other in seconds.items()}
            rows.append(
                [
                    job.name,
                    f"{statistics.median(slim) * 1e6:,.0f}",
                    *(results[job.name].get(each.name, "") for each in contestants[1:]),
                ]
            )
    print(f"\n### {server.kind}: {title}\n")
    print(
        table(
            ["job", "slim, µs each", *(f"against {each.name}" for each in contestants[1:])], rows
        ),
        flush=True,
    )
    goals.check_rates(server.kind, title, results)
    return results


def whole(server: Named, times: int) -> None:
    """populate and schema against a bare scan, and what the guard costs."""
    standing = documents.synthetic(5 * STANDING)
    with contest(server, [Slim, Floor], standing) as (slim, floor):
        store, index = slim.store, slim.indexes[1]
        steps = {
            "scan by hand": floor.scan,
            "scan": slim.scan,
            "schema": store.schema,
            "populate, all right": lambda: index.populate(store),
            "populate, a new index": lambda: index.populate(store),
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(5 * times):
            for name, step in steps.items():
                if name == "populate, a new index":
                    store.remove_index(index)
                    store.add_index(index, populate=False)
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
    results = {
        name: {"floor": ratio(each, seconds["scan by hand"])} for name, each in seconds.items()
    }
    print(f"\n### {server.kind}: over all of {len(standing):,} entities\n")
    print(
        table(
            ["step", "µs each", "of the rate of a scan by hand"],
            [
                [name, statistics.median(each) / len(standing) * 1e6, results[name]["floor"]]
                for name, each in seconds.items()
            ],
        ),
        flush=True,
    )
    goals.check_rates(server.kind, "whole", results)
    with contest(server, [Floor, Unguarded], standing[:STANDING]) as pair:
        seconds = race(
            Job(
                "guard",
                "put",
                lambda each, _: [each.ready([document]) for document in documents.synthetic(8)],
                150 * times,
            ),
            pair,
        )
    cost = ratio(seconds[Unguarded.name], seconds[Floor.name])
    print(f"\nThe guard costs a put with three indexes {cost} times its time without.", flush=True)
    if server.kind == "mysql":
        goals.check(
            server.kind, "time of a put, times that without the guard", cost, 1.05, at_least=False
        )


def levels(real: list[dict[str, Any]]) -> None:
    found = {
        "synthetic": documents.synthetic(2000),
        "real": random.sample(real, 2000),
        "the largest real": sorted(real, key=lambda document: len(repr(document)))[-200:],
        "30 synthetic in one": [{"parts": documents.synthetic(30)} for _ in range(200)],
    }
    print("\n### zlib's level\n")
    print(
        table(
            ["documents", "pickled bytes", "level", "bytes", "µs to compress", "µs to decompress"],
            [row for title, each in found.items() for row in documents.levels(title, each)],
        ),
        flush=True,
    )


def bench(
    server: Named, options: argparse.Namespace, real: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    times, results = 4 if options.long else 1, {}
    print(f"\n## {server.kind} {server.query('SELECT VERSION()')[0][0]}", flush=True)
    if "peers" in options.part:
        results = compare(
            server,
            "synthetic documents, three indexes",
            [Slim, Floor, Original, DocumentStore, SQLAlchemy, Dataset],
            documents.synthetic(STANDING),
            documents.synthetic,
            times,
        )
    if "profile" in options.part:
        spent.show(server, contest)
    if "indexless" in options.part:
        compare(
            server,
            "synthetic documents, no index",
            [Slim, Floor, DocumentStore, SQLAlchemy, Peewee],
            documents.synthetic(STANDING),
            documents.synthetic,
            times,
            ["put, new id", "put_many", "get"],
            False,
        )
    if "real" in options.part:
        endless = itertools.cycle(real)
        compare(
            server,
            "real documents, three indexes",
            [Slim, Floor, Original, DocumentStore, SQLAlchemy],
            real[:STANDING],
            lambda number: [
                {**next(endless), "id": documents.ordered_id(n)} for n in range(number)
            ],
            times,
            ["put, new id", "put_many", "get"],
        )
    if "whole" in options.part:
        whole(server, times)
    if "growth" in options.part:
        growth.show(server, options.sizes, contest)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        "tests/run bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--long", action="store_true", help="four times the rounds, a million entities"
    )
    parser.add_argument("--millions", type=int, default=0, help="up to so many million entities")
    parser.add_argument("--server", choices=["mysql", "mariadb"], help="on this kind alone")
    parser.add_argument(
        "--part", choices=PARTS, action="append", help="this part alone; may be repeated"
    )
    options = parser.parse_args()
    options.part = options.part or PARTS
    options.sizes = [10_000, 100_000] + [1_000_000] * (options.long or options.millions > 0)
    options.sizes += [options.millions * 1_000_000] * (options.millions > 1)
    start, results, real = time.monotonic(), {}, documents.real()
    print(f"# slim's benchmarks, on {os.cpu_count()} processors, Python {sys.version.split()[0]}")
    if "levels" in options.part:
        levels(real)
    named = os.environ.get("SLIM_SERVER")
    for server in (
        [Named(named)]
        if named
        else (Server(kind) for kind in kinds() if options.server in (None, kind))
    ):
        with server:
            results[server.kind] = bench(server, options, real)
    goals.show()
    if all(results.values()):
        picture.draw(results, HERE / "bench.svg")
        print(f"\nThe picture is {(HERE / 'bench.svg').relative_to(HERE.parent.parent)}.")
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
