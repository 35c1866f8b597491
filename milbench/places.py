"""Places in a plug-in's code, as `file:line`, so that a message points to the line to change."""

import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any


def written(path: str | Path, line: int) -> str:
    """`file:line`, the file as it is shortest: from the current folder, or whole."""
    return f"{min(os.path.relpath(path), str(path), key=len)}:{line}"


def of_class(cls: type) -> str:
    """Where a class begins."""
    return written(inspect.getsourcefile(cls) or "?", inspect.getsourcelines(cls)[1])


def of_function(function: Callable[..., Any]) -> str:
    """Where a function begins."""
    code = inspect.unwrap(function).__code__
    return written(code.co_filename, code.co_firstlineno)


def of_attribute(cls: type, name: str) -> str:
    """Where a class, or one that it inherits from, assigns `self.name`; the class where no line does."""
    for parent in cls.__mro__[:-1]:  # the last is object, which has no source
        lines, first = inspect.getsourcelines(parent)
        for number, line in enumerate(lines, first):
            if re.search(rf"\bself\.{re.escape(name)}\b[^=]*=(?!=)", line):
                return written(inspect.getsourcefile(parent) or "?", number)
    return of_class(cls)


def of_return(function: Callable[..., Any], call: Callable[[], Any]) -> str:
    """The line from which `function` returns while `call` runs."""
    code = inspect.unwrap(function).__code__
    line = code.co_firstlineno

    def watch(frame: Any, event: str, _: object) -> None:
        nonlocal line
        if event == "return" and frame.f_code is code:
            line = frame.f_lineno

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(before)
    return written(code.co_filename, line)


def of_error(error: BaseException, files: Collection[str]) -> str | None:
    """The innermost line of `files` that an error went through; of a syntax error its own; None where there is none."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return written(error.filename, error.lineno)
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if _real(frame.filename) in files]
    return written(lines[-1].filename, lines[-1].lineno or 0) if lines else None


def of_caller(files: Collection[str], through: Collection[str] | None = None) -> str | None:
    """The innermost line of `files` that is being run, or None.

    Args:
        files: real paths.
        through: folders whose code may stand between that line and the caller; None for any code.
    """
    frame = sys._getframe(1)  # the caller
    caller = frame.f_code.co_filename
    while frame is not None:
        name = frame.f_code.co_filename
        if _real(name) in files:
            return written(name, frame.f_lineno)
        if through is not None and name != caller and not name.startswith(tuple(through)):
            return None
        frame = frame.f_back  # type: ignore[assignment]
    return None


@cache
def _real(name: str) -> str:
    return os.path.realpath(name)
