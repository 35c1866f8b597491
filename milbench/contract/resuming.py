"""A training that is cut off between two epochs and goes on in a fresh model: nothing that it needs may be lost."""

import json
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from milbench import places, process
from milbench.aggregator import Aggregator
from milbench.contract.bags import IN_DIM, bag, labelled
from milbench.contract.faults import ContractError, require
from milbench.plugins import Variant
from milbench.recipes import get as get_recipe
from milbench.tasks import Subtyping, Survival
from milbench.training import Part, Steps
from milbench.training.state import RandomNumbers, Weights, as_bytes, changed, packed, plain_state, unpacked


class _Training:
    """A training in small, of which gradients of one epoch wait for the next."""

    def __init__(self, variant: Variant, task: Subtyping | Survival) -> None:
        process.seed(0)
        self.model = variant.build(IN_DIM, task.n_out)
        bags, targets = zip(*islice(labelled(task), 5), strict=True)
        self.model.prepare(bags, torch.Generator().manual_seed(0))
        recipe = get_recipe("paper", task.name, accumulate=4, lr=1e-3)
        self.steps = Steps(self.model, bags, targets, task, recipe, lambda number: range(len(bags)))
        random = RandomNumbers(torch.device("cpu"))
        self.parts: dict[str, Part] = {"model": Weights(self.model), "optimisers": self.steps, "random": random}

    def epoch(self, number: int) -> None:
        self.steps.epoch(number)
        self.model.eval()
        with torch.no_grad():
            self.model(bag(20, seed=number))

    def state(self) -> tuple[Any, dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {}
        said = {name: packed(part.state_dict(), name, tensors) for name, part in self.parts.items()}
        return json.loads(json.dumps(said)), tensors

    def go_on(self, said: Any, tensors: dict[str, Tensor]) -> None:
        process.seed(1)
        for name, part in self.parts.items():
            part.load_state_dict(unpacked(said[name], tensors))


def resumes(variant: Variant) -> None:
    """A training that is cut off after an epoch and goes on in a fresh model ends with the same weights, to the byte."""
    for task in (Subtyping("abc"), Survival([1.0, 2.0, 3.0])):
        if not variant.build(IN_DIM, task.n_out).trained_by_gradient:
            return
        whole = _Training(variant, task)
        before = plain_state(whole.model, whole.steps.optimisers)
        whole.epoch(1)
        if name := changed(before, plain_state(whole.model, whole.steps.optimisers)):
            raise _lost(whole.model, name)
        try:
            kept = whole.state()
        except TypeError as error:  # of what the author keeps
            raise ContractError(f"training keeps what cannot be written down: {error}") from error
        whole.epoch(2)
        pieces = _Training(variant, task)
        pieces.go_on(*kept)
        pieces.epoch(2)
        differs = _difference(whole.state(), pieces.state())
        advice = "keep what training changes in parameters, in buffers, or in attributes that `carried` names"
        require(differs is None, f"{differs} differs after a training that was cut off and went on; {advice}")


def _lost(model: Aggregator, name: str) -> ContractError:
    """The fault of an attribute that training changes and no checkpoint keeps."""
    says = f"self.{name} changes in training and is neither parameter nor buffer, so a trial that is cut off would lose it; "
    says += f'write carried = ("{name}",) in the class, or register_buffer; if no later step needs it, do not keep it'
    path, _, attribute = name.rpartition(".")
    if name.startswith("optimisers."):
        says = f"{name} changes in training and is not in the optimiser's state_dict(), so a trial that is cut off would lose it"
        return ContractError(says, places.of_function(type(model).optimisers))
    return ContractError(says, places.of_attribute(type(model.get_submodule(path)), attribute))


def _difference(first: tuple[Any, dict[str, Tensor]], second: tuple[Any, dict[str, Tensor]]) -> str | None:
    """What differs first, or None. Names of tensors have a number before them, and the part they belong to."""
    (said, tensors), (other_said, others) = first, second
    for name, t in tensors.items():
        if name not in others or t.shape != others[name].shape or bytes(as_bytes(t)) != bytes(as_bytes(others[name])):
            return name.partition(".")[2]
    same = json.dumps(said["model"]) == json.dumps(other_said["model"])  # as text, where "not a number" is itself
    return None if same else "what `carried` names, or get_extra_state gives,"
