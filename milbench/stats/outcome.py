"""What a statistical test says."""

from dataclasses import dataclass, field
from typing import Literal

from milbench.stats.rounding import Rounded

Unit = Literal["patients", "slides", "folds", "runs", "blocks"]


@dataclass(frozen=True)
class Outcome(Rounded):
    """One test: the effect first, the p-value last.

    Args:
        name: the test.
        effect: what was found, in the unit that the test's function names; positive where the method is the larger.
        low, high: 95 % interval of the effect; NaN where the test gives none.
        n: how many patients, slides, pairs or blocks it rests on.
        note: what it assumes, and why there is no p-value where there is none.
        over: what it takes as independent. "patients" keeps the slides of a patient together; "slides" does so where no patient
            is known; "folds", "runs" and "blocks" know nothing of patients.
        smallest: the smallest p-value that data of this size can give; 0 where the test knows no bound.
        p: two-sided; NaN where the data do not define it.
    """

    name: str
    effect: float
    low: float
    high: float
    n: int
    note: str
    over: Unit = field(kw_only=True)
    smallest: float
    p: float
