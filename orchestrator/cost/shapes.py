"""Shapes: runs that cost the same, grouped and counted once."""

from dataclasses import dataclass

from orchestrator.trials.gang import Gang
from orchestrator.trials.trial import Plan, Trial, unique_trials
from trainables.config import TrainConfig
from trainables.data.order import num_steps
from trainables.identity import identity
from trainables.profiling.footprint import Footprint, Work, footprint, shape_config

# ---------------------------------------------------------------------------------------------------
# Shapes: what of a trial decides its cost per epoch


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a trial decides its memory and its seconds per epoch; trials of one shape cost the same."""

    config: TrainConfig
    gang: Gang

    @property
    def name(self) -> str:
        """Batch (over workers), optimizer, precision and averaging; the arm says the rest."""
        config = self.config
        parts = [f"{config.batch_size}" + (f"/{self.gang.workers}" if self.gang.workers > 1 else "")]
        parts.append(config.optim.name)
        if config.precision != "auto":
            parts.append(config.precision)
        return " ".join([*parts, "ema"] if config.ema else parts)


def shape_of(trial: Trial) -> Shape:
    """The shape of a trial."""
    return Shape(shape_config(trial.config), trial.gang)


class ShapeTable:
    """The distinct trials of a plan, and the same by shape.

    Attributes:
      plan: the sweep.
      trials: one per id, in the order of the plan.
      groups: the same by shape.
      arms: cells and arms that have a trial of a shape, also where they share it.
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
        """The shape of a trial of the plan."""
        return self._shapes[trial.id]


@dataclass(frozen=True, slots=True)
class Epochs:
    """What an epoch of a shape amounts to for each of its workers.

    Attributes:
      work: training and evaluation after it.
      decoded: images read and augmented one by one; 0 where they are kept in memory.
      test: work of the evaluation on the final split, once per trial.
    """

    work: Work
    decoded: float
    test: Work


def counted(plan: Plan, shape: Shape, on_gpu: bool) -> tuple[Footprint, Epochs]:
    """The footprint of a shape, and its epochs."""
    config, info, workers = shape.config, plan.infos[shape.config.data], shape.gang.workers
    sizes = info.sizes
    found = footprint(config, info.num_classes, sizes["train"], sum(sizes.values()), workers, on_gpu)
    networks = 2 if config.ema else 1
    evaluated = found.evaluated * (networks / workers)
    # Batch norm is all that there are buffers for; its images are shared among the workers, too.
    precise = min(config.precise_bn_images, sizes["train"]) if found.has_buffers else 0
    steps = num_steps(sizes["train"], config.batch_size)
    work = found.step * steps + evaluated * (sizes["val"] + precise)
    read = (sizes["train"] + networks * (sizes["val"] + precise)) / workers
    decoded = 0.0 if config.augment.name == "light" else read
    return found, Epochs(work, decoded, evaluated * sizes["test"])


def shape_key(shape: Shape) -> str:
    """A name for a shape that stays the same from one process, and one version, to the next."""
    return identity(shape.config, str(shape.gang))
