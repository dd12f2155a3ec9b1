"""What is compared: slim itself, and the shape that the others share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import MySQLdb
from documents import PROPERTIES

import slim

Document = dict[str, Any]
BATCH = 1000  # documents of a transaction of put_many


class Contestant:
    """A way to store documents in a database of its own, with the three indexes or none.

    `ready` is called before the clock starts. All other methods do their work in full: what is written is committed,
    what is read is decoded.
    """

    name: ClassVar[str]
    server: ClassVar[str | None] = None  # the kind that it needs

    def __init__(self, connect: dict[str, Any], x_port: int | None, indexed: bool) -> None:
        self.connect, self.x_port, self.indexed = connect, x_port, indexed
        self.open()

    def open(self) -> None:
        raise NotImplementedError

    def ready(self, documents: Sequence[Document]) -> Any:
        """What `put` and `put_many` take."""
        return documents

    def fill(self, documents: Sequence[Document]) -> None:
        """Store documents that stand before the clock starts."""
        self.put_many(self.ready(documents))

    def put(self, ready: Any) -> None:
        """Store one document, new or not."""
        raise NotImplementedError

    replace = put

    def put_many(self, ready: Any) -> None:
        raise NotImplementedError

    def get(self, id: str) -> Any:
        raise NotImplementedError

    def find(self, user: str) -> int:
        """How many documents of a user were read."""
        raise NotImplementedError

    def scan(self, _: object = None) -> int:
        """How many documents there are, all of them read."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Slim(Contestant):
    name = "slim"

    def open(self) -> None:
        self.indexes = (
            [slim.Index(f"index_{name}", {name: cls}) for name, cls in PROPERTIES.items()]
            if self.indexed
            else []
        )
        self.store = slim.Datastore(**self.connect, indexes=self.indexes)

    def put(self, ready: Any) -> None:
        self.store.put(ready[0])

    replace = put

    def put_many(self, ready: Any) -> None:
        self.store.put_many(ready)

    def get(self, id: str) -> Any:
        return self.store.get(id)

    def find(self, user: str) -> int:
        return len(self.indexes[0].get_all(self.store, user_id=user))

    def scan(self, _: object = None) -> int:
        return sum(1 for _ in self.store.scan())

    def close(self) -> None:
        self.store.close()


def connection(connect: dict[str, Any]) -> Any:
    """An autocommitting connection; times as slim's sessions have them."""
    return MySQLdb.connect(
        **connect, charset="utf8mb4", autocommit=True, init_command="SET time_zone = '+00:00'"
    )
