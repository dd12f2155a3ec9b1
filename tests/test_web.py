"""The README's web application, under an HTTP server with forked workers, each with threads."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socketserver
import threading
import time
import wsgiref.simple_server
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import MySQLdb
import pytest
from proxy import proxied
from test_readme import BLOCKS, README, of_account

import slim

WORKERS = 3
CLIENTS = 8
REQUESTS = 12


class Threaded(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True
    request_queue_size = 100


class Handler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """A test's output has no log of requests."""


@pytest.fixture
def module(connect: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the README's module defines once it is imported."""
    (text,) = [block.text for block in BLOCKS if "def application" in block.text]
    names = {"connect": connect}
    exec(compile(of_account(text), "README.md", "exec"), names)
    yield names
    names["store"].close()


def start_worker(server: Threaded) -> int:
    """Forks a process that serves, and never returns. Returns its id."""
    worker = os.fork()
    if worker == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            server.serve_forever()
        finally:
            os._exit(1)
    return worker


@pytest.fixture
def port(module: dict[str, Any]) -> Iterator[int]:
    """The port of the application. Its workers are forked after the module was imported, and used."""
    module["store"].put({"user_id": "parent", "text": "before the fork"})
    with wsgiref.simple_server.make_server(
        "127.0.0.1", 0, module["application"], Threaded, Handler
    ) as server:
        workers = [start_worker(server) for _ in range(WORKERS)]
        yield server.server_port
        for worker in workers:
            os.kill(worker, signal.SIGTERM)
            os.waitpid(worker, 0)


def call(port: int, method: str, user: str, text: str | None = None) -> list[str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, f"/{user}", text)
    response = connection.getresponse()
    assert response.status == 200
    return list(json.loads(response.read()))


def test_threads_and_forked_workers_lose_nothing(module: dict[str, Any], port: int) -> None:
    def write(client: int) -> None:
        for number in range(REQUESTS):
            assert f"{client}.{number}" in call(port, "POST", "bob", f"{client}.{number}")

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(write, range(CLIENTS)))
    sent = sorted([f"{client}.{n}" for client in range(CLIENTS) for n in range(REQUESTS)])
    assert sorted(call(port, "GET", "bob")) == sent
    # The parent's own connection has been left alone by its children.
    assert len(module["store"]) == len(sent) + 1
    assert call(port, "GET", "parent") == ["before the fork"]


def test_calls_of_asyncio_tasks_run_beside_each_other_in_threads(
    store: slim.Datastore,
) -> None:
    key = store.put({"count": 0})

    def add() -> int:
        with store.transaction():
            store.put({"thread": threading.get_ident()})
        store.update(key, lambda entity: entity.update(count=entity["count"] + 1))
        return threading.get_ident()

    async def main() -> set[int]:
        return {*await asyncio.gather(*[asyncio.to_thread(add) for _ in range(10)])}

    assert len(asyncio.run(main())) > 1
    assert (store.get(key) or {})["count"] == 10 == len(store) - 1


def test_no_call_hangs_in_a_silent_network_with_the_timeouts_that_the_readme_names(
    connect: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The README's are longer: a test does not wait for a minute.
    assert "`connect_timeout=10, read_timeout=60`" in README
    monkeypatch.setattr(slim, "RETRY_SECONDS", 1)
    with proxied(connect) as (proxy, through):
        with slim.Datastore(**through, connect_timeout=1, read_timeout=1) as store:
            store.put({"id": "a"})
            proxy.delay = 4
            start = time.monotonic()
            with pytest.raises(MySQLdb.OperationalError):
                store.get("a")
            with pytest.raises((MySQLdb.OperationalError, slim.Unknown)):
                store.put({"id": "a"})
            assert time.monotonic() - start < 20
