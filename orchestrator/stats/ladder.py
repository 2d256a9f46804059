"""A difference between two arms along a ladder of sizes, and what to expect of it at the next one."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from orchestrator.stats.intervals import CONFIDENCE

Array = NDArray[Any]

#: Fewest sizes from which a next one is predicted. With three, one degree of freedom says nothing.
MIN_SIZES = 4


@dataclass(frozen=True, slots=True)
class Ladder:
    """A line through differences, over the logarithm of the size.

    Attributes:
      per_doubling, per_doubling_half: its slope, and half of the slope's 95 % interval.
      next_size: the size one mean step beyond the largest.
      expected, low, high: the difference to expect there, with a 95 % prediction interval for a difference
        measured as the others were.
    """

    per_doubling: float
    per_doubling_half: float
    next_size: float
    expected: float
    low: float
    high: float


def ladder(sizes: Array, differences: Array) -> Ladder | None:
    """Returns the line through differences at sizes. None with fewer than `MIN_SIZES` sizes.

    The interval is that of ordinary least squares for a new observation (Draper and Smith, Applied Regression
    Analysis, section 3.1). It holds if the difference changes by a constant per doubling, up to noise.

    Args:
      sizes: (N,), above 0 and all different, as multiply-adds.
      differences: (N,), of one arm minus another.
    """
    count = len(sizes)
    if count < MIN_SIZES:
        return None
    x = np.log2(sizes)
    order = np.argsort(x)
    x, y = x[order], np.asarray(differences, dtype=float)[order]
    spread = float(np.sum((x - x.mean()) ** 2))
    slope = float(np.sum((x - x.mean()) * (y - y.mean())) / spread)
    residuals = y - y.mean() - slope * (x - x.mean())
    sd = math.sqrt(float(np.sum(residuals**2)) / (count - 2))
    quantile = float(special.stdtrit(count - 2, (1 + CONFIDENCE) / 2))
    following = float(x[-1] + (x[-1] - x[0]) / (count - 1))
    expected = float(y.mean() + slope * (following - x.mean()))
    half = quantile * sd * math.sqrt(1 + 1 / count + (following - x.mean()) ** 2 / spread)
    return Ladder(
        slope, quantile * sd / math.sqrt(spread), 2.0**following, expected, expected - half, expected + half
    )
