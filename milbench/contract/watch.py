"""Watches what a forward pass does while it runs, and on which line: writes into the bag, draws, tensors that stay on the CPU."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from milbench import places
from milbench.bags import Bag

TORCH = (str(Path(torch.__file__).parent),)


class Writes(TorchDispatchMode):
    """Notes the first line that writes into a tensor of the bag, in whatever view.

    Args:
        bag: the bag.
        files: the author's.
    """

    def __init__(self, bag: Bag, files: Collection[str]) -> None:
        super().__init__()
        tensors = {"features": bag.features, "coords": bag.coords}
        self._names = {t.untyped_storage().data_ptr(): name for name, t in tensors.items() if t is not None}
        self._files = files
        self.name: str | None = None
        self.where: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable and self.name is None:
            given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
            for argument in func._schema.arguments:
                value = given.get(argument.name)
                writes = argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor)
                if writes and (name := self._names.get(value.untyped_storage().data_ptr())):
                    self.name, self.where = name, places.of_caller(self._files)
        return func(*args, **kwargs)


class Draws(TorchDispatchMode):
    """Notes the first line that draws random numbers from torch."""

    def __init__(self, files: Collection[str]) -> None:
        super().__init__()
        self._files = files
        self.where: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Attention has the tag, too, since it can drop weights out.
        may_draw = torch.Tag.nondeterministic_seeded in func.tags and "attention" not in func.name()
        if may_draw and self.where is None:
            self.where = places.of_caller(self._files)
        return func(*args, **(kwargs or {}))


# Functions that take tensors of two devices, where they give the first one's device.
MIXING = {"copy_", "expand_as", "view_as", "reshape_as", "__getitem__", "__setitem__", "__get__"}
ARRAYS = {"numpy", "__array__"}


class Devices(TorchFunctionMode):
    """Follows tensors as if model and bag were on a GPU, with the values computed on the CPU.

    What torch makes without a `device` stays on the CPU, and so does a tensor that is a plain attribute of a module. `fault` is
    what happens where one of these meets a tensor that moved; a tensor without dimensions may.

    Args:
        model: freshly built.
        files: the author's: only what these call is judged.
    """

    def __init__(self, model: nn.Module, files: Collection[str]) -> None:
        super().__init__()
        self._files = files
        self._left: dict[int, tuple[Tensor, str, str]] = {}  # id -> the tensor, kept so that no other gets its id; where; advice
        self.fault: tuple[str, str] | None = None  # where, what
        known = {id(t) for t in (*model.parameters(), *model.buffers())}
        plain = [(type(module), *item) for module in model.modules() for item in vars(module).items()]
        for cls, name, value in plain:
            for t in tensors_in(value):
                if id(t) not in known:
                    advice = f"self.{name} is a plain tensor, which stays on the CPU when the model moves to a GPU; "
                    advice += f'write self.register_buffer("{name}", ..., persistent=False)'
                    self._left[id(t)] = t, places.of_attribute(cls, name), advice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        here = places.of_caller(self._files, TORCH)
        if here is None:
            return result
        inputs = list(tensors_in((args, kwargs)))
        left = [self._left[id(t)] for t in inputs if id(t) in self._left]
        moved = [t for t in inputs if id(t) not in self._left]
        if name in ARRAYS and moved:
            self._note(here, "NumPy cannot read a tensor on a GPU; write .detach().cpu().numpy()")
        elif moved and any(t.ndim for t, _, _ in left) and name not in {*MIXING, "to", "type_as"}:
            _, where, advice = next(item for item in left if item[0].ndim)
            self._note(where, advice)
        stays = self._stays(name, args, kwargs, moved=bool(moved))
        if isinstance(result, Tensor) and name in ("to", "cpu", "cuda"):
            result = result.view_as(result)  # on one device these return the same tensor, which would have two places
        for t in tensors_in(result) if stays else ():
            self._left.setdefault(id(t), (t, *(left[0][1:] if left else (here, _advice(name)))))
        return result

    def _note(self, where: str, what: str) -> None:
        self.fault = self.fault or (where, what)

    def _stays(self, name: str, args: Any, kwargs: Any, *, moved: bool) -> bool:
        """Whether what a function gives is on the CPU when the model is on a GPU."""
        device = kwargs.get("device") or next((a for a in args[1:2] if name == "to" and isinstance(a, str | torch.device)), None)
        if name == "cpu" or (device == "cpu" and isinstance(device, str)):
            return True
        if device is not None or name == "cuda":
            return False
        if name in MIXING:
            return id(args[0]) in self._left
        return not moved


def _advice(name: str) -> str:
    how = "append .to(bag.features.device)" if name in ("from_numpy", "cpu") else "add device=bag.features.device"
    return f"what {name} makes stays on the CPU when the model moves to a GPU; {how}"


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
