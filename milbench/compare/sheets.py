"""Models of other people's files against each other: over the cases of their predictions, and over folds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from milbench import stats
from milbench.compare.pairing import Shared
from milbench.compare.primary import Contrast, contrast
from milbench.errors import MilbenchError
from milbench.metrics import Metric
from milbench.papers.sheets import Cases, Predictions, Sheet
from milbench.stats import Outcome


@dataclass(frozen=True)
class OverCases(Contrast):
    """A model minus the reference in a group, over the cases that both have; each fold has one training.

    Args:
        group, model: which.
        left_out: cases that only one of them has.
    """

    group: str
    model: str
    left_out: int


def over_cases(sheet: Sheet, predictions: Predictions, metric: Metric, base: str) -> list[OverCases]:
    """The primary test of every model against the reference, with one correction over all groups and models.

    Raises:
        MilbenchError: the models do not agree on what happened to a case.
    """
    shared, compared = Shared(), []
    for (group, model), folds in predictions.cases.items():
        reference = predictions.cases.get((group, base), {}) if model != base else {}
        common = {fold: _common(sheet, cases, reference[fold]) for fold, cases in folds.items() if fold in reference}
        some = [pair for pair in common.values() if len(pair[0].names)]
        mine, theirs = ({number: [(pair[side],)] for number, pair in enumerate(some)} for side in (0, 1))
        if found := contrast(mine, theirs, metric, shared):
            left_out = sum(len(np.setxor1d(folds[fold].names, reference[fold].names)) for fold in common)
            compared.append(OverCases(**vars(found), group=group, model=model, left_out=left_out))
    p_holm = stats.holm([c.test.p for c in compared]).tolist()
    return [replace(c, p_holm=p) for c, p in zip(compared, p_holm, strict=True)]


def _common(sheet: Sheet, cases: Cases, reference: Cases) -> tuple[Cases, Cases]:
    """The cases that both have. They must agree on what happened to each."""
    names = np.intersect1d(cases.names, reference.names)
    both = cases.only(names), reference.only(names)
    for key in ("time", "event", "target"):
        if key in both[0].predictions:
            differ = np.flatnonzero(both[0].predictions[key] != both[1].predictions[key])
            if differ.size:
                raise MilbenchError(
                    f"{sheet.path}: {cases.model} and {reference.model}, fold {cases.fold}, differ in what happened to case "
                    f"{both[0].names[differ[0]]}"
                )
    return both


@dataclass(frozen=True)
class OverFolds:
    """A model against the reference, folds being the sample.

    Args:
        model: which.
        differences: of the folds that both have (folds,).
        corrected: Nadeau and Bengio's t-test; None of a single fold.
        p_holm: its p-value, corrected over the models.
        signs: Wilcoxon's signed-rank test.
    """

    model: str
    differences: NDArray[np.float64]
    corrected: Outcome | None
    p_holm: float
    signs: Outcome

    @property
    def mean(self) -> float:
        """Of the differences."""
        return stats.rounded(self.differences.mean(), step=stats.STEP)

    @property
    def tally(self) -> tuple[int, int, int]:
        """Wins, ties and losses of the model."""
        wins, losses = int((self.differences > 0).sum()), int((self.differences < 0).sum())
        return wins, len(self.differences) - wins - losses, losses


def over_folds(scores: Mapping[str, Mapping[str, float]], base: str) -> list[OverFolds]:
    """Every model that shares a fold with the reference.

    Args:
        scores: model -> fold -> score.
        base: the reference.
    """
    reference = scores.get(base, {})
    compared = []
    for model, folds in scores.items():
        common = [f for f in folds if f in reference and not math.isnan(folds[f] - reference[f])] if model != base else []
        if common:
            d = stats.rounded(np.array([folds[f] - reference[f] for f in common]), step=stats.STEP)
            # k folds of one data set: a test part is one k-th of it, and what remains at most k - 1 of them.
            train = np.full(len(d), len(reference) - 1)
            corrected = stats.nadeau_bengio(d, train, np.ones(len(d))) if len(d) > 1 else None
            compared.append(OverFolds(model, d, corrected, math.nan, stats.wilcoxon(d)))
    p_holm = stats.holm([math.nan if c.corrected is None else c.corrected.p for c in compared]).tolist()
    return [replace(c, p_holm=p) for c, p in zip(compared, p_holm, strict=True)]
