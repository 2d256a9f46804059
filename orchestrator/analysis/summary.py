"""Summary of each arm in each cell: errors by point, reference, confirmed best, and measures with intervals.

Errors are percentages as in `Result.error_pct`: a diverged trial is 100, and a trial without a result is
missing. The unit of every statistic is the point of the design; its replicates with a result are averaged
first. Only trials of role `sweep` are draws from the space, so only they enter a distribution. Confirmations
give the reference and the peak. Other roles are counted separately.

Delta is a point's error minus its arm's reference, in percentage points (pp). The reference is the error of
the arm's confirmed best. In a cell where an arm that trained has no confirmation, the reference of each arm
is the lowest error of its sweep instead. This is a sample minimum, which is biased low, and more so with more
points. Measures from an arm's own sample minimum have no interval. Measures from the common reference have
one, which is conditional on that reference.

Intervals treat points as independent draws. Points of a Sobol design are spread more evenly, so its intervals
are wider than necessary and its tests reject less often than they could. In a Sobol design with MIN_SAMPLE
independent scrambles or more, intervals of differences are over these blocks instead. Tests still treat
points as independent. Each interval over points covers the truth of planted populations in at least 93 % of
sweeps (`python -m benchmarks.coverage`). docs/statistics.md lists the intervals and their reasons.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.stats.confirmed import Confirmed, confirmed_of
from orchestrator.stats.intervals import Estimate
from orchestrator.stats.measures import MEASURES, Measure, deltas, measures_of, share_estimate
from orchestrator.trials.outcomes import RULES
from orchestrator.trials.records import Result, by_cell_and_arm, by_point
from orchestrator.trials.trial import Trial
from trainables.base import WORST_PCT

ReferenceKind = Literal["confirmed", "sweep_minimum"]
#: Estimators for a trial that a rule stopped early. Both are biased in a known direction.
Stopped = Literal["as_worst", "as_last"]


@dataclass(frozen=True, slots=True)
class Best:
    """The ranked trial of lowest error.

    It is a single run, so it is unconfirmed until it is run again with fresh seeds.

    Attributes:
      trial: the trial.
      val_error_pct: error on the selection split. It is biased low, because it was selected for being low.
      test_error_pct: error on the final split after the last epoch; None if it was not measured.
    """

    trial: Trial
    val_error_pct: float
    test_error_pct: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The results of one arm in one cell, for trials of role `sweep` unless stated otherwise.

    Attributes:
      cell, arm: names of the two.
      num_trials, num_points: planned numbers.
      states: trials per state: an outcome, `running` or `missing`.
      other_states: the same for every other role.
      errors_pct: by point, the mean over the replicates with a result. Points without a result are absent.
        Empty if the distribution is refused.
      blocks: by point, the independent block of the design.
      open_point: the first point of which a run has not ended yet. None if all have ended.
      num_incomplete: points with results of some replicates only.
      diverged: share of diverged trials among those in the EDF. Its exact interval counts a point's
        replicates as one trial. None without a result.
      best: None until a ranked trial has ended.
      confirmed: None until every run of the confirmation has ended.
      reference_pct, reference_kind: the error from which Delta is measured, and its kind: the confirmed best,
        or the lowest error of a point that trained. All arms of a cell have the same kind. None if none
        trained.
      common_reference_pct: the lowest reference of the cell.
      median_error_pct: median over points.
      measures: every measure with its interval; empty without a result. A measure from the arm's own
        reference has an interval only if that is confirmed.
      refused: numbers that are withheld despite results, with the reason: measures, `delta_edf`,
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
    open_point: int | None
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
        """The reference with its interval over fresh seeds. None if it is not confirmed."""
        return self.confirmed.val if self.confirmed and self.reference_kind == "confirmed" else None

    @property
    def deltas_pp(self) -> NDArray[np.float64]:
        """Delta of every point in `errors_pct`, in the order of the points.

        A few are below 0 if the reference is confirmed, because single runs may be lucky.
        """
        return deltas(list(self.errors_pct.values()), self.reference_pct)


def in_cells(summaries: Sequence[Summary]) -> list[list[Summary]]:
    """Returns the summaries by cell, in their order."""
    cells: dict[str, list[Summary]] = {}
    for summary in summaries:
        cells.setdefault(summary.cell, []).append(summary)
    return list(cells.values())


def most_points(summaries: Sequence[Summary]) -> int:
    """Returns the number of points of the design, as far as any arm shows it; 1 without points."""
    return max((point + 1 for summary in summaries for point in summary.blocks), default=1)


def num_ended_points(arms: Iterable[Summary], num_points: int) -> int:
    """Returns how many of the first points have ended in all these arms: none of them is still to come."""
    return min([num_points, *(arm.open_point for arm in arms if arm.open_point is not None)])


def common_reference_of(cell: Sequence[Summary], num_points: int) -> float | None:
    """Returns the common reference of the first points: their lowest error, unless it is confirmed.

    So what is computed from the first points does not depend on later ones. None if nothing trained.

    Args:
      cell: all arms of a cell.
      num_points: the points count whose index is below.
    """
    if cell[0].reference_kind != "sweep_minimum":
        return cell[0].common_reference_pct
    errors = (error for arm in cell for point, error in arm.errors_pct.items() if point < num_points)
    return min(errors, default=cell[0].common_reference_pct)


def summarise(results: Iterable[Result], stopped: Stopped | None = None) -> list[Summary]:
    """Returns the summary of every arm in every cell, cells first, in the order of the plan.

    Args:
      results: all results of a plan, of all roles.
      stopped: estimator for trials that a rule stopped early. `as_worst` counts them as 100 % error,
        `as_last` with the error of their last epoch. Both are biased against the arm. If None, an arm with
        such trials has no distribution and no measures, and `refused` has the reason.
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
    """The results of one arm in one cell, before the cell's reference is known.

    Attributes:
      sweep: draws from the space.
      searched: trials of a search, which are candidates for the best and count for nothing else.
      other_states: trials of other roles per state.
      errors_pct: error of the draws, by point.
      num_counted: number of trials in `errors_pct`.
      trained: errors of the points with a ranked trial.
      num_incomplete: points with results of some replicates only.
      confirmed, refused: as in `Summary`.
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


#: Names in `refused` of the numbers that need a distribution.
_OF_DRAWS = (*MEASURES, "delta_edf", "median_error_pct", "diverged")

#: The reason why a search has no distribution.
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
    """Returns the error of a trial, estimated by `stopped` if a rule stopped it early."""
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
        open_point=min((r.trial.point for r in found.sweep if not r.record.settled), default=None),
        num_incomplete=found.num_incomplete,
        diverged=share_estimate(num_diverged / found.num_counted, len(errors)) if found.num_counted else None,
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
    """Returns the confirmed best of one arm in one cell, or the reason why there is none.

    The reason is empty if there are no results, because no confirmation was requested.

    Args:
      results: the arm's runs with fresh seeds.
      measured: returns the value of a run that becomes `test`, or None if the run has no such value.
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


def _ranked(result: Result) -> bool:
    return result.rule is not None and result.rule.ranked and result.error_pct is not None


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


def landmarks(results: Iterable[Result]) -> dict[str, Result]:
    """Returns the best, median and worst trial of the sweep among those in the EDF. Empty if there are none.

    For an even number, the median is the better of the two middle trials. Ties go to the earlier trial.
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
    """Returns the draws of one cell (role `sweep`) by arm, in the order of the plan."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.trial.cell_name == cell and result.trial.role == "sweep":
            groups.setdefault(result.trial.arm, []).append(result)
    return groups
