"""Results of an older schema, brought over to this one: new ids, and SHA-256 of their files.

Schema 2 added to a trial's identity the backends that decide rounding, a hash of all feature bytes, and helper modules of
outside plug-ins. What an old result does not say is looked up where the trial's data and code are; a trial for which that
cannot be done stays behind, with the reason.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from milbench import plugins
from milbench.datasets import Dataset
from milbench.errors import MilbenchError, from_validation
from milbench.files import parse_json, read_bytes, unusable, write_atomically
from milbench.ops import backends
from milbench.trials import plan as plans
from milbench.trials import predictions
from milbench.trials.plan import Cell, Plan
from milbench.trials.spec import SCHEMA, TrialSpec, id_of
from milbench.trials.store import MODEL, PREDICTIONS, TRIAL, Result, Store

OLD = 1
KEPT = f"schema-{OLD}"  # where what was there is moved to, in the same store
Load = Callable[..., Dataset]


@dataclass
class Report:
    """What was brought over, and what was not.

    Args:
        carried: old id -> new id.
        left: old id -> why it was not brought over.
        suites: plans that were brought over.
    """

    carried: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    suites: list[str] = field(default_factory=list)


def upgraded(old: Mapping[str, Any], provenance: Mapping[str, Any], load: Load) -> TrialSpec | str:
    """The spec of schema 2 for one of schema 1, or why there is none.

    Args:
        old: the spec, as the old trial.json has it.
        provenance: of the old trial; it says which backends computed.
        load: gives the datasets, as :func:`milbench.datasets.load` does.
    """
    new = {**old, "result_schema": SCHEMA}
    try:
        new["implementation"] = _implementation(old)
        new["backends"] = _backends(old, provenance)
        new["fingerprint"] = _fingerprint(old, load)
        return TrialSpec.model_validate(new)
    except ValidationError as error:
        return str(from_validation(error, "its spec"))
    except MilbenchError as error:
        return str(error)


def _implementation(old: Mapping[str, Any]) -> str:
    """A built-in keeps its implementation; an outside plug-in, known by a hash of one file, gets the hash of all its files."""
    then = str(old["implementation"])
    code, plus, weights = then.partition("+")
    name, _, digest = code.partition("@")
    if not digest.startswith("sha256:"):
        return then
    try:
        entry = plugins.resolve(name).entry
    except MilbenchError as error:
        raise MilbenchError(f"the plug-in of {name} is not here; give it with --plugin FILE.py") from error
    if entry.source is None or digest.removeprefix("sha256:") not in {said[:16] for said in entry.source.files.values()}:
        raise MilbenchError(f"the plug-in of {name} is not the one that the trial ran ({then}); run it again")
    return entry.implementation + plus + weights


def _backends(old: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, str]:
    """What computed the operations that the aggregator's class names; for those never called, what would compute them here."""
    called = provenance.get("backends") or {}
    ops = sorted(plugins.resolve(str(old["aggregator"])).entry.cls.ops)
    return {op: called.get(op) or backends.chosen([op], str(old["device"]))[op] for op in ops}


def _fingerprint(old: Mapping[str, Any], load: Load) -> str:
    """The fingerprint of the dataset, whose files must be here and be those of the trial."""
    where = [old[key] for key in ("dataset", "encoder", "magnification", "patch_size")]
    try:
        dataset = load(*where, dtype=old["feature_dtype"])
    except MilbenchError as error:
        raise MilbenchError(f"dataset {where[0]} cannot be read: {error}") from error
    if old["fingerprint"] not in (dataset.fingerprint, dataset.former_fingerprint):
        raise MilbenchError(f"dataset {where[0]} is not the one that the trial was trained on; run it again")
    if old["split"] not in dataset.splits or dataset.split_fingerprint(old["split"]) != old["split_fingerprint"]:
        raise MilbenchError(f"split {old['split']} of dataset {where[0]} is not the one that the trial used; run it again")
    return dataset.fingerprint


def migrate(
    source: Store,
    target: Store,
    load: Load,
    *,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Bring the trials and plans of schema 1 over.

    Files are linked where the disk can, else copied. Within one store, what was there is moved to its folder `schema-1`, which is
    a store again: what stays behind can be brought over from there once its data and code are here. Interrupted, it goes on.

    Args:
        source: holds trials of schema 1.
        target: where they go; may be the same.
        load: gives the datasets.
        dry_run: report what would be done, and write nothing.
        progress: called with how many trials of how many were read.

    Raises:
        MilbenchError: the store is a rehearsal's, or cannot be read or written.
    """
    plans.refuse_rehearsal(source)
    plans.refuse_rehearsal(target)
    report, specs, old_specs = Report(), dict[str, TrialSpec](), dict[str, dict[str, Any]]()
    ids = [trial_id for trial_id in source.ids() if _schema(source.folder(trial_id) / TRIAL) == OLD]
    load = _remembering(load)
    for done, trial_id in enumerate(ids):
        progress(done, len(ids))
        try:
            old = _read(source, trial_id)
            new = upgraded(old["spec"], old["provenance"], load)
            if isinstance(new, str):
                raise MilbenchError(new)
            _result(old, new)
        except MilbenchError as error:
            report.left[trial_id] = str(error)
            continue
        specs[trial_id], old_specs[trial_id], report.carried[trial_id] = new, old["spec"], new.trial_id
        if not dry_run:
            _carry(source, target, old, new)
    progress(len(ids), len(ids))
    for path in sorted((source.root / "suites").glob("*.json")):
        if _schema(path) == OLD:
            plan = _plan(path)
            report.suites.append(plan.suite)
            if not dry_run:
                _put_plan(source, target, path, plan, specs, old_specs)
    if not dry_run:
        _finish(source, target, [*report.carried, *report.left])
    return report


def _schema(path: Path) -> Any:
    data = read_bytes(path)
    content = parse_json(data, path, "move it away") if data is not None else None
    return content.get("schema") if isinstance(content, dict) else None


def _read(source: Store, trial_id: str) -> dict[str, Any]:
    """An old trial.json, checked as far as it can be.

    Raises:
        MilbenchError: it is not what its folder's name says, or its predictions give other metrics.
    """
    folder = source.folder(trial_id)
    content = parse_json(read_bytes(folder / TRIAL) or b"", folder / TRIAL, "run it again")
    lacking = {"trial_id", "status", "spec", "metrics", "provenance"} - content.keys()
    if lacking or not all(isinstance(content[key], dict) for key in ("spec", "metrics", "provenance")):
        raise MilbenchError(f"its trial.json is broken ({min(lacking, default='a value of another type')}); run it again")
    if not content["trial_id"] == trial_id == id_of(content["spec"]):
        raise MilbenchError("its folder's name is not the hash of its spec; run it again")
    if content["status"] == "ok":
        try:
            columns = predictions.parsed(folder / PREDICTIONS, apostrophes=False)
            wrong = predictions.disagreement(columns, content)
        except (OSError, LookupError, ValueError, OverflowError) as error:
            raise MilbenchError(f"its predictions cannot be read ({error!s:.80}); run it again") from error
        if wrong:
            raise MilbenchError(f"its predictions disagree with its trial.json ({wrong}); run it again")
    return content


def _result(old: Mapping[str, Any], spec: TrialSpec) -> Result:
    """The new trial.json, without the hashes of files, which the store adds."""
    origin = {"migrated": f"migrated from schema {OLD}", "former_trial_id": old["trial_id"]}
    new = {**old, "schema": SCHEMA, "trial_id": spec.trial_id, "spec": spec.model_dump(mode="json")}
    try:
        return Result.model_validate({**new, "provenance": {**old["provenance"], **origin}})
    except ValidationError as error:
        raise MilbenchError(f"{from_validation(error, 'its trial.json')}; run it again") from error


def _carry(source: Store, target: Store, old: Mapping[str, Any], spec: TrialSpec) -> None:
    folder = source.folder(old["trial_id"])
    files: dict[str, Callable[[Path], None]] = {}
    if (folder / PREDICTIONS).is_file():
        files[PREDICTIONS] = lambda path: predictions.escaped(folder / PREDICTIONS, path)
    if (folder / MODEL).is_file():
        files[MODEL] = lambda path: _link(folder / MODEL, path)
    target.write(_result(old, spec), files)


def _link(old: Path, new: Path) -> None:
    """The same file under another name, where the disk can do that."""
    try:
        new.hardlink_to(old)
    except OSError:
        shutil.copyfile(old, new)


def _plan(path: Path) -> Plan:
    content = parse_json(read_bytes(path) or b"", path, "move it away")
    try:
        return Plan.model_validate({**content, "schema": SCHEMA})
    except ValidationError as error:
        raise MilbenchError(f"{from_validation(error, path)}; move it away") from error


def _renamed(plan: Plan, specs: Mapping[str, TrialSpec], old_specs: Mapping[str, dict[str, Any]]) -> Plan:
    """The plan with new ids. A trial that stays behind keeps its old id, which nothing has: it is still to run."""
    contexts: dict[str, str] = {}
    for cell in plan.cells:
        if cell.trial_id in specs and cell.context not in contexts:
            contexts[cell.context] = _context(plan, cell, specs[cell.trial_id], old_specs[cell.trial_id])
    cells = []
    for cell in plan.cells:
        new_id = specs[cell.trial_id].trial_id if cell.trial_id in specs else cell.trial_id
        cells.append(replace(cell, trial_id=new_id, context=contexts.get(cell.context, cell.context)))
    return plan.model_copy(update={"cells": cells})


def _context(plan: Plan, cell: Cell, spec: TrialSpec, old: Mapping[str, Any]) -> str:
    """The context as a new run would write it, from the recipe that gives the old one; where none does, the old one stays.

    A run that asks for more of the suite keeps the cells of its own context only.
    """
    recipe = dict(plan.definition.get("recipe", {}))
    on_dataset = recipe.pop("on", {}).get(cell.dataset, {})
    search = {"search": plan.definition["search"]} if plan.definition.get("search") else {}
    epochs = {"max_epochs": old["recipe"]["max_epochs"]}
    for base in (recipe, *({"name": name} for name in ("paper", "official", "classic"))):
        for more in ({}, epochs):
            asked = {**base, **more, **on_dataset, **(more if on_dataset else {}), **search}
            if _old_context(old, asked) == cell.context:
                return spec.context(asked)
    return cell.context


def _old_context(old: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    apart = ("aggregator", "params", "implementation", "fold", "seed", "recipe")
    shared = {key: value for key, value in old.items() if key not in apart}
    return hashlib.sha256(json.dumps([shared, recipe], sort_keys=True).encode()).hexdigest()[:12]


def _put_plan(
    source: Store, target: Store, path: Path, plan: Plan, specs: Mapping[str, TrialSpec], old_specs: Mapping[str, dict[str, Any]]
) -> None:
    """Write the plan; one that is there already keeps its cells, and those that name old trials get their new ids."""
    where = plans.path_of(target, path.stem)
    if source.root == target.root:
        write_atomically(source.root / KEPT / "suites" / path.name, path.read_text())
    elif where.exists():
        plan = plans.read(target, path.stem)
    plans.write(where, _renamed(plan, specs, old_specs))


def _remembering(load: Load) -> Load:
    """Each dataset once, also one that cannot be loaded."""
    known: dict[tuple[Any, ...], Dataset | MilbenchError] = {}

    def load_once(*where: Any, dtype: str) -> Dataset:
        if (*where, dtype) not in known:
            try:
                known[*where, dtype] = load(*where, dtype=dtype)
            except MilbenchError as error:
                known[*where, dtype] = error
        dataset = known[*where, dtype]
        if isinstance(dataset, MilbenchError):
            raise dataset
        return dataset

    return load_once


def _finish(source: Store, target: Store, ids: list[str]) -> None:
    """Within one store, move the old trials away; into another store, copy splits and analyses, too."""
    try:
        if source.root == target.root:
            kept = source.root / KEPT / "trials"
            kept.mkdir(parents=True, exist_ok=True)
            for trial_id in ids:
                shutil.rmtree(kept / trial_id, ignore_errors=True)
                source.folder(trial_id).rename(kept / trial_id)
            return
        for name in ("splits", "analysis"):
            if (source.root / name).is_dir():
                shutil.copytree(source.root / name, target.root / name, dirs_exist_ok=True, symlinks=True)
    except OSError as error:
        raise unusable(error.filename or source.root, error) from error
