"""TransMIL at its official size, and the attention it stands on."""

from milbench import Bag, plugins
from milbench.tasks import Subtyping
from tests.fidelity.harness import DOUBLE, FORWARD, adapter, by_official_name, close, gradients


@adapter("transmil")
def transmil(vector):
    n_out = vector.about["constructor"]["n_classes"]
    model, task = plugins.resolve("transmil").build(1024, n_out).eval(), Subtyping(["?"] * n_out)
    model.load_official(vector.weights)
    for case in vector.cases():
        x = case.tensor("x", grad=True)
        model.zero_grad()
        prediction = model(Bag(x))
        close(prediction.logits, case.arrays["logits"], FORWARD, "logits")
        loss = model.training_loss(prediction, case.label, task)
        close(loss, case.arrays["loss"], FORWARD, "loss")
        loss.backward()
        gradients(vector, case, x, by_official_name(model, vector))
    model.double()
    for case in vector.cases():
        close(model(Bag(case.tensor("x", double=True))).logits, case.arrays["logits_f64"], DOUBLE, "float64 logits")
