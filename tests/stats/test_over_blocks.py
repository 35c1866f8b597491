"""Ranks over blocks against autorank, scikit-posthocs and hand-worked values."""

import warnings

import numpy as np
import pandas as pd
import pytest
from autorank import autorank
from scikit_posthocs import posthoc_nemenyi_friedman, posthoc_wilcoxon
from scipy.stats import friedmanchisquare

from milbench import MilbenchError, stats


def values(blocks=8, methods=4, seed=0):
    rng = np.random.default_rng(seed)
    return 0.6 + 0.1 * rng.random((blocks, 1)) + 0.02 * np.arange(methods) + 0.02 * rng.normal(size=(blocks, methods))


NAMES = ["a", "b", "c", "d"]


def test_by_hand():
    """Five blocks that agree on c > b > a: ranks 1, 2, 3; chi2 = 12 / (5 3 4) x 25 (1 + 4 + 9) - 3 x 5 x 4 = 10, p = exp(-5).

    Nemenyi's difference is 2.343 sqrt(3 x 4 / (6 x 5)) = 1.482 (Demsar's table 5a gives 2.343 for three methods at 0.05).
    """
    x = np.array([[0.1, 0.2, 0.3]] * 5) + np.arange(5)[:, None]
    found = stats.ranking(["a", "b", "c"], x)
    assert found.mean_rank == {"c": 1, "b": 2, "a": 3}
    assert found.friedman.p == pytest.approx(np.exp(-5))
    assert found.friedman.effect == 1, "Kendall's W of full agreement"
    assert found.critical_difference == pytest.approx(1.482, abs=1e-3)
    best_and_worst = found.pairs[1]
    assert (best_and_worst.first, best_and_worst.second, best_and_worst.rank_difference) == ("c", "a", -2)
    assert (best_and_worst.wins, best_and_worst.ties, best_and_worst.losses) == (5, 0, 0)
    assert best_and_worst.nemenyi < 0.05
    assert (best_and_worst.wilcoxon.p, best_and_worst.p_holm) == (0.0625, pytest.approx(0.1875)), "five blocks allow no less"


def test_against_autorank():
    x = values(blocks=12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = autorank(pd.DataFrame(x, columns=NAMES), alpha=0.05, force_mode="nonparametric")
    found = stats.ranking(NAMES, x)
    assert oracle.omnibus == "friedman"
    assert found.friedman.p == pytest.approx(oracle.pvalue, rel=1e-9)
    assert found.critical_difference == pytest.approx(oracle.cd, rel=1e-3)
    assert found.mean_rank == pytest.approx(oracle.rankdf["meanrank"].to_dict())


def test_against_scikit_posthocs():
    x = values(blocks=9, seed=3)
    found = stats.ranking(NAMES, x)
    nemenyi = posthoc_nemenyi_friedman(x).to_numpy()
    frame = pd.DataFrame(x, columns=NAMES).melt(var_name="method")
    wilcoxon = posthoc_wilcoxon(frame, val_col="value", group_col="method", p_adjust="holm")
    assert len(found.pairs) == 6
    for pair in found.pairs:
        assert pair.nemenyi == pytest.approx(nemenyi[NAMES.index(pair.first), NAMES.index(pair.second)])
        assert pair.p_holm == pytest.approx(wilcoxon.loc[pair.first, pair.second])
        assert found.mean_rank[pair.first] - found.mean_rank[pair.second] == pytest.approx(pair.rank_difference)
        assert pair.rank_difference <= 0
        assert (pair.nemenyi < 0.05) == (-pair.rank_difference > found.critical_difference)


def test_an_error_is_ranked_the_other_way_round():
    x = values()
    larger, smaller = stats.ranking(NAMES, x), stats.ranking(NAMES, -x, larger_is_better=False)
    assert larger.mean_rank == smaller.mean_rank
    assert [(p.first, p.wins, p.nemenyi, p.p_holm) for p in larger.pairs] == [
        (p.first, p.wins, p.nemenyi, p.p_holm) for p in smaller.pairs
    ]
    assert larger.pairs[0].wilcoxon.effect == pytest.approx(-smaller.pairs[0].wilcoxon.effect)


def test_ties():
    flat = stats.ranking(NAMES, np.full((6, 4), 0.5) + 1e-16 * np.arange(4))
    assert (flat.friedman.p, flat.friedman.effect) == (1, 0)
    assert set(flat.mean_rank.values()) == {2.5}
    assert all((pair.nemenyi, pair.p_holm, pair.ties) == (1, 1, 6) for pair in flat.pairs)
    some = np.round(values(), 1)
    assert stats.ranking(NAMES, some).friedman.p == pytest.approx(friedmanchisquare(*some.T).pvalue)


def test_what_cannot_be_ranked_is_an_error():
    with pytest.raises(MilbenchError, match="5 blocks and 3 methods or more, there are 4 and 4"):
        stats.ranking(NAMES, values(blocks=4))
    with pytest.raises(MilbenchError, match="there are 8 and 2"):
        stats.ranking(NAMES[:2], values(methods=2))
    missing = values()
    missing[2, 1] = np.nan
    with pytest.raises(MilbenchError, match="incomplete: b"):
        stats.ranking(NAMES, missing)
    with pytest.raises(MilbenchError, match="4 methods of different names"):
        stats.ranking(["a", "a", "b", "c"], values())
