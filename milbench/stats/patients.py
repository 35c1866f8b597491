"""Slides of one patient belong together: they are drawn, swapped and left out at once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from milbench.errors import MilbenchError
from milbench.stats.outcome import Unit

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Patients:
    """Whose slides the n slides of a fold are.

    Args:
        of_slide: (n,) number of each slide's patient; patients are numbered as they first come.
        stratum: (g,) number of each patient's class, if each of the g patients has one; else 0 for all.
        known: False where each slide was taken as a patient.
    """

    of_slide: NDArray[np.intp]
    stratum: NDArray[np.intp]
    known: bool

    @classmethod
    def of(cls, stratum: ArrayLike, patient: ArrayLike | None = None) -> "Patients":
        """The patients of the slides.

        Args:
            stratum: (n,) class, or event for survival.
            patient: (n,) patient of each slide; None where it is not known, and then each slide is taken as a patient.

        Raises:
            MilbenchError: a slide without its patient.
        """
        n = np.size(stratum)
        at = np.arange(n) if patient is None else _numbered(patient, n)
        code = np.unique(np.asarray(stratum), return_inverse=True)[1]
        of_patient = np.zeros(len(np.unique(at)), dtype=np.intp)
        of_patient[at] = code
        if not np.array_equal(of_patient[at], code):
            of_patient[:] = 0
        return cls(at, of_patient, patient is not None)

    @property
    def count(self) -> int:
        """How many there are, g."""
        return len(self.stratum)

    @property
    def unit(self) -> Unit:
        """What is taken as independent: "patients", or "slides" where patients are not known."""
        return "patients" if self.known else "slides"

    def sums(self, values: Array) -> Array:
        """What each patient's slides sum up to: (n, ...) -> (g, ...)."""
        total = np.zeros((self.count, *values.shape[1:]))
        np.add.at(total, self.of_slide, values)
        return total

    def to_slides(self, weights: Array) -> Array:
        """The weight of each slide, which is that of its patient: (..., g) -> (..., n)."""
        return np.take(weights, self.of_slide, axis=-1)


def _numbered(patient: ArrayLike, n: int) -> NDArray[np.intp]:
    """Number of each slide's patient (n,), in the order in which they first come."""
    names = np.asarray(patient).ravel()
    named = sum(p is not None and p == p for p in names.tolist())  # NaN is not itself
    if named != n or len(names) != n:
        raise MilbenchError(f"a fold names the patient of {named} of {n} slides: name it for each slide, or for none")
    _, first, at = np.unique(names, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[at], dtype=np.intp)
