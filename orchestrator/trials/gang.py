"""Gangs, the resources that a trial needs at once, and how many of them fit on a cluster."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from orchestrator.trials.trial import Trial


@dataclass(frozen=True, slots=True)
class Gang:
    """The resources that a trial needs at once: equal workers, each with CPUs and possibly GPUs.

    Attributes:
      workers: number of processes that train one model.
      cpus: CPU cores that are reserved for each worker, and also its number of CPU threads.
      gpus: GPUs of each worker. None means one if the cluster has GPUs, else none.
      shares_cores: whether a worker with a GPU decodes images on its share of the cores of its machine,
        instead of on `cpus`. They are not reserved, because machines may have different numbers of them.
    """

    workers: int
    cpus: int
    gpus: float | None
    shares_cores: bool = False

    @property
    def size(self) -> tuple[float, ...]:
        """The sort key of gangs: total GPUs first, then workers. No two gangs have the same key."""
        gpus = -1.0 if self.gpus is None else self.gpus
        return self.workers * max(gpus, 1.0), self.workers, self.cpus, gpus, self.shares_cores

    @property
    def devices(self) -> float:
        """The GPUs of all workers, or their cores if they have no GPUs."""
        return self.workers * (self.gpus or self.cpus)

    def on(self, nodes: Sequence["Node"]) -> "Gang":
        """Returns the gang with its number of GPUs decided for a cluster."""
        if self.gpus is not None:
            return self
        if any(node.gpus >= 1 for node in nodes):
            return dataclasses.replace(self, gpus=1.0)
        return dataclasses.replace(self, gpus=0.0, shares_cores=False)

    def cores_on(self, nodes: Sequence["Node"]) -> int:
        """Returns the cores of each worker on a cluster: where machines differ, the least of them."""
        if not (self.shares_cores and self.gpus):
            return self.cpus
        shares = [share_of_cores(node.cpus, node.gpus, self.gpus) for node in nodes if node.gpus]
        return max(self.cpus, min(shares, default=0))

    @property
    def key(self) -> str:
        """The gang as a text that no version changes, because recorded plans hold digests of it."""
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.workers} worker(s) with {self.cpus} CPU{gpus} each"

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        if self.workers == 1:
            return f"{self.cpus} CPU{gpus}"
        return f"{self.workers} workers with {self.cpus} CPU{gpus} each"


def share_of_cores(cpus: float, gpus: float, own_gpus: float) -> int:
    """Returns how many cores of a machine belong to a worker with some of its GPUs."""
    return int(cpus * own_gpus / gpus)


#: The smallest gang.
ONE_CORE = Gang(1, 1, 0.0)


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of a cluster, with its total CPUs and GPUs."""

    cpus: float
    gpus: float


def num_lanes(gang: Gang, nodes: Sequence[Node], num_trials: int) -> int:
    """Returns how many whole gangs fit on a cluster at once, at most one per trial. 0 if none fits.

    Workers of one gang may be on different nodes. A worker is not split.
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
    """Groups trials by gang, the largest gang first, so that small trials fill the end of a run.

    A first stage has the largest gang of the trials that start from it. So it is in the group of each of them
    or in an earlier one.
    """
    groups: dict[Gang, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.gang, []).append(trial)
    return dict(sorted(groups.items(), key=lambda item: item[0].size, reverse=True))


class Crew(NamedTuple):
    """Trials of one gang.

    Attributes:
      gang: resources of each trial, with the number of GPUs decided.
      trials: in the order in which they run.
      lanes: number of them at a time while no others run. 0 if the cluster has no room for one.
    """

    gang: Gang
    trials: list["Trial"]
    lanes: int


def lane_plan(trials: Iterable["Trial"], nodes: Sequence[Node], lanes: int | None = None) -> list[Crew]:
    """Returns the trials by gang, the largest gang first.

    Args:
      trials: the trials to run, each once.
      nodes: machines of the cluster.
      lanes: number of trials at a time by the file (`resources.lanes`). None takes as many as fit.
    """
    crews = []
    for wanted, members in by_gang(trials).items():
        gang = wanted.on(nodes)
        count = lanes or num_lanes(gang, nodes, len(members))
        crews.append(Crew(gang, members, min(count, len(members))))
    return crews


def usable_devices(crews: Sequence[Crew], nodes: Sequence[Node], lanes: int | None = None) -> float:
    """Returns how many GPUs, or cores if no trial has a GPU, a run can keep busy at once.

    Gangs with GPUs and gangs without count theirs together. `lanes` is as in `lane_plan`.
    """
    if len(crews) == 1:
        return crews[0].lanes * crews[0].gang.devices
    gpus, cpus = sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)
    used = 0.0
    for on_gpu, there in ((True, gpus), (False, cpus)):
        same = [crew for crew in crews if bool(crew.gang.gpus) == on_gpu]
        wanted = sum(len(crew.trials) * crew.gang.devices for crew in same)
        if lanes is not None:
            # Machines may come that are not there yet.
            wanted = min(wanted, lanes * max((crew.gang.devices for crew in same), default=0.0))
        used += wanted if lanes is not None and not there else min(wanted, there)
    return used
