"""The shape of a dataset: samples, folds, and a function that reads one bag."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from milbench.errors import unknown

if TYPE_CHECKING:
    from milbench.bags import Bag

TaskName = Literal["subtyping", "survival"]


@dataclass(frozen=True)
class Sample:
    """One thing to predict: a slide, or a case with all its slides.

    Args:
        id: the slide, or the case where cases are predicted.
        case_id: the patient; folds are disjoint in it.
        label: class index (subtyping).
        time: follow-up (survival), any unit that is the same for all.
        event: True when the event was seen, False when censored (survival).
    """

    id: str
    case_id: str
    label: int | None = None
    time: float | None = None
    event: bool | None = None

    @property
    def stratum(self) -> int:
        """What a split or a bootstrap keeps in proportion: the class, or whether the event was seen."""
        return int(self.event or 0) if self.label is None else self.label


class Fold(NamedTuple):
    """Sample ids of one fold. `val` is empty where the split has no validation part."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A dataset with one encoder's features.

    Args:
        name, label: for commands and for tables.
        task: "subtyping" or "survival".
        unit: what a sample is, "slide" or "case".
        classes: names of the classes, in the order of the labels; empty for survival.
        samples: everything that can be predicted.
        read: id -> Bag, called once per use.
        in_dim: width d of the features.
        has_coords: whether bags have positions.
        encoder, magnification, patch_size: where the features came from; None where it does not apply.
        fingerprint: hash of everything that the features and labels consist of.
        splits: name -> function that gives the folds.
        notes: what a reader of a table must know.
        sizes: gives id -> number of instances, without reading features; None where that is unknown.
        sides: id -> level-0 pixels along a patch, where files say it; it is not the step where patches overlap or leave gaps.
        former_fingerprint: what results of schema 1 call the dataset; None where it is `fingerprint`. Of one's own features it
            hashes shapes, dtypes, steps, labels, and 8 rows of each file. Where today's files give the one that a result has,
            labels, sizes and those rows are what they were, so other features, slides or positions are all but excluded; a
            change of other rows is not.
    """

    name: str
    label: str
    task: TaskName
    unit: Literal["slide", "case"]
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    read: Callable[[str], Bag]
    in_dim: int
    has_coords: bool
    encoder: str
    fingerprint: str
    splits: Mapping[str, Callable[[], Sequence[Fold]]]
    magnification: int | None = None
    patch_size: int | None = None
    notes: tuple[str, ...] = ()
    sizes: Callable[[], Mapping[str, int]] | None = None
    sides: Mapping[str, float] = field(default_factory=dict)
    former_fingerprint: str | None = None
    _folds: dict[str, tuple[Fold, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _prints: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def folds(self, split: str) -> tuple[Fold, ...]:
        """The folds of the split `split`, computed once.

        Raises:
            MilbenchError: the dataset has no such split.
        """
        if split not in self.splits:
            raise unknown(f"split of dataset {self.name}", split, self.splits)
        if split not in self._folds:
            self._folds[split] = tuple(self.splits[split]())
        return self._folds[split]

    def split_fingerprint(self, split: str) -> str:
        """Hash of who is in which part of which fold, computed once."""
        if split not in self._prints:
            self._prints[split] = "sha256:" + hashlib.sha256(json.dumps(self.folds(split)).encode()).hexdigest()[:16]
        return self._prints[split]

    def sample(self, id: str) -> Sample:
        """The sample with that id."""
        return self._by_id[id]

    @cached_property
    def _by_id(self) -> dict[str, Sample]:
        return {s.id: s for s in self.samples}
