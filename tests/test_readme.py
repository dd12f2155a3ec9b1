"""What README.md and slim's docstring show is so: every block is run, and one that cannot be is a failure."""

from __future__ import annotations

import doctest
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import MySQLdb
import pytest
from server import Named
from tqdm import tqdm

import slim

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# It stands for the test's own account.
ACCOUNT = '"localhost", "me", "secret", "app"'
OPTION_NAMES = {
    "host": "host",
    "port": "port",
    "user": "user",
    "password": "password",
    "unix_socket": "socket",
}


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
        yield Command(shlex.split(command), output, line)


COMMANDS = [command for block in BLOCKS if block.language == "sh" for command in commands(block)]


def mask(text: str) -> str:
    """The same without the ids: they are new each time, and cut short in the README."""
    return re.sub(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{8}-…", "~", text)


def of_account(text: str) -> str:
    """The same with the test's own account."""
    assert ACCOUNT in text or "Datastore(" not in text
    return text.replace(ACCOUNT, "**connect")


def run_session(text: str, name: str, line: int, names: dict[str, Any]) -> None:
    """Runs a session at Python's prompt. What it defines stays in names."""
    parser = doctest.DocTestParser()
    test = parser.get_doctest(text.replace(ACCOUNT, "**connect"), names, name, name, line - 1)
    assert test.examples, f"{name}:{line}: nothing is shown"
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    runner.run(test, out=report.append, clear_globs=False)
    names.update(test.globs)
    assert runner.failures == 0, "".join(report)


@pytest.fixture
def home(server: Named, tmp_path: Path) -> Path:
    """A home directory, with the account in an option file."""
    lines = [
        f"{option}={server.connect[key]}"
        for key, option in OPTION_NAMES.items()
        if key in server.connect
    ]
    text = "\n".join(["[client]", "ssl-verify-server-cert=0", *lines, ""])
    (tmp_path / ".my.cnf").write_text(text)
    return tmp_path


@pytest.fixture
def client(home: Path) -> Callable[..., str]:
    """client("app", "schema") gives what the command line prints."""

    def client(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "slim", *words],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HOME": str(home)},
            timeout=100,
        )
        return done.stdout

    return client


def test_readme_has_at_most_12000_bytes() -> None:
    assert len(README.encode()) <= 12_000


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert README.count("```") == 2 * len(BLOCKS)
    assert {block.language for block in BLOCKS} == {"python", "py", "sh", "sql"}
    tested = ("slim", "tests/run", "python3", "env/bin/pip")
    assert [command for command in COMMANDS if command.words[0] not in tested] == []


def test_every_file_that_the_readme_names_is_there() -> None:
    for path in re.findall(r"\]\((.+?)\)", README):
        assert (ROOT / path).exists(), path


def test_sessions_and_commands_of_the_readme_run_as_shown(
    connect: dict[str, Any], client: Callable[..., str]
) -> None:
    names: dict[str, Any] = {"connect": connect}
    for block in BLOCKS:
        if block.language == "python":
            run_session(block.text, "README.md", block.line, names)
        for command in commands(block) if block.language == "sh" else ():
            if command.words[0] == "slim":
                words = [connect["database"] if word == "app" else word for word in command.words]
                assert mask(client(*words[1:])) == mask(command.output), f"README:{command.line}"
    names["store"].close()


def test_program_of_the_readme_runs(
    connect: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = [block.text for block in BLOCKS if block.text.startswith("import slim\n")]
    exec(compile(of_account(program), "README.md", "exec"), {"connect": connect})
    assert re.match(r"Hello 2\d{3}-.*\+00:00\n1 types of dictionary\n", capsys.readouterr().out)


def user_of(server: Named) -> str:
    """The name of a new account, at the host from which the server sees the tests come."""
    host = server.query("SELECT SUBSTRING_INDEX(USER(), '@', -1)")[0][0]
    return f"me_{os.urandom(4).hex()}@'{host}'"


def test_account_of_the_readme_serves_its_program(server: Named, connect: dict[str, Any]) -> None:
    (statements,) = [block.text for block in BLOCKS if block.language == "sql"]
    user, database = user_of(server), connect["database"] + "_app"
    statements = statements.replace("me@localhost", user).replace("app", database)
    try:
        for statement in filter(str.strip, statements.split(";")):
            server.query(statement)
        name = user.partition("@")[0]
        account = {**connect, "database": database, "user": name, "password": "secret"}
        with slim.Datastore(**account, indexes=[slim.Index("index_a", "a")]) as store:
            assert store.get(store.put({"a": "b"}))
    finally:
        server.query(f"DROP DATABASE IF EXISTS {database}")
        server.query(f"DROP USER IF EXISTS {user}")


def test_account_needs_no_more_than_the_readme_grants(
    server: Named, store: slim.Datastore, connect: dict[str, Any]
) -> None:
    (grant,) = re.findall(r"`(GRANT .*?) ON app\.\* TO …`", README)
    user = user_of(server)
    by_name = store.add_index(slim.Index("index_name", "name"))
    server.query(f"CREATE USER {user} IDENTIFIED BY 'secret'")
    try:
        server.query(f"{grant} ON {connect['database']}.* TO {user}")
        account = {**connect, "user": user.partition("@")[0], "password": "secret"}
        with slim.Datastore(**account, indexes=[by_name]) as application:
            key = application.put({"name": "Ann"})
            with application.transaction():
                entity = application.update(key, lambda entity: entity.update(likes=1))
                application.put(entity, expect=entity.version)
            assert by_name.get_all(application, name="Ann") == [entity]
            assert application.delete(key) and not by_name.count(application)
            refused = r"denied.*: CREATE TABLE IF NOT EXISTS `index_b` \("
            with pytest.raises(MySQLdb.OperationalError, match=refused) as caught:
                application.add_index(slim.Index("index_b", "b"))
            assert f"error {caught.value.args[0]} ends with the statement" in README
    finally:
        server.query(f"DROP USER {user}")


def test_account_comes_from_an_option_file_as_the_readme_says(
    connect: dict[str, Any], home: Path
) -> None:
    (call,) = re.findall(r"`(slim\.Datastore\(database=.*?\))`", README)
    call = call.replace('"app"', repr(connect["database"]))
    program = f"import slim; store = {call}; index = store.add_index(slim.Index('index_a', 'a'))"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; print(store.put({{'a': 'b', 'id': 'c'}}))"],
        cwd=ROOT,
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.stdout, done.stderr) == ("c\n", "")


def test_progress_bars_go_around_what_is_iterated_and_the_logger_tells_it(
    store: slim.Datastore, caplog: pytest.LogCaptureFixture
) -> None:
    for shown in "`store.put_many(tqdm(entities))`", "DEBUG the logger `slim`":
        assert shown in README
    bars = io.StringIO()
    entities = [{"id": str(number)} for number in range(9)]
    assert store.put_many(tqdm(entities, file=bars)) == 9
    assert [*tqdm(store, file=bars)] == entities
    assert bars.getvalue().count("| 9/9 [") == 2
    with caplog.at_level("DEBUG", logger="slim"):
        store.schema()
    assert caplog.messages[0] == "9 read"


def public(cls: type) -> set[str]:
    """The names of what a user of the class may call or read."""
    return {name for name in dir(cls) if not name.startswith("_")}


def as_documented(call: Any) -> str:
    """The parameters behind self, with their defaults alone."""
    _, *parameters = inspect.signature(call).parameters.values()
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    plain = [each.replace(annotation=each.empty, kind=kind) for each in parameters]
    return ", ".join(map(str, plain))


def test_calls_are_as_the_readme_lists_them() -> None:
    table = README.partition("## Calls")[2].partition("## Indexes")[0]
    calls = dict(re.findall(r"^\| `(\w+)(?:\((.*?)\))?`", table, re.MULTILINE))
    assert calls.pop("len") == "store"
    assert {*calls} == public(slim.Datastore)
    assert calls.pop("indexes") == ""
    assert calls == {name: as_documented(getattr(slim.Datastore, name)) for name in calls}


def test_methods_of_an_index_are_as_the_readme_lists_them() -> None:
    table = README.partition("## Indexes")[2].partition("## Versions")[0]
    methods = dict(re.findall(r"^\| `(\w+)\((.*?)\)`", table, re.MULTILINE))
    for name, arguments in methods.items():
        arguments = arguments.replace("name=value, …", "match").replace("{name: value, …}", "match")
        shown = as_documented(getattr(slim.Index, name)).replace("datastore", "store")
        assert arguments == shown, name
    assert {*methods} == {"get_all", "find", "count", "populate"}


def test_docstring_session_runs_as_shown(connect: dict[str, Any]) -> None:
    assert slim.__doc__
    names: dict[str, Any] = {"connect": connect}
    run_session(slim.__doc__, "slim.py", 1, names)
    names["store"].close()


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
    assert [option for option in options if option not in told] == []
