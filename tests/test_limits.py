"""Each limit of `tests/run check` can fail: a text at the limit passes, one just over it does not."""

from __future__ import annotations

import ast
import shutil
import textwrap
from pathlib import Path

import limits
import pytest

ROOT = Path(__file__).parent.parent


def function(lines: int, docstring: str = "") -> str:
    """A function of so many lines, its docstring not counted."""
    body = [f'    """{docstring}"""'] if docstring else []
    return "\n".join(["def f() -> None:", *body, *["    pass"] * (lines - 1)]) + "\n"


def branches(count: int) -> str:
    """A function of a complexity of `count` and one."""
    return "def f(n: int) -> None:\n" + "    if n:\n        pass\n" * count


@pytest.mark.parametrize(
    "right, wrong, message",
    [
        ("1\n" * 1_500, "1\n" * 1_501, "1501 lines: at most 1500"),
        ("#" * 60_000, "#" * 60_001, "60001 bytes: at most 60000"),
        ("#" * 59_998 + "é", "#" * 59_999 + "é", "60001 bytes: at most 60000"),
        (function(40), function(41), "1: f has 41 lines: at most 40"),
        (function(40, "It passes."), function(41, "It passes."), "1: f has 41 lines: at most 40"),
        (function(40, "\n" * 5), function(43, "\n" * 5), "1: f has 43 lines: at most 40"),
        (f"async {function(40)}", f"async {function(41)}", "1: f has 41 lines: at most 40"),
        (
            "class C:\n" + "    1\n" * 299,
            "class C:\n" + "    1\n" * 300,
            "1: C has 301 lines: at most 300",
        ),
    ],
)
def test_module_function_and_class_may_have_so_many_lines_and_no_more(
    right: str, wrong: str, message: str
) -> None:
    assert list(limits.too_large(right)) == []
    assert list(limits.too_large(wrong)) == [message]


@pytest.mark.parametrize(
    "wrong, place",
    [
        (branches(10), "1: f"),
        (f"class C:\n{textwrap.indent(branches(10), '    ')}", "2: C.f"),
        ("def f(n: int) -> bool:\n    return " + " and ".join(["n"] * 11), "1: f"),
        ("def f(n: int) -> bool:\n    return [0 " + "for m in n if n " * 5 + "]", "1: f"),
    ],
)
def test_function_may_be_so_complex_and_no_more(wrong: str, place: str) -> None:
    assert list(limits.too_complex(branches(9))) == []
    assert list(limits.too_complex(wrong)) == [f"{place} has a complexity of 11: at most 10"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small one that passes."""
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / ".ruff.toml", tmp_path)
    for name in "slim.py", "setup.py", "tests/run", "tests/test_it.py":
        (tmp_path / name).write_text('"""Nothing."""\n')
    return tmp_path


def test_check_passes_where_nothing_is_wrong(checkout: Path) -> None:
    assert limits.main([str(checkout)]) == 0


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("slim.py", "1\n" * 1_501, "slim.py:1501 lines"),
        ("slim.py", "x = 'single quotes'\n", "slim.py:1:5: unformatted"),
        ("setup.py", "x = 'single quotes'\n", "setup.py:1:5: unformatted"),
        ("tests/run", "x = 'single quotes'\n", "tests/run:1:5: unformatted"),
        ("tests/test_it.py", "x = 'single quotes'\n", "tests/test_it.py:1:5: unformatted"),
        ("tests/test_it.py", "import os\n", "tests/test_it.py:1:8: F401"),
        ("tests/run", "import os\n", "tests/run:1:8: F401"),
        ("setup.py", "import os\n", "setup.py:1:8: F401"),
        ("slim.py", "import os\n", "slim.py:1:8: F401"),
        ("slim.py", f"x = '{'x' * 100}'\n".replace("'", '"'), "slim.py:1:101: E501"),
        ("slim.py", "def f(x):\n    return x\n", "slim.py:1: error"),
    ],
)
def test_check_fails_on_each_fault_and_names_it(
    checkout: Path, capfd: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    ast.parse(text)
    (checkout / name).write_text(text)
    assert limits.main([str(checkout)]) == 1
    assert message in capfd.readouterr().out
