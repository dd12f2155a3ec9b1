"""Fixtures: a test that asks for `cluster` runs on Galera, and on Group Replication where Docker can start it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest
from nodes import Cluster, Galera, GroupReplication
from server import has_docker

CLUSTERS = {"mariadb": Galera, "mysql": GroupReplication}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cluster" in metafunc.fixturenames:
        kind = metafunc.config.getoption("server")
        able = [
            each
            for each in CLUSTERS
            if each == kind or kind is None and (each != "mysql" or has_docker())
        ]
        metafunc.parametrize("cluster", able, indirect=True, scope="session")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three running nodes: `.nodes`, each with `.connect`, `.query(sql)`, `.kill()` and `.start()`."""
    with CLUSTERS[request.param]() as cluster:
        yield cluster


@pytest.fixture
def shared(cluster: Cluster) -> Iterator[str]:
    """The name of an empty database that all nodes have: who names it in a handshake does not wait for one that lags."""
    name = f"slim_test_{uuid.uuid4().hex}"
    cluster.nodes[0].query(f"CREATE DATABASE {name}")
    for node in cluster.nodes:
        while not node.query(
            "SELECT 1 FROM information_schema.schemata WHERE schema_name = %s", [name]
        ):
            time.sleep(0.1)
    yield name
    cluster.nodes[0].query(f"DROP DATABASE {name}")
