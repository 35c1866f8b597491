"""milbench: which MIL aggregator should I use, and is the difference real?

The names a plug-in needs are here and load on first use, so that reading results never imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milbench.aggregator import Aggregator, Prediction
    from milbench.bags import Bag
    from milbench.errors import MilbenchError
    from milbench.plugins import register

    __version__: str

__all__ = ["Aggregator", "Bag", "MilbenchError", "Prediction", "register"]

_HOME = {
    "Aggregator": "milbench.aggregator",
    "Prediction": "milbench.aggregator",
    "Bag": "milbench.bags",
    "MilbenchError": "milbench.errors",
    "register": "milbench.plugins",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("milbench")
    if name not in _HOME:
        raise AttributeError(f"module 'milbench' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
