"""`milbench status`: how far every suite is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from milbench.cli import show
from milbench.cli.options import AS_JSON, RESULTS, SUITE


@click.command()
@SUITE
@RESULTS
@AS_JSON
def status(suite: str | None, results: Path, as_json: bool) -> None:
    """How far every suite is, and what went wrong."""
    from milbench.api import results as api

    state = api.status(suite, results=results)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(state), indent=1))
        return
    show.table([name.replace("_", " ") for name in state.suites[0]], [list(row.values()) for row in state.suites])
    for row in state.not_ok:
        where = f"{row['aggregator']} on {row['dataset']}, fold {row['fold']}, seed {row['seed']} ({row['trial_id']})"
        click.echo(f"{row['status']:8} {where}: {row['reason']}")
    show.not_here(state.not_here)
