"""Metrics against scikit-learn, against their definitions, and against published values."""

import csv
import gzip
from itertools import product

import numpy as np
import pytest
from sklearn import metrics as sk

from milbench import stats
from milbench.stats import accuracy_and_aucs, accuracy_at_best_thresholds, per_class_auc, youden_threshold
from milbench.stats.metrics import concordance_by_case

RNG = np.random.default_rng(0)


def cases(classes, n=60, ties=False):
    target = RNG.integers(0, classes, n)
    target[:classes] = range(classes)
    score = RNG.dirichlet(np.ones(classes), n)
    return target, np.round(score, 1) if ties else score


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("ties", [False, True])
def test_against_scikit_learn(classes, ties):
    target, score = cases(classes, ties=ties)
    predicted = score.argmax(1)
    one_hot = np.eye(classes)[target]
    per_class = [sk.roc_auc_score(one_hot[:, c], score[:, c]) for c in range(classes)]
    np.testing.assert_allclose(stats.per_class_auc(target, score), per_class, rtol=1e-12)
    assert stats.macro_auc(target, score) == pytest.approx(np.mean(per_class), rel=1e-12)
    assert stats.macro_f1(target, score) == pytest.approx(sk.f1_score(target, predicted, average="macro"), rel=1e-12)
    assert stats.accuracy(target, score) == pytest.approx(sk.accuracy_score(target, predicted), rel=1e-12)
    assert stats.balanced_accuracy(target, score) == pytest.approx(sk.balanced_accuracy_score(target, predicted), rel=1e-12)
    np.testing.assert_array_equal(stats.confusion(target, score), sk.confusion_matrix(target, predicted, labels=range(classes)))
    assert stats.brier(target, score) == pytest.approx(((score - one_hot) ** 2).sum(1).mean(), rel=1e-12)


def test_binary_macro_auc_is_the_auc():
    target, score = cases(2)
    assert stats.macro_auc(target, score) == pytest.approx(sk.roc_auc_score(target, score[:, 1]), rel=1e-12)


@pytest.mark.parametrize("metric", [stats.macro_auc, stats.macro_f1, stats.accuracy, stats.balanced_accuracy, stats.brier])
def test_weight_means_repetition(metric):
    target, score = cases(3, ties=True)
    counts = RNG.integers(0, 4, (5, len(target)))
    counts[:, :3] += 1  # every class stays
    repeated = [metric(np.repeat(target, c), np.repeat(score, c, axis=0)) for c in counts]
    np.testing.assert_allclose(metric(target, score, counts), repeated, rtol=1e-12)


def test_undefined_is_nan_and_f1_of_an_absent_class_is_zero():
    score = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    assert np.isnan(stats.macro_auc([0, 1], score))
    assert stats.macro_f1([0, 1], score) == pytest.approx(2 / 3)
    assert np.isnan(stats.auc([True, True], [0.1, 0.2]))


def naive_c_index(time, event, risk, equal_times=True):
    won = pairs = 0.0
    for i, j in product(range(len(time)), repeat=2):
        if i != j and event[i] and (time[i] < time[j] or (equal_times and time[i] == time[j] and not event[j])):
            pairs += 1
            won += 0.5 if abs(risk[i] - risk[j]) <= 1e-8 else float(risk[i] > risk[j])
    return won / pairs


def test_c_index_against_its_definition():
    for n in (2, 5, 40):
        time, risk = RNG.integers(1, 12, n), RNG.integers(0, 9, n) / 3  # many ties in both
        event = RNG.random(n) < 0.6
        event[np.argmin(time)] = True
        time[np.argmax(time)] += 1
        for equal in (True, False):
            expected = naive_c_index(time, event, risk, equal)
            assert stats.c_index(time, event, risk, equal_times=equal) == pytest.approx(expected, rel=1e-12)


def test_c_index_weight_means_repetition():
    time, event, risk = RNG.random(20), RNG.random(20) < 0.7, RNG.random(20)
    counts = RNG.integers(0, 3, (4, 20))
    repeated = [stats.c_index(np.repeat(time, c), np.repeat(event, c), np.repeat(risk, c)) for c in counts]
    np.testing.assert_allclose(stats.c_index(time, event, risk, counts), repeated, rtol=1e-12)


def test_c_index_without_a_comparable_pair_is_nan():
    assert np.isnan(stats.c_index([1.0, 2.0], [False, False], [0.1, 0.2]))


def test_c_index_of_published_predictions(shared):
    folder = shared / "data" / "published_results"
    predictions = folder / "patchgcn_brca_predictions.csv.gz"
    with gzip.open(predictions, "rt") as file:
        rows = list(csv.DictReader(file))
    with (folder / "patchgcn_brca_cindex_by_fold.csv").open() as file:
        expected = list(csv.DictReader(file))
    assert len(expected) == 5
    for line in expected:
        for fold in "01234":
            own = [row for row in rows if row["model"] == line["model"] and row["fold"] == fold]
            time, censored, risk = (
                np.array([float(row[key]) for row in own]) for key in ("survival_months", "censorship", "risk")
            )
            found = stats.c_index(time, censored == 0, risk, equal_times=False)
            assert found == pytest.approx(float(line[fold]), abs=1e-12), (line["model"], fold)


def test_c_index_agrees_with_torchsurv():
    import torch
    from torchsurv.metrics.cindex import ConcordanceIndex

    time, event = RNG.exponential(10, 60), RNG.random(60) < 0.6
    risk = RNG.normal(size=60)
    for t, r in ((time, risk), (time, risk.round()), (np.ceil(time / 3), risk.round())):  # no ties, tied risks, tied times
        theirs = float(ConcordanceIndex()(torch.tensor(r), torch.tensor(event), torch.tensor(t)))
        assert stats.c_index(t, event, r) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("missing", [slice(0, 1), slice(None)])
@pytest.mark.parametrize(
    "metric", [stats.macro_auc, stats.per_class_auc, stats.macro_f1, stats.accuracy, stats.balanced_accuracy, stats.brier, stats.confusion]
)  # fmt: skip
def test_a_missing_score_leaves_a_metric_undefined(metric, weighted, missing):
    """argmax would take NaN for the highest of all scores, and call the case right."""
    target, score = cases(3)
    score[missing] = np.nan
    weight = [RNG.multinomial(60, np.full(60, 1 / 60), size=4)] if weighted else []
    found = metric(target, score, *weight)
    assert found.shape[:1] == ((4,) if weighted else np.shape(metric(target, np.eye(3)[target]))[:1])
    assert np.isnan(found).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("which", ["time", "risk"])
def test_a_missing_risk_leaves_the_c_index_undefined(which, weighted):
    data = {"time": np.arange(8.0), "risk": -np.arange(8.0)}
    data[which][3] = np.nan
    weight = {"weight": np.ones((2, 8))} if weighted else {}
    assert np.isnan(stats.c_index(data["time"], np.arange(8) % 2 == 0, data["risk"], **weight)).all()
    assert np.isnan(concordance_by_case(data["time"], np.arange(8) % 2 == 0, data["risk"])).all()


@pytest.mark.filterwarnings("error")
def test_infinite_scores_are_the_highest_and_equal():
    assert stats.auc([True, False, True, False], [np.inf, np.inf, 0.0, -np.inf]) == (0.5 + 1 + 0 + 1) / 4
    assert stats.c_index([1, 2, 3], [True, True, False], [np.inf, np.inf, -np.inf]) == 2.5 / 3


@pytest.mark.filterwarnings("error")
def test_no_cases_have_no_metric():
    target, score, none = [0, 1, 1], np.eye(2)[[0, 1, 0]], np.zeros((2, 3))
    for metric in (stats.macro_auc, stats.accuracy, stats.balanced_accuracy, stats.brier):
        assert np.isnan(metric(target, score, none)).all()
    assert np.isnan(stats.c_index([1, 2, 3], [True] * 3, [3, 2, 1], none)).all()
    np.testing.assert_array_equal(stats.balanced_accuracy([0, 0, 0], score), 2 / 3)


def best_threshold_by_trying(positive, score):
    """Of all scores and infinity, the highest at which the true less the false positive rate is largest."""
    tried = sorted([np.inf, *score], reverse=True)
    gain = [np.mean(score[positive] >= t) - np.mean(score[~positive] >= t) for t in tried]
    return tried[int(np.argmax(np.round(gain, 12)))]  # rounded, so that equals are equal


@pytest.mark.parametrize("seed", range(20))
def test_accuracy_at_the_best_thresholds(seed):
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(6, 40)), int(rng.integers(2, 4))
    target = np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)])
    score = np.round(rng.random((n, classes)) + 0.5 * np.eye(classes)[target], 1)  # with ties
    thresholds = [best_threshold_by_trying(target == c, score[:, c]) for c in range(classes)]
    assert [youden_threshold(target == c, score[:, c]) for c in range(classes)] == thresholds
    called = score >= thresholds  # (n, C), as many classes as reach theirs
    exact = np.mean([(row == one).all() for row, one in zip(called, np.eye(classes, dtype=bool)[target], strict=True)])
    assert accuracy_at_best_thresholds(target, score) == pytest.approx(exact)
    assert accuracy_and_aucs(target, score) == pytest.approx((exact + per_class_auc(target, score).sum()) / 2)
    if classes == 2:
        single = np.mean((score[:, 1] >= thresholds[1]) == (target == 1))
        assert accuracy_at_best_thresholds(target, score, one_output=True) == pytest.approx(single)


def test_without_both_sides_there_is_no_threshold():
    assert youden_threshold([True, True], [0.1, 0.2]) == youden_threshold([False], [0.3]) == np.inf
    assert np.isnan(accuracy_and_aucs([0, 0], [[0.9, 0.1], [0.8, 0.2]]))
