"""Waiting for a machine: what a run says while none is there that a trial fits on, and when it gives up."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from orchestrator.trials.gang import Gang, Node, num_lanes
from orchestrator.trials.numerals import duration
from trainables.errors import Unavailable

#: Minutes that a run waits for a machine, unless `--wait-minutes` says otherwise.
WAIT_MINUTES = 60.0

#: Seconds of waiting before the first line, and between two lines.
FIRST_SECONDS, TELL_SECONDS = 5.0, 30.0

#: Seconds between two looks at the machines.
_LOOK_SECONDS = 1.0


class Decision(NamedTuple):
    """A line to print during a wait, and why to give up. Either may be empty."""

    line: str = ""
    gives_up: str = ""


class Waiting:
    """One wait after the other, from what is missing and the time. Asks Ray only for what it prints."""

    def __init__(self, limit_seconds: float, ray_says: Callable[[], str]) -> None:
        """
        Args:
          limit_seconds: of one wait, after which it gives up.
          ray_says: returns what the autoscaler last said; empty if nothing.
        """
        self._limit_seconds, self._ray_says = limit_seconds, ray_says
        self._since: float | None = None
        self._next_seconds = FIRST_SECONDS

    def decide(self, missing: Gang | None, now: float) -> Decision:
        """Decides what to say or do.

        Args:
          missing: resources that no machine has. None ends the wait.
          now: seconds of any clock that only goes forward.
        """
        if missing is None:
            self._since = None
            return Decision()
        if self._since is None:
            self._since, self._next_seconds = now, FIRST_SECONDS
        waited = now - self._since
        if waited >= self._limit_seconds:
            return Decision(gives_up=f"no {_room(missing)} in {_text(self._limit_seconds)}{self._ray()}")
        if waited < self._next_seconds:
            return Decision()
        # The last time that was due, so that lines have round times although looks come in between.
        due = max(self._next_seconds, waited // TELL_SECONDS * TELL_SECONDS)
        self._next_seconds = (due // TELL_SECONDS + 1) * TELL_SECONDS
        article = "a " if missing.workers == 1 else ""
        return Decision(f"waiting for {article}{_room(missing)}, {_text(due)}{self._ray()}")

    def _ray(self) -> str:
        text = self._ray_says()
        return f"; Ray: {text}" if text else ""


def missing(gangs: Iterable[Gang], nodes: Sequence[Node]) -> Gang | None:
    """Returns the first of these gangs that would not fit on the machines if nothing else ran there."""
    return next((gang for gang in gangs if not num_lanes(gang, nodes, 1)), None)


def _room(gang: Gang) -> str:
    each = f"{gang.cpus} CPU" + (f" and {gang.gpus:g} GPU" if gang.gpus else "")
    if gang.workers == 1:
        return f"machine with {each}"
    return f"room for {gang.workers} workers with {each} each"


def _text(seconds: float) -> str:
    return duration(seconds).removesuffix(" 00 s").replace(".0 s", " s")


class Watch:
    """Watches the machines of a cluster for a preflight or a run, and tells what they wait for."""

    def __init__(
        self,
        limit_minutes: float,
        tell: Callable[[str], None],
        nodes: Callable[[], Sequence[Node]],
        ray_says: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
          limit_minutes: longest wait.
          tell: prints a line.
          nodes: returns the machines that are there.
          ray_says: see `Waiting`.
          clock: returns seconds.
        """
        self._waiting = Waiting(60 * limit_minutes, ray_says)
        self._tell, self._nodes, self._clock = tell, nodes, clock
        self._looked = -math.inf

    def look(self, wanted: Callable[[], Iterable[Gang]]) -> str:
        """Tells of a wait if a line is due. May be called often.

        Args:
          wanted: returns the gangs of which none runs, although it should.

        Returns:
          Why to give up; empty if there is no need to.
        """
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return ""
        self._looked = now
        line, gives_up = self._waiting.decide(missing(wanted(), self._nodes()), now)
        if line:
            self._tell(line)
        return f"{gives_up} (--wait-minutes)" if gives_up else ""

    def check(self, wanted: Callable[[], Iterable[Gang]]) -> None:
        """Does what `look` does.

        Raises:
          Unavailable: the wait has taken too long.
        """
        if reason := self.look(wanted):
            raise Unavailable(f"gave up: {reason}. Nothing has begun; the same command starts it later")
