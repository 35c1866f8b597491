"""A simulated benchmark: 87 slides of 31 patients, methods that see the truth through noise, metrics without each patient."""

from functools import cache

import numpy as np

from milbench import stats

# 87 test slides of 31 patients, much as in the official split of BRACS, where patients have slides of several classes.
PATIENT = np.repeat(np.arange(31), [14, 8, 7, *[4] * 6, *[3] * 5, 2, 2, *[1] * 15])
TARGET = np.random.default_rng(1).integers(0, 3, 87)
STRENGTH = 1.5  # of the signal, in standard deviations of the noise: a macro-AUC of 0.86
SHARED, OF_METHOD, OF_TRAINING = 0.5, 0.3, 0.2  # variance of the noise that all runs, a method's runs, or one run have
AT_ONCE = 100


def known(values):
    """Runs whose values (runs, 1 + patients) on all slides, and without each patient, are known already."""
    return [lambda _, row=row: row for row in values]


def noise(rng, icc, *shape):
    """(*shape, slides, classes) of variance 1, of which a share `icc` is common to the slides of a patient."""
    of_patient, of_slide = (rng.standard_normal((*shape, n, 3), dtype=np.float32) for n in (31, 87))
    return np.float32(icc**0.5) * of_patient[..., PATIENT, :] + np.float32((1 - icc) ** 0.5) * of_slide


def without_patients(values, pairs):
    """From sums over pairs of patients (..., 31, 31) of values and of pairs: the ratio over all, and without each patient."""

    def left(sums):
        total = sums.sum((-2, -1))[..., None]
        alone = np.diagonal(sums, axis1=-2, axis2=-1)
        return np.concatenate([total, total - sums.sum(-1) - sums.sum(-2) + alone], axis=-1)

    return left(values) / left(pairs)


def macro_auc(scores):
    """Scores (..., slides, classes) -> (..., 1 + patients)."""
    result = 0
    for c in range(3):
        score, member = scores[..., c], (np.arange(31)[:, None] == PATIENT).astype(np.float32)
        p, q = np.flatnonzero(c == TARGET), np.flatnonzero(c != TARGET)
        above = (score[..., p, None] > score[..., None, q]).astype(np.float32)
        result = result + without_patients(
            member[:, p] @ above @ member[:, q].T, np.outer(member[:, p].sum(1), member[:, q].sum(1))
        )
    return result.astype(float) / 3


def macro_f1(scores):
    """Scores (..., slides, classes) -> (..., 1 + patients)."""
    weight = np.concatenate([np.ones((1, 87)), np.arange(31)[:, None] != PATIENT]).astype(np.float32)
    cell = TARGET * 3 + scores.argmax(-1)
    counts = np.stack([(cell == k).astype(np.float32) @ weight.T for k in range(9)], axis=-1)
    return stats.metrics.f1_of(counts.astype(float).reshape(*counts.shape[:-1], 3, 3))


FAST = {"macro_auc": macro_auc, "macro_f1": macro_f1}


@cache
def slope(metric):
    """How much a metric rises with the strength of the signal, in a large population."""
    rng = np.random.default_rng(0)
    target, error = rng.integers(0, 3, 4000), rng.normal(size=(4000, 3))
    low, high = (float(getattr(stats, metric)(target, s * np.eye(3)[target] + error)) for s in (STRENGTH - 0.2, STRENGTH + 0.2))
    return (high - low) / 0.4


def draw(rng, metric, sd, icc, trainings, replicates=AT_ONCE, effect=0.0):
    """Scores (replicates, 2 methods, trainings, slides, classes).

    Args:
        sd: standard deviation between trainings of a method, in the metric's unit.
        icc: correlation of the noise of two slides of a patient.
        effect: by how much the first method is better.
    """
    strength = STRENGTH + sd / slope(metric) * rng.standard_normal((replicates, 2, trainings))
    strength[:, 0] += effect / slope(metric)
    signal = strength[..., None, None].astype(np.float32) * np.eye(3, dtype=np.float32)[TARGET]
    shared, of_method = noise(rng, icc, replicates, 1, 1), noise(rng, icc, replicates, 2, 1)
    of_training = noise(rng, icc, replicates, 2, trainings)
    return signal + SHARED**0.5 * shared + OF_METHOD**0.5 * of_method + OF_TRAINING**0.5 * of_training


def share(p):
    return float(np.mean(np.asarray(p) < 0.05))
