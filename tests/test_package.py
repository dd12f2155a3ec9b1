"""slim-datastore builds from a checkout and from its own sdist, and installs in an empty environment."""

from __future__ import annotations

import email
import email.message
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import slim

ROOT = Path(__file__).parent.parent
# What is not a part of a checkout.
MADE = shutil.ignore_patterns(
    ".git", ".venv", "*cache*", ".hypothesis", "*.egg-info", "build", "dist"
)


def pip(*words: object, python: Path | None = None) -> None:
    of = ["--python", str(python)] if python else []
    command = [sys.executable, "-m", "pip", *of, "--disable-pip-version-check", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def environment(home: Path) -> Path:
    """The Python of a new environment, in which nothing is installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    return home / "bin" / "python"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("made") / "slim", ignore=MADE))


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sdist")
    python = environment(made / "builder")
    pip("install", "-q", "setuptools>=77", python=python)
    command = [python, "setup.py", "-q", "sdist", "--dist-dir", made]
    subprocess.run(command, cwd=checkout, check=True)
    (path,) = made.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module", params=["checkout", "sdist"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds, in an environment of its own."""
    made = tmp_path_factory.mktemp("wheel")
    source = request.getfixturevalue(request.param)
    # Else the pip of Debian 12 asks for a package that is not there.
    pip("wheel", "-q", "--use-pep517", "--no-deps", "-w", made, source)
    (path,) = made.glob("*.whl")
    return path


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith("/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_sdist_holds_the_tests_and_what_they_need(sdist: Path) -> None:
    assert sdist.name == f"slim_datastore-{slim.__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = [ROOT / "tests" / "run", *ROOT.glob("tests/**/*.py"), *ROOT.glob(".*.*")]
    needed = [path for path in needed if path.is_file()]
    assert {str(path.relative_to(ROOT)) for path in needed} <= names
    assert {"README.md", "LICENSE", "setup.py", "slim.py"} <= names
    assert [name for name in names if "__pycache__" in name] == []


def test_wheel_says_what_it_is(wheel: Path) -> None:
    assert wheel.name == f"slim_datastore-{slim.__version__}-py3-none-any.whl"
    told = metadata(wheel)
    assert (told["Name"], told["License-Expression"]) == ("slim-datastore", "MIT")
    assert told["Author"] == "The slim authors"
    assert told["Requires-Python"] == ">=3.10"
    assert told["Description-Content-Type"] == "text/markdown"
    description = told.get_payload(decode=True)
    assert isinstance(description, bytes)
    assert description.decode().strip() == (ROOT / "README.md").read_text().strip()
    required = [each for each in told.get_all("Requires-Dist", []) if "extra" not in each]
    assert required == ["mysqlclient>=2.3"]
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert modules == ["slim.py"]


def test_wheel_brings_module_and_command_to_an_empty_environment(
    wheel: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    python = environment(home)
    library = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    # The tests' own driver: it takes long to build another.
    for name in "MySQLdb", "mysqlclient-*.dist-info":
        (path,) = Path(sysconfig.get_path("platlib")).glob(name)
        (library / path.name).symlink_to(path)
    pip("install", "-q", "--no-index", wheel, python=python)

    def output(program: Path, *arguments: str) -> str:
        return subprocess.check_output([program, *arguments], cwd=tmp_path, text=True)

    told = output(python, "-c", "import slim; print(slim.__version__, slim.__file__)")
    assert told.split() == [slim.__version__, str(library / "slim.py")]
    assert "schema" in output(home / "bin" / "slim", "--help")
