"""Who runs what, who tries again, and when to stop: the clerk's mind, without Ray, files or a clock.

    slots (one per Tune trial) ─ open ─▶ Dispatch ◀─ enter, take, row, beat, end, lost ─ worker groups
                                            │
                                            └─▶ events for the journal, messages for the slots

Tune opens a slot on a lane for every trial that is left, and a slot ends with a trial: with whichever trial
ended, for a trial that failed on one machine goes on elsewhere, and Tune need not know. Every call takes
the time, so that a simulation can let weeks pass.
"""

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    BreakerTripped,
    EpochDone,
    Event,
    InFlight,
    Pulse,
)
from orchestrator.trials.outcomes import RULES, AttemptEnd, fingerprint, held_up_by
from trainables.base import Epoch

#: Losses of one trial in a row, with nothing new on record in between, after which it has failed: what
#: kills its process every time is the trial.
MAX_LOSSES = 5

#: Seconds without a sign of a lane's Tune actor after which it is taken for dead; it asks every two.
LANE_SILENCE_SECONDS = 60.0

#: What took a worker group away: its process died; its machine did; its machine ran out of memory; it hung.
Cause = Literal["process", "node", "memory", "hang"]
_END_OF: dict[Cause, AttemptEnd] = {
    "process": "lost",
    "node": "preempted",
    "memory": "out_of_memory",
    "hang": "failed",
}


@dataclasses.dataclass(slots=True)
class Job:
    """A trial on its way.

    Attributes:
      trial: its id.
      arm: failures in a row are counted per arm: one arm may be broken and the other not.
      config: what the workers need, as text.
      attempts: how often it was started, in earlier runs too.
      epochs: how many are on record; a checkpoint that is beyond them is not to be used.
      retries: how often it may still be tried again after failing.
      losses: in a row without progress.
      places: machines and lanes where it failed or was lost.
      from_step: where its last attempt began.
      group: cell and arm among whose trials the best one's weights may be kept.
      after: the trial whose final weights it starts from; it waits for that one to finish.
      is_first: whether others start from its final weights, which are kept then.
      order: its place among all trials of the run.
    """

    trial: str
    arm: str
    config: str
    attempts: int = 0
    epochs: int = 0
    retries: int = 0
    losses: int = 0
    places: set[str] = dataclasses.field(default_factory=set)
    from_step: int = -1
    group: str = ""
    after: str = ""
    is_first: bool = False
    order: int = 0


@dataclasses.dataclass(slots=True)
class Attempt:
    """A trial in flight; steps count from the beginning of the trial, -1 while nothing was heard."""

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
      number: of the last attempt that was given to the lane; a new worker group counts as one.
      entry: the number of the worker group that is in; of an older one nobody takes work.
      attempt: the one in flight.
      slot: whether a Tune trial waits for an end here.
      entered: whether a worker group is there to take work.
      node: machine of its rank 0.
      polled: when its Tune actor last asked.
      messages: for the slot, oldest first.
    """

    number: int = 0
    entry: int = 0
    attempt: Attempt | None = None
    slot: bool = False
    entered: bool = False
    closed: bool = False
    node: str = ""
    polled: float = 0.0
    messages: deque[dict[str, Any]] = dataclasses.field(default_factory=deque)


class Dispatch:
    """The state of one run; work per call does not grow with the number of trials."""

    def __init__(self, breaker: int = 5) -> None:
        """
        Args:
          breaker: trials of an arm that end with the same error, one after the other, before the run stops.
        """
        self.desks: dict[str, LaneState] = {}
        self.queue: deque[Job] = deque()
        self.events: list[Event] = []
        self.num_open = 0
        self.handing_out = True
        self.stopped_by = ""
        self._breaker = breaker
        self._streaks: dict[str, tuple[str, set[str]]] = {}
        self._num_jobs = 0
        #: How first stages ended for good, and the cause; None while they have not.
        self._firsts: dict[str, tuple[AttemptEnd, str] | None] = {}
        self._waiting: dict[str, list[Job]] = {}

    def add(
        self,
        jobs: Iterable[Job],
        ended: Mapping[str, tuple[AttemptEnd, str]] | None = None,
        now: float = 0.0,
    ) -> None:
        """Puts trials at the end of the queue; one that starts from another's weights waits for it.

        Args:
          jobs: trials; a first stage comes before those that start from it, here or in an earlier call.
          ended: of first stages that ended in earlier runs, how they did and the cause.
          now: the time, where a trial may end at once because its first stage has.
        """
        self._firsts.update(ended or {})
        for job in jobs:
            self.num_open += 1
            self._num_jobs += 1
            job.order = self._num_jobs
            if job.is_first:
                self._firsts[job.trial] = None
            if not job.after:
                self.queue.append(job)
            elif (first := self._firsts[job.after]) is None:
                self._waiting.setdefault(job.after, []).append(job)
            elif first[0] == "finished":
                self.queue.append(job)
            else:
                self._end_without_attempt(job, *first, now)

    def _end_without_attempt(self, job: Job, end: AttemptEnd, detail: str, now: float) -> None:
        """A trial whose first stage left no weights has come to the same end as that one."""
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
        """A trial has ended for good: those that start from it are handed out, or end with it."""
        if not job.is_first:
            return
        self._firsts[job.trial] = end, detail
        waiting = self._waiting.pop(job.trial, [])
        if end == "finished":
            # In the order they were given, so that a run that is cut short has its arms paired.
            self.queue = deque(sorted((*self.queue, *waiting), key=lambda other: other.order))
        else:
            for other in waiting:
                self._end_without_attempt(other, end, detail, now)

    def take_events(self) -> list[Event]:
        """What happened since the last call, for the journal."""
        events, self.events = self.events, []
        return events

    # Slots.

    def open(self, lane: str, now: float) -> None:
        """A Tune trial begins on a lane and waits for an end."""
        desk = self.desks.setdefault(lane, LaneState())
        desk.slot, desk.polled = True, now
        desk.messages.clear()
        if not self._work_left():
            self._close_slot(desk)

    def poll(self, lane: str, now: float) -> dict[str, Any] | None:
        """The next message for a slot; the lane shows by asking that it lives."""
        desk = self.desks.setdefault(lane, LaneState())
        desk.polled = now
        if desk.messages:
            return desk.messages.popleft()
        if not desk.slot:
            # A lane that was taken for dead.
            return {"done": True}
        return None

    def close_lane(self, lane: str) -> None:
        """The workers of a lane are to leave when they ask next."""
        self.desks.setdefault(lane, LaneState()).closed = True

    def _work_left(self) -> bool:
        return self.handing_out and self.num_open > 0

    def _close_slot(self, desk: LaneState) -> None:
        desk.slot = False
        desk.messages.append({"done": True})

    def _close_some_slot(self, own: LaneState) -> None:
        """A trial has ended, so a slot must: one that only waits, if this lane has use for its own."""
        if not self._work_left():
            for desk in self.desks.values():
                if desk.slot and desk.attempt is None:
                    self._close_slot(desk)
            return
        idle = [
            desk for desk in self.desks.values() if desk.slot and desk.attempt is None and desk is not own
        ]
        if idle and self.queue and own.slot:
            self._close_slot(idle[0])
        elif own.slot:
            self._close_slot(own)

    # Worker groups.

    def enter(self, lane: str, node: str, now: float) -> int:
        """A new worker group is here; a trial still in flight went with the group before it.

        Returns:
          The number of the last attempt that is not for this group.
        """
        desk = self.desks.setdefault(lane, LaneState())
        self.lose(lane, "process", "a worker process died", now)
        desk.number += 1
        desk.entry, desk.node, desk.entered = desk.number, node, True
        return desk.number

    def take(self, lane: str, last: int, now: float) -> Attempt | None:
        """The lane's attempt after number `last`, the same for every rank; None if there is none yet."""
        desk = self.desks[lane]
        if self.leaves(lane, last):
            return None
        if desk.attempt is None and desk.number == last and desk.slot:
            self._assign(lane, desk, now)
        return desk.attempt if desk.attempt is not None and desk.number > last else None

    def leaves(self, lane: str, last: int) -> bool:
        """Whether workers whose last attempt was `last` are to leave: lane closed, or group replaced."""
        desk = self.desks[lane]
        return desk.closed or last < desk.entry

    def _assign(self, lane: str, desk: LaneState, now: float) -> None:
        if not self.handing_out:
            return
        for index, job in enumerate(self.queue):
            if self._suits(job, lane, desk):
                del self.queue[index]
                break
            if index == 64:  # so many that wait for another place are no reason to look at all
                return
        else:
            return
        desk.number += 1
        job.attempts += 1
        desk.attempt = Attempt(job, desk.number, now, heard=now)
        self.events.append(
            AttemptBegan(trial=job.trial, attempt=job.attempts, lane=lane, node=desk.node, time=now)
        )

    def _suits(self, job: Job, lane: str, desk: LaneState) -> bool:
        """Elsewhere first: another machine, or another lane, if there is one that takes work."""
        if not job.places or not job.places & {lane, desk.node}:
            return True
        others = ((other, it) for other, it in self.desks.items() if it.entered and it.slot and not it.closed)
        return not any(not job.places & {other, it.node} for other, it in others)

    def _attempt(self, lane: str, number: int) -> tuple[LaneState, Attempt] | None:
        desk = self.desks.get(lane)
        if desk is None or desk.attempt is None or desk.attempt.number != number:
            return None
        return desk, desk.attempt

    def job(self, lane: str, number: int) -> Job | None:
        """The trial of an attempt; None if it is not this lane's any more."""
        found = self._attempt(lane, number)
        return found[1].job if found else None

    def beat(self, lane: str, number: int, step: int, now: float) -> bool:
        """Rank 0 is at this step; False tells it to drop the trial."""
        if (found := self._attempt(lane, number)) is None:
            return False
        _, attempt = found
        if attempt.from_step < 0:
            attempt.from_step = step
            if step > attempt.job.from_step:
                # Its last attempt left a checkpoint beyond the one before: that was progress.
                attempt.job.losses = 0
            attempt.job.from_step = step
        attempt.step, attempt.heard = max(step, attempt.step), now
        return True

    def row(self, lane: str, number: int, row: Epoch, now: float) -> bool:
        """An epoch's row from rank 0; False tells it to drop the trial."""
        if not self.beat(lane, number, row.step, now) or (found := self._attempt(lane, number)) is None:
            return False
        desk, attempt = found
        attempt.epochs = row.epoch
        attempt.job.epochs = max(attempt.job.epochs, attempt.epochs)
        attempt.job.losses = 0
        self.events.append(EpochDone(trial=attempt.job.trial, attempt=attempt.job.attempts, row=row))
        desk.messages.append({"epoch": row.epoch, "error_pct": row.val_error_pct, "done": False})
        return True

    def end(
        self, lane: str, number: int, end: AttemptEnd, detail: str, now: float, weights: str = ""
    ) -> tuple[Job, bool] | None:
        """An attempt is over; the first rank to say so is heard.

        Returns:
          The trial and whether it is over, too; None if it is not this lane's any more.
        """
        if (found := self._attempt(lane, number)) is None:
            return None
        return self._finish(lane, found[0], found[1], end, detail, now, weights)

    def lose(self, lane: str, cause: Cause, detail: str, now: float) -> tuple[Job, bool] | None:
        """The worker group of a lane is gone, and what it had in flight."""
        desk = self.desks.get(lane)
        if desk is None:
            return None
        desk.entered = False
        if desk.attempt is None:
            return None
        return self._finish(lane, desk, desk.attempt, _END_OF[cause], detail, now)

    def _finish(
        self,
        lane: str,
        desk: LaneState,
        attempt: Attempt,
        end: AttemptEnd,
        detail: str,
        now: float,
        weights: str = "",
    ) -> tuple[Job, bool]:
        job = attempt.job
        desk.attempt = None
        again = self._tries_again(job, end)
        if end == "lost" and not again:
            end, detail = "failed", f"{detail}, {MAX_LOSSES} times in a row without getting on"
        self._note_end(attempt, end, detail, now, not again, weights)
        self._count_streak(job, end, detail, now)
        if again:
            if end in ("failed", "lost"):
                job.places |= {lane, desk.node} - {""}
            self.queue.appendleft(job)
            if not self.handing_out and desk.slot:
                self._close_slot(desk)
        else:
            self.num_open -= 1
            self._end_first(job, end, detail, now)
            self._close_some_slot(desk)
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
                return job.losses < MAX_LOSSES
            case "retries" if job.retries > 0:
                job.retries -= 1
                return True
        return False

    def _count_streak(self, job: Job, end: AttemptEnd, detail: str, now: float) -> None:
        """Stops handing out when trial after trial of an arm ends with the same error."""
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
            self.stopped_by = (
                f"{len(trials)} trials of {job.arm} in a row ended with the same error: {detail}"
            )
            self.events.append(BreakerTripped(time=now, arm=job.arm, detail=self.stopped_by))
            self.drain()

    # The run as a whole.

    def drain(self) -> None:
        """Hands nothing out any more; what is in flight goes on to its end."""
        self.handing_out = False
        for desk in self.desks.values():
            if desk.slot and desk.attempt is None:
                self._close_slot(desk)

    def stop(self, now: float) -> None:
        """Ends the run: trials in flight are cancelled, and keep their checkpoints for the next one."""
        self.handing_out = False
        for desk in self.desks.values():
            if (attempt := desk.attempt) is not None:
                desk.attempt = None
                self.num_open -= 1
                self._note_end(attempt, "cancelled", "interrupted", now, final=True)
            if desk.slot:
                self._close_slot(desk)

    def tend(self, now: float) -> list[str]:
        """To be called every few seconds: notices lanes whose Tune actor has died.

        Returns:
          Those lanes; their trials are back in the queue.
        """
        silent = [
            lane
            for lane, desk in self.desks.items()
            if desk.slot and now - desk.polled > LANE_SILENCE_SECONDS
        ]
        for lane in silent:
            self.lose(lane, "process", "its lane died", now)
            desk = self.desks[lane]
            desk.slot, desk.closed = False, True
        return silent

    def pulse(self, now: float) -> None:
        """Puts on record that the run lives and where its trials are."""
        in_flight = {
            attempt.job.trial: InFlight(attempt.from_step, attempt.step, attempt.heard)
            for desk in self.desks.values()
            if (attempt := desk.attempt) is not None
        }
        self.events.append(Pulse(time=now, in_flight=in_flight))
