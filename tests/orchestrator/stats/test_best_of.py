"""Best of k, its bands and its limits, against brute force, closed forms and planted truths."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from orchestrator.stats import best_of
from tests.support.oracles import mean_band, noise_sd

ERRORS = [31.0, 22.5, 22.5, 100.0, 27.25, 24.0, 40.0]


@pytest.mark.parametrize("budget", range(1, len(ERRORS) + 1))
def test_best_of_is_the_mean_minimum_over_every_subset(budget):
    subsets = itertools.combinations(ERRORS, budget)
    assert best_of.best_of(ERRORS, [budget])[0] == pytest.approx(np.mean([min(subset) for subset in subsets]))


def test_best_of_is_the_mean_at_one_and_the_minimum_at_all_and_falls_between():
    errors = np.random.default_rng(0).uniform(20, 100, 3000)
    curve = best_of.best_of(errors)
    assert curve[0] == pytest.approx(errors.mean())
    assert curve[-1] == pytest.approx(errors.min())
    assert np.all(np.diff(curve) <= 1e-9)
    assert curve[[6, 255, 256, 1999]] == pytest.approx(best_of.best_of(errors, [7, 256, 257, 2000]))


@pytest.mark.parametrize("budget", [1, 8, 15, 16])
def test_best_of_is_unbiased_where_resampling_with_replacement_is_not(budget):
    # The minimum of k uniforms on 0..100 has mean 100 / (k + 1).
    rng, size, repeats = np.random.default_rng(1), 16, 4000
    found = np.array([best_of.best_of(rng.uniform(0, 100, size), [budget])[0] for _ in range(repeats)])
    assert abs(found.mean() - 100 / (budget + 1)) < 4 * found.std() / math.sqrt(repeats)


def test_a_diverged_trial_counts_as_100_and_not_as_missing():
    assert best_of.best_of([20.0, 100.0], [1])[0] == 60.0
    assert best_of.tuning_curve([20.0] * 30 + [100.0] * 34).at(1).median_pct == 100.0
    # With 34 of 64 diverged, one trial alone may well diverge; the best of three hardly.
    assert best_of.tuning_curve([20.0] * 30 + [100.0] * 34).at(7).high_pct == 20.0


@pytest.mark.parametrize("wrong", [[], [20.0, math.nan], [-0.1], [100.5], [math.inf]])
def test_what_is_no_percentage_is_refused(wrong):
    for statistic in (best_of.best_of, best_of.tuning_curve, lambda errors: best_of.optimism(errors, 0.1)):
        with pytest.raises(ValueError, match=r"no trials|not within 0\.\.100"):
            statistic(wrong)


@pytest.mark.parametrize("budgets", [[0], [1, 8], [-1]])
def test_a_budget_that_was_not_run_is_refused(budgets):
    with pytest.raises(ValueError, match=r"budgets are 1\.\.7"):
        best_of.best_of(ERRORS, budgets)


def test_the_probability_of_a_band_is_that_of_closed_forms():
    # P(max <= h) = h^n, P(min >= l) = (1 - l)^n.
    assert best_of.band_probability(np.zeros(5), np.full(5, 0.8)) == pytest.approx(0.8**5)
    assert best_of.band_probability(np.full(5, 0.3), np.ones(5)) == pytest.approx(0.7**5)
    assert best_of.band_probability(np.full(5, 0.3), np.full(5, 0.8)) == pytest.approx(0.5**5)
    # Two uniforms: the lower within a..b, the upper within c..d, b < c: 2 (b - a)(d - c).
    low, high = np.array([0.1, 0.5]), np.array([0.3, 0.9])
    assert best_of.band_probability(low, high) == pytest.approx(2 * 0.2 * 0.4)
    # Kolmogorov's statistic: |U_(i) - i / n| and |U_(i) - (i - 1) / n| all within d.
    rank, d = np.arange(1, 21), 0.25
    band = np.clip(rank / 20 - d, 0, 1), np.clip((rank - 1) / 20 + d, 0, 1)
    assert best_of.band_probability(*band) == pytest.approx(scipy_stats.kstwo.cdf(d, 20))


@pytest.mark.parametrize("count", [1, 2, 8, 64])
def test_the_band_of_order_statistics_holds_uniforms_as_often_as_it_says(count):
    repeats = 20_000
    uniforms = np.sort(np.random.default_rng(2).random((repeats, count)), axis=1)
    low, high = best_of.order_statistic_band(count)
    held = np.mean(np.all((low <= uniforms) & (uniforms <= high), axis=1))
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / repeats)


@pytest.mark.parametrize("count", [8, 16, 64, 256])
def test_the_band_is_ordered_symmetric_and_bounds_the_peak_better_than_the_constant_one(count):
    low, high = best_of.order_statistic_band(count)
    assert np.all(low < high)
    assert np.all(np.diff(low) >= 0)
    assert np.all(np.diff(high) >= 0)
    assert low == pytest.approx(1 - high[::-1], abs=1e-6)
    constant = math.sqrt(math.log(2 / 0.05) / (2 * count))  # Massart's
    assert high[0] < constant


def test_a_more_confident_band_is_wider_and_supports_less():
    wide, narrow = best_of.order_statistic_band(32, 0.99), best_of.order_statistic_band(32, 0.8)
    assert np.all(wide[0] <= narrow[0])
    assert np.all(wide[1] >= narrow[1])
    assert best_of.largest_budget(32, 0.99) < best_of.largest_budget(32, 0.8)


def bimodal(rng, shape):
    """Two peaks, at 20 and 40 %, and one run in five that diverges."""
    errors = np.where(rng.random(shape) < 0.4, 20 + rng.gamma(2, 1, shape), 40 + rng.gamma(3, 2, shape))
    return np.where(rng.random(shape) < 0.2, 100.0, errors)


def naive_interval(errors, rng):
    """The interval that does not work: percentiles of the minimum of resamples."""
    resamples = errors[rng.integers(0, errors.size, (400, errors.size))].min(axis=1)
    return np.quantile(resamples, [0.025, 0.975])


@pytest.mark.parametrize("count", [8, 32])
def test_the_bands_hold_the_whole_curve_and_the_naive_bootstrap_fails_the_same_test(count):
    rng, repeats = np.random.default_rng(3), 500
    population = np.sort(bimodal(rng, 2_000_000))
    budgets = np.arange(1, best_of.largest_budget(count) + 1)
    medians = population[((1 - 0.5 ** (1 / budgets)) * population.size).astype(int)]
    above = 1 - np.arange(1, population.size) / population.size
    best_of_all = population[0] + np.diff(population) @ above**count
    means = [population[0] + np.diff(population) @ above ** int(k) for k in budgets]
    held = np.zeros(3)
    for errors in bimodal(rng, (repeats, count)):
        (low, high), (mean_low, mean_high) = (
            band(errors, budgets) for band in (best_of.median_band, mean_band)
        )
        naive_low, naive_high = naive_interval(errors, rng)
        held += (
            np.all((low <= medians) & (medians <= high)),
            np.all((mean_low <= means) & (means <= mean_high)),
            naive_low <= best_of_all <= naive_high,
        )
    # The bands claim 95 % at least; four standard errors below that would be chance once in 30,000 runs.
    least = repeats * (0.95 - 4 * math.sqrt(0.95 * 0.05 / repeats))
    assert held[0] >= least
    assert held[1] >= least
    assert held[2] < least


def test_the_band_of_the_median_contains_its_estimate_and_falls_with_the_budget():
    rng = np.random.default_rng(4)
    for count in (1, 2, 5, 8, 17, 64, 200):
        curve = best_of.tuning_curve(bimodal(rng, count))
        assert np.all(curve.low_pct <= curve.median_pct)
        assert np.all(curve.median_pct <= curve.high_pct)
        for falling in (curve.low_pct, curve.high_pct, curve.median_pct, curve.mean_pct):
            assert np.all(np.diff(falling) <= 1e-9)


def test_the_band_of_the_median_consists_of_observed_errors_within_the_limit():
    errors = bimodal(np.random.default_rng(5), 64)
    curve = best_of.tuning_curve(errors)
    for budget in range(1, curve.largest_budget + 1):
        assert {curve.at(budget).low_pct, curve.at(budget).high_pct} <= set(errors.tolist())
    assert np.all(curve.low_pct[curve.largest_budget :] == 0)


@pytest.mark.parametrize(("count", "limit"), [(1, 0), (5, 0), (8, 1), (16, 2), (64, 7), (128, 14)])
def test_beyond_what_the_trials_support_there_are_no_numbers(count, limit):
    # All n trials miss the better 1 - 0.5^(1/k) of the space with probability 0.5^(n/k): 0.4 % at (8, 1),
    # 0.2 % at (64, 7), and 0.4 % at (64, 8), which is more than the band can spend on one of 64 bounds.
    curve = best_of.tuning_curve(np.linspace(20, 60, count))
    assert curve.largest_budget == best_of.largest_budget(count) == limit
    for budget in (limit + 1, count + 1, 10_000):
        assert curve.at(budget) is None
    for budget in range(1, limit + 1):
        assert 20 <= curve.at(budget).low_pct <= curve.at(budget).high_pct <= 60
    with pytest.raises(ValueError, match="1 or more"):
        curve.at(0)


def test_nothing_depends_on_the_order_of_the_trials():
    errors = bimodal(np.random.default_rng(6), 40)
    curve, turned = best_of.tuning_curve(errors), best_of.tuning_curve(errors[::-1])
    for name in ("mean_pct", "median_pct", "low_pct", "high_pct"):
        assert np.array_equal(getattr(curve, name), getattr(turned, name))
    assert best_of.optimism(errors, 0.5) == best_of.optimism(errors[::-1], 0.5)


def test_trials_that_are_all_alike_have_a_flat_curve():
    curve = best_of.tuning_curve([25.0] * 16)
    assert curve.at(2) == best_of.BestOf(2, pytest.approx(25.0), 25.0, 25.0, 25.0)


def test_the_noise_between_replicates_is_pooled_over_points_that_train():
    # Two points of two: variances 2 and 8 with one degree of freedom each.
    assert noise_sd([[20, 22], [30, 34]]) == pytest.approx(math.sqrt(5))
    assert noise_sd([[20, 22], [30, 34], [25, 100], [27]]) == pytest.approx(math.sqrt(5))
    assert noise_sd([[20], [30]]) is None
    assert noise_sd([]) is None


def test_optimism_cannot_be_known_without_replicates_and_is_nothing_without_choice_or_noise():
    assert best_of.optimism(ERRORS, None) is None
    assert best_of.optimism(ERRORS, 0.0) == best_of.Optimism(0.0, 0.0, 0.0, 0.0)
    assert best_of.optimism([20.0], 0.5) == best_of.Optimism(0.5, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="not negative"):
        best_of.optimism(ERRORS, -1.0)


@pytest.mark.parametrize("gap", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_optimism_of_two_settings_is_right_on_average_by_quadrature(gap):
    # By hand, with sd 1: E[-noise of the lower] is the density of a tie, twice N(gap; 0, 2).
    truth = 2 * scipy_stats.norm.pdf(gap, scale=math.sqrt(2))
    observed = np.linspace(gap - 9, gap + 9, 151)
    estimates = [best_of.optimism([50.0, 50.0 + difference], 1.0).unbiased_pct for difference in observed]
    density = scipy_stats.norm.pdf(observed, gap, math.sqrt(2))
    assert np.trapezoid(np.array(estimates) * density, observed) == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize("curvature", [0.0, 2.0, 20.0])
def test_optimism_is_what_the_winner_flatters_by_on_planted_surfaces(curvature):
    rng, count, repeats, sd = np.random.default_rng(7), 16, 500, 0.15
    means = 20 + curvature * rng.uniform(-1, 1, (repeats, count)) ** 2
    errors = means + sd * rng.standard_normal(means.shape)
    rows, winner = np.arange(repeats), errors.argmin(axis=1)
    truth = (means - errors)[rows, winner] / sd
    found = [best_of.optimism(row, sd) for row in errors]
    unbiased = np.array([one.unbiased_pct for one in found]) / sd
    modelled = np.array([one.modelled_pct for one in found]) / sd
    assert abs((unbiased - truth).mean()) < 0.02 + 3 * (unbiased - truth).std() / math.sqrt(repeats)
    assert abs((modelled - truth).mean()) < 0.25
    assert modelled.std() < 0.5 * unbiased.std() + 0.05
    assert truth.mean() < found[0].at_most_pct / sd + 0.1


def test_optimism_is_at_most_that_of_settings_all_alike():
    # E[max of n normals]: 1 / sqrt(pi) of 2, 3 / (2 sqrt(pi)) of 3.
    assert best_of.optimism([20.0, 30.0], 2.0).at_most_pct == pytest.approx(2 / math.sqrt(math.pi), abs=1e-5)
    assert best_of.optimism([20.0, 30.0, 40.0], 1.0).at_most_pct == pytest.approx(
        1.5 / math.sqrt(math.pi), abs=1e-5
    )


def test_optimism_scales_with_the_errors():
    errors = 30 + np.random.default_rng(8).gamma(2, 0.5, 32)
    one, ten = best_of.optimism(errors - 20, 0.2), best_of.optimism((errors - 30) * 4 + 20, 0.8)
    for name in ("modelled_pct", "unbiased_pct", "at_most_pct"):
        assert getattr(ten, name) == pytest.approx(4 * getattr(one, name), rel=1e-6)
