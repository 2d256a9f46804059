"""Paired differences pooled over cells: over these cells, in a new cell, and the cell that disagrees.

All cells of a sweep share their points: point i has the same quantiles and seeds in each of them. So the
differences of two cells at one point may go together, and cells are no independent studies. Everything here
takes a point with all its cells as the unit, and estimates from the points how cells go together.

Cells weigh alike. Weights by inverse variance are the textbook's, but a cell in which a rare divergence was
not drawn seems the most precise, so these weights depend on the very result. With equal weights, the moment
estimate of the variance between cells is that of Paule and Mandel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from orchestrator.stats.intervals import (
    CONFIDENCE,
    DIFFERS,
    MIN_SAMPLE,
    Estimate,
    Scores,
    block_mean,
    bounded_mean,
)
from orchestrator.stats.significance import holm

#: Fewer cells do not show how cells differ: of two, neither disagrees with the other, and Student's factor of
#: one degree of freedom is 12.7.
MIN_CELLS = 3


@dataclass(frozen=True, slots=True)
class Heterogeneity:
    """The differences between cells, against what the points explain.

    Attributes:
      between_sd: standard deviation of the cells' true differences (tau); 0 if they differ less than the
        points explain.
      q: the spread of cells in units of what the points explain. If the cells are alike, its mean is one less
        than their number. None if the points explain nothing.
      i_squared: the share of that spread that the points do not explain; None with `q`.
      p_value: of cells that are alike; None if all differences between cells are 0.
    """

    between_sd: float
    q: float | None
    i_squared: float | None
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Deviation:
    """One cell against the others.

    Attributes:
      value: mean difference in the cell.
      others: equally weighted mean over the other cells.
      p_value, p_adjusted: of the studentised deviation, and by Holm over the cells. None if it is not known.
    """

    value: float
    others: float
    p_value: float | None
    p_adjusted: float | None

    @property
    def disagrees(self) -> bool:
        """True if the cell stands out from the others by more than points and cells explain."""
        return self.p_adjusted is not None and self.p_adjusted < 1 - CONFIDENCE


def over_these_cells(
    differences_PC: Scores, ends: tuple[float, float], blocks: Sequence[int] | None = None
) -> Estimate:
    """Returns the mean over cells of the mean difference, with its 95 % interval over points.

    The cells are fixed, so their number does not widen the interval, and two are enough.

    Args:
      differences_PC: paired differences, a row per point and a column per cell.
      ends: lowest and highest possible difference.
      blocks: the independent block of each point; used if there are at least MIN_SAMPLE.

    Raises:
      ValueError: there are no values, or a value is outside the ends.
    """
    means = np.asarray(differences_PC, dtype=np.float64).mean(axis=1)
    if blocks is not None and len(set(blocks)) >= MIN_SAMPLE:
        return block_mean(means, blocks, ends)
    return bounded_mean(means, ends)


def in_a_new_cell(differences_PC: Scores, ends: tuple[float, float], over: Estimate) -> Estimate:
    """Returns the mean over cells, with the 95 % prediction interval of the mean difference in a new cell.

    Cells are taken as draws from a normal population of cells. The interval is Student's for one more draw,
    and the interval over points is added in quadrature, because all cells share their points. The observed
    spread of the cells is not reduced by what the points explain. So reduced, it is 0 in many samples of few
    cells, and the prediction interval is too short (`python -m benchmarks.coverage_cells`).

    Args:
      differences_PC: paired differences, a row per point and a column per cell.
      ends: lowest and highest possible difference.
      over: the estimate of `over_these_cells`.

    Source: Higgins, Thompson and Spiegelhalter 2009, J. R. Stat. Soc. A 172, 137-159; the spread of the cells
      with Student's factor as of Hartung and Knapp 2001, Stat. Med. 20, 3875-3889; intervals of independent
      parts in quadrature after Zou and Donner 2008, Stat. Med. 27, 1693-1702.
    """
    num_cells = differences_PC.shape[1]
    if num_cells < MIN_CELLS:
        return Estimate(over.value, because=f"{num_cells} cells, {MIN_CELLS} are needed")
    if over.low is None or over.high is None:
        return Estimate(over.value, because=over.because)
    spread = float(differences_PC.mean(axis=0).std(ddof=1)) * math.sqrt(1 + 1 / num_cells)
    reach = spread * float(special.stdtrit(num_cells - 1, (1 + CONFIDENCE) / 2))
    return Estimate(
        over.value,
        max(ends[0], over.value - math.hypot(reach, max(0.0, over.value - over.low))),
        min(ends[1], over.value + math.hypot(reach, max(0.0, over.high - over.value))),
    )


def heterogeneity(differences_PC: Scores) -> Heterogeneity:
    """Returns how much the cells differ, and the test that they are alike.

    It is the analysis of variance of points by cells. Its F has Greenhouse and Geisser's degrees of freedom,
    because cells may differ in their variance, and some may go together more than others.

    Args:
      differences_PC: paired differences; at least two points and two cells.

    Raises:
      ValueError: there are fewer.

    Source: Greenhouse and Geisser 1959, Psychometrika 24, 95-112; for I^2 Higgins and Thompson 2002, Stat.
      Med. 21, 1539-1558.
    """
    num_points, num_cells = differences_PC.shape
    if min(num_points, num_cells) < 2:
        raise ValueError(f"need two points and two cells, got {num_points} and {num_cells}")
    covariance_CC = np.cov(differences_PC, rowvar=False)
    spread, within = _spreads(differences_PC.mean(axis=0), covariance_CC, num_points)
    between_sd = math.sqrt(max(0.0, spread - within))
    if within <= DIFFERS**2:
        return Heterogeneity(between_sd, None, None, 0.0 if spread > DIFFERS**2 else None)
    f = spread / within
    # Without what the cells share at each point. The ratio is 1 / (cells - 1) to 1.
    centred_CC = covariance_CC - covariance_CC.mean(axis=0)
    centred_CC -= centred_CC.mean(axis=1, keepdims=True)
    epsilon = np.trace(centred_CC) ** 2 / (centred_CC**2).sum() / (num_cells - 1)
    freedom = epsilon * (num_cells - 1)
    p_value = float(special.fdtrc(freedom, freedom * (num_points - 1), f))
    return Heterogeneity(between_sd, f * (num_cells - 1), 1 - 1 / f if f > 1 else 0.0, p_value)


def deviations(differences_PC: Scores) -> list[Deviation]:
    """Returns each cell against the mean of the others, with the p-value of its studentised deviation.

    The deviation is divided by what the points and the spread of the other cells explain. The variance
    between the other cells has few degrees of freedom, that of the points has many; the sum has Welch's.
    So one cell that differs from many that are alike stands out, and a cell does not where all differ.
    What the points explain is at least that of all cells together: by itself, a cell in which a rare
    divergence was not drawn seems certain, and would stand out by its luck.

    Args:
      differences_PC: paired differences; at least two points and two cells. There is no p-value below
        MIN_CELLS cells or MIN_SAMPLE points.

    Raises:
      ValueError: there are fewer than two points or cells.

    Source: Viechtbauer and Cheung 2010, Res. Synth. Methods 1, 112-125, for studentised deleted residuals;
      Satterthwaite 1946, Biometrics Bull. 2, 110-114, for the degrees of freedom.
    """
    num_points, num_cells = differences_PC.shape
    if min(num_points, num_cells) < 2:
        raise ValueError(f"need two points and two cells, got {num_points} and {num_cells}")
    means_C, covariance_CC = differences_PC.mean(axis=0), np.cov(differences_PC, rowvar=False)
    # The variance of a cell minus the others if the cells are alike: a mean of one over a mean of the rest.
    if_alike = _spreads(means_C, covariance_CC, num_points)[1] * num_cells / (num_cells - 1)
    values, others, p_values = [], [], []
    for cell in range(num_cells):
        rest = np.arange(num_cells) != cell
        weights_C = np.where(rest, -1 / (num_cells - 1), 1.0)
        values.append(float(means_C[cell]))
        others.append(float(means_C[rest].mean()))
        if num_cells >= MIN_CELLS and num_points >= MIN_SAMPLE:
            of_points = max(if_alike, float(weights_C @ covariance_CC @ weights_C) / num_points)
            spread, within = _spreads(means_C[rest], covariance_CC[np.ix_(rest, rest)], num_points)
            of_cells = max(0.0, spread - within) * (1 + 1 / (num_cells - 1))
            p_values.append(
                _welch_p(values[-1] - others[-1], (of_points, of_cells), (num_points - 1, num_cells - 2))
            )
    if not p_values:
        return [Deviation(*one, None, None) for one in zip(values, others, strict=True)]
    return [Deviation(*one) for one in zip(values, others, p_values, holm(p_values), strict=True)]


def _spreads(means_C: Scores, covariance_CC: Scores, num_points: int) -> tuple[float, float]:
    """Returns the variance of the cells' means, and its mean if the cells are alike."""
    num_cells = means_C.size
    own = float(np.trace(covariance_CC)) - float(covariance_CC.sum()) / num_cells
    return float(means_C.var(ddof=1)), own / (num_cells - 1) / num_points


def _welch_p(mean: float, variances: tuple[float, float], freedoms: tuple[int, int]) -> float:
    """Returns the two-sided p-value of a mean whose variance is a sum of two estimates."""
    total = sum(variances)
    if total <= DIFFERS**2:
        return 0.0 if abs(mean) > DIFFERS else 1.0
    parts = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True))
    return 2 * float(special.stdtr(total**2 / parts, -abs(mean) / math.sqrt(total)))
