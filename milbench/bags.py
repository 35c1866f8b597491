"""A bag: the patches of one slide (or one case), as vectors with 2-D positions."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from milbench.errors import MilbenchError


@dataclass(frozen=True, eq=False)
class Bag:
    """What an aggregator sees of one slide or case.

    Args:
        features: (n, d), one row per patch.
        coords: (n, 2), level-0 pixels (x, y) of each patch's top-left corner, or None when unknown.
        step: level-0 pixels between neighbouring patches; needed with `coords`.
        slide_id: the slide, or the case when the bag holds several slides.
        case_id: the patient.
        slide_index: (n,), which slide of the case each patch came from; None for one slide.
        source: the file the features came from, for error messages.

    Raises:
        MilbenchError: empty bag, or arrays whose lengths do not agree, naming the slide and the file.

    >>> features = torch.zeros(3, 8)
    >>> coords = torch.tensor([[1000, 500], [1224, 500], [1448, 948]])
    >>> bag = Bag(features, coords, step=224, slide_id="S-1")
    >>> len(bag), bag.grid().tolist()
    (3, [[0, 0], [1, 0], [2, 2]])
    """

    features: Tensor
    coords: Tensor | None = None
    step: float | None = None
    slide_id: str = "?"
    case_id: str = "?"
    slide_index: Tensor | None = None
    source: str = "memory"

    @classmethod
    def from_arrays(
        cls,
        features: Any,
        coords: Any = None,
        *,
        step: float | None = None,
        slide_id: str = "?",
        case_id: str | None = None,
        slide_index: Any = None,
    ) -> "Bag":
        """A bag from NumPy arrays, torch tensors or lists, such as a model takes outside of any dataset.

        Args:
            features: (n, d) numbers, one row per patch; become float32.
            coords: (n, 2), level-0 pixels (x, y) of each patch's top-left corner, or None when unknown.
            step: level-0 pixels between neighbouring patches; needed with `coords`.
            slide_id: the slide, for messages.
            case_id: the patient; the slide unless given.
            slide_index: (n,) whole numbers from 0 up, which slide each patch came from; None for one slide.

        Raises:
            MilbenchError: an array of another shape, or one that holds something else than numbers, NaN or infinite values.

        Examples:
            >>> bag = Bag.from_arrays([[0.1, 0.2], [0.3, 0.4]], coords=[[0, 0], [224, 0]], step=224)
            >>> bag.features.shape, bag.grid().tolist()
            (torch.Size([2, 2]), [[0, 0], [1, 0]])
            >>> Bag.from_arrays([0.1, 0.2])
            Traceback (most recent call last):
            ...
            milbench.errors.MilbenchError: slide ? (memory): features must be (n, d) with n, d >= 1, got (2,)
        """
        where = f"slide {slide_id} (memory)"
        bag = cls(
            _numbers(features, f"{where}: features must be (n, d)").to(torch.float32),
            None if coords is None else _numbers(coords, f"{where}: coords must be (n, 2)"),
            step,
            slide_id,
            slide_id if case_id is None else case_id,
            None if slide_index is None else _numbers(slide_index, f"{where}: slide_index must be (n,)").to(torch.int64),
        )
        if bag.coords is not None and not torch.isfinite(bag.coords).all():
            bag._refuse("coords hold NaN or infinite values")
        if bag.slide_index is not None and int(bag.slide_index.min()) < 0:
            bag._refuse("slide_index must be whole numbers from 0 up")
        return bag.check(bag.features.shape[1])

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or 0 in self.features.shape:
            self._refuse(f"features must be (n, d) with n, d >= 1, got {tuple(self.features.shape)}")
        n = len(self.features)
        if self.coords is not None and self.coords.shape != (n, 2):
            self._refuse(f"coords must be ({n}, 2) like its features, got {tuple(self.coords.shape)}")
        if self.coords is not None and not (self.step and self.step > 0):
            self._refuse(f"coords need the step between neighbouring patches in level-0 pixels, got {self.step}")
        if self.slide_index is not None and self.slide_index.shape != (n,):
            self._refuse(f"slide_index must be ({n},), got {tuple(self.slide_index.shape)}")

    def _refuse(self, what: str) -> None:
        raise MilbenchError(f"slide {self.slide_id} ({self.source}): {what}")

    def check(self, in_dim: int) -> "Bag":
        """Refuse a wrong width or a NaN; returns the bag. Costs one pass over the features, so it is done once per read.

        Raises:
            MilbenchError: naming the slide and the file.
        """
        if self.features.shape[1] != in_dim:
            self._refuse(f"features are {self.features.shape[1]} wide, the dataset's are {in_dim}")
        bad = (~torch.isfinite(self.features)).any(dim=1)  # (n,)
        if bad.any():
            self._refuse(f"{int(bad.sum())} of {len(bad)} patches hold NaN or infinite values; extract them again")
        return self

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: str | torch.device) -> "Bag":
        """The same bag with its tensors on `device`."""
        moved = {name: t.to(device) for name in ("features", "coords", "slide_index") if (t := getattr(self, name)) is not None}
        return replace(self, **moved)

    def with_features(self, features: Tensor) -> "Bag":
        """The same patches with other vectors (n, any width)."""
        return replace(self, features=features)

    def grid(self, gap: int = 64) -> Tensor:
        """Integer (column, row) of each patch: floor((coords - min) / step + 0.5).

        Patches of differently offset tissue contours may share a cell; they stay separate tokens.
        Slides of one case stand side by side, at least `gap` empty columns apart (choose it wider than any window), each
        starting on an even column so that 2x2 cells never cross slides. Which comes first follows from what the slides hold, so
        that neither their numbers nor the order of a table can change a prediction.

        Returns:
            (n, 2) int64, on the device of the coordinates.
        """
        if self.coords is None or self.step is None:
            raise MilbenchError(f"slide {self.slide_id} ({self.source}): has no coordinates, so it has no grid")
        xy = self.coords.to(torch.float64)
        slide = (
            self.slide_index.to(torch.int64)
            if self.slide_index is not None
            else torch.zeros(len(xy), dtype=torch.int64, device=xy.device)
        )
        slides = int(slide.max()) + 1
        at = slide[:, None].expand(-1, 2)  # (n, 2)
        low = xy.new_full((slides, 2), torch.inf).scatter_reduce(0, at, xy, "amin")
        cell = torch.floor((xy - low[slide]) / self.step + 0.5).to(torch.int64)  # (n, 2)
        width = cell.new_zeros(slides).scatter_reduce(0, slide, cell[:, 0] + 1, "amax")
        stride = width + gap
        stride += stride % 2
        order = self._slide_order(slide, cell, slides)
        left = torch.empty_like(stride)  # (slides,), the first column of each slide
        left[order] = stride[order].cumsum(0) - stride[order]
        return torch.stack([cell[:, 0] + left[slide], cell[:, 1]], dim=1)

    def _slide_order(self, slide: Tensor, cell: Tensor, slides: int) -> Tensor:
        """The slides (slides,) from left to right: by number of patches, then by their cells, then by their features."""
        if slides == 1:
            return torch.zeros_like(slide[:1])

        def digest(rows: Tensor) -> list[int]:
            key = row_hash(rows, torch.Generator().manual_seed(0))  # (n,)
            return key.new_zeros(slides).index_add(0, slide, key).tolist()

        keys: list[tuple[int, ...]] = list(zip(slide.bincount(minlength=slides).tolist(), digest(cell), strict=True))
        if len(set(keys)) < slides:
            keys = [(*key, features) for key, features in zip(keys, digest(self.features), strict=True)]
        return torch.tensor(sorted(range(slides), key=keys.__getitem__), device=slide.device)


def row_hash(x: Tensor, generator: torch.Generator) -> Tensor:
    """A number (n,) int64 for each row of x (n, k) that follows from the bits of the row alone, wherever it is stored.

    A random linear form modulo 2^64, then two rounds of mixing. It is exact, so it cannot depend on the order of a sum.

    Args:
        x: of any type.
        generator: of the form, on the CPU.
    """
    words = F.pad(x.detach(), (0, -x.shape[1] % (8 // x.element_size()))).contiguous().view(torch.int64)  # (n, words)
    odd = (torch.randint(-(2**62), 2**62, (words.shape[1] + 3,), generator=generator) * 2 + 1).to(x.device)
    key = (words * odd[3:]).sum(dim=1) + odd[0]
    for factor in odd[1:3]:
        key = (key ^ (key >> 32 & 0xFFFFFFFF)) * factor
    return key


def _numbers(values: Any, wanted: str) -> Tensor:
    """The values as a tensor of real numbers.

    Raises:
        MilbenchError: they are none; `wanted` says where they are and what they should be.
    """
    try:
        tensor = values.detach() if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MilbenchError(f"{wanted} numbers, got {type(values).__name__} that is no array: {error}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise MilbenchError(f"{wanted} real numbers, got {tensor.dtype}")
    return tensor
