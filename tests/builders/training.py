"""A fit of a small dataset, and a model whose validation scores follow a script."""

import torch

from milbench import Aggregator, Prediction, plugins
from milbench.ops import backends
from milbench.recipes import get as get_recipe
from milbench.tasks import for_fold
from milbench.training import Standardiser, fit, fold_bags
from milbench.trials.spec import TrialSpec


def train(data, name="abmil", recipe=None, model=None, standardise=False, axes=("toy", "one", 0, 0)):
    fold = data.folds("one")[0]
    task = for_fold(data, fold.train)
    train_bags, val, test = fold_bags(data, fold, standardiser=Standardiser.of_fold(data, fold) if standardise else None)
    torch.manual_seed(0)
    model = model or plugins.resolve(name).build(data.in_dim, task.n_out)
    recipe = recipe or get_recipe("paper", data.task, has_validation=val is not None)
    return fit(model, train_bags, val, task, recipe, axes), model, task, test


class Scripted(Aggregator):
    """Its k-th epoch has the validation scores of a script: `wins` decides the AUC, `margin` the loss."""

    def __init__(self, script):
        super().__init__(6, 2)
        self.script, self.weight = script, torch.nn.Parameter(torch.zeros(()))

    def forward(self, bag):
        epoch = round(float(self.weight.detach()))
        label = int(bag.slide_id[1:]) % 2
        right, margin = self.script[epoch - 1] if 0 < epoch <= len(self.script) else (True, 1.0)
        sign = (1 if label else -1) * (1 if right else -1)
        return Prediction(torch.stack([-sign * margin + 0 * self.weight, sign * margin + 0 * self.weight]))

    def optimisers(self, recipe):
        return []

    def training_step(self, bag, target, task, optimisers):
        self.steps = getattr(self, "steps", 0) + 1
        with torch.no_grad():
            self.weight.fill_((self.steps - 1) // 10 + 1)  # 10 training bags: the number of the epoch
        return torch.zeros(())


def trial_of(text, dataset, *, recipe="paper", standardise=False, **changes):
    """The spec of a trial of `text` on a dataset made on the spot, which has one split of one fold."""
    variant = plugins.resolve(text)
    return TrialSpec(
        dataset=dataset.name, fingerprint=dataset.fingerprint, unit=dataset.unit, task=dataset.task, encoder="none",
        aggregator=variant.entry.name, params=variant.params, implementation=variant.implementation, split="one",
        split_fingerprint=dataset.split_fingerprint("one"), fold=0, seed=0, standardise=standardise,
        backends=backends.chosen(variant.entry.cls.ops, "cpu"),
        recipe=get_recipe(
            recipe, dataset.task, has_validation=bool(dataset.folds("one")[0].val), official=variant.official, **changes
        ),
    )  # fmt: skip
