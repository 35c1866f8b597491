"""WiKG: each patch takes messages from the few patches that suit it best, wherever they lie (Li et al., CVPR 2024).

The graph is of what patches hold, drawn anew in every layer pass from learned head and tail vectors. Neither order nor position
matters.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from milbench import Aggregator, Bag, Prediction, register
from milbench.nn import wide

LOGITS = 2**22  # of the n x n, held at a time
NODES = 1024  # whose messages are computed at a time, and computed again in the backward pass where a bag has more


@torch.no_grad()
def nearest(head: Tensor, tail: Tensor, k: int) -> Tensor:
    """The k tails of highest product with each head, best first. (n, E), (n, E) -> (n, k) indices, in O(n k) memory."""
    rows = head.split(max(1, LOGITS // len(tail)))
    return torch.cat([(some @ tail.T).topk(k, dim=1).indices for some in rows])


def messages(head: Tensor, tail: Tensor, neighbour: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What some nodes take from their neighbours.

    Args:
        head: (c, E). tail: (n, E), of all nodes. neighbour: (c, k), their indices.

    Returns:
        Messages (c, E), logits (c, k) of the neighbours, and the weights (c, k) of their tails in the message.
    """
    t = tail.index_select(0, neighbour.flatten()).unflatten(0, neighbour.shape)  # (c, k, E)
    logit = (t @ (head.shape[1] ** -0.5 * head)[:, :, None])[:, :, 0]  # (c, k)
    p = logit.softmax(dim=1)[:, :, None]  # (c, k, 1)
    h = head[:, None]  # (c, 1, E)
    gate = (h + p * t + (1 - p) * h).tanh()
    weight = (t.sum(dim=2) * gate.sum(dim=2)).softmax(dim=1)  # (c, k), the product of two sums, not the dot product
    return (weight[:, None] @ t)[:, 0], logit, weight


@register("wikg", label="WiKG", family="structure", member=5, cite="li2024wikg", version=1)
class WiKG(Aggregator):
    """Knowledge-aware attention on a dynamic graph.

    f = lrelu(W x), f <- (f + mean f) / 2; heads h = W_h f, tails t = W_t f; of each node the k neighbours of highest
    h_i . t_j / sqrt(E), p the softmax of these; g_ij = tanh(h_i + p_ij t_j + (1 - p_ij) h_i); m_i = sum_j b_ij t_j with b the
    softmax over the k of (sum_c t_jc)(sum_c g_ijc); node v_i from h_i and m_i; logits = head(LN(readout of v)).

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        hidden: width E of a node.
        neighbours: k, officially topk.
        update: v = "bi-interaction", lrelu(W1 (h + m)) + lrelu(W2 (h * m)); "gcn", lrelu(W (h + m)); "sage", lrelu(W [h; m])
            (agg_type).
        readout: "attention", softmax over nodes of a small network; "mean"; "max". The first is the official class's default, the
            official script trains `wikg[readout=mean]`.
        dropout: on v, in training.

    Source: Li et al. 2024 (WonderLandxD/WiKG). Traps: b is a product of two sums over channels, where the paper prints a dot
    product; importing the official module switches on torch's anomaly detection; its script cannot run as published, has no test
    part, and reports five maxima over epochs. Deviations: the n x n logits are never held whole, and messages of long bags are
    computed twice instead of stored; a bag of fewer than k patches has all of them as neighbours (officially an error); the
    layers gate_U, gate_V and gate_W, officially made and never used, are left out and dropped from official weights. A case's
    slides share one graph, since it is not one of places.
    Checkpoints: the entry `model` of what its script saves (best_auc.pth and so on).
    """

    complexity = "n^2"
    official_names = {"_fc1.0": "project", "W_head": "to_head", "W_tail": "to_tail", "readout.gate_nn": "score", "fc": "head"}
    official_recipe = {
        "subtyping": {
            "optimiser": "adam", "lr": 1e-4, "weight_decay": 1e-5, "max_epochs": 100, "patience": None, "ties": "last",
            "params": {"readout": "mean"}, "source": "WonderLandxD/WiKG, train.py",
            "not_followed": "keeps the best epoch of each of five validation metrics, here that of AUC",
        }
    }  # fmt: skip

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        hidden: int = 512,
        neighbours: int = 6,
        update: Literal["bi-interaction", "gcn", "sage"] = "bi-interaction",
        readout: Literal["attention", "mean", "max"] = "attention",
        dropout: float = 0.3,
    ) -> None:
        super().__init__(in_dim, n_out)
        self.neighbours, self.update, self.readout = neighbours, update, readout
        self.project = nn.Linear(in_dim, hidden)
        self.to_head, self.to_tail = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        if update == "bi-interaction":
            self.linear1, self.linear2 = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        else:
            self.linear = nn.Linear(2 * hidden if update == "sage" else hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        if readout == "attention":
            self.score = nn.Sequential(nn.Linear(hidden, hidden // 2), nn.LeakyReLU(), nn.Linear(hidden // 2, 1))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag.

        extras: neighbours (n, k), neighbour_logits (n, k), message_weights (n, k), nodes (n, hidden), pooled (hidden,).
        """
        f = F.leaky_relu(self.project(bag.features))  # (n, hidden)
        f = (f + f.mean(dim=0)) / 2
        head, tail = wide(self.to_head(f)), wide(self.to_tail(f))
        neighbour = nearest(head.shape[1] ** -0.5 * head, tail, min(self.neighbours, len(f)))  # (n, k)
        message, logit, weight = self._messages(head, tail, neighbour)
        v = self.dropout(self._updated(head, message))  # (n, hidden)
        attention = None
        if self.readout == "attention":
            attention = self.score(v).softmax(dim=0)[:, 0]  # (n,)
            z = attention @ v  # (hidden,)
        else:
            z = v.mean(dim=0) if self.readout == "mean" else v.amax(dim=0)
        extras = {"neighbours": neighbour, "neighbour_logits": logit, "message_weights": weight, "nodes": v, "pooled": z}
        return Prediction(self.head(self.norm(z)), attention, extras)

    def _messages(self, head: Tensor, tail: Tensor, neighbour: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`messages` of all nodes; of long bags piece by piece, without keeping what only the backward pass needs."""
        if len(head) <= NODES:
            return messages(head, tail, neighbour)
        pieces = zip(head.split(NODES), neighbour.split(NODES), strict=True)
        done = [checkpoint(messages, some, tail, near, use_reentrant=False) for some, near in pieces]
        message, logit, weight = (torch.cat(parts) for parts in zip(*done, strict=True))
        return message, logit, weight

    def _updated(self, h: Tensor, message: Tensor) -> Tensor:
        """Nodes (n, hidden) from their heads and messages."""
        if self.update == "bi-interaction":
            return F.leaky_relu(self.linear1(h + message)) + F.leaky_relu(self.linear2(h * message))
        both = h + message if self.update == "gcn" else torch.cat([h, message], dim=1)
        return F.leaky_relu(self.linear(both))

    def rename_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without the layers that official code makes and never uses."""
        return super().rename_official({name: value for name, value in state_dict.items() if not name.startswith("gate_")})
