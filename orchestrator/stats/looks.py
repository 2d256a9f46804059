"""Looks at a growing sample, so that their verdicts together are wrong as rarely as that of one.

A test at the 5 % level that is repeated at 8, 16, 32 and 64 points of one sample rejects a true hypothesis in
more than a tenth of samples. Here each look has a lower level of its own, and together they have 5 %. They
are fixed before the first look, so a verdict depends on the results and the declared looks alone. It makes no
difference how often anybody looks in between.

The levels come from the joint normal distribution of the test statistics. Their correlation at n and m > n
points is sqrt(n / m), as that of sums of independent terms. With one look, everything here is the identity.

Source: Pocock 1977, "Group Sequential Methods in the Design and Analysis of Clinical Trials", Biometrika 64,
191-199; Armitage, McPherson and Rowe 1969, J. R. Stat. Soc. A 132, 235-244, for the recursion; Jennison and
Turnbull 1999, "Group Sequential Methods", sections 2.2 and 8.4, for p-values.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import optimize, special

from orchestrator.stats.intervals import Estimate
from orchestrator.stats.schedule import look_points

#: What stands for a look: its number of points, or its sample.
Of = TypeVar("Of")

#: Weight of the first look over that of a later one, if a sweep declares no largest number of points. Most
#: such sweeps are looked at once. The first look then has a level of 3.9 % instead of 5 %.
FIRST_WEIGHT = 4.0

#: Nodes of the integral between two looks. With 96, the probabilities are exact to seven digits.
_NUM_NODES = 96


@dataclass(frozen=True, slots=True)
class Looks:
    """The numbers of points at which a sweep takes its verdicts.

    Attributes:
      points: in ascending order; the first n points of the design are a sample of n points.
      weights: the level of each look relative to the others.
    """

    points: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, points: int, max_points: int | None = None) -> "Looks":
        """Returns the looks at `points`, at its doublings, and at `max_points`.

        With `max_points`, levels grow with the square root of the points: between equal levels, which stop
        soonest, and levels in proportion to the points, which lose the least at the last look. Without it,
        the first look has most of the level.

        Raises:
          ValueError: `points` is below 1, or `max_points` is below `points`.
        """
        if points < 1 or (max_points is not None and max_points < points):
            raise ValueError(f"need 1 <= points <= max_points, got {points=}, {max_points=}")
        found = look_points(points, max_points)
        if max_points is None:
            return cls(found, (FIRST_WEIGHT, *(1.0 for _ in found[1:])))
        return cls(found, tuple(math.sqrt(n / max_points) for n in found))

    @classmethod
    def once(cls, points: int) -> "Looks":
        """Returns one look, which has the whole level."""
        return cls.of(points, points)

    @property
    def last(self) -> int:
        """The number of points of the last look. More points give no new verdict."""
        return self.points[-1]

    def reached(self, num_points: int) -> tuple[int, ...]:
        """Returns the looks that a sample of this size has reached."""
        return tuple(n for n in self.points if n <= num_points)

    def following(self, num_points: int) -> int | None:
        """Returns the first look beyond this number of points. None after the last."""
        return next((n for n in self.points if n > num_points), None)

    def levels(self, alpha: float) -> tuple[float, ...]:
        """Returns the level of each look, such that the probability that any look rejects is alpha."""
        return _levels(self, alpha)

    def level_at(self, num_points: int, alpha: float) -> float:
        """Returns the level of the latest look that a sample of this size has reached, else of the first."""
        return self.levels(alpha)[max(len(self.reached(num_points)) - 1, 0)]

    def adjusted(self, p_values: Sequence[float]) -> float:
        """Returns the p-value of all looks so far: the smallest alpha at which one of them has rejected.

        Args:
          p_values: of the looks that were reached, in their order.

        Raises:
          ValueError: there are no p-values, or more than looks.
        """
        if not 0 < len(p_values) <= len(self.points):
            raise ValueError(f"need 1 to {len(self.points)} p-values, got {len(p_values)}")
        pairs = zip(p_values, self.weights, strict=False)
        return _total_level(self, min(p / weight for p, weight in pairs))


def deciding(
    seen: Sequence[tuple[Of, Estimate]], decides: Callable[[Estimate], bool] = lambda found: found.excludes_0
) -> tuple[Of, Estimate]:
    """Returns the latest look whose interval decides, else the latest look, with its interval.

    The intervals of all looks hold together, so any of them may be shown.

    Args:
      seen: every look that was reached, in their order, with its interval at its own level. Not empty.
      decides: returns whether an interval decides: if it excludes 0, unless another rule is given.
    """
    return next((one for one in reversed(seen) if decides(one[1])), seen[-1])


def crossing_probability(levels: Sequence[float], points: Sequence[int]) -> float:
    """Returns the probability that a true hypothesis is rejected at any look with these two-sided levels.

    The statistic at n points is a sum S of independent normal terms. The density of the sums that no look has
    rejected is integrated from one look to the next.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NUM_NODES)
    sums, mass, before = np.zeros(1), np.ones(1), 0.0
    for level, count in zip(levels, points, strict=True):
        # At a level of 1, every sample is rejected.
        limit = -float(special.ndtri(min(level, 1.0) / 2)) * math.sqrt(count)
        spread = math.sqrt(count - before)
        ends = limit * nodes
        steps = (ends[:, None] - sums) / spread
        density = np.exp(-(steps**2) / 2) / (math.sqrt(2 * math.pi) * spread)
        sums, mass, before = ends, limit * weights * (density @ mass), count
    return min(1.0, max(0.0, 1 - float(mass.sum())))


@functools.lru_cache(maxsize=4096)
def _total_level(looks: Looks, scale: float) -> float:
    """Returns the probability that any look rejects, if each has the level `scale` times its weight."""
    levels = [min(1.0, scale * weight) for weight in looks.weights]
    if len(levels) == 1 or max(levels) >= 1:
        return max(levels)
    # Not below the largest single level, which rounding of the integral might undercut.
    return max(*levels, crossing_probability(levels, looks.points))


@functools.lru_cache(maxsize=1024)
def _levels(looks: Looks, alpha: float) -> tuple[float, ...]:
    most = alpha / max(looks.weights)
    # By Bonferroni the scale is at least alpha over the sum of the weights.
    least = alpha / sum(looks.weights)
    if len(looks.points) > 1:
        most = float(
            optimize.brentq(lambda scale: _total_level(looks, scale) - alpha, least, most, xtol=1e-12)
        )
    return tuple(most * weight for weight in looks.weights)
