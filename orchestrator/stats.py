"""Populations of trials compared: Delta-EDFs, robustness measures, paired differences, with intervals.

Errors are percentages as `Result.error_pct` counts them: a diverged trial is 100, a trial that has no
result is missing. The unit of every statistic is the point of the design: replicates of a point are
averaged first, over those there are. Only trials of the role `sweep` are draws from the space, and only
they enter a distribution; confirmations give the reference and the peak, other roles are counted apart.

Delta is a point's error minus its arm's reference, in percentage points (pp). The reference is the error
of the arm's confirmed best. Where a cell is not confirmed for every arm that trained, it is for all of
them the lowest error the sweep itself has seen: a sample minimum, hence biased low and the more so the
more points there are. What is measured from it has no interval, unless all arms are measured from one:
then the reference is a bar like another, and the interval speaks of this bar.

Intervals take points as if they were drawn independently. Points of a Sobol design are spread more evenly
than that, so there intervals are wider than they need be and tests reject less often than they might. Where
a Sobol design has MIN_SAMPLE independent scrambles or more, intervals of differences are taken over these
blocks instead; tests still take points for independent. Each interval over points covers the truth of planted
populations in 93 % of sweeps at least (`python -m benchmarks.coverage`); which interval, and why, is in
docs/statistics.md.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from orchestrator.outcomes import RULES
from orchestrator.plan import Trial
from orchestrator.results import Result, by_cell_and_arm, by_point
from orchestrator.sweep.config import Primary
from trainables.base import WORST_PCT

Scores = NDArray[np.float64]
Measure = Literal["area_common", "within_common_bar", "error", "area_under_delta_edf", "f1", "f2", "f4"]
ReferenceKind = Literal["confirmed", "sweep_minimum"]
#: What a trial that a rule stopped early may be taken for; both are biased, in a known direction.
Stopped = Literal["as_worst", "as_last"]


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

CONFIDENCE = 0.95

#: Scores further apart than this differ; what is closer differs by rounding.
DIFFERS = 1e-9

#: Five values that all lie on one side are no evidence at 5 %: a sign test gives 2 / 2^5 = 6 %. With
#: fewer than this there is no interval of a mean, and with fewer pairs that differ no verdict.
MIN_SAMPLE = 6

#: Why a measure from an arm's own sample minimum has no interval: it moves all points of the arm alike, by
#: an amount that they do not show.
UNCONFIRMED = "its reference is not confirmed"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval, or without one, and `because` says why."""

    value: float
    low: float | None = None
    high: float | None = None
    because: str = ""


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
class Confirmed:
    """The best of an arm's chosen points, told by fresh seeds.

    Choosing the lowest of several means and reporting that same mean would be optimistic once more. So each
    seed's error is taken from the point that the other seeds put first: the seed has had no say in the
    choice. Where the choice is clear, all seeds choose `point`, the value is its plain mean and the interval
    Student's t; else what the value moved by for it is added to the variance. Of three equal points with
    five seeds each the plain mean is 0.38 sd too low and the value 0.00; the interval covers 95 %.

    Attributes:
      point: of the lowest mean error on the selection split over all fresh seeds.
      mean_val_error_pct: that mean, chosen for being low.
      means_pct: the mean of every chosen point.
      num_seeds: fresh runs of `point` that count.
      num_diverged: those among them that diverged, each counted as 100.
      val: on the selection split, with its interval and its standard error.
      test: the same on the final split; None unless it was measured in every run.
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


@dataclass(frozen=True, slots=True)
class Summary:
    """One arm in one cell; everything is of the role `sweep`, except where it says otherwise.

    Attributes:
      cell, arm: which.
      num_trials, num_points: as planned.
      states: trials per state: an outcome, `running` or `missing`.
      other_states: the same for every other role there is.
      errors_pct: by point, the mean over the replicates there are; points without a result are absent, and
        all are where the distribution is refused.
      blocks: by point, which independent part of the design it is in.
      num_incomplete: points that have some of their replicates only.
      diverged: share of trials that diverged, among those the EDF counts; exact interval, which takes a
        point's replicates for one trial. None without a result.
      best: None while nothing ranked has ended.
      confirmed: None until every run of the confirmation has ended.
      reference_pct, reference_kind: what Delta is measured from, and what that is: the confirmed best, or
        the lowest error of a point that trained. Of one kind for all arms of a cell. None if none trained.
      common_reference_pct: the lowest reference of the cell.
      median_error_pct: over points.
      measures: every measure with its interval; empty without a result. Those from the arm's own
        reference have one only where it is confirmed.
      refused: what is not told though there are results, with the reason: measures, `delta_edf`,
        `median_error_pct`, `diverged`, `confirmed`, `confirmed_reference`.
    """

    cell: str
    arm: str
    num_trials: int
    num_points: int
    states: dict[str, int]
    other_states: dict[str, dict[str, int]]
    errors_pct: dict[int, float]
    blocks: dict[int, int]
    num_incomplete: int
    diverged: Estimate | None
    best: Best | None
    confirmed: Confirmed | None
    reference_pct: float | None
    reference_kind: ReferenceKind | None
    common_reference_pct: float | None
    median_error_pct: float | None
    measures: dict[Measure, Estimate]
    refused: dict[str, str]

    @property
    def reference_interval(self) -> Estimate | None:
        """Of the reference, as fresh seeds tell it; None where it is not confirmed."""
        return self.confirmed.val if self.confirmed and self.reference_kind == "confirmed" else None

    @property
    def deltas_pp(self) -> NDArray[np.float64]:
        """Delta of every point in `errors_pct`, in the order of the points.

        A few are below 0 where the reference is a confirmed one: single runs that had luck.
        """
        return deltas(list(self.errors_pct.values()), self.reference_pct)


@dataclass(frozen=True, slots=True)
class Contrast:
    """One measure of one arm against the reference arm, in one cell, on the points that both have.

    Attributes:
      cell, measure: which.
      primary: declared in the sweep file beforehand.
      base_arm, arm: the first arm of the sweep, and the one compared to it.
      base_value, value: of the measure on the paired points.
      difference: `value` minus `base_value`, with the interval of `bounded_mean` or of `block_mean`. It
        allows for pairs of which one diverges that the sweep happened not to draw, so it may hold 0 where the
        test has decided.
      interval_over: points or blocks.
      num_pairs: points that both arms have.
      num_unpaired: planned points that at least one arm lacks.
      num_differing: pairs on which the measure differs.
      num_higher: those of them on which it is higher in `arm`.
      better: the arm that is better, by the adjusted test and the sign of the mean difference, which have
        to agree; None if that is not settled.
      because: why it is not settled; empty if it is.
      test: what the p-value is of: `wilcoxon` signed ranks, or exact `mcnemar` for shares.
      p_value: two-sided; None without a pair.
      p_adjusted: by Holm's method over the contrasts of the same measure. A primary contrast and the others
        are families apart, so one that was declared alone is not adjusted.
      num_in_family: over how many contrasts it is adjusted; 1 if it is not.
    """

    cell: str
    measure: Measure
    primary: bool
    base_arm: str
    arm: str
    base_value: float | None
    value: float | None
    difference: Estimate | None
    interval_over: Literal["points", "blocks"]
    num_pairs: int
    num_unpaired: int
    num_differing: int
    num_higher: int
    better: str | None
    because: str
    test: Literal["mcnemar", "wilcoxon"]
    p_value: float | None
    p_adjusted: float | None
    num_in_family: int


@dataclass(frozen=True, slots=True)
class PeakContrast:
    """The confirmed best of one arm against that of the reference arm.

    Attributes:
      cell, base_arm, arm: which.
      split: `val` the selection split, `test` the final one.
      difference: error of `arm` minus that of `base_arm` in pp, with Welch's t interval over seeds. It tells
        these two settings apart and knows nothing of the luck of having found them.
      p_value: of Welch's test; None where all seeds agree.
      p_adjusted: by Holm's method over all contrasts on the same split.
    """

    cell: str
    base_arm: str
    arm: str
    split: Literal["val", "test"]
    difference: Estimate
    p_value: float | None
    p_adjusted: float | None


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


def share_interval(count: float, total: int) -> tuple[float, float]:
    """The exact 95 % interval of a share: it covers every share at least that often, and is wider for it.

    Wilson's is shorter, but of 16 trials it holds a share of 1.1 % in only 84 % of samples.

    Args:
      count: how many; a fraction where a trial counts in part.
      total: of how many.

    Raises:
      ValueError: not 0 <= count <= total, or no trials.

    Source: Clopper and Pearson 1934, Biometrika 26, 404-413.
    """
    if not 0 <= count <= total or total == 0:
        raise ValueError(f"need 0 <= count <= total and a total above 0, got {count=}, {total=}")
    tail = (1 - CONFIDENCE) / 2
    low = float(special.betaincinv(count, total - count + 1, tail)) if count > 0 else 0.0
    high = float(special.betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return low, high


def bounded_mean(values: Sequence[float] | NDArray[np.float64], ends: tuple[float, float]) -> Estimate:
    """The mean of values that lie between two ends, with its 95 % interval.

    Student's interval of the sample and two values more, one at each end. Where a setting of thirty diverges
    in one arm alone, most sweeps of 16 points have no such pair and the others' spread says nothing of it:
    every interval made of the sample alone (t, bootstrap, bootstrap-t) is then too short, and covers 55 to
    90 % on planted cliffs. With the two ends, a sample without a rare event still allows for one that has a
    chance of about 2.8 / n; exactly, it would be 3 / n, the rule of three.

    Args:
      values: one per point; for paired data, the differences.
      ends: the least and the most that a value can be.

    Returns:
      The plain mean; its interval is within the ends and need not be centred on it. No interval below
      MIN_SAMPLE values.

    Raises:
      ValueError: no values, or one beyond the ends.

    Source: Agresti and Coull 1998, Am. Stat. 52, 119-126, and Agresti and Min 2005, Stat. Med. 24, 729-740,
      who add such values to single and to paired shares.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("a mean needs at least one value")
    if sample.min() < ends[0] - DIFFERS or sample.max() > ends[1] + DIFFERS:
        raise ValueError(f"values are within {ends}, got {sample.min():g} to {sample.max():g}")
    mean = float(sample.mean())
    if sample.size < MIN_SAMPLE:
        return Estimate(mean, because=f"{sample.size} points, {MIN_SAMPLE} are needed")
    low, high = with_both_ends(mean, np.mean(sample**2), sample.size, ends)
    return Estimate(mean, float(low), float(high))


def block_mean(
    values: Sequence[float] | NDArray[np.float64],
    blocks: Sequence[int],
    ends: tuple[float, float] | None = None,
) -> Estimate:
    """The mean of points that come in independent blocks, with Student's 95 % interval over the blocks.

    Inside a scrambled Sobol block points are spread evenly, which makes their mean better known than as many
    independent draws would. Only the spread between blocks shows it. A handful of block means is too few to
    resample, while each is a mean itself, so that t with one degree of freedom less than blocks fits.

    Args:
      values: one per point; for paired data, the differences.
      blocks: to which block each point belongs. Where blocks are unequal, as when points are missing, the
        variance is that of a ratio: of the blocks' totals to their sizes. Of equal ones, it is that of
        the mean of block means.
      ends: the least and the most that a value can be; with them, the interval allows for what was not drawn
        as that of `bounded_mean` does.

    Returns:
      The plain mean over points. No interval below MIN_SAMPLE blocks, nor where all values are equal.

    Raises:
      ValueError: no values, or not as many blocks.

    Source: Owen 1997, "Monte Carlo Variance of Scrambled Net Quadrature", SIAM J. Numer. Anal. 34,
      1884-1910; for unequal blocks Cochran 1977, "Sampling Techniques", 3rd edition, section 9A.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0 or len(blocks) != sample.size:
        raise ValueError(f"need values and a block for each, got {sample.size} and {len(blocks)}")
    mean = float(sample.mean())
    _, index = np.unique(blocks, return_inverse=True)
    totals = np.bincount(index, sample - mean)
    if totals.size < MIN_SAMPLE:
        return Estimate(mean, because=f"{totals.size} blocks, {MIN_SAMPLE} are needed")
    if ends is None and np.ptp(sample) == 0:
        return Estimate(mean, because="all values are alike")
    error = math.sqrt(totals.size / (totals.size - 1) * float(totals @ totals)) / sample.size
    if ends is not None:
        low, high = with_both_ends(mean, sample.size * error**2 + mean**2, sample.size, ends, totals.size - 1)
        return Estimate(mean, float(low), float(high))
    half = float(special.stdtrit(totals.size - 1, (1 + CONFIDENCE) / 2)) * error
    return Estimate(mean, mean - half, mean + half)


def with_both_ends(
    mean: Any, mean_square: Any, count: float, ends: tuple[Any, Any], freedom: float | None = None
) -> tuple[Any, Any]:
    """The interval of `bounded_mean`, from the moments of a sample and how many points it is worth.

    Numbers or arrays of them, one for each sample. The degrees of freedom are `count` less one, if not given.
    """
    low, high = ends
    total = count + 2
    middle = (count * mean + low + high) / total
    variance = (count * mean_square + low**2 + high**2) / total - middle**2
    freedom = count - 1 if freedom is None else freedom
    half = special.stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(np.maximum(variance, 0) / total)
    return np.maximum(middle - half, low), np.minimum(middle + half, high)


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


def summarise(results: Iterable[Result], stopped: Stopped | None = None) -> list[Summary]:
    """Every arm in every cell, cells first, in the order of the plan.

    Args:
      results: of a plan, all roles.
      stopped: an estimator for trials that a rule stopped early, at the caller's choice: `as_worst` counts
        them as 100 % error and `as_last` at their last epoch's. Both err against the arm. Without one, an
        arm that has such trials gets no distribution and no measure, and the reason is in `refused`.
    """
    groups: dict[str, dict[str, list[Result]]] = {}
    for (cell, arm), group in by_cell_and_arm(results).items():
        groups.setdefault(cell, {})[arm] = group
    found = []
    for cell, arms in groups.items():
        populations = {arm: _population(group, stopped) for arm, group in arms.items()}
        trained = [population for population in populations.values() if population.trained]
        confirmed = all(p.confirmed and not p.confirmed.num_diverged for p in trained)
        references = [p.reference_pct(confirmed) for p in populations.values()]
        common = min((reference for reference in references if reference is not None), default=None)
        found += [_summary(cell, arm, p, confirmed, common) for arm, p in populations.items()]
    return found


@dataclass(frozen=True, slots=True)
class _Population:
    """One arm in one cell before it is known what to measure it from.

    Attributes:
      sweep: draws from the space.
      searched: trials of a search, which may be the best and tell nothing else.
      other_states: trials of other roles per state.
      errors_pct: by point, of the draws.
      num_counted: trials whose errors those are made of.
      trained: errors of the points of which a trial is ranked.
      num_incomplete: points that have some of their replicates only.
      confirmed, refused: as in a Summary.
    """

    sweep: list[Result]
    searched: list[Result]
    other_states: dict[str, dict[str, int]]
    errors_pct: dict[int, float]
    num_counted: int
    trained: list[float]
    num_incomplete: int
    confirmed: Confirmed | None
    refused: dict[str, str]

    def reference_pct(self, confirmed: bool) -> float | None:
        if not self.trained:
            return None
        return self.confirmed.val.value if confirmed and self.confirmed else min(self.trained)


#: What is told of a distribution, by the names under which it is refused.
_OF_DRAWS = (*MEASURES, "delta_edf", "median_error_pct", "diverged")

#: Why a search has no distribution.
NO_DRAWS = (
    "its settings were chosen, or its trials could be ended, by a search, so they are no draws from the space"
)


def _population(results: Sequence[Result], stopped: Stopped | None) -> _Population:
    by_role: dict[str, list[Result]] = {}
    for result in results:
        by_role.setdefault(result.trial.role, []).append(result)
    sweep, searched = by_role.pop("sweep", []), by_role.pop("search", [])
    errors, num_counted, trained, num_incomplete = {}, 0, [], 0
    for point, replicates in by_point(sweep).items():
        found = [error for result in replicates if (error := _error_pct(result, stopped)) is not None]
        if not found:
            continue
        num_counted += len(found)
        num_incomplete += len(found) < len(replicates)
        errors[point] = float(np.mean(found))
        if any(_ranked(result) for result in replicates):
            trained.append(errors[point])
    confirmed, because = confirmed_with(by_role.get("confirm", []), _final_pct)
    refused = {"confirmed": because} if because else {}
    num_censored = sum(result.censored for result in sweep)
    if num_censored and stopped is None:
        because = (
            f"{num_censored} of {len(sweep)} trials {RULES['stopped'].means}, which leaves a distribution "
            "that is not the space's; no estimator for them was named"
        )
        errors, num_counted = {}, 0
        refused |= dict.fromkeys(_OF_DRAWS, because)
    if searched and not sweep:
        refused |= dict.fromkeys(_OF_DRAWS, NO_DRAWS)
    return _Population(
        sweep=sweep,
        searched=searched,
        other_states={
            role: dict(Counter(result.state for result in group)) for role, group in by_role.items()
        },
        errors_pct=errors,
        num_counted=num_counted,
        trained=trained,
        num_incomplete=num_incomplete,
        confirmed=confirmed,
        refused=refused,
    )


def _error_pct(result: Result, stopped: Stopped | None) -> float | None:
    """A trial's error as it counts, with an estimator for those that were stopped."""
    if stopped is None or not result.censored:
        return result.error_pct
    own = result.own_error_pct if stopped == "as_last" else None
    return WORST_PCT if own is None else own


def _summary(cell: str, arm: str, found: _Population, confirmed: bool, common: float | None) -> Summary:
    reference, errors, refused = found.reference_pct(confirmed), found.errors_pct, dict(found.refused)
    if found.confirmed and reference is not None and not confirmed:
        refused["confirmed_reference"] = (
            "a run of the confirmed best diverged"
            if found.confirmed.num_diverged
            else "the cell is not confirmed for every arm, and its arms are measured alike"
        )
    num_diverged = sum(result.state == "diverged" for result in found.sweep)
    tried = found.sweep + found.searched
    kind: ReferenceKind = "confirmed" if confirmed else "sweep_minimum"
    own = found.confirmed.val if found.confirmed and confirmed else None
    return Summary(
        cell=cell,
        arm=arm,
        num_trials=len(tried),
        num_points=len({result.trial.point for result in found.sweep}),
        states=dict(Counter(result.state for result in tried)),
        other_states=found.other_states,
        errors_pct=errors,
        blocks={result.trial.point: result.trial.block for result in found.sweep},
        num_incomplete=found.num_incomplete,
        diverged=_share(num_diverged / found.num_counted, len(errors)) if found.num_counted else None,
        best=_best(tried),
        confirmed=found.confirmed,
        reference_pct=reference,
        reference_kind=None if reference is None else kind,
        common_reference_pct=common,
        median_error_pct=float(np.median(list(errors.values()))) if errors else None,
        measures=measures_of(list(errors.values()), reference, common, own) if errors else {},
        refused=refused,
    )


def _final_pct(result: Result) -> float | None:
    return WORST_PCT if result.state == "diverged" else result.test_error_pct


def confirmed_with(
    results: Sequence[Result], measured: Callable[[Result], float | None]
) -> tuple[Confirmed | None, str]:
    """The confirmed best of one arm in one cell, or why there is none; neither if none was asked for.

    Args:
      results: its runs with fresh seeds.
      measured: what `test` is to be of those that had no say in the choice; None where a run lacks it.
    """
    if not results:
        return None, ""
    num_ended = sum(result.record.settled for result in results)
    if num_ended < len(results):
        return None, f"{num_ended} of {len(results)} runs of the confirmation have ended"
    seeds = sorted({result.trial.replicate for result in results})
    points: dict[int, dict[int, Result]] = {}
    for result in results:
        if result.error_pct is not None:
            points.setdefault(result.trial.point, {})[result.trial.replicate] = result
    points = {point: found for point, found in points.items() if len(found) > 1}
    if not any(_ranked(result) for found in points.values() for result in found.values()):
        return None, "no chosen point has two runs that trained"
    val_PS, test_PS = np.full((2, len(points), len(seeds)), np.nan)
    for row, found in enumerate(points.values()):
        for column, seed in enumerate(seeds):
            if seed in found:
                val_PS[row, column] = found[seed].error_pct
                own = measured(found[seed])
                test_PS[row, column] = math.nan if own is None else own
    told = confirmed_of(list(points), val_PS, test_PS)
    return told, "" if told else "no seed has a result at the point that the others choose"


def confirmed_of(points: Sequence[int], val_PS: Scores, test_PS: Scores | None) -> Confirmed | None:
    """The confirmed best from the errors of fresh runs, points by seeds.

    Args:
      points: what the rows are called.
      val_PS: on the selection split; nan where a run has no result, 100 where it diverged; two results at
        least per point.
      test_PS: on the final split, if it was measured.

    Returns:
      None where no seed has a result at the point that the others choose.
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
    """The mean of errors that had no say in the choice, with interval and standard error."""
    best, value = best_S[~np.isnan(best_S)], float(held_out_S.mean())
    error = math.hypot(float(best.std(ddof=1)) / math.sqrt(best.size), value - float(best.mean()))
    if error == 0:
        return Estimate(value), 0.0
    half = float(special.stdtrit(best.size - 1, (1 + CONFIDENCE) / 2)) * error
    return Estimate(value, value - half, value + half), error


def chosen_by_the_others(errors_PS: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For each seed the point that all the other seeds together put first.

    Args:
      errors_PS: points by seeds, nan where a run has no error; at least two errors per point.

    Returns:
      Rows and columns of the errors that had no say in the choice of their row; a seed whose chosen point
      has no error of that seed is left out.
    """
    known = ~np.isnan(errors_PS)
    filled = np.where(known, errors_PS, 0.0)
    others = filled.sum(axis=1, keepdims=True) - filled
    rows = np.argmin(others / (known.sum(axis=1, keepdims=True) - known), axis=0)
    columns = np.arange(errors_PS.shape[1])
    kept = known[rows, columns]
    return rows[kept], columns[kept]


def _ranked(result: Result) -> bool:
    return result.rule is not None and result.rule.ranked and result.error_pct is not None


def _share(share: float, num_points: int) -> Estimate:
    return Estimate(share, *share_interval(share * num_points, num_points))


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


@dataclass(frozen=True, slots=True)
class _Reference:
    """An arm's own reference: its value, and the interval that fresh seeds give it; none if unconfirmed."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, value: float | None, confirmed: Estimate | None) -> "_Reference":
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
    own = _Reference.of(reference_pct, confirmed)

    def at(reference: float | None, measure: Measure) -> Estimate:
        scores = point_scores(measure, errors_pct, reference)
        if MEASURES[measure].within_pp is not None:
            return _share(float(scores.mean()), len(scores))
        return bounded_mean(scores, _ends(measure, common_pct, errors_pct))

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


def _ends(measure: Measure, common_pct: float | None, *errors_pct: Iterable[float]) -> tuple[float, float]:
    """Between which a point's score can lie: no error is taken to be much below the best that is known."""
    if measure != "error":
        return 0.0, 1.0
    lowest = [min(errors) for errors in errors_pct]
    return min(WORST_PCT if common_pct is None else common_pct, *lowest), WORST_PCT


def contrasts(summaries: Sequence[Summary], primary: Primary | None) -> list[Contrast]:
    """Every arm against the first one of its cell, for every measure."""
    by_cell: dict[str, list[Summary]] = {}
    for summary in summaries:
        by_cell.setdefault(summary.cell, []).append(summary)
    found = [
        _contrast(base, other, measure, primary)
        for base, *others in by_cell.values()
        for other in others
        for measure in MEASURES
    ]
    families: dict[tuple[Measure, bool], list[int]] = {}
    for index, contrast in enumerate(found):
        if contrast.p_value is not None:
            families.setdefault((contrast.measure, contrast.primary), []).append(index)
    for family in families.values():
        values = [value for index in family if (value := found[index].p_value) is not None]
        for index, adjusted in zip(family, holm(values), strict=True):
            found[index] = dataclasses.replace(found[index], p_adjusted=adjusted, num_in_family=len(family))
    return [_judged(contrast) for contrast in found]


def _judged(contrast: Contrast) -> Contrast:
    """With its verdict, which is the adjusted test's."""
    if contrast.because or contrast.difference is None or contrast.p_adjusted is None:
        return contrast
    if contrast.p_adjusted >= 1 - CONFIDENCE:
        return dataclasses.replace(contrast, because=f"p = {contrast.p_adjusted:.2f}")
    arm_is_better = (contrast.difference.value > 0) == MEASURES[contrast.measure].higher_is_better
    return dataclasses.replace(contrast, better=contrast.arm if arm_is_better else contrast.base_arm)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values such that rejecting all below alpha errs anywhere with probability alpha at most.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Stat. 6, 65-70.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * np.asarray(p_values)[order]))
    return [float(value) for value in adjusted]


def signed_rank_p(differences: Scores) -> float:
    """Wilcoxon's signed-rank test, two-sided; pairs that do not differ are left out, as he did.

    Exact without ties up to 50 pairs and with ties up to 13, else by the normal approximation.
    """
    # Errors are shares of images: what is equal must not be told apart by rounding.
    rounded = np.round(differences, 9)
    differing = rounded[rounded != 0]
    return float(stats.wilcoxon(differing).pvalue) if differing.size else 1.0


def signed_rank_sum(differences: Scores) -> float:
    """Ranks of the positive differences minus those of the negative ones: the side that the test favours."""
    rounded = np.round(differences, 9)
    differing = rounded[rounded != 0]
    return float(np.sign(differing) @ stats.rankdata(np.abs(differing)))


def mcnemar_p(num_higher: int, num_lower: int) -> float:
    """McNemar's exact test, two-sided: a fair coin for every pair of which one is in and the other out."""
    num_differing = num_higher + num_lower
    return float(stats.binomtest(num_higher, num_differing).pvalue) if num_differing else 1.0


def peak_contrasts(summaries: Sequence[Summary]) -> list[PeakContrast]:
    """The confirmed best of every arm against that of the first one of its cell, where both are confirmed."""
    first: dict[str, Summary] = {}
    found: list[PeakContrast] = []
    splits: tuple[Literal["val", "test"], ...] = ("val", "test")
    for summary in summaries:
        base = first.setdefault(summary.cell, summary)
        if base is summary or base.confirmed is None or summary.confirmed is None:
            continue
        for split in splits:
            told = welch(base.confirmed, summary.confirmed, split)
            if told is not None:
                found.append(PeakContrast(summary.cell, base.arm, summary.arm, split, *told, None))
    for split in splits:
        family = [i for i, c in enumerate(found) if c.split == split and c.p_value is not None]
        values = [value for index in family if (value := found[index].p_value) is not None]
        for index, adjusted in zip(family, holm(values), strict=True):
            found[index] = dataclasses.replace(found[index], p_adjusted=adjusted)
    return found


def welch(
    base: Confirmed, other: Confirmed, split: Literal["val", "test"]
) -> tuple[Estimate, float | None] | None:
    """Difference of two confirmed errors with Welch's interval, and its p-value; None where not measured."""
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


def _contrast(base: Summary, other: Summary, measure: Measure, primary: Primary | None) -> Contrast:
    info = MEASURES[measure]
    refused = [f"{s.arm}: {s.refused[measure]}" for s in (base, other) if measure in s.refused]
    points = [point for point in base.errors_pct if point in other.errors_pct]
    base_errors, errors = ([summary.errors_pct[point] for point in points] for summary in (base, other))
    # Each arm is measured from its own reference, the best of all its points, paired or not.
    base_own, own = (_Reference.of(s.reference_pct, s.reference_interval) for s in (base, other))
    common = base.common_reference_pct

    def scores_at(base_reference: float | None, reference: float | None) -> tuple[Scores, Scores]:
        pair = (base_reference, reference) if info.own else (common, common)
        return point_scores(measure, base_errors, pair[0]), point_scores(measure, errors, pair[1])

    blocks = [base.blocks[point] for point in points]
    over_blocks = len(set(blocks)) >= MIN_SAMPLE

    def difference_at(base_reference: float | None, reference: float | None) -> Estimate:
        base_scores, scores = scores_at(base_reference, reference)
        low, high = _ends(measure, common, base_errors, errors)
        ends = (low - high, high - low)
        if over_blocks:
            return block_mean(scores - base_scores, blocks, ends)
        return bounded_mean(scores - base_scores, ends)

    base_scores, scores = scores_at(base_own.value, own.value)
    differences = scores - base_scores
    num_higher, num_lower = (int(np.count_nonzero(sign * differences > DIFFERS)) for sign in (1, -1))
    num_differing = num_higher + num_lower
    difference = difference_at(base_own.value, own.value) if points else None
    if difference is not None and info.own:
        if None in (base_own.low, own.low):
            difference = Estimate(difference.value, because=UNCONFIRMED)
        else:
            least, most = difference_at(base_own.high, own.low), difference_at(base_own.low, own.high)
            difference = dataclasses.replace(difference, low=least.low, high=most.high)
    if info.test == "mcnemar":
        p_value, favoured = mcnemar_p(num_higher, num_lower), float(num_higher - num_lower)
    else:
        p_value, favoured = signed_rank_p(differences), signed_rank_sum(differences)
    because = ""
    if refused:
        because = "; ".join(refused)
    elif difference is None:
        because = "no point has a result in both arms"
    elif info.own:
        because = "measured from each arm's own reference: describes, does not decide"
    elif num_differing < MIN_SAMPLE:
        because = f"{num_differing} of {len(points)} pairs differ, {MIN_SAMPLE} are needed"
    elif favoured * difference.value <= 0:
        because = "the signed ranks favour one arm, the mean the other"
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
        interval_over="blocks" if over_blocks else "points",
        num_pairs=len(points),
        num_unpaired=max(base.num_points, other.num_points) - len(points),
        num_differing=num_differing,
        num_higher=num_higher,
        better=None,
        because=because,
        test=info.test,
        p_value=p_value if points else None,
        p_adjusted=None,
        num_in_family=1,
    )


def landmarks(results: Iterable[Result]) -> dict[str, Result]:
    """The best, median and worst trial of the sweep among those the EDF counts; empty if there are none.

    Of an even number the median is the better of the two in the middle. Ties go to the earlier trial.
    """
    counted = [
        (error, result)
        for result in results
        if result.trial.role == "sweep" and (error := result.error_pct) is not None
    ]
    ordered = [result for _, result in sorted(counted, key=lambda pair: pair[0])]
    if not ordered:
        return {}
    return {"best": ordered[0], "median": ordered[(len(ordered) - 1) // 2], "worst": ordered[-1]}


def by_arm(results: Iterable[Result], cell: str) -> Mapping[str, list[Result]]:
    """The draws of one cell (role `sweep`), by arm, in the order of the plan."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.trial.cell_name == cell and result.trial.role == "sweep":
            groups.setdefault(result.trial.arm, []).append(result)
    return groups
