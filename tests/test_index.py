"""Queries: by any properties of an index, in its order, page after page, and reading no more rows than they answer."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import MySQLdb
import pytest
from proxy import Before, proxied
from server import Named

import slim

Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def by_age(store: slim.Datastore) -> slim.Index:
    """An index of two properties, on twelve entities: n and m of equal users and ages."""
    index = store.add_index(slim.Index("index_age", {"user": str, "age": int}))
    store.put_many(
        {"id": f"{user}{age}{twin}", "user": user, "age": age}
        for user in ("bob", "amy")
        for age in (1, 2, 3)
        for twin in "nm"
    )
    return index


def ids(entities: Any) -> list[str]:
    return [entity["id"] for entity in entities]


def test_get_all_is_a_list_in_every_case(store: slim.Datastore, by_age: slim.Index) -> None:
    assert by_age.get_all(store, user="nobody") == []
    one = by_age.get_all(store, user="bob", age=2)
    assert [type(one), *map(type, one)] == [list, slim.Entity, slim.Entity]


@pytest.mark.parametrize(
    "match, found",
    [
        ({}, "amy1m amy1n amy2m amy2n amy3m amy3n bob1m bob1n bob2m bob2n bob3m bob3n"),
        ({"user": "bob", "age": 2}, "bob2m bob2n"),
        ({"age": 2}, "amy2m amy2n bob2m bob2n"),
        ({"age": [1, 3], "user": {"bob", "nobody"}}, "bob1m bob1n bob3m bob3n"),
        ({"user": "bob", "age": slice(2, None)}, "bob2m bob2n bob3m bob3n"),
        ({"user": "bob", "age": slice(None, 2)}, "bob1m bob1n"),
        ({"user": "bob", "age": slice(2, 3)}, "bob2m bob2n"),
        ({"user": "bob", "age": slice(3, 2)}, ""),
        ({"age": []}, ""),
        ({"age": set()}, ""),
    ],
)
def test_equality_range_and_one_of(
    store: slim.Datastore, by_age: slim.Index, match: dict[str, Any], found: str
) -> None:
    assert sorted(ids(by_age.get_all(store, **match))) == sorted(found.split())
    assert sorted(ids(by_age.find(store, match))) == sorted(found.split())
    assert by_age.count(store, **match) == len(found.split())


def test_find_goes_by_the_ranged_property_then_id_forward_and_back(
    store: slim.Datastore, by_age: slim.Index
) -> None:
    match = {"user": "bob", "age": slice(None, None)}
    expected = "bob1m bob1n bob2m bob2n bob3m bob3n".split()
    assert ids(by_age.find(store, match)) == expected
    assert ids(by_age.find(store, match, reverse=True)) == expected[::-1]
    assert ids(by_age.find(store, match, reverse=True, limit=3)) == expected[:2:-1]
    assert ids(by_age.find(store, match, limit=0)) == []
    assert ids(by_age.find(store, {"age": slice(2, 3)})) == "amy2m amy2n bob2m bob2n".split()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "match",
    [
        {"user": "bob"},
        {"user": "bob", "age": slice(None, None)},
        {"age": slice(1, 3)},
        {"user": slice("a", "c")},
        {"user": ["amy", "bob"], "age": slice(2, None)},
    ],
)
def test_pages_join_without_gap_or_repetition(
    store: slim.Datastore, by_age: slim.Index, match: dict[str, Any], reverse: bool
) -> None:
    pages, after = [], None
    while page := list(by_age.find(store, match, reverse=reverse, limit=2, after=after)):
        pages += page
        after = page[-1]
    assert pages == list(by_age.find(store, match, reverse=reverse))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("asked", [slice(1, 5), [5, 1, 3], 3], ids=["range", "one of", "one"])
def test_answer_of_several_pages_is_whole_and_in_order(
    store: slim.Datastore, asked: Any, reverse: bool
) -> None:
    by_n = store.add_index(slim.Index("index_n", {"n": int}))
    entities = [{"id": f"e{number:04}", "n": number % 7} for number in range(5_000)]
    store.put_many(entities)
    wanted = {1, 2, 3, 4} if isinstance(asked, slice) else {1, 3, 5} if asked != 3 else {3}
    found = [entity for entity in entities if entity["n"] in wanted]
    found.sort(key=lambda entity: (entity["n"], entity["id"]), reverse=reverse)
    assert len(found) > 700
    assert list(by_n.find(store, {"n": asked}, reverse=reverse)) == found


def test_page_after_an_entity_that_was_deleted_goes_on_behind_it(
    store: slim.Datastore, by_age: slim.Index
) -> None:
    match = {"user": "bob", "age": slice(None, None)}
    last = list(by_age.find(store, match, limit=3))[-1]
    store.delete(last["id"])
    assert ids(by_age.find(store, match, after=last)) == "bob2n bob3m bob3n".split()


def test_find_is_lazy(store: slim.Datastore, by_age: slim.Index) -> None:
    found = by_age.find(store, {"user": "bob"})
    store.delete("bob1m")
    assert next(found)["id"] == "bob1n"


def test_entity_without_one_of_the_properties_is_not_in_the_index(
    store: slim.Datastore, by_age: slim.Index
) -> None:
    before = by_age.count(store)
    store.put_many([{"user": "zoe"}, {"age": 1}, {"user": None, "age": 1}, {}])
    assert by_age.count(store) == before


TYPED: list[tuple[Any, list[Any]]] = [
    (str, ["", "a", "b", "x" * 191]),
    (int, [-(2**63), -1, 0, 2**63 - 1]),
    (float, [-1e308, -0.5, 0.0, 5e-324, 0.1, 1e308]),
    (bool, [False, True]),
    (bytes, [b"", b"\0", b"\0\xff", b"x" * 191]),
    (Decimal, [Decimal("-1.5"), Decimal(0), Decimal("1e-30"), Decimal("9" * 35)]),
    (dt.date, [dt.date(1000, 1, 1), dt.date(2009, 2, 27), dt.date(9999, 12, 31)]),
    (
        dt.datetime,
        [
            dt.datetime(1000, 1, 1),
            dt.datetime(2009, 2, 27, 12, 30, 0, 1),
            dt.datetime(9999, 12, 31, 23, 59, 59, 999999),
        ],
    ),
    (uuid.UUID, [uuid.UUID(int=0), uuid.UUID(int=1), uuid.UUID(int=2**128 - 1)]),
    ("VARCHAR(500)", ["x" * 192, "x" * 500]),
    ("VARBINARY(300)", [b"x" * 300]),
]


@pytest.mark.parametrize(
    "declared, values", TYPED, ids=lambda value: getattr(value, "__name__", None) or str(value)[:18]
)
def test_every_type_finds_its_values_and_sorts_them(
    connect: dict[str, Any], store: slim.Datastore, declared: Any, values: list[Any]
) -> None:
    index = store.add_index(slim.Index("index_value", {"value": declared}))
    store.put_many({"id": str(number), "value": value} for number, value in enumerate(values))
    for value in values:
        assert [entity["value"] for entity in index.get_all(store, value=value)] == [value]
    assert [
        entity["value"] for entity in index.find(store, {"value": slice(values[0], None)})
    ] == values
    assert index.populate(store) == 0
    with slim.Datastore(**connect) as other:  # which knows the types from the table alone
        (found,) = other.indexes
        assert found.count(other, value={values[0], values[-1]}) == len({values[0], values[-1]})


def test_time_with_a_zone_is_found_by_the_moment_it_means(store: slim.Datastore) -> None:
    index = store.add_index(slim.Index("index_at", {"at": dt.datetime}))
    at = dt.datetime(2009, 2, 27, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    store.put({"id": "x", "at": at})
    assert ids(index.get_all(store, at=at.astimezone(dt.timezone.utc))) == ["x"]
    assert index.get_all(store, at=at.replace(tzinfo=dt.timezone.utc)) == []


WRONG: list[tuple[Any, Any, type[Exception]]] = [
    (str, 1, TypeError),
    (str, b"x", TypeError),
    (int, "1", TypeError),
    (int, True, TypeError),
    (int, 1.0, TypeError),
    (float, "1", TypeError),
    (bool, 1, TypeError),
    (bytes, "x", TypeError),
    (Decimal, 1.5, TypeError),
    (dt.date, "2009-02-27", TypeError),
    (dt.date, dt.datetime(2009, 2, 27), TypeError),
    (dt.datetime, dt.date(2009, 2, 27), TypeError),
    (uuid.UUID, "x", TypeError),
    (str, ["x"], TypeError),
    (str, {}, TypeError),
    (str, "x" * 192, ValueError),
    (int, 2**63, ValueError),
    (float, float("nan"), ValueError),
    (float, float("inf"), ValueError),
    (bytes, b"x" * 192, ValueError),
    (Decimal, Decimal("1e-31"), ValueError),
    (Decimal, Decimal("NaN"), ValueError),
    (Decimal, Decimal("1e36"), ValueError),
    ("VARCHAR(5)", "abcdef", ValueError),
    (dt.datetime, dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-1))), ValueError),
]


@pytest.mark.parametrize("declared, value, kind", WRONG, ids=lambda value: repr(value)[:24])
def test_value_that_does_not_fit_names_index_property_value_and_remedy(
    store: slim.Datastore, sql: Sql, declared: Any, value: Any, kind: type[Exception]
) -> None:
    index = store.add_index(slim.Index("index_value", {"value": declared}))
    store.put({"id": "x"})
    message = r"index_value.*property value.*" + re.escape(repr(value)[:8]) + ".*another type"
    for put in store.put, lambda entity: store.put_many([{"id": "y"}, entity]):
        with pytest.raises(kind, match=message):
            put({"id": "x", "value": value})
    assert list(store) == [{"id": "x"}]
    assert sql("SELECT * FROM index_value") == []
    if not isinstance(value, list):  # which means one of
        with pytest.raises(kind, match=message):
            index.get_all(store, value=value)
    with pytest.raises(kind, match=message):
        index.get_all(store, value=slice(value, None))


def test_text_that_is_no_unicode_is_refused_and_nothing_stored(store: slim.Datastore) -> None:
    index = store.add_index(slim.Index("index_value", "value"))
    for call in (
        lambda: store.put({"id": "x", "value": "\ud800"}),
        lambda: store.put_many([{"id": "y"}, {"id": "x", "value": "\ud800"}]),
        lambda: store.update("x", lambda entity: entity.update(value="\ud800"), default={}),
        lambda: index.get_all(store, value="\ud800"),
    ):
        with pytest.raises(ValueError, match="ud800"):
            call()
    assert len(store) == 0
    store.put({"id": "x", "value": "x"})
    assert index.count(store) == 1


@pytest.mark.parametrize("name", ["id", "updated", "body", "added_id"])
def test_property_may_be_called_as_a_column_of_entities(store: slim.Datastore, name: str) -> None:
    store.put({"id": "x", name: "x"})
    index = store.add_index(slim.Index("index_name", name, unique=True))
    assert (
        ids(index.get_all(store, **{name: "x"}))
        == ids(index.find(store, {name: slice("a", None)}))
        == ["x"]
    )
    assert index.populate(store) == 0
    if name != "id":
        with pytest.raises(slim.Duplicate, match="'x'"):
            store.put({"id": "y", name: "x"})


def test_property_that_the_index_does_not_have_is_a_clear_error(
    store: slim.Datastore, by_age: slim.Index
) -> None:
    for asked in "x", slice(None, None), []:
        with pytest.raises(TypeError, match="index_age.*user.*age.*'name'"):
            by_age.get_all(store, name=asked)
        with pytest.raises(TypeError, match="index_age.*user.*age.*'name'"):
            by_age.count(store, name=asked)


@pytest.mark.parametrize(
    "table, properties, kind",
    [
        ("index_x", [], ValueError),
        ("index_x", "entity_id", ValueError),
        ("index_x", {"a": list}, TypeError),
        ("index_x", {"a": "JSON"}, TypeError),
        ("index_x", {"a": "INT) --"}, TypeError),
        ("index_x", {"a": None}, TypeError),
        ("index_x", {"a": ["INT"]}, TypeError),
        ("index_x", {"a": "CHAR"}, TypeError),
        ("index_x", {"a": "VARCHAR"}, TypeError),
        ("index_x", {"a": "binary"}, TypeError),
        ("index_x", {"a": "DOUBLE(10,2)"}, TypeError),
        ("index_x", {"a": "DOUBLE UNSIGNED"}, TypeError),
        ("index_x", {"a": "DECIMAL(10,2) UNSIGNED"}, TypeError),
    ],
)
def test_index_that_cannot_be_is_refused_before_any_server_is_asked(
    table: str, properties: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="^(?!unhashable)"):
        slim.Index(table, properties)


def test_unique_index_refuses_a_second_entity_and_names_the_first(store: slim.Datastore) -> None:
    by_email = store.add_index(slim.Index("index_email", {"email": str, "site": int}, unique=True))
    store.put_many([{"id": "x", "email": "a@b", "site": 1}, {"id": "y", "email": "a@b", "site": 2}])
    for put in (
        store.put,
        lambda entity: store.put_many([{"id": "first"}, entity]),
        lambda entity: store.update("y", lambda old: old.update(site=1)),
    ):
        with pytest.raises(slim.Duplicate, match="index_email.*'x'") as caught:
            put({"id": "y", "email": "a@b", "site": 1})
        assert (caught.value.index.table, caught.value.id) == ("index_email", "x")
    assert list(store) == [
        {"id": "x", "email": "a@b", "site": 1},
        {"id": "y", "email": "a@b", "site": 2},
    ]
    assert ids(by_email.get_all(store, email="a@b", site=1)) == ["x"]


def test_unique_values_are_free_again_and_exact(store: slim.Datastore) -> None:
    store.add_index(slim.Index("index_email", "email", unique=True))
    store.put_many(
        [{"id": "x", "email": "a@b"}, {"id": "X", "email": "A@b"}, {"id": "_", "email": "a@b "}]
    )
    store.put({"id": "x", "email": "a@b", "n": 1})  # its own are no duplicate
    store.put({"id": "x"})
    store.put({"id": "y", "email": "a@b"})
    store.delete("y")
    store.put({"id": "z", "email": "a@b"})
    assert len(store) == 4


def test_two_of_one_batch_with_the_same_unique_values_are_a_duplicate(
    store: slim.Datastore,
) -> None:
    store.add_index(slim.Index("index_email", "email", unique=True))
    with pytest.raises(slim.Duplicate) as caught:
        store.put_many([{"id": "x", "email": "a@b"}, {"id": "y", "email": "a@b"}])
    assert caught.value.id in ("x", "y")
    assert len(store) == 0


def test_dropped_index_is_gone_and_stops_no_put(
    connect: dict[str, Any], store: slim.Datastore, sql: Sql
) -> None:
    index = store.add_index(slim.Index("index_user", "user"))
    with slim.Datastore(**connect) as other:
        store.remove_index(index)
        assert sql("SHOW TABLES LIKE 'index%'") == []
        for each in store, other:
            each.put({"id": "x", "user": "bob"})
            assert each.indexes == []
            with pytest.raises(slim.NotPopulated, match="index_user.*add_index"):
                index.get_all(each, user="bob")


def plan(connection: Any, statement: str) -> str:
    connection.query("EXPLAIN " + statement)
    return str(connection.store_result().fetch_row(0))


def test_latest_twenty_read_twenty_index_rows_and_sort_nothing(
    server: Named,
    connect: dict[str, Any],
    store: slim.Datastore,
    sql: Sql,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_user = store.add_index(slim.Index("index_user", "user"))
    by_time = store.add_index(slim.Index("index_time", {"user": str, "time": int}))
    by_number = store.add_index(
        slim.Index("index_number", {"kind": str, "number": int}, unique=True)
    )
    store.put_many(
        {"user": f"u{n % 3}", "time": n % 500, "kind": "k", "number": n} for n in range(3_000)
    )
    sql("ANALYZE TABLE entities, index_user, index_time, index_number")
    last = list(
        by_time.find(store, {"user": "u1", "time": slice(None, None)}, reverse=True, limit=500)
    )[-1]
    numbered = list(by_number.find(store, {"kind": "k"}, reverse=True, limit=500))[-1]
    sent: list[str] = []
    connections: list[Any] = []

    class Spy(MySQLdb.connections.Connection):
        def query(self, query: bytes | str) -> None:
            sent.append(query.decode() if isinstance(query, bytes) else query)
            super().query(query)

    def spied(**arguments: Any) -> Any:
        connections.append(Spy(**arguments))
        return connections[-1]

    def handlers() -> dict[str, int]:
        connections[0].query(
            "SHOW SESSION STATUS WHERE Variable_name LIKE 'Handler_read%' OR Variable_name LIKE 'Sort%'"
        )
        rows = connections[0].store_result().fetch_row(0)
        return {
            (name.decode() if isinstance(name, bytes) else name): int(value) for name, value in rows
        }

    monkeypatch.setattr(MySQLdb, "connect", spied)
    with slim.Datastore(**connect) as watched:
        for index, match, after in (
            (by_user, {"user": "u1"}, None),
            (by_time, {"user": "u1", "time": slice(None, None)}, None),
            (by_time, {"user": "u1", "time": slice(10, 400)}, None),
            (by_time, {"user": "u1", "time": slice(None, None)}, last),
            (by_number, {"kind": "k"}, None),
            (by_number, {}, numbered),
        ):
            list(
                index.find(watched, {"user" if "user" in index.types else "kind": "nobody"})
            )  # what it looks up once is known from here on
            before = handlers()
            sent.clear()
            assert len(list(index.find(watched, match, reverse=True, limit=20, after=after))) == 20
            (select,) = sent
            after_it = handlers()
            read = {name: count - before[name] for name, count in after_it.items()}
            assert not [name for name, count in read.items() if name.startswith("Sort") and count]
            assert read["Handler_read_rnd"] == 0
            behind = 2 if after else 0  # rows with the same time as `after`, which are passed over
            assert read["Handler_read_prev"] + read["Handler_read_next"] <= 20 + behind
            assert (
                read["Handler_read_key"] <= 23
            )  # the first of the index, the catalogue, and twenty
            assert "filesort" not in plan(connections[0], select) and "temporary" not in plan(
                connections[0], select
            )


@pytest.mark.parametrize("unique", [True, False])
def test_values_that_begin_alike_for_two_thousand_bytes_are_found_in_their_order(
    unique: bool, connect: dict[str, Any], database: str
) -> None:
    kinds = {"kind": "VARCHAR(9)", "text": "VARCHAR(600)", "last": int}
    index = slim.Index("index_text", kinds, unique=unique)
    hostile = {**connect, "init_command": "SET max_sort_length = 64"}
    entities = [
        {"id": f"e{n}", "kind": "k", "text": "😀" * 590 + f"{n * 7919 % 10007:05}", "last": 1}
        for n in range(300)
    ]
    ordered = [each["id"] for each in sorted(entities, key=lambda each: str(each["text"]))]
    with slim.Datastore(**hostile, indexes=[index]) as store:
        store.put_many(entities)
        for match in {}, {"kind": "k"}, {"last": 1}:
            assert ids(index.find(store, match)) == ordered
            assert ids(index.find(store, match, reverse=True)) == ordered[::-1]
            found: list[Any] = []
            while page := list(index.find(store, match, limit=70, after=(found or [None])[-1])):
                found += page
            assert ids(found) == ordered


def test_pages_go_on_behind_rows_that_are_stale(store: slim.Datastore, sql: Sql) -> None:
    by_n = store.add_index(slim.Index("index_n", {"n": int}))
    store.put_many([{"id": "k", "n": 5}, {"id": "l"}, {"id": "m", "n": 13}])
    sql("UPDATE index_n SET n = 11 WHERE entity_id = 'k'")
    sql("INSERT INTO index_n (n, entity_id) VALUES (12, 'l')")
    assert ids(by_n.find(store, {"n": slice(10, None)}, limit=1)) == ["m"]
    assert ids(by_n.find(store, {"n": slice(1, None)}, limit=1, reverse=True)) == ["m"]


@pytest.mark.parametrize("after", [{"id": "k"}, {"n": 1}, {"id": "k", "n": "1"}])
def test_page_after_something_else_than_an_entity_of_the_index_is_a_clear_error(
    store: slim.Datastore, after: Any
) -> None:
    by_n = store.add_index(slim.Index("index_n", {"n": int}))
    with pytest.raises(TypeError, match="after=|an id is a str|property n"):
        list(by_n.find(store, {"n": slice(1, None)}, after=after))


def test_unique_index_where_another_stands_is_refused(store: slim.Datastore) -> None:
    store.add_index(slim.Index("index_n", {"n": int}))
    with pytest.raises(ValueError, match="index_n.*remove it"):
        store.add_index(slim.Index("index_n", {"n": int}, unique=True))


def test_stale_version_with_a_taken_unique_value_is_a_conflict(store: slim.Datastore) -> None:
    store.add_index(slim.Index("index_n", {"n": int}, unique=True))
    store.put_many([{"id": "a", "n": 1}, {"id": "b", "n": 2}])
    with pytest.raises(slim.Conflict):
        store.put({"id": "b", "n": 1}, expect=1 << 40)


def test_integer_is_no_float_of_its_index(store: slim.Datastore) -> None:
    store.add_index(slim.Index("index_score", {"score": float}))
    with pytest.raises(TypeError, match="index_score: property score"):
        store.put({"score": 10**400})
    assert len(store) == 0


def test_duplicate_names_the_index_and_the_other_entity_where_two_are_unique(
    store: slim.Datastore,
) -> None:
    store.add_index(slim.Index("index_first", "first", unique=True))
    second = store.add_index(slim.Index("index_second", "second", unique=True))
    store.put({"id": "theirs", "first": "a", "second": "x"})
    for write in (
        lambda: store.put({"id": "mine", "first": "b", "second": "x"}),
        lambda: store.put({"id": "mine", "first": "b", "second": "x"}, expect=0),
        lambda: store.put_many([{"id": "mine", "first": "b", "second": "x"}, {"id": "other"}]),
    ):
        with pytest.raises(slim.Duplicate) as refused:
            write()
        assert (repr(refused.value.index), refused.value.id) == (repr(second), "theirs")


def test_two_first_puts_of_equal_values_under_one_id_are_a_conflict_and_no_duplicate(
    connect: dict[str, Any], store: slim.Datastore
) -> None:
    store.add_index(slim.Index("index_email", "email", unique=True))
    entity = {"id": "a", "email": "x@y"}
    with proxied(connect) as (proxy, through), slim.Datastore(**through) as slow:
        proxy.cut = Before(b"INSERT INTO entities", lambda: store.put(entity))
        with pytest.raises(slim.Conflict):
            slow.put(dict(entity), expect=0)
        proxy.cut = None


@pytest.mark.parametrize("left", [{"unique": False}, {"properties": {"email": "VARCHAR(20)"}}])
def test_table_that_was_left_with_other_keys_or_types_is_not_adopted(
    store: slim.Datastore, sql: Callable[..., Any], left: dict[str, Any]
) -> None:
    """As by a program that died before it had listed the index."""
    other = slim.Index("index_email", **{"properties": "email", "unique": True, **left})
    store.add_index(other)
    (_, statement), *_ = sql("SHOW CREATE TABLE index_email")
    store.remove_index(other)
    sql(statement)
    with pytest.raises(slim.Error, match="index_email.*rename the table"):
        store.add_index(slim.Index("index_email", "email", unique=True))
    sql("DROP TABLE index_email")
    store.add_index(slim.Index("index_email", "email", unique=True))


def test_property_that_is_named_twice_is_one(store: slim.Datastore) -> None:
    twice = store.add_index(slim.Index("index_twice", ["user", "user"]))
    assert repr(twice) == "Index('index_twice', {'user': 'str'}, unique=False)"
    store.put({"id": "a", "user": "bob"})
    assert twice.populate(store) == 0
    assert twice.get_all(store, user="bob") == [store.get("a")]
