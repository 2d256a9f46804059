"""The ledger: every core- or GPU-second of a sweep, under one heading each.

A lane has the devices of one gang. During a phase of a run, each lane is always in one of these states. So
the headings add up to devices x wall time by construction. Where trials differ in gang, a lane has different
devices at different times (`LaneOpened`), and devices that no lane has are queued.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from orchestrator.trials.events import (
    AttemptBegan,
    AttemptEnded,
    BreakerTripped,
    Chained,
    DeclarationMade,
    DeviceUsed,
    EpochDone,
    Event,
    LaneOpened,
    LookTaken,
    Notice,
    PhaseBegan,
    PreflightDone,
    Pulse,
    RetryWanted,
    Sealed,
    SessionBegan,
    SessionClosed,
    Unknown,
    UntilSettled,
    time_of,
)
from orchestrator.trials.rounds import looks_taken

#: Outcomes without a result. All time of such trials counts as lost.
_FRUITLESS = frozenset({"failed", "invalid", "out_of_memory"})


#: The headings in words.
MEANINGS = {
    "useful": "training and evaluation behind the results",
    "replayed": "steps repeated after a crash, from the last checkpoint on",
    "lost": "work without a result: failed trials, and the last moments before a crash",
    "queued": "waiting for a trial, or at the end for the trials of others",
    "start_up": "starting Ray and workers, and starting them again",
    "preflight": "checks before the first trial",
}


@dataclass
class Ledger:
    """Device-seconds by heading.

    Attributes:
      device: `core` or `GPU`. `mixed` if the sweep used both.
      useful: training and evaluation that the results rest on.
      replayed: steps done again, because they came after the last checkpoint of an attempt that was lost.
      lost: work without a result: that of failed trials, and the time between an attempt's last sign of life
        and its end.
      queued: lanes without a trial: between two trials, or at the end of a run while other lanes finish.
      start_up: from the command to the first trial of a lane, and from the loss of a worker group to the
        next trial.
      preflight: checks before the first trial.
      wall: seconds from the first command to the end of the last, without the checks and the time between
        runs. It is no heading.
      trials_on: the device-seconds of attempts by the name of their device; "" if it is unknown. No heading.
      looks: of runs that extend the sweep by themselves. The last one says what it has saved. No heading.
    """

    device: str = "core"
    useful: float = 0.0
    replayed: float = 0.0
    lost: float = 0.0
    queued: float = 0.0
    start_up: float = 0.0
    preflight: float = 0.0
    wall: float = field(default=0.0, compare=False)
    trials_on: dict[str, float] = field(default_factory=dict, compare=False)
    looks: tuple[LookTaken, ...] = field(default=(), compare=False)

    @property
    def total(self) -> float:
        """The sum of all headings: devices x wall time, summed over runs."""
        return sum(self.rows().values())

    def rows(self) -> dict[str, float]:
        """Returns the device-seconds of each heading."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("device", "wall", "trials_on", "looks")
        }


@dataclass
class _Attempt:
    trial: str
    lane: str
    started: float
    from_step: int = -1
    step: int = -1
    heard: float = 0.0
    ended: float | None = None
    end: str = ""
    device: str = ""
    #: Devices that its lane has; 0 if all lanes of the phase have the same.
    devices: float = 0.0


@dataclass
class _Phase:
    """A part of a run with a fixed number of devices. The first phase includes the start of Ray.

    `opened` has the lanes that got devices of their own, in order. All others have the same number.
    """

    began: float
    ended: float
    lanes: int
    devices: float
    device: str
    preflight: float = 0.0
    attempts: list[_Attempt] = field(default_factory=list)
    opened: list[LaneOpened] = field(default_factory=list)
    lane_devices: dict[str, float] = field(default_factory=dict)


def ledger(events: Iterable[Event]) -> Ledger:
    """Returns the ledger of a journal. A run without an end counts until its last sign of life."""
    accounts = Accounts()
    accounts.observe(events)
    return accounts.total()


class Accounts:
    """The ledger of a growing journal: constant work per event, and a sum on request."""

    def __init__(self) -> None:
        self._phases: list[_Phase] = []
        self._running: dict[str, _Attempt] = {}
        self._of_trial: dict[str, list[_Attempt]] = {}
        self._began: float | None = None
        self._preflight = 0.0
        self._looks: list[LookTaken] = []

    def observe(self, events: Iterable[Event]) -> None:
        """Adds events, in the order of the journal."""
        for event in events:
            self._observe(event)

    def _observe(self, event: Event) -> None:
        if isinstance(event, SessionBegan):
            # Attempts of an earlier run that have no end ended with that run, at its last sign of life.
            self._running.clear()
            self._began, self._preflight = event.began, 0.0
            return
        phases, running = self._phases, self._running
        if phases and self._began is None and (time := time_of(event)) is not None:
            phases[-1].ended = max(phases[-1].ended, time)
        match event:
            case EpochDone():
                if (there := running.get(event.trial)) is not None:
                    there.step = max(there.step, event.row.step)
            case Pulse():
                for trial, (from_step, step, heard) in event.in_flight.items():
                    if (there := running.get(trial)) is not None:
                        there.from_step, there.step, there.heard = from_step, step, heard
            case AttemptBegan():
                if phases:
                    attempt = running[event.trial] = _Attempt(event.trial, event.lane, event.time)
                    attempt.devices = phases[-1].lane_devices.get(event.lane, 0.0)
                    self._of_trial.setdefault(attempt.trial, []).append(attempt)
                    phases[-1].attempts.append(attempt)
            case DeviceUsed():
                if (there := running.get(event.trial)) is not None:
                    there.device = event.use.name
            case AttemptEnded():
                if (there := running.pop(event.trial, None)) is not None:
                    there.from_step, there.step = event.from_step, event.step
                    there.heard, there.ended = event.heard or event.time, event.time
                    is_fruitless = event.final and event.end in _FRUITLESS
                    there.end = "final fruitless" if is_fruitless else event.end
            case PhaseBegan():
                began = event.time if self._began is None else self._began
                phases.append(
                    _Phase(began, event.time, event.lanes, event.devices, event.device, self._preflight)
                )
                self._began, self._preflight = None, 0.0
            case LaneOpened():
                if phases:
                    phases[-1].opened.append(event)
                    phases[-1].lane_devices[event.lane] = event.devices
            case PreflightDone():
                self._preflight += event.seconds
            case RetryWanted():
                # The user has discarded the work of these attempts.
                for attempt in self._of_trial.pop(event.trial, []):
                    attempt.end = "discarded"
            case LookTaken():
                self._looks.append(event)
            case SessionClosed() | BreakerTripped() | UntilSettled() | Notice() | Unknown():
                pass
            case Sealed() | Chained() | DeclarationMade():
                pass
            case _:
                assert_never(event)

    def total(self) -> Ledger:
        """Returns the ledger so far. The work grows with the number of attempts."""
        return dataclasses.replace(_total(self._phases), looks=looks_taken(self._looks))


def _total(phases: list[_Phase]) -> Ledger:
    total = Ledger(device="/".join(sorted({phase.device for phase in phases})) or "core")
    if "/" in total.device:
        total.device = "mixed"
    fruitless = {
        attempt.trial for phase in phases for attempt in phase.attempts if attempt.end == "final fruitless"
    }
    reached: dict[str, int] = {}
    for phase in phases:
        in_trials = 0.0
        for attempt in phase.attempts:
            per_lane = attempt.devices or phase.devices / phase.lanes
            ended = phase.ended if attempt.ended is None else attempt.ended
            seconds = max(0.0, ended - attempt.started)
            in_trials += seconds * per_lane
            on_it = total.trials_on.get(attempt.device, 0.0)
            total.trials_on[attempt.device] = on_it + seconds * per_lane
            if attempt.trial in fruitless or attempt.end == "discarded":
                total.lost += seconds * per_lane
                continue
            silent = 0.0
            if attempt.end in ("", "lost", "preempted"):
                silent = min(seconds, max(0.0, ended - max(attempt.heard, attempt.started)))
            steps = attempt.step - attempt.from_step
            again = min(reached.get(attempt.trial, 0), attempt.step) - attempt.from_step
            share = max(0, again) / steps if steps > 0 and attempt.from_step >= 0 else 0.0
            total.lost += silent * per_lane
            total.replayed += (seconds - silent) * share * per_lane
            total.useful += (seconds - silent) * (1 - share) * per_lane
            reached[attempt.trial] = max(reached.get(attempt.trial, 0), attempt.step)
        room = max(0.0, phase.devices * (phase.ended - phase.began - phase.preflight) - in_trials)
        if phase.opened:
            starting = min(room, _starting_device_seconds(phase))
        else:
            starting = min(room, _starting_seconds(phase) * phase.devices / phase.lanes)
        total.start_up += starting
        total.queued += room - starting
        total.preflight += phase.preflight * phase.devices
        total.wall += phase.ended - phase.began - phase.preflight
    return total


def _starting_device_seconds(phase: _Phase) -> float:
    """Returns the device-seconds before the first lane, and from each lane's opening to its next trial."""
    seconds = phase.devices * max(0.0, phase.opened[0].time - phase.began - phase.preflight)
    starts: dict[str, list[float]] = {}
    for attempt in phase.attempts:
        starts.setdefault(attempt.lane, []).append(attempt.started)
    until = {event.lane: phase.ended for event in phase.opened}
    for event in reversed(phase.opened):
        later = starts.get(event.lane, [])
        at = bisect.bisect_left(later, event.time)
        if at < len(later) and later[at] <= until[event.lane]:
            seconds += event.devices * (later[at] - event.time)
        until[event.lane] = event.time
    return seconds


def _starting_seconds(phase: _Phase) -> float:
    """Returns the lane-seconds before each lane's first trial, and from a lost worker group to the next."""
    by_lane: dict[str, list[_Attempt]] = {}
    for attempt in phase.attempts:
        by_lane.setdefault(attempt.lane, []).append(attempt)
    seconds, deaths = 0.0, []
    for attempts in by_lane.values():
        for before, after in itertools.pairwise(attempts):
            if before.end in ("lost", "preempted") and before.ended is not None:
                seconds += max(0.0, after.started - before.ended)
        if attempts[-1].end in ("lost", "preempted"):
            deaths.append(attempts[-1].ended or phase.ended)
    firsts = sorted(attempts[0].started for attempts in by_lane.values())
    # The first lanes of a phase start with it. Later ones replace lanes that died.
    for index, first in enumerate(firsts):
        if index < phase.lanes:
            seconds += max(0.0, first - phase.began - phase.preflight)
        else:
            died = [time for time in deaths if time <= first]
            seconds += first - max(died) if died else 0.0
    seconds += max(0, phase.lanes - len(firsts)) * (phase.ended - phase.began - phase.preflight)
    return seconds
