"""What several tests share. Everything works without the optional folder of real data; tests that need it say so."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

from milbench import plugins
from tests import ROOT

# The same examples on every machine and at every run; --hypothesis-seed=random looks for others.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")
torch.set_num_threads(1)  # tests run side by side
plugins.discover()  # at import, so that tests can be parametrised over the registry

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
    entries, files = dict(plugins._entries), set(plugins._loaded_files)
    yield
    plugins._entries.clear()
    plugins._entries.update(entries)
    plugins._loaded_files.clear()
    plugins._loaded_files.update(files)
