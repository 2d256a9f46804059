"""The paper's two gaps, of shorter training and of SGD against AdamW, at equal best of k.

Both compare two cells of a sweep within one arm. The pairs follow from the resolved configurations, not from
names. Two cells make a training-length gap if their runs differ in the schedule alone, and in its epochs.
They make an optimizer gap if they differ in the optimizer alone, with SGD in one and AdamW in the other.
Windows of drawn parameters may differ between the cells, and seeds are ignored.

The paper compares single runs: at one lr and weight decay for all lengths, and at each optimizer's best. Here
the comparison is between the expected lowest errors of k trials drawn from each cell's space, with the same k
on both sides. It measures the loss of a sweep of size k.

Source: Xiao et al. 2021, "Early Convolutions Help Transformers See Better", sections 5.1 and 5.2,
  https://arxiv.org/abs/2106.14881
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from orchestrator.analysis.summary import Summary
from orchestrator.stats.best_of import SUPPORT_PCT, best_of, best_of_weights
from orchestrator.stats.intervals import CONFIDENCE, Estimate
from orchestrator.trials.records import Result
from trainables.presets import leaves

Kind = Literal["training_length", "optimizer"]

#: Fewer points give no interval, because the best of a quarter of them is a best of three or fewer.
MIN_POINTS = 16


@dataclass(frozen=True, slots=True)
class Pair:
    """Two cells whose difference is a gap, for every arm that has this pair.

    Attributes:
      kind: training length or optimizer.
      cell: the cell that is expected to be worse: the shorter training, or SGD.
      base_cell: the cell from which the gap is measured: the longest training, or AdamW.
      level, base_level: epochs or optimizer of each cell, as resolved.
    """

    kind: Kind
    cell: str
    base_cell: str
    level: int | str
    base_level: int | str


@dataclass(frozen=True, slots=True)
class Gap:
    """The gap of one arm.

    Attributes:
      pair: the two cells.
      arm: name of the arm.
      budget: k, the same on both sides and in all arms.
      num_points: points that have a result on both sides.
      error_pct, base_error_pct: expected best of k in the cell and in the base cell.
      gap_pp: `error_pct` minus `base_error_pct`, with the interval of `best_of_difference`.
    """

    pair: Pair
    arm: str
    budget: int
    num_points: int
    error_pct: float
    base_error_pct: float
    gap_pp: Estimate


@dataclass(frozen=True, slots=True)
class GapContrast:
    """The gap of one arm minus that of the first arm, on the points that both have on both sides.

    Attributes:
      pair, budget: the two cells, and k.
      base_arm, arm: the first arm, and the arm compared to it.
      num_points: points that have a result in both cells of both arms.
      difference_pp: below 0 if `arm` has the smaller gap; with the interval of `best_of_difference`.
      better: the arm of the smaller gap. None if the interval contains 0, or if there is no interval.
    """

    pair: Pair
    budget: int
    base_arm: str
    arm: str
    num_points: int
    difference_pp: Estimate
    better: str | None


def _leave_one_out(errors_pct: NDArray[np.float64], budget: int) -> NDArray[np.float64]:
    """Returns the best of k without each point in turn, in the order of the points."""
    order = np.argsort(errors_pct, kind="stable")
    ordered, weights = errors_pct[order], best_of_weights(errors_pct.size - 1, np.array([budget]))[0]
    # Without the j-th lowest error, the errors below it keep their rank and those above it move down by one.
    below = np.concatenate([[0.0], np.cumsum(ordered[:-1] * weights)])
    above = np.concatenate([np.cumsum((ordered[1:] * weights)[::-1])[::-1], [0.0]])
    found = np.empty_like(ordered)
    found[order] = below + above
    return found


def _by_divergence(errors_pct: NDArray[np.float64], budget: int) -> float:
    """Returns an upper bound on what unsampled divergences add to a best of k, in pp.

    All k trials diverge with probability q^k, which raises the best of k by 100 % minus the lowest error.
    Here q is the upper end of the exact one-sided 95 % interval of the diverged share. The contribution of
    the observed share is subtracted, because the estimate contains it already.
    """
    diverged = int(np.count_nonzero(errors_pct >= SUPPORT_PCT[1]))
    if diverged == errors_pct.size:
        return 0.0
    most = float(special.betaincinv(diverged + 1, errors_pct.size - diverged, CONFIDENCE))
    return (most**budget - (diverged / errors_pct.size) ** budget) * (
        SUPPORT_PCT[1] - float(errors_pct.min())
    )


def best_of_difference(terms: Sequence[tuple[float, NDArray[np.float64]]], budget: int) -> Estimate:
    """Returns a weighted sum of best-of-k values over the same points, with its interval.

    The interval is a jackknife over points, with Student's t on 2 n / k degrees of freedom (n - 1 at most),
    because a best of k depends on about n / k of the lowest points. The possible contribution of divergences
    that were not drawn is added on the side that each term affects. It is large at small k and vanishes at
    large k.

    Args:
      terms: factor, and errors of the points. All terms have the same points in the same order.
      budget: k.

    Returns:
      The estimate. It has no interval below MIN_POINTS points, at k = n, or if no point changes the value.

    Raises:
      ValueError: not 1 <= budget <= number of points.
    """
    value = sum(factor * float(best_of(errors, [budget])[0]) for factor, errors in terms)
    count = len(terms[0][1])
    if count < MIN_POINTS:
        return Estimate(value, because=f"{count} points, {MIN_POINTS} are needed")
    if budget >= count:
        return Estimate(value, because="the best of all the points there are")
    without = np.sum([factor * _leave_one_out(errors, budget) for factor, errors in terms], axis=0)
    error = math.sqrt((count - 1) / count * float(np.sum((without - without.mean()) ** 2)))
    if error < 1e-12:
        return Estimate(value, because="no point makes a difference")
    half = float(special.stdtrit(min(count - 1, 2 * count / budget), (1 + CONFIDENCE) / 2)) * error
    unseen = [factor * _by_divergence(errors, budget) for factor, errors in terms]
    low, high = (sum(part for part in unseen if part * side > 0) for side in (-1, 1))
    return Estimate(value, value - half + low, value + half + high)


def pairs(results: Iterable[Result]) -> dict[Pair, list[str]]:
    """Returns the pairs of cells that make a gap, each with its arms.

    Training lengths come first, then the order of the plan. A training length is measured from the longest
    one of otherwise equal runs.
    """
    configs = _configs(results)
    found: dict[Pair, list[str]] = {}
    for same in _alike(configs, "schedule."):
        epochs = {key: configs[key]["schedule.epochs"] for key in same}
        longest = [key for key in same if epochs[key] == max(epochs.values())]
        for cell, arm in (key for key in same if key not in longest):
            # Warm-up may differ, too, so the base is the most similar of the longest ones.
            unlike = [_num_different(configs[cell, arm], configs[base]) for base in longest]
            base = longest[unlike.index(min(unlike))]
            pair = Pair("training_length", cell, base[0], epochs[cell, arm], epochs[base])
            found.setdefault(pair, []).append(arm)
    for same in _alike(configs, "optim."):
        names = {key: configs[key]["optim.name"] for key in same}
        for (cell, arm), (base_cell, _) in itertools.product(same, same):
            if (names[cell, arm], names[base_cell, arm]) == ("sgd", "adamw"):
                found.setdefault(Pair("optimizer", cell, base_cell, "sgd", "adamw"), []).append(arm)
    return found


_Key = tuple[str, str]
_Config = dict[str, Any]


def _configs(results: Iterable[Result]) -> dict[_Key, _Config]:
    """Returns the resolved configuration per cell and arm, without seeds and drawn values."""
    found: dict[_Key, _Config] = {}
    for result in results:
        trial = result.trial
        if (key := (trial.cell_name, trial.arm)) not in found:
            found[key] = {
                path: value
                for path, value in leaves(trial.config.model_dump())
                if not any(f"{path}.".startswith(f"{free}.") for free in ("seeds", *trial.values))
            }
    # Cells that draw the length or the optimizer are left out, because it is then no level of the cell.
    return {key: config for key, config in found.items() if {"schedule.epochs", "optim.name"} <= set(config)}


def _alike(configs: Mapping[_Key, _Config], but_for: str) -> list[list[_Key]]:
    """Groups the cells of an arm whose runs differ at most in paths with this prefix."""
    groups: dict[tuple[str, str], list[_Key]] = {}
    for (cell, arm), config in configs.items():
        rest = {path: value for path, value in config.items() if not path.startswith(but_for)}
        groups.setdefault((arm, repr(sorted(rest.items(), key=lambda item: item[0]))), []).append((cell, arm))
    return [group for group in groups.values() if len(group) > 1]


def _num_different(one: _Config, other: _Config) -> int:
    return sum(one.get(path) != other.get(path) for path in {*one, *other})


def gaps(
    results: Sequence[Result], summaries: Sequence[Summary], budget: int | None = None
) -> tuple[list[Gap], list[GapContrast]]:
    """Returns every gap of every arm, and the differences of the gaps between the first arm and the others.

    Args:
      results: all results of a plan.
      summaries: summaries of the same results, which supply the errors of the points.
      budget: k. The default for a pair of cells is a quarter of the points of the arm that has the fewest on
        both sides, and at least 1.

    Returns:
      Gaps and contrasts. Arms with fewer than k points on both sides are left out, and gaps without arms.
    """
    errors = {(summary.cell, summary.arm): summary.errors_pct for summary in summaries}
    arms = list(dict.fromkeys(summary.arm for summary in summaries))
    found: list[Gap] = []
    compared: list[GapContrast] = []
    for pair, paired in pairs(results).items():
        sides = {arm: (errors[pair.cell, arm], errors[pair.base_cell, arm]) for arm in arms if arm in paired}
        shared = {arm: [p for p in one if p in base] for arm, (one, base) in sides.items()}
        shared = {arm: points for arm, points in shared.items() if points}
        if not shared:
            continue
        k = budget or max(1, min(map(len, shared.values())) // 4)
        for arm, points in shared.items():
            if k <= len(points):
                found.append(_gap(pair, arm, points, sides[arm], k))
        first, *others = shared
        for arm in others if first == arms[0] else []:
            points = [point for point in shared[first] if point in set(shared[arm])]
            if k <= len(points):
                compared.append(_gap_contrast(pair, (first, arm), points, (sides[first], sides[arm]), k))
    return found, compared


_Sides = tuple[Mapping[int, float], Mapping[int, float]]


def _of(points: Sequence[int], errors_pct: Mapping[int, float]) -> NDArray[np.float64]:
    return np.array([errors_pct[point] for point in points])


def _gap(pair: Pair, arm: str, points: Sequence[int], sides: _Sides, budget: int) -> Gap:
    one, base = (_of(points, side) for side in sides)
    return Gap(
        pair=pair,
        arm=arm,
        budget=budget,
        num_points=len(points),
        error_pct=float(best_of(one, [budget])[0]),
        base_error_pct=float(best_of(base, [budget])[0]),
        gap_pp=best_of_difference([(1.0, one), (-1.0, base)], budget),
    )


def _gap_contrast(
    pair: Pair, arms: tuple[str, str], points: Sequence[int], sides: tuple[_Sides, _Sides], budget: int
) -> GapContrast:
    (base_one, base_base), (one, base) = ([_of(points, side) for side in both] for both in sides)
    difference = best_of_difference([(1.0, one), (-1.0, base), (-1.0, base_one), (1.0, base_base)], budget)
    better = None
    if difference.high is not None and difference.high < 0:
        better = arms[1]
    elif difference.low is not None and difference.low > 0:
        better = arms[0]
    return GapContrast(pair, budget, arms[0], arms[1], len(points), difference, better)
