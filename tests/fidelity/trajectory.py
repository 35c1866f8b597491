"""Trajectories: what the official training loops did, bag by bag, and how ours are held against them.

A trajectory is a vector of the form of :mod:`tests.fidelity.harness` that starts from official weights and shows bags in a recorded
order. A setup names our variant, its task and targets; the run is a real training under `--recipe official`: the model's own
optimisers and `training_step`, in the epochs of :class:`milbench.training.Steps`.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milbench import Bag, plugins
from milbench.recipes import get as get_recipe
from milbench.tasks import Subtyping, Task
from milbench.training import Steps
from tests import ROOT
from tests.fidelity.harness import Vector

SINGLE, DOUBLE = 1e-4, 1e-8  # largest deviation, relative to the largest value of the official array


def folder() -> Path:
    """MILBENCH_TRAJECTORIES, else the optional shared folder beside the repository, else the selection that travels with it."""
    if given := os.environ.get("MILBENCH_TRAJECTORIES"):
        return Path(given)
    beside = ROOT.parent / "shared" / "golden-train"
    return beside if beside.is_dir() else ROOT / "tests" / "vectors" / "training"


@dataclass
class Setup:
    """What of ours is trained as the vector was.

    Args:
        variant: name with parameters.
        task: subtyping of the constructor's classes unless given.
        targets: of each bag; the vector's labels unless given.
        changes: values of the recipe that the vector's command line changed.
        double: tolerance of the float64 run.
        finals: official array -> ours, from the predictions of all bags at the end.
        orders: for a method that shuffles instances, called with the model and the numbers of shown bags.
    """

    variant: str
    task: Task | None = None
    targets: list[Any] | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    double: float = DOUBLE
    finals: dict[str, Callable[[Any], Tensor]] = field(default_factory=lambda: {"final_logits": lambda p: p.logits})
    orders: Callable[[Any, list[int]], None] | None = None


SETUPS: dict[str, Callable[[Vector], Setup]] = {}


def trajectory(*names: str) -> Callable[[Callable[[Vector], Setup]], Callable[[Vector], Setup]]:
    """Register the setup of the vectors of these names."""

    def add(function: Callable[[Vector], Setup]) -> Callable[[Vector], Setup]:
        for name in names:
            assert name not in SETUPS, f"two setups for {name}"
            SETUPS[name] = function
        return function

    return add


def paths() -> list[Path]:
    """Every trajectory in the folder."""
    return sorted(folder().glob("*.npz"))


def setup_of(vector: Vector) -> Setup:
    """What `train_*.py` says of the vector."""
    for module in sorted(Path(__file__).parent.glob("train_*.py")):
        importlib.import_module(f"tests.fidelity.{module.stem}")
    assert vector.name in SETUPS, f"trajectory {vector.name} has no setup; write one in tests/fidelity/train_*.py"
    return SETUPS[vector.name](vector)


def width(vector: Vector) -> int:
    """Of an instance."""
    return vector.arrays["b0/x"].shape[1]


def looked_at(vector: Vector) -> list[int]:
    """The bags after which parameters are compared: those that made steps 1, 2, 8 and 24, and the last."""
    made = np.flatnonzero(vector.arrays["stepped"])
    return sorted({int(made[step - 1]) for step in (1, 2, 8, 24) if step <= len(made)} | {len(vector.arrays["order"]) - 1})


def run(vector: Vector, setup: Setup, *, double: bool) -> dict[str, Any]:
    """Train as the vector says.

    Returns:
        loss and lr by bag; official parameter -> (norm, distance from its start) after the bags of :func:`looked_at`; the finals.
    """
    about = vector.about
    variant = plugins.resolve(setup.variant)
    task = setup.task or Subtyping(["?"] * about["constructor"].get("n_classes", about["constructor"].get("num_cls")))
    model = variant.build(width(vector), task.n_out)
    model.load_official(vector.weights)
    kind = torch.float64 if double else torch.float32
    model.to(kind)
    count = len(about["cases"])
    bags = [Bag(torch.from_numpy(vector.arrays[f"b{i}/x"].copy()).to(kind), slide_id=f"b{i}") for i in range(count)]
    targets = setup.targets or [torch.tensor(int(label)) for label in vector.arrays["labels"]]
    recipe = get_recipe("official", task.name, official=variant.official, **setup.changes)
    assert recipe.name == "official", f"{setup.variant} has no recipe of its own"
    shown, each = vector.arrays["order"].tolist(), about["bags_per_epoch"]
    steps = Steps(model, bags, targets, task, recipe, lambda number: shown[(number - 1) * each : number * each])
    ours = dict(model.named_parameters())
    names = {name: new for name in about["param_order"] for new in model.rename_official({name: vector.weights[name]})}
    rows = _Rows(model, steps, {name: ours[new] for name, new in names.items()}, looked_at(vector))
    if setup.orders:
        setup.orders(model, rows.shown)
    for number in range(1, about["epochs"] + 1):
        steps.epoch(number)
    model.eval()
    with torch.no_grad():
        ends = [model(bag) for bag in bags]
    finals = {name: torch.stack([read(end) for end in ends]).numpy() for name, read in setup.finals.items()}
    return {"loss": np.array(rows.loss), "lr": np.array(rows.lr)} | rows.parameters | finals


class _Rows:
    """What is kept: of each bag its loss and the learning rates, after some bags how long and how far from its start a parameter is.

    Args:
        parameters: official name -> ours.
        looked_at: the bags after which they are measured.
    """

    def __init__(self, model: Any, steps: Steps, parameters: dict[str, Tensor], looked_at: list[int]) -> None:
        self.loss: list[float] = []
        self.lr: list[list[float]] = []
        self.shown: list[int] = []
        self.parameters: dict[str, list[tuple[float, float]]] = {name: [] for name in parameters}
        start = {name: p.detach().double().clone() for name, p in parameters.items()}
        trained = model.training_step

        def watched(*given: Any) -> Tensor:
            self.lr.append(sorted({group["lr"] for o in steps.optimisers for group in o.param_groups}))
            loss = trained(*given)
            self.loss.append(float(loss))
            for name, p in parameters.items() if len(self.shown) in looked_at else ():
                now = p.detach().double()
                self.parameters[name].append((float(now.norm()), float((now - start[name]).norm())))
            self.shown.append(len(self.shown))
            return loss

        model.training_step = watched
