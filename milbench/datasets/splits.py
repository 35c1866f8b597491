"""Splits that are the same on every machine and with every library version.

Cases are put in order by a hash of their name, not by a random number generator, so a split depends on nothing but the
names, the classes and its own name.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from milbench.datasets.base import Fold, Sample
from milbench.errors import MilbenchError

# Splits that suites ask for by name and a dataset may lack.
PUBLISHED = ("official", "hipt5", "hipt10", "hipt5-grouped", "hipt10-grouped", "extrapolation", "extrapolation-mixed")


def count(split: str) -> int:
    """How many folds a split has, by its name: `kfold5` and `hipt5-grouped` have 5, `official` has one."""
    match = re.search(r"(\d+)(?:-grouped)?$", split)
    return int(match[1]) if match else 1


def _assign(samples: Sequence[Sample], parts: int, salt: str) -> dict[str, int]:
    """Deal cases to `parts` stacks: stratified by class, all slides of a case together. Returns case id -> part.

    Large cases are dealt first; each goes where its classes are rarest so far, then to the smallest part.
    """
    by_case: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_case[sample.case_id].append(sample)
    strata = max(s.stratum for s in samples) + 1
    profile = {case: np.bincount([s.stratum for s in slides], minlength=strata) for case, slides in by_case.items()}
    shuffled = sorted(by_case, key=lambda case: hashlib.sha256(f"{salt}|{case}".encode()).hexdigest())
    order = sorted(shuffled, key=lambda case: -len(by_case[case]))
    load = np.zeros((parts, strata))
    part_of = {}
    for case in order:
        classes = profile[case]
        part = min(range(parts), key=lambda p: (float(load[p] @ classes), float(load[p].sum()), p))
        load[part] += classes
        part_of[case] = part
    return part_of


def k_fold(samples: Sequence[Sample], k: int, *, validation: int | None = None, salt: str = "") -> list[Fold]:
    """Stratified k-fold, disjoint by case, with a validation part inside each training part.

    Args:
        samples: all samples of the dataset.
        k: number of folds; every sample is tested once.
        validation: one part in this many of the training part is for validation; None is `k`, 0 is no validation part.
        salt: another salt gives another split.

    Raises:
        MilbenchError: fewer cases of a class than folds.
    """
    validation = k if validation is None else validation
    cases: dict[int, set[str]] = defaultdict(set)
    for sample in samples:
        cases[sample.stratum].add(sample.case_id)
    for stratum, members in sorted(cases.items()):
        if len(members) < k:
            raise MilbenchError(
                f"{k}-fold needs at least {k} cases of each class, class {stratum} has {len(members)}; use fewer folds "
                '(milbench data add NAME --folds K, and split = ["kfoldK"] in the suite)'
            )
    outer = _assign(samples, k, f"{salt}|test")
    folds = []
    for fold in range(k):
        rest = [s for s in samples if outer[s.case_id] != fold]
        inner = _assign(rest, validation, f"{salt}|val|{fold}") if validation else {}
        folds.append(
            Fold(
                train=tuple(s.id for s in rest if inner.get(s.case_id) != 0),
                val=tuple(s.id for s in rest if inner.get(s.case_id) == 0),
                test=tuple(s.id for s in samples if outer[s.case_id] == fold),
            )
        )
    return folds


def extrapolation(samples: Sequence[Sample], sizes: Mapping[str, int], *, mixed: bool = False, salt: str = "") -> list[Fold]:
    """Train on small slides, test on large ones: in the order of instances, 60 % train, 20 % validation, 20 % test.

    Slides of a patient may fall in different parts: the size of the slide alone decides.

    Args:
        samples: all samples of the dataset.
        sizes: id -> number of instances.
        mixed: validation and test are mixed among the largest 40 %, in proportion of the classes, instead of one after the
            other in size. The paper's words allow both.
        salt: another salt mixes otherwise.

    Returns:
        One fold.

    Raises:
        MilbenchError: fewer than five samples, or a sample of unknown size.

    Source: LongMIL (NeurIPS 2024), appendix A.2, "train-val-test ratio as 6:2:2".
    """
    if unsized := [s.id for s in samples if s.id not in sizes]:
        raise MilbenchError(f"extrapolation needs the size of every sample, {len(unsized)} have none, such as {unsized[0]}")
    if len(samples) < 5:
        raise MilbenchError(f"extrapolation splits 6:2:2 and needs at least 5 samples, there are {len(samples)}")
    order = sorted(samples, key=lambda s: (sizes[s.id], s.id))
    first, second = round(0.6 * len(order)), round(0.8 * len(order))
    train, val, test = order[:first], order[first:second], order[second:]
    if mixed:
        large = [Sample(s.id, s.id, s.label, s.time, s.event) for s in order[first:]]  # dealt one by one
        part_of = _assign(large, 2, f"{salt}|extrapolation")
        val, test = ([s for s in order[first:] if part_of[s.id] == part] for part in (0, 1))
    return [Fold(*(tuple(s.id for s in part) for part in (train, val, test)))]


def grouped_twin(samples: Sequence[Sample], folds: Sequence[Fold], salt: str = "") -> list[Fold]:
    """Published folds with the fewest changes that put all slides of a patient into one part of each fold.

    A patient whose slides are in several parts goes where most of them are; of equals, to the part that has lost most slides so
    far, so that sizes stay. All other patients stay where they are: what differs between the twins is the leak and nothing else.

    Args:
        samples: all samples of the dataset.
        folds: the published folds.
        salt: another salt takes the patients in another order.
    """
    case_of = {s.id: s.case_id for s in samples}
    twins = []
    for number, fold in enumerate(folds):
        slides: dict[str, list[list[str]]] = defaultdict(lambda: [[], [], []])  # case -> its ids in each part
        for part, ids in enumerate(fold):
            for id in ids:
                slides[case_of[id]][part].append(id)
        torn = [case for case, parts in slides.items() if sum(map(bool, parts)) > 1]
        size = [len(ids) - sum(len(slides[case][part]) for case in torn) for part, ids in enumerate(fold)]
        home = {}
        for case in sorted(torn, key=lambda case: hashlib.sha256(f"{salt}|twin|{number}|{case}".encode()).hexdigest()):
            counts = [len(ids) for ids in slides[case]]
            equals = [part for part in range(3) if counts[part] == max(counts)]
            home[case] = max(equals, key=lambda part: (len(fold[part]) - size[part]) / len(fold[part]))
            size[home[case]] += sum(counts)
        every = [(home.get(case_of[id], part), id) for part, ids in enumerate(fold) for id in ids]
        twins.append(Fold(*(tuple(id for at, id in every if at == part) for part in range(3))))
    return twins
