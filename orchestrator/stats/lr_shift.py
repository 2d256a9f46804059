"""The shift of the best learning rate with the size of a network, from errors at several rates and sizes.

In octaves, log2 error is taken as a parabola of log2 lr whose lowest point moves by a constant per doubling
of the size; each size has a level of its own, all have one curvature:

    log2 error = level(size) + b y + k y^2,    y = log2 lr - shift * log2(size / smallest size)

For a given shift this is a linear fit. So the best shift and its profile interval come from a search over one
number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[Any]

#: Errors further above the lowest of their size, as a factor, are not of its valley and are left out.
MOST_ABOVE = 3.0

#: Fewest sizes, and fewest errors of a size, that give a shift.
MIN_SIZES, MIN_ERRORS = 3, 4

#: Largest shift that is looked for, in octaves per doubling, and the step of the search.
_FARTHEST, _STEP = 4.0, 0.01

#: A shift is told if its interval is at most so wide, in octaves per doubling.
MOST_WIDE = 1.0


@dataclass(frozen=True, slots=True)
class Shift:
    """The shift of the best learning rate, in octaves per doubling of the size.

    Attributes:
      value: the best fit.
      low, high: its 95 % interval; None where no value up to 4 octaves is refuted.
      errors: number of errors in the fit.
    """

    value: float
    low: float | None
    high: float | None
    errors: int

    @property
    def is_told(self) -> bool:
        """Returns whether the interval is at most `MOST_WIDE`."""
        return self.low is not None and self.high is not None and self.high - self.low <= MOST_WIDE


def shift_of(sizes: Array, rates: Array, errors: Array) -> Shift | str:
    """Returns the shift over runs given by size, learning rate and error, or the reason why there is none.

    Args:
      sizes, rates, errors: (N,), all above 0.
    """
    kept = np.zeros(len(errors), dtype=bool)
    for size in np.unique(sizes):
        own = sizes == size
        near = own & (errors <= MOST_ABOVE * errors[own].min())
        if near.sum() >= MIN_ERRORS:
            kept |= near
    sizes, rates, errors = sizes[kept], rates[kept], errors[kept]
    if (count := len(np.unique(sizes))) < MIN_SIZES:
        return (
            f"{MIN_SIZES} sizes with {MIN_ERRORS} errors within a factor of {MOST_ABOVE:g} of their lowest "
            f"are needed; there are {count}"
        )
    free = len(errors) - (count + 3)
    if free < 1:
        return f"{len(errors)} errors are too few for {count + 3} parameters"
    doublings, heights = np.log2(sizes / sizes.min()), np.log2(errors)
    levels = (sizes[:, None] == np.unique(sizes)).astype(float)
    shifts = np.arange(-_FARTHEST, _FARTHEST + _STEP / 2, _STEP)
    costs, curvatures = np.empty(len(shifts)), np.empty(len(shifts))
    for place, shift in enumerate(shifts):
        y = np.log2(rates) - shift * doublings
        y = y - y.mean()
        columns = np.column_stack([levels, y, y**2])
        solution = np.linalg.lstsq(columns, heights, rcond=None)[0]
        costs[place] = np.sum((columns @ solution - heights) ** 2)
        curvatures[place] = solution[-1]
    best = int(costs.argmin())
    if curvatures[best] <= 0 or best in (0, len(shifts) - 1):
        return "no lr between the others is the best one: the window is too narrow, or the noise too large"
    bound = costs[best] * (1 + float(stats.f.ppf(0.95, 1, free)) / free)
    # The interval around the best shift, not further valleys.
    outside = np.flatnonzero(costs > bound)
    low, high = outside[outside < best], outside[outside > best]
    return Shift(
        float(shifts[best]),
        float(shifts[low[-1]]) if len(low) else None,
        float(shifts[high[0]]) if len(high) else None,
        len(errors),
    )
