"""Suites: which trials make a table. A suite is a TOML file, built in or the user's own."""

from milbench.suites.expand import Job, expand, pack, save_splits, with_known
from milbench.suites.model import Suite, load, names, sized
from milbench.trials.definition import Table

__all__ = ["Job", "Suite", "Table", "expand", "load", "names", "pack", "save_splits", "sized", "with_known"]
