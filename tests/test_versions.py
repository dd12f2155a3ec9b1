"""Every put is a new version; a writer may say which one it replaces, and a stale writer is told."""

from __future__ import annotations

import time
from typing import Any

import MySQLdb
import pytest
from check import wrong
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


def test_updated_is_the_time_of_the_put_in_utc(store: slim.Datastore) -> None:
    store.put({"id": "a"})
    updated = store.get("a").updated
    assert updated.utcoffset().total_seconds() == 0
    assert abs(updated.timestamp() - time.time()) < 5


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


def test_version_of_an_update_is_the_one_that_stands(store: slim.Datastore) -> None:
    for _ in range(3):
        entity = store.update("a", lambda entity: entity.update(n=1), default={})
        stored = store.get("a")
        assert (entity.version, entity.updated) == (stored.version, stored.updated)
        store.put({**entity, "n": 2}, expect=entity.version)
