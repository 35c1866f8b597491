"""The results store: one folder per trial, written whole or not at all.

`results/trials/<trial_id>/` holds trial.json, and for a finished trial predictions.csv and perhaps model.safetensors.
A folder appears by a rename, so a crash leaves either nothing or everything, and two writers of one trial cannot mix.
"""

import json
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from milbench.errors import MilbenchError, Unwritable, from_validation
from milbench.files import flush
from milbench.trials.spec import SCHEMA, TrialSpec

Status = Literal["ok", "failed", "oom", "skipped"]
PREDICTIONS = "predictions.csv"
MODEL = "model.safetensors"


class Result(BaseModel):
    """trial.json. Field by field in results/README.md."""

    model_config = ConfigDict(extra="forbid", validate_by_name=True, serialize_by_alias=True)

    schema_version: int = Field(SCHEMA, alias="schema")
    trial_id: str
    status: Status
    reason: str | None = None
    traceback: str | None = None
    spec: TrialSpec
    labels: dict[str, str] = {}
    metrics: dict[str, dict[str, Any]] = {}
    selected: dict[str, Any] = {}
    curve: list[dict[str, float | None]] = []
    messages: list[str] = []
    cost: dict[str, Any] = {}
    provenance: dict[str, Any] = {}


class Store:
    """The folder that holds all trials.

    Args:
        root: usually `results`; made when first written to.
        writer: names what this one has not finished writing, so that :meth:`abandon` finds it; drawn unless given.
    """

    def __init__(self, root: str | Path, writer: str | None = None) -> None:
        self.root = Path(root)
        self.trials = self.root / "trials"
        self.writer = writer or uuid.uuid4().hex[:12]

    def folder(self, trial_id: str) -> Path:
        """Where the trial is, or would be."""
        return self.trials / trial_id

    def raw(self, trial_id: str) -> dict[str, Any] | None:
        """trial.json as it stands, or None when the trial has no result yet.

        Raises:
            MilbenchError: the file is broken, or of another schema version.
        """
        path = self.folder(trial_id) / "trial.json"
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise MilbenchError(f"{path}: not JSON ({error}); remove the folder to run the trial again") from error
        version = found.get("schema") if isinstance(found, dict) else None
        if version != SCHEMA:
            raise MilbenchError(
                f"{path}: result schema {version}, this milbench reads {SCHEMA}; "
                "read it with the version that wrote it, or use another --results folder"
            )
        return found

    def read(self, trial_id: str) -> Result | None:
        """The checked result, or None when the trial has none yet.

        Raises:
            MilbenchError: the file is broken, or of another schema version.
        """
        found = self.raw(trial_id)
        if found is None:
            return None
        try:
            return Result.model_validate(found)
        except ValidationError as error:
            raise from_validation(error, self.folder(trial_id) / "trial.json") from error

    def status(self, trial_id: str) -> Status | Literal["pending"]:
        """The trial's status without checking the whole result."""
        found = self.raw(trial_id)
        return "pending" if found is None else found["status"]

    def write(self, result: Result, files: dict[str, Callable[[Path], object]] | None = None) -> bool:
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
            (temporary / "trial.json").write_text(json.dumps(result.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")
            for path in [*temporary.iterdir(), temporary]:
                flush(path)
            return self._put(temporary, final)
        except OSError as error:
            raise Unwritable(
                f"{self.trials}: a result cannot be written: {error.strerror or error}; "
                "mend that and give the same command again: finished trials are kept"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _hidden(self, what: str, trial_id: str) -> Path:
        """A name for a folder that readers do not look at."""
        return self.trials / f".{what}-{trial_id}-{self.writer}-{uuid.uuid4().hex[:8]}"

    def _put(self, temporary: Path, final: Path) -> bool:
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
            if time.time() - left.stat().st_mtime > older_than:
                shutil.rmtree(left, ignore_errors=True)

    def abandon(self) -> None:
        """Remove what this writer has not finished, in whatever process. None of them may still write."""
        for left in self.trials.glob(f".*-{self.writer}-*"):
            shutil.rmtree(left, ignore_errors=True)


def duration(seconds: float) -> str:
    """How long trials take, in words: `40 s`, `51 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
