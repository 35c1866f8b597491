"""Every other test that a reader may ask for, on the pairing of the primary one."""

import math
from dataclasses import replace

import numpy as np

from milbench import reading, stats
from milbench.compare import pairing
from milbench.compare.pairing import Fold, Pairing
from milbench.metrics import Metric
from milbench.reading import Run
from milbench.stats import Outcome


def outcomes(sides: Pairing[Run], metric: Metric) -> dict[str, Outcome]:
    """What each test that applies to the metric says, by name: permutation, delong, mcnemar, wilcoxon, nadeau-bengio.

    A test that applies and finds the metric undefined says so in its outcome.

    Raises:
        OtherCasesError: the sides test different cases.
    """
    sides = replace(sides, folds=tuple(sorted(sides.folds, key=_place)))
    over_cases = _over_cases(sides, metric) if metric.name in ("macro_auc", "macro_f1", "accuracy") else {}
    return over_cases | _over_runs(sides, metric)


def _place(fold: Fold[Run]) -> tuple[int, int]:
    """Where a plan lists the fold: by seed, then by fold. The order of cases fixes the random swaps of the permutation test."""
    first = fold.pairs[0].method[0].cell
    return first.seed, first.fold


def superiority(sides: Pairing[Run], metric: Metric) -> float:
    """Chance that a run of the method gives the larger value than one of the reference on the same fold; ties one half."""
    folds = _values(sides, metric)
    return stats.superiority([[a for a, _ in fold] for fold in folds], [[b for _, b in fold] for fold in folds])


def _values(sides: Pairing[Run], metric: Metric) -> list[list[tuple[float, float]]]:
    """Of each fold, each seed: the stored metric of the method and of the reference."""
    return [
        [(pair.method[0].metric(metric.name), pair.reference[0].metric(metric.name)) for pair in fold.pairs]
        for fold in sides.folds
    ]


def _over_cases(sides: Pairing[Run], metric: Metric) -> dict[str, Outcome]:
    """Tests that ask what other test cases would have shown."""
    if any(np.isnan(run.predictions["score"]).any() for fold in sides.folds for run in fold.runs):
        name = "permutation" if metric.name == "macro_auc" else "mcnemar"
        return {name: _not_computed("a prediction is missing (NaN)", sum(len(fold.cases) for fold in sides.folds))}
    folds, tests = [fold.scores() for fold in sides.folds], {}
    if metric.name != "accuracy":
        seed = pairing.resamples(sides.pairs[0].method[0].column, metric)
        tests["permutation"] = stats.permutation(folds, metric.name, replicates=pairing.REPLICATES, seed=seed)
    if metric.name == "macro_auc" and folds[0].method.shape[2] == 2:
        tests["delong"] = stats.delong(folds)
    if metric.name != "macro_auc":
        tests["mcnemar"] = stats.mcnemar(folds)
    return tests


def _over_runs(sides: Pairing[Run], metric: Metric) -> dict[str, Outcome]:
    """Tests that take folds as their sample, or the seeds where there is one fold."""
    differences = [[a - b for a, b in fold] for fold in _values(sides, metric)]
    several = len(differences) > 1
    sample = [float(np.mean(seeds)) for seeds in differences] if several else differences[0]
    undefined = "the metric is undefined in some runs" if np.isnan(sample).any() else ""
    tests = {}
    if len(sample) > 1:
        tests["wilcoxon"] = _not_computed(undefined, len(sample)) if undefined else stats.wilcoxon(sample)
    if several:
        first = [fold.pairs[0].method[0] for fold in sides.folds]
        sizes = reading.split_sizes(first[0])
        folds = [run.cell.fold for run in first]
        if lack := undefined or ("" if sizes.keys() >= set(folds) else "the file of the split is not here"):
            tests["nadeau-bengio"] = _not_computed(lack, len(sample))
        else:
            train, test = zip(*(sizes[fold] for fold in folds), strict=True)
            tests["nadeau-bengio"] = stats.nadeau_bengio(sample, train, test)
    return tests


def _not_computed(why: str, n: int) -> Outcome:
    return Outcome("", math.nan, math.nan, math.nan, n, f"not computed ({why})", math.nan, math.nan)
