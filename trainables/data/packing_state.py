"""The folder of an import that is under way, by which it goes on after it was stopped or killed.

It holds a Parquet file and a record of each part that is done, and a manifest that says of which files and
with which settings. Complete files are moved from it to their places at the end.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainables.base import DataError
from trainables.io.files import sync_folder, write_atomically

#: A change of what this folder or a part holds. Parts of another version are not gone on with.
_FORMAT = 1


def stamp_of(files: Sequence[tuple[str, int, int, int]]) -> str:
    """Returns a digest of source files: names, class numbers, sizes in bytes and times of change."""
    digest = hashlib.sha256()
    for name, *numbers in files:
        digest.update(f"{len(name)} {name} {numbers}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


class State:
    """The folder of one import. It is held by one process at a time, from `hold` until the process ends."""

    def __init__(self, folder: Path, files: str, settings: Mapping[str, Any]) -> None:
        """
        Args:
          folder: where it is, or will be; on the file system of the result.
          files: digest of the source files.
          settings: all that decides the bytes of the result, besides the source files.
        """
        self.folder = folder
        manifest = {"format": _FORMAT, "files": files, "settings": dict(settings)}
        # As it is read again.
        self._manifest: dict[str, Any] = json.loads(json.dumps(manifest))

    def is_publishing(self) -> bool:
        """Returns whether an import of these files and settings has begun to move files to their places."""
        return self._found() == self._manifest and self._moves.exists()

    def hold(self) -> str:
        """Makes the folder and its manifest, or takes over what an import has left there.

        Returns:
          Why what was there cannot be used and has been deleted. "" if it can be used, or nothing was there.

        Raises:
          DataError: another import holds it.
          OSError: it cannot be written.
        """
        shutil.rmtree(self._gone, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        # Open until the process ends.
        self._lock = (self.folder / "lock").open("a", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{self.folder}: another import is writing there") from None
        found = self._found()
        fault = "" if found == self._manifest else self._difference(found)
        for path in self.folder.iterdir():
            # Of a writer that was killed, `replacing` leaves a hidden file.
            if path.name != "lock" and (found != self._manifest or path.name.startswith(".")):
                path.unlink()
        write_atomically(self.folder / "manifest.json", json.dumps(self._manifest))
        return fault

    def _found(self) -> Any:
        try:
            return json.loads((self.folder / "manifest.json").read_bytes())
        except (OSError, ValueError):
            return None

    def _difference(self, found: Any) -> str:
        if found is None:
            return ""
        settings = found.get("settings", {})
        changed = [name for name, value in self._manifest["settings"].items() if settings.get(name) != value]
        if changed:
            return f"{', '.join(name.replace('_', ' ') for name in changed)} differ"
        return "files of the tree have changed"

    def publish(self, moves: Sequence[tuple[str, Path]]) -> None:
        """Moves complete files to their places, and deletes the folder. What a killed import moved stays.

        Args:
          moves: names in the folder, and the places.

        Raises:
          DataError: a file that has been moved is gone.
          OSError: a file cannot be moved.
        """
        # From here on, files that are missing have been moved.
        write_atomically(self._moves, "")
        for name, place in moves:
            if (self.folder / name).exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.folder / name, place)
            elif not place.exists():
                raise DataError(f"{place}: an import has written it, and it is gone: delete {self.folder}")
        for folder in {place.parent for _, place in moves}:
            sync_folder(folder)
        self.discard()

    @property
    def _moves(self) -> Path:
        return self.folder / "moves"

    @property
    def _gone(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.gone")

    def discard(self) -> None:
        """Deletes the folder."""
        # At once for others, because a folder of which half is deleted would be gone on with.
        os.replace(self.folder, self._gone)
        shutil.rmtree(self._gone, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Lets other processes hold the folder."""
        self._lock.close()
