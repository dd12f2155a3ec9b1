"""What is done inside transaction() is committed together, or not at all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import MySQLdb
import pytest
from check import in_threads, sessions, wrong

import slim

DEADLOCK = 1213


@pytest.fixture
def store(connect: dict[str, Any]) -> Any:
    with slim.Datastore(
        **connect,
        indexes=[
            slim.Index("index_n", {"n": int}),
            slim.Index("index_email", "email", unique=True),
        ],
    ) as store:
        yield store
    assert wrong(connect) == []


def kill_sessions(sql: Callable[..., Any]) -> None:
    """Cuts the store's connections, as a server or a firewall does that has had enough of them."""
    for session in sessions(sql):
        with contextlib.suppress(MySQLdb.OperationalError):  # it has just ended by itself
            sql(f"KILL {session}")


def test_transaction_commits_together(store: slim.Datastore, connect: dict[str, Any]) -> None:
    store.put({"id": "old"})
    with slim.Datastore(**connect) as other, store.transaction():
        store.put({"id": "a", "n": 1})
        store.update("a", lambda entity: entity.update(n=2))
        store.delete("old")
        assert other.get_many(["a", "old"]) == {"old": {"id": "old"}}
        assert store.get_many(["a", "old"]) == {"a": {"id": "a", "n": 2}}
    assert store.get_many(["a", "old"]) == {"a": {"id": "a", "n": 2}}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_transaction_is_rolled_back_on_any_exception(
    store: slim.Datastore, error: type[BaseException]
) -> None:
    store.put({"id": "old", "n": 1})
    with pytest.raises(error), store.transaction():
        store.put({"id": "a", "n": 1})
        store.put_many([{"n": n} for n in range(5)])
        store.delete("old")
        raise error
    assert list(store) == [{"id": "old", "n": 1}]
    store.put({"id": "b", "n": 1})
    assert "b" in store


def test_inner_transaction_joins_the_outer(store: slim.Datastore) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        with store.transaction():
            store.put({"id": "a"})
        store.put({"id": "b"})
        raise RuntimeError
    assert len(store) == 0
    with store.transaction(), store.transaction():
        store.put({"id": "a"})
    assert "a" in store


def test_inner_transaction_that_fails_takes_the_outer_with_it(store: slim.Datastore) -> None:
    with pytest.raises(slim.Error, match="rolled back"), store.transaction():
        store.put({"id": "a"})
        with pytest.raises(RuntimeError), store.transaction():
            store.put({"id": "b"})
            raise RuntimeError
    assert len(store) == 0


def test_block_that_another_thread_leaves_is_an_error_and_takes_none_of_its_puts(
    store: slim.Datastore,
) -> None:
    block = store.transaction()
    block.__enter__()
    store.put({"id": "a"})
    with futures.ThreadPoolExecutor(1) as pool:
        with pytest.raises(slim.Error, match="thread that began it"):
            pool.submit(block.__exit__, None, None, None).result()
        pool.submit(store.put, {"id": "b"}).result()
        with store.transaction():
            pass
        assert (
            pool.submit(store.get, "b").result() == {"id": "b"}
            and pool.submit(store.get, "a").result() is None
        )


def test_transaction_is_doomed_after_a_call_that_failed_half_way(store: slim.Datastore) -> None:
    """The unique index stops the packet behind its DELETE and INSERT; going on would commit those."""
    store.put({"id": "owner", "email": "x"})
    store.put({"id": "a", "n": 1})
    with pytest.raises(slim.Error, match="rolled back"), store.transaction():
        with pytest.raises(slim.Duplicate):
            store.put({"id": "a", "email": "x"})
        with pytest.raises(slim.Error, match="rolled back"):
            store.put({"id": "b"})
    assert store.get("a") == {"id": "a", "n": 1} and "b" not in store
    store.put({"id": "b"})
    assert "b" in store


def test_call_refused_before_anything_is_sent_does_not_doom_the_transaction(
    store: slim.Datastore,
) -> None:
    with store.transaction():
        with pytest.raises(TypeError):
            store.put({"id": "a", "n": "no int"})
        with pytest.raises(slim.Conflict):
            store.put({"id": "a"}, expect=7)
        store.put({"id": "b"})
    assert "a" not in store and "b" in store


def test_lost_connection_in_a_transaction_never_autocommits_the_rest(
    store: slim.Datastore, sql: Callable[..., Any]
) -> None:
    with pytest.raises(MySQLdb.OperationalError), store.transaction():
        store.put({"id": "first"})
        kill_sessions(sql)
        store.put({"id": "second"})
    assert len(store) == 0
    with pytest.raises(slim.Error), store.transaction():
        store.put({"id": "first"})
        kill_sessions(sql)
        with pytest.raises(MySQLdb.OperationalError):
            store.put({"id": "second"})
        with pytest.raises(slim.Error, match="rolled back"):
            store.put({"id": "third"})
    assert len(store) == 0


def test_lost_connection_is_opened_again_for_the_next_call(
    store: slim.Datastore, sql: Callable[..., Any]
) -> None:
    for call in (
        lambda: store.put({"id": "a", "n": 1}),
        lambda: store.get("a"),
        lambda: store.delete("a"),
    ):
        kill_sessions(sql)
        call()
    kill_sessions(sql)
    with store.transaction():
        store.put({"id": "b"})
    assert "a" not in store and "b" in store


def test_packet_that_stops_in_the_middle_leaves_nothing_and_a_clean_connection(
    store: slim.Datastore, sql: Callable[..., Any]
) -> None:
    store.put({"id": "owner", "email": "x"})
    before = sessions(sql)
    with pytest.raises(slim.Duplicate):
        store.put({"id": "a", "n": 1, "email": "x"})
    assert store.get("a") is None
    assert store.put({"id": "a", "n": 1}) == "a"
    assert sql("SELECT n FROM index_n WHERE entity_id = 'a'") == [(1,)]
    assert sessions(sql) == before


def test_deadlock_in_a_transaction_reaches_one_caller_and_the_other_commits(
    store: slim.Datastore,
) -> None:
    store.put_many({"id": id, "by": []} for id in "amz")  # MariaDB locks the next id, too
    both_have_one = threading.Barrier(2, timeout=10)

    def append_in_order(*ids: str) -> int:
        try:
            with store.transaction():
                for id in ids:
                    store.update(id, lambda entity: entity["by"].append(ids))
                    if id == ids[0]:
                        both_have_one.wait()
        except MySQLdb.OperationalError as error:
            return int(error.args[0])
        return 0

    codes = in_threads(lambda: append_in_order("a", "z"), lambda: append_in_order("z", "a"))
    assert sorted(codes) == [0, DEADLOCK]
    winner = ("a", "z") if codes[0] == 0 else ("z", "a")
    assert [store.get(id)["by"] for id in "az"] == [[winner], [winner]]


def test_transactions_of_threads_are_their_own(store: slim.Datastore) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.put({"id": "a"})
        in_threads(lambda: store.put({"id": "b"}))
        raise RuntimeError
    assert "a" not in store and "b" in store
