"""`milbench report --from published`: what others published, in their files, against what they print."""

import csv
import gzip
import json
from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy

from milbench import MilbenchError, stats
from milbench.report import from_published
from tests.builders.command import milbench


def write(path, head, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def entries(table, column=0):
    return {row.label: row.entries[column] for row in table.rows if row.entries}


# AB-MIL, LongMIL and a third model on five folds of two cohorts; the second cohort lacks a fold of the third.
FOLDS = [
    (cohort, model, fold, score + fold / 100 + (fold == 2) * bump)
    for cohort, shift in (("A", 0.0), ("B", 0.1))
    for model, score, bump in (("AB-MIL", 0.5 + shift, 0.0), ("Long MIL", 0.6 + shift, 0.05), ("third_one", 0.4, 0.02))
    for fold in range(5)
    if (cohort, model, fold) != ("B", "third_one", 4)
]


def test_folds(tmp_path):
    path = write(tmp_path / "some folds.csv", ["Cohort", "Method", "Split", "val-C_Index"], FOLDS)
    main_table, over_folds = from_published.build([path])
    assert main_table.name == "some-folds"
    assert main_table.headers == [("A", "val-C_Index"), ("B", "val-C_Index")]
    values = [v for c, m, _, v in FOLDS if (c, m) == ("A", "Long MIL")]
    best = entries(main_table)["Long MIL"]
    assert best.text == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert (best.style, entries(main_table)["AB-MIL"].style) == ("best", "second")
    partial = entries(main_table, 1)["third_one"]
    assert (partial.style, partial.mark) == (None, "a")
    assert main_table.notes[0] == "(a) over 4 of 5 folds, not ranked."
    first = main_table.tidy[0]
    assert [first[f"fold_{f}"] for f in range(5)] == [v for c, m, _, v in FOLDS if (c, m) == ("A", "AB-MIL")]

    assert "model minus Long MIL" in over_folds.notes[0], "the reference is LongMIL where the file has it"
    row = next(r for r in over_folds.tidy if (r["group"], r["model"]) == ("A", "AB-MIL"))
    d = np.array([-0.1, -0.1, -0.15, -0.1, -0.1])
    assert row["difference"] == pytest.approx(d.mean())
    t = d.mean() / np.sqrt((1 / 5 + 1 / 4) * d.var(ddof=1))
    assert row["p_nadeau_bengio"] == pytest.approx(2 * scipy.t.sf(abs(t), 4))
    assert (row["wins"], row["losses"], row["smallest_p_wilcoxon"]) == (0, 5, 0.0625)
    assert row["p_wilcoxon"] == pytest.approx(0.0625)
    short = next(r for r in over_folds.tidy if (r["group"], r["model"]) == ("B", "third_one"))
    assert (short["folds"], short["smallest_p_wilcoxon"]) == (4, 0.125)


def test_several_scores_make_a_table_for_each_group(tmp_path):
    rows = [(f, m, fold, v, 1 - v) for f in ("0.25", "1.0") for m in "ab" for fold in range(3) for v in [fold / 10 + len(f) / 50]]
    path = write(tmp_path / "x.csv", ["fraction", "model", "fold", "test_auc", "acc"], rows)
    tables = from_published.build([path], tests=False)
    assert [t.name for t in tables] == ["x-0-25", "x-1-0"]
    assert [label for _, label in tables[0].headers] == ["test_auc", "acc"]
    assert entries(tables[0])["a"].text == "0.180 ± 0.100"


def test_numbers_of_each_row_are_no_groups_and_the_table_says_so(tmp_path):
    rows = [
        (m, fold, f, 0.5 + fold / 10, 20 + fold + len(m), 100.5 + at, f"/runs/{at}")
        for at, (m, f, fold) in enumerate(product("ab", (0.25, 1.0), range(3)))
    ]
    head = ["model", "fold", "fraction", "test_auc", "best_epoch", "runtime_s", "folder"]
    table, _ = from_published.build([write(tmp_path / "x.csv", head, rows)])
    assert table.headers == [("0.25", "test_auc"), ("1.0", "test_auc")]
    assert table.notes[-1] == "Not used: columns best_epoch, runtime_s, folder."
    one = [row for row in rows if row[2] == 1.0]
    path = write(tmp_path / "y.csv", head, one)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert from_published.build([path])[0].headers == [("", "test_auc")]


def test_columns_that_contradict_each_other(tmp_path):
    path, _ = predictions(tmp_path, name="a.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0] + ",event", *(f"{line},{1 - int(line[-1])}" for line in lines[1:])]) + "\n")
    assert from_published.build(predictions=[path], tests=False)
    path.write_text(path.read_text().replace(lines[4] + f",{1 - int(lines[4][-1])}", lines[4] + f",{lines[4][-1]}"))
    with pytest.raises(
        MilbenchError, match=r"a\.csv, row 5: event .* means .*, censorship .* means .*leave the wrong column out"
    ):
        from_published.build(predictions=[path], tests=False)


def predictions(tmp_path, *, drop=(), censored="censorship", n=40, folds=3, name="risks.csv.gz", change=lambda row: row):
    """Two models and their cases: the better one sees the truth."""
    rng, rows = np.random.default_rng(5), []
    for fold in range(folds):
        time, event = rng.exponential(30, n).round(0) + 1, rng.random(n) < 0.6
        for model, noise in (("poor", 3.0), ("fair", 0.7)):
            risk = -np.log(time) + noise * rng.normal(size=n)
            for i in range(n):
                if (model, fold, i) not in drop:
                    flag = int(event[i]) if censored == "event" else int(not event[i])
                    rows.append(change([model, fold, f"c{fold}-{i}", risk[i], time[i], flag]))
    path = tmp_path / name
    with gzip.open(path, "wt", newline="") if name.endswith(".gz") else path.open("w", newline="") as file:
        csv.writer(file).writerows([["model", "fold", "case_id", "risk", "survival_months", censored], *rows])
    return path, rows


def test_predictions(tmp_path):
    path, rows = predictions(tmp_path)
    main_table, paired, over_folds = from_published.build(predictions=[path])
    assert [label for _, label in main_table.headers] == ["c-index", "c-index (Harrell)"]
    for row in main_table.tidy:
        for fold in range(3):
            time, event, risk = (np.array([r[k] for r in rows if (r[0], r[1]) == (row["model"], fold)]) for k in (4, 5, 3))
            expected = stats.c_index(time, event == 0, risk, equal_times=row["score"] == "c_index")
            assert row[f"fold_{fold}"] == pytest.approx(float(expected), abs=1e-12)
    assert any(t["fold_0"] != u["fold_0"] for t, u in zip(main_table.tidy[:2], main_table.tidy[2:], strict=True)), "no ties"
    (row, harrell) = paired.tidy
    scores = {r["model"]: r for r in main_table.tidy if r["score"] == "c_index"}
    assert row["difference"] == pytest.approx(scores["fair"]["mean"] - scores["poor"]["mean"])
    assert harrell["score"] == "c_index_harrell" and row["these_models_low"] > 0
    differences = [scores["fair"][f"fold_{fold}"] - scores["poor"][f"fold_{fold}"] for fold in range(3)]
    assert row["rule"] == "folds" and row["variance"] == pytest.approx(np.var(differences, ddof=1) / 3), "one training a fold"
    assert entries(main_table)["fair"].dagger == (row["p_holm"] < 0.05)
    assert "Each row of the file is taken as a patient." in paired.notes[0]
    assert over_folds.tidy[0]["difference"] == pytest.approx(row["difference"])


def test_event_and_censorship_say_the_same(tmp_path):
    one, _ = predictions(tmp_path, name="a.csv")
    other, _ = predictions(tmp_path, name="b.csv", censored="event")
    a, b = (from_published.build(predictions=[path], tests=False)[0].tidy for path in (one, other))
    assert a == b


def test_models_that_dropped_cases_are_compared_on_the_rest(tmp_path):
    path, rows = predictions(tmp_path, drop={("fair", 1, 3), ("fair", 1, 4), ("poor", 0, 0)})
    main_table, paired, _ = from_published.build(predictions=[path])
    assert "fair: 3 cases that only it or only poor has are left out of the comparison." in paired.notes
    differences = []
    for fold in range(3):
        of = {m: {r[2]: r for r in rows if (r[0], r[1]) == (m, fold)} for m in ("poor", "fair")}
        common = sorted(of["poor"].keys() & of["fair"].keys())
        value = {
            m: stats.c_index(*(np.array([of[m][c][k] for c in common]) for k in (4,)), np.array([of[m][c][5] == 0 for c in common]),
                             np.array([of[m][c][3] for c in common])) for m in of
        }  # fmt: skip
        differences.append(value["fair"] - value["poor"])
    assert paired.tidy[0]["difference"] == pytest.approx(np.mean(differences))
    assert len([r for r in rows if (r[0], r[1]) == ("fair", 1)]) == 38
    own = next(r for r in main_table.tidy if r["model"] == "fair")
    mine = [r for r in rows if (r[0], r[1]) == ("fair", 1)]
    expected = stats.c_index(
        *(np.array([r[k] for r in mine]) for k in (4,)), np.array([r[5] == 0 for r in mine]), np.array([r[3] for r in mine])
    )
    assert own["fold_1"] == pytest.approx(float(expected)), "its own score keeps all of its cases"


def test_classes(tmp_path):
    rng = np.random.default_rng(0)
    target = np.arange(30) % 2
    rows = []
    for model, noise in (("abmil", 1.5), ("new", 0.3)):
        p = 1 / (1 + np.exp(-(target * 2 - 1 + noise * rng.normal(size=30))))
        rows += [(model, f"s{i:02d}", target[i], 1 - p[i], p[i]) for i in range(30)]
    path = write(tmp_path / "classes.csv", ["model", "slide_id", "label", "p_0", "p_1"], rows)
    main_table, paired, *rest = from_published.build(predictions=[path])
    values = np.array([row[4] for row in rows if row[0] == "new"])
    assert main_table.tidy[1]["mean"] == pytest.approx(float(stats.auc(target == 1, values)))
    assert entries(main_table)["new"].text.count("±") == 0, "one fold has no spread"
    assert paired.tidy[0]["reference"] == "abmil"
    assert not entries(main_table)["new"].dagger, "one training on one split is seen once"
    assert np.isnan(paired.tidy[0]["p"]) and paired.tidy[0]["tolerated_sd"] >= 0 and paired.rows[1].entries[4].text == "seen once"
    assert main_table.notes[-1] == "No p-value, so no row is marked (†); see the paired comparison."
    assert rest and np.isnan(rest[0].tidy[0]["p_nadeau_bengio"])


def test_only_censored_cases_give_a_dash_and_say_why(tmp_path):
    path, _ = predictions(tmp_path, change=lambda row: [*row[:5], 1] if row[1] == 1 else row)
    main_table, paired, _ = from_published.build(predictions=[path])
    assert entries(main_table)["fair"].mark == "a"
    assert main_table.notes[0] == "(a) over 2 of 3 folds, not ranked."
    assert np.isnan(paired.tidy[0]["p"])


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        (["fold", "auc"], [(0, 1)], "no column for the model; name it model or method or aggregator. The columns are fold, auc"),
        (
            ["model", "auc"],
            [("a", 1)],
            "no column for the fold; name it fold or folds or split or run or seed. The columns are model, auc",
        ),
        (["model", "fold", "loss"], [("a", 0, 1)], "no column with scores; .*columns are model, fold, loss"),
        (["model", "Method", "fold", "auc"], [("a", "a", 0, 1)], "model and Method could both be the model"),
        (["model", "fold", "auc"], [("a", 0, 1), ("a", 0, 2)], "row 3: a has fold 0 twice"),
        (["model", "fold", "auc"], [("a", 0, "x")], "row 2: auc is 'x', not a number"),
        (["model", "fold", "auc"], [("a", 0)], "row 2: not 3 fields as in the header"),
        (["model", "fold", "auc"], [], "the table has no rows"),
    ],
)
def test_wrong_folds(tmp_path, head, rows, message):
    with pytest.raises(MilbenchError, match=message):
        from_published.build([write(tmp_path / "x.csv", head, rows)])


SURVIVAL = ["model", "case", "risk", "time", "event"]


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        (
            ["model", "case", "risk", "time"],
            [("a", "c", 1, 1)],
            "no column for the outcome; name it event or status or censorship",
        ),
        (
            ["model", "case", "risk", "event"],
            [("a", "c", 1, 1)],
            "no column for the time; name it time or survival months",
        ),
        (
            ["model", "case", "score"],
            [("a", "c", 1)],
            "no predictions; they are columns risk, time and event or censorship, or target and p0",
        ),
        (["model", "case", "target", "p0", "p2"], [("a", "c", 1, 1, 0)], "no predictions"),
        (["model", "case", "target", "p0", "p1"], [("a", "c", 2, 1, 0)], "row 2: target is 2, there are scores for 0 to 1"),
        (["model", "risk", "time", "event"], [("a", 1, 1, 1)], "no column for the case"),
        (SURVIVAL, [("a", "c", 1, 1, 2)], "row 2: event is 2, it must be 0 or 1"),
        (SURVIVAL, [("a", "c", "", 1, 1)], "row 2: risk is missing"),
        (SURVIVAL, [("a", "c", 1, 1, 1)] * 2, "row 3: case c comes twice"),
        (SURVIVAL, [("a", "c", 1, 1, 1), ("b", "c", 1, 2, 1)], "b and a, fold 0, differ in what happened to case c"),
    ],
)
def test_wrong_predictions(tmp_path, head, rows, message):
    with pytest.raises(MilbenchError, match=message):
        from_published.build(predictions=[write(tmp_path / "x.csv", head, rows)])


def test_command(tmp_path):
    folds = write(tmp_path / "f.csv", ["cohort", "model", "fold", "auc"], FOLDS)
    risks, _ = predictions(tmp_path)
    args = ["report", "--from", "published", "--folds", folds, "--predictions", risks, "--reports", tmp_path / "r"]
    milbench(*args)
    out = tmp_path / "r" / "published"
    for name in ("f", "f-over-folds", "risks", "risks-paired", "risks-over-folds", "claims-printed"):
        for suffix in ("tex", "md", "csv"):
            assert (out / "tables" / f"{name}.{suffix}").stat().st_size, name
    for form in ("report.html", "report.tex", "report.md"):
        text = (out / form).read_text()
        assert "third" in text or "input{tables/f}" in text
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    milbench(*args)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--from", "published", "--suite", "x"], 2, "--suite belongs to results"),
        (["--folds", "x.csv"], 2, "belong to --from published"),
        (["--from", "published", "--folds", "absent.csv"], 2, "table absent.csv does not exist"),
    ],
)
def test_wrong_use_of_the_command(tmp_path, args, code, message):
    assert message in milbench("report", *args, "--reports", tmp_path / "r", code=code)
    assert not (tmp_path / "r").exists()


def test_reference(tmp_path):
    path = write(tmp_path / "f.csv", ["cohort", "model", "fold", "auc"], FOLDS)
    assert {r["reference"] for r in from_published.build([path], reference="third_one")[1].tidy} == {"third_one"}
    other = write(tmp_path / "g.csv", ["model", "fold", "auc"], [(m, f, f / 10) for m in ("amil", "z") for f in range(3)])
    *_, last = from_published.build([path, other], reference="third_one")
    assert last.tidy[0]["reference"] == "amil", "a file without that model has its own"
    with pytest.raises(MilbenchError, match="did you mean third_one"):
        from_published.build([path], reference="third_on")


def test_hipt_prints_what_its_files_give(shared):
    """Mean ± sample standard deviation as HIPT's authors, and after them the LongMIL paper, print them."""
    table, over_folds = from_published.build([shared / "data" / "published_results" / "hipt_survival_folds.csv"])
    column = {group: i for i, (group, _) in enumerate(table.headers)}
    printed = {
        ("AMIL", "coadread"): "0.566 ± 0.075", ("AMIL", "stad"): "0.562 ± 0.049", ("MIFCN", "coadread"): "0.561 ± 0.088",
        ("MIFCN", "stad"): "0.563 ± 0.067", ("DSMIL", "coadread"): "0.538 ± 0.049", ("DSMIL", "stad"): "0.513 ± 0.069",
        ("DGCN", "coadread"): "0.470 ± 0.053", ("DGCN", "stad"): "0.546 ± 0.047", (HIPT, "coadread"): "0.608 ± 0.088",
        (HIPT, "stad"): "0.570 ± 0.081", (HIPT, "brca"): "0.634 ± 0.050",
    }  # fmt: skip
    for (model, cohort), text in printed.items():
        assert entries(table, column[cohort])[model].text == text
    assert {row["reference"] for row in over_folds.tidy} == {"AMIL"}
    assert min(row["p_wilcoxon"] for row in over_folds.tidy) >= 0.0625


HIPT = "HIPT_LGP[vit4k_xs_dino]_freeze_[None]"


def test_patchgcn_c_indices_are_the_recomputed_ones(shared):
    folder = shared / "data" / "published_results"
    table, paired, _ = from_published.build(predictions=[folder / "patchgcn_brca_predictions.csv.gz"])
    with (folder / "patchgcn_brca_cindex_by_fold.csv").open() as file:
        expected = {row["model"]: row for row in csv.DictReader(file)}
    harrell = {row["model"]: row for row in table.tidy if row["score"] == "c_index_harrell"}
    assert harrell.keys() == expected.keys()
    for model, row in expected.items():
        for fold in "01234":
            assert harrell[model][f"fold_{fold}"] == pytest.approx(float(row[fold]), abs=1e-9)
        assert harrell[model]["mean"] == pytest.approx(float(row["mean"]), abs=1e-9)
    constant = next(row for row in paired.tidy if row["model"] == "DSsm")
    assert constant["difference"] == pytest.approx(0.5 - float(expected["AMILsm"]["mean"]), abs=1e-3)
    assert json.dumps([row["losses"] for row in paired.tidy if row["model"] == "DSsm"]) == "[5, 5]"
