"""Atomic writes of files. Imports only the standard library."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path, durable: bool) -> Iterator[IO[bytes]]:
    """Opens a file for writing that atomically replaces `path` at the end of the block.

    A reader sees either the old file or the complete new one. If the block raises, the old file stays.

    Args:
      path: the file; missing folders are made.
      durable: whether the new file must survive a crash of the machine after the block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A random name, because writers on other machines may write the same file.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def write_atomically(path: Path, content: str | bytes, durable: bool = True) -> None:
    """Writes a file so that a reader sees either the old or the complete new content; see `replacing`."""
    with replacing(path, durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(path: Path) -> None:
    """Syncs a folder, so that the names in it survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
