"""schema() tells what types of dictionary are stored."""

from __future__ import annotations

import datetime as dt
import itertools
import time
from typing import Any

import slim


def test_schema_counts_every_set_of_keys_and_types(store: slim.Datastore) -> None:
    store.put_many({"id": f"a{n}", "n": n, "tags": {"x"}} for n in range(3))
    store.put({"id": "b", "n": None, "day": dt.date(2026, 1, 1)})
    assert store.schema() == [
        {
            "entities": 3,
            "share": 0.75,
            "fields": {"id": "str", "n": "int", "tags": "set"},
            "example": "a0",
        },
        {
            "entities": 1,
            "share": 0.25,
            "fields": {"id": "str", "n": "NoneType", "day": "date"},
            "example": "b",
        },
    ]


def test_schema_prints_the_most_frequent_type_first(store: slim.Datastore) -> None:
    store.put_many([{"id": "a"}, {"id": "b", "n": 1}, {"id": "c", "n": 2}])
    assert str(store.schema()).split("\n") == [
        "2 types of dictionary",
        "2 (66.7%), such as 'b'",
        "  {'id': 'str', 'n': 'int'}",
        "1 (33.3%), such as 'a'",
        "  {'id': 'str'}",
    ]


def test_schema_of_some_entities_reads_no_more(store: slim.Datastore) -> None:
    store.put_many({"id": str(n), f"k{n}": n} for n in range(9))
    oldest = itertools.islice(store, 4)
    assert [shape["example"] for shape in slim.Schema(oldest)] == ["0", "1", "2", "3"]
    assert slim.Schema([]) == []


def test_schema_of_nothing_prints(store: slim.Datastore) -> None:
    assert str(store.schema()) == "0 types of dictionary"


def test_two_thousand_types_fit_a_screen_and_no_text_of_theirs_controls_it(
    store: slim.Datastore,
) -> None:
    store.put_many({"id": str(n), f"key\x1b[2J{n}" * 20: n} for n in range(2_000))
    lines = str(store.schema()).split("\n")
    assert "2,000 types" in lines[0]
    assert len(lines) == 21 and max(map(len, lines)) == 79
    assert all(line.isprintable() for line in lines)


def test_entities_that_hold_themselves_are_described(store: slim.Datastore) -> None:
    child: dict[str, Any] = {"n": 1}
    child["up"] = child
    store.put({"id": "knot", "child": child})
    (shape,) = store.schema()
    assert shape["fields"] == {"id": "str", "child": "dict"}


def test_schema_takes_time_for_each_type_and_not_for_each_pair_of_them() -> None:
    def seconds(types: int) -> float:
        begun = time.process_time()
        slim.Schema({"id": "x", f"key{n}": n} for n in range(types))
        return time.process_time() - begun

    seconds(100)
    assert seconds(8_000) < 40 * seconds(800)
