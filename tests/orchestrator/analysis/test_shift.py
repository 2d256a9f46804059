import math

import numpy as np
import pytest

from orchestrator.analysis.shift import FINAL, shift_summaries
from orchestrator.analysis.summary import summarise
from orchestrator.stats.corruption import corruption_error, mean_corruption_error, relative_corruption_error
from orchestrator.trials.confirm import Confirmation, with_confirmation
from orchestrator.trials.records import Record, results_of
from tests.support import sweeps as support
from trainables.transforms.corruptions import KINDS

OURS = {"clean": 20.0, "corruption/fog": 30.0, "corruption/snow": 50.0, "shifted/imagenet_v2": 35.0}
THEIRS = {"clean": 40.0, "corruption/fog": 60.0, "corruption/snow": 80.0, "shifted/imagenet_v2": 55.0}


def test_corruption_error_by_hand():
    found = corruption_error(OURS)
    assert (found.clean_pct, found.mean_pct, found.excess_pct) == (20, 40, 20)
    assert corruption_error({"shifted/imagenet_v2": 35.0}) is None
    # 30 of 60 and 50 of 80: 50 % and 62.5 %.
    assert mean_corruption_error(OURS, THEIRS) == pytest.approx(56.25)
    # 10 more where they have 20 more, 30 more where they have 40 more.
    assert relative_corruption_error(OURS, THEIRS) == pytest.approx((50 + 75) / 2)


def test_it_is_the_papers_formula_over_severities():
    # Section 4.2: CE_c = sum_s E_s,c^f / sum_s E_s,c^AlexNet; relative CE with clean errors taken off.
    rng = np.random.default_rng(0)
    ours, theirs = rng.uniform(20, 60, (15, 5)), rng.uniform(50, 90, (15, 5))
    rows = [
        {"clean": clean}
        | {f"corruption/{kind}": error for kind, error in zip(KINDS, errors.mean(1).tolist(), strict=True)}
        for clean, errors in ((10.0, ours), (40.0, theirs))
    ]
    expected = 100 * np.mean(ours.sum(1) / theirs.sum(1))
    assert mean_corruption_error(*rows) == pytest.approx(expected)
    expected = 100 * np.mean((ours - 10).sum(1) / (theirs - 40).sum(1))
    assert relative_corruption_error(*rows) == pytest.approx(expected)


def test_a_network_beside_itself_is_at_a_hundred():
    assert mean_corruption_error(OURS, OURS) == pytest.approx(100)
    assert relative_corruption_error(OURS, OURS) == pytest.approx(100)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corruption/fog": 0.0}, r"no error under \['fog'\]"),
        ({"corruption/frost": 70.0}, "the same corruptions"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        mean_corruption_error(OURS, THEIRS | changes)
    with pytest.raises(ValueError, match="the same corruptions"):
        mean_corruption_error({"clean": 1.0}, {"clean": 1.0})
    with pytest.raises(ValueError, match=r"no worse under \['snow'\]"):
        relative_corruption_error(OURS, THEIRS | {"corruption/snow": 40.0})


# --- of a sweep ---------------------------------------------------------------------------------------


def plan_of():
    plan = support.plan_of(
        base=support.base_tree(schedule={"epochs": 2}), design={"kind": "random", "points": 3}
    )
    chosen = {("all", "p"): (0, 1), ("all", "c"): (0, 1)}
    return with_confirmation(plan, Confirmation(chosen, seeds=3))


#: By arm and seed of the confirmation at point 0: clean, fog, snow, sketch.
FRESH = {
    "p": [(20.0, 30.0, 50.0, 60.0), (22.0, 36.0, 52.0, 61.0), (24.0, 30.0, 54.0, 65.0)],
    "c": [(10.0, 20.0, 22.0, 51.0), (12.0, 22.0, 24.0, 52.0), (11.0, 21.0, 29.0, 56.0)],
}


NAMES = ("clean", "corruption/fog", "corruption/snow", "shifted/sketch")


def finished(val, errors):
    shifted = dict(zip(NAMES, errors, strict=True))
    return support.ended([support.epoch_row(2, val, test_pct=errors[0] + 1, extra=shifted)])


def records_of(plan):
    """Point 0 is best in both arms, and in every seed; the others are robuster, and must not be chosen."""
    records = {}
    for trial in plan.trials:
        if trial.role == "confirm" and trial.point == 0:
            errors = FRESH[trial.arm][trial.replicate]
        else:
            errors = (40.0, 44.0, 48.0, 50.0) if trial.arm == "p" else (30.0, 36.0, 40.0, 45.0)
        val = 5.0 + 10 * trial.point + trial.replicate / 4
        records[trial.id] = finished(val, errors)
    return records


def summaries_of(plan, records):
    results = results_of(plan, records)
    return {(one.arm, one.kind): one for one in shift_summaries(results, summarise(results))}


def test_the_best_run_of_the_sweep_speaks_for_its_arm_without_an_interval():
    plan = plan_of()
    found = summaries_of(plan, records_of(plan))
    p, c = found["p", "best"], found["c", "best"]
    assert (p.point, p.num_runs, c.point, c.sets) == (0, 1, 0, ["sketch"])
    # (36 + 40) / 2 and (44 + 48) / 2.
    assert (c.corrupted_pct.value, c.added_pp.value, p.corrupted_pct.value) == (38.0, 8.0, 46.0)
    assert (c.errors_pct[FINAL].value, c.errors_pct["shifted/sketch"].value) == (31.0, 45.0)
    # 36 of 44 and 40 of 48; 6 more where there are 4 more, 10 where there are 8.
    assert c.mce_pct == pytest.approx(100 * (36 / 44 + 40 / 48) / 2)
    assert c.relative_mce_pct == pytest.approx(100 * (6 / 4 + 10 / 8) / 2)
    assert p.mce_pct == p.relative_mce_pct == 100
    assert (c.corrupted_pct.low, c.differences_pp) == (None, {})


def test_fresh_seeds_give_the_mean_with_students_interval_and_welchs_difference():
    plan = plan_of()
    found = summaries_of(plan, records_of(plan))
    p, c = found["p", "confirmed"], found["c", "confirmed"]
    assert (c.point, c.num_runs, c.num_diverged) == (0, 3, 0)
    corrupted = {"p": [40.0, 44.0, 42.0], "c": [21.0, 23.0, 25.0]}
    assert (p.corrupted_pct.value, c.corrupted_pct.value) == (42.0, 23.0)
    # Both have a standard deviation of 2; t of two degrees of freedom at 97.5 % is 4.3027.
    half = 4.302653 * 2 / math.sqrt(3)
    assert (c.corrupted_pct.low, c.corrupted_pct.high) == pytest.approx((23 - half, 23 + half))
    # 11, 11 and 14 are added to 10, 12 and 11; 20, 22 and 18 to 20, 22 and 24.
    assert (p.added_pp.value, c.added_pp.value) == (20.0, 12.0)
    assert (c.errors_pct["shifted/sketch"].value, c.errors_pct["corruption/fog"].value) == (53.0, 21.0)
    # Equal variances and counts: four degrees of freedom, 2.7764.
    difference = c.differences_pp["corrupted"]
    assert difference.value == np.mean(corrupted["c"]) - np.mean(corrupted["p"]) == -19.0
    half = 2.776445 * math.sqrt(4 / 3 + 4 / 3)
    assert (difference.low, difference.high) == pytest.approx((-19 - half, -19 + half))
    assert (c.differences_pp["added"].value, c.differences_pp["sketch"].value) == (-8.0, -9.0)
    # Of the means over seeds: fog 21 of 32, snow 25 of 52; 10 of 10 more, 14 of 30 more.
    assert c.mce_pct == pytest.approx(100 * (21 / 32 + 25 / 52) / 2)
    assert c.relative_mce_pct == pytest.approx(100 * (10 / 10 + 14 / 30) / 2)


def test_a_run_that_diverged_is_wrong_everywhere_and_adds_nothing():
    plan = plan_of()
    records = records_of(plan)
    [gone] = [t for t in plan.trials if (t.arm, t.role, t.point, t.replicate) == ("c", "confirm", 0, 2)]
    records[gone.id] = Record("diverged", "", 1, {})
    for trial in plan.trials:
        if trial.role == "confirm" and trial.point == 1:
            # Nor does the other point do better than one that diverges now and then.
            records[trial.id] = Record("diverged", "", 1, {})
    c = summaries_of(plan, records)["c", "confirmed"]
    assert (c.num_runs, c.num_diverged) == (3, 1)
    assert c.corrupted_pct.value == pytest.approx((21 + 23 + 100) / 3)
    assert c.added_pp is None
    assert "added" not in c.differences_pp


def test_without_the_first_arm_there_is_nothing_to_measure_by():
    plan = plan_of()
    records = {t.id: r for t in plan.trials if t.arm == "c" for r in [records_of(plan)[t.id]]}
    c = summaries_of(plan, records)["c", "best"]
    assert (c.mce_pct, c.refused) == (None, "the first arm has no such run")
    assert summaries_of(plan, {}) == {}
