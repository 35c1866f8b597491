"""milbench: which MIL aggregator should I use, and is the difference real?

In a notebook or a script:

    import milbench

    results = milbench.run("quickstart", aggregators=["mean", "abmil"])
    results.frame()                                  # one row for each trial
    milbench.report("quickstart").paths              # tables and figures
    print(milbench.compare("abmil", "mean"))         # for other patients and other trainings

    model = milbench.build("longmil", in_dim=384, n_out=3)
    model(milbench.Bag.from_arrays(features, coords, step=224))

Names load on first use, so that reading results never imports torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milbench.aggregator import Aggregator, Prediction
    from milbench.api.comparisons import Comparison, compare
    from milbench.api.data import load_dataset
    from milbench.api.models import build
    from milbench.api.reports import report
    from milbench.api.results import Results, load_predictions, load_results, status
    from milbench.api.runs import RunOptions, rehearse, run
    from milbench.bags import Bag
    from milbench.errors import MilbenchError
    from milbench.plugins import register

    __version__: str

_HOME = {
    "Aggregator": "milbench.aggregator",
    "Prediction": "milbench.aggregator",
    "Bag": "milbench.bags",
    "MilbenchError": "milbench.errors",
    "register": "milbench.plugins",
    "build": "milbench.api.models",
    "load_dataset": "milbench.api.data",
    "run": "milbench.api.runs",
    "rehearse": "milbench.api.runs",
    "RunOptions": "milbench.api.runs",
    "Results": "milbench.api.results",
    "status": "milbench.api.results",
    "load_results": "milbench.api.results",
    "load_predictions": "milbench.api.results",
    "report": "milbench.api.reports",
    "compare": "milbench.api.comparisons",
    "Comparison": "milbench.api.comparisons",
}

__all__ = [
    "Aggregator", "Bag", "Comparison", "MilbenchError", "Prediction", "Results", "RunOptions", "build", "compare",
    "load_dataset", "load_predictions", "load_results", "register", "rehearse", "report", "run", "status",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("milbench")
    if name not in _HOME:
        raise AttributeError(f"module 'milbench' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


class _Callable(ModuleType):
    """A package that is called as the function of the same name: `milbench.report("classic")` beside `milbench.report.tables`."""

    @property
    def _function(self) -> Any:
        return __getattr__(self.__name__.removeprefix("milbench."))

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(self._function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)


class _Milbench(ModuleType):
    """This module, in which a function and a package may have the same name.

    When Python imports the package `milbench.report`, for whatever reason, it sets the attribute `report` of this module to it,
    and the function could be reached no longer. So a package that has the name of a function becomes callable at that moment:
    `milbench.report(...)` works before and after, and so does every dotted name inside the package.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value.__class__ = _Callable
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Milbench
