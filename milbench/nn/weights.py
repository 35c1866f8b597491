"""Weights from a file, and which of them a model of other classes can start from."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from milbench.errors import MilbenchError


def read(path: str) -> dict[str, Tensor]:
    """A state dict from a file; tensors only, nothing in it is executed.

    Args:
        path: a `.safetensors` file, or one of torch that holds a state dict, by itself or under the key "model" or "state_dict".
            A state dict for each module, by its name, is one of them all.

    Raises:
        MilbenchError: no such file, no file of tensors, or no state dict in it.
    """
    if not Path(path).is_file():
        raise MilbenchError(f"weights {path}: no such file")
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MilbenchError(f"weights {path}: not a file of tensors ({error})") from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), content)
    state = _flat(content) if isinstance(content, Mapping) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise MilbenchError(f"weights {path}: holds no state dict, neither by itself nor under the key 'model' or 'state_dict'")
    return state


def _flat(content: Mapping[str, Tensor | Mapping[str, Tensor]]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        state |= {f"{name}.{inner}": t for inner, t in value.items()} if isinstance(value, Mapping) else {name: value}
    return state


def _list_of(name: str, known: Mapping[str, object]) -> str:
    """Where an entry that is not known stands: the longest part of its name that is known. `heads.3.weight` -> `heads.`"""
    parts = name.split(".")
    paths = [".".join(parts[:i]) + "." for i in range(1, len(parts) + 1)]
    return next((path for path in reversed(paths) if any(other.startswith(path) for other in known)), name)


class Trunk:
    """The entries of a model's state that do not depend on its classes.

    Those that do are known by building the model for one class more: their shape differs, or they are in a list that has one
    layer for each class.

    Args:
        model: the model.
        wider: the same with one class more.
    """

    def __init__(self, model: nn.Module, wider: nn.Module) -> None:
        self.model = model
        shape, other = ({k: t.shape for k, t in one.state_dict().items() if isinstance(t, Tensor)} for one in (model, wider))
        self._of_classes = {name for name in shape.keys() & other.keys() if shape[name] != other[name]}
        self._lists = tuple({_list_of(name, shape) for name in other.keys() - shape.keys()})
        self.names = {name for name in shape if not self._is_of_classes(name)}

    def _is_of_classes(self, name: str) -> bool:
        return name in self._of_classes or name.startswith(self._lists)

    def load(self, state: Mapping[str, Tensor], path: str) -> None:
        """Start from these weights; what depends on the classes stays as it is, and so do buffers that are not given.

        Args:
            state: under the names of the model.
            path: where it comes from, for the message.

        Raises:
            MilbenchError: listing every entry that is missing, unknown or of another shape.
        """
        ours = {name: t for name, t in self.model.state_dict().items() if name in self.names}
        given = {name: t for name, t in state.items() if not self._is_of_classes(name)}
        needed = {name for name, _ in self.model.named_parameters()} & self.names
        wrong = [f"missing {name}" for name in needed - given.keys()] + [f"unknown {name}" for name in given.keys() - ours.keys()]
        both = [(name, tuple(given[name].shape), tuple(ours[name].shape)) for name in given.keys() & ours.keys()]
        wrong += [f"{name} is {theirs}, expected {expected}" for name, theirs, expected in both if theirs != expected]
        if not needed:
            wrong = ["it has no trained weights"]
        if wrong:
            raise MilbenchError(f"weights {path} do not fit {type(self.model).__name__}: {'; '.join(sorted(wrong))}")
        self.model.load_state_dict(given, strict=False)
