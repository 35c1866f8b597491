"""The suite of classic sets: its protocol, and printed results beside measured ones."""

import pytest
import torch

from milbench import MilbenchError, plugins, suites
from milbench.recipes import get as get_recipe
from tests.builders.datasets import toy_dataset
from tests.builders.training import Scripted, train

PAPER = "abmil[lineage=original,trunk=256-128,hidden=64,attention_dim=64,gated=false,dropout=0.5]"


def test_the_protocol_differs_by_set():
    _, jobs = suites.expand(suites.load("classic"))
    assert len(jobs) == 4 * 6 * 10
    found = {j.spec.dataset: (j.spec.recipe.lr, j.spec.recipe.weight_decay, j.spec.standardise) for j in jobs}
    assert found == {
        "musk1": (5e-4, 5e-3, True), "musk2": (5e-4, 3e-2, True), "elephant": (1e-4, 5e-3, False), "ucsb-breast": (5e-4, 5e-3, True),
    }  # fmt: skip
    every = {(j.spec.recipe.name, j.spec.recipe.optimiser, j.spec.recipe.max_epochs, j.spec.recipe.patience) for j in jobs}
    assert every == {("classic", "sgd", 100, None)}


def test_what_is_asked_for_wins_over_the_values_of_a_set():
    _, jobs = suites.expand(suites.load("classic"), epochs=3, folds=[0])
    assert {j.spec.recipe.max_epochs for j in jobs} == {3}
    _, jobs = suites.expand(suites.load("classic"), aggregators=["mean[recipe.lr=0.1]"], folds=[0])
    assert {j.spec.recipe.lr for j in jobs} == {0.1}
    _, jobs = suites.expand(suites.load("classic"), recipe="paper", folds=[0])
    assert {(j.spec.recipe.name, j.spec.recipe.lr) for j in jobs} == {("paper", 1e-4)}


def test_values_for_a_set_that_is_not_in_the_grid_are_refused():
    suite = suites.load("classic")
    suite = suite.model_copy(update={"recipe": {"name": "classic", "on": {"musk3": {"lr": 1.0}}}})
    with pytest.raises(MilbenchError, match=r"recipe\.on of suite classic 'musk3'; did you mean musk[12]"):
        suites.expand(suite)


def test_full_is_every_method_without_positions():
    suite = suites.load("classic-full")
    names = {text.split("[")[0] for text in suite.grid.aggregator}
    # gigapath-pretrained cannot be built without its weights; all others say on a model whether they need positions
    free = {e.name for e in plugins.entries() if not e.cls.needs_coords}
    assert names == free
    _, jobs = suites.expand(suite)
    assert len(jobs) == 7 * 27 * 10 * 5


def test_the_recipe_is_for_subtyping():
    with pytest.raises(MilbenchError, match="recipe classic is for subtyping, not for survival"):
        get_recipe("classic", "survival")


def test_the_epoch_of_the_fewest_errors_is_kept_and_ties_go_to_the_lower_loss():
    script = [(False, 1.0), (True, 0.5), (True, 2.0), (True, 1.0), (False, 1.0)]
    done, *_ = train(toy_dataset(), model=Scripted(script), recipe=get_recipe("classic", "subtyping", max_epochs=5))
    assert done.epoch == 3
    assert [row["val_accuracy"] for row in done.curve] == [0, 1, 1, 1, 0]


def test_the_instance_network_of_the_classic_sets():
    model = plugins.resolve(PAPER).build(166, 2)
    sizes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert sizes == [(256, 166), (128, 256), (64, 128), (64, 64), (1, 64), (1, 64)]
    assert [m.p for m in model.project if isinstance(m, torch.nn.Dropout)] == [0.5] * 3
    with pytest.raises(ValueError, match="trunk is a row of widths such as 256-128, not 'wide'"):
        plugins.resolve("abmil[trunk=wide]").build(166, 2)
