"""What slim puts into a database, and that it takes what stands there already, as it is."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import MySQLdb
import pytest
from server import Named, Server

import slim

Sql = Callable[..., list[tuple[Any, ...]]]
OF_2009 = [
    """CREATE TABLE entities (
    added_id INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    id BINARY(16) NOT NULL, updated TIMESTAMP NOT NULL, body MEDIUMBLOB, UNIQUE KEY (id), KEY (updated)
) ENGINE=InnoDB""".replace("BINARY(16)", "VARCHAR(36)"),
    """CREATE TABLE index_user_id (
    user_id VARCHAR(191) NOT NULL, entity_id VARCHAR(36) NOT NULL UNIQUE, PRIMARY KEY (user_id, entity_id)
) ENGINE=InnoDB COMMENT='slim index'""",
]


def tables(sql: Sql) -> set[str]:
    return {re.sub("guard_[0-9a-f]+$", "guard_…", name) for (name,) in sql("SHOW TABLES")}


def definition(sql: Sql, table: str) -> str:
    return str(sql(f"SHOW CREATE TABLE {table}")[0][1])


@pytest.fixture
def by_hand(sql: Sql, connect: dict[str, Any]) -> Iterator[slim.Datastore]:
    """A store on tables that were typed from the statements of 2009, in the server's default collation."""
    for statement in OF_2009:
        sql(statement)
    with slim.Datastore(**connect) as store:
        yield store


def test_a_new_database_gets_three_tables_and_no_more(store: slim.Datastore, sql: Sql) -> None:
    store.add_index(slim.Index("index_user_id", "user_id"))
    store.put({"user_id": "bob"})
    assert tables(sql) == {"entities", "entities_guard_…", "index_user_id"}


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
        ("city", 1),
        ("country,city,entity_id", 0),
        ("entity_id", 0),
    ]
    assert "ENGINE=InnoDB" in definition(
        sql, "index_place"
    ) and "COMMENT='slim index'" in definition(sql, "index_place")


def test_unique_index_keeps_one_row_for_its_values(store: slim.Datastore, sql: Sql) -> None:
    store.add_index(slim.Index("index_email", "email", unique=True))
    assert "PRIMARY KEY (`email`)" in definition(sql, "index_email")
    assert "COMMENT='slim unique index'" in definition(sql, "index_email")


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


def test_typed_tables_stay_as_they_are_and_work(by_hand: slim.Datastore, sql: Sql) -> None:
    before = [definition(sql, table) for table in ("entities", "index_user_id")]
    index = slim.Index("index_user_id", "user_id")
    by_hand.add_index(index)
    by_hand.put({"id": "x", "user_id": "bob"})
    stored = by_hand.get("x")
    assert stored == {"id": "x", "user_id": "bob"} and stored.updated.year >= 2009
    assert index.get_all(by_hand, user_id="bob") == [stored]
    assert by_hand.delete("x")
    assert sql("SELECT * FROM index_user_id") == []
    assert [
        re.sub(r" AUTO_INCREMENT=\d+", "", definition(sql, table))
        for table in ("entities", "index_user_id")
    ] == before


def test_index_of_a_typed_table_answers_only_what_is_true(by_hand: slim.Datastore) -> None:
    index = slim.Index("index_user_id", "user_id")
    by_hand.put_many(
        [
            {"id": "1", "user_id": "Bob"},
            {"id": "2", "user_id": "bob"},
            {"id": "3", "user_id": "bób"},
        ]
    )
    for name in "Bob", "bob", "bób":
        assert [entity["user_id"] for entity in index.get_all(by_hand, user_id=name)] == [name]
        assert index.count(by_hand, user_id=name) == 1
        assert [
            entity["user_id"]
            for entity in index.find(by_hand, {"user_id": [name, "amy"]}, reverse=True)
        ] == [name]


def test_stale_row_of_an_index_is_no_answer(store: slim.Datastore, sql: Sql) -> None:
    index = store.add_index(slim.Index("index_user_id", "user_id"))
    store.put_many([{"id": "x", "user_id": "amy"}, {"id": "y", "user_id": "bob"}])
    sql("UPDATE index_user_id SET user_id = 'bob' WHERE entity_id = 'x'")
    sql("INSERT INTO index_user_id VALUES ('bob', 'orphan')")
    assert index.get_all(store, user_id="bob") == [{"id": "y", "user_id": "bob"}]
    assert list(index.find(store, {"user_id": "bob"}, limit=1)) == [{"id": "y", "user_id": "bob"}]


def test_typed_table_takes_no_other_id_for_the_one_asked_for(by_hand: slim.Datastore) -> None:
    by_hand.put({"id": "Bob"})
    assert by_hand.get("bob") is None and "bob" not in by_hand
    assert by_hand.get_many(["bob", "Bob"]) == {"Bob": {"id": "Bob"}}
    assert not by_hand.delete("bob")
    with pytest.raises(slim.Error, match="'Bob'.*collation"):
        by_hand.put({"id": "bob"})
    assert list(by_hand) == [{"id": "Bob"}]


@pytest.fixture
def denied(server: Named, connect: dict[str, Any], database: str) -> Iterator[dict[str, Any]]:
    """What an account connects with that may read and write, and not create."""
    name = f"slim_{uuid.uuid4().hex[:12]}"
    server.query(f"CREATE USER '{name}'@'%' IDENTIFIED BY 'Pa55-word'")
    server.query(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.* TO '{name}'@'%'")
    yield {**connect, "user": name, "password": "Pa55-word"} | (
        {} if server.kind == "mariadb" else {"ssl_mode": "PREFERRED"}
    )
    server.query(f"DROP USER '{name}'@'%'")


def test_account_without_create_uses_tables_that_stand(
    by_hand: slim.Datastore, denied: dict[str, Any]
) -> None:
    with slim.Datastore(**denied, indexes=[slim.Index("index_user_id", "user_id")]) as store:
        store.put({"id": "x", "user_id": "bob"})
        (index,) = store.indexes
        assert index.get_all(store, user_id="bob") == [{"id": "x", "user_id": "bob"}]


def test_account_without_create_is_told_the_statement_for_what_is_missing(
    sql: Sql, denied: dict[str, Any]
) -> None:
    with pytest.raises(slim.Error, match="CREATE TABLE entities"):
        slim.Datastore(**denied)
    assert tables(sql) == set()
    sql(OF_2009[0])
    with slim.Datastore(**denied) as store:
        store.put({"id": "x", "user_id": "bob"})
        with pytest.raises(slim.Error, match="CREATE TABLE `index_user_id`"):
            store.add_index(slim.Index("index_user_id", "user_id"))
        assert store.get("x") == {"id": "x", "user_id": "bob"}


def test_typed_tables_on_a_server_that_is_read_only_are_read_at_once(server: Named) -> None:
    with Server(server.kind, ["--read-only=ON"]) as own:
        with (
            MySQLdb.connect(**own.connect, autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            for statement in (
                "CREATE DATABASE app",
                "USE app",
                *OF_2009,
                f"INSERT INTO entities (id, updated, body) VALUES ('x', NOW(), X'{slim.encode({'id': 'x'}).hex()}')",
                "CREATE USER 'reader'@'%' IDENTIFIED BY 'Pa55-word'",
                "GRANT ALL ON app.* TO 'reader'@'%'",
            ):
                cursor.execute(statement)
        begun = time.monotonic()
        more = {} if own.kind == "mariadb" else {"ssl_mode": "PREFERRED"}  # for the password
        with slim.Datastore(
            **{**own.connect, "user": "reader", "password": "Pa55-word", "database": "app", **more}
        ) as store:
            assert len(store) == 1
            assert (
                time.monotonic() - begun < slim.RETRY_SECONDS / 2
            )  # its guard cannot be made, however often that is tried
            threading.Timer(1, own.query, ["SET GLOBAL read_only = OFF"]).start()
            version = store.get(
                "x"
            ).version  # what the server refuses is not done, and is tried again
            assert store.put({"id": "x", "n": 1}, expect=version) == "x"


def test_typed_index_without_a_comment_is_used_as_it_is_by_who_names_it(
    connect: dict[str, Any], sql: Sql
) -> None:
    by_user = slim.Index("hand", "user")
    sql(
        "CREATE TABLE hand (user VARCHAR(191) NOT NULL, entity_id VARCHAR(36) NOT NULL UNIQUE, PRIMARY KEY (user, entity_id))"
    )
    with slim.Datastore(**connect) as store:
        by_user.create(store)
        store.put({"id": "x", "user": "bob"})
        assert by_user.get_all(store, user="bob") == [{"id": "x", "user": "bob"}]
        with pytest.raises(ValueError, match="hand"):
            store.add_index(
                slim.Index("hand", "town")
            )  # which takes nothing from the one that stands
        store.put({"id": "y", "user": "bob"})
        assert by_user.count(store, user="bob") == 2
    assert tables(sql) == {"entities", "entities_guard_…", "hand"}


def test_tables_of_another_whose_names_differ_in_case_are_not_touched(
    connect: dict[str, Any], sql: Sql
) -> None:
    for statement in ("CREATE TABLE ENTITIES (n INT)", "CREATE TABLE By_User (n INT)"):
        sql(statement)
    with slim.Datastore(**connect, indexes=[slim.Index("by_user", "user")]) as store:
        store.put({"id": "x", "user": "bob"})
        (index,) = store.indexes
        assert index.table == "by_user" and index.get_all(store, user="bob") == [
            {"id": "x", "user": "bob"}
        ]
        with pytest.raises(ValueError, match="By_User"):
            store.add_index(slim.Index("By_User", "user"))
        store.put({"id": "y", "user": "bob"})
    assert sql("SELECT * FROM ENTITIES") == sql("SELECT * FROM By_User") == []


def test_packet_of_a_block_that_deleted_and_could_not_insert_dooms_it(
    by_hand: slim.Datastore,
) -> None:
    by_hand.put_many([{"id": "x"}, {"id": "Bob"}])
    with pytest.raises(slim.Error, match="rolled back"), by_hand.transaction():
        with pytest.raises(slim.Error, match="'Bob'.*collation"):
            by_hand.put_many([{"id": "x", "n": 2}, {"id": "bob"}])
    assert list(by_hand) == [{"id": "x"}, {"id": "Bob"}]


def test_other_tables_are_not_touched(connect: dict[str, Any], sql: Sql) -> None:
    sql("CREATE TABLE index_of_another (entity_id VARCHAR(36) PRIMARY KEY, user_id VARCHAR(10))")
    sql("CREATE TABLE other (id VARCHAR(36) PRIMARY KEY) COMMENT 'slim indexes are elsewhere'")
    sql("INSERT INTO index_of_another VALUES ('x', 'bob')")
    sql("INSERT INTO other VALUES ('x')")
    with slim.Datastore(**connect) as store:
        index = store.add_index(slim.Index("index_user_id", "user_id"))
        store.put({"id": "x", "user_id": "bob"})
        assert [found.table for found in store.indexes] == ["index_user_id"]
        store.delete("x")
        store.remove_index(index)
    assert sql("SELECT * FROM index_of_another") == [("x", "bob")]
    assert sql("SELECT * FROM other") == [("x",)]
