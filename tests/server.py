"""Private MySQL and MariaDB servers for the tests: started on demand, at their default durability, gone afterwards.

    >>> from server import Server
    >>> with Server("mysql", ["--max-allowed-packet=1M"]) as server:        # seconds: it makes a new data directory
    ...     connection = MySQLdb.connect(**server.connect)
    ...     server.kill()                                                   # SIGKILL, as in a power cut
    ...     server.start()                                                  # the same data, the same port

Three names of server are known:

    mysql           a container of the image mysql:9.7 where a Docker engine answers, else a mysqld found on this machine
    mariadb         the mariadbd found on this machine
    mariadb-11.8    the same where it is 11.8 or newer, else a container of the image mariadb:11.8

`.name` is one of these, and starts another server of the same kind; `.kind` is "mysql" or "mariadb". No server touches
a database that it did not create. Each has a temporary directory slim-test-<pid>-…, by which the next run finds and
removes what a killed one has left behind.

SLIM_SERVER=mysql://user:password@host:port, or mysql://user:password@/?unix_socket=/path, names a server of your own;
further parameters of MySQLdb.connect may follow the question mark.

    python tests/server.py run COMMAND …    run a command with SLIM_SERVER set to a new private server; it is left
                                            running afterwards if --keep is among the command's arguments
    python tests/server.py stop             stop what --keep has left running
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import MySQLdb

TITLES = {"mysql": "MySQL", "mariadb": "the system's MariaDB", "mariadb-11.8": "MariaDB 11.8"}
IMAGES = {"mysql": "mysql:9.7", "mariadb-11.8": "mariadb:11.8"}
START_SECONDS = 180  # a first start writes some 200 MB
LOG_LINES = 15
LOCK_SECONDS = 10  # a DROP fails while a test's transaction is open, instead of waiting for a year
SOCKET = "localhost"  # the host that MySQL's client library takes for "by Unix socket"


class Named:
    """A server that somebody else runs, from its URL: `kind` ("mysql" or "mariadb") and what MySQLdb.connect takes."""

    name: str

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "mysql":
            raise ValueError("SLIM_SERVER is to be mysql://user:password@host:port")
        self.connect: dict[str, Any] = {
            "host": parts.hostname or SOCKET,
            "user": unquote(parts.username or ""),
            "password": unquote(parts.password or ""),
            **dict(parse_qsl(parts.query)),
        }
        if parts.port:
            self.connect["port"] = parts.port
        self.kind = "mariadb" if "MariaDB" in self.query("SELECT VERSION()")[0][0] else "mysql"
        self.name = self.kind

    def query(self, sql: str, args: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """The rows of one statement, run on a connection of its own."""
        connection = MySQLdb.connect(
            **self.connect,
            connect_timeout=10,
            autocommit=True,
            charset="utf8mb4",
            init_command=f"SET lock_wait_timeout={LOCK_SECONDS}",
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql, args)
                return list(cursor.fetchall())
        finally:
            connection.close()

    @property
    def url(self) -> str:
        """What SLIM_SERVER takes."""
        more = dict(self.connect)
        account = f"{quote(more.pop('user'), '')}:{quote(more.pop('password'), '')}"
        return f"mysql://{account}@{more.pop('host')}:{more.pop('port', '')}/?{urlencode(more)}"

    def __enter__(self) -> Named:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class Server(Named):
    """A private server of a name, with further options for mysqld; root has no password, over TCP from 127.0.0.1.

    It starts with `start()` or as a context manager, and `connect` is good then. `x_port` is for MySQL's X protocol.
    """

    def __init__(self, name: str, options: Iterable[str] = ()) -> None:
        self.name = name
        self.kind = name.partition("-")[0]
        self.options = list(options)
        self.port, self.x_port = free_port(), free_port()
        # No TLS: the tests look at the packets, and the account has no password that could vouch for a certificate.
        self.connect = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "root",
            "password": "",
            "ssl_mode": "DISABLED",
        }
        self._home: Path | None = None
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._docker = starts_container(name)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def home(self) -> Path:
        """Its temporary directory. Its name is the container's name too."""
        if self._home is None:
            sweep()
            stop_on_signals()
            atexit.register(self.stop)
            self._home = Path(tempfile.mkdtemp(prefix=f"slim-test-{self._owner}-"))
        return self._home

    def start(self) -> None:
        """Start it, the first time on an empty data directory, and return when it answers.

        Raises RuntimeError with the last lines of its log if it does not."""
        try:
            if self._docker:
                self._start_container()
            else:
                self._start_process()
            self._wait()
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """SIGKILL to the server itself. Returns when it is dead."""
        if self._docker:
            call("docker", "kill", "-s", "KILL", self.home.name)
            call("docker", "wait", self.home.name)
        elif self._process:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End it, and remove all its data. It may be called twice; a forked child's call does nothing."""
        if self._home and os.getpid() == self._owner:
            if self._process:
                self.kill()
            remove(self._home)
            self._home = self._process = None
            atexit.unregister(self.stop)

    def keep(self) -> None:
        """Let go of it: it runs on when this process ends, until `python tests/server.py stop`."""
        (self.home / "kept").touch()
        atexit.unregister(self.stop)
        self._home = None

    @property
    def client(self) -> str:
        """A command for the shell that opens it in MySQL's own client."""
        if self._docker:
            return f"docker exec -it {self.home.name} {self.kind}"
        return (
            f"{find('mariadb', 'mysql') or 'mysql'} --no-defaults -u root -S {self.home / 'socket'}"
        )

    def log(self) -> str:
        """The last lines of what it logged."""
        if self._docker:
            done = subprocess.run(
                ["docker", "logs", "-n", str(LOG_LINES), self.home.name],
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            return done.stdout
        lines = (self.home / "log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    def _start_container(self) -> None:
        if (self.home / "container").exists():
            call("docker", "start", self.home.name)
            return
        (self.home / "container").touch()  # first, so that no crash hides it from sweep()
        # No --rm: with it, a killed container would take its data along.
        call(
            "docker",
            "run",
            "-d",
            "--name",
            self.home.name,
            "-e",
            "MYSQL_ALLOW_EMPTY_PASSWORD=1",
            "-e",
            "MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1",
            "-p",
            f"127.0.0.1:{self.port}:3306",
            "-p",
            f"127.0.0.1:{self.x_port}:33060",
            IMAGES[self.name],
            *self.options,
        )

    def _start_process(self) -> None:
        program = find_server(self.name)
        if program is None:
            raise RuntimeError(f"{TITLES[self.name]} cannot be started here: {why_not(self.name)}")
        data = self.home / "data"
        # A server that starts deletes the temporary tables it finds: those of its neighbours, were the directory shared.
        common = [
            f"--datadir={data}",
            f"--tmpdir={self.home}",
            *(["--user=root"] if os.getuid() == 0 else []),
        ]
        with open(self.home / "log", "ab") as log:
            if not data.exists():
                make_data = [program, "--no-defaults", "--initialize-insecure", *common]
                if self.kind == "mariadb":
                    make_data = [
                        find("mariadb-install-db") or "mariadb-install-db",
                        "--no-defaults",
                        *common,
                        "--auth-root-authentication-method=normal",
                        "--skip-test-db",
                    ]
                if subprocess.run(make_data, stdout=log, stderr=log, cwd=self.home).returncode:
                    raise RuntimeError(f"{make_data[0]} failed:\n{self.log()}")
            options = [
                "--bind-address=127.0.0.1",
                f"--port={self.port}",
                f"--socket={self.home / 'socket'}",
            ]
            if self.kind == "mysql":
                options += [
                    "--mysqlx-bind-address=127.0.0.1",
                    f"--mysqlx-port={self.x_port}",
                    f"--mysqlx-socket={self.home / 'x'}",
                ]
            # In a session of its own: Ctrl-C is for the tests, which end it in their turn.
            self._process = subprocess.Popen(
                [program, "--no-defaults", *common, *options, *self.options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        (self.home / "pid").write_text(str(self._process.pid))

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.query("SELECT 1")
                return
            except MySQLdb.OperationalError as error:
                if time.monotonic() > deadline or not self._runs():
                    raise RuntimeError(
                        f"{self.name} does not start ({error}):\n{self.log()}"
                    ) from error
                time.sleep(0.1)

    def _runs(self) -> bool:
        if self._docker:
            return call("docker", "inspect", "-f", "{{.State.Running}}", self.home.name) == "true"
        return self._process is not None and self._process.poll() is None


def kinds() -> list[str]:
    """The names of the private servers that can be started here, each of another kind or version."""
    names = [name for name in TITLES if not why_not(name)]
    if find_server("mariadb-11.8"):
        # It is the system's own.
        names.remove("mariadb-11.8")
    return names


def untested() -> list[str]:
    """What cannot be started here, with the reason: ["MySQL (no Docker engine)"]."""
    reasons = {title: why_not(name) for name, title in TITLES.items()}
    return [f"{title} ({reason})" for title, reason in reasons.items() if reason]


def why_not(name: str) -> str:
    """Why no server of this name can be started here; empty if one can."""
    if starts_container(name) or find_server(name):
        return ""
    if name not in IMAGES:
        return "no mariadbd"
    if not has_engine():
        return "no Docker engine"
    return f"no image {IMAGES[name]}"


def starts_container(name: str) -> bool:
    """Whether a server of this name is a container here. An older MySQL of the system is the second choice."""
    if name not in IMAGES or name == "mariadb-11.8" and find_server(name):
        return False
    return has_docker(name)


@functools.cache
def has_docker(name: str = "mysql") -> bool:
    """Whether a Docker engine answers that has the image of this server, or can get it."""
    if not has_engine():
        return False
    if has_image(name):
        return True
    print(f"slim's tests: docker pull {IMAGES[name]}", file=sys.stderr)
    return succeeds("docker", "pull", "-q", IMAGES[name])


def has_image(name: str) -> bool:
    """Whether a Docker engine answers that has the image of this server already."""
    return name in IMAGES and has_engine() and succeeds("docker", "image", "inspect", IMAGES[name])


@functools.cache
def has_engine() -> bool:
    """Whether a Docker engine answers."""
    return shutil.which("docker") is not None and succeeds("docker", "version")


def find(*names: str) -> str | None:
    """The path of the first of these programs that is installed, if any."""
    path = os.pathsep.join(
        [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/usr/libexec"]
    )
    return next(filter(None, (shutil.which(name, path=path) for name in names)), None)


@functools.cache
def find_server(name: str) -> str | None:
    """The path of the program of the server of this name, if it is installed."""
    # MariaDB has a program that is called mysqld, too.
    program = find("mysqld" if name == "mysql" else "mariadbd")
    if program is None or name == "mariadb":
        return program
    version = call(program, "--no-defaults", "--version")
    if name == "mysql":
        return None if "MariaDB" in version else program
    found = re.search(r"Ver (\d+)\.(\d+)", version)
    return program if found and tuple(map(int, found.groups())) >= (11, 8) else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def call(*command: str) -> str:
    """What a command prints. Raises RuntimeError with its error message if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def stop_on_signals() -> None:
    """Let a signal that would end the process without its exit functions do what Ctrl-C does."""
    for number in signal.SIGTERM, signal.SIGHUP:
        if signal.getsignal(number) is signal.SIG_DFL:
            try:
                signal.signal(number, signal.default_int_handler)
            except ValueError:  # not the main thread
                return


def sweep(kept: bool = False) -> int:
    """Remove the servers whose owner is dead, or those that `keep` left running. Returns how many."""
    count = 0
    for home in Path(tempfile.gettempdir()).glob("slim-test-*-*"):
        owner = home.name.split("-")[2]
        mine = owner.isdigit() and home.lstat().st_uid == os.getuid()
        if mine and (home / "kept").exists() == kept and (kept or not lives(int(owner))):
            remove(home)
            count += 1
    return count


def remove(home: Path) -> None:
    """End the server of this directory, and remove its data."""
    pid = home / "pid"
    if (home / "container").exists():
        succeeds("docker", "rm", "--force", "--volumes", home.name)
    if pid.exists():
        number = int(pid.read_text())
        if str(home) in arguments_of(number):  # the number may be another process's by now
            os.kill(number, signal.SIGKILL)
    shutil.rmtree(home, ignore_errors=True)


def arguments_of(pid: int) -> str:
    """The command line of a process; empty if there is none."""
    try:
        if Path("/proc/self").exists():
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""
    return subprocess.run(
        ["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True
    ).stdout


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def run(command: list[str]) -> int:
    """The command's exit status; it runs with SLIM_SERVER, and SLIM_CLIENT where the server is a private one."""
    if "SLIM_SERVER" in os.environ:
        return subprocess.run(command).returncode
    # What is installed comes before what would have to be downloaded.
    ready = [name for name in TITLES if has_image(name) or find_server(name)]
    with Server((ready or kinds() or ["mysql"])[0]) as server:
        status = subprocess.run(
            command, env={**os.environ, "SLIM_SERVER": server.url, "SLIM_CLIENT": server.client}
        )
        if "--keep" in command and status.returncode == 0:
            server.keep()
    return status.returncode


def main(arguments: list[str]) -> int:
    if arguments == ["stop"]:
        print(f"servers stopped: {sweep(kept=True)}")
        return 0
    if arguments[:1] == ["run"] and arguments[1:]:
        return run(arguments[1:])
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
