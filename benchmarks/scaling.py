"""Simulates large clusters on the real Dispatch, and measures the Coordinator's cost per lane.

    python -m benchmarks.scaling [--tables large mixes head] [--trials 10000] [--gpus 1000] [--seed 0]

Three tables. The first is one sweep of one-GPU, four-GPU and eight-GPU trials on machines of eight GPUs: its
time against a lower bound, the larger of the longest trial and the time in which the machines that have come
give the trials' GPU-seconds. In its second row machines come one by one and some are preempted; a preempted
trial starts over, and the bound knows no preemption. The second table is 50 mixes of gangs of 1, 2 and 4 CPUs
on four machines of 2 CPUs. Both drive one Dispatch as Tune, lanes, workers and Ray do. Workers find their
machines by themselves, give up after a minute without room, and take a minute to start (none in the second
table). A message takes no time, and the trials' lengths are made up. A deadlock ends the command. The third
table is the processor time of the real Coordinator by lanes, in this process and without Ray, so without the
cost of a message.
"""

import argparse
import asyncio
import heapq
import random
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

from benchmarks.flatness import ROW
from orchestrator.execution.coordinator import Coordinator
from orchestrator.execution.dispatch import Dispatch, Job
from orchestrator.trials.admission import most_lanes
from orchestrator.trials.events import SessionBegan
from orchestrator.trials.gang import Gang, Node

GPUS_PER_NODE = 8
#: Seconds from finding room to the first step of a lane's first trial.
START_SECONDS = 60.0
#: Seconds after which workers that find no room give up.
PATIENCE_SECONDS = 60.0
#: Seconds after which a preempted machine is there again.
AWAY_SECONDS = 600.0


@dataclass
class Seat:
    """A lane as Tune and Ray see it.

    Attributes:
      gang: of its workers, once it has been told.
      asked: time at which these began to look for room.
      places: the machine of each worker.
      groups: number of worker groups so far.
      last: number of its last attempt.
    """

    gang: Gang | None = None
    asked: float = 0.0
    places: tuple[str, ...] = ()
    groups: int = 0
    last: int = 0


@dataclass
class World:
    """One sweep on a simulated cluster. The clock is that of the next event."""

    nodes: dict[str, Node]
    trials: list[tuple[Gang, float]]
    #: Time and machine of arrivals and preemptions.
    arrivals: list[tuple[float, str]] = field(default_factory=list)
    preemptions: list[tuple[float, str]] = field(default_factory=list)
    start_seconds: float = START_SECONDS

    def __post_init__(self) -> None:
        self.now, self.count, self.attempts = 0.0, 0, 0
        self.agenda: list[tuple[float, int, str, str, int]] = []
        self.here = dict(self.nodes) if not self.arrivals else {}
        self.free = {name: size_of(node) for name, node in self.here.items()}
        self.lengths = {f"{number:016x}": seconds for number, (_, seconds) in enumerate(self.trials)}
        #: Device-seconds of machines that were there.
        self.there = 0.0
        #: Number of decisions, and the seconds that this process took for them.
        self.decisions, self.deciding = 0, 0.0
        self.dispatch, self.slots = Dispatch(), len(self.trials)
        gangs = [gang for gang, _ in self.trials]
        self.dispatch.add(
            Job(trial, "arm", "{}", gang=gang) for trial, gang in zip(self.lengths, gangs, strict=True)
        )
        self.seats: dict[str, Seat] = {}
        #: Lanes whose workers look for room, in the order in which they began to.
        self.looking: dict[str, None] = {}
        for number in range(most_lanes(self.nodes, Counter(gangs))):
            self.seats[f"lane{number}"] = Seat()
            self._open(f"lane{number}")
        for when, node in self.arrivals:
            self._later(when, "arrival", node)
        for when, node in self.preemptions:
            self._later(when, "preemption", node)

    def _later(self, when: float, kind: str, name: str, number: int = 0) -> None:
        self.count += 1
        heapq.heappush(self.agenda, (when, self.count, kind, name, number))

    def run(self) -> float:
        """Runs all trials. Returns the time of the last end."""
        self._settle()
        while self.dispatch.num_open:
            if not self.agenda:
                raise RuntimeError("deadlock: trials are left and nothing will happen")
            when, _, kind, name, number = heapq.heappop(self.agenda)
            self.there += (when - self.now) * sum(map(size_of, self.here.values()))
            self.now = when
            seat = self.seats.get(name)
            match kind:
                case "arrival":
                    self.here[name] = self.nodes[name]
                    self.free[name] = size_of(self.nodes[name])
                case "preemption":
                    self._preempt(name)
                case "start" if seat is not None and seat.groups == number:
                    seat.last = self.dispatch.enter(name, seat.places[0], self.now, seat.places)
                case "end":
                    self.dispatch.end(name, number, "finished", "", self.now)
                case "give up" if name in self.looking and seat is not None and seat.groups == number:
                    self.dispatch.lose(name, "node", "no room in time", self.now)
                    self._leave(name, seat)
                case _:
                    # Of a worker group that is gone.
                    continue
            self._settle()
        return self.now

    def _settle(self) -> None:
        """Lets everybody do what they are told, until there is nothing more to do."""
        while True:
            began = time.perf_counter()
            self.dispatch.settle(self.here, self.now)
            self.decisions, self.deciding = self.decisions + 1, self.deciding + time.perf_counter() - began
            self.dispatch.take_events()
            acted = [self._act(name, seat) for name, seat in list(self.seats.items())]
            if not any(acted):
                break
        for name in list(self.looking):
            self._find_room(name, self.seats[name])

    def _act(self, name: str, seat: Seat) -> bool:
        """Lets a lane and its workers do what they are told. Returns whether there was anything."""
        state, acted = self.dispatch.desks[name], False
        while state.messages:
            acted, message = True, self.dispatch.poll(name, self.now) or {}
            if "gang" in message:
                seat.gang, seat.asked, seat.groups = message["gang"], self.now, seat.groups + 1
                self.looking[name] = None
                self._later(self.now + PATIENCE_SECONDS, "give up", name, seat.groups)
            elif not self._open(name):
                self.dispatch.close_lane(name)
                self._leave(name, seat)
                del self.seats[name]
                return True
        if not state.entered or state.attempt is not None:
            return acted
        if self.dispatch.leaves(name, seat.last):
            self._leave(name, seat)
            return True
        if (attempt := self.dispatch.take(name, seat.last, self.now)) is None:
            return acted
        self.attempts, seat.last = self.attempts + 1, attempt.number
        self._later(self.now + self.lengths[attempt.job.trial], "end", name, attempt.number)
        return True

    def _open(self, name: str) -> bool:
        """Opens a slot on a lane, if Tune has one left."""
        if self.slots:
            self.slots -= 1
            self.dispatch.open(name, self.now)
            return True
        return False

    def _find_room(self, name: str, seat: Seat) -> None:
        """Reserves the machines of a lane's workers if there is room: few machines, the fullest first."""
        assert seat.gang is not None
        each, places = seat.gang.devices / seat.gang.workers, list[str]()
        whole = sorted((free, node) for node, free in self.free.items() if free >= seat.gang.devices)
        parts = sorted((-free, node) for node, free in self.free.items())
        for _, node in whole[:1] or parts:
            places += [node] * min(int(self.free[node] // each), seat.gang.workers - len(places))
        if len(places) < seat.gang.workers:
            return
        del self.looking[name]
        seat.places = tuple(places)
        for node in places:
            self.free[node] -= each
        self._later(self.now + self.start_seconds, "start", name, seat.groups)

    def _leave(self, name: str, seat: Seat) -> None:
        """Ends the workers of a lane, which gives their room back."""
        self.looking.pop(name, None)
        for node in seat.places:
            if node in self.free and seat.gang is not None:
                self.free[node] += seat.gang.devices / seat.gang.workers
        seat.gang, seat.places, seat.groups = None, (), seat.groups + 1
        self.dispatch.vacate(name, self.now)

    def _preempt(self, node: str) -> None:
        if self.here.pop(node, None) is None:
            return
        del self.free[node]
        for name, seat in list(self.seats.items()):
            if node in seat.places:
                self.dispatch.lose(name, "node", "its machine was preempted", self.now)
                self._leave(name, seat)
        self._later(self.now + AWAY_SECONDS, "arrival", node)


def size_of(node: Node) -> float:
    """Returns the GPUs of a machine, or its CPUs if it has none."""
    return node.gpus or node.cpus


def bound(trials: list[tuple[Gang, float]], arrivals: list[float], devices: float) -> float:
    """Returns a time in which no schedule can end: arrivals in order, each with as many devices."""
    work, there, now = sum(gang.devices * seconds for gang, seconds in trials), 0.0, 0.0
    for when in sorted(arrivals):
        if there * (when - now) >= work:
            break
        work -= there * (when - now)
        there, now = there + devices, when
    return max(now + work / there, max(seconds for _, seconds in trials))


def large(num_trials: int, num_gpus: int, seed: int, faults: bool) -> None:
    """Prints one row: a sweep on machines of eight GPUs, with or without preemptions."""
    rng = random.Random(seed)
    nodes = {f"node{n}": Node(8 * GPUS_PER_NODE, GPUS_PER_NODE) for n in range(num_gpus // GPUS_PER_NODE)}
    gangs = [Gang(1, 4, 1.0), Gang(4, 4, 1.0), Gang(8, 4, 1.0)]
    trials = [(rng.choices(gangs, (80, 10, 10))[0], rng.lognormvariate(8, 0.5)) for _ in range(num_trials)]
    arrivals = [(rng.uniform(0, 1800), name) for name in nodes] if faults else [(0.0, name) for name in nodes]
    lost = [(rng.uniform(1800, 20000), name) for name in nodes if rng.random() < 0.5] if faults else []
    world, began = World(nodes, trials, arrivals, lost), time.perf_counter()
    makespan = world.run()
    least = bound(trials, [when for when, _ in arrivals], GPUS_PER_NODE)
    useful = sum(gang.devices * seconds for gang, seconds in trials)
    what = f"arrivals, {len(lost)} preemptions" if faults else "all there"
    print(
        f"| {what} | {num_trials} | {num_gpus} | {world.attempts} | {makespan / 3600:.2f} "
        f"| {least / 3600:.2f} | {makespan / least:.2f} | {100 * (1 - useful / world.there):.1f} "
        f"| {1e3 * world.deciding / world.decisions:.2f} | {time.perf_counter() - began:.0f} |",
        flush=True,
    )


def mixes(num_mixes: int) -> None:
    """Prints how 50 mixes of gangs of 1, 2 and 4 CPUs end on four machines of 2 CPUs."""
    ratios, shares = [], []
    for seed in range(num_mixes):
        rng = random.Random(seed)
        trials = [(Gang(rng.choice((1, 2, 4)), 1, 0.0), rng.uniform(1, 10)) for _ in range(40)]
        world = World({f"node{n}": Node(2, 0) for n in range(4)}, trials, start_seconds=0.0)
        makespan = world.run()
        ratios.append(makespan / bound(trials, [0.0], 8.0))
        shares.append(sum(gang.devices * seconds for gang, seconds in trials) / (8 * makespan))
    print("\n| mixes | time / bound, mean | worst | busy %, mean | least |\n|---|---|---|---|---|")
    print(
        f"| {num_mixes} | {statistics.mean(ratios):.2f} | {max(ratios):.2f} "
        f"| {100 * statistics.mean(shares):.1f} | {100 * min(shares):.1f} |"
    )


async def _lane(coordinator: Coordinator, lane: str, rounds: int, beats: int) -> None:
    await coordinator.open_slot(lane)
    last = await coordinator.enter(lane, "node")
    for _ in range(rounds):
        taken = await coordinator.take(lane, last)
        if taken is None:
            return
        last, _ = taken
        for step in range(beats):
            await coordinator.beat(lane, last, step)
        await coordinator.row(lane, last, ROW)
        await coordinator.end(lane, last, "finished", "")
        while not (await coordinator.next_event(lane, 1) or {"done": True}).get("done"):
            pass
        await coordinator.open_slot(lane)


async def _load(folder: str, lanes: int, rounds: int, beats: int) -> tuple[float, float]:
    """Returns processor seconds and MiB of lanes that run trials at the same time."""
    coordinator, process = Coordinator(folder), psutil.Process()
    await coordinator.note(SessionBegan(time=time.time(), began=time.time()))
    await coordinator.add([Job(f"{n:016x}", "arm", "{}" * 500) for n in range(lanes * rounds)])
    before, memory = resource.getrusage(resource.RUSAGE_SELF), process.memory_info().rss
    await asyncio.gather(*(_lane(coordinator, f"lane{n}", rounds, beats) for n in range(lanes)))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, (process.memory_info().rss - memory) / 2**20


def head_loads(lane_numbers: tuple[int, ...], rounds: int = 4, beats: int = 20) -> Iterator[str]:
    """Yields one row per number of lanes."""
    for lanes in lane_numbers:
        with tempfile.TemporaryDirectory() as folder:
            cpu, memory = asyncio.run(_load(folder, lanes, rounds, beats))
        # Of each trial: take, its beats, row, end, the slot's two messages and its opening. A lane hears
        # of its gang, and its workers enter, only once.
        calls = lanes * rounds * (beats + 6)
        cost = f"{1e3 * cpu / calls:.3f} | {calls / cpu:.0f} | {1024 * memory / lanes:.0f}"
        yield f"| {lanes} | {calls} | {cost} |"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=("large", "mixes", "head"))
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--gpus", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tables = options.tables or ("large", "mixes", "head")
    if "large" in tables:
        print(
            "| machines | trials | GPUs | attempts | hours | bound | ratio | idle or lost % | ms a decision "
            "| simulated in s |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
        for faults in (False, True):
            large(options.trials, options.gpus, options.seed, faults)
    if "mixes" in tables:
        mixes(50)
    if "head" in tables:
        print("\n| lanes | calls | ms a call | calls/s at one core | KiB a lane |\n|---|---|---|---|---|")
        for row in head_loads((8, 32, 128, 1000)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
