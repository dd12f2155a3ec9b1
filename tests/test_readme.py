"""What README.md and slim's docstring show is so: every block is run, and one that cannot be is a failure."""

from __future__ import annotations

import doctest
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import demo
import pytest
from server import Named

import slim

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ACCOUNT = '"localhost", "me", "secret", "app"'  # stands for the test's own in what is shown
FLAGS = doctest.ELLIPSIS


class Block(NamedTuple):
    language: str
    text: str
    line: int


class Command(NamedTuple):
    words: list[str]
    output: str
    line: int


BLOCKS = [
    Block(match[1], match[2], README[: match.start()].count("\n") + 2)
    for match in re.finditer(r"^```(.*)\n([\s\S]*?)^```$", README, re.MULTILINE)
]


def commands(block: Block) -> Iterator[Command]:
    """The lines of a shell block that begin with "$ ", each with what is shown to be printed."""
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)
    assert parts[0] == "", f"README.md:{block.line}: output of no command"
    for command, output in zip(parts[1::2], parts[2::2]):
        line = README[: README.index(f"$ {command}\n")].count("\n") + 1
        yield Command(
            [word for word in shlex.split(command) if not word.startswith("SLIM_SERVER=")],
            output,
            line,
        )


COMMANDS = [command for block in BLOCKS if block.language == "sh" for command in commands(block)]


def mask(text: str) -> str:
    """The same without what is new each time: ids, versions and times."""
    return re.sub(
        r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|version \d+|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d",
        "~",
        text,
    )


def run_session(text: str, name: str, line: int, names: dict[str, Any]) -> None:
    """A session at Python's prompt, the account in it replaced; what it defines stays in names."""
    test = doctest.DocTestParser().get_doctest(
        text.replace(ACCOUNT, "**connect"), names, name, str(ROOT / "README.md"), line - 1
    )
    assert test.examples, f"{name}:{line}: no >>> in it"
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(test, out=report.append, clear_globs=False)
    names.update(test.globs)
    assert runner.failures == 0, "".join(report)


@pytest.fixture
def client(server: Named, tmp_path: Path) -> Callable[..., str]:
    """client("schema", database) gives what the command line prints. The server and account are in the user's option file."""
    keys = {
        "host": "host",
        "port": "port",
        "user": "user",
        "password": "password",
        "unix_socket": "socket",
    }
    (tmp_path / ".my.cnf").write_text(
        "[client]\nssl-verify-server-cert=0\n"
        + "".join(
            f"{option}={server.connect[key]}\n"
            for key, option in keys.items()
            if key in server.connect
        )
    )

    def client(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "slim", *words],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        return done.stdout

    return client


@pytest.fixture
def demonstration(server: Named, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The database that the demonstration leaves."""
    made: list[str] = []
    new_database = demo.new_database

    def remembered(server: Named) -> str:
        made.append(new_database(server))
        return made[-1]

    monkeypatch.setenv("SLIM_SERVER", server.url)
    monkeypatch.setattr(demo, "new_database", remembered)
    assert demo.main(["--keep"]) == 0
    yield made[-1]
    server.query(f"DROP DATABASE {made[-1]}")


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert README.count("```") == 2 * len(BLOCKS)
    assert [
        block for block in BLOCKS if block.language not in ("python", "sh", "sql", "haproxy")
    ] == []
    assert [
        command for command in COMMANDS if command.words[0] not in ("slim", "tests/run", "pip")
    ] == []
    assert [
        block for block in BLOCKS if block.language == "python" and ">>>" not in block.text
    ] == []


def test_sessions_and_commands_of_the_readme_run_as_shown(
    connect: dict[str, Any], client: Callable[..., str]
) -> None:
    names: dict[str, Any] = {"connect": connect}
    for block in BLOCKS:
        if block.language == "python":
            run_session(block.text, "README.md", block.line, names)
        for command in commands(block) if block.language == "sh" else ():
            if command.words[0] == "slim" and "slim_demo" not in command.words:
                printed = client(
                    *(connect["database"] if word == "app" else word for word in command.words[1:])
                )
                assert mask(printed) == mask(command.output), f"README.md:{command.line}"
    names["store"].close()


def test_calls_are_as_the_readme_lists_them() -> None:
    calls = re.findall(r"^\| `(?!len)(\w+)\((.*?)\)`", README, re.MULTILINE)
    assert len(calls) > 10
    for name, shown in calls:
        _, *parameters = inspect.signature(getattr(slim.Datastore, name)).parameters.values()
        assert shown == ", ".join(
            str(each.replace(annotation=each.empty, kind=each.POSITIONAL_OR_KEYWORD))
            for each in parameters
        )


def test_docstring_session_runs_as_shown(connect: dict[str, Any]) -> None:
    assert slim.__doc__
    names: dict[str, Any] = {"connect": connect}
    run_session(slim.__doc__, "slim.py", 1, names)
    names["store"].close()


def test_readme_shows_the_schema_of_the_demonstration(
    demonstration: str, client: Callable[..., str]
) -> None:
    """As far as it is the same with every version of Python, whose library it is: all but numbers, ids and rare keys."""
    (shown,) = (command for command in COMMANDS if "slim_demo" in command.words)
    printed = client(*(demonstration if word == "slim_demo" else word for word in shown.words[1:]))

    def fields(text: str) -> set[str]:
        table = text[text.index("\nfield ") :]
        return {re.sub(r"[\d.]+", "0", " ".join(line.split())) for line in table.splitlines()}

    assert fields(shown.output) == fields(printed)
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_statements_of_the_readme_make_the_tables_that_slim_makes(
    store: slim.Datastore, sql: Callable[..., Any], connect: dict[str, Any]
) -> None:
    columns = """SELECT table_name, column_name, column_type, is_nullable, column_key, extra FROM information_schema.columns
                 WHERE table_schema = %s AND table_name IN ('entities', 'index_user_id') ORDER BY 1, ordinal_position"""
    store.add_index(slim.Index("index_user_id", "user_id"))
    by_hand = connect["database"] + "_sql"
    sql(f"CREATE DATABASE {by_hand}")
    try:
        sql(f"USE {by_hand}")
        (block,) = (block.text for block in BLOCKS if "CREATE TABLE" in block.text)
        for statement in filter(str.strip, block.split(";")):
            sql(statement)
        assert sql(columns, [by_hand]) == sql(columns, [connect["database"]])
    finally:
        sql(f"DROP DATABASE {by_hand}")


def test_account_needs_no_more_than_the_readme_grants(
    store: slim.Datastore, sql: Callable[..., Any], connect: dict[str, Any]
) -> None:
    (grant,) = (block.text for block in BLOCKS if "GRANT" in block.text)
    user = f"me_{os.urandom(4).hex()}"
    sql(f"CREATE USER {user} IDENTIFIED BY 'secret'")
    try:
        sql(grant.replace("app.", f"{connect['database']}.").replace(" me;", f" {user}"))
        with slim.Datastore(**{**connect, "user": user, "password": "secret"}) as application:
            by_name = store.add_index(slim.Index("index_name", "name"))
            key = application.put({"name": "Ann"})
            with application.transaction():
                entity = application.update(key, lambda entity: entity.update(likes=1))
                application.put(entity, expect=entity.version)
            assert (
                by_name.get_all(store, name="Ann")
                == by_name.get_all(application, name="Ann")
                == [entity]
            )
            assert by_name.populate(application) == 0
            assert application.delete(key) and len(application) == 0 == by_name.count(application)
    finally:
        sql(f"DROP USER {user}")


def test_program_that_writes_in_transactions_learns_of_an_index(
    store: slim.Datastore, connect: dict[str, Any]
) -> None:
    """README: programs that are running need not be stopped or told."""
    store.put({"id": "ann", "name": "Ann"})
    with slim.Datastore(**connect) as administration:
        by_name = administration.add_index(slim.Index("index_name", "name"))
        with store.transaction():
            store.put({"id": "ann", "name": "Anne"})
            store.put({"id": "ben", "name": "Ben"})
        assert [by_name.count(administration, name=name) for name in ("Ann", "Anne", "Ben")] == [
            0,
            1,
            1,
        ]


@pytest.mark.parametrize(
    "command",
    [command for command in COMMANDS if command.words[0] == "tests/run"],
    ids=lambda command: "-".join(command.words[1:]) or "suite",
)
def test_run_has_what_the_readme_names(command: Command) -> None:
    told = subprocess.run(
        [sys.executable, ROOT / "tests" / "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    verbs = [word for word in command.words[1:] if not word.startswith("-")]
    options = [word for word in command.words[1:] if word.startswith("-")]
    assert re.search(rf"^ *{re.escape(' '.join(['tests/run', *verbs]))}\b.*", told, re.MULTILINE)
    for option in options:
        assert option in told or option in (ROOT / "tests" / "conftest.py").read_text()


def test_configuration_of_haproxy_is_the_one_that_the_cluster_tests_run() -> None:
    def lines(text: str) -> list[str]:
        return [
            re.sub(r"[\d.]+:\S+|port \S+", "~", line)
            for line in text.splitlines()
            if not line.startswith("#")
        ]

    (shown,) = (block.text for block in BLOCKS if block.language == "haproxy")
    assert lines(shown) == lines((ROOT / "tests" / "cluster" / "haproxy.cfg").read_text())


def test_pip_installs_module_and_command(tmp_path: Path) -> None:
    assert ["pip", "install", "."] in [command.words for command in COMMANDS]
    checkout, home = tmp_path / "checkout", tmp_path / "home"
    checkout.mkdir()
    for name in "slim.py", "setup.py", "README.md", "LICENSE":
        shutil.copy(ROOT / name, checkout)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    library = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
    for name in (
        "MySQLdb",
        "mysqlclient-*.dist-info",
    ):  # the tests' own driver: it takes long to build another
        (path,) = Path(sysconfig.get_path("platlib")).glob(name)
        Path(library, path.name).symlink_to(path)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(home / "bin" / "python"),
            "--disable-pip-version-check",
            "install",
            "-q",
            ".",
        ],
        cwd=checkout,
        check=True,
    )

    def output(program: str, *arguments: str) -> str:
        return subprocess.check_output(
            [home / "bin" / program, *arguments], cwd=tmp_path, text=True
        )

    told = output("python", "-c", "import slim; print(slim.__version__, slim.__file__)")
    assert told.split() == [slim.__version__, str(Path(library, "slim.py"))]
    assert "schema" in output("slim", "--help")
