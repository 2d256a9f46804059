"""Records of trials, computed from the events of the journal, and the results of a plan."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, assert_never, cast

from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    BreakerTripped,
    Chained,
    DeclarationMade,
    DeviceUsed,
    EpochDone,
    Event,
    LaneOpened,
    LookTaken,
    Notice,
    PhaseBegan,
    PreflightDone,
    Pulse,
    RetryWanted,
    Sealed,
    SessionBegan,
    SessionClosed,
    Unknown,
    UntilSettled,
)
from orchestrator.trials.outcomes import RULES, SETTLED, Outcome, Rule
from trainables.base import DeviceUse, Epoch

if TYPE_CHECKING:  # not at run time, so that the coordinator starts fast
    from orchestrator.trials.trial import Plan, Trial


@dataclass(slots=True)
class Record:
    """The state of one trial by the journal.

    Attributes:
      outcome: how it ended. None before it has ended.
      detail: the cause in one line if it did not finish.
      attempts: number of times it was started.
      rows: its epochs by number. The later attempt's row replaces a repeated epoch.
      busy_seconds: time that a worker group spent on it, over all attempts.
      running: whether an attempt has begun and not ended.
      weights: digest of the final weights. Equal runs have equal digests.
      started, ended: time of the first start and of the last end, in seconds since 1970.
      device: of the last attempt. None if unknown, as in journals of earlier versions.
      devices: the device of each epoch by number, as far as known.
      busy_on: `busy_seconds` by device; None is an unknown one.
    """

    outcome: Outcome | None = None
    detail: str = ""
    attempts: int = 0
    rows: dict[int, Epoch] = field(default_factory=dict)
    busy_seconds: float = 0.0
    running: bool = False
    started: float | None = None
    ended: float | None = None
    weights: str = ""
    device: DeviceUse | None = None
    devices: dict[int, DeviceUse] = field(default_factory=dict)
    busy_on: dict[DeviceUse | None, float] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Returns whether `run` leaves the trial as it is."""
        return self.outcome in SETTLED

    @property
    def whole_epochs(self) -> int:
        """The number of epochs, counted from the first, that are recorded without a gap."""
        return next(number for number in itertools.count() if number + 1 not in self.rows)

    @property
    def computed_on(self) -> list[DeviceUse]:
        """The devices that its epochs were computed on, in the order of their first epochs."""
        return list(dict.fromkeys(self.devices[number] for number in sorted(self.devices)))

    @property
    def last(self) -> Epoch | None:
        """The row of the last epoch. None before the first."""
        return self.rows[max(self.rows)] if self.rows else None

    @property
    def rows_with_devices(self) -> list[tuple[Epoch, DeviceUse | None]]:
        """The epochs in order, each with the device that computed it, if that is on record."""
        return [(self.rows[epoch], self.devices.get(epoch)) for epoch in sorted(self.rows)]


def fold(events: Iterable[Event], into: dict[str, Record] | None = None) -> dict[str, Record]:
    """Returns records by trial id, updated with events. The work per event of a trial is constant."""
    records = {} if into is None else into
    for event in events:
        match event:
            case EpochDone():
                record = records.setdefault(event.trial, Record())
                record.rows[event.row.epoch] = event.row
                if record.device is not None:
                    record.devices[event.row.epoch] = record.device
                else:
                    record.devices.pop(event.row.epoch, None)
            case AttemptBegan():
                record = records.setdefault(event.trial, Record())
                record.attempts = max(record.attempts, event.attempt)
                record.running, record.outcome, record.device = True, None, None
                record.started = record.started or event.time
            case DeviceUsed():
                records.setdefault(event.trial, Record()).device = event.use
            case AttemptEnded():
                _fold_end(event, records.setdefault(event.trial, Record()))
            case RetryWanted():
                record = records.setdefault(event.trial, Record())
                record.outcome, record.detail, record.weights = None, "", ""
                record.rows.clear()
                record.devices.clear()
            case SessionBegan():
                # Trials that were running in an earlier run ended with it.
                for record in records.values():
                    record.running = False
            case (
                Pulse()
                | PreflightDone()
                | PhaseBegan()
                | LaneOpened()
                | SessionClosed()
                | BreakerTripped()
                | UntilSettled()
                | LookTaken()
                | Notice()
                | Sealed()
                | Chained()
                | DeclarationMade()
                | Unknown()
            ):
                pass
            case _:
                assert_never(event)
    return records


def _fold_end(event: AttemptEnded, record: Record) -> None:
    record.running = False
    record.busy_seconds += event.seconds
    record.busy_on[record.device] = record.busy_on.get(record.device, 0.0) + event.seconds
    record.ended = event.time
    record.detail = event.detail
    # A row is missing if its line in the journal was damaged. Then the trial has to be run again.
    whole = event.epochs == 0 or record.whole_epochs == len(record.rows) >= event.epochs
    record.outcome = cast(Outcome, event.end) if event.final and whole else None
    record.weights = event.weights


@dataclass(frozen=True, slots=True)
class Result:
    """One trial with its record, a row of the results table."""

    trial: "Trial"
    record: Record
    error_rule: Literal["last_epoch", "best_epoch"] = "last_epoch"

    @property
    def state(self) -> str:
        """The outcome, or `running` or `missing`."""
        return self.record.outcome or ("running" if self.record.running else "missing")

    @property
    def rule(self) -> Rule | None:
        """The rule of the outcome. None without an outcome."""
        return RULES[self.record.outcome] if self.record.outcome else None

    @property
    def censored(self) -> bool:
        """The trial was ended early because of its results so far."""
        return self.rule is not None and self.rule.censors

    @property
    def held_up(self) -> bool:
        """The trial ended without starting, because its first stage left no weights."""
        first = self.trial.after
        return bool(first) and self.record.detail.startswith(f"{first}, which it starts from, ")

    @property
    def error_pct(self) -> float | None:
        """The error on the selection split as it counts in an EDF. None if it does not count there."""
        if self.rule is None or not self.rule.in_edf:
            return None
        return self.rule.error_pct if self.rule.error_pct is not None else self.own_error_pct

    @property
    def finished_pct(self) -> float | None:
        """The error on the selection split of a trial that has finished. None of others and first stages."""
        return self.error_pct if self.state == "finished" and self.trial.role != "first_stage" else None

    @property
    def own_error_pct(self) -> float | None:
        """The measured error on the selection split, whatever the outcome. None without an epoch."""
        if not self.record.rows:
            return None
        if self.error_rule == "best_epoch":
            return min(row.val_error_pct for row in self.record.rows.values())
        return self.record.rows[max(self.record.rows)].val_error_pct

    @property
    def test_error_pct(self) -> float | None:
        """The error on the final split after the last epoch. None if it was not measured."""
        return self.record.last.test_error_pct if self.record.last else None


def brought_back(results: Iterable[Result], retried: Iterable[str]) -> list[str]:
    """Returns the trials to run again because their first stage is. They ended without an epoch of their own.

    Args:
      results: results of the plan, with first stages before the trials that start from them.
      retried: ids of trials that are run again. They are not returned.
    """
    found = dict.fromkeys(retried)
    chosen = len(found)
    for result in results:
        record, trial = result.record, result.trial
        if trial.after in found and record.settled and record.outcome != "finished" and not record.rows:
            found[trial.id] = None
    return list(found)[chosen:]


def results_of(plan: "Plan", records: Mapping[str, Record]) -> list[Result]:
    """Returns a result for every planned trial, in the order of the plan."""
    return [Result(trial, records.get(trial.id, Record()), plan.sweep.error) for trial in plan.trials]


def by_cell_and_arm(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Groups results by the name of the cell and the arm, in the order in which these first appear."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.trial.cell_name, result.trial.arm), []).append(result)
    return groups


def by_point(results: Iterable[Result]) -> dict[int, list[Result]]:
    """Groups results of one arm in one cell by their point, in the order in which the points first appear."""
    groups: dict[int, list[Result]] = {}
    for result in results:
        groups.setdefault(result.trial.point, []).append(result)
    return groups
