"""schema() tells what types of dictionary are stored."""

from __future__ import annotations

import datetime as dt
from typing import Any

import slim


def test_schema_counts_every_set_of_keys_and_types(store: slim.Datastore) -> None:
    store.put_many({"id": f"a{n}", "n": n, "tags": {"x"}} for n in range(3))
    store.put({"id": "b", "n": None, "day": dt.date(2026, 1, 1)})
    schema = store.schema()
    first, second = schema.shapes
    assert schema.count == 4
    assert first.fields == {"id": "str", "n": "int", "tags": "set"}
    assert (first.entities, first.share) == (3, 0.75)
    assert first.example in {"a0", "a1", "a2"}
    assert second.fields == {"id": "str", "n": "NoneType", "day": "date"}
    assert (second.entities, second.share, second.example) == (1, 0.25, "b")


def test_limit_looks_at_so_many_and_progress_is_told_of_all(store: slim.Datastore) -> None:
    totals = []

    def progress(entities: Any, *, total: int) -> Any:
        totals.append(total)
        return entities

    store.put_many({"id": str(n), f"k{n}": n} for n in range(9))
    assert store.schema(limit=4, progress=progress).count == 4
    assert totals == [9]


def test_schema_of_nothing_prints(store: slim.Datastore) -> None:
    assert str(store.schema()).startswith("0 entities")


def test_two_thousand_types_fit_a_screen_and_no_text_of_theirs_controls_it(
    store: slim.Datastore,
) -> None:
    store.put_many({"id": str(n), f"key\x1b[2J{n}" * 20: n} for n in range(2_000))
    lines = str(store.schema()).split("\n")
    assert "2,000 types" in lines[0]
    assert len(lines) <= 24 and max(map(len, lines)) < 80
    assert all(line.isprintable() for line in lines)


def test_entities_that_hold_themselves_are_described(store: slim.Datastore) -> None:
    child: dict[str, Any] = {"n": 1}
    child["up"] = child
    store.put({"id": "knot", "child": child})
    (shape,) = store.schema().shapes
    assert shape.fields == {"id": "str", "child": "dict"}
