"""The demonstration does what it says, on an 80-column terminal, and leaves nothing or everything behind."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import demo
import pytest
from server import Named

import slim

ROOT = Path(__file__).parent.parent


@pytest.fixture
def databases(server: Named) -> Iterator[set[str]]:
    """The demonstrations' databases that are there; later ones are dropped afterwards."""
    before = names(server)
    yield before
    for name in names(server) - before:
        server.query(f"DROP DATABASE {name}")


def names(server: Named) -> set[str]:
    return {name for (name,) in server.query("SHOW DATABASES LIKE 'slim\\_demo%'")}


def small_library() -> list[dict[str, object]]:
    root = Path(demo.__file__).parent
    described = demo.describe(root / "demo.py", root)
    return [
        {**entity, "package": "asyncio", "name": "json.dumps" if number == 1 else entity["name"]}
        for number, entity in enumerate(described)
    ]


def test_demo_shows_code_results_and_times_and_leaves_the_data_if_told(
    server: Named, databases: set[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "tests/demo.py", "--keep"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        env={
            **os.environ,
            "SLIM_SERVER": server.url,
            "SLIM_CLIENT": "client -u me",
            "PYTHONPATH": str(ROOT),
        },
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    for title, source in demo.STEPS:
        assert any(line.endswith(title) for line in lines)
        assert {line[4:] for line in lines if line.startswith((">>> ", "... "))} >= set(
            source.strip().splitlines()
        )
    assert len([line for line in lines if re.fullmatch(r" +[\d,]+\.\d ms", line)]) == len(
        demo.STEPS
    )
    repaired = [ast.literal_eval(line) for line in lines if line.startswith("{'index_")]
    assert repaired == [{"index_name": 0, "index_kind": 0, "index_package": 0}]

    opened = next(line.split() for line in lines if line.startswith("    client -u me"))
    assert opened[-1] not in databases
    with slim.Datastore(**server.connect, database=opened[-1]) as store:
        assert len(store) > 4000
        assert len({frozenset(entity) for entity in store}) > 20
        assert {index.table for index in store.indexes} == {
            "index_kind",
            "index_name",
            "index_package",
        }


def test_demo_drops_its_own_database_and_no_other(
    server: Named, databases: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIM_SERVER", server.url)
    monkeypatch.setattr(demo, "library", small_library)
    taken = demo.new_database(server)
    assert demo.main([]) == 0
    assert names(server) == databases | {taken}


def test_demo_that_fails_drops_its_database(
    server: Named, databases: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIM_SERVER", server.url)
    monkeypatch.setattr(demo, "STEPS", [("Fail", "1 / 0")])
    with pytest.raises(ZeroDivisionError):
        demo.main(["--keep"])
    assert names(server) == databases


def test_demo_names_the_command_that_opens_a_server_of_the_users_own() -> None:
    own = object.__new__(Named)
    own.connect = {"host": "db", "port": 3307, "user": "me", "password": "secret"}
    assert demo.client(own) == "mysql -h db -P 3307 -u me -p"
