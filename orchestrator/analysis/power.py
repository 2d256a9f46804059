"""The smallest differences a planned sweep can detect: 80 % power at alpha = 5 %, two-sided.

No errors are known before the sweep has run, so a population is planted. Delta is exponential in both arms,
with mean `mean_delta_pp` in the reference arm and another mean in the other arm. So the other space is more
or less forgiving, and the best is equally good. A Gaussian copula correlates the two Deltas of a point,
because both arms share lr, weight decay and seeds. The population has no divergences. In a sweep with
divergences, the mean error has a larger variance and detects less than reported here.

Each figure is computed twice. The closed form puts the shares, variances and correlation of the planted
population into a textbook formula. The simulation repeatedly draws the planned points and applies a verdict
similar to that of `analysis.contrasts`: a paired t-test, which is close to signed ranks, and enough pairs
that differ.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from orchestrator.stats.intervals import CONFIDENCE, DIFFERS, MIN_SAMPLE
from orchestrator.stats.measures import AREA_LIMIT_PP, MEASURES, Measure, point_scores
from orchestrator.trials.trial import Plan

Floats = NDArray[np.float64]

POWER = 0.8
ALPHA = 1 - CONFIDENCE

_NUM_SWEEPS = 1000
#: Limit on simulated sweeps times points, so that a plan of thousands of points is fast.
_MAX_DRAWS = 100_000
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


@dataclass(frozen=True, slots=True)
class Detectable:
    """The smallest difference that one contrast can detect.

    Attributes:
      cell, base_arm, arm, measure: names of the contrast.
      num_points: points planned in both arms.
      base_value: the measure in the reference arm, as planted.
      closed_form, simulated: absolute value of the smallest difference in favour of `arm` with 80 % power, in
        the unit of the measure. None if even the largest possible difference has less power.
    """

    cell: str
    base_arm: str
    arm: str
    measure: Measure
    num_points: int
    base_value: float
    closed_form: float | None
    simulated: float | None


def _quantile(share: float) -> float:
    return float(special.ndtri(share))


def paired_t_power(effect: float, num_points: int) -> float:
    """Returns the probability that a paired t-test detects `effect` standard deviations in its direction."""
    critical, shift = float(stats.t.ppf(1 - ALPHA / 2, num_points - 1)), effect * math.sqrt(num_points)
    # Avoids scipy's noncentral t, which fails this far out.
    if shift > critical + 10:
        return 1.0
    return float(stats.nct.sf(critical, num_points - 1, shift))


def detectable(plan: Plan, planted: Planted | None = None) -> list[Detectable]:
    """Returns the detectable difference of every contrast of a plan, in the order of `contrasts`."""
    planted = planted or Planted()

    def smallest(measure: Measure, num_points: int) -> tuple[float, float | None, float | None]:
        # The planted best is equally good in both arms, so the common bar equals each arm's own.
        return _smallest("f4" if measure == "within_common_bar" else measure, num_points, planted)

    found = []
    points: dict[str, dict[str, set[int]]] = {}
    for trial in plan.trials:
        if trial.role == "sweep":
            points.setdefault(trial.cell_name, {}).setdefault(trial.arm, set()).add(trial.point)
    for cell, arms in points.items():
        base, *others = arms
        for arm in others:
            count = len(arms[base] & arms[arm])
            found += [
                Detectable(cell, base, arm, measure, count, *smallest(measure, count)) for measure in MEASURES
            ]
    return found


def smallest_difference(measure: Measure, num_points: int, planted: Planted | None = None) -> float | None:
    """Returns the smallest difference that so many paired points detect, by simulation. None if none."""
    return _smallest(measure, num_points, planted or Planted())[2]


@functools.lru_cache(maxsize=256)
def _smallest(
    measure: Measure, num_points: int, planted: Planted
) -> tuple[float, float | None, float | None]:
    """Returns the reference arm's value, and the smallest difference by closed form and by simulation."""
    base_value = _value(measure, planted.mean_delta_pp)

    def smallest(power: Callable[[Measure, int, Planted, float], float]) -> float | None:
        def lack(log_mean: float) -> float:
            return POWER - power(measure, num_points, planted, math.exp(log_mean))

        # The bracket is valid because power grows as the other arm's mean falls.
        far, near = math.log(_SMALLEST_MEAN_PP), math.log(planted.mean_delta_pp)
        if num_points < MIN_SAMPLE or lack(far) > 0:
            return None
        mean_pp = math.exp(optimize.brentq(lack, far, near, xtol=1e-3))
        return abs(_value(measure, mean_pp) - base_value)

    return base_value, smallest(_closed_power), smallest(_simulated_power)


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


def _closed_power(measure: Measure, num_points: int, planted: Planted, mean_pp: float) -> float:
    means = (planted.mean_delta_pp, mean_pp)
    if MEASURES[measure].within_pp is not None:
        base, other = (_value(measure, mean) for mean in means)
        both = _both(base, other, planted.correlation)
        only_base, only_other = base - both, other - both
        differing, difference = only_base + only_other, only_other - only_base
        rest = math.sqrt(max(differing - difference**2, 1e-300))
        shift = difference * math.sqrt(num_points) - _quantile(1 - ALPHA / 2) * math.sqrt(differing)
        return float(special.ndtr(shift / rest))
    mean, variance = _moments(measure, means, planted.correlation)
    return paired_t_power(abs(mean) / math.sqrt(variance), num_points) if variance > 0 else 0.0


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


def _simulated_power(measure: Measure, num_points: int, planted: Planted, mean_pp: float) -> float:
    base, other = _draws(num_points, planted.correlation)
    differences = point_scores(measure, mean_pp * other, 0.0) - point_scores(
        measure, planted.mean_delta_pp * base, 0.0
    )
    if not MEASURES[measure].higher_is_better:
        differences = -differences
    half = (
        stats.t.ppf(1 - ALPHA / 2, num_points - 1) * differences.std(axis=1, ddof=1) / math.sqrt(num_points)
    )
    enough = np.count_nonzero(np.abs(differences) > DIFFERS, axis=1) >= MIN_SAMPLE
    return float(np.mean(enough & (differences.mean(axis=1) > half)))
