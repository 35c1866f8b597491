"""What tests take as arguments. Everything works without the optional folder of real data; tests that need it say so."""

import os
from pathlib import Path

import pytest

from milbench import plugins
from milbench.api import runs
from milbench.ops import backends
from tests import ROOT
from tests.builders import engine

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


@pytest.fixture
def run_here(monkeypatch):
    """Trials run in this process: a worker takes seconds to start."""
    monkeypatch.setitem(runs.ENGINES, "local", engine.run_here)


@pytest.fixture
def unforced():
    """A test may force backends; they are chosen freely afterwards."""
    with backends.restored():
        yield
