"""Confirmed bests: errors of an arm's best settings after runs with fresh seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from orchestrator.stats.intervals import CONFIDENCE, Estimate, Scores
from trainables.base import WORST_PCT


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The best of an arm's chosen points, measured with fresh seeds.

    The lowest of several means is optimistic, because it was selected for being low. So each seed's error is
    taken from the point that ranks first over the other seeds, a choice that does not depend on this seed.
    If all seeds choose `point`, the value is its plain mean and the interval is Student's t. Otherwise the
    difference between the value and the plain mean is added to the standard error in quadrature. For three
    equal points with five seeds each, the plain mean is 0.38 sd too low and the value 0.00 sd; the interval
    covers 95 %.

    Attributes:
      point: the point of lowest mean error on the selection split over all fresh seeds.
      mean_val_error_pct: that mean, selected for being low.
      means_pct: the mean of every chosen point.
      num_seeds: fresh runs of `point` that count.
      num_diverged: runs among them that diverged, each counted as 100.
      val: error on the selection split, with its interval.
      val_standard_error_pct: standard error of `val`.
      test, test_standard_error_pct: the same on the final split. None unless every run measured it.
    """

    point: int
    mean_val_error_pct: float
    means_pct: dict[int, float]
    num_seeds: int
    num_diverged: int
    val: Estimate
    val_standard_error_pct: float
    test: Estimate | None
    test_standard_error_pct: float | None


def confirmed_of(points: Sequence[int], val_PS: Scores, test_PS: Scores | None) -> Confirmed | None:
    """Returns the confirmed best from the errors of fresh runs (points, seeds).

    Args:
      points: the point number of each row.
      val_PS: errors on the selection split: nan if a run has no result, 100 if it diverged. Each point needs
        at least two results.
      test_PS: errors on the final split, if measured.

    Returns:
      None if no seed has a result at the point that the other seeds choose.
    """
    rows, columns = chosen_by_the_others(val_PS)
    if not rows.size:
        return None
    means = np.nanmean(val_PS, axis=1)
    best = int(np.argmin(means))
    val, val_error = _held_out(val_PS[best], val_PS[rows, columns])
    test, test_error = None, None
    if test_PS is not None and not np.isnan(test_PS[~np.isnan(val_PS)]).any():
        test, test_error = _held_out(test_PS[best], test_PS[rows, columns])
    return Confirmed(
        point=points[best],
        mean_val_error_pct=float(means[best]),
        means_pct={point: float(mean) for point, mean in zip(points, means, strict=True)},
        num_seeds=int(np.count_nonzero(~np.isnan(val_PS[best]))),
        num_diverged=int(np.count_nonzero(val_PS[best] >= WORST_PCT)),
        val=val,
        val_standard_error_pct=val_error,
        test=test,
        test_standard_error_pct=test_error,
    )


def _held_out(best_S: NDArray[np.float64], held_out_S: NDArray[np.float64]) -> tuple[Estimate, float]:
    """Returns the mean of the held-out errors with its interval, and its standard error."""
    best, value = best_S[~np.isnan(best_S)], float(held_out_S.mean())
    error = math.hypot(float(best.std(ddof=1)) / math.sqrt(best.size), value - float(best.mean()))
    if error == 0:
        return Estimate(value), 0.0
    half = float(special.stdtrit(best.size - 1, (1 + CONFIDENCE) / 2)) * error
    return Estimate(value, value - half, value + half), error


def chosen_by_the_others(errors_PS: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Returns, for each seed, the point of lowest mean error over all other seeds.

    Args:
      errors_PS: points by seeds, nan if a run has no error. Each point needs at least two errors.

    Returns:
      Rows and columns of the held-out errors. A seed is left out if its chosen point has no error with it.
    """
    known = ~np.isnan(errors_PS)
    filled = np.where(known, errors_PS, 0.0)
    others = filled.sum(axis=1, keepdims=True) - filled
    rows = np.argmin(others / (known.sum(axis=1, keepdims=True) - known), axis=0)
    columns = np.arange(errors_PS.shape[1])
    kept = known[rows, columns]
    return rows[kept], columns[kept]


def welch(
    base: Confirmed, other: Confirmed, split: Literal["val", "test"]
) -> tuple[Estimate, float | None] | None:
    """Returns the difference of two confirmed errors with Welch's interval, and the p-value.

    None if one of the errors was not measured. The p-value is None if the variance is 0.
    """
    means, variances = [], []
    for confirmed in (base, other):
        estimate = confirmed.val if split == "val" else confirmed.test
        error = confirmed.val_standard_error_pct if split == "val" else confirmed.test_standard_error_pct
        if estimate is None or error is None:
            return None
        means.append(estimate.value)
        variances.append(error**2)
    difference, variance = means[1] - means[0], sum(variances)
    if variance == 0:
        return Estimate(difference), None
    freedom = variance**2 / sum(
        v**2 / (c.num_seeds - 1) for v, c in zip(variances, (base, other), strict=True)
    )
    half = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    p_value = 2 * float(stats.t.sf(abs(difference) / math.sqrt(variance), freedom))
    return Estimate(difference, difference - half, difference + half), p_value
