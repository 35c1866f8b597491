"""GCN-MIL: patches talk to their nearest neighbours before they are pooled (DeepGraphConv; Chen et al., MICCAI 2021).

Three rounds of messages over a graph of 8 neighbours on the slide, then attention over all patches.
"""

from typing import Literal

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional as F

from milbench import Aggregator, Bag, MilbenchError, Prediction, register
from milbench.nn import AttentionScore
from milbench.recipes import HIPT_SURVIVAL_LOOP

MOST_TIED = 256  # so many candidates per patch settle every tie, unless hundreds of patches lie on one spot


def nearest_naive(points: Tensor, k: int) -> Tensor:
    """The definition, in O(n^2): of all other points, the k with the smallest (distance, then offset by axis, then index).

    Args:
        points: (n, a).

    Returns:
        (n, min(k, n - 1)) int64, nearest first.
    """
    rows = []
    for i, offset in enumerate(points[None] - points[:, None]):  # (n, a)
        order = sorted((float((o * o).sum()), *o.tolist(), j) for j, o in enumerate(offset) if j != i)
        rows.append([int(entry[-1]) for entry in order[:k]])
    return torch.tensor(rows, dtype=torch.int64).reshape(len(points), min(k, len(points) - 1))


def nearest_in_plane(points: Tensor, k: int) -> Tensor:
    """:func:`nearest_naive` with a k-d tree: O(n log n) time, O(n k) memory.

    On a lattice most k-th neighbours are tied, so a few more are asked for and ranked by offset; rows where the last of them is
    still tied ask again for twice as many. Then the graph does not depend on the order of the patches.
    """
    xy = points.cpu().double().numpy()
    k, n = min(k, len(xy) - 1), len(xy)
    near, todo, ask = np.empty((n, k), dtype=np.int64), np.arange(n if k else 0), min(n, k + 9)
    tree = cKDTree(xy)
    while len(todo):
        at = np.sort(tree.query(xy[todo], ask)[1].reshape(len(todo), ask), axis=1)  # (rows, ask)
        by = xy[at] - xy[todo, None]  # (rows, ask, 2)
        d2 = np.where(at == todo[:, None], np.inf, (by * by).sum(axis=2))  # exact for whole pixels
        order = np.lexsort((by[..., 1], by[..., 0], d2))
        ranked = np.take_along_axis(d2, order, axis=1)
        last = np.where(np.isinf(ranked[:, -1]), ranked[:, -2], ranked[:, -1])  # infinite where the patch found itself
        settled = (last > ranked[:, k - 1]) | (ask >= min(n, MOST_TIED))
        near[todo[settled]] = np.take_along_axis(at, order[:, :k], axis=1)[settled]
        todo, ask = todo[~settled], min(n, 2 * ask)
    return torch.from_numpy(near)


def nearest_in_space(points: Tensor, k: int) -> Tensor:
    """The same in many dimensions: all distances, a slice of rows at a time, so O(n^2) time but never n x n memory."""
    k, n = min(k, len(points) - 1), len(points)
    parts = []
    for rows in torch.arange(n, device=points.device).split(max(1, 2**22 // n)):
        distance = torch.cdist(points[rows], points)  # (rows, n)
        distance[rows - rows[0], rows] = torch.inf
        parts.append(distance.topk(k, largest=False).indices)
    return torch.cat(parts)


def neighbour_edges(bag: Bag, k: int, graph: Literal["spatial", "latent"]) -> Tensor:
    """Edges from every patch (row 0) to its k nearest in the same slide (row 1), by coordinates or by features: (2, edges)."""
    points, nearest = (bag.coords, nearest_in_plane) if graph == "spatial" else (bag.features.detach(), nearest_in_space)
    if points is None:
        raise MilbenchError(
            f"slide {bag.slide_id} ({bag.source}): has no coordinates, so its patches have no nearest on the slide"
        )
    slide = torch.zeros(len(bag), dtype=torch.int64) if bag.slide_index is None else bag.slide_index.cpu()
    edges = []
    for number in slide.unique():
        patch = (slide == number).nonzero()[:, 0]  # (n of this slide,)
        near = nearest(points[patch.to(points.device)], k).cpu()
        edges.append(torch.stack([patch.repeat_interleave(near.shape[1]), patch[near.flatten()]]))
    return torch.cat(edges, dim=1).to(bag.features.device)


class _GIN(nn.Module):
    """y_j = MLP((1 + eps) x_j + sum of x_i over edges i -> j): (n, d) -> (n, out). The MLP has two layers, eps stays 0."""

    eps: Tensor

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(in_dim, out_dim), nn.Linear(out_dim, out_dim)
        self.register_buffer("eps", torch.zeros(1))

    def forward(self, x: Tensor, source: Tensor, start: Tensor) -> Tensor:
        """source: (edges,), sorted by target. start: (n,), the first edge of each target."""
        h = F.linear(x, self.first.weight)  # (n, out); sums commute with the projection and are cheaper behind it
        h = (1 + self.eps) * h + F.embedding_bag(source, h, start, mode="sum") + self.first.bias
        return self.second(h.relu())


@register("gcn-mil", label="GCN-MIL", family="structure", member=2, cite="chen2021", version=1)
class GCNMIL(Aggregator):
    """DeepGraphConv: three GIN layers with ReLU, gated attention over the patches, one more layer, head.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        hidden: width of a node.
        neighbours: how many nearest patches each patch sends its message to; all others where a slide has fewer.
        graph: nearest on the slide ("spatial") or among the features ("latent", O(n^2) time). Patch-GCN's command line asks for
            spatial, HIPT's code for this class is latent (edge_agg='latent'). Which of them stands behind a printed GCN-MIL row
            is not known; suites run spatial.
        dropout: inside the scoring network and before the head, in training.

    Source: mahmoodlab/Patch-GCN (DeepGraphConv_Surv), with HIPT's dropout before the head. Traps: messages flow from a patch to
    its neighbours, not back, so a patch hears from those it is a neighbour of, be they none or many; the published class fails as
    released (`pool` is never set). Deviations: neighbours are exact (hnsw's are approximate); a patch is never its own neighbour
    (officially the first hit is dropped, whichever it is); ties go to the smaller x offset, then y, so that only patches on one
    and the same spot are taken in file order; slides of a case are not connected. A graph depends on its own slide only: nothing
    is fitted.
    Checkpoints: state dicts of DeepGraphConv_Surv, from Patch-GCN and HIPT.
    """

    complexity = "n log n"
    needs_coords = True
    fixed = {"positions": "the edges of the graph"}
    official_names = {
        **{f"conv{i}.nn.{j}": f"conv{i}.{part}" for i in (1, 2, 3) for j, part in ((0, "first"), (2, "second"))},
        "path_attention_head.attention_a.0": "score.tanh_branch",
        "path_attention_head.attention_b.0": "score.sigmoid_branch",
        "path_attention_head.attention_c": "score.out",
        "path_rho": "rho",
        "classifier": "head",
    }
    official_recipe = {"survival": HIPT_SURVIVAL_LOOP}

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        hidden: int = 256,
        neighbours: int = 8,
        graph: Literal["spatial", "latent"] = "spatial",
        dropout: float = 0.25,
    ) -> None:
        super().__init__(in_dim, n_out)
        self.neighbours, self.graph = neighbours, graph
        self.needs_coords = graph == "spatial"
        self.conv1, self.conv2, self.conv3 = _GIN(in_dim, hidden), _GIN(hidden, hidden), _GIN(hidden, hidden)
        self.score = AttentionScore(hidden, hidden, dropout=dropout)
        self.rho = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(hidden, n_out)

    def forward(self, bag: Bag, edges: Tensor | None = None) -> Prediction:
        """Predict one bag; `edges` (2, edges), source over target, instead of the bag's own graph. extras: scores (n,)."""
        source, target = neighbour_edges(bag, self.neighbours, self.graph) if edges is None else edges
        order = target.argsort(stable=True)
        source = source[order]
        start = torch.searchsorted(target[order], torch.arange(len(bag), device=target.device))  # (n,)
        h = bag.features
        for conv in (self.conv1, self.conv2, self.conv3):
            h = conv(h, source, start).relu()  # (n, hidden)
        scores: Tensor = self.score(h)  # (n, 1)
        weight = scores.softmax(dim=0)
        z = self.rho((weight * h).sum(dim=0))  # (hidden,)
        return Prediction(logits=self.head(z), attention=weight[:, 0], extras={"scores": scores[:, 0]})
