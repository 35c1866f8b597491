"""`milbench results`: check stored results, and bring old ones over."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import click

from milbench.cli import show
from milbench.cli.options import AS_JSON, DATA, PLUGIN, RESULTS


@click.group()
def results() -> None:
    """Check stored results, and bring old ones over."""


@results.command()
@RESULTS
@AS_JSON
def check(results: Path, as_json: bool) -> None:
    """Is every trial what it says? Ids, SHA-256 of files, and all metrics computed again from the predictions.

    One line for each bad trial, and exit code 1.
    """
    from milbench.api import results as api

    with show.bar() as progress:
        count, wrong = api.check_results(results, progress=partial(progress, "checking trials"))
    if as_json:
        rows = [{"trial_id": trial_id, "problem": why} for trial_id, why in wrong.items()]
        click.echo(json.dumps({"trials": count, "bad": rows}, indent=1))
    else:
        for why in wrong.values():
            click.echo(why)
        click.echo(f"{count:,} trials, {len(wrong):,} bad." if wrong else f"{count:,} trials, all are what they say.")
    raise SystemExit(1 if wrong else 0)


@results.command()
@RESULTS
@click.option("--to", "target", type=click.Path(path_type=Path), help="Another results folder to write to. [default: the same]")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@DATA
@PLUGIN
def migrate(results: Path, target: Path | None, dry_run: bool, data_folder: Path | None, plugin_files: tuple[str, ...]) -> None:
    """Bring results of schema 1 over to this version, which names trials otherwise.

    Old trials and plans are kept, in RESULTS/schema-1. A trial whose data or plug-in is not here, or is another one, stays behind
    with the reason; run its suite again.
    """
    from milbench.api import results as api

    with show.bar() as bar:
        done = api.migrate_results(
            results, to=target, dry_run=dry_run, data=data_folder, plugin=plugin_files, progress=partial(bar, "looking at trials")
        )
    for why, count in Counter(done.left.values()).most_common():
        click.echo(f"stays behind: {count:,} trial{'s' * (count > 1)}: {why}")
    if not (done.carried or done.left or done.suites):
        click.echo(f"nothing of schema 1 in {results}")
        return
    would, suites = "would be " * dry_run, ", ".join(done.suites) or "none"
    click.echo(f"{len(done.carried):,} trials {would}brought over, {len(done.left):,} left behind; suites: {suites}.")
    if done.left and not dry_run and target in (None, results):
        click.echo(f"Once that is corrected: milbench results migrate --results {api.left_behind(results)} --to {results}")
    raise SystemExit(1 if done.left else 0)
