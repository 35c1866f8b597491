"""Every trajectory in the folder against our training. New files run unasked; one without a setup fails by name."""

import numpy as np
import pytest

from tests.fidelity.harness import Vector, close
from tests.fidelity.trajectory import SINGLE, folder, looked_at, paths, run, setup_of


@pytest.mark.parametrize("double", [pytest.param(False, id="float32", marks=pytest.mark.slow), pytest.param(True, id="float64")])
@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_trajectory(path, double):
    vector = Vector(path)
    setup = setup_of(vector)
    suffix = "_f64" if double else ""
    if double and "loss_f64" not in vector.arrays:
        pytest.skip(f"{path.stem} was recorded in float32 only")
    tolerance = setup.double if double else SINGLE
    ours = run(vector, setup, double=double)
    official = {name: vector.arrays[name + suffix] for name in ("loss", "param_l2", "param_moved", *setup.finals)}
    rates = [sorted(set(row)) for row in vector.arrays["lr"].tolist()]
    np.testing.assert_allclose(ours["lr"], rates, rtol=1e-12, err_msg="learning rate")
    close(ours["loss"], official["loss"], tolerance, "loss of each bag")
    at = looked_at(vector)
    for column, name in enumerate(vector.about["param_order"]):
        norm, moved = (official[key][at, column] for key in ("param_l2", "param_moved"))
        if name not in ours:
            assert not moved.any(), f"{name} is trained there and absent here"
        elif double or name not in vector.about["softmax_invariant"]:  # whose gradient is nothing but rounding
            norms, distances = zip(*ours[name], strict=True)
            close(norms, norm, tolerance, f"norm of {name}")
            # It moves by some thousandths of its size, of which float32 knows fewer digits.
            close(distances, moved, tolerance if double else 50 * tolerance, f"distance of {name} from its start")
    for name in setup.finals:
        close(ours[name], official[name], tolerance, name)


def test_there_are_trajectories():
    assert paths(), f"no trajectories in {folder()}"
