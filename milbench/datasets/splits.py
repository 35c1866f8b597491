"""Splits that are the same on every machine and with every library version.

Cases are put in order by a hash of their name, not by a random number generator, so a split depends on nothing but the
names, the classes and its own name.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from milbench.datasets.base import Fold, Sample
from milbench.errors import MilbenchError


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
        own = profile[case]
        part = min(range(parts), key=lambda p: (float(load[p] @ own), float(load[p].sum()), p))
        load[part] += own
        part_of[case] = part
    return part_of


def k_fold(samples: Sequence[Sample], k: int, *, validation: int | None = None, salt: str = "") -> list[Fold]:
    """Stratified k-fold, disjoint by case, with a validation part inside each training part.

    Args:
        samples: all samples of the dataset.
        k: number of folds; every sample is tested once.
        validation: one part in this many of the training part is for validation; `k` unless told, 0 for none.
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
                f"{k}-fold needs at least {k} cases of each class, class {stratum} has {len(members)}; use fewer folds"
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
