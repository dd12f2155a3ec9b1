"""What `tests/run check` asks of slim's text: that one can read it in one sitting, and the linter's and mypy's word.

python tests/limits.py [ROOT]       prints what is wrong with the checkout; the exit status is 1 if anything is
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from radon.complexity import cc_visit
from radon.visitors import Function

MODULE_LINES = 1_500
MODULE_BYTES = 60_000
FUNCTION_LINES = 40  # without its docstring
CLASS_LINES = 300
COMPLEXITY = 10  # as radon counts it: each condition of an `and` or `or`, too
LINTED = ["slim.py", "setup.py", "tests", "tests/run"]


def too_large(source: str) -> Iterator[str]:
    """What of a module's text is over a limit, a line for each."""
    lines = len(source.splitlines())
    if lines > MODULE_LINES:
        yield f"{lines} lines: at most {MODULE_LINES}"
    size = len(source.encode())
    if size > MODULE_BYTES:
        yield f"{size} bytes: at most {MODULE_BYTES}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = lines_of(node) - docstring_lines(node)
            if lines > FUNCTION_LINES:
                yield f"{node.lineno}: {node.name} has {lines} lines: at most {FUNCTION_LINES}"
        if isinstance(node, ast.ClassDef) and lines_of(node) > CLASS_LINES:
            yield f"{node.lineno}: {node.name} has {lines_of(node)} lines: at most {CLASS_LINES}"


def too_complex(source: str) -> Iterator[str]:
    """The functions and methods of a module whose complexity is over the limit, a line for each."""
    for block in cc_visit(source):
        if isinstance(block, Function) and block.complexity > COMPLEXITY:
            about = f"{block.lineno}: {block.fullname} has a complexity of {block.complexity}"
            yield f"{about}: at most {COMPLEXITY}"


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return lines_of(node.body[0]) if ast.get_docstring(node) is not None else 0


def passes(root: Path, *command: str) -> bool:
    """Whether a tool of the environment finds nothing; it prints what it finds."""
    return subprocess.run([sys.executable, "-m", *command], cwd=root).returncode == 0


def within_limits(root: Path) -> bool:
    source = (root / "slim.py").read_text(encoding="utf-8")
    found = [*too_large(source), *too_complex(source)]
    for line in found:
        print(f"slim.py:{line}")
    return not found


def linted(root: Path) -> bool:
    return passes(root, "ruff", "check", "--quiet", "--output-format=concise", *LINTED)


def formatted(root: Path) -> bool:
    return passes(root, "ruff", "format", "--check", "--quiet", "--output-format=concise", *LINTED)


def typed(root: Path) -> bool:
    return passes(root, "mypy", "--strict", "--no-error-summary", "slim.py")


def main(arguments: list[str]) -> int:
    root = Path(arguments[0]) if arguments else Path(__file__).parent.parent
    # All of them run, so that one run tells all that is wrong.
    results = [check(root) for check in (within_limits, formatted, linted, typed)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
