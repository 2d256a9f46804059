"""First stages: the runs that other trials start from."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.trials.gang import Gang
from orchestrator.trials.trial import Trial, identity_of
from trainables.base import DataInfo
from trainables.config import DataConfig, Seeds, TrainConfig
from trainables.identity import identity


def first_runs(config: TrainConfig) -> Iterator[TrainConfig]:
    """Yields the run that a run starts from, the run that this one starts from, and so on."""
    while config.start is not None:
        config = config.start.run
        yield config


class FirstStages:
    """The first stages of a plan. Each distinct run occurs once, however many trials start from it."""

    def __init__(self, trials: Sequence[Trial], infos: Mapping[DataConfig, DataInfo]) -> None:
        """
        Args:
          trials: trials of the sweep, without ids.
          infos: sizes and classes of their data, and of the data of their first stages.
        """
        self._trials, self._infos = trials, infos
        #: Largest gang of the trials that start from a run, by the run's content.
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
        """Returns the id of the trial that a run starts from. "" if there is none."""
        return self._id(config.start.run) if config.start is not None else ""

    def _id(self, run: TrainConfig) -> str:
        return identity_of(run, self._gangs[self._content(run)], self._infos, self.before(run))

    def trials(self) -> list[Trial]:
        """Returns a trial for every first stage in each cell and arm, at the first point that starts from it.

        These trials share one id, as those of arms that coincide do. So a first stage is trained once.
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
    """Returns a run with the seeds of its first stages set: the file's, else seeds shared by the whole sweep.

    The seeds do not depend on the point, so that all points of an arm start from the same run.
    """
    if config.start is None:
        return config
    run = with_first_seeds(config.start.run, seed)
    if "seeds" not in run.model_fields_set:
        run = run.model_copy(update={"seeds": Seeds.derived(seed, "first stage")})
    return config.model_copy(update={"start": config.start.model_copy(update={"run": run})})
