"""Log files of attempts at a trial, in the sweep's folder.

trials/<id>/attempt-<n>.log               traceback, or notices of the checkpointer
trials/<id>/attempt-<n>.rank-<r>.stack    the stack of a process that made no step for a long time
trials/<id>/attempt-<n>.rank-<r>.log      warnings and log messages of a worker; absent if there were none
"""

import contextlib
import logging
import logging.handlers
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Most bytes that the log of a rank takes; beyond that, the older half is dropped.
MOST_BYTES = 2 * 2**20

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


class _LateFile(logging.handlers.RotatingFileHandler):
    """A log file that is created with its first line, so that a trial without messages leaves no file."""

    def _open(self):  # type: ignore[no-untyped-def]
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()


@contextlib.contextmanager
def kept(folder: Path, trial_id: str, attempt: int, rank: int) -> Iterator[None]:
    """Records this process's warnings and log messages of level WARNING and above during an attempt.

    If the storage fails, the lines are lost and the trial goes on; `logging` reports that on standard error.
    """
    path = folder / "trials" / trial_id / f"attempt-{attempt}.rank-{rank}.log"
    handler = _LateFile(
        path, maxBytes=MOST_BYTES // 2, backupCount=1, delay=True, encoding="utf-8", errors="replace"
    )
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    # This block makes a warning appear once per attempt instead of once per process.
    with warnings.catch_warnings():
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            root.removeHandler(handler)
            handler.close()
