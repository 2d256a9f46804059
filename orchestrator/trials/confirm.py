"""Confirmation: the best settings are run again with fresh seeds."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.trials.records import Result, by_cell_and_arm, by_point
from orchestrator.trials.trial import Plan, again
from trainables.config import Seeds


@dataclass(frozen=True)
class Confirmation:
    """The points that are run again with fresh seeds. They are chosen once, by the selection split.

    Attributes:
      points: indices of points, best first, by cell name and arm.
      seeds: number of runs of each point.
    """

    points: Mapping[tuple[str, str], tuple[int, ...]]
    seeds: int


def with_confirmation(plan: Plan, confirmation: Confirmation) -> Plan:
    """Returns the plan with extra runs of the chosen points, under seeds that no trial of the sweep had."""
    trials = []
    for trial in plan.trials:
        chosen = confirmation.points.get((trial.cell_name, trial.arm), ())
        if trial.is_tried and trial.replicate == 0 and trial.point in chosen:
            for replicate in range(confirmation.seeds):
                seeds = Seeds.derived(plan.sweep.design.seed, "point", trial.point, "confirm", replicate)
                trials.append(again(trial, plan.infos, "confirm", replicate, seeds))
    trials.sort(key=lambda trial: trial.replicate)
    return dataclasses.replace(plan, trials=plan.trials + tuple(trials))


def choose(results: Iterable[Result], top: int, seeds: int) -> Confirmation:
    """Chooses the `top` points of lowest selection error per cell and arm, to be run `seeds` times each.

    Replicates of a point are averaged first. The winner of a sweep is partly lucky, so its own error is too
    low. Only runs that had no part in the choice show by how much. Points that diverged or have no result are
    never chosen.
    """
    ranked = (r for r in results if r.trial.is_tried and r.rule is not None and r.rule.ranked)
    groups = by_cell_and_arm(result for result in ranked if result.error_pct is not None)
    return Confirmation(points={key: _best(group, top) for key, group in groups.items()}, seeds=seeds)


def _best(results: Iterable[Result], top: int) -> tuple[int, ...]:
    """Returns the points of lowest mean error, best first."""
    means = {}
    for point, replicates in by_point(results).items():
        errors = [error for result in replicates if (error := result.error_pct) is not None]
        means[point] = sum(errors) / len(errors)
    # Equal errors are common on small test sets. The earlier point wins, which makes the choice reproducible.
    return tuple(sorted(means, key=lambda point: (means[point], point))[:top])
