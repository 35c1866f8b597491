"""For the test suites of others: the contract as pytest items, and hypothesis strategies (:mod:`milbench.testing.strategies`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milbench.errors import MilbenchError, unknown

if TYPE_CHECKING:
    from milbench.contract import Check

__all__ = ["parametrize_aggregator"]


def parametrize_aggregator(
    *names: str, plugins: Iterable[str | Path] = (), without: Collection[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: make a test of one argument, `check`, into one pytest item per aggregator and check of the contract.

    Plug-ins are imported when an item runs, so a mistake in one fails its tests and not the collection. A check of an aggregator
    that cannot run here (weights that are missing) is skipped, with the reason.

    Args:
        names: aggregators, as on the command line: `mine`, `mine[hidden=64]`.
        plugins: files, as given with `--plugin`; not needed for an installed package with an entry point.
        without: names of checks to leave out.

    Raises:
        MilbenchError: pytest is not installed, no name is given, or `without` names an unknown check.

    Example, as `test_mine.py` beside `mine.py`::

        from pathlib import Path
        from milbench.testing import parametrize_aggregator

        @parametrize_aggregator("mine", "mine[hidden=64]", plugins=[Path(__file__).with_name("mine.py")])
        def test_contract(check):
            check()

    `pytest -v` then lists `test_contract[mine-shapes]`, `test_contract[mine-devices]` and so on.
    """
    try:
        import pytest
    except ModuleNotFoundError as error:
        raise MilbenchError("milbench.testing needs pytest: pip install pytest") from error
    from milbench.contract import CHECKS

    if not names:
        raise MilbenchError('name an aggregator: @parametrize_aggregator("mine", plugins=["mine.py"])')
    for name in without:
        if name not in (known := [check.name for check in CHECKS]):
            raise unknown("check", name, known)
    files = tuple(plugins)
    items = [(name, check) for name in names for check in CHECKS if check.name not in without]
    return pytest.mark.parametrize(
        "check", [pytest.param(partial(_run, name, check, files), id=f"{name}-{check.name}") for name, check in items]
    )


def _run(name: str, check: Check, files: Iterable[str | Path]) -> None:
    import pytest

    from milbench import plugins
    from milbench.errors import SkipTrial

    plugins.discover(files)
    try:
        check.run(plugins.resolve(name))
    except SkipTrial as skip:
        pytest.skip(f"{name}: {skip}")
