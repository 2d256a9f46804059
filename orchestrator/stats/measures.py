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
    """How a measure is called and read.

    Attributes:
      symbol: for table heads.
      means: for people.
      higher_is_better: else lower is.
      within_pp: the t of an F(t), None for the others.
      common: from the lowest reference of all arms in the cell, not from the arm's own.
      decides: a contrast of it can be settled. One that is measured from each arm's own reference cannot:
        an error in a reference moves all pairs alike, which no test over pairs notices. Between arms that
        do not differ such a contrast would be called settled in nearly half of all sweeps
        (`python -m benchmarks.coverage`), so it describes, and has no verdict.
    """

    symbol: str
    means: str
    higher_is_better: bool = True
    within_pp: float | None = None
    common: bool = False
    decides: bool = False

    @property
    def own(self) -> bool:
        """Whether it is measured from the arm's own reference; its interval then needs that confirmed."""
        return not self.decides

    @property
    def test(self) -> Literal["mcnemar", "wilcoxon"]:
        """The test of a paired difference: exact McNemar of shares, signed ranks of the others."""
        return "wilcoxon" if self.within_pp is None else "mcnemar"


#: Where the area under the Delta-EDF ends, in pp: the range the paper plots.
AREA_LIMIT_PP = 10.0

MEASURES: dict[Measure, MeasureInfo] = {
    "area_common": MeasureInfo(
        "common area",
        "normalised area under the distribution function of error, from the better arm's reference to "
        f"{AREA_LIMIT_PP:g} pp above it",
        common=True,
        decides=True,
    ),
    "within_common_bar": MeasureInfo(
        "common bar",
        "share of points within 4 pp of the better arm's reference, one bar for all arms",
        within_pp=4.0,
        common=True,
        decides=True,
    ),
    "error": MeasureInfo(
        "mean error",
        "mean error over points (%), a diverged one counting 100",
        higher_is_better=False,
        decides=True,
    ),
    "area_under_delta_edf": MeasureInfo(
        "area", f"normalised area under the Delta-EDF from 0 to {AREA_LIMIT_PP:g} pp"
    ),
    "f1": MeasureInfo("F(1)", "share of points within 1 pp of the reference", within_pp=1.0),
    "f2": MeasureInfo("F(2)", "share of points within 2 pp of the reference", within_pp=2.0),
    "f4": MeasureInfo("F(4)", "share of points within 4 pp of the reference", within_pp=4.0),
}

#: Why a measure from an arm's own sample minimum has no interval: it moves all points of the arm alike, by
#: an amount that they do not show.
UNCONFIRMED = "its reference is not confirmed"


def edf(values: Sequence[float] | NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The empirical distribution function as a step function.

    Returns:
      Distinct values in ascending order, and at each the share of the sample at or below it. Left of the
      first value the function is 0, between values it keeps the value of the left one.

    Raises:
      ValueError: no values.

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
    """Errors over the reference, in pp; infinite where there is none, as nothing trained."""
    return np.asarray(errors_pct, dtype=np.float64) - (-math.inf if reference_pct is None else reference_pct)


def point_scores(
    measure: Measure, errors_pct: Sequence[float] | NDArray[np.float64], reference_pct: float | None
) -> NDArray[np.float64]:
    """One number per point whose mean over points is the measure; `reference_pct` is the cell's if `common`.

    The area under the Delta-EDF up to T, over T, is the mean of 1 - min(Delta, T) / T (integrate the step
    function of each point alone; a Delta below 0 counts as 0).
    """
    if measure == "error":
        return np.asarray(errors_pct, dtype=np.float64)
    delta = deltas(errors_pct, reference_pct)
    if (within := MEASURES[measure].within_pp) is not None:
        # Errors are shares of images: a Delta of exactly t must not fall out by rounding.
        return (delta <= within + DIFFERS).astype(np.float64)
    return np.asarray(1 - np.clip(delta, 0, AREA_LIMIT_PP) / AREA_LIMIT_PP)


def share_estimate(share: float, num_points: int) -> Estimate:
    return Estimate(share, *share_interval(share * num_points, num_points))


@dataclass(frozen=True, slots=True)
class Reference:
    """An arm's own reference: its value, and the interval that fresh seeds give it; none if unconfirmed."""

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
    """Every measure of one arm in one cell.

    Args:
      errors_pct: one per point.
      reference_pct, common_pct: the arm's own reference and the lowest of the cell; None where nothing
        trained.
      confirmed: the own reference with the interval that fresh seeds give it, if they do.
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
            # A higher reference has more points near it: its two ends have the least and the most.
            least, central, most = (at(reference, measure) for reference in (own.low, own.value, own.high))
            found[measure] = dataclasses.replace(central, low=least.low, high=most.high)
    return found


def score_ends(
    measure: Measure, common_pct: float | None, *errors_pct: Iterable[float]
) -> tuple[float, float]:
    """Between which a point's score can lie: no error is taken to be much below the best that is known."""
    if measure != "error":
        return 0.0, 1.0
    lowest = [min(errors) for errors in errors_pct]
    return min(WORST_PCT if common_pct is None else common_pct, *lowest), WORST_PCT
