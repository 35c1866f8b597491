"""Suites: which trials make a table. A suite is a TOML file, built in or the user's own."""

from milbench.suites.expand import Job, expand, pack, save_splits
from milbench.suites.model import Suite, Table, load, names

__all__ = ["Job", "Suite", "Table", "expand", "load", "names", "pack", "save_splits"]
