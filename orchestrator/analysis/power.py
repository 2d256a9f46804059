"""The smallest differences that the contrasts of a plan can detect, with 80 % power at alpha = 5 %."""

from dataclasses import dataclass

from orchestrator.stats.measures import MEASURES, Measure
from orchestrator.stats.power import Planted, smallest
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


def detectable(plan: Plan, planted: Planted | None = None) -> list[Detectable]:
    """Returns the detectable difference of every contrast of a plan, in the order of `contrasts`."""
    planted = planted or Planted()
    found = []
    points: dict[str, dict[str, set[int]]] = {}
    for trial in plan.trials:
        if trial.role == "sweep":
            points.setdefault(trial.cell_name, {}).setdefault(trial.arm, set()).add(trial.point)
    for cell, arms in points.items():
        base, *others = arms
        for arm in others:
            count = len(arms[base] & arms[arm])
            found += [
                Detectable(cell, base, arm, measure, count, *smallest(measure, count, planted))
                for measure in MEASURES
            ]
    return found
