"""From a sweep to its trials: identities, order, gangs, and how many run at a time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.gang import Gang
from orchestrator.sweep import Cell, Resources, Sweep, cell_name, iterate
from trainables.config import DataConfig, Seeds, TrainConfig, identity
from trainables.data import DataInfo, num_steps
from trainables.vit import Cost


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run of a sweep.

    Attributes:
      id: a digest of what decides the result; the same settings have the same id anywhere.
      arm, cell, cell_name: what is compared, and under which settings.
      point: index into the design; the same point in every arm has the same quantiles and seeds.
      replicate: which of the runs that differ in their seeds only.
      values: what was drawn, by path.
      config: the run, whole.
      gang: what it runs on.
    """

    id: str
    arm: str
    cell: Cell
    point: int
    replicate: int
    values: dict[str, Any]
    config: TrainConfig
    gang: Gang

    @property
    def cell_name(self) -> str:
        """The cell as people call it."""
        return cell_name(self.cell)


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
        for replicate in range(sweep.replicates):
            seeds = Seeds.derived(sweep.design.seed, "point", point, "replicate", replicate)
            for arm, cell in iterate(sweep):
                values = {
                    path: domain.at(float(quantiles[path][point]))
                    for path, domain in sweep.domains(arm, cell).items()
                }
                config, resources = sweep.settings(arm, cell, values)
                if "seeds" not in config.model_fields_set:
                    config = config.model_copy(update={"seeds": seeds})
                trials.append(
                    Trial(
                        id=_trial_id(config, infos[config.data], resources),
                        arm=arm,
                        cell=cell,
                        point=point,
                        replicate=replicate,
                        values=values,
                        config=config,
                        gang=Gang(resources.workers, resources.cpus_per_worker, resources.gpus_per_worker),
                    )
                )
    return Plan(sweep, tuple(trials), infos)


def _trial_id(config: TrainConfig, info: DataInfo, resources: Resources) -> str:
    # How many workers share a batch decides which images meet in batch normalisation and mixup.
    return identity(config, f"{info.fingerprint} x{resources.workers}")


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
