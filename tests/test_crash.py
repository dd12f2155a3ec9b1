"""kill -9 of clients and of the server under load: nothing acknowledged is lost, nothing half done is seen.

`--long` kills 300 clients and the server 15 times, and goes on to 10,000 acknowledged writes.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import load
import pytest
from check import queries, sessions, until, wrong
from server import Named, Server

import slim

CLIENTS = 4


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes"
    path.mkdir()
    return path


@pytest.fixture
def own_server(server: Named) -> Iterator[Server]:
    if not isinstance(server, Server):
        pytest.skip("a named server is not killed")
    with Server(server.kind) as own:
        own.query("CREATE DATABASE crash")
        yield own


def make_tables(connect: dict[str, Any]) -> None:
    slim.Datastore(**connect, indexes=load.INDEXES, history=True).close()


def acknowledged(notes: Path) -> int:
    return sum(file.read_bytes().count(b"\tdone\n") for file in notes.iterdir())


def audit(
    connect: dict[str, Any], notes: Path, text: str, seconds: float, report: Callable[[str], None]
) -> load.Audit:
    with queries(connect) as query:
        until(lambda: not sessions(query))  # the server ends what a killed client has left
    found = load.Audit(connect, notes)
    report(
        f"{text} in {seconds:.0f} s: {found.done:,} acknowledged writes, {found.unknown} of unknown outcome, "
        f"{len(found.wrong)} lost or bent, {len(wrong(connect))} index rows or versions wrong, "
        f"{sum(found.errors.values())} errors raised"
    )
    assert found.wrong == []
    assert wrong(connect) == []
    return found


@pytest.fixture
def report(capfd: pytest.CaptureFixture[str], server: Named) -> Callable[[str], None]:
    def report(text: str) -> None:
        with capfd.disabled():
            print(f"\n{server.kind}: {text}", flush=True)

    return report


def test_client_killed_at_any_moment_loses_nothing_acknowledged(
    connect: dict[str, Any], notes: Path, long: bool, report: Callable[[str], None]
) -> None:
    kills, writes = (300, 10_000) if long else (20, 200)
    make_tables(connect)
    begun, names = time.monotonic(), (f"c{n}" for n in itertools.count())
    clients: list[BaseProcess] = []
    killed = 0
    while killed < kills or acknowledged(notes) < writes:
        while len(clients) < CLIENTS:
            clients.append(load.start(connect, next(names), notes))
        time.sleep(random.uniform(0.05, 0.4))  # the moment is not to be one that we choose
        victim = clients.pop(random.randrange(len(clients)) if killed % 3 else 0)
        victim.kill()
        victim.join()
        killed += 1
    for client in clients:
        client.kill()
        client.join()
    found = audit(
        connect, notes, f"{killed + CLIENTS} clients killed", time.monotonic() - begun, report
    )
    assert not [text for text in found.errors if not text.startswith(("transaction: ", "hot"))]


def test_server_killed_under_load_loses_nothing_acknowledged_and_clients_go_on(
    own_server: Server, notes: Path, long: bool, report: Callable[[str], None]
) -> None:
    kills, writes = (15, 10_000) if long else (2, 200)
    connect = {**own_server.connect, "database": "crash"}
    make_tables(connect)
    begun = time.monotonic()
    clients = [load.start(connect, f"c{n}", notes) for n in range(CLIENTS)]
    for killed in range(1, kills + 1):
        done = acknowledged(notes)
        until(lambda done=done: acknowledged(notes) > done + 50)
        while acknowledged(notes) < writes * killed / kills:
            time.sleep(random.uniform(0, 0.3))
        own_server.kill()
        own_server.start()
    for client in range(CLIENTS):
        done = (notes / f"c{client}").read_bytes().count(b"\tdone\n")
        until(
            lambda client=client, done=done: (
                (notes / f"c{client}").read_bytes().count(b"\tdone\n") > done
            )
        )
    (notes / "stop").touch()
    for client in clients:
        client.join()
        assert client.exitcode == 0
    (notes / "stop").unlink()
    audit(
        connect,
        notes,
        f"server killed {kills} times under {CLIENTS} clients",
        time.monotonic() - begun,
        report,
    )
