"""DS-MIL: the four official variants and the one behind the survival tables."""

from milbench import Bag, plugins
from milbench.tasks import Subtyping
from tests.fidelity.harness import DOUBLE, FORWARD, adapter, by_official_name, close, gradients

VARIANTS = {
    "dsmil_nonlin_id": "dsmil",
    "dsmil_lin_id": "dsmil[nonlinear=false]",
    "dsmil_nonlin_v": "dsmil[values=relu]",
    "dsmil_lin_v": "dsmil[nonlinear=false,values=relu]",
    "dsmil_hipt_variant": "dsmil[nonlinear=false,values=linear,lineage=hipt]",
}


@adapter(*VARIANTS)
def dsmil(vector):
    first = next(vector.cases())
    in_dim, n_out = first.arrays["x"].shape[1], first.arrays.get("bag", first.arrays.get("logits")).shape[-1]
    model, task = plugins.resolve(VARIANTS[vector.name]).build(in_dim, n_out).eval(), Subtyping(["?"] * n_out)
    model.load_official(vector.weights)
    for case in vector.cases():
        x = case.tensor("x", grad=True)
        model.zero_grad()
        prediction = model(Bag(x))
        outputs = {"inst": "instances", "max": "max", "bag": "bag"}
        for theirs, ours in outputs.items():
            if theirs in case.arrays:
                close(prediction.extras[ours], case.arrays[theirs], FORWARD, theirs)
        if "A" in case.arrays:
            close(prediction.extras["attention"].T, case.arrays["A"], FORWARD, "attention")
        close(prediction.logits, case.arrays.get("bag", case.arrays.get("logits")), FORWARD, "logits")
        loss = model.training_loss(prediction, case.label, task)
        close(loss, case.arrays["loss"], FORWARD, "loss")
        loss.backward()
        gradients(vector, case, x, by_official_name(model, vector))
    model.double()
    for case in vector.cases():
        if "bag_f64" in case.arrays:
            prediction = model(Bag(case.tensor("x", double=True)))
            close(prediction.logits, case.arrays["bag_f64"], DOUBLE, "float64 logits")
            close(prediction.extras["attention"].T, case.arrays["A_f64"], DOUBLE, "float64 attention")
            close(prediction.extras["instances"], case.arrays["inst_f64"], DOUBLE, "float64 instances")
