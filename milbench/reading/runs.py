"""From the store to plain rows: which trial stands where, and what it gave."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from milbench import stats
from milbench.errors import MilbenchError
from milbench.spelling import parsed, spelled
from milbench.trials import plan as plans
from milbench.trials import predictions
from milbench.trials.definition import leaves, not_run
from milbench.trials.plan import Cell, Plan
from milbench.trials.store import Store

__all__ = ["Run", "joined", "leaves", "not_run", "read", "title", "usual"]


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
        return float("nan") if test[name] is None else stats.rounded(test[name], step=stats.STEP)

    @cached_property
    def predictions(self) -> predictions.Columns:
        """Columns of predictions.csv in the order of the slides: slide, and target with score (n, C), or time, event and risk.

        And instances, the size of each bag, where the trial recorded it.

        Raises:
            MilbenchError: the file is missing, cannot be read, or disagrees with trial.json.
        """
        return predictions.read(self.store, self.result)


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


def read(store: Store, plan: Plan) -> list[Run]:
    """Every trial of the plan, in its order; of a suite that searches, those of the draw that validation chose.

    Raises:
        MilbenchError: a result cannot be read, or is not of the place that the plan gives it.
    """
    out = []
    for cell in plan.cells:
        result = None if cell.missing else store.raw(cell.trial_id)
        if result and (wrong := _elsewhere(cell, result)):
            raise MilbenchError(
                f"{plans.path_of(store, plan.suite)}: trial {cell.trial_id} {wrong}; remove it and run the suite again"
            )
        out.append(Run(cell, "absent" if cell.missing else result["status"] if result else "pending", result or {}, store))
    return plans.select_draws(out, SELECTED_ON[plan.definition["task"]])


_PLACE = ("dataset", "encoder", "magnification", "patch_size", "split", "fold", "seed")


def _elsewhere(cell: Cell, result: dict[str, Any]) -> str:
    """What a trial is of instead of the cell that lists it; empty where it is in its place."""
    spec = result["spec"]
    for name in _PLACE:
        if spec[name] != getattr(cell, name):
            return f"is of {name} {spec[name]}, not {getattr(cell, name)}"
    inside = cell.aggregator.removeprefix(spec["aggregator"])
    if inside == cell.aggregator or not (inside == "" or inside.startswith("[")):
        return f"is of aggregator {spec['aggregator']}, not {cell.aggregator}"
    held = spec["params"] | {f"recipe.{key}": value for key, value in spec["recipe"].items()}
    for key, value in parsed(f"x{inside}")[1].items():
        if key in held and parsed(spelled("x", {key: held[key]}))[1][key] != value:
            return f"has {key}={held[key]}, not {value}"
    if result["status"] == "ok" and "test" not in result["metrics"]:
        return "is finished and has no test metrics"
    return ""


def title(store: Store, suite: str) -> str:
    """One line about the suite."""
    return str(plans.read(store, suite).definition["title"])
