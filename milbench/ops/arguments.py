"""What an op demands of its tensors, said once: axes that agree, floating point, in plain memory, no NaN."""

import re

import torch
from torch import Tensor

from milbench.errors import MilbenchError


def check(spec: str, *tensors: Tensor) -> torch.dtype:
    """Refuse tensors that do not fit the description.

    Args:
        spec: every tensor's name and axes in order, such as "q (heads, n, d), v (heads, n, e)"; an axis has one size throughout.
        tensors: as named.

    Returns:
        The dtype to compute in: float64 for float64, otherwise float32 (so also for the half types of autocast).

    Raises:
        MilbenchError: naming the argument, for axes of other sizes, dtypes that are not floating point, float64 mixed with
            others, tensors on two devices, sparse or lazily negated ones, and NaN or infinite values.
    """
    sizes: dict[str, int] = {}
    for (name, axes), t in zip(re.findall(r"(\w+) \(([^)]*)\)", spec), tensors, strict=True):
        known = [(axis, sizes.get(axis)) for axis in axes.split(", ")]
        if t.ndim != len(known) or 0 in t.shape or any(s not in (None, got) for (_, s), got in zip(known, t.shape, strict=True)):
            wanted = ", ".join(axis if s is None else f"{axis}={s}" for axis, s in known)
            raise MilbenchError(f"{name} must be ({wanted}), no axis empty, got {tuple(t.shape)}")
        if not t.dtype.is_floating_point or (t.dtype == torch.float64) != (tensors[0].dtype == torch.float64):
            raise MilbenchError(f"{name} is {t.dtype}: all arguments must be floating point, and float64 all or none")
        if t.device != tensors[0].device:
            raise MilbenchError(f"{name} is on {t.device}, the first argument on {tensors[0].device}")
        if t.layout != torch.strided or t.is_neg():  # kernels that read memory themselves would not notice
            raise MilbenchError(f"{name} is {'lazily negated' if t.is_neg() else t.layout}: pass a plain dense tensor")
        if not torch.isfinite(t.detach().sum()) and not torch.isfinite(t.detach()).all():  # a sum is the cheap test
            raise MilbenchError(f"{name} holds NaN or infinite values")
        sizes.update(zip((axis for axis, _ in known), t.shape, strict=True))
    return torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
