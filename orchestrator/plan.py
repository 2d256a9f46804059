"""From a sweep to its trials: identities, order, gangs, and how many run at a time."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from orchestrator.gang import Gang
from orchestrator.sweep.config import Layers, Resources, Sweep, cell_name, draws_data, iterate
from orchestrator.sweep.constraints import DERIVED, FOLLOWS, MEMORY, Constraint, ConstraintError
from orchestrator.sweep.space import Cell
from trainables.base import DataInfo
from trainables.config import DataConfig, Seeds, TrainConfig, setting
from trainables.data.order import num_steps
from trainables.identity import identity
from trainables.models.base import Cost
from trainables.profiling.footprint import footprint

#: What a trial is for: the design itself; a run that others start from; a best setting run again with fresh
#: seeds; or a point of the design run again with one stream of randomness changed, to see how much that
#: stream alone moves the error. Trials of a `search` were chosen, or may be ended, for what others gave: they
#: say nothing of the space as a whole.
Role = Literal["sweep", "search", "first_stage", "confirm", "noise_init", "noise_order", "noise_augment"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run of a sweep.

    Attributes:
      id: a digest of what decides the result; the same settings have the same id anywhere.
      arm, cell, cell_name: what is compared, and under which settings.
      point: index into the design; the same point in every arm has the same quantiles and seeds.
      block: which independent part of the design the point belongs to; 0 where there is one only.
      replicate: which of the runs that differ in their seeds only; of a first stage, how many others lie
        between it and the trials of the sweep.
      values: what was drawn, by path.
      config: the run, whole.
      gang: what it runs on.
      role: what it is for; only `sweep` trials are draws from the space, and only they enter an EDF.
      after: id of the first stage whose final weights it starts from; empty where it starts from none.
    """

    id: str
    arm: str
    cell: Cell
    point: int
    replicate: int
    values: dict[str, Any]
    config: TrainConfig
    gang: Gang
    role: Role = "sweep"
    block: int = 0
    after: str = ""

    @property
    def cell_name(self) -> str:
        """The cell as people call it."""
        return cell_name(self.cell)

    @property
    def is_tried(self) -> bool:
        """Whether it is the run of a point, not a run of the same settings for another purpose."""
        return self.role in ("sweep", "search")

    @property
    def arm_and_stage(self) -> str:
        """The arm, and that it is a first stage where it is one: their costs are not to be mixed."""
        return f"{self.arm} (first stage)" if self.role == "first_stage" else self.arm

    @property
    def label(self) -> str:
        """The trial as people call it: arm, cell, point, and what tells it from the first run there."""
        role = "" if self.is_tried else f" {self.role.replace('_', ' ')}"
        replicate = f" r{self.replicate}" if self.replicate or role else ""
        return f"{self.arm} {self.cell_name} p{self.point}{role}{replicate}"


@dataclass(frozen=True, slots=True)
class TrialCost:
    """What a trial amounts to before it has run.

    Attributes:
      model: of one forward pass of one image.
      epochs, steps: length of the run.
      train_flops: multiply-adds of the whole run: a training step costs three forward passes.
    """

    model: Cost
    epochs: int
    steps: int
    train_flops: int


@dataclass(frozen=True, slots=True)
class Removal:
    """How much of one arm's window a constraint takes away.

    Attributes:
      cell_name, arm: whose window.
      constraint: as in the file.
      removed: points of the design that break it in this arm.
      drawn: points of the design.
    """

    cell_name: str
    arm: str
    constraint: str
    removed: int
    drawn: int


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A point that a sampler chose for one arm in one cell.

    Attributes:
      cell: its name.
      arm: as in the file.
      point: its index, after those of the design.
      by: which sampler.
      quantiles: in [0, 1], by path, as a design has them.
    """

    cell: str
    arm: str
    point: int
    by: str
    quantiles: Mapping[str, float]


@dataclass(frozen=True)
class Plan:
    """Every trial of a sweep, in the order they are to run.

    Attributes:
      sweep: what was asked.
      trials: what is to run.
      infos: of every data set that is needed.
      removals: per cell, arm and constraint. A point that one arm breaks is missing in all arms of the cell.
      suggestions: of a search, what its sampler has chosen so far.
    """

    sweep: Sweep
    trials: tuple[Trial, ...]
    infos: Mapping[DataConfig, DataInfo]
    removals: tuple[Removal, ...] = ()
    suggestions: tuple[Suggestion, ...] = ()

    def cost(self, trial: Trial) -> TrialCost:
        """From closed forms; nothing is built."""
        info, config = self.infos[trial.config.data], trial.config
        cost = config.model.cost(info.num_classes)
        steps = config.schedule.epochs * num_steps(info.sizes["train"], config.batch_size)
        images = config.schedule.epochs * info.sizes["train"]
        return TrialCost(cost, config.schedule.epochs, steps, 3 * cost.flops * images)

    def remaining(self, done: Iterable[str]) -> list[Trial]:
        """Trials whose ids are not among those that are done."""
        ended = set(done)
        return [trial for trial in self.trials if trial.id not in ended]


def data_configs(sweep: Sweep) -> dict[DataConfig, str]:
    """The data sets a sweep needs, each with the key of the file that named it."""
    found: dict[DataConfig, str] = {}
    for arm, cell in iterate(sweep):
        domains = sweep.windows(arm, cell)
        # Data are drawn from lists only, so these are all that can be drawn.
        tried = [
            [(path, value) for value in (domain.extremes() if draws_data(path) else domain.extremes()[:1])]
            for path, domain in domains.items()
        ]
        for values in itertools.product(*tried):
            config, _ = sweep.settings(arm, cell, sweep.existing(arm, cell, dict(values)))
            found.setdefault(config.data, sweep.source_of("data", arm, cell))
            for depth, run in enumerate(_first_runs(config), 1):
                found.setdefault(run.data, sweep.source_of("start.run." * depth + "data", arm, cell))
    return found


def _first_runs(config: TrainConfig) -> Iterator[TrainConfig]:
    """The run that one starts from, the run which that one starts from, and so on."""
    while config.start is not None:
        config = config.start.run
        yield config


def make_plan(
    sweep: Sweep, infos: Mapping[DataConfig, DataInfo], suggestions: Sequence[Suggestion] | None = None
) -> Plan:
    """Draws the points and makes the trials.

    Points come first in the order, then cells, then arms: a sweep cut off anywhere has its arms paired. A
    point that breaks a constraint in one arm is left out in every arm of the cell, so that they stay paired;
    no other is drawn for it, so that a point is the same whatever became of those before it. The runs that
    trials start from are trials, too, before the first that does.

    Args:
      sweep: what is asked.
      infos: of its data.
      suggestions: of a search, what its sampler has chosen so far. None stands for a search that has not
        begun: the design takes the place of what the sampler would choose.

    Raises:
      ValueError: a drawn combination of values is no valid run, though each value alone is.
      ConstraintError: a constraint compares what cannot be compared, or leaves a cell without points.
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
            drafts = [_Draft.of(sweep, arm, cell, at) for arm in sweep.arms]
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
        draft = _Draft.of(sweep, chosen.arm, cells[chosen.cell], chosen.quantiles)
        if draft.fault is not None:
            raise draft.fault
        drawn.append((draft.trial(cells[chosen.cell], chosen.point), None))
    stages = _FirstStages([trial for trial, _ in drawn], infos)
    trials = stages.trials()
    for bare, rank_or_none in drawn:
        first = dataclasses.replace(bare, after=stages.before(bare.config))
        for role, replicate, seeds in _runs_of_point(sweep, first.point, rank_or_none, first.config):
            trials.append(_again(first, infos, role, replicate, seeds))
    # A stable sort: replicates of a point stay together, cells and arms in the order of the file.
    trials.sort(key=_order)
    removals = [Removal(*key, count, num_points) for key, count in removed.items()]
    return Plan(sweep, tuple(trials), infos, tuple(removals), tuple(suggestions or ()))


def can_run(
    sweep: Sweep,
    infos: Mapping[DataConfig, DataInfo],
    arm: str,
    cell: Cell,
    quantiles: Mapping[str, float],
) -> bool:
    """Whether the settings at these quantiles make a run that fulfils all constraints.

    Raises:
      ConstraintError: a constraint compares what cannot be compared.
    """
    draft = _Draft.of(sweep, arm, cell, quantiles)
    return draft.fault is None and not draft.broken(sweep.constraints(), infos)


def _order(trial: Trial) -> tuple[int, int, int]:
    """What is started from comes before what starts from it."""
    if trial.role == "first_stage":
        return trial.point, -1, -trial.replicate
    return trial.point, int(not trial.is_tried), trial.replicate


class _FirstStages:
    """The runs that trials start from: each content once, whichever points, arms and cells start from it."""

    def __init__(self, trials: Sequence[Trial], infos: Mapping[DataConfig, DataInfo]) -> None:
        """
        Args:
          trials: of the sweep, without ids.
          infos: of their data and of those of the runs they start from.
        """
        self._trials, self._infos = trials, infos
        #: By content, whatever it runs on: the largest gang of those that start from it.
        self._gangs: dict[str, Gang] = {}
        self._contents: dict[TrainConfig, str] = {}
        for trial in trials:
            for run in _first_runs(trial.config):
                content = self._content(run)
                self._gangs[content] = max(
                    self._gangs.get(content, trial.gang), trial.gang, key=lambda gang: gang.size
                )

    def _content(self, run: TrainConfig) -> str:
        if run not in self._contents:
            first = self._content(run.start.run) if run.start is not None else None
            self._contents[run] = identity(run, self._infos[run.data].fingerprint, first)
        return self._contents[run]

    def before(self, config: TrainConfig) -> str:
        """The id of the trial that a run starts from; empty where it starts from none."""
        return self._id(config.start.run) if config.start is not None else ""

    def _id(self, run: TrainConfig) -> str:
        return _identity(run, self._gangs[self._content(run)], self._infos, self.before(run))

    def trials(self) -> list[Trial]:
        """A trial for every one of them in each cell and arm, at the first point there that starts from it.

        Like those of arms that coincide, they have one id and are trained once.
        """
        found: dict[tuple[str, str, str], Trial] = {}
        for trial in self._trials:
            for depth, run in enumerate(_first_runs(trial.config)):
                key = self._id(run)
                if (trial.cell_name, trial.arm, key) not in found:
                    found[trial.cell_name, trial.arm, key] = dataclasses.replace(
                        trial,
                        id=key,
                        replicate=depth,
                        values={path: v for path, v in trial.values.items() if path.startswith("start.")},
                        config=run,
                        gang=self._gangs[self._content(run)],
                        role="first_stage",
                        after=self.before(run),
                    )
        return list(found.values())


@dataclass(frozen=True)
class _Draft:
    """One point in one arm and cell, which constraints may yet remove."""

    arm: str
    values: dict[str, Any]
    layers: Layers
    sweep: Sweep
    run: tuple[TrainConfig, Resources] | None
    fault: ValidationError | None

    @classmethod
    def of(cls, sweep: Sweep, arm: str, cell: Cell, quantiles: Mapping[str, float]) -> "_Draft":
        values = sweep.draw(arm, cell, quantiles)
        layers = sweep.layers(arm, cell, values)
        try:
            return cls(arm, values, layers, sweep, sweep.settings(arm, cell, values), None)
        except ValidationError as error:
            return cls(arm, values, layers, sweep, None, error)

    @functools.cached_property
    def tree(self) -> dict[str, Any]:
        return self.sweep.merged(self.layers)[0]

    def broken(self, rules: Iterable[Constraint], infos: Mapping[DataConfig, DataInfo]) -> list[Constraint]:
        """Those of the constraints that it does not fulfil."""
        return [rule for rule in rules if not self.fulfils(rule, infos)]

    def fulfils(self, rule: Constraint, infos: Mapping[DataConfig, DataInfo]) -> bool:
        def lookup(name: str) -> Any:
            if name not in FOLLOWS:
                return setting(self.tree, name)
            if self.run is None:
                raise KeyError(name)
            config, resources = self.run
            info = infos[config.data]
            if name == MEMORY:
                return _memory_gib(config, info, resources)
            return DERIVED[name](config.model.cost(info.num_classes))

        return rule.holds(lookup)

    def trial(self, cell: Cell, point: int) -> Trial:
        assert self.run is not None, "a draft without a run is raised or removed"
        config, resources = self.run
        config = _with_first_seeds(config, self.sweep.design.seed)
        gang = Gang(resources.workers, resources.cpus_per_worker, resources.gpus_per_worker)
        block = self.sweep.design.block(point)
        return Trial("", self.arm, cell, point, 0, self.values, config, gang, block=block)


def _memory_gib(config: TrainConfig, info: DataInfo, resources: Resources) -> float:
    """Of one worker, as on a GPU unless the file gives trials none: points must not depend on the machine."""
    on_gpu = resources.gpus_per_worker != 0
    num_images = sum(info.sizes.values())
    found = footprint(config, info.num_classes, info.sizes["train"], num_images, resources.workers, on_gpu)
    return found.peak / 2**30


def _with_first_seeds(config: TrainConfig, seed: int) -> TrainConfig:
    """A run whose first stages have their seeds: those of the file, else the same for all of a sweep.

    They do not depend on the point, so that all points of an arm start from one run.
    """
    if config.start is None:
        return config
    run = _with_first_seeds(config.start.run, seed)
    if "seeds" not in run.model_fields_set:
        run = run.model_copy(update={"seeds": Seeds.derived(seed, "first stage")})
    return config.model_copy(update={"start": config.start.model_copy(update={"run": run})})


def _runs_of_point(
    sweep: Sweep, point: int, rank: int | None, config: TrainConfig
) -> Iterator[tuple[Role, int, Seeds]]:
    """The seeds of every run of a point, the same in every arm.

    `rank` counts the points of the design that were kept; a sampler's have none.
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


def _again(
    trial: Trial, infos: Mapping[DataConfig, DataInfo], role: Role, replicate: int, seeds: Seeds
) -> Trial:
    """A trial's settings under other seeds."""
    config = trial.config.model_copy(update={"seeds": seeds})
    new_id = _identity(config, trial.gang, infos, trial.after)
    return dataclasses.replace(trial, id=new_id, role=role, replicate=replicate, config=config)


def _identity(config: TrainConfig, gang: Gang, infos: Mapping[DataConfig, DataInfo], after: str = "") -> str:
    """The id of the trial that a run is, which starts from the trial `after` if from any."""
    # How many workers share a batch decides which images meet in batch normalisation and mixup.
    fingerprint = f"{infos[config.data].fingerprint} x{gang.workers}"
    return identity(config, fingerprint, after or None)


@dataclass(frozen=True)
class Confirmation:
    """Which points are run again with fresh seeds: chosen once, from the selection split.

    Attributes:
      points: per cell name and arm, best first.
      seeds: runs of each.
    """

    points: Mapping[tuple[str, str], tuple[int, ...]]
    seeds: int


def with_confirmation(plan: Plan, confirmation: Confirmation) -> Plan:
    """The plan with its chosen points run again, with seeds that no trial of the sweep had."""
    trials = []
    for trial in plan.trials:
        chosen = confirmation.points.get((trial.cell_name, trial.arm), ())
        if trial.is_tried and trial.replicate == 0 and trial.point in chosen:
            for replicate in range(confirmation.seeds):
                seeds = Seeds.derived(plan.sweep.design.seed, "point", trial.point, "confirm", replicate)
                trials.append(_again(trial, plan.infos, "confirm", replicate, seeds))
    trials.sort(key=lambda trial: trial.replicate)
    return dataclasses.replace(plan, trials=plan.trials + tuple(trials))


def unique_trials(trials: Iterable[Trial]) -> list[Trial]:
    """One trial per id: arms that coincide in a cell need training once."""
    first: dict[str, Trial] = {}
    for trial in trials:
        first.setdefault(trial.id, trial)
    return list(first.values())


def error_term(trials: Iterable[Trial]) -> str:
    """The error that trials are judged by, in words; all of them where trials have several tasks."""
    return " or ".join(dict.fromkeys(trial.config.data.task.objective.term for trial in trials))


def error_label(trials: Iterable[Trial]) -> str:
    """The same for axes and table heads."""
    return " or ".join(dict.fromkeys(trial.config.data.task.objective.label for trial in trials))
