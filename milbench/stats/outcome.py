"""What a statistical test says."""

from dataclasses import dataclass

from milbench.stats.rounding import Rounded


@dataclass(frozen=True)
class Outcome(Rounded):
    """One test: the effect first, the p-value last.

    Args:
        name: the test.
        effect: what was found, in the unit that the test's function names; positive where the method is the larger.
        low, high: 95 % interval of the effect; NaN where the test gives none.
        n: how many cases, pairs or blocks it rests on.
        note: what it assumes, and why there is no p-value where there is none.
        smallest: the smallest p-value that data of this size can give; 0 where the test knows no bound.
        p: two-sided; NaN where the data do not define it.
    """

    name: str
    effect: float
    low: float
    high: float
    n: int
    note: str
    smallest: float
    p: float
