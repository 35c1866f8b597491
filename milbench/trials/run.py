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

from milbench import datasets, machine, plugins, process, tasks
from milbench.aggregator import Aggregator
from milbench.config import Settings
from milbench.datasets import Dataset
from milbench.errors import MilbenchError, SkipTrial
from milbench.ops import backends
from milbench.seeds import derive_seed
from milbench.training import Bags, FoldStatistics, HighestTestAccuracy, fit, fold_bags, predict
from milbench.trials import predictions
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

    Args:
        spec: the trial.
        store: where the result goes.
        labels: names for tables.
        keep_model: also write the weights of the chosen epoch.
        on_epoch: progress.
        body: does the work instead of training and testing, as a rehearsal does.
        settings: where datasets are; what the environment says unless given.
        statistics: shared by the trials of a process, so that those of one fold read its training bags once.

    Returns:
        The status that was recorded.
    """
    started = time.perf_counter()
    process.settle(spec.device, spec.threads)
    machine.reset_peak_memory(spec.device)
    files: Files = {}
    backends.forget()
    messages = _Messages()
    logging.getLogger("milbench").addHandler(messages)
    try:
        with process.kept():
            result, files = (body or partial(_run, settings=settings, statistics=statistics))(spec, keep_model, on_epoch)
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
    result.cost |= {"seconds": round(time.perf_counter() - started, 3), "peak_memory_bytes": machine.peak_memory(spec.device)}
    result.provenance = machine.provenance() | {"threads": spec.threads, "backends": backends.used()}
    store.write(result, files)
    return result.status


class _Messages(logging.Handler):
    """Keeps the warnings that are logged during the trial, for its result and for the report."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def failure(spec: TrialSpec, status: Status, reason: str, trace: str | None = None) -> Result:
    """The result of a trial that raised an error, or whose process ended."""
    return Result(trial_id=spec.trial_id, spec=spec, status=status, reason=reason, traceback=trace)


def _run(
    spec: TrialSpec, keep_model: bool, on_epoch: OnEpoch, settings: Settings | None, statistics: FoldStatistics | None
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
    done = fit(model, train, val, task, spec.recipe, spec.axes, highest if spec.recipe.optimistic_epochs else on_epoch)

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
    if keep_model and (state := model.state_dict()):
        # Not save_file, whose own kind of error for a full disk would be recorded as a failure of the trial.
        files[MODEL] = lambda path: path.write_bytes(safetensors.torch.save({k: v.contiguous().cpu() for k, v in state.items()}))
    return result, files


def _planned_dataset(spec: TrialSpec, settings: Settings | None) -> Dataset:
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
