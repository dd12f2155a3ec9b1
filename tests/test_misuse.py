"""Bad input of every kind gets an error that names the value and the remedy, and leaves everything as it was."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import re
import traceback
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import MySQLdb
import pytest
from check import kill_sessions, queries, sessions, until, wrong
from proxy import Before, Once, Packet, proxied
from server import Named, free_port

import slim

Sql = Callable[..., list[tuple[Any, ...]]]
SECRET = "s3cret-pa55word"
BAD_IDS: list[tuple[Any, type[Exception], str]] = [
    (1, TypeError, "1"),
    (None, TypeError, "None"),
    (b"x", TypeError, "b'x'"),
    (["x"], TypeError, "'x'"),
    (True, TypeError, "True"),
    ("", ValueError, "''.*1 to 36|1 to 36.*''"),
    ("x" * 37, ValueError, "1 to 36.*xxx"),
    ("\ud800", ValueError, "ud800"),
]


@pytest.fixture
def unchanged(store: slim.Datastore, sql: Sql) -> Iterator[slim.Index]:
    """An index over what is in the store; afterwards all tables must be as they were."""
    index = store.add_index(slim.Index("index_user", "user"))
    store.put({"id": "x", "user": "bob"})
    before = (
        sql("SELECT * FROM entities"),
        sql("SELECT * FROM index_user"),
        sql("SHOW TABLES LIKE 'index%'"),
    )
    yield index
    assert (
        sql("SELECT * FROM entities"),
        sql("SELECT * FROM index_user"),
        sql("SHOW TABLES LIKE 'index%'"),
    ) == before
    store.put({"id": "y", "user": "bob"})  # and the connection is fit for the next call
    assert len(index.get_all(store, user="bob")) == 2


@pytest.mark.parametrize("id, kind, message", BAD_IDS, ids=lambda value: repr(value)[:12])
def test_bad_id(
    store: slim.Datastore, unchanged: slim.Index, id: Any, kind: type[Exception], message: str
) -> None:
    entity = {"id": id, "user": "bob"}
    before = dict(entity)
    calls: list[Callable[[], Any]] = [
        lambda: store.put(entity),
        lambda: store.put_many([{"id": "z"}, entity]),
        lambda: store.get(id),
        lambda: store.get_many(["x", id]),
        lambda: store.delete(id),
        lambda: store.update(id, lambda old: None),
        lambda: id in store,
    ]
    for call in calls:
        with pytest.raises(kind, match=message):
            call()
    assert entity == before


@pytest.mark.parametrize(
    "entity", [None, 1, "text", b"bytes", [("id", "x")], {"id"}, object()], ids=repr
)
def test_entity_that_is_no_dictionary(
    store: slim.Datastore, unchanged: slim.Index, entity: Any
) -> None:
    for put in store.put, lambda entity: store.put_many([entity]):
        with pytest.raises(TypeError, match="dict, not .*" + re.escape(repr(entity)[:9])):
            put(entity)


class Unreadable:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("in the value's own code")


@pytest.mark.parametrize(
    "value",
    [lambda: None, (n for n in [1]), io.BytesIO(), Unreadable(), open, type],
    ids=lambda v: type(v).__name__,
)
def test_value_that_cannot_be_stored_leaves_the_dictionary_as_it_was(
    store: slim.Datastore, unchanged: slim.Index, value: Any
) -> None:
    entity = {"user": "bob", "value": value}
    for put in store.put, lambda entity: store.put_many([entity]):
        with pytest.raises((TypeError, slim.Untrusted)):
            put(entity)
    assert list(entity) == ["user", "value"]


def test_entity_that_is_in_itself_is_stored(store: slim.Datastore) -> None:
    entity: dict[str, Any] = {"id": "x"}
    entity["self"] = entity
    store.put(entity)
    assert store.get("x")["self"]["id"] == "x"  # type: ignore[index]


def test_entity_nested_too_deep_is_a_type_error(
    store: slim.Datastore, unchanged: slim.Index
) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TypeError, match="recursion"):
        store.put({"id": "x", "deep": deep})


@pytest.mark.parametrize("expect", ["1", 1.0, True, -1, b"1"], ids=repr)
def test_expected_version_that_is_no_number(
    store: slim.Datastore, unchanged: slim.Index, expect: Any
) -> None:
    for call in (
        lambda: store.put({"id": "x"}, expect=expect),
        lambda: store.delete("x", expect=expect),
    ):
        with pytest.raises((TypeError, ValueError), match=repr(expect)):
            call()


def test_put_that_fails_writes_no_id_into_the_dictionary(
    store: slim.Datastore, unchanged: slim.Index
) -> None:
    for entity in {"user": 1}, {"user": "x" * 200}, {"user": "bob", "f": lambda: None}:
        keys = list(entity)
        with pytest.raises((TypeError, ValueError, slim.Untrusted)):
            store.put(entity)
        assert list(entity) == keys


def test_index_that_stands_otherwise_is_refused(
    store: slim.Datastore, connect: dict[str, Any], unchanged: slim.Index
) -> None:
    for other in (
        slim.Index("index_user", "name"),
        slim.Index("index_user", {"user": int}),
        slim.Index("index_user", ["user", "n"]),
        slim.Index("index_user", "user", unique=True),
    ):
        with pytest.raises(ValueError, match="index_user.*remove it"):
            store.add_index(other)
        with pytest.raises(ValueError, match="index_user.*remove it"):
            slim.Datastore(**connect, indexes=[other])


def test_add_index_that_the_entities_do_not_fit_names_the_entity_and_leaves_no_table(
    store: slim.Datastore, unchanged: slim.Index
) -> None:
    with pytest.raises(TypeError, match="'x'.*index_age.*'bob'"):
        store.add_index(slim.Index("index_age", {"user": int}))


def test_closed_store_says_so_in_every_call(connect: dict[str, Any]) -> None:
    store = slim.Datastore(**connect)
    index = store.add_index(slim.Index("index_user", "user"))
    store.close()
    store.close()
    calls: list[Callable[[], Any]] = [
        lambda: store.put({}),
        lambda: store.put_many([{}]),
        lambda: store.get("x"),
        lambda: store.get_many(["x"]),
        lambda: store.delete("x"),
        lambda: store.update("x", lambda old: None),
        lambda: store.transaction().__enter__(),
        lambda: list(store),
        lambda: len(store),
        lambda: "x" in store,
        lambda: store.schema(),
        lambda: store.indexes,
        lambda: store.add_index(index),
        lambda: store.remove_index(index),
        lambda: index.get_all(store, user="bob"),
        lambda: index.count(store),
        lambda: index.populate(store),
    ]
    for call in calls:
        with pytest.raises(slim.Error, match="closed"):
            call()


def test_store_that_is_closed_while_it_connects_gets_nothing_done(
    connect: dict[str, Any],
) -> None:
    with proxied(connect) as (proxy, through), queries(connect) as query:
        store = slim.Datastore(**through)
        kill_sessions(query)
        proxy.cut = Before(b"SET ", store.close)
        with pytest.raises(slim.Error, match="closed"):
            # One of the two is the first that finds it closed.
            store.put({"id": "a"})
            store.put({"id": "b"})
        proxy.cut = None
        until(lambda: not sessions(query))


def test_write_cut_off_in_its_commit_is_unknown_also_if_the_store_is_closed_then(
    connect: dict[str, Any],
) -> None:
    with proxied(connect) as (proxy, through):
        store = slim.Datastore(**through)
        cut = Once(lambda packet: b"COMMIT" in packet.data, None)

        def close_then_cut(packet: Packet) -> int | None:
            keep = cut(packet)
            if cut.done:
                store.close()
            return keep

        proxy.cut = close_then_cut
        with pytest.raises(slim.Unknown):
            store.put({"id": "a"})


@pytest.mark.parametrize(
    "name", ["Conflict", "Corrupt", "Duplicate", "NotPopulated", "Unknown", "Untrusted"]
)
def test_errors_of_slim_derive_from_its_error(name: str) -> None:
    assert issubclass(getattr(slim, name), slim.Error)


def test_unknown_outcome_can_be_sent_to_another_process() -> None:
    error = slim.Unknown("the connection was lost")
    error.id = "a"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is slim.Unknown
    assert (str(again), again.id) == ("the connection was lost", "a")


def test_unknown_is_no_error_that_a_loop_repeats() -> None:
    assert not issubclass(slim.Unknown, (MySQLdb.Error, slim.Conflict))


def test_conflict_and_duplicate_can_be_sent_to_another_process(store: slim.Datastore) -> None:
    store.add_index(slim.Index("index_email", "email", unique=True))
    store.put({"id": "a", "email": "a@b"})
    with pytest.raises(slim.Conflict) as conflict:
        store.put({"id": "a"}, expect=0)
    with pytest.raises(slim.Duplicate) as duplicate:
        store.put({"id": "b", "email": "a@b"})
    for error in conflict.value, duplicate.value:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.id) == (type(error), str(error), "a")
    assert (again.index.table, conflict.value.found) == ("index_email", store.get("a").version)


def test_unknown_database_is_the_drivers_error(connect: dict[str, Any]) -> None:
    with pytest.raises(MySQLdb.OperationalError, match="no_such_database"):
        slim.Datastore(**{**connect, "database": "no_such_database"})


def test_no_server_is_told_when_the_time_to_retry_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slim, "RETRY_SECONDS", 0.5)
    with pytest.raises(MySQLdb.OperationalError, match="127.0.0.1"):
        slim.Datastore("127.0.0.1", "root", SECRET, "app", port=free_port())


def test_password_is_in_no_message_repr_or_log(
    server: Named,
    connect: dict[str, Any],
    store: slim.Datastore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(slim, "RETRY_SECONDS", 0.5)
    shown = []
    wrong = {**connect, "user": "nobody_at_all", "password": SECRET}
    for bad in (
        wrong,
        {**wrong, "port": free_port(), "host": "127.0.0.1"},
        {**wrong, "no_such_argument": 1},
    ):
        with pytest.raises((MySQLdb.Error, TypeError)) as caught:
            slim.Datastore(**bad)
        shown.append("".join(traceback.format_exception(caught.value)))
    server.query(f"CREATE USER 'slim_secret'@'%' IDENTIFIED BY '{SECRET}'")
    try:
        server.query(f"GRANT ALL ON {connect['database']}.* TO 'slim_secret'@'%'")
        known = {**connect, "user": "slim_secret", "password": SECRET}
        if server.kind == "mysql":
            known["ssl_mode"] = "PREFERRED"  # as its accounts with a password want it
        with slim.Datastore(**known) as opened:
            shown += [repr(opened), str(opened)]
            with pytest.raises(TypeError) as failed:
                opened.put(None)  # type: ignore[arg-type]
            shown.append(str(failed.value))
    finally:
        server.query("DROP USER 'slim_secret'@'%'")
    assert SECRET not in "".join(shown) + caplog.text


@pytest.mark.parametrize(
    "columns",
    [
        "entity_id VARCHAR(36) PRIMARY KEY, name VARCHAR(9), secret INT",
        "entity_id VARCHAR(36) PRIMARY KEY, name TEXT",
        "id VARCHAR(36) PRIMARY KEY, name VARCHAR(9)",
    ],
)
def test_table_of_another_application_is_refused_as_an_index_and_not_touched(
    columns: str, store: slim.Datastore, sql: Sql
) -> None:
    sql(f"CREATE TABLE users ({columns})")
    sql(f"INSERT INTO users ({columns.split()[0]}, name) VALUES ('k', 'Ann')")
    for _ in range(2):
        with pytest.raises((ValueError, slim.Error), match="users"):
            store.add_index(slim.Index("users", "name"))
    store.put({"id": "k", "name": "Bob"})
    store.remove_index(slim.Index("users", "name"))
    store.delete("k")
    assert sql("SELECT name FROM users") == [("Ann",)]
    assert store.indexes == []


def test_entity_that_get_would_find_too_large_is_refused(connect: dict[str, Any]) -> None:
    with slim.Datastore(**connect, max_size=1000) as store:
        with pytest.raises(ValueError, match="max_size=1000"):
            store.put({"id": "a", "text": "x" * 1000})
        assert len(store) == 0


def test_tables_are_not_defined_or_populated_inside_a_transaction(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    by_n = store.add_index(slim.Index("index_n", {"n": int}))
    calls: list[Callable[[], Any]] = [
        lambda: by_n.populate(store),
        lambda: store.remove_index(by_n),
        lambda: store.add_index(slim.Index("index_m", "m")),
    ]
    for call in calls:
        with pytest.raises(slim.Error, match="transaction"), store.transaction():
            store.put({"n": 1})
            call()
    assert len(store) == 0
    assert [index.table for index in store.indexes] == ["index_n"]
    assert wrong(connect) == []


def test_index_that_is_not_there_says_so(store: slim.Datastore) -> None:
    store.put({"id": "k", "n": 1})
    by_n = slim.Index("index_n", {"n": int})
    calls: list[Callable[[], Any]] = [
        lambda: by_n.get_all(store, n=1),
        lambda: list(by_n.find(store, {})),
        lambda: by_n.count(store),
        lambda: by_n.populate(store),
    ]
    for call in calls:
        with pytest.raises(slim.NotPopulated, match="index_n"):
            call()


def test_datastore_that_is_pickled_or_copied_says_what_to_do(store: slim.Datastore) -> None:
    for call in pickle.dumps, copy.copy, copy.deepcopy:
        with pytest.raises(TypeError, match="process"):
            call(store)


def test_datastore_is_true_also_while_it_is_empty(store: slim.Datastore) -> None:
    assert store and len(store) == 0


@pytest.mark.parametrize("batch", [0, -1])
def test_batch_of_none_stores_all_or_is_refused(store: slim.Datastore, batch: int) -> None:
    try:
        assert store.put_many([{"n": n} for n in range(3)], batch=batch) == 3
    except (TypeError, ValueError):
        assert len(store) == 0
    else:
        assert len(store) == 3


def test_put_many_that_fails_half_way_keeps_the_batches_before_it(store: slim.Datastore) -> None:
    whole: list[Any] = [{"id": f"e{n}"} for n in range(25)]
    whole[17] = {"id": 17}
    with pytest.raises(TypeError):
        store.put_many(iter(whole), batch=10)
    assert sorted(entity["id"] for entity in store) == sorted(f"e{n}" for n in range(10))


def test_put_many_whose_iterable_calls_the_store_itself(store: slim.Datastore) -> None:
    def some() -> Iterator[dict[str, Any]]:
        for n in range(30):
            store.put({"id": f"beside {n}"})
            yield {"id": f"e{n}", "before": len(store)}

    assert store.put_many(some(), batch=10) == 30
    assert len(store) == 60


def test_entity_that_cannot_be_read_is_deleted_and_put_over(
    store: slim.Datastore, connect: dict[str, Any], sql: Sql
) -> None:
    by_n = store.add_index(slim.Index("index_n", {"n": int}))
    for bad in b"no body", zlib.compress(b"\x80\x05cos\nsystem\n."):
        sql("INSERT INTO entities (id, body) VALUES ('a', %s)", [bad])
        for read in (
            lambda: store.get("a"),
            lambda: list(store),
            lambda: store.get_many(["a"]),
            lambda: store.update("a", lambda entity: None),
            lambda: by_n.populate(store),
        ):
            with pytest.raises(slim.Corrupt, match="'a'") as caught:
                read()
            assert caught.value.id == "a"
        ((version,),) = sql("SELECT added_id FROM entities WHERE id = 'a'")
        store.put({"id": "a", "n": 1}, expect=version)
        sql("UPDATE entities SET body = %s", [bad])
        store.put({"id": "a", "n": 2})
        sql("UPDATE entities SET body = %s", [bad])
        assert store.delete("a")
        assert wrong(connect) == []


def test_table_that_was_dropped_is_the_drivers_error(store: slim.Datastore, sql: Sql) -> None:
    sql("DROP TABLE entities")
    with pytest.raises(MySQLdb.ProgrammingError, match="1146"):
        store.put({"n": 1})


def test_change_that_fails_in_a_block_commits_nothing_of_what_it_put(store: slim.Datastore) -> None:
    store.put({"id": "a"})

    def change(entity: slim.Entity) -> Any:
        store.put({"id": "b"})
        return entity

    with pytest.raises(slim.Error), store.transaction():
        with pytest.raises(TypeError, match="in place"):
            store.update("a", change)
    assert "b" not in store
