"""Two methods against each other: the primary test on stored runs, in Python and on one screen."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from rich.console import Console

import milbench
from milbench import MilbenchError, stats
from milbench.cli import show
from milbench.compare.methods import disagreement
from milbench.metrics import METRICS
from milbench.stats.metrics import concordance_by_case
from milbench.trials.plan import Plan, merge
from milbench.trials.store import PREDICTIONS, Store
from tests.builders import command
from tests.builders.results import cell_of, finished, spec

N = 18
TARGET = np.arange(N) % 3
PATIENTS = [f"P{i // 3}" if i < 9 else f"P{i // 2}" for i in range(N)]  # three slides, then one or two each
SLIDES = [f"S{i:02d}" for i in range(N)]


pytestmark = pytest.mark.usefixtures("unflushed")


def scores(*key, noise=1.0, n=N):
    """(n, 3) probabilities with nine digits, as a file holds them."""
    rng = np.random.default_rng(key)
    x = np.exp(np.eye(3)[np.arange(n) % 3] + noise * rng.normal(size=(n, 3)))
    return np.array([[float(f"{v:.9g}") for v in row] for row in x / x.sum(1, keepdims=True)])


def table(columns):
    lines = zip(*columns.values(), strict=True)
    return "\n".join([",".join(columns), *(",".join(map(str, line)) for line in lines)]) + "\n"


def subtyping(score, fold=0, patients=PATIENTS, slides=SLIDES, target=TARGET):
    """The metrics and the predictions of a run."""
    metrics = {name: float(getattr(stats, name)(target, score)) for name in ("macro_auc", "macro_f1")}
    classes = {f"p{c}": [f"{v:.9g}" for v in score[:, c]] for c in range(3)}
    return metrics, table({"slide": slides, "case": patients, "fold": [fold] * len(slides), "target": target, **classes})


def survival(risk, time, event, patients, fold=0):
    slides = [f"f{fold}-{i:02d}" for i in range(len(risk))]
    columns = {
        "slide": slides,
        "case": patients,
        "fold": [fold] * len(risk),
        "time": time,
        "event": [int(e) for e in event],
        "risk": risk,
    }
    return {"c_index": float(stats.c_index(time, event, risk))}, table(columns)


def stored(root, runs, *, suite="made-up", **changes):
    """A store with runs {(method, fold, seed): what `subtyping` or `survival` gives, or a status}."""
    store, cells = Store(root), []
    for (method, fold, seed), run in runs.items():
        trial = spec(aggregator=method.split("[")[0], fold=fold, seed=seed, params={"hidden": 8, "gated": True}, **changes)
        if "[" in method:
            trial = trial.model_copy(update={"params": {"hidden": 8, "gated": "gated=true" in method}})
        cells.append(replace(cell_of(trial, method.upper()), aggregator=method))
        if run == "failed":
            store.write(finished(trial, status="failed", metrics={}, reason="because"))
        elif run != "pending":
            metrics, text = run
            store.write(finished(trial, metrics), {PREDICTIONS: lambda path, text=text: path.write_text(text)})
    definition = {
        "title": "Made up", "task": changes.get("task", "subtyping"), "grid": {"aggregator": sorted({method for method, *_ in runs})},
        "table": {"name": suite, "metrics": ["macro_auc"]},
    }  # fmt: skip
    merge(store, Plan(suite=suite, definition=definition, cells=cells))
    return root


def two_methods(**of_each):
    """Three trainings of abmil and two of mean on one split, under other seeds."""
    noise = {"abmil": 0.8, "mean": 1.5}
    seeds = {"abmil": (0, 1, 2), "mean": (7, 9)}
    return {
        (name, 0, seed): subtyping(scores(at, seed, noise=noise[name]), **of_each)
        for at, name in enumerate(seeds)
        for seed in seeds[name]
    }


def by_hand(metric, patients, target=TARGET):
    function = getattr(stats, metric)
    sides = [
        [scores(at, seed, noise=noise) for seed in seeds] for at, (noise, seeds) in enumerate([(0.8, (0, 1, 2)), (1.5, (7, 9))])
    ]
    runs = [[lambda weight, s=s: function(target, s, weight) for s in side] for side in sides]
    return sides, stats.primary([stats.Fold(*runs, target, patients)])


@pytest.mark.parametrize("metric", ["macro_auc", "macro_f1", "brier"])
def test_the_numbers_are_those_of_the_primary_test(tmp_path, metric):
    (found,) = milbench.compare("abmil", "mean", metric=metric, results=stored(tmp_path, two_methods())).columns
    sides, expected = by_hand(metric, PATIENTS)
    assert (found.test, found.p_holm, found.notes) == (expected, expected.p, ())
    assert found.test.patients == len(set(PATIENTS)) and found.test.trainings == (3, 2) and found.test.patients_known
    a, b = ([stats.rounded(float(getattr(stats, metric)(TARGET, s)), step=stats.STEP) for s in side] for side in sides)
    sign = METRICS[metric].direction
    assert found.chance == stats.outperforming([sign * np.array(a)], [sign * np.array(b)])
    ahead = sign * np.subtract.outer(a, b)
    assert found.tally == ((ahead > stats.TINY).sum(), (abs(ahead) <= stats.TINY).sum(), (ahead < -stats.TINY).sum())
    assert found.planning.now == stats.planned(expected) and found.planning.seeds == stats.planned(expected, seeds=2)
    assert found.planning.needed == stats.needed(expected, expected.difference)
    assert found.means == (pytest.approx(np.mean(a)), pytest.approx(np.mean(b)))


def test_the_oracle_of_one_split(tmp_path, shared):
    oracle = json.loads((shared / "cases" / "statistics" / "primary_one_split.json").read_text())
    target, patients = np.array(oracle["target"]), [f"P{p}" for p in oracle["patient"]]
    slides = [f"S{i:02d}" for i in range(len(target))]
    runs = {
        (name, 0, seed): subtyping(np.array(score), patients=patients, slides=slides, target=target)
        for name, side in (("abmil", "method"), ("mean", "reference"))
        for seed, score in enumerate(oracle[side])
    }
    root = stored(tmp_path, runs)
    for metric, expected in oracle["expected"].items():
        (found,) = milbench.compare("abmil", "mean", metric=metric, results=root).columns
        for name in ("difference", "variance", "df", "p", "low", "high"):
            assert getattr(found.test, name) == pytest.approx(expected[name], abs=1e-9, rel=1e-9), (metric, name)
        assert found.test.fixed.p == pytest.approx(expected["fixed_p"], abs=1e-9)


def three_folds(shared):
    oracle = json.loads((shared / "cases" / "statistics" / "primary_three_folds.json").read_text())
    runs = {
        (name, k, seed): survival(np.array(risk), fold["time"], np.array(fold["event"], dtype=bool), [f"f{k}-P{p}" for p in fold["patient"]], k)
        for k, fold in enumerate(oracle["folds"])
        for name, side in (("abmil", "method"), ("mean", "reference"))
        for seed, risk in enumerate(fold[side])
    }  # fmt: skip
    return oracle, runs


def test_the_oracle_of_three_folds_of_survival(tmp_path, shared):
    oracle, runs = three_folds(shared)
    (found,) = milbench.compare("abmil", "mean", results=stored(tmp_path, runs, task="survival")).columns
    expected = oracle["expected"]["two_trainings"]
    assert found.metric.name == "c_index" and found.folds == (0, 1, 2)
    for name in ("difference", "variance", "df", "p"):
        assert getattr(found.test, name) == pytest.approx(expected[name], abs=1e-9, rel=1e-9), name
    top, first = found.slides[0], oracle["folds"][found.slides[0].fold]
    a, b = (
        np.mean([concordance_by_case(first["time"], np.array(first["event"], dtype=bool), r) for r in first[side]], axis=0)
        for side in ("method", "reference")
    )
    at = int(top.slide[-2:])
    assert (top.a, top.b) == (pytest.approx(a[at]), pytest.approx(b[at]))
    assert top.truth == f"{'event' if first['event'][at] else 'censored'} at {first['time'][at]:g}"
    with pytest.raises(MilbenchError, match="macro_f1 is a metric of subtyping, this is survival"):
        milbench.compare("abmil", "mean", metric="macro_f1", results=tmp_path)


def test_one_training_a_side_is_seen_once_without_a_p_value(tmp_path):
    runs = two_methods()
    root = stored(tmp_path, {key: runs[key] for key in (("abmil", 0, 0), ("mean", 0, 7))})
    found = milbench.compare("abmil", "mean", results=root)
    (only,) = found.columns
    assert only.seen_once and math.isnan(only.test.p) and math.isnan(only.p_holm) and not only.better
    said = screen("abmil", "mean", "--results", str(root))
    assert "seen once: a side has one training on one split" in said and "tolerated sd" in said
    assert "p = " not in said.split("these models")[0]
    assert "no p-value: a side has one training" in str(found)


def test_slides_of_most_disagreement_stand_by_patient(tmp_path):
    (found,) = milbench.compare("abmil", "mean", results=stored(tmp_path, two_methods())).columns
    sides, _ = by_hand("accuracy", PATIENTS)
    a, b = (np.mean([s[np.arange(N), TARGET] for s in side], axis=0) for side in sides)
    order = np.argsort(-np.abs(a - b))
    assert [slide.slide for slide in found.slides] == [SLIDES[i] for i in order]
    assert found.slides[0].difference == pytest.approx((a - b)[order[0]])
    shown = disagreement(found.slides, 8)
    assert {slide.slide for slide in shown} == {SLIDES[i] for i in order[:8]}
    together = [patient for patient, _ in groupby(shown, key=lambda slide: slide.patient)]
    assert len(together) == len(set(together)) < 8
    assert together[0] == found.slides[0].patient


@pytest.mark.parametrize(
    ("patients", "known", "says"),
    [
        (SLIDES, False, "No patients are named: slides are taken as patients"),
        (["", *SLIDES[1:]], False, "No patients are named"),
        (["", "S01", *PATIENTS[2:]], True, "2 of 18 slides name no patient; each is taken as a patient of its own."),
    ],
)
def test_missing_patients_are_told(tmp_path, patients, known, says):
    (found,) = milbench.compare("abmil", "mean", results=stored(tmp_path, two_methods(patients=patients))).columns
    taken = [*SLIDES[:2], *PATIENTS[2:]] if known else None
    assert found.test == by_hand("macro_auc", taken)[1]
    assert found.test.patients_known == known
    assert found.notes[0].startswith(says)
    assert ("trainings, 18 slides" in screen("abmil", "mean", "--results", str(tmp_path))) != known


def test_cases_are_patients(tmp_path):
    (found,) = milbench.compare("abmil", "mean", results=stored(tmp_path, two_methods(patients=SLIDES), unit="case")).columns
    assert found.test.patients_known and found.notes == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slides": [f"T{i:02d}" for i in range(N)]}, "test other slides"),
        ({"target": TARGET[::-1].copy()}, "hold another target for the same slides"),
        ({"patients": [f"Q{i}" for i in range(N)]}, "name other patients for the same slides"),
    ],
)
def test_sides_that_test_something_else_are_not_compared(tmp_path, changes, says):
    runs = two_methods()
    runs["mean", 0, 9] = subtyping(scores(1, 9), **changes)
    with pytest.raises(MilbenchError, match=rf"abmil and mean cannot be compared: toy · none · one: trials .* {says}"):
        milbench.compare("abmil", "mean", results=stored(tmp_path, runs))


def folded(seeds, methods=("abmil", "mean")):
    """Runs of several folds; seeds: fold -> those of each method."""
    return {
        (name, fold, seed): subtyping(scores(at, fold, seed), fold, slides=[f"f{fold}-{s}" for s in SLIDES], patients=[f"f{fold}-{p}" for p in PATIENTS])
        for fold, of_each in seeds.items()
        for at, name in enumerate(methods)
        for seed in of_each[at]
    }  # fmt: skip


def test_folds_count_where_both_sides_have_them_and_gaps_are_told(tmp_path):
    runs = folded({0: ((0, 1), (0, 1, 2)), 1: ((3,), (4, 5)), 2: ((0,), ())})
    runs |= {("mean", 2, 0): "failed", ("mean", 2, 1): "pending"}
    (found,) = milbench.compare("abmil", "mean", results=stored(tmp_path, runs)).columns
    assert found.folds == (0, 1) and found.test.trainings == (3, 5) and sum(found.tally) == 2 * 3 + 1 * 2
    assert found.notes == (
        "MEAN: 2 of 7 trainings without a result (1 failed, 1 pending).",
        "Left out, since only one side has them: fold 2.",
    )


def test_folds_that_share_patients_are_told(tmp_path):
    runs = {(name, fold, 0): subtyping(scores(at, fold), fold) for fold in (0, 1) for at, name in enumerate(("abmil", "mean"))}
    (found,) = milbench.compare("abmil", "mean", results=stored(tmp_path, runs)).columns
    assert found.notes == ("Folds share test patients; the test takes folds as independent, so its intervals are too narrow.",)
    assert found.test.rule == "folds"


def several_columns(root):
    """Two encoders in one suite, and a third in another."""
    for at, (encoder, suite) in enumerate([("uni", "first"), ("resnet50", "first"), ("vits-lunit", "second")]):
        stored(root, folded({0: ((at, at + 1), (0, 1)), 1: ((0, 1), (2, at + 3))}), suite=suite, encoder=encoder)
    return root


def test_a_row_for_each_column_with_one_correction(tmp_path):
    root = several_columns(tmp_path)
    found = milbench.compare("abmil", "mean", results=root)
    encoders = [each.column.encoder for each in found.columns]
    assert sorted(encoders) == ["resnet50", "uni", "vits-lunit"]
    assert [each.p_holm for each in found.columns] == stats.holm([each.test.p for each in found.columns]).tolist()
    frame = found.frame()
    assert frame["encoder"].tolist() == encoders
    assert frame["difference"].tolist() == [each.test.difference for each in found.columns]
    assert (
        frame[["p", "p_holm", "low", "high", "these_models_low", "variance_patients", "half_width", "wins"]].notna().all().all()
    )
    assert len(milbench.compare("abmil", "mean", suite="first", results=root).columns) == 2
    assert len(str(found).splitlines()) == 4 and "toy · uni · one: macro-AUC" in str(found)
    html = found._repr_html_()  # what a notebook calls
    assert html.count("<tr") == 4 and "p_holm" in html


def test_columns_that_cannot_be_compared_stand_below(tmp_path, narrow):
    stored(tmp_path, two_methods(), encoder="uni")
    runs = {key: run for key, run in two_methods().items() if key[0] == "abmil"}
    others = [f"T{i:02d}" for i in range(N)]
    stored(tmp_path, runs | {("mean", 0, 0): subtyping(scores(1, 7), slides=others)}, encoder="resnet50")
    found = milbench.compare("abmil", "mean", results=tmp_path, metric="brier")
    assert [each.column.encoder for each in found.columns] == ["uni"] and list(found.left_out) == ["toy · resnet50 · one"]
    said = screen("abmil", "mean", "--results", str(tmp_path), "--metric", "brier")
    assert said.startswith("ABMIL minus MEAN: Brier, lower is better")
    assert "- Not compared: toy · resnet50 · one: trials" in said and "test other slides" in said


def test_who_is_better_follows_the_direction_of_the_metric(tmp_path):
    runs = {
        (name, 0, seed): subtyping(scores(seed, n=60, noise=noise + 0.01 * seed), slides=range(100, 160), patients=range(60), target=np.arange(60) % 3)
        for name, noise in (("abmil", 0.2), ("mean", 3.0))
        for seed in range(4)
    }  # fmt: skip
    root = stored(tmp_path, runs)
    for metric, sign in (("macro_auc", 1), ("brier", -1)):
        (found,) = milbench.compare("mean", "abmil", metric=metric, results=root).columns
        assert found.better == "b" and found.test.difference * sign < 0 and found.chance.chance == 0 and found.tally == (0, 0, 16)
    said = " ".join(screen("abmil", "mean", "--results", str(root)).split())
    assert "p = 0.001, for other patients and trainings: ABMIL is better" in said
    assert "would show (80 % chance) with what there is" in said


def test_a_method_whose_features_are_not_here(tmp_path):
    root = stored(tmp_path, two_methods())
    cell = replace(cell_of(spec(aggregator="max")), trial_id="", missing="no features")
    merge(
        Store(root),
        Plan(suite="more", definition=json.loads((root / "suites" / "made-up.json").read_text())["definition"], cells=[cell]),
    )
    with pytest.raises(MilbenchError, match="max and mean cannot be compared: they were never run on the same dataset"):
        milbench.compare("max", "mean", results=root)


@pytest.mark.parametrize(
    "typed", ["abmil[gated=false]", "abmil[ gated=False , hidden=8.0]", "abmil[hidden=8,gated=false]", "ABMIL[GATED=FALSE]"]
)
def test_methods_in_any_spelling(tmp_path, typed):
    runs = two_methods()
    runs |= {("abmil[gated=false]", 0, seed): subtyping(scores(5, seed)) for seed in (0, 1)}
    root = stored(tmp_path, runs)
    assert (
        milbench.compare(typed, "abmil[gated=true]", results=root).columns
        == milbench.compare("abmil[gated=false]", "ABMIL", results=root).columns
    )


def test_a_method_of_which_one_variant_was_run_needs_no_brackets(tmp_path):
    runs = two_methods() | {("max[gated=false]", 0, 0): subtyping(scores(5))}
    assert milbench.compare("max", "mean", results=stored(tmp_path, runs)).a == "MAX[GATED=FALSE]"
    stored(tmp_path, runs | {("max[gated=true]", 0, 0): subtyping(scores(6))})
    with pytest.raises(MilbenchError, match=r"max was run in several variants: max\[gated=false\], max\[gated=true\]; write one"):
        milbench.compare("max", "mean", results=tmp_path)


def test_a_label_that_means_two_methods_is_refused(tmp_path):
    path = stored(tmp_path, two_methods()) / "suites" / "made-up.json"
    path.write_text(path.read_text().replace('"ABMIL"', '"Pooling"').replace('"MEAN"', '"Pooling"'))
    with pytest.raises(MilbenchError, match="Pooling was run in several variants: abmil, mean; write one of them"):
        milbench.compare("Pooling", "mean", results=tmp_path)
    found = milbench.compare("abmil", "mean", results=tmp_path)
    assert (found.a, found.b) == ("abmil", "mean"), "names tell apart what labels do not"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["abmill", "mean"], "unknown method of .* 'abmill'; did you mean abmil"),
        (["abmil", "meen", "--suite", "made-up"], "unknown method of suite made-up 'meen'; did you mean mean"),
        (["abmil", "abmil[gated=true]"], "are the same method, abmil; write another, or give a second results folder"),
        (["abmil", "mean", "--metric", "macro_acu"], "unknown metric 'macro_acu'; did you mean macro_auc"),
        (["abmil", "mean", "--suite", "made"], "unknown suite in .* 'made'; did you mean made-up"),
        (["abmil", "max"], "abmil and max cannot be compared: toy · none · one: MAX has no finished training"),
        (["abmil", "mean", "--results-b", "nowhere"], "nothing was run into nowhere yet"),
    ],
)
def test_mistakes_are_one_line(tmp_path, words, says):
    root = stored(tmp_path, two_methods() | {("max", 0, 0): "failed"})
    told = command.milbench("compare", *words, "--results", root, code=2)
    assert len(told.splitlines()) == 1
    assert re.search(says, told)


def test_two_results_folders(tmp_path):
    first = stored(tmp_path / "one", {key: run for key, run in two_methods().items() if key[0] == "abmil"})
    again = {("abmil", 0, seed): subtyping(scores(3, seed)) for seed in (0, 1)}
    second = stored(tmp_path / "two", again, threads=2)
    found = milbench.compare("abmil", "abmil", results=first, results_b=second)
    assert (found.a, found.b) == (f"ABMIL ({first})", f"ABMIL ({second})")
    assert found.columns[0].test.trainings == (3, 2)
    assert found.columns[0].notes == ("The sides differ in more than the method: threads.",)


def test_settings_that_a_suite_must_choose(tmp_path):
    stored(tmp_path, two_methods())
    stored(tmp_path, two_methods(), suite="other", threads=2)
    with pytest.raises(MilbenchError, match=r"was run in several settings .*; choose one with a suite"):
        milbench.compare("abmil", "mean", results=tmp_path)
    assert len(milbench.compare("abmil", "mean", suite="other", results=tmp_path).columns) == 1


def screen(*words):
    return command.milbench("compare", *words)


@pytest.fixture
def narrow(monkeypatch):
    """A terminal of 80 columns."""
    monkeypatch.setattr(show, "console", lambda: Console(width=80))


def test_one_screen_of_80_columns(tmp_path, narrow):
    said = screen("abmil", "mean", "--suite", "made-up", "--results", str(stored(tmp_path, two_methods())))
    lines = said.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) <= 40
    _, test = by_hand("macro_auc", PATIENTS)
    assert lines[0] == "ABMIL minus MEAN: macro-AUC"
    assert f"1 fold, 3 + 2 trainings, {len(set(PATIENTS))} patients" in said
    for low, high in ((test.low, test.high), (test.fixed.low, test.fixed.high)):
        assert f"[{low:+.3f}, {high:+.3f}]" in said
    assert f"p = {test.p:.3f}" in said
    assert all(word in said for word in ("variance", "interaction", "planning", "half-width", "chance", "Most disagreement"))
    assert sum(line.split()[:1] != [] and any(slide in line.split() for slide in SLIDES) for line in lines) == 5


def test_several_columns_on_one_screen(tmp_path, narrow):
    said = screen("abmil", "mean", "--results", str(several_columns(tmp_path)))
    lines = said.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) <= 50
    assert "toy · one" in said and "p (Holm)" in said and "half-" in said
    assert all(sum(line.split()[:1] == [encoder] for line in lines) == 2 for encoder in ("resnet50", "uni", "vits-lunit"))


def test_json_has_everything_and_no_nan(tmp_path):
    runs = two_methods()
    root = stored(tmp_path, {key: runs[key] for key in (("abmil", 0, 0), ("mean", 0, 7))})
    whole = json.loads(screen("abmil", "mean", "--results", str(root), "--json"), parse_constant=pytest.fail)
    assert (whole["a"], whole["b"], whole["left_out"]) == ("ABMIL", "MEAN", {})
    (row,) = whole["columns"]
    assert row["p"] is None and row["why"] == stats.variance.ONE_TRAINING and row["tolerated_sd"] is not None
    assert (
        row["a"] == "ABMIL" and len(row["slides"]) == 5 and row["slides"][0].keys() >= {"slide", "patient", "truth", "difference"}
    )


@pytest.mark.parametrize(
    "before",
    [
        "",
        "milbench.compare; import milbench.compare.methods",
        pytest.param("import milbench.compare", marks=pytest.mark.slow),
        pytest.param("from milbench.compare.pairing import Pairing", marks=pytest.mark.slow),
    ],
)
def test_compare_is_the_function_though_a_package_has_its_name(before, tmp_path):
    root = stored(tmp_path, two_methods())
    code = (
        f"import milbench\n{before}\n"
        f"print(milbench.compare('abmil', 'mean', results={str(root)!r}))\n"
        "import sys, milbench.compare.methods as methods\n"
        "assert milbench.compare.methods is methods and 'torch' not in sys.modules\n"
        f"print(milbench.compare('abmil', 'mean', results={str(root)!r}).a)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "ABMIL minus MEAN, for other patients and other trainings"
    assert done.stdout.splitlines()[-1] == "ABMIL"
