"""Plug-ins that keep something from step to step: what a checkpoint gives back, and what it cannot."""

import random
from collections import deque

import numpy as np
import torch
from torch import nn

from milbench import Aggregator, Prediction


class Plain(Aggregator):
    """A sound start for what plug-ins keep."""

    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.head = nn.Linear(in_dim, n_out)

    def forward(self, bag):
        return Prediction(self.head(bag.features.mean(0)) * self.factor())

    def factor(self):
        return 1.0


class Counts(Plain):
    steps = 0

    def factor(self):
        self.steps += self.training
        return 1.0 + 0.01 * self.steps


class Carries(Counts):
    carried = ("steps",)


class _Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = 0


class CarriesInALayer(Plain):
    carried = ("layer.seen", "memory")

    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.layer, self.memory = _Layer(), {"queue": [], 3: (torch.zeros(2, dtype=torch.complex128), None)}

    def factor(self):
        if self.training:
            self.layer.seen += 1
            self.memory["queue"] = [*self.memory["queue"], torch.tensor(0.1 * self.layer.seen)][-5:]
        return 1 + sum(self.memory["queue"])


class ExtraState(Counts):
    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]


class Buffers(Plain):
    """Not persistent, growing, shared by two names, first None; and a constant that cannot be written to."""

    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.register_buffer("queue", None, persistent=False)
        self.register_buffer("total", torch.zeros(()), persistent=False)
        self.register_buffer("same", self.total)
        self.register_buffer("wide", torch.ones(1).expand(4), persistent=False)
        self.register_buffer("whole", torch.zeros((), dtype=torch.int64))

    def factor(self):
        if self.training:
            self.total += 0.01
            self.whole += 1
            self.queue = torch.ones(1) if self.queue is None else torch.cat([self.queue, self.total[None]])[-7:]
        return 1.0 + self.same + (0 if self.queue is None else self.queue.sum()) / (3 + self.whole)


class Draws(Plain):
    def factor(self):
        if not self.training:
            return 1.0
        return 1 + 0.1 * (torch.randn(()) + np.random.normal() + random.gauss(0, 1) + np.random.rand())  # noqa: NPY002


class Unfreezes(Plain):
    """Trains its bias only after a while."""

    carried = ("steps",)
    steps = 0

    def factor(self):
        self.steps += self.training
        self.head.bias.requires_grad_(self.steps > 15)
        return 1.0


class Scheduled(Plain):
    """Changes its optimiser's groups, and has two optimisers that collect gradients in different ways."""

    def optimisers(self, recipe):
        first = torch.optim.SGD([self.head.weight], lr=0.1, momentum=0.9, nesterov=True)
        return [first, torch.optim.Adam([self.head.bias], lr=0.01, amsgrad=True)]

    def training_step(self, bag, target, task, optimisers):
        loss = super().training_step(bag, target, task, optimisers)
        optimisers[0].param_groups[0]["momentum"] *= 0.99
        return loss


class Owns(Scheduled):
    """Holds its optimisers, and lists of its own weights and layers, which are kept anyway."""

    def optimisers(self, recipe):
        self.mine = super().optimisers(recipe)
        self.some = [self.head.weight, (self.head,), lambda x: x + 1, self.factor, torch.relu, np.float64]
        return self.mine


class QueueOfTensors(Plain):
    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.queue = deque(maxlen=3)

    def factor(self):
        if self.training:
            self.queue.append(torch.rand(2000))
        return 1.0


class OwnGenerator(Plain):
    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.rng = np.random.default_rng(0)

    def factor(self):
        return 1 + 0.01 * self.rng.normal() if self.training else 1.0


class OwnTorchGenerator(OwnGenerator):
    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.rng = torch.Generator().manual_seed(0)

    def factor(self):
        return 1 + 0.01 * torch.randn((), generator=self.rng) if self.training else 1.0


class _Meter:
    def __init__(self):
        self.parts = {"count": np.zeros(3)}


class DeepInside(Plain):
    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.meter, self.state = _Meter(), 0

    def factor(self):
        self.meter.parts["count"][1] += 1
        return 1.0


class NamedState(Plain):
    state = 0

    def factor(self):
        self.state += 1
        return 1.0


class Iterates(Plain):
    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.factors = (1 + 0.1 / n for n in range(1, 10**6))

    def factor(self):
        return next(self.factors) if self.training else 1.0


class _Counting(torch.optim.SGD):
    count = 0

    def step(self, closure=None):
        self.count += 1
        return super().step(closure)


class OwnOptimiser(Plain):
    def optimisers(self, recipe):
        return [_Counting(self.parameters(), lr=0.1)]


class CarriesTooMuch(QueueOfTensors):
    carried = ("queue",)


class CarriesNothing(Plain):
    carried = ("nothing",)


KEPT = [Carries, CarriesInALayer, ExtraState, Buffers, Draws, Unfreezes, Scheduled, Owns]
LOST = {  # class: what a message says of it
    Counts: "steps changes in training",
    QueueOfTensors: "queue changes in training",
    OwnGenerator: "rng changes in training",
    OwnTorchGenerator: "rng changes in training",
    DeepInside: "meter changes in training",
    NamedState: "state changes in training",
    Iterates: "factors changes in training",
    OwnOptimiser: "optimisers.0.count changes in training",
    CarriesTooMuch: "model.carried.queue is a deque",
    CarriesNothing: "nothing",
}
