"""`milbench profile harness`: what milbench itself costs around the training of a model: per step, per trial, per worker."""

from __future__ import annotations

import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from milbench import plugins, recipes, tasks
from milbench.bags import Bag
from milbench.datasets.files import manifest
from milbench.datasets.files.adding import joined
from milbench.engines import Done, Event, Started
from milbench.profiling import data as files
from milbench.training import Steps

METHOD = "abmil"  # the method that is trained: of the cheap ones, so that what surrounds a step shows
SPLIT = "kfold5"
SUITE = """title = "Cost of the harness"
[grid]
dataset = ["{dataset}"]
encoder = ["generated"]
split = ["{split}"]
fold = [0]
seed = {seeds}
aggregator = ["{method}"]
[recipe]
name = "paper"
max_epochs = {epochs}
[table]
name = "{dataset}"
metrics = ["macro_auc"]
"""


@dataclass(frozen=True)
class Cost:
    """One number, and the bar that it is held against.

    Args:
        what: in words.
        value: the number. unit: of it.
        limit: the bar; None where there is none.
        at_least: whether the value must reach the bar, instead of staying below it.
    """

    what: str
    value: float
    unit: str
    limit: float | None = None
    at_least: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the value keeps to its bar; None without one."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def step(patches: int = 4096, *, slides: int = 8, epochs: int = 5) -> list[Cost]:
    """A training step of AB-MIL in milbench, beside the loop that anybody would write with torch alone.

    Both train equal models on the same bags in memory; epochs alternate after one that warms up, and medians are compared.

    Args:
        patches: of a bag, of 1,024 features.
        slides: bags of an epoch.
        epochs: of each kind.
    """
    task, recipe = tasks.Subtyping(("negative", "positive")), recipes.get("paper", "subtyping")
    bags = [Bag(torch.randn(patches, files.WIDTH), slide_id=f"slide-{i}", case_id=f"slide-{i}") for i in range(slides)]
    targets = [torch.tensor(i % 2) for i in range(slides)]
    ours, bare = (plugins.resolve(METHOD).build(files.WIDTH, 2) for _ in range(2))
    bare.load_state_dict(ours.state_dict())
    bare.train()
    steps = Steps(ours, bags, targets, task, recipe, lambda epoch: range(slides))
    optimiser = _optimiser(bare)

    taken = [
        (_seconds(partial(steps.epoch, number)), _seconds(partial(_bare_epoch, bare, optimiser, bags, targets)))
        for number in range(1, epochs + 2)
    ][1:]
    milbench, alone = (1e3 * statistics.median(column) / slides for column in zip(*taken, strict=True))
    return [
        Cost(f"a training step at n = {patches:,}", milbench, "ms"),
        Cost("the same in a bare loop", alone, "ms"),
        Cost("milbench over the bare loop", 100 * (milbench / alone - 1), "%", 3.0),
    ]


def _optimiser(model: nn.Module) -> torch.optim.Optimizer:
    recipe = recipes.get("paper", "subtyping")
    return torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)


def _bare_epoch(model: nn.Module, optimiser: torch.optim.Optimizer, bags: Sequence[Bag], targets: Sequence[Tensor]) -> None:
    for bag, target in zip(bags, targets, strict=True):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(bag).logits[None], target[None]).backward()
        optimiser.step()


def _bare_trial(bags: Sequence[Bag], targets: Sequence[Tensor]) -> None:
    """What a tiny trial is in a script with torch alone: a model, an epoch of 12 bags, predictions for 4 and for other 4."""
    model = plugins.resolve(METHOD).build(files.WIDTH, 2)
    _bare_epoch(model, _optimiser(model), bags[:12], targets[:12])
    model.eval()
    with torch.no_grad():
        for bag in bags[12:]:
            model(bag).logits.softmax(-1).numpy()


def _beside_a_script(ours: Iterator[float]) -> list[tuple[float, float]]:
    """Seconds of each trial but the first, and of the script just after it."""
    targets = [torch.tensor(i % 2) for i in range(20)]
    bags = [Bag(torch.randn(10, files.WIDTH), slide_id=f"slide-{i}", case_id=f"slide-{i}") for i in range(20)]
    return [(trial, _seconds(partial(_bare_trial, bags, targets))) for trial in ours][1:]


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class Clock:
    """Notes when an engine's first trial starts, when it ends, and when the last one ends, in seconds from the engine's start."""

    def __init__(self) -> None:
        self.first = self.warm = self.last = 0.0
        self._started = 0.0

    def start(self) -> None:
        """The engine starts now."""
        self._started = time.perf_counter()

    def __call__(self, event: Event) -> None:
        """Take an event of the engine."""
        now = time.perf_counter() - self._started
        if isinstance(event, Started) and not self.first:
            self.first = now
        if isinstance(event, Done):
            self.warm, self.last = self.warm or now, now


Run = Callable[[Path, Path, int, Clock], Sequence[float]]
Here = Callable[[Path, Path], Iterator[float]]


def trials(run: Run, here: Here, *, tiny: int = 100, large: int = 12, patches: int = 4096) -> list[Cost]:
    """Start-up of a worker, a tiny trial beside a script that does the same, and trials an hour with one and with two workers.

    A worker's first trial belongs to its start-up: torch loads its compiler with the first optimiser, which takes seconds. What a
    trial costs has two parts, each a difference of times that were taken at the same moment, since a machine is faster at one
    than at another: between the trials of a worker, and within a trial beside a script that does the same in this process.

    Args:
        run: runs the suite in the TOML file, with results in the folder and so many workers, and tells the clock; returns the
            seconds of each trial, from its start until its result is written down.
        here: runs the suite in this process, with results in the folder; yields these seconds of each trial.
        tiny: trials on 20 bags of about 10 patches, one epoch each.
        large: trials on 10 bags of about `patches` patches.
        patches: see `large`.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        small, big = (_suite(home, *of) for of in (("tiny", 20, 10, tiny, 1), ("large", 10, patches, large, 4)))
        alone = Clock()
        _, *each = run(small, home, 1, alone)
        pairs = _beside_a_script(here(small, home / "here"))
        times = []
        for workers in (1, 2):
            clock = Clock()
            run(big, home / f"{workers}", workers, clock)
            times.append(clock.last - clock.first)
    between = 1e3 * (alone.last - alone.warm - sum(each)) / (tiny - 1)
    within = 1e3 * statistics.median(trial - bare for trial, bare in pairs)
    hourly = [large / seconds * 3600 for seconds in times]
    return [
        Cost("a worker until its first trial", alone.first, "s"),
        Cost("a worker until its first result", alone.warm, "s"),
        Cost("a tiny trial in a bare script", 1e3 * statistics.median(bare for _, bare in pairs), "ms"),
        Cost("milbench within the trial", within, "ms"),
        Cost("milbench between two trials", between, "ms"),
        Cost("milbench over the bare script", within + between, "ms", 30.0),
        Cost("trials an hour, one worker", hourly[0], ""),
        Cost("trials an hour, two workers", hourly[1], ""),
        Cost("two workers over one", hourly[1] / hourly[0], "x", 1.8, at_least=True),
    ]


def _suite(home: Path, name: str, slides: int, patches: int, seeds: int, epochs: int) -> Path:
    """A dataset of generated files in `home`, and the suite of so many trials on it."""
    features = home / name
    features.mkdir()
    sizes = files.write_files(features, slides, patches, {"dtype": "float32"})
    with (home / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("slide_id", "label"), *((id, "ab"[at % 2]) for at, id in enumerate(sizes))])
    added = joined(name, features=features, encoder="generated", step=512.0, labels=home / f"{name}.csv", home=home / "data")
    manifest.save(added)
    suite = home / f"{name}-suite.toml"
    suite.write_text(SUITE.format(dataset=name, split=SPLIT, seeds=list(range(seeds)), method=METHOD, epochs=epochs))
    return suite
