"""The progress of a sweep, from events as they arrive. The work per event does not grow with the trials."""

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from orchestrator.cost.ledger import Accounts, Ledger
from orchestrator.cost.utilization import Utilization
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
    time_of,
)
from orchestrator.trials.outcomes import fingerprint
from orchestrator.trials.records import Record, Result, fold
from orchestrator.trials.trial import Plan, Trial, TrialCost
from trainables.base import DeviceUse, Epoch

#: Outcomes that need a person's attention.
FAILURES = ("failed", "out_of_memory", "invalid")

#: Most points in time that the speed is computed from. Beyond it, every second one is dropped.
_MOST_MARKS = 32

#: With no more stretches of time than this, the speed is unknown.
_LEAST_STRETCHES = 3


@dataclass(slots=True)
class Tally:
    """The progress of one arm in one cell.

    Attributes:
      planned: number of trials, with replicates and other extra runs.
      states: number of trials by outcome, `running` or `missing`.
      ended: number of trials that `run` will not run again.
      errors: errors of the sweep's own finished trials, in percent, lowest first.
      num_at_worst: number of the sweep's trials that count as 100 % error: diverged ones.
    """

    cell: str
    arm: str
    planned: int = 0
    states: dict[str, int] = field(default_factory=dict)
    ended: int = 0
    errors: list[float] = field(default_factory=list)
    num_at_worst: int = 0

    @property
    def best_pct(self) -> float | None:
        """The lowest error so far."""
        return self.errors[0] if self.errors else None

    @property
    def running(self) -> int:
        """Trials in flight."""
        return self.states.get("running", 0)

    @property
    def diverged(self) -> int:
        """Trials that diverged. They are results, not failures."""
        return self.states.get("diverged", 0)

    @property
    def failed(self) -> int:
        """Trials that need a person's attention."""
        return sum(self.states.get(state, 0) for state in FAILURES)

    def edf(self, error_pct: float) -> float | None:
        """Returns the share of trials with an error so far whose error is at most this. None without any."""
        count = len(self.errors) + self.num_at_worst
        return bisect.bisect_right(self.errors, error_pct) / count if count else None


@dataclass(slots=True)
class Cause:
    """Trials that failed with the same message, apart from numbers in it.

    Attributes:
      state: their outcome.
      detail: the message of the first one.
      trials: their ids, in order of failure.
    """

    state: str
    detail: str
    trials: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TimeLeft:
    """Seconds until the last trial ends, with a 95 % interval. `high` is None if the speed may be 0."""

    seconds: float
    low: float
    high: float | None


@dataclass(slots=True)
class _Known:
    """The state in which a trial is counted."""

    state: str = "missing"
    error_pct: float | None = None
    at_worst: bool = False
    settled: bool = False
    mark: str = ""
    share: float = 0.0


class Progress:
    """The progress of a sweep, updated by events. No query iterates over all trials.

    Time is that of the events, so a run looks the same live, from another machine, or years later.

    Attributes:
      plan, records: the plan, and the records by trial, which are kept up to date.
      lanes: number of lanes.
      tallies: counts per cell and arm, in the order of the plan.
      causes: failures by the fingerprint of their message.
      notices: number of times that each notice was shown.
      breaker: why the run stopped itself, else empty.
      ended: number of planned trials that have ended.
      began, now: start of the last session, and time of the last event, in seconds since 1970.
    """

    def __init__(
        self, plan: Plan, records: dict[str, Record], lanes: int = 0, history: Iterable[Event] = ()
    ) -> None:
        """
        Args:
          plan: the trials.
          records: the records from `history`. Later events update them.
          lanes: number of lanes, 0 if unknown.
          history: earlier events, for the ledger.
        """
        self.plan, self.records, self.lanes = plan, records, lanes
        self.causes: dict[str, Cause] = {}
        self.notices: dict[str, int] = {}
        self.breaker = ""
        self.ended = 0
        self.began: float | None = None
        self.now: float | None = None
        self._accounts = Accounts()
        self._accounts.observe(history)
        tallies: dict[tuple[str, str], Tally] = {}
        # Arms that coincide in a cell share a trial.
        self._places: dict[str, list[tuple[Trial, Tally]]] = {}
        self._known: dict[str, _Known] = {}
        self._work: dict[str, tuple[float, int]] = {}
        self._costs: dict[str, TrialCost] = {}
        self._utilization: dict[str, Utilization] = {}
        for trial in plan.trials:
            tally = tallies.setdefault((trial.cell_name, trial.arm), Tally(trial.cell_name, trial.arm))
            tally.planned += 1
            tally.states["missing"] = tally.states.get("missing", 0) + 1
            self._places.setdefault(trial.id, []).append((trial, tally))
            if trial.id not in self._known:
                self._known[trial.id] = _Known()
                self._costs[trial.id] = cost = plan.cost(trial)
                self._work[trial.id] = (float(cost.train_flops), cost.steps)
        self.tallies = list(tallies.values())
        self._total_work = sum(work for work, _ in self._work.values()) or 1.0
        self._done_work = 0.0
        self._marks: list[tuple[float, float]] = []
        self._may_mark = False
        for trial_id in self._known:
            self._count(trial_id)
            for row, use in records[trial_id].rows_with_devices if trial_id in records else ():
                self._count_use(trial_id, row, use)

    def observe(self, events: Iterable[Event]) -> None:
        """Updates the progress with new events."""
        for event in events:
            self._observe(event)

    def _observe(self, event: Event) -> None:
        in_flight = self._in_flight() if isinstance(event, SessionBegan) else []
        fold([event], self.records)
        self._accounts.observe([event])
        match event:
            case EpochDone():
                self._advance(event.trial, event.row.step)
                self._count_state(event.trial)
                self._count_use(event.trial, event.row, self.records[event.trial].device)
                # The speed counts from the first row on, because the time before it was start-up.
                self._may_mark = True
            case Pulse():
                for trial_id, (_, step, _) in event.in_flight.items():
                    self._advance(trial_id, step)
            case AttemptBegan() | AttemptEnded() | RetryWanted():
                self._count(event.trial)
            case SessionBegan():
                self.began = event.began
                self.lanes = max(event.lanes, default=0)
                self.breaker = ""
                self._marks, self._may_mark = [], False
                for trial_id in in_flight:
                    self._count(trial_id)
            case Notice():
                self.notices[event.detail] = self.notices.get(event.detail, 0) + 1
            case BreakerTripped():
                self.breaker = event.detail
            case (
                PreflightDone()
                | PhaseBegan()
                | LaneOpened()
                | DeviceUsed()
                | SessionClosed()
                | UntilSettled()
                | LookTaken()
                | Sealed()
                | Chained()
                | DeclarationMade()
                | Unknown()
            ):
                pass
            case _:
                assert_never(event)
        if (time := time_of(event)) is not None:
            self.now = max(time, self.now or time)
            if self._may_mark:
                self._mark()

    def _in_flight(self) -> list[str]:
        return [key for key, record in self.records.items() if record.running]

    def knows(self, trial_id: str) -> bool:
        """Returns whether a trial is part of the plan."""
        return trial_id in self._known

    def result(self, trial_id: str) -> Result:
        """Returns a trial with its record."""
        record = self.records.get(trial_id, Record())
        return Result(self._places[trial_id][0][0], record, self.plan.sweep.error)

    # --- counts

    def _count(self, trial_id: str) -> None:
        """Counts a trial in its present state and no longer in the previous one."""
        if trial_id not in self._known:
            return
        self._count_state(trial_id)
        known, record = self._known[trial_id], self.records.get(trial_id)
        if record is None:
            return
        if record.settled:
            self._set_share(trial_id, 1.0)
        elif not record.rows:
            self._set_share(trial_id, 0.0)
        elif known.share in (0.0, 1.0) and (last := record.last) is not None:
            # Either nothing is known of its progress yet, or `retry` has reset it from its end.
            self._set_share(trial_id, min(last.step / max(self._work[trial_id][1], 1), 1.0))

    def _count_state(self, trial_id: str) -> None:
        if trial_id not in self._known:
            return
        before, result = self._known[trial_id], self.result(trial_id)
        rule, record = result.rule, result.record
        is_ranked = rule is not None and rule.ranked
        mark = fingerprint(result.state, record.detail) if result.state in FAILURES else ""
        after = _Known(
            state=result.state,
            error_pct=result.error_pct if is_ranked else None,
            at_worst=rule is not None and rule.in_edf and not rule.ranked,
            settled=record.settled,
            mark=mark,
            share=before.share,
        )
        if after == before:
            return
        self._known[trial_id] = after
        for trial, tally in self._places[trial_id]:
            _move(tally, before, after, is_tried=trial.is_tried)
            self.ended += after.settled - before.settled
        if before.mark != mark:
            self._move_cause(trial_id, before.mark, mark, result)

    def _move_cause(self, trial_id: str, before: str, after: str, result: Result) -> None:
        if before:
            cause = self.causes[before]
            del cause.trials[trial_id]
            if not cause.trials:
                del self.causes[before]
        if after:
            cause = self.causes.setdefault(after, Cause(result.state, result.record.detail))
            cause.trials[trial_id] = None

    # --- time

    def _advance(self, trial_id: str, step: int) -> None:
        if trial_id in self._known and not self._known[trial_id].settled:
            share = min(max(step, 0) / max(self._work[trial_id][1], 1), 1.0)
            self._set_share(trial_id, max(share, self._known[trial_id].share))

    def _set_share(self, trial_id: str, share: float) -> None:
        known = self._known[trial_id]
        self._done_work += self._work[trial_id][0] * (share - known.share)
        known.share = share

    @property
    def share(self) -> float:
        """The share of all training that is done, by multiply-adds, 0 to 1."""
        return min(max(self._done_work / self._total_work, 0.0), 1.0)

    def _mark(self) -> None:
        assert self.now is not None
        marks = self._marks
        if marks and self.now - marks[-1][0] < self._spacing():
            return
        marks.append((self.now, self.share))
        if len(marks) > _MOST_MARKS:
            # Keeps the first, the last and every second one between.
            del marks[1:-1:2]

    def _spacing(self) -> float:
        """Returns the least seconds between two marks. Very short stretches say little about the speed."""
        return max(0.5, (self._marks[-1][0] - self._marks[0][0]) / _MOST_MARKS)

    @property
    def time_left(self) -> TimeLeft | None:
        """The time left at the speed since the first row. None before the speed is known.

        The speed is the work of all stretches between marks over their time, a ratio of sums. Its standard
        error is the usual one of a ratio (Cochran, Sampling Techniques, 1977, section 2.11), from the
        variation between stretches. It does not predict a growing cluster or idle lanes at the end.
        """
        if len(self._marks) <= _LEAST_STRETCHES:
            return None
        times = [after[0] - before[0] for before, after in zip(self._marks, self._marks[1:], strict=False)]
        works = [after[1] - before[1] for before, after in zip(self._marks, self._marks[1:], strict=False)]
        time, work, count = sum(times), sum(works), len(times)
        if work <= 0 or time <= 0:
            return None
        speed = work / time
        squares = sum((w - speed * t) ** 2 for w, t in zip(works, times, strict=True))
        error = math.sqrt(count / (count - 1) * squares) / time
        margin = _student(count - 1) * error
        left = 1.0 - self.share
        low, high = left / (speed + margin), left / (speed - margin) if margin < speed else None
        return TimeLeft(left / speed, low, high)

    def _count_use(self, trial_id: str, row: Epoch, use: DeviceUse | None) -> None:
        for trial, _ in self._places.get(trial_id, ()):
            total = self._utilization.setdefault(trial.arm, Utilization())
            total.count(row, use, self._costs[trial_id], trial.gang)

    @property
    def mfu_pct(self) -> dict[str, float]:
        """The share of the GPUs' arithmetic that training used, in percent by arm, where it is known."""
        shares = {arm: total.mfu_pct for arm, total in self._utilization.items()}
        return {arm: share for arm, share in shares.items() if share is not None}

    def ledger(self) -> Ledger:
        """Returns the use of the devices' time. The work grows with the number of attempts."""
        return self._accounts.total()


def _student(freedom: int) -> float:
    """Returns the 97.5 % quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def _move(tally: Tally, before: _Known, after: _Known, is_tried: bool) -> None:
    tally.states[before.state] -= 1
    if not tally.states[before.state]:
        del tally.states[before.state]
    tally.states[after.state] = tally.states.get(after.state, 0) + 1
    tally.ended += after.settled - before.settled
    if not is_tried:
        return
    if before.error_pct != after.error_pct:
        if before.error_pct is not None:
            del tally.errors[bisect.bisect_left(tally.errors, before.error_pct)]
        if after.error_pct is not None:
            bisect.insort(tally.errors, after.error_pct)
    tally.num_at_worst += after.at_worst - before.at_worst
