"""Sessions that begin with other settings than the defaults: slim does the same in all of them.

Each session variable of the server is set, one at a time, to each value that its type has: both of
a switch, all of an enumeration, the ends of a number's range. `--long` begins with an empty database
each time, and a short run only for those that are known to hurt.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import MySQLdb
import pytest
from check import queries, wrong
from server import Named, Server

import slim

KINDS = {
    "text": str,
    "number": int,
    "real": float,
    "flag": bool,
    "data": bytes,
    "price": Decimal,
    "day": dt.date,
    "moment": dt.datetime,
}
INDEXES = [slim.Index(f"index_{name}", {name: kind}) for name, kind in KINDS.items()]
BY_TEXT = INDEXES[0]
UNIQUE = slim.Index("index_email", "email", unique=True)
LATER = slim.Index("index_later", {"number": int, "text": str})
NOON = dt.datetime(2026, 7, 1, 12, 30, 15, 123456, tzinfo=dt.timezone.utc)
VALUES: list[dict[str, Any]] = [
    {
        "text": "a'b\"c\\d\\' é ß 雪 \N{SNOWMAN} 😀 %s `x` \x00\x1a\n",
        "number": -(2**63),
        "real": 0.1 + 0.2,
        "flag": True,
        "data": bytes(range(256))[:100] + b"\\'\"",
        "price": Decimal("12345678901234567.890123456789"),
        "day": dt.date(2024, 2, 29),
        "moment": NOON,
    },
    {
        "text": "a ",
        "number": 2**63 - 1,
        "real": -1.7976931348623157e308,
        "flag": False,
        "data": b"\x00" * 20,
        "price": Decimal("-0.5"),
        "day": dt.date(1000, 1, 1),
        "moment": NOON.replace(year=1001),
    },
    {"text": "", "number": 0, "real": 5e-324, "data": b"a ", "day": dt.date(9999, 12, 31)},
    {"text": "A ", "number": 5, "email": "x@y"},
]
# What an account, a driver's configuration, or a server's options may say.
HOSTILE = [
    "autocommit = 0",
    "completion_type = 'CHAIN'",
    "completion_type = 'RELEASE'",
    "sql_safe_updates = 1, sql_select_limit = 1, sql_big_selects = 0, max_join_size = 1",
    "sql_auto_is_null = 1, group_concat_max_len = 4, div_precision_increment = 0",
    "sql_mode = ''",
    "sql_mode = 'ANSI_QUOTES'",
    "sql_mode = 'ANSI'",
    "sql_mode = 'NO_BACKSLASH_ESCAPES'",
    "sql_mode = 'PAD_CHAR_TO_FULL_LENGTH,PIPES_AS_CONCAT,IGNORE_SPACE,HIGH_NOT_PRECEDENCE'",
    "sql_mode = 'TRADITIONAL,NO_AUTO_VALUE_ON_ZERO,NO_UNSIGNED_SUBTRACTION,REAL_AS_FLOAT'",
    "NAMES latin1",
    "NAMES utf8mb4 COLLATE utf8mb4_general_ci",
    "character_set_results = NULL",
    "collation_connection = 'latin1_swedish_ci'",
    "time_zone = '+13:00'",
    "time_zone = '-12:00'",
    "lc_messages = 'de_DE', lc_time_names = 'ja_JP'",
    "SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
    "SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "SESSION TRANSACTION READ ONLY",
    "default_storage_engine = 'MyISAM'",
    "innodb_lock_wait_timeout = 1, lock_wait_timeout = 1",
    "foreign_key_checks = 0, unique_checks = 0",
    "sql_notes = 0, sql_warnings = 1, max_error_count = 0",
    "auto_increment_increment = 10, auto_increment_offset = 7",
]
HOSTILE_OF = {
    "mysql": [
        "max_execution_time = 20",
        "sql_mode = 'TIME_TRUNCATE_FRACTIONAL'",
        "resultset_metadata = 'NONE'",
        "sql_require_primary_key = 1, sql_generate_invisible_primary_key = 1",
        "session_track_gtids = 'OWN_GTID', session_track_state_change = 1",
        "session_track_transaction_info = 'CHARACTERISTICS'",
        "optimizer_switch = 'derived_merge=off,semijoin=off,use_index_extensions=off'",
    ],
    "mariadb": [
        "max_statement_time = 0.02",
        "timestamp = 1000",
        "sql_mode = 'ORACLE'",
        "sql_mode = 'EMPTY_STRING_IS_NULL'",
        "sql_mode = 'TIME_ROUND_FRACTIONAL,SIMULTANEOUS_ASSIGNMENT'",
        "alter_algorithm = 'INPLACE'",
        "sql_if_exists = 1",
        "old_mode = 'ZERO_DATE_TIME_CAST'",
        "in_predicate_conversion_threshold = 2",
        "system_versioning_asof = '2020-01-01 00:00:00'",
        "session_track_transaction_info = 'CHARACTERISTICS'",
        "session_track_state_change = 1, session_track_schema = 1",
    ],
}
# How many groups of settings are tried.
GROUPS = 50
# Those that could hurt who creates the tables.
FROM_EMPTY = {
    "autocommit = 0",
    "sql_mode = 'ANSI_QUOTES'",
    "sql_mode = 'ORACLE'",
    "SESSION TRANSACTION READ ONLY",
    "default_storage_engine = 'MyISAM'",
    "sql_require_primary_key = 1, sql_generate_invisible_primary_key = 1",
    "alter_algorithm = 'INPLACE'",
}
# What a value of these does is what it is there for.
ASIDE = {
    # The numbers of the next row, or of the last one, once.
    "insert_id",
    "last_insert_id",
    "identity",
    # Limits on memory, and on the space of temporary tables.
    "max_session_mem_used",
    "max_tmp_session_space_usage",
    "connection_memory_limit",
    "sort_buffer_size",
    "tmp_disk_table_size",
    # Which engines there may be is the administrator's to say.
    "enforce_storage_engine",
    "use_secondary_engine",
    # Replication's own. Its statements can be logged only where the isolation level is higher.
    "binlog_format",
    "require_row_format",
    "gtid_next",
    "original_commit_timestamp",
    "immediate_server_version",
    "original_server_version",
}
TYPES_OF = {
    "mysql": """
SELECT m.variable_name, m.data_type, m.min_value, m.max_value, s.variable_value
FROM performance_schema.variables_metadata AS m
JOIN performance_schema.session_variables AS s ON s.variable_name = m.variable_name
WHERE m.variable_scope LIKE 'SESSION%'""",
    "mariadb": """
SELECT variable_name, variable_type, numeric_min_value, numeric_max_value, session_value,
  enum_value_list
FROM information_schema.system_variables
WHERE variable_scope LIKE 'SESSION%' AND read_only = 'NO'""",
}


@pytest.fixture(scope="module")
def quick(server: Named) -> Iterator[Server]:
    """A server whose commits do not wait for the disk: there are thousands of sessions."""
    with Server(server.name, ["--innodb-flush-log-at-trx-commit=0", "--sync-binlog=0"]) as quick:
        yield quick


@pytest.fixture
def place(quick: Server) -> Iterator[dict[str, Any]]:
    """An empty database there."""
    quick.query("DROP DATABASE IF EXISTS place")
    quick.query("CREATE DATABASE place")
    yield {**quick.connect, "database": "place"}
    quick.query("DROP DATABASE place")


def use(store: slim.Datastore, connect: dict[str, Any]) -> None:
    """What a program does with it. Everything must come out as it does by default."""
    whole = [{"id": f"e{n}", **values} for n, values in enumerate(VALUES)]
    begun = time.time()
    for entity in whole:
        store.put(entity)
    assert store.get_many([entity["id"] for entity in whole]) == {e["id"]: e for e in whole}
    assert abs(store.get("e0").updated.timestamp() - begun) < 30
    for index, name in zip(INDEXES, KINDS):
        having = [entity for entity in whole if name in entity]
        assert index.count(store) == len(having), name
        for entity in having:
            found = index.get_all(store, **{name: entity[name]})
            assert found == [e for e in having if e[name] == entity[name]], name
            if name != "flag":
                below = [e for e in having if e[name] < entity[name]]
                ranged = index.get_all(store, **{name: slice(None, entity[name])})
                assert sorted(e["id"] for e in ranged) == [e["id"] for e in below], name
    write(store)
    with queries(connect) as query:
        query("UPDATE index_text SET text = 'stale'")
        query("DELETE FROM index_number")
    assert BY_TEXT.populate(store) == 4
    assert INDEXES[1].populate(store) == 4
    assert str(store.schema())


def write(store: slim.Datastore) -> None:
    assert store.put_many([{"id": f"many{n}", "number": n} for n in range(5)]) == 5
    assert len(store) == len(list(store)) == 9
    assert [e["number"] for e in INDEXES[1].find(store, {"number": slice(1, 4)})] == [1, 2, 3]
    version = store.get("many0").version
    store.put({"id": "many0", "number": 7}, expect=version)
    with pytest.raises(slim.Conflict):
        store.put({"id": "many0", "number": 8}, expect=version)
    with pytest.raises(slim.Duplicate):
        store.put({"id": "many1", "email": "x@y"})
    assert store.update("many1", lambda entity: entity.update(text="b "))["text"] == "b "
    with contextlib.suppress(ZeroDivisionError), store.transaction():
        store.put({"id": "none", "number": 1})
        store.delete("many2")
        assert store.get("many2") is None
        raise ZeroDivisionError
    with store.transaction():
        store.put({"id": "block", "number": 1})
    assert store.get("none") is None
    assert "block" in store and "many2" in store
    assert store.delete("block") and not store.delete("none")
    for n in range(5):
        assert store.delete(f"many{n}")


def define(store: slim.Datastore) -> None:
    """An index comes and goes."""
    store.put({"id": "x", "number": 1, "text": "t"})
    store.add_index(LATER)
    assert LATER.get_all(store, number=1, text="t") == [store.get("x")]
    store.remove_index(LATER)
    store.delete("x")


def begin_with(connect: dict[str, Any], setting: str) -> None:
    """Uses a store whose sessions begin so."""
    hostile = {**connect, "init_command": f"SET {setting}"}
    with slim.Datastore(**hostile, indexes=[*INDEXES, UNIQUE]) as store:
        use(store, connect)
        if setting in FROM_EMPTY:
            define(store)
        # It has been committed, for others, too.
        assert wrong(connect) == []
        for n in range(len(VALUES)):
            store.delete(f"e{n}")


def begin_shortly_with(connect: dict[str, Any], setting: str) -> None:
    """The same with few calls, on a store that was used."""
    whole = {f"e{n}": {"id": f"e{n}", **values} for n, values in enumerate(VALUES)}
    with slim.Datastore(**connect, init_command=f"SET {setting}") as store:
        begun = time.time()
        store.put_many(whole.values())
        assert store.get_many(whole) == whole
        assert abs(store.get("e0").updated.timestamp() - begun) < 30
        for index, name in zip(INDEXES, KINDS):
            assert index.get_all(store, **{name: VALUES[0][name]}) == [whole["e0"]], name
        assert len(INDEXES[1].get_all(store, number=slice(-5, 10))) == 2
        with pytest.raises(slim.Duplicate):
            store.put({"id": "e0", "email": "x@y"})
        with contextlib.suppress(ZeroDivisionError), store.transaction():
            store.put({"id": "none"})
            raise ZeroDivisionError
        assert store.update("e1", lambda entity: entity.update(n=1))["n"] == 1
        assert wrong(connect) == []
        assert [store.delete(id) for id in whole] == [True] * 4
        assert len(list(store)) == len(store) == 0


def accepted(connect: dict[str, Any], setting: str) -> bool:
    """Whether the server takes it at all."""
    try:
        MySQLdb.connect(**connect, init_command=f"SET {setting}").close()
    except MySQLdb.Error:
        return False
    return True


def test_sessions_that_begin_otherwise_do_the_same(
    server: Named, place: dict[str, Any], quick: Server, long: bool
) -> None:
    failed, refused = {}, []
    for setting in [*HOSTILE, *HOSTILE_OF[server.kind]]:
        if not accepted(place, setting):
            # The server, or the driver, does not know it.
            refused.append(setting)
            continue
        if setting in FROM_EMPTY or long or failed:
            quick.query("DROP DATABASE place")
            quick.query("CREATE DATABASE place")
        try:
            begin_with(place, setting)
        except (AssertionError, Exception) as error:
            failed[setting] = f"{type(error).__name__}: {error}"[:300]
    assert not failed, told(failed)
    assert len(refused) <= 3, refused


def test_no_session_variable_changes_what_slim_does(
    server: Named, place: dict[str, Any], quick: Server, long: bool
) -> None:
    slim.Datastore(**place, indexes=[*INDEXES, UNIQUE]).close()
    taken = [s for s in settings(server.kind, quick) if accepted(place, s)]
    assert len(taken) > 300
    # Several at once, and each alone where that fails. A variable's values are neighbours, and so
    # come into different groups.
    groups = [[each] for each in taken] if long else [taken[n::GROUPS] for n in range(GROUPS)]
    failed: dict[str, str] = {}
    for group in groups:
        if try_with(place, group):
            failed |= {each: error for each in group if (error := try_with(place, [each]))}
    assert not failed, told(failed)


def try_with(connect: dict[str, Any], group: list[str]) -> str:
    """What goes wrong in sessions that begin so; nothing, if nothing does."""
    try:
        begin_shortly_with(connect, ", ".join(group))
    except (AssertionError, Exception) as error:
        with slim.Datastore(**connect) as store:
            for id in [*(f"e{n}" for n in range(len(VALUES))), "none"]:
                store.delete(id)
        return f"{type(error).__name__}: {error}"[:300]
    return ""


def told(failed: dict[str, str]) -> str:
    return "\n".join(f"SET {setting}: {error}" for setting, error in failed.items())


def settings(kind: str, quick: Server) -> Iterator[str]:
    """name = value, for each session variable and each value that its type has."""
    for row in quick.query(TYPES_OF[kind]):
        name, type_, low, high, value, *more = row
        if name.lower() in ASIDE:
            continue
        for other in others(name.lower(), type_.split()[0].lower(), low, high, value, *more):
            yield f"{name.lower()} = {other}"


def others(
    name: str, type_: str, low: Any, high: Any, value: str, listed: str | None = None
) -> list[str]:
    if type_ == "boolean":
        return ["0" if value == "ON" else "1"]
    if name == "optimizer_switch":
        flags = [flag.split("=") for flag in value.split(",")]
        return [f"'{flag}={'off' if on == 'on' else 'on'}'" for flag, on in flags]
    if listed:
        return [f"'{each}'" for each in listed.split(",")]
    if type_ in ("enumeration", "set"):
        return [str(n) for n in range(10)] + [str(1 << n) for n in range(4, 40)]
    if low is not None and high is not None and low != high:
        return [str(low), str(high)]
    return []


def test_global_defaults_of_the_server_change_nothing(
    server: Named, place: dict[str, Any], quick: Server
) -> None:
    defaults = {
        "autocommit": "0",
        "completion_type": "'RELEASE'",
        "sql_safe_updates": "1",
        "sql_select_limit": "1",
        "sql_mode": "'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PAD_CHAR_TO_FULL_LENGTH'",
        "time_zone": "'+05:30'",
        "transaction_isolation": "'SERIALIZABLE'",
        "transaction_read_only": "1",
        "character_set_server": "'latin1'",
        "collation_connection": "'latin1_swedish_ci'",
        "init_connect": "'SET sql_select_limit = 2'",
        "auto_increment_increment": "3",
    }
    if server.kind == "mysql":
        defaults["max_execution_time"] = "20"
    else:
        defaults["max_statement_time"] = "0.02"
    if not quick.query("SHOW VARIABLES LIKE 'transaction_isolation'"):
        # MariaDB before 11.1.
        defaults["tx_isolation"] = defaults.pop("transaction_isolation")
        defaults["tx_read_only"] = defaults.pop("transaction_read_only")
    before = {name: quick.query(f"SELECT @@GLOBAL.{name}")[0][0] for name in defaults}
    with contextlib.closing(MySQLdb.connect(**quick.connect, autocommit=True)) as admin:

        def put_back(name: str, value: Any) -> None:
            with admin.cursor() as cursor:
                cursor.execute(f"SET GLOBAL {name} = %s", [value])

        try:
            for name, value in defaults.items():
                admin.query(f"SET GLOBAL {name} = {value}")
            with slim.Datastore(**place, indexes=[*INDEXES, UNIQUE]) as store:
                use(store, place)
                define(store)
        finally:
            for name, value in before.items():
                put_back(name, value)
    assert wrong(place) == []


def test_time_limit_of_an_account_ends_no_scan_and_no_populate(
    server: Named, place: dict[str, Any]
) -> None:
    limit = "max_execution_time = 20" if server.kind == "mysql" else "max_statement_time = 0.02"
    with slim.Datastore(**place, init_command=f"SET {limit}") as store:
        store.put_many({"id": f"{n}", "number": n, "data": bytes(500)} for n in range(5_000))
        store.add_index(INDEXES[1])
        assert len(list(store)) == INDEXES[1].count(store) == 5_000
        with contextlib.closing(MySQLdb.connect(**place)) as rival:
            rival.query("SELECT * FROM entities WHERE id = '7' FOR UPDATE")
            rival.store_result()
            release = threading.Timer(0.5, rival.rollback)
            release.start()
            assert store.update("7", lambda entity: entity.update(number=-1))["number"] == -1
            release.join()


def test_stale_catalogue_is_known_in_every_language(
    place: dict[str, Any], call: Callable[[slim.Datastore], Any] = lambda store: store.put({})
) -> None:
    """What the server says of a column that is renamed is in the session's language."""
    with (
        slim.Datastore(**place, init_command="SET lc_messages = 'ja_JP'") as old,
        slim.Datastore(**place) as new,
    ):
        old.put({"id": "a", "number": 1})
        new.add_index(INDEXES[1])
        old.put({"id": "a", "number": 2})
        assert INDEXES[1].count(new, number=2) == 1
