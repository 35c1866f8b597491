"""ACMIL and AEM: one gated network between them, the multi-head variants, and the masked training step."""

import pytest
import torch
from milbench_registry import acmil as method
from milbench_registry.aem import negative_entropy

from milbench import Bag, plugins
from milbench.tasks import Subtyping
from tests.fidelity.harness import adapter, by_official_name, gradients, outputs, steps


def build(name, vector):
    model = plugins.resolve(name).build(48, 3).eval()
    model.load_official(vector.weights)
    return model, Subtyping("abc")


def of(model, prediction, label, task):
    """Our value of each array of an ACMIL vector."""
    seen = prediction.extras
    ours = {
        "logits": prediction.logits,
        "prob": task.scores(prediction.logits),
        "loss_slide": task.loss(prediction.logits, label),
    }
    ours |= {"attention": seen["attention"], "attention_raw": seen["scores"], "bag_attention": seen["attention"].mean(1)}
    ours |= {"loss": model.training_loss(prediction, label, task)}
    ours |= {"sub_logits": model.branch_logits(prediction), "loss_sub": model.branch_loss(prediction, label, task)}
    return ours | {"loss_diff": method.likeness(seen["attention"])}


@adapter("acmil", "acmil_mha")
def acmil(vector):
    arch = "mha" if "q" in vector.weights else "ga"
    model, task = build(f"acmil[arch={arch},hidden=64,dropout=0]", vector)
    assert sum(p.numel() for p in model.parameters()) == vector.about["n_params"]
    for double in (False, True):
        model.to(torch.float64 if double else torch.float32)
        for case in vector.cases():
            step(vector, case, model, task, double, train=False)
            step(vector, case, model, task, double, train=True)


def step(vector, case, model, task, double, *, train):
    """Forward and backward, in training mode with the table that the official code drew."""
    x = case.tensor("x", double=double, grad=True)
    model.zero_grad()
    model.train(train)
    with pytest.MonkeyPatch.context() as patch:
        if train:
            patch.setattr(torch, "rand", lambda *shape, **kw: torch.from_numpy(case.arrays["train/rand"]).reshape(shape))
        prediction = model(Bag(x))
    ours = of(model, prediction, case.label, task)
    outputs(vector, case, ours, double=double, train=train)
    ours["loss"].backward()
    gradients(vector, case, x, by_official_name(model, vector), prefix="train/" if train else "", double=double)


@adapter("acmil_single")
def single(vector):
    """The official AB-MIL: AEM's network without its regulariser is the same; the branch's head is made and never trained."""
    model, task = build("acmil[branches=1,hidden=64,top=0]", vector)
    twin = plugins.resolve("aem[hidden=64,weight=0]").build(48, 3)
    slide = {name.replace("Slide_", ""): v for name, v in vector.weights.items() if not name.startswith("classifier.")}
    twin.load_official(slide)
    for double in (False, True):
        for one in (model, twin):
            one.to(torch.float64 if double else torch.float32)
        for case in vector.cases():
            x = case.tensor("x", double=double, grad=True)
            model.zero_grad()
            prediction = model(Bag(x))
            pooled = prediction.extras["branches"]
            unused = [vector.weights[f"classifier.0.fc.{kind}"].to(x) for kind in ("weight", "bias")]
            loss = model.training_loss(prediction, case.label, task)
            ours = {"logits": prediction.logits, "prob": task.scores(prediction.logits), "loss": loss, "loss_slide": loss}
            ours |= {"sub_logits": torch.nn.functional.linear(pooled, *unused), "loss_sub": 0, "loss_diff": 0}
            ours |= {"attention": prediction.attention, "attention_raw": prediction.extras["scores"]}
            outputs(vector, case, ours | {"bag_attention": prediction.attention}, double=double)
            loss.backward()
            gradients(vector, case, x, by_official_name(model, vector), double=double)
            torch.testing.assert_close(twin(Bag(x)).logits, prediction.logits)


@adapter("aem", "aem_mha", "aem_dsmil")
def aem(vector):
    arch = vector.name.partition("_")[2] or "ga"
    model, task = build(f"aem[arch={arch},hidden=64,weight=0.1]", vector)
    assert sum(p.numel() for p in model.parameters()) == vector.about["n_params"]
    for case, double, prediction, loss in steps(vector, model, task):
        seen = prediction.extras
        ours = {
            "loss": loss,
            "loss_bag": model.bag_loss(prediction, case.label, task),
            "prob": model.scores(prediction, task),
        }
        ours |= {"attention_raw": seen["scores"], "attention": seen["scores"].softmax(1)}
        ours |= {"loss_entropy": negative_entropy(seen["scores"])}
        if arch == "dsmil":
            ours |= {"max_logits": seen["streams"][0], "bag_logits": seen["streams"][1], "instance_logits": seen["instances"]}
        else:
            ours |= {"logits": prediction.logits, "pooled": seen["pooled"]}
        outputs(vector, case, ours, double=double)
