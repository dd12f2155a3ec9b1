"""Each error says what tests/README.md says that it does, and stores nothing."""

from __future__ import annotations

import builtins
import copy
import doctest
import re
from pathlib import Path

import pytest

import slim

TEXT = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
ERRORS = re.findall(
    r"^\| `(.+?)` \| (\w+) \| (.+) \|$", TEXT.partition("## Errors")[2], re.MULTILINE
)


def test_errors_of_the_readme_are_raised_as_it_says(store: slim.Datastore) -> None:
    by_name = store.add_index(slim.Index("index_name", "name", unique=True))
    by_age = store.add_index(slim.Index("index_age", {"age": int}))
    store.put({"id": "ann", "name": "Ann", "age": 30})
    names = {"slim": slim, "copy": copy, "store": store, "by_name": by_name, "by_age": by_age}
    same = doctest.OutputChecker()
    assert len(ERRORS) == TEXT.partition("## Errors")[2].count("\n| `") >= 25
    for program, name, message in ERRORS:
        error = getattr(slim, name, None) or getattr(builtins, name)
        with pytest.raises(error) as caught:
            exec(program, dict(names))
        assert caught.type is error, program
        assert same.check_output(message, str(caught.value), doctest.ELLIPSIS), caught.value
        if "close" not in program:
            assert [entity["id"] for entity in store] == ["ann"], program
