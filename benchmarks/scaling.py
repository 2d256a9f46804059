"""Simulates large clusters on the real admission and Dispatch, and measures the Coordinator's cost per lane.

    python -m benchmarks.scaling [--tables large mixes head] [--trials 10000] [--gpus 1000] [--seed 0]

Three tables, of which `run` uses only what the third measures: it does not admit lanes of several gangs yet.
The first is one sweep of one-GPU, four-GPU and eight-GPU trials on machines of eight GPUs: its time against a
lower bound, the larger of the longest trial and the time in which the machines that have come give the
trials' GPU-seconds. In its second row machines come one by one and some are preempted; a preempted trial
starts over, and the bound knows no preemption. The second table is 50 mixes of gangs of 1, 2 and 4 CPUs on
four machines of 2 CPUs. The third is the processor time of the real Coordinator by lanes, in this process and
without Ray, so without the cost of a message. Trial lengths are made up. A deadlock ends the command.
"""

import argparse
import asyncio
import heapq
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

from benchmarks.flatness import ROW
from orchestrator.execution.coordinator import Coordinator
from orchestrator.execution.dispatch import Dispatch, Job
from orchestrator.trials.admission import OpenLane, admit
from orchestrator.trials.events import SessionBegan
from orchestrator.trials.gang import Gang, Node

GPUS_PER_NODE = 8
#: Seconds from opening a lane to the first step of its first trial.
START_SECONDS = 60.0
#: Seconds after which a preempted machine is there again.
AWAY_SECONDS = 600.0


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
        self.lanes: dict[str, OpenLane] = {}
        self.queues: dict[Gang, Dispatch] = {}
        self.last: dict[str, int] = {}
        self.left: dict[str, float] = {}
        #: Device-seconds of machines that were there, and of trials that were not lost.
        self.there = self.useful = 0.0
        for number, (gang, seconds) in enumerate(self.trials):
            trial = f"{number:016x}"
            self.left[trial] = seconds
            self.queues.setdefault(gang, Dispatch()).add([Job(trial, "arm", "{}")])
        for when, node in self.arrivals:
            self._later(when, "arrival", node)
        for when, node in self.preemptions:
            self._later(when, "preemption", node)

    def _later(self, when: float, kind: str, name: str, number: int = 0) -> None:
        self.count += 1
        heapq.heappush(self.agenda, (when, self.count, kind, name, number))

    def run(self) -> float:
        """Runs all trials. Returns the time of the last end."""
        self._decide()
        while any(queue.num_open for queue in self.queues.values()):
            if not self.agenda:
                raise RuntimeError("deadlock: trials are left and nothing will happen")
            when, _, kind, name, number = heapq.heappop(self.agenda)
            self.there += (when - self.now) * sum(size_of(node) for node in self.here.values())
            self.now = when
            if kind == "arrival":
                self.here[name] = self.nodes[name]
            elif kind == "preemption":
                self._preempt(name)
            elif name not in self.lanes or self.last[name] != number:
                continue
            else:
                gang = self.lanes[name].gang
                self.queues[gang].end(name, number, "finished", "", self.now)
                self.queues[gang].take_events()
                self.lanes[name] = self.lanes[name]._replace(busy=False)
            self._decide()
        return self.now

    def _preempt(self, node: str) -> None:
        if self.here.pop(node, None) is None:
            return
        for name in [name for name, lane in self.lanes.items() if node in lane.places]:
            self._remove(name)
        self._later(self.now + AWAY_SECONDS, "arrival", node)

    def _remove(self, name: str) -> None:
        queue = self.queues[self.lanes.pop(name).gang]
        queue.lose(name, "node", "its machine was preempted", self.now)
        queue.close_lane(name)
        queue.desks.pop(name)

    def _decide(self) -> None:
        waiting = {gang: len(queue.queue) for gang, queue in self.queues.items()}
        decision = admit(self.here, self.lanes, waiting)
        for name in decision.close:
            self._remove(name)
        started = set[str]()
        for lane in decision.open:
            self.count += 1
            name = f"lane{self.count}"
            self.lanes[name] = lane._replace(busy=False)
            dispatch = self.queues[lane.gang]
            dispatch.open(name, self.now)
            self.last[name] = dispatch.enter(name, lane.places[0], self.now)
            started.add(name)
        for name, lane in self.lanes.items():
            if not lane.busy and self.queues[lane.gang].queue:
                self._start(name, lane, self.start_seconds if name in started else 0.0)

    def _start(self, name: str, lane: OpenLane, delay: float) -> None:
        dispatch = self.queues[lane.gang]
        if not dispatch.desks[name].slot:
            dispatch.open(name, self.now)
        if (attempt := dispatch.take(name, self.last[name], self.now)) is None:
            return
        self.attempts += 1
        self.last[name] = attempt.number
        self.lanes[name] = lane._replace(busy=True)
        self._later(self.now + delay + self.left[attempt.job.trial], "end", name, attempt.number)


def size_of(node: Node) -> float:
    """Returns the GPUs of a machine, or its CPUs if it has none."""
    return node.gpus or node.cpus


def work_of(gang: Gang) -> float:
    """Returns the devices of a gang."""
    return gang.workers * (gang.gpus or gang.cpus)


def bound(trials: list[tuple[Gang, float]], arrivals: list[float], devices: float) -> float:
    """Returns a time in which no schedule can end: arrivals in order, each with as many devices."""
    work, there, now = sum(work_of(gang) * seconds for gang, seconds in trials), 0.0, 0.0
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
    useful = sum(work_of(gang) * seconds for gang, seconds in trials)
    what = f"arrivals, {len(lost)} preemptions" if faults else "all there"
    print(
        f"| {what} | {num_trials} | {num_gpus} | {world.attempts} | {makespan / 3600:.2f} "
        f"| {least / 3600:.2f} | {makespan / least:.2f} | {100 * (1 - useful / world.there):.1f} "
        f"| {time.perf_counter() - began:.0f} |",
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
        shares.append(sum(work_of(gang) * seconds for gang, seconds in trials) / (8 * makespan))
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
        while not (await coordinator.next_event(lane, 1) or {"done": True})["done"]:
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
        # Of each trial: take, its beats, row, end, the slot's two messages and its opening.
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
            "| machines | trials | GPUs | attempts | hours | bound | ratio | idle or lost % | simulated s |"
        )
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
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
