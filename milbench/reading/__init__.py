"""Results as rows: the trials of a plan, each with what it gave."""

from milbench.reading.runs import Run, joined, leaves, not_run, read, title, usual

__all__ = ["Run", "joined", "leaves", "not_run", "read", "title", "usual"]
