"""One spelling of names with parameters."""

import pytest

from milbench import plugins
from milbench.papers import PrintedTable
from milbench.spelling import canonical, parsed
from milbench.suites import load
from milbench.suites.model import names
from milbench.suites.rows import SuiteRecipes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("longmil[radius=5]", "longmil[radius=5.0]"),
        ("longmil[recipe.lr=1e-2]", "longmil[recipe.lr=0.01]"),
        ("longmil[recipe.lr=0.00001]", "longmil[ recipe.lr = 1e-05 ]"),
        ("abmil[gated=False,hidden=64]", "abmil[hidden=64.0, gated=false]"),
        ("transmil[positions=none]", "transmil[positions=null]"),
        ("a[recipe.betas=[0.9, 0.999],b=1]", "a[b=1.0,recipe.betas=[0.90,0.999]]"),
        ("mean[]", " mean "),
    ],
)
def test_what_means_the_same_is_spelled_the_same(one, other):
    assert canonical(one) == canonical(other) == canonical(canonical(one))


def test_what_means_something_else_is_spelled_otherwise():
    different = ["a", "a[b=1]", "a[b=1.5]", "a[b=true]", "a[b=none]", "a[b=word]", "a[b=0.1,c=1]", "c[b=1]"]
    assert len({canonical(name) for name in different}) == len(different)
    assert parsed("a[b=[1, 2],c=x]") == ("a", {"b": [1, 2], "c": "x"})


def test_what_a_name_has_anyway_is_left_out():
    usual = {"radius": 10.0, "positions": "none", "recipe.lr": 1e-4, "recipe.betas": (0.9, 0.999)}
    assert canonical("longmil[radius=10]", usual) == canonical("longmil[recipe.lr=1e-4]", usual) == "longmil"
    assert canonical("longmil[positions=none,recipe.betas=[0.9,0.999],radius=5]", usual) == "longmil[radius=5]"


def test_every_row_of_every_suite_is_the_name_in_its_plan():
    """The files of the suites and of the papers hold the same names as plans once both are spelled alike."""
    for suite in (load(name) for name in names()):
        recipes = SuiteRecipes(suite, recipe="paper")
        for text in suite.grid.aggregator if suite.grid else []:
            planned = recipes.row(text).name
            assert canonical(text, plugins.resolve(text.split("[")[0]).params) == canonical(planned), (suite.name, text)


def test_a_printed_number_is_found_under_any_spelling():
    usual = {"abmil": {"gated": True, "lineage": "clam", "hidden": 512}}
    name = "abmil[attention_dim=64.0,dropout=5e-1,gated=true,hidden=64,lineage=original,trunk=256-128]"
    number = PrintedTable("classic_sets", usual).get(canonical(name, usual["abmil"]), ("musk1", "x", None, None), "accuracy")
    assert (number.method, number.mean) == ("AB-MIL gated", 0.9)
