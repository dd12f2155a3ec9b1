"""All calls, in any order, against a plain dictionary that obeys the same rules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from check import queries, wrong
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import slim

IDS = st.sampled_from(["a", "A", "á", "b", "b "])
VALUES = {
    "user": st.sampled_from(["bob", "Bob", "bób", "ann", "ann ", ""]),
    "n": st.integers(-2, 2),
    "email": st.sampled_from("xyz"),
}
ENTITIES = st.fixed_dictionaries(
    {"id": IDS}, optional={name: st.none() | values for name, values in VALUES.items()}
)
INDEXES = [
    slim.Index("index_user", "user"),
    slim.Index("index_n_user", {"n": int, "user": str}),
    slim.Index("index_email", "email", unique=True),
]
UNIQUE = INDEXES[2]


class Model(RuleBasedStateMachine):
    connect: dict[str, Any]

    @initialize()
    def open(self) -> None:
        with queries(self.connect) as query:
            for table, *_ in query("SHOW TABLES"):
                query(f"DROP TABLE `{table}`")
        self.store = slim.Datastore(**self.connect, indexes=INDEXES[:1])
        self.tables = {INDEXES[0].table}
        self.entities: dict[str, Any] = {}
        self.versions: dict[str, int] = {}
        self.used: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()

    def clashes(self, *entities: dict[str, Any]) -> bool:
        """Whether the unique index would have two of one value with these."""
        after = {**self.entities, **{entity["id"]: entity for entity in entities}}
        emails = [entity["email"] for entity in after.values() if entity.get("email") is not None]
        return UNIQUE.table in self.tables and len(emails) > len(set(emails))

    def was_put(self, *entities: dict[str, Any]) -> None:
        for entity in entities:
            id, version = entity["id"], self.store.get(entity["id"]).version
            assert version not in self.used
            self.used.add(version)
            self.entities[id], self.versions[id] = copy.deepcopy(entity), version

    @rule(entity=ENTITIES, expect=st.sampled_from([None, "current", "stale"]))
    def put(self, entity: dict[str, Any], expect: str | None) -> None:
        current = self.versions.get(entity["id"], 0)
        version = {None: None, "current": current, "stale": current + 1}[expect]
        if expect == "stale" or self.clashes(entity):
            with pytest.raises(slim.Conflict if expect == "stale" else slim.Duplicate):
                self.store.put(entity, expect=version)
        else:
            assert self.store.put(entity, expect=version) == entity["id"]
            self.was_put(entity)

    @rule(entities=st.lists(ENTITIES, max_size=4, unique_by=lambda entity: entity["id"]))
    def put_many(self, entities: list[dict[str, Any]]) -> None:
        if self.clashes(*entities):
            with pytest.raises(slim.Duplicate):
                self.store.put_many(entities)
        else:
            assert self.store.put_many(entities) == len(entities)
            self.was_put(*entities)

    @rule(id=IDS, n=VALUES["n"], default=st.none() | st.just({"user": "ann"}))
    def update(self, id: str, n: int, default: Any) -> None:
        start = self.entities.get(id, None if default is None else {**default, "id": id})
        if start is None:
            with pytest.raises(KeyError):
                self.store.update(id, lambda entity: entity.update(n=n))
        else:
            assert self.store.update(id, lambda entity: entity.update(n=n), default) == {
                **start,
                "n": n,
            }
            self.was_put({**start, "n": n})

    @rule(id=IDS)
    def delete(self, id: str) -> None:
        assert self.store.delete(id) == (id in self.entities)
        self.entities.pop(id, None)
        self.versions.pop(id, None)

    @rule(id=IDS, expect=st.sampled_from(["current", "stale"]))
    def delete_expecting(self, id: str, expect: str) -> None:
        current = self.versions.get(id, 0)
        if expect == "stale":
            with pytest.raises(slim.Conflict):
                self.store.delete(id, expect=current + 1)
        else:
            assert self.store.delete(id, expect=current) == (id in self.entities)
            self.entities.pop(id, None)
            self.versions.pop(id, None)

    @rule(entity=ENTITIES, id=IDS, fails=st.booleans())
    def transaction(self, entity: dict[str, Any], id: str, fails: bool) -> None:
        fails = fails or self.clashes(entity)
        try:
            with self.store.transaction():
                self.store.put(entity)
                self.store.delete(id)
                if fails:
                    raise RuntimeError
        except (RuntimeError, slim.Duplicate):
            assert fails
            return
        assert not fails
        if id != entity["id"]:
            self.was_put(entity)
        self.entities.pop(id, None)
        self.versions.pop(id, None)

    @rule(index=st.sampled_from(INDEXES))
    def add_index(self, index: slim.Index) -> None:
        tables = self.tables
        self.tables = {*tables, index.table}
        if self.clashes():
            self.tables = tables
            with pytest.raises(slim.Duplicate):
                self.store.add_index(index)
        else:
            self.store.add_index(index)

    @rule(index=st.sampled_from(INDEXES))
    def remove_index(self, index: slim.Index) -> None:
        self.store.remove_index(index)
        self.tables = self.tables - {index.table}

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = slim.Datastore(**self.connect)

    @rule(index=st.sampled_from(INDEXES))
    def populate(self, index: slim.Index) -> None:
        if index.table in self.tables:
            assert index.populate(self.store) == 0

    @rule(user=VALUES["user"], low=VALUES["n"], high=VALUES["n"], reverse=st.booleans())
    def find(self, user: str, low: int, high: int, reverse: bool) -> None:
        for index, match in (
            (INDEXES[0], {"user": user}),
            (INDEXES[1], {"user": user, "n": slice(low, high)}),
        ):
            if index.table not in self.tables:
                with pytest.raises(slim.NotPopulated):
                    index.get_all(self.store, **match)
                continue
            found = [
                entity
                for entity in self.entities.values()
                if entity.get("user") == user
                and ("n" not in match or entity.get("n") is not None and low <= entity["n"] < high)
            ]
            ordered = sorted(
                found,
                key=lambda entity: (entity["n"] if "n" in match else 0, entity["id"].encode()),
                reverse=reverse,
            )
            assert list(index.find(self.store, match, reverse=reverse)) == ordered
            assert list(index.find(self.store, match, reverse=reverse, limit=1)) == ordered[:1]
            assert index.count(self.store, **match) == len(found)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "store"):
            assert (
                {entity["id"]: entity for entity in self.store}
                == self.entities
                == self.store.get_many("aAáb")
                | {id: self.store.get(id) for id in ["b "] if id in self.store}
            )
            assert {entity["id"]: entity.version for entity in self.store} == self.versions
            assert list(self.versions) == [] or [entity["id"] for entity in self.store] == sorted(
                self.versions, key=self.versions.__getitem__
            )
            assert len(self.store) == len(self.entities)
            assert {index.table for index in self.store.indexes} == self.tables
            assert wrong(self.connect) == []


def test_store_behaves_as_a_dictionary_does(connect: dict[str, Any], long: bool) -> None:
    run_state_machine_as_test(
        type("Model", (Model,), {"connect": connect}),
        settings=settings(
            max_examples=300 if long else 8,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
