"""Methods that give a bag structure before they pool it: clusters (AMISL), a graph (GCN-MIL), regions (HIPT)."""

import argparse

import numpy as np
import pytest
import torch
from milbench_registry import amisl, gcn, hipt
from sklearn.cluster import KMeans

from milbench import Bag, MilbenchError, plugins
from milbench.recipes import get as get_recipe
from milbench.tasks import Subtyping
from milbench.training import Bags, fit
from tests.builders.datasets import toy_dataset

D = 6


def build(name, in_dim=D, n_out=3):
    torch.manual_seed(0)
    return plugins.resolve(name).build(in_dim, n_out).eval()


def tissue(n, seed=0, step=512, **bag):
    """n patches on an irregular piece of a lattice that starts anywhere."""
    generator = torch.Generator().manual_seed(seed)
    side = int((1.7 * n) ** 0.5) + 2
    cell = torch.randperm(side * side, generator=generator)[:n]
    xy = torch.stack([cell % side, cell // side], dim=1) * step + torch.tensor([1234, 77])
    return Bag(torch.randn(n, D, generator=generator), xy, step, **bag)


def shuffled(bag, seed=5):
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(seed))
    return Bag(bag.features[order], bag.coords[order], bag.step), order


class TestClusters:
    """AMISL."""

    bags = [tissue(20 + i, seed=i) for i in range(6)]

    def prepared(self, name="amisl[clusters=4,hidden=8]", bags=None, seed=0):
        model = build(name)
        model.prepare(bags or self.bags, torch.Generator().manual_seed(seed))
        return model

    def test_lloyd_is_the_textbook_algorithm(self):
        x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
        reference = KMeans(4, init=x[:4].numpy(), n_init=1, algorithm="lloyd", tol=0, max_iter=100).fit(x.numpy())
        assert np.allclose(amisl.lloyd(x, x[:4]), reference.cluster_centers_, atol=1e-5)

    def test_kmeans_finds_separate_blobs(self):
        truth = 100 * torch.eye(D)[:4]
        x = truth.repeat(25, 1) + torch.randn(100, D, generator=torch.Generator().manual_seed(1))
        found = amisl.kmeans(x, 4, torch.Generator().manual_seed(0))
        assert torch.cdist(found, truth).amin(dim=0).max() < 2

    def test_fewer_distinct_points_than_clusters(self):
        found = amisl.kmeans(torch.eye(3, D).repeat(5, 1), 8, torch.Generator().manual_seed(0))
        assert found.shape == (8, D)
        assert torch.cdist(torch.eye(3, D), found).amin(dim=1).max() == 0

    def test_fitted_on_training_slides_only(self):
        read, data = set(), toy_dataset()

        def spy(id, inner=data.read):
            read.add(id)
            return inner(id)

        object.__setattr__(data, "read", spy)
        (fold,) = data.splits["one"]()
        train = Bags(data, fold.train)
        recipe = get_recipe("paper", "subtyping", has_validation=False, max_epochs=1)
        model = build("amisl[clusters=3,hidden=8]", data.in_dim, 2)
        fit(model, train, None, Subtyping("ab"), recipe, ("toy",))
        assert read == set(fold.train)
        assert torch.isfinite(model.centroids).all()

    def test_fit_is_deterministic_and_follows_its_generator(self):
        first, second, other = self.prepared(), self.prepared(), self.prepared(seed=1)
        assert torch.equal(first.centroids, second.centroids)
        assert not torch.equal(first.centroids, other.centroids)

    def test_every_bag_counts_the_same(self):
        huge = Bag(torch.full((5000, D), 50.0))
        model = self.prepared("amisl[clusters=2,fit_on=40]", [huge, Bag(torch.zeros(20, D))])
        assert sorted(model.centroids[:, 0].tolist()) == [0.0, 50.0]

    def test_patches_go_to_the_nearest_centroid(self):
        model, bag = self.prepared(), self.bags[0]
        distance = ((bag.features[:, None] - model.centroids) ** 2).sum(dim=2)
        assert torch.equal(model.assign(bag.features), distance.argmin(dim=1))

    def test_state_dict_carries_the_clusters(self):
        model, other = self.prepared(), build("amisl[clusters=4,hidden=8]")
        with pytest.raises(MilbenchError, match="no clusters yet"):
            other(self.bags[0])
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(self.bags[0]).logits, model(self.bags[0]).logits)

    def test_official_weights_leave_the_clusters(self):
        model = self.prepared()
        fitted = model.centroids.clone()
        model.load_official({name: value for name, value in model.state_dict().items() if name != "centroids"})
        assert torch.equal(model.centroids, fitted)

    def naive(self, model, x, clusters):
        """One patch after the other."""
        means = []
        for k, phi in enumerate(model.phis):
            members = [phi(x[i]) for i in range(len(x)) if clusters[i] == k]
            means.append(sum(members) / len(members) if members else torch.zeros(model.hidden))
        u = model.project(torch.stack(means))
        weight = model.score(u).softmax(dim=0)
        return model.head(model.rho((weight * u).sum(dim=0)))

    @pytest.mark.parametrize("clusters", [[0, 1, 2, 3, 0, 1, 2, 3, 3], [2, 2, 2, 0, 0], [1]])
    def test_hipt_lineage_is_its_definition_with_empty_clusters_too(self, clusters):
        model, x, clusters = self.prepared(), torch.randn(len(clusters), D), torch.tensor(clusters)
        prediction = model(Bag(x), clusters)
        assert torch.allclose(prediction.logits, self.naive(model, x, clusters), atol=1e-6)
        prediction.logits.sum().backward()
        assert [phi[0].weight.grad is not None for phi in model.phis] == [bool((clusters == k).any()) for k in range(4)]

    def test_original_lineage_masks_as_officially(self):
        model = build("amisl[lineage=original,clusters=5]")
        x, clusters = torch.randn(9, D), torch.tensor([0, 0, 1, 3, 3, 3, 0, 1, 3])
        prediction = model(Bag(x), clusters)
        pooled = [model.project(x[clusters == k] if (clusters == k).any() else torch.zeros(1, D)).mean(dim=0) for k in range(5)]
        u, mask = torch.stack(pooled), torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0])
        score = model.score(u)[:, 0]
        chance = (score - (score * mask + (1 - 1 / (mask + 1e-5))).max()).exp() * mask
        assert torch.allclose(prediction.extras["attention"], chance / chance.sum())
        expected = model.head(model.rho((chance / chance.sum()) @ u))
        assert torch.allclose(prediction.logits, expected, atol=1e-6)

    @pytest.mark.parametrize("lineage", ["hipt", "original"])
    def test_attention_of_patches_adds_up_to_that_of_their_clusters(self, lineage):
        model, bag = self.prepared(f"amisl[lineage={lineage},clusters=4]"), self.bags[2]
        prediction = model(bag)
        per_cluster = torch.zeros(4).index_add(0, prediction.extras["clusters"], prediction.attention)
        present = torch.zeros(4).index_fill(0, prediction.extras["clusters"], 1)
        assert torch.allclose(per_cluster, prediction.extras["attention"] * present)


class TestGraph:
    """GCN-MIL."""

    @pytest.mark.parametrize("n", [1, 2, 7, 9, 37, 257])
    def test_nearest_on_a_lattice(self, n):
        xy = tissue(n, seed=n).coords
        assert torch.equal(gcn.nearest_in_plane(xy, 8), gcn.nearest_naive(xy.double(), 8))

    @pytest.mark.parametrize("n", [2, 9, 120])
    def test_nearest_anywhere_and_with_patches_on_one_spot(self, n):
        generator = torch.Generator().manual_seed(n)
        for xy in (1000 * torch.rand(n, 2, generator=generator), torch.randint(0, 5, (n, 2), generator=generator)):
            assert torch.equal(gcn.nearest_in_plane(xy, 8), gcn.nearest_naive(xy.double(), 8))

    def test_hundreds_of_patches_on_one_spot(self):
        near = gcn.nearest_in_plane(torch.zeros(700, 2), 8)
        assert (near != torch.arange(700)[:, None]).all()
        assert all(len(set(row)) == 8 for row in near.tolist())

    @pytest.mark.parametrize("n", [1, 2, 9, 257])
    def test_nearest_in_feature_space(self, n):
        x = torch.randn(n, D, generator=torch.Generator().manual_seed(n))
        assert torch.equal(gcn.nearest_in_space(x, 8), gcn.nearest_naive(x, 8))

    def test_graph_does_not_depend_on_the_order_of_patches(self):
        bag = tissue(300)
        permuted, order = shuffled(bag)
        expected = {tuple(edge) for edge in gcn.neighbour_edges(bag, 8, "spatial").T.tolist()}
        assert {tuple(edge) for edge in order[gcn.neighbour_edges(permuted, 8, "spatial")].T.tolist()} == expected
        assert len(expected) == 300 * 8

    def test_messages_flow_from_a_patch_to_its_nearest(self):
        bag = Bag(torch.randn(3, D).requires_grad_(), torch.tensor([[0, 0], [100, 0], [1000, 0]]), 100)
        assert gcn.neighbour_edges(bag, 1, "spatial").tolist() == [[0, 1, 2], [1, 0, 1]]
        scores = build("gcn-mil[neighbours=1]")(bag).extras["scores"]
        heard = [torch.autograd.grad(s, bag.features, retain_graph=True)[0].abs().sum(dim=1) > 0 for s in scores]
        assert torch.stack(heard).tolist() == [[True] * 3, [True] * 3, [False, False, True]]  # nobody is nearest to the last

    @pytest.mark.parametrize("graph", ["spatial", "latent"])
    def test_network_is_its_definition(self, graph):
        model, bag = build(f"gcn-mil[graph={graph}]"), tissue(60)
        source, target = gcn.neighbour_edges(bag, 8, graph)
        adjacency = torch.zeros(60, 60).index_put((target, source), torch.ones(len(source)))
        h = bag.features
        for conv in (model.conv1, model.conv2, model.conv3):
            h = conv.second(conv.first(h + adjacency @ h).relu()).relu()
        weight = model.score(h).softmax(dim=0)
        expected = model.head(model.rho((weight * h).sum(dim=0)))
        assert torch.allclose(model(bag).logits, expected, atol=1e-5)

    @pytest.mark.parametrize("graph", ["spatial", "latent"])
    def test_slides_of_a_case_are_not_connected(self, graph):
        one, two = tissue(30, seed=1), tissue(12, seed=2)
        order = torch.randperm(42, generator=torch.Generator().manual_seed(0))
        slide = torch.cat([torch.zeros(30), torch.ones(12)]).long()[order]
        features = torch.cat([one.features, two.features])[order]
        case = Bag(features, torch.cat([one.coords, two.coords])[order], one.step, slide_index=slide)
        source, target = gcn.neighbour_edges(case, 8, graph)
        assert torch.equal(slide[source], slide[target])
        alone = torch.cat([gcn.neighbour_edges(one, 8, graph), gcn.neighbour_edges(two, 8, graph) + 30], dim=1)
        assert {tuple(e) for e in order[torch.stack([source, target])].T.tolist()} == {tuple(e) for e in alone.T.tolist()}

    def test_coordinates_are_needed_by_the_spatial_graph_only(self):
        bag = Bag(torch.randn(5, D), slide_id="s1")
        with pytest.raises(MilbenchError, match=r"slide s1 .*no coordinates"):
            build("gcn-mil")(bag)
        latent = build("gcn-mil[graph=latent]")
        assert not latent.needs_coords
        assert latent(bag).logits.shape == (3,)

    def test_official_eps_is_kept(self):
        model = build("gcn-mil")
        weights = {**model.state_dict(), "conv2.eps": torch.ones(1)}
        bag, before = tissue(20), model(tissue(20)).logits
        model.load_official(weights)
        assert not torch.allclose(model(bag).logits, before)


class TestRegions:
    """HIPT."""

    SMALL = "hipt[dim=24,depth=2]"

    def at(self, xy, step=512, **bag):
        xy = torch.as_tensor(xy)
        generator = torch.Generator().manual_seed(len(xy))
        return Bag(torch.randn(len(xy), D, generator=generator), xy, step, **bag)

    @pytest.mark.parametrize(
        ("xy", "step", "region", "cell"),
        [
            ([[0, 0], [512, 0], [0, 512], [7680, 7680]], 512, [0, 0, 0, 0], [0, 1, 16, 255]),
            ([[7680, 0], [8192, 0], [0, 8192], [8192, 8192]], 512, [0, 1, 2, 3], [15, 0, 0, 0]),
            ([[4095, 4095], [4096, 4095], [4095, 4096]], 256, [0, 1, 2], [255, 240, 15]),  # floor(pixel / 4096) at 256 px
            ([[100, 100], [300, 100], [511, 511]], 256, [0, 0, 0], [0, 1, 17]),  # contours that start anywhere
            ([[round(179.2 * i), 0] for i in range(33)], 179.2, [0] * 16 + [1] * 16 + [2], [*range(16), *range(16), 0]),
        ],
    )
    def test_known_slices(self, xy, step, region, cell):
        found = hipt.slice_regions(self.at(xy, step), 16)
        assert [t.tolist() for t in found] == [region, cell]

    def test_slides_of_a_case_share_no_region(self):
        bag = self.at([[0, 0], [512, 0], [0, 0], [512, 0]], slide_index=torch.tensor([0, 1, 1, 0]))
        assert hipt.slice_regions(bag, 16)[0].tolist() == [0, 1, 1, 0]

    def test_a_region_sees_its_own_patches_only(self):
        model, bag = build(self.SMALL), tissue(900)
        region, cell = hipt.slice_regions(bag, 16)
        sizes = region.bincount()
        assert len(sizes) > 3
        assert sizes.min() < sizes.max()
        together = model(bag).extras["regions"]
        for m in range(len(sizes)):  # on its own a region is not padded: absent cells and other regions count for nothing
            mine = region == m
            alone = model.local(bag.features[mine], torch.zeros(int(mine.sum()), dtype=torch.int64), cell[mine])
            assert torch.allclose(alone[0], together[m], atol=1e-5)

    def test_regions_in_groups_keep_their_order(self, monkeypatch):
        model, bag = build(self.SMALL), tissue(900)
        expected = model(bag).extras["regions"]
        monkeypatch.setattr(hipt, "REGIONS_AT_ONCE", 2)
        assert torch.allclose(model(bag).extras["regions"], expected, atol=1e-5)

    def test_recomputed_gradients_are_the_same(self, monkeypatch):
        model, bag = build(self.SMALL), tissue(300)
        grads = []
        for limit in (10**9, 0):
            monkeypatch.setattr(hipt, "LONG", limit)
            model.zero_grad()
            model(bag).logits.sum().backward()
            grads.append([p.grad.clone() for p in model.parameters()])
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))

    def test_place_inside_a_region_matters_and_order_does_not(self):
        model, bag = build(self.SMALL), tissue(40)
        swapped = bag.coords.clone()
        swapped[[0, 1]] = swapped[[1, 0]]
        expected = model(bag).logits
        assert torch.allclose(model(shuffled(bag)[0]).logits, expected, atol=1e-5)
        assert not torch.allclose(model(Bag(bag.features, swapped, bag.step)).logits, expected, atol=1e-5)

    def test_whole_regions_may_move_but_not_by_half(self):
        model, bag = build(self.SMALL), self.at([[512 * i, 512 * j] for i in range(20) for j in range(3)])
        moved = [Bag(bag.features, bag.coords + shift, bag.step) for shift in (16 * 512, 8 * 512)]
        assert torch.allclose(model(moved[0]).logits, model(bag).logits, atol=1e-5)
        assert not torch.allclose(model(moved[1]).logits, model(bag).logits, atol=1e-5)

    def test_two_patches_in_one_cell_both_stay(self):
        model = build(self.SMALL)
        bag = self.at([[5 * (i % 2) + 512 * (i // 2 % 16), 512 * (i // 32)] for i in range(512)])
        prediction = model(bag)
        assert len(prediction.extras["regions"]) == 1
        prediction.logits.sum().backward()
        changed = bag.features.clone()
        changed[0] += 1  # the other patch of this cell is untouched
        assert not torch.allclose(model(bag.with_features(changed)).logits, prediction.logits, atol=1e-6)

    def test_attention_is_the_regions_spread_over_their_patches(self):
        prediction = build(self.SMALL)(tissue(400))
        spread = torch.zeros_like(prediction.extras["attention"]).index_add(0, prediction.extras["region"], prediction.attention)
        assert torch.allclose(spread, prediction.extras["attention"])
        assert prediction.attention.sum().item() == pytest.approx(1, abs=1e-5)

    def test_pretrained_local_transformer(self, tmp_path):
        donor = build(self.SMALL)
        content = {f"module.backbone.{name}": value + 1 for name, value in donor.local.state_dict().items()}
        content["module.head.mlp.0.weight"] = torch.zeros(2, 2)  # of self-supervised training
        torch.save({"teacher": content, "student": {}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "local.pth")
        name = f"hipt[dim=24,depth=2,frozen=true,weights={tmp_path / 'local.pth'}]"
        model = build(name)
        assert all(torch.equal(value, donor.local.state_dict()[key] + 1) for key, value in model.local.state_dict().items())
        model(tissue(40)).logits.sum().backward()
        assert all(p.grad is None for p in model.local.parameters())
        assert model.head.weight.grad is not None
        with pytest.raises(MilbenchError, match=r"(?s)local\.pth.*phi\.0\.weight"):
            build(name, in_dim=D + 1)
        with pytest.raises(MilbenchError, match=r"nothing\.pth"):
            build(f"hipt[weights={tmp_path / 'nothing.pth'}]")

    def test_no_coordinates(self):
        with pytest.raises(MilbenchError, match=r"slide s1 .*no coordinates"):
            build(self.SMALL)(Bag(torch.randn(5, D), slide_id="s1"))


@pytest.mark.parametrize("name", ["amisl", "amisl[lineage=original]", "gcn-mil", "gcn-mil[graph=latent]", "hipt[dim=24,depth=2]"])
def test_a_bag_of_one_patch_trains(name):
    model, bag = build(name), tissue(1)
    model.prepare([tissue(20), bag], torch.Generator().manual_seed(0))
    model.train()
    loss = model.training_loss(model(bag), torch.tensor(1), Subtyping("abc"))
    loss.backward()
    assert torch.isfinite(loss)
    prediction = model.eval()(bag)
    assert prediction.attention.shape == (1,)
