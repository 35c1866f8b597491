"""`milbench profile data`: reading bags from the packed store beside opening each file, in one process on one machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from milbench import datasets
from milbench.bags import Bag
from milbench.config import Settings
from milbench.datasets.packed import Pack, packed
from milbench.errors import MilbenchError
from milbench.profiling import measure

PATCHES, WIDTH = 8000, 1024  # of a generated slide, on average; as wide as ResNet-50's and UNI's features
PAGE = 1024  # float32 values in a page of memory

# How feature files come: in chunks of one patch as TRIDENT writes them, of a batch as CLAM does, and in one piece, which is the
# fastest to read and rare. Float16 must be widened whenever it is read, wherever it is read from.
LAYOUTS: dict[str, dict[str, Any]] = {
    "float32, chunks of 1": {"dtype": "float32", "chunks": (1, WIDTH)},
    "float16, chunks of 1": {"dtype": "float16", "chunks": (1, WIDTH)},
    "float32, chunks of 32": {"dtype": "float32", "chunks": (32, WIDTH)},
    "float16, chunks of 32": {"dtype": "float16", "chunks": (32, WIDTH)},
    "float32, contiguous": {"dtype": "float32"},
    "float16, contiguous": {"dtype": "float16"},
}


@dataclass
class Row:
    """Reading one dataset in both ways.

    Args:
        what: which files.
        bags, bytes: how many, and how large their features are in the pack.
        direct_seconds, packed_seconds: median of an epoch that reads every bag once.
        ratio: direct over packed.
        build_seconds: writing the pack.
        direct_mib, packed_mib: growth of resident memory during an epoch; None where the system has no such count.
    """

    what: str
    bags: int
    bytes: int
    direct_seconds: float
    packed_seconds: float
    ratio: float | None
    build_seconds: float
    direct_mib: float | None
    packed_mib: float | None


def compare(what: str, pack: Pack, epochs: int) -> Row:
    """Write the pack if need be, then read all bags `epochs` times in each way, alternating, after one epoch that warms up."""
    started = time.perf_counter()
    pack.build()
    built = time.perf_counter() - started
    ways = {"direct": partial(read_all, pack.direct, list(pack.sizes)), "packed": partial(read_all, pack, list(pack.sizes))}
    memory = {name: measure.extra_bytes(epoch) for name, epoch in ways.items()}  # and the epoch that warms up
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(epochs):
        for name, epoch in ways.items():
            started = time.perf_counter()
            epoch()
            taken[name].append(time.perf_counter() - started)
    direct, packed = (float(np.median(taken[name])) for name in ("direct", "packed"))
    mib = {name: None if grown is None else grown / 2**20 for name, grown in memory.items()}
    size = sum(pack.sizes.values()) * pack.in_dim * getattr(torch, pack.dtype).itemsize
    return Row(what, len(pack.sizes), size, direct, packed, direct / packed, built, mib["direct"], mib["packed"])


def read_all(read: Callable[[str], Bag], ids: Sequence[str]) -> None:
    """Read every bag; it counts as read when each page of its features was touched."""
    for id in ids:
        read(id).features.view(-1)[::PAGE].sum()


def dataset(
    name: str, encoder: str, magnification: int | None, patch_size: int | None, *, epochs: int, settings: Settings | None = None
) -> list[Row]:
    """Measure a dataset of the user.

    Raises:
        MilbenchError: no such dataset, or it is read without a pack.
    """
    loaded = datasets.load(name, encoder, magnification, patch_size, settings=settings)
    if not isinstance(loaded.read, Pack):
        raise MilbenchError(f"dataset {name} has no packed store: it comes without feature files, or MILBENCH_NO_PACK is set")
    return [compare(f"{name} {encoder}", loaded.read, epochs)]


def synthetic(count: int, *, epochs: int, patches: int = PATCHES) -> list[Row]:
    """Measure on `count` generated h5 files with about `patches` patches each, once for each layout; they are removed again."""
    rows = []
    for what, layout in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            sizes = write_files(Path(folder), count, patches, layout)
            read, dtype = partial(read_file, Path(folder)), str(layout["dtype"])
            made = packed(read, sizes, in_dim=WIDTH, dtype=dtype, fingerprint="1", name="synthetic", folder=Path(folder) / "pack")
            assert isinstance(made, Pack)
            rows.append(compare(what, made, epochs))
    return rows


def write_files(folder: Path, count: int, patches: int, layout: dict[str, Any]) -> dict[str, int]:
    """Files ID.h5 with features and coords; returns ID -> number of patches, between half and one and a half of `patches`."""
    rng = np.random.default_rng(0)
    sizes = {f"slide-{i:04d}": int(patches * (0.5 + rng.random())) for i in range(count)}
    for id, n in sizes.items():
        with h5py.File(folder / f"{id}.h5", "w") as file:
            file.create_dataset("features", data=rng.standard_normal((n, WIDTH), dtype=np.float32), **layout)
            file.create_dataset("coords", data=rng.integers(0, 100_000, (n, 2)))
    return sizes


def read_file(folder: Path, id: str) -> Bag:
    """The bag in a file that :func:`write_files` wrote."""
    path = folder / f"{id}.h5"
    with h5py.File(path) as file:
        features = torch.from_numpy(file["features"][:]).float()
        return Bag(features, torch.from_numpy(file["coords"][:]), 512.0, slide_id=id, case_id=id, source=str(path))
