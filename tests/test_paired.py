"""The paired bootstrap and Holm's correction against what they mean."""

from functools import partial

import numpy as np
import pytest

from milbench import stats
from milbench.stats.paired import _counts


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
    counts = _counts(strata, 200, np.random.default_rng(0))
    for value, size in ((0, 3), (1, 2), (2, 1)):
        assert (counts[:, strata == value].sum(1) == size).all()


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
    alone = stats.auc(target == 1, score[:, 1], _counts(target, 2000, np.random.default_rng(0)))
    assert c.high - c.low < 0.5 * np.ptp(np.quantile(alone, [0.025, 0.975]))


def test_false_positives_are_as_rare_as_promised():
    """120 pairs of equally good methods: about 5 % fall below 0.05, and surely not 15 %."""
    p = [compare([fold(40, 1, 2 * s)], [fold(40, 1, 2 * s + 1)], replicates=400, seed=str(s)).p for s in range(120)]
    assert np.mean(np.array(p) < 0.05) < 0.15


def test_seeds_share_one_draw():
    """Copies of the same seed add no information: the interval must not shrink."""
    (t, a), (_, b) = fold(30, 1.5, 0), fold(30, 0.5, 1)
    pair = (bound(stats.macro_auc, t, a), bound(stats.macro_auc, t, b))
    one = stats.paired_bootstrap([(t, [pair])], replicates=1000, seed="x")
    five = stats.paired_bootstrap([(t, [pair] * 5)], replicates=1000, seed="x")
    assert (one.low, one.high, one.p) == pytest.approx((five.low, five.high, five.p))
    assert five.runs == 5


def test_undefined_metric_gives_no_interval():
    target = np.zeros(10, int)
    score = fold(10, 1, 0)[1]
    c = stats.paired_bootstrap([(target, [(bound(stats.macro_auc, target, score),) * 2])], replicates=10)
    assert np.isnan([c.difference, c.low, c.high, c.p]).all()


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
    c = compare([(target, score)], [(target, score[:, ::-1])], replicates=99)
    assert c.p == pytest.approx(2 / 100)


def test_holm_by_hand():
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(stats.holm([0.9, np.nan, 0.6]), [1.0, np.nan, 1.0])
    assert stats.holm([]).shape == (0,)
