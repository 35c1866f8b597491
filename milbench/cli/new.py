"""`milbench new`: begin something of your own."""

from __future__ import annotations

from pathlib import Path

import click

from milbench.cli.options import DATA

FOLDER = click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=".", help="Where the file goes.")


@click.group()
def new() -> None:
    """Begin something of your own."""


@new.command("aggregator")
@click.argument("name")
@FOLDER
def new_aggregator(name: str, folder: Path) -> None:
    """Write NAME.py: a working aggregator of forty lines to start from."""
    from milbench.api import templates

    path = templates.new_aggregator(name, folder)
    click.echo(f"{path}\nNext: milbench check aggregator {name} --plugin {path}")


@new.command("suite")
@click.argument("name")
@click.option("--dataset", metavar="NAME", help="Take features, split and task of this dataset, and the usual methods.")
@FOLDER
@DATA
def new_suite(name: str, dataset: str | None, folder: Path, data_folder: Path | None) -> None:
    """Write NAME.toml: a working suite to start from, with a comment on every value."""
    from milbench.api import templates

    path = templates.new_suite(name, folder, dataset=dataset, data=data_folder)
    click.echo(f"{path}\nNext: milbench run --suite {path} --dry-run")
