"""What servers do by default that other versions of them do not."""

from __future__ import annotations

import threading
import time

import pytest
from server import Named, Server

import slim

# Since MySQL 8.4 a member that Group Replication has expelled goes offline; before, it became read-only.
CLOSED = {
    "mysql": ["offline_mode", "read_only"],
    "mariadb": ["read_only"],
}
SECONDS = 1


def test_call_waits_for_a_server_that_takes_no_writes_or_is_offline(server: Named) -> None:
    if not isinstance(server, Server):
        pytest.skip("a named server is not closed to others")
    with Server(server.name) as own:
        own.query("CREATE DATABASE d")
        own.query("CREATE USER someone IDENTIFIED BY ''")
        own.query("GRANT ALL ON d.* TO someone")
        account = {**own.connect, "user": "someone", "database": "d"}
        with slim.Datastore(**account) as store:
            for variable in CLOSED[own.kind]:
                own.query(f"SET GLOBAL {variable} = ON")
                opens = threading.Timer(SECONDS, own.query, [f"SET GLOBAL {variable} = OFF"])
                opens.start()
                start = time.monotonic()
                try:
                    id = store.put({"closed by": variable})
                finally:
                    opens.join()
                assert time.monotonic() - start > SECONDS * 0.9
                assert store.get(id) == {"id": id, "closed by": variable}
