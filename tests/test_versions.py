"""Every put is a new version; a writer may say which one it replaces, and a stale writer is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import MySQLdb
import pytest
from check import wrong

import slim

LOCK_WAIT_TIMEOUT = 1205


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


def test_update_whose_change_raises_stores_nothing(store: slim.Datastore) -> None:
    store.put({"id": "a", "n": 1})
    version = store.get("a").version

    def change(entity: slim.Entity) -> None:
        entity["n"] = 2
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        store.update("a", change)
    assert store.get("a") == {"id": "a", "n": 1} and store.get("a").version == version


def test_update_cannot_move_an_entity_to_another_id(store: slim.Datastore) -> None:
    store.put({"id": "a"})
    with pytest.raises(ValueError, match="b"):
        store.update("a", lambda entity: entity.update(id="b"))
    assert "a" in store and "b" not in store


def test_put_in_update_commits_with_it(store: slim.Datastore) -> None:
    store.put({"id": "a", "n": 1})

    def move(entity: slim.Entity) -> None:
        store.put({"id": "b", "n": entity.pop("n")})

    store.update("a", move)
    assert store.get_many(["a", "b"]) == {"a": {"id": "a"}, "b": {"id": "b", "n": 1}}


def test_update_calls_change_again_with_the_entity_as_it_is_after_a_lock_timeout(
    store: slim.Datastore,
) -> None:
    store.put({"id": "a", "n": 1})
    tries = []

    def change(entity: slim.Entity) -> None:
        tries.append(entity["n"])
        entity["n"] += 1
        if len(tries) == 1:
            raise MySQLdb.OperationalError(LOCK_WAIT_TIMEOUT, "Lock wait timeout exceeded")

    assert store.update("a", change)["n"] == 2
    assert tries == [1, 1]


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


def test_delete_with_history_erases_every_version_for_good(
    kept: slim.Datastore, sql: Callable[..., Any]
) -> None:
    kept.put({"id": "a", "n": 0})
    kept.put({"id": "a", "n": 1})
    kept.put({"id": "b"})
    kept.delete("a")
    kept.delete("a", history=True)
    assert kept.history("a") == []
    assert sql("SELECT id FROM entities_history") == [("b",)]


def test_delete_with_history_erases_it_also_where_the_connection_was_lost(
    kept: slim.Datastore, sql: Callable[..., Any]
) -> None:
    kept.put({"id": "a"})
    kept.delete("a")
    sql(f"KILL {kept._local.connection.thread_id()}")
    kept.delete("a", history=True)
    assert kept.history("a") == []


def test_history_is_kept_by_every_datastore_once_its_table_stands(
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


def test_delete_that_finds_none_keeps_the_history_of_who_puts_one_meanwhile(
    kept: slim.Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put_meanwhile(*_: Any, **__: Any) -> None:
        monkeypatch.undo()
        kept.put({"id": "k"})
        raise KeyError("k")

    monkeypatch.setattr(kept, "_write", put_meanwhile)
    assert not kept.delete("k", history=True)
    assert len(kept.history("k")) == 1


def test_duplicate_in_a_block_is_no_conflict_with_what_it_has_inserted_itself(
    store: slim.Datastore,
) -> None:
    store.add_index(slim.Index("index_email", "email", unique=True))
    store.put_many([{"id": "a", "email": "a@b"}, {"id": "b"}])
    for id, expect in ("c", 0), ("b", store.get("b").version):
        with pytest.raises(slim.Error, match="rolled back"), store.transaction():
            with pytest.raises(slim.Duplicate, match="'a'"):
                store.put({"id": id, "email": "a@b"}, expect=expect)
    assert list(store) == [{"id": "a", "email": "a@b"}, {"id": "b"}]


def test_block_goes_on_after_a_conflict_and_a_delete_of_none(store: slim.Datastore) -> None:
    store.put({"id": "a"})
    with store.transaction():
        for expect in 0, 999:
            with pytest.raises(slim.Conflict):
                store.put({"id": "a", "n": 1}, expect=expect)
        assert not store.delete("b")
        store.put({"id": "c"})
    assert list(store) == [{"id": "a"}, {"id": "c"}]


@pytest.mark.parametrize("inside", [False, True])
def test_update_that_was_overtaken_does_what_its_change_puts_once(
    inside: bool, store: slim.Datastore, connect: dict[str, Any]
) -> None:
    store.put_many(
        [{"id": "count", "n": 0}, {"id": "m"}]
    )  # m: InnoDB may lock what sorts next to what was written
    with slim.Datastore(**connect) as rival:

        def change(entity: slim.Entity) -> None:
            store.update("count", lambda count: count.update(n=count["n"] + 1))
            if "z" not in rival:
                rival.put({"id": "z", "n": 7})
            entity["m"] = 1

        if inside:
            with pytest.raises(slim.Conflict), store.transaction():
                store.put({"id": "first"})
                store.update("z", change, default={})
            assert store.get_many(["count", "z", "first"]) == {
                "count": {"id": "count", "n": 0},
                "z": {"id": "z", "n": 7},
            }
        else:
            assert store.update("z", change, default={}) == {"id": "z", "n": 7, "m": 1}
            assert store.get("count") == {"id": "count", "n": 1}
