"""Early stopping of a search by Ray Tune's ASHA: trials that fall behind are ended.

Rungs are evaluated in the order in which epochs arrive, so that no trial waits for a slower one. Decisions
therefore depend on that order. The journal records it, so that a later run repeats the same decisions.
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
    """Decides after each epoch whether a trial goes on. Trials compete within their arm and cell."""

    def __init__(self, rule: Halving, trials: Iterable[Trial]) -> None:
        """
        Args:
          rule: the sweep's ASHA settings.
          trials: of the plan; only those of the search can be ended.
        """
        self._rule = rule
        self._epochs: dict[str, int] = {}
        self._group: dict[str, AsyncHyperBandScheduler] = {}
        self._stopped: dict[str, int] = {}
        groups: dict[tuple[str, str], AsyncHyperBandScheduler] = {}
        for trial in trials:
            # Arms that coincide share a trial; it counts for the first arm.
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
        """Repeats the decisions of earlier runs, from their events."""
        for event in events:
            match event:
                case EpochDone(trial=trial, row=row):
                    self.stops(trial, row.epoch, row.val_error_pct)
                case AttemptEnded(trial=trial, end="diverged", final=True):
                    self.diverged(trial, event.epochs)
                case RetryWanted(trial=trial):
                    self._stopped.pop(trial, None)

    def stops(self, trial_id: str, epoch: int, error_pct: float) -> bool:
        """Returns whether the trial ends with this epoch. Repeated calls give the same answer.

        Always false at the trial's last epoch, because stopping there saves nothing.
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
        """Registers a trial that diverged after `epoch` epochs: it counts as the worst at the next rung."""
        rung = float(self._rule.grace_epochs)
        while rung <= epoch:
            rung *= self._rule.reduction_factor
        if rung < self._epochs.get(trial_id, 0):
            self._falls_behind(trial_id, rung, WORST_PCT)

    def _falls_behind(self, trial_id: str, epoch: float, error_pct: float) -> bool:
        result: Mapping[str, Any] = {"epoch": epoch, "error_pct": error_pct}
        said = self._group[trial_id].on_trial_result(None, SimpleNamespace(trial_id=trial_id), result)
        return bool(said == TrialScheduler.STOP)
