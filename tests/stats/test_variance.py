"""The primary test against printed values, a naive twin, what it must not depend on, and its smallest inputs."""

import json
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from milbench import MilbenchError, stats
from milbench.stats import Fold, variance

METRICS = ["macro_auc", "macro_f1", "accuracy"]


def run(metric, target, score):
    """A run's metric as a function of slide weights."""
    return partial(lambda score, weight: metric(target, score, weight), np.asarray(score, dtype=float))


def subtyping(metric, target, method, reference, patient=None):
    """A fold from scores (trainings, n, C)."""
    target, metric = np.asarray(target), getattr(stats, metric)
    return Fold([run(metric, target, s) for s in method], [run(metric, target, s) for s in reference], target, patient)


def survival(fold, trainings=None):
    metric = partial(stats.c_index, np.array(fold["time"]))
    sides = [[run(metric, fold["event"], s) for s in fold[side][:trainings]] for side in ("method", "reference")]
    return Fold(*sides, fold["event"], fold["patient"])


def made_up(seed=0, sizes=(3, 2), slides=24, patients=12, folds=1, metric="accuracy"):
    """Folds of three classes with some signal; patients have one to several slides and may have several classes."""
    rng = np.random.default_rng(seed)
    target = np.arange(slides) % 3
    scores = [[np.eye(3)[target] + rng.normal(size=(size, slides, 3)) for size in sizes] for _ in range(folds)]
    return [subtyping(metric, target, a, b, rng.permutation(np.arange(slides) % patients)) for a, b in scores]


def close(result, expected):
    """Against values of the oracle files."""
    for name, value in (
        ("difference", result.difference),
        ("fixed_variance", result.fixed.variance),
        ("fixed_df", result.fixed.df),
        ("fixed_p", result.fixed.p),
        ("fixed_low", result.fixed.low),
        ("fixed_high", result.fixed.high),
        ("case", result.split.patients),
        ("interaction", result.split.interaction),
        ("training", result.split.trainings),
        ("variance", result.variance),
        ("df", result.df),
        ("p", result.p),
        ("low", result.low),
        ("high", result.high),
        ("tolerated_sd", result.tolerated_sd),
    ):
        assert name not in expected or value == pytest.approx(expected[name], abs=1e-9, rel=1e-9), name
    assert result.rule == expected.get("rule", "")


@pytest.fixture
def one_split(shared):
    return json.loads((shared / "cases" / "statistics" / "primary_one_split.json").read_text())


@pytest.fixture
def three_folds(shared):
    return json.loads((shared / "cases" / "statistics" / "primary_three_folds.json").read_text())


@pytest.mark.parametrize("metric", METRICS)
def test_one_split_as_computed_elsewhere(one_split, metric):
    fold = subtyping(metric, one_split["target"], one_split["method"], one_split["reference"], one_split["patient"])
    expected = one_split["expected"][metric]
    close(stats.primary([fold]), expected)
    _, strata, df = variance.leave_one_patient_out(fold.stratum, fold.patient)
    assert strata.tolist() == expected["strata"] and df == pytest.approx(expected["df_case"], rel=1e-12)
    for runs, values in ((fold.method, "values_method"), (fold.reference, "values_reference")):
        np.testing.assert_allclose([r(np.ones((1, 14)))[0] for r in runs], expected[values], rtol=1e-12)


@pytest.mark.parametrize(("what", "folds", "trainings"), [("two_trainings", 3, 2), ("first_training_only", 3, 1)])
def test_three_folds_as_computed_elsewhere(three_folds, what, folds, trainings):
    result = stats.primary([survival(fold, trainings) for fold in three_folds["folds"][:folds]])
    close(result, three_folds["expected"][what])
    assert result.trainings == (3 * trainings, 3 * trainings) and result.patients == 24 and result.why == ""


def test_one_training_on_one_split_has_no_p_value(three_folds):
    result = stats.primary([survival(three_folds["folds"][0], 1)])
    close(result, three_folds["expected"]["one_fold_one_training"])
    assert math.isnan(result.p) and math.isnan(result.low) and result.why == variance.ONE_TRAINING
    assert math.isnan(stats.planned(result).detectable) and math.isnan(stats.needed(result, 0.1).patients)


def test_the_published_values_hold_without_the_oracle_files():
    """The same numbers as printed, for checkouts without the optional folder: three folds, c-index, first training only."""
    method = [
        [0.47, -0.96, -2.14, -2.35, -0.9, -2.07, -2.36, -3.04],
        [0.15, -0.93, -1.4, -0.58, -2.44, -2.71, -4.05, -1.94],
        [-2.27, -1.59, -2.28, -1.29, -2.82, -2.14, -1.58, -3.65],
    ]
    reference = [
        [-1.22, -0.44, -0.41, -1.59, 0.78, 0.43, -1.17, -0.38],
        [0.94, 0.04, -0.51, -1.06, -1.17, 0.48, -0.46, -1.01],
        [-1.17, -0.21, -1.53, -1.55, 0.29, -1.59, -0.07, 0.09],
    ]
    events = [[1, 0, 1, 1, 0, 1, 0, 1], [1, 1, 0, 1, 1, 0, 1, 0], [0, 1, 1, 0, 1, 1, 0, 1]]
    time = np.array([3.0, 5, 6, 8, 9, 11, 12, 15])
    folds = [
        survival({"time": time + k, "event": events[k], "method": [method[k]], "reference": [reference[k]], "patient": range(8)})
        for k in range(3)
    ]
    result = stats.primary(folds)
    assert (result.p, result.df) == (pytest.approx(0.254939256469, abs=1e-12), 2)


def twin(folds):
    """The test spelt out, one number at a time: variance, degrees of freedom."""
    K, terms, fixed, d = len(folds), [], [], []
    for method, reference, patient, stratum in folds:  # runs are functions of one weight vector
        people, runs = sorted(set(patient)), [*method, *reference]
        w = [1 / len(method)] * len(method) + [-1 / len(reference)] * len(reference)
        classes = {p: {s for q, s in zip(patient, stratum, strict=True) if q == p} for p in people}
        pure = all(len(c) == 1 for c in classes.values())
        groups = [[p for p in people if classes[p] == {s}] for s in sorted(set(stratum))] if pure else [people]
        groups = groups if min(map(len, groups)) > 1 else [people]
        left = {p: [run(np.array([float(q != p) for q in patient])) for run in runs] for p in people}
        S = np.zeros((len(runs),) * 2)
        for group in groups:
            S += (len(group) - 1) ** 2 / len(group) * np.cov([left[p] for p in group], rowvar=False)
        m = [sum(q == p for q in patient) for p in people]
        df = max(1, sum(m) ** 2 / sum(x * x for x in m) - len(groups))
        value, J = [run(np.ones(len(patient))) for run in runs], len(method)
        d.append(sum(a * b for a, b in zip(w, value, strict=True)))
        fixed.append((sum(w[i] * S[i, j] * w[j] for i in range(len(w)) for j in range(len(w))) / K**2, df))
        if min(J, len(reference)) > 1:
            off = [np.mean([S[i, j] for i in side for j in side if i != j]) for side in (range(J), range(J, len(runs)))]
            terms.append((max(sum(off) - 2 * np.mean([S[i, j] for i in range(J) for j in range(J, len(runs))]), 0) / K**2, df))
            terms += [(np.var(v, ddof=1) / len(v) / K**2, len(v) - 1) for v in (value[:J], value[J:])]
    total = lambda t: (s := sum(x for x, _ in t), s**2 / sum(x * x / f for x, f in t) if s else math.inf)  # noqa: E731
    options = [total(terms), total(fixed)] if len(terms) == 3 * K else []
    options += [(np.var(d, ddof=1) / K, K - 1)] if K > 1 else []
    return np.mean(d), max(options, default=(math.nan, math.nan))


@given(st.data())
def test_agrees_with_a_naive_twin(data):
    folds, spelt, metric = [], [], data.draw(st.sampled_from([stats.accuracy, stats.macro_f1, stats.brier]))
    for _ in range(data.draw(st.integers(1, 3))):
        J, L, n = (data.draw(st.integers(low, high)) for low, high in ((1, 3), (1, 3), (3, 9)))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
        patient, stratum = rng.integers(0, data.draw(st.integers(1, n)), n), rng.integers(0, 2, n)
        patient[:2] = 0, 1  # two patients or more
        if data.draw(st.booleans()):
            stratum = patient % 2  # each patient has one class
        scores = rng.normal(size=(J + L, n, 2)).round(1)
        runs = [partial(lambda s, y, w: metric(y, s, w), s, stratum) for s in scores]
        folds.append(Fold(runs[:J], runs[J:], stratum, patient))
        spelt.append((runs[:J], runs[J:], patient.tolist(), stratum.tolist()))
    result, (difference, (var, df)) = stats.primary(folds), twin(spelt)
    assert result.difference == pytest.approx(difference, abs=1e-11)
    assert result.variance == pytest.approx(var, rel=1e-9, abs=1e-18, nan_ok=True)
    if var > 1e-12:
        assert result.df == pytest.approx(df, rel=1e-6)
        assert result.p == pytest.approx(2 * student.sf(abs(difference) / math.sqrt(var), df), rel=1e-6)
        assert (result.low <= 0 <= result.high) == (result.p >= 0.05)


def same(a, b):
    for name in ("difference", "low", "high", "variance", "df", "p"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-9, abs=1e-11), name
    assert (a.rule, a.split.patients) == (b.rule, pytest.approx(b.split.patients, abs=1e-11))


@pytest.mark.parametrize("folds", [1, 3])
def test_swapping_the_methods_turns_the_sign(folds):
    made = made_up(folds=folds)
    a, b = stats.primary(made), stats.primary([Fold(f.reference, f.method, f.stratum, f.patient) for f in made])
    assert (b.difference, b.low, b.high, b.p) == pytest.approx((-a.difference, -a.high, -a.low, a.p), rel=1e-10)
    assert (a.split, a.fixed.p) == (b.split, pytest.approx(b.fixed.p, rel=1e-10)) and a.trainings == b.trainings[::-1]


def test_neither_the_order_of_slides_nor_of_seeds_nor_of_folds_matters():
    made = made_up(folds=2)
    order = np.random.default_rng(1).permutation(24)
    back = np.argsort(order)
    moved = [
        Fold(
            [lambda c, r=r: r(c[:, back]) for r in f.method[::-1]],
            [lambda c, r=r: r(c[:, back]) for r in f.reference],
            np.asarray(f.stratum)[order],
            [f"patient {p}" for p in np.asarray(f.patient)[order]],
        )
        for f in made[::-1]
    ]
    same(stats.primary(made), stats.primary(moved))


def test_the_scale_of_weights_does_not_matter():
    made = made_up()[0]
    scaled = [[lambda c, r=r: r(7 * c) for r in side] for side in (made.method, made.reference)]
    same(stats.primary([made]), stats.primary([Fold(*scaled, made.stratum, made.patient)]))


def test_slides_of_a_patient_count_once():
    """Copies of every slide bring no new patient: the same variance of an accuracy, the same degrees of freedom."""
    rng, target = np.random.default_rng(0), np.arange(12) % 2
    scores = rng.normal(size=(2, 3, 12, 2))
    few = stats.primary([subtyping("accuracy", target, *scores, range(12))])
    many = stats.primary([subtyping("accuracy", np.tile(target, 5), *np.tile(scores, (1, 1, 5, 1)), np.tile(range(12), 5))])
    same(few, many)
    blind = stats.primary([subtyping("accuracy", np.tile(target, 5), *np.tile(scores, (1, 1, 5, 1)))])
    assert blind.fixed.p < few.fixed.p and (blind.patients_known, few.patients_known, blind.patients) == (False, True, 60)


def test_the_split_adds_up():
    for seed in range(20):
        result = stats.primary(made_up(seed, sizes=(4, 3)))
        parts = result.split
        assert min(parts.patients, parts.trainings, parts.interaction) >= 0
        if result.rule == "trainings and patients":
            assert parts.patients + parts.trainings + parts.interaction == pytest.approx(result.variance, abs=1e-11)


# The smallest inputs.


def test_few_slides_that_do_not_vary_have_no_p_value():
    """A perfect and a constant prediction of 2, 4 or 6 slides: every slide of a class is like the others."""
    for n in (2, 3):
        target = np.repeat([0, 1], n)
        good, constant = np.where(target[:, None] == [0, 1], 0.9, 0.1), np.tile([0.6, 0.4], (2 * n, 1))
        result = stats.primary([subtyping("macro_f1", target, [good, good], [constant, constant])])
        assert math.isnan(result.p) and math.isnan(result.high) and result.why == variance.NO_SPREAD
        assert result.difference == pytest.approx(2 / 3)
        assert math.isnan(stats.planned(result).detectable)
        lonely = stats.primary([subtyping("macro_f1", target, [good], [constant])])
        assert math.isnan(lonely.tolerated_sd) and math.isnan(lonely.fixed.p)


@pytest.mark.parametrize("folds", [1, 3])
def test_a_method_does_not_differ_from_itself(folds):
    target = np.arange(9) % 3
    score = np.random.default_rng(0).normal(size=(9, 3))
    result = stats.primary([subtyping("macro_auc", target, [score, score], [score, score])] * folds)
    assert (result.difference, result.low, result.high, result.p, result.why) == (0, 0, 0, 1, "")
    plan = stats.planned(result)
    assert (plan.half_width, plan.detectable) == (0, 0)
    once = stats.primary([subtyping("macro_auc", target, [score], [score])])
    assert (once.fixed.p, once.tolerated_sd) == (1, 0)


def test_folds_that_differ_by_the_same_amount_have_no_p_value():
    target = np.arange(8) % 2
    good, bad = np.eye(2)[target], np.eye(2)[np.where(np.arange(8) < 4, target, 1 - target)]
    result = stats.primary([subtyping("accuracy", target, [good], [bad])] * 3)
    assert math.isnan(result.p) and result.why == variance.NO_SPREAD and result.difference == 0.5
    assert 0 < result.fixed.p < 0.05 and math.isnan(stats.planned(result).half_width)


def test_a_metric_that_is_undefined_without_a_patient_has_no_interval():
    target = np.array([0, 0, 0, 1, 2, 2])  # nobody else has class 1
    scores = np.random.default_rng(0).normal(size=(2, 2, 6, 3))
    result = stats.primary([subtyping("macro_auc", target, *scores)])
    assert result.why == "the metric is undefined when one patient is left out" and not math.isnan(result.difference)
    assert all(math.isnan(x) for x in (result.p, result.low, result.fixed.p, result.split.patients, result.tolerated_sd))
    assert stats.primary([subtyping("macro_f1", target, *scores)]).why == "", "F1 is defined without class 1"


def test_an_undefined_metric_and_a_single_patient_say_so():
    scores = np.random.default_rng(0).normal(size=(2, 2, 6, 3))
    missing = stats.primary([subtyping("macro_auc", np.array([0, 0, 0, 1, 1, 1]), *scores)])
    assert math.isnan(missing.difference) and missing.why == "the metric of a run is undefined"
    single = stats.primary([subtyping("accuracy", np.arange(6) % 3, *scores, np.zeros(6))])
    assert math.isnan(single.p) and single.why == "a fold has one patient: how much patients differ is unknown"


def test_strata_are_classes_only_where_each_patient_has_one_and_each_class_two():
    rule = variance.leave_one_patient_out
    assert rule([0, 0, 1, 1], [3, 4, 5, 6])[1].tolist() == [0, 0, 1, 1]
    assert rule([0, 0, 1, 1], [3, 4, 5, 5])[1].tolist() == [0, 0, 0], "class 1 has one patient"
    assert rule([0, 1, 1, 1], [3, 3, 5, 6])[1].tolist() == [0, 0, 0], "patient 3 has two classes"
    weights, _, df = rule(["a", "a", "b", "b"], ["x", "y", "z", "x"])
    assert weights.tolist() == [[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1]] and df == pytest.approx(16 / 6 - 1)


def test_one_training_of_one_side_is_too_few():
    result = stats.primary(made_up(sizes=(4, 1)))
    assert math.isnan(result.p) and result.why == variance.ONE_TRAINING and result.tolerated_sd >= 0


def test_the_tolerated_spread_is_where_the_difference_stops_to_be_significant():
    target = np.arange(30) % 3
    rng = np.random.default_rng(0)
    good, bad = (strength * np.eye(3)[target] + rng.normal(size=(1, 30, 3)) for strength in (4, 0))
    result = stats.primary([subtyping("accuracy", target, good, bad)])
    assert result.tolerated_sd > 0
    total = result.fixed.variance + 2 * result.tolerated_sd**2
    assert 2 * student.sf(result.difference / math.sqrt(total), result.fixed.df) == pytest.approx(0.05, rel=1e-6)


def test_nothing_to_compare_is_an_error():
    with pytest.raises(MilbenchError, match="there is no fold"):
        stats.primary([])
    with pytest.raises(MilbenchError, match="0 and 1 runs"):
        Fold([], [lambda c: c.mean(1)], [0, 1])
    for patient in ([0], ["a", None], [0.0, math.nan]):
        with pytest.raises(MilbenchError, match="patient of 1 of 2 slides"):
            Fold([lambda c: c.mean(1)], [lambda c: c.mean(1)], [0, 1], patient)


# Planning.


@pytest.mark.parametrize("folds", [1, 4])
@pytest.mark.parametrize("seed", range(6))
def test_a_plan_with_what_there_is_is_the_interval(seed, folds):
    result = stats.primary(made_up(seed, folds=folds))
    plan = stats.planned(result)
    assert plan.half_width == pytest.approx((result.high - result.low) / 2, rel=1e-9)
    assert plan.detectable > plan.half_width
    more = [stats.planned(result, seeds=s, patients=m) for s, m in ((2, 1), (1, 2), (2, 2))]
    assert all(p.half_width <= plan.half_width + 1e-12 for p in more)


def test_the_detectable_difference_has_80_percent_power():
    for df in (3, 5, 16, 60):
        detectable = student.ppf(0.975, df) + student.ppf(0.8, df)
        assert stats.power(detectable, 1.0, df=df) == pytest.approx(0.8, abs=0.04)
    result = stats.primary(made_up(sizes=(6, 6)))
    power = stats.power(stats.planned(result).detectable, math.sqrt(result.variance), df=result.df)
    assert power == pytest.approx(0.8, abs=0.02)


def test_what_is_needed_is_enough_and_one_less_is_not():
    result = stats.primary(made_up(2, sizes=(4, 4), metric="macro_auc"))
    goal = stats.planned(result).detectable * 0.9
    needed = stats.needed(result, goal)
    for more, start, axis in ((needed.trainings, 4, "seeds"), (needed.patients, 12, "patients")):
        if 0 < more < math.inf:
            assert stats.planned(result, **{axis: (start + more) / start}).detectable <= goal
            assert stats.planned(result, **{axis: (start + more - 1) / start}).detectable > goal
    assert min(needed.trainings, needed.patients) < math.inf
    assert stats.needed(result, 10) == stats.Needed(0, 0)
    assert stats.needed(result, 0).trainings == math.inf
    with pytest.raises(MilbenchError, match="positive"):
        stats.planned(result, seeds=0)


@pytest.mark.parametrize("metric", ["macro_auc", "macro_f1"])
def test_a_plan_foretells_what_more_trainings_show(metric):
    """Ten trainings a side planned from five, on average over many draws of the same model."""
    ratio = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        target, patient = np.arange(60) % 3, np.arange(60) // 3 % 20
        strength = 1.5 + 0.3 * rng.normal(size=(2, 10, 1, 1))
        base = rng.normal(size=(60, 3))
        scores = strength * np.eye(3)[target] + base + 0.5 * rng.normal(size=(2, 10, 60, 3))
        few, many = (stats.primary([subtyping(metric, target, a[:J], b[:J], patient)]) for a, b in [scores] for J in (5, 10))
        ratio.append(math.log(stats.planned(few, seeds=2).half_width / stats.planned(many).half_width))
    assert abs(np.mean(ratio)) < 0.15, np.exp(np.mean(ratio))
