"""How trials ended: outcomes and their rules, and the record of each trial folded from the journal."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trainables.base import Epoch

if TYPE_CHECKING:  # the clerk writes events without knowing plans, and starts in no time for it
    from orchestrator.plan import Plan, Trial

Outcome = Literal["finished", "diverged", "stopped", "invalid", "out_of_memory", "failed", "cancelled"]
AttemptEnd = Literal[
    "finished", "diverged", "stopped", "invalid", "out_of_memory", "failed", "cancelled", "preempted", "lost"
]


@dataclass(frozen=True, slots=True)
class Rule:
    """What follows from an outcome; every statistic reads it here.

    Attributes:
      means: for people.
      again: who runs the trial again: nobody; this run, up to `retries`; this run, unless it is lost over and
        over without getting on; this run, always; the next run.
      ranked: whether its error may be the arm's best.
      error_pct: the error it counts as in an EDF: its own (None with `in_edf`), or a fixed one.
      in_edf: whether it counts there at all. What does not is shown as missing, never dropped silently.
      censors: it ends a trial on a judgement of how that was doing, so that what is missing is not missing by
        chance. A distribution that leaves such trials out is wrong, and so none is given.
    """

    means: str
    again: Literal["never", "retries", "losses", "always", "next run"]
    ranked: bool
    in_edf: bool
    error_pct: float | None = None
    censors: bool = False


#: The largest error there is; a diverged run counts as it.
WORST_PCT = 100.0

RULES: dict[AttemptEnd, Rule] = {
    "finished": Rule("ran to its last epoch", "never", ranked=True, in_edf=True),
    "diverged": Rule(
        "non-finite loss, or no better than chance", "never", ranked=False, in_edf=True, error_pct=WORST_PCT
    ),
    "stopped": Rule("ended early by a stopping rule", "never", ranked=False, in_edf=False, censors=True),
    "invalid": Rule("its settings cannot be built", "never", ranked=False, in_edf=False),
    "out_of_memory": Rule("did not fit in memory", "never", ranked=False, in_edf=False),
    "failed": Rule("an error in code, data or machine", "retries", ranked=False, in_edf=False),
    "cancelled": Rule("interrupted by a person", "next run", ranked=False, in_edf=False),
    "preempted": Rule("its machine was taken away", "always", ranked=False, in_edf=False),
    "lost": Rule("its process died", "losses", ranked=False, in_edf=False),
}

#: Outcomes after which `run` leaves a trial alone.
SETTLED: frozenset[str] = frozenset(
    name for name, rule in RULES.items() if rule.again in ("never", "retries")
)


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


Event = dict[str, Any]
_ROW_FIELDS = frozenset(f.name for f in dataclasses.fields(Epoch))


def attempt_event(trial_id: str, attempt: int, lane: str, time: float, node: str = "") -> Event:
    """A lane has taken a trial up; `node` is the id of the machine of its rank 0."""
    return {
        "kind": "attempt",
        "trial": trial_id,
        "attempt": attempt,
        "lane": lane,
        "node": node,
        "time": time,
    }


def epoch_event(trial_id: str, attempt: int, row: Mapping[str, Any]) -> Event:
    """A trial has finished an epoch."""
    return {"kind": "epoch", "trial": trial_id, "attempt": attempt, "row": dict(row)}


def end_event(
    trial_id: str,
    attempt: int,
    end: AttemptEnd,
    detail: str,
    seconds: float,
    time: float,
    final: bool,
    weights: str = "",
    from_step: int = -1,
    step: int = -1,
    heard: float = 0.0,
    epochs: int = 0,
) -> Event:
    """An attempt is over; `final` says that the trial is, too.

    `from_step` and `step` are where it began and how far it was known to be when last `heard` of; `epochs` is
    the number of the last epoch it put on record, by which a reader sees that no row of it is missing.
    """
    return {
        "kind": "end",
        "trial": trial_id,
        "attempt": attempt,
        "end": end,
        "detail": detail,
        "seconds": seconds,
        "time": time,
        "final": final,
        "weights": weights,
        "from_step": from_step,
        "step": step,
        "heard": heard,
        "epochs": epochs,
    }


def pulse_event(time: float, in_flight: Mapping[str, Sequence[float]]) -> Event:
    """The run lives; per trial in flight: the step it began at, the step it is at, when that was heard."""
    return {
        "kind": "pulse",
        "time": time,
        "in_flight": {key: list(value) for key, value in in_flight.items()},
    }


def retry_event(trial_id: str, time: float) -> Event:
    """A person wants a trial that has ended run anew, from its beginning."""
    return {"kind": "retry", "trial": trial_id, "time": time}


def fold(events: Iterable[Event], into: dict[str, Record] | None = None) -> dict[str, Record]:
    """Records by trial id; constant work per event of a trial. Kinds it does not know are passed over."""
    records = {} if into is None else into
    for event in events:
        if event["kind"] == "session":
            # What an earlier run had in flight went with it.
            for record in records.values():
                record.running = False
        if event["kind"] not in ("attempt", "epoch", "end", "retry"):
            continue
        record = records.setdefault(event["trial"], Record())
        match event["kind"]:
            case "attempt":
                record.attempts = max(record.attempts, event["attempt"])
                record.running, record.outcome = True, None
                record.started = record.started or event["time"]
            case "epoch":
                row = Epoch(**{name: value for name, value in event["row"].items() if name in _ROW_FIELDS})
                record.rows[row.epoch] = row
            case "end":
                record.running = False
                record.busy_seconds += event["seconds"]
                record.ended = event["time"]
                record.detail = event["detail"]
                # A damaged record may have been one of its rows: then it has to be run again.
                epochs = event.get("epochs", 0)
                whole = epochs == 0 or record.whole_epochs == len(record.rows) >= epochs
                record.outcome = event["end"] if event["final"] and whole else None
                record.weights = event.get("weights", "")
            case "retry":
                record.outcome, record.detail, record.weights = None, "", ""
                record.rows.clear()
    return records


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
        """Top-1 error on the selection split as the EDF counts it; None where the trial is missing there."""
        if self.rule is None or not self.rule.in_edf:
            return None
        return self.rule.error_pct if self.rule.error_pct is not None else self.own_error_pct

    @property
    def own_error_pct(self) -> float | None:
        """Top-1 error on the selection split as measured, whatever the outcome."""
        if not self.record.rows:
            return None
        if self.error_rule == "best_epoch":
            return min(row.val_top1_error_pct for row in self.record.rows.values())
        return self.record.rows[max(self.record.rows)].val_top1_error_pct

    @property
    def test_error_pct(self) -> float | None:
        """Top-1 error on the final split, after the last epoch."""
        return self.record.last.test_top1_error_pct if self.record.last else None


def held_up_by(first: str, end: AttemptEnd, detail: str) -> str:
    """The cause of the end of a trial that was never begun, as what it starts from came to this one."""
    verb = {"out_of_memory": "ran out of memory", "invalid": "cannot be built"}.get(end, end)
    return f"{first}, which it starts from, {verb}" + (f": {detail}" if detail else "")


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
