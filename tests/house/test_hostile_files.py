"""Files of others are hostile until read: odd, broken or made to harm, each is read rightly or told in one line."""

import gzip
import io
import json
import os
import resource
import signal
import socket
import struct
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from milbench import MilbenchError, files
from milbench.cli import main
from milbench.datasets.files import containers, split_files
from milbench.datasets.files.containers import attributes
from milbench.datasets.files.formats import BadFile, inspect, layout, read
from milbench.delimited import Delimited
from milbench.papers.sheets import Sheet
from tests.builders import folders
from tests.builders.folders import h5, positions, trident_attributes, vectors

X, XY = vectors(0, 13), positions(13)


def refused(path, says, look=inspect):
    with pytest.raises(BadFile, match=says) as told:
        look(path)
    assert str(told.value).startswith(f"{path}: ")
    assert "\n" not in str(told.value)
    return told.value


# HDF5: what is not an array of this file, and what is not in it

H5 = {}


def odd(says):
    def keep(build):
        H5[build.__name__] = (build, says)
        return build

    return keep


@odd("has a group `features` where an array should be")
def group(file, beside):
    file.create_group("features")


@odd("has a group `coords` where an array should be")
def group_of_positions(file, beside):
    file["features"] = X
    file.create_group("coords")


@odd("has a type `features` where an array should be")
def committed_type(file, beside):
    file["features"] = np.dtype("f4")


@odd("holds no values in `features`")
def empty(file, beside):
    file["features"] = h5py.Empty("f4")


@odd(r"features are \(\), not \(n, d\)")
def scalar(file, beside):
    file["features"] = np.float32(3)


@odd("has a link `features` to nowhere, which is not in it")
def dangling_link(file, beside):
    file["features"] = h5py.SoftLink("/nowhere")


@odd("has a link `features` that leads back to itself")
def circular_link(file, beside):
    file["features"], file["other"] = h5py.SoftLink("/other"), h5py.SoftLink("/features")


@odd("has a link `features` into another file")
def external_link(file, beside):
    file["features"] = h5py.ExternalLink(str(beside), "/features")


@odd("has a link `features` into another file")
def link_to_an_external_link(file, beside):
    file["deep"], file["features"] = h5py.ExternalLink(str(beside), "/"), h5py.SoftLink("/deep/features")


@odd("has an array `features` whose values lie in another file")
def external_values(file, beside):
    file.create_dataset("features", shape=(4, 4), dtype="f4", external=[(str(beside), 0, 64)])


@odd("has a virtual array `features`")
def virtual(file, beside):
    parts = h5py.VirtualLayout(shape=X.shape, dtype="f4")
    parts[:] = h5py.VirtualSource(str(beside), "features", shape=X.shape)
    file.create_virtual_dataset("features", parts)


@odd("features are .*, not floating point")
def records(file, beside):
    file["features"] = np.zeros((5, 3), [("a", "f4"), ("b", "i4")])


@odd("features are Python objects or text, not floating point")
def text(file, beside):
    file["features"] = np.array([["a", "b"]] * 5, h5py.string_dtype())


@odd("features are complex64, not floating point")
def complex_numbers(file, beside):
    file["features"] = X.astype(np.complex64)


@odd(r"has coords that are \|S1, not numbers")
def positions_of_text(file, beside):
    file["features"], file["coords"] = X, np.array([[b"a", b"b"]] * 13)


@odd("has coords that are complex64, not numbers")
def complex_positions(file, beside):
    file["features"], file["coords"] = X, XY.astype(np.complex64)


@odd("declares 1,000,000,000 rows of `features` but holds only 0 of 976,563 pieces")
def never_written(file, beside):
    file.create_dataset("features", shape=(10**9, 1024), dtype="f4", chunks=(1024, 1024))


@odd("declares 1,000,000 rows of `features` but holds only 1 of 1,000 pieces")
def written_in_part(file, beside):
    file.create_dataset("features", shape=(10**6, 6), dtype="f4", chunks=(1000, 6), compression="gzip")[:1000] = 1


@odd(r"declares `features` of shape \(10000000, 64\), 2,560,000,000 bytes, but holds only 0 bytes")
def in_one_piece_and_never_written(file, beside):
    file.create_dataset("features", shape=(10**7, 64), dtype="f4")


@odd(r"declares `features` of shape \(200000, 128\).* but holds only [\d,]+ bytes of it")
def packed_too_tightly_to_be_features(file, beside):
    file.create_dataset("features", data=np.zeros((200_000, 128), "f4"), chunks=(50_000, 128), compression="gzip")


@odd("declares 3,000,000,000 rows of `coords`")
def huge_positions(file, beside):
    file["features"] = X
    file.create_dataset("coords", shape=(3 * 10**9, 2), dtype="i8", chunks=(1024, 2))


@odd("has positions that are NaN or infinite")
def nan_position(file, beside):
    file["features"], file["coords"] = X, np.where(np.arange(26).reshape(13, 2) == 3, np.nan, XY)


@odd("has positions beyond 2,147,483,648 pixels")
def far_position(file, beside):
    file["features"], file["coords"] = X, np.where(np.arange(26).reshape(13, 2) == 3, -1e300, XY)


@odd("has positions beyond 2,147,483,648 pixels")
def position_that_no_int64_holds(file, beside):
    file["features"], file["coords"] = X, np.where(np.arange(26).reshape(13, 2) == 3, 2**63 + 1, XY.astype(np.uint64))


@pytest.mark.parametrize("name", H5)
def test_an_odd_h5_file_is_told_in_one_line(name, tmp_path):
    build, says = H5[name]
    beside = h5(tmp_path / "beside.h5", features=X)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        build(file, beside)
    refused(tmp_path / "a.h5", says)
    refused(tmp_path / "a.h5", says, read)


def test_links_within_a_file_are_followed(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/uni"] = X
        file["deep/also"] = h5py.SoftLink("./uni")
        file["features"] = h5py.SoftLink("/deep/also")
        file["coords"] = XY
    np.testing.assert_array_equal(read(tmp_path / "a.h5")[0], X)


def test_a_link_to_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(tmp_path / "pipe"), "/features")
    with time_limit(10):
        refused(tmp_path / "a.h5", "into another file")


def test_a_filter_that_is_not_here_is_named(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=X, chunks=(13, folders.D), compression="lzf")
    raw = path.read_bytes()
    at = raw.index(struct.pack("<HH", 32000, 8))  # the filter message: code, length of the name
    path.write_bytes(raw[:at] + struct.pack("<H", 32099) + raw[at + 2 :])
    refused(path, "packed with filter 32099 lzf that is not installed here")


@pytest.mark.parametrize("how", [{"compression": "gzip", "shuffle": True}, {"compression": "lzf"}, {"fletcher32": True}, {}])
def test_packed_files_are_read_as_ever(tmp_path, how):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=X, chunks=(4, 4), maxshape=(None, folders.D), **how)
        file.create_dataset("coords", data=XY, chunks=(1, 2))
    features, coords = read(tmp_path / "a.h5")
    np.testing.assert_array_equal(features, X)
    np.testing.assert_array_equal(coords, XY)
    with h5py.File(tmp_path / "b.h5", "w") as file:  # constant features pack well, and small ones may
        file.create_dataset("features", data=np.zeros((5000, 64), "f4"), chunks=True, compression="gzip")
    assert inspect(tmp_path / "b.h5").n == 5000


# Attributes


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("patch_size", np.array([256]), 256),
        ("patch_size", np.array([[256, 256]]), 256),
        ("patch_size", "256", 256),
        ("patch_size", b" 256.5 ", 256.5),
        ("patch_size", np.array([b"224", b"224"]), 224),
        ("patch_size", np.uint16(256), 256),
        ("patch_size", np.float16(256), 256.0),
        ("patch_size", np.longdouble(256), 256.0),
        ("downsample", (4.000123, 4.0), 4.000123),
        ("overlap", 0, 0),
        ("patch_level", np.int8(0), 0),
        ("encoder", np.bytes_("uni"), "uni"),
        ("encoder", np.array([b"uni"]), "uni"),
        ("encoder", np.array(["uni"], h5py.string_dtype()), "uni"),
        ("encoder", "256", "256"),
        ("custom_downsample", np.zeros(0), None),
        ("target_magnification", "None", None),
        ("patch_size_level0", b"unknown", None),
        ("encoder", "None", None),
    ],
)
def test_an_attribute_whose_meaning_is_plain(tmp_path, name, value, meant):
    found = attributes.plain(tmp_path / "a.h5", name, value)
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", (256, 224)),
        ("patch_size", "256px"),
        ("patch_size", "nan"),
        ("patch_size", b"\xff\xfe"),
        ("patch_size", True),
        ("patch_size", 256 + 1j),
        ("patch_size", None),
        ("patch_size", np.zeros((), [("a", "i4")])),
        ("patch_size", np.arange(1000)),
        ("patch_size", "9" * 5000),
        ("patch_size_level0", float("nan")),
        ("patch_size_level0", float("inf")),
        ("patch_size_level0", -256),
        ("patch_size_level0", 0),
        ("patch_size_level0", 1e-320),
        ("step", 1e300),
        ("overlap", -1),
        ("encoder", 3),
        ("encoder", ("uni", "conch")),
        ("encoder", "x" * 1000),
    ],
)
def test_an_attribute_that_may_mean_anything_is_named(tmp_path, name, value):
    refused(
        tmp_path / "a.h5", f"has an attribute `{name}` that .*; set it to one ", lambda path: attributes.plain(path, name, value)
    )


def test_attributes_of_every_hdf5_type(tmp_path):
    def attribute(name, value, **how):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["features"], file["coords"] = X, XY
            value = value(file) if callable(value) else value
            file["coords"].attrs.create(name, value, **how)
        return tmp_path / "a.h5"

    sequence = np.empty(1, object)
    sequence[0] = np.arange(3)
    for value, how in (
        (lambda file: file["features"].ref, {}),
        (lambda file: file["features"].regionref[:2], {}),
        (1, {"dtype": h5py.enum_dtype({"small": 1})}),
        (True, {}),
        (sequence, {"dtype": h5py.vlen_dtype(np.int64)}),
        (np.zeros((), [("a", "i4")]), {}),
        (np.void(b"256"), {}),
        (1 + 2j, {}),
    ):
        refused(attribute("patch_size", value, **how), "attribute `patch_size` that is neither number nor text")
    refused(attribute("patch_size", np.zeros(8000)), "attribute `patch_size` that has 8,000 values")
    refused(attribute("encoder", b"x" * 30000), "attribute `encoder` that (has 1 values of|is a text of) 30,000")
    assert inspect(attribute("patch_size", h5py.Empty("i4"))).step is None
    assert inspect(attribute("whatever", h5py.Empty("i4"))).step is None, "what nobody asks for is not looked at"
    assert inspect(attribute("patch_size", np.array([448, 448]))).step == 448


@pytest.mark.parametrize("change", [{"overlap": 256}, {"overlap": 300}, {"patch_size_level0": 1e9, "overlap": 1e9}])
def test_patches_that_do_not_lie_apart(tmp_path, change):
    path = h5(tmp_path / "a.h5", features=X, coords=(XY, {**trident_attributes(256), **change}))
    refused(path, r"says that patches lie -?[\d.e+]+ px apart \(.*overlap = ")


def test_bytes_of_an_encoder_are_remembered_as_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = folders.cohort(tmp_path / "in")
    for i, slide in enumerate(folders.ids()):
        path = root / "features" / "h5_files" / f"{slide}.h5"
        h5(path, features=(vectors(i, 10 + i), {"encoder": np.bytes_("enc")}), coords=positions(10 + i))
    assert add(root).exit_code == 0
    assert milbench("data", "check", "mine").exit_code == 0


# npz and pt


def npz(path, header=None, body=b"", how=zipfile.ZIP_STORED, entry="features.npy"):
    file = io.BytesIO()
    if header is not None:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (5, 2), **header})
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr(entry, file.getvalue() + body)
    return path


@pytest.mark.parametrize(
    ("header", "body", "how", "says"),
    [
        ({"shape": (10**12, 1024)}, b"", zipfile.ZIP_STORED, r"declares `features` of shape \(1000000000000, 1024\), .* holds 0 bytes"),
        ({"shape": (-5, 2)}, bytes(40), zipfile.ZIP_STORED, r"shape \(-5, 2\), which is none"),
        ({"shape": (5, 2)}, bytes(44), zipfile.ZIP_STORED, "40 bytes, but holds 44 bytes"),
        ({"shape": (5, 2)}, bytes(36), zipfile.ZIP_DEFLATED, "40 bytes, but holds 36 bytes"),
        ({"shape": (2 * 10**7, 1)}, bytes(8 * 10**7), zipfile.ZIP_DEFLATED, "80,000,000 bytes, but holds only"),
        ({"descr": "<c8"}, bytes(80), zipfile.ZIP_STORED, "complex64, not floating point"),
        ({"descr": "|S4"}, bytes(40), zipfile.ZIP_STORED, r"\|S4, not floating point"),
        ({"descr": "|V4"}, bytes(40), zipfile.ZIP_DEFLATED, r"\|V4, not floating point"),
        ({"descr": "|O"}, bytes(40), zipfile.ZIP_STORED, "holds Python objects"),
        ({"shape": (5, 2)}, bytes(40), zipfile.ZIP_BZIP2, "packs `features` by method 12"),
        (None, b"\x93NUMPX\x01\x00", zipfile.ZIP_STORED, "cannot be read as npz"),
        (None, b"\x93NUMPY\x01\x00\x10\x00{'descr':'((((('", zipfile.ZIP_STORED, "cannot be read as npz"),
        (None, b"", zipfile.ZIP_STORED, "cannot be read as npz"),
    ],
)  # fmt: skip
def test_an_odd_npz_file_is_told_in_one_line(tmp_path, header, body, how, says):
    refused(npz(tmp_path / "a.npz", header, body, how), says)


def test_steps_in_npz_files_are_numbers(tmp_path):
    np.savez(tmp_path / "a.npz", features=X, coords=XY, step=np.array([99]))
    assert inspect(tmp_path / "a.npz").step == 99
    for step in (np.array([1, 2]), "448 px", 0, np.nan, np.arange(10**5)):
        np.savez(tmp_path / "a.npz", features=X, coords=XY, step=step)
        refused(tmp_path / "a.npz", "attribute `step`")


def test_checksums_of_npz_files_are_held_when_they_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", features=X, coords=XY)
    raw = (tmp_path / "a.npz").read_bytes()
    at = raw.index(X.tobytes()) + 100
    (tmp_path / "a.npz").write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    refused(tmp_path / "a.npz", "cannot be read as npz .*CRC", read)


PT = {
    "sparse": (lambda: torch.from_numpy(X).to_sparse(), "holds a tensor that is sparse"),
    "csr": (lambda: torch.from_numpy(X).to_sparse_csr(), "holds a tensor that is sparse"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.from_numpy(X), 0.1, 0, torch.qint8), "that is quantised"),
    "meta": (lambda: torch.empty(10**6, 10**5, device="meta"), "on the device meta, without values"),
    "nested": (lambda: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(3, 3)]), "that is nested|cannot be read as a torch file"),
    "expanded": (lambda: torch.zeros(1, 1).expand(10**6, 4096), "16,384,000,000 bytes, but holds only 4 bytes"),
    "overlapping": (lambda: torch.zeros(20).as_strided((15, 6), (1, 1)), "360 bytes, but holds only 80 bytes"),
    "complex": (lambda: torch.from_numpy(X).to(torch.complex64), "complex64, not floating point"),
    "int8": (lambda: torch.zeros(5, 5, dtype=torch.int8), "int8, not floating point"),
    "scalar": (lambda: torch.tensor(1.0), r"features are \(\)"),
    "bytearray": (lambda: bytearray(10), "holds Python objects"),
    "none": (lambda: None, "holds a NoneType instead of a tensor"),
    "dict": (lambda: {"a\nb": 1, **{f"k{i}": i for i in range(9)}}, r"holds a dict with a\\nb, k0, k1, k2, k3, \.\.\. instead"),
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", PT)
def test_an_odd_pt_file_is_told_in_one_line(tmp_path, name, legacy):
    build, says = PT[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: some of these are on their way out
        torch.save(build(), tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        refused(tmp_path / "a.pt", says)


@pytest.mark.parametrize(
    "build",
    [
        lambda x: torch.nn.Parameter(x),
        lambda x: x.T.contiguous().T,
        lambda x: torch.cat([x, x])[: len(x)],
        lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
        lambda x: torch._neg_view(-x),  # torch has no public way to make a view that is negated when it is read
    ],
)
def test_views_of_stored_values_are_read(tmp_path, build):
    torch.save(build(torch.from_numpy(X)), tmp_path / "a.pt")
    np.testing.assert_array_equal(read(tmp_path / "a.pt")[0], X)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_features_of_eight_bits_are_read(tmp_path, dtype):
    torch.save(torch.from_numpy(X).to(dtype), tmp_path / "a.pt")
    np.testing.assert_array_equal(read(tmp_path / "a.pt")[0], torch.from_numpy(X).to(dtype).float().numpy())


def test_packed_torch_files_are_not_unpacked(tmp_path):
    torch.save(torch.from_numpy(X), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    refused(tmp_path / "b.pt", "packs its part .*data.pkl, as torch never does")


def test_torch_files_that_reach_beyond_their_tensor_are_refused(tmp_path):
    torch.save(torch.from_numpy(X), tmp_path / "a.pt")
    raw = (tmp_path / "a.pt").read_bytes()
    values, shape = b"K\x4e", b"K\x0dK\x06"  # 78 values, (13, 6), as pickle writes them
    (tmp_path / "a.pt").write_bytes(raw.replace(values, b"K\xff", 1).replace(shape, b"K\x28K\x06", 1))
    refused(tmp_path / "a.pt", r"declares `tensor` of shape \(40, 6\), 1,020 bytes, but holds only 312 bytes")
    torch.save(torch.from_numpy(X), tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "b.pt").read_bytes()
    assert shape in raw
    (tmp_path / "b.pt").write_bytes(raw.replace(shape, b"J" + struct.pack("<i", 10**9) + b"K\x06", 1))
    refused(tmp_path / "b.pt", "cannot be read as a torch file")


def test_torch_files_without_checksums_are_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.from_numpy(X), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    np.testing.assert_array_equal(read(tmp_path / "a.pt")[0], X)


def test_values_beyond_float32_are_found_without_warnings(tmp_path):
    x = X.astype(np.float64)
    x[0, 0] = 1e300
    path = h5(tmp_path / "a.h5", features=x, coords=XY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inspect(path).nonfinite == 1
        assert np.isinf(read(path)[0][0, 0])


# What is no file


class time_limit:  # noqa: N801 - reads as a statement
    """Ends the test where something waits for ever."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __enter__(self):
        def late(*_):
            raise TimeoutError

        self.before = signal.signal(signal.SIGALRM, late)
        signal.alarm(self.seconds)

    def __exit__(self, *_):
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self.before)


def milbench(*words):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code in (0, 1, 2)
    return done


def add(root, **other):
    given = {"--features": root / "features", "--labels": root / "labels.csv", "--splits": root / "labels.csv", **other}
    return milbench("data", "add", "mine", "--encoder", "enc", *(word for pair in given.items() for word in pair))


def no_files(folder):
    """Everything that may stand where a feature file should, and what is said of it."""
    (folder / "a.h5").mkdir()
    os.mkfifo(folder / "b.h5")
    (folder / "c.h5").symlink_to("nowhere")
    (folder / "d.h5").symlink_to("d.h5")
    (folder / "e.h5").symlink_to("/dev/zero")
    (folder / "f.h5").touch()
    return {
        "a": "is a folder, not a file", "b": "is a pipe, not a file", "c": "is a link to nowhere, which does not exist",
        "d": "cannot be reached", "e": "is a device, not a file", "f": r"is empty \(0 bytes\)",
    }  # fmt: skip


def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch):
    told = no_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("g.h5")
    told["g"] = "is a socket, not a file"
    with time_limit(20):
        for name, says in told.items():
            refused(tmp_path / f"{name}.h5", says)
            h5(tmp_path / "good.h5", features=X)
            with pytest.raises(BadFile, match=says):
                inspect(tmp_path / "good.h5", tmp_path / f"{name}.h5")
    for suffix in ("pt", "npz"):
        (tmp_path / f"a.{suffix}").mkdir()
        refused(tmp_path / f"a.{suffix}", "is a folder")
    assert [path.stem for path in layout(tmp_path).files()] == [*"abcdefg", "good"]


@pytest.mark.parametrize("suffix", ["h5", "pt", "npz"])
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch, suffix):
    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / f"a.{suffix}").write_bytes(b"x")
    monkeypatch.setattr("h5py.File", closed)
    monkeypatch.setattr("zipfile.is_zipfile", closed)
    monkeypatch.setattr("zipfile.ZipFile", closed)
    refused(tmp_path / f"a.{suffix}", "may not be read")


def test_check_tells_of_whatever_lies_in_the_folder_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = folders.cohort(tmp_path / "in")
    place = root / "features" / "h5_files"
    with time_limit(60):
        assert add(root).exit_code == 0
        for slide, name in zip(folders.ids(), "abcdef", strict=False):
            (place / f"{slide}.h5").unlink()
            (place / f"{name}.h5").unlink(missing_ok=True)
        no_files(place)
        for slide, name in zip(folders.ids(), "abcdef", strict=False):
            (place / f"{name}.h5").rename(place / f"{slide}.h5")
        (place / "new\nline.h5").touch()
        (place / os.fsdecode(b"\xff\xfe.h5")).touch()
        done = milbench("data", "check", "mine", "--deep")
        assert done.exit_code == 1
        lines = done.output.splitlines()
        assert sum(line.startswith("ERROR") for line in lines) >= 2
        assert any("S-00.h5 is a folder, not a file" in line and "S-00, S-01, S-02 and 2 more" in line for line in lines)
        assert any(r"new\nline" in line for line in lines)
        found = json.loads(milbench("data", "check", "mine", "--json").output)
        ids = {one["kind"]: one["ids"] for one in found["findings"]}
        assert ids["no-file"] == ["S-00", "S-01", "S-02", "S-03", "S-04"]
        assert milbench("run", "--suite", "quickstart", "--dry-run").exit_code == 0


def test_names_that_a_manifest_cannot_keep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders.cohort(tmp_path / "in")
    odd = tmp_path / os.fsdecode(b"in\xff")
    (tmp_path / "in").rename(odd)
    done = add(odd)
    assert done.exit_code == 2 and "must be UTF-8" in done.output
    odd.rename(tmp_path / "in\nside")
    assert add(tmp_path / "in\nside").exit_code == 0
    assert milbench("data", "check", "mine").exit_code == 0


# Tables


def _gz(text):
    return gzip.compress(text)


TABLES = {
    "bytes.csv": (b"slide_id,label\na,\xff\n", "line 2 is not UTF-8: byte 0xff"),
    "utf16.csv": ("slide_id,label\na,b\n".encode("utf-16-le"), "NUL bytes in it; it looks like UTF-16: give --encoding utf-16-le"),
    "nul.csv": (b"slide_id,label\na,\0b\n", "NUL bytes in it"),
    "line.csv": (b"slide_id,label\na," + b"b" * (2 << 20), "a line of more than 1 MiB"),
    "wide.csv": (b"," * 30_000 + b"\n1\n", "more than 10,000 columns|not 30001 fields"),
    "bomb.csv.gz": (_gz(bytes(3 << 20)), "larger than 2 MiB"),
    "cut.csv.gz": (_gz(b"slide_id,label\n" + os.urandom(999))[:-100], "cannot be read to its end"),
    "broken.csv.gz": (_gz(b"slide_id,label\na,b\n")[:12] + b"\xff" * 30, "cannot be read to its end"),
    "no.csv.gz": (b"slide_id,label\na,b\n", "Not a gzipped file"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_none_is_told_in_one_line(tmp_path, name, monkeypatch):
    raw, says = TABLES[name]
    if "bomb" in name:
        monkeypatch.setattr(files, "LARGEST", 2 << 20)
    (tmp_path / name).write_bytes(raw)
    for reader in (Delimited.read, split_files.read, Sheet.read):
        with pytest.raises(MilbenchError, match=says) as told:
            reader(tmp_path / name)
        assert "\n" not in str(told.value) and len(str(told.value)) < 500


def test_folders_and_pipes_for_tables(tmp_path):
    no_files(tmp_path)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "splits_0.csv").symlink_to(".")
    with time_limit(20):
        for name in "abcde":
            for reader in (Delimited.read, Sheet.read):
                with pytest.raises(MilbenchError, match=rf"{name}\.h5"):
                    reader(tmp_path / f"{name}.h5")
        with pytest.raises(MilbenchError, match=r"splits_0\.csv.* is a folder"):
            split_files.read(tmp_path / "splits")


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz", ""])
def test_packed_tables_with_a_byte_order_mark_are_read(tmp_path, packed):
    path = tmp_path / f"a.csv{packed}"
    with files._PACKED.get(packed, open)(path, "wb") as file:
        file.write("\ufeffslide_id,label\r\nä,b\r\n".encode())
    assert (Delimited.read(path).names, Delimited.read(path).rows) == (("slide_id", "label"), (("ä", "b"),))
    assert Sheet.read(path).rows == [{"slide_id": "ä", "label": "b"}]


@pytest.mark.parametrize(
    "table",
    [
        "slide_id,slide_id ,label\na,a,b\n",
        "slide_id,fold\na," + "9" * 400 + "\n",
        "slide_id,fold_" + "9" * 5000 + "\na,train\n",
        "slide_id,label\na,--5\nb,7\n",
        "slide_id,label\na," + "9" * 5000 + "\nb,7\n",
        'slide_id,label\n"a\nb",x\n"a\nb",y\n',
        "\n" * 1000,
        '"slide_id,label\na,b\n',
        ",".join(f"column {i} {'x' * 100}" for i in range(1500)) + "\n1\n",
    ],
)
def test_odd_tables_end_in_one_line(tmp_path, monkeypatch, table):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(table)
    for option in ("--labels", "--splits"):
        told = milbench("data", "add", "mine", option, "t.csv")
        assert all(len(line) < 9000 for line in told.output.splitlines())
    assert len(milbench("data", "add", "mine", "--labels", "t.csv", "--exclude", ",".join("abc" * 200)).output) < 20_000


# Chance


def whole_files(folder):
    """One good file of each kind, with its bytes."""
    extra = [
        {},
        {"chunks": (4, 6), "compression": "gzip", "shuffle": True},
        {"chunks": (4, 6), "compression": "lzf", "fletcher32": True},
    ]
    for i, how in enumerate(extra):
        for version in ("earliest", "latest"):
            path = folder / f"{i}{version}.h5"
            with h5py.File(path, "w", libver=version) as file:
                file.create_dataset("features", data=X, **how)
                file["coords"] = XY
                # Text of a fixed length: over a damaged length of any other libhdf5 spends minutes, and tells nothing beforehand.
                file["coords"].attrs.update(trident_attributes(encoder=np.bytes_("uni"), downsample=(1.0, 1.0)))
            yield ".h5", path.read_bytes()
    for save in (np.savez, np.savez_compressed):
        save(folder / "a.npz", features=X, coords=XY, step=448.0)
        yield ".npz", (folder / "a.npz").read_bytes()
    for new in (True, False):
        torch.save(torch.from_numpy(X), folder / "a.pt", _use_new_zipfile_serialization=new)
        yield ".pt", (folder / "a.pt").read_bytes()


def damaged(raw, draw):
    """Some bytes changed, mostly where files say what is in them; or the end cut off."""
    raw = bytearray(raw)
    if draw.random() < 0.15:
        return raw[: draw.integers(len(raw))]
    for _ in range(draw.integers(1, 6)):
        near = int(draw.integers(min(len(raw), 2500)))
        at = draw.choice([near, len(raw) - 1 - near, int(draw.integers(len(raw)))])
        raw[at] = draw.choice([0, 1, 127, 128, 255, draw.integers(256)])
    return raw


def flip(folder, rounds, seed):
    draw, whole = np.random.default_rng(seed), list(whole_files(folder))
    used, told = 0, set()
    for _ in range(rounds):
        for suffix, raw in whole:
            path = folder / f"broken{suffix}"
            path.write_bytes(damaged(raw, draw))
            for look in (inspect, read):
                try:
                    look(path)
                    used += 1
                except BadFile as error:
                    told.add(str(error))
    assert used, "some changes do no harm"
    assert not any("\n" in line for line in told)


def memory_stays(before, megabytes=300):
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before
    assert grown < megabytes, f"{grown} MB were taken for files of a few kB"


def test_damaged_files_are_refused_or_read(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    with warnings.catch_warnings(), time_limit(100):
        warnings.simplefilter("ignore")  # NumPy: strange headers
        flip(tmp_path, rounds=25, seed=0)
    memory_stays(before)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_many_damaged_files_are_refused_or_read(tmp_path, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flip(tmp_path, rounds=200, seed=seed)


def command_line(root, rounds, seed):
    """`data add` and `data check` over cohorts with damaged files."""
    draw, place = np.random.default_rng(seed), root / "in" / "features" / "h5_files"
    folders.cohort(root / "in")
    whole = {path: path.read_bytes() for folder in (place, place.parent / "patches") for path in folder.iterdir()}
    for _ in range(rounds):
        for path, raw in whole.items():
            path.write_bytes(damaged(raw, draw) if draw.random() < 0.4 else raw)
        done = add(root / "in", **{"--replace": "--no-check"} if draw.random() < 0.5 else {})
        assert "Traceback" not in done.output
        milbench("data", "check", "mine", *(["--deep"] if draw.random() < 0.7 else []))


def test_the_command_line_over_damaged_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command_line(tmp_path, rounds=6, seed=0)


@pytest.mark.slow
def test_the_command_line_over_many_damaged_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command_line(tmp_path, rounds=40, seed=1)


def test_sizes_that_are_allowed_are_those_that_are_told():
    """What a compressed array may take at most: sixty-four megabytes, or a hundred times its file."""
    allowed = lambda size, held: containers.fits(None, "x", (1,), size, held, compressed=True)  # noqa: E731
    allowed(64 << 20, 1)
    allowed(100 * (1 << 20), 1 << 20)
    with pytest.raises(BadFile):
        allowed(100 * (1 << 20) + 1, 1 << 20)
