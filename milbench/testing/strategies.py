"""Hypothesis strategies for bags, samples, folds and label tables, odd as real ones are.

from hypothesis import given
from milbench.testing import strategies

@given(strategies.bags(in_dim=8))
def test_my_pooling(bag): ...
"""

from __future__ import annotations

import csv
import io
from typing import Any

import torch

from milbench.bags import Bag
from milbench.datasets import Fold, Sample
from milbench.errors import MilbenchError

try:
    from hypothesis import strategies as st
    from hypothesis.strategies import DrawFn, SearchStrategy
except ModuleNotFoundError as error:
    raise MilbenchError("milbench.testing.strategies needs hypothesis: pip install hypothesis") from error

SIZES = (1, 2, 7, 37)


@st.composite
def bags(draw: DrawFn, in_dim: int = 8, *, sizes: tuple[int, ...] = SIZES, coords: bool | None = None, slides: int = 3) -> Bag:
    """Bags of odd sizes, with gaps in the tissue and patches that share a position.

    Args:
        draw: given by hypothesis.
        in_dim: width d of the features, which are standard normal.
        sizes: numbers of instances n to choose from.
        coords: True with positions, False without, None for either.
        slides: the most slides of a case; 1 for bags of one slide.
    """
    n = draw(st.sampled_from(sizes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    features = torch.randn(n, in_dim, generator=generator)
    if not (draw(st.booleans()) if coords is None else coords):
        return Bag(features, slide_id="drawn", case_id="drawn")
    step = draw(st.sampled_from((224, 256, 512)))
    spread = draw(st.sampled_from((1, 2, n, 10 * n)))  # narrow: shared positions; wide: gaps
    cells = torch.randint(spread, (n, 2), generator=generator)
    offset = torch.randint(step, (1, 2), generator=generator)
    count = draw(st.integers(1, min(slides, n)))
    slide = None if count == 1 else (torch.arange(n) * count // n)  # (n,), each slide has a patch
    return Bag(features, cells * step + offset, float(step), slide_id="drawn", case_id="drawn", slide_index=slide)


def ids() -> SearchStrategy[str]:
    """Names of slides or cases as files have them: dots, spaces, accents, commas, quotes; never empty, nor with line breaks."""
    letters = st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="/\\\0")
    return st.one_of(
        st.from_regex(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}-01Z-00-DX[1-9]", fullmatch=True),
        st.from_regex(r"[a-z0-9]+[ .,;_'\"=+-][a-z0-9]+", fullmatch=True),
        st.text(letters, min_size=1, max_size=12),
    )


@st.composite
def samples(draw: DrawFn, *, classes: int = 2, cases: int = 12, slides: int = 3) -> tuple[Sample, ...]:
    """Slides with labels, several of some patients; every class has at least `cases // classes` patients.

    Args:
        draw: given by hypothesis.
        classes: number of classes.
        cases: number of patients.
        slides: the most slides of a patient.
    """
    patients = draw(st.lists(ids(), min_size=cases, max_size=cases, unique=True))
    return tuple(
        Sample(f"{patient}#{number}", patient, label=at % classes)
        for at, patient in enumerate(patients)
        for number in range(draw(st.integers(1, slides)))
    )


@st.composite
def folds(draw: DrawFn, of: tuple[Sample, ...], *, grouped: bool | None = None, validation: bool | None = None) -> list[Fold]:
    """One to five folds of given samples, each with something to train on and to test.

    Args:
        draw: given by hypothesis.
        of: at least three samples of three patients.
        grouped: True keeps the slides of a patient together, False splits them freely, None for either.
        validation: whether there is a validation part; None for either.
    """
    grouped = draw(st.booleans()) if grouped is None else grouped
    parts = 3 if (draw(st.booleans()) if validation is None else validation) else 2
    units = sorted({s.case_id if grouped else s.id for s in of})
    made = []
    for _ in range(draw(st.integers(1, 5))):
        order = draw(st.permutations(units))
        cuts = draw(st.lists(st.integers(1, len(units) - 1), min_size=parts - 1, max_size=parts - 1, unique=True))
        edges = [0, *sorted(cuts), len(units)]
        part_of = {unit: part for part in range(parts) for unit in order[edges[part] : edges[part + 1]]}
        member = [tuple(s.id for s in of if part_of[s.case_id if grouped else s.id] == part) for part in range(parts)]
        made.append(Fold(member[0], member[1] if parts == 3 else (), member[-1]))
    return made


@st.composite
def label_tables(draw: DrawFn, *, missing: bool = True, duplicates: bool = True) -> tuple[str, list[dict[str, Any]]]:
    """A label table as the text of a CSV file, and its rows: slide_id, case_id, label.

    Args:
        draw: given by hypothesis.
        missing: whether labels may be missing (an empty cell).
        duplicates: whether a slide may be listed twice, with the same label.
    """
    words = st.sampled_from(("IDC", "ILC", "her2+", "grade 3", "NA-like", "0", "1"))
    label = st.one_of(words, st.just("")) if missing else words
    names = draw(st.lists(ids(), min_size=1, max_size=12, unique=True))
    rows = [{"slide_id": name, "case_id": f"case of {name}", "label": draw(label)} for name in names]
    if duplicates:
        rows += [dict(row) for row in rows if draw(st.integers(0, 9)) == 9]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["slide_id", "case_id", "label"], lineterminator=draw(st.sampled_from(("\n", "\r\n"))))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue(), rows
