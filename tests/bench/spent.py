"""Where the time of a call goes: the codec, escaping, the rest of slim, and the server with the driver that waits for it."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import documents
from contestants import BATCH, Slim
from floor import Floor
from MySQLdb.connections import Connection
from race import table
from server import Named

import slim

STANDING = 4_000
WAITING = "query", "next_result", "store_result"  # the driver's, which wait for the server


@contextmanager
def watched() -> Iterator[list[Any]]:
    """[seconds that this process waits in the driver, *what it sends]"""
    found: list[Any] = [0.0]

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            found.extend(args[1:])
            start = time.perf_counter()
            try:
                return method(*args)
            finally:
                found[0] += time.perf_counter() - start

        return call

    with ExitStack() as stack:
        for name in WAITING:
            stack.enter_context(
                mock.patch.object(Connection, name, timed(getattr(Connection, name)))
            )
        yield found


def show(server: Named, contest: Callable[..., Any]) -> None:
    """Codec and escaping are timed by themselves after each call, when the caches are as cold as in it."""
    standing = documents.synthetic(STANDING)
    bodies = {each["id"]: slim.encode(each) for each in standing}
    of_user: dict[str, list[bytes]] = {}
    for each in standing:
        of_user.setdefault(each["user_id"], []).append(bodies[each["id"]])
    with contest(server, [Slim, Floor], standing) as (ours, floor):
        escape = floor.connection.escape_string

        def encode(entities: Sequence[Any]) -> list[bytes]:
            return [slim.encode(each) for each in entities]

        def decode(found: Sequence[bytes]) -> None:
            for body in found:
                slim.decode(body)

        reads = [
            row(name, size, getattr(ours, name), getattr(floor, name), decode, None, calls)
            for name, size, calls in (
                ("get", 1, [(id, id, [bodies[id]]) for id in random.sample(sorted(bodies), 400)]),
                ("find", documents.USERS, [(user, user, found) for user, found in of_user.items()]),
                ("scan", STANDING, [(None, None, [*bodies.values()])] * 9),
            )
        ]
        writes = []
        # A single batch: of more, one is prepared while another is written, and the parts do not add up.
        for name, size, count in ("put", 1, 200), ("put_many", BATCH, 12):
            calls = [
                (new := documents.synthetic(size), floor.ready(documents.synthetic(size)), new)
                for _ in range(count)
            ]
            writes.append(row(name, size, getattr(ours, name), floor.put, encode, escape, calls))
    print(f"\n### {server.kind}: where the time goes, three indexes\n")
    print(
        table(
            [
                "µs for each entity",
                "slim",
                "pickle and zlib",
                "escaping",
                "other Python",
                "server and driver",
                "floor",
                "of the floor's rate",
                "of a floor that encodes too",
            ],
            [*writes, *reads],
        ),
        flush=True,
    )


def row(
    name: str,
    size: int,
    ours: Any,
    floor: Any,
    codec: Any,
    escape: Any,
    calls: Sequence[tuple[Any, Any, Any]],
) -> list[Any]:
    """Means over the calls of middle length. calls: what slim's takes, the floor's, and the codec."""
    parts, floors = [], []
    for number, (mine, theirs, coded) in enumerate(calls):
        if number % 2:  # each has the other before it as often
            floors.append(seconds(floor, theirs))
        with watched() as waited:
            total = seconds(ours, mine)
        coding = seconds(codec, coded)
        escaping = sum(seconds(escape, body) for body in codec(coded)) if escape else 0.0
        parts.append([total, coding, escaping, total - coding - escaping - waited[0], waited[0]])
        if not number % 2:
            floors.append(seconds(floor, theirs))
    parts.sort()
    middle = parts[len(parts) // 4 : -(len(parts) // 4)]
    total, coding, escaping, *_ = means = [
        sum(column) / len(middle) / size * 1e6 for column in zip(*middle)
    ]
    bare = statistics.median(floors) / size * 1e6
    encoding = f"{(bare + coding + escaping) / total:.2f}" if escape else ""
    return [
        name,
        *(f"{mean:,.1f}" if mean else "" for mean in [*means, bare]),
        f"{bare / total:.2f}",
        encoding,
    ]


def seconds(function: Callable[[Any], Any], argument: Any) -> float:
    start = time.perf_counter()
    function(argument)
    return time.perf_counter() - start
