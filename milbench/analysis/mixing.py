"""The matrix with which a layer mixes tokens: y = A v for every channel of the values.

It is read off a running model and known by its rows, computed when asked for: never n x n unless somebody wants it so. What the
layer does to a token alone (projections, norms, gates, skip connections, convolutions beside the mixing) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nystrom_attention import NystromAttention
from scipy import sparse
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from milbench import ops
from milbench.aggregator import Aggregator
from milbench.bags import Bag
from milbench.errors import MilbenchError
from milbench.nn.ss2d import SS2DMixer
from milbench.ops import backends
from milbench.ops.scan_orders import cross_scan

EXACT = 4096  # tokens up to which a matrix is written out and decomposed
AT_A_TIME = 2**24  # entries of a block of rows
LEAF = 16  # tokens of a causal block whose pairs are formed one by one
TILE, GAPS = 1024, (32, 128, 512)  # tokens of a piece of a causal matrix, and how many of them the next piece may still read


class Mixing:
    """A square matrix known by its rows; products take O(n^2) time and, for x (n, k), O(n k) memory.

    Attributes:
        kind: what it is, in a word or two.
        n: tokens.
        width: channels of a query-key product.
        stochastic: rows are non-negative and sum to 1.
        causal: a token reads itself and earlier ones only.
    """

    kind: str
    n: int
    width: int
    stochastic = False
    causal = False

    def rows(self, start: int, stop: int) -> Tensor:
        """(stop - start, n)."""
        raise NotImplementedError

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, a block at a time."""
        size = max(1, min(self.n, AT_A_TIME // self.n))
        for start in range(0, self.n, size):
            part = slice(start, min(start + size, self.n))
            yield part, self.rows(part.start, part.stop)

    def times(self, x: Tensor) -> Tensor:
        """A x. (n, k) -> (n, k)."""
        return torch.cat([rows @ x.to(rows.dtype) for _, rows in self.blocks()])

    def transposed_times(self, x: Tensor) -> Tensor:
        """A^T x. (n, k) -> (n, k)."""
        total = torch.zeros(())
        for part, rows in self.blocks():
            total = total + rows.mT @ x[part].to(rows.dtype)
        return total

    def dense(self) -> Tensor:
        """(n, n)."""
        return torch.cat([rows for _, rows in self.blocks()])

    def singular_values(self) -> Tensor | None:
        """All n in float64, descending, where the form of the matrix gives them cheaply; None elsewhere."""
        return None

    def pieces(self, leak: float) -> tuple[list[Tensor], float]:
        """Submatrices that share no row and no column, and the Frobenius norm of what lies beside them in their rows and columns.

        Sorted together, their singular values less that norm are, one by one, at most those of the matrix, by interlacing and
        Weyl's inequality. None where the norm would exceed `leak`.

        Here, of causal mixing that forgets: the rows of TILE tokens, and the columns of these tokens but for the last few, which
        later tokens read most.
        """
        if not self.causal:
            return [], 0.0
        squares, kept = torch.zeros(len(GAPS), dtype=torch.float64), []
        for start in range(0, self.n, TILE):
            stop = min(start + TILE, self.n)
            size = max(1, AT_A_TIME // self.n)
            tile = []
            for first in range(start, stop, size):
                rows = self.rows(first, min(first + size, stop))
                tile.append(rows[:, start:stop])
                past = rows[:, :start].square().sum(0, dtype=torch.float64).view(-1, TILE)
                squares += torch.stack([past[:, : TILE - gap].sum() for gap in GAPS])
            kept.append(torch.cat(tile))
        for gap, norm in zip(GAPS, squares.sqrt().tolist(), strict=True):
            if norm <= leak:
                return [tile[:, : TILE - gap] for tile in kept[:-1]] + kept[-1:], norm
        return [], 0.0

    def scaled(self, weight: Tensor) -> Mixing:
        """diag(weight) A."""
        return _Scaled(self, weight)

    def shares(self) -> Mixing:
        """Every row over the sum of its absolute values: the share of each token in it. Softmax attention is that already."""
        if self.stochastic:
            return self
        total = torch.cat([rows.abs().sum(1) for _, rows in self.blocks()])
        return self.scaled(torch.where(total > 0, 1 / total, 0.0))


class _Scaled(Mixing):
    def __init__(self, inner: Mixing, weight: Tensor) -> None:
        self.inner, self.weight = inner, weight
        self.kind, self.n, self.width, self.causal = inner.kind, inner.n, inner.width, inner.causal

    def rows(self, start: int, stop: int) -> Tensor:
        return self.weight[start:stop, None] * self.inner.rows(start, stop)


class Softmax(Mixing):
    """softmax(scale q k^T) over all tokens. q, k: (n, d)."""

    kind, stochastic = "full attention", True

    def __init__(self, q: Tensor, k: Tensor, scale: float | None = None) -> None:
        self.q, self.k, (self.n, self.width) = q, k, q.shape
        self.scale = q.shape[1] ** -0.5 if scale is None else scale

    def rows(self, start: int, stop: int) -> Tensor:
        """See :class:`Mixing`."""
        return (self.scale * self.q[start:stop] @ self.k.mT).softmax(dim=1)


class Window(Mixing):
    """Softmax attention within a radius of the tissue, as a sparse matrix in float64: memory of the sum of the windows' sizes.

    Args:
        q, k: (n, d).
        grid: (n, 2) integer (column, row).
        radius: in grid steps.
        scale: of the scores; None is d^-0.5.
        slope: slope * distance is taken off the scores (ALiBi).
        regions: (n,) labels that tokens do not look beyond, or None.
    """

    kind, stochastic = "window", True

    def __init__(
        self, q: Tensor, k: Tensor, grid: Tensor, radius: float, *, scale: float | None = None, slope: float = 0.0,
        regions: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.q, self.k, (self.n, self.width) = q.double(), k.double(), q.shape
        self.grid, self.radius, self.slope, self.regions = grid, radius, slope, regions
        self.scale = q.shape[1] ** -0.5 if scale is None else scale

    @cached_property
    def matrix(self) -> sparse.csr_array:
        """(n, n), float64."""
        cells = self.grid.double().numpy()
        pair = cKDTree(cells).query_pairs(self.radius, output_type="ndarray")  # i < j
        diagonal = np.arange(self.n)
        i, j = np.concatenate([pair[:, 0], pair[:, 1], diagonal]), np.concatenate([pair[:, 1], pair[:, 0], diagonal])
        if self.regions is not None:
            label = self.regions.numpy()
            i, j = i[label[i] == label[j]], j[label[i] == label[j]]
        ends = zip(*(torch.from_numpy(t).split(2**16) for t in (i, j)), strict=True)
        score = torch.cat([(self.q[a] * self.k[b]).sum(1) * self.scale for a, b in ends]).numpy()
        if self.slope:
            score = score - self.slope * np.linalg.norm(cells[i] - cells[j], axis=1)
        top = np.full(self.n, -np.inf)
        np.maximum.at(top, i, score)
        weight = np.exp(score - top[i])
        weight /= np.bincount(i, weight, self.n)[i]
        return sparse.csr_array((weight, (i, j)), (self.n, self.n))

    def rows(self, start: int, stop: int) -> Tensor:
        """See :class:`Mixing`."""
        return torch.from_numpy(self.matrix[start:stop].toarray())

    def times(self, x: Tensor) -> Tensor:
        """A x, at the cost of the windows."""
        return torch.from_numpy(self.matrix @ x.double().numpy())

    def transposed_times(self, x: Tensor) -> Tensor:
        """A^T x, at the cost of the windows."""
        return torch.from_numpy(self.matrix.T @ x.double().numpy())

    def singular_values(self) -> Tensor | None:
        """Those of the separate pieces of tissue, where each has at most EXACT tokens."""
        count, piece = sparse.csgraph.connected_components(self.matrix, directed=False)
        order = piece.argsort(kind="stable")
        parts = np.split(order, np.bincount(piece, minlength=count).cumsum()[:-1])
        if max(map(len, parts)) > EXACT:
            return None
        return _svdvals([torch.from_numpy(self.matrix[part][:, part].toarray()) for part in parts])

    def pieces(self, leak: float) -> tuple[list[Tensor], float]:
        """The tissue cut into rectangles: rows, all tokens of one; columns, those whose windows lie in it. Nothing leaks."""
        cells, tile = self.grid.numpy(), np.empty(self.n, np.int64)
        todo = [np.arange(self.n)]
        tiles: list[NDArray[np.int64]] = []
        while todo:
            part = todo.pop()
            if len(part) <= EXACT:
                tile[part] = len(tiles)
                tiles.append(part)
                continue
            axis = int(np.ptp(cells[part], axis=0).argmax())
            half = part[cells[part, axis].argsort(kind="stable")]
            todo += [half[: len(half) // 2], half[len(half) // 2 :]]
        seen = self.matrix.tocoo()
        inner = np.bincount(seen.col, tile[seen.row] != tile[seen.col], self.n) == 0
        blocks = [torch.from_numpy(self.matrix[part][:, part[inner[part]]].toarray()) for part in tiles if inner[part].any()]
        return blocks, 0.0

    def mask(self) -> Mixing:
        """1 where a token may look, row by row made to sum to 1."""
        flat = torch.zeros_like(self.q)
        return Window(flat, flat, self.grid, self.radius, regions=self.regions)


class Decayed(Mixing):
    """Retention and gated linear attention: A_ij = sum_d q_id k_jd prod_{j < t <= i} gate_td for j <= i, 0 after.

    Far from the diagonal the product of gates is split at a token between j and i into two factors that never exceed 1, one for i
    and one for j, so a block is one matrix product; near it, blocks are halved until few pairs are left.

    Args:
        q, k: (n, d).
        log_gate: (n, d) or (n, 1), logarithm of what is kept at each token.

    Source: Sun et al. 2023, eq. 5; Yang et al. 2024, section 4.
    """

    causal = True

    def __init__(self, q: Tensor, k: Tensor, log_gate: Tensor, kind: str) -> None:
        self.q, self.k, (self.n, self.width), self.kind = q, k, q.shape, kind
        self.since = log_gate.double().cumsum(0)  # differences of long sums would lose digits in float32

    def rows(self, start: int, stop: int) -> Tensor:
        """See :class:`Mixing`."""
        return _decayed_rows(self.q, self.k, self.since, start, stop)


def _decayed_rows(q: Tensor, k: Tensor, since: Tensor, start: int, stop: int) -> Tensor:
    """Rows of q (decay) k^T, lower triangular. q, k: (n, d), since: (n, d) or (n, 1) sums of log gates up to each token."""
    out = q.new_zeros(stop - start, len(k))

    def before(first: int, last: int, upto: int, begin: int) -> None:
        at = since[first - 1]
        left = q[first:last] * (since[first:last] - at).to(q.dtype).exp()
        right = k[begin:upto] * (at - since[begin:upto]).to(q.dtype).exp()
        out[first - start : last - start, begin:upto] = left @ right.mT

    def triangle(first: int, last: int) -> None:
        if last - first > LEAF:
            middle = (first + last) // 2
            triangle(first, middle)
            triangle(middle, last)
            before(middle, last, middle, first)
            return
        here = slice(first, last)
        kept = (since[here, None] - since[here]).clamp(max=0).to(q.dtype).exp()  # (t, t, d)
        out[first - start : last - start, here] = (q[here, None] * k[here] * kept).sum(-1).tril()

    if start:
        before(start, stop, start, 0)
    triangle(start, stop)
    return out


class Scan(Mixing):
    """Mamba's selective scan, as the mean over its channels c.

    Unrolling the recurrence gives each channel a matrix of its own: sum_s C_is exp(A_cs sum_{j < t <= i} delta_tc) B_js delta_jc
    for j <= i, 0 after. The skip D u is left out, as it mixes nothing.

    Args:
        delta: (n, c), steps. B, C: (n, s). A: (c, s), rates, negative.

    Source: Gu and Dao 2024, algorithm 2, unrolled; Ali et al. 2024 read such matrices as attention.
    """

    kind, causal = "selective scan", True

    def __init__(self, delta: Tensor, B: Tensor, C: Tensor, A: Tensor) -> None:
        self.delta, self.B, self.C, self.A = delta, B, C, A
        self.n, self.width = B.shape
        self.time = delta.double().cumsum(0)

    def rows(self, start: int, stop: int) -> Tensor:
        """See :class:`Mixing`."""
        total = self.delta.new_zeros(stop - start, self.n)
        channels = self.delta.shape[1]
        for s in range(self.width):
            q, k = self.C[:, s, None].expand(-1, channels), self.B[:, s, None] * self.delta
            total += _decayed_rows(q, k, self.time * self.A[:, s].double(), start, stop)
        return total / channels

    def channel(self, at: float) -> Scan:
        """The matrix of the one channel whose mean step is the quantile `at` of all."""
        c = self.delta.mean(0).argsort()[round(at * (self.delta.shape[1] - 1))]
        return Scan(self.delta[:, c, None], self.B, self.C, self.A[c, None])


class CrossScan(Mixing):
    """V-Mamba's four scans over the cells of the map, summed, in the map's order. Written out.

    Args:
        scans: one for each direction.
        orders: (4, n), the cells in the order of each scan.
    """

    def __init__(self, scans: Sequence[Scan], orders: Tensor) -> None:
        self.scans, self.orders = scans, orders
        self.kind, self.n, self.width = "cross scan", scans[0].n, scans[0].width

    @cached_property
    def matrix(self) -> Tensor:
        """(n, n)."""
        total = self.scans[0].delta.new_zeros(self.n, self.n)
        for scan, order in zip(self.scans, self.orders, strict=True):
            total[order[:, None], order] += scan.dense()
        return total

    def rows(self, start: int, stop: int) -> Tensor:
        """See :class:`Mixing`."""
        return self.matrix[start:stop]


class Factors(Mixing):
    """Nyström attention: left (n, m) times right (m, n), in float64. Its rank is at most the number m of landmarks."""

    kind = "Nyström"

    def __init__(self, left: Tensor, right: Tensor, width: int) -> None:
        self.left, self.right, self.n, self.width = left.double(), right.double(), len(left), width

    def rows(self, start: int, stop: int) -> Tensor:
        """See :class:`Mixing`."""
        return self.left[start:stop] @ self.right

    def times(self, x: Tensor) -> Tensor:
        """A x, in O(n m)."""
        return self.left @ (self.right @ x.double())

    def transposed_times(self, x: Tensor) -> Tensor:
        """A^T x, in O(n m)."""
        return self.right.mT @ (self.left.mT @ x.double())

    def singular_values(self) -> Tensor:
        """Those of an m x m matrix: the triangles of both factors' QR."""
        small = torch.linalg.qr(self.left, mode="r").R @ torch.linalg.qr(self.right.mT, mode="r").R.mT
        return _padded(torch.linalg.svdvals(small), self.n)

    def scaled(self, weight: Tensor) -> Factors:
        """diag(weight) A."""
        return Factors(self.left * weight[:, None].to(self.left), self.right, self.width)


class Regions(Mixing):
    """Attention inside regions only: a block diagonal, in float64. Tokens are listed region by region.

    Args:
        parts: square matrices whose rows sum to 1.
    """

    kind, stochastic = "regions", True

    def __init__(self, parts: Sequence[Tensor], width: int) -> None:
        self.parts, self.width = [part.double() for part in parts], width
        self.n = sum(map(len, self.parts))

    def rows(self, start: int, stop: int) -> Tensor:
        """See :class:`Mixing`."""
        out, first = self.parts[0].new_zeros(stop - start, self.n), 0
        for part in self.parts:
            last = first + len(part)
            low, high = max(first, start), min(last, stop)
            if low < high:
                out[low - start : high - start, first:last] = part[low - first : high - first]
            first = last
        return out

    def singular_values(self) -> Tensor:
        """Those of the regions."""
        return _svdvals(self.parts)


def _svdvals(matrices: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.linalg.svdvals(m) for m in matrices]).sort(descending=True).values


def _padded(values: Tensor, n: int) -> Tensor:
    return F.pad(values[:n], (0, max(0, n - len(values))))


@dataclass(frozen=True)
class Head:
    """One token-mixing matrix of a model on a bag.

    Args:
        layer: the module that mixes.
        head: number of the head; of Mamba "mean" over the channels and "median", the channel with the median step; of V-Mamba
            such a mean for each direction ("rows", "columns" and both reversed) and "sum", all directions in the map's order.
        mixing: the matrix.
    """

    layer: str
    head: str
    mixing: Mixing


@torch.no_grad()
def observe(model: Aggregator, bag: Bag) -> list[Head]:
    """Run the model once in evaluation and keep the token-mixing matrix of every layer and head, in the order of their use.

    Read are softmax attention over all tokens, in windows and inside regions, Nyström attention, retention, gated linear
    attention, Mamba and V-Mamba. Not seen are dilated attention, torch's own transformer layers, such as HIPT's between
    regions, attention to or from a few vectors, and S4's convolution. Matrices of at most EXACT tokens are kept in float64,
    larger ones in the model's precision.

    Raises:
        MilbenchError: no layer of the model mixes tokens in one of these ways.
    """
    watch = _Observer()
    model.eval()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(watch.enter(name)).remove)
            stack.callback(module.register_forward_hook(watch.leave).remove)
        stack.enter_context(backends.watched(watch.wrap))
        stack.enter_context(watch)
        model(bag)
    if not watch.heads:
        raise MilbenchError(
            f"{type(model).__name__}: no layer mixes tokens by a matrix that is read here (softmax attention: full, windowed, "
            "inside regions; Nyström attention, retention, gated linear attention, Mamba, V-Mamba)"
        )
    return list(watch.heads.values())


class _Observer(TorchFunctionMode):
    """Sees every operation of :mod:`milbench.ops`, torch's own attention, and what modules are given."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: dict[tuple[str, str], Head] = {}
        self.path: list[tuple[str, nn.Module, tuple[Any, ...]]] = []
        self.inside = False  # an operation of ours, whose backend may be torch's attention

    def enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.path.append((name, module, args))

        return hook

    def leave(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if isinstance(module, NystromAttention):
            self.nystrom(module, *args)
        self.path.pop()

    def wrap(self, op: str, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watched(*args: Any, **options: Any) -> Tensor:
            getattr(self, op)(*args, **options)
            self.inside = True
            try:
                return call(*args, **options)
            finally:
                self.inside = False

        return watched

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and not self.inside:
            self.torch_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def add(self, head: str | int, mixing: Mixing) -> None:
        layer = self.path[-1][0]
        if (layer, str(head)) in self.heads:
            raise MilbenchError(f"layer {layer} mixes tokens more than once in a forward pass; that is not read here")
        self.heads[layer, str(head)] = Head(layer, str(head), mixing)

    def full_attention(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, dropout: float = 0.0) -> None:
        for h, (a, b) in enumerate(zip(*_kept(q, k), strict=True)):
            self.add(h, Softmax(a, b, scale))

    def local_attention_2d(
        self, q: Tensor, k: Tensor, v: Tensor, window: ops.Window, *, scale: float | None, **dropout: Any
    ) -> None:
        for h in range(len(q)):
            slope = 0.0 if window.alibi is None else float(window.alibi[h])
            matrix = Window(q[h], k[h], window.grid, window.radius, scale=scale, slope=slope, regions=window.regions)
            self.add(h, matrix)

    def retention(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, **chunk: int) -> None:
        for h, (a, b) in enumerate(zip(*_kept(q, k), strict=True)):
            self.add(h, Decayed(a, b, decay[h].log().expand(q.shape[1], 1), "retention"))

    def gated_linear_attention(self, q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, **chunk: int) -> None:
        for h, (a, b, gate) in enumerate(zip(*_kept(q, k, log_gate), strict=True)):
            self.add(h, Decayed(a, b, gate, "gated linear attention"))

    def selective_scan(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> None:
        scans = [Scan(*arguments) for arguments in zip(*_kept(delta, B, C, A), strict=True)]
        _, module, args = self.path[-1]
        if not isinstance(module, SS2DMixer):
            self.add("mean", scans[0])
            self.add("median", scans[0].channel(0.5))
            return
        for name, scan in zip(("rows", "columns", "rows reversed", "columns reversed"), scans, strict=True):
            self.add(name, scan)
        if scans[0].n <= EXACT:
            self.add("sum", CrossScan(scans, cross_scan(module.cells(args[1])[0])))

    def nystrom(self, module: NystromAttention, x: Tensor) -> None:
        _, (left, middle, right) = NystromAttention.forward(module, x, return_attn_matrices=True)  # (1, heads, ...) each
        n = x.shape[1]  # the zeros that pad on the left have zero values, so only the tokens' own rows and columns count
        for h, (a, b, c) in enumerate(zip(left[0], middle[0], right[0], strict=True)):
            self.add(h, Factors(a[-n:].double() @ b.double(), c[:, -n:], module.to_qkv.out_features // 3 // module.heads))

    def torch_attention(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
    ) -> None:
        layer, batch = self.path[-1][0], q.shape[0]
        masked = attn_mask is not None and (attn_mask.dtype != torch.bool or attn_mask.shape != (batch, 1, 1, k.shape[2]))
        if q.ndim != 4 or q.shape[2] != k.shape[2] or masked or any(rest) or options.get("is_causal"):
            raise MilbenchError(
                f"layer {layer} calls torch's attention in a form that is not read here: only (regions, heads, n, d)"
            )
        scale, heads = options.get("scale"), range(q.shape[1])
        if batch == 1 and attn_mask is None and (layer, "0") not in self.heads:
            for h, (a, b) in enumerate(zip(*_kept(q[0], k[0]), strict=True)):
                self.add(h, Softmax(a, b, scale))
            return
        for h in heads:
            known = self.heads.pop((layer, str(h)), None)  # regions may come in several calls
            parts = known.mixing.parts if known is not None and isinstance(known.mixing, Regions) else []
            for i in range(batch):
                seen = slice(None) if attn_mask is None else attn_mask[i, 0, 0]
                parts.append(Softmax(q[i, h][seen].double(), k[i, h][seen].double(), scale).dense())
            self.add(h, Regions(parts, q.shape[3]))


def _kept(*tensors: Tensor) -> list[Tensor]:
    """(heads, n, ...) in float64 where the matrices will be written out."""
    return [t.double() if tensors[0].shape[1] <= EXACT else t for t in tensors]
