"""What a run shows while it works, and when it ends."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from milbench import interrupt
from milbench.api.runs import Done, Epoch, Event, Started, duration

if TYPE_CHECKING:
    from milbench.api.results import Results, Trial
    from milbench.api.runs import Work
    from milbench.suites import Job
    from milbench.trials.plan import Cell


class _Clock:
    """Time left: what is still to run, at the mean duration of its own aggregator, shared by the workers.

    Kept as sums that change with each event, so that asking costs the same however many trials and aggregators there are.
    """

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self._kind = {job.trial_id: job.cell.aggregator for job in jobs}
        self._waiting = Counter(self._kind.values())  # not begun, by aggregator
        self._unknown = len(self._kind)  # of these, those of aggregators of which nothing is done
        self._expected = 0.0  # seconds that the others of these take
        self._workers = workers
        self._since: dict[str, float] = {}
        self._took: dict[str, float] = defaultdict(float)
        self._done: Counter[str] = Counter()
        self._seconds, self._finished, self._elsewhere = 0.0, 0, 0

    def _count(self, kind: str, *, waiting: int = 0, took: float | None = None) -> None:
        """Change what is known of an aggregator, and the sums with it."""
        known = self._done[kind]
        self._unknown -= 0 if known else self._waiting[kind]
        self._expected -= self._waiting[kind] * self._took[kind] / known if known else 0.0
        self._waiting[kind] += waiting
        if took is not None:
            self._took[kind] += took
            self._done[kind] += 1
        known = self._done[kind]
        self._unknown += 0 if known else self._waiting[kind]
        self._expected += self._waiting[kind] * self._took[kind] / known if known else 0.0

    def start(self, trial_id: str) -> None:
        self._count(self._kind[trial_id], waiting=-1)
        self._since[trial_id] = time.monotonic()

    def stop(self, trial_id: str) -> float:
        took = time.monotonic() - self._since.pop(trial_id)
        self._count(self._kind[trial_id], took=took)
        self._seconds += took
        self._finished += 1
        return took

    def pass_over(self, trial_id: str) -> None:
        """Another run has given it a result."""
        if self._since.pop(trial_id, None) is None:
            self._count(self._kind[trial_id], waiting=-1)
        self._elsewhere += 1

    def left(self) -> str:
        if not self._finished or self._finished + self._elsewhere == len(self._kind):
            return ""
        mean, now = self._seconds / self._finished, time.monotonic()

        def whole(kind: str) -> float:
            return self._took[kind] / self._done[kind] if self._done[kind] else mean

        total = max(0.0, self._expected) + self._unknown * mean
        total += sum(max(0.0, whole(self._kind[trial_id]) - (now - since)) for trial_id, since in self._since.items())
        return f"{duration(total / self._workers)} left"


def _name(cell: Cell, *, where: bool = True) -> str:
    """The trial in words; `where` names its features, too."""
    features = [cell.dataset, cell.encoder, *([f"{cell.magnification}x"] if cell.magnification else [])]
    return " · ".join([cell.label, *([" ".join(features)] if where else []), f"fold {cell.fold}", f"seed {cell.seed}"])


def _score(row: dict[str, float | None]) -> str:
    for key, value in row.items():
        if key.startswith("val_") and key != "val_loss":
            return f"{key.replace('_', ' ')} {'undefined' if value is None else f'{value:.3f}'}"
    return f"loss {row['train_loss']:.3f}"


class View:
    """What a command says while trials run: bars on a terminal, plain lines elsewhere, nothing when it is quiet.

    Args:
        quiet: say errors only.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """A line, unless it is quiet."""
        if not self.quiet:
            click.echo(text)

    def run(self, work: Work) -> None:
        """Run the trials and show how it goes."""
        if not work.jobs:
            return
        total = len(work.jobs)
        where = f"{work.workers} worker{'s' * (work.workers > 1)} on {work.options.device}"
        self.say(f"{total} trials to run, {work.already} have a result. {where}. Ctrl-C stops; run again to go on.")
        lines = _Silence if self.quiet else _Bars if sys.stdout.isatty() else _Lines
        shown = lines(work)
        interrupt.say_at_the_end(
            lambda: f"Stopped. {shown.done} of {total} trials were finished and are kept; the same command continues."
        )
        with interrupt.noted(), shown:  # so that the view can close, too
            work.start(shown.show)


class _Silence:
    """Only counts what is done."""

    def __init__(self, work: Work) -> None:
        self._work, self._clock, self.done = work, _Clock(work.jobs, work.workers), 0
        self._jobs = {job.trial_id: job for job in work.jobs}
        self._several = len({job.cell.column for job in work.jobs}) > 1

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, event: Event) -> None:
        self.done += isinstance(event, Done)


class _Lines(_Silence):
    """One line per finished trial."""

    def show(self, event: Event) -> None:
        super().show(event)
        match event:
            case Started():
                self._clock.start(event.trial_id)
            case Done():
                if event.elsewhere:
                    self._clock.pass_over(event.trial_id)
                    took = "by another run"
                else:
                    took = f"{self._clock.stop(event.trial_id):.1f} s"
                job, width = self._jobs[event.trial_id], len(str(len(self._jobs)))
                what = event.reason or _tested(self._work.now(job))
                parts = [event.status, _name(job.cell), what, took, self._clock.left()]
                click.echo(f"[{self.done:{width}}/{len(self._jobs)}] " + "  ".join(part for part in parts if part))


def _tested(trial: Trial) -> str:
    name, value = trial.headline or ("", None)
    return "" if value is None else f"test {name.replace('_', ' ')} {value:.3f}"


class _Bars(_Silence):
    """One bar for all trials, one line for each that runs."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._all = Progress(TextColumn("[bold]trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        self._each = Progress(
            TextColumn("  {task.description}"),
            BarColumn(20),
            TextColumn("epoch {task.completed}/{task.total}  {task.fields[score]}"),
        )
        self._bar = self._all.add_task("", total=len(work.jobs), left="")
        self._lines: dict[str, TaskID] = {}
        self._live = Live(Group(self._all, self._each), console=Console(), refresh_per_second=4)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        for line in self._lines.values():
            self._each.remove_task(line)
        self._live.stop()

    def show(self, event: Event) -> None:
        super().show(event)
        job = self._jobs[event.trial_id]
        match event:
            case Started():
                self._clock.start(event.trial_id)
                self._lines[event.trial_id] = self._each.add_task(
                    _name(job.cell, where=self._several), total=job.like.recipe.max_epochs, score=""
                )
            case Epoch():
                self._each.update(self._lines[event.trial_id], completed=event.epoch, score=_score(event.row))
            case Done():
                if event.elsewhere:
                    self._clock.pass_over(event.trial_id)
                else:
                    self._clock.stop(event.trial_id)
                if (line := self._lines.pop(event.trial_id, None)) is not None:
                    self._each.remove_task(line)
                if event.status != "ok":
                    self._live.console.print(f"{event.status}: {_name(job.cell)}: {event.reason}", markup=False, highlight=False)
        self._all.update(self._bar, completed=self.done, left=self._clock.left())


def left(results: Results, view: View) -> int:
    """Say what a worker leaves.

    Returns:
        The exit code: 1 when a trial failed or ran out of memory; trials without a result are others' to run.
    """
    counts = ", ".join(f"{count} {name}" for name, count in results.counts.items())
    view.say(f"Nothing is left for this worker: {len(results.trials)} trials, {counts}.")
    for trial in results.failed:
        click.echo(f"{trial.status}: {_name(trial.cell)}: {trial.reason}", err=True)
    return int(bool(results.failed))


def summary(results: Results, what: str, view: View) -> int:
    """Say what there is now, what failed and what is missing.

    Args:
        results: of the run.
        what: was asked for, as an option.
        view: says the rest, unless it is quiet.

    Returns:
        The exit code: 1 when a trial failed, ran out of memory or has no result.
    """
    counts = ", ".join(f"{count} {name}" for name, count in results.counts.items())
    view.say(f"{'Nothing to run: ' if not results.ran else ''}{len(results.trials)} trials, {counts}.")
    where = f" --results {results.results}" if str(results.results) != "results" else ""
    failed, pending = results.failed, results.pending
    for trial in failed:
        path = results.folder(trial) / "trial.json"
        click.echo(f"{trial.status}: {_name(trial.cell)}: {trial.reason} (traceback: {path})", err=True)
    if pending:
        some = "; ".join(_name(trial.cell) for trial in pending[:3]) + ("; ..." if len(pending) > 3 else "")
        count = f"{len(pending)} trials have" if len(pending) > 1 else "1 trial has"
        click.echo(f"{count} no result in {results.results / 'trials'}: {some}. The same command runs what is missing.", err=True)
    if failed:
        click.echo(f"Retry with: milbench run {what}{where} --retry-failed", err=True)
    if failed or pending:
        return 1
    view.say(f"Next: milbench report --suite {results.suite}{where}")
    return 0
