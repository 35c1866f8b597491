"""The registry: names, variants, discovery, and what it says when something is wrong."""

import pytest
import torch

from milbench import Aggregator, MilbenchError, plugins, register
from milbench.plots import figure

PLUGIN = """
from milbench import Aggregator, register

@register("{name}", label="Mine")
class Mine(Aggregator):
    def __init__(self, in_dim: int, n_out: int, *, width: int = 3, rate: float | None = None) -> None:
        super().__init__(in_dim, n_out)
"""


def test_equal_variants_have_one_name_and_one_parameter_set():
    spellings = ["transmil[landmarks=32]", "transmil[ landmarks = 32.0 ]", "transmil[landmarks=32,heads=8]"]
    variants = [plugins.resolve(text) for text in spellings]
    assert {v.name for v in variants} == {"transmil[landmarks=32]"}
    assert all(v.params == variants[0].params for v in variants)
    assert variants[0].label == "TransMIL (landmarks=32)"
    assert plugins.resolve("abmil[dropout=0]").params["dropout"] == 0.0
    assert isinstance(plugins.resolve("abmil[dropout=0]").params["dropout"], float), "0 and 0.0 must hash alike"


def test_none_is_nothing_or_a_word_as_the_parameter_has_it(tmp_path):
    assert plugins.resolve("full-attention[positions=none]").name == "full-attention[positions=none]"
    assert not plugins.resolve("full-attention[positions=none]").build(8, 2).needs_coords
    path = tmp_path / "nothing.py"
    path.write_text(PLUGIN.format(name="nothing"))
    plugins.discover([path])
    assert plugins.resolve("nothing[rate=none]").params["rate"] is None
    path = tmp_path / "untyped.py"
    path.write_text(PLUGIN.format(name="untyped").replace("rate: float | None = None", "rate=1"))
    plugins.discover([path])
    assert plugins.resolve("untyped[rate=none]").params["rate"] is None
    with pytest.raises(MilbenchError, match="rope"):
        plugins.resolve("full-attention[positions=null]")


def test_preset_is_a_name_for_parameters():
    assert plugins.resolve("clam-mb").params["branches"] == "multi"
    assert plugins.resolve("clam-mb").name == "clam-mb"
    assert plugins.resolve("clam-mb[k=4]").name == "clam-mb[k=4]"


def test_list_is_split_outside_brackets_only():
    assert plugins.split_list("mean, transmil[landmarks=32,heads=4] ,abmil") == [
        "mean",
        "transmil[landmarks=32,heads=4]",
        "abmil",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("abmill", "unknown aggregator 'abmill'; did you mean abmil"),
        ("abmil[gate=false]", "unknown parameter of abmil 'gate'; did you mean gated?"),
        ("abmil[hidden=wide]", "abmil[hidden=wide]: hidden: input should be a valid integer"),
        ("max[pick=all]", "input should be 'class' or 'instance'"),
        ("abmil[gated]", "write parameter=value"),
        ("abmil[gated=true", "cannot read aggregator"),
    ],
)
def test_wrong_variant_is_named_with_what_is_near(text, says):
    with pytest.raises(MilbenchError, match=__import__("re").escape(says)):
        plugins.resolve(text)


def test_taken_name_names_both_places(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="abmil"))
    with pytest.raises(MilbenchError, match=r"registered twice: .*abmil\.py:\d+ and .*mine\.py:\d+"):
        plugins.discover([path])


def test_malformed_name_is_refused():
    with pytest.raises(MilbenchError, match="cannot be the name of an aggregator"):
        register("Ab Mil", label="x")(Aggregator)


def test_outside_plugin_is_identified_by_its_source(tmp_path):
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text(PLUGIN.format(name="mine"))
    second.write_text(PLUGIN.format(name="other").replace("3", "4"))
    plugins.discover([first, second])
    plugins.discover([first])  # a second time is nothing
    mine, other = plugins.resolve("mine").entry.implementation, plugins.resolve("other").entry.implementation
    assert mine.startswith("mine@sha256:")
    assert mine.split(":")[1] != other.split(":")[1]
    assert plugins.resolve("abmil").entry.implementation == "abmil@1"
    assert plugins.resolve("mine[rate=none]").params == {"width": 3, "rate": None}


def test_half_a_plugin_is_no_plugin(tmp_path):
    path = tmp_path / "half.py"
    path.write_text(PLUGIN.format(name="half") + "\nraise ValueError('broken below')\n")
    with pytest.raises(MilbenchError, match="ValueError: broken below"):
        plugins.discover([path])
    assert "half" not in [entry.name for entry in plugins.entries()]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", 'registers no aggregator; write @register("name", label="Name") above the class'),
        ("x = 1\ndef f(:\n", "odd.py:2: SyntaxError: invalid syntax"),
        ("\nimport not_there\n", "odd.py:2: ModuleNotFoundError: No module named 'not_there'"),
        ("from milbench import register\n\n@register('odd')\nclass A: ...\n", "odd.py:3: TypeError: register"),
        (
            "from milbench import register\n\n@register('odd', label='Odd')\nclass A: ...\n",
            "odd.py:3: A is not an Aggregator; write: class A(Ag",
        ),
    ],
)
def test_a_plugin_that_is_none_is_told_with_its_line(tmp_path, text, says):
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(MilbenchError, match=__import__("re").escape(says)):
        plugins.discover([tmp_path / "odd.py"])


def test_missing_plugin_file(tmp_path):
    with pytest.raises(MilbenchError, match="no such file"):
        plugins.discover([tmp_path / "nowhere.py"])


def test_entry_points_are_discovered(tmp_path, monkeypatch):
    (tmp_path / "their_package.py").write_text(PLUGIN.format(name="theirs"))
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[milbench.aggregators]\ntheirs = their_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.discover()
    assert plugins.resolve("theirs").entry.label == "Mine"


def test_load_official_lists_everything_that_does_not_fit():
    model = plugins.resolve("abmil").build(10, 3)
    official = {name: value for name, value in plugins.resolve("abmil").build(10, 3).state_dict().items() if name != "head.bias"}
    official["head.weight"] = official["head.weight"][:, :-1]
    official["stranger"] = official["head.weight"]
    with pytest.raises(MilbenchError) as error:
        model.load_official(official)
    for part in ("missing head.bias", "unknown stranger", "head.weight is (3, 511), expected (3, 512)"):
        assert part in str(error.value)


def test_methods_of_a_family_share_a_colour_and_no_two_built_in_methods_look_alike():
    looks = {
        entry.name: figure.style(entry.name, *plugins.family_of(entry.name))
        for entry in plugins.entries()
        if entry.source is None
    }
    for told_by in ("color", "linestyle"):  # of the family: also without colour
        assert len({(str(look[told_by]), look["marker"]) for look in looks.values()}) == len(looks)
    assert figure.OTHERS not in {look["color"] for look in looks.values()}
    assert (
        looks["abmil"]["color"]
        == figure.style("abmil[gated=false]", *plugins.family_of("abmil[gated=false]"))["color"]
        == "#E69F00"
    )
    assert figure.style("mine", *plugins.family_of("mine"))["color"] == figure.OTHERS, "a reader's own method"
    assert [looks[name]["marker"] for name in ("longmil", "longmil-retnet", "retnet", "gla")] == ["o", "s", "o", "s"]


def test_methods_stand_by_family_and_year():
    @register("newer", label="Newer", family="attention", cite="doe2030")
    @register("alone", label="Alone", cite="doe2001")
    class Mine(Aggregator):
        pass

    names = sorted(["alone", "newer", "longmil", "abmil[gated=false]", "mean", "clam-mb", "clam-sb", "nobody"], key=plugins.place)
    assert names == ["mean", "abmil[gated=false]", "clam-sb", "clam-mb", "newer", "longmil", "alone", "nobody"]
    years = {entry.name: entry.year for entry in plugins.entries()}
    assert (years["mean"], years["abmil"], years["mambamil"], years["newer"]) == (None, 2018, 2024, 2030)


def test_an_unknown_family_is_an_error_with_near_misses():
    with pytest.raises(MilbenchError, match=r"unknown family of aggregator mine-too 'atention'.*attention"):
        register("mine-too", label="x", family="atention")(Aggregator)


class TestStart:
    """Any method that is trained by gradients may start from a file of weights."""

    def test_the_file_is_part_of_the_identity_and_its_absence_changes_nothing(self, tmp_path):
        path = tmp_path / "w.pth"
        torch.save({"a": torch.zeros(1)}, path)
        plain, started = plugins.resolve("abmil"), plugins.resolve(f"abmil[weights={path}]")
        assert plain.params.keys().isdisjoint(plugins.START)
        assert plain.implementation == "abmil@1"
        assert started.name == f"abmil[weights={path}]"
        first = started.implementation
        torch.save({"a": torch.ones(1)}, path)
        assert first.startswith("abmil@1+sha256:")
        assert started.implementation not in (first, plain.implementation)

    def test_a_file_that_is_not_there_is_refused_when_it_is_named(self, tmp_path):
        with pytest.raises(MilbenchError, match="no such file"):
            plugins.resolve(f"transmil[weights={tmp_path}/none.pth]")
        with pytest.raises(MilbenchError, match="give weights=FILE"):
            plugins.resolve("transmil[trained_on=bracs]")

    def test_methods_without_gradients_have_no_such_parameters(self):
        with pytest.raises(MilbenchError, match="trained_on"):
            plugins.resolve("knn-mean[trained_on=bracs]")
