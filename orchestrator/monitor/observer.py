"""The interface of a session's observers: the console, MLflow, a webhook, or a class of the user."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from orchestrator.monitor.progress import Progress
    from orchestrator.stats.looks import Looks
    from orchestrator.trials.events import Event
    from orchestrator.trials.records import Record
    from orchestrator.trials.trial import Plan, Trial

#: How a session, or a round of it, ended. `broke off` comes with an exception.
How = Literal["ended", "stopped", "nothing to do", "broke off"]

#: The weight of a notice. Details may be grey; warnings go to standard error of a quiet command.
Level = Literal["detail", "info", "warning"]


@dataclass(frozen=True)
class Round:
    """Trials that are to run together. A search has several rounds, as has a run until all is settled.

    Attributes:
      plan: the whole sweep as far as it is known.
      trials: the trials to run; empty if all have ended.
      folder: the sweep's folder.
      events: the journal so far.
      records: the records by trial. The session updates them.
      number, of: the place of this round among all, from 1. A run until all is settled may need fewer.
    """

    plan: "Plan"
    trials: "Sequence[Trial]"
    folder: Path
    events: "Sequence[Event]" = ()
    records: "dict[str, Record]" = field(default_factory=dict)
    number: int = 1
    of: int = 1


@dataclass(frozen=True)
class SessionEnd:
    """The end of a session, or of one of its rounds.

    Attributes:
      how: the kind of end.
      reason: why it was stopped, else empty.
      num_trials: trials of the plan.
      num_ended: trials that have an outcome and will not run again.
      num_run: trials that were planned to run in this session.
      seconds: seconds from the start of the command, preflight included.
      breaker: why the run stopped itself, else empty.
      error: the error of Ray that stopped the run, else empty.
      gave_up: whether it was stopped because a machine that it waited for did not come.
    """

    how: How
    reason: str = ""
    num_trials: int = 0
    num_ended: int = 0
    num_run: int = 0
    seconds: float = 0.0
    breaker: str = ""
    error: str = ""
    gave_up: bool = False

    @property
    def text(self) -> str:
        """The end as the second half of a sentence."""
        match self.how:
            case "stopped":
                return f"was stopped ({self.reason})"
            case "broke off":
                return self.how
            case _:
                return "has ended"


class Observer:
    """Receives what happens in a session. Every method may be left out.

    The order of calls is: `notice` at any time; `planned`; for each round `begin`, `observe` several times a
    second, `stopping` if the round is cut short, and `end`; at last `close`, in every case. An exception that
    a method raises ends the session.
    """

    def fault(self, folder: Path) -> str:
        """Returns why this observer cannot work, else an empty text. The preflight calls it once."""
        return ""

    def notice(self, text: str, level: Level = "info") -> None:
        """Receives a line of text for people."""

    def planned(self, plan: "Plan", trials: "Sequence[Trial]", looks: "Looks | None" = None) -> None:
        """Receives the plan and its trials that are left to run, before any of them is tried.

        `looks` are those that the folder declared; None if it has declared none yet.
        """

    def begin(self, round: Round) -> None:
        """Receives the trials to run, before the cluster starts."""

    def observe(self, events: "Sequence[Event]", progress: "Progress") -> None:
        """Receives the events since the last call, possibly none. `progress` includes them already."""

    def stopping(self) -> None:
        """Receives the start of an early stop, which takes seconds."""

    def end(self, end: SessionEnd) -> None:
        """Receives the end of a round. Other rounds may follow."""

    def close(self, end: SessionEnd) -> str | None:
        """Receives the end of the session.

        Returns:
          A warning for people, or None.
        """
        return None
