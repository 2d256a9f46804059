"""The history of one trial for `vitc-sweep why`: its attempts, how they ended, and what to do."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    DeviceUsed,
    EpochDone,
    Event,
    Pulse,
    RetryWanted,
    SessionBegan,
)
from orchestrator.trials.names import name_of
from orchestrator.trials.outcomes import RULES
from orchestrator.trials.records import Result
from trainables.base import DeviceUse


@dataclass(slots=True)
class Attempt:
    """One attempt at a trial.

    Attributes:
      number: from 1.
      lane, node: the lane that ran it, and the id of its node, empty if unknown.
      device: what it computed on; None if unknown.
      started, ended: seconds since 1970. `ended` is None while it runs.
      end, detail: how it ended, and the cause.
      from_step, step: its first step and the last one known; -1 if unknown.
      epochs: number of rows it recorded.
      final: whether the trial ended with it.
      discarded: whether `retry` discarded it, so that the trial started again.
    """

    number: int
    lane: str
    node: str
    started: float
    ended: float | None = None
    end: str = ""
    detail: str = ""
    from_step: int = -1
    step: int = -1
    epochs: int = 0
    final: bool = False
    discarded: bool = False
    device: DeviceUse | None = None


def attempts_of(trial_id: str, events: Iterable[Event]) -> list[Attempt]:
    """Returns the attempts at a trial from the journal. An attempt that is still running has no end."""
    found: list[Attempt] = []
    for event in events:
        match event:
            case AttemptBegan(trial=trial) if trial == trial_id:
                found.append(Attempt(event.attempt, event.lane, event.node, event.time))
            case DeviceUsed(trial=trial) if found and trial == trial_id:
                found[-1].device = event.use
            case EpochDone(trial=trial) if found and trial == trial_id:
                found[-1].epochs += 1
                found[-1].step = max(found[-1].step, event.row.step)
            case AttemptEnded(trial=trial) if found and trial == trial_id:
                last = found[-1]
                last.end, last.detail, last.final = event.end, event.detail, event.final
                last.ended, last.from_step = event.time, event.from_step
                last.step = max(last.step, event.step)
            case Pulse() if found and trial_id in event.in_flight:
                found[-1].from_step, found[-1].step, _ = event.in_flight[trial_id]
            case SessionBegan() if found and not found[-1].end:
                found[-1].end, found[-1].detail = "cut off", "its run ended without closing the journal"
            case RetryWanted(trial=trial) if trial == trial_id:
                for attempt in found:
                    attempt.discarded = True
    return found


def story(
    result: Result, attempts: Sequence[Attempt], folder: str, steps: int, excerpt: Sequence[str] = ()
) -> Iterator[str]:
    """Yields the history of a trial, line by line.

    Args:
      result: the trial and its record.
      attempts: the attempts at it, in order.
      folder: the folder of its sweep, as typed in a command.
      steps: number of steps of the whole trial.
      excerpt: the last lines of its log, if there is one.
    """
    trial, record = result.trial, result.record
    yield f"{name_of(trial)}  ({trial.id})"
    values = ", ".join(f"{path} {_number(value)}" for path, value in trial.values.items())
    yield f"  arm {trial.arm}, cell {trial.cell_name}, point {trial.point}" + (
        f": {values}" if values else ""
    )
    meaning = f": {RULES[record.outcome].means}" if record.outcome else ""
    if trial.after:
        yield f"  starts from the final weights of {trial.after}"
    told = attempts and attempts[-1].detail == record.detail
    yield f"  {result.state}{meaning}" + (f" ({record.detail})" if record.detail and not told else "")
    if (last := record.last) is not None:
        yield (
            f"  epoch {last.epoch} of {trial.config.schedule.epochs}, "
            f"error {last.val_error_pct:.1f} % on the selection split"
        )
    for attempt in attempts:
        yield "  " + _attempt_line(attempt, steps)
    if excerpt:
        yield "  last lines of its log:"
        yield from (f"    {line}" for line in excerpt)
    yield from (f"  {line}" for line in advice(result, attempts, folder))


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _attempt_line(attempt: Attempt, steps: int) -> str:
    parts = [f"attempt {attempt.number} on lane {attempt.lane}"]
    if attempt.node:
        parts.append(f"node {attempt.node[:8]}")
    if attempt.device is not None:
        parts.append(_device_text(attempt.device))
    if attempt.ended is not None:
        parts.append(f"{attempt.ended - attempt.started:.1f} s")
    if attempt.step >= 0:
        parts.append(f"from step {max(attempt.from_step, 0)} to {attempt.step} of {steps}")
    end = attempt.end or "running"
    detail = f": {attempt.detail}" if attempt.detail else ""
    return f"{', '.join(parts)}; {end}{detail}" + (" (discarded by `retry`)" if attempt.discarded else "")


def _device_text(use: DeviceUse) -> str:
    """Returns a device and how it computes, without what is so on every CPU."""
    parts = [use.dtype]
    if use.is_gpu:
        parts += [f"driver {use.driver or 'unknown'}", f"CUDA {use.cuda}", f"TF32 {use.tf32 or 'off'}"]
    if use.deterministic:
        parts.append("deterministic")
    return f"{use.name} ({', '.join(parts)})"


def advice(result: Result, attempts: Sequence[Attempt], folder: str) -> list[str]:
    """Returns advice, line by line; empty if nothing is wrong."""
    name, config = name_of(result.trial), result.trial.config
    again = f"vitc-sweep retry {folder} --trial {name}"
    logs = f"vitc-sweep logs {folder} {name}"
    if result.held_up:
        first = result.trial.after
        return [
            f"It never started: its first stage left no weights. See:  vitc-sweep why {folder} {first}",
            f"To run both again:  vitc-sweep retry {folder} --trial {first}",
        ]
    match result.state:
        case "failed":
            return [f"Read the whole log:  {logs}", f"Fix the cause, then run:  {again}"]
        case "out_of_memory":
            return [
                f"A lower batch_size (now {config.batch_size}) or more resources.workers (now "
                f"{result.trial.gang.workers}) needs less memory per worker. That changes the sweep, so give "
                "it another folder with --out.",
                f"On machines with more memory, run:  {again}",
            ]
        case "invalid":
            return ["The model cannot be built: narrow `vary` or fix the arm in the sweep file."]
        case "diverged":
            return ["This is a result, not a failure: it counts as 100 % error, as in every arm."]
        case "running":
            return [f"Follow its log:  {logs} --follow"]
        case "missing" | "cancelled":
            how = "continue it from its last checkpoint, if there is one" if attempts else "start it"
            return [f"The next `vitc-sweep run` with this folder will {how}."]
    return []
