"""Results handed on: nothing finished is lost or overwritten, and what is damaged or differs is told."""

import io
import json
import shutil
import tarfile
from dataclasses import replace

import pytest

from milbench.errors import MilbenchError
from milbench.trials import exchange
from milbench.trials import plan as plans
from milbench.trials.audit import audit
from milbench.trials.store import MODEL, PREDICTIONS, Store
from tests.builders.command import milbench
from tests.builders.results import finished, made_up_suite, sign, spec

METHODS = {"abmil": 0.5, "mean": 0.9}


def files(store):
    return {path.relative_to(store.root).as_posix(): path.read_bytes() for path in store.trials.rglob("*") if path.is_file()}


@pytest.fixture
def here(tmp_path):
    return made_up_suite(tmp_path / "here", METHODS, folds=2, n=6)[0]


def there(tmp_path, **changes):
    return made_up_suite(tmp_path / "there", METHODS, **{"folds": 2, "n": 6, **changes})[0]


def test_an_archive_brings_everything_and_the_same_trials_give_the_same_bytes(tmp_path, here):
    (here.root / "splits").mkdir()
    (here.root / "splits" / "toy-one-1.csv").write_text("fold,part,id,case\n")
    one, two = tmp_path / "one.tar.xz", tmp_path / "two.tar.xz"
    assert exchange.export(here, one, ["made-up"]) == exchange.export(here, two, ["made-up"]) == 4
    assert one.read_bytes() == two.read_bytes()
    away = Store(tmp_path / "away")
    done = exchange.from_archive(one, away)
    assert (len(done.added), done.suites, done.conflicts) == (4, ["made-up"], {})
    assert {name: data for name, data in files(away).items() if name.endswith("csv")} == {
        name: data for name, data in files(here).items() if name.endswith("csv")
    }
    assert audit(away) == {} and plans.read(away, "made-up") == plans.read(here, "made-up")
    assert (away.root / "splits" / "toy-one-1.csv").exists()
    again = exchange.from_archive(one, here)
    assert (len(again.same), again.added, again.suites) == (4, [], [])


def test_weights_travel_on_request(tmp_path):
    store, _ = made_up_suite(tmp_path / "here", METHODS, folds=1, n=6, skip={("abmil", 0, 0): "pending"})
    trial = spec(aggregator="abmil", params={})
    result = finished(trial, {})
    other = store.folder(next(iter(store.ids())))
    result.metrics = {"test": json.loads((other / "trial.json").read_text())["metrics"]["test"]}
    store.write(
        result, {PREDICTIONS: lambda path: shutil.copy(other / PREDICTIONS, path), MODEL: lambda path: path.write_bytes(b"w")}
    )
    exchange.export(store, tmp_path / "light.tar.xz", ["made-up"])
    exchange.export(store, tmp_path / "whole.tar.xz", ["made-up"], weights=True)
    for name, kept in (("light", False), ("whole", True)):
        away = Store(tmp_path / name)
        exchange.from_archive(tmp_path / f"{name}.tar.xz", away)
        assert (away.folder(trial.trial_id) / MODEL).exists() == kept
        assert audit(away) == {}
        assert not exchange.merge(away, store).conflicts, "without weights it is the same trial"


def test_two_folders_become_one(tmp_path, here):
    """Other seeds, other methods, and what had failed in one of them."""
    other, _ = made_up_suite(tmp_path / "there", {**METHODS, "max": 0.7}, folds=2, seeds=2, n=6)
    failed = here.ids()[0]
    result = here.read(failed)
    shutil.rmtree(here.folder(failed))
    here.write(finished(result.spec, status="failed", metrics={}, reason="no luck"))
    done = exchange.merge(other, here)
    assert (len(done.added), done.replaced, len(done.same), done.conflicts) == (8, [failed], 3, {})
    assert len(plans.read(here, "made-up").cells) == 12 and audit(here) == {}
    back = exchange.merge(here, other)
    assert len(back.same) == 12 and not back.added


def test_a_failure_replaces_nothing(tmp_path, here):
    before = files(here)
    other = there(tmp_path, skip={("abmil", 0, 0): "failed", ("mean", 1, 0): "oom"})
    assert len(exchange.merge(other, here).same) == 4
    assert files(here) == before


def test_the_same_trial_with_other_predictions_is_told_and_left(tmp_path, here):
    other = there(tmp_path)
    trial_id = other.ids()[1]
    path = other.folder(trial_id) / PREDICTIONS
    path.write_text(path.read_text().replace("\n", "\r\n"))  # other bytes
    sign(other, trial_id)
    before = files(here)
    done = exchange.merge(other, here)
    assert list(done.conflicts) == [trial_id]
    assert "the same trial with other predictions" in done.conflicts[trial_id]
    assert files(here) == before and len(done.same) == 3


def test_folders_that_were_mixed_by_a_copy_are_noticed(tmp_path, here):
    """trial.json of one run and predictions of another."""
    other = there(tmp_path)
    trial_id = other.ids()[0]
    (other.folder(trial_id) / PREDICTIONS).write_text("slide,case,fold,target,p0\n")
    done = exchange.merge(other, Store(tmp_path / "new"))
    assert "another SHA-256 than in trial.json" in done.conflicts[trial_id]
    assert len(done.added) == 3


def test_plans_of_other_settings_do_not_mix(tmp_path, here):
    other = Store(tmp_path / "there")
    plan = plans.read(here, "made-up")
    plans.merge(other, plan.model_copy(update={"cells": [replace(c, context="other") for c in plan.cells]}))
    done = exchange.merge(other, here)
    assert "toy none was run with other data or another recipe" in done.conflicts["suite made-up"]
    assert plans.read(here, "made-up") == plan


@pytest.mark.parametrize(
    "name", ["../up", "/abs", "trials/0123456789abcdef/other.txt", "suites/a/b.json", "x.json", "trials/xyz/trial.json"]
)
def test_an_archive_writes_nowhere_else(tmp_path, name):
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(MilbenchError, match="is no file of an archive of results"):
        exchange.from_archive(tmp_path / "bad.tar", Store(tmp_path / "r"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar"]


def test_a_link_in_an_archive_is_no_file(tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        member = tarfile.TarInfo("suites/a.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(MilbenchError, match="is no file of an archive"):
        exchange.from_archive(tmp_path / "bad.tar", Store(tmp_path / "r"))


def rewritten(path, change):
    """The archive with its files changed by a function of (name, data), which drops a file by None."""
    with tarfile.open(path) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    with tarfile.open(path, "w:xz") as archive:
        for name, data in members.items():
            if (data := change(name, data)) is not None:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda name, data: data + b" " if name.endswith("trial.json") else data, "has another SHA-256 than SHA256SUMS says"),
        (lambda name, data: None if name.endswith("predictions.csv") else data, "is in only one of SHA256SUMS and the archive"),
        (lambda name, data: None if name == "SHA256SUMS" else data, "is in only one of SHA256SUMS and the archive"),
    ],
)
def test_an_archive_that_was_changed_is_refused(tmp_path, here, change, says):
    path = tmp_path / "a.tar.xz"
    exchange.export(here, path, ["made-up"])
    rewritten(path, change)
    with pytest.raises(MilbenchError, match=says):
        exchange.from_archive(path, Store(tmp_path / "r"))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("data", [b"", b"no archive", None])
def test_what_is_no_archive(tmp_path, here, data):
    path = tmp_path / "a.tar.xz"
    exchange.export(here, path, ["made-up"])
    path.write_bytes(path.read_bytes()[:300] if data is None else data)
    with pytest.raises(
        MilbenchError, match=r"a\.tar\.xz: is no archive that milbench results export wrote, or is damaged|SHA256SUMS"
    ):
        exchange.from_archive(path, Store(tmp_path / "r"))


def test_the_command(tmp_path, here):
    archive = tmp_path / "all.tar.xz"
    assert "4 trials in" in milbench("results", "export", archive, "--results", here.root)
    assert milbench("results", "import", archive, "--results", tmp_path / "r") == "4 added; 0 conflicts.\n"
    assert milbench("results", "merge", here.root, "--results", tmp_path / "r") == "4 here already; 0 conflicts.\n"
    assert "is no results folder" in milbench("results", "merge", tmp_path / "r" / "trials", code=2)
    assert "nothing.tar: does not exist" in milbench("results", "merge", tmp_path / "nothing.tar", code=2)
