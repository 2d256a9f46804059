"""The shift of each arm's best learning rate with the size of its network. See `stats.lr_shift`."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np

from orchestrator.stats.lr_shift import Shift, shift_of
from orchestrator.trials.records import Result

#: What a network grows in, as its configuration calls it.
Dimension = Literal["width", "depth"]


@dataclass(frozen=True, slots=True)
class ArmShift:
    """The shift of an arm's best learning rate.

    Attributes:
      arm: its name.
      sizes: sizes with a result, smallest first.
      best: the learning rate of the lowest error at each of these sizes.
      shift: in octaves per doubling of the size; None if there is none.
      because: the reason if there is none, else empty.
    """

    arm: str
    sizes: tuple[float, ...]
    best: tuple[float, ...]
    shift: Shift | None
    because: str = ""


def lr_shifts(results: Iterable[Result], dimension: Dimension) -> list[ArmShift]:
    """Returns the shift of each arm over its finished trials, those of one size and lr as their mean.

    Cells of one size differ in something else, such as the optimizer, so that their rates have no common
    valley: an arm that has such cells gets no shift.

    Args:
      results: the trials of a sweep.
      dimension: what the size is.
    """
    cells: dict[tuple[str, float], dict[str, None]] = {}
    errors: dict[str, dict[tuple[float, float], list[float]]] = {}
    for result in results:
        config, found = result.trial.config, errors.setdefault(result.trial.arm, {})
        size, error_pct = getattr(config.model, dimension, None), result.finished_pct
        # Without any error, a run has no place on a logarithmic scale.
        if size is not None and error_pct:
            found.setdefault((float(size), config.optim.lr), []).append(error_pct)
            cells.setdefault((result.trial.arm, float(size)), {})[result.trial.cell_name] = None
    mixed = {arm: (size, names) for (arm, size), names in cells.items() if len(names) > 1}
    found_shifts = []
    for arm, of_arm in errors.items():
        if arm in mixed:
            size, names = mixed[arm]
            because = f"cells {', '.join(names)} have {dimension} {size:g} and differ in something else"
            found_shifts.append(ArmShift(arm, (), (), None, because))
        else:
            found_shifts.append(_arm(arm, {key: fmean(values) for key, values in of_arm.items()}))
    return found_shifts


def _arm(arm: str, errors: dict[tuple[float, float], float]) -> ArmShift:
    if not errors:
        return ArmShift(arm, (), (), None, "no trial of a network with such a size has finished")
    sizes = tuple(sorted({size for size, _ in errors}))
    best = tuple(min((error, lr) for (own, lr), error in errors.items() if own == size)[1] for size in sizes)
    table = np.array([(*key, error) for key, error in errors.items()])
    found = shift_of(*table.T)
    if isinstance(found, Shift):
        return ArmShift(arm, sizes, best, found)
    return ArmShift(arm, sizes, best, None, found)
