"""R2T-MIL, WiKG, ACMIL and AEM beyond the reference numbers: naive twins, long and short bags, half precision, what is hidden."""

import math

import pytest
import torch
from milbench_registry import acmil, aem, rrt, wikg

from milbench import Bag, plugins
from milbench.tasks import Subtyping, Survival, SurvivalTarget

D = 12
METHODS = [
    "rrt[hidden=16]", "rrt[hidden=16,cross_mlp=true,cross_heads=1,layers=3,shortcut=true,activation=tanh]",
    "rrt[hidden=16,regions=4,epeg=9,representatives=1]", "wikg[hidden=16]", "wikg[hidden=16,readout=mean]",
    "wikg[hidden=16,update=sage,readout=max]", "wikg[hidden=16,update=gcn]", "acmil", "acmil[arch=mha]", "acmil[branches=1]",
    "aem", "aem[arch=mha]", "aem[arch=dsmil]",
]  # fmt: skip


def build(name, n_out=3, in_dim=D):
    torch.manual_seed(0)
    return plugins.resolve(name).build(in_dim, n_out)


def bag(n, seed=1, dtype=torch.float32):
    return Bag(torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=dtype))


@pytest.mark.parametrize("name", METHODS)
def test_every_variant_trains_in_both_tasks(name):
    for task, target in (
        (Subtyping("abc"), torch.tensor(2)),
        (Survival([1.0, 2.0]), SurvivalTarget(torch.tensor(1), torch.tensor(True))),
    ):
        model = build(name, task.n_out).train()
        for n in (1, 2, 70):
            prediction = model(bag(n))
            loss = model.training_loss(prediction, target, task)
            loss.backward()
            assert torch.isfinite(loss)
            if prediction.attention is not None:
                assert prediction.attention.sum().item() == pytest.approx(1, abs=1e-5)
        unused = [key for key, p in model.named_parameters() if p.grad is None or (p.numel() > 1 and not p.grad.any())]
        assert not unused
        assert model.eval().scores(model(bag(5)), task).isfinite().all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_gives_finite_gradients_near_those_of_float32(name, kind):
    task = Subtyping("abc")
    for n in (1, 37, 64, 65, 100, 256):  # R2T-MIL: one patch a region up to 64, regions of zeros beyond, a full square
        model = build(name).train()
        with torch.autocast("cpu", dtype=kind):
            loss = model.training_loss(model(bag(n)), torch.tensor(1), task)
        (1024 * loss).backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        model.eval()
        with torch.no_grad():
            whole = model(bag(n)).logits
            with torch.autocast("cpu", dtype=kind):
                half = model(bag(n)).logits.float()
        assert (half - whole).abs().max() < 0.05 * max(1, whole.abs().max())


class TestRegions:
    """R2T-MIL."""

    def naive_within(self, layer, x):
        """R-MSA with the filter on the logits, region by region and head by head, as it is defined."""
        n, heads, side = len(x), layer.attn.heads, layer.side
        square = math.ceil(math.ceil(math.sqrt(n)) / side) * side
        r = square // side
        z = torch.cat([layer.norm(x), x.new_zeros(square**2 - n, x.shape[1])]).view(square, square, -1)
        out = torch.empty_like(z)
        for i in range(0, square, r):
            for j in range(0, square, r):
                q, k, v = layer.attn.qkv(z[i : i + r, j : j + r].flatten(0, 1)).chunk(3, dim=1)
                parts = []
                for h, (qh, kh, vh) in enumerate(zip(*(t.chunk(heads, dim=1) for t in (q, k, v)), strict=True)):
                    logits = qh @ kh.T / math.sqrt(qh.shape[1])
                    w, shifted = layer.attn.pe.weight[h, 0, :, 0], torch.zeros_like(logits)
                    for row in range(len(logits)):
                        for t in range(len(w)):
                            if 0 <= row + t - len(w) // 2 < len(logits):
                                shifted[row] = shifted[row] + w[t] * logits[row + t - len(w) // 2]
                    parts.append((logits + shifted).softmax(1) @ vh)
                out[i : i + r, j : j + r] = layer.attn.proj(torch.cat(parts, dim=1)).view(r, r, -1)
        return x + out.flatten(0, 1)[:n]

    @pytest.mark.parametrize("n", [1, 2, 7, 37, 100])
    def test_filtered_queries_are_filtered_logits(self, n):
        layer = rrt._RegionLayer(8, heads=2, side=3, epeg=5).double().eval()
        x = torch.randn(n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).requires_grad_()
        both = (layer(x), self.naive_within(layer, x))
        torch.testing.assert_close(*both, rtol=1e-9, atol=1e-11)
        of = [x, layer.attn.pe.weight, layer.attn.qkv.weight]
        for ours, naive in zip(*(torch.autograd.grad((out**3).sum(), of, allow_unused=True) for out in both), strict=True):
            torch.testing.assert_close(ours, naive, rtol=1e-8, atol=1e-10)

    @pytest.mark.parametrize("n", [1, 5, 64, 65, 100, 257])
    def test_regions_are_cut_and_put_together(self, n):
        x = torch.arange(1.0, n + 1)[:, None]
        regions = rrt.to_regions(x, 8)
        assert torch.equal(rrt.from_regions(regions, n), x)
        assert len(regions) == 64
        assert int((regions > 0).sum()) == n

    def test_up_to_one_patch_a_region_nothing_is_exchanged(self):
        model = build("rrt[hidden=16]").eval()
        for n, exchanges in ((64, False), (65, True)):
            shown = bag(n)
            other = Bag(torch.cat([shown.features[:-1], shown.features[-1:] + 1]))
            first, second = (model(one).extras["tokens"][:-1] for one in (shown, other))
            assert torch.equal(first, second) != exchanges

    def test_an_even_filter_or_heads_that_do_not_divide_are_refused(self):
        for wrong in ("epeg=4", "hidden=20", "cross_heads=3"):
            with pytest.raises(Exception, match="rrt: hidden must be a multiple"):
                build(f"rrt[{wrong}]")

    def test_parameters_are_the_official_ones_without_the_inert_bias(self):
        for name, in_dim, official in (
            ("rrt", 384, 2370307),
            ("rrt", 1024, 2697987),
            ("rrt[cross_mlp=true,epeg=13]", 1024, 2762355),
        ):
            assert sum(p.numel() for p in build(name, in_dim=in_dim).parameters()) == official - 8

    def test_the_start_of_the_representatives(self):
        phi = build("rrt").cross.phi
        assert 0.55 < phi.abs().max() <= 3**-0.5


class TestGraph:
    """WiKG."""

    @pytest.mark.parametrize("n", [1, 2, 7, 37])
    def test_messages_are_their_definition(self, n):
        model = build("wikg[hidden=8]").double().eval()
        f = torch.nn.functional.leaky_relu(model.project(bag(n, dtype=torch.float64).features))
        f = (f + f.mean(0)) / 2
        head, tail = model.to_head(f), model.to_tail(f)
        expected = []
        for h in head:
            score = tail @ h / math.sqrt(8)
            best = score.argsort(descending=True)[:6]
            p, t = score[best].softmax(0)[:, None], tail[best]
            gate = torch.tanh(h + p * t + (1 - p) * h)
            expected.append((t.sum(1) * gate.sum(1)).softmax(0) @ t)
        found = wikg.messages(head, tail, wikg.nearest(head, tail, min(n, 6)))[0]
        torch.testing.assert_close(found, torch.stack(expected))

    def test_pieces_of_a_long_bag_give_the_same(self, monkeypatch):
        results = []
        for logits, nodes in ((2**22, 1024), (300, 7)):
            monkeypatch.setattr(wikg, "LOGITS", logits)
            monkeypatch.setattr(wikg, "NODES", nodes)
            model = build("wikg[hidden=8,dropout=0]").double().train()
            shown = bag(100, dtype=torch.float64)
            model.training_loss(model(shown), torch.tensor(0), Subtyping("abc")).backward()
            results.append([model(shown).logits.detach(), *(p.grad for p in model.parameters())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)

    def test_parameters_are_the_official_ones_without_the_unused_gate(self):
        gate = 2 * (512 * 256 + 256) + 256 * 512 + 512
        for name, official in (("wikg", 1776132), ("wikg[readout=mean]", 1776132 - 131585)):
            assert sum(p.numel() for p in build(name, in_dim=384).parameters()) == official - gate


class TestHiding:
    """ACMIL."""

    @pytest.mark.parametrize(("n", "hidden"), [(1, 0), (2, 1), (5, 3), (7, 4), (9, 5), (10, 6), (200, 6)])
    def test_how_many_are_hidden_of_the_highest(self, n, hidden):
        for arch in ("ga", "mha"):
            model = build(f"acmil[arch={arch},dropout=0]").train()
            seen = model(bag(n)).extras
            left_out = seen["attention"] == 0
            assert left_out.sum(dim=2).eq(hidden).all()
            rank = seen["scores"].argsort(dim=2, descending=True).argsort(dim=2)
            assert not (left_out & (rank >= 10)).any()
            assert not (model.eval()(bag(n)).extras["attention"] == 0).any()

    def test_branches_draw_on_their_own_and_by_the_global_seed(self):
        model, shown = build("acmil").train(), bag(200)
        torch.manual_seed(3)
        first, second = model(shown).extras["attention"][0] == 0, model(shown).extras["attention"][0] == 0
        torch.manual_seed(3)
        assert torch.equal(model(shown).extras["attention"][0] == 0, first)
        assert not torch.equal(first, second)
        assert len(torch.unique(first, dim=0)) > 1

    def test_all_hidden_is_uniform(self):
        assert torch.allclose(build("acmil[hide=1]").train()(bag(7)).attention, torch.full((7,), 1 / 7))

    def test_likeness_is_the_mean_cosine_of_pairs(self):
        attention = torch.rand(2, 4, 9, dtype=torch.float64).softmax(2)
        pairs = [(i, j) for i in range(4) for j in range(i)]
        cosine = torch.nn.functional.cosine_similarity
        expected = torch.stack([cosine(attention[:, i], attention[:, j], dim=1).mean() for i, j in pairs]).mean()
        torch.testing.assert_close(acmil.likeness(attention), expected)

    @pytest.mark.parametrize(
        ("name", "in_dim", "parameters"),
        [
            ("acmil", 384, 85143), ("acmil", 512, 202135), ("acmil", 1024, 665495), ("acmil[arch=mha]", 512, 1587474),
            ("acmil[branches=1]", 384, 83079 - 3 * 129), ("aem", 384, 82692), ("aem", 1024, 657284), ("aem[arch=mha]", 512, 395779),
        ],
    )  # fmt: skip
    def test_widths_and_parameters_are_the_official_ones(self, name, in_dim, parameters):
        assert sum(p.numel() for p in build(name, in_dim=in_dim).parameters()) == parameters


class TestEntropy:
    """AEM."""

    def test_it_lies_between_one_and_all_instances_and_spreads_the_attention(self):
        scores = torch.tensor([[0.0] * 8, [0.0] * 7 + [100.0]], requires_grad=True)
        assert aem.negative_entropy(scores[:1]).item() == pytest.approx(-math.log(8))
        assert aem.negative_entropy(scores[1:]).item() == pytest.approx(0, abs=1e-6)
        uneven = torch.tensor([[0.0, 1.0]], requires_grad=True)
        aem.negative_entropy(uneven).backward()
        assert uneven.grad[0, 1] > 0 > uneven.grad[0, 0], "a step against the gradient makes the higher score lower"
        assert aem.negative_entropy(torch.zeros(3, 1)).item() == 0

    def test_without_its_weight_it_is_the_bag_loss(self):
        for arch in ("ga", "mha", "dsmil"):
            model, task = build(f"aem[arch={arch},weight=0,dropout=0]").train(), Subtyping("abc")
            prediction = model(bag(9))
            loss = model.training_loss(prediction, torch.tensor(1), task)
            assert torch.equal(loss, model.bag_loss(prediction, torch.tensor(1), task))
