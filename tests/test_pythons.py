"""What one Python from 3.10 to 3.14 writes every other reads, as it was written."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import bodies
import pytest

HERE = Path(__file__).parent
VERSIONS = [f"3.{minor}" for minor in range(10, 15)]


@functools.cache
def pythons() -> dict[str, str]:
    """{version: program} of the Pythons that this machine has, each of them tried; this one is among them."""
    found = {platform.python_version(): sys.executable}
    for program in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python")):
        found.setdefault(version_of(str(program)), str(program))
    for series in VERSIONS:
        if not any(version.startswith(f"{series}.") for version in found):
            found[version_of(f"python{series}")] = f"python{series}"
    return {
        version: program
        for version, program in found.items()
        if version.rpartition(".")[0] in VERSIONS
    }


def version_of(program: str) -> str:
    """The version of a Python; empty if there is none of this name."""
    ask = "import platform, zlib; print(platform.python_version())"
    try:
        done = subprocess.run(
            [program, "-S", "-c", ask], capture_output=True, text=True, timeout=200
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def run(program: str, verb: str, text: str = "") -> str:
    done = subprocess.run(
        [program, str(HERE / "bodies.py"), verb],
        input=text,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def written() -> dict[str, dict[str, str]]:
    """{version: {name: body}} of every Python here."""
    every: dict[str, dict[str, str]] = {}
    for program in pythons().values():
        every.update(json.loads(run(program, "write")))
    return every


@pytest.mark.parametrize("reader", pythons())
def test_every_python_here_reads_what_every_other_writes(reader: str) -> None:
    assert written().keys() == pythons().keys()
    assert all(each.keys() == bodies.values().keys() for each in written().values())
    assert run(pythons()[reader], "read", json.dumps(written())) == ""


@pytest.mark.parametrize("version", json.loads(bodies.KEPT.read_text()))
def test_bodies_kept_from_other_versions_are_read(version: str) -> None:
    kept = json.loads(bodies.KEPT.read_text())[version]
    assert set(kept) == set(bodies.values())
    assert bodies.misread(version, kept) == []


def test_bodies_of_each_version_are_kept() -> None:
    kept = {version.rpartition(".")[0] for version in json.loads(bodies.KEPT.read_text())}
    assert kept >= {"3.10", "3.11", "3.12", "3.13"}
    assert "3.11.2" in json.loads(bodies.KEPT.read_text())


def test_what_is_read_otherwise_is_told() -> None:
    """The comparison can fail: the body of one value is given for another's."""
    mine = bodies.written()
    wrong = bodies.misread("3.9", {**mine, "int": mine["float"], "path": "eJw="})
    assert [line.partition(":")[0].partition(",")[0] for line in wrong] == ["int", "path"]
