"""ILRA-MIL: with and without LayerNorm, also at rank 1, where a token can only read one latent."""

import torch

from milbench import plugins
from milbench.tasks import Subtyping
from tests.fidelity.harness import adapter, outputs, steps


def keep(seen, *names):
    """A hook that keeps what a module returns under these names."""
    return lambda module, given, returned: seen.update(zip(names, returned, strict=True))


@adapter("ilra", "ilra_rank1", "ilra_noln")
def ilra(vector):
    setup, seen = vector.about["constructor"], {}
    sizes = {"dim": "hidden_feat", "layers": "num_layers", "heads": "num_heads", "rank": "topk", "norm": "ln"}
    name = f"ilra[{','.join(f'{ours}={str(setup[theirs]).lower()}' for ours, theirs in sizes.items())}]"
    model, task = plugins.resolve(name).build(setup["feat_dim"], setup["n_classes"]), Subtyping(["?"] * setup["n_classes"])
    model.load_official(vector.weights)
    assert sum(p.numel() for p in model.parameters()) == vector.about["n_params"]
    for i, layer in enumerate(model.layers):
        layer.project_forward.register_forward_hook(keep(seen, f"gab{i}/latent", f"gab{i}/down"))
        layer.project_backward.register_forward_hook(keep(seen, f"gab{i}/out", f"gab{i}/up"))
    model.pooling.register_forward_hook(keep(seen, "pooled", "attention"))
    for case, double, prediction, loss in steps(vector, model, task):
        logits = prediction.logits
        outputs(vector, case, {**seen, "logits": logits, "prob": task.scores(logits), "loss": loss}, double=double)
        assert torch.equal(prediction.attention, seen["attention"][0])
