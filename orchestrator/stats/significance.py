"""Correction of p-values for the number of tests."""

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted by Holm's method: alpha bounds the probability of any false rejection.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Stat. 6, 65-70.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * np.asarray(p_values)[order]))
    return [float(value) for value in adjusted]


def holm_factor(p_value: float | None, p_adjusted: float | None, num_in_family: int) -> float:
    """Returns the number by which Holm's method divides the level of a test, so that its interval shares it.

    Where the adjusted p-value is cut off at 1, the factor is lost, and the largest one is returned.
    """
    if p_value and p_adjusted is not None and p_adjusted < 1:
        return p_adjusted / p_value
    return float(num_in_family)
