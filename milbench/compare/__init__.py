"""Which method is better, and how sure is it: runs that meet, the tests on them, and what follows for a paper's claims."""

from milbench.compare.pairing import ALPHA, Pairing, finished
from milbench.compare.primary import Contrast
from milbench.compare.reference import Comparison, Comparisons, with_reference

__all__ = ["ALPHA", "Comparison", "Comparisons", "Contrast", "Pairing", "finished", "with_reference"]
