"""Token-mixing matrices, their rank and their sparsity, against known answers and against what the operations compute."""

import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nystrom_attention import NystromAttention
from torch import nn
from torch.nn import functional as F

from milbench import ops, plugins
from milbench.aggregator import Aggregator, Prediction
from milbench.analysis import mixing, rank, rank_figures, subjects
from milbench.analysis.mixing import CrossScan, Decayed, Factors, Regions, Scan, Softmax, Window, observe
from milbench.errors import MilbenchError
from tests.builders.command import milbench
from tests.builders.datasets import lattice, lattice_dataset
from tests.builders.folders import feature_file
from tests.builders.results import trained_trial

SIZES = (1, 2, 7, 37, 257)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Plain(mixing.Mixing):
    """Any matrix."""

    kind, width = "plain", 1

    def __init__(self, matrix):
        self.matrix, self.n = matrix, len(matrix)

    def rows(self, start, stop):
        return self.matrix[start:stop]


def grid_of(n, seed=0):
    """Cells on a small square, several tokens to a cell."""
    return torch.randint(0, 2 + int(n**0.5), (n, 2), generator=torch.Generator().manual_seed(seed))


# What the operation computes is the matrix times the values.


@pytest.mark.parametrize("n", SIZES)
def test_matrices_are_those_of_the_operations(n):
    q, k, v = random(2, n, 6), random(2, n, 6, seed=1), random(2, n, 9, seed=2)
    grid, slopes, regions = grid_of(n), torch.tensor([0.3, 0.1]), torch.arange(n) % 3
    decay = torch.tensor([0.5, 0.99], dtype=torch.float64)
    gate = F.logsigmoid(4 * random(2, n, 6, seed=3))
    pairs = [
        (lambda h: Softmax(q[h], k[h]), ops.full_attention(q, k, v)),
        (lambda h: Softmax(q[h], k[h], 1.7), ops.full_attention(q, k, v, scale=1.7)),
        (lambda h: Window(q[h], k[h], grid, 2.0), ops.local_attention_2d(q, k, v, ops.Window(grid, 2.0))),
        (
            lambda h: Window(q[h], k[h], grid, 2.9, scale=1.7, slope=float(slopes[h]), regions=regions),
            ops.local_attention_2d(q, k, v, ops.Window(grid, 2.9, slopes, regions), scale=1.7),
        ),
        (lambda h: Decayed(q[h], k[h], decay[h].log().expand(n, 1), "retention"), ops.retention(q, k, v, decay)),
        (lambda h: Decayed(q[h], k[h], gate[h], "GLA"), ops.gated_linear_attention(q, k, v, gate)),
    ]
    for matrix, out in pairs:
        for h in range(2):
            one = matrix(h)
            torch.testing.assert_close(one.times(v[h]), out[h], rtol=0, atol=1e-8)
            torch.testing.assert_close(one.dense() @ v[h], out[h], rtol=0, atol=1e-8)
            torch.testing.assert_close(one.transposed_times(v[h]), one.dense().mT @ v[h], rtol=0, atol=1e-8)


@pytest.mark.parametrize("n", SIZES)
def test_matrices_of_the_scan(n):
    """A channel at a time; the mean over channels; V-Mamba's sum over directions in the map's order."""
    c, s = 5, 3
    delta, A = random(4, n, c).abs(), -3 * random(4, c, s, seed=1).abs()
    B, C, x = random(4, n, s, seed=2), random(4, n, s, seed=3), random(n, seed=4)
    u = x[:, None].expand(4, n, c).contiguous()
    out = ops.selective_scan(u, delta, A, B, C)  # (4, n, c)
    scan = Scan(delta[0], B[0], C[0], A[0])
    torch.testing.assert_close(scan.times(x[:, None])[:, 0], out[0].mean(1), rtol=0, atol=1e-8)
    middle = int(delta[0].mean(0).argsort()[round(0.5 * (c - 1))])
    torch.testing.assert_close(scan.channel(0.5).times(x[:, None])[:, 0], out[0, :, middle], rtol=0, atol=1e-8)

    cells = torch.unique(grid_of(n), dim=0)
    m = len(cells)
    order = ops.cross_scan(cells)
    x = x[:m]
    scans = [Scan(delta[i, :m], B[i, :m], C[i, :m], A[i]) for i in range(4)]
    y = ops.selective_scan(x[order][..., None].expand(4, m, c).contiguous(), delta[:, :m], A, B[:, :m], C[:, :m]).mean(
        2
    )  # (4, m)
    total = sum(y[i][order[i].argsort()] for i in range(4))
    torch.testing.assert_close(CrossScan(scans, order).times(x[:, None])[:, 0], total, rtol=0, atol=1e-8)


def test_nystrom_factors_are_the_module():
    """Also where the module pads to a multiple of its landmarks. The convolution of the values is beside the mixing."""
    torch.manual_seed(0)
    module = NystromAttention(dim=12, dim_head=4, heads=3, num_landmarks=8).double().eval()
    x = random(1, 37, 12)

    class Model(Aggregator):
        def __init__(self):
            super().__init__(12, 2)
            self.attn = module

        def forward(self, bag):
            return Prediction(self.attn(x)[0, 0])

    heads = observe(Model(), lattice(37))
    v = module.to_qkv(F.pad(x, (0, 0, 3, 0))).chunk(3, dim=-1)[2].unflatten(2, (3, 4)).transpose(1, 2)  # (1, 3, 40, 4)
    mixed = torch.stack([head.mixing.times(v[0, h, 3:]) for h, head in enumerate(heads)])  # (3, 37, 4)
    out = module.to_out((mixed + module.res_conv(v)[0, :, 3:]).transpose(0, 1).flatten(1))
    torch.testing.assert_close(out, module(x)[0], rtol=0, atol=1e-8)
    sigma = heads[0].mixing.singular_values()
    torch.testing.assert_close(sigma, torch.linalg.svdvals(heads[0].mixing.dense()), rtol=0, atol=1e-12)
    assert len(sigma) == 37
    assert (sigma[8:] < 1e-12).all(), "at most as many as there are landmarks"


def test_attention_inside_regions_is_block_diagonal():
    """Padded regions in two calls, as HIPT makes them."""
    q, k, v = (random(3, 2, 6, 4, seed=seed) for seed in range(3))  # (regions, heads, tokens, d)
    seen = torch.arange(6) < torch.tensor([[6], [4], [1]])
    mask = seen[:, None, None]
    made = []

    class Model(Aggregator):
        def __init__(self):
            super().__init__(5, 2)
            self.layer = nn.Identity()

        def forward(self, bag):
            made.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
            made.append(F.scaled_dot_product_attention(q[:1], k[:1], v[:1]))
            return Prediction(self.layer(torch.zeros(2)))

    heads = observe(Model(), lattice(5))
    assert [head.mixing.n for head in heads] == [6 + 4 + 1 + 6] * 2
    for h, head in enumerate(heads):
        own = torch.cat([*(v[r, h][seen[r]] for r in range(3)), v[0, h]])
        want = torch.cat([*(made[0][r, h][seen[r]] for r in range(3)), made[1][0, h]])
        torch.testing.assert_close(head.mixing.times(own), want, rtol=0, atol=1e-8)
        dense = torch.cat([head.mixing.rows(i, i + 3) for i in (0, 3, 6, 9, 12)] + [head.mixing.rows(15, 17)])
        torch.testing.assert_close(dense, torch.block_diag(*head.mixing.parts))
        torch.testing.assert_close(head.mixing.singular_values(), torch.linalg.svdvals(dense), rtol=0, atol=1e-12)


KINDS = {
    "full-attention": {"full attention"},
    "longmil": {"window", "full attention"},
    "longmil-retnet": {"window", "retention"},
    "longmil-gla": {"window", "gated linear attention"},
    "longmil-mamba-random": {"window", "selective scan"},
    "longmil-mamba-single": {"window", "selective scan"},
    "longmil-vmamba": {"window", "selective scan", "cross scan"},
    "retnet": {"retention"},
    "gla": {"gated linear attention"},
    "mamba-random": {"selective scan"},
    "mamba-single": {"selective scan"},
    "vmamba": {"selective scan", "cross scan"},
    "transmil": {"Nyström"},
    "hipt": {"regions"},
    "rrt": {"regions"},
    "dgrmil": {"Nyström"},
    "mambamil": {"selective scan"},
}
SMALL = {"transmil": "transmil[hidden=16,heads=2,landmarks=8]", "hipt": "hipt[dim=24,heads=2,region=4]", "rrt": "rrt[hidden=16]"}


@pytest.mark.parametrize("name", sorted(entry.name for entry in plugins.entries() if entry.name != "gigapath-pretrained"))
def test_models_are_read_without_changing_them(name):
    text = SMALL.get(name, f"{name}[dim=16]" if name in KINDS else name)
    torch.manual_seed(0)
    model = plugins.resolve(text).build(5, 2).eval()
    bag = lattice(70)
    if name not in KINDS:
        if model.trained_by_gradient:
            model.prepare([lattice(40, seed) for seed in range(6)], torch.Generator().manual_seed(0))
        else:
            model.fit([bag, lattice(30, 1)], [torch.tensor(0), torch.tensor(1)])
        with pytest.raises(MilbenchError, match="no layer mixes tokens"):
            observe(model, bag)
        return
    with torch.no_grad():
        before = model(bag).logits
    heads = observe(model, bag)
    with torch.no_grad():
        assert torch.equal(model(bag).logits, before)
    assert {head.mixing.kind for head in heads} == KINDS[name]
    assert len({(head.layer, head.head) for head in heads}) == len(heads)
    modules = dict(model.named_modules())
    assert all(head.layer in modules for head in heads)
    # torch has no public way to ask for hooks, and one that is left behind would slow down every later call
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules.values())


def test_what_is_observed_is_what_the_model_uses():
    """Full attention with two heads, recomputed from the layer's own weights."""
    torch.manual_seed(0)
    model = plugins.resolve("full-attention").entry.cls(5, 2, dim=16, heads=2, positions="none").eval()
    bag = lattice(30)
    first, second = observe(model, bag)[:2]
    block = model.blocks[0]
    q, k, _ = block.mixer.qkv(block.norm(model.project(bag.features))).detach().double().chunk(3, dim=1)
    for head, at in ((first, slice(0, 8)), (second, slice(8, 16))):
        want = (q[:, at] @ k[:, at].T / math.sqrt(8)).softmax(1)
        torch.testing.assert_close(head.mixing.dense(), want, rtol=0, atol=1e-6)


# Known answers.


def test_constant_scores_have_rank_one():
    found = rank.numbers(Softmax(torch.ones(60, 3, dtype=torch.float64), random(1, 3).expand(60, 3)))
    assert (found.rank.low, found.rank_float64, found.rank_1e_4.high) == (1, 1, 1)
    assert found.effective_rank.low == pytest.approx(1, abs=1e-9)
    assert found.stable_rank.low == pytest.approx(1, abs=1e-12)
    assert found.sparsity == 0


def test_a_window_of_radius_zero_is_the_identity():
    n = 60
    line = torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.int64)], dim=1)
    found = rank.numbers(Window(random(n, 4), random(n, 4, seed=1), line, 0.0))
    assert (found.rank.low, found.rank_float64) == (n, n)
    assert found.effective_rank.low == pytest.approx(n)
    assert found.stable_rank.low == pytest.approx(n)
    assert found.sparsity == pytest.approx(1 - 1 / n)


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 4.0])
def test_bands_have_a_rank_of_at_least_n_minus_b(sharpness):
    q, k = sharpness * random(300, 8), random(300, 8, seed=1)
    rows = rank.bands(Softmax(q, k), (0, 1, 3, 16, 64, 200), tokens=256)
    assert [row["b"] for row in rows] == [0, 1, 3, 16, 64, 200]
    assert all(row["rank"] >= row["bound"] == 256 - row["b"] and row["holds"] for row in rows)
    assert rows[0]["rank"] == 256
    if sharpness == 0:
        assert rows[4]["rank"] < 256, "a uniform band loses directions, so the bound is not idle"


def test_blocks_of_even_shares():
    """Two blocks of 1/2 and 1/3: one direction each."""
    found = rank.numbers(Regions([torch.full((2, 2), 1 / 2), torch.full((3, 3), 1 / 3)], 1))
    assert (found.rank.low, found.rank_float64) == (2, 2)
    assert found.effective_rank.low == pytest.approx(2)
    assert found.stable_rank.low == pytest.approx(2)
    assert found.sparsity == pytest.approx(1 - 13 / 25)


def test_numbers_are_of_shares():
    """Scaling rows changes nothing, the sign of entries counts; entropy and norms by hand."""
    matrix = random(20, 20)
    share = (matrix / matrix.abs().sum(1, keepdim=True)).numpy()
    sigma = np.linalg.svd(share, compute_uv=False)
    p = sigma / sigma.sum()
    for scale in (1.0, 1e3):
        found = rank.numbers(Plain(matrix * scale * torch.linspace(0.1, 2, 20)[:, None]))
        np.testing.assert_allclose(found.sigma, sigma, atol=1e-12)
        assert found.effective_rank.low == pytest.approx(math.exp(-(p * np.log(p)).sum()))
        assert found.stable_rank.low == pytest.approx((share**2).sum() / sigma[0] ** 2)


def test_tolerances():
    """A direction between the tolerances of float32 and float64 counts in one rank only."""
    base = torch.linalg.qr(random(32, 32)).Q
    sigma = torch.ones(32, dtype=torch.float64)
    sigma[30], sigma[31] = 1e-5, 1e-8
    matrix = base @ torch.diag(sigma) @ torch.linalg.qr(random(32, 32, seed=1)).Q

    class Orthogonal(Plain):
        stochastic = True  # taken as it is

    found = rank.numbers(Orthogonal(matrix))
    assert found.tolerance == pytest.approx(32 * 2**-23)
    assert (found.rank.low, found.rank_float64, found.rank_1e_4.low) == (31, 32, 30)


def ten_matrices():
    n = 200
    q, k, gate = random(n, 12).float(), random(n, 12, seed=1).float(), F.logsigmoid(random(n, 12, seed=2) + 3).float()
    f = random(n, 7).float()
    grid = torch.stack([torch.arange(n) % 20, torch.arange(n) // 20], dim=1)
    return {
        "softmax": Softmax(q, k),
        "almost even": Softmax(0.03 * q, k),
        "almost even, float64": Softmax(0.03 * q.double(), k.double()),
        "sharp": Softmax(4 * q, k),
        "window": Window(q, k, grid, 3.0),
        "gated": Decayed(q, k, gate, "GLA"),
        "retention": Decayed(q, k, torch.full((n, 1), -0.02), "retention"),
        "scan": Scan(gate.exp() * 0.1, q[:, :4], k[:, :4], -random(12, 4, seed=3).abs().float()),
        "Nyström": Factors(f.softmax(1), f.mT.softmax(1), 7),
        "noise": Plain(f @ f.mT + 1e-4 * random(n, n, seed=4).float()),
    }


@pytest.mark.parametrize("name", ten_matrices())
@pytest.mark.parametrize("directions", [12, 60])
def test_the_estimate_keeps_its_bound(name, directions):
    matrix = ten_matrices()[name]
    truth = rank.numbers(Plain(matrix.shares().dense().double()))
    found = rank.bounded(matrix.shares(), directions)
    assert not found.exact
    assert len(found.sigma) == directions
    assert ((truth.sigma[:directions] - found.sigma).abs() <= found.residual).all()
    assert found.sparsity == pytest.approx(truth.sparsity, abs=2e-4), "all rows are counted"
    for number in ("effective_rank", "stable_rank", "rank_1e_4"):
        assert getattr(found, number).low <= getattr(truth, number).low * (1 + 1e-5), number
        assert getattr(truth, number).low <= getattr(found, number).high * (1 + 1e-5), number
    assert found.rank.low <= (truth.sigma > found.tolerance * (1 - 1e-3)).sum()
    assert found.rank.high >= (truth.sigma > found.tolerance).sum()
    if name in ("almost even", "Nyström") and directions == 60:
        assert found.residual < 3e-4, "the bound says something where few directions suffice"
        assert found.rank_1e_4.low == truth.rank_1e_4.low
        assert found.effective_rank.high - found.effective_rank.low < 0.1
    if name == "Nyström":
        assert found.rank.low == found.rank.high == truth.rank.low == 7


def test_above_the_limit_the_estimate_is_taken():
    matrix = Softmax(random(50, 4), random(50, 4, seed=1))
    assert rank.numbers(matrix, exact_to=50).exact
    found = rank.numbers(matrix, exact_to=49, directions=10)
    assert (found.exact, found.rank_float64, len(found.sigma)) == (False, None, 10)
    assert f"none off by more than {found.residual:.2g}" in str(found)


def test_windows_beyond_the_limit(monkeypatch):
    """Separate pieces of tissue stay exact; of one large piece, tiles give a lower bound that the directions alone do not."""
    monkeypatch.setattr(mixing, "EXACT", 130)
    n = 240
    cells = torch.stack([torch.arange(n) % 12, torch.arange(n) // 12], dim=1)
    q, k = random(n, 6), random(n, 6, seed=1)
    apart = cells.clone()
    apart[120:, 1] += 9
    two = Window(q, k, apart, 2.0)
    found = rank.numbers(two, exact_to=130, directions=20)
    assert found.exact
    torch.testing.assert_close(found.sigma, torch.linalg.svdvals(two.dense()), rtol=0, atol=1e-12)

    one = Window(q, k, cells, 2.0)
    sigma, dense = torch.linalg.svdvals(one.dense()), one.dense()
    pieces, leak = one.pieces(0.0)
    assert leak == 0
    assert all(len(piece) <= 130 for piece in pieces)
    together = torch.cat([torch.linalg.svdvals(piece) for piece in pieces]).sort(descending=True).values
    assert (together <= sigma[: len(together)] + 1e-12).all()
    assert sum(piece.shape[1] for piece in pieces) == (~((dense[:120] != 0).any(0) & (dense[120:] != 0).any(0))).sum()
    found = rank.numbers(one, exact_to=130, directions=20)
    assert not found.exact
    assert 20 < found.rank.low <= (sigma > found.tolerance).sum() <= found.rank.high


@pytest.mark.parametrize("kind", ["gated", "scan"])
def test_mixing_that_forgets_beyond_the_limit(monkeypatch, kind):
    """Tiles of a causal matrix bound its rank and effective rank from below, where the directions alone say little."""
    monkeypatch.setattr(mixing, "TILE", 80)
    monkeypatch.setattr(mixing, "GAPS", (2, 30, 40))
    n = 300
    if kind == "gated":
        matrix = Decayed(random(n, 8), random(n, 8, seed=1), F.logsigmoid(random(n, 8, seed=2) - 0.5), "GLA").shares()
    else:
        A = -torch.ones(6, 4, dtype=torch.float64)
        matrix = Scan(0.7 + random(n, 6, seed=3).abs(), random(n, 4), random(n, 4, seed=1), A).shares()
    dense = matrix.dense()
    sigma = torch.linalg.svdvals(dense)
    truth = rank.numbers(Plain(dense))
    pieces, leak = matrix.pieces(1e-4)
    assert 0 < leak <= 1e-4
    assert [tuple(piece.shape) for piece in pieces] == [(80, 50)] * 3 + [(60, 60)], "the smallest gap that leaks too little"
    beside = torch.cat([dense[80 * t : 80 * t + 80][:, [i for i in range(80 * t) if i % 80 < 50]].flatten() for t in range(4)])
    assert leak == pytest.approx(float(beside.norm()), rel=1e-9)
    together = torch.cat([torch.linalg.svdvals(piece) for piece in pieces]).sort(descending=True).values
    assert (together - leak <= sigma[: len(together)] + 1e-12).all()
    assert matrix.pieces(0.0) == ([], 0.0)

    found = rank.numbers(matrix, exact_to=100, directions=20)
    assert 150 < found.rank.low <= truth.rank.low <= found.rank.high
    assert 3 * 20 < found.effective_rank.low <= truth.effective_rank.low <= found.effective_rank.high


def test_no_more_than_a_block_of_rows_exists(monkeypatch):
    monkeypatch.setattr(mixing, "AT_A_TIME", 1000)
    seen = []

    class Watched(Softmax):
        def rows(self, start, stop):
            seen.append(stop - start)
            return super().rows(start, stop)

    rank.numbers(Watched(random(100, 4), random(100, 4, seed=1)), exact_to=50, directions=5)
    assert max(seen) == 10


def test_images_average_the_shares():
    matrix = random(50, 50).abs()
    matrix /= matrix.sum(1, keepdim=True)
    picture = rank_figures.image(Plain(matrix), pixels=8)
    at = [i * 8 // 50 for i in range(50)]
    rows, columns = ([i for i in range(50) if at[i] == p] for p in (3, 6))
    assert picture[3, 6] == pytest.approx(50 * float(matrix[rows][:, columns].mean()))
    np.testing.assert_allclose(rank_figures.image(Plain(matrix[:5, :5]), pixels=8), 5 * matrix[:5, :5])


# The command.


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_rank_of_a_stored_trial(tmp_path, monkeypatch):
    """Fresh beside trained, recomputed here from the stored weights."""
    dataset = lattice_dataset()
    id = trained_trial(tmp_path, monkeypatch, "full-attention[dim=16]", dataset, standardise=True)
    told = milbench("analyze", "rank", "--trial", id[:8], "--results", tmp_path, "--name", "x", "--threads", 1)
    assert "Full Attention (dim=16), s10, blocks.0.mixer, head 0, trained: n = 50, rank" in told
    folder = tmp_path / "analysis"
    assert {p.name for p in folder.iterdir()} == {
        f"{kind}-x.{ending}" for kind in ("rank", "matrices", "spectra", "bands") for ending in ("png", "pdf", "csv", "json")
    }
    rows = table(folder / "rank-x.csv")
    assert [(r["layer"], r["when"]) for r in rows] == [
        (f"blocks.{i}.mixer", when) for when in ("fresh", "trained") for i in range(2)
    ]
    one = subjects.Trained.find(subjects.Store(tmp_path), id)
    model, bag = one.model(), one.bag("s10")
    torch.testing.assert_close(bag.features, one.standardise(dataset.read("s10").features))
    block = model.blocks[0]
    q, k, _ = block.mixer.qkv(block.norm(model.project(bag.features))).detach().chunk(3, dim=1)
    q, k = (ops.rope_2d_naive(t[None].double(), bag.grid())[0].numpy() for t in (q, k))
    score = np.exp(q @ k.T / 4)
    share = score / score.sum(1, keepdims=True)
    sigma = np.linalg.svd(share, compute_uv=False)
    p = sigma / sigma.sum()
    trained = rows[2]
    assert (trained["n"], trained["d"], trained["exact"], trained["trial"]) == ("50", "16", "True", id)
    assert float(trained["effective_rank"]) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)
    assert float(trained["stable_rank"]) == pytest.approx((share**2).sum() / sigma[0] ** 2, rel=1e-5)
    assert float(trained["sparsity"]) == (share <= 1e-4 / 50).mean()
    assert int(trained["rank"]) == (sigma > 50 * 2**-23 * sigma[0]).sum()
    assert rows[0]["effective_rank"] != trained["effective_rank"]
    picture = [r for r in table(folder / "matrices-x.csv") if (r["what"], r["layer"]) == ("trained", "blocks.0.mixer")]
    np.testing.assert_allclose([[float(r[f"column_{c}"]) for c in range(50)] for r in picture], 50 * share, rtol=1e-4)


@pytest.mark.slow
def test_rank_of_fresh_models_on_a_feature_file(tmp_path):
    path = feature_file(tmp_path / "slide.h5", lattice(60), patch_size_level0=32)
    milbench(
        "analyze", "rank", "--aggregator", "longmil[dim=8,radius=2]", "--aggregator", "retnet[dim=16]", "--features", path,
        "--results", tmp_path, "--threads", 1, "--exact-to", 40, "--directions", 8,
    )  # fmt: skip
    rows = table(tmp_path / "analysis" / "rank-longmil-dim-8-radius-2.0-retnet-dim-16-slide.csv")
    assert [r["kind"] for r in rows] == ["window"] * 2 + ["full attention"] + ["retention"] * 8
    assert {(r["aggregator"], r["when"]) for r in rows} == {("longmil[dim=8,radius=2.0]", "fresh"), ("retnet[dim=16]", "fresh")}
    assert all(float(r["rank_low"]) <= float(r["rank_high"]) for r in rows)
    assert {r["exact"] for r in rows if r["kind"] == "retention"} == {"False"}


def test_feature_files_of_clam_and_trident(tmp_path):
    bag = lattice(20)
    trident = subjects.read_features(feature_file(tmp_path / "trident" / "a.h5", bag, patch_size_level0=32))
    assert (trident.slide_id, trident.step) == ("a", 32.0)
    torch.testing.assert_close(trident.features, bag.features)
    clam = feature_file(tmp_path / "h5_files" / "b.h5", bag)
    with pytest.raises(MilbenchError, match="give --step in level-0 pixels"):
        subjects.read_features(clam)
    assert subjects.read_features(clam, 16.0).step == 16
    exchanged = subjects.read_features(clam, 16.0, swap_xy=True)
    torch.testing.assert_close(exchanged.coords, subjects.read_features(clam, 16.0).coords.flip(1))
    torch.testing.assert_close(exchanged.features, bag.features)
    feature_file(tmp_path / "patches" / "b.h5", bag, patch_size=256, patch_level=1, downsample=np.array([2.0, 2.0]))
    assert subjects.read_features(clam).step == 512
    with pytest.raises(MilbenchError, match=r"none.h5: no .h5, .pt or .npz file"):
        subjects.read_features(tmp_path / "none.h5")


def test_what_cannot_be_analysed_is_said(tmp_path, monkeypatch):
    dataset = lattice_dataset()
    bare = trained_trial(tmp_path, monkeypatch, "abmil[hidden=4]", dataset, keep_model=False)
    kept = trained_trial(tmp_path, monkeypatch, "abmil[hidden=8]", dataset)
    path = feature_file(tmp_path / "slide.h5", lattice(20), patch_size_level0=32)
    for words, told in (
        ((), "say which model"),
        (("--trial", "nope"), "no trial begins with 'nope'"),
        (("--trial", ""), "several trials begin with ''"),
        (("--trial", bare), "kept no weights"),
        (("--trial", kept), "ABMIL: no layer mixes tokens"),
        (("--trial", kept, "--slide", "s99"), "unknown slide of dataset lattice 's99'"),
        (("--aggregator", "longmil"), "--features FILE, or --dataset"),
        (("--aggregator", "longmil", "--features", path, "--slide", "a"), "not from both"),
    ):
        assert told in milbench("analyze", "rank", *words, "--results", tmp_path, "--threads", 1, code=2)
    assert not (tmp_path / "analysis").exists()


def test_trials_of_one_method_are_told_apart():
    trials = [
        SimpleNamespace(variant=SimpleNamespace(label=label), spec=SimpleNamespace(trial_id=id))
        for label, id in (("AB-MIL", "0123456789"), ("CLAM", "1111111111"), ("AB-MIL", "fedcba9876"))
    ]
    assert subjects.labels(trials) == ["AB-MIL (012345)", "CLAM", "AB-MIL (fedcba)"]
