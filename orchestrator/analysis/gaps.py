"""The paper's two gaps, of shorter training and of SGD against AdamW, at equal best of k.

Both compare two cells of a sweep within one arm. The pairs follow from the resolved configurations, not from
names. Two cells make a training-length gap if their runs differ in the schedule alone, and in its epochs.
They make an optimizer gap if they differ in the optimizer alone, with SGD in one and AdamW in the other.
Windows of drawn parameters may differ between the cells, and seeds are ignored.

The paper compares single runs: at one lr and weight decay for all lengths, and at each optimizer's best. Here
the comparison is between the expected lowest errors of k trials drawn from each cell's space, with the same k
on both sides. It measures the loss of a sweep of size k.

Verdicts on differences of gaps are taken at the declared looks only (`stats.looks`), as those of contrasts.

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

from orchestrator.analysis.summary import Summary, most_points, num_ended_points
from orchestrator.stats.best_of import SUPPORT_PCT, best_of, best_of_weights
from orchestrator.stats.intervals import CONFIDENCE, Estimate
from orchestrator.stats.looks import Looks, deciding
from orchestrator.stats.power import POWER, candidate_counts
from orchestrator.sweep.paper import Claim, ClaimMeasure
from orchestrator.trials.records import Result
from trainables.presets import leaves

Kind = Literal["training_length", "optimizer"]

#: The measures of claims that are about a gap.
CLAIMED: Mapping[ClaimMeasure, Kind] = {
    "optimizer_gap": "optimizer",
    "training_length_gap": "training_length",
}

#: Fewer points give no interval, because the best of a quarter of them is a best of three or fewer.
MIN_POINTS = 16
#: The difference of two gaps for which points are counted, in pp: twice the margin of alike errors.
DETECT_PP = 2.0


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
      base_gap_pp, gap_pp: the gap of each, on the points of the difference.
      num_points: points that have a result in both cells of both arms, among those of the look.
      difference_pp: below 0 if `arm` has the smaller gap; with the interval of `best_of_difference`, at the
        level that the looks leave it. Before the first look it is of the points so far, at 95 %.
      better: the arm of the smaller gap. None if the interval contains 0, if there is none, or before the
        first look.
      look: the number of points of the look that decided, or of the latest one. None before the first.
      next_look: the next number of points at which a verdict is taken. None after the last.
      points_needed: the number of points that find a difference of DETECT_PP, by `points_for_gap`. None if
        there is no interval, or if no number of points is enough.
    """

    pair: Pair
    budget: int
    base_arm: str
    arm: str
    base_gap_pp: float
    gap_pp: float
    num_points: int
    difference_pp: Estimate
    better: str | None
    look: int | None
    next_look: int | None
    points_needed: int | None


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


def _by_divergence(errors_pct: NDArray[np.float64], budget: int, confidence: float, num_points: int) -> float:
    """Returns an upper bound on what unsampled divergences add to a best of k, in pp.

    All k trials diverge with probability q^k, which raises the best of k by 100 % minus the lowest error.
    Here q is the upper end of the exact one-sided interval of the diverged share. The contribution of the
    observed share is subtracted, because the estimate contains it already.

    Args:
      errors_pct: errors of the points.
      budget: k.
      confidence: of the one-sided interval.
      num_points: number of points of which the same share would diverge.
    """
    share = float(np.count_nonzero(errors_pct >= SUPPORT_PCT[1])) / errors_pct.size
    if share == 1:
        return 0.0
    most = float(special.betaincinv(share * num_points + 1, (1 - share) * num_points, confidence))
    return (most**budget - share**budget) * (SUPPORT_PCT[1] - float(errors_pct.min()))


#: Terms of a sum of best-of-k values: factor, and errors of the points. All have the same points.
_Terms = Sequence[tuple[float, NDArray[np.float64]]]


def _unseen(terms: _Terms, budget: int, confidence: float, num_points: int) -> tuple[float, float]:
    """Returns what unsampled divergences add to a sum of best-of-k values, below 0 and above, in pp."""
    parts = [factor * _by_divergence(errors, budget, confidence, num_points) for factor, errors in terms]
    return sum(part for part in parts if part < 0), sum(part for part in parts if part > 0)


def _standard_error(terms: _Terms, budget: int) -> float:
    """Returns the jackknife's standard error of a weighted sum of best-of-k values, in pp."""
    count = len(terms[0][1])
    without = np.sum([factor * _leave_one_out(errors, budget) for factor, errors in terms], axis=0)
    return math.sqrt((count - 1) / count * float(np.sum((without - without.mean()) ** 2)))


def _quantile(probability: float, num_points: int, budget: int) -> float:
    """Returns Student's t on 2 n / k degrees of freedom, n - 1 at most."""
    return float(special.stdtrit(min(num_points - 1, 2 * num_points / budget), probability))


def best_of_difference(terms: _Terms, budget: int, confidence: float = CONFIDENCE) -> Estimate:
    """Returns a weighted sum of best-of-k values over the same points, with its interval.

    The interval is a jackknife over points, with Student's t on 2 n / k degrees of freedom (n - 1 at most),
    because a best of k depends on about n / k of the lowest points. The possible contribution of divergences
    that were not drawn is added on the side that each term affects. It is large at small k and vanishes at
    large k.

    Args:
      terms: factor, and errors of the points. All terms have the same points in the same order.
      budget: k.
      confidence: of the interval, two-sided.

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
    error = _standard_error(terms, budget)
    if error < 1e-12:
        return Estimate(value, because="no point makes a difference")
    half = _quantile((1 + confidence) / 2, count, budget) * error
    low, high = _unseen(terms, budget, confidence, count)
    return Estimate(value, value - half + low, value + half + high)


def points_for_gap(terms: _Terms, budget: int, looks: Looks) -> int | None:
    """Returns the number of points that find a difference of DETECT_PP with a power of 80 %.

    The standard error is taken to fall with the square root of the points, and the share of divergences to
    stay as it is. The value itself is not used, so the number may be acted on before the last look.

    Args:
      terms: as for `best_of_difference`.
      budget: k.
      looks: a number of points has the level of the look that it reaches, that of the last look if none.

    Returns:
      A number of points of `candidate_counts`. None if the largest of them is too small, or with fewer than
      MIN_POINTS points.
    """
    count = len(terms[0][1])
    if count < MIN_POINTS or budget >= count:
        return None
    error = _standard_error(terms, budget)
    levels = dict(zip(looks.points, looks.levels(1 - CONFIDENCE), strict=True))
    for number in candidate_counts():
        if number < MIN_POINTS or budget >= number:
            continue
        level = next((alpha for points, alpha in levels.items() if points >= number), levels[looks.last])
        # The side on which divergences may add more is the one that matters.
        wide = max(map(abs, _unseen(terms, budget, 1 - level, number)))
        factor = _quantile(1 - level / 2, number, budget) + _quantile(POWER, number, budget)
        if wide + factor * error * math.sqrt(count / number) <= DETECT_PP:
            return number
    return None


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
    results: Sequence[Result],
    summaries: Sequence[Summary],
    looks: Looks | None = None,
    num_points: int | None = None,
    budget: int | None = None,
) -> tuple[list[Gap], list[GapContrast]]:
    """Returns every gap of every arm, and the differences of the gaps between the first arm and the others.

    Args:
      results: all results of a plan.
      summaries: summaries of the same results, which supply the errors of the points.
      looks: as declared; one look at all points if left out.
      num_points: of the design so far; the most that any arm has if left out.
      budget: k. The default is a quarter of the points of the first look, so it does not change when a sweep
        grows, or of those of the arm that has the fewest on both sides, and at least 1.

    Returns:
      Gaps and contrasts. Arms with fewer than k points on both sides are left out, and gaps without arms.
    """
    num_points = num_points or most_points(summaries)
    looks = looks or Looks.once(num_points)
    of = {(summary.cell, summary.arm): summary for summary in summaries}
    arms = list(dict.fromkeys(summary.arm for summary in summaries))
    found: list[Gap] = []
    compared: list[GapContrast] = []
    for pair, paired in pairs(results).items():
        sides = {arm: (of[pair.cell, arm], of[pair.base_cell, arm]) for arm in arms if arm in paired}
        shared = {arm: _shared(both) for arm, both in sides.items()}
        shared = {arm: points for arm, points in shared.items() if points}
        if not shared:
            continue
        k = budget or max(1, min(looks.points[0], *map(len, shared.values())) // 4)
        for arm, points in shared.items():
            if k <= len(points):
                found.append(_gap(pair, arm, points, sides[arm], k))
        first, *others = shared
        for arm in others if first == arms[0] else []:
            both = _Both(pair, first, arm, (*sides[first], *sides[arm]), k, looks, num_points)
            if k <= len(both.points):
                compared.append(both.contrast())
    return found, compared


def claimed(compared: Iterable[GapContrast], claims: Iterable[Claim]) -> list[GapContrast]:
    """Returns the differences of gaps that a claim is about, whichever arm it says is better."""
    wanted = {(CLAIMED.get(claim.measure), frozenset((claim.better, claim.than))) for claim in claims}
    return [c for c in compared if (c.pair.kind, frozenset((c.base_arm, c.arm))) in wanted]


def _shared(sides: Iterable[Summary]) -> list[int]:
    """Returns the points that have a result on all sides."""
    first, *others = sides
    return [point for point in first.errors_pct if all(point in side.errors_pct for side in others)]


def _of(points: Sequence[int], summary: Summary) -> NDArray[np.float64]:
    return np.array([summary.errors_pct[point] for point in points])


def _gap(pair: Pair, arm: str, points: Sequence[int], sides: tuple[Summary, Summary], budget: int) -> Gap:
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


class _Both:
    """Two arms with the same gap, and what the looks have seen of it."""

    def __init__(
        self,
        pair: Pair,
        base_arm: str,
        arm: str,
        sides: tuple[Summary, Summary, Summary, Summary],
        budget: int,
        looks: Looks,
        num_points: int,
    ) -> None:
        """`sides` are both cells of the first arm, then those of the other."""
        self.pair, self.base_arm, self.arm, self.sides = pair, base_arm, arm, sides
        self.budget, self.looks = budget, looks
        self.points = _shared(sides)
        self.num_ended = num_ended_points(sides, num_points)

    def contrast(self) -> GapContrast:
        """Returns the contrast of the latest look that decided, else of the latest look."""
        levels = zip(self.looks.points, self.looks.levels(1 - CONFIDENCE), strict=True)
        seen = [
            (n, best_of_difference(self._terms(n), self.budget, 1 - level))
            for n, level in levels
            if n <= self.num_ended and self.budget <= len(self._before(n))
        ]
        look: int | None = None
        better: str | None = None
        if seen:
            look, difference = deciding(seen)
            if difference.excludes_0:
                better = self.arm if difference.value < 0 else self.base_arm
        else:
            difference = best_of_difference(self._terms(None), self.budget)
        base_gap, gap = self._sizes(look)
        return GapContrast(
            pair=self.pair,
            budget=self.budget,
            base_arm=self.base_arm,
            arm=self.arm,
            base_gap_pp=base_gap,
            gap_pp=gap,
            num_points=len(self._before(look)),
            difference_pp=difference,
            better=better,
            look=look,
            next_look=self.looks.following(self.num_ended),
            points_needed=points_for_gap(self._terms(None), self.budget, self.looks),
        )

    def _sizes(self, look: int | None) -> tuple[float, float]:
        one, base, base_one, base_base = (
            float(best_of(errors, [self.budget])[0]) for _, errors in self._terms(look)
        )
        return base_one - base_base, one - base

    def _before(self, look: int | None) -> list[int]:
        return [point for point in self.points if look is None or point < look]

    def _terms(self, look: int | None) -> list[tuple[float, NDArray[np.float64]]]:
        base_one, base_base, one, base = (_of(self._before(look), side) for side in self.sides)
        return [(1.0, one), (-1.0, base), (-1.0, base_one), (1.0, base_base)]
