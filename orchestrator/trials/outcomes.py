"""Outcomes of trials, and the rules that follow: whether they run again, rank, and count in an EDF."""

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
    """The consequences of an outcome. Every statistic reads them here.

    Attributes:
      means: explanation for the user.
      again: when the trial is run again. `never`: not at all. `retries`: in this run, up to
        `resources.retries` times. `losses`: in this run, unless it is lost repeatedly without progress.
        `always`: in this run. `next run`: in the next run.
      ranked: whether its error may be the best of its arm.
      error_pct: the error it counts as in an EDF. None with `in_edf` means its own error.
      in_edf: whether it counts in an EDF. If not, it is reported as missing and never dropped silently.
      censors: whether the trial was ended because of its results so far. Such trials are not missing at
        random. A distribution that leaves them out is wrong, so none is given.
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
    """Returns the cause for a trial that never started because its first stage ended without weights."""
    verb = {"out_of_memory": "ran out of memory", "invalid": "cannot be built"}.get(end, end)
    return f"{first}, which it starts from, {verb}" + (f": {detail}" if detail else "")


def fingerprint(end: str, detail: str) -> str:
    """Returns what two failures of one cause share: their message without numbers and addresses."""
    return f"{end}: {re.sub(r'0x[0-9a-f]+|[0-9]+', '#', detail)}"
