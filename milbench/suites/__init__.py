"""Suites: which trials make a table. A suite is a TOML file, built in or the user's own. To read and list them takes no torch."""

from milbench.suites.expand import Load, expand
from milbench.suites.model import Suite, load, names, sized, whole, with_includes
from milbench.suites.prepare import composed, pack, save_splits, with_known
from milbench.suites.rows import narrowed
from milbench.trials.definition import Table
from milbench.trials.plan import Job

__all__ = [
    "Job", "Load", "Suite", "Table", "composed", "expand", "load", "names", "narrowed", "pack", "save_splits", "sized",
    "whole", "with_includes", "with_known",
]  # fmt: skip
