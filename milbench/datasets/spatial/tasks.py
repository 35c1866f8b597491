"""What can be asked about a slide, and the answer: thirteen rules over patch types and their places.

Where a task is about space, how many patches there are and of which types is drawn before the label: composition tells nothing.
Distances are in patches of the coarse grid (256 level-0 pixels), also where the grid is refined.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from milbench.datasets.spatial.tissue import STEP, Draw, Ints, Tissue, grow

Part = Literal["train", "val", "test"]

# Types are digits. The key types are those that are hardest to take for another; the rest is background.
A, B, C = 0, 7, 4
BACKGROUND = np.array([1, 2, 3, 5, 8, 9])
DOMINO = 3  # patches of different dominoes are at least so far apart
SECTIONS = 12  # columns between the sections of an arrangement: wider than LongMIL's own window
TOUCHING = ((1, 0), (0, 1), (1, 1), (1, -1))


@dataclass(frozen=True)
class Slide:
    """A slide with the truth that no aggregator sees.

    Args:
        tissue: where the patches are.
        types: (n,) type of each patch.
    """

    tissue: Tissue
    types: Ints

    def of(self, kind: int) -> Ints:
        """Indices of the patches of a type."""
        return np.flatnonzero(self.types == kind)

    def count(self, kind: int) -> int:
        """How many patches are of a type."""
        return int((self.types == kind).sum())

    def nearest(self, one: int, other: int) -> float:
        """Smallest distance between patches of two types; infinite without both."""
        a, b = self.of(one), self.of(other)
        if not (len(a) and len(b)):
            return float("inf")
        return float(self.tissue.squared(a[:, None], b[None]).min()) ** 0.5 / STEP


class Task(ABC):
    """A rule that decides the label of a slide, and how to paint slides of either label.

    Every rule is decided by the types and places of the patches: with these known the best score is 1, and `rule`, which reads
    them and nothing else, is the oracle. Chance is an AUC of 0.5.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    spatial: ClassVar[bool] = True  # composition and size say nothing about the label
    smaller: ClassVar[tuple[Part, ...]] = ()  # parts whose tissue has a quarter of the patches

    def make(self, draw: Draw, n: int, part: Part, positive: bool) -> Slide:
        """A slide of the wanted label.

        Args:
            draw: where the randomness comes from.
            n: how large the tissue is, where it is not `smaller`.
            part: of the data set; decides where training and test differ.
            positive: the label.
        """
        n = Task.size(self, n, part)  # before a task refines it
        while True:
            tissue = self.tissue(draw, n)
            types = BACKGROUND[draw.below(len(BACKGROUND), n)]
            if self.paint(draw, tissue, types, part, positive):  # whether it can does not depend on the label
                return Slide(tissue, types)

    def size(self, n: int, part: Part) -> int:
        """How many patches the slide has that `make` makes of the same n."""
        return n // 4 if part in self.smaller else n

    def tissue(self, draw: Draw, n: int) -> Tissue:
        """Where the patches are, whatever the label."""
        return grow(draw, n)

    @abstractmethod
    def paint(self, draw: Draw, tissue: Tissue, types: Ints, part: Part, positive: bool) -> bool:
        """Write key types into `types`; False where this tissue has no room for them."""

    @abstractmethod
    def rule(self, slide: Slide) -> bool:
        """The label of a slide, from types and places."""


def _scatter(draw: Draw, types: Ints, **counts: int) -> bool:
    """Put so many patches of types A, B, C anywhere."""
    places = draw.shuffled(np.arange(len(types)))
    for kind, count in counts.items():
        chosen, places = places[:count], places[count:]
        types[chosen] = {"a": A, "b": B, "c": C}[kind]
    return True


class Presence(Task):
    """Is there an A?

    Rule: positive slides hold one patch of type A, negative slides none.
    Who: max-pooling and attention, which can single out one patch; its share in a mean is 1 / n.
    Best: 1. With digits some background patches look like an A, which costs more the larger the slide.
    """

    name, label, spatial = "presence", "Presence", False

    def paint(self, draw: Draw, tissue: Tissue, types: Ints, part: Part, positive: bool) -> bool:
        """One A, or none."""
        return _scatter(draw, types, a=int(positive))

    def rule(self, slide: Slide) -> bool:
        """At least one A."""
        return slide.count(A) >= 1


class Count(Task):
    """Are there more than ten A?

    Rule: positive slides hold 12 to 15 patches of type A, negative slides 6 to 9, however large they are.
    Who: what adds patches up. Means and softmax attention see shares, which overlap where sizes differ by more than half.
    Best: 1.
    """

    name, label, spatial = "count", "Count", False

    def paint(self, draw: Draw, tissue: Tissue, types: Ints, part: Part, positive: bool) -> bool:
        """6 to 9, and 6 more."""
        return _scatter(draw, types, a=draw.between(6, 9) + 6 * positive)

    def rule(self, slide: Slide) -> bool:
        """More than ten."""
        return slide.count(A) > 10


class Proportion(Task):
    """Are there more A than B?

    Rule: 6 to 12 % of the patches are of type A and half as many of type B, or the other way round.
    Who: everything that averages. Max-pooling sees both types on every slide.
    Best: 1.
    """

    name, label, spatial = "proportion", "Proportion", False

    def paint(self, draw: Draw, tissue: Tissue, types: Ints, part: Part, positive: bool) -> bool:
        """Twice as many of one as of the other."""
        many = len(types) * draw.between(6, 12) // 100
        few = many // 2
        return _scatter(draw, types, **({"a": many, "b": few} if positive else {"a": few, "b": many}))

    def rule(self, slide: Slide) -> bool:
        """More A than B."""
        return slide.count(A) > slide.count(B)


class Adjacency(Task):
    """Are A and B side by side?

    Rule: on positive slides every A touches a B, also at a corner; on negative slides every A is at least 3 patches away from
    every B. Places are pairs of touching patches, at least 3 apart. Half of them get an A and half a B: the same half on
    positive slides, different halves on negative ones, so the places of the A, and those of the B, look alike by themselves.
    Who: whatever mixes neighbours: windows of a radius below 3, graphs, convolutions over the map; full attention if it learns
    to look near. Models that read rows see the pairs that lie in a row, one of four. Nothing that ignores places.
    Best: 1.
    """

    name, label = "adjacency", "Adjacency"

    def paint(self, draw: Draw, tissue: Tissue, types: Ints, part: Part, positive: bool) -> bool:
        """A domino holds both on positive slides."""
        pairs = draw.shuffled(_dominoes(draw, tissue, TOUCHING))  # (spots, 2); those found last are squeezed to the edge
        half = len(pairs) // 2
        if not half:
            return False
        flip = draw.below(2, len(pairs))
        with_a, other = slice(0, half), slice(0, half) if positive else slice(half, 2 * half)
        types[np.where(flip, pairs[:, 0], pairs[:, 1])[with_a]] = A
        types[np.where(flip, pairs[:, 1], pairs[:, 0])[other]] = B
        return True

    def rule(self, slide: Slide) -> bool:
        """Some A and B less than two patches apart."""
        return slide.nearest(A, B) < 2


class SizeExtrapolation(Adjacency):
    """Adjacency on slides four times as large as those of training.

    Rule: as in adjacency, at the same density. Training and validation slides have a quarter of the patches.
    Who: as in adjacency, if what was learnt does not hang on the number of patches or on positions never seen in training.
    Best: 1.
    """

    name, label, smaller = "size-extrapolation", "Size ×4", ("train", "val")


class MagnificationShift(Adjacency):
    """Adjacency at twice the magnification of training.

    Rule: as in adjacency. On test slides every patch becomes four of its type, with images of their own, half as far apart.
    Who: as in adjacency, where a window or a graph still reaches the other type: they still touch, but A also touches A.
    Best: 1.
    """

    name, label, smaller = "magnification-shift", "Magnification ×2", ("train", "val", "test")

    def size(self, n: int, part: Part) -> int:
        """Four times as many in the test."""
        return super().size(n, part) * (4 if part == "test" else 1)

    def make(self, draw: Draw, n: int, part: Part, positive: bool) -> Slide:
        """As in adjacency; refined for the test."""
        slide = super().make(draw, n, part, positive)
        if part != "test":
            return slide
        tissue, parent = slide.tissue.refined()
        return Slide(tissue, slide.types[parent])


class Arrangement(Task):
    """Do pieces of tissue with the same type lie side by side?

    Rule: four sections in a row, 12 columns apart. Two hold patches of type A anywhere, the other two as many of type B. On
    positive slides the sections of A are neighbours at one end and those of B at the other; on negative slides those of one
    type lie between those of the other.
    Who: what knows where distant patches are: full attention with 2-D positions, LongMIL's global layer, scans of the map. Models
    that read the file meet the sections one after the other. Windows and graphs never leave a section, so each looks the same.
    Best: 1.
    """

    name, label = "arrangement", "Arrangement"

    def tissue(self, draw: Draw, n: int) -> Tissue:
        """Four sections."""
        return grow(draw, n, sections=4, gap=SECTIONS)

    def paint(self, draw: Draw, tissue: Tissue, types: Ints, part: Part, positive: bool) -> bool:
        """A A B B or A B B A, or with A and B exchanged."""
        one, other = (A, B) if draw.between(0, 1) else (B, A)
        sections = [np.flatnonzero(tissue.section == number) for number in range(4)]
        count = min(map(len, sections)) * draw.between(25, 40) // 100
        for cells, kind in zip(sections, (one, one, other, other) if positive else (one, other, other, one), strict=True):
            types[draw.shuffled(cells)[:count]] = kind
        return True

    def rule(self, slide: Slide) -> bool:
        """The centres of mass of A and B are further apart than the spread of both."""
        a, b = slide.tissue.coords[slide.of(A)], slide.tissue.coords[slide.of(B)]
        return bool(np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)) > np.linalg.norm(np.r_[a, b].std(axis=0)))


class Texture(Task):
    """Is A clustered or scattered?

    Rule: 15 to 25 % of the patches are of type A: in clusters on positive slides, anywhere on negative ones.
    Who: whatever mixes neighbours, rows included. Nothing that ignores places.
    Best: 1.
    """

    name, label = "texture", "Texture"

    def paint(self, draw: Draw, tissue: Tissue, types: Ints, part: Part, positive: bool) -> bool:
        """The patches nearest to a few centres, or as many anywhere."""
        count = len(types) * draw.between(15, 25) // 100
        order = draw.shuffled(np.arange(len(types)))
        if positive:
            centres = order[: max(1, count // 12)]
            far = np.stack([tissue.squared(int(centre)) for centre in centres]).min(axis=0)  # (n,)
            order = order[np.argsort(far[order], kind="stable")]
        types[order[:count]] = A
        return True

    def rule(self, slide: Slide) -> bool:
        """Neighbours of an A are A more often than halfway between its share of the slide and always."""
        around = slide.tissue.neighbours()[slide.of(A)]
        same = slide.types[around[around >= 0]] == A
        share = slide.count(A) / len(slide.types)
        return bool(same.mean() > (3 * share + 1) / 4)


class Boundary(Task):
    """Is A at the tissue's edge or inside?

    Rule: 5 to 10 % of the patches are of type A. On positive slides each has glass on one of its four sides, holes included; on
    negative slides none has.
    Who: what notices a missing neighbour: convolutions over the map, which see zeros there; graphs, where a patch at the edge
    gets fewer messages; windows, whose softmax gives the patch itself more weight where there are fewer others.
    Best: 1.
    """

    name, label = "boundary", "Boundary"

    def paint(self, draw: Draw, tissue: Tissue, types: Ints, part: Part, positive: bool) -> bool:
        """At the edge or inside."""
        edge = tissue.at_edge()
        count = min(len(types) * draw.between(5, 10) // 100, int(edge.sum()), int((~edge).sum()))
        types[draw.shuffled(np.flatnonzero(edge == positive))[:count]] = A
        return count > 0

    def rule(self, slide: Slide) -> bool:
        """Most A at the edge."""
        return bool(slide.tissue.at_edge()[slide.of(A)].mean() > 0.5)


class Orientation(Task):
    """Do pairs of A lie in rows or in columns?

    Rule: dominoes of two A, at least 3 patches apart, all lying (positive) or all standing (negative), at places that have room
    for either.
    Who: what tells x from y: 2-D positions, scans of the map along both axes. Models that read row by row see lying pairs as
    neighbours and standing ones not. Windows and graphs alone cannot, as they are the same in every direction.
    Best: 1.
    """

    name, label = "orientation", "Orientation"

    def paint(self, draw: Draw, tissue: Tissue, types: Ints, part: Part, positive: bool) -> bool:
        """Right or below, of corners that have both."""
        corners = _dominoes(draw, tissue, ((1, 0),), also=(0, 1))  # (spots, 3): the corner, right of it, below it
        types[corners[:, 0]] = A
        types[corners[:, 1 if positive else 2]] = A
        return len(corners) > 0

    def rule(self, slide: Slide) -> bool:
        """More A with an A to the right than with one below."""
        right, below = slide.tissue.neighbours(((1, 0), (0, 1)))[slide.of(A)].T
        pairs = [(slide.types[at[at >= 0]] == A).sum() for at in (right, below)]
        return bool(pairs[0] > pairs[1])


class PoisonedStandard(Task):
    """The standard assumption of MIL, with an easier way out.

    Rule: a slide is positive when it holds an A; positive slides hold 2 to 4. In training and validation every negative slide
    also holds 8 to 16 of type C and no positive slide does; in the test it is the other way round.
    Who: a method that respects the assumption, whose evidence for "positive" cannot be the absence of something. A method that
    learns "C means negative" falls below chance.
    Best: 1.

    Source: after the first test of Raff and Holt (NeurIPS 2023), with our types and counts.
    """

    name, label, spatial = "poisoned", "Poisoned", False

    def paint(self, draw: Draw, tissue: Tissue, types: Ints, part: Part, positive: bool) -> bool:
        """A for the label, C for the way out."""
        a, c = draw.between(2, 4), draw.between(8, 16)
        return _scatter(draw, types, a=a * positive, c=c * (positive == (part == "test")))

    def rule(self, slide: Slide) -> bool:
        """At least one A."""
        return slide.count(A) >= 1


class Threshold(Task):
    """Two concepts that must both be there, with an easier way out.

    Rule: a slide is positive when it holds at least two A and at least two B; positive slides hold 2 to 4 of each, negative
    slides 2 to 4 of one of them and at most one of the other. In training and validation every negative slide also holds 8 to
    16 of type C and no positive slide does; in the test it is the other way round.
    Who: what can say "and" and does not count an absence as evidence.
    Best: 1.

    Source: after the threshold test of Raff and Holt (NeurIPS 2023), with our types and counts.
    """

    name, label, spatial = "threshold", "Threshold", False

    def paint(self, draw: Draw, tissue: Tissue, types: Ints, part: Part, positive: bool) -> bool:
        """Enough of both, or of one."""
        enough, second, c = draw.between(2, 4), draw.between(2, 4), draw.between(8, 16)
        other = second if positive else second % 2
        a, b = (enough, other) if draw.between(0, 1) else (other, enough)
        return _scatter(draw, types, a=a, b=b, c=c * (positive == (part == "test")))

    def rule(self, slide: Slide) -> bool:
        """Two of each."""
        return slide.count(A) >= 2 and slide.count(B) >= 2


class FalseFrequency(Task):
    """Two concepts that must both be there, whose frequency misleads.

    Rule: a slide is positive when it holds an A and a B. In training and validation positive slides hold 1 or 2 of each and
    negative slides 10 to 20 of one of them; in the test positive slides hold 10 to 20 of each and negative slides 1 or 2 of one.
    Who: what looks for both and not at how many. A method that learns "many means negative" falls below chance.
    Best: 1.

    Source: after the false-frequency test of Raff and Holt (NeurIPS 2023), with our types and counts.
    """

    name, label, spatial = "false-frequency", "False frequency", False

    def paint(self, draw: Draw, tissue: Tissue, types: Ints, part: Part, positive: bool) -> bool:
        """Few where training has positives, many where the test has."""
        few, many = [draw.between(1, 2) for _ in "ab"], [draw.between(10, 20) for _ in "ab"]
        a, b = many if positive == (part == "test") else few
        if not positive:
            a, b = (a, 0) if draw.between(0, 1) else (0, b)
        return _scatter(draw, types, a=a, b=b)

    def rule(self, slide: Slide) -> bool:
        """One of each."""
        return slide.count(A) >= 1 and slide.count(B) >= 1


def _dominoes(draw: Draw, tissue: Tissue, offsets: tuple[tuple[int, int], ...], also: tuple[int, int] | None = None) -> Ints:
    """As many pairs of neighbours as random search finds room for, patches of different pairs at least `DOMINO` apart.

    Args:
        offsets: where the second of a pair may lie, one of them for each first.
        also: where a third patch must lie, too.

    Returns:
        (spots, 2), or (spots, 3) with `also`.
    """
    first = np.arange(len(tissue))
    chosen = draw.below(len(offsets), len(tissue))
    parts = [first, tissue.neighbours(offsets)[first, chosen]]
    if also:
        parts.append(tissue.neighbours((also,))[:, 0])
    spots = draw.shuffled(np.stack(parts, axis=1))
    spots = spots[(spots >= 0).all(axis=1)]
    close = [(x, y) for x in range(-DOMINO, DOMINO + 1) for y in range(-DOMINO, DOMINO + 1) if x * x + y * y < DOMINO**2]
    near = tissue.neighbours(tuple(close)).tolist()  # (n, 25), -1 where there is no patch
    taken = bytearray(len(tissue) + 1)  # the last place is nobody's
    pairs = []
    for spot in spots.tolist():
        if not any(taken[cell] for cell in spot):
            pairs.append(spot)
            for cell in spot:
                for other in near[cell]:
                    taken[other] = 1
    return np.array(pairs, dtype=np.int64).reshape(-1, len(parts))


TASKS: dict[str, Task] = {
    kind.name: kind()
    for kind in (
        Presence, Count, Proportion, Adjacency, Arrangement, Texture, Boundary, Orientation, SizeExtrapolation,
        MagnificationShift, PoisonedStandard, Threshold, FalseFrequency,
    )
}  # fmt: skip
