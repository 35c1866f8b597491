"""DS-MIL's own loop, and that of HIPT's subtyping tables, which divides the loss by 32 and steps after every bag."""

from tests.fidelity.trajectory import Setup, trajectory


@trajectory("train_dsmil")
def own(vector):
    return Setup("dsmil", finals={"final_logits": lambda p: p.logits, "final_max": lambda p: p.extras["max"]})


@trajectory("train_dsmil_hipt_subtyping")
def hipt(vector):
    return Setup("dsmil[lineage=hipt,nonlinear=false,values=linear]")
