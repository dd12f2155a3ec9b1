#!/usr/bin/env python3
"""How fast slim is beside SQL written by hand, its own first edition, and what users would pick instead.

    tests/run bench                     the table and the picture, on each kind of server, in some minutes
    tests/run bench --rounds 100        … with less noise
    tests/run bench --server mysql      on that kind alone (mysql, mariadb, mariadb-11.8)
    tests/run bench growth              the cost as entities, indexes, bodies, threads and values grow
    tests/run bench memory connections deployment --entities 1000000

All take turns on one server, a few calls each. A ratio is slim's rate divided by the other's in the same round, so
that above 1 slim is faster: the median of the rounds, in brackets their middle half. "<" marks what is
below its goal. Servers run with their default durability; encoding and decoding is inside everybody's time.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import contestants  # noqa: E402
import growth  # noqa: E402
import matplotlib  # noqa: E402
from contestants import BATCH, synthetic  # noqa: E402
from growth import database, table  # noqa: E402
from server import Named, Server, kinds  # noqa: E402

import slim  # noqa: E402

FIRST_EDITION = "2e236d6"
OTHERS = ["floor", "first", "SQLAlchemy", "dataset", "KeyValue", "Document Store"]


class Job(NamedTuple):
    """`method` is called with each of make(contestant, standing documents)."""

    method: str
    make: Callable[[Any, Sequence[Any]], Sequence[Any]]
    # Documents of a call.
    per_call: int = 1
    # slim's rate, at the least, divided by that of the floor, and of the first edition.
    floor: float = 0
    first: float = 0.97
    clock: Callable[[], float] = time.perf_counter


def changed(standing: Sequence[Any]) -> list[Any]:
    return [{**each, "likes": 0} for each in random.sample(standing, 5)]


def stored(contestant: Any) -> list[str]:
    """The ids of documents that may be deleted."""
    documents = list(synthetic(5))
    contestant.put_many(documents)
    return [each["id"] for each in documents]


def users(standing: Sequence[Any]) -> list[str]:
    return [each["user_id"] for each in random.sample(standing, 5)]


def ids(standing: Sequence[Any], count: int = 5) -> list[str]:
    return [each["id"] for each in random.sample(standing, count)]


# The first edition is no measure for what takes one round trip more by now.
JOBS = {
    "put, new": Job("put", lambda who, _: [*synthetic(5, new=True)], floor=0.85),
    "put, again": Job("replace", lambda who, standing: changed(standing), floor=0.9),
    "get": Job("get", lambda who, standing: ids(standing, 10), floor=0.85),
    "get_all, 20": Job("get_all", lambda who, standing: users(standing), 20, 0.75, 1.25),
    "scan": Job("scan", lambda who, _: [None], 0, 0.85, 1.25),
    "put_many": Job("put_many", lambda who, _: [[*synthetic(BATCH, new=True)]], BATCH, 0.8),
    "put, expect": Job("expect", lambda who, standing: [*map(who.get, ids(standing))], first=0),
    "update": Job("update", lambda who, standing: ids(standing), first=0),
    "delete": Job("delete", lambda who, _: stored(who), first=0),
    # They wait for nothing, so that the processor's time is theirs.
    "encode": Job(
        "encode",
        lambda who, standing: random.sample(standing, 50),
        floor=0.7,
        clock=time.thread_time,
    ),
    "decode": Job(
        "decode",
        lambda who, standing: [*map(who.encode, random.sample(standing, 50))],
        floor=1 / 1.4,
        clock=time.thread_time,
    ),
}


class Ratio(NamedTuple):
    """slim's rate divided by another's: the median of the rounds, and their middle half."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}–{self.high:.2f})"


def first_edition() -> Any:
    """The module as it was then; it keeps its own name, `slim`, only in its file."""
    with tempfile.TemporaryDirectory() as directory:
        show = ["git", "-C", str(HERE), "show", f"{FIRST_EDITION}:slim.py"]
        source = subprocess.run(show, capture_output=True, check=True).stdout
        Path(directory, "slim_first.py").write_bytes(source)
        sys.path.insert(0, directory)
        try:
            return importlib.import_module("slim_first")
        finally:
            sys.path.remove(directory)


@contextmanager
def taking_part(server: Named, standing: Sequence[Any]) -> Iterator[list[Any]]:
    """All contestants that this server is fit for; the documents stand in their databases."""

    def floor(connect: dict[str, Any]) -> Any:
        contestants.Slim("", slim, connect).close()
        return contestants.Floor(connect)

    makers: list[Callable[[Any], Any]] = [
        lambda connect: contestants.Slim("slim", slim, connect),
        floor,
        lambda connect: contestants.Slim("first", first_edition(), connect),
        contestants.SQLAlchemy,
        contestants.Dataset,
        contestants.Peewee,
    ]
    if server.kind == "mysql" and isinstance(server, Server):
        makers.append(lambda connect: contestants.DocumentStore(connect, server.x_port))
    with ExitStack() as stack:
        made = [make(stack.enter_context(database(server))) for make in makers]
        for contestant in made:
            stack.callback(contestant.close)
            contestant.put_many([{**document} for document in standing])
        yield made


def race(job: Job, able: Sequence[Any], standing: Sequence[Any], rounds: int) -> Any:
    """{contestant: seconds for a document, by round}. The first round warms up, and is not told."""
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in able}
    for number in range(-1, rounds):
        # Nobody always follows another, whose writes the server may still be at.
        for contestant in random.sample(able, len(able)):
            calls = job.make(contestant, standing)
            method = getattr(contestant, job.method)
            start = job.clock()
            results = [method(each) for each in calls]
            took = job.clock() - start
            if number >= 0:
                documents = len(calls) * job.per_call or results[0]
                seconds[contestant.name].append(took / documents)
    return seconds


def compare(server: Named, rounds: int, entities: int) -> dict[str, Any]:
    """{job: {"slim": median seconds, another: Ratio}}"""
    standing = list(synthetic(entities))
    results: dict[str, Any] = {}
    with taking_part(server, standing) as everybody:
        for name, job in JOBS.items():
            able = [each for each in everybody if hasattr(each, job.method)]
            fewer = job.per_call in (0, BATCH)
            seconds = race(job, able, standing, rounds // 4 + 2 if fewer else rounds)
            ours = seconds.pop("slim")
            results[name] = {"slim": statistics.median(ours)}
            for other, theirs in seconds.items():
                ratios = [their / our for our, their in zip(ours, theirs)]
                results[name][other] = Ratio(*statistics.quantiles(ratios, n=4, method="inclusive"))
    return results


def goal(job: str, other: str) -> float:
    """What slim's rate, divided by the other's, is to be at the least."""
    if other == "KeyValue" and job.startswith("put"):
        # It has no index to write.
        return 0
    return {"floor": JOBS[job].floor, "first": JOBS[job].first}.get(other, 1)


def rows(title: str, results: Mapping[str, Any]) -> Iterator[list[str]]:
    for job, found in results.items():
        cells = [
            f"{found[other]}{' <' * (found[other].middle < goal(job, other))}"
            if other in found
            else ""
            for other in OTHERS
        ]
        yield [title, job, f"{found['slim'] * 1e6:,.0f}", *cells]


# ---- the picture ---------------------------------------------------------------------------------

COLOURS = ["#444444", "#999999", "#0072b2", "#cc79a7", "#e69f00", "#d55e00"]
TICKS = {0.25: "¼", 0.5: "½", 1: "1", 2: "2", 4: "4", 8: "8", 16: "16"}


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A panel for each server. A point is a median, a line the middle half of the rounds."""
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "slim", "font.size": 9})
    figure, panels = plt.subplots(
        1, len(results), figsize=(1 + 3.4 * len(results), 5), sharey=True, squeeze=False
    )
    for panel, (title, jobs) in zip(panels[0], results.items()):
        for row in range(0, len(jobs), 2):
            panel.axhspan(row - 0.5, row + 0.5, color="#f4f4f4", linewidth=0, zorder=-1)
        for number, (other, colour) in enumerate(zip(OTHERS, COLOURS)):
            found = {row: each[other] for row, each in enumerate(jobs.values()) if other in each}
            heights = [row + (number - 2.5) * 0.13 for row in found]
            ratios = found.values()
            lows, middles, highs = zip(*ratios) if ratios else ((), (), ())
            panel.hlines(heights, lows, highs, color=colour, linewidth=1.2)
            panel.plot(middles, heights, "o", color=colour, markersize=4, label=other)
        panel.axvline(1, color="#009e73", linewidth=1.2, zorder=0)
        panel.set(title=title, xscale="log", xticks=list(TICKS), xticklabels=TICKS.values())
        panel.set(xlim=(0.2, 20), ylim=(len(jobs) - 0.5, -0.5))
        panel.set(yticks=range(len(jobs)), yticklabels=jobs)
        panel.set_xlabel("← slim is slower        slim is faster →")
        panel.minorticks_off()
        panel.tick_params(axis="y", length=0)
        panel.spines[["top", "right", "left"]].set_visible(False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.suptitle("slim's rate divided by that of others")
    figure.legend(handles, labels, loc="lower center", ncols=len(OTHERS), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, metadata={"Date": None, "Creator": None})


# ---- the program ---------------------------------------------------------------------------------


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "tests/run bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=["table", *growth.PARTS], default="table")
    parser.add_argument("--server", action="append", help="on this kind alone; may be repeated")
    parser.add_argument("--rounds", type=int, default=30, help="of the table")
    parser.add_argument("--entities", type=int, default=100_000, help="the most, of other parts")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    parts = [options.parts] if isinstance(options.parts, str) else options.parts
    start = time.monotonic()
    print(f"{os.cpu_count()} processors, Python {platform.python_version()}", flush=True)
    named = os.environ.get("SLIM_SERVER")
    wanted = options.server or kinds()
    results = {}
    for server in [Named(named)] if named else map(Server, wanted):
        with server:
            title = f"{server.kind} {server.query('SELECT VERSION()')[0][0].split('-')[0]}"
            for part in parts:
                print(f"\n{title}: {part}\n", flush=True)
                if part == "table":
                    results[title] = compare(server, options.rounds, 2_000)
                    body = list(rows(title, results[title]))
                    print(table(["server", "job", "slim, µs", *OTHERS], body), flush=True)
                else:
                    growth.PARTS[part](server, options.entities)
    if results:
        draw(results, HERE / "bench.svg")
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
