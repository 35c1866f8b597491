"""Every registered aggregator keeps the contract, and the contract notices one that does not."""

import pytest
import torch
from torch import nn

from milbench import Aggregator, Prediction, contract, plugins, register
from milbench.errors import SkipTrial

LINEAR = ("retnet", "gla", "mamba-random", "mamba-single", "vmamba")
SMALL = {  # the official sizes learn the same, only slower; a contract bag would fill no more than one region of HIPT
    "transmil": "transmil[landmarks=16,hidden=64]",
    "hipt": "hipt[region=4,depth=2,dim=48]",
    "gigapath-random": "gigapath-random[depth=2,dim=64,heads=4]",
    **{entry.name: f"{entry.name}[dim=64]" for entry in plugins.entries() if "longmil" in entry.name or entry.name in LINEAR},
    "full-attention": "full-attention[dim=64]",
}


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("name", [entry.name for entry in plugins.entries()])
def test_registered_aggregator_keeps_the_contract(name, check):
    try:
        check.run(plugins.resolve(SMALL.get(name, name)))
    except SkipTrial as skip:
        pytest.skip(f"{name}: {skip}")


class Sound(Aggregator):
    """Keeps the contract; each test below breaks it in one place."""

    def __init__(self, in_dim: int, n_out: int, *, hidden: int = 16) -> None:
        super().__init__(in_dim, n_out)
        self.body = nn.Sequential(nn.Linear(in_dim, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, n_out)

    def forward(self, bag):
        return Prediction(self.head(self.body(bag.features).mean(0)))


class WrongShape(Sound):
    def forward(self, bag):
        return Prediction(super().forward(bag).logits[None])


class OneInstanceIsNan(Sound):
    def forward(self, bag):
        h = self.body(bag.features)
        return Prediction(self.head(h.sum(0) / (len(h) - 1)))


class SeesTheOrder(Sound):
    def forward(self, bag):
        weight = torch.linspace(0, 1, len(bag) + 2)[1:-1, None]
        return Prediction(self.head((weight * self.body(bag.features)).mean(0)))


class NeedsNoOrder(Sound):
    order_sensitive = True


class SeesPositions(Sound):
    def forward(self, bag):
        shift = 0.0 if bag.coords is None else 1.0
        return Prediction(super().forward(bag).logits + shift)


class NeedsNoPositions(Sound):
    needs_coords = True


class DropsInEval(Sound):
    def forward(self, bag):
        return Prediction(nn.functional.dropout(super().forward(bag).logits, 0.5, training=True))


class WritesIntoTheBag(Sound):
    def forward(self, bag):
        bag.features.mul_(2)
        return super().forward(bag)


class DeadParameter(Sound):
    def __init__(self, in_dim: int, n_out: int, *, hidden: int = 16) -> None:
        super().__init__(in_dim, n_out, hidden=hidden)
        self.unused = nn.Linear(3, 3)


class NeverLearns(Sound):
    def training_step(self, bag, target, task, optimisers):
        return task.loss(self(bag).logits, target).detach()


class LearnsNonsense(Sound):
    def training_loss(self, prediction, target, task):
        return -super().training_loss(prediction, target, task).clamp(max=2.0)


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (WrongShape, "shapes"),
        (OneInstanceIsNan, "shapes"),
        (SeesTheOrder, "permutation"),
        (NeedsNoOrder, "permutation"),
        (SeesPositions, "coordinates"),
        (NeedsNoPositions, "coordinates"),
        (DropsInEval, "determinism"),
        (WritesIntoTheBag, "untouched"),
        (DeadParameter, "gradients"),
        (NeverLearns, "step"),
        (LearnsNonsense, "learns"),
    ],
)
def test_contract_catches_a_broken_aggregator(cls, check):
    register("sound", label="Sound")(Sound)
    register("broken", label="Broken")(cls)
    run = next(c.run for c in contract.CHECKS if c.name == check)
    run(plugins.resolve("sound"))
    with pytest.raises(contract.ContractError):
        run(plugins.resolve("broken"))
