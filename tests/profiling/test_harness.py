"""`milbench profile harness`: the form of its table; its numbers mean nothing on a machine that runs tests."""

import json

import pytest

from milbench.engines import Done, Epoch, Started
from milbench.profiling.harness import Clock, Cost
from tests.builders.command import milbench


@pytest.fixture(scope="module")
def rows():
    told = json.loads(milbench("profile", "harness", "--small", "--json"))
    return {row["what"]: row for row in told["rows"]}


@pytest.mark.slow
def test_steps_trials_and_workers_are_measured(rows):
    assert len(rows) == 12
    assert all(row["value"] > 0 for what, row in rows.items() if not what.startswith("milbench"))
    ours, bare = rows["a training step at n = 64"]["value"], rows["the same in a bare loop"]["value"]
    assert rows["milbench over the bare loop"]["value"] == pytest.approx(100 * (ours / bare - 1))
    within, between = (rows[f"milbench {what}"]["value"] for what in ("within the trial", "between two trials"))
    assert rows["milbench over the bare script"]["value"] == pytest.approx(within + between)
    one, two = (rows[f"trials an hour, {word}"]["value"] for word in ("one worker", "two workers"))
    assert rows["two workers over one"]["value"] == pytest.approx(two / one)


@pytest.mark.slow
def test_small_trials_are_held_against_nothing(rows):
    assert {row["holds"] for row in rows.values()} == {None}


@pytest.mark.parametrize(
    ("cost", "holds"),
    [
        (Cost("x", 3.0, "%", 3.0), True),
        (Cost("x", 3.1, "%", 3.0), False),
        (Cost("x", 1.8, "x", 1.8, at_least=True), True),
        (Cost("x", 1.7, "x", 1.8, at_least=True), False),
        (Cost("x", 1.7, "x"), None),
    ],
)
def test_a_number_is_held_against_its_bar(cost, holds):
    assert cost.holds is holds


def test_the_clock_takes_the_first_start_and_end_and_the_last_end(monkeypatch):
    times = iter([10.0, 11.0, 12.0, 13.0, 15.0, 16.0])
    monkeypatch.setattr("milbench.profiling.harness.time.perf_counter", lambda: next(times))
    clock = Clock()
    clock.start()
    for event in (Started("a"), Epoch("a", 1, {}), Done("a", "ok"), Started("b"), Done("b", "ok")):
        clock(event)
    assert (clock.first, clock.warm, clock.last) == (1.0, 3.0, 6.0)


def test_a_noisy_machine_is_said(monkeypatch):
    from milbench.api import profiles

    monkeypatch.setattr(profiles, "harness", lambda **asked: ([Cost("x", 1.0, "s")], "somebody else is here"))
    told = milbench("profile", "harness")
    assert "-    x: 1 s" in told
    assert "Not a quiet machine: somebody else is here." in told
