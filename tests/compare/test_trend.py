"""Performance against the size of the bag: intervals are over patients, whose slides stay together."""

from types import SimpleNamespace

import numpy as np
import pytest

from milbench.compare.trend import trend


def run(n=16, copies=1, patients=True):
    rng = np.random.default_rng(0)
    at = np.tile(np.arange(n), copies)
    target, instances = np.arange(n) % 2, rng.integers(10, 900, n)
    score = np.eye(2)[target] + rng.normal(size=(n, 2))
    slide = np.array([f"s{i:03d}" for i in range(len(at))])
    case = np.array([f"p{i}" for i in at]) if patients else slide
    return SimpleNamespace(
        predictions={"slide": slide, "case": case, "target": target[at], "score": score[at], "instances": instances[at]}
    )


def test_copies_of_a_slide_tell_nothing_new():
    one, three = trend([run()], "x"), trend([run(copies=3)], "x")
    assert (three.slope, three.low, three.high) == pytest.approx((one.slope, one.low, one.high))
    assert np.array(three.line) == pytest.approx(np.array(one.line))
    assert (three.cases, three.patients, one.patients) == (48, 16, 16)
    alone = trend([run(copies=3, patients=False)], "x")
    assert alone.high - alone.low < 0.75 * (one.high - one.low), "without patients the copies count"


def test_patients_of_one_slide_are_slides():
    known, unknown = trend([run()], "x"), trend([run(patients=False)], "x")
    assert known == unknown
    del (bare := run(patients=False)).predictions["case"]
    assert trend([bare], "x") == unknown


def test_the_error_of_a_group_is_that_of_its_patients():
    predictions = run().predictions
    right = (predictions["score"].argmax(1) == predictions["target"]).astype(float)
    first = np.argsort(predictions["instances"], kind="stable")[:4]
    found = trend([run()], "x").bins[0]
    assert found.high - found.mean == pytest.approx(right[first].std(ddof=1) / 2)
