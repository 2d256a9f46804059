"""The record of a sweep: append-only, one writer, every line with its checksum.

One line is the CRC-32 of its JSON, a space, the JSON. A line that does not check was torn by a crash or
damaged by a disk: it is left out, and reading says so. Nothing is ever rewritten; a new `run` starts a new
file, so a torn tail stays a tail. A file begins by sealing those before it: what a writer that was taken for
dead should still add to one of them does not count.
"""

import json
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.trials.events import AttemptEnded, Event, Sealed, from_json, to_json
from trainables.errors import UserError
from trainables.io.files import sync_folder


class FolderError(UserError):
    """A folder that is no sweep, is in use, or belongs to another question."""


def encode(event: Event) -> str:
    """An event as one line."""
    text = json.dumps(to_json(event), separators=(",", ":"), allow_nan=False)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def tree_of(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line, or None if the line is not whole."""
    if not line.endswith(b"\n") or line[8:9] != b" ":
        return None
    text = line[9:-1]
    try:
        if int(line[:8], 16) != zlib.crc32(text):
            return None
        tree = json.loads(text)
    except ValueError:
        return None
    return tree if isinstance(tree, dict) and "kind" in tree else None


def decode(line: bytes) -> Event | None:
    """The event of a line, or None if the line is not whole.

    Raises:
      KeyError, TypeError, ValueError: what it says makes no sense.
    """
    tree = tree_of(line)
    return None if tree is None else from_json(tree)


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
    """All whole events of a sweep folder."""
    tail = Tail(folder)
    return Reading(tail.read(), tail.notices())


@dataclass(slots=True)
class _File:
    """How far a journal file has been read.

    Attributes:
      offset: bytes that have been taken; always at the end of a line.
      size: bytes that were there.
      damaged: lines that were left out.
    """

    offset: int = 0
    size: int = 0
    damaged: int = 0


class Tail:
    """A journal that may be growing: every `read` gives what has been added since the last one.

    Attributes:
      anew: the last `read` began at the beginning again, since a seal took back what had been read: forget
        what came before.
    """

    def __init__(self, folder: Path) -> None:
        self._journal = folder / "journal"
        self.anew = False
        self._forget()

    def _forget(self) -> None:
        self._files: dict[str, _File] = {}
        self._sealed: dict[str, int] = {}
        self._heads: set[str] = set()

    def read(self) -> list[Event]:
        """Whole events since the last call, in the order they were written; constant work per new byte.

        Raises:
          OSError: the storage does not answer.
        """
        paths = sorted(self._journal.glob("*.jsonl"))
        self._read_seals(paths)
        # A writer that was taken for dead may have gone on, or have lost what no disk had yet.
        self.anew = any(
            file.offset > self._sealed.get(name, file.offset) for name, file in self._files.items()
        )
        if self.anew:
            self._forget()
            self._read_seals(paths)
        return [event for path in paths for event in self._read_file(path)]

    def notices(self) -> list[str]:
        """What has been left out so far, a line each; for people."""
        found = []
        for name, file in self._files.items():
            limit = self._sealed.get(name, file.size)
            if file.size > limit:
                found.append(f"{name}: what was added after a later run had begun is left out")
            if damaged := file.damaged + (file.offset < min(file.size, limit)):
                found.append(f"{name}: {damaged} record(s) torn by a crash or damaged are left out")
        return found

    def _read_seals(self, paths: Sequence[Path]) -> None:
        """A file begins by sealing those before it: takes in the seals of files that are new."""
        for path in paths:
            if path.name in self._heads:
                continue
            with path.open("rb") as file:
                line = file.readline()
            if not line.endswith(b"\n"):
                continue  # it is being written
            self._heads.add(path.name)
            first = decode(line)
            if isinstance(first, Sealed):
                for name, size in first.sizes.items():
                    self._sealed[name] = min(size, self._sealed.get(name, size))

    def _read_file(self, path: Path) -> list[Event]:
        file = self._files.setdefault(path.name, _File())
        limit = self._sealed.get(path.name)
        if limit is not None and file.offset >= limit and file.size > limit:
            return []
        with path.open("rb") as stream:
            file.size = os.fstat(stream.fileno()).st_size
            if file.size <= file.offset:
                return []
            stream.seek(file.offset)
            content = stream.read(-1 if limit is None else limit - file.offset)
        # The rest of a line that is being written comes with the next call.
        whole = content[: content.rfind(b"\n") + 1]
        file.offset += len(whole)
        events: list[Event] = []
        for line in whole.splitlines(keepends=True):
            event = decode(line)
            if event is None:
                file.damaged += 1
            elif not isinstance(event, Sealed):
                events.append(event)
        return events


class Writer:
    """Appends events to a new file of the journal. One process has one; the folder's lease sees to it."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
          OSError: the storage does not take it.
        """
        journal = folder / "journal"
        journal.mkdir(parents=True, exist_ok=True)
        before = sorted(journal.glob("*.jsonl"))
        last = max((int(path.stem) for path in before), default=0)
        self.path = journal / f"{last + 1:06d}.jsonl"
        # Unbuffered: what a failed write has left undone must not linger here.
        self._file = self.path.open("xb", buffering=0)
        self._size = 0
        self._synced_size, self._synced_at = 0, 0.0
        self._unsynced: list[bytes] = []
        self._torn = False
        sync_folder(journal)
        if before:
            self.append([Sealed(sizes={path.name: path.stat().st_size for path in before})])

    def append(self, events: Sequence[Event]) -> None:
        """Writes events; on return they survive the process. Ends of trials also survive the machine.

        Raises:
          OSError: the storage does not take them. Call `retry` until it does; the events are kept.
        """
        self._unsynced.append("".join(encode(event) for event in events).encode())
        if self._torn:
            self._start_over()
        else:
            self._write(self._unsynced[-1])
        # An fsync costs milliseconds: at once for what must not be repeated, else once a second.
        if time.monotonic() - self._synced_at > 1 or any(isinstance(event, AttemptEnded) for event in events):
            self._sync()

    def retry(self) -> None:
        """Writes what a failed `append` left.

        Raises:
          OSError: the storage still does not take it.
        """
        self._start_over()
        self._sync()

    def close(self) -> None:
        """Makes everything durable."""
        self._sync()
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._torn = True
        view = memoryview(data)
        while view:
            written = self._file.write(view)
            view = view[written:]
            self._size += written
        self._torn = False

    def _start_over(self) -> None:
        """After a failed write: what is durable stays, the rest is written again.

        A failed fsync may have dropped pages that had been written well, so all since the last good one is.
        """
        self._torn = True
        os.ftruncate(self._file.fileno(), self._synced_size)
        self._file.seek(self._synced_size)
        self._size = self._synced_size
        self._write(b"".join(self._unsynced))

    def _sync(self) -> None:
        self._torn = True
        os.fsync(self._file.fileno())
        self._torn = False
        self._synced_size, self._synced_at = self._size, time.monotonic()
        self._unsynced.clear()
