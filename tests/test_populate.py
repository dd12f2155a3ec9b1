"""populate makes an index agree with its entities while all go on writing, and no program can make one wrong."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from decimal import Decimal
from typing import Any

import load
import MySQLdb
import pytest
from check import in_threads, until, wrong

import slim

BY_USER = slim.Index("index_user", "user")
BY_NUMBER = slim.Index("index_number", {"number": int})
WRITERS, KEYS = 8, 60


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


def populate_until_killed(connect: dict[str, Any], path: Any) -> None:
    def progress(rows: Any, total: int) -> Iterator[Any]:
        for number, row in enumerate(rows):
            if number == 1500:
                path.touch()
                threading.Event().wait()  # for the SIGKILL
            yield row

    with slim.Datastore(**connect) as store:
        BY_USER.populate(store, progress=progress)


def test_program_that_names_no_index_keeps_all_of_them(connect: dict[str, Any]) -> None:
    with slim.Datastore(
        **connect,
        indexes=[BY_USER, slim.Index("index_both", {"number": int, "user": str}, unique=True)],
    ):
        pass
    with slim.Datastore(**connect) as script:
        assert [index.table for index in script.indexes] == ["index_both", "index_user"]
        script.put_many({"id": f"e{n}", "user": "bob", "number": n} for n in range(9))
        script.update("e1", lambda entity: entity.update(user="ann"))
        script.update("e2", lambda entity: entity.pop("user"))
        script.delete("e3")
        with pytest.raises(slim.Duplicate):
            script.put({"id": "e4", "user": "bob", "number": 5})
    assert wrong(connect) == []


@pytest.mark.parametrize("run", range(10))
def test_populate_while_eight_threads_write_ends_with_no_row_wrong(
    run: int, connect: dict[str, Any]
) -> None:
    """The writers' Datastore was open before there was the index, and nobody tells it."""
    stop = threading.Event()
    with slim.Datastore(**connect) as old, slim.Datastore(**connect) as new:
        dice = random.Random(run)
        old.put_many(entity(dice) for _ in range(200))

        def add() -> int:
            new.add_index(BY_USER)
            new.add_index(BY_NUMBER)
            stop.set()
            return 0

        counts = in_threads(
            add,
            *(
                lambda seed=seed: write_until(stop, old, 100 * run + seed)
                for seed in range(WRITERS)
            ),
        )
        assert sum(counts) > 0
        assert {found["id"] for found in BY_USER.get_all(old, user="user-1")} == {
            found["id"] for found in old if found.get("user") == "user-1"
        }
        assert wrong(connect) == []
        assert (BY_USER.populate(new), BY_NUMBER.populate(new)) == (0, 0)


def test_populate_killed_half_way_is_run_again_and_ends_right(
    connect: dict[str, Any], tmp_path: Any
) -> None:
    with slim.Datastore(**connect) as store:
        store.put_many({"user": f"user-{n % 7}"} for n in range(4000))
        store.add_index(BY_USER, populate=False)
        process = load.CONTEXT.Process(
            target=populate_until_killed, args=(connect, tmp_path / "half"), daemon=True
        )
        process.start()
        until((tmp_path / "half").exists)
        process.kill()
        process.join()
        with pytest.raises(slim.NotPopulated):
            BY_USER.get_all(store, user="user-1")
        store.put({"id": "meanwhile", "user": "user-1"})
        assert BY_USER.populate(store) >= 2000
        assert (
            BY_USER.count(store, user="user-1") == len(BY_USER.get_all(store, user="user-1")) == 573
        )
        assert BY_USER.populate(store) == 0
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


def test_index_created_late_by_a_process_that_looked_early_hides_no_populated_one(
    connect: dict[str, Any], sql: Callable[..., Any]
) -> None:
    with slim.Datastore(**connect, indexes=[BY_USER]) as store:
        sql(
            f"CREATE TABLE `{BY_USER.table}~` LIKE {BY_USER.table}"
        )  # it saw that there was none, and was slow
        with slim.Datastore(**connect) as other:
            other.put({"id": "x", "user": "bob"})
            assert (
                BY_USER.get_all(store, user="bob")
                == BY_USER.get_all(other, user="bob")
                == [{"id": "x", "user": "bob"}]
            )
        store.remove_index(BY_USER)
    assert not sql(f"SHOW TABLES LIKE '{BY_USER.table}%'")


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.put({"id": "a", "user": "ann"}),
        lambda store: store.put({"id": "a", "user": "ann"}, expect=store.get("a").version),
        lambda store: store.put_many([{"id": "a", "user": "ann"}, {"id": "b", "user": "ann"}]),
        lambda store: store.update("a", lambda entity: entity.update(user="ann")),
        lambda store: store.delete("a"),
    ],
)
def test_old_process_cannot_make_a_new_index_wrong(
    call: Callable[[slim.Datastore], Any], connect: dict[str, Any]
) -> None:
    with slim.Datastore(**connect) as old, slim.Datastore(**connect) as new:
        old.put({"id": "a", "user": "bob"})
        new.add_index(BY_USER)
        call(old)
        assert wrong(connect) == []
        new.remove_index(BY_USER)
        new.add_index(BY_USER)
        call(old) if "a" in old else old.put({"id": "a", "user": "bob"})
    assert wrong(connect) == []


def test_add_index_waits_for_a_transaction_that_does_not_know_it(
    connect: dict[str, Any], sql: Callable[..., Any]
) -> None:
    put, added = threading.Event(), threading.Event()
    galera = bool(
        sql("SHOW STATUS WHERE variable_name = 'wsrep_connected' AND value = 'ON'")
    )  # it waits for none
    with slim.Datastore(**connect) as old, slim.Datastore(**connect) as new:

        def write() -> None:
            with (
                pytest.raises(MySQLdb.OperationalError, match="1213")
                if galera
                else contextlib.nullcontext()
            ):
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


def test_populate_repairs_and_counts_missing_stale_and_orphaned_rows(
    store: slim.Datastore, connect: dict[str, Any], sql: Callable[..., Any]
) -> None:
    store.add_index(BY_USER)
    store.put_many({"id": f"e{n}", "user": "bob"} for n in range(20))
    sql("DELETE FROM index_user WHERE entity_id IN ('e1', 'e2')")
    sql("UPDATE index_user SET user = 'ann' WHERE entity_id IN ('e3', 'e4', 'e5')")
    sql("INSERT INTO index_user VALUES ('bob', 'nobody')")
    assert len(wrong(connect)) == 2 + 2 * 3 + 1
    assert BY_USER.populate(store) == 6
    assert wrong(connect) == []
    assert BY_USER.populate(store) == 0


def test_populate_of_a_unique_index_names_the_duplicate_and_adds_no_index(
    store: slim.Datastore,
) -> None:
    store.put_many({"id": f"e{n}", "email": f"{n % 9}"} for n in range(10))
    unique = slim.Index("index_email", "email", unique=True)
    with pytest.raises(slim.Duplicate) as caught:
        store.add_index(unique)
    assert caught.value.id in ("e0", "e9") and caught.value.index.table == "index_email"
    assert store.indexes == []
    store.delete("e9")
    store.add_index(unique)
    assert unique.count(store) == 9


def test_populate_of_what_the_index_cannot_have_names_the_entity(store: slim.Datastore) -> None:
    store.put_many([{"id": "e1", "number": 1}, {"id": "e2", "number": "two"}])
    with pytest.raises(TypeError, match="'e2'.*index_number.*number.*'two'"):
        store.add_index(BY_NUMBER)
    assert store.indexes == []


def test_removed_index_is_gone_for_processes_that_know_it(connect: dict[str, Any]) -> None:
    with slim.Datastore(**connect, indexes=[BY_USER]) as old, slim.Datastore(**connect) as new:
        new.remove_index(BY_USER)
        old.put({"id": "a", "user": "bob"})
        assert old.get("a")["user"] == "bob" and old.indexes == []
        with pytest.raises(slim.NotPopulated):
            BY_USER.get_all(old, user="bob")


def test_history_switched_on_is_kept_by_those_who_were_running(connect: dict[str, Any]) -> None:
    with slim.Datastore(**connect) as old:
        old.put({"id": "a", "n": 0})
        with slim.Datastore(**connect, history=True) as new:
            old.put({"id": "a", "n": 1})
            old.update("a", lambda entity: entity.update(n=2))
            assert (
                [entity["n"] for entity in new.history("a")]
                == [2, 1]
                == [entity["n"] for entity in old.history("a")]
            )
    assert wrong(connect) == []


def test_history_is_kept_by_all_or_none_wherever_who_switches_it_on_dies(
    connect: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with slim.Datastore(**connect) as running:
        send, last = slim.Datastore._send, 0
        for last in itertools.count():
            left = iter(range(last))

            def dies(*args: Any, left: Iterator[int] = left, **kwargs: Any) -> Any:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return send(*args, **kwargs)

            monkeypatch.setattr(slim.Datastore, "_send", dies)
            with contextlib.suppress(KeyboardInterrupt):
                slim.Datastore(**connect, history=True)
            over = next(left, None) is not None
            monkeypatch.undo()
            running.put({"id": "a", "n": last})
            with slim.Datastore(**connect) as other:
                if other._catalogue.history:
                    assert other.history("a") and other.history("a")[0]["n"] == last
            if over:
                break
        assert last > 5 and running.history("a")
    assert wrong(connect) == []


def test_indexes_that_come_and_go_at_once_are_right_when_they_are_added(
    connect: dict[str, Any],
) -> None:
    """MariaDB renames several tables one by one, and back where one is gone."""
    end, wrong_rows = time.monotonic() + 6, list[int]()

    def come_and_go(table: str) -> None:
        index = slim.Index(table, "user")
        with slim.Datastore(**connect) as store:
            while time.monotonic() < end:
                store.add_index(index)
                time.sleep(random.uniform(0, 0.03))
                wrong_rows.append(index.populate(store))
                store.remove_index(index)

    def write(number: int) -> None:
        with slim.Datastore(**connect) as store:
            while time.monotonic() < end:
                store.put({"id": f"e{random.randrange(100)}", "user": f"u{random.randrange(5)}"})
                time.sleep(random.uniform(0, 0.01))

    calls = [
        *((come_and_go, table) for table in ("by_user", "zz_user")),
        *((write, number) for number in range(4)),
    ]
    with slim.Datastore(**connect), futures.ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call, argument) for call, argument in calls]:
            future.result()
    assert wrong_rows and not any(wrong_rows)
    assert wrong(connect) == []


def test_index_that_is_dropped_and_made_again_while_it_is_populated_is_populated_again(
    connect: dict[str, Any],
) -> None:
    with slim.Datastore(**connect) as one, slim.Datastore(**connect) as two:
        one.put_many({"user": "bob"} for _ in range(2_500))

        def progress(rows: Any, total: int) -> Iterator[Any]:
            for number, row in enumerate(rows):
                if number == 2_400 and not seen:
                    seen.append(number)
                    two.remove_index(BY_USER)
                    two.add_index(BY_USER, populate=False)
                yield row

        seen: list[int] = []
        one.add_index(BY_USER, progress=progress)
        assert seen and BY_USER.count(one, user="bob") == BY_USER.count(two, user="bob") == 2_500
    assert wrong(connect) == []


def test_program_that_looked_between_the_end_of_an_index_and_its_drop_goes_on(
    connect: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with slim.Datastore(**connect) as one, slim.Datastore(**connect) as two:
        one.add_index(slim.Index("by_n", {"n": str}), populate=False)
        define = one._define

        def late(statement: Any) -> None:
            if "DROP" in statement(one._catalogue):
                two.put({"id": "a", "n": "1"})
            define(statement)

        monkeypatch.setattr(one, "_define", late)
        one.remove_index(slim.Index("by_n", {"n": str}))
        monkeypatch.undo()
        one.add_index(slim.Index("by_n", {"m": int}), populate=False)
        two.put({"id": "a", "m": 1})
        assert slim.Index("by_n", {"m": int}).populate(one) == 0
    assert wrong(connect) == []


def test_populate_and_put_go_by_the_types_and_the_order_of_the_table_that_stands(
    store: slim.Datastore, sql: Callable[..., Any]
) -> None:
    sql("""CREATE TABLE by_price (price DECIMAL(10,2) NOT NULL, entity_id VARCHAR(36) NOT NULL UNIQUE,
     PRIMARY KEY (price, entity_id)) COMMENT='slim index'""")
    store.add_index(slim.Index("by_two", ["b", "a"]))
    store.put({"id": "two", "a": "A", "b": "B"})
    other = slim.Index("by_two", ["a", "b"])
    for repair in other.populate, lambda store: other.put(store, {"id": "two"}):
        sql("DELETE FROM by_two")
        repair(store)
        assert sql("SELECT a, b FROM by_two") == [("A", "B")]
    sql(
        "INSERT INTO entities (id, body, updated) VALUES ('x', %s, NOW())",
        [slim.encode({"id": "x", "price": Decimal("1.239")})],
    )
    with pytest.raises(ValueError, match="'x'.*by_price.*price.*1.239"):
        slim.Index("by_price", {"price": Decimal}).populate(store)


def test_progress_sees_every_entity_and_their_number(store: slim.Datastore) -> None:
    store.put_many({"user": "bob"} for _ in range(250))
    seen: list[Any] = []

    def progress(rows: Any, total: int) -> Iterator[Any]:
        seen.append(total)
        for row in rows:
            seen.append(None)
            yield row

    store.add_index(BY_USER, progress=progress)
    assert seen == [250] + 250 * [None]


def test_two_that_populate_one_index_and_a_writer_do_not_wait_for_each_other(
    connect: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RENAME takes its locks in the order of the names, and this index is before the guard."""
    index = slim.Index("by_user", "user")
    with contextlib.ExitStack() as stack:
        first, second, writer = (stack.enter_context(slim.Datastore(**connect)) for _ in range(3))
        first.put({"id": "e", "user": "bob"})
        for store in first, second:
            store.add_index(index, populate=False)
        writer.put({"id": "other"})
        pool, apply, others = (
            stack.enter_context(futures.ThreadPoolExecutor()),
            second._apply,
            list[futures.Future[Any]](),
        )

        def late(*args: Any, **kwargs: Any) -> Any:  # it has locked the entity
            monkeypatch.undo()
            for call in (
                lambda: writer.put({"id": "e", "user": "ann"}),
                lambda: first._define(lambda standing: standing.renaming(("by_user~", "by_user"))),
            ):
                others.append(pool.submit(call))
                time.sleep(0.3)
            return apply(*args, **kwargs)

        monkeypatch.setattr(second, "_apply", late)
        begun = time.monotonic()
        index.populate(second)
        for other in others:
            other.result()
        assert time.monotonic() - begun < 20  # a lock is waited for 50 s
    assert wrong(connect) == []
