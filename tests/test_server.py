"""What the other tests stand on: private servers that come back after a kill, and a proxy that counts and cuts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import MySQLdb
import pytest
from proxy import Proxy, after_bytes, at_reply, at_request
from server import Named, Server


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
    with Server(server.kind, ["--max-connections=77"]) as own:
        own.query("CREATE DATABASE kept")
        own.kill()
        with pytest.raises(MySQLdb.OperationalError):
            own.query("SELECT 1")
        own.start()
        assert own.query("SHOW DATABASES LIKE 'kept'") == [("kept",)]
        assert own.query("SELECT @@max_connections") == [(77,)]


def test_server_that_cannot_start_tells_its_log() -> None:
    with (
        pytest.raises(RuntimeError, match="no-such-option"),
        Server("mariadb", ["--no-such-option=1"]),
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
