"""Tables as a DBA lays them out: other keys, partitions, an added_id that jumps, an account that may not create tables."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import MySQLdb
import pytest
from server import Named

import slim

Sql = Callable[..., list[tuple[Any, ...]]]

COLUMNS = """added_id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT, id VARCHAR(36) NOT NULL,
 updated TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, body MEDIUMBLOB"""
INDEX_COLUMNS = "user_id VARCHAR(191) NOT NULL, entity_id VARCHAR(36) NOT NULL, PRIMARY KEY (user_id, entity_id)"
ENTITIES = f"CREATE TABLE entities ({COLUMNS}, PRIMARY KEY (id), KEY (added_id)) {{options}}"
INDEX = f"CREATE TABLE index_user_id ({INDEX_COLUMNS}, KEY (entity_id)) {{options}}"
BY_USER = slim.Index("index_user_id", "user_id")


def use(store: slim.Datastore) -> None:
    """Puts, replaces, updates, deletes and finds, against a dictionary that does the same."""
    model: dict[str, dict[str, Any]] = {}
    for n in range(60):
        entity = {"id": f"e{n % 40}", "user_id": f"u{n % 7}", "n": n}
        store.put(entity)
        model[entity["id"]] = entity
    store.put_many(fresh := [{"id": f"many{n}", "user_id": "u1", "n": n} for n in range(30)])
    model |= {entity["id"]: entity for entity in fresh}
    for n in range(10):
        assert store.delete(f"e{n}")
        del model[f"e{n}"]
        model[f"e{n + 10}"] = store.update(
            f"e{n + 10}", lambda entity: entity.update(user_id="new")
        )
    assert not store.delete("e0")
    with pytest.raises(slim.Conflict):
        store.put({"id": "e20"}, expect=0)
    del (current := store.get("e20") or slim.Entity())["user_id"]
    store.put(current, expect=current.version)
    model["e20"] = current
    assert {entity["id"]: entity for entity in store} == model
    assert [entity.version for entity in store] == sorted(entity.version for entity in store)
    for user in "u0", "u1", "new", "nobody":
        ids = sorted(id for id, entity in model.items() if entity.get("user_id") == user)
        assert [entity["id"] for entity in BY_USER.find(store, {"user_id": user})] == ids
        assert [
            entity["id"] for entity in BY_USER.find(store, {"user_id": user}, reverse=True, limit=2)
        ] == ids[:-3:-1]
    assert BY_USER.populate(store) == 0


@pytest.mark.parametrize("index_partitions", ["", "PARTITION BY KEY (entity_id) PARTITIONS 4"])
@pytest.mark.parametrize("partitions", ["", "PARTITION BY KEY (id) PARTITIONS 4"])
def test_store_works_on_tables_laid_out_otherwise_and_leaves_them_so(
    partitions: str, index_partitions: str, server: Named, connect: dict[str, Any], sql: Sql
) -> None:
    collation = f"COLLATE={'utf8mb4_nopad_bin' if server.kind == 'mariadb' else 'utf8mb4_0900_bin'}"
    sql(ENTITIES.format(options=f"{collation} {partitions}"))
    sql(INDEX.format(options=f"{collation} {index_partitions}"))

    def layout() -> list[str]:
        tables = [
            sql(f"SHOW CREATE TABLE {table}")[0][1] for table in ("entities", "index_user_id")
        ]
        return [re.sub("AUTO_INCREMENT=[0-9]+ ", "", table) for table in tables]

    before = layout()
    with slim.Datastore(**connect, indexes=[BY_USER]) as store:
        use(store)
    assert layout() == before


def test_store_works_when_added_id_jumps_and_does_not_rise_in_commit_order(
    connect: dict[str, Any],
) -> None:
    def settings(offset: int) -> str:
        return f"SET SESSION auto_increment_increment = 1000, auto_increment_offset = {offset}"

    with (
        slim.Datastore(**connect, indexes=[BY_USER], init_command=settings(7)) as one,
        slim.Datastore(**connect, init_command=settings(500)) as other,
    ):
        versions = []
        with one.transaction():
            one.put({"id": "slow", "user_id": "bob"})
            for n in range(20):
                store = (other, one)[n % 2]
                store.put({"id": f"e{n}", "user_id": "bob", "n": n})
        for n in range(20):
            store = (one, other)[n % 2]
            assert store.update(f"e{n}", lambda entity: entity.update(user_id="eve"))["n"] == n
            entity = store.get(f"e{n}")
            assert entity is not None
            versions.append(entity.version)
        slow = one.get("slow")
        assert slow is not None and slow.version < min(
            versions
        )  # committed after those of the other
        ordered = sorted(versions)
        assert all(high - low > 1 for low, high in zip(ordered, ordered[1:]))
        with pytest.raises(slim.Conflict):
            other.put({"id": "e0"}, expect=versions[0] + 1)
        other.put({"id": "e0", "user_id": "bob"}, expect=versions[0])
        assert {entity["id"] for entity in BY_USER.get_all(one, user_id="bob")} == {"slow", "e0"}
        assert sorted(entity["id"] for entity in other) == sorted(
            ["slow", *(f"e{n}" for n in range(20))]
        )
        assert BY_USER.populate(one) == 0
        one.delete("slow")
        use(other)


@pytest.fixture
def limited(server: Named, connect: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What MySQLdb.connect takes for an account that may read and write rows, and not create, alter or drop tables."""
    name = f"slim_{uuid.uuid4().hex[:20]}"
    for host in "%", "localhost":
        server.query(f"CREATE USER '{name}'@'{host}' IDENTIFIED BY 'secret'")
        server.query(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {connect['database']}.* TO '{name}'@'{host}'"
        )
    yield {**connect, "user": name, "password": "secret"}
    for host in "%", "localhost":
        server.query(f"DROP USER '{name}'@'{host}'")


def test_account_that_may_not_create_tables_uses_those_that_stand(
    limited: dict[str, Any], connect: dict[str, Any]
) -> None:
    slim.Datastore(**connect, indexes=[BY_USER]).close()
    with slim.Datastore(**limited, indexes=[BY_USER]) as store:
        use(store)


def test_missing_table_is_an_error_that_prints_the_statement_for_the_dba(
    limited: dict[str, Any], sql: Sql
) -> None:
    created = []
    while True:
        try:
            store = slim.Datastore(**limited)
            break
        except MySQLdb.Error as error:
            assert "secret" not in str(error)
            statement = "CREATE TABLE" + error.args[-1].partition("CREATE TABLE")[2]
            created.append(statement)
            sql(statement)
    assert [statement.split("`")[1] for statement in created] == [
        "entities",
        "entities_catalogue",
    ]
    store.close()


def test_index_of_another_account_cannot_be_removed_or_added_without_the_privilege(
    limited: dict[str, Any], connect: dict[str, Any]
) -> None:
    slim.Datastore(**connect, indexes=[BY_USER]).close()
    with slim.Datastore(**limited) as store:
        with pytest.raises(MySQLdb.Error, match="ALTER TABLE entities_catalogue"):
            store.remove_index(BY_USER)
        with pytest.raises(MySQLdb.Error, match="CREATE TABLE .*`index_n`"):
            store.add_index(slim.Index("index_n", {"n": int}))
        use(store)
