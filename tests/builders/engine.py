"""An engine that starts no process, for tests of what stands above the engines."""

from functools import partial

from milbench.engines import Done, Epoch, Started
from milbench.engines.worker import _run_job  # not public: the way in which a worker records errors is not copied here
from milbench.errors import Unwritable
from milbench.trials.run import prepare_process
from milbench.trials.store import Store


def run_here(run, on_event):
    """The jobs one after the other, each as a worker runs it; what a plug-in may do to its process is tested in tests/engines."""
    settings = run.settings.absolute()
    store, usual = Store(settings.results), prepare_process([str(file) for file in run.plugins], run.backends)

    def hear(said, trial, reason="", **more):
        if said == "unwritable":
            raise Unwritable(reason)
        if said == "done":
            result = store.raw(trial)
            on_event(Done(trial, result["status"], result.get("reason")))
        else:
            on_event({"started": Started, "epoch": Epoch}[said](trial, **more))

    for job in run.jobs:
        trial = partial(run.trial or usual, settings=settings, keep_model=run.keeps(job))
        _run_job(job, store, trial, partial(hear, trial=job.spec.trial_id))
