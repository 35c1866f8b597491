"""Linear mixers and dilated attention: the ops alone, and LongNet's attention layer."""

import torch
from torch.nn import functional as F

from milbench.nn.dilated_attention import DilatedSelfAttention
from milbench.ops.gated_linear_attention import gated_linear_attention, gated_linear_attention_naive
from milbench.ops.retention import retention, retention_naive, retention_recurrent
from milbench.ops.selective_scan import selective_scan, selective_scan_naive
from tests.fidelity.harness import DOUBLE, FORWARD, GRADIENT, adapter, close, gradients


@adapter("retention_naive_fla")
def retention_op(vector):
    for case in vector.cases():
        for op in (retention_naive, retention_recurrent, retention, lambda *given: retention(*given, chunk=16)):
            q, k, v = leaves = [case.tensor(name, grad=True) for name in "qkv"]  # (1, heads, n, d)
            heads, d = q.shape[1], q.shape[-1]
            decay = 1 - 2.0 ** (-5 - torch.arange(heads, dtype=q.dtype))
            out = op(d**-0.5 * q[0], k[0], v[0], decay)
            close(out, case.arrays["o"], FORWARD, "o")
            (out * case.tensor("w")[0]).sum().backward()
            for name, leaf in zip("qkv", leaves, strict=True):
                close(leaf.grad, case.arrays[f"d{name}"], GRADIENT, f"d{name}")


@adapter("gla_naive_fla")
def gla_op(vector):
    for case in vector.cases():
        for op in (gated_linear_attention_naive, gated_linear_attention, lambda *given: gated_linear_attention(*given, chunk=16)):
            leaves = {name: case.tensor(name, grad=True) for name in ("q", "k", "v", "gk")}  # (1, n, heads, d)
            q, k, v, log_gate = (t[0].transpose(0, 1) for t in leaves.values())
            out = op(q.shape[-1] ** -0.5 * q, k, v, log_gate).transpose(0, 1)  # (n, heads, d_v)
            close(out, case.arrays["o"], FORWARD, "o")
            (out * case.tensor("w")[0]).sum().backward()
            for name, leaf in leaves.items():
                close(leaf.grad, case.arrays[f"d{name}"], GRADIENT, f"d{name}")


@adapter("selective_scan_ref")
def selective_scan_op(vector):
    for case in vector.cases():
        for op in (selective_scan_naive, selective_scan):
            leaves = {name: case.tensor(name, grad=True) for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")}
            u, delta, A, B, C, D, z, bias = leaves.values()
            step = F.softplus(delta.mT + bias)  # (1, n, c)
            y = op(u.mT, step, A[None], B.mT, C.mT, D[None]).mT * F.silu(z)  # (1, c, n)
            close(y, case.arrays["out"], FORWARD, "out")
            (y * case.tensor("w")).sum().backward()
            for name, leaf in leaves.items():
                close(leaf.grad, case.arrays[f"d_{name}"], GRADIENT, f"d_{name}")


@adapter("longnet_dilated_attention_a", "longnet_dilated_attention_b", "longnet_dilated_attention_c")
def longnet_attention(vector):
    setup = vector.about["constructor"]
    layer = DilatedSelfAttention(
        setup["embed_dim"], setup["num_heads"], segments=setup["segment_length"], ratios=setup["dilated_ratio"]
    )
    layer.load_state_dict(vector.weights)
    for case in vector.cases():
        layer.float().zero_grad()
        x = case.tensor("x", grad=True)
        out = layer(x[0])
        close(out, case.arrays["out"], FORWARD, "out")
        (out * case.tensor("w")[0]).sum().backward()
        gradients(vector, case, x, dict(layer.named_parameters()))
        close(layer.double()(case.tensor("x", double=True)[0]), case.arrays["out_f64"], DOUBLE, "out_f64")
