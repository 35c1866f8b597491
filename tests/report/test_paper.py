"""The tables of the paper: rows, heads, rules, printed numbers and errata, from the suites that the package has."""

import csv
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from milbench import MilbenchError, reading
from milbench.papers import PrintedTable
from milbench.papers import paper as published_by
from milbench.report import build, tables
from milbench.suites import load
from milbench.suites.model import names, with_includes
from tests.builders.paper import paper_store

PAPER = "longmil_neurips2024"
SUITES = {
    "table1": "bracs-encoders", "table2": "survival", "table3": "bracs-foundation", "table4": "survival-foundation",
    "table5": "tcga-brca-encoders", "table6": "table6", "table7": "bracs-magnification", "table8": "bracs-patch-size",
    "table9": "bracs-linear",
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Every suite of the paper, run on stand-ins; one encoder and one cohort are not here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("milbench.trials.store.flush", lambda path: None)
        missing = {"vits-dino", "tcga-stad-survival"}
        yield paper_store(tmp_path_factory.mktemp("paper"), "paper-all", n=6, missing=missing, folds=[0], seeds=[0, 1])


@pytest.fixture(scope="module")
def paper(store):
    """The report of it, printed numbers below ours, by the name of the table."""
    return {s.table.name: s for s in build(store, "paper-all", published="below", tests=False).sections}


def heads(table):
    return [group + " / " + label if group else label for group, label in table.headers]


def rules(table):
    return [row.label for row in table.rows if row.rule]


def test_heads_are_the_papers(paper):
    two = ["F1", "AUC"]
    want = {
        "table1": [f"ViT-S {e} / {m}" for e in ("Lunit", "DINO") for m in two],
        "table2": ["COADREAD", "STAD", "BRCA"],
        "table3": [f"{e} / {m}" for e in ("UNI", "GigaPath") for m in two],
        "table4": ["UNI", "GigaPath"],
        "table5": [f"ViT-S {e} / {m}" for e in ("Lunit", "HIPT") for m in two],
        "table6": [f"{d} / {m}" for d in ("BRACS", "TCGA-BRCA") for m in two],
        "table7": [f"{m} / {k}" for m in ("40x", "20x") for k in two],
        "table8": [f"{p} / {m}" for p in (224, 448) for m in two],
        "table9": two,
    }
    assert {name: heads(paper[suite].table) for name, suite in SUITES.items()} == want


def test_rules_part_the_groups_of_the_paper(paper):
    assert rules(paper["bracs-encoders"].table) == ["Mean-pooling", "AB-MIL", "TransMIL"]
    assert rules(paper["bracs-linear"].table) == ["RetNet", "Full Attention", "LongMIL"]
    assert rules(paper["table6"].table) == ["AB-MIL", "TransMIL"]


def test_rows_and_printed_numbers_stand_where_the_paper_has_them(paper, shared):
    """Row by row against the text of the paper: the same numbers in the same order."""
    text = (shared / "paper" / "longmil.txt").read_text()
    printed = Counter()
    for line in text.splitlines():
        numbers = re.findall(r"(\d\.\d+)±(\d\.\d+)|(?<= )(-)(?= |$)", line)
        if len(numbers) >= 2:
            printed[tuple((f"{float(m):.3f}", f"{float(s):.3f}") if m else "–" for m, s, _ in numbers)] += 1
    ours = Counter()
    for suite in SUITES.values():
        table = paper[suite].table
        for row in table.rows:
            if row.below:
                found = [re.match(r"(\d\.\d{3}) ± (\d\.\d{3})", entry.text) for entry in row.entries]
                ours[tuple((m[1], m[2]) if m else "–" for m in found)] += 1
    assert sum(ours.values()) == 12 + 8 + 8 + 6 + 13 + 8 + 5 + 6 + 14
    assert ours == printed


def test_every_printed_number_has_its_place():
    """Each of the 268 numbers belongs to one column and row of the suite that reproduces its table; survival has a second one."""
    used = Counter()
    for name in names():
        for suite in [
            s for s in with_includes(load(name)) if s.name == name and s.table.published and not name.endswith("-hipt")
        ]:
            printed = PrintedTable(suite.table.published)
            g = suite.grid
            for dataset in g.dataset:
                for encoder in g.encoder:
                    for magnification in g.magnification:
                        for patch in g.patch_size:
                            for row in g.aggregator:
                                for metric in suite.table.metrics:
                                    found = printed.get(row, (dataset, encoder, magnification, patch), metric)
                                    used[suite.table.published] += found is not None
    rows = Counter(f"{PAPER}/{number.table}" for number in published_by(PAPER).numbers)
    assert used == rows
    assert sum(rows.values()) == 268


def test_printed_numbers_beside_ours(store):
    side = {s.table.name: s.table for s in build(store, "bracs-patch-size", tests=False).sections}["bracs-patch-size"]
    assert side.headers[:6] == [("224", h) for h in ("F1", "paper", "Δ", "AUC", "paper", "Δ")]
    row = next(row for row in side.rows if row.label == "LongMIL")
    mean = next(t["mean"] for t in side.tidy if (t["aggregator"], t["patch_size"], t["metric"]) == ("longmil", 448, "macro_auc"))
    assert [e.text for e in row.entries[9:]] == [row.entries[9].text, "0.883", f"{mean - 0.883:+.3f}"]
    assert row.entries[9].text.startswith(f"{mean:.3f} ± ")
    said = next(t for t in side.tidy if (t["aggregator"], t["patch_size"], t["metric"]) == ("longmil", 448, "macro_auc"))
    assert (said["published_mean"], said["published_sd"]) == (0.883, 0.01)
    assert said["above_published"] == pytest.approx(mean - 0.883)
    off = build(store, "bracs-patch-size", published="off", tests=False).sections[0].table
    assert off.headers == [(p, m) for p in ("224", "448") for m in ("F1", "AUC")]
    assert "published_mean" not in off.tidy[0]
    assert not any("Erratum" in note or note.startswith("paper") for note in off.notes)


def test_what_is_not_here_is_a_dash_with_the_reason_and_the_printed_number(paper):
    table = paper["bracs-encoders"].table
    ours, printed = table.rows[-2], table.rows[-1]
    assert (ours.label, printed.label) == ("LongMIL", "paper")
    assert [e.text for e in ours.entries[2:]] == ["–", "–"]
    assert [e.text for e in printed.entries[2:]] == ["0.657 ± 0.026", "0.848 ± 0.004"]
    why = f"({ours.entries[2].mark}) not run: no features of bracs, encoder vits-dino; add them with: milbench data add bracs"
    assert any(note.startswith(why) for note in table.notes)
    assert table.partial.startswith("24 of 48 trials have no result (not run)")
    stad = paper["survival"].table
    assert {row.entries[1].text for row in stad.rows if not row.below} == {"–"}


def test_nothing_measured_yet_still_shows_what_is_printed(tmp_path, unflushed):
    empty = paper_store(tmp_path, "bracs-linear", n=6, skip=lambda cell: True)
    section = build(empty, "bracs-linear").sections[0]
    assert section.paired is None
    assert section.table.title.endswith("(n = 0 slides)")
    assert section.table.partial == "70 of 70 trials have no result (not run)"
    by_label = {row.label: [entry.text for entry in row.entries] for row in section.table.rows}
    assert by_label["+ V-Mamba"] == ["–", "0.693", "", "–", "0.870", ""]


def test_rows_that_nobody_asked_for_keep_their_printed_number(tmp_path, unflushed):
    asked = ["abmil", "longmil", "abmil[gated=false]"]
    store = paper_store(tmp_path, "bracs-patch-size", n=6, aggregators=asked, seeds=[0])
    table = build(store, "bracs-patch-size", tests=False).sections[0].table
    rows = {row.label: [entry.text for entry in row.entries[:3]] for row in table.rows}
    assert list(rows)[:6] == ["AB-MIL", "CLAM-SB", "DTFD-MIL (AFS)", "TransMIL", "Full Attention", "LongMIL"]
    assert rows["CLAM-SB"] == ["–", "0.640", ""]
    assert rows["AB-MIL"][1] == "0.692"
    assert rows["AB-MIL (gated=false)"][1] == "–", "the paper's number belongs to the paper's row only"
    assert "4 of the suite's 6 methods were not asked for; 4 of the suite's 5 seeds were not asked for" in table.partial


def test_two_suites_fill_one_table(store, paper):
    joined = paper["table6"]
    assert joined.plan.suite == "bracs-resnet50+tcga-brca-resnet50"
    assert joined.table.top == "ResNet-50, pre-trained on ImageNet"
    assert re.search(r"\(n = 6 BRACS, 6 TCGA-BRCA slides\)$", joined.table.title)
    alone = {s.table.name: s.table for s in build(store, "tcga-brca", published="below", tests=False).sections}
    assert heads(alone["tcga-brca-resnet50"]) == ["TCGA-BRCA / F1", "TCGA-BRCA / AUC"]
    for whole, half in zip(joined.table.rows, alone["tcga-brca-resnet50"].rows, strict=True):
        assert [e.text for e in whole.entries[2:]] == [e.text for e in half.entries]
    spread = next(note for note in joined.table.notes if note.endswith("second underlined."))
    assert "over 2 seeds, 6 tested in each" in spread


def test_table_6_says_for_each_dataset_what_the_spread_is_over(tmp_path, unflushed):
    store = paper_store(tmp_path, "bracs-resnet50", n=6, aggregators=["mean", "max"], seeds=[0, 1, 2])
    paper_store(tmp_path, "tcga-brca-resnet50", n=6, aggregators=["mean", "max"], folds=[0, 1])
    plan = reading.joined([*reading.leaves(store, "bracs-resnet50"), *reading.leaves(store, "tcga-brca-resnet50")])[0]
    table, _ = tables.build(plan, reading.read(store, plan), tests=False)
    spread = next(note for note in table.notes if note.endswith("second underlined."))
    assert spread == (
        "BRACS: mean ± sample standard deviation (ddof = 1) over 3 seeds, 6 tested in each; "
        "TCGA-BRCA: mean ± sample standard deviation (ddof = 1) over 2 folds x 3 seeds, 6 tested in each. Best in bold, second underlined."
    )


def test_the_reference_and_its_family(store, monkeypatch):
    """LongMIL, compared in one Holm family per table and metric."""
    monkeypatch.setattr("milbench.compare.pairing.REPLICATES", 100)
    section = build(store, "bracs-magnification").sections[0]
    assert section.paired.title == "Paired comparison with LongMIL (full global)"
    from milbench import stats

    for metric in ("macro_f1", "macro_auc"):
        family = [row for row in section.paired.tidy if row["metric"] == metric]
        assert len(family) == 8, "four methods at two magnifications"
        np.testing.assert_allclose([row["p_holm"] for row in family], stats.holm([row["p"] for row in family]))
    assert any("over the 8 comparisons of each metric" in note for note in section.table.notes)


def test_every_suite_names_a_reference_that_it_has():
    for name in names():
        suite = load(name)
        if suite.grid:
            assert suite.table.reference in suite.grid.aggregator, name
            plain = {text for text in suite.grid.aggregator if text.split("[")[0] == "longmil"}
            assert suite.table.reference in plain or not plain, name


def test_ab_mil_stands_in_for_a_reference_without_a_result(tmp_path, monkeypatch, unflushed):
    monkeypatch.setattr("milbench.compare.pairing.REPLICATES", 100)
    store = paper_store(tmp_path, "survival-foundation", n=6, skip=lambda cell: cell.aggregator == "longmil")
    section = build(store, "survival-foundation").sections[0]
    assert section.paired.title == "Paired comparison with AB-MIL"
    assert any("AB-MIL, which stands in for longmil: that has no result here." in note for note in section.table.notes)


ERRATA = {
    "bracs-encoders": ["Erratum: printed 547 WSIs. The authors' own table of slides and labels lists 537"],
    "tcga-brca-encoders": [
        "Erratum: printed 1038 WSIs. The split files hold 1041 slides.",
        "erratum: Equals HIPT's published folds",
    ],
    "survival": [
        "Erratum (COADREAD): printed 316 WSIs. The split files hold 340 cases.",
        "Erratum (STAD): printed 321 WSIs. The split files hold 349 cases.",
        "Erratum (BRCA): Unlike in the other two columns",
        "erratum: HIPT's published folds give 0.634 ± 0.050",
    ],
    "table6": ["Erratum (TCGA-BRCA): printed 1038 WSIs.", "Erratum (BRACS): printed 547 WSIs.", "Probably a misprint"],
    "bracs-foundation": ["variant not named in the table", "Erratum: printed 547 WSIs."],
}


@pytest.mark.parametrize("name", ERRATA)
def test_errata_stand_under_the_tables_they_concern(paper, name):
    notes = " ".join(paper[name].table.notes)
    for said in ERRATA[name]:
        assert said in notes
    assert len(set(paper[name].table.notes)) == len(paper[name].table.notes)


def test_every_erratum_is_printed_somewhere(paper):
    notes = " ".join(note for suite in SUITES.values() for note in paper[suite].table.notes)
    assert [erratum for erratum in published_by(PAPER).errata if erratum.says not in notes] == []


def test_half_a_table_has_half_the_errata(store):
    report = build(store, "tcga-brca", tests=False)
    notes = " ".join(next(s.table for s in report.sections if s.table.name == "tcga-brca-resnet50").notes)
    assert "printed 1038 WSIs" in notes
    assert "547 WSIs" not in notes


def test_an_erratum_of_one_number_is_its_footnote(paper):
    def footnotes(name, row, column):
        rows = paper[name].table.rows
        entry = next(under for line, under in pairwise(rows) if line.label == row and under.below).entries[column]
        return entry.text.split(" (")[0], [note for note in paper[name].table.notes if note.startswith(f"({entry.mark}) ")]

    number, (note,) = footnotes("table6", "Max-pooling", 3)
    assert number == "0.886 ± 0.301"
    assert "needs a fold with an AUC below 0.05" in note
    number, (note,) = footnotes("survival", "DS-MIL", 0)
    assert number == "0.470 ± 0.053"
    assert "give DS-MIL 0.538 ± 0.049" in note and "the two rows are swapped" in note
    number, (note,) = footnotes("survival", "HIPT", 2)
    assert number == "–"
    assert "0.634 ± 0.050" in note
    assert footnotes("survival", "TransMIL", 0) == ("0.597 ± 0.134", [])


def test_the_misprinted_spread_needs_a_fold_near_zero():
    """Ten AUCs of mean 0.886 and sample sd 0.301: however they lie in [0, 1], the smallest is below 0.05."""
    mean, sd, n = 0.8865, 0.3005, 10  # the rounding that helps most
    total = n * (1 - mean)  # of the distances to 1
    squares = (n - 1) * sd**2 + n * (1 - mean) ** 2  # of the same
    # With a largest distance a, their squares sum to most when as many as possible are a and one is the rest.
    smallest = min(a for a in np.linspace(0.01, 1, 10_000) if (total // a) * a**2 + (total % a) ** 2 >= squares)
    assert 1 - smallest < 0.05


def test_errata_against_the_files_they_name(shared):
    data = shared / "data"

    def rows(path):
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    says = {(e.table, e.row, e.column): e.says for e in published_by(PAPER).errata}
    slides = len(rows(data / "bracs" / "longmil_bracs.csv"))
    assert f"lists {slides} of the {len(rows(data / 'bracs' / 'bracs_official_merged.csv'))}" in says["table1", "", ""]
    for folder, parts, place in (
        ("tcga_brca_subtyping/10foldcv", ("train", "val", "test"), ("table5", "", "")),
        ("tcga_survival/hipt_5foldcv/tcga_coadread", ("train", "val"), ("table2", "", "COADREAD")),
        ("tcga_survival/hipt_5foldcv/tcga_stad", ("train", "val"), ("table2", "", "STAD")),
    ):
        ids = {row[part] for path in (data / folder).rglob("splits_[0-9].csv") for row in rows(path) for part in parts} - {""}
        assert f"hold {len(ids)} " in says[place]
    text = (shared / "paper" / "longmil.txt").read_text().replace("\n", " ")
    for erratum in published_by(PAPER).errata:
        assert not erratum.printed.endswith("WSIs") or erratum.printed in text

    folds: dict[tuple[str, str], list[float]] = {}
    for row in rows(data / "published_results" / "hipt_survival_folds.csv"):
        folds.setdefault((row["cohort"].upper(), row["model"].split("_")[0]), []).append(float(row["val_cindex"]))
    models = {"AB-MIL": "AMIL", "AMISL": "MIFCN", "DS-MIL": "DSMIL", "GCN-MIL": "DGCN", "HIPT": "HIPT"}
    checked = 0
    for erratum in published_by(PAPER).errata:
        if erratum.source != "HIPT per-fold c-indices" or not erratum.row:
            continue
        mean, sd = (f(folds[erratum.column, models[erratum.row]]) for f in (np.mean, lambda x: np.std(x, ddof=1)))
        where = erratum.printed if erratum.says.startswith("Equals") else erratum.says
        said = [float(x) for x in re.search(r"(0\.\d{3}) ± (0\.\d{3})", where).groups()]
        assert said == pytest.approx([mean, sd], abs=5.1e-4), erratum
        checked += 1
    assert checked == 12


def test_the_classic_sets_have_their_own_printed_numbers(tmp_path, monkeypatch, unflushed):
    monkeypatch.setattr("milbench.compare.pairing.REPLICATES", 100)
    store = paper_store(tmp_path, "classic", n=60, folds=[0, 1])
    table = build(store, "classic", tests=False).sections[0].table
    assert table.headers[:4] == [("MUSK1", head) for head in ("accuracy", "paper", "Δ", "macro-AUC")], "no AUC is printed"
    printed = {row.label: row.entries[1] for row in table.rows}
    assert {label: entry.text for label, entry in printed.items()} == {
        "Mean-pooling": "–", "Max-pooling": "–", "AB-MIL": "0.892", "AB-MIL (gated)": "0.900", "DS-MIL": "0.932", "CLAM-SB": "–",
    }  # fmt: skip
    assert [row.rule for row in table.rows] == [False, False, True, False, False, False]
    section = build(store, "classic").sections[0]
    assert section.paired.title == "Paired comparison with AB-MIL"
    (verdicts,) = section.more
    assert len(verdicts.tidy) == len(verdicts.rows) == 9
    for row in verdicts.tidy:
        assert row["within"] == (row["difference_low"] <= 0 <= row["difference_high"])
        measured = [
            r for r in table.tidy if (r["dataset"], r["label"], r["metric"]) == (row["dataset"], row["label"], row["metric"])
        ]
        assert row["mean"] == pytest.approx(measured[0]["mean"])
        assert row["low"] <= row["mean"] <= row["high"]
    assert {row["within"] for row in verdicts.tidy} == {0, 1}
    note = "Ilse et al. 2018, Table 1; ± is the standard error; not checked against the paper"
    assert f"({printed['AB-MIL'].mark}) {note}" in table.notes
    assert sum("published_mean" in row and row["published_mean"] == row["published_mean"] for row in table.tidy) == 9


def test_a_published_table_that_is_not_there_is_named():
    with pytest.raises(MilbenchError, match=r"unknown published table 'longmil_neurips2024/table10'; did you mean .*table1"):
        PrintedTable(f"{PAPER}/table10")
    with pytest.raises(MilbenchError, match=r"unknown published table 'longmil/table1'"):
        PrintedTable("longmil/table1")


def test_suites_that_were_never_run_are_named(store):
    report = build(store, "paper-all", tests=False)
    assert report.not_run == ["efficiency"]
    assert report.title == "Every table of the paper"
    assert len({section.table.name for section in report.sections}) == len(report.sections) == 19
