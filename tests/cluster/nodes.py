"""Clusters of three nodes on this machine: Galera (MariaDB), Group Replication (MySQL in Docker), and HAProxy before them.

    with Galera() as cluster:                           # or GroupReplication()
        MySQLdb.connect(**cluster.nodes[0].connect)
        cluster.nodes[1].kill()                         # SIGKILL
        cluster.nodes[1].start()                        # the same command; returns when the node takes part again

The nodes are the private servers of server.py, on free ports, and gone in the end, also after an exception or a signal.
What is missing is installed by apt-get, which is said first.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import clustercheck
import MySQLdb
from server import START_SECONDS, Server, call, find, free_port, has_docker, succeeds

GALERA = Path("/usr/lib/galera/libgalera_smm.so")


def install(*packages: str) -> None:
    """Installs Debian packages, and says so. Raises CalledProcessError where apt-get cannot."""
    print("slim's tests: apt-get install", *packages, file=sys.stderr, flush=True)
    for command in (
        ["update", "-qq"],
        ["install", "-y", "-qq", "--no-install-recommends", *packages],
    ):
        subprocess.run(
            ["apt-get", *command],
            check=True,
            stdout=sys.stderr,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )


class Node(Server):
    """A server that is in its cluster when `start()` returns."""

    def _wait(self) -> None:
        super()._wait()
        end = time.monotonic() + START_SECONDS
        while not clustercheck.is_synced(self.connect):
            if time.monotonic() > end or not self._runs():
                raise RuntimeError(f"node {self.port} is not in its cluster:\n{self.log()}")
            time.sleep(0.1)


class GaleraNode(Node):
    def __init__(self, group: int, addresses: str) -> None:
        super().__init__(
            "mariadb",
            [
                "--binlog-format=ROW",
                "--innodb-autoinc-lock-mode=2",
                "--wsrep-on=ON",
                f"--wsrep-provider={GALERA}",
                f"--wsrep-cluster-address=gcomm://{addresses}",
                "--wsrep-node-address=127.0.0.1",
                # rsync would block the node that it copies, and fails where the server runs as root
                "--wsrep-sst-method=mariabackup",
                "--wsrep-sst-auth=root:",
                f"--wsrep-sst-receive-address=127.0.0.1:{free_port()}",
                # writers wait for suspect_timeout when a node dies; 5 s unless told
                f"--wsrep-provider-options=base_port={group};gmcast.listen_addr=tcp://127.0.0.1:{group};"
                f"ist.recv_addr=127.0.0.1:{free_port()};evs.keepalive_period=PT0.5S;evs.suspect_timeout=PT2S;"
                "evs.inactive_timeout=PT5S",
            ],
        )

    def bootstrap(self) -> None:
        """Starts it as the first node of a new cluster."""
        self.options.append("--wsrep-new-cluster")
        self.start()
        self.options.pop()


class GroupNode(Node):
    def __init__(self, network: str) -> None:
        super().__init__("mysql")
        self.network = network
        self.others: list[GroupNode] = []
        self.address = f"{self.home.name}:33061"  # a container's name is its host name
        self.setup = [
            "RESET BINARY LOGS AND GTIDS",  # what made the data directory is no history of the group
            "CHANGE REPLICATION SOURCE TO SOURCE_USER='root' FOR CHANNEL 'group_replication_recovery'",
        ]

    def join(self, group: str, number: int, nodes: Sequence[GroupNode]) -> None:
        """Makes it one of these nodes of a group, with which it can start."""
        self.others = [node for node in nodes if node is not self]
        addresses = ",".join(node.address for node in nodes)
        self.options += [
            # read-only till the group says otherwise: what it took before it joins would be lost, or keep it out
            "--super-read-only=ON",
            f"--server-id={number}",
            "--gtid-mode=ON",
            "--enforce-gtid-consistency=ON",
            f"--report-host={self.home.name}",
            "--plugin-load-add=group_replication.so",
            *(
                f"--loose-group-replication-{option}"
                for option in (
                    f"group-name={group}",
                    f"local-address={self.address}",
                    f"group-seeds={addresses}",
                    "start-on-boot=OFF",
                    "single-primary-mode=OFF",
                    "enforce-update-everywhere-checks=ON",
                    "recovery-get-public-key=ON",
                    "member-expel-timeout=0",
                )
            ),
        ]  # writers wait for it, beside 5 s, when a node dies

    def bootstrap(self) -> None:
        """Starts it as the first node of a new group."""
        self.setup.append("SET GLOBAL group_replication_bootstrap_group = ON")
        self.start()
        self.query("SET GLOBAL group_replication_bootstrap_group = OFF")

    def _start_container(self) -> None:
        super()._start_container()
        succeeds(
            "docker", "network", "connect", self.network, self.home.name
        )  # it is already, the second time

    def _wait(self) -> None:
        Server._wait(self)
        end = time.monotonic() + START_SECONDS
        while any(
            map(self._is_member, self.others)
        ):  # the group has not noticed yet that it was killed
            if time.monotonic() > end:
                raise RuntimeError(
                    f"the group of node {self.port} does not let go of it, and has no majority, perhaps"
                )
            time.sleep(0.1)
        try:
            for statement in [*self.setup, "START GROUP_REPLICATION"]:
                self.query(statement)
        except MySQLdb.OperationalError as error:
            raise RuntimeError(f"node {self.port} cannot join ({error}):\n{self.log()}") from error
        self.setup = []
        super()._wait()

    def _is_member(self, other: GroupNode) -> bool:
        """Whether it is one of the group to which the other node belongs."""
        with contextlib.suppress(MySQLdb.OperationalError):
            return bool(
                other.query(
                    "SELECT 1 FROM performance_schema.replication_group_members WHERE member_host = %s",
                    [self.home.name],
                )
            )
        return False


class Cluster:
    """Three nodes; the first bootstraps, the others join it. A session that has run `wait` reads what any node acknowledged.

    defines: how many nodes may write while one of them makes or alters tables. pause: seconds that a writer is to rest after
    each call, so that a node which comes back catches up.
    """

    wait: str
    defines: int
    pause = 0.0
    nodes: Sequence[GaleraNode | GroupNode]

    def __enter__(self) -> Cluster:
        try:
            self.nodes[0].bootstrap()
            for node in self.nodes[1:]:
                node.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


class Galera(Cluster):
    wait, defines = "SET SESSION wsrep_sync_wait = 1", 3

    def __init__(self) -> None:
        if not (
            GALERA.exists()
            and find("wsrep_sst_mariabackup")
            and find("mariadb-backup")
            and find("socat")
        ):
            install("mariadb-server", "galera-4", "mariadb-backup", "socat")
        groups = [free_port() for _ in range(3)]
        addresses = ",".join(f"127.0.0.1:{group}" for group in groups)
        self.nodes = [GaleraNode(group, addresses) for group in groups]


class GroupReplication(Cluster):
    """All three nodes are primary. Raises RuntimeError where no Docker engine has the image."""

    # More are "not supported": MySQL's manual, Group Replication Limitations, "Concurrent DML and DDL Operations"
    wait, defines = "SET SESSION group_replication_consistency = 'BEFORE'", 1
    pause = 0.05  # its applier was outrun for minutes by six writers on two cores

    def __init__(self) -> None:
        if not has_docker():
            raise RuntimeError(
                "Group Replication is tested in containers, and no Docker engine has the image"
            )
        call(
            "docker",
            "network",
            "prune",
            "--force",
            "--filter",
            "label=slim-test",
            "--filter",
            "until=1h",
        )
        group = str(uuid.uuid4())
        self.network = call(
            "docker", "network", "create", "--label=slim-test", f"slim-test-{group}"
        )
        self.nodes = nodes = [GroupNode(self.network) for _ in range(3)]
        for number, node in enumerate(nodes, 1):
            node.join(group, number, nodes)

    def stop(self) -> None:
        super().stop()
        succeeds("docker", "network", "rm", self.network)


@contextlib.contextmanager
def haproxy(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """HAProxy before the nodes, by haproxy.cfg, with a clustercheck for each. Yields what MySQLdb.connect takes."""
    if not find("haproxy"):
        install("haproxy")
    connect = {**cluster.nodes[0].connect, "port": free_port()}
    checks = [clustercheck.server(free_port(), node.connect) for node in cluster.nodes]
    ports = {"port": connect["port"]}
    for number, (node, check) in enumerate(zip(cluster.nodes, checks), 1):
        threading.Thread(target=check.serve_forever, daemon=True).start()
        ports |= {f"node{number}": node.port, f"check{number}": check.server_port}
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as configuration:
        configuration.write(Path(__file__).with_name("haproxy.cfg").read_text().format(**ports))
        configuration.flush()
        process = subprocess.Popen(
            [find("haproxy") or "haproxy", "-q", "-db", "-f", configuration.name]
        )
        try:
            while not clustercheck.is_synced(connect) and process.poll() is None:
                time.sleep(0.1)
            yield connect
        finally:
            process.terminate()
            process.wait()
            for check in checks:
                check.shutdown()
                check.server_close()
