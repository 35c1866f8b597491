"""Attention of one learned query over a bag, with several heads, without a key or value for each instance."""

import torch
from torch import Tensor, nn


class HeadPooling(nn.Module):
    """Pooled values of several heads: LN(dropout(out(heads side by side))), no residual.

    Weights sum to one, so a head's pooled values are the values of its pooled instances: E x E is multiplied per bag, not per
    instance.

    Args:
        hidden: width E of an instance; a multiple of `heads`.
        heads: how many.
        dropout: on the output before its norm, in training.

    Shapes: weight (heads, n), each row summing to one, and h (n, hidden) -> (hidden,).

    Source: the multi-head variant of ACMIL and AEM.
    """

    def __init__(self, hidden: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"{heads} heads do not divide a width of {hidden} into equal parts")
        self.heads = heads
        self.v_proj, self.out_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.dropout, self.layer_norm = nn.Dropout(dropout), nn.LayerNorm(hidden, eps=1e-6)

    def forward(self, weight: Tensor, h: Tensor) -> Tensor:
        """Pool a bag."""
        pooled = weight @ h  # (heads, hidden)
        values = self.v_proj.weight.unflatten(0, (self.heads, -1))  # (heads, hidden / heads, hidden)
        value = (values @ pooled[:, :, None]).flatten() + self.v_proj.bias  # (hidden,)
        out: Tensor = self.layer_norm(self.dropout(self.out_proj(value)))
        return out


class QueryPooling(HeadPooling):
    """The same with the scores of a query against every instance, q . k / sqrt(hidden / heads).

    Each head's key matrix is multiplied with the query, which is one, and not with the instances: O(heads n E), not O(n E^2).
    """

    def __init__(self, hidden: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__(hidden, heads, dropout)
        self.q_proj, self.k_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def scores(self, query: Tensor, h: Tensor) -> Tensor:
        """Before the softmax over instances. query (hidden,), h (n, hidden) -> (heads, n)."""
        q = self.q_proj(query).unflatten(0, (self.heads, -1))  # (heads, hidden / heads)
        q = q * q.shape[1] ** -0.5
        keys = self.k_proj.weight.unflatten(0, (self.heads, -1))  # (heads, hidden / heads, hidden)
        bias = (q * self.k_proj.bias.view_as(q)).sum(dim=1, keepdim=True)  # (heads, 1)
        return torch.addmm(bias, (q[:, None] @ keys)[:, 0], h.T)
