"""Runs on one results folder: every trial is run once, by one of them, and all of them see it through."""

import threading
import time

import pytest

from milbench import claims
from milbench.config import Settings
from milbench.engines import Done, Run, Started, local, run_local, sharing
from milbench.trials.plan import Job
from milbench.trials.store import Store
from tests.builders.results import cell_of, finished, spec
from tests.builders.workers import Stage, one, say, serve, take


@pytest.fixture
def store(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "GRACE", 0.2)
    monkeypatch.setattr(local, "TICK", 0.01)
    monkeypatch.setattr(sharing, "POLL", 0.05)
    monkeypatch.setattr(claims, "BEAT", 0.2)
    return Store(tmp_path)


def jobs(count):
    return [Job(trial := spec(seed=seed), {"aggregator": "AB-MIL"}, cell_of(trial)) for seed in range(count)]


def run(store, some, **how):
    events = []
    run_local(Run(some, Settings(results=store.root), **how), events.append)
    return events


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("runs", [2, 4, 8])
def test_several_runs_share_the_trials_and_none_is_run_twice(store, monkeypatch, runs):
    some, begun, heard = jobs(24), [], []

    def works(pipe, store):
        while True:
            job = take(pipe)
            begun.append(job.spec.trial_id)
            time.sleep(0.02)
            store.write(finished(job.spec))
            say(pipe, said="done", trial=job.spec.trial_id)

    stage = Stage(works)
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: stage)
    threads = [threading.Thread(target=lambda: heard.append(run(store, some, workers=2))) for _ in range(runs)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(begun) == sorted(job.spec.trial_id for job in some)
    for events in heard:
        done = of(events, Done)
        assert sorted(event.trial_id for event in done) == sorted(begun), "each run tells of every trial"
        own = {event.trial_id for event in of(events, Started)}
        assert own == {event.trial_id for event in done if not event.elsewhere}
    assert not list(store.claims.glob("*"))


def test_a_trial_of_another_run_is_waited_for(store, monkeypatch):
    first, second = some = jobs(2)
    theirs = claims.take(store.claims / first.spec.trial_id)

    def finish():
        time.sleep(0.3)
        store.write(finished(first.spec, status="failed", metrics={}, reason="no luck"))
        theirs.release()

    threading.Thread(target=finish).start()
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: Stage(serve))
    events = run(store, some)
    assert [event.trial_id for event in of(events, Started)] == [second.spec.trial_id]
    assert [(event.trial_id, event.status, event.elsewhere) for event in of(events, Done)] == [
        (second.spec.trial_id, "ok", False), (first.spec.trial_id, "failed", True),
    ]  # fmt: skip


def test_a_worker_need_not_wait_for_others(store, monkeypatch):
    first, second = some = jobs(2)
    theirs = claims.take(store.claims / first.spec.trial_id)
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: Stage(serve))
    events = run(store, some, wait=False)
    assert [event.trial_id for event in of(events, Done)] == [second.spec.trial_id]
    theirs.release()


def test_what_a_dead_run_had_is_run(store, monkeypatch):
    (job,) = some = jobs(1)
    claim = claims.take(store.claims / job.spec.trial_id)
    claim.path.write_text('{"machine": "gone", "pid": 1, "beat": 0.1}')
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: Stage(one))
    events = run(store, some)
    assert [event.elsewhere for event in of(events, Done)] == [False]


def test_a_run_that_was_halted_leaves_what_others_took_over(store, monkeypatch):
    """Its worker is killed, and the trial is the other run's."""
    (job,) = some = jobs(1)

    def halted(pipe, store):
        take(pipe)
        path = store.claims / job.spec.trial_id
        path.unlink()
        theirs.append(claims.take(path))
        pipe.recv()

    theirs = []
    stage = Stage(halted)
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: stage)

    def finish():
        while not stage.hired or not stage.hired[0].killed:
            time.sleep(0.01)
        store.write(finished(job.spec))
        theirs[0].release()

    threading.Thread(target=finish).start()
    events = run(store, some)
    assert [(event.status, event.elsewhere) for event in of(events, Done)] == [("ok", True)]
    assert len(stage.hired) == 1
