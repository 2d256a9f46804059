"""Says in words what the points of a plan can settle, before any of them has run."""

from collections.abc import Callable

from orchestrator.analysis.contrasts import looks_of
from orchestrator.analysis.power import detectable
from orchestrator.stats.intervals import MIN_SAMPLE
from orchestrator.stats.looks import Looks
from orchestrator.stats.measures import Measure
from orchestrator.stats.power import ALPHA, Planted, smallest_difference
from orchestrator.sweep.design import RandomDesign, SobolDesign
from orchestrator.sweep.sizing import first_level
from orchestrator.trials.numerals import listed
from orchestrator.trials.trial import Plan

#: The measure that is said of: the one that a sweep decides by unless its file declares another.
MEASURE: Measure = "area_common"

#: More points that are named as an outlook. Four times as many find about half the difference.
_TIMES = 4

#: Numbers of points that suit a Sobol design.
_POWERS_OF_2 = (8, 16, 32, 64)


def what_points_settle(plan: Plan, looks: Looks | None = None) -> list[str]:
    """Returns sentences about the smallest difference between arms that so many points can settle.

    `looks` are those declared; those of the plan if left out. A search has no such sentence: it looks for the
    best setting of each arm, and its points are not comparable.
    """
    if plan.sweep.search is not None:
        return []
    if len(plan.sweep.arms) == 1:
        return ["One arm: nothing is compared. The report describes how its error is spread over the points."]
    cells: dict[int, dict[str, None]] = {}
    for found in detectable(plan, looks=looks):
        if found.measure == MEASURE:
            cells.setdefault(found.num_points, {})[found.cell] = None
    design = plan.sweep.design
    most = design.max_points if isinstance(design, RandomDesign | SobolDesign) else None

    def smallest(num_points: int) -> float | None:
        level = first_level(num_points, most)
        if looks is not None and num_points in looks.points:
            level = looks.level_at(num_points, ALPHA)
        return smallest_difference(MEASURE, num_points, alpha=level)

    return [
        (f"{', '.join(names)}: " if len(cells) > 1 else "") + _sentence(count, smallest)
        for count, names in cells.items()
    ]


def how_it_grows(plan: Plan, looks: Looks | None = None) -> list[str]:
    """Returns sentences about what the number of points was chosen for, and about the looks.

    `looks` are those declared; those of the plan if left out.
    """
    design, said = plan.sweep.design, []
    if isinstance(design, RandomDesign | SobolDesign) and (chosen := design.chosen_for) is not None:
        said.append(f"detect {chosen.detect:g} at power {chosen.power:g}: {chosen.points} points")
    points = (looks or looks_of(plan.sweep)).points
    if len(points) > 1 and plan.sweep.search is None and len(plan.sweep.arms) > 1:
        said.append(
            f"Looks at {listed(points)} points: a verdict is taken at each, and "
            "`--until settled` stops at the first that decides."
        )
    return said


def _sentence(count: int, smallest: Callable[[int], float | None]) -> str:
    """Returns what `count` points per arm can settle, and how many would settle more.

    `smallest` returns the difference that so many points settle at their look.
    """
    if (here := smallest(count)) is not None:
        more = _TIMES * count
        return (
            f"{count} points per arm settle a difference of {here:.2f} in robustness (0 to 1) in 80 % of "
            f"sweeps; {more} points settle one of {smallest(more):.2f}."
        )
    points = "1 point" if count == 1 else f"{count} points"
    here_few = "can settle nothing" if count < MIN_SAMPLE else "can hardly settle anything"
    enough = next(more for more in _POWERS_OF_2 if smallest(more) is not None)
    more = _TIMES * enough
    return (
        f"{points} per arm {here_few}: {MIN_SAMPLE} are the least, {enough} settle a difference of "
        f"{smallest(enough):.2f} in robustness (0 to 1) in 80 % of sweeps, {more} one of "
        f"{smallest(more):.2f}."
    )


def assumptions(planted: Planted | None = None) -> str:
    """Returns in words what the differences are computed for."""
    planted = planted or Planted()
    return (
        f"Computed for errors that average {planted.mean_delta_pp:g} points above the best in the first arm, "
        f"and a correlation of {planted.correlation:g} between the errors of two arms at a point."
    )
