"""DTFD-MIL: both tiers, their gradients and one official step, on the recorded shuffles."""

from milbench import Bag, plugins
from milbench.recipes import get as get_recipe
from milbench.tasks import Subtyping
from tests.fidelity.harness import FORWARD, GRADIENT, adapter, by_official_name, close


@adapter("dtfd")
def dtfd(vector):
    setup = vector.about["constructor"]
    task = Subtyping(["?"] * setup["num_cls"])
    for case in vector.cases():
        about = case.about
        name = f"dtfd-{about['distill'].lower()}"
        sizes = f"hidden={setup['mDim']},attention_dim={setup['attention_hidden_D']}"
        counts = f"groups={about['numGroup']},instances_per_group={about['instance_per_group']}"
        variant = plugins.resolve(f"{name}[{sizes},{counts}]")
        model = variant.build(setup["in_chn"], setup["num_cls"]).eval()
        model.load_official(vector.weights)
        assert sum(p.numel() for p in model.parameters()) == vector.about["n_params"]
        ours = by_official_name(model, vector)
        bag, order = Bag(case.tensor("x")), {True: case.tensor("perm"), False: case.tensor("test_perm")}
        model.order = lambda bag, model=model, order=order: order[model.training]
        prediction = model(bag)
        close(prediction.extras["tier1"], case.arrays["test_tier1"], FORWARD, f"{case.name} test tier 1")
        close(prediction.logits, case.arrays["test_tier2"], FORWARD, f"{case.name} test tier 2")

        model.train()
        prediction = model(bag)
        close(prediction.extras["tier1"], case.arrays["tier1_logits"], FORWARD, f"{case.name} tier 1")
        close(prediction.logits, case.arrays["tier2_logits"], FORWARD, f"{case.name} tier 2")
        second = task.loss(prediction.logits, case.label)
        close(second, case.arrays["loss1"], FORWARD, f"{case.name} loss of tier 2")
        total = model.training_loss(prediction, case.label, task)
        close(total - second, case.arrays["loss0"], FORWARD, f"{case.name} loss of tier 1")

        optimisers = model.optimisers(get_recipe("official", "subtyping", official=model.official_recipe))
        close(model.training_step(bag, case.label, task, optimisers), total.detach().numpy(), FORWARD, "loss of the step")
        for key in case.arrays:
            kind, _, parameter = key.partition("/")
            if (
                key.endswith("attention_weights.bias") and kind != "after"
            ):  # softmax cancels it: both gradients are rounding errors
                assert ours[parameter].grad.abs() < 1e-6
            elif kind in ("g0", "g1"):
                close(ours[parameter].grad, case.arrays[key], GRADIENT, f"{case.name} {key}")
            elif kind == "after":
                moved = case.arrays[key] - vector.weights[parameter].numpy()  # of size lr: the weights themselves would hide it
                close(ours[parameter].detach() - vector.weights[parameter], moved, 2e-2, f"{case.name} step of {parameter}")
                close(ours[parameter], case.arrays[key], FORWARD, f"{case.name} {key}")
