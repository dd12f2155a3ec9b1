"""What the benchmarks store: real documents, which are the demonstration's, and synthetic ones of about 300 bytes."""

from __future__ import annotations

import pickle
import random
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

import demo

USERS = 20  # documents of one user: what `find` finds
WORDS = (
    "the quick brown fox jumps over a lazy dog while every entity keeps its own small story of words told "
    "in many ways to whoever asks for it by name"
).split()
CITIES = ["Berlin", "Paris", "Rome", "Lagos", "Quito", "Osaka", "Tromsø", "Zürich"]
PROPERTIES: dict[str, type] = {
    "user_id": str,
    "city": str,
    "born": int,
}  # what is indexed, each by its own index
LEVELS = 1, 3, 6, 9


def ordered_id(number: int) -> str:
    """An id that sorts by its making, as those do that slim assigns."""
    return str(uuid.UUID(int=(time.time_ns() << 64) + (number << 32) + random.getrandbits(32)))


def random_id(number: int) -> str:
    return str(uuid.uuid4())


def synthetic(count: int, make_id: Any = ordered_id) -> list[dict[str, Any]]:
    """Each user has USERS of them."""
    users = [f"user-{uuid.uuid4()}" for _ in range(-(-count // USERS))]
    return [
        {
            "id": make_id(number),
            "user_id": users[number % len(users)],
            "city": random.choice(CITIES),
            "born": random.randrange(1920, 2020),
            "title": " ".join(random.choices(WORDS, k=5)),
            "text": " ".join(random.choices(WORDS, k=18)),
            "likes": random.randrange(100),
            "tags": random.sample(WORDS, 3),
        }
        for number in range(count)
    ]


def stream(count: int, make_id: Any = ordered_id) -> Iterator[dict[str, Any]]:
    for start in range(0, count, 1000):
        yield from synthetic(min(1000, count - start), make_id)


def real() -> list[dict[str, Any]]:
    """The demonstration's documents, with the three properties that the benchmarks index."""
    found = demo.library(progress=lambda paths, total: paths)
    return [
        {
            **document,
            "id": ordered_id(number),
            "user_id": document["package"],
            "city": document["kind"],
            "born": document.get("lines", 0),
        }
        for number, document in enumerate(found)
    ]


def levels(title: str, documents: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Rows of a table: zlib's level, bytes of a document, and microseconds of CPU to compress and decompress one, at best."""
    pickles = [pickle.dumps(document, 5) for document in documents]
    bodies = {level: [zlib.compress(data, level) for data in pickles] for level in LEVELS}
    times: dict[int, list[list[float]]] = {level: [] for level in LEVELS}
    for _ in range(7):
        for level in LEVELS:  # in turn: what else the machine does hits all alike
            start = time.thread_time()
            for data in pickles:
                zlib.compress(data, level)
            middle = time.thread_time()
            for body in bodies[level]:
                zlib.decompress(body)
            times[level].append([middle - start, time.thread_time() - middle])
    return [
        [
            title,
            round(mean(map(len, pickles))),
            level,
            round(mean(map(len, bodies[level]))),
            *(f"{min(column) / len(pickles) * 1e6:.1f}" for column in zip(*times[level])),
        ]
        for level in LEVELS
    ]
