"""Robustness of arms to corruption and distribution shift, from the errors in the last row of each trial.

The setting of an arm, and the points of its confirmation, are chosen on the uncorrupted selection split. So
the errors reported here are independent of the choice.

Source: Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261, section 4.2. The paper's reference is
AlexNet. Here it is the first arm, so an mCE of 100 is as bad as that arm.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.analysis.summary import Summary, confirmed_with
from orchestrator.stats.confirmed import Confirmed, welch
from orchestrator.stats.corruption import (
    corruption_error,
    kinds_in,
    mean_corruption_error,
    relative_corruption_error,
)
from orchestrator.stats.intervals import Estimate
from orchestrator.trials.records import Result, by_cell_and_arm
from trainables.base import CLEAN, CORRUPTION, SHIFTED, WORST_PCT

#: Name of the error on the whole final split. It differs from names of shifted sets, which have a prefix.
FINAL = "final split"


def shift_errors_in(extra: Mapping[str, float]) -> dict[str, float]:
    """Returns the errors under corruption, under shift and on the clean images from a row's `extra`."""
    return {
        name: value
        for name, value in extra.items()
        if name == CLEAN or name.startswith((CORRUPTION, SHIFTED))
    }


# ---------------------------------------------------------------------------------------------------
# Summaries of a sweep


@dataclass(frozen=True, slots=True)
class ShiftSummary:
    """The robustness of one arm in one cell at the setting chosen on the selection split.

    Attributes:
      cell, arm: names of the two.
      kind: `best` is the run of lowest selection error in the sweep. `confirmed` are runs with fresh seeds,
        each seed at the point that ranks first over the other seeds.
      point, values: the setting; for a confirmation, that of the lowest mean.
      num_runs, num_diverged: runs of the setting. A diverged run counts as 100 everywhere.
      errors_pct: errors in percent, by name as in `Epoch.extra`, and `FINAL`; with intervals if confirmed.
      corrupted_pct: mean over the kinds of corruption; None if nothing was corrupted.
      added_pp: the error that corruption adds to `clean`. None also if a run diverged, where it is undefined.
      mce_pct, relative_mce_pct: relative to the first arm's summary of the same kind, which has 100. They
        have no interval. `refused` is the reason if there is none.
      differences_pp: `corrupted`, `added` and each shifted set minus those of the first arm, with Welch's
        interval, if both are confirmed.
    """

    cell: str
    arm: str
    kind: Literal["best", "confirmed"]
    point: int
    values: Mapping[str, Any]
    num_runs: int
    num_diverged: int
    errors_pct: Mapping[str, Estimate]
    corrupted_pct: Estimate | None
    added_pp: Estimate | None
    mce_pct: float | None = None
    relative_mce_pct: float | None = None
    refused: str = ""
    differences_pp: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def sets(self) -> list[str]:
        """The names of the shifted sets among the errors."""
        return [name.removeprefix(SHIFTED) for name in self.errors_pct if name.startswith(SHIFTED)]


#: A summary, and the confirmations of its numbers by name.
_Told = tuple[ShiftSummary, Mapping[str, Confirmed]]


def shift_summaries(results: Iterable[Result], summaries: Sequence[Summary]) -> list[ShiftSummary]:
    """Returns the best run and the confirmation of each arm evaluated under corruption or shift, by cell."""
    groups = by_cell_and_arm(results)
    found: list[ShiftSummary] = []
    arms: dict[str, str] = {}
    bases: dict[tuple[str, str], _Told] = {}
    for summary in summaries:
        first = arms.setdefault(summary.cell, summary.arm)
        mine = groups[summary.cell, summary.arm]
        for told in (_of_best(summary, mine), _of_confirmation(summary, mine)):
            if told is None:
                continue
            key = (summary.cell, told[0].kind)
            if summary.arm == first:
                bases[key] = told
            found.append(_beside(told, bases.get(key)))
    return found


def _errors(result: Result) -> dict[str, float]:
    """Returns all errors of a trial's last row by name. Empty if only the final split was evaluated."""
    last = result.record.last
    errors = shift_errors_in((last and last.extra) or {})
    if last is None or last.test_error_pct is None or not errors:
        return errors
    return {FINAL: last.test_error_pct} | errors


def _of_best(summary: Summary, results: Sequence[Result]) -> _Told | None:
    if summary.best is None:
        return None
    trial = summary.best.trial
    errors = next(_errors(result) for result in results if result.trial.id == trial.id)
    if not errors:
        return None
    under = corruption_error(errors)
    told = ShiftSummary(
        cell=summary.cell,
        arm=summary.arm,
        kind="best",
        point=trial.point,
        values=trial.values,
        num_runs=1,
        num_diverged=0,
        errors_pct={name: Estimate(error) for name, error in errors.items()},
        corrupted_pct=Estimate(under.mean_pct) if under else None,
        added_pp=Estimate(under.excess_pct) if under else None,
    )
    return told, {}


def _of_confirmation(summary: Summary, results: Sequence[Result]) -> _Told | None:
    fresh = [result for result in results if result.trial.role == "confirm"]
    names = list(dict.fromkeys(name for result in fresh for name in _errors(result)))
    if summary.confirmed is None or not names:
        return None

    def named(result: Result, name: str) -> float | None:
        return WORST_PCT if result.state == "diverged" else _errors(result).get(name)

    def corrupted(result: Result) -> float | None:
        if result.state == "diverged":
            return WORST_PCT
        under = corruption_error(_errors(result))
        return None if under is None else under.mean_pct

    def added(result: Result) -> float | None:
        under = None if result.state == "diverged" else corruption_error(_errors(result))
        return None if under is None else under.excess_pct

    measures: dict[str, Callable[[Result], float | None]] = {
        name: functools.partial(named, name=name) for name in names
    }
    if any(name.startswith(CORRUPTION) for name in names):
        measures |= {"corrupted": corrupted, "added": added}
    confirmed = {
        name: found
        for name, measure in measures.items()
        if (found := confirmed_with(fresh, measure)[0]) is not None
    }
    tests = {name: found.test for name, found in confirmed.items() if found.test is not None}
    point = summary.confirmed.point
    told = ShiftSummary(
        cell=summary.cell,
        arm=summary.arm,
        kind="confirmed",
        point=point,
        values=next(result.trial.values for result in fresh if result.trial.point == point),
        num_runs=summary.confirmed.num_seeds,
        num_diverged=summary.confirmed.num_diverged,
        errors_pct={name: tests[name] for name in names if name in tests},
        corrupted_pct=tests.get("corrupted"),
        added_pp=tests.get("added"),
    )
    return told, confirmed


def _beside(told: _Told, base: _Told | None) -> ShiftSummary:
    """Returns a summary with its comparison to the first arm's summary, if that exists."""
    (one, confirmed), differences = told, {}
    if base is None:
        return dataclasses.replace(one, refused="the first arm has no such run")
    other, base_confirmed = base
    own, reference = (
        {name: error.value for name, error in summary.errors_pct.items()} for summary in (one, other)
    )
    mce = relative = None
    refused = ""
    if kinds_in(own):
        try:
            mce = mean_corruption_error(own, reference)
            relative = relative_corruption_error(own, reference)
        except ValueError as error:
            refused = str(error)
    sets = {name: SHIFTED + name for name in one.sets}
    for name, key in ({"corrupted": "corrupted", "added": "added"} | sets).items():
        if one is not other and key in confirmed and key in base_confirmed:
            difference = welch(base_confirmed[key], confirmed[key], "test")
            if difference is not None:
                differences[name] = difference[0]
    return dataclasses.replace(
        one, mce_pct=mce, relative_mce_pct=relative, refused=refused, differences_pp=differences
    )
