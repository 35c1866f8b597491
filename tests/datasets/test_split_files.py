"""Split tables, JSON splits and folders of either in the forms that circulate, and the real ones with their counts."""

from collections import Counter

import pytest

from milbench import MilbenchError
from milbench.datasets import Fold
from milbench.datasets.files import columns, labels, split_files
from milbench.delimited import Delimited
from tests.builders.folders import ids, table


def test_padded_boolean_long_numbered_and_many_column_tables(tmp_path):
    want = Fold(("a", "b", "c"), ("d",), ("e",))
    padded = table(tmp_path / "p.csv", ["", "train", "val", "test"], [[0, "a", "d", "e"], [1, "b", "", ""], [2, "c", "", ""]])
    flags = [["a", 1, 0, 0], ["b", 1, 0, 0], ["c", 1, 0, 0], ["d", 0, 1, 0], ["e", 0, 0, 1]]
    boolean = table(tmp_path / "b.csv", ["", "train", "val", "test"], [[id, *(bool(f) for f in own)] for id, *own in flags])
    part = ["training", "TRAIN", "train", "valid", "testing"]
    long = table(tmp_path / "l.csv", ["slide", "Split"], [[*pair] for pair in zip("abcde", part, strict=True)])
    for path in (padded, boolean, long):
        assert split_files.read(path).folds == [want], path
    several = table(
        tmp_path / "s.csv", ["slide_id", "fold_0", "fold_1"], [["a", "train", "test"], ["b", "test", "train"], ["c", "val", ""]]
    )
    assert split_files.read(several).folds == [Fold(("a",), ("c",), ("b",)), Fold(("b",), (), ("a",))]
    numbered = table(tmp_path / "n.csv", ["slide_id", "fold"], [[*pair] for pair in zip("abcdef", "001122", strict=True)])
    assert split_files.read(numbered).folds == [
        Fold(("e", "f"), ("c", "d"), ("a", "b")), Fold(("a", "b"), ("e", "f"), ("c", "d")), Fold(("c", "d"), ("a", "b"), ("e", "f")),
    ]  # fmt: skip


def test_a_folder_has_its_folds_in_the_order_of_their_numbers(tmp_path):
    for number in range(11):
        table(tmp_path / f"splits_{number}.csv", ["", "train", "val", "test"], [[0, f"a{number}", "b", "c"]])
        table(tmp_path / f"splits_{number}_bool.csv", ["", "train", "val", "test"], [["other", True, False, False]])
        table(tmp_path / f"splits_{number}_descriptor.csv", ["", "train", "val", "test"], [["IDC", 1, 0, 0]])
    assert [fold.train for fold in split_files.read(tmp_path).folds] == [(f"a{number}",) for number in range(11)]
    for number in range(11):
        (tmp_path / f"splits_{number}.csv").unlink()
    assert split_files.read(tmp_path).folds == [Fold(("other",), (), ())] * 11


def test_the_ten_folds_of_tcga_brca(shared):
    root = shared / "data" / "tcga_brca_subtyping"
    listed = Delimited.read(root / "acmil_brca_hipt.csv")
    label = {row.slide: row.label for row in labels.read(listed, columns.roles(listed, "subtyping", {})).rows}
    assert Counter(label.values()) == {"IDC": 831, "ILC": 210}
    split = split_files.read(root / "10foldcv")
    folds = split.folds
    assert split.form == "10 files splits_0.csv to splits_9.csv"
    assert [tuple(map(len, fold)) for fold in folds] == [(845, 98, 98)] * 10
    assert [Counter(label[id] for id in part)["IDC"] for part in folds[3]] == [673, 78, 80]
    boolean = [split_files.read(root / "10foldcv" / f"splits_{i}_bool.csv").folds[0] for i in range(10)]
    assert [[set(part) for part in fold] for fold in boolean] == [[set(part) for part in fold] for fold in folds]


def test_names_of_parts_that_nobody_uses_are_refused(tmp_path):
    path = table(tmp_path / "t.csv", ["slide_id", "split"], [[id, "train"] for id in ids(3)] + [["x", "future"]])
    with pytest.raises(MilbenchError, match="x is in the part 'future'"):
        split_files.read(path)
