"""`tests/run` on a machine that lacks everything: it asks once, and not at all for help."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Where it looks for servers, wherever PATH leads.
ELSEWHERE = "/usr/sbin", "/usr/local/sbin", "/usr/libexec"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One without .venv, and a PATH with nothing but a package manager that can install nothing."""
    (tmp_path / "tests" / "bench").mkdir(parents=True)
    for name in "setup.py", "tests/run", "tests/demo.py", "tests/bench/run.py":
        shutil.copy(ROOT / name, tmp_path / name)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "env").symlink_to(str(shutil.which("env")))
    (programs / "apt-get").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$1" = update ]\n'
    )
    (programs / "apt-get").chmod(0o755)
    return tmp_path


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": str(checkout / "programs"), "HOME": str(checkout)}
    command = [sys.executable, str(checkout / "tests" / "run"), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert not (checkout / ".venv").exists()
    return done


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("verb", ["", "demo", "stop", "bench", "cluster", "check", "tests/x.py"])
def test_help_is_printed_and_nothing_installed(checkout: Path, verb: str, option: str) -> None:
    done = run(checkout, *filter(None, [verb, option]))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"tests/run {verb if verb in ('demo', 'bench') else 'demo'}" in done.stdout
    assert not (checkout / "asked").exists()


def test_all_that_is_missing_is_named_and_asked_for_in_one_step(checkout: Path) -> None:
    done = run(checkout, "demo")
    assert done.returncode == 1
    named, commands = [line for line in done.stderr.splitlines() if line.strip()][:2]
    for what in "a C compiler", "pkg-config", "MySQL's client library":
        assert what in named
    for package in "gcc", "pkg-config", "libmariadb-dev":
        assert package in commands.split()
    has_server = any(Path(directory, "mariadbd").exists() for directory in ELSEWHERE)
    assert ("a MariaDB server" not in named) == has_server
    assert ("mariadb-server" not in commands) == has_server
    assert commands.count("apt-get install") == 1
    if os.getuid() == 0:
        assert "this command failed: apt-get install" in done.stderr
        assert len((checkout / "asked").read_text().splitlines()) == 2
    else:
        assert "To be run once, by an administrator" in done.stderr
        assert not (checkout / "asked").exists()
