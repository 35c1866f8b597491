"""`milbench report`: results in, tables and figures out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from milbench.cli import show
from milbench.cli.options import RESULTS

if TYPE_CHECKING:
    from milbench.report import Report

FORMATS = ("latex", "md", "html", "csv")


def _formats(_context: click.Context, _option: click.Parameter, text: str) -> list[str]:
    asked = [part.strip() for part in text.split(",")]
    if wrong := [part for part in asked if part not in FORMATS]:
        raise click.BadParameter(f"{wrong[0]!r} is not one of {', '.join(FORMATS)}")
    return asked


@click.command()
@click.option("--suite", help="A suite that was run; every one of them unless given.")
@click.option("--format", "formats", default=",".join(FORMATS), show_default=True, callback=_formats, help="What to write.")
@click.option(
    "--published",
    type=click.Choice(["side", "below", "off"]),
    default="side",
    show_default=True,
    help="Where the paper's numbers stand: beside ours, below them, or nowhere.",
)
@click.option(
    "--from",
    "source",
    type=click.Choice(["results", "published"]),
    default="results",
    show_default=True,
    help="Our results, or what others published: the files of --folds and --predictions, and the paper's printed numbers.",
)
@click.option(
    "--folds",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE.csv",
    help="Scores per model and fold; may be repeated.",
)
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE.csv[.gz]",
    help="Predictions per model, fold and case; may be repeated.",
)
@click.option("--reference", metavar="MODEL", help="Model of those files that the others are compared with.")
@click.option("--no-tests", is_flag=True, help="Leave out the paired comparisons, which take most of the time.")
@click.option("--reports", type=click.Path(path_type=Path), default="reports", show_default=True, help="Folder to write to.")
@RESULTS
def report(
    suite: str | None, formats: list[Any], published: Any, source: str, folds: tuple[Path, ...], predictions: tuple[Path, ...],
    reference: str | None, no_tests: bool, reports: Path, results: Path,
) -> None:  # fmt: skip
    """Make the tables of a suite from its results: terminal, LaTeX, HTML, Markdown and CSV."""
    from milbench.report import build
    from milbench.trials import plan as plans
    from milbench.trials.store import Store

    if source == "published":
        if suite:
            raise click.UsageError("--suite belongs to results, not to --from published")
        _published(folds, predictions, reference, reports / "published", formats, tests=not no_tests)
        return
    if folds or predictions or reference:
        raise click.UsageError("--folds, --predictions and --reference belong to --from published")
    store = Store(results)
    for name in plans.chosen(store, suite):
        with show.bar() as progress:
            made = build(store, name, published=published, tests=not no_tests, progress=partial(_compared, progress))
        _write(made, reports / name, formats)


def _published(
    folds: tuple[Path, ...],
    predictions: tuple[Path, ...],
    reference: str | None,
    folder: Path,
    formats: list[Any],
    *,
    tests: bool,
) -> None:
    """What others published, in the same forms as our own results."""
    from milbench.report import from_published

    _write(from_published.report(folds, predictions, reference=reference, tests=tests), folder, formats)


def _write(made: Report, folder: Path, formats: list[Any]) -> None:
    from milbench.report import write

    paths = write(made, folder, formats)
    _print(made)
    click.echo("\nWritten:")
    for path in paths:
        click.echo(f"  {path}")


def _print(made: Report) -> None:
    from milbench.report.render import terminal

    console = show.console()
    for table in [*made.verdicts, *made.others, *(table for section in made.sections for table in section.tables)]:
        console.print(f"\n{table.title}", style="bold", highlight=False, markup=False)
        if table.partial:
            console.print(f"Partial: {table.partial}.", style="bold yellow", highlight=False, markup=False)
        console.print(terminal.table(table))
        for note in table.notes:
            console.print(f"  {note}", style="dim", highlight=False, markup=False)


def _compared(progress: show.Bar, table: str, done: int, total: int) -> None:
    progress(f"comparing: {table}", done, total)
