"""Fixtures: a test that asks for `server`, or for what stands on it, runs once on every kind of server."""

from __future__ import annotations

import functools
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import MySQLdb
import pytest
from server import TITLES, Named, Server, kinds, untested, why_not

import slim


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", choices=list(TITLES), help="test on this kind of server alone")
    parser.addoption(
        "--long", action="store_true", help="run the reliability tests for hours, not for seconds"
    )


def pytest_configure() -> None:
    # A shell's background job ignores Ctrl-C, which some tests send to themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        metafunc.parametrize(
            "server", chosen(metafunc.config.getoption("server")), indirect=True, scope="session"
        )


@functools.cache
def chosen(name: str | None) -> list[str]:
    """The names of the servers to test on; "named" is the one of SLIM_SERVER."""
    if "SLIM_SERVER" in os.environ:
        return ["named"]
    if name:
        reason = why_not(name)
        if reason:
            raise pytest.UsageError(f"{TITLES[name]} cannot be started here: {reason}")
        return [name]
    if not kinds():
        raise pytest.UsageError("no server can be started here; tests/run installs one")
    return kinds()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    wanted_all = config.getoption("server") is None and "SLIM_SERVER" not in os.environ
    if wanted_all and chosen.cache_info().currsize:
        for what in untested():
            terminalreporter.line(f"not tested here: {what}", yellow=True)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Named]:
    """A running server: `.name`, `.kind`, `.connect`, `.query(sql, args)`.

    A test that kills one starts its own: `Server(server.name)`.
    """
    with (
        Named(os.environ["SLIM_SERVER"])
        if request.param == "named"
        else Server(request.param) as server
    ):
        yield server


@pytest.fixture
def database(server: Named) -> Iterator[str]:
    """The name of an empty database."""
    name = f"slim_test_{uuid.uuid4().hex}"
    server.query(f"CREATE DATABASE {name}")
    yield name
    server.query(f"DROP DATABASE {name}")


@pytest.fixture
def connect(server: Named, database: str) -> dict[str, Any]:
    """What MySQLdb.connect, and slim.Datastore, take for the empty database."""
    return {**server.connect, "database": database}


@pytest.fixture
def store(connect: dict[str, Any]) -> Iterator[slim.Datastore]:
    """An empty Datastore."""
    with slim.Datastore(**connect) as store:
        yield store


@pytest.fixture
def sql(connect: dict[str, Any]) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """sql("SELECT …", args) gives the rows, on an autocommitting connection that slim knows nothing of."""
    connection = MySQLdb.connect(**connect, autocommit=True, charset="utf8mb4")

    def sql(statement: str, args: Any = None) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, args)
            return list(cursor.fetchall())

    yield sql
    connection.close()


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether --long was given."""
    return bool(request.config.getoption("long"))
