"""S4MIL: its kernel, its convolution, and which token gave each channel's maximum."""

import torch
from torch.nn import functional as F

from milbench import plugins
from milbench.tasks import Subtyping
from tests.fidelity.harness import adapter, outputs, steps


@adapter("s4mil", "s4mil_relu")
def s4mil(vector):
    setup, seen = vector.about["constructor"], {}
    name = f"s4mil[dim=64,activation={setup['act']}]"
    model, task = plugins.resolve(name).build(setup["in_dim"], setup["n_classes"]).eval(), Subtyping(["?"] * setup["n_classes"])
    model.load_official(vector.weights)
    assert sum(p.numel() for p in model.parameters()) == vector.about["n_params"]
    model.s4d.register_forward_hook(lambda module, given, out: seen.update(before_gelu=out))
    for case, double, prediction, loss in steps(vector, model, task):
        tokens = prediction.extras["tokens"]
        found = {
            "logits": prediction.logits, "prob": task.scores(prediction.logits), "loss": loss, "tokens": tokens,
            "pooled": tokens.amax(0), "argmax": tokens.argmax(0), "kernel": model.s4d.kernel(len(tokens), tokens.dtype)[:, :7],
        }  # fmt: skip
        outputs(vector, case, {**seen, **found}, double=double)
        assert torch.equal(prediction.logits, F.linear(found["pooled"], model.head.weight, model.head.bias))
