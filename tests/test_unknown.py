"""A write that is cut off in COMMIT raises Unknown, and is not made again; one that is cut off before is made again.

Made again, it would bring its value back over what another program has stored meanwhile.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import MySQLdb
import pytest
from check import kill_sessions, queries, sessions, until, wrong
from proxy import Packet, Proxy, is_goodbye
from server import Named

import slim

INDEX = slim.Index("index_n", {"n": int})
OLD = {"id": "a", "n": 0}
MINE = {"id": "a", "n": 1}
THEIRS = {"id": "a", "n": 2}

Call = Callable[[slim.Datastore], Any]


@pytest.fixture
def proxy(server: Named) -> Iterator[Proxy]:
    with Proxy(server.connect["host"], server.connect.get("port", 3306)) as proxy:
        yield proxy


@pytest.fixture
def mine(proxy: Proxy, connect: dict[str, Any]) -> Iterator[slim.Datastore]:
    """The store of this program, behind the proxy."""
    through = {**connect, "host": "127.0.0.1", "port": proxy.port, "ssl_mode": "DISABLED"}
    with slim.Datastore(**through, indexes=[INDEX]) as mine:
        # A sharded server has learned of the index when this returns.
        mine.delete("never")
        yield mine


@pytest.fixture
def theirs(mine: slim.Datastore, connect: dict[str, Any]) -> Iterator[slim.Datastore]:
    """The store of another program."""
    with slim.Datastore(**connect) as theirs:
        yield theirs


class CutInCommit:
    """Drops the answer to the first packet with a COMMIT in it, when `meanwhile` has returned.

    The server has the packet and works on it while `meanwhile` runs. Later packets go through.
    """

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.meanwhile = meanwhile
        self.request: int | None = None
        self.done = False
        self.error: BaseException | None = None

    def __call__(self, packet: Packet) -> int | None:
        if self.request is None and packet.from_client and b"COMMIT" in packet.data:
            self.request = packet.request
        if self.done or packet.from_client or packet.request != self.request:
            return None
        self.done = True
        try:
            self.meanwhile()
        except BaseException as error:
            # This is a thread of the proxy's.
            self.error = error
        return 0


class CutAt:
    """Cuts once, before the packet of this number, and counts them."""

    def __init__(self, number: int | None) -> None:
        self.number = number
        self.seen = 0

    def __call__(self, packet: Packet) -> int | None:
        if is_goodbye(packet):
            return None
        self.seen += 1
        return 0 if self.seen - 1 == self.number else None


def call_cut_in_commit(
    proxy: Proxy, mine: slim.Datastore, call: Call, meanwhile: Callable[[], None]
) -> slim.Unknown:
    """What the call raises."""
    proxy.cut = cut = CutInCommit(meanwhile)
    with pytest.raises(slim.Unknown) as caught:
        call(mine)
    proxy.cut = None
    assert cut.error is None
    return caught.value


def put(store: slim.Datastore) -> None:
    store.put(MINE)


def put_expecting(store: slim.Datastore) -> None:
    found = store.get("a")
    assert found is not None
    store.put(MINE, expect=found.version)


def put_many(store: slim.Datastore) -> None:
    store.put_many([MINE])


def update(store: slim.Datastore) -> None:
    store.update("a", lambda entity: entity.update(MINE))


def transaction(store: slim.Datastore) -> None:
    with store.transaction():
        assert store.get("a") == OLD
        store.put(MINE)


def delete(store: slim.Datastore) -> None:
    store.delete("a")


def delete_expecting(store: slim.Datastore) -> None:
    found = store.get("a")
    assert found is not None
    store.delete("a", expect=found.version)


WRITES: list[Call] = [put, put_expecting, put_many, update, transaction]
DELETES: list[Call] = [delete, delete_expecting]


@pytest.mark.parametrize("call", [*WRITES, *DELETES])
def test_write_cut_off_in_commit_does_not_come_back_over_what_another_program_has_put(
    call: Call,
    proxy: Proxy,
    mine: slim.Datastore,
    theirs: slim.Datastore,
    connect: dict[str, Any],
) -> None:
    after = MINE if call in WRITES else None
    mine.put(OLD)

    def meanwhile() -> None:
        until(lambda: theirs.get("a") == after)
        theirs.put(THEIRS)
        assert theirs.get("a") == THEIRS

    unknown = call_cut_in_commit(proxy, mine, call, meanwhile)
    assert unknown.id == "a"
    assert theirs.get("a") == mine.get("a") == THEIRS
    assert INDEX.get_all(theirs, n=2) == [THEIRS]
    assert INDEX.get_all(theirs, n=1) == []
    assert wrong(connect) == []


@pytest.mark.parametrize("call", [lambda store: store.put({"n": 1}), None])
def test_unknown_names_the_id_that_an_entity_was_given(
    call: Call | None, proxy: Proxy, mine: slim.Datastore, theirs: slim.Datastore
) -> None:
    unknown = call_cut_in_commit(
        proxy,
        mine,
        call or (lambda store: store.put_many([{"n": 1}])),
        lambda: until(lambda: len(theirs) == 1),
    )
    (stored,) = theirs
    assert stored == {"id": unknown.id, "n": 1}


def test_put_whose_query_is_killed_is_not_stored_unless_it_says_unknown(
    server: Named, connect: dict[str, Any]
) -> None:
    ids: list[str] = []
    raised: dict[str, Exception] = {}
    stop = threading.Event()

    def kill() -> None:
        dice = random.Random(1)
        with queries(connect) as query:
            mine = sessions(query)
            while not stop.is_set():
                for session in mine & sessions(query):
                    with contextlib.suppress(MySQLdb.OperationalError):
                        query(f"KILL QUERY {session}")
                time.sleep(dice.uniform(0, 0.004))

    # MySQL may answer nothing when it is killed between two statements.
    patient = {**connect, "read_timeout": 2}
    with queries(connect) as query, slim.Datastore(**patient, indexes=[INDEX]) as store:
        end = time.monotonic() + 8
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            # On a busy machine no kill may hit a put for long.
            while time.monotonic() < end or (not raised and time.monotonic() < end + 60):
                ids.append(str(len(ids)))
                try:
                    store.put({"id": ids[-1], "n": len(ids)})
                except (slim.Unknown, MySQLdb.OperationalError) as error:
                    raised[ids[-1]] = error
        finally:
            stop.set()
            killer.join()
        stored = {id for (id,) in query("SELECT id FROM entities")}
        assert raised
        assert [
            error
            for id, error in raised.items()
            if id in stored and not isinstance(error, slim.Unknown)
        ] == []
        assert stored | {*raised} == {*ids}


def two_puts(store: slim.Datastore) -> None:
    with store.transaction():
        store.put({"id": "b"})
        store.put({"id": "c"})


@pytest.mark.parametrize(
    "call", [two_puts, lambda store: store.put_many([{"id": "b"}, {"id": "c"}])]
)
def test_unknown_names_no_id_where_several_were_written(
    call: Call, proxy: Proxy, mine: slim.Datastore, theirs: slim.Datastore
) -> None:
    unknown = call_cut_in_commit(proxy, mine, call, lambda: until(lambda: len(theirs) == 2))
    assert unknown.id is None


@pytest.mark.parametrize("call", [*WRITES, *DELETES])
def test_connection_lost_while_it_was_idle_is_no_matter(
    call: Call, mine: slim.Datastore, theirs: slim.Datastore, connect: dict[str, Any]
) -> None:
    after = MINE if call in WRITES else None
    with queries(connect) as query:
        theirs.put(OLD)
        assert mine.get("a") == OLD
        kill_sessions(query)
        call(mine)
        assert theirs.get("a") == after


def test_update_whose_connection_is_lost_before_its_commit_was_sent_is_made_again(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    store.put(OLD)
    calls = 0
    with queries(connect) as query:

        def change(entity: slim.Entity) -> None:
            nonlocal calls
            calls += 1
            entity.update(n=entity["n"] + 1)
            if calls == 1:
                kill_sessions(query)

        assert store.update("a", change) == MINE
    assert calls == 2
    assert store.get("a") == MINE


def test_block_whose_connection_is_lost_before_its_commit_was_sent_has_done_nothing(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    store.put(OLD)
    with queries(connect) as query:
        with pytest.raises(MySQLdb.OperationalError), store.transaction():
            store.put(MINE)
            kill_sessions(query)
        assert store.get("a") == OLD


def test_delete_of_what_never_was_is_false_wherever_it_is_cut_off(
    proxy: Proxy, mine: slim.Datastore
) -> None:
    conversation = CutAt(None)
    proxy.cut = conversation
    assert mine.delete("never") is False
    for number in range(conversation.seen):
        cut = CutAt(number)
        proxy.cut = cut
        with contextlib.suppress(slim.Unknown):
            assert mine.delete("never") is False
        assert cut.seen > number
