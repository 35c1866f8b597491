"""Packed trials: read as those in folders, and never lost."""

import os
import shutil
import zipfile
from contextlib import suppress

import numpy as np
import pytest

from milbench import MilbenchError
from milbench.api import results as api
from milbench.trials import exchange, predictions, shelves
from milbench.trials.shelves import pack
from milbench.trials.store import MODEL, Store
from tests.builders.results import finished, made_up_suite, predictions_file, spec


@pytest.fixture
def suite(tmp_path):
    """A store of six finished trials, one that failed and one that keeps its weights."""
    store, _ = made_up_suite(tmp_path / "results", {"abmil": 0.5, "max": 0.7}, skip={("max", 2, 0): "failed"})
    tested = predictions_file(["a", "b"], [0, 1], np.array([[0.75, 0.25], [0.25, 0.75]]))
    store.write(finished(spec(seed=9), {"macro_auc": 1.0}), {**tested, MODEL: lambda path: path.write_bytes(b"weights")})
    return store


def everything(root):
    """What readers get of a store, each trial by its id."""
    store = Store(root)
    read = {}
    for trial_id in store.ids():
        result = store.raw(trial_id)
        columns = predictions.read(store, result) if "predictions.csv" in result["sha256"] else {}
        read[trial_id] = (result, dict(store.known(trial_id)), {key: values.tolist() for key, values in columns.items()})
    return read


def inodes(root):
    return sum(1 for _ in root.rglob("*"))


def test_packed_trials_are_read_as_before(suite, tmp_path):
    before, status, frame = everything(suite.root), api.status(results=suite.root), api.load_predictions(suite.root)
    found = api.check_results(suite.root)
    packed, wrong = pack(suite)
    assert (len(packed), wrong) == (5, {})
    assert {path.name for path in suite.trials.iterdir()} == suite_of_others(suite), "failed trials and weights stay"
    assert everything(suite.root) == before
    assert api.status(results=suite.root) == status
    assert api.load_predictions(suite.root).equals(frame)
    assert api.check_results(suite.root) == found
    assert api.find_trial(packed[0][:9], results=suite.root).trial_id == packed[0]
    assert pack(suite) == ([], {}), "packing again finds nothing to do"


def suite_of_others(store):
    return {
        trial_id for trial_id in store.ids() if store.raw(trial_id)["status"] != "ok" or MODEL in store.raw(trial_id)["sha256"]
    }


def test_an_archive_and_another_folder_get_packed_trials(suite, tmp_path):
    before, names = everything(suite.root), ["made-up"]
    exchange.export(suite, tmp_path / "before.tar.xz", names)
    pack(suite)
    exchange.export(suite, tmp_path / "after.tar.xz", names)
    assert (tmp_path / "after.tar.xz").read_bytes() == (tmp_path / "before.tar.xz").read_bytes()
    other = Store(tmp_path / "other")
    assert len(exchange.merge(suite, other).added) == len(before)
    assert everything(other.root) == before
    assert len(exchange.merge(other, suite).same) == len(before)
    pack(other)
    assert {path.name: path.read_bytes() for path in other.shelves.folder.glob("*.zip")} == {
        path.name: path.read_bytes() for path in suite.shelves.folder.glob("*.zip")
    }, "equal trials make equal shelves"


def test_files_are_few(tmp_path):
    store = Store(tmp_path)
    for seed in range(600):
        folder = store.trials / f"{seed % 7:02x}{seed:014x}"
        folder.mkdir(parents=True)
    assert len({store.shelves.path(trial_id) for trial_id in store.in_folders()}) == 7
    assert shelves.PREFIX == 2, "16**2 shelves"


def test_later_trials_join_their_shelf(suite):
    before = everything(suite.root)
    half = sorted(before)[:4]
    aside = suite.root / "aside"
    aside.mkdir()
    for trial_id in half:
        suite.folder(trial_id).rename(aside / trial_id)
    pack(suite)
    for trial_id in half:
        (aside / trial_id).rename(suite.folder(trial_id))
    pack(suite)
    assert everything(suite.root) == before


def test_a_packed_trial_is_finished(suite):
    packed, _ = pack(suite)
    result = suite.read(packed[0])
    assert not suite.write(result)
    assert suite.stamp(packed[0]) is not None, "no run begins it again"
    assert not suite.folder(packed[0]).exists()


@pytest.mark.parametrize("when", range(1, 12))
def test_a_pack_that_is_killed_at_any_step_loses_nothing(suite, monkeypatch, when):
    """Ends at the n-th change to the disk, without cleaning up; then readers find all, and packing again completes it."""
    before, done = everything(suite.root), [0]

    class Killed(BaseException):
        pass

    def dying(function):
        def call(*args, **more):
            done[0] += 1
            if done[0] >= when:
                raise Killed
            return function(*args, **more)

        return call

    with monkeypatch.context() as patched:
        for name in ("rename", "replace", "unlink"):
            patched.setattr(f"pathlib.Path.{name}", dying(getattr(shelves.Path, name)))
        patched.setattr(shutil, "rmtree", dying(shutil.rmtree))
        patched.setattr(zipfile.ZipFile, "writestr", dying(zipfile.ZipFile.writestr))
        with suppress(Killed):  # the last of these need more steps than there are
            pack(suite)
    assert everything(suite.root) == before
    for claim in suite.shelves.folder.glob(".claim*"):
        claim.unlink()
    pack(Store(suite.root))
    assert everything(suite.root) == before
    assert {path.name for path in suite.trials.iterdir() if path.name[0] != "."} == suite_of_others(suite)


def test_a_damaged_trial_stays_in_its_folder(suite):
    victim = sorted(set(suite.ids()) - suite_of_others(suite))[0]
    path = suite.folder(victim) / "predictions.csv"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    packed, wrong = pack(suite)
    assert wrong.keys() == {victim}
    assert len(packed) == 4
    assert path.exists()


def test_a_trial_with_a_stray_file_stays(suite):
    victim = sorted(set(suite.ids()) - suite_of_others(suite))[0]
    (suite.folder(victim) / "notes.txt").write_text("mine")
    assert pack(suite)[1].keys() == {victim}
    assert (suite.folder(victim) / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no zip" * 99])
def test_a_damaged_shelf_is_named(suite, damage):
    packed, _ = pack(suite)
    path = suite.shelves.path(packed[0])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MilbenchError, match=rf"{path.name}: cannot be read .* copy it here again, or remove it"):
        Store(suite.root).ids()
    path.unlink()
    assert packed[0] not in Store(suite.root).ids()


def test_a_byte_that_changed_in_a_shelf_is_noticed(suite):
    packed, _ = pack(suite)
    path = suite.shelves.path(packed[0])
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as shelf:
        at = shelf.getinfo(f"{packed[0]}/predictions.csv").header_offset + 120
    data[at] ^= 1
    path.write_bytes(bytes(data))
    _, wrong = api.check_results(suite.root)
    assert packed[0] in wrong


def test_shelves_become_folders_with_unzip(suite):
    before = everything(suite.root)
    pack(suite)
    for path in list(suite.shelves.folder.glob("*.zip")):
        with zipfile.ZipFile(path) as shelf:
            shelf.extractall(suite.trials)
        path.unlink()
    assert everything(suite.root) == before


def test_a_reader_that_began_before_the_pack_goes_on(suite):
    reader = Store(suite.root)
    results = {trial_id: reader.known(trial_id) for trial_id in reader.ids()}
    packed, _ = pack(Store(suite.root))
    for trial_id in packed:
        assert len(predictions.read(reader, results[trial_id])["slide"]) == 30
    assert os.listdir(suite.trials)
