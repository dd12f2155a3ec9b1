"""What a call costs: round trips, counted by a proxy as packets of the client that ask for something."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from proxy import Proxy
from server import Named

import slim


@pytest.fixture
def proxy(server: Named) -> Iterator[Proxy]:
    if "unix_socket" in server.connect:
        pytest.fail("the proxy stands before a TCP port: name a server by host and port")
    with Proxy(server.connect["host"], server.connect.get("port", 3306)) as proxy:
        yield proxy


@pytest.fixture
def far(proxy: Proxy, connect: dict[str, Any]) -> Iterator[slim.Datastore]:
    """A store behind the proxy, with an entity in it."""
    with slim.Datastore(
        **{**connect, "host": "127.0.0.1", "port": proxy.port, "ssl_mode": "DISABLED"}
    ) as store:
        store.put({"id": "x", "p0": "bob"})
        yield store


@pytest.mark.parametrize("indexes", [0, 3, 10])
def test_writes_are_one_round_trip_whatever_the_number_of_indexes(
    proxy: Proxy, far: slim.Datastore, indexes: int
) -> None:
    for number in range(indexes):
        far.add_index(slim.Index(f"index_{number}", f"p{number}", unique=number == 2))
    entity = {"id": "y", **{f"p{number}": "bob" for number in range(10)}}
    # A sharded server has learned of them when this returns, and the connection that added them said goodbye.
    far.put(entity)
    time.sleep(0.3)
    for write in (
        lambda: far.put(entity),
        lambda: far.put({**entity, "p1": "amy"}),
        lambda: far.put({"p0": "new"}),
        lambda: far.put_many({**entity, "id": str(n), "p2": str(n)} for n in range(100)),
        lambda: far.put_many({"id": f"k{n % 2}", "p3": str(n)} for n in range(100)),
    ):
        proxy.requests = 0
        write()
        assert proxy.requests == 1


def test_conditional_writes_are_at_most_two(proxy: Proxy, far: slim.Datastore) -> None:
    far.add_index(slim.Index("index_0", "p0"))

    def version() -> int:
        requests, stored = proxy.requests, far.get("x")
        proxy.requests = requests  # this one does not count
        return stored.version if stored else 0

    for write in (
        lambda: far.put({"id": "y"}, expect=0),
        lambda: far.put({"id": "x"}, expect=version()),
        lambda: far.update("x", lambda entity: entity.update(n=1)),
        lambda: far.delete("x", expect=version()),
        lambda: far.delete("y"),
    ):
        proxy.requests = 0
        write()
        assert 1 <= proxy.requests <= 2


def test_reads_are_one_round_trip(proxy: Proxy, far: slim.Datastore) -> None:
    by_name = far.add_index(slim.Index("index_0", "p0"))
    ids = [f"e{number}" for number in range(50)]
    far.put_many({"id": id, "p0": "bob"} for id in ids)
    for read in (
        lambda: far.get("x"),
        lambda: far.get_many(ids),
        lambda: by_name.get_all(far, p0="bob"),
        lambda: far.get("nobody"),
        lambda: by_name.count(far, p0="bob"),
        lambda: list(by_name.find(far, {"p0": "bob"}, limit=20)),
        lambda: "x" in far,
        lambda: len(far),
    ):
        proxy.requests = 0
        read()
        assert proxy.requests == 1


def test_a_query_is_one_round_trip_for_each_page_of_250(
    proxy: Proxy, far: slim.Datastore, store: slim.Datastore
) -> None:
    by_name = far.add_index(slim.Index("index_0", "p0"))
    store.put_many({"p0": "amy"} for _ in range(600))  # not through the proxy
    proxy.requests = 0
    assert len(by_name.get_all(far, p0="amy")) == 600
    assert proxy.requests == 3
