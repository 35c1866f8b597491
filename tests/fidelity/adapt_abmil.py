"""AB-MIL as first published, and the two set models of the survival tables: attention with rho, and a plain sum."""

import torch

from milbench import Bag, plugins
from milbench.tasks import Subtyping, Survival, SurvivalTarget
from tests.fidelity.harness import DOUBLE, FORWARD, adapter, by_official_name, close, gradients


@adapter("abmil_attention", "abmil_gatedattention")
def original(vector):
    gated = "gated" in vector.name
    name = f"abmil[lineage=original,hidden=500,attention_dim=128,dropout=0,gated={str(gated).lower()}]"
    in_dim, task = next(vector.cases()).arrays["x"].shape[1], Subtyping("01")
    model = plugins.resolve(name).build(in_dim, 2).eval()
    model.load_official(vector.weights)
    assert sum(p.numel() for p in model.parameters()) == vector.about["n_params"]
    for case in vector.cases():
        x = case.tensor("x", grad=True)
        model.zero_grad()
        prediction = model(Bag(x))
        close(task.scores(prediction.logits)[1], case.arrays["prob"], FORWARD, "probability")
        close(prediction.attention, case.arrays["attention"], FORWARD, "attention")
        close(model.training_loss(prediction, torch.tensor(0), task), case.arrays["loss_y0"], FORWARD, "loss of class 0")
        loss = model.training_loss(prediction, torch.tensor(1), task)
        close(loss, case.arrays["loss"], FORWARD, "loss of class 1")
        loss.backward()
        gradients(vector, case, x, by_official_name(model, vector))
    model.double()
    for case in vector.cases():
        prediction = model(Bag(case.tensor("x", double=True)))
        close(task.scores(prediction.logits)[1], case.arrays["prob_f64"], DOUBLE, "float64 probability")
        close(prediction.attention, case.arrays["attention_f64"], DOUBLE, "float64 attention")


@adapter("amil_surv", "deepsets_surv")
def survival(vector):
    name = "abmil[rho=256]" if vector.name == "amil_surv" else "mean[reduce=sum,rho=256]"
    bins, task = vector.about["constructor"]["n_classes"], Survival([1.0, 2.0, 3.0])
    model = plugins.resolve(name).build(1024, bins).eval()
    model.load_official(vector.weights)
    for case in vector.cases():
        x = case.tensor("x", grad=True)
        model.zero_grad()
        prediction = model(Bag(x))
        hazards = prediction.logits.sigmoid()
        close(hazards, case.arrays["hazards"], FORWARD, "hazards")
        close((1 - hazards).cumprod(0), case.arrays["S"], FORWARD, "survival")
        close(task.scores(prediction.logits), case.arrays["risk"], FORWARD, "risk")
        target = SurvivalTarget(torch.tensor(case.about["Y"]), torch.tensor(case.about["c"] == 0))
        loss = model.training_loss(prediction, target, task)
        close(loss, case.arrays["loss"], FORWARD, "loss")
        loss.backward()
        gradients(vector, case, x, by_official_name(model, vector))
