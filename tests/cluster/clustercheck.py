"""Tells HAProxy whether a node takes part in its cluster: 200 while it does, else 503, for `option httpchk`.

    python clustercheck.py 9200 3306        # listens on port 9200, asks the server on port 3306 of this machine

A node that accepts connections is not enough: one that lost the majority, or is catching up, answers and must get no work.
"""

from __future__ import annotations

import contextlib
import http.server
import sys
from collections.abc import Mapping
from typing import Any

import MySQLdb

GALERA = "SHOW STATUS LIKE 'wsrep_local_state_comment'"
# A member that is cut off still calls itself ONLINE, and the others UNREACHABLE.
GROUP = """SELECT 'state', IF(NOT @@super_read_only AND SUM(member_id = @@server_uuid AND member_state = 'ONLINE') = 1
  AND 2 * SUM(member_state = 'UNREACHABLE') < COUNT(*), 'Synced', 'Apart')
 FROM performance_schema.replication_group_members"""


def is_synced(connect: Mapping[str, Any]) -> bool:
    """Whether the node of MySQLdb.connect(**connect) takes part in its cluster, and has a majority with it."""
    try:
        connection = MySQLdb.connect(**{**connect, "connect_timeout": 2, "read_timeout": 2})
        try:
            connection.query("SELECT @@version")
            is_mariadb = "MariaDB" in connection.store_result().fetch_row()[0][0]
            connection.query(GALERA if is_mariadb else GROUP)
            return bool(connection.store_result().fetch_row()[0][1] == "Synced")
        finally:
            connection.close()
    except (MySQLdb.Error, IndexError):  # gone; or no cluster's node at all
        return False


def server(port: int, connect: Mapping[str, Any]) -> http.server.ThreadingHTTPServer:
    """An HTTP server on `port` that answers for the node of MySQLdb.connect(**connect); its serve_forever() runs it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # HAProxy hangs up once it has the status
                super().handle()

        def do_GET(self) -> None:
            self.send_response(200 if is_synced(connect) else 503)
            self.end_headers()

        do_OPTIONS = do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return http.server.ThreadingHTTPServer(("", port), Handler)


if __name__ == "__main__":
    node = {
        "host": "127.0.0.1",
        "port": int(sys.argv[2]),
        "read_default_group": "client",
    }  # the account: ~/.my.cnf
    server(int(sys.argv[1]), node).serve_forever()
