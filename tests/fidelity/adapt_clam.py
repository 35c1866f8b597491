"""CLAM, its AB-MIL, its max-pooling baselines, and the smooth top-1 SVM."""

import torch
from milbench_registry.clam import smooth_top1_svm
from torch.nn import functional as F

from milbench import Bag, plugins
from milbench.tasks import Subtyping
from tests.fidelity.harness import DOUBLE, FORWARD, GRADIENT, adapter, by_official_name, close, gradients

LOSSES = {"ce": F.cross_entropy, "svm": smooth_top1_svm}


@adapter("clam_sb", "clam_sb_ungated", "clam_mb")
def clam(vector):
    setup = vector.about["constructor"]
    name = f"clam-{vector.name.split('_')[1]}[dropout=0,gated={str(setup['gate']).lower()}]"
    n_out = setup["n_classes"]
    model, task = plugins.resolve(name).build(setup["embed_dim"], n_out).eval(), Subtyping(["?"] * n_out)
    model.load_official(vector.weights)
    for case in vector.cases():
        x = case.tensor("x", grad=True)
        prediction = model(Bag(x))
        close(prediction.logits, case.arrays["logits"], FORWARD, "logits")
        close(prediction.extras["attention"], torch.from_numpy(case.arrays["A_raw"]).softmax(1).numpy(), FORWARD, "attention")
        for variant in sorted({key.split("/")[0] for key in case.arrays if "/" in key}):
            loss, subtyping = variant.split("_")
            model.instance_loss, model.subtyping = LOSSES[loss], subtyping == "sub"
            model.zero_grad()
            x.grad = None
            prediction = model(Bag(x))
            close(model.clustering_loss(prediction, int(case.label)), case.arrays[f"{variant}/inst_loss"], FORWARD, variant)
            total = model.training_loss(prediction, case.label, task)
            close(total, case.arrays[f"{variant}/total"], FORWARD, variant)
            total.backward()
            gradients(vector, case, x, by_official_name(model, vector), prefix=f"{variant}/")
    if "single" in str(vector.about["class"]) or vector.name.startswith("clam_sb"):
        model.double()
        abmil = plugins.resolve(f"abmil[gated={str(setup['gate']).lower()}]").build(setup["embed_dim"], n_out).eval().double()
        abmil.load_official({name: value for name, value in vector.weights.items() if not name.startswith("instance_")})
        for case in vector.cases():
            bag = Bag(case.tensor("x", double=True))
            for one in (model, abmil):  # CLAM-SB without its instance loss is the AB-MIL of the same family
                close(one(bag).logits, case.arrays["logits_f64"], DOUBLE, "float64 logits")
                close(
                    one(bag).attention, torch.from_numpy(case.arrays["A_raw_f64"]).softmax(1).numpy(), DOUBLE, "float64 attention"
                )


@adapter("clam_maxpool_mil_fc", "clam_maxpool_mil_fc_mc")
def clam_max_pooling(vector):
    setup = vector.about["constructor"]
    model = plugins.resolve("max[pick=instance,dropout=0]").build(setup["embed_dim"], setup["n_classes"]).eval()
    model.load_official(vector.weights)
    task = Subtyping(["?"] * setup["n_classes"])
    for case in vector.cases():
        x = case.tensor("x", grad=True)
        prediction = model(Bag(x))
        close(prediction.logits, case.arrays["top_instance_logits"], FORWARD, "logits")
        close(task.scores(prediction.logits), case.arrays["prob"], FORWARD, "probabilities")
        loss = model.training_loss(prediction, case.label, task)
        close(loss, case.arrays["loss"], FORWARD, "loss")
        loss.backward()
        gradients(vector, case, x, by_official_name(model, vector))


@adapter("smooth_top1_svm")
def svm(vector):
    for case in vector.cases():
        x, y, tau = case.tensor("x", grad=True), case.tensor("y"), float(case.arrays["tau"])
        loss = smooth_top1_svm(x, y, tau)
        close(loss, case.arrays["loss"], FORWARD, "loss")
        loss.backward()
        close(x.grad, case.arrays["grad"], GRADIENT, "gradient")
        rows = [float(smooth_top1_svm(x[i : i + 1].detach(), y[i : i + 1], tau)) for i in range(len(x))]
        close(rows, case.arrays["per_row"], FORWARD, "rows")
