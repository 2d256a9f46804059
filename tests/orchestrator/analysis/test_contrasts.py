"""Statistics of populations of trials, against brute force, scipy and closed forms."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.stats import qmc

from orchestrator.analysis.contrasts import contrasts, peak_contrasts
from orchestrator.analysis.summary import by_arm, landmarks, summarise
from orchestrator.stats.confirmed import chosen_by_the_others
from orchestrator.stats.intervals import MIN_SAMPLE, block_mean, bounded_mean, share_interval
from orchestrator.stats.looks import Looks
from orchestrator.stats.measures import MEASURES, deltas, edf, point_scores
from orchestrator.stats.significance import holm
from orchestrator.sweep.config import Primary
from orchestrator.trials.confirm import Confirmation, with_confirmation
from orchestrator.trials.outcomes import RULES
from orchestrator.trials.records import results_of
from tests.support import sweeps as support
from tests.support.sweeps import base_tree, epoch_row, plan_from, sweep_tree


def make(points=8, arms=("a", "b"), **keys):
    """A plan of cheap arms that differ in depth, one cell, lr varied."""
    tree = sweep_tree(
        base=base_tree(schedule={"epochs": 2}),
        arms={arm: {"model.depth": 2 + index} for index, arm in enumerate(arms)},
        design={"kind": "random", "points": points, "seed": 0},
    )
    return plan_from(tree | keys)


def ended(error, outcome="finished", test=None):
    """A record of two epochs that ends at an error."""
    rows = [epoch_row(1, error + 5), epoch_row(2, error, test_pct=test)]
    return support.ended(rows, outcome, busy_seconds=2.0)


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
def test_the_interval_of_a_share_is_the_exact_one_of_scipy(count, total):
    expected = scipy_stats.binomtest(count, total).proportion_ci(0.95, method="exact")
    assert share_interval(count, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("share", [0.011, 0.1, 0.5])
def test_the_interval_of_a_share_covers_every_share(share):
    counts = np.arange(17)
    chances = scipy_stats.binom.pmf(counts, 16, share)
    held = [low <= share <= high for low, high in (share_interval(count, 16) for count in counts)]
    assert chances @ held >= 0.95
    wilson = [scipy_stats.binomtest(int(c), 16).proportion_ci(0.95, method="wilson") for c in counts]
    if share == 0.011:
        assert chances @ [ci.low <= share <= ci.high for ci in wilson] < 0.85


@pytest.mark.parametrize(("count", "total"), [(-1, 4), (5, 4), (0, 0)])
def test_what_is_no_share_has_no_interval(count, total):
    with pytest.raises(ValueError, match="count <= total"):
        share_interval(count, total)


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
        "area_common": 0, "within_common_bar": 0, "error": 100,
        "area_under_delta_edf": 0, "f1": 0, "f2": 0, "f4": 0,
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
    assert summary.measures["f2"].low is None
    assert summary.measures["f2"].because == "its reference is not confirmed"
    assert summary.measures["within_common_bar"].low == pytest.approx(share_interval(3, 4)[0])
    assert summary.measures["error"].value == pytest.approx(134.5 / 4)
    assert summary.diverged.value == 0.25


def test_a_diverged_trial_counts_100_whatever_it_measured_and_is_never_dropped():
    plan = make(points=2, arms=("a",))
    # Its own error, 5 %, is the lowest there is.
    records = {t.id: ended(*((5.0, "diverged") if t.point else (20.0,))) for t in plan.trials}
    (summary,) = summarise(results_of(plan, records))
    assert summary.errors_pct == {0: 20.0, 1: 100.0}
    assert summary.best.val_error_pct == 20.0


@pytest.mark.parametrize("state", ["invalid", "out_of_memory", "failed", "cancelled", None])
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
        assert settled["error"] == settled["area_common"] == settled["within_common_bar"] == better
        # What is measured from each arm's own best has no verdict, however clear it looks.
        assert settled["area_under_delta_edf"] is settled["f2"] is None


def test_equal_arms_are_not_settled():
    plan = make(points=8)
    errors = [10.0, 12.0, 14.0, 11.0, 13.0, 15.0, 16.0, 17.0]
    for contrast in contrasts(summaries_of(plan, {"a": errors, "b": errors}), None):
        assert contrast.better is None
        if MEASURES[contrast.measure].decides:
            assert contrast.because == "no pair differs"


def test_the_contrast_of_own_references_calls_equal_arms_different_and_the_common_one_does_not():
    plan, num_sweeps = make(points=32), 120
    rng, alarms = np.random.default_rng(0), {"own": 0, "common": 0}
    for _ in range(num_sweeps):
        surface = 5 + rng.uniform(0, 8, 32)
        errors = {arm: list(surface + rng.normal(0, 0.5, 32)) for arm in ("a", "b")}
        found = {c.measure: c for c in contrasts(summaries_of(plan, errors), None)}
        own, common = found["area_under_delta_edf"], found["area_common"]
        # It would be settled if it could decide.
        alarms["own"] += own.p_value < 0.05
        assert own.better is None
        alarms["common"] += common.better is not None
    # Under no difference, 5 % of 120 are 6, with a standard error of 2.4; the naive contrast must fail this.
    assert alarms["common"] <= 6 + 3 * 2.4
    assert alarms["own"] > 6 + 6 * 2.4


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
    marked = [c for c in contrasts(summaries, Primary(measure="within_common_bar", cell="long")) if c.primary]
    assert [(c.cell, c.measure) for c in marked] == [("long", "within_common_bar")]
    assert len([c for c in contrasts(summaries, Primary(measure="error")) if c.primary]) == 2


def test_the_interval_of_a_mean_is_students_with_a_value_more_at_each_end():
    values = np.array([0.0, 0.1, 0.3, 0.4, 0.45, 0.9])
    more = np.array([*values, 0.0, 1.0])
    half = scipy_stats.t.ppf(0.975, 5) * more.std() / math.sqrt(8)
    found = bounded_mean(values, (0, 1))
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((max(more.mean() - half, 0), more.mean() + half))


@pytest.mark.parametrize("count", [16, 32, 64])
def test_a_sample_without_a_rare_event_allows_for_what_the_rule_of_three_does(count):
    found = bounded_mean(np.zeros(count), (-1, 1))
    assert found.high == -found.low
    assert 2.5 / count < found.high < 3 / count


def test_the_interval_of_a_mean_stays_within_its_ends():
    found = bounded_mean([0.0, 100, 100, 100, 100, 100, 100, 100], (0, 100))
    assert (found.value, found.high) == (87.5, 100)
    with pytest.raises(ValueError, match="within"):
        bounded_mean([0.5, 1.5], (0, 1))
    assert bounded_mean([0.5] * 5, (0, 1)).because == "5 points, 6 are needed"


@pytest.mark.parametrize("count", [16, 64])
@pytest.mark.parametrize("rate", [0.01, 0.03])
def test_paired_intervals_allow_for_a_rare_divergence_and_the_samples_own_spread_does_not(count, rate):
    rng, num_sweeps = np.random.default_rng(count), 400
    covered, by_t = 0, 0
    for _ in range(num_sweeps):
        differences = np.where(rng.random(count) < rate, 1.0, rng.normal(0, 0.02, count))
        found = bounded_mean(differences, (-1, 1))
        covered += found.low <= rate <= found.high
        t = scipy_stats.t.interval(0.95, count - 1, differences.mean(), scipy_stats.sem(differences))
        by_t += t[0] <= rate <= t[1]
    # Standard error of a share of 400 near 0.95: 0.011; near 0.8: 0.02.
    assert covered / num_sweeps >= 0.95 - 3 * 0.011
    assert by_t / num_sweeps < 0.93 - 3 * 0.02


def test_equal_blocks_have_students_interval_of_their_means():
    values = np.random.default_rng(0).exponential(size=(5, 8))
    found = block_mean(values.ravel(), list(range(8)) * 5)
    expected = scipy_stats.ttest_1samp(values.mean(axis=0), 0).confidence_interval()
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), *expected))
    # Whatever the blocks are called, and in whatever order the points come.
    order = np.random.default_rng(1).permutation(40)
    again = block_mean(values.ravel()[order], [-3 * (index % 8) for index in order])
    assert (again.value, again.low, again.high) == pytest.approx((found.value, found.low, found.high))


def test_unequal_blocks_have_the_variance_of_a_ratio():
    # As Cochran 1977 has it for whole clusters: the sum of m^2 (mean - grand mean)^2 over b (b - 1) m-bar^2.
    rng, sizes = np.random.default_rng(2), [3, 1, 4, 2, 5, 2, 3]
    groups = [rng.normal(size=size) for size in sizes]
    grand = sum(group.sum() for group in groups) / sum(sizes)
    spread = sum(size**2 * (group.mean() - grand) ** 2 for size, group in zip(sizes, groups, strict=True)) / 6
    error = math.sqrt(spread / 7) / np.mean(sizes)
    half = scipy_stats.t.ppf(0.975, 6) * error
    found = block_mean(np.concatenate(groups), np.repeat(range(7), sizes).tolist())
    assert (found.value, found.low, found.high) == pytest.approx((grand, grand - half, grand + half))


def test_few_blocks_and_values_all_alike_have_no_interval():
    assert block_mean(range(10), [0, 1, 2, 3, 4] * 2).low is None
    assert block_mean([0.1] * 12, list(range(6)) * 2).low is None
    for values, blocks in (([], []), ([1.0, 2.0], [0])):
        with pytest.raises(ValueError, match="a block for each"):
            block_mean(values, blocks)


def test_intervals_over_blocks_cover_where_those_over_points_are_far_too_wide():
    num_sweeps, width, rng = 400, {"points": [], "blocks": []}, np.random.default_rng(0)
    covered = dict.fromkeys(width, 0)
    for _ in range(num_sweeps):
        nets = [qmc.Sobol(2, scramble=True, rng=rng).random(8) for _ in range(8)]
        x, y = np.concatenate(nets).T
        # Optima 0.3 apart in x: the mean of (x - 0.35)^2 - (x - 0.65)^2 + x y is 0 + 1 / 4.
        values = (x - 0.35) ** 2 - (x - 0.65) ** 2 + x * y + rng.normal(0, 0.05, 64)
        over = {"blocks": block_mean(values, np.repeat(range(8), 8).tolist())}
        over["points"] = block_mean(values, range(64))
        for name, found in over.items():
            covered[name] += found.low <= 0.25 <= found.high
            width[name].append(found.high - found.low)
    # Three standard errors of a coverage over 400 sweeps: 3.3 points.
    assert covered["blocks"] / num_sweeps == pytest.approx(0.95, abs=0.033)
    assert covered["points"] == num_sweeps
    # The standard error of 64 independent points is 0.045: the surface, and 0.006 of noise. Blocks keep the
    # noise, and what 8 points leave of the surface.
    assert np.mean(width["points"]) > 2.5 * np.mean(width["blocks"])


def test_differences_are_told_over_blocks_where_a_design_has_six_of_them():
    def found(scrambles, **missing):
        plan = make(points=24, design={"kind": "sobol", "points": 24, "scrambles": scrambles})
        errors = {arm: [20.0 + (7 * p + 3 * p * k) % 11 for p in range(24)] for k, arm in enumerate("ab")}
        for arm, points in missing.items():
            for point in points:
                errors[arm][point] = None
        return next(c for c in contrasts(summaries_of(plan, errors), None) if c.measure == "error"), errors

    contrast, errors = found(6)
    difference = np.array(errors["b"]) - np.array(errors["a"])
    # No error is below 20, none above 100.
    ends = (-80.0, 80.0)
    assert contrast.interval_over == "blocks"
    assert contrast.difference == block_mean(difference, [point % 6 for point in range(24)], ends)
    # Pairs that are missing take their points out of the blocks, and the last point takes its block along.
    contrast, _ = found(7, a=[3], b=[5, 7])
    kept = [point for point in range(24) if point not in (3, 5, 7)]
    assert contrast.difference == block_mean(difference[kept], [point % 7 for point in kept], ends)
    gone = range(1, 24, 6)
    contrast, _ = found(6, b=gone)
    assert contrast.interval_over == "points"
    assert contrast.difference == bounded_mean(np.delete(difference, gone), ends)
    contrast, _ = found(1)
    assert contrast.interval_over == "points"
    assert contrast.difference == bounded_mean(difference, ends)


def test_landmarks_are_best_median_and_worst():
    plan = make(points=4, arms=("a",))
    results = results_of(plan, records_of(plan, {"a": [12.0, "diverged", 10.0, 11.0]}))
    assert {name: result.trial.point for name, result in landmarks(results).items()} == {
        "best": 2, "median": 3, "worst": 1,
    }  # fmt: skip
    assert landmarks([]) == {}


def test_only_draws_of_the_design_enter_a_distribution():
    plan = make(points=8, arms=("a",), noise={"points": 2, "seeds": 3})
    plan = with_confirmation(plan, Confirmation({("all", "a"): (1,)}, seeds=2))
    # All that is not a draw is better than every draw: with it, the best, the median and F would move.
    records = {t.id: ended(20.0 + t.point if t.role == "sweep" else 1.0) for t in plan.trials}
    results = results_of(plan, records)
    (summary,) = summarise(results)
    assert (summary.num_trials, summary.num_points) == (8, 8)
    assert summary.states == {"finished": 8}
    assert summary.other_states == {
        "noise_init": {"finished": 4}, "noise_order": {"finished": 4}, "noise_augment": {"finished": 4},
        "confirm": {"finished": 2},
    }  # fmt: skip
    assert summary.errors_pct == {point: 20.0 + point for point in range(8)}
    assert summary.best.val_error_pct == 20.0
    assert summary.diverged.value == 0
    assert {r.trial.role for group in by_arm(results, "all").values() for r in group} == {"sweep"}
    assert landmarks(results)["best"].error_pct == 20.0


def confirmed(val, points=8, sweep=lambda point: 20.0 + point, arms=("a",), outcome=None):
    """Summaries of a sweep whose points `val[arm]` were run again: errors by point and seed; None is open."""
    chosen = {("all", arm): tuple(val[arm]) for arm in val}
    num_seeds = max(len(seeds) for found in val.values() for seeds in found.values())
    plan = with_confirmation(make(points=points, arms=arms), Confirmation(chosen, num_seeds))
    records = {}
    for trial in plan.trials:
        if trial.role == "sweep":
            records[trial.id] = ended(sweep(trial.point))
        elif (error := val[trial.arm][trial.point][trial.replicate]) is not None:
            diverged = error == 100
            records[trial.id] = ended(error, "diverged" if diverged else "finished", test=error + 1.0)
    return summarise(results_of(plan, records))


def test_a_clearly_best_point_is_confirmed_by_its_plain_mean_and_a_t_interval():
    fresh = [21.0, 22.0, 21.5, 21.7, 20.8]
    (summary,) = confirmed({"a": {0: [30.0, 31.0, 29.0, 30.5, 30.0], 3: fresh}})
    found = summary.confirmed
    assert (found.point, found.num_seeds, found.num_diverged) == (3, 5, 0)
    assert found.means_pct == {0: pytest.approx(30.1), 3: pytest.approx(21.4)}
    low, high = scipy_stats.t.interval(0.95, 4, np.mean(fresh), scipy_stats.sem(fresh))
    assert (found.val.value, found.val.low, found.val.high) == pytest.approx((21.4, low, high))
    assert (found.test.value, found.test.low, found.test.high) == pytest.approx((22.4, low + 1, high + 1))
    assert (summary.reference_pct, summary.reference_kind) == (pytest.approx(21.4), "confirmed")
    # The lowest draw, 20, is 1.4 below the confirmed best: it counts as within, and no more than wholly.
    assert summary.deltas_pp.min() == pytest.approx(-1.4)
    assert summary.measures["f1"].value == 3 / 8
    area = np.mean([1 - min(max(20 + p - 21.4, 0), 10) / 10 for p in range(8)])
    assert summary.measures["area_under_delta_edf"].value == pytest.approx(area)


def test_the_confirmed_error_is_not_optimistic_where_the_mean_of_the_winner_is():
    rng, num_sweeps = np.random.default_rng(0), 20_000
    for truth in ([0.0, 0.0, 0.0], [0.0, 0.5, 1.0]):
        naive, held_out = [], []
        for errors in np.array(truth)[:, None] + rng.normal(size=(num_sweeps, 3, 5)):
            best = errors.mean(axis=1).argmin()
            rows, columns = chosen_by_the_others(errors)
            naive.append(errors[best].mean() - truth[best])
            held_out.append(errors[rows, columns].mean() - truth[best])
        # In units of the sd over seeds. Standard error: 0.6 / sqrt(20,000) = 0.004.
        assert np.mean(held_out) == pytest.approx(0, abs=0.02 + 2 * 0.004)
        assert np.mean(naive) < -0.2


def test_the_interval_of_the_confirmed_error_covers_the_truth_of_its_point():
    rng, covered, num_sweeps = np.random.default_rng(1), 0, 150
    plan = with_confirmation(make(points=3, arms=("a",)), Confirmation({("all", "a"): (0, 1, 2)}, 5))
    truth = [20.0, 20.5, 20.5]
    for _ in range(num_sweeps):
        records = {t.id: ended(truth[t.point] + rng.normal()) for t in plan.trials}
        (summary,) = summarise(results_of(plan, records))
        found = summary.confirmed
        covered += found.val.low <= truth[found.point] <= found.val.high
    # Standard error of the share: 0.018.
    assert covered / num_sweeps > 0.95 - 3 * 0.018


def test_a_confirmation_counts_once_all_of_it_has_ended():
    (summary,) = confirmed({"a": {0: [21.0, 22.0], 3: [20.0, None]}})
    assert summary.confirmed is None
    assert summary.refused == {"confirmed": "3 of 4 runs of the confirmation have ended"}
    assert (summary.reference_pct, summary.reference_kind) == (20.0, "sweep_minimum")


def test_all_arms_of_a_cell_are_measured_from_the_same_kind_of_reference():
    a, b = confirmed({"a": {0: [21.0, 22.0]}}, arms=("a", "b"))
    assert a.confirmed is not None
    assert a.reference_kind == b.reference_kind == "sweep_minimum"
    assert "measured alike" in a.refused["confirmed_reference"]
    a, b = confirmed({"a": {0: [21.0, 22.0]}, "b": {1: [24.0, 25.0]}}, arms=("a", "b"))
    assert (a.reference_kind, b.reference_kind) == ("confirmed", "confirmed")
    assert (a.reference_pct, b.reference_pct) == (21.5, 24.5)
    assert a.common_reference_pct == b.common_reference_pct == 21.5


def test_a_confirmed_best_that_sometimes_diverges_is_no_reference():
    # Its mean, 47 %, would put every draw within reach: instability must not pass for robustness.
    (summary,) = confirmed({"a": {0: [21.0, 20.0, 100.0]}})
    assert (summary.confirmed.mean_val_error_pct, summary.confirmed.num_diverged) == (47, 1)
    assert summary.reference_kind == "sweep_minimum"
    assert "diverged" in summary.refused["confirmed_reference"]


def test_without_test_errors_there_is_no_confirmed_test_error():
    plan = with_confirmation(make(points=2, arms=("a",)), Confirmation({("all", "a"): (0,)}, 2))
    records = {t.id: ended(20.0 + t.replicate) for t in plan.trials}
    (summary,) = summarise(results_of(plan, records))
    assert (summary.confirmed.val.value, summary.confirmed.test) == (20.5, None)


def test_confirmed_peaks_are_compared_as_welch_does():
    first, second = [21.0, 22.5, 21.7], [18.0, 18.4, 19.9]
    a, b = confirmed({"a": {0: first}, "b": {1: second}}, arms=("a", "b"))
    val, test = peak_contrasts([a, b])
    expected = scipy_stats.ttest_ind(second, first, equal_var=False)
    interval = expected.confidence_interval(0.95)
    for found in (val, test):
        assert (found.base_arm, found.arm) == ("a", "b")
        assert found.p_value == pytest.approx(expected.pvalue)
        assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))
    assert (val.split, test.split) == ("val", "test")
    (only,) = confirmed({"a": {0: first}})
    assert peak_contrasts([only]) == []


def test_the_common_bar_is_the_better_arms_for_all():
    plan = make(points=4)
    a, b = summaries_of(plan, {"a": [10.0, 11.0, 13.9, 14.1], "b": [13.0, 14.0, 15.0, 16.0]})
    # Within 4 pp of 10: three of a, two of b. From its own best, 13, all of b.
    assert (a.measures["within_common_bar"].value, b.measures["within_common_bar"].value) == (0.75, 0.5)
    assert b.measures["f4"].value == 1
    (found,) = [c for c in contrasts([a, b], None) if c.measure == "within_common_bar"]
    assert (found.base_value, found.value, found.num_differing, found.num_higher) == (0.75, 0.5, 1, 0)


def test_an_arm_that_never_trained_is_held_to_the_bar_of_one_that_did():
    a, b = summaries_of(make(points=2), {"a": ["diverged"] * 2, "b": [10.0, 20.0]})
    assert a.reference_pct is None
    assert a.common_reference_pct == 10
    assert (a.measures["within_common_bar"].value, b.measures["within_common_bar"].value) == (0, 0.5)


def test_a_trial_stopped_early_refuses_every_distribution_of_its_arm():
    plan = make(points=8)
    errors = [10.0 + point for point in range(8)]
    a, b = summaries_of(plan, {"a": errors, "b": [*errors[:6], "stopped", "stopped"]})
    assert a.refused == {}
    assert (b.measures, b.errors_pct, b.diverged, b.median_error_pct) == ({}, {}, None, None)
    assert b.deltas_pp.size == 0
    assert set(b.refused) == {*MEASURES, "delta_edf", "median_error_pct", "diverged"}
    assert "2 of 8 trials ended early by a stopping rule" in b.refused["f2"]
    # The best of those that ran to their end is still a trial.
    assert b.best.val_error_pct == 10
    for contrast in contrasts([a, b], None):
        assert (contrast.better, contrast.p_value, contrast.difference) == (None, None, None)
        assert contrast.because.startswith("b: 2 of 8 trials")


def test_a_named_estimator_counts_stopped_trials_against_the_arm():
    plan = make(points=4, arms=("a",))
    # Stopped at 90 %.
    results = results_of(plan, records_of(plan, {"a": [10.0, 11.0, "diverged", "stopped"]}))
    for stopped, error in (("as_worst", 100.0), ("as_last", 90.0)):
        (summary,) = summarise(results, stopped)
        assert summary.errors_pct[3] == error
        assert summary.measures["f2"].value == 0.5
        assert summary.diverged.value == 0.25
        assert summary.refused == {}


def test_what_censors_is_in_the_table_of_outcomes_and_never_in_an_edf():
    censoring = {outcome for outcome, rule in RULES.items() if rule.censors}
    assert censoring == {"stopped"}
    assert all(not RULES[outcome].in_edf for outcome in censoring)


def test_ranks_and_mean_that_point_to_different_arms_settle_nothing():
    # Arm b is a little better nearly everywhere, and diverges in two of the points.
    plan = make(points=24)
    a = [20.0 + 0.1 * point for point in range(24)]
    b = ["diverged" if point % 12 == 11 else error - 0.5 - point / 100 for point, error in enumerate(a)]
    found = {c.measure: c for c in contrasts(summaries_of(plan, {"a": a, "b": b}), None)}
    error = found["error"]
    assert error.difference.value > 0 > error.shift.high
    assert (error.better, error.decision, error.p_value < 0.05) == (None, "open", True)
    assert error.because == "most settings favour one arm, the mean the other"


def test_holm_is_the_closure_of_bonferroni():
    values = [0.01, 0.04, 0.03, 0.005, 0.5]
    expected = []
    for index in range(5):
        # Rejected only if every intersection it is in is: the largest p of them all.
        within = [
            min(1, min(values[i] for i in chosen) * size)
            for size in range(1, 6)
            for chosen in itertools.combinations(range(5), size)
            if index in chosen
        ]
        expected.append(max(within))
    assert holm(values) == pytest.approx(expected)
    assert holm([]) == []


def test_p_values_come_with_every_contrast_and_are_adjusted_over_the_cells():
    cells = {"length": {f"e{n}": {"schedule.epochs": n} for n in (2, 3, 4)}}
    plan = make(points=12, cells=cells)
    rng = np.random.default_rng(0)
    errors = {t.id: 10 + rng.uniform(0, 8) - 2 * (t.arm == "b") for t in plan.trials}
    summaries = summarise(results_of(plan, {key: ended(error) for key, error in errors.items()}))
    found = contrasts(summaries, Primary(measure="within_common_bar", cell="e3"))
    for contrast in found:
        a, b = (
            np.array([errors[t.id] for t in plan.trials if (t.arm, t.cell_name) == (arm, contrast.cell)])
            for arm in ("a", "b")
        )
        if contrast.measure == "error":
            assert contrast.p_value == pytest.approx(scipy_stats.wilcoxon(b - a).pvalue)
        if contrast.measure == "within_common_bar":
            inside = [x - min(a.min(), b.min()) <= 4 for x in (a, b)]
            higher, lower = int(np.sum(inside[1] & ~inside[0])), int(np.sum(inside[0] & ~inside[1]))
            assert (contrast.num_higher, contrast.num_differing) == (higher, higher + lower)
            assert contrast.p_value == pytest.approx(scipy_stats.binomtest(higher, higher + lower).pvalue)
    by_measure = {m: [c for c in found if c.measure == m] for m in MEASURES}
    error, bar = by_measure["error"], by_measure["within_common_bar"]
    assert [c.p_adjusted for c in error] == holm([c.p_value for c in error])
    assert {c.num_in_family for c in error} == {3}
    # The one that was declared stands alone, and the other two cells are a family of two.
    assert [(c.cell, c.num_in_family) for c in bar] == [("e2", 2), ("e3", 1), ("e4", 2)]
    assert bar[1].p_adjusted == bar[1].p_value
    # Declared for all cells, it is declared three times, and adjusted.
    every = [c for c in contrasts(summaries, Primary(measure="error")) if c.primary]
    assert {c.num_in_family for c in every} == {3}


def area_of(summaries, looks=None, num_points=None, primary=None):
    return next(c for c in contrasts(summaries, primary, looks, num_points) if c.measure == "area_common")


def test_a_look_waits_for_all_its_points_and_takes_no_later_ones():
    plan, looks = make(points=32), Looks.of(8, 32)
    rng = np.random.default_rng(0)
    a, b = list(14 + rng.uniform(0, 4, 32)), list(10 + rng.uniform(0, 2, 32))
    whole = area_of(summaries_of(plan, {"a": a, "b": b}), looks, 32)
    assert (whole.decision, whole.better, whole.look, whole.next_look) == ("better", "b", 32, None)
    # Point 20 has not ended, so the looks at 8 and 16 are all there are; it does not matter what came later.
    b[20] = None
    shown = [
        area_of(summaries_of(plan, {"a": a, "b": [*b[:21], *rest]}), looks, 32)
        for rest in ([90.0] * 11, b[21:])
    ]
    assert [(c.look, c.next_look) for c in shown] == [(16, 32)] * 2
    assert shown[0].shift == shown[1].shift
    assert shown[0].p_value == shown[1].p_value
    assert shown[0].num_differing == 16
    assert shown[0].difference != shown[1].difference
    # A trial that failed for good has ended, and its point is no pair.
    b[20] = "failed"
    assert area_of(summaries_of(plan, {"a": a, "b": b}), looks, 32).look == 32
    b[3] = None
    early = area_of(summaries_of(plan, {"a": a, "b": b}), looks, 32)
    assert (early.decision, early.look, early.next_look, early.p_value, early.shift) == (
        "open",
        None,
        8,
        None,
        None,
    )
    assert early.because == "the first look is at 8 points, and 3 have ended"


def test_the_common_reference_of_a_look_is_of_its_own_points():
    plan, looks = make(points=16), Looks.of(8, 16)
    a, b = [20.0 + p for p in range(16)], [18.0 + 0.9 * p for p in range(16)]
    first = area_of(summaries_of(plan, {"a": [*a[:8], *[None] * 8], "b": b}), looks, 16)
    # A much better point later moves the reference of the whole, and not that of the first look.
    b[12] = 1.0
    late = area_of(summaries_of(plan, {"a": [*a[:14], None, None], "b": b}), looks, 16)
    assert (first.look, late.look) == (8, 8)
    assert late.shift == first.shift
    assert late.difference.value != first.difference.value


@pytest.mark.parametrize("num_cells", [1, 3])
def test_an_interval_never_contradicts_its_verdict(num_cells):
    """At every look, in families of one and of three, for all measures that decide."""
    cells = {"length": {f"e{n}": {"schedule.epochs": n + 2} for n in range(num_cells)}}
    plan, looks = make(points=32, cells=cells), Looks.of(8, 32)
    rng, decisions = np.random.default_rng(num_cells), set()
    for _ in range(25):
        gain, noise = rng.choice([0.0, 0.5, 2.0]), rng.choice([0.2, 3.0])
        num_done = rng.integers(8, 33)
        errors = {
            t.id: 10 + 4 * abs(np.sin(t.point)) + noise * rng.normal() ** 2 - gain * (t.arm == "b")
            for t in plan.trials
            if t.point < num_done
        }
        summaries = summarise(results_of(plan, {key: ended(error) for key, error in errors.items()}))
        for c in contrasts(summaries, Primary(margin=0.3), looks, 32):
            if not MEASURES[c.measure].decides:
                continue
            decisions.add(c.decision)
            excludes = c.shift.low is not None and not c.shift.low <= 0 <= c.shift.high
            assert excludes == (c.p_adjusted <= 0.05)
            assert (c.decision == "better") == (excludes and c.because == "")
            inside = c.within.low is not None and -c.margin < c.within.low <= c.within.high < c.margin
            assert (c.decision == "alike") == (inside and not excludes)
            assert (c.better is not None) == (c.decision == "better")
    assert decisions == {"better", "alike", "open"}


def test_alike_is_an_answer_and_a_difference_of_the_margin_is_not_alike():
    """Two one-sided tests of the mean that allow for what was not drawn; the naive interval does not."""
    plan, rng = make(points=64), np.random.default_rng(0)
    alike = {0.0: 0, 0.05: 0}
    num_sweeps = 40
    for shift in alike:
        for _ in range(num_sweeps):
            surface = 10 + rng.uniform(0, 8, 64)
            surface[0] = 10
            b = surface + 10 * shift + rng.normal(0, 0.3, 64)
            c = area_of(summaries_of(plan, {"a": list(surface), "b": list(b)}), Looks.once(64), 64)
            alike[shift] += c.decision == "alike"
    assert alike[0.0] >= 0.8 * num_sweeps
    assert alike[0.05] == 0


def test_a_rare_divergence_that_a_margin_matters_for_keeps_arms_from_being_alike():
    """Equal but for a divergence: 16 points say too little of rare ones to call arms alike."""
    plan = make(points=16)
    a = [10.0 + point / 4 for point in range(16)]
    contrast = area_of(summaries_of(plan, {"a": a, "b": [e + 0.001 * (-1) ** i for i, e in enumerate(a)]}))
    assert contrast.decision == "open"
    assert contrast.within.high > 0.05
