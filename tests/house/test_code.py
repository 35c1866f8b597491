"""What the code looks like: functions that fit a screen, and tests in the rooms of what they test."""

import ast
import re

import pytest

from tests import ROOT

LONGEST = 60  # lines of a function, its docstring not counted
FILES = sorted(path for folder in ("milbench", "registry") for path in (ROOT / folder).rglob("*.py"))


def lines(function):
    documented = ast.get_docstring(function) is not None
    docstring = function.body[0].end_lineno - function.body[0].lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


def too_long(code):
    functions = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f"{function.name}: {lines(function)} lines" for function in functions if lines(function) > LONGEST]


def test_every_function_fits_a_screen():
    found = {str(path.relative_to(ROOT)): too_long(path.read_text()) for path in FILES}
    assert not {path: names for path, names in found.items() if names}, f"split these: no function is longer than {LONGEST} lines"


@pytest.mark.parametrize("async_", ["", "async "])
def test_a_long_function_is_found_wherever_it_stands_and_its_docstring_is_not_counted(async_):
    body = "\n".join(["        x = 1"] * LONGEST)
    code = f'class A:\n    {async_}def f(self):\n        """{"a" * 9}\n\n        b\n        """\n{body}\n'
    assert too_long(code) == [f"f: {LONGEST + 1} lines"]
    assert too_long(code.replace("        x = 1\n", "", 1)) == []


def test_a_function_with_more_branches_says_why_it_is_one():
    bare = re.compile(r"noqa:.*PLR0912(?! - \w)")
    assert [str(path.relative_to(ROOT)) for path in FILES if bare.search(path.read_text())] == []


def test_tests_stand_in_the_rooms_of_the_package():
    rooms = {path.parent.name for path in (ROOT / "milbench").glob("*/__init__.py")} | {"registry", "house", "fidelity"}
    modules = {path.stem for path in (ROOT / "milbench").glob("*.py")}
    for path in (ROOT / "tests").rglob("test_*.py"):
        room = path.relative_to(ROOT / "tests").parts[0]
        assert room in rooms or path.stem.removeprefix("test_") in modules, f"{path}: no room milbench/{room}"


def test_no_test_imports_another_test_file():
    for path in (ROOT / "tests").rglob("*.py"):
        taken = re.findall(r"^from tests\.\w+(?:\.| import )(test_\w+)", path.read_text(), re.M)
        # a test that starts a process may import itself there
        assert set(taken) <= {path.stem}, f"{path}: what two tests share belongs into tests/builders"


def private(code):
    """Lines that reach for what another object keeps to itself, without a reason beside or above them."""
    lines = code.splitlines()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            reaches = re.match(r"_[a-z]", node.attr) and ast.unparse(node) != "os._exit" and ast.unparse(node.value) != "self"
        else:
            reaches = isinstance(node, ast.ImportFrom) and any(re.match(r"_[a-z]", alias.name) for alias in node.names)
        if reaches and "#" not in "".join(lines[max(0, node.end_lineno - 2) : node.end_lineno]):
            yield f"{node.lineno}: {ast.unparse(node)}"


def test_tests_call_what_is_public():
    found = {str(path.relative_to(ROOT)): list(private(path.read_text())) for path in (ROOT / "tests").rglob("*.py")}
    assert not {path: lines for path, lines in found.items() if lines}, "test what is public, or say in a comment why not"
    assert list(private("from a import _b\n\n\nc._d()\n\n\ne._f  # why\nself._g, os._exit(1), h.__name__")) == [
        "1: from a import _b",
        "4: c._d",
    ]
