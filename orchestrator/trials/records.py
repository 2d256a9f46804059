"""The record of each trial, folded from the journal, and the results of a plan."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, assert_never, cast

from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    BreakerTripped,
    EpochDone,
    Event,
    Notice,
    PhaseBegan,
    PreflightDone,
    Pulse,
    RetryWanted,
    Sealed,
    SessionBegan,
    SessionClosed,
    Unknown,
)
from orchestrator.trials.outcomes import RULES, SETTLED, Outcome, Rule
from trainables.base import Epoch

if TYPE_CHECKING:  # the clerk writes events without knowing plans, and starts in no time for it
    from orchestrator.trials.trial import Plan, Trial


@dataclass(slots=True)
class Record:
    """What the journal says of one trial.

    Attributes:
      outcome: how it ended; None while it has not.
      detail: one line of cause where it did not finish.
      attempts: how often it was started.
      rows: its epochs, by number; a repeated epoch counts once, the later attempt's.
      busy_seconds: worker group time spent on it, all attempts.
      running: an attempt has begun and not ended.
      weights: digest of the final weights; equal runs have equal ones.
      started, ended: seconds since 1970 of the first start and the last end.
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

    @property
    def settled(self) -> bool:
        """Whether `run` leaves it alone."""
        return self.outcome in SETTLED

    @property
    def whole_epochs(self) -> int:
        """How many epochs from the first on are on record without a gap."""
        return next(number for number in itertools.count() if number + 1 not in self.rows)

    @property
    def last(self) -> Epoch | None:
        """The row of the last epoch."""
        return self.rows[max(self.rows)] if self.rows else None


def fold(events: Iterable[Event], into: dict[str, Record] | None = None) -> dict[str, Record]:
    """Records by trial id; constant work per event of a trial. Kinds it does not know are passed over."""
    records = {} if into is None else into
    for event in events:
        match event:
            case EpochDone():
                records.setdefault(event.trial, Record()).rows[event.row.epoch] = event.row
            case AttemptBegan():
                record = records.setdefault(event.trial, Record())
                record.attempts = max(record.attempts, event.attempt)
                record.running, record.outcome = True, None
                record.started = record.started or event.time
            case AttemptEnded():
                _fold_end(event, records.setdefault(event.trial, Record()))
            case RetryWanted():
                record = records.setdefault(event.trial, Record())
                record.outcome, record.detail, record.weights = None, "", ""
                record.rows.clear()
            case SessionBegan():
                # What an earlier run had in flight went with it.
                for record in records.values():
                    record.running = False
            case (
                Pulse()
                | PreflightDone()
                | PhaseBegan()
                | SessionClosed()
                | BreakerTripped()
                | Notice()
                | Sealed()
                | Unknown()
            ):
                pass
            case _:
                assert_never(event)
    return records


def _fold_end(event: AttemptEnded, record: Record) -> None:
    record.running = False
    record.busy_seconds += event.seconds
    record.ended = event.time
    record.detail = event.detail
    # A damaged record may have been one of its rows: then it has to be run again.
    whole = event.epochs == 0 or record.whole_epochs == len(record.rows) >= event.epochs
    record.outcome = cast(Outcome, event.end) if event.final and whole else None
    record.weights = event.weights


@dataclass(frozen=True, slots=True)
class Result:
    """One trial with its record: a row of the results table."""

    trial: "Trial"
    record: Record
    error_rule: Literal["last_epoch", "best_epoch"] = "last_epoch"

    @property
    def state(self) -> str:
        """Its outcome, or `running` or `missing`."""
        return self.record.outcome or ("running" if self.record.running else "missing")

    @property
    def rule(self) -> Rule | None:
        """The rule of its outcome, None while it has none."""
        return RULES[self.record.outcome] if self.record.outcome else None

    @property
    def censored(self) -> bool:
        """Whether it was ended on a judgement of how it was doing."""
        return self.rule is not None and self.rule.censors

    @property
    def held_up(self) -> bool:
        """Whether it ended without having been begun, as what it starts from left no weights."""
        first = self.trial.after
        return bool(first) and self.record.detail.startswith(f"{first}, which it starts from, ")

    @property
    def error_pct(self) -> float | None:
        """The error on the selection split as the EDF counts it; None where the trial is missing there."""
        if self.rule is None or not self.rule.in_edf:
            return None
        return self.rule.error_pct if self.rule.error_pct is not None else self.own_error_pct

    @property
    def own_error_pct(self) -> float | None:
        """The error on the selection split as measured, whatever the outcome."""
        if not self.record.rows:
            return None
        if self.error_rule == "best_epoch":
            return min(row.val_error_pct for row in self.record.rows.values())
        return self.record.rows[max(self.record.rows)].val_error_pct

    @property
    def test_error_pct(self) -> float | None:
        """The error on the final split, after the last epoch."""
        return self.record.last.test_error_pct if self.record.last else None


def brought_back(results: Iterable[Result], retried: Iterable[str]) -> list[str]:
    """Trials that are to run anew because what they start from does: ended without an epoch of their own.

    Args:
      results: of the plan, what is started from before what starts from it.
      retried: ids of trials that run anew; they are not returned.
    """
    found = dict.fromkeys(retried)
    chosen = len(found)
    for result in results:
        record, trial = result.record, result.trial
        if trial.after in found and record.settled and record.outcome != "finished" and not record.rows:
            found[trial.id] = None
    return list(found)[chosen:]


def results_of(plan: "Plan", records: Mapping[str, Record]) -> list[Result]:
    """Every planned trial with what is known of it, in the order of the plan."""
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
