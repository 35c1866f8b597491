"""The scoring network of attention pooling."""

from torch import Tensor, nn


class AttentionScore(nn.Module):
    """One score per instance and class, before the softmax over instances.

    gated: w . (tanh(V h) * sigmoid(U h)); plain: w . tanh(V h), each Linear with a bias.

    Args:
        in_dim: width of an instance.
        hidden: width of the branches.
        n_scores: how many scores per instance; 1 for a single attention, C for one per class.
        gated: multiply by the sigmoid branch.
        dropout: after each branch, in training.

    Shapes: (n, in_dim) -> (n, n_scores).

    Source: Ilse et al. 2018, eq. 8 (plain) and 9 (gated).
    """

    def __init__(self, in_dim: int, hidden: int, n_scores: int = 1, *, gated: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.tanh_branch = nn.Linear(in_dim, hidden)
        self.sigmoid_branch = nn.Linear(in_dim, hidden) if gated else None
        self.out = nn.Linear(hidden, n_scores)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """Score every instance."""
        a = self.dropout(self.tanh_branch(h).tanh())
        if self.sigmoid_branch is not None:
            a = a * self.dropout(self.sigmoid_branch(h).sigmoid())
        return self.out(a)
