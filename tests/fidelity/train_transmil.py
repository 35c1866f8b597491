"""TransMIL under Lightning, whose epochs end with a step: with an even and with an odd number of bags."""

from tests.fidelity.trajectory import Setup, trajectory


@trajectory("train_transmil", "train_transmil_odd")
def transmil(vector):
    size = vector.about["constructor"]
    name = f"transmil[hidden={size['hidden']},heads={size['heads']},landmarks={size['landmarks']},dropout=0]"
    return Setup(name, double=1e-10)  # weight decay on vectors too would change the loss by 5e-9 only
