"""Token mixers against torchscale, fla, mamba_ssm and VMamba."""

import torch

from milbench.nn.mixers import GLAMixer, MambaMixer, RetentionMixer
from milbench.nn.ss2d import SS2DMixer
from milbench.ops.scan_orders import cross_scan
from tests.fidelity.harness import DOUBLE, FORWARD, adapter, close, gradients


def raster(height, width):
    return torch.stack([torch.arange(height * width) % width, torch.arange(height * width) // width], dim=1)


def trained(mixer, vector):
    mixer.load_state_dict(vector.weights)
    return mixer.eval()


def forward_backward(mixer, vector, case, official, grid=None):
    """Output of the first sequence, its input gradient and the norms of the parameter gradients."""
    mixer.zero_grad()
    x = case.tensor("x", grad=True)
    out = mixer(x.flatten(0, -2), grid)
    close(out, case.arrays[official], FORWARD, official)
    (out * case.tensor("w").flatten(0, -2)).sum().backward()
    gradients(vector, case, x, dict(mixer.named_parameters()))


@adapter("retnet_torchscale")
def retnet(vector):
    setup = vector.about["constructor"]
    options = {
        "heads": setup["num_heads"],
        "expand": setup["value_dim"] // setup["embed_dim"],
        "chunk": setup["recurrent_chunk_size"],
    }
    forms = {
        form: trained(RetentionMixer(setup["embed_dim"], form=form, **options), vector)
        for form in ("recurrent", "parallel", "chunk")
    }
    for case in vector.cases():
        x = case.tensor("x")[0]
        for form, mixer in forms.items():
            if f"out_{form}" in case.arrays:
                close(mixer(x, None), case.arrays[f"out_{form}"], FORWARD, form)
        forward_backward(forms["parallel"], vector, case, "out_parallel")
        if "out_f64" in case.arrays:
            double = trained(RetentionMixer(setup["embed_dim"], form="parallel", **options), vector).double()
            close(double(x.double(), None), case.arrays["out_f64"], DOUBLE, "float64")


@adapter("gla_layer_fla")
def gla(vector):
    setup = vector.about["constructor"]
    mixer = GLAMixer(
        setup["hidden_size"],
        heads=setup["num_heads"],
        expand_k=setup["expand_k"],
        expand_v=setup["expand_v"],
        gate_rank=setup["gate_low_rank_dim"],
        gate_divisor=setup["gate_logit_normalizer"],
    )
    for case in vector.cases():
        forward_backward(trained(mixer, vector), vector, case, "out")


@adapter("mamba_block")
def mamba(vector):
    setup = vector.about["constructor"]
    mixer = trained(MambaMixer(setup["d_model"], states=setup["d_state"], width=setup["d_conv"], expand=setup["expand"]), vector)
    for case in vector.cases():
        forward_backward(mixer, vector, case, "out")
        x = case.tensor("x")[0]
        close(mixer(x.flip(0)).flip(0), case.arrays["out_rev"], FORWARD, "reversed")
        order = case.tensor("perm")
        close(mixer(x[order])[order.argsort()], case.arrays["out_perm"], FORWARD, "random order, undone")


@adapter("vmamba_ss2d")
def vmamba(vector):
    setup = vector.about["constructor"]
    for case in vector.cases():
        if case.name == "scan":
            check_cross_scan(case)
            continue
        grid = raster(*case.arrays["x"].shape[1:3])
        for dense in (True, False):
            mixer = SS2DMixer(setup["d_model"], states=setup["d_state"], expand=int(setup["ssm_ratio"]), dense=dense)
            forward_backward(trained(mixer, vector), vector, case, "out", grid)


def check_cross_scan(case):
    x, z = case.tensor("x")[0], case.tensor("z")[0]  # (C, H, W), (4, C, H, W)
    order = cross_scan(raster(*x.shape[1:]))  # (4, HW)
    close(x.flatten(1)[:, order].transpose(0, 1), case.arrays["y"], FORWARD, "cross scan")
    merged = sum(one[:, at.argsort()] for one, at in zip(z.flatten(2), order, strict=True))
    close(merged, case.arrays["merge"], FORWARD, "cross merge")
