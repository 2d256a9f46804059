"""Copies of large or distant data sets on this machine: one of each, made by one process, within a limit.

A copy is a folder in the cache. Whoever uses it holds a shared lock on the file beside it, and whoever makes
or deletes it an exclusive one. Locks end with their processes, however these end.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from trainables.base import DataError
from trainables.io.machine import CACHE_LIMIT, cache_folder, cache_limit

#: Without a limit, this share of the disk stays free.
_FREE_SHARE = 0.05


def held_copy(key: str, num_bytes: int, make: Callable[[Path], None]) -> tuple[Path, IO[str]]:
    """Returns the copy of a key, and what holds it: as long as that is open, the copy stays.

    The first process makes the copy, and others wait for it. A copy that a killed process has left
    half-made is made anew. Copies that nobody holds are deleted to make room, least recently used first.

    Args:
      key: what the copy is of.
      num_bytes: about the size of the copy.
      make: writes the copy into an empty folder.

    Raises:
      DataError: there is no room, or the folder cannot be written.
    """
    root = cache_folder() / "copies"
    place = root / key
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f"{key}.lock").open("a", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{root}: {error.strerror}; VITC_SWEEP_CACHE names another folder") from error
    try:
        while True:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if place.exists():
                os.utime(place)
                return place, lock
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not place.exists():
                _make(place, num_bytes, make)
            # Another process may delete the copy before it is held: then once more.
    except OSError as error:
        lock.close()
        raise DataError(f"{place}: {error.strerror or error}") from error
    except BaseException:
        lock.close()
        raise


def _make(place: Path, num_bytes: int, make: Callable[[Path], None]) -> None:
    partial = place.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    with (place.parent / "room").open("a", encoding="utf-8") as room:
        fcntl.flock(room, fcntl.LOCK_EX)
        _make_room(place.parent, num_bytes)
        partial.mkdir()
        # Others that make room meanwhile count the copy as a whole.
        (partial / "bytes").write_text(str(num_bytes), "ascii")
    try:
        make(partial)
        os.replace(partial, place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _make_room(root: Path, num_bytes: int) -> None:
    """Deletes copies until another one has room.

    Raises:
      DataError: it has none.
    """
    sizes: dict[Path, int] = {}
    for path in [path for path in root.iterdir() if path.is_dir()]:
        if path.suffix == ".part":
            with _unused(path) as is_unused:
                if is_unused:  # of a process that was killed
                    shutil.rmtree(path, ignore_errors=True)
                    continue
        sizes[path] = _size(path)
    limit = _limit(root, sum(sizes.values()))
    if num_bytes > limit:
        raise DataError(
            f"{root}: a copy of the data takes {_gb(num_bytes)}, and the limit is {_gb(limit)}: raise "
            f"{CACHE_LIMIT}, or name a folder on a larger disk by VITC_SWEEP_CACHE"
        )
    for path in sorted(sizes, key=lambda path: path.stat().st_mtime_ns if path.exists() else 0):
        if sum(sizes.values()) + num_bytes <= limit:
            return
        with _unused(path) as is_unused:
            if is_unused:
                # Renamed first, because a copy of which half is deleted would be taken for a whole one.
                os.replace(path, path.with_suffix(".part"))
                shutil.rmtree(path.with_suffix(".part"), ignore_errors=True)
                del sizes[path]
    if sum(sizes.values()) + num_bytes > limit:
        raise DataError(
            f"{root}: a copy of the data takes {_gb(num_bytes)}, the limit is {_gb(limit)}, and copies of "
            f"{_gb(sum(sizes.values()))} are in use: raise {CACHE_LIMIT}, or run fewer data sets at a time"
        )


@contextlib.contextmanager
def _unused(path: Path) -> Iterator[bool]:
    """Holds a copy exclusively for the block, and yields True, unless a process holds it."""
    with path.with_suffix(".lock").open("a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _size(path: Path) -> int:
    written = sum(file.stat().st_size for file in path.iterdir() if file.is_file()) if path.exists() else 0
    if path.suffix != ".part":
        return written
    # The file may not be there yet.
    with contextlib.suppress(OSError, ValueError):
        return max(written, int((path / "bytes").read_text("ascii")))
    return written


def _limit(root: Path, used: int) -> float:
    try:
        limit = cache_limit()
    except ValueError as error:
        raise DataError(f"{CACHE_LIMIT}: {error}") from error
    if limit is not None:
        return limit
    disk = shutil.disk_usage(root)
    return used + disk.free - _FREE_SHARE * disk.total


def _gb(num_bytes: float) -> str:
    return f"{max(num_bytes, 0) / 1e9:,.3g} GB"
