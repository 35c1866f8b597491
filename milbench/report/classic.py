"""Measured on the classic MIL sets, beside what the methods' own papers print: does our interval reach theirs?"""

import csv
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from milbench import stats
from milbench.report.collect import Run
from milbench.report.tables import METRICS, REPLICATES, Entry, Row, Table, strata, with_data
from milbench.trials.plan import Plan

FILE = "classic_sets.csv"
COVER = 1.96  # standard errors either side of a printed mean


def build(plan: Plan, runs: Sequence[Run]) -> Table | None:
    """One row for each printed result of a method and dataset of the plan; None where nothing is printed.

    A cell is "within" when the 95 % interval of our mean overlaps the printed mean ± 1.96 standard errors.
    """
    lines: list[Row] = []
    tidy = []
    printed = list(csv.DictReader((files("milbench_published") / FILE).read_text().splitlines()))
    for dataset in dict.fromkeys(run.cell.dataset for run in runs):
        for p in (p for p in printed if p["dataset"] == dataset):
            own = [run for run in runs if (run.cell.dataset, run.cell.aggregator) == (dataset, p["aggregator"])]
            done = [run for run in own if run.status == "ok"]
            if not own:
                continue
            mean, half = float(p["mean"]), float(p["plus_minus"])
            shown = [Entry(f"{mean:.3f} ± {half:.3f}"), Entry(p["plus_minus_is"])]
            label = f"{own[0].cell.dataset_label}: {own[0].cell.label}"
            rule = bool(lines) and not lines[-1].label.startswith(f"{own[0].cell.dataset_label}:")
            if len(done) < len(own):
                lines.append(Row(label, [Entry("–"), Entry("–"), *shown, Entry("–"), Entry("not run")], rule))
                continue
            measured, low, high = interval(done, p["metric"], seed=f"{plan.suite}|{dataset}|{p['metric']}")
            within = low <= mean + COVER * half and high >= mean - COVER * half
            lines.append(
                Row(
                    label,
                    [
                        Entry(f"{measured:.3f}"),
                        Entry(f"[{low:.3f}, {high:.3f}]"),
                        *shown,
                        Entry(f"{measured - mean:+.3f}"),
                        Entry("within" if within else "outside"),
                    ],
                    rule,
                )
            )
            tidy.append({
                "dataset": dataset, "aggregator": p["aggregator"], "label": own[0].cell.label,
                "metric": p["metric"], "mean": measured, "low": low, "high": high, "printed_mean": mean,
                "printed_plus_minus": half, "plus_minus_is": p["plus_minus_is"], "within": int(within),
                "verified": p["verified"], "source": p["source"],
            })  # fmt: skip
    if not lines:
        return None
    asked = {(run.cell.dataset, run.cell.aggregator) for run in runs}
    used = [p for p in printed if (p["dataset"], p["aggregator"]) in asked]
    metrics = ", ".join(dict.fromkeys(METRICS[p["metric"]][0] for p in used))
    notes = [
        f"Ours: mean {metrics} over folds and repetitions; 95 % interval from a bootstrap over cases, stratified by class, drawn "
        f"inside each fold, {REPLICATES:,} resamples.",
        f"Within: our interval overlaps the printed mean ± {COVER:g} times its ±, read as a standard error. Where the paper's ± "
        "is not said to be one, the comparison is looser or stricter than it looks.",
        f"Sources: {'; '.join(dict.fromkeys(p['source'] for p in used))}.",
    ]
    if any(p["verified"] != "yes" for p in used):
        notes.append("The printed numbers were transcribed without the papers at hand and are not verified.")
    headers = [("", h) for h in ("measured", "95 % interval", "printed", "± is", "difference", "verdict")]
    return Table(f"{plan.suite}-printed", "Measured beside printed", headers, lines, notes, tidy)


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
