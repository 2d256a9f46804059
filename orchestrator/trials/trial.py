"""A trial, and the plan that holds all of them."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.sweep.config import Sweep, cell_name
from orchestrator.sweep.space import Cell
from orchestrator.trials.gang import Gang
from trainables.base import DataInfo
from trainables.config import DataConfig, Seeds, TrainConfig
from trainables.data.order import num_steps
from trainables.identity import identity
from trainables.models.base import Cost

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


def again(
    trial: Trial, infos: Mapping[DataConfig, DataInfo], role: Role, replicate: int, seeds: Seeds
) -> Trial:
    """A trial's settings under other seeds."""
    config = trial.config.model_copy(update={"seeds": seeds})
    new_id = identity_of(config, trial.gang, infos, trial.after)
    return dataclasses.replace(trial, id=new_id, role=role, replicate=replicate, config=config)


def identity_of(
    config: TrainConfig, gang: Gang, infos: Mapping[DataConfig, DataInfo], after: str = ""
) -> str:
    """The id of the trial that a run is, which starts from the trial `after` if from any."""
    # How many workers share a batch decides which images meet in batch normalisation and mixup.
    fingerprint = f"{infos[config.data].fingerprint} x{gang.workers}"
    return identity(config, fingerprint, after or None)


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
