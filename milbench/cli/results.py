"""`milbench results`: check stored results, hand them on, pack them, and bring old ones over."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from functools import partial
from pathlib import Path

import click

from milbench.cli import show
from milbench.cli.options import AS_JSON, DATA, PLUGIN, RESULTS, SUITE
from milbench.words import counted


@click.group()
def results() -> None:
    """Check stored results, hand them on, pack them, and bring old ones over."""


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
@click.argument("archive", type=click.Path(path_type=Path))
@SUITE
@RESULTS
@click.option("--weights", is_flag=True, help="With the weights that were kept.")
def export(archive: Path, suite: str | None, results: Path, weights: bool) -> None:
    """Write trials to ARCHIVE, such as bracs.tar.xz: specs, metrics, predictions, plans and splits, with a SHA-256 of each."""
    from milbench.api import results as api

    count = api.export_results(archive, suite, results=results, weights=weights)
    click.echo(f"{counted(count, 'trial')} in {archive}. To take them in: milbench results merge {archive}")


@results.command()
@click.argument("source", type=click.Path(path_type=Path))
@RESULTS
@AS_JSON
def merge(source: Path, results: Path, as_json: bool) -> None:
    """Take in the trials of SOURCE: an archive that `export` wrote, or another results folder.

    Nothing that is finished here is overwritten. Where both have finished a trial with other predictions, it is told, and the
    exit code is 1. `import` and `merge` are the same.
    """
    from milbench.api import results as api

    done = api.merge_results(source, results=results)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(done), indent=1))
    else:
        for why in done.conflicts.values():
            click.echo(f"conflict: {why}")
        parts = ("added", done.added), ("replaced that had failed", done.replaced), ("here already", done.same)
        said = ", ".join(f"{len(some):,} {what}" for what, some in parts if some) or "nothing to take in"
        click.echo(f"{said}; {counted(len(done.conflicts), 'conflict')}.")
    raise SystemExit(1 if done.conflicts else 0)


results.add_command(merge, "import")


@results.command()
@RESULTS
def pack(results: Path) -> None:
    """Move finished trials without weights from their folders into at most 256 files, RESULTS/shelves/*.zip.

    Everything reads them there. Runs may go on meanwhile. Exit code 1 when a trial is damaged; it stays where it is.
    """
    from milbench.api import results as api

    with show.bar() as bar:
        count, wrong = api.pack_results(results, progress=partial(bar, "packing trials"))
    for why in wrong.values():
        click.echo(why)
    click.echo(f"{counted(count, 'trial')} packed into {results / 'shelves'}.")
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
