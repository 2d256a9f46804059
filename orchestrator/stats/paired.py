"""Tests of paired differences, each with the interval that belongs to it.

The interval of a test holds the values that the test does not reject. So it excludes 0 exactly if the test
rejects 0, at every level. Pairs without a difference are left out by both tests, so both are about the pairs
that differ. At a setting where both arms diverge, for example, neither is better.
"""

import functools
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

from orchestrator.stats.intervals import DIFFERS, Estimate, Scores

#: Differing pairs beyond which the distribution of the rank sum is its normal limit, with the correction for
#: continuity. There, p-values agree to 1e-3.
_MAX_EXACT = 300


class PairedTest(Protocol):
    """A test of whether paired differences favour one side."""

    @property
    def num_higher(self) -> int:
        """The number of differences above 0."""

    @property
    def num_lower(self) -> int:
        """The number of differences below 0."""

    @property
    def p_value(self) -> float:
        """The two-sided p-value of no difference; 1 if no pair differs."""

    def interval(self, alpha: float) -> Estimate:
        """Returns the estimate with the interval of the test at the level alpha."""


@dataclass(frozen=True, slots=True)
class NetShare:
    """McNemar's exact test of two shares: a binomial test over the pairs that differ.

    Its estimate is the net share: of the pairs that differ, the share above 0 minus the share below. Its
    interval is that of Clopper and Pearson 1934, Biometrika 26, 404-413.
    """

    num_higher: int
    num_lower: int

    @classmethod
    def of(cls, differences: Scores) -> "NetShare":
        """Returns the net share of differences of shape (pairs,)."""
        higher, lower = (int(np.count_nonzero(sign * differences > DIFFERS)) for sign in (1, -1))
        return cls(higher, lower)

    @property
    def p_value(self) -> float:
        """Twice the smaller tail, which at equal chances is the p-value of every two-sided binomial test."""
        count = self.num_higher + self.num_lower
        fewer = min(self.num_higher, self.num_lower)
        return min(1.0, 2 * float(special.bdtr(fewer, count, 0.5))) if count else 1.0

    def interval(self, alpha: float) -> Estimate:
        """Returns the net share with its exact interval at the level alpha."""
        higher, lower = self.num_higher, self.num_lower
        count = higher + lower
        if not count:
            return Estimate(0.0, because="no pair differs")
        value = (higher - lower) / count
        if 2 * 0.5**count > alpha:
            return Estimate(value, because=_too_few(count))
        least = float(special.betaincinv(higher, lower + 1, alpha / 2)) if higher else 0.0
        most = float(special.betaincinv(higher + 1, lower, 1 - alpha / 2)) if lower else 1.0
        return Estimate(value, 2 * least - 1, 2 * most - 1)


@dataclass(frozen=True, eq=False)
class SignedRanks:
    """Wilcoxon's signed-rank test of whether differences are symmetric about 0.

    Test and interval are computed from the Walsh averages, the means of all pairs of differences, each with
    itself included. The median of these is the Hodges-Lehmann estimate of the typical difference. Both are
    exact at any sample size, and conservative if differences are tied.

    Source: Hodges and Lehmann 1963, "Estimates of Location Based on Rank Tests", Ann. Math. Stat. 34,
    598-611; Hollander, Wolfe and Chicken 2014, "Nonparametric Statistical Methods", sections 3.1 to 3.3.

    Attributes:
      num_higher, num_lower: pairs whose difference is above 0, and below.
      averages: the Walsh averages of the differing pairs, ascending, of shape (m (m + 1) / 2,) for m of them.
    """

    num_higher: int
    num_lower: int
    averages: NDArray[np.float64]

    @classmethod
    def of(cls, differences: Scores) -> "SignedRanks":
        """Returns the signed ranks of differences of shape (pairs,). Differences within rounding are none."""
        sample = np.asarray(differences, dtype=np.float64)
        differing = sample[np.abs(sample) > DIFFERS]
        first, second = np.triu_indices(differing.size)
        return cls(
            int(np.count_nonzero(differing > 0)),
            int(np.count_nonzero(differing < 0)),
            np.sort((differing[first] + differing[second]) / 2),
        )

    @property
    def p_value(self) -> float:
        """The two-sided p-value of 0. An average of 0 counts for either side, so ties are conservative."""
        at_most, at_least = (int(np.count_nonzero(sign * self.averages <= DIFFERS)) for sign in (1, -1))
        return min(1.0, 2 * _below(min(at_most, at_least), self.num_higher + self.num_lower))

    def interval(self, alpha: float) -> Estimate:
        """Returns the Hodges-Lehmann estimate with the interval of the test at the level alpha.

        There is no interval if no possible sample of this size is rejected at this level.
        """
        if not self.averages.size:
            return Estimate(0.0, because="no pair differs")
        value, count = float(np.median(self.averages)), self.num_higher + self.num_lower
        rank = _critical(alpha, count)
        if rank is None:
            return Estimate(value, because=_too_few(count))
        return Estimate(value, float(self.averages[rank]), float(self.averages[-1 - rank]))


def _too_few(count: int) -> str:
    return f"only {count} pair{' differs' if count == 1 else 's differ'}, too few for a verdict"


def _critical(alpha: float, count: int) -> int | None:
    """Returns the largest rank sum that the test rejects from below. None if it rejects none."""
    total = count * (count + 1) // 2
    if count <= _MAX_EXACT:
        rejected = int(np.searchsorted(_cumulative(count), alpha / 2, side="right")) - 1
    else:
        rejected = math.floor(total / 2 - 0.5 + _spread(count) * float(special.ndtri(alpha / 2)))
    return None if rejected < 0 else min(rejected, (total - 1) // 2)


def _spread(count: int) -> float:
    """Returns the standard deviation of the sum of `count` random signed ranks."""
    return math.sqrt(count * (count + 1) * (2 * count + 1) / 24)


def _below(rank_sum: int, count: int) -> float:
    """Returns the probability that the sum of `count` random signed ranks is `rank_sum` or less."""
    if count <= _MAX_EXACT:
        return float(_cumulative(count)[rank_sum])
    return float(special.ndtr((rank_sum + 0.5 - count * (count + 1) / 4) / _spread(count)))


@functools.lru_cache(maxsize=512)
def _cumulative(count: int) -> NDArray[np.float64]:
    """Returns P(W <= w) for w from 0 to count (count + 1) / 2: the product of (1 + x^rank) / 2, summed up."""
    chances = np.zeros(count * (count + 1) // 2 + 1)
    chances[0] = 1.0
    last = 0
    for rank in range(1, count + 1):
        shifted = chances[: last + 1] / 2
        chances[: last + 1] = shifted
        chances[rank : last + rank + 1] += shifted
        last += rank
    return np.cumsum(chances)
