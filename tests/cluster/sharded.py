"""A plugin of pytest that lets slim's own tests run on two shards: `-p sharded`, with SLIM_SERVER and SLIM_SHARDS set.

There is one keyspace, and CREATE DATABASE makes no sharded one: it is emptied for each test. Before an index is added, the
table is declared, as a DBA does it. Nothing else differs from what the tests do on one MySQL.

Those of UNLIKE cannot hold on shards. They are run, and expected to fail: one that passes is reported.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

import pytest
from server import Named
from vitess import KEYSPACE, Keyspace

import slim

TESTS = Path(__file__).parent.parent
UNLIKE: dict[str, str] = {}

keyspace = Keyspace(
    Named(os.environ["SLIM_SERVER"]).connect, Named(os.environ["SLIM_SHARDS"]).connect
)


def pytest_sessionstart() -> None:
    """Declares what the tests' own programs add: they do not know of the shards."""
    for path in TESTS.glob("*.py"):
        for table in set(re.findall(r"\bindex_[a-z_]+\b", path.read_text("utf-8"))):
            keyspace.declare(table)
    slim.Datastore.add_index = _declaring(slim.Datastore.add_index)  # type: ignore[method-assign]


def _declaring(add_index: Any) -> Any:
    @functools.wraps(add_index)
    def declare_and_add(store: slim.Datastore, index: slim.Index, **options: Any) -> Any:
        one = index.unique and len(index.types) == 1
        keyspace.declare(index.table, *(index.types if one else []))
        return add_index(store, index, **options)

    return declare_and_add


def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> Any:
    if fixturedef.argname != "database":
        return None
    keyspace.empty()
    fixturedef.cached_result = (KEYSPACE, fixturedef.cache_key(request), None)
    return KEYSPACE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.name.partition("[")[0]
        if name in UNLIKE:
            item.add_marker(pytest.mark.xfail(reason=UNLIKE[name], strict=True))
