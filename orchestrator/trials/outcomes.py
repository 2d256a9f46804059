"""How trials end, and what follows from it: who runs them again, whether they rank, what they count as."""

import re
from dataclasses import dataclass
from typing import Literal

from trainables.base import WORST_PCT

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


def held_up_by(first: str, end: AttemptEnd, detail: str) -> str:
    """The cause of the end of a trial that was never begun, as what it starts from came to this one."""
    verb = {"out_of_memory": "ran out of memory", "invalid": "cannot be built"}.get(end, end)
    return f"{first}, which it starts from, {verb}" + (f": {detail}" if detail else "")


def fingerprint(end: str, detail: str) -> str:
    """What two failures of one cause have in common: their message without numbers and addresses."""
    return f"{end}: {re.sub(r'0x[0-9a-f]+|[0-9]+', '#', detail)}"
