"""AMISL in both lineages; the vectors bring their own clusters."""

from milbench import Bag, plugins
from milbench.tasks import Subtyping
from tests.fidelity.harness import FORWARD, GRADIENT, adapter, by_official_name, close, gradients


@adapter("mifcn_hipt")
def hipt_lineage(vector):
    setup = vector.about["constructor"]
    model = plugins.resolve(f"amisl[clusters={setup['num_clusters']}]").build(setup["path_input_dim"], setup["n_classes"]).eval()
    model.load_official(vector.weights)
    for case in vector.cases():
        model.zero_grad()
        x = case.tensor("x", grad=True)
        prediction = model(Bag(x), case.tensor("cluster"))
        close(prediction.logits, case.arrays["logits"], FORWARD, "logits")
        loss = model.training_loss(prediction, case.label, Subtyping(["?"] * setup["n_classes"]))
        close(loss, case.arrays["loss"], FORWARD, "loss")
        loss.backward()
        gradients(vector, case, x, by_official_name(model, vector))
        sums(vector, case, by_official_name(model, vector))


@adapter("deepattnmisl")
def original_lineage(vector):
    clusters = vector.about["constructor"]["cluster_num"]
    model = plugins.resolve(f"amisl[lineage=original,clusters={clusters}]").build(4096, 1).eval()
    model.load_official(vector.weights)
    for case in vector.cases():
        model.zero_grad()
        x, cluster = case.tensor("x", grad=True), case.tensor("cluster")
        prediction = model(Bag(x), cluster)
        close(prediction.extras["attention"] > 0, case.arrays["mask"], 0, "mask")
        close(prediction.logits, case.arrays["risk"], FORWARD, "risk")
        prediction.logits.sum().backward()
        gradients(vector, case, x, by_official_name(model, vector))
        sums(vector, case, by_official_name(model, vector))


def sums(vector, case, parameters):
    grads = [parameters[name].grad for name in vector.about["param_order"]]
    close([float(grad.double().sum()) for grad in grads], case.arrays["param_grad_sum"], GRADIENT, "sums of parameter gradients")
