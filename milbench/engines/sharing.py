"""The jobs of a run, shared with every other run on the same results folder: each trial is claimed before it is started."""

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from milbench import claims
from milbench.claims import Claim
from milbench.engines.base import Done, Event, Run
from milbench.errors import Unwritable
from milbench.trials.plan import Job
from milbench.trials.store import Store

POLL = 2.0  # seconds between two looks at the trials that other runs have


class Shared:
    """Hands out jobs that have no result and that no other run has claimed.

    Args:
        run: the jobs, and how much time there is.
        store: where results appear, whoever gives them.
        on_event: called with `Done` for each job that another run gave a result.
    """

    def __init__(self, run: Run, store: Store, on_event: Callable[[Event], None]) -> None:
        self._store, self._on_event = store, on_event
        self._waiting = deque(run.jobs)
        self._alone: deque[Job] = deque()  # ran out of memory beside others
        self._lonely = ""  # the last of them that was handed out
        self._elsewhere: list[Job] = []  # claimed by another run when we last looked
        self._claims: dict[str, Claim] = {}
        self._wait = run.wait
        self._until = None if run.seconds is None else time.monotonic() + run.seconds
        self._lasted = dict(run.lasted)
        self._before = {job.spec.trial_id: at for job in run.jobs if (at := self._version(job))}
        self._looked = self._beaten = time.monotonic()

    @property
    def waiting(self) -> bool:
        """Whether there is a job that this run may still do, or must wait for."""
        return bool(self._waiting or self._alone) or (self._wait and bool(self._elsewhere))

    @property
    def open(self) -> int:
        """How many jobs were seen without a result, by a run that takes none itself."""
        return len(self._waiting)

    def look(self) -> None:
        """Tell of the jobs that others have given a result, by a run that takes none itself."""
        for job in [job for job in self._waiting if self.news(job)]:
            self._waiting.remove(job)
            self._tell(job)

    def next(self, busy: int) -> Job | None:
        """A job that is now this run's; None where there is none for now.

        Args:
            busy: how many jobs of this run are being run. A trial that ran out of memory beside others has the run to itself.
        """
        if self._lonely in self._claims:
            return None
        if time.monotonic() - self._looked > POLL:
            self._looked = time.monotonic()
            self._waiting.extend(self._elsewhere)
            self._elsewhere.clear()
        job = self._first_of(self._waiting)
        if job is None and not busy:
            job = self._first_of(self._alone)
            self._lonely = job.spec.trial_id if job else ""
        return job

    def _first_of(self, jobs: deque[Job]) -> Job | None:
        """The first that has no result yet, ends in time and is nobody's; it is claimed."""
        while jobs:
            job = jobs.popleft()
            if self.news(job):
                self._tell(job)
            elif not self._ends_in_time(job):
                pass
            elif (claim := self._take(job)) is None:
                self._elsewhere.append(job)
            elif self.news(job):  # between both looks
                claim.release()
                self._tell(job)
            else:
                self._claims[job.spec.trial_id] = claim
                return job
        return None

    def news(self, job: Job) -> bool:
        """Whether the job has a result that it did not have when this run began."""
        now = self._version(job)
        if now is None:
            return False
        return now != self._before.get(job.spec.trial_id) or self._store.status(job.spec.trial_id) in ("ok", "skipped")

    def finish(self, job: Job, seconds: float) -> None:
        """The job has its result, after so many seconds."""
        self._lasted[job.cell.aggregator] = max(self._lasted.get(job.cell.aggregator, 0.0), seconds)
        self._release(job)

    def put_back(self, job: Job, where: Literal["first", "last", "alone"]) -> None:
        """The job has to be begun again: by whoever comes first, before the others, after them, or with nothing beside it."""
        if at := self._version(job):
            self._before[job.spec.trial_id] = at
        self._release(job)
        match where:
            case "first":
                self._waiting.appendleft(job)
            case "last":
                self._waiting.append(job)
            case "alone":
                self._alone.append(job)

    def beat(self) -> set[str]:
        """Show the other runs that this one lives, now and then; returns the trials that they have taken over all the same."""
        if time.monotonic() - self._beaten < claims.BEAT / 2:
            return set()
        self._beaten = time.monotonic()
        lost = {trial for trial, claim in self._claims.items() if claim.lost}
        for claim in self._claims.values():
            claim.beat()
        return lost

    def lose(self, job: Job) -> None:
        """Another run has taken the job over; wait for what comes of it."""
        self._release(job)
        self._elsewhere.append(job)

    def leave(self) -> None:
        """Let others have whatever is not finished."""
        for claim in self._claims.values():
            claim.release()
        self._claims.clear()

    def _take(self, job: Job) -> Claim | None:
        try:
            return claims.take(self._store.claims / job.spec.trial_id)
        except OSError as error:
            raise Unwritable(
                f"{self._store.claims}: a trial cannot be claimed: {error.strerror or error}; make room or allow "
                "writing, then run the same command again: finished trials are kept"
            ) from error

    def _release(self, job: Job) -> None:
        if claim := self._claims.pop(job.spec.trial_id, None):
            claim.release()

    def _tell(self, job: Job) -> None:
        result = self._store.raw(job.spec.trial_id)
        if result is not None:
            self._on_event(Done(job.spec.trial_id, result["status"], result["reason"], elsewhere=True))

    def _ends_in_time(self, job: Job) -> bool:
        """Of a method that was never run here, the longest of the others is expected."""
        if self._until is None:
            return True
        lasts = self._lasted.get(job.cell.aggregator) or max(self._lasted.values(), default=0.0)
        return time.monotonic() + lasts <= self._until

    def _version(self, job: Job) -> str | None:
        """Tells a new result of a trial from the failed one of an earlier run."""
        return self._store.stamp(job.spec.trial_id)
