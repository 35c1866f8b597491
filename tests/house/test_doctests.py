"""The examples in docstrings are exact. Only modules that have some are imported."""

import doctest
import importlib
from pathlib import Path

import pytest

import milbench

ROOT = Path(milbench.__file__).parent
MODULES = sorted(
    ".".join(["milbench", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if "    >>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted
    assert not failed
