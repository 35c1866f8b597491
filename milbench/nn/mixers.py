"""Token mixers that cost O(n) and read the tokens in a given order: retention, gated linear attention, Mamba.

All are called as `mixer(x, grid) -> x` with x (n, dim) already in scan order. They are causal: token i sees tokens j <= i only,
so the order matters and none of these looks at the grid. The fourth, :class:`milbench.nn.ss2d.SS2DMixer`, scans the grid itself.
"""

import math
import zlib
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milbench.errors import MilbenchError
from milbench.ops.causal_conv import causal_conv1d
from milbench.ops.gated_linear_attention import gated_linear_attention
from milbench.ops.retention import retention
from milbench.ops.scan_orders import Kind, scan_order
from milbench.ops.selective_scan import selective_scan


def _split(x: Tensor, heads: int) -> Tensor:
    """(n, heads * d) -> (heads, n, d)."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


def _join(x: Tensor) -> Tensor:
    """(heads, n, d) -> (n, heads * d)."""
    return x.transpose(0, 1).flatten(1)


class RetentionMixer(nn.Module):
    """Multi-scale retention: causal linear attention with one fixed decay 1 - 2^(-5-h) per head, rotary positions, swish gate.

    The official forms compute the same rows and divide each by a number of its own before an RMSNorm, which notices only through
    its eps. So `form` changes results where activations are small (by 3 to 4 % of the largest at worst): keep to one per
    experiment. Here every form is the linear-time retention followed by its own row divisor; no divisor carries a gradient.

    Args:
        dim: width E of a token.
        heads: decays; E / heads must be even.
        expand: value width over E.
        form: "recurrent" divides by the root of the row's summed decays, a closed form. "chunk" (O(n chunk)) sums decays inside
            the chunk only and divides further by the larger of the absolute row sum in the chunk and the carried state's
            absolute column sum. "parallel" divides further by the absolute sum of the whole row, within [1, 5e4]; that sum
            costs O(n^2) time, O(n) memory.
        chunk: tokens per chunk of the chunk form.

    Shapes: (n, dim) -> (n, dim).

    Source: Sun et al. 2023, eq. 5-8; microsoft/torchscale MultiScaleRetention and RetNetRelPos, whose state dict loads as it is.
    """

    angle: Tensor
    log_decay: Tensor

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        expand: int = 2,
        form: Literal["recurrent", "chunk", "parallel"] = "recurrent",
        chunk: int = 512,
    ) -> None:
        super().__init__()
        if dim % (2 * heads):
            raise MilbenchError(f"retention needs pairs of channels in every head: {heads} heads do not fit a width of {dim}")
        self.heads, self.form, self.chunk = heads, form, chunk
        self.scale = (dim // heads) ** -0.5
        self.q_proj, self.k_proj = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.v_proj, self.g_proj = (nn.Linear(dim, expand * dim, bias=False) for _ in range(2))
        self.out_proj = nn.Linear(expand * dim, dim, bias=False)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.g_proj):
            nn.init.xavier_uniform_(layer.weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.out_proj.weight, gain=2**-1)
        angle = 1 / 10000 ** torch.linspace(0, 1, dim // heads // 2)
        self.register_buffer("angle", angle.repeat_interleave(2), persistent=False)  # (d_k,)
        self.register_buffer("log_decay", torch.log(1 - 2.0 ** (-5 - torch.arange(heads))), persistent=False)  # (heads,)

    def forward(self, x: Tensor, grid: Tensor | None = None) -> Tensor:
        """Mix the tokens; the grid is not used."""
        angle = torch.arange(len(x), device=x.device)[:, None] * self.angle  # (n, d_k)
        sin, cos = angle.sin(), angle.cos()
        q = self._rotate(_split(self.q_proj(x), self.heads), sin, cos)  # (heads, n, d_k)
        k = self._rotate(_split(self.k_proj(x) * self.scale, self.heads), sin, cos)
        v = _split(self.v_proj(x), self.heads)  # (heads, n, d_v)
        with torch.no_grad():
            divisor = self.row_divisor(q, k, v)
        y = retention(q, k, v, self.log_decay.exp()) / divisor
        y = F.rms_norm(y.float(), y.shape[-1:], eps=1e-6).to(y.dtype)  # in float32 whatever y is, as officially
        return self.out_proj(F.silu(self.g_proj(x)) * _join(y))

    @staticmethod
    def _rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """Rotate neighbouring pairs of channels by an angle that grows with the position."""
        even, odd = x[..., ::2], x[..., 1::2]
        return x * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin

    def row_divisor(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What each row is divided by before its norm, which differs between the forms: (heads, n, d) each -> (heads, n, 1)."""
        n, log_decay = q.shape[1], self.log_decay[:, None]  # (heads, 1)
        row = torch.arange(n, device=q.device)
        if self.form == "chunk":
            row = row % self.chunk
        root = (torch.expm1(log_decay * (row + 1)) / torch.expm1(log_decay)).sqrt()[..., None]  # (heads, n, 1)
        if self.form == "recurrent":
            return root
        size = self.chunk if self.form == "chunk" else 256
        blocks = range(0, n, size)
        sums = []
        for start in blocks:
            first, end = start if self.form == "chunk" else 0, min(start + size, n)
            age = torch.arange(start, end, device=q.device)[:, None] - torch.arange(first, end, device=q.device)
            weight = torch.where(age >= 0, (log_decay[..., None] * age.clamp(min=0)).exp(), 0.0)  # (heads, rows, columns)
            sums.append(((q[:, start:end] @ k[:, first:end].mT) * weight).abs().sum(-1, keepdim=True))
        inside = (torch.cat(sums, dim=1) / root).clamp(min=1)
        if self.form == "parallel":
            return root * inside.clamp(max=5e4)
        to_end = (log_decay * torch.arange(self.chunk - 1, -1, -1, device=q.device)).exp()[..., None]  # (heads, chunk, 1)
        to_end = to_end / to_end.sum(1, keepdim=True)
        state, carried = q.new_zeros(self.heads, k.shape[-1], v.shape[-1]), []
        for start in blocks:
            largest = state.abs().sum(1).amax(-1).clamp(min=1)  # (heads,)
            kc, vc = (t[:, start : start + size] for t in (k, v))
            carried.append(largest[:, None, None].expand(-1, kc.shape[1], 1))
            state = state * (log_decay[..., None] * size).exp() + kc.mT @ (vc * to_end[:, : kc.shape[1]])
        return root * torch.maximum(inside, torch.cat(carried, dim=1))


class GLAMixer(nn.Module):
    """Gated linear attention: linear attention whose decay per key channel comes from the token itself.

    Args:
        dim: width E of a token.
        heads: attention heads.
        expand_k, expand_v: key and value width over E.
        gate_rank: width between the two layers of the decay gate.
        gate_divisor: divides the log of the gate, so that decays start near 1.

    Shapes: (n, dim) -> (n, dim).

    Source: Yang et al. 2024, section 4; fla-org/flash-linear-attention GatedLinearAttention without short convolution, whose
    state dict loads as it is.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate_rank: int = 16,
        gate_divisor: float = 16.0,
    ) -> None:
        super().__init__()
        self.heads, self.gate_divisor = heads, gate_divisor
        key_dim, value_dim = int(dim * expand_k), int(dim * expand_v)
        if key_dim % heads or value_dim % heads:
            raise MilbenchError(f"{heads} heads must divide keys of width {key_dim} and values of width {value_dim}")
        self.scale = (key_dim // heads) ** -0.5
        self.q_proj, self.k_proj = (nn.Linear(dim, key_dim, bias=False) for _ in range(2))
        self.v_proj, self.g_proj = (nn.Linear(dim, value_dim, bias=False) for _ in range(2))
        self.gk_proj = nn.Sequential(nn.Linear(dim, gate_rank, bias=False), nn.Linear(gate_rank, key_dim))
        self.g_norm_swish_gate = nn.RMSNorm(value_dim // heads, eps=1e-5)
        self.o_proj = nn.Linear(value_dim, dim, bias=False)

    def forward(self, x: Tensor, grid: Tensor | None = None) -> Tensor:
        """Mix the tokens; the grid is not used."""
        q, k, v = (_split(project(x), self.heads) for project in (self.q_proj, self.k_proj, self.v_proj))  # (heads, n, d)
        log_gate = _split(F.logsigmoid(self.gk_proj(x)) / self.gate_divisor, self.heads)  # (heads, n, d_k)
        y = self.g_norm_swish_gate(gated_linear_attention(q * self.scale, k, v, log_gate))
        return self.o_proj(_join(y) * F.silu(self.g_proj(x)))


class MambaMixer(nn.Module):
    """Mamba: a causal convolution, then a linear recurrence whose step and input and output maps come from the token.

    Args:
        dim: width E of a token.
        states: states per channel.
        width: of the causal convolution, in tokens.
        expand: inner width over E.

    Shapes: (n, dim) -> (n, dim).

    Source: Gu and Dao 2024, algorithm 2; state-spaces/mamba mamba_simple.Mamba, whose state dict loads as it is.
    """

    def __init__(self, dim: int, *, states: int = 16, width: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, width, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))  # (inner, states)
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        with torch.no_grad():
            self.dt_proj.bias.copy_(step_bias(inner))

    def forward(self, x: Tensor, grid: Tensor | None = None) -> Tensor:
        """Mix the tokens; the grid is not used."""
        u, gate = self.in_proj(x).chunk(2, dim=1)  # (n, inner) each
        return self.out_proj(selective_branch(u, gate, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D))


def selective_branch(
    u: Tensor, gate: Tensor, conv1d: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, A_log: Tensor, D: Tensor
) -> Tensor:
    """What Mamba does between its two projections: convolution, selective scan, gate.

    Args:
        u, gate: (n, inner), in scan order.
        conv1d: depth-wise; x_proj: inner -> rank + 2 states; dt_proj: rank -> inner.
        A_log: (inner, states). D: (inner,).

    Returns:
        (n, inner).
    """
    u = F.silu(causal_conv1d(u, conv1d.weight[:, 0], conv1d.bias))
    step, B, C = x_proj(u).split([dt_proj.in_features, A_log.shape[1], A_log.shape[1]], dim=1)
    delta = F.softplus(dt_proj(step))  # (n, inner)
    y = selective_scan(u[None], delta[None], -A_log.exp()[None], B[None], C[None], D[None])[0]
    return y * F.silu(gate)


def step_bias(channels: int, low: float = 1e-3, high: float = 0.1) -> Tensor:
    """Biases (channels,) whose softplus is log-uniform in [low, high]: the step sizes a state-space model starts with."""
    step = torch.exp(torch.rand(channels) * math.log(high / low) + math.log(low))
    return step + torch.log(-torch.expm1(-step))


def token_order(kind: Kind, n: int, grid: Tensor | None, *, key: str, training: bool, device: torch.device) -> Tensor:
    """The permutation in which a mixer reads n tokens; `x[order]` is in scan order.

    Args:
        kind: "storage", as given; "raster" and "hilbert", by position; "random", drawn anew by torch's global generator in
            training, fixed by `key` (the slide's name) otherwise, so that a prediction can be repeated.
        n: number of tokens.
        grid: (n, 2), for the orders by position.

    Returns:
        (n,) int64.
    """
    if kind == "storage":
        return torch.arange(n, device=device)
    if kind == "random":
        generator = None if training else torch.Generator().manual_seed(zlib.crc32(key.encode()))
        return torch.randperm(n, generator=generator).to(device)
    if grid is None:
        raise ValueError(f"the {kind} order needs the grid")
    return scan_order(grid, kind)
