"""DGR-MIL: learnt global vectors, kept apart from each other, attend to a bag that attended to itself (Zhu et al., ECCV 2024).

Each global vector should come to stand for one kind of lesion: a determinant keeps them diverse, and a triplet loss draws them to
where positive bags are and away from where normal bags are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nystrom_attention import NystromAttention
from torch import Tensor, nn
from torch.nn import functional as F

from milbench import Aggregator, Bag, MilbenchError, Prediction, register
from milbench.aggregator import Task
from milbench.nn.mixers import token_order
from milbench.nn.optimisers import Optimiser
from milbench.recipes import Recipe

UNUSED = ("crossattention.attn.compress_k.weight", "crossattention.attn.compress_v.weight")  # in official weights only


class _Encoder(nn.Module):
    """LayerNorm(t + Nyström attention(LayerNorm(t))). (n, dim) -> (n, dim)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before = nn.LayerNorm(dim)
        self.attn = NystromAttention(dim=dim, dim_head=dim // heads, heads=heads, num_landmarks=dim // 2)
        self.attn.to_out[1] = nn.Dropout1d(dropout)  # of whole tokens
        self.after = nn.LayerNorm(dim)

    def forward(self, t: Tensor) -> Tensor:
        return self.after(t + self.attn(self.before(t)[None])[0])


class _CrossAttention(nn.Module):
    """Multi-head attention of queries to tokens: (q, dim), (n, dim) -> (q, dim), and the weights (heads, q, n)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        for layer in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(layer.weight, gain=2**-0.5)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = ((self.q_proj, query), (self.k_proj, x), (self.v_proj, x))
        q, k, v = (project(t).unflatten(1, (self.heads, -1)).transpose(0, 1) for project, t in parts)  # (heads, n, dim / heads)
        weight = (q.shape[-1] ** -0.5 * q @ k.mT).softmax(dim=-1)  # (heads, q, n)
        return self.out_proj((self.dropout(weight) @ v).transpose(0, 1).flatten(1)), weight


def diversity(vectors: Tensor) -> Tensor:
    """-log det of their cosine matrix: 0 for orthogonal vectors (K, dim), large where two are alike. In float64: see the eps."""
    unit = F.normalize(vectors.double(), dim=1, eps=1e-12)
    return -torch.linalg.slogdet(unit @ unit.T + 1e-10 * torch.eye(len(unit), dtype=unit.dtype, device=unit.device)).logabsdet


def triplet(vectors: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """mean max(0, 1 + d(vector, near) - d(vector, far)), d = 1 - cosine. (K, dim), (1, dim), (1, dim) -> ()."""
    to_near, to_far = (F.cosine_similarity(vectors.double(), centre.double(), dim=1) for centre in (near, far))
    return F.relu(1 - to_near + to_far).mean()


@register("dgrmil", label="DGR-MIL", family="transformer", member=4, cite="zhu2024", version=1)
class DGRMIL(Aggregator):
    """Diverse global representation.

    f(u) = relu(W2 relu(W1 u)), for instances with dropout of whole ones after each relu; e = f(x), G = f(vectors); H = Enc(e),
    T = Enc'([token; G]), Enc(t) = LayerNorm(t + Nystrom(LayerNorm(t))); pooled = LayerNorm(Linear(row 0 of attention(T, H, H)));
    logits = Linear(pooled); scores are the sigmoid of each. Loss = BCE against the one-hot label + weight_diversity * -log
    det(cosines of G) + weight_triplet * mean max(0, 1 + d(g, positive) - d(g, normal)), d = 1 - cosine. Two centres follow the
    mean of a bag's e: centre = 0.4 centre + 0.6 mean, `normal` for class 0, `positive` for any other.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        dim: width E of a token; there are E / 2 Nyström landmarks.
        vectors: global vectors K.
        heads: of every attention.
        dropout: on whole tokens after the Nyström attentions and on the weights of the last one, in training.
        dropout_instances: on whole instances, in training.
        weight_diversity, weight_triplet: of the two further losses.
        plain_epochs: epochs before these two join the loss.
        shuffle: read each bag in a random order, as officially: another one at each training step, one fixed by the slide's name
            at test time.

    Source: Zhu et al. 2024; ChongQingNoSubway/DGR-MIL. Defaults are the class's, with the dropouts and weights of the official
    script, which has 5 vectors. Traps: (1) the published shuffling is unseeded, also at test time, and the Nyström attention
    depends on the order. (2) The published epoch and thresholds are chosen on the test set. (3) Only the token's row reaches the
    logits. (4) The official flags for the weights of the losses are not read. Deviations: no patch is repeated in training; the
    epoch is chosen on validation; for survival the loss is the task's and the diversity, as there is no normal class;
    diversity and triplet are float64 (1e-10 on the diagonal is lost in float32). A training step takes 1.7 GiB at 20,000
    patches.
    Checkpoints: state dicts of the official DGRMIL, whose never used compress_k and compress_v are left out.
    """

    complexity = "n"
    order_sensitive = True
    official_recipe = {
        "subtyping": {
            "optimiser": "sgd", "lr": 5e-4, "weight_decay": 1e-4, "schedule": "cosine", "final_lr": 1e-5, "warmup_epochs": 10,
            "max_epochs": 200, "patience": None, "params": {"vectors": 5, "shuffle": True},
            "source": "ChongQingNoSubway/DGR-MIL, train_DGRMIL.py",
            "not_followed": "selects on (AUCs + accuracy) / 3 of the test part, here on AUC of the validation part; float32, "
            "there half precision; no patch is repeated in place of a dropped one",
        }
    }  # fmt: skip
    official_names = {
        "lesionRrepresentation": "vectors", "normalcenter": "normal", "postivecenter": "positive",
        "triple_optimizer.fc1": "project.0", "triple_optimizer.fc2": "project.1",
        "encoder_instances.0.norm": "encode_instances.before", "encoder_instances.0.attn": "encode_instances.attn",
        "encoder_instances.1": "encode_instances.after", "encoder_globalLesion.0.norm": "encode_vectors.before",
        "encoder_globalLesion.0.attn": "encode_vectors.attn", "encoder_globalLesion.1": "encode_vectors.after",
        "crossattention.attn": "cross", "crossffn": "out", "classifier.0": "head",
    }  # fmt: skip
    normal: Tensor
    positive: Tensor

    def __init__(
        self, in_dim: int, n_out: int, *, dim: int = 512, vectors: int = 11, heads: int = 8, dropout: float = 0.4,
        dropout_instances: float = 0.1, weight_diversity: float = 0.1, weight_triplet: float = 0.1, plain_epochs: int = 9,
        shuffle: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(in_dim, n_out)
        if dim % heads or dim % 2:
            raise MilbenchError(f"{heads} heads and two halves must divide the width, got {dim}")
        self.weight_diversity, self.weight_triplet, self.plain_epochs = weight_diversity, weight_triplet, plain_epochs
        self.shuffle, self.dropout_instances = shuffle, nn.Dropout1d(dropout_instances)
        self.vectors = nn.Parameter(torch.randn(1, vectors, in_dim))
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.register_buffer("normal", torch.randn(1, dim))
        self.register_buffer("positive", torch.randn(1, dim))
        self.project = nn.ModuleList([nn.Linear(in_dim, dim), nn.Linear(dim, dim)])
        self.encode_instances, self.encode_vectors = _Encoder(dim, heads, dropout), _Encoder(dim, heads, dropout)
        self.cross = _CrossAttention(dim, heads, dropout)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.head = nn.Linear(dim, n_out)
        self._bags = self._plain = self._seen = 0  # training bags; those before, and so far of, the further losses

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag. The attention is the token's, averaged over heads.

        extras: attention (1 + vectors, n), vectors (vectors, dim), mean (1, dim) of the projected instances.
        """
        x = bag.features
        kind: Any = "random" if self.shuffle else "storage"
        order = token_order(kind, len(x), None, key=bag.slide_id, training=self.training, device=x.device)
        e, g = x[order], self.vectors[0]
        for layer in self.project:
            e, g = self.dropout_instances(F.relu(layer(e))), F.relu(layer(g))  # (n, dim), (vectors, dim)
        queries = self.encode_vectors(torch.cat([self.token[0], g]))  # (1 + vectors, dim)
        read, weight = self.cross(queries, self.encode_instances(e))
        attention = weight.mean(dim=0)[:, order.argsort()]  # (1 + vectors, n)
        extras = {"attention": attention, "vectors": g, "mean": e.detach().mean(dim=0, keepdim=True)}
        return Prediction(logits=self.head(self.out(read[0])), attention=attention[0], extras=extras)

    def prepare(self, train_bags: Sequence[Bag], generator: torch.Generator) -> None:
        """Learns nothing: the number of training bags says how long an epoch is."""
        self._bags = len(train_bags)

    def optimisers(self, recipe: Recipe) -> list[Optimiser]:
        """One; the recipe may show only a part of the bags in an epoch."""
        self._plain, self._seen = self.plain_epochs * (recipe.epoch_bags or self._bags), 0
        return super().optimisers(recipe)

    def training_loss(self, prediction: Prediction, target: Any, task: Task) -> Tensor:
        """The loss of the bag and, after the plain epochs, of the vectors; in training mode a centre moves first."""
        binary = task.name == "subtyping"
        if binary:
            truth = F.one_hot(target, self.n_out).to(prediction.logits.dtype)
            loss = F.binary_cross_entropy_with_logits(prediction.logits, truth)
            if self.training:
                normal, positive = (0.4 * centre + 0.6 * prediction.extras["mean"] for centre in (self.normal, self.positive))
                self.normal = torch.where(target == 0, normal, self.normal)
                self.positive = torch.where(target == 0, self.positive, positive)
        else:
            loss = task.loss(prediction.logits, target)
        self._seen += self.training
        if self._seen <= self._plain:
            return loss
        g = prediction.extras["vectors"]
        further = self.weight_diversity * diversity(g)
        if binary:
            further = further + self.weight_triplet * triplet(g, self.positive, self.normal)
        return loss + further.to(loss.dtype)

    def scores(self, prediction: Prediction, task: Task) -> Tensor:
        """The sigmoid of each logit in subtyping, since the loss is multi-label."""
        return prediction.logits.sigmoid() if task.name == "subtyping" else task.scores(prediction.logits)

    def rename_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Two matrices of the official cross attention are never used."""
        return super().rename_official({name: value for name, value in state_dict.items() if name not in UNUSED})
