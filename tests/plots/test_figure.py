"""What a figure says beside its points."""

import math
from itertools import pairwise

import pytest
from matplotlib import pyplot as plt

from milbench.plots.figure import label_ends, look


@pytest.mark.parametrize("ends", [[1.0], [10.0, 10.0, 10.1, 1000.0], [1000.0] * 12, [1.0] * 12, [10.0**i for i in range(-3, 4)]])
def test_labels_of_ends_keep_order_and_distance_and_stay_inside(ends):
    with look():
        drawing, ax = plt.subplots(figsize=(3, 3))
        lines = [ax.plot([1, 5], [1, end])[0] for end in ends]
        ax.set(xscale="log", yscale="log", ylim=(1e-3, 1e3))
        label_ends(ax, lines, [str(i) for i in range(len(ends))])
        drawing.canvas.draw()
    heights = {int(text.get_text()): text.xyann[1] for text in ax.texts}
    found = [heights[i] for i in sorted(heights, key=lambda i: (ends[i], i))]
    assert all(high - low > 0.02 for low, high in pairwise(found)), "texts do not lie on each other"
    assert 0 <= found[0] <= found[-1] <= 1
    assert [text.get_color() for text in ax.texts] == [lines[int(text.get_text())].get_color() for text in ax.texts]
    if len(ends) in (1, 7):
        for i, end in enumerate(ends):
            assert heights[i] == pytest.approx((math.log10(end) + 3) / 6, abs=0.03), "there is room: at the end's own height"
    plt.close(drawing)
