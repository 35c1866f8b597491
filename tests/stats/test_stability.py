"""What another training would show: chances, ranks, and tests that meet a method twice."""

import math
from functools import partial

import numpy as np
import pytest

from milbench import MilbenchError, stats
from milbench.stats import Fold, Ranked


def runs(target, scores, metric=stats.macro_auc):
    return [partial(lambda s, w: metric(target, s, w), s) for s in scores]


def test_the_chance_is_the_share_of_won_pairs_and_its_interval_mirrors():
    a, b = [0.8, 0.7, 0.9], [0.7, 0.6]
    result = stats.outperforming([a], [b])
    assert (result.chance, result.trainings) == (pytest.approx(5.5 / 6), (3, 2))
    back = stats.outperforming([b], [a])
    assert (back.low, back.high) == pytest.approx((1 - result.high, 1 - result.low), abs=1e-9)
    assert 0 < result.low < result.chance < result.high < 1


def test_winning_always_is_not_certainty():
    few, many = (stats.outperforming([np.arange(n) + 100], [np.arange(n)]) for n in (3, 30))
    assert (few.chance, few.high, many.high) == (1, 1, 1) and few.low < 0.6 < 0.85 < many.low
    single = stats.outperforming([[0.8]] * 5, [[0.7]] * 5)
    assert single.low == pytest.approx(5 / (5 + 1.959963984540054**2)), "with one training a fold it is Wilson's interval"


def test_a_chance_without_values_or_trainings():
    assert math.isnan(stats.outperforming([[math.nan, 1.0]], [[0.5]]).low)
    with pytest.raises(MilbenchError, match="every fold needs one of either method"):
        stats.outperforming([[]], [[0.5]])


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("folds", [1, 3])
def test_the_interval_of_the_chance_covers(shift, folds):
    """Five trainings a side from normal distributions `shift` deviations apart."""
    from scipy.stats import norm

    rng, truth = np.random.default_rng(0), norm.cdf(shift / math.sqrt(2))
    results = [stats.outperforming(rng.normal(shift, 1, (folds, 5)), rng.normal(0, 1, (folds, 5))) for _ in range(400)]
    assert np.mean([r.low <= truth <= r.high for r in results]) >= 0.92


def ranked(strengths, seed=0, trainings=3, slides=30, folds=1):
    rng, target = np.random.default_rng(seed), np.arange(slides) % 3
    out = []
    for _ in range(folds):
        base = rng.normal(size=(slides, 3))
        scores = [s * np.eye(3)[target] + base + 0.5 * rng.normal(size=(trainings, slides, 3)) for s in strengths]
        out.append(Ranked([runs(target, some) for some in scores], target, np.arange(slides) // 3 % 10))
    return out


def test_ranks_are_shares_and_repeat():
    shares = stats.rank_stability(ranked([1.5, 1.4, 1.3, 1.2], folds=2), replicates=300, seed="a")
    assert shares.shape == (4, 4)
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-9)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-9)
    again = stats.rank_stability(ranked([1.5, 1.4, 1.3, 1.2], folds=2), replicates=300, seed="a")
    np.testing.assert_array_equal(shares, again)
    assert (shares != stats.rank_stability(ranked([1.5, 1.4, 1.3, 1.2], folds=2), replicates=300, seed="b")).any()


def test_a_clear_order_is_stable_and_an_error_turns_it_round():
    folds = ranked([6, 2, 0])
    np.testing.assert_allclose(stats.rank_stability(folds, replicates=200), np.eye(3), atol=0.02)
    np.testing.assert_allclose(stats.rank_stability(folds, replicates=200, larger_is_better=False), np.eye(3)[::-1], atol=0.02)


def test_equal_methods_share_their_ranks():
    fold = ranked([2, 0])[0]
    shares = stats.rank_stability(
        [Ranked([fold.methods[0], fold.methods[0][:1] * 3, fold.methods[0][:1], fold.methods[1]], fold.stratum)], replicates=200
    )
    np.testing.assert_allclose(shares[1], shares[2], atol=1e-9)
    np.testing.assert_allclose(shares[3], [0, 0, 0, 1], atol=0.02)


def test_other_trainings_and_other_patients_both_move_ranks():
    """Two equal methods whose trainings differ: neither is first for sure, though every slide is classified alike."""
    slides = np.arange(12)
    steady = [lambda w, v=v: np.full(len(w), v) for v in (0.5, 0.6, 0.7)]
    shares = stats.rank_stability([Ranked([steady, steady[::-1]], slides % 2)], replicates=500)
    assert 0.3 < shares[0, 0] < 0.7
    first = [lambda w: w[:, :6].sum(1) / w.sum(1)]
    second = [lambda w: w[:, 6:].sum(1) / w.sum(1)]
    shares = stats.rank_stability([Ranked([first, second], np.zeros(12))], replicates=500)
    assert 0.3 < shares[0, 0] < 0.7


def test_ranks_need_the_same_methods_everywhere_and_values():
    with pytest.raises(MilbenchError, match="same methods"):
        stats.rank_stability([*ranked([1, 2]), *ranked([1, 2, 3])])
    nothing = [lambda w: np.full(len(w), np.nan)]
    assert np.isnan(stats.rank_stability([Ranked([nothing, nothing], [0, 1, 0, 1])], replicates=10)).all()


def test_calibration_counts_pairs_of_disjoint_groups():
    seen = []

    def never(a, b):
        seen.append((list(a), list(b)))
        return 0.5

    results = stats.calibration(11, 3, {"never": never, "half": lambda a, b: 0.01 if a[0] == 0 else math.nan})
    assert seen == [([0, 1, 2], [3, 4, 5]), ([0, 1, 2], [6, 7, 8]), ([3, 4, 5], [6, 7, 8])], "two trainings are left over"
    assert [(r.test, r.share, r.groups, r.pairs, r.undefined) for r in results] == [
        ("never", 0, 3, 3, 0),
        ("half", pytest.approx(2 / 3), 3, 3, 1),
    ]
    assert results[0].se > 0, "never of 3 pairs is not never"
    with pytest.raises(MilbenchError, match="three groups"):
        stats.calibration(10, 5, {})


def test_the_error_of_a_calibration_is_that_of_repeated_calibrations():
    """A z-test that ignores an offset shared by a group is wrong, and by how much varies with the groups that were drawn."""

    def p_value(x, a, b):
        return math.erfc(abs(x[a.start : a.stop].mean() - x[b.start : b.stop].mean()) / math.sqrt(4 / 5))

    results = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=40) + np.repeat(rng.normal(size=8), 5)
        results.append(stats.calibration(40, 5, {"z": partial(p_value, x)})[0])
    spread = np.std([r.share for r in results])
    assert np.mean([r.se for r in results]) == pytest.approx(spread, rel=0.35)


@pytest.mark.parametrize("metric", ["macro_auc", "macro_f1"])
def test_a_method_meets_itself_on_real_bags(shared, metric):
    """40 trainings of AB-MIL on lung tiles: 28 pairs of five against five. The bootstrap over slides fails, the primary test not."""
    with np.load(shared / "cases" / "statistics" / "aa_lung_abmil.npz") as file:
        target, score = file["target"], file["score"]
    known = runs(target, score, getattr(stats, metric))
    known = [stats.paired.Once(run) for run in known]

    def primary(a, b):
        return stats.primary([Fold([known[i] for i in a], [known[i] for i in b], target)]).p

    def bootstrap(a, b):
        pairs = [(known[i], known[j]) for i, j in zip(a, b, strict=True)]
        return stats.paired_bootstrap([(target, pairs)], replicates=1000).p

    tests = {"primary": primary, "bootstrap over slides": bootstrap}
    ours, theirs = stats.calibration(40, 5, tests)
    print(f"{metric}: primary {ours.share:.1%} ± {ours.se:.1%}, bootstrap over slides {theirs.share:.1%} ± {theirs.se:.1%}")
    assert ours.share <= 0.07 and ours.undefined == 0
    assert theirs.share > 0.15
