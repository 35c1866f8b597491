"""Metrics of one test fold.

Every metric takes an optional `weight` (..., n): how often each case counts. A bootstrap is then one call with the
resampled counts of all replicates, and returns one value per replicate.
A metric that the data do not define (a class without cases) is NaN, never a guess; a missing score (NaN) leaves it undefined
whatever that case's weight. None of this warns.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def of_subtyping(target: ArrayLike, score: ArrayLike) -> dict[str, Any]:
    """Every stored metric of a subtyping fold. target: (n,) class indices; score: (n, C)."""
    by_class = per_class_auc(target, score)
    return {
        "macro_auc": float(by_class.mean()),
        "macro_f1": float(macro_f1(target, score)),
        "balanced_accuracy": float(balanced_accuracy(target, score)),
        "accuracy": float(accuracy(target, score)),
        "brier": float(brier(target, score)),
        "per_class_auc": by_class.tolist(),
        "confusion": [[value if np.isnan(value) else int(value) for value in row] for row in confusion(target, score)],
    }


def of_survival(time: ArrayLike, event: ArrayLike, risk: ArrayLike) -> dict[str, Any]:
    """Every stored metric of a survival fold. time: (n,) any unit; event: (n,) bool; risk: (n,), higher means earlier failure."""
    return {"c_index": float(c_index(time, event, risk)), "events": int(np.sum(np.asarray(event, dtype=bool)))}


def _weights(weight: ArrayLike | None, n: int, *data: Array) -> Array:
    """How often each case counts (..., n): once by default; not known (NaN) where any of the cases' data are missing."""
    w = np.ones(n) if weight is None else np.asarray(weight, dtype=np.float64)
    return np.full_like(w, np.nan) if any(np.isnan(values).any() for values in data) else w


def auc(positive: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> Array:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties counting one half.

    Args:
        positive: (n,) bool.
        score: (n,), higher means more positive.
        weight: (..., n) counts.

    Returns:
        (...), NaN where there is no positive or no negative. Memory O(positives x negatives): with many weights one product of
        matrices is many times faster than a sum along the sorted scores.

    >>> float(auc([True, True, False], [0.9, 0.4, 0.4]))
    0.75
    """
    score, positive = np.asarray(score, dtype=np.float64), np.asarray(positive, dtype=bool)
    p, q = score[positive, None], score[~positive]
    above = (p > q) + (p == q) / 2  # (positives, negatives): 1, 1/2 or 0
    w = _weights(weight, len(score), score)
    p, q = (np.take(w, np.flatnonzero(side), axis=-1) for side in (positive, ~positive))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.einsum("...j,...j", p @ above, q) / (p.sum(-1) * q.sum(-1)))


def per_class_auc(target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> Array:
    """One-against-rest AUC of each class.

    Args:
        target: (n,) class indices.
        score: (n, C).
        weight: (..., n) counts.

    Returns:
        (..., C).
    """
    target, score = np.asarray(target), np.asarray(score)
    return np.stack([auc(target == c, score[:, c], weight) for c in range(score.shape[1])], axis=-1)


def macro_auc(target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> Array:
    """Mean over classes of the one-against-rest AUC; with two classes whose scores sum to 1 it is the binary AUC."""
    return per_class_auc(target, score, weight).mean(-1)


def predicted(score: ArrayLike) -> NDArray[np.intp]:
    """The class of the highest score (n, C) -> (n,), the first of equals."""
    return np.asarray(score).argmax(1)


def confusion(target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> Array:
    """Counts of (true, predicted) classes.

    Returns:
        (..., C, C); NaN where a score is missing.

    >>> confusion([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]).tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    score = np.asarray(score, dtype=np.float64)
    classes = score.shape[1]
    cell = np.asarray(target) * classes + predicted(score)  # (n,)
    if weight is None and not np.isnan(score).any():
        return np.bincount(cell, minlength=classes**2).astype(np.float64).reshape(classes, classes)
    counts = _weights(weight, len(score), score) @ np.eye(classes**2)[cell]
    return counts.reshape(*counts.shape[:-1], classes, classes)


def accuracy(target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> Array:
    """Share of cases whose highest score is the true class.

    >>> float(accuracy([0, 1, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]))
    0.75
    """
    table = confusion(target, score, weight)
    with np.errstate(invalid="ignore"):
        return np.trace(table, axis1=-2, axis2=-1) / table.sum((-2, -1))


def balanced_accuracy(target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> Array:
    """Mean recall over the classes that occur.

    >>> float(balanced_accuracy([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]))
    0.75
    """
    table = confusion(target, score, weight)
    cases = table.sum(-1)  # (..., C)
    with np.errstate(invalid="ignore"):
        recall = np.divide(np.diagonal(table, axis1=-2, axis2=-1), cases, out=np.zeros_like(cases), where=cases != 0)
        return recall.sum(-1) / (cases != 0).sum(-1)


def macro_f1(target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> Array:
    """Mean over all C classes of F1 = 2 TP / (2 TP + FP + FN); a class neither true nor predicted counts as 0."""
    return f1_of(confusion(target, score, weight))


def f1_of(table: Array) -> Array:
    """Macro-F1 of confusion counts (..., C, C)."""
    hits = np.diagonal(table, axis1=-2, axis2=-1)
    total = table.sum(-1) + table.sum(-2)
    return np.divide(2 * hits, total, out=np.zeros_like(total), where=total != 0).mean(-1)


def youden_threshold(positive: ArrayLike, score: ArrayLike) -> float:
    """The score from which on a case is called positive so that the true less the false positive rate is largest.

    Args:
        positive: (n,) bool.
        score: (n,).

    Returns:
        One of the scores, of equally good ones the highest; infinite where no score is better than calling nothing positive, or
        where there is no positive or no negative.

    Source: Youden 1950; binli123/dsmil-wsi takes it on the very cases that it reports.

    >>> youden_threshold([False, True, False, True], [0.1, 0.3, 0.2, 0.9])
    0.3
    """
    positive, score = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    if positive.all() or not positive.any():
        return np.inf
    levels, at = np.unique(-score, return_inverse=True)  # the highest score first
    hits, alarms = (np.bincount(at, weights=side, minlength=len(levels)).cumsum() for side in (positive, ~positive))
    gain = np.concatenate([[0.0], hits * (~positive).sum() - alarms * positive.sum()])  # whole numbers, so that equals are equal
    return float(np.concatenate([[np.inf], -levels])[gain.argmax()])


def accuracy_at_best_thresholds(target: ArrayLike, score: ArrayLike, *, one_output: bool = False) -> float:
    """Share of cases whose true class alone reaches its threshold, each class with the one that suits these cases best.

    Optimistic where it is reported, since the thresholds are fitted to the cases that are counted.

    Args:
        target: (n,) class indices.
        score: (n, C).
        one_output: of two classes only the second has a threshold, as of a model that scores nothing else.

    >>> accuracy_at_best_thresholds([0, 1, 1], [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    1.0
    """
    target, score = np.asarray(target), np.asarray(score, dtype=np.float64)
    classes = range(1 if one_output and score.shape[1] == 2 else 0, score.shape[1])
    right = [(target == c) == (score[:, c] >= youden_threshold(target == c, score[:, c])) for c in classes]
    return float(np.all(right, axis=0).mean())


def accuracy_and_aucs(target: ArrayLike, score: ArrayLike) -> float:
    """(accuracy at the best thresholds + sum of the AUCs of all classes) / 2, by which DS-MIL's script selects its epoch.

    Source: binli123/dsmil-wsi, train_tcga.py. Arguments as in :func:`per_class_auc`; NaN without a case of a class.
    """
    return (accuracy_at_best_thresholds(target, score) + float(per_class_auc(target, score).sum())) / 2


def brier(target: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> Array:
    """Mean squared distance between the scores and the one-hot truth, summed over classes (0 best, 2 worst).

    >>> float(brier([0, 1], [[1.0, 0.0], [0.5, 0.5]]))
    0.25
    """
    score = np.asarray(score, dtype=np.float64)
    error = ((score - np.eye(score.shape[1])[np.asarray(target)]) ** 2).sum(1)  # (n,)
    w = _weights(weight, len(error), error)
    with np.errstate(invalid="ignore"):
        return (w @ error) / w.sum(-1)


def c_index(
    time: ArrayLike,
    event: ArrayLike,
    risk: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    tied_tol: float = 1e-8,
    equal_times: bool = True,
) -> Array:
    """Harrell's c-index: over comparable pairs, how often the case that fails first has the higher risk.

    (i, j) is comparable when i has an event and time_i < time_j. Risks closer than `tied_tol` count one half.

    Args:
        time: (n,) any unit.
        event: (n,) bool, False where censored.
        risk: (n,), higher means earlier failure.
        weight: (..., n) counts.
        equal_times: an event and a censored case of the same time are comparable too, as in scikit-survival and hence in the
            published survival tables; False leaves them out, as Harrell did.

    Returns:
        (...), NaN without a comparable pair, and where a time or a risk is missing. Memory O(n^2).

    >>> float(c_index(time=[1, 2, 3], event=[True, True, False], risk=[3.0, 2.0, 1.0]))
    1.0
    """
    comparable, concordant = _pairs(time, event, risk, tied_tol, equal_times)
    w = _weights(weight, len(comparable), concordant)
    with np.errstate(invalid="ignore"):
        return ((w @ concordant) * w).sum(-1) / ((w @ comparable) * w).sum(-1)


def concordance_by_case(time: ArrayLike, event: ArrayLike, risk: ArrayLike) -> Array:
    """Each case's share of Harrell's c-index: over the comparable pairs it is in, how often they are in the right order.

    Arguments as in :func:`c_index`.

    Returns:
        (n,), NaN for a case without a comparable pair, and for all where a time or a risk is missing. Weighted by each case's
        pairs, the mean is the c-index.
    """
    comparable, concordant = _pairs(time, event, risk, 1e-8, True)
    with np.errstate(invalid="ignore"):
        return (concordant.sum(0) + concordant.sum(1)) / (comparable.sum(0) + comparable.sum(1))


def _pairs(time: ArrayLike, event: ArrayLike, risk: ArrayLike, tied_tol: float, equal_times: bool) -> tuple[Array, Array]:
    """Which ordered pairs (n, n) are comparable, and which of these are in the right order, ties counting one half."""
    time, risk = np.asarray(time, dtype=np.float64), np.asarray(risk, dtype=np.float64)
    event = np.asarray(event, dtype=bool)
    later = time[:, None] < time
    if equal_times:
        later |= (time[:, None] == time) & ~event
    comparable = (event[:, None] & later).astype(np.float64)
    higher, equal = risk[:, None] > risk, risk[:, None] == risk  # infinite risks are equal, too
    with np.errstate(invalid="ignore"):
        equal |= np.abs(risk[:, None] - risk) <= tied_tol
    missing = np.isnan(time).any() or np.isnan(risk).any()
    return comparable, np.full_like(comparable, np.nan) if missing else comparable * np.where(equal, 0.5, higher)
