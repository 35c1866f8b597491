"""The checks that come first, since all others build on them: the parameters, the model, and what a forward pass returns."""

import inspect
from collections.abc import Callable, Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from milbench import places
from milbench.aggregator import Aggregator, Prediction
from milbench.bags import Bag
from milbench.contract.bags import IN_DIM, SIZES, bag, fresh
from milbench.contract.faults import ContractError, require
from milbench.plugins import Variant
from milbench.tasks import Subtyping

REGISTERED = {"_parameters", "_buffers", "_modules"}
SIMPLE = {int, float, bool, str, NoneType}


def parameters(variant: Variant) -> None:
    """`__init__` takes in_dim and n_out, then keyword-only parameters with a simple type and a default."""
    init = variant.entry.cls.__init__
    where = places.of_function(init)
    _, *taken = inspect.signature(init).parameters.values()
    sizes = [p.name for p in taken if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    require(len(sizes) >= 2, "__init__ must take two widths: def __init__(self, in_dim: int, n_out: int, *, ...)", where)
    hints, name = get_type_hints(init), variant.entry.name
    for p in taken[2:]:
        mend = f"write {p.name}: int = ..., with the right type"
        star = f"{p.name} is positional, so {name}[{p.name}=...] cannot set it; write *, before it"
        require(p.name not in sizes, star, where)
        require(p.kind is p.KEYWORD_ONLY, f"*{p.name} hides the parameters; write *, and then each with its name", where)
        require(p.default is not p.empty or p.name in variant.entry.preset, f"{p.name} has no default; {mend}", where)
        require(p.name in hints, f"{p.name} has no type, so a wrong value is not refused; {mend}", where)
        kind = inspect.formatannotation(hints[p.name])
        choose = "use int, float, bool, str, Literal[...] or None"
        require(_simple(hints[p.name]), f"{p.name} is a {kind}, which {name}[{p.name}=...] cannot hold; {choose}", where)


def _simple(kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return all(map(_simple, get_args(kind)))
    return kind in SIMPLE or get_origin(kind) is Literal


def builds(variant: Variant) -> None:
    """`__init__` calls super().__init__(in_dim, n_out), and every layer of the model is registered."""
    cls = variant.entry.cls
    torch.manual_seed(0)
    model = variant.build(IN_DIM, 3)
    first = "call super().__init__(in_dim, n_out) in the first line of __init__"
    require(hasattr(model, "_modules") and hasattr(model, "n_out"), first, lambda: places.of_function(cls.__init__))
    known = {id(p) for p in model.parameters()}
    plain = [(module, *item) for module in model.modules() for item in vars(module).items() if item[0] not in REGISTERED]
    for module, name, value in plain:
        lost = next((what for what, p in _weights(value) if id(p) not in known), None)
        if lost is not None:
            use = "nn.Parameter" if isinstance(value, Tensor) else f"nn.{lost}{'Dict' if isinstance(value, dict) else 'List'}"
            what = f"self.{name} is a plain {type(value).__name__} with weights, which are neither trained nor saved"
            raise ContractError(f"{what}; use {use}(...)", places.of_attribute(type(module), name))


def _weights(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Weights in a plain attribute, and what holds them."""
    if isinstance(value, nn.Module):
        yield from (("Module", p) for p in value.parameters())
    elif isinstance(value, Tensor) and value.requires_grad and value.is_leaf:
        yield "Parameter", value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _weights(item)


def shapes(variant: Variant) -> None:
    """Logits are (n_out,) and finite, attention is None or (n,), for bags of 1, 2, 7 and 37, for both tasks."""
    for n_out in (2, 3, 4):
        model = fresh(variant, n_out)
        for n in reversed(SIZES):  # the advice for one instance would be ambiguous
            prediction = predicted(model, bag(n, seed=n))
            scores = model.scores(prediction, Subtyping([str(c) for c in range(n_out)]))
            where = places.of_function(type(model).scores)
            require(scores.shape == (n_out,), f"scores are {tuple(scores.shape)}, expected ({n_out},)", where)


def predicted(model: Aggregator, shown: Bag) -> Prediction:
    """What a model predicts, without gradients.

    Raises:
        ContractError: forward returns something else than a prediction of the right shapes; names the line that returns.
    """
    with torch.no_grad():
        prediction = model(shown)
    for holds, message in _of_prediction(prediction, model.n_out, len(shown)):
        require(holds, message, lambda: places.of_return(type(model).forward, lambda: model(shown)))
    return prediction


def _of_prediction(prediction: Any, n_out: int, n: int) -> Iterator[tuple[bool, str]]:
    """What a prediction must be, one requirement after the other, and what to write where it is not."""
    kind = type(prediction).__name__
    use = {"Tensor": "Prediction(logits=...)", "tuple": "Prediction(logits=..., attention=...)"}.get(
        kind, "Prediction(logits=...)"
    )
    kind = {"NoneType": "nothing", "Tensor": "a Tensor", "tuple": "a tuple"}.get(kind, f"a value of type {kind}")
    yield isinstance(prediction, Prediction), f"forward returned {kind}; return {use}"
    logits, attention = prediction.logits, prediction.attention
    yield isinstance(logits, Tensor), f"logits are of type {type(logits).__name__}; return a Tensor of shape ({n_out},)"
    shape = tuple(logits.shape)
    advice = "; return logits[0]" if shape == (1, n_out) else "; make the last layer n_out wide" if len(shape) == 1 else ""
    yield shape == (n_out,), f"logits of a bag of {n} are {shape}, expected ({n_out},){advice}"
    yield bool(torch.isfinite(logits).all()), f"logits of a bag of {n} are not finite"
    yield attention is None or isinstance(attention, Tensor), "attention is no Tensor; return a Tensor of shape (n,) or None"
    if attention is not None:
        shape = tuple(attention.shape)
        advice = {(n, 1): "; return attention[:, 0]", (1, n): "; return attention[0]"}.get(shape, "")
        yield shape == (n,), f"attention of a bag of {n} is {shape}, expected ({n},){advice}"


BASICS: tuple[Callable[[Variant], None], ...] = (parameters, builds, shapes)
