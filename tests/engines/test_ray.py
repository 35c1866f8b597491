"""The engine above a Ray cluster that threads play: what it does when workers, nodes or the cluster are lost."""

import signal
import socket
import sys
import threading
import time

import pytest

from milbench import claims
from milbench.config import Settings
from milbench.engines import Done, Run, Started, ray, run_ray, sharing
from milbench.errors import MilbenchError, Unwritable
from milbench.trials.plan import Job
from milbench.trials.store import Store
from tests.builders.cluster import Cluster, Lost
from tests.builders.results import cell_of, finished, spec

told = []  # signals that workers have sent to their processes


@pytest.fixture
def store(monkeypatch, tmp_path):
    told.clear()
    for where in (ray, sharing):
        monkeypatch.setattr(where, "POLL", 0.02)
    monkeypatch.setattr(claims, "BEAT", 0.2)
    monkeypatch.setattr(ray, "PARTING", 0.2)
    monkeypatch.setattr(ray.os, "kill", lambda pid, number: told.append(number) if number else None)  # of this process, here
    return Store(tmp_path / "r")


@pytest.fixture
def cluster(monkeypatch):
    def of(*fates, **how):
        made = Cluster(*fates, **how)
        monkeypatch.setitem(sys.modules, "ray", made)
        return made

    return of


def jobs(count, **more):
    return [Job(trial := spec(seed=seed, **more), {"aggregator": "AB-MIL"}, cell_of(trial)) for seed in range(count)]


@pytest.fixture
def worker(monkeypatch):
    """What a worker does instead of the local engine's loop: claim, and write a result; returns the trials that it ran."""
    ran = []

    def loop(run):
        shared = sharing.Shared(run, here := Store(run.settings.results), lambda event: None)
        while job := shared.next(0):
            ran.append(job.spec.seed)
            time.sleep(0.01)
            here.write(finished(job.spec))
            shared.finish(job, 0.0)

    monkeypatch.setattr(ray, "run_local", loop)
    return ran


def well(work):
    work()


def is_lost(work):
    raise Lost("the node it was running on is dead")


def run(store, some, **how):
    events = []
    run_ray(Run(some, Settings(results=store.root), **how), events.append)
    return events


def test_workers_share_the_trials_and_every_event_is_told(store, cluster, worker):
    made = cluster(well)
    events = run(store, some := jobs(12), workers=3)
    assert sorted(worker) == list(range(12)), "each once"
    for job in some:
        told = [event for event in events if event.trial_id == job.spec.trial_id]
        assert told == [Started(job.spec.trial_id), Done(job.spec.trial_id, "ok")]
    assert made.begun == 3 and made.ended
    assert made.options == {"max_retries": 0, "num_cpus": some[0].spec.threads, "num_gpus": 0}
    assert not list(store.claims.iterdir())


def test_a_gpu_is_shared_by_so_many_workers(store, cluster, worker):
    made = cluster(well, nodes=({"CPU": 2.0, "GPU": 1.0},))
    run(store, jobs(1, device="cuda"), per_gpu=4)
    assert made.options["num_gpus"] == 0.25


def test_a_lost_worker_is_replaced(store, cluster, worker):
    made = cluster(is_lost, is_lost, well)
    run(store, jobs(3), workers=1)
    assert sorted(worker) == [0, 1, 2] and made.begun == 3


def test_results_are_looked_at_before_a_worker_is_begun_again(store, cluster, worker):
    """It finished everything and was then lost."""

    def finishes_and_is_lost(work):
        work()
        raise Lost("the node is dead")

    made = cluster(finishes_and_is_lost)
    assert len(run(store, jobs(2), workers=1)) == 4
    assert made.begun == 1


def test_a_failure_of_this_run_is_not_run_again_by_a_worker_that_begins_later(store, cluster, monkeypatch):
    begun = []

    def loop(run):
        shared = sharing.Shared(run, here := Store(run.settings.results), lambda event: None)
        while job := shared.next(0):
            begun.append(job.spec.seed)
            here.write(finished(job.spec, status="failed", metrics={}, reason=f"no luck {len(begun)}"))
            shared.finish(job, 0.0)
            raise Lost("and then the node went")

    monkeypatch.setattr(ray, "run_local", loop)
    some = jobs(3)
    store.write(finished(some[0].spec, status="failed", metrics={}, reason="long ago"))
    cluster(well)
    events = run(store, some, workers=1)
    assert begun == [0, 1, 2]
    assert [event.reason for event in events if isinstance(event, Done)] == ["no luck 1", "no luck 2", "no luck 3"]


def test_a_lost_node_s_trial_is_free_after_a_while(store, cluster, worker):
    """Its worker claimed it, and gives no sign of life any more."""
    some = jobs(2)

    def takes_one_and_is_lost(work):
        claim = claims.take(store.claims / some[0].spec.trial_id)
        claim.path.write_text('{"machine": "another", "pid": 1, "beat": 0.1}')
        raise Lost("the node is dead")

    cluster(takes_one_and_is_lost, well)
    run(store, some, workers=1)
    assert sorted(worker) == [0, 1]


def test_when_all_workers_are_lost_it_ends(store, cluster, worker):
    made = cluster(is_lost)
    with pytest.raises(
        MilbenchError, match="4 workers were lost one after the other; the last: the node it was running on is dead"
    ):
        run(store, jobs(3), workers=1)
    assert made.begun == 4 and made.ended


def test_a_cluster_without_what_a_worker_needs(store, cluster, worker, monkeypatch):
    monkeypatch.setattr(ray, "PATIENCE", 0.1)
    stay = threading.Event()
    made = cluster(lambda work: stay.wait(5), nodes=({"CPU": 8.0},))
    with pytest.raises(MilbenchError, match=r"no node of the cluster has the 1 CPU and 0.5 GPU that a worker needs"):
        run(store, jobs(1, device="cuda"), per_gpu=2)
    assert len(made.canceled) == 1
    stay.set()


@pytest.mark.parametrize("kind", [MilbenchError, Unwritable])
def test_what_a_worker_cannot_do_is_told(store, cluster, monkeypatch, kind):
    def cannot(run):
        raise kind("no room")

    monkeypatch.setattr(ray, "run_local", cannot)
    cluster(well)
    with pytest.raises(kind, match=r"^--engine ray: no room$"):
        run(store, jobs(1))


def test_a_node_that_sees_another_folder_of_that_name(store, cluster, worker):
    def elsewhere(work):
        next(store.claims.glob(".ray-*")).unlink()
        work()

    cluster(elsewhere)
    with pytest.raises(MilbenchError, match=r"does not see .*: results and data must be on a disk that every node sees"):
        run(store, jobs(1))


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "nowhere", "127.0.0.1:99999"])
def test_a_wrong_address_is_told_at_once(store, cluster, address):
    """Ray itself would try for a quarter of an hour where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        address = address.format(port=free.getsockname()[1])
        cluster(well)
        with pytest.raises(MilbenchError, match=f"--address {address}: no Ray cluster is reached there: "):
            run(store, jobs(1), address=address)


def test_without_ray(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MilbenchError, match=r"pip install 'milbench\[ray\]'"):
        run(store, jobs(1))


def test_ctrl_c_ends_the_workers(store, cluster, monkeypatch):
    stay = threading.Event()

    def waits(work):
        signal.raise_signal(signal.SIGINT)
        work()

    monkeypatch.setattr(ray, "run_local", lambda run: stay.wait(5))
    made = cluster(waits)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            run(store, jobs(2), workers=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(made.canceled) == 1 and made.ended
    assert told == [signal.SIGTERM], "a worker ends by itself, whether its node heeds a SIGINT or not"
    stay.set()
    assert not list(store.claims.iterdir())
