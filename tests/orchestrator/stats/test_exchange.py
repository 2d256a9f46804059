"""The exchange rate of tuning effort, against closed forms, brute force and simulated sweeps."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks import coverage_exchange
from benchmarks.coverage import interval_faults
from orchestrator.stats.best_of import largest_budget, median_band, order_statistic_band
from orchestrator.stats.exchange import (
    chance_of_best,
    exchange_rate,
    largest_chance_budget,
    rate_at_least,
    rate_band,
)


def powers(rng, size, rate):
    """Errors of a base, and of an arm of which one trial is as good as the best of `rate` of the base."""
    base, own = rng.random((2, size))
    return 100 * base, 100 * (1 - (1 - own) ** (1 / rate))


def mean_log_rates(draw, budgets, num_sweeps=400):
    """The mean of log r(k) over sweeps of 64 trials of an arm and of a base."""
    found = [exchange_rate(*draw()).rates for _ in range(num_sweeps)]
    return [
        np.mean([math.log(rates[k - 1].value) for rates in found if 0 < rates[k - 1].value < math.inf])
        for k in budgets
    ]


def test_a_trial_that_is_the_best_of_three_is_worth_three():
    rng = np.random.default_rng(0)

    def draw():
        return 100 * rng.random((64, 3)).min(axis=1), 100 * rng.random(64)

    assert mean_log_rates(draw, [1, 2]) == pytest.approx([math.log(3)] * 2, abs=0.15)
    assert mean_log_rates(lambda: draw()[::-1], [2, 4]) == pytest.approx([-math.log(3)] * 2, abs=0.15)


def test_the_rate_is_the_distance_at_which_simulated_bests_have_equal_medians():
    # The arm's errors are exponential, the base's of a Weibull distribution: the rate grows with k.
    rng = np.random.default_rng(1)

    def own(size):
        return 5 * rng.exponential(size=size)

    def base(size):
        return 6 * rng.weibull(1.5, size)

    told = mean_log_rates(lambda: (np.minimum(own(64), 100), np.minimum(base(64), 100)), [1, 2, 4])
    for k, found in zip((1, 2, 4), told, strict=True):
        target = np.median(own((20_000, k)).min(axis=1))
        medians = [np.median(base((20_000, m)).min(axis=1)) for m in range(1, 25)]
        # The number of trials of the base with the same median best, between whole numbers.
        needed = np.interp(-target, -np.array(medians), np.arange(1, 25))
        assert found == pytest.approx(math.log(needed / k), abs=0.15)


@pytest.mark.parametrize(
    "errors", [np.arange(64.0), [5.0] * 40 + [100.0] * 24, np.repeat([1.0, 2, 3, 7], 16)]
)
def test_equal_arms_have_rate_one_within_every_bound(errors):
    found = exchange_rate(errors, errors)
    assert found.largest_budget == 6
    for rate in found.rates:
        assert rate.value == pytest.approx(1)
        assert rate.low <= 1 <= rate.high
    assert found.at_least <= 1
    assert found.at_least_throughout <= found.at_least


def test_a_level_that_the_base_never_reached_has_a_lower_bound_alone():
    found = exchange_rate(np.linspace(1, 2, 32), np.linspace(3, 4, 32))
    assert all(math.isinf(rate.value) and math.isinf(rate.high) and rate.low > 0 for rate in found.rates)
    # Half of the arm's trials are surely below its 27th: P(27 or more of 32 below the median) is small, and
    # with what is left of 2.5 %, at most so many of the base's are below that.
    tail = stats.binom.sf(np.arange(32), 32, 0.5)
    rest = 0.025 - tail[tail <= 0.0125][0]
    most = stats.binomtest(0, 32).proportion_ci(1 - 2 * rest, "exact").high
    assert found.at_least == pytest.approx(math.log(0.5) / math.log1p(-most))
    back = exchange_rate(np.linspace(3, 4, 32), np.linspace(1, 2, 32))
    assert [rate.value for rate in back.rates] == [0, 0, 0]
    assert back.at_least == 0
    assert all(rate.high < 1 for rate in back.rates[:1])


def test_the_band_is_the_worst_case_over_the_bands_of_both_arms():
    rng = np.random.default_rng(2)
    base, own = powers(rng, 32, 3.0)
    ks = np.array([1, 2, 3])
    low, high = rate_band(own, base, ks)
    # By brute force: the levels that the arm's own band allows, and the base's band as steps.
    least_pct, most_pct = median_band(own, ks.tolist(), 0.975)
    below, above = order_statistic_band(32, 0.975)
    ordered = np.sort(base)
    for k, bottom, top in zip(ks, least_pct, most_pct, strict=True):
        inside = np.linspace(bottom, top, 20_001)
        count = (ordered[:, None] <= inside).sum(axis=0)
        upper = np.append(above, 1.0)[count].max()
        lower = np.concatenate([[0.0], below])[count].min()
        assert low[k - 1] == pytest.approx(math.log(0.5) / k / math.log1p(-upper))
        expected = math.inf if lower == 0 else math.log(0.5) / k / math.log1p(-lower)
        assert high[k - 1] == pytest.approx(expected)


def test_only_the_order_of_the_errors_counts():
    base, own = powers(np.random.default_rng(3), 24, 2.0)
    assert exchange_rate(own, base) == exchange_rate(own**2 / 100, base**2 / 100)
    assert exchange_rate(own, base) == exchange_rate(own[::-1], np.sort(base))


def test_the_bound_over_several_budgets_is_the_least_of_each():
    base, own = powers(np.random.default_rng(4), 64, 6.0)
    bounds = [rate_at_least(own, base, upto) for upto in (1, 2, 3, 4, 5, 6)]
    assert bounds == sorted(bounds, reverse=True)
    found = exchange_rate(own, base)
    assert (found.at_least, found.at_least_throughout) == (bounds[0], bounds[-1])
    # One bound at a time is sharper than the band that holds for all.
    assert all(rate_at_least(own, base, rate.budget) >= 0 for rate in found.rates)
    assert found.at_least >= found.rates[0].low


def test_what_few_trials_cannot_say_is_refused():
    few = [1.0, 2, 3, 4, 5]
    assert exchange_rate(few, few) == dataclasses.replace(
        exchange_rate(few, few), rates=(), largest_budget=0, at_least=None, at_least_throughout=None
    )
    assert chance_of_best(few, few, 1) is None
    assert [largest_chance_budget(n) for n in (5, 6, 16, 64)] == [0, 1, 2, 8]
    assert exchange_rate(range(64), range(20)).largest_budget == largest_budget(20, 0.975)
    for wrong in ([], [1.0, 101.0], [math.nan]):
        with pytest.raises(ValueError, match=r"errors|trials"):
            exchange_rate(wrong, few)
    with pytest.raises(ValueError, match="pairs"):
        chance_of_best([1.0] * 8, [1.0] * 9, 1)
    with pytest.raises(ValueError, match="budget"):
        rate_at_least(range(8), range(8), 0)


def subsets(own, base, budget):
    """The chance that the best is lower by all pairs of subsets, ties as half."""
    own_bests, base_bests = (
        np.array([min(some) for some in itertools.combinations(errors, budget)]) for errors in (own, base)
    )
    below, level = own_bests[:, None] < base_bests, own_bests[:, None] == base_bests
    return np.mean(below + 0.5 * level)


@pytest.mark.parametrize("budget", [1, 2])
def test_the_chance_is_the_share_over_all_subsets_and_its_interval_the_jackknifes(budget):
    rng = np.random.default_rng(5)
    own, base = rng.integers(0, 20, (2, 16)).astype(float)
    found = chance_of_best(own, base, budget)
    assert found.value == pytest.approx(subsets(own, base, budget))
    more = np.append(own, [-1, 101]), np.append(base, [101, -1])
    without = [subsets(np.delete(more[0], i), np.delete(more[1], i), budget) for i in range(18)]
    half = stats.t.ppf(0.975, min(17, 32 / budget)) * math.sqrt(17 * np.var(without))
    centre = subsets(*more, budget)
    assert found.low == pytest.approx(max(0, min(centre - half, found.value)))
    assert found.high == pytest.approx(min(1, max(centre + half, found.value)))


def test_arms_that_never_change_places_have_an_interval_that_is_not_a_point():
    found = chance_of_best(np.arange(16.0), 50 + np.arange(16.0), 1)
    assert found.value == found.high == 1
    assert 0.5 < found.low < 0.9


@pytest.fixture(scope="module")
def cells():
    wanted = ("same rate", "cliff", "coarse")
    planted = [pair for pair in coverage_exchange.pairs() if pair.population.name in wanted]
    found = coverage_exchange.measure(120, (32,), planted, ("iid",))
    return [cell for part, _ in found for cell in part]


def test_every_statement_is_right_in_planted_sweeps(cells):
    assert len(cells) == 3 * 8
    assert [said for said in interval_faults(cells) if "naive" not in said] == []


def test_a_bound_that_is_wrong_in_one_sweep_of_eight_is_a_fault(cells):
    worse = [dataclasses.replace(cell, coverage=13 / 16) for cell in cells]
    assert len(interval_faults(worse)) == sum(cell.kind == "report" for cell in cells) == 3 * 7
    right = [dataclasses.replace(cell, coverage=1.0) for cell in cells]
    assert interval_faults(right) == [
        "naive bootstrap of the rate, last k (guard) holds everywhere: this benchmark cannot tell"
    ]


def test_the_planted_truths_are_those_of_closed_forms():
    same = next(pair for pair in coverage_exchange.pairs() if pair.population.name == "same rate")
    truth = coverage_exchange.Truth(same)
    assert truth.rates(3) == pytest.approx([6] * 3, rel=0.02)
    assert truth.rates(3, swapped=True) == pytest.approx([1 / 6] * 3, rel=0.02)
    # The best of k of the arm is that of 6 k of the base: it wins in 6 of 7 cases.
    assert [truth.chance(k) for k in (1, 4)] == pytest.approx([6 / 7] * 2, abs=0.003)
