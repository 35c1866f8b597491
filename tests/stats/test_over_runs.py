"""Nadeau-Bengio, Wilcoxon and ANOVA against hand-worked values, enumeration and statsmodels."""

from fractions import Fraction
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from milbench import MilbenchError, stats


def test_nadeau_bengio_by_hand():
    """Differences 1, 2, 3, 4, 5 hundredths: mean 0.03, variance 2.5e-4. Five folds of 80 and 20: 1/5 + 1/4 = 0.45.

    Standard error sqrt(0.45 x 2.5e-4) = 0.0106066, t = 2.828427 = sqrt(8) with 4 degrees of freedom, where Student's
    distribution has a closed form: p = 1 - u (3 - u^2) / 2 with u = t / sqrt(t^2 + 4) = sqrt(2/3), so p = 0.047421.
    """
    found = stats.nadeau_bengio([0.01, 0.02, 0.03, 0.04, 0.05], [80] * 5, [20] * 5)
    u = np.sqrt(2 / 3)
    assert found.effect == pytest.approx(0.03)
    assert found.p == pytest.approx(1 - u * (3 - u**2) / 2, rel=1e-9)
    assert found.p == pytest.approx(0.047421, abs=1e-6)
    half = 2.776445 * 0.0106066  # t of 97.5 % with 4 degrees of freedom
    assert (found.low, found.high) == (pytest.approx(0.03 - half, abs=1e-6), pytest.approx(0.03 + half, abs=1e-6))
    assert found.n == 5
    assert "= 0.450" in found.note


def test_nadeau_bengio_finds_less_than_the_plain_t():
    d = np.random.default_rng(0).normal(0.02, 0.02, 10)
    assert stats.nadeau_bengio(d, [90] * 10, [10] * 10).p > scipy.ttest_1samp(d, 0).pvalue
    with_no_test_share = stats.nadeau_bengio(d, [10**9] * 10, [1] * 10)
    assert with_no_test_share.p == pytest.approx(scipy.ttest_1samp(d, 0).pvalue, rel=1e-6)


def test_nadeau_bengio_takes_the_sizes_of_each_fold():
    found = stats.nadeau_bengio([0.1, 0.2], [10, 40], [5, 10])
    assert f"= {1 / 2 + (5 / 10 + 10 / 40) / 2:.3f}" in found.note


def test_nadeau_bengio_refuses_seeds_on_one_split():
    with pytest.raises(MilbenchError, match="seeds on one split share training and test cases"):
        stats.nadeau_bengio([0.1], [80], [20])


def test_nadeau_bengio_without_spread():
    assert stats.nadeau_bengio([0, 0, 0], [8] * 3, [2] * 3).p == 1
    same = stats.nadeau_bengio([0.1] * 3, [8] * 3, [2] * 3)
    assert np.isnan(same.p)
    assert same.note.startswith("not computed")


def test_missing_runs_are_an_error():
    for call in (
        lambda: stats.nadeau_bengio([0.1, np.nan], [8, 8], [2, 2]),
        lambda: stats.wilcoxon([0.1, np.nan]),
        lambda: stats.anova([[0.1, np.nan], [0.1, 0.2]]),
    ):
        with pytest.raises(MilbenchError, match=r"1 of . values are missing; leave incomplete pairs out"):
            call()
    with pytest.raises(MilbenchError, match="training and test size"):
        stats.nadeau_bengio([0.1, 0.2], [8], [2])
    with pytest.raises(MilbenchError, match="no pair"):
        stats.wilcoxon([])


def signed_rank_by_enumeration(d):
    d = np.array([v for v in d if v != 0])
    rank = scipy.rankdata(np.abs(d))
    centre = rank.sum() / 2
    observed = abs(rank[d > 0].sum() - centre)
    sums = [abs(rank[np.array(signs) > 0].sum() - centre) for signs in product((1, -1), repeat=len(d))]
    return np.mean(np.array(sums) >= observed - 1e-9)


@pytest.mark.parametrize(
    "differences",
    [
        [0.1, 0.2, 0.3, 0.4, 0.5],
        [0.1, -0.2, 0.3, 0.45, 0.5, 0.7],
        [0.1, 0.1, -0.1, 0.3, 0.3],
        [0.0, 0.0, 0.2, -0.1, 0.1, 0.3, 0.3],
        [0.05, -0.05],
    ],
)
def test_wilcoxon_is_every_choice_of_signs(differences):
    assert stats.wilcoxon(differences).p == pytest.approx(signed_rank_by_enumeration(differences), rel=1e-12)


def test_five_pairs_never_reach_a_star():
    found = stats.wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5])
    assert (found.p, found.smallest, found.effect, found.n) == (0.0625, 0.0625, 0.3, 5)
    assert stats.wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).p == 0.03125


@pytest.mark.parametrize("seed", range(5))
def test_wilcoxon_is_never_below_its_smallest(seed):
    d = np.round(np.random.default_rng(seed).normal(1, 1, 2 + 3 * seed), 1)
    found = stats.wilcoxon(d)
    assert found.smallest <= found.p <= 1


def test_wilcoxon_of_rounding_noise_is_a_tie():
    found = stats.wilcoxon([1e-17, -3e-16, 0.0])
    assert (found.effect, found.p, found.smallest, found.note) == (0, 1, 1, "all differences are 0")
    equal_but_for_rounding = stats.wilcoxon([0.1 + 0.2, 0.3, 0.3, -0.3])
    assert equal_but_for_rounding.p == pytest.approx(signed_rank_by_enumeration([1, 1, 1, -1]))


@pytest.mark.parametrize("n", [1, 2, 10, 40])
def test_wilcoxon_without_ties_is_scipys(n):
    d = np.random.default_rng(n).normal(0.3, 1, n)
    assert stats.wilcoxon(d).p == pytest.approx(scipy.wilcoxon(d, method="exact").pvalue, rel=1e-9)


def test_wilcoxon_of_many_ties_is_near_the_normal():
    d = np.repeat([0.1, 0.2, -0.1], 20)
    assert stats.wilcoxon(d).p == pytest.approx(scipy.wilcoxon(d, method="asymptotic", correction=True).pvalue, abs=2e-4)


def test_anova_against_statsmodels():
    rng = np.random.default_rng(0)
    groups = [rng.normal(m, 0.02, n) for m, n in ((0.7, 5), (0.72, 5), (0.69, 4))]
    frame = pd.DataFrame([(name, v) for name, g in zip("abc", groups, strict=True) for v in g], columns=["method", "value"])
    table = anova_lm(ols("value ~ method", frame).fit())
    found = stats.anova(groups)
    assert found.p == pytest.approx(table["PR(>F)"].iloc[0], rel=1e-9)
    assert found.effect == pytest.approx(table["sum_sq"].iloc[0] / table["sum_sq"].sum())
    assert found.n == 14
    assert "unpaired" in found.name
    assert "F(2, 11)" in found.note


def test_anova_ignores_pairing():
    """What its label warns of: a constant gain on folds that differ much is nothing to it, and plain to a paired test."""
    folds = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
    gain = np.array([0.01, 0.012, 0.009, 0.011, 0.0105, 0.0095])
    assert stats.anova([folds, folds + gain]).p > 0.9
    assert stats.wilcoxon(gain).p < 0.05


def test_anova_without_spread_or_runs():
    assert np.isnan(stats.anova([[0.1, 0.1], [0.2, 0.2]]).p)
    for groups in ([[0.1, 0.2]], [[0.1], [0.2]], [[0.1, 0.2], []]):
        with pytest.raises(MilbenchError, match="ANOVA needs"):
            stats.anova(groups)


def test_differences_of_rounded_metrics_tie_where_the_exact_ones_do():
    """Every metric is rounded before two are subtracted: thirtieths then differ in their twelfth digit, and are equal all the same."""
    method, reference = [31 / 35, 4 / 5, 5 / 6, 8 / 15, 7 / 10], [57 / 70, 43 / 60, 14 / 15, 17 / 30, 2 / 3]
    exact = [
        Fraction(a).limit_denominator(100) - Fraction(b).limit_denominator(100) for a, b in zip(method, reference, strict=True)
    ]
    assert -exact[3] == exact[4] == Fraction(1, 30)
    seen = [stats.rounded(a) - stats.rounded(b) for a, b in zip(method, reference, strict=True)]
    assert abs(seen[3]) != abs(seen[4])
    assert stats.wilcoxon(seen).p == stats.wilcoxon([float(d) for d in exact]).p == 0.875
