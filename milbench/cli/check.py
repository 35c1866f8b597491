"""`milbench check`: check something before you rely on it."""

from __future__ import annotations

import click

from milbench.cli.options import PLUGIN


@click.group()
def check() -> None:
    """Check something before you rely on it."""


@check.command("aggregator")
@click.argument("name")
@PLUGIN
def check_aggregator(name: str, plugin_files: tuple[str, ...]) -> None:
    """Check that the aggregator NAME keeps the contract: the same checks that the test suite runs."""
    from milbench.api import models

    holding = 0
    for check in models.check_aggregator(name, plugin=plugin_files):
        click.echo(f"{'ok  ' if check.holds else 'FAIL'}  {check.name}: {check.says}")
        if not check.holds:
            raise SystemExit(1)
        holding += 1
    click.echo(f"{name}: all {holding} checks hold")
