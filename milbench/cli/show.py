"""Tables and lists on the terminal, and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from milbench.api.reports import Written

SHORT = 12  # characters of a cell that is never broken
Bar = Callable[[str, int, int], None]  # what is done, how much of it, and of how much


def rows(
    items: Sequence[dict[str, Any]], as_json: bool, shown: list[str], heads: Mapping[str, str] = MappingProxyType({})
) -> None:
    """The columns `shown` of the items as a table, or all of them as JSON; `heads` where a column is not headed by its name."""
    if as_json:
        json_rows(items)
    else:
        table([heads.get(name, name.replace("_", " ")) for name in shown], [[row[name] for name in shown] for row in items])


def json_rows(items: Sequence[dict[str, Any]]) -> None:
    """The items as JSON."""
    click.echo(json.dumps(items, indent=1))


def not_here(missing: Sequence[dict[str, Any]]) -> None:
    """One line for each thing that suites ask for and that is not here."""
    for entry in missing:
        *place, trials, reason = entry.values()
        click.echo(f"not here: {place_of(*place)} ({trials} trials): {reason}")


def place_of(dataset: object, encoder: object, magnification: object, patch_size: object, split: object) -> str:
    """What numbers are measured on, in one line; parts that are None are left out."""
    from milbench.api.results import column

    return column(dataset, encoder, magnification, patch_size, split)


def apart(columns: Sequence[tuple[object, ...]]) -> tuple[str, list[str]]:
    """What several columns have in common, in one line; and of each what sets it apart from the others."""
    differs = [len(set(parts)) > 1 for parts in zip(*columns, strict=True)]
    shared = place_of(*(None if d else part for part, d in zip(columns[0], differs, strict=True)))
    return shared, [place_of(*(part if d else None for part, d in zip(column, differs, strict=True))) for column in columns]


def written(paths: Sequence[object]) -> None:
    """The files that were written."""
    click.echo("\n".join(["Written:", *(f"  {path}" for path in paths)]))


def table(headers: list[str], rows: list[list[Any]], names: int = 1) -> None:
    """A table. In a narrow terminal long texts get several lines; short cells never do, nor do the first columns, the `names`."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    cells = [[_cell(value) for value in row] for row in rows]
    for at, header in enumerate(headers):
        longest = max((len(row[at]) for row in cells), default=0)
        table.add_column(header, overflow="fold", no_wrap=at < names or longest <= SHORT, min_width=min(longest, SHORT))
    for row in cells:
        table.add_row(*map(escape, row))  # longmil[heads=2] is a name, not markup
    console().print(table)


def console() -> Console:
    """A terminal as wide as it is; a file or a pipe gets lines as long as they are."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=240)


def width() -> int:
    """For running text: at most 110 characters, and no more than the terminal has."""
    return min(110, console().width)


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
def bar(quiet: bool = False) -> Iterator[Bar]:
    """A bar with the time that is left, on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    off = quiet or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=off) as shown:
        task = shown.add_task("", total=None)
        yield lambda what, done, total: shown.update(task, description=what, completed=done, total=total)


def report(made: Written, quiet: bool) -> None:
    """Every table, and the paths of the files."""
    if quiet:
        return
    out = console()
    for table in made.tables:
        out.print(f"\n{table.title}", style="bold", highlight=False, markup=False)
        if table.partial:
            out.print(f"Partial: {table.partial}.", style="bold yellow", highlight=False, markup=False)
        out.print(made.drawn(table))
        for note in table.notes:
            out.print(f"  {note}", style="dim", highlight=False, markup=False)
    click.echo()
    written(made.paths)
