"""Claims: one process has a thing, and what a dead one had is free again."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from milbench import claims


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.1)


def elsewhere(path):
    """Make a claim that is there look like one of another machine."""
    line, _, dots = path.read_text().partition("\n")
    before = path.stat()
    path.write_text(json.dumps(json.loads(line) | {"machine": "another"}) + "\n" + dots)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def age(path, seconds):
    at = path.stat().st_mtime - seconds
    os.utime(path, (at, at))


def test_a_claim_is_one_process_s_until_it_is_released(tmp_path):
    claim = claims.take(tmp_path / "c" / "a")
    assert claims.holder(claim.path)["pid"] == os.getpid()
    assert claims.take(claim.path) is None and not claim.lost
    claim.release()
    assert not list((tmp_path / "c").iterdir())
    claim.release()
    assert claims.take(claim.path)


def test_of_many_at_once_one_gets_it(tmp_path):
    """Free from the start, and free since its holder is dead."""
    for old in (None, "dead", "silent"):
        path = tmp_path / f"{old}"
        if old:
            claims.take(path)
            elsewhere(path)
            age(path, 10)
        got, start = [], threading.Barrier(16)

        def compete(path=path, got=got, start=start):
            start.wait()
            if claim := claims.take(path):
                got.append(claim)

        threads = [threading.Thread(target=compete) for _ in range(16)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(got) == 1 and not got[0].lost
        assert [left.name for left in tmp_path.iterdir() if left.name.startswith(".")] == []


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path):
    code = f"from milbench import claims; from pathlib import Path; claims.take(Path({str(tmp_path / 'a')!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "a").exists()
    assert claims.take(tmp_path / "a")


def test_a_zombie_holds_nothing(tmp_path):
    code = f"from milbench import claims; from pathlib import Path; claims.take(Path({str(tmp_path / 'a')!r}))"
    child = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not (tmp_path / "a").exists() or not (tmp_path / "a").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    try:
        while (claim := claims.take(tmp_path / "a")) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert child.returncode is None, "nobody has asked for its exit code"
        assert not claim.lost
    finally:
        child.wait()


@pytest.mark.parametrize("text", [None, "", "{}", '{"pid": "x"}', "\x00\xff", "[1]"])
def test_another_machine_s_claim_is_free_after_three_missed_beats(tmp_path, text):
    """Whatever is in it: its process may have ended before it was written."""
    claim = claims.take(tmp_path / "a")
    if text is None:
        elsewhere(claim.path)
    else:
        claim.path.write_text(text)
    assert claims.take(claim.path) is None
    age(claim.path, 0.25)
    assert claims.take(claim.path) is None
    age(claim.path, 0.2)
    assert claims.take(claim.path)
    assert claim.lost


def test_a_beat_keeps_a_claim_and_never_another_s(tmp_path):
    claim = claims.take(tmp_path / "a")
    elsewhere(claim.path)
    age(claim.path, 10)
    claim.beat()
    assert claims.take(claim.path) is None
    age(claim.path, 10)
    other = claims.take(claim.path)
    age(claim.path, 10)
    claim.beat()
    assert time.time() - claim.path.stat().st_mtime > 5, "the old holder's sign of life says nothing of the new one"
    claim.release()
    assert claim.path.exists() and not other.lost


def test_the_clock_of_the_file_system_counts(tmp_path, monkeypatch):
    claim = claims.take(tmp_path / "a")
    elsewhere(claim.path)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert claims.take(claim.path) is None


def test_a_takeover_that_ended_on_the_way_stops_nobody(tmp_path):
    claim = claims.take(tmp_path / "a")
    elsewhere(claim.path)
    age(claim.path, 10)
    digest = hashlib.sha256(claim.path.read_bytes()).hexdigest()[:16]
    left = tmp_path / f".taking-a-{digest}-0"
    left.write_bytes(b"")
    assert claims.take(claim.path) is None, "another is about to"
    age(left, 10)
    assert claims.take(claim.path)
    age(left, 7200)
    claims.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_held_waits_for_its_turn_and_lives_as_long_as_it_takes(tmp_path):
    inside, most = [], []

    def work():
        with claims.held(tmp_path / "a"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.5)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert most == [1, 1, 1]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_files_says_so(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        claims.take(tmp_path / "f" / "a")


def test_how_often_the_work_was_begun_outlives_its_holder(tmp_path):
    claim = claims.take(tmp_path / "a", writer="w1")
    assert (claim.begun, claim.before) == (0, None)
    claim.begin()
    claim.begin()
    elsewhere(claim.path)
    age(claim.path, 10)
    heir = claims.take(claim.path)
    assert (heir.begun, heir.before["writer"]) == (2, "w1")
    heir.begin()
    assert heir.begun == 3 and not heir.lost
    heir.release()
    assert claims.take(claim.path).begun == 0


@pytest.mark.parametrize("dead", [True, False])
def test_a_clock_that_is_set_back_keeps_nobody_out_for_ever(tmp_path, dead):
    """Signs of life were given an hour ahead of what the clock says now."""
    claim = claims.take(tmp_path / "a")
    elsewhere(claim.path)
    claim.content = claim.path.read_bytes()
    age(claim.path, -3600)
    assert claims.take(claim.path) is None, "it may live, and gives its next sign by the new clock"
    if not dead:
        age(claim.path, 0.25)
        claim.beat()
        assert claims.take(claim.path) is None
    time.sleep(0.35)
    assert claims.take(claim.path)
