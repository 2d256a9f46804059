"""First stages: runs that other trials start from."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.trials.gang import Gang
from orchestrator.trials.trial import Trial, identity_of
from trainables.base import DataInfo
from trainables.config import DataConfig, Seeds, TrainConfig
from trainables.identity import identity


def first_runs(config: TrainConfig) -> Iterator[TrainConfig]:
    """The run that one starts from, the run which that one starts from, and so on."""
    while config.start is not None:
        config = config.start.run
        yield config


class FirstStages:
    """The runs that trials start from: each content once, whichever points, arms and cells start from it."""

    def __init__(self, trials: Sequence[Trial], infos: Mapping[DataConfig, DataInfo]) -> None:
        """
        Args:
          trials: of the sweep, without ids.
          infos: of their data and of those of the runs they start from.
        """
        self._trials, self._infos = trials, infos
        #: By content, whatever it runs on: the largest gang of those that start from it.
        self._gangs: dict[str, Gang] = {}
        self._contents: dict[TrainConfig, str] = {}
        for trial in trials:
            for run in first_runs(trial.config):
                content = self._content(run)
                self._gangs[content] = max(
                    self._gangs.get(content, trial.gang), trial.gang, key=lambda gang: gang.size
                )

    def _content(self, run: TrainConfig) -> str:
        if run not in self._contents:
            first = self._content(run.start.run) if run.start is not None else None
            self._contents[run] = identity(run, self._infos[run.data].fingerprint, first)
        return self._contents[run]

    def before(self, config: TrainConfig) -> str:
        """The id of the trial that a run starts from; empty where it starts from none."""
        return self._id(config.start.run) if config.start is not None else ""

    def _id(self, run: TrainConfig) -> str:
        return identity_of(run, self._gangs[self._content(run)], self._infos, self.before(run))

    def trials(self) -> list[Trial]:
        """A trial for every one of them in each cell and arm, at the first point there that starts from it.

        Like those of arms that coincide, they have one id and are trained once.
        """
        found: dict[tuple[str, str, str], Trial] = {}
        for trial in self._trials:
            for depth, run in enumerate(first_runs(trial.config)):
                key = self._id(run)
                if (trial.cell_name, trial.arm, key) not in found:
                    found[trial.cell_name, trial.arm, key] = dataclasses.replace(
                        trial,
                        id=key,
                        replicate=depth,
                        values={path: v for path, v in trial.values.items() if path.startswith("start.")},
                        config=run,
                        gang=self._gangs[self._content(run)],
                        role="first_stage",
                        after=self.before(run),
                    )
        return list(found.values())


def with_first_seeds(config: TrainConfig, seed: int) -> TrainConfig:
    """A run whose first stages have their seeds: those of the file, else the same for all of a sweep.

    They do not depend on the point, so that all points of an arm start from one run.
    """
    if config.start is None:
        return config
    run = with_first_seeds(config.start.run, seed)
    if "seeds" not in run.model_fields_set:
        run = run.model_copy(update={"seeds": Seeds.derived(seed, "first stage")})
    return config.model_copy(update={"start": config.start.model_copy(update={"run": run})})
