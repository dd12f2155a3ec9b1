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
Report = Callable[[str], None]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes"
    path.mkdir()
    return path


@pytest.fixture
def own_server(server: Named) -> Iterator[Server]:
    """One that may be killed."""
    with Server(server.name) as own:
        own.query("CREATE DATABASE crash")
        yield own


@pytest.fixture
def report(capfd: pytest.CaptureFixture[str], server: Named) -> Report:
    def report(text: str) -> None:
        with capfd.disabled():
            print(f"\n{server.name}: {text}", flush=True)

    return report


def make_tables(connect: dict[str, Any]) -> None:
    slim.Datastore(**connect, indexes=load.INDEXES).close()


def acknowledged(notes: Path) -> int:
    return sum(file.read_bytes().count(b"\tdone\n") for file in notes.iterdir())


def audit(
    connect: dict[str, Any], notes: Path, text: str, seconds: float, report: Report
) -> load.Audit:
    with queries(connect) as query:
        # The server ends what a killed client has left.
        until(lambda: not sessions(query))
    found = load.Audit(connect, notes)
    report(
        f"{text} in {seconds:.0f} s: {found.done:,} acknowledged writes, "
        f"{found.unknown} of unknown outcome, {len(found.wrong)} lost or bent, "
        f"{len(wrong(connect))} index rows wrong, "
        f"{sum(found.errors.values())} errors raised"
    )
    assert found.wrong == []
    assert wrong(connect) == []
    return found


@pytest.mark.timeout(3600)
def test_client_killed_at_any_moment_loses_nothing_acknowledged(
    connect: dict[str, Any], notes: Path, long: bool, report: Report
) -> None:
    kills, writes = (300, 10_000) if long else (20, 200)
    make_tables(connect)
    begun = time.monotonic()
    names = (f"c{n}" for n in itertools.count())
    clients: list[BaseProcess] = []
    killed = 0
    while killed < kills or acknowledged(notes) < writes:
        while len(clients) < CLIENTS:
            clients.append(load.start(connect, next(names), notes))
        # The moment is not to be one that we choose.
        time.sleep(random.uniform(0.05, 0.4))
        victim = clients.pop(random.randrange(len(clients)) if killed % 3 else 0)
        victim.kill()
        victim.join()
        killed += 1
    for client in clients:
        client.kill()
        client.join()
    text = f"{killed + CLIENTS} clients killed"
    found = audit(connect, notes, text, time.monotonic() - begun, report)
    # Only a block is not repeated by slim.
    assert not [text for text in found.errors if not text.startswith("transaction: ")]


@pytest.mark.timeout(3600)
def test_server_killed_under_load_loses_nothing_acknowledged_and_clients_go_on(
    own_server: Server, notes: Path, long: bool, report: Report
) -> None:
    kills, writes = (15, 10_000) if long else (2, 200)
    connect = {**own_server.connect, "database": "crash"}
    make_tables(connect)
    begun = time.monotonic()
    clients = [load.start(connect, f"c{n}", notes) for n in range(CLIENTS)]
    for killed in range(1, kills + 1):
        done = acknowledged(notes)
        until(lambda done=done: acknowledged(notes) > done + 50, seconds=60)
        while acknowledged(notes) < writes * killed / kills:
            time.sleep(random.uniform(0, 0.3))
        own_server.kill()
        own_server.start()
    for client in range(CLIENTS):
        file = notes / f"c{client}"
        done = file.read_bytes().count(b"\tdone\n")
        until(lambda file=file, done=done: file.read_bytes().count(b"\tdone\n") > done, seconds=60)
    (notes / "stop").touch()
    for client in clients:
        client.join()
        assert client.exitcode == 0
    (notes / "stop").unlink()
    text = f"server killed {kills} times under {CLIENTS} clients"
    found = audit(connect, notes, text, time.monotonic() - begun, report)
    blocks = [text for text in found.errors if not text.startswith("transaction: ")]
    assert not [text for text in blocks if ": Unknown: " not in text]
