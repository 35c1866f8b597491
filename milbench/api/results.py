"""Stored results: how far each suite is, one row for each trial or prediction, and trials by short names. Needs no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milbench import claims
from milbench.config import Settings
from milbench.errors import MilbenchError, few
from milbench.spelling import canonical
from milbench.trials import plan as plans
from milbench.trials.audit import audit
from milbench.trials.definition import leaves
from milbench.trials.plan import Cell, Plan
from milbench.trials.store import Store

if TYPE_CHECKING:
    from pandas import DataFrame

    from milbench.trials.exchange import Merged
    from milbench.trials.migrate import Report as Migrated

HEADLINE = ("macro_auc", "c_index")  # the test metric that stands for a trial in one line: of subtyping, of survival


def suite_name(suite: str | Path) -> str:
    """The name under which results of a suite are kept: of a file `folder/mine.toml` it is `mine`."""
    text = str(suite)
    return Path(text).stem if text.endswith(".toml") else text


def store_of(results: str | Path | None) -> Store:
    """The results store in a folder; the one that the environment names unless given."""
    return Store(Settings.from_environment(results=results).results)


def suites_run(results: str | Path | None = None) -> list[str]:
    """The suites that were run into a results folder.

    Raises:
        MilbenchError: there are none, or the folder is a rehearsal's.
    """
    return plans.chosen(store_of(results), None)


class _Tested(Mapping[str, Any]):
    """The metrics of the test part, read when they are looked at.

    Args:
        result: trial.json.
    """

    __slots__ = ("_result",)

    def __init__(self, result: Mapping[str, Any]) -> None:
        self._result = result

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[type[dict], tuple[dict[str, Any]]]:
        return dict, (dict(self),)

    def __getitem__(self, key: str) -> Any:
        return self._result["metrics"].get("test", {})[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._result["metrics"].get("test", {}))

    def __len__(self) -> int:
        return len(self._result["metrics"].get("test", {}))


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial and how it ended.

    Args:
        cell: its place: trial_id, aggregator, label, dataset, encoder, magnification, patch_size, split, fold, seed, draw.
        status: "ok", "failed", "oom", "skipped", or "pending" where it has no result yet.
        reason: why there is no number; empty where there is one.
        metrics: of the test part.
    """

    cell: Cell
    status: str
    reason: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, cell: Cell, result: Mapping[str, Any] | None) -> Trial:
        """From trial.json, or from None where there is no result."""
        if result is None:
            return cls(cell, "pending")
        status = result["status"]
        return cls(cell, status, "" if status == "ok" else result["reason"] or "", _Tested(result))

    @property
    def trial_id(self) -> str:
        """16 digits of 0-9 and a-f: the hash of everything that decides its numbers."""
        return self.cell.trial_id

    @property
    def name(self) -> str:
        """What to write for it on the command line, where its dataset and encoder are clear: `abmil:fold0:seed1`."""
        return ":".join([self.cell.aggregator, f"fold{self.cell.fold}", f"seed{self.cell.seed}"])

    @property
    def column(self) -> str:
        """What its numbers are measured on: `bracs · uni · 20x · official`."""
        return column(*self.cell.column)

    @property
    def headline(self) -> tuple[str, float | None] | None:
        """The metric that stands for the trial in one line, with its value (None where it is undefined)."""
        return next(((name, self.metrics[name]) for name in HEADLINE if name in self.metrics), None)


def column(dataset: object, encoder: object, magnification: object, patch_size: object, split: object) -> str:
    """What numbers are measured on, in one line; parts that are None are left out."""
    parts = [dataset, encoder, f"{magnification}x" if magnification else "", f"{patch_size} px" if patch_size else "", split]
    return " · ".join(str(part) for part in parts if part)


@dataclass(frozen=True)
class Results:
    """What a run left behind.

    Args:
        suite: the name under which reports find it.
        results: the folder that holds the results.
        trials: every trial that was asked for, as it stands now.
        ran: how many of them were run just now; the others had a result.
    """

    suite: str
    results: Path
    trials: tuple[Trial, ...] = field(repr=False)
    ran: int

    @property
    def failed(self) -> list[Trial]:
        """Trials that raised an error or ran out of memory; `reason` says why. `run(..., retry_failed=True)` runs them again."""
        return [trial for trial in self.trials if trial.status in ("failed", "oom")]

    @property
    def pending(self) -> list[Trial]:
        """Trials that have no result; the same call runs them."""
        return [trial for trial in self.trials if trial.status == "pending"]

    @property
    def counts(self) -> dict[str, int]:
        """Status -> number of trials."""
        return dict(sorted(Counter(trial.status for trial in self.trials).items()))

    def folder(self, trial: Trial) -> Path:
        """Where a trial's files are: trial.json, predictions.csv, and model.safetensors where its weights are kept."""
        return Store(self.results).folder(trial.trial_id)

    def frame(self) -> DataFrame:
        """One row for each trial, as :func:`load_results` gives it."""
        return _frame(Store(self.results), [trial.cell for trial in self.trials])

    def predictions(self) -> DataFrame:
        """One row for each test case of each trial, as :func:`load_predictions` gives it."""
        return _predictions(Store(self.results), [trial.cell for trial in self.trials])


@dataclass(frozen=True)
class Status:
    """How far suites are.

    Args:
        suites: one entry for each: trials, and how many are ok, failed, oom, skipped, pending and not here.
        not_ok: one entry for each trial that failed or was skipped, with the reason.
        not_here: one entry for each dataset, encoder, magnification, patch size and split whose features are not here.
        running: how many trials somebody works on now, here or on another machine.
    """

    suites: list[dict[str, Any]]
    not_ok: list[dict[str, Any]]
    not_here: list[dict[str, Any]]
    running: int = 0

    def frame(self) -> DataFrame:
        """One row for each suite."""
        import pandas as pd

        return pd.DataFrame(self.suites)


def status(suite: str | Path | None = None, *, results: str | Path | None = None) -> Status:
    """How far every suite is, and what went wrong.

    Args:
        suite: its name or TOML file; every suite that was run unless given.
        results: the results folder. [default: MILBENCH_RESULTS, or results]

    Raises:
        MilbenchError: nothing was run into that folder, or a result cannot be read.
    """
    store = store_of(results)
    so_far = Status([], [], [])
    grids: list[Plan] = []
    waiting: set[str] = set()
    for name in plans.chosen(store, suite_name(suite) if suite else None):
        grids += (of_suite := leaves(store, name))
        cells = {cell.place: cell for leaf in of_suite for cell in leaf.cells}.values()
        trials = list(_trials(store, {cell.trial_id: cell for cell in cells if not cell.missing}.values()))
        count = Counter(trial.status for trial in trials)
        counts = {state: count[state] for state in ("ok", "failed", "oom", "skipped", "pending")}
        waiting |= {trial.trial_id for trial in trials if trial.status != "ok"}
        missing = sum(bool(cell.missing) for cell in cells)
        so_far.suites.append({"suite": name, "trials": len(trials), **counts, "not_here": missing})
        so_far.not_ok.extend(_trouble(name, trial) for trial in trials if trial.status in ("failed", "oom", "skipped"))
    so_far.not_here.extend(not_here(grids))
    claimed = {path.name for path in store.claims.glob("[0-9a-f]*")} & waiting
    return replace(so_far, running=sum(claims.alive(store.claims / trial_id) for trial_id in claimed))


def _trouble(suite: str, trial: Trial) -> dict[str, Any]:
    place = {key: getattr(trial.cell, key) for key in ("aggregator", "dataset", "encoder", "fold", "seed", "trial_id")}
    return {"suite": suite, **place, "status": trial.status, "reason": trial.reason}


def not_here(grids: Iterable[Plan]) -> list[dict[str, Any]]:
    """One entry for each dataset, encoder, magnification, patch size and split that the plans ask for and that is not here."""
    cells = {cell.place: cell for plan in grids for cell in plan.cells if cell.missing}.values()
    keys = ("dataset", "encoder", "magnification", "patch_size", "split")
    trials = Counter(cell.column for cell in cells)
    reasons = {cell.column: cell.missing for cell in cells}
    return [{**dict(zip(keys, place, strict=True)), "trials": trials[place], "reason": why} for place, why in reasons.items()]


def trials(suite: str | Path | None = None, *, results: str | Path | None = None) -> list[Trial]:
    """Every trial, in the order of the suites' tables; then those of the store that no suite lists.

    Args:
        suite: only the trials of this suite: its name or TOML file.
        results: the results folder. [default: MILBENCH_RESULTS, or results]

    Raises:
        MilbenchError: nothing was run into that folder, or a result cannot be read.
    """
    store = store_of(results)
    return list(_trials(store, _cells(store, suite)))


def find_trial(selector: str, *, suite: str | Path | None = None, results: str | Path | None = None) -> Trial:
    """The one trial that a short text means.

    Args:
        selector: a trial's id or how it begins; or `aggregator:fold0:seed1`, with further parts where that is not enough: a
            dataset, encoder, split, `20x`, `256px` or `draw3`, each after a colon, in any order after the aggregator.
        suite: look among the trials of this suite only.
        results: the results folder. [default: MILBENCH_RESULTS, or results]

    Raises:
        MilbenchError: no trial, or several; the candidates are listed.
    """
    store = store_of(results)
    ids = store.ids()
    if selector in ids:  # the usual case of a script: no plan has to be read
        return next(_trials(store, _strays(store, [selector])))
    cells = _cells(store, suite)
    begin = [cell for cell in cells if re.fullmatch("[0-9a-f]*", selector) and cell.trial_id.startswith(selector)]
    matching = begin or [cell for cell in cells if _matches(selector, cell)]
    if len(matching) == 1:
        return next(_trials(store, matching))
    if not matching:
        near = [cell for cell in cells if _matches(selector.partition(":")[0], cell)] or cells
        raise MilbenchError(
            f"{store.trials}: no trial begins with {selector!r:.80}, and none is named so; write the start of an id, or "
            f"aggregator:fold0:seed0. There are {_candidates(near)}"
        )
    raise MilbenchError(
        f"{store.trials}: several trials {'begin with' if begin else 'are'} {selector!r:.80}; add what tells them apart "
        f"(fold, seed, dataset, encoder): {_candidates(matching)}"
    )


def _matches(selector: str, cell: Cell) -> bool:
    """Whether every part of `aggregator:part:part` is true of the trial."""
    method, *parts = re.split(r":(?![^\[]*\])", selector)
    known = {f"fold{cell.fold}", f"seed{cell.seed}", f"draw{cell.draw}", cell.dataset, cell.encoder, cell.split}
    known |= {f"{cell.magnification}x", f"{cell.patch_size}px"}
    return bool(method) and (method == cell.label or canonical(method) == canonical(cell.aggregator)) and known.issuperset(parts)


def _candidates(cells: Sequence[Cell]) -> str:
    """Names that tell the trials apart, with their ids."""
    several = len({cell.column for cell in cells}) > 1
    names = (
        ":".join([Trial(cell, "").name, *([cell.dataset, cell.encoder, cell.split] if several else [])])
        + f" ({cell.trial_id[:8]})"
        for cell in cells
    )
    return few(names, 6) or "none"


def _cells(store: Store, suite: str | Path | None) -> list[Cell]:
    """The places of the trials of a suite; or of all suites, and of the trials that no suite lists."""
    if suite:
        cells = [cell for plan in leaves(store, suite_name(suite)) for cell in plan.cells]
        return list({cell.trial_id: cell for cell in cells if cell.trial_id}.values())
    plans.refuse_rehearsal(store)
    ids, names = store.ids(), plans.names(store)
    if not (ids or names):
        return [cell for name in plans.chosen(store, None) for cell in _cells(store, name)]  # says that there is nothing yet
    listed = {cell.trial_id: cell for name in names for cell in _cells(store, name)}
    return [*listed.values(), *_strays(store, [trial_id for trial_id in ids if trial_id not in listed])]


def _strays(store: Store, ids: Iterable[str]) -> Iterator[Cell]:
    """The places of trials as their results say it, which know no suite."""
    for trial_id in ids:
        if (result := store.known(trial_id)) is None:
            continue
        spec, labels = result["spec"], result["labels"]
        place = {key: spec[key] for key in ("dataset", "encoder", "magnification", "patch_size", "split", "fold", "seed")}
        label, dataset = labels.get("aggregator", spec["aggregator"]), labels.get("dataset", spec["dataset"])
        yield Cell(
            trial_id=trial_id, context="", aggregator=spec["aggregator"], label=label, dataset_label=dataset, **place
        )  # fmt: skip


def _trials(store: Store, cells: Iterable[Cell]) -> Iterator[Trial]:
    return (Trial.of(cell, store.known(cell.trial_id)) for cell in cells)


def as_row(trial: Trial) -> dict[str, Any]:
    """A trial as plain data: its id, place, status, reason and test metrics."""
    place = {key: getattr(trial.cell, key) for key in _PLACE}
    return {"trial_id": trial.trial_id, **place, "status": trial.status, "reason": trial.reason, "metrics": dict(trial.metrics)}


def load_results(path: str | Path | None = None, suite: str | Path | None = None) -> DataFrame:
    """Results as a table: one row for each trial.

    Args:
        path: the results folder. [default: MILBENCH_RESULTS, or results]
        suite: only the trials of this suite: its name or TOML file.

    Returns:
        Columns trial_id, status ("ok", "failed", "oom", "skipped", "pending"), reason, aggregator, label; everything that
        identifies the trial (dataset, encoder, split, fold, seed, ..., `params.NAME`, `recipe.NAME`); test metrics by their names
        (macro_auc, c_index, ...), those of the validation part as `val_NAME`; epoch, seconds, peak_memory_bytes, parameters.
        What does not apply to a trial is missing.

    Raises:
        MilbenchError: nothing was run into that folder, or a result cannot be read.

    Examples:
        >>> load_results("nowhere")
        Traceback (most recent call last):
        ...
        milbench.errors.NothingYet: nothing was run into nowhere yet; start with: milbench run --suite quickstart
    """
    store = store_of(path)
    return _frame(store, _cells(store, suite))


def _frame(store: Store, cells: Iterable[Cell]) -> DataFrame:
    import pandas as pd

    return pd.DataFrame([_row(cell, store.known(cell.trial_id)) for cell in cells])


_PLACE = (
    "aggregator", "label", "dataset", "encoder", "magnification", "patch_size", "split", "fold", "seed", "draw",
)  # fmt: skip


def _row(cell: Cell, result: Mapping[str, Any] | None) -> dict[str, Any]:
    place = {key: getattr(cell, key) for key in _PLACE}
    if result is None:
        return {"trial_id": cell.trial_id, "status": "pending", "reason": None, **place}
    spec = dict(_flat({key: value for key, value in result["spec"].items() if key not in _PLACE}))
    test, val = (result["metrics"].get(part, {}) for part in ("test", "val"))
    cost = {key: result["cost"].get(key) for key in ("seconds", "peak_memory_bytes", "parameters")}
    return {
        "trial_id": cell.trial_id,
        "status": result["status"],
        "reason": result["reason"],
        **place,
        **spec,
        **test,
        **{f"val_{key}": value for key, value in val.items()},
        "epoch": result["selected"].get("epoch"),
        **cost,
    }


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`{"recipe": {"lr": 1}}` as `recipe.lr`, 1."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", item) for inner, item in value.items())
        else:
            yield key, value


def load_predictions(
    source: Results | str | Path | None = None, suite: str | Path | None = None, *, trial: str | None = None
) -> DataFrame:
    """Predictions as a table: one row for each test case of each finished trial.

    Every file is checked against its trial.json first: its hash, and the metrics that come out of it.

    Args:
        source: what :func:`milbench.run` returned, or the results folder. [default: MILBENCH_RESULTS, or results]
        suite: only the trials of this suite: its name or TOML file.
        trial: only this trial, as :func:`find_trial` takes it: `abmil:fold0:seed1`, or the start of an id.

    Returns:
        Columns trial_id, aggregator, label, dataset, encoder, magnification, patch_size, split, fold, seed, draw; slide, case,
        instances (size of the bag); target (class index) with p0, p1, ... (probability of each class), or time, event and risk.

    Raises:
        MilbenchError: nothing was run, no such trial, or a file is missing or is not the one that the trial wrote.
    """
    results = source.results if isinstance(source, Results) else source
    store = store_of(results)
    if trial is not None:
        return _predictions(store, [find_trial(trial, suite=suite, results=results).cell])
    if isinstance(source, Results) and suite is None:
        return source.predictions()
    return _predictions(store, _cells(store, suite))


def _predictions(store: Store, cells: Iterable[Cell]) -> DataFrame:
    import pandas as pd

    from milbench.trials import predictions

    tables = []
    for cell in cells:
        result = store.known(cell.trial_id)
        if result is None or result["status"] != "ok":
            continue
        columns = predictions.read(store, result)
        score = columns.pop("score", None)  # (n, C)
        classes = {} if score is None else {f"p{c}": score[:, c] for c in range(score.shape[1])}
        place = {key: getattr(cell, key) for key in _PLACE}
        tables.append(pd.DataFrame({"trial_id": cell.trial_id, **place, **columns, **classes}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def check_results(
    results: str | Path | None = None, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[int, dict[str, str]]:
    """Is every trial what it says? Ids, SHA-256 of files, and all metrics computed again from the predictions.

    Returns:
        The number of trials, and of each bad one its id with what is wrong.
    """
    store = store_of(results)
    wrong = audit(store, progress)
    return len(store.ids()), wrong


def pack_results(
    results: str | Path | None = None, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[int, dict[str, str]]:
    """Move finished trials without weights into at most 256 files; everything reads them there as in their folders.

    Returns:
        How many were packed, and of each that is damaged its id with what is wrong; those stay where they are.

    Raises:
        MilbenchError: a file of packed trials is damaged, or cannot be written.
    """
    from milbench.trials.shelves import pack

    packed, wrong = pack(store_of(results), progress)
    return len(packed), wrong


def migrate_results(
    results: str | Path | None = None,
    *,
    to: str | Path | None = None,
    dry_run: bool = False,
    data: str | Path | None = None,
    plugin: Iterable[str | Path] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Migrated:
    """Bring results of schema 1 over to this version; see `milbench results migrate`.

    Args:
        results: the folder with old results. to: another folder to write to; the same unless given.
        dry_run: write nothing.
        data: folder of the datasets, which tell whether features are still what they were.
        plugin: files that register the aggregators of old trials.
        progress: called with the number of trials looked at, and of all.
    """
    from functools import partial

    from milbench import datasets, plugins  # with torch, which no other function here needs
    from milbench.trials.migrate import migrate

    plugins.discover(plugin)
    settings = Settings.from_environment(data=data, results=results)
    load = partial(datasets.load, settings=settings)
    return migrate(Store(settings.results), store_of(to or settings.results), load, dry_run=dry_run, progress=progress)


def export_results(
    path: str | Path, suite: str | Path | None = None, *, results: str | Path | None = None, weights: bool = False
) -> int:
    """Write trials to one archive with checksums, for a colleague, a reviewer or another machine.

    Args:
        path: the archive, such as `bracs.tar.xz`.
        suite: only this suite, with what it includes: its name or TOML file; all that were run unless given.
        results: the results folder. [default: MILBENCH_RESULTS, or results]
        weights: with the weights that were kept.

    Returns:
        The number of trials.

    Raises:
        MilbenchError: nothing was run into that folder, a trial is not what it says, or the archive cannot be written.
    """
    from milbench.trials import exchange

    store = store_of(results)
    named = plans.chosen(store, suite_name(suite) if suite else None)
    every = dict.fromkeys([*named, *(leaf.suite for name in named for leaf in leaves(store, name))])
    return exchange.export(store, Path(path), every, weights=weights)


def merge_results(source: str | Path, *, results: str | Path | None = None) -> Merged:
    """Bring trials from an archive, or from another results folder, into this one.

    Args:
        source: what :func:`export_results` wrote, or a results folder.
        results: the results folder. [default: MILBENCH_RESULTS, or results]

    Returns:
        What was added and replaced; and conflicts, which are left alone.

    Raises:
        MilbenchError: the source is none, is damaged, or one of both is a rehearsal's.
    """
    from milbench.trials import exchange

    source, target = Path(source), store_of(results)
    if not source.is_dir():
        return exchange.from_archive(source, target)
    if not any((source / part).is_dir() for part in ("trials", "suites")):
        raise MilbenchError(f"{source}: is no results folder; it has neither trials nor suites")
    return exchange.merge(Store(source), target)


def left_behind(results: str | Path) -> Path:
    """Where :func:`migrate_results` keeps what it could not bring over, to be tried again."""
    from milbench.trials.migrate import KEPT

    return Path(results) / KEPT
