"""A client under load that notes what it was told, as a process that may be killed, and their audit.

A client has entities of its own, which nobody else writes, and fights with the others for a few hot
ones, and for one in which each counts what it did. Each call is noted before it is made, and when it has returned: so a write that is noted as
done was acknowledged, and of the last one of a client that was killed it is not known.
"""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import random
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import MySQLdb
from check import load, queries

import slim

# Entities of each client, and of all.
OWN, HOT = 6, 3
VERBS = (
    "put",
    "delete",
    "update",
    "expect",
    "many",
    "transaction",
    "hot put",
    "hot update",
    "hot delete",
    "hot count",
    "hot count expecting",
)
# {name of a client: how often it added 1}.
COUNTS = "hot.counts"
INDEXES = [
    slim.Index("index_user", "user"),
    slim.Index("index_place", ["country", "city"]),
    slim.Index("index_number", {"number": int}),
    slim.Index("index_mark", "mark", unique=True),
]

# It has no threads, whose locks a fork would copy as they are.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "load"])

# What a call writes: {id: mark}, None where it deletes.
Writes = dict[str, "str | None"]


def whole(id: str, mark: str) -> dict[str, Any]:
    """The entity that carries this mark, the same in all processes; 100 bytes to 20 kB."""
    dice = random.Random(f"{id} {mark}")
    return {
        "id": id,
        "mark": f"{id} {mark}",
        "user": dice.choice([None, "bob", "Bob", "ann"]),
        "number": dice.randrange(5),
        **({"country": dice.choice("ab"), "city": mark} if dice.random() < 0.7 else {}),
        "blob": dice.randbytes(dice.choice([0, 300, 20_000])),
    }


def start(connect: dict[str, Any], name: str, notes: Path) -> BaseProcess:
    """A client that works until it is killed, or the file `stop` stands beside its notes."""
    client = CONTEXT.Process(target=work, args=(connect, name, notes), daemon=True)
    client.start()
    return client


def work(connect: dict[str, Any], name: str, notes: Path) -> None:
    dice = random.Random(name)
    with slim.Datastore(**connect) as store, open(notes / name, "ab", buffering=0) as file:
        for number in itertools.count():
            if (notes / "stop").exists():
                return
            verb, mark = dice.choice(VERBS), f"{name}-{number}"
            writes = planned(dice, verb, name, mark)
            # A line is one write(2): SIGKILL does not tear it.
            file.write(f"{number}\tbegin\t{writes!r}\n".encode())
            try:
                call(store, verb, writes)
                outcome = "done"
            except slim.Conflict:
                outcome = "not"
            except slim.Unknown as error:
                outcome = resolve(store, writes)
                file.write(f"{number}\terror\t{verb}: Unknown: {error}\n".encode())
            except MySQLdb.OperationalError as error:
                # It is promised that this was not done.
                outcome = "not"
                file.write(f"{number}\terror\t{verb}: {error}\n".encode())
            file.write(f"{number}\t{outcome}\n".encode())


def planned(dice: random.Random, verb: str, name: str, mark: str) -> Writes:
    own = [f"{name}.{n}" for n in dice.sample(range(OWN), 3)]
    if verb.startswith("hot count"):
        return {COUNTS: mark}
    if verb.startswith("hot"):
        return {f"hot.{dice.randrange(HOT)}": None if verb == "hot delete" else mark}
    if verb in ("many", "transaction"):
        return {own[0]: mark, own[1]: mark, own[2]: None if verb == "transaction" else mark}
    return {own[0]: None if verb == "delete" else mark}


def call(store: slim.Datastore, verb: str, writes: Writes) -> None:
    """Makes the writes by the verb."""
    (id, mark), *_ = writes.items()
    if id == COUNTS:
        count(store, str(mark).split("-")[0], verb)
    elif verb.endswith("put"):
        store.put(whole(id, str(mark)))
    elif verb.endswith("delete"):
        store.delete(id)
    elif verb.endswith("update"):
        store.update(id, lambda entity: replace(entity, whole(id, str(mark))), default={})
    elif verb == "expect":
        found = store.get(id)
        store.put(whole(id, str(mark)), expect=found.version if found else 0)
    elif verb == "many":
        store.put_many(whole(id, str(mark)) for id, mark in writes.items())
    else:
        with store.transaction():
            for id, mark in writes.items():
                store.put(whole(id, mark)) if mark else store.delete(id)


def count(store: slim.Datastore, name: str, verb: str) -> None:
    """Adds 1 to what this client has in the entity of all."""

    def add_one(entity: dict[str, Any]) -> None:
        entity[name] = entity.get(name, 0) + 1

    if verb == "hot count":
        store.update(COUNTS, add_one, default={})
    else:
        found = store.get(COUNTS)
        entity = {"id": COUNTS, **(found or {})}
        add_one(entity)
        store.put(entity, expect=found.version if found else 0)


def replace(entity: slim.Entity, by: dict[str, Any]) -> None:
    entity.clear()
    entity.update(by)


def resolve(store: slim.Datastore, writes: Writes) -> str:
    """Whether a call that raised Unknown was done, as the client's own entities tell it."""
    if any(id.startswith("hot") for id in writes):
        return "unknown"
    marks = {id: mark for id, mark in writes.items() if mark}
    if not marks:
        # There may have been none before. The audit looks at those.
        return "unknown"
    found = store.get_many(marks)
    done = {id in found and found[id]["mark"] == f"{id} {mark}" for id, mark in marks.items()}
    if len(done) > 1:
        return "half"
    return "done" if done.pop() else "not"


class Audit:
    """What the notes of all clients say, held against what the database has.

    done: how many calls were acknowledged. unknown: how many neither returned nor could be resolved
    by reading. errors: what calls raised, by its text. wrong: acknowledged writes that are lost,
    done twice or bent.
    """

    def __init__(self, connect: dict[str, Any], notes: Path) -> None:
        self.done = 0
        self.unknown = 0
        self.errors = collections.Counter[str]()
        self.wrong: list[str] = []
        # Marks that a hot entity may carry: of each client the last one, None if it was deleted.
        self.hot = collections.defaultdict[str, "set[str | None]"](set)
        with queries(connect) as query:
            bodies = query("SELECT id, body FROM entities")
            self.entities: dict[str, Any] = {id: load(body) for id, body in bodies}
        for file in sorted(notes.iterdir()):
            calls = list(self._calls(file))
            self.done += sum(outcome == "done" for _, outcome in calls)
            self.unknown += sum(outcome == "unknown" for _, outcome in calls)
            self._audit_own(file.name, calls)
            self._audit_counts(file.name, calls)
            self._note_hot(calls)
        for id, marks in self.hot.items():
            found = self.entities.get(id)
            if found not in [mark and whole(id, mark) for mark in marks]:
                self.wrong.append(f"{id} is {found}, which is none of {marks}")

    def _calls(self, file: Path) -> Iterator[tuple[Writes, str]]:
        writes: Writes = {}
        for line in file.read_text().splitlines():
            _, word, *rest = line.split("\t")
            if word == "begin":
                if writes:
                    yield writes, "unknown"
                # They are our own dictionaries of strings.
                writes = eval(rest[0])
            elif word == "error":
                self.errors[rest[0]] += 1
            else:
                yield writes, word
                writes = {}
        if writes:
            yield writes, "unknown"

    def _audit_own(self, name: str, calls: list[tuple[Writes, str]]) -> None:
        # States in which this client's own entities may be.
        possible: list[Writes] = [{}]
        for writes, outcome in calls:
            if outcome == "half":
                self.wrong.append(f"{name} saw a half of {writes}")
            if not any(id.startswith("hot") for id in writes):
                after = [{**state, **writes} for state in possible]
                if outcome == "done":
                    possible = after
                elif outcome == "unknown":
                    possible = possible + after
        own = [f"{name}.{n}" for n in range(OWN)]
        found = {id: self.entities[id] for id in own if id in self.entities}
        wanted = [{id: whole(id, mark) for id, mark in state.items() if mark} for state in possible]
        if found not in wanted:
            self.wrong.append(f"{name} has {found}, which is none of what it was told: {possible}")

    def _audit_counts(self, name: str, calls: list[tuple[Writes, str]]) -> None:
        """A call that is done has added 1, and one that is not has added nothing."""
        outcomes = collections.Counter(outcome for writes, outcome in calls if COUNTS in writes)
        found = self.entities.get(COUNTS, {}).get(name, 0)
        least = outcomes["done"]
        if not least <= found <= least + outcomes["unknown"]:
            self.wrong.append(f"{name} counted {found}, but was told {outcomes}")

    def _note_hot(self, calls: list[tuple[Writes, str]]) -> None:
        last = collections.defaultdict[str, "set[str | None]"](lambda: {None})
        for writes, outcome in calls:
            for id, mark in writes.items():
                if id == COUNTS or not id.startswith("hot"):
                    continue
                if outcome == "done":
                    last[id] = {mark}
                elif outcome == "unknown":
                    last[id] = {*last[id], mark}
        for id, marks in last.items():
            self.hot[id] |= marks
