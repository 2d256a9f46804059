"""Trials, and the plan that holds them."""

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

#: The purpose of a trial: a run of the design; a first stage, which others start from; a best setting run
#: again with fresh seeds; or a point of the design run again with one stream of randomness changed, to
#: measure how much that stream alone moves the error. Trials of role `search` were chosen or may be ended
#: because of other results, so they do not describe the space as a whole.
Role = Literal["sweep", "search", "first_stage", "confirm", "noise_init", "noise_order", "noise_augment"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run of a sweep.

    Attributes:
      id: digest of everything that decides the result. The same settings have the same id anywhere.
      arm, cell, cell_name: the compared arm, and the settings under which it is compared.
      point: index into the design. The same point in every arm has the same quantiles and seeds.
      block: index of the point's independent block of the design. 0 if there is only one.
      replicate: index among the runs that differ only in their seeds. For a first stage, the number of other
        first stages between it and the trials of the sweep.
      values: drawn values by path.
      config: all settings of the run.
      gang: resources that it runs on.
      role: its purpose. Only `sweep` trials are draws from the space, and only they enter an EDF.
      after: id of the first stage whose final weights it starts from. "" if there is none.
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
        """The name of the cell."""
        return cell_name(self.cell)

    @property
    def is_tried(self) -> bool:
        """Returns whether the trial is the run of a point, rather than an extra run of the same settings."""
        return self.role in ("sweep", "search")

    @property
    def arm_and_stage(self) -> str:
        """The arm, with a note if the trial is a first stage, because their costs must not be mixed."""
        return f"{self.arm} (first stage)" if self.role == "first_stage" else self.arm

    @property
    def label(self) -> str:
        """A readable name: arm, cell (unless it is the only one), point, and what else tells it apart."""
        role = "" if self.is_tried else f" {self.role.replace('_', ' ')}"
        replicate = f" r{self.replicate}" if self.replicate or role else ""
        cell = f" {self.cell_name}" if self.cell else ""
        return f"{self.arm}{cell} p{self.point}{role}{replicate}"


@dataclass(frozen=True, slots=True)
class TrialCost:
    """The computation of a trial, known before it runs.

    Attributes:
      model: cost of one forward pass of one image.
      epochs, steps: length of the run.
      train_flops: multiply-adds of the whole run. A training step costs three forward passes.
    """

    model: Cost
    epochs: int
    steps: int
    train_flops: int


@dataclass(frozen=True, slots=True)
class Removal:
    """The number of points that a constraint removes in one arm.

    Attributes:
      cell_name, arm: the cell and arm.
      constraint: as in the file.
      removed: number of points of the design that break it in this arm.
      drawn: number of points of the design.
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
      cell: name of the cell.
      arm: as in the file.
      point: its index, which follows those of the design.
      by: name of the sampler.
      quantiles: in [0, 1] by path, as a design has them.
    """

    cell: str
    arm: str
    point: int
    by: str
    quantiles: Mapping[str, float]


@dataclass(frozen=True)
class Plan:
    """Every trial of a sweep, in the order in which they run.

    Attributes:
      sweep: the sweep that is planned.
      trials: the trials to run.
      infos: sizes and classes of every data set that is needed.
      removals: by cell, arm and constraint. A point that breaks a constraint in one arm is missing in all
        arms of the cell.
      suggestions: points that the sampler of a search has chosen so far.
    """

    sweep: Sweep
    trials: tuple[Trial, ...]
    infos: Mapping[DataConfig, DataInfo]
    removals: tuple[Removal, ...] = ()
    suggestions: tuple[Suggestion, ...] = ()

    def cost(self, trial: Trial) -> TrialCost:
        """Returns the computation of a trial from closed forms, without building the model."""
        info, config = self.infos[trial.config.data], trial.config
        cost = config.model.cost(info.num_classes)
        images = config.schedule.epochs * info.sizes["train"]
        return TrialCost(cost, config.schedule.epochs, self.steps(trial), 3 * cost.flops * images)

    def steps(self, trial: Trial) -> int:
        """Returns the optimizer steps of a whole trial."""
        config = trial.config
        num_images = self.infos[config.data].sizes["train"]
        return config.schedule.epochs * num_steps(num_images, config.batch_size)

    def remaining(self, done: Iterable[str]) -> list[Trial]:
        """Returns the trials whose ids are not in `done`."""
        ended = set(done)
        return [trial for trial in self.trials if trial.id not in ended]


def again(
    trial: Trial, infos: Mapping[DataConfig, DataInfo], role: Role, replicate: int, seeds: Seeds
) -> Trial:
    """Returns a trial with the same settings under other seeds."""
    config = trial.config.model_copy(update={"seeds": seeds})
    new_id = identity_of(config, trial.gang, infos, trial.after)
    return dataclasses.replace(trial, id=new_id, role=role, replicate=replicate, config=config)


def identity_of(
    config: TrainConfig, gang: Gang, infos: Mapping[DataConfig, DataInfo], after: str = ""
) -> str:
    """Returns the id of the trial of a run that starts from the trial `after`, or from none if that is ""."""
    # The number of workers that share a batch decides which images meet in batch normalisation and mixup.
    fingerprint = f"{infos[config.data].fingerprint} x{gang.workers}"
    return identity(config, fingerprint, after or None)


def unique_trials(trials: Iterable[Trial]) -> list[Trial]:
    """Returns one trial per id, because arms that coincide in a cell are trained once."""
    first: dict[str, Trial] = {}
    for trial in trials:
        first.setdefault(trial.id, trial)
    return list(first.values())


def error_term(trials: Iterable[Trial]) -> str:
    """Returns the error that trials are judged by, in words. It lists all if trials have several tasks."""
    return " or ".join(dict.fromkeys(trial.config.data.task.objective.term for trial in trials))


def error_label(trials: Iterable[Trial]) -> str:
    """Returns the label of that error for axes and table heads."""
    return " or ".join(dict.fromkeys(trial.config.data.task.objective.label for trial in trials))
