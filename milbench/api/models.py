"""Models: build one by its name, and check one against the contract."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milbench import contract, plugins
from milbench.aggregator import Aggregator
from milbench.errors import MilbenchError, SkipTrial, unknown
from milbench.plugins import Variant


def build(
    aggregator: str, /, in_dim: int, n_out: int, *, plugin: str | Path | Iterable[str | Path] = (), **params: Any
) -> Aggregator:
    """A model with fresh weights. Plug-ins that are built in or installed are found by themselves.

    Args:
        aggregator: `name`, or `name[parameter=value,...]` as the command line takes it.
        in_dim: width d of the features.
        n_out: number of classes, or of time bins for survival.
        plugin: a file, or several, that register aggregators of your own.
        **params: parameters of the aggregator; they win over those in brackets.

    Returns:
        A torch module. Called with a :class:`milbench.Bag` it gives a :class:`milbench.Prediction`: logits (n_out,), and
        attention (n,) where the method has it.

    Raises:
        MilbenchError: an unknown name or parameter (near misses are listed), a value of the wrong type, or parameters that do
            not fit each other.

    Examples:
        >>> model = build("abmil[gated=false]", in_dim=384, n_out=3, hidden=64)
        >>> sum(p.numel() for p in model.parameters())
        41732
        >>> build("abmill", in_dim=384, n_out=3)
        Traceback (most recent call last):
        ...
        milbench.errors.MilbenchError: unknown aggregator 'abmill'; did you mean abmil or amisl or acmil?
    """
    plugins.discover([plugin] if isinstance(plugin, str | Path) else plugin)
    for name, value in (("in_dim", in_dim), ("n_out", n_out)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MilbenchError(f"{name} = {value!r}: must be a whole number from 1 up")
    variant = _with(plugins.resolve(aggregator), params)
    try:
        return variant.build(in_dim, n_out)
    except (ValueError, SkipTrial) as error:
        raise MilbenchError(f"{variant.name} cannot be built with in_dim = {in_dim}, n_out = {n_out}: {error}") from error


def _with(variant: Variant, params: dict[str, Any]) -> Variant:
    """The variant with other values of some parameters."""
    if not params:
        return variant
    model = variant.entry.parameters
    if strangers := sorted(params.keys() - model.model_fields.keys()):
        raise unknown(f"parameter of {variant.entry.name}", strangers[0], model.model_fields)
    return Variant.of(variant.entry, {**variant.params, **params}, variant.entry.name)


@dataclass(frozen=True)
class Checked:
    """How one check of the contract ended.

    Args:
        name: of the check.
        says: what it asks for, or what is wrong.
        holds: whether the aggregator passes.
    """

    name: str
    says: str
    holds: bool


def check_aggregator(name: str, *, plugin: Iterable[str | Path] = ()) -> Iterator[Checked]:
    """The checks of the contract, one after the other, up to the first that does not hold: those that the test suite runs.

    Args:
        name: `name` or `name[parameter=value,...]`.
        plugin: files that register aggregators.

    Raises:
        MilbenchError: an unknown name, or an aggregator that cannot be built here.
    """
    plugins.discover(plugin)
    variant = plugins.resolve(name)
    for check in contract.CHECKS:
        try:
            check.run(variant)
        except SkipTrial as skip:
            raise MilbenchError(f"{variant.name} cannot be checked here: {skip}") from skip
        except contract.ContractError as fault:
            yield Checked(check.name, str(fault), False)
            return
        yield Checked(check.name, check.says, True)
