"""Which implementation an operation uses here: the built-in one everywhere, a GPU kernel where it was shown to work.

A backend counts as available only after a tiny real call, forward and backward, on the device. The call neither sees nor changes
what its caller has set up, for it may come in the middle of a training step. What was used is remembered for a trial's
provenance; a forced backend that is not available is an error with the reason, never a fallback.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from milbench.errors import MilbenchError, unknown


@dataclass(frozen=True)
class Backend:
    """One implementation of one operation.

    Args:
        op, name: "full_attention", "flash-attn".
        device: the type of device it is for, or "any".
        dtypes: what it computes in, or None for everything.
        cannot: what it does not support, of the facts that the operation tells :func:`choose`, such as "dropout".
        call: takes the operation's own arguments.
        example: makes small arguments on a device, for the probe; the first is a tensor.
    """

    op: str
    name: str
    device: str
    call: Callable[..., Tensor]
    example: Callable[[str], tuple[Any, ...]]
    dtypes: tuple[torch.dtype, ...] | None = None
    cannot: tuple[str, ...] = ()

    def why_not(self, device: str) -> str | None:
        """None when a tiny call works on a device of that type, else the reason."""
        if self.device not in ("any", device):
            return f"needs {self.device}"
        if device == "cuda" and not torch.cuda.is_available():
            return "no CUDA device"
        return probe(self, device)


@cache
def probe(backend: Backend, device: str) -> str | None:
    """Why a tiny call fails on a device of that type, None where it works; tried once, until `probe.cache_clear()`."""
    # In a thread of its own: grad and inference mode, autocast, saved-tensor hooks (recomputation) and dispatch modes (counting
    # FLOPs) belong to the thread that set them, and a new one has none.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_tiny_call, backend, device).result()


def _tiny_call(backend: Backend, device: str) -> str | None:
    """Why a call of the backend's example fails, forward or backward; None where it works."""
    try:
        with _nothing_set(device):
            arguments = backend.example(device)
            for a in arguments:
                if isinstance(a, Tensor) and a.is_floating_point():
                    a.requires_grad_()
            out = backend.call(*arguments)
            out.float().sum().backward()
            return None if bool(torch.isfinite(out).all()) else "a tiny call gave values that are not finite"
    except Exception as error:  # whatever a foreign kernel raises is the reason
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]


@contextmanager
def _nothing_set(device: str) -> Iterator[None]:
    """What belongs to the whole process and not to a thread: random numbers, default dtype, determinism, anomaly detection."""
    dtype, strict = torch.get_default_dtype(), torch.get_deterministic_debug_mode()
    cuda = range(torch.cuda.device_count()) if device == "cuda" else ()
    with torch.random.fork_rng(cuda), torch.autograd.set_detect_anomaly(False):
        try:
            torch.set_default_dtype(torch.float32)
            torch.set_deterministic_debug_mode("error" if device == "cpu" else "warn")  # as in a trial
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_deterministic_debug_mode(strict)


_backends: dict[str, list[Backend]] = {}
_forced: dict[str, str] = {}
_used: dict[str, set[str]] = {}
_watchers: list[Callable[[str, Callable[..., Tensor]], Callable[..., Tensor]]] = []


def offer(backend: Backend) -> None:
    """Make a backend known; of one operation, the first available one is chosen."""
    _backends.setdefault(backend.op, []).append(backend)


def offered(op: str) -> tuple[Backend, ...]:
    """The backends of an operation, in the order in which they are tried."""
    return tuple(_backends[op])


@contextmanager
def restored() -> Iterator[None]:
    """What is offered, forced and used inside is forgotten afterwards; nothing is forced or counts as used at the start."""
    backends, forced, used = {op: list(some) for op, some in _backends.items()}, dict(_forced), dict(_used)
    _forced.clear()
    _used.clear()
    try:
        yield
    finally:
        _backends.clear()
        _backends.update(backends)
        _forced.clear()
        _forced.update(forced)
        _used.clear()
        _used.update(used)


def force(choices: Iterable[str]) -> None:
    """Use these backends and no others: "full_attention=flash-attn", or a bare name for every operation that has it.

    Raises:
        MilbenchError: unknown operation or backend.
    """
    _forced.clear()
    for text in choices:
        op, equals, name = text.rpartition("=")
        if equals and op not in _backends:
            raise unknown("operation", op, _backends)
        ops = [op] if equals else [o for o, some in _backends.items() if name in {b.name for b in some}]
        known = {b.name for o in ([op] if equals else _backends) for b in _backends[o]}
        if name not in known:
            raise unknown(f"backend of {op}" if equals else "backend", name, known)
        _forced.update(dict.fromkeys(ops, name))


def choose(op: str, device: str, dtype: torch.dtype | None = None, **facts: object) -> Backend:
    """The backend of `op` for a call.

    Args:
        op: the operation.
        device, dtype: type of the tensors' device, and their dtype (None: any).
        facts: what the call asks for, such as dropout=0.1.

    Raises:
        MilbenchError: the forced backend does not work here, or none does, with every backend's reason.
    """

    backend = _find(op, device, dtype, facts)
    _used.setdefault(op, set()).add(backend.name)
    for wrap in _watchers:
        backend = replace(backend, call=wrap(op, backend.call))
    return backend


def _find(op: str, device: str, dtype: torch.dtype | None = None, facts: Mapping[str, object] = MappingProxyType({})) -> Backend:
    """The backend of a call, which is not made; see :func:`choose`."""

    def refuses(backend: Backend) -> str | None:
        if dtype is not None and backend.dtypes is not None and dtype not in backend.dtypes:
            return f"computes in {' or '.join(map(str, backend.dtypes))}, not in {dtype}"
        if asked := [fact for fact in backend.cannot if facts.get(fact)]:
            return f"has no {' or '.join(asked)}"
        return backend.why_not(device)

    if op in _forced:
        backend = next(b for b in _backends[op] if b.name == _forced[op])
        if reason := refuses(backend):
            raise MilbenchError(f"backend {backend.name} of {op} was asked for and does not work on {device}: {reason}")
        return backend
    reasons = []
    for backend in _backends[op]:
        reason = refuses(backend)
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise MilbenchError(f"no backend of {op} works on {device}: {'; '.join(reasons)}")


def chosen(ops: Iterable[str], device: str) -> dict[str, str]:
    """Operation -> the backend that float32 tensors get on a device of that type. Tries no others; nothing counts as used.

    What a call may ask for besides, such as dropout, is left out: what it then gets follows from the same list.

    Raises:
        MilbenchError: an unknown operation, or one of which no backend works here, with every backend's reason.
    """
    for op in ops:
        if op not in _backends:
            raise unknown("operation", op, _backends)
    return {op: _find(op, device, torch.float32).name for op in sorted(ops)}


@contextmanager
def watched(wrap: Callable[[str, Callable[..., Tensor]], Callable[..., Tensor]]) -> Iterator[None]:
    """While this lasts, every backend is called through `wrap(operation, call)`, which may look at arguments and result.

    It may also give another function in its place, such as one that only counts.
    """
    _watchers.append(wrap)
    try:
        yield
    finally:
        _watchers.remove(wrap)


def check_forced(device: str) -> None:
    """Try every forced backend on a device of that type.

    Raises:
        MilbenchError: one does not work there.
    """
    for op in _forced:
        _find(op, device)


def used() -> dict[str, str]:
    """Operation -> backend, or "one + other", of everything called since :func:`forget`."""
    return {op: " + ".join(sorted(names)) for op, names in sorted(_used.items())}


def forget() -> None:
    """Start a new list of what was used."""
    _used.clear()


def table(device: str) -> list[dict[str, Any]]:
    """One row per backend: operation, name, whether it works on `device`, whether it would be chosen, and why not."""
    rows = []
    for op, some in sorted(_backends.items()):
        try:
            best = _find(op, device).name
        except MilbenchError:
            best = ""
        for backend in some:
            reason = backend.why_not(device)
            works = reason is None
            rows.append(
                {
                    "op": op,
                    "backend": backend.name,
                    "available": works,
                    "chosen": works and backend.name == best,
                    "why_not": reason or "",
                }
            )
    return rows
