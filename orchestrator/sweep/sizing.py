"""The number of points of a design that names what it must detect instead."""

from orchestrator.stats.looks import Looks
from orchestrator.stats.measures import Measure
from orchestrator.stats.power import ALPHA, MOST_POINTS, POWER, largest_difference, points_needed
from orchestrator.sweep.config import Primary, Sweep
from orchestrator.sweep.design import ChosenFor, RandomDesign, SobolDesign
from trainables.io.faults import Fault


def with_points(sweep: Sweep) -> Sweep | Fault:
    """Returns the sweep with the number of points that `design.detect` asks for, or what is wrong with it.

    The number is the least with which the first verdict finds the difference with the power, in the
    population of `stats.power`. A sweep that names its points is returned as it is.
    """
    design = sweep.design
    if not isinstance(design, RandomDesign | SobolDesign) or design.detect is None:
        return sweep
    detect, power, measure = design.detect, design.power or POWER, measure_of(sweep)
    if len(sweep.arms) == 1 or sweep.search is not None:
        rule = "a search compares no arms" if sweep.search is not None else "there is one arm"
        return Fault("design.detect", f"{rule}, so there is no difference to be found: set points")
    if detect >= (most := largest_difference(measure)):
        rule = f"must be below {most:.2g}, the largest difference in {measure} that is planned for"
        return Fault("design.detect", rule, f"{detect:g}")
    found = points_needed(measure, detect, power, lambda n: first_level(n, design.max_points))
    if found is None:
        return Fault("design.detect", f"needs more than {MOST_POINTS} points", f"{detect:g}")
    if design.max_points is not None and found > design.max_points:
        rule = f"needs {found} points, and max_points is {design.max_points}"
        return Fault("design.detect", rule, f"{detect:g}")
    named = {
        name: value
        for name, value in design.model_dump(exclude_unset=True).items()
        if name not in ("detect", "power")
    }
    chosen = ChosenFor(detect=detect, power=power, points=found)
    made = type(design).model_validate({**named, "points": found, "chosen_for": chosen})
    return sweep.model_copy(update={"design": made})


def measure_of(sweep: Sweep) -> Measure:
    """Returns the measure that decides: that of the primary contrast, or the default one."""
    return (sweep.primary or Primary()).measure


def first_level(num_points: int, max_points: int | None) -> float:
    """Returns the level of the first verdict of a sweep of so many points, which may be extended."""
    if max_points is not None and num_points > max_points:
        return ALPHA
    return Looks.of(num_points, max_points).levels(ALPHA)[0]
