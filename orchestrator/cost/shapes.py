"""Shapes: groups of runs with equal cost, which is counted once per group."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.trials.gang import Gang
from orchestrator.trials.trial import Plan, Trial, unique_trials
from trainables.config import TrainConfig
from trainables.data.order import num_steps
from trainables.identity import identity

if TYPE_CHECKING:  # plans that were made before are read without torch
    from trainables.profiling.footprint import Footprint, Work


@dataclass(frozen=True, slots=True)
class Shape:
    """The settings of a trial that decide its memory and its seconds per epoch."""

    config: TrainConfig
    gang: Gang

    @property
    def name(self) -> str:
        """Batch size (over workers), optimizer, precision and averaging. The arm describes the rest."""
        config = self.config
        parts = [f"{config.batch_size}" + (f"/{self.gang.workers}" if self.gang.workers > 1 else "")]
        parts.append(config.optim.name)
        if config.precision != "auto":
            parts.append(config.precision)
        return " ".join([*parts, "ema"] if config.ema else parts)


def shape_of(trial: Trial) -> Shape:
    """Returns the shape of a trial."""
    from trainables.profiling.footprint import shape_config

    return Shape(shape_config(trial.config), trial.gang)


class ShapeTable:
    """The distinct trials of a plan, grouped by shape.

    Attributes:
      plan: the sweep.
      trials: one trial per id, in the order of the plan.
      groups: these trials by shape.
      arms: for each shape, the cells and arms that have a trial of it, shared trials included.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.trials = plan, unique_trials(plan.trials)
        self._shapes = {trial.id: shape_of(trial) for trial in self.trials}
        self.groups: dict[Shape, list[Trial]] = {}
        for trial in self.trials:
            self.groups.setdefault(self.shape(trial), []).append(trial)
        arms: dict[Shape, dict[tuple[str, str], None]] = {}
        for trial in plan.trials:
            arms.setdefault(self.shape(trial), {})[trial.cell_name, trial.arm] = None
        self.arms = {shape: tuple(pairs) for shape, pairs in arms.items()}

    def shape(self, trial: Trial) -> Shape:
        """Returns the shape of a trial of the plan."""
        return self._shapes[trial.id]


@dataclass(frozen=True, slots=True)
class Epochs:
    """The work of one epoch of a shape for each of its workers.

    Attributes:
      work: work of training and of the evaluation after it.
      decoded: number of images that are read and augmented one by one. 0 if they are kept in memory.
      test: work of the evaluation on the final split, once per trial.
    """

    work: "Work"
    decoded: float
    test: "Work"


def counted(plan: Plan, shape: Shape, on_gpu: bool) -> "tuple[Footprint, Epochs]":
    """Returns the footprint of a shape and the work of its epochs."""
    from trainables.profiling.footprint import footprint

    config, info, workers = shape.config, plan.infos[shape.config.data], shape.gang.workers
    sizes = info.sizes
    found = footprint(config, info.num_classes, sizes["train"], sum(sizes.values()), workers, on_gpu)
    networks = 2 if config.ema else 1
    evaluated = found.evaluated * (networks / workers)
    # Only batch normalisation has buffers. The workers share its images, too.
    precise = min(config.precise_bn_images, sizes["train"]) if found.has_buffers else 0
    steps = num_steps(sizes["train"], config.batch_size)
    work = found.step * steps + evaluated * (sizes["val"] + precise)
    # Both networks see the same images, which are made once.
    read = (sizes["train"] + sizes["val"] + precise) / workers
    decoded = 0.0 if config.augment.name == "light" else read
    return found, Epochs(work, decoded, evaluated * sizes["test"])


def shape_key(shape: Shape) -> str:
    """Returns a key of a shape that is the same in every process and version."""
    return identity(shape.config, shape.gang.key)
