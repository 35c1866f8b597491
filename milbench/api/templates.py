"""The files that `milbench new` writes."""

import re
from pathlib import Path

from milbench.errors import MilbenchError
from milbench.names import checked

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

title = "{name}: say in one line what is compared"
task = "subtyping"              # or "survival"

[grid]
dataset = ["ucsb-breast"]       # milbench ls datasets; add your own with: milbench data add
encoder = ["hand-crafted"]      # the encoders of your features: ["uni", "gigapath"]
# magnification = [20]          # both stay out where the dataset has features of one kind only
# patch_size = [224]
split = ["kfold5"]              # a split of the dataset; "official" is the published one of BRACS
# fold = [0, 1]                 # all folds of the split, unless given
seed = [0]                      # repetitions: [0, 1, 2]
aggregator = [                  # the rows: milbench ls aggregators, and their parameters with --params
    "mean",
    "abmil",
    "abmil[gated=false]",       # a parameter of the aggregator
    "abmil[recipe.lr=1e-3]",    # a value of the recipe, for this row only
]
standardise = true              # features scaled with the mean and deviation of the training fold

[recipe]
name = "paper"                  # milbench ls recipes; "official" trains each method with its own
# max_epochs = 20               # any value of the recipe can be changed here

[table]
name = "{name}"                 # of the files that the report writes
columns = ["metric"]            # what columns stand for: dataset, encoder, magnification, patch_size, split, metric
metrics = ["macro_auc", "macro_f1"]     # survival: ["c_index"]
reference = "abmil"             # every other row is compared with this one
"""


def new_aggregator(name: str, folder: str | Path = ".") -> Path:
    """Write `name`.py into a folder: a working aggregator to start from.

    Raises:
        MilbenchError: the name is malformed or the file exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise MilbenchError(f"{name!r} cannot name an aggregator; use lower case letters, digits and hyphens, a letter first")
    text = AGGREGATOR.format(name=name, label=name, cls="".join(part.capitalize() for part in name.split("-")))
    return _written(Path(folder) / f"{name.replace('-', '_')}.py", text)


def new_suite(name: str, folder: str | Path = ".") -> Path:
    """Write `name`.toml into a folder: a working suite to start from, which says what every value means.

    Raises:
        MilbenchError: the name is malformed or the file exists.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", checked(name, "suite")) or name.endswith(".toml"):
        raise MilbenchError(f"{name!r} cannot be the name of a suite; use letters, digits, hyphens and dots, without .toml")
    return _written(Path(folder) / f"{name}.toml", SUITE.format(name=name))


def _written(path: Path, text: str) -> Path:
    if path.exists():
        raise MilbenchError(f"{path} exists; choose another name or folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
