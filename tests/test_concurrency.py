"""Threads and processes on few keys: each version has one winner, sums are kept, nothing is lost."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import load
import MySQLdb
import pytest
from check import in_threads, together, wrong
from server import Named

import slim

Sql = Callable[..., list[tuple[Any, ...]]]
THREADS, PROCESSES, ROUNDS = 16, 4, 8
KEYS = ["hot-0", "hot-1", "hot-2"]
ACCOUNTS = ["account-0", "account-1", "account-2"]
BY_USER = slim.Index("index_user", "user")
BY_N = slim.Index("index_n", {"n": int})
INDEXES = [BY_USER, BY_N]


def add_one(entity: Any) -> None:
    entity["n"] += 1


# ---- Races


def race(store: slim.Datastore, seed: int) -> list[int]:
    """Puts, puts with expect, updates and deletes; returns to what it has raised the counter."""
    dice = random.Random(seed)
    added = []
    for _ in range(ROUNDS):
        entity = {"user": f"user-{seed}", "n": dice.randrange(5)}
        store.put({"id": dice.choice(KEYS), **entity})
        store.delete(dice.choice(KEYS))
        added.append(store.update("counter", add_one)["n"])
        transfer(store, *dice.sample(ACCOUNTS, 2), dice.randrange(9))
        with contextlib.suppress(slim.Conflict):
            found = store.get("counter")
            store.put({**found, "n": found["n"] + 1}, expect=found.version)
            added.append(found["n"] + 1)
        assert sum(account["n"] for account in store.get_many(ACCOUNTS).values()) == 300
    return added


def transfer(store: slim.Datastore, payer: str, payee: str, n: int) -> None:
    def once() -> None:
        with store.transaction():
            store.update(payer, lambda entity: entity.update(n=entity["n"] - n))
            store.update(payee, lambda entity: entity.update(n=entity["n"] + n))

    together(once, tries=1_000)


def race_in_process(connect: dict[str, Any], seed: int, results: Any) -> None:
    with slim.Datastore(**connect) as store:
        results.put(race(store, seed))


def test_threads_and_processes_on_few_keys_lose_and_bend_nothing(connect: dict[str, Any]) -> None:
    results = load.CONTEXT.Queue()
    with slim.Datastore(**connect, indexes=INDEXES) as store:
        store.put_many([{"id": "counter", "n": 0}, *({"id": id, "n": 100} for id in ACCOUNTS)])
        processes = [
            load.CONTEXT.Process(target=race_in_process, args=(connect, 100 + n, results))
            for n in range(PROCESSES)
        ]
        for process in processes:
            process.start()
        added = in_threads(*(lambda seed=seed: race(store, seed) for seed in range(THREADS)))
        added += [results.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
        # Each number once: none was lost, none done twice.
        numbers = sorted(itertools.chain(*added))
        assert numbers == list(range(1, len(numbers) + 1))
        assert store.get("counter")["n"] == len(numbers)
        assert sum(store.get(id)["n"] for id in ACCOUNTS) == 300
    assert wrong(connect) == []


def test_each_version_has_exactly_one_winner(store: slim.Datastore) -> None:
    store.put({"id": "a", "n": 0})

    def compete() -> list[int]:
        won = []
        while (entity := store.get("a"))["n"] < 30:
            with contextlib.suppress(slim.Conflict):
                store.put({**entity, "n": entity["n"] + 1}, expect=entity.version)
                won.append(entity.version)
        return won

    won = [version for versions in in_threads(*[compete] * 8) for version in versions]
    assert len(won) == len(set(won)) == store.get("a")["n"] == 30


@pytest.mark.parametrize("id", ["a", "z"])
def test_exactly_one_of_many_creates_an_entity_and_the_others_conflict(
    id: str, store: slim.Datastore
) -> None:
    # What stands beside it may be locked, too.
    store.put({"id": "m"})
    for _ in range(5):

        def create() -> int:
            try:
                store.put({"id": id}, expect=0)
            except slim.Conflict as error:
                assert error.found > 0
                return 0
            return 1

        assert sum(in_threads(*[create] * THREADS)) == 1
        assert store.delete(id)


def test_exactly_one_of_many_deletes_an_entity(store: slim.Datastore) -> None:
    for _ in range(5):
        store.put({"id": "a"})
        assert sum(in_threads(*[lambda: store.delete("a")] * 8)) == 1


def test_exactly_one_of_many_gets_a_unique_value(connect: dict[str, Any]) -> None:
    unique = slim.Index("index_email", "email", unique=True)
    with slim.Datastore(**connect, indexes=[unique]) as store:
        for n in range(5):

            def take(id: str, n: int = n) -> int:
                try:
                    store.put({"id": id, "email": f"{n}@x"})
                except slim.Duplicate as error:
                    assert error.id != id
                    return 0
                return 1

            assert sum(in_threads(*(lambda id=id: take(id) for id in "abcdefgh"))) == 1
    assert wrong(connect) == []


def test_delete_of_what_is_absent_spares_the_rows_of_who_is_putting_it(
    connect: dict[str, Any],
) -> None:
    """It has no entity to lock, and must not come to the index rows behind the back of a put."""
    with (
        slim.Datastore(**connect, indexes=INDEXES) as store,
        contextlib.closing(MySQLdb.connect(**connect)) as other,
    ):
        # A sharded server has learned of the indexes when this returns.
        store.delete("x")
        # As yet it is not committed.
        other.query("INSERT INTO index_user (user, entity_id) VALUES ('bob', 'x')")
        deleted = futures.ThreadPoolExecutor(1).submit(store.delete, "x")
        futures.wait([deleted], timeout=1)
        with other.cursor() as cursor:
            body = slim.encode({"id": "x", "user": "bob"})
            cursor.execute("INSERT INTO entities (id, body) VALUES ('x', %s)", [body])
        other.commit()
        assert deleted.result(timeout=20) is False
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


# ---- Counting


def test_8_threads_that_each_add_1_a_hundred_times_make_800(
    store: slim.Datastore, capfd: pytest.CaptureFixture[str], server: Named
) -> None:
    store.put({"id": "a", "n": 0})
    begun = time.monotonic()
    in_threads(*[lambda: [store.update("a", add_one) for _ in range(100)]] * 8)
    with capfd.disabled():
        took = time.monotonic() - begun
        print(f"\n{server.name}: 8 threads x 100 updates in {took:.1f} s", flush=True)
    assert store.get("a")["n"] == 800


def test_threads_that_get_change_and_put_in_blocks_lose_no_update(store: slim.Datastore) -> None:
    store.put({"id": "a", "n": 0})

    def once() -> None:
        with store.transaction():
            entity = store.get("a")
            entity["n"] += 1
            store.put(entity)

    in_threads(*[lambda: [together(once, tries=1_000) for _ in range(25)]] * 8)
    assert store.get("a")["n"] == 200


def test_threads_that_create_what_they_count_lose_no_update(store: slim.Datastore) -> None:
    for id in "abc":
        calls = [lambda id=id: store.update(id, add_one, default={"n": 0}) for _ in range(8)]
        in_threads(*calls)
        assert store.get(id)["n"] == 8


def test_threads_that_count_two_entities_in_opposite_order_keep_both(
    store: slim.Datastore,
) -> None:
    store.put_many([{"id": "a", "n": 0}, {"id": "m"}, {"id": "z", "n": 0}])

    def count(*ids: str) -> None:
        def once() -> None:
            with store.transaction():
                for id in ids:
                    store.update(id, add_one)

        for _ in range(10):
            together(once, tries=1_000)

    in_threads(*[lambda: count("a", "z"), lambda: count("z", "a")] * 3)
    assert [store.get(id)["n"] for id in "az"] == [60, 60]


# ---- What the server may answer instead: 1020 is MariaDB's, 3101 is Group Replication's


CODES = [1020, 1205, 1213, 3101, 3024]
CALLS: dict[str, Callable[[slim.Datastore], Any]] = {
    "put": lambda store: store.put({"id": "a", "n": 2}),
    "put anew": lambda store: store.put({"n": 2}),
    "put_many": lambda store: store.put_many([{"id": "a", "n": 2}, {"n": 3}]),
    "expect": lambda store: store.put({"id": "a", "n": 2}, expect=store.get("a").version),
    "expect none": lambda store: store.put({"id": "b", "n": 2}, expect=0),
    "update": lambda store: store.update("a", add_one),
    "update with default": lambda store: store.update("b", add_one, default={"n": 1}),
}


# How many there were before.
TRIED = "(LAST_INSERT_ID() - 1) DIV @@auto_increment_increment"


def fail(sql: Sql, code: int, table: str, event: str = "INSERT", times: int = 2) -> None:
    """The next writes to the table fail by this error, so many times."""
    # AUTO_INCREMENT counts also what is rolled back; on a cluster in steps of its nodes.
    sql("DROP TABLE IF EXISTS tries")
    sql("CREATE TABLE tries (n BIGINT AUTO_INCREMENT PRIMARY KEY)")
    sql("DROP TRIGGER IF EXISTS failing")
    sql(f"""
CREATE TRIGGER failing BEFORE {event} ON {table} FOR EACH ROW BEGIN
  INSERT INTO tries VALUES (NULL);
  IF {TRIED} < {times} THEN
    SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'as a server says it';
  END IF;
END""")


def failed(sql: Sql) -> int:
    """How many writes to the table were tried."""
    sql("INSERT INTO tries VALUES (NULL)")
    return int(sql(f"SELECT {TRIED}")[0][0])


@pytest.mark.parametrize("code", CODES)
def test_call_that_was_rolled_back_is_made_again(
    code: int, long: bool, connect: dict[str, Any], sql: Sql
) -> None:
    tables = "entities", "index_n"
    places = [(name, table) for name in CALLS for table in tables]
    if not long:
        # The codes take turns.
        places = places[CODES.index(code) :: len(CODES)]
    with slim.Datastore(**connect, indexes=INDEXES) as store:
        for name, table in places:
            store.put({"id": "a", "n": 1})
            store.delete("b")
            fail(sql, code, table)
            CALLS[name](store)
            assert failed(sql) > 2, (name, table)
            sql("DROP TRIGGER failing")
        for table in "entities", "index_n":
            store.put({"id": "a", "n": 1})
            fail(sql, code, table, "DELETE")
            assert store.delete("a")
            assert failed(sql) > 2
    assert wrong(connect) == []


@pytest.mark.parametrize("code", CODES)
def test_populate_and_changes_of_the_catalogue_that_were_rolled_back_are_made_again(
    code: int, connect: dict[str, Any], sql: Sql
) -> None:
    with slim.Datastore(**connect) as store:
        store.put_many({"n": n} for n in range(5))
        fail(sql, code, "entities_catalogue")
        store.add_index(BY_N)
        assert BY_N.count(store) == 5
        sql("DROP TRIGGER failing")
        sql("DELETE FROM index_n")
        fail(sql, code, "index_n")
        assert BY_N.populate(store) == 5
        sql("DROP TRIGGER failing")
        sql("INSERT INTO index_n (n, entity_id) VALUES (1, 'nobody')")
        fail(sql, code, "index_n", "DELETE")
        assert BY_N.populate(store) == 1
        sql("DROP TRIGGER failing")
        fail(sql, code, "entities_catalogue")
        store.remove_index(BY_N)
        assert failed(sql) > 2 and store.indexes == []
    assert wrong(connect) == []


@pytest.mark.parametrize("code", CODES)
def test_block_that_was_rolled_back_is_raised_and_made_again_by_its_author(
    code: int, connect: dict[str, Any], sql: Sql
) -> None:
    with slim.Datastore(**connect, indexes=INDEXES) as store:
        store.put({"id": "a", "n": 1})
        calls = []

        def once() -> None:
            calls.append(None)
            with store.transaction():
                store.update("a", add_one)
                store.put({"id": "b", "n": 1})

        fail(sql, code, "index_n")
        for _ in range(2):
            with pytest.raises(MySQLdb.OperationalError) as caught:
                once()
            assert caught.value.args[0] == code
            assert store.get_many("ab") == {"a": {"id": "a", "n": 1}}
        once()
        assert store.get_many("ab") == {"a": {"id": "a", "n": 2}, "b": {"id": "b", "n": 1}}
    assert wrong(connect) == []


def test_call_that_never_comes_through_is_given_up_in_time(
    store: slim.Datastore, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slim, "RETRY_SECONDS", 1)
    fail(sql, 1213, "entities", times=1_000_000)
    begun = time.monotonic()
    with pytest.raises(MySQLdb.OperationalError, match="1213"):
        store.put({"id": "a"})
    assert 1 <= time.monotonic() - begun < 5
    assert 5 < failed(sql) < 2_000


def test_put_after_many_deadlocks_still_reads_the_catalogue_again(
    store: slim.Datastore, connect: dict[str, Any], sql: Sql
) -> None:
    fail(sql, 1213, "entities", times=8)
    with futures.ThreadPoolExecutor(1) as pool, slim.Datastore(**connect) as other:
        put = pool.submit(store.put, {"id": "a", "n": 1})
        other.add_index(BY_N)
        put.result(timeout=30)
        assert BY_N.count(other) == 1
    assert wrong(connect) == []


def test_reader_meets_no_error_while_others_write(connect: dict[str, Any]) -> None:
    end = time.monotonic() + 3
    with slim.Datastore(**connect, indexes=INDEXES) as store:
        store.put_many({"id": f"e{n}", "n": 0, "user": "bob"} for n in range(20))

        def write(seed: int) -> None:
            dice = random.Random(seed)
            while time.monotonic() < end:
                store.put({"id": f"e{dice.randrange(20)}", "n": dice.randrange(3), "user": "bob"})

        def read() -> int:
            count = 0
            while time.monotonic() < end or count < 3:
                assert len(store) == len(list(store)) == len(BY_USER.get_all(store, user="bob"))
                assert all(found["n"] == 1 for found in BY_N.get_all(store, n=1))
                assert len(store.get_many([f"e{n}" for n in range(20)])) == 20
                count += 1
            return count

        assert all(in_threads(read, read, *(lambda s=s: write(s) or 1 for s in range(4))))
    assert wrong(connect) == []
