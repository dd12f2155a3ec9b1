"""Indexes that come and go: whatever dies, waits, or is renamed meanwhile, no writer sees an error.

`--long` kills the programs that change the indexes for two minutes, instead of for some seconds.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import load
import MySQLdb
import pytest
from check import catalogue, in_threads, queries, sessions, together, until, wrong
from proxy import Before, Once, Proxy, proxied
from server import Named

import slim

Sql = Callable[..., list[tuple[Any, ...]]]
BY_N = slim.Index("index_n", {"n": int})
BY_USER = slim.Index("index_user", "user")
CHANGED = slim.Index("index_changed", "user")
CHANGERS, WRITERS = 2, 4


@pytest.fixture
def proxy_and_connect(connect: dict[str, Any]) -> Iterator[tuple[Proxy, dict[str, Any]]]:
    with proxied(connect) as both:
        yield both


def epoch(sql: Sql) -> str:
    (name,) = [name for name, *_ in sql("SHOW COLUMNS FROM entities_catalogue") if "epoch" in name]
    return str(name)


# ---- Programs that are killed


def change_until_killed(connect: dict[str, Any]) -> None:
    """Adds and removes one index."""
    with slim.Datastore(**connect) as store:
        while True:
            with contextlib.suppress(slim.NotPopulated):
                store.add_index(CHANGED)
            store.remove_index(CHANGED)


def put_in_a_block(store: slim.Datastore, id: str, user: str) -> None:
    with store.transaction():
        store.put({"id": id, "user": user})


def write_until_stopped(connect: dict[str, Any], seed: int, notes: Path) -> None:
    """Puts, updates and deletes on few keys. What it raises is written down."""
    dice = random.Random(seed)
    count = 0
    try:
        with slim.Datastore(**connect) as store:
            while not (notes / "stop").exists():
                id = f"e{dice.randrange(20)}"
                store.put({"id": id, "user": f"u{dice.randrange(4)}", "n": count})
                store.update(id, lambda entity: entity.update(user=f"w{seed}"), default={})
                together(lambda: put_in_a_block(store, f"own{seed}", f"u{dice.randrange(4)}"))
                store.delete(f"e{dice.randrange(20)}")
                count += 4
        (notes / f"count{seed}").write_text(str(count))
    except BaseException as error:
        (notes / f"error{seed}").write_text(f"{type(error).__name__}: {error}")


@pytest.mark.timeout(400)
def test_programs_that_change_one_index_are_killed_and_no_writer_sees_it(
    connect: dict[str, Any], tmp_path: Path, long: bool, capfd: Any, server: Named
) -> None:
    slim.Datastore(**connect, indexes=[BY_USER]).close()
    writers = [
        load.CONTEXT.Process(target=write_until_stopped, args=(connect, n, tmp_path), daemon=True)
        for n in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    changers: list[Any] = []
    end = time.monotonic() + (120 if long else 8)
    killed = 0
    while time.monotonic() < end:
        while len(changers) < CHANGERS:
            changer = load.CONTEXT.Process(target=change_until_killed, args=(connect,), daemon=True)
            changer.start()
            changers.append(changer)
        time.sleep(random.uniform(0.1, 0.8))
        victim = changers.pop(random.randrange(len(changers)))
        assert victim.exitcode is None, "a program that changes the indexes raised an error"
        victim.kill()
        victim.join()
        killed += 1
    for changer in changers:
        changer.kill()
        changer.join()
    (tmp_path / "stop").touch()
    for writer in writers:
        writer.join(60)
    assert [file.read_text() for file in tmp_path.glob("error*")] == []
    counts = [int(file.read_text()) for file in tmp_path.glob("count*")]
    with capfd.disabled():
        print(f"\n{server.name}: {killed} programs killed, {sum(counts):,} writes", flush=True)
    # On two shards each renaming stops them for a second.
    enough = 40 if "SLIM_SHARDS" in os.environ else 100
    assert len(counts) == WRITERS and all(counts) and sum(counts) > enough
    assert wrong(connect) == []
    with slim.Datastore(**connect) as store:
        store.add_index(CHANGED)
        assert CHANGED.populate(store) == BY_USER.populate(store) == 0
        store.remove_index(CHANGED)
    assert wrong(connect) == []


# ---- A change that is lost in the middle


@pytest.mark.parametrize("keep", [0, None], ids=["not renamed", "renamed"])
@pytest.mark.parametrize("verb", ["add", "remove"])
def test_renaming_whose_answer_is_lost_leaves_a_catalogue_that_all_maintain(
    verb: str, keep: int | None, proxy_and_connect: Any, connect: dict[str, Any], sql: Sql
) -> None:
    proxy, through = proxy_and_connect
    with (
        slim.Datastore(**connect, indexes=[BY_USER]) as writer,
        slim.Datastore(**through) as changer,
    ):
        if verb == "remove":
            changer.add_index(BY_N)
        writer.put({"id": "a", "user": "bob", "n": 1})
        before = epoch(sql)
        cut = Once(lambda packet: b"RENAME COLUMN" in packet.data, keep)
        proxy.cut = cut
        # It is made again, or is an error; a rename is no write of an entity.
        with contextlib.suppress(MySQLdb.OperationalError, slim.Error):
            changer.add_index(BY_N) if verb == "add" else changer.remove_index(BY_N)
        assert cut.done
        proxy.cut = None
        assert keep == 0 or epoch(sql) != before
        for store in writer, changer:
            store.put({"id": "b", "user": "ann", "n": 2})
            store.update("a", lambda entity: entity.update(n=3))
        assert wrong(connect) == []
        assert "index_user" in catalogue(sql)["indexes"]
        changer.add_index(BY_N)
        assert BY_N.count(writer, n=3) == 1
        assert BY_N.populate(writer) == BY_USER.populate(writer) == 0
        changer.remove_index(BY_N)
    assert wrong(connect) == []
    assert len(sql("SELECT id FROM entities_catalogue")) == 1


def test_renaming_that_is_lost_while_it_waits_and_is_done_later(
    proxy_and_connect: Any, connect: dict[str, Any], sql: Sql
) -> None:
    """Its row must stay: the server renames the column when nobody waits for the answer any more."""
    proxy, through = proxy_and_connect
    with (
        slim.Datastore(**connect, indexes=[BY_USER]) as writer,
        slim.Datastore(**through) as changer,
        futures.ThreadPoolExecutor(1) as pool,
    ):
        before = epoch(sql)
        with writer.transaction():
            writer.put({"id": "a", "user": "bob", "n": 1})
            # The server gets the whole of it, and then the end of the connection.
            cut = Once(lambda packet: b"RENAME COLUMN" in packet.data, 1 << 24)
            proxy.cut = cut
            added = pool.submit(changer.add_index, BY_N)
            until(lambda: cut.done)
            time.sleep(0.3)
        with contextlib.suppress(MySQLdb.OperationalError, slim.Error):
            added.result(timeout=60)
        proxy.cut = None
        writer.put({"id": "b", "user": "ann", "n": 2})
        assert "index_user" in catalogue(sql)["indexes"]
        changer.add_index(BY_N)
        assert epoch(sql) != before
        assert BY_N.populate(writer) == 0 and BY_N.count(writer) == 2
    assert wrong(connect) == []


@pytest.mark.parametrize("types", [{"n": int}, {"m": int}])
def test_table_of_a_program_that_died_before_the_drop_is_used_again_or_refused(
    types: dict[str, type], proxy_and_connect: Any, connect: dict[str, Any], sql: Sql
) -> None:
    proxy, through = proxy_and_connect
    again = slim.Index("index_n", types)
    with slim.Datastore(**connect) as writer:
        writer.put({"id": "a", "n": 1, "m": 2})
        with slim.Datastore(**through, indexes=[BY_N]) as changer:
            cut = Once(lambda packet: b"DROP TABLE" in packet.data, 0)
            proxy.cut = lambda packet: 0 if cut.done else cut(packet)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(slim, "RETRY_SECONDS", 1)
                with pytest.raises(MySQLdb.OperationalError):
                    changer.remove_index(BY_N)
            proxy.cut = None
        assert cut.done
        writer.put({"id": "a", "n": 3, "m": 4})
        if "m" in types:
            with pytest.raises(slim.Error, match="index_n stands"):
                writer.add_index(again)
            sql("DROP TABLE index_n")
        writer.add_index(again)
        writer.put({"id": "b", "n": 5, "m": 6})
        assert again.count(writer) == 2 and again.populate(writer) == 0
    assert wrong(connect) == []


def test_each_point_at_which_a_changer_is_cut_off_leaves_writers_that_work(
    proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    """Adding and removing an index is cut at each of its requests, for good, one after another."""
    proxy, through = proxy_and_connect
    with pytest.MonkeyPatch.context() as patch, slim.Datastore(**connect) as writer:
        patch.setattr(slim, "RETRY_SECONDS", 1)
        writer.add_index(BY_USER)
        for number in itertools.count(1):
            proxy.requests = 0
            proxy.cut = lambda packet, number=number: 0 if proxy.requests >= number else None
            done = False
            with contextlib.suppress(MySQLdb.OperationalError, slim.Error, slim.Unknown):
                with slim.Datastore(**through) as changer:
                    changer.add_index(BY_N)
                    changer.remove_index(BY_N)
                    done = True
            proxy.cut = None
            writer.put({"id": f"e{number % 3}", "user": f"u{number}", "n": number})
            writer.delete(f"e{(number + 1) % 3}")
            assert wrong(connect) == [], f"cut at request {number}"
            assert "index_user" in [index.table for index in writer.indexes]
            if done:
                break
        assert number > 10


# ---- Two that change it at once


def test_removing_and_adding_at_once_never_drops_what_is_listed(
    connect: dict[str, Any], sql: Sql
) -> None:
    end = time.monotonic() + 5

    def change(verb: str) -> int:
        count = 0
        with slim.Datastore(**connect) as store:
            while time.monotonic() < end:
                with contextlib.suppress(slim.NotPopulated):
                    store.add_index(BY_N) if verb == "add" else store.remove_index(BY_N)
                count += 1
        return count

    def write() -> int:
        count = 0
        with slim.Datastore(**connect) as store:
            while time.monotonic() < end:
                store.put({"id": f"e{count % 9}", "n": count})
                count += 1
        return count

    with slim.Datastore(**connect):
        pass
    counts = in_threads(
        lambda: change("add"), lambda: change("remove"), lambda: change("add"), write, write
    )
    assert all(counts)
    listed = catalogue(sql)["indexes"]
    standing = {name for (name,) in sql("SHOW TABLES")}
    assert {table for table, entry in listed.items() if entry} <= standing
    assert wrong(connect) == []


def test_table_that_was_never_listed_is_not_dropped(store: slim.Datastore, sql: Sql) -> None:
    sql("CREATE TABLE precious (n INT)")
    store.remove_index(slim.Index("precious", "n"))
    assert sql("SHOW TABLES LIKE 'precious'")


def test_index_whose_table_was_dropped_by_hand_stops_writers_until_it_is_removed(
    store: slim.Datastore, connect: dict[str, Any], sql: Sql
) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: store.put({"id": "a", "n": 1}),
        lambda: store.put_many([{"id": "a", "n": 2}]),
        lambda: store.update("a", lambda entity: entity.update(n=3)),
        lambda: store.put({"id": "a", "n": 4}, expect=store.get("a").version),
        lambda: store.delete("a"),
    ]
    with slim.Datastore(**connect) as other:
        for call in calls:
            other.add_index(BY_N)
            before = list(store)
            sql("DROP TABLE index_n")
            begun = time.monotonic()
            with pytest.raises(MySQLdb.ProgrammingError, match="1146.*index_n"):
                call()
            assert time.monotonic() - begun < 5
            assert list(store) == before
            other.remove_index(BY_N)
            call()
            assert store.indexes == [] == other.indexes
            assert list(store) != before
        assert store.add_index(BY_N) is BY_N
    assert wrong(connect) == []


def test_index_that_is_published_while_it_changes_under_populate_stays_incomplete(
    proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    """It is removed and made anew by a program, just before the other one says that it is complete."""
    proxy, through = proxy_and_connect
    with slim.Datastore(**through) as one, slim.Datastore(**connect) as two:
        two.put_many({"n": n} for n in range(50))
        one.add_index(BY_N, populate=False)

        def make_anew() -> None:
            two.remove_index(BY_N)
            two.add_index(BY_N, populate=False)

        # The lock is taken before a table is changed: this is the last moment.
        before = Before(b"GET_LOCK", make_anew)
        proxy.cut = before
        with pytest.raises(slim.NotPopulated):
            BY_N.populate(one)
        proxy.cut = None
        assert before.done
        for store in one, two:
            with pytest.raises(slim.NotPopulated):
                BY_N.count(store)
        assert BY_N.populate(two) == 50
        assert BY_N.count(one) == 50
    assert wrong(connect) == []


# ---- Writers and readers that know an old catalogue


WRITES: dict[str, Callable[[slim.Datastore], Any]] = {
    "put": lambda store: store.put({"id": "a", "user": "ann", "n": 2}),
    "put anew": lambda store: store.put({"user": "ann", "n": 2}),
    "put expecting none": lambda store: store.put({"id": "new", "n": 1}, expect=0),
    "put_many": lambda store: store.put_many([{"id": "a", "n": 2}, {"id": "b", "n": 3}]),
    "update": lambda store: store.update("a", lambda entity: entity.update(user="ann")),
    "delete": lambda store: store.delete("a"),
}


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a block"])
@pytest.mark.parametrize("name", WRITES)
def test_writer_with_an_old_catalogue_makes_no_index_wrong(
    name: str, inside: bool, connect: dict[str, Any]
) -> None:
    with (
        slim.Datastore(**connect, indexes=[BY_USER]) as old,
        slim.Datastore(**connect) as new,
    ):
        for change in new.add_index, new.remove_index, new.add_index:
            new.put({"id": "a", "user": "bob", "n": 1})
            new.delete("new")
            change(BY_N)
            with old.transaction() if inside else contextlib.nullcontext():
                WRITES[name](old)
            assert wrong(connect) == []
        assert BY_N.populate(old) == 0


@pytest.mark.parametrize("name", WRITES)
def test_stale_catalogue_in_the_middle_of_a_block_is_not_known_before_its_end(
    name: str, connect: dict[str, Any], sql: Sql
) -> None:
    """The first check holds the renaming up: it waits until the block is left."""
    with (
        slim.Datastore(**connect, indexes=[BY_USER]) as old,
        slim.Datastore(**connect) as new,
        futures.ThreadPoolExecutor(1) as pool,
    ):
        old.put({"id": "a", "user": "bob", "n": 1})
        with old.transaction():
            old.put({"id": "first", "user": "cid", "n": 7})
            added = pool.submit(new.add_index, BY_N)
            time.sleep(0.2)
            assert not added.done()
            WRITES[name](old)
        added.result(timeout=60)
        assert BY_N.populate(new) == 0
        assert BY_N.count(old, n=7) == 1
    assert wrong(connect) == []


@pytest.mark.parametrize(
    "first",
    [
        lambda store: store.delete("a"),
        lambda store: store.update("a", lambda entity: entity.update(n=2)),
        lambda store: store.put({"id": "a", "n": 2}, expect=store.get("a").version),
        lambda store: store.get("a"),
        lambda store: BY_USER.get_all(store, user="bob"),
        lambda store: "a" in store,
    ],
    ids=["delete", "update", "expect", "get", "get_all", "in"],
)
def test_block_whose_first_check_fails_is_still_usable(
    first: Callable[[slim.Datastore], Any], connect: dict[str, Any]
) -> None:
    with (
        slim.Datastore(**connect, indexes=[BY_USER]) as old,
        slim.Datastore(**connect) as new,
    ):
        old.put({"id": "a", "user": "bob", "n": 1})
        new.add_index(BY_N)
        with old.transaction():
            first(old)
            old.put({"id": "b", "user": "ann", "n": 3})
            old.update("b", lambda entity: entity.update(n=4))
        assert BY_N.count(new, n=4) == 1
    assert wrong(connect) == []


def test_block_whose_first_check_fails_is_rolled_back_as_a_whole(connect: dict[str, Any]) -> None:
    with slim.Datastore(**connect) as old, slim.Datastore(**connect) as new:
        new.add_index(BY_N)
        with pytest.raises(KeyError), old.transaction():
            old.put({"id": "a", "n": 1})
            old.put({"id": "b", "n": 2})
            raise KeyError
        assert list(new) == []
        old.put({"id": "c", "n": 3})
        assert BY_N.count(new) == len(new) == 1
    assert wrong(connect) == []


def test_reader_with_an_old_catalogue_gets_the_answer_or_not_populated(
    connect: dict[str, Any],
) -> None:
    with slim.Datastore(**connect, indexes=[BY_N]) as old, slim.Datastore(**connect) as new:
        new.put({"id": "a", "user": "bob", "n": 1})
        assert BY_N.count(old) == 1
        new.add_index(BY_USER)
        assert BY_N.get_all(old, n=1) == BY_USER.get_all(old, user="bob") == [new.get("a")]
        new.remove_index(BY_USER)
        assert BY_N.count(old, n=1) == 1
        with pytest.raises(slim.NotPopulated):
            BY_USER.count(old)
        new.add_index(BY_USER, populate=False)
        with pytest.raises(slim.NotPopulated):
            BY_USER.get_all(old, user="bob")


@pytest.mark.parametrize("ask", [BY_USER.count, BY_USER.get_all])
def test_reader_of_an_index_that_another_program_has_removed_gets_not_populated(
    ask: Callable[..., Any], connect: dict[str, Any]
) -> None:
    with slim.Datastore(**connect, indexes=[BY_USER]) as old, slim.Datastore(**connect) as new:
        new.put({"id": "a", "user": "bob"})
        assert ask(old, user="bob")
        new.remove_index(BY_USER)
        for _ in range(2):
            with pytest.raises(slim.NotPopulated) as refused:
                ask(old, user="bob")
            assert refused.value.__context__ is None
        new.add_index(BY_USER)
        assert ask(old, user="bob")


def test_reader_of_an_index_that_another_program_made_anew_of_other_properties_is_told_so(
    connect: dict[str, Any],
) -> None:
    old, new = slim.Index("index_x", "name"), slim.Index("index_x", {"n": int})
    entity = {"id": "a", "name": "bob", "n": 1}
    with slim.Datastore(**connect, indexes=[old]) as store, slim.Datastore(**connect) as other:
        store.put(entity)
        assert old.get_all(store, name="bob") == [entity]
        other.remove_index(old)
        other.add_index(new)
        for read in old.get_all, old.count:
            with pytest.raises(ValueError, match="has this name: remove it first"):
                read(store, name="bob")
        assert new.get_all(store, n=1) == [entity]


def test_first_query_of_a_block_names_the_table_that_another_program_has_dropped(
    connect: dict[str, Any],
) -> None:
    with slim.Datastore(**connect, indexes=[BY_N]) as store, slim.Datastore(**connect) as other:
        other.remove_index(BY_N)
        with pytest.raises(MySQLdb.ProgrammingError, match="index_n"), store.transaction():
            BY_N.get_all(store, n=1)
        with pytest.raises(slim.NotPopulated):
            BY_N.get_all(store, n=1)


def test_index_is_removed_with_its_table_however_long_that_waits_for_a_transaction(
    connect: dict[str, Any], sql: Sql
) -> None:
    with slim.Datastore(**connect, indexes=[BY_N]) as store, slim.Datastore(**connect) as other:
        with futures.ThreadPoolExecutor() as pool, other.transaction():
            other.put({"id": "a", "n": 1})
            removed = pool.submit(store.remove_index, BY_N)
            # Longer than a change of the indexes waits at a time.
            time.sleep(slim.ALTER_SECONDS * 2)
            assert not removed.done()
        removed.result(timeout=60)
        assert sql("SHOW TABLES LIKE 'index_n'") == []
        assert other.indexes == []


def test_index_that_another_program_made_of_other_properties_meanwhile_is_left_alone(
    proxy_and_connect: Any, connect: dict[str, Any]
) -> None:
    proxy, through = proxy_and_connect
    other = slim.Index("index_n", {"m": int})
    with slim.Datastore(**through) as one, slim.Datastore(**connect) as two:
        two.put({"id": "a", "n": 1, "m": 2})

        def make_anew() -> None:
            two.remove_index(BY_N)
            two.add_index(other)

        before = Before(b"FROM entities AS e LEFT JOIN", make_anew)
        proxy.cut = before
        with pytest.raises(slim.NotPopulated):
            one.add_index(BY_N)
        proxy.cut = None
        assert before.done
        assert list(map(repr, one.indexes)) == [repr(other)]
        assert other.count(two, m=2) == 1
    assert wrong(connect) == []


def test_reader_finds_an_index_that_another_program_made_again_of_other_properties(
    connect: dict[str, Any],
) -> None:
    old, new = slim.Index("index_n", {"n": int}), slim.Index("index_n", {"n": float})
    with slim.Datastore(**connect, indexes=[old]) as store, slim.Datastore(**connect) as reader:
        with pytest.raises(ValueError, match="has this name"):
            new.count(reader)
        store.remove_index(old)
        store.put({"id": "a", "n": 1.5})
        store.add_index(new)
        assert new.count(reader, n=1.5) == 1


def test_threads_that_refresh_the_catalogue_and_write_mix_no_two_of_them(
    connect: dict[str, Any],
) -> None:
    end = time.monotonic() + 4
    with slim.Datastore(**connect) as store, slim.Datastore(**connect) as changer:

        def change() -> None:
            while time.monotonic() < end:
                changer.add_index(BY_N)
                changer.remove_index(BY_N)

        def look() -> None:
            while time.monotonic() < end:
                assert store.indexes is not None

        def write(seed: int) -> None:
            dice = random.Random(seed)
            while time.monotonic() < end:
                store.put({"id": f"e{dice.randrange(9)}", "n": dice.randrange(9)})
                store.delete(f"e{dice.randrange(9)}")

        in_threads(change, look, *(lambda seed=seed: write(seed) for seed in range(4)))
        changer.add_index(BY_N)
        assert BY_N.populate(store) == 0
    assert wrong(connect) == []


# ---- What is not a stale catalogue, and what a change leaves behind


def test_property_that_the_index_has_not_is_an_error_at_once(store: slim.Datastore) -> None:
    store.add_index(BY_N)
    begun = time.monotonic()
    for call in (
        lambda: BY_N.get_all(store, m=1),
        lambda: list(BY_N.find(store, {"m": 1})),
        lambda: BY_N.count(store, m=1),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()
    assert time.monotonic() - begun < 5


def test_column_that_was_dropped_by_hand_is_the_drivers_error_at_once(
    store: slim.Datastore, sql: Sql
) -> None:
    store.add_index(BY_N)
    store.put({"id": "a", "n": 1})
    sql("ALTER TABLE index_n CHANGE n other BIGINT NOT NULL")
    begun = time.monotonic()
    for call in (
        lambda: BY_N.get_all(store, n=1),
        lambda: store.put({"id": "b", "n": 1}),
    ):
        with pytest.raises(MySQLdb.OperationalError, match="1054"):
            call()
    assert time.monotonic() - begun < 5


def test_change_waits_for_a_long_transaction_and_lets_others_write_meanwhile(
    connect: dict[str, Any],
) -> None:
    with (
        slim.Datastore(**connect) as busy,
        slim.Datastore(**connect) as new,
        futures.ThreadPoolExecutor(1) as pool,
    ):
        with busy.transaction():
            busy.put({"id": "a", "n": 1})
            added = pool.submit(new.add_index, BY_N)
            slowest = 0.0
            end = time.monotonic() + 6
            while time.monotonic() < end:
                begun = time.monotonic()
                with slim.Datastore(**connect) as other:
                    other.put({"id": "b", "n": 2})
                slowest = max(slowest, time.monotonic() - begun)
            assert not added.done()
        added.result(timeout=60)
        # It has waited for two seconds at a time.
        assert slowest < 4
        assert BY_N.count(new) == 2
    assert wrong(connect) == []


def test_limits_of_a_change_stay_with_its_own_connection(connect: dict[str, Any], sql: Sql) -> None:
    """A call of the same store that waits for a table longer than a change may is not refused."""
    with (
        slim.Datastore(**connect) as store,
        contextlib.closing(MySQLdb.connect(**connect)) as other,
    ):
        store.add_index(BY_N)
        store.remove_index(BY_N)
        store.put({"id": "a"})
        before = sessions(sql)
        other.query("LOCK TABLES entities WRITE, entities_catalogue WRITE")
        release = threading.Timer(3, lambda: other.query("UNLOCK TABLES"))
        release.start()
        store.put({"id": "b"})
        release.join()
        assert sessions(sql) <= before
        assert len(store) == 2


def test_opening_with_indexes_that_stand_renames_nothing(connect: dict[str, Any], sql: Sql) -> None:
    slim.Datastore(**connect, indexes=[BY_N, BY_USER]).close()
    before = epoch(sql)
    for _ in range(2):
        slim.Datastore(**connect, indexes=[BY_N, BY_USER]).close()
        with slim.Datastore(**connect, indexes=[BY_N]) as store:
            store.add_index(BY_USER)
    assert epoch(sql) == before
    assert len(sql("SELECT id FROM entities_catalogue")) == 1


def test_catalogue_without_its_row_is_an_error_and_no_empty_one(
    store: slim.Datastore, connect: dict[str, Any], sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for again meanwhile, as it may have just changed."""
    monkeypatch.setattr(slim, "RETRY_SECONDS", 1)
    store.add_index(BY_N)
    sql("DELETE FROM entities_catalogue")
    begun = time.monotonic()
    with pytest.raises(MySQLdb.OperationalError, match="entities_catalogue has lost"):
        slim.Datastore(**connect)
    with pytest.raises(MySQLdb.OperationalError, match="entities_catalogue has lost"):
        store.indexes  # noqa: B018
    assert time.monotonic() - begun < 10


def test_rows_of_programs_that_died_are_taken_away_by_the_next_change(
    store: slim.Datastore, sql: Sql
) -> None:
    for n in range(3):
        sql("INSERT INTO entities_catalogue (id, content) VALUES (%s, '{}')", [f"{n:032x}"])
    store.put({"id": "a", "n": 1})
    store.add_index(BY_N)
    assert len(sql("SELECT id FROM entities_catalogue")) == 1
    assert BY_N.count(store, n=1) == 1


def test_lock_of_a_program_that_died_is_free_at_once(
    connect: dict[str, Any], sql: Sql, tmp_path: Path
) -> None:
    slim.Datastore(**connect).close()
    changer = load.CONTEXT.Process(target=change_until_killed, args=(connect,), daemon=True)
    changer.start()
    first = epoch(sql)
    until(lambda: epoch(sql) != first)
    changer.kill()
    changer.join()
    begun = time.monotonic()
    with slim.Datastore(**connect) as store:
        store.add_index(BY_N)
    assert time.monotonic() - begun < 10
    with queries(connect) as query:
        assert "index_n" in catalogue(query)["indexes"]
