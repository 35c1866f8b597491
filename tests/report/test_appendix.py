"""The appendix's tables against the tests they print, and what they say when data are missing."""

import csv
import hashlib

import numpy as np
import pytest

from milbench import MilbenchError, stats
from milbench.compare import pairing, with_reference
from milbench.metrics import METRICS
from milbench.reading import Run
from milbench.report import appendix, ranks, tables
from milbench.report.render import markdown
from milbench.stats import PairedFold
from milbench.trials.plan import Cell, Plan
from milbench.trials.store import Store


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(pairing, "REPLICATES", 400)


STRENGTH = {"abmil": 1.0, "longmil": 2.0, "odd_name & 100% #1": 0.2}


def run(store, method, predictions, *, fold=0, seed=0, status="ok", **place):
    """A finished run, as the store would give it."""
    column = {"dataset": "toy", "encoder": "none", "magnification": None, "patch_size": None, "split": "kfold", **place}
    cell = Cell(
        trial_id=hashlib.sha256(repr((method, fold, seed, sorted(column.items(), key=str))).encode()).hexdigest()[:16], context="", aggregator=method, label=method.upper(), fold=fold, seed=seed,
        dataset_label=column["dataset"].upper(), **column,
    )  # fmt: skip
    if "risk" in predictions:
        metrics = {"c_index": stats.c_index(predictions["time"], predictions["event"], predictions["risk"])}
    else:
        metrics = {name: getattr(stats, name)(predictions["target"], predictions["score"]) for name in ("macro_auc", "macro_f1")}
    metrics = {name: None if np.isnan(value) else float(value) for name, value in metrics.items()}
    result = {
        "metrics": {"test": metrics}, "messages": [],
        "spec": {
            "dataset": column["dataset"], "split": column["split"], "split_fingerprint": "sha256:9", "unit": "slide", "standardise": False,
            "recipe": {
                "name": "paper", "optimiser": "adamw", "lr": 1e-4, "weight_decay": 0.0, "schedule": "constant", "accumulate": 1, "clip": 0,
                "sampling": "shuffle", "patience": 0, "max_epochs": 1, "select": "last",
            },
        },
    }  # fmt: skip
    made = Run(cell, status, result if status == "ok" else {}, store)
    made.__dict__["predictions"] = predictions
    return made


def made_up(root, *, folds=1, seeds=1, classes=2, n=24, methods=STRENGTH, **place):
    runs, store = [], Store(root)
    for fold in range(folds):
        target, slide = np.arange(n) % classes, np.array([f"{fold}-{i:02d}" for i in range(n)])
        for seed in range(seeds):
            for number, (method, strength) in enumerate(methods.items()):
                rng = np.random.default_rng([fold, seed, number])
                logits = strength * np.eye(classes)[target] + rng.normal(size=(n, classes))
                score = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
                runs.append(run(store, method, {"slide": slide, "target": target, "score": score}, fold=fold, seed=seed, **place))
    return runs


def plan_of(runs, metrics=("macro_auc", "macro_f1"), columns=("metric",)):
    layout = {"name": "made-up", "columns": list(columns), "metrics": list(metrics), "groups": [], "reference": "abmil"}
    grid = {"aggregator": list(dict.fromkeys(r.cell.aggregator for r in runs))}
    definition = {"title": "Made up", "table": layout, "grid": grid, "task": "subtyping"}
    return Plan(suite="made-up", definition=definition, cells=[r.cell for r in runs])


def build(runs, **keys):
    plan = plan_of(runs, **keys)
    compared = with_reference(plan, runs)
    return {table.name: table for table in appendix.build(plan, runs, compared)}, tables.build(plan, runs, compared)[1]


def column(table, group, label, method):
    at = table.headers.index((group, label))
    return next(row for row in table.rows if row.label == method.upper()).entries[at]


def direct(runs, method, reference="abmil"):
    """The paired folds of two methods, put together by hand."""
    of = {(r.cell.aggregator, r.cell.fold, r.cell.seed): r.predictions for r in runs}
    folds = sorted({r.cell.fold for r in runs})
    seeds = sorted({r.cell.seed for r in runs})
    both = [[np.stack([of[m, f, s]["score"] for s in seeds]) for m in (method, reference)] for f in folds]
    return [PairedFold(of[method, f, 0]["target"], *pair) for f, pair in zip(folds, both, strict=True)]


def write_split(root, train, test):
    path = root / "splits" / "toy-kfold-9.csv"
    path.parent.mkdir()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fold", "part", "id", "case"])
        for fold, (a, b) in enumerate(zip(train, test, strict=True)):
            writer.writerows(
                [fold, part, f"{part}{i}", ""] for part, n in (("train", a), ("val", 3), ("test", b)) for i in range(n)
            )


def test_every_number_is_the_tests_own(tmp_path):
    runs = made_up(tmp_path, folds=3, seeds=2)
    write_split(tmp_path, [50, 40, 60], [24, 24, 24])
    found, paired = build(runs)
    auc, f1 = found["made-up-tests-macro-auc"], found["made-up-tests-macro-f1"]
    tidy = {(row["aggregator"], row["metric"], row["test"].split()[0]): row for table in (auc, f1) for row in table.tidy}
    assert len(tidy) == 2 * 5 + 2 * 5
    for method in ("longmil", "odd_name & 100% #1"):
        folds = direct(runs, method)
        seed = f"{tuple(runs[0].column)}|macro_auc"
        assert tidy[method, "macro_auc", "DeLong"]["p"] == pytest.approx(stats.delong(folds).p)
        expected = stats.permutation(folds, "macro_auc", replicates=pairing.REPLICATES, seed=seed)
        assert tidy[method, "macro_auc", "permutation"]["p"] == expected.p
        assert tidy[method, "macro_auc", "permutation"]["effect"] == pytest.approx(expected.effect)
        runs_of = [
            [
                tuple((lambda w, s=s, y=f.target: stats.macro_auc(y, s, w)) for s in pair)
                for pair in zip(f.method, f.reference, strict=True)
            ]
            for f in folds
        ]
        drawn = [(f.target, of_fold) for f, of_fold in zip(folds, runs_of, strict=True)]
        expected = stats.paired_bootstrap(drawn, replicates=pairing.REPLICATES, most=800, seed=seed)
        bootstrap = tidy[method, "macro_auc", "paired"]
        assert (bootstrap["p"], bootstrap["effect_low"], bootstrap["smallest_p"]) == (expected.p, expected.low, expected.smallest)
        assert column(auc, "bootstrap", "smallest p", method).text == f"{expected.smallest:.3g}"
        assert tidy[method, "macro_f1", "McNemar"]["p"] == pytest.approx(stats.mcnemar(folds).p)
        differences = [
            np.mean(
                [stats.macro_auc(f.target, a) - stats.macro_auc(f.target, b) for a, b in zip(f.method, f.reference, strict=True)]
            )
            for f in folds
        ]
        expected = stats.nadeau_bengio(differences, [50, 40, 60], [24, 24, 24])
        assert tidy[method, "macro_auc", "Nadeau-Bengio"]["p"] == pytest.approx(expected.p)
        assert tidy[method, "macro_auc", "Nadeau-Bengio"]["effect_low"] == pytest.approx(expected.low)
        assert tidy[method, "macro_auc", "Wilcoxon"]["p"] == pytest.approx(stats.wilcoxon(differences).p)
        primary = next(row for row in paired.tidy if (row["aggregator"], row["metric"]) == (method, "macro_auc"))
        for test in ("DeLong", "permutation", "Nadeau-Bengio"):
            assert tidy[method, "macro_auc", test]["effect"] == pytest.approx(primary["difference"]), "one effect, many tests"
        assert column(auc, "", "95 % interval", method).text == f"[{primary['low']:+.3f}, {primary['high']:+.3f}]"
        assert column(auc, "Wilcoxon", "smallest p", method).text == "0.25", "three folds"
    for table in (auc, f1):
        for head, test in (("permutation", "permutation"), ("Nadeau-Bengio", "Nadeau-Bengio")):
            p = [row["p"] for row in table.tidy if row["test"].startswith(test)]
            for method, corrected in zip(("longmil", "odd_name & 100% #1"), stats.holm(p), strict=True):
                assert column(table, head, "p", method).dagger == (corrected < 0.05)
    assert any(entry.dagger for row in auc.rows for entry in row.entries)
    assert f"| {column(auc, 'Wilcoxon', 'p', 'longmil').text} |" in markdown.table(auc)


def test_each_test_says_what_it_assumes(tmp_path):
    found, _ = build(made_up(tmp_path, folds=2))
    notes = " ".join(found["made-up-tests-macro-auc"].notes + found["made-up-tests-macro-f1"].notes)
    for words in (
        "not seed-mean ones",
        "SEED-MEAN probabilities",
        "exchangeable case by case",
        "1/J + n_test/n_train",
        "smallest one",
    ):
        assert words in notes
    assert "UNPAIRED" in found["made-up-anova"].notes[0]


def test_without_the_splits_file_there_is_no_nadeau_bengio_and_it_is_said(tmp_path):
    found, _ = build(made_up(tmp_path, folds=2))
    table = found["made-up-tests-macro-auc"]
    assert column(table, "Nadeau-Bengio", "p", "longmil").text == "–"
    assert "Nadeau-Bengio not computed (the file of the split is not here): LONGMIL, ODD_NAME & 100% #1." in table.notes


def test_five_seeds_on_one_split(tmp_path):
    """No star below what five runs allow, and no correction for training sets that are all the same."""
    found, _ = build(made_up(tmp_path, seeds=5, classes=3, methods={"abmil": 0.2, "longmil": 3.0}))
    table = found["made-up-tests-macro-auc"]
    assert {group for group, _ in table.headers} == {"", "bootstrap", "permutation", "Wilcoxon"}
    entry = column(table, "Wilcoxon", "p", "longmil")
    assert (entry.text, entry.dagger) == ("0.0625", False)
    assert column(table, "Wilcoxon", "smallest p", "longmil").text == "0.0625"
    assert column(table, "permutation", "p", "longmil").dagger
    assert column(table, "", "chance", "longmil").text == "1.00"
    assert any("seeds that share one split are not" in note for note in table.notes)


def test_one_seed_has_no_test_over_runs(tmp_path):
    found, _ = build(made_up(tmp_path))
    assert {group for group, _ in found["made-up-tests-macro-auc"].headers} == {"", "bootstrap", "DeLong", "permutation"}
    row = found["made-up-anova"].rows[0]
    assert [entry.text for entry in row.entries] == ["3", "3", "–", "–"]
    assert found["made-up-anova"].tidy == []


def test_a_single_class_in_a_fold(tmp_path):
    runs = made_up(tmp_path, folds=2)
    single = [
        run(r.store, r.cell.aggregator, {**r.predictions, "target": np.zeros(24, int)}, fold=1) for r in runs if r.cell.fold == 1
    ]
    found, _ = build([r for r in runs if r.cell.fold == 0] + single)
    table = found["made-up-tests-macro-auc"]
    row = next(row for row in table.rows if row.label == "LONGMIL")
    assert {entry.text for entry in row.entries if entry.text not in ("1/0/0",)} == {"–"}
    assert "DeLong not computed (a fold lacks a class): LONGMIL, ODD_NAME & 100% #1." in table.notes
    assert "Wilcoxon not computed (the metric is undefined in some runs): LONGMIL, ODD_NAME & 100% #1." in table.notes
    assert column(found["made-up-tests-macro-f1"], "permutation", "p", "longmil").text != "–"


def survival(root, folds=3, event=lambda i: i % 3 > 0):
    runs, n = [], 20
    for fold in range(folds):
        rng = np.random.default_rng(fold)
        time = rng.random(n)
        for method, noise in (("abmil", 1.0), ("longmil", 0.1)):
            risk = -time + noise * rng.normal(size=n)
            data = {
                "slide": np.arange(n).astype(str),
                "time": time,
                "event": np.array([event(i) for i in range(n)]),
                "risk": risk,
            }
            runs.append(run(Store(root), method, data, fold=fold))
    return runs


def test_survival_has_tests_over_folds_only(tmp_path):
    write_split(tmp_path, [80] * 3, [20] * 3)
    found, _ = build(survival(tmp_path), metrics=["c_index"])
    table = found["made-up-tests-c-index"]
    assert {group for group, _ in table.headers} == {"", "bootstrap", "Nadeau-Bengio", "Wilcoxon"}
    assert column(table, "", "W/T/L", "longmil").text == "3/0/0"
    assert column(table, "", "95 % interval", "longmil").text != "–"


def test_survival_without_an_event(tmp_path):
    write_split(tmp_path, [80] * 3, [20] * 3)
    found, paired = build(survival(tmp_path, event=lambda i: False), metrics=["c_index"])
    assert np.isnan(paired.tidy[0]["p"])
    table = found["made-up-tests-c-index"]
    assert "Nadeau-Bengio not computed (the metric is undefined in some runs): LONGMIL." in table.notes


def test_runs_without_a_partner_are_left_out(tmp_path):
    runs = made_up(tmp_path, seeds=3)
    partial = [r for r in runs if (r.cell.aggregator, r.cell.seed) not in {("longmil", 1), ("abmil", 2)}]
    pair = [r for r in runs if r.cell.aggregator in ("longmil", "abmil") and r.cell.seed == 0]
    table, alone = (build(some)[0]["made-up-tests-macro-f1"] for some in (partial, pair))
    assert column(table, "", "W/T/L", "longmil").text == "4/0/0", "the primary test takes every training"
    for group, label in (("McNemar", "p"), ("permutation", "p")):
        assert column(table, group, label, "longmil").text == column(alone, group, label, "longmil").text
    assert column(table, "Wilcoxon", "p", "longmil").text == "–", "one pair is no sample"
    assert column(table, "Wilcoxon", "smallest p", "odd_name & 100% #1").text == "0.5", "two pairs"


def test_runs_that_test_other_slides_are_never_paired(tmp_path):
    runs = made_up(tmp_path)
    runs[1].__dict__["predictions"] = {**runs[1].predictions, "slide": np.array([f"9-{i:02d}" for i in range(24)])}
    with pytest.raises(MilbenchError, match="test other slides, they cannot be paired"):
        with_reference(plan_of(runs), runs)


def test_anova_is_over_all_runs(tmp_path):
    runs = made_up(tmp_path, folds=2, seeds=2)
    found, _ = build(runs)
    groups = [[r.metric("macro_f1") for r in runs if r.cell.aggregator == m] for m in STRENGTH]
    row = next(row for row in found["made-up-anova"].tidy if row["metric"] == "macro_f1")
    assert (row["p"], row["methods"], row["n"]) == (pytest.approx(stats.anova(groups).p), 3, 12)


METHODS = {"abmil": 0.5, "longmil": 1.5, "mean": -0.5, "dsmil": 0.7}


def blocks(root, n=6, methods=METHODS):
    """`n` encoders of one dataset, four methods, two seeds."""
    return [r for e in range(n) for r in made_up(root, seeds=2, methods=methods, n=20 + 2 * e, encoder=f"encoder_{e}")]


def test_ranks_are_those_of_the_means(tmp_path):
    runs = blocks(tmp_path)
    table = build(runs, metrics=["macro_auc"], columns=["encoder", "metric"])[0]["made-up-ranks-macro-auc"]
    means = [
        [
            np.mean([r.metric("macro_auc") for r in runs if (r.cell.aggregator, r.cell.encoder) == (m, f"encoder_{e}")])
            for m in METHODS
        ]
        for e in range(6)
    ]
    expected = stats.ranking(list(METHODS), means)
    assert {row.label.lower(): row.entries[0].text for row in table.rows} == {
        m: f"{rank:.2f}" for m, rank in expected.mean_rank.items()
    }
    pair = next(p for p in expected.pairs if {p.first, p.second} == {"abmil", "longmil"})
    assert (pair.first, pair.second) == ("longmil", "abmil")
    row = next(row for row in table.rows if row.label == "LONGMIL")
    cd = expected.critical_difference
    assert [entry.text for entry in row.entries[1:4]] == [
        f"{pair.rank_difference:+.2f}", f"[{pair.rank_difference - cd:+.2f}, {pair.rank_difference + cd:+.2f}]",
        f"{pair.wins}/{pair.ties}/{pair.losses}",
    ]  # fmt: skip
    assert row.entries[5].text == "0.0312", "six blocks"
    assert len(table.tidy) == 6
    assert any("slides of 1 dataset only, so they are NOT independent" in note for note in table.notes)
    worse = next(row for row in table.rows if row.label == "MEAN").entries[1].text
    assert worse.startswith("+"), "a method with a worse rank than the reference"


def test_fewer_than_five_blocks_are_not_ranked(tmp_path):
    runs = blocks(tmp_path, n=4)
    assert ranks.ranks("x", runs, METRICS["macro_auc"], "abmil") is None
    assert ranks.critical_difference("x", runs, METRICS["macro_auc"]) is None


def test_incomplete_methods_are_left_out_and_named(tmp_path):
    runs = [r for r in blocks(tmp_path) if (r.cell.aggregator, r.cell.encoder, r.cell.seed) != ("dsmil", "encoder_3", 1)]
    table = ranks.ranks("x", runs, METRICS["macro_auc"], "abmil")
    assert {row.label for row in table.rows} == {"ABMIL", "LONGMIL", "MEAN"}
    assert "Left out, since not complete in every block: DSMIL." in table.notes
    two = [r for r in runs if r.cell.aggregator not in ("mean", "dsmil")]
    assert ranks.ranks("x", two, METRICS["macro_auc"], "abmil") is None


def test_patch_sizes_of_one_block_count_once(tmp_path):
    runs = blocks(tmp_path, n=5)
    other = made_up(tmp_path, seeds=2, methods={"abmil": 3.0, "longmil": 0.0, "mean": 0.1}, encoder="encoder_0", patch_size=448)
    assert (
        ranks.ranks("x", other + runs, METRICS["macro_auc"], "abmil").tidy
        == ranks.ranks("x", runs, METRICS["macro_auc"], "abmil").tidy
    )


def test_ranks_without_the_reference(tmp_path):
    table = ranks.ranks("x", blocks(tmp_path), METRICS["macro_auc"], "transmil")
    assert {entry.text for row in table.rows for entry in row.entries[1:]} == {"–"}
    assert table.headers[1][0] == "transmil is not in every block"


def test_critical_difference_diagram(tmp_path):
    runs = blocks(tmp_path, methods={**METHODS, "odd_$x$ & 100% #1": 0.9})
    figure = ranks.critical_difference("x", runs, METRICS["macro_auc"])
    table = ranks.ranks("x", runs, METRICS["macro_auc"], "abmil")
    assert [(row["label"], f"{row['mean_rank']:.2f}") for row in figure.rows] == [
        (r.label, r.entries[0].text) for r in table.rows
    ]
    assert "NOT independent" in figure.caption
    first, second = figure.save(tmp_path / "a"), figure.save(tmp_path / "b")
    for kind in ("png", "pdf", "csv"):
        assert getattr(first, kind).read_bytes() == getattr(second, kind).read_bytes()
    drawing = figure.draw()
    words = {text.get_text().strip() for text in drawing.axes[0].texts}
    for row in figure.rows:
        assert words & {f"{row['label']} ({row['mean_rank']:.2f})", f"({row['mean_rank']:.2f}) {row['label']}"}
    assert f"CD = {figure.rows[0]['critical_difference']:.2f}" in words
    bars = [line.get_xdata() for line in drawing.axes[0].lines if line.get_color() == "#444444"]
    assert bars
    assert all(list(bar) == sorted(bar) for bar in bars), "a set's order differs from process to process, and so would the file"
