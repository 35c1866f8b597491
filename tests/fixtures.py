"""What tests take as arguments. Everything works without the optional folder of real data; tests that need it say so."""

import os
from pathlib import Path

import pytest

from milbench import plugins
from tests import ROOT

SHARED = Path(os.environ.get("MILBENCH_SHARED", ROOT.parent / "shared"))


@pytest.fixture
def shared():
    """The optional folder of real data and reference numbers beside the repository, or wherever MILBENCH_SHARED says."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here (optional real data; MILBENCH_SHARED points elsewhere)")
    return SHARED


@pytest.fixture(autouse=True)
def registry_unchanged():
    """A test may register what it likes; it is forgotten afterwards."""
    with plugins.restored():
        yield


@pytest.fixture
def unflushed(monkeypatch):
    """Results are written without waiting for the disk: nothing here has to survive a power cut."""
    monkeypatch.setattr("milbench.trials.store.flush", lambda path: None)
