"""A training that was cut off goes on: the newest checkpoint of a trial, one file of tensors and JSON."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from milbench import machine
from milbench.aggregator import Aggregator
from milbench.files import flush, regular
from milbench.nn.optimisers import Optimiser
from milbench.training.state import Part, RandomNumbers, Weights, as_bytes, changed, packed, plain_state, unpacked

log = logging.getLogger("milbench")
CurveRow = dict[str, float | None]
SHARE = 20  # training lasts at least so many times as long as writing its checkpoints


class Checkpoint:
    """The newest checkpoint of one training.

    Args:
        path: of the file.
        workshop: a folder that is made to write the file in, and removed again.
        identity: what must be as it was for the numbers to be the same, as text by name.
        seconds: of training before the next checkpoint; 0 writes one after every epoch.
        parts: what changes beside what :func:`milbench.training.fit` knows of.

    Attributes:
        parts: all of them.
        resumed: the epochs after which this training was cut off and went on, first one first.
    """

    def __init__(
        self, path: Path, workshop: Path, identity: Mapping[str, str], seconds: float, parts: Mapping[str, Part]
    ) -> None:
        self._path, self._workshop, self._identity, self._seconds = path, workshop, dict(identity), seconds
        self.parts, self._due = dict(parts), 0.0
        self.resumed: list[int] = []

    def resume(
        self, model: Aggregator, optimisers: Sequence[Optimiser], parts: Mapping[str, Part], device: torch.device
    ) -> list[CurveRow]:
        """Go on where the training was cut off.

        A file that is broken, or of another trial, code or machine, is not used, and a message says so.

        Args:
            model, optimisers: prepared, before their first step.
            parts: what else training changes.
            device: of the model.

        Returns:
            The curve so far; empty where training begins.
        """
        self._model, self._optimisers, self._device = model, optimisers, device.type
        self.parts |= {"model": Weights(model), **parts, "random": RandomNumbers(device)}  # last: what comes before may draw
        self._plain = plain_state(model, self._optimisers)
        self._due = time.monotonic() + self._seconds
        try:
            said, tensors = _read(self._path)
            other = changed(self._identity, said["identity"])
            why = f"another {other} wrote it" if other else ""
        except FileNotFoundError:
            return []
        except Exception as error:  # a broken file may raise anything
            why = f"it is broken ({type(error).__name__})"
        if why:
            log.warning("the checkpoint of this trial is not used, since %s; it was trained from the first epoch on", why)
            with suppress(OSError):
                self._path.unlink()
            shutil.rmtree(self._path, ignore_errors=True)  # where it is a folder
            return []
        for name, part in self.parts.items():
            part.load_state_dict(unpacked(said["parts"][name], tensors))
        curve: list[CurveRow] = said["curve"]
        self.resumed = [*said["resumed"], len(curve)]
        del tensors
        self._forget_memory()
        return curve

    def after_epoch(self, curve: list[CurveRow]) -> None:
        """Write a checkpoint if it is time for one; whatever prevents that is told in a message and costs nothing else."""
        began = time.monotonic()
        if began < self._due:
            return
        tensors: dict[str, Tensor] = {}
        try:
            if lost := changed(self._plain, plain_state(self._model, self._optimisers)):
                raise TypeError(
                    f"{lost} changes in training, or cannot be compared, and is neither parameter nor buffer nor in `carried`"
                )
            parts = {name: packed(part.state_dict(), name, tensors) for name, part in self.parts.items()}
            said = {"identity": self._identity, "resumed": self.resumed, "curve": curve, "parts": parts}
            self._write(json.dumps(said), tensors)
        except Exception as error:  # of the disk or of a plug-in: no checkpoint is worth a trial
            why = getattr(error, "strerror", None) or error
            log.warning("no checkpoint could be written (%s); if it is cut off, this trial begins anew or further back", why)
        tensors = {}
        self._forget_memory()
        took = time.monotonic() - began
        self._due = time.monotonic() + (max(self._seconds, SHARE * took) if self._seconds else 0)

    def _forget_memory(self) -> None:
        """The copies were ours: they do not count as memory of the method."""
        machine.release_memory()
        machine.reset_peak_memory(self._device)

    def _write(self, said: str, tensors: dict[str, Tensor]) -> None:
        try:
            self._workshop.mkdir(parents=True, exist_ok=True)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._workshop / self._path.name
            # Not save_file, whose own kind of error for a full disk does not say so.
            draft.write_bytes(safetensors.torch.save(tensors, {"said": said, "sha256": _digest(said, tensors)}))
            flush(draft)
            draft.replace(self._path)
            flush(self._path.parent)
        finally:
            shutil.rmtree(self._workshop, ignore_errors=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint says, and its tensors; raises whatever a file that is none makes the libraries raise."""
    regular(path)
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no mapping
    if about["sha256"] != _digest(about["said"], tensors):
        raise ValueError("another SHA-256 than it says")
    return json.loads(about["said"]), tensors


def _digest(said: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(said.encode())
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(as_bytes(t))
    return digest.hexdigest()
