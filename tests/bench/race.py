"""Interleaved rounds: everybody does a few calls of a job in turn, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

Calls = Sequence[Any]


class Job(NamedTuple):
    """`method` of each contestant is called with each of the arguments that `make(contestant, round)` has prepared."""

    name: str
    method: str
    make: Callable[[Any, int], Calls]
    rounds: int
    per_call: int = 1  # documents of a call
    threads: int = 1
    against: Sequence[str] | None = None


class Ratio(NamedTuple):
    """slim's rate divided by another's, or another's time by slim's: the median of the rounds, and their middle half."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}–{self.high:.2f})"


def race(job: Job, contestants: Sequence[Any]) -> dict[str, list[float]]:
    """Seconds for each document, by contestant and round. The first round warms up, and is not told."""
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for number in range(-1, job.rounds):
        shift = number % len(contestants)
        for contestant in [*contestants[shift:], *contestants[:shift]]:
            shares = [job.make(contestant, number) for _ in range(job.threads)]
            took = run(getattr(contestant, job.method), shares)
            if number >= 0:
                seconds[contestant.name].append(took / sum(map(len, shares)) / job.per_call)
    return seconds


def run(function: Callable[[Any], Any], shares: Sequence[Calls]) -> float:
    """Seconds until each thread has made the calls of its share. Connections are open by then."""
    if len(shares) == 1:
        return work(function, shares[0])
    barrier = threading.Barrier(len(shares), timeout=60)

    def thread(share: Calls) -> tuple[float, float]:
        try:
            work(function, share[:1])
        except BaseException:
            barrier.abort()
            raise
        barrier.wait()
        start = time.perf_counter()
        work(function, share)
        return start, time.perf_counter()

    with ThreadPoolExecutor(len(shares)) as pool:
        times = list(pool.map(thread, shares))
    return max(end for _, end in times) - min(start for start, _ in times)


def work(function: Callable[[Any], Any], share: Calls) -> float:
    start = time.perf_counter()
    for argument in share:
        function(argument)
    return time.perf_counter() - start


def ratio(slim: Sequence[float], other: Sequence[float]) -> Ratio:
    ratios = [theirs / ours for ours, theirs in zip(slim, other)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(middle, low, high)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """In Markdown, with aligned columns."""
    texts = [
        list(head),
        *(
            [
                f"{cell:,.4g}"
                if type(cell) is float
                else f"{cell:,}"
                if type(cell) is int
                else f"{cell}"
                for cell in row
            ]
            for row in rows
        ),
    ]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    texts.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
        for row in texts
    )
