"""Run one trial: data, model, fit, test, result. Whatever happens is recorded."""

import contextlib
import logging
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

import milbench
from milbench import datasets, plugins, process, tasks
from milbench.aggregator import Aggregator
from milbench.config import Settings
from milbench.datasets import Dataset
from milbench.errors import MilbenchError, SkipTrial
from milbench.ops import backends
from milbench.training import Bags, derive_seed, fit, fold_bags, predict
from milbench.trials import predictions
from milbench.trials.spec import TrialSpec
from milbench.trials.store import MODEL, PREDICTIONS, Result, Status, Store

OnEpoch = Callable[[int, dict[str, float | None]], None]
Files = dict[str, Callable[[Path], object]]


def run_trial(
    spec: TrialSpec,
    store: Store,
    labels: dict[str, str],
    *,
    keep_model: bool = False,
    on_epoch: OnEpoch = lambda epoch, row: None,
    body: Callable[[TrialSpec, bool, OnEpoch], tuple[Result, Files]] | None = None,
    settings: Settings | None = None,
) -> Status:
    """Run `spec` and write its result to `store`; an error becomes a result too.

    Args:
        spec: the trial.
        store: where the result goes.
        labels: names for tables.
        keep_model: also write the weights of the chosen epoch.
        on_epoch: progress.
        body: does the work instead of training and testing, as a rehearsal does.
        settings: where datasets are; what the environment says unless given.

    Returns:
        The status that was recorded.
    """
    started = time.perf_counter()
    process.settle(spec.device, spec.threads)
    reset_peak_memory(spec.device)
    files: Files = {}
    backends.forget()
    messages = _Messages()
    logging.getLogger("milbench").addHandler(messages)
    try:
        with process.kept():
            result, files = (body or partial(_run, settings=settings))(spec, keep_model, on_epoch)
    except SkipTrial as skip:
        result = Result(trial_id=spec.trial_id, spec=spec, status="skipped", reason=str(skip))
    except Exception as error:
        result = failure(
            spec, "oom" if _is_out_of_memory(error) else "failed", f"{type(error).__name__}: {error}", traceback.format_exc()
        )
    finally:
        logging.getLogger("milbench").removeHandler(messages)
    if undeclared := sorted(backends.used().keys() - spec.backends.keys()):
        messages.texts.append(
            f"uses {', '.join(undeclared)}, which its class does not name in `ops`: which backend computed it is no part of this "
            "trial's identity"
        )
    result.labels, result.messages = labels, list(dict.fromkeys([*result.messages, *messages.texts]))
    result.cost |= {"seconds": round(time.perf_counter() - started, 3), "peak_memory_bytes": peak_memory(spec.device)}
    result.provenance = provenance() | {"threads": spec.threads, "backends": backends.used()}
    store.write(result, files)
    return result.status


class _Messages(logging.Handler):
    """Keeps what a plug-in has to say during the trial, for its result and for the report."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def failure(spec: TrialSpec, status: Status, reason: str, trace: str | None = None) -> Result:
    """The result of a trial that did not end well."""
    return Result(trial_id=spec.trial_id, spec=spec, status=status, reason=reason, traceback=trace)


def _run(spec: TrialSpec, keep_model: bool, on_epoch: OnEpoch, settings: Settings | None) -> tuple[Result, Files]:
    if (here := backends.chosen(spec.backends, spec.device)) != spec.backends:
        raise MilbenchError(f"planned for the backends {spec.backends}, this process has {here}; run the suite again here")
    where = (spec.dataset, spec.encoder, spec.magnification, spec.patch_size)
    dataset = datasets.load(*where, dtype=spec.feature_dtype, settings=settings)
    if (dataset.fingerprint, dataset.split_fingerprint(spec.split)) != (spec.fingerprint, spec.split_fingerprint):
        raise MilbenchError(f"dataset {spec.dataset} changed since this trial was planned; run the suite again")
    plugins.unchanged(spec.aggregator, spec.params, spec.implementation)
    fold = dataset.folds(spec.split)[spec.fold]
    task = tasks.for_fold(dataset, fold.train)
    process.seed(derive_seed(*spec.axes, "weights"))
    model = build_model(spec, dataset, task.n_out)
    data = (spec.fingerprint, spec.feature_dtype, spec.split_fingerprint, spec.fold)
    train, val, test = fold_bags(dataset, fold, standardise=spec.standardise, device=spec.device, same=data)
    process.seed(derive_seed(*spec.axes, "training"))
    done = fit(model, train, val, task, spec.recipe, spec.axes, on_epoch)

    scores, _ = predict(model, test, task)
    metrics = {"test": _plain(task.metrics(test.samples, scores))}
    if val:
        metrics["val"] = _plain(task.metrics(val.samples, predict(model, val, task)[0]))
    result = Result(
        trial_id=spec.trial_id,
        spec=spec,
        status="ok",
        metrics=metrics,
        selected={"epoch": done.epoch, "on": done.selected_on, "epochs_run": len(done.curve)},
        curve=done.curve,
        cost={"seconds_per_step": done.seconds_per_step, "parameters": sum(p.numel() for p in model.parameters())},
    )
    files: Files = {PREDICTIONS: lambda path: predictions.write(path, _predicted(task, spec.fold, test, scores))}
    if keep_model and (state := model.state_dict()):
        # Not save_file: its own error for a full disk would pass for a fault of the trial.
        files[MODEL] = lambda path: path.write_bytes(safetensors.torch.save({k: v.contiguous().cpu() for k, v in state.items()}))
    return result, files


def build_model(spec: TrialSpec, dataset: Dataset, n_out: int) -> Aggregator:
    """Fresh weights for the trial, on its device.

    Raises:
        SkipTrial: the dataset lacks what the aggregator needs, or its parameters do not fit each other.
    """
    entry = plugins.resolve(spec.aggregator).entry
    try:
        model = entry.cls(dataset.in_dim, n_out, **spec.params)
    except ValueError as error:
        raise SkipTrial(f"{entry.label} cannot be built with these parameters: {error}") from error
    if model.needs_coords and not dataset.has_coords:
        raise SkipTrial(f"{entry.label} needs coordinates, dataset {dataset.name} has none")
    return model.to(spec.device)


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: an undefined metric is null."""
    return {k: _plain_value(v) for k, v in metrics.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain_value(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _predicted(
    task: tasks.Subtyping | tasks.Survival, fold: int, bags: Bags, scores: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """The rows of predictions.csv."""
    return [
        {"slide": s.id, "case": s.case_id, "fold": fold, "instances": bags.instances[s.id], **task.columns(s, score)}
        for s, score in zip(bags.samples, scores, strict=True)
    ]


def _is_out_of_memory(error: Exception) -> bool:
    # torch raises its own class on CUDA and a bare RuntimeError on CPU.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def reset_peak_memory(device: str) -> None:
    """Let :func:`peak_memory` start again from what is in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):  # some containers forbid it; then the mark is the process's, an upper bound
            Path("/proc/self/clear_refs").write_text("5")  # the resident high-water mark


def peak_memory(device: str) -> int | None:
    """Bytes: allocated on CUDA, resident in this process on Linux, unknown elsewhere."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


@cache
def provenance() -> dict[str, Any]:
    """Where a number comes from: code, libraries, machine."""
    home = Path(milbench.__file__).parent.parent
    git = lambda *words: subprocess.run(["git", "-C", home, *words], capture_output=True, text=True, check=False).stdout.strip()  # noqa: E731
    in_checkout = (home / ".git").exists()
    return {
        "milbench": milbench.__version__,
        "git": git("rev-parse", "--short=12", "HEAD") or None if in_checkout else None,
        "dirty": bool(git("status", "--porcelain", "--", "milbench", "registry")) if in_checkout else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
