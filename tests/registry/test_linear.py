"""RetNet, GLA, Mamba, V-Mamba and GigaPath: what would be wrong without changing any shape."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from milbench import Bag, MilbenchError, plugins
from milbench.errors import SkipTrial
from milbench.nn import ss2d
from milbench.nn.mixers import GLAMixer, MambaMixer, RetentionMixer, token_order
from milbench.nn.ss2d import SS2DMixer, neighbours, tissue_conv, tissue_conv_naive
from milbench.ops.selective_scan import selective_scan_naive
from milbench.recipes import get as get_recipe

CAUSAL = {"retention": RetentionMixer, "gla": GLAMixer, "mamba": MambaMixer}
SMALL_GIGAPATH = "gigapath-random[depth=2,dim=64,heads=4]"


def build(text, in_dim=24, n_out=3):
    torch.manual_seed(0)
    return plugins.resolve(text).build(in_dim, n_out).eval()


def tissue(n, seed=0, side=9):
    """n distinct cells of a square, in no order."""
    cell = torch.randperm(side * side, generator=torch.Generator().manual_seed(seed))[:n]
    return torch.stack([cell % side, cell // side], dim=1)


def box(width, height):
    return torch.stack([torch.arange(width * height) % width, torch.arange(width * height) // width], dim=1)


def bag(n, seed=0, **kwargs):
    x = torch.randn(n, 24, generator=torch.Generator().manual_seed(seed))
    return Bag(x, tissue(n, seed) * 256, 256.0, slide_id=f"slide-{seed}", **kwargs)


@pytest.mark.parametrize("mixer", CAUSAL.values(), ids=CAUSAL)
def test_a_token_sees_itself_and_all_before_it_only(mixer):
    torch.manual_seed(0)
    mixer, x = mixer(32), torch.randn(300, 32, requires_grad=True)  # longer than a chunk of any op
    (gradient,) = torch.autograd.grad(mixer(x, None)[200].sum(), x)
    seen = gradient.abs().amax(1) > 0
    assert not seen[201:].any()
    assert seen[:201].all()


@pytest.mark.parametrize("mixer", CAUSAL.values(), ids=CAUSAL)
def test_a_shorter_bag_gives_the_same_first_rows(mixer):
    torch.manual_seed(0)
    mixer, x = mixer(32), torch.randn(300, 32)
    whole = mixer(x, None)
    for n in (1, 2, 7, 37, 257):
        torch.testing.assert_close(mixer(x[:n], None), whole[:n], rtol=1e-4, atol=1e-5)


def test_parameter_counts_of_the_official_mixers():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(RetentionMixer(384)) == 1_179_648
    assert count(GLAMixer(384)) == 599_328
    assert count(MambaMixer(384)) == 963_840
    assert count(MambaMixer(512)) == 1_694_720
    with torch.device("meta"):
        encoder = plugins.resolve("gigapath-random").build(1536, 3)
    assert round((count(encoder) - count(encoder.head)) / 1e6, 1) == 86.3


def test_retention_recurrence_written_out():
    torch.manual_seed(0)
    mixer, n, heads = RetentionMixer(32).double(), 11, 4
    x = torch.randn(n, 32, dtype=torch.float64)
    q, k, v = (layer(x).view(n, heads, -1) for layer in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    state, rows = torch.zeros(heads, 8, 16, dtype=torch.float64), []
    scale = torch.zeros(heads, 1, 1, dtype=torch.float64)
    decay = mixer.log_decay.exp()[:, None, None]

    def turned(t, i):  # as complex numbers
        turn = torch.polar(torch.ones(4, dtype=torch.float64), i * mixer.angle[::2])
        return torch.view_as_real(torch.view_as_complex(t.reshape(heads, 4, 2)) * turn).flatten(1)

    for i in range(n):
        new = scale * decay + 1
        kv = turned(k[i], i)[:, :, None] * v[i][:, None] * 8**-0.5
        state = state * (scale.sqrt() * decay / new.sqrt()) + kv / new.sqrt()
        scale = new
        row = (turned(q[i], i)[:, None] @ state)[:, 0]
        rows.append((row * (row.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).flatten())
    expected = mixer.out_proj(torch.stack(rows) * F.silu(mixer.g_proj(x))).detach()
    torch.testing.assert_close(mixer(x, None), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(("n", "size"), [(40, 20), (37, 20), (7, 20), (1, 1), (400, 64)])
@pytest.mark.parametrize("gain", [0.1, 30.0])
def test_row_divisors_of_the_chunk_and_parallel_forms(n, size, gain):
    torch.manual_seed(0)
    q, k, v = (gain * torch.randn(4, n, d, dtype=torch.float64) for d in (8, 8, 16))
    decay = 1 - 2.0 ** (-5 - torch.arange(4, dtype=torch.float64))

    def weights(c):
        age = torch.arange(c)[:, None] - torch.arange(c)
        mask = torch.where(age >= 0, decay[:, None, None] ** age.clamp(min=0), 0.0)
        return mask, mask.sum(-1, keepdim=True).sqrt()

    mask, root = weights(n)
    expected = root * (q @ k.mT * mask / root).abs().sum(-1, keepdim=True).clamp(1, 5e4)
    parallel = RetentionMixer(32, form="parallel").double()
    torch.testing.assert_close(parallel.row_divisor(q, k, v), expected, rtol=1e-6, atol=0)

    mask, root = weights(size)
    state, rows = torch.zeros(4, 8, 16, dtype=torch.float64), []
    for start in range(0, n, size):
        qc, kc, vc = (F.pad(t, (0, 0, 0, -n % size))[:, start : start + size] for t in (q, k, v))
        inside = (qc @ kc.mT * mask / root).abs().sum(-1, keepdim=True).clamp(min=1)
        rows.append(root * torch.maximum(inside, state.abs().sum(1).amax(-1).clamp(min=1)[:, None, None]))
        last = mask[:, -1, :, None] / mask[:, -1].sum(-1)[:, None, None]
        state = state * decay[:, None, None] ** size + kc.mT @ (vc * last)
    chunked = RetentionMixer(32, form="chunk", chunk=size).double()
    torch.testing.assert_close(chunked.row_divisor(q, k, v), torch.cat(rows, dim=1)[:, :n], rtol=1e-6, atol=0)


def test_retention_forms_agree_where_the_eps_of_the_norm_does_not_matter():
    torch.manual_seed(0)
    x = 10 * torch.randn(90, 32)
    mixers = [RetentionMixer(32, form=form, chunk=20) for form in ("recurrent", "chunk", "parallel")]
    for other in mixers[1:]:
        other.load_state_dict(mixers[0].state_dict())
        torch.testing.assert_close(other(x, None), mixers[0](x, None), rtol=1e-3, atol=1e-3)


def test_random_order_is_drawn_in_training_and_fixed_by_the_slide_otherwise():
    def draw(key, training=False):
        return token_order("random", 50, None, key=key, training=training, device=torch.device("cpu")).tolist()

    assert sorted(draw("a")) == list(range(50))
    assert draw("a") == draw("a") != draw("b")
    assert draw("a", training=True) != draw("a", training=True)
    torch.manual_seed(3)
    first = draw("a", training=True)
    torch.manual_seed(3)
    assert draw("b", training=True) == first


def test_random_order_is_undone():
    single, shuffled = build("mamba-single[dim=32]"), build("mamba-random[dim=32]")
    shuffled.load_state_dict(single.state_dict())
    given = bag(37)
    order = token_order("random", 37, None, key=given.slide_id, training=False, device=torch.device("cpu"))
    with torch.no_grad():
        tokens = shuffled(given).extras["tokens"]
        torch.testing.assert_close(tokens[order], single(Bag(given.features[order])).extras["tokens"])
    assert not torch.allclose(tokens, single(given).extras["tokens"])


@pytest.mark.parametrize("order", ["raster", "hilbert"])
def test_orders_by_position_need_coordinates_and_forget_the_file_order(order):
    model, given = build(f"retnet[dim=32,order={order}]"), bag(37)
    mixed = torch.randperm(37)
    again = Bag(given.features[mixed], given.coords[mixed], given.step)
    with torch.no_grad():
        torch.testing.assert_close(model(again).logits, model(given).logits, rtol=1e-4, atol=1e-6)
    assert model.needs_coords
    assert not build("retnet[dim=32]").needs_coords
    with pytest.raises(MilbenchError, match="no coordinates"):
        model(Bag(given.features, slide_id="flat"))


@pytest.mark.parametrize("n", [1, 2, 7, 37, 81])
def test_tissue_convolution_equals_the_dense_map(n):
    torch.manual_seed(n)
    cells = tissue(n) - 4  # also left of and above the origin
    x = torch.randn(n, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(n, 5, dtype=torch.float64)
    results = []
    for op in (tissue_conv, tissue_conv_naive):
        y = op(x, weight, cells)
        results.append((y, *torch.autograd.grad(y, (x, weight), cotangent)))
    for ours, naive in zip(*results, strict=True):
        torch.testing.assert_close(ours, naive)
    assert torch.autograd.gradcheck(lambda x, weight: tissue_conv(x, weight, cells), (x[:7], weight)) if n == 7 else True


def test_neighbours_cross_neither_row_ends_nor_slides():
    first = box(4, 3) * 256
    case = Bag(torch.zeros(24, 1), torch.cat([first, first]), 256.0, slide_index=torch.arange(24) // 12)
    at = neighbours(case.grid())  # (9, 24)
    assert at[4].tolist() == list(range(24))
    assert at[:, 0].tolist() == [24, 24, 24, 24, 0, 1, 24, 4, 5]
    for place in at:
        found = place < 24
        assert (case.slide_index[place[found]] == case.slide_index[found]).all()


def scanned_by_hand(mixer, x, cells):
    """The published layer, direction by direction, on the cells as they are."""
    u = F.silu(tissue_conv_naive(mixer.in_proj(x), mixer.conv2d.weight, cells))
    by_row = sorted(range(len(cells)), key=lambda i: (int(cells[i, 1]), int(cells[i, 0])))
    by_column = sorted(range(len(cells)), key=lambda i: (int(cells[i, 0]), int(cells[i, 1])))
    total = torch.zeros_like(u)
    for k, order in enumerate([by_row, by_column, by_row[::-1], by_column[::-1]]):
        rank, states, _ = mixer.widths
        step, B, C = F.linear(u[order], mixer.x_proj.weight.chunk(4)[k]).split([rank, states, states], dim=1)
        delta = F.softplus(F.linear(step, mixer.dt_projs.weight.chunk(4)[k], mixer.dt_projs_bias[k]))
        A, D = -mixer.A_logs.chunk(4)[k].exp(), mixer.Ds.chunk(4)[k]
        y = selective_scan_naive(u[order][None], delta[None], A[None], B[None], C[None], D[None])[0]
        total = total.index_add(0, torch.tensor(order), y)
    return mixer.out_proj(mixer.out_norm(total))


@pytest.mark.parametrize(("n", "states"), [(1, 1), (2, 1), (37, 3), (81, 1)])
def test_cross_scan_over_the_tissue(n, states):
    torch.manual_seed(0)
    mixer, x, cells = SS2DMixer(32, states=states), torch.randn(n, 32), tissue(n)
    torch.testing.assert_close(mixer(x, cells), scanned_by_hand(mixer, x, cells), rtol=1e-4, atol=1e-5)


def test_tissue_equals_box_only_where_the_box_is_full():
    torch.manual_seed(0)
    sparse, dense = SS2DMixer(32), SS2DMixer(32, dense=True)
    dense.load_state_dict(sparse.state_dict())
    x, full = torch.randn(35, 32), box(7, 5)[torch.randperm(35)]
    torch.testing.assert_close(sparse(x, full), dense(x, full), rtol=1e-4, atol=1e-6)
    holes = tissue(35)
    assert not torch.allclose(sparse(x, holes), dense(x, holes), atol=1e-4)
    width, height = (holes.amax(0) + 1).tolist()
    grid = torch.zeros(width * height, 32)
    at = holes[:, 1] * width + holes[:, 0]
    grid[at] = x
    torch.testing.assert_close(dense(x, holes), scanned_by_hand(dense, grid, box(width, height))[at], rtol=1e-4, atol=1e-5)


def test_cost_follows_the_tissue(monkeypatch):
    scanned = []

    def counting(u, *rest):
        scanned.append(u.shape[:2].numel())
        return selective_scan_naive(u, *rest)

    monkeypatch.setattr(ss2d, "selective_scan", counting)
    cells = torch.tensor([[0, 0], [1, 0], [40, 9], [40, 9]])
    for dense in (False, True):
        SS2DMixer(8, dense=dense)(torch.randn(4, 8), cells)
    assert scanned == [4 * 3, 4 * 41 * 10]


@pytest.mark.parametrize("dense", [False, True])
def test_patches_of_one_cell_are_averaged_and_share_their_value(dense):
    torch.manual_seed(0)
    mixer, x = SS2DMixer(16, dense=dense), torch.randn(6, 16)
    cells = torch.tensor([[0, 0], [2, 1], [2, 1], [1, 1], [2, 1], [0, 2]])
    y = mixer(x, cells)
    distinct = [0, 1, 3, 5]
    averaged = x.clone()
    averaged[1] = x[[1, 2, 4]].mean(0)
    torch.testing.assert_close(y[distinct], mixer(averaged[distinct], cells[distinct]))
    torch.testing.assert_close(y[[2, 4]], y[[1, 1]])


def test_vmamba_ignores_the_file_order_and_sees_positions():
    model, given = build("vmamba[dim=32]"), bag(37)
    mixed = torch.randperm(37)
    with torch.no_grad():
        same = model(Bag(given.features[mixed], given.coords[mixed], 256.0)).logits
        moved = model(Bag(given.features[mixed], given.coords, 256.0)).logits
    torch.testing.assert_close(same, model(given).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(moved, same, atol=1e-4)


def test_gigapath_positions_equal_the_official_layout():
    size, dim = 6, 64
    model = build(f"{SMALL_GIGAPATH[:-1]},grid_size={size}]")
    rate = 1 / 10000 ** (np.arange(dim // 4) / (dim / 4))
    table = np.zeros((size * size, dim))
    for x in range(size):
        for y in range(size):
            angles = np.concatenate([np.sin(y * rate), np.cos(y * rate), np.sin(x * rate), np.cos(x * rate)])
            table[x * size + y] = angles
    cells = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    codes = model.positions(Bag(torch.zeros(size * size, 1), cells * 256 + 255, 256.0))
    np.testing.assert_allclose(codes.numpy(), table, atol=1e-7)
    assert sum(b.numel() for b in model.buffers()) == size * dim // 2


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("pixel", [1000 * 256, -1])
def test_gigapath_refuses_patches_outside_its_grid(axis, pixel):
    model, coords = build(SMALL_GIGAPATH), torch.zeros(3, 2, dtype=torch.long)
    coords[1, axis] = 1000 * 256 - 1
    features = torch.randn(3, 24)
    assert model(Bag(features, coords, 256.0)).logits.isfinite().all()
    coords[2, axis] = pixel
    with pytest.raises(MilbenchError, match=r"slide far .*255999 level-0 pixels"):
        model(Bag(features, coords, 256.0, slide_id="far"))
    with pytest.raises(MilbenchError, match=r"slide flat .*no coordinates"):
        model(Bag(features, slide_id="flat"))


def test_gigapath_drops_in_training_only():
    model, given = build(SMALL_GIGAPATH), bag(37)
    with torch.no_grad():
        assert torch.equal(model(given).logits, model(given).logits)
        model.train()
        assert not torch.equal(model(given).logits, model(given).logits)


def test_a_branch_of_gigapath_is_dropped_as_a_whole_or_doubled():
    layer, x = build("gigapath-random[depth=2,dim=64,heads=4,dropout=0,drop_path=0.5]").train().layers[1], torch.randn(9, 64)
    with torch.no_grad():
        after = [x + kept * layer.self_attn(layer.self_attn_layer_norm(x)) for kept in (0, 2)]
        possible = [y + kept * layer.ffn(layer.final_layer_norm(y)) for y in after for kept in (0, 2)]
        seen = [layer(x) for _ in range(60)]
    which = [[torch.allclose(out, one, atol=1e-6) for one in possible] for out in seen]
    assert all(sum(row) == 1 for row in which)
    assert all(map(any, zip(*which, strict=True))), "attention and FFN are drawn apart"


def weights_of(encoder_dim=48):
    """A checkpoint of a small encoder as published: under "model", official names, no head."""
    model = build(SMALL_GIGAPATH, in_dim=encoder_dim)
    theirs = {ours: official for official, ours in model.official_names.items()}
    names = {n: next((n.replace(o, t, 1) for o, t in theirs.items() if n.startswith(o)), n) for n in model.state_dict()}
    return model, {names[n]: v for n, v in model.state_dict().items() if not n.startswith("head")}


def test_gigapath_starts_from_a_checkpoint(tmp_path):
    reference, state = weights_of()
    assert "patch_embed.proj.weight" in state
    torch.save({"model": state | {"pos_embed": torch.zeros(1), "mask_token": torch.zeros(1)}}, tmp_path / "encoder.pth")
    text = f"gigapath-pretrained[depth=2,dim=64,heads=4,encoder_dim=48,weights={tmp_path}/encoder.pth]"
    model = build(text, in_dim=48)
    given = Bag(torch.randn(5, 48), tissue(5) * 256, 256.0)
    with torch.no_grad():
        torch.testing.assert_close(model(given).extras["embedding"], reference(given).extras["embedding"])
        wide = build(text, in_dim=24)
        assert wide.project.weight.shape == (48, 24)
        torch.testing.assert_close(wide.layers[1].ffn.fc1.weight, reference.layers[1].ffn.fc1.weight)
        assert wide(bag(5)).logits.isfinite().all()

    fine_tuned = {f"slide_encoder.{name}": value for name, value in state.items()}
    fine_tuned |= {"classifier.0.weight": torch.ones(3, 64), "classifier.0.bias": torch.zeros(3)}
    model.load_official(fine_tuned)
    assert model.head.weight.eq(1).all()
    del state["cls_token"]
    with pytest.raises(MilbenchError, match="missing cls_token; unknown odd"):
        model.load_official(state | {"odd": torch.zeros(1)})


def test_gigapath_without_weights_is_skipped_and_bad_weights_are_named(tmp_path):
    with pytest.raises(SkipTrial, match="no weights"):
        build("gigapath-pretrained")
    with pytest.raises(MilbenchError, match="no such file"):
        build(f"gigapath-pretrained[depth=1,dim=64,heads=4,weights={tmp_path}/none.pth]")
    with pytest.raises(MilbenchError, match="use gigapath-pretrained"):
        build(f"gigapath-random[weights={tmp_path}/none.pth]")
    (tmp_path / "text.pth").write_text("not tensors")
    with pytest.raises(MilbenchError, match="not a file of tensors"):
        build(f"gigapath-pretrained[depth=1,dim=64,heads=4,weights={tmp_path}/text.pth]")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(MilbenchError, match="no state dict"):
        build(f"gigapath-pretrained[depth=1,dim=64,heads=4,weights={tmp_path}/list.pth]")


def test_gigapath_reads_the_patches_in_file_order_or_in_a_seeded_one():
    small = "depth=2,dim=64,heads=4,dropout=0,drop_path=0"
    stored, shuffled = build(f"gigapath-random[{small}]"), build(f"gigapath-random[{small},order=random]")
    shuffled.load_state_dict(stored.state_dict())
    shown = bag(30)
    order = token_order("random", 30, None, key=shown.slide_id, training=False, device=torch.device("cpu"))
    permuted = Bag(shown.features[order], shown.coords[order], shown.step)
    assert not torch.equal(stored(shown).logits, stored(permuted).logits), "dilated attention depends on the order"
    assert torch.equal(shuffled(shown).logits, stored(permuted).logits), "positions go with their patches"
    assert torch.equal(shuffled(shown).logits, shuffled(shown).logits), "fixed by the slide's name"
    shuffled.train()
    assert not torch.equal(shuffled(shown).logits, shuffled(shown).logits), "drawn anew in training"


def test_gigapath_is_officially_fine_tuned_on_shuffled_patches():
    usual, deep = plugins.resolve("gigapath-random"), plugins.resolve("gigapath-random[depth=4]")
    assert usual.params["order"] == "storage"
    own = usual.official["subtyping"]["params"]
    assert own == {"order": "random", "dropout": 0.1, "feature_layer": 11}
    assert deep.official["subtyping"]["params"]["feature_layer"] == 3
    assert get_recipe("official", "subtyping", official=usual.official).left_over == "restart"


def test_official_recipe_slows_the_layers_near_the_input():
    model = build("gigapath-random[depth=3,dim=64,heads=4]")
    (optimiser,) = model.optimisers(get_recipe("official", "subtyping", official=model.official_recipe))
    rate = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert len(rate) == len(list(model.parameters()))
    expected = [0.95**4, 0.95**3, 0.95**2, 0.95, 1, 1]
    chosen = [model.cls_token, *(layer.ffn.fc1.weight for layer in model.layers), model.patch_embed.weight, model.head.bias]
    assert [rate[id(p)] / 5e-4 for p in chosen] == pytest.approx(expected)
    assert decay[id(model.head.bias)] == 0
    assert decay[id(model.head.weight)] == 1e-5


def test_v_mamba_directions_one_by_one_give_the_same_gradients(monkeypatch):
    """The form for large maps against the form for small ones."""
    from milbench.nn import ss2d

    generator = torch.Generator().manual_seed(0)
    grid = torch.randint(0, 9, (40, 2), generator=generator)
    found = []
    for above in (8_192, 0):
        monkeypatch.setattr(ss2d, "RECOMPUTE_ABOVE", above)
        torch.manual_seed(0)
        mixer = ss2d.SS2DMixer(32).double()
        x = torch.randn(40, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        y = mixer(x, grid)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(p.grad for p in mixer.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
