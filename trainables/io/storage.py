"""Storage at a path or URI: opens file systems, writes durably, and keeps secrets out of addresses.

This module imports nothing heavy, because processes that only pass messages on delete files as well.
"""

import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, cast
from urllib.parse import parse_qsl

from pydantic import AfterValidator

from trainables.base import DataError
from trainables.io.files import replacing

if TYPE_CHECKING:
    import pyarrow.fs

#: Names of query parameters whose values are secrets: `secret_key`, `X-Amz-Signature`, `sas_token`, `sig`.
_SECRET_NAME = re.compile(
    r"secret|passw|pwd|token|signature|credential|access_?key|api_?key|^sig$|^key$", re.I
)

#: `user:password@`. A password may contain unescaped slashes and at signs. Digits before a slash are a port.
_USERINFO = re.compile(r"(?<=//)[^/\s?#@:]*:(?!\d+/)[^\s?#'\"]*@")

_PARAMETER = re.compile(r"(?<=[?&])([^=&\s]+)=([^&\s'\"]+)")


def secret_in(uri: str) -> str:
    """Describes the secret that an address contains. Returns "" if there is none.

    A user without a password is not a secret: `gs://anonymous@bucket`, `abfs://container@account...`.
    """
    if "://" not in uri:
        return ""
    if _USERINFO.search(uri):
        return "a password"
    names = [name for name, _ in parse_qsl(uri.partition("?")[2])]
    return next((f"the secret {name!r}" for name in names if _SECRET_NAME.search(name)), "")


def redacted(text: str) -> str:
    """Removes users, passwords and the values of secret query parameters from all addresses in a text."""
    return _PARAMETER.sub(
        lambda found: f"{found[1]}=***" if _SECRET_NAME.search(found[1]) else found[0],
        _USERINFO.sub("***@", text),
    )


def without_secret(uri: str) -> str:
    """Returns the address unchanged.

    Raises:
      ValueError: the address contains a secret. Hiding the secret would not be enough, because a sweep's
        folder, journals, trackers and bundles for other people store addresses to open them again.
    """
    if kind := secret_in(uri):
        raise ValueError(
            f"carries {kind}, which records and logs would keep: leave it out, and let every machine have it "
            "from its environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, a role)"
        )
    return uri


def inside(place: str, *names: str) -> str:
    """Returns the address of something in a folder. A query stays at the end: `s3://bucket/a/b?region=x`."""
    path, mark, query = _parts(place)
    head = path.rstrip("/")
    if head.endswith(":"):  # `file:///`
        head += "//"
    return "/".join([head, *names]) + mark + query


def last_name(place: str) -> str:
    """Returns the name of a file or folder, which is the last part of its path."""
    return posixpath.basename(_parts(place)[0].rpartition("://")[2].rstrip("/"))


def _parts(place: str) -> tuple[str, str, str]:
    # In a local path, a question mark is a character like any other.
    return place.partition("?") if "://" in place else (place, "", "")


def unusable(uri: str) -> str:
    """Describes why an address cannot be opened as it is meant. Returns "" if nothing speaks against it.

    pyarrow drops these parts without a message, and so opens another place. Unknown parameters of a query
    are left to pyarrow, which names them.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return ""
    path, _, query = rest.partition("?")
    if "#" in path:
        return "has a '#', and what follows it would be dropped: write %23 in a name"
    if scheme == "file":
        return "has a query after '?', which a file has none of: write %3F in a name" if query else ""
    if scheme in ("s3", "gs", "gcs") and not path.partition("/")[0]:
        return f"names no bucket after {scheme}://"
    return ""


def _same_everywhere(place: str) -> str:
    if not place.startswith("/") and "://" not in place:
        raise ValueError("must be an absolute path or a URI: a relative one is another in every process")
    if fault := unusable(place):
        raise ValueError(fault)
    return place


class IsPlace:
    """Marks text that names a path or URI, so that readers of files make relative paths in it absolute."""

    def settled(self, written: str, absolute: Callable[[str], str]) -> str:
        """The text as every process understands it; `absolute` makes a path absolute."""
        return absolute(written)


#: A path or URI that a file names.
Place = Annotated[str, IsPlace(), AfterValidator(without_secret)]

#: A path or URI that several machines open.
SharedPlace = Annotated[Place, AfterValidator(_same_everywhere)]


def open_filesystem(path: str) -> "tuple[pyarrow.fs.FileSystem, str]":
    """Returns the file system of a path or URI, and the path inside it.

    Raises:
      DataError: pyarrow does not support the URI, or the URI contains a password or key, or parts that
        pyarrow would drop.
    """
    import pyarrow.fs

    try:
        if "://" in without_secret(path):
            if fault := unusable(path):
                raise ValueError(fault)
            filesystem, inner = pyarrow.fs.FileSystem.from_uri(path)
            return filesystem, inner
        return pyarrow.fs.LocalFileSystem(), str(Path(os.path.expanduser(path)).resolve())
    # ArrowInvalid is a ValueError.
    except (ValueError, OSError) as error:
        raise DataError(f"{redacted(path)}: {redacted(str(error))}") from error
    # Schemes such as hf:// are opened by packages of their own, which raise errors of their own.
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{redacted(path)}: cannot be opened: {redacted(told)[:300]}") from error


def holds(address: str, content: str) -> bool:
    """Returns whether a file has this content. A storage that does not answer has none."""
    try:
        filesystem, path = open_filesystem(address)
        with filesystem.open_input_stream(path) as stream:
            return bool(stream.read() == content.encode())
    except (DataError, OSError):
        return False


def write_durably(
    filesystem: "pyarrow.fs.FileSystem", path: str, write: Callable[[IO[bytes]], object]
) -> None:
    """Writes a file atomically and durably.

    It is written under a name that ends in `.part` and then moved. An object store receives it in one upload
    instead.

    Raises:
      OSError: the storage refuses the write.
    """
    import pyarrow.fs

    if not isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        with filesystem.open_output_stream(path) as stream:
            write(cast(IO[bytes], stream))
        return
    with replacing(Path(path), durable=True) as file:
        write(file)
