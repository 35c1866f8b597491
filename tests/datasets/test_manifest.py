"""A dataset of one's own: what `data add` writes, and the bags, samples and splits that come of it."""

import multiprocessing

import numpy as np
import pytest
import torch

from milbench import MilbenchError, datasets
from milbench.datasets import Fold, splits
from milbench.datasets.files import formats, manifest
from milbench.datasets.files.adding import joined
from milbench.errors import NotHere
from tests.builders import folders
from tests.builders.folders import h5, ids, positions, table, trident_attributes, vectors


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("MILBENCH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def save(name="mine", **more):
    return manifest.save(joined(name, **more))


def cohort(root, **how):
    """Adds the cohort in `root` and returns the folder."""
    folders.cohort(root, **how)
    save(features=root / "features", encoder="enc", labels=root / "labels.csv", splits={"": root / "labels.csv"})
    return root


def test_step_by_step_is_all_at_once_and_twice_is_once(tmp_path, data):
    root = folders.cohort(tmp_path / "in")
    everything = dict(
        features=root / "features", encoder="enc", magnification=20, patch_size=224, labels=root / "labels.csv",
        splits={"": root / "labels.csv"}, label="Mine",
    )  # fmt: skip
    path = save(**everything)
    once = path.read_text()
    assert save(**everything) is None
    assert path.read_text() == once
    path.unlink()
    save(label="Mine")
    save(labels=root / "labels.csv")
    save(features=root / "features", encoder="enc", magnification=20, patch_size=224)
    save(splits={"official": root / "labels.csv"})
    assert path.read_text() == once
    assert manifest.load("mine") == joined("mine")


def test_two_who_add_at_once_lose_nothing(tmp_path):
    root = cohort(tmp_path / "in")
    h5(tmp_path / "other" / "S-00.h5", features=vectors(0, 3))
    one = joined("mine", encoder="a", features=root / "features")
    two = joined("mine", encoder="b", features=root / "features", exclude=["S-04"])
    three = joined("mine", encoder="a", features=tmp_path / "other")
    assert manifest.save(one) is not None
    assert manifest.save(two) is not None
    assert [features.encoder for features in manifest.load("mine").features] == ["enc", "a", "b"]
    assert manifest.load("mine").exclude == ["S-04"]
    with pytest.raises(MilbenchError, match="has features of a already: folder"):
        manifest.save(three)
    assert manifest.save(one) is None, "it is there"
    assert len(manifest.load("mine").features) == 3


def test_two_who_make_the_first_manifest_at_once(tmp_path):
    root = folders.cohort(tmp_path / "in")
    one = joined("mine", encoder="a", features=root / "features")
    two = joined("mine", labels=root / "labels.csv")
    manifest.save(two), manifest.save(one)
    found = manifest.load("mine")
    assert (found.labels is not None, [one.encoder for one in found.features]) == (True, ["a"])


def test_what_was_edited_by_hand_meanwhile_is_not_written_over(tmp_path, data):
    cohort(tmp_path / "in")
    read = manifest.load("mine")
    mended = read.model_copy(update={"label": "By a notebook"})
    patched = joined("mine", label="mine").model_copy(update={"label": "Another"})
    folders.change(data / "mine.toml", 'label = "mine"', 'label = "By hand"')
    for one in (read, mended, patched):
        with pytest.raises(MilbenchError, match=r"mine\.toml changed since it was read; read it again and repeat the change"):
            manifest.save(one)
    assert manifest.load("mine").label == "By hand"
    assert manifest.save(manifest.load("mine").model_copy(update={"label": "By a notebook"})) is not None
    assert manifest.load("mine").label == "By a notebook"


def add(data, features, encoder, meet):
    for number in range(5):
        meet.wait(60)
        manifest.save(joined("mine", encoder=f"{encoder}{number}", features=features, home=data))


def test_processes_that_add_at_once_lose_nothing(tmp_path, data):
    root = cohort(tmp_path / "in")
    context = multiprocessing.get_context("fork")
    meet = context.Barrier(3)
    processes = [context.Process(target=add, args=(data, root / "features", name, meet)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    encoders = sorted(features.encoder for features in manifest.load("mine").features)
    assert encoders == sorted(["enc", *(f"{name}{number}" for name in "abc" for number in range(5))])


def test_two_projects_share_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MILBENCH_CACHE", str(tmp_path / "cache"))
    for project in ("one", "two"):
        monkeypatch.setenv("MILBENCH_DATA", str(tmp_path / project / "data"))
        cohort(tmp_path / project / "in", shift=project == "two")
    for turn in range(4):
        project = ("one", "two")[turn % 2]
        monkeypatch.setenv("MILBENCH_DATA", str(tmp_path / project / "data"))
        told = []
        data = datasets.load("mine", "enc")
        data.read.build(told.append)
        assert len(told) == (turn < 2)
        assert torch.equal(data.read("S-03").features, torch.from_numpy(vectors(3, 13, shift=project == "two")))
    assert len(list((tmp_path / "cache").glob("*.pack"))) == 2
    folders.h5(tmp_path / "two" / "in" / "features" / "h5_files" / "S-03.h5", features=vectors(7, 13), coords=positions(13))
    datasets.load("mine", "enc").read("S-03")
    assert len(list((tmp_path / "cache").glob("*.pack"))) == 2, "its own old one is gone, the other's is not"


def test_what_contradicts_needs_replace(tmp_path):
    root = cohort(tmp_path / "in")
    folders.clam(tmp_path / "other", ids())
    changes = [
        (dict(features=tmp_path / "other", encoder="enc"), r"has features of enc already: folder \.\./in/features/h5_files, not \.\./other/h5_files"),
        (dict(task="survival"), "has another task already: subtyping, not survival"),
        (dict(label="Other"), "has another label already: mine, not Other"),
        (dict(splits={"official": root / "survival.csv"}), r"has another split official already: \.\./in/labels\.csv, not \.\./in/survival\.csv"),
        (dict(classes={"tumour": [], "normal": []}), "has other labels already: classes normal=.*, not tumour="),
        (dict(unit="case"), "has another unit already: slide, not case"),
    ]  # fmt: skip
    for change, says in changes:
        with pytest.raises(MilbenchError, match=says):
            joined("mine", **change)
    assert manifest.load("mine").splits == {"official": "../in/labels.csv"}
    assert joined("mine", **changes[0][0], replace=True).features[0].folder == "../other/h5_files"
    assert len(joined("mine", features=tmp_path / "other", encoder="two").features) == 2
    assert list(joined("mine", splits={"mine": root / "survival.csv"}).splits) == ["official", "mine"]
    with pytest.raises(MilbenchError, match="the label table was added for another task than survival"):
        joined("mine", task="survival", unit="case", replace=True)
    save(classes={"tumour": [], "normal": []}, replace=True)
    assert datasets.load("mine", "enc").classes == ("tumour", "normal")


def test_the_file_survives_any_text(tmp_path, data):
    root = folders.cohort(tmp_path / 'a "quoted" \\ folder, and ünïcode 🔬')
    label = 'Line\nbreak "quote" \\ tab\t🔬 \x7f'
    save(
        label=label,
        features=root / "features",
        encoder="my enc/v1",
        labels=root / "labels.csv",
        splits={"50 %": root / "labels.csv"},
    )
    found = manifest.load("mine")
    assert (found.label, found.features[0].encoder, list(found.splits)) == (label, "my enc/v1", ["50 %"])
    assert datasets.load("mine", "my enc/v1").read("S-03").features.shape == (13, folders.D)


def test_a_project_can_be_moved_as_a_whole(tmp_path, monkeypatch):
    home = tmp_path / "home" / "project"
    monkeypatch.setenv("MILBENCH_DATA", str(home / "data"))
    cohort(home / "in")
    h5(tmp_path / "mnt" / "a.h5", features=vectors(0, 3))
    save(features=tmp_path / "mnt", encoder="far")
    before = datasets.load("mine", "enc")
    home.rename(tmp_path / "moved")
    monkeypatch.setenv("MILBENCH_DATA", str(tmp_path / "moved" / "data"))
    assert datasets.load("mine", "enc").fingerprint == before.fingerprint
    assert manifest.load("mine").features[1].folder == str(tmp_path / "mnt")


def test_a_slide_as_a_bag(tmp_path):
    cohort(tmp_path / "in")
    data = datasets.load("mine", "enc")
    assert (data.unit, data.task, data.classes, data.in_dim, data.has_coords) == (
        "slide",
        "subtyping",
        ("normal", "tumour"),
        folders.D,
        True,
    )
    assert data.sizes() == {slide: 10 + i for i, slide in enumerate(ids())}
    bag = data.read("S-03")
    assert (bag.slide_id, bag.case_id, bag.step, bag.slide_index) == ("S-03", "P3", 448, None)
    assert bag.source.endswith("S-03.h5")
    torch.testing.assert_close(bag.features, torch.from_numpy(vectors(3, 13)), rtol=0, atol=0)
    assert bag.coords.dtype == torch.int64
    assert bag.coords.tolist() == positions(13).tolist()
    assert bag.grid()[6].tolist() == [1, 1]
    assert (data.sample("S-03").label, data.sample("S-04").label) == (0, 1)
    assert data.folds("official") == (Fold(tuple(ids()[:6]), tuple(ids()[6:9]), tuple(ids()[9:])),)


def test_half_precision_is_a_choice_and_overflow_is_refused(tmp_path):
    root = cohort(tmp_path / "in")
    full, half = datasets.load("mine", "enc"), datasets.load("mine", "enc", dtype="float16")
    x = full.read("S-03").features
    assert half.read("S-03").features.dtype == torch.float32
    torch.testing.assert_close(half.read("S-03").features, x.half().float(), rtol=0, atol=0)
    assert not torch.equal(half.read("S-03").features, x)
    x = vectors(3, 13)
    x[1, 1] = 1e6
    h5(root / "features" / "h5_files" / "S-03.h5", features=x, coords=positions(13))
    with pytest.raises(MilbenchError, match=r"S-03 \(.*S-03\.h5\): values up to .* do not fit into float16"):
        datasets.load("mine", "enc", dtype="float16").read("S-03")


def scans(root):
    """Three cases, the first with slides scanned at 40x and 20x, the second with two and the third with one."""
    sources = {"C1-a": 40, "C1-b": 20, "C2-a": 40, "C2-b": 40, "C3-a": 20}
    for i, (slide, source) in enumerate(sources.items()):
        xy = positions(4 + i, 256 * source // 20, (0, 0))
        h5(root / "feats" / f"{slide}.h5", features=vectors(i, 4 + i), coords=(xy, trident_attributes(source=source)))
    return list(sources)


def test_a_case_as_a_bag_of_its_slides(tmp_path):
    slides = scans(tmp_path)
    labels = table(tmp_path / "s.csv", ["case_id", "months", "event"], [["C1", 5, 1], ["C2", 7, 0], ["C3", 9, 1]])
    save(task="survival", labels=labels, features=tmp_path / "feats", encoder="enc")
    data = datasets.load("mine", "enc")
    assert (data.unit, data.sizes()) == ("case", {"C1": 9, "C2": 13, "C3": 8})
    bag = data.read("C1")
    torch.testing.assert_close(bag.features, torch.from_numpy(np.concatenate([vectors(0, 4), vectors(1, 5)])), rtol=0, atol=0)
    assert bag.slide_index.tolist() == [0] * 4 + [1] * 5
    assert bag.step == 512
    grid = bag.grid()
    assert grid[:4].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]
    assert (grid[4:] - grid[4]).tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 0]], (
        "a 20x scan beside a 40x one has cells of the same tissue"
    )
    assert data.read("C3").slide_index.tolist() == [0] * 8
    assert [(s.time, s.event) for s in data.samples] == [(5, True), (7, False), (9, True)]
    with_slides = table(tmp_path / "t.csv", ["case_id", "slide_id", "months", "event"],
                        [[slide[:2], f"{slide}.svs", m, e] for slide, m, e in zip(slides, (5, 5, 7, 7, 9), (1, 1, 0, 0, 1), strict=True)])  # fmt: skip
    save(labels=with_slides, replace=True)
    assert datasets.load("mine", "enc").fingerprint == data.fingerprint, "the same cases, whichever table lists their slides"


def test_the_longest_name_of_a_case_takes_the_file(tmp_path):
    for i, name in enumerate(("2_1_a", "2_2", "22_1", "2")):
        h5(tmp_path / "feats" / f"{name}.h5", features=vectors(i, 3), coords=positions(3))
    labels = table(tmp_path / "l.csv", ["case_id", "label"], [["2", "a"], ["2_1", "b"], ["22", "b"]])
    save(labels=labels, features=tmp_path / "feats", encoder="enc")
    assert datasets.load("mine", "enc").sizes() == {"2": 6, "2_1": 3, "22": 3}


def test_slides_and_cases_can_be_left_out(tmp_path):
    root = cohort(tmp_path / "in")
    (root / "features" / "h5_files" / "S-03.h5").unlink()
    with pytest.raises(MilbenchError, match="leave them out everywhere: milbench data add mine --exclude S-03"):
        datasets.load("mine", "enc")
    save(exclude=["S-03.svs"])
    save(exclude=["P8"])
    data = datasets.load("mine", "enc")
    left = [slide for slide in ids() if slide not in ("S-03", "S-08")]
    assert [s.id for s in data.samples] == left
    assert [id for part in data.folds("official")[0] for id in part] == left
    assert "mine: 2 slides or cases left out by choice: P8, S-03" in data.notes


def test_the_fingerprint_follows_labels_and_features_and_nothing_else(tmp_path):
    root = cohort(tmp_path / "in")
    first = datasets.load("mine", "enc")
    folder = tmp_path / "converted"
    folder.mkdir()
    for path in (root / "features" / "h5_files").iterdir():
        x, xy = formats.read(path)
        np.savez(folder / f"{path.stem}.npz", features=x, coords=xy, step=448)
    save(features=folder, encoder="npz")
    assert datasets.load("mine", "npz").fingerprint == first.fingerprint, "another format, the same features"
    changes = {
        "label": lambda: folders.change(root / "labels.csv", "S-03,normal", "S-03,tumour"),
        "case": lambda: folders.change(root / "labels.csv", "P5,", "P4,"),
        "step": lambda: save(features=root / "features", encoder="enc", step=224, replace=True),
    }
    seen = {first.fingerprint}
    for what, change in changes.items():
        change()
        seen.add(datasets.load("mine", "enc").fingerprint)
        assert len(seen) == 2 + list(changes).index(what), what


def test_every_split_that_suites_ask_for(tmp_path):
    root = folders.cohort(tmp_path / "in", n=40)
    folders.change(root / "labels.csv", "P39,", "P1,")
    save(features=root / "features", encoder="enc", labels=root / "labels.csv",
         splits={"": root / "labels.csv", "hipt5": root / "survival.csv"})  # fmt: skip
    data = datasets.load("mine", "enc")
    assert set(data.splits) == {
        "official", "official-grouped", "hipt5", "hipt5-grouped", "kfold5", "kfold10", "extrapolation", "extrapolation-mixed",
    }  # fmt: skip
    case = {s.id: s.case_id for s in data.samples}
    for name in data.splits:
        for fold in data.folds(name):
            parts = [{case[id] for id in part} for part in fold]
            if name not in ("official", "hipt5", "extrapolation", "extrapolation-mixed"):
                assert not parts[0] & parts[2], name
    assert data.folds("official-grouped") == tuple(splits.grouped_twin(data.samples, data.folds("official"), "mine"))
    (fold,) = data.folds("extrapolation")
    assert max(data.sizes()[id] for id in fold.train) <= min(data.sizes()[id] for id in fold.test)
    assert "official-grouped" not in datasets.load(_clean(tmp_path), "enc").splits


def _clean(tmp_path):
    """A second dataset, without a patient in two parts."""
    root = folders.cohort(tmp_path / "clean")
    save("clean", features=root / "features", encoder="enc", labels=root / "labels.csv", splits={"": root / "labels.csv"})
    return "clean"


def test_splits_may_list_cases_for_slides_and_slides_for_cases(tmp_path):
    root = folders.cohort(tmp_path / "in")
    folders.change(root / "labels.csv", "P1,", "P0,")
    folders.change(root / "labels.csv", "S-01,normal", "S-01,tumour")
    by_case = table(tmp_path / "c.csv", ["train", "test"], [["P0", "P2"], ["P5", "P3"]])
    save(features=root / "features", encoder="enc", labels=root / "labels.csv", splits={"by-case": by_case})
    assert datasets.load("mine", "enc").folds("by-case") == (Fold(("S-00", "S-01", "S-05"), (), ("S-02", "S-03")),)
    by_slide = table(tmp_path / "s.csv", ["train", "test"], [["S-00.svs", "S-02"], ["S-01.svs", "S-03"], ["S-05", ""]])
    save(
        "cases", features=root / "features", encoder="enc", labels=root / "labels.csv", unit="case", splits={"by-slide": by_slide}
    )
    data = datasets.load("cases", "enc")
    assert data.folds("by-slide") == (Fold(("P0", "P5"), (), ("P2", "P3")),)
    assert data.sizes()["P0"] == 21


def test_without_positions(tmp_path):
    folders.clam(tmp_path / "in", ids(), pt=True, patches=False)
    labels = table(tmp_path / "l.csv", ["slide_id", "label"], [[slide, i % 2] for i, slide in enumerate(ids())])
    save(features=tmp_path / "in", encoder="enc", labels=labels)
    data = datasets.load("mine", "enc")
    assert not data.has_coords
    assert data.read("S-00").coords is None
    assert any("no positions in the files, or a folder of CLAM's patches files" in note for note in data.notes)
    assert data.classes == ("0", "1")


def test_labels_or_features_that_are_not_added_yet(tmp_path):
    root = folders.cohort(tmp_path / "in")
    save(features=root / "features", encoder="enc")
    with pytest.raises(NotHere, match="dataset mine: labels are not added yet: milbench data add mine --labels CSV"):
        datasets.load("mine", "enc")
    assert {info.name: info.why_not for info in datasets.infos()}["mine"] == "labels are not added yet"
