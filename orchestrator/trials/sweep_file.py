"""A sweep file with its overrides, and the plan that follows from them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from orchestrator.sweep.config import Sweep
from orchestrator.sweep.document import Override, SweepError
from orchestrator.sweep.load import load_sweep, located
from orchestrator.trials.plan import data_configs, make_plan
from orchestrator.trials.trial import Plan
from trainables.base import DataError
from trainables.config import faults_of
from trainables.errors import UserError
from trainables.io.faults import Fault


@dataclass(frozen=True)
class SweepFile:
    """A sweep file and the settings that override it.

    Attributes:
      path: the YAML file.
      overrides: settings that replace those of the file.
      points: points per arm and cell. None keeps the file's.
    """

    path: Path
    overrides: tuple[Override, ...] = ()
    points: int | None = None

    @cached_property
    def sweep(self) -> Sweep:
        """The sweep, checked as far as possible without the data. It is read once.

        Raises:
          SweepError: with every fault there is.
        """
        return load_sweep(self.path, self.overrides, self.points)

    def error(self, faults: Iterable[Fault]) -> SweepError:
        """Returns the error that loading the file would have raised for faults found later."""
        return located(faults, self.path, self.overrides, self.points)

    def plan(self, sweep: Sweep | None = None, expected: list[str] | None = None) -> Plan:
        """Reads the sizes and classes of the data, and draws the trials.

        Args:
          sweep: the sweep to plan, such as the file's sweep extended. None takes the file's.
          expected: receives the paths of missing data, which are planned as the file expects them. If None,
            missing data are a fault.

        Raises:
          SweepError: with every fault there is.
        """
        sweep = sweep or self.sweep
        infos, faults = {}, []
        for config, key in data_configs(sweep).items():
            try:
                if expected is None or config.name == "digits" or not config.expects or config.lies_there():
                    infos[config] = config.info()
                else:
                    infos[config] = config.expected_info()
                    expected.append(config.path)
            except DataError as error:
                faults.append(Fault(key, str(error)))
        if not faults:
            try:
                made = make_plan(sweep, infos)
                faults = _unbuildable(made)
                if not faults:
                    return made
            except ValidationError as error:
                # Each value alone is valid. Only the rule can name the values that do not go together.
                faults = [
                    Fault(
                        "vary",
                        f"{f.path}: {f.rule}; a constraint under `where` can leave such points out",
                        f.found,
                    )
                    for f in faults_of(error)
                ]
            except UserError as error:
                # Of a constraint, or of a network whose cost one asks for.
                faults = [Fault("where", str(error))]
        raise self.error(faults)


def _unbuildable(plan: Plan) -> list[Fault]:
    """Returns faults of networks that cannot be built for the classes of their data.

    Loading a sweep tries each network with two classes, because it reads no data.
    """
    found: dict[str, Fault] = {}
    for trial in plan.trials:
        try:
            plan.cost(trial)
        except UserError as error:
            depth = trial.replicate + 1 if trial.role == "first_stage" else 0
            key = plan.sweep.source_of("start.run." * depth + "model", trial.arm, trial.cell)
            rule = f"{error}, with the {plan.infos[trial.config.data].num_classes} classes of its data"
            found.setdefault(key, Fault(key, rule))
    return list(found.values())
