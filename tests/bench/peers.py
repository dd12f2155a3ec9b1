"""What users would pick instead, each as its documentation recommends, with the same three indexed properties."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import dataset
import mysqlx
import peewee
import sqlalchemy as sa
from contestants import BATCH, Contestant, Document, connection
from documents import PROPERTIES
from playhouse.kv import KeyValue
from sqlalchemy.orm import DeclarativeBase, Session

ACCOUNT = "slim_bench"  # on the private server


def plain(document: Document) -> Document:
    """What JSON can say of it: dates and the like as text."""
    return dict(json.loads(json.dumps(document, default=str)))


def url(connect: dict[str, Any]) -> sa.URL:
    rest = dict(connect)
    return sa.URL.create(
        "mysql+mysqldb",
        rest.pop("user"),
        rest.pop("password"),
        rest.pop("host"),
        rest.pop("port", None),
        rest.pop("database"),
        {**{name: str(value) for name, value in rest.items()}, "charset": "utf8mb4"},
    )


def key(id: str) -> str:
    """The Document Store's have 32 characters at the most."""
    return id.replace("-", "")


class DocumentStore(Contestant):
    """MySQL's own, over the X protocol: documents are JSON, an index is a generated column."""

    name, server = "Document Store", "mysql"

    def open(self) -> None:
        if self.x_port is None:
            raise ValueError("the X protocol's port is not known")
        with contextlib.closing(connection(self.connect)) as admin:
            admin.query(f"CREATE USER IF NOT EXISTS {ACCOUNT} IDENTIFIED BY '{ACCOUNT}'")
            admin.query(f"GRANT ALL ON {self.connect['database']}.* TO {ACCOUNT}")
        account = {
            "host": self.connect["host"],
            "port": self.x_port,
            "user": ACCOUNT,
            "password": ACCOUNT,
        }
        mysqlx.get_session(
            account
        ).close()  # by TLS once; then the server takes its word without, as the
        # others are. Compressed, a packet of a thousand documents is refused: 5171, "Payload decompression failed".
        self.session = mysqlx.get_session(
            {**account, "ssl-mode": "disabled", "compression": "disabled"}
        )
        schema = self.session.get_schema(self.connect["database"])
        self.collection = schema.create_collection("documents")
        for name, cls in PROPERTIES.items() if self.indexed else ():
            kind = {"type": "INT"} if cls is int else {"type": "TEXT(64)"}
            self.collection.create_index(
                f"index_{name}", {"fields": [{"field": f"$.{name}", **kind}]}
            ).execute()

    def ready(self, documents: Sequence[Document]) -> list[Document]:
        return [{"_id": key(document["id"]), **plain(document)} for document in documents]

    def put(self, ready: Any) -> None:
        self.collection.add(ready[0]).execute()

    def replace(self, ready: Any) -> None:
        self.collection.replace_one(ready[0]["_id"], ready[0])

    def put_many(self, ready: Any) -> None:
        for start in range(0, len(ready), BATCH):
            self.collection.add(*ready[start : start + BATCH]).execute()

    def get(self, id: str) -> Any:
        return self.collection.get_one(key(id))

    def find(self, user: str) -> int:
        # A statement made anew: one that is executed again is prepared, and MySQL 9.7 does not use the index for that.
        found = self.collection.find("user_id = :user").bind("user", user).execute()
        return len([dict(document) for document in found.fetch_all()])

    def scan(self, _: object = None) -> int:
        return sum(1 for _ in self.collection.find().execute().fetch_all())

    def close(self) -> None:
        self.session.close()


class SQLAlchemy(Contestant):
    """The ORM, a JSON column, and a column with an index for each property."""

    name = "SQLAlchemy"

    def open(self) -> None:
        class Base(DeclarativeBase):
            pass

        columns = {
            name: sa.Column(sa.Integer if cls is int else sa.String(191), index=True)
            for name, cls in PROPERTIES.items()
            if self.indexed
        }
        self.model: Any = type(
            "Row",
            (Base,),
            {
                "__tablename__": "rows_of_json",
                "id": sa.Column(sa.String(36), primary_key=True),
                "body": sa.Column(sa.JSON),
                **columns,
            },
        )
        self.engine = sa.create_engine(url(self.connect))
        Base.metadata.create_all(self.engine)

    def ready(self, documents: Sequence[Document]) -> list[Document]:
        return [plain(document) for document in documents]

    def row(self, document: Document) -> Any:
        return self.model(
            id=document["id"],
            body=document,
            **{name: document[name] for name in PROPERTIES if self.indexed},
        )

    def put(self, ready: Any) -> None:
        with Session(self.engine) as session:
            session.add(self.row(ready[0]))
            session.commit()

    def replace(self, ready: Any) -> None:
        with Session(self.engine) as session:
            session.merge(self.row(ready[0]))
            session.commit()

    def put_many(self, ready: Any) -> None:
        for start in range(0, len(ready), BATCH):
            with Session(self.engine) as session:
                session.add_all(map(self.row, ready[start : start + BATCH]))
                session.commit()

    def get(self, id: str) -> Any:
        with Session(self.engine) as session:
            return session.get(self.model, id).body

    def find(self, user: str) -> int:
        with Session(self.engine) as session:
            rows = session.scalars(sa.select(self.model).where(self.model.user_id == user))
            return len([row.body for row in rows])

    def scan(self, _: object = None) -> int:
        with Session(self.engine) as session:
            return sum(
                1 for _ in session.scalars(sa.select(self.model).execution_options(yield_per=BATCH))
            )

    def close(self) -> None:
        self.engine.dispose()


class Dataset(Contestant):
    """A column for each key; what is no scalar goes in as JSON text."""

    name = "dataset"

    def open(self) -> None:
        self.database = dataset.connect(url(self.connect).render_as_string(hide_password=False))
        self.table = self.database.create_table("documents", "id", self.database.types.string(36))
        for name, cls in PROPERTIES.items():
            self.table.create_column(
                name, self.database.types.integer if cls is int else self.database.types.string(191)
            )
            if self.indexed:
                self.table.create_index([name])

    def ready(self, documents: Sequence[Document]) -> list[Document]:
        return [
            {
                name: json.dumps(value) if isinstance(value, (list, dict)) else value
                for name, value in document.items()
            }
            for document in documents
        ]

    def put(self, ready: Any) -> None:
        self.table.insert(ready[0])

    def replace(self, ready: Any) -> None:
        self.table.update(ready[0], ["id"])

    def put_many(self, ready: Any) -> None:
        with self.database as transaction:
            transaction["documents"].insert_many(ready, chunk_size=BATCH)

    def get(self, id: str) -> Any:
        return self.table.find_one(id=id)

    def find(self, user: str) -> int:
        return sum(1 for _ in self.table.find(user_id=user))

    def scan(self, _: object = None) -> int:
        return sum(1 for _ in self.table.all())

    def close(self) -> None:
        self.database.close()


class Peewee(Contestant):
    """playhouse.kv.KeyValue: pickles by key, and no index."""

    name = "peewee KeyValue"

    def open(self) -> None:
        self.database = peewee.MySQLDatabase(**self.connect, charset="utf8mb4")
        self.store = KeyValue(database=self.database)

    def put(self, ready: Any) -> None:
        self.store[ready[0]["id"]] = ready[0]

    replace = put

    def put_many(self, ready: Any) -> None:
        for start in range(0, len(ready), BATCH):
            self.store.update(
                {document["id"]: document for document in ready[start : start + BATCH]}
            )

    def get(self, id: str) -> Any:
        return self.store[id]

    def scan(self, _: object = None) -> int:
        return sum(1 for _ in self.store.items())

    def close(self) -> None:
        self.database.close()
