"""ILRA-MIL, MambaMIL, S4MIL and DGR-MIL: what the reference numbers of short bags without dropout do not show."""

import pytest
import torch
from milbench_registry import dgrmil, mambamil, s4mil

from milbench import Bag, plugins
from milbench.recipes import get as get_recipe
from milbench.tasks import Subtyping, Survival, SurvivalTarget

D = 24
NAMES = ("ilra", "ilra[rank=1,norm=true]", "mambamil", "mambamil[kind=bimamba]", "mambamil[kind=mamba]", "s4mil", "dgrmil")


def build(text, n_out=3, in_dim=D):
    torch.manual_seed(0)
    name, _, inside = text.partition("[")
    return plugins.resolve(f"{name}[dim=64,{inside or ']'}").build(in_dim, n_out).eval()


def bag(n, seed=0, name="slide"):
    return Bag(torch.randn(n, D, generator=torch.Generator().manual_seed(seed)), slide_id=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 37])
@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_under_autocast_is_finite_and_close(name, n, dtype):
    model, task, given = build(name), Subtyping("abc"), bag(n)
    full = model(given).logits
    with torch.autocast("cpu", dtype):
        half = model(given).logits
        model.train()
        loss = model.training_loss(model(given), torch.tensor(1), task)
    assert (half.float() - full).abs().max() < 0.1 * full.abs().max()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


class TestILRA:
    def test_at_rank_one_every_token_reads_the_same(self):
        layer = build("ilra[rank=1]").layers[1].project_backward
        read = []
        layer.multihead_attn.register_forward_hook(lambda module, given, out: read.append(out[0]))
        with torch.no_grad():
            layer(torch.randn(9, 64), torch.randn(1, 64))
        torch.testing.assert_close(read[0], read[0][:1].expand(9, -1))

    def test_latents_and_seed_start_within_xaviers_bounds(self):
        model = plugins.resolve("ilra[rank=3]").build(D, 2)
        for start, bound in ((model.layers[0].latent, (6 / (256 * 4)) ** 0.5), (model.seed, (3 / 256) ** 0.5)):
            assert 0.9 * bound < start.abs().max() <= bound


class TestMambaMIL:
    @pytest.mark.parametrize(("n", "rate"), [(1, 1), (1, 10), (7, 3), (10, 10), (37, 5), (100, 10), (3, 50)])
    def test_strides_are_the_columns_of_a_raster_padded_at_its_end(self, n, rate):
        x = torch.arange(1.0, n + 1)[:, None]
        rows = -(-n // rate)
        raster = torch.cat([x[:, 0], torch.zeros(rows * rate - n)]).view(rows, rate)
        read = mambamil.strided(x, rate)
        assert read[:, 0].tolist() == [raster[i, j].item() for j in range(rate) for i in range(rows)]
        assert torch.equal(mambamil.unstrided(read, rate, n), x)

    def test_where_no_stride_fits_the_second_branch_reads_as_the_first(self):
        model, given = build("mambamil[rate=40,layers=1]"), torch.randn(37, 64)
        mixer = model.layers[0].mixer
        mixer.second.load_state_dict(mixer.first.state_dict())
        strided = mixer(given)
        mixer.second = None
        torch.testing.assert_close(strided, 2 * mixer(given))

    @pytest.mark.parametrize("kind", ["mamba", "bimamba", "srmamba"])
    def test_who_is_seen_by_a_token(self, kind):
        mixer, x, at = build(f"mambamil[kind={kind}]").layers[0].mixer, torch.randn(37, 64, requires_grad=True), 25
        (gradient,) = torch.autograd.grad(mixer(x)[at].sum(), x)
        second = {"mamba": [], "bimamba": range(at, 37), "srmamba": [j for j in range(37) if (j % 10, j) <= (at % 10, at)]}
        assert set(gradient.abs().amax(1).nonzero()[:, 0].tolist()) == {*range(at + 1), *second[kind]}

    def test_recomputation_changes_no_gradient(self):
        given, found = bag(37), []
        for above in (1000, 10):
            model = build(f"mambamil[recompute_above={above},dropout=0]").train()
            model(given).logits.sum().backward()
            found.append([p.grad for p in model.parameters()])
        for stored, again in zip(*found, strict=True):
            torch.testing.assert_close(stored, again)

    def test_the_first_steps_are_those_of_the_official_initialisation(self):
        mixer = plugins.resolve("mambamil").build(D, 3).layers[0].mixer
        assert not mixer.first.dt_proj.bias.any()
        assert mixer.second.dt_proj.weight.std().item() == pytest.approx((2 / (32 + 1024)) ** 0.5, rel=0.02)


class TestS4MIL:
    @pytest.mark.parametrize("n", [1, 2, 7, 37, 257])
    def test_the_kernel_is_its_definition(self, n):
        generator = torch.Generator().manual_seed(n)
        real, imaginary, *weight = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(4))
        parts = [t.requires_grad_() for t in (real, imaginary, *weight)]
        cotangent = torch.randn(5, n, generator=generator, dtype=torch.float64)
        found = []
        for make in (s4mil.kernel, s4mil.kernel_naive):
            taps = make(0.1 * torch.complex(-parts[0].exp(), parts[1]), torch.complex(*parts[2:]), n)
            found.append((taps, *torch.autograd.grad(taps, parts, cotangent)))
        for ours, naive in zip(*found, strict=True):
            torch.testing.assert_close(ours, naive)

    @pytest.mark.parametrize("n", [1, 2, 7, 37, 257])
    def test_the_convolution_is_the_sum_and_causal(self, n):
        u, taps = (torch.randn(3, n, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (1, 2))
        expected = torch.stack([(taps[:, : i + 1].flip(1) * u[:, : i + 1]).sum(1) for i in range(n)], dim=1)
        torch.testing.assert_close(s4mil.causal_convolution(u, taps), expected)

    def test_it_is_the_recurrence(self):
        model, u = build("s4mil").double().s4d, torch.randn(50, 64, dtype=torch.float64)
        a = torch.complex(-model.log_A_real.exp(), model.A_imag)
        decay = (a * model.log_dt.exp()[:, None]).exp()
        weight = torch.view_as_complex(model.C) * (decay - 1) / a
        state, rows = torch.zeros_like(decay), []
        for token in u:
            state = decay * state + token[:, None]
            rows.append(2 * (weight * state).sum(1).real + model.D * token)
        torch.testing.assert_close(model(u), torch.stack(rows))

    def test_long_kernels_keep_their_digits(self):
        model = plugins.resolve("s4mil").build(D, 2).s4d
        with torch.no_grad():
            single, double = model.kernel(20_000, torch.float32), model.double().kernel(20_000, torch.float64)
        assert (single - double).abs().max() < 1e-4 * double.abs().max()

    def test_half_precision_weights_compute_in_float32(self):
        model, given = build("s4mil"), bag(37)
        halved = build("s4mil").bfloat16()
        close = halved(Bag(given.features.bfloat16(), slide_id="slide")).logits.float()
        assert (close - model(given).logits).abs().max() < 0.1


class TestDGRMIL:
    def test_dropout_takes_whole_instances(self):
        model = build("dgrmil[dropout_instances=0.5,dropout=0]").train()
        seen = []
        model.encode_instances.register_forward_hook(lambda module, given, out: seen.append(given[0]))
        model(bag(200))
        gone = (seen[0] == 0).all(1)
        assert 0.4 < gone.float().mean() < 0.6
        by_first = (seen[0] == 2 * model.project[1].bias.relu()).all(1)  # what the second layer makes of nothing
        assert 0.15 < by_first.float().mean() < 0.35

    @pytest.mark.parametrize(("label", "moved"), [(0, "normal"), (1, "positive"), (2, "positive")])
    def test_the_centre_of_the_class_moves_in_training_only(self, label, moved):
        model, given = build("dgrmil[dropout=0,dropout_instances=0]"), bag(9)
        before = {name: getattr(model, name).clone() for name in ("normal", "positive")}
        model.training_loss(model(given), torch.tensor(label), Subtyping("abc"))
        assert all(torch.equal(getattr(model, name), centre) for name, centre in before.items())
        prediction = model.train()(given)
        model.training_loss(prediction, torch.tensor(label), Subtyping("abc"))
        for name, centre in before.items():
            expected = 0.4 * centre + 0.6 * prediction.extras["mean"] if name == moved else centre
            torch.testing.assert_close(getattr(model, name), expected)

    @pytest.mark.parametrize(("shown", "plain"), [(None, 2 * 5), (3, 2 * 3)])
    def test_the_further_losses_begin_after_the_plain_epochs(self, shown, plain):
        model, task, given = build("dgrmil[plain_epochs=2]"), Subtyping("abc"), bag(9)
        model.prepare([bag(4, seed) for seed in range(5)], torch.Generator())
        model.optimisers(get_recipe("official", "subtyping", official=model.official_recipe, epoch_bags=shown))
        model.train()
        prediction = model(given)
        only = torch.nn.functional.binary_cross_entropy_with_logits(prediction.logits, torch.tensor([0.0, 1.0, 0.0]))
        losses = [model.training_loss(prediction, torch.tensor(1), task) for _ in range(plain + 2)]
        assert [bool(loss == only) for loss in losses] == [True] * plain + [False] * 2

    def test_survival_has_diversity_and_no_centres(self):
        model, task = build("dgrmil[dropout=0,dropout_instances=0]", n_out=4).train(), Survival([1.0, 2.0, 3.0])
        target, before = SurvivalTarget(torch.tensor(1), torch.tensor(True)), model.normal.clone()
        prediction = model(bag(9))
        loss = model.training_loss(prediction, target, task)
        expected = task.loss(prediction.logits, target) + 0.1 * dgrmil.diversity(prediction.extras["vectors"])
        torch.testing.assert_close(loss, expected.float())
        assert torch.equal(model.normal, before)
        assert torch.equal(model.scores(prediction, task), task.scores(prediction.logits))

    def test_diversity_of_vectors_that_are_alike_or_nothing(self):
        assert dgrmil.diversity(2 * torch.eye(3, 8)).item() == pytest.approx(0, abs=1e-9)
        alike = dgrmil.diversity(torch.ones(2, 8))
        assert 20 < alike.item() < 30, "the diagonal is raised, so it is large and finite"
        assert dgrmil.diversity(torch.zeros(1, 8)).item() == pytest.approx(23.03, abs=0.01)

    def test_shuffling_is_off_and_at_test_time_follows_the_name(self):
        plain, shuffled, given = build("dgrmil"), build("dgrmil[shuffle=true]"), bag(37)
        first, again, other = (shuffled(bag(37, name=name)) for name in ("slide", "slide", "other"))
        assert torch.equal(first.logits, again.logits)
        assert not torch.equal(first.logits, other.logits)
        assert not torch.equal(first.logits, plain(given).logits)
        shuffled.train()
        torch.manual_seed(3)
        drawn = [shuffled(given).logits for _ in range(2)]
        torch.manual_seed(3)
        assert torch.equal(shuffled(given).logits, drawn[0])
        assert not torch.equal(*drawn)

    def test_attention_is_in_the_order_of_the_bag(self):
        model, seen = build("dgrmil[shuffle=true]"), []
        model.cross.register_forward_hook(lambda module, given, out: seen.append(out[1].mean(0)[0]))
        given = bag(37)
        order = dgrmil.token_order("random", 37, None, key="slide", training=False, device=torch.device("cpu"))
        assert torch.equal(model(given).attention[order], seen[0])
