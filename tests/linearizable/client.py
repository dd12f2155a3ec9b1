"""A process of three threads that call slim on a few entities, and note each call for the judge.

    python client.py NAME FILE CONNECT      until the file "stop" stands beside FILE, or the process is killed

Each call has two lines in FILE, in JSON: one is written before it is made, and one when it has returned or raised. Each
line is one write(2), so SIGKILL tears none. Times are of the machine's one monotonic clock.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import MySQLdb

import slim

THREADS = 3
ENTITIES = 40
# Each entity has the index's value for its own, so get_all tells the state of one entity.
INDEX = slim.Index("index_owner", {"owner": int})
VERBS = {
    "get": 20,
    "get_all": 20,
    "put": 20,
    "put with expect": 12,
    "update": 12,
    "delete": 8,
    "delete with expect": 8,
}
# Some bodies are large: slim reads them apart from the small ones.
BLOB = 40_000
BLOB_SHARE = 0.03
# How often what is expected is what a get has just told, and not what some call told long ago.
FRESH_SHARE = 0.7

Told = dict[str, Any]


class Caller:
    """One thread's calls, one after another."""

    def __init__(self, store: slim.Datastore, name: str, file: FileIO) -> None:
        self.store = store
        self.name = name
        self.file = file
        self.numbers = itertools.count()
        self.dice = random.Random(name)
        # {entity: the version that this thread was told of last, 0 if there was none}
        self.versions: dict[int, int] = {}

    def step(self) -> None:
        (verb,) = self.dice.choices([*VERBS], [*VERBS.values()])
        entity = self.dice.randrange(ENTITIES)
        if verb == "get":
            self.get(entity)
        elif verb == "get_all":
            self.get_all(entity)
        elif verb == "update":
            self.update(entity)
        else:
            self.write(entity, verb.split()[0], "expect" in verb)

    def get(self, entity: int) -> None:
        def act(told: Told) -> None:
            found = self.store.get(f"e{entity}")
            told["seen"] = seen([found] if found else [])

        self.call(entity, "get", act)

    def get_all(self, entity: int) -> None:
        def act(told: Told) -> None:
            told["seen"] = seen(INDEX.get_all(self.store, owner=entity))

        self.call(entity, "get_all", act)

    def update(self, entity: int) -> None:
        new = self.whole(entity)
        default: Any = self.dice.choice([None, {}])

        def act(told: Told) -> None:
            def change(found: slim.Entity) -> None:
                told["seen"] = seen([found] if "value" in found else [])
                found.clear()
                found.update(new)

            told["version"] = self.store.update(new["id"], change, default).version

        self.call(entity, "update", act, value=new["value"], default=default is not None)

    def write(self, entity: int, verb: str, expects: bool) -> None:
        if expects and self.dice.random() < FRESH_SHARE:
            self.get(entity)
        expect = self.versions.get(entity, 0) if expects else None
        if verb == "delete":
            # There must be something that could be deleted.
            expect = expect or None
        new = self.whole(entity)

        def put(told: Told) -> None:
            self.store.put(new, expect=expect)

        def delete(told: Told) -> None:
            told["existed"] = self.store.delete(new["id"], expect=expect)

        if verb == "put":
            self.call(entity, verb, put, value=new["value"], expect=expect)
        else:
            self.call(entity, verb, delete, expect=expect)

    def whole(self, entity: int) -> dict[str, Any]:
        """An entity with a value that no other call ever stores."""
        value = f"{self.name}-{next(self.numbers)}"
        blob = self.dice.randbytes(BLOB) if self.dice.random() < BLOB_SHARE else b""
        return {"id": f"e{entity}", "owner": entity, "value": value, "blob": blob}

    def call(self, entity: int, verb: str, act: Callable[[Told], None], **words: Any) -> None:
        """Notes that the call begins, makes it by act(told), and notes what came of it."""
        name = f"{self.name}/{next(self.numbers)}"
        told: Told = {}
        self.note(call=name, id=f"e{entity}", verb=verb, begin=time.monotonic_ns(), **words)
        try:
            act(told)
            told["outcome"] = "done"
        except slim.Conflict as conflict:
            told |= {"outcome": "conflict", "found": conflict.found}
        except KeyError:
            told["outcome"] = "missing"
        except slim.Unknown as error:
            told |= {"outcome": "unknown", "error": repr(error)}
        except Exception as error:
            # Whatever it is: by the contract the call did nothing.
            told |= {"outcome": "failed", "error": repr(error)}
        self.note(call=name, end=time.monotonic_ns(), **told)
        if told["outcome"] == "done" and "seen" in told:
            versions = [found["version"] for found in told["seen"]]
            self.versions[entity] = told.get("version") or max(versions, default=0)

    def note(self, **words: Any) -> None:
        self.file.write(json.dumps(words).encode() + b"\n")


def seen(entities: list[slim.Entity]) -> list[dict[str, Any]]:
    return [{"value": entity["value"], "version": entity.version} for entity in entities]


def opened(connect: dict[str, Any]) -> slim.Datastore:
    """A Datastore. Connections may be killed while it is opened, too."""
    while True:
        try:
            return slim.Datastore(**connect, indexes=[INDEX])
        except MySQLdb.OperationalError:
            time.sleep(0.1)


def main(name: str, path: Path, connect: dict[str, Any]) -> None:
    stop = path.parent / "stop"

    def work(thread: int) -> None:
        caller = Caller(store, f"{name}.{thread}", file)
        while not stop.exists():
            caller.step()

    with opened(connect) as store, open(path, "ab", buffering=0) as file:
        threads = [threading.Thread(target=work, args=[number]) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
