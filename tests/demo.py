#!/usr/bin/env python3
"""slim at work on real data: the standard library of this Python, its modules, classes and functions, as dictionaries.

    tests/run demo              on a private server, gone afterwards
    tests/run demo --keep       the server and the data stay: the last lines say how to look at them

Each step shows the code that runs, what it returns and how long it took. SLIM_SERVER names another server to use; the
demonstration makes a database of its own there, and drops it at the end, unless it is told to keep it.
"""

from __future__ import annotations

import ast
import functools
import os
import pprint
import shlex
import sys
import sysconfig
import textwrap
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import MySQLdb
from MySQLdb.constants import ER
from server import Named, run
from tqdm import tqdm

import slim

WIDTH = 79  # columns of what is printed
HEIGHT = 20  # lines of a result that are shown
CLIP = 50  # characters of a text in it

# It shows nothing where the output is no terminal.
progress_bar = functools.partial(tqdm, ncols=WIDTH, disable=None, leave=False)

# What is shown and run: a title, and code; the value of the last line is the result.
STEPS = [
    (
        "Read the standard library: a dictionary for each module, class and function",
        """
documents = library()
documents[0]
""",
    ),
    (
        "Open a database; slim makes the tables that are missing",
        """
by_name = slim.Index("index_name", "name")
by_kind = slim.Index("index_kind", {"kind": str, "lines": int})
store = slim.Datastore(**server, indexes=[by_name, by_kind])
""",
    ),
    (
        "Put them all, with a progress bar around them",
        """
store.put_many(tqdm(documents))
""",
    ),
    (
        "Put one and get it: any keys, no declaration",
        """
key = store.put({"kind": "note", "text": "Hello", "tags": {"new", "mine"}})
store.get(key)
""",
    ),
    (
        "Find by a property",
        """
by_name.get_all(store, name="json.dumps")
""",
    ),
    (
        "Find by a property and a range, in order: the longest functions",
        """
long = {"kind": "function", "lines": slice(150, None)}
for found in by_kind.find(store, long, reverse=True, limit=5):
    print(f"{found['lines']:6} lines  {found['name']}")
""",
    ),
    (
        "Count",
        """
{kind: by_kind.count(store, kind=kind) for kind in ("class", "function")}
""",
    ),
    (
        "Add an index to data that is there already",
        """
by_package = slim.Index("index_package", ["package", "kind"])
store.add_index(by_package)
by_package.count(store, package="asyncio", kind="class")
""",
    ),
    (
        "Update: read, change and write, atomically",
        """
found, = by_name.get_all(store, name="json.dumps")
store.update(found["id"], lambda entity: entity.update(stars=5))["stars"]
""",
    ),
    (
        "Who replaces what has changed meanwhile is told",
        """
try:
    store.put({**found, "stars": 1}, expect=found.version)
except slim.Conflict as conflict:
    print(*textwrap.wrap(str(conflict), 75), sep="\\n")
""",
    ),
    (
        "Several changes, together or not at all",
        """
classes = by_package.get_all(store, package="asyncio", kind="class")
with store.transaction():
    for found in classes:
        store.update(found["id"], lambda entity: entity.update(seen=True))
sum(entity.get("seen", False) for entity in store)
""",
    ),
    (
        "Delete the functions of turtle",
        """
found = by_package.get_all(store, package="turtle", kind="function")
sum(store.delete(entity["id"]) for entity in found)
""",
    ),
    (
        "Check: how many index rows are not as the entities say?",
        """
{index.table: index.populate(store) for index in store.indexes}
""",
    ),
    (
        "What MySQL sees",
        """
sql("SHOW TABLES")
sql("SELECT added_id, id, updated, LENGTH(body) FROM entities LIMIT 2")
sql("SELECT * FROM index_kind WHERE kind = 'module' LIMIT 2")
""",
    ),
    (
        "What is stored",
        """
print(store.schema())
""",
    ),
]


def library() -> list[dict[str, Any]]:
    """A dictionary for every module of the standard library, its classes and functions. A key stands where there is a value."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
    paths = sorted(
        path for path in root.rglob("*.py") if skipped.isdisjoint(path.relative_to(root).parts)
    )
    return [entity for path in progress_bar(paths) for entity in describe(path, root)]


def describe(path: Path, root: Path) -> Iterator[dict[str, Any]]:
    """The module of a file, then what it defines at its top level."""
    source = path.read_bytes()
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    common = {"package": name.split(".")[0], "module": name}
    module = {
        "kind": "module",
        "name": name,
        **common,
        "lines": source.count(b"\n"),
        "size": len(source),
        "modified": datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).date(),
    }
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        yield {**module, "error": str(error)}
        return
    imports = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    yield present({**module, "doc": ast.get_docstring(tree), "imports": imports})
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield present(
                {
                    "name": f"{name}.{node.name}",
                    **common,
                    "line": node.lineno,
                    "lines": (node.end_lineno or node.lineno) - node.lineno + 1,
                    **details(node),
                    "doc": ast.get_docstring(node),
                    "decorators": list(map(ast.unparse, node.decorator_list)),
                }
            )


def details(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, Any]:
    """What a class has and a function has not, or the other way round."""
    if isinstance(node, ast.ClassDef):
        methods = [
            {"name": each.name, "line": each.lineno}
            for each in node.body
            if isinstance(each, ast.FunctionDef)
        ]
        return {"kind": "class", "bases": list(map(ast.unparse, node.bases)), "methods": methods}
    arguments = [
        argument.arg
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    ]
    return {
        "kind": "function",
        "arguments": arguments,
        "coroutine": isinstance(node, ast.AsyncFunctionDef),
        "returns": node.returns and ast.unparse(node.returns),
    }


def present(entity: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entity.items() if value}


def show(number: int, title: str, source: str, names: dict[str, Any]) -> None:
    """One step: its code, what it prints and returns, and how long it took."""
    print(f"\n{style(f'{number}. {title}', '1')}\n")
    *body, last = ast.parse(source).body
    for line in source.strip().splitlines():
        print(style(f"{'...' if line.startswith((' ', 'except')) else '>>>'} {line}", "36"))
    start = time.perf_counter()
    value = None
    exec(compile(ast.Module(body, []), "<demo>", "exec"), names)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "<demo>", "eval"), names)
    else:
        exec(compile(ast.Module([last], []), "<demo>", "exec"), names)
    seconds = time.perf_counter() - start
    if value is not None:
        lines = pprint.pformat(
            clip(value), width=WIDTH, compact=True, sort_dicts=False
        ).splitlines()
        print("\n".join(lines[:HEIGHT] + ["…"] * (len(lines) > HEIGHT)))
    print(style(f"{f'{1000 * seconds:,.1f} ms':>{WIDTH}}", "2"))


def clip(value: Any) -> Any:
    """The value, with the beginnings alone of texts of several lines, or long ones."""
    if isinstance(value, str):
        first = value.partition("\n")[0][:CLIP]
        return first + "…" * (first != value)
    if isinstance(value, dict):
        return {key: clip(item) for key, item in value.items()}
    return [clip(item) for item in value] if isinstance(value, list) else value


def style(text: str, code: str) -> str:
    return (
        f"\033[{code}m{text}\033[0m"
        if sys.stdout.isatty() and "NO_COLOR" not in os.environ
        else text
    )


def print_rows(server: Named, database: str, statement: str) -> None:
    """Run a statement as MySQL's own client would."""
    for row in Named(server.url.replace("/?", f"/?database={database}&")).query(statement):
        print(*row, sep="   ")


def new_database(server: Named) -> str:
    """The name of a database that was not there before."""
    for number in range(1, 1000):
        name = "slim_demo" + f"_{number}" * (number > 1)
        try:
            server.query(f"CREATE DATABASE {name}")
            return name
        except MySQLdb.ProgrammingError as error:
            if error.args[0] != ER.DB_CREATE_EXISTS:
                raise
    raise SystemExit("demo: there are a thousand databases slim_demo… on this server; drop some")


def client(server: Named) -> str:
    """What opens the server in MySQL's own client."""
    short = {"host": "-h", "port": "-P", "unix_socket": "-S", "user": "-u"}
    options = [
        word
        for key, letter in short.items()
        if server.connect.get(key)
        for word in (letter, str(server.connect[key]))
    ]
    return shlex.join(["mysql", *options, *["-p"] * bool(server.connect["password"])])


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--keep"]):
        print(__doc__, file=sys.stderr)
        return 2
    if "SLIM_SERVER" not in os.environ:
        return run([sys.executable, __file__, *arguments])
    server = Named(os.environ["SLIM_SERVER"])
    database = new_database(server)
    names: dict[str, Any] = {
        "slim": slim,
        "server": {**server.connect, "database": database},
        "library": library,
        "tqdm": progress_bar,
        "sql": functools.partial(print_rows, server, database),
        "textwrap": textwrap,
    }
    start = time.perf_counter()
    keep = False
    try:
        for number, (title, source) in enumerate(STEPS, 1):
            show(number, title, source, names)
        names["store"].close()
        keep = bool(arguments)
    finally:
        if not keep:
            server.query(f"DROP DATABASE {database}")
    print(
        f"\nDone in {time.perf_counter() - start:.0f} seconds, on {server.query('SELECT VERSION()')[0][0]}."
    )
    if keep:
        own = os.environ.get("SLIM_CLIENT")
        print(
            f"The data is still there. To look at it:\n\n    {own or client(server)} {database}\n"
        )
        print("tests/run stop removes it." if own else f"DROP DATABASE {database} removes it.")
    else:
        print("The data is removed; tests/run demo --keep leaves it there to look at.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
