"""Of a suite that searches: which draw of each method stands in the tables."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from milbench.stats import STEP, rounded
from milbench.trials.plan import Cell


class HasResult(Protocol):
    """A cell with its result."""

    @property
    def cell(self) -> Cell:
        """Its place."""

    @property
    def status(self) -> str:
        """`ok`, `pending` or why there is no number."""

    @property
    def result(self) -> Mapping[str, Any]:
        """trial.json, empty without one."""


R = TypeVar("R", bound=HasResult)


def chosen(runs: Sequence[R], metric: str) -> list[R]:
    """Of every method's draws the one that is best on validation; runs without draws stay.

    One draw is chosen for each column, method and fold: that of the highest validation metric, averaged over the seeds, of
    equals the first. A draw with a failed seed cannot be chosen. Nothing is chosen before all draws are finished: then the
    runs that wait stand for the rest, and where no draw succeeded those that say why.

    Args:
        runs: trials of one plan, in its order.
        metric: of the validation part, higher is better.
    """
    groups: dict[tuple[object, ...], list[R]] = defaultdict(list)
    for run in runs:
        c = run.cell
        groups[(*c.column, c.aggregator, c.fold, None if c.draw is not None else c.seed)].append(run)
    return [run for group in groups.values() for run in (group if group[0].cell.draw is None else _best(group, metric))]


def _best(group: Sequence[R], metric: str) -> list[R]:
    by_draw: dict[int, list[R]] = defaultdict(list)
    for run in group:
        by_draw[run.cell.draw or 0].append(run)
    waiting = [run for run in group if run.status == "pending"]
    whole = {draw: seeds for draw, seeds in sorted(by_draw.items()) if all(run.status == "ok" for run in seeds)}
    if waiting or not whole:
        shown = waiting or [run for run in group if run.status != "ok"]
        return list({run.cell.seed: run for run in reversed(shown)}.values())[::-1]

    def score(draw: int) -> float:
        values = [run.result["metrics"].get("val", {}).get(metric) for run in whole[draw]]
        return -math.inf if None in values else rounded(sum(values) / len(values), step=STEP)

    return whole[max(whole, key=score)]
