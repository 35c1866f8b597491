"""The files that `milbench new` writes."""

import json
import re
import tomllib
from pathlib import Path

from milbench import datasets
from milbench.config import Settings
from milbench.datasets.files import manifest
from milbench.datasets.files.manifest import Manifest, spelled
from milbench.errors import MilbenchError, NotHere, unknown
from milbench.names import checked
from milbench.suites import Suite

AGGREGATOR = '''"""{label}: say the idea in one sentence."""

from torch import nn

from milbench import Aggregator, Bag, Prediction, register


@register("{name}", label="{label}")
class {cls}(Aggregator):
    """What it computes, as a formula.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        hidden: width of a projected instance.
    """

    needs_coords = False  # True: bag.coords and bag.grid() are there, and datasets without them are skipped
    order_sensitive = False  # True: permuting the bag changes the prediction
    complexity = "n"  # time in the number of instances n

    def __init__(self, in_dim: int, n_out: int, *, hidden: int = 256) -> None:
        super().__init__(in_dim, n_out)
        self.project = nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU())
        self.score = nn.Linear(hidden, 1)
        self.head = nn.Linear(hidden, n_out)

    # A tensor that is made here needs device=bag.features.device; layers in a list need nn.ModuleList.
    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag."""
        h = self.project(bag.features)  # (n, hidden)
        weight = self.score(h).softmax(dim=0)  # (n, 1)
        z = (weight * h).sum(dim=0)  # (hidden,)
        return Prediction(logits=self.head(z), attention=weight[:, 0])
'''


SUITE = """\
# A suite: every combination of the grid is one trial for each fold and seed, and the table shows them.
#   milbench run --suite {name}.toml --dry-run     what it would run
#   milbench run --suite {name}.toml
#   milbench report --suite {name}.toml

title = "{title}"
task = "{task}"              # or "survival"

[grid]
dataset = ["{dataset}"]       # milbench ls datasets; add your own with: milbench data add
encoder = {encoders}      # the encoders of your features: ["uni", "gigapath"]
{variant}
split = ["{split}"]              # a split of the dataset; "official" is the published one of BRACS
# fold = [0, 1]                 # all folds of the split, unless given
seed = [0]                      # repetitions: [0, 1, 2]
aggregator = [                  # the rows: milbench ls aggregators, and their parameters with --params
{rows}
]
standardise = {standardise}              # features scaled with the mean and deviation of the training fold

[recipe]
name = "paper"                  # milbench ls recipes; "official" trains each method with its own
# max_epochs = 20               # any value of the recipe can be changed here

[table]
name = "{name}"                 # of the files that the report writes
columns = ["metric"]            # what columns stand for: dataset, encoder, magnification, patch_size, split, metric
metrics = {metrics}     # survival: ["c_index"]
reference = "abmil"             # every other row is compared with this one
"""


EXAMPLE = """\
    "mean",
    "abmil",
    "abmil[gated=false]",       # a parameter of the aggregator
    "abmil[recipe.lr=1e-3]",    # a value of the recipe, for this row only"""
METHODS = ("mean", "max", "abmil", "dsmil", "clam-sb", "transmil", "longmil")  # for a first look at a dataset
TASKS = {"subtyping": '["macro_auc", "macro_f1"]', "survival": '["c_index"]'}


def new_aggregator(name: str, folder: str | Path = ".") -> Path:
    """Write `name`.py into a folder: a working aggregator to start from.

    Raises:
        MilbenchError: the name is malformed or the file exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise MilbenchError(f"{name!r} cannot name an aggregator; use lower case letters, digits and hyphens, a letter first")
    text = AGGREGATOR.format(name=name, label=name, cls="".join(part.capitalize() for part in name.split("-")))
    return _written(Path(folder) / f"{name.replace('-', '_')}.py", text)


def new_suite(name: str, folder: str | Path = ".", *, dataset: str | None = None, data: str | Path | None = None) -> Path:
    """Write `name`.toml into a folder: a working suite to start from, which says what every value means.

    Args:
        name: of the suite.
        folder: where the file goes.
        dataset: whose features, split and task it takes; an example unless given.
        data: folder of the datasets that you added. [default: MILBENCH_DATA, or data]

    Raises:
        MilbenchError: the name is malformed, the file exists, or there is no such dataset.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", checked(name, "suite")) or name.endswith(".toml"):
        raise MilbenchError(f"{name!r} cannot be the name of a suite; use letters, digits, hyphens and dots, without .toml")
    values = _values(dataset or "ucsb-breast", Settings.from_environment(data=data))
    if dataset is None:
        values |= {"rows": EXAMPLE, "title": f"{name}: say in one line what is compared"}
    return _written(Path(folder) / f"{name}.toml", SUITE.format(name=name, **values))


def suite_of(dataset: str, settings: Settings) -> Suite:
    """The suite that :func:`new_suite` writes for a dataset: the usual methods on its features, under the name `DATASET-usual`.

    Raises:
        MilbenchError: there is no such dataset, or it lacks features or labels.
    """
    name = f"{dataset}-usual"
    text = SUITE.format(name=name, **_values(dataset, settings))
    return Suite.model_validate({"name": name, **tomllib.loads(text)})


def _values(name: str, settings: Settings) -> dict[str, str]:
    """What the suite of a dataset says: its task, features and split, and the usual methods."""
    infos = {info.name: info for info in datasets.infos(settings)}
    if name not in infos:
        raise unknown("dataset", name, infos)
    info = infos[name]
    if not info.available:
        raise NotHere(f"dataset {name} cannot be run yet: {info.why_not}")
    here = manifest.load(name, settings.data)
    some = _variants(here) if here else [(info.encoders, None, None)]
    encoders, magnification, patch_size = some[0]
    given = (
        [*here.splits, *(f"kfold{k}" for k in here.folds)] if here else datasets.load(name, encoders[0], settings=settings).splits
    )
    others = [spelled(", ".join(names), *variant) for names, *variant in some[1:]]
    variant = [
        f"magnification = [{magnification}]" if magnification else "# magnification = [20]          # both stay out where there",
        f"patch_size = [{patch_size}]" if patch_size else "# patch_size = [224]            # is one of them only",
        *(f"# also here: {other}" for other in others),
    ]
    return {
        "title": f"{info.label}: the usual methods", "task": info.task, "dataset": name, "encoders": json.dumps(list(encoders)),
        "variant": "\n".join(variant), "split": next(iter(given), "kfold5"), "standardise": json.dumps(here is None),
        "metrics": TASKS[info.task], "rows": "\n".join(f'    "{method}",' for method in METHODS),
    }  # fmt: skip


def _variants(here: Manifest) -> list[tuple[tuple[str, ...], int | None, int | None]]:
    """The encoders of each magnification and patch size; first where most are."""
    encoders: dict[tuple[int | None, int | None], list[str]] = {}
    for features in here.features:
        encoders.setdefault((features.magnification, features.patch_size), []).append(features.encoder)
    return sorted(((tuple(names), *variant) for variant, names in encoders.items()), key=lambda some: -len(some[0]))


def _written(path: Path, text: str) -> Path:
    if path.exists():
        raise MilbenchError(f"{path} exists; choose another name or folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
