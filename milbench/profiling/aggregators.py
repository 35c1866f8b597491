"""`milbench profile aggregators`: time, memory and arithmetic of every aggregator as bags grow.

Each aggregator and size is measured in a process of its own, one at a time: memory is honest, and a crash costs one number.
"""

from __future__ import annotations

import copy
import csv
import io
import math
import multiprocessing
import pkgutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import milbench_registry
import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from milbench import plugins, process, recipes
from milbench.aggregator import Aggregator
from milbench.bags import Bag
from milbench.datasets.cohorts import COHORTS
from milbench.errors import SkipTrial
from milbench.files import csv_cell
from milbench.ops import Window, backends
from milbench.plots.figure import OTHERS, PAGE, Figure, label_ends, style
from milbench.profiling import measure
from milbench.profiling.ops import tissue, window_sizes
from milbench.tasks import Subtyping

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

SIZES = tuple(2**k for k in range(10, 17))  # 1,024 to 65,536
WARM_UP = 512  # patches of the bag that compiles kernels and fills the optimiser's state, so that they do not count
CLASSES = ("a", "b", "c")
STEP = 256.0  # level-0 pixels between patches; no method depends on it
FITTED = 4  # largest sizes that an exponent is fitted over
LEAST = 3  # sizes below which there is no exponent
SHORT, SMALL = 1e-2, 2**24  # seconds and bytes: less says nothing about growth
REPEATED = 2.0  # seconds from which one run is enough
PATIENCE = 5  # times the limit of a step, until its process is stopped: it also predicts and counts
UNITS = {"peak_bytes": 2.0**20, "flops": 1e9}  # of the figures: MiB, GFLOP
SPAN = 1e6  # of an axis from top to bottom, at most: a vote of k-NN costs six multiplications
COLUMNS = ("aggregator", "n", "train_seconds", "predict_seconds", "peak_bytes", "flops", "parameters", "stopped")


@dataclass(frozen=True)
class Setting:
    """What all measurements of one run share.

    Args:
        in_dim: width of the features.
        seconds, memory: ceilings of one training step, in seconds and bytes.
        device, threads: what is computed on.
        plugin_files: files that register aggregators.
    """

    in_dim: int = 384
    seconds: float = 10.0
    memory: float = math.inf
    device: str = "cpu"
    threads: int = 1
    plugin_files: tuple[str, ...] = ()


@dataclass
class Row:
    """One aggregator at one size.

    Args:
        aggregator, label: its names.
        n: patches.
        train_seconds: of a training step: forward, loss, backward, update. Median of up to five, of one where that takes seconds.
        predict_seconds: of a prediction.
        peak_bytes: growth of memory during a training step, beyond the model, its gradients and optimiser state, and the bag.
        flops: of a prediction, as :func:`count_flops` counts.
        parameters: of the model.
        stopped: why larger sizes, or the numbers of this one, are missing; empty where nothing is.
    """

    aggregator: str
    label: str
    n: int
    train_seconds: float | None = None
    predict_seconds: float | None = None
    peak_bytes: int | None = None
    flops: int | None = None
    parameters: int | None = None
    stopped: str = ""


def bag_of(n: int, in_dim: int) -> Bag:
    """Noise on an irregular tissue."""
    features = torch.randn(n, in_dim, generator=torch.Generator().manual_seed(n))
    return Bag(features, tissue(n) * STEP, STEP, slide_id=f"tissue-{n}", case_id=f"tissue-{n}")


@torch.no_grad()
def count_flops(model: Aggregator, bag: Bag) -> int:
    """Multiplications and additions of one prediction, in products of matrices, convolutions, attention and scans.

    Counted on the CPU with torch's counter, which sees neither compiled kernels nor fused attention. These have formulas and are
    not computed: attention 2 (d + d_v) for each head and pair of tokens, all pairs or those in a window, d and d_v being the
    widths of keys and values; a selective scan 6 for each token, channel and state (decay, input, output); a Fourier transform of
    L real numbers along the last axis 2.5 L log2 L. What is done element by element (activations, norms, exponentials, rotations)
    counts as nothing.
    """
    counted = 0
    # The counter takes a view of a trained parameter, made without gradients, for a mistake.
    model, bag = copy.deepcopy(model).cpu().eval().requires_grad_(False), bag.to("cpu")

    def full(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        nonlocal counted
        counted += 2 * (q.shape[2] + v.shape[2]) * q.shape[0] * q.shape[1] * k.shape[1]
        return v

    def local(q: Tensor, k: Tensor, v: Tensor, window: Window, **options: Any) -> Tensor:
        nonlocal counted
        if window.regions is not None:
            raise NotImplementedError("windows that end at regions have no formula here")
        counted += 2 * (q.shape[2] + v.shape[2]) * q.shape[0] * window_sizes(window.grid - window.grid.amin(0), window.radius)
        return v

    def scan(u: Tensor, delta: Tensor, A: Tensor, *rest: Tensor | None) -> Tensor:
        nonlocal counted
        counted += 6 * u.numel() * A.shape[2]
        return u

    def product(a: Sequence[int], b: Sequence[int], *rest: Any, **kept: Any) -> int:
        return 2 * math.prod(a) * (b[1] if len(b) > 1 else 1)

    def transforms(sizes: Sequence[int], length: int) -> int:
        return round(2.5 * math.prod(sizes) * length * math.log2(length))

    aten = torch.ops.aten
    formulas: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, **kept: sdpa_flop_count(q, k, v),
        aten.mv: product,
        aten.addmv: lambda bias, a, b, *rest, **kept: product(a, b),
        aten.dot: product,
        aten._fft_r2c: lambda x, *rest, **kept: transforms(x[:-1], x[-1]),
        aten._fft_c2r: lambda x, dim, normal, length, **kept: transforms(x[:-1], length),
    }
    unseen: dict[str, Callable[..., Tensor]] = {"full_attention": full, "local_attention_2d": local, "selective_scan": scan}
    model(bag_of(64, bag.features.shape[1]))  # each backend is tried before its first use, which is not to be counted
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with backends.watched(lambda op, call: unseen.get(op, call)), counter:
        model(bag)
    return counted + counter.get_total_flops()


def measure_one(name: str, n: int, setting: Setting) -> Row:
    """Measure one aggregator at one size in this process.

    Raises:
        SkipTrial: it cannot be built, such as for want of weights.
        RuntimeError, MemoryError: memory did not suffice.
    """
    process.settle(setting.device, setting.threads)
    process.seed(0)
    variant, device, task = plugins.resolve(name), setting.device, Subtyping(CLASSES)
    row = Row(variant.name, variant.label, n)
    small, bag = (bag_of(size, setting.in_dim).to(device) for size in (WARM_UP, n))
    model, target = variant.build(setting.in_dim, len(CLASSES)).to(device), torch.tensor(1, device=device)
    row.parameters = sum(p.numel() for p in model.parameters())
    optimisers = model.optimisers(recipes.get("paper", task.name)) if model.trained_by_gradient else []
    model.prepare([small], torch.Generator().manual_seed(0))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def train(on: Bag) -> None:
        model.train()
        if model.trained_by_gradient:
            model.training_step(on, target, task, optimisers)
        else:
            model.fit([on], [target])
        wait()

    @torch.no_grad()
    def predict(on: Bag) -> None:
        model.eval()
        model(on)
        wait()

    train(small)
    predict(small)
    if device == "cpu":
        _allow(setting.memory)
    started = time.perf_counter()
    row.peak_bytes = measure.extra_bytes(partial(train, bag), device)
    row.train_seconds = time.perf_counter() - started
    if row.train_seconds < REPEATED:
        row.train_seconds = measure.seconds(partial(train, bag), budget=REPEATED, warm_up=False)
    row.predict_seconds = measure.seconds(partial(predict, bag), budget=REPEATED, warm_up=False)
    row.flops = count_flops(model, bag)
    return row


def _allow(memory: float) -> None:
    """Let this process take `memory` more bytes: beyond, allocations fail instead of driving the machine into its swap."""
    if memory == math.inf or sys.platform != "linux":
        return
    import resource

    used = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + int(memory), resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _work(pipe: Connection, name: str, n: int, setting: Setting) -> None:
    """Body of a process: sends a row, or why there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    try:
        plugins.discover(setting.plugin_files)
        pipe.send(measure_one(name, n, setting))
    except SkipTrial as skip:
        pipe.send(str(skip))
    except Exception as error:
        short = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        limit = f"needs more than {_gib(setting.memory)}" if setting.memory < math.inf else "out of memory"
        pipe.send(limit if short else f"{type(error).__name__}: {error}".splitlines()[0])


def in_a_process(name: str, n: int, setting: Setting) -> Row:
    """Measure one aggregator at one size in a fresh process; whatever happens to that process is said in the row."""
    # A server that has imported everything, and computed nothing, forks each process: importing takes longer than most steps.
    context = multiprocessing.get_context("forkserver")
    package = [f"milbench_registry.{module.name}" for module in pkgutil.iter_modules(milbench_registry.__path__)]
    context.set_forkserver_preload([__name__, *package])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, name, n, setting), daemon=True)
    process.start()
    theirs.close()
    patience = 60 + PATIENCE * setting.seconds
    variant = plugins.resolve(name)
    row = Row(variant.name, variant.label, n)
    try:
        if not ours.poll(patience):
            return replace(row, stopped=f"not finished after {patience:.0f} s")
        answer = ours.recv()
        return answer if isinstance(answer, Row) else replace(row, stopped=answer)
    except (EOFError, ConnectionError):
        process.join()
        return replace(row, stopped=f"its process died (exit code {process.exitcode})")
    finally:
        process.kill()
        process.join()
        ours.close()


def profile(names: Sequence[str], sizes: Sequence[int], setting: Setting) -> Iterator[Row]:
    """Every aggregator over ascending sizes, until it is too slow or too large; the last row of a method says so.

    A size that would be over a limit by the growth between the last two is not tried.
    """
    for name in names:
        rows: list[Row] = []
        for n in sorted(sizes):
            if reason := _too_much(rows, n, setting):
                variant = plugins.resolve(name)
                yield Row(variant.name, variant.label, n, stopped=reason)
                break
            row = in_a_process(name, n, setting)
            if row.train_seconds is not None and row.train_seconds > setting.seconds:
                row.stopped = f"{row.train_seconds:.1f} s > limit of {setting.seconds:g} s"
            elif row.peak_bytes is not None and row.peak_bytes > setting.memory:
                row.stopped = f"{_gib(row.peak_bytes)} > limit of {_gib(setting.memory)}"
            rows.append(row)
            yield row
            if row.stopped:
                break


def _too_much(rows: Sequence[Row], n: int, setting: Setting) -> str:
    """Why size n should not be tried after these."""
    if not rows:
        return ""
    growth = n / rows[-1].n
    seconds, memory = ([value for r in rows if (value := getattr(r, name))] for name in ("train_seconds", "peak_bytes"))
    slopes = [
        math.log(values[-1] / values[-2]) / math.log(rows[-1].n / rows[-2].n) if len(values) > 1 and values[-2] > least else 1.0
        for values, least in ((seconds, SHORT), (memory, SMALL))
    ]
    then, bytes_then = (
        values[-1] * growth ** min(2.5, max(0.0, slope)) if values else 0.0
        for values, slope in zip((seconds, memory), slopes, strict=True)
    )
    if then > setting.seconds:
        return f"would take about {then:.0f} s > limit of {setting.seconds:g} s"
    if bytes_then > setting.memory:
        return f"would take about {_gib(bytes_then)} > limit of {_gib(setting.memory)}"
    return ""


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def exponents(rows: Sequence[Row], quantity: str) -> dict[str, float]:
    """Aggregator -> slope of log `quantity` over log n, by least squares over its largest sizes: 1 is linear, 2 quadratic.

    Methods with fewer than three sizes have none.
    """
    points = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.n):
        if value := getattr(row, quantity):
            points[row.aggregator].append((math.log(row.n), math.log(value)))
    last = {name: np.array(some[-FITTED:]) for name, some in points.items() if len(some) >= LEAST}
    return {name: float(np.polyfit(xy[:, 0], xy[:, 1], 1)[0]) for name, xy in last.items()}


def free_memory() -> float:
    """Bytes that processes could still take, infinite where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:"))


def cohort_sizes() -> dict[str, int]:
    """Patches of an average slide at two magnifications, four times as many at the higher one.

    As far as published: of BRACS it is the middle of a histogram's axis (:data:`milbench.datasets.cohorts.COHORTS`).
    """
    return {
        f"{COHORTS[name].label} {magnification}x": COHORTS[name].instances * (magnification // 20) ** 2
        for name in ("bracs", "tcga-brca")
        for magnification in (20, 40)
    }


def table(rows: Sequence[Row]) -> str:
    """The rows as CSV, `COLUMNS`; an empty field is what was not measured."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({key: f"{v:.6g}" if isinstance(v, float) else csv_cell(v) for key, v in asdict(row).items()} for row in rows)
    return out.getvalue()


def figures(rows: Sequence[Row], setting: Setting, machine: str) -> list[Figure]:
    """Time, and memory with arithmetic, against the size of the bag: Figures 7a and 7b.

    Args:
        rows: as :func:`profile` gives them.
        setting: what they were measured with.
        machine: what they were measured on, and how quiet it was.
    """
    markers = cohort_sizes()
    stops = [f"{row.label}: {row.stopped}" for row in rows if row.stopped]
    about = (
        f"{machine} Width {setting.in_dim}, {setting.threads} CPU thread{'s' * (setting.threads > 1)}, a fresh process for each "
        "point. Numbers at the ends of lines are those of the legend. In brackets: exponent in n of the left panel over the "
        "largest sizes; 1 is linear, 2 quadratic. "
        "What costs less than a millionth of the most is not shown. "
        f"Vertical lines: an average slide of {', '.join(f'{name} ({n:,})' for name, n in markers.items())}; TCGA-BRCA as "
        "printed in the LongMIL paper, BRACS by the middle of the axis of its histogram (Figure 1)."
        + (f" Stopped early: {'; '.join(stops)}." if stops else "")
    )
    memory = (
        " Memory is what a training step takes beyond the model, its gradients and optimiser state, and the bag. Arithmetic "
        "counts multiplications and additions of matrix products, convolutions, attention and scans."
    )
    return [
        _figure("efficiency-time", "Time of a step", {"train_seconds": "training step (s)", "predict_seconds": "prediction (s)"},
                about, rows, markers),
        _figure("efficiency-memory", "Memory and arithmetic of a step",
                {"peak_bytes": "memory of a training step (MiB)", "flops": "arithmetic of a prediction (GFLOP)"},
                about + memory, rows, markers),
    ]  # fmt: skip


def _figure(
    name: str, title: str, panels: Mapping[str, str], caption: str, rows: Sequence[Row], markers: Mapping[str, int]
) -> Figure:
    slopes = exponents(rows, next(iter(panels)))

    def draw() -> Drawing:
        from matplotlib import pyplot as plt

        methods = {row.aggregator: row.label for row in rows if row.train_seconds is not None}
        names = sorted(methods, key=plugins.place)  # families together
        drawing, axes = plt.subplots(1, 2, figsize=(PAGE, max(2.8, 0.6 + 0.125 * len(names))), sharex=True)
        for ax, (quantity, label) in zip(axes, panels.items(), strict=True):
            lines = {}
            for number, name in enumerate(names, 1):
                shown = [row for row in rows if row.aggregator == name and getattr(row, quantity)]  # zero has no logarithm
                values = [getattr(row, quantity) / UNITS.get(quantity, 1) for row in shown]
                text = f"{number} {methods[name]}" + (f" ({slopes[name]:.2f})" if name in slopes else "")
                look = style(name, *plugins.family_of(name))
                (line,) = ax.plot([row.n for row in shown], values, **look, label=text, markersize=3)
                if shown:
                    lines[str(number)] = line
            ax.set(xscale="log", yscale="log", xlabel="instances", ylabel=label)
            ax.set_ylim(bottom=max(ax.get_ylim()[0], ax.dataLim.y1 / SPAN))
            label_ends(ax, list(lines.values()), list(lines))
            for place, (marker, n) in enumerate(sorted(markers.items(), key=lambda item: item[1])):
                ax.axvline(n, color=OTHERS, linewidth=0.6, linestyle=":", zorder=0)
                at = (n, 0.01 if place % 2 else 0.99)
                ax.annotate(marker, at, xycoords=("data", "axes fraction"), rotation=90, fontsize=5.5, ha="right",
                            va="bottom" if place % 2 else "top", color=OTHERS)  # fmt: skip
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=6, handlelength=3)
        return drawing

    shown = ("aggregator", "label", "n", *panels, "stopped")
    numbers = [{**{key: getattr(row, key) for key in shown}, "exponent": slopes.get(row.aggregator)} for row in rows]
    numbers += [{"label": marker, "n": n} for marker, n in markers.items()]
    return Figure(name, title + " against the size of the bag", caption, numbers, draw)
