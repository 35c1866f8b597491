"""HIPT: full regions of 16 x 16 patches side by side, which is what the official features are."""

import torch

from milbench import Bag, plugins
from milbench.tasks import Subtyping
from tests.fidelity.harness import FORWARD, GRADIENT, adapter, by_official_name, close

STEP = 256


def lay_out(regions):
    """Coordinates (regions * 256, 2) of regions in a row, each row by row; the first lies away from the origin."""
    row, column = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    inside = torch.stack([column.flatten(), row.flatten()], dim=1)  # (256, 2)
    corner = torch.stack([torch.arange(regions) * 16 + 32, torch.full((regions,), 16)], dim=1)  # (regions, 2)
    return ((corner[:, None] + inside).flatten(0, 1)) * STEP


@adapter("hipt_lgp")
def hipt(vector):
    setup = vector.about["constructor"]
    model = plugins.resolve("hipt").build(setup["path_input_dim"], setup["n_classes"]).eval()
    model.load_official(vector.weights)
    for case in vector.cases():
        model.zero_grad()
        x = case.tensor("x", grad=True)  # (regions, 256, d)
        bag = Bag(x.flatten(0, 1), lay_out(len(x)), STEP)
        prediction = model(bag)
        close(prediction.extras["regions"], case.arrays["region_emb"], FORWARD, "regions")
        close(prediction.logits, case.arrays["logits"], FORWARD, "logits")
        loss = model.training_loss(prediction, case.label, Subtyping(["?"] * setup["n_classes"]))
        close(loss, case.arrays["loss"], FORWARD, "loss")
        loss.backward()
        close(x.grad.sum(dim=2), case.arrays["grad_x_sum"], GRADIENT, "input gradient, summed over features")
        ours = by_official_name(model, vector)
        grads = [ours[name].grad.double() for name in vector.about["param_order"]]
        close([float(g.norm()) for g in grads], case.arrays["param_grad_l2"], GRADIENT, "norms of parameter gradients")
        close([float(g.sum()) for g in grads], case.arrays["param_grad_sum"], GRADIENT, "sums of parameter gradients")
        with torch.no_grad():  # torch has another path for inference
            close(model(bag).logits, case.arrays["logits"], FORWARD, "logits without gradients")
