"""Populations of trials compared: Delta-EDFs, robustness measures, paired differences, with intervals.

Errors are percentages as `Result.error_pct` counts them: a diverged trial is 100, a trial that has no
result is missing. The unit of every statistic is the point of the design: replicates of a point are
averaged first, over those there are.

Delta is a point's error minus its arm's reference, in percentage points (pp). The reference is the best
error the sweep itself has seen in that arm and cell: a sample minimum, hence biased low and the more so
the more points there are. Every interval here holds it fixed.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from orchestrator.plan import Trial
from orchestrator.results import Result
from orchestrator.sweep import Primary

Measure = Literal["area_under_delta_edf", "f1", "f2", "f4", "error"]


@dataclass(frozen=True, slots=True)
class MeasureInfo:
    """How a measure is called and read.

    Attributes:
      symbol: for table heads.
      means: for people.
      higher_is_better: else lower is.
      within_pp: the t of an F(t), None for the others.
    """

    symbol: str
    means: str
    higher_is_better: bool = True
    within_pp: float | None = None


#: Where the area under the Delta-EDF ends, in pp: the range the paper plots.
AREA_LIMIT_PP = 10.0

MEASURES: dict[Measure, MeasureInfo] = {
    "area_under_delta_edf": MeasureInfo(
        "area", f"normalised area under the Delta-EDF from 0 to {AREA_LIMIT_PP:g} pp"
    ),
    "f1": MeasureInfo("F(1)", "share of points within 1 pp of the reference", within_pp=1.0),
    "f2": MeasureInfo("F(2)", "share of points within 2 pp of the reference", within_pp=2.0),
    "f4": MeasureInfo("F(4)", "share of points within 4 pp of the reference", within_pp=4.0),
    "error": MeasureInfo(
        "mean error", "mean error over points (%), a diverged one counting 100", higher_is_better=False
    ),
}

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000

#: Five values that all lie on one side are no evidence at 5 %: a sign test gives 2 / 2^5 = 6 %. With
#: fewer than this there is no bootstrap interval, and with fewer pairs that differ no verdict.
MIN_SAMPLE = 6


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; no interval where the sample is too small or all alike for one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Best:
    """The ranked trial of lowest error: one run, so unconfirmed until it is run again with fresh seeds.

    Attributes:
      trial: which.
      val_error_pct: on the selection split. Chosen for being low, so biased low.
      test_error_pct: on the final split, after its last epoch; None if it was not measured.
    """

    trial: Trial
    val_error_pct: float
    test_error_pct: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """One arm in one cell.

    Attributes:
      cell, arm: which.
      num_trials, num_points: as planned.
      states: trials per state: an outcome, `running` or `missing`.
      errors_pct: by point, the mean over the replicates there are; points without a result are absent.
      num_incomplete: points that have some of their replicates only.
      diverged: share of trials that diverged, among those the EDF counts; Wilson interval over trials,
        which is too narrow where points have several replicates. None without a result.
      best: None while nothing ranked has ended.
      reference_pct: the lowest error of a point that trained; what Delta is measured from.
      median_error_pct: over points.
      measures: every measure with its interval; empty without a result. Wilson for F(t), else bootstrap.
    """

    cell: str
    arm: str
    num_trials: int
    num_points: int
    states: dict[str, int]
    errors_pct: dict[int, float]
    num_incomplete: int
    diverged: Estimate | None
    best: Best | None
    reference_pct: float | None
    median_error_pct: float | None
    measures: dict[Measure, Estimate]

    @property
    def deltas_pp(self) -> NDArray[np.float64]:
        """Delta of every point that has a result, in the order of the points."""
        return deltas(list(self.errors_pct.values()), self.reference_pct)


@dataclass(frozen=True, slots=True)
class Contrast:
    """One measure of one arm against the reference arm, in one cell, on the points that both have.

    Attributes:
      cell, measure: which.
      primary: declared in the sweep file beforehand.
      base_arm, arm: the first arm of the sweep, and the one compared to it.
      base_value, value: of the measure on the paired points.
      difference: `value` minus `base_value`; the interval is a paired bootstrap over points.
      num_pairs: points that both arms have.
      num_unpaired: planned points that at least one arm lacks.
      num_differing: pairs on which the measure differs.
      better: the arm that is better; None if that is not settled.
      because: why it is not settled; empty if it is.
    """

    cell: str
    measure: Measure
    primary: bool
    base_arm: str
    arm: str
    base_value: float | None
    value: float | None
    difference: Estimate | None
    num_pairs: int
    num_unpaired: int
    num_differing: int
    better: str | None
    because: str


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


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share: inside [0, 1] and of sensible width at 0 and 1 too.

    Raises:
      ValueError: not 0 <= count <= total, or no trials.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212.
    """
    if not 0 <= count <= total or total == 0:
        raise ValueError(f"need 0 <= count <= total and a total above 0, got {count=}, {total=}")
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    share, weight = count / total, z**2 / total
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    # Exactly the ends where the share is at one, whatever the rounding.
    return (0.0 if count == 0 else middle - half), (1.0 if count == total else middle + half)


def bootstrap_mean(values: Sequence[float] | NDArray[np.float64], seed: int = 0) -> Estimate:
    """The mean with its 95 % interval from an expanded percentile bootstrap.

    The plain percentile interval is too narrow in small samples, even where all is normal: it lacks
    Student's t and the n / (n - 1) of the variance. The expanded one takes the quantiles
    Phi(-+ t sqrt(n / (n - 1))) instead of 2.5 and 97.5 %, and tends to the plain one as n grows.

    Args:
      values: one per point; for paired data, the differences.
      seed: of the resampling; the same for all, so that a result depends on its own values only.

    Returns:
      No interval below MIN_SAMPLE values, nor where all are equal: resampling cannot show what it has
      not seen.

    Raises:
      ValueError: no values.

    Source: Hesterberg 2014, "What Teachers Should Know about the Bootstrap", section 5.3,
      https://arxiv.org/abs/1411.5279
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("a mean needs at least one value")
    mean, count = float(sample.mean()), sample.size
    if count < MIN_SAMPLE or np.ptp(sample) == 0:
        return Estimate(mean)
    t = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
    tail = float(stats.norm.cdf(-t * math.sqrt(count / (count - 1))))
    rng, chunks = np.random.default_rng(seed), 10
    # In chunks: all resamples of thousands of points at once would not fit in a small machine.
    means = np.concatenate(
        [sample[rng.integers(0, count, (NUM_RESAMPLES // chunks, count))].mean(axis=1) for _ in range(chunks)]
    )
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high))


def deltas(errors_pct: Sequence[float], reference_pct: float | None) -> NDArray[np.float64]:
    """Errors over the reference, in pp; infinite where there is none, as nothing trained."""
    return np.asarray(errors_pct, dtype=np.float64) - (-math.inf if reference_pct is None else reference_pct)


def point_scores(
    measure: Measure, errors_pct: Sequence[float], reference_pct: float | None
) -> NDArray[np.float64]:
    """One number per point whose mean over points is the measure.

    The area under the Delta-EDF up to T, over T, is the mean of 1 - min(Delta, T) / T (integrate the step
    function of each point alone).
    """
    if measure == "error":
        return np.asarray(errors_pct, dtype=np.float64)
    delta = deltas(errors_pct, reference_pct)
    if (within := MEASURES[measure].within_pp) is not None:
        # Errors are shares of images: a Delta of exactly t must not fall out by rounding.
        return (delta <= within + 1e-9).astype(np.float64)
    return np.asarray(1 - np.minimum(delta, AREA_LIMIT_PP) / AREA_LIMIT_PP)


def summarise(results: Iterable[Result]) -> list[Summary]:
    """Every arm in every cell, cells first, in the order of the plan."""
    groups: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        groups.setdefault(result.trial.cell_name, {}).setdefault(result.trial.arm, []).append(result)
    return [_summary(cell, arm, group) for cell, arms in groups.items() for arm, group in arms.items()]


def _summary(cell: str, arm: str, results: Sequence[Result]) -> Summary:
    by_point: dict[int, list[Result]] = {}
    for result in results:
        by_point.setdefault(result.trial.point, []).append(result)
    errors, trained, num_incomplete = {}, [], 0
    for point, replicates in by_point.items():
        found = [result.error_pct for result in replicates if result.error_pct is not None]
        if not found:
            continue
        num_incomplete += len(found) < len(replicates)
        errors[point] = float(np.mean(found))
        if any(_ranked(result) for result in replicates):
            trained.append(errors[point])
    reference = min(trained, default=None)
    counted = [result for result in results if result.error_pct is not None]
    num_diverged = sum(result.state == "diverged" for result in counted)
    return Summary(
        cell=cell,
        arm=arm,
        num_trials=len(results),
        num_points=len(by_point),
        states=dict(Counter(result.state for result in results)),
        errors_pct=errors,
        num_incomplete=num_incomplete,
        diverged=_share(num_diverged, len(counted)) if counted else None,
        best=_best(results),
        reference_pct=reference,
        median_error_pct=float(np.median(list(errors.values()))) if errors else None,
        measures=_measures(list(errors.values()), reference) if errors else {},
    )


def _ranked(result: Result) -> bool:
    return result.rule is not None and result.rule.ranked and result.error_pct is not None


def _share(count: int, total: int) -> Estimate:
    return Estimate(count / total, *wilson(count, total))


def _best(results: Iterable[Result]) -> Best | None:
    found: Best | None = None
    for result in results:
        if (
            _ranked(result)
            and (error := result.error_pct) is not None
            and (found is None or error < found.val_error_pct)
        ):
            found = Best(result.trial, error, result.test_error_pct)
    return found


def _measures(errors_pct: Sequence[float], reference_pct: float | None) -> dict[Measure, Estimate]:
    found: dict[Measure, Estimate] = {}
    for measure, info in MEASURES.items():
        scores = point_scores(measure, errors_pct, reference_pct)
        found[measure] = (
            bootstrap_mean(scores) if info.within_pp is None else _share(int(scores.sum()), len(scores))
        )
    return found


def contrasts(summaries: Sequence[Summary], primary: Primary | None) -> list[Contrast]:
    """Every arm against the first one of its cell, for every measure."""
    by_cell: dict[str, list[Summary]] = {}
    for summary in summaries:
        by_cell.setdefault(summary.cell, []).append(summary)
    return [
        _contrast(base, other, measure, primary)
        for base, *others in by_cell.values()
        for other in others
        for measure in MEASURES
    ]


def _contrast(base: Summary, other: Summary, measure: Measure, primary: Primary | None) -> Contrast:
    points = [point for point in base.errors_pct if point in other.errors_pct]
    # Each arm is measured from its own reference, the best of all its points, paired or not.
    base_scores, scores = (
        point_scores(measure, [summary.errors_pct[point] for point in points], summary.reference_pct)
        for summary in (base, other)
    )
    differences = scores - base_scores
    num_differing = int(np.count_nonzero(np.abs(differences) > 1e-12))
    difference = bootstrap_mean(differences) if points else None
    better, because = None, ""
    if difference is None:
        because = "no point has a result in both arms"
    elif num_differing < MIN_SAMPLE:
        because = f"{num_differing} of {len(points)} pairs differ, {MIN_SAMPLE} are needed"
    elif (
        difference.low is not None and difference.high is not None and difference.low <= 0 <= difference.high
    ):
        because = "the interval contains 0"
    else:
        better = other.arm if (difference.value > 0) == MEASURES[measure].higher_is_better else base.arm
    return Contrast(
        cell=base.cell,
        measure=measure,
        primary=primary is not None
        and primary.measure == measure
        and (primary.cell is None or primary.cell == base.cell),
        base_arm=base.arm,
        arm=other.arm,
        base_value=float(base_scores.mean()) if points else None,
        value=float(scores.mean()) if points else None,
        difference=difference,
        num_pairs=len(points),
        num_unpaired=max(base.num_points, other.num_points) - len(points),
        num_differing=num_differing,
        better=better,
        because=because,
    )


def landmarks(results: Iterable[Result]) -> dict[str, Result]:
    """The best, median and worst trial among those the EDF counts; empty if there are none.

    Of an even number the median is the better of the two in the middle. Ties go to the earlier trial.
    """
    counted = [(error, result) for result in results if (error := result.error_pct) is not None]
    ordered = [result for _, result in sorted(counted, key=lambda pair: pair[0])]
    if not ordered:
        return {}
    return {"best": ordered[0], "median": ordered[(len(ordered) - 1) // 2], "worst": ordered[-1]}


def by_arm(results: Iterable[Result], cell: str) -> Mapping[str, list[Result]]:
    """The results of one cell, by arm, in the order of the plan."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.trial.cell_name == cell:
            groups.setdefault(result.trial.arm, []).append(result)
    return groups
