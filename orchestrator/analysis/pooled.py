"""Every arm against the first one over all cells: one verdict, the prediction for a new cell, odd cells."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.analysis.summary import (
    Summary,
    common_reference_of,
    in_cells,
    most_points,
    num_ended_points,
)
from orchestrator.stats.intervals import CONFIDENCE, MIN_SAMPLE, Estimate, Scores
from orchestrator.stats.looks import Looks, deciding
from orchestrator.stats.measures import MEASURES, Measure, point_scores, score_ends
from orchestrator.stats.paired import SignedRanks
from orchestrator.stats.pooled import (
    Deviation,
    Heterogeneity,
    deviations,
    heterogeneity,
    in_a_new_cell,
    over_these_cells,
)
from orchestrator.stats.significance import holm, holm_factor


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
      look: the number of points of the look that decided, or of the latest one; None before the first.
      shift: the typical difference of a point's mean over the cells, at that look, with the interval of the
        test at the level that the looks and the family leave it. It excludes 0 exactly if the test finds a
        difference. None before the first look.
      better: the better arm by the test and by the sign of `over`, which must agree; None if open.
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
    look: int | None
    shift: Estimate | None
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
        rows = [_pooled(cells, arm, measure, num_points) for arm in others]
        tests = [_tests(cells, row, looks, num_points) for row in rows]
        values = {
            index: looks.adjusted([test.p_value for test in seen]) for index, seen in enumerate(tests) if seen
        }
        adjusted = dict(zip(values, holm(list(values.values())), strict=True))
        for index, row in enumerate(rows):
            if index in values:
                row = dataclasses.replace(
                    row, p_value=values[index], p_adjusted=adjusted[index], num_in_family=len(values)
                )
                rows[index] = _judged(row, looks, tests[index])
            elif not row.because:
                waits = f"the first look is at {looks.points[0]} points of every cell"
                rows[index] = dataclasses.replace(row, because=waits)
        found += rows
    return found


def _tests(
    cells: Sequence[Sequence[Summary]], row: Pooled, looks: Looks, num_points: int
) -> list[SignedRanks]:
    """Returns the test at every look that all cells have reached."""
    if not row.num_points:
        return []
    arms = [summary for cell in cells for summary in _pair(cell, row.arm)]
    return [
        SignedRanks.of(_differences(cells, row.arm, row.measure, count)[0].mean(axis=1))
        for count in looks.reached(num_ended_points(arms, num_points))
    ]


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
        look=None,
        shift=None,
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
    enough = len(points) >= MIN_SAMPLE
    return dataclasses.replace(
        found,
        over=over,
        new_cell=in_a_new_cell(differences_PC, ends, over),
        interval_over="blocks" if len(set(blocks)) >= MIN_SAMPLE else "points",
        heterogeneity=heterogeneity(differences_PC) if enough else None,
        deviations=tuple(deviations(differences_PC)) if enough else (),
    )


def _judged(row: Pooled, looks: Looks, tests: Sequence[SignedRanks]) -> Pooled:
    """Returns the row with the verdict of its adjusted test, and with the interval of that test."""
    over, p_adjusted = row.over, row.p_adjusted
    if over is None or p_adjusted is None:
        return row
    levels = looks.levels((1 - CONFIDENCE) / holm_factor(row.p_value, p_adjusted, row.num_in_family))
    seen = [
        (count, test.interval(level)) for count, test, level in zip(looks.points, tests, levels, strict=False)
    ]
    look, shift = deciding(seen)
    row = dataclasses.replace(row, look=look, shift=shift)
    if row.because:
        return row
    if not shift.excludes_0:
        return dataclasses.replace(row, because=shift.because or f"p = {p_adjusted:.2f}")
    if shift.value * over.value <= 0:
        return dataclasses.replace(row, because="the signed ranks favour one arm, the mean the other")
    arm_is_better = (shift.value > 0) == MEASURES[row.measure].higher_is_better
    return dataclasses.replace(row, better=row.arm if arm_is_better else row.base_arm)
