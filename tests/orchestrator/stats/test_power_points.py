"""The number of points that a difference needs: by theory, by simulation, and by what was seen."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from orchestrator.stats.looks import Looks
from orchestrator.stats.measures import MEASURES, point_scores
from orchestrator.stats.paired import SignedRanks
from orchestrator.stats.power import (
    MOST_POINTS,
    STEP_POINTS,
    Planted,
    _draws,
    _value,
    largest_difference,
    points_for_spread,
    points_needed,
    power_of,
    smallest_difference,
)
from tests.support.oracles import points_for_paired_shares

DECIDING = [measure for measure, info in MEASURES.items() if info.decides]


def by_normal_theory(effect: float, power: float, alpha: float = 0.05) -> float:
    """The pairs that a paired test of normal differences needs, with Guenther's correction for t."""
    ends = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)
    return (sum(ends) / effect) ** 2 + ends[0] ** 2 / 2


@pytest.mark.parametrize("effect", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("power", [0.8, 0.9])
@pytest.mark.parametrize("alpha", [0.05, 0.02])
def test_the_points_for_a_spread_are_those_of_normal_theory(effect, power, alpha):
    # A standard deviation of 1, around a mean that is the difference to be found.
    found = points_for_spread("area_common", effect, 1 + effect**2, power, lambda count: alpha)
    needed = by_normal_theory(effect, power, alpha)
    step = max(STEP_POINTS, needed / 8)
    assert needed - 1 <= found <= needed + step + 1
    assert power_of("area_common", round(needed), effect, 1 + effect**2, alpha) == pytest.approx(
        power, abs=0.01
    )


@pytest.mark.parametrize(("only_base", "only_other"), [(0.1, 0.3), (0.05, 0.15), (0.12, 0.3)])
def test_the_points_for_a_share_are_those_of_mcnemar(only_base, only_other):
    needed = points_for_paired_shares(only_base, only_other)
    found = points_for_spread("within_common_bar", only_other - only_base, only_base + only_other)
    assert needed - 1 <= found <= needed + max(STEP_POINTS, needed / 8) + 1


@pytest.mark.parametrize("measure", DECIDING)
def test_the_points_needed_are_the_fewest_that_detect_it(measure):
    difference = 0.5 * largest_difference(measure)
    count = points_needed(measure, difference)
    assert count % STEP_POINTS == 0
    # The other way round, which the words of a plan are made of.
    assert smallest_difference(measure, count) <= difference * 1.001
    assert smallest_difference(measure, count - STEP_POINTS) > difference * 0.999


@pytest.mark.parametrize("measure", DECIDING)
def test_smaller_differences_more_power_and_stricter_levels_need_more_points(measure):
    most = largest_difference(measure)
    by_difference = [points_needed(measure, share * most) for share in (0.8, 0.6, 0.4, 0.3, 0.2, 0.15)]
    assert by_difference == sorted(by_difference)
    assert by_difference[-1] > 4 * by_difference[0]
    by_power = [points_needed(measure, 0.3 * most, power) for power in (0.5, 0.7, 0.8, 0.9, 0.99)]
    assert by_power == sorted(set(by_power))
    by_level = [
        points_needed(measure, 0.3 * most, level=lambda count, alpha=alpha: alpha)
        for alpha in (0.05, 0.02, 0.005)
    ]
    assert by_level == sorted(set(by_level))
    spreads = [points_for_spread(measure, 0.1 * most, square * most**2) for square in (0.05, 0.1, 0.3, 1.0)]
    assert spreads == sorted(set(spreads))


def test_what_cannot_be_planted_is_refused_and_what_needs_too_many_has_no_number():
    most = largest_difference("area_common")
    for difference in (0.0, -0.1, most, 2 * most):
        with pytest.raises(ValueError, match="is planted"):
            points_needed("area_common", difference)
    assert points_needed("area_common", 0.001) is None
    assert points_for_spread("area_common", 0.001, 1.0) is None
    # No spread at all.
    assert points_for_spread("area_common", 0.1, 0.01) == STEP_POINTS
    assert points_for_spread("area_common", 0.02, 0.05) <= MOST_POINTS


def test_the_spread_without_signs_says_the_points_that_the_spread_with_signs_would():
    rng = np.random.default_rng(0)
    differences = rng.normal(0.12, 0.3, 400_000)
    without = points_for_spread("area_common", 0.12, float(np.mean(differences**2)))
    flipped = differences * rng.choice([-1, 1], differences.size)
    assert points_for_spread("area_common", 0.12, float(np.mean(flipped**2))) == without
    assert without == pytest.approx(by_normal_theory(0.12 / differences.std(), 0.8), abs=STEP_POINTS + 1)


@pytest.mark.parametrize("kind", ["normal", "heavy", "ties"])
def test_a_number_of_points_that_follows_from_the_spread_raises_no_false_alarm(kind):
    """Equal arms. The last look is the first one that has the points which the first look asks for."""
    rng, looks, detect, num_sweeps = np.random.default_rng(5), Looks.of(16, 128), 0.15, 1000
    alarms, ends = 0, []
    levels = looks.levels(0.05)
    for _ in range(num_sweeps):
        size = looks.last
        differences = {
            "normal": lambda n: rng.normal(0, 0.4, n),
            "heavy": lambda n: 0.15 * rng.standard_t(2, n),
            "ties": lambda n: np.round(rng.normal(0, 0.6, n), 1) * (rng.random(n) < 0.5),
        }[kind](size)
        first = float(np.mean(differences[: looks.points[0]] ** 2))
        needed = points_for_spread("area_common", detect, first, 0.8, lambda n: levels[0]) or size
        end = next((n for n in looks.points if n >= needed), looks.last)
        ends.append(end)
        taken = [n for n in looks.points if n <= end]
        alarms += any(
            SignedRanks.of(differences[:n]).p_value <= level for n, level in zip(taken, levels, strict=False)
        )
    # The number does follow from what is seen.
    assert len(set(ends)) > 1
    assert alarms / num_sweeps <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / num_sweeps)


def test_a_large_difference_is_settled_with_half_of_the_points_of_the_last_look():
    planted, looks, difference = Planted(), Looks.of(16, 64), 0.3
    mean_pp = optimize.brentq(
        lambda mean: _value("area_common", mean) - _value("area_common", 4.0) - difference, 1e-3, 4.0
    )
    base, other = _draws(looks.last, planted.correlation)
    stops = []
    for one, two in zip(4.0 * base[:200], mean_pp * other[:200], strict=True):
        scores = [point_scores("area_common", delta, 0.0) for delta in (one, two)]
        p_values = [SignedRanks.of((scores[1] - scores[0])[:n]).p_value for n in looks.points]
        ends = (
            n for n, p, level in zip(looks.points, p_values, looks.levels(0.05), strict=True) if p <= level
        )
        stops.append(next(ends, looks.last))
    assert np.median(stops) <= looks.last / 2
