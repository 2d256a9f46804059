"""Log files of attempts at a trial, in the sweep's folder.

trials/<id>/attempt-<n>.log               traceback, or notices of the checkpointer
trials/<id>/attempt-<n>.rank-<r>.stack    the stack of a process that made no step for a long time
trials/<id>/attempt-<n>.rank-<r>.log      warnings and log messages of a worker; absent if there were none

Workers send the text to the Coordinator, which writes these files: a worker need not see the folder.
"""

import contextlib
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Most bytes that the log of a rank takes; beyond that, the older half is dropped.
MOST_BYTES = 2 * 2**20

#: Least seconds between two times that a process sends its lines.
SEND_SECONDS = 1.0

_NAME = re.compile(r"attempt-(?P<attempt>\d+)(?:\.rank-(?P<rank>\d+))?\.(?P<kind>log|stack)(?:\.1)?$")


@dataclass(frozen=True, slots=True)
class TrialLog:
    """A file that an attempt has left.

    Attributes:
      attempt: number of the attempt.
      rank: of the worker; None if the file is for all ranks.
      what: kind of content, in words.
    """

    path: Path
    attempt: int
    rank: int | None
    what: str


def logs_of(
    folder: Path, trial_id: str, attempt: int | None = None, rank: int | None = None
) -> list[TrialLog]:
    """Returns the log files that are not empty, sorted by attempt and rank.

    `attempt` and `rank` select one of each. Files for all ranks are included whatever the rank.
    """
    found = []
    for path in (folder / "trials" / trial_id).glob("attempt-*"):
        if (match := _NAME.fullmatch(path.name)) is None or not path.stat().st_size:
            continue
        number, of_rank = int(match["attempt"]), None if match["rank"] is None else int(match["rank"])
        if attempt not in (None, number) or (rank is not None and of_rank not in (None, rank)):
            continue
        if match["kind"] == "stack":
            what = "where it hung"
        else:
            what = "traceback and notices" if of_rank is None else "warnings and messages"
        found.append(TrialLog(path, number, of_rank, what))
    # The older half of a log (.1) comes before the newer one.
    return sorted(
        found,
        key=lambda log: (
            log.attempt,
            -1 if log.rank is None else log.rank,
            log.what,
            not log.path.name.endswith(".1"),
        ),
    )


def last_lines(logs: Sequence[TrialLog], count: int) -> list[str]:
    """Returns the last lines of the newest log, which is the traceback of the last attempt if it has one."""
    if not logs:
        return []
    last = max(log.attempt for log in logs)
    chosen = next(log for log in logs if log.attempt == last)
    with chosen.path.open("rb") as file:
        file.seek(max(0, chosen.path.stat().st_size - 2**14))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()][-count:]


class _Lines(logging.Handler):
    """Collects the lines of a process, and sends them at most once per SEND_SECONDS."""

    def __init__(self, send: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
        self._send = send
        self._lines: list[str] = []
        self._size = 0
        self._sent = -math.inf

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a message. Drops the older half of those that wait if they are too many."""
        line = self.format(record)
        self._lines.append(line)
        self._size += len(line)
        if self._size > MOST_BYTES // 2:
            del self._lines[: len(self._lines) // 2]
            self._size = sum(map(len, self._lines))
        self.send_due()

    def send_due(self, at_once: bool = False) -> None:
        """Sends what there is if the last time is long enough ago."""
        now = time.monotonic()
        if self._lines and (at_once or now - self._sent >= SEND_SECONDS):
            text = "".join(f"{line}\n" for line in self._lines)
            self._lines, self._size, self._sent = [], 0, now
            self._send(text)


@contextlib.contextmanager
def kept(send: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Collects this process's warnings and log messages of level WARNING and above during an attempt.

    Args:
      send: takes lines for the log.

    Yields:
      A function to call now and then, which sends what waits to be sent.
    """
    handler = _Lines(send)
    root = logging.getLogger()
    root.addHandler(handler)
    # This block makes a warning appear once per attempt instead of once per process.
    with warnings.catch_warnings():
        logging.captureWarnings(True)
        try:
            yield handler.send_due
        finally:
            logging.captureWarnings(False)
            root.removeHandler(handler)
            handler.send_due(at_once=True)
            handler.close()


def append_log(folder: Path, trial_id: str, attempt: int, rank: int, text: str) -> None:
    """Adds lines to the log of a rank. If the storage fails, the lines are lost."""
    path = folder / "trials" / trial_id / f"attempt-{attempt}.rank-{rank}.log"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size + len(text) > MOST_BYTES // 2:
            os.replace(path, path.with_name(f"{path.name}.1"))
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
