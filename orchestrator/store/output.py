"""The output of a run in its sweep's folder, for those who look on from another terminal.

output.log     of the last run
output.1.log   of the run before, or the earlier part of a long output
"""

import contextlib
import io
import os
from pathlib import Path
from typing import Protocol, TextIO

#: Bytes after which the output goes on in a new file.
MAX_BYTES = 8 * 2**20


class Sink(Protocol):
    """Receives text, such as a stream."""

    def write(self, text: str, /) -> object:
        """Receives a piece of text."""


def output_path(folder: Path) -> Path:
    """Returns the file with the output of a sweep's last run."""
    return folder / "output.log"


class OutputLog(io.TextIOBase):
    """A stream into a sweep's folder. It keeps what is written before the folder is known.

    A disk that is full or gone loses text, and ends nothing.
    """

    def __init__(self) -> None:
        self._early: list[str] = []
        self._path: Path | None = None
        self._file: TextIO | None = None

    def begin(self, folder: Path) -> None:
        """Begins the log of a new run."""
        self._path = output_path(folder)
        self._open()
        early, self._early = "".join(self._early), []
        self.write(early)

    def write(self, text: str) -> int:
        """Appends text. Never raises."""
        if self._path is None:
            self._early.append(text)
        elif self._file is not None:
            with contextlib.suppress(OSError):
                self._file.write(text)
                self._file.flush()
                if self._file.tell() > MAX_BYTES:
                    self._open()
        return len(text)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None

    def _open(self) -> None:
        self.close()
        assert self._path is not None
        with contextlib.suppress(OSError):
            if self._path.exists():
                self._path.replace(self._path.with_name("output.1.log"))
            self._file = self._path.open("w", encoding="utf-8", errors="replace")


class OutputTail:
    """Reads the output of a run while it is written."""

    def __init__(self, folder: Path) -> None:
        self._path = output_path(folder)
        self._file: TextIO | None = None

    def copy(self, to: Sink) -> None:
        """Hands on what was added since the last call, also across the beginning of a new file."""
        while True:
            if self._file is None:
                try:
                    self._file = self._path.open(encoding="utf-8", errors="replace")
                except FileNotFoundError:
                    return
            # Before the file is read, so that nothing is added to it afterwards.
            is_old = self._is_old()
            if text := self._file.read():
                to.write(text)
            if not is_old:
                return
            self._file.close()
            self._file = None

    def _is_old(self) -> bool:
        assert self._file is not None
        with contextlib.suppress(FileNotFoundError):
            return not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        return False
