"""Every arm against the first one over all cells: one verdict, the prediction for a new cell, odd cells."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.analysis.summary import Summary, common_reference_of, in_cells, most_points
from orchestrator.stats.intervals import CONFIDENCE, DIFFERS, MIN_SAMPLE, Estimate, Scores
from orchestrator.stats.looks import Looks
from orchestrator.stats.measures import MEASURES, Measure, point_scores, score_ends
from orchestrator.stats.paired import SignedRanks
from orchestrator.stats.pooled import (
    Deviation,
    Heterogeneity,
    better_over_cells_p,
    deviations,
    heterogeneity,
    in_a_new_cell,
    over_these_cells,
)
from orchestrator.stats.significance import holm


@dataclass(frozen=True, slots=True)
class Pooled:
    """One measure of one arm against the reference arm, over all cells, on the points that every cell has.

    Cells weigh alike. The unit is the point with all its cells, because cells share their points.

    Attributes:
      measure: name of a measure that decides.
      base_arm, arm: the first arm of the sweep, and the arm compared to it.
      cells: names of the cells, at least two.
      num_points: points that both arms have in every cell.
      num_left_out: planned points that at least one arm lacks in at least one cell.
      over: the mean over cells of `arm` minus `base_arm`, with its interval for these cells. Like that of a
        contrast it allows for divergences that were not drawn, so it may contain 0 although the test is
        settled.
      new_cell: the same mean with the prediction interval of the difference in a new cell of this kind.
      interval_over: points or blocks.
      better: the better arm by the adjusted test and by the sign of `over`, which must agree; None if open.
      because: the reason if it is open, else empty.
      p_value: of signed ranks of each point's mean difference over the cells; None without a point.
      p_adjusted: by Holm's method over the arms.
      num_in_family: number of arms of the adjustment.
      heterogeneity: how much the cells differ; None below MIN_SAMPLE points.
      deviations: each of `cells` against the others; empty below MIN_SAMPLE points.
    """

    measure: Measure
    base_arm: str
    arm: str
    cells: tuple[str, ...]
    num_points: int
    num_left_out: int
    over: Estimate | None
    new_cell: Estimate | None
    interval_over: Literal["points", "blocks"]
    better: str | None
    because: str
    p_value: float | None
    p_adjusted: float | None
    num_in_family: int
    heterogeneity: Heterogeneity | None
    deviations: tuple[Deviation, ...]

    @property
    def disagreeing(self) -> dict[str, Deviation]:
        """The cells that stand out from the others, by name."""
        return {
            cell: deviation
            for cell, deviation in zip(self.cells, self.deviations, strict=False)
            if deviation.disagrees
        }


def pooled(
    summaries: Sequence[Summary], looks: Looks | None = None, num_points: int | None = None
) -> list[Pooled]:
    """Returns the pooled difference of every arm and deciding measure; empty below two cells or two arms.

    Estimates are of all points. The test is taken at the looks that all cells have reached, as for contrasts.

    Args:
      summaries: of all arms in all cells.
      looks: as declared; one look at all points if left out.
      num_points: of the design so far; the most that any arm has if left out.
    """
    num_points = num_points or most_points(summaries)
    looks = looks or Looks.once(num_points)
    cells = in_cells(summaries)
    if len(cells) < 2:
        return []
    others = [summary.arm for summary in cells[0][1:]]
    found = []
    for measure in (measure for measure, info in MEASURES.items() if info.decides):
        rows = [_at_looks(cells, arm, measure, looks, num_points) for arm in others]
        tested = [index for index, row in enumerate(rows) if row.p_value is not None]
        values = [value for row in rows if (value := row.p_value) is not None]
        for index, adjusted in zip(tested, holm(values), strict=True):
            rows[index] = _judged(
                dataclasses.replace(rows[index], p_adjusted=adjusted, num_in_family=len(tested))
            )
        found += rows
    return found


def _at_looks(
    cells: Sequence[Sequence[Summary]], arm: str, measure: Measure, looks: Looks, num_points: int
) -> Pooled:
    """Returns the pooled difference with the p-value of all looks so far, and without its verdict."""
    found = _pooled(cells, arm, measure, num_points)
    if not found.num_points:
        return found
    pairs = [_pair(cell, arm) for cell in cells]
    num_ended = min([num_points, *(s.open_point for pair in pairs for s in pair if s.open_point is not None)])
    p_values = []
    for count in looks.reached(num_ended):
        differences_PC, _ = _differences(cells, arm, measure, count)
        p_values.append(better_over_cells_p(differences_PC) if differences_PC.size else 1.0)
    if p_values:
        return dataclasses.replace(found, p_value=looks.adjusted(p_values))
    first = looks.points[0]
    waits = f"the first look is at {first} points, and {num_ended} have ended in every cell"
    return dataclasses.replace(found, because=found.because or waits)


def _pair(cell: Sequence[Summary], arm: str) -> tuple[Summary, Summary]:
    return cell[0], next(summary for summary in cell if summary.arm == arm)


def _shared_points(pairs: Sequence[tuple[Summary, Summary]], num_points: int) -> list[int]:
    """Returns the points, below a number, that both arms have in every cell."""
    sampled = [summary.errors_pct for pair in pairs for summary in pair]
    return [p for p in pairs[0][0].errors_pct if p < num_points and all(p in errors for errors in sampled)]


def _differences(
    cells: Sequence[Sequence[Summary]], arm: str, measure: Measure, num_points: int
) -> tuple[Scores, float]:
    """Returns the differences of the first points, of shape (points, cells), and the largest possible one."""
    pairs = [_pair(cell, arm) for cell in cells]
    points = _shared_points(pairs, num_points)
    columns, reaches = [], []
    for cell, pair in zip(cells, pairs, strict=True):
        errors = [[summary.errors_pct[point] for point in points] for summary in pair]
        common = common_reference_of(cell, num_points)
        scores = [point_scores(measure, sample, common) for sample in errors]
        low, high = score_ends(measure, common, *errors) if points else (0.0, 0.0)
        columns.append(scores[1] - scores[0])
        reaches.append(high - low)
    return np.stack(columns, axis=1), float(np.mean(reaches))


def _pooled(cells: Sequence[Sequence[Summary]], arm: str, measure: Measure, num_points: int) -> Pooled:
    """Returns the pooled difference of the first points, without its test."""
    pairs = [_pair(cell, arm) for cell in cells]
    base, other = pairs[0]
    refused = [
        f"{summary.arm} in {summary.cell}: {summary.refused[measure]}"
        for pair in pairs
        for summary in pair
        if measure in summary.refused
    ]
    points = _shared_points(pairs, num_points)
    planned = max(summary.num_points for pair in pairs for summary in pair)
    found = Pooled(
        measure=measure,
        base_arm=base.arm,
        arm=other.arm,
        cells=tuple(first.cell for first, _ in pairs),
        num_points=len(points),
        num_left_out=planned - len(points),
        over=None,
        new_cell=None,
        interval_over="points",
        better=None,
        because="; ".join(refused),
        p_value=None,
        p_adjusted=None,
        num_in_family=1,
        heterogeneity=None,
        deviations=(),
    )
    if not points:
        return dataclasses.replace(found, because=found.because or "no point has a result in every cell")
    differences_PC, reach = _differences(cells, arm, measure, num_points)
    ends = (-reach, reach)
    blocks = [base.blocks[point] for point in points]
    over = over_these_cells(differences_PC, ends, blocks)
    means = differences_PC.mean(axis=1)
    num_differing = int(np.count_nonzero(np.abs(means) > DIFFERS))
    because = found.because
    if not because and num_differing < MIN_SAMPLE:
        because = f"{num_differing} of {len(points)} points differ, {MIN_SAMPLE} are needed"
    elif not because and SignedRanks.of(means).interval(1 - CONFIDENCE).value * over.value <= 0:
        because = "the signed ranks favour one arm, the mean the other"
    enough = len(points) >= MIN_SAMPLE
    return dataclasses.replace(
        found,
        over=over,
        new_cell=in_a_new_cell(differences_PC, ends, over),
        interval_over="blocks" if len(set(blocks)) >= MIN_SAMPLE else "points",
        because=because,
        heterogeneity=heterogeneity(differences_PC) if enough else None,
        deviations=tuple(deviations(differences_PC)) if enough else (),
    )


def _judged(row: Pooled) -> Pooled:
    """Returns the row with the verdict of its adjusted test."""
    if row.because or row.over is None or row.p_adjusted is None:
        return row
    if row.p_adjusted >= 1 - CONFIDENCE:
        return dataclasses.replace(row, because=f"p = {row.p_adjusted:.2f}")
    arm_is_better = (row.over.value > 0) == MEASURES[row.measure].higher_is_better
    return dataclasses.replace(row, better=row.arm if arm_is_better else row.base_arm)
