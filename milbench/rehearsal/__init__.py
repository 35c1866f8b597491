"""Rehearsal: a suite's whole grid on stand-in bags in minutes, and from it what the real run would need."""

from milbench.rehearsal.measure import COARSE, distinct, mark, measured
from milbench.rehearsal.needs import Cost, Need, Needs, needs
from milbench.rehearsal.stand_in import stand_in

__all__ = ["COARSE", "Cost", "Need", "Needs", "distinct", "mark", "measured", "needs", "stand_in"]
