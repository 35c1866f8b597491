"""`milbench run --rehearse`: run it and show what the real run would need."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from milbench import rehearsal as rehearse
from milbench.cli import progress, show
from milbench.config import Settings
from milbench.engines import Run
from milbench.files import write_atomically
from milbench.suites import Job, Load
from milbench.trials.run import run_trial
from milbench.trials.spec import TrialSpec
from milbench.trials.store import Store


def load(scale: float, settings: Settings) -> Load:
    """What gives stand-in datasets in place of the real ones."""
    return partial(rehearse.stand_in, scale, settings=settings)


def run(
    jobs: Sequence[Job],
    settings: Settings,
    *,
    suite: str,
    scale: float,
    workers: int,
    plugins: Sequence[Path],
    backends: Sequence[str],
    retry_failed: bool,
    dry_run: bool,
) -> int:
    """Rehearse the distinct models of `jobs` in the results folder's `rehearsal` and print the needs of the real run.

    Returns:
        Exit code: 0, or 1 when something failed.
    """
    settings = dataclasses.replace(settings, results=settings.results / "rehearsal")
    store = Store(settings.results)
    chosen = rehearse.distinct(jobs, scale, settings)
    todo = list({job.spec.trial_id: job for job in chosen.values()}.values())
    if dry_run:
        click.echo(f"{len(jobs)} trials, {len(todo)} distinct models to rehearse. Nothing was run.")
        return 0
    rehearse.mark(store, scale)
    again = ("pending", "failed", "oom") if retry_failed else ("pending",)
    waiting = [job for job in todo if store.status(job.spec.trial_id) in again]
    if earlier := len(todo) - len(waiting):
        click.echo(f"{earlier} of {len(todo)} models were measured earlier; remove {store.root} to measure them again.")
    trial = partial(run_trial, body=partial(rehearse.measured, scale=scale, settings=settings.absolute()))
    progress.run(Run(waiting, settings, min(workers, len(waiting)), plugins, backends, trial=trial), already=earlier)
    found = rehearse.needs(jobs, chosen, store, scale, settings)
    path = store.root / f"needs-{suite}.json"
    text = {"REHEARSAL": "stand-in bags: nothing in this file is a result", "workers": workers, **dataclasses.asdict(found)}
    write_atomically(path, json.dumps({**text, "hours": found.hours}, indent=1, allow_nan=False) + "\n")
    _show(found, todo[0].spec, workers)
    troubles = [(job, result) for job in todo if (result := store.raw(job.spec.trial_id) or {}).get("status") != "ok"]
    for job, result in troubles:
        click.echo(f"{result['status']}: {job.cell.label} · {job.spec.dataset} {job.spec.encoder}: {result['reason']}")
    click.echo(f"Written: {path}, apart from results and marked REHEARSAL.")
    return int(any(result["status"] != "skipped" for _, result in troubles))


def _show(found: rehearse.Needs, spec: TrialSpec, workers: int) -> None:
    click.secho("\nREHEARSAL: what the real run would need", bold=True)
    show.table(
        ["aggregator", "trials", "s / step", "exponent", "hours", "peak memory"],
        [
            [
                row.aggregator,
                row.trials,
                _range(row.seconds_per_step),
                None if row.exponent is None else f"{row.exponent:.2f}",
                _range(row.hours),
                f"{row.peak_bytes / 1e9:.1f} GB",
            ]
            for row in found.rows
        ],
    )
    less = [
        f"{count:,} trials {what}"
        for count, what in (
            (found.skipped, "will be skipped"),
            (found.not_measured, "are not in the numbers, since their rehearsal failed"),
        )
        if count
    ]
    device = f"{spec.device}, {spec.threads} thread{'s' * (spec.threads > 1)} a trial"
    both = (found.hours[0] / workers, found.hours[1] / workers)
    click.echo("; ".join([f"{found.trials:,} trials, measured on {found.rehearsed} distinct models", *less]))
    hours = f"{_range(found.hours)} hours on one device ({device})"
    click.echo(f"{hours}, {_range(both)} with {workers} workers" if workers > 1 else hours)
    click.echo(f"disk: {found.feature_bytes / 1e9:.1f} GB of packed features, {found.result_bytes / 1e9:.2f} GB of results\n")
    click.echo(
        click.wrap_text(
            f"Measured on bags {found.scale:g} and {found.scale * rehearse.COARSE:g} times smaller than the real ones, whose "
            "sizes are made up around the paper's where the data is not here. Least: what does not grow between both sizes is "
            "fixed, and training stops as early as the recipe allows. Most: all of a step grows with the bag, and training never "
            "stops early. The step is that of the slowest column, the exponent that between both sizes; memory follows a "
            "straight line to the largest bag. Reading features is not counted. A smaller --rehearse-scale narrows the range.",
            width=110,
        )
    )


def _range(pair: tuple[float, float]) -> str:
    low, high = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in pair)
    return low if low == high else f"{low} to {high}"
