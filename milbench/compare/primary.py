"""The primary test on stored runs: is one side better than the other for other patients and other trainings?

Seeds need not pair: every finished training of a fold counts. All trainings of a fold, of both sides, test the same slides.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milbench import stats
from milbench.compare.pairing import ALPHA, Filled, OtherCasesError, Tested, filled, finished, same_cases, strata, summed
from milbench.metrics import Metric
from milbench.reading import Run
from milbench.words import counted

Training = tuple[Tested, ...]  # one run of each method of a side, of the same fold and seed; their metrics are added
Trainings = Mapping[int, Sequence[Training]]  # those of each fold
Patients = NDArray[np.str_]  # of each slide of a fold (n,)


@dataclass(frozen=True)
class Planning:
    """What more trainings or patients would bring; NaN where a side has one training.

    Args:
        now, seeds, patients: as it is, with twice the trainings, with twice the patients.
        needed: what more would make a true difference detectable that is as large as the one found.
    """

    now: stats.Precision
    seeds: stats.Precision
    patients: stats.Precision
    needed: stats.Needed


@dataclass(frozen=True)
class Contrast:
    """Side a minus side b.

    Args:
        metric: what is compared.
        folds: on which folds both have trainings.
        values: the metric of each training of a and of b, fold by fold.
        test: the primary test, with the interval for these models and the split of the variance.
        notes: what a reader must know.
        p_holm: the p-value of the test, corrected over what was compared together; NaN before.
    """

    metric: Metric
    folds: tuple[int, ...]
    values: tuple[list[list[float]], list[list[float]]] = field(repr=False)
    test: stats.Primary
    notes: tuple[str, ...]
    p_holm: float

    @cached_property
    def means(self) -> tuple[float, float]:
        """Of a and of b, over folds."""
        a, b = (stats.rounded(float(np.mean([np.mean(fold) for fold in side])), step=stats.STEP) for side in self.values)
        return a, b

    @cached_property
    def planning(self) -> Planning:
        """What more trainings or patients would bring."""
        test = self.test
        plans = (stats.planned(test), stats.planned(test, seeds=2), stats.planned(test, patients=2))
        return Planning(*plans, stats.needed(test, test.difference))

    @cached_property
    def chance(self) -> stats.Outperforming:
        """That a new training of a is better than one of b."""
        return stats.outperforming(*self._good)

    @cached_property
    def tally(self) -> tuple[int, int, int]:
        """How many pairs of trainings of one fold a wins, ties and loses; those where the metric is undefined do not count."""
        ahead = np.concatenate([np.subtract.outer(a, b).ravel() for a, b in zip(*self._good, strict=True)])
        ties = int((np.abs(ahead) <= stats.TINY).sum())
        return int((ahead > stats.TINY).sum()), ties, int((ahead < -stats.TINY).sum())

    @property
    def shares(self) -> dict[str, float]:
        """How much of the variance comes from patients, trainings and who meets whom; empty where it is not known."""
        split = self.test.split
        parts = {"patients": split.patients, "trainings": split.trainings, "interaction": split.interaction}
        total = sum(parts.values())
        return {name: part / total for name, part in parts.items()} if total > 0 else {}

    @property
    def _good(self) -> list[list[list[float]]]:
        """The values, larger being better."""
        return [[[self.metric.direction * value for value in fold] for fold in side] for side in self.values]

    @property
    def seen_once(self) -> bool:
        """A side has one training on one split, so nothing is known of other trainings."""
        return len(self.folds) == 1 and min(self.test.trainings) == 1

    def as_row(self) -> dict[str, Any]:
        """Every number, for a line of a CSV file."""
        test, plan, chance = self.test, self.planning, self.chance
        return {
            "mean_a": self.means[0], "mean_b": self.means[1], "difference": test.difference, "low": test.low, "high": test.high,
            "df": test.df, "rule": test.rule, "these_models_low": test.fixed.low, "these_models_high": test.fixed.high,
            "variance": test.variance, "variance_patients": test.split.patients, "variance_trainings": test.split.trainings,
            "variance_interaction": test.split.interaction, "tolerated_sd": test.tolerated_sd,
            "chance": chance.chance, "chance_low": chance.low, "chance_high": chance.high,
            **dict(zip(("wins", "ties", "losses"), self.tally, strict=True)),
            "folds": len(self.folds), "trainings_a": test.trainings[0], "trainings_b": test.trainings[1],
            "patients": test.patients, "patients_known": test.patients_known,
            "half_width": plan.now.half_width, "half_width_twice_the_trainings": plan.seeds.half_width,
            "half_width_twice_the_patients": plan.patients.half_width, "detectable": plan.now.detectable,
            "more_trainings": plan.needed.trainings, "more_patients": plan.needed.patients,
            "why": test.why, "p": test.p, "p_holm": self.p_holm,
        }  # fmt: skip

    @property
    def better(self) -> str:
        """The side that is better for other patients and other trainings, "a" or "b"; "" where none is shown to be."""
        if not self.p_holm < ALPHA:
            return ""
        return "a" if self.test.difference * self.metric.direction > 0 else "b"


def trainings(*members: Sequence[Run]) -> dict[int, list[tuple[Run, ...]]]:
    """The finished trainings of each fold, by seed.

    Args:
        members: the runs of a method; of several whose metrics are added, the seeds count that all of them have.
    """
    done: list[tuple[Run, ...]]
    if len(members) == 1:
        done = [(run,) for run in sorted(members[0], key=lambda run: run.cell.seed) if run.status == "ok"]
    else:
        first, *others = map(finished, members)
        done = [(run, *(of[repeat] for of in others)) for repeat, run in first.items() if all(repeat in of for of in others)]
    folds: dict[int, list[tuple[Run, ...]]] = defaultdict(list)
    for training in done:
        folds[training[0].cell.fold].append(training)
    return folds


def contrast(a: Trainings, b: Trainings, metric: Metric, fill: Filled = filled) -> Contrast | None:
    """The primary test of two sides on the folds that both have; None where they share none.

    Args:
        a, b: the trainings of either side, by fold.
        metric: compared.
        fill: how metrics are computed; a :class:`milbench.compare.pairing.Shared` computes those of a run once for all tests.

    Raises:
        OtherCasesError: runs of one fold test different cases, or name other patients for them.
    """
    common = tuple(fold for fold in sorted(a) if fold in b)
    if not common:
        return None
    runs = [[run for training in (*a[fold], *b[fold]) for run in training] for fold in common]
    classes = [strata(same_cases(of_fold)) for of_fold in runs]
    patients, notes = _patients(runs)
    sides = [[[summed(training, metric, fill) for training in side[fold]] for fold in common] for side in (a, b)]
    test = stats.primary(list(map(stats.Fold, *sides, classes, patients)))
    values: tuple[list[list[float]], list[list[float]]] = ([], [])
    for of_side, side in zip(values, sides, strict=True):
        for of_fold, stratum in zip(side, classes, strict=True):
            once = np.ones((1, len(stratum)))
            of_side.append([stats.rounded(float(training(once)[0]), step=stats.STEP) for training in of_fold])
    return Contrast(metric, common, values, test, tuple(notes), float("nan"))


def _patients(folds: Sequence[Sequence[Tested]]) -> tuple[list[Patients] | list[None], list[str]]:
    """The patient of each slide of each fold, None where the dataset names none; and what a reader must know of it.

    A slide whose patient is not named carries its own id in the results; files of other people are of cases.

    Raises:
        OtherCasesError: two runs say otherwise whose slide it is.
    """
    named: list[Patients] = []
    alone = slides = 0
    for runs in folds:
        slide = runs[0].predictions["slide"]
        case, *others = (run.predictions.get("case", slide) for run in runs)
        for run, other in zip(runs[1:], others, strict=True):
            if not np.array_equal(other, case):
                raise OtherCasesError(f"trials {runs[0].identity} and {run.identity} name other patients for the same slides")
        lacking = (case == "") | (case == slide)
        slides += len(slide)
        unit = runs[0].result["spec"]["unit"] if isinstance(runs[0], Run) else "case"
        alone += 0 if unit == "case" else int(lacking.sum())
        named.append(np.where(lacking, slide, case))
    notes = []
    if alone == slides:
        notes.append("No patients are named: slides are taken as patients; intervals are too narrow if patients have several.")
    elif alone:
        notes.append(f"{alone:,} of {counted(slides, 'slide')} name no patient; each is taken as a patient of its own.")
    if max(Counter(patient for fold in named for patient in set(fold.tolist())).values()) > 1:
        notes.append("Folds share test patients; the test takes folds as independent, so its intervals are too narrow.")
    return [None] * len(named) if alone == slides else named, notes
