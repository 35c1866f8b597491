"""Heatmaps: what the scores are, and where the squares lie."""

import csv
import json
from itertools import pairwise

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn

from milbench.aggregator import Aggregator, Prediction
from milbench.analysis import heatmap, subjects
from milbench.errors import MilbenchError
from milbench.tasks import Subtyping, Survival
from tests.builders.command import milbench
from tests.builders.datasets import lattice, lattice_dataset
from tests.builders.folders import feature_file
from tests.builders.results import trained_trial


class Linear(Aggregator):
    """logits = mean over patches of W x, so that patch i gives its class W_c . x_i / n."""

    def __init__(self, n_out, attention=False):
        super().__init__(5, n_out)
        self.head, self.attention = nn.Linear(5, n_out, bias=False), attention

    def forward(self, bag):
        weight = bag.features[:, 0].softmax(0) if self.attention else None
        return Prediction(self.head(bag.features.mean(0)), weight)


def test_gradient_times_input_of_a_linear_model():
    torch.manual_seed(0)
    model, bag = Linear(3), lattice(30)
    score, what, signed = heatmap.explain(model, Subtyping(("a", "b", "c")), bag)
    logits = model(bag).logits.detach()
    best = int(logits.argmax())
    assert (what, signed) == (f"gradient x input, class {'abc'[best]}", True)
    np.testing.assert_allclose(score, (bag.features @ model.head.weight.detach()[best] / 30).numpy(), atol=1e-7)
    assert score.sum() == pytest.approx(float(logits[best]), abs=1e-6)


def test_gradient_times_input_of_a_risk():
    """By central differences along each patch's own vector."""
    torch.manual_seed(0)
    model, bag, task = Linear(4).double(), lattice(6), Survival([1.0, 2.0, 3.0])
    bag = bag.with_features(bag.features.double())
    score, what, signed = heatmap.explain(model, task, bag)
    assert (what, signed) == ("gradient x input, the risk", True)
    for i in range(6):
        step = torch.zeros(6, 1, dtype=torch.float64)
        step[i] = 1e-5
        more, less = (task.scores(model(bag.with_features(bag.features * (1 + s * step))).logits).item() for s in (1, -1))
        assert score[i] == pytest.approx((more - less) / 2e-5, rel=1e-5)


def test_attention_is_shown_in_even_shares():
    model, bag = Linear(2, attention=True), lattice(30)
    score, what, signed = heatmap.explain(model, Subtyping(("a", "b")), bag)
    assert what.startswith("n x attention, class ") and not signed
    np.testing.assert_allclose(score, 30 * bag.features[:, 0].softmax(0).numpy(), rtol=1e-6)
    assert score.mean() == pytest.approx(1)


def test_a_method_with_neither_is_refused():
    class Votes(Linear):
        def forward(self, bag):
            return Prediction(torch.tensor([1.0, 0.0]))

    with pytest.raises(MilbenchError, match="Votes has no attention, and its prediction has no gradient"):
        heatmap.explain(Votes(2), Subtyping(("a", "b")), lattice(10))


def test_squares_have_the_true_size_of_patches_that_overlap_or_lie_apart():
    bag = lattice(30)
    model, task = Linear(2, attention=True), Subtyping(("a", "b"))
    for side, drawn in ((None, bag.step), (96.0, 96.0)):
        (one,) = heatmap.heatmaps(model, task, bag, label="L", trial="t", side=side)
        assert np.ptp(one.corners, axis=1) == pytest.approx(drawn)
        np.testing.assert_array_equal(one.corners.min(axis=1), bag.coords.numpy())


def test_geojson_is_valid_and_in_level_0_pixels():
    """RFC 7946: closed rings, the outer one counter-clockwise; each square where its patch is; the colours of the picture."""
    bag = lattice(30)
    (one,) = heatmap.heatmaps(Linear(2, attention=True), Subtyping(("a", "b")), bag, label="L", trial="t")
    found = json.loads(json.dumps(heatmap.geojson(one)))
    assert found["type"] == "FeatureCollection"
    assert len(found["features"]) == 30
    for feature, (x, y), score in zip(found["features"], bag.coords.tolist(), one.score, strict=True):
        assert (feature["type"], feature["geometry"]["type"]) == ("Feature", "Polygon")
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len(ring) == 5
        doubled = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairwise(ring))
        assert doubled == 2 * 32 * 32, "counter-clockwise where y points up"
        assert {tuple(p) for p in ring} == {(x, y), (x + 32, y), (x + 32, y + 32), (x, y + 32)}
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert properties["measurements"] == [{"name": f"L: {one.what}", "value": pytest.approx(score)}]
        assert len(properties["color"]) == 3
        assert all(isinstance(c, int) and 0 <= c <= 255 for c in properties["color"])
    scores, colours = one.score, [f["properties"]["color"] for f in found["features"]]
    assert colours[int(scores.argmax())] == [253, 231, 36], "the top of viridis"
    assert sum(colours[int(scores.argmax())]) > sum(colours[int(scores.argmin())])


def test_signed_colours_are_symmetric():
    one = heatmap.Heatmap("L", "t", "s", "w", True, np.zeros((3, 2)), 1.0, np.array([-4.0, 0.0, 1.0]), (-1.0, 1.0))
    low, zero, high = one.colours.to_rgba(one.score, bytes=True)[:, :3].astype(int)
    assert zero.min() > 240, "nothing is white"
    assert low[2] > low[0], "against is blue"
    assert high[0] > high[2], "for is red"


def test_slides_of_a_case_are_panels_of_their_own():
    bag = lattice(31, slides=3)
    model = Linear(2, attention=True)
    found = list(heatmap.heatmaps(model, Subtyping(("a", "b")), bag, label="L", trial="t"))
    assert [one.slide for one in found] == ["s00, slide 1", "s00, slide 2", "s00, slide 3"]
    np.testing.assert_array_equal(np.concatenate([one.xy for one in found]), bag.coords.numpy())
    whole = heatmap.explain(model, Subtyping(("a", "b")), bag)[0]
    np.testing.assert_array_equal(np.concatenate([one.score for one in found]), whole)
    assert {one.ends for one in found} == {tuple(np.percentile(whole, [1, 99]))}, "colours mean the same on all slides"


# The command.


def test_heatmaps_of_two_trials(tmp_path, monkeypatch):
    dataset = lattice_dataset()
    ids = [trained_trial(tmp_path, monkeypatch, text, dataset) for text in ("abmil[hidden=8]", "longmil[dim=8,radius=2]")]
    chosen = ("--trial", "abmil:fold0:seed0", "--trial", ids[1])
    milbench("analyze", "heatmap", *chosen, "--slide", "s10", "--results", tmp_path)
    folder = tmp_path / "analysis"
    name = "heatmap-s10-AB-MIL-hidden-8-LongMIL-dim-8-radius-2.0"
    assert {p.name for p in folder.iterdir()} == {
        f"{name}.png", f"{name}.pdf", f"{name}.csv", f"{name}.json",
        f"heatmap-s10-AB-MIL-hidden-8-{ids[0]}.geojson", f"heatmap-s10-LongMIL-dim-8-radius-2.0-{ids[1]}.geojson",
    }  # fmt: skip
    one = subjects.Trained.find(subjects.Store(tmp_path), ids[0])
    bag = one.bag("s10")
    with torch.no_grad():
        prediction = one.model()(bag)
    with (folder / f"{name}.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["trial"] == ids[0]]
    assert rows[0]["what"] == f"n x attention, class {('benign', 'malignant')[int(prediction.logits.argmax())]}"
    np.testing.assert_allclose([float(r["score"]) for r in rows], 50 * prediction.attention, rtol=1e-5)
    assert [[float(r["x"]), float(r["y"])] for r in rows] == bag.coords.tolist()
    tiles = json.loads((folder / f"heatmap-s10-LongMIL-dim-8-radius-2.0-{ids[1]}.geojson").read_text())["features"]
    assert tiles[0]["properties"]["measurements"][0]["name"].startswith("LongMIL (dim=8, radius=2.0): gradient x input, class ")


def test_heatmaps_of_a_case(tmp_path, monkeypatch):
    id = trained_trial(tmp_path, monkeypatch, "abmil[hidden=8]", lattice_dataset("survival", slides=2))
    told = milbench("analyze", "heatmap", "--trial", id, "--slide", "s10", "--results", tmp_path)
    assert told.count(".geojson") == 2
    assert (tmp_path / "analysis" / f"heatmap-s10-slide-2-AB-MIL-hidden-8-{id}.geojson").is_file()


def test_a_thumbnail_lies_underneath(tmp_path, monkeypatch):
    """The picture of a slide whose left half is red shows red between the patches on the left only."""
    id = trained_trial(tmp_path, monkeypatch, "abmil[hidden=8]", lattice_dataset())
    picture = np.ones((20, 40, 3))
    picture[:, :20] = (1, 0, 0)
    matplotlib.image.imsave(tmp_path / "thumbnail.png", picture)
    bag = lattice(40)
    path = feature_file(tmp_path / "slide.h5", bag, patch_size_level0=32)
    words = (
        "analyze",
        "heatmap",
        "--trial",
        id,
        "--features",
        path,
        "--results",
        tmp_path,
        "--thumbnail",
        tmp_path / "thumbnail.png",
    )
    assert "--thumbnail needs --slide-size W H" in milbench(*words, code=2)
    middle = int(bag.coords[:, 0].double().mean())
    milbench(*words, "--slide-size", 2 * middle, 3000)
    shown = matplotlib.image.imread(tmp_path / "analysis" / "heatmap-slide-AB-MIL-hidden-8.png")
    red = (shown[..., 0] > 0.95) & (shown[..., 1] < 0.05)
    columns = np.flatnonzero(red.any(0))
    assert red.sum() > 500
    assert columns.max() < 0.6 * shown.shape[1]

    trident = feature_file(
        tmp_path / "trident" / "slide.h5", bag, patch_size_level0=32, level0_width=2 * middle, level0_height=3000
    )
    before = shown.copy()
    milbench(*words[:4], "--features", trident, *words[6:])
    np.testing.assert_array_equal(matplotlib.image.imread(tmp_path / "analysis" / "heatmap-slide-AB-MIL-hidden-8.png"), before)


def test_what_cannot_be_shown_is_said(tmp_path, monkeypatch):
    id = trained_trial(tmp_path, monkeypatch, "abmil[hidden=8]", lattice_dataset())
    path = feature_file(tmp_path / "slide.h5", lattice(20, d=7), patch_size_level0=32)
    no_image = tmp_path / "no.png"
    no_image.write_text("x")
    good = feature_file(tmp_path / "good.h5", lattice(20), patch_size_level0=32)
    for words, told in (
        ((), "say which models"),
        (("--trial", id), "say which slide"),
        (("--trial", id, "--slide", "s10", "--features", path), "say which slide"),
        (("--trial", id, "--features", path), "features are 7 wide, the dataset's are 5"),
        (("--trial", id, "--features", good, "--thumbnail", no_image, "--slide-size", 9, 9), "not an image that can be read"),
    ):
        assert told in milbench("analyze", "heatmap", *words, "--results", tmp_path, code=2)
    assert not (tmp_path / "analysis").exists()
