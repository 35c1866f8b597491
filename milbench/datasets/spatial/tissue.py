"""Irregular tissue from integers only: the same seed gives the same slide on every machine and with every library version.

NumPy promises the words of a bit generator for all versions, but not the numbers that its distributions make of them, and C
libraries differ in the last bit of a sine. So everything here comes from raw words by integer arithmetic.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

STEP = 256  # level-0 pixels between neighbouring patches
AXIS = ((1, 0), (0, 1), (-1, 0), (0, -1))
AROUND = (*AXIS, (1, 1), (1, -1), (-1, 1), (-1, -1))
GAP = 8  # empty columns between sections, unless a task says otherwise
_FILLED = 45  # percent of a section's bounding box that is tissue


class Draw:
    """Random integers that depend on names, such as ("adjacency", "train", 7), and on nothing else.

    Args:
        axes: what the numbers are for.
    """

    def __init__(self, *axes: object) -> None:
        digest = hashlib.sha256("|".join(map(str, axes)).encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest[:16]))

    def words(self, n: int) -> NDArray[np.uint64]:
        """(n,) raw words of 64 bits."""
        return self._bits.random_raw(n)

    def below(self, high: Ints | int, n: int) -> Ints:
        """(n,) integers from 0 to high - 1; `high` < 2^31, one for all or one for each."""
        return ((self.words(n) >> np.uint64(32)) * np.asarray(high, np.uint64) >> np.uint64(32)).astype(np.int64)

    def between(self, low: int, high: int) -> int:
        """One integer from low to high, both possible."""
        return low + int(self.below(high - low + 1, 1)[0])

    def shuffled(self, values: Ints) -> Ints:
        """The values (or rows) in random order."""
        return values[np.argsort(self.words(len(values)), kind="stable")]

    def bell(self, n: int) -> NDArray[np.int32]:
        """(n,) sums of four uniform 16-bit numbers around 0: close to a normal distribution, standard deviation `BELL`."""
        words = self.words(n)
        pairs = (words & np.uint64(0x0000FFFF0000FFFF)) + (words >> np.uint64(16) & np.uint64(0x0000FFFF0000FFFF))  # two sums
        return ((pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))).astype(np.int32) - np.int32(2 * 65535)


BELL = 37837  # sqrt(4 (2^32 - 1) / 12)


@dataclass(frozen=True)
class Tissue:
    """Where the patches of a slide are, section by section and row by row, as tools that cut slides write them.

    Args:
        coords: (n, 2) level-0 pixels (x, y); each section starts at a pixel of its own, so sections share no grid.
        section: (n,) number of the section.
        step: level-0 pixels between neighbours.
    """

    coords: Ints
    section: Ints
    step: int = STEP

    def __len__(self) -> int:
        return len(self.coords)

    def neighbours(self, offsets: tuple[tuple[int, int], ...] = AROUND) -> Ints:
        """Which patch lies so many (columns, rows) from each, in its own section: (n, len(offsets)), -1 where there is none."""

        def key(coords: Ints, section: Ints) -> Ints:
            return (section << 50) + (coords[..., 1] << 25) + coords[..., 0]

        keys = key(self.coords, self.section)  # (n,)
        order = np.argsort(keys, kind="stable")
        wanted = key(self.coords[:, None] + self.step * np.array(offsets), self.section[:, None])  # (n, k)
        at = np.searchsorted(keys[order], wanted).clip(max=len(keys) - 1)
        return np.where(keys[order][at] == wanted, order[at], -1)

    def at_edge(self) -> NDArray[np.bool_]:
        """(n,) whether one of the four sides is glass, that of a hole included."""
        return np.any(self.neighbours(AXIS) < 0, axis=1)

    def squared(self, one: Ints | int, other: Ints | int | slice = slice(None)) -> Ints:
        """Squared distances between patches in level-0 pixels; indices broadcast."""
        between = self.coords[one] - self.coords[other]
        return (between * between).sum(axis=-1)

    def refined(self) -> tuple[Tissue, Ints]:
        """The same tissue at twice the magnification: four patches for each, half as far apart.

        Returns:
            The tissue, and for each of its patches the one it is a quarter of, (4 n,).
        """
        half = self.step // 2
        inside = half * np.array([(0, 0), (1, 0), (0, 1), (1, 1)])
        coords = (self.coords[:, None] + inside).reshape(-1, 2)
        parent = np.repeat(np.arange(len(self)), 4)
        order = np.lexsort((coords[:, 0], coords[:, 1], self.section[parent]))
        return Tissue(coords[order], self.section[parent[order]], half), parent[order]


def grow(draw: Draw, n: int, sections: int | None = None, gap: int = GAP) -> Tissue:
    """Sections of blobs with ragged edges and holes, `n` patches in all, side by side on the slide.

    Args:
        draw: where the randomness comes from.
        n: patches.
        sections: how many; None is one to three.
        gap: empty columns between them.
    """
    count = sections or min(draw.between(1, 3), max(1, n // 60))
    share = 2 + draw.below(3, count)
    sizes = n * share // share.sum()
    sizes[0] += n - sizes.sum()
    corner = STEP * draw.below(40, 2) + draw.below(STEP, 2)  # of the slide's tissue
    coords = []
    for size in sizes.tolist():
        mask = _blob(draw, size)
        row, column = np.nonzero(mask)  # row by row
        shift = draw.below(STEP, 2)
        shift[1] += STEP * draw.between(0, len(mask) // 3)
        coords.append(corner + shift + STEP * np.stack([column, row], axis=1))
        corner[0] += STEP * (mask.shape[1] + gap)
    return Tissue(np.concatenate(coords), np.repeat(np.arange(count), sizes))


def _blob(draw: Draw, size: int) -> NDArray[np.bool_]:
    """(rows, columns), True at `size` cells: the highest of smooth noise, made rougher by fine noise."""
    area = -(-size * 100 // _FILLED)
    width = math.isqrt(area * draw.between(7, 14) // 10) + 1
    shape = (-(-area // width), width)
    if draw.between(0, 1):
        shape = shape[::-1]  # rows and columns are alike, so orientation cannot be read from the outline
    noise = draw.below(1 << 16, 2 * shape[0] * shape[1]).reshape(2, *shape)
    coarse, fine = max(1, min(shape) // 5), max(1, min(shape) // 16)
    height = _rank(_blur(noise[0], coarse)) + _rank(_blur(noise[1], fine))
    mask = np.zeros(shape[0] * shape[1], dtype=bool)
    mask[np.argsort(height, axis=None, kind="stable")[-size:]] = True
    return mask.reshape(shape)


def _blur(field: Ints, radius: int) -> Ints:
    """Sums over squares; beyond the border is nothing, so borders are low and blobs stay inside."""
    window = 2 * radius + 1
    for _ in range(2):  # down, and turned over down again
        padded = np.zeros((len(field) + window, field.shape[1]), dtype=np.int64)
        padded[radius + 1 : radius + 1 + len(field)] = field
        total = padded.cumsum(axis=0)
        field = (total[window:] - total[:-window]).T
    return field


def _rank(field: Ints) -> Ints:
    """The place of each cell in ascending order."""
    rank = np.empty(field.size, dtype=np.int64)
    rank[np.argsort(field, axis=None, kind="stable")] = np.arange(field.size)
    return rank.reshape(field.shape)
