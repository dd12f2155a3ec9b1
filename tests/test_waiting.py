"""Who waits for whom while an index is added: a block, a writer, and the change of the catalogue never in a circle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from check import until

import slim

Sql = Callable[..., "list[tuple[Any, ...]]"]
READS = {
    "get": lambda store: store.get("a"),
    "get_many": lambda store: store.get_many(["a", "none"]),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_block_that_has_read_puts_at_once_while_an_index_waits_for_a_writer(
    store: slim.Datastore, sql: Sql, read: Callable[[slim.Datastore], Any]
) -> None:
    """The writer waits for the entity that the block has locked, and the new index for the writer."""
    store.put({"id": "a", "count": 0})
    writer = threading.Thread(target=store.update, args=["a", count_one])
    changer = threading.Thread(target=store.add_index, args=[slim.Index("index_n", {"count": int})])
    with store.transaction():
        read(store)
        writer.start()
        until(lambda: statements(sql, "%FOR UPDATE%"))
        changer.start()
        until(lambda: statements(sql, "ALTER TABLE%"))
        start = time.monotonic()
        store.put({"id": "a", "count": 10})
        waited = time.monotonic() - start
    writer.join()
    changer.join()
    assert waited < 1
    assert [entity["count"] for entity in store.indexes[0].get_all(store, count=11)] == [11]


def count_one(entity: Any) -> None:
    entity["count"] += 1


def statements(sql: Sql, like: str) -> list[tuple[Any, ...]]:
    """What others are running now."""
    ((version,),) = sql("SELECT VERSION()")
    # MySQL's information_schema.processlist fails on a body in a statement.
    schema = "information" if "MariaDB" in version else "performance"
    return sql(
        f"SELECT info FROM {schema}_schema.processlist"
        " WHERE db = DATABASE() AND info LIKE %s AND id <> CONNECTION_ID()",
        [like],
    )
