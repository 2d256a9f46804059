"""Ray Tune's ASHA: which trials of a search are ended because they fall behind.

Rungs are asked in the order in which epochs come in, so that nobody waits for a straggler; the price is
that which trials are ended depends on that order. It is the journal's, and so what was decided is known again
after a kill.
"""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from orchestrator.sweep.config import Halving
from orchestrator.trials.events import AttemptEnded, EpochDone, Event, RetryWanted
from orchestrator.trials.trial import Trial
from trainables.base import WORST_PCT


class EarlyStopping:
    """Says after each epoch whether a trial goes on; arms and cells are judged apart."""

    def __init__(self, rule: Halving, trials: Iterable[Trial]) -> None:
        """
        Args:
          rule: of the sweep.
          trials: the search's among them are judged.
        """
        self._rule = rule
        self._epochs: dict[str, int] = {}
        self._group: dict[str, AsyncHyperBandScheduler] = {}
        self._stopped: dict[str, int] = {}
        groups: dict[tuple[str, str], AsyncHyperBandScheduler] = {}
        for trial in trials:
            # Arms that coincide share a trial; it is the first one's.
            if trial.role != "search" or trial.id in self._epochs:
                continue
            epochs = trial.config.schedule.epochs
            if rule.grace_epochs >= epochs:
                continue
            self._epochs[trial.id] = epochs
            self._group[trial.id] = groups.setdefault(
                (trial.cell_name, trial.arm),
                AsyncHyperBandScheduler(
                    time_attr="epoch",
                    metric="error_pct",
                    mode="min",
                    max_t=epochs,
                    grace_period=rule.grace_epochs,
                    reduction_factor=rule.reduction_factor,
                    stop_last_trials=False,
                ),
            )
            self._group[trial.id].on_trial_add(None, SimpleNamespace(trial_id=trial.id))

    def replay(self, events: Iterable[Event]) -> None:
        """Decides again what was decided in earlier runs."""
        for event in events:
            match event:
                case EpochDone(trial=trial, row=row):
                    self.stops(trial, row.epoch, row.val_error_pct)
                case AttemptEnded(trial=trial, end="diverged", final=True):
                    self.diverged(trial, event.epochs)
                case RetryWanted(trial=trial):
                    self._stopped.pop(trial, None)

    def stops(self, trial_id: str, epoch: int, error_pct: float) -> bool:
        """Whether the trial ends with this epoch; the same when it is asked again.

        Never at its last one, where nothing is saved.
        """
        if (stopped := self._stopped.get(trial_id)) is not None:
            return epoch >= stopped
        if epoch >= self._epochs.get(trial_id, 0):
            return False
        if not self._falls_behind(trial_id, epoch, error_pct):
            return False
        self._stopped[trial_id] = epoch
        return True

    def diverged(self, trial_id: str, epoch: int) -> None:
        """A trial has diverged after so many epochs: at the next rung it is the worst."""
        rung = float(self._rule.grace_epochs)
        while rung <= epoch:
            rung *= self._rule.reduction_factor
        if rung < self._epochs.get(trial_id, 0):
            self._falls_behind(trial_id, rung, WORST_PCT)

    def _falls_behind(self, trial_id: str, epoch: float, error_pct: float) -> bool:
        result: Mapping[str, Any] = {"epoch": epoch, "error_pct": error_pct}
        said = self._group[trial_id].on_trial_result(None, SimpleNamespace(trial_id=trial_id), result)
        return bool(said == TrialScheduler.STOP)
