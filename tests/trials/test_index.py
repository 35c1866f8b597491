"""The index is a cache: whatever becomes of it, readers say what the trials' files say."""

import copy
import json
import multiprocessing
import os
import pickle
import re
import shutil

import pytest

from milbench import MilbenchError
from milbench.api import results as api
from milbench.trials import index, store
from milbench.trials.store import Store
from tests.builders.results import finished, made_up_suite, spec

LONG_AGO = 1_500_000_000


@pytest.fixture
def opened(monkeypatch):
    """The ids of the trials whose trial.json was read, in order."""
    read, ids = Store.raw, []

    def raw(self, trial_id):
        ids.append(trial_id)
        return read(self, trial_id)

    monkeypatch.setattr(Store, "raw", raw)
    return ids


def written(root, count=3, scale=10):
    """A store with finished trials, whose index a first look has made."""
    made = Store(root)
    for seed in range(count):
        made.write(finished(spec(seed=seed), {"macro_auc": seed / scale}))
    (root / "index.jsonl").unlink()
    auc(root)
    return made


def auc(root):
    """What a new process would read."""
    some = Store(root)
    return sorted(some.known(trial_id)["metrics"]["test"]["macro_auc"] for trial_id in some.ids())


def edit(made, seed, old, new):
    path = made.folder(spec(seed=seed).trial_id) / "trial.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_second_look_opens_no_trial(tmp_path, opened):
    written(tmp_path)
    opened.clear()
    assert auc(tmp_path) == [0.0, 0.1, 0.2]
    assert opened == []


def test_what_a_run_writes_need_not_be_opened_again(tmp_path, opened):
    made_up_suite(tmp_path, {"abmil": 0.5, "max": 0.7})
    opened.clear()
    assert api.status(results=tmp_path).suites[0]["ok"] == 6
    assert opened == []


def test_it_says_what_raw_says_but_for_the_traceback(tmp_path):
    made = Store(tmp_path)
    results = [
        finished(spec(), curve=[{"epoch": 1, "train_loss": 1e-7, "val_loss": None}], messages=['tab\t, "quotes" and µ']),
        finished(spec(seed=1), status="failed", metrics={}, reason="line\nbreak", traceback="a long story"),
    ]
    for result in results:
        made.write(result)
        raw = made.raw(result.trial_id)
        del raw["traceback"]
        for reader in (made, Store(tmp_path)):
            kept = reader.known(result.trial_id)
            assert isinstance(kept, index.Kept)
            assert dict(kept) == raw
            assert {key: kept[key] for key in raw} == raw
            assert pickle.loads(pickle.dumps(kept)) == copy.deepcopy(kept) == raw


def test_every_line_is_json(tmp_path):
    written(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {spec(seed=seed).trial_id for seed in range(3)}
    assert lines[0]["result"]["metrics"]["test"].keys() == {"macro_auc"}


def test_a_new_an_edited_and_a_removed_trial_are_noticed(tmp_path, opened):
    made = written(tmp_path)
    opened.clear()
    edit(made, 1, '"macro_auc": 0.1', '"macro_auc": 0.7')  # of the same size
    shutil.rmtree(made.folder(spec(seed=2).trial_id))
    made.write(finished(spec(seed=3), {"macro_auc": 0.9}))
    opened.clear()
    assert auc(tmp_path) == [0.0, 0.7, 0.9]
    assert opened == [spec(seed=1).trial_id]


def test_an_edit_right_after_the_write_is_noticed(tmp_path):
    """Both may be within one step of the clock that dates files, and the size is the same."""
    made = Store(tmp_path)
    for seed in range(20):
        made.write(finished(spec(seed=seed), {"macro_auc": 0.1}))
        edit(made, seed, '"macro_auc": 0.1', '"macro_auc": 0.7')
    assert auc(tmp_path) == [0.7] * 20


def test_an_edit_that_keeps_size_and_time_is_noticed(tmp_path):
    made = written(tmp_path)
    path = made.folder(spec(seed=1).trial_id) / "trial.json"
    before = path.stat()
    edit(made, 1, '"macro_auc": 0.1', '"macro_auc": 0.7')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert auc(tmp_path) == [0.0, 0.2, 0.7]


@pytest.mark.parametrize("age", [0, -3600], ids=["now", "in the future, by a clock that was set back"])
def test_a_file_that_may_still_change_unseen_is_not_remembered(tmp_path, opened, age):
    made = written(tmp_path)
    path = made.folder(spec().trial_id) / "trial.json"
    seconds = path.stat().st_ctime - age
    os.utime(path, (seconds, seconds))
    auc(tmp_path)
    opened.clear()
    auc(tmp_path)
    assert opened == [spec().trial_id]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 2],
        lambda text: text[:-1],
        lambda text: text[len(text) // 3 :],
        lambda text: text.replace(b'"macro_auc":0.1', b'"macro_auc":0.9'),
        lambda text: text.replace(b'"status":"ok"', b'"status":"no"'),
        lambda text: b"".join(line[:200] + other[200:] for line, other in zip(*[text.splitlines(keepends=True)[i:] for i in (0, 1)], strict=False)),
        lambda text: b"\x00\xff" * 500 + b"\n" + text,
        lambda text: b'{"crc":"00000000"}\n[]\n\n' + text,
    ],
)  # fmt: skip
def test_an_index_that_is_cut_or_garbled_is_mended(tmp_path, opened, spoil):
    written(tmp_path)
    path = tmp_path / "index.jsonl"
    path.write_bytes(spoil(path.read_bytes()))
    assert auc(tmp_path) == [0.0, 0.1, 0.2]
    opened.clear()
    assert auc(tmp_path) == [0.0, 0.1, 0.2]
    assert opened == []


def test_a_broken_trial_is_refused_however_often_it_is_read(tmp_path):
    made = written(tmp_path)
    edit(made, 1, '"macro_auc": 0.1', '"macro_auc": 7.1')
    for _ in range(2):
        with pytest.raises(MilbenchError, match=r"macro_auc cannot be 7\.1"):
            auc(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_read(tmp_path, opened, monkeypatch):
    written(tmp_path)
    refused = index.os.open

    def read_only(path, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError(13, "read-only file system")
        return refused(path, flags, *mode)

    monkeypatch.setattr(index.os, "open", read_only)
    opened.clear()
    assert auc(tmp_path) == [0.0, 0.1, 0.2]
    assert opened == [], "an index that is there is used"
    (tmp_path / "index.jsonl").unlink()
    assert auc(tmp_path) == [0.0, 0.1, 0.2]
    assert not (tmp_path / "index.jsonl").exists()


def test_a_full_disk_costs_time_only(tmp_path, monkeypatch):
    made = written(tmp_path)
    (tmp_path / "index.jsonl").unlink()
    monkeypatch.setattr(index.os, "write", lambda handle, text: os.pwrite(handle, text[:50], 0))
    assert auc(tmp_path) == [0.0, 0.1, 0.2]
    monkeypatch.undo()
    assert auc(tmp_path) == [0.0, 0.1, 0.2]
    assert made.ids() == Store(tmp_path).ids()


def _look(root, barrier, out):
    barrier.wait()
    out.put(auc(root))


def test_readers_at_once_agree_and_their_lines_are_whole(tmp_path, opened):
    written(tmp_path, 40, 100)
    (tmp_path / "index.jsonl").unlink()
    context = multiprocessing.get_context("fork")
    barrier, out = context.Barrier(2), context.Queue()
    readers = [context.Process(target=_look, args=(tmp_path, barrier, out)) for _ in range(2)]
    [reader.start() for reader in readers]
    assert out.get(timeout=120) == out.get(timeout=120) == [seed / 100 for seed in range(40)]
    [reader.join() for reader in readers]
    opened.clear()
    auc(tmp_path)
    assert opened == []


def test_lines_that_nobody_needs_go(tmp_path, monkeypatch, opened):
    monkeypatch.setattr(index, "SPARE", 5)
    made = written(tmp_path, 8)
    for _ in range(3):
        (path,) = [made.folder(spec().trial_id) / "trial.json"]
        path.write_text(path.read_text() + "\n")
        os.utime(path, (LONG_AGO, LONG_AGO))
        auc(tmp_path)
    for seed in range(1, 8):
        shutil.rmtree(made.folder(spec(seed=seed).trial_id))
    assert len((tmp_path / "index.jsonl").read_text().splitlines()) == 11
    assert auc(tmp_path) == [0.0]
    assert len((tmp_path / "index.jsonl").read_text().splitlines()) == 1
    opened.clear()
    assert auc(tmp_path) == [0.0]
    assert opened == []


def test_a_line_that_went_while_it_was_held_is_read_from_the_trial(tmp_path):
    written(tmp_path)
    reader = Store(tmp_path)
    kept = reader.known(spec(seed=1).trial_id)
    (tmp_path / "index.jsonl").write_text("")
    assert kept["metrics"]["test"] == {"macro_auc": 0.1}


def test_results_check_reads_the_files_themselves(tmp_path, monkeypatch):
    made = written(tmp_path)
    monkeypatch.setattr(Store, "known", lambda *_: pytest.fail("the index is no proof"))
    count, wrong = api.check_results(tmp_path)
    assert count == 3
    assert wrong.keys() == {spec(seed=seed).trial_id for seed in range(3)}, "these trials have no predictions"
    assert made.ids() == sorted(wrong)


def test_times_are_those_of_the_file_system(tmp_path):
    """A trial that this process writes is dated back by more than the coarsest clock of file systems."""
    made = written(tmp_path)
    file = (made.folder(spec().trial_id) / "trial.json").stat()
    assert file.st_mtime_ns < file.st_ctime_ns - store.SETTLED
    assert re.fullmatch(r"\d+ \d+ \d+ \d+", made.stamp(spec().trial_id))
