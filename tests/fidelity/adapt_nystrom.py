"""The package nystrom-attention as pip installs it, which TransMIL stands on, against its own published commit."""

import nystrom_attention.nystrom_attention as package
import torch

from tests.fidelity.harness import DOUBLE, FORWARD, GRADIENT, adapter, close


@adapter("nystrom_attention")
def nystrom_attention(vector):
    model = package.NystromAttention(**vector.about["constructor"]).eval()
    model.load_state_dict(vector.weights)
    inverse = package.moore_penrose_iter_pinv
    seen = []
    package.moore_penrose_iter_pinv = lambda *args: seen.append(inverse(*args)) or seen[-1]
    try:
        for case in vector.cases():
            x = case.tensor("x", grad=True)
            out, attention = model(x, return_attn=True)
            close(out, case.arrays["out"], FORWARD, f"{case.name} out")
            close(attention, case.arrays["attn"], FORWARD, f"{case.name} attention")
            close(seen[-1], case.arrays["pinv"], FORWARD, f"{case.name} pseudo-inverse")
            (out * case.tensor("w")).sum().backward()
            close(x.grad, case.arrays["grad_x"], GRADIENT, f"{case.name} input gradient")
    finally:
        package.moore_penrose_iter_pinv = inverse
    model.double()
    for case in vector.cases():
        with torch.no_grad():
            close(model(case.tensor("x", double=True)), case.arrays["out_f64"], DOUBLE, f"{case.name} float64 out")
