"""`milbench run --rehearse`: run it and show what the real run would need."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from milbench.cli import progress
from milbench.suites import Job, rehearse
from milbench.suites.expand import Load
from milbench.trials.run import run_trial
from milbench.trials.store import Store, write_atomically


def load(scale: float) -> Load:
    """What gives stand-in datasets in place of the real ones."""
    return partial(rehearse.stand_in, scale)


def run(
    jobs: Sequence[Job],
    results: Path,
    *,
    suite: str,
    scale: float,
    workers: int,
    plugins: Sequence[Path],
    backends: Sequence[str],
    retry_failed: bool,
    dry_run: bool,
) -> int:
    """Rehearse the distinct models of `jobs` in `results/rehearsal` and print the needs of the real run.

    Returns:
        Exit code: 0, 1 when something failed, 130 when interrupted.
    """
    store = Store(results / "rehearsal")
    chosen = rehearse.distinct(jobs, scale)
    todo = list({job.spec.trial_id: job for job in chosen.values()}.values())
    if dry_run:
        click.echo(f"{len(jobs)} trials, {len(todo)} distinct models to rehearse. Nothing was run.")
        return 0
    rehearse.mark(store, scale)
    again = ("pending", "failed", "oom") if retry_failed else ("pending",)
    waiting = [job for job in todo if store.status(job.spec.trial_id) in again]
    code = progress.run(
        waiting,
        store,
        workers=min(workers, len(waiting)),
        plugins=plugins,
        backends=backends,
        keep_model=lambda job: False,
        already=len(todo) - len(waiting),
        trial=partial(run_trial, body=partial(rehearse.measured, scale=scale)),
    )
    if code:
        return code
    found = rehearse.needs(jobs, chosen, store, scale)
    path = store.root / f"needs-{suite}.json"
    text = {"REHEARSAL": "stand-in bags: nothing in this file is a result", "workers": workers, **dataclasses.asdict(found)}
    write_atomically(path, json.dumps({**text, "hours": found.hours}, indent=1, allow_nan=True) + "\n")
    _show(found, todo, workers)
    click.echo(f"Written: {path}, apart from results and marked REHEARSAL.")
    bad = {job.spec.trial_id: store.raw(job.spec.trial_id) or {} for job in todo}
    for job in todo:
        result = bad[job.spec.trial_id]
        if result.get("status") != "ok":
            click.echo(
                f"{result.get('status')}: {job.cell.label} · {job.spec.dataset} {job.spec.encoder}: {result.get('reason')}"
            )
    return int(any(result.get("status") in ("failed", "oom") for result in bad.values()))


def _show(found: rehearse.Needs, todo: Sequence[Job], workers: int) -> None:
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for head in ("aggregator", "trials", "s / step", "exponent", "hours", "peak memory"):
        table.add_column(head, justify="left" if head == "aggregator" else "right", no_wrap=True)
    for row in found.rows:
        table.add_row(
            row.aggregator,
            f"{row.trials:,}",
            f"{row.seconds_per_step:.3g}",
            f"{row.exponent:.2f}",
            _hours(row.hours),
            f"{row.peak_bytes / 1e9:.1f} GB",
        )
    console = Console()
    console.print("\nREHEARSAL: what the real run would need", style="bold", highlight=False)
    console.print(table)
    device = f"{todo[0].spec.device}, {todo[0].spec.threads} thread{'s' * (todo[0].spec.threads > 1)} a trial"
    both = tuple(hours / workers for hours in found.hours)
    failed = f"; {found.not_measured} trials are not in the numbers, their rehearsal failed" if found.not_measured else ""
    lines = [
        f"{found.trials:,} trials, measured on {found.rehearsed} distinct models{failed}",
        f"{_hours(found.hours)} hours on one device ({device}), {_hours(both)} with {workers} worker{'s' * (workers > 1)}: "
        "the least if every training stops as early as its recipe allows, the most if none does",
        f"disk: {found.feature_bytes / 1e9:.1f} GB of packed features, {found.result_bytes / 1e9:.2f} GB of results",
        "How: a step over n instances takes a n + b n^2, with b only where a method declares a square of n, fitted through bags "
        f"{found.scale:g} and {found.scale * rehearse.COARSE:g} times smaller than the real ones and summed over the real sizes "
        "(around the paper's where the data is not here). Exponent: between the two measured sizes; step: of the slowest column. "
        "Peak memory: a straight line through both, at the largest bag. Reading features is not in the time.",
    ]
    for line in lines:
        click.echo(line)


def _hours(hours: Sequence[float]) -> str:
    low, high = (f"{h:.1f}" if h < 10 else f"{h:,.0f}" for h in hours)
    return low if low == high else f"{low} to {high}"
