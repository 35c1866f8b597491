"""Suites and plans: files that are wrong, and which trials stand behind a table."""

import pytest

from milbench import MilbenchError, suites
from milbench.recipes import Recipe
from milbench.suites.model import with_includes
from milbench.trials import plan as plans
from milbench.trials.plan import Plan
from milbench.trials.store import Store
from tests.builders.results import cell_of, spec

SUITE = """
title = "A suite"
[grid]
dataset = ["musk1"]
encoder = ["hand-crafted"]
split = ["kfold5"]
seed = [0, 1]
aggregator = ["abmil", "mean[hidden=0]"]
[table]
name = "mine"
metrics = ["macro_auc"]
"""


def write(tmp_path, text=SUITE, name="mine.toml"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_a_suite_of_ones_own(tmp_path):
    plan, jobs = suites.expand(suites.load(write(tmp_path)))
    assert plan.suite == "mine"
    assert len(jobs) == 5 * 2 * 2
    assert len({job.spec.trial_id for job in jobs}) == 20
    assert {job.cell.aggregator for job in jobs} == {"abmil", "mean[hidden=0]"}
    assert {job.spec.recipe for job in jobs} == {Recipe(name="paper")}
    assert jobs[0].spec.params["attention_dim"] == 256, "defaults are part of the identity"
    assert plan.notes == ["MUSK1: 92 slides, 45 non-musk, 47 musk"]


def test_options_replace_what_the_suite_says(tmp_path):
    suite = suites.load(write(tmp_path))
    _, jobs = suites.expand(suite, aggregators=["max", "max"], seeds=[7], folds=[3, 1], epochs=2, threads=2)
    assert [(j.spec.aggregator, j.spec.seed, j.spec.fold, j.spec.threads) for j in jobs] == [("max", 7, 3, 2), ("max", 7, 1, 2)]
    assert jobs[0].spec.recipe.max_epochs == 2


def test_suites_that_share_a_cell_share_the_trial(tmp_path):
    first = suites.expand(suites.load(write(tmp_path)))[1]
    second = suites.expand(suites.load(write(tmp_path, SUITE.replace("abmil", "max"), "other.toml")))[1]
    shared = {j.spec.trial_id for j in first} & {j.spec.trial_id for j in second}
    assert len(shared) == 10


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('title = "A suite"', "", r"mine\.toml: title: field required"),
        ("seed = [0, 1]", 'seed = ["a"]', r"mine\.toml: grid\.seed\.0: input should be a valid integer"),
        ("seed = [0, 1]", "seed = []", r"grid\.seed: list should have at least 1 item"),
        ("seed =", "sead =", r"grid\.sead: extra inputs are not permitted"),
        (
            'title = "A suite"',
            'title = "A suite"\ntask = "staging"',
            r"task: input should be 'subtyping' or 'survival' \(got 'staging'\)",
        ),
        ("[grid]", "[grid", r"mine\.toml: not TOML"),
        ("[table]", "[tabel]", "extra inputs are not permitted"),
        ('[table]\nname = "mine"\nmetrics = ["macro_auc"]', "", r"\[grid\] and \[table\] belong together"),
        ("[grid]", '[recipe]\nname = "papre"\n[grid]', r"unknown recipe in .*mine\.toml 'papre'; did you mean paper"),
    ],
)
def test_a_wrong_suite_file_names_file_key_and_what_is_allowed(tmp_path, old, new, says):
    with pytest.raises(MilbenchError, match=says):
        suites.load(write(tmp_path, SUITE.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("musk1", "musk", "unknown dataset 'musk'; did you mean musk"),
        ("hand-crafted", "uni", "unknown encoder of dataset musk1 'uni'"),
        ("kfold5", "kfold6", "did you mean kfold"),
        ('"abmil"', '"abmill"', "unknown aggregator 'abmill'"),
        ("[grid]", '[recipe]\nname = "paper"\nlr = -1\n[grid]', "suite mine: recipe: lr: input should be greater than 0"),
        ("[grid]", '[recipe]\nname = "paper"\nspeed = 1\n[grid]', "recipe: speed: extra inputs are not permitted"),
        ('title = "A suite"', 'title = "A suite"\ntask = "survival"', "suite mine is for survival, dataset musk1 for subtyping"),
        ("seed = [0, 1]", "seed = [0]\nfold = [5]", "musk1, split kfold5 has folds 0 to 4, not 5"),
        ("seed = [0, 1]", "seed = [0]\nmagnification = [20]", "musk1 has no magnification"),
    ],
)
def test_what_a_suite_asks_for_must_exist(tmp_path, old, new, says):
    with pytest.raises(MilbenchError, match=says):
        suites.expand(suites.load(write(tmp_path, SUITE.replace(old, new))))


def test_unknown_suite_has_near_misses():
    with pytest.raises(MilbenchError, match="unknown suite 'quikstart'; did you mean quickstart"):
        suites.load("quikstart")
    with pytest.raises(MilbenchError, match=r"suite file nowhere/x\.toml does not exist"):
        suites.load("nowhere/x.toml")


def test_includes_compose_suites_and_a_circle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("milbench.suites.model.HERE", tmp_path)
    for name in ("one", "two"):
        write(tmp_path, name=f"{name}.toml")
    write(tmp_path, 'title = "Both"\nincludes = ["one", "two", "one"]', "both.toml")
    write(tmp_path, 'title = "All"\nincludes = ["both", "one"]', "all.toml")
    assert [suite.name for suite in with_includes(suites.load("all"))] == ["one", "two"]
    write(tmp_path, 'title = "Round"\nincludes = ["about"]', "round.toml")
    write(tmp_path, 'title = "About"\nincludes = ["round"]', "about.toml")
    with pytest.raises(MilbenchError, match="round -> about -> round"):
        with_includes(suites.load("round"))


def cells(**changes):
    return [cell_of(spec(fold=fold, **changes)) for fold in range(2)]


def merged(store, some):
    definition = {"grid": {"aggregator": ["max", "abmil"]}}
    plan = plans.merge(store, Plan(suite="s", definition=definition, cells=some))
    assert plan == plans.read(store, "s")
    return [(cell.aggregator, cell.seed, cell.fold) for cell in plan.cells]


def test_runs_of_one_suite_add_up_in_the_suites_order(tmp_path):
    store = Store(tmp_path)
    merged(store, cells(aggregator="mine"))
    merged(store, cells(aggregator="abmil"))
    assert merged(store, cells(aggregator="max")) == [(a, 0, f) for a in ("max", "abmil", "mine") for f in (0, 1)]
    assert len(merged(store, cells(aggregator="max", seed=1))) == 8
    assert len(merged(store, cells(aggregator="max", seed=1))) == 8, "asking twice changes nothing"


def test_another_recipe_never_stands_beside_the_old_one(tmp_path):
    store = Store(tmp_path)
    merged(store, cells(aggregator="abmil"))
    quick = Recipe(name="paper", max_epochs=1)
    assert merged(store, cells(aggregator="max", recipe=quick)) == [("max", 0, 0), ("max", 0, 1)]


def test_a_new_version_of_a_method_takes_its_own_place(tmp_path):
    store = Store(tmp_path)
    merged(store, cells(aggregator="abmil") + cells(aggregator="max"))
    new = cells(aggregator="max", implementation="max@2")
    assert len(merged(store, new)) == 4
    assert {c.trial_id for c in new} <= {c.trial_id for c in plans.read(store, "s").cells}


def test_a_plan_that_is_not_there_or_cannot_be_read(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(MilbenchError, match="nothing was run into"):
        plans.read(store, "quickstart")
    merged(store, cells())
    with pytest.raises(MilbenchError, match="unknown suite in"):
        plans.read(store, "quickstart")
    path = plans.path_of(store, "s")
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 7', 1))
    with pytest.raises(MilbenchError, match="schema 7, this milbench reads 2"):
        plans.read(store, "s")
