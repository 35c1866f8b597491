"""Many methods over many blocks (a block is a dataset, encoder and magnification): ranks, and which differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy
from numpy.typing import ArrayLike

from milbench.errors import MilbenchError
from milbench.stats.outcome import Outcome
from milbench.stats.over_runs import wilcoxon
from milbench.stats.paired import Array, holm
from milbench.stats.rounding import TINY, Rounded, rounded

FEWEST = 5  # blocks


@dataclass(frozen=True)
class Pair(Rounded):
    """Two methods over the blocks. Effect first, p-values last.

    Args:
        first, second: the methods.
        rank_difference: mean rank of the first minus the second; negative where the first is better.
        wins, ties, losses: of the first, over blocks.
        nemenyi: p-value, corrected for all pairs by the test itself.
        wilcoxon: exact signed-rank test of the blocks' values.
        p_holm: its p-value after Holm's correction over all pairs.
    """

    first: str
    second: str
    rank_difference: float
    wins: int
    ties: int
    losses: int
    nemenyi: float
    wilcoxon: Outcome
    p_holm: float


@dataclass(frozen=True)
class Ranking(Rounded):
    """Methods ranked over blocks.

    Args:
        mean_rank: of each method, 1 is best; best first.
        critical_difference: mean ranks closer than this do not differ by Nemenyi's test at `alpha`.
        alpha: its level.
        friedman: Friedman's test that all methods rank alike; its effect is Kendall's W, 0 no agreement of the blocks, 1 full.
        pairs: every two methods, better one first.
    """

    mean_rank: dict[str, float]
    critical_difference: float
    alpha: float
    friedman: Outcome
    pairs: list[Pair]


def ranking(methods: Sequence[str], values: ArrayLike, *, larger_is_better: bool = True, alpha: float = 0.05) -> Ranking:
    """Friedman's test, Nemenyi's comparison of all pairs, and pairwise Wilcoxon tests with Holm's correction.

    Args:
        methods: k names.
        values: (N blocks, k), one metric, each the mean over a block's runs.
        larger_is_better: False for an error.
        alpha: level of the critical difference.

    Raises:
        MilbenchError: fewer than 5 blocks or 3 methods, a name twice, or a value is missing (leave that method out).

    Source: Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 2006, section 3.2.
    """
    x = _complete(methods, values)
    blocks, k = x.shape
    oriented = -x if larger_is_better else x  # rank 1 is best
    mean = scipy.stats.rankdata(oriented, axis=1).mean(0)
    critical = float(scipy.stats.studentized_range.isf(alpha, k, np.inf) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * blocks)))
    order = [int(i) for i in np.argsort(mean, kind="stable")]
    pairs = _pairs(methods, x, oriented, mean, order)
    return Ranking({methods[i]: rounded(float(mean[i])) for i in order}, critical, alpha, _friedman(x), pairs)


def _complete(methods: Sequence[str], values: ArrayLike) -> Array:
    """The values (N, k), where they can be ranked; equal ones are ties."""
    x = rounded(np.asarray(values, dtype=np.float64), step=TINY)
    if x.ndim != 2 or x.shape[1] != len(methods) or len(set(methods)) < len(methods):
        raise MilbenchError(f"Friedman test: {len(methods)} methods of different names against values of shape {x.shape}")
    blocks, k = x.shape
    if blocks < FEWEST or k < 3:
        raise MilbenchError(f"Friedman test needs {FEWEST} blocks and 3 methods or more, there are {blocks} and {k}")
    if np.isnan(x).any():
        incomplete = [name for name, column in zip(methods, x.T, strict=True) if np.isnan(column).any()]
        raise MilbenchError(f"Friedman test needs every method in every block; incomplete: {', '.join(incomplete)}")
    return x


def _friedman(x: Array) -> Outcome:
    """Friedman's test of the values (N, k), with Kendall's W."""
    blocks, k = x.shape
    if (np.ptp(x, axis=1) < TINY).all():
        statistic, p = 0.0, 1.0  # all tied everywhere
    else:
        test = scipy.stats.friedmanchisquare(*x.T)
        statistic, p = float(test.statistic), float(test.pvalue)
    note = (
        f"chi-square approximation with {k - 1} degrees of freedom, rough for few blocks; blocks taken as independent, which "
        "those that share slides are not"
    )
    return Outcome("Friedman", statistic / (blocks * (k - 1)), math.nan, math.nan, blocks, note, 0.0, p, over="blocks")


def _pairs(methods: Sequence[str], x: Array, oriented: Array, mean: Array, order: Sequence[int]) -> list[Pair]:
    """Every two methods, the better one first.

    Args:
        methods: k names.
        x, oriented: (N, k) values, and the same where smaller is better.
        mean: (k,) mean ranks.
        order: indices of the methods, best first.
    """
    from scikit_posthocs import posthoc_nemenyi_friedman  # imports matplotlib, which a training process does not need

    nemenyi = posthoc_nemenyi_friedman(oriented).to_numpy()
    couples = list(combinations(order, 2))
    signed = [wilcoxon(x[:, i] - x[:, j]) for i, j in couples]
    pairs = []
    for (i, j), test, corrected in zip(couples, signed, holm([test.p for test in signed]), strict=True):
        ahead = np.sign(oriented[:, j] - oriented[:, i])
        wins, ties, losses = (int((ahead == value).sum()) for value in (1, 0, -1))
        difference, chance = float(mean[i] - mean[j]), float(nemenyi[i, j])
        pairs.append(Pair(methods[i], methods[j], difference, wins, ties, losses, chance, test, float(corrected)))
    return pairs
