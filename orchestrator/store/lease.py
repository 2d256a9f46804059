"""Exclusive access to a sweep folder: one run writes at a time, even if several machines share the folder.

On one machine a file lock ensures this; it ends with the process. Between machines a lease does: a file with
a number and the holder's name, touched every few seconds, and void when that stops. The number grows with
every holder. A holder that finds a larger number has been taken for dead and stops; the journal's seals
exclude what it may still write.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from orchestrator.store.journal import FolderError
from trainables.io.files import write_atomically
from trainables.io.json import parse_json

#: Seconds between two heartbeats of a holder, and seconds without one after which its lease is void.
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0

#: Files of a run that did nothing.
_LEFT_BY_NOTHING = {"lock", "lease.json", "output.log"}

StopMode = Literal["drain", "now"]


class Lease:
    """A held sweep folder.

    Attributes:
      folder: the sweep's.
      number: grows with every holder.
      lost: whether another run has taken the folder over.
      code: the exit code of the run, for those who look on; None if it has none.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.lost = False
        self.code: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def _beat(self) -> None:
        path = self.folder / "lease.json"
        while not self._done.wait(BEAT_SECONDS):
            # A sweep goes on while its folder is unreachable for a time.
            with contextlib.suppress(OSError, ValueError, KeyError):
                if parse_json(path.read_text("utf-8"))["number"] != self.number:
                    self.lost = True
                    return
                os.utime(path)

    def stop_wanted(self) -> StopMode | None:
        """Returns the mode of stop that `request_stop` asked of this holder. None if it asked for none."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            wanted = parse_json((self.folder / "stop.json").read_text("utf-8"))
            if wanted["number"] == self.number:
                return "drain" if wanted["mode"] == "drain" else "now"
        return None


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Lease]:
    """Holds a sweep folder for writing.

    Raises:
      FolderError: another run holds it; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderError(f"{folder}: is in use by {_holder(folder)}") from error
        before = _read(folder)
        is_elsewhere = before is not None and before["host"] not in ("", socket.gethostname())
        if is_elsewhere and (age := _age(folder)) < STALE_SECONDS:
            raise FolderError(
                f"{folder}: is in use by {_holder(folder)}, last heard of {age:.0f} s ago. "
                f"If that run is dead, wait until {STALE_SECONDS:.0f} s have passed"
            )
        number = before["number"] + 1 if before else 1
        since = time.strftime("%F %T")
        me = {"number": number, "process": os.getpid(), "host": socket.gethostname(), "since": since}
        write_atomically(folder / "lease.json", json.dumps(me) + "\n")
        (folder / "stop.json").unlink(missing_ok=True)
        lease = Lease(folder, number)
        lease._thread.start()
        try:
            yield lease
        finally:
            lease._done.set()
            lease._thread.join()
            if not lease.lost:
                (folder / "stop.json").unlink(missing_ok=True)
                # The number stays, because the next holder counts on from it. An empty host means: not held.
                left = {"number": number, "host": "", "code": lease.code}
                write_atomically(folder / "lease.json", json.dumps(left) + "\n")
            # A run that wrote nothing leaves no folder.
            if not lease.lost and {entry.name for entry in folder.iterdir()} <= _LEFT_BY_NOTHING:
                shutil.rmtree(folder)


def check_free(folder: Path) -> None:
    """Checks that no run holds a folder, for callers with long work to do before they take it.

    Raises:
      FolderError: another run holds it; the message names it.
    """
    if holder(folder) is not None:
        raise FolderError(f"{folder}: is in use by {_holder(folder)}")


def holder(folder: Path) -> int | None:
    """Returns the number of the run that holds a folder, as seen from this machine. None if there is none."""
    before = _read(folder)
    if not before or not before["host"]:
        return None
    if before["host"] != socket.gethostname():
        return before["number"] if _age(folder) < STALE_SECONDS else None
    with contextlib.suppress(OSError), (folder / "lock").open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    return int(before["number"])


class Onlooker:
    """Tells whether a run holds a folder, from any machine that sees it, and writes nothing there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._beat: tuple[int, int] | None = None
        self._since = 0.0

    def at_work(self) -> bool:
        """Returns whether a run holds the folder. A run that was killed does so for STALE_SECONDS more."""
        content = _read(self._folder)
        if not content or not content["host"]:
            return False
        with contextlib.suppress(OSError):
            beat = (content["number"], (self._folder / "lease.json").stat().st_mtime_ns)
            if beat != self._beat:
                self._beat, self._since = beat, time.monotonic()
        return time.monotonic() - self._since < STALE_SECONDS


def exit_code(folder: Path) -> int | None:
    """Returns the exit code of the last run in a folder. None if it is at work or was killed."""
    content = _read(folder)
    if not content or content["host"] or not isinstance(content.get("code"), int):
        return None
    return int(content["code"])


def request_stop(folder: Path, mode: StopMode) -> int:
    """Asks the run that holds a folder to stop.

    Returns:
      The run's number.

    Raises:
      FolderError: no run holds the folder.
    """
    number = holder(folder)
    if number is None:
        raise FolderError(f"{folder}: no run is at work there")
    write_atomically(folder / "stop.json", json.dumps({"number": number, "mode": mode}) + "\n")
    return number


def kill_holder(folder: Path) -> None:
    """Ends the process of the run that holds a folder, as a power cut would.

    Raises:
      FolderError: no run holds the folder, or a run on another machine does.
    """
    if holder(folder) is None or (content := _read(folder)) is None:
        raise FolderError(f"{folder}: no run is at work there")
    if content["host"] != socket.gethostname():
        raise FolderError(f"{folder}: is in use by {_holder(folder)}; kill it there")
    os.kill(content["process"], signal.SIGKILL)


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        content = parse_json((folder / "lease.json").read_text("utf-8"))
        return {**content, "number": int(content["number"]), "host": str(content["host"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        # The file is damaged, so the holder is unknown.
        return None


def _age(folder: Path) -> float:
    """Returns the holder's silence in seconds by the storage's clock, as machines' clocks differ."""
    probe = folder / f".clock.{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime - (folder / "lease.json").stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _holder(folder: Path) -> str:
    content = _read(folder)
    if not content or "process" not in content:
        return "another process"
    return f"process {content['process']} on {content['host']}, since {content['since']}"
