"""GCN-MIL (DeepGraphConv). The official network gives hazards; the vector's loss is the survival NLL of an event in bin 2."""

import torch

from milbench import Bag, plugins
from milbench.tasks import Survival, SurvivalTarget
from tests.fidelity.harness import DOUBLE, FORWARD, GRADIENT, adapter, by_official_name, close, gradients


@adapter("deepgraphconv_surv")
def gcn(vector):
    setup = vector.about["constructor"]
    model = plugins.resolve(f"gcn-mil[hidden={setup['hidden_dim']}]").build(setup["num_features"], setup["n_classes"]).eval()
    model.load_official(vector.weights)
    task, target = Survival([1.0, 2.0, 3.0], setup["n_classes"]), SurvivalTarget(torch.tensor(2), torch.tensor(True))
    for case in vector.cases():
        model.float().zero_grad()
        x, edges = case.tensor("x", grad=True), case.tensor("edge_index")
        prediction = model(Bag(x), edges)
        hazards = prediction.logits.sigmoid()
        close(hazards, case.arrays["hazards"], FORWARD, "hazards")
        close((1 - hazards).cumprod(0), case.arrays["S"], FORWARD, "S")
        close(prediction.extras["scores"], case.arrays["A_path"], FORWARD, "attention scores")
        loss = model.training_loss(prediction, target, task)
        close(loss, case.arrays["loss"], FORWARD, "loss")
        loss.backward()
        ours = by_official_name(model, vector)
        gradients(vector, case, x, ours)
        sums = [float(ours[name].grad.double().sum()) for name in vector.about["param_order"]]
        close(sums, case.arrays["param_grad_sum"], GRADIENT, "sums of parameter gradients")
        model.double()
        close(
            model(Bag(case.tensor("x", double=True)), edges).logits.sigmoid(),
            case.arrays["hazards_f64"],
            DOUBLE,
            "float64 hazards",
        )
