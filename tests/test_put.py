"""put, put_many, get, get_many, delete, and what makes a Datastore feel like a container."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import MySQLdb
import pytest

import slim

Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def by_user(store: slim.Datastore) -> slim.Index:
    return store.add_index(slim.Index("index_user", "user"))


def test_put_returns_the_id_under_which_get_finds_the_whole_dictionary(
    store: slim.Datastore,
) -> None:
    assert store.put({"id": "x", "n": 1, "nested": {"a": [1, None]}}) == "x"
    assert store.get("x") == {"id": "x", "n": 1, "nested": {"a": [1, None]}}


def test_put_assigns_ids_that_sort_by_the_millisecond(store: slim.Datastore) -> None:
    ids = []
    for _ in range(20):
        ids.append(store.put({}))
        time.sleep(0.002)
    assert ids == sorted(ids) and len(set(ids)) == 20
    assert {uuid.UUID(id).version for id in ids} == {7}


def test_put_replaces_the_whole_entity_and_makes_a_new_version(store: slim.Datastore) -> None:
    versions = []
    for entity in {"id": "x", "a": 1}, {"id": "x", "b": 2}, {"id": "x"}:
        store.put(entity)
        stored = store.get("x")
        assert stored == entity
        versions.append(stored.version)
    assert versions == sorted(set(versions))
    assert len(store) == 1


def test_put_deletes_then_inserts_so_that_no_version_comes_back(store: slim.Datastore) -> None:
    store.put({"id": "x"})
    first = store.get("x")
    store.delete("x")
    store.put({"id": "x"})
    again = store.get("x")
    assert first is not None and again is not None and again.version > first.version


def test_put_removes_index_row_of_dropped_property(
    store: slim.Datastore, by_user: slim.Index, sql: Sql
) -> None:
    store.put({"id": "x", "user": "bob"})
    assert sql("SELECT user, entity_id FROM index_user") == [("bob", "x")]
    for without in {"id": "x"}, {"id": "x", "user": None}:
        store.put({"id": "x", "user": "bob"})
        store.put(without)
        assert sql("SELECT * FROM index_user") == []
        assert by_user.get_all(store, user="bob") == []


def test_put_moves_the_row_of_a_changed_property(
    store: slim.Datastore, by_user: slim.Index
) -> None:
    store.put({"id": "x", "user": "bob"})
    store.put({"id": "x", "user": "amy"})
    assert by_user.get_all(store, user="bob") == []
    assert by_user.get_all(store, user="amy") == [{"id": "x", "user": "amy"}]


def test_put_leaves_other_entities_alone(store: slim.Datastore, by_user: slim.Index) -> None:
    store.put_many([{"id": "x", "user": "bob"}, {"id": "y", "user": "bob"}])
    store.put({"id": "x", "user": "amy"})
    assert by_user.get_all(store, user="bob") == [{"id": "y", "user": "bob"}]


def test_get_of_an_unknown_id_is_none(store: slim.Datastore) -> None:
    assert store.get("nobody") is None


def test_get_many_answers_in_the_order_asked_for_and_leaves_out_what_is_not_there(
    store: slim.Datastore,
) -> None:
    store.put_many({"id": id} for id in "abc")
    assert list(store.get_many(["c", "nobody", "a", "c"]).items()) == [
        ("c", {"id": "c"}),
        ("a", {"id": "a"}),
    ]
    assert store.get_many([]) == {}


def test_get_many_takes_more_ids_than_a_page_has(store: slim.Datastore) -> None:
    ids = [f"{n:05}" for n in range(5_200)]
    store.put_many({"id": id} for id in ids)
    assert list(store.get_many(iter(ids))) == ids


def test_delete_removes_the_entity_and_its_rows_and_tells_whether_there_was_one(
    store: slim.Datastore, by_user: slim.Index, sql: Sql
) -> None:
    store.put_many([{"id": "x", "user": "bob"}, {"id": "y", "user": "bob"}])
    assert [store.delete("x"), store.delete("x")] == [True, False]
    assert store.get("x") is None
    assert sql("SELECT user, entity_id FROM index_user") == [("bob", "y")]


def test_len_and_in_count_what_stands(store: slim.Datastore) -> None:
    assert len(store) == 0 and store  # an empty store is true all the same
    store.put({"id": "x"})
    assert len(store) == 1
    assert "x" in store and "X" not in store and "y" not in store


def test_context_manager_closes_the_datastore_also_after_an_exception(
    connect: dict[str, Any],
) -> None:
    with pytest.raises(ZeroDivisionError), slim.Datastore(**connect) as store:
        raise ZeroDivisionError
    with pytest.raises(slim.Error, match="closed"):
        store.get("x")


def test_store_opened_again_has_what_was_put(
    connect: dict[str, Any], store: slim.Datastore, by_user: slim.Index
) -> None:
    store.put({"id": "x", "user": "bob"})
    with slim.Datastore(**connect) as again:
        assert again.get("x") == {"id": "x", "user": "bob"}
        assert by_user.get_all(again, user="bob") == [{"id": "x", "user": "bob"}]


def test_put_many_counts_what_it_puts_and_writes_ids_into_the_dictionaries(
    store: slim.Datastore, by_user: slim.Index
) -> None:
    entities: list[dict[str, Any]] = [{"user": "bob", "n": n} for n in range(25)]
    assert store.put_many(entities, batch=10) == 25
    assert sorted(by_user.get_all(store, user="bob"), key=lambda entity: entity["n"]) == entities
    assert store.put_many([]) == 0


@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_put_many_lets_the_later_of_two_with_one_id_stand(
    store: slim.Datastore, by_user: slim.Index, sql: Sql, batch: int
) -> None:
    entities = [
        {"id": "x", "user": "first"},
        {"id": "y", "user": "bob"},
        {"id": "x", "user": "last"},
    ]
    assert store.put_many(entities, batch=batch) == 3
    assert store.get("x") == {"id": "x", "user": "last"}
    assert sql("SELECT user, entity_id FROM index_user ORDER BY user") == [
        ("bob", "y"),
        ("last", "x"),
    ]
    assert [entity["id"] for entity in store] == [
        "y",
        "x",
    ]  # by the time at which each was put last


def test_put_many_commits_batch_after_batch_while_it_consumes_the_iterable(
    store: slim.Datastore, sql: Sql
) -> None:
    def entities() -> Iterator[dict[str, Any]]:
        for n in range(6):
            seen.append(sql("SELECT COUNT(*) FROM entities")[0][0])
            yield {"n": n}

    seen: list[int] = []
    store.put_many(entities(), batch=2)
    # One batch is written while the next is prepared, so the first may be there from the fourth entity on, and is with the sixth.
    assert (
        seen[:3] == [0, 0, 0] and seen == sorted(seen) and set(seen) <= {0, 2, 4} and seen[5] >= 2
    )
    assert len(store) == 6


def test_put_many_in_a_transaction_commits_with_it(store: slim.Datastore) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction():
        assert store.put_many(({"n": n} for n in range(6)), batch=2) == 6
        assert len(store) == 6
        raise ZeroDivisionError
    assert len(store) == 0


def test_put_many_raises_what_stopped_a_batch_though_it_was_preparing_the_next(
    store: slim.Datastore,
) -> None:
    store.add_index(slim.Index("index_mark", "mark", unique=True))
    store.put({"id": "owner", "mark": "c"})
    with pytest.raises(slim.Duplicate, match="owner"):
        store.put_many(({"id": id, "mark": id} for id in "abcdefgh"), batch=2)
    stored = {entity["id"] for entity in store}
    assert {"a", "b", "owner"} == stored


def test_put_many_puts_no_part_of_a_batch_that_has_a_bad_entity(store: slim.Datastore) -> None:
    entities: list[Any] = [{"id": "a"}, {"id": "b"}, {"id": "c"}, ["no dictionary"], {"id": "d"}]
    with pytest.raises(TypeError, match="no dictionary"):
        store.put_many(entities, batch=2)
    assert [entity["id"] for entity in store] == ["a", "b"]


@pytest.fixture
def small_packets(server: Any) -> Iterator[int]:
    """A server that takes packets of 64 KiB, and no larger ones."""
    ((before,),) = server.query("SELECT @@GLOBAL.max_allowed_packet")
    server.query("SET GLOBAL max_allowed_packet = 65536")
    yield 65536
    server.query(f"SET GLOBAL max_allowed_packet = {before}")


def test_put_many_meets_no_limit_of_the_server(small_packets: int, connect: dict[str, Any]) -> None:
    incompressible = [
        {"n": n, "data": uuid.uuid4().bytes * 4, "more": [uuid.uuid4().hex for _ in range(100)]}
        for n in range(200)
    ]
    with slim.Datastore(**connect) as store:
        assert store.put_many(incompressible) == 200
        assert [entity["n"] for entity in store] == list(range(200))


def test_put_of_a_body_over_the_packet_limit_names_both_and_stores_nothing(
    small_packets: int, connect: dict[str, Any]
) -> None:
    with slim.Datastore(**connect) as store:
        store.put({"id": "x", "n": 1})
        for put in store.put, lambda entity: store.put_many([entity]):
            with pytest.raises(ValueError, match=f"max_allowed_packet.*{small_packets}"):
                put({"id": "x", "data": [uuid.uuid4().hex for _ in range(5_000)]})
        assert list(store) == [{"id": "x", "n": 1}]


def test_put_of_a_body_over_mediumblob_names_the_limit(store: slim.Datastore) -> None:
    with pytest.raises(ValueError, match="16 MiB"):
        store.put({"id": "x", "data": random.randbytes(1 << 24)})
    assert len(store) == 0


def test_what_cannot_be_pickled_is_a_type_error_and_nothing_is_stored(
    store: slim.Datastore,
) -> None:
    entity = {"f": lambda: None}
    with pytest.raises((TypeError, slim.Untrusted), match="lambda"):
        store.put(entity)
    assert list(entity) == ["f"]
    assert len(store) == 0


def test_own_connection_of_the_driver_stays_as_it_is(
    connect: dict[str, Any], store: slim.Datastore
) -> None:
    connection = MySQLdb.connect(**connect)
    connection.query("SELECT @@session.time_zone")
    ((zone,),) = connection.store_result().fetch_row(0)
    assert zone == "SYSTEM"
    connection.close()
