"""Files that are there whole or not at all. Imports nothing but the standard library."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path, durable: bool) -> Iterator[IO[bytes]]:
    """Opens a file for writing that takes the place of `path`, whole, at the end of the block.

    A reader sees the old one or the new one. If the block raises, the old one stays.

    Args:
      path: the file; missing folders are made.
      durable: whether it must survive a crash of the machine from then on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that no other writer of the same file has, on whatever machine.
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
    """Writes a file so that a reader sees the old one or the new one, whole; see `replacing`."""
    with replacing(path, durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
