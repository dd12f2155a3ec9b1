"""Properties and values that meet names of Python's or slim's own, and conditions that are long."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from proxy import proxied

import slim

Sql = Callable[..., list[tuple[Any, ...]]]
# What methods of slim, or columns of its tables, are called as well.
NAMES = ["datastore", "self", "match", "id", "updated", "body", "added_id", "index", "limit"]


@pytest.mark.parametrize("name", NAMES)
def test_property_may_be_called_as_an_argument_or_a_column(
    store: slim.Datastore, name: str
) -> None:
    index = store.add_index(slim.Index("index_name", {name: str, "n": int}))
    stored = {"id": "x", name: "x", "n": 1}
    store.put(stored)
    assert index.get_all(store, **{name: "x"}) == [stored]
    assert index.get_all(store, **{name: {"x", "y"}, "n": slice(0, 2)}) == [stored]
    assert index.count(store, **{name: "x"}) == 1
    assert list(index.find(store, {name: "x"}, reverse=True)) == [stored]
    assert index.populate(store) == 0


def test_property_that_is_called_entity_id_is_refused_before_any_server_is_asked() -> None:
    for properties in "entity_id", ["n", "entity_id"], {"entity_id": int}:
        with pytest.raises(ValueError, match="entity_id"):
            slim.Index("index_name", properties)


def test_value_that_is_none_behind_which_to_go_on_is_a_clear_error(store: slim.Datastore) -> None:
    index = store.add_index(slim.Index("index_n", {"n": int}))
    store.put({"id": "x", "n": 1})
    with pytest.raises(TypeError, match="after="):
        list(index.find(store, {"n": slice(None, None)}, after={"id": "x", "n": None}))


@pytest.mark.parametrize(
    "values",
    [
        [uuid.UUID(int=n << 100) for n in range(1, 6)],
        [
            dt.datetime(2026, 1, 1, 12, n, tzinfo=dt.timezone(dt.timedelta(hours=n)))
            for n in range(5, 0, -1)
        ],
    ],
    ids=["UUID", "aware datetime"],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_pages_go_on_behind_values_that_are_stored_otherwise(
    store: slim.Datastore, values: list[Any], reverse: bool
) -> None:
    index = store.add_index(slim.Index("index_v", {"v": type(values[0])}))
    store.put_many({"id": str(n), "v": value} for n, value in enumerate(values))
    found: list[Any] = []
    after = None
    while page := [*index.find(store, {}, after=after, limit=2, reverse=reverse)]:
        found += [entity["v"] for entity in page]
        after = page[-1]
    assert found == (values[::-1] if reverse else values)


def test_one_of_twenty_thousand_values_is_sent_once(
    connect: dict[str, Any], store: slim.Datastore
) -> None:
    index = store.add_index(slim.Index("index_n", {"n": int}))
    store.put_many({"n": n} for n in range(0, 20_000, 10))
    asked: dict[int, int] = {}
    with proxied(connect) as (proxy, through), slim.Datastore(**through) as far:
        index.count(far, n=0)
        for length in 5_000, 20_000:
            proxy.requests = 0
            found = [entity["n"] for entity in index.find(far, {"n": {*range(length)}})]
            assert found == [*range(0, length, 10)]
            asked[length] = proxy.requests
    assert asked == {5_000: 1, 20_000: 1}
