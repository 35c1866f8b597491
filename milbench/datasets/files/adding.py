"""`milbench data add`, in parts that can be tested: what the user says, joined with what the manifest says already."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from milbench.config import Settings
from milbench.datasets import classic
from milbench.datasets.cohorts import BRACS_ORDER, BRACS_TYPES, COHORTS
from milbench.datasets.files import formats, tables
from milbench.datasets.files.manifest import Labels, Manifest, Origin, load, spelled, stored
from milbench.errors import MilbenchError, few, from_validation, unknown


def joined(
    name: str,
    *,
    task: str | None = None,
    unit: str | None = None,
    label: str | None = None,
    published: str | None = None,
    labels: Path | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    splits: Mapping[str, Path] | None = None,
    encoder: str | None = None,
    magnification: int | None = None,
    patch_size: int | None = None,
    features: Path | None = None,
    patches: Path | None = None,
    step: float | None = None,
    exclude: Sequence[str] = (),
    replace: bool = False,
    home: Path | None = None,
) -> Manifest:
    """The manifest of `name` with these additions. Nothing is written before :func:`milbench.datasets.files.manifest.save`.

    Args:
        name: of the dataset; that of a published cohort brings its task, its classes and its counts.
        task, unit, label, published: as in :class:`milbench.datasets.files.manifest.Manifest`.
        labels: label or survival table.
        columns: role -> column, where it is not found by its name.
        classes: class -> labels, in the order of class indices; an empty list is the class's own name.
        splits: name -> split table or folder; the name "" takes the usual one.
        encoder, magnification, patch_size, features, patches, step: one set of features.
        exclude: slides or cases to leave out, added to those that are left out already.
        replace: take what is given instead of what the manifest has.
        home: the data folder; that of the environment unless given.

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
    cohort = COHORTS.get(published or name)
    values: dict[str, Any] = old.model_dump() if old else {
        "name": name, "label": cohort.label if cohort else name, "published": name if name in COHORTS else None,
        "task": cohort.task if cohort else "subtyping",
    }  # fmt: skip

    def settle(place: dict[Any, Any], key: Any, what: str, value: Any, fixed: bool) -> None:
        if fixed and not replace and json.dumps(place.get(key)) != json.dumps(value):  # the order of classes counts
            raise MilbenchError(
                f"dataset {name} has {what} already: {_differing(place.get(key), value)}; --replace takes the new"
            )
        place[key] = value

    for key, value in (("task", task), ("label", label), ("published", published)):
        if value is not None:
            settle(values, key, f"another {key}", value, fixed=old is not None)
    if labels is not None or columns or classes:
        before = values.get("labels")
        file = labels or (old.resolved(before["file"]) if old and before else None)
        if file is None:
            raise MilbenchError("--columns and --classes belong to --labels")
        settle(values, "labels", "other labels", _labels(values, file, columns or {}, classes, home), fixed=before is not None)
    if unit is not None:
        settle(values, "unit", "another unit", unit, fixed=old is not None and old.labels is not None)
    elif values["task"] == "survival" or _lists_cases(values):
        values["unit"] = "case"
    for split, path in (splits or {}).items():
        found, _ = tables.folds(path)
        split = split or _usual_split(values, len(found))
        some = values.setdefault("splits", {})
        settle(some, split, f"another split {split}", stored(path, home), fixed=split in some)
    if features is not None:
        if encoder is None:
            raise MilbenchError("--features needs --encoder, the name by which suites ask for these features")
        place = formats.layout(features, patches)
        new = {
            "encoder": encoder,
            "magnification": magnification,
            "patch_size": patch_size,
            "folder": stored(place.folder, home),
            "format": place.format,
            "patches": stored(place.patches, home) if place.patches else None,
            "step": step,
        }
        asked_for = (encoder, magnification, patch_size)
        sets = {(one["encoder"], one["magnification"], one["patch_size"]): one for one in values.get("features", [])}
        settle(sets, asked_for, f"features of {spelled(*asked_for)}", new, fixed=asked_for in sets)
        values["features"] = list(sets.values())
    elif any(given is not None for given in (encoder, magnification, patch_size, patches, step)):
        raise MilbenchError(
            "--encoder, --magnification, --patch-size, --patches and --step describe --features DIR, which is not given"
        )
    kept = [] if replace or not old else old.exclude
    values["exclude"] = sorted({*kept, *map(tables.clean, exclude)}) if exclude else values.get("exclude", [])
    try:
        return Manifest.model_validate(values).at(home, Origin(old.origin.text if old and old.origin else None, again))
    except ValidationError as error:
        raise from_validation(error, f"dataset {name}") from error


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


def _labels(
    values: Mapping[str, Any], file: Path, columns: Mapping[str, str], classes: Mapping[str, Sequence[str]] | None, home: Path
) -> dict[str, Any]:
    found = tables.columns(file, values["task"], columns)
    rows = tables.rows(file, found)
    if values["task"] == "survival":
        if classes:
            raise MilbenchError("--classes is for subtyping; survival has none")
        return Labels(file=stored(file, home), columns=found).model_dump()
    labels = {row.label for row in rows if row.label is not None}
    if classes is None:
        own = default_classes(labels, values.get("published"))
    else:
        own = {name: list(some) or [name] for name, some in classes.items()}
        meant = [label for some in own.values() for label in some]
        if twice := [label for label in meant if meant.count(label) > 1]:
            raise MilbenchError(f"--classes: {twice[0]} stands in two classes")
        known = set(meant)
        if strange := sorted(known - labels):
            raise unknown(f"label of {file}", strange[0], labels)
        if left := sorted(labels - known):
            raise MilbenchError(f"{file}: --classes has no class for {few(left)}; write class=label+label,...")
    return Labels(file=stored(file, home), columns=found, classes=own).model_dump()


def default_classes(labels: set[str], published: str | None) -> dict[str, list[str]]:
    """Class -> labels, in the order of class indices, for labels that the user says nothing about.

    The seven lesion types of BRACS become its three classes. A published cohort has its own classes, which a table may also
    number from 0. Elsewhere every label is a class: numbers by size, words by name.
    """
    types = [label for some in BRACS_TYPES.values() for label in some]
    if labels == set(types) or (published == "bracs" and labels <= set(types)):
        return {name: list(some) for name, some in BRACS_TYPES.items()}
    if published == "bracs" and labels == {str(number) for number in range(7)}:
        return {name: [str(BRACS_ORDER.index(label)) for label in some] for name, some in BRACS_TYPES.items()}
    names = COHORTS[published].classes if published else ()
    by_name = {label.lower(): label for label in labels}
    if names and set(by_name) == {name.lower() for name in names}:
        return {name: [by_name[name.lower()]] for name in names}
    if names and labels == {str(number) for number in range(len(names))}:
        return {name: [str(number)] for number, name in enumerate(names)}
    numbers = all(re.fullmatch(r"-?\d{1,18}", label) for label in labels)
    return {label: [label] for label in sorted(labels, key=lambda label: (int(label) if numbers else 0, label))}


def _usual_split(values: Mapping[str, Any], folds: int) -> str:
    """`official` for one fold, the cohort's name for its folds (hipt10), else `given5`."""
    cohort = COHORTS.get(values.get("published") or "")
    for name, sizes in (cohort.splits if cohort else {}).items():
        if len(sizes) == folds:
            return name
    return "official" if folds == 1 else f"given{folds}"
