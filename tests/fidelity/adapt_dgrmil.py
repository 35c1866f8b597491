"""DGR-MIL in training mode without dropout: its three losses, and the centre that each bag moves."""

import torch
from milbench_registry.dgrmil import diversity, triplet
from torch import nn

from milbench import Bag, plugins
from milbench.tasks import Subtyping
from tests.fidelity.harness import adapter, by_official_name, gradients, outputs


@adapter("dgrmil", "dgrmil_k11")
def dgrmil(vector):
    setup, seen, task = vector.about["constructor"], {}, Subtyping("01")
    name = f"dgrmil[dim={setup['L']},vectors={setup['n_lesion']},dropout={setup['dropout_node']},dropout_instances={setup['dropout_patch']}]"
    model = plugins.resolve(name).build(setup["in_features"], setup["num_classes"]).train()
    model.encode_instances.register_forward_hook(lambda module, given, out: seen.update(instances=out))
    model.encode_vectors.register_forward_hook(lambda module, given, out: seen.update(lesion_tokens=out))
    model.out.register_forward_hook(lambda module, given, out: seen.update(pooled=out))
    without = {
        name: nn.Parameter(vector.weights[name]) for name in vector.about["without_gradient"]
    }  # buffers of ours, or nothing
    ours = sum(p.numel() for p in model.state_dict().values())
    assert ours + sum(without[name].numel() for name in without if "compress" in name) == vector.about["n_params"]
    for double in (False, True):
        model.to(torch.float64 if double else torch.float32)
        for case in vector.cases():
            model.load_official(vector.weights)  # the centres as they were
            x = case.tensor("x", double=double, grad=True)
            model.zero_grad()
            prediction = model(Bag(x))
            loss = model.training_loss(prediction, case.label, task)
            vectors = prediction.extras["vectors"]
            div, sim = diversity(vectors), triplet(vectors, model.positive, model.normal)
            found = {
                "logits": prediction.logits, "prob": model.scores(prediction, task), "loss": loss, "lesions": vectors,
                "attention": prediction.extras["attention"], "loss_div": div, "loss_sim": sim, "loss_bag": loss - 0.1 * (div + sim),
                "normalcenter_after": model.normal, "postivecenter_after": model.positive,
            }  # fmt: skip
            outputs(vector, case, {**seen, **found}, double=double)
            assert torch.equal(prediction.attention, prediction.extras["attention"][0])
            loss.backward()
            gradients(vector, case, x, without | by_official_name(model, vector), double=double)
