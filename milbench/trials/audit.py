"""Checks every trial of a store against its own files, for `milbench results check`. Needs no torch."""

from collections.abc import Callable

from milbench.errors import MilbenchError
from milbench.trials import predictions
from milbench.trials.store import PREDICTIONS, TRIAL, Store


def audit(store: Store, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, str]:
    """Trials whose files disagree, each with what is wrong.

    Of every trial: its id is its folder's name and the hash of its spec, its files are those that it wrote, and the
    metrics follow from the predictions.

    Args:
        store: where the trials are.
        progress: called with how many trials of how many were checked.

    Raises:
        MilbenchError: the store cannot be read.
    """
    wrong: dict[str, str] = {}
    ids = store.ids()
    for done, trial_id in enumerate(ids):
        progress(done, len(ids))
        try:
            _audit(store, trial_id)
        except MilbenchError as error:
            wrong[trial_id] = str(error)
    progress(len(ids), len(ids))
    return wrong


def _audit(store: Store, trial_id: str) -> None:
    folder, result = store.place(trial_id), store.raw(trial_id)
    if result is None:
        raise MilbenchError(f"{folder} has no {TRIAL}; remove the folder to run the trial again")
    for name in result["sha256"].keys() - {PREDICTIONS}:
        store.verified(result, name)
    if result["status"] == "ok" or PREDICTIONS in result["sha256"]:
        predictions.read(store, result)
    if strays := sorted({path.name for path in folder.iterdir()} - result["sha256"].keys() - {TRIAL}):
        raise MilbenchError(f"{folder / strays[0]} was not written by the trial; remove it")
