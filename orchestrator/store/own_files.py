"""Files of a sweep on a worker's own machine. No other machine needs to see them.

<cache>/sweeps/<key>/trials/<id>/attempt-<n>.rank-<r>.stack   of a worker that hangs, until it is fetched

They are deleted when the trial ends, on whatever machine it ends.
"""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from trainables.io.machine import cache_folder

_STACK = re.compile(r"attempt-(\d+)\.rank-(\d+)\.stack")


def key_of(folder: Path) -> str:
    """Returns the name of a sweep's files on other machines, from its folder and the driver's machine."""
    whole = f"{socket.gethostname()}:{folder.resolve()}"
    return f"{folder.resolve().name}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def stack_path(folder: Path, trial_id: str, attempt: int, rank: int) -> Path:
    """Returns the file for the stack of a worker that hangs. The file is empty while the worker proceeds."""
    return folder / "trials" / trial_id / f"attempt-{attempt}.rank-{rank}.stack"


#: Most tries to make a folder.
_TRIES = 10


class OwnFiles:
    """One sweep's files on this machine."""

    def __init__(self, key: str, cache: Path | None = None) -> None:
        """
        Args:
          key: see `key_of`.
          cache: the machine's folder; None takes the usual one, or a temporary one if that is not writable.
        """
        self.folder = (cache or _writable_cache()) / "sweeps" / key

    def trials(self) -> list[str]:
        """Returns the ids of trials that have files here."""
        with contextlib.suppress(OSError):
            return sorted(path.name for path in (self.folder / "trials").iterdir())
        return []

    def clear(self, trial_ids: Iterable[str]) -> None:
        """Deletes all files of some trials."""
        for trial_id in trial_ids:
            shutil.rmtree(self.folder / "trials" / trial_id, ignore_errors=True)

    def make(self, trial_id: str) -> None:
        """Makes the folder of a trial."""
        for _ in range(_TRIES):
            # Another process may call `tidy` between the making of two folders.
            with contextlib.suppress(FileNotFoundError):
                (self.folder / "trials" / trial_id).mkdir(parents=True, exist_ok=True)
                return

    def tidy(self) -> None:
        """Deletes the sweep's folder if it holds nothing."""
        with contextlib.suppress(OSError):
            (self.folder / "trials").rmdir()
            self.folder.rmdir()

    def take_stacks(self, trial_id: str, attempt: int) -> dict[int, str]:
        """Returns the stacks of an attempt's workers that hung, by rank, and deletes their files."""
        found = {}
        for path in (self.folder / "trials" / trial_id).glob(f"attempt-{attempt}.rank-*.stack"):
            with contextlib.suppress(OSError):
                if (match := _STACK.fullmatch(path.name)) and (text := path.read_text("utf-8", "replace")):
                    found[int(match[2])] = text
                path.unlink()
        return found


def _writable_cache() -> Path:
    usual = cache_folder()
    with contextlib.suppress(OSError):
        usual.mkdir(parents=True, exist_ok=True)
        if os.access(usual, os.W_OK):
            return usual
    return Path(tempfile.gettempdir()) / f"vitc-sweep-{os.getuid()}"


class Machines(Protocol):
    """Access to the own files of machines, which may be gone."""

    async def take_stacks(self, node: str, trial_id: str, attempt: int) -> dict[int, str]:
        """Calls `OwnFiles.take_stacks` on a machine. Returns nothing if the machine does not answer."""

    async def clear(self, node: str, trial_ids: list[str]) -> None:
        """Calls `OwnFiles.clear` on a machine. Does nothing if the machine does not answer."""


class OneMachine:
    """The machines of a run that has only this one."""

    def __init__(self, key: str) -> None:
        self._files = OwnFiles(key)

    async def take_stacks(self, node: str, trial_id: str, attempt: int) -> dict[int, str]:
        """See `Machines`."""
        return self._files.take_stacks(trial_id, attempt)

    async def clear(self, node: str, trial_ids: list[str]) -> None:
        """See `Machines`."""
        self._files.clear(trial_ids)
