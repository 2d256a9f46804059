"""The Coordinator's decisions: which lane runs which trial, which trials run again, and when to stop.

    slots (one per Tune trial) ─ open ─▶ Dispatch ◀─ enter, take, row, beat, end, lost ─ worker groups
                                            │
                                            └─▶ events for the journal, messages for the slots

Tune opens a slot on a lane for every trial that is left. The end of any trial closes one slot, not always the
slot it began in: a trial that failed on one machine goes on elsewhere, and Tune need not know.

A lane is told its gang, and then starts a worker group. If all trials are of one gang, every lane gets that,
and waits for its machines. If not, `settle` gives gangs to lanes as `admission` decides, and takes them back:
workers leave, and the lane gets another gang. A lane whose group was lost gets a gang anew, too.

This module uses no Ray, files or clock. Every call takes the time, so that a simulation can let weeks pass.
"""

import dataclasses
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from orchestrator.trials.admission import OpenLane, admit
from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    BreakerTripped,
    DeviceUsed,
    EpochDone,
    Event,
    InFlight,
    LaneOpened,
    Pulse,
)
from orchestrator.trials.gang import ONE_CORE, Gang, Node
from orchestrator.trials.outcomes import RULES, AttemptEnd, fingerprint, held_up_by
from trainables.base import DeviceUse, Epoch

#: Losses of one trial in a row without progress after which it has failed, because the trial itself is then
#: what kills its process.
MAX_LOSSES = 5

#: Losses of one trial's device after which it has failed. A GPU fails its trial once, a trial its GPUs twice.
MAX_DEVICE_LOSSES = 2

#: Worker groups of a lane in a row that do not come up, after which the run ends if no other lane has one.
MAX_FAILED_STARTS = 3

#: Seconds of silence after which a lane's Tune actor is taken for dead; it polls every two.
LANE_SILENCE_SECONDS = 60.0

#: Cause of a worker group's loss: a process died; its machine died; its machine ran out of memory; it hung.
Cause = Literal["process", "node", "memory", "hang"]
_END_OF: dict[Cause, AttemptEnd] = {
    "process": "lost",
    "node": "preempted",
    "memory": "out_of_memory",
    "hang": "failed",
}


@dataclasses.dataclass(slots=True)
class Job:
    """A trial that has not ended.

    Attributes:
      trial: id of the trial.
      arm: failures in a row are counted per arm, because only one arm may be broken.
      config: the trial's `TrainConfig` as JSON.
      attempts: number of attempts, including those in earlier runs.
      epochs: number of epochs on record; a checkpoint beyond them is not used.
      retries: how often it may still run again after failing.
      losses: in a row without progress.
      device_losses: how often it has lost its device.
      places: machines and lanes where it failed or was lost.
      from_step: step at which its last attempt began.
      group: cell and arm whose trials compete to have their weights kept.
      after: the trial whose final weights it starts from; it waits for that trial to finish.
      is_first: whether other trials start from its final weights, which are then kept.
      order: its position among all trials of the run.
      gang: the resources that it needs at once, with the number of GPUs decided.
    """

    trial: str
    arm: str
    config: str
    attempts: int = 0
    epochs: int = 0
    retries: int = 0
    losses: int = 0
    device_losses: int = 0
    places: set[str] = dataclasses.field(default_factory=set)
    from_step: int = -1
    group: str = ""
    after: str = ""
    is_first: bool = False
    order: int = 0
    gang: Gang = ONE_CORE


def _how_often(job: Job) -> str:
    if job.device_losses >= MAX_DEVICE_LOSSES:
        return "twice"
    return f"{MAX_LOSSES} times in a row without getting on"


@dataclasses.dataclass(slots=True)
class Attempt:
    """A trial in flight. Steps count from the beginning of the trial; -1 before the first heartbeat."""

    job: Job
    number: int
    started: float
    from_step: int = -1
    step: int = -1
    heard: float = 0.0
    epochs: int = 0


@dataclasses.dataclass(slots=True)
class LaneState:
    """The dispatcher's view of one lane.

    Attributes:
      number: of the last attempt on the lane; a new worker group counts as an attempt.
      entry: number of the current worker group; workers of an older group get no work.
      attempt: the attempt in flight.
      slot: whether a Tune trial on this lane waits for an end.
      entered: whether a worker group is there to take work.
      failed_starts: worker groups in a row that ended before they were there.
      closed: whether the lane takes no more trials.
      gang: of its worker group, or of the one that it is told to start. None if it has neither.
      places: the machine of each worker; before the group is there, where it is expected. Empty if unknown.
      leaving: whether the worker group must leave, to make room for another lane, or because it is lost.
      node: machine of rank 0.
      polled: time of the Tune actor's last poll.
      messages: for the slot, oldest first.
    """

    number: int = 0
    entry: int = 0
    attempt: Attempt | None = None
    slot: bool = False
    entered: bool = False
    failed_starts: int = 0
    closed: bool = False
    gang: Gang | None = None
    places: tuple[str, ...] = ()
    leaving: bool = False
    node: str = ""
    polled: float = 0.0
    messages: deque[dict[str, Any]] = dataclasses.field(default_factory=deque)


class Dispatch:
    """The state of one run. The work per call does not grow with the number of trials."""

    def __init__(self, breaker: int = 5) -> None:
        """
        Args:
          breaker: number of trials of an arm in a row with the same error after which the run stops.
        """
        self.desks: dict[str, LaneState] = {}
        #: Trials that no lane has, by gang. Every gang of the run is a key.
        self.queues: dict[Gang, deque[Job]] = {}
        self.events: list[Event] = []
        self.num_open = 0
        self.handing_out = True
        self.stopped_by = ""
        self._breaker = breaker
        self._streaks: dict[str, tuple[str, set[str]]] = {}
        self._num_jobs = 0
        #: Final end of each first stage, and the cause; None before it has ended.
        self._firsts: dict[str, tuple[AttemptEnd, str] | None] = {}
        self._waiting: dict[str, list[Job]] = {}
        #: The machines of the last `settle`; None if lanes or trials have changed since.
        self._settled: Mapping[str, Node] | None = None

    def add(
        self,
        jobs: Iterable[Job],
        ended: Mapping[str, tuple[AttemptEnd, str]] | None = None,
        now: float = 0.0,
    ) -> None:
        """Puts trials at the end of the queue. A trial that starts from another's weights waits for that one.

        Args:
          jobs: trials; a first stage comes before the trials that start from it, here or in an earlier call.
          ended: end and cause of first stages that ended in earlier runs.
          now: the time at which trials end whose first stage left no weights.
        """
        self._settled = None
        self._firsts.update(ended or {})
        for job in jobs:
            self.num_open += 1
            self._num_jobs += 1
            job.order = self._num_jobs
            queue = self.queues.setdefault(job.gang, deque())
            if job.is_first:
                self._firsts[job.trial] = None
            if not job.after:
                queue.append(job)
            elif (first := self._firsts[job.after]) is None:
                self._waiting.setdefault(job.after, []).append(job)
            elif first[0] == "finished":
                queue.append(job)
            else:
                self._end_without_attempt(job, *first, now)

    def _end_without_attempt(self, job: Job, end: AttemptEnd, detail: str, now: float) -> None:
        """Ends a trial whose first stage left no weights, in the same way as the first stage ended."""
        self.num_open -= 1
        detail = held_up_by(job.after, end, detail)
        self.events.append(
            AttemptEnded(
                trial=job.trial,
                attempt=job.attempts,
                end=end,
                detail=detail,
                seconds=0.0,
                time=now,
                final=True,
            )
        )
        self._end_first(job, end, detail, now)

    def _end_first(self, job: Job, end: AttemptEnd, detail: str, now: float) -> None:
        """Queues the trials that start from a finished trial. Ends them if it did not finish."""
        if not job.is_first:
            return
        self._firsts[job.trial] = end, detail
        waiting = self._waiting.pop(job.trial, [])
        if end == "finished":
            # In the order given, so that a run that is cut short has both arms at the same points.
            for gang in {other.gang for other in waiting}:
                both = (*self.queues[gang], *(other for other in waiting if other.gang == gang))
                self.queues[gang] = deque(sorted(both, key=lambda other: other.order))
        else:
            for other in waiting:
                self._end_without_attempt(other, end, detail, now)

    def take_events(self) -> list[Event]:
        """Returns the events since the last call, for the journal."""
        events, self.events = self.events, []
        return events

    # Slots.

    def open(self, lane: str, now: float) -> None:
        """Opens a slot: a Tune trial on a lane begins to wait for an end."""
        state = self.desks.setdefault(lane, LaneState())
        state.slot, state.polled, self._settled = True, now, None
        # One that was taken for dead may live after all.
        state.closed = False
        # The lane has not heard of its gang yet.
        state.messages = deque(message for message in state.messages if "gang" in message)
        if not self._work_left():
            self._close_slot(state)
        else:
            self._give_the_only_gang(lane, state, now)

    def poll(self, lane: str, now: float) -> dict[str, Any] | None:
        """Returns the next message for a slot. None if there is none. The call counts as a heartbeat."""
        state = self.desks.setdefault(lane, LaneState())
        state.polled = now
        if state.messages:
            return state.messages.popleft()
        if not state.slot:
            # The lane was taken for dead.
            return {"done": True}
        return None

    def close_lane(self, lane: str) -> None:
        """Makes the workers of a lane leave at their next request."""
        self.desks.setdefault(lane, LaneState()).closed = True

    # Gangs of lanes.

    def settle(
        self, nodes: Mapping[str, Node], now: float, limit: int | None = None, asks: bool = False
    ) -> None:
        """Gives gangs to lanes without one, and takes others back, if the run has several gangs.

        Args:
          nodes: the machines that are there and stay, by name.
          limit: number of lanes at most.
          asks: whether lanes beyond what the machines have room for wait for more machines.
        """
        if len(self.queues) < 2 or not self.handing_out or self._settled == nodes:
            return
        self._settled = dict(nodes)
        waiting = {gang: len(queue) for gang, queue in self.queues.items()}
        asking = Counter[Gang]()
        lanes = {}
        for name, state in self.desks.items():
            if state.gang is None:
                continue
            is_idle = state.entered and state.attempt is None and not state.leaving and not state.closed
            lanes[name] = OpenLane(state.gang, state.places, busy=not is_idle)
            if state.entered or state.closed or state.leaving:
                continue
            if state.places:
                # It takes a trial as soon as it is there.
                waiting[state.gang] = max(0, waiting[state.gang] - 1)
            else:
                asking[state.gang] += 1
        decision = admit(nodes, lanes, waiting, limit)
        for name in decision.close:
            self.desks[name].leaving = True
        seats = deque(
            name for name, it in self.desks.items() if it.slot and it.gang is None and not it.closed
        )
        for opened in decision.open:
            waiting[opened.gang] -= 1
            if seats:
                self._give(seats.popleft(), opened.gang, opened.places, now)
        if asks:
            idle = Counter(lane.gang for name, lane in lanes.items() if not lane.busy)
            wanted = [
                gang
                for gang in sorted(waiting, key=lambda gang: gang.size, reverse=True)
                for _ in range(waiting[gang] - idle[gang] - asking[gang])
            ]
            for gang in wanted[: len(seats)]:
                self._give(seats.popleft(), gang, (), now)

    def vacate(self, lane: str, now: float) -> tuple[Job, bool] | None:
        """Registers that a lane has no worker group any more. Returns the same as `lose`."""
        state = self.desks.setdefault(lane, LaneState())
        ended = self._lose(lane, state, "process", "a worker process died", now)
        state.gang, state.places, state.leaving, self._settled = None, (), False, None
        if state.slot and self._work_left():
            self._give_the_only_gang(lane, state, now)
        return ended

    def _give_the_only_gang(self, lane: str, state: LaneState, now: float) -> None:
        if len(self.queues) == 1 and state.gang is None and not state.closed:
            self._give(lane, next(iter(self.queues)), (), now)

    def _give(self, lane: str, gang: Gang, places: tuple[str, ...], now: float) -> None:
        state = self.desks[lane]
        # Workers of a group before have a smaller number, and are sent away.
        state.number += 1
        state.gang, state.places, state.leaving, state.entry = gang, places, False, state.number
        state.messages.append({"gang": gang})
        if len(self.queues) > 1:
            self.events.append(LaneOpened(time=now, lane=lane, devices=gang.devices))

    def _work_left(self) -> bool:
        return self.handing_out and self.num_open > 0

    def _close_slot(self, state: LaneState) -> None:
        state.slot = False
        state.messages.append({"done": True})

    def _close_some_slot(self, own: LaneState) -> None:
        """Closes one slot, because a trial has ended: an idle one if this lane can use its own again.

        Of the idle ones, first those whose lanes have no trial to wait for.
        """
        if not self._work_left():
            for state in self.desks.values():
                if state.slot and state.attempt is None:
                    self._close_slot(state)
            return
        if not own.slot:
            return
        idle = [
            state
            for state in self.desks.values()
            if state.slot and state.attempt is None and state is not own
        ]
        if idle and own.gang is not None and self.queues[own.gang]:
            self._close_slot(min(idle, key=lambda it: it.gang is not None and bool(self.queues[it.gang])))
        else:
            self._close_slot(own)

    # Worker groups.

    def enter(self, lane: str, node: str, now: float, places: tuple[str, ...] = ()) -> int:
        """Registers a new worker group. A trial still in flight was lost with the group before it.

        `node` is the machine of rank 0, and `places` are those of all ranks.

        Returns:
          The number of the lane's last attempt before this group; its own attempts have larger numbers.
        """
        state = self.desks.setdefault(lane, LaneState())
        self.replace(lane, now)
        state.number += 1
        state.entry, state.node, state.entered, state.failed_starts = state.number, node, True, 0
        state.places, state.leaving, self._settled = places or state.places, False, None
        return state.number

    def take(self, lane: str, last: int, now: float) -> Attempt | None:
        """Returns the lane's attempt after number `last`, the same for all ranks. None if there is none."""
        state = self.desks[lane]
        if self.leaves(lane, last):
            return None
        if state.attempt is None and state.number == last and state.slot:
            self._assign(lane, state, now)
        return state.attempt if state.attempt is not None and state.number > last else None

    def leaves(self, lane: str, last: int) -> bool:
        """Returns whether workers must leave: the lane is closed or gets another gang, or has a newer group.

        `last` is the number of their last attempt.
        """
        state = self.desks[lane]
        return state.closed or state.leaving or last < state.entry

    def _assign(self, lane: str, state: LaneState, now: float) -> None:
        if not self.handing_out:
            return
        if state.gang is None:
            return
        queue = self.queues[state.gang]
        for index, job in enumerate(queue):
            if self._suits(job, lane, state):
                del queue[index]
                break
            if index == 64:  # a bound on the search, because many jobs may wait for another place
                return
        else:
            return
        state.number += 1
        job.attempts += 1
        self._settled = None
        state.attempt = Attempt(job, state.number, now, heard=now)
        self.events.append(
            AttemptBegan(trial=job.trial, attempt=job.attempts, lane=lane, node=state.node, time=now)
        )

    def _suits(self, job: Job, lane: str, state: LaneState) -> bool:
        """Returns whether this lane may run the job.

        A job that failed on this lane or machine goes to another one first, if another takes work.
        """
        if not job.places or not job.places & {lane, state.node}:
            return True
        others = (
            (other, it)
            for other, it in self.desks.items()
            if it.entered and it.slot and not (it.closed or it.leaving) and it.gang == state.gang
        )
        return not any(not job.places & {other, it.node} for other, it in others)

    def _attempt(self, lane: str, number: int) -> tuple[LaneState, Attempt] | None:
        state = self.desks.get(lane)
        if state is None or state.attempt is None or state.attempt.number != number:
            return None
        return state, state.attempt

    def job(self, lane: str, number: int) -> Job | None:
        """Returns the trial of an attempt. None if the attempt is no longer this lane's."""
        found = self._attempt(lane, number)
        return found[1].job if found else None

    def uses(self, lane: str, number: int, use: DeviceUse) -> None:
        """Records the device of an attempt."""
        if (found := self._attempt(lane, number)) is not None:
            job = found[1].job
            self.events.append(DeviceUsed(trial=job.trial, attempt=job.attempts, use=use))

    def beat(self, lane: str, number: int, step: int, now: float) -> bool:
        """Registers the step of rank 0. False makes it drop the trial."""
        if (found := self._attempt(lane, number)) is None:
            return False
        _, attempt = found
        if attempt.from_step < 0:
            attempt.from_step = step
            if step > attempt.job.from_step:
                # The last attempt left a later checkpoint than the one before, which counts as progress.
                attempt.job.losses = 0
            attempt.job.from_step = step
        attempt.step, attempt.heard = max(step, attempt.step), now
        return True

    def row(self, lane: str, number: int, row: Epoch, now: float) -> bool:
        """Records an epoch's row from rank 0. False makes it drop the trial."""
        if not self.beat(lane, number, row.step, now) or (found := self._attempt(lane, number)) is None:
            return False
        state, attempt = found
        attempt.epochs = row.epoch
        attempt.job.epochs = max(attempt.job.epochs, attempt.epochs)
        attempt.job.losses = 0
        self.events.append(EpochDone(trial=attempt.job.trial, attempt=attempt.job.attempts, row=row))
        state.messages.append({"epoch": row.epoch, "error_pct": row.val_error_pct, "done": False})
        return True

    def end(
        self, lane: str, number: int, end: AttemptEnd, detail: str, now: float, weights: str = ""
    ) -> tuple[Job, bool] | None:
        """Records the end of an attempt. Only the first call counts; other ranks may repeat it.

        Returns:
          The trial and whether it has ended for good. None if the attempt is no longer this lane's.
        """
        if (found := self._attempt(lane, number)) is None:
            return None
        if end == "lost":
            # Told by a worker that lives, so it is not the process that was lost.
            found[1].job.device_losses += 1
        return self._finish(lane, found[0], found[1], end, detail, now, weights)

    def lose(self, lane: str, cause: Cause, detail: str, now: float) -> tuple[Job, bool] | None:
        """Registers the loss of a lane's worker group and its trial in flight. Returns the same as `end`."""
        state = self.desks.get(lane)
        if state is None:
            return None
        if not state.entered and not state.closed and cause != "node":
            self._count_failed_start(state, detail, now)
        return self._lose(lane, state, cause, detail, now)

    def replace(self, lane: str, now: float) -> tuple[Job, bool] | None:
        """Registers that a lane has another worker group. Returns the same as `lose`."""
        state = self.desks.get(lane)
        return self._lose(lane, state, "process", "a worker process died", now) if state else None

    def _lose(
        self, lane: str, state: LaneState, cause: Cause, detail: str, now: float
    ) -> tuple[Job, bool] | None:
        state.entered, state.leaving, self._settled = False, True, None
        if state.attempt is None:
            return None
        return self._finish(lane, state, state.attempt, _END_OF[cause], detail, now)

    def _count_failed_start(self, state: LaneState, detail: str, now: float) -> None:
        """Stops the run when worker groups do not come up, unless other lanes have theirs."""
        state.failed_starts += 1
        if (
            state.failed_starts >= MAX_FAILED_STARTS
            and self.handing_out
            and not any(other.entered for other in self.desks.values())
        ):
            self._stop_by(f"{state.failed_starts} worker groups in a row did not start: {detail}", "", now)

    def _stop_by(self, reason: str, arm: str, now: float) -> None:
        self.stopped_by = reason
        self.events.append(BreakerTripped(time=now, arm=arm, detail=reason))
        self.drain()

    def _finish(
        self,
        lane: str,
        state: LaneState,
        attempt: Attempt,
        end: AttemptEnd,
        detail: str,
        now: float,
        weights: str = "",
    ) -> tuple[Job, bool]:
        job = attempt.job
        state.attempt, self._settled = None, None
        again = self._tries_again(job, end)
        if end == "lost" and not again:
            end, detail = "failed", f"{detail}, {_how_often(job)}"
        self._note_end(attempt, end, detail, now, not again, weights)
        self._count_streak(job, end, detail, now)
        if again:
            if end in ("failed", "lost"):
                job.places |= {lane, state.node} - {""}
            self.queues[job.gang].appendleft(job)
            if not self.handing_out and state.slot:
                self._close_slot(state)
        else:
            self.num_open -= 1
            self._end_first(job, end, detail, now)
            self._close_some_slot(state)
        return job, not again

    def _note_end(
        self, attempt: Attempt, end: AttemptEnd, detail: str, now: float, final: bool, weights: str = ""
    ) -> None:
        self.events.append(
            AttemptEnded(
                trial=attempt.job.trial,
                attempt=attempt.job.attempts,
                end=end,
                detail=detail,
                seconds=now - attempt.started,
                time=now,
                final=final,
                weights=weights,
                from_step=attempt.from_step,
                step=attempt.step,
                heard=attempt.heard,
                epochs=attempt.epochs,
            )
        )

    def _tries_again(self, job: Job, end: AttemptEnd) -> bool:
        match RULES[end].again:
            case "always":
                return True
            case "losses":
                job.losses += 1
                return job.losses < MAX_LOSSES and job.device_losses < MAX_DEVICE_LOSSES
            case "retries" if job.retries > 0:
                job.retries -= 1
                return True
        return False

    def _count_streak(self, job: Job, end: AttemptEnd, detail: str, now: float) -> None:
        """Stops handing out trials when `breaker` trials of an arm in a row end with the same error."""
        if end in ("lost", "preempted", "cancelled"):
            return
        if end not in ("failed", "invalid", "out_of_memory"):
            self._streaks.pop(job.arm, None)
            return
        mark = fingerprint(end, detail)
        before, trials = self._streaks.get(job.arm, ("", set()))
        trials = (trials if before == mark else set()) | {job.trial}
        self._streaks[job.arm] = (mark, trials)
        if len(trials) >= self._breaker and self.handing_out:
            reason = f"{len(trials)} trials of {job.arm} in a row ended with the same error: {detail}"
            self._stop_by(reason, job.arm, now)

    # The run as a whole.

    def drain(self) -> None:
        """Hands out no more trials. Those in flight go on to their end."""
        self.handing_out = False
        for state in self.desks.values():
            if state.slot and state.attempt is None:
                self._close_slot(state)

    def stop(self, now: float) -> None:
        """Ends the run. Trials in flight are cancelled, and keep their checkpoints for the next run."""
        self.handing_out = False
        for state in self.desks.values():
            if (attempt := state.attempt) is not None:
                state.attempt = None
                self.num_open -= 1
                self._note_end(attempt, "cancelled", "interrupted", now, final=True)
            if state.slot:
                self._close_slot(state)

    def tend(self, now: float) -> list[str]:
        """Detects lanes whose Tune actor has died. Called every few seconds.

        Returns:
          Those lanes. Their trials are back in the queue.
        """
        silent = [
            lane
            for lane, state in self.desks.items()
            if state.slot and now - state.polled > LANE_SILENCE_SECONDS
        ]
        for lane in silent:
            self.lose(lane, "process", "its lane died", now)
            state = self.desks[lane]
            state.slot, state.closed = False, True
        for lane, state in self.desks.items():
            if state.gang is not None and not state.slot and now - state.polled > LANE_SILENCE_SECONDS:
                # Others get its room, also if it was lost between two trials.
                state.closed = True
                self.vacate(lane, now)
        return silent

    def pulse(self, now: float) -> None:
        """Records that the run is alive, and the steps of its trials in flight."""
        in_flight = {
            attempt.job.trial: InFlight(attempt.from_step, attempt.step, attempt.heard)
            for state in self.desks.values()
            if (attempt := state.attempt) is not None
        }
        self.events.append(Pulse(time=now, in_flight=in_flight))
