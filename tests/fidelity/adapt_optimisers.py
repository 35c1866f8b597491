"""TransMIL's Lookahead(RAdam) on a least-squares problem, step by step."""

import numpy as np
import torch

from milbench.nn.optimisers import build
from milbench.recipes import Recipe
from tests.fidelity.harness import FORWARD, adapter, close


@adapter("transmil_lookahead_radam")
def lookahead_radam(vector):
    """The recorded w0 and b0 are not the start but a later state; the start is recovered from the first step, which is plain SGD.

    It lies on a grid of 1/256 and reproduces the recorded first loss, which proves the recovery.
    """
    x, y = (torch.from_numpy(vector.arrays[key]).double() for key in "XY")
    setup = vector.about["constructor"]
    first_w, first_b = (torch.from_numpy(vector.arrays[key][0]).double() for key in "wb")
    w, b = first_w, first_b
    for _ in range(50):
        rest = x @ w.T + b - y
        w, b = first_w + setup["lr"] * 2 * rest.T @ x / rest.numel(), first_b + setup["lr"] * 2 * rest.sum(0) / rest.numel()
    w, b = ((t * 256).round().div(256).float().requires_grad_() for t in (w, b))

    recipe = Recipe(
        name="x", optimiser="lookahead-radam", lr=setup["lr"], weight_decay=setup["weight_decay"], decay_vectors=False
    )
    optimiser = build(recipe, [w, b])
    for i in range(len(vector.arrays["loss"])):
        optimiser.zero_grad()
        loss = ((x.float() @ w.T + b - y.float()) ** 2).mean()
        close(loss, vector.arrays["loss"][i : i + 1], FORWARD, f"loss of step {i}")
        loss.backward()
        optimiser.step()
        close(w, vector.arrays["w"][i], FORWARD, f"weight after step {i}")
        close(b, vector.arrays["b"][i], FORWARD, f"bias after step {i}")
    assert not np.allclose(vector.arrays["w"][0], vector.arrays["w"][-1])
