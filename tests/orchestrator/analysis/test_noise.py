"""Variance components: planted ones are found, the intervals cover, and what is no noise stays out."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from orchestrator.analysis.noise import component, noise, noise_floor_pp
from orchestrator.trials.confirm import Confirmation, with_confirmation
from orchestrator.trials.records import results_of
from tests.orchestrator.analysis.test_contrasts import ended, make

PLANTED = {"init": 0.8, "order": 0.4, "augment": 0.2}
NOISE = {"points": 40, "seeds": 6}


def with_planted_noise(plan, seed=0, bowl=5.0):
    """Errors that are a bowl over points plus one normal draw per stream's seed."""
    draws: dict[object, float] = {}
    rng = np.random.default_rng(seed)

    def error(trial):
        total = 20 + bowl * math.sin(trial.point)
        for stream, sd in PLANTED.items():
            key = (trial.cell_name, trial.arm, trial.point, stream, getattr(trial.config.seeds, stream))
            if key not in draws:
                draws[key] = rng.normal(0, sd)
            total += draws[key]
        return total

    return results_of(plan, {trial.id: ended(error(trial)) for trial in plan.trials})


def test_each_stream_is_told_apart_from_the_others_and_from_the_points():
    (summary,) = noise(with_planted_noise(make(points=40, arms=("a",), noise=NOISE)))
    for stream, sd in PLANTED.items():
        found = summary.streams[stream]
        # 40 points with 5 degrees of freedom each; the standard error of an sd is sd / sqrt(2 * 200).
        assert (found.freedom, found.num_groups) == (200, 40)
        assert found.sd_pp.value == pytest.approx(sd, abs=4 * sd / math.sqrt(400))
        assert found.sd_pp.low < sd < found.sd_pp.high
    assert summary.total is None
    # No single run knows of the others' seeds: the plain spread over all trials is the bowl's.
    everything = [r.error_pct for r in with_planted_noise(make(points=40, arms=("a",), noise=NOISE))]
    assert np.std(everything) > 3 * max(PLANTED.values())


def test_replicates_give_the_total_and_it_is_the_root_of_the_sum_of_squares():
    (summary,) = noise(with_planted_noise(make(points=100, arms=("a",), replicates=4)))
    total = math.sqrt(sum(sd**2 for sd in PLANTED.values()))
    assert summary.streams == {}
    assert summary.total.freedom == 300
    assert summary.total.sd_pp.value == pytest.approx(total, abs=4 * total / math.sqrt(600))
    assert summary.floor == summary.total


def test_without_replicates_the_floor_is_the_sum_of_all_three_streams():
    (summary,) = noise(with_planted_noise(make(points=40, arms=("a",), noise=NOISE)))
    parts = [part.sd_pp.value for part in summary.streams.values()]
    assert summary.floor.sd_pp.value == pytest.approx(math.hypot(*parts))
    # Most of it is one stream's: more than its 200 degrees of freedom, fewer than all 600.
    assert 200 < summary.floor.freedom < 600


def test_a_confirmed_points_lucky_run_is_no_part_of_its_noise():
    plan = with_confirmation(make(points=4, arms=("a",)), Confirmation({("all", "a"): (2,)}, seeds=3))
    fresh = [12.0, 13.0, 14.0]
    records = {t.id: ended(fresh[t.replicate] if t.role == "confirm" else 5.0 + t.point) for t in plan.trials}
    (summary,) = noise(results_of(plan, records))
    assert summary.total.sd_pp.value == pytest.approx(1.0)
    assert (summary.total.freedom, summary.total.num_groups) == (2, 1)


def test_the_interval_is_that_of_a_normal_variance_and_covers_it():
    sample = [3.0, 5.0, 4.5, 2.0]
    found = component([sample])
    # s^2 / sigma^2 has a chi-square distribution over its degrees of freedom.
    low, high = found.sd_pp.low, found.sd_pp.high
    for end, share in ((low, 0.975), (high, 0.025)):
        assert scipy_stats.chi2.cdf(3 * np.var(sample, ddof=1) / end**2, 3) == pytest.approx(share)
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        # Three groups of unequal size and level.
        groups = [rng.normal(level, 2.0, size) for level, size in ((0, 2), (50, 4), (-9, 3))]
        found = component(groups)
        covered += found.sd_pp.low <= 2.0 <= found.sd_pp.high
    assert covered / 1000 == pytest.approx(0.95, abs=0.02)


def test_pooling_weighs_groups_by_their_degrees_of_freedom():
    groups = [[1.0, 3.0], [10.0, 10.0, 13.0]]
    # Squares about the means: 2 and 6, over 1 + 2 degrees of freedom.
    assert component(groups).sd_pp.value == pytest.approx(math.sqrt(8 / 3))
    assert component([[1.0], []]) is None
    alike = component([[2.0, 2.0]])
    assert (alike.sd_pp.value, alike.sd_pp.low) == (0, None)


def test_a_group_in_which_a_run_diverged_is_left_out_and_counted():
    plan = make(points=3, arms=("a",), replicates=3)
    records = {t.id: ended(10.0 + t.replicate) for t in plan.trials}
    for trial in plan.trials:
        if trial.point == 0 and trial.replicate == 1:
            records[trial.id] = ended(90.0, "diverged")
        if trial.point == 1:
            records[trial.id] = ended(90.0, "diverged")
    (summary,) = noise(results_of(plan, records))
    assert summary.num_diverged_groups == 1
    assert summary.total.num_groups == 1
    assert summary.total.sd_pp.value == pytest.approx(1.0)


def test_a_sweep_without_repetitions_has_no_noise_summary():
    assert noise(with_planted_noise(make(points=8))) == []
    assert noise(results_of(make(points=2, noise={"points": 2, "seeds": 3}), {})) == []


def test_the_floor_is_the_spread_of_a_difference_of_two_single_runs():
    one, other = noise(with_planted_noise(make(points=200, replicates=3)))
    total = math.sqrt(sum(sd**2 for sd in PLANTED.values()))
    runs = np.random.default_rng(5).normal(0, total, (2, 100_000))
    expected = np.std(runs[0] - runs[1])
    for floor in (noise_floor_pp(one), noise_floor_pp(one, other)):
        assert floor.value == pytest.approx(expected, rel=0.1)
        assert floor.low < expected < floor.high
    assert noise_floor_pp(one).value == pytest.approx(math.sqrt(2) * one.total.sd_pp.value)
    assert noise_floor_pp(one, other).value == pytest.approx(
        math.hypot(one.total.sd_pp.value, other.total.sd_pp.value)
    )


def test_there_is_no_floor_from_some_of_the_streams_only():
    plan = make(points=4, arms=("a",), noise={"points": 4, "seeds": 3})
    results = [r for r in with_planted_noise(plan) if r.trial.role != "noise_augment"]
    (summary,) = noise(results)
    assert set(summary.streams) == {"init", "order"}
    assert summary.floor is None
    assert noise_floor_pp(summary) is None
