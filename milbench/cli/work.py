"""`milbench work`: one worker of a suite, beside others on this machine or on many."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from milbench.cli.options import DATA, PLUGIN, QUIET, RESULTS, UNTIL, how_to_run


def _shard(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, int]:
    """`2/8` as (2, 8).

    Raises:
        MilbenchError: it is no such pair.
    """
    from milbench.errors import MilbenchError

    if text is None:
        return 1, 1
    first, _, of = text.partition("/")
    if not (first.isdecimal() and of.isdecimal()):
        raise MilbenchError(f"--shard {text!r}: write i/n with i from 1 to n, such as 2/8")
    return int(first), int(of)


def _moment(_context: click.Context, _option: click.Parameter, text: str | None) -> datetime | None:
    """`2026-11-30T12:00` as a moment; without a zone it is local time.

    Raises:
        MilbenchError: it is none.
    """
    from milbench.errors import MilbenchError

    try:
        return None if text is None else datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise MilbenchError(f"--failed-before {text!r}: write date and time, such as 2026-11-30T12:00") from error


@click.command()
@click.option("--suite", required=True, help="A built-in suite (milbench ls suites) or a TOML file.")
@how_to_run
@click.option("--shard", metavar="I/N", callback=_shard, help="Only the I-th of N parts of the trials. Seldom needed: see above.")
@click.option(
    "--failed-before",
    metavar="MOMENT",
    callback=_moment,
    help="With --retry-failed: only trials that failed before, such as 2026-11-30T12:00, so that a worker which starts "
    "later does not run the same failures again.",
)
@UNTIL
@QUIET
@RESULTS
@DATA
@PLUGIN
def work(
    no_pack: bool, suite: str, quiet: bool, results: Path, data_folder: Path | None, plugin_files: tuple[str, ...], **how: Any
) -> None:
    """Run trials of a suite until none is left that nobody has claimed.

    Start as many as you like, on every machine that sees the results folder: they share the trials, each is run once, and what a
    dead one had is free again after a minute. Unlike `milbench run` it does not wait for what others have claimed.
    """
    from milbench.api import runs
    from milbench.cli import progress
    from milbench.config import Settings

    settings = Settings.from_environment(data=data_folder, results=results, pack=False if no_pack else None)
    planned = runs.plan(suite, runs.RunOptions(**how, plugin=plugin_files, wait=False), settings)
    view = progress.View(quiet)
    todo = planned.prepare(view.say)
    view.run(todo)
    raise SystemExit(progress.left(planned.results(todo), view))
