"""populate makes an index agree with its entities while all go on writing, and no program can make one wrong."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import load
import MySQLdb
import pytest
from check import in_threads, until, wrong
from proxy import Before, Packet, Proxy, proxied

import slim

Sql = Callable[..., list[tuple[Any, ...]]]
BY_USER = slim.Index("index_user", "user")
BY_NUMBER = slim.Index("index_number", {"number": int})
BY_EMAIL = slim.Index("index_email", "email", unique=True)
WRITERS, KEYS = 6, 60


class BeforePage(Before):
    """Calls action() before this page of the entities, from 1 on, is read by populate."""

    def __init__(self, number: int, action: Callable[[], object]) -> None:
        super().__init__(b"FROM entities AS e LEFT JOIN", action)
        self.left = number

    def __call__(self, packet: Packet) -> int | None:
        if packet.from_client and self.text in packet.data:
            self.left -= 1
        return None if self.left else super().__call__(packet)


@pytest.fixture
def proxy_and_connect(connect: dict[str, Any]) -> Iterator[tuple[Proxy, dict[str, Any]]]:
    with proxied(connect) as both:
        yield both


def entity(dice: random.Random) -> dict[str, Any]:
    whole = {"user": f"user-{dice.randrange(5)}", "number": dice.randrange(9)}
    return {
        "id": f"e{dice.randrange(KEYS)}",
        **{name: value for name, value in whole.items() if dice.random() < 0.8},
    }


def write_until(stop: threading.Event, store: slim.Datastore, seed: int) -> int:
    """Puts, updates and deletes; returns how many."""
    dice, count = random.Random(seed), 0
    while not stop.is_set():
        store.put(entity(dice))
        store.update(
            f"e{dice.randrange(KEYS)}",
            lambda entity: entity.update(number=dice.randrange(9)),
            default={},
        )
        store.delete(f"e{dice.randrange(KEYS)}")
        count += 3
    return count


# ---- What it repairs


def test_populate_repairs_and_counts_missing_stale_and_orphaned_rows(
    store: slim.Datastore, connect: dict[str, Any], sql: Sql
) -> None:
    store.add_index(BY_USER)
    store.put_many({"id": f"e{n}", "user": "bob"} for n in range(600))
    sql("DELETE FROM index_user WHERE entity_id IN ('e1', 'e599')")
    sql("UPDATE index_user SET user = 'ann' WHERE entity_id IN ('e2', 'e300', 'e598')")
    sql("INSERT INTO index_user (user, entity_id) VALUES ('bob', 'nobody')")
    assert len(wrong(connect)) == 2 + 2 * 3 + 1
    assert BY_USER.populate(store) == 6
    assert wrong(connect) == []
    assert BY_USER.populate(store) == 0


def test_orphans_of_a_unique_index_do_not_block_the_repair_of_entities(
    store: slim.Datastore, connect: dict[str, Any], sql: Sql
) -> None:
    store.add_index(BY_EMAIL)
    store.put_many({"id": f"e{n}", "email": f"{n}@x"} for n in range(5))
    sql("DELETE FROM index_email WHERE entity_id IN ('e1', 'e2')")
    sql("INSERT INTO index_email (email, entity_id) VALUES ('1@x', 'nobody'), ('2@x', 'no one')")
    assert BY_EMAIL.populate(store) == 4
    assert wrong(connect) == []


def test_rows_of_a_unique_index_that_were_exchanged_are_repaired(
    store: slim.Datastore, connect: dict[str, Any], sql: Sql
) -> None:
    store.add_index(BY_EMAIL)
    store.put_many([{"id": "a", "email": "1@x"}, {"id": "b", "email": "2@x"}])
    sql("DELETE FROM index_email")
    sql("INSERT INTO index_email (email, entity_id) VALUES ('2@x', 'a'), ('1@x', 'b')")
    assert BY_EMAIL.populate(store) == 2
    assert wrong(connect) == []


def test_more_orphans_than_a_page_are_deleted(
    store: slim.Datastore, connect: dict[str, Any], sql: Sql
) -> None:
    store.add_index(BY_USER)
    store.put({"id": "a", "user": "bob"})
    rows = ", ".join(f"('bob', 'nobody {n:05}')" for n in range(2_500))
    sql(f"INSERT INTO index_user (user, entity_id) VALUES {rows}")
    assert BY_USER.populate(store) == 2_500
    assert wrong(connect) == []


def test_populate_of_a_unique_index_names_the_duplicate_and_adds_no_index(
    store: slim.Datastore,
) -> None:
    store.put_many({"id": f"e{n}", "email": f"{n % 9}"} for n in range(10))
    with pytest.raises(slim.Duplicate) as caught:
        store.add_index(BY_EMAIL)
    assert caught.value.id in ("e0", "e9") and caught.value.index.table == "index_email"
    assert store.indexes == []
    store.delete("e9")
    store.add_index(BY_EMAIL)
    assert BY_EMAIL.count(store) == 9


def test_populate_of_what_the_index_cannot_have_names_the_entity(store: slim.Datastore) -> None:
    store.put_many([{"id": "e1", "number": 1}, {"id": "e2", "number": "two"}])
    with pytest.raises(TypeError, match="'e2'.*number.*'two'"):
        store.add_index(BY_NUMBER)
    assert store.indexes == []
    store.put({"id": "e3", "number": "three"})


def test_populate_names_an_entity_that_cannot_be_read(store: slim.Datastore, sql: Sql) -> None:
    store.put({"id": "a", "user": "bob"})
    sql("INSERT INTO entities (id, body) VALUES ('broken', 'no body')")
    with pytest.raises(slim.Corrupt, match="'broken'") as caught:
        store.add_index(BY_USER)
    assert caught.value.id == "broken"
    assert store.delete("broken")
    store.add_index(BY_USER)
    assert BY_USER.count(store) == 1


def test_value_that_would_be_rounded_is_named_by_populate(store: slim.Datastore, sql: Sql) -> None:
    by_price = slim.Index("by_price", {"price": Decimal})
    exact = Decimal(1).scaleb(-31)
    body = slim.encode({"id": "x", "price": exact})
    sql("INSERT INTO entities (id, body) VALUES ('x', %s)", [body])
    with pytest.raises(ValueError, match="'x'.*price"):
        store.add_index(by_price)
    assert store.indexes == []


# ---- While others write


@pytest.mark.parametrize("run", range(3))
def test_populate_while_threads_write_ends_with_no_row_wrong(
    run: int, connect: dict[str, Any]
) -> None:
    """The writers' Datastore was open before there was the index, and nobody tells it."""
    stop = threading.Event()
    with slim.Datastore(**connect) as old, slim.Datastore(**connect) as new:
        dice = random.Random(run)
        old.put_many(entity(dice) for _ in range(200))

        def add() -> int:
            try:
                new.add_index(BY_USER)
                new.add_index(BY_NUMBER)
                time.sleep(0.2)
            finally:
                stop.set()
            return 1

        counts = in_threads(
            add,
            *(
                lambda seed=seed: write_until(stop, old, 100 * run + seed)
                for seed in range(WRITERS)
            ),
        )
        assert all(counts)
        assert {found["id"] for found in BY_USER.get_all(old, user="user-1")} == {
            found["id"] for found in old if found.get("user") == "user-1"
        }
        assert wrong(connect) == []
        assert (BY_USER.populate(new), BY_NUMBER.populate(new)) == (0, 0)


def test_entities_that_are_deleted_under_populate_leave_no_row(
    proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    proxy, through = proxy_and_connect
    with slim.Datastore(**through) as one, slim.Datastore(**connect) as two:
        two.put_many({"id": f"e{n:05}", "user": f"u{n % 3}"} for n in range(2_500))
        begun = threading.Event()
        proxy.cut = Before(b"FOR UPDATE", begun.set)
        # Else it could be done before they are.
        proxy.delay = 0.01

        def delete() -> int:
            assert begun.wait(20)
            return sum(two.delete(f"e{n:05}") for n in range(0, 2_500, 25))

        def put_without() -> int:
            assert begun.wait(20)
            for n in range(1, 2_500, 25):
                two.put({"id": f"e{n:05}"})
            return 1

        added, deleted, _ = in_threads(
            lambda: one.add_index(BY_USER) is BY_USER, delete, put_without
        )
        assert added and deleted == 100
        assert BY_USER.populate(two) == 0
        assert BY_USER.count(two) == 2_300
    assert wrong(connect) == []


def test_entity_that_changes_between_the_pages_of_populate_has_its_row(
    proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    """A put moves it to another place: behind what was looked at, or before."""
    proxy, through = proxy_and_connect
    with slim.Datastore(**through) as one, slim.Datastore(**connect) as two:
        two.put_many({"id": f"e{n:05}", "user": "bob"} for n in range(2_500))

        def change() -> None:
            two.put({"id": "e00001", "user": "ann"})
            two.put({"id": "e02400", "user": "ann"})
            two.delete("e00002")
            two.delete("e02401")

        one.add_index(BY_USER, populate=False)
        before = BeforePage(6, change)
        proxy.cut = before
        BY_USER.populate(one)
        assert before.done
        assert BY_USER.count(two, user="ann") == 2
        assert BY_USER.populate(two) == 0
    assert wrong(connect) == []


def test_two_that_populate_one_index_and_writers_do_not_wait_for_each_other(
    connect: dict[str, Any],
) -> None:
    with contextlib.ExitStack() as stack:
        first, second, writer = (stack.enter_context(slim.Datastore(**connect)) for _ in range(3))
        first.put_many({"id": f"e{n}", "user": "bob"} for n in range(500))
        first.add_index(BY_USER, populate=False)
        begun = time.monotonic()

        def write() -> None:
            for n in range(100):
                writer.put({"id": f"e{n}", "user": "ann"})

        in_threads(lambda: BY_USER.populate(first), lambda: BY_USER.populate(second), write)
        # A lock is waited for 50 s.
        assert time.monotonic() - begun < 20
        assert BY_USER.count(first, user="ann") == 100
    assert wrong(connect) == []


def test_index_that_is_removed_and_made_again_with_other_types_while_it_is_populated(
    proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    """It is not written by what was known of the first one, nor said to be complete."""
    proxy, through = proxy_and_connect
    other = slim.Index("index_user", {"number": int})
    with slim.Datastore(**through) as one, slim.Datastore(**connect) as two:
        two.put_many({"user": "bob", "number": 1} for _ in range(2_500))

        def make_other() -> None:
            two.remove_index(BY_USER)
            two.add_index(other, populate=False)

        one.add_index(BY_USER, populate=False)
        before = BeforePage(6, make_other)
        proxy.cut = before
        with pytest.raises((slim.NotPopulated, ValueError)):
            BY_USER.populate(one)
        assert before.done
        for store in one, two:
            with pytest.raises(slim.NotPopulated):
                other.count(store)
        other.populate(two)
        assert other.count(one, number=1) == 2_500
    assert wrong(connect) == []


@pytest.mark.parametrize("page", [1, 10, 11])
def test_index_that_is_removed_and_made_again_while_it_is_populated_is_not_half_complete(
    page: int, proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    proxy, through = proxy_and_connect
    with slim.Datastore(**through) as one, slim.Datastore(**connect) as two:
        two.put_many({"user": "bob"} for _ in range(2_500))

        def make_anew() -> None:
            two.remove_index(BY_USER)
            two.add_index(BY_USER, populate=False)

        # After ten full pages there is an empty one.
        before = BeforePage(page, make_anew)
        proxy.cut = before
        with pytest.raises(slim.NotPopulated):
            one.add_index(BY_USER)
        assert before.done
        with pytest.raises(slim.NotPopulated):
            BY_USER.count(two, user="bob")
        assert BY_USER.populate(two) == 2_500
        assert BY_USER.count(one, user="bob") == 2_500
    assert wrong(connect) == []


def test_populate_ends_though_an_entity_is_put_before_each_of_its_pages(
    proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    proxy, through = proxy_and_connect
    with slim.Datastore(**through) as one, slim.Datastore(**connect) as two:
        one.add_index(BY_USER, populate=False)
        pages = 0

        def put(packet: Packet) -> int | None:
            nonlocal pages
            if packet.from_client and b"FOR UPDATE" in packet.data:
                pages += 1
                two.put({"user": "bob"})
            # One that goes on would be ended by this.
            return 0 if pages > 20 else None

        proxy.cut = put
        assert BY_USER.populate(one) == 0
        proxy.cut = None
        assert BY_USER.count(one, user="bob") == pages < 5
    assert wrong(connect) == []


@pytest.mark.parametrize("page", [1, 3, 11])
def test_index_that_is_removed_while_it_is_populated_says_so(
    page: int, proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    proxy, through = proxy_and_connect
    with slim.Datastore(**through) as one, slim.Datastore(**connect) as two:
        two.put_many({"user": "bob"} for _ in range(2_500))
        one.add_index(BY_USER, populate=False)
        before = BeforePage(page, lambda: two.remove_index(BY_USER))
        proxy.cut = before
        with pytest.raises(slim.NotPopulated):
            BY_USER.populate(one)
        assert before.done
        assert one.indexes == []


def test_put_that_waits_for_populate_is_not_undone_by_it(
    proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    """The page is locked: the put comes before it is read, or after its row was written."""
    proxy, through = proxy_and_connect
    with slim.Datastore(**through) as one, slim.Datastore(**connect) as two:
        two.put_many({"id": f"e{n}", "user": "bob"} for n in range(50))
        one.add_index(BY_USER, populate=False)
        writer = threading.Thread(target=lambda: two.put({"id": "e7", "user": "ann"}))
        waits: list[bool] = []

        def put_meanwhile() -> None:
            writer.start()
            writer.join(0.5)
            waits.append(writer.is_alive())

        before = Before(b"INSERT INTO `index_user`", put_meanwhile)
        proxy.cut = before
        BY_USER.populate(one)
        writer.join(20)
        assert before.done and waits == [True]
        assert BY_USER.get_all(two, user="ann") == [{"id": "e7", "user": "ann"}]
    assert wrong(connect) == []


def test_row_that_is_wrong_by_the_time_the_index_is_published_is_repaired(
    proxy_and_connect: Any, connect: dict[str, Any], sql: Sql
) -> None:
    """Where there are several servers another one may write what is locked here."""
    proxy, through = proxy_and_connect
    with slim.Datastore(**through) as one:
        one.put_many({"id": f"e{n:03}", "user": "bob"} for n in range(600))
        one.add_index(BY_USER, populate=False)

        def bend() -> None:
            sql("UPDATE index_user SET user = 'ann' WHERE entity_id IN ('e001', 'e599')")

        # The lock is taken to publish it.
        before = Before(b"GET_LOCK", bend)
        proxy.cut = before
        assert BY_USER.populate(one) == 600 + 2
        assert before.done
    assert wrong(connect) == []


# ---- Killed, and run again


def populate(connect: dict[str, Any]) -> None:
    with slim.Datastore(**connect) as store:
        BY_USER.populate(store)


def test_populate_killed_half_way_is_run_again_and_ends_right(
    proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    proxy, through = proxy_and_connect
    with slim.Datastore(**connect) as store:
        store.put_many({"user": f"user-{n % 7}"} for n in range(4_000))
        store.add_index(BY_USER, populate=False)
        process = load.CONTEXT.Process(target=populate, args=(through,), daemon=True)
        before = BeforePage(6, lambda: process.kill())
        proxy.cut = before
        process.start()
        until(lambda: before.done)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        with pytest.raises(slim.NotPopulated):
            BY_USER.get_all(store, user="user-1")
        store.put({"id": "meanwhile", "user": "user-1"})
        # Five pages were committed.
        assert BY_USER.populate(store) == 4_000 - 5 * 250
        assert BY_USER.count(store, user="user-1") == 573
        assert len(BY_USER.get_all(store, user="user-1")) == 573
        assert BY_USER.populate(store) == 0
    assert wrong(connect) == []


def test_populate_that_is_given_up_is_run_again(
    proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    proxy, through = proxy_and_connect
    with slim.Datastore(**through) as store:
        store.put_many({"user": "bob"} for _ in range(2_500))
        # Python raises KeyboardInterrupt in the main thread.
        before = BeforePage(6, lambda: signal.raise_signal(signal.SIGINT))
        proxy.cut = before
        with pytest.raises(KeyboardInterrupt):
            store.add_index(BY_USER)
        assert before.begun
        with pytest.raises(slim.NotPopulated):
            BY_USER.count(store)
        store.add_index(BY_USER)
        assert BY_USER.count(store) == 2_500
    assert wrong(connect) == []


# ---- Who knows of it


def test_program_that_names_no_index_keeps_all_of_them(connect: dict[str, Any]) -> None:
    both = slim.Index("index_both", {"number": int, "user": str}, unique=True)
    with slim.Datastore(**connect, indexes=[BY_USER, both]):
        pass
    with slim.Datastore(**connect) as script:
        tables = sorted(index.table for index in script.indexes)
        assert tables == ["index_both", "index_user"]
        script.put_many({"id": f"e{n}", "user": "bob", "number": n} for n in range(9))
        script.update("e1", lambda entity: entity.update(user="ann"))
        script.update("e2", lambda entity: entity.pop("user") and None)
        script.delete("e3")
        with pytest.raises(slim.Duplicate):
            script.put({"id": "e4", "user": "bob", "number": 5})
    assert wrong(connect) == []


def test_index_not_populated_answers_in_no_process_until_it_is(connect: dict[str, Any]) -> None:
    with slim.Datastore(**connect) as before, slim.Datastore(**connect) as maker:
        before.put_many({"id": f"e{n}", "user": "bob"} for n in range(5))
        maker.add_index(BY_USER, populate=False)
        with slim.Datastore(**connect) as later:
            for store in before, maker, later:
                store.put({"id": "new", "user": "bob"})
                for query in (
                    lambda store=store: BY_USER.get_all(store, user="bob"),
                    lambda store=store: BY_USER.count(store),
                    lambda store=store: list(BY_USER.find(store, {})),
                ):
                    with pytest.raises(slim.NotPopulated, match="index_user"):
                        query()
            assert BY_USER.populate(maker) == 5
            for store in before, maker, later:
                assert BY_USER.count(store, user="bob") == 6
    assert wrong(connect) == []


def test_add_index_waits_for_a_transaction_that_does_not_know_it(
    connect: dict[str, Any], sql: Sql
) -> None:
    put, added = threading.Event(), threading.Event()
    # It waits for none there.
    galera = bool(sql("SHOW STATUS WHERE variable_name = 'wsrep_connected' AND value = 'ON'"))
    raises = pytest.raises(MySQLdb.OperationalError, match="1213")
    with slim.Datastore(**connect) as old, slim.Datastore(**connect) as new:

        def write() -> None:
            with raises if galera else contextlib.nullcontext():
                with old.transaction():
                    old.put({"id": "a", "user": "bob"})
                    put.set()
                    assert added.wait(10 if galera else 0.3) == galera

        def add() -> None:
            assert put.wait(10)
            new.add_index(BY_USER)
            added.set()

        in_threads(write, add)
        assert BY_USER.count(new, user="bob") == len(old) == (not galera)
    assert wrong(connect) == []


def test_removed_index_is_gone_for_processes_that_know_it(connect: dict[str, Any]) -> None:
    with slim.Datastore(**connect, indexes=[BY_USER]) as old, slim.Datastore(**connect) as new:
        new.remove_index(BY_USER)
        old.put({"id": "a", "user": "bob"})
        assert old.get("a")["user"] == "bob" and old.indexes == []
        with pytest.raises(slim.NotPopulated):
            BY_USER.get_all(old, user="bob")


def test_indexes_that_come_and_go_at_once_are_right_when_they_are_added(
    connect: dict[str, Any],
) -> None:
    end = time.monotonic() + 5
    wrong_rows: list[int] = []

    def come_and_go(table: str) -> None:
        index = slim.Index(table, "user")
        with slim.Datastore(**connect) as store:
            while time.monotonic() < end:
                store.add_index(index)
                time.sleep(random.uniform(0, 0.03))
                wrong_rows.append(index.populate(store))
                store.remove_index(index)

    def write(number: int) -> None:
        dice = random.Random(number)
        with slim.Datastore(**connect) as store:
            while time.monotonic() < end:
                store.put({"id": f"e{dice.randrange(100)}", "user": f"u{dice.randrange(5)}"})
                time.sleep(dice.uniform(0, 0.01))

    with slim.Datastore(**connect):
        in_threads(
            lambda: come_and_go("by_user"),
            lambda: come_and_go("zz_user"),
            *(lambda number=number: write(number) for number in range(4)),
        )
    assert wrong_rows and not any(wrong_rows)
    assert wrong(connect) == []


def test_index_whose_properties_are_named_in_another_order_writes_no_wrong_row(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    """It is refused, or it is the same."""
    store.add_index(slim.Index("by_two", ["b", "a"]))
    store.put({"id": "two", "a": "A", "b": "B"})
    other = slim.Index("by_two", ["a", "b"])
    calls: list[Callable[[], Any]] = [
        lambda: store.add_index(other),
        lambda: other.populate(store),
        lambda: other.count(store),
    ]
    for call in calls:
        with contextlib.suppress(ValueError):
            call()
        assert wrong(connect) == []
