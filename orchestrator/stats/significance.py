"""Tests of paired differences, and their correction for multiplicity."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from orchestrator.stats.intervals import Scores


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values such that rejecting all below alpha errs anywhere with probability alpha at most.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Stat. 6, 65-70.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * np.asarray(p_values)[order]))
    return [float(value) for value in adjusted]


def signed_rank_p(differences: Scores) -> float:
    """Wilcoxon's signed-rank test, two-sided; pairs that do not differ are left out, as he did.

    Exact without ties up to 50 pairs and with ties up to 13, else by the normal approximation.
    """
    # Errors are shares of images: what is equal must not be told apart by rounding.
    rounded = np.round(differences, 9)
    differing = rounded[rounded != 0]
    return float(stats.wilcoxon(differing).pvalue) if differing.size else 1.0


def signed_rank_sum(differences: Scores) -> float:
    """Ranks of the positive differences minus those of the negative ones: the side that the test favours."""
    rounded = np.round(differences, 9)
    differing = rounded[rounded != 0]
    return float(np.sign(differing) @ stats.rankdata(np.abs(differing)))


def mcnemar_p(num_higher: int, num_lower: int) -> float:
    """McNemar's exact test, two-sided: a fair coin for every pair of which one is in and the other out."""
    num_differing = num_higher + num_lower
    return float(stats.binomtest(num_higher, num_differing).pvalue) if num_differing else 1.0
