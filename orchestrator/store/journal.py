"""The journal of a sweep: append-only, one writer, every line with its checksum.

A line is the CRC-32 of its JSON, a space, and the JSON. A line whose checksum is wrong was torn by a crash or
damaged by a disk; reading skips it and reports that. Nothing is ever rewritten. A new `run` starts a new
file, so a torn line is always the last of its file. A file begins by sealing the earlier ones, because a
writer that was taken for dead may still append to them: lines after the sealed size are ignored. Its second
line is their digest, so a line that is changed or put in later shows in every file after it.
"""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.trials.events import AttemptEnded, Chained, Event, Sealed, from_json, to_json
from trainables.errors import UserError
from trainables.io.files import sync_folder
from trainables.io.json import parse_json


class FolderError(UserError):
    """A folder that is no sweep, is in use, or belongs to another question."""


def encode(event: Event) -> str:
    """Returns an event as one line."""
    text = json.dumps(to_json(event), separators=(",", ":"), allow_nan=False)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def tree_of(line: bytes) -> dict[str, Any] | None:
    """Returns the JSON object of a line. None if the line is torn or damaged."""
    if not line.endswith(b"\n") or line[8:9] != b" ":
        return None
    text = line[9:-1]
    try:
        if int(line[:8], 16) != zlib.crc32(text):
            return None
        tree = parse_json(text)
    except ValueError:
        return None
    return tree if isinstance(tree, dict) and "kind" in tree else None


def decode(line: bytes) -> Event | None:
    """Returns the event of a line. None if the line is torn or damaged.

    Raises:
      KeyError, TypeError, ValueError: the line is whole, but not a valid event.
    """
    tree = tree_of(line)
    return None if tree is None else from_json(tree)


def seal_of(path: Path) -> dict[str, int] | None:
    """Returns the sizes in bytes at which a file of the journal seals earlier ones, by their names.

    None if its first line is not complete.
    """
    with path.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        return None
    first = decode(line)
    return dict(first.sizes) if isinstance(first, Sealed) else {}


def chain_of(path: Path) -> tuple[dict[str, int], str] | None:
    """Returns the sealed sizes and the digest with which a file of the journal begins.

    None if it has none: it is the first file, an earlier version wrote it, or a crash cut it off there.
    """
    with path.open("rb") as file:
        lines = [file.readline(), file.readline()]
    first, second = (decode(line) for line in lines)
    if not isinstance(first, Sealed) or not isinstance(second, Chained):
        return None
    return dict(first.sizes), second.sha256


def digest_of(journal: Path, sizes: Mapping[str, int]) -> str:
    """Returns the SHA-256 of files of a journal up to these sizes in bytes, with their names and sizes.

    Raises:
      OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for name, size in sorted(sizes.items()):
        digest.update(f"{name} {size}\n".encode())
        with (journal / name).open("rb") as file:
            while size > 0 and (data := file.read(min(size, _CHUNK_BYTES))):
                digest.update(data)
                size -= len(data)
    return digest.hexdigest()


#: Bytes of a journal that are read at a time for its digest.
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Reading:
    """The content of a journal.

    Attributes:
      events: in the order they were written.
      notices: a line for the user on each file with skipped records.
    """

    events: list[Event]
    notices: list[str]


def read_journal(folder: Path) -> Reading:
    """Returns all whole events of a sweep folder."""
    tail = Tail(folder)
    return Reading(tail.read(), tail.notices())


@dataclass(slots=True)
class _File:
    """The reading position in a journal file.

    Attributes:
      offset: bytes that have been read; always at the end of a line.
      size: bytes in the file at the last read.
      damaged: lines that were skipped.
    """

    offset: int = 0
    size: int = 0
    damaged: int = 0


class Tail:
    """A reader of a journal that may be growing: every `read` returns the events added since the last one.

    Attributes:
      anew: whether the last `read` started over, because a seal revoked lines that had been read. The
        caller must discard all earlier events.
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
        """Returns whole events since the last call, in the order they were written.

        The work is constant per new byte.

        Raises:
          OSError: the storage does not answer.
        """
        paths = sorted(self._journal.glob("*.jsonl"))
        self._read_seals(paths)
        # A writer that was taken for dead may have appended more, or lost lines that were not on disk yet.
        self.anew = any(
            file.offset > self._sealed.get(name, file.offset) for name, file in self._files.items()
        )
        if self.anew:
            self._forget()
            self._read_seals(paths)
        return [event for path in paths for event in self._read_file(path)]

    def notices(self) -> list[str]:
        """Returns a line for the user on each file with skipped records."""
        found = []
        for name, file in self._files.items():
            limit = self._sealed.get(name, file.size)
            if file.size > limit:
                found.append(f"{name}: what was added after a later run had begun is left out")
            if damaged := file.damaged + (file.offset < min(file.size, limit)):
                found.append(f"{name}: {damaged} record(s) torn by a crash or damaged are left out")
        return found

    def _read_seals(self, paths: Sequence[Path]) -> None:
        """Reads the seals at the beginning of new files. Each seals the files before it."""
        for path in paths:
            if path.name in self._heads:
                continue
            if (sizes := seal_of(path)) is None:
                continue  # the line is still being written
            self._heads.add(path.name)
            for name, size in sizes.items():
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
        # A line that is still being written is read by the next call.
        whole = content[: content.rfind(b"\n") + 1]
        file.offset += len(whole)
        events: list[Event] = []
        for line in whole.splitlines(keepends=True):
            event = decode(line)
            if event is None:
                file.damaged += 1
            elif not isinstance(event, Sealed | Chained):
                events.append(event)
        return events


class Writer:
    """Appends events to a new file of the journal. The folder's lease ensures that there is one writer."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
          OSError: the storage refuses the new file.
        """
        journal = folder / "journal"
        journal.mkdir(parents=True, exist_ok=True)
        before = sorted(journal.glob("*.jsonl"))
        last = max((int(path.stem) for path in before), default=0)
        self.path = journal / f"{last + 1:06d}.jsonl"
        # Unbuffered, because a buffer would keep the bytes of a failed write.
        self._file = self.path.open("xb", buffering=0)
        self._size = 0
        self._synced_size, self._synced_at = 0, 0.0
        self._unsynced: list[bytes] = []
        self._torn = False
        sync_folder(journal)
        if before:
            sizes = {path.name: path.stat().st_size for path in before}
            self.append([Sealed(sizes=sizes), Chained(sha256=digest_of(journal, sizes))])

    def append(self, events: Sequence[Event]) -> None:
        """Writes events. On return they survive the process; ends of trials also survive the machine.

        Raises:
          OSError: the storage refuses them. The events are kept; call `retry` until it succeeds.
        """
        self._unsynced.append("".join(encode(event) for event in events).encode())
        if self._torn:
            self._start_over()
        else:
            self._write(self._unsynced[-1])
        # An fsync costs milliseconds: at once for the end of a trial, else once a second.
        if time.monotonic() - self._synced_at > 1 or any(isinstance(event, AttemptEnded) for event in events):
            self._sync()

    def retry(self) -> None:
        """Writes the events that a failed `append` left.

        Raises:
          OSError: the storage still refuses them.
        """
        self._start_over()
        self._sync()

    def close(self) -> None:
        """Makes all events durable and closes the file."""
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
        """Truncates the file to its durable part after a failed write, and writes the rest again.

        The rest is everything since the last successful fsync, because a failed one may have dropped pages
        whose write had succeeded.
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
