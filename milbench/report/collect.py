"""From the store to plain rows: which trial stands where, and what it gave."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milbench import stats
from milbench.errors import MilbenchError
from milbench.spelling import parsed
from milbench.trials import plan as plans
from milbench.trials.plan import Cell, Plan
from milbench.trials.store import PREDICTIONS, Store


@dataclass(frozen=True)
class Run:
    """One trial of a plan with its result.

    Args:
        cell: its place in the tables.
        status: "ok", "failed", "oom", "skipped", "pending", or "absent" where its features are not here.
        result: trial.json, empty without one.
        store: where its predictions are.
    """

    cell: Cell
    status: str
    result: dict[str, Any] = field(repr=False)
    store: Store = field(repr=False)

    def metric(self, name: str) -> float:
        """A test metric to 12 digits, so that equal values are equal wherever they were computed; NaN where it is undefined.

        Raises:
            MilbenchError: this task has no such metric.
        """
        test = self.result["metrics"]["test"]
        if name not in test:
            raise MilbenchError(f"trial {self.cell.trial_id} has no metric {name!r}; it has {', '.join(sorted(test))}")
        return float("nan") if test[name] is None else stats.rounded(test[name], step=stats.TINY)

    @cached_property
    def predictions(self) -> dict[str, NDArray[Any]]:
        """Columns of predictions.csv in the order of the slides: slide, and target with score (n, C), or time, event and risk.

        And instances, the size of each bag, where the trial recorded it.

        Raises:
            MilbenchError: the file is missing or cannot be read.
        """
        path = self.store.folder(self.cell.trial_id) / PREDICTIONS
        again = f"remove the folder {path.parent} and run the suite again"
        if not path.is_file():
            raise MilbenchError(f"{path} is missing; {again}")
        try:
            with path.open(newline="") as file:
                names, *rows = csv.reader(file)
            columns = dict(zip(names, zip(*sorted(rows, key=itemgetter(names.index("slide"))), strict=True), strict=True))
            shared = {"slide": np.array(columns["slide"])}
            if "instances" in columns:
                shared["instances"] = np.array(columns["instances"]).astype(int)
            if "risk" in columns:
                time, risk = (np.array(columns[name]).astype(np.float64) for name in ("time", "risk"))
                return {**shared, "time": time, "event": np.array(columns["event"]) == "1", "risk": risk}
            scores = [columns[name] for name in names if name.startswith("p") and name[1:].isdigit()]
            score = np.array(scores).astype(np.float64).T  # (n, C)
            return {**shared, "target": np.array(columns["target"]).astype(int), "score": score}
        except (KeyError, ValueError) as error:
            raise MilbenchError(f"{path} cannot be read ({error}); {again}") from error


def usual(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Of each method the parameters, and the recipe as `recipe.name`, that its name stands for: a trial holds all of them.

    What a row changes is told by another of its rows, or not at all.
    """
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.result:
            spec, (name, changes) = run.result["spec"], parsed(run.cell.aggregator)
            values = spec["params"] | {f"recipe.{key}": value for key, value in spec["recipe"].items()}
            found.setdefault(name, {}).update({key: value for key, value in values.items() if key not in changes})
    return found


def leaves(store: Store, suite: str) -> list[Plan]:
    """The plans with cells behind `suite`, each once: those of the suites it includes, then its own.

    Raises:
        MilbenchError: the suite was not run into this store.
    """
    plan = plans.read(store, suite)
    found = [leaf for name in _included(plan) if plans.path_of(store, name).exists() for leaf in leaves(store, name)]
    return list({leaf.suite: leaf for leaf in [*found, *([plan] if plan.cells else [])]}.values())


def not_run(store: Store, suite: str) -> list[str]:
    """The included suites of which this store has nothing."""
    here = {name: plans.path_of(store, name).exists() for name in _included(plans.read(store, suite))}
    below = [deeper for name, known in here.items() if known for deeper in not_run(store, name)]
    return list(dict.fromkeys(below + [name for name, known in here.items() if not known]))


def _included(plan: Plan) -> list[str]:
    return list(plan.definition.get("includes", []))


def joined(leaves: Sequence[Plan]) -> list[Plan]:
    """Plans whose suites fill one printed table together become one plan, in the place of the first."""
    groups: dict[str, list[Plan]] = {}
    for plan in leaves:
        layout = plan.definition["table"]
        groups.setdefault(layout.get("published", "") if layout.get("joined") else plan.suite, []).append(plan)
    return [_one(plans) if len(plans) > 1 else plans[0] for plans in groups.values()]


def _one(parts: Sequence[Plan]) -> Plan:
    first = parts[0].definition
    layouts, grids = ([part.definition[key] for part in parts] for key in ("table", "grid"))
    layout = {**first["table"], "name": first["table"]["published"].rpartition("/")[2]}
    for key in ("heads", "labels"):
        layout[key] = {name: text for each in layouts for name, text in each[key].items()}
    grid = {key: list(dict.fromkeys(v for each in grids for v in each[key])) for key in ("dataset", "seed", "aggregator")}
    definition = {
        **first,
        "title": first["table"]["joined"],
        "reproduces": "; ".join(part.definition["reproduces"] for part in parts),
        "table": layout,
        "grid": grid,
    }
    return Plan(
        suite="+".join(part.suite for part in parts),
        definition=definition,
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
        cells=[cell for part in parts for cell in part.cells],
    )


SELECTED_ON = {"subtyping": "macro_auc", "survival": "c_index"}


def runs(store: Store, plan: Plan) -> list[Run]:
    """Every trial of the plan, in its order; of a suite that searches, those of the draw that validation chose."""
    out = []
    for cell in plan.cells:
        result = None if cell.missing else store.raw(cell.trial_id)
        out.append(Run(cell, "absent" if cell.missing else result["status"] if result else "pending", result or {}, store))
    return plans.select_draws(out, SELECTED_ON[plan.definition["task"]])


def title(store: Store, suite: str) -> str:
    """One line about the suite."""
    return str(plans.read(store, suite).definition["title"])
