"""The folders that a run on this machine needs. Imports no Ray, because they are checked before preflight."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainables.errors import UserError

#: The longest path below its folder that Ray gives to a socket, and the longest path that a socket can have.
_LONGEST_BELOW = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.10"
_SOCKET_BYTES = 107


class NoFolder(UserError):
    """This machine has no folder for temporary files."""


def ray_folder(environment: Mapping[str, str] | None = None, system: Path = Path("/")) -> str:
    """Returns the folder for the files of a Ray cluster on this machine.

    It is where Ray itself puts them, unless that cannot be written to, or its path is so long that sockets
    below it cannot be opened. Then it is one of the system's own folders.

    Args:
      environment: the variables RAY_TMPDIR and TMPDIR; of this process if None.
      system: root of the file system.

    Raises:
      NoFolder: there is none.
    """
    tried = []
    for place in _candidates(os.environ if environment is None else environment, system):
        if len(os.fsencode(place + _LONGEST_BELOW)) > _SOCKET_BYTES:
            tried.append(f"{place}: too long a path for sockets")
        elif not _is_writable(Path(place)):
            tried.append(f"{place}: cannot be written to")
        else:
            return place
    raise NoFolder(
        "no folder for the files of Ray; set RAY_TMPDIR to a folder on this machine with a path of at most "
        f"{_SOCKET_BYTES - len(_LONGEST_BELOW) - len('/ray')} bytes:\n  " + "\n  ".join(dict.fromkeys(tried))
    )


def check_temporary_folder() -> None:
    """Checks that this process can make temporary files.

    Raises:
      NoFolder: it cannot.
    """
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise NoFolder(f"no folder for temporary files; set TMPDIR: {error.strerror or error}") from error


def _candidates(environment: Mapping[str, str], system: Path) -> Iterator[str]:
    tmp = str(system / "tmp")
    # Ray's own rule. It takes an empty value as it is.
    yield os.path.join(environment.get("RAY_TMPDIR", environment.get("TMPDIR", tmp)), "ray")
    for folder in ("tmp", "var/tmp", "dev/shm"):
        yield str(system / folder / "ray")
        # `ray` can belong to another user.
        yield str(system / folder / f"ray-{os.getuid()}")


def _is_writable(folder: Path) -> bool:
    """Returns whether this process can write into an absolute folder, which may not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_absolute() and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
