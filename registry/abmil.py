"""AB-MIL: a bag is the attention-weighted mean of its instances (Ilse et al., ICML 2018).

A small network scores each instance on its own, so the prediction depends neither on order nor on position.
"""

from torch import Tensor, nn

from milbench import Aggregator, Bag, Prediction, register
from milbench.nn import AttentionScore


@register("abmil", label="AB-MIL", cite="ilse2018", version=1)
class ABMIL(Aggregator):
    """Gated attention pooling, the form that WSI papers call AB-MIL.

    h = relu(W x); a = softmax over instances of score(h); logits = head(sum_i a_i h_i).

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        hidden: width of a projected instance.
        attention_dim: width of the scoring network.
        gated: multiply the tanh branch by a sigmoid branch (eq. 9) instead of using it alone (eq. 8).
        dropout: on projected instances and inside the scoring network, in training.

    Source: Ilse et al. 2018, eq. 7-9; widths of mahmoodlab/CLAM (CLAM_SB without its instance loss). Deviations: none.
    """

    complexity = "n"
    official_names = {  # CLAM_SB's state dict -> ours
        "attention_net.0": "project.0",
        "attention_net.3.attention_a.0": "score.tanh_branch",
        "attention_net.3.attention_b.0": "score.sigmoid_branch",
        "attention_net.3.attention_c": "score.out",
        "attention_net.3.module.0": "score.tanh_branch",  # the ungated form
        "attention_net.3.module.2": "score.out",
        "classifiers": "head",
    }

    def __init__(
        self, in_dim: int, n_out: int, *, hidden: int = 512, attention_dim: int = 256, gated: bool = True, dropout: float = 0.25
    ) -> None:
        super().__init__(in_dim, n_out)
        self.project = nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.score = AttentionScore(hidden, attention_dim, gated=gated, dropout=dropout)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag."""
        h: Tensor = self.project(bag.features)  # (n, hidden)
        weight = self.score(h).softmax(dim=0)  # (n, 1)
        z = (weight * h).sum(dim=0)  # (hidden,)
        return Prediction(logits=self.head(z), attention=weight[:, 0])
