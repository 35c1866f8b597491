"""Fitting: who is looked at, which epoch is taken, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from milbench import Aggregator, Prediction, plugins
from milbench.datasets import Fold
from milbench.recipes import get as get_recipe
from milbench.seeds import derive_seed
from milbench.stats import accuracy_at_best_thresholds
from milbench.tasks import Subtyping
from milbench.training import BagOrder, Bags, FoldStatistics, HighestTestAccuracy, Standardiser, fit, fold_bags, predict
from tests.builders.datasets import toy_dataset
from tests.builders.training import Scripted, train


@pytest.mark.parametrize("name", [pytest.param("abmil[hidden=32]", marks=pytest.mark.slow), "mean[hidden=32]", "dsmil"])
def test_learns_subtyping(name):
    _, model, task, test = train(toy_dataset(40, shift=2.0), name, get_recipe("paper", "subtyping", lr=1e-3))
    assert task.metrics(test.samples, predict(model, test, task)[0])["macro_auc"] >= 0.88


def test_learns_survival_without_a_validation_part():
    data = toy_dataset(60, task="survival")
    ids = [s.id for s in data.samples]
    data = replace(data, splits={"one": lambda: [Fold(tuple(ids[::2]), (), tuple(ids[1::2]))]})
    done, model, task, test = train(data, recipe=get_recipe("paper", "survival", lr=1e-3))
    assert (done.selected_on, done.epoch, len(done.curve)) == ("none", 20, 20)
    assert task.metrics(test.samples, predict(model, test, task)[0])["c_index"] > 0.8


def test_test_slides_are_never_read_while_fitting():
    data = toy_dataset()
    fold, seen = data.folds("one")[0], []

    def read(id):
        seen.append(id)
        return data.read(id)

    train(replace(data, read=read, splits=data.splits), standardise=True, recipe=get_recipe("paper", "subtyping", max_epochs=2))
    assert set(seen) == set(fold.train) | set(fold.val)


def test_standardisation_uses_training_bags_only():
    data = toy_dataset()
    fold = data.folds("one")[0]
    rows = torch.cat([data.read(id).features for id in fold.train])
    bags, val, _ = fold_bags(data, fold, standardiser=Standardiser.of_fold(data, fold))
    seen = torch.cat([bag.features for bag in bags])
    torch.testing.assert_close(seen, (rows - rows.mean(0)) / rows.std(0, correction=0), rtol=1e-5, atol=1e-5)
    assert val is not None
    torch.testing.assert_close(
        val[0].features, (data.read(fold.val[0]).features - rows.mean(0)) / rows.std(0, correction=0), rtol=1e-5, atol=1e-5
    )


def test_a_constant_feature_is_centred_not_divided():
    constant = Standardiser(torch.zeros(1), torch.ones(1)).from_bags(
        iter([b.with_features(torch.full_like(b.features, 1e4)) for b in (toy_dataset().read("s00"), toy_dataset().read("s01"))])
    )
    assert constant(torch.full((1, 6), 1e4)).abs().max() == 0
    assert (constant.scale == 1).all()


def test_best_epoch_is_kept_and_ties_go_to_the_lower_loss():
    script = [(False, 1.0), (True, 0.5), (True, 2.0), (True, 1.0), (False, 1.0)]
    done, model, *_ = train(toy_dataset(), model=Scripted(script), recipe=get_recipe("paper", "subtyping", max_epochs=5))
    assert done.epoch == 3
    assert round(float(model.weight.detach())) == 3, "the model has the weights of that epoch"
    assert [row["val_macro_auc"] for row in done.curve] == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("select", ["best on val", "best val accuracy", "best val loss"])
def test_of_equal_epochs_the_first_is_kept(select):
    """Metric and loss both stand still: a plateau brings no new best epoch, and counts as waiting."""
    script = [(False, 1.0)] + [(True, 2.0)] * 9
    recipe = get_recipe("paper", "subtyping", max_epochs=9, patience=4, select=select)
    done, model, *_ = train(toy_dataset(), model=Scripted(script), recipe=recipe)
    assert (
        len(
            {(row["val_macro_auc"] if "val_macro_auc" in row else row["val_accuracy"], row["val_loss"]) for row in done.curve[1:]}
        )
        == 1
    )
    assert (done.epoch, len(done.curve)) == (2, 6)
    assert round(float(model.weight.detach())) == 2, "the weights of the first of them"


def test_patience_counts_epochs_without_a_better_one():
    script = [(True, 1.0)] + [(False, 1.0)] * 20
    done, *_ = train(toy_dataset(), model=Scripted(script), recipe=get_recipe("paper", "subtyping", patience=4))
    assert (done.epoch, len(done.curve)) == (1, 5)


def test_enough_is_enough():
    """Training ends with the epoch that solves validation, although later ones would lower the loss further."""
    script = [(False, 1.0), (True, 0.5), (True, 1.0), (True, 2.0)]
    for enough, min_epochs, ends in ((0.995, 0, 2), (0.995, 3, 3), (1.5, 0, 6), (None, 0, 6)):
        recipe = get_recipe("paper", "subtyping", max_epochs=6, enough=enough, min_epochs=min_epochs)
        done, *_ = train(toy_dataset(), model=Scripted(script), recipe=recipe)
        assert len(done.curve) == ends
        assert done.epoch == min(ends, 4), "the best epoch so far is kept"
    assert "enough" not in get_recipe("paper", "subtyping").model_dump(), "trials from before keep their identity"
    assert type(recipe).model_validate_json(get_recipe("paper", "subtyping", enough=0.9).model_dump_json()).enough == 0.9


def test_an_epoch_may_show_a_part_of_the_bags_and_the_next_goes_on():
    data = toy_dataset()
    labels, axes = [sample.label for sample in data.samples], ("toy", 0)
    n, recipe = len(labels), get_recipe("paper", "subtyping")
    usual, part = BagOrder(labels, recipe, axes), BagOrder(labels, recipe.model_copy(update={"epoch_bags": 7}), axes)
    for epoch in (1, 2, 3):
        generator = torch.Generator().manual_seed(derive_seed(*axes, "order", epoch))
        assert usual.epoch(epoch) == torch.randperm(n, generator=generator).tolist()
    whole = [i for epoch in (1, 2, 3) for i in usual.epoch(epoch)]
    pieces = [part.epoch(number) for number in range(1, 3 * n // 7 + 1)]
    assert [i for piece in pieces for i in piece] == whole[: 7 * len(pieces)]
    assert sorted(whole[:n]) == sorted(whole[n : 2 * n]) == list(range(n)), "every bag once before any bag twice"
    few = get_recipe("paper", "subtyping", epoch_bags=3, max_epochs=2)
    train_bags, val, _ = fold_bags(data, data.folds("one")[0])
    fit(Scripted([(True, 1.0)] * 2), train_bags, val, Subtyping(data.classes), few, axes)
    assert len(train_bags.instances) == 6
    assert "epoch_bags" not in recipe.model_dump(), "trials from before keep their identity"


def test_trials_of_a_fold_share_its_statistics():
    data, read = toy_dataset(), []
    counted = replace(data, read=lambda id: read.append(id) or data.read(id))
    fold = data.folds("one")[0]
    statistics = FoldStatistics()
    first = statistics.standardiser(counted, fold, "a")
    assert sorted(read) == sorted(fold.train)
    assert statistics.standardiser(counted, fold, "a") is first
    assert len(read) == len(fold.train), "read once"
    read.clear()
    for key in ("b", "a"):
        again = statistics.standardiser(counted, fold, key)
    assert len(read) == 2 * len(fold.train), "of the last fold only"
    assert torch.equal(again.mean, first.mean) and torch.equal(again.scale, first.scale)
    FoldStatistics().standardiser(counted, fold, "a")
    assert len(read) == 3 * len(fold.train), "nothing is shared but the object that is passed"


def test_validation_of_one_class_falls_back_on_the_loss():
    data = toy_dataset()
    ids = [s.id for s in data.samples]
    one_class = tuple(id for id in ids[10:] if data.sample(id).label == 0)
    data = replace(data, splits={"one": lambda: [Fold(tuple(ids[:10]), one_class, one_class)]})
    done, *_ = train(
        data, model=Scripted([(True, 0.5), (True, 2.0), (True, 1.0)]), recipe=get_recipe("paper", "subtyping", max_epochs=3)
    )
    assert done.epoch == 2
    assert [row["val_macro_auc"] for row in done.curve] == [None] * 3


def test_all_aggregators_meet_the_bags_in_the_same_order():
    class Diary(Scripted):
        def training_step(self, bag, target, task, optimisers):
            self.pages = [*getattr(self, "pages", []), bag.slide_id]
            torch.rand(int(bag.features.numel()) % 7)  # a method may draw as it likes
            return torch.zeros(())

    class Other(Diary):
        def __init__(self):
            super().__init__([])
            self.more = torch.nn.Linear(3, 3)

    recipe = get_recipe("paper", "subtyping", max_epochs=3, patience=None)
    first, second, another_seed = Diary([]), Other(), Diary([])
    train(toy_dataset(), model=first, recipe=recipe)
    train(toy_dataset(), model=second, recipe=recipe)
    train(toy_dataset(), model=another_seed, recipe=recipe, axes=("toy", "one", 0, 1))
    assert first.pages == second.pages
    assert first.pages != another_seed.pages
    assert first.pages[:10] != first.pages[10:20], "a new order each epoch"


def test_derived_seeds_are_fixed_for_ever():
    assert derive_seed("toy", "one", 0, 0, "order", 1) == 6975669481299976627
    assert len({derive_seed("a", i) for i in range(100)}) == 100


def test_diverging_training_is_an_error_that_says_so():
    class Explodes(Scripted):
        def training_step(self, bag, target, task, optimisers):
            return torch.tensor(float("nan"))

    with pytest.raises(ArithmeticError, match="epoch 1: the training loss is nan; try a lower learning rate"):
        train(toy_dataset(), model=Explodes([]))


def test_methods_without_gradients_fit_once():
    class Nearest(Aggregator):
        def __init__(self):
            super().__init__(6, 2)

        def fit(self, bags, targets):
            means = torch.stack([bag.features.mean(0) for bag in bags])
            self.centres = torch.stack([means[torch.stack(list(targets)) == c].mean(0) for c in (0, 1)])

        def forward(self, bag):
            return Prediction(-(self.centres - bag.features.mean(0)).norm(dim=1))

    done, model, task, test = train(toy_dataset(40, shift=2.0), model=Nearest())
    assert done.curve == []
    assert task.metrics(test.samples, predict(model, test, task)[0])["accuracy"] == 1


def test_bags_are_checked_on_first_reading():
    data = toy_dataset()
    broken = replace(data, read=lambda id: data.read(id).with_features(torch.full((2, 6), np.nan)))
    with pytest.raises(Exception, match=r"slide s00 \(s00\.h5\): 2 of 2 patches hold NaN"):
        Bags(broken, ["s00"])[0]


def test_the_optimistic_protocol_is_looked_at_and_changes_nothing():
    data = toy_dataset(30, shift=0.3)
    fold, recipe = data.folds("one")[0], get_recipe("classic", "subtyping", max_epochs=6, lr=1e-2)
    task = Subtyping(data.classes)

    def trained(watched):
        bags, val, test = fold_bags(data, fold)
        torch.manual_seed(0)
        model = plugins.resolve("dtfd-afs[hidden=16,attention_dim=8]").build(data.in_dim, 2)
        target, seen = np.array([sample.label for sample in test.samples]), []
        highest = HighestTestAccuracy(model, test, task, 4, lambda epoch, row: seen.append(epoch))
        each = []

        def on_epoch(epoch, row):
            each.append(accuracy_at_best_thresholds(target, predict(model, test, task)[0], one_output=True))
            highest(epoch, row)

        fit(model, bags, val, task, recipe, ("x",), on_epoch if watched else lambda epoch, row: None)
        return predict(model, test, task)[0], highest.value, each, seen

    scores, value, each, seen = trained(True)
    assert value == max(each[:4]), "of the first epochs only"
    assert seen == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(scores, trained(False)[0])
    assert recipe.optimistic_epochs == 40
