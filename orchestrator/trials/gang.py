"""What a trial needs all at once, what machines have, and how many trials that makes at a time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from orchestrator.trials.trial import Trial


@dataclass(frozen=True, slots=True)
class Gang:
    """What a trial needs all at once, or not at all: equal workers, each with CPUs and perhaps GPUs.

    Attributes:
      workers: processes that train one model.
      cpus: CPU cores of each; also its number of CPU threads.
      gpus: GPUs of each; None means one where there are any.
    """

    workers: int
    cpus: int
    gpus: float | None

    @property
    def size(self) -> tuple[float, ...]:
        """By which gangs are in order: GPUs in all, or workers; no two gangs have the same."""
        gpus = -1.0 if self.gpus is None else self.gpus
        return self.workers * max(gpus, 1.0), self.workers, self.cpus, gpus

    def on(self, nodes: Sequence["Node"]) -> "Gang":
        """With the number of GPUs settled for a cluster."""
        if self.gpus is not None:
            return self
        return Gang(self.workers, self.cpus, 1.0 if any(node.gpus >= 1 for node in nodes) else 0.0)

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.workers} worker(s) with {self.cpus} CPU{gpus} each"


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of a cluster, by what it has in all."""

    cpus: float
    gpus: float


def num_lanes(gang: Gang, nodes: Sequence[Node], num_trials: int) -> int:
    """How many whole gangs fit on a cluster at once, at most one per trial; 0 if none does.

    Workers of one gang may sit on different nodes; no worker is split.
    """
    slots = 0
    for node in nodes:
        fits = int(node.cpus // gang.cpus)
        if gang.gpus:
            per_gpu = int(1 / gang.gpus) * int(node.gpus) if gang.gpus < 1 else int(node.gpus // gang.gpus)
            fits = min(fits, per_gpu)
        slots += fits
    return min(slots // gang.workers, num_trials)


def by_gang(trials: Iterable["Trial"]) -> dict[Gang, list["Trial"]]:
    """Trials by what they run on, the largest gang first, so that small ones fill up at the end.

    A first stage has the largest gang of those that start from it, so it is in their group or in one before.
    """
    groups: dict[Gang, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.gang, []).append(trial)
    return dict(sorted(groups.items(), key=lambda item: item[0].size, reverse=True))


class Phase(NamedTuple):
    """Trials that run in the same lanes, one phase of a run after the other.

    Attributes:
      gang: what each of them runs on, with its number of GPUs settled.
      trials: in the order they are to run.
      lanes: how many of them run at a time; 0 if the cluster has no room for one.
    """

    gang: Gang
    trials: list["Trial"]
    lanes: int


def lane_plan(trials: Iterable["Trial"], nodes: Sequence[Node], lanes: int | None = None) -> list[Phase]:
    """Phases in the order they run, the largest gang first.

    Args:
      trials: what is to run, each once.
      nodes: of the cluster.
      lanes: trials at a time by the file (`resources.lanes`). None takes as many as there is room for.
    """
    phases = []
    for wanted, members in by_gang(trials).items():
        gang = wanted.on(nodes)
        count = lanes or num_lanes(gang, nodes, len(members))
        phases.append(Phase(gang, members, min(count, len(members))))
    return phases
