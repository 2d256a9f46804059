"""What other ways of computing give: formulas of the literature that tests hold the code to."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import special

from orchestrator.stats.best_of import CONFIDENCE, SUPPORT_PCT, Floats, order_statistic_band
from orchestrator.stats.power import ALPHA, POWER


def mean_band(
    errors_pct: Sequence[float] | Floats,
    budgets: Sequence[int] | None = None,
    confidence: float = CONFIDENCE,
) -> tuple[Floats, Floats]:
    """Bounds on the mean of the best of k, the integral of (1 - F)^k over 0..100, for all k at once.

    Wide, and the wider the further the errors are from the ends of the support: see the head of `peak`.

    Returns:
      Low and high, one per budget (1..n if None), in percent.
    """
    ordered = np.sort(np.asarray(errors_pct, dtype=np.float64))
    ks = np.arange(1, ordered.size + 1) if budgets is None else np.asarray(budgets)
    low, high = order_statistic_band(ordered.size, confidence)
    # Between y_(i) and y_(i+1), F is at least low_i and at most high_(i+1).
    gaps = np.diff(np.concatenate([[SUPPORT_PCT[0]], ordered, [SUPPORT_PCT[1]]]))
    above_least = 1 - np.concatenate([high, [1.0]])
    above_most = 1 - np.concatenate([[0.0], low])
    start = SUPPORT_PCT[0]
    return (
        np.array([start + gaps @ above_least**k for k in ks]),
        np.array([start + gaps @ above_most**k for k in ks]),
    )


def noise_sd(replicates: Iterable[Sequence[float]]) -> float | None:
    """Standard deviation between replicates of a point, in pp, pooled over points; None without any.

    A point of which a replicate diverged is left out: the winner's noise is that of settings that train.

    Args:
      replicates: for each point, the errors of its replicates.
    """
    groups = [np.asarray(group, dtype=np.float64) for group in replicates]
    groups = [group for group in groups if group.size > 1 and group.max() < SUPPORT_PCT[1]]
    if not groups:
        return None
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    return math.sqrt(squares / sum(group.size - 1 for group in groups))


def points_for_two_shares(base: float, other: float) -> int:
    """Points per arm for two unpaired shares to be told apart.

    Raises:
      ValueError: a share outside 0..1, or two equal ones.

    Source: Fleiss, Levin, Paik 2003, "Statistical Methods for Rates and Proportions", section 4.2, without
      the continuity correction.
    """
    if not (0 <= base <= 1 and 0 <= other <= 1) or base == other:
        raise ValueError(f"need two different shares, got {base=}, {other=}")
    middle = (base + other) / 2
    root = _quantile(1 - ALPHA / 2) * math.sqrt(2 * middle * (1 - middle)) + _quantile(POWER) * math.sqrt(
        base * (1 - base) + other * (1 - other)
    )
    return math.ceil((root / (other - base)) ** 2)


def points_for_paired_shares(only_base: float, only_other: float) -> int:
    """Pairs for McNemar's test to tell two shares apart.

    Args:
      only_base: share of pairs that are in for the reference arm and out for the other.
      only_other: the other way round.

    Raises:
      ValueError: not shares, or equal ones.

    Source: Connor 1987, "Sample Size for Testing Differences in Proportions for the Paired-Sample Design",
      Biometrics 43, 207-211.
    """
    if min(only_base, only_other) < 0 or only_base + only_other > 1 or only_base == only_other:
        raise ValueError(f"need two different shares of the pairs, got {only_base=}, {only_other=}")
    differing, difference = only_base + only_other, only_other - only_base
    root = _quantile(1 - ALPHA / 2) * math.sqrt(differing) + _quantile(POWER) * math.sqrt(
        differing - difference**2
    )
    return math.ceil((root / difference) ** 2)


def _quantile(share: float) -> float:
    return float(special.ndtri(share))
