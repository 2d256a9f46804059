"""The smallest differences that points can detect, and the points that a difference needs.

The level is 5 %, two-sided, and the power 80 %, unless a caller gives others.

No errors are known before the sweep has run, so a population is planted. Delta is exponential in both arms,
with mean `mean_delta_pp` in the reference arm and another mean in the other arm. So the other space is more
or less forgiving, and the best is equally good. A Gaussian copula correlates the two Deltas of a point,
because both arms share lr, weight decay and seeds. The population has no divergences. In a sweep with
divergences, the mean error has a larger variance and detects less than reported here.

Each figure is computed twice. The closed form puts the shares, variances and correlation of the planted
population into a textbook formula. The simulation repeatedly draws the planned points and applies a verdict
similar to that of `analysis.contrasts`: a paired t-test, which is close to signed ranks, and enough pairs
that differ.

Once there are results, what was planted can give way to what was seen of the paired differences without their
signs (`points_for_spread`). Which arm is the better one is not used, so a number of points may follow from it
before the last test. Source: Kieser and Friede 2003, "Simple procedures for blinded sample size adjustment
that do not affect the type I error rate", Statistics in Medicine 22, 3571-3581.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from orchestrator.stats.intervals import CONFIDENCE, DIFFERS, MIN_SAMPLE
from orchestrator.stats.measures import AREA_LIMIT_PP, MEASURES, Measure, point_scores

Floats = NDArray[np.float64]

POWER = 0.8
ALPHA = 1 - CONFIDENCE

_NUM_SWEEPS = 1000
#: Limit on simulated sweeps times points, so that a plan of thousands of points is fast.
_MAX_DRAWS = 100_000
#: Numbers of points are chosen in steps of this size, or of 1/16 of the power of two below if that is more.
STEP_POINTS = 8
#: The largest number of points that is chosen.
MOST_POINTS = 4096

#: At this mean Delta, every measure takes all points of the better arm to be at the reference.
_SMALLEST_MEAN_PP = 1e-3


@dataclass(frozen=True, slots=True)
class Planted:
    """The population for which the power of a plan is computed.

    Attributes:
      mean_delta_pp: mean Delta of the reference arm. 4 pp puts 63 % of the space within 4 pp of the best, as
        in the paper's better arm under SGD.
      correlation: correlation of the two arms' normal scores at a point; 0 for unpaired arms.
    """

    mean_delta_pp: float = 4.0
    correlation: float = 0.5


def _quantile(share: float) -> float:
    return float(special.ndtri(share))


def paired_t_power(effect: float, num_points: int, alpha: float = ALPHA) -> float:
    """Returns the probability that a paired t-test detects `effect` standard deviations in its direction."""
    critical, shift = float(stats.t.ppf(1 - alpha / 2, num_points - 1)), effect * math.sqrt(num_points)
    # Avoids scipy's noncentral t, which fails this far out.
    if shift > critical + 10:
        return 1.0
    return float(stats.nct.sf(critical, num_points - 1, shift))


def power_of(
    measure: Measure, num_points: int, difference: float, mean_square: float, alpha: float = ALPHA
) -> float:
    """Returns the power of so many pairs by the textbook formula of the measure's test.

    Args:
      measure: the measure.
      num_points: number of pairs.
      difference: mean of the paired differences, at least 0.
      mean_square: mean of their squares. For a share this is the share of pairs that differ.
      alpha: level, two-sided.
    """
    variance = max(mean_square - difference**2, 0.0)
    if MEASURES[measure].within_pp is not None:
        shift = difference * math.sqrt(num_points) - _quantile(1 - alpha / 2) * math.sqrt(mean_square)
        return float(special.ndtr(shift / math.sqrt(max(variance, 1e-300))))
    if variance == 0:
        return 1.0 if difference > 0 else 0.0
    return paired_t_power(difference / math.sqrt(variance), num_points, alpha)


def smallest_difference(
    measure: Measure,
    num_points: int,
    planted: Planted | None = None,
    power: float = POWER,
    alpha: float = ALPHA,
) -> float | None:
    """Returns the smallest difference that so many paired points detect, by simulation. None if none."""
    return smallest(measure, num_points, planted or Planted(), power, alpha)[2]


@functools.lru_cache(maxsize=256)
def smallest(
    measure: Measure, num_points: int, planted: Planted, power: float = POWER, alpha: float = ALPHA
) -> tuple[float, float | None, float | None]:
    """Returns the reference arm's value, and the smallest difference by closed form and by simulation.

    A difference is None if even the largest one has less power.
    """
    measure = _planted_measure(measure)
    base_value = _value(measure, planted.mean_delta_pp)

    def found(power_at: Callable[[Measure, int, Planted, float, float], float]) -> float | None:
        def lack(log_mean: float) -> float:
            return power - power_at(measure, num_points, planted, math.exp(log_mean), alpha)

        # The bracket is valid because power grows as the other arm's mean falls.
        far, near = math.log(_SMALLEST_MEAN_PP), math.log(planted.mean_delta_pp)
        if num_points < MIN_SAMPLE or lack(far) > 0:
            return None
        mean_pp = math.exp(optimize.brentq(lack, far, near, xtol=1e-3))
        return abs(_value(measure, mean_pp) - base_value)

    return base_value, found(_closed_power), found(_simulated_power)


def largest_difference(measure: Measure, planted: Planted | None = None) -> float:
    """Returns the largest difference that an arm can have from the reference arm in the population."""
    planted, measure = planted or Planted(), _planted_measure(measure)
    return abs(_value(measure, _SMALLEST_MEAN_PP) - _value(measure, planted.mean_delta_pp))


def points_needed(
    measure: Measure,
    difference: float,
    power: float = POWER,
    level: Callable[[int], float] = lambda num_points: ALPHA,
    planted: Planted | None = None,
) -> int | None:
    """Returns the number of paired points that detect a difference with a power, by simulation.

    Args:
      measure: the measure.
      difference: in the unit of the measure, above 0 and below `largest_difference`.
      power: probability that the difference is detected.
      level: returns the level of the test of so many points.
      planted: the population.

    Returns:
      A multiple of STEP_POINTS. None if MOST_POINTS are too few.

    Raises:
      ValueError: no difference in the population is that large, or it is not above 0.
    """
    planted, measure = planted or Planted(), _planted_measure(measure)
    if not 0 < difference < largest_difference(measure, planted):
        raise ValueError(f"no difference of {difference} is planted")
    base_value = _value(measure, planted.mean_delta_pp)

    def excess(log_mean: float) -> float:
        return abs(_value(measure, math.exp(log_mean)) - base_value) - difference

    ends = math.log(_SMALLEST_MEAN_PP), math.log(planted.mean_delta_pp)
    mean_pp = math.exp(optimize.brentq(excess, *ends, xtol=1e-9))
    for count in candidate_counts():
        alpha = level(count)
        # The simulation costs more, so it begins where the closed form comes near.
        if _closed_power(measure, count, planted, mean_pp, alpha) < power - _CLOSED_MISSES:
            continue
        if _simulated_power(measure, count, planted, mean_pp, alpha) >= power:
            return count
    return None


#: The closed form is at most this much below the simulated power.
_CLOSED_MISSES = 0.1


def points_for_spread(
    measure: Measure,
    difference: float,
    mean_square: float,
    power: float = POWER,
    level: Callable[[int], float] = lambda num_points: ALPHA,
) -> int | None:
    """Returns the number of paired points that detect a difference, by the spread that was seen.

    The signs of the differences are not used. Their mean square is their variance plus the square of their
    mean, which is taken to be the difference to be detected.

    Args:
      measure: the measure.
      difference: in the unit of the measure, above 0.
      mean_square: mean square of the paired differences seen so far.
      power: probability that the difference is detected.
      level: returns the level of the test of so many points.

    Returns:
      A multiple of STEP_POINTS. None if MOST_POINTS are too few.
    """
    for count in candidate_counts():
        if power_of(measure, count, difference, mean_square, level(count)) >= power:
            return count
    return None


def candidate_counts() -> Iterator[int]:
    """Yields the numbers of points that may be chosen, in ascending order, up to MOST_POINTS."""
    count = STEP_POINTS
    while count <= MOST_POINTS:
        yield count
        count += max(STEP_POINTS, 2 ** (count.bit_length() - 1) // 16)


def _planted_measure(measure: Measure) -> Measure:
    """Returns the measure that has the same value where the best is equally good in both arms."""
    return "f4" if measure == "within_common_bar" else measure


def _value(measure: Measure, mean_pp: float) -> float:
    """Returns the expected value of a measure for exponential Delta.

    The mean error is relative to the reference.
    """
    if (within := MEASURES[measure].within_pp) is not None:
        return -math.expm1(-within / mean_pp)
    if measure == "error":
        return mean_pp
    return 1 + mean_pp * math.expm1(-AREA_LIMIT_PP / mean_pp) / AREA_LIMIT_PP


def _exponential(normal: Floats) -> Floats:
    """Returns normal scores transformed to an exponential distribution of mean 1."""
    return np.asarray(-special.log_ndtr(-normal))


def _closed_power(
    measure: Measure, num_points: int, planted: Planted, mean_pp: float, alpha: float = ALPHA
) -> float:
    means = (planted.mean_delta_pp, mean_pp)
    if MEASURES[measure].within_pp is not None:
        base, other = (_value(measure, mean) for mean in means)
        both = _both(base, other, planted.correlation)
        only_base, only_other = base - both, other - both
        return power_of(measure, num_points, abs(only_other - only_base), only_base + only_other, alpha)
    mean, variance = _moments(measure, means, planted.correlation)
    return power_of(measure, num_points, abs(mean), variance + mean**2, alpha)


def _moments(measure: Measure, means_pp: tuple[float, float], correlation: float) -> tuple[float, float]:
    """Returns mean and variance of the score difference at a point, by quadrature over both normal scores."""
    base_Q1, other_QR, weights_R = _grid(correlation)
    difference_QR = point_scores(measure, means_pp[1] * other_QR, 0.0) - point_scores(
        measure, means_pp[0] * base_Q1, 0.0
    )
    mean, square = (float((difference_QR**power @ weights_R).mean()) for power in (1, 2))
    return mean, square - mean**2


@functools.lru_cache(maxsize=8)
def _grid(correlation: float) -> tuple[Floats, Floats, Floats]:
    normal_Q1 = special.ndtri((np.arange(400) + 0.5) / 400)[:, None]
    nodes_R, weights_R = np.polynomial.hermite_e.hermegauss(60)
    partner_QR = correlation * normal_Q1 + math.sqrt(1 - correlation**2) * nodes_R
    return _exponential(normal_Q1), _exponential(partner_QR), weights_R / weights_R.sum()


def _both(base: float, other: float, correlation: float) -> float:
    """Returns the probability that two correlated normal scores are below their quantiles at these shares."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    below = special.ndtri(base * (nodes + 1) / 2)
    rest = math.sqrt(1 - correlation**2)
    inside = special.ndtr((special.ndtri(min(other, 1 - 1e-16)) - correlation * below) / rest)
    return float(base / 2 * (weights @ inside))


@functools.lru_cache(maxsize=8)
def _draws(num_points: int, correlation: float) -> tuple[Floats, Floats]:
    """Returns Deltas of mean 1 for both arms (sweeps, points), shared by all measures and differences."""
    num_sweeps = max(200, min(_NUM_SWEEPS, _MAX_DRAWS // num_points))
    rng = np.random.default_rng(0)
    base, own = rng.standard_normal((2, num_sweeps, num_points))
    return _exponential(base), _exponential(correlation * base + math.sqrt(1 - correlation**2) * own)


def _simulated_power(
    measure: Measure, num_points: int, planted: Planted, mean_pp: float, alpha: float = ALPHA
) -> float:
    base, other = _draws(num_points, planted.correlation)
    differences = point_scores(measure, mean_pp * other, 0.0) - point_scores(
        measure, planted.mean_delta_pp * base, 0.0
    )
    if not MEASURES[measure].higher_is_better:
        differences = -differences
    half = (
        stats.t.ppf(1 - alpha / 2, num_points - 1) * differences.std(axis=1, ddof=1) / math.sqrt(num_points)
    )
    enough = np.count_nonzero(np.abs(differences) > DIFFERS, axis=1) >= MIN_SAMPLE
    return float(np.mean(enough & (differences.mean(axis=1) > half)))
