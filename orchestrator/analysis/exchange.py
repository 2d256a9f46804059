"""The worth of an arm's trials in trials of the first arm, at equal trials, multiply-adds and hours.

The statistics are in `stats.exchange`. A trial here is a point of the design, as in tuning curves: with
replicates it is the mean of several runs, and as many for either arm. Costs are means over the draws of this
sweep, and are treated as known.

Rates are of the latest declared look (`stats.looks`) and have its level, so their bounds hold however often a
sweep is extended.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.analysis.summary import Summary, most_points, num_ended_points
from orchestrator.stats.exchange import ExchangeRate, chance_of_best, exchange_rate, largest_chance_budget
from orchestrator.stats.intervals import CONFIDENCE, Estimate
from orchestrator.stats.looks import Looks
from orchestrator.trials.records import Result, by_cell_and_arm
from orchestrator.trials.trial import Trial, TrialCost

#: What is spent on tuning. A FLOP here is a multiply-add, as in `TrialCost`.
Unit = Literal["trials", "flops", "hours"]
UNITS: tuple[Unit, ...] = ("trials", "flops", "hours")
#: Budgets for which the chance of the better best is computed, as far as the points support them.
BUDGETS = (1, 2, 4, 8)


#: A bound below this is not quoted: the direction is then not settled.
LEAST_QUOTED = 1.1


@dataclass(frozen=True, slots=True)
class Quote:
    """The statement that is quoted: one trial (FLOP, hour) of `better` is worth at least so many of `worse`.

    Attributes:
      better, worse: names of the arms.
      unit: what is counted.
      at_least: above 1; right with 95 %, whichever arm and unit the data choose.
      throughout: the same bound for all budgets from one trial to `upto` trials; None if it is not above 1.
    """

    better: str
    worse: str
    unit: Unit
    at_least: float
    throughout: float | None
    upto: int


@dataclass(frozen=True, slots=True)
class ArmExchange:
    """An arm against the first arm of its cell.

    Attributes:
      cell, arm, base_arm: names.
      look: the number of points of the look that the rates are of.
      rate: trials of the arm in trials of the base.
      reverse: trials of the base in trials of the arm, at the levels that the base's best of k reaches.
      chances: by budget k, the chance that the best of k trials of the arm is lower than that of the base,
        from the points that both have.
      cost_ratios: by unit, the mean cost of a base trial over that of one of the arm; 1 for trials. A unit
        without a known cost is absent.
    """

    cell: str
    arm: str
    base_arm: str
    look: int
    rate: ExchangeRate
    reverse: ExchangeRate
    chances: dict[int, Estimate]
    cost_ratios: dict[Unit, float]

    def quote(self, unit: Unit = "trials") -> Quote | None:
        """Returns the statement that is quoted. None if neither arm's trials are found to be worth more."""
        ratio = self.cost_ratios.get(unit)
        if ratio is None:
            return None
        for one, better, worse, times in (
            (self.rate, self.arm, self.base_arm, ratio),
            (self.reverse, self.base_arm, self.arm, 1 / ratio),
        ):
            if one.at_least is not None and one.at_least * times > 1:
                all_k = (one.at_least_throughout or 0.0) * times
                throughout = all_k if all_k > 1 and one.largest_budget > 1 else None
                return Quote(better, worse, unit, one.at_least * times, throughout, one.largest_budget)
        return None


def exchanges(
    results: Iterable[Result],
    summaries: Sequence[Summary],
    cost: Callable[[Trial], TrialCost],
    looks: Looks | None = None,
    num_points: int | None = None,
) -> list[ArmExchange]:
    """Returns every arm against the first arm of its cell, where both have reached a look.

    Args:
      results: all results of a plan.
      summaries: those of `summarise` for the same results, or for some of their cells.
      cost: cost of a trial.
      looks: as declared; one look at the points that there are if left out.
      num_points: of the design so far; the most that any arm has if left out.
    """
    num_points = num_points or most_points(summaries)
    looks = looks or Looks.once(num_points)
    groups = by_cell_and_arm(results)
    first: dict[str, Summary] = {}
    found = []
    for arm in summaries:
        base = first.setdefault(arm.cell, arm)
        if base is arm or not base.errors_pct or not arm.errors_pct:
            continue
        if not (reached := looks.reached(num_ended_points((arm, base), num_points))):
            continue
        look, confidence = reached[-1], 1 - looks.level_at(reached[-1], 1 - CONFIDENCE)
        own, other = (
            [error for point, error in side.errors_pct.items() if point < look] for side in (arm, base)
        )
        if not own or not other:
            continue
        shared = [point for point in arm.errors_pct if point in base.errors_pct and point < look]
        paired = [[side.errors_pct[point] for point in shared] for side in (arm, base)]
        chances = {
            k: chance
            for k in BUDGETS
            if k <= largest_chance_budget(len(shared)) and (chance := chance_of_best(paired[0], paired[1], k))
        }
        mine, theirs = (_mean_costs(groups[side.cell, side.arm], cost) for side in (arm, base))
        ratios: dict[Unit, float] = {"trials": 1.0}
        ratios |= {unit: theirs[unit] / mine[unit] for unit in UNITS if unit in mine and unit in theirs}
        found.append(
            ArmExchange(
                cell=arm.cell,
                arm=arm.arm,
                base_arm=base.arm,
                look=look,
                rate=exchange_rate(own, other, confidence),
                reverse=exchange_rate(other, own, confidence),
                chances=chances,
                cost_ratios=ratios,
            )
        )
    return found


def _mean_costs(results: Sequence[Result], cost: Callable[[Trial], TrialCost]) -> dict[Unit, float]:
    """Returns the mean multiply-adds and hours of the draws that count. A unit without any is absent."""
    draws = [one for one in results if one.trial.role == "sweep" and one.error_pct is not None]
    if not draws:
        return {}
    known: dict[Unit, float] = {
        "flops": float(
            np.mean(
                [len(one.record.rows) * (own := cost(one.trial)).train_flops / own.epochs for one in draws]
            )
        ),
        "hours": float(np.mean([one.record.busy_seconds for one in draws])) / 3600,
    }
    return {unit: value for unit, value in known.items() if value > 0}
