"""Rank, spectrum and sparsity of token-mixing matrices: exact where they can be written out, bounded above that.

All numbers are of the matrix of shares: every row divided by the sum of its absolute values, which softmax attention is already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milbench.analysis import mixing
from milbench.analysis.mixing import Mixing, Softmax, Window

THRESHOLD = 1e-4  # a share is counted as zero from THRESHOLD / n down (LongMIL, eq. 8)
RELATIVE = 1e-4  # of the largest singular value, for `rank_1e_4`
DIRECTIONS = 512  # of the randomised estimate
EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Between:
    """A number known to lie within two bounds, which are equal where it is exact."""

    low: float
    high: float

    def __format__(self, spec: str) -> str:
        low, high = format(self.low, spec), format(self.high, spec)
        return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Numbers:
    """What is said about one matrix.

    Args:
        n, width: tokens, and channels of a query-key product.
        sigma: singular values, descending: all n where `exact`, the leading ones otherwise.
        exact: whether they are all, to rounding.
        residual: no value of `sigma` is farther from the true one than this. 0 where exact; otherwise the Frobenius norm of what
            the leading directions leave out, and rounding.
        rank: singular values above `tolerance`.
        tolerance: n eps32 sigma_1: what a network in float32 can tell from zero.
        rank_float64: the same with the eps of float64, where the matrix was computed in it and all values are known.
        rank_1e_4: singular values above 1e-4 sigma_1.
        effective_rank: exp of the entropy of sigma / sum(sigma) (Roy and Vetterli 2007).
        stable_rank: |A|_F^2 / sigma_1^2.
        sparsity: share of the entries that are at most 1e-4 / n in absolute value (LongMIL, eq. 8-9); of all rows, always exact.
    """

    n: int
    width: int
    sigma: Tensor
    exact: bool
    residual: float
    rank: Between
    tolerance: float
    rank_float64: int | None
    rank_1e_4: Between
    effective_rank: Between
    stable_rank: Between
    sparsity: float

    def __str__(self) -> str:
        how = "all singular values" if self.exact else f"{len(self.sigma)} directions, none off by more than {self.residual:.2g}"
        in_float64 = "unknown" if self.rank_float64 is None else f"{self.rank_float64:,}"
        return (
            f"n = {self.n:,}, rank {self.rank:,.0f} (float64: {in_float64}), effective rank {self.effective_rank:,.1f}, "
            f"stable rank {self.stable_rank:,.1f}, sparsity {self.sparsity:.4f} ({how})"
        )


def numbers(matrix: Mixing, *, exact_to: int = mixing.EXACT, directions: int = DIRECTIONS, seed: int = 0) -> Numbers:
    """Everything about one matrix.

    Args:
        matrix: any; its shares are taken.
        exact_to: tokens up to which it is written out and decomposed.
        directions: k of the randomised estimate above that; O(n k) memory.
        seed: of its random start.
    """
    matrix = matrix.shares()
    sigma = matrix.singular_values()
    if sigma is None and matrix.n <= exact_to:
        sigma = torch.linalg.svdvals(matrix.dense()).double()
    if sigma is None:
        return bounded(matrix, min(directions, matrix.n), seed)
    small = sum(int((rows.abs() <= THRESHOLD / matrix.n).sum()) for _, rows in matrix.blocks())
    top, tolerance = float(sigma[0]), matrix.n * EPS32 * float(sigma[0])
    in_float64 = matrix.rows(0, 1).dtype == torch.float64

    def exactly(value: float) -> Between:
        return Between(value, value)

    return Numbers(
        n=matrix.n,
        width=matrix.width,
        sigma=sigma,
        exact=True,
        residual=0.0,
        rank=exactly(_above(sigma, tolerance)),
        tolerance=tolerance,
        rank_float64=_above(sigma, matrix.n * EPS64 * top) if in_float64 else None,
        rank_1e_4=exactly(_above(sigma, RELATIVE * top)),
        effective_rank=exactly(math.exp(_entropy(sigma))),
        stable_rank=exactly(float((sigma**2).sum()) / top**2),
        sparsity=small / matrix.n**2,
    )


def randomised(matrix: Mixing, directions: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Orthonormal Q (n, k) that holds most of the range of A, and B = Q^T A (k, n), by one power iteration from a random start.

    Source: Halko, Martinsson and Tropp 2011, algorithm 4.4.
    """
    start = torch.randn(matrix.n, directions, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(matrix.times(start)).Q
    basis = torch.linalg.qr(matrix.transposed_times(basis)).Q
    basis = torch.linalg.qr(matrix.times(basis)).Q
    return basis, matrix.transposed_times(basis).mT


def bounded(matrix: Mixing, directions: int, seed: int = 0) -> Numbers:
    """The numbers of a matrix that is too large to decompose, between bounds, from `directions` <= n directions; O(n k) memory.

    Bounds from the leading directions Q and from what they leave out, E = A - Q Q^T A, whose norm is measured, not guessed.

    A^T A = B^T B + E^T E with B = Q^T A, so b_i <= sigma_i <= sqrt(b_i^2 + |E|_F^2), and what is beyond direction k has a sum of
    squares of at most |E|_F^2. No singular value exceeds the root of the largest row sum times the largest column sum. Pieces of
    the matrix bound singular values from below.
    """
    n = matrix.n
    basis, image = randomised(matrix, directions, seed)
    left_out = total = 0.0
    small, columns = 0, torch.zeros(n, dtype=torch.float64)
    for part, rows in matrix.blocks():
        small += int((rows.abs() <= THRESHOLD / n).sum())
        total += float(rows.double().square().sum())
        columns += rows.abs().sum(0, dtype=torch.float64)
        left_out += float((rows - basis[part].to(rows.dtype) @ image.to(rows.dtype)).square().sum(dtype=torch.float64))
    sigma = torch.linalg.svdvals(image.double())
    rounding = directions * (EPS64 if image.dtype == torch.float64 else EPS32) * float(sigma[0])
    residual = math.sqrt(left_out) + rounding
    top = min(math.hypot(float(sigma[0]), residual), math.sqrt(float(columns.max())))
    tolerance = n * EPS32 * top
    pieces, leak = matrix.pieces(tolerance / 10)
    least = torch.cat([torch.linalg.svdvals(piece.double()) for piece in pieces] or [sigma.new_zeros(0)]) - leak
    return Numbers(
        n=n,
        width=matrix.width,
        sigma=sigma,
        exact=False,
        residual=residual,
        rank=_count(sigma, residual, tolerance, tolerance, n, at_least=_above(least, tolerance)),
        tolerance=tolerance,
        rank_float64=None,
        rank_1e_4=_count(sigma, residual, RELATIVE * top, RELATIVE * float(sigma[0]), n),
        effective_rank=_effective(sigma, residual, total, top, n, nuclear=float(least.clamp(min=0).sum())),
        stable_rank=Between(total / top**2, total / max(float(sigma[0]) - rounding, EPS64) ** 2),
        sparsity=small / n**2,
    )


def _above(sigma: Tensor, tolerance: float) -> int:
    return int((sigma > tolerance).sum())


def _count(sigma: Tensor, residual: float, high: float, low: float, n: int, at_least: int = 0) -> Between:
    """How many of n singular values exceed a tolerance that itself lies in [low, high]."""
    beyond = math.floor(residual**2 / low**2)  # so many values of `low` have all of the sum of squares that is left
    within = int((sigma**2 + residual**2 > low**2).sum())
    return Between(max(_above(sigma, high), at_least), min(n, within + beyond))


def _entropy(sigma: Tensor) -> float:
    p = sigma / sigma.sum()
    return float(torch.special.entr(p).sum())


def _effective(sigma: Tensor, residual: float, total: float, top: float, n: int, nuclear: float) -> Between:
    """Bounds of the effective rank when sigma_i^2 = b_i^2 + y_i with y_i >= 0 and a sum of residual^2.

    Above: sigma_i = b_i + x_i with x_i >= 0 that sum to at most sqrt(n) residual, so sigma / sum(sigma) is a mixture of b and x
    (scaled to 1) in which x has a weight of at most `most`, and its entropy is at most the mean of both plus that of the choice;
    the entropy of x is at most log n. Below: the entropy is at least the logarithm of (sum sigma)^2 / sum sigma^2, its Rényi
    entropy of order 2, and sum(sigma) at least sum(b) + residual^2 / (2 sigma_1), and at least `nuclear`.
    """
    extra = math.sqrt(n) * residual
    most = extra / (float(sigma.sum()) + extra)
    entropy = _entropy(sigma)
    best = min(most, 1 / (1 + math.exp(entropy) / n))  # where the upper bound, concave in the weight, is largest
    choice = -sum(p * math.log(p) for p in (best, 1 - best) if p > 0)
    nuclear = max(nuclear, float(sigma.sum()) + residual**2 / (2 * top))
    low = max(1.0, nuclear**2 / total, math.exp((1 - most) * entropy))
    return Between(low, min(n, math.exp(choice + (1 - best) * entropy + best * math.log(n))))


def bands(matrix: Mixing, radii: Sequence[int], tokens: int = 512) -> list[dict[str, int]]:
    """Rank of 1-D bands made of the first tokens' own queries and keys, beside the bound n - b of LongMIL, eq. 14.

    Returns:
        One row per half-width b: n, b, rank (of float64), bound, holds.
    """
    if not isinstance(matrix, Softmax | Window):
        return []
    q, k = (t[:tokens] for t in (matrix.q, matrix.k))
    line = torch.stack([torch.arange(len(q)), torch.zeros(len(q), dtype=torch.int64)], dim=1)
    out = []
    for b in radii:
        if b < len(q):
            rank = numbers(Window(q, k, line, b, scale=matrix.scale)).rank_float64
            assert rank is not None
            out.append({"n": len(q), "b": b, "rank": rank, "bound": len(q) - b, "holds": rank >= len(q) - b})
    return out
