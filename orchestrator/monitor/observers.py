"""Observers that report a session elsewhere: to MLflow, and in messages."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator.monitor.notify import Notifier, target_fault
from orchestrator.monitor.observer import Observer, Round, SessionEnd
from orchestrator.monitor.progress import Progress
from orchestrator.monitor.tracking import Tracker, tracking_uri, unanswered
from orchestrator.stats.looks import Looks
from orchestrator.trials.events import Event
from orchestrator.trials.trial import Plan, Trial
from trainables.errors import UserError

#: Seconds for MLflow to catch up at the end, and after an early stop, when a person waits.
_FINISH_SECONDS, _STOP_SECONDS = 30.0, 3.0


class MlflowObserver(Observer):
    """Mirrors a session to MLflow. After the session it stays open for the report until `finish`."""

    def __init__(self) -> None:
        self._round: Round | None = None
        self._tracker: Tracker | None = None

    def fault(self, folder: Path) -> str:
        """Returns why the tracking server accepts no runs, else an empty text."""
        return unanswered(tracking_uri(folder), folder.resolve().parent)

    def begin(self, round: Round) -> None:
        """Ends the previous round. If no trials are left to run, a store that was down catches up here."""
        if self._tracker:
            self._tracker.close(_FINISH_SECONDS)
        self._round, self._tracker = round, None
        if not round.trials:
            self._open(round)

    def observe(self, events: Sequence[Event], progress: Progress) -> None:
        """Forwards the events, those of earlier sessions first."""
        if self._tracker is None and self._round is not None:
            # Not before the trials run, because the thread would take a core while the cluster starts.
            self._open(self._round)
        if self._tracker:
            self._tracker.observe(events)

    def _open(self, round: Round) -> None:
        self._tracker = mirror(round)

    def close(self, end: SessionEnd) -> str | None:
        """Ends the mirror of a session that was stopped or broke off."""
        if self._tracker and end.how in ("stopped", "broke off"):
            self._tracker.close(_STOP_SECONDS)
        return None

    def finish(self, report: Path) -> str | None:
        """Attaches the report and ends the mirror.

        Returns:
          A warning if MLflow does not have everything.
        """
        if self._tracker is None:
            return None
        hand_over(report, self._tracker)
        return self._tracker.close(_FINISH_SECONDS)


def hand_over(report: Path, tracker: Tracker) -> None:
    """Gives the sweep's run in MLflow the report with its figures and numbers."""
    for path in (report, report.parent / "figures"):
        tracker.add_artifact(path)
    # Another version, or a person, may have left a summary of another form. `verify` tells what is wrong.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        tracker.add_numbers(numbers_of(report.parent / "summary.json"))


def numbers_of(summary: Path) -> dict[str, float]:
    """Returns peak and robustness of every arm and cell, and planned and spent hours, by names for MLflow.

    Planned and spent are hours of devices, for the epochs that have run, where the first run has made a plan.

    Args:
      summary: the report's summary.json.
    """
    content = json.loads(summary.read_text("utf-8"))
    numbers: dict[str, float | None] = {"trial_hours": content["cost"]["trial_seconds"] / 3600}
    if planned := [row for row in content.get("planned") or () if row["planned_hours"] is not None]:
        # The last of several is their total.
        numbers |= {"planned_hours": planned[-1]["planned_hours"], "spent_hours": planned[-1]["hours"]}
    for arm in content["arms"]:
        # Without a slash, by which MLflow would make sections that are empty for trials and come first.
        place = f"{arm['cell']} {arm['arm']}"
        best, confirmed = arm["best"] or {}, arm["confirmed"] or {}
        numbers[f"peak_error_pct {place}"] = best.get("val_error_pct")
        numbers[f"peak_test_error_pct {place}"] = best.get("test_error_pct")
        numbers[f"confirmed_test_error_pct {place}"] = (confirmed.get("test") or {}).get("value")
        numbers[f"robustness {place}"] = (arm["measures"].get("area_common") or {}).get("value")
    return {name: number for name, number in numbers.items() if number is not None}


def mirror(round: Round) -> Tracker:
    """Returns a running mirror of a sweep that has received the events so far."""
    tracker = Tracker(round.plan, round.folder, tracking_uri(round.folder))
    tracker.observe(round.events)
    tracker.start()
    return tracker


class NotifyObserver(Observer):
    """Sends messages to a URL or a command: at the first result, if the run stops itself, and at the end."""

    def __init__(self, target: str | None = None) -> None:
        """
        Args:
          target: a URL or a command; None takes the sweep file's key `notify`.
        """
        self._target = target
        self._notifier: Notifier | None = None

    def planned(self, plan: Plan, trials: Sequence[Trial], looks: Looks | None = None) -> None:
        """Checks that messages can go to the target.

        Raises:
          UserError: they cannot.
        """
        if (target := self._target or plan.sweep.notify) and (fault := target_fault(target)):
            raise UserError(f"notify: {fault}")

    def begin(self, round: Round) -> None:
        """Opens the channel, unless there is nothing to run."""
        if round.trials and self._notifier is None:
            sweep = round.plan.sweep
            self._notifier = Notifier(self._target or sweep.notify, sweep.name, round.folder)

    def observe(self, events: Sequence[Event], progress: Progress) -> None:
        """Sends a message about events that are worth one."""
        if self._notifier:
            self._notifier.observe(progress, events)

    def close(self, end: SessionEnd) -> str | None:
        """Sends how the session ended. Returns a warning about undelivered messages, or None."""
        return self._notifier.end(end.text) if self._notifier else None
