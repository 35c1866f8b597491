"""DTFD-MIL's loop on the recorded shuffles, with two optimisers, four clipped modules and milestones."""

import torch

from tests.fidelity.trajectory import Setup, trajectory


@trajectory("train_dtfd_afs", "train_dtfd_maxs", "train_dtfd_maxmins", "train_dtfd_maxs_milestone")
def dtfd(vector):
    about, setup = vector.about, vector.about["constructor"]
    sizes = f"hidden={setup['mDim']},attention_dim={setup['attention_hidden_D']}"
    counts = f"groups={about['numGroup']},instances_per_group={about['instance_per_group']}"
    changes = {"milestones": (2,), "clip": 0.1} if "--epoch_step" in about["arguments"] else {}

    def orders(model, shown):
        def order(bag):
            key = f"perm/{len(shown)}" if model.training else f"{bag.slide_id}/test_perm"
            return torch.from_numpy(vector.arrays[key]).long()

        model.order = order

    finals = {"final_logits": lambda p: p.logits, "final_tier1": lambda p: p.extras["tier1"]}
    return Setup(f"dtfd-{about['distill'].lower()}[{sizes},{counts}]", changes=changes, finals=finals, orders=orders)
