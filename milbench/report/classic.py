"""Measured on the classic MIL sets, beside what the methods' own papers print: does our interval reach theirs?"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from milbench import numbers, stats
from milbench.papers.printed import Printed, PrintedTable
from milbench.reading import Run, usual
from milbench.report.tables import METRICS, REPLICATES, Entry, Row, Table, strata, with_data
from milbench.trials.plan import Plan

PUBLISHED = "classic_sets"  # of results/published; its ± are standard errors where the paper says what they are
COVER = 1.96  # standard errors either side of a printed mean


def build(plan: Plan, runs: Sequence[Run]) -> Table | None:
    """One row for each printed number of a method, dataset and metric of the plan; None for suites that reproduce another table.

    A result is "within" when the 95 % interval of our mean overlaps the printed mean ± 1.96 standard errors.
    """
    if plan.definition["table"].get("published") != PUBLISHED:
        return None
    printed = PrintedTable(PUBLISHED, usual(runs))
    lines: list[Row] = []
    tidy, sources = [], []
    for column in dict.fromkeys(run.cell.column for run in runs):
        first = len(lines)
        for aggregator in dict.fromkeys(run.cell.aggregator for run in runs if run.cell.column == column):
            own = [run for run in runs if (run.cell.column, run.cell.aggregator) == (column, aggregator)]
            for metric in METRICS:
                number = printed.get(aggregator, column, metric)
                if number is None:
                    continue
                sources.append(f"{number.method}: {number.note}.")
                label = f"{own[0].cell.dataset_label}: {own[0].cell.label}, {METRICS[metric][0]}"
                line = Row(label, [], rule=first > 0 and len(lines) == first)
                lines.append(line)
                shown = Entry(numbers.spread(number.mean, number.sd))
                if any(run.status != "ok" for run in own):
                    line.entries = [*[Entry(numbers.NONE)] * 2, shown, Entry(numbers.NONE), Entry("not run")]
                    continue
                measured, low, high = interval(own, metric, seed=f"{column}|{metric}")
                verdict = _reaches(low, high, number)
                line.entries = [
                    Entry(numbers.number(measured)),
                    Entry(numbers.interval(low, high, ".3f")),
                    shown,
                    Entry(numbers.signed(measured - number.mean)),
                    Entry(verdict),
                ]
                tidy.append({
                    "dataset": column[0], "aggregator": aggregator, "label": own[0].cell.label, "metric": metric,
                    "mean": measured, "low": low, "high": high, "published_mean": number.mean, "published_se": number.sd,
                    "within": {"within": 1, "outside": 0}.get(verdict),
                })  # fmt: skip
    notes = [
        "Measured: mean over folds and repetitions; 95 % interval from a bootstrap over cases, stratified by class, drawn inside "
        f"each fold, {REPLICATES:,} resamples.",
        f"Within: our interval overlaps the printed mean ± {COVER:g} times its ±, read as a standard error; where the paper does "
        "not say that it is one, the verdict is looser or stricter than it looks.",
        "All methods are trained here under one recipe, that of AB-MIL's paper; other papers used their own.",
        *dict.fromkeys(sources),
    ]
    headers = [("", head) for head in ("measured", "95 % interval", "printed", "difference", "verdict")]
    return Table(f"{plan.definition['table']['name']}-printed", "Measured beside printed", headers, lines, notes, tidy)


def _reaches(low: float, high: float, number: Printed) -> str:
    """Whether our interval and that of the printed mean overlap; undefined where either is not known."""
    ends = (low, high, number.mean - COVER * number.sd, number.mean + COVER * number.sd)
    if np.isnan(ends).any():
        return "undefined"
    low, high, least, most = (stats.rounded(end, step=stats.STEP) for end in ends)
    return "within" if low <= most and high >= least else "outside"


def interval(runs: Sequence[Run], metric: str, *, seed: str) -> tuple[float, float, float]:
    """Mean of a metric over runs, and its 95 % bootstrap interval over cases: (mean, low, high)."""

    def nothing(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.zeros(len(counts))

    folds = []
    for fold in sorted({run.cell.fold for run in runs}):
        own = [run for run in runs if run.cell.fold == fold]
        folds.append((strata([(run, run) for run in own]), [(with_data(run, metric), nothing) for run in own]))
    found = stats.paired_bootstrap(folds, replicates=REPLICATES, seed=seed)
    return found.difference, found.low, found.high
