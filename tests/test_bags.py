"""Bags: the integer grid, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milbench import Bag, MilbenchError
from milbench.testing import strategies


def test_grid_is_rounded_to_the_nearest_cell():
    coords = torch.tensor([[1000, 500], [1224, 500], [1336, 948], [1335, 950]])  # the last two lie between cells
    bag = Bag(torch.zeros(4, 2), coords, 224.0)
    assert bag.grid().tolist() == [[0, 0], [1, 0], [2, 2], [1, 2]]


def test_patches_of_offset_contours_share_a_cell_and_stay_separate():
    bag = Bag(torch.zeros(2, 2), torch.tensor([[0, 0], [100, 50]]), 224.0)
    assert bag.grid().tolist() == [[0, 0], [0, 0]]


def test_slides_of_a_case_stand_apart_on_even_columns():
    coords = torch.tensor([[5000, 9000], [5448, 9224], [0, 0], [224, 0], [672, 448]])
    bag = Bag(torch.zeros(5, 2), coords, 224.0, slide_index=torch.tensor([0, 0, 1, 1, 1]))
    grid = bag.grid(gap=20)
    assert grid[:2].tolist() == [[0, 0], [2, 1]], "each slide starts at its own corner"
    assert int(grid[2:, 0].min() - grid[:2, 0].max()) > 20
    assert int(grid[2:, 0].min()) % 2 == 0
    assert (grid[2:] - grid[2]).tolist() == [[0, 0], [1, 0], [3, 2]], "shapes are kept"


@given(strategies.bags(in_dim=2, coords=True))
@settings(max_examples=60)
def test_patches_share_a_cell_only_within_a_slide(bag):
    grid = bag.grid(gap=20)
    slide = torch.zeros(len(bag), dtype=torch.int64) if bag.slide_index is None else bag.slide_index
    for number in slide.unique().tolist():
        cells, coords = grid[slide == number], bag.coords[slide == number]
        assert int(cells[:, 0].min()) % 2 == 0
        assert int(cells[:, 1].min()) == 0
        expected = (coords - coords.min(dim=0).values) / bag.step
        assert torch.equal(cells - cells.min(dim=0).values, (expected + 0.5).floor().to(torch.int64))
        others = grid[slide != number, 0]
        assert not len(others) or int((others[:, None] - cells[:, 0]).abs().min()) > 20


@given(strategies.bags(in_dim=2, coords=True), st.randoms())
@settings(max_examples=60)
def test_neither_number_nor_place_of_a_slide_moves_it(bag, random):
    if bag.slide_index is None:
        return
    slides = int(bag.slide_index.max()) + 1
    numbers, rows = torch.tensor(random.sample(range(slides), slides)), torch.tensor(random.sample(range(len(bag)), len(bag)))
    other = Bag(bag.features[rows], bag.coords[rows], bag.step, slide_index=numbers[bag.slide_index[rows]])
    alike = len({tuple(sorted(map(tuple, bag.features[bag.slide_index == s].tolist()))) for s in range(slides)}) < slides
    if not alike:  # slides that hold the same may change places
        assert torch.equal(other.grid(), bag.grid()[rows])


def test_slides_at_the_same_places_are_told_apart_by_their_features():
    coords, features = torch.tensor([[0, 0], [224, 0]]).repeat(2, 1), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    first = Bag(features, coords, 224.0, slide_index=torch.tensor([0, 0, 1, 1]))
    second = Bag(features, coords, 224.0, slide_index=torch.tensor([1, 1, 0, 0]))
    assert torch.equal(first.grid(), second.grid())


def test_grid_is_computed_in_double_precision():
    far = torch.tensor([[2**27 + 1, 0], [2**27 + 225, 0]])
    assert Bag(torch.zeros(2, 2), far, 224.0).grid()[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"features": torch.zeros(0, 4)}, "features must be"),
        ({"features": torch.zeros(4)}, "features must be"),
        ({"features": torch.zeros(3, 4), "coords": torch.zeros(2, 2), "step": 1.0}, r"coords must be \(3, 2\)"),
        ({"features": torch.zeros(3, 4), "coords": torch.zeros(3, 2)}, "coords need the step"),
        ({"features": torch.zeros(3, 4), "slide_index": torch.zeros(2)}, "slide_index"),
    ],
)
def test_refuses_and_names_slide_and_file(arguments, says):
    with pytest.raises(MilbenchError, match=rf"slide TCGA-1 \(a/b\.h5\): .*{says}"):
        Bag(slide_id="TCGA-1", source="a/b.h5", **arguments)


def test_check_finds_wrong_width_and_nan():
    x = torch.zeros(4, 3)
    x[2, 1] = torch.inf
    with pytest.raises(MilbenchError, match="3 wide, the dataset's are 5"):
        Bag(x).check(5)
    with pytest.raises(MilbenchError, match="1 of 4 patches hold NaN or infinite"):
        Bag(x).check(3)


def test_without_coordinates_there_is_no_grid():
    with pytest.raises(MilbenchError, match="has no coordinates"):
        Bag(torch.zeros(2, 2)).grid()
