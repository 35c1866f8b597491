"""What training changes, so that it can be kept and had again: weights, optimisers, random numbers, whatever a model counts.

What `__init__`, `prepare` and `optimisers` set is made again from the same seeds. :func:`plain_state` finds what training changes
beside that which is kept: a checkpoint that lacks something would change numbers without a word.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock, RLock
from types import FunctionType, ModuleType
from typing import Any, Protocol
from weakref import ReferenceType

import numpy as np
import torch
from torch import Tensor, nn

from milbench.aggregator import Aggregator
from milbench.nn.optimisers import Optimiser

_OF_MODULES = vars(nn.Module()).keys()  # what every module has
_OF_OPTIMISERS = {"state", "defaults", "param_groups"}
_BY_IDENTITY = (type, FunctionType, ModuleType, ReferenceType, type(Lock()), type(RLock()))  # which no number is kept in


class Part(Protocol):
    """Something that training changes: its state is made of numbers, text and tensors in lists, tuples and dicts."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Have that state."""


def packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A state as JSON, its tensors in `tensors`, under names that say where they stand.

    Args:
        value: numbers, text, None and tensors in lists, tuples and dicts.
        name: of the value.
        tensors: gets copies, on the CPU.

    Raises:
        TypeError: something else is in it.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
        kind, t = ("complex", torch.view_as_real(value.detach().resolve_conj())) if value.is_complex() else ("tensor", value)
        key = f"{len(tensors)} {name}"
        tensors[key] = t.detach().to("cpu", copy=True).contiguous()
        return {kind: [key, value.device.type]}
    if type(value) in (list, tuple):
        return {type(value).__name__: [packed(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    if type(value) in (dict, OrderedDict) and not any(isinstance(key, Tensor) for key in value):
        pairs = [(packed(key, name, tensors), packed(item, f"{name}.{key}", tensors)) for key, item in value.items()]
        return {"dict": pairs}
    raise TypeError(f"{name} is a {type(value).__name__}; it can be numbers, text and tensors in lists, tuples and dicts")


def unpacked(said: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`packed`; tensors are new ones, on the kind of device where they were."""
    if not isinstance(said, dict):
        return said
    ((kind, content),) = said.items()
    match kind:
        case "tensor" | "complex":
            key, device = content
            t = tensors[key] if kind == "tensor" else torch.view_as_complex(tensors[key])
            return t.to(device, copy=True)
        case "dict":
            return {unpacked(key, tensors): unpacked(item, tensors) for key, item in content}
    items = [unpacked(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


class Weights:
    """A model: parameters with their gradients, buffers, and what its author says that training changes.

    Some gradients wait for the next epoch, where several bags make one step.
    """

    def __init__(self, model: Aggregator) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        model = self._model
        return {
            "parameters": {name: (p, p.grad, p.requires_grad) for name, p in model.named_parameters()},
            "buffers": {path: dict(module._buffers) for path, module in model.named_modules()},
            "extra": {path: module.get_extra_state() for path, module in _with_extra_state(model)},
            "carried": {name: getattr(_owner(model, name), name.rpartition(".")[2]) for name in model.carried},
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Have that state, in the parameters that optimisers hold."""
        model = self._model
        for name, p in model.named_parameters():
            value, p.grad, trained = state["parameters"][name]
            p.copy_(value)
            p.requires_grad_(trained)
        for path, module in model.named_modules():
            for name, value in state["buffers"][path].items():
                _set_buffer(module, name, value)
        for path, module in _with_extra_state(model):
            module.set_extra_state(state["extra"][path])
        for name in model.carried:
            setattr(_owner(model, name), name.rpartition(".")[2], state["carried"][name])


def _set_buffer(module: nn.Module, name: str, value: Tensor | None) -> None:
    """In place where that is possible: something else may look at the same tensor."""
    ours = module._buffers.get(name)
    if ours is None or value is None or (ours.shape, ours.dtype) != (value.shape, value.dtype):
        module._buffers[name] = value
    elif not torch.equal(ours, value):  # a constant may be a view that cannot be written to
        ours.copy_(value)


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _with_extra_state(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield path, module


class RandomNumbers:
    """The global generators of torch, of its device, of NumPy and of Python."""

    def __init__(self, device: torch.device) -> None:
        self._on_device: Any = None if device.type == "cpu" else getattr(torch, device.type)

    def state_dict(self) -> dict[str, Any]:
        """Of each of them."""
        name, key, *rest = np.random.get_state()  # noqa: NPY002 - the global generator, from which plug-ins draw
        return {
            "torch": torch.get_rng_state(),
            "device": self._on_device and self._on_device.get_rng_state(),
            "numpy": (name, np.asarray(key).tolist(), *rest),
            "python": random.getstate(),
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Have that state."""
        torch.set_rng_state(state["torch"])
        if self._on_device:
            self._on_device.set_rng_state(state["device"])
        np.random.set_state(state["numpy"])  # noqa: NPY002 - as above
        random.setstate(state["python"])


def plain_state(model: Aggregator, optimisers: Sequence[Optimiser]) -> dict[str, object]:
    """What a model and its optimisers hold outside of what a checkpoint keeps: name -> a value that differs when that changed."""
    known = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers(), *model.named_modules()]}
    known |= {id(optimiser): f"optimisers.{i}" for i, optimiser in enumerate(optimisers)}
    trusted = {path for path, _ in _with_extra_state(model)}
    state = {
        f"{path}.{name}".strip("."): _described(value, known)
        for path, module in model.named_modules()
        if path not in trusted
        for name, value in vars(module).items()
        if name not in _OF_MODULES
    }
    state |= {
        f"optimisers.{i}.{name}": _described(value, known)
        for i, optimiser in enumerate(optimisers)
        if getattr(type(optimiser), "state_dict", None) is torch.optim.Optimizer.state_dict  # another says itself what it has
        for name, value in vars(optimiser).items()
        if name not in _OF_OPTIMISERS
    }
    return {name: value for name, value in state.items() if name not in model.carried}


def changed(before: Mapping[str, object], after: Mapping[str, object]) -> str | None:
    """The first name of a :func:`plain_state` whose value is another one, or None."""
    return next((name for name in {**after, **before} if before.get(name) != after.get(name)), None)


def _described(value: Any, known: Mapping[int, str]) -> object:
    """Equal for a value that is still the same, however deep it is; what cannot be looked into equals nothing."""
    out = io.BytesIO()
    try:
        _Describer(out, known).dump(value)
    except Exception:  # whatever the classes of a plug-in raise
        return object()
    return out.getvalue()


class _Describer(pickle.Pickler):
    """Writes down a value so that two of them can be compared. Nothing of it is stored, nor ever read."""

    def __init__(self, out: io.BytesIO, known: Mapping[int, str]) -> None:
        super().__init__(out)
        self._known = known

    def persistent_id(self, value: Any) -> Any:
        """What stands for a value; None has it written down piece by piece."""
        if (name := self._known.get(id(value))) is not None:
            return "known", name
        if isinstance(value, torch.Generator):
            value = value.get_state()
        if isinstance(value, Tensor):
            return str(value.dtype), tuple(value.shape), hashlib.sha256(as_bytes(value)).hexdigest()
        return id(value) if isinstance(value, _BY_IDENTITY) else None


def as_bytes(t: Tensor) -> Any:
    """The bytes of a tensor, in the order of its elements."""
    return t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
