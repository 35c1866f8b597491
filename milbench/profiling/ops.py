"""`milbench profile ops`: every operation beside its public alternatives, in one run on one machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from milbench import ops
from milbench.profiling import measure

WIDTH = 384  # of a token
RADIUS = 10.0
Call = Callable[[], Tensor]


@dataclass
class Row:
    """One contender at one size.

    Args:
        op, contender: what is computed, and by whom ("ours" or a public alternative).
        n: tokens.
        setting: heads, widths.
        forward, both: median seconds of the forward pass, and of forward and backward.
        extra_mib: growth of resident memory during forward and backward, in MiB.
        ratio: `both` over ours at the same op, n and setting.
        note: why something is missing.
    """

    op: str
    contender: str
    n: int
    setting: str
    forward: float | None = None
    both: float | None = None
    extra_mib: float | None = None
    ratio: float | None = None
    note: str = ""


def tissue(n: int, seed: int = 0) -> Tensor:
    """(n, 2) cells of an irregular tissue: blobs with ragged edges over about half of their box, in file order (row by row)."""
    generator = torch.Generator().manual_seed(seed)
    side = math.ceil(math.sqrt(2.2 * n))
    centres = torch.rand(12, 2, generator=generator) * side
    yx = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    distance = (yx[:, None].float() - centres).norm(dim=2).amin(1) + torch.rand(len(yx), generator=generator) * side / 20
    inside = distance.argsort()[:n].sort().values
    return yx[inside].flip(1)


def window_sizes(grid: Tensor, radius: float) -> int:
    """Sum over patches of how many patches their window holds: the useful pairs of local attention."""
    reach = int(radius)
    occupied = np.zeros(tuple(int(v) + 1 + 2 * reach for v in grid.amax(0).tolist()[::-1]), dtype=np.int64)
    np.add.at(occupied, (grid[:, 1].numpy() + reach, grid[:, 0].numpy() + reach), 1)
    total = 0
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dx * dx + dy * dy <= radius * radius:
                total += int((occupied * np.roll(occupied, (dy, dx), (0, 1))).sum())
    return total


def sgemm_rate() -> float:
    """Multiplications and additions per second of a large float32 product on the threads that torch has now."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / measure.seconds(lambda: a @ b, repeats=9)


def _inputs(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]


def _run(row: Row, call: Call, inputs: Sequence[Tensor]) -> Row:
    """Measure one contender."""

    def forward() -> None:
        with torch.no_grad():
            call()

    def both() -> None:
        for t in inputs:
            t.grad = None
        call().sum().backward()

    forward_seconds, both_seconds = measure.seconds(forward), measure.seconds(both)
    extra = measure.extra_bytes(both)
    return replace(row, forward=forward_seconds, both=both_seconds, extra_mib=None if extra is None else extra / 2**20)


def _local(n: int, heads: int, contenders: Sequence[str]) -> Iterator[Row]:
    q, k, v = _inputs(*[(heads, n, WIDTH // heads)] * 3)
    grid = tissue(n)
    calls: dict[str, Call] = {"ours": lambda: ops.local_attention_2d(q, k, v, ops.Window(grid, RADIUS))}
    if "torch SDPA, dense" in contenders:
        calls["torch SDPA, dense"] = lambda: F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    if "torch SDPA, same mask" in contenders:
        near = torch.cdist(grid.float(), grid.float()) <= RADIUS
        calls["torch SDPA, same mask"] = lambda: F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=near)[0]
    for name, call in calls.items():
        yield _run(Row("local_attention_2d", name, n, f"{heads} head{'s' * (heads > 1)}, radius {RADIUS:g}"), call, (q, k, v))


def _full(n: int) -> Iterator[Row]:
    q, k, v = _inputs(*[(1, n, WIDTH)] * 3)
    row = Row("full_attention", "ours", n, "1 head")
    yield _run(row, lambda: ops.full_attention(q, k, v), (q, k, v))
    sdpa = replace(row, contender="torch SDPA")
    yield _run(sdpa, lambda: F.scaled_dot_product_attention(q[None], k[None], v[None])[0], (q, k, v))


def _retention(n: int, reference: bool) -> Iterator[Row]:
    q, k, v = _inputs((4, n, 96), (4, n, 96), (4, n, 192))
    decay = 1 - 2.0 ** (-5 - torch.arange(4.0))
    calls: dict[str, Call] = {"ours": lambda: ops.retention(q, k, v, decay)}
    if reference:
        calls["recurrent reference"] = lambda: ops.retention_recurrent(q, k, v, decay)
    for name, call in calls.items():
        yield _run(Row("retention", name, n, "4 heads, 96 -> 192"), call, (q, k, v))


def _gla(n: int, reference: bool) -> Iterator[Row]:
    q, k, v, g = _inputs((4, n, 48), (4, n, 48), (4, n, 96), (4, n, 48))
    calls: dict[str, Call] = {"ours": lambda: ops.gated_linear_attention(q, k, v, F.logsigmoid(g) / 16)}
    if reference:
        calls["recurrent reference"] = lambda: ops.gated_linear_attention_naive(q, k, v, F.logsigmoid(g) / 16)
    for name, call in calls.items():
        yield _run(Row("gated_linear_attention", name, n, "4 heads, 48 -> 96"), call, (q, k, v, g))


def _scan(n: int, alternatives: bool) -> Iterator[Row]:
    u, d, B, C = _inputs((1, n, 768), (1, n, 768), (1, n, 16), (1, n, 16))
    A = -torch.arange(1.0, 17).repeat(1, 768, 1).requires_grad_()
    D = torch.ones(1, 768)
    row = Row("selective_scan", "ours", n, "768 channels, 16 states")
    yield _run(row, lambda: ops.selective_scan(u, F.softplus(d), A, B, C, D), (u, d, B, C))
    if not alternatives:
        return
    try:
        from mambapy.pscan import pscan
    except ImportError:
        yield replace(row, contender="mambapy parallel scan", note="not installed: pip install mambapy==1.2.0")
        return

    def parallel() -> Tensor:
        delta = F.softplus(d)
        states = pscan(torch.exp(delta[..., None] * A[:, None]), (delta * u)[..., None] * B[:, :, None])
        return (states @ C[..., None])[..., 0] + D * u

    yield _run(replace(row, contender="mambapy parallel scan"), parallel, (u, d, B, C))


def rows(*, small: bool = False) -> Iterator[Row]:
    """Every measurement; `small` divides the sizes by 8, for a look at the form of the table."""
    scale = 8 if small else 1
    dense, masked = "torch SDPA, dense", "torch SDPA, same mask"
    yield from _local(8192 // scale, 1, (dense, masked))
    for heads in (4, 8):
        yield from _local(8192 // scale, heads, (masked,))
    yield from _full(8192 // scale)
    yield from _retention(8192 // scale, reference=True)
    yield from _gla(8192 // scale, reference=True)
    yield from _scan(8192 // scale, alternatives=True)
    for n in (4096, 16384, 32768, 65536):
        yield from _local(n // scale, 1, (masked,) if n == 32768 else ())
        yield from _retention(n // scale, reference=False)
        yield from _gla(n // scale, reference=False)
        yield from _scan(n // scale, alternatives=False)


@dataclass
class Bar:
    """A line of the performance budget.

    Args:
        what: the promise.
        value, limit: what was measured and what was promised.
        at_least: whether more is better.
    """

    what: str
    value: float | None
    limit: float
    at_least: bool

    @property
    def holds(self) -> bool | None:
        """None when it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def with_ratios(measured: Sequence[Row]) -> list[Row]:
    """The same rows, each with its time over ours."""
    ours = {(r.op, r.n, r.setting): r.both for r in measured if r.contender == "ours"}
    return [replace(r, ratio=r.both / base if r.both and (base := ours[r.op, r.n, r.setting]) else None) for r in measured]


def slope(measured: Sequence[Row], op: str, setting: str) -> float | None:
    """Exponent of the time of ours in n: 1 is linear. From a least-squares line through log time over log n."""
    points = [(r.n, r.both) for r in measured if (r.op, r.contender, r.setting) == (op, "ours", setting) and r.both]
    if len(points) < 3:
        return None
    return float(np.polyfit(np.log([n for n, _ in points]), np.log([t for _, t in points]), 1)[0])


def bars(measured: Sequence[Row], rate: float) -> list[Bar]:
    """The performance budget beside what was measured."""
    rows = {(r.op, r.contender, r.n, r.setting): r for r in measured}
    local = f"1 head, radius {RADIUS:g}"
    sizes = sorted({r.n for r in measured if r.op == "local_attention_2d"})
    middle, large = sizes[1], sizes[3]

    def ratio(op: str, contender: str, n: int, setting: str) -> float | None:
        row = rows.get((op, contender, n, setting))
        return row.ratio if row else None

    out = []
    floor = 14 * WIDTH * window_sizes(tissue(middle), RADIUS) / rate
    for heads in (1, 4, 8):
        setting = f"{heads} head{'s' * (heads > 1)}, radius {RADIUS:g}"
        ours = rows["local_attention_2d", "ours", middle, setting].both
        out.append(
            Bar(f"local attention, n = {middle}, {heads} head(s): over its arithmetic floor", ours and ours / floor, 4, False)
        )
        masked = ratio("local_attention_2d", "torch SDPA, same mask", middle, setting)
        out.append(Bar(f"local attention, n = {middle}, {heads} head(s): faster than SDPA with the same mask", masked, 8, True))
    masked = ratio("local_attention_2d", "torch SDPA, same mask", large, local)
    out.append(Bar(f"local attention, n = {large}: faster than SDPA with the same mask", masked, 32, True))
    out.append(Bar("local attention: exponent in n", slope(measured, "local_attention_2d", local), 1.1, False))
    biggest = rows["local_attention_2d", "ours", sizes[-1], local]
    floats = None if biggest.extra_mib is None else biggest.extra_mib * 2**20 / 4 / sizes[-1] / WIDTH
    out.append(Bar(f"local attention, n = {sizes[-1]}: extra memory in n d floats", floats, 12, False))
    for op, setting, contender, limit in (
        ("retention", "4 heads, 96 -> 192", "recurrent reference", 10),
        ("gated_linear_attention", "4 heads, 48 -> 96", "recurrent reference", 10),
        ("selective_scan", "768 channels, 16 states", "mambapy parallel scan", 5),
    ):
        out.append(Bar(f"{op}, n = {middle}: faster than {contender}", ratio(op, contender, middle, setting), limit, True))
        out.append(Bar(f"{op}: exponent in n", slope(measured, op, setting), 1.1, False))
    return out


def report(measured: Sequence[Row], rate: float, noise: str | None) -> dict[str, Any]:
    """Everything as plain values, for `--json`."""
    held = [{**asdict(bar), "holds": bar.holds} for bar in bars(measured, rate)]
    return {
        "rows": [asdict(row) for row in measured],
        "budget": held,
        "sgemm_gflops": rate / 1e9,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "noise": noise,
    }
