"""Datasets: who is in them, how to read a bag, which folds they have."""

from milbench.datasets.base import Dataset, Fold, Sample
from milbench.datasets.catalogue import ENCODERS, DatasetInfo, infos, known, load
from milbench.datasets.packed import Pack, packed
from milbench.datasets.splits import k_fold

__all__ = ["ENCODERS", "Dataset", "DatasetInfo", "Fold", "Pack", "Sample", "infos", "k_fold", "known", "load", "packed"]
