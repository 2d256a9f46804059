"""Differences between arms, with intervals, tests and verdicts.

A verdict is taken at the declared looks only (`stats.looks`), of the first n points of the design. So it
depends on the results and the declaration, and not on how often or when the report is made. A look waits for
all its points, because those that end first are no fair sample.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.analysis.summary import (
    Summary,
    common_reference_of,
    in_cells,
    most_points,
    num_ended_points,
)
from orchestrator.stats.confirmed import welch
from orchestrator.stats.intervals import (
    CONFIDENCE,
    MIN_SAMPLE,
    Estimate,
    Scores,
    block_mean,
    bounded_mean,
)
from orchestrator.stats.looks import Looks, deciding
from orchestrator.stats.measures import MEASURES, UNCONFIRMED, Measure, Reference, point_scores, score_ends
from orchestrator.stats.paired import NetShare, PairedTest, SignedRanks
from orchestrator.stats.significance import holm, holm_factor
from orchestrator.sweep.config import Primary, Sweep
from orchestrator.sweep.design import LatinDesign, Listing
from orchestrator.trials.declared import Declaration, Declared

Decision = Literal["better", "alike", "open"]

#: Levels of the two verdicts. "Alike" is two one-sided tests of 5 % each, so its interval is one of 90 %.
ALPHA = 1 - CONFIDENCE
ALPHA_ALIKE = 2 * ALPHA


@dataclass(frozen=True, slots=True)
class Contrast:
    """One measure of one arm against the reference arm, in one cell, on the points that both have.

    Attributes:
      cell, measure: names of the two.
      primary: True if the sweep file declared this contrast as the primary one.
      base_arm, arm: the first arm of the sweep, and the arm compared to it.
      base_value, value: the measure of each arm on the paired points.
      difference: `value` minus `base_value`, with the interval of `bounded_mean` or `block_mean`. The
        interval allows for divergences that were not drawn, so it may contain 0 although an arm is better.
      interval_over: points or blocks.
      num_pairs: points that both arms have.
      num_unpaired: planned points that at least one arm lacks.
      decision: `better` if the test finds a difference, `alike` if the means differ by less than the margin,
        else `open`.
      better: the better arm if the decision is `better`, else None.
      because: the reason if the contrast is open, else empty.
      shift: the difference at the pairs that differ, with the interval of the test at the level that the
        looks and the family leave it. It excludes 0 exactly if the test finds a difference. For shares it is
        the net share (`stats.paired.NetShare`), else the Hodges-Lehmann estimate in the measure's unit.
      within: the mean difference with the interval that decides on `alike`, at its own level. It allows for
        divergences that were not drawn.
      margin: in the measure's unit; None for a measure that decides nothing.
      look: the number of points of the look that decided, or of the latest one; `shift`, `within` and the
        numbers of differing pairs are from it. None before the first look: `shift` and `within` are then
        None, and the numbers are of the points so far.
      next_look: the next number of points at which a verdict is taken. None after the last.
      num_differing: pairs on which the measure differs.
      num_higher: differing pairs on which it is higher in `arm`.
      test: the test of the p-value: `wilcoxon` signed ranks, or exact `mcnemar` for shares.
      p_value: two-sided, valid for all looks together; None before the first look. For a measure that decides
        nothing, that of all points.
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
    decision: Decision
    better: str | None
    because: str
    shift: Estimate | None
    within: Estimate | None
    margin: float | None
    look: int | None
    next_look: int | None
    num_differing: int
    num_higher: int
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


def contrasts(
    summaries: Sequence[Summary],
    primary: Primary | None,
    looks: Looks | None = None,
    num_points: int | None = None,
    covers: Callable[[str, str], bool] | None = None,
) -> list[Contrast]:
    """Returns the contrast of every arm with the first one of its cell, for every measure.

    Args:
      summaries: of all arms in all cells.
      primary: the contrast that was declared beforehand, if any.
      looks: as declared; one look at all points if left out.
      num_points: of the design so far; the most that any arm has if left out.
      covers: returns whether a cell and an arm were declared; all of them if left out. A primary contrast of
        others was not declared beforehand.
    """
    num_points = num_points or most_points(summaries)
    looks = looks or Looks.once(num_points)
    pairs = [
        _Pairs(cell, other, measure, declared, looks, num_points)
        for cell in in_cells(summaries)
        for other in cell[1:]
        for declared in [primary if covers is None or covers(other.cell, other.arm) else None]
        for measure in MEASURES
    ]
    families: dict[tuple[Measure, bool], dict[int, float]] = {}
    for index, pair in enumerate(pairs):
        if pair.p_value is not None:
            families.setdefault((pair.measure, pair.is_primary), {})[index] = pair.p_value
    # By index, the adjusted p-value and the size of the family.
    adjusted: dict[int, tuple[float | None, int]] = {
        index: (value, len(family))
        for family in families.values()
        for index, value in zip(family, holm(list(family.values())), strict=True)
    }
    return [pair.contrast(*adjusted.get(index, (None, 1))) for index, pair in enumerate(pairs)]


def headline(compared: Sequence[Contrast]) -> list[Contrast]:
    """Returns the contrasts that are asked about: the declared ones, or those of the default measure."""
    primary = [contrast for contrast in compared if contrast.primary]
    return primary or [contrast for contrast in compared if contrast.measure == Primary().measure]


def contrasts_of(
    summaries: Sequence[Summary], sweep: Sweep, declared: Declared | None = None
) -> list[Contrast]:
    """Returns the contrasts of a sweep, with the looks and the primary contrast that were declared.

    Args:
      summaries: of all arms in all cells.
      sweep: as it is now.
      declared: what was declared before the results. If it is not known, the sweep is taken at its word.
    """
    # A contrast that was chosen after the results were known is one like any other.
    primary = sweep.primary if declared is None or declared.primary_was_declared else None
    num_points = sweep.design.num_points(sweep.levels())
    covers = declared.covers if declared else None
    return contrasts(summaries, primary, looks_of(sweep, declared), num_points, covers)


def looks_of(sweep: Sweep, declared: Declared | None = None) -> Looks:
    """Returns the looks of a sweep: those that were declared before the results, if that is known.

    A grid, a star and a Latin hypercube cannot grow, so they have one look.
    """
    # A version that recorded no declaration took its verdicts once, at all points that there were.
    undeclared = declared is not None and not declared.in_time
    if undeclared or isinstance(sweep.design, Listing | LatinDesign):
        return Looks.once(sweep.design.num_points(sweep.levels()))
    first = declared.declaration if declared else Declaration.of(sweep)
    return Looks.of(first.points, first.max_points)


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


@dataclass(frozen=True, eq=False)
class _Sample:
    """The scores of both arms at the first points of the design.

    Attributes:
      num_points: of the look. It counts points without a pair, too.
      base_scores, scores: one per pair.
      mean: returns the mean difference with its interval at a confidence.
    """

    num_points: int
    base_scores: Scores
    scores: Scores
    test: PairedTest
    mean: Callable[[float], Estimate]


class _Pairs:
    """The pairs of one contrast, as one sample for each look."""

    def __init__(
        self,
        cell: Sequence[Summary],
        other: Summary,
        measure: Measure,
        primary: Primary | None,
        looks: Looks,
        num_points: int,
    ) -> None:
        self.cell, self.base, self.other, self.measure = cell, cell[0], other, measure
        self.info, self.looks = MEASURES[measure], looks
        self.is_primary = (
            primary is not None
            and primary.measure == measure
            and (primary.cell is None or primary.cell == other.cell)
        )
        self.margin = primary.margin if self.is_primary and primary and primary.margin else self.info.margin
        self.refused = [f"{s.arm}: {s.refused[measure]}" for s in (cell[0], other) if measure in s.refused]
        self.points = sorted(point for point in self.base.errors_pct if point in other.errors_pct)
        blocks = {self.base.blocks[point] for point in self.points}
        self.over_blocks = len(blocks) >= MIN_SAMPLE
        self.num_ended = num_ended_points((self.base, other), num_points)
        self.all = self._sample(num_points)
        reached = () if self.info.own or not self.points else looks.reached(self.num_ended)
        self.samples = [self._sample(n) for n in reached]
        tests = [sample.test.p_value for sample in self.samples]
        self.p_value = looks.adjusted(tests) if tests else None
        if self.info.own and self.points:
            # A description, of all points. It has no verdict.
            self.p_value = self.all.test.p_value

    def _sample(self, num_points: int) -> _Sample:
        """Returns the pairs among the first points."""
        points = [point for point in self.points if point < num_points]
        arms = (self.base, self.other)
        base_errors, errors = ([arm.errors_pct[point] for point in points] for arm in arms)
        common = common_reference_of(self.cell, num_points)
        own = [Reference.of(arm.reference_pct, arm.reference_interval) for arm in arms]
        low, high = score_ends(self.measure, common, base_errors, errors) if points else (0.0, 0.0)
        blocks = [self.base.blocks[point] for point in points]

        def scores(base_reference: float | None, reference: float | None) -> tuple[Scores, Scores]:
            pair = (base_reference, reference) if self.info.own else (common, common)
            return (
                point_scores(self.measure, base_errors, pair[0]),
                point_scores(self.measure, errors, pair[1]),
            )

        def mean_at(base_reference: float | None, reference: float | None, confidence: float) -> Estimate:
            if not points:
                return Estimate(0.0, because="no point has a result in both arms")
            base_scores, other_scores = scores(base_reference, reference)
            ends = (low - high, high - low)
            if self.over_blocks:
                return block_mean(other_scores - base_scores, blocks, ends, confidence)
            return bounded_mean(other_scores - base_scores, ends, confidence)

        def mean(confidence: float) -> Estimate:
            found = mean_at(own[0].value, own[1].value, confidence)
            if not self.info.own:
                return found
            if None in (own[0].low, own[1].low):
                return Estimate(found.value, because=UNCONFIRMED)
            least = mean_at(own[0].high, own[1].low, confidence)
            most = mean_at(own[0].low, own[1].high, confidence)
            return dataclasses.replace(found, low=least.low, high=most.high)

        base_scores, other_scores = scores(own[0].value, own[1].value)
        test = NetShare if self.info.test == "mcnemar" else SignedRanks
        return _Sample(num_points, base_scores, other_scores, test.of(other_scores - base_scores), mean)

    def contrast(self, p_adjusted: float | None, num_in_family: int) -> Contrast:
        """Returns the contrast with its verdict, given the p-value adjusted for its family."""
        factor = holm_factor(self.p_value, p_adjusted, num_in_family)
        sample, shift = self._deciding(
            lambda s, alpha: s.test.interval(alpha), ALPHA / factor, lambda e: e.excludes_0
        )
        alike, within = self._deciding(
            lambda s, alpha: s.mean(1 - alpha), ALPHA_ALIKE / num_in_family, self._inside_margin
        )
        decision, better, because = self._verdict(sample, shift, within)
        if decision == "alike":
            sample = alike
        shown = sample or self.all
        return Contrast(
            cell=self.base.cell,
            measure=self.measure,
            primary=self.is_primary,
            base_arm=self.base.arm,
            arm=self.other.arm,
            base_value=float(self.all.base_scores.mean()) if self.points else None,
            value=float(self.all.scores.mean()) if self.points else None,
            difference=self.all.mean(CONFIDENCE) if self.points else None,
            interval_over="blocks" if self.over_blocks else "points",
            num_pairs=len(self.points),
            num_unpaired=max(self.base.num_points, self.other.num_points) - len(self.points),
            decision=decision,
            better=better,
            because=because,
            shift=shift,
            within=within,
            margin=self.margin,
            look=sample.num_points if sample else None,
            next_look=self.looks.following(self.num_ended),
            num_differing=shown.test.num_higher + shown.test.num_lower,
            num_higher=shown.test.num_higher,
            test=self.info.test,
            p_value=self.p_value,
            p_adjusted=p_adjusted,
            num_in_family=num_in_family,
        )

    def _deciding(
        self,
        interval: Callable[[_Sample, float], Estimate],
        alpha: float,
        decides: Callable[[Estimate], bool],
    ) -> tuple[_Sample | None, Estimate | None]:
        """Returns the look that decides at a level of all looks together, with its interval; None without."""
        if not self.samples:
            return None, None
        levels = self.looks.levels(alpha)
        found = [(s, interval(s, level)) for s, level in zip(self.samples, levels, strict=False)]
        return deciding(found, decides)

    def _inside_margin(self, mean: Estimate) -> bool:
        if mean.low is None or mean.high is None or self.margin is None:
            return False
        return -self.margin < mean.low and mean.high < self.margin

    def _verdict(
        self, sample: _Sample | None, shift: Estimate | None, within: Estimate | None
    ) -> tuple[Decision, str | None, str]:
        """Returns the decision, the better arm, and the reason if the contrast is open."""
        if self.refused:
            return "open", None, "; ".join(self.refused)
        if not self.points:
            return "open", None, "no point has a result in both arms"
        if self.info.own:
            return "open", None, "measured from each arm's own reference: describes, does not decide"
        if sample is None or shift is None or within is None:
            first = self.looks.points[0]
            return "open", None, f"the first look is at {first} points, and {self.num_ended} have ended"
        if shift.excludes_0:
            mean = float((sample.scores - sample.base_scores).mean())
            if mean * shift.value <= 0:
                return "open", None, "most settings favour one arm, the mean the other"
            higher = (shift.value > 0) == self.info.higher_is_better
            return "better", (self.other if higher else self.base).arm, ""
        if self._inside_margin(within):
            return "alike", None, ""
        return "open", None, shift.because or f"p = {self.p_value if self.p_value is not None else 1:.2f}"
