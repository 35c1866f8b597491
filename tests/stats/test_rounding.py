"""When numbers are equal, how they leave the statistics, and how a report prints them."""

import math

import numpy as np
import pytest

from milbench import numbers, stats
from milbench.stats import STEP, rounded


def test_rounded_keeps_digits_and_not_decimals():
    assert rounded(0.1 + 0.2) == 0.3
    assert rounded(1.23456789012345e-15) == 1.23456789012e-15, "a p-value of 1e-15 is one"
    assert rounded(123456.789012345) == 123456.789012
    assert rounded(0.0123456789, 6) == 0.0123457
    assert math.copysign(1, rounded(-0.0)) == 1
    assert math.isnan(rounded(math.nan)) and rounded(-math.inf) == -math.inf


def test_a_step_takes_what_a_subtraction_leaves():
    left = np.mean([0.7, 0.8, 0.9]) - np.mean([0.9, 0.8, 0.7])
    assert left != 0 and rounded(left, step=STEP) == 0
    assert math.copysign(1, rounded(-1.1e-17, step=STEP)) == 1
    assert rounded(0.8 - 0.7, step=STEP) == rounded(0.9 - 0.8, step=STEP) == 0.1
    assert rounded(2 / 3, step=STEP) == 0.666666666667
    np.testing.assert_array_equal(rounded(np.array([[0.1 + 0.2, -1e-17], [np.nan, 1.0]]), step=STEP), [[0.3, 0], [np.nan, 1]])


def test_what_a_test_finds_is_rounded():
    found = stats.Outcome("x", 0.1 + 0.2, -1.1e-17, math.nan, 3, "", 1e-15, 1.23456789012345e-13, over="runs")
    assert (found.effect, found.low, found.smallest, found.p) == (0.3, 0.0, 1e-15, 1.23456789012e-13)
    assert found == stats.Outcome("x", 0.3, 0.0, math.nan, 3, "", 1e-15, 1.23456789012e-13, over="runs"), (
        "equal findings are equal"
    )
    y = np.repeat([0, 1], 9)
    scores = [np.random.default_rng(seed).dirichlet([1, 1], 18) for seed in range(2)]
    fold = stats.PairedFold(y, scores[0][None], scores[1][None])
    runs = [(lambda c, s=s: stats.macro_auc(y, s, c)) for s in scores]
    for found in (
        stats.delong([fold]),
        stats.permutation([fold], "macro_f1"),
        stats.mcnemar([fold]),
        stats.nadeau_bengio([0.1, 0.2, 0.4], [8, 8, 8], [4, 4, 4]),
        stats.wilcoxon([0.1, 0.2, -0.4]),
        stats.anova([[0.1, 0.2, 0.4], [0.3, 0.1, 0.7]]),
        stats.paired_bootstrap([(y, [(runs[0], runs[1])])], replicates=50),
        stats.welch_from_summary(0.7, 0.03, 5, 0.6, 0.01, 5),
        *stats.ranking("abc", np.random.default_rng(0).random((6, 3))).pairs,
    ):
        for name, value in vars(found).items():
            if isinstance(value, float) and not math.isnan(value):
                assert value == float(f"{value:.11e}"), (found, name)


def test_a_p_value_does_not_hang_on_a_near_tie():
    """Equal differences share a rank, and equal blocks are ties, whatever their last digits."""
    f1 = np.array([0.1, 0.2 - 0.1, 0.3 - 0.2])
    assert len(set(f1)) > 1, "three ways to 0.1"
    assert stats.wilcoxon(f1).p == stats.wilcoxon([0.1, 0.1, 0.1]).p == 0.25
    values = np.array([[0.7, 0.9, 0.1 + 0.2], [0.9, 0.7, 0.3], [0.7, 0.8, 0.3], [0.8, 0.7, 0.3], [0.5, 0.5, 0.5]])
    again = values + np.array([[1e-16, -1e-16, 0]] * 5)
    assert stats.ranking("abc", values) == stats.ranking("abc", again)


def test_methods_right_by_seeds_in_another_order_are_right_alike():
    """The mean over seeds of 0.3, 0.5, 0.7 is 0.5 in any order: the class of highest score is the first of equals."""
    a = np.array([[[0.3, 0.7]], [[0.7, 0.3]], [[0.4, 0.6]], [[0.6, 0.4]], [[0.1, 0.9]], [[0.9, 0.1]]])
    fold = stats.PairedFold(np.array([1]), a, a[[5, 0, 3, 2, 1, 4]])
    assert stats.mcnemar([fold]).effect == 0


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (-1.1e-17, ".3f", "0.000"),
        (-0.0004, ".3f", "0.000"),
        (-0.0004, "+.3f", "+0.000"),
        (0.0, "+.3f", "+0.000"),
        (-0.0, ".3g", "0"),
        (-0.0006, "+.3f", "-0.001"),
        (math.nan, "+.3f", "–"),
        (0.81249, ".3f", "0.812"),
    ],
)
def test_numbers_as_printed(value, form, text):
    assert numbers.number(value, form) == text


def test_intervals_chances_and_counts_as_printed():
    assert numbers.interval(-1e-9, 0.2) == "[+0.000, +0.200]"
    assert numbers.interval(math.nan, math.nan) == numbers.p_value(math.nan) == "–"
    assert numbers.p_value(1e-15) == "< 0.001"
    assert numbers.spread(0.8, math.nan) == "0.800" and numbers.spread(0.8, -1e-18) == "0.800 ± 0.000"
    assert numbers.tally(1, 0, 2) == "1/0/2" and numbers.tally(1, 0, 0, 1) == "–", "counts of some runs are not those of all"


def test_what_prints_alike_ranks_alike():
    assert numbers.styles([0.9996, 1.0, 0.9, 0.8]) == ["best", "best", "second", None]
    assert numbers.styles([0.8124, 0.8116, math.nan]) == [None, None, None], "nobody is best of equals"
    assert numbers.styles([0.2, 0.1, math.nan, 0.3], -1) == ["second", "best", None, None], "a lower Brier score is better"


def test_files_hold_six_digits():
    (row,) = numbers.written([{"a": 1 / 3, "b": np.float64(1.23456789e-9), "c": 1234567, "d": "x", "e": None, "f": -0.0}])
    assert row == {"a": 0.333333, "b": 1.23457e-9, "c": 1234567, "d": "x", "e": None, "f": 0.0}
    assert numbers.cells({"a": math.nan, "b": None, "c": 0.5}) == {"a": "", "b": "", "c": 0.5}
