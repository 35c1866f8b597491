"""Label, survival and split tables in every schema that circulates, and the real ones with their counts."""

from collections import Counter

import pytest

from milbench import MilbenchError
from milbench.datasets.files import columns, ids, labels, split_files
from milbench.datasets.files.classes import usual
from milbench.delimited import Delimited
from tests.builders.folders import table


def rows(path, task="subtyping", **asked):
    read = Delimited.read(path)
    return labels.read(read, columns.roles(read, task, asked)).rows


@pytest.mark.parametrize(
    ("id", "plain"),
    [
        ("S-1.svs", "S-1"),
        (" S-1 ", "S-1"),
        ("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB-45CF-B4BD-C6B76294C291", "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB-45CF-B4BD-C6B76294C291"),
        ("TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF.svs", "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF"),
        ("/mnt/wsi/type_ADH/BRACS_1228.svs", "BRACS_1228"),
        ("D:\\slides\\a.ndpi", "a"),
        ("a.ome.tiff", "a"),
        ("163.0", "163"),
        ("v1.0", "v1.0"),
        ("S-1.SVS.h5", "S-1"),
    ],
)  # fmt: skip
def test_ids_are_compared_without_folder_and_extension(id, plain):
    assert ids.slide(id) == plain


@pytest.mark.parametrize(
    "header",
    ["case_id,slide_id,label", "Patient ID,Slide,Class", "patient;filename;subtype", "case_submitter_id\tWSI\toncotree_code"],
)
def test_columns_are_found_by_the_names_that_circulate(tmp_path, header):
    separator = next(c for c in ",;\t" if c in header)
    path = tmp_path / "t.csv"
    path.write_text("\ufeff" + header + "\n" + separator.join(["P1", "S-1.svs", "IDC"]) + "\n", encoding="utf-8")
    assert rows(path) == [labels.Row("S-1", "P1", "IDC")]


def test_a_column_can_be_named(tmp_path):
    path = table(tmp_path / "t.csv", ["slide_id", "label", "grade"], [["a", "x", "3.0"], ["b", "y", "1.0"]])
    assert [row.label for row in rows(path, label="grade")] == ["3", "1"]
    with pytest.raises(MilbenchError, match="unknown role of a column 'lable'; did you mean label"):
        rows(path, lable="grade")


def test_a_slide_without_a_case_is_one_of_its_own_and_tcga_names_its_case(tmp_path):
    path = table(tmp_path / "t.csv", ["slide_id", "label"], [["a", "x"], ["TCGA-3C-AALI-01Z-00-DX1.F6E9", "y"]])
    assert [row.case for row in rows(path)] == ["a", "TCGA-3C-AALI"]
    path = table(tmp_path / "u.csv", ["slide_id", "case_id", "label"], [["a", "", "x"], ["b", "7.0", "y"]])
    assert [row.case for row in rows(path)] == ["a", "7"]


@pytest.mark.parametrize(
    ("header", "alive", "dead"),
    [
        (["case_id", "survival_months", "censorship"], "1", "0"),
        (["case_id", "survival_months", "censorship"], "1.0", "0.0"),
        (["case_id", "survival_days", "event"], "0", "1"),
        (["bcr_patient_barcode", "OS.time", "OS"], "0.0", "1.0"),
        (["PATIENT_ID", "OS_MONTHS", "OS_STATUS"], "0:LIVING", "1:DECEASED"),
        (["patient", "days", "vital_status"], "Alive", "Dead"),
        (["patient", "time", "event"], "False", "True"),
    ],
)
def test_an_event_is_an_event_however_it_is_written(tmp_path, header, alive, dead):
    path = table(tmp_path / "t.csv", header, [["a", "10.5", alive], ["b", "3", dead]])
    found = rows(path, "survival")
    assert found == [labels.Row(None, "a", time=10.5, event=False), labels.Row(None, "b", time=3.0, event=True)]


def test_of_event_and_censorship_the_unmistakable_one_is_taken_unless_asked(tmp_path):
    header = ["case_id", "time", "status", "censorship"]
    path = table(tmp_path / "t.csv", header, [["a", "1", "2", "0"]])
    assert rows(path, "survival")[0].event
    path = table(tmp_path / "u.csv", header, [["a", "1", "0", "0"]])
    assert not rows(path, "survival", event="status")[0].event


@pytest.mark.parametrize(
    ("labels", "published", "classes"),
    [
        (
            "IC N PB UDH FEA ADH DCIS",
            None,
            {"benign": ["N", "PB", "UDH"], "atypical": ["FEA", "ADH"], "malignant": ["DCIS", "IC"]},
        ),
        ("0 1 2 3 4 5 6", "bracs", {"benign": ["0", "1", "2"], "atypical": ["3", "4"], "malignant": ["5", "6"]}),
        ("0 1 2 3 4 5 6", None, {str(i): [str(i)] for i in range(7)}),
        ("malignant benign atypical", "bracs", {"benign": ["benign"], "atypical": ["atypical"], "malignant": ["malignant"]}),
        ("0 1 2", "bracs", {"benign": ["0"], "atypical": ["1"], "malignant": ["2"]}),
        ("ilc idc", "tcga-brca", {"IDC": ["idc"], "ILC": ["ilc"]}),
        ("10 9 -1", None, {"-1": ["-1"], "9": ["9"], "10": ["10"]}),
        ("tumour normal", None, {"normal": ["normal"], "tumour": ["tumour"]}),
    ],
)
def test_classes_have_an_order_that_does_not_depend_on_the_rows(labels, published, classes):
    assert usual(set(labels.split()), published) == classes
    assert list(usual(set(labels.split()), published)) == list(classes)


def test_the_four_tables_of_bracs(shared):
    root = shared / "data" / "bracs"
    types = {"N": 44, "PB": 147, "UDH": 74, "FEA": 41, "ADH": 48, "DCIS": 61, "IC": 132}
    merged, acmil, longmil, mambamil = (
        rows(root / name) for name in ("bracs_official_merged.csv", "acmil_bracs.csv", "longmil_bracs.csv", "mambamil_BRACS.csv")
    )
    assert Counter(row.label for row in merged) == types
    assert Counter(row.label for row in acmil) == {str(i): count for i, count in enumerate(types.values())}
    assert [len(some) for some in (merged, acmil, longmil, mambamil)] == [547, 547, 537, 545]
    assert len({row.case for row in longmil}) == 188
    label, case = ({row.slide: getattr(row, key) for row in merged} for key in ("label", "case"))
    assert all(label[row.slide] == row.label for row in [*longmil, *mambamil])
    assert all(case[row.slide] == row.case for row in longmil)
    (official,), (same,) = (split_files.read(root / name).folds for name in ("bracs_official_merged.csv", "acmil_bracs.csv"))
    assert [len(part) for part in official] == [395, 65, 87]
    assert [set(part) for part in same] == [set(part) for part in official]
    (mamba,) = split_files.read(root / "mambamil_splits_0.csv").folds
    assert [len(part) for part in mamba] == [394, 64, 87]
    assert all(set(part) <= set(whole) for part, whole in zip(mamba, official, strict=True))


@pytest.mark.parametrize(("cohort", "cases", "events", "slides"), [("brca", 956, 130, 1023), ("coadread", 340, 80, 572), ("stad", 349, 139, 363)])  # fmt: skip
def test_the_five_folds_of_the_survival_cohorts(shared, cohort, cases, events, slides):
    root = shared / "data" / "tcga_survival"
    cdr = rows(root / f"tcga_cdr_{cohort}_hipt_cases.csv", "survival")
    assert (len(cdr), sum(bool(row.event) for row in cdr)) == (cases, events)
    folds = split_files.read(root / "hipt_5foldcv" / f"tcga_{cohort}").folds
    assert len(folds) == 5
    assert all({*fold.train, *fold.val} == {row.case for row in cdr} and not fold.test for fold in folds)
    mamba = rows(root / f"mambamil_{cohort.upper()}_processed.csv", "survival")
    assert len(mamba) == slides
    event = {row.case: row.event for row in cdr}
    both = [row.event == event[row.case] for row in mamba if row.case in event]
    assert sum(both) / len(both) > 0.99, "censorship 0 is an event, as OS 1 is"
