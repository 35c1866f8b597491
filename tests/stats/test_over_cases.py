"""DeLong, permutation and McNemar against their definitions, hand-worked values and statsmodels."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from milbench import MilbenchError, stats
from milbench.stats import over_cases
from milbench.stats.over_cases import PairedFold


def two(score):
    """(S, n) scores of the positive class as (S, n, 2)."""
    score = np.asarray(score, dtype=float)
    return np.stack([1 - score, score], axis=-1)


def paired(n=30, seeds=1, classes=3, seed=0, strength=(1.0, 1.0), ties=False):
    rng = np.random.default_rng(seed)
    target = np.arange(n) % classes
    score = [s * np.eye(classes)[target] + rng.normal(size=(seeds, n, classes)) for s in strength]
    return PairedFold(target, *(np.round(s) if ties else s for s in score))


def psi(x, y):
    return 1.0 if y < x else 0.5 if y == x else 0.0


def delong_by_definition(target, a, b):
    """DeLong et al. 1988, equations 3 to 5, case by case; returns both AUCs and the covariance matrix of the two."""
    positives, negatives = np.flatnonzero(target == 1), np.flatnonzero(target == 0)
    m, n = len(positives), len(negatives)
    theta, v10, v01 = [], [], []
    for s in (a, b):
        theta.append(sum(psi(s[i], s[j]) for i in positives for j in negatives) / (m * n))
        v10.append([sum(psi(s[i], s[j]) for j in negatives) / n for i in positives])
        v01.append([sum(psi(s[i], s[j]) for i in positives) / m for j in negatives])
    covariance = np.zeros((2, 2))
    for r, s in product(range(2), repeat=2):
        covariance[r, s] = sum((v10[r][i] - theta[r]) * (v10[s][i] - theta[s]) for i in range(m)) / (m - 1) / m
        covariance[r, s] += sum((v01[r][j] - theta[r]) * (v01[s][j] - theta[s]) for j in range(n)) / (n - 1) / n
    return theta, covariance


@pytest.mark.parametrize("ties", [False, True])
def test_delong_is_its_definition(ties):
    rng = np.random.default_rng(3)
    target = (rng.random(60) < 0.4).astype(int)
    a, b = target + rng.normal(size=60), 0.5 * target + rng.normal(size=60)
    if ties:
        a, b = np.round(a), np.round(b)
    theta, covariance = delong_by_definition(target, a, b)
    se = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = stats.delong([PairedFold(target, two([a]), two([b]))])
    difference = theta[0] - theta[1]
    expected = [difference, difference - 1.959964 * se, difference + 1.959964 * se, 2 * norm.sf(abs(difference) / se)]
    np.testing.assert_allclose([found.effect, found.low, found.high, found.p], expected, rtol=1e-6)


def test_delong_by_hand():
    """Three positives, two negatives; the AUCs are 5/6 and 2/3.

    Share of negatives below each positive: 1, 1, 1/2 and 1/2, 1/2, 1; differences 1/2, 1/2, -1/2, of variance 1/3.
    Share of positives above each negative: 1, 2/3 and 1/3, 1; differences 2/3, -1/3, of variance 1/2.
    Variance 1/3 / 3 + 1/2 / 2 = 13/36, so z = (1/6) / sqrt(13/36) = 1 / sqrt(13).
    """
    target = np.array([1, 1, 1, 0, 0])
    a, b = [3, 4, 2, 1, 2.5], [2, 2.2, 4, 3, 1]
    found = stats.delong([PairedFold(target, two([a]), two([b]))])
    assert found.effect == pytest.approx(5 / 6 - 2 / 3)
    assert found.p == pytest.approx(2 * norm.sf(1 / np.sqrt(13)))


def test_delong_averages_seeds_and_adds_folds():
    folds = [paired(24, seeds=3, classes=2, seed=s, strength=(1.5, 0.5)) for s in range(2)]
    found = stats.delong(folds)
    auc = [[stats.macro_auc(f.target, two(s[:, 1])) for s in side] for f in folds for side in (f.method, f.reference)]
    assert found.effect == pytest.approx(np.mean(auc[0::2]) - np.mean(auc[1::2]))
    alone = [stats.delong([f]) for f in folds]
    widths = [f.high - f.effect for f in alone]
    assert found.high - found.effect == pytest.approx(np.hypot(*widths) / 2)
    copies = PairedFold(folds[0].target, *(np.repeat(s[:1], 5, axis=0) for s in (folds[0].method, folds[0].reference)))
    one = PairedFold(folds[0].target, folds[0].method[:1], folds[0].reference[:1])
    assert stats.delong([copies]).p == pytest.approx(stats.delong([one]).p), "copies of a seed add nothing"


def test_delong_agrees_with_the_bootstrap():
    f = paired(400, classes=2, seed=1, strength=(1.2, 0.9))
    pair = [lambda w, s=s: stats.macro_auc(f.target, two(s[0, :, 1]), w) for s in (f.method, f.reference)]
    c = stats.paired_bootstrap([(f.target, [tuple(pair)])], replicates=4000)
    found = stats.delong([f])
    assert (found.high - found.low) / 3.92 == pytest.approx(c.se, rel=0.05)
    assert found.p == pytest.approx(c.p, abs=0.02)


def test_delong_without_an_answer_says_why():
    one_class = PairedFold(np.ones(4, int), two(np.random.default_rng(0).random((1, 4))), two(np.zeros((1, 4))))
    assert np.isnan(stats.delong([one_class]).p)
    assert stats.delong([one_class]).note == "not computed (a fold lacks a class)"
    single = PairedFold(np.array([1, 0, 0]), two([[1, 2, 3]]), two([[1, 2, 3]]))
    assert "one case of a class" in stats.delong([single]).note
    flat = PairedFold(np.array([1, 1, 0, 0]), two(np.zeros((1, 4))), two(np.zeros((1, 4))))
    assert stats.delong([flat]).p == 1
    perfect = PairedFold(np.array([1, 1, 0, 0]), two([[1, 1, 0, 0]]), two(np.zeros((1, 4))))
    assert (stats.delong([perfect]).effect, np.isnan(stats.delong([perfect]).p)) == (0.5, True)
    with pytest.raises(MilbenchError, match="two classes, there are 3"):
        stats.delong([paired()])


def ranks(x):
    return np.array([np.sum(x < v) + (np.sum(x == v) + 1) / 2 for v in x])


def spelt_out(folds, metric, signs):
    """The permutation spelt out: swap cases, jointly over seeds, then measure with the ordinary metrics."""
    differences, start = [], 0
    for f in folds:
        swapped = signs[start : start + len(f.target)] < 0
        start += len(f.target)
        for a, b in zip(f.method, f.reference, strict=True):
            if metric == "macro_auc":
                a, b = (np.stack([ranks(column) for column in s.T], axis=1) for s in (a, b))
            x, y = np.where(swapped[:, None], b, a), np.where(swapped[:, None], a, b)
            function = getattr(stats, metric)
            differences.append([function(f.target, x) - function(f.target, y), len(folds) * len(f.method)])
    return sum(d / weight for d, weight in differences)


@pytest.mark.parametrize("metric", ["macro_auc", "macro_f1"])
@pytest.mark.parametrize("ties", [False, True])
def test_exact_permutation_is_every_swap_spelt_out(metric, ties):
    folds = [paired(5, seeds=2, seed=1, strength=(2, 0.5), ties=ties), paired(3, seeds=2, classes=2, seed=2, ties=ties)]
    found = stats.permutation(folds, metric, replicates=2000)
    every = [spelt_out(folds, metric, np.array(signs)) for signs in product((1, -1), repeat=8)]
    assert found.name == "permutation (exact)"
    assert found.effect == pytest.approx(every[0])
    assert found.p == pytest.approx(np.mean(np.abs(every) >= abs(every[0]) - 1e-12))
    assert (found.n, found.smallest) == (8, 2 / 256)


@pytest.mark.parametrize("metric", ["macro_auc", "macro_f1"])
def test_random_swaps_agree_with_all_of_them(metric):
    folds = [paired(12, seed=4, strength=(1.5, 0.7))]
    exact, drawn = stats.permutation(folds, metric), stats.permutation(folds, metric, replicates=4000, seed="a")
    assert (exact.name, drawn.name) == ("permutation (exact)", "permutation")
    assert drawn.p == pytest.approx(exact.p, abs=0.03)
    assert drawn.smallest == pytest.approx(1 / 4001)
    assert drawn == stats.permutation(folds, metric, replicates=4000, seed="a")


def test_permutation_does_not_depend_on_the_scale_of_a_method():
    """A method whose probabilities are all small is as good as its ranks."""
    f = paired(40, seed=5, strength=(1, 1))
    squeezed = PairedFold(f.target, f.method / 1000 - 7, f.reference)
    assert stats.permutation([squeezed], "macro_auc") == stats.permutation([f], "macro_auc")


@pytest.mark.parametrize("metric", ["macro_auc", "macro_f1"])
def test_permutation_keeps_its_promise_and_finds_differences(metric):
    null = [stats.permutation([paired(45, 2, seed=s)], metric, replicates=200, seed=str(s)).p for s in range(200)]
    assert np.mean(np.array(null) < 0.05) < 0.1
    assert np.mean(null) == pytest.approx(0.5, abs=0.07)
    real = [stats.permutation([paired(60, 2, seed=s, strength=(2.5, 0.7))], metric, replicates=200).p for s in range(20)]
    assert np.mean(np.array(real) < 0.05) > 0.8


def test_permutation_of_ties_and_single_classes():
    flat = PairedFold(np.arange(20) % 2, np.zeros((1, 20, 2)), np.zeros((1, 20, 2)))
    for metric in ("macro_auc", "macro_f1"):
        assert (stats.permutation([flat], metric).effect, stats.permutation([flat], metric).p) == (0, 1)
    lacking = PairedFold(np.zeros(20, int), *(np.random.default_rng(0).random((2, 1, 20, 2))))
    assert np.isnan(stats.permutation([lacking], "macro_auc").p)
    assert stats.permutation([lacking], "macro_auc").note == "not computed (a fold lacks a class)"
    assert stats.permutation([lacking], "macro_f1").p <= 1, "F1 is defined without a class"
    with pytest.raises(MilbenchError, match="macro_auc and macro_f1, not brier"):
        stats.permutation([flat], "brier")


@pytest.mark.parametrize(("n", "name"), [(8, "permutation (exact)"), (20, "permutation")])
def test_swaps_do_not_depend_on_how_many_are_drawn_at_a_time(n, name, monkeypatch):
    folds = [paired(n, seed=4, strength=(1.5, 0.7))]
    at_once = stats.permutation(folds, "macro_auc", replicates=1001)
    monkeypatch.setattr(over_cases, "ELEMENTS", 50)
    assert stats.permutation(folds, "macro_auc", replicates=1001) == at_once
    assert at_once.name == name


def mcnemar_fold(both, won, lost, neither):
    target = np.zeros(both + won + lost + neither, int)
    right, wrong = np.array([0.9, 0.1]), np.array([0.2, 0.8])
    a = [right] * (both + won) + [wrong] * (lost + neither)
    b = [right] * both + [wrong] * won + [right] * lost + [wrong] * neither
    return PairedFold(target, np.array([a]), np.array([b]))


def test_mcnemar_is_the_sign_test_of_discordant_cases():
    found = stats.mcnemar([mcnemar_fold(20, 9, 2, 5), mcnemar_fold(3, 1, 1, 0)])
    assert found.p == pytest.approx(binomtest(10, 13).pvalue, rel=1e-12)
    assert found.effect == pytest.approx((10 - 3) / 41)
    assert (found.n, found.smallest) == (41, pytest.approx(2 / 2**13))
    assert "10 cases right by the method alone, 3 by the reference alone" in found.note


@pytest.mark.parametrize(("won", "lost"), [(9, 2), (8, 2), (8, 1), (5, 0), (6, 0), (30, 16), (30, 14)])
def test_mcnemars_interval_and_p_value_agree(won, lost):
    found = stats.mcnemar([mcnemar_fold(20, won, lost, 5)])
    assert (found.low > 0) == (found.p < 0.05)
    assert found.low < found.effect <= found.high


def test_mcnemar_averages_probabilities_over_seeds():
    """Two of three seeds vote for the wrong class, but the third is surer."""
    target = np.zeros(1, int)
    unsure = np.array([[[0.45, 0.55]], [[0.45, 0.55]], [[0.9, 0.1]]])
    found = stats.mcnemar([PairedFold(target, unsure, 1 - unsure)])
    assert found.effect == 1
    assert found.p == 1, "one discordant case allows no smaller one"


def test_mcnemar_without_discordant_cases():
    found = stats.mcnemar([mcnemar_fold(5, 0, 0, 3)])
    assert (found.effect, found.p, found.smallest) == (0, 1, 1)


def test_pairs_that_do_not_pair_are_an_error():
    target, score = np.zeros(4, int), np.zeros((2, 4, 2))
    for a, b in ((score, score[:1]), (score[:, :3], score[:, :3]), (score[0], score[0])):
        with pytest.raises(MilbenchError, match="predictions do not pair"):
            PairedFold(target, a, b)
    with pytest.raises(MilbenchError, match="a score is missing"):
        PairedFold(target, score, np.full((2, 4, 2), np.nan))


def clustered(seed, seeds=1, classes=2, sizes=(1, 4, 2, 3, 5, 1, 2, 6, 3, 2)):
    """Slides of patients who have several, some of several classes, in a random order; predictions agree within a patient."""
    rng = np.random.default_rng(seed)
    patient = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    n = len(patient)
    target = rng.permutation(np.arange(n) % classes)
    own = rng.normal(size=(2, len(sizes), classes))
    score = [
        s * np.eye(classes)[target] + o[patient] + 0.7 * rng.normal(size=(seeds, n, classes))
        for s, o in zip((1.0, 0.5), own, strict=True)
    ]
    return PairedFold(target, *score, np.array([f"p{p}" for p in patient]))


def obuchowski_by_definition(fold):
    """Obuchowski 1997, section 3, sum by sum: the AUCs of two methods and their covariance matrix."""
    y, clusters = fold.target, np.unique(fold.patient)
    positives, negatives = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    m, n = len(positives), len(negatives)
    theta, x, z = [], [], []
    for scores in (fold.method[0, :, 1], fold.reference[0, :, 1]):
        v10 = {i: np.mean([psi(scores[i], scores[j]) for j in negatives]) for i in positives}
        v01 = {j: np.mean([psi(scores[i], scores[j]) for i in positives]) for j in negatives}
        auc = np.mean(list(v10.values()))
        theta.append(auc)
        inside = [np.flatnonzero(fold.patient == c) for c in clusters]
        x.append([sum(v10[i] - auc for i in of if y[i] == 1) for of in inside])
        z.append([sum(v01[j] - auc for j in of if y[j] == 0) for of in inside])
    with_positive = len(np.unique(fold.patient[positives]))
    with_negative = len(np.unique(fold.patient[negatives]))
    every = len(clusters)
    covariance = np.zeros((2, 2))
    for r, s in product(range(2), repeat=2):
        s10 = with_positive / ((with_positive - 1) * m) * np.dot(x[r], x[s])
        s01 = with_negative / ((with_negative - 1) * n) * np.dot(z[r], z[s])
        s11 = every / (every - 1) * (np.dot(x[r], z[s]) + np.dot(x[s], z[r]))
        covariance[r, s] = s10 / m + s01 / n + s11 / (m * n)
    return theta, covariance


@pytest.mark.parametrize("seed", range(3))
def test_delong_of_patients_is_obuchowskis(seed):
    fold = clustered(seed)
    theta, covariance = obuchowski_by_definition(fold)
    se = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = stats.delong([fold])
    assert found.effect == pytest.approx(theta[0] - theta[1])
    assert (found.high - found.low) / 2 / 1.959964 == pytest.approx(se, rel=1e-6)
    assert (found.n, found.over) == (10, "patients")


def every_test(fold):
    found = {"delong": stats.delong([fold])} if fold.method.shape[2] == 2 else {}
    found |= {m: stats.permutation([fold], m, replicates=500, seed="g") for m in ("macro_auc", "macro_f1")}
    return found | {"mcnemar": stats.mcnemar([fold])}


@pytest.mark.parametrize("classes", [2, 3])
def test_patients_of_one_slide_are_slides(classes):
    """Whatever they are called; what was computed before patients were known."""
    f = paired(30, 2, classes, seed=7, strength=(1.0, 0.6))
    names = np.random.default_rng(0).permutation(30)
    one_each = PairedFold(f.target, f.method, f.reference, names)
    for name, found in every_test(f).items():
        with_patients = every_test(one_each)[name]
        numbers = ("effect", "low", "high", "n", "smallest", "p")
        same = [(getattr(found, x), getattr(with_patients, x)) for x in numbers]
        assert all(a == b or np.isnan([a, b]).all() for a, b in same), name
        assert (found.over, with_patients.over) == ("slides", "patients")


def test_copies_of_a_slide_tell_nothing_new():
    f = paired(14, 1, 2, seed=9, strength=(1.5, 0.6))
    copies = np.tile(np.arange(14), 3)
    thrice = PairedFold(f.target[copies], f.method[:, copies], f.reference[:, copies], copies)
    for name, found in every_test(f).items():
        copied = every_test(thrice)[name]
        assert copied.p == pytest.approx(found.p), name
        assert copied.effect == pytest.approx(found.effect), name
        assert (copied.low, copied.high) == pytest.approx((found.low, found.high), nan_ok=True), name
        alone = every_test(PairedFold(thrice.target, thrice.method, thrice.reference))[name]
        assert alone.p < found.p, "without patients the copies count"


@pytest.mark.parametrize("metric", ["macro_auc", "macro_f1"])
def test_whole_patients_are_swapped(metric):
    """All 2^6 swaps of six patients, spelt out slide by slide."""
    fold = clustered(3, seeds=2, classes=3, sizes=(1, 3, 2, 4, 1, 3))
    found = stats.permutation([fold], metric)
    names = list(dict.fromkeys(fold.patient))
    every = []
    for signs in product((1, -1), repeat=6):
        of_slide = np.array([signs[names.index(p)] for p in fold.patient])
        every.append(spelt_out([PairedFold(fold.target, fold.method, fold.reference)], metric, of_slide))
    assert found.name == "permutation (exact)"
    assert found.p == pytest.approx(np.mean(np.abs(every) >= abs(every[0]) - 1e-12))
    assert (found.n, found.smallest, found.over) == (6, 2 / 64, "patients")


def test_mcnemar_of_patients_flips_their_balances():
    """Balances of won and lost slides: +3, +2, -1, and one patient who is even. Of 8 choices of signs four are as far as 4."""
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    won, lost = (right, wrong), (wrong, right)
    slides = [("a", won)] * 3 + [("b", won)] * 2 + [("c", lost)] + [("d", won), ("d", lost), ("e", (right, right))]
    patient = np.array([name for name, _ in slides])
    scores = [np.array([[pair[side] for _, pair in slides]]) for side in (0, 1)]
    found = stats.mcnemar([PairedFold(np.zeros(len(slides), int), *scores, patient)])
    sums = [abs(a * 3 + b * 2 + c) for a, b, c in product((1, -1), repeat=3)]
    assert found.p == pytest.approx(np.mean(np.array(sums) >= 4)) == 0.5
    assert found.effect == pytest.approx(4 / 9)
    assert (found.n, found.over, found.smallest) == (5, "patients", 0.25)
    assert "3 of 5 patients favour one of them" in found.note
    assert found.low < 0 < found.effect < found.high


@pytest.mark.parametrize("seed", range(6))
def test_the_interval_of_mcnemars_patients_agrees_with_its_p_value(seed):
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(20), rng.integers(1, 6, 20))
    wins = np.where(rng.random(20)[patient] < 0.8, 1, 0)
    a = np.stack([np.where(wins, 0.9, 0.2), np.where(wins, 0.1, 0.8)], 1)[None]
    found = stats.mcnemar([PairedFold(np.zeros(len(patient), int), a, a[..., ::-1], patient)])
    assert (found.low > 0) == (found.p < 0.05)


def test_tests_of_patients_keep_their_promise():
    """Two equally good methods on 30 patients of 1 to 6 slides that are alike: without patients they differ far too often."""
    patient = np.repeat(np.arange(30), np.random.default_rng(0).integers(1, 7, 30))
    target, known, unknown = patient % 2, [], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        a, b = (
            np.eye(2)[target] + rng.normal(size=(30, 2))[patient] + 0.7 * rng.normal(size=(1, len(patient), 2)) for _ in range(2)
        )
        known.append(stats.delong([PairedFold(target, a, b, patient)]).p)
        unknown.append(stats.delong([PairedFold(target, a, b)]).p)
    assert np.mean(np.array(known) < 0.05) < 0.11
    assert np.mean(np.array(unknown) < 0.05) > 0.15


def test_a_slide_without_its_patient_is_an_error():
    with pytest.raises(MilbenchError, match="names the patient of 3 of 4 slides"):
        PairedFold(np.zeros(4, int), np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.array(["a", None, "b", "b"], dtype=object))
