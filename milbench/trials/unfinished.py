"""Trials that were cut off: the checkpoint of each, and whether this process may go on from it."""

import importlib
import platform
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version

import torch

from milbench import sources
from milbench.errors import MilbenchError
from milbench.training import Checkpoint, Part
from milbench.trials.spec import TrialSpec
from milbench.trials.store import Store


def checkpoint_of(spec: TrialSpec, store: Store, seconds: float, parts: Mapping[str, Part]) -> Checkpoint:
    """The checkpoint of a trial, of which the results folder has at most one.

    It is written in a folder named like those of results, so that what a killed writer leaves is removed with theirs.
    """
    identity = {
        "trial": spec.trial_id,
        "CPU": torch.backends.cpu.get_cpu_capability(),
        "GPU": torch.cuda.get_device_name() if spec.device == "cuda" else "none",
        **code(),
    }
    path = store.checkpoints / f"{spec.trial_id}.safetensors"
    return Checkpoint(path, store.trials / f".writing-{spec.trial_id}-{store.writer}-checkpoint", identity, seconds, parts)


@cache
def code() -> dict[str, str]:
    """All code that computes, as this process has it: our own by the hash of its files, for a version may have many."""
    ours = [sources.of_package(importlib.import_module(name)).digest for name in ("milbench", "milbench_registry")]
    others = ("torch", "numpy", "numba", "nystrom-attention")
    return {"milbench": " ".join(ours), "Python": platform.python_version(), **{name: version(name) for name in others}}


def sweep(store: Store) -> None:
    """Remove checkpoints of trials that have their result, as a writer leaves that was halted meanwhile."""
    for left in store.checkpoints.glob("*.safetensors"):
        with suppress(MilbenchError, OSError):
            if store.status(left.stem) in ("ok", "skipped"):
                left.unlink()
