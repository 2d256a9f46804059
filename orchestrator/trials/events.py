"""What the journal says: one class per kind of event, and its one way to JSON and back.

Readers take events by `match`. Those that must account for every kind end in `assert_never`, so that the type
checker names them when a kind is added.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, assert_never, get_args

from orchestrator.trials.outcomes import AttemptEnd
from trainables.base import Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """Sizes in bytes of the journal's earlier files; what is beyond them does not count."""

    kind: ClassVar[str] = "seal"
    sizes: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionBegan:
    """A run is up.

    Attributes:
      time: in seconds since 1970, here and in every event.
      began: when its starting up began.
      lanes: worker groups at a time, per phase.
    """

    kind: ClassVar[str] = "session"
    time: float
    began: float
    lanes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightDone:
    """Checks before the first trial took so many of the seconds since the session began."""

    kind: ClassVar[str] = "preflight"
    time: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBegan:
    """From here on a session has so many lanes, on so many devices of one kind in all."""

    kind: ClassVar[str] = "phase"
    time: float
    lanes: int
    devices: float
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed:
    """A run has ended in good order."""

    kind: ClassVar[str] = "close"
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptBegan:
    """A lane has taken a trial up; `node` is the id of the machine of its rank 0, empty where unknown."""

    kind: ClassVar[str] = "attempt"
    trial: str
    attempt: int
    lane: str
    node: str = ""
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochDone:
    """A trial has finished an epoch."""

    kind: ClassVar[str] = "epoch"
    trial: str
    attempt: int
    row: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded:
    """An attempt is over.

    Attributes:
      end, detail: how it ended, and one line of cause.
      seconds: how long it took.
      final: the trial is over, too.
      weights: digest of the final weights, empty without them.
      from_step, step: where it began and how far it was known to be; -1 if nothing was heard.
      heard: when that was heard; 0 if it is not known.
      epochs: number of the last epoch it put on record, by which a reader sees that no row of it is missing.
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
    """A trial under way: the step it began at, the step it is at, and when that was heard."""

    from_step: int
    step: int
    heard: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """The run lives, with these trials in flight."""

    kind: ClassVar[str] = "pulse"
    time: float
    in_flight: dict[str, InFlight] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryWanted:
    """A person wants a trial that has ended run anew, from its beginning."""

    kind: ClassVar[str] = "retry"
    trial: str
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerTripped:
    """A run has stopped itself, as trial after trial of an arm ended with the same error."""

    kind: ClassVar[str] = "breaker"
    time: float
    arm: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A line for the person at the run; it is not put on record."""

    kind: ClassVar[str] = "notice"
    detail: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """An event of a kind that this version does not know: carried as it is, and passed over."""

    tree: dict[str, Any]

    @property
    def kind(self) -> str:
        """What it calls itself."""
        return str(self.tree["kind"])


#: Kinds of which nothing but their fields is read.
_Plain = (
    Sealed
    | PreflightDone
    | PhaseBegan
    | SessionClosed
    | AttemptBegan
    | AttemptEnded
    | RetryWanted
    | BreakerTripped
    | Notice
)
Event = _Plain | SessionBegan | EpochDone | Pulse | Unknown

_PLAIN_KINDS: dict[str, type[_Plain]] = {kind.kind: kind for kind in get_args(_Plain)}
_FIELDS: dict[type, tuple[str, ...]] = {
    kind: tuple(f.name for f in dataclasses.fields(kind))
    for kind in (*get_args(_Plain), SessionBegan, Pulse, Epoch)
}


def to_json(event: Event) -> dict[str, Any]:
    """An event as the journal holds it; values that JSON does not know are not looked for."""
    match event:
        case EpochDone():
            row = _values(event.row)
            return {"kind": event.kind, "trial": event.trial, "attempt": event.attempt, "row": row}
        case Unknown():
            return event.tree
        case _:
            return {"kind": event.kind, **_values(event)}


def from_json(tree: Mapping[str, Any]) -> Event:
    """The event of a JSON object; keys that are not known are passed over.

    Raises:
      KeyError, TypeError, ValueError: it makes no sense.
    """
    match tree["kind"]:
        case "epoch":
            return EpochDone(trial=tree["trial"], attempt=tree["attempt"], row=row_of(tree["row"]))
        case "pulse":
            in_flight = {trial: InFlight(*values) for trial, values in tree["in_flight"].items()}
            return Pulse(time=tree["time"], in_flight=in_flight)
        case "session":
            time, lanes = tree["time"], tuple(tree.get("lanes", ()))
            # The first version did not say when starting up began.
            return SessionBegan(time=time, began=tree.get("began", time), lanes=lanes)
        case str(kind) if kind in _PLAIN_KINDS:
            return _PLAIN_KINDS[kind](**_known(tree, _FIELDS[_PLAIN_KINDS[kind]]))
        case _:
            return Unknown(dict(tree))


def row_of(tree: Mapping[str, Any]) -> Epoch:
    """The row of an epoch from its JSON; columns that are not known are passed over.

    Raises:
      TypeError: a column is missing.
    """
    return Epoch.from_row(tree)


def _known(tree: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """What stands in an object under these names; what is missing takes the default of its field."""
    return {name: tree[name] for name in names if name in tree}


def _values(record: Any) -> dict[str, Any]:
    """Fields of an event or row by name, in their order; not copied, as `dataclasses.asdict` would."""
    return {name: getattr(record, name) for name in _FIELDS[type(record)]}


def time_of(event: Event) -> float | None:
    """When it happened, in seconds since 1970; None for kinds that do not say."""
    match event:
        case EpochDone() | Sealed() | Notice():
            return None
        case Unknown():
            return event.tree.get("time")
        case _:
            return event.time


def trial_of(event: Event) -> str | None:
    """Id of the trial it is about; None for kinds that are about the run."""
    match event:
        case EpochDone() | AttemptBegan() | AttemptEnded() | RetryWanted():
            return event.trial
        case Unknown():
            return event.tree.get("trial")
        case (
            Sealed()
            | SessionBegan()
            | PreflightDone()
            | PhaseBegan()
            | SessionClosed()
            | Pulse()
            | BreakerTripped()
            | Notice()
        ):
            return None
        case _:
            assert_never(event)
