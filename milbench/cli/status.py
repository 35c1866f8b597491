"""`milbench status`: how far every suite is."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from milbench.cli import show
from milbench.cli.options import AS_JSON, RESULTS, SUITE

if TYPE_CHECKING:
    from milbench.api.results import Status

EVERY = 5.0  # seconds between two looks


@click.command()
@SUITE
@RESULTS
@AS_JSON
@click.option("--follow", is_flag=True, help="Say what changes until no trial is pending, then show it.")
def status(suite: str | None, results: Path, as_json: bool, follow: bool) -> None:
    """How far every suite is, and what went wrong."""
    from milbench.api import results as api

    look = partial(api.status, suite, results=results)
    state = _follow(look) if follow else look()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(state), indent=1))
        return
    show.table([name.replace("_", " ") for name in state.suites[0]], [list(row.values()) for row in state.suites])
    if state.running:
        click.echo(f"{state.running:,} running")
    for row in state.not_ok:
        where = f"{row['aggregator']} on {row['dataset']}, fold {row['fold']}, seed {row['seed']} ({row['trial_id']})"
        click.echo(f"{row['status']:8} {where}: {row['reason']}")
    show.not_here(state.not_here)


def _follow(look: Callable[[], Status]) -> Status:
    """A line whenever something changes, until no trial is pending."""
    said, state = "", _begun(look)
    while any(row["pending"] for row in state.suites):
        counts = {name: sum(row[name] for row in state.suites) for name in ("ok", "failed", "oom", "skipped", "pending")}
        line = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) + f"; {state.running:,} running"
        if line != said:
            click.echo(f"{time.strftime('%H:%M:%S')}  {line}")
        said = line
        time.sleep(EVERY)
        state = look()
    return state


def _begun(look: Callable[[], Status]) -> Status:
    """The first state there is: workers that were submitted may not have begun."""
    from milbench.errors import NothingYet

    waits = False
    while True:
        try:
            return look()
        except NothingYet as error:
            if not waits:
                click.echo(f"{time.strftime('%H:%M:%S')}  waiting: {error}")
            waits = True
            time.sleep(EVERY)
