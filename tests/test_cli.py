"""`python -m slim`, run as a person or a script runs it."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
import os
import pty
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from server import Named
from test_readme import user_of

import slim

SECRET = "s3cret-pa55word"
ENTITIES = [
    {"id": "x", "user": "bob", "age": 30, "born": dt.date(1996, 2, 29)},
    {"id": "y", "user": "amy", "age": 31},
    {
        "id": "z",
        "user": "bób",
        "age": 32,
        "price": Decimal("1.50"),
        "data": b"\0\xff",
        "tags": {"a"},
        "nested": {1: [None]},
        "at": dt.datetime(2009, 2, 27, 12, 30),
    },
]
Slim = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def options(connect: dict[str, Any], tmp_path: Path) -> Path:
    """An option file as MySQL's own client reads it."""
    names = {
        "host": "host",
        "port": "port",
        "user": "user",
        "password": "password",
        "unix_socket": "socket",
    }
    lines = [
        f"{names[name]}={value}" for name, value in connect.items() if name in names and value != ""
    ]
    lines.append("ssl-verify-server-cert=0")
    path = tmp_path / "options.cnf"
    path.write_text("\n".join(["[client]", *lines, ""]))
    return path


@pytest.fixture
def filled(store: slim.Datastore) -> slim.Datastore:
    store.add_index(slim.Index("index_user", "user"))
    store.add_index(slim.Index("index_age", {"age": int, "user": str}))
    store.put_many(ENTITIES)
    return store


@pytest.fixture
def run(options: Path, database: str) -> Slim:
    """run("get", "x") calls `python -m slim` on the test's database."""

    def run(
        *words: str, before: tuple[str, ...] = (), **further: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "slim", f"--defaults-file={options}", *before, database, *words],
            text=True,
            timeout=60,
            **{"capture_output": True, **further},
        )

    return run


@pytest.fixture
def terminal(options: Path, database: str) -> Callable[..., str]:
    """terminal("get", "x") is what is sent to a person's pseudo-terminal."""

    def terminal(*words: str) -> str:
        here, there = pty.openpty()
        program = [sys.executable, "-m", "slim", f"--defaults-file={options}", database, *words]
        with subprocess.Popen(program, stdin=there, stdout=there, stderr=there):
            os.close(there)
            shown = b""
            # A terminal that nobody has open any more is an error, not an end.
            with contextlib.suppress(OSError):
                while chunk := os.read(here, 4096):
                    shown += chunk
        os.close(here)
        return shown.decode().replace("\r\n", "\n")

    return terminal


def seen(shown: str) -> str:
    """What stands on the screen: a carriage return begins the line anew, and what follows covers it."""
    lines = []
    for line in shown.split("\n"):
        *covered, last = line.split("\r")
        for text in [last, *reversed(covered)]:
            last += text[len(last) :]
        lines.append(last)
    return "\n".join(lines)


@pytest.mark.parametrize(
    "words",
    [
        ["get", "z"],
        ["find", "index_age", "age>=31"],
        ["find", "index_age", "age>=31", "--json"],
        ["indexes"],
        ["populate", "index_age"],
        ["schema"],
        ["get", "nobody"],
        ["find", "index_gone"],
        ["find", "index_age", "age=old"],
    ],
)
def test_terminal_shows_what_a_pipe_gets(
    filled: slim.Datastore, run: Slim, terminal: Callable[..., str], words: list[str]
) -> None:
    done = run(*words)
    assert seen(terminal(*words)) == done.stdout + done.stderr != ""


@pytest.mark.parametrize("words", [["populate", "index_age"], ["schema"], ["schema", "--json"]])
def test_populate_and_schema_show_progress_on_a_terminal_alone(
    filled: slim.Datastore, run: Slim, terminal: Callable[..., str], words: list[str]
) -> None:
    filled.put_many({"user": "bob", "age": n} for n in range(2 * slim.PAGE))
    done = run(*words)
    shown = terminal(*words)
    steps = [int(step) for step in re.findall(r"(\d+) read\r", shown)]
    assert steps[0] == slim.PAGE and steps[-1] >= 2 * slim.PAGE + 2 and steps == sorted(steps)
    assert seen(shown) == done.stdout
    assert done.stderr == "" and " read" not in done.stdout


def test_get_and_find_print_each_entity_as_python_writes_it_on_one_line(
    filled: slim.Datastore, run: Slim
) -> None:
    done = run("get", "x")
    assert (done.returncode, done.stderr) == (0, "")
    line = "{'id': 'x', 'user': 'bob', 'age': 30, 'born': datetime.date(1996, 2, 29)}"
    assert done.stdout.splitlines() == [line]
    assert run("find", "index_age").stdout.splitlines() == [str(entity) for entity in ENTITIES]


def test_json_has_a_line_for_each_entity_and_a_form_for_what_json_cannot_say(
    filled: slim.Datastore, run: Slim
) -> None:
    done = run("find", "index_user", before=("--json",))
    entities = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(entities, key=lambda entity: entity["id"]) == [
        {"id": "x", "user": "bob", "age": 30, "born": {"date": "1996-02-29"}},
        {"id": "y", "user": "amy", "age": 31},
        {
            "id": "z",
            "user": "bób",
            "age": 32,
            "price": {"Decimal": "1.50"},
            "data": {"bytes": "b'\\x00\\xff'"},
            "tags": {"set": "{'a'}"},
            "nested": {"1": [None]},
            "at": {"datetime": "2009-02-27 12:30:00"},
        },
    ]


@pytest.mark.parametrize(
    "words, found",
    [
        (["index_user", "user=bób"], "z"),
        (["index_user", "user=nobody"], ""),
        (["index_user", "user=bob", "user=amy"], "yx"),
        (["index_age", "age=31"], "y"),
        (["index_age", "age>=31"], "yz"),
        (["index_age", "age<32"], "xy"),
        (["index_age", "age<32", "age>=30", "user=bob"], "x"),
        (["index_age"], "xyz"),
    ],
)
def test_find_takes_equality_ranges_and_one_of(
    filled: slim.Datastore, run: Slim, words: list[str], found: str
) -> None:
    done = run("find", *words, before=("--json",))
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == list(found)


def test_find_takes_a_value_of_each_type(store: slim.Datastore, run: Slim) -> None:
    # What is asked for, and what is not.
    values: dict[str, tuple[Any, Any]] = {
        "a=b<c>": ("a=b<c>", "a=b"),
        "-7": (-7, 7),
        "0.5": (0.5, 0.25),
        "true": (True, False),
        "bób": ("bób".encode(), b"bob"),
        "1.5": (Decimal("1.50"), Decimal("1.51")),
        "1996-02-29": (dt.date(1996, 2, 29), dt.date(1996, 3, 1)),
        "2009-02-27 12:30": (dt.datetime(2009, 2, 27, 12, 30), dt.datetime(2009, 2, 27)),
        str(uuid.UUID(int=7)): (uuid.UUID(int=7), uuid.UUID(int=8)),
    }
    for text, (value, other) in values.items():
        name = type(value).__name__
        index = store.add_index(slim.Index(f"index_{name}", {name: type(value)}))
        entity = {"id": f"x{name}", name: value}
        store.put_many([entity, {"id": f"y{name}", name: other}])
        done = run("find", index.table, f"{name}={text}")
        assert (done.stdout, done.stderr) == (f"{entity}\n", "")


def test_indexes_and_populate_show_and_repair(
    filled: slim.Datastore, run: Slim, sql: Callable[..., Any]
) -> None:
    born = slim.Index("index_born", {"born": dt.date}, unique=True)
    filled.add_index(born, populate=False)
    lines = [repr(index) for index in filled.indexes]
    assert repr(born) in lines and run("indexes").stdout.splitlines() == lines
    shown = [json.loads(line) for line in run("indexes", "--json").stdout.splitlines()]
    assert shown == [{"Index": line} for line in lines]
    assert run("populate", "index_born").stdout == "1 rows were wrong\n"
    assert run("find", "index_born", "born=1996-02-29").returncode == 0
    sql("DELETE FROM index_user WHERE user = 'bob'")
    assert run("populate", "index_user").stdout == "1 rows were wrong\n"
    assert json.loads(run("populate", "index_user", "--json").stdout) == "0 rows were wrong"


def test_schema_fits_a_screen_unless_all_is_asked_for(store: slim.Datastore, run: Slim) -> None:
    store.put_many([{f"key {number}" + " long" * 30: 1} for number in range(30)] + [{}, {}])
    done = run("schema")
    assert (done.returncode, done.stderr) == (0, "")
    first, most, *lines = done.stdout.splitlines()
    assert first == "31 types of dictionary"
    assert most.startswith("2 (6.2%), such as ")
    assert len(lines) == 19 and max(map(len, lines)) == 79
    every = run("schema", "--all").stdout.splitlines()
    assert len(every) == 31 and all("{'entities': " in line for line in every)
    shapes = [json.loads(line) for line in run("schema", "--json").stdout.splitlines()]
    assert len(shapes) == 31 and sum(shape["entities"] for shape in shapes) == 32
    assert shapes[0]["fields"] == {"id": "str"} and store.get(shapes[0]["example"])


def test_no_character_of_an_entity_obeys_the_terminal(store: slim.Datastore, run: Slim) -> None:
    text = "\033[31m\r\n\x9b\u202e\x07"
    store.put({"id": f"a{text[:8]}", text: text})
    for done in (run("get", f"a{text[:8]}"), run("schema"), run("get", f"b{text}")):
        shown = (done.stdout + done.stderr).replace("\n", "")
        assert shown and shown.isprintable()


@pytest.mark.parametrize(
    "words, message",
    [
        (["get", "nobody"], "there is no 'nobody'; the indexes are ['index_user', 'index_age']"),
        (["find", "no_such_index", "a=b"], "index_user"),
        (["find", "index_user", "age=1"], "{'user': 'str'}"),
        (["find", "index_user", "user"], "{'user': 'str'}"),
        (["find", "index_age", "age=old"], "'age': 'int'"),
        (["find", "index_age", "age=1", "age<3"], "'age<3' is no condition"),
        (["find", "index_age", "age<3", "age=1"], "'age=1' is no condition"),
        (["populate", "nothing"], "['index_user', 'index_age']"),
        (["get", "x" * 37], "36"),
        (["get"], "36"),
        (["find"], "there is no ''; the indexes are ['index_user', 'index_age']"),
    ],
)
def test_failure_is_one_line_on_standard_error_and_status_1(
    filled: slim.Datastore, run: Slim, words: list[str], message: str
) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr.startswith("slim: ") and done.stderr.count("\n") == 1 and message in done.stderr
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["no_such_verb"],
        ["schema", "--limit", "1"],
    ],
)
def test_wrong_call_is_status_2_and_shows_the_usage(run: Slim, words: list[str]) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: slim")


def test_options_may_stand_anywhere_and_an_id_may_begin_with_a_dash(
    filled: slim.Datastore, run: Slim
) -> None:
    filled.put({"id": "-x", "user": "bob"})
    for words in (
        ["find", "index_age", "--json", "user=bob", "age>=30"],
        ["get", "--json", "--", "-x"],
        ["--json", "get", "--", "-x"],
    ):
        done = run(*words)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["id"] == ("x" if words[0] == "find" else "-x")


def test_half_a_character_is_printed_as_its_escape(store: slim.Datastore, run: Slim) -> None:
    store.put({"id": "a", "text": "\ud800"})
    assert "\\ud800" in run("get", "a").stdout
    assert json.loads(run("--json", "get", "a").stdout)["text"] == "\ud800"


@pytest.mark.parametrize("kind", ["ring", "key", "nan"])
def test_entity_that_json_has_not_is_a_line_with_its_text(
    store: slim.Datastore, run: Slim, kind: str
) -> None:
    ring: list[Any] = []
    ring.append(ring)
    odd: dict[Any, Any] = {"ring": {"v": ring}, "key": {(1, 2): None}, "nan": {"v": math.nan}}[kind]
    store.put({"id": "a"} | odd)
    text = run("get", "a").stdout.rstrip("\n")
    done = run("--json", "get", "a")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"Entity": text}


def test_no_server_and_wrong_password_are_one_line_without_the_password(run: Slim) -> None:
    for before in (
        ("-h", "127.0.0.1", "-P", "1"),
        ("-u", "nobody_at_all", f"-p{SECRET}"),
        (f"--password={SECRET}", "--user=nobody_at_all"),
    ):
        done = run("schema", before=before)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("slim: ") and done.stderr.count("\n") == 1
        assert SECRET not in done.stderr


def test_help_names_every_verb() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slim", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert all(
        verb in done.stdout
        for verb in ("schema", "get", "find", "indexes", "populate", "--defaults-file", "--json")
    )


def test_options_are_those_of_mysqls_own_client(
    filled: slim.Datastore, connect: dict[str, Any], database: str
) -> None:
    where = ["-h", connect["host"], "-P", str(connect.get("port", 3306))]
    if "unix_socket" in connect:
        where = ["-S", connect["unix_socket"]]
    own = [f"-p{connect['password']}"] if connect["password"] else []
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "slim",
            *where,
            "-u",
            connect["user"],
            *own,
            "--json",
            database,
            "get",
            "y",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["user"] == "amy"


def test_option_file_in_the_home_directory_is_read(
    filled: slim.Datastore, options: Path, database: str
) -> None:
    options.rename(options.parent / ".my.cnf")
    done = subprocess.run(
        [sys.executable, "-m", "slim", database, "get", "y"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HOME": str(options.parent)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "amy" in done.stdout


def test_standard_error_may_be_closed(filled: slim.Datastore, run: Slim) -> None:
    closed = {"capture_output": False, "stdout": subprocess.PIPE}
    done = run("get", "y", **closed, preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout) == (0, f"{ENTITIES[1]}\n")


def test_reader_that_goes_away_ends_it_quietly(
    store: slim.Datastore, options: Path, database: str
) -> None:
    store.add_index(slim.Index("index_user", "user"))
    store.put_many({"user": "bob", "text": "x" * 200} for _ in range(3_000))
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "slim",
            f"--defaults-file={options}",
            database,
            "find",
            "index_user",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.fixture
def secretive(server: Named, database: str) -> Iterator[str]:
    """An account with a password."""
    user = user_of(server)
    server.query(f"CREATE USER {user} IDENTIFIED BY '{SECRET}'")
    server.query(f"GRANT ALL ON {database}.* TO {user}")
    yield user.partition("@")[0]
    server.query(f"DROP USER {user}")


@pytest.mark.parametrize("password", [["-p", SECRET], [f"-p{SECRET}"], [f"--password={SECRET}"]])
def test_password_is_taken_from_its_option(
    filled: slim.Datastore, run: Slim, secretive: str, password: list[str]
) -> None:
    done = run("get", "x", before=("-u", secretive, *password))
    assert (done.returncode, done.stderr) == (0, "")
    assert "bob" in done.stdout and SECRET not in done.stdout
    assert run("get", "x", before=("-u", secretive, "-pother")).returncode == 1


def test_database_without_entities_is_an_error_and_stays_as_it_was(
    run: Slim, sql: Callable[..., Any]
) -> None:
    done = run("schema")
    assert done.returncode == 1 and "entities_catalogue' doesn't exist" in done.stderr
    assert done.stderr.startswith("slim: ") and done.stderr.count("\n") == 1
    assert sql("SHOW TABLES") == []
