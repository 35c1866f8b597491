"""MambaMIL's three mixers, with both rates; at 37 and 7 instances the last columns of the raster are padded."""

from milbench import plugins
from milbench.tasks import Subtyping
from tests.fidelity.harness import adapter, outputs, steps


@adapter("mambamil", "mambamil_rate5", "mambamil_bimamba", "mambamil_mamba")
def mambamil(vector):
    setup, seen = vector.about["constructor"], {}
    name = f"mambamil[dim=64,kind={setup['type'].lower()},rate={setup['rate']},activation={setup['act']},layers={setup['layer']}]"
    model, task = plugins.resolve(name).build(setup["in_dim"], setup["n_classes"]).eval(), Subtyping(["?"] * setup["n_classes"])
    model.load_official(vector.weights)
    assert sum(p.numel() for p in model.parameters()) == vector.about["n_params"]
    for i, layer in enumerate(model.layers):
        layer.mixer.register_forward_hook(lambda module, given, out, i=i: seen.update({f"layer{i}_mixer": out}))
    model.norm.register_forward_hook(lambda module, given, out: seen.update(before_norm=given[0]))
    model.score.register_forward_hook(lambda module, given, out: seen.update(attention_raw=out))
    for case, double, prediction, loss in steps(vector, model, task):
        found = {
            "logits": prediction.logits, "prob": task.scores(prediction.logits), "loss": loss,
            "tokens": prediction.extras["tokens"], "attention": prediction.attention,
        }  # fmt: skip
        outputs(vector, case, {**seen, **found}, double=double)
