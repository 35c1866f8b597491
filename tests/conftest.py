"""How tests run: one thread, the same examples each time, the whole registry known. What they take as arguments: `tests/fixtures.py`."""

import hypothesis
import torch

from milbench import plugins

pytest_plugins = ["tests.fixtures"]

# The same examples on every machine and at every run; --hypothesis-seed=random looks for others.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")
torch.set_num_threads(1)  # tests run side by side
plugins.discover()  # at import, so that tests can be parametrised over the registry
