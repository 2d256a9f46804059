"""A simulated cluster: lanes, workers, Tune and machines, with its own clock.

It replaces Ray, and drives the real `Dispatch`, `fold` and `ledger`. Everything is a function of one seed:
the faults and their times, the duration of a step, and the steps between checkpoints. A trial's value is a
hash of all its steps, so that a lost or repeated step changes the result.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.execution.dispatch import Dispatch, Job
from orchestrator.store.journal import decode, encode
from orchestrator.trials.admission import most_lanes
from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    Event,
    PhaseBegan,
    SessionBegan,
    SessionClosed,
)
from orchestrator.trials.gang import Gang, Node
from orchestrator.trials.records import Record, fold
from trainables.base import Epoch

#: Faults: the workers of a lane die; its Tune actor dies with its workers (lane) or alone (zombie); workers
#: are taken for dead, replaced, and go on (twin); a machine dies; the command dies; the power fails (torn).
FAULTS = ("worker", "worker", "lane", "zombie", "twin", "node", "driver", "torn")

EPOCHS, STEPS_PER_EPOCH = 3, 5
STEPS = EPOCHS * STEPS_PER_EPOCH


def result_of(trial: str, step: int, start: int = 0) -> int:
    """Returns the value of a trial after `step` steps, from its value `start`."""
    value = start
    for number in range(step):
        value = (value * 31 + hash_of(f"{trial}/{number}")) % 1_000_003
    return value


def hash_of(text: str) -> int:
    """Returns a hash that is the same in every process."""
    return int.from_bytes(text.encode(), "big") % 999_983


@dataclass
class Group:
    """A worker group, simulated as one process, which is all that the dispatcher sees."""

    lane: str
    node: str
    alive: bool = True
    places: tuple[str, ...] = ()
    number: int = 0
    attempt: int = 0
    trial: str | None = None
    step: int = 0
    value: int = 0


@dataclass
class LaneActor:
    """A Tune actor, which polls while it is alive."""

    name: str
    alive: bool = True
    group: Group | None = None
    has_slot: bool = False


@dataclass
class Truth:
    """The true course of a run, to compare the ledger with."""

    steps_done: Counter[str] = field(default_factory=Counter)
    #: Of cores.
    replayed_seconds: float = 0.0
    trained_seconds: float = 0.0


class World:
    """One sweep under one schedule of faults."""

    def __init__(self, seed: int, kinds: Sequence[str] = FAULTS) -> None:
        self.random = random.Random(seed)
        self.kinds = kinds
        num_trials, self.num_lanes = 12, 3
        self.nodes = {f"node{number}": Node(2, 0) for number in range(2)}
        self.trials = [f"t{number:02d}" for number in range(num_trials)]
        self.after, self.diverging = stages(seed, self.trials)
        self.gangs = gangs(seed, self.trials, set(self.after.values()))
        #: Kept final weights by trial.
        self.weights: dict[str, int] = {}
        self.step_seconds = self.random.uniform(0.5, 20)
        self.checkpoint_steps = self.random.randint(1, 12)
        # Faults are rarer than progress, because a trial lost often without progress counts as failed.
        progress = 15 + self.step_seconds * min(self.checkpoint_steps, 5)
        self.fault_seconds = self.random.uniform(2.5, 8) * progress
        self.now = 1000.0
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.counter = 0
        #: Lines of the journal as they are on disk.
        self.disk: list[bytes] = []
        self.checkpoints: dict[str, tuple[int, int]] = {}
        self.faults: Counter[str] = Counter()
        self.truth = Truth()
        self.generation = 0
        self.lane_count = 0
        self.quiet = False

    # Time.

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Schedules an action. It is dropped if its run is gone by then."""
        generation = self.generation
        self.counter += 1

        def unless_gone() -> None:
            if generation == self.generation:
                action()

        heapq.heappush(self.agenda, (self.now + seconds, self.counter, unless_gone))

    def run_until(self, finished: Callable[[], bool], limit: float) -> None:
        while self.agenda and not finished() and self.now < limit:
            self.now, _, action = heapq.heappop(self.agenda)
            action()
            self.commit()

    # The journal.

    def events(self) -> list[Event]:
        return [event for line in self.disk if (event := decode(line)) is not None]

    def records(self) -> dict[str, Record]:
        return fold(self.events())

    def commit(self) -> None:
        self.dispatch.settle(self.nodes, self.now)
        self.disk += [encode(event).encode() for event in self.dispatch.take_events()]

    # A run of the command.

    def start_run(self) -> None:
        """Starts `vitc-sweep run`: the trials that have not ended in the journal are to run."""
        records = dict.fromkeys(self.trials, Record()) | self.records()
        left = [t for t in self.trials if not records[t].settled]
        self.generation += 1
        self.agenda.clear()
        self.dispatch = Dispatch()
        self.lanes: dict[str, LaneActor] = {}
        self.room = {name: node.cpus for name, node in self.nodes.items()}
        began = self.now
        self.now += self.random.uniform(1, 10)
        self.dispatch.events.append(SessionBegan(time=self.now, began=began))
        counts = Counter(self.gangs[trial] for trial in left)
        lanes = devices = min(self.num_lanes, len(left))
        if len(counts) > 1:
            lanes = most_lanes(self.nodes, counts)
            devices = min(4, sum(gang.workers * count for gang, count in counts.items()))
        phase = PhaseBegan(time=self.now, lanes=lanes, devices=devices, device="core")
        self.dispatch.events.append(phase)
        firsts = set(self.after.values())
        jobs = [
            Job(
                t,
                "arm",
                "",
                records[t].attempts,
                records[t].whole_epochs,
                retries=1,
                after=self.after.get(t, ""),
                is_first=t in firsts,
                gang=self.gangs[t],
            )
            for t in left
        ]
        ended = {t: (records[t].outcome, records[t].detail) for t in firsts if records[t].settled}
        self.dispatch.add(jobs, ended, self.now)
        self.commit()
        self.slots, self.at_a_time = self.dispatch.num_open, lanes
        for _ in range(lanes):
            self.new_lane()
        self.later(5, self.tend)
        self.later(self.random.expovariate(1 / self.fault_seconds), self.fault)

    def end_run(self) -> None:
        self.dispatch.events.append(SessionClosed(time=self.now))
        self.commit()

    @property
    def over(self) -> bool:
        return self.dispatch.num_open == 0

    def tend(self) -> None:
        self.dispatch.tend(self.now)
        if self.random.random() < 0.4:
            self.dispatch.pulse(self.now)
        # A round of Tune is over when no lane has a slot; the remaining trials run in the next round.
        if not any(lane.alive and lane.has_slot for lane in self.lanes.values()) and not self.over:
            self.slots = self.dispatch.num_open
            for _ in range(min(self.at_a_time, self.slots)):
                self.new_lane()
        self.later(5, self.tend)

    # Tune.

    def new_lane(self) -> None:
        if not self.slots:
            return
        self.lane_count += 1
        lane = LaneActor(f"lane{self.lane_count}")
        self.lanes[lane.name] = lane
        self.open_slot(lane)
        self.later(0, lambda: self.poll(lane))

    def open_slot(self, lane: LaneActor) -> None:
        if self.slots:
            self.slots -= 1
            lane.has_slot = True
            self.dispatch.open(lane.name, self.now)
        else:
            lane.has_slot = False
            lane.alive = False
            self.dispatch.close_lane(lane.name)

    def poll(self, lane: LaneActor) -> None:
        if not lane.alive:
            return
        message = self.dispatch.poll(lane.name, self.now)
        if message is not None and "gang" in message:
            gang, until = message["gang"], self.now + 60
            self.later(self.random.uniform(5, 30), lambda: self.new_group(lane, gang, until))
        elif message is not None and message["done"]:
            self.open_slot(lane)
        self.later(self.random.uniform(0.1, 2), lambda: self.poll(lane))

    # Workers.

    def new_group(self, lane: LaneActor, gang: Gang, until: float) -> None:
        """Starts a group where there is room, as Ray does: anywhere, and not always where it was expected."""
        if not lane.alive:
            return
        free = [name for name, cpus in self.room.items() for _ in range(int(cpus))]
        if len(free) < gang.workers:
            if self.now < until:
                self.later(2, lambda: self.new_group(lane, gang, until))
            else:
                self.dispatch.lose(lane.name, "node", "no room in time", self.now)
                self.vacate(lane)
            return
        places = tuple(self.random.sample(free, gang.workers))
        for place in places:
            self.room[place] -= 1
        group = lane.group = Group(lane.name, places[0], places=places)
        group.number = self.dispatch.enter(lane.name, group.node, self.now, places)
        self.later(0, lambda: self.work(group))

    def end_group(self, group: Group) -> None:
        """Gives the room of a group back."""
        for place in group.places:
            self.room[place] += 1
        group.places = ()

    def vacate(self, lane: LaneActor) -> None:
        if lane.alive:
            self.dispatch.vacate(lane.name, self.now)

    def work(self, group: Group) -> None:
        """Runs one turn of a worker group: it takes a trial, or does a step of it."""
        if not group.alive:
            return
        if group.trial is None:
            attempt = self.dispatch.take(group.lane, group.number, self.now)
            if attempt is None:
                if not self.dispatch.leaves(group.lane, group.number):
                    self.later(1, lambda: self.work(group))
                else:
                    group.alive = False
                    self.end_group(group)
                    lane = self.lanes[group.lane]
                    if lane.group is group:
                        self.vacate(lane)
                return
            group.number, group.trial = attempt.number, attempt.job.trial
            # A KeyError shows that the weights to start from are missing.
            start = self.weights[attempt.job.after] if attempt.job.after else 0
            group.step, group.value = self.checkpoints.get(group.trial, (0, start))
            if group.step // STEPS_PER_EPOCH > attempt.job.epochs:
                group.step, group.value = 0, start
            if not self.dispatch.beat(group.lane, group.number, group.step, self.now):
                raise AssertionError("a trial just taken is the group's")
        self.later(self.step_seconds, lambda: self.step(group))

    def step(self, group: Group) -> None:
        if not group.alive or group.trial is None:
            return
        trial = group.trial
        core_seconds = self.step_seconds * self.gangs[trial].workers
        self.truth.trained_seconds += core_seconds
        if self.truth.steps_done[trial] > group.step:
            self.truth.replayed_seconds += core_seconds
        group.value = (group.value * 31 + hash_of(f"{trial}/{group.step}")) % 1_000_003
        group.step += 1
        goes_on = self.dispatch.beat(group.lane, group.number, group.step, self.now)
        if goes_on:
            self.truth.steps_done[trial] = max(self.truth.steps_done[trial], group.step)
        if goes_on and group.step % STEPS_PER_EPOCH == 0:
            row = row_of(trial, group.step // STEPS_PER_EPOCH, group.value)
            goes_on = self.dispatch.row(group.lane, group.number, row, self.now)
        if not goes_on:
            group.trial = None
        elif trial in self.diverging and group.step == STEPS_PER_EPOCH:
            self.dispatch.end(group.lane, group.number, "diverged", "by plan", self.now)
            group.trial = None
        elif group.step == STEPS:
            # Written before the end is reported, as a worker does.
            self.weights[trial] = group.value
            ended = self.dispatch.end(
                group.lane, group.number, "finished", "", self.now, weights=str(group.value)
            )
            if ended is not None and ended[1]:
                self.checkpoints.pop(trial, None)
            group.trial = None
        elif group.step % self.checkpoint_steps == 0:
            self.checkpoints[trial] = (group.step, group.value)
        self.work(group)

    # Faults.

    def fault(self) -> None:
        if self.quiet:
            return
        kind = self.random.choice(self.kinds)
        living = [lane for lane in self.lanes.values() if lane.alive]
        if kind == "driver":
            self.hit(kind)
            self.now += self.random.uniform(0, 300)
            self.start_run()
            return
        if kind == "torn":
            # Power loss: the last line is torn, and the run starts again.
            self.hit(kind)
            if self.disk:
                self.disk[-1] = self.disk[-1][: self.random.randrange(len(self.disk[-1]))]
            self.now += self.random.uniform(0, 300)
            self.start_run()
            return
        if living:
            lane = self.random.choice(living)
            if kind == "worker" and lane.group and lane.group.alive:
                self.hit(kind)
                self.kill_group(lane, "process")
            elif kind == "node" and lane.group and lane.group.alive:
                self.hit(kind)
                for other in living:
                    if other.group and other.group.alive and lane.group.node in other.group.places:
                        self.kill_group(other, "node")
            elif kind == "twin" and lane.group and lane.group.alive:
                self.hit(kind)
                self.tell_lost(lane, "process")
                self.end_group(lane.group)
                self.later(self.random.uniform(1, 20), lambda: self.vacate(lane))
            elif kind == "lane":
                self.hit(kind)
                lane.alive = False
                if lane.group:
                    lane.group.alive = False
                    self.end_group(lane.group)
            elif kind == "zombie":
                # The actor is dead; its workers do not know that and go on.
                self.hit(kind)
                lane.alive = False
        self.later(self.random.expovariate(1 / self.fault_seconds), self.fault)

    def hit(self, kind: str) -> None:
        self.faults[kind] += 1

    def kill_group(self, lane: LaneActor, cause: Any) -> None:
        assert lane.group is not None
        lane.group.alive = False
        self.end_group(lane.group)
        delay = self.random.uniform(0, 5)
        if self.random.random() < 0.7:
            self.later(delay, lambda: self.tell_lost(lane, cause))
        self.later(delay + self.random.uniform(1, 30), lambda: self.vacate(lane))

    def tell_lost(self, lane: LaneActor, cause: Any) -> None:
        if lane.alive:
            self.dispatch.lose(lane.name, cause, "a worker died", self.now)


def stages(seed: int, trials: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """Returns the first stage of each trial that has one, and the first stages that diverge.

    Both are empty in every third sweep.
    """
    chance = random.Random(f"stages of {seed}")
    if seed % 3 == 0:
        return {}, set()
    firsts, others = trials[:3], trials[3:]
    after = {trial: chance.choice(firsts) for trial in others if chance.random() < 0.7}
    if chance.random() < 0.5:
        # A first stage that has a first stage itself.
        after[firsts[1]] = firsts[0]
    return after, {trial for trial in firsts if chance.random() < 0.2}


def gangs(seed: int, trials: Sequence[str], firsts: set[str]) -> dict[str, Gang]:
    """Returns the gang of each trial: of one core in every second sweep, else of 1, 2 or 4."""
    chance = random.Random(f"gangs of {seed}")
    sizes = (1, 2, 4) if seed % 2 else (1,)
    # A first stage has the largest gang of the trials that start from it.
    return {trial: Gang(max(sizes) if trial in firsts else chance.choice(sizes), 1, 0.0) for trial in trials}


def row_of(trial: str, epoch: int, value: int) -> Epoch:
    """Returns an epoch's row that contains the trial's value."""
    return Epoch(
        epoch=epoch,
        step=epoch * STEPS_PER_EPOCH,
        lr=0.1,
        train_loss=float(value),
        val_loss=1.0,
        val_error_pct=value / 1_000_003 * 100,
        val_raw_error_pct=0.0,
        train_seconds=1.0,
        val_seconds=0.0,
        test_error_pct=None,
    )


def simulate(seed: int, kinds: Sequence[str] = FAULTS) -> World:
    """Runs a sweep to its end under faults. The faults cease after a while, so that it can end.

    Raises:
      AssertionError: the sweep did not end, or `check` found a broken invariant.
    """
    world = World(seed, kinds)
    world.start_run()
    calm = world.now + 40 * world.fault_seconds
    world.run_until(lambda: world.over, calm)
    world.quiet = True
    world.run_until(lambda: world.over, world.now + 5e4)
    assert world.over, "the sweep does not end"
    world.end_run()
    if any(not world.records()[trial].settled for trial in world.trials):
        # The end of a trial was torn, so the command runs again.
        world.start_run()
        world.run_until(lambda: world.over, world.now + 5e4)
        world.end_run()
    check(world)
    return world


def check(world: World) -> None:
    """Checks the invariants that hold after any schedule.

    Raises:
      AssertionError: an invariant is broken.
    """
    from orchestrator.cost.ledger import ledger

    records = world.records()
    final_values: dict[str, int] = {}
    for trial in world.trials:
        record, first = records[trial], world.after.get(trial, "")
        if first and first not in final_values:
            # Never begun, because its first stage diverged.
            assert (record.outcome, record.attempts, record.rows) == ("diverged", 0, {}), (trial, record)
            assert record.detail.startswith(f"{first}, which it starts from, diverged: "), record.detail
            continue
        if trial in world.diverging:
            assert (record.outcome, record.detail, sorted(record.rows)) == ("diverged", "by plan", [1])
            continue
        start = final_values.get(first, 0)
        assert record.outcome == "finished", (trial, record.outcome, record.detail)
        assert sorted(record.rows) == list(range(1, EPOCHS + 1))
        for epoch, row in record.rows.items():
            assert row.train_loss == result_of(trial, epoch * STEPS_PER_EPOCH, start), (trial, epoch)
        final_values[trial] = result_of(trial, STEPS, start)
        assert record.weights == str(final_values[trial])
    assert early(world.events(), world.after) == []
    for trial, ends in finals(world.events()).items():
        assert ends == 1, (trial, ends)
    assert overlaps(world.events()) == []
    spent = ledger(world.events())
    assert all(seconds >= 0 for seconds in spent.rows().values()), spent
    capacity = sum(devices * (ended - began) for began, ended, devices in phases(world.events()))
    assert abs(spent.total - capacity) <= 0.01 * capacity, (spent, capacity)


def finals(events: list[Event]) -> Counter[str]:
    """Returns how often each trial has ended for good."""
    return Counter(event.trial for event in events if isinstance(event, AttemptEnded) and event.final)


def early(events: list[Event], after: dict[str, str]) -> list[str]:
    """Returns trials that began before their first stage had finished."""
    finished: set[str] = set()
    found = []
    for event in events:
        match event:
            case AttemptEnded(end="finished", final=True):
                finished.add(event.trial)
            case AttemptBegan(trial=trial) if (first := after.get(trial)) and first not in finished:
                found.append(trial)
    return found


def overlaps(events: list[Event]) -> list[str]:
    """Returns trials that began again in one run before the end of their last attempt was on record."""
    in_flight: set[str] = set()
    found = []
    for event in events:
        match event:
            case SessionBegan():
                in_flight.clear()
            case AttemptBegan(trial=trial):
                if trial in in_flight:
                    found.append(trial)
                in_flight.add(trial)
            case AttemptEnded(trial=trial):
                in_flight.discard(trial)
    return found


def phases(events: list[Event]) -> Iterator[tuple[float, float, float]]:
    """Yields begin, end and devices of every phase, computed without the ledger's code."""
    current: tuple[float, float] | None = None
    last = began = 0.0
    for event in events:
        match event:
            case SessionBegan():
                if current:
                    yield current[0], last, current[1]
                current, began = None, event.began
            case PhaseBegan():
                current = (began, event.devices)
        last = getattr(event, "time", last)
    if current:
        yield current[0], last, current[1]
