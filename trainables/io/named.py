"""Local files that a configuration names and that count by their content: `weights.pth#1f0c9a5e77d2b310`.

The digest is added where the name is first read, and everything that is written down has it. So trials are
known by what the files hold and not by where they lie, and a file that has changed since is not taken for the
old one.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from trainables.io.storage import IsPlace

_DIGEST = re.compile(r"#([0-9a-f]{16})$")


class NamedFile(str):
    """A file's absolute path with the digest of what it held when it was first read."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler(str)

    @property
    def path(self) -> str:
        """The absolute path of the file."""
        return _DIGEST.sub("", self)

    @property
    def digest(self) -> str:
        """The digest of its bytes. Empty if it has not been read."""
        found = _DIGEST.search(self)
        return found[1] if found else ""

    @property
    def content(self) -> str:
        """The part that counts for an identity."""
        return self.digest

    def is_unchanged(self) -> bool:
        """Returns whether the file has the same bytes as when it was first read."""
        return digest_of_file(self.path) == self.digest

    def checked_path(self) -> str:
        """Returns the path of the file after a check that its bytes are the same.

        Raises:
          ValueError: the file is gone or has changed.
        """
        found = digest_of_file(self.path)
        if found != self.digest:
            now = f"holds {found}" if found else "is not there"
            raise ValueError(f"{self.path}: {now}, and it held {self.digest} when the run was configured")
        return self.path


class IsFile(IsPlace):
    """Marks the type of text that names a local file which counts by its content."""

    def settled(self, written: str, absolute: Callable[[str], str]) -> str:
        """The text with an absolute path and, where there is such a file, its digest."""
        if NamedFile(written).digest:
            return written
        path = absolute(written)
        digest = digest_of_file(path)
        return f"{path}#{digest}" if digest else path


def digest_of_file(path: str) -> str:
    """A digest of a file's bytes, of 16 hexadecimal digits; empty if there is no such file."""
    try:
        status = os.stat(path)
        return _digest_of_file(path, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError):
        return ""


@functools.lru_cache(maxsize=64)
def _digest_of_file(path: str, modified: int, size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _named(written: str) -> NamedFile:
    named = NamedFile(IsFile().settled(written, os.path.abspath))
    if not named.digest:
        raise ValueError(f"{named.path}: there is no such file")
    return named


#: The name of a local file, which counts by its content.
FileName = Annotated[NamedFile, IsFile(), AfterValidator(_named)]
