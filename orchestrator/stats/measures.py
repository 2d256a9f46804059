"""Measures of one arm over its points: areas, shares, mean error."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.stats.intervals import DIFFERS, Estimate, bounded_mean, share_interval
from trainables.base import WORST_PCT

Measure = Literal["area_common", "within_common_bar", "error", "area_under_delta_edf", "f1", "f2", "f4"]


@dataclass(frozen=True, slots=True)
class MeasureInfo:
    """The name and the properties of a measure.

    Attributes:
      symbol: short name for table heads.
      means: definition for the report.
      higher_is_better: False if lower is better.
      within_pp: the t of an F(t), None for other measures.
      margin: arms whose difference is smaller count as alike, unless the sweep file declares another margin.
        None for a measure that decides nothing.
      common: measured from the lowest reference of all arms in the cell, instead of the arm's own.
    """

    symbol: str
    means: str
    higher_is_better: bool = True
    within_pp: float | None = None
    margin: float | None = None
    common: bool = False

    @property
    def decides(self) -> bool:
        """True if a contrast of this measure can have a verdict.

        A measure from each arm's own reference cannot: an error in a reference shifts all pairs alike, which
        no test over pairs detects. Between equal arms, such a contrast would be settled in nearly half of all
        sweeps (`python -m benchmarks.coverage`). So it is descriptive.
        """
        return self.margin is not None

    @property
    def own(self) -> bool:
        """True if measured from the arm's own reference. The interval then needs a confirmed reference."""
        return not self.decides

    @property
    def test(self) -> Literal["mcnemar", "wilcoxon"]:
        """The test of a paired difference: exact McNemar for shares, signed ranks for other measures."""
        return "wilcoxon" if self.within_pp is None else "mcnemar"


#: Upper end of the area under the Delta-EDF, in pp: the range that the paper plots.
AREA_LIMIT_PP = 10.0

MEASURES: dict[Measure, MeasureInfo] = {
    "area_common": MeasureInfo(
        "common area",
        "normalised area under the distribution function of error, from the better arm's reference to "
        f"{AREA_LIMIT_PP:g} pp above it",
        margin=0.1,
        common=True,
    ),
    "within_common_bar": MeasureInfo(
        "common bar",
        "share of points within 4 pp of the better arm's reference, one bar for all arms",
        within_pp=4.0,
        margin=0.1,
        common=True,
    ),
    "error": MeasureInfo(
        "mean error",
        "mean error over points (%), a diverged one counting 100",
        higher_is_better=False,
        margin=1.0,
    ),
    "area_under_delta_edf": MeasureInfo(
        "area", f"normalised area under the Delta-EDF from 0 to {AREA_LIMIT_PP:g} pp"
    ),
    "f1": MeasureInfo("F(1)", "share of points within 1 pp of the reference", within_pp=1.0),
    "f2": MeasureInfo("F(2)", "share of points within 2 pp of the reference", within_pp=2.0),
    "f4": MeasureInfo("F(4)", "share of points within 4 pp of the reference", within_pp=4.0),
}

#: The reason why a measure from an arm's own sample minimum has no interval. An error in this reference
#: shifts all points of the arm alike, so the points do not show its size.
UNCONFIRMED = "its reference is not confirmed"


def edf(values: Sequence[float] | NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the empirical distribution function as a step function.

    Returns:
      Distinct values in ascending order, and the share of the sample at or below each. The function is 0 left
      of the first value. Between two values it has the value of the left one.

    Raises:
      ValueError: there are no values.

    Source: Radosavovic et al. 2019, "On Network Design Spaces", https://arxiv.org/abs/1905.13214
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("an EDF needs at least one value")
    steps, counts = np.unique(sample, return_counts=True)
    return steps, np.cumsum(counts) / sample.size


def deltas(
    errors_pct: Sequence[float] | NDArray[np.float64], reference_pct: float | None
) -> NDArray[np.float64]:
    """Returns errors minus the reference, in pp. They are infinite if nothing trained (no reference)."""
    return np.asarray(errors_pct, dtype=np.float64) - (-math.inf if reference_pct is None else reference_pct)


def point_scores(
    measure: Measure, errors_pct: Sequence[float] | NDArray[np.float64], reference_pct: float | None
) -> NDArray[np.float64]:
    """Returns one score per point. Their mean over points is the measure.

    The normalised area under the Delta-EDF up to T is the mean of 1 - min(Delta, T) / T, by integration of
    each point's step function. A Delta below 0 counts as 0. For a measure with `common`, `reference_pct` is
    the lowest reference of the cell.
    """
    if measure == "error":
        return np.asarray(errors_pct, dtype=np.float64)
    delta = deltas(errors_pct, reference_pct)
    if (within := MEASURES[measure].within_pp) is not None:
        # The tolerance is needed because a Delta of exactly t must count despite rounding.
        return (delta <= within + DIFFERS).astype(np.float64)
    return np.asarray(1 - np.clip(delta, 0, AREA_LIMIT_PP) / AREA_LIMIT_PP)


def share_estimate(share: float, num_points: int) -> Estimate:
    return Estimate(share, *share_interval(share * num_points, num_points))


@dataclass(frozen=True, slots=True)
class Reference:
    """An arm's own reference, with its interval over fresh seeds if it is confirmed."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, value: float | None, confirmed: Estimate | None) -> "Reference":
        if confirmed is None or value is None:
            return cls(value)
        low, high = (confirmed.value if end is None else end for end in (confirmed.low, confirmed.high))
        return cls(value, low, high)


def measures_of(
    errors_pct: Sequence[float],
    reference_pct: float | None,
    common_pct: float | None,
    confirmed: Estimate | None = None,
) -> dict[Measure, Estimate]:
    """Returns every measure of one arm in one cell.

    Args:
      errors_pct: one per point.
      reference_pct, common_pct: the arm's own reference and the lowest of the cell. None if nothing trained.
      confirmed: the own reference with its interval over fresh seeds, if it is confirmed.
    """
    own = Reference.of(reference_pct, confirmed)

    def at(reference: float | None, measure: Measure) -> Estimate:
        scores = point_scores(measure, errors_pct, reference)
        if MEASURES[measure].within_pp is not None:
            return share_estimate(float(scores.mean()), len(scores))
        return bounded_mean(scores, score_ends(measure, common_pct, errors_pct))

    found: dict[Measure, Estimate] = {}
    for measure, info in MEASURES.items():
        if not info.own:
            found[measure] = at(common_pct, measure)
        elif own.low is None or own.high is None:
            found[measure] = Estimate(at(own.value, measure).value, because=UNCONFIRMED)
        else:
            # A higher reference has more points within reach, so its interval's ends give the extremes.
            least, central, most = (at(reference, measure) for reference in (own.low, own.value, own.high))
            found[measure] = dataclasses.replace(central, low=least.low, high=most.high)
    return found


def score_ends(
    measure: Measure, common_pct: float | None, *errors_pct: Iterable[float]
) -> tuple[float, float]:
    """Returns the lowest and highest score that a point can have.

    For the mean error, the lower end is the lowest known error, because none is expected far below it.
    """
    if measure != "error":
        return 0.0, 1.0
    lowest = [min(errors) for errors in errors_pct]
    return min(WORST_PCT if common_pct is None else common_pct, *lowest), WORST_PCT
