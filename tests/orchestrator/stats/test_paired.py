"""Tests of paired differences and their intervals, against brute force and scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from orchestrator.stats import paired
from orchestrator.stats.paired import NetShare, SignedRanks

#: Coarse, so that there are ties and zeros.
differences = st.lists(st.integers(-6, 6).map(lambda i: i / 4), min_size=1, max_size=30)
levels = st.sampled_from([0.2, 0.1, 0.05, 0.02, 0.001])


@pytest.mark.parametrize("count", [1, 4, 9])
def test_signed_ranks_agree_with_all_possible_signs(count):
    sample = np.random.default_rng(count).normal(0.5, 1, count)
    ranks = scipy_stats.rankdata(np.abs(sample))
    seen = ranks[sample > 0].sum()
    every = [np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=count)]
    middle = ranks.sum() / 2
    share = np.mean([abs(total - middle) >= abs(seen - middle) - 1e-9 for total in every])
    assert SignedRanks.of(sample).p_value == pytest.approx(min(1, share))


@pytest.mark.parametrize("count", [40, 301, 500])
def test_signed_ranks_of_many_pairs_are_those_of_scipy(count):
    sample = np.random.default_rng(count).normal(0.1, 1, count)
    expected = scipy_stats.wilcoxon(
        sample, correction=True, method="exact" if count <= 50 else "approx"
    ).pvalue
    assert SignedRanks.of(sample).p_value == pytest.approx(expected, rel=2e-3)


def test_the_normal_limit_continues_the_exact_distribution(monkeypatch):
    sample = np.random.default_rng(1).normal(0.12, 1, 300)
    exact = SignedRanks.of(sample)
    told = exact.p_value, exact.interval(0.05)
    monkeypatch.setattr(paired, "_MAX_EXACT", 299)
    assert exact.p_value == pytest.approx(told[0], abs=1e-3)
    limit = exact.interval(0.05)
    assert (limit.low, limit.high) == pytest.approx((told[1].low, told[1].high), abs=1e-3)


def test_pairs_that_do_not_differ_say_nothing():
    values = np.array([1.0, -2.0, 3.0, 4.0, 5.5, 7.0, 8.0])
    # The last one differs from 0 by rounding only.
    padded = np.array([0.0, *values, 0.0, 0.1 + 0.2 - 0.3])
    for test in (SignedRanks, NetShare):
        assert test.of(padded).p_value == test.of(values).p_value
        assert test.of(padded).interval(0.1) == test.of(values).interval(0.1)
        assert test.of(np.zeros(5)).p_value == 1
        assert test.of(np.zeros(5)).interval(0.05).because == "no pair differs"


def test_the_estimate_is_the_median_of_all_means_of_two():
    sample = [0.3, -0.1, 0.7, 0.2]
    means = [(sample[i] + sample[j]) / 2 for i in range(4) for j in range(i, 4)]
    assert SignedRanks.of(np.array(sample)).interval(0.05).value == pytest.approx(np.median(means))


@given(differences, levels)
@pytest.mark.parametrize("test", [SignedRanks, NetShare])
def test_an_interval_excludes_0_exactly_if_its_test_rejects(test, sample, alpha):
    found = test.of(np.array(sample))
    interval = found.interval(alpha)
    excludes = interval.low is not None and (interval.low > 0 or interval.high < 0)
    assert excludes == (found.p_value <= alpha)
    if interval.low is not None:
        assert interval.low <= interval.value <= interval.high


@pytest.mark.parametrize("count", [7, 12, 25])
def test_the_interval_of_signed_ranks_holds_what_scipy_does_not_reject(count):
    sample = np.random.default_rng(count).normal(0.4, 1, count)
    interval = SignedRanks.of(sample).interval(0.05)
    for at, inside in (
        (interval.low - 1e-6, False),
        (interval.low + 1e-6, True),
        (interval.high - 1e-6, True),
        (interval.high + 1e-6, False),
    ):
        assert (scipy_stats.wilcoxon(sample - at, method="exact").pvalue > 0.05) == inside


@pytest.mark.parametrize(("higher", "lower"), [(0, 0), (6, 0), (5, 1), (9, 4), (3, 3)])
def test_mcnemar_is_a_coin_for_every_pair_that_differs(higher, lower):
    count = higher + lower
    tail = sum(math.comb(count, i) for i in range(max(higher, lower), count + 1)) / 2**count
    found = NetShare(higher, lower)
    assert found.p_value == pytest.approx(min(1, 2 * tail))
    if count > 5:
        exact = scipy_stats.binomtest(higher, count).proportion_ci(0.95, "exact")
        interval = found.interval(0.05)
        assert ((interval.low + 1) / 2, (interval.high + 1) / 2) == pytest.approx(tuple(exact))


@pytest.mark.parametrize("test", [SignedRanks, NetShare])
def test_five_pairs_are_too_few_at_5_percent_and_six_are_not(test):
    assert test.of(np.arange(1.0, 6)).interval(0.05).because == "only 5 pairs differ, too few for a verdict"
    assert test.of(np.arange(1.0, 7)).interval(0.05).low > 0


def test_tests_keep_their_level_where_arms_differ_by_chance_only():
    rng, num_sweeps = np.random.default_rng(0), 1000
    rejected = 0
    for _ in range(num_sweeps):
        shared = rng.exponential(4, 24)
        one, other = shared + rng.normal(0, 1, 24), shared + rng.normal(0, 1, 24)
        rejected += SignedRanks.of(other - one).p_value < 0.05
    # Standard error: 0.007.
    assert rejected / num_sweeps == pytest.approx(0.05, abs=3 * 0.007)
