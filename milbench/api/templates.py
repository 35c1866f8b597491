"""The files that `milbench new` writes."""

import re
from pathlib import Path

from milbench.errors import MilbenchError

TEMPLATE = '''"""{label}: say the idea in one sentence."""

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
    complexity = "n"

    def __init__(self, in_dim: int, n_out: int, *, hidden: int = 256) -> None:
        super().__init__(in_dim, n_out)
        self.project = nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU())
        self.score = nn.Linear(hidden, 1)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag."""
        h = self.project(bag.features)  # (n, hidden)
        weight = self.score(h).softmax(dim=0)  # (n, 1)
        z = (weight * h).sum(dim=0)  # (hidden,)
        return Prediction(logits=self.head(z), attention=weight[:, 0])
'''


def write(name: str, folder: Path) -> Path:
    """Write `name`.py into `folder`.

    Raises:
        MilbenchError: the name is malformed or the file exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise MilbenchError(f"{name!r} is no name for an aggregator; use lower case letters, digits and hyphens")
    path = folder / f"{name.replace('-', '_')}.py"
    if path.exists():
        raise MilbenchError(f"{path} exists; choose another name or folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(TEMPLATE.format(name=name, label=name, cls="".join(part.capitalize() for part in name.split("-"))))
    return path
