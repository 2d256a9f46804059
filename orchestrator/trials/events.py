"""The events of the journal: one class per kind, and their conversion to and from JSON.

Readers handle events with `match`. A reader that must handle every kind ends in `assert_never`, so that the
type checker reports it when a kind is added.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, assert_never, get_args

from orchestrator.trials.outcomes import AttemptEnd
from trainables.base import DeviceUse, Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """Sizes in bytes of the journal's earlier files. Data beyond these sizes are ignored."""

    kind: ClassVar[str] = "seal"
    sizes: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chained:
    """The SHA-256 of the journal's earlier files up to their sealed sizes, in hexadecimal digits."""

    kind: ClassVar[str] = "chain"
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclarationMade:
    """The question declares something that no earlier event does. Written before the session's trials start.

    Attributes:
      made: time in seconds since 1970. It has another name than in other events, because it is no sign of
        life of a run, not even to versions that do not know this kind.
      results: number of trials with an epoch or an end before it.
      declaration: as plain values; see `trials.declared.Declaration`.
    """

    kind: ClassVar[str] = "declared"
    made: float
    results: int
    declaration: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionBegan:
    """A run has started.

    Attributes:
      time: seconds since 1970, here and in every event.
      began: time when its start-up began.
      lanes: number of worker groups at a time, per phase.
    """

    kind: ClassVar[str] = "session"
    time: float
    began: float
    lanes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightDone:
    """The checks before the first trial have ended. `seconds` is how long they took."""

    kind: ClassVar[str] = "preflight"
    time: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBegan:
    """A phase of a session has begun, with `lanes` lanes on `devices` devices of one kind in total."""

    kind: ClassVar[str] = "phase"
    time: float
    lanes: int
    devices: float
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneOpened:
    """A lane has got its GPUs or cores, in a run whose trials need different numbers of them."""

    kind: ClassVar[str] = "lane"
    time: float
    lane: str
    devices: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed:
    """A run has ended properly."""

    kind: ClassVar[str] = "close"
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptBegan:
    """A lane has started a trial. `node` is the id of the machine of rank 0, or "" if unknown."""

    kind: ClassVar[str] = "attempt"
    trial: str
    attempt: int
    lane: str
    node: str = ""
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUsed:
    """The worker with rank 0 has said on which device its attempt trains."""

    kind: ClassVar[str] = "device"
    trial: str
    attempt: int
    use: DeviceUse


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochDone:
    """A trial has finished an epoch."""

    kind: ClassVar[str] = "epoch"
    trial: str
    attempt: int
    row: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded:
    """An attempt has ended.

    Attributes:
      end, detail: how it ended, and the cause in one line.
      seconds: duration of the attempt.
      final: whether the trial has ended, too.
      weights: digest of the final weights. "" if there are none.
      from_step, step: the first step, and the last step that was reported. -1 if none was.
      heard: time of that report. 0 if unknown.
      epochs: number of the last recorded epoch. A reader uses it to detect missing rows.
    """

    kind: ClassVar[str] = "end"
    trial: str
    attempt: int
    end: AttemptEnd
    detail: str
    seconds: float
    time: float
    final: bool
    weights: str = ""
    from_step: int = -1
    step: int = -1
    heard: float = 0.0
    epochs: int = 0


class InFlight(NamedTuple):
    """A running trial: the step it began at, the last reported step, and the time of that report."""

    from_step: int
    step: int
    heard: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """A sign of life of the run, with the trials that are running."""

    kind: ClassVar[str] = "pulse"
    time: float
    in_flight: dict[str, InFlight] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryWanted:
    """A request of the user to run an ended trial again from its beginning."""

    kind: ClassVar[str] = "retry"
    trial: str
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerTripped:
    """A run has stopped itself.

    Attributes:
      arm: several of its trials in a row ended with the same error. "" if worker groups did not start.
      detail: the cause in one line.
    """

    kind: ClassVar[str] = "breaker"
    time: float
    arm: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UntilSettled:
    """A run is about to begin that extends the sweep by itself, look by look, until its question is settled.

    `made` is the time in seconds since 1970. As in `DeclarationMade`, it is no sign of life.
    """

    kind: ClassVar[str] = "until"
    made: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LookTaken:
    """A run that extends the sweep by itself has looked at the results.

    Attributes:
      made: time in seconds since 1970. As in `DeclarationMade`, it is no sign of life.
      points: points per arm and cell that it looked at.
      last: the number of points of the last look.
      goes_on: whether the sweep is extended to the next look.
      detail: what the results say, in one line.
      trials_saved: trials up to the last look that are not needed. 0 if the sweep goes on.
      hours_saved: the hours that these would have taken, by those that have run.
      unit: of the hours, "GPU-hours" or "core-hours".
    """

    kind: ClassVar[str] = "look"
    made: float
    points: int
    last: int
    goes_on: bool
    detail: str
    trials_saved: int = 0
    hours_saved: float = 0.0
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A message to the user. It is not written to the journal."""

    kind: ClassVar[str] = "notice"
    detail: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """An event of a kind that this version does not know. It is kept unchanged and ignored."""

    tree: dict[str, Any]

    @property
    def kind(self) -> str:
        """The kind that the event names."""
        return str(self.tree["kind"])


#: Kinds whose JSON is the kind and their fields.
_Plain = (
    Sealed
    | Chained
    | DeclarationMade
    | PreflightDone
    | PhaseBegan
    | LaneOpened
    | SessionClosed
    | AttemptBegan
    | AttemptEnded
    | RetryWanted
    | BreakerTripped
    | UntilSettled
    | LookTaken
    | Notice
)
Event = _Plain | SessionBegan | DeviceUsed | EpochDone | Pulse | Unknown

_PLAIN_KINDS: dict[str, type[_Plain]] = {kind.kind: kind for kind in get_args(_Plain)}
_FIELDS: dict[type, tuple[str, ...]] = {
    kind: tuple(f.name for f in dataclasses.fields(kind))
    for kind in (*get_args(_Plain), SessionBegan, Pulse, DeviceUse, Epoch)
}


def to_json(event: Event) -> dict[str, Any]:
    """Returns an event in the form of the journal. Values are assumed to be valid JSON."""
    match event:
        case EpochDone():
            row = _values(event.row)
            return {"kind": event.kind, "trial": event.trial, "attempt": event.attempt, "row": row}
        case DeviceUsed():
            use = _values(event.use)
            return {"kind": event.kind, "trial": event.trial, "attempt": event.attempt, "use": use}
        case Unknown():
            return event.tree
        case _:
            return {"kind": event.kind, **_values(event)}


def from_json(tree: Mapping[str, Any]) -> Event:
    """Returns the event of a JSON object. Unknown keys are ignored.

    Raises:
      KeyError, TypeError, ValueError: the object is no valid event.
    """
    match tree["kind"]:
        case "epoch":
            return EpochDone(trial=tree["trial"], attempt=tree["attempt"], row=row_of(tree["row"]))
        case "device":
            use = DeviceUse(**_known(tree["use"], _FIELDS[DeviceUse]))
            return DeviceUsed(trial=tree["trial"], attempt=tree["attempt"], use=use)
        case "pulse":
            in_flight = {trial: InFlight(*values) for trial, values in tree["in_flight"].items()}
            return Pulse(time=tree["time"], in_flight=in_flight)
        case "session":
            time, lanes = tree["time"], tuple(tree.get("lanes", ()))
            # Journals of the first version do not have `began`.
            return SessionBegan(time=time, began=tree.get("began", time), lanes=lanes)
        case str(kind) if kind in _PLAIN_KINDS:
            return _PLAIN_KINDS[kind](**_known(tree, _FIELDS[_PLAIN_KINDS[kind]]))
        case _:
            return Unknown(dict(tree))


def row_of(tree: Mapping[str, Any]) -> Epoch:
    """Returns the row of an epoch from its JSON. Unknown columns are ignored.

    Raises:
      TypeError: a column is missing.
    """
    return Epoch.from_row(tree)


def _known(tree: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Returns the values of an object under these names. Missing ones take their field's default."""
    return {name: tree[name] for name in names if name in tree}


def _values(record: Any) -> dict[str, Any]:
    """Returns the fields of an event or row by name, in order, uncopied unlike `dataclasses.asdict`."""
    return {name: getattr(record, name) for name in _FIELDS[type(record)]}


def time_of(event: Event) -> float | None:
    """Returns the time of an event, in seconds since 1970. None for kinds without a time."""
    match event:
        case DeviceUsed() | EpochDone() | Sealed() | Chained() | Notice():
            return None
        case DeclarationMade() | UntilSettled() | LookTaken():
            return None
        case Unknown():
            return event.tree.get("time")
        case _:
            return event.time


def trial_of(event: Event) -> str | None:
    """Returns the id of the event's trial. None for events about the run."""
    match event:
        case AttemptBegan() | DeviceUsed() | EpochDone() | AttemptEnded() | RetryWanted():
            return event.trial
        case Unknown():
            return event.tree.get("trial")
        case (
            Sealed()
            | Chained()
            | DeclarationMade()
            | SessionBegan()
            | PreflightDone()
            | PhaseBegan()
            | LaneOpened()
            | SessionClosed()
            | Pulse()
            | BreakerTripped()
            | UntilSettled()
            | LookTaken()
            | Notice()
        ):
            return None
        case _:
            assert_never(event)
