"""What the other tests stand on: private servers that come back after a kill, and a proxy that counts and cuts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import MySQLdb
import pytest
from proxy import Proxy, _Connection, after_bytes, at_reply, at_request
from server import TITLES, Named, Server, kinds, untested, why_not


@pytest.fixture
def proxy(server: Named) -> Iterator[Proxy]:
    if "unix_socket" in server.connect:
        pytest.skip("the proxy stands before a TCP port")
    with Proxy(server.connect["host"], server.connect.get("port", 3306)) as proxy:
        yield proxy


@pytest.fixture
def connection(proxy: Proxy, connect: dict[str, Any]) -> Iterator[Any]:
    through = {**connect, "host": "127.0.0.1", "port": proxy.port, "ssl_mode": "DISABLED"}
    connection = MySQLdb.connect(**through, autocommit=True)
    connection.query("CREATE TABLE t (n INT PRIMARY KEY)")
    proxy.requests = 0
    yield connection
    connection.close()


def test_server_comes_back_after_kill_with_its_data_on_its_port(server: Named) -> None:
    if not isinstance(server, Server):
        pytest.skip("a named server is not killed")
    with Server(server.name, ["--max-connections=77"]) as own:
        own.query("CREATE DATABASE kept")
        own.kill()
        with pytest.raises(MySQLdb.OperationalError):
            own.query("SELECT 1")
        own.start()
        assert own.query("SHOW DATABASES LIKE 'kept'") == [("kept",)]
        assert own.query("SELECT @@max_connections") == [(77,)]


def test_server_that_cannot_start_tells_its_log(server: Named) -> None:
    if not isinstance(server, Server):
        pytest.skip("a named server is not started")
    with (
        pytest.raises(RuntimeError, match="no-such-option"),
        Server(server.name, ["--no-such-option=1"]),
    ):
        pass


def test_url_of_a_server_names_it(server: Named) -> None:
    assert Named(server.url).connect == server.connect


def test_proxy_counts_one_request_for_one_query_of_any_size(proxy: Proxy, connection: Any) -> None:
    for size in 1, 3 << 20:
        proxy.requests = 0
        with connection.cursor() as cursor:
            cursor.execute("SELECT LENGTH(%s)", ["x" * size])
            assert cursor.fetchall() == ((size,),)
        assert proxy.requests == 1


def test_proxy_delays_each_way_without_loss_of_throughput(proxy: Proxy, connection: Any) -> None:
    proxy.delay = 0.05
    start = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute("SELECT REPEAT('x', 1000000) UNION ALL SELECT REPEAT('y', 1000000)")
    assert 0.1 <= time.monotonic() - start < 0.5


@pytest.mark.parametrize(
    "cut, done",
    [
        (at_request(1, 0), False),
        (at_request(1, 0.5), False),
        (at_request(1, 1), True),
        (at_reply(1), True),
        (after_bytes(0, from_client=False), True),
    ],
)
def test_proxy_cuts_connection_where_told(
    proxy: Proxy, connection: Any, server: Named, connect: dict[str, Any], cut: Any, done: bool
) -> None:
    proxy.cut = cut
    with pytest.raises(MySQLdb.OperationalError):
        connection.query("INSERT INTO t VALUES (1)")
    deadline = time.monotonic() + (5 if done else 0.2)
    count = f"SELECT COUNT(*) FROM {connect['database']}.t"
    while server.query(count) != [(1,)] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.query(count) == [(int(done),)]


def test_proxy_that_is_slow_to_close_passes_no_reply_to_what_it_cut(
    proxy: Proxy, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close_late(self: Any) -> None:
        time.sleep(0.1)
        close(self)

    close = _Connection.close
    monkeypatch.setattr(_Connection, "close", close_late)
    proxy.cut = at_request(1, 1)
    with pytest.raises(MySQLdb.OperationalError):
        connection.query("DO 1")


@pytest.mark.parametrize("name", TITLES)
def test_server_of_each_name_is_started_or_there_is_a_reason(name: str) -> None:
    reason = why_not(name)
    if reason:
        assert f"{TITLES[name]} ({reason})" in untested()
        assert name not in kinds()
        with pytest.raises(RuntimeError, match=reason), Server(name):
            pass
        return
    with Server(name) as own:
        ((version,),) = own.query("SELECT VERSION()")
    assert ("MariaDB" in version) == (own.kind == "mariadb") == name.startswith("mariadb")
    numbers = [int(number) for number in version.split("-")[0].split(".")]
    assert name != "mariadb-11.8" or numbers >= [11, 8]


@pytest.mark.parametrize(
    "version, untested",
    [
        ("10.11.6", ["MySQL (no Docker engine)", "MariaDB 11.8 (no Docker engine)"]),
        ("11.8.3", ["MySQL (no Docker engine)"]),
        ("12.0.2", ["MySQL (no Docker engine)"]),
    ],
)
def test_server_that_cannot_be_started_is_named_at_the_end(
    tmp_path: Path, version: str, untested: list[str]
) -> None:
    lines = collect_beside(tmp_path, version).splitlines()
    named = [line for line in lines if line.startswith("not tested here")]
    assert named == [f"not tested here: {each}" for each in untested]


def test_server_that_was_chosen_and_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    said = collect_beside(tmp_path, "10.11.6", "--server=mysql")
    assert "MySQL cannot be started here: no Docker engine" in said


def collect_beside(directory: Path, version: str, *options: str) -> str:
    """What pytest says where there are MariaDB of a version, no MySQL, and no Docker engine that answers."""
    programs = {
        "docker": "exit 1",
        "mariadbd": f"echo mariadbd  Ver {version}-MariaDB for Linux",
        "mysqld": f"echo mysqld  Ver {version}-MariaDB for Linux",
    }
    for name, script in programs.items():
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}
    env.pop("SLIM_SERVER", None)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", __file__, *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    return done.stdout + done.stderr
