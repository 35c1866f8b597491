"""What a difference between methods rests on: printed means and deviations, or predictions in the store. One answer for both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import scipy

from milbench import reading, stats
from milbench.compare.pairing import OtherCasesError, Shared
from milbench.compare.primary import Contrast, contrast, trainings
from milbench.metrics import METRICS, Column
from milbench.papers import Paper, Printed
from milbench.reading import Run
from milbench.spelling import canonical
from milbench.stats.variance import POWER, satterthwaite
from milbench.trials import plan as plans
from milbench.trials.plan import Plan
from milbench.trials.store import Store
from milbench.words import counted


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
        se, df: standard error behind them, and its degrees of freedom.
        n: what it rests on, for the reader.
        training_variance, training_df: how much of se^2 comes from which trainings were made, on these very slides, and its
            degrees of freedom; NaN where that is not known.
    """

    difference: float
    low: float
    high: float
    p: float
    se: float
    df: float
    n: str
    training_variance: float = math.nan
    training_df: float = math.nan

    @classmethod
    def without_interval(cls, p: float, n: str, difference: float = math.nan) -> "Estimate":
        """Where only a p-value, or not even that, is known."""
        return cls(difference, math.nan, math.nan, p, math.nan, math.nan, n)

    @classmethod
    def of_test(cls, test: stats.Primary, n: str = "") -> "Estimate":
        """What the primary test says, for other patients and other trainings."""
        terms = [term for fold in test.folds for term in zip(fold.mean_squares, fold.df_trainings, strict=True)]
        variance = df = math.nan
        if min(df for _, df in terms) > 0:
            variance, df = satterthwaite([(square / len(test.folds) ** 2, df) for square, df in terms])
        elif len(test.folds) > 1:  # one training a fold: folds differ by trainings, and by patients too
            variance, df = test.variance, test.df
        se = math.sqrt(test.variance) if not math.isnan(test.p) else math.nan
        return cls(test.difference, test.low, test.high, test.p, se, test.df, n, variance, df)

    @property
    def detectable(self) -> float:
        """The true difference that would be significant with a chance of 80 %; NaN where the standard error is not known."""
        return float(stats.rounded(self.se * scipy.stats.t.ppf([0.975, POWER], self.df).sum()))

    def p_against(self, value: float) -> float:
        """Two-sided p-value against a true difference of `value`."""
        if value == 0 or not self.se > 0:
            return self.p if value == 0 else math.nan
        return stats.rounded(2 * scipy.stats.t.sf(abs(self.difference - value) / self.se, self.df))

    def p_same(self, other: "Estimate") -> float:
        """Two-sided p-value of the same methods having been trained anew: the other's trainings on the same slides.

        se^2 = the part of both that comes from trainings. The slides are the same, so which patients are tested cancels; which
        training does well on which patient does not, and is in both parts.
        """
        terms = [(e.training_variance, e.training_df) for e in (self, other)]
        variance, df = satterthwaite(terms)
        if not variance > 0:
            return math.nan
        return stats.rounded(2 * scipy.stats.t.sf(abs(self.difference - other.difference) / math.sqrt(variance), df))


class OnPaper:
    """A paper's tables: Welch's unpaired test of means and deviations, since nothing more is printed.

    It asks about other trainings on these slides only; other patients are not in it.
    """

    ABSENT = "not printed"

    def __init__(self, paper: Paper) -> None:
        self.paper = paper

    @cached_property
    def _index(self) -> dict[tuple[str, Place, str], Printed]:
        return {(n.table, Place(n.aggregator, n.column), n.metric): n for n in self.paper.numbers}

    def columns(self, table: str) -> list[Column]:
        """Columns of a printed table from left to right."""
        return list(dict.fromkeys(place.column for name, place, _ in self._index if name == table))

    def metrics(self, table: str) -> list[str]:
        """Metrics of a printed table from left to right."""
        return list(dict.fromkeys(metric for name, _, metric in self._index if name == table))

    def rows(self, source: Source, column: Column) -> list[str]:
        """Methods that have a number in the column, from top to bottom."""
        places = (place for name, place, _ in self._index if name == source.table)
        return list(dict.fromkeys(place.aggregator for place in places if place.column == column))

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
        return Estimate(test.difference, test.low, test.high, test.p, se, df, f"{runs} + {runs}", se**2, df)


class Measured:
    """The results of a store: the primary test that stands behind the tables, of the same trainings."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._plans: dict[str, Plan | None] = {}
        self._runs: dict[str, dict[Place, list[Run]]] = {}
        self._shared = Shared()

    def plan(self, suite: str) -> Plan | None:
        """The suite as it was run, None where it was not."""
        if suite not in self._plans:
            self._plans[suite] = plans.read(self.store, suite) if plans.path_of(self.store, suite).exists() else None
        return self._plans[suite]

    def at(self, suite: str) -> dict[Place, list[Run]]:
        """The runs of a suite by their place; the column has its split, and a cohort the same name for each of its tasks."""
        if suite not in self._runs:
            plan, places = self.plan(suite), self._runs.setdefault(suite, {})
            for run in reading.read(self.store, plan) if plan else []:
                column = run.column._replace(dataset=run.column.dataset.removesuffix("-survival"))
                places.setdefault(Place(canonical(run.cell.aggregator), column), []).append(run)
        return self._runs[suite]

    def _grid(self, suite: str) -> list[str]:
        """The rows that the suite lists."""
        plan = self.plan(suite)
        return [canonical(row) for row in plan.definition["grid"]["aggregator"]] if plan else []

    def rows(self, source: Source, column: Column) -> list[str]:
        """Methods that were asked for in the column; a method that the suite lists once goes without its parameters."""
        grid = self._grid(source.suite)
        listed = [row.split("[")[0] for row in grid]
        asked = dict.fromkeys(place.aggregator for place in self.at(source.suite) if _within(place.column, column))
        return [row.split("[")[0] if row in grid and listed.count(row.split("[")[0]) == 1 else row for row in asked]

    def runs(self, source: Source, place: Place) -> list[Run]:
        """The runs of a method, with the parameters that the suite gives it; those that it has anyway are not part of its name.

        Where they are skipped and a single other variant was asked for (such as the one that has its weights), its runs.
        """
        name, base = place.aggregator, place.aggregator.split("[")[0]
        named: dict[str, list[Run]] = {}
        for at, runs in self.at(source.suite).items():
            if _within(at.column, place.column) and at.aggregator.split("[")[0] == base:
                named.setdefault(at.aggregator, []).extend(runs)
        listed = [row for row in self._grid(source.suite) if row in named]
        usual = reading.usual([run for runs in named.values() for run in runs]).get(base)
        chosen = named.get(listed[0] if len(listed) == 1 and "[" not in name else canonical(name, usual), [])
        others = [runs for row, runs in named.items() if row not in listed]
        skipped = all(run.status == "skipped" for run in chosen)
        return others[0] if skipped and len(others) == 1 and "[" not in name else chosen

    def difference(self, source: Source, metric: str, upper: Side, lower: Side) -> Estimate | str:
        """Sum of the metrics of `upper` less that of `lower`, or why there is none ("skipped" first where that is for good)."""
        runs = {place: self.runs(source, place) for place in (*upper, *lower)}
        for place, asked in runs.items():
            if not any(run.status == "ok" for run in asked):
                return _why_not(place, asked)
        a, b = (trainings(*(runs[place] for place in side)) for side in (upper, lower))
        try:
            found = contrast(a, b, METRICS[metric], self._shared)
        except OtherCasesError:
            return "the two sides test different slides"
        return Estimate.of_test(found.test, _rests_on(found)) if found else "no training of the same fold on both sides"


def _rests_on(found: Contrast) -> str:
    """`5 + 5, 31 patients`."""
    test = found.test
    n = f"{test.trainings[0]} + {test.trainings[1]}, {counted(test.patients, 'patient' if test.patients_known else 'slide')}"
    without = "seen once" if found.seen_once else test.why
    return n + (f", {without}" if math.isnan(test.p) else "")


def _within(column: Column, wanted: Column) -> bool:
    return column[:4] == wanted[:4] and wanted.split in ("", column.split)


def _why_not(place: Place, runs: Sequence[Run]) -> str:
    reasons = dict.fromkeys(f"{run.status}: {run.result['reason']}" for run in runs if run.status in ("skipped", "failed", "oom"))
    return "; ".join(reasons) or f"{place.aggregator} is not run"
