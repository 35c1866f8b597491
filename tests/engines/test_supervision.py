"""The supervisor's judgement, with threads that play workers: who is blamed, what is begun again, and what the store says."""

import errno
import os
import signal
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from milbench.config import Settings
from milbench.engines import Done, Epoch, Run, Started, local, run_local
from milbench.errors import Unwritable
from milbench.trials import store as stores
from milbench.trials.plan import Job
from milbench.trials.store import Store
from tests.builders.results import cell_of, finished, spec
from tests.builders.workers import HOLDS_ITS_PIPE, Stage, one, say, serve, take


def dies_after_its_last_word(pipe, store):
    return one(pipe, store, -9)


def dies_before_its_last_word(pipe, store):
    store.write(finished(take(pipe).spec))
    return -9


def cannot_begin(pipe, store):
    say(pipe, said="broken", reason="ImportError: no such kernel")
    return 1


def dies_when_given(pipe, store):
    pipe.recv()
    return -11


def killed(pipe, store):
    take(pipe)
    return -9


def twice(script):
    """The first trial ends its worker each time it is begun; the others are done well."""

    def played(pipe, store):
        while True:
            job, _ = pipe.recv()
            say(pipe, said="started", trial=job.spec.trial_id)
            if job.spec.seed == 0:
                return script(Given(pipe, job), store)
            store.write(finished(job.spec))
            say(pipe, said="done", trial=job.spec.trial_id)

    if script in HOLDS_ITS_PIPE:
        HOLDS_ITS_PIPE.add(played)
    return played


class Given:
    """A pipe out of which a job comes that has been received already."""

    def __init__(self, pipe, job):
        self._pipe, self._jobs = pipe, [job]

    def recv(self):
        return (self._jobs.pop(), False) if self._jobs else self._pipe.recv()

    def fileno(self):
        return self._pipe.fileno()


def leaves_a_child(pipe, store):
    take(pipe)
    return -9


HOLDS_ITS_PIPE.add(leaves_a_child)


def says_half(pipe, store):
    take(pipe)
    os.write(pipe.fileno(), b'\n{"said": "do')
    return 3


def closes_its_pipe(pipe, store):
    take(pipe)


def boasts(pipe, store):
    job = take(pipe)
    say(pipe, said="done", trial=job.spec.trial_id)
    serve(pipe, store)


def babbles(pipe, store):
    """Whatever a plug-in may write into a descriptor that it takes for its own."""
    job = take(pipe)
    trial = job.spec.trial_id
    os.write(pipe.fileno(), b"\x00\xff\n" + b"[" * 5000 + b"\n1\n[]\n{}\n" + os.urandom(3000))
    say(pipe, said="started", trial=trial)
    say(pipe, said="done", trial="another")
    say(pipe, said="epoch", trial=trial, epoch="three", row=None)
    say(pipe, said=["done"], trial=[trial])
    say(pipe, said="epoch", trial=trial, epoch=1, row={"train_loss": 0.5})
    store.write(finished(job.spec))
    os.write(pipe.fileno(), b'{"said": "do')
    say(pipe, said="done", trial=trial)
    serve(pipe, store)


def finds_no_room(pipe, store):
    job = take(pipe)
    try:
        store.write(finished(job.spec))
    except Unwritable as error:
        say(pipe, said="unwritable", reason=str(error))
    pipe.recv()


@pytest.fixture
def stage(monkeypatch, tmp_path):
    """Play three trials with these workers; returns the results in order, the events and who was hired."""
    monkeypatch.setattr(local, "GRACE", 0.2)
    monkeypatch.setattr(local, "TICK", 0.02)
    jobs = [Job(trial := spec(seed=seed), {"aggregator": "AB-MIL"}, cell_of(trial)) for seed in range(3)]

    def play(*scripts, workers=1, on_event=lambda event: None, complete=True, **limits):
        stage, events = Stage(*scripts), []

        def hear(event):
            events.append(event)
            on_event(event)

        monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: stage)
        resource_tracker.ensure_running()  # once for all, with a descriptor of its own
        before = descriptors()
        try:
            run_local(Run(jobs, Settings(results=play.store.root), workers, **limits), hear)
        finally:
            play.events, play.hired = events, stage.hired
        for pipe in stage.kept:
            pipe.close()
        assert descriptors() <= before
        assert all(actor.exitcode is not None for actor in stage.hired)
        assert not list(play.store.claims.glob("*")), "nothing stays claimed"
        if not complete:
            return None
        for job in jobs:
            about = [type(event) for event in events if event.trial_id == job.spec.trial_id and not isinstance(event, Epoch)]
            assert about == [Started, Done]
        results = [play.store.read(job.spec.trial_id) for job in jobs]
        done = {event.trial_id: event for event in events if isinstance(event, Done)}
        assert [(r.status, r.reason) for r in results] == [(done[r.trial_id].status, done[r.trial_id].reason) for r in results]
        return results

    play.store, play.jobs = Store(tmp_path / "r"), jobs
    return play


def descriptors():
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_a_worker_that_dies_after_its_last_word_blames_nobody(stage, workers):
    assert [r.status for r in stage(dies_after_its_last_word, workers=workers)] == ["ok"] * 3
    assert len(stage.hired) >= 3


def test_a_result_in_the_store_counts_however_its_worker_ended(stage):
    assert [r.status for r in stage(dies_before_its_last_word)] == ["ok"] * 3


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        (twice(killed), "oom", "twice the worker process ended with SIGKILL, most likely because memory ran out"),
        (twice(leaves_a_child), "oom", "twice the worker process ended with SIGKILL, most likely because memory ran out"),
        (twice(says_half), "failed", "twice the worker process ended with exit code 3"),
        (twice(closes_its_pipe), "failed", "twice the worker process lost its pipe"),
        (boasts, "failed", "it was reported as finished, but no result is in"),
    ],
)
def test_a_trial_that_takes_its_worker_down_is_recorded_and_the_others_go_on(stage, script, status, reason):
    first, *others = stage(script)
    assert first.status == status
    assert first.reason.startswith(reason)
    assert first.labels == {"aggregator": "AB-MIL"} and first.provenance["python"]
    assert [r.status for r in others] == ["ok", "ok"]


def test_an_earlier_failure_is_not_taken_for_the_news(stage):
    job = stage.jobs[0]
    stage.store.write(finished(job.spec, status="failed", metrics={}, reason="long ago"))
    first, *_ = stage(twice(killed))
    assert (first.status, first.reason[:24]) == ("oom", "twice the worker process")


@pytest.mark.parametrize("script", [killed, says_half, closes_its_pipe, leaves_a_child])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_that_takes_its_worker_down_once_is_begun_again(stage, script, workers):
    assert [r.status for r in stage(script, serve, workers=workers)] == ["ok"] * 3


def test_a_trial_that_ran_out_of_memory_beside_others_is_run_alone_at_the_end(stage):
    begun, running = [], []

    def hungry(pipe, store):
        while True:
            job, _ = pipe.recv()
            begun.append(job.spec.seed)
            alone = not running
            running.append(job.spec.seed)
            say(pipe, said="started", trial=job.spec.trial_id)
            short = job.spec.seed == 0 and begun.count(0) == 1
            store.write(finished(job.spec, status="oom", metrics={}, reason="no memory") if short else finished(job.spec))
            running.remove(job.spec.seed)
            assert alone or begun.count(0) == 1
            say(pipe, said="done", trial=job.spec.trial_id)

    assert [r.status for r in stage(hungry, workers=2)] == ["ok"] * 3
    assert begun.count(0) == 2 and begun[-1] == 0


def test_memory_that_does_not_suffice_for_a_trial_alone_is_recorded(stage):
    def starves(pipe, store):
        while True:
            job = take(pipe)
            short = job.spec.seed == 0
            store.write(finished(job.spec, status="oom", metrics={}, reason="no memory") if short else finished(job.spec))
            say(pipe, said="done", trial=job.spec.trial_id)

    assert [r.status for r in stage(starves, workers=2)] == ["oom", "ok", "ok"]


def test_a_trial_that_hangs_is_ended(stage):
    def hangs(pipe, store):
        take(pipe)
        pipe.recv()

    first, *others = stage(hangs, serve, trial_timeout=0.1)
    assert (first.status, first.reason) == ("failed", "it ran longer than the 0 s of --trial-timeout")
    assert [r.status for r in others] == ["ok", "ok"]
    assert stage.hired[0].killed


def test_no_trial_is_begun_that_would_not_end_in_time(stage):
    method = stage.jobs[0].cell.aggregator
    stage(serve, seconds=50, lasted={method: 60}, complete=False)
    assert stage.events == [] and stage.hired == []
    stage(serve, seconds=50, lasted={method: 40})
    assert {stage.store.status(job.spec.trial_id) for job in stage.jobs} == {"ok"}


@pytest.mark.parametrize(
    ("script", "why"), [(cannot_begin, "ImportError: no such kernel"), (dies_when_given, "the last one ended with SIGSEGV")]
)
def test_a_job_that_no_worker_can_start_ends_too(stage, script, why):
    first, *others = stage(script, script, script, serve)
    assert first.status == "failed"
    assert first.reason.startswith(f"3 workers in a row could not start it: {why}")
    assert [r.status for r in others] == ["ok", "ok"]
    assert len(stage.hired) == 4


def test_two_that_cannot_start_are_made_up_for(stage):
    assert [r.status for r in stage(cannot_begin, dies_when_given, serve)] == ["ok"] * 3


def test_junk_in_the_pipe_is_passed_over(stage):
    assert [r.status for r in stage(babbles)] == ["ok"] * 3
    assert [event.row for event in stage.events if isinstance(event, Epoch)] == [{"train_loss": 0.5}]
    assert len(stage.hired) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_disk_stops_the_run_and_blames_no_trial(stage, code, monkeypatch):
    stage(serve)
    fresh = stage.store = Store(stage.store.root.with_name("full"))

    def full(path):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(stores, "flush", full)
    with pytest.raises(
        Unwritable, match=f"full/trials: a result cannot be written: {os.strerror(code)}; make room or allow writing"
    ) as error:
        stage(finds_no_room)
    assert "\n" not in str(error.value)
    assert list(fresh.trials.iterdir()) == [], "neither results nor halves"


def test_the_supervisor_cannot_record_a_death_on_a_full_disk(stage, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stores, "flush", full)
    with pytest.raises(Unwritable, match="No space left"):
        stage(killed)
    assert {stage.store.status(job.spec.trial_id) for job in stage.jobs} == {"pending"}


def test_a_signal_keeps_what_is_finished_and_leaves_nothing_of_the_rest(stage):
    def writes_for_ever(pipe, store):
        job = take(pipe)
        store.trials.mkdir(parents=True, exist_ok=True)
        (store.trials / f".writing-{job.spec.trial_id}-{store.writer}-half").mkdir()
        say(pipe, said="epoch", trial=job.spec.trial_id, epoch=1, row={})

    def stop(event):
        if isinstance(event, Epoch):
            signal.raise_signal(signal.SIGINT)

    HOLDS_ITS_PIPE.add(writes_for_ever)
    with pytest.raises(KeyboardInterrupt):
        stage(one, writes_for_ever, on_event=stop)
    assert [stage.store.status(job.spec.trial_id) for job in stage.jobs] == ["ok", "pending", "pending"]
    assert [path.name for path in stage.store.trials.iterdir()] == [stage.jobs[0].spec.trial_id]
    assert stage.hired[-1].killed
