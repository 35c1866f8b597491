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

__all__ = [
    "Comparison", "accuracy", "auc", "balanced_accuracy", "brier", "c_index", "confusion", "holm", "macro_auc", "macro_f1",
    "paired_bootstrap", "per_class_auc",
]  # fmt: skip
