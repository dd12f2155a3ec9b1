"""Threads and processes on few keys: each version has one winner, sums are kept, connections are not leaked."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import load
import MySQLdb
import pytest
from check import in_threads, sessions, until, wrong

import slim

THREADS, PROCESSES, ROUNDS = 16, 4, 12
KEYS = ["hot-0", "hot-1", "hot-2"]
ACCOUNTS = ["account-0", "account-1", "account-2"]
TRY_AGAIN = {1205, 1213}
INDEXES = [slim.Index("index_user", "user"), slim.Index("index_n", {"n": int})]


def race(store: slim.Datastore, seed: int) -> int:
    """Puts, puts with expect, updates and deletes on few keys; returns how often it added 1 to the counter."""
    dice, added = random.Random(seed), 0
    for _ in range(ROUNDS):
        id, entity = dice.choice(KEYS), {"user": f"user-{seed}", "n": dice.randrange(5)}
        store.put({"id": id, **entity})
        store.delete(dice.choice(KEYS))
        store.update("counter", lambda entity: entity.update(n=entity["n"] + 1))
        added += 1
        transfer(store, *dice.sample(ACCOUNTS, 2), dice.randrange(9))
        try:
            found = store.get("counter")
            store.put({**found, "n": found["n"] + 1}, expect=found.version)
            added += 1
        except slim.Conflict:
            pass
        assert sum(account["n"] for account in store.get_many(ACCOUNTS).values()) == 300
    return added


def transfer(store: slim.Datastore, payer: str, payee: str, n: int) -> None:
    while True:
        try:
            with store.transaction():
                store.update(payer, lambda entity: entity.update(n=entity["n"] - n))
                store.update(payee, lambda entity: entity.update(n=entity["n"] + n))
            return
        except MySQLdb.OperationalError as error:
            if error.args[0] not in TRY_AGAIN:
                raise


def race_in_process(connect: dict[str, Any], seed: int, results: Any) -> None:
    with slim.Datastore(**connect) as store:
        results.put(race(store, seed))


def test_threads_and_processes_on_few_keys_lose_and_bend_nothing(connect: dict[str, Any]) -> None:
    results = load.CONTEXT.Queue()
    with slim.Datastore(**connect, indexes=INDEXES, history=True) as store:
        store.put_many([{"id": "counter", "n": 0}, *({"id": id, "n": 100} for id in ACCOUNTS)])
        processes = [
            load.CONTEXT.Process(target=race_in_process, args=(connect, 100 + n, results))
            for n in range(PROCESSES)
        ]
        for process in processes:
            process.start()
        added = sum(in_threads(*(lambda seed=seed: race(store, seed) for seed in range(THREADS))))
        added += sum(results.get(timeout=60) for _ in processes)
        for process in processes:
            process.join()
        assert store.get("counter")["n"] == added
        assert sorted(entity["n"] for entity in store.history("counter")) == list(range(added + 1))
        assert sum(store.get(id)["n"] for id in ACCOUNTS) == 300
    assert wrong(connect) == []


def test_each_version_has_exactly_one_winner(connect: dict[str, Any]) -> None:
    with slim.Datastore(**connect, history=True) as store:
        store.put({"id": "a", "n": 0})

        def compete() -> list[int]:
            won = []
            while len(store.history("a")) <= 30:
                entity = store.get("a")
                try:
                    store.put({**entity, "n": entity["n"] + 1}, expect=entity.version)
                    won.append(entity.version)
                except slim.Conflict:
                    pass
            return won

        won = [version for versions in in_threads(*[compete] * THREADS) for version in versions]
        assert sorted(won) == sorted(entity.version for entity in store.history("a")[1:])
        assert store.get("a")["n"] == len(won)


def test_exactly_one_of_many_creates_an_entity(store: slim.Datastore) -> None:
    def create() -> bool:
        try:
            return bool(store.put({"id": "a"}, expect=0))
        except slim.Conflict:
            return False

    assert sum(in_threads(*[create] * THREADS)) == 1


def test_delete_of_what_is_absent_spares_the_rows_of_who_is_putting_it(
    connect: dict[str, Any],
) -> None:
    """It has no entity to lock, and must not come to the index rows behind the back of a put."""
    with (
        slim.Datastore(**connect, indexes=INDEXES) as store,
        contextlib.closing(MySQLdb.connect(**connect)) as other,
    ):
        other.query(
            "INSERT INTO index_user (user, entity_id) VALUES ('bob', 'x')"
        )  # as yet it is not committed
        deleted = futures.ThreadPoolExecutor(1).submit(store.delete, "x")
        futures.wait([deleted], timeout=1)
        with other.cursor() as cursor:
            cursor.execute(
                "INSERT INTO entities (id, body) VALUES ('x', %s)",
                [slim.encode({"id": "x", "user": "bob"})],
            )
        other.commit()
        assert deleted.result() is False
    assert wrong(connect) == []


def test_no_deadlock_reaches_a_plain_put_delete_or_put_many(connect: dict[str, Any]) -> None:
    with slim.Datastore(**connect, indexes=INDEXES) as store:

        def write(seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(20):
                some = dice.sample([f"e{n}" for n in range(6)], 4)
                store.put_many(
                    {"id": id, "user": f"user-{dice.randrange(3)}", "n": dice.randrange(3)}
                    for id in some
                )
                store.put({"id": some[0], "user": f"user-{dice.randrange(3)}"})
                store.delete(some[1])

        in_threads(*(lambda seed=seed: write(seed) for seed in range(8)))
    assert wrong(connect) == []


def test_16_threads_that_each_add_1_a_hundred_times_make_1600(
    store: slim.Datastore, capfd: pytest.CaptureFixture[str], server: Any
) -> None:
    store.put({"id": "a", "n": 0})

    def add() -> None:
        for _ in range(100):
            store.update("a", lambda entity: entity.update(n=entity["n"] + 1))

    begun = time.monotonic()
    in_threads(*[add] * THREADS)
    with capfd.disabled():
        print(
            f"\n{server.kind}: {THREADS} threads x 100 updates of one entity in {time.monotonic() - begun:.1f} s",
            flush=True,
        )
    assert store.get("a")["n"] == 1600


def test_threads_that_end_leak_no_connection(
    store: slim.Datastore, sql: Callable[..., Any]
) -> None:
    before = sessions(sql)
    for _ in range(3):
        in_threads(*[lambda: store.put({})] * 10)
    until(lambda: sessions(sql) <= before)
    assert len(store) == 30


def test_scan_given_up_leaks_no_connection(store: slim.Datastore, sql: Callable[..., Any]) -> None:
    store.put_many({} for _ in range(300))
    before = sessions(sql)
    for _ in range(5):
        scan = store.scan()
        next(scan)
        del scan
    until(lambda: sessions(sql) <= before)


def test_forked_child_has_connections_of_its_own_and_leaves_the_parents_alone(
    store: slim.Datastore,
) -> None:
    store.put({"id": "a", "n": 0})
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                for _ in range(20):
                    store.update("a", lambda entity: entity.update(n=entity["n"] + 1))
                store.close()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    for _ in range(20):
        store.update("a", lambda entity: entity.update(n=entity["n"] + 1))
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert store.get("a")["n"] == 80


def test_child_forked_in_a_transaction_does_not_commit_it(store: slim.Datastore) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.put({"id": "a"})
        child = os.fork()
        if child == 0:
            try:
                store.put({"id": "of child"})
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        raise RuntimeError
    assert "a" not in store and "of child" in store


def test_close_while_others_work_ends_them_with_an_error_and_leaves_no_connection(
    connect: dict[str, Any], sql: Callable[..., Any]
) -> None:
    store = slim.Datastore(**connect, indexes=INDEXES)
    working = [threading.Event() for _ in range(8)]

    def work(n: int) -> Exception:
        count = 0
        while True:
            try:
                store.put({"id": f"{n}-{count % 5}", "user": f"user-{n}", "n": count})
            except (slim.Error, MySQLdb.Error) as error:
                return error
            working[n].set()
            count += 1

    def close() -> Exception | None:
        for event in working:
            assert event.wait(20)
        store.close()
        return None

    errors = in_threads(close, *(lambda n=n: work(n) for n in range(8)))
    assert all(errors[1:])
    until(lambda: not sessions(sql))
    with pytest.raises(slim.Error, match="closed"):
        store.get("0-0")
    assert wrong(connect) == []


def test_put_after_many_deadlocks_still_reads_the_catalogue_again(
    store: slim.Datastore, sql: Callable[..., Any]
) -> None:
    """The guard's rename is met last: a table that is missing, 1146, after eight deadlocks."""
    sql("""CREATE TRIGGER failing BEFORE INSERT ON entities FOR EACH ROW BEGIN
     SET @tries = COALESCE(@tries, 0) + 1;
     IF @tries < 9 THEN SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END IF;
     IF @tries = 9 THEN SIGNAL SQLSTATE '42S02' SET MYSQL_ERRNO = 1146; END IF; END""")
    assert store.get(store.put({"n": 1})) is not None


def test_exception_of_a_signal_handler_leaves_a_store_that_works(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    """It is raised between a query and its result, which nobody reads then."""
    store.put({"id": "a"})

    def late(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    other = MySQLdb.connect(**connect)
    try:
        other.query("LOCK TABLES entities WRITE")
        unlock = threading.Timer(0.5, other.close)
        unlock.start()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(TimeoutError):
            store.get("a")
        unlock.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert store.get("a") == {"id": "a"}
    store.delete("a")


def test_threads_of_a_forked_child_may_all_begin_at_once(store: slim.Datastore) -> None:
    def get(barrier: threading.Barrier) -> None:
        barrier.wait()
        store.get("a")

    for _ in range(20):
        child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                sys.setswitchinterval(1e-6)
                in_threads(*[functools.partial(get, threading.Barrier(12))] * 12)
                status = 0
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
