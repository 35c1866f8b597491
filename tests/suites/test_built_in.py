"""The built-in suites against what the paper prints, and what a suite does with rows, draws and data that is not here."""

import csv
from functools import partial
from importlib import resources

import pytest
import torch

from milbench import MilbenchError, datasets, plugins, reading, rehearsal, suites
from milbench.datasets.packed import packed
from milbench.errors import NotHere, SkipTrial
from milbench.reading import draws
from milbench.suites import whole, with_includes
from milbench.suites.model import Search
from milbench.trials import plan as plans
from milbench.trials.run import build_model, run_trial
from milbench.trials.store import Store
from tests.builders.datasets import toy_dataset

STAND_IN = partial(rehearsal.stand_in, 64)
TABLES = {
    "bracs-encoders": ("table1", "bracs"),
    "survival": ("table2", None),
    "bracs-foundation": ("table3", "bracs"),
    "survival-foundation": ("table4", "tcga-brca"),
    "tcga-brca-encoders": ("table5", "tcga-brca"),
    "bracs-resnet50": ("table6", "bracs"),
    "tcga-brca-resnet50": ("table6", "tcga-brca"),
    "bracs-magnification": ("table7", "bracs"),
    "bracs-patch-size": ("table8", "bracs"),
    "bracs-linear": ("table9", "bracs"),
}


def printed(table, dataset):
    with (resources.files("milbench_published") / "longmil_neurips2024" / "numbers.csv").open() as file:
        return [line for line in csv.DictReader(file) if line["table"] == table and dataset in (None, line["dataset"])]


def in_order(lines, *keys):
    return list(dict.fromkeys(tuple(line[key] for key in keys) for line in lines))


@pytest.mark.parametrize("name", TABLES)
def test_rows_and_columns_are_those_of_the_printed_table(name):
    table, dataset = TABLES[name]
    suite, lines = suites.load(name), printed(table, dataset)
    plan, _ = suites.expand(suite, load=STAND_IN)
    survival = suite.task == "survival"
    columns = list(
        dict.fromkeys(
            (c.dataset.removesuffix("-survival"), c.encoder, str(c.magnification), str(c.patch_size)) for c in plan.cells
        )
    )
    assert columns == in_order(lines, "dataset", "encoder", "magnification", "patch_size")
    methods = [plugins.resolve(text).entry.name for text in suite.grid.aggregator]
    assert methods == [method for (method,) in in_order(lines, "aggregator")]
    assert suite.table.metrics == [metric for (metric,) in in_order(lines, "metric")]
    assert all(c.dataset.endswith("-survival") == survival for c in plan.cells)
    bracs = dataset == "bracs"
    repeats = {(c.split, c.fold, c.seed) for c in plan.cells}
    split, folds, seeds = ("official", 1, 5) if bracs else ("hipt5", 5, 3) if survival else ("hipt10", 10, 3)
    assert repeats == {(split, fold, seed) for fold in range(folds) for seed in range(seeds)}
    assert len(plan.cells) == len(columns) * len(methods) * folds * seeds
    assert not suite.grid.standardise
    assert suite.recipe == {"name": "paper"}
    number = table.removeprefix("table")
    assert f"Table {number} of LongMIL" in suite.reproduces


def test_where_the_paper_names_a_variant_the_suite_runs_it():
    dtfd = {text for name in TABLES for text in suites.load(name).grid.aggregator if text.startswith("dtfd")}
    assert dtfd == {"dtfd-maxs[groups=3]", "dtfd-afs[groups=3]"}, "three pseudo-bags"
    assert "longmil-vmamba" in suites.load("bracs-magnification").grid.aggregator, "the linear global layer at 40x"
    for name in ("survival", "survival-foundation"):
        assert {"abmil[rho=256]", "dsmil[lineage=hipt,nonlinear=false,values=linear]"} <= set(suites.load(name).grid.aggregator)


@pytest.mark.parametrize("name", ["survival", "survival-foundation"])
def test_survival_is_run_in_both_settings_that_the_paper_names(name):
    paper, hipt = suites.load(name), suites.load(f"{name}-hipt")
    assert paper.includes == [hipt.name] and paper.table.name != hipt.table.name and paper.title != hipt.title
    same = lambda suite: suite.grid.model_dump(exclude={"aggregator", "seed"})  # noqa: E731
    assert same(paper) == same(hipt)
    assert [row for row in hipt.grid.aggregator if row != "hipt[frozen=true]"] == paper.grid.aggregator
    jobs = suites.expand(hipt, folds=[0], seeds=[0], load=STAND_IN)[1]
    recipe = jobs[0].spec.recipe
    assert {job.spec.recipe for job in jobs} == {recipe}, "one setting for all methods"
    assert (recipe.optimiser, recipe.lr, recipe.weight_decay, recipe.sampling) == ("adam", 2e-4, 1e-5, "class-balanced")
    assert (recipe.accumulate, recipe.left_over, recipe.max_epochs, recipe.select) == (32, "restart", 20, "last")


def test_a_frozen_hipt_without_its_weights_is_skipped():
    with pytest.raises(SkipTrial, match=r"no weights: .*hipt\[frozen=true,weights=PATH\]"):
        plugins.resolve("hipt[frozen=true]").build(384, 4)


def test_figure_4_is_run_in_both_readings():
    suite = suites.load("bracs-extrapolation")
    plan, jobs = suites.expand(suite, load=STAND_IN)
    assert suite.grid.aggregator == ["abmil", "clam-sb", "transmil", "full-attention", "longmil"]
    assert list(dict.fromkeys(c.split for c in plan.cells)) == ["extrapolation", "extrapolation-mixed"]
    data = STAND_IN("bracs", "vits-lunit", 20, 224)
    sizes = data.sizes()
    of = lambda ids: [sizes[id] for id in ids]  # noqa: E731
    (straight,), (mixed,) = data.folds("extrapolation"), data.folds("extrapolation-mixed")
    assert [len(part) for part in straight] == [328, 110, 109]
    assert max(of(straight.train)) <= min(of(straight.val)) <= max(of(straight.val)) <= min(of(straight.test))
    assert max(of(mixed.train)) <= min(of(mixed.val + mixed.test))
    assert min(of(mixed.test)) < max(of(mixed.val)), "mixed"
    assert {j.spec.split_fingerprint for j in jobs} == {
        data.split_fingerprint(s) for s in ("extrapolation", "extrapolation-mixed")
    }


# Figure 6, and the defaults of appendix A.5.3.
SWEPT = {
    "blocks": [1, 2, 3, 4],
    "heads": [1, 2, 3, 4, 5, 6, 7, 8],
    "weight-decay": [0.1, 0.05, 0.01, 0.005, 0.001, 5e-4, 1e-4, 5e-5, 1e-5],
    "dropout": [0.0, 0.01, 0.05, 0.1, 0.2, 0.3],
    "learning-rate": [1e-2, 5e-3, 1e-3, 5e-4, 1e-4, 5e-5, 1e-5],
    "radius": [5.0, 10.0, 20.0],
}
DEFAULTS = {"blocks": 2, "heads": 1, "weight-decay": 1e-2, "dropout": 0.0, "learning-rate": 1e-4, "radius": 10.0}


@pytest.mark.parametrize("what", SWEPT)
def test_ablations_sweep_the_values_of_figure_6_and_nothing_else(what):
    plan, jobs = suites.expand(suites.load(f"bracs-ablation-{what}"), load=STAND_IN, seeds=[0])
    ran = [
        {
            "weight-decay": job.spec.recipe.weight_decay, "learning-rate": job.spec.recipe.lr,
            **{key: job.spec.params[key] for key in ("blocks", "heads", "dropout", "radius")},
        }
        for job in jobs
    ]  # fmt: skip
    assert ran == [{**DEFAULTS, what: value} for value in SWEPT[what]]
    assert {job.spec.aggregator for job in jobs} == {"longmil"}
    assert {job.spec.encoder for job in jobs} == {"vits-lunit"}
    assert len({job.cell.context for job in jobs}) == 1, "one column, whatever the row's recipe"
    assert len({c.label for c in plan.cells}) == len(SWEPT[what])
    usual = suites.expand(suites.load("bracs-linear"), load=STAND_IN, aggregators=["longmil"], seeds=[0])[1][0]
    assert usual.spec.trial_id in {job.spec.trial_id for job in jobs}, "the default is the trial that other tables have"
    assert suites.load(f"bracs-ablation-{what}").grid.seed == [0, 1, 2, 3, 4]


def test_heads_that_do_not_divide_the_width_are_recorded_as_skipped(tmp_path):
    _, jobs = suites.expand(suites.load("bracs-ablation-heads"), load=STAND_IN, seeds=[0])
    specs, store = {job.spec.params["heads"]: job.spec for job in jobs}, Store(tmp_path)
    for heads in (5, 7):
        assert run_trial(specs[heads], store, {}, body=partial(rehearsal.measured, scale=2000)) == "skipped"
        assert store.raw(specs[heads].trial_id)["reason"] == (
            f"LongMIL cannot be built with these parameters: {heads} heads do not divide a width of 384 into equal parts"
        )
    for heads in (1, 2, 3, 4, 6, 8):
        assert build_model(specs[heads], STAND_IN("bracs", "vits-lunit", 20, 224), 3)


def test_what_the_composed_suites_are_made_of():
    leaves = lambda name: [suite.name for suite in with_includes(suites.load(name))]  # noqa: E731
    ablations = [f"bracs-ablation-{what}" for what in SWEPT]
    bracs = [
        "bracs-encoders",
        "bracs-foundation",
        "bracs-resnet50",
        "bracs-magnification",
        "bracs-patch-size",
        "bracs-linear",
        "bracs-extrapolation",
    ]
    assert leaves("bracs-ablations") == ablations
    assert leaves("bracs-all") == [*bracs, *ablations]
    brca = ["tcga-brca-encoders", "tcga-brca-resnet50", "tcga-brca-grouped"]
    assert leaves("tcga-brca") == brca
    survival = ["survival-hipt", "survival", "survival-foundation-hipt", "survival-foundation"]
    assert leaves("paper-all") == [*bracs, *ablations, *brca, *survival]
    assert [s.made_by for s in whole(suites.load("paper-all")) if s.made_by] == ["milbench profile aggregators"]
    assert leaves("efficiency") == []


def test_a_composed_suite_finds_its_leaves_at_every_depth(tmp_path):
    store, asked = Store(tmp_path), suites.load("paper-all")
    for leaf in with_includes(asked):
        plans.merge(store, suites.expand(leaf, load=STAND_IN, aggregators=["abmil"], seeds=[0], folds=[0])[0])
    for plan in suites.composed(asked):
        plans.merge(store, plan)
    for name in ("paper-all", "bracs-all", "bracs-ablations", "tcga-brca"):
        assert [plan.suite for plan in reading.leaves(store, name)] == [s.name for s in with_includes(suites.load(name))]
    assert reading.leaves(store, "efficiency") == []


def test_the_grouped_twin_differs_in_the_split_only():
    printed, twin = suites.load("tcga-brca-encoders"), suites.load("tcga-brca-grouped")
    assert twin.grid == printed.grid.model_copy(update={"split": ["hipt10-grouped"]})


def here_or_stand_in(*where, **more):
    try:
        return datasets.load(*where, **more)
    except NotHere:
        return STAND_IN(*where, **more)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.endswith("-full")) for name in suites.names()]
)
def test_every_built_in_suite_holds_together(name):
    for leaf in with_includes(suites.load(name)):
        plan, jobs = suites.expand(leaf, load=here_or_stand_in)
        rows = list(dict.fromkeys(c.aggregator for c in plan.cells))
        assert rows == plan.definition["grid"]["aggregator"], "every row once, spelled as in the suite"
        assert len(jobs) == len(plan.cells)
        assert len({c.trial_id for c in plan.cells}) == len(jobs), "no trial stands twice in a table"
        assert plugins.resolve(leaf.table.reference).name in rows


def test_datasets_of_the_paper_that_are_not_here_are_named_and_not_run():
    plan, jobs = suites.expand(suites.load("bracs-encoders"))
    if any(not cell.missing for cell in plan.cells):
        pytest.skip("BRACS features are here")
    assert jobs == []
    assert len(plan.cells) == 2 * 12 * 5
    (why,) = {c.missing for c in plan.cells if c.encoder == "vits-dino"}
    assert "bracs" in why
    assert "milbench data add bracs --encoder vits-dino" in why


def only_lunit(name, encoder, *rest, **more):
    if encoder != "vits-lunit":
        raise NotHere(f"dataset bracs has no features of {encoder}")
    return STAND_IN(name, encoder, *rest, **more)


def test_an_absent_encoder_leaves_the_rest_of_a_suite_to_run(tmp_path):
    suite, store = suites.load("bracs-encoders"), Store(tmp_path)
    plan, jobs = suites.expand(suite, load=only_lunit)
    assert {job.spec.encoder for job in jobs} == {"vits-lunit"}
    absent = [c for c in plan.cells if c.missing]
    assert len(jobs) == len(absent) == 60
    assert {(c.encoder, c.missing, c.trial_id, c.dataset_label) for c in absent} == {
        ("vits-dino", "dataset bracs has no features of vits-dino", "", "BRACS")
    }
    assert plans.merge(store, plan).cells == plan.cells
    assert plans.merge(store, plan).cells == plan.cells, "asking twice changes nothing"
    whole_plan, _ = suites.expand(suite, load=STAND_IN)
    assert plans.merge(store, whole_plan).cells == whole_plan.cells, "what has come takes the place of what was not here"
    assert plans.merge(store, plan).cells == whole_plan.cells, "and stays when it goes again"


def test_an_absent_published_split_is_named(tmp_path):
    bare = lambda *words, **more: toy_dataset()  # noqa: E731
    plan, jobs = suites.expand(suites.load("bracs-encoders"), load=bare)
    assert not jobs
    assert {c.missing for c in plan.cells} == {
        "dataset bracs has no split official; add it with: milbench data add bracs --splits ..."
    }


def recipe_of(text, suite="bracs-linear"):
    _, jobs = suites.expand(suites.load(suite), load=STAND_IN, aggregators=[text], seeds=[0])
    return jobs[0]


@pytest.mark.parametrize(
    ("text", "name", "label"),
    [
        ("longmil[recipe.lr=1e-3]", "longmil[recipe.lr=0.001]", "LongMIL (lr=0.001)"),
        ("longmil[ recipe.lr = 1e-3 , blocks=3 ]", "longmil[blocks=3,recipe.lr=0.001]", "LongMIL (blocks=3, lr=0.001)"),
        ("longmil[recipe.lr=1e-4]", "longmil", "LongMIL"),
        ("longmil[recipe.lr=0.0001,blocks=2,heads=2]", "longmil[heads=2]", "LongMIL (heads=2)"),
        (
            "longmil-mamba-random[recipe.patience=none]",
            "longmil-mamba-random[recipe.patience=null]",
            "LongMIL + Mamba (random) (patience=null)",
        ),
        (
            "longmil[recipe.weight_decay=0,recipe.lr=1]",
            "longmil[recipe.lr=1.0,recipe.weight_decay=0.0]",
            "LongMIL (lr=1.0, weight_decay=0.0)",
        ),
        ("clam-sb[recipe.name=official]", "clam-sb[recipe.name=official]", "CLAM-SB (name=official)"),
    ],
)
def test_a_row_may_have_recipe_values_of_its_own(text, name, label):
    job = recipe_of(text)
    assert (job.cell.aggregator, job.cell.label) == (name, label)
    again = recipe_of(name)
    assert again.spec == job.spec, "the name says it all"


def test_values_of_a_row_change_its_recipe_and_only_that():
    usual, other = recipe_of("longmil").spec, recipe_of("longmil[recipe.lr=1e-3,recipe.patience=none]").spec
    assert other == usual.model_copy(update={"recipe": usual.recipe.model_copy(update={"lr": 1e-3, "patience": None})})
    assert recipe_of("clam-sb[recipe.name=official]").spec.recipe.weight_decay == 1e-5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("longmil[recipe.lrr=1]", r"unknown recipe value in 'longmil\[recipe\.lrr=1\]' 'lrr'; did you mean lr"),
        ("longmil[recipe.lr]", r"cannot read 'recipe\.lr' in 'longmil\[recipe\.lr\]'; write recipe\.lr=value"),
        ("longmil[recipe.lr=]", r"write recipe\.lr=value"),
        ("longmil[recipe.lr=-1]", "suite bracs-linear: recipe: lr: input should be greater than 0"),
        ("longmil[recipe.lr=fast]", "recipe: lr: input should be a valid number"),
        ("longmil[recipe.suite=1]", "unknown recipe value"),
        ("longmil[recipe.lr=1e-3,bloks=1]", "unknown parameter of longmil 'bloks'; did you mean blocks"),
        ("longmil[recipe.name=offical]", "unknown recipe 'offical'; did you mean official"),
        ("longmill[recipe.lr=1]", "unknown aggregator 'longmill'"),
    ],
)
def test_a_row_that_cannot_be_read(text, says):
    with pytest.raises(MilbenchError, match=says):
        recipe_of(text)


def test_a_label_of_no_row_is_a_mistake():
    suite = suites.load("bracs-linear")
    wrong = suite.model_copy(update={"table": suite.table.model_copy(update={"labels": {"longmil[blocks=3]": "Deep"}})})
    with pytest.raises(
        MilbenchError, match=r"unknown row in suite bracs-linear, table\.labels 'longmil\[blocks=3\]'; did you mean longmil"
    ):
        suites.expand(wrong, load=STAND_IN)


def test_draws_are_the_same_for_every_method_and_within_the_ranges_of_the_ablation():
    suite = suites.load("bracs-tuned")
    search = suite.search
    assert (search.draws, search.lr, search.weight_decay, search.dropout) == (8, (1e-5, 1e-2), (1e-5, 1e-1), (0.0, 0.3))
    plan, jobs = suites.expand(suite, load=STAND_IN)
    assert len(jobs) == 8 * len(suite.grid.aggregator) * 5
    drawn = {}
    for job in jobs:
        s, c = job.spec, job.cell
        values = (s.recipe.lr, s.recipe.weight_decay, s.params.get("dropout"))
        drawn.setdefault(c.aggregator, {}).setdefault(c.draw, set()).add(values)
    for method, by_draw in drawn.items():
        assert sorted(by_draw) == list(range(8)), method
        has_dropout = "dropout" in plugins.resolve(method).params
        for draw, (values,) in by_draw.items():  # one set of values, whatever the seed
            expected = search.values(draw)
            assert values == (expected["lr"], expected["weight_decay"], expected["dropout"] if has_dropout else None)
    every = [search.values(draw) for draw in range(8)]
    assert all(1e-5 <= v["lr"] <= 1e-2 and 1e-5 <= v["weight_decay"] <= 1e-1 and 0 <= v["dropout"] <= 0.3 for v in every)
    assert min(v["lr"] for v in every) < 1e-4 < 1e-3 < max(v["lr"] for v in every), "log-uniform, not uniform"
    assert every[0] == {"lr": 0.00377, "weight_decay": 0.0687, "dropout": 0.155}, "the draws changed: so would every tuned table"
    assert len({c.context for c in plan.cells}) == 1
    assert len({j.spec.trial_id for j in jobs}) == len(jobs)
    assert "knn-mean" not in drawn


def test_what_a_row_says_itself_is_not_searched():
    _, jobs = suites.expand(
        suites.load("bracs-tuned"), load=STAND_IN, aggregators=["abmil[recipe.lr=1e-3,dropout=0.5]"], seeds=[0]
    )
    assert {(job.spec.recipe.lr, job.spec.params["dropout"]) for job in jobs} == {(1e-3, 0.5)}
    assert len({job.spec.recipe.weight_decay for job in jobs}) == 8


def test_a_range_that_is_none_is_refused():
    for wrong in ({"lr": (1e-2, 1e-5)}, {"weight_decay": (0.0, 0.1)}, {"dropout": (-0.1, 0.3)}, {"draws": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Search(**{"lr": (1e-5, 1e-2), "weight_decay": (1e-5, 1e-1), "dropout": (0, 0.3), **wrong})


class Sealed(dict):
    """Metrics whose test part must not be looked at."""

    def __getitem__(self, key):
        assert key != "test"
        return super().__getitem__(key)

    def get(self, key, default=None):
        assert key != "test"
        return super().get(key, default)


class Ran:
    def __init__(self, cell, val, status="ok"):
        self.cell, self.status = cell, status
        metrics = Sealed(test=None, **({} if val is None else {"val": {"macro_auc": val}}))
        self.result = {"metrics": metrics} if status == "ok" else {}


def ran(val, statuses=None, seeds=(0, 1)):
    """Three draws of two methods on two seeds, with validation metrics val[method][draw]."""
    _, jobs = suites.expand(suites.load("bracs-tuned"), load=STAND_IN, aggregators=list(val), seeds=list(seeds))
    return [
        Ran(
            job.cell,
            val[job.cell.aggregator][job.cell.draw][i],
            (statuses or {}).get((job.cell.aggregator, job.cell.draw, job.cell.seed), "ok"),
        )
        for job in jobs
        if job.cell.draw < 3
        for i in [list(seeds).index(job.cell.seed)]
    ]


def chosen(runs):
    return {(r.cell.aggregator, r.cell.seed): (r.cell.draw, r.status) for r in draws.chosen(runs, "macro_auc")}


VAL = {"mean": [(0.5, 0.9), (0.8, 0.7), (0.6, 0.6)], "max": [(0.9, 0.9), (0.9, 0.9), (0.1, 0.1)]}


def test_validation_chooses_the_draw_over_all_seeds_and_test_is_never_looked_at():
    assert chosen(ran(VAL)) == {
        ("mean", 0): (1, "ok"), ("mean", 1): (1, "ok"), ("max", 0): (0, "ok"), ("max", 1): (0, "ok"),
    }  # fmt: skip


def test_a_draw_with_a_failed_seed_cannot_be_chosen():
    found = chosen(ran(VAL, {("mean", 1, 1): "failed", ("max", 0, 0): "oom"}))
    assert found[("mean", 0)] == found[("mean", 1)] == (0, "ok")
    assert found[("max", 0)] == found[("max", 1)] == (1, "ok")


def test_nothing_is_chosen_before_all_draws_are_there():
    found = chosen(ran(VAL, {("mean", 2, 0): "pending"}))
    assert found[("mean", 0)] == (2, "pending")
    assert ("mean", 1) not in found
    assert found[("max", 0)] == (0, "ok")
    failed = {("mean", draw, seed): "failed" for draw in range(3) for seed in (0, 1)}
    assert chosen(ran(VAL, failed))[("mean", 1)] == (0, "failed")


def test_a_draw_without_a_validation_metric_comes_last():
    assert chosen(ran({"mean": [(None, None), (0.1, 0.1), (None, 0.9)]}))[("mean", 0)] == (1, "ok")


def test_runs_without_draws_stay_as_they_are():
    plan, _ = suites.expand(suites.load("bracs-linear"), load=STAND_IN, seeds=[0, 1])
    runs = [Ran(cell, 0.5) for cell in plan.cells]
    assert draws.chosen(runs, "macro_auc") == runs


def test_splits_are_written_next_to_the_results(tmp_path):
    _, jobs = suites.expand(suites.load("bracs-extrapolation"), load=STAND_IN)
    store = Store(tmp_path)
    paths = suites.save_splits(jobs, store, STAND_IN)
    data = STAND_IN("bracs", "vits-lunit", 20, 224)
    for path, split in zip(paths, ("extrapolation", "extrapolation-mixed"), strict=True):
        assert path.name == f"bracs-{split}-{data.split_fingerprint(split)[7:]}.csv"
        rows = list(csv.DictReader(path.open()))
        (fold,) = data.folds(split)
        for part in ("train", "val", "test"):
            assert tuple(line["id"] for line in rows if line["part"] == part) == getattr(fold, part)
        assert {line["fold"] for line in rows} == {"0"}
        assert all(line["case"] == data.sample(line["id"]).case_id for line in rows)
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert suites.save_splits(jobs, store, STAND_IN) == paths
    assert before == {path: path.stat().st_mtime_ns for path in paths}


def test_the_type_of_stored_features_is_part_of_a_trial_and_of_its_numbers():
    suite = suites.load("quickstart")
    (usual, *_), (half, *_) = (suites.expand(suite, dtype=dtype)[1] for dtype in (None, "float16"))
    assert half.spec == usual.spec.model_copy(update={"feature_dtype": "float16"})
    assert half.spec.trial_id != usual.spec.trial_id
    assert half.cell.context != usual.cell.context, "never in one column"
    full, rounded = (datasets.load("ucsb-breast", "hand-crafted", dtype=dtype) for dtype in ("float32", "float16"))
    id = full.samples[0].id
    assert not torch.equal(full.read(id).features, rounded.read(id).features)
    assert torch.equal(full.read(id).features.half().float(), rounded.read(id).features)


def test_packs_are_written_before_the_first_trial(tmp_path):
    data = toy_dataset()
    sizes = {s.id: len(data.read(s.id)) for s in data.samples}
    read = packed(data.read, sizes, in_dim=6, dtype="float32", fingerprint="1", name="toy", folder=tmp_path)
    object.__setattr__(data, "read", read)
    load = lambda *where, **more: data  # noqa: E731
    _, (job, *_) = suites.expand(suites.load("bracs-linear"), load=STAND_IN)
    told = []
    suites.pack([job, job], told.append, load)
    assert read.path.is_file()
    assert told == [f"packing toy: 20 bags, 0.0 MB, into {read.path}"]
    suites.pack([job], told.append, load)
    assert len(told) == 1


def test_rows_that_are_asked_for_stay_in_their_own_tables(tmp_path):
    """--aggregators filters: a row stays in the suites that have it, what no suite has is added to all."""
    text = (
        'title = "T"\n[grid]\ndataset = ["musk1"]\nencoder = ["hand-crafted"]\nsplit = ["kfold5"]\nseed = [0]\naggregator = [{rows}]\n'
        '[table]\nname = "{name}"\nmetrics = ["macro_auc"]\nreference = "abmil"\nlabels = {{"transmil[landmarks=32]" = "Trans"}}\n'
    )
    rows = {"one": '"abmil", "mean", "transmil[landmarks=32]"', "two": '"max", "abmil", "transmil[landmarks=32,heads=8]"'}
    for name, listed in rows.items():
        (tmp_path / f"{name}.toml").write_text(text.format(name=name, rows=listed))
    both = [suites.load(str(tmp_path / f"{name}.toml")) for name in rows]

    def told(*wanted):
        return {suite.name: names for suite, names in suites.narrowed(both, wanted)}

    assert [names for _, names in suites.narrowed(both, None)] == [None, None]
    assert told("mean") == {"one": ["mean"]}
    assert told("abmil") == {"one": ["abmil"], "two": ["abmil"]}
    assert told("max", "mean") == {"one": ["mean"], "two": ["max"]}
    assert told("Max-pooling") == {"two": ["max"]}
    assert (
        told("Trans")
        == told("transmil[ landmarks = 32.0 ]")
        == {"one": ["transmil[landmarks=32]"], "two": ["transmil[landmarks=32]"]}
    )
    assert told("transmil") == {"one": ["transmil"], "two": ["transmil"]}, "another variant is another row"
    assert told("dsmil", "mean") == {"one": ["dsmil", "mean"], "two": ["dsmil"]}
    with pytest.raises(MilbenchError, match="unknown aggregator 'abmill'; did you mean abmil"):
        told("abmill")
    with pytest.raises(MilbenchError, match="unknown aggregator 'Nobody'"):
        suites.expand(both[0], aggregators=told("Nobody")["one"])
    plan, jobs = suites.expand(both[0], aggregators=told("mean")["one"], folds=[0])
    assert [job.spec.aggregator for job in jobs] == ["mean"]
    assert plan.definition["grid"]["aggregator"] == ["abmil", "mean", "transmil[landmarks=32]"], "the table keeps its rows"


@pytest.mark.parametrize("what", ["aggregators", "seeds", "folds"])
def test_none_of_something_is_not_all_of_it(what):
    with pytest.raises(MilbenchError, match=f"{what}: the list for suite quickstart is empty; leave it out"):
        suites.expand(suites.load("quickstart"), **{what: []})
