"""`milbench run`: train and test what has no result yet; also the grid beforehand, and a rehearsal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from milbench.cli import show
from milbench.cli.options import DATA, PATH, PLUGIN, QUIET, RESULTS, how_to_run

if TYPE_CHECKING:
    from milbench.api.runs import Needs, Planned, Rehearsal, Rehearsed, RunOptions
    from milbench.cli.progress import View
    from milbench.config import Settings
    from milbench.trials.plan import Plan

MARKS = {"ok": "done", "pending": "to run", "failed": "failed", "oom": "oom", "skipped": "skipped", "absent": "not here"}


@click.command()
@click.option("--suite", help="A built-in suite (milbench ls suites) or a TOML file.")
@click.option("--dataset", metavar="NAME", help="The usual methods on this dataset, instead of a suite.")
@how_to_run
@click.option(
    "--engine",
    type=click.Choice(["local", "slurm", "ray"]),
    default="local",
    show_default=True,
    help="Where trials run: on this machine, as --workers tasks of a Slurm job array, or as --workers tasks on a Ray cluster.",
)
@click.option("--address", metavar="HOST:PORT", help="With --engine ray: the cluster. [default: one on this machine]")
@click.option("--profile", type=PATH, metavar="FILE.toml", help="With --engine slurm: partition, time, gres, ... of the site.")
@click.option("--dry-run", is_flag=True, help="Show the grid, what is done and what is not; run nothing.")
@click.option("--rehearse", is_flag=True, help="A few steps of every model on stand-in bags; says what the real run would need.")
@click.option(
    "--rehearse-scale", type=click.FloatRange(min=1), default=8, show_default=True, help="Stand-in bags are this much smaller."
)
@QUIET
@RESULTS
@DATA
@PLUGIN
def run(
    suite: str | None, dataset: str | None, no_pack: bool, engine: str, profile: Path | None, dry_run: bool, rehearse: bool,
    rehearse_scale: float, quiet: bool, results: Path, data_folder: Path | None, plugin_files: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Run every trial of a suite that has no result yet.

    Interrupt it whenever you like: the next run continues. Finished trials are never run again, whichever suite asked for them.
    """
    from milbench.api import runs, templates
    from milbench.cli import progress
    from milbench.config import Settings

    if (suite is None) == (dataset is None):
        raise click.UsageError("say what to run: --suite NAME, or --dataset NAME for the usual methods on it")
    chosen = runs.RunOptions(**options, engine="local" if engine == "slurm" else engine, plugin=plugin_files)
    settings = Settings.from_environment(data=data_folder, results=results, pack=False if no_pack else None)
    view = progress.View(quiet)
    if engine == "slurm" and not (dry_run or rehearse):
        if suite is None:
            raise click.UsageError(f"--engine slurm takes a file: milbench new suite NAME --dataset {dataset}")
        _submit(suite, chosen, settings, profile, view)
        return
    asked = templates.suite_of(dataset, settings) if dataset else str(suite)
    if rehearse:
        rehearsal = runs.Rehearsal.of(asked, chosen, settings, rehearse_scale)
        _show_plan(rehearsal.planned, view)
        raise SystemExit(_rehearse(rehearsal, view, dry_run=dry_run))
    planned = runs.plan(asked, chosen, settings)
    _show_plan(planned, view)
    if not planned.grids:
        return
    if dry_run:
        _show_grids(planned.grids, planned.state())
        return
    work, what = planned.prepare(view.say), f"--dataset {dataset}" if dataset else f"--suite {suite}"
    view.run(work)
    raise SystemExit(progress.summary(planned.results(work), what, view))


def _submit(suite: str, options: RunOptions, settings: Settings, profile: Path | None, view: View) -> None:
    """Submit workers, and say how to watch them."""
    from milbench.api import clusters
    from milbench.words import counted

    done = clusters.submit(suite, options, settings, profile)
    where = f" --results {settings.results}" if str(settings.results) != "results" else ""
    view.say(f"Slurm job {done.job}: {counted(done.workers, 'worker')}. Script: {done.script}, first log: {done.log}")
    view.say(f"Watch: milbench status --suite {suite}{where} --follow. When they end with trials pending, submit again.")


def _show_plan(planned: Planned, view: View) -> None:
    """What cannot be run here, and why."""
    if view.quiet:
        return
    for other in planned.made_by:
        click.echo(f"{other.name}: {other.title}; made by: {other.made_by}")
    show.not_here(planned.missing)


def _show_grids(grids: Sequence[Plan], state: Mapping[str, str]) -> None:
    """Each suite as a table like its report's: how many trials of a row and column are done, and how many are not."""
    for plan in grids:
        _show_grid(plan, state)
    counts = {mark: list(state.values()).count(name) for name, mark in MARKS.items()}
    counts[MARKS["absent"]] = len({cell.place for plan in grids for cell in plan.cells if cell.missing})
    every = sum(counts.values())
    click.echo(
        f"{every:,} trials: " + ", ".join(f"{count:,} {mark}" for mark, count in counts.items() if count) + ". Nothing was run."
    )


def _show_grid(plan: Plan, state: Mapping[str, str]) -> None:
    columns = list(dict.fromkeys(cell.column for cell in plan.cells))
    shared, heads = show.apart(columns)
    seeds, folds = ({getattr(cell, what) for cell in plan.cells} for what in ("seed", "fold"))
    repeats = " x ".join(f"{len(some)} {name}{'s' * (len(some) > 1)}" for some, name in ((folds, "fold"), (seeds, "seed")))
    click.echo(f"\n{plan.suite}: {plan.definition['title']}\n{shared} · {repeats}")
    marks: dict[tuple[str, Any], list[str]] = {}
    for cell in plan.cells:
        mark = MARKS["absent" if cell.missing else state[cell.trial_id]]
        marks.setdefault((cell.label, cell.column), []).append(mark)
    rows = [
        [label, *(", ".join(f"{some.count(mark)} {mark}" for mark in dict.fromkeys(some)) for some in across)]
        for label in dict.fromkeys(cell.label for cell in plan.cells)
        if (across := [marks.get((label, column), []) for column in columns])
    ]
    show.table(["aggregator", *(heads if len(columns) > 1 else ["trials"])], rows)


def _rehearse(rehearsal: Rehearsal, view: View, *, dry_run: bool) -> int:
    """Rehearse, and print the needs of the real run; returns the exit code."""
    models = rehearsal.models
    if dry_run:
        click.echo(f"{len(rehearsal.planned.jobs)} trials, {len(models)} distinct models to rehearse. Nothing was run.")
        return 0
    work = rehearsal.prepare()
    if work.already:
        folder = rehearsal.store.root
        view.say(f"{work.already} of {len(models)} models were measured earlier; remove {folder} to measure them again.")
    view.run(work)
    done = rehearsal.finish()
    if not view.quiet:
        _show_needs(done)
    for trial in done.not_ok:
        click.echo(f"{trial.status}: {trial.cell.label} · {trial.cell.dataset} {trial.cell.encoder}: {trial.reason}")
    view.say(f"Written: {done.path}, apart from results and marked REHEARSAL.")
    return int(any(trial.status != "skipped" for trial in done.not_ok))


def _show_needs(done: Rehearsed) -> None:
    needs, workers = done.needs, done.options.workers or 1
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
            for row in needs.rows
        ],
    )
    counts = ((needs.skipped, "will be skipped"), (needs.not_measured, "are not in the numbers, since their rehearsal failed"))
    less = [f"{count:,} trials {what}" for count, what in counts if count]
    threads = done.options.threads
    device = f"{done.options.device}, {threads} thread{'s' * (threads > 1)} a trial"
    shared = (needs.hours[0] / workers, needs.hours[1] / workers)
    click.echo("; ".join([f"{needs.trials:,} trials, measured on {needs.rehearsed} distinct models", *less]))
    hours = f"{_range(needs.hours)} hours on one device ({device})"
    click.echo(f"{hours}, {_range(shared)} with {workers} workers" if workers > 1 else hours)
    click.echo(f"disk: {needs.feature_bytes / 1e9:.1f} GB of packed features, {needs.result_bytes / 1e9:.2f} GB of results\n")
    click.echo(_how_measured(needs))


def _how_measured(needs: Needs) -> str:
    from milbench.api.runs import COARSE

    return click.wrap_text(
        f"Measured on bags {needs.scale:g} and {needs.scale * COARSE:g} times smaller than the real ones, whose sizes are made "
        "up around the paper's where the data is not here. Least: what does not grow between both sizes is fixed, and training "
        "stops as early as the recipe allows. Most: all of a step grows with the bag, and training never stops early. The step "
        "is that of the slowest column, the exponent that between both sizes; memory follows a straight line to the largest bag. "
        "Reading features is not counted. A smaller --rehearse-scale narrows the range.",
        width=show.width(),
    )


def _range(pair: tuple[float, float]) -> str:
    low, high = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in pair)
    return low if low == high else f"{low} to {high}"
