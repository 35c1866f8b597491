"""The manifest of a dataset: a small TOML file that says where features, labels and splits are. Nothing is copied.

`milbench data add` writes it, step by step; it may be edited by hand.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from milbench.claims import held
from milbench.config import Settings
from milbench.datasets.base import TaskName
from milbench.datasets.cohorts import COHORTS
from milbench.datasets.files.formats import STEPS, Format, Layout
from milbench.errors import MilbenchError, from_validation
from milbench.files import parse_toml, read_bytes, write_atomically
from milbench.names import Encoder, Name, checked


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
        swap_xy: whether positions stand in the files as (y, x).
    """

    encoder: Encoder
    magnification: int | None = Field(None, ge=1)
    patch_size: int | None = Field(None, ge=1)
    folder: str
    format: Format
    patches: str | None = None
    step: float | None = Field(None, ge=STEPS[0], le=STEPS[1])
    swap_xy: bool = False

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
        header: whether its first row names the columns; else they are called 1, 2, ...
        slides: table of the slides of cases, where the label table lists cases.
        skip_incomplete: whether rows without a label, a time or an event are left out.
        columns: role -> column; roles are slide, case, label, time, event, censorship.
        classes: class -> the labels that mean it, in the order of class indices; empty for survival.
    """

    file: str
    header: bool = True
    slides: str | None = None
    skip_incomplete: bool = False
    columns: dict[str, str]
    classes: dict[str, list[str]] = {}

    @model_validator(mode="after")
    def _once(self) -> "Labels":
        labels = [label for some in self.classes.values() for label in some]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"{', '.join(twice)} in two classes")
        return self


@dataclass(frozen=True)
class Origin:
    """What a manifest was made from, so that of two changes at the same time neither is lost.

    Args:
        text: content of the file then; None where there was no file.
        again: makes the same change to the present content of the file; None where that is not known.
    """

    text: str | None
    again: "Callable[[], Manifest] | None" = field(default=None, compare=False)


class Manifest(_Form):
    """What is known of a dataset.

    Args:
        name: for commands and suites.
        label: for tables.
        task: "subtyping" or "survival".
        unit: what is predicted, a slide or a case with all its slides.
        published: name of the cohort with whose published numbers it is compared.
        exclude: slides or cases that are left out.
        labels: the label table; None until it is added.
        splits: name -> split table or folder of them.
        drop: split -> its part that is left out; without a test part, the validation part is tested.
        folds: numbers of folds of generated splits: 3 gives kfold3; kfold5 and kfold10 are always there.
        encodings: table, or folder of tables -> the encoding of its text, where that is not UTF-8.
        features: sets of features.

    `home` is the data folder that it belongs to: relative paths start there.
    """

    name: Name = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    label: str
    task: TaskName = "subtyping"
    unit: Literal["slide", "case"] = "slide"
    published: str | None = None
    exclude: list[str] = []
    labels: Labels | None = None
    splits: dict[Name, str] = {}
    folds: list[Annotated[int, Field(ge=2)]] = []
    encodings: dict[str, str] = {}
    drop: dict[Name, Literal["val", "test"]] = {}
    features: list[Features] = []
    _home: Path = PrivateAttr(Settings.data)
    _origin: "Origin | None" = PrivateAttr(None)

    @property
    def home(self) -> Path:
        """The data folder that it belongs to."""
        return self._home

    @property
    def origin(self) -> "Origin | None":
        """What it was made from; None where it was made by hand."""
        return self._origin

    def at(self, home: Path, origin: "Origin | None" = None) -> "Manifest":
        """The same manifest in the data folder `home`, made of what its file said then."""
        self._home, self._origin = home, origin
        return self

    def model_copy(self, **how: Any) -> "Manifest":
        """As of any pydantic model; what was joined is not known of a copy, which may say something else."""
        origin = self._origin and Origin(self._origin.text)
        return super().model_copy(**how).at(self.home, origin)

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

    def matching(self, encoder: str | None, magnification: int | None, patch_size: int | None) -> list[Features]:
        """The sets of features that may be meant, where None leaves a value open; one that has just these values comes alone."""
        asked = (encoder, magnification, patch_size)
        exact = [some for some in self.features if some.key == asked]
        return exact or [
            some for some in self.features if all(want in (None, have) for want, have in zip(asked, some.key, strict=True))
        ]

    @property
    def lists(self) -> str:
        """What a row of the label table stands for: a slide, or a case."""
        return "slide" if self.labels and ("slide" in self.labels.columns or self.labels.slides) else "case"

    def key_of(self, features: Features, *, shared: bool = False) -> str:
        """Eight digits for names of files about a set of features, where dataset and encoder run together to the same name.

        Args:
            features: the set.
            shared: whether such files of other data folders lie beside them.
        """
        home = [str(self.home.resolve())] if shared else []
        return hashlib.sha256(json.dumps([self.name, features.key, *home]).encode()).hexdigest()[:8]

    def resolved(self, path: str) -> Path:
        """The file or folder that one of its paths means."""
        return Path(os.path.normpath(self.home / path))

    def layout(self, features: Features) -> Layout:
        """Where the files of a set of features are."""
        patches = self.resolved(features.patches) if features.patches else None
        return Layout(self.resolved(features.folder), features.format, patches)


def path_of(name: str, home: Path) -> Path:
    """The file of the dataset `name` in the data folder `home`, whether or not it is there."""
    return home / f"{checked(name, 'dataset')}.toml"


def names(home: Path) -> list[str]:
    """Datasets that have a manifest in the data folder `home`."""
    return sorted(path.stem for path in home.glob("*.toml"))


def load(name: str, home: Path | None = None) -> Manifest | None:
    """The manifest of the dataset `name`, or None.

    Args:
        name: of the dataset.
        home: the data folder; None is that of the environment.

    Raises:
        MilbenchError: the file is wrong; says key and what is allowed.
    """
    home = home or Settings.from_environment().data
    path, text = path_of(name, home), written(name, home)
    if text is None:
        return None
    try:
        return Manifest.model_validate({"name": name, **parse_toml(text.encode(), path)}).at(home, Origin(text))
    except ValidationError as error:
        raise from_validation(error, path) from error


def written(name: str, home: Path) -> str | None:
    """What the file of the dataset `name` says, or None without one.

    Raises:
        MilbenchError: it is not text.
    """
    path = path_of(name, home)
    data = read_bytes(path)
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError as error:
        raise MilbenchError(f"{path}: not TOML: {error}") from error


def save(manifest: Manifest) -> Path | None:
    """Write a manifest to its data folder; returns its file, or None when it says just this already.

    Where the file changed since the manifest was read or joined, the additions are joined again with its present content: of
    two `milbench data add` at the same time, on one machine or on two, neither is lost: one waits for the other.

    Raises:
        MilbenchError: the file changed and the manifest was not joined, or both say different things.
    """
    path = path_of(manifest.name, manifest.home)
    with held(manifest.home / ".seen" / f"{manifest.name}.claim"):
        before = written(manifest.name, manifest.home)
        if (origin := manifest.origin) is not None and origin.text != before:
            if origin.again is None:
                raise MilbenchError(f"{path} changed since it was read; read it again and repeat the change")
            manifest = origin.again()
        text = "".join(f"{line}\n" for line in _lines(manifest))
        if text == before:
            return None
        write_atomically(path, text)
    return path


def _lines(manifest: Manifest) -> Iterator[str]:
    values = manifest.model_dump(exclude_none=True, exclude={"name", "labels", "splits", "drop", "encodings", "features"})
    yield f"# Written by `milbench data add`, and yours to edit. Whether it holds: milbench data check {manifest.name}"
    yield from _pairs({key: value for key, value in values.items() if value != []})
    if manifest.labels:
        described = manifest.labels.model_dump(exclude_defaults=True, exclude={"columns", "classes"})
        yield from ("", "[labels]", *_pairs(described))
        yield from ("", "[labels.columns]", *_pairs(manifest.labels.columns))
        if manifest.labels.classes:
            yield from ("", "# class = the labels that mean it; the order is that of the class indices")
            yield from ("[labels.classes]", *_pairs(manifest.labels.classes))
    if manifest.splits:
        yield from ("", "[splits]", *_pairs(manifest.splits))
    if manifest.drop:
        yield from ("", "# split = its part that is left out", "[drop]", *_pairs(manifest.drop))
    if manifest.encodings:
        yield from ("", "[encodings]", *_pairs(manifest.encodings))
    for features in manifest.features:
        yield from ("", "[[features]]", *_pairs(features.model_dump(exclude_none=True, exclude_defaults=True)))


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    """TOML's strings, numbers and lists are JSON's but for the escape of characters outside the basic plane."""
    text = lambda value: json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # noqa: E731
    for key, value in values.items():
        yield f"{key if re.fullmatch('[A-Za-z0-9_-]+', key) else text(key)} = {text(value)}"


def stored(path: Path, home: Path) -> str:
    """A path as a manifest in the data folder `home` has it: relative to that within the folder that holds it, else absolute.

    So a project can be moved or mounted elsewhere as a whole, and files outside it are still found.
    """
    try:
        path, home = path.resolve(), home.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads back to itself
        raise MilbenchError(
            f"{path} cannot be reached; it is a link that leads back to itself, or lies in a folder that may not be read"
        ) from error
    inside = path.is_relative_to(home.parent) and home.parent != Path(home.anchor)
    kept = Path(os.path.relpath(path, home)).as_posix() if inside else path.as_posix()
    if any("\udc80" <= c <= "\udcff" for c in kept):  # bytes that are not UTF-8
        raise MilbenchError(f"{path}: names of folders and tables must be UTF-8 to be kept in a manifest; rename it")
    return kept
