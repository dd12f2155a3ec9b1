"""slim on two shards: its own tests, races, vtgate and MySQL killed, and where each call goes."""

from __future__ import annotations

import collections
import contextlib
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import check
import costs
import MySQLdb
import pytest
import races
from vitess import KEYSPACE, SHARDS, Vitess

import slim

TESTS = Path(__file__).parent.parent
# Files that are enough without --long: what adds many indexes waits a second or two for each.
SHORT = "put", "index", "transactions"
WRITERS = 4
SECONDS = 4  # of writing before, between and after two kills
LONG_KILLS = 60  # with --long


@pytest.fixture(scope="module")
def vitess() -> Iterator[Vitess]:
    with Vitess() as vitess:
        yield vitess


@pytest.fixture
def sharded(vitess: Vitess) -> dict[str, Any]:
    """What slim.Datastore takes for the empty keyspace, in which the races' indexes are declared."""
    vitess.keyspace.empty()
    for index in [*races.INDEXES, races.LATER]:
        # Two entities with one value have to meet on one shard.
        vitess.keyspace.declare(index.table, *(index.types if index.unique else []))
    return {**vitess.connect, "database": KEYSPACE}


def read_shards(vitess: Vitess) -> list[races.Tables]:
    """The tables of each shard, past vtgate."""
    connect = vitess.mysql.connect
    return [races.read({**connect, "database": f"vt_{KEYSPACE}_{shard}"}) for shard in SHARDS]


def merge(shards: list[races.Tables]) -> races.Tables:
    return {table: [row for shard in shards for row in shard[table]] for table in shards[0]}


def assert_indexes_are_right(vitess: Vitess) -> races.Tables:
    """Each index row is true of an entity of its own shard, and none is missing there."""
    shards = read_shards(vitess)
    unique = {index.table for index in races.INDEXES if index.unique}
    for shard in shards:
        wrong = races.disagreements(shard)
        # A unique index lives where its values lead.
        assert [each for each in wrong if each[0] not in unique] == []
    tables = merge(shards)
    assert races.disagreements(tables) == []
    assert all(shard["entities"] for shard in shards)
    return tables


def race(
    vitess: Vitess,
    connect: dict[str, Any],
    stop: Path,
    during: Callable[[], None],
    pause: float = 0.0,
) -> list[races.Notes]:
    """What WRITERS processes noted, while `during` ran."""
    with slim.Datastore(**connect, indexes=races.INDEXES) as store:
        for shard in SHARDS:
            races.keep_versions({**vitess.mysql.connect, "database": f"vt_{KEYSPACE}_{shard}"})
        for key in range(races.HOT):
            store.put_many({"id": f"{kind}-{key}", "count": 0} for kind in ("expect", "update"))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WRITERS, mp_context=context) as pool:
        futures = [
            pool.submit(races.write, connect, f"writer{n}", stop, pause) for n in range(WRITERS)
        ]
        try:
            # Opening a Datastore is not repeated: all are open before anything is killed.
            while not all(stop.with_name(f"writer{n}").exists() for n in range(WRITERS)):
                time.sleep(0.05)
            during()
        finally:
            stop.touch()
        return [future.result() for future in futures]


def audit(vitess: Vitess, notes: list[races.Notes]) -> None:
    """Nothing acknowledged is lost, and the indexes say what the entities say."""
    tables = assert_indexes_are_right(vitess)
    counted, unknown, errors = (
        sum(counters, collections.Counter())
        for counters in zip(*((note.counted, note.unknown, note.errors) for note in notes))
    )
    print(
        f"{sum(note.calls for note in notes)} calls, {sum(len(note.put) for note in notes)} puts acknowledged,",
        f"{counted.total()} increments, {unknown.total()} unknown, {len(tables['entities'])} entities;",
        dict(errors),
    )
    assert races.lost(tables, notes) == []
    assert all(note.put for note in notes)


@pytest.mark.timeout(1800)
def test_ordinary_suite_passes_on_two_shards(vitess: Vitess, long: bool) -> None:
    files = [
        path
        for path in TESTS.glob("test_*.py")
        # That one is about the servers and the proxy of the tests.
        if path.stem.removeprefix("test_") in SHORT or long and path.stem != "test_server"
    ]
    done = subprocess.run(
        # "named" is in the name of each test that asks for a server.
        [sys.executable, "-m", "pytest", "-q", "-p", "sharded", "-k", "named", *sorted(files)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(TESTS)]),
            "SLIM_SERVER": vitess.url,
            "SLIM_SHARDS": vitess.mysql.url,
        },
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    print(done.stdout[-10000:])
    assert done.returncode == 0


def test_writers_on_both_shards_miss_no_row_while_an_index_comes_and_goes(
    vitess: Vitess, sharded: dict[str, Any], tmp_path: Path, long: bool
) -> None:
    def add() -> None:
        with slim.Datastore(**sharded) as store:
            for _ in range(60 if long else 2):
                store.add_index(races.LATER)
                time.sleep(0.5)
                assert races.LATER.populate(store) == 0
                store.remove_index(races.LATER)
                time.sleep(0.5)
            store.add_index(races.LATER)

    notes = race(vitess, sharded, tmp_path / "stop", add)
    audit(vitess, notes)
    assert not any(note.unknown or note.errors for note in notes)


def test_index_made_again_of_other_properties_is_written_populated_and_asked_at_once(
    vitess: Vitess, sharded: dict[str, Any], long: bool
) -> None:
    """vtgate learns its columns a second later, and the catalogue's with them: nobody is let pass before."""
    vitess.keyspace.declare("index_again")
    whole = {f"p{n}": n for n in range(9)}
    with slim.Datastore(**sharded) as store, slim.Datastore(**sharded) as other:
        store.put_many({"id": f"{n}", **whole} for n in range(20))
        for n in range(60 if long else 6):
            names = f"p{n % 9}", f"p{(n + 4) % 9}"
            index = slim.Index("index_again", dict.fromkeys(names, int))
            store.add_index(index, populate=False)
            if n % 2:
                other.put({"id": "0", **whole})
            index.populate(store)
            assert index.count(store, **{names[0]: n % 9}) == 20
            store.remove_index(index)


@pytest.mark.parametrize("change", ["add", "remove"])
def test_change_that_fails_on_one_shard_is_finished_there_by_the_next_try(
    vitess: Vitess, sharded: dict[str, Any], change: str
) -> None:
    """The tablets' time limit ends a renaming that waits for a transaction, on its shard alone."""
    index = races.INDEXES[0]
    with (
        slim.Datastore(**sharded) as store,
        slim.Datastore(**sharded) as busy,
        ThreadPoolExecutor(1) as pool,
    ):
        if change == "remove":
            store.add_index(index)
        # From here on it knows the catalogue, and its block asks one shard alone.
        busy.put({"id": "a"})
        with busy.transaction():
            busy.put({"id": "a", "user": "bob"})
            changed = pool.submit(getattr(store, f"{change}_index"), index)
            time.sleep(13)
        changed.result(60)
        columns = [
            vitess.keyspace.shard_rows(shard, "SHOW COLUMNS FROM entities_catalogue")
            for shard in SHARDS
        ]
        assert columns[0] == columns[1]
        busy.put_many({"id": f"{n}", "user": "bob"} for n in range(40))
    assert check.wrong(sharded) == []


def test_eight_threads_count_exactly(vitess: Vitess, sharded: dict[str, Any]) -> None:
    def count(store: slim.Datastore) -> None:
        for _ in range(20):
            for id in "abcd":
                store.update(id, lambda entity: entity.update(n=entity["n"] + 1), {"n": 0})

    with slim.Datastore(**sharded) as store:
        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(count, store) for _ in range(8)]:
                future.result()
        assert [entity["n"] for entity in store.get_many("abcd").values()] == [160] * 4


def test_transactions_over_both_shards_keep_the_sum(
    vitess: Vitess, sharded: dict[str, Any]
) -> None:
    ids = [f"account-{n}" for n in range(8)]
    moved: collections.Counter[bool] = collections.Counter()

    def move(store: slim.Datastore, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(30):
            try:
                with store.transaction():
                    accounts = store.get_many(sorted(dice.sample(ids, 2)))
                    for account, amount in zip(accounts.values(), (-1, 1)):
                        store.put({**account, "count": account["count"] + amount})
                moved[True] += 1
            except MySQLdb.OperationalError:
                # Two that wait for each other on two shards: neither of these knows of it.
                moved[False] += 1

    with slim.Datastore(**sharded, indexes=races.INDEXES) as store:
        store.put_many({"id": id, "count": 100} for id in ids)
        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(move, store, seed) for seed in range(4)]:
                future.result()
        assert sum(entity["count"] for entity in store) == 800
    assert_indexes_are_right(vitess)
    assert moved[True] > 60


@pytest.mark.timeout(0)
@pytest.mark.parametrize("killed", ["vtgate", "mysql"])
def test_process_killed_under_writers_loses_nothing(
    vitess: Vitess, sharded: dict[str, Any], tmp_path: Path, long: bool, killed: str
) -> None:
    for index in races.INDEXES:
        # On one shard with its entity: a commit on two may have been done on one when vtgate dies.
        vitess.keyspace.declare(index.table)

    def kill() -> None:
        for _ in range(LONG_KILLS if long else 2):
            time.sleep(SECONDS)
            # vtgate and the tablets are one process here: all that they know of transactions is gone.
            server = vitess if killed == "vtgate" else vitess.mysql
            server.kill()
            server.start()
        time.sleep(SECONDS)

    audit(vitess, race(vitess, sharded, tmp_path / "stop", kill, pause=0.01))


def test_index_that_the_vschema_does_not_know_is_refused_before_a_writer_hears_of_it(
    sharded: dict[str, Any],
) -> None:
    unknown = slim.Index("index_undeclared", "mark")
    with slim.Datastore(**sharded) as store, slim.Datastore(**sharded) as other:
        with pytest.raises(MySQLdb.OperationalError, match="1105.*index_undeclared"):
            store.add_index(unknown)
        for each in store, other:
            each.put({"id": "a", "mark": "x"})
            assert each.indexes == []
        with pytest.raises(slim.NotPopulated):
            unknown.get_all(store, mark="x")


def test_unique_index_sharded_by_its_property_holds_over_all_shards(
    vitess: Vitess, sharded: dict[str, Any]
) -> None:
    email = next(index for index in races.INDEXES if index.unique)
    with slim.Datastore(**sharded, indexes=[email]) as store:
        for n in range(20):
            store.put({"id": f"first-{n}", "email": f"{n}@example.org"})
            with pytest.raises(slim.Duplicate) as refused:
                store.put({"id": f"second-{n}", "email": f"{n}@example.org"})
            assert refused.value.id == f"first-{n}"
        assert len(store) == email.count(store) == 20
        assert [entity["id"] for entity in email.get_all(store, email="7@example.org")] == [
            "first-7"
        ]
    shards = read_shards(vitess)
    assert all(shard["index_email"] for shard in shards)
    assert (
        races.disagreements(
            {**merge(shards), **dict.fromkeys(("index_user", "index_place", "index_count"), [])}
        )
        == []
    )


def test_unique_index_sharded_by_entity_id_is_unique_on_each_shard_alone(
    vitess: Vitess, sharded: dict[str, Any]
) -> None:
    email = next(index for index in races.INDEXES if index.unique)
    vitess.keyspace.declare(email.table)
    with slim.Datastore(**sharded) as store:
        store.put_many({"id": f"{n}"} for n in range(40))
        (here, other, *_), (there, *_) = (
            [id for id, *_ in shard["entities"]] for shard in read_shards(vitess)
        )
        store.add_index(email)
        same = {"email": "a@example.org"}
        store.put({"id": here, **same})
        with pytest.raises(slim.Duplicate) as refused:
            store.put({"id": other, **same})
        assert refused.value.id == here
        # Its MySQL does not see the other's row.
        store.put({"id": there, **same})
        found = {entity["id"] for entity in email.get_all(store, **same)}
        assert found == {here, there}


@pytest.mark.parametrize(
    "mode, prepares", [("SINGLE", None), ("MULTI", False), ("TWOPC", True)], ids=str
)
def test_batch_on_both_shards_is_committed_as_the_session_says(
    vitess: Vitess, sharded: dict[str, Any], mode: str, prepares: bool | None
) -> None:
    def prepared() -> int:
        # What a tablet is to commit by itself, should vtgate die, is written to this table.
        return int(
            vitess.mysql.query("""
                SELECT COALESCE(SUM(count_star), 0) FROM performance_schema.events_statements_summary_by_digest
                WHERE digest_text LIKE 'INSERT INTO %redo_state%'""")[0][0]
        )

    ids = [f"{n}" for n in range(100)]
    before = prepared()
    with slim.Datastore(**sharded, init_command=f"SET transaction_mode = '{mode}'") as store:
        if prepares is None:
            with pytest.raises(slim.Unknown, match="multi-db transaction"):
                store.put_many({"id": id} for id in ids)
            assert len(store) == 0
            return
        store.put_many({"id": id} for id in ids)
        assert store.get_many(ids).keys() == set(ids)
    assert all(shard["entities"] for shard in read_shards(vitess))
    assert (prepared() > before) == prepares


@pytest.fixture
def shards_asked(vitess: Vitess) -> Callable[[Callable[[], Any]], list[int]]:
    """How many statements on slim's tables each shard got while a function ran: its MySQL says so."""
    count = """
        SELECT COALESCE(SUM(count_star), 0) FROM performance_schema.events_statements_summary_by_digest
        WHERE schema_name = 'vt_{}_{}' AND digest_text REGEXP '`(entities|index_)'"""

    def shards_asked(call: Callable[[], Any]) -> list[int]:
        def now() -> list[int]:
            statements = [count.format(KEYSPACE, shard) for shard in SHARDS]
            return [int(vitess.mysql.query(statement)[0][0]) for statement in statements]

        before = now()
        call()
        return [new - old for old, new in zip(before, now())]

    return shards_asked


@pytest.fixture
def plans(sharded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """How vtgate would find the shards of each statement that a function sends."""
    sent: list[bytes] = []

    class Spy(MySQLdb.connections.Connection):
        def query(self, query: bytes | str) -> None:
            sent.append(query.encode() if isinstance(query, str) else query)
            super().query(query)

    def plans(call: Callable[[], Any]) -> list[str]:
        sent.clear()
        call()
        # The catalogue's check alone is in brackets, behind a comment.
        text = b";".join(sent).replace(b"/*M! DO EXISTS */ ", b"")
        statements = re.split(rb";(?=\(?[A-Z]{5,6}\b)", text)
        return [routes(each) for each in statements if re.match(rb"\(?SELECT|INSERT|DELETE", each)]

    def routes(statement: bytes) -> str:
        with contextlib.closing(MySQLdb.connections.Connection(**sharded)) as connection:
            connection.query(b"VEXPLAIN PLAN " + statement)
            ((plan,),) = connection.store_result().fetch_row(0)
        verb = statement.split()[0].decode().strip("(")
        return f"{verb}: {', '.join(ways(json.loads(plan)))}"

    def ways(plan: dict[str, Any]) -> Iterator[str]:
        if plan["OperatorType"] in ("Route", "Insert", "Delete"):
            yield plan["Variant"]
        for input in plan.get("Inputs", []):
            yield from ways(input)

    monkeypatch.setattr(MySQLdb, "connect", Spy)
    return plans


def test_plans_of_put_and_get_lead_to_the_shard_of_an_id_and_those_of_a_query_scatter(
    sharded: dict[str, Any], plans: Callable[..., list[str]]
) -> None:
    index = races.INDEXES[0]
    insert = "INSERT: Sharded"
    with slim.Datastore(**sharded, indexes=[index]) as store:
        # From here on it knows the catalogue, and so does vtgate.
        store.put({"id": "a", "user": "bob"})
        # Of the catalogue's check and its entity, then of its row.
        again = ["DELETE: IN, IN", insert, "DELETE: IN", insert]
        assert plans(lambda: store.put({"id": "a", "user": "amy"})) == again
        assert plans(lambda: store.put({"user": "amy"})) == ["SELECT: IN", insert, insert]
        assert plans(lambda: store.get("a")) == ["SELECT: IN"]
        # The catalogue's check, then the join.
        assert plans(lambda: index.get_all(store, user="amy")) == ["SELECT: IN, Scatter"]
        assert plans(lambda: index.count(store, user="amy")) == ["SELECT: IN, Scatter"]


@pytest.mark.parametrize("verb", ["put", "get", "expect", "update", "delete"])
def test_call_for_one_entity_asks_one_shard(
    sharded: dict[str, Any], shards_asked: Callable[..., list[int]], verb: str
) -> None:
    index = races.INDEXES[0]
    with slim.Datastore(**sharded, indexes=[index]) as store:
        for id in "abcdefgh":
            store.put({"id": id, "user": "bob"})
            version = store.get(id).version  # type: ignore[union-attr]
            calls: dict[str, Callable[[], Any]] = {
                "put": lambda id=id: store.put({"id": id, "user": "amy"}),
                "get": lambda id=id: store.get(id),
                "expect": lambda id=id, version=version: store.put({"id": id}, expect=version),
                "update": lambda id=id: store.update(id, lambda entity: entity.update(n=1)),
                "delete": lambda id=id: store.delete(id),
            }
            asked = shards_asked(calls[verb])
            assert sum(count > 0 for count in asked) == 1


def test_query_asks_each_shard_once(
    sharded: dict[str, Any], shards_asked: Callable[..., list[int]]
) -> None:
    index = races.INDEXES[0]
    with slim.Datastore(**sharded, indexes=[index]) as store:
        store.put_many({"id": id, "user": "bob"} for id in "abcdefgh")
        asked = shards_asked(lambda: index.get_all(store, user="bob"))
        # One of them is asked for the catalogue's epoch, too.
        assert sorted(asked) == [1, 2]


def test_long_scan_of_a_session_without_time_limit_goes_on(sharded: dict[str, Any]) -> None:
    """The tablets end other transactions after half a minute."""
    with slim.Datastore(**sharded, init_command="SET workload = 'dba'") as store:
        store.put_many({"id": f"{n}"} for n in range(1_500))
        entities = iter(store)
        next(entities)
        time.sleep(32)
        assert sum(1 for _ in entities) == 1_499


def test_circle_across_two_shards_is_ended_by_a_time_limit_and_begun_again(
    vitess: Vitess, sharded: dict[str, Any]
) -> None:
    """No shard sees that its lock is a part of it."""
    with slim.Datastore(**sharded) as store:
        store.put_many({"id": f"{n}"} for n in range(40))
        here, there = (shard["entities"][0][0] for shard in read_shards(vitess))
        held = threading.Barrier(2)

        def block() -> None:
            with store.transaction():
                store.get(there)
                held.wait()
                # By now the other one has locked the first, and waits for this one.
                time.sleep(1)
                store.get(here)

        def many() -> None:
            held.wait()
            store.put_many([{"id": id, "by": "many"} for id in (here, there)])

        with ThreadPoolExecutor(2) as pool:
            blocked, put = pool.submit(block), pool.submit(many)
            put.result()
            # It waited as long, and is not begun again by slim.
            error = blocked.exception()
        assert error is None or isinstance(error, MySQLdb.OperationalError)
        assert {entity["by"] for entity in store.get_many([here, there]).values()} == {"many"}


def test_costs_beside_one_mysql_are_told(
    vitess: Vitess, sharded: dict[str, Any], shards_asked: Callable[..., list[int]]
) -> None:
    vitess.mysql.query("CREATE DATABASE alone")
    try:
        alone = {**vitess.mysql.connect, "database": "alone"}
        figures = costs.measure({"one MySQL": alone, "two shards": sharded})
    finally:
        vitess.mysql.query("DROP DATABASE alone")
    with slim.Datastore(**sharded) as store:
        single = {
            "put": lambda: store.put(costs.entity(0)),
            "get": lambda: store.get("entity-0"),
            "find 20": lambda: costs.BY_USER.get_all(store, user="user-0"),
            "scan, an entity": lambda: sum(1 for _ in store),
            "put_many, an entity": lambda: store.put_many(costs.entity(n) for n in range(100)),
        }
        asked = {
            call: "one shard" if 0 in shards_asked(run) else "all" for call, run in single.items()
        }
    print(costs.table(figures, asked))
    assert asked["put"] == asked["get"] == "one shard"
    assert asked["find 20"] == "all"
