"""How often a claim comes out as supported where the printed differences are exactly true: simulated.

Run with `-s` to see the numbers that docs/statistics.md prints.
"""

from functools import cache

import numpy as np
import pytest

from milbench import stats
from milbench.compare import claims
from milbench.compare.claims import PRINTED
from milbench.compare.evidence import Estimate
from milbench.compare.judge import Part, decide_together, judge, together
from milbench.metrics import METRICS
from tests.builders.simulated import FAST, OF_METHOD, OF_TRAINING, PATIENT, SHARED, TARGET, draw, known, noise, share

pytestmark = pytest.mark.slow

CLAIMS = (
    ("best-table1", "table1"), ("best-table3", "table3"), ("longmil-above-full", "table1"), ("full-above-vanilla", "table1"),
    ("full-above-transmil", "table1"), ("linear-below-full", "table9"), ("hybrid-above-linear", "table9"),
)  # fmt: skip
SEEDS = (5, 10, 20)
OF_PAPER = 5  # trainings behind each printed mean
ICC = 0.3  # correlation of the noise of two slides of a patient
REPLICATES, AT_ONCE = 100, 20  # the Monte-Carlo error of a share of 0.05 is 0.02
STRENGTHS = np.linspace(0, 5, 51)


@cache
def curve(metric):
    """A metric at every strength of the signal, in a large population."""
    rng = np.random.default_rng(0)
    target, error = rng.integers(0, 3, 3000), rng.normal(size=(3000, 3))
    return np.array([float(getattr(stats, metric)(target, s * np.eye(3)[target] + error)) for s in STRENGTHS])


@cache
def of_interaction(metric):
    """Standard deviation of a metric between trainings that see the truth equally well."""
    values = FAST[metric](draw(np.random.default_rng(0), metric, 0, ICC, 20))[..., 0]
    return float(np.sqrt(values.var(-1, ddof=1).mean()))


def strengths(rng, metric, mean, sd, replicates, trainings):
    """How well each training sees the truth (replicates, methods, trainings), for means and deviations as printed (methods,)."""
    strength = np.interp(mean, curve(metric), STRENGTHS)
    slope = np.interp(strength, STRENGTHS, np.gradient(curve(metric), STRENGTHS))
    spread = np.sqrt(np.maximum(sd**2 - of_interaction(metric) ** 2, 0)) / slope
    return strength[:, None] + spread[:, None] * rng.standard_normal((replicates, len(mean), trainings))


def simulated(rng, table, replicates):
    """Values (replicates, trainings, 1 + patients) of each (method, column, metric) of a table, ours first, then the paper's."""
    trainings, values = max(SEEDS) + OF_PAPER, {}
    shared = noise(rng, ICC, replicates, 1, 1)
    for column in PRINTED.columns(table):
        numbers = [n for n in PRINTED.paper.numbers if (n.table, n.column) == (table, column)]
        methods = list(dict.fromkeys(n.aggregator for n in numbers))
        common = SHARED**0.5 * shared + OF_METHOD**0.5 * noise(rng, ICC, replicates, len(methods), 1)
        error = common + OF_TRAINING**0.5 * noise(rng, ICC, replicates, len(methods), trainings)
        for metric in PRINTED.metrics(table):
            of = {n.aggregator: n for n in numbers if n.metric == metric}
            mean, sd = (np.array([getattr(of[method], name) for method in methods]) for name in ("mean", "sd"))
            strength = strengths(rng, metric, mean, sd, replicates, trainings).astype(np.float32)
            found = FAST[metric](strength[..., None, None] * np.eye(3, dtype=np.float32)[TARGET] + error)
            where = f"{column.dataset} {column.encoder} {column.magnification} {column.patch_size}"
            values |= {(f"{method} @ {where}", metric): found[:, i] for i, method in enumerate(methods)}
    return values


def of_paper(upper, lower):
    """What the paper prints of its trainings on these slides."""
    sides = [(side[-OF_PAPER:, 0].mean(), side[-OF_PAPER:, 0].std(ddof=1)) for side in (upper, lower)]
    (mean1, sd1), (mean2, sd2) = sides
    se, df = stats.welch_error(sd1, OF_PAPER, sd2, OF_PAPER)
    return Estimate(mean1 - mean2, np.nan, np.nan, np.nan, np.nan, np.nan, "", se**2, df)


def verdicts(parts, values, at, seeds):
    """The parts of a claim, decided on one simulated benchmark."""
    decided = []
    for part in parts:
        upper, lower = (values[part.tidy[side], part.tidy["metric"]][at] for side in ("upper", "lower"))
        test = stats.primary([stats.Fold(known(upper[:seeds]), known(lower[:seeds]), TARGET, PATIENT)])
        decided.append(Part(part.claim, "", "", "", Estimate.of_test(test), printed=of_paper(upper, lower)))
    decide_together(decided)
    return decided


@pytest.mark.parametrize(("id", "table"), CLAIMS)
def test_the_chance_that_a_true_claim_is_supported(id, table):
    (claim,) = (claim for claim in claims.load().claim if claim.id == id)
    parts = [part for part in judge([claim], PRINTED) if part.tidy["table"] == table]
    rng, decided = np.random.default_rng(CLAIMS.index((id, table))), {seeds: [] for seeds in SEEDS}
    for _ in range(REPLICATES // AT_ONCE):
        values = simulated(rng, table, AT_ONCE)
        for seeds, of in decided.items():
            of += [verdicts(parts, values, at, seeds) for at in range(AT_ONCE)]
    for seeds, of in decided.items():
        whole = [together(part.verdict for part in each) for each in of]
        shown = np.mean([part.verdict == "supported" for each in of for part in each])
        detectable = {
            metric: np.median([p.estimate.detectable for each in of for p, q in zip(each, parts, strict=True) if q.tidy["metric"] == metric])
            for metric in PRINTED.metrics(table)
        }  # fmt: skip
        chance = {verdict: round(whole.count(verdict) / len(whole), 3) for verdict in ("supported", "not supported")}
        sizes = ", ".join(f"{METRICS[metric].label} {value:.3f}" for metric, value in detectable.items())
        print(f"\n{id}, {table}, {len(parts)} parts, {seeds} seeds: {chance}, parts shown {shown:.2f}; detectable {sizes}")
        assert chance["not supported"] <= 0.1, "what is true is contradicted no more often than the level"


@pytest.mark.parametrize("icc", [0, 0.3, 0.6])
@pytest.mark.parametrize("sd", [0.01, 0.02, 0.03])
def test_welch_on_printed_means_ignores_patients(sd, icc):
    """Two equally good methods, five trainings each."""
    rng, p = np.random.default_rng([int(100 * sd), int(10 * icc)]), []
    for _ in range(5):
        for a, b in FAST["macro_auc"](draw(rng, "macro_auc", sd, icc, 5))[..., 0]:
            p.append(stats.welch_from_summary(a.mean(), a.std(ddof=1), 5, b.mean(), b.std(ddof=1), 5).p)
    print(f"\nWelch on printed means, sd {sd}, ICC {icc}: {share(p):.3f}")
    assert share(p) > 0.1
