"""A writer that notes what it was told, and an auditor that shares no code with slim but its codec."""

from __future__ import annotations

import collections
import contextlib
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import MySQLdb
from nodes import Cluster, Node

import slim

HOT = 4  # keys of each kind that all writers fight for
INDEXES = [
    slim.Index("index_user", "user"),
    slim.Index("index_place", ["country", "city"]),
    slim.Index("index_email", {"email": str}, unique=True),
    slim.Index("index_count", {"count": int}),
]
LATER = slim.Index("index_mark", "mark")  # added when they are running
FAILURES = slim.Conflict, slim.Duplicate, KeyError  # of a single call, and no news of the cluster


# {table: its rows}
Tables = dict[str, list[tuple[Any, ...]]]


class Notes(NamedTuple):
    """What the calls of one writer returned."""

    put: set[tuple[str, str]]  # (id, mark) of each put that returned
    deleted: set[str]  # ids of which each delete returned; no other writer knows them
    counted: collections.Counter[
        str
    ]  # how often update, or put with expect, added 1 to this id and returned
    unknown: collections.Counter[str]  # how often the same raised Unknown; put or delete: in doubt
    errors: collections.Counter[
        str
    ]  # what slim raised of Unknown and of the driver's errors, after it had tried again
    calls: int


def write(connect: dict[str, Any], name: str, stop: Path, pause: float) -> Notes:
    """Puts, puts with expect, updates and deletes, on few keys, with a pause after each, until the file `stop` is there and a put
    has come through: a node's writers may wait for long while another's win all certifications."""
    notes = Notes(
        set(), set(), collections.Counter(), collections.Counter(), collections.Counter(), 0
    )
    dice, calls, own = random.Random(name), 0, []
    with slim.Datastore(**connect) as store:
        stop.with_name(name).touch()
        while not stop.exists() or not notes.put:
            time.sleep(pause)
            calls, mark, key = calls + 1, f"{name}-{calls}", dice.randrange(HOT)
            verb = dice.choice(["put", "put hot", "expect", "update", "delete"])
            id = {
                "put": mark,
                "put hot": f"hot-{key}",
                "expect": f"expect-{key}",
                "update": f"update-{key}",
                "delete": own.pop() if own else mark,
            }[verb]
            try:
                if verb.startswith("put"):
                    store.put(entity(dice, id, mark))
                    notes.put.add((id, mark))
                    own += [id] * (verb == "put" and dice.random() < 0.5)
                elif verb == "delete":
                    store.delete(id)
                    notes.deleted.add(id)
                elif verb == "update":
                    store.update(id, lambda entity: entity.update(count=entity["count"] + 1))
                    notes.counted[id] += 1
                elif found := store.get(id):
                    store.put({**found, "count": found["count"] + 1}, expect=found.version)
                    notes.counted[id] += 1
            except FAILURES:
                pass
            except slim.Unknown as error:
                notes.unknown[id] += 1
                notes.errors[str(error)] += 1
            except MySQLdb.Error as error:  # known not to be done
                notes.errors[str(error)] += 1
    return notes._replace(calls=calls)


def entity(dice: random.Random, id: str, mark: str) -> dict[str, Any]:
    """An entity that is in some of the indexes."""
    whole = {
        "id": id,
        "mark": mark,
        "user": f"user-{dice.randrange(9)}",
        "country": dice.choice("abc"),
        "city": mark,
        "count": dice.randrange(9),
        "email": f"{dice.randrange(30)}@example.org",
    }
    return {
        name: value
        for name, value in whole.items()
        if name in ("id", "mark") or dice.random() < 0.7
    }


def keep_versions(connect: dict[str, Any]) -> None:
    """From then on the server itself keeps every version that is put, in the table `versions`."""
    with contextlib.closing(MySQLdb.connect(**connect, autocommit=True)) as connection:
        connection.query("""
            CREATE TABLE versions (number BIGINT AUTO_INCREMENT PRIMARY KEY, id VARCHAR(36), body MEDIUMBLOB)""")
        connection.query("""
            CREATE TRIGGER keep_version AFTER INSERT ON entities FOR EACH ROW
            INSERT INTO versions (id, body) VALUES (NEW.id, NEW.body)""")


def rows(cluster: Cluster, node: Node, database: str) -> Tables:
    """All rows of all tables, sorted, as this node has them when it has caught up with the others."""
    return read({**node.connect, "database": database}, cluster.wait)


def read(connect: dict[str, Any], *setup: str) -> Tables:
    """All rows of all tables, sorted; of entities and their versions the id and the body first."""
    connection = MySQLdb.connect(**connect, charset="utf8mb4")
    with connection.cursor() as cursor:
        for statement in setup:
            cursor.execute(statement)
        cursor.execute("SHOW TABLES")
        result = {}
        for (table,) in cursor.fetchall():
            first = "id, body, " if table in ("entities", "versions") else ""
            cursor.execute(f"SELECT {first}{table}.* FROM {table}")
            result[table] = sorted(cursor.fetchall(), key=repr)
    connection.close()
    return result


def disagreements(
    tables: Tables,
) -> list[tuple[str, str, tuple[Any, ...]]]:
    """The index rows that are missing or superfluous, by what the bodies say."""
    entities = {id: slim.decode(body) for id, body, *_ in tables["entities"]}
    found = []
    for index in [*INDEXES, *[LATER] * (LATER.table in tables)]:
        names = list(index.types)
        wanted = {
            (*(entity[name] for name in names), id)
            for id, entity in entities.items()
            if all(entity.get(name) is not None for name in names)
        }
        stored = set(tables[index.table])
        found += [(index.table, "missing", row) for row in wanted - stored]
        found += [(index.table, "superfluous", row) for row in stored - wanted]
    return found


def lost(tables: Tables, all_notes: list[Notes]) -> list[Any]:
    """Acknowledged puts that are no version, deleted entities that stand, own entities that are gone, counts that differ."""
    versions = {(id, slim.decode(body).get("mark")) for id, body, *_ in tables["versions"]}
    entities = {id: slim.decode(body) for id, body, *_ in tables["entities"]}
    deleted = set().union(*(notes.deleted for notes in all_notes))
    unknown: collections.Counter[str] = sum(
        (notes.unknown for notes in all_notes), collections.Counter()
    )
    counted: collections.Counter[str] = sum(
        (notes.counted for notes in all_notes), collections.Counter()
    )
    found: list[Any] = [put for notes in all_notes for put in notes.put if put not in versions]
    found += [(id, "deleted, but stands") for id in deleted & entities.keys()]
    found += [
        (id, "put, but gone")
        for notes in all_notes
        for id, _ in notes.put
        if id not in entities and id not in deleted and not unknown[id]
    ]
    return found + [
        (id, counted[id], unknown[id], entities[id]["count"])
        for id in entities
        if id.startswith(("expect-", "update-"))
        and not counted[id] <= entities[id]["count"] <= counted[id] + unknown[id]
    ]
