"""Histories of clients under faults: six processes of three threads, and what happens to them meanwhile.

    python tests/linearizable/faults.py [--plain] SERVER FAULT SECONDS [FOLDER]

SERVER is a name that tests/server.py knows, FAULT is none, clients, server or connections. The
histories and pictures of what is wrong go to FOLDER, and the judge's verdict is printed. --plain
starts MariaDB without a binary log. The clients use the slim that PYTHONPATH leads to.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import MySQLdb

if __package__ is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from check import Query, queries, sessions
from linearizable.judge import judge
from server import TITLES, Server

CLIENT = Path(__file__).resolve().parent / "client.py"
CLIENTS = 6
# How long all of them work before something happens, and after it.
CALM_SECONDS = 1.5
# How long slim tries again, and some more.
END_SECONDS = 60
# What makes MariaDB's transactions durable before they are seen.
DURABLE = ["--log-bin=binlog", "--sync-binlog=1"]

Fault = Callable[["Clients", Server, float], int]


class Clients:
    """Processes that call slim, with their notes in a folder. At the end of the context they have stopped."""

    def __init__(self, connect: dict[str, Any], folder: Path) -> None:
        self.connect = connect
        self.folder = folder
        self._names = (f"c{number}" for number in itertools.count())
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Clients:
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(CLIENTS):
            self.start()
        deadline = time.monotonic() + END_SECONDS
        while len(self.files) < CLIENTS or not all(file.stat().st_size for file in self.files):
            assert time.monotonic() < deadline, "a client does not start"
            time.sleep(0.05)
        return self

    def __exit__(self, *exc_info: object) -> None:
        (self.folder / "stop").touch()
        try:
            statuses = [process.wait(END_SECONDS) for process in self._processes]
        finally:
            for process in self._processes:
                process.kill()
        assert not any(statuses), f"a client has failed: {statuses}"

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    def start(self) -> None:
        name = next(self._names)
        path = self.folder / f"{name}.jsonl"
        arguments = [name, str(path), json.dumps(self.connect)]
        self._processes.append(subprocess.Popen([sys.executable, str(CLIENT), *arguments]))

    def kill_one(self) -> None:
        """SIGKILL to one that works, and another in its place."""
        victim = self._processes.pop(random.randrange(len(self._processes)))
        victim.kill()
        victim.wait()
        self.start()


def none(clients: Clients, server: Server, seconds: float) -> int:
    time.sleep(seconds)
    return 0


def kill_clients(clients: Clients, server: Server, seconds: float) -> int:
    """SIGKILL of clients, one or two a second."""
    end = time.monotonic() + seconds
    kills = 0
    while time.monotonic() < end:
        time.sleep(random.uniform(0.5, 1))
        clients.kill_one()
        kills += 1
    return kills


def kill_server(clients: Clients, server: Server, seconds: float) -> int:
    """SIGKILL of the server, which starts again at once."""
    end = time.monotonic() + seconds
    kills = 0
    while time.monotonic() < end or not kills:
        time.sleep(random.uniform(CALM_SECONDS, 2 * CALM_SECONDS))
        server.kill()
        kills += 1
        server.start()
    time.sleep(CALM_SECONDS)
    return kills


def kill_connections(clients: Clients, server: Server, seconds: float) -> int:
    """KILL of sessions of the clients, some thirty a second."""
    end = time.monotonic() + seconds
    kills = 0
    with queries(clients.connect) as query:
        while time.monotonic() < end:
            time.sleep(random.uniform(0, 0.06))
            victims = sessions(query)
            kills += bool(victims) and kill(query, random.choice([*victims]))
    return kills


def kill(query: Query, id: int) -> bool:
    """Whether there was a session of this number still."""
    try:
        query(f"KILL {id}")
    except MySQLdb.OperationalError as error:
        # ER_NO_SUCH_THREAD
        if error.args[0] != 1094:
            raise
        return False
    return True


FAULTS: dict[str, Fault] = {
    "none": none,
    "clients": kill_clients,
    "server": kill_server,
    "connections": kill_connections,
}


class Report:
    """What came of the calls in these files: outcomes by number, errors by their text."""

    def __init__(self, files: Sequence[Path], kills: int, seconds: float) -> None:
        self.kills = kills
        self.seconds = seconds
        self.calls = 0
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        for file in files:
            for text in file.read_text().splitlines():
                line = json.loads(text)
                if "begin" in line:
                    self.calls += 1
                else:
                    self.outcomes[line["outcome"]] += 1
                if line.get("outcome") == "failed":
                    self.errors[line["error"]] += 1

    @property
    def killed(self) -> int:
        """Calls that their process did not survive."""
        return self.calls - self.outcomes.total()

    def __str__(self) -> str:
        outcomes = ", ".join(f"{self.outcomes[name]:,} {name}" for name in sorted(self.outcomes))
        return (
            f"{self.seconds:.0f} s, {self.kills} kills, {self.calls:,} calls: {outcomes}, "
            f"{self.killed} not ended {dict(self.errors) or ''}"
        ).rstrip()


def private(name: str) -> Server:
    """A server of this kind on which nobody sees what is not durable.

    By itself MariaDB's InnoDB shows what a COMMIT has done before it has written that to its log.
    Killed in between, the server takes back what others have read. With a binary log, as MySQL has
    it by default, the transaction is durable before it is seen.
    """
    return Server(name, [] if name == "mysql" else DURABLE)


def run(server: Server, fault: str, seconds: float, folder: Path) -> tuple[Report, list[Path]]:
    """Histories of clients in an empty database, in files in this folder."""
    database = f"linearizable_{random.getrandbits(64):x}"
    server.query(f"CREATE DATABASE {database}")
    begun = time.monotonic()
    with Clients({**server.connect, "database": database}, folder) as clients:
        kills = FAULTS[fault](clients, server, seconds)
    report = Report(clients.files, kills, time.monotonic() - begun)
    server.query(f"DROP DATABASE {database}")
    return report, clients.files


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("server", choices=TITLES)
    parser.add_argument("fault", choices=FAULTS)
    parser.add_argument("seconds", type=float)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--plain", action="store_true")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="slim-histories-"))
    with Server(asked.server) if asked.plain else private(asked.server) as server:
        report, files = run(server, asked.fault, asked.seconds, folder)
    print(f"{asked.server}, {asked.fault}: {report}")
    linearizable, verdicts = judge(files, folder)
    print(verdicts, end="")
    return not linearizable


if __name__ == "__main__":
    sys.exit(main())
