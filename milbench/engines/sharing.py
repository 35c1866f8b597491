"""The jobs of a run, shared with every other run on the same results folder: each trial is claimed before it is started."""

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from milbench import claims
from milbench.claims import Claim
from milbench.engines.base import Done, Event, Run, Started
from milbench.errors import Unwritable
from milbench.trials.plan import Job
from milbench.trials.store import Store

POLL = 2.0  # seconds between two looks at the trials that other runs have
FALLS = 5  # times that a trial is begun and comes to no end, on this machine and all others, before it is left alone


class Shared:
    """Hands out jobs that have no result and that no other run has claimed.

    Args:
        run: the jobs, and how much time there is.
        store: where results appear, whoever gives them.
        on_event: called with `Done` for each job that another run gave a result.

    Attributes:
        before: which results were there when the run began.
    """

    def __init__(self, run: Run, store: Store, on_event: Callable[[Event], None]) -> None:
        self._store, self._on_event = store, on_event
        self._waiting = deque(run.jobs)
        self._alone: deque[Job] = deque()  # ran out of memory beside others
        self._lonely = ""  # the last of them that was handed out
        self._elsewhere: list[Job] = []  # claimed by another run when we last looked
        self._claims: dict[str, Claim] = {}
        self._seen: set[str] = set()  # begun by another, as far as `look` has told
        self._wait = run.wait
        self._until = None if run.seconds is None else time.monotonic() + run.seconds
        self._lasted = dict(run.lasted)
        now = {job.trial_id: self._version(job) for job in run.jobs} if run.before is None else run.before
        self.before: dict[str, object] = {trial_id: at for trial_id, at in now.items() if at}
        self._looked = self._beaten = time.monotonic()

    @property
    def waiting(self) -> bool:
        """Whether there is a job that this run may still do, or must wait for."""
        return bool(self._waiting or self._alone) or (self._wait and bool(self._elsewhere))

    def look(self) -> tuple[int, int]:
        """For a run that takes no job itself: tell which ones others have begun, and which have a result.

        Returns:
            How many have none, and how many of these somebody has.
        """
        claimed, taken = {path.name for path in self._store.claims.glob("[0-9a-f]*")}, 0
        still: deque[Job] = deque()
        for job in self._waiting:
            trial_id, settled = job.trial_id, self._settled(job)
            has = not settled and trial_id in claimed and claims.alive(self._store.claims / trial_id)
            if (settled or has) and trial_id not in self._seen:
                self._seen.add(trial_id)
                self._on_event(Started(trial_id))
            if settled:
                self._tell(job, elsewhere=False)
            else:
                still.append(job)
                taken += has
        self._waiting = still
        return len(still), taken

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
            self._lonely = job.trial_id if job else ""
        return job

    def _first_of(self, jobs: deque[Job]) -> Job | None:
        """The first that has no result yet, ends in time and is nobody's; it is claimed."""
        while jobs:
            job = jobs.popleft()
            if self._settled(job):
                self._tell(job)
            elif not self._ends_in_time(job):
                self._release(job)
            elif not self._take(job):
                self._elsewhere.append(job)
            elif self.news(job):  # between both looks
                self._release(job)
                self._tell(job)
            else:
                return job
        return None

    def _settled(self, job: Job) -> bool:
        """Whether another run has given the job a result, and is not about to try again."""
        trial_id = job.trial_id
        if trial_id in self._claims or not self.news(job):
            return False  # what ran out of memory here, beside others, is begun again
        return self._store.status(trial_id) in ("ok", "skipped") or not claims.alive(self._store.claims / trial_id)

    def news(self, job: Job) -> bool:
        """Whether the job has a result that it did not have when this run began."""
        now = self._version(job)
        if now is None:
            return False
        return now != self.before.get(job.trial_id) or self._store.status(job.trial_id) in ("ok", "skipped")

    def begin(self, job: Job) -> None:
        """A worker has started the job."""
        self._claims[job.trial_id].begin()

    def hopeless(self, job: Job) -> bool:
        """Whether the job was begun so often, here and elsewhere, without coming to an end, that it is left alone."""
        return self._claims[job.trial_id].begun >= FALLS

    def finish(self, job: Job, seconds: float) -> None:
        """The job has its result, after so many seconds."""
        self._lasted[job.cell.aggregator] = max(self._lasted.get(job.cell.aggregator, 0.0), seconds)
        self._release(job)

    def put_back(self, job: Job, where: Literal["first", "last", "alone"]) -> None:
        """The job has to be begun again, by this run: before the others, after them, or with nothing beside it."""
        if at := self._version(job):
            self.before[job.trial_id] = at
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

    def owns(self, job: Job) -> bool:
        """Whether the job is still this run's: another takes it over when this one has given no sign of life for long."""
        claim = self._claims.get(job.trial_id)
        return claim is not None and not claim.lost

    def _take(self, job: Job) -> bool:
        """Make the job this run's, where it is nobody's; what a dead run has not finished of it is removed."""
        trial_id = job.trial_id
        try:
            claim = None if self.owns(job) else claims.take(self._store.claims / trial_id, self._store.writer)
        except OSError as error:
            raise Unwritable(
                f"{self._store.claims}: a trial cannot be claimed: {error.strerror or error}; make room or allow "
                "writing, then run the same command again: finished trials are kept"
            ) from error
        if claim:
            self._release(job)  # the one that was lost
            self._claims[trial_id] = claim
            writer = str((claim.before or {}).get("writer"))
            if claim.before and writer.isalnum():  # part of the names of files, whoever wrote it there
                Store(self._store.root, writer).abandon()
        return self.owns(job)

    def _release(self, job: Job) -> None:
        if claim := self._claims.pop(job.trial_id, None):
            claim.release()

    def _tell(self, job: Job, *, elsewhere: bool = True) -> None:
        result = self._store.raw(job.trial_id)
        if result is not None:
            self._on_event(Done(job.trial_id, result["status"], result["reason"], elsewhere=elsewhere))

    def _ends_in_time(self, job: Job) -> bool:
        """Of a method that was never run here, the longest of the others is expected."""
        if self._until is None:
            return True
        lasts = self._lasted.get(job.cell.aggregator) or max(self._lasted.values(), default=0.0)
        return time.monotonic() + lasts <= self._until

    def _version(self, job: Job) -> str | None:
        """Tells a new result of a trial from the failed one of an earlier run."""
        return self._store.stamp(job.trial_id)
