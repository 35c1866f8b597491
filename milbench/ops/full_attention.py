"""Full attention: every token to every token, in O(n) memory."""

import torch
from torch import Tensor
from torch.nn import functional as F

from milbench.errors import MilbenchError
from milbench.ops.arguments import check
from milbench.ops.backends import Backend, choose, offer
from milbench.ops.gpu import HALVES, flash_attention
from milbench.ops.local_attention import tiled_attention
from milbench.ops.window import Window

ON_A_CPU = "dropout on a CPU"  # there torch would materialise the scores


def full_attention_naive(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """The definition, in O(n^2) memory: softmax(scale q k^T) v. Shapes as in :func:`full_attention`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return (scale * q @ k.mT).softmax(dim=-1) @ v


def full_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """The same, without ever holding an n x n matrix.

    Args:
        q, k: (heads, n, d).
        v: (heads, n, d_v).
        scale: of the scores; None is d^-0.5.
        dropout: on attention probabilities; a caller in evaluation passes 0.

    Returns:
        (heads, n, d_v).

    Raises:
        MilbenchError: naming the argument whose shape, dtype or value is wrong.
    """
    check("q (heads, n, d), k (heads, n, d), v (heads, n, d_v)", q, k, v)
    if not 0 <= dropout < 1:
        raise MilbenchError(f"dropout must lie in [0, 1), got {dropout}")
    backend = choose("full_attention", q.device.type, q.dtype, **{ON_A_CPU: dropout and q.device.type == "cpu"})
    return backend.call(q, k, v, scale=scale, dropout=dropout)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, dropout: float = 0.0) -> Tensor:
    # A batch axis of one: without it torch takes the path that materialises the scores.
    return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale, dropout_p=dropout)[0]


def _tiled(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, dropout: float = 0.0) -> Tensor:
    # Local attention in which all tokens share one cell.
    together = Window(torch.zeros(q.shape[1], 2, dtype=torch.int64), 0.0)
    return tiled_attention(q, k, v, together, scale=scale, dropout=dropout)


def _example(device: str) -> tuple[Tensor, ...]:
    kind = torch.float16 if device == "cuda" else torch.float32
    return tuple(torch.randn(2, 40, 32, device=device, dtype=kind) for _ in range(3))


FLASH = Backend("full_attention", "flash-attn", "cuda", flash_attention, _example, dtypes=HALVES)
TILES = Backend("full_attention", "tiles", "cpu", _tiled, _example)
SDPA = Backend("full_attention", "sdpa", "any", _sdpa, _example, cannot=(ON_A_CPU,))

# Measured at 8,192 x 384: with 512-bit vectors our kernel takes 0.7 of torch's time, with 256-bit vectors 1.5 times as long.
WIDE_VECTORS = torch.backends.cpu.get_cpu_capability() == "AVX512"
for backend in (FLASH, TILES, SDPA) if WIDE_VECTORS else (FLASH, SDPA, TILES):
    offer(backend)
