"""Tables and lists on the terminal, and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

Bar = Callable[[str, int, int], None]  # what is done, how much of it, and of how much


def rows(items: list[dict[str, Any]], as_json: bool, shown: list[str]) -> None:
    """The columns `shown` of the items as a table, or all of them as JSON."""
    if as_json:
        click.echo(json.dumps(items, indent=1))
    else:
        table([name.replace("_", " ") for name in shown], [[row[name] for name in shown] for row in items])


def table(headers: list[str], rows: list[list[Any]]) -> None:
    """A table, one line per row."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row))  # longmil[heads=2] is a name, not markup
    console().print(table)


def console() -> Console:
    """A terminal as wide as it is; a file or a pipe gets lines as long as they are."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=240)


def _cell(value: object) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case list() | tuple():
            return ", ".join(map(str, value))
        case _:
            return str(value)


@contextmanager
def bar() -> Iterator[Bar]:
    """A bar with the time that is left, on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as shown:
        task = shown.add_task("", total=None)
        yield lambda what, done, total: shown.update(task, description=what, completed=done, total=total)
