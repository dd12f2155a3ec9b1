"""A network that is cut at every byte of a packet: a write is done once, or not, or raises Unknown.

`--long` cuts at every byte of every call. Otherwise each call is cut at the ends of its packets and
statements, and at some bytes between them.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import MySQLdb
import pytest
from check import kill_sessions, queries, sessions, until, wrong
from proxy import Once, Packet, Proxy, at_request, is_goodbye, proxied

import slim

BY_N = slim.Index("index_n", {"n": int})
BY_USER = slim.Index("index_user", "user")
INDEXES = [BY_N, BY_USER]
OLD = {"id": "a", "n": 1, "user": "bob"}
NEW = {"id": "a", "n": 2, "user": "ann"}
SECOND = {"id": "b", "n": 2}
BETWEEN = 6
# A flag of an OK packet.
MORE_RESULTS = 8


@pytest.fixture
def proxy_and_connect(connect: dict[str, Any]) -> Iterator[tuple[Proxy, dict[str, Any]]]:
    with proxied(connect) as both:
        yield both


@pytest.fixture
def proxy(proxy_and_connect: Any) -> Proxy:
    return proxy_and_connect[0]  # type: ignore[no-any-return]


@pytest.fixture
def through(proxy_and_connect: Any) -> dict[str, Any]:
    return proxy_and_connect[1]  # type: ignore[no-any-return]


# ---- The calls


def change(entity: Any) -> None:
    entity.update(NEW, n=entity["n"] + 1)


def put(store: slim.Datastore, version: int) -> None:
    store.put(NEW)


def put_expecting(store: slim.Datastore, version: int) -> None:
    store.put(NEW, expect=version)


def put_many(store: slim.Datastore, version: int) -> None:
    store.put_many([NEW, SECOND])


def update(store: slim.Datastore, version: int) -> None:
    assert store.update("a", change) == NEW


def transaction(store: slim.Datastore, version: int) -> None:
    with store.transaction():
        store.put(NEW)
        store.put(SECOND)


def reading_transaction(store: slim.Datastore, version: int) -> None:
    with store.transaction():
        assert store.get("a") == OLD
        store.put(NEW)


def delete(store: slim.Datastore, version: int) -> None:
    assert store.delete("a")


def delete_expecting(store: slim.Datastore, version: int) -> None:
    assert store.delete("a", expect=version)


class Write(NamedTuple):
    call: Callable[[slim.Datastore, int], None]
    # What stands afterwards.
    after: dict[str, Any]
    # Whether slim repeats it when the connection is lost before COMMIT was sent.
    repeated: bool = True


WRITES = [
    Write(put, {"a": NEW}),
    Write(put_expecting, {"a": NEW}),
    Write(put_many, {"a": NEW, "b": SECOND}),
    Write(update, {"a": NEW}),
    Write(delete, {}),
    Write(delete_expecting, {}),
    Write(transaction, {"a": NEW, "b": SECOND}, repeated=False),
    Write(reading_transaction, {"a": NEW}, repeated=False),
]
READS: dict[str, tuple[Callable[[slim.Datastore], Any], Any]] = {
    "get": (lambda store: store.get("a"), OLD),
    "get of none": (lambda store: store.get("none"), None),
    "get_many": (lambda store: store.get_many(["a", "b"]), {"a": OLD, "b": SECOND}),
    "in": (lambda store: ("a" in store, "none" in store), (True, False)),
    "len": (len, 2),
    "get_all": (lambda store: BY_USER.get_all(store, user="bob"), [OLD]),
    "find": (lambda store: list(BY_N.find(store, {}, limit=2)), [OLD, SECOND]),
    "count": (lambda store: BY_N.count(store), 2),
    "indexes": (lambda store: sorted(i.table for i in store.indexes), ["index_n", "index_user"]),
    "delete of none": (lambda store: store.delete("none"), False),
    "scan": (list, [OLD, SECOND]),
    "schema": (lambda store: len(str(store.schema())) > 0, True),
}


# ---- Where it is cut


class CutAt:
    """Cuts once, in the packet of this number, after so many of its bytes; what follows passes."""

    def __init__(self, number: int, keep: int) -> None:
        self.number = number
        self.keep = keep
        self.seen = 0
        self.done = False
        self.lock = threading.Lock()

    def __call__(self, packet: Packet) -> int | None:
        if is_goodbye(packet):
            return None
        with self.lock:
            self.seen += 1
            if self.done or self.seen <= self.number:
                return None
            self.done = True
            return self.keep


def positions(conversation: list[Packet], every: bool, seed: str) -> list[tuple[int, int]]:
    """(packet, bytes of it that still pass)."""
    dice = random.Random(seed)
    found = []
    for number, packet in enumerate(conversation):
        size = len(packet.data)
        inside = {0}
        if number == len(conversation) - 1:
            inside.add(size)
        if packet.from_client:
            ends = [n for n, byte in enumerate(packet.data) if byte == ord(";")]
            inside |= {3, 4, 5, size - 1, size, *ends, *(n + 1 for n in ends)}
        if every:
            inside |= set(range(size + 1))
        elif packet.from_client or size > 20:
            inside |= {dice.randrange(size) for _ in range(BETWEEN)}
        found += [(number, keep) for keep in sorted(inside)]
    return found


def spoken(proxy: Proxy, call: Callable[[], Any]) -> list[Packet]:
    """The packets of a call, in both directions."""
    conversation: list[Packet] = []
    proxy.cut = conversation.append  # type: ignore[assignment]
    call()
    proxy.cut = None
    return [packet for packet in conversation if not is_goodbye(packet)]


def outcome_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except slim.Unknown:
        return "unknown"
    except MySQLdb.OperationalError:
        return "not"
    return "done"


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.call.__name__)
def test_write_that_is_cut_off_is_done_once_or_not_or_unknown(
    write: Write, long: bool, proxy: Proxy, through: dict[str, Any], connect: dict[str, Any]
) -> None:
    name = write.call.__name__
    with (
        queries(connect) as query,
        slim.Datastore(**connect) as direct,
        contextlib.ExitStack() as stack,
    ):
        others = sessions(query)
        store = stack.enter_context(slim.Datastore(**through, indexes=INDEXES))

        def begin() -> int:
            for id in SECOND["id"], OLD["id"]:
                direct.delete(id)
            direct.put(OLD)
            # And so it has a connection.
            return int(store.get("a").version)

        version = begin()
        conversation = spoken(proxy, lambda: write.call(store, version))
        commit = next(n for n, each in enumerate(conversation) if b"COMMIT" in each.data)
        last = len(conversation) - 1
        for number, keep in positions(conversation, long, name):
            version = begin()
            mine = sessions(query) - others
            cut = CutAt(number, keep)
            proxy.cut = cut
            outcome = outcome_of(lambda version=version: write.call(store, version))
            until(lambda cut=cut: cut.done)
            proxy.cut = None
            # The server has let go of what was cut off.
            until(lambda mine=mine: mine - sessions(query))
            where = f"{name}, packet {number} of {last}, after {keep} bytes: {outcome}"
            entities = direct.get_many(["a", "b"])
            if number < commit:
                assert outcome == ("done" if write.repeated else "not"), where
            elif (number, keep) == (last, len(conversation[last].data)):
                assert outcome == "done", where
            possible = {"done": [write.after], "not": [{"a": OLD}]}
            assert entities in possible.get(outcome, [write.after, {"a": OLD}]), where
            if (number, outcome) == (commit, "unknown") and keep < len(conversation[commit].data):
                assert entities == {"a": OLD}, where
            assert wrong(connect) == [], where


@pytest.mark.parametrize("name", READS)
def test_read_that_is_cut_off_is_made_again_and_never_answers_less(
    name: str, long: bool, proxy: Proxy, through: dict[str, Any]
) -> None:
    call, answer = READS[name]
    with slim.Datastore(**through, indexes=INDEXES) as store:
        store.put(OLD)
        store.put(SECOND)
        conversation = spoken(proxy, lambda: call(store))
        for number, keep in positions(conversation, long, name):
            assert "a" in store
            cut = CutAt(number, keep)
            proxy.cut = cut
            where = f"{name}, packet {number}, after {keep} bytes"
            try:
                assert call(store) == answer, where
            except MySQLdb.OperationalError:
                # It has given the caller something already: that cannot be made again.
                assert name in ("scan", "schema"), where
            until(lambda cut=cut: cut.done)
            proxy.cut = None


def test_opening_that_is_cut_off_is_an_error_or_done(
    long: bool, proxy: Proxy, through: dict[str, Any]
) -> None:
    def open_once() -> None:
        slim.Datastore(**through, indexes=INDEXES).close()

    open_once()
    places = positions(spoken(proxy, open_once), long, "open")
    for number, keep in places if long else random.Random(1).sample(places, 60):
        cut = CutAt(number, keep)
        proxy.cut = cut
        with contextlib.suppress(MySQLdb.OperationalError):
            open_once()
        until(lambda cut=cut: cut.done)
        proxy.cut = None
    open_once()


# ---- Single cuts


class CutLastReply:
    """Cuts the last packet of the reply to the request of which `which` holds: by then all of it is done."""

    def __init__(self, which: Callable[[Packet], bool]) -> None:
        self.which = which
        self.done = False
        self.request: int | None = None

    def __call__(self, packet: Packet) -> int | None:
        if packet.from_client and self.which(packet):
            self.request = packet.request
        if packet.from_client or packet.request != self.request or not is_last(packet.data[4:]):
            return None
        self.done = True
        return 0


def is_last(payload: bytes) -> bool:
    """Whether it is an OK packet that says of no more results."""
    if payload[0] != 0:
        return False
    status = 1
    for _ in "affected rows", "last insert id":
        status += {0xFC: 3, 0xFD: 4, 0xFE: 9}.get(payload[status], 1)
    return not payload[status] & MORE_RESULTS


@pytest.mark.parametrize("keep", [0, None], ids=["on its way", "on its way back"])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.call.__name__)
def test_commit_that_is_lost_is_unknown_and_nothing_is_done_again(
    write: Write, keep: int | None, proxy: Proxy, through: dict[str, Any], connect: dict[str, Any]
) -> None:
    commits = []

    def is_commit(packet: Packet) -> bool:
        found = b"COMMIT" in packet.data
        if found:
            commits.append(packet.request)
        return found

    with slim.Datastore(**through, indexes=INDEXES) as store:
        store.put(OLD)
        version = store.get("a").version
        cut = Once(is_commit, keep) if keep == 0 else CutLastReply(is_commit)
        proxy.cut = lambda packet: cut(packet) if not cut.done else is_commit(packet) and None
        with pytest.raises(slim.Unknown) as caught:
            write.call(store, version)
        proxy.cut = None
        assert len(commits) == 1
        # A block, and a batch, have no single id.
        assert caught.value.id in ("a", None)
        assert caught.value.id == "a" or write.call in (put_many, transaction, reading_transaction)
        found = store.get_many(["a", "b"])
        assert found == ({"a": OLD} if keep == 0 else write.after)
    assert wrong(connect) == []


def test_large_result_that_is_cut_off_is_never_taken_for_none(
    proxy: Proxy, through: dict[str, Any]
) -> None:
    whole = {"id": "a", "n": 1, "data": random.Random(1).randbytes(1 << 20)}
    with slim.Datastore(**through, indexes=[BY_N]) as store:
        store.put(whole)
        for share in range(1, 20):
            size = (share << 20) // 20
            cut = Once(lambda packet: b"body" in packet.data, None)
            proxy.cut = in_reply(cut, size)
            assert store.get("a") == whole
            until(lambda cut=cut: cut.done)
            proxy.cut = in_reply(Once(lambda packet: b"body" in packet.data, None), size)
            assert BY_N.get_all(store, n=1) == [whole]
            proxy.cut = None


def in_reply(once: Once, size: int) -> Callable[[Packet], int | None]:
    """Cuts in the middle of the reply that `once` would have none of: in its first long packet."""

    def cut(packet: Packet) -> int | None:
        if not packet.from_client and len(packet.data) <= size:
            return None
        keep = once(packet)
        return size if keep == 0 and not packet.from_client else None

    return cut


def test_put_cut_off_while_it_waits_for_a_lock_is_unknown_and_not_sent_again(
    proxy: Proxy, through: dict[str, Any], connect: dict[str, Any]
) -> None:
    """The server works on a request whose sender is gone."""
    with (
        queries(connect) as query,
        contextlib.closing(MySQLdb.connect(**connect)) as rival,
        futures.ThreadPoolExecutor(1) as pool,
    ):
        others = sessions(query)
        with slim.Datastore(**through) as store:
            store.put(OLD)
            rival.query("BEGIN")
            with rival.cursor() as cursor:
                cursor.execute("SELECT * FROM entities WHERE id = 'a' FOR UPDATE")
            proxy.requests = 0
            proxy.cut = at_request(1, 1)
            with pytest.raises(slim.Unknown) as caught:
                pool.submit(store.put, NEW).result(timeout=30)
            assert caught.value.id == "a"
            assert proxy.requests == 1
            proxy.cut = None
            rival.rollback()
            until(lambda: sessions(query) <= others)
            assert store.get("a") in (OLD, NEW)
    assert wrong(connect) == []


def test_server_that_is_gone_is_an_error_of_the_driver_without_the_password(
    proxy: Proxy, through: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slim, "RETRY_SECONDS", 1)
    proxy.cut = lambda packet: 0
    with pytest.raises(MySQLdb.OperationalError) as caught:
        slim.Datastore(**{**through, "password": "s3cret"})
    assert "s3cret" not in str(caught.value)


def test_connection_lost_in_a_block_ends_it_and_commits_nothing(
    proxy: Proxy, through: dict[str, Any]
) -> None:
    with slim.Datastore(**through) as store:
        with pytest.raises(slim.Error), store.transaction():
            store.put({"id": "first"})
            proxy.cut = Once(lambda packet: b"second" in packet.data, 0)
            with pytest.raises(MySQLdb.OperationalError):
                store.put({"id": "second"})
            for call in (
                lambda: store.put({"id": "third"}),
                lambda: store.get("first"),
                lambda: store.delete("first"),
            ):
                with pytest.raises(slim.Error):
                    call()
        assert len(store) == 0


def test_connection_lost_in_a_scan_is_an_error_and_not_its_end(
    proxy: Proxy, through: dict[str, Any], sql: Callable[..., Any]
) -> None:
    with slim.Datastore(**through) as store:
        store.put_many({"n": n} for n in range(3_000))
        scan = store.scan()
        next(scan)
        kill_sessions(sql)
        with pytest.raises(MySQLdb.OperationalError):
            collected = list(scan)
            assert len(collected) == 2_999
        assert len(list(store)) == 3_000
