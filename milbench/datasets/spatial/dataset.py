"""Generated slides with a known answer: what an aggregator can and cannot see, without a download.

A slide is irregular tissue whose patches have types; a rule over types and places decides the label
(:mod:`milbench.datasets.spatial.tasks`). An aggregator sees a vector for each patch: a handwritten digit of its type with noise,
or a prototype with noise, at any width. Nothing is stored: a slide is made when it is read, from its name alone.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from milbench.datasets.base import Dataset, Fold, Sample
from milbench.datasets.spatial.tasks import TASKS, A, B, C, Part, Slide
from milbench.datasets.spatial.tissue import BELL, Draw, Ints
from milbench.errors import MilbenchError, unknown

ENCODERS = ("digits", "gaussian64")  # examples; gaussian takes any width from 16 up
SPLIT = "generated"
CLASSES = ("negative", "positive")
UNIT = 1024  # features are whole numbers over this, so that they are the same everywhere
DIGIT_NOISE = UNIT // 10  # standard deviation beside pixels from 0 to UNIT
GAUSSIAN_NOISE = UNIT // 4
APART = 8  # standard deviations of the noise between two prototypes
KEPT = 1024  # slides that stay in memory: those of validation, and what an epoch shows between two looks at them


@dataclass(frozen=True)
class Scale:
    """How large slides are and how many there are.

    A suite shows each training slide once: there are so many that nothing can be learnt by heart.

    Args:
        low: fewest patches of a slide.
        doublings: sizes spread evenly over so many doublings of `low`, and inside each doubling.
        high: most patches.
        slides: how many for training, validation and test; half of each are positive.
    """

    low: int
    doublings: int
    high: int
    slides: tuple[int, int, int]

    def size(self, draw: Draw) -> int:
        """About how many patches a slide has."""
        low = self.low << draw.between(0, self.doublings - 1)
        return min(draw.between(low, 2 * low), self.high)


DIGITS = "f6d9e39f37dc45d3"  # hash of all images and types, of which a fingerprint only sees those of a few slides
SCALES = {"": Scale(200, 1, 400, (7_200, 100, 200)), "-full": Scale(200, 7, 20_000, (4_800, 100, 400))}
NAMES = {f"spatial-{task}{suffix}": (task, suffix) for suffix in SCALES for task in TASKS}


def missing() -> str | None:
    """Why digits cannot be read here, or None when they can; other encoders need nothing."""
    return None if find_spec("sklearn") else "scikit-learn is not installed: pip install 'milbench[data]'"


def label(name: str) -> str:
    """How tables print the dataset."""
    task, suffix = NAMES[name]
    return TASKS[task].label + (" (full size)" if suffix else "")


def make(name: str, id: str) -> Slide:
    """The slide `id`, `<part>-<number>`, of a dataset, with its truth; odd numbers are positive."""
    task, suffix = NAMES[name]
    part, number = _parse(id)
    size = SCALES[suffix].size(Draw(name, id, "size"))
    return TASKS[task].make(Draw(name, id, "tissue"), size, part, positive=number % 2 == 1)


def features(encoder: str, slide: Slide, part: Part, draw: Draw) -> NDArray[np.float32]:
    """A vector for each patch, (n, d).

    Args:
        encoder: "digits", d = 64, or "gaussian<d>".
        slide: gives the types.
        part: no image of a digit is in two parts.
        draw: of images and noise.

    Raises:
        MilbenchError: no such encoder.
    """
    width = _width(encoder)
    n = len(slide.types)
    if encoder == "digits":
        pool, count = images(part)
        clean, noise = pool[slide.types, draw.below(count[slide.types], n)], DIGIT_NOISE
    else:
        clean, noise = prototypes(width)[slide.types], GAUSSIAN_NOISE
    bell = draw.bell(n * width).reshape(n, width) * noise // BELL
    return (clean + bell).astype(np.float32) / np.float32(UNIT)


def _with_features(name: str, encoder: str, id: str) -> tuple[Slide, NDArray[np.float32]]:
    slide = make(name, id)
    return slide, features(encoder, slide, _parse(id)[0], Draw(name, id, encoder))


def _width(encoder: str) -> int:
    if encoder == "digits":
        if reason := missing():
            raise MilbenchError(reason)
        return 64
    match = re.fullmatch(r"gaussian(\d{2,5})", encoder)
    if not match or int(match[1]) < 16:
        raise unknown("encoder of a spatial dataset", encoder, [*ENCODERS, "gaussian<width, 16 or more>"])
    return int(match[1])


@cache
def images(part: Part) -> tuple[NDArray[np.int32], Ints]:
    """Images of the part by type, (10, most, 64) in `UNIT`s, and how many there are of each: every fifth for test, the one before
    for validation."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    if hashlib.sha256(digits.data.astype("<f8").tobytes() + digits.target.astype("<i8").tobytes()).hexdigest()[:16] != DIGITS:
        raise MilbenchError("scikit-learn's digits are not the ones that spatial datasets are made of; install another version")
    fifth = np.arange(len(digits.target)) % 5
    chosen = {"train": fifth < 3, "val": fifth == 3, "test": fifth == 4}[part]
    by_type = [digits.data[chosen & (digits.target == kind)] for kind in range(10)]
    count = np.array([len(images) for images in by_type])
    pool = np.zeros((10, count.max(), 64), dtype=np.int32)
    for kind, images in enumerate(by_type):
        pool[kind, : len(images)] = images * (UNIT // 16)
    return pool, count


@cache
def prototypes(width: int) -> NDArray[np.int32]:
    """(10, width): rows of a Hadamard matrix, repeated to the width and scaled, so that all are equally far from each other."""
    common = np.arange(10)[:, None] & (np.arange(width) % 16)
    sign = 1 - 2 * (np.bitwise_count(common) % 2).astype(np.int32)
    return sign * round(APART * GAUSSIAN_NOISE / math.sqrt(2 * width))


def _parse(id: str) -> tuple[Part, int]:
    part, _, number = id.partition("-")
    for known in get_args(Part):
        if part == known:
            return known, int(number)
    raise unknown("part of a spatial dataset", part, get_args(Part))


def _ids(scale: Scale) -> dict[Part, tuple[str, ...]]:
    parts = zip(get_args(Part), scale.slides, strict=True)
    return {part: tuple(f"{part}-{i:04d}" for i in range(count)) for part, count in parts}


@cache
def load(name: str, encoder: str) -> Dataset:
    """One of `NAMES` with the split "generated": one fold, whose parts share neither seeds nor images.

    Raises:
        MilbenchError: no such encoder, or scikit-learn is missing.
    """
    import torch  # takes seconds, which a list of what there is does not have

    from milbench.bags import Bag

    width = _width(encoder)
    task, suffix = NAMES[name]
    ids = _ids(SCALES[suffix])

    made = lru_cache(maxsize=KEPT if not suffix else 0)(partial(_with_features, name, encoder))

    def read(id: str) -> Bag:
        slide, x = made(id)
        features, coords = torch.tensor(x), torch.tensor(slide.tissue.coords)  # copies, so that callers may write into a bag
        return Bag(features, coords, slide.tissue.step, slide_id=id, case_id=id, source=f"{name}, generated")

    digest = hashlib.sha256()
    for id in (some[number] for some in ids.values() for number in (0, 1)):
        slide, x = _with_features(name, encoder, id)
        for array in (slide.tissue.coords, slide.types, x):
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    asked = (TASKS[task].__doc__ or "").splitlines()[0]
    return Dataset(
        name=name,
        label=label(name),
        task="subtyping",
        unit="slide",
        classes=CLASSES,
        samples=tuple(Sample(id, id, label=_parse(id)[1] % 2) for some in ids.values() for id in some),
        read=read,
        in_dim=width,
        has_coords=True,
        encoder=encoder,
        fingerprint="sha256:" + digest.hexdigest()[:16],
        splits={SPLIT: lambda: [Fold(ids["train"], ids["val"], ids["test"])]},
        notes=(f"{asked} Generated: " + ", ".join(f"{len(some):,} for {part}" for part, some in ids.items()),),
        sizes=partial(sizes, name),
    )


def sizes(name: str) -> Mapping[str, int]:
    """Slide -> number of patches, without making the slides."""
    task, suffix = NAMES[name]
    scale, kind = SCALES[suffix], TASKS[task]
    return {id: kind.size(scale.size(Draw(name, id, "size")), part) for part, some in _ids(scale).items() for id in some}


def known(name: str) -> dict[str, Any]:
    """What is known of a dataset before any model is trained, for the report.

    Returns:
        chance, bayes: AUC of guessing, and the best possible AUC where the types of patches are known.
        oracle: AUC of the rule on the test slides.
        examples: the most compact test slide of either class as a map, one line of text for each row of patches.
    """
    from milbench import stats

    task = TASKS[NAMES[name][0]]
    slides = [make(name, id) for id in _ids(SCALES[NAMES[name][1]])["test"]]
    positive = np.arange(len(slides)) % 2 == 1
    examples = [min(slides[first::2], key=lambda slide: int(np.ptp(slide.tissue.coords, axis=0).max())) for first in (0, 1)]
    return {
        "chance": 0.5,
        "bayes": 1.0,
        "oracle": float(stats.auc(positive, np.array([task.rule(slide) for slide in slides]))),
        "examples": [drawn(slide) for slide in examples],
    }


def drawn(slide: Slide) -> list[str]:
    """The slide as text: A, B and C are the key types, o is any other, a dot is glass."""
    coords = slide.tissue.coords
    column, row = ((coords - coords.min(axis=0)) * 2 // slide.tissue.step + 1).T // 2  # to the nearest cell, as Bag.grid does
    sheet = np.full((row.max() + 1, column.max() + 1), ".")
    for place, kind in zip(zip(row, column, strict=True), slide.types.tolist(), strict=True):
        sheet[place] = {A: "A", B: "B", C: "C"}.get(kind, "o")
    return ["".join(line) for line in sheet]
