"""The identity of features: every number counts, nothing else does, and no file is read twice without need."""

import json
import multiprocessing
import os
import time

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from milbench import MilbenchError, datasets
from milbench.datasets.files import dataset as own
from milbench.datasets.files import formats, manifest, seen
from milbench.datasets.files.adding import joined
from tests.builders import folders
from tests.builders.command import milbench


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A data folder, and files that are old enough to be known again."""
    monkeypatch.setenv("MILBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(seen, "too_young", lambda state, at: False)
    own.forget()
    return tmp_path / "data"


def cohort(root, **how):
    folders.cohort(root, **how)
    manifest.save(joined("mine", features=root / "features", encoder="enc", labels=root / "labels.csv"))
    return root / "features" / "h5_files"


def load(**how):
    """As another process does."""
    own.forget()
    return datasets.load("mine", "enc", **how)


@pytest.fixture
def read_whole(monkeypatch):
    """Names of the files that are read whole."""
    names = []
    monkeypatch.setattr(seen, "contents", lambda path, patches: names.append(path.name) or formats.contents(path, patches))
    return names


X = np.random.default_rng(0).normal(size=(257, 12)).astype(np.float32)
XY = folders.positions(257).astype(np.int64)


def written(path, **how):
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=X, **how)
        file.create_dataset("coords", data=XY, **({"chunks": (1, 2)} if how else {}))


def forms(tmp_path):
    """The same numbers, in every container."""
    tmp_path.mkdir(exist_ok=True)
    layouts = {
        "whole": {},
        "rows": {"chunks": (1, 12)},
        "ragged": {"chunks": (32, 5)},
        "small": {"chunks": (50, 12), "compression": "gzip"},
    }
    for name, how in layouts.items():
        written(tmp_path / f"{name}.h5", **how)
    folders.h5(tmp_path / "big-endian.h5", features=X.astype(">f4"), coords=XY.astype(">i2"))
    folders.h5(tmp_path / "squeezed.h5", features=X[None], coords=XY[None])
    np.savez(tmp_path / "plain.npz", features=X, coords=XY.astype(np.float32))
    np.savez_compressed(tmp_path / "packed.npz", features=np.asfortranarray(X), coords=XY.astype(np.float64))
    np.savez(tmp_path / "fortran.npz", features=np.asfortranarray(X), coords=XY.astype(np.uint64))
    torch.save(torch.from_numpy(X), tmp_path / "beside.pt")
    folders.h5(tmp_path / "patches" / "beside.h5", coords=XY)
    return [(path, None) for path in tmp_path.iterdir() if path.suffix in (".h5", ".npz")] + [
        (tmp_path / "beside.pt", tmp_path / "patches" / "beside.h5")
    ]


def test_the_same_numbers_are_the_same_contents_in_every_container(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "BLOCK", 1000)  # several blocks of a file
    pairs = forms(tmp_path)
    assert len(pairs) == 10
    assert {formats.contents(*pair) for pair in pairs} == {formats.contents(*pairs[0])}


@given(where=st.tuples(st.integers(0, 256), st.integers(0, 11)), bit=st.integers(0, 31))
def test_every_bit_of_the_features_counts(tmp_path_factory, where, bit):
    path = tmp_path_factory.mktemp("one") / "a.npz"
    np.savez(path, features=X, coords=XY)
    before = formats.contents(path)
    changed = X.copy()
    changed.view(np.uint32)[where] ^= np.uint32(1 << bit)
    np.savez(path, features=changed, coords=XY)
    assert formats.contents(path) != before


@pytest.mark.parametrize(
    ("features", "coords"),
    [
        (X.astype(np.float64), XY),
        (X.reshape(-1, 6)[:257], XY),
        (X[::-1].copy(), XY),
        (X, XY + np.eye(257, 2, dtype=int)),
        (X, XY + 0.25),
        (X, XY[::-1].copy()),
        (X, None),
    ],
    ids=["dtype", "width", "order", "one position", "fractions", "order of positions", "no positions"],
)
def test_everything_else_counts_as_well(tmp_path, features, coords):
    path, other = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(path, features=X, coords=XY)
    np.savez(other, features=features, **({} if coords is None else {"coords": coords}))
    assert formats.contents(other) != formats.contents(path)


def test_rows_that_nobody_samples_make_another_dataset_and_another_pack(tmp_path):
    """A file rewritten in place but for the rows that an inspection looks at: its old pack must not be read for it."""
    files = cohort(tmp_path / "in", sizes=[50] * 12)
    before = load()
    old = before.read("S-03").features.clone()
    sampled = np.unique(np.linspace(0, 49, formats.SAMPLED).astype(int))
    for path in sorted(files.iterdir()):
        with h5py.File(path, "r+") as file:
            x = file["features"][:]
            x[np.setdiff1d(np.arange(50), sampled)] = 100
            file["features"][:] = x
    after = load()
    assert after.former_fingerprint == before.former_fingerprint
    assert after.fingerprint != before.fingerprint
    expected = old.clone()
    expected[np.setdiff1d(np.arange(50), sampled)] = 100
    assert torch.equal(after.read("S-03").features, expected)


def test_results_of_schema_1_find_their_dataset(tmp_path):
    cohort(tmp_path / "in")
    assert load().former_fingerprint == "sha256:3332d1b1ae3c2e1a", "as milbench before schema 2 called this cohort"


def test_a_file_is_read_whole_once(tmp_path, read_whole):
    files = cohort(tmp_path / "in")
    first = load()
    assert sorted(read_whole) == sorted(path.name for path in files.iterdir())
    read_whole.clear()
    assert load().fingerprint == first.fingerprint
    assert read_whole == []
    with h5py.File(files / "S-07.h5", "r+") as file:
        file["features"][9, 4] += 1
    assert load().fingerprint != first.fingerprint
    assert read_whole == ["S-07.h5"]


def test_other_sets_that_run_together_to_the_same_name_do_not_forget_each_other(tmp_path, read_whole):
    root = folders.cohort(tmp_path / "in")
    for name, encoder in (("a", "b-c"), ("a-b", "c"), ("a", "b c")):
        manifest.save(joined(name, features=root / "features", encoder=encoder, labels=root / "labels.csv"))
        datasets.load(name, encoder).read("S-03")
    read_whole.clear()
    for name, encoder in (("a", "b-c"), ("a-b", "c"), ("a", "b c")):
        own.forget()
        told = []
        datasets.load(name, encoder).read.build(told.append)
        assert told == []
    assert read_whole == []
    assert len(list((tmp_path / "data" / ".packed").glob("*.pack"))) == 3


def change_unseen(path):
    """Other bytes, with the size and the time of the last write that the file had."""
    before = path.stat()
    with h5py.File(path, "r+") as file:
        file["features"][4, 2] += 1
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_a_time_that_was_set_back_hides_nothing(tmp_path, data):
    files = cohort(tmp_path / "in")
    before = load().fingerprint
    change_unseen(files / "S-05.h5")
    assert load().fingerprint != before


def test_deep_reads_anew_and_tells_what_changed_without_a_trace(tmp_path, monkeypatch, read_whole):
    """As where a disk rots: not even the time of change says so."""
    real = seen.state_of
    for module in (seen, own):
        monkeypatch.setattr(module, "state_of", lambda *files: [0 if i in (3, 6) else x for i, x in enumerate(real(*files))])
    files = cohort(tmp_path / "in")
    before = load().fingerprint
    change_unseen(files / "S-05.h5")
    assert load().fingerprint == before
    read_whole.clear()
    told = json.loads(milbench("data", "check", "mine", "--deep", "--json"))
    assert len(read_whole) == 12
    (found,) = [one for one in told["findings"] if one["kind"] == "unseen"]
    assert (found["severity"], found["ids"]) == ("warning", ["S-05"])
    assert found["what"] == "1 slide whose features changed while the size and the time of change of the file did not"
    assert load().fingerprint != before
    assert "unseen" not in milbench("data", "check", "mine", "--deep", "--json")


def test_data_add_and_data_check_fill_the_memory(tmp_path, read_whole):
    root = folders.cohort(tmp_path / "in")
    milbench("data", "add", "mine", "--features", root / "features", "--encoder", "enc", "--labels", root / "labels.csv")
    assert len(read_whole) == 12
    load()
    milbench("data", "check", "mine")
    assert len(read_whole) == 12


def test_what_was_read_before_an_interruption_need_not_be_read_again(tmp_path, monkeypatch, read_whole):
    cohort(tmp_path / "in")
    counted = seen.contents
    monkeypatch.setattr(seen, "READERS", 1)

    def interrupted(path, patches):
        if path.name == "S-08.h5":
            raise KeyboardInterrupt
        time.sleep(0.5 if path.name > "S-08.h5" else 0)
        return counted(path, patches)

    monkeypatch.setattr(seen, "contents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load()
    assert "S-11.h5" not in read_whole, "who stops it does not wait for all of them"
    monkeypatch.setattr(seen, "contents", counted)
    read_whole.clear()
    load()
    assert sorted(read_whole) == [f"S-{i:02d}.h5" for i in range(8, 12)]


def fingerprint(folder, meet, out):
    os.environ["MILBENCH_DATA"] = str(folder)
    meet.wait(60)
    out.put(datasets.load("mine", "enc").fingerprint)


def test_two_processes_may_read_the_same_files_at_once(tmp_path, data):
    cohort(tmp_path / "in")
    context = multiprocessing.get_context("fork")
    meet, out = context.Barrier(2), context.SimpleQueue()
    processes = [context.Process(target=fingerprint, args=(data, meet, out)) for _ in range(2)]
    for process in processes:
        process.start()
    found = {out.get() for _ in processes}
    for process in processes:
        process.join()
    assert found == {load().fingerprint}


def test_a_data_folder_that_cannot_be_written_to(tmp_path, data, monkeypatch, read_whole, capsys):
    cohort(tmp_path / "in")
    (data / ".seen").rmdir()
    (data / ".seen").write_text("no folder")  # root may write into any that is read-only
    load()
    assert "so every command reads all feature files again; set MILBENCH_CACHE" in capsys.readouterr().err
    assert len(read_whole) == 12
    monkeypatch.setenv("MILBENCH_CACHE", str(tmp_path / "scratch"))
    load()
    read_whole.clear()
    load()
    assert read_whole == []
    assert capsys.readouterr().err == ""


def test_a_file_that_is_written_meanwhile_is_an_error(tmp_path, monkeypatch):
    files = cohort(tmp_path / "in")

    def growing(path, patches):
        found = formats.contents(path, patches)
        os.utime(files / "S-02.h5", ns=(0, time.time_ns()))
        return found

    monkeypatch.setattr(seen, "contents", growing)
    with pytest.raises(MilbenchError, match=r"S-02\.h5 changed after it was looked at; wait until it is whole"):
        load()
    monkeypatch.undo()
    monkeypatch.setenv("MILBENCH_DATA", str(tmp_path / "data"))
    data = load()
    folders.h5(files / "S-04.h5", features=folders.vectors(9, 14), coords=folders.positions(14))
    with pytest.raises(MilbenchError, match=r"S-04\.h5: changed after it was looked at"):
        data.read("S-03")  # packs all
    assert not list((tmp_path / "data" / ".packed").glob("*.pack*")), "no pack under the fingerprint of other features"
    assert torch.equal(load().read("S-04").features, torch.from_numpy(folders.vectors(9, 14)))


S = 10**9


@pytest.mark.parametrize(
    ("changed", "looked", "young"),
    [
        (5 * S + 1, 5 * S + 2, True),
        (5 * S + 1, 6 * S, False),
        (5 * S, 6 * S, True),
        (5 * S, 8 * S, False),
        (9 * S + 1, 5 * S, True),
    ],
)
def test_a_file_is_too_young_when_it_could_change_within_one_tick(monkeypatch, changed, looked, young):
    monkeypatch.undo()
    assert seen.too_young([None, 77, 5, changed], looked) == young
    assert seen.too_young(["p.h5", 77, 5, 1, 77, 5, changed], looked) == young


def test_a_file_written_just_now_is_looked_at_again(tmp_path, monkeypatch, read_whole):
    files = cohort(tmp_path / "in")
    monkeypatch.setattr(seen, "too_young", lambda state, at: state == seen.state_of(files / "S-01.h5", patches_of(files, "S-01")))
    load()
    read_whole.clear()
    load()
    assert read_whole == ["S-01.h5"]


def patches_of(files, slide):
    return files.parent / "patches" / f"{slide}.h5"


def test_the_last_dataset_stays_until_anything_of_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "too_young", lambda state, at: False)
    files = cohort(tmp_path / "in")
    first = datasets.load("mine", "enc")
    assert datasets.load("mine", "enc") is first
    assert datasets.load("mine", "enc", dtype="float16") is not first
    fingerprints = {first.fingerprint}
    folders.change(tmp_path / "in" / "labels.csv", "S-03,normal", "S-03,tumour")
    fingerprints.add(datasets.load("mine", "enc").fingerprint)
    with h5py.File(files / "S-03.h5", "r+") as file:
        file["features"][0, 0] += 1
    fingerprints.add(datasets.load("mine", "enc").fingerprint)
    folders.h5(
        patches_of(files, "S-03"), coords=(folders.positions(13), {"patch_size": 448, "patch_level": 1, "downsample": (2.0, 2.0)})
    )
    fingerprints.add(datasets.load("mine", "enc").fingerprint)
    assert len(fingerprints) == 4
    (files / "S-03.h5").unlink()
    with pytest.raises(MilbenchError, match="1 of 12 slides without"):
        datasets.load("mine", "enc")


def test_a_worker_keeps_the_datasets_that_it_meets_in_turn(tmp_path, monkeypatch):
    """With their folds and fingerprints; a file that was written anew is noticed all the same."""
    monkeypatch.setattr(own, "too_young", lambda state, at: False)
    files = {}
    for name in ("a", "b"):
        root = folders.cohort(tmp_path / name)
        manifest.save(joined(name, features=root / "features", encoder="enc", labels=root / "labels.csv"))
        files[name] = root / "features" / "h5_files"
    first = {name: datasets.load(name, "enc") for name in files}
    folds = first["a"].folds("kfold5")
    for name in ("a", "b", "a", "b"):
        assert datasets.load(name, "enc") is first[name]
    assert datasets.load("a", "enc").folds("kfold5") is folds
    assert first["a"].split_fingerprint("kfold5") is first["a"].split_fingerprint("kfold5")
    change_unseen(files["a"] / "S-03.h5")
    assert datasets.load("a", "enc").fingerprint != first["a"].fingerprint
    assert datasets.load("b", "enc") is first["b"]
    for number in range(own.KEPT):
        root = folders.cohort(tmp_path / f"more-{number}")
        manifest.save(joined(f"more-{number}", features=root / "features", encoder="enc", labels=root / "labels.csv"))
        datasets.load(f"more-{number}", "enc")
    assert datasets.load("b", "enc") is not first["b"], "only so many stay in memory"
