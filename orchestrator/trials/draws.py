"""Drafts of trials: the settings of a point in one arm and cell, checked against the constraints."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from orchestrator.sweep.config import Layers, Resources, Sweep
from orchestrator.sweep.constraints import DERIVED, FOLLOWS, MEMORY, Constraint
from orchestrator.sweep.space import Cell
from orchestrator.trials.gang import Gang
from orchestrator.trials.stages import with_first_seeds
from orchestrator.trials.trial import Trial
from trainables.base import DataInfo
from trainables.config import DataConfig, TrainConfig, setting


def can_run(
    sweep: Sweep,
    infos: Mapping[DataConfig, DataInfo],
    arm: str,
    cell: Cell,
    quantiles: Mapping[str, float],
) -> bool:
    """Returns whether the settings at these quantiles make a valid run that fulfils all constraints.

    Raises:
      ConstraintError: a constraint cannot be evaluated for these settings.
    """
    draft = Draft.of(sweep, arm, cell, quantiles)
    return draft.fault is None and not draft.broken(sweep.constraints(), infos)


@dataclass(frozen=True)
class Draft:
    """The settings of one point in one arm and cell. A constraint may still remove it."""

    arm: str
    values: dict[str, Any]
    layers: Layers
    sweep: Sweep
    run: tuple[TrainConfig, Resources] | None
    fault: ValidationError | None

    @classmethod
    def of(cls, sweep: Sweep, arm: str, cell: Cell, quantiles: Mapping[str, float]) -> "Draft":
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
        """Returns the constraints that the settings break."""
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
        config = with_first_seeds(config, self.sweep.design.seed)
        cpus, gpus = resources.cpus_per_worker, resources.gpus_per_worker
        if cpus == "auto":
            gang = Gang(resources.workers, 1, gpus, shares_cores=gpus != 0)
        else:
            gang = Gang(resources.workers, cpus, gpus)
        block = self.sweep.design.block(point)
        return Trial("", self.arm, cell, point, 0, self.values, config, gang, block=block)


def _memory_gib(config: TrainConfig, info: DataInfo, resources: Resources) -> float:
    """Returns the peak memory of one worker in GiB.

    It is that on a GPU unless the file gives trials no GPU, because points must not depend on the machine.
    """
    # Few sweeps ask for it, and it is counted with torch.
    from trainables.profiling.footprint import footprint

    on_gpu = resources.gpus_per_worker != 0
    num_images = sum(info.sizes.values())
    found = footprint(config, info.num_classes, info.sizes["train"], num_images, resources.workers, on_gpu)
    return found.peak / 2**30
