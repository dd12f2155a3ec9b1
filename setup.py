import re
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
readme = here / "README.md"
version = re.search(
    r'^__version__ = "(.+)"$', (here / "slim.py").read_text(encoding="utf-8"), re.MULTILINE
)
if version is None:
    raise SystemExit('setup.py: slim.py has no line __version__ = "…"')

setup(
    name="slim",
    version=version[1],
    description="A schema-less, indexed datastore on MySQL, in one module",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    py_modules=["slim"],
    python_requires=">=3.10",
    install_requires=["mysqlclient>=2.3"],
    extras_require={
        "cli": ["tqdm"],
        "tests": [
            "pytest",
            "pytest-timeout",
            "hypothesis",
            "ruff",
            "mypy",
            "radon",
            "types-mysqlclient",
            "tqdm",
            "types-tqdm",
        ],
        "bench": ["sqlalchemy", "dataset", "peewee", "mysqlx-connector-python", "matplotlib"],
    },
    entry_points={"console_scripts": ["slim = slim:main"]},
)
