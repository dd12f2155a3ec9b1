"""schema() tells which types of dictionary are stored, and prints them for an 80-column terminal."""

from __future__ import annotations

from typing import Any

import slim


def test_schema_counts_every_set_of_keys_and_types(store: slim.Datastore) -> None:
    store.put_many(
        [
            {"id": "a", "n": 1},
            {"id": "b", "n": 2},
            {"id": "c", "n": "three"},
            {"id": "d", "n": None, "more": 1.5},
        ]
    )
    schema = store.schema()
    assert schema.count == 4
    assert [(shape.entities, shape.fields) for shape in schema.shapes][0] == (
        2,
        {"id": "str", "n": "int"},
    )
    assert sorted(shape.example for shape in schema.shapes) in (["a", "c", "d"], ["b", "c", "d"])
    assert schema.fields == {
        "id": {"str": 1.0},
        "n": {"int": 0.5, "str": 0.25, "None": 0.25},
        "more": {"float": 0.25},
    }


def test_schema_goes_into_dictionaries_and_lists(store: slim.Datastore) -> None:
    store.put(
        {
            "address": {"city": "Wien", "geo": {"lat": 48.2}},
            "tags": ["a", "b"],
            "mixed": [1, "a"],
            "empty": [],
            "none": {},
            "people": [{"name": "bob"}, {"name": "amy", "age": 7}],
            "pair": (1, 2),
            "set": {b"x"},
        }
    )
    assert {field: list(kinds) for field, kinds in store.schema().fields.items()} == {
        "id": ["str"],
        "address.city": ["str"],
        "address.geo.lat": ["float"],
        "tags": ["list of str"],
        "mixed": ["list of int | str"],
        "empty": ["list"],
        "none": ["dict"],
        "people": ["list of dict"],
        "people[].name": ["str"],
        "people[].age": ["int"],
        "pair": ["tuple of int"],
        "set": ["set of bytes"],
    }


def test_limit_looks_at_those_put_last(store: slim.Datastore) -> None:
    store.put_many({"old": n} for n in range(50))
    store.put_many({"new": n} for n in range(10))
    assert store.schema(limit=10).fields.keys() == {"id", "new"}
    assert store.schema(limit=15).fields["old"] == {"int": 5 / 15}
    assert store.schema(limit=1000).count == 60


def test_progress_is_told_how_much_there_is(store: slim.Datastore) -> None:
    totals = []

    def progress(rows: Any, *, total: int) -> Any:
        totals.append(total)
        return rows

    store.put_many({} for _ in range(5))
    store.schema(progress=progress)
    assert totals == [5]


def test_schema_of_nothing_prints(store: slim.Datastore) -> None:
    assert str(store.schema()).startswith("0 entities")


def test_two_thousand_types_are_grouped_and_fit_the_terminal(store: slim.Datastore) -> None:
    store.put_many(
        {
            "kind": "user",
            "name": "bob",
            "address": {"city": "x" * n},
            "a very long name of a property " * 3: 1,
            f"extra{n}": n,
        }
        for n in range(2_000)
    )
    store.put_many({"kind": "post", "title": "t", "body": "b", "tags": ["a"]} for _ in range(100))
    schema = store.schema()
    assert len(schema.shapes) == 2_001
    lines = str(schema).splitlines()
    assert len(lines) < 100
    assert max(map(len, lines)) <= 80
    assert "2,100" in lines[0] and "2,001" in lines[0]
    assert any("95.2%" in line for line in lines) and any("list of str" in line for line in lines)
