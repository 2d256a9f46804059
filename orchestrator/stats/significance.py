"""Tests of paired differences, and their correction for multiplicity."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from orchestrator.stats.intervals import Scores


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted by Holm's method: alpha bounds the probability of any false rejection.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Stat. 6, 65-70.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * np.asarray(p_values)[order]))
    return [float(value) for value in adjusted]


def signed_rank_p(differences: Scores) -> float:
    """Returns the two-sided p-value of Wilcoxon's signed-rank test, without the pairs that do not differ.

    It is exact without ties up to 50 pairs and with ties up to 13; beyond, it is the normal approximation.
    """
    # Rounded, because equal scores may differ in their last digits.
    rounded = np.round(differences, 9)
    differing = rounded[rounded != 0]
    return float(stats.wilcoxon(differing).pvalue) if differing.size else 1.0


def signed_rank_sum(differences: Scores) -> float:
    """Returns the rank sum of positive minus that of negative differences. Its sign is the favoured side."""
    rounded = np.round(differences, 9)
    differing = rounded[rounded != 0]
    return float(np.sign(differing) @ stats.rankdata(np.abs(differing)))


def mcnemar_p(num_higher: int, num_lower: int) -> float:
    """Returns the two-sided p-value of McNemar's exact test, a binomial test over the pairs that differ."""
    num_differing = num_higher + num_lower
    return float(stats.binomtest(num_higher, num_differing).pvalue) if num_differing else 1.0
