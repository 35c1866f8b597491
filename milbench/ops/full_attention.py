"""Full attention: every token to every token, in O(n) memory."""

from torch import Tensor
from torch.nn import functional as F

from milbench.errors import MilbenchError
from milbench.ops.arguments import check


def full_attention_naive(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """The definition, in O(n^2) memory: softmax(scale q k^T) v. Shapes as in :func:`full_attention`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return (scale * q @ k.mT).softmax(dim=-1) @ v


def full_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """The same by torch's fused kernel, which never holds an n x n matrix.

    Args:
        q, k: (heads, n, d).
        v: (heads, n, d_v).
        scale: of the scores, d^-0.5 unless given.
        dropout: on attention probabilities; a caller in evaluation passes 0.

    Returns:
        (heads, n, d_v).

    Raises:
        MilbenchError: naming the argument whose shape, dtype or value is wrong.
    """
    check("q (heads, n, d), k (heads, n, d), v (heads, n, d_v)", q, k, v)
    if not 0 <= dropout < 1:
        raise MilbenchError(f"dropout must lie in [0, 1), got {dropout}")
    return _sdpa(q, k, v, scale=scale, dropout=dropout)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, dropout: float = 0.0) -> Tensor:
    # A batch axis of one: without it torch takes the path that materialises the scores.
    return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale, dropout_p=dropout)[0]
