"""CLAM's loop: CLAM-SB and CLAM-MB, AB-MIL without clusters, and max pooling, which its command line calls "mil"."""

from tests.fidelity.trajectory import Setup, trajectory


@trajectory("train_clam_sb", "train_clam_mb", "train_clam_sb_task1")
def clam(vector):
    kind = "mb" if vector.about["class"] == "CLAM_MB" else "sb"
    subtyping = str(vector.about["constructor"]["subtyping"]).lower()
    return Setup(f"clam-{kind}[dropout=0,subtyping={subtyping}]")


@trajectory("train_abmil_clam")
def abmil(vector):
    return Setup("abmil[dropout=0]")


@trajectory("train_clam_mil", "train_clam_mil_mc")
def max_pooling(vector):
    return Setup("max[pick=instance,dropout=0]")
