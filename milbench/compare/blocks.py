"""Methods ranked over blocks: a block is a dataset, an encoder and a magnification."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from milbench import stats
from milbench.compare.pairing import ALPHA
from milbench.metrics import Column, Metric
from milbench.reading import Run
from milbench.stats.over_blocks import FEWEST


@dataclass(frozen=True)
class Ranks:
    """Methods that are complete in every block.

    Args:
        metric: that they are ranked by.
        ranking: ranks and tests.
        labels: of each method.
        blocks: the blocks in words.
        datasets: on how many datasets they rest.
        left_out: labels of the methods that are not complete in every block.
    """

    metric: Metric
    ranking: stats.Ranking
    labels: dict[str, str]
    blocks: list[str]
    datasets: int
    left_out: list[str]


def ranks(runs: Sequence[Run], metric: Metric) -> Ranks | None:
    """Friedman, Nemenyi and pairwise Wilcoxon tests over blocks; None where there are fewer than 5 blocks or 3 methods.

    Args:
        runs: of one plan, or of several.
        metric: that methods are ranked by.
    """
    means = _means(runs, metric)
    methods = list(dict.fromkeys(run.cell.aggregator for run in runs))
    everywhere = [name for name in methods if means and all(name in block for block in means.values())]
    if len(means) < FEWEST or len(everywhere) < 3:
        return None
    values = [[block[name] for name in everywhere] for block in means.values()]
    ranking = stats.ranking(everywhere, values, larger_is_better=metric.direction > 0, alpha=ALPHA)
    labels = {run.cell.aggregator: run.cell.label for run in reversed(runs)}
    datasets = {run.cell.dataset: run.cell.dataset_label for run in runs}
    words = [[datasets[c.dataset], str(c.encoder)] + ([f"{c.magnification}x"] if c.magnification else []) for c in means]
    blocks = [", ".join(parts) for parts in words]
    left_out = sorted({labels[name] for name in methods if name not in everywhere})
    return Ranks(metric, ranking, {name: labels[name] for name in everywhere}, blocks, len({c.dataset for c in means}), left_out)


def _means(runs: Sequence[Run], metric: Metric) -> dict[Column, dict[str, float]]:
    """Of each block with three methods or more: the mean of each complete method.

    A block with several patch sizes or splits counts once, with the one that most methods finished, of equals the first.
    """
    blocks: dict[Column, dict[Column, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        blocks[run.column._replace(patch_size=None, split="")][run.column].append(run)
    best = {at: max((_complete(column, metric) for column in columns.values()), key=len) for at, columns in blocks.items()}
    return {at: means for at, means in best.items() if len(means) > 2}


def _complete(runs: Sequence[Run], metric: Metric) -> dict[str, float]:
    """Mean of each method that has all folds and seeds of this column."""
    expected = {(run.cell.fold, run.cell.seed) for run in runs}
    values: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    for run in runs:
        if run.status == "ok":
            values[run.cell.aggregator][run.cell.fold, run.cell.seed] = run.metric(metric.name)
    means = {method: float(np.mean(list(of.values()))) for method, of in values.items() if of.keys() == expected}
    return {method: stats.rounded(mean, step=stats.STEP) for method, mean in means.items() if not math.isnan(mean)}
