"""From a sweep to its trials: identities, order, gangs, and how many run at a time."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.gang import Gang
from orchestrator.sweep import Cell, Sweep, cell_name, iterate
from trainables.config import DataConfig, Seeds, TrainConfig, identity
from trainables.data import DataInfo, num_steps
from trainables.vit import Cost

#: What a trial is for: the design itself; a best setting run again with fresh seeds; or a point of the design
#: run again with one stream of randomness changed, to see how much that stream alone moves the error.
Role = Literal["sweep", "confirm", "noise_init", "noise_order", "noise_augment"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run of a sweep.

    Attributes:
      id: a digest of what decides the result; the same settings have the same id anywhere.
      arm, cell, cell_name: what is compared, and under which settings.
      point: index into the design; the same point in every arm has the same quantiles and seeds.
      block: which independent part of the design the point belongs to; 0 where there is one only.
      replicate: which of the runs that differ in their seeds only.
      values: what was drawn, by path.
      config: the run, whole.
      gang: what it runs on.
      role: what it is for; only `sweep` trials are draws from the space, and only they enter an EDF.
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

    @property
    def cell_name(self) -> str:
        """The cell as people call it."""
        return cell_name(self.cell)

    @property
    def label(self) -> str:
        """The trial as people call it: arm, cell, point, and what tells it from the first run there."""
        role = "" if self.role == "sweep" else f" {self.role.replace('_', ' ')}"
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


@dataclass(frozen=True)
class Plan:
    """Every trial of a sweep, in the order they are to run."""

    sweep: Sweep
    trials: tuple[Trial, ...]
    infos: Mapping[DataConfig, DataInfo]

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
        first = {path: domain.extremes()[0] for path, domain in sweep.domains(arm, cell).items()}
        config, _ = sweep.settings(arm, cell, first)
        found.setdefault(config.data, sweep.source_of("data", arm, cell))
    return found


def make_plan(sweep: Sweep, infos: Mapping[DataConfig, DataInfo]) -> Plan:
    """Draws the points and makes the trials.

    Points come first in the order, then cells, then arms: a sweep cut off anywhere has its arms paired.

    Raises:
      ValueError: a drawn combination of values is no valid run, though each value alone is.
    """
    levels = sweep.levels()
    quantiles = sweep.design.quantiles(levels)
    trials = []
    for point in range(sweep.design.num_points(levels)):
        for arm, cell in iterate(sweep):
            values = {
                path: domain.at(float(quantiles[path][point]))
                for path, domain in sweep.domains(arm, cell).items()
            }
            config, resources = sweep.settings(arm, cell, values)
            first = Trial(
                id="",
                arm=arm,
                cell=cell,
                point=point,
                replicate=0,
                values=values,
                config=config,
                gang=Gang(resources.workers, resources.cpus_per_worker, resources.gpus_per_worker),
                block=sweep.design.block(point),
            )
            for role, replicate, seeds in _runs_of_point(sweep, point, config):
                trials.append(_again(first, infos, role, replicate, seeds))
    # A stable sort: replicates of a point stay together, cells and arms in the order of the file.
    trials.sort(key=lambda trial: (trial.point, trial.role != "sweep", trial.replicate))
    return Plan(sweep, tuple(trials), infos)


def _runs_of_point(sweep: Sweep, point: int, config: TrainConfig) -> Iterator[tuple[Role, int, Seeds]]:
    """The seeds of every run of a point; the same in every arm and cell."""
    if "seeds" in config.model_fields_set:
        first = config.seeds
    else:
        first = Seeds.derived(sweep.design.seed, "point", point, "replicate", 0)
    yield "sweep", 0, first
    for replicate in range(1, sweep.replicates):
        yield "sweep", replicate, Seeds.derived(sweep.design.seed, "point", point, "replicate", replicate)
    if sweep.noise is not None and point < sweep.noise.points:
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
    fingerprint = f"{infos[config.data].fingerprint} x{trial.gang.workers}"
    # How many workers share a batch decides which images meet in batch normalisation and mixup.
    new_id = identity(config, fingerprint)
    return dataclasses.replace(trial, id=new_id, role=role, replicate=replicate, config=config)


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
        if trial.role == "sweep" and trial.replicate == 0 and trial.point in chosen:
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


def by_gang(trials: Iterable[Trial]) -> dict[Gang, list[Trial]]:
    """Trials by what they run on, the largest gang first, so that small ones fill up at the end."""
    groups: dict[Gang, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.gang, []).append(trial)
    return dict(sorted(groups.items(), key=lambda item: -item[0].workers * max(item[0].gpus or 0, 1)))
