"""Feature files as they circulate, read as they are: CLAM (h5, or pt beside its patches file), TRIDENT (h5) and plain npz.

`inspect` looks at shapes, attributes, positions and a few rows; `read` takes the whole file. Both see a file through `_opened`,
whose arrays are read when they are indexed; `containers` has a module for each kind of file.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from milbench.datasets.files.containers import Array, BadFile, Stored, attributes, h5, npz, pt
from milbench.errors import MilbenchError

__all__ = ["STEPS", "BadFile", "Facts", "Format", "Layout", "contents", "inspect", "layout", "read"]

Format = Literal["h5", "pt", "npz"]

SAMPLED = 8  # rows of features that are looked at without reading a file
BLOCK = 2**23  # bytes of features that are hashed at a time
STEPS = (attributes.NUMBERS["step"], attributes.LARGEST)  # level-0 pixels between patches that make sense
WIDEST = 2**31  # level-0 pixels from the origin, in any direction: no slide is larger, and sums of positions stay exact
LOOK = 2000  # positions looked at where a file stores nearly every one in a chunk of its own, as TRIDENT does


@dataclass(frozen=True)
class Facts:
    """What is known of a feature file without reading its features.

    Args:
        n, d, dtype: instances, their width, and how they are stored.
        coords: whether there are positions.
        digest: hash of shape, dtype, and a few rows of features and positions; the same in every format and on every machine.
            It tells copies and what a file was called before :func:`contents` was: never whether a file changed.
        nonfinite: how many of the sampled rows hold NaN or infinite values.
        step: level-0 pixels between neighbours by the file's attributes or its patches file; None where they do not say.
        side: of a patch in level-0 pixels, likewise; it is not the step where patches overlap or leave gaps.
        extent: width and height of the slide in level-0 pixels, by the file's attributes.
        fits: whether positions may be (x, y), and whether they may be (y, x), by the slide's extent or by the patches file; None
            where neither is known.
        lattice: the most common distance of neighbours in a row or column of patches; None where there are no neighbours.
        aligned: share of patches with a neighbour at that distance.
        duplicates: patches at a position that an earlier patch has.
        says: `encoder`, `magnification` and `patch_size` by the file's attributes.
        squeezed: whether features have a leading axis of length one.
    """

    n: int
    d: int
    dtype: str
    coords: bool
    digest: str
    nonfinite: int = 0
    step: float | None = None
    side: float | None = None
    extent: tuple[float, float] | None = None
    fits: tuple[bool, bool] | None = None
    lattice: float | None = None
    aligned: float = 0.0
    duplicates: int = 0
    says: Mapping[str, str | float] = field(default_factory=dict)
    squeezed: bool = False


@dataclass(frozen=True)
class Layout:
    """Where feature files are.

    Args:
        folder: holds one file per slide.
        format: their suffix.
        patches: holds CLAM's patches files, or None.
    """

    folder: Path
    format: Format
    patches: Path | None = None

    def files(self) -> list[Path]:
        """The feature files, in the order of their names."""
        return _files(self.folder, self.format)

    def patches_of(self, file: Path) -> Path | None:
        """The patches file that belongs to a feature file."""
        names = (f"{file.stem}.h5", f"{file.stem}_patches.h5") if self.patches else ()
        return next((path for name in names if self.patches and os.path.lexists(path := self.patches / name)), None)


def _files(folder: Path, suffix: str) -> list[Path]:
    """Everything with the name of a feature file, also a folder or a pipe: reading it gives an error that names the slide."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(f".{suffix}") and not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise MilbenchError(f"folder {folder} cannot be read ({error.strerror})") from error
    return [folder / name for name in sorted(names)]  # texts, since paths take ten times as long to compare


def layout(folder: Path, patches: Path | None = None) -> Layout:
    """Find out what a folder of features is: CLAM's (`h5_files/` or `pt_files/` in it), or one file per slide.

    Args:
        folder: as the user gives it.
        patches: the folder of CLAM's patches files; None is `patches/` in or beside `folder`.

    Raises:
        MilbenchError: no such folder, or no feature files in it.
    """
    for given, what in ((folder, "features"), (patches, "patches")):
        if given is not None and not os.path.isdir(given):
            raise MilbenchError(f"folder of {what} {given} does not exist" + ("; it is a file" if os.path.exists(given) else ""))
    places: list[tuple[Path, Format]] = [
        (folder / "h5_files", "h5"), (folder / "pt_files", "pt"), (folder, "h5"), (folder, "pt"), (folder, "npz"),
    ]  # fmt: skip
    located = next(((place, suffix) for place, suffix in places if _files(place, suffix)), None)
    if located is None:
        deeper = sorted({path.parent for path in folder.glob("*/*") if path.suffix in (".h5", ".pt", ".npz")})
        hint = f"; there are some in {', '.join(map(str, deeper[:3]))}" if deeper else _others(folder)
        raise MilbenchError(f"{folder} holds no .h5, .pt or .npz files, nor do h5_files/ and pt_files/ in it{hint}")
    place, suffix = located
    if patches is None:
        root = place.parent if place.name in ("h5_files", "pt_files") else place
        patches = next((p for p in (root / "patches", root.parent / "patches") if p != place and _files(p, "h5")), None)
    return Layout(place, suffix, patches)


def _others(folder: Path) -> str:
    """What a folder without feature files holds, for the end of a sentence."""
    kinds = Counter(path.suffix for path in folder.iterdir() if not path.name.startswith(".") and path.suffix)
    return f"; it holds {', '.join(f'{count:,} {suffix}' for suffix, count in kinds.most_common(3))}" if kinds else ""


@contextmanager
def _opened(path: Path, patches: Path | None) -> Iterator[Stored]:
    with ExitStack() as stack:
        room = {".h5": h5, ".pt": pt, ".npz": npz}.get(path.suffix)
        if room is None:
            raise BadFile(path, "no-format", "is not an .h5, .pt or .npz file", "give a file of features")
        raw = room.opened(path, stack)
        _check_features(path, raw.features)
        if patches is not None and (raw.coords is None or _step(path, raw.says) is None):
            coords, says = h5.patches(patches, stack)
            n, listed = _shape(raw.features)[0], math.prod(coords.shape[:-1])
            if listed != n:
                raise BadFile(
                    path, "mismatch", f"has {n:,} patches, {patches} lists {listed:,}",
                    "they come from two extractions: let --patches name the files that these features were made from",
                )  # fmt: skip
            raw.order = None if raw.coords is None else _order(raw.coords, coords)
            raw.coords = coords if raw.coords is None else raw.coords
            raw.says = {**says, **raw.says}
        if raw.coords is not None:
            _check_coords(path, raw.coords, _shape(raw.features)[0])
        yield raw


def _check_features(path: Path, features: Array) -> None:
    shape, dtype = features.shape, features.dtype
    if len(shape) == 1 and shape[0] > 0 and dtype.kind == "f":
        raise BadFile(
            path,
            "slide-vector",
            f"holds one vector of {shape[0]} values for the whole slide",
            "give the folder of patch features",
        )
    if 0 in shape:
        raise BadFile(path, "empty", "holds no patches", "segment the slide again with other settings, or leave it out")
    if dtype.kind != "f":
        raise BadFile(path, "dtype", f"features are {_named(dtype)}, not floating point", "store them as float32 or float16")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
        raise BadFile(path, "shape", f"features are {shape}, not (n, d)", "store one row per patch")


def _check_coords(path: Path, coords: Array, n: int) -> None:
    shape = coords.shape[1:] if coords.ndim == 3 and coords.shape[0] == 1 else coords.shape
    if shape != (n, 2):
        raise BadFile(
            path, "mismatch", f"has {n:,} rows of features and coords of shape {shape}",
            "one (x, y) belongs to each patch: extract the slide again",
        )  # fmt: skip
    if coords.dtype.kind not in "iuf":
        raise BadFile(path, "coords", f"has coords that are {_named(coords.dtype)}, not numbers", "store level-0 pixels as int64")


def _named(dtype: np.dtype[Any]) -> str:
    """A dtype for a message; a record of many fields is long."""
    return "Python objects or text" if dtype.kind == "O" else str(dtype) if len(str(dtype)) <= 60 else "records"


def _within_a_slide(path: Path, xy: NDArray[Any]) -> None:
    with np.errstate(invalid="ignore"):
        good = (np.abs(xy.astype(np.float64)) <= WIDEST).all()  # false for NaN
    if not good:
        what = (
            "has positions that are NaN or infinite" if not np.isfinite(xy).all() else f"has positions beyond {WIDEST:,} pixels"
        )
        raise BadFile(path, "coords", what, "extract the slide again")


def _shape(features: Array) -> tuple[int, int]:
    """(n, d), without a leading axis of length one."""
    n, d = features.shape[-2:]
    return n, d


def _rows(array: Array, rows: Any) -> NDArray[Any]:
    return array[0, rows] if array.ndim == 3 else array[rows]


def _order(own: Array, listed: Array) -> tuple[bool, bool] | None:
    """Whether positions are those of a patches file as they stand, and with x and y exchanged; None where they are neither."""
    if own.shape != listed.shape or own.dtype.kind not in "iuf" or listed.dtype.kind not in "iuf":
        return None
    a, b = _rows(own, slice(LOOK)), _rows(listed, slice(LOOK))
    same, exchanged = np.array_equal(a, b), np.array_equal(a, b[..., ::-1])
    return (same, exchanged) if same or exchanged else None


def _float32(features: NDArray[Any]) -> NDArray[np.float32]:
    """A copy, even of float32: mapped files close. What float32 cannot hold is infinite, and found by whoever looks for that."""
    with np.errstate(over="ignore"):
        return features.astype(np.float32)


def _step(path: Path, says: Mapping[str, Any]) -> float | None:
    """Level-0 pixels between neighbouring patches by attributes of TRIDENT or CLAM; None where they do not say.

    TRIDENT gives its overlap in pixels of the patch. CLAM does not store the stride that patches were cut with; it is the size of
    the patch unless `--step_size` was given.
    """
    side, size, overlap = _side(says), says.get("patch_size"), says.get("overlap", 0)
    if "step" in says:
        step = float(says["step"])
    elif side is None:
        return None
    elif overlap and "patch_size_level0" in says:
        if not size:
            return None
        step = side * (1 - overlap / size)
    else:
        step = side
    if not STEPS[0] <= step <= STEPS[1]:
        known = ", ".join(f"{name} = {says[name]:g}" for name in attributes.NUMBERS if name in says)
        raise BadFile(path, "attribute", f"says that patches lie {step:g} px apart ({known})", "correct these attributes")
    return step


def _side(says: Mapping[str, Any]) -> float | None:
    """Level-0 pixels along a patch by attributes of TRIDENT or CLAM; None where they do not say."""
    size = says.get("patch_size")
    if "patch_size_level0" in says:
        return float(says["patch_size_level0"])
    if size and ("downsample" in says or not says.get("patch_level")):
        return float(size * float(says.get("downsample", 1)) * float(says.get("custom_downsample", 1)))
    return None


def _fits(xy: NDArray[Any], extent: tuple[float, float] | None) -> tuple[bool, bool] | None:
    """Whether all positions lie on the slide as they stand, and with x and y exchanged."""
    if extent is None:
        return None
    low, high = xy.min(axis=0), xy.max(axis=0)
    inside = [bool((low >= 0).all() and (high < edge).all()) for edge in (extent, extent[::-1])]
    return inside[0], inside[1]


def inspect(path: Path, patches: Path | None = None, *, thorough: bool = False) -> Facts:
    """Shape, dtype, positions and a few rows of a feature file.

    Args:
        path: the file.
        patches: CLAM's patches file that belongs to it, where positions or step are not in the file itself.
        thorough: look at every position, even where that takes long.

    Raises:
        BadFile: the file cannot be used.
    """
    with _opened(path, patches) as raw:
        n, d = _shape(raw.features)
        rows = np.unique(np.linspace(0, n - 1, SAMPLED).astype(int))  # h5py wants them ascending and distinct
        sampled = _rows(raw.features, rows)
        dtype = str(raw.features.dtype)
        digest = hashlib.sha256(f"{n}|{d}|{dtype}|".encode() + np.ascontiguousarray(sampled).tobytes())
        lattice, aligned, duplicates, fits = None, 0.0, 0, None
        size = (raw.says.get("level0_width"), raw.says.get("level0_height"))
        extent = (float(size[0]), float(size[1])) if size[0] is not None and size[1] is not None else None
        if raw.coords is not None:
            chunks = raw.coords.chunks
            look = n if thorough or not chunks or chunks[-2] >= 16 else min(n, LOOK)
            xy = _rows(raw.coords, slice(look))
            _within_a_slide(path, xy)
            digest.update(np.ascontiguousarray(_rows(raw.coords, rows), dtype=np.float64).tobytes())
            lattice, aligned, duplicates = _lattice(xy.astype(np.float64))
            fits = raw.order or _fits(xy, extent)
        if thorough:
            raw.verify()
        said = {
            name: value
            for name, key in (("encoder", "encoder"), ("magnification", "target_magnification"), ("patch_size", "patch_size"))
            if (value := raw.says.get(key)) is not None and (name == "encoder" or "patch_size_level0" in raw.says)
        }
        return Facts(
            n=n,
            d=d,
            dtype=dtype,
            coords=raw.coords is not None,
            digest=digest.hexdigest()[:16],
            nonfinite=int((~np.isfinite(_float32(sampled))).any(axis=1).sum()),
            step=_step(path, raw.says) if raw.coords is not None else None,
            side=_side(raw.says),
            extent=extent,
            fits=fits,
            lattice=lattice,
            aligned=round(aligned, 4),
            duplicates=duplicates,
            says=said,
            squeezed=raw.features.ndim == 3,
        )


def contents(path: Path, patches: Path | None = None) -> str:
    """Hash of every number in a feature file: shape, dtype, features and positions, row by row.

    The same in every format, chunking, compression and byte order, and on every machine. Whole positions are the same as
    integers of any width and as floats.

    Args:
        path, patches: as :func:`inspect` takes them.

    Raises:
        BadFile: the file cannot be used, or breaks off.
    """
    with _opened(path, patches) as raw:
        raw.verify()
        features, (n, d) = raw.features, _shape(raw.features)
        dtype = features.dtype.newbyteorder("<")
        chunk = features.chunks[-2] if features.chunks else 1  # no chunk is read twice
        rows = -(-max(1, BLOCK // (d * dtype.itemsize)) // chunk) * chunk
        digest = hashlib.sha256(f"{n}|{d}|{dtype.name}|".encode())
        for start in range(0, n, rows):
            digest.update(_bytes(_rows(features, slice(start, start + rows)), dtype))
        if raw.coords is not None:
            xy = _rows(raw.coords, slice(None))
            with np.errstate(invalid="ignore"):  # what has no place among integers is not whole
                whole = xy.astype("<i8")
            is_whole = np.array_equal(whole, xy)
            digest.update(b"|whole|" if is_whole else b"|positions|")
            digest.update(_bytes(whole, "<i8") if is_whole else _bytes(xy, "<f8"))
        return digest.hexdigest()[:32]


def _bytes(array: NDArray[Any], dtype: Any) -> memoryview:
    return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data


def read(path: Path, patches: Path | None = None) -> tuple[NDArray[np.float32], NDArray[Any] | None]:
    """Features (n, d) as float32, and positions (n, 2) in level-0 pixels or None.

    Raises:
        BadFile: the file cannot be used.
    """
    with _opened(path, patches) as raw:
        raw.verify()
        features = _float32(_rows(raw.features, slice(None)))
        if raw.coords is None:
            return features, None
        xy = np.array(_rows(raw.coords, slice(None)))
        _within_a_slide(path, xy)
        return features, xy


def _lattice(xy: NDArray[np.float64]) -> tuple[float | None, float, int]:
    """How patches lie. Contours may start anywhere, so distances are taken within rows and within columns only.

    Args:
        xy: (n, 2).

    Returns:
        The most common distance of neighbours, the share of patches that have a neighbour at it, and how many patches lie where
        another one does.
    """
    order = np.lexsort(xy.T)
    distinct = np.concatenate([[True], (np.diff(xy[order], axis=0) != 0).any(axis=1)])
    xy, duplicates = xy[order[distinct]], int((~distinct).sum())
    lines: Sequence[tuple[NDArray[Any], NDArray[np.float64]]] = [
        (order, np.where(np.diff(xy[order, across]) == 0, np.diff(xy[order, along]), np.inf))
        for along, across in ((0, 1), (1, 0))
        for order in [np.lexsort((xy[:, along], xy[:, across]))]
    ]
    gaps = np.concatenate([gap for _, gap in lines])
    rounded = gaps[np.isfinite(gaps)].round(3)
    values, counts = np.unique(rounded[rounded > 0], return_counts=True)
    if not len(values):
        return None, 0.0, duplicates
    step = float(values[counts.argmax()])
    near = np.zeros(len(xy), dtype=bool)
    for order, gap in lines:
        hit = np.abs(gap - step) <= min(1.0, 0.02 * step)  # sizes scaled between magnifications are rounded to pixels
        near[order[:-1][hit]] = near[order[1:][hit]] = True
    return step, float(near.mean()), duplicates
