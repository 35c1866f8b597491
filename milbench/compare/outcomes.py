"""Every other test that a reader may ask for, on the pairing of runs. Tests over cases keep the slides of a patient together."""

import math

import numpy as np

from milbench import reading, stats
from milbench.compare import pairing
from milbench.compare.pairing import Filled, Pairing, T, filled
from milbench.metrics import Metric
from milbench.reading import Run
from milbench.stats import Outcome

EACH = 400  # resamples for each comparison of a family: the smallest p-value, times the family, is then 2 / 400 = 0.005
MOST = 100_000  # resamples: from 250 comparisons on that product grows, to 0.02 for 1,000


def most(family: int) -> int:
    """How many resamples a comparison of a family may take."""
    return min(EACH * family, MOST)


def outcomes(
    sides: Pairing[T], metric: Metric, *, seed: str, family: int = 1, fill: Filled = filled, replicates: int | None = None
) -> dict[str, Outcome]:
    """What each test that applies to the metric says, by name.

    They are paired-bootstrap, permutation, delong, mcnemar, wilcoxon and nadeau-bengio. A test that applies and finds the metric
    undefined says so in its outcome.

    Args:
        sides: the runs.
        metric: compared.
        seed: text that fixes resamples and random swaps.
        family: how many comparisons Holm's correction runs over. Where the p-value of the bootstrap is near its smallest, 400
            resamples are drawn for each of them, and no more than 100,000.
        fill: how metrics are computed; a :class:`milbench.compare.pairing.Shared` remembers them for runs that meet often.
        replicates: of the bootstrap and the permutation test; REPLICATES of the pairing unless given.

    Raises:
        OtherCasesError: the sides test different cases.
    """
    drawn = replicates or pairing.REPLICATES
    c = sides.bootstrap(metric, seed=seed, replicates=drawn, most=most(family), method=fill, reference=fill)
    tests = {"paired-bootstrap": Outcome(c.name, c.difference, c.low, c.high, c.n, c.note, c.smallest, c.p, over=c.over)}
    if metric.name in ("macro_auc", "macro_f1", "accuracy"):
        tests |= _over_cases(sides, metric, seed, drawn)
    return tests | _over_runs(sides, metric)


def _values(sides: Pairing[T], metric: Metric) -> list[list[tuple[float, float]]]:
    """Of each fold, each seed: the metric of the method and of the reference."""

    def value(run: T) -> float:
        return stats.rounded(float(metric(run.predictions)), step=stats.STEP)

    return [[(value(pair.method[0]), value(pair.reference[0])) for pair in fold.pairs] for fold in sides.folds]


def _over_cases(sides: Pairing[T], metric: Metric, seed: str, replicates: int) -> dict[str, Outcome]:
    """Tests that ask what other patients would have shown."""
    if any(np.isnan(run.predictions["score"]).any() for fold in sides.folds for run in fold.runs):
        name, cases = "permutation" if metric.name == "macro_auc" else "mcnemar", sum(len(fold.cases) for fold in sides.folds)
        return {name: _not_computed("a prediction is missing (NaN)", cases, "slides")}
    folds, tests = [fold.scores() for fold in sides.folds], {}
    if metric.name != "accuracy":
        tests["permutation"] = stats.permutation(folds, metric.name, replicates=replicates, seed=seed)
    if metric.name == "macro_auc" and folds[0].method.shape[2] == 2:
        tests["delong"] = stats.delong(folds)
    if metric.name != "macro_auc":
        tests["mcnemar"] = stats.mcnemar(folds)
    return tests


def _over_runs(sides: Pairing[T], metric: Metric) -> dict[str, Outcome]:
    """Tests that take folds as their sample, or the seeds where there is one fold. They cannot keep patients together."""
    differences = [[a - b for a, b in fold] for fold in _values(sides, metric)]
    several = len(differences) > 1
    sample = [float(np.mean(seeds)) for seeds in differences] if several else differences[0]
    undefined = "the metric is undefined in some runs" if np.isnan(sample).any() else ""
    tests = {}
    if len(sample) > 1:
        tests["wilcoxon"] = _not_computed(undefined, len(sample), "runs") if undefined else stats.wilcoxon(sample)
    if several:
        sizes = _sizes(sides)
        if lack := undefined or ("" if sizes else "the file of the split is not here"):
            tests["nadeau-bengio"] = _not_computed(lack, len(sample), "folds")
        else:
            tests["nadeau-bengio"] = stats.nadeau_bengio(sample, *zip(*sizes, strict=True))
    return tests


def _sizes(sides: Pairing[T]) -> list[tuple[int, int]]:
    """Patients that each fold trains on and tests; empty where the split of one is not known."""
    first = [fold.pairs[0].method[0] for fold in sides.folds]
    known = [reading.split_sizes(run).get(run.cell.fold) for run in first if isinstance(run, Run)]
    sizes = [size for size in known if size is not None]
    return sizes if len(sizes) == len(first) else []


def _not_computed(why: str, n: int, over: stats.Unit) -> Outcome:
    return Outcome("", math.nan, math.nan, math.nan, n, f"not computed ({why})", math.nan, math.nan, over=over)
