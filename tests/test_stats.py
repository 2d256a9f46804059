"""Statistics of populations of trials, against brute force, scipy and closed forms."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from orchestrator.plan import data_configs, make_plan
from orchestrator.results import Record, results_of
from orchestrator.stats import (
    MEASURES,
    MIN_SAMPLE,
    bootstrap_mean,
    contrasts,
    deltas,
    edf,
    landmarks,
    point_scores,
    summarise,
    wilson,
)
from orchestrator.sweep import Primary, build_sweep
from trainables.base import Epoch


def make(points=8, arms=("a", "b"), **keys):
    """A plan of cheap arms that differ in depth, one cell, lr varied."""
    tree = {
        "name": "test",
        "base": {
            "model": {"family": "vit", "size": "nano", "image_size": 32, "patch_size": 8},
            "data": "digits",
            "schedule": {"epochs": 2},
            "optim": {"name": "adamw", "weight_decay": 0.1},
        },
        "arms": {arm: {"model.depth": 2 + index} for index, arm in enumerate(arms)},
        "vary": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}},
        "design": {"kind": "random", "points": points, "seed": 0},
    }
    sweep = build_sweep(tree | keys, "test")
    return make_plan(sweep, {config: config.info() for config in data_configs(sweep)})


def ended(error, outcome="finished", test=None):
    """A record of two epochs that ends at an error."""
    row = Epoch(1, 10, 1e-3, 1.0, 1.0, error + 5, error + 5, 1.0, 0.1, None)
    last = dataclasses.replace(row, epoch=2, val_top1_error_pct=error, test_top1_error_pct=test)
    return Record(outcome=outcome, attempts=1, rows={1: row, 2: last}, busy_seconds=2.0)


def records_of(plan, errors, **ends):
    """Records from errors by arm and point; None leaves a trial out, a name is an outcome at 90 %."""
    records = {}
    for trial in plan.trials:
        error = errors[trial.arm][trial.point]
        if isinstance(error, str):
            records[trial.id] = ended(90.0, error)
        elif error is not None:
            records[trial.id] = ended(error, **ends)
    return records


def summaries_of(plan, errors, **ends):
    return summarise(results_of(plan, records_of(plan, errors, **ends)))


@pytest.mark.parametrize(
    ("count", "total"), [(0, 8), (1, 8), (8, 8), (13, 64), (64, 64), (0, 1), (500, 1000)]
)
def test_wilson_agrees_with_scipy(count, total):
    expected = scipy_stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert wilson(count, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_gives_the_intervals_of_the_literature():
    # n = 64: F = 0.6 -> [0.48, 0.71] with 38.4 points, F = 0.2 -> [0.12, 0.31] with 12.8; the nearest
    # counts are 38 and 13.
    assert wilson(38, 64) == pytest.approx((0.47, 0.71), abs=0.01)
    assert wilson(13, 64) == pytest.approx((0.12, 0.32), abs=0.01)


@pytest.mark.parametrize(("count", "total"), [(-1, 4), (5, 4), (0, 0)])
def test_wilson_refuses_what_is_no_share(count, total):
    with pytest.raises(ValueError, match="count <= total"):
        wilson(count, total)


def test_edf_is_the_share_at_or_below_each_value():
    values = [3.0, 1.0, 2.0, 2.0, 100.0]
    steps, shares = edf(values)
    assert steps.tolist() == [1, 2, 3, 100]
    assert shares.tolist() == [sum(v <= step for v in values) / 5 for step in steps]
    with pytest.raises(ValueError, match="at least one"):
        edf([])


def test_area_is_the_integral_of_the_step_function():
    errors = np.random.default_rng(0).exponential(5, 33) + 3
    errors[:3] = 100.0
    reference = errors.min()
    # Midpoints of 200,000 strips: each of at most 33 steps misplaces less than one strip of 1/33 height.
    strips = 200_000
    at = (np.arange(strips) + 0.5) * 10 / strips
    integral = np.mean([(errors - reference <= t).mean() for t in at[::20]])
    assert point_scores("area_under_delta_edf", errors, reference).mean() == pytest.approx(
        integral, abs=1 / (strips / 20)
    )


@pytest.mark.parametrize(("measure", "t"), [("f1", 1), ("f2", 2), ("f4", 4)])
def test_shares_count_points_at_exactly_their_limit(measure, t):
    # Errors of 1,000 images. In binary some of these pairs differ by a little more than t.
    references = np.arange(900) / 10
    errors = (np.arange(900) + 10 * t) / 10
    assert (errors - references > t).any()
    for reference, error in zip(references, errors, strict=True):
        assert point_scores(measure, [reference, error, error + 0.1, 100.0], reference).tolist() == [
            1,
            1,
            0,
            0,
        ]


def test_an_arm_that_never_trained_scores_nothing():
    plan = make(points=6, arms=("a",))
    (summary,) = summaries_of(plan, {"a": ["diverged"] * 6})
    assert summary.reference_pct is None
    assert summary.best is None
    assert summary.median_error_pct == 100
    assert summary.diverged.value == 1
    assert {m: e.value for m, e in summary.measures.items()} == {
        "area_under_delta_edf": 0, "f1": 0, "f2": 0, "f4": 0, "error": 100,
    }  # fmt: skip
    assert np.isinf(deltas([100.0], None)).all()


def test_a_summary_agrees_with_a_hand_calculation():
    plan = make(points=5, arms=("a",))
    (summary,) = summaries_of(plan, {"a": [10.0, 11.5, 13.0, "diverged", None]}, test=12.25)
    assert (summary.num_trials, summary.num_points) == (5, 5)
    assert summary.states == {"finished": 3, "diverged": 1, "missing": 1}
    assert summary.errors_pct == {0: 10.0, 1: 11.5, 2: 13.0, 3: 100.0}
    assert (summary.best.trial.point, summary.best.val_error_pct, summary.best.test_error_pct) == (
        0,
        10,
        12.25,
    )
    assert summary.reference_pct == 10
    assert summary.median_error_pct == 12.25
    # Deltas 0, 1.5, 3 and 90: areas 1, 0.85, 0.7 and 0.
    assert summary.measures["area_under_delta_edf"].value == pytest.approx(2.55 / 4)
    assert [summary.measures[m].value for m in ("f1", "f2", "f4")] == [0.25, 0.5, 0.75]
    assert summary.measures["f2"].low == pytest.approx(wilson(2, 4)[0])
    assert summary.measures["error"].value == pytest.approx(134.5 / 4)
    assert summary.diverged.value == 0.25


def test_a_diverged_trial_counts_100_whatever_it_measured_and_is_never_dropped():
    plan = make(points=2, arms=("a",))
    # Its own error, 5 %, is the lowest there is.
    records = {t.id: ended(*((5.0, "diverged") if t.point else (20.0,))) for t in plan.trials}
    (summary,) = summarise(results_of(plan, records))
    assert summary.errors_pct == {0: 20.0, 1: 100.0}
    assert summary.best.val_error_pct == 20.0


@pytest.mark.parametrize("state", ["stopped", "invalid", "out_of_memory", "failed", "cancelled", None])
def test_a_trial_without_a_result_is_missing_and_not_counted(state):
    plan = make(points=3, arms=("a",))
    (summary,) = summaries_of(plan, {"a": [10.0, 12.0, state]})
    assert summary.errors_pct == {0: 10.0, 1: 12.0}
    assert summary.states == {"finished": 2, state or "missing": 1}
    assert summary.measures["f2"].value == 1


def test_replicates_are_averaged_before_points_are_compared():
    plan = make(points=2, arms=("a",), replicates=3)
    errors = {(0, 0): 10.0, (0, 1): 14.0, (0, 2): 12.0, (1, 0): 11.0, (1, 2): 13.5}
    records = {
        t.id: ended(errors[t.point, t.replicate]) for t in plan.trials if (t.point, t.replicate) in errors
    }
    (summary,) = summarise(results_of(plan, records))
    assert summary.errors_pct == {0: 12.0, 1: 12.25}
    assert summary.num_incomplete == 1
    assert summary.reference_pct == 12.0
    # The best trial is one run, not a point.
    assert summary.best.val_error_pct == 10.0


@pytest.mark.parametrize("arms", [("a",), ("a", "b", "c")])
def test_no_results_at_all_gives_empty_summaries_and_nothing_settled(arms):
    plan = make(points=2, arms=arms)
    summaries = summarise(results_of(plan, {}))
    assert [s.arm for s in summaries] == list(arms)
    assert all(s.measures == {} and s.best is None and s.median_error_pct is None for s in summaries)
    found = contrasts(summaries, None)
    assert len(found) == (len(arms) - 1) * len(MEASURES)
    assert {c.because for c in found} <= {"no point has a result in both arms"}


def test_one_point_has_values_but_no_interval():
    (summary,) = summaries_of(make(points=1, arms=("a",)), {"a": [10.0]})
    area = summary.measures["area_under_delta_edf"]
    assert (area.value, area.low, area.high) == (1, None, None)


def test_differences_are_taken_on_the_points_that_both_arms_have():
    plan = make(points=9)
    a = [20.0, 24.0, 28.0, None, 22.0, 25.0, "diverged", 23.0, 26.0]
    b = [10.0, 11.0, 12.0, 10.5, 11.2, "failed", 12.5, 11.7, 10.1]
    found = contrasts(summaries_of(plan, {"a": a, "b": b}), None)
    pairs = [(100.0 if x == "diverged" else x, y) for x, y in zip(a, b, strict=True) if x and y != "failed"]
    error = next(c for c in found if c.measure == "error")
    assert (error.num_pairs, error.num_unpaired, error.num_differing) == (7, 2, 7)
    assert error.difference.value == pytest.approx(np.mean([y - x for x, y in pairs]))
    area = next(c for c in found if c.measure == "area_under_delta_edf")
    expected = [1 - min(y - 10, 10) / 10 - (1 - min(x - 20, 10) / 10) for x, y in pairs]
    assert area.difference.value == pytest.approx(np.mean(expected))
    assert area.value - area.base_value == pytest.approx(area.difference.value)


def test_a_clear_difference_is_settled_in_favour_of_the_better_arm():
    plan = make(points=16)
    rng = np.random.default_rng(0)
    wide, narrow = 20 + rng.uniform(0, 15, 16), 5 + rng.uniform(0, 2, 16)
    for first, second, better in ((wide, narrow, "b"), (narrow, wide, "a")):
        found = contrasts(summaries_of(plan, {"a": list(first), "b": list(second)}), None)
        settled = {c.measure: c.better for c in found}
        assert settled["error"] == settled["area_under_delta_edf"] == settled["f4"] == better


def test_equal_arms_are_not_settled():
    plan = make(points=8)
    errors = [10.0, 12.0, 14.0, 11.0, 13.0, 15.0, 16.0, 17.0]
    for contrast in contrasts(summaries_of(plan, {"a": errors, "b": errors}), None):
        assert contrast.better is None
        assert contrast.because == f"0 of 8 pairs differ, {MIN_SAMPLE} are needed"


def test_five_pairs_settle_nothing_however_they_look():
    plan = make(points=5)
    found = contrasts(summaries_of(plan, {"a": [50.0 + i for i in range(5)], "b": [1.0] * 5}), None)
    assert all(c.better is None for c in found)
    # A two-sided sign test of five that all agree.
    assert scipy_stats.binomtest(5, 5).pvalue > 0.05 > scipy_stats.binomtest(MIN_SAMPLE, MIN_SAMPLE).pvalue


def test_only_the_declared_contrast_is_primary():
    cells = {"length": {"short": {"schedule.epochs": 2}, "long": {"schedule.epochs": 3}}}
    plan = make(points=1, cells=cells)
    summaries = summarise(results_of(plan, {}))
    marked = [c for c in contrasts(summaries, Primary(measure="f2", cell="long")) if c.primary]
    assert [(c.cell, c.measure) for c in marked] == [("long", "f2")]
    assert len([c for c in contrasts(summaries, Primary(measure="f2")) if c.primary]) == 2


def test_the_bootstrap_of_few_values_agrees_with_all_possible_resamples():
    values = np.array([0.0, 1.0, 3.0, 4.0, 4.5, 9.0])
    every = np.array([np.mean(draw) for draw in itertools.product(values, repeat=6)])
    t = scipy_stats.t.ppf(0.975, 5)
    tail = scipy_stats.norm.cdf(-t * math.sqrt(6 / 5))
    found = bootstrap_mean(values)
    # The share of resamples below the lower end is binomial: 10,000 draws, five standard errors.
    slack = 5 * math.sqrt(tail * (1 - tail) / 10_000)
    for share in ((every <= found.low).mean(), (every >= found.high).mean()):
        assert share == pytest.approx(tail, abs=slack + 0.001)


def test_the_bootstrap_gives_the_same_interval_twice():
    values = np.random.default_rng(3).normal(size=20)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_values_that_are_all_alike_have_no_interval():
    assert bootstrap_mean([0.5] * 20).low is None


@pytest.mark.parametrize("count", [8, 32])
def test_paired_intervals_cover_a_planted_truth_and_unpaired_ones_are_wider(count):
    rng, truth, num_sweeps = np.random.default_rng(count), 1.0, 200
    covered, paired_width, unpaired_width = 0, [], []
    for _ in range(num_sweeps):
        # What a point does to both arms is large against what tells them apart.
        point = rng.exponential(5, count)
        a, b = point + rng.normal(0, 1, count), point + truth + rng.normal(0, 1, count)
        found = bootstrap_mean(b - a)
        covered += found.low <= truth <= found.high
        paired_width.append(found.high - found.low)
        apart = [bootstrap_mean(arm) for arm in (a, b)]
        unpaired_width.append(math.hypot(*(arm.high - arm.low for arm in apart)))
    # Nominal 95 %; over 200 sweeps the share has a standard error of 1.5 points. Three of them, and 1.5
    # points for a bootstrap being approximate.
    error = math.sqrt(0.95 * 0.05 / num_sweeps)
    assert covered / num_sweeps == pytest.approx(0.95, abs=3 * error + 0.015)
    assert np.mean(unpaired_width) > 1.5 * np.mean(paired_width)


def test_landmarks_are_best_median_and_worst():
    plan = make(points=4, arms=("a",))
    results = results_of(plan, records_of(plan, {"a": [12.0, "diverged", 10.0, 11.0]}))
    assert {name: result.trial.point for name, result in landmarks(results).items()} == {
        "best": 2, "median": 3, "worst": 1,
    }  # fmt: skip
    assert landmarks([]) == {}
