"""WiKG: both kinds of update and all readouts; the neighbours themselves, too."""

from milbench import plugins
from milbench.tasks import Subtyping
from tests.fidelity.harness import adapter, outputs, steps

READOUTS = {"attn": "attention", "mean": "mean", "max": "max"}


@adapter("wikg", "wikg_mean", "wikg_sage_max", "wikg_gcn")
def wikg(vector):
    setup = vector.about["constructor"]
    update, readout = setup.get("agg_type", "bi-interaction"), READOUTS[setup.get("pool", "attn")]
    name = f"wikg[hidden={setup['dim_hidden']},update={update},readout={readout}]"
    model = plugins.resolve(name).build(setup["dim_in"], setup["n_classes"]).eval()
    model.load_official(vector.weights)
    unused = sum(value.numel() for name, value in vector.weights.items() if name.startswith("gate_"))
    assert sum(p.numel() for p in model.parameters()) + unused == vector.about["n_params"]
    task = Subtyping(["?"] * setup["n_classes"])
    for case, double, prediction, loss in steps(vector, model, task):
        seen = prediction.extras
        ours = {"neighbours": seen["neighbours"], "neighbour_logit": seen["neighbour_logits"], "nodes": seen["nodes"]}
        ours |= {"neighbour_prob": seen["neighbour_logits"].softmax(1), "message_weight": seen["message_weights"]}
        ours |= {"pooled": seen["pooled"], "logits": prediction.logits, "prob": task.scores(prediction.logits), "loss": loss}
        if readout == "attention":
            ours["attention"] = prediction.attention
        outputs(vector, case, ours, double=double)
