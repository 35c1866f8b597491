"""Training: the bags of a fold, the fit of one model, and which epoch is kept."""

from milbench.training.fit import Bags, Fit, Standardiser, derive_seed, fit, fold_bags, predict

__all__ = ["Bags", "Fit", "Standardiser", "derive_seed", "fit", "fold_bags", "predict"]
