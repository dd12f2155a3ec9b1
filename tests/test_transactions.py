"""What is done inside transaction() is committed together, or not at all, whoever leaves it, and how."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import MySQLdb
import pytest
from check import fork, in_threads, joined, kill_sessions, sessions, wrong

import slim

DEADLOCKS = {1213, 1205, 1020}
BY_N = slim.Index("index_n", {"n": int})
BY_EMAIL = slim.Index("index_email", "email", unique=True)


@pytest.fixture
def store(connect: dict[str, Any]) -> Iterator[slim.Datastore]:
    with slim.Datastore(**connect, indexes=[BY_N, BY_EMAIL]) as store:
        yield store
    assert wrong(connect) == []


@pytest.fixture
def other(connect: dict[str, Any], store: slim.Datastore) -> Iterator[slim.Datastore]:
    """Another program."""
    with slim.Datastore(**connect) as other:
        yield other


# ---- One block


def test_transaction_commits_together(store: slim.Datastore, other: slim.Datastore) -> None:
    store.put({"id": "old"})
    with store.transaction():
        store.put({"id": "a", "n": 1})
        store.update("a", lambda entity: entity.update(n=2))
        store.delete("old")
        assert other.get_many(["a", "old"]) == {"old": {"id": "old"}}
        assert store.get_many(["a", "old"]) == {"a": {"id": "a", "n": 2}}
    assert store.get_many(["a", "old"]) == {"a": {"id": "a", "n": 2}}


@pytest.mark.parametrize(
    "error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]
)
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


def test_block_sees_its_own_writes_by_every_way_of_reading(store: slim.Datastore) -> None:
    store.put({"id": "a", "n": 1})
    with store.transaction():
        store.put({"id": "b", "n": 1})
        store.update("a", lambda entity: entity.update(n=2))
        assert store.get("b") == {"id": "b", "n": 1}
        assert store.get_many("ab") == {"a": {"id": "a", "n": 2}, "b": {"id": "b", "n": 1}}
        assert BY_N.get_all(store, n=1) == [{"id": "b", "n": 1}]
        assert BY_N.count(store) == len(store) == 2
        assert "b" in store


def test_get_in_a_block_locks_what_it_finds(store: slim.Datastore) -> None:
    store.put({"id": "n", "n": 0})

    def once() -> None:
        while True:
            try:
                with store.transaction():
                    entity = store.get("n")
                    entity["n"] += 1
                    store.put(entity)
                return
            except MySQLdb.OperationalError as error:
                if error.args[0] not in DEADLOCKS:
                    raise

    in_threads(*[lambda: [once() for _ in range(20)]] * 4)
    assert store.get("n")["n"] == 80


@pytest.mark.parametrize("call", [lambda s: s.scan(), iter, lambda s: s.schema()])
def test_scan_inside_a_block_is_an_error_as_it_would_not_see_its_writes(
    store: slim.Datastore, call: Callable[[slim.Datastore], Any]
) -> None:
    with pytest.raises(slim.Error), store.transaction():
        store.put({"id": "a"})
        assert list(call(store)) == ["what was written is not seen"]
    assert len(store) == 0


def test_scan_that_was_begun_before_a_block_goes_on(store: slim.Datastore) -> None:
    store.put_many({"id": f"{n:04}", "n": n} for n in range(2_500))
    scan = iter(store)
    next(scan)
    with store.transaction():
        store.put({"id": "new", "n": 7})
        assert len(list(scan)) == 2_499
    assert "new" in store


# ---- Inner blocks, and failures that are caught


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


def test_exception_that_leaves_an_inner_block_ends_the_outer(store: slim.Datastore) -> None:
    with pytest.raises(slim.Error), store.transaction():
        store.put({"id": "a"})
        with pytest.raises(RuntimeError), store.transaction():
            store.put({"id": "b"})
            raise RuntimeError
        with pytest.raises(slim.Error):
            store.put({"id": "c"})
    assert len(store) == 0


def test_exception_of_change_is_caught_and_nothing_that_it_put_is_committed(
    store: slim.Datastore,
) -> None:
    store.put({"id": "a", "n": 1})

    def change(entity: Any) -> None:
        store.put({"id": "by change"})
        raise RuntimeError

    with contextlib.suppress(slim.Error), store.transaction():
        with pytest.raises(RuntimeError):
            store.update("a", change)
    assert "by change" not in store
    assert store.get("a") == {"id": "a", "n": 1}


def test_block_can_only_be_left_after_an_error_of_the_server(store: slim.Datastore) -> None:
    """The unique index stops the packet behind its DELETE and INSERT: going on would commit those."""
    store.put({"id": "owner", "email": "x"})
    store.put({"id": "a", "n": 1})
    with pytest.raises(slim.Error), store.transaction():
        with pytest.raises(slim.Duplicate):
            store.put({"id": "a", "email": "x"})
        for call in (
            lambda: store.put({"id": "b"}),
            lambda: store.get("a"),
            lambda: store.delete("a"),
            lambda: store.update("a", lambda entity: None),
            lambda: BY_N.count(store),
            lambda: len(store),
        ):
            with pytest.raises(slim.Error):
                call()
    assert store.get("a") == {"id": "a", "n": 1} and "b" not in store
    store.put({"id": "b"})
    assert "b" in store


def test_call_refused_before_anything_is_sent_leaves_the_block_usable(
    store: slim.Datastore,
) -> None:
    store.put({"id": "here"})
    with store.transaction():
        with pytest.raises(TypeError):
            store.put({"id": "a", "n": "no int"})
        with pytest.raises(slim.Conflict):
            store.put({"id": "a"}, expect=7)
        with pytest.raises(slim.Conflict):
            store.delete("here", expect=7)
        with pytest.raises(KeyError):
            store.update("none", lambda entity: None)
        assert not store.delete("none")
        store.put({"id": "b"})
    assert "a" not in store and "b" in store and "here" in store


def test_put_of_an_id_that_exists_expecting_none_is_a_conflict_at_once_and_harmless(
    store: slim.Datastore,
) -> None:
    store.put({"id": "a", "n": 1})
    with store.transaction():
        with pytest.raises(slim.Conflict) as caught:
            store.put({"id": "a", "n": 2}, expect=0)
        store.put({"id": "b"})
    assert caught.value.found == store.get("a").version
    assert store.get("a") == {"id": "a", "n": 1} and "b" in store


def test_put_expecting_none_of_what_the_block_has_put_itself_is_a_conflict(
    store: slim.Datastore,
) -> None:
    with store.transaction():
        store.put({"id": "a"}, expect=0)
        with pytest.raises(slim.Conflict):
            store.put({"id": "a"}, expect=0)
    assert "a" in store


# ---- Duplicates


def test_two_equal_values_of_a_unique_index_in_one_block_are_a_duplicate_at_once(
    store: slim.Datastore,
) -> None:
    with contextlib.suppress(slim.Error), store.transaction():
        store.put({"id": "a", "email": "x"})
        with pytest.raises(slim.Duplicate) as caught:
            store.put({"id": "b", "email": "x"})
        assert (caught.value.id, caught.value.index.table) == ("a", "index_email")
    assert len(store) == 0


@pytest.mark.parametrize("inside", [False, True])
def test_two_equal_values_of_a_unique_index_in_one_batch_are_a_duplicate_at_once(
    inside: bool, store: slim.Datastore
) -> None:
    store.put({"id": "here", "email": "y"})
    for second in {"id": "b", "email": "x"}, {"id": "b", "email": "y"}:
        with contextlib.suppress(slim.Error):
            with store.transaction() if inside else contextlib.nullcontext():
                with pytest.raises(slim.Duplicate) as caught:
                    store.put_many([{"id": "a", "email": "x"}, second])
                assert caught.value.id in ("a", "here")
    assert [entity["id"] for entity in store] == ["here"]


def test_batch_may_hand_a_unique_value_from_one_entity_to_another(store: slim.Datastore) -> None:
    store.put_many([{"id": "a", "email": "x"}, {"id": "b", "email": "y"}])
    store.put_many([{"id": "a", "email": "y"}, {"id": "b", "email": "x"}])
    assert {entity["id"]: entity["email"] for entity in store} == {"a": "y", "b": "x"}
    with store.transaction():
        store.put({"id": "a"})
        store.put({"id": "c", "email": "y"})
    assert BY_EMAIL.get_all(store, email="y") == [{"id": "c", "email": "y"}]


def test_duplicate_in_a_block_is_no_conflict_with_what_it_has_inserted_itself(
    store: slim.Datastore,
) -> None:
    store.put_many([{"id": "a", "email": "a@b"}, {"id": "b"}])
    for id, expect in ("c", 0), ("b", store.get("b").version):
        with pytest.raises(slim.Error), store.transaction():
            with pytest.raises(slim.Duplicate, match="'a'"):
                store.put({"id": id, "email": "a@b"}, expect=expect)
    assert list(store) == [{"id": "a", "email": "a@b"}, {"id": "b"}]


# ---- Connections that are lost


def test_lost_connection_in_a_block_never_autocommits_the_rest(
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
        with pytest.raises(slim.Error):
            store.put({"id": "third"})
    assert len(store) == 0


def test_block_whose_connection_is_lost_before_its_end_commits_nothing_and_says_so(
    store: slim.Datastore, sql: Callable[..., Any]
) -> None:
    with pytest.raises((slim.Unknown, MySQLdb.OperationalError)), store.transaction():
        store.put({"id": "a"})
        kill_sessions(sql)
    assert len(store) == 0
    with store.transaction():
        store.put({"id": "b"})
    assert "b" in store


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


# ---- Two blocks that meet


def test_deadlock_in_a_block_reaches_one_caller_and_the_other_commits(
    store: slim.Datastore,
) -> None:
    # MariaDB locks the next id, too. In the cluster's tests these are on one shard, which sees the circle.
    store.put_many({"id": id, "by": []} for id in "bmz")
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

    codes = in_threads(lambda: append_in_order("b", "z"), lambda: append_in_order("z", "b"))
    assert sorted(codes)[0] == 0 and set(codes) - {0} <= DEADLOCKS
    winner = ("b", "z") if codes[0] == 0 else ("z", "b")
    assert [store.get(id)["by"] for id in "bz"] == [[winner], [winner]]


def test_deadlock_that_is_caught_inside_commits_nothing_of_the_block(
    store: slim.Datastore,
) -> None:
    # As above.
    store.put_many({"id": id} for id in "bmz")
    both_have_one = threading.Barrier(2, timeout=10)

    def write(*ids: str) -> str:
        try:
            with store.transaction():
                store.put({"id": f"first of {ids[0]}"})
                store.update(ids[0], lambda entity: entity.update(by=ids[0]))
                both_have_one.wait()
                with contextlib.suppress(MySQLdb.OperationalError):
                    store.update(ids[1], lambda entity: entity.update(by=ids[0]))
                # The server has rolled back: this would be a transaction of its own.
                store.put({"id": f"last of {ids[0]}"})
        except slim.Error:
            return "error"
        return "done"

    outcomes = in_threads(lambda: write("b", "z"), lambda: write("z", "b"))
    assert sorted(outcomes) == ["done", "error"]
    winner = "bz"[outcomes.index("done")]
    stored = {entity["id"] for entity in store}
    assert stored == {"b", "m", "z", f"first of {winner}", f"last of {winner}"}


# ---- Threads


def test_transactions_of_threads_are_their_own(store: slim.Datastore) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.put({"id": "a"})
        in_threads(lambda: store.put({"id": "b"}))
        raise RuntimeError
    assert "a" not in store and "b" in store


def test_block_that_another_thread_leaves_is_an_error_and_takes_none_of_its_puts(
    store: slim.Datastore,
) -> None:
    block = store.transaction()
    block.__enter__()
    store.put({"id": "a"})
    with futures.ThreadPoolExecutor(1) as pool:
        with pytest.raises(slim.Error):
            pool.submit(block.__exit__, None, None, None).result()
        pool.submit(store.put, {"id": "b"}).result()
        assert pool.submit(store.get, "b").result() == {"id": "b"}
        assert pool.submit(store.get, "a").result() is None
    # Here it has ended as well.
    store.put({"id": "c"})
    with store.transaction():
        store.put({"id": "d"})
    assert {entity["id"] for entity in store} == {"b", "c", "d"}


def test_block_that_is_used_by_another_thread_in_its_context_is_an_error(
    store: slim.Datastore,
) -> None:
    """As asyncio.to_thread does it, which copies the context."""
    with store.transaction():
        store.put({"id": "a"})
        context = contextvars.copy_context()
        with futures.ThreadPoolExecutor(1) as pool:
            with pytest.raises(slim.Error):
                pool.submit(context.run, store.put, {"id": "b"}).result()
    assert "a" in store and "b" not in store


# ---- Tasks


def test_two_tasks_of_one_thread_have_a_block_each(store: slim.Datastore) -> None:
    async def fails(started: asyncio.Event) -> None:
        with contextlib.suppress(ZeroDivisionError), store.transaction():
            store.put({"id": "a"})
            started.set()
            await asyncio.sleep(0.1)
            raise ZeroDivisionError

    async def works(started: asyncio.Event) -> None:
        await started.wait()
        store.put({"id": "b"})
        with store.transaction():
            store.put({"id": "c"})
            await asyncio.sleep(0)

    async def both() -> None:
        started = asyncio.Event()
        await asyncio.gather(fails(started), works(started))

    asyncio.run(both())
    assert {entity["id"] for entity in store} == {"b", "c"}


@pytest.mark.parametrize("outlives", [False, True])
def test_task_that_was_created_in_a_block_is_refused_in_it_and_free_after_it(
    outlives: bool, store: slim.Datastore
) -> None:
    async def child(over: asyncio.Event) -> str:
        if outlives:
            await over.wait()
        try:
            store.put({"id": "by child"})
        except slim.Error:
            return "refused"
        return "done"

    async def parent() -> str:
        over = asyncio.Event()
        with contextlib.suppress(ZeroDivisionError), store.transaction():
            store.put({"id": "a"})
            task = asyncio.ensure_future(child(over))
            await asyncio.sleep(0.05)
            raise ZeroDivisionError
        over.set()
        return await task

    outcome = asyncio.run(parent())
    assert (outcome, "by child" in store) in [("done", True), ("refused", False)]
    assert outcome == "done" or not outlives
    assert "a" not in store


def test_task_that_is_cancelled_in_a_block_commits_nothing(
    store: slim.Datastore, sql: Callable[..., Any]
) -> None:
    async def works() -> None:
        with store.transaction():
            store.put({"id": "a"})
            await asyncio.sleep(30)

    async def cancels() -> None:
        task = asyncio.ensure_future(works())
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(cancels())
    assert len(store) == 0
    sql("SET innodb_lock_wait_timeout = 2")
    sql("INSERT INTO entities (id, body) VALUES ('a', %s)", [slim.encode({"id": "a"})])


# ---- Generators


def opens_a_block(store: slim.Datastore, id: str) -> Iterator[None]:
    with store.transaction():
        store.put({"id": f"{id} first"})
        yield
        store.put({"id": f"{id} second"})


def test_generator_that_leaves_a_block_open_commits_nothing_when_it_is_closed(
    store: slim.Datastore,
) -> None:
    for end in "close", "del":
        generator: Any = opens_a_block(store, "a")
        next(generator)
        if end == "close":
            generator.close()
        del generator
        assert len(store) == 0
        store.put({"id": "b"})
        assert store.delete("b")


def test_generator_that_is_closed_by_another_thread_commits_nothing(
    store: slim.Datastore,
) -> None:
    generator: Any = opens_a_block(store, "a")
    next(generator)
    with futures.ThreadPoolExecutor(1) as pool:
        with contextlib.suppress(slim.Error, ValueError):
            pool.submit(generator.close).result()
        pool.submit(store.put, {"id": "by thread"}).result()
    with contextlib.suppress(slim.Error):
        store.put({"id": "here"})
    # What was acknowledged is there for others, too.
    with futures.ThreadPoolExecutor(1) as pool:
        stored = {entity["id"] for entity in pool.submit(list, store).result()}
    assert stored in ({"by thread"}, {"by thread", "here"})


@pytest.mark.parametrize("first", [0, 1])
def test_generators_whose_blocks_overlap_lose_no_acknowledged_write(
    first: int, store: slim.Datastore, other: slim.Datastore
) -> None:
    """The second one has joined the first one's transaction."""
    generators: list[Any] = [opens_a_block(store, "a"), opens_a_block(store, "b")]
    for generator in generators:
        next(generator)
    ends = []
    for generator in (generators[first], generators[1 - first]):
        try:
            next(generator)
        except StopIteration:
            ends.append("done")
        except slim.Error:
            ends.append("error")
    assert len(ends) == 2
    stored = {entity["id"] for entity in other}
    if ends == ["done", "done"]:
        assert stored == {"a first", "a second", "b first", "b second"}
    else:
        # The transaction is one: all of it, or nothing.
        assert "error" in ends and stored == set()
    store.put({"id": "later"})
    with store.transaction():
        store.put({"id": "in a block"})
    assert "later" in other and "in a block" in other


def test_generator_that_is_read_in_another_task_writes_on_nobody_elses_connection(
    store: slim.Datastore, other: slim.Datastore
) -> None:
    async def one(generator: Any) -> None:
        next(generator)

    async def two(generator: Any) -> str:
        store.put({"id": "by two"})
        try:
            next(generator)
        except StopIteration:
            return "done"
        except slim.Error:
            return "error"
        return "more"

    async def both() -> str:
        generator = opens_a_block(store, "a")
        await asyncio.ensure_future(one(generator))
        return await asyncio.ensure_future(two(generator))

    outcome = asyncio.run(both())
    assert "by two" in other
    stored = {entity["id"] for entity in other} - {"by two"}
    assert stored <= {"a second"} if outcome == "error" else stored == {"a first", "a second"}


# ---- Forks


def test_child_forked_in_a_block_is_refused_in_it_and_commits_nothing(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    def use() -> None:
        with pytest.raises((slim.Error, MySQLdb.OperationalError)):
            store.put({"id": "of child"})
        # A Datastore of its own is free.
        with slim.Datastore(**connect) as own:
            own.put({"id": "by its own"})

    with store.transaction():
        store.put({"id": "a"})
        assert joined(fork(use)) == 0
        store.put({"id": "b"})
    assert {entity["id"] for entity in store} == {"a", "b", "by its own"}


def test_child_that_leaves_the_block_it_was_forked_in_neither_commits_nor_ends_it(
    store: slim.Datastore, other: slim.Datastore
) -> None:
    for fails in False, True:
        with contextlib.suppress(ZeroDivisionError), store.transaction():
            store.put({"id": "a"})

            def leave(fails: bool = fails) -> None:
                block = store.transaction()
                refused = slim.Error, MySQLdb.OperationalError
                with contextlib.suppress(*refused, ZeroDivisionError), block:
                    if fails:
                        raise ZeroDivisionError

            assert joined(fork(leave)) == 0
            assert "a" not in other
            store.put({"id": "b"})
        assert other.get_many("ab") == {"a": {"id": "a"}, "b": {"id": "b"}}
        for id in "ab":
            assert store.delete(id)


def test_child_that_unwinds_its_parents_block_commits_nothing(
    store: slim.Datastore, other: slim.Datastore
) -> None:

    parent = os.getpid()
    try:
        with store.transaction():
            store.put({"id": "a"})
            child = os.fork()
            if child:
                assert joined(child) == 0
                store.put({"id": "b"})
    except (slim.Error, MySQLdb.OperationalError):
        assert os.getpid() != parent
    finally:
        # However it has left the block.
        if os.getpid() != parent:
            os._exit(0)
    assert {entity["id"] for entity in other} == {"a", "b"}


# ---- update


def test_update_whose_change_calls_the_store_is_one_transaction(store: slim.Datastore) -> None:
    store.put_many([{"id": "a", "n": 1}, {"id": "log", "n": 0}])

    def change(entity: Any) -> None:
        assert store.get("a") == {"id": "a", "n": 1}
        store.update("log", lambda log: log.update(n=log["n"] + 1))
        store.put({"id": "b", "n": entity["n"]})
        entity["n"] += 1

    assert store.update("a", change) == {"id": "a", "n": 2}
    assert store.get_many(["b", "log"]) == {
        "b": {"id": "b", "n": 1},
        "log": {"id": "log", "n": 1},
    }


@pytest.mark.parametrize(
    "change, error",
    [
        (lambda entity: {**entity, "n": 2}, TypeError),
        (lambda entity: 0, TypeError),
        (lambda entity: entity.update(id="b"), (TypeError, ValueError)),
        (lambda entity: entity.update(id=1), (TypeError, ValueError)),
        (lambda entity: entity.pop("id") and None, (KeyError, ValueError, TypeError)),
        (lambda entity: entity.update(n="text"), TypeError),
        (lambda entity: 1 / 0, ZeroDivisionError),
        (lambda entity: entity.clear(), (KeyError, ValueError, TypeError)),
    ],
    ids=["a new one", "0", "other id", "no id", "without id", "text", "raises", "cleared"],
)
@pytest.mark.parametrize("inside", [False, True])
def test_change_that_returns_something_moves_the_id_or_raises_stores_nothing(
    inside: bool, change: Any, error: Any, store: slim.Datastore
) -> None:
    store.put({"id": "a", "n": 1})
    version = store.get("a").version
    with contextlib.suppress(slim.Error):
        with store.transaction() if inside else contextlib.nullcontext():
            try:
                store.update("a", change)
            except error:
                pass
            else:
                # An id that was removed may be put back.
                assert store.get("a")["id"] == "a"
    assert "b" not in store
    if store.get("a").version == version:
        assert store.get("a") == {"id": "a", "n": 1}


def test_change_in_which_the_connection_is_lost_is_called_again(
    store: slim.Datastore, sql: Callable[..., Any]
) -> None:
    """Nothing was sent on it since: the transaction is begun anew."""
    store.put({"id": "a", "n": 1})
    tries = []

    def change(entity: Any) -> None:
        tries.append(entity["n"])
        if len(tries) == 1:
            kill_sessions(sql)
        entity["n"] += 1

    assert store.update("a", change)["n"] == 2
    assert tries == [1, 1]


@pytest.mark.parametrize("error", [MySQLdb.OperationalError(), MySQLdb.Error("odd"), KeyError(7)])
def test_error_of_a_change_comes_out_of_update_as_it_is(
    store: slim.Datastore, error: Exception
) -> None:
    def change(entity: slim.Entity) -> None:
        entity["n"] = 2
        raise error

    store.put({"id": "a", "n": 1})
    with pytest.raises(type(error)) as caught:
        store.update("a", change)
    assert caught.value is error
    assert store.get("a") == {"id": "a", "n": 1}


def test_two_first_updates_one_creates_and_the_other_changes_what_it_finds(
    store: slim.Datastore,
) -> None:
    for round in range(10):
        id = f"e{round}"
        default: dict[str, Any] = {"by": [], "nested": {"list": [1]}}
        both = threading.Barrier(4, timeout=10)

        def append(number: int, id: str = id, both: Any = both, default: Any = default) -> None:
            def change(entity: Any) -> None:
                entity["by"].append(number)
                entity["nested"]["list"].append(number)

            both.wait()
            store.update(id, change, default=default)

        in_threads(*(lambda number=number: append(number) for number in range(4)))
        stored = store.get(id)
        assert sorted(stored["by"]) == [0, 1, 2, 3]
        assert sorted(stored["nested"]["list"]) == [0, 1, 1, 2, 3]
        assert default == {"by": [], "nested": {"list": [1]}}


def test_transactions_that_are_over_leave_nothing_in_memory(store: slim.Datastore) -> None:
    def write(times: int) -> int:
        for _ in range(times):
            store.put({"id": "a"})
            with store.transaction():
                store.update("a", lambda entity: entity.update(n=1))
        gc.collect()
        return len(gc.get_objects())

    before = write(10)
    assert write(100) - before < 50


class Putting:
    """An application's class that calls the store when it is read."""

    store: slim.Datastore | None = None

    def __init__(self) -> None:
        if self.store:
            self.store.put({"id": "read"})

    def __reduce__(self) -> Any:
        return Putting, ()


def test_put_by_a_class_that_update_reads_is_refused(
    connect: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with slim.Datastore(**connect, classes=[Putting]) as store:
        store.put({"id": "a", "value": Putting()})
        monkeypatch.setattr(Putting, "store", store)
        with pytest.raises(slim.Corrupt, match="'a'.* amid another"):
            store.update("a", lambda entity: entity.update(n=1))
        monkeypatch.undo()
        assert "read" not in store
        assert "n" not in store.get("a")
