"""Makes the plan of a sweep: draws the points, and gives each trial its id, order and gang."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.sweep.config import Sweep, cell_name, draws_data, iterate
from orchestrator.sweep.constraints import ConstraintError
from orchestrator.sweep.space import Cell
from orchestrator.trials.draws import Draft
from orchestrator.trials.stages import FirstStages, first_runs
from orchestrator.trials.trial import Plan, Removal, Role, Suggestion, Trial, again
from trainables.base import DataInfo
from trainables.config import DataConfig, Seeds, TrainConfig


def data_configs(sweep: Sweep) -> dict[DataConfig, str]:
    """Returns the data sets that a sweep needs, each with the key of the file that names it."""
    found: dict[DataConfig, str] = {}
    for arm, cell in iterate(sweep):
        domains = sweep.windows(arm, cell)
        # Data are drawn from lists only, so `extremes` gives every value that can be drawn.
        tried = [
            [(path, value) for value in (domain.extremes() if draws_data(path) else domain.extremes()[:1])]
            for path, domain in domains.items()
        ]
        for values in itertools.product(*tried):
            config, _ = sweep.settings(arm, cell, sweep.existing(arm, cell, dict(values)))
            found.setdefault(config.data, sweep.source_of("data", arm, cell))
            for depth, run in enumerate(first_runs(config), 1):
                found.setdefault(run.data, sweep.source_of("start.run." * depth + "data", arm, cell))
    return found


def make_plan(
    sweep: Sweep, infos: Mapping[DataConfig, DataInfo], suggestions: Sequence[Suggestion] | None = None
) -> Plan:
    """Draws the points and makes the trials.

    Trials are ordered by point, then cell, then arm. So the arms stay paired if a sweep is cut off. A point
    that breaks a constraint in one arm is left out in every arm of the cell, so that the arms stay paired. No
    other point replaces it, so that a point does not depend on those before it. First stages are trials, too.
    Each comes before the trials that start from it.

    Args:
      sweep: the sweep to plan.
      infos: sizes and classes of its data sets.
      suggestions: points that the sampler of a search has chosen so far. None means a search that has not
        begun: the design then supplies the points that the sampler would choose.

    Raises:
      ValueError: a drawn combination of values is no valid run, though each value alone is.
      ConstraintError: a constraint cannot be evaluated, or leaves a cell without points.
    """
    levels = sweep.levels()
    design = sweep.design if suggestions is None else sweep.drawn
    quantiles = design.quantiles(levels)
    num_points = design.num_points(levels)
    constraints = sweep.constraints()
    removed = {
        (cell_name(cell), arm, rule.text): 0
        for cell in sweep.all_cells()
        for arm in sweep.arms
        for rule in constraints
    }
    kept: dict[Cell, int] = {}
    drawn: list[tuple[Trial, int | None]] = []
    for point in range(num_points):
        at = {path: float(column[point]) for path, column in quantiles.items()}
        for cell in sweep.all_cells():
            drafts = [Draft.of(sweep, arm, cell, at) for arm in sweep.arms]
            broken = [draft.broken(constraints, infos) for draft in drafts]
            for draft, rules in zip(drafts, broken, strict=True):
                for rule in rules:
                    removed[cell_name(cell), draft.arm, rule.text] += 1
                if draft.fault is not None and not any(broken):
                    raise draft.fault
            if any(broken):
                continue
            rank = kept[cell] = kept.get(cell, -1) + 1
            drawn += [(draft.trial(cell, point), rank) for draft in drafts]
    if empty := [cell_name(cell) for cell in sweep.all_cells() if cell not in kept]:
        raise ConstraintError(f"leaves none of {num_points} points in cell {', '.join(empty)}")
    cells = {cell_name(cell): cell for cell in sweep.all_cells()}
    for chosen in suggestions or ():
        draft = Draft.of(sweep, chosen.arm, cells[chosen.cell], chosen.quantiles)
        if draft.fault is not None:
            raise draft.fault
        drawn.append((draft.trial(cells[chosen.cell], chosen.point), None))
    stages = FirstStages([trial for trial, _ in drawn], infos)
    trials = stages.trials()
    for bare, rank_or_none in drawn:
        first = dataclasses.replace(bare, after=stages.before(bare.config))
        for role, replicate, seeds in _runs_of_point(sweep, first.point, rank_or_none, first.config):
            trials.append(again(first, infos, role, replicate, seeds))
    # The sort is stable: replicates of a point stay together, with cells and arms in the order of the file.
    trials.sort(key=_order)
    removals = [Removal(*key, count, num_points) for key, count in removed.items()]
    return Plan(sweep, tuple(trials), infos, tuple(removals), tuple(suggestions or ()))


def _order(trial: Trial) -> tuple[int, int, int]:
    """Sort key: first stages come before the trials that start from them."""
    if trial.role == "first_stage":
        return trial.point, -1, -trial.replicate
    return trial.point, int(not trial.is_tried), trial.replicate


def _runs_of_point(
    sweep: Sweep, point: int, rank: int | None, config: TrainConfig
) -> Iterator[tuple[Role, int, Seeds]]:
    """Yields role, replicate and seeds of every run of a point, the same in every arm.

    `rank` counts the points of the design that were kept. It is None for points that a sampler chose.
    """
    role: Role = "sweep"
    if sweep.search is not None and (rank is None or sweep.search.halving or point >= sweep.search.round):
        role = "search"
    if "seeds" in config.model_fields_set:
        first = config.seeds
    else:
        first = Seeds.derived(sweep.design.seed, "point", point, "replicate", 0)
    yield role, 0, first
    for replicate in range(1, sweep.replicates):
        yield role, replicate, Seeds.derived(sweep.design.seed, "point", point, "replicate", replicate)
    if sweep.noise is not None and rank is not None and rank < sweep.noise.points:
        for replicate in range(1, sweep.noise.seeds):
            others = Seeds.derived(sweep.design.seed, "point", point, "noise", replicate)
            yield "noise_init", replicate, first.model_copy(update={"init": others.init})
            yield "noise_order", replicate, first.model_copy(update={"order": others.order})
            yield "noise_augment", replicate, first.model_copy(update={"augment": others.augment})
