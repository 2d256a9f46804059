"""Who may watch a session: the console, MLflow, a webhook, or a notebook's own class."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from orchestrator.monitor.progress import Progress
    from orchestrator.trials.events import Event
    from orchestrator.trials.records import Record
    from orchestrator.trials.trial import Plan, Trial

#: How a session, or a round of it, ended. `broke off` comes with an exception.
How = Literal["ended", "stopped", "nothing to do", "broke off"]

#: How much a notice matters: details may be shown in grey, warnings go to standard error of a quiet command.
Level = Literal["detail", "info", "warning"]


@dataclass(frozen=True)
class Round:
    """Trials that are to run together. Only a search has more than one round.

    Attributes:
      plan: the whole sweep as far as it is known.
      trials: the trials to run; none if all have ended.
      folder: the sweep's folder.
      events: the journal so far.
      records: the events by trial. The session adds what happens to them.
      number, of: the place of this round among all, from 1.
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
      reason: why it was stopped; empty otherwise.
      num_trials: trials of the plan.
      num_ended: trials that have an outcome and will not run again.
      num_run: trials that were to run.
      seconds: from the beginning of the command, preflight included.
      breaker: why the run stopped itself; empty if it did not.
      error: what Ray stopped the run for; empty if it did not.
    """

    how: How
    reason: str = ""
    num_trials: int = 0
    num_ended: int = 0
    num_run: int = 0
    seconds: float = 0.0
    breaker: str = ""
    error: str = ""

    @property
    def text(self) -> str:
        """How it ended, as the second half of a sentence."""
        match self.how:
            case "stopped":
                return f"was stopped ({self.reason})"
            case "broke off":
                return self.how
            case _:
                return "has ended"


class Observer:
    """Is told what a session does. Every method may be left out.

    The order is: `notice` at any time; for each round `begin`, `observe` several times a second, `stopping`
    if it is cut short, and `end`; at last `close`, on every way out. What a method raises ends the session.
    """

    def fault(self, folder: Path) -> str:
        """Returns why this observer cannot do its part; asked once, by the preflight. Empty if it can."""
        return ""

    def notice(self, text: str, level: Level = "info") -> None:
        """Takes a line for people."""

    def begin(self, round: Round) -> None:
        """Takes what is to run, before the cluster is there."""

    def observe(self, events: "Sequence[Event]", progress: "Progress") -> None:
        """Takes what has happened since the last call, maybe nothing; `progress` has taken it in already."""

    def stopping(self) -> None:
        """Is told that the round is being cut short, which takes seconds."""

    def end(self, end: SessionEnd) -> None:
        """Takes how a round ended. It may not be the last one."""

    def close(self, end: SessionEnd) -> str | None:
        """Takes how the session ended.

        Returns:
          A warning for people, or None.
        """
        return None
