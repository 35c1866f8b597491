"""What a run shows while it works, and when it ends."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from milbench import interrupt
from milbench.engines import Done, Epoch, Event, Run, Started, run_local
from milbench.trials.plan import Job
from milbench.trials.store import Store
from milbench.words import duration

MARKS = {"ok": "done", "pending": "to run", "failed": "failed", "oom": "oom", "skipped": "skipped", "absent": "not here"}


class _Clock:
    """Time left: what is still to run, at the mean duration of its own aggregator, shared by the workers.

    Kept as sums, so that asking costs the same however many trials wait.
    """

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self._kind = {job.spec.trial_id: job.cell.aggregator for job in jobs}
        self._waiting = Counter(self._kind.values())  # not begun, by aggregator
        self._workers = workers
        self._since: dict[str, float] = {}
        self._took: dict[str, float] = defaultdict(float)
        self._done: Counter[str] = Counter()

    def start(self, trial_id: str) -> None:
        self._waiting[self._kind[trial_id]] -= 1
        self._since[trial_id] = time.monotonic()

    def stop(self, trial_id: str) -> float:
        took = time.monotonic() - self._since.pop(trial_id)
        self._took[self._kind[trial_id]] += took
        self._done[self._kind[trial_id]] += 1
        return took

    def left(self) -> str:
        if not self._done or self._done.total() == len(self._kind):
            return ""
        mean = sum(self._took.values()) / self._done.total()
        now = time.monotonic()

        def whole(kind: str) -> float:
            return self._took[kind] / self._done[kind] if self._done[kind] else mean

        total = sum(count * whole(kind) for kind, count in self._waiting.items())
        total += sum(max(0.0, whole(self._kind[trial_id]) - (now - since)) for trial_id, since in self._since.items())
        return f"{duration(total / self._workers)} left"


def _name(job: Job) -> str:
    s = job.spec
    where = [s.dataset, s.encoder, *([f"{s.magnification}x"] if s.magnification else [])]
    return f"{job.cell.label} · {' '.join(where)} · fold {s.fold} · seed {s.seed}"


def _score(row: dict[str, float | None]) -> str:
    for key, value in row.items():
        if key.startswith("val_") and key != "val_loss":
            return f"{key.replace('_', ' ')} {'undefined' if value is None else f'{value:.3f}'}"
    return f"loss {row['train_loss']:.3f}"


def run(run: Run, *, already: int) -> None:
    """Run the jobs and show how it goes: bars on a terminal, plain lines elsewhere. `already` more trials have a result."""
    jobs, workers = run.jobs, run.workers
    if not jobs:
        return
    clock, by_id = _Clock(jobs, workers), {job.spec.trial_id: job for job in jobs}
    where = f"{workers} worker{'s' * (workers > 1)} on {jobs[0].spec.device}"
    click.echo(f"{len(jobs)} trials to run, {already} have a result. {where}. Ctrl-C stops; run again to go on.")
    view: _Bars | _Lines = _Bars(by_id, clock) if sys.stdout.isatty() else _Lines(by_id, clock, Store(run.settings.results))
    interrupt.say_at_the_end(
        lambda: f"Stopped. {view.done} of {len(jobs)} trials were finished and are kept; the same command continues."
    )
    with interrupt.noted(), view:  # so that the view can close, too
        run_local(run, view.show)


class _Lines:
    """One line per finished trial."""

    def __init__(self, jobs: dict[str, Job], clock: _Clock, store: Store) -> None:
        self._jobs, self._clock, self._store, self.done = jobs, clock, store, 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, event: Event) -> None:
        match event:
            case Started():
                self._clock.start(event.trial_id)
            case Done():
                self.done += 1
                took = self._clock.stop(event.trial_id)
                what = event.reason or _tested(self._store, event.trial_id)
                width = len(str(len(self._jobs)))
                parts = [event.status, _name(self._jobs[event.trial_id]), what, f"{took:.1f} s", self._clock.left()]
                click.echo(f"[{self.done:{width}}/{len(self._jobs)}] " + "  ".join(part for part in parts if part))


def _tested(store: Store, trial_id: str) -> str:
    test = (store.raw(trial_id) or {}).get("metrics", {}).get("test", {})
    for key in ("macro_auc", "c_index"):
        if test.get(key) is not None:
            return f"test {key.replace('_', ' ')} {test[key]:.3f}"
    return ""


class _Bars:
    """One bar for all trials, one line for each that runs."""

    def __init__(self, jobs: dict[str, Job], clock: _Clock) -> None:
        self._jobs, self._clock, self.done = jobs, clock, 0
        self._all = Progress(TextColumn("[bold]trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        self._each = Progress(
            TextColumn("  {task.description}"),
            BarColumn(20),
            TextColumn("epoch {task.completed}/{task.total}  {task.fields[score]}"),
        )
        self._bar = self._all.add_task("", total=len(jobs), left="")
        self._lines: dict[str, TaskID] = {}
        self._live = Live(Group(self._all, self._each), console=Console(), refresh_per_second=4)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        for line in self._lines.values():
            self._each.remove_task(line)
        self._live.stop()

    def show(self, event: Event) -> None:
        job = self._jobs[event.trial_id]
        match event:
            case Started():
                self._clock.start(event.trial_id)
                self._lines[event.trial_id] = self._each.add_task(_name(job), total=job.spec.recipe.max_epochs, score="")
            case Epoch():
                self._each.update(self._lines[event.trial_id], completed=event.epoch, score=_score(event.row))
            case Done():
                self.done += 1
                self._clock.stop(event.trial_id)
                self._each.remove_task(self._lines.pop(event.trial_id))
                if event.status != "ok":
                    self._live.console.print(f"{event.status}: {_name(job)}: {event.reason}", markup=False, highlight=False)
        self._all.update(self._bar, completed=self.done, left=self._clock.left())


def summary(jobs: Sequence[Job], store: Store, *, ran: int, suite: str, results: Path) -> int:
    """Say what there is now, what failed and what is missing.

    Returns:
        The exit code: 1 when a trial failed, ran out of memory or has no result.
    """
    state = {job.spec.trial_id: store.raw(job.spec.trial_id) for job in jobs}
    counts: dict[str, int] = defaultdict(int)
    for found in state.values():
        counts[found["status"] if found else "pending"] += 1
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    click.echo(f"{'Nothing to run: ' if not ran else ''}{len(jobs)} trials, {told}.")
    where = f" --results {results}" if str(results) != "results" else ""
    absent = [job for job in jobs if state[job.spec.trial_id] is None]
    bad = [job for job in jobs if (found := state[job.spec.trial_id]) and found["status"] in ("failed", "oom")]
    for job in bad:
        found = state[job.spec.trial_id] or {}
        click.echo(
            f"{found['status']}: {_name(job)}: {found['reason']} (traceback: {store.folder(job.spec.trial_id) / 'trial.json'})",
            err=True,
        )
    if absent:
        some = "; ".join(map(_name, absent[:3])) + ("; ..." if len(absent) > 3 else "")
        count = f"{len(absent)} trials have" if len(absent) > 1 else "1 trial has"
        click.echo(f"{count} no result in {store.trials}: {some}. The same command runs what is missing.", err=True)
    if bad:
        click.echo(f"Retry with: milbench run --suite {suite}{where} --retry-failed", err=True)
    if bad or absent:
        return 1
    click.echo(f"Next: milbench report --suite {Path(suite).stem}{where}")
    return 0
