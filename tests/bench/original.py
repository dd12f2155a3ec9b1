"""The way of 2009, as slim's first version went: one autocommitted statement after another, a query for each entity found."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Sequence
from typing import Any

from contestants import Contestant, Document, Slim, connection
from documents import PROPERTIES


class Original(Contestant):
    name = "2009"

    def open(self) -> None:
        self.properties = list(PROPERTIES) if self.indexed else []
        Slim(self.connect, None, self.indexed).close()  # the same tables
        self.connection = connection(self.connect)

    def fill(self, documents: Sequence[Document]) -> None:
        slim = Slim(self.connect, None, self.indexed)  # it would take minutes
        slim.fill(documents)
        slim.close()

    def execute(self, sql: str, *args: Any) -> Sequence[Any]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, args)
            return cursor.fetchall()

    def put(self, ready: Sequence[Document]) -> None:
        (entity,) = ready
        self.execute("DELETE FROM entities WHERE id = %s", entity["id"])
        self.execute(
            "INSERT INTO entities (id, body) VALUES (%s, _binary %s)",
            entity["id"],
            zlib.compress(pickle.dumps(entity)),
        )
        for name in self.properties:
            self.execute(f"DELETE FROM index_{name} WHERE entity_id = %s", entity["id"])
            self.execute(
                f"INSERT INTO index_{name} ({name}, entity_id) VALUES (%s, %s)",
                entity[name],
                entity["id"],
            )

    replace = put

    def get(self, id: str) -> Any:
        ((body,),) = self.execute("SELECT body FROM entities WHERE id = %s", id)
        return pickle.loads(zlib.decompress(body))

    def find(self, user: str) -> int:
        ids = self.execute("SELECT entity_id FROM index_user_id WHERE user_id = %s", user)
        return len([self.get(id) for (id,) in ids])

    def scan(self, _: object = None) -> int:
        return len(
            [
                pickle.loads(zlib.decompress(body))
                for (body,) in self.execute("SELECT body FROM entities")
            ]
        )

    def close(self) -> None:
        self.connection.close()
