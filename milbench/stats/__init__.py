"""Statistics on plain arrays: metrics of one test fold, and paired comparisons of two methods. No torch."""

from milbench.stats.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    brier,
    c_index,
    confusion,
    macro_auc,
    macro_f1,
    per_class_auc,
)
from milbench.stats.paired import Comparison, holm, paired_bootstrap
from milbench.stats.summary import Welch, power, welch_error, welch_from_summary

__all__ = [
    "Comparison", "Welch", "accuracy", "auc", "balanced_accuracy", "brier", "c_index", "confusion", "holm", "macro_auc", "macro_f1",
    "paired_bootstrap", "per_class_auc", "power", "welch_error", "welch_from_summary",
]  # fmt: skip
