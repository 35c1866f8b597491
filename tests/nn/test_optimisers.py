"""Optimisers and schedules: what a recipe says is what happens."""

import pytest
import torch
from torch import nn

from milbench import plugins, suites
from milbench.nn.optimisers import build, epochs_done, learning_rate, start_epoch
from milbench.recipes import Recipe
from milbench.recipes import get as get_recipe
from milbench.tasks import for_fold
from milbench.training import BagOrder, fit, fold_bags
from tests.builders.datasets import toy_dataset


def test_accumulation_is_the_mean_of_the_gradients():
    recipe = {"name": "x", "optimiser": "sgd", "lr": 0.1, "weight_decay": 0.0}
    paced, plain = nn.Linear(3, 1), nn.Linear(3, 1)
    plain.load_state_dict(paced.state_dict())
    batch = torch.randn(4, 3)
    every_fourth = build(Recipe(**recipe, accumulate=4), paced.parameters())
    for row in batch:
        every_fourth.zero_grad()
        paced(row).sum().backward()
        every_fourth.step()
    once = build(Recipe(**recipe), plain.parameters())
    plain(batch).mean().backward()
    once.step()
    torch.testing.assert_close(paced.weight, plain.weight)
    start = paced.weight.detach().clone()
    every_fourth.zero_grad()
    paced(batch[0]).sum().backward()
    every_fourth.step()
    assert torch.equal(start, paced.weight), "a left-over bag waits for the next epoch"


def test_clipping_bounds_the_step():
    model = nn.Linear(3, 1)
    before = model.weight.detach().clone()
    optimiser = build(Recipe(name="x", optimiser="sgd", lr=1.0, weight_decay=0.0, clip=0.5), [model.weight])
    (model(torch.ones(1, 3)) * 1000).sum().backward()
    optimiser.step()
    assert float((before - model.weight.detach()).norm()) == pytest.approx(0.5, rel=1e-4)


def test_vectors_can_stay_without_weight_decay():
    model = nn.Linear(3, 1)
    bias, weight = model.bias.detach().clone(), model.weight.detach().clone()
    optimiser = build(Recipe(name="x", lr=0.1, weight_decay=0.5, decay_vectors=False), model.parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    assert torch.equal(model.bias, bias)
    torch.testing.assert_close(model.weight, weight * (1 - 0.05))


def test_schedules():
    cosine = Recipe(name="x", lr=1e-4, schedule="cosine", final_lr=5e-6, max_epochs=50)
    assert learning_rate(cosine, 0) == 1
    assert learning_rate(cosine, 25) == pytest.approx((1 + 0.05) / 2)
    assert learning_rate(cosine, 50) == pytest.approx(0.05)
    steps = Recipe(name="x", schedule="multistep", milestones=(100,), gamma=0.2, max_epochs=200)
    assert [learning_rate(steps, e) for e in (0, 99, 100, 199)] == [1, 1, 0.2, 0.2]
    warm = Recipe(name="x", schedule="cosine-per-step", warmup_epochs=1, max_epochs=5)
    assert [learning_rate(warm, p) for p in (0, 0.5, 1, 5)] == pytest.approx([0, 0.5, 1, 0])
    assert learning_rate(Recipe(name="x"), 49) == 1


def test_balanced_sampling_draws_rare_classes_as_often():
    data = toy_dataset(40)
    labels = [s.label for s in data.samples if s.label == 0] + [1, 1]
    balanced = BagOrder(labels, Recipe(name="x", sampling="class-balanced"), ("x",))
    drawn = [labels[i] for epoch in range(1, 61) for i in balanced.epoch(epoch)]
    assert 0.42 < sum(drawn) / len(drawn) < 0.58
    assert sorted(BagOrder(labels, Recipe(name="x"), ("x",)).epoch(1)) == list(range(len(labels)))


@pytest.mark.parametrize(
    ("name", "task", "values"),
    [
        (
            "clam-sb",
            "subtyping",
            {"optimiser": "adam", "lr": 2e-4, "max_epochs": 200, "select": "best val loss", "sampling": "class-balanced"},
        ),
        ("dsmil", "subtyping", {"betas": (0.5, 0.9), "weight_decay": 1e-3, "schedule": "cosine", "final_lr": 5e-6}),
        ("dsmil", "survival", {"accumulate": 32, "select": "last", "max_epochs": 20}),
        ("transmil", "subtyping", {"optimiser": "lookahead-radam", "accumulate": 2, "decay_vectors": False}),
    ],
)
def test_official_recipes(name, task, values):
    recipe = get_recipe("official", task, official=plugins.resolve(name).entry.cls.official_recipe)
    assert recipe.name == "official"
    assert {key: getattr(recipe, key) for key in values} == values


@pytest.mark.parametrize("entry", plugins.entries(), ids=lambda entry: entry.name)
def test_every_official_recipe_is_valid_and_trains(entry):
    for task in entry.cls.official_recipe:
        recipe = get_recipe("official", task, official=entry.cls.official_recipe)
        assert recipe.name == "official"
    if (
        not entry.cls.official_recipe
        or entry.cls.needs_coords
        or "subtyping" not in entry.cls.official_recipe
        or "gigapath" in entry.name
    ):
        return
    data = toy_dataset(16)
    fold = data.folds("one")[0]
    train, val, _ = fold_bags(data, fold)
    recipe = get_recipe("official", "subtyping", official=entry.cls.official_recipe, max_epochs=2, min_epochs=0, select_after=0)
    params = {"transmil": {"landmarks": 8}, "dgrmil": {"dim": 32}}.get(entry.name, {})
    model = entry.cls(data.in_dim, 2, **{**plugins.resolve(entry.name).params, **params})
    assert len(fit(model, train, val, for_fold(data, fold.train), recipe, ("x",)).curve) == 2


def test_a_method_without_a_recipe_of_its_own_keeps_the_papers_and_shares_its_trial():
    suite = suites.load("quickstart")
    paper = suites.expand(suite, aggregators=["mean", "clam-sb"], folds=[0])[1]
    official = suites.expand(suite, aggregators=["mean", "clam-sb"], folds=[0], recipe="official")[1]
    assert paper[0].spec.trial_id == official[0].spec.trial_id
    assert (official[0].spec.recipe.name, official[1].spec.recipe.name) == ("paper", "official")
    assert paper[1].spec.trial_id != official[1].spec.trial_id
    assert official[0].cell.context == official[1].cell.context != paper[0].cell.context


def steps_of(left_over, bags, epochs, accumulate=4):
    """After which bags of which epoch a step is made, and how many gradients of ones were in each: their sum over `accumulate`."""
    p = nn.Parameter(torch.zeros(1))
    recipe = Recipe(name="x", optimiser="sgd", lr=1.0, weight_decay=0.0, accumulate=accumulate, left_over=left_over)
    optimiser = build(recipe, [p])
    made = []
    for epoch in range(1, epochs + 1):
        start_epoch([optimiser], bags)
        for bag in range(1, bags + 1):
            optimiser.zero_grad()
            p.sum().backward()
            waiting, before = float(p.grad), float(p.detach())
            optimiser.step()
            if float(p.detach()) != before:
                made.append((epoch, bag, waiting))
    return made


@pytest.mark.parametrize(
    ("left_over", "bags", "made"),
    [
        ("carry", 6, [(1, 4, 4), (2, 2, 4), (2, 6, 4)]),
        ("restart", 6, [(1, 4, 4), (2, 4, 6)]),
        ("flush", 6, [(1, 4, 4), (1, 6, 2), (2, 4, 4), (2, 6, 2)]),
        ("carry", 3, [(2, 1, 4)]),
        ("restart", 3, []),
        ("flush", 3, [(1, 3, 3), (2, 3, 3)]),
        ("carry", 4, [(1, 4, 4), (2, 4, 4)]),
        ("restart", 4, [(1, 4, 4), (2, 4, 4)]),
        ("flush", 4, [(1, 4, 4), (2, 4, 4)]),
    ],
)
def test_what_becomes_of_bags_that_make_no_whole_step(left_over, bags, made):
    assert steps_of(left_over, bags, 2) == made


def test_the_gradient_of_a_shorter_step_is_divided_all_the_same():
    p = nn.Parameter(torch.zeros(1))
    recipe = Recipe(name="x", optimiser="sgd", lr=1.0, weight_decay=0.0, accumulate=4, left_over="flush")
    optimiser = build(recipe, [p])
    start_epoch([optimiser], 1)
    optimiser.zero_grad()
    p.sum().backward()
    optimiser.step()
    assert float(p.detach()) == -0.25


@pytest.mark.parametrize(
    ("left_over", "second"), [("restart", [5, 5, 5, 5, 9]), ("flush", [5, 5, 5, 5, 9]), ("carry", [4, 4, 4, 8, 8])]
)
def test_the_learning_rate_is_that_of_the_first_bag_of_a_step(left_over, second):
    recipe = Recipe(name="x", schedule="cosine-per-step", accumulate=4, left_over=left_over, max_epochs=5)
    assert [round(epochs_done(recipe, 1, at, 5) * 5) for at in range(5)] == [0, 0, 0, 0, 4]
    assert [round(epochs_done(recipe, 2, at, 5) * 5) for at in range(5)] == second
    by_epoch = recipe.model_copy(update={"schedule": "cosine"})
    assert {epochs_done(by_epoch, 3, at, 5) for at in range(5)} == {2}


def test_eps_is_the_optimisers():
    p = nn.Parameter(torch.zeros(1))
    assert build(Recipe(name="x", eps=3.2e-7, optimiser="adam"), [p]).param_groups[0]["eps"] == 3.2e-7
    assert build(Recipe(name="x", optimiser="adam"), [p]).param_groups[0]["eps"] == 1e-8


def test_what_a_recipe_leaves_unset_is_not_in_a_trials_identity():
    younger = {"enough", "epoch_bags", "eps", "left_over", "ties", "optimistic_epochs"}
    paper = get_recipe("paper", "subtyping").model_dump()
    assert not younger & paper.keys()
    restarted = get_recipe("paper", "survival", accumulate=32, left_over="restart")
    assert restarted.model_dump()["left_over"] == "restart"
    assert Recipe.model_validate_json(restarted.model_dump_json()) == restarted


@pytest.mark.parametrize(
    ("text", "task", "name"),
    [
        ("max", "subtyping", "paper"), ("max[pick=instance]", "subtyping", "official"), ("mean", "survival", "paper"),
        ("mean[reduce=sum,rho=256]", "survival", "official"), ("amisl[lineage=original]", "survival", "paper"),
        ("abmil[lineage=original]", "survival", "paper"), ("dsmil[lineage=hipt]", "subtyping", "official"),
    ],
)  # fmt: skip
def test_a_variant_has_the_recipe_of_its_own_publication(text, task, name):
    assert get_recipe("official", task, official=plugins.resolve(text).official).name == name


def test_hipts_recipes():
    hipt = get_recipe("official", "subtyping", official=plugins.resolve("hipt").official)
    assert (hipt.weight_decay, hipt.eps, hipt.accumulate) == (3.2e-4, 3.2e-7, 1)
    dsmil = plugins.resolve("dsmil[lineage=hipt]").official
    assert get_recipe("official", "subtyping", official=dsmil) == hipt
    survival = get_recipe("hipt", "survival")
    assert survival.model_dump(exclude={"name"}) == get_recipe("official", "survival", official=dsmil).model_dump(
        exclude={"name"}
    )


def test_a_misspelt_value_of_an_official_recipe_is_refused():
    with pytest.raises(ValueError, match="patiance"):
        get_recipe("official", "subtyping", official={"subtyping": {"patiance": 3}})


def test_official_takes_the_parameters_of_the_methods_script():
    suite = suites.load("quickstart")
    names = ["dsmil", "dsmil[orthogonal=true]", "dsmil[query_dim=64]"]
    paper = {job.cell.aggregator: job.spec for job in suites.expand(suite, aggregators=names, folds=[0])[1]}
    official = {job.cell.aggregator: job.spec for job in suites.expand(suite, aggregators=names, folds=[0], recipe="official")[1]}
    assert [spec.params["orthogonal"] for spec in paper.values()] == [False, True, False]
    assert [spec.params["orthogonal"] for spec in official.values()] == [True, True, True]
    assert official.keys() == paper.keys(), "rows keep their names"
