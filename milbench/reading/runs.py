"""The trials of a plan with their results: which stands where, and what it predicted."""

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from milbench import stats
from milbench.errors import MilbenchError
from milbench.metrics import SELECTS, Column
from milbench.reading import draws
from milbench.spelling import parsed, spelled
from milbench.trials import plan as plans
from milbench.trials import predictions
from milbench.trials.plan import Cell, Plan
from milbench.trials.store import Store


@dataclass(frozen=True)
class Run:
    """One trial of a plan with its result.

    Args:
        cell: its place in the tables.
        status: "ok", "failed", "oom", "skipped", "pending", or "absent" where its features are not here.
        result: trial.json without its traceback, empty without one.
        store: where its predictions are.
    """

    cell: Cell
    status: str
    result: Mapping[str, Any] = field(repr=False)
    store: Store = field(repr=False)
    _metrics: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def identity(self) -> str:
        """The trial's id: equal where the predictions are."""
        return self.cell.trial_id

    @property
    def column(self) -> Column:
        """What it was trained and tested on."""
        return self.cell.column

    def metric(self, name: str) -> float:
        """A test metric to 12 digits, so that equal values are equal wherever they were computed; NaN where it is undefined.

        Raises:
            MilbenchError: this task has no such metric.
        """
        if name not in self._metrics:
            test = self.result["metrics"]["test"]
            if name not in test:
                raise MilbenchError(f"trial {self.cell.trial_id} has no metric {name!r}; it has {', '.join(sorted(test))}")
            self._metrics[name] = math.nan if test[name] is None else stats.rounded(test[name], step=stats.STEP)
        return self._metrics[name]

    @cached_property
    def predictions(self) -> predictions.Columns:
        """Columns of predictions.csv in the order of the slides.

        Slide, case (the patient, or the slide itself) and fold, target with score (n, C), or time, event and risk; instances,
        the size of each bag, where the trial recorded it.

        Raises:
            MilbenchError: the file is missing, cannot be read, or disagrees with trial.json.
        """
        return predictions.read(self.store, self.result)


def read(store: Store, plan: Plan) -> list[Run]:
    """Every trial of the plan, in its order; of a suite that searches, those of the draw that validation chose.

    Raises:
        MilbenchError: a result cannot be read, or is not of the place that the plan gives it.
    """
    runs = []
    for cell in plan.cells:
        result = None if cell.missing else store.known(cell.trial_id)
        if result and (wrong := _elsewhere(cell, result)):
            raise MilbenchError(
                f"{plans.path_of(store, plan.suite)}: trial {cell.trial_id} {wrong}; remove it and run the suite again"
            )
        runs.append(Run(cell, "absent" if cell.missing else result["status"] if result else "pending", result or {}, store))
    return draws.chosen(runs, SELECTS[plan.definition["task"]])


_PLACE = ("dataset", "encoder", "magnification", "patch_size", "split", "fold", "seed")


def _elsewhere(cell: Cell, result: Mapping[str, Any]) -> str:
    """What a trial is of instead of the cell that lists it; empty where it is in its place."""
    spec = result["spec"]
    for name in _PLACE:
        if spec[name] != getattr(cell, name):
            return f"is of {name} {spec[name]}, not {getattr(cell, name)}"
    inside = cell.aggregator.removeprefix(spec["aggregator"])
    if inside == cell.aggregator or not (inside == "" or inside.startswith("[")):
        return f"is of aggregator {spec['aggregator']}, not {cell.aggregator}"
    held = _parameters(spec) if inside else {}
    for key, value in parsed(f"x{inside}")[1].items() if inside else ():
        if key in held and parsed(spelled("x", {key: held[key]}))[1][key] != value:
            return f"has {key}={held[key]}, not {value}"
    if result["status"] == "ok" and "test" not in result["metrics"]:
        return "is finished and has no test metrics"
    return ""


def _parameters(spec: dict[str, Any]) -> dict[str, Any]:
    """What a name may change: the method's parameters, and the recipe's values as `recipe.name`."""
    return spec["params"] | {f"recipe.{key}": value for key, value in spec["recipe"].items()}


def usual(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Of each method the parameters, and the recipe as `recipe.name`, that its name stands for: a trial holds all of them.

    What a row changes is known from another of its rows, or not at all.
    """
    values: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.result:
            name, changes = parsed(run.cell.aggregator)
            kept = {key: value for key, value in _parameters(run.result["spec"]).items() if key not in changes}
            values.setdefault(name, {}).update(kept)
    return values


def split_sizes(run: Run) -> dict[int, tuple[int, int]]:
    """Patients that each fold trains on and tests, from the split that the run was made with; empty when its file is not here.

    A slide whose patient is not named is taken as one.
    """
    spec = run.result["spec"]
    name = f"{spec['dataset']}-{spec['split']}-{spec['split_fingerprint'].removeprefix('sha256:')}.csv"
    path = run.store.root / "splits" / name
    if not path.is_file():
        return {}
    patients: dict[tuple[int, str], set[str]] = defaultdict(set)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            patients[int(row["fold"]), row["part"]].add(row["case"] or row["id"])
    return {fold: (len(patients[fold, "train"]), len(patients[fold, "test"])) for fold in sorted({fold for fold, _ in patients})}
