"""Vectors: inputs, weights and outputs that a method's official code produced, and how ours are held against them.

A vector is `<name>.npz` with `<name>.json` beside it; keys are `w/<official parameter>` and `<case>/<array>`. An adapter is a function of
a vector that checks everything in it; it registers itself by the vector's name, or by several.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from milbench import Bag, Prediction
from tests import ROOT

FORWARD, GRADIENT, DOUBLE = 2e-5, 1e-4, 1e-8  # largest deviation, relative to the largest value of the official array
HALF = 1e-3  # arrays that were stored as float16 to save room


def folders() -> list[Path]:
    """Those of MILBENCH_VECTORS, else the optional shared ones beside the repository, else the selection that travels with it.

    MILBENCH_VECTORS separates folders as PATH does, with a colon.
    """
    if given := os.environ.get("MILBENCH_VECTORS"):
        return [Path(folder) for folder in given.split(os.pathsep)]
    beside = [folder for name in ("golden", "golden2") if (folder := ROOT.parent / "shared" / name).is_dir()]
    return beside or [ROOT / "tests" / "vectors"]


@dataclass
class Case:
    """One input with its outputs.

    Args:
        name: "c0" and so on.
        about: what the JSON says of it (n, label, ...).
        arrays: every array of the case, without its prefix.
    """

    name: str
    about: dict
    arrays: dict[str, np.ndarray]

    @property
    def label(self) -> Tensor:
        return torch.tensor(self.about["label"])

    def tensor(self, key: str, *, double: bool = False, grad: bool = False) -> Tensor:
        """An input as a tensor of its own."""
        array = self.arrays[key]
        kind = torch.float64 if double else torch.float32
        out = torch.from_numpy(array.copy())
        return (out.to(kind) if array.dtype.kind == "f" else out).requires_grad_(grad)


class Vector:
    """One file of vectors."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        with np.load(path) as file:
            self.arrays = dict(file)
        self.about = json.loads(path.with_suffix(".json").read_text())

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The official state dict."""
        return {key[2:]: torch.from_numpy(value) for key, value in self.arrays.items() if key.startswith("w/")}

    def cases(self) -> Iterator[Case]:
        """Every case that the arrays hold, whether or not the JSON describes it."""
        names = dict.fromkeys(key.split("/")[0] for key in self.arrays if "/" in key and not key.startswith("w/"))
        for name in names:
            arrays = {key[len(name) + 1 :]: value for key, value in self.arrays.items() if key.startswith(f"{name}/")}
            yield Case(name, self.about.get("cases", {}).get(name, {}), arrays)


Adapter = Callable[[Vector], None]
ADAPTERS: dict[str, Adapter] = {}


def adapter(*names: str) -> Callable[[Adapter], Adapter]:
    """Register a check for the vectors of these names."""

    def add(function: Adapter) -> Adapter:
        for name in names:
            assert name not in ADAPTERS, f"two adapters for {name}"
            ADAPTERS[name] = function
        return function

    return add


def close(ours: object, official: np.ndarray, tolerance: float, what: str = "") -> None:
    """Equal within `tolerance` of the official array's largest value; shapes may differ in axes of length one."""
    if isinstance(ours, Tensor):
        ours = ours.detach().cpu().numpy()
    ours, official = np.asarray(ours, dtype=np.float64), np.asarray(official)
    if official.dtype == np.float16:
        tolerance = max(tolerance, HALF)
    official = official.astype(np.float64)
    assert ours.size == official.size, f"{what}: {ours.shape} against the official {official.shape}"
    off = np.abs(ours.reshape(official.shape) - official).max(initial=0.0)
    scale = np.abs(official).max(initial=0.0)
    assert off <= tolerance * max(scale, 1e-30) or off < 1e-12, (
        f"{what}: off by {off:.2e} of {scale:.2e}, allowed {tolerance:.0e}"
    )


def gradients(
    vector: Vector, case: Case, x: Tensor, parameters: dict[str, nn.Parameter], *, prefix: str = "", double: bool = False
) -> None:
    """Input gradient, and norm and sum of each parameter's gradient, after `backward`; arrays that the case lacks are not checked.

    A sum cancels, so it is held against the largest norm.

    Args:
        x: the input, with its gradient.
        parameters: official name -> our parameter; one that ours does not have counts as a gradient of zero.
        prefix: of the arrays inside the case, such as "svm_sub/".
        double: the run was in float64.
    """
    suffix, tolerance = ("_f64", DOUBLE) if double else ("", GRADIENT)
    official = {kind: case.arrays.get(f"{prefix}{kind}{suffix}") for kind in ("grad_x", "param_grad_l2", "param_grad_sum")}
    what = f"{vector.name} {case.name} {prefix}%s{suffix}"
    assert x.grad is not None
    assert double or official["grad_x"] is not None, f"{what % 'grad_x'}: the vector has no input gradient"
    if official["grad_x"] is not None:
        close(x.grad, official["grad_x"], tolerance, what % "grad_x")
    if official["param_grad_l2"] is None:
        return
    ours = [parameters.get(name) for name in vector.about["param_order"]]
    found = [None if p is None or p.grad is None else p.grad.double() for p in ours]
    norms, sums = ([0.0 if g is None else float(of(g)) for g in found] for of in (torch.norm, torch.sum))
    close(norms, official["param_grad_l2"], tolerance, what % "param_grad_l2")
    if official["param_grad_sum"] is not None:
        off, scale = np.abs(np.array(sums) - official["param_grad_sum"]).max(), official["param_grad_l2"].max()
        assert off <= tolerance * scale, f"{what % 'param_grad_sum'}: off by {off:.2e}, the largest norm is {scale:.2e}"


def steps(vector: Vector, model: nn.Module, task: Any) -> Iterator[tuple[Case, bool, Prediction, Tensor]]:
    """A forward pass and the loss of every case in float32 and in float64: (case, double, prediction, loss).

    When the next one is asked for, the loss was differentiated and the gradients were held against the official ones.
    """
    for double in (False, True):
        model.to(torch.float64 if double else torch.float32)
        for case in vector.cases():
            x = case.tensor("x", double=double, grad=True)
            model.zero_grad()
            prediction = model(Bag(x))
            loss = model.training_loss(prediction, case.label, task)
            yield case, double, prediction, loss
            loss.backward()
            gradients(vector, case, x, by_official_name(model, vector), double=double)


def by_official_name(model: nn.Module, vector: Vector) -> dict[str, nn.Parameter]:
    """Official parameter name -> our parameter, for a model whose `rename_official` maps names one to one, or to nothing."""
    ours = dict(model.named_parameters())
    renamed = {name: next(iter(model.rename_official({name: value})), "") for name, value in vector.weights.items()}
    return {name: ours[new] for name, new in renamed.items() if new in ours}


def outputs(vector: Vector, case: Case, ours: dict[str, object], *, double: bool = False, train: bool = False) -> None:
    """Every array of the case but its input and gradients, against ours of the same name; none may be left out.

    Args:
        ours: name of the official array, without "train/" and "_f64" -> our value.
        double: the run was in float64; compares the "_f64" arrays.
        train: the run was in training mode; compares the arrays under "train/", else all others.
    """
    tolerance = DOUBLE if double else FORWARD
    official = {name.removesuffix("_f64"): value for name, value in case.arrays.items() if name.endswith("_f64") == double}
    official = {name.removeprefix("train/"): value for name, value in official.items() if name.startswith("train/") == train}
    for name in official.keys() - {"x", "rand", "grad_x", "param_grad_l2", "param_grad_sum"}:
        assert name in ours, f"{vector.name} {case.name}: nothing is held against {name}"
        close(ours[name], official[name], tolerance, f"{vector.name} {case.name} {name}, {tolerance:.0e}")
