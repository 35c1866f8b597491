"""Statistics on plain arrays: metrics of one test fold, and comparisons of methods. No torch.

`variance` holds the primary test, over trainings and patients; `paired` the bootstrap over patients; `over_cases`, `over_runs`
and `over_blocks` the others, by what they take as their sample; `patients` keeps the slides of a patient together; `stability`
says what another training would show; `summary` what printed means and deviations allow. `scipy.stats` takes a second to load,
and a worker never needs it, so it is written out: scipy loads its parts when they are first used.
"""

from milbench.stats.metrics import (
    accuracy,
    accuracy_and_aucs,
    accuracy_at_best_thresholds,
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
    youden_threshold,
)
from milbench.stats.outcome import Outcome, Unit
from milbench.stats.over_blocks import Pair, Ranking, ranking
from milbench.stats.over_cases import PairedFold, delong, mcnemar, permutation
from milbench.stats.over_runs import anova, nadeau_bengio, wilcoxon
from milbench.stats.paired import Comparison, holm, paired_bootstrap, superiority
from milbench.stats.patients import Patients
from milbench.stats.rounding import STEP, TINY, Rounded, rounded
from milbench.stats.stability import Calibration, Outperforming, Ranked, calibration, outperforming, rank_stability
from milbench.stats.summary import Welch, power, welch_error, welch_from_summary
from milbench.stats.variance import Fold, Interval, Needed, Precision, Primary, Split, needed, planned, primary

__all__ = [
    "STEP", "TINY", "Calibration", "Comparison", "Fold", "Interval", "Needed", "Outcome", "Outperforming", "Pair",
    "PairedFold", "Patients", "Precision", "Primary", "Ranked", "Ranking", "Rounded", "Split", "Unit", "Welch", "accuracy",
    "accuracy_and_aucs", "accuracy_at_best_thresholds", "anova", "auc", "balanced_accuracy", "brier", "c_index",
    "calibration", "confusion", "delong", "holm", "macro_auc", "macro_f1", "mcnemar", "nadeau_bengio", "needed",
    "of_subtyping", "of_survival", "outperforming", "paired_bootstrap", "per_class_auc", "permutation", "planned", "power",
    "primary", "rank_stability", "ranking", "rounded", "superiority", "welch_error", "welch_from_summary", "wilcoxon",
    "youden_threshold",
]  # fmt: skip
