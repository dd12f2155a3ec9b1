"""A scan is one consistent picture, in the order of the puts, however much is written meanwhile and however large it is."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from check import in_threads
from server import Named

import slim


def test_scan_gives_every_entity_once_oldest_put_first(store: slim.Datastore) -> None:
    store.put_many({"id": id} for id in "abc")
    store.put({"id": "a"})
    assert (
        [entity["id"] for entity in store.scan()]
        == [entity["id"] for entity in store]
        == ["b", "c", "a"]
    )


def test_scan_of_nothing_is_empty(store: slim.Datastore) -> None:
    assert list(store) == []


def test_scan_shows_the_moment_when_it_began_while_its_thread_writes(store: slim.Datastore) -> None:
    store.put_many({"id": f"{n:04}", "n": 0} for n in range(2_000))
    scan = store.scan()
    seen = [("0000", next(scan)["n"])]
    store.put({"id": "new"})
    for entity in scan:
        seen.append((entity["id"], entity["n"]))
        if int(entity["id"]) % 100 == 0:
            store.put({**entity, "n": 1})  # it would come once more, at the end
            store.delete(f"{int(entity['id']) + 50:04}")
    assert seen == [(f"{n:04}", 0) for n in range(2_000)]
    assert len(store) == 2_000 - 19 + 1


def test_scan_inside_a_transaction_is_an_error_and_hides_no_write(store: slim.Datastore) -> None:
    with store.transaction():
        store.put({"id": "b"})
        for look in (lambda: list(store.scan()), lambda: next(iter(store)), store.schema):
            with pytest.raises(slim.Error, match="transaction"):
                look()
    assert [entity["id"] for entity in store] == ["b"]


def test_scans_that_are_given_up_share_one_connection(
    server: Named, store: slim.Datastore, database: str
) -> None:
    def connections() -> int:
        return int(
            server.query(
                "SELECT COUNT(*) FROM information_schema.processlist WHERE db = %s", [database]
            )[0][0]
        )

    store.put_many({} for _ in range(1_000))
    before = connections()
    for _ in range(3):
        scan = store.scan()
        next(scan)
        assert connections() <= before + 1
        scan.close()  # type: ignore[attr-defined]
    assert connections() <= before + 1


PEAK = """
import json, os, resource, sys
import slim

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10     # MiB
"""
SMALL = """
with slim.Datastore(**json.loads(sys.argv[1])) as store:
    store.put_many({"n": n, "text": "x" * 200} for n in range(5_000))
    assert sum(1 for _ in store) == 5_000
    before = peak()
    store.put_many({"n": n, "text": "x" * 200} for n in range(5_000, 100_000))
    put = peak()
    total = sum(entity["n"] for entity in store)
    print(json.dumps([total, before, put, peak()]))
"""


def told_by_a_child(program: str, connect: dict[str, Any]) -> Any:
    """What it prints, as JSON. It has peak()."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK + program, json.dumps(connect)],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_hundred_thousand_entities_go_in_and_out_with_flat_memory(
    connect: dict[str, Any],
) -> None:
    total, before, put, scanned = told_by_a_child(SMALL, connect)
    assert total == sum(range(100_000))
    assert scanned - before <= 16, (
        before,
        put,
        scanned,
    )  # MiB; the entities themselves have over 60


LARGE = """
by_kind = slim.Index("index_kind", "kind")
with slim.Datastore(**json.loads(sys.argv[1])) as store:
    for n in range(60):
        store.put({"n": n, "kind": "a", "data": os.urandom(2 << 20)})
    store.put({"n": 60, "kind": "b"})
    before = peak()
    total = sum(entity["n"] for entity in store)
    store.add_index(by_kind, populate=False)
    right = by_kind.populate(store), by_kind.populate(store), by_kind.count(store, kind="a")
    print(json.dumps([total, right, peak() - before]))
"""


def test_scan_and_populate_hold_a_few_large_bodies_at_once(connect: dict[str, Any]) -> None:
    total, right, grown = told_by_a_child(LARGE, connect)
    assert (total, right) == (sum(range(61)), [61, 0, 60])
    # MiB; the entities have 120.
    assert grown <= 24


def test_logger_tells_at_debug_how_far_scan_and_populate_are(
    store: slim.Datastore, caplog: pytest.LogCaptureFixture
) -> None:
    index = store.add_index(slim.Index("index_n", {"n": int}))
    store.put_many({"n": n} for n in range(slim.PAGE + 1))
    caplog.set_level("INFO", logger="slim")
    assert len(list(store)) == slim.PAGE + 1
    assert caplog.messages == []
    caplog.set_level("DEBUG", logger="slim")
    assert len(list(store)) == slim.PAGE + 1
    assert caplog.messages == [f"{slim.PAGE} read", *[f"{slim.PAGE + 1} read"] * 2]
    caplog.clear()
    assert index.populate(store) == 0
    # The rows of the index, then the entities.
    pages = [slim.PAGE, 1, slim.PAGE, 1]
    assert caplog.messages == [f"{sum(pages[: n + 1])} read" for n in range(4)]


def test_scan_may_be_the_first_call_of_a_thread(store: slim.Datastore) -> None:
    store.put_many({"n": n} for n in range(3))
    found: list[Any] = []

    def look() -> None:
        found.append([entity["n"] for entity in store])
        found.append(store.schema()[0]["entities"])

    in_threads(look)
    assert found == [[0, 1, 2], 3]
