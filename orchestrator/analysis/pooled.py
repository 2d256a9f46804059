"""Every arm against the first one over all cells: one verdict, the prediction for a new cell, odd cells."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.analysis.summary import Summary
from orchestrator.stats.intervals import CONFIDENCE, DIFFERS, MIN_SAMPLE, Estimate
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
    if num_points is None:
        num_points = max((point + 1 for s in summaries for point in s.blocks), default=1)
    looks = looks or Looks.once(num_points)
    by_cell: dict[str, dict[str, Summary]] = {}
    for summary in summaries:
        by_cell.setdefault(summary.cell, {})[summary.arm] = summary
    if len(by_cell) < 2:
        return []
    base, *others = next(iter(by_cell.values()))
    found = []
    for measure in (measure for measure, info in MEASURES.items() if info.decides):
        rows = [
            _at_looks([(arms[base], arms[arm]) for arms in by_cell.values()], measure, looks, num_points)
            for arm in others
        ]
        tested = [index for index, row in enumerate(rows) if row.p_value is not None]
        values = [value for row in rows if (value := row.p_value) is not None]
        for index, adjusted in zip(tested, holm(values), strict=True):
            rows[index] = _judged(
                dataclasses.replace(rows[index], p_adjusted=adjusted, num_in_family=len(tested))
            )
        found += rows
    return found


def _at_looks(
    pairs: Sequence[tuple[Summary, Summary]], measure: Measure, looks: Looks, num_points: int
) -> Pooled:
    """Returns the pooled difference with the p-value of all looks so far, and without its verdict."""
    opens = [s.open_point for pair in pairs for s in pair if s.open_point is not None]
    num_ended = min([num_points, *opens])
    found = _pooled(pairs, measure, num_points)
    tests = [_pooled(pairs, measure, count).p_value for count in looks.reached(num_ended)]
    if not tests and not found.because:
        first = looks.points[0]
        found = dataclasses.replace(
            found, because=f"the first look is at {first} points, and {num_ended} have ended in every cell"
        )
    p_values = [1.0 if p_value is None else p_value for p_value in tests]
    return dataclasses.replace(found, p_value=looks.adjusted(p_values) if p_values else None)


def _pooled(pairs: Sequence[tuple[Summary, Summary]], measure: Measure, num_points: int) -> Pooled:
    """Returns the pooled difference of the first points, from the two arms of every cell."""
    base, other = pairs[0]
    refused = [
        f"{summary.arm} in {summary.cell}: {summary.refused[measure]}"
        for pair in pairs
        for summary in pair
        if measure in summary.refused
    ]
    sampled = [summary.errors_pct for pair in pairs for summary in pair]
    points = [
        point
        for point in base.errors_pct
        if point < num_points and all(point in errors for errors in sampled)
    ]
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
    columns, all_ends = [], []
    for pair in pairs:
        errors = [[summary.errors_pct[point] for point in points] for summary in pair]
        # As in `contrasts`: unless it is confirmed, a reference is of the same points.
        common = pair[0].common_reference_pct
        if pair[0].reference_kind == "sweep_minimum":
            common = min(min(sample) for sample in errors)
        scores = [point_scores(measure, sample, common) for sample in errors]
        low, high = score_ends(measure, common, *errors)
        columns.append(scores[1] - scores[0])
        all_ends.append(high - low)
    differences_PC = np.stack(columns, axis=1)
    reach = float(np.mean(all_ends))
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
        p_value=better_over_cells_p(differences_PC),
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
