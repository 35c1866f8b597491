"""What an aggregator costs: counted against formulas worked by hand, measured in processes that may die, stopped at limits."""

import csv
import json
import math
import sys

import pytest
import torch
from scipy.fft import next_fast_len

from milbench import plugins
from milbench.ops.pooling import pool_2x2
from milbench.profiling import aggregators as cost
from milbench.profiling import measure
from tests.builders.command import milbench

D, C = 16, 3  # widths of features and of logits
N = 300
E = 32  # width of a token


def counted(name, n=N):
    torch.manual_seed(0)
    model = plugins.resolve(name).build(D, C).eval()
    return cost.count_flops(model, cost.bag_of(n, D))


def pairs_within(grid, radius):
    return int((torch.cdist(grid.double(), grid.double()) <= radius).sum())


def block(n, mixing):
    """A transformer block: queries, keys and values, the mixing, the output, and an FFN of four times the width."""
    return 2 * n * E * 3 * E + mixing + 2 * n * E * E + 2 * 2 * n * E * 4 * E


def retention(n, d_k, d_v, heads, chunk=128):
    """Products inside each chunk, of each chunk with the state, and of all but the last into the state."""
    sizes = [min(chunk, n - start) for start in range(0, n, chunk)]
    inside = sum(2 * c * c * (d_k + d_v) + 2 * c * d_k * d_v for c in sizes)
    return heads * (inside + sum(2 * c * d_k * d_v for c in sizes[:-1]))


def test_flops_of_pooling():
    assert counted("mean[hidden=20]") == 2 * N * D * 20 + 2 * 20 * C
    assert counted("max[hidden=20]") == 2 * N * D * 20 + 2 * N * 20 * C
    score = 2 * N * 20 * 8 * 2 + 2 * N * 8  # two branches, then one score
    assert counted("abmil[hidden=20,attention_dim=8]") == 2 * N * D * 20 + score + 2 * 20 * C


def test_flops_of_full_attention():
    everything = 2 * block(N, 4 * N * N * E)
    assert counted(f"full-attention[dim={E}]") == 2 * N * D * E + everything + 2 * E * C
    assert counted(f"full-attention[dim={E},heads=2]") == counted(f"full-attention[dim={E}]"), "heads share the width"


@pytest.mark.parametrize("radius", [0, 2, 3.5])
def test_flops_of_longmil(radius):
    grid = cost.bag_of(N, D).grid()
    m = len(pool_2x2(torch.zeros(N, 1), grid)[0])
    assert m < N / 2
    local = 2 * block(N, 4 * E * pairs_within(grid, radius))
    expected = 2 * N * D * E + local + block(m, 4 * m * m * E) + 2 * E * C
    assert counted(f"longmil[dim={E},radius={radius}]") == expected


def test_flops_of_linear_mixers():
    project, ffn, head = 2 * N * D * E, 2 * 2 * N * E * 4 * E, 2 * E * C
    mixer = 2 * N * E * (E + E + 2 * E + 2 * E) + 2 * N * 2 * E * E + retention(N, E // 4, 2 * E // 4, heads=4)
    assert counted(f"retnet[dim={E}]") == project + 2 * (mixer + ffn) + head
    inner, rank, states = 2 * E, math.ceil(E / 16), 16
    maps = 2 * N * (E * 2 * inner + inner * (rank + 2 * states) + rank * inner + inner * E)
    assert counted(f"mamba-single[dim={E}]") == project + 2 * (maps + 6 * N * inner * states) + head


def test_flops_of_a_long_convolution():
    """Three transforms of a length with room for twice the bag, and the kernel as a product of two arrays."""
    length, side = next_fast_len(2 * N - 1, real=True), math.isqrt(N - 1) + 1
    transforms = 3 * round(2.5 * E * length * math.log2(length))
    expected = 2 * N * D * E + 2 * E * side * side * 16 + transforms + 2 * N * E * 2 * E + 2 * E * C
    assert counted(f"s4mil[dim={E}]") == expected


@pytest.mark.parametrize("name", ["gigapath-random[depth=1,dim=48,heads=4]", "hipt[depth=1,dim=48]"])
def test_flops_see_fused_attention_that_plugins_call_themselves(monkeypatch, name):
    """Dilated attention and HIPT's regions use torch's CPU kernels, for which its counter has no formula."""
    whole = counted(name, 64)
    monkeypatch.setattr(cost, "sdpa_flop_count", lambda *shapes: 0)
    assert counted(name, 64) < whole


def test_counting_replaces_nothing_afterwards():
    model = plugins.resolve(f"longmil[dim={E}]").build(D, C).eval()
    bag = cost.bag_of(64, D)
    before = model(bag).logits
    cost.count_flops(model, bag)
    assert torch.equal(model(bag).logits, before)


def test_one_measurement():
    row = cost.measure_one("mean[hidden=20]", 256, cost.Setting(D, threads=1))
    assert (row.n, row.parameters) == (256, D * 20 + 20 + 20 * C + C)
    assert row.flops == 2 * 256 * D * 20 + 2 * 20 * C
    assert row.train_seconds > 0
    assert row.predict_seconds > 0
    assert row.stopped == ""
    neighbours = cost.measure_one("knn-mean", 256, cost.Setting(D, threads=1))
    assert (neighbours.parameters, neighbours.train_seconds > 0) == (0, True)


TROUBLE = """
import os
from milbench import Aggregator, Prediction, register
import torch

@register("dies", label="Dies")
class Dies(Aggregator):
    def __init__(self, in_dim, n_out):
        super().__init__(in_dim, n_out)
        self.head = torch.nn.Linear(in_dim, n_out)

    def forward(self, bag):
        if len(bag) > 600:
            os._exit(7)
        return Prediction(logits=self.head(bag.features.mean(0)))

@register("hungry", label="Hungry")
class Hungry(Dies):
    def forward(self, bag):
        self.held = torch.zeros(len(bag), 2**20)  # 4 MiB for each patch
        return Prediction(logits=self.head(bag.features.mean(0)) + 0 * self.held[0, 0])

@register("wrong", label="Wrong")
class Wrong(Dies):
    def forward(self, bag):
        raise ValueError("no such thing")
"""


@pytest.mark.slow
def test_what_happens_to_a_process_is_said(tmp_path):
    path = tmp_path / "trouble.py"
    path.write_text(TROUBLE)
    plugins.discover([path])
    setting = cost.Setting(4, threads=1, memory=2.0**31, plugin_files=(str(path),))
    assert cost.in_a_process("dies", 700, setting).stopped == "its process died (exit code 7)"
    fine = cost.in_a_process("dies", 500, setting)
    assert (fine.stopped, fine.parameters, fine.flops) == ("", 4 * C + C, 2 * 4 * C)
    assert cost.in_a_process("wrong", 64, setting).stopped == "ValueError: no such thing"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited and measured on Linux only")
def test_memory_is_measured_and_limited(tmp_path):
    def take(megabytes):
        return lambda: torch.zeros(megabytes * 2**18).sum().item()

    assert measure.extra_bytes(take(100)) == pytest.approx(100 * 2**20, rel=0.1)
    path = tmp_path / "trouble.py"
    path.write_text(TROUBLE.replace("2**20)", "2**18 * (1 + 30 * (len(bag) > 512)))"))  # 1 MiB for each patch, or 31
    plugins.discover([path])
    setting = cost.Setting(4, threads=1, memory=2.0**31, plugin_files=(str(path),))
    assert cost.in_a_process("hungry", 600, setting).stopped == "needs more than 2 GiB"


def rows(seconds, memory=lambda n: 2**26, sizes=(1000, 2000, 4000, 8000, 16000, 32000)):
    return [cost.Row("m", "M", n, seconds(n), seconds(n) / 3, memory(n), 10, 1) for n in sizes]


def test_exponents_are_slopes_over_the_largest_sizes():
    measured = rows(lambda n: 1.0 if n < 4000 else 3e-9 * n**1.5, lambda n: n**2)
    assert cost.exponents(measured, "train_seconds") == {"m": pytest.approx(1.5)}
    assert cost.exponents(measured, "peak_bytes") == {"m": pytest.approx(2.0)}
    assert cost.exponents(measured[:2], "train_seconds") == {}


@pytest.mark.parametrize(
    ("seconds", "memory", "tried", "said"),
    [
        (lambda n: (n / 1000) ** 2, 0, 3, "would take about 64 s > limit of 20 s"),  # 1, 4, 16 s
        (lambda n: 31.0 if n == 4000 else 1.0, 0, 3, "31.0 s > limit of 20 s"),  # nobody could foresee it
        (lambda n: 1.0, 2**28, 4, "would take about 4 GiB > limit of 3 GiB"),  # 0.25, 0.5, 1, 2 GiB
        (lambda n: 1e-3 * n / 1000, 0, 6, ""),
    ],
)
def test_a_method_stops_at_its_limits(monkeypatch, seconds, memory, tried, said):
    asked = []

    def pretend(name, n, setting):
        asked.append(n)
        return cost.Row(name, name, n, seconds(n), 0.1, memory * n // 1000, 1, 1)

    monkeypatch.setattr(cost, "in_a_process", pretend)
    found = list(cost.profile(["mean"], [32000, 1000, 2000, 4000, 8000, 16000], cost.Setting(seconds=20, memory=3 * 2.0**30)))
    assert asked == [1000, 2000, 4000, 8000, 16000, 32000][:tried]
    assert found[-1].stopped == said
    assert all(row.stopped == "" for row in found[:-1])
    if said.startswith("would"):
        assert (found[-1].n, found[-1].train_seconds) == (2 * asked[-1], None)


def test_the_figures_mark_the_cohorts(tmp_path):
    markers = cost.cohort_sizes()
    assert markers["TCGA-BRCA 40x"] == 50_000
    assert markers["TCGA-BRCA 20x"] == 12_500
    assert markers["BRACS 40x"] == 4 * markers["BRACS 20x"]
    time, memory = cost.figures(rows(lambda n: 1e-4 * n), cost.Setting(), "A machine.")
    assert [row["train_seconds"] for row in time.rows[:2]] == pytest.approx([0.1, 0.2])
    assert time.rows[0]["exponent"] == pytest.approx(1.0)
    assert {row["label"]: row["n"] for row in memory.rows if row["label"] in markers} == markers
    assert time.caption.startswith("A machine. Width 384, 1 CPU thread,")
    one, two = time.save(tmp_path / "1"), time.save(tmp_path / "2")
    assert one.pdf.read_bytes() == two.pdf.read_bytes()


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "others", lambda: None)
    methods, sizes = ("--aggregators", "mean[hidden=8],gigapath-pretrained"), ("--sizes", "64,128,256")
    told = json.loads(
        milbench("profile", "aggregators", *methods, *sizes, "--in-dim", 4, "--threads", 1, "--results", tmp_path, "--json")
    )
    assert told["noise"] == {}
    with (tmp_path / "analysis" / "efficiency.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == cost.COLUMNS
    assert [(line["aggregator"], line["n"]) for line in lines] == [
        ("mean[hidden=8]", "64"), ("mean[hidden=8]", "128"), ("mean[hidden=8]", "256"), ("gigapath-pretrained", "64"),
    ]  # fmt: skip
    assert [line["flops"] for line in lines[:3]] == [str(2 * n * 4 * 8 + 2 * 8 * 3) for n in (64, 128, 256)]
    assert "weights are gated" in lines[3]["stopped"] or "no weights" in lines[3]["stopped"]
    assert told["exponents"]["flops"]["mean[hidden=8]"] == pytest.approx(1.0, abs=0.01)
    assert {path.name for path in (tmp_path / "analysis").iterdir()} == {
        "efficiency.csv", *(f"efficiency-{name}.{kind}" for name in ("time", "memory") for kind in ("pdf", "png", "csv", "json")),
    }  # fmt: skip


def test_a_busy_machine_is_refused_and_bad_sizes_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "others", lambda: "load average 3.00")
    command = ("profile", "aggregators", "--results", tmp_path)
    assert "nothing was measured: load average 3.00" in milbench(*command, code=2)
    assert "--sizes '1k': write numbers" in milbench(*command, "--sizes", "1k", "--noisy", code=2)
    assert list(tmp_path.iterdir()) == []
