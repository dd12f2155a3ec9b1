"""What slim puts into a database, and that it takes what stands there already, as it is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import Named

import slim

Sql = Callable[..., list[tuple[Any, ...]]]
OF_2009 = [
    """CREATE TABLE entities (
    added_id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    id BINARY(16) NOT NULL, updated TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, body MEDIUMBLOB, UNIQUE KEY (id), KEY (updated)
) ENGINE=InnoDB""".replace("BINARY(16)", "VARCHAR(36)"),
    """CREATE TABLE index_user_id (
    user_id VARCHAR(191) NOT NULL, entity_id VARCHAR(36) NOT NULL UNIQUE, PRIMARY KEY (user_id, entity_id)
) ENGINE=InnoDB COMMENT='slim index'""",
]


def tables(sql: Sql) -> set[str]:
    return {name for (name,) in sql("SHOW TABLES")}


def definition(sql: Sql, table: str) -> str:
    return str(sql(f"SHOW CREATE TABLE {table}")[0][1])


def test_a_new_database_gets_three_tables_and_no_more(store: slim.Datastore, sql: Sql) -> None:
    store.add_index(slim.Index("index_user_id", "user_id"))
    store.put({"user_id": "bob"})
    assert tables(sql) == {"entities", "entities_catalogue", "index_user_id"}


def test_tables_are_as_documented(server: Named, store: slim.Datastore, sql: Sql) -> None:
    store.add_index(slim.Index("index_place", ["country", "city"]))
    exact = "utf8mb4_0900_bin" if server.kind == "mysql" else "utf8mb4_nopad_bin"
    columns = """SELECT column_name, column_type, is_nullable, collation_name FROM information_schema.columns
     WHERE table_schema = DATABASE() AND table_name = %s ORDER BY ordinal_position"""
    number = "bigint unsigned" if server.kind == "mysql" else "bigint(20) unsigned"
    assert sql(columns, ["entities"]) == [
        ("added_id", number, "NO", None),
        ("id", "varchar(36)", "NO", exact),
        ("updated", "timestamp", "NO", None),
        ("body", "mediumblob", "YES", None),
    ]
    assert sql(columns, ["index_place"]) == [
        ("country", "varchar(191)", "NO", exact),
        ("city", "varchar(191)", "NO", exact),
        ("entity_id", "varchar(36)", "NO", exact),
    ]
    keys = """SELECT GROUP_CONCAT(column_name ORDER BY seq_in_index), MIN(non_unique) FROM information_schema.statistics
     WHERE table_schema = DATABASE() AND table_name = %s GROUP BY index_name ORDER BY 1"""
    assert sql(keys, ["entities"]) == [("added_id", 0), ("id", 0), ("updated", 1)]
    assert sql(keys, ["index_place"]) == [
        ("country,city,entity_id", 0),
        ("entity_id", 0),
    ]
    assert "ENGINE=InnoDB" in definition(sql, "index_place")


def test_unique_index_keeps_one_row_for_its_values(store: slim.Datastore, sql: Sql) -> None:
    store.add_index(slim.Index("index_email", "email", unique=True))
    assert "PRIMARY KEY (`email`)" in definition(sql, "index_email")


def test_opening_again_alters_no_table(
    connect: dict[str, Any], store: slim.Datastore, sql: Sql
) -> None:
    index = store.add_index(slim.Index("index_user_id", "user_id"))
    before = [definition(sql, table) for table in ("entities", "index_user_id")], tables(sql)
    with slim.Datastore(**connect, indexes=[index]):
        assert (
            [definition(sql, table) for table in ("entities", "index_user_id")],
            tables(sql),
        ) == before


def test_stale_row_of_an_index_is_no_answer(store: slim.Datastore, sql: Sql) -> None:
    index = store.add_index(slim.Index("index_user_id", "user_id"))
    store.put_many([{"id": "x", "user_id": "amy"}, {"id": "y", "user_id": "bob"}])
    sql("UPDATE index_user_id SET user_id = 'bob' WHERE entity_id = 'x'")
    sql("INSERT INTO index_user_id (user_id, entity_id) VALUES ('bob', 'orphan')")
    assert index.get_all(store, user_id="bob") == [{"id": "y", "user_id": "bob"}]
    assert list(index.find(store, {"user_id": "bob"}, limit=1)) == [{"id": "y", "user_id": "bob"}]


def test_other_tables_are_not_touched(connect: dict[str, Any], sql: Sql) -> None:
    sql("CREATE TABLE index_of_another (entity_id VARCHAR(36) PRIMARY KEY, user_id VARCHAR(10))")
    sql("CREATE TABLE other (id VARCHAR(36) PRIMARY KEY) COMMENT 'slim indexes are elsewhere'")
    sql("INSERT INTO index_of_another (entity_id, user_id) VALUES ('x', 'bob')")
    sql("INSERT INTO other (id) VALUES ('x')")
    with slim.Datastore(**connect) as store:
        index = store.add_index(slim.Index("index_user_id", "user_id"))
        store.put({"id": "x", "user_id": "bob"})
        assert [found.table for found in store.indexes] == ["index_user_id"]
        store.delete("x")
        store.remove_index(index)
    assert sql("SELECT * FROM index_of_another") == [("x", "bob")]
    assert sql("SELECT * FROM other") == [("x",)]


def test_table_of_2009_is_refused_with_the_statement_that_mends_it(
    connect: dict[str, Any], sql: Sql
) -> None:
    sql(OF_2009[0])
    with pytest.raises(slim.Error, match="ALTER TABLE `entities`") as refused:
        slim.Datastore(**connect)
    sql("ALTER TABLE" + str(refused.value).partition("ALTER TABLE")[2])
    sql(OF_2009[1])
    index = slim.Index("index_user_id", "user_id")
    with slim.Datastore(**connect) as store:
        with pytest.raises(slim.Error, match="ALTER TABLE `index_user_id`") as refused:
            store.add_index(index)
        sql("ALTER TABLE" + str(refused.value).partition("ALTER TABLE")[2])
        store.put_many([{"id": "x", "user_id": "Bob"}, {"id": "X", "user_id": "bob"}])
        store.add_index(index)
        assert index.get_all(store, user_id="bob") == [{"id": "X", "user_id": "bob"}]


def test_table_of_another_program_is_refused_by_its_columns(
    connect: dict[str, Any], sql: Sql
) -> None:
    sql("CREATE TABLE index_n (n INT NOT NULL PRIMARY KEY)")
    with slim.Datastore(**connect) as store:
        with pytest.raises(slim.Error, match="index_n.*n is int"):
            store.add_index(slim.Index("index_n", {"n": int}))
        assert store.indexes == []
    assert sql("SHOW TABLES LIKE 'index_n'") == [("index_n",)]


def test_table_of_a_type_that_begins_alike_is_refused(connect: dict[str, Any], sql: Sql) -> None:
    with slim.Datastore(**connect) as store:
        index = store.add_index(slim.Index("index_day", {"day": dt.datetime}))
        sql("CREATE TABLE index_left LIKE index_day")
        store.remove_index(index)
        with pytest.raises(slim.Error, match="index_left.*day is datetime"):
            store.add_index(slim.Index("index_left", {"day": dt.date}))
        store.put({"id": "a", "day": dt.date(2009, 2, 27)})
        store.add_index(slim.Index("index_day", {"day": dt.date}))


def test_database_of_an_option_file_gets_an_index(connect: dict[str, Any], tmp_path: Path) -> None:
    names = {"unix_socket": "socket"}
    told = ("host", "port", "user", "password", "unix_socket", "database")
    lines = [f"{names.get(name, name)}={connect[name]}" for name in told if connect.get(name)]
    path = tmp_path / "options.cnf"
    path.write_text("\n".join(["[client]", "ssl-verify-server-cert=0", *lines, ""]))
    with slim.Datastore(read_default_file=str(path), read_default_group="client") as store:
        index = store.add_index(slim.Index("index_n", {"n": int}))
        store.put({"id": "a", "n": 1})
        assert index.get_all(store, n=1) == [{"id": "a", "n": 1}]
        store.remove_index(index)
        assert store.indexes == []
