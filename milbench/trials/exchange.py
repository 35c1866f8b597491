"""Results from one folder to another: an archive with checksums, and the merging of two folders. Needs no torch.

A trial is the same in two folders when its predictions have the same bytes, or when it failed in both. A finished trial takes
the place of a failed one. Two finished trials of one id with other predictions are a conflict: it is told, and nothing is
overwritten.
"""

import hashlib
import io
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milbench.errors import MilbenchError, Unwritable
from milbench.files import read_bytes, regular, replacing
from milbench.names import TRIAL_ID
from milbench.trials import plan as plans
from milbench.trials.plan import Plan
from milbench.trials.store import MODEL, PREDICTIONS, TRIAL, Store

SUMS = "SHA256SUMS"
_TRIAL_FILES = "|".join(map(re.escape, (TRIAL, PREDICTIONS, MODEL)))
_MEMBER = re.compile(rf"trials/{TRIAL_ID.strip('^$')}/({_TRIAL_FILES})|suites/[^/\\]+\.json|splits/[^/\\]+\.csv|{SUMS}", re.ASCII)
_MOST = 1 << 31  # bytes of one file of an archive


@dataclass
class Merged:
    """What became of the trials of another folder.

    Args:
        added: were not here. replaced: had failed here, and finished there.
        same: were here already.
        conflicts: finished in both with other predictions, or cannot be read; each with the reason. They are as they were.
        suites: whose plans list more trials now.
    """

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    conflicts: dict[str, str] = field(default_factory=dict)
    suites: list[str] = field(default_factory=list)


def export(store: Store, path: Path, suites: Iterable[str], *, weights: bool = False) -> int:
    """Write one archive (tar, packed with xz) with the trials, plans and splits of some suites, and a SHA-256 of each file.

    Args:
        store: where they are.
        path: the archive; the same trials give the same bytes.
        suites: their names.
        weights: with model.safetensors, where trials kept it.

    Returns:
        The number of trials.

    Raises:
        MilbenchError: a trial is not what it says, or the archive cannot be written.
    """
    names = list(suites)
    ids = {cell.trial_id for name in names for cell in plans.read(store, name).cells} & set(store.ids())
    sums = ""
    with replacing(path) as temporary, tarfile.open(temporary, "w:xz", format=tarfile.PAX_FORMAT) as archive:
        for name, data in _members(store, names, sorted(ids), weights=weights):
            _add(archive, name, data)
            sums += f"{hashlib.sha256(data).hexdigest()}  {name}\n"
        _add(archive, SUMS, sums.encode())
    return len(ids)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # of no owner and no time
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))


def _members(store: Store, suites: list[str], ids: list[str], *, weights: bool) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, one after the other."""
    for split in sorted((store.root / "splits").glob("*.csv")):
        yield f"splits/{split.name}", split.read_bytes()
    for name in sorted(suites):
        yield f"suites/{name}.json", read_bytes(plans.path_of(store, name)) or b""
    for trial_id in ids:
        yield from ((f"trials/{trial_id}/{name}", data) for name, data in _files(store, trial_id, weights=weights))


def _files(store: Store, trial_id: str, *, weights: bool) -> Iterator[tuple[str, bytes]]:
    """The files of a trial, each checked; a trial.json without weights does not name them."""
    content = store.raw(trial_id)
    if content is None:
        return
    if MODEL in content["sha256"] and not weights:
        del content["sha256"][MODEL]
    yield TRIAL, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
    for name in sorted(content["sha256"]):
        yield name, store.verified(content, name).read_bytes()


def unpacked(path: Path, folder: Path) -> Store:
    """The results in an archive, written to an empty folder.

    Raises:
        MilbenchError: it is no such archive, a file is not the one that was exported, or it cannot be written out.
    """
    try:
        regular(path)
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                data = archive.extractfile(member) if _MEMBER.fullmatch(member.name) and member.isfile() else None
                if data is None or member.size > _MOST:
                    raise MilbenchError(f"{path}: {member.name!r:.80} is no file of an archive of results")
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as out:
                    shutil.copyfileobj(data, out)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise MilbenchError(f"{path}: is no archive that milbench results export wrote, or is damaged: {error}") from error
    except OSError as error:
        raise MilbenchError(f"{path}: {error.strerror or error}") from error
    _check_sums(path, folder)
    return Store(folder)


def _check_sums(path: Path, folder: Path) -> None:
    said = dict(line.split("  ", 1)[::-1] for line in (read_bytes(folder / SUMS) or b"").decode("utf-8", "replace").splitlines())
    there = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file() and file.name != SUMS}
    if odd := sorted(said.keys() ^ there.keys()):
        raise MilbenchError(f"{path}: {odd[0]!r:.80} is in only one of {SUMS} and the archive; export it again")
    for name, file in there.items():
        if hashlib.sha256(file.read_bytes()).hexdigest() != said[name]:
            raise MilbenchError(f"{path}: {name} has another SHA-256 than {SUMS} says; export it again")


def merge(source: Store, target: Store) -> Merged:
    """Bring the trials, plans and splits of a folder into another one.

    Args:
        source: is only read.
        target: what it has finished stays as it is.

    Raises:
        MilbenchError: one of them is a rehearsal's, or the target cannot be written to.
    """
    plans.refuse_rehearsal(source)
    plans.refuse_rehearsal(target)
    done = Merged()
    for trial_id in source.ids():
        try:
            _merge_trial(source, target, trial_id, done)
        except Unwritable:
            raise
        except MilbenchError as error:
            done.conflicts[trial_id] = str(error)
    for name in plans.names(source):
        _merge_plan(source, target, name, done)
    for split in sorted((source.root / "splits").glob("*.csv")):
        if not (there := target.root / "splits" / split.name).exists():
            with replacing(there) as temporary:
                shutil.copyfile(split, temporary)
    return done


def _merge_trial(source: Store, target: Store, trial_id: str, done: Merged) -> None:
    theirs, ours = source.raw(trial_id), target.raw(trial_id)
    if theirs is None:
        raise MilbenchError(f"{source.folder(trial_id)} has no {TRIAL}")
    for name in theirs["sha256"]:
        source.verified(theirs, name)
    if ours is None or (_unfinished(ours) and not _unfinished(theirs)):
        target.adopt(source.place(trial_id), [TRIAL, *theirs["sha256"]])
        (done.added if ours is None else done.replaced).append(trial_id)
    elif _unfinished(theirs) or _alike(ours, theirs):
        done.same.append(trial_id)
    else:
        raise MilbenchError(
            f"{source.folder(trial_id)} and {target.folder(trial_id)}: the same trial with other predictions; look at both "
            "(provenance says CPU and versions), and remove the folder of the one that is wrong"
        )


def _unfinished(result: dict[str, Any]) -> bool:
    return result["status"] in ("failed", "oom")


def _alike(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return bool(a["status"] == b["status"] and a["sha256"].get(PREDICTIONS) == b["sha256"].get(PREDICTIONS))


def _merge_plan(source: Store, target: Store, name: str, done: Merged) -> None:
    """Plans of one suite become one; where both were run in other settings, the target's stays."""
    theirs = plans.read(source, name)
    if not plans.path_of(target, name).exists():
        plans.merge(target, theirs)
        done.suites.append(name)
        return
    ours = plans.read(target, name)
    if clash := _clash(ours, theirs):
        done.conflicts[f"suite {name}"] = (
            f"suite {name}: {clash} was run with other data or another recipe there; its trials were taken, its plan was not"
        )
        return
    listed = {cell.trial_id for cell in ours.cells}
    if any(cell.trial_id not in listed for cell in theirs.cells):
        plans.merge(target, theirs)
        done.suites.append(name)


def _clash(ours: Plan, theirs: Plan) -> str:
    """A dataset and encoder that both ran in other settings; empty where there is none."""
    contexts = {cell.column: cell.context for cell in ours.cells if not cell.missing}
    for cell in theirs.cells:
        if not cell.missing and contexts.get(cell.column, cell.context) != cell.context:
            return f"{cell.dataset} {cell.encoder}"
    return ""


def from_archive(path: Path, target: Store) -> Merged:
    """:func:`merge` from an archive.

    Raises:
        MilbenchError: as :func:`unpacked` and :func:`merge`.
    """
    with tempfile.TemporaryDirectory(prefix="milbench-") as folder:
        return merge(unpacked(path, Path(folder)), target)
