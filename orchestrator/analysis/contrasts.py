"""Differences between arms, with intervals, tests and verdicts."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.analysis.summary import Summary
from orchestrator.stats.confirmed import welch
from orchestrator.stats.intervals import (
    CONFIDENCE,
    DIFFERS,
    MIN_SAMPLE,
    Estimate,
    Scores,
    block_mean,
    bounded_mean,
)
from orchestrator.stats.measures import MEASURES, UNCONFIRMED, Measure, Reference, point_scores, score_ends
from orchestrator.stats.significance import holm, mcnemar_p, signed_rank_p, signed_rank_sum
from orchestrator.sweep.config import Primary


@dataclass(frozen=True, slots=True)
class Contrast:
    """One measure of one arm against the reference arm, in one cell, on the points that both have.

    Attributes:
      cell, measure: names of the two.
      primary: True if the sweep file declared this contrast as the primary one.
      base_arm, arm: the first arm of the sweep, and the arm compared to it.
      base_value, value: the measure of each arm on the paired points.
      difference: `value` minus `base_value`, with the interval of `bounded_mean` or `block_mean`. The
        interval allows for divergences that were not drawn, so it may contain 0 although the test is settled.
      interval_over: points or blocks.
      num_pairs: points that both arms have.
      num_unpaired: planned points that at least one arm lacks.
      num_differing: pairs on which the measure differs.
      num_higher: differing pairs on which it is higher in `arm`.
      better: the better arm by the adjusted test and by the sign of the mean difference, which must agree.
        None if the contrast is not settled.
      because: the reason if it is not settled, else empty.
      test: the test of the p-value: `wilcoxon` signed ranks, or exact `mcnemar` for shares.
      p_value: two-sided; None without a pair.
      p_adjusted: by Holm's method over the contrasts of the same measure. Primary contrasts are a separate
        family, so a single primary contrast is not adjusted.
      num_in_family: number of contrasts of the adjustment; 1 if there is none.
    """

    cell: str
    measure: Measure
    primary: bool
    base_arm: str
    arm: str
    base_value: float | None
    value: float | None
    difference: Estimate | None
    interval_over: Literal["points", "blocks"]
    num_pairs: int
    num_unpaired: int
    num_differing: int
    num_higher: int
    better: str | None
    because: str
    test: Literal["mcnemar", "wilcoxon"]
    p_value: float | None
    p_adjusted: float | None
    num_in_family: int


@dataclass(frozen=True, slots=True)
class PeakContrast:
    """The confirmed best of one arm against that of the reference arm.

    Attributes:
      cell, base_arm, arm: names of the three.
      split: `val` is the selection split, `test` the final one.
      difference: error of `arm` minus that of `base_arm` in pp, with Welch's t interval over seeds. It
        compares these two settings. The chance of the search that found them is not included.
      p_value: of Welch's test; None if all seeds agree.
      p_adjusted: by Holm's method over all contrasts on the same split.
    """

    cell: str
    base_arm: str
    arm: str
    split: Literal["val", "test"]
    difference: Estimate
    p_value: float | None
    p_adjusted: float | None


def contrasts(summaries: Sequence[Summary], primary: Primary | None) -> list[Contrast]:
    """Returns the contrast of every arm with the first one of its cell, for every measure."""
    by_cell: dict[str, list[Summary]] = {}
    for summary in summaries:
        by_cell.setdefault(summary.cell, []).append(summary)
    found = [
        _contrast(base, other, measure, primary)
        for base, *others in by_cell.values()
        for other in others
        for measure in MEASURES
    ]
    families: dict[tuple[Measure, bool], list[int]] = {}
    for index, contrast in enumerate(found):
        if contrast.p_value is not None:
            families.setdefault((contrast.measure, contrast.primary), []).append(index)
    for family in families.values():
        values = [value for index in family if (value := found[index].p_value) is not None]
        for index, adjusted in zip(family, holm(values), strict=True):
            found[index] = dataclasses.replace(found[index], p_adjusted=adjusted, num_in_family=len(family))
    return [_judged(contrast) for contrast in found]


def _judged(contrast: Contrast) -> Contrast:
    """Returns the contrast with the verdict of its adjusted test."""
    if contrast.because or contrast.difference is None or contrast.p_adjusted is None:
        return contrast
    if contrast.p_adjusted >= 1 - CONFIDENCE:
        return dataclasses.replace(contrast, because=f"p = {contrast.p_adjusted:.2f}")
    arm_is_better = (contrast.difference.value > 0) == MEASURES[contrast.measure].higher_is_better
    return dataclasses.replace(contrast, better=contrast.arm if arm_is_better else contrast.base_arm)


def peak_contrasts(summaries: Sequence[Summary]) -> list[PeakContrast]:
    """Returns the contrasts of confirmed bests with the first arm of each cell, if both are confirmed."""
    first: dict[str, Summary] = {}
    found: list[PeakContrast] = []
    splits: tuple[Literal["val", "test"], ...] = ("val", "test")
    for summary in summaries:
        base = first.setdefault(summary.cell, summary)
        if base is summary or base.confirmed is None or summary.confirmed is None:
            continue
        for split in splits:
            told = welch(base.confirmed, summary.confirmed, split)
            if told is not None:
                found.append(PeakContrast(summary.cell, base.arm, summary.arm, split, *told, None))
    for split in splits:
        family = [i for i, c in enumerate(found) if c.split == split and c.p_value is not None]
        values = [value for index in family if (value := found[index].p_value) is not None]
        for index, adjusted in zip(family, holm(values), strict=True):
            found[index] = dataclasses.replace(found[index], p_adjusted=adjusted)
    return found


def _contrast(base: Summary, other: Summary, measure: Measure, primary: Primary | None) -> Contrast:
    info = MEASURES[measure]
    refused = [f"{s.arm}: {s.refused[measure]}" for s in (base, other) if measure in s.refused]
    points = [point for point in base.errors_pct if point in other.errors_pct]
    base_errors, errors = ([summary.errors_pct[point] for point in points] for summary in (base, other))
    # The own reference of an arm is the best of all its points, paired or not.
    base_own, own = (Reference.of(s.reference_pct, s.reference_interval) for s in (base, other))
    common = base.common_reference_pct

    def scores_at(base_reference: float | None, reference: float | None) -> tuple[Scores, Scores]:
        pair = (base_reference, reference) if info.own else (common, common)
        return point_scores(measure, base_errors, pair[0]), point_scores(measure, errors, pair[1])

    blocks = [base.blocks[point] for point in points]
    over_blocks = len(set(blocks)) >= MIN_SAMPLE

    def difference_at(base_reference: float | None, reference: float | None) -> Estimate:
        base_scores, scores = scores_at(base_reference, reference)
        low, high = score_ends(measure, common, base_errors, errors)
        ends = (low - high, high - low)
        if over_blocks:
            return block_mean(scores - base_scores, blocks, ends)
        return bounded_mean(scores - base_scores, ends)

    base_scores, scores = scores_at(base_own.value, own.value)
    differences = scores - base_scores
    num_higher, num_lower = (int(np.count_nonzero(sign * differences > DIFFERS)) for sign in (1, -1))
    num_differing = num_higher + num_lower
    difference = difference_at(base_own.value, own.value) if points else None
    if difference is not None and info.own:
        if None in (base_own.low, own.low):
            difference = Estimate(difference.value, because=UNCONFIRMED)
        else:
            least, most = difference_at(base_own.high, own.low), difference_at(base_own.low, own.high)
            difference = dataclasses.replace(difference, low=least.low, high=most.high)
    if info.test == "mcnemar":
        p_value, favoured = mcnemar_p(num_higher, num_lower), float(num_higher - num_lower)
    else:
        p_value, favoured = signed_rank_p(differences), signed_rank_sum(differences)
    because = ""
    if refused:
        because = "; ".join(refused)
    elif difference is None:
        because = "no point has a result in both arms"
    elif info.own:
        because = "measured from each arm's own reference: describes, does not decide"
    elif num_differing < MIN_SAMPLE:
        because = f"{num_differing} of {len(points)} pairs differ, {MIN_SAMPLE} are needed"
    elif favoured * difference.value <= 0:
        because = "the signed ranks favour one arm, the mean the other"
    return Contrast(
        cell=base.cell,
        measure=measure,
        primary=primary is not None
        and primary.measure == measure
        and (primary.cell is None or primary.cell == base.cell),
        base_arm=base.arm,
        arm=other.arm,
        base_value=float(base_scores.mean()) if points else None,
        value=float(scores.mean()) if points else None,
        difference=difference,
        interval_over="blocks" if over_blocks else "points",
        num_pairs=len(points),
        num_unpaired=max(base.num_points, other.num_points) - len(points),
        num_differing=num_differing,
        num_higher=num_higher,
        better=None,
        because=because,
        test=info.test,
        p_value=p_value if points else None,
        p_adjusted=None,
        num_in_family=1,
    )
