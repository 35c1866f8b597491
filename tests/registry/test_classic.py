"""AB-MIL, set pooling, k-NN and DTFD-MIL: what a wrong copy of them would get wrong."""

import copy

import numpy as np
import pytest
import torch
from milbench_registry.dtfd import pseudo_bags, shuffled
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional as F

from milbench import Bag, MilbenchError, plugins
from milbench.errors import SkipTrial
from milbench.recipes import get as get_recipe
from milbench.tasks import Subtyping, Survival, SurvivalTarget

CLASSES, BINS = Subtyping("abc"), Survival([1.0, 2.0, 3.0])
DTFD = ["dtfd-maxs", "dtfd-maxmins", "dtfd-afs", "dtfd-afs[distil=mas]"]


def a_bag(n, d=6, seed=0, slide="s"):
    return Bag(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), slide_id=slide)


def build(name, d=6, n_out=3):
    torch.manual_seed(0)
    return plugins.resolve(name).build(d, n_out).eval()


def small(name, **more):
    """The DTFD of that name, narrow."""
    base, _, inside = name.partition("[")
    given = [inside.rstrip("]")] if inside else []
    return build(f"{base}[{','.join([*given, 'hidden=16', 'attention_dim=8', *(f'{k}={v}' for k, v in more.items())])}]")


@pytest.mark.parametrize(
    ("name", "at_384", "at_1024"),
    [
        ("abmil", 461_572, 789_252),
        ("abmil[gated=false]", 330_244, 657_924),
        ("mean", 198_659, 526_339),
        ("max", 198_659, 526_339),
        ("mean[hidden=0]", 1_155, 3_075),
        ("knn-mean", 0, 0),
        *((name, 462_600, 790_280) for name in DTFD),
    ],
)
def test_sizes_are_the_published_ones(name, at_384, at_1024):
    assert [sum(p.numel() for p in build(name, d).parameters()) for d in (384, 1024)] == [at_384, at_1024]


# AB-MIL and set pooling


def test_abmil_by_default_is_what_it_was():
    bag, model = a_bag(9), build("abmil")
    torch.manual_seed(0)
    project, v, u, w, head = nn.Linear(6, 512), nn.Linear(512, 256), nn.Linear(512, 256), nn.Linear(256, 1), nn.Linear(512, 3)
    h = project(bag.features).relu()
    a = w(v(h).tanh() * u(h).sigmoid()).softmax(0)
    assert torch.equal(model(bag).logits, head((a * h).sum(0)))
    layers = ["project.0", "score.tanh_branch", "score.sigmoid_branch", "score.out", "head"]
    assert [*model.state_dict()] == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


@pytest.mark.parametrize("name", ["abmil", "abmil[gated=false]", "abmil[rho=8]", "abmil[lineage=original]", *DTFD])
@pytest.mark.parametrize("n", [1, 2, 3, 11])
def test_attention_sums_to_one(name, n):
    prediction = build(name)(a_bag(n))
    assert (prediction.attention >= 0).all()
    assert float(prediction.attention.detach().sum()) == pytest.approx(1, abs=1e-5)


def test_one_logit_is_the_odds_of_class_one():
    model, bag, task = build("abmil[lineage=original]", n_out=2), a_bag(5), Subtyping("01")
    assert model.head.out_features == 1
    zero, s = model(bag).logits.tolist()
    p = 1 / (1 + np.exp(-s))
    assert zero == 0
    assert task.scores(model(bag).logits).tolist() == pytest.approx([1 - p, p])
    losses = [model.training_loss(model(bag), torch.tensor(y), task).item() for y in (0, 1)]
    assert losses == pytest.approx([-np.log(1 - p), -np.log(p)])


def test_original_loss_is_clamped():
    model, bag, task = build("abmil[lineage=original]", n_out=2), a_bag(5), Subtyping("01")
    with torch.no_grad():
        model.head.bias.fill_(50.0)
    loss = model.training_loss(model(bag), torch.tensor(0), task)
    loss.backward()
    assert loss.item() == pytest.approx(-np.log(1e-5))
    assert not model.head.weight.grad.any()


def test_original_lineage_refuses_two_time_bins():
    target = SurvivalTarget(torch.tensor(0), torch.tensor(True))
    two, four = build("abmil[lineage=original]", n_out=2), build("abmil[lineage=original]", n_out=4)
    with pytest.raises(MilbenchError, match="two time bins"):
        two.training_loss(two(a_bag(4)), target, Survival([1.0], 2))
    prediction = four(a_bag(4))
    assert torch.equal(four.training_loss(prediction, target, BINS), BINS.loss(prediction.logits, target))


def test_misfitting_official_weights_are_listed():
    official = {"attention_net.0.weight": torch.zeros(512, 7), "attention_net.0.bias": torch.zeros(512), "extra": torch.zeros(1)}
    with pytest.raises(MilbenchError) as error:
        build("abmil").load_official(official)
    for part in ("missing head.bias", "unknown extra", "project.0.weight is (512, 7), expected (512, 6)"):
        assert part in str(error.value)


def test_a_sum_grows_with_the_bag_and_a_mean_does_not():
    bag = a_bag(4)
    twice = Bag(torch.cat([bag.features, bag.features]))
    mean, total = build("mean[rho=8]"), build("mean[reduce=sum,rho=8]")
    assert torch.allclose(mean(bag).logits, mean(twice).logits, atol=1e-6)
    assert not torch.allclose(total(bag).logits, total(twice).logits, atol=1e-3)
    assert torch.allclose(mean(bag).logits, mean.head(mean.rho(mean.project(bag.features).mean(0))))


# k-NN


def one_instance(*values):
    return Bag(torch.tensor([values]))


def fitted(name, bags, labels, n_out=2):
    model = build(name, bags[0].features.shape[1], n_out)
    model.fit(bags, [torch.tensor(y) for y in labels])
    return model


LINE = [one_instance(float(x), 1.0) for x in (0, 1, 2, 10, 11)]


@pytest.mark.parametrize(
    ("name", "x", "votes"),
    [
        ("knn-mean[k=1]", 9.0, [0, 1]),
        ("knn-mean[k=3]", 1.4, [1, 0]),
        ("knn-mean[k=4]", 1.4, [3 / 4, 1 / 4]),
        ("knn-mean[k=99]", 1.4, [3 / 5, 2 / 5]),
        ("knn-mean[k=3,weights=distance]", 7.0, [12 / 47, 35 / 47]),  # 10, 11 and 2 are 3, 4 and 5 away
        ("knn-mean[k=5,weights=distance]", 10.0, [0, 1]),  # an exact match outvotes all others
        ("knn-mean[k=1]", 6.0, [1, 0]),  # 2 and 10 are equally far: the first counts
    ],
)
def test_knn_known_answers(name, x, votes):
    model = fitted(name, LINE, [0, 0, 0, 1, 1])
    prediction = model(one_instance(x, 1.0))
    assert prediction.logits.softmax(0).tolist() == pytest.approx(votes, abs=1e-5)
    assert prediction.extras["votes"].tolist() == pytest.approx(votes, abs=1e-5)


def test_knn_pools_by_mean_or_maximum():
    bag = Bag(torch.tensor([[0.0, 4.0], [2.0, 0.0]]))
    assert build("knn-mean", 2).pooled(bag).tolist() == [1, 2]
    assert build("knn-max", 2).pooled(bag).tolist() == [2, 4]


@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 4, 7])
def test_knn_votes_as_scikit_learn(metric, weights, k):
    train, labels = [a_bag(1 + i % 4, seed=i) for i in range(20)], [i % 3 for i in range(20)]
    model = fitted(f"knn-mean[k={k},metric={metric},weights={weights}]", train, labels, 3)
    vectors = lambda bags: np.stack([bag.features.mean(0).numpy() for bag in bags])  # noqa: E731
    other = KNeighborsClassifier(k, metric=metric, weights=weights).fit(vectors(train), labels)
    test = [a_bag(3, seed=100 + i) for i in range(5)]
    ours = np.stack([model(bag).extras["votes"].numpy() for bag in test])
    np.testing.assert_allclose(ours, other.predict_proba(vectors(test)), atol=1e-5)


def test_knn_normalisation():
    train, labels = [a_bag(3, seed=i) for i in range(12)], [i % 2 for i in range(12)]
    stretch = torch.tensor([1e4, 1, 1, 1, 1, 1e-4])
    stretched, scaled = [Bag(b.features * stretch) for b in train], [Bag(b.features * (1 + i)) for i, b in enumerate(train)]
    near = lambda name, bags, bag: fitted(name, bags, labels)(bag).extras["neighbours"].tolist()  # noqa: E731
    bag = a_bag(3, seed=99)
    stretched_bag = Bag(bag.features * stretch)
    assert near("knn-max[normalise=z]", train, bag) == near("knn-max[normalise=z]", stretched, stretched_bag)
    assert near("knn-max", train, bag) != near("knn-max", stretched, stretched_bag)
    assert near("knn-mean[normalise=l2]", train, bag) == near("knn-mean[normalise=l2]", scaled, bag)
    assert near("knn-mean[normalise=l2]", train, bag) == near("knn-mean[metric=cosine]", train, bag)
    constant = fitted("knn-mean[normalise=z]", LINE, [0, 0, 0, 1, 1])  # the second feature never varies
    assert torch.isfinite(constant(one_instance(3.0, 1.0)).logits).all()


def test_knn_travels_in_its_state_dict():
    first, second = fitted("knn-mean[normalise=z,k=3]", LINE, [0, 0, 0, 1, 1]), build("knn-mean[normalise=z,k=3]", 2, 2)
    with pytest.raises(MilbenchError, match="no training slides"):
        second(LINE[0])
    second.load_state_dict(first.state_dict())
    for bag in LINE:
        assert torch.equal(first(bag).logits, second(bag).logits)


def test_knn_is_skipped_in_survival():
    with pytest.raises(SkipTrial, match="survival"):
        build("knn-mean").fit([a_bag(2)], [SurvivalTarget(torch.tensor(0), torch.tensor(True))])


# DTFD-MIL


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 37])
def test_pseudo_bags_are_equal_pieces_of_the_order(n, groups):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    group = pseudo_bags(order, groups)
    pieces = np.array_split(order.numpy(), min(n, groups))
    assert [sorted(piece) for piece in pieces] == [group.eq(j).nonzero()[:, 0].tolist() for j in range(len(pieces))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 3, 8, 33])
def test_the_shuffle_follows_the_rows(d, dtype):
    x = torch.randn(23, d, generator=torch.Generator().manual_seed(d)).to(dtype)
    moved = x[torch.randperm(23, generator=torch.Generator().manual_seed(1))]
    order = shuffled(x, "a")
    assert order.sort().values.tolist() == list(range(23))
    assert torch.equal(x[order], moved[shuffled(moved, "a")])
    assert not torch.equal(order, shuffled(x, "b"))


def test_the_shuffle_is_uniform():
    x = torch.arange(8.0)[:, None].expand(8, 6)  # as regular as features can be, with a row of zeros
    places = torch.stack([shuffled(x, str(seed)).argsort() for seed in range(2000)])  # (seeds, row)
    counts = torch.stack([places.eq(at).sum(0) for at in range(8)]).double()  # (place, row), 250 expected
    assert ((counts - 250) ** 2 / 250).sum() < 96.6, "chi-square of 49 degrees of freedom at 1e-4"
    together = (places // 2)[:, :, None] == (places // 2)[:, None, :]  # rows that share a pseudo-bag of two
    share = together.double().mean(0)[~torch.eye(8, dtype=torch.bool)]
    assert (share - 1 / 7).abs().max() < 0.045


def test_slides_and_training_steps_are_shuffled_anew_and_eval_never():
    model, bag = small("dtfd-afs", groups=3), a_bag(20)
    groups = lambda bag=bag: model(bag).extras["pseudo_bag"].tolist()  # noqa: E731
    fixed = groups()
    assert groups() == fixed
    assert groups(a_bag(20, slide="other")) != fixed
    model.train()
    assert len({tuple(groups()) for _ in range(5)}) == 5
    model.eval()
    assert groups() == fixed


def dtfd_naive(model, x, order):
    """One pseudo-bag after the other, as the paper tells it: tier-1 logits, tier-2 logits, distilled rows."""

    def attend(tier, h):
        s = tier.score
        return F.softmax(s.out(torch.tanh(s.tanh_branch(h)) * torch.sigmoid(s.sigmoid_branch(h)))[:, 0], dim=0)

    first, rows = [], []
    for piece in np.array_split(order.numpy(), min(model.groups, len(x))):
        h = F.relu(F.linear(x[piece], model.project[0].weight))
        a = attend(model.tier1, h)
        pooled = sum(a[i] * h[i] for i in range(len(h)))
        logits = model.tier1.head(pooled)
        c = -1 if model.rank_class == "last" else int(logits.argmax())
        p = [F.softmax(model.tier1.head.weight @ (a[i] * h[i]), dim=0)[c].item() for i in range(len(h))]
        ranking = sorted(range(len(h)), key=lambda i, p=p, a=a: -(a[i].item() if model.distil == "mas" else p[i]))
        first.append(logits)
        rows += [pooled] if model.distil == "afs" else [h[i] for i in ranking[: model.k]]
        rows += [h[i] for i in ranking[-model.k :]] if model.distil == "maxmins" else []
    rows = torch.stack(rows).detach()
    return torch.stack(first), model.tier2.head((attend(model.tier2, rows)[:, None] * rows).sum(0)), rows


@pytest.mark.parametrize("rank_class", ["last", "argmax"])
@pytest.mark.parametrize(("n", "groups", "k"), [(1, 4, 1), (2, 4, 2), (7, 3, 1), (7, 3, 3), (10, 4, 2), (37, 5, 4), (37, 1, 50)])
@pytest.mark.parametrize("name", DTFD)
def test_dtfd_is_its_loop_over_pseudo_bags(name, n, groups, k, rank_class):
    model, bag = small(name, groups=groups, instances_per_group=k, rank_class=rank_class), a_bag(n, seed=n)
    prediction = model(bag)
    first, second, _ = dtfd_naive(model, bag.features, model.order(bag))
    torch.testing.assert_close(prediction.extras["tier1"], first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prediction.logits, second, atol=1e-5, rtol=1e-5)
    h = model.project(bag.features)  # the attention is the weight of each instance in tier 2's vector
    torch.testing.assert_close(model.tier2.head(prediction.attention @ h), second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DTFD)
def test_dtfd_does_not_see_the_order(name):
    model, bag = small(name), a_bag(37)
    moved = Bag(bag.features.flip(0), slide_id=bag.slide_id)
    torch.testing.assert_close(model(bag).logits, model(moved).logits)


@pytest.mark.parametrize("task", [CLASSES, BINS], ids=["subtyping", "survival"])
@pytest.mark.parametrize("name", DTFD)
def test_tier_two_never_trains_tier_one(name, task):
    model, bag = small(name), a_bag(20)
    target = torch.tensor(1) if task is CLASSES else SurvivalTarget(torch.tensor(1), torch.tensor(True))
    task = CLASSES if task is CLASSES else Survival([1.0, 2.0], 3)
    recipe = get_recipe("official", task.name, official=model.official_recipe)
    alone = copy.deepcopy(model)
    first = torch.stack([task.loss(row, target) for row in alone(bag).extras["tier1"]]).mean()
    tier1 = [*alone.project.parameters(), *alone.tier1.parameters()]
    for parameter, gradient in zip(tier1, torch.autograd.grad(first, tier1), strict=True):
        parameter.grad = gradient
    kind = torch.optim.Adam if recipe.optimiser == "adam" else torch.optim.AdamW
    kind(tier1, lr=recipe.lr, weight_decay=recipe.weight_decay).step()

    before = copy.deepcopy(model.state_dict())
    model.training_step(bag, target, task, model.optimisers(recipe))
    for (layer, ours), theirs in zip(model.state_dict().items(), alone.state_dict().values(), strict=True):
        if not layer.startswith("tier2"):
            # 1e-8 of weights near 0.1 is exact; a gradient of tier 2 would turn steps of lr = 1e-4 around.
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
        if not layer.endswith("score.out.bias"):
            assert not torch.equal(ours, before[layer]), layer


def test_each_module_is_clipped_on_its_own():
    class Steep(Subtyping):
        def loss(self, logits, target):
            return 1e4 * super().loss(logits, target)

    model, bag = small("dtfd-afs"), a_bag(20)
    optimisers = model.optimisers(get_recipe("official", "subtyping", official=model.official_recipe))
    model.training_step(bag, torch.tensor(1), Steep("abc"), optimisers)
    for part in (model.project, model.tier1.score, model.tier1.head, model.tier2):
        assert torch.cat([p.grad.flatten() for p in part.parameters()]).norm() == pytest.approx(5, rel=1e-3)


def test_dtfd_reads_the_file_of_the_official_script():
    model, other = small("dtfd-afs"), small("dtfd-afs")
    attention = {"tanh_branch": "attention_V.0", "sigmoid_branch": "attention_U.0", "out": "attention_weights"}
    saved = {"dim_reduction": {"fc1.weight": torch.randn(16, 6)}}
    for tier, (pool, classify) in {"tier1": ("", ""), "tier2": ("attention.", "classifier.")}.items():
        state = getattr(model, tier).state_dict()
        scores = {f"{pool}{attention[n.split('.')[1]]}.{n.split('.')[2]}": v + 1 for n, v in state.items() if "score" in n}
        heads = {f"{classify}fc.{n.split('.')[1]}": v + 1 for n, v in state.items() if "head" in n}
        saved |= {"attention": scores, "classifier": heads} if tier == "tier1" else {"att_classifier": {**scores, **heads}}
    other.load_official(saved)
    assert torch.equal(other.project[0].weight, saved["dim_reduction"]["fc1.weight"])
    for tier in ("tier1", "tier2"):
        for name, value in getattr(other, tier).state_dict().items():
            assert torch.equal(value, getattr(model, tier).state_dict()[name] + 1), name


def test_dtfd_refuses_no_groups():
    with pytest.raises(MilbenchError, match="at least 1"):
        build("dtfd-afs[groups=0]")


def test_the_original_scoring_network_has_no_dropout_inside():
    original = "trunk=256-128,hidden=64,attention_dim=64,gated=false,dropout=0.5"
    assert plugins.resolve(f"abmil[lineage=original,{original}]").build(166, 2).score.dropout.p == 0
    assert plugins.resolve(f"abmil[{original}]").build(166, 2).score.dropout.p == 0.5
    assert plugins.resolve("abmil[lineage=original]").implementation == "abmil@2"
    assert plugins.resolve("abmil").implementation == "abmil@1", "trials of the other lineage stay what they are"
