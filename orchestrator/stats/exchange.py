"""The exchange rate of tuning effort: how many trials of one arm a trial of another arm is worth.

Errors are in percent, lower is better; a diverged trial is 100. `F` is the distribution function of an arm's
error over the space.

The best of k trials is at or below y with probability 1 - (1 - F(y))^k. So the numbers of trials with which
two arms reach y with equal probability have the ratio log(1 - F(y)) / log(1 - F_base(y)), whatever that
probability. This ratio of cumulative hazards is the horizontal distance of the two tuning curves. It may
differ from level to level. It is stated at the levels y_k that the best of k trials of the arm reaches in
half of all sweeps, F(y_k) = 1 - 0.5^(1/k):

    r(k) = log(0.5) / (k log(1 - F_base(y_k))).

k trials of the arm are worth r(k) k trials of the base. Equal errors (ties, diverged trials) are taken in
random order, which gives equal arms r(k) = 1.

All bounds depend on the order of the errors alone. They need no assumption about F, nor about how the two
arms depend on each other, so shared points are allowed. They assume that an arm's own trials are independent.
With points of a scrambled Sobol sequence they cover more often (`python -m benchmarks.coverage_exchange`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from orchestrator.stats.best_of import (
    CONFIDENCE,
    best_of_weights,
    checked_errors,
    largest_budget,
    median_level,
    order_statistic_band,
)
from orchestrator.stats.intervals import MIN_SAMPLE, Estimate

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rate:
    """The value of the best of `budget` trials of an arm, in trials of the base per trial.

    Attributes:
      budget: k.
      value: the estimate of r(k). Infinite if no trial of the base reached the level, 0 if all did.
      low, high: the band, simultaneous over all budgets. `high` is infinite where the base may never reach
        the level.
    """

    budget: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ExchangeRate:
    """The value of an arm's trials in trials of the base.

    Attributes:
      num_trials, num_base_trials: trials of the arm and of the base.
      largest_budget: the largest k with a rate; 0 if there are too few trials for any.
      rates: r(k) for k = 1..largest_budget.
      at_least: lower bound of r(1), at 97.5 %: one trial of the arm is worth at least so many of the base.
        None with too few trials. The bounds of an arm against the base and of the base against the arm hold
        together with 95 %, so the better arm may be chosen by the data.
      at_least_throughout: the same for the least of r(1), ..., r(largest_budget).
    """

    num_trials: int
    num_base_trials: int
    largest_budget: int
    rates: tuple[Rate, ...]
    at_least: float | None
    at_least_throughout: float | None


def exchange_rate(
    errors_pct: Sequence[float] | Floats,
    base_errors_pct: Sequence[float] | Floats,
    confidence: float = CONFIDENCE,
) -> ExchangeRate:
    """Returns what trials of an arm are worth in trials of a base, with a simultaneous band.

    Rates are refused beyond `largest_budget`, the smaller of the two arms' at the confidence of the band. At
    larger k no band of two samples of this size could be above 1.

    Args:
      errors_pct, base_errors_pct: one per trial, in any order; the numbers may differ.
      confidence: of the band, and of the two bounds `at_least` of either direction together.

    Raises:
      ValueError: an arm has no errors, or an error is outside 0..100.
    """
    own, base = checked_errors(errors_pct), checked_errors(base_errors_pct)
    half = 1 - (1 - confidence) / 2
    most = min(largest_budget(own.size, half), largest_budget(base.size, half))
    budgets = np.arange(1, most + 1)
    values, (low, high) = _estimates(own, base, budgets), rate_band(own, base, budgets, confidence)
    return ExchangeRate(
        num_trials=own.size,
        num_base_trials=base.size,
        largest_budget=most,
        rates=tuple(
            Rate(k, *ends)
            for k, *ends in zip(budgets.tolist(), values.tolist(), low.tolist(), high.tolist(), strict=True)
        ),
        at_least=rate_at_least(own, base, 1, confidence),
        at_least_throughout=rate_at_least(own, base, most, confidence) if most else None,
    )


def _rate(budgets: NDArray[np.int64], base_shares: Floats) -> Floats:
    """Returns r(k) if these shares of the base's trials are at or below y_k."""
    with np.errstate(divide="ignore"):
        return np.asarray(math.log(0.5) / (budgets * np.log1p(-base_shares)))


def _estimates(own: Floats, base: Floats, budgets: NDArray[np.int64]) -> Floats:
    """Returns r(k) of the sample distributions, which depends on the order of the errors alone.

    y_k is the sample quantile that is median-unbiased for every F, and F_base the inverse of such quantiles
    (Hyndman and Fan 1996, type 8), both between the ranks of the pooled sample. Equal errors of an arm are
    spread evenly over their place.
    """
    # Complex numbers are ordered by their first part, then by their second.
    pooled = np.concatenate([_spread(own), _spread(base)])
    ranks = np.unique(pooled, return_inverse=True)[1].astype(np.float64)
    at = np.quantile(ranks[: own.size], median_level(budgets), method="median_unbiased")
    shares = (np.arange(1, base.size + 1) - 1 / 3) / (base.size + 1 / 3)
    return _rate(budgets, np.interp(at, ranks[own.size :], shares, left=0.0, right=1.0))


def _spread(ordered: Floats) -> NDArray[np.complex128]:
    """Returns errors with their place among equal ones, within 0..1, as the imaginary part."""
    first, after = (np.searchsorted(ordered, ordered, side) for side in ("left", "right"))
    return ordered + 1j * (np.arange(ordered.size) - first + 0.5) / (after - first)


def rate_band(
    errors_pct: Sequence[float] | Floats,
    base_errors_pct: Sequence[float] | Floats,
    budgets: Sequence[int] | NDArray[np.int64],
    confidence: float = CONFIDENCE,
) -> tuple[Floats, Floats]:
    """Returns bounds on r(k) that hold for all k at once, from simultaneous bands of both arms.

    Each arm's band (`order_statistic_band`) may miss with half of 1 - confidence, so both hold together
    with this confidence even if the arms depend on each other. The arm's band puts y_k between two of its
    errors, and the base's band bounds F_base at these.

    Returns:
      Low and high, one per budget: 0 and infinite where the trials give no bound.

    Raises:
      ValueError: as `exchange_rate`.
    """
    own, base = checked_errors(errors_pct), checked_errors(base_errors_pct)
    ks = np.asarray(budgets, dtype=np.int64)
    half, levels = 1 - (1 - confidence) / 2, median_level(ks)
    own_low, own_high = order_statistic_band(own.size, half)
    base_low, base_high = order_statistic_band(base.size, half)
    # y_k is at most the first error whose F is surely at its level, and above the last one surely below.
    at_most = np.append(own, np.inf)[np.searchsorted(own_low, levels)]
    above = np.concatenate([[-np.inf], own])[np.searchsorted(own_high, levels)]
    # Equal errors of the base count against either bound, because their order is unknown.
    most = np.append(base_high, 1.0)[np.searchsorted(base, at_most, side="right")]
    least = np.concatenate([[0.0], base_low])[np.searchsorted(base, above, side="left")]
    return _rate(ks, most), _rate(ks, least)


def rate_at_least(
    errors_pct: Sequence[float] | Floats,
    base_errors_pct: Sequence[float] | Floats,
    upto: int = 1,
    confidence: float = CONFIDENCE,
) -> float | None:
    """Returns a lower bound on the least of r(1), ..., r(upto), at one half of 1 - confidence.

    It is the least of the bounds of each r(k). That needs no allowance for their number: the bound at the k
    of the least r(k), which is not a matter of chance, is right with its own confidence, and the least of
    all bounds is no higher.

    The bound of one r(k) allows half of its error probability to an upper bound of y_k, an error of the arm
    by the binomial distribution, and the rest to the exact upper bound of F_base there (Clopper and Pearson).

    Returns:
      The bound, 0 if any rate is possible. None if the arm has too few trials to bound a y_k, or there are
      fewer than MIN_SAMPLE of the base.

    Raises:
      ValueError: as `exchange_rate`, or `upto` is below 1.
    """
    own, base = checked_errors(errors_pct), checked_errors(base_errors_pct)
    if upto < 1:
        raise ValueError(f"a budget is 1 or more, got {upto}")
    if base.size < MIN_SAMPLE:
        return None
    ks, miss = np.arange(1, upto + 1), (1 - confidence) / 2
    ranks = np.arange(1, own.size + 1)
    found = []
    for k, level in zip(ks.tolist(), median_level(ks).tolist(), strict=True):
        # P(at least `rank` errors are below y_k): the chance that the error of this rank is below it.
        chances = special.betainc(ranks, own.size - ranks + 1, level)
        rank = min(int(np.count_nonzero(chances > miss / 2)), own.size - 1)
        rest = miss - float(chances[rank])
        if rest <= 0:
            return None
        count = int(np.searchsorted(base, own[rank], side="right"))
        most = special.betaincinv(count + 1, base.size - count, 1 - rest) if count < base.size else 1.0
        found.append(float(_rate(np.array([k]), np.array([most]))[0]))
    return min(found)


def largest_chance_budget(num_points: int) -> int:
    """Returns the last k with a chance: n / 8, as beyond it the interval says little. 0 below MIN_SAMPLE."""
    return 0 if num_points < MIN_SAMPLE else max(1, num_points // 8)


def _above(own: Floats, base: Floats, budget: int) -> tuple[Floats, Floats]:
    """Returns the chance that k trials of the base are above each error of the arm, ties as half.

    The errors of the arm are in ascending order.

    Returns:
      For all points (n,), and with every point of the base left out in turn (n, n), in its order.
    """

    def share(counts: NDArray[np.int64], total: int) -> Floats:
        found = np.ones(counts.shape)
        for step in range(budget):
            found *= np.maximum(counts - step, 0) / (total - step)
        return found

    everywhere, without = np.zeros(own.size), np.zeros((base.size, own.size))
    for above in (base[:, None] > own, base[:, None] >= own):
        count = above.sum(axis=0)
        everywhere += share(count, base.size) / 2
        without += share(count - above, base.size - 1) / 2
    return everywhere, without


def _chances(own: Floats, base: Floats, budget: int) -> tuple[float, Floats]:
    """Returns the U-statistic of `chance_of_best`, and (n,) its values with each point left out."""
    order = np.argsort(own, kind="stable")
    own, base, count = own[order], base[order], own.size
    everywhere, without = _above(own, base, budget)
    ks, ranks = np.array([budget]), np.arange(count)
    fewer = np.append(best_of_weights(count - 1, ks)[0], 0.0)
    # Errors above the one that is left out move down by a rank.
    weights = np.where(ranks == ranks[:, None], 0.0, fewer[ranks - (ranks > ranks[:, None])])
    return float(best_of_weights(count, ks)[0] @ everywhere), (weights * without).sum(axis=1)


def chance_of_best(
    errors_pct: Sequence[float] | Floats, base_errors_pct: Sequence[float] | Floats, budget: int
) -> Estimate | None:
    """Returns the chance that the best of k trials of an arm is below the best of k of the base.

    Ties count half. The estimate is the U-statistic: the share over all pairs of subsets of k trials. Its
    95 % interval is the jackknife's over points, with Student's t with 2 n / k degrees of freedom as in
    `analysis.gaps`, after two added points: one at which the arm wins against all, and one at which the base
    does. Without these, arms that never changed places would have an interval of width 0. Bounds from the
    bands of both distributions would hold for every F, but are far wider.

    Args:
      errors_pct, base_errors_pct: one per point, for the same points in the same order.
      budget: k.

    Returns:
      The estimate with an interval within 0..1. None if k is above `largest_chance_budget`.

    Raises:
      ValueError: as `exchange_rate`, the numbers differ, or the budget is below 1.

    Source: Hoeffding 1948, Ann. Math. Stat. 19, for U-statistics; Efron and Stein 1981, Ann. Stat. 9, for
      the jackknife; Agresti and Min 2005, Stat. Med. 24, for added pairs.
    """
    checked_errors(errors_pct), checked_errors(base_errors_pct)
    own, base = np.asarray(errors_pct, dtype=np.float64), np.asarray(base_errors_pct, dtype=np.float64)
    if own.size != base.size or budget < 1:
        raise ValueError(f"need pairs and a budget of 1 or more, got {own.size}, {base.size}, {budget}")
    if budget > largest_chance_budget(own.size):
        return None
    more_own, more_base = np.append(own, [-1.0, 101.0]), np.append(base, [101.0, -1.0])
    count, (centre, without) = more_own.size, _chances(more_own, more_base, budget)
    error = math.sqrt((count - 1) / count * float(np.sum((without - without.mean()) ** 2)))
    half = float(special.stdtrit(min(count - 1, 2 * own.size / budget), 1 - (1 - CONFIDENCE) / 2)) * error
    value = _chances(own, base, budget)[0]
    # The added points pull the centre of the interval towards a half, the estimate stays where it is.
    return Estimate(value, max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value)))
