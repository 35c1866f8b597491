"""What a check says when it fails: the line of the author's code, what is wrong there, and what to write."""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path

from milbench import places
from milbench.contract.bags import IN_DIM
from milbench.plugins import Variant

# Error, pattern of its message, what to do.
ADVICE: tuple[tuple[type[Exception], str, str], ...] = (
    (FrozenInstanceError, "", "a bag cannot be changed; make a new tensor, x = bag.features - ..., and use that"),
    (AttributeError, r"before Module\.__init__\(\) call", "call super().__init__(in_dim, n_out) in the first line of __init__"),
    (TypeError, r"^Aggregator\.__init__\(\) missing", "write super().__init__(in_dim, n_out)"),
    (ValueError, "Expected more than 1 value per channel", "a bag can have one instance: use LayerNorm in place of BatchNorm"),
    (RuntimeError, rf"cannot be multiplied \(\d+x{IN_DIM} and", f"features are {IN_DIM} wide here; make the layer in_dim wide"),
    (RuntimeError, "Can't call numpy", "write .detach().cpu().numpy()"),
)  # fmt: skip


class ContractError(AssertionError):
    """An aggregator breaks the contract.

    Args:
        message: what is wrong, and what to write.
        where: `file:line` of the author's code; None where the requirement does not know it.
    """

    def __init__(self, message: str, where: str | None = None) -> None:
        super().__init__(message if where is None else f"{where}: {message}")
        self.where = where


def require(holds: bool, message: str, where: str | Callable[[], str] | None = None) -> None:
    """Raise a fault unless the requirement holds; `where` may be a function, which is called only for a fault."""
    if not holds:
        raise ContractError(message, where() if callable(where) else where)


def files(variant: Variant) -> frozenset[str]:
    """The files that the author wrote, as real paths."""
    entry = variant.entry
    if entry.source is not None:
        return frozenset(map(str, entry.source.files))
    built_in = [parent for parent in entry.cls.__mro__ if parent.__module__.startswith("milbench_registry.")]
    return frozenset(filter(None, map(inspect.getsourcefile, built_in)))


def explained(error: Exception, variant: Variant, when: str = "") -> ContractError:
    """An error of any kind, raised by an aggregator's code, as a fault.

    Args:
        error: the error.
        variant: whose code raised it.
        when: in what situation, when the message alone does not say it.
    """
    where = places.of_error(error, files(variant)) or places.of_class(variant.entry.cls)
    says = " ".join(str(error).split())
    advice = next((what for kind, pattern, what in ADVICE if isinstance(error, kind) and re.search(pattern, says)), "")
    return ContractError(f"{type(error).__name__}: {says}{when and ' '}{when}{advice and '; '}{advice}", where)


# Calls that take their seed from the clock or the system when they are given none, and calls that always do.
UNSEEDED = {"default_rng", "RandomState", "SeedSequence", "Random", "seed"}
NEVER_SEEDED = {"urandom", "SystemRandom", "token_bytes", "randbits", "uuid4", "time", "time_ns", "perf_counter"}


def unseeded(variant: Variant) -> str | None:
    """The first line of the author's that makes a generator without a seed, or None."""
    return next((places.written(path, call.lineno) for path in sorted(files(variant)) for call in _unseeded_calls(path)), None)


def _unseeded_calls(path: str) -> Iterator[ast.Call]:
    for call in ast.walk(ast.parse(Path(path).read_bytes(), path)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name | ast.Attribute):
            name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr
            if name in NEVER_SEEDED or (name in UNSEEDED and not call.args and not call.keywords):
                yield call
