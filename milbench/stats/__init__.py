"""Statistics on plain arrays: metrics of one test fold, and comparisons of methods. No torch.

`paired` holds the primary test, over cases; `over_cases`, `over_runs` and `over_blocks` the others, by what they take as
their sample; `summary` what printed means and deviations allow.
"""

from milbench.stats.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    brier,
    c_index,
    confusion,
    macro_auc,
    macro_f1,
    of_subtyping,
    of_survival,
    per_class_auc,
)
from milbench.stats.outcome import Outcome
from milbench.stats.over_blocks import Pair, Ranking, ranking
from milbench.stats.over_cases import PairedFold, delong, mcnemar, permutation
from milbench.stats.over_runs import anova, nadeau_bengio, wilcoxon
from milbench.stats.paired import Comparison, holm, paired_bootstrap, superiority
from milbench.stats.rounding import STEP, TINY, Rounded, rounded
from milbench.stats.summary import Welch, power, welch_error, welch_from_summary

__all__ = [
    "STEP", "TINY", "Comparison", "Outcome", "Pair", "PairedFold", "Ranking", "Rounded", "Welch", "accuracy", "anova", "auc",
    "balanced_accuracy", "brier", "c_index", "confusion", "delong", "holm", "macro_auc", "macro_f1", "mcnemar",
    "nadeau_bengio", "of_subtyping", "of_survival", "paired_bootstrap", "per_class_auc", "permutation", "power", "ranking",
    "rounded", "superiority", "welch_error", "welch_from_summary", "wilcoxon",
]  # fmt: skip
