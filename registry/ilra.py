"""ILRA-MIL: a few latent vectors read the bag and write back to it, so tokens meet through a bottleneck of low rank (ICLR 2023).

Attention from latents to tokens and back costs O(n rank) where self-attention costs O(n^2). Neither order nor position matters.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milbench import Aggregator, Bag, Prediction, register


class _Attention(nn.Module):
    """Queries read tokens: attention, then a layer on each query; a gate made of the query itself closes it, where there is one.

    Args:
        query_dim: width of a query.
        dim: width of a token.
        hidden: width of the result.
        heads: attention heads.
        norm: LayerNorm after both residuals.
        gated: multiply by silu(Linear(query)).

    Shapes: (q, query_dim), (n, dim) -> (q, hidden), and the weights (q, n), averaged over heads.
    """

    def __init__(self, query_dim: int, dim: int, hidden: int, heads: int, *, norm: bool, gated: bool) -> None:
        super().__init__()
        self.fc_q, self.fc_k, self.fc_v = (nn.Linear(width, hidden) for width in (query_dim, dim, dim))
        self.multihead_attn = nn.MultiheadAttention(hidden, heads)  # projects queries, keys and values a second time
        self.ln0, self.ln1 = (nn.LayerNorm(hidden) if norm else nn.Identity() for _ in range(2))
        self.fc_o = nn.Linear(hidden, hidden)
        self.gate = nn.Sequential(nn.Linear(query_dim, hidden), nn.SiLU()) if gated else None

    def forward(self, query: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Read the tokens."""
        q = self.fc_q(query)
        read, weight = self.multihead_attn(q, self.fc_k(x), self.fc_v(x))
        out = self.ln0(q + read)
        out = self.ln1(out + F.relu(self.fc_o(out)))
        return (out if self.gate is None else out * self.gate(query)), weight


class _Layer(nn.Module):
    """Latents read the tokens, then tokens read the latents. (n, dim) -> (n, hidden)."""

    def __init__(self, dim: int, hidden: int, heads: int, rank: int, *, norm: bool) -> None:
        super().__init__()
        self.latent = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, rank, hidden)))
        self.project_forward = _Attention(hidden, dim, hidden, heads, norm=norm, gated=True)
        self.project_backward = _Attention(dim, hidden, hidden, heads, norm=norm, gated=True)

    def forward(self, x: Tensor) -> Tensor:
        latents, _ = self.project_forward(self.latent[0], x)  # (rank, hidden)
        return self.project_backward(x, latents)[0]


@register("ilra", label="ILRA-MIL", family="transformer", member=3, cite="xiang2023", version=1)
class ILRA(Aggregator):
    """Iterative low-rank attention.

    att(Q0, X): Q, K, V = Linear(Q0), Linear(X), Linear(X); O = Q + MultiheadAttention(Q, K, V), LayerNorm; O = O +
    relu(Linear(O)), LayerNorm; gated: O * silu(Linear(Q0)). A layer is H = att(latents, X), gated, then X' = att(X, H), gated.
    One learnt seed pools: z = att(seed, X'), without a gate. logits = Linear(z).

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        dim: width E of a token after the first layer.
        layers: of latents reading and writing.
        heads: attention heads.
        rank: latents of a layer; the authors say to tune it.
        norm: LayerNorm after both residuals of each attention.

    Source: Xiang and Zhang 2023; jinxixiang/low_rank_wsi (ILRA). Defaults are the class's; the official configuration is
    `ilra[rank=1,norm=true]`. Traps: (1) the rank is called topk there, though nothing is ranked. (2) With rank=1 a token can only
    read that one latent: all get the same update, and the keys of the way back are never trained. (3) Keys, queries and values
    pass two linear layers in sequence. (4) The official training part is shuffled by Lightning's ddp only. The attention is the
    pooling seed's, averaged over heads. Deviations: an empty bag is refused (officially it has logits). A training step takes 0.8
    GiB at 20,000 patches.
    Checkpoints: state dicts of ILRA, without Lightning's prefix `model.`.
    """

    complexity = "n rank"
    official_recipe = {
        "subtyping": {
            "optimiser": "adam", "lr": 1e-4, "weight_decay": 0.0, "schedule": "cosine", "max_epochs": 100, "patience": None,
            "select": "last", "params": {"rank": 1, "norm": True}, "source": "jinxixiang/low_rank_wsi, train_mil.py",
            "not_followed": "",
        }
    }  # fmt: skip
    official_names = {"gab_blocks": "layers", "pooling.S": "seed", "pooling.mha": "pooling", "classifier": "head"}

    def __init__(
        self, in_dim: int, n_out: int, *, dim: int = 256, layers: int = 2, heads: int = 8, rank: int = 2, norm: bool = False
    ) -> None:
        super().__init__(in_dim, n_out)
        self.layers = nn.Sequential(*(_Layer(dim if i else in_dim, dim, heads, rank, norm=norm) for i in range(layers)))
        self.seed = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, dim)))
        self.pooling = _Attention(dim, dim if layers else in_dim, dim, heads, norm=norm, gated=False)
        self.head = nn.Linear(dim, n_out)
        for module in self.modules():
            if isinstance(module, nn.Linear):  # biases stay at torch's own
                nn.init.xavier_normal_(module.weight)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag."""
        pooled, weight = self.pooling(self.seed[0], self.layers(bag.features))  # (1, dim), (1, n)
        return Prediction(logits=self.head(pooled)[0], attention=weight[0])
