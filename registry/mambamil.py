"""MambaMIL: two Mamba layers, each reading the bag a second time in another order, in front of attention pooling (MICCAI 2024).

A causal scan lets a patch see only those stored before it; the second branch reads the bag in strides (or backwards), so that
distant patches become neighbours. Storage order decides which: coordinates are never read.
"""

import math
import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milbench import Aggregator, Bag, MilbenchError, Prediction, register
from milbench.nn import AttentionScore
from milbench.nn.mixers import selective_branch
from milbench.nn.transformer import RECOMPUTE_ABOVE, Block
from milbench.recipes import MAMBAMIL_LOOP, MAMBAMIL_SURVIVAL_LOOP

Kind = Literal["srmamba", "bimamba", "mamba"]


class _Branch(nn.Module):
    """One scan with its own convolution and steps. (n, inner) twice -> (n, inner)."""

    def __init__(self, inner: int, rank: int, states: int, width: int) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(inner, inner, width, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))  # (inner, states)
        self.D = nn.Parameter(torch.ones(inner))

    def forward(self, u: Tensor, gate: Tensor) -> Tensor:
        return selective_branch(u, gate, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)


def strided(x: Tensor, rate: int) -> Tensor:
    """Rows 0, rate, 2 rate, ..., then 1, rate + 1, ...: (n, c) -> (ceil(n / rate) * rate, c), zeros behind the last row first."""
    return F.pad(x, (0, 0, 0, -len(x) % rate)).unflatten(0, (-1, rate)).transpose(0, 1).flatten(0, 1)


def unstrided(x: Tensor, rate: int, n: int) -> Tensor:
    """The n rows that :func:`strided` took, in their old order."""
    return x.unflatten(0, (rate, -1)).transpose(0, 1).flatten(0, 1)[:n]


class _Mixer(nn.Module):
    """out(S1(u, z) + S2(u, z) in the second order) with (u, z) = in(x). (n, dim) -> (n, dim); the grid is not used."""

    def __init__(self, dim: int, kind: Kind, rate: int, *, states: int = 16, width: int = 4) -> None:
        super().__init__()
        inner, rank = 2 * dim, math.ceil(dim / 16)
        self.kind, self.rate = kind, rate
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.first = _Branch(inner, rank, states, width)
        self.second = None if kind == "mamba" else _Branch(inner, rank, states, width)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, grid: Tensor | None = None) -> Tensor:
        u, gate = self.in_proj(x).chunk(2, dim=1)  # (n, inner) each
        y = self.first(u, gate)
        if self.second is not None and self.kind == "bimamba":
            y = y + self.second(u.flip(0), gate.flip(0)).flip(0)
        elif self.second is not None:
            y = y + unstrided(self.second(strided(u, self.rate), strided(gate, self.rate)), self.rate, len(x))
        return self.out_proj(y)


@register("mambamil", label="MambaMIL", family="linear", member=5, cite="yang2024mambamil", version=1)
class MambaMIL(Aggregator):
    """Mamba layers with reordered sequences.

    h = act(W x), dropout; h = h + Mixer(LayerNorm(h)), `layers` times; t = LayerNorm(h); a = softmax_n(w2 tanh(W1 t)); logits =
    Linear(sum a t). A branch is Mamba's: u = silu(causal convolution of 4); step, B, C from u; s_i = exp(step A) s_(i-1) + step
    u_i B; y = C s + D u, times silu(z). Both branches share only the projections before and after, and are added.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        dim: width E of a token.
        layers: mixers.
        kind: of the second branch: "srmamba" reads each `rate`-th token, then again from the next; "bimamba" reads backwards;
            "mamba" has no second branch.
        rate: stride of "srmamba".
        activation: after the first layer.
        dropout: after it, in training; the only one.
        recompute_above: tokens from which training recomputes activations instead of storing them.

    Source: Yang, Wang and Chen 2024; isyangshu/MambaMIL (MambaMIL, the fused branch). Defaults are the class's; the official
    scripts pass rate 5, and dropout 0 except for survival. Traps: (1) "srmamba" pads to a multiple of `rate` with zeros, which
    stand in the middle of the reordered sequence, pass the convolution and change what follows. (2) With n <= rate the order is
    the old one. (3) The official initialisation also takes the mixers: first steps are about 0.69 where Mamba's are 0.001 to 0.1.
    (4) The official path without compiled kernels is another function. Deviations: the official width is fixed at 512. A
    training step takes 3.2 GiB at 20,000 patches.
    Checkpoints: the files that its scripts save (s_0_checkpoint.pt and so on) of every kind.
    """

    complexity = "n"
    order_sensitive = True
    ops = ("selective_scan",)
    official_recipe = {
        "subtyping": {**MAMBAMIL_LOOP, "params": {"rate": 5, "dropout": 0.0}},
        "survival": {**MAMBAMIL_SURVIVAL_LOOP, "params": {"rate": 5}},
    }
    official_names = {
        "_fc1.0": "project.0", "attention.0": "score.tanh_branch", "attention.2": "score.out", "classifier": "head",
    }  # fmt: skip

    def __init__(
        self, in_dim: int, n_out: int, *, dim: int = 512, layers: int = 2, kind: Kind = "srmamba", rate: int = 10,
        activation: Literal["gelu", "relu"] = "gelu", dropout: float = 0.25, recompute_above: int = RECOMPUTE_ABOVE,
    ) -> None:  # fmt: skip
        super().__init__(in_dim, n_out)
        if rate < 1:
            raise MilbenchError(f"rate must be at least 1, got {rate}")
        act = nn.GELU() if activation == "gelu" else nn.ReLU()
        self.project = nn.Sequential(nn.Linear(in_dim, dim), act, nn.Dropout(dropout))
        self.layers = nn.ModuleList(
            Block(dim, _Mixer(dim, kind, rate), ffn=False, recompute_above=recompute_above) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.score = AttentionScore(dim, 128, gated=False)
        self.head = nn.Linear(dim, n_out)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag. extras: tokens (n, dim)."""
        h: Tensor = self.project(bag.features)  # (n, dim)
        for layer in self.layers:
            h = layer(h)
        tokens = self.norm(h)
        attention = self.score(tokens).T.softmax(dim=1)  # (1, n)
        return Prediction(logits=self.head(attention @ tokens)[0], attention=attention[0], extras={"tokens": tokens})

    def rename_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """In a layer, 0 is the norm and 1 the mixer; the second branch's names end in _b, and one of them holds it inside."""
        renamed = {}
        for name, value in super().rename_official(state_dict).items():
            name = re.sub(r"^(layers\.\d+)\.0\.", r"\1.norm.", name)
            name = re.sub(r"^(layers\.\d+)\.1\.(?=in_proj|out_proj)", r"\1.mixer.", name)
            name = re.sub(r"^(layers\.\d+)\.1\.(\w+?)_b((?:_log)?(?:\.\w+)?)$", r"\1.mixer.second.\2\3", name)
            renamed[re.sub(r"^(layers\.\d+)\.1\.", r"\1.mixer.first.", name)] = value
        return renamed
