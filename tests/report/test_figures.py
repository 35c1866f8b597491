"""Figures: what they plot are the results' numbers, and the same results give the same files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from scipy import stats as scipy_stats

from milbench import Bag, MilbenchError, reading
from milbench.analysis import masks, slides
from milbench.compare.trend import trend
from milbench.datasets import Fold
from milbench.plots.figure import saved
from milbench.recipes import Recipe
from milbench.report import build
from milbench.report.figures import suite_figures, ticks_of_sizes
from milbench.stats import c_index
from milbench.stats.metrics import concordance_by_case
from milbench.trials.store import PREDICTIONS, Store
from tests.builders.command import milbench
from tests.builders.datasets import toy_dataset
from tests.builders.reports import CHANCES, plan_of, sized_suite
from tests.builders.results import cell_of, finished, made_up_suite, predictions_file, spec


@pytest.fixture(autouse=True)
def forged(monkeypatch):
    """Metrics that no predictions give, to see what figures make of them."""
    monkeypatch.setattr("milbench.trials.predictions.disagreement", lambda columns, result: "")


def figures_of(store, plan):
    return {figure.name: figure for figure in suite_figures(plan, reading.read(store, plan))}


def test_slope_against_size_is_the_least_squares_slope(tmp_path):
    store, plan = sized_suite(tmp_path, CHANCES)
    figure = figures_of(store, plan)["sized-size"]
    runs = [run for run in reading.read(store, plan) if run.cell.aggregator == "transmil"]
    right = np.mean([run.predictions["score"].argmax(1) == run.predictions["target"] for run in runs], axis=0)
    line = scipy_stats.linregress(np.log2(runs[0].predictions["instances"]), right)
    told = {row["aggregator"]: row for row in figure.rows if row["kind"] == "slope per doubling"}
    assert told["transmil"]["share_correct"] == pytest.approx(line.slope)
    assert told["transmil"]["low"] < line.slope < told["transmil"]["high"] < 0
    width = told["transmil"]["high"] - told["transmil"]["low"]
    assert width == pytest.approx(2 * 1.96 * line.stderr, rel=0.25), "the bootstrap agrees with the formula"
    assert told["mine"]["share_correct"] == told["mine"]["low"] == told["mine"]["high"] == 0, "always right: flat"
    assert "It falls for TRANSMIL." in figure.caption
    bins = [row for row in figure.rows if row["aggregator"] == "transmil" and row["kind"] == "bin"]
    order = runs[0].predictions["instances"].argsort()
    np.testing.assert_allclose([row["share_correct"] for row in bins], right[order].reshape(5, 12).mean(1))


def test_no_size_figure_where_sizes_are_unknown_or_too_few(tmp_path):
    store, plan = made_up_suite(tmp_path, {"mean": 1.0, "abmil": 0.5})
    assert figures_of(store, plan) == {}, "no sizes, no curves"


def test_concordance_by_case_adds_up_to_the_c_index():
    time, event = np.array([1.0, 2, 3, 4, 4]), np.array([True, False, True, True, False])
    risk = np.array([0.9, 0.1, 0.2, 0.5, 0.5])
    by_case = concordance_by_case(time, event, risk)
    # Comparable: 0 before 1-4 (all right), 2 before 3 and 4 (both wrong), 3 against 4 (tied, counts one half).
    np.testing.assert_allclose(by_case, [1, 1, 1 / 3, (1 + 0 + 0.5) / 3, (1 + 0 + 0.5) / 3])
    pairs = np.array([4, 1, 3, 3, 3])
    assert (by_case * pairs).sum() / pairs.sum() == pytest.approx(float(c_index(time, event, risk)))
    assert np.isnan(concordance_by_case([1.0, 2.0], [False, False], [0, 1])).all()


def survival_file(cases, time, event, risk, instances):
    def save(path):
        lines = ["slide,case,fold,instances,time,event,risk"]
        lines += [f"{c},{c},0,{n},{t},{int(e)},{r}" for c, n, t, e, r in zip(cases, instances, time, event, risk, strict=True)]
        path.write_text("\n".join(lines) + "\n")

    return {PREDICTIONS: save}


def test_survival_uses_the_share_of_pairs(tmp_path):
    store, n = Store(tmp_path), 24
    rng = np.random.default_rng(0)
    time, event, sizes = rng.permutation(n) + 1.0, rng.random(n) < 0.8, np.arange(n) * 50 + 100
    trial = spec(task="survival", unit="case", params={})
    risk = -time + np.where(sizes > 700, 30 * rng.normal(size=n), 0)
    store.write(finished(trial, {"c_index": 0.5}), survival_file([f"c{i:02d}" for i in range(n)], time, event, risk, sizes))
    plan = plan_of(store, "dying", ["abmil"], [cell_of(trial)], task="survival", metrics=("c_index",))
    rows = figures_of(store, plan)["dying-size"].rows
    slope = scipy_stats.linregress(np.log2(sizes), concordance_by_case(time, event, risk)).slope
    assert next(row for row in rows if row["kind"] == "slope per doubling")["share_of_pairs_in_the_right_order"] == pytest.approx(
        slope
    )


def test_learning_curves_are_medians_over_the_runs_that_still_train(tmp_path):
    store, plan = sized_suite(tmp_path, {"abmil": CHANCES["abmil"], "mean": CHANCES["longmil"]}, seeds=3)
    rows = [row for row in figures_of(store, plan)["sized-learning"].rows if row["aggregator"] == "mean"]
    assert [row["runs"] for row in rows] == [3] * 12 + [2] * 2 + [1] * 2
    assert rows[4]["train_loss"] == pytest.approx(math.exp(-5 / 6))
    assert rows[4]["val_loss"] == pytest.approx(math.exp(-1) + 0.1 + 0.1)
    assert {row["epoch"]: row["chosen"] for row in rows if row["chosen"]} == {7: 1, 8: 1, 9: 1}


def test_a_single_epoch_is_seen_in_the_learning_curves(tmp_path):
    """A method that solves its task in the first epoch leaves no line, and had an empty panel."""
    store, plan = sized_suite(tmp_path, {"abmil": CHANCES["abmil"], "mean": CHANCES["longmil"]})
    runs = reading.read(store, plan)
    for run in runs:
        if run.cell.aggregator == "mean":
            del run.result["curve"][1:]
    figure = {figure.name: figure for figure in suite_figures(plan, runs)}["sized-learning"]
    assert "Of a single epoch (MEAN) there is a dot" in figure.caption
    drawing = figure.draw()
    markers = {ax.get_title(): [line.get_marker() for line in ax.lines] for ax in drawing.axes}
    pyplot.close(drawing)
    assert markers == {"ABMIL": ["", ""], "MEAN": ["o", "o"]}


def ablation_suite(root, key, values, reference_value, failed=()):
    """Rows that differ in one parameter, or in one value of the recipe; the reference is the row without brackets."""
    store, cells, rows = Store(root), [], []
    for value in values:
        name = "longmil" if value == reference_value else f"longmil[{key}={value}]"
        rows.append(name)
        for seed in range(3):
            short = key.removeprefix("recipe.")
            own = {"recipe": Recipe(name="paper", **{short: value})} if key != short else {"params": {short: value}}
            trial = spec(aggregator="longmil", seed=seed, **{"params": {}, **own})
            cells.append(replace(cell_of(trial), aggregator=name, label=name))
            if value in failed:
                store.write(finished(trial, status="skipped", metrics={}, reason="do not fit"))
                continue
            score = 0.6 + 0.02 * values.index(value) + 0.01 * seed
            store.write(
                finished(trial, {"macro_f1": score, "macro_auc": score + 0.2}), predictions_file(["a"], [0], np.eye(3)[:1])
            )
    return store, plan_of(store, "ablation", rows, cells, reference="longmil")


@pytest.mark.parametrize(
    ("key", "values", "default"),
    [("heads", [1, 2, 3, 5, 8], 1), ("recipe.lr", [1e-2, 1e-3, 1e-4, 1e-5], 1e-4), ("gated", [True, False], True)],
)
def test_ablation_takes_values_from_the_specs(tmp_path, key, values, default):
    store, plan = ablation_suite(tmp_path, key, values, default, failed=(5,))
    figure = figures_of(store, plan)["ablation-curve"]
    shown = [value for value in values if value != 5]
    rows = {(row[key], row["metric"]): row for row in figure.rows}
    assert len(rows) == 2 * len(shown)
    for value in shown:
        row = rows[value, "macro_f1"]
        assert (row["mean"], row["sd"], row["runs"]) == (pytest.approx(0.61 + 0.02 * values.index(value)), pytest.approx(0.01), 3)
        assert row["reference"] == (value == default)
    assert ("Not shown: 5 (skipped)." in figure.caption) == (5 in values)
    figure.save(tmp_path)


def test_suites_of_several_methods_are_no_ablation(tmp_path):
    store, plan = sized_suite(tmp_path, CHANCES)
    assert set(figures_of(store, plan)) == {"sized-size", "sized-learning"}


def test_extrapolation_bars_carry_anova_and_the_paired_interval(tmp_path):
    splits = ("extrapolation", "extrapolation-mixed")
    store, plan = sized_suite(tmp_path, CHANCES, splits=splits, seeds=3)
    section = build(store, "sized").sections[0]
    figures = {figure.name: figure for figure in section.figures}
    bars = "sized-macro-auc-larger-slides"
    assert {bars, "sized-macro-f1-larger-slides", "sized-extrapolation-size", "sized-extrapolation-mixed-learning"} < set(figures)
    rows = figures[bars].rows
    paired = {(row["split"], row["aggregator"]): row for row in section.paired.tidy if row["metric"] == "macro_auc"}
    runs = reading.read(store, plan)
    for split in splits:
        groups = {m: [r.metric("macro_auc") for r in runs if (r.cell.split, r.cell.aggregator) == (split, m)] for m in CHANCES}
        p = scipy_stats.f_oneway(*groups.values()).pvalue
        for row in (row for row in rows if row["split"] == split):
            assert row["anova_p"] == pytest.approx(p)
            assert row["mean"] == pytest.approx(np.mean(groups[row["aggregator"]]))
            assert row["sd"] == pytest.approx(np.std(groups[row["aggregator"]], ddof=1))
            expected = paired.get((split, row["aggregator"]), {})
            assert [row[key] for key in ("difference", "low", "high")] == [
                expected.get(key) for key in ("difference", "low", "high")
            ]
            assert (row["difference"] is None) == (row["aggregator"] == "abmil")


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(tmp_path):
    store, plan = sized_suite(tmp_path, {name: CHANCES[name] for name in ("abmil", "transmil")}, splits=("extrapolation",))
    for figure in figures_of(store, plan).values():
        one, two = figure.save(tmp_path / "1"), figures_of(store, plan)[figure.name].save(tmp_path / "2")
        for kind in ("pdf", "png", "csv"):
            assert getattr(one, kind).read_bytes() == getattr(two, kind).read_bytes(), (figure.name, kind)
        assert json.loads((tmp_path / "1" / f"{figure.name}.json").read_text())["caption"] == figure.caption


def test_too_few_cases_have_no_trend(tmp_path):
    store, plan = sized_suite(tmp_path, {"abmil": CHANCES["abmil"]}, n=7)
    assert trend(reading.read(store, plan), "seed") is None
    assert set(figures_of(store, plan)) == {"sized-learning"}


def test_without_tests_no_prediction_is_read_and_no_interval_drawn(tmp_path):
    store, plan = sized_suite(tmp_path, {"abmil": CHANCES["abmil"], "mean": CHANCES["longmil"]}, splits=("extrapolation",))
    for path in store.trials.glob("*/predictions.csv"):
        path.unlink()
    figures = {figure.name: figure for figure in suite_figures(plan, reading.read(store, plan), predictions=False)}
    assert set(figures) == {"sized-learning", "sized-macro-f1-larger-slides", "sized-macro-auc-larger-slides"}
    assert {row["difference"] for row in figures["sized-macro-f1-larger-slides"].rows} == {None}


def slides_of(sizes, at=(0, 0)):
    """A dataset whose slide i is a square of sizes[i] x sizes[i] patches, at coordinates of its own."""
    data = toy_dataset(len(sizes), folds=[Fold(("s00", "s01"), (), tuple(f"s{i:02d}" for i in range(2, len(sizes))))])

    def read(id):
        side = sizes[int(id[1:])]
        cells = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(1)
        return Bag(torch.zeros(side * side, 6), (cells + torch.tensor(at)) * 256.0, 256.0, slide_id=id, case_id=id)

    return replace(data, read=read, has_coords=True)


def test_sizes_are_counted_with_the_memory_of_plain_attention(tmp_path):
    figure = slides.sizes(slides_of([10, 20, 20, 30]))
    assert sum(row["slides"] for row in figure.rows) == 4
    assert [row["slides"] for row in figure.rows if row["slides"]] == [1, 2, 1]
    assert (figure.rows[-1]["to"], figure.rows[-1]["gib_at_to"]) == (900, pytest.approx(2 * 4 * 900**2 / 2**30))
    assert "median 400, mean 450, largest 900" in figure.caption
    figure.save(tmp_path)


def test_positions_beyond_the_training_slides_are_counted(tmp_path):
    figure = slides.positions(slides_of([10, 8, 20], at=(7, 3)), "one")
    by_place = {(row["part"], row["column"], row["row"]): row["slides"] for row in figure.rows}
    assert (by_place["train", 0, 0], by_place["train", 9, 9], by_place["test", 19, 19]) == (2, 1, 1)
    assert ("train", 10, 0) not in by_place
    assert len(by_place) == 10**2 + 20**2, "a place of two training slides is one row"
    assert "75.0% are covered by no training slide" in figure.caption, "10 x 10 of 20 x 20 cells are"
    figure.save(tmp_path)


def test_positions_of_large_slides_are_counted_in_blocks():
    rows = slides.positions(slides_of([100, 100, 130]), "one").rows
    assert {row["cells_along"] for row in rows} == {3}
    assert max(row["column"] for row in rows) == 129
    assert {row["slides"] for row in rows if row["part"] == "train"} == {2}


def test_positions_need_coordinates_and_a_fold():
    with pytest.raises(MilbenchError, match="has no coordinates"):
        slides.positions(toy_dataset(), "one")
    with pytest.raises(MilbenchError, match="split one has folds 0 to 0, not 3"):
        slides.positions(slides_of([2, 2, 2]), "one", 3)


def test_masks_are_those_of_the_operations(tmp_path):
    figure = masks.figure(side=6, radius=1.0, region=3)
    value = {(row["matrix"], row["query"], row["key"]): row["value"] for row in figure.rows}
    assert len(value) == 6 * 36**2
    window, band, squares = "window of radius 1 (LongMIL)", "band of 5 along the sequence (1-D window)", "squares of 3 x 3 (HIPT)"
    middle = 3 * 6 + 3
    seen = {
        name: {key for (n, query, key), v in value.items() if (n, query) == (name, middle) and v}
        for name in (window, band, squares)
    }
    assert seen[window] == {middle, middle - 1, middle + 1, middle - 6, middle + 6}
    assert seen[band] == set(range(middle - 2, middle + 3))
    assert seen[squares] == {6 * y + x for x in (3, 4, 5) for y in (3, 4, 5)}
    assert value["full", 0, 35] == pytest.approx(1 / 36, rel=1e-5)
    assert value["Euclidean distance", 0, 35] == pytest.approx(50**0.5, rel=1e-5)
    alibi = "decay with distance (2-D ALiBi)"
    assert value[alibi, middle, middle + 1] / value[alibi, middle, middle] == pytest.approx(math.exp(-1), rel=1e-4)
    figure.save(tmp_path)


def test_commands_write_where_the_report_looks(tmp_path):
    for arguments in (["masks", "--side", "4"], ["sizes", "--dataset", "musk1", "--encoder", "hand-crafted"]):
        milbench("analyze", *arguments, "--results", tmp_path)
    assert [one.name for one in saved(tmp_path / "analysis")] == ["masks", "sizes-musk1-hand-crafted"]
    place = ("--dataset", "musk1", "--encoder", "hand-crafted", "--split", "kfold5", "--results", tmp_path)
    assert "has no coordinates" in milbench("analyze", "positions", *place, code=2)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (200, 20_000, ["300", "1k", "3k", "10k"]),
        (21, 40, ["30", "40"]),
        (31, 38, ["31", "34", "38"]),  # no two round numbers
        (2, 1044, ["10", "100", "1k"]),
        (95, 130, ["95", "111", "130"]),
        (1000, 65_536, ["1k", "3k", "10k", "30k"]),
        (1, 10**6, ["1", "100", "10k", "1,000k"]),
    ],
)
def test_sizes_have_two_to_four_ticks(low, high, labels):
    from matplotlib.figure import Figure as Drawing

    ax = Drawing().subplots()
    ticks_of_sizes(ax, low, high)
    found = [label.get_text() for label in ax.get_xticklabels()]
    assert found == labels
