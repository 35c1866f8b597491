"""Every vector in the folders against our code: logits, attention, losses, gradients. New files and new cases run unasked."""

import importlib
from pathlib import Path

import pytest

from tests.fidelity.harness import ADAPTERS, Vector, folders

for module in sorted(Path(__file__).parent.glob("adapt_*.py")):
    importlib.import_module(f"tests.fidelity.{module.stem}")

PATHS = [path for folder in folders() for path in sorted(folder.glob("*.npz"))]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_vector(path):
    assert path.stem in ADAPTERS, f"vector {path.stem} has no adapter; write one in tests/fidelity/adapt_*.py"
    vector = Vector(path)
    assert list(vector.arrays), "an empty vector proves nothing"
    ADAPTERS[path.stem](vector)


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.name)
def test_there_are_vectors(folder):
    assert any(path.parent == folder for path in PATHS), f"no vectors in {folder}"
