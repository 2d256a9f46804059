"""The clerk: an async object that serves lanes and worker groups, and keeps the journal.

`dispatch.Dispatch` decides; the clerk gives it the time, makes what it says durable before anyone hears of
it, and lets those who ask wait. It is the journal's one writer. In a run it is a Ray actor; nothing here
knows that.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from orchestrator.execution.dispatch import Cause, Dispatch, Job
from orchestrator.store.journal import Writer
from orchestrator.store.weights import BestKept, KeptWeights, WeightStore
from orchestrator.trials.events import Event, Notice
from orchestrator.trials.outcomes import AttemptEnd
from trainables.base import Epoch
from trainables.io.files import write_atomically
from trainables.io.storage import redacted

#: Seconds between two looks at the lanes, and between two signs of life in the journal.
TEND_SECONDS = 5.0
PULSE_SECONDS = 15.0

#: Seconds between two tries to write to storage that fails: doubled each time, up to the last.
FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS = 1.0, 60.0


#: What rank 0 hears of a row: to go on; to drop a trial that is not its any more; or to end it as `stopped`.
Verdict = Literal["go on", "drop", "stop"]


class Judge(Protocol):
    """Ends trials that fall behind."""

    def stops(self, trial_id: str, epoch: int, error_pct: float) -> bool:
        """Whether a trial ends with this epoch; the same when it is asked again."""

    def diverged(self, trial_id: str, epoch: int) -> None:
        """A trial has diverged after so many epochs."""


def stack_path(folder: Path, trial_id: str, attempt: int, rank: int) -> Path:
    """Where a worker that does not get on leaves its stack; empty while it does."""
    return folder / "trials" / trial_id / f"attempt-{attempt}.rank-{rank}.stack"


class Coordinator:
    """Hands trials to worker groups, writes the journal, decides who tries again."""

    def __init__(
        self,
        folder: str,
        breaker: int = 5,
        clock: Callable[[], float] = time.time,
        checkpoints: str | None = None,
        keep: Literal["none", "best", "last"] = "none",
        judge: Judge | None = None,
    ) -> None:
        """
        Args:
          folder: the sweep's.
          breaker: see `Dispatch`.
          clock: seconds since 1970.
          checkpoints, keep: see `Resources`.
          judge: who ends trials that fall behind; nobody if left out.
        """
        self._folder = Path(folder)
        self._writer = Writer(self._folder)
        self._dispatch = Dispatch(breaker)
        self._clock, self._judge = clock, judge
        self._states, self._keep = WeightStore(self._folder, checkpoints), keep
        self._best = BestKept() if keep == "best" else None
        if self._best is not None:
            # What earlier runs have kept; they may have ended before they could delete.
            for kept in self._states.kept():
                if loser := self._best.take(kept):
                    self._states.delete_kept(loser)
        self._fresh: list[Event] = []
        self._writing = asyncio.Lock()
        self._changed, self._version = asyncio.Condition(), 0
        self._tending: asyncio.Task[None] | None = None

    async def _commit(self) -> None:
        """Makes what has happened durable; what the storage refuses is waited for, however long."""
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
        """Returns when something has happened since that version, which may be at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds), self._changed:
                await self._changed.wait_for(lambda: self._version != since)

    # Called by the driver.

    async def note(self, event: Event) -> None:
        """Writes an event of the driver's."""
        self._dispatch.events.append(event)
        await self._commit()
        if self._tending is None:
            self._tending = asyncio.create_task(self._tend())

    async def add(self, jobs: list[Job], ended: dict[str, tuple[AttemptEnd, str]] | None = None) -> None:
        """Takes on trials; they are handed out in this order. See `Dispatch.add`."""
        self._dispatch.add(jobs, ended, self._clock())
        await self._commit()

    async def left(self) -> int:
        """Trials that still wait for an end."""
        return self._dispatch.num_open if self._dispatch.handing_out else 0

    async def drain(self) -> list[Event]:
        """Events since the last call; for the one driver."""
        fresh, self._fresh = self._fresh, []
        return fresh

    async def stop(self, after_flight: bool = False) -> None:
        """Ends the run: cancels what is in flight, or lets it go on to its end and hands out no more."""
        if after_flight:
            self._dispatch.drain()
        else:
            self._dispatch.stop(self._clock())
        await self._commit()

    async def _tend(self) -> None:
        pulsed = self._clock()
        while True:
            await asyncio.sleep(TEND_SECONDS)
            self._dispatch.tend(self._clock())
            if self._clock() - pulsed >= PULSE_SECONDS:
                pulsed = self._clock()
                self._dispatch.pulse(pulsed)
            await self._commit()

    # Called by lanes.

    async def open_slot(self, lane: str) -> None:
        """A Tune trial begins on a lane."""
        self._dispatch.open(lane, self._clock())
        await self._commit()

    async def next_event(self, lane: str, timeout_seconds: float) -> dict[str, Any] | None:
        """What the lane should tell Tune next, or None when nothing has happened for so long."""
        version = self._version
        if (message := self._dispatch.poll(lane, self._clock())) is None:
            await self._wait_for_change(version, timeout_seconds)
            message = self._dispatch.poll(lane, self._clock())
        return message

    async def lose(self, lane: str, cause: Cause, detail: str) -> None:
        """The lane's worker group is gone."""
        if (hang := self._hang(lane)) is not None:
            cause, detail = "hang", hang
        ended = self._dispatch.lose(lane, cause, detail, self._clock())
        await self._commit()
        if ended is not None and ended[1]:
            await self._delete_checkpoint(ended[0])

    async def _delete_checkpoint(self, job: Job) -> None:
        # An object store may take its time, and the other lanes need not wait.
        await asyncio.to_thread(self._states.delete_checkpoint, job.trial)

    def _hang(self, lane: str) -> str | None:
        """Where a worker of the lane wrote its stack because it did not get on, if one did."""
        desk = self._dispatch.desks.get(lane)
        if desk is None or desk.attempt is None:
            return None
        job = desk.attempt.job
        first = stack_path(self._folder, job.trial, job.attempts, rank=0)
        with contextlib.suppress(OSError):
            for path in sorted(first.parent.glob(f"attempt-{job.attempts}.rank-*.stack")):
                if path.stat().st_size:
                    return f"it made no step for a long time; see {path.relative_to(self._folder)}"
        return None

    async def close_lane(self, lane: str) -> None:
        """The workers of a lane are to leave when they ask next."""
        self._dispatch.close_lane(lane)
        await self._commit()

    # Called by workers.

    async def enter(self, lane: str, node: str) -> int:
        """Rank 0 of a new worker group is here.

        Args:
          lane: whose group it is.
          node: id of the machine rank 0 is on.

        Returns:
          The number of the last job that is not for this group.
        """
        await self.lose(lane, "process", "a worker process died")
        number = self._dispatch.enter(lane, node, self._clock())
        await self._commit()
        return number

    async def take(self, lane: str, last: int) -> tuple[int, dict[str, Any]] | None:
        """The lane's next job after number `last`, the same for every rank; None to leave."""
        while not self._dispatch.leaves(lane, last):
            version = self._version
            if (attempt := self._dispatch.take(lane, last, self._clock())) is not None:
                job = attempt.job
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

    async def beat(self, lane: str, number: int, step: int) -> bool:
        """Rank 0 is at this step; False tells it to drop the trial."""
        return self._dispatch.beat(lane, number, step, self._clock())

    async def row(self, lane: str, number: int, row: Epoch) -> Verdict:
        """An epoch's row from rank 0, which is told what to do next."""
        job = self._dispatch.job(lane, number)
        verdict: Verdict = "drop"
        if self._dispatch.row(lane, number, row, self._clock()) and job is not None:
            judge = self._judge
            stops = judge is not None and judge.stops(job.trial, row.epoch, row.val_error_pct)
            verdict = "stop" if stops else "go on"
        await self._commit()
        return verdict

    async def keeps(self, lane: str, number: int, error_pct: float) -> KeptWeights | None:
        """Under which name rank 0 is to keep the weights of a trial that has come to this error, if at all.

        They are written by the one who has them, before `end`: what has ended never runs again.
        """
        job = self._dispatch.job(lane, number)
        if job is None or (self._keep == "none" and not job.is_first):
            return None
        # Others start from a first stage, however good it is.
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
    ) -> None:
        """An attempt is over; the first rank to say so is heard. `kept` are its weights, durable by now."""
        if end == "failed" and (hang := self._hang(lane)) is not None:
            # One rank hung, and the others failed for it.
            detail = hang
        # Storage libraries put the address they were given into their errors.
        detail, log = redacted(detail), redacted(log)
        ended = self._dispatch.end(lane, number, end, detail, self._clock(), weights)
        if ended is None:
            return
        job, is_over = ended
        if end == "diverged" and self._judge is not None:
            self._judge.diverged(job.trial, job.epochs)
        trial_folder = self._folder / "trials" / job.trial
        # Neither is worth a trial: the detail is in the journal, and a checkpoint too many is only bytes.
        with contextlib.suppress(OSError):
            if log:
                write_atomically(trial_folder / f"attempt-{job.attempts}.log", log)
        await self._commit()
        if is_over:
            await self._delete_checkpoint(job)
        if kept is not None and self._best is not None and (loser := self._best.take(kept)):
            await asyncio.to_thread(self._states.delete_kept, loser)
