"""Generated slides: the same everywhere, labels that follow their rule, and nothing to read but the rule."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from milbench import MilbenchError, datasets, stats
from milbench.datasets.spatial import dataset as spatial
from milbench.datasets.spatial.tasks import BACKGROUND, TASKS, A, B, C, Slide
from milbench.datasets.spatial.tissue import AROUND, BELL, STEP, Draw, Tissue, grow

SPACE = [name for name, task in TASKS.items() if task.spatial]


def slides(task, part, count, n=300, start=0):
    """Labelled slides of a task, apart from those of the data sets."""
    for i in range(start, start + count):
        positive = i % 2 == 1
        yield TASKS[task].make(Draw("test", task, part, i), n, part, positive), positive


def from_map(*lines, step=STEP):
    """A slide of one section from text, as `spatial.drawn` writes it."""
    kinds = {"A": A, "B": B, "C": C, "o": BACKGROUND[0]}
    found = [(x, y, kinds[c]) for y, line in enumerate(lines) for x, c in enumerate(line) if c != "."]
    x, y, types = np.array(found).T
    return Slide(Tissue(step * np.stack([x, y], axis=1) + 77, np.zeros(len(x), dtype=np.int64), step), types)


def digest(name, encoder, ids):
    hashed = hashlib.sha256()
    dataset = datasets.load(name, encoder)
    for id in ids:
        bag, slide = dataset.read(id), spatial.make(name, id)
        for array in (slide.types, slide.tissue.section, bag.coords.numpy(), bag.features.numpy()):
            hashed.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return hashed.hexdigest()[:16]


HASHES = {
    "presence": "b8ade9e55bcfe908",
    "count": "a3c1f8e48e263798",
    "proportion": "e3420076b2523e83",
    "adjacency": "665d8d04d7c52cad",
    "arrangement": "ce99c28aad9f357c",
    "texture": "ca896a3c57498e5d",
    "boundary": "33b42167c7444456",
    "orientation": "b5108b2d7d8136e7",
    "size-extrapolation": "34682c03721949bc",
    "magnification-shift": "cfa9e82a4d1067b0",
    "poisoned": "e4da2ade11beed55",
    "threshold": "7c881497243e333c",
    "false-frequency": "6b0b9cdb350cddab",
    "gaussian384": "f9d5879808d4e458",
    "full": "7ba97e0fac391354",
    "words": [8197315667734850028, 2556460648476494142],
    "below": [4, 1, 7, 2, 4, 3, 6, 0],
}


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_slides_on_every_platform(task):
    found = digest(f"spatial-{task}", "digits", ["train-0000", "val-0001", "test-0002", "test-0003"])
    assert found == HASHES[task], (
        "generated slides changed: results of the spatial suites can no longer be compared with earlier ones"
    )


def test_prototypes_and_large_slides_are_the_same_on_every_platform():
    assert digest("spatial-texture", "gaussian384", ["train-0001", "test-0000"]) == HASHES["gaussian384"]
    assert digest("spatial-adjacency-full", "gaussian16", ["train-0001", "test-0000"]) == HASHES["full"]


def test_draws_are_raw_words_and_integer_arithmetic():
    assert Draw("a", 1).words(2).tolist() == HASHES["words"]
    assert Draw("a", 1).below(10, 8).tolist() == HASHES["below"]
    assert not np.array_equal(Draw("a", 1).words(4), Draw("a", 2).words(4))
    draw = Draw("many")
    values = draw.below(np.array([3, 7] * 30_000), 60_000).reshape(-1, 2)
    for column, high in ((0, 3), (1, 7)):
        assert np.bincount(values[:, column]) == pytest.approx(np.full(high, 30_000 / high), rel=0.05)
    bell = draw.bell(100_000) / BELL
    assert (bell.mean(), bell.std()) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))
    assert sorted(draw.shuffled(np.arange(50)).tolist()) == list(range(50))


@pytest.mark.parametrize("n", [50, 201, 1999])
def test_tissue_is_irregular_and_in_sections(n):
    holes = 0
    for i in range(12):
        tissue = grow(Draw("tissue", n, i), n)
        assert len(tissue) == n
        assert len(np.unique(tissue.coords, axis=0)) == n
        x, y = tissue.coords.T
        assert (np.lexsort((x, y, tissue.section)) == np.arange(n)).all(), "section by section, row by row"
        offsets = {tuple(row) for row in np.c_[tissue.section, tissue.coords % STEP]}
        assert len(offsets) == tissue.section[-1] + 1, "each section has a grid of its own"
        for a, b in itertools.combinations(range(tissue.section[-1] + 1), 2):
            gap = tissue.squared(np.flatnonzero(tissue.section == a)[:, None], np.flatnonzero(tissue.section == b)[None]).min()
            assert gap >= (6 * STEP) ** 2, "no window that holds neighbours reaches another section"
        edge = tissue.at_edge()
        assert 0.1 < edge.mean() < 0.9
        filled = 0
        for section in range(tissue.section[-1] + 1):
            own = tissue.coords[tissue.section == section]
            filled += np.prod(np.ptp(own, axis=0) // STEP + 1)
        holes += n / filled < 0.75
    assert holes >= 10, "outlines are ragged"
    assert len({int(grow(Draw("count", i), 400).section[-1]) for i in range(20)}) == 3, "one to three sections"


def test_neighbours_are_those_of_the_definition():
    tissue = grow(Draw("near"), 150)
    near = tissue.neighbours(AROUND)
    for i, k in itertools.product(range(150), range(8)):
        wanted = tissue.coords[i] + STEP * np.array(AROUND[k])
        there = np.flatnonzero((tissue.coords == wanted).all(axis=1) & (tissue.section == tissue.section[i]))
        assert near[i, k] == (there[0] if len(there) else -1)


def test_refined_tissue_is_the_same_tissue():
    tissue = grow(Draw("fine"), 80)
    fine, parent = tissue.refined()
    assert (len(fine), fine.step) == (320, 128)
    assert np.array_equal(np.bincount(parent), np.full(80, 4))
    assert (np.abs(fine.coords - tissue.coords[parent]) <= 128).all()
    assert (fine.neighbours(((1, 0),)) >= 0).sum() == 2 * 80 + 2 * (tissue.neighbours(((1, 0),)) >= 0).sum()


@pytest.mark.parametrize(
    ("task", "yes", "no"),
    [
        ("presence", ["oAo"], ["ooo"]),
        ("count", ["A" * 11], ["A" * 10]),
        ("proportion", ["AABo"], ["ABBo"]),
        ("adjacency", ["Aoo", "oBo", "ooo"], ["AooBoo"]),
        ("arrangement", ["AAoo.BoB"], ["AAoBB.AA"]),
        ("texture", ["AAoooo", "AAoooo"], ["AoooAo", "ooAooo"]),
        ("boundary", ["AoA", "ooo", "ooo"], ["ooo", "oAo", "ooo"]),
        ("boundary", ["ooooo", "oA.oo", "ooooo"], ["ooooo", "oAo.o", "ooooo"]),
        ("orientation", ["AAo", "ooo", "oAA"], ["Aoo", "Aoo"]),
        ("poisoned", ["AC"], ["CC"]),
        ("threshold", ["AABB"], ["AAABCC"]),
        ("false-frequency", ["AB"], ["A" * 20]),
    ],
)
def test_rules_by_hand(task, yes, no):
    assert TASKS[task].rule(from_map(*yes)) is True
    assert TASKS[task].rule(from_map(*no)) is False


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("part", ["train", "test"])
def test_the_oracle_is_always_right(task, part):
    for slide, positive in slides(task, part, 60):
        assert TASKS[task].rule(slide) is positive


@pytest.mark.slow
@pytest.mark.parametrize("task", SPACE)
def test_composition_and_size_say_nothing_where_the_task_is_about_space(task):
    """A classifier that sees how many patches there are of each type, and their shares, stays at chance on other slides."""

    def table(start):
        made = list(slides(task, "train", 300, start=start))
        counts = np.stack([np.bincount(slide.types, minlength=10) for slide, _ in made])
        n = counts.sum(1, keepdims=True)
        return np.c_[counts, n, counts / n], np.array([positive for _, positive in made])

    (x, y), (x_test, y_test) = table(0), table(300)
    scale = StandardScaler().fit(x)
    score = LogisticRegression(C=0.1, max_iter=500).fit(scale.transform(x), y).decision_function(scale.transform(x_test))
    assert abs(stats.auc(y_test, score) - 0.5) < 3 * np.sqrt(301 / (12 * 150 * 150)), "three standard errors of a guess"


@pytest.mark.slow
def test_the_places_of_one_type_say_nothing_about_adjacency():
    """Where A are, and where B are, is distributed alike on both labels: only where they are to each other differs."""
    told = {True: [], False: []}
    for slide, positive in slides("adjacency", "train", 400):
        row = []
        for kind in (A, B):
            own = slide.of(kind)
            xy = slide.tissue.coords
            between = slide.tissue.squared(own[:, None], own[None])
            row += [
                slide.tissue.at_edge()[own].mean(),
                float(np.linalg.norm(xy[own] - xy.mean(0), axis=1).mean()),
                float(np.sqrt(between[~np.eye(len(own), dtype=bool)]).mean()) if len(own) > 1 else 0.0,
            ]
        told[positive].append(row)
    p = scipy_stats.ttest_ind(told[True], told[False]).pvalue
    assert p.min() > 0.01 / len(p), f"{p}: an outline or a density tells the label"


def test_adjacent_types_touch_and_others_are_out_of_reach():
    for slide, positive in slides("adjacency", "train", 40):
        a, b = slide.of(A), slide.of(B)
        nearest = np.sqrt(slide.tissue.squared(a[:, None], b[None]).min(axis=1)) / STEP
        assert len(a) == len(b) >= 3
        assert (nearest < 1.5).all() if positive else (nearest >= 3).all()


def test_arranged_sections_are_alike_and_beyond_every_window():
    for slide, positive in slides("arrangement", "train", 40):
        assert slide.count(A) == slide.count(B) >= 20
        assert slide.nearest(A, B) >= 11, "LongMIL's own window of radius 10 does not reach from one section to the next"
        kinds = [set(slide.types[slide.tissue.section == number]) & {A, B} for number in range(4)]
        assert all(len(kind) == 1 for kind in kinds)
        assert (kinds[0] == kinds[1]) is positive
        assert (kinds[0] == kinds[3]) is not positive


def test_what_differs_between_training_and_test():
    sizes = {part: [len(slide.types) for slide, _ in slides("size-extrapolation", part, 4)] for part in ("train", "val", "test")}
    assert sizes == {"train": [75] * 4, "val": [75] * 4, "test": [300] * 4}
    for part, step, n in (("train", 256, 75), ("test", 128, 300)):
        assert {(s.tissue.step, len(s.types)) for s, _ in slides("magnification-shift", part, 4)} == {(step, n)}
    for part, reversed_ in (("train", False), ("val", False), ("test", True)):
        for slide, positive in slides("poisoned", part, 20):
            assert (slide.count(C) > 0) == (positive == reversed_)
        for slide, positive in slides("threshold", part, 20):
            assert (slide.count(C) > 0) == (positive == reversed_)
        for slide, positive in slides("false-frequency", part, 20):
            assert (max(slide.count(A), slide.count(B)) >= 10) == (positive == reversed_)


def test_parts_are_disjoint_and_balanced():
    dataset = datasets.load("spatial-adjacency", "digits")
    (fold,) = dataset.folds("generated")
    assert [len(part) for part in fold] == [7_200, 100, 200]
    assert len(set().union(*fold)) == 7_500 == len(dataset.samples)
    for part in fold:
        assert sum(dataset.sample(id).label for id in part) == len(part) / 2
    images = {
        part: {row.tobytes() for kind in spatial.images(part)[0] for row in kind if row.any()}
        for part in ("train", "val", "test")
    }
    assert len(images["train"]) > 1000
    assert not images["train"] & images["test"]
    assert not images["train"] & images["val"]
    assert not images["val"] & images["test"]


@pytest.mark.parametrize("name", spatial.NAMES)
def test_sizes_are_known_without_making_slides(name):
    sizes = spatial.sizes(name)
    for id in ("train-0003", "val-0000", "test-0001"):
        assert sizes[id] == len(spatial.make(name, id).types)


def test_a_bag_is_what_the_slide_is():
    dataset = datasets.load("spatial-orientation", "digits")
    slide, bag = spatial.make("spatial-orientation", "test-0005"), dataset.read("test-0005").check(64)
    assert torch.equal(bag.coords, torch.from_numpy(slide.tissue.coords))
    assert (bag.step, dataset.sizes()["test-0005"]) == (256, len(bag))
    grid = bag.grid().numpy()
    same = slide.tissue.section == 0
    assert np.array_equal(np.diff(grid[same], axis=0) * STEP, np.diff(slide.tissue.coords[same], axis=0))
    lines = spatial.drawn(slide)
    assert sum(c != "." for line in lines for c in line) == len(bag)
    assert all(
        "ABCo".index(lines[y][x]) == {A: 0, B: 1, C: 2}.get(kind, 3) for (x, y), kind in zip(grid, slide.types, strict=True)
    )


@pytest.mark.parametrize("width", [16, 100, 1024])
def test_prototypes_are_equally_far_apart_at_any_width(width):
    centres = spatial.prototypes(width) / spatial.GAUSSIAN_NOISE
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=2)[~np.eye(10, dtype=bool)]
    assert distance == pytest.approx(8, rel=0.07 if width % 16 else 0.02)
    slide = next(slides("texture", "test", 1))[0]
    x = spatial.features(f"gaussian{width}", slide, "test", Draw("noise"))
    assert x.shape == (300, width)
    nearest = np.linalg.norm(x[:, None] * spatial.UNIT / spatial.GAUSSIAN_NOISE - centres, axis=2).argmin(1)
    assert (nearest == slide.types).mean() > 0.99


def test_digits_can_be_told_apart_by_images_of_other_slides():
    """Key types can be recognised with images that no test slide has, and are seldom taken for another."""
    train, test = (
        [next(slides(task, part, 1, n=2000))[0] for task in ("threshold", "texture", "proportion")] for part in ("train", "test")
    )
    x, y, x_test, y_test = (
        np.concatenate(
            [spatial.features("digits", s, part, Draw(part, i)) if what == "x" else s.types for i, s in enumerate(some)]
        )
        for part, some in (("train", train), ("test", test))
        for what in "xy"
    )
    told = KNeighborsClassifier(5).fit(x, y).predict(x_test)
    for kind in (A, B):
        assert (told[y_test == kind] == kind).mean() > 0.97
        assert (told[y_test != kind] == kind).mean() < 0.005


def test_what_is_known_beforehand():
    known = datasets.known("spatial-adjacency")
    assert (known["chance"], known["bayes"], known["oracle"]) == (0.5, 1.0, 1.0)
    for lines, positive in zip(known["examples"], (False, True), strict=True):
        assert TASKS["adjacency"].rule(from_map(*lines)) is positive


def test_names_that_do_not_exist():
    with pytest.raises(MilbenchError, match="did you mean spatial-adjacency"):
        datasets.load("spatial-adjacent", "digits")
    with pytest.raises(MilbenchError, match="unknown encoder of a spatial dataset 'gaussian8'"):
        datasets.load("spatial-adjacency", "gaussian8")
    with pytest.raises(MilbenchError, match="no magnification"):
        datasets.load("spatial-adjacency", "digits", magnification=20)
    with pytest.raises(MilbenchError, match="generated dataset"):
        datasets.known("musk1")
    assert {info.name for info in datasets.infos()} >= {"spatial-adjacency", "spatial-texture-full"}
