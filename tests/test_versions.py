"""Every put is a new version; a writer may say which one it replaces, and a stale writer is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import MySQLdb
import pytest
from check import in_threads, kill_sessions, wrong
from proxy import Before, proxied

import slim


def test_every_put_is_a_new_version_even_of_the_same_entity(store: slim.Datastore) -> None:
    versions = []
    for _ in range(3):
        store.put({"id": "a"})
        versions.append(store.get("a").version)
    assert versions == sorted(set(versions))


def test_expect_replaces_the_version_it_names(store: slim.Datastore) -> None:
    store.put({"id": "a", "n": 1})
    entity = store.get("a")
    assert store.put({**entity, "n": 2}, expect=entity.version) == "a"
    assert store.get("a") == {"id": "a", "n": 2}


def test_stale_put_is_a_conflict_and_changes_nothing(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    store.add_index(slim.Index("index_n", {"n": int}))
    store.put({"id": "a", "n": 1})
    stale = store.get("a").version
    store.put({"id": "a", "n": 2})
    current = store.get("a").version
    with pytest.raises(slim.Conflict) as caught:
        store.put({"id": "a", "n": 3}, expect=stale)
    assert (caught.value.id, caught.value.expected, caught.value.found) == ("a", stale, current)
    assert store.get("a") == {"id": "a", "n": 2} and store.get("a").version == current
    assert wrong(connect) == []


def test_expect_0_stores_only_where_there_is_none(store: slim.Datastore) -> None:
    store.put({"id": "a", "n": 1}, expect=0)
    with pytest.raises(slim.Conflict) as caught:
        store.put({"id": "a", "n": 2}, expect=0)
    assert caught.value.found == store.get("a").version
    assert store.get("a")["n"] == 1


def test_expect_of_a_deleted_entity_finds_0(store: slim.Datastore) -> None:
    store.put({"id": "a"})
    version = store.get("a").version
    store.delete("a")
    with pytest.raises(slim.Conflict) as caught:
        store.put({"id": "a"}, expect=version)
    assert caught.value.found == 0 and "a" not in store


def test_version_of_a_deleted_entity_never_comes_back(store: slim.Datastore) -> None:
    store.put({"id": "a"})
    version = store.get("a").version
    store.delete("a")
    store.put({"id": "a"})
    with pytest.raises(slim.Conflict):
        store.put({"id": "a"}, expect=version)


def test_stale_delete_is_a_conflict_and_a_current_one_deletes(store: slim.Datastore) -> None:
    store.put({"id": "a"})
    stale = store.get("a").version
    store.put({"id": "a"})
    with pytest.raises(slim.Conflict):
        store.delete("a", expect=stale)
    assert "a" in store
    assert store.delete("a", expect=store.get("a").version) is True
    assert "a" not in store


def test_conflict_does_not_write_an_id_into_the_callers_dictionary(store: slim.Datastore) -> None:
    entity: dict[str, Any] = {"n": 1}
    with pytest.raises(slim.Conflict):
        store.put(entity, expect=5)
    assert entity == {"n": 1}


@pytest.mark.parametrize("expect", [-1, "1", 1.0, True])
def test_expect_that_is_no_version_is_refused(store: slim.Datastore, expect: Any) -> None:
    with pytest.raises(TypeError, match=repr(expect)):
        store.put({"id": "a"}, expect=expect)
    assert "a" not in store


def test_update_returns_the_entity_as_stored(store: slim.Datastore) -> None:
    store.put({"id": "a", "n": 1})
    entity = store.update("a", lambda entity: entity.update(n=entity["n"] + 1))
    stored = store.get("a")
    assert entity == stored == {"id": "a", "n": 2}
    assert (entity.version, entity.updated) == (stored.version, stored.updated)


def test_update_of_none_is_a_key_error_unless_it_has_a_default(store: slim.Datastore) -> None:
    with pytest.raises(KeyError, match="a"):
        store.update("a", lambda entity: entity.update(n=1))
    assert "a" not in store
    default: dict[str, Any] = {"tags": []}
    assert store.update("a", lambda entity: entity["tags"].append("x"), default) == {
        "id": "a",
        "tags": ["x"],
    }
    assert default == {"tags": []}


@pytest.fixture
def kept(connect: dict[str, Any]) -> Any:
    with slim.Datastore(**connect, history=True) as store:
        yield store


def test_history_has_every_version_newest_first_also_after_delete(kept: slim.Datastore) -> None:
    versions = []
    for n in range(3):
        kept.put({"id": "a", "n": n})
        versions.append(kept.get("a").version)
    kept.delete("a")
    assert kept.history("a") == [{"id": "a", "n": n} for n in (2, 1, 0)]
    assert [entity.version for entity in kept.history("a")] == versions[::-1]
    assert kept.history("b") == []


def test_history_takes_what_update_put_many_and_expect_store(kept: slim.Datastore) -> None:
    kept.put({"id": "a", "n": 0}, expect=0)
    kept.update("a", lambda entity: entity.update(n=1))
    kept.put_many([{"id": "a", "n": 2}])
    assert [entity["n"] for entity in kept.history("a")] == [2, 1, 0]


def test_history_does_not_take_what_was_rolled_back(kept: slim.Datastore) -> None:
    kept.put({"id": "a", "n": 0})
    with pytest.raises(RuntimeError), kept.transaction():
        kept.put({"id": "a", "n": 1})
        raise RuntimeError
    with pytest.raises(slim.Conflict):
        kept.put({"id": "a", "n": 2}, expect=1 << 40)
    assert [entity["n"] for entity in kept.history("a")] == [0]


def test_get_reads_any_version_of_this_id_alone(kept: slim.Datastore) -> None:
    kept.put({"id": "a", "n": 0})
    old = kept.get("a")
    kept.put({"id": "a", "n": 1})
    assert kept.get("a", version=old.version) == {"id": "a", "n": 0}
    assert kept.get("a", version=kept.get("a").version) == {"id": "a", "n": 1}
    kept.delete("a")
    assert kept.get("a", version=old.version).updated == old.updated
    assert kept.get("a", version=1 << 40) is None
    assert kept.get("b", version=old.version) is None


def test_forget_deletes_the_entity_and_every_version_for_good(
    kept: slim.Datastore, connect: dict[str, Any], sql: Callable[..., Any]
) -> None:
    index = kept.add_index(slim.Index("index_n", {"n": int}))
    for n in range(3):
        kept.put({"id": "a", "n": n})
    kept.put({"id": "b"})
    assert kept.forget("a") is None
    assert "a" not in kept and kept.history("a") == [] == index.get_all(kept, n=2)
    assert sql("SELECT id FROM entities_history") == [("b",)]
    assert wrong(connect) == []


def test_forget_of_what_was_deleted_or_never_was_deletes_what_there_is(
    kept: slim.Datastore,
) -> None:
    kept.put({"id": "a"})
    kept.delete("a")
    assert len(kept.history("a")) == 1
    kept.forget("a")
    kept.forget("never")
    assert kept.history("a") == []


def test_forget_without_a_history_deletes_the_entity(store: slim.Datastore) -> None:
    store.put({"id": "a"})
    store.forget("a")
    assert "a" not in store


def test_forget_in_a_block_is_rolled_back_with_it(kept: slim.Datastore) -> None:
    kept.put({"id": "a"})
    with pytest.raises(ZeroDivisionError), kept.transaction():
        kept.forget("a")
        raise ZeroDivisionError
    assert "a" in kept and len(kept.history("a")) == 1
    with kept.transaction():
        kept.forget("a")
    assert kept.history("a") == []


def test_forget_also_where_the_connection_was_closed_while_it_was_idle(
    kept: slim.Datastore, sql: Callable[..., Any]
) -> None:
    kept.put({"id": "a"})
    kept.delete("a")
    kill_sessions(sql)
    kept.forget("a")
    assert kept.history("a") == []


def test_forget_keeps_the_version_that_another_program_puts_meanwhile(
    kept: slim.Datastore, connect: dict[str, Any]
) -> None:
    kept.put({"id": "k"})
    kept.delete("k")
    with proxied(connect) as (proxy, through), slim.Datastore(**through) as forgetful:
        proxy.cut = Before(b"DELETE FROM entities_history", lambda: kept.put({"id": "k", "n": 1}))
        forgetful.forget("k")
        proxy.cut = None
    assert [entity["n"] for entity in kept.history("k") if "n" in entity] == [1]
    assert wrong(connect) == []


def test_forget_under_writers_leaves_a_history_of_what_stands(
    kept: slim.Datastore, connect: dict[str, Any]
) -> None:
    def put() -> None:
        for n in range(40):
            kept.put({"id": "k", "n": n})

    def forget() -> None:
        for _ in range(40):
            kept.forget("k")

    in_threads(put, put, forget)
    assert wrong(connect) == []


def test_history_has_one_order_for_versions_put_at_once(
    kept: slim.Datastore, connect: dict[str, Any]
) -> None:
    in_threads(*(lambda n=n: [kept.put({"id": "a", "n": n}) for _ in range(10)] for n in range(8)))
    versions = [entity.version for entity in kept.history("a")]
    assert len(versions) == len(set(versions)) == 80
    assert versions[0] == kept.get("a").version
    assert wrong(connect) == []


def test_history_is_kept_by_every_datastore_once_it_was_switched_on(
    kept: slim.Datastore, connect: dict[str, Any]
) -> None:
    with slim.Datastore(**connect) as other:
        other.put({"id": "a"})
    assert kept.history("a") == [{"id": "a"}]


def test_history_without_its_table_is_an_error_with_the_remedy(store: slim.Datastore) -> None:
    store.put({"id": "a"})
    with pytest.raises(slim.Error, match="history=True"):
        store.history("a")


def test_updated_is_the_time_of_the_put_in_utc(store: slim.Datastore) -> None:
    store.put({"id": "a"})
    updated = store.get("a").updated
    assert updated.utcoffset().total_seconds() == 0
    assert abs(updated.timestamp() - time.time()) < 5


def test_version_is_read_by_a_store_that_was_open_before_there_was_history(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    with slim.Datastore(**connect, history=True) as other:
        first, _ = [other.get(other.put({"id": "k", "n": n})) for n in (1, 2)]
    assert store.get("k", version=first.version) == first


def test_update_of_none_that_was_overtaken_does_what_its_change_puts_once(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    """Its try is rolled back, with all that `change` has put, and made again with what is there."""
    # m: InnoDB may lock what sorts next to what was written.
    store.put_many([{"id": "count", "n": 0}, {"id": "m"}])
    with slim.Datastore(**connect) as rival:

        def change(entity: slim.Entity) -> None:
            store.update("count", lambda count: count.update(n=count["n"] + 1))
            if "z" not in rival:
                rival.put({"id": "z", "n": 7})
            entity["m"] = 1

        assert store.update("z", change, default={}) == {"id": "z", "n": 7, "m": 1}
        assert store.get("count") == {"id": "count", "n": 1}


def test_update_of_none_that_was_overtaken_in_a_block_ends_it(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    store.put({"id": "m"})
    with slim.Datastore(**connect) as rival:
        with pytest.raises((slim.Error, MySQLdb.OperationalError)), store.transaction():
            store.put({"id": "first"})
            store.update("z", lambda entity: rival.put({"id": "z", "n": 7}) and None, default={})
    assert store.get_many(["z", "first"]) == {"z": {"id": "z", "n": 7}}


def test_update_that_waited_calls_change_with_what_it_then_finds(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    store.put({"id": "a", "n": 1})
    seen = []

    def change(entity: slim.Entity) -> None:
        seen.append(entity["n"])
        entity["n"] += 1

    with proxied(connect) as (proxy, through), slim.Datastore(**through) as slow:
        proxy.cut = Before(b"FOR UPDATE", lambda: store.put({"id": "a", "n": 5}))
        assert slow.update("a", change)["n"] == 6
        proxy.cut = None
    assert seen == [5]


def test_version_of_an_update_is_the_one_that_stands(kept: slim.Datastore) -> None:
    for _ in range(3):
        entity = kept.update("a", lambda entity: entity.update(n=1), default={})
        stored = kept.get("a")
        assert (entity.version, entity.updated) == (stored.version, stored.updated)
        kept.put({**entity, "n": 2}, expect=entity.version)
