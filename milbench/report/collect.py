"""From the store to plain rows: which trial stands where, and what it gave."""

import csv
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milbench.errors import MilbenchError
from milbench.trials import plan as plans
from milbench.trials.plan import Cell, Plan
from milbench.trials.store import PREDICTIONS, Store


@dataclass(frozen=True)
class Run:
    """One trial of a plan with its result.

    Args:
        cell: its place in the tables.
        status: "ok", "failed", "oom", "skipped" or "pending".
        result: trial.json, empty while pending.
        store: where its predictions are.
    """

    cell: Cell
    status: str
    result: dict[str, Any] = field(repr=False)
    store: Store = field(repr=False)

    def metric(self, name: str) -> float:
        """A test metric; NaN where the data did not define it.

        Raises:
            MilbenchError: this task has no such metric.
        """
        test = self.result["metrics"]["test"]
        if name not in test:
            raise MilbenchError(f"trial {self.cell.trial_id} has no metric {name!r}; it has {', '.join(sorted(test))}")
        return float("nan") if test[name] is None else float(test[name])

    @cached_property
    def predictions(self) -> dict[str, NDArray[Any]]:
        """Columns of predictions.csv in the order of the slides: slide, and target with score (n, C), or time, event and risk.

        And instances, the size of each bag, where the trial recorded it.

        Raises:
            MilbenchError: the file is missing.
        """
        path = self.store.folder(self.cell.trial_id) / PREDICTIONS
        if not path.is_file():
            raise MilbenchError(f"{path} is missing; remove the folder {path.parent} and run the suite again")
        with path.open(newline="") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: row["slide"])
        shared = {"slide": np.array([row["slide"] for row in rows])}
        if "instances" in rows[0]:
            shared["instances"] = np.array([int(row["instances"]) for row in rows])
        if "risk" in rows[0]:
            return {
                **shared,
                "time": np.array([float(row["time"]) for row in rows]),
                "event": np.array([row["event"] == "1" for row in rows]),
                "risk": np.array([float(row["risk"]) for row in rows]),
            }
        classes = sum(key.startswith("p") and key[1:].isdigit() for key in rows[0])
        return {
            **shared,
            "target": np.array([int(row["target"]) for row in rows]),
            "score": np.array([[float(row[f"p{c}"]) for c in range(classes)] for row in rows]),
        }


def leaves(store: Store, suite: str) -> list[Plan]:
    """The plans with cells behind `suite`: those of the suites it includes, then its own.

    Raises:
        MilbenchError: the suite was not run into this store.
    """
    plan = plans.read(store, suite)
    found = [
        leaf
        for name in plan.definition.get("includes", [])
        if plans.path_of(store, name).exists()
        for leaf in leaves(store, name)
    ]
    return found + ([plan] if plan.cells else [])


def runs(store: Store, plan: Plan) -> list[Run]:
    """Every trial of the plan, in its order."""
    out = []
    for cell in plan.cells:
        result = store.raw(cell.trial_id)
        out.append(Run(cell, result["status"] if result else "pending", result or {}, store))
    return out
