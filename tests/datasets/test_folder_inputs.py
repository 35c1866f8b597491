"""Folders of features and of splits as people have them, through the command line: each is read, or refused in words that help."""

import json
import os
import re

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from milbench import datasets
from milbench.cli import main
from tests.builders import folders
from tests.builders.command import milbench
from tests.builders.folders import h5, ids, positions, table, trident_attributes, vectors

TRAIN, VAL, TEST = ids()[:6], ids()[6:9], ids()[9:]
WHOLE = {"train": TRAIN, "val": VAL, "test": TEST}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder to work in, with a cohort in it."""
    monkeypatch.setenv("MILBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    folders.cohort(tmp_path / "in")
    return tmp_path


def words(**other):
    """What adds the cohort, with other values or without those that are None."""
    given = {"--features": "in/features", "--encoder": "enc", "--labels": "in/labels.csv", **other}
    return ["data", "add", "mine", *(word for option, value in given.items() if value is not None for word in (option, value))]


def tried(*line):
    """Exit code and output of a command, which never ends in a traceback."""
    done = CliRunner().invoke(main, [str(word) for word in line])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.output


# Splits: (a name, what writes it and returns its path, sizes of the parts of the first fold and number of folds; or what is said).

SPLITS = {}


def split(expected, folds=1):
    def keep(function):
        SPLITS[function.__name__] = (function, expected, folds)
        return function

    return keep


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def lists(folder, suffix=".csv", header="slide_id\n", **parts):
    folder.mkdir(parents=True, exist_ok=True)
    for part, some in parts.items():
        (folder / f"{part}{suffix}").write_text(header + "".join(f"{id}\n" for id in some))
    return folder


def rotated(k=3):
    """k folds of twelve slides: each third is tested once."""
    n = len(ids()) // k
    for fold in range(k):
        test, val = ids()[fold * n : (fold + 1) * n], ids()[(fold + 1) % k * n :][:n]
        yield {"train": [id for id in ids() if id not in test + val], "val": val, "test": test}


@split("6/3/3")
def json_of_parts(root):
    return dump(root / "s.json", WHOLE)


@split("6/3/3")
def json_of_other_words(root):
    return dump(root / "s.json", {"Training": TRAIN, "valid": VAL, "testing": TEST, "seed": 1, "comment": "by hand"})


@split("6/3/3")
def json_of_files_with_paths(root):
    return dump(root / "s.json", {part: [f"/mnt/wsi/{id}.svs" for id in some] for part, some in WHOLE.items()})


@split("6/3/3")
def json_of_objects_as_monai_has_them(root):
    return dump(root / "s.json", {part: [{"image": f"{id}.tif", "label": 0} for id in some] for part, some in WHOLE.items()})


@split("6/3/3")
def json_of_ids_with_labels(root):
    return dump(root / "s.json", {part: dict.fromkeys(some, 1) for part, some in WHOLE.items()})


@split("6/3/3")
def json_by_class(root):
    return dump(root / "s.json", {part: {"tumour": some[::2], "normal": some[1::2]} for part, some in WHOLE.items()})


@split("6/3/3")
def json_of_columns_in_parts(root):
    return dump(root / "s.json", {part: {"slide_id": some, "label": [0] * len(some)} for part, some in WHOLE.items()})


@split("4/4/4", 3)
def json_list_of_folds(root):
    return dump(root / "s.json", list(rotated()))


@split("4/4/4", 3)
def json_folds_by_name(root):
    return dump(root / "s.json", {f"fold_{i}": fold for i, fold in enumerate(rotated(), 1)})


@split("4/4/4", 3)
def json_folds_in_a_wrapper(root):
    return dump(root / "s.json", {"seed": 7, "folds": list(rotated())})


@split("4/4/4", 3)
def json_folds_as_slideflow_has_them(root):
    return dump(root / "s.json", [{"strategy": "k-fold", "splits": {p: dict.fromkeys(some, 0) for p, some in fold.items()}} for fold in rotated()])  # fmt: skip


@split("6/3/3")
def json_id_to_part(root):
    return dump(root / "s.json", {id: part for part, some in WHOLE.items() for id in some})


@split("4/4/4", 3)
def json_id_to_fold(root):
    return dump(root / "s.json", {id: i % 3 for i, id in enumerate(ids())})


@split("4/4/4", 3)
def json_lists_of_ids(root):
    return dump(root / "s.json", [ids()[i::3] for i in range(3)])


@split("6/3/3")
def json_rows(root):
    return dump(root / "s.json", [{"slide_id": id, "split": part} for part, some in WHOLE.items() for id in some])


@split("6/3/3")
def json_columns_as_pandas_writes_them(root):
    pairs = [(id, part) for part, some in WHOLE.items() for id in some]
    columns = {"slide_id": {str(i): id for i, (id, _) in enumerate(pairs)}, "split": {str(i): part for i, (_, part) in enumerate(pairs)}}  # fmt: skip
    return dump(root / "s.json", columns)


@split("6/3/3")
def json_with_a_byte_order_mark(root):
    (root / "s.json").write_text("\ufeff" + json.dumps(WHOLE))
    return root / "s.json"


@split(r"s\.json: no folds in it; give an object with train, val and test")
def json_of_something_else(root):
    return dump(root / "s.json", {"learning_rate": 0.1, "nothing": None})


@split(r"s\.json: not JSON \(.*line 1")
def no_json(root):
    (root / "s.json").write_text("{train: [")
    return root / "s.json"


@split(r"s\.json, train: '6' is no list of ids")
def json_of_counts(root):
    return dump(root / "s.json", {"train": 6, "val": 3, "test": 3})


@split(r"s\.json: folds are numbered from 0 or 1 up without gaps, these are 0, 2")
def json_with_a_gap(root):
    return dump(root / "s.json", {"0": WHOLE, "2": WHOLE})


def mil_baseline(path, fold):
    rows = [
        [f"/data/{a}.pt" if a else "", 0, f"/data/{b}.pt" if b else "", 1, f"/data/{c}.pt" if c else "", 0]
        for a, b, c in zip(*(some + [""] * (6 - len(some)) for some in fold.values()), strict=True)
    ]
    header = ["train_slide_path", "train_label", "val_slide_path", "val_label", "test_slide_path", "test_label"]
    return table(path, header, rows)


@split("6/3/3")
def a_table_of_mil_baseline(root):
    return mil_baseline(root / "t.csv", WHOLE)


@split("4/4/4", 3)
def a_folder_of_mil_baseline(root):
    for i, fold in enumerate(rotated(), 1):
        mil_baseline(root / "s" / f"Total_3-fold_MINE_{i}fold.csv", fold)
    return root / "s"


@split("6/3/3")
def a_column_of_ids_and_one_of_labels_for_each_part(root):
    rows = [[i, *(x for some in WHOLE.values() for x in (some[i] if i < len(some) else "", 1 if i < len(some) else ""))] for i in range(6)]  # fmt: skip
    return table(root / "t.csv", ["", "train", "train_label", "val", "val_label", "test", "test_label"], rows)


@split("4/4/4", 3)
def columns_of_parts_for_each_fold(root):
    some = list(rotated())
    header = [f"{part}_{i}" for i in range(3) for part in WHOLE]
    return table(root / "t.csv", header, zip(*(fold[part] for fold in some for part in WHOLE), strict=True))


@split("4/4/4", 3)
def rows_of_fold_and_part_as_milbench_writes_them(root):
    rows = [[i, part, id, id] for i, fold in enumerate(rotated()) for part, some in fold.items() for id in some]
    return table(root / "t.csv", ["fold", "part", "id", "case"], rows)


@split("4/4/4", 3)
def columns_of_parts_from_one(root):
    of = [{id: part for part, some in fold.items() for id in some} for fold in rotated()]
    return table(root / "k=all.tsv", ["slide_id", "fold_1", "fold_2", "fold_3"], [[id, *(one[id] for one in of)] for id in ids()])


@split("4/4/4", 3)
def a_split_column_of_fold_numbers(root):
    return table(root / "t.csv", ["slide_id", "split"], [[id, i % 3] for i, id in enumerate(ids())])


@split("6/3/3")
def parts_in_other_words(root):
    other = {"train": "Training set", "val": "validation", "test": "TEST"}
    return table(root / "t.csv", ["slide_id", "subset"], [[id, other[part]] for part, some in WHOLE.items() for id in some])


@split("6/3/3")
def flags_beside_an_index_and_ids(root):
    rows = [[i, id, *(id in some for some in WHOLE.values())] for i, id in enumerate(ids())]
    return table(root / "t.csv", ["", "slide_id", "train", "val", "test"], rows)


@split("4/4/4", 3)
def files_from_one(root):
    for i, fold in enumerate(rotated(), 1):
        table(root / "s" / f"fold{i}.csv", ["train", "val", "test"], zip(*fold.values(), strict=True))
    return root / "s"


@split("4/4/4", 3)
def files_of_json(root):
    for i, fold in enumerate(rotated()):
        dump(root / "s" / f"split_{i}.json", fold)
    return root / "s"


@split("6/3/3")
def a_file_for_each_part(root):
    return lists(root / "s", **WHOLE)


@split("6/3/3")
def lists_without_a_header(root):
    return lists(root / "s", ".txt", "", **WHOLE)


@split("6/3/3")
def lists_of_paths(root):
    return lists(root / "s", "_list.txt", "", **{part: [f"/mnt/wsi/{id}.svs" for id in some] for part, some in WHOLE.items()})


@split("not used: test_cptac.csv")
def an_external_test_part_beside_it(root):
    return lists(root / "s", **WHOLE, test_cptac=["C-1", "C-2"])


@split("4/4/4", 3)
def folders_of_parts_as_panther_has_them(root):
    for i, fold in enumerate(rotated()):
        lists(root / "s" / f"MINE_survival_k={i}", **fold)
    return root / "s"


@split("4/4/4", 3)
def files_of_parts_for_each_fold(root):
    for i, fold in enumerate(rotated()):
        lists(root / "s", ".txt", "", **{f"{part}_{i}": some for part, some in fold.items()})
    return root / "s"


@split("holds several series of folds, .*; give a folder that holds one")
def folders_of_two_cohorts(root):
    for i, fold in enumerate(rotated()):
        for cohort in ("BRCA", "LUAD"):
            lists(root / "s" / f"{cohort}_k={i}", **fold)
    return root / "s"


@split(r"holds no splits_0\.csv.*; there may be some in .*deep")
def splits_lie_deeper(root):
    lists(root / "s" / "deep", **WHOLE)
    return root / "s"


@pytest.mark.parametrize("name", SPLITS)
def test_splits_are_read_in_the_form_that_they_have(name, home):
    write, expected, folds = SPLITS[name]
    code, told = tried(*words(**{"--splits": write(home)}))
    if re.fullmatch(r"\d+/\d+/\d+", expected):
        assert code == 0, told
        assert f": {expected} (train/val/test)" in told
        found = json.loads(milbench("data", "check", "mine", "--json"))
        assert len(found["splits"]) == 3 * folds
        (of,) = datasets.load("mine", "enc").splits.keys() - {"kfold5", "kfold10", "extrapolation", "extrapolation-mixed"}
        want = [WHOLE] if folds == 1 else list(rotated())
        got = [[set(part) for part in fold] for fold in datasets.load("mine", "enc").folds(of)]
        if not {"json_id_to_fold", "json_lists_of_ids", "a_split_column_of_fold_numbers"} & {name}:
            assert got == [[set(fold[part]) for part in WHOLE] for fold in want]
        else:
            assert [fold[2] for fold in got] == [set(ids()[i::3]) for i in range(3)]
    else:
        assert re.search(expected, told), told


# Parts: what is wrong with the parts of a split, the option that goes on, and the sizes with it.


@pytest.mark.parametrize(
    ("parts", "says", "option", "sizes"),
    [
        ({"train": TRAIN, "val": TEST, "test": TEST}, "ERROR .*the validation part is the test part, .*--drop val", "val", "6/0/3"),
        ({"train": TRAIN, "val": TEST[:2], "test": TEST}, "ERROR .*2 slides in two parts.*--drop val", "val", "6/0/3"),
        ({"train": TRAIN, "val": TRAIN[:1], "test": TEST}, "ERROR .*1 slide in two parts.*--drop val", "val", "6/0/3"),
        ({"train": TRAIN, "val": VAL, "test": TRAIN[:2]}, "ERROR .*2 slides in two parts.*--drop test", "test", "6/0/3"),
        ({"train": TRAIN, "test": TEST}, "no validation part in the table: methods train as many epochs", None, "6/0/3"),
        ({"train": TRAIN, "val": VAL}, "no test part in the table; its validation part is tested", None, "6/0/3"),
    ],
)  # fmt: skip
def test_what_is_odd_about_parts_names_the_option_that_goes_on(home, parts, says, option, sizes):
    given = {"--splits": dump(home / "s.json", parts)}
    code, told = tried(*words(**given))
    assert re.search(says, told), told
    assert code == (1 if option else 0)
    if option:
        told = milbench(*words(**given, **{"--drop": option}))
        assert "part is left out by choice" in told
    assert f": {sizes} (train/val/test)" in told
    milbench("data", "check", "mine")
    assert len(datasets.load("mine", "enc").folds("official")[0].val) == 0


def test_a_dropped_part_belongs_to_a_split_and_is_replaced_when_asked(home):
    given = {"--splits": dump(home / "s.json", WHOLE)}
    milbench(*words(**given))
    before = datasets.load("mine", "enc").split_fingerprint("official")
    assert "--replace" in milbench(*words(**given, **{"--drop": "val"}), code=2)
    milbench(*words(**given, **{"--drop": "val"}), "--replace")
    assert 'official = "val"' in (home / "data" / "mine.toml").read_text()
    assert datasets.load("mine", "enc").split_fingerprint("official") != before
    milbench(*words(**given), "--replace")
    assert datasets.load("mine", "enc").split_fingerprint("official") == before
    assert "--drop leaves out a part of --splits" in milbench("data", "add", "mine", "--drop", "val", code=2)


def test_folds_of_which_some_lack_a_part(home):
    some = list(rotated())
    some[1]["val"] = []
    told = milbench(*words(**{"--splits": dump(home / "s.json", some)}))
    assert "no validation part in fold 1: only the others select an epoch; leave it out of all: add the split again with --drop val" in told  # fmt: skip
    some[1] = {**some[0], "test": []}
    told = milbench(*words(**{"--splits": dump(home / "s.json", some)}), code=1)
    assert "fold 1: the test part is empty; correct the table; to test the validation parts instead, give the split with --drop test" in told  # fmt: skip


def test_a_twin_claims_to_be_free_of_the_leaks_that_are_known_only(home):
    cases = ["P0", *(["P1"] * 2), *(f"P{i}" for i in range(3, 8)), *[""] * 4]
    cases[9] = "P0"  # in training and test
    rows = [[case, id, "tumour" if i % 2 else "normal"] for i, (id, case) in enumerate(zip(ids(), cases, strict=True))]
    given = {"--splits": dump(home / "s.json", WHOLE), "--labels": table(home / "l.csv", ["case_id", "slide_id", "label"], rows)}
    told = milbench(*words(**given))
    assert "(official-grouped has none of these; 3 slides of unknown patients may leak there, too)" in told
    for row in rows:
        row[0] = ""
    table(home / "l.csv", ["case_id", "slide_id", "label"], rows)
    milbench("data", "add", "mine", "--splits", f"hipt10={home / 's.json'}")
    assert "hipt10-grouped" not in datasets.load("mine", "enc").splits, "nobody knows which slides are of one patient"


# Feature files


def test_links_folders_and_what_cannot_be_read_have_a_line_each(home, monkeypatch):
    place = home / "in" / "features" / "h5_files"
    for slide in ("S-01", "S-02", "S-03", "S-04", "S-05"):
        (place / f"{slide}.h5").unlink()
    (place / "S-01.h5").symlink_to("gone.h5")
    (place / "S-02.h5").mkdir()
    (place / "S-03.h5").write_bytes(b"")
    (place / "S-04.h5").symlink_to("S-04.h5")
    os.mkfifo(place / "S-05.h5")
    code, told = tried(*words())
    assert code == 1
    lines = [line for line in told.splitlines() if line.startswith("ERROR")]
    for says in (
        r"S-01\.h5 is a link to gone\.h5, which does not exist", r"S-02\.h5 is a folder, not a file",
        r"S-03\.h5 is empty \(0 bytes\)", r"S-04\.h5 cannot be reached", r"S-05\.h5 is a pipe, not a file",
    ):  # fmt: skip
        assert sum(bool(re.search(says, line)) for line in lines) == 1, told
    assert len(lines) == 5


def test_files_of_another_suffix_and_vectors_of_whole_slides_are_told(home):
    for i, slide in enumerate(ids()):
        h5(home / "upper" / f"{slide}.H5", features=vectors(i, 9), coords=positions(9))
        h5(home / "vectors" / f"{slide}.h5", features=vectors(i, 1))
    told = milbench(*words(**{"--features": "upper"}), code=2)
    assert "upper holds no .h5, .pt or .npz files" in told and "in it; it holds 12 .H5" in told
    assert "every slide has one patch only: are these vectors of whole slides?" in milbench(*words(**{"--features": "vectors"}))


def test_300_missing_slides_are_in_a_file_that_leaves_them_out(home):
    rows = [[f"P{i}", f"S-{i:02d}", "tumour" if i % 2 else "normal"] for i in range(312)]
    labels = table(home / "l.csv", ["case_id", "slide_id", "label"], rows)
    code, told = tried(*words(**{"--labels": labels}))
    path = home / "data" / "mine-missing.txt"
    assert code == 1
    assert (
        f"300 of 312 slides without a .h5 file in {home / 'in' / 'features' / 'h5_files'}, the first 10 are S-12, S-13, " in told
    )
    assert f"all are in {path}; extract them, or leave them out everywhere: milbench data add mine --exclude {path}" in told
    assert path.read_text().split() == [f"S-{i:02d}" for i in range(12, 312)]
    told = milbench(*words(**{"--labels": labels, "--exclude": path}))
    assert "12 slides of 12 cases" in told


ATTRIBUTES = {
    "an array of one": ({"patch_size_level0": np.array([512]), "target_magnification": np.array([20])}, "512 px apart"),
    "text": ({"patch_size_level0": "512", "patch_size": "256"}, "512 px apart"),
    "bytes": ({"patch_size_level0": np.bytes_("512"), "encoder": np.bytes_("enc")}, "512 px apart"),
    "an array of text": ({"encoder": np.array(["enc"], h5py.string_dtype())}, "512 px apart"),
    "the text None": ({"target_magnification": "None", "encoder": "None"}, "512 px apart"),
    "nothing": ({"patch_size": h5py.Empty("f4")}, "512 px apart"),
    "a pair of equal numbers": ({"patch_size": (256, 256)}, "512 px apart"),
    "a pair of two numbers": ({"patch_size": (256, 224)}, "`patch_size` that is 256, 224"),
    "NaN": ({"patch_size_level0": np.nan}, "`patch_size_level0` that is nan"),
    "infinite": ({"patch_size_level0": np.inf}, "`patch_size_level0` that is inf"),
    "negative": ({"patch_size_level0": -512}, "`patch_size_level0` that is -512"),
    "zero": ({"patch_size_level0": 0}, "`patch_size_level0` that is 0"),
    "a table": ({"patch_size_level0": np.zeros(3, [("a", "i4")])}, "`patch_size_level0` that is neither number nor text"),
    "words": ({"overlap": "half"}, "`overlap` that is half"),
    "the width of the slide in words": ({"level0_width": "wide", "level0_height": 9}, "`level0_width` that is wide"),
}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_attributes_of_every_form(home, kind):
    change, says = ATTRIBUTES[kind]
    for i, slide in enumerate(ids()):
        attributes = {**trident_attributes(), **(change if slide == "S-03" else {})}
        h5(home / "trident" / f"{slide}.h5", features=vectors(i, 30), coords=(positions(30, 512), attributes))
    code, told = tried(*words(**{"--features": "trident", "--magnification": 20, "--patch-size": 256}))
    assert says in told, told
    assert code == ("px apart" not in says)
    assert "S-03.h5" in told or code == 0
    if code == 0:
        json.loads(milbench("data", "check", "mine", "--json"))


def test_positions_on_no_lattice_take_the_step_that_is_given(home):
    for i, slide in enumerate(ids()):
        xy = np.random.default_rng(i).integers(0, 20000, (40, 2))
        h5(home / "loose" / f"{slide}.h5", features=vectors(i, 40), coords=xy)
    told = milbench(*words(**{"--features": "loose"}))
    assert re.search(r"12 slides whose patches lie on no lattice: .* px are taken for it; where that is wrong, give it: .*--step PIXELS", told)  # fmt: skip
    before = datasets.load("mine", "enc")
    told = milbench(*words(**{"--features": "loose", "--step": 512}), "--replace")
    assert "patches 512 px apart" in told and "--step PIXELS" not in told
    after = datasets.load("mine", "enc")
    assert after.read("S-00").step == 512
    assert "step = 512.0" in (home / "data" / "mine.toml").read_text()
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("by", ["the slide's size", "the patches file"])
def test_positions_that_are_y_x_are_told_and_exchanged_when_asked(home, by):
    xy = positions(40, 448, (0, 0), columns=20)  # two rows: wide, and not high
    for i, slide in enumerate(ids()):
        size = {"level0_width": 10000, "level0_height": 1000} if by == "the slide's size" else {}
        attributes = trident_attributes(224, **size) if size else {}
        h5(home / "wrong" / f"{slide}.h5", features=vectors(i, 40), coords=(xy[:, ::-1], attributes))
        if not size:
            h5(home / "patches" / f"{slide}.h5", coords=(xy, {"patch_size": 448, "patch_level": 0}))
    told = milbench(*words(**{"--features": "wrong"}))
    assert (
        "12 slides whose positions are (y, x) in their files, not (x, y), by the size of the slide or their patches files: S-00"
        in told
    )
    assert "add the features again with --swap-xy, and with --replace" in told
    before = datasets.load("mine", "enc")
    told = milbench(*words(**{"--features": "wrong"}), "--swap-xy", "--replace")
    assert "(y, x)" not in told
    after = datasets.load("mine", "enc")
    assert "swap_xy = true" in (home / "data" / "mine.toml").read_text()
    np.testing.assert_array_equal(before.read("S-00").coords.numpy(), xy[:, ::-1])
    np.testing.assert_array_equal(after.read("S-00").coords.numpy(), xy)
    assert after.fingerprint != before.fingerprint
    milbench(*words(**{"--features": "wrong"}), "--replace")
    assert datasets.load("mine", "enc").fingerprint == before.fingerprint


def test_exchanging_right_positions_and_positions_beyond_the_slide_are_told(home):
    for i, slide in enumerate(ids()):
        size = {"level0_width": 10000, "level0_height": 1000 if i else 300}
        xy = positions(40, 448, (0, 0), columns=20)
        h5(home / "right" / f"{slide}.h5", features=vectors(i, 40), coords=(xy, trident_attributes(224, **size)))
    told = milbench(*words(**{"--features": "right"}), "--swap-xy")
    assert "11 slides whose positions are (x, y) in their files, not (y, x) as --swap-xy says" in told
    assert "1 slide with patches beyond the edges of the slide that their attributes give: S-00" in told
    assert "--swap-xy describe --features DIR" in milbench("data", "add", "mine", "--swap-xy", code=2)


# From a dataset to a suite


def grid(home, **change):
    """A suite file over the cohort's features that leaves out what is None."""
    values = {"dataset": ["mine"], "encoder": ["enc"], "magnification": [20], "patch_size": [224], "split": ["kfold5"], "seed": [0], "aggregator": ["mean"], **change}  # fmt: skip
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
    path = home / "s.toml"
    path.write_text(
        "\n".join(['title = "S"', "[grid]", *lines, '[table]\nname = "s"\nmetrics = ["macro_auc"]', 'reference = "mean"'])
    )
    return path


def test_a_suite_that_leaves_the_variant_out_takes_the_only_one_and_keeps_it(home):
    milbench(*words(**{"--magnification": 20, "--patch-size": 224}))
    from milbench.suites import expand, load

    whole, short = (expand(load(str(grid(home, **how))))[1] for how in ({}, {"magnification": None, "patch_size": None}))
    assert [job.spec.trial_id for job in whole] == [job.spec.trial_id for job in short]
    milbench("data", "add", "mine", "--features", "in/features", "--encoder", "enc", "--magnification", 10, "--patch-size", 224)
    told = milbench("run", "--suite", grid(home, magnification=None, patch_size=None), "--dry-run", code=2)
    assert "dataset mine has several sets of features of enc: enc 20x 224 px, enc 10x 224 px" in told
    assert "say which, in the [grid] of a suite for example by: magnification = [20]" in told
    assert "enc · 10x · 224 px" in milbench("run", "--suite", grid(home, magnification=[10], patch_size=None), "--dry-run")
    assert "no features of enc 40x" in milbench("run", "--suite", grid(home, magnification=[40]), "--dry-run")


def test_a_suite_is_written_from_a_dataset_and_runs_without_a_file(home):
    milbench(*words(**{"--magnification": 20, "--splits": "in/labels.csv"}))
    milbench("data", "add", "mine", "--features", "in/features", "--encoder", "other")
    told = milbench("new", "suite", "first", "--dataset", "mine")
    assert "Next: milbench run --suite first.toml --dry-run" in told
    text = (home / "first.toml").read_text()
    assert all(line in text for line in ('dataset = ["mine"]', 'encoder = ["enc"]', "magnification = [20]", 'split = ["official"]', "# also here: other"))  # fmt: skip
    from_file = milbench("run", "--suite", "first.toml", "--dry-run")
    without = milbench("run", "--dataset", "mine", "--dry-run")
    assert "7 trials: 7 to run" in from_file and "LongMIL" in from_file
    assert from_file.replace("first:", "mine-usual:") == without
    assert "unknown dataset 'mien'; did you mean mine" in milbench("run", "--dataset", "mien", "--dry-run", code=2)
    assert "say what to run: --suite NAME, or --dataset NAME" in milbench("run", code=2)
    assert "suite mine-usual has no --small form" in milbench("run", "--dataset", "mine", "--small", "--dry-run", code=2)
    assert "dataset bracs cannot be run yet: add it with" in milbench("new", "suite", "b", "--dataset", "bracs", code=2)
    milbench("data", "add", "late", "--labels", "in/survival.csv", "--splits", "in/survival.csv", "--task", "survival", "--features", "in/features", "--encoder", "enc")  # fmt: skip
    told = milbench("run", "--dataset", "late", "--dry-run")
    assert "7 trials: 7 to run" in told
