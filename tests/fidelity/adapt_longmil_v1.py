"""Version 1 of Long-MIL as its repository has it, bugs included: a reference that the registry must never follow.

Nobody trains this model here. It documents, in numbers that match the official code, what `longmil` does otherwise:

- cells are round(pixels / (224 * 4)), half to even, whatever the patch step: one to three patches per cell and axis;
- distances are truncated to integers; beyond 10 the bias is -100 * slope, on "global" layers too;
- the local mask is the global minimum of the bias over all heads, which only the head with the steepest slope ever reaches; on a
  slide smaller than the window it hits the farthest real pairs instead;
- the rotary table is filled with swapped arguments, so its angles are not multiples of a grid index;
- the official attention also drops 5 % of its weights in eval mode; the vector was recorded without.
"""

import torch
from torch.nn import functional as F

from tests.fidelity.harness import FORWARD, GRADIENT, adapter, close

SIDE = 300  # cells along the official tables


def slopes(heads):
    """ALiBi slopes: a geometric row for a power of two, else that of the power below, then every other one of the power above."""
    power = 2 ** (heads.bit_length() - 1)
    row = 2.0 ** (-8 / power * torch.arange(1, power + 1))
    return row if power == heads else torch.cat([row, slopes(2 * power)[::2][: heads - power]])


def cells(coords):
    """(n, 2) pixels -> (n, 2); torch rounds halves to even."""
    return ((coords - coords.amin(dim=0)) / (224 * 4)).round()


def distance_table(cell):
    """(n, n) integers: -floor(distance) up to 10, -100 beyond."""
    distance = torch.cdist(cell.double(), cell.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return torch.where(distance <= 10, -distance.floor(), -100.0).float()


def biases(coords, heads=4):
    """What is added to the scores of local and of global layers: (heads, n, n) each."""
    everywhere = slopes(heads)[:, None, None] * distance_table(cells(coords))
    return everywhere.masked_fill(everywhere == everywhere.min(), -torch.inf), everywhere


def scrambled_codes(length, dim, base=10_000.0):
    """(length, dim) of sines and cosines meant for `length` positions, but built for `dim` positions of width `length`."""
    angle = torch.arange(dim)[:, None] * base ** (-torch.arange(0, length, 2) / length)  # (dim, length / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(length, dim)


def rotary_table(height, width, dim):
    """(height * width, dim), interleaved (sin, cos): even pairs by x, even pairs by y, odd pairs by x, odd pairs by y."""
    x = scrambled_codes(height, dim // 2).reshape(height, 1, -1, 2).expand(-1, width, -1, -1)  # (height, width, dim / 4, 2)
    y = scrambled_codes(width, dim // 2).reshape(1, width, -1, 2).expand(height, -1, -1, -1)
    return torch.cat([x[:, :, ::2], y[:, :, ::2], x[:, :, 1::2], y[:, :, 1::2]], dim=2).reshape(height * width, dim)


def rotate(q, code):
    """Turn each pair of channels by its angle. q: (..., dim), code: the rows of the table, of the same shape."""
    even, odd = q[..., ::2], q[..., 1::2]
    sin, cos = code[..., ::2], code[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


class LongMILv1:
    """The forward pass on an official state dict: 3 blocks of 4 heads, mean over tokens, no 2x2 pooling."""

    heads = 4

    def __init__(self, weights):
        self.weights = {name: value.clone().requires_grad_() for name, value in weights.items()}

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def block(self, x, name, bias=None, code=None):
        """Attention before the split into heads is where the codes turn q and k: a head sees one axis only."""
        q, k, v = self.linear(self.norm(x, f"{name}.norm"), f"{name}.attn.qkv").chunk(3, dim=-1)  # (n, E) each
        if code is not None:
            q, k = rotate(q, code), rotate(k, code)
        q, k, v = (t.unflatten(1, (self.heads, -1)).transpose(0, 1) for t in (q, k, v))  # (heads, n, E / heads)
        scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
        y = ((scores if bias is None else scores + bias).softmax(dim=-1) @ v).transpose(0, 1).flatten(1)  # (n, E)
        x = x + self.linear(y, f"{name}.attn.proj")
        hidden = F.gelu(self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return x + self.linear(hidden, f"{name}.mlp.fc2")

    def __call__(self, features, coords, *, rope=False):
        local, everywhere = biases(coords, self.heads)
        code = None
        if rope:
            cell = cells(coords).long()
            code = rotary_table(SIDE, SIDE, 384)[cell[:, 0] * SIDE + cell[:, 1]]
        h = self.linear(features, "_fc1.0").relu()
        for name, bias in (("layer1", local), ("layer2", local), ("layer3", everywhere)):
            h = self.block(h, name, None if rope else bias, code)
        return self.linear(self.norm(h.mean(dim=0), "norm"), "_fc2")


@adapter("longmil_v1_bias")
def bias_tables(vector):
    official = vector.arrays["alibi_13x13"]
    grid = torch.cartesian_prod(torch.arange(13), torch.arange(13))
    close(distance_table(grid), official, 0, "table")
    for key, value in vector.arrays.items():
        if key.startswith("slopes/"):
            close(slopes(int(key.split("/")[1])), value, FORWARD, key)
    for case in vector.cases():
        if "coords" not in case.arrays:
            continue
        coords = case.tensor("coords")
        close(cells(coords), case.arrays["cell"], 0, "cells")
        local, everywhere = biases(coords)
        close(everywhere, case.arrays["global"][0], FORWARD, "global bias")
        masked, official = local.isinf(), torch.from_numpy(case.arrays["local"][0])
        assert torch.equal(masked, official.isinf())
        close(local.masked_fill(masked, 0), official.masked_fill(masked, 0).numpy(), FORWARD, "local bias")
        fractions = case.about.get("masked_fraction_per_head")
        assert not fractions or torch.allclose(masked.float().mean(dim=(1, 2)), torch.tensor(fractions))
        assert not masked[1:].any()  # three of four heads are not local at all


@adapter("longmil_rotary2d")
def rotary(vector):
    for case in vector.cases():
        about = case.about
        table = rotary_table(about["H"], about["W"], about["dim"])
        close(table, case.arrays["table"], FORWARD, "table")
        code = table[case.tensor("idx")][None, :, None]  # (1, n, 1, dim)
        for name in ("q", "k"):
            close(rotate(case.tensor(name), code), case.arrays[f"{name}_rot"], FORWARD, name)


@adapter("longmil_v1")
def whole_model(vector):
    for case in vector.cases():
        model, x = LongMILv1(vector.weights), case.tensor("x")
        features, coords = x[:, :-2].clone().requires_grad_(), x[:, -2:]
        close(model(features, coords, rope=True), case.arrays["logits_rope"], FORWARD, "logits with rotary codes")
        logits = model(features, coords)
        close(logits, case.arrays["logits"], FORWARD, "logits")
        losses = F.cross_entropy(logits.expand(len(logits), -1), torch.arange(len(logits)), reduction="none")
        label = int((losses.detach() - float(case.arrays["loss"])).abs().argmin())  # the JSON does not say which
        close(losses[label], case.arrays["loss"], FORWARD, "loss")
        losses[label].backward()
        close(features.grad.sum(dim=1), case.arrays["grad_feat_rowsum"], GRADIENT, "input gradient, summed over features")
        grads = [model.weights[name].grad.double() for name in vector.about["param_order"]]
        close([float(g.norm()) for g in grads], case.arrays["param_grad_l2"], GRADIENT, "norms of parameter gradients")
        close([float(g.sum()) for g in grads], case.arrays["param_grad_sum"], GRADIENT, "sums of parameter gradients")
