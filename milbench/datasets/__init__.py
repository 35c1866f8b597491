"""Datasets: who is in them, how to read a bag, which folds they have. Naming them needs no torch, loading one does."""

from milbench.datasets.base import Dataset, Fold, Sample
from milbench.datasets.catalogue import ENCODERS, DatasetInfo, infos, known, load
from milbench.datasets.splits import k_fold

__all__ = ["ENCODERS", "Dataset", "DatasetInfo", "Fold", "Sample", "infos", "k_fold", "known", "load"]
