"""Results as rows: the plans behind a suite, and their trials with what each gave."""

from milbench.reading.plans import in_order, joined, metrics, title
from milbench.reading.runs import Run, read, split_sizes, usual
from milbench.trials.definition import leaves, not_run

__all__ = ["Run", "in_order", "joined", "leaves", "metrics", "not_run", "read", "split_sizes", "title", "usual"]
