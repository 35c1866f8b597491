"""The paired bootstrap and Holm's correction against what they mean."""

from functools import partial

import numpy as np
import pytest

from milbench import MilbenchError, stats
from milbench.stats import paired
from milbench.stats.paired import Once


def _counts(strata, replicates, seed=0):
    return np.concatenate(list(paired.resamples(strata, replicates, np.random.default_rng(seed))))


def fold(n, strength, seed):
    rng = np.random.default_rng(seed)
    target = np.arange(n) % 2
    score = strength * target + rng.normal(size=n)
    score = 1 / (1 + np.exp(-score))
    return target, np.stack([1 - score, score], axis=1)


def bound(metric, target, score):
    return lambda counts: metric(target, score, counts)


def compare(method, reference, metric=stats.macro_auc, **keys):
    folds = [(t, [(bound(metric, t, a), bound(metric, t, b))]) for (t, a), (_, b) in zip(method, reference, strict=True)]
    return stats.paired_bootstrap(folds, **keys)


def test_resamples_keep_the_size_of_every_stratum():
    strata = np.array([0, 0, 0, 1, 1, 2])
    counts = _counts(strata, 200)
    for value, size in ((0, 3), (1, 2), (2, 1)):
        np.testing.assert_allclose(counts[:, strata == value].sum(1), size)


@pytest.mark.parametrize("m", [2, 3, 10])
def test_the_variance_of_a_mean_is_unbiased(m):
    """What m - 1 draws of weight m / (m - 1) are for: the plain bootstrap gives s^2 (m - 1) / m^2."""
    x = np.random.default_rng(m).normal(size=m)
    means = _counts(np.zeros(m), 40_000) @ x / m
    assert means.var() == pytest.approx(x.var(ddof=1) / m, rel=0.04)


def test_resamples_do_not_depend_on_how_many_are_drawn_at_a_time(monkeypatch):
    """A fold larger than a block of counts gives the same kind of resamples, all of them."""
    monkeypatch.setattr(paired, "ELEMENTS", 100)
    counts = _counts(np.arange(40) % 2, 2000)
    assert counts.shape == (2000, 40)
    assert counts.var(0).mean() == pytest.approx(1, rel=0.05)  # (m / (m - 1))^2 (m - 1) (1 / m) (1 - 1 / m)
    assert counts.mean(0) == pytest.approx(1, abs=0.1)


def test_a_method_does_not_differ_from_itself():
    folds = [fold(20, 1.0, s) for s in range(3)]
    c = compare(folds, folds, replicates=500)
    assert (c.difference, c.low, c.high, c.p, c.wins, c.ties, c.losses) == (0, 0, 0, 1, 0, 3, 0)


def test_agrees_with_resampling_spelt_out():
    """The vectorised form against drawing cases one by one and measuring the repeated arrays."""
    good, bad = [fold(40, 1.5, s) for s in (1, 2)], [fold(40, 0.7, s) for s in (3, 4)]
    c = compare(good, bad, replicates=4000, seed="a")
    rng, spelt = np.random.default_rng(5), []
    for _ in range(1500):
        differences = []
        for (target, a), (_, b) in zip(good, bad, strict=True):
            drawn = np.concatenate([rng.choice(np.flatnonzero(target == v), (target == v).sum()) for v in (0, 1)])
            differences.append(stats.macro_auc(target[drawn], a[drawn]) - stats.macro_auc(target[drawn], b[drawn]))
        spelt.append(np.mean(differences))
    np.testing.assert_allclose([c.low, c.high], np.quantile(spelt, [0.025, 0.975]), atol=0.02)
    assert c.difference == pytest.approx(
        np.mean([stats.macro_auc(*g) - stats.macro_auc(*b) for g, b in zip(good, bad, strict=True)])
    )


def test_pairing_sees_what_an_unpaired_interval_cannot():
    """A method that is slightly better on the very same cases: the shared case noise cancels."""
    target, score = fold(60, 1.0, 0)
    logit = np.log(score[:, 1] / score[:, 0]) + 0.25 * target
    better = np.stack([1 / (1 + np.exp(logit)), 1 / (1 + np.exp(-logit))], axis=1)
    c = compare([(target, better)], [(target, score)], replicates=2000)
    alone = stats.auc(target == 1, score[:, 1], _counts(target, 2000))
    assert c.high - c.low < 0.5 * np.ptp(np.quantile(alone, [0.025, 0.975]))


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "sizes", "folds"), [(stats.macro_auc, [20, 20, 20], 1), (stats.macro_f1, [4, 10], 6)])
def test_p_is_uniform_where_the_methods_are_equally_good(metric, sizes, folds):
    """300 pairs of equally good methods that share half of their noise: the promise behind every dagger."""
    target, found = np.repeat(np.arange(len(sizes)), sizes), []
    for s in range(300):
        rng, pairs = np.random.default_rng(s), []
        for _ in range(folds):
            shared = rng.normal(size=(len(target), len(sizes)))
            a, b = (np.eye(len(sizes))[target] + 0.7 * shared + 0.7 * rng.normal(size=shared.shape) for _ in range(2))
            pairs.append((target, [(bound(metric, target, a), bound(metric, target, b))]))
        found.append(stats.paired_bootstrap(pairs, replicates=300, seed=str(s)).p)
    p = np.array(found)
    assert np.mean(p < 0.05) < 0.09  # three standard errors above 0.05
    assert np.mean(p < 0.2) < 0.27
    assert 0.42 < np.mean(p) < 0.6


def test_c_index_keeps_its_promise():
    """The same with 12 events in 40 cases of one risk model seen through noise twice."""
    found = []
    for s in range(200):
        rng = np.random.default_rng(s)
        hazard = rng.normal(size=40)
        time = rng.exponential(np.exp(-hazard))
        event = time < np.sort(time)[12]
        pair = [bound(partial(stats.c_index, time), event, hazard + rng.normal(size=40)) for _ in range(2)]
        found.append(stats.paired_bootstrap([(event, [tuple(pair)])], replicates=200, seed=str(s)).p)
    assert np.mean(np.array(found) < 0.05) < 0.1


def test_a_real_difference_is_found():
    found = [compare([fold(60, 2.5, 2 * s)], [fold(60, 0.8, 2 * s)], replicates=300, seed=str(s)) for s in range(40)]
    assert np.mean([c.p < 0.05 for c in found]) > 0.8
    assert all(c.difference > 0 for c in found)


def test_seeds_share_one_draw():
    """Copies of the same seed add no information: the interval must not shrink."""
    (t, a), (_, b) = fold(30, 1.5, 0), fold(30, 0.5, 1)
    pair = (bound(stats.macro_auc, t, a), bound(stats.macro_auc, t, b))
    one = stats.paired_bootstrap([(t, [pair])], replicates=1000, seed="x")
    five = stats.paired_bootstrap([(t, [pair] * 5)], replicates=1000, seed="x")
    assert (one.low, one.high, one.p) == pytest.approx((five.low, five.high, five.p))
    assert five.runs == 5


def test_a_fold_of_a_single_class_gives_no_interval_and_says_so():
    target = np.zeros(10, int)
    score = fold(10, 1, 0)[1]
    whole = (fold(10, 1, 1)[0], [(bound(stats.macro_auc, *fold(10, 1, 1)), bound(stats.macro_auc, *fold(10, 1, 2)))])
    c = stats.paired_bootstrap([whole, (target, [(bound(stats.macro_auc, target, score),) * 2])], replicates=10)
    assert np.isnan([c.difference, c.low, c.high, c.p, c.superiority]).all()
    assert c.note == "the metric is undefined in 1 of 2 pairs of runs"


def test_ties_everywhere():
    """Constant scores of both methods: no difference, and no significance from rounding."""
    target, flat = np.arange(30) % 3, np.full((30, 3), 1 / 3)
    for metric in (stats.macro_auc, stats.macro_f1, stats.brier):
        c = compare([(target, flat)], [(target, flat + 1e-17)], metric=metric, replicates=200)
        assert (c.difference, c.low, c.high, c.p) == pytest.approx((0, 0, 0, 1), abs=1e-12)
        assert (c.wins, c.ties, c.losses, c.superiority) == (0, 1, 0, 0.5)


def survival(time, event, good, bad, **keys):
    metric = partial(stats.c_index, np.asarray(time, float), np.asarray(event, bool))
    return stats.paired_bootstrap([(event, [(partial(metric, good), partial(metric, bad))])], **keys)


def test_only_censored_cases_have_no_c_index():
    c = survival(range(8), [False] * 8, np.arange(8), -np.arange(8), replicates=50)
    assert np.isnan([c.difference, c.low, c.p]).all()
    assert "undefined in 1 of 1 pairs" in c.note


def test_no_censored_case():
    rng = np.random.default_rng(0)
    time = rng.random(30)
    c = survival(time, [True] * 30, -time, rng.random(30), replicates=200)
    assert (c.p, c.smallest, c.note) == (pytest.approx(2 / 201), pytest.approx(2 / 201), "")


def test_resamples_without_a_comparable_pair_are_left_out_and_counted():
    """Of six events three are the last times: 5 draws miss the first three in (1/2)^5 of the resamples, which compare nothing."""
    time, event = [1, 2, 3, 9, 9, 9, 5, 5], [True] * 6 + [False] * 2
    c = survival(time, event, -np.arange(8), [0, 0, 1, 0, 0, 0, 1, 2], replicates=4000)
    left_out = int(c.note.split()[0])
    assert left_out == pytest.approx(4000 / 32, abs=40)
    assert c.note == f"{left_out} of 4000 resamples left out, in which the metric is undefined"
    assert 0 <= c.low < c.difference


def test_too_few_events_give_no_interval():
    time, event = [1, 9, 9, 9, 5, 5], [True] * 4 + [False] * 2
    c = survival(time, event, -np.arange(6), np.arange(6), replicates=500)
    assert np.isnan([c.low, c.high, c.se, c.p]).all()
    assert c.note.startswith("the metric is undefined in 4")  # (3/4)^3 = 42 % of the resamples
    assert c.difference > 0


def test_a_stratum_of_one_case_is_told():
    target, score = np.array([0, 0, 0, 0, 0, 1]), np.random.default_rng(0).random((6, 2))
    c = compare([(target, score)], [(target, score[::-1])], replicates=50)
    assert c.note == "1 strata of one case do not vary: the interval is too narrow"
    assert (c.n, c.runs) == (6, 1)


def test_nothing_to_compare_is_an_error():
    for folds in ([], [(np.arange(3), [])], [(np.array([]), [(np.sum, np.sum)])]):
        with pytest.raises(MilbenchError, match="nothing to compare"):
            stats.paired_bootstrap(folds)


def test_superiority_by_hand():
    assert stats.superiority([[3, 1]], [[2, 1]]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert stats.superiority([[1], [1, 2]], [[0], [3, 3]]) == pytest.approx(0.5)
    assert np.isnan(stats.superiority([[np.nan]], [[0]]))


def test_survival_can_be_compared():
    rng = np.random.default_rng(0)
    time, event = rng.random(50), rng.random(50) < 0.6
    metric = partial(stats.c_index, time, event)
    pair = (lambda w: metric(-time, w), lambda w: metric(rng.random(50) * 0 + np.arange(50), w))
    c = stats.paired_bootstrap([(event, [pair])], replicates=200)
    assert c.difference > 0.3
    assert c.p < 0.05


def test_p_is_never_zero():
    target, score = fold(40, 9, 0)
    c = compare([(target, score)], [fold(40, 0, 1)], replicates=99)
    assert (c.p, c.smallest) == (pytest.approx(2 / 100), pytest.approx(2 / 100))


def test_holm_by_hand():
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(stats.holm([0.9, np.nan, 0.6]), [1.0, np.nan, 1.0])
    assert stats.holm([]).shape == (0,)


def test_blocks_that_begin_alike_are_not_taken_for_each_other():
    """Two draws can share their first rows; a value computed for one must never be given for the other."""
    calls = []

    def total(counts):
        calls.append(len(counts))
        return counts.sum(1)

    once, rng = Once(total), np.random.default_rng(0)
    one = rng.integers(0, 3, (50, 6)).astype(float)
    for row in (8, 20, 49):
        other = one.copy()
        other[row, 5] += 1
        np.testing.assert_array_equal(once(one), one.sum(1))
        np.testing.assert_array_equal(once(other), other.sum(1))
        np.testing.assert_array_equal(once(other.copy()), other.sum(1))
    np.testing.assert_array_equal(once(one.reshape(100, 3)), one.reshape(100, 3).sum(1))
    np.testing.assert_array_equal(once(np.asfortranarray(one)), one.sum(1))
    assert calls == [50, 50, 50, 50, 100], "each block once"


@pytest.mark.filterwarnings("error")
def test_undefined_runs_are_counted_and_told():
    target, score = fold(30, 3, 0)
    broken = np.full_like(score, np.nan)
    good = lambda c: stats.macro_f1(target, score, c)  # noqa: E731
    bad = lambda c: stats.macro_f1(target, broken, c)  # noqa: E731
    worse = lambda c: stats.macro_f1(target, score[:, ::-1], c)  # noqa: E731
    c = stats.paired_bootstrap([(target, [(good, worse), (bad, worse), (worse, worse)])], replicates=50)
    assert (c.wins, c.ties, c.losses, c.undefined, c.runs) == (1, 1, 0, 1, 3)
    assert c.note == "the metric is undefined in 1 of 3 pairs of runs"
    assert np.isnan([c.difference, c.low, c.high, c.se, c.superiority, c.p]).all()


@pytest.mark.parametrize("each", [1, 2, 3, 4, 50])
def test_what_does_not_vary_has_no_p_value(each):
    """Class-stratified resamples of a perfect method and a constant one are all alike: that is no p of 0.0002."""
    target = np.repeat([0, 1], each)
    perfect, constant = np.eye(2)[target], np.tile([0.6, 0.4], (2 * each, 1))
    runs = [partial(stats.macro_f1, target, perfect), partial(stats.macro_f1, target, constant)]
    c = stats.paired_bootstrap([(target, [tuple(runs)])], replicates=200)
    assert c.difference == pytest.approx(2 / 3)
    assert np.isnan([c.p, c.low, c.high, c.se, c.smallest]).all()
    assert c.note == "not computed (each resample gives the same difference, so its spread is unknown)"
    same = stats.paired_bootstrap([(target, [(runs[0], runs[0])])], replicates=200)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1), "no difference is one"


@pytest.mark.parametrize(("each", "resamples"), [(2, 4), (3, 36), (4, 400)])
def test_a_handful_of_cases_allows_no_small_p_value(each, resamples):
    """However many are drawn, only so many resamples differ, and p is no smaller than 2 of them."""
    target = np.repeat([0, 1], each)
    good = np.where(np.arange(2 * each)[:, None] == 0, 0.5, np.eye(2)[target])
    bad = np.where(np.arange(2 * each)[:, None] == 1, 0.5, 1 - np.eye(2)[target])
    runs = [bound(stats.brier, target, score) for score in (bad, good)]
    c = stats.paired_bootstrap([(target, [tuple(runs)])], replicates=4000)
    if resamples < 40:
        assert np.isnan([c.p, c.low, c.smallest]).all()
        assert c.note == f"not computed (so few cases have {resamples} different resamples, 40 are needed)"
    else:
        assert (c.p, c.smallest) == (2 / resamples, 2 / resamples)


def of_patients(seed, patients=12, each=4):
    """Two methods on slides of patients, of whom some have slides of both classes."""
    rng = np.random.default_rng(seed)
    patient = rng.permutation(np.repeat(np.arange(patients), each))
    target = rng.integers(0, 2, len(patient))
    return (
        patient,
        target,
        [
            np.stack([1 - s, s], 1)
            for s in target + rng.normal(size=(2, len(patient))) + rng.normal(size=(2, patients))[:, patient]
        ],
    )


def test_whole_patients_are_drawn():
    """Against the resampling written out: patients are drawn, with all their slides, and weigh g / (g - 1)."""
    patient, target, scores = of_patients(0)
    runs = tuple(bound(stats.macro_f1, target, score) for score in scores)
    c = stats.paired_bootstrap([(target, [runs])], patients=[[f"p{p}" for p in patient]], replicates=4000)
    rng, spelt = np.random.default_rng(1), []
    for _ in range(3000):
        drawn = np.concatenate([np.flatnonzero(patient == p) for p in rng.integers(0, 12, 11)])
        spelt.append(stats.macro_f1(target[drawn], scores[0][drawn]) - stats.macro_f1(target[drawn], scores[1][drawn]))
    assert c.se == pytest.approx(np.std(spelt), rel=0.06)
    np.testing.assert_allclose([c.low, c.high], np.quantile(spelt, [0.025, 0.975]), atol=0.02)
    assert (c.n, c.over) == (12, "patients")
    alone = stats.paired_bootstrap([(target, [runs])], replicates=4000)
    assert (alone.n, alone.over) == (48, "slides")


def test_copies_of_a_slide_tell_nothing_new():
    target, score = fold(12, 1.0, 0)
    other, copies = fold(12, 0.2, 1)[1], np.tile(np.arange(12), 5)
    one = stats.paired_bootstrap([(target, [(bound(stats.macro_auc, target, score), bound(stats.macro_auc, target, other))])])
    pair = tuple(bound(stats.macro_auc, target[copies], s[copies]) for s in (score, other))
    five = stats.paired_bootstrap([(target[copies], [pair])], patients=[copies])
    assert (one.low, one.high, one.p) == pytest.approx((five.low, five.high, five.p))


@pytest.mark.parametrize("metric", [stats.macro_auc, stats.macro_f1])
def test_patients_of_one_slide_are_slides(metric):
    """Whatever they are called: the same resamples and numbers."""
    target, score = fold(30, 1.0, 0)
    runs = [(bound(metric, target, score), bound(metric, target, fold(30, 0.3, s)[1])) for s in (1, 2)]
    by_slide = stats.paired_bootstrap([(target, runs)] * 2, replicates=300, seed="g")
    names = np.random.default_rng(0).permutation(30)
    by_patient = stats.paired_bootstrap([(target, runs)] * 2, patients=[names, names[::-1]], replicates=300, seed="g")
    assert {**vars(by_slide), "over": "patients"} == vars(by_patient)


def test_the_numbers_are_those_of_a_bootstrap_over_slides():
    """Kept from before patients were drawn."""
    target, score = fold(30, 1.0, 0)
    pair = bound(stats.macro_auc, target, score), bound(stats.macro_auc, target, fold(30, 0.3, 1)[1])
    c = stats.paired_bootstrap([(target, [pair])], patients=[np.arange(30)], replicates=1000, seed="golden")
    assert (c.low, c.high, c.se, c.p) == (-0.010204081633, 0.515306122449, 0.138404005304, 0.0739260739261)


def test_patients_are_drawn_inside_their_classes():
    """Each patient has slides of one class: no resample lacks one."""
    target, patient = np.repeat([0, 1], [12, 4]), np.repeat(np.arange(8), 2)
    seen = []

    def run(counts):
        seen.append(counts)
        return stats.macro_auc(target, np.eye(2)[target] * 0.9, counts) * counts[:, 0]

    stats.paired_bootstrap([(target, [(run, run)])], patients=[patient], replicates=100)
    counts = np.concatenate(seen)
    np.testing.assert_array_equal(counts[:, ::2], counts[:, 1::2])
    np.testing.assert_allclose(counts[:, target == 1].sum(1), 4)


def test_a_clear_difference_survives_a_large_family():
    """With 10,000 resamples and 364 comparisons nothing could be: more are drawn, and only where it matters."""
    target = np.repeat([0, 1], 100)
    noise = np.random.default_rng(0).random(200)
    clear, coin = np.stack([1 - target, target], 1).astype(float), np.stack([1 - noise, noise], 1)
    runs = [bound(stats.macro_auc, target, score) for score in (clear, coin, noise[:, None] * [0.5, 1] + [0.1, 0])]
    c = stats.paired_bootstrap([(target, [(runs[0], runs[1])])], replicates=500, most=20_000)
    assert c.p == c.smallest == pytest.approx(2 / 20_001)
    assert stats.holm([c.p] * 364).max() < 0.05
    spared = stats.paired_bootstrap([(target, [(runs[1], runs[1])])], replicates=500, most=20_000)
    assert spared.smallest == pytest.approx(2 / 501)


def test_a_slide_without_its_patient_is_an_error():
    target, score = fold(4, 1.0, 0)
    run = bound(stats.macro_auc, target, score)
    for patients in (["a", None, "b", "c"], ["a", "b"]):
        with pytest.raises(MilbenchError, match="names the patient of"):
            stats.paired_bootstrap([(target, [(run, run)])], patients=[patients])
