"""A network that is cut at every byte position that matters: done once, not done, or an error that it is not known."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import MySQLdb
import pytest
from check import queries, sessions, until, wrong
from proxy import Packet, Proxy, at_request
from server import Named

import slim

INDEXES = [slim.Index("index_n", {"n": int}), slim.Index("index_user", "user")]
OLD, NEW = {"id": "a", "n": 1, "user": "bob"}, {"id": "a", "n": 2, "user": "ann"}


@pytest.fixture
def proxy(server: Named) -> Iterator[Proxy]:
    if "unix_socket" in server.connect:
        pytest.skip("the proxy stands before a TCP port")
    with Proxy(server.connect["host"], server.connect.get("port", 3306)) as proxy:
        yield proxy


@pytest.fixture
def through(proxy: Proxy, connect: dict[str, Any]) -> dict[str, Any]:
    return {**connect, "host": "127.0.0.1", "port": proxy.port, "ssl_mode": "DISABLED"}


def put(store: slim.Datastore, version: int) -> None:
    store.put(NEW)


def put_expecting(store: slim.Datastore, version: int) -> None:
    store.put(NEW, expect=version)


def put_many(store: slim.Datastore, version: int) -> None:
    store.put_many([NEW, {"id": "b", "n": 2}])


def update(store: slim.Datastore, version: int) -> None:
    store.update("a", lambda entity: entity.update(NEW, n=entity["n"] + 1))


def transaction(store: slim.Datastore, version: int) -> None:
    with store.transaction():
        store.put(NEW)
        store.put({"id": "b", "n": 2})


def delete(store: slim.Datastore, version: int) -> None:
    store.delete("a")


def delete_expecting(store: slim.Datastore, version: int) -> None:
    store.delete("a", expect=version)


def get(store: slim.Datastore, version: int) -> None:
    assert store.get("a") == OLD


def positions(conversation: list[Packet]) -> list[tuple[int, int]]:
    """(packet, bytes of it that still pass): around its header, its command, each statement's end, and its own end."""
    found = []
    for number, packet in enumerate(conversation):
        size = len(packet.data)
        ends = (
            [n for n, byte in enumerate(packet.data) if byte == ord(";")]
            if packet.from_client
            else []
        )
        inside = (
            {0, 3, 4, 5, size // 2, size - 1, size, *ends, *(n + 1 for n in ends)}
            if packet.from_client
            else {0, size // 2}
        )
        found += [(number, keep) for keep in sorted(inside)]
    return found + [(len(conversation) - 1, len(conversation[-1].data))]


class CutAt:
    """Cuts once, in the packet of this number, after so many of its bytes; later connections go through."""

    def __init__(self, number: int, keep: int) -> None:
        self.number, self.keep, self.seen, self.done, self.lock = (
            number,
            keep,
            0,
            False,
            threading.Lock(),
        )

    def __call__(self, packet: Packet) -> int | None:
        with self.lock:
            self.seen += 1
            if self.done or self.seen <= self.number:
                return None
            self.done = True
            return self.keep


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize(
    "call", [put, put_expecting, put_many, update, transaction, delete, delete_expecting, get]
)
def test_call_that_is_cut_off_is_done_once_or_not_or_not_known(
    call: Callable[[slim.Datastore, int], None],
    history: bool,
    proxy: Proxy,
    through: dict[str, Any],
    connect: dict[str, Any],
) -> None:
    after = {
        "get": {"a": OLD},
        "delete": {},
        "delete_expecting": {},
        "put_many": {"a": NEW, "b": {"id": "b", "n": 2}},
        "transaction": {"a": NEW, "b": {"id": "b", "n": 2}},
    }.get(call.__name__, {"a": NEW})
    with (
        queries(connect) as query,
        slim.Datastore(**connect) as direct,
        contextlib.ExitStack() as stack,
    ):
        others = sessions(query)
        store = stack.enter_context(slim.Datastore(**through, indexes=INDEXES, history=history))
        conversation: list[Packet] = []

        def begin(cut: Any) -> int:
            direct.delete("b", history=True)
            direct.delete("a", history=True)
            direct.put(OLD)
            version = direct.get("a").version
            assert "a" in store  # and so has a connection
            proxy.cut = cut
            return version

        call(store, begin(conversation.append))
        proxy.cut = None
        for number, keep in positions(conversation):
            cut = CutAt(number, keep)
            version = begin(cut)
            mine, outcome = sessions(query) - others, "done"
            try:
                call(store, version)
            except slim.Unknown:
                outcome = "unknown"
            except MySQLdb.OperationalError:
                outcome = "not"
            until(lambda cut=cut: cut.done)
            proxy.cut = None
            until(
                lambda mine=mine: mine - sessions(query)
            )  # the server has let go of what was cut off
            where = f"{call.__name__} cut in packet {number} of {len(conversation)} after {keep} bytes: {outcome}"
            entities = direct.get_many(["a", "b"])
            allowed = {"done": [after], "not": [{"a": OLD}], "unknown": [after, {"a": OLD}]}[
                outcome
            ]
            assert entities in allowed, where
            if history:
                versions = [entity["n"] for entity in direct.history("a")]
                assert versions == [NEW["n"], OLD["n"]][entities.get("a", OLD) == OLD :], where
            assert wrong(connect) == [], where


def test_put_cut_off_while_it_waits_for_a_lock_is_done_once(
    proxy: Proxy, through: dict[str, Any], connect: dict[str, Any]
) -> None:
    """The server works on a request whose sender is gone; what slim repeats is not to be done beside it."""
    rival = MySQLdb.connect(**connect)
    with queries(connect) as query, contextlib.ExitStack() as stack:
        others = sessions(query)
        store = stack.enter_context(slim.Datastore(**through, history=True))
        store.put(OLD)
        rival.query("BEGIN")
        with rival.cursor() as cursor:
            cursor.execute("SELECT * FROM entities WHERE id = 'a' FOR UPDATE")
        proxy.requests, proxy.cut = 0, at_request(1, 1)
        before = sessions(query) - others
        writer = threading.Thread(target=store.put, args=[NEW])
        writer.start()
        until(lambda: proxy.requests > 1 and sessions(query) - before - others)
        proxy.cut = None
        rival.rollback()
        rival.close()
        writer.join()
        assert [entity["n"] for entity in store.history("a")] == [2, 1]
    assert wrong(connect) == []


def test_server_that_is_gone_is_an_error_of_the_driver_without_the_password(
    proxy: Proxy, through: dict[str, Any]
) -> None:
    proxy.cut = lambda packet: 0
    with pytest.raises(MySQLdb.OperationalError) as caught:
        slim.Datastore(**{**through, "password": "s3cret"})
    assert "s3cret" not in str(caught.value)


def test_put_lost_on_its_way_is_done_though_an_older_version_was_the_same(
    proxy: Proxy, through: dict[str, Any], connect: dict[str, Any]
) -> None:
    with slim.Datastore(**through, history=True) as store:
        for on in True, False:
            store.put({"id": "k", "on": on})
        proxy.requests, proxy.cut = 0, at_request(1, 0)
        store.put({"id": "k", "on": True})
        assert [entity["on"] for entity in store.history("k")] == [True, False, True]
        assert store.get("k")["on"] is True
