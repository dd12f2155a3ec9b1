"""Who takes part: slim and its first edition, SQL written by hand, and what users would pick instead.

Each has a database of its own, where it keeps the same documents of some 300 bytes and finds them
by three of their properties. A document without an id is new, and gets one in `put`.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import dataset
import MySQLdb
import mysqlx
import peewee
import sqlalchemy as sa
from playhouse.kv import KeyValue
from sqlalchemy.orm import DeclarativeBase, Session

Document = dict[str, Any]

BATCH = 1000
# Documents of each user, which get_all finds.
FOUND = 20
PROPERTIES: dict[str, type] = {"user_id": str, "city": str, "born": int}
CITIES = ["Berlin", "Paris", "Rome", "Lagos", "Quito", "Osaka", "Tromsø", "Zürich"]
WORDS = """the quick brown fox jumps over a lazy dog while every entity keeps its own small story of
words told in many ways to whoever asks for it by name""".split()


def new_id(number: int = 0) -> str:
    """It sorts by its making, as those do that slim makes."""
    return str(uuid.UUID(int=(time.time_ns() << 64) + (number << 32) + random.getrandbits(32)))


def synthetic(count: int, new: bool = False) -> Iterator[Document]:
    """Documents of some 300 bytes when pickled. new: without ids."""
    user = ""
    for number in range(count):
        user = user if number % FOUND else f"user-{uuid.uuid4()}"
        yield {
            **({} if new else {"id": new_id(number)}),
            "user_id": user,
            "city": random.choice(CITIES),
            "born": random.randrange(1920, 2020),
            "title": " ".join(random.choices(WORDS, k=5)),
            "text": " ".join(random.choices(WORDS, k=18)),
            "likes": random.randrange(100),
            "tags": random.sample(WORDS, 3),
        }


def with_id(document: Document) -> Document:
    return document if "id" in document else {"id": new_id(), **document}


class Slim:
    """An edition of slim, by its interface."""

    def __init__(self, name: str, module: Any, connect: dict[str, Any]) -> None:
        self.name = name
        self.indexes = [module.Index(f"index_{key}", {key: cls}) for key, cls in PROPERTIES.items()]
        self.store = module.Datastore(**connect, indexes=self.indexes)
        self.encode, self.decode = module.encode, module.decode
        self.put = self.replace = self.store.put
        self.put_many, self.get, self.delete = (
            self.store.put_many,
            self.store.get,
            self.store.delete,
        )
        self.close = self.store.close

    def get_all(self, user: str) -> list[Any]:
        return list(self.indexes[0].get_all(self.store, user_id=user))

    def scan(self, _: object = None) -> int:
        return sum(1 for _ in self.store.scan())

    def expect(self, entity: Any) -> None:
        self.store.put(entity, expect=entity.version)

    def update(self, id: str) -> None:
        self.store.update(id, lambda entity: entity.update(likes=1))


class Floor:
    """What is written by hand for the same tables: plain pickle, one packet a transaction, no check."""

    name = "floor"
    COLUMNS = "e.added_id, e.id, e.updated, e.body"

    def __init__(self, connect: dict[str, Any]) -> None:
        self.connection = connection(connect)
        self.connection.query("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        self.is_mariadb = "MariaDB" in self.connection.get_server_info()
        self.close = self.connection.close

    def encode(self, document: Document) -> bytes:
        return zlib.compress(pickle.dumps(document, 5), 1)

    def decode(self, body: bytes) -> Any:
        return pickle.loads(zlib.decompress(body))

    def put(self, document: Document) -> None:
        self.put_many([document])

    replace = put

    def put_many(self, documents: Sequence[Document]) -> None:
        for start in range(0, len(documents), BATCH):
            self.connection.query(self.packet(documents[start : start + BATCH]))
            while self.connection.next_result() != -1:
                pass

    def packet(self, documents: Sequence[Document]) -> bytes:
        """One transaction. A packet of one statement is faster on MariaDB."""
        literal = self.connection.literal
        new = "id" not in documents[0]
        documents = [with_id(document) for document in documents]
        ids = literal([document["id"] for document in documents])
        bodies = [literal((document["id"], self.encode(document))) for document in documents]
        packet = [] if new else [b"DELETE FROM entities WHERE id IN " + ids]
        packet.append(b"INSERT INTO entities (id, body) VALUES " + b",".join(bodies))
        for name in PROPERTIES:
            key = name.encode()
            rows = sorted([(document[name], document["id"]) for document in documents])
            packet += [] if new else [b"DELETE FROM index_%s WHERE entity_id IN %s" % (key, ids)]
            packet.append(
                b"INSERT INTO index_%s (%s, entity_id) VALUES %s"
                % (key, key, b",".join(map(literal, rows)))
            )
        whole = b"START TRANSACTION;%s;COMMIT" % b";".join(packet)
        return b"BEGIN NOT ATOMIC %s;END" % whole if self.is_mariadb else whole

    def query(self, sql: str) -> Any:
        self.connection.query(sql.encode())
        return self.connection.store_result().fetch_row(0)

    def get(self, id: str) -> Any:
        ((*_, body),) = self.query(f"SELECT {self.COLUMNS} FROM entities AS e WHERE id = '{id}'")
        return self.decode(body)

    def get_all(self, user: str) -> list[Any]:
        rows = self.query(
            f"SELECT {self.COLUMNS} FROM index_user_id AS i STRAIGHT_JOIN entities AS e"
            f" ON e.id = i.entity_id WHERE i.user_id = '{user}' ORDER BY i.entity_id"
        )
        return [self.decode(body) for *_, body in rows]

    def scan(self, _: object = None) -> int:
        self.connection.query("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        select = f"SELECT {self.COLUMNS} FROM entities AS e WHERE added_id > "
        count = last = 0
        while rows := self.query(f"{select}{last} ORDER BY added_id LIMIT {BATCH}"):
            count += len([self.decode(body) for *_, body in rows])
            last = rows[-1][0]
        self.connection.query("COMMIT")
        return count


class SQLAlchemy:
    """The ORM, a JSON column, and a column with an index for each property."""

    name = "SQLAlchemy"

    def __init__(self, connect: dict[str, Any]) -> None:
        base: Any = type("Base", (DeclarativeBase,), {})
        columns = {
            name: sa.Column(sa.Integer if cls is int else sa.String(191), index=True)
            for name, cls in PROPERTIES.items()
        }
        id = sa.Column(sa.String(36), primary_key=True)
        body = sa.Column(sa.JSON)
        self.model = type(
            "Row", (base,), {"__tablename__": "rows_of_json", "id": id, "body": body, **columns}
        )
        self.engine = sa.create_engine(url(connect))
        base.metadata.create_all(self.engine)
        self.close = self.engine.dispose

    def row(self, document: Document) -> Any:
        document = with_id(document)
        properties = {name: document[name] for name in PROPERTIES}
        return self.model(id=document["id"], body=document, **properties)

    def put(self, document: Document) -> None:
        with Session(self.engine) as session:
            session.add(self.row(document))
            session.commit()

    def replace(self, document: Document) -> None:
        with Session(self.engine) as session:
            session.merge(self.row(document))
            session.commit()

    def put_many(self, documents: Sequence[Document]) -> None:
        for start in range(0, len(documents), BATCH):
            with Session(self.engine) as session:
                session.add_all(map(self.row, documents[start : start + BATCH]))
                session.commit()

    def get(self, id: str) -> Any:
        with Session(self.engine) as session:
            return session.get(self.model, id).body

    def get_all(self, user: str) -> list[Any]:
        model: Any = self.model
        with Session(self.engine) as session:
            return [
                row.body for row in session.scalars(sa.select(model).where(model.user_id == user))
            ]

    def scan(self, _: object = None) -> int:
        select = sa.select(self.model).execution_options(yield_per=BATCH)
        with Session(self.engine) as session:
            return sum(1 for _ in session.scalars(select))


class Dataset:
    """A column for each key; what is no scalar goes in as JSON text, and comes out as that."""

    name = "dataset"

    def __init__(self, connect: dict[str, Any]) -> None:
        self.database = dataset.connect(url(connect).render_as_string(hide_password=False))
        types = self.database.types
        self.table = self.database.create_table("documents", "id", types.string(36))
        for name, cls in PROPERTIES.items():
            self.table.create_column(name, types.integer if cls is int else types.string(191))
            self.table.create_index([name])
        self.close = self.database.close

    def flat(self, document: Document) -> Document:
        return {**with_id(document), "tags": json.dumps(document["tags"])}

    def put(self, document: Document) -> None:
        self.table.insert(self.flat(document))

    def replace(self, document: Document) -> None:
        self.table.update(self.flat(document), ["id"])

    def put_many(self, documents: Sequence[Document]) -> None:
        with self.database as transaction:
            transaction["documents"].insert_many(
                [self.flat(each) for each in documents], chunk_size=BATCH
            )

    def get(self, id: str) -> Any:
        return self.table.find_one(id=id)

    def get_all(self, user: str) -> list[Any]:
        return list(self.table.find(user_id=user))

    def scan(self, _: object = None) -> int:
        return sum(1 for _ in self.table.all())


class Peewee:
    """playhouse.kv.KeyValue: pickles by key. It has no index."""

    name = "KeyValue"

    def __init__(self, connect: dict[str, Any]) -> None:
        self.database = peewee.MySQLDatabase(**connect, charset="utf8mb4")
        self.store = KeyValue(database=self.database)
        self.close = self.database.close

    def put(self, document: Document) -> None:
        document = with_id(document)
        self.store[document["id"]] = document

    replace = put

    def put_many(self, documents: Sequence[Document]) -> None:
        documents = [with_id(document) for document in documents]
        for start in range(0, len(documents), BATCH):
            self.store.update({each["id"]: each for each in documents[start : start + BATCH]})

    def get(self, id: str) -> Any:
        return self.store[id]

    def scan(self, _: object = None) -> int:
        return sum(1 for _ in self.store.items())


class DocumentStore:
    """MySQL's own, over the X protocol: documents are JSON, an index is a generated column."""

    name = "Document Store"
    ACCOUNT = "slim_bench"

    def __init__(self, connect: dict[str, Any], x_port: int) -> None:
        with contextlib.closing(connection(connect)) as admin:
            admin.query(f"CREATE USER IF NOT EXISTS {self.ACCOUNT} IDENTIFIED BY '{self.ACCOUNT}'")
            admin.query(f"GRANT ALL ON {connect['database']}.* TO {self.ACCOUNT}")
        account = {
            "host": connect["host"],
            "port": x_port,
            "user": self.ACCOUNT,
            "password": self.ACCOUNT,
        }
        # By TLS once; then the server takes the password without, as the others' connections are.
        # Compressed, a packet of a thousand documents is refused with error 5171.
        mysqlx.get_session(account).close()
        options = {"ssl-mode": "disabled", "compression": "disabled"}
        self.session = mysqlx.get_session({**account, **options})
        self.close = self.session.close
        schema = self.session.get_schema(connect["database"])
        self.collection = schema.create_collection("documents")
        for name, cls in PROPERTIES.items():
            type_ = "INT" if cls is int else "TEXT(64)"
            fields = [{"field": f"$.{name}", "type": type_}]
            self.collection.create_index(f"index_{name}", {"fields": fields}).execute()

    def put(self, document: Document) -> None:
        self.put_many([document])

    def replace(self, document: Document) -> None:
        self.collection.replace_one(key(document["id"]), named(document))

    def put_many(self, documents: Sequence[Document]) -> None:
        for start in range(0, len(documents), BATCH):
            self.collection.add(*map(named, documents[start : start + BATCH])).execute()

    def get(self, id: str) -> Any:
        return self.collection.get_one(key(id))

    def get_all(self, user: str) -> list[Any]:
        # A statement that is executed again is prepared, and MySQL 9.7 uses no index for that.
        found = self.collection.find("user_id = :user").bind("user", user).execute()
        return [dict(document) for document in found.fetch_all()]

    def scan(self, _: object = None) -> int:
        return sum(1 for _ in self.collection.find().execute().fetch_all())


def key(id: str) -> str:
    """The Document Store's have 32 characters at the most."""
    return id.replace("-", "")


def named(document: Document) -> Document:
    document = with_id(document)
    return {"_id": key(document["id"]), **document}


def url(connect: dict[str, Any]) -> sa.URL:
    rest = {name: str(value) for name, value in connect.items()}
    account = [rest.pop("user"), rest.pop("password"), rest.pop("host")]
    place = int(rest.pop("port", 3306)), rest.pop("database")
    return sa.URL.create("mysql+mysqldb", *account, *place, {**rest, "charset": "utf8mb4"})


def connection(connect: dict[str, Any]) -> Any:
    """An autocommitting connection; times as slim's sessions have them."""
    return MySQLdb.connect(
        **connect, charset="utf8mb4", autocommit=True, init_command="SET time_zone = '+00:00'"
    )
