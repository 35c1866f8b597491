"""Training: the bags of a fold, the fit of one model, and which epoch is kept."""

from milbench.training.checkpoint import Checkpoint
from milbench.training.fit import Fit, Steps, fit, predict
from milbench.training.loader import BagOrder, Bags, FoldStatistics, Standardiser, fold_bags
from milbench.training.optimistic import HighestTestAccuracy
from milbench.training.selection import BestEpoch, LastEpoch, Stopping, Validation
from milbench.training.state import Part

__all__ = [
    "BagOrder", "Bags", "BestEpoch", "Checkpoint", "Fit", "FoldStatistics", "HighestTestAccuracy", "LastEpoch", "Part",
    "Standardiser", "Steps", "Stopping", "Validation", "fit", "fold_bags", "predict",
]  # fmt: skip
