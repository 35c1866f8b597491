"""Rehearsals: stand-ins like the real thing, few steps, estimates that follow from them, and nothing that passes for a result."""

import json
import math
import re
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from milbench import Aggregator, MilbenchError, Prediction, datasets, register, rehearsal, suites
from milbench.datasets import ENCODERS
from milbench.errors import NotHere
from milbench.rehearsal import Cost
from milbench.trials import plan as plans
from milbench.trials.run import run_trial
from milbench.trials.store import Store
from tests.builders.command import milbench
from tests.builders.datasets import toy_dataset
from tests.builders.results import finished

SUITE = """
title = "In small"
[grid]
dataset = {datasets}
encoder = ["hand-crafted"]
split = ["{split}"]
seed = [0, 1]
aggregator = {aggregators}
[table]
name = "small"
metrics = ["macro_auc"]
"""


def suite(folder, aggregators, names=("toy",), split="one"):
    path = folder / "small.toml"
    path.write_text(SUITE.format(datasets=json.dumps(list(names)), aggregators=json.dumps(list(aggregators)), split=split))
    return path


@pytest.fixture
def toy(monkeypatch):
    """A dataset of 20 bags that is here, with known sizes of 100 to 2,000 instances."""
    sizes = {f"s{i:02d}": 100 * (1 + i) for i in range(20)}
    data = replace(toy_dataset(20), sizes=lambda: sizes)
    monkeypatch.setattr(datasets, "load", lambda *where, **more: data)
    rehearsal.stand_in.cache_clear()
    yield data
    rehearsal.stand_in.cache_clear()


@pytest.mark.parametrize(
    ("name", "unit", "counts", "split", "parts"),
    [
        ("bracs", "slide", (265, 89, 193), "official", [(395, 65, 87)]),
        ("tcga-brca", "slide", (831, 210), "hipt10", [(845, 98, 98)] * 10),
        ("tcga-brca-survival", "case", (826, 130), "hipt5", [(765, 0, 191)] * 5),
        ("tcga-coadread-survival", "case", (260, 80), "hipt5", [(272, 0, 68)] * 5),
        ("tcga-stad-survival", "case", (210, 139), "hipt5", [(279, 0, 70)] * 5),
    ],
)
def test_made_up_cohorts_have_the_published_counts(name, unit, counts, split, parts):
    data = rehearsal.stand_in(8, name, "uni", 20, 256)
    strata = Counter(s.stratum for s in data.samples)
    assert (data.unit, tuple(strata[c] for c in range(len(counts)))) == (unit, counts)
    folds = data.folds(split)
    assert len(folds) == len(parts)
    for fold, expected in zip(folds, parts, strict=True):
        assert sum(map(len, fold)) == sum(counts)
        assert all(abs(len(ids) - want) <= 1 for ids, want in zip(fold, expected, strict=True))
    assert data.in_dim == ENCODERS["uni"]
    assert data.read(data.samples[0].id).check(1024)


def test_made_up_bags_lie_around_the_papers_size_at_every_magnification_and_patch_size():
    mean = lambda *where: np.mean(list(rehearsal.stand_in(8, *where).sizes().values()))  # noqa: E731
    assert mean("tcga-brca", "hipt", 40, 256) == pytest.approx(50_000, rel=0.05)
    assert mean("tcga-brca", "hipt", 20, 256) == pytest.approx(12_500, rel=0.05)
    base = mean("bracs", "uni", 20, 224)
    assert mean("bracs", "uni", 40, 224) == pytest.approx(4 * base, rel=1e-3)
    assert mean("bracs", "uni", 20, 448) == pytest.approx(base / 4, rel=1e-3)


def test_stand_ins_of_a_dataset_that_is_here_have_its_ids_sizes_and_splits():
    real, fake = datasets.load("ucsb-breast", "hand-crafted"), rehearsal.stand_in(2, "ucsb-breast", "hand-crafted")
    assert fake.samples == real.samples
    assert fake.folds("kfold5") == real.folds("kfold5")
    for s in real.samples[:5]:
        bag = fake.read(s.id)
        assert (len(bag), bag.features.shape[1], bag.coords) == (max(16, round(len(real.read(s.id)) / 2)), 708, None)
        assert torch.equal(bag.features, fake.read(s.id).features)
    assert fake.fingerprint.startswith("REHEARSAL:2:")
    with pytest.raises(MilbenchError, match="unknown dataset 'bracks'"):
        rehearsal.stand_in(2, "bracks", "uni")


def test_a_dataset_that_is_here_without_its_published_splits_gets_stand_ins_of_them(monkeypatch):
    own = replace(toy_dataset(547), name="bracs", sizes=lambda: {f"s{i:02d}": 50 for i in range(547)})
    monkeypatch.setattr(datasets, "load", lambda *where, **more: own)
    data = rehearsal.stand_in(2, "bracs", "made-for-this-test")
    assert [len(part) for part in data.folds("official")[0]] == [395, 65, 87]
    assert data.folds("one") == own.folds("one")


def test_a_dataset_of_which_nothing_is_known_stays_absent(monkeypatch):
    def absent(*where, **more):
        raise NotHere("no features of mine")

    monkeypatch.setattr(datasets, "load", absent)
    with pytest.raises(NotHere, match="no features of mine"):
        rehearsal.stand_in(2, "mine", "uni")


def test_stand_in_tissue_lies_on_the_lattice_and_in_one_piece():
    bag = rehearsal.stand_in(8, "bracs", "uni", 20, 224).read("bracs-0000")
    assert bag.step == 448
    cells = bag.grid()
    assert len(cells.unique(dim=0)) == len(bag)
    box = cells.amax(0) - cells.amin(0) + 1
    assert 0.3 < len(bag) / int(box.prod()) < 0.9, "ragged, neither full nor scattered"


def points(cost, n1, n2, many=4):
    return [[n, 9.9 if i == 0 else cost(n)] for n in (n1, n2) for i in range(many)]


def test_a_cost_through_two_sizes():
    n = np.float64(1000)
    least, most, exponent = Cost.between(points(lambda n: 0.01 + 2e-4 * n, 100, 400), "n")
    assert float(least.seconds(n)) == pytest.approx(0.21)
    assert float(most.seconds(n)) == pytest.approx(0.09 * 1000 / 400)
    assert exponent == pytest.approx(math.log(0.09 / 0.03) / math.log(4))

    square = points(lambda n: n * (1e-5 + 1e-6 * n), 100, 400)
    for declared in ("n^2", "n radius^2 + (n/4)^2", "256 n + regions^2", "?"):
        least, most, _ = Cost.between(square, declared)
        assert least == most
        assert float(most.seconds(n)) == pytest.approx(1000 * (1e-5 + 1e-3))
    for linear in ("n", "n radius^2", "n landmarks", "n log n"):
        least, most, _ = Cost.between(square, linear)
        assert least.square == most.square == 0

    least, most, _ = Cost.between(points(lambda n: 0.02, 100, 400), "n^2")
    assert float(least.seconds(n)) == pytest.approx(0.02)
    assert float(most.seconds(n)) == pytest.approx(0.05)
    least, most, _ = Cost.between(points(lambda n: 1e-9 * n**3, 100, 400), "n^2")
    assert min(most.seconds(np.array([1.0, 50, 1e4]))) >= 0, "never negative, however steep"
    assert math.isnan(Cost.between(points(lambda n: 0.02, 16, 16), "n")[2])


def jobs_of(path, load):
    return suites.expand(suites.load(str(path)), load=load)[1]


def result_of(job, train, predict, peak=((10, 3e8), (40, 3.3e8)), prepare=0.0):
    found = {"train": train, "predict": predict, "peak": [list(p) for p in peak], "prepare_seconds": prepare}
    return finished(job.spec, cost={"parameters": 1000, "rehearsal": found})


def test_needs_are_the_measured_steps_over_the_real_sizes(toy, tmp_path):
    load = partial(rehearsal.stand_in, 50)
    jobs = jobs_of(suite(tmp_path, ["mean", "full-attention", "knn-mean", "max", "dsmil"]), load)
    chosen = rehearsal.distinct(jobs, 50)
    store = Store(tmp_path)
    first = {job.spec.aggregator: job for job in chosen.values()}
    linear, square = (lambda n: 0.01 + 1e-3 * n), (lambda n: n * (1e-4 + 1e-5 * n))
    store.write(result_of(first["mean"], points(linear, 10, 40), points(lambda n: 1e-3 * n, 10, 40, 2), prepare=0.5))
    store.write(result_of(first["full-attention"], points(square, 10, 40), points(square, 10, 40, 2)))
    store.write(result_of(first["knn-mean"], points(lambda n: 1e-3 * n, 10, 40), points(lambda n: 1e-3 * n, 10, 40, 2)))
    store.write(finished(first["max"].spec, status="skipped", reason="no"))
    store.write(finished(first["dsmil"].spec, status="oom", reason="no"))
    found = rehearsal.needs(jobs, chosen, store, 50)
    assert (found.trials, found.rehearsed, found.skipped, found.not_measured) == (10, 5, 2, 2)
    rows = {row.aggregator: row for row in found.rows}
    assert set(rows) == {"mean", "full-attention", "knn-mean"}

    n = {s: 100.0 * (1 + i) for i, s in enumerate(s.id for s in toy.samples)}
    train, val, test = ([n[id] for id in part] for part in toy.folds("one")[0])
    predicted = lambda part: sum(1e-3 * size for size in part)  # noqa: E731
    slope = 0.05 / 40  # of the line through the origin
    least = 0.5 + 11 * (sum(map(linear, train)) + predicted(val)) + predicted(val) + predicted(test)
    most = 0.5 + 50 * (sum(slope * size for size in train) + predicted(val)) + predicted(val) + predicted(test)
    assert rows["mean"].hours == pytest.approx((2 * least / 3600, 2 * most / 3600)), "two seeds; 11 to 50 epochs"
    assert rows["mean"].seconds_per_step == pytest.approx((linear(550), slope * 550)), "of the average bag"
    assert rows["mean"].peak_bytes == pytest.approx(3.3e8 + 1e6 * (2000 - 40)), "of the largest bag of any part"
    once, each = sum(map(square, val + test)), sum(map(square, train + val))
    assert rows["full-attention"].hours == pytest.approx((2 * (once + 11 * each) / 3600, 2 * (once + 50 * each) / 3600))
    fitted = predicted(train) + predicted(val) + predicted(val) + predicted(test)
    assert rows["knn-mean"].hours == pytest.approx((2 * fitted / 3600, 2 * fitted / 3600)), "no epochs"
    assert found.hours == pytest.approx(tuple(sum(row.hours[i] for row in found.rows) for i in (0, 1)))
    assert found.feature_bytes == sum(n.values()) * 6 * 4, "counted once, not per trial"
    assert found.result_bytes > 3 * 4 * 1000


def test_hours_and_memory_grow_with_the_bags(tmp_path):
    """The same measured model costs more where bags are larger: 40x has four times the instances of 20x."""
    needs = {}
    for magnification in (20, 40):
        path = tmp_path / "grown.toml"
        text = SUITE.format(datasets='["bracs"]', aggregators='["mean", "full-attention"]', split="official")
        path.write_text(text.replace("[grid]", f"[grid]\nmagnification = [{magnification}]"))
        jobs = jobs_of(path, partial(rehearsal.stand_in, 50))
        chosen, store = rehearsal.distinct(jobs, 50), Store(tmp_path / str(magnification))
        for job in {j.spec.trial_id: j for j in chosen.values()}.values():
            cost = (lambda n: 1e-5 * n) if job.spec.aggregator == "mean" else (lambda n: 1e-8 * n * n)
            store.write(result_of(job, points(cost, 100, 400), points(cost, 100, 400, 2)))
        needs[magnification] = rehearsal.needs(jobs, chosen, store, 50)
    low, high = ({row.aggregator: row for row in needs[m].rows} for m in (20, 40))
    assert high["mean"].hours[1] == pytest.approx(4 * low["mean"].hours[1], rel=1e-3)
    assert high["full-attention"].hours[1] == pytest.approx(16 * low["full-attention"].hours[1], rel=1e-3)
    assert high["mean"].peak_bytes > 2 * low["mean"].peak_bytes
    assert needs[40].feature_bytes == pytest.approx(4 * needs[20].feature_bytes, rel=1e-3)


def test_every_distinct_model_is_rehearsed_once():
    jobs = suites.expand(suites.load("bracs-encoders"), load=partial(rehearsal.stand_in, 8))[1]
    jobs += suites.expand(suites.load("bracs-magnification"), load=partial(rehearsal.stand_in, 8))[1]
    jobs += suites.expand(suites.load("bracs-ablation-dropout"), load=partial(rehearsal.stand_in, 8))[1]
    jobs += suites.expand(suites.load("bracs-ablation-learning-rate"), load=partial(rehearsal.stand_in, 8))[1]
    jobs += suites.expand(suites.load("bracs-ablation-blocks"), load=partial(rehearsal.stand_in, 8))[1]
    chosen = rehearsal.distinct(jobs, 8)
    assert set(chosen) == {job.spec.trial_id for job in jobs}
    tried = Counter((j.spec.aggregator, j.spec.magnification) for j in {j.spec.trial_id: j for j in chosen.values()}.values())
    assert tried[("abmil", 20)] == tried[("abmil", 40)] == 1, "both ViT-S encoders are 384 wide; 40x has other sizes"
    assert tried[("longmil", 20)] == 1 + 1 + 3, "the rate of dropout and of learning cost nothing, dropout and blocks do"


STEPS: list = []


def counting():
    """An aggregator that notes each bag it trains on or predicts, and makes a loss of its own."""

    @register("counting", label="Counting")
    class Counting(Aggregator):
        def __init__(self, in_dim: int, n_out: int) -> None:
            super().__init__(in_dim, n_out)
            self.head = nn.Linear(in_dim, n_out)

        def forward(self, bag):
            STEPS.append(("train" if self.training else "predict", len(bag)))
            return Prediction(self.head(bag.features.mean(0)))


def test_a_model_meets_four_steps_and_two_predictions_at_two_sizes(toy, tmp_path):
    counting()
    STEPS.clear()
    (job, *_) = jobs_of(suite(tmp_path, ["counting"]), partial(rehearsal.stand_in, 5))
    store = Store(tmp_path)
    assert run_trial(job.spec, store, {}, body=partial(rehearsal.measured, scale=5)) == "ok"
    # Training bags have 100 to 1,000 instances, 550 on average; validation bags 1,100 to 1,500.
    train, val = [600, 500, 700, 400], [1300, 1200]
    assert Counter(STEPS) == Counter(
        [("train", round(n / scale)) for n in train for scale in (5, 20)]
        + [("predict", round(n / scale)) for n in val for scale in (5, 20)]
    )
    found = store.raw(job.spec.trial_id)
    assert found["messages"] == ["REHEARSAL"]
    assert found["spec"]["fingerprint"].startswith("REHEARSAL:5:")
    assert found["metrics"] == {}
    assert [path.name for path in store.folder(job.spec.trial_id).iterdir()] == ["trial.json"]
    measured = found["cost"]["rehearsal"]
    assert [n for n, _ in measured["train"]] == [n for name, n in STEPS if name == "train"]
    assert [n for n, _ in measured["predict"]] == [n for name, n in STEPS if name == "predict"]
    assert all(seconds > 0 for what in ("train", "predict") for _, seconds in measured[what])
    assert [n for n, _ in measured["peak"]] == [35, 140]


def test_a_model_that_breaks_on_stand_ins_is_told(toy, tmp_path):
    @register("broken", label="Broken")
    class Broken(Aggregator):
        def __init__(self, in_dim: int, n_out: int) -> None:
            super().__init__(in_dim, n_out)
            self.head = nn.Linear(in_dim, n_out)

        def forward(self, bag):
            return Prediction(self.head(bag.features.mean(0)) / 0 * 0)

    (job, *_) = jobs_of(suite(tmp_path, ["broken"]), partial(rehearsal.stand_in, 5))
    store = Store(tmp_path)
    assert run_trial(job.spec, store, {}, body=partial(rehearsal.measured, scale=5)) == "failed"
    assert re.match(
        r"ArithmeticError: the training loss is nan on a stand-in bag of \d+ instances", store.raw(job.spec.trial_id)["reason"]
    )


def test_a_folder_of_results_never_becomes_a_rehearsals(tmp_path):
    store = Store(tmp_path)
    plans.path_of(store, "s").parent.mkdir()
    plans.path_of(store, "s").write_text("{}")
    with pytest.raises(MilbenchError, match="holds results; a rehearsal needs a folder of its own"):
        rehearsal.mark(store, 8)
    assert not plans.marker(store).exists()


@pytest.mark.slow
def test_a_rehearsal_from_the_command_line(tmp_path, monkeypatch, run_here):
    """One dataset that is here and one that is made up; LongMIL needs coordinates, which the first has not."""
    path = suite(tmp_path, ["mean", "longmil"], ["ucsb-breast", "bracs"], "kfold5")
    monkeypatch.chdir(tmp_path)
    words = ["run", "--suite", path.name, "--rehearse", "--rehearse-scale", "500"]
    assert "40 trials, 4 distinct models to rehearse. Nothing was run." in milbench(*words, "--dry-run")
    assert [p.name for p in tmp_path.iterdir()] == ["small.toml"]

    told = milbench(*words)
    assert "REHEARSAL: what the real run would need" in told
    assert "40 trials, measured on 4 distinct models; 10 trials will be skipped" in told
    assert "skipped: LongMIL · ucsb-breast hand-crafted: LongMIL needs coordinates, dataset ucsb-breast has none" in told
    results = tmp_path / "results"
    assert [p.name for p in results.iterdir()] == ["rehearsal"]
    assert json.loads((results / "rehearsal" / "REHEARSAL.json").read_text())["scale"] == 500
    needs = json.loads((results / "rehearsal" / "needs-small.json").read_text())
    assert needs["REHEARSAL"]
    assert {row["aggregator"]: row["trials"] for row in needs["rows"]} == {"mean": 20, "longmil": 10}
    assert 0 < needs["hours"][0] < needs["hours"][1]
    for trial in (results / "rehearsal" / "trials").glob("*/trial.json"):
        content = json.loads(trial.read_text())
        assert content["status"] == "skipped" or content["messages"] == ["REHEARSAL"]
        assert content["spec"]["fingerprint"].startswith("REHEARSAL:500:")

    assert "4 of 4 models were measured earlier; remove results/rehearsal to measure them again." in milbench(*words)
    before = {p: p.read_bytes() for p in results.rglob("*") if p.is_file()}
    for words in (["status"], ["report"], ["run", "--suite", "quickstart"], ["run", "--suite", "quickstart", "--dry-run"]):
        told = milbench(*words, "--results", "results/rehearsal", code=2)
        assert told == (
            "milbench: results/rehearsal holds a REHEARSAL, not results: its trials saw stand-in bags; use another --results folder\n"
        )
    assert "nothing was run into results yet" in milbench("report", code=2)
    assert before == {p: p.read_bytes() for p in results.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_the_first_table_of_the_paper_rehearsed(tmp_path, monkeypatch):
    """Every aggregator of Table 1, with BRACS made up where it is not here."""
    monkeypatch.chdir(tmp_path)
    told = milbench("run", "--suite", "bracs-encoders", "--rehearse", "--rehearse-scale", "128")
    needs = json.loads((tmp_path / "results" / "rehearsal" / "needs-bracs-encoders.json").read_text())
    assert [row["aggregator"] for row in needs["rows"]] == [
        "knn-mean", "knn-max", "mean", "max", "abmil", "dsmil", "clam-sb", "dtfd-maxs", "dtfd-afs", "transmil", "full-attention", "longmil",
    ]  # fmt: skip
    assert needs["trials"] == 120
    assert needs["skipped"] == needs["not_measured"] == 0
    assert "120 trials, measured on 12 distinct models" in told
