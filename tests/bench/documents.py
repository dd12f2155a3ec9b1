"""What the benchmarks store: real documents, which are the demonstration's, and synthetic ones of about 300 bytes."""
from __future__ import annotations

import pickle
import random
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import demo

USERS = 20                      # documents of one user: what `find` finds
WORDS = ("the quick brown fox jumps over a lazy dog while every entity keeps its own small story of words told "
         "in many ways to whoever asks for it by name").split()
CITIES = ["Berlin", "Paris", "Rome", "Lagos", "Quito", "Osaka", "Tromsø", "Zürich"]
PROPERTIES: dict[str, type] = {"user_id": str, "city": str, "born": int}    # what is indexed, each by its own index
LEVELS = 1, 3, 6, 9


def ordered_id(number: int) -> str:
    """An id that sorts by its making, as those do that slim assigns."""
    return str(uuid.UUID(int=(time.time_ns() << 64) + (number << 32) + random.getrandbits(32)))


def random_id(number: int) -> str:
    return str(uuid.uuid4())


def synthetic(count: int, make_id: Any = ordered_id) -> list[dict[str, Any]]:
    """Each user has USERS of them."""
    users = [f"user-{uuid.uuid4()}" for _ in range(-(-count // USERS))]
    return [{"id": make_id(number), "user_id": users[number % len(users)], "city": random.choice(CITIES),
             "born": random.randrange(1920, 2020), "title": " ".join(random.choices(WORDS, k=5)),
             "text": " ".join(random.choices(WORDS, k=18)), "likes": random.randrange(100),
             "tags": random.sample(WORDS, 3)} for number in range(count)]


def stream(count: int, make_id: Any = ordered_id) -> Iterator[dict[str, Any]]:
    for start in range(0, count, 1000):
        yield from synthetic(min(1000, count - start), make_id)


def real() -> list[dict[str, Any]]:
    """The demonstration's documents, with the three properties that the benchmarks index."""
    found = demo.library(progress=lambda paths, total: paths)
    return [{**document, "id": ordered_id(number), "user_id": document["package"], "city": document["kind"],
             "born": document.get("lines", 0)} for number, document in enumerate(found)]


def levels(documents: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Rows of a table: zlib's level, bytes for each document, and microseconds to compress and decompress one."""
    pickles = [pickle.dumps(document, 5) for document in documents[:2000]]
    rows = []
    for level in LEVELS:
        bodies = [zlib.compress(data, level) for data in pickles]
        rows.append([level, sum(map(len, bodies)) / len(bodies), _fastest(lambda data: zlib.compress(data, level), pickles),  # noqa: B023
                     _fastest(zlib.decompress, bodies)])
    return rows


def _fastest(function: Any, arguments: Sequence[Any]) -> float:
    """Microseconds of a call, in the fastest of five runs."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for argument in arguments:
            function(argument)
        times.append(time.perf_counter() - start)
    return min(times) / len(arguments) * 1e6
