"""What milbench offers to the test suites of others: the contract as pytest items, and hypothesis strategies."""

import subprocess
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from milbench import MilbenchError
from milbench.contract import CHECKS
from milbench.datasets.files import columns, ids, labels
from milbench.delimited import Delimited
from milbench.followup import missing
from milbench.testing import parametrize_aggregator, strategies


@parametrize_aggregator("mean", without={"elsewhere", "learns"})
def test_a_registered_aggregator(check):
    check()


SUITE = """
from pathlib import Path
from milbench.testing import parametrize_aggregator

@parametrize_aggregator("mine", plugins=[Path(__file__).with_name("mine.py")], without={"elsewhere", "learns", "repeats"})
def test_contract(check):
    check()
"""
MINE = """
from torch import nn
from milbench import Aggregator, register

@register("mine", label="Mine")
class Mine(Aggregator):
    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.head = nn.Linear(in_dim, n_out)

    def forward(self, bag):
        return self.head(bag.features.mean(0))
"""


@pytest.mark.slow
def test_an_authors_suite_has_an_item_for_each_check(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "test_mine.py").write_text(SUITE)
    words = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", "parameters or shapes or untouched"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert "test_mine.py::test_contract[mine-parameters] PASSED" in done.stdout
    assert "test_mine.py::test_contract[mine-shapes] FAILED" in done.stdout
    assert "mine.py:12: forward returned a Tensor; return Prediction(logits=...)" in done.stdout
    assert len(CHECKS) == 17


def test_importing_it_loads_nothing_heavy():
    code = "import sys, milbench.testing; print({'torch', 'hypothesis', 'pytest', 'milbench.plugins'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(MilbenchError, match="unknown check 'shape'; did you mean shapes"):
        parametrize_aggregator("mean", without={"shape"})
    with pytest.raises(MilbenchError, match="name an aggregator"):
        parametrize_aggregator()
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "milbench.testing.strategies")
    with pytest.raises(MilbenchError, match="needs hypothesis: pip install hypothesis"):
        __import__("milbench.testing.strategies")


@given(strategies.bags(in_dim=5))
@settings(max_examples=30)
def test_bags_are_bags(bag):
    bag.check(5)
    if bag.slide_index is not None:
        assert bag.slide_index.unique().tolist() == list(range(int(bag.slide_index.max()) + 1))


@given(st.data(), st.booleans())
@settings(max_examples=30)
def test_folds_divide_the_samples(data, grouped):
    samples = data.draw(strategies.samples(cases=6))
    case = {s.id: s.case_id for s in samples}
    assert len(case) == len(samples)
    for fold in data.draw(strategies.folds(samples, grouped=grouped)):
        assert sorted([*fold.train, *fold.val, *fold.test]) == sorted(case)
        assert fold.train
        assert fold.test
        if grouped:
            assert not {case[id] for id in fold.train} & {case[id] for id in fold.test}


@given(table=strategies.label_tables(missing=False))
@settings(max_examples=40)
def test_a_label_table_comes_back(table, tmp_path_factory):
    text, rows = table
    path = tmp_path_factory.mktemp("table") / "labels.csv"
    path.write_text(text, newline="", encoding="utf-8")
    names = {row["slide_id"] for row in rows}
    assume(not any(missing(name) or len(ids.slides(name)) > 1 for name in names))  # nobody, or a list
    expected = {ids.slide(row["slide_id"]): row["label"] for row in rows}
    if len({ids.spelling(id) for id in expected}) == len(names):  # else two ids mean the same slide
        table = Delimited.read(path)
        read = labels.read(table, columns.roles(table, "subtyping", {})).rows
        assert {row.slide: row.label for row in read} == expected
