"""When two numbers are equal, and how a number leaves this room.

The last digits of a sum follow the order of its terms and the processor's kernels. So what is computed here is rounded once, as
it leaves, before anything is ranked, printed or decided: then equal numbers are equal, on every machine.
"""

import math
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

STEP = 1e-12  # a metric, or a difference of two, keeps nothing finer than its multiples
TINY = 100 * STEP  # values of a metric, and differences of two, that are closer are equal: each term was rounded by itself
# What is no difference of metrics keeps its digits: 1e-15 is a p-value, 1e-13 a variance, and no rest of a subtraction.
_NO_STEP = frozenset({
    "p", "p_holm", "nemenyi", "smallest", "alpha", "variance", "training_variance", "patients", "trainings", "interaction",
})  # fmt: skip


@overload
def rounded(x: float, digits: int = 12, *, step: float = 0.0) -> float: ...
@overload
def rounded(x: NDArray[np.float64], digits: int = 12, *, step: float = 0.0) -> NDArray[np.float64]: ...
def rounded(x: float | NDArray[np.float64], digits: int = 12, *, step: float = 0.0) -> float | NDArray[np.float64]:
    """A number, or each of an array, to so many significant digits. NaN and infinities stay, -0.0 becomes 0.0.

    Args:
        x: any number.
        digits: significant ones.
        step: nothing finer than its multiples is kept. A difference of metrics has lost as many leading digits as its terms
            share, so it takes STEP: 0.8 - 0.8 is then 0, however the two came about. A p-value takes none.
    """
    if isinstance(x, np.ndarray) and x.ndim:
        return np.array([rounded(float(value), digits, step=step) for value in x.ravel()]).reshape(x.shape)
    value = float(x)
    if math.isnan(value):
        return math.nan  # this very object, so that equal findings compare equal
    if step and math.isfinite(value):
        value = round(value / step) * step
    return float(f"{value:z.{digits - 1}e}")


@dataclass(frozen=True)
class Rounded:
    """What a test found: every number in it is rounded as it is made, differences and metrics with a step of STEP."""

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if isinstance(value, float):
                object.__setattr__(self, name, rounded(value, step=0.0 if name in _NO_STEP else STEP))
