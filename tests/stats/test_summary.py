"""Welch's test from printed numbers, and power, against scipy, statsmodels and simulation."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_ind_from_stats
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.weightstats import CompareMeans

from milbench import MilbenchError, stats


def test_welch_is_the_test_on_the_runs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.70, 0.03, 5), rng.normal(0.66, 0.01, 4)
    found = stats.welch_from_summary(a.mean(), a.std(ddof=1), 5, b.mean(), b.std(ddof=1), 4)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.p == pytest.approx(ttest_ind(a, b, equal_var=False).pvalue, rel=1e-12)
    interval = CompareMeans.from_data(a, b).tconfint_diff(usevar="unequal")
    np.testing.assert_allclose([found.low, found.high], interval, rtol=0, atol=1e-12)  # what is given is rounded


def test_welch_of_printed_numbers():
    """BRACS with the Lunit encoder as printed, LongMIL against full attention over five runs: nothing is shown."""
    f1 = stats.welch_from_summary(0.706, 0.025, 5, 0.689, 0.036, 5)
    auc = stats.welch_from_summary(0.888, 0.019, 5, 0.870, 0.010, 5)
    assert (round(f1.p, 2), round(auc.p, 2)) == (0.41, 0.11)
    assert f1.low < 0 < f1.high
    assert f1.p == pytest.approx(ttest_ind_from_stats(0.706, 0.025, 5, 0.689, 0.036, 5, equal_var=False).pvalue)


def test_welch_of_runs_without_spread():
    found = stats.welch_from_summary(0.7, 0.0, 5, 0.6, 0.0, 5)
    assert found.difference == pytest.approx(0.1)
    assert np.isnan([found.low, found.high, found.p]).all()
    one_sided = stats.welch_from_summary(0.7, 0.0, 5, 0.6, 0.1, 5)  # the other group decides alone: 4 degrees of freedom
    assert one_sided.p == pytest.approx(ttest_ind_from_stats(0.7, 0.0, 5, 0.6, 0.1, 5, equal_var=False).pvalue)


@pytest.mark.parametrize(("sd", "n"), [(0.1, 1), (-0.1, 5)])
def test_welch_refuses_what_has_no_spread(sd, n):
    with pytest.raises(MilbenchError, match="two runs or more"):
        stats.welch_from_summary(0.7, sd, n, 0.6, 0.1, 5)


def test_power_of_a_t_test_against_statsmodels():
    se, df = stats.welch_error(0.03, 5, 0.03, 5)
    assert df == pytest.approx(8)
    expected = TTestIndPower().power(effect_size=0.05 / 0.03, nobs1=5, alpha=0.05)
    assert stats.power(0.05, se, df=df) == pytest.approx(expected, rel=1e-6)
    assert stats.power(0.05, se) > stats.power(0.05, se, df=df), "the normal promises too much for ten runs"


def test_power_of_a_normal_estimate_by_simulation():
    z = np.random.default_rng(0).normal(2.0, 1.0, 200_000)
    assert stats.power(0.02, 0.01) == pytest.approx(np.mean(np.abs(z) > 1.959964), abs=0.005)
    assert stats.power(-0.02, 0.01) == stats.power(0.02, 0.01)
    assert stats.power(0.0, 0.01) == pytest.approx(0.05)
    assert stats.power(0.0, 0.01, alpha=0.01, df=4) == pytest.approx(0.01)
    assert stats.power(5.0, 0.01, df=4) == pytest.approx(1.0)


def test_power_without_a_spread_is_undefined():
    assert math.isnan(stats.power(0.1, 0.0))
    assert math.isnan(stats.power(0.1, math.nan))
