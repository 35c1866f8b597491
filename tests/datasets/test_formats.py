"""Feature files: what is read from CLAM's, TRIDENT's and npz files, and how far patches are said and seen to lie apart."""

import numpy as np
import pytest
import torch

from milbench.datasets.files import formats
from milbench.datasets.files.formats import BadFile, inspect, layout, read
from tests.builders import folders
from tests.builders.folders import h5, positions, trident_attributes, vectors

X, XY = vectors(0, 13), positions(13)


def test_the_same_features_are_the_same_in_every_format(tmp_path):
    torch.save(torch.from_numpy(X), tmp_path / "a.pt")
    np.savez(tmp_path / "b.npz", features=X, coords=XY)
    np.savez_compressed(tmp_path / "c.npz", features=X, coords=XY)
    np.savez(tmp_path / "f.npz", features=np.asfortranarray(X), coords=np.asfortranarray(XY))
    paths = [
        h5(tmp_path / "clam.h5", features=X, coords=XY),
        h5(tmp_path / "trident.h5", features=X, coords=(XY.astype(np.int64), trident_attributes())),
        *(tmp_path / name for name in ("b.npz", "c.npz", "f.npz")),
    ]
    patches = h5(tmp_path / "patches.h5", coords=(XY, {"patch_size": 224, "patch_level": 0, "downsample": (1.0, 1.0)}))
    found = [inspect(path) for path in paths] + [inspect(tmp_path / "a.pt", patches)]
    assert {(f.n, f.d, f.dtype, f.coords) for f in found} == {(13, folders.D, "float32", True)}
    assert len({f.digest for f in found}) == 1
    for path, beside in [*((path, None) for path in paths), (tmp_path / "a.pt", patches)]:
        features, coords = read(path, beside)
        assert features.dtype == np.float32
        np.testing.assert_array_equal(features, X)
        np.testing.assert_array_equal(coords, XY)


@pytest.mark.parametrize("change", ["features", "coords", "dtype", "length"])
def test_other_features_have_another_digest(tmp_path, change):
    x, xy = X.copy(), XY.copy()
    if change == "features":
        x[-1, -1] += 1e-3
    if change == "coords":
        xy[-1, 0] += 1
    if change == "dtype":
        x = x.astype(np.float16)
    if change == "length":
        x, xy = x[:-1], xy[:-1]
    ours, other = h5(tmp_path / "a.h5", features=X, coords=XY), h5(tmp_path / "b.h5", features=x, coords=xy)
    assert inspect(ours).digest != inspect(other).digest


@pytest.mark.parametrize(
    ("attributes", "step"),
    [
        (trident_attributes(256, 20, 40), 512),
        (trident_attributes(256, 20, 20), 256),
        (trident_attributes(256, 20, 40, overlap=64), 384),
        (trident_attributes(512, 40, 40, overlap=256), 256),
        ({"patch_size": 256, "patch_level": 0, "downsample": (1.0, 1.0)}, 256),
        ({"patch_size": 256, "patch_level": 1, "downsample": np.array([4.000123, 4.0])}, 1024.031488),
        ({"patch_size": 256, "patch_level": 0, "downsample": (1.0, 1.0), "custom_downsample": 2}, 512),
        ({"patch_size": 256, "patch_level": 0}, 256),
        ({"patch_size": 256, "patch_level": 2}, None),
        ({}, None),
    ],
)
def test_the_step_in_level_0_pixels(tmp_path, attributes, step):
    found = inspect(h5(tmp_path / "a.h5", features=X, coords=(XY, attributes)))
    assert found.step == (step if step is None else pytest.approx(step))
    assert found.lattice == 448, "whatever is said, patches lie 448 apart"
    assert found.aligned == 1


@pytest.mark.parametrize(
    ("attributes", "side"),
    [
        (trident_attributes(256, 20, 40, overlap=128), 512),
        ({"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0)}, 1024),
        ({"step": 99.0}, None),
        ({}, None),
    ],
)
def test_the_side_of_a_patch_is_not_its_step(tmp_path, attributes, side):
    assert inspect(h5(tmp_path / "a.h5", features=X, coords=(XY, attributes))).side == side


@pytest.mark.parametrize(
    ("size", "fits"),
    [((5000, 5000), (True, True)), ((5000, 3000), (True, False)), ((3000, 5000), (False, True)), ((9, 9), (False, False))],
)
def test_positions_lie_on_the_slide_or_would_if_they_were_exchanged(tmp_path, size, fits):
    """Positions go from 3,000 to 4,792 in x and from 2,000 to 2,896 in y."""
    far = XY + np.array([2000, 0])
    attributes = trident_attributes(level0_width=size[0], level0_height=size[1])
    found = inspect(h5(tmp_path / "a.h5", features=X, coords=(far, attributes)))
    assert (found.fits, found.extent) == (fits, size)


def test_what_tridents_attributes_say(tmp_path):
    path = h5(tmp_path / "a.h5", features=(X, {"encoder": "uni_v1"}), coords=(XY, trident_attributes(256, 20, 40)))
    assert inspect(path).says == {"encoder": "uni_v1", "magnification": 20, "patch_size": 256}
    clams = h5(tmp_path / "b.h5", features=X, coords=(XY, {"patch_size": 448, "patch_level": 0}))
    assert inspect(clams).says == {}, "CLAM's patch size is in pixels of a level, not of a magnification"


def test_clams_patches_files_give_step_and_positions_and_must_fit(tmp_path):
    folders.clam(tmp_path, ["a", "b"], pt=True)
    place = layout(tmp_path)
    assert (place.format, place.folder.name, place.patches) == ("pt", "pt_files", tmp_path / "patches")
    path = place.files()[1]
    assert inspect(path, place.patches_of(path)).step == 448
    assert not inspect(path).coords
    with pytest.raises(BadFile, match=r"b\.pt: has 11 patches, .*a\.h5 lists 10"):
        inspect(path, tmp_path / "patches" / "a.h5")
    own = h5(tmp_path / "own.h5", features=X, coords=XY + 5)
    beside = h5(tmp_path / "beside.h5", coords=(XY, {"patch_size": 100, "patch_level": 0}))
    assert inspect(own, beside).step == 100
    np.testing.assert_array_equal(read(own, beside)[1], XY + 5)


def test_layouts_are_found(tmp_path):
    folders.clam(tmp_path / "job", ["a"])
    for given in (tmp_path / "job", tmp_path / "job" / "h5_files"):
        assert layout(given) == formats.Layout(tmp_path / "job" / "h5_files", "h5", tmp_path / "job" / "patches")
    h5(tmp_path / "20x" / "features_uni" / "a.h5", features=X)
    h5(tmp_path / "20x" / "patches" / "a_patches.h5", coords=XY)
    place = layout(tmp_path / "20x" / "features_uni")
    assert place.patches_of(place.files()[0]) == tmp_path / "20x" / "patches" / "a_patches.h5"
    (tmp_path / "20x" / "features_uni" / "._a.h5").touch()
    assert [path.name for path in place.files()] == ["a.h5"], "what macOS leaves behind is no slide"


def test_offset_contours_do_not_hide_the_lattice(tmp_path):
    """Two contours whose lattices lie 100 pixels apart: sorted together, the commonest difference would be 100."""
    xy = np.concatenate([positions(20, 256, (0, 0)), positions(20, 256, (100, 90))])
    found = inspect(h5(tmp_path / "a.h5", features=vectors(0, 40), coords=xy))
    assert (found.lattice, found.aligned, found.duplicates) == (256, 1, 0)


def test_patches_at_one_position_and_on_no_lattice(tmp_path):
    xy = np.concatenate([XY, XY[:3]])
    assert inspect(h5(tmp_path / "a.h5", features=vectors(0, 16), coords=xy)).duplicates == 3
    loose = np.random.default_rng(0).integers(0, 5000, (200, 2))
    assert inspect(h5(tmp_path / "b.h5", features=vectors(0, 200), coords=loose)).aligned < 0.5
    rounded = (np.arange(40)[:, None] * np.array([447.6, 0])).round().astype(int)
    assert inspect(h5(tmp_path / "c.h5", features=vectors(0, 40), coords=rounded)).aligned == 1
    assert inspect(h5(tmp_path / "d.h5", features=vectors(0, 1), coords=[[3, 4]])).lattice is None


def test_a_leading_axis_of_one_is_dropped_and_told(tmp_path):
    path = h5(tmp_path / "a.h5", features=X[None], coords=XY[None])
    found = inspect(path)
    assert (found.n, found.d, found.squeezed, found.lattice) == (13, folders.D, True, 448)
    assert read(path)[0].shape == X.shape
    np.testing.assert_array_equal(read(path)[1], XY)
    torch.save(torch.from_numpy(X)[None], tmp_path / "a.pt")
    assert read(tmp_path / "a.pt")[0].shape == X.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_becomes_float32(tmp_path, dtype):
    torch.save(torch.from_numpy(X).to(dtype), tmp_path / "a.pt")
    features, coords = read(tmp_path / "a.pt")
    assert coords is None
    np.testing.assert_array_equal(features, torch.from_numpy(X).to(dtype).float().numpy())


def test_old_torch_files_are_read(tmp_path):
    torch.save(torch.from_numpy(X), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read(tmp_path / "a.pt")[0], X)


def test_chunks_of_one_row_are_looked_at_in_part_and_thoroughly_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LOOK", 10)
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=X, chunks=(1, folders.D))
        file.create_dataset("coords", data=np.concatenate([XY[:12], XY[:1]]), chunks=(1, 2))
    assert inspect(tmp_path / "a.h5").duplicates == 0
    assert inspect(tmp_path / "a.h5", thorough=True).duplicates == 1


def test_npz_may_say_its_step(tmp_path):
    np.savez(tmp_path / "a.npz", features=X, coords=XY, step=99.0)
    assert inspect(tmp_path / "a.npz").step == 99


def test_real_files_of_clam_and_trident(shared):
    root = shared / "data" / "wsi"
    found, arrays = {}, {}
    for name in ("clam", "clam/pt_files", "trident"):
        place = layout(root / name)
        (path,) = place.files()
        found[name] = inspect(path, place.patches_of(path))
        arrays[name] = read(path, place.patches_of(path))
    assert {(f.n, f.d, f.step, f.lattice, f.duplicates) for f in found.values()} == {(2516, 1280, 32, 32, 0)}
    assert found["clam/pt_files"].digest == found["trident"].digest, "the same half-precision features, joined with their patches"
    assert found["trident"].says["magnification"] == 20
    np.testing.assert_array_equal(arrays["clam/pt_files"][0], arrays["trident"][0])
    np.testing.assert_allclose(arrays["clam"][0], arrays["trident"][0], atol=2e-3)
    np.testing.assert_array_equal(arrays["clam"][1], arrays["trident"][1])
