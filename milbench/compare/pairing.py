"""Where runs meet: both sides of a comparison trained on the same fold and seed and tested on the same cases.

Every comparison of methods rests on a :class:`Pairing`, and every test takes its cases, strata and patients from there.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from milbench import stats
from milbench.errors import MilbenchError
from milbench.metrics import Column, Metric
from milbench.reading.runs import Run
from milbench.stats.paired import Metric as OfCounts
from milbench.stats.paired import Once

REPLICATES = 10_000
ALPHA = 0.05  # level of every test


class Tested(Protocol):
    """What was predicted for the test cases of one fold."""

    @property
    def identity(self) -> Hashable:
        """Equal for the same predictions; a trial's id."""

    @property
    def predictions(self) -> Mapping[str, NDArray[Any]]:
        """Slide, and target with score, or time, event and risk; case where patients are known."""


T = TypeVar("T", bound=Tested)
Repeat = tuple[Any, Any]  # fold and seed
Filled = Callable[[Any, Metric], OfCounts]  # a metric with a run's predictions filled in


class OtherCasesError(MilbenchError):
    """The two sides of a comparison test different cases."""


@dataclass(frozen=True)
class Pair(Generic[T]):
    """Runs of one fold and seed: a method's and the reference's. Where a side has several, their metrics are added."""

    method: tuple[T, ...]
    reference: tuple[T, ...]


@dataclass(frozen=True)
class Fold(Generic[T]):
    """The pairs of one fold, seed by seed, with the cases that all of them test.

    Raises:
        OtherCasesError: on first use of the cases, where a run tests others than the first.
    """

    pairs: tuple[Pair[T], ...]

    @property
    def runs(self) -> list[T]:
        """Every run of the fold."""
        return [run for pair in self.pairs for run in (*pair.method, *pair.reference)]

    @cached_property
    def _first(self) -> Mapping[str, NDArray[Any]]:
        return same_cases(self.runs)

    @property
    def cases(self) -> NDArray[np.str_]:
        """Ids of the slides (or cases) that a metric counts (n,)."""
        return self._first["slide"]

    @property
    def patients(self) -> NDArray[np.str_] | None:
        """Whose slide each of them is (n,); None where the predictions name no patient.

        A slide without one carries its own id in the results, and is taken as a patient. Tables of survival list patients.
        """
        case = self._first.get("case")
        if case is None:
            return None
        named = np.where(case == "", self.cases, case)
        return None if "risk" not in self._first and np.array_equal(named, self.cases) else named

    @property
    def strata(self) -> NDArray[np.int64]:
        """Class, or event, of each of them (n,): what a bootstrap keeps in proportion."""
        return strata(self._first)

    def against(self, metric: Metric, level: float) -> stats.Fold:
        """For the primary test: the runs of the method against a constant, which no training and no patient changes."""

        def constant(counts: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.full(len(counts), level)

        runs = [summed(pair.method, metric, filled) for pair in self.pairs]
        return stats.Fold(runs, [constant, constant], self.strata, self.patients)

    def scores(self) -> stats.PairedFold:
        """The class scores of a method and a reference, seed by seed."""
        method, reference = (
            np.stack([side(pair)[0].predictions["score"] for pair in self.pairs])
            for side in (lambda pair: pair.method, lambda pair: pair.reference)
        )
        return stats.PairedFold(self._first["target"], method, reference, self.patients)  # (n,), (seeds, n, C) twice, (n,)


@dataclass(frozen=True)
class Pairing(Generic[T]):
    """Two sides, fold by fold and seed by seed.

    Args:
        folds: where they meet, in the order of folds.
    """

    folds: tuple[Fold[T], ...]

    @classmethod
    def of(cls, method: Sequence[Mapping[Repeat, T]], reference: Sequence[Mapping[Repeat, T]] = ()) -> "Pairing[T]":
        """Pair the runs of the folds and seeds that all members of both sides have, in the order of the first.

        Args:
            method: (fold, seed) -> run, of each member of the side.
            reference: the same of the other side; none where the method is held against a constant.
        """
        folds: dict[Hashable, list[Pair[T]]] = {}
        for repeat in method[0]:
            if all(repeat in runs for runs in (*method, *reference)):
                pair = Pair(tuple(runs[repeat] for runs in method), tuple(runs[repeat] for runs in reference))
                folds.setdefault(repeat[0], []).append(pair)
        return cls(tuple(Fold(tuple(pairs)) for pairs in folds.values()))

    @property
    def pairs(self) -> list[Pair[T]]:
        """Those of all folds."""
        return [pair for fold in self.folds for pair in fold.pairs]

    def bootstrap(
        self,
        metric: Metric,
        *,
        seed: str,
        replicates: int | None = None,
        most: int = 0,
        method: Filled | None = None,
        reference: Filled | None = None,
    ) -> stats.Comparison:
        """The paired bootstrap over whole patients, drawn inside each fold and stratum, the same for both sides.

        Args:
            metric: compared.
            seed: text that fixes the resamples.
            replicates: how many; REPLICATES unless given.
            most: how many where the p-value is too small for these.
            method, reference: how metrics are computed on each side; a :class:`Shared` remembers them.

        Raises:
            OtherCasesError: the sides test different cases.
        """
        fill, filled_reference = method or filled, reference or filled
        folds = [
            (
                fold.strata,
                [(summed(pair.method, metric, fill), summed(pair.reference, metric, filled_reference)) for pair in fold.pairs],
            )
            for fold in self.folds
        ]
        patients = [fold.patients for fold in self.folds]
        return stats.paired_bootstrap(folds, patients=patients, replicates=replicates or REPLICATES, most=most, seed=seed)


def same_cases(runs: Sequence[Tested]) -> Mapping[str, NDArray[Any]]:
    """The predictions of the first of some runs, which all test the same cases.

    Raises:
        OtherCasesError: one tests other slides, or has another outcome for one of them.
    """
    first, *others = runs
    for run in others:
        if not np.array_equal(run.predictions["slide"], first.predictions["slide"]):
            raise OtherCasesError(f"trials {first.identity} and {run.identity} test other slides, they cannot be paired")
        for truth in ("target", "time", "event"):
            if not np.array_equal(run.predictions.get(truth, ()), first.predictions.get(truth, ())):
                raise OtherCasesError(f"trials {first.identity} and {run.identity} hold another {truth} for the same slides")
    return first.predictions


def strata(predictions: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Class, or event, of each tested case (n,)."""
    return np.asarray(predictions["event"] if "risk" in predictions else predictions["target"]).astype(int)


def filled(run: Tested, metric: Metric) -> OfCounts:
    """The metric of a run's predictions as a function of case counts (B, n) -> (B,)."""
    return metric.of(run.predictions)


class Shared:
    """The same, computed once for the same run and resamples: for runs that many comparisons share."""

    def __init__(self) -> None:
        self._known: dict[tuple[Hashable, str], Once] = {}

    def __call__(self, run: Tested, metric: Metric) -> OfCounts:
        """The metric of a run as a function of case counts (B, n) -> (B,)."""
        key = (run.identity, metric.name)
        if key not in self._known:
            self._known[key] = Once(filled(run, metric))
        return self._known[key]


def summed(runs: Sequence[Tested], metric: Metric, fill: Filled) -> OfCounts:
    """The sum of a side's metrics as a function of case counts (B, n) -> (B,)."""
    terms = [fill(run, metric) for run in runs]
    return terms[0] if len(terms) == 1 else lambda counts: sum((term(counts) for term in terms), start=np.zeros(len(counts)))


def finished(runs: Sequence[Run]) -> dict[Repeat, Run]:
    """(fold, seed) -> its run, of those with a result, in the order of folds and seeds."""
    done = {(run.cell.fold, run.cell.seed): run for run in runs if run.status == "ok"}
    return {repeat: done[repeat] for repeat in sorted(done)}


def resamples(column: Column, metric: Metric) -> str:
    """The text that fixes the resamples of a column and metric: all comparisons there meet the same cases."""
    return f"{tuple(column)}|{metric.name}"
