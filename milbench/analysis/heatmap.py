"""Where on the slide a prediction comes from: attention, or gradient x input, of several models on the tissue's true shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from milbench.aggregator import Aggregator
from milbench.bags import Bag
from milbench.errors import MilbenchError
from milbench.files import write_atomically
from milbench.plots.figure import PAGE, Figure
from milbench.tasks import Subtyping, Task

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure as Drawing

CLIP = 99.0  # percentile at which colours end


@dataclass(frozen=True)
class Heatmap:
    """The scores of one model on one slide.

    Args:
        label, trial: whose.
        slide: the slide; of a case with several, with its number.
        what: what the score is, and of which class.
        signed: whether scores lie on both sides of 0.
        xy: (n, 2), level-0 pixels of each patch's top-left corner.
        side: of a patch's square in level-0 pixels.
        score: (n,).
        ends: scores at which colours end, the same for all slides of a case.
    """

    label: str
    trial: str
    slide: str
    what: str
    signed: bool
    xy: NDArray[np.float64]
    side: float
    score: NDArray[np.float64]
    ends: tuple[float, float]

    @property
    def colours(self) -> ScalarMappable:
        """Score -> colour."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        return ScalarMappable(Normalize(*self.ends), "RdBu_r" if self.signed else "viridis")

    @property
    def corners(self) -> NDArray[np.float64]:
        """(n, 5, 2): closed squares, counter-clockwise where y points up, as GeoJSON wants its outer rings."""
        return self.xy[:, None] + self.side * np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])


def explain(model: Aggregator, task: Task, bag: Bag) -> tuple[NDArray[np.float64], str, bool]:
    """Scores (n,) of the patches for the prediction of a model, what they are, and whether they are signed.

    Attention is multiplied by n, so that 1 is an even share. A method without attention gets gradient x input: the derivative of
    the predicted class's logit (of the risk in survival) by each feature times the feature, summed over features.

    Raises:
        MilbenchError: the method has neither.
    """
    model.eval()
    features = bag.features.detach().clone().requires_grad_()
    prediction = model(bag.with_features(features))
    scores = model.scores(prediction, task)
    if isinstance(task, Subtyping):
        best = int(scores.argmax())
        of, target = f"class {task.classes[best]}", prediction.logits[best]
    else:
        of, target = "the risk", scores
    if prediction.attention is not None:
        what = "n x attention" + (f", {of}" if isinstance(task, Subtyping) else "")
        return (prediction.attention.detach() * len(bag)).double().numpy(), what, False
    gradient = torch.autograd.grad(target, features, allow_unused=True)[0] if target.requires_grad else None
    if gradient is None:
        raise MilbenchError(f"{type(model).__name__} has no attention, and its prediction has no gradient by the features")
    return (gradient * features).detach().double().sum(1).numpy(), f"gradient x input, {of}", True


def heatmaps(model: Aggregator, task: Task, bag: Bag, *, label: str, trial: str, side: float | None = None) -> Iterator[Heatmap]:
    """The heatmap of a slide, or one for each slide of a case.

    Args:
        model, task, bag: what predicts what from what.
        label, trial: of the model.
        side: of a patch in level-0 pixels; the bag's step where it is not known.

    Raises:
        MilbenchError: the bag has no coordinates.
    """
    if bag.coords is None or bag.step is None:
        raise MilbenchError(f"slide {bag.slide_id} ({bag.source}): has no coordinates, so it has no heatmap")
    score, what, signed = explain(model, task, bag)
    ends = _ends(score, signed)
    of_slide = np.zeros(len(bag), np.int64) if bag.slide_index is None else bag.slide_index.numpy()
    numbers = np.unique(of_slide)
    for number in numbers:
        here = of_slide == number
        name = bag.slide_id if len(numbers) == 1 else f"{bag.slide_id}, slide {number + 1}"
        yield Heatmap(label, trial, name, what, signed, bag.coords.double().numpy()[here], side or bag.step, score[here], ends)


def _ends(score: NDArray[np.float64], signed: bool) -> tuple[float, float]:
    """From the 1st to the 99th percentile, or as far to both sides of 0 as 99 % of the scores."""
    if signed:
        end = float(np.percentile(np.abs(score), CLIP)) or 1.0
        return -end, end
    low, high = np.percentile(score, [100 - CLIP, CLIP]).tolist()
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def geojson(heatmap: Heatmap) -> dict[str, Any]:
    """A FeatureCollection of squares in level-0 pixels with score and colour, which QuPath opens as tiles with measurements.

    Source: RFC 7946 for the form; qupath.lib.io (PathObjectTypeAdapters) for the properties.
    """
    colour = heatmap.colours.to_rgba(heatmap.score, bytes=True)[:, :3].tolist()
    name = f"{heatmap.label}: {heatmap.what}"
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "tile", "color": rgb, "measurements": [{"name": name, "value": value}]},
            }
            for ring, rgb, value in zip(heatmap.corners.tolist(), colour, heatmap.score.tolist(), strict=True)
        ],
    }


def save_geojson(heatmap: Heatmap, path: Path) -> Path:
    """Write it."""
    write_atomically(path, json.dumps(geojson(heatmap), separators=(",", ":")) + "\n")
    return path


def figure(panels: list[Heatmap], name: str, thumbnail: tuple[Path, tuple[float, float]] | None = None) -> Figure:
    """All heatmaps: a row for each slide, a column for each model, on the same piece of the slide.

    Args:
        panels: of one slide or case.
        name: of the files.
        thumbnail: an image of the whole slide, and the slide's size (width, height) in level-0 pixels.
    """
    rows = [
        {"slide": p.slide, "aggregator": p.label, "trial": p.trial, "what": p.what, "x": x, "y": y, "score": score}
        for p in panels
        for (x, y), score in zip(p.xy.tolist(), p.score.tolist(), strict=True)
    ]
    slides = list(dict.fromkeys(p.slide for p in panels))
    under = " Underneath: the slide's thumbnail." if thumbnail else ""
    return Figure(
        name,
        f"Where predictions of {', '.join(slides)} come from",
        "One square per patch, axes in level-0 pixels. Each model has a scale of its own, drawn beside its panels, that covers "
        f"all but {100 - CLIP:g} % of the scores at either end. n x attention: 1 is an even share of the n patches. Gradient x "
        f"input, for methods without attention: red speaks for the class (for a high risk), blue against it.{under}",
        rows,
        lambda: _draw(panels, slides, thumbnail),
    )


def _draw(panels: list[Heatmap], slides: list[str], thumbnail: tuple[Path, tuple[float, float]] | None) -> Drawing:
    from matplotlib import pyplot as plt
    from matplotlib.collections import PolyCollection

    models = list(dict.fromkeys((p.label, p.trial) for p in panels))
    columns = min(3, len(models)) if len(slides) == 1 else len(models)
    lines = -(-len(models) // columns) if len(slides) == 1 else len(slides)
    box = {s: np.concatenate([p.corners.reshape(-1, 2) for p in panels if p.slide == s]) for s in slides}
    tall = max(float(np.ptp(at[:, 1]) / np.ptp(at[:, 0])) for at in box.values())
    width = PAGE / max(2, columns)
    drawing, axes = plt.subplots(
        lines, columns, figsize=(width * columns, lines * (min(1.6, tall) * (width - 0.9) + 0.6)), squeeze=False
    )
    for ax in axes.flat:
        ax.set_visible(False)
    for p in panels:
        at = models.index((p.label, p.trial))
        ax = axes.flat[at] if len(slides) == 1 else axes[slides.index(p.slide), at]
        ax.set_visible(True)
        if thumbnail:
            path, (w, h) = thumbnail
            ax.imshow(plt.imread(path), extent=(0, w, h, 0))
        squares = PolyCollection(
            list(p.corners), array=p.score, norm=p.colours.norm, cmap=p.colours.cmap, rasterized=True, linewidth=0,
            antialiased=False, alpha=0.6 if thumbnail else None,
        )  # fmt: skip
        ax.add_collection(squares)
        (left, top), (right, bottom) = box[p.slide].min(0), box[p.slide].max(0)
        margin = 0.02 * max(right - left, bottom - top)
        ax.set_xlim(left - margin, right + margin)
        ax.set_ylim(bottom + margin, top - margin)  # y grows downwards, as on the slide
        ax.set_aspect("equal")
        ax.locator_params(nbins=4)
        ax.tick_params(labelsize=5.5)
        head = p.label if len(slides) == 1 else f"{p.label} · {p.slide}"
        ax.set_title(f"{head}\n{p.what}", fontsize=7)
        bar = drawing.colorbar(squares, ax=ax, extend="both", shrink=0.8, aspect=18, pad=0.02)
        bar.ax.tick_params(labelsize=6)
    return drawing


def image_of(path: Path) -> Path:
    """The path of a thumbnail that can be read.

    Raises:
        MilbenchError: it cannot.
    """
    from matplotlib import pyplot as plt

    try:
        plt.imread(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise MilbenchError(f"--thumbnail {path}: not an image that can be read ({error})") from error
    return path
