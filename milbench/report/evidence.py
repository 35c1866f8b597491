"""What a difference between methods rests on: printed means and deviations, or predictions in the store. One answer for both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy

from milbench import reading, stats
from milbench.papers import published
from milbench.reading import Run
from milbench.report.tables import REPLICATES, with_data
from milbench.spelling import canonical
from milbench.stats.paired import Metric, Once
from milbench.trials import plan as plans
from milbench.trials.plan import Plan
from milbench.trials.store import Store


class Column(NamedTuple):
    """What numbers are measured on. The split is empty where the table has one only."""

    dataset: str
    encoder: str
    magnification: int | None
    patch_size: int | None
    split: str = ""


class Place(NamedTuple):
    """A method, in its canonical spelling, in a column."""

    aggregator: str
    column: Column


Side = tuple[Place, ...]  # methods whose numbers are summed


class Source(NamedTuple):
    """A printed table, or a part of it, and the suite that reproduces it.

    Args:
        table: its id.
        suite: its name.
        runs: seeds or folds behind each printed mean.
    """

    table: str
    suite: str
    runs: int


@dataclass(frozen=True)
class Estimate(stats.Rounded):
    """A difference and how sure it is.

    Args:
        difference: of means.
        low, high: 95 % interval.
        p: two-sided, against no difference.
        se, df: standard error, and degrees of freedom where it comes from a handful of runs.
        n: what it rests on, for the reader.
    """

    difference: float
    low: float
    high: float
    p: float
    se: float
    df: float | None
    n: str

    @classmethod
    def without_interval(cls, p: float, n: str, difference: float = math.nan) -> "Estimate":
        """Where only a p-value, or not even that, is known."""
        return cls(difference, math.nan, math.nan, p, math.nan, None, n)

    def p_against(self, value: float) -> float:
        """Two-sided p-value against a true difference of `value`."""
        if value == 0 or not self.se > 0:
            return self.p if value == 0 else math.nan
        z = abs(self.difference - value) / self.se
        return stats.rounded(2 * (scipy.norm.sf(z) if self.df is None else scipy.t.sf(z, self.df)))


class Printed:
    """The paper's tables: Welch's unpaired test of means and deviations, since nothing more is printed."""

    ABSENT = "not printed"

    @cached_property
    def _index(self) -> dict[tuple[str, Place, str], published.Number]:
        return {
            (n.table, Place(n.aggregator, Column(n.dataset, n.encoder, n.magnification, n.patch_size)), n.metric): n
            for n in published.numbers()
        }

    def columns(self, table: str) -> list[Column]:
        """Columns of a printed table from left to right."""
        return list(dict.fromkeys(place.column for name, place, _ in self._index if name == table))

    def metrics(self, table: str) -> list[str]:
        """Metrics of a printed table from left to right."""
        return list(dict.fromkeys(metric for name, _, metric in self._index if name == table))

    def rows(self, source: Source, column: Column) -> list[str]:
        """Methods that have a number in the column, from top to bottom."""
        found = (place for name, place, _ in self._index if name == source.table)
        return list(dict.fromkeys(place.aggregator for place in found if place.column == column))

    def mean(self, source: Source, metric: str, places: Side) -> float:
        """Sum of the printed means; NaN where one is not printed."""
        found = [self._index.get((source.table, place, metric)) for place in places]
        return math.fsum(n.mean if n else math.nan for n in found)

    def difference(self, source: Source, metric: str, upper: Side, lower: Side) -> Estimate | str:
        """Sum of the means of `upper` less that of `lower`, or why there is none."""
        sides = [[self._index.get((source.table, place, metric)) for place in side] for side in (upper, lower)]
        if any(n is None for side in sides for n in side):
            return self.ABSENT
        # The mean of a sum of methods is taken as one group of as many runs: its degrees of freedom are then rather too few.
        (mean1, sd1), (mean2, sd2) = (
            (math.fsum(n.mean for n in side if n), math.hypot(*(n.sd for n in side if n))) for side in sides
        )
        runs = source.runs
        test = stats.welch_from_summary(mean1, sd1, runs, mean2, sd2, runs)
        se, df = stats.welch_error(sd1, runs, sd2, runs)
        return Estimate(test.difference, test.low, test.high, test.p, se, df, f"{runs} + {runs}")


class Measured:
    """The results of a store: the paired bootstrap over cases that stands behind the tables, with the same resamples."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._plans: dict[str, Plan | None] = {}
        self._runs: dict[str, dict[Place, list[Run]]] = {}
        self._metrics: dict[tuple[str, str], Once] = {}

    def plan(self, suite: str) -> Plan | None:
        """The suite as it was run, None where it was not."""
        if suite not in self._plans:
            self._plans[suite] = plans.read(self.store, suite) if plans.path_of(self.store, suite).exists() else None
        return self._plans[suite]

    def _at(self, suite: str) -> dict[Place, list[Run]]:
        """The runs of a suite by their place; the column has its split, and a cohort one name whatever its task."""
        if suite not in self._runs:
            plan, found = self.plan(suite), self._runs.setdefault(suite, {})
            for run in reading.read(self.store, plan) if plan else []:
                c = run.cell
                column = Column(c.dataset.removesuffix("-survival"), c.encoder, c.magnification, c.patch_size, c.split)
                found.setdefault(Place(canonical(c.aggregator), column), []).append(run)
        return self._runs[suite]

    def _grid(self, suite: str) -> list[str]:
        """The rows that the suite lists."""
        plan = self.plan(suite)
        return [canonical(row) for row in plan.definition["grid"]["aggregator"]] if plan else []

    def rows(self, source: Source, column: Column) -> list[str]:
        """Methods that were asked for in the column; one that the suite has once goes without its parameters."""
        grid = self._grid(source.suite)
        own = [row.split("[")[0] for row in grid]
        asked = dict.fromkeys(place.aggregator for place in self._at(source.suite) if _within(place.column, column))
        return [row.split("[")[0] if row in grid and own.count(row.split("[")[0]) == 1 else row for row in asked]

    def runs(self, source: Source, place: Place) -> list[Run]:
        """The runs of a method, with the parameters that the suite gives it; one with what it has anyway is the name alone.

        Where those are skipped and one other variant was asked for (such as one that has its weights), the runs of that one.
        """
        name, base = place.aggregator, place.aggregator.split("[")[0]
        named: dict[str, list[Run]] = {}
        for at, runs in self._at(source.suite).items():
            if _within(at.column, place.column) and at.aggregator.split("[")[0] == base:
                named.setdefault(at.aggregator, []).extend(runs)
        own = [row for row in self._grid(source.suite) if row in named]
        usual = reading.usual([run for runs in named.values() for run in runs]).get(base)
        chosen = own[0] if len(own) == 1 and "[" not in name else canonical(name, usual)
        found = named.get(chosen, [])
        others = [runs for row, runs in named.items() if row not in own]
        skipped = all(run.status == "skipped" for run in found)
        return others[0] if skipped and len(others) == 1 and "[" not in name else found

    def difference(self, source: Source, metric: str, upper: Side, lower: Side) -> Estimate | str:
        """Sum of the metrics of `upper` less that of `lower`, or why there is none ("skipped" first where that is for good)."""
        found = {place: self.runs(source, place) for place in (*upper, *lower)}
        for place, runs in found.items():
            if not any(run.status == "ok" for run in runs):
                return _why_not(place, runs)
        done = {
            place: {(run.cell.fold, run.cell.seed): run for run in runs if run.status == "ok"} for place, runs in found.items()
        }
        keys = sorted(set.intersection(*(set(runs) for runs in done.values())))
        if not keys:
            return "no run of the same fold and seed on both sides"
        folds, cases = [], 0
        for fold in sorted({fold for fold, _ in keys}):
            seeds = [key for key in keys if key[0] == fold]
            first = done[upper[0]][seeds[0]].predictions
            if any(not np.array_equal(done[p][key].predictions["slide"], first["slide"]) for p in done for key in seeds):
                return "the two sides test different slides"
            strata = np.asarray(first["event"] if "risk" in first else first["target"]).astype(int)
            sums = [tuple(_Sum([self._metric(done[p][key], metric) for p in side]) for side in (upper, lower)) for key in seeds]
            folds.append((strata, [(method, reference) for method, reference in sums]))
            cases += len(strata)
        run = done[upper[0]][keys[0]]
        c = stats.paired_bootstrap(folds, replicates=REPLICATES, seed=f"{run.cell.column}|{metric}")
        n = f"{cases}" + (f" x {len(keys) // len(folds)}" if len(keys) > len(folds) else "")
        n += f", undefined in {c.undefined} of {c.runs} runs" if c.undefined else ""
        return Estimate(c.difference, c.low, c.high, c.p, c.se, None, n)

    def _metric(self, run: Run, metric: str) -> Once:
        key = (run.cell.trial_id, metric)
        if key not in self._metrics:
            self._metrics[key] = Once(with_data(run, metric))
        return self._metrics[key]


def _within(found: Column, wanted: Column) -> bool:
    return found[:4] == wanted[:4] and wanted.split in ("", found.split)


def _why_not(place: Place, runs: Sequence[Run]) -> str:
    reasons = dict.fromkeys(f"{run.status}: {run.result['reason']}" for run in runs if run.status in ("skipped", "failed", "oom"))
    return "; ".join(reasons) or f"{place.aggregator} is not run"


class _Sum:
    """Sum of metrics of the same cases."""

    def __init__(self, terms: Sequence[Metric]) -> None:
        self._terms = terms

    def __call__(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Counts (B, n) to values (B,)."""
        return np.sum([term(counts) for term in self._terms], axis=0)


PRINTED = Printed()
