"""The results store: one folder per trial, written whole or not at all.

`results/trials/<trial_id>/` holds trial.json, and for a finished trial predictions.csv and perhaps model.safetensors.
A folder appears by a rename, so a crash leaves either nothing or everything, and two writers of one trial cannot mix.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from milbench import names
from milbench.errors import MilbenchError, Unwritable, from_validation
from milbench.files import flush, parse_json, read_bytes, sha256, stamp, unusable
from milbench.trials.index import Index, Kept
from milbench.trials.shelves import Shelves, damaged, removed
from milbench.trials.spec import SCHEMA, TrialSpec, id_of

Status = Literal["ok", "failed", "oom", "skipped"]
TRIAL = "trial.json"
PREDICTIONS = "predictions.csv"
MODEL = "model.safetensors"
REHEARSAL = "REHEARSAL.json"  # the file that marks a store as a rehearsal's
SETTLED = 2 * 10**9  # nanoseconds after which a file system tells another write of a file by its time; some count in 2 s

# The range of a metric, by name; a metric without an entry can be any finite number.
_LARGEST = dict.fromkeys(("macro_auc", "macro_f1", "balanced_accuracy", "accuracy", "per_class_auc", "c_index"), 1.0)
_SMALLEST = dict.fromkeys((*_LARGEST, "brier", "confusion", "events"), 0.0)
_LISTS = ("per_class_auc", "confusion", "bin_edges")


class Result(BaseModel):
    """trial.json. Field by field in results/README.md."""

    model_config = ConfigDict(extra="forbid", validate_by_name=True, serialize_by_alias=True, allow_inf_nan=False)

    schema_version: int = Field(SCHEMA, alias="schema")
    trial_id: str
    status: Status
    reason: str | None = None
    traceback: str | None = None
    spec: TrialSpec
    labels: dict[str, str] = {}
    metrics: dict[Literal["test", "val", "optimistic"], dict[str, Any]] = {}
    selected: dict[str, int | str | None] = {}
    curve: list[dict[str, float | None]] = []
    messages: list[str] = []
    cost: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    sha256: dict[str, str] = {}

    @model_validator(mode="after")
    def _possible(self) -> "Result":
        for part, values in self.metrics.items():
            for name, value in values.items():
                if isinstance(value, list) and name not in _LISTS:
                    raise ValueError(f"metrics.{part}.{name} is one number, not {value!r:.40}")
                low, high = _SMALLEST.get(name, -1e300), _LARGEST.get(name, 1e300)
                if wrong := [v for v in _flat(value) if v is not None and not (_is_number(v) and low <= v <= high)]:
                    raise ValueError(f"metrics.{part}.{name} cannot be {wrong[0]!r:.40}")
        seconds = self.cost.get("seconds", 0.0)
        if not (_is_number(seconds) and 0 <= seconds < 1e300):
            raise ValueError(f"cost.seconds cannot be {seconds!r:.40}")
        if not _is_number(self.selected.get("epoch", 0)):
            raise ValueError(f"selected.epoch cannot be {self.selected['epoch']!r:.40}")
        if any("train_loss" not in row for row in self.curve):
            raise ValueError("curve has a row without train_loss")
        return self


def _flat(value: Any) -> Iterator[Any]:
    """The numbers of a metric: itself, or those of a list or table."""
    if isinstance(value, list):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_KEYS = {field.alias or name for name, field in Result.model_fields.items()}


class Store:
    """The folder that holds all trials.

    Args:
        root: usually `results`; made when first written to.
        writer: part of the names of unfinished folders, by which :meth:`abandon` finds them; random unless given.
    """

    def __init__(self, root: str | Path, writer: str | None = None) -> None:
        self.root = Path(root)
        self.checkpoints = self.root / "unfinished"
        self.trials = self.root / "trials"
        self.shelves = Shelves(self.root / "shelves")
        self._trials = str(self.trials)  # joining paths takes longer than asking the disk
        self.claims = self.root / "claims"
        self.plans: dict[str, tuple[bytes, Any]] = {}  # suite -> hash of its file, and what it says
        self.writer = writer or uuid.uuid4().hex[:12]

    def folder(self, trial_id: str) -> Path:
        """Where the trial is, or would be, unless it is packed.

        Raises:
            MilbenchError: no trial can have that id.
        """
        if not names.is_trial_id(trial_id):
            raise MilbenchError(f"{trial_id!r:.60} is not the id of a trial, which has 16 digits of 0-9 and a-f")
        return self.trials / trial_id

    def place(self, trial_id: str) -> Path | zipfile.Path:
        """Where the trial's files are: its folder, or the same inside a shelf.

        Raises:
            MilbenchError: no trial can have that id, or its shelf is damaged.
        """
        folder = self.folder(trial_id)
        return folder if folder.is_dir() else self.shelves.place(trial_id) or folder

    def _file(self, trial_id: str, name: str) -> tuple[bytes | None, Path, str]:
        """What is in a file of the trial, None where there is none; where that is, and how to run the trial again."""
        path = self.folder(trial_id) / name
        data = read_bytes(path)
        if data is not None or (place := self.shelves.place(trial_id)) is None:
            return data, path, f"remove the folder {path.parent} and run the suite again"
        shelf = self.shelves.path(trial_id)
        again = f"take it out with: zip -d {shelf} '{trial_id}/*', and run the suite again"
        try:
            return (place / name).read_bytes(), shelf / trial_id / name, again
        except FileNotFoundError:
            return None, shelf / trial_id / name, again
        except (OSError, zipfile.BadZipFile) as error:
            raise damaged(shelf, error) from error

    def raw(self, trial_id: str) -> dict[str, Any] | None:
        """trial.json as it stands, checked against itself, or None when the trial has no result yet.

        Its id is the folder's name and the hash of its spec, every key is there with a value of its type, and metrics are within
        their range. :mod:`milbench.trials.predictions` checks that they are the metrics of the predictions.

        Raises:
            MilbenchError: the file is broken, of another trial, or of another schema version.
        """
        data, path, again = self._file(trial_id, TRIAL)
        if data is None:
            return None
        content = parse_json(data, path, again)
        version = content.get("schema") if isinstance(content, dict) else None
        if version != SCHEMA:
            raise MilbenchError(
                f"{path}: result schema {version!r:.20}, this milbench reads {SCHEMA}; {self.other_schema(version)}"
            )
        if lacking := sorted(_KEYS - content.keys()):
            raise MilbenchError(f"{path}: {lacking[0]} is missing; {again}")
        try:
            spec = Result.model_validate_json(data, strict=True).spec
        except ValidationError as error:
            raise MilbenchError(f"{from_validation(error, path)}; {again}") from error
        if not content["trial_id"] == trial_id == _hashed(content["spec"]) == spec.trial_id:  # written out, with every default
            raise MilbenchError(
                f"{path}: says to be trial {content['trial_id']:.20}, its spec is {_hashed(content['spec'])}'s; {again}"
            )
        return content

    def known(self, trial_id: str) -> Mapping[str, Any] | None:
        """trial.json without its traceback, checked as :meth:`raw` does, once: then the index has it until the file changes.

        Raises:
            MilbenchError: as :meth:`raw`.
        """
        # A line with the stamp of a shelf is of a trial in it: nobody has to look inside.
        stamp = self._stamp_of_folder(trial_id) or self.shelves.stamp_of_shelf(trial_id)
        if stamp is None:
            return None
        if line := self._index.find(trial_id, stamp, self.ids):
            return Kept(self._index, trial_id, line, self._untraced)
        return self._noted(trial_id, stamp)

    def _noted(self, trial_id: str, stamp: str) -> Mapping[str, Any] | None:
        """Read a trial, and append it to the index when it is sure that a later change of its file shows."""
        now = self._index.clock()
        content = self._untraced(trial_id)
        settled = int(stamp.split()[1]) < now - SETTLED and stamp == self.stamp(trial_id)
        if content and settled and (line := self._index.add(trial_id, stamp, content)):
            return Kept(self._index, trial_id, line, self._untraced)
        return content or None

    def _untraced(self, trial_id: str) -> Mapping[str, Any]:
        content = self.raw(trial_id) or {}
        return {key: value for key, value in content.items() if key != "traceback"}

    @cached_property
    def _index(self) -> Index:
        return Index(self.root / "index.jsonl")

    def stamp(self, trial_id: str) -> str | None:
        """What tells whether a trial.json is the one that was read (:func:`milbench.files.stamp`); None where there is none.

        Of a packed trial it is that of its shelf.
        """
        return self._stamp_of_folder(trial_id) or self.shelves.stamp(trial_id)

    def put_at(self, trial_id: str) -> datetime | None:
        """When the folder of a trial got its result, by the clock of :meth:`clock`; None where it has none."""
        found = self._stamp_of_folder(trial_id)
        return datetime.fromtimestamp(int(found.split()[2]) / 1e9, UTC) if found else None

    def clock(self) -> datetime:
        """Now, by the clock that stamps files of this folder: on a file server that of this machine may be another.

        Raises:
            Unwritable: nothing can be written here.
        """
        with suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True)
        if now := self._index.clock():
            return datetime.fromtimestamp(now / 1e9, UTC)
        raise Unwritable(f"{self.root}: cannot be written to; make room or allow writing")

    def _stamp_of_folder(self, trial_id: str) -> str | None:
        if not names.is_trial_id(trial_id):
            self.folder(trial_id)
        return stamp(f"{self._trials}/{trial_id}/{TRIAL}")

    def other_schema(self, version: object) -> str:
        """Advice for results or plans of another schema version."""
        if (self.root / REHEARSAL).exists():
            return f"remove {self.root} to rehearse again"
        if version == 1:
            return f"bring the store over with: milbench results migrate --results {self.root}"
        return "read it with the version that wrote it, or use another --results folder"

    def read(self, trial_id: str) -> Result | None:
        """The checked result, or None when the trial has none yet.

        Raises:
            MilbenchError: the file is broken, or of another schema version.
        """
        content = self.raw(trial_id)
        return None if content is None else Result.model_validate(content)

    def ids(self) -> list[str]:
        """Every trial that is here, in a folder or a shelf.

        Raises:
            MilbenchError: the folder cannot be read, or a shelf is damaged.
        """
        return sorted({*self.in_folders(), *self.shelves.ids()})

    def in_folders(self) -> list[str]:
        """Every trial that has a folder.

        Raises:
            MilbenchError: the folder cannot be read.
        """
        try:
            folders = os.listdir(self.trials)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise unusable(self.trials, error) from error
        return sorted(filter(names.is_trial_id, folders))

    def verified(self, result: Mapping[str, Any], name: str) -> Path | zipfile.Path:
        """A file of a trial, whose bytes are those that the trial wrote.

        Args:
            result: trial.json, as :meth:`raw` gives it.
            name: of the file.

        Raises:
            MilbenchError: it is missing, or is another file.
        """
        data, path, again = self._file(result["trial_id"], name)
        if data is None:
            raise MilbenchError(f"{path} is missing; {again}")
        digest = hashlib.sha256(data).hexdigest()
        if result["sha256"].get(name) != digest:
            raise MilbenchError(f"{path} is not the file that the trial wrote (another SHA-256 than in {TRIAL}); {again}")
        return self.place(result["trial_id"]) / name

    def status(self, trial_id: str) -> Status | Literal["pending"]:
        """The trial's status without checking the whole result."""
        content = self.raw(trial_id)
        return "pending" if content is None else content["status"]

    def write(self, result: Result, files: Mapping[str, Callable[[Path], object]] | None = None) -> bool:
        """Put a result in place, atomically.

        A finished trial is never replaced; a failed one is.

        Args:
            result: becomes trial.json.
            files: name -> function that writes that file to the path it is given.

        Returns:
            False when another writer finished the same trial first; this one is then discarded.

        Raises:
            Unwritable: the disk is full, or the folder may not be written to; nothing is left.
        """
        final, temporary = self.folder(result.trial_id), self._hidden("writing", result.trial_id)
        try:
            self.trials.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            for name, save in (files or {}).items():
                save(temporary / name)
                result.sha256[name] = sha256(temporary / name)
            written = temporary / TRIAL
            written.write_text(json.dumps(result.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")
            self.date_back(written)
            return self._put(temporary, final) and self.note(result.trial_id)
        except OSError as error:
            raise Unwritable(
                f"{self.trials}: a result cannot be written: {error.strerror or error}; "
                "make room or allow writing, then run the same command again: finished trials are kept"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def adopt(self, folder: Path | zipfile.Path, names: Iterable[str]) -> bool:
        """Put a trial of another store in place, atomically, as :meth:`write` does.

        Args:
            folder: the trial's, there.
            names: its files.

        Returns:
            False when a finished trial is here.

        Raises:
            Unwritable: the disk is full, or the folder may not be written to; nothing is left.
        """
        temporary = self._hidden("writing", folder.name)
        try:
            self.trials.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            for name in names:
                (temporary / name).write_bytes((folder / name).read_bytes())
            return self._put(temporary, self.folder(folder.name))
        except OSError as error:
            raise Unwritable(f"{self.trials}: trial {folder.name} cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @staticmethod
    def date_back(path: Path) -> None:
        """So that whoever edits the file gives it another time, and what was written can be noted at once."""
        before = path.stat().st_mtime_ns - 2 * SETTLED
        os.utime(path, ns=(before, before))

    def note(self, trial_id: str) -> bool:
        """Have the index know a trial that was just written."""
        if stamp := self.stamp(trial_id):
            with suppress(MilbenchError):  # who reads it hears of that
                self._noted(trial_id, stamp)
        return True

    def drop(self, trial_id: str) -> None:
        """Remove the folder of a trial that is packed."""
        removed(self.folder(trial_id), self._hidden("replaced", trial_id))

    def _hidden(self, what: str, trial_id: str) -> Path:
        """A name for a folder that readers do not look at."""
        return self.trials / f".{what}-{trial_id}-{self.writer}-{uuid.uuid4().hex[:8]}"

    def _put(self, temporary: Path, final: Path) -> bool:
        if self.shelves.stamp(final.name):  # only finished trials are packed
            return False
        for path in [*temporary.iterdir(), temporary]:
            flush(path)
        (self.checkpoints / f"{final.name}.safetensors").unlink(missing_ok=True)  # before: no result and a checkpoint at once
        while True:
            try:
                temporary.rename(final)  # fails when the folder exists and is not empty
            except OSError:
                if not final.is_dir():
                    raise
                if self.status(final.name) in ("ok", "skipped"):
                    return False
                old = self._hidden("replaced", final.name)
                try:
                    final.rename(old)
                except FileNotFoundError:
                    continue  # another writer moved it away first
                shutil.rmtree(old, ignore_errors=True)
            else:
                flush(self.trials)
                return True

    def sweep(self, older_than: float = 3600.0) -> None:
        """Remove what writers that crashed left behind, more than `older_than` seconds ago (a write takes a few)."""
        for left in [*self.trials.glob(".writing-*"), *self.trials.glob(".replaced-*")]:
            with suppress(FileNotFoundError):  # a writer that is at work has put it in place
                if time.time() - left.stat().st_mtime > older_than:
                    shutil.rmtree(left, ignore_errors=True)

    def abandon(self) -> None:
        """Remove what this writer has not finished, in whatever process. None of them may still write."""
        for left in self.trials.glob(f".*-{self.writer}-*"):
            shutil.rmtree(left, ignore_errors=True)


def _hashed(spec: Mapping[str, Any]) -> str:
    try:
        return id_of(spec)
    except ValueError:  # a number that is not finite is of no trial
        return "no trial"
