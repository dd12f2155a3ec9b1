import re
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

here = Path(__file__).parent
readme = here / "README.md"
version = re.search(
    r'^__version__ = "(.+)"$', (here / "slim.py").read_text(encoding="utf-8"), re.MULTILINE
)
if version is None:
    raise SystemExit('setup.py: slim.py has no line __version__ = "…"')


class WithTests(sdist):
    """The source distribution holds the tests, and what they are configured by."""

    def make_release_tree(self, base_dir, files):
        tests = [path for path in Path("tests").rglob("*") if path.is_file()]
        configured = [path for path in Path().glob(".*.*") if path.is_file()]
        wanted = [str(path) for path in [*tests, *configured] if "__pycache__" not in path.parts]
        super().make_release_tree(base_dir, [*files, *wanted])


setup(
    name="slim-datastore",
    version=version[1],
    description="A schema-less, indexed datastore on MySQL and MariaDB, in one module",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author="The slim authors",
    license_expression="MIT",
    keywords=["mysql", "mariadb", "datastore", "schema-less", "document", "index", "friendfeed"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        *[f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)],
        "Topic :: Database :: Front-Ends",
    ],
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
    cmdclass={"sdist": WithTests},
    entry_points={"console_scripts": ["slim = slim:main"]},
)
