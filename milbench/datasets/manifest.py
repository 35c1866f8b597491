"""A dataset of one's own: a small TOML file that says where features, labels and splits are. Nothing is copied.

`milbench data add` writes it, step by step; it may be edited by hand.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from milbench.config import Settings
from milbench.datasets.base import TaskName
from milbench.datasets.formats import Format, Layout
from milbench.datasets.published import COHORTS
from milbench.errors import MilbenchError, from_validation
from milbench.files import write_atomically


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Features(_Form):
    """One set of features.

    Args:
        encoder, magnification, patch_size: what suites ask for.
        folder: holds one file per slide.
        format: suffix of the files.
        patches: folder of CLAM's patches files, where positions or their distance are not in the feature files.
        step: level-0 pixels between neighbouring patches, where no file says them or files are wrong.
    """

    encoder: str = Field(min_length=1)
    magnification: int | None = Field(None, ge=1)
    patch_size: int | None = Field(None, ge=1)
    folder: str
    format: Format
    patches: str | None = None
    step: float | None = Field(None, gt=0)

    @property
    def key(self) -> tuple[str, int | None, int | None]:
        """What suites ask for."""
        return self.encoder, self.magnification, self.patch_size

    @property
    def name(self) -> str:
        """The key as text."""
        return spelled(*self.key)


def spelled(encoder: str, magnification: int | None, patch_size: int | None) -> str:
    """A set of features as text: `uni 20x 224 px`."""
    return encoder + (f" {magnification}x" if magnification else "") + (f" {patch_size} px" if patch_size else "")


class Labels(_Form):
    """The table of labels or of survival.

    Args:
        file: the table.
        columns: role -> column; roles are slide, case, label, time, event, censorship.
        classes: class -> the labels that mean it, in the order of class indices; empty for survival.
    """

    file: str
    columns: dict[str, str]
    classes: dict[str, list[str]] = {}

    @model_validator(mode="after")
    def _once(self) -> "Labels":
        labels = [label for some in self.classes.values() for label in some]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"{', '.join(twice)} in two classes")
        return self


class Manifest(_Form):
    """A dataset.

    Args:
        name: for commands and suites.
        label: for tables.
        task: "subtyping" or "survival".
        unit: what is predicted, a slide or a case with all its slides.
        published: name of the cohort whose published numbers it is held against.
        exclude: slides or cases that are left out.
        labels: the label table; None until it is added.
        splits: name -> split table or folder of them.
        features: sets of features.

    `home` is the data folder that it belongs to: relative paths start there.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    label: str
    task: TaskName = "subtyping"
    unit: Literal["slide", "case"] = "slide"
    published: str | None = None
    exclude: list[str] = []
    labels: Labels | None = None
    splits: dict[str, str] = {}
    features: list[Features] = []
    _home: Path = PrivateAttr(Settings.data)

    @property
    def home(self) -> Path:
        """The data folder that it belongs to."""
        return self._home

    def at(self, home: Path) -> "Manifest":
        """The same manifest in the data folder `home`."""
        self._home = home
        return self

    @model_validator(mode="after")
    def _agree(self) -> "Manifest":
        keys = [features.key for features in self.features]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise ValueError(f"features of {spelled(*twice)} stand twice")
        if self.published is not None and self.published not in COHORTS:
            raise ValueError(f"published is one of {', '.join(COHORTS)}, not {self.published}")
        if self.task == "survival" and self.unit != "case":
            raise ValueError("survival is predicted for cases: unit must be case")
        if self.labels and ("label" in self.labels.columns) != (self.task == "subtyping"):
            raise ValueError(f"the label table was added for another task than {self.task}; add the one of this task, too")
        return self

    def find(self, encoder: str, magnification: int | None, patch_size: int | None) -> Features | None:
        """The set of features of that encoder, magnification and patch size."""
        return next((one for one in self.features if one.key == (encoder, magnification, patch_size)), None)

    def resolved(self, path: str) -> Path:
        """The file or folder that one of its paths means."""
        return Path(os.path.normpath(self.home / path))

    def layout(self, features: Features) -> Layout:
        """Where the files of a set of features are."""
        patches = self.resolved(features.patches) if features.patches else None
        return Layout(self.resolved(features.folder), features.format, patches)


def path_of(name: str, home: Path) -> Path:
    """The file of the dataset `name` in the data folder `home`, whether or not it is there."""
    return home / f"{name}.toml"


def names(home: Path) -> list[str]:
    """Datasets that have a manifest in the data folder `home`."""
    return sorted(path.stem for path in home.glob("*.toml"))


def load(name: str, home: Path | None = None) -> Manifest | None:
    """The manifest of the dataset `name`, or None.

    Args:
        name: of the dataset.
        home: the data folder; that of the environment unless given.

    Raises:
        MilbenchError: the file is wrong; says key and what is allowed.
    """
    home = home or Settings.from_environment().data
    path = path_of(name, home)
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate({"name": name, **tomllib.loads(path.read_text())}).at(home)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MilbenchError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        raise from_validation(error, path) from error


def save(manifest: Manifest) -> Path | None:
    """Write a manifest to its data folder; returns its file, or None when it says just this already."""
    path, text = path_of(manifest.name, manifest.home), "".join(f"{line}\n" for line in _lines(manifest))
    if path.is_file() and path.read_text() == text:
        return None
    write_atomically(path, text)
    return path


def _lines(manifest: Manifest) -> Iterator[str]:
    values = manifest.model_dump(exclude_none=True, exclude={"name", "labels", "splits", "features"})
    yield f"# Written by `milbench data add`, and yours to edit. Whether it holds: milbench data check {manifest.name}"
    yield from _pairs({key: value for key, value in values.items() if value != []})
    if manifest.labels:
        yield from ("", "[labels]", *_pairs({"file": manifest.labels.file}))
        yield from ("", "[labels.columns]", *_pairs(manifest.labels.columns))
        if manifest.labels.classes:
            yield from ("", "# class = the labels that mean it; the order is that of the class indices")
            yield from ("[labels.classes]", *_pairs(manifest.labels.classes))
    if manifest.splits:
        yield from ("", "[splits]", *_pairs(manifest.splits))
    for features in manifest.features:
        yield from ("", "[[features]]", *_pairs(features.model_dump(exclude_none=True)))


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    """TOML's strings, numbers and lists are JSON's but for the escape of characters outside the basic plane."""
    text = lambda value: json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # noqa: E731
    for key, value in values.items():
        yield f"{key if re.fullmatch('[A-Za-z0-9_-]+', key) else text(key)} = {text(value)}"


def stored(path: Path, home: Path) -> str:
    """A path as a manifest in the data folder `home` has it: relative to that within the folder that holds it, else absolute.

    So a project can be moved or mounted elsewhere as a whole, and what lies outside is found from wherever it is.
    """
    path, home = path.resolve(), home.resolve()
    inside = path.is_relative_to(home.parent) and home.parent != Path(home.anchor)
    return Path(os.path.relpath(path, home)).as_posix() if inside else path.as_posix()
