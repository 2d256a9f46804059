"""Admission of lanes: trials of several gangs run at the same time.

The largest gang that waits comes first, and smaller ones fill what it leaves. If the largest has no room,
that of one lane is reserved for it: smaller trials there go on to their end, and none follows them. So the
largest waits for trials in flight and for no others. This module has no state and no clock.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from orchestrator.trials.gang import Crew, Gang, Node

#: Fractions of a GPU are compared with this tolerance.
_TINY = 1e-9


class OpenLane(NamedTuple):
    """A lane and its place.

    Attributes:
      gang: resources of each of its trials, with the number of GPUs decided.
      places: the machine of each worker. Empty if the lane waits for machines that are not there yet.
      busy: whether a trial is in flight on it.
    """

    gang: Gang
    places: tuple[str, ...]
    busy: bool = False


class Admission(NamedTuple):
    """Lanes to open, and names of idle lanes to close before those are opened."""

    open: list[OpenLane]
    close: list[str]


class _Room:
    """The free room of each machine: CPUs, whole GPUs, and parts of GPUs that are in use.

    Whole GPUs are counted and not listed, because a large cluster has thousands of them.
    """

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.cpus = {name: node.cpus for name, node in nodes.items()}
        self.whole = {name: int(node.gpus) for name, node in nodes.items()}
        self.parts: dict[str, list[float]] = {name: [] for name in nodes}

    def free(self, name: str, gang: Gang) -> tuple[float, float]:
        """Returns the GPUs and CPUs that are free on a machine, at most those of the gang."""
        gpus: float = self.whole[name]
        if self.parts[name]:
            each = min(gang.gpus or 0.0, 1.0) - _TINY
            gpus += sum(part for part in self.parts[name] if part >= each)
        return min(gpus, (gang.gpus or 0.0) * gang.workers), min(self.cpus[name], gang.cpus * gang.workers)

    def take(self, name: str, gang: Gang, part: bool = False) -> bool:
        """Takes one worker's resources if they are free. With `part`, takes what is free of them."""
        if name not in self.cpus:
            return False
        wanted = gang.gpus or 0.0
        if 0 < wanted < 1:
            return self._take_shared(name, gang, wanted, part)
        if not part and (self.cpus[name] < gang.cpus or self.whole[name] < int(wanted)):
            return False
        self.cpus[name] = max(0.0, self.cpus[name] - gang.cpus)
        self.whole[name] = max(0, self.whole[name] - int(wanted))
        return True

    def _take_shared(self, name: str, gang: Gang, wanted: float, part: bool) -> bool:
        parts = self.parts[name]
        # The fullest GPU that has room, so that others stay whole.
        fitting = min(((free, at) for at, free in enumerate(parts) if free >= wanted - _TINY), default=None)
        if not part and (self.cpus[name] < gang.cpus or (fitting is None and not self.whole[name])):
            return False
        self.cpus[name] = max(0.0, self.cpus[name] - gang.cpus)
        if fitting is not None:
            parts[fitting[1]] = max(0.0, fitting[0] - wanted)
        elif self.whole[name]:
            self.whole[name] -= 1
            parts.append(1 - wanted)
        return True

    def take_all(self, places: Sequence[str], gang: Gang) -> bool:
        """Takes a lane's resources at given places. Takes nothing if they are not all free."""
        before = self._state_of(place for place in places if place in self.cpus)
        if all(self.take(name, gang) for name in places):
            return True
        self._restore(before)
        return False

    def place(self, gang: Gang, order: Iterable[str]) -> tuple[str, ...]:
        """Takes a lane's resources on the first machines of an order.

        Returns:
          Its places. None at all, and takes nothing, if there is no room.
        """
        places: list[str] = []
        before: dict[str, _State] = {}
        for name in order:
            before |= self._state_of([name])
            while len(places) < gang.workers and self.take(name, gang):
                places.append(name)
            if len(places) == gang.workers:
                return tuple(places)
        self._restore(before)
        return ()

    def _state_of(self, names: Iterable[str]) -> dict[str, "_State"]:
        return {name: (self.cpus[name], self.whole[name], [*self.parts[name]]) for name in names}

    def _restore(self, before: Mapping[str, "_State"]) -> None:
        for name, (cpus, whole, parts) in before.items():
            self.cpus[name], self.whole[name], self.parts[name] = cpus, whole, parts


#: Free CPUs, whole GPUs and parts of GPUs of one machine.
_State = tuple[float, int, list[float]]


def admit(
    nodes: Mapping[str, Node],
    lanes: Mapping[str, OpenLane],
    waiting: Mapping[Gang, int],
    limit: int | None = None,
) -> Admission:
    """Returns the lanes to open and those to close.

    Args:
      nodes: all machines by name.
      lanes: all lanes by name. Those of which a machine is gone take no room.
      waiting: number of trials that wait, by gang with the number of GPUs decided.
      limit: number of lanes at most (`resources.lanes`). None sets no limit.
    """
    room, idle = _Room(nodes), {name: lane for name, lane in lanes.items() if not lane.busy}
    # Whole GPUs first, then the larger parts of one, which are the harder to place.
    for lane in sorted((it for it in lanes.values() if it.busy), key=lambda it: -(it.gang.gpus or 0.0)):
        for place in lane.places:
            room.take(place, lane.gang, part=True)
    held = Counter(place for lane in idle.values() for place in lane.places)
    num_busy = len(lanes) - len(idle)
    spare = sum(waiting.values()) + len(idle) if limit is None else limit - num_busy
    opened: list[OpenLane] = []
    kept: set[str] = set()
    reserved = False
    for gang in sorted(
        (gang for gang, count in waiting.items() if count), key=lambda g: g.size, reverse=True
    ):
        left = waiting[gang]
        for name, lane in idle.items():
            if lane.gang == gang and left and spare > 0 and room.take_all(lane.places, gang):
                kept.add(name)
                left, spare = left - 1, spare - 1
        while left and spare > 0:
            rank = {name: (held[name], *room.free(name, gang), name) for name in nodes}
            if not (places := room.place(gang, sorted(nodes, key=rank.__getitem__))):
                break
            opened.append(OpenLane(gang, places, busy=True))
            left, spare = left - 1, spare - 1
        if left and not reserved and (places := _reservation(nodes, lanes, kept, opened, gang, room)):
            reserved, spare = True, spare - 1
            for place in places:
                room.take(place, gang, part=True)
    for name, lane in idle.items():
        if name not in kept and spare > 0 and room.take_all(lane.places, lane.gang):
            kept.add(name)
            spare -= 1
    return Admission(opened, [name for name in idle if name not in kept])


def _reservation(
    nodes: Mapping[str, Node],
    lanes: Mapping[str, OpenLane],
    kept: set[str],
    opened: Sequence[OpenLane],
    gang: Gang,
    free: _Room,
) -> tuple[str, ...]:
    """Returns where a lane of a gang will have room once smaller trials there end. None at all if nowhere.

    Machines with the most free room come first. Nothing takes it meanwhile, so the next decision agrees.
    """
    room = _Room(nodes)
    sizes = {lane.gang: lane.gang.size >= gang.size for lane in lanes.values()}
    stay = [lane for name, lane in lanes.items() if name in kept or (lane.busy and sizes[lane.gang])]
    for lane in (*stay, *opened):
        for place in lane.places:
            room.take(place, lane.gang, part=True)
    rank = {name: (*(-value for value in free.free(name, gang)), name) for name in nodes}
    return room.place(gang, sorted(nodes, key=rank.__getitem__))


def lanes_of(crews: Sequence[Crew], nodes: Sequence[Node], lanes: int | None = None) -> int:
    """Returns how many trials of a run may be in flight at once. `lanes` is as in `lane_plan`."""
    if len(crews) == 1:
        return crews[0].lanes
    counts = {crew.gang: len(crew.trials) for crew in crews}
    if lanes is not None:
        return min(lanes, sum(counts.values()))
    return most_lanes({str(number): node for number, node in enumerate(nodes)}, counts)


def most_lanes(nodes: Mapping[str, Node], counts: Mapping[Gang, int]) -> int:
    """Returns how many lanes may be open at once: the smallest gangs first, each once per trial.

    Args:
      nodes: all machines by name.
      counts: number of trials by gang with the number of GPUs decided.
    """
    room, order, total = _Room(nodes), sorted(nodes), 0
    for gang in sorted(counts, key=lambda gang: gang.size):
        for _ in range(counts[gang]):
            if not room.place(gang, order):
                break
            total += 1
    return total
