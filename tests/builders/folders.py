"""Folders of features and tables as CLAM and TRIDENT write them, made on the spot, whole or broken."""

import csv
import os
import pickle

import h5py
import numpy as np
import torch

D = 6  # width of features


def ids(n=12):
    return [f"S-{i:02d}" for i in range(n)]


def positions(n, step=448, at=(1000, 2000), columns=5):
    """(n, 2) positions row by row, ints as CLAM stores them."""
    i = np.arange(n)
    return (np.stack([i % columns, i // columns], axis=1) * step + np.array(at)).astype(np.int32)


def vectors(i, n, d=D, shift=0.0):
    """(n, d) features of slide i, which stand `shift` higher for every second slide."""
    return (np.random.default_rng(i).normal(size=(n, d)) + shift * (i % 2)).astype(np.float32)


def h5(path, **arrays):
    """Arrays, with their attributes where given as (array, attributes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, given in arrays.items():
            array, attributes = given if isinstance(given, tuple) else (given, {})
            file[name] = array
            file[name].attrs.update(attributes)
    return path


def feature_file(path, bag, **attributes):
    """The bag as an h5 file with attributes beside its coordinates."""
    return h5(path, features=bag.features.numpy(), coords=(bag.coords.numpy(), attributes))


def trident_attributes(size=256, magnification=20, source=40, overlap=0, **more):
    return {
        "patch_size": size, "patch_size_level0": size * source // magnification, "level0_magnification": source,
        "target_magnification": magnification, "overlap": overlap, **more,
    }  # fmt: skip


def clam(root, slides, sizes=None, *, step=448, pt=False, d=D, shift=0.0, patches=True):
    """CLAM's layout: features without attributes, patches files that say size and downsample."""
    for i, slide in enumerate(slides):
        n = sizes[i] if sizes else 10 + i
        xy = positions(n, step)
        if pt:
            (root / "pt_files").mkdir(parents=True, exist_ok=True)
            torch.save(torch.from_numpy(vectors(i, n, d, shift)), root / "pt_files" / f"{slide}.pt")
        else:
            h5(root / "h5_files" / f"{slide}.h5", features=vectors(i, n, d, shift), coords=xy)
        if patches:
            attributes = {"patch_size": step // 2, "patch_level": 1, "downsample": (2.0, 2.0)}
            h5(root / "patches" / f"{slide}.h5", coords=(xy, attributes))
    return root


def table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def cohort(root, n=12, **how):
    """Twelve good slides of two classes in CLAM's layout, a label table, a split table and a survival table in `root`."""
    slides = ids(n)
    clam(root / "features", slides, **how)
    kinds = ["tumour", "normal"]
    parts = ["train"] * (n // 2) + ["val"] * (n // 4) + ["test"] * (n - n // 2 - n // 4)
    rows = [[f"P{i}", slide, kinds[i % 2], parts[i]] for i, slide in enumerate(slides)]
    table(root / "labels.csv", ["case_id", "slide_id", "label", "split"], rows)
    rows = [[f"P{i}", slide, 1.5 * i, i % 3 // 2, parts[i]] for i, slide in enumerate(slides)]
    table(root / "survival.csv", ["case_id", "slide_id", "survival_months", "censorship", "split"], rows)
    return root


def change(path, old, new):
    """Replace text in a table, and make sure that it was there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# What is broken -> how, in the folder of a good cohort (returns other arguments for `data add`, if any), and what is to be said.
BROKEN = {}


def broken(says):
    def keep(function):
        BROKEN[function.__name__] = (function, says)
        return function

    return keep


def _h5(root, slide="S-03", folder="h5_files", **arrays):
    return h5(root / "features" / folder / f"{slide}.h5", **arrays)


def _other(root, suffix):
    """A folder with one good file in another format and nothing of CLAM's."""
    folder = root / "other"
    folder.mkdir()
    for i, slide in enumerate(ids()):
        if suffix == "pt":
            torch.save(torch.from_numpy(vectors(i, 5)), folder / f"{slide}.pt")
        else:
            np.savez(folder / f"{slide}.npz", features=vectors(i, 5), coords=positions(5))
    return folder, {"--features": folder}


@broken(r"folder of features .*nowhere does not exist")
def no_folder(root):
    return {"--features": root / "nowhere"}


@broken(r"folder of features .*labels\.csv does not exist; it is a file")
def a_file_for_a_folder(root):
    return {"--features": root / "labels.csv"}


@broken(r"holds no \.h5, \.pt or \.npz files.*; there are some in .*deep")
def files_lie_deeper(root):
    h5(root / "above" / "deep" / "S-00.h5", features=vectors(0, 3))
    return {"--features": root / "above"}


@broken("folder of patches .*nowhere does not exist")
def no_patches_folder(root):
    return {"--patches": root / "nowhere"}


@broken(r"S-03\.h5 cannot be read as HDF5 .*truncated.*; copy or extract it again")
def half_a_file(root):
    path = root / "features" / "h5_files" / "S-03.h5"
    path.write_bytes(path.read_bytes()[:-700])


@broken(r"S-03\.h5 cannot be read as HDF5 .*signature not found")
def not_hdf5(root):
    (root / "features" / "h5_files" / "S-03.h5").write_text("<html>404</html>")


@broken(r"S-03\.h5 has no array `features`, only coords; this is a patches file")
def patches_for_features(root):
    _h5(root, coords=positions(4))


@broken(r"S-03\.h5 has no array `features`, only embeddings; rename")
def another_key(root):
    _h5(root, embeddings=vectors(3, 13))


@broken(r"S-03\.h5 holds no patches; segment the slide again")
def no_patches(root):
    _h5(root, features=np.zeros((0, D), np.float32), coords=np.zeros((0, 2), np.int32))


@broken(r"2 files, of which S-03\.h5 holds no patches.*: S-03, S-04")
def no_patches_and_unknown_width(root):
    for slide in ("S-03", "S-04"):
        _h5(root, slide, features=np.zeros(0, np.float32), coords=np.zeros((0, 2), np.int32))


@broken(r"S-03\.h5 holds one vector of 768 values for the whole slide")
def a_slide_embedding(root):
    _h5(root, features=np.zeros(768, np.float32))


@broken(r"1 slide not 6 wide as the others: S-03 \(8\)")
def another_width(root):
    _h5(root, features=vectors(3, 13, 8), coords=positions(13))


@broken(r"1 slide with NaN or infinite values: S-03; extract them again")
def nan(root):
    x = vectors(3, 13)
    x[0, 2] = np.nan
    _h5(root, features=x, coords=positions(13))


@broken(r"S-03\.h5 has 13 rows of features and coords of shape \(12, 2\)")
def positions_of_fewer_patches(root):
    _h5(root, features=vectors(3, 13), coords=positions(12))


@broken(r"S-03\.h5 has 13 rows of features and coords of shape \(13, 4\)")
def boxes_for_positions(root):
    _h5(root, features=vectors(3, 13), coords=np.zeros((13, 4), np.int32))


@broken(r"S-03\.h5 has positions that are NaN or infinite")
def nan_positions(root):
    _h5(root, features=vectors(3, 13), coords=np.full((13, 2), np.nan))


@broken(r"S-03\.h5 features are int64, not floating point")
def whole_numbers(root):
    _h5(root, features=np.zeros((13, D), np.int64), coords=positions(13))


@broken(r"S-03\.h5 features are \(2, 13, 6\), not \(n, d\)")
def two_bags_in_one(root):
    _h5(root, features=np.zeros((2, 13, D), np.float32), coords=positions(13))


@broken(r"1 slide without positions, while others have them: S-03; extract them again, or give --patches")
def some_without_positions(root):
    _h5(root, features=vectors(3, 13))
    (root / "features" / "patches" / "S-03.h5").unlink()


@broken(r"2 slides without two neighbouring patches, so their distance is unknown: S-00, S-01; give it: .*--step")
def nothing_tells_the_distance(root):
    for i, slide in enumerate(("S-00", "S-01")):
        h5(root / "sparse" / f"{slide}.h5", features=vectors(i, 3), coords=np.array([[0, 0], [500, 700], [900, 90]]))
    labels = table(root / "two.csv", ["slide_id", "label"], [["S-00", "a"], ["S-01", "b"]])
    return {"--features": root / "sparse", "--labels": labels, "--splits": None}


@broken(r"S-03\.pt holds Python objects .*so it was not read; let TRIDENT write h5 files")
def a_pickle_that_runs_code(root):
    folder, arguments = _other(root, "pt")
    torch.save(Trap(root / "trapped"), folder / "S-03.pt")
    return arguments


@broken(r"S-04\.pt holds Python objects")
def an_old_pickle_that_runs_code(root):
    folder, arguments = _other(root, "pt")
    (folder / "S-04.pt").write_bytes(pickle.dumps(Trap(root / "trapped"), protocol=2))
    return arguments


@broken(r"S-05\.pt holds Python objects instead of a tensor \(TRIDENT's \.pt files hold a NumPy array\)")
def tridents_pt(root):
    folder, arguments = _other(root, "pt")
    torch.save(vectors(3, 5), folder / "S-05.pt")
    return arguments


@broken(r"S-03\.pt holds a dict with features, coords instead of a tensor; store the \(n, d\) tensor alone")
def a_dictionary(root):
    folder, arguments = _other(root, "pt")
    torch.save({"features": torch.zeros(5, D), "coords": torch.zeros(5, 2)}, folder / "S-03.pt")
    return arguments


@broken(r"S-03\.pt cannot be read as a torch file")
def half_a_torch_file(root):
    folder, arguments = _other(root, "pt")
    (folder / "S-03.pt").write_bytes((folder / "S-03.pt").read_bytes()[:300])
    return arguments


@broken(
    r"of which S-00\.pt has 5 patches, .*patches/S-00\.h5 lists 10: S-00, S-01, S-02 and 9 more; they come from two extractions"
)
def patches_of_another_extraction(root):
    _, arguments = _other(root, "pt")
    return {**arguments, "--patches": root / "features" / "patches"}


@broken(r"S-03\.npz holds Python objects; reading them can run code")
def objects_in_npz(root):
    folder, arguments = _other(root, "npz")
    np.savez(folder / "S-03.npz", features=np.array([Trap(root / "trapped")], dtype=object))
    return arguments


@broken(r"S-03\.npz has no array `features`, only arr_0")
def npz_without_features(root):
    folder, arguments = _other(root, "npz")
    np.savez(folder / "S-03.npz", vectors(3, 5))
    return arguments


@broken(r"S-03\.npz cannot be read as npz")
def not_npz(root):
    folder, arguments = _other(root, "npz")
    (folder / "S-03.npz").write_text("nothing")
    return arguments


@broken(
    r"1 of 12 slides without a \.h5 file in .*: S-03; extract them, or leave them out everywhere: milbench data add mine --exclude S-03"
)
def missing(root):
    (root / "features" / "h5_files" / "S-03.h5").unlink()


@broken(r"1 slide whose file has another name than the slide has in the label table: S-03 \(file s_03\)")
def misnamed(root):
    folder = root / "features" / "h5_files"
    (folder / "S-03.h5").rename(folder / "s_03.h5")


@broken(r"S-03\.h5 and S-03\.svs\.h5 are both of the same slide; remove one")
def two_files_of_a_slide(root):
    _h5(root, "S-03.svs", features=vectors(3, 13), coords=positions(13))


def _trident(root, **changes):
    for i, slide in enumerate(ids()):
        attributes = trident_attributes(**(changes if slide == "S-03" else {}))
        h5(root / "trident" / f"{slide}.h5", features=vectors(i, 9), coords=(positions(9, 512), attributes))
    return {"--features": root / "trident", "--magnification": 20, "--patch-size": 256}


@broken(r"1 file of another magnification than 20 by their attributes: S-03 \(10\)")
def another_magnification(root):
    return _trident(root, magnification=10)


@broken(r"1 file of another patch size than 256 by their attributes: S-03 \(512\)")
def another_patch_size(root):
    return _trident(root, size=512)


@broken(r"table .*nowhere\.csv does not exist")
def no_label_table(root):
    return {"--labels": root / "nowhere.csv"}


@broken(r"empty\.csv: not a table of comma- or tab-separated text")
def an_empty_table(root):
    (root / "empty.csv").touch()
    return {"--labels": root / "empty.csv"}


@broken(r"labels\.csv: the table has no rows")
def a_header_and_nothing_else(root):
    (root / "labels.csv").write_text("case_id,slide_id,label,split\n")


@broken(
    r"no column of slides or cases such as slide_id or case_id; it has who, slyde, label, split; name yours with --columns slide=NAME"
)
def no_column_of_slides(root):
    change(root / "labels.csv", "case_id,slide_id", "who,slyde")


@broken(r"no column of labels such as label; it has .*--columns label=NAME")
def no_column_of_labels(root):
    change(root / "labels.csv", "label,", "finding,")


@broken(r"unknown column of .*labels\.csv 'labl'; did you mean label")
def an_unknown_column(root):
    return {"--columns": "label=labl"}


@broken(r"labels\.csv, row 5: S-03 has no label; fill it in or remove the row")
def a_row_without_label(root):
    change(root / "labels.csv", "S-03,normal", "S-03,")


@broken(r"labels\.csv, row 6: no slide is named")
def a_row_without_slide(root):
    change(root / "labels.csv", "S-04,", ",")


@broken(r"row 5: S-02 is listed twice, with case P2 and label tumour and with case P3 and label normal")
def a_slide_twice(root):
    change(root / "labels.csv", "S-03,", "S-02.svs,")


@broken(r"all 12 samples are tumour; there is nothing to tell apart")
def one_class(root):
    change(root / "labels.csv", "normal", "tumour")


@broken(r"unknown label of .*labels\.csv 'norml'; did you mean normal")
def a_class_of_unknown_labels(root):
    return {"--classes": "tumour,healthy=norml"}


@broken(r"--classes has no class for normal")
def a_label_without_class(root):
    return {"--classes": "tumour"}


@broken(r"--classes: tumour stands in two classes")
def a_label_in_two_classes(root):
    return {"--classes": "one=tumour,two=tumour+normal"}


@broken(r"split official: 1 id not in the label table: S-99; .*--exclude S-99")
def an_unknown_id_in_a_split(root):
    return {"--splits": table(root / "s.csv", ["slide_id", "split"], [["S-00", "train"], ["S-01", "train"], ["S-99", "train"], ["S-02", "test"]])}  # fmt: skip


@broken(r"split official: none of its 2 ids is in the label table: X1, X2; their spelling differs")
def another_cohorts_split(root):
    return {"--splits": table(root / "s.csv", ["slide_id", "split"], [["X1", "train"], ["X2", "test"]])}


@broken(r"split official: 1 slide in two parts: S-02")
def a_slide_in_two_parts(root):
    rows = [["S-00", "S-02"], ["S-01", "S-03"], ["S-02", ""]]
    return {"--splits": table(root / "s.csv", ["train", "test"], rows)}


@broken(r"split official: the test part is empty")
def nobody_to_test(root):
    return {"--splits": table(root / "s.csv", ["train", "val", "test"], [["S-00", "", ""], ["S-01", "", ""]])}


@broken(r"split official: no normal in the train part; no model can learn it")
def a_class_that_is_not_trained(root):
    return {"--splits": table(root / "s.csv", ["train", "test"], [["S-00", "S-01"], ["S-02", "S-03"]])}


@broken(r"column split: S-03 is in the part 'trian'; parts are train, val and test")
def an_unknown_part(root):
    change(root / "labels.csv", "S-03,normal,train", "S-03,normal,trian")


@broken(r"folds are numbered from 0 or 1 up without gaps, these are 0, 2")
def a_missing_fold(root):
    for number in (0, 2):
        table(root / "splits" / f"splits_{number}.csv", ["", "train", "val", "test"], [[0, "S-00", "S-01", "S-02"]])
    return {"--splits": root / "splits"}


@broken(r"features holds no splits_0\.csv, splits_1\.csv and so on")
def a_folder_without_splits(root):
    return {"--splits": root / "features"}


@broken(r"s\.csv: no column of parts such as split, or of folds such as fold; it has slide_id, part_of_it")
def a_split_table_without_parts(root):
    return {"--splits": table(root / "s.csv", ["slide_id", "part_of_it"], [["S-00", "train"]])}


@broken(r"column fold: 2 folds; with a test and a validation part there must be at least 3")
def two_folds(root):
    return {"--splits": table(root / "s.csv", ["slide_id", "fold"], [[slide, i % 2] for i, slide in enumerate(ids())])}


def _survival(root, old="", new=""):
    change(root / "survival.csv", old, new)
    return {"--labels": root / "survival.csv", "--task": "survival"}


@broken(r"survival\.csv, row 5: case P3 has the time '-4\.5'; it must be a number from 0 up")
def a_negative_time(root):
    return _survival(root, "S-03,4.5", "S-03,-4.5")


@broken(r"row 5: case P3 has the censorship '2'; it must be 0 or 1")
def an_unknown_event(root):
    return _survival(root, "S-03,4.5,0", "S-03,4.5,2")


@broken(r"row 5: case P2 has time 4\.5 and event True here and time 3 and event False in another row")
def two_follow_ups_of_a_case(root):
    return _survival(root, "P3,", "P2,")


@broken(r"no column of times such as survival_months or survival_days")
def no_times(root):
    return _survival(root, "survival_months", "waiting")


@broken(r"no column of events such as event or censorship")
def no_events(root):
    return _survival(root, "censorship", "outcome")


@broken(r"table survival\.csv: events: no samples; correct the table, or say which column it is")
def nobody_has_an_event(root):
    text = (root / "survival.csv").read_text()
    (root / "survival.csv").write_text(text.replace(",0,", ",1,"))
    return {"--labels": root / "survival.csv", "--task": "survival"}


@broken(r"1 case with slides of two classes: P2; predict slides instead")
def a_case_of_two_classes(root):
    change(root / "labels.csv", "P3,", "P2,")
    return {"--unit": "case"}


@broken(r"musk1 is a built-in dataset; choose another name")
def a_taken_name(root):
    return {"name": "musk1"}


@broken(r"dataset My Set: name: string should match pattern")
def a_name_with_blanks(root):
    return {"name": "My Set"}


@broken("--features needs --encoder")
def no_encoder(root):
    return {"--encoder": None}


@broken("describe --features DIR, which is missing")
def an_encoder_of_nothing(root):
    return {"--features": None}


@broken("unknown published cohort 'brax'; did you mean bracs")
def an_unknown_cohort(root):
    return {"--published": "brax"}
