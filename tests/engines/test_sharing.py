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


def brief(begun):
    """A worker whose trials end well and soon; it notes which it began."""

    def works(pipe, store):
        while True:
            job = take(pipe)
            begun.append(job.spec.trial_id)
            time.sleep(0.02)
            store.write(finished(job.spec))
            say(pipe, said="done", trial=job.spec.trial_id)

    return works


@pytest.mark.parametrize("runs", [2, 4, 8])
def test_several_runs_share_the_trials_and_none_is_run_twice(store, monkeypatch, runs):
    some, begun, heard = jobs(24), [], []

    stage = Stage(brief(begun))
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: stage)
    threads = [threading.Thread(target=lambda: heard.append(run(store, some, workers=2))) for _ in range(runs)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(begun) == sorted(job.spec.trial_id for job in some)
    assert len(heard) == runs
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


def dead(store, job, begun=0, writer=""):
    """A claim whose run is no more."""
    claim = claims.take(store.claims / job.spec.trial_id, writer)
    claim.path.write_bytes(b'{"machine": "gone", "pid": 1, "beat": 0.0, "writer": "%s"}\n' % writer.encode() + b"." * begun)


def test_a_trial_that_falls_stays_with_the_run_that_saw_it_fall(store, monkeypatch):
    """However many runs there are, it is begun twice and its end recorded once."""
    some, begun = jobs(6), []

    def falls(pipe, store):
        while True:
            job = take(pipe)
            begun.append(job.spec.seed)
            if job.spec.seed == 0:
                return -9
            time.sleep(0.02)
            store.write(finished(job.spec))
            say(pipe, said="done", trial=job.spec.trial_id)

    stage, heard = Stage(falls), []
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: stage)
    threads = [threading.Thread(target=lambda: heard.append(run(store, some))) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(begun) == [0, 0, 1, 2, 3, 4, 5]
    for events in heard:
        assert {e.trial_id: e.status for e in of(events, Done)}[some[0].spec.trial_id] == "oom"


@pytest.mark.parametrize("begun", [0, sharing.FALLS - 1, sharing.FALLS])
def test_a_trial_that_takes_whole_runs_down_is_left_alone_at_last(store, monkeypatch, begun):
    (job,) = some = jobs(1)
    dead(store, job, begun)
    stage = Stage(serve)
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: stage)
    events = run(store, some)
    assert [type(event) for event in events] == [Started, Done]
    assert events[-1].status == ("failed" if begun == sharing.FALLS else "ok")
    assert len(stage.hired) == (begun < sharing.FALLS)
    assert not list(store.claims.iterdir())


def test_what_a_dead_run_had_half_written_goes_with_its_claim(store, monkeypatch):
    (job,) = some = jobs(1)
    dead(store, job, writer="abc")
    dead(store, other := jobs(2)[1], writer="*")
    for writer in ("abc", "def"):
        (store.trials / f".writing-{job.spec.trial_id}-{writer}-1").mkdir(parents=True)
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: Stage(serve))
    run(store, [*some, other])
    assert [path.name.split("-")[2] for path in store.trials.glob(".*")] == ["def"]


def test_a_run_that_was_halted_while_it_wrote_goes_on(store, monkeypatch):
    """Another has taken the trial over and removed what was half written; that is no full disk."""
    (job,) = some = jobs(1)

    def halted(pipe, store):
        take(pipe)
        path = store.claims / job.spec.trial_id
        path.unlink()
        theirs = claims.take(path)
        say(pipe, said="unwritable", reason="No such file or directory")
        time.sleep(0.1)
        store.write(finished(job.spec))
        theirs.release()

    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: Stage(halted))
    events = run(store, some)
    assert [(event.status, event.elsewhere) for event in of(events, Done)] == [("ok", True)]


def test_a_trial_that_another_run_is_about_to_try_again_is_not_over(store, monkeypatch):
    """It ran out of memory beside others, and waits there to be run alone."""
    (job,) = some = jobs(1)
    theirs = claims.take(store.claims / job.spec.trial_id)

    def finish():
        store.write(finished(job.spec, status="oom", metrics={}, reason="no memory"))
        time.sleep(0.3)
        store.write(finished(job.spec))
        theirs.release()

    thread = threading.Thread(target=finish)
    thread.start()
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: Stage(serve))
    assert [event.status for event in of(run(store, some), Done)] == ["ok"]
    thread.join()


def test_a_run_beside_a_worker_that_does_not_wait(store, monkeypatch):
    """`milbench run` and `milbench work` on one folder: each trial once, and the run sees all of them through."""
    some, begun, heard = jobs(12), [], {}

    stage = Stage(brief(begun))
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: stage)
    threads = [
        threading.Thread(target=lambda wait=wait: heard.update({wait: run(store, some, wait=wait)})) for wait in (True, False)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(begun) == sorted(job.spec.trial_id for job in some)
    assert {event.trial_id for event in of(heard[True], Done)} == set(begun)
    assert {event.trial_id for event in of(heard[False], Started)} == {e.trial_id for e in of(heard[True], Done) if e.elsewhere}


def test_the_last_time_a_trial_is_begun_may_be_here(store, monkeypatch):
    (job,) = some = jobs(1)
    dead(store, job, sharing.FALLS - 1)

    def falls(pipe, store):
        take(pipe)
        return -9

    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: Stage(falls))
    events = run(store, some)
    assert [type(event) for event in events] == [Started, Done]
    assert events[-1].reason == f"begun {sharing.FALLS} times, and each time whoever ran it ended before it did"
