"""A sweep's evidence as one archive, packed and unpacked safely."""

import contextlib
import gzip
import io
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from orchestrator.evidence.seal import MANIFEST, MAX_SHOWN, belongs, evidence_files, is_unsafe
from orchestrator.store.folder import check_sweep
from orchestrator.store.journal import FolderError

#: Limit on an unpacked archive. A sweep of 10,000 trials of 100 epochs has about 400 MB.
MAX_BUNDLE_BYTES = 4 * 2**30
MAX_BUNDLE_FILES = 100_000
#: Limit on a single read, because only a forged header requests more.
_MAX_READ_BYTES = 2**24


# ---------------------------------------------------------------------------------------------- bundles


def bundle(folder: Path, target: Path) -> Path:
    """Packs question, record, journal, report and manifest into one archive, which `verify` accepts.

    Checkpoints, tracebacks, locks and links to a tracker are left out. The same folder gives the same bytes.

    Args:
      folder: a sweep folder with a sealed report.
      target: a file name that ends in .tar.gz, or a folder that receives <folder's name>.tar.gz.

    Returns:
      The path of the archive.

    Raises:
      FolderError: the folder is no sweep or has no sealed report, a file in it is a link, or the target does
        not end in .tar.gz.
    """
    top = folder.resolve().name
    if target.is_dir():
        target = target / f"{top}.tar.gz"
    if not target.name.endswith(".tar.gz"):
        raise FolderError(f"{target}: a bundle's name must end in .tar.gz")
    check_sweep(folder)
    if not (folder / MANIFEST).is_file():
        raise FolderError(f"{folder}: has no sealed report; write it with  vitc-sweep report {folder}")
    names = sorted([*evidence_files(folder), MANIFEST])
    if links := [name for name in names if (folder / name).is_symlink()]:
        raise FolderError(f"{folder}: links are not packed: {', '.join(links)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        # The headers have no file name, time or owner, because the same folder must give the same bytes.
        with (
            partial.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in names:
                data = (folder / name).read_bytes()
                member = tarfile.TarInfo(f"{top}/{name}")
                member.size, member.mode = len(data), 0o644
                archive.addfile(member, io.BytesIO(data))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


class _Bounded(gzip.GzipFile):
    """A compressed stream with a limit on its content and on a single read."""

    limit = MAX_BUNDLE_BYTES

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ_BYTES:
            raise FolderError(f"has a header that asks for {size} bytes")
        data = super().read(size)
        if self.tell() > self.limit:
            raise FolderError(f"unpacks to more than the {self.limit} bytes a bundle may")
        return data


def open_bundle(path: Path, into: Path, max_bytes: int = MAX_BUNDLE_BYTES) -> Path:
    """Unpacks a bundle from an untrusted source.

    It accepts only regular files of a sweep, by their own names, under one folder. All names and sizes are
    checked before anything is written.

    Args:
      path: path of the archive.
      into: the folder that receives the sweep's folder.
      max_bytes: limit on the unpacked size, headers included.

    Returns:
      The path of the sweep's folder.

    Raises:
      FolderError: the file is no bundle, it contains files that are no part of a sweep (the message names up
        to MAX_SHOWN), it is larger than allowed, or the folder exists.
    """
    try:
        top = _look_through(path, max_bytes)
        if (into / top).exists():
            raise FolderError(f"{into / top} exists already")
        with _opened(path, max_bytes) as archive:
            for member in archive:
                # Written by hand, because the safe filter of `extract` needs Python 3.11.4 or later.
                target, source = into / member.name, archive.extractfile(member)
                assert source is not None, "plain files alone get so far"
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, target.open("xb") as file:
                    shutil.copyfileobj(source, file)
    except FolderError as error:
        raise FolderError(f"{path}: {error}") from error
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise FolderError(f"{path}: is no readable bundle: {error}") from error
    return into / top


@contextlib.contextmanager
def _opened(path: Path, max_bytes: int) -> Iterator[tarfile.TarFile]:
    with _Bounded(path) as stream:
        # The limit is on the stream, because the blocks of zeros at the end of an archive count, too.
        stream.limit = max_bytes
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            yield archive


def _look_through(path: Path, max_bytes: int) -> str:
    """Checks all members of an archive and returns the name of its folder."""
    faults: list[str] = []
    names: list[str] = []
    size = 0
    with _opened(path, max_bytes) as archive:
        for member in archive:
            size += member.size
            names.append(member.name)
            if member.size < 0 or size > max_bytes:
                raise FolderError(f"unpacks to more than the {max_bytes} bytes a bundle may")
            if len(names) > MAX_BUNDLE_FILES:
                raise FolderError(f"holds more than the {MAX_BUNDLE_FILES} files a bundle may")
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                faults.append(f"{member.name!r} is no plain file")
            elif is_unsafe(member.name) or not belongs("/".join(PurePosixPath(member.name).parts[1:])):
                faults.append(f"{member.name!r} is no part of a sweep")
        # Reads to the end of the stream, because the checksum is there.
        stream = archive.fileobj
        assert stream is not None
        while stream.read(2**20):
            pass
    if len(tops := {PurePosixPath(name).parts[0] for name in names if not is_unsafe(name)}) > 1:
        faults.append(f"holds more than one folder: {', '.join(sorted(tops))}")
    faults += [f"{name!r} occurs {count} times" for name, count in Counter(names).items() if count > 1]
    if faults:
        shown = "; ".join(faults[:MAX_SHOWN])
        raise FolderError(f"is no bundle that may be unpacked: {shown}")
    if not names:
        raise FolderError("is empty")
    return tops.pop()
