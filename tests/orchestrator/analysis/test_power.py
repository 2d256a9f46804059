"""The smallest detectable differences, against the literature, simulations and the verdict itself."""

import math
import time

import numpy as np
import pytest
from scipy import stats as scipy_stats

from orchestrator.analysis.power import detectable
from orchestrator.stats.looks import Looks
from orchestrator.stats.measures import MEASURES, point_scores
from orchestrator.stats.paired import SignedRanks
from orchestrator.stats.power import (
    Planted,
    _both,
    _draws,
    _moments,
    _simulated_power,
    paired_t_power,
    smallest,
)
from tests.orchestrator.analysis.test_contrasts import make
from tests.support.oracles import points_for_paired_shares, points_for_two_shares


@pytest.mark.parametrize(
    ("base", "other", "points"), [(0.6, 0.2, 23), (0.6, 0.4, 97), (0.8, 0.7, 294), (0.6, 0.5, 388)]
)
def test_two_shares_need_the_points_the_literature_gives(base, other, points):
    assert points_for_two_shares(base, other) == points == points_for_two_shares(other, base)


@pytest.mark.parametrize(("base", "other"), [(0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_equal_shares_and_no_shares_are_refused(base, other):
    with pytest.raises(ValueError, match="two different shares"):
        points_for_two_shares(base, other)
    with pytest.raises(ValueError, match="two different shares"):
        points_for_paired_shares(base, other)


@pytest.mark.parametrize(("only_base", "only_other"), [(0.1, 0.3), (0.05, 0.15), (0.3, 0.12)])
def test_that_many_pairs_give_mcnemar_the_power_it_asks_for(only_base, only_other):
    pairs, rng = points_for_paired_shares(only_base, only_other), np.random.default_rng(0)
    counts = rng.multinomial(pairs, [only_base, only_other, 1 - only_base - only_other], 20_000)
    differing = counts[:, 0] + counts[:, 1]
    # McNemar's statistic as he wrote it. Its power is 80 % up to the normal approximation.
    significant = np.abs(counts[:, 0] - counts[:, 1]) > scipy_stats.norm.ppf(0.975) * np.sqrt(differing)
    assert significant.mean() == pytest.approx(0.8, abs=0.03)


def test_pairing_needs_fewer_points_where_arms_agree_and_as_many_where_they_do_not():
    # 0.6 against 0.4. Independent: 0.6 * 0.6 only in one, 0.4 * 0.4 only in the other.
    assert points_for_paired_shares(0.36, 0.16) == pytest.approx(points_for_two_shares(0.6, 0.4), abs=3)
    # All that are in for one are in for the other.
    assert points_for_paired_shares(0.2, 0.0) < points_for_two_shares(0.6, 0.4) / 2


@pytest.mark.parametrize(("effect", "points"), [(0.5, 16), (0.9, 12), (0.3, 100)])
def test_the_power_of_the_paired_t_test_is_how_often_scipys_test_finds_it(effect, points):
    samples = np.random.default_rng(1).normal(effect, 1, (20_000, points))
    test = scipy_stats.ttest_1samp(samples, 0, axis=1)
    found = np.mean((test.pvalue < 0.05) & (test.statistic > 0))
    # Standard error of a share of 20,000: at most 0.0036.
    assert paired_t_power(effect, points) == pytest.approx(found, abs=0.015)


def test_huge_samples_and_effects_have_full_power():
    assert paired_t_power(5.0, 10_000) == 1
    assert paired_t_power(0.0, 10) == pytest.approx(0.025)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_joint_shares_are_those_of_a_bivariate_normal(correlation):
    expected = scipy_stats.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]]).cdf(
        scipy_stats.norm.ppf([0.3, 0.7])
    )
    assert _both(0.3, 0.7, correlation) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("measure", ["area_under_delta_edf", "error"])
def test_moments_are_those_of_a_large_sample(measure):
    rng = np.random.default_rng(0)
    base, own = rng.standard_normal((2, 400_000))
    other = 0.5 * base + math.sqrt(0.75) * own
    # Delta by scipy's quantiles, not by the logarithm under test.
    deltas = [scipy_stats.expon.isf(scipy_stats.norm.sf(z), scale=m) for z, m in ((base, 4.0), (other, 2.0))]
    scores = [point_scores(measure, delta, 0.0) for delta in deltas]
    mean, variance = _moments(measure, (4.0, 2.0), 0.5)
    difference = scores[1] - scores[0]
    assert mean == pytest.approx(difference.mean(), abs=5 * difference.std() / math.sqrt(400_000) + 2e-2)
    assert variance == pytest.approx(difference.var(), rel=0.03)


def test_planted_shares_and_areas_are_those_of_an_exponential():
    found = {d.measure: d.base_value for d in detectable(make(points=64), Planted(mean_delta_pp=4.0))}
    for measure, t in (("f1", 1), ("f2", 2), ("f4", 4), ("within_common_bar", 4)):
        assert found[measure] == pytest.approx(scipy_stats.expon.cdf(t, scale=4))
    at = (np.arange(20_000) + 0.5) / 2000
    assert found["area_under_delta_edf"] == pytest.approx(scipy_stats.expon.cdf(at, scale=4).mean(), abs=1e-6)
    assert found["error"] == 4


def test_closed_forms_and_simulation_agree_and_fall_with_more_points():
    before = time.process_time()
    small, large = (detectable(make(points=points)) for points in (64, 256))
    assert time.process_time() - before < 2
    assert [d.measure for d in small] == list(MEASURES)
    for few, many in zip(small, large, strict=True):
        assert few.simulated == pytest.approx(few.closed_form, rel=0.12)
        assert many.simulated == pytest.approx(many.closed_form, rel=0.12)
        # As one over the root of n, roughly: four times the points, half the difference.
        assert many.closed_form / few.closed_form == pytest.approx(0.5, abs=0.05)


def test_correlated_arms_detect_smaller_differences():
    plan = make(points=64)
    apart, tied = (detectable(plan, Planted(correlation=correlation)) for correlation in (0.0, 0.9))
    for one, other in zip(apart, tied, strict=True):
        assert other.closed_form < 0.75 * one.closed_form
        assert other.simulated < 0.75 * one.simulated


def test_unpaired_arms_detect_what_the_formula_of_two_shares_says():
    # One look, because the formula has the whole level.
    every = detectable(make(points=64), Planted(correlation=0.0), Looks.once(64))
    (found,) = (d for d in every if d.measure == "f4")
    # 64 per arm: the difference from 0.632 for which the unpaired formula asks for 64.
    shares = np.linspace(found.base_value + 0.05, 0.99, 2000)
    needed = np.array([points_for_two_shares(found.base_value, share) for share in shares])
    assert found.closed_form == pytest.approx(shares[needed <= 64][0] - found.base_value, rel=0.1)


def test_what_is_detected_is_what_the_look_of_the_points_detects():
    """The first of three looks has 3.9 %, so it finds less than one look does, which has 5 %."""
    plan = make(points=16)
    looks = Looks.of(16)
    assert looks.levels(0.05)[0] < 0.04
    declared, alone = (
        next(d for d in detectable(plan, looks=found) if d.measure == "area_common")
        for found in (looks, Looks.once(16))
    )
    assert declared.closed_form > alone.closed_form
    expected = smallest("area_common", 16, Planted(), 0.8, looks.levels(0.05)[0])
    assert (declared.base_value, declared.closed_form, declared.simulated) == expected
    # Of an extended sweep, the level of the look that it has reached.
    assert [looks.level_at(n, 0.05) for n in (8, 16, 31, 32, 64, 99)] == [
        looks.levels(0.05)[i] for i in (0, 0, 0, 1, 2, 2)
    ]


def test_too_few_points_detect_nothing():
    assert all((d.closed_form, d.simulated) == (None, None) for d in detectable(make(points=5)))


def test_every_cell_and_arm_is_told_against_the_first_arm():
    cells = {"length": {"short": {"schedule.epochs": 2}, "long": {"schedule.epochs": 3}}}
    found = detectable(make(points=8, arms=("a", "b", "c"), cells=cells, noise={"points": 1, "seeds": 3}))
    assert len(found) == 2 * 2 * len(MEASURES)
    assert {(d.cell, d.base_arm, d.arm) for d in found} == {
        (cell, "a", arm) for cell in ("short", "long") for arm in ("b", "c")
    }
    assert {d.num_points for d in found} == {8}
    assert detectable(make(points=8, arms=("a",))) == []


def test_the_simulated_verdict_is_the_verdict_of_signed_ranks():
    planted, mean_pp, num_points = Planted(), 2.0, 32
    base, other = _draws(num_points, planted.correlation)
    settled = []
    for one, two in zip(4.0 * base[:200], mean_pp * other[:200], strict=True):
        scores = [point_scores("area_under_delta_edf", delta, 0.0) for delta in (one, two)]
        settled.append(SignedRanks.of(scores[1] - scores[0]).p_value < 0.05)
    # Of the first 200 of 1,000 simulated sweeps; standard error 0.03.
    power = _simulated_power("area_under_delta_edf", num_points, planted, mean_pp)
    assert np.mean(settled) == pytest.approx(power, abs=0.1)
