"""Run one trial: data, model, fit, test, result. An error is recorded as a result, too."""

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from milbench import datasets, machine, plugins, process, tasks
from milbench.aggregator import Aggregator
from milbench.config import Settings
from milbench.datasets import Dataset
from milbench.errors import MilbenchError, SkipTrial
from milbench.ops import backends
from milbench.seeds import derive_seed
from milbench.training import Bags, Checkpoint, FoldStatistics, HighestTestAccuracy, fit, fold_bags, predict
from milbench.trials import predictions, unfinished
from milbench.trials.spec import TrialSpec
from milbench.trials.store import MODEL, PREDICTIONS, Result, Status, Store

log = logging.getLogger("milbench")
OnEpoch = Callable[[int, dict[str, float | None]], None]
Files = dict[str, Callable[[Path], object]]


def prepare_process(plugin_files: Sequence[str], forced: Sequence[str], memory_share: float = 1.0) -> Callable[..., Status]:
    """Make this process ready for trials; returns :func:`run_trial` with what the trials of one process share.

    Args:
        plugin_files: files that register aggregators.
        forced: backends, as `milbench run --backend` takes them.
        memory_share: how much of a GPU's memory the process may take.

    Raises:
        MilbenchError: a plug-in or a backend does not load here.
    """
    plugins.discover(plugin_files)
    backends.force(forced)
    if memory_share < 1:
        torch.cuda.set_per_process_memory_fraction(memory_share)
    return partial(run_trial, statistics=FoldStatistics())


def run_trial(
    spec: TrialSpec,
    store: Store,
    labels: dict[str, str],
    *,
    keep_model: bool = False,
    on_epoch: OnEpoch = lambda epoch, row: None,
    body: Callable[[TrialSpec, bool, OnEpoch], tuple[Result, Files]] | None = None,
    settings: Settings | None = None,
    statistics: FoldStatistics | None = None,
) -> Status:
    """Run `spec` and write its result to `store`; an error becomes a result too.

    A trial that was cut off goes on after the last epoch that it has a checkpoint of.

    Args:
        spec: the trial.
        store: where the result goes.
        labels: names for tables.
        keep_model: also write the weights of the chosen epoch.
        on_epoch: progress.
        body: does the work instead of training and testing, as a rehearsal does.
        settings: where datasets are and how often a training is kept; what the environment says unless given.
        statistics: shared by the trials of a process, so that those of one fold read its training bags once.

    Returns:
        The status that was recorded.
    """
    cost, messages = _Cost(spec.device), _Messages()
    process.settle(spec.device, spec.threads)
    files: Files = {}
    backends.forget()
    unfinished.sweep(store)
    settings = settings or Settings.from_environment()
    checkpoint = unfinished.checkpoint_of(spec, store, settings.checkpoint_seconds, {"cost": cost, "messages": messages})
    usual = partial(_run, settings=settings, statistics=statistics, checkpoint=checkpoint)
    logging.getLogger("milbench").addHandler(messages)
    try:
        with process.kept():
            result, files = (body or usual)(spec, keep_model, on_epoch)
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
            f"uses {', '.join(undeclared)}, which its class does not name in `ops`: the backend that computed it is not part of "
            "this trial's identity"
        )
    result.labels, result.messages = labels, list(dict.fromkeys([*result.messages, *messages.texts]))
    result.cost |= {"seconds": round(cost.seconds, 3), "peak_memory_bytes": cost.peak}
    ran = {"threads": spec.threads, "backends": backends.used(), "resumed": checkpoint.resumed}
    result.provenance = machine.provenance() | ran
    store.write(result, files)
    return result.status


class _Cost:
    """What a trial costs, over all attempts at it: `seconds`, and `peak`, the most memory in use, in bytes or None."""

    def __init__(self, device: str) -> None:
        self._device, self._started = device, time.perf_counter()
        self._before: dict[str, Any] = {"seconds": 0.0, "peak": None}
        machine.reset_peak_memory(device)

    @property
    def seconds(self) -> float:
        return self._before["seconds"] + time.perf_counter() - self._started

    @property
    def peak(self) -> int | None:
        return max(filter(None, (self._before["peak"], machine.peak_memory(self._device))), default=None)

    def state_dict(self) -> dict[str, Any]:
        """Also notes the peak: what the checkpoint itself needs after this is forgotten."""
        self._before["peak"] = self.peak
        return {"seconds": self.seconds, "peak": self.peak}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self._before = state


class _Messages(logging.Handler):
    """Keeps the warnings that are logged during the trial, for its result and for the report."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def state_dict(self) -> dict[str, Any]:
        return {"texts": self.texts}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.texts[:0] = state["texts"]


def failure(spec: TrialSpec, status: Status, reason: str, trace: str | None = None) -> Result:
    """The result of a trial that raised an error, or whose process ended."""
    return Result(trial_id=spec.trial_id, spec=spec, status=status, reason=reason, traceback=trace)


def _run(
    spec: TrialSpec,
    keep_model: bool,
    on_epoch: OnEpoch,
    settings: Settings,
    statistics: FoldStatistics | None,
    checkpoint: Checkpoint,
) -> tuple[Result, Files]:
    """Train and test: the usual body of a trial."""
    dataset = _planned_dataset(spec, settings)
    fold = dataset.folds(spec.split)[spec.fold]
    task = tasks.for_fold(dataset, fold.train)
    process.seed(derive_seed(*spec.axes, "weights"))
    model = build_model(spec, dataset, task.n_out)
    standardiser = None
    if spec.standardise:
        data = (spec.fingerprint, spec.feature_dtype, spec.split_fingerprint, spec.fold)
        standardiser = (statistics or FoldStatistics()).standardiser(dataset, fold, data)
    train, val, test = fold_bags(dataset, fold, standardiser=standardiser, device=spec.device)
    process.seed(derive_seed(*spec.axes, "training"))
    highest = HighestTestAccuracy(model, test, task, spec.recipe.optimistic_epochs or 0, on_epoch)
    checkpoint.parts["optimistic"] = highest
    each = highest if spec.recipe.optimistic_epochs else on_epoch
    done = fit(model, train, val, task, spec.recipe, spec.axes, each, checkpoint)

    scores, _ = predict(model, test, task)
    metrics = {"test": _plain(task.metrics(test.samples, scores))}
    if spec.recipe.optimistic_epochs:
        metrics["optimistic"] = {"accuracy": highest.value}
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
    if keep_model and (state := {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}):
        # Not save_file, whose own kind of error for a full disk would be recorded as a failure of the trial.
        files[MODEL] = lambda path: path.write_bytes(safetensors.torch.save({k: v.contiguous().cpu() for k, v in state.items()}))
    return result, files


def _planned_dataset(spec: TrialSpec, settings: Settings) -> Dataset:
    """The trial's dataset.

    Raises:
        MilbenchError: data, plug-in or backends are not those that the trial was planned with.
    """
    if (here := backends.chosen(spec.backends, spec.device)) != spec.backends:
        raise MilbenchError(f"planned for the backends {spec.backends}, this process has {here}; run the suite again here")
    where = (spec.dataset, spec.encoder, spec.magnification, spec.patch_size)
    dataset = datasets.load(*where, dtype=spec.feature_dtype, settings=settings)
    if (dataset.fingerprint, dataset.split_fingerprint(spec.split)) != (spec.fingerprint, spec.split_fingerprint):
        raise MilbenchError(f"dataset {spec.dataset} changed since this trial was planned; run the suite again")
    plugins.unchanged(spec.aggregator, spec.params, spec.implementation)
    return dataset


def build_model(spec: TrialSpec, dataset: Dataset, n_out: int) -> Aggregator:
    """Fresh weights for the trial, on its device.

    Raises:
        SkipTrial: the dataset lacks what the aggregator needs, or its parameters do not fit each other.
        MilbenchError: weights to start from that cannot be read or do not fit.
    """
    entry = plugins.resolve(spec.aggregator).entry
    try:
        model = entry.build(dataset.in_dim, n_out, spec.params)
    except ValueError as error:
        raise SkipTrial(f"{entry.label} cannot be built with these parameters: {error}") from error
    if model.needs_coords and not dataset.has_coords:
        raise SkipTrial(f"{entry.label} needs coordinates, dataset {dataset.name} has none")
    cohorts = {cohort.strip().casefold() for cohort in (spec.params.get("trained_on") or "").split("+")}
    if cohorts & {dataset.name.casefold(), dataset.label.casefold()}:
        log.warning("%s starts from weights trained on %s, so test slides may have been seen before", entry.label, dataset.label)
    return model.to(spec.device)


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: an undefined metric is null."""
    return {k: _plain_value(v) for k, v in metrics.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain_value(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _predicted(task: tasks.Task, fold: int, bags: Bags, scores: NDArray[np.float32]) -> list[dict[str, Any]]:
    """The rows of predictions.csv."""
    return [
        {"slide": s.id, "case": s.case_id, "fold": fold, "instances": bags.instances[s.id], **task.columns(s, score)}
        for s, score in zip(bags.samples, scores, strict=True)
    ]


def _is_out_of_memory(error: Exception) -> bool:
    # torch raises its own class on CUDA and a bare RuntimeError on CPU.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
