"""The difference of each arm to the first over sizes, and at the next one. See `stats.ladder`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from orchestrator.stats.ladder import MIN_SIZES, Ladder, ladder
from orchestrator.trials.records import Result
from orchestrator.trials.trial import Trial, TrialCost


@dataclass(frozen=True, slots=True)
class Rung:
    """One size of a ladder.

    Attributes:
      cells: the cells of this size.
      flops_g: multiply-adds of an image of the first arm's network, in 10^9.
      difference_pp: mean over points of an arm's error minus the first arm's.
      pairs: number of points at which both have finished.
    """

    cells: tuple[str, ...]
    flops_g: float
    difference_pp: float
    pairs: int


@dataclass(frozen=True, slots=True)
class ArmLadder:
    """The ladder of one arm against the first.

    Attributes:
      arm, base_arm: their names.
      rungs: smallest first.
      found: the line through them; None with too few.
      because: the reason if there is none, else empty.
    """

    arm: str
    base_arm: str
    rungs: tuple[Rung, ...]
    found: Ladder | None
    because: str = ""


def ladders(results: Iterable[Result], cost: Callable[[Trial], TrialCost]) -> list[ArmLadder]:
    """Returns the ladder of each arm after the first over the sizes of the sweep's cells.

    Errors of replicates count as their mean. Cells in which the first arm's networks cost the same are one
    size.
    """
    errors: dict[str, dict[tuple[str, int], list[float]]] = {}
    flops: dict[tuple[str, int], float] = {}
    for result in results:
        trial = result.trial
        found = errors.setdefault(trial.arm, {})
        base = next(iter(errors))
        if (error_pct := result.finished_pct) is None:
            continue
        found.setdefault((trial.cell_name, trial.point), []).append(error_pct)
        if trial.arm == base:
            flops[trial.cell_name, trial.point] = cost(trial).model.flops_g
    base, *others = errors or [""]
    return [_ladder(arm, base, errors[arm], errors[base], flops) for arm in others]


def _ladder(
    arm: str,
    base: str,
    own: dict[tuple[str, int], list[float]],
    others: dict[tuple[str, int], list[float]],
    flops: dict[tuple[str, int], float],
) -> ArmLadder:
    pairs: dict[float, list[tuple[str, float]]] = {}
    for key in own:
        if key in others:
            # Rounded, so that equal costs are equal.
            size = float(f"{flops[key]:.6g}")
            pairs.setdefault(size, []).append((key[0], fmean(own[key]) - fmean(others[key])))
    rungs = tuple(
        Rung(
            tuple(dict.fromkeys(cell for cell, _ in pairs[size])),
            size,
            fmean(difference for _, difference in pairs[size]),
            len(pairs[size]),
        )
        for size in sorted(pairs)
    )
    found = ladder(
        np.array([rung.flops_g for rung in rungs]), np.array([rung.difference_pp for rung in rungs])
    )
    because = "" if found else f"{MIN_SIZES} sizes are needed for a next one; there are {len(rungs)}"
    return ArmLadder(arm, base, rungs, found, because)
