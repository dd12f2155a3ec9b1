"""Each entity is a linearizable register, whatever is killed: Porcupine is the judge.

`--long` goes on for minutes with each fault, not for seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from linearizable.faults import FAULTS, private, run
from linearizable.judge import alone, build, find_go, install_go, judge
from server import Server, kinds

SECONDS = 10
# With --long; each round has a history of its own, as the judge's time grows faster than its length.
LONG_SECONDS = 120
LONG_ROUNDS = 5
# Fewer tell little.
CALLS = 200


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "own" in metafunc.fixturenames:
        name = metafunc.config.getoption("server")
        names = [name] if name else kinds()
        metafunc.parametrize("own", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def own(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that these tests may kill."""
    with private(request.param) as own:
        yield own


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints at once, also where the test passes."""

    def say(text: str) -> None:
        with capfd.disabled():
            print(f"\n{text}", end="", flush=True)

    return say


# ---- slim


@pytest.mark.timeout(0)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_entity_is_linearizable(
    own: Server, fault: str, long: bool, tmp_path: Path, say: Callable[[str], None]
) -> None:
    rounds, seconds = (LONG_ROUNDS, LONG_SECONDS) if long else (1, SECONDS)
    for number in range(rounds):
        folder = tmp_path / str(number)
        report, files = run(own, fault, seconds, folder)
        linearizable, text = judge(files, folder / "pictures")
        count = text.count(": linearizable (")
        say(f"{own.name}, {fault}: {report}; {count} entities are linearizable")
        assert linearizable, text
        assert report.calls > CALLS
        assert (report.kills > 0) == (fault != "none")
        # What slim cannot repeat is unknown. Nothing else fails, unless the server is away for long.
        assert report.errors == {} or fault == "server"
        assert not report.outcomes["unknown"] or fault in ("server", "connections")


# ---- the judge

PUT_A = {"verb": "put", "value": "A"}
PUT_B = {"verb": "put", "value": "B"}
GET, GET_ALL = {"verb": "get"}, {"verb": "get_all"}
DELETE = {"verb": "delete"}
UPDATE = {"verb": "update", "value": "U"}
A, B, U = (
    {"seen": [{"value": value, "version": version}]}
    for value, version in {"A": 1, "B": 2, "U": 3}.items()
)
NOTHING: dict[str, Any] = {"seen": []}
UNKNOWN, FAILED = {"outcome": "unknown"}, {"outcome": "failed"}

# (begin, end, what is called, what it is told). Without an end, its process was killed.
Calls = list[tuple[int, "int | None", dict[str, Any], dict[str, Any]]]

LINEARIZABLE: dict[str, Calls] = {
    "one after another": [
        (1, 2, PUT_A, {}),
        (3, 4, GET, A),
        (5, 6, DELETE, {"existed": True}),
        (7, 8, GET_ALL, NOTHING),
    ],
    "two puts at once, in either order": [
        (1, 9, PUT_A, {}),
        (2, 8, PUT_B, {}),
        (3, 4, GET, B),
        (10, 11, GET, A),
    ],
    "a put of unknown outcome that is done": [
        (1, 2, PUT_A, UNKNOWN),
        (3, 4, GET, A),
        (5, 6, PUT_B, {}),
        (7, 8, GET, B),
    ],
    "one that is done late": [
        (1, 2, PUT_A, UNKNOWN),
        (3, 4, GET, NOTHING),
        (5, 6, PUT_B, {}),
        (7, 8, GET, A),
    ],
    "one that is not done": [(1, 2, PUT_A, UNKNOWN), (3, 4, GET, NOTHING)],
    "a delete of unknown outcome that is done": [
        (1, 2, PUT_A, {}),
        (3, 4, DELETE, UNKNOWN),
        (5, 6, GET, A),
        (7, 8, GET, NOTHING),
    ],
    "a process killed in a put that is done": [(1, None, PUT_A, {}), (3, 4, GET_ALL, A)],
    "a put that failed": [(1, 2, PUT_A, FAILED), (3, 4, GET, NOTHING)],
    "an update and its version": [
        (1, 2, PUT_A, {}),
        (3, 4, UPDATE, {**A, "version": 3}),
        (5, 6, GET, U),
    ],
    "an update of nothing": [(1, 2, UPDATE, {"outcome": "missing"}), (3, 4, GET, NOTHING)],
    "a put over the version that was read": [
        (1, 2, PUT_A, {}),
        (3, 4, GET, A),
        (5, 6, {**PUT_B, "expect": 1}, {}),
        (7, 8, {**PUT_A, "expect": 1}, {"outcome": "conflict", "found": 2}),
        (9, 10, GET, B),
    ],
}

NOT_LINEARIZABLE: dict[str, Calls] = {
    "a put that is made again over another's": [
        (1, 9, PUT_A, {}),
        (2, 3, GET, A),
        (4, 5, PUT_B, {}),
        (6, 7, GET, B),
        (10, 11, GET, A),
    ],
    "a delete that is made again over a put": [
        (1, 2, PUT_A, {}),
        (3, 9, DELETE, {"existed": True}),
        (4, 5, GET, NOTHING),
        (6, 7, PUT_B, {}),
        (8, 8, GET, B),
        (10, 11, GET, NOTHING),
    ],
    "a delete of what never was": [(1, 2, DELETE, {"existed": True})],
    "a delete of something that saw nothing": [
        (1, 2, PUT_A, {}),
        (3, 4, DELETE, {"existed": False}),
    ],
    "an acknowledged put that is lost": [(1, 2, PUT_A, {}), (3, 4, GET, NOTHING)],
    "a read of what was put over": [(1, 2, PUT_A, {}), (3, 4, PUT_B, {}), (5, 6, GET_ALL, A)],
    "a read before the put": [(1, 2, GET, A), (3, 4, PUT_A, {})],
    "a put of unknown outcome, read and taken back": [
        (1, 2, PUT_A, UNKNOWN),
        (3, 4, GET, A),
        (5, 6, GET, NOTHING),
    ],
    "the same of a process that was killed": [
        (1, None, PUT_A, {}),
        (3, 4, GET, A),
        (5, 6, GET, NOTHING),
    ],
    "a put that failed and is seen": [(1, 2, PUT_A, FAILED), (3, 4, GET, A)],
    "a lost update": [
        (1, 2, PUT_A, {}),
        (3, 4, PUT_B, {}),
        (5, 6, UPDATE, {**A, "version": 3}),
    ],
    "an update that saw nothing": [(1, 2, PUT_A, {}), (3, 4, UPDATE, {"outcome": "missing"})],
    "a put over a version that is gone": [
        (1, 2, PUT_A, {}),
        (3, 4, GET, A),
        (5, 6, PUT_B, {}),
        (7, 8, {**UPDATE, "verb": "put", "expect": 1}, {}),
    ],
    "a conflict with nothing where something is": [
        (1, 2, PUT_A, {}),
        (3, 4, {**PUT_B, "expect": 1}, {"outcome": "conflict", "found": 0}),
    ],
    "a version with two values": [
        (1, 2, PUT_A, {}),
        (3, 4, GET, A),
        (5, 6, PUT_B, {}),
        (7, 8, GET, {"seen": [{"value": "B", "version": 1}]}),
    ],
    "one entity found twice by an index": [
        (1, 2, PUT_A, {}),
        (3, 4, GET_ALL, {"seen": [*A["seen"], *A["seen"]]}),
    ],
}


def written(calls: Calls, path: Path) -> Path:
    """The file of such a history, as a client writes it."""
    with open(path, "w") as file:
        for number, (begin, end, what, told) in enumerate(calls):
            name = f"{path.stem}.{number}/0"
            print(json.dumps({"call": name, "id": "e", "begin": begin, **what}), file=file)
            if end is not None:
                line = {"call": name, "end": end, "outcome": "done", **told}
                print(json.dumps(line), file=file)
    return path


@pytest.mark.parametrize("calls", LINEARIZABLE.values(), ids=LINEARIZABLE)
def test_judge_accepts_what_is_linearizable(calls: Calls, tmp_path: Path) -> None:
    good, text = judge([written(calls, tmp_path / "history.jsonl")], tmp_path)
    assert (good, text.count("e: linearizable")) == (True, 1), text


@pytest.mark.parametrize("calls", NOT_LINEARIZABLE.values(), ids=NOT_LINEARIZABLE)
def test_judge_refuses_what_is_not(calls: Calls, tmp_path: Path) -> None:
    good, text = judge([written(calls, tmp_path / "history.jsonl")], tmp_path)
    assert (good, text.count("e: NOT LINEARIZABLE")) == (False, 1), text


def test_judge_shows_the_call_that_fits_nowhere_and_draws_the_history(tmp_path: Path) -> None:
    calls = NOT_LINEARIZABLE["a put that is made again over another's"]
    later: Calls = [(12, 13, DELETE, {"existed": True}), (14, 15, GET, NOTHING)]
    _, text = judge([written([*calls, *later], tmp_path / "history.jsonl")], tmp_path)
    (line,) = [line for line in text.splitlines() if "fits nowhere" in line]
    assert "get() done: saw A" in line
    assert "delete" not in text
    assert (tmp_path / "e.html").stat().st_size


def test_judge_takes_the_calls_of_several_files_and_entities_apart(tmp_path: Path) -> None:
    good = written(LINEARIZABLE["one after another"], tmp_path / "good.jsonl")
    bad = written(NOT_LINEARIZABLE["a read before the put"], tmp_path / "bad.jsonl")
    bad.write_text(bad.read_text().replace('"id": "e"', '"id": "f"'))
    linearizable, text = judge([good, bad], tmp_path)
    assert not linearizable
    assert [line.split(" (")[0] for line in text.splitlines() if line[0] in "ef"] == [
        "e: linearizable",
        "f: NOT LINEARIZABLE",
    ]


@pytest.mark.parametrize("text", ["", "{", '{"call": "a", "end": 1, "outcome": "done"}\n'])
def test_judge_says_nothing_of_files_that_are_no_histories(text: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(text)
    with pytest.raises(RuntimeError, match="judge: "):
        judge([path], tmp_path)


def test_judge_is_built_by_go_of_pypi_where_there_is_no_other(tmp_path: Path) -> None:
    assert find_go(str(tmp_path)) is None
    with alone():
        build(install_go(), tmp_path / "judge")
    assert (tmp_path / "judge").stat().st_size
