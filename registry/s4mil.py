"""S4MIL: one diagonal state-space layer over the bag as stored, then the maximum over patches (Fillioux et al., MICCAI 2023).

Unlike Mamba's, its recurrence is the same at every token, so it is a convolution as long as the bag: a kernel, and two FFTs.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional as F

from milbench import Aggregator, Bag, Prediction, register
from milbench.recipes import MAMBAMIL_LOOP, MAMBAMIL_SURVIVAL_LOOP


def kernel_naive(rate: Tensor, weight: Tensor, n: int) -> Tensor:
    """The definition: K[c, l] = 2 Re sum_m weight[c, m] exp(rate[c, m] l), with an array of channels x modes x n."""
    at = torch.arange(n, device=rate.device)
    return 2 * (weight[..., None] * (rate[..., None] * at).exp()).sum(dim=1).real


def kernel(rate: Tensor, weight: Tensor, n: int) -> Tensor:
    """Same result without that array: exp(rate (i s + j)) = exp(rate s i) exp(rate j), so it is a product of two small ones.

    Args:
        rate: (channels, modes), complex, per token.
        weight: (channels, modes), complex.
        n: tokens; the two arrays are (channels, modes, about sqrt(n)).

    Returns:
        (channels, n).
    """
    side = math.isqrt(n - 1) + 1  # ceil(sqrt(n))
    at = torch.arange(side, device=rate.device)
    coarse, fine = (weight[..., None] * (rate[..., None] * (side * at)).exp()), (rate[..., None] * at).exp()
    return 2 * (coarse.mT @ fine).real.flatten(1)[:, :n]


def causal_convolution(u: Tensor, taps: Tensor) -> Tensor:
    """y_i = sum_{j <= i} taps[j] u_(i - j) along the last axis: (channels, n) twice -> (channels, n). Exact, by FFT."""
    n = u.shape[-1]
    size = next_fast_len(2 * n - 1, real=True)  # room for the whole product, so that no end meets a beginning
    return torch.fft.irfft(torch.fft.rfft(u, n=size) * torch.fft.rfft(taps, n=size), n=size)[..., :n]


class _S4D(nn.Module):
    """S4D: a diagonal linear recurrence per channel, plus D u. (n, dim) -> (n, dim). Computed in float32 or float64."""

    def __init__(self, dim: int, modes: int) -> None:
        super().__init__()
        self.D = nn.Parameter(torch.randn(dim))
        self.C = nn.Parameter(torch.view_as_real(torch.randn(dim, modes, dtype=torch.complex64)))  # (dim, modes, 2)
        low, high = math.log(0.001), math.log(0.1)
        self.log_dt = nn.Parameter(torch.rand(dim) * (high - low) + low)
        self.log_A_real = nn.Parameter(torch.full((dim, modes), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(modes, dtype=torch.float32).repeat(dim, 1))

    def forward(self, u: Tensor) -> Tensor:
        with torch.autocast(u.device.type, enabled=False):
            full = u.to(torch.promote_types(u.dtype, torch.float32))
            y = causal_convolution(full.mT, self.kernel(len(u), full.dtype)).mT + full * self.D.to(full.dtype)
            return y.to(u.dtype)

    def kernel(self, n: int, dtype: torch.dtype) -> Tensor:
        """The taps (dim, n): the recurrence, discretised with the input held for a step."""
        C, log_dt, log_A_real, A_imag = (p.to(dtype) for p in (self.C, self.log_dt, self.log_A_real, self.A_imag))
        A = torch.complex(-log_A_real.exp(), A_imag)  # (dim, modes)
        rate = A * log_dt.exp()[:, None]
        return kernel(rate, torch.view_as_complex(C.contiguous()) * torch.expm1(rate) / A, n)


@register("s4mil", label="S4MIL", family="linear", member=6, cite="fillioux2023", version=1)
class S4MIL(Aggregator):
    """A structured state-space model with a maximum.

    h = act(W x), dropout; u = LayerNorm(h); y = S4D(u): with a = -exp(log_A_real) + i A_imag and dt = exp(log_dt), the kernel is
    K[l] = 2 Re sum over modes of C (exp(a dt) - 1) / a exp(a dt l), and y_i = sum_{j <= i} K[i - j] u_j + D u_i; (p, q) =
    Linear(gelu(y)); t = p sigmoid(q); z = max over patches of t, channel by channel; logits = Linear(z).

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        dim: width E of a token.
        states: of a channel; half as many complex modes.
        activation: after the first layer.
        dropout: after it, in training; the only one.

    Source: Fillioux et al. 2023, as in isyangshu/MambaMIL (S4Model), whose scripts train it with dropout 0 except for survival.
    Traps: (1) causal: the first patch sees only itself. (2) No residual goes around the layer, and only the patch that gives the
    maximum gets a gradient, channel by channel. (3) The official marks for no weight decay are never read. (4) Half precision
    fails there; here the layer is float32 under autocast. Deviations: the official width is fixed at 512; the kernel is a
    product of two arrays (same numbers, O(n) memory instead of 16 complex numbers for each token and channel). A training step
    takes 0.8 GiB at 20,000 patches.
    Checkpoints: the files that MambaMIL's scripts save (s_0_checkpoint.pt and so on) of model_type s4model.
    """

    complexity = "n log n"
    order_sensitive = True
    official_recipe = {
        "subtyping": {**MAMBAMIL_LOOP, "params": {"dropout": 0.0}},
        "survival": MAMBAMIL_SURVIVAL_LOOP,
    }
    official_names = {
        "_fc1.0": "project.0", "s4_block.0": "norm", "s4_block.1": "s4d", "s4_block.1.kernel": "s4d",
        "s4_block.1.output_linear.0": "out", "classifier": "head",
    }  # fmt: skip

    def __init__(
        self, in_dim: int, n_out: int, *, dim: int = 512, states: int = 32, activation: Literal["gelu", "relu"] = "gelu",
        dropout: float = 0.25,
    ) -> None:  # fmt: skip
        super().__init__(in_dim, n_out)
        act = nn.GELU() if activation == "gelu" else nn.ReLU()
        self.project = nn.Sequential(nn.Linear(in_dim, dim), act, nn.Dropout(dropout))
        self.norm = nn.LayerNorm(dim)
        self.s4d = _S4D(dim, states // 2)
        self.out = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, n_out)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag. extras: tokens (n, dim), of which the maximum is taken."""
        y = self.s4d(self.norm(self.project(bag.features)))  # (n, dim)
        tokens = F.glu(self.out(F.gelu(y)), dim=1)  # (n, dim)
        return Prediction(logits=self.head(tokens.amax(dim=0)), extras={"tokens": tokens})

    def rename_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official last layer is a convolution of width 1."""
        renamed = super().rename_official(state_dict)
        return {name: value[..., 0] if name == "out.weight" and value.ndim == 3 else value for name, value in renamed.items()}
