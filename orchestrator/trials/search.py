"""Search for the best setting of each arm, in rounds of points chosen from earlier results.

A round is chosen when all trials of the previous round have ended. So the choice follows only from the sweep,
its seed and the results, whichever trial ended first. A search that was killed continues as it would have,
and another machine makes the same choices. Every arm gets the same number of points in every cell.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from orchestrator.sweep.config import Sweep, cell_name, iterate
from orchestrator.sweep.space import Cell, Domain
from orchestrator.trials.draws import can_run
from orchestrator.trials.records import Result, by_cell_and_arm, by_point
from orchestrator.trials.trial import Plan, Suggestion
from trainables.base import derive_seed


@dataclass(frozen=True, slots=True)
class Tried:
    """A point that has ended, as input to a sampler.

    Attributes:
      quantiles: in [0, 1], by path.
      state: `ended`, with its error; `stopped` by a rule, with its error at that time; `failed`, without one.
      error_pct: error on the selection split, the mean over replicates. A diverged run counts as 100.
      epoch: the epoch after which the error was measured.
    """

    quantiles: Mapping[str, float]
    state: Literal["ended", "stopped", "failed"]
    error_pct: float | None
    epoch: int


class Propose(Protocol):
    """Chooses the next points of one arm in one cell, the same ones for the same arguments."""

    def __call__(
        self,
        sampler: str,
        domains: Mapping[str, Domain],
        tried: list[Tried],
        count: int,
        seed: int,
        fits: Callable[[Mapping[str, float]], bool],
    ) -> list[dict[str, float]]:
        """Returns up to `count` points that fit, as quantiles by path. Fewer if hardly any fit."""


def num_rounds(sweep: Sweep) -> int:
    """Returns the number of rounds of a search. 1 for any other sweep."""
    return _rounds_of(sweep, sweep.design.num_points(sweep.levels()))


def rounds_given(plan: Plan) -> int:
    """Returns the number of rounds that a plan has points for."""
    return _rounds_of(plan.sweep, _num_given(plan))


def _rounds_of(sweep: Sweep, points: int) -> int:
    return 1 if sweep.search is None or sweep.sampler is None else -(-points // sweep.search.round)


def _num_given(plan: Plan) -> int:
    """Returns the number of points per arm and cell that have been drawn or chosen."""
    drawn = plan.sweep.drawn.num_points(plan.sweep.levels())
    return max((suggestion.point + 1 for suggestion in plan.suggestions), default=drawn)


def next_round(plan: Plan, results: Iterable[Result], propose: Propose) -> tuple[Suggestion, ...]:
    """Returns the next points of a search. Empty if it has had all its points, or a trial has not ended.

    Args:
      plan: plan of the rounds so far.
      results: results of all its trials.
      propose: calls the sampler.
    """
    sweep, search = plan.sweep, plan.sweep.search
    if search is None or sweep.sampler is None:
        return ()
    runs = [result for result in results if result.trial.is_tried]
    if not all(result.record.settled for result in runs):
        return ()
    groups = by_cell_and_arm(runs)
    levels = sweep.levels()
    at = _quantiles(plan)
    given = _num_given(plan)
    count = min(search.round, sweep.design.num_points(levels) - given)
    if count <= 0:
        return ()
    chosen = []
    for arm, cell in iterate(sweep):
        name = cell_name(cell)
        domains = {path: domain for path, domain in sweep.windows(arm, cell).items() if path in levels}
        tried = [
            _tried(at(name, arm, point), replicates)
            for point, replicates in sorted(by_point(groups.get((name, arm), ())).items())
        ]

        def fits(quantiles: Mapping[str, float], arm: str = arm, cell: Cell = cell) -> bool:
            return can_run(sweep, plan.infos, arm, cell, _filled(quantiles, levels))

        seed = derive_seed(sweep.design.seed, "search", name, arm, given)
        found = propose(search.sampler, domains, tried, count, seed, fits)
        chosen += [
            Suggestion(name, arm, given + index, search.sampler, _filled(quantiles, levels))
            for index, quantiles in enumerate(found)
        ]
    return tuple(chosen)


def _quantiles(plan: Plan) -> Callable[[str, str, int], Mapping[str, float]]:
    """Returns a function from cell, arm and point to the point's quantiles."""
    drawn = plan.sweep.drawn.quantiles(plan.sweep.levels())
    chosen = {(s.cell, s.arm, s.point): s.quantiles for s in plan.suggestions}

    def at(cell: str, arm: str, point: int) -> Mapping[str, float]:
        found = chosen.get((cell, arm, point))
        return found or {path: float(column[point]) for path, column in drawn.items()}

    return at


def _filled(quantiles: Mapping[str, float], levels: Iterable[str]) -> dict[str, float]:
    """Fills in 0.5 for parameters that this arm does not vary. Nothing reads these values."""
    return {path: quantiles.get(path, 0.5) for path in levels}


def _tried(quantiles: Mapping[str, float], replicates: list[Result]) -> Tried:
    stopped = next((result for result in replicates if result.censored), None)
    if stopped is not None and (last := stopped.record.last) is not None:
        return Tried(quantiles, "stopped", last.val_error_pct, last.epoch)
    errors = [error for result in replicates if (error := result.error_pct) is not None]
    if not errors:
        return Tried(quantiles, "failed", None, 0)
    epoch = max((row.epoch for result in replicates if (row := result.record.last)), default=1)
    return Tried(quantiles, "ended", sum(errors) / len(errors), epoch)


#: The best point is at the edge if it is within this share of either end of the window. This is half of
#: `window_audit.OPTIMUM_EDGE_SHARE`, because a sampler gathers its points around the best. So its best point
#: is closer to the optimum than that of a design.
BEST_EDGE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Searched:
    """Results of a search for one arm in one cell.

    Attributes:
      num_points, num_stopped, num_diverged: points that were tried; trials ended early by the rule; trials
        that diverged.
      num_epochs: epochs trained in total.
      first_round_pct, best_pct: lowest error on the selection split in the first round, and in all rounds.
      best_point: the point with `best_pct`.
      edges: parameters in which that point is within BEST_EDGE_SHARE of an end of the window.
    """

    cell: str
    arm: str
    num_points: int
    num_stopped: int
    num_diverged: int
    num_epochs: int
    first_round_pct: float | None
    best_pct: float | None
    best_point: int | None
    edges: tuple[str, ...]


def searched(plan: Plan, results: Iterable[Result]) -> list[Searched]:
    """Returns the results of each arm in each cell, in the order of the plan. Empty without a search."""
    if plan.sweep.search is None:
        return []
    groups = by_cell_and_arm(result for result in results if result.trial.is_tried)
    at = _quantiles(plan)
    found = []
    for (cell, arm), mine in groups.items():
        ranked = [
            (error, result.trial.point)
            for result in mine
            if result.rule is not None and result.rule.ranked and (error := result.error_pct) is not None
        ]
        best_pct, best_point = min(ranked, default=(None, None))
        edges = []
        if best_point is not None:
            windows = plan.sweep.windows(arm, mine[0].trial.cell)
            where = at(cell, arm, best_point)
            edges = [
                path
                for path in windows
                if path in where
                and windows[path].num_levels is None
                and not BEST_EDGE_SHARE <= where[path] <= 1 - BEST_EDGE_SHARE
            ]
        first = [error for error, point in ranked if point < plan.sweep.search.round]
        found.append(
            Searched(
                cell=cell,
                arm=arm,
                num_points=len({result.trial.point for result in mine}),
                num_stopped=sum(result.censored for result in mine),
                num_diverged=sum(result.state == "diverged" for result in mine),
                num_epochs=sum(len(result.record.rows) for result in mine),
                first_round_pct=min(first, default=None),
                best_pct=best_pct,
                best_point=best_point,
                edges=tuple(edges),
            )
        )
    return found
