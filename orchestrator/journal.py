"""The record of a sweep: append-only, one writer, every line with its checksum.

One line is the CRC-32 of its JSON, a space, the JSON. A line that does not check is where a crash cut the
file: it and what follows in that file are left out, and reading says so. Nothing is ever rewritten; a new
`run` starts a new file, so a torn tail stays a tail.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from orchestrator.results import Event


class FolderError(ValueError):
    """A folder that is no sweep, is in use, or belongs to another question."""


def encode(event: Event) -> str:
    """An event as one line."""
    text = json.dumps(event, separators=(",", ":"), allow_nan=False)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def decode(line: bytes) -> Event | None:
    """The event of a line, or None if the line is not whole."""
    if not line.endswith(b"\n") or line[8:9] != b" ":
        return None
    text = line[9:-1]
    try:
        if int(line[:8], 16) != zlib.crc32(text):
            return None
        event = json.loads(text)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None


@dataclass(frozen=True)
class Reading:
    """A journal as it was found.

    Attributes:
      events: in the order they were written.
      notices: what was left out, a line each; for people.
    """

    events: list[Event]
    notices: list[str]


def read_journal(folder: Path) -> Reading:
    """All events of a sweep folder up to the last good one of each `run`."""
    events: list[Event] = []
    notices = []
    for path in sorted((folder / "journal").glob("*.jsonl")):
        lines = path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines):
            event = decode(line)
            if event is None:
                dropped = len(lines) - number
                notices.append(
                    f"{path.name}: {dropped} record(s) after line {number} were cut off by a crash"
                )
                break
            events.append(event)
    return Reading(events, notices)


class Writer:
    """Appends events to a new file of the journal. One process has one; the folder's lock sees to it."""

    def __init__(self, folder: Path) -> None:
        journal = folder / "journal"
        journal.mkdir(parents=True, exist_ok=True)
        last = max((int(path.stem) for path in journal.glob("*.jsonl")), default=0)
        self.path = journal / f"{last + 1:06d}.jsonl"
        self._file = self.path.open("xb")
        self._synced = 0.0

    def append(self, events: Sequence[Event]) -> None:
        """Writes events; on return they survive the process. Ends of trials also survive the machine."""
        self._file.write("".join(encode(event) for event in events).encode())
        self._file.flush()
        now = time.monotonic()
        # An fsync costs milliseconds: at once for what must not be repeated, else once a second.
        if now - self._synced > 1 or any(event["kind"] == "end" for event in events):
            os.fsync(self._file.fileno())
            self._synced = now

    def close(self) -> None:
        """Makes everything durable."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    data = content.encode() if isinstance(content, str) else content
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a sweep folder for writing; the lock goes with the process, however that ends.

    Raises:
      FolderError: another `run` holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderError(f"{folder}: is in use by {_holder(file)}") from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}")
        file.flush()
        try:
            yield
        finally:
            # A run that came to nothing leaves nothing.
            if [entry.name for entry in folder.iterdir()] == ["lock"]:
                shutil.rmtree(folder)


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
