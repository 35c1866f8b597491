"""`milbench data add`: what the user adds, joined with what the manifest of the dataset says already."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from milbench.config import Settings
from milbench.datasets import classic
from milbench.datasets.cohorts import COHORTS
from milbench.datasets.files import formats, split_files
from milbench.datasets.files.classes import asked as asked_classes
from milbench.datasets.files.classes import usual as usual_classes
from milbench.datasets.files.columns import roles as find_roles
from milbench.datasets.files.ids import text
from milbench.datasets.files.labels import Options, Rows
from milbench.datasets.files.labels import read as read_labels
from milbench.datasets.files.manifest import Labels, Manifest, Origin, load, spelled, stored
from milbench.delimited import Delimited
from milbench.errors import MilbenchError, from_validation, unknown


def joined(
    name: str, *, task: str | None = None, unit: str | None = None, label: str | None = None, published: str | None = None,
    labels: Path | None = None, slides: Path | None = None, header: bool = True, encoding: str | None = None,
    columns: Mapping[str, str] | None = None, classes: Mapping[str, Sequence[str]] | None = None, skip_incomplete: bool = False,
    splits: Mapping[str, Path] | None = None, drop: str | None = None, folds: int | None = None, encoder: str | None = None,
    magnification: int | None = None, patch_size: int | None = None, features: Path | None = None, patches: Path | None = None,
    step: float | None = None, swap_xy: bool = False, exclude: Sequence[str] = (), replace: bool = False,
    home: Path | None = None,
) -> Manifest:  # fmt: skip
    """The manifest of `name` with these additions. Nothing is written until :func:`milbench.datasets.files.manifest.save`.

    Args:
        name: of the dataset; that of a published cohort brings its task, its classes and its counts.
        task, unit, label, published: as in :class:`milbench.datasets.files.manifest.Manifest`.
        labels: label or survival table.
        slides: table of the slides of cases, where the label table lists cases.
        header: False where the label table has none; its columns are then called 1, 2, ...
        encoding: of the text of all tables given here, where that is not UTF-8.
        columns: role -> column, where the column has none of the usual names; an empty one leaves the role to none.
        classes: class -> labels, in the order of class indices; an empty list is the class's own name.
        skip_incomplete: leave out rows without a label, a time or an event.
        splits: name -> split table or folder; the name "" takes the usual one.
        drop: part of these splits that is left out, "val" or "test".
        folds: number of folds of one more generated split: 3 gives kfold3.
        encoder, magnification, patch_size, features, patches, step, swap_xy: one set of features.
        exclude: slides or cases to leave out, added to those that are left out already.
        replace: let these values replace those that the manifest has.
        home: the data folder; None is that of the environment.

    Raises:
        MilbenchError: a folder or table that cannot be used, or a contradiction to what the manifest has.
    """
    home = home or Settings.from_environment().data
    again = partial(joined, **locals())  # the same additions to what the file says by then
    if name in classic.TABLES:
        raise MilbenchError(f"{name} is a built-in dataset; choose another name")
    if published is not None and published not in COHORTS:
        raise unknown("published cohort", published, COHORTS)
    old = load(name, home)
    changes = _Changes(name, old, _as_saved(name, published, old), home, replace)
    changes.names(task, label, published)
    changes.encoding(encoding, [table for table in (labels, slides, *(splits or {}).values()) if table is not None])
    changes.exclude(exclude)
    changes.labels(labels, _Reading(columns or {}, classes, slides, header, skip_incomplete))
    changes.unit(unit)
    changes.splits(splits or {}, drop)
    if folds is not None:
        changes.values["folds"] = sorted({*changes.values.get("folds", []), folds})
    described = {"encoder": encoder, "magnification": magnification, "patch_size": patch_size}
    if features is not None:
        changes.features(features, patches, step, swap_xy, described)
    elif any(value is not None for value in (*described.values(), patches, step, swap_xy or None)):
        raise MilbenchError(
            "--encoder, --magnification, --patch-size, --patches, --step and --swap-xy describe --features DIR, which is missing"
        )
    try:
        saved = old.origin.text if old and old.origin else None
        return Manifest.model_validate(changes.values).at(home, Origin(saved, again))
    except ValidationError as error:
        raise from_validation(error, f"dataset {name}") from error


def _as_saved(name: str, published: str | None, old: Manifest | None) -> dict[str, Any]:
    """The values of the manifest before any change; those of a published cohort where there is no manifest."""
    if old:
        return old.model_dump()
    cohort = COHORTS.get(published or name)
    return {
        "name": name, "label": cohort.label if cohort else name, "published": name if name in COHORTS else None,
        "task": cohort.task if cohort else "subtyping",
    }  # fmt: skip


@dataclass(frozen=True)
class _Reading:
    """How a label table is to be read.

    Args:
        columns, classes, slides, header, skip_incomplete: as in :func:`joined`.
        kept: classes that the manifest has, for when nothing else is said.
    """

    columns: Mapping[str, str]
    classes: Mapping[str, Sequence[str]] | None
    slides: Path | None
    header: bool
    skip_incomplete: bool
    kept: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def said(self) -> bool:
        """Whether anything is said of it."""
        return bool(self.columns or self.classes or self.slides or self.skip_incomplete or not self.header)

    @property
    def labels(self) -> set[str]:
        """Labels that are in a class by somebody's word."""
        classes = self.kept if self.classes is None else self.classes
        return {label for name, some in classes.items() for label in some or [name]}

    def after(self, before: Mapping[str, Any], slides: Path | None, *, same_task: bool) -> "_Reading":
        """What is said now and, for the rest, what was said before."""
        columns = {**(before["columns"] if same_task else {}), **self.columns}
        skip, header = self.skip_incomplete or before["skip_incomplete"], self.header and before["header"]
        return _Reading(columns, self.classes, self.slides or slides, header, skip, before["classes"])


@dataclass
class _Changes:
    """The values of a manifest, changed step by step.

    Args:
        name: of the dataset.
        old: its manifest before, if there is one.
        values: what the new manifest is made from.
        home: the data folder.
        replace: whether values that were saved before may change.
    """

    name: str
    old: Manifest | None
    values: dict[str, Any]
    home: Path
    replace: bool

    def set(self, place: dict[Any, Any], key: Any, what: str, value: Any, saved: bool) -> None:
        """Set one value.

        Args:
            place, key: where it goes.
            what: it is, for the message.
            value: the new one.
            saved: whether the manifest has one already, which only `replace` may change.
        """
        before = place.get(key)
        if saved and not self.replace and json.dumps(before) != json.dumps(value):  # the order of classes counts
            raise MilbenchError(f"dataset {self.name} has {what} already: {_differing(before, value)}; --replace takes the new")
        place[key] = value

    def names(self, task: str | None, label: str | None, published: str | None) -> None:
        """Task, label and published cohort."""
        for key, value in (("task", task), ("label", label), ("published", published)):
            if value is not None:
                self.set(self.values, key, f"another {key}", value, saved=self.old is not None)

    def encoding(self, encoding: str | None, tables: Sequence[Path]) -> None:
        """The encoding of the tables that are given with it; those that are given without are UTF-8."""
        if encoding is not None and not tables:
            raise MilbenchError("--encoding belongs to --labels, --slides or --splits")
        kept = self.values.setdefault("encodings", {})
        for table in tables:
            kept.pop(stored(table, self.home), None)
            if encoding is not None:
                kept[stored(table, self.home)] = encoding

    def _encoding(self, table: Path) -> str | None:
        found: str | None = self.values["encodings"].get(stored(table, self.home))
        return found

    def labels(self, table: Path | None, reading: "_Reading") -> None:
        """The label table, or another reading of the one that the manifest has."""
        before = self.values.get("labels")
        if table is None and not reading.said:
            return
        if table is None:
            if before is None or self.old is None:
                raise MilbenchError("--columns, --classes, --slides, --no-header and --skip-incomplete belong to --labels")
            table = self.old.resolved(before["file"])
            slides = self.old.resolved(before["slides"]) if before["slides"] else None
            reading = reading.after(before, slides, same_task=self.old.task == self.values["task"])
        self.set(self.values, "labels", "other labels", self._labels(table, reading), saved=before is not None)

    def _labels(self, file: Path, reading: "_Reading") -> dict[str, Any]:
        """What the manifest says of the label table `file`."""
        task = self.values["task"]
        if reading.classes and task == "survival":
            raise MilbenchError("--classes is for subtyping; survival has none")
        table = Delimited.read(file, self._encoding(file), header=reading.header)
        roles = find_roles(table, task, reading.columns)
        slides = Delimited.read(reading.slides, self._encoding(reading.slides)) if reading.slides else None
        options = Options(self.values["exclude"], reading.skip_incomplete, reading.labels, slides)
        try:
            rows = read_labels(table, roles, options).rows
        except Rows as error:
            raise error.whole(self.home / f"{self.name}-rows.txt") from error
        labels = {row.label for row in rows if row.label is not None}
        by_class: Mapping[str, Sequence[str]] = {}
        if task == "subtyping" and reading.classes is not None:
            by_class = asked_classes(reading.classes, labels, file)
        elif task == "subtyping":
            kept = reading.kept if labels <= reading.labels else {}
            by_class = kept or usual_classes(labels, self.values.get("published"))
        return Labels(
            file=stored(file, self.home), header=reading.header, skip_incomplete=reading.skip_incomplete, columns=roles,
            slides=stored(reading.slides, self.home) if reading.slides else None, classes=dict(by_class),
        ).model_dump()  # fmt: skip

    def unit(self, unit: str | None) -> None:
        """What is predicted: as the user says, or cases where the table lists cases."""
        if unit is not None:
            saved = self.old is not None and self.old.labels is not None
            self.set(self.values, "unit", "another unit", unit, saved=saved)
        elif self.values["task"] == "survival" or _lists_cases(self.values):
            self.values["unit"] = "case"

    def splits(self, splits: Mapping[str, Path], drop: str | None) -> None:
        """Split tables by their names, and the part of them that is left out."""
        if drop and not splits:
            raise MilbenchError("--drop leaves out a part of --splits DIR|FILE, which is missing")
        for name, path in splits.items():
            split = name or _usual_split(self.values, len(split_files.read(path, self._encoding(path)).folds))
            saved, dropped = self.values.setdefault("splits", {}), self.values.setdefault("drop", {})
            self.set(dropped, split, f"another part left out of split {split}", drop, saved=split in saved)
            self.set(saved, split, f"another split {split}", stored(path, self.home), saved=split in saved)
            if drop is None:
                del dropped[split]

    def features(
        self, folder: Path, patches: Path | None, step: float | None, swap_xy: bool, described: Mapping[str, Any]
    ) -> None:
        """A set of features; `described` is its encoder, magnification and patch size."""
        if described["encoder"] is None:
            raise MilbenchError("--features needs --encoder, the name by which suites ask for these features")
        place = formats.layout(folder, patches)
        new = {
            **described,
            "folder": stored(place.folder, self.home),
            "format": place.format,
            "patches": stored(place.patches, self.home) if place.patches else None,
            "step": step,
            "swap_xy": swap_xy,
        }
        sets = {tuple(saved[key] for key in described): saved for saved in self.values.get("features", [])}
        key = tuple(described.values())
        self.set(sets, key, f"features of {spelled(*key)}", new, saved=key in sets)
        self.values["features"] = list(sets.values())

    def exclude(self, ids: Sequence[str]) -> None:
        """Slides or cases to leave out, beside those that are left out already."""
        before = [] if self.replace or not self.old else self.old.exclude
        self.values["exclude"] = sorted({*before, *map(text, ids)}) if ids else self.values.get("exclude", [])


def _differing(old: Any, new: Any) -> str:
    """Where two values differ, key by key."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return f"{old}, not {new}"
    return "; ".join(
        f"{key} {_plain(old.get(key))}, not {_plain(new[key])}" for key in new if json.dumps(old.get(key)) != json.dumps(new[key])
    )


def _plain(value: Any) -> str:
    return ", ".join(f"{key}={inner}" for key, inner in value.items()) if isinstance(value, dict) else str(value)


def _lists_cases(values: Mapping[str, Any]) -> bool:
    return bool(values.get("labels")) and "slide" not in values["labels"]["columns"]


def _usual_split(values: Mapping[str, Any], folds: int) -> str:
    """`official` for one fold, the cohort's name for its folds (hipt10), else `given5`."""
    cohort = COHORTS.get(values.get("published") or "")
    for name, sizes in (cohort.splits if cohort else {}).items():
        if len(sizes) == folds:
            return name
    return "official" if folds == 1 else f"given{folds}"
