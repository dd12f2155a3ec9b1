"""Text is data, and compares exactly: in ids, indexed values, table names and property names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import slim

several = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
AWKWARD = [
    "Bob",
    "bob",
    "bób",
    "BÓB",
    "a",
    "a ",
    "a  ",
    " a",
    "a\t",
    "a\0",
    "\0",
    "ß",
    "ss",
    "ẞ",
    "ﬁ",
    "fi",
    "é",
    "e\u0301",
    "🙂",
    "🙃",
    "'",
    "''",
    '"',
    "`",
    "``",
    "\\",
    "\\'",
    "\\\\",
    "%",
    "%s",
    "%%",
    "%(id)s",
    "{}",
    "{0}",
    "{table}",
    "_",
    ";",
    "--",
    "/*",
    "#",
    "NULL",
    "a'; DROP TABLE entities; --",
    "\n",
    "\r\n",
    "\x1a",
    "\ufeff",
    "\u200b",
    "İ",
    "ı",
    "１",
    "1",
    "01",
    "1.0",
    "-0",
]
texts = st.text(min_size=1, max_size=36) | st.sampled_from(AWKWARD)
names = (
    st.text(
        st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"], exclude_characters="\0"),
        min_size=1,
        max_size=40,
    )
    | st.sampled_from([name for name in AWKWARD if name.isprintable() and max(name) < "\U00010000"])
).map(lambda name: name + "|")


def test_awkward_ids_and_values_are_all_kept_apart(store: slim.Datastore) -> None:
    by_name = store.add_index(slim.Index("index_name", "name"))
    store.put_many({"id": text, "name": text} for text in AWKWARD)
    assert len(store) == len(AWKWARD)
    assert store.get_many(AWKWARD) == {text: {"id": text, "name": text} for text in AWKWARD}
    for text in AWKWARD:
        assert store.get(text) == {"id": text, "name": text}
        assert by_name.get_all(store, name=text) == [{"id": text, "name": text}]
        assert by_name.count(store, name=text) == 1
        assert store.delete(text)
        assert store.get(text) is None and text not in store
    assert len(store) == 0


@several
@given(st.sets(texts, min_size=1, max_size=8))
def test_entities_are_found_by_exactly_their_ids_and_values(
    store: slim.Datastore, ids: set[str]
) -> None:
    by_name = store.add_index(slim.Index("index_name", "name"))
    store.put_many({"id": id, "name": id + "!" * 150} for id in ids)
    try:
        assert {entity["id"] for entity in store} == ids
        assert store.get_many(ids).keys() == ids
        for id in ids:
            assert [entity["id"] for entity in by_name.get_all(store, name=id + "!" * 150)] == [id]
            other = id.swapcase()
            assert (other in store) == (other in ids)
        assert [
            entity["id"] for entity in by_name.find(store, {"name": slice(None, None)})
        ] == sorted(ids, key=lambda id: id + "!")
    finally:
        for id in ids:
            assert store.delete(id)


@several
@given(st.sets(texts, min_size=2, max_size=8))
def test_ranges_go_by_code_point(store: slim.Datastore, values: set[str]) -> None:
    by_name = store.add_index(slim.Index("index_name", "name"))
    low, *_, high = ordered = sorted(values)
    store.put_many({"id": str(number), "name": name} for number, name in enumerate(ordered))
    found = by_name.find(store, {"name": slice(low, high)})
    assert [entity["name"] for entity in found] == [name for name in ordered if low <= name < high]
    for number in range(len(ordered)):
        store.delete(str(number))


@several
@given(names, names, names)
def test_table_and_property_names_are_data(
    store: slim.Datastore, table: str, one: str, two: str
) -> None:
    index = slim.Index("t" + table, [one + "1", two + "2"])
    store.add_index(index)
    try:
        assert [standing.table.casefold() for standing in store.indexes] == [index.table.casefold()]
        match = {one + "1": "%s", two + "2": "`'"}
        store.put({"id": "x", **match})
        assert list(index.find(store, match)) == [{"id": "x", **match}]
        assert index.populate(store) == 0
        store.put({"id": "x"})
        assert index.get_all(store, **match) == []
    finally:
        store.remove_index(index)
    assert store.indexes == []


@pytest.mark.parametrize(
    "name",
    [
        "`",
        "a`b",
        "``",
        "a'b",
        'a"b',
        "a\\",
        "%",
        "%s",
        "{}",
        "{table}",
        "select",
        "1",
        "a b",
        "ü",
        "名",
        "a.b",
        ";",
        "x" * 63,
        "-- "[:2],
        "/*",
        "@a",
        "$",
    ],
)
def test_awkward_name_of_a_property_and_table_makes_an_index_that_another_program_finds(
    connect: dict[str, Any], store: slim.Datastore, name: str
) -> None:
    store.add_index(slim.Index(name, {name: str, "other": int}))
    with slim.Datastore(**connect) as other:
        other.put({"id": "x", name: "%s'`", "other": 1})
        (index,) = other.indexes
        assert index.get_all(other, **{name: "%s'`"}) == [{"id": "x", name: "%s'`", "other": 1}]
        assert index.count(other, **{name: {"%s'`", "%"}, "other": slice(0, 2)}) == 1


def test_value_that_looks_like_sql_changes_nothing(
    store: slim.Datastore, sql: Callable[..., Any]
) -> None:
    by_name = store.add_index(slim.Index("index_name", "name"))
    store.put({"id": "x", "name": "x"})
    for text in "' OR 1=1 -- ", "\\' OR 1=1 -- ", "x' UNION SELECT 1,2,3,4 -- ", "%' OR '1'='1":
        assert by_name.get_all(store, name=text) == []
        assert store.get(text[:36]) is None
        assert not store.delete(text[:36])
    assert len(store) == 1
