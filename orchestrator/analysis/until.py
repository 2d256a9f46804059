"""The end of a sweep that extends itself: at the first look that settles its question.

All here follows from the plan and the results alone. So a run that extends its sweep by itself stops at the
same look if it was killed and goes on, and on any machine.

A sweep whose points were chosen to detect a difference (`design.detect`) ends at the look at which they do.
The number is computed again from the first look, by the spread of the paired differences without their signs.
Which arm is better has no influence on it, so it raises no false alarm (`stats.power.points_for_spread`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.contrasts import Contrast, contrasts_of, headline, looks_of
from orchestrator.analysis.summary import Summary, common_reference_of, in_cells, summarise
from orchestrator.stats.intervals import MIN_SAMPLE, Scores
from orchestrator.stats.looks import Looks
from orchestrator.stats.measures import Measure, point_scores
from orchestrator.stats.power import MOST_POINTS, points_for_spread
from orchestrator.sweep.config import Primary, Sweep
from orchestrator.sweep.design import ChosenFor, RandomDesign, SobolDesign
from orchestrator.sweep.sizing import first_level, measure_of
from orchestrator.trials.declared import Declared
from orchestrator.trials.records import Record, results_of
from orchestrator.trials.trial import Plan
from trainables.io.faults import Fault


@dataclass(frozen=True, slots=True)
class Needed:
    """The number of points that detect a difference, by what the first points show.

    Attributes:
      chosen: the difference, its power, and the number of points that was chosen for them before.
      seen: number of points whose differences were used, without their signs.
      points: the number that is needed. None if that is more than MOST_POINTS.
    """

    chosen: ChosenFor
    seen: int
    points: int | None

    @property
    def text(self) -> str:
        """The number as a sentence."""
        number = f"more than {MOST_POINTS}" if self.points is None else str(self.points)
        rather = "as planned" if self.points == self.chosen.points else f"rather than {self.chosen.points}"
        return (
            f"with what the first {self.seen} points show (blinded), {number} points are needed {rather} to "
            f"detect {self.chosen.detect:g} at power {self.chosen.power:g}"
        )


@dataclass(frozen=True, slots=True)
class Look:
    """The results of a sweep at the number of points that it has.

    Attributes:
      points: points per arm and cell.
      last: the number of points of the last declared look.
      settled: whether every contrast that is asked about is decided.
      next_points: the number of points of the next look. None if the sweep ends here.
      detail: what the results say, in one line.
    """

    points: int
    last: int
    settled: bool
    next_points: int | None
    detail: str


def faults_of_until(sweep: Sweep) -> list[Fault]:
    """Returns why a sweep cannot be run until it is settled; empty if it can be."""
    if sweep.search is not None:
        rule = "a search compares no arms, so nothing is settled: run it without --until"
        return [Fault("search", rule)]
    if len(sweep.arms) == 1:
        return [Fault("arms", "there is one arm, so nothing is settled: run it without --until")]
    if not isinstance(sweep.design, RandomDesign | SobolDesign):
        rule = "cannot be extended, which --until settled does: choose sobol or random"
        return [Fault("design.kind", rule, sweep.design.kind)]
    return []


def take_look(plan: Plan, records: Mapping[str, Record], declared: Declared | None = None) -> Look | None:
    """Returns what the results of a plan say. None while trials of it have not ended.

    Args:
      plan: the plan so far.
      records: by trial.
      declared: what was declared before the results; None if that is not known.
    """
    results = results_of(plan, records)
    if not all(result.record.settled for result in results if result.trial.role == "sweep"):
        return None
    sweep = plan.sweep
    points = sweep.design.num_points(sweep.levels())
    looks = looks_of(sweep, declared)
    summaries = summarise(results)
    asked = headline(contrasts_of(summaries, sweep, declared))
    needed = needed_points(sweep, summaries, looks)
    said = [_said(asked)]
    if needed is not None and points == needed.seen:
        said.append(needed.text)
    following = looks.following(points)
    if (is_settled := settled(asked)) or following is None:
        next_points = None
    else:
        next_points = following if points < _end(looks, needed) else None
        if next_points is None and needed is not None:
            said.append(f"{needed.points} points were to be enough")
    return Look(points, looks.last, is_settled, next_points, "; ".join(said))


def needed_by_spread(
    plan: Plan, records: Mapping[str, Record], declared: Declared | None = None
) -> Needed | None:
    """Returns what `needed_points` does, from a plan and its records."""
    design = plan.sweep.design
    if not isinstance(design, RandomDesign | SobolDesign) or design.chosen_for is None:
        return None
    return needed_points(plan.sweep, summarise(results_of(plan, records)), looks_of(plan.sweep, declared))


def settled(asked: Sequence[Contrast]) -> bool:
    """Returns whether every contrast that is asked about is decided, either way."""
    return bool(asked) and all(contrast.decision != "open" for contrast in asked)


def _said(asked: Sequence[Contrast]) -> str:
    """Returns the verdicts in words, with the cells that have them."""
    cells: dict[str, list[str]] = {}
    for contrast in asked:
        match contrast.decision:
            case "better":
                loser = contrast.base_arm if contrast.better == contrast.arm else contrast.arm
                said = f"{contrast.better} is better than {loser}"
            case "alike":
                said = f"{contrast.base_arm} and {contrast.arm} are alike"
            case "open":
                said = f"{contrast.base_arm} against {contrast.arm} is not settled"
        cells.setdefault(said, []).append(contrast.cell)
    return ", ".join(
        said if found == ["all"] else f"{said} in {', '.join(found)}" for said, found in cells.items()
    )


def _end(looks: Looks, needed: Needed | None) -> int:
    """Returns the look at which a sweep ends even if nothing is settled."""
    if needed is None or needed.points is None:
        return looks.last
    enough = max(needed.points, needed.chosen.points)
    return next((points for points in looks.points if points >= enough), looks.last)


def needed_points(sweep: Sweep, summaries: Sequence[Summary], looks: Looks) -> Needed | None:
    """Returns the number of points that detect what the design was chosen for, by its first look.

    Of several contrasts, the one with the widest spread decides. Returns None if the design was not chosen to
    detect a difference, or if its first look has not all its results.
    """
    design, seen = sweep.design, looks.points[0]
    if not isinstance(design, RandomDesign | SobolDesign) or (chosen := design.chosen_for) is None:
        return None
    if any(s.open_point is not None and s.open_point < seen for s in summaries):
        return None
    measure = measure_of(sweep)
    primary = sweep.primary or Primary()
    squares: list[float] = []
    for cell in in_cells([summary for summary in summaries if primary.cell in (None, summary.cell)]):
        differences = [_differences(cell, other, measure, seen) for other in cell[1:]]
        squares += [float(np.mean(values**2)) for values in differences if len(values) >= MIN_SAMPLE]
    if not squares:
        return None
    found = points_for_spread(
        measure,
        chosen.detect,
        max(squares),
        chosen.power,
        lambda count: first_level(count, design.max_points),
    )
    return Needed(chosen, seen, found)


def _differences(cell: Sequence[Summary], other: Summary, measure: Measure, num_points: int) -> Scores:
    """Returns the differences of a measure at the first points that two arms of a cell share."""
    base = cell[0]
    points = [p for p in sorted(base.errors_pct) if p < num_points and p in other.errors_pct]
    common = common_reference_of(cell, num_points)
    scores = [point_scores(measure, [arm.errors_pct[p] for p in points], common) for arm in (base, other)]
    return scores[1] - scores[0]
