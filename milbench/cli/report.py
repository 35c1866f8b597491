"""`milbench report`: results in, tables and figures out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from milbench.cli import show
from milbench.cli.options import PATH, QUIET, RESULTS

FORMATS = ("latex", "md", "html", "csv")


def _formats(_context: click.Context, _option: click.Parameter, text: str) -> list[str]:
    asked = [part.strip() for part in text.split(",")]
    if wrong := [part for part in asked if part not in FORMATS]:
        raise click.BadParameter(f"{wrong[0]!r} is not one of {', '.join(FORMATS)}")
    return asked


@click.command()
@click.option("--suite", help="A suite that was run: its name or TOML file; every one of them unless given.")
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
@click.option("--folds", type=PATH, multiple=True, metavar="FILE.csv", help="Scores per model and fold; may be repeated.")
@click.option(
    "--predictions",
    type=PATH,
    multiple=True,
    metavar="FILE.csv[.gz]",
    help="Predictions per model, fold and case; may be repeated.",
)
@click.option("--reference", metavar="MODEL", help="Model of those files that the others are compared with.")
@click.option("--no-tests", is_flag=True, help="Leave out the paired comparisons, which take most of the time.")
@click.option("--reports", type=PATH, default="reports", show_default=True, help="Folder to write to.")
@QUIET
@RESULTS
def report(
    suite: str | None, published: Any, source: str, folds: tuple[Path, ...], predictions: tuple[Path, ...],
    reference: str | None, results: Path, quiet: bool, no_tests: bool, **written: Any,
) -> None:  # fmt: skip
    """Make the tables of a suite from its results: terminal, LaTeX, HTML, Markdown and CSV."""
    from milbench.api import reports as api
    from milbench.api.results import suites_run

    if source == "published":
        if suite:
            raise click.UsageError("--suite belongs to results, not to --from published")
        made = api.report_published(folds, predictions, reference=reference, tests=not no_tests, **written)
        show.report(made, quiet)
        return
    if folds or predictions or reference:
        raise click.UsageError("--folds, --predictions and --reference belong to --from published")
    for name in [suite] if suite else suites_run(results):
        with show.bar(quiet) as progress:
            made = api.report(
                name, results=results, published=published, tests=not no_tests, progress=partial(_compared, progress), **written
            )
        show.report(made, quiet)


def _compared(progress: show.Bar, table: str, done: int, total: int) -> None:
    progress(f"comparing: {table}", done, total)
