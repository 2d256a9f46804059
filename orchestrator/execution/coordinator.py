"""The Coordinator: an async object that serves lanes and worker groups, and writes the journal.

`dispatch.Dispatch` decides. The Coordinator passes it the time, makes its events durable before it answers a
call, and holds callers that must wait. It is the journal's one writer. In a run it is a Ray actor, but this
module does not depend on Ray.
"""

import asyncio
import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from orchestrator.execution.dispatch import Cause, Dispatch, Job, LaneState
from orchestrator.store.journal import Writer
from orchestrator.store.logs import append_log
from orchestrator.store.own_files import Machines, OneMachine, key_of, stack_path
from orchestrator.store.weights import BestKept, KeptWeights, WeightStore
from orchestrator.trials.events import Event, Notice, SessionClosed
from orchestrator.trials.gang import Node
from orchestrator.trials.outcomes import AttemptEnd
from trainables.base import DeviceUse, Epoch
from trainables.io.files import write_atomically
from trainables.io.storage import redacted

#: Seconds between two checks of the lanes, and between two heartbeats in the journal.
TEND_SECONDS = 5.0
PULSE_SECONDS = 15.0

#: First and longest wait in seconds before another write to failing storage; it doubles each time.
FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS = 1.0, 60.0

#: Longest wait in seconds, at the end of a run, for machines that still delete files.
_LAST_CLEARING_SECONDS = 5.0

#: Share of the time allowed for a step after which a lost worker may have hung. Its last heartbeat is older.
_HANG_SHARE = 0.9

#: Reply to a row from rank 0: go on; drop the trial, which is no longer this lane's; or end it as `stopped`.
Verdict = Literal["go on", "drop", "stop"]


class Judge(Protocol):
    """The interface of `asha.EarlyStopping`, which ends trials that fall behind."""

    def stops(self, trial_id: str, epoch: int, error_pct: float) -> bool:
        """Returns whether a trial ends with this epoch. Repeated calls give the same answer."""

    def diverged(self, trial_id: str, epoch: int) -> None:
        """Registers a trial that diverged after `epoch` epochs."""


class Coordinator:
    """Hands trials to worker groups, writes the journal, and decides which trials run again."""

    def __init__(
        self,
        folder: str,
        breaker: int = 5,
        clock: Callable[[], float] = time.time,
        checkpoints: str | None = None,
        keep: Literal["none", "best", "last"] = "none",
        judge: Judge | None = None,
        hang_seconds: float = 1800.0,
        machines: Machines | None = None,
        ended: Collection[str] = (),
        mark: str = "",
        nodes: Callable[[], Mapping[str, Node]] = dict,
        limit: int | None = None,
    ) -> None:
        """
        Args:
          folder: the sweep's.
          breaker: see `Dispatch`.
          clock: seconds since 1970.
          checkpoints, keep: see `Resources`.
          judge: early stopping; None ends no trial early.
          hang_seconds: longest time that a worker takes for a step.
          machines: the own files of the machines that train; None if they train on this one only.
          ended: trials that ended for good in earlier runs.
          mark: content of the mark at the place of states; none if empty.
          nodes: returns the machines that are there and stay, by name. Asked only if trials differ in gang.
          limit: number of lanes at most, for which machines may still come. None takes those that fit.
        """
        self._folder = Path(folder)
        self._writer = Writer(self._folder)
        self._dispatch = Dispatch(breaker)
        self._clock, self._judge = clock, judge
        self._states, self._keep = WeightStore(self._folder, checkpoints), keep
        self._best = BestKept() if keep == "best" else None
        if self._best is not None:
            # Earlier runs may have ended before they could delete weights that are no longer the best.
            for kept in self._states.kept():
                if loser := self._best.take(kept):
                    self._states.delete_kept(loser)
        if mark:
            self._states.set_mark(mark)
        self._mark = mark
        self._nodes, self._limit = nodes, limit
        self._there: Mapping[str, Node] = {}
        self._hang_seconds = hang_seconds
        self._machines = machines or OneMachine(key_of(self._folder))
        self._ended = set(ended)
        #: Lane, number and machine of each attempt of a trial that may have left files on that machine.
        self._traces: defaultdict[str, set[tuple[str, int, str]]] = defaultdict(set)
        self._clearing: set[asyncio.Task[None]] = set()
        self._losing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._fresh: list[Event] = []
        self._writing = asyncio.Lock()
        self._changed, self._version = asyncio.Condition(), 0
        self._tending: asyncio.Task[None] | None = None

    async def _commit(self) -> None:
        """Lets lanes have the gangs they need now, and makes new events durable.

        Retries for as long as the storage refuses them.
        """
        self._dispatch.settle(self._there, self._clock(), self._limit, asks=self._limit is not None)
        async with self._writing:
            if events := self._dispatch.take_events():
                write: Callable[[], None] = functools.partial(self._writer.append, events)
                wait = FIRST_WAIT_SECONDS
                while True:
                    try:
                        write()
                        break
                    except OSError as error:
                        self._fresh.append(Notice(detail=f"cannot write to {self._folder}: {error}; waiting"))
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, LAST_WAIT_SECONDS)
                    write = self._writer.retry
                self._fresh += events
        async with self._changed:
            self._version += 1
            self._changed.notify_all()

    async def _wait_for_change(self, since: int, timeout_seconds: float) -> None:
        """Waits until the version differs from `since`, or until the timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds), self._changed:
                await self._changed.wait_for(lambda: self._version != since)

    # Called by the driver.

    async def note(self, event: Event) -> None:
        """Records an event of the driver."""
        self._dispatch.events.append(event)
        await self._commit()
        if isinstance(event, SessionClosed):
            if self._clearing:
                await asyncio.wait(self._clearing, timeout=_LAST_CLEARING_SECONDS)
            if self._mark:
                self._states.delete_mark(self._mark)
        if self._tending is None:
            self._tending = asyncio.create_task(self._tend())

    async def add(self, jobs: list[Job], ended: dict[str, tuple[AttemptEnd, str]] | None = None) -> None:
        """Adds trials, to be handed out in this order. See `Dispatch.add`."""
        self._dispatch.add(jobs, ended, self._clock())
        await self._look()
        await self._commit()

    async def _look(self) -> None:
        """Looks which machines are there, if that matters."""
        if len(self._dispatch.queues) > 1:
            # An answer that does not come leaves the last one in force.
            with contextlib.suppress(Exception):
                self._there = await asyncio.to_thread(self._nodes)

    async def left(self) -> int:
        """Returns how many trials are still to end."""
        return self._dispatch.num_open if self._dispatch.handing_out else 0

    async def drain(self) -> list[Event]:
        """Returns the events since the last call. Only the driver may call this."""
        fresh, self._fresh = self._fresh, []
        return fresh

    async def stop(self, after_flight: bool = False) -> None:
        """Ends the run: cancels trials in flight, or (`after_flight`) lets them end and hands out no more."""
        if after_flight:
            self._dispatch.drain()
        else:
            self._dispatch.stop(self._clock())
        await self._commit()

    async def _tend(self) -> None:
        pulsed = self._clock()
        while True:
            await asyncio.sleep(TEND_SECONDS)
            await self._look()
            self._dispatch.tend(self._clock())
            if self._clock() - pulsed >= PULSE_SECONDS:
                pulsed = self._clock()
                self._dispatch.pulse(pulsed)
            await self._commit()

    # Called by lanes.

    async def open_slot(self, lane: str) -> None:
        """Registers that a Tune trial begins on a lane."""
        self._dispatch.open(lane, self._clock())
        await self._commit()

    async def next_event(self, lane: str, timeout_seconds: float) -> dict[str, Any] | None:
        """Returns the lane's next message for Tune. None if there is none within the timeout."""
        version = self._version
        if (message := self._dispatch.poll(lane, self._clock())) is None:
            await self._wait_for_change(version, timeout_seconds)
            message = self._dispatch.poll(lane, self._clock())
        return message

    async def vacate(self, lane: str) -> None:
        """Registers that the lane has no worker group any more, so that it can have another one."""
        if self._dispatch.desks.get(lane, LaneState()).attempt is not None:
            await self.lose(lane, "process", "a worker process died")
        self._dispatch.vacate(lane, self._clock())
        await self._commit()

    async def lose(self, lane: str, cause: Cause, detail: str) -> None:
        """Registers that the lane's worker group is gone."""
        # Two callers may report one loss. The second waits, because the first one fetches the stacks.
        async with self._losing[lane]:
            if (hang := await self._hang(lane)) is not None:
                cause, detail = "hang", hang
            ended = self._dispatch.lose(lane, cause, detail, self._clock())
            await self._commit()
        if ended is not None and ended[1]:
            await self._clear_up(ended[0])

    async def _clear_up(self, job: Job, ended_by: tuple[str, int] = ("", 0)) -> None:
        """Deletes what an ended trial has left, except on the machines of the attempt `ended_by`.

        The workers of that attempt delete their own files.
        """
        self._ended.add(job.trial)
        for node in {place for *attempt, place in self._traces.pop(job.trial, ()) if attempt != [*ended_by]}:
            # Not awaited, because a machine may be slow or gone, and the lane must not wait.
            task = asyncio.create_task(self._machines.clear(node, [job.trial]))
            self._clearing.add(task)
            task.add_done_callback(self._clearing.discard)
        # In a thread, because an object store may be slow and the other lanes must not wait.
        await asyncio.to_thread(self._states.delete_checkpoint, job.trial)

    async def _hang(self, lane: str) -> str | None:
        """Returns a message with the stack file of a hung worker of the lane. None if no worker hung."""
        state = self._dispatch.desks.get(lane)
        if state is None or (attempt := state.attempt) is None:
            return None
        if self._clock() - attempt.heard < _HANG_SHARE * self._hang_seconds:
            return None
        job, first = attempt.job, ""
        for node in sorted({place for *_, place in self._traces[job.trial]}):
            stacks = await self._machines.take_stacks(node, job.trial, job.attempts)
            for rank, text in sorted(stacks.items()):
                path = stack_path(self._folder, job.trial, job.attempts, rank)
                # A stack that cannot be written costs no trial.
                with contextlib.suppress(OSError):
                    write_atomically(path, redacted(text))
                    first = min(filter(None, (first, str(path.relative_to(self._folder)))))
        return f"it made no step for a long time; see {first}" if first else None

    async def close_lane(self, lane: str) -> None:
        """Makes the workers of a lane leave at their next request."""
        self._dispatch.close_lane(lane)
        await self._commit()

    # Called by workers.

    async def enter(self, lane: str, node: str, places: Sequence[str] = ()) -> int:
        """Registers a new worker group; called by its rank 0.

        Args:
          lane: the group's lane.
          node: id of the machine of rank 0.
          places: those of all ranks.

        Returns:
          The number of the lane's last job before this group; its own jobs have larger numbers.
        """
        # A hang of the group before is one only if its stacks are found, so this is more than `enter` does.
        if self._dispatch.desks.get(lane, LaneState()).attempt is not None:
            await self.lose(lane, "process", "a worker process died")
        number = self._dispatch.enter(lane, node, self._clock(), tuple(places))
        await self._commit()
        return number

    async def leftovers(self, node: str, trial_ids: list[str]) -> list[str]:
        """Returns which of the trials that have files on a machine have ended; the machine deletes these."""
        for trial_id in trial_ids:
            if trial_id not in self._ended:
                self._traces[trial_id].add(("", 0, node))
        return [trial_id for trial_id in trial_ids if trial_id in self._ended]

    async def log(self, trial_id: str, attempt: int, rank: int, text: str) -> None:
        """Adds warnings and messages of a worker to its log."""
        append_log(self._folder, trial_id, attempt, rank, redacted(text))

    async def take(self, lane: str, last: int, node: str = "") -> tuple[int, dict[str, Any]] | None:
        """Returns the lane's job after number `last`, the same for all ranks. None if workers must leave.

        `node` is the machine of the rank that calls.
        """
        while not self._dispatch.leaves(lane, last):
            version = self._version
            if (attempt := self._dispatch.take(lane, last, self._clock())) is not None:
                job = attempt.job
                self._traces[job.trial].add((lane, attempt.number, node))
                taken = {
                    "trial": job.trial,
                    "config": job.config,
                    "attempt": job.attempts,
                    "epochs": job.epochs,
                    "start": job.after,
                }
                await self._commit()
                return attempt.number, taken
            await self._wait_for_change(version, TEND_SECONDS)
        return None

    async def uses(self, lane: str, number: int, use: DeviceUse) -> None:
        """Records the device of rank 0. It is durable with the attempt's first row or end."""
        self._dispatch.uses(lane, number, use)

    async def beat(self, lane: str, number: int, step: int) -> bool:
        """Registers the step of rank 0. False makes it drop the trial."""
        return self._dispatch.beat(lane, number, step, self._clock())

    async def row(self, lane: str, number: int, row: Epoch) -> Verdict:
        """Records an epoch's row from rank 0. Returns what rank 0 must do next."""
        job = self._dispatch.job(lane, number)
        verdict: Verdict = "drop"
        if self._dispatch.row(lane, number, row, self._clock()) and job is not None:
            judge = self._judge
            stops = judge is not None and judge.stops(job.trial, row.epoch, row.val_error_pct)
            verdict = "stop" if stops else "go on"
        await self._commit()
        return verdict

    async def keeps(self, lane: str, number: int, error_pct: float) -> KeptWeights | None:
        """Decides whether rank 0 keeps the final weights, and under which name. Returns None if not.

        Rank 0 writes them before it calls `end`, because an ended trial never runs again.
        """
        job = self._dispatch.job(lane, number)
        if job is None or (self._keep == "none" and not job.is_first):
            return None
        # The weights of a first stage are always kept, because other trials start from them.
        kept = KeptWeights(job.trial, "" if job.is_first else job.group, error_pct)
        return kept if self._best is None or self._best.wants(kept) else None

    async def end(
        self,
        lane: str,
        number: int,
        end: AttemptEnd,
        detail: str,
        log: str = "",
        weights: str = "",
        kept: KeptWeights | None = None,
    ) -> bool:
        """Records the end of an attempt. Only the first call counts; other ranks may repeat it.

        `kept` names the final weights, which are durable already.

        Returns:
          Whether the trial has ended for good.
        """
        if end == "failed":
            async with self._losing[lane]:
                if self._dispatch.job(lane, number) and (hang := await self._hang(lane)) is not None:
                    # One rank hung, and the other ranks failed because of it.
                    detail = hang
        # Errors of storage libraries contain the address, which may hold a password.
        detail, log = redacted(detail), redacted(log)
        ended = self._dispatch.end(lane, number, end, detail, self._clock(), weights)
        if ended is None:
            return False
        job, is_over = ended
        if end == "diverged" and self._judge is not None:
            self._judge.diverged(job.trial, job.epochs)
        trial_folder = self._folder / "trials" / job.trial
        # A log that cannot be written costs no trial, because the detail is in the journal.
        with contextlib.suppress(OSError):
            if log:
                write_atomically(trial_folder / f"attempt-{job.attempts}.log", log)
        await self._commit()
        if is_over:
            await self._clear_up(job, ended_by=(lane, number))
        if kept is not None and self._best is not None and (loser := self._best.take(kept)):
            await asyncio.to_thread(self._states.delete_kept, loser)
        return is_over
