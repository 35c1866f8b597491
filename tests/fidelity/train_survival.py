"""The survival loop of Patch-GCN and HIPT: an epoch of as many bags as make a step, and one that leaves some over."""

import torch

from milbench.tasks import Survival, SurvivalTarget
from tests.fidelity.trajectory import Setup, trajectory


@trajectory("train_amil_surv_aligned", "train_amil_surv_carry")
def amil(vector):
    bins, censored = vector.arrays["bins"], vector.arrays["censored"]
    targets = [SurvivalTarget(torch.tensor(int(y)), torch.tensor(not c)) for y, c in zip(bins, censored, strict=True)]
    finals = {"final_hazards": lambda p: p.logits.sigmoid()}
    return Setup("abmil[rho=256,dropout=0]", task=Survival([1.0, 2.0, 3.0]), targets=targets, finals=finals)
