"""Looks at a growing sample: published constants, an independent integral, and simulated samples."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.special import ndtri

from orchestrator.stats.looks import Looks, crossing_probability
from orchestrator.stats.paired import SignedRanks


@pytest.mark.parametrize(
    ("num_looks", "bound"), [(2, 2.178), (3, 2.289), (4, 2.361), (5, 2.413), (10, 2.555)]
)
def test_equal_levels_are_those_of_pocock(num_looks, bound):
    """Pocock 1977, table 1: five percent, two-sided, looks at equal distances."""
    looks = Looks(tuple(range(1, num_looks + 1)), (1.0,) * num_looks)
    assert [-ndtri(level / 2) for level in looks.levels(0.05)] == pytest.approx([bound] * num_looks, abs=6e-4)


@pytest.mark.parametrize("looks", [Looks.of(16), Looks.of(16, 64), Looks.of(8, 64), Looks.of(12, 40)])
@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.01])
def test_levels_add_up_to_alpha_by_the_integral_of_scipy(looks, alpha):
    bounds = -ndtri(np.array(looks.levels(alpha)) / 2)
    n = np.array(looks.points)
    cov = np.sqrt(np.minimum.outer(n, n) / np.maximum.outer(n, n))
    inside = scipy_stats.multivariate_normal.cdf(bounds, cov=cov, lower_limit=-bounds, abseps=1e-6, rng=0)
    assert 1 - inside == pytest.approx(alpha, abs=1e-5)


def test_looks_are_the_doublings_up_to_the_largest_number():
    assert Looks.of(16, 64).points == (16, 32, 64)
    assert Looks.of(12, 40).points == (12, 24, 40)
    assert Looks.of(16).points == (16, 32, 64)
    assert Looks.of(16, 16).points == (16,)
    assert Looks.of(16, 64).reached(33) == (16, 32)
    assert [Looks.of(16, 64).following(n) for n in (0, 16, 63, 64)] == [16, 32, 64, None]
    for points, most in ((0, None), (16, 15)):
        with pytest.raises(ValueError, match="1 <= points <= max_points"):
            Looks.of(points, most)


def test_one_look_has_the_whole_level_and_a_first_look_of_several_loses_little():
    assert Looks.once(16).levels(0.05) == (0.05,)
    assert Looks.once(16).adjusted([0.03]) == 0.03
    first, *later = Looks.of(16).levels(0.05)
    assert first == pytest.approx(0.039, abs=5e-4)
    assert later == pytest.approx([first / 4] * 2)


@pytest.mark.parametrize("looks", [Looks.of(16), Looks.of(8, 64)])
def test_a_p_value_over_looks_is_the_level_at_which_one_of_them_rejects(looks):
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values = rng.uniform(0, 0.2, rng.integers(1, len(looks.points) + 1)).tolist()
        alpha = looks.adjusted(p_values)
        if alpha > 0.5:
            continue
        for at, rejects in ((alpha * 1.001, True), (alpha * 0.999, False)):
            pairs = zip(p_values, looks.levels(at), strict=False)
            assert any(p <= level for p, level in pairs) == rejects


def test_a_later_look_never_takes_a_verdict_back():
    looks = Looks.of(8, 64)
    p_values = [0.3, 0.001, 0.9, 0.5]
    told = [looks.adjusted(p_values[: count + 1]) for count in range(4)]
    assert told == sorted(told, reverse=True)
    assert told[1] == told[3]


def test_more_p_values_than_looks_are_refused():
    for p_values in ([], [0.1] * 4):
        with pytest.raises(ValueError, match="need 1 to 3 p-values"):
            Looks.of(16).adjusted(p_values)


def test_signed_ranks_at_four_looks_keep_five_percent_and_repeated_tests_do_not():
    rng, looks, num_samples = np.random.default_rng(0), Looks.of(8, 64), 1500
    kept = naive = 0
    for sample in rng.standard_t(3, (num_samples, 64)):
        p_values = [SignedRanks.of(sample[:n]).p_value for n in looks.points]
        kept += looks.adjusted(p_values) <= 0.05
        naive += min(p_values) <= 0.05
    # Standard error at 5 %: 0.0056.
    assert kept / num_samples <= 0.05 + 3 * 0.0056
    assert naive / num_samples > 0.05 + 6 * 0.0056


def test_a_level_of_one_rejects_everything():
    assert crossing_probability([1.0, 0.01], [1, 2]) == 1
