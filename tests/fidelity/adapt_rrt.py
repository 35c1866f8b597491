"""R2T-MIL: its defaults, the variants of its recipes at a small width, and the official class at its only width."""

import math

from milbench import plugins
from milbench.tasks import Subtyping
from tests.fidelity.harness import adapter, outputs, steps

PARAMETERS = {
    "mlp_dim": "hidden", "n_layers": "layers", "region_num": "regions", "epeg_k": "epeg", "crmsa_k": "representatives",
    "crmsa_heads": "cross_heads", "crmsa_mlp": "cross_mlp", "all_shortcut": "shortcut", "da_act": "activation",
}  # fmt: skip


def keep(seen, name):
    return lambda module, given, returned: seen.update({f"{name}_in": given[0], name: returned})


def padding(n, side):
    """Patches, side of the square, side of a region, zeros: what the layers' squares are, worked out on its own."""
    square = math.ceil(math.ceil(math.sqrt(n)) / side) * side
    return [n, square, square // side, square**2 - n]


@adapter("rrtmil", "rrtmil_c16", "rrtmil_mlp", "rrtmil_full")
def rrt(vector):
    setup, seen = vector.about["constructor"], {}
    changes = ",".join(f"{ours}={str(setup[theirs]).lower()}" for theirs, ours in PARAMETERS.items() if theirs in setup)
    model = plugins.resolve(f"rrt[{changes}]").build(setup["input_dim"], setup["n_classes"]).eval()
    model.load_official(vector.weights)
    task, regions = Subtyping(["?"] * setup["n_classes"]), setup.get("region_num", 8)
    inert = sum(value.numel() for name, value in vector.weights.items() if name.endswith("pe.bias"))
    assert sum(p.numel() for p in model.parameters()) + inert == vector.about["n_params"]
    model.layers[-1].register_forward_hook(keep(seen, "after_rmsa"))
    model.cross.register_forward_hook(keep(seen, "after_crmsa"))
    model.cross.attn.register_forward_hook(keep(seen, "crmsa_out"))
    model.score.register_forward_hook(keep(seen, "attention_raw"))
    for case, double, prediction, loss in steps(vector, model, task):
        ours = {name: seen[name] for name in ("crmsa_out", "attention_raw")} | {"crmsa_in": seen["crmsa_out_in"]}
        tokens = {"after_rmsa": seen["after_rmsa"], "after_crmsa": seen["after_crmsa"], "tokens": prediction.extras["tokens"]}
        ours |= {name: t[: len(case.arrays[name])] for name, t in tokens.items()}  # of the big vector the first rows only
        ours |= {
            "pad_rmsa": padding(len(prediction.attention), regions),
            "pad_crmsa": padding(len(prediction.attention), 8),
            "attention": prediction.attention,
        }
        ours |= {"logits": prediction.logits, "prob": task.scores(prediction.logits), "loss": loss}
        outputs(vector, case, ours, double=double)
