"""Does each test keep its level? A method against itself. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from milbench.api.reports import Written
from milbench.api.results import store_of, suite_name
from milbench.compare.calibration import Trainings, every, of_sheet, of_suite
from milbench.compare.methods import Method
from milbench.errors import MilbenchError
from milbench.papers.sheets import Sheet
from milbench.papers.sheets import predictions as read_predictions
from milbench.report import calibration as page
from milbench.report.model import Report
from milbench.report.site import FORMATS, write


def calibration(
    suite: str | Path | None = None,
    aggregator: str = "abmil",
    *,
    seeds: int | None = None,
    predictions: Iterable[str | Path] = (),
    results: str | Path | None = None,
    reports: str | Path = "reports",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Written:
    """How often each test calls a method different from itself, written to REPORTS/calibration.

    Disjoint groups of its trainings are compared, five against five and one against one, by every test that a report prints.

    Args:
        suite: that was run with many seeds of the method: its name, or the TOML file.
        aggregator: the method, as :func:`milbench.compare` takes it.
        seeds: how many trainings; all that finished every fold unless given.
        predictions: CSV files (may be .gz) of predictions per model, fold and case, whose models are trainings of one method.
        results: the results folder. [default: MILBENCH_RESULTS, or results]
        reports: the folder to write to.
        progress: is called with what is compared, the number of pairs that are done, and of all.

    Raises:
        MilbenchError: neither a suite nor a file, an unknown suite or method, or too few trainings: 5 against 5 needs 15.
    """
    trainings: list[Trainings[Any]] = []
    if suite:
        trainings += of_suite(Method.find(store_of(results), aggregator, suite_name(suite)), seeds)
    for sheet in (Sheet.read(Path(path)) for path in predictions):
        trainings += of_sheet(sheet, read_predictions(sheet), seeds)
    if not trainings:
        raise MilbenchError("say which trainings meet: --suite NAME that was run with many seeds, or --predictions FILE")
    met = [page.Met(each, every(each, progress)) for each in trainings]
    with TemporaryDirectory() as folder:
        figure = page.figure(met).save(Path(folder))
        made = Report("calibration", page.TITLE, [], others=[page.table(met)], figures=[figure])
        return Written(made, write(made, Path(reports) / "calibration", FORMATS))
