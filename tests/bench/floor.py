"""The floor: what a careful engineer writes by hand with mysqlclient, for slim's very tables and guarantees.

Whatever can be is prepared before the clock starts: a put is the sending of bytes that are ready, in one packet that is one
transaction. Reading decodes as safely as slim does. Nothing can be faster on this driver.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import MySQLdb
from contestants import BATCH, Contestant, Document, Slim, connection
from documents import PROPERTIES
from MySQLdb.constants import ER

import slim

COLUMNS = "added_id, id, updated, body"
PAGE = 5000


class Floor(Contestant):
    name = "floor"
    guarded = True

    def open(self) -> None:
        Slim(self.connect, None, self.indexed).close()  # makes the tables
        self.local = threading.local()
        self.connections: Any = weakref.WeakSet()  # one ends with its thread
        guards = [name for (name,) in self.query(b"SHOW TABLES LIKE 'entities\\_guard\\_%'")]
        self.is_mariadb = "MariaDB" in self.query(b"SELECT VERSION()")[0][0]
        self.guard = (
            f" AND NOT EXISTS (SELECT 1 FROM {guards[0]})".encode()
            if guards and self.guarded
            else b""
        )

    @property
    def connection(self) -> Any:
        """This thread's."""
        if not hasattr(self.local, "connection"):
            self.local.connection = connection(self.connect)
            self.local.connection.query("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            self.connections.add(self.local.connection)
        return self.local.connection

    def query(self, sql: bytes) -> Any:
        self.connection.query(sql)
        return self.connection.store_result().fetch_row(0)

    def ready(self, documents: Sequence[Document]) -> list[bytes]:
        """Packets that store them."""
        return [
            self.packet(documents[start : start + BATCH])
            for start in range(0, len(documents), BATCH)
        ]

    def packet(self, documents: Sequence[Document]) -> bytes:
        """One transaction: rows of an index in the order of its key, as slim writes them."""
        literal = self.connection.literal
        ids = literal(tuple(sorted(document["id"] for document in documents)))
        rows = [
            b"(%s,_binary'%s')"
            % (literal(document["id"]), self.connection.escape_string(slim.encode(document)))
            for document in documents
        ]
        packet = [
            b"START TRANSACTION",
            b"DELETE FROM entities WHERE id IN %s%s" % (ids, self.guard),
            b"INSERT INTO entities (id, body) VALUES " + b",".join(rows),
        ]
        for name in sorted(PROPERTIES) if self.indexed else ():
            values = sorted((document[name], document["id"]) for document in documents)
            packet += [
                b"DELETE FROM index_%s WHERE entity_id IN %s" % (name.encode(), ids),
                b"INSERT INTO index_%s (%s, entity_id) VALUES %s"
                % (name.encode(), name.encode(), b",".join(map(literal, values))),
            ]
        whole = b";".join([*packet, b"COMMIT"])
        return (
            b"BEGIN NOT ATOMIC %s;END" % whole if self.is_mariadb else whole
        )  # one statement is faster there

    def put(self, ready: list[bytes]) -> None:
        for packet in ready:
            while not self.send(packet):
                self.connection.query("ROLLBACK")

    def send(self, packet: bytes) -> bool:
        """False after a deadlock."""
        mine = self.connection
        try:
            mine.query(packet)
            while mine.next_result() != -1:
                pass
        except MySQLdb.OperationalError as error:
            if error.args[0] != ER.LOCK_DEADLOCK:
                raise
            return False
        return True

    put_many = replace = put

    def get(self, id: str) -> Any:
        (row,) = self.query(f"SELECT {COLUMNS} FROM entities WHERE id = '{id}'".encode())
        return slim.decode(row[3])

    def find(self, user: str) -> int:
        rows = self.query(
            f"SELECT e.added_id, e.id, e.updated, e.body FROM index_user_id AS i STRAIGHT_JOIN entities AS e "
            f"ON e.id = i.entity_id WHERE i.user_id = '{user}' ORDER BY i.entity_id LIMIT {PAGE}".encode()
        )
        return len([slim.decode(row[3]) for row in rows])

    def scan(self, _: object = None) -> int:
        self.connection.query("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        count = after = 0
        while rows := self.query(
            f"SELECT {COLUMNS} FROM entities WHERE added_id > {after} ORDER BY added_id "
            f"LIMIT {PAGE}".encode()
        ):
            for row in rows:
                slim.decode(row[3])
            count, after = count + len(rows), rows[-1][0]
        self.connection.query("COMMIT")
        return count

    def close(self) -> None:
        for each in list(self.connections):
            each.close()


class Unguarded(Floor):
    """Without the guard that keeps a running program from missing a new index: what that costs is the difference."""

    name = "floor, no guard"
    guarded = False
