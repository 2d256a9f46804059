"""The smallest differences that the contrasts of a plan can detect with 80 % power, at their look's level."""

from dataclasses import dataclass

from orchestrator.analysis.contrasts import looks_of
from orchestrator.stats.looks import Looks
from orchestrator.stats.measures import MEASURES, Measure
from orchestrator.stats.power import ALPHA, POWER, Planted, smallest
from orchestrator.trials.trial import Plan


@dataclass(frozen=True, slots=True)
class Detectable:
    """The smallest difference that one contrast can detect.

    Attributes:
      cell, base_arm, arm, measure: names of the contrast.
      num_points: points planned in both arms.
      base_value: the measure in the reference arm, as planted.
      closed_form, simulated: absolute value of the smallest difference in favour of `arm` with 80 % power, in
        the unit of the measure. None if even the largest possible difference has less power.
    """

    cell: str
    base_arm: str
    arm: str
    measure: Measure
    num_points: int
    base_value: float
    closed_form: float | None
    simulated: float | None


def detectable(plan: Plan, planted: Planted | None = None, looks: Looks | None = None) -> list[Detectable]:
    """Returns the detectable difference of every contrast of a plan, in the order of `contrasts`.

    Args:
      plan: the plan.
      planted: the population; the default one if left out.
      looks: as declared; those of the sweep as it is now if left out.
    """
    planted, looks = planted or Planted(), looks or looks_of(plan.sweep)
    found = []
    points: dict[str, dict[str, set[int]]] = {}
    for trial in plan.trials:
        if trial.role == "sweep":
            points.setdefault(trial.cell_name, {}).setdefault(trial.arm, set()).add(trial.point)
    for cell, arms in points.items():
        base, *others = arms
        for arm in others:
            count = len(arms[base] & arms[arm])
            level = looks.level_at(count, ALPHA)
            found += [
                Detectable(cell, base, arm, measure, count, *smallest(measure, count, planted, POWER, level))
                for measure in MEASURES
            ]
    return found
