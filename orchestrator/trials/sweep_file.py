"""A sweep file, what is changed in it, and the plan of both."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from orchestrator.sweep.config import Sweep
from orchestrator.sweep.constraints import ConstraintError
from orchestrator.sweep.document import Override, SweepError
from orchestrator.sweep.load import load_sweep, located
from orchestrator.trials.plan import data_configs, make_plan
from orchestrator.trials.trial import Plan
from trainables.base import DataError
from trainables.config import faults_of
from trainables.io.faults import Fault


@dataclass(frozen=True)
class SweepFile:
    """A sweep file, and what is set on top of it.

    Attributes:
      path: the YAML file.
      overrides: settings in place of the file's.
      points: points per arm and cell in place of the file's; None keeps them.
    """

    path: Path
    overrides: tuple[Override, ...] = ()
    points: int | None = None

    @cached_property
    def sweep(self) -> Sweep:
        """The sweep, checked as far as possible without the data; read once.

        Raises:
          SweepError: with every fault there is.
        """
        return load_sweep(self.path, self.overrides, self.points)

    def error(self, faults: Iterable[Fault]) -> SweepError:
        """Returns later faults as what loading the file would have raised."""
        return located(faults, self.path, self.overrides, self.points)

    def plan(self, sweep: Sweep | None = None, expected: list[str] | None = None) -> Plan:
        """Looks at the data and draws the trials.

        Args:
          sweep: the file's sweep, extended; the file's if left out.
          expected: takes the paths of data that are missing and planned as the file expects them. If left
            out, missing data are a fault.

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
                return make_plan(sweep, infos)
            except ValidationError as error:
                # Each value alone is valid; which of them do not go together, only the rule can say.
                faults = [
                    Fault(
                        "vary",
                        f"{f.path}: {f.rule}; a constraint under `where` can leave such points out",
                        f.found,
                    )
                    for f in faults_of(error)
                ]
            except ConstraintError as error:
                faults = [Fault("where", str(error))]
        raise self.error(faults)
