"""`milbench report`: results in, tables and figures out."""

from __future__ import annotations

from pathlib import Path

import click

from milbench.cli import show
from milbench.cli.options import RESULTS


@click.command()
@click.option("--suite", help="A suite that was run; every one of them unless given.")
@click.option("--reports", type=click.Path(path_type=Path), default="reports", show_default=True, help="Folder to write to.")
@RESULTS
def report(suite: str | None, reports: Path, results: Path) -> None:
    """Make the tables of a suite from its results: terminal, LaTeX, Markdown and CSV."""
    from milbench.report import build, render, write
    from milbench.trials import plan as plans
    from milbench.trials.store import Store

    store, console = Store(results), show.console()
    for name in plans.chosen(store, suite):
        made = build(store, name)
        paths = write(made, reports / name)
        for section in made.sections:
            for table in section.tables:
                console.print(f"\n{table.title}", style="bold", highlight=False, markup=False)
                console.print(render.terminal(table))
                for note in table.notes:
                    console.print(f"  {note}", style="dim", highlight=False, markup=False)
            if section.unfinished:
                console.print(
                    f"\nPartial: {section.unfinished} of {len(section.plan.cells)} trials are not run yet.", style="bold yellow"
                )
        click.echo("\nWritten:")
        for path in paths:
            click.echo(f"  {path}")
