"""Causal depth-wise convolution: each channel mixes a token with the few before it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from milbench.ops.arguments import check


def causal_conv1d_naive(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition: y_t = sum_j weight[:, j] x_{t - width + 1 + j} (+ bias), with zeros before the first token."""
    width = weight.shape[1]
    y = torch.zeros_like(x)
    for j in range(width):
        lag = width - 1 - j
        y = y + weight[:, j] * torch.cat([x.new_zeros(lag, x.shape[1]), x])[: len(x)]
    return y if bias is None else y + bias


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Same result by the library's grouped convolution.

    Args:
        x: (n, c), tokens in scan order.
        weight: (c, width), one filter per channel; the last tap meets the token itself.
        bias: (c,), or None.

    Returns:
        (n, c).

    Raises:
        MilbenchError: naming the argument, for shapes that do not agree, dtypes that are not floating point, or NaN.
    """
    spec = "x (n, c), weight (c, width)"
    check(spec, x, weight) if bias is None else check(f"{spec}, bias (c)", x, weight, bias)
    c, width = weight.shape
    return F.conv1d(F.pad(x.T, (width - 1, 0)), weight[:, None], bias, groups=c).T
