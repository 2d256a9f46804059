"""A copy of a results folder in an object store.

Objects have the names of the files. A copy can be opened whenever it holds sweep.yaml, also after copying
broke off, because objects go in the order in which a run makes the files: the question before the journal
that follows it, weights before the line that promises them. The first copy sends sweep.yaml last. Locks,
leases, checkpoints and files of other programs are left out.

sync.json, at the address only, has the size and digest of each object, so that the next copy sends changes.
"""

import contextlib
import hashlib
import json
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.store.folder import ANALYSES
from orchestrator.store.journal import FolderError, seal_of
from trainables.io.files import replacing, write_atomically
from trainables.io.json import parse_json
from trainables.io.storage import open_filesystem, redacted

QUESTION = "sweep.yaml"
RECORD = "record.json"
#: What belongs to the question besides it and the record, in the order in which runs write it.
CHOICES = ("planned.json", "search.json", "confirm.json", *ANALYSES)
MANIFEST = "report/manifest.json"
INDEX = "sync.json"

_CODE = re.compile(r"code/[0-9a-f]{16}\.py")
_JOURNAL = re.compile(r"journal/[0-9]+\.jsonl")
_WEIGHTS = re.compile(r"trials/[\w-]+/final\.(pt|json)")
_LOGS = re.compile(
    r"trials/[\w-]+/attempt-\d+(\.rank-\d+)?\.(log|stack)(\.1)?|output(\.1)?\.log|mlflow\.json"
)
_REPORT = re.compile(r"report/([^/.\\][^/\\]*/)*[^/.\\][^/\\]*")
_KINDS = (_CODE, _JOURNAL, _WEIGHTS, _LOGS, _REPORT)

#: Most times that a copy begins again, because kept weights were replaced under way.
_TRIES = 5

#: Bytes that are read at a time.
_PART = 2**20


class StoreFault(FolderError):
    """A storage that refuses or does not answer.

    Attributes:
      sent: number of objects that had been written.
    """

    sent = 0


@dataclass(frozen=True, slots=True)
class Copied:
    """The outcome of a copy.

    Attributes:
      files, size: number of files that were copied, and their bytes.
      unchanged: number of files that were there already.
      has_report: whether the copy has the report as it is in the source.
    """

    files: int
    size: int
    unchanged: int
    has_report: bool


class _Changed(Exception):
    """A file that the copy needs has gone since it was listed."""


def sync_up(folder: Path, address: str) -> Copied:
    """Copies a results folder to an object store. A run may be writing to it. Nothing is written there.

    The copy has at least what the journal had at the beginning. If it breaks off, the address has what it had
    before, or more; before the first copy has ended, it has no sweep.yaml.

    Raises:
      FolderError: the folder holds no results, the address is on a disk, or holds the results of another
        sweep or of a later state of this one. Nothing is written then.
      StoreFault: the storage refuses.
      OSError: the folder cannot be read.
    """
    if not (folder / QUESTION).is_file() or not (folder / RECORD).is_file():
        raise FolderError(f"{folder}: holds no results (there is no {QUESTION} or no {RECORD} in it)")
    store = _Objects(address)
    try:
        for _ in range(_TRIES):
            with contextlib.suppress(_Changed):
                return _Upload(folder, store).run()
    except StoreFault as fault:
        fault.sent = store.written
        raise
    raise FolderError(f"{folder}: its kept weights changed during {_TRIES} copies; try again")


def sync_down(address: str, folder: Path) -> Copied:
    """Brings a copy back from an object store. Another machine may be copying to it.

    Raises:
      FolderError: the folder is not empty, the address is on a disk, or has no complete copy. Nothing is
        written then.
      StoreFault: the storage refuses. Nothing stays then.
      OSError: the folder cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderError(f"{folder}: is there already; name a new folder")
    store = _Objects(address)
    for _ in range(_TRIES):
        there = store.names()
        if not {QUESTION, RECORD} <= there.keys():
            what = "an unfinished first copy of a sweep; repeat sync-up" if there else "no copy of a sweep"
            raise FolderError(f"{store.shown}: holds {what}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        try:
            copied = _download(store, there, partial)
            # A folder of `mkdtemp` is for its owner only.
            partial.chmod(0o777 & ~_umask())
            partial.rename(folder)
            return copied
        except _Changed:
            continue
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    raise FolderError(f"{store.shown}: its kept weights changed during {_TRIES} copies; try again")


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


# ---------------------------------------------------------------------------------------------- up


class _Upload:
    """One pass over a folder."""

    def __init__(self, folder: Path, store: "_Objects") -> None:
        self._folder, self._store = folder, store
        self._files = self._size = self._unchanged = 0

    def run(self) -> Copied:
        # A report seals the journal as it was, so it is looked at before the journal, which only grows.
        manifest = _read(self._folder / MANIFEST)
        sealed = _sealed_files(manifest)
        weights_before = _weights(_names(self._folder))
        journal = _cut(self._folder, sealed)
        question = _stable_question(self._folder)
        report = _report(self._folder, manifest, sealed, journal)
        names = _names(self._folder)
        # A run deletes weights once a better trial is on record, which this journal may not have yet.
        if not weights_before <= names:
            raise _Changed

        self._there = self._store.names()
        self._known = self._store.index(self._there)
        self._digests: dict[str, str] = {}
        self._check_same(journal)
        is_first = QUESTION not in self._there

        for name in sorted(filter(_CODE.fullmatch, names)):
            self._send_file(name)
        self._send(RECORD, question[RECORD])
        if not is_first:
            self._send(QUESTION, question[QUESTION])
        for name in CHOICES:
            if name in question:
                self._send(name, question[name])
        # Of two files, final.json says that final.pt is whole.
        for name in sorted(_weights(names), reverse=True):
            self._send_weights(name)
        for name, size in journal.items():
            with (self._folder / name).open("rb") as file:
                self._send(name, file.read(size))
        for name in sorted(filter(_LOGS.fullmatch, names)):
            with contextlib.suppress(FileNotFoundError):
                self._send_file(name)
        if report:
            self._send_report(report)
        if is_first:
            self._send(QUESTION, question[QUESTION])
        for name in self._there.keys() - names:
            if name.startswith("trials/"):
                self._store.delete(name)
        if self._files:
            self._store.write_index(self._digests)
        return Copied(self._files, self._size, self._unchanged, manifest is None or bool(report))

    def _check_same(self, journal: Mapping[str, int]) -> None:
        """Checks that the address has an earlier state of this folder, or nothing.

        Raises:
          FolderError: see `sync_up`.
        """
        shown, folder = self._store.shown, self._folder
        for name in sorted(filter(_JOURNAL.fullmatch, self._there)):
            size = self._there[name].size
            if name not in journal:
                raise FolderError(
                    f"{shown}: holds {name}, which {folder} does not have: it is the copy of another sweep, "
                    "or of a later state of this one. Choose another address, or go on from what is there:  "
                    "vitc-sweep sync-down ADDRESS NEW_FOLDER"
                )
            with (folder / name).open("rb") as file:
                ours = file.read(min(size, journal[name]))
            if len(ours) == size and name in self._known:
                is_same = self._known[name] == _digest(ours)
            else:
                is_same = self._store.read(name)[: len(ours)] == ours
            if not is_same:
                raise FolderError(
                    f"{shown}: holds the results of another sweep ({name} differs from that of {folder}); "
                    "choose another address"
                )
            # After a power cut a file may have lost lines that had been copied. A later file seals it then.
            if len(ours) < size and name == max(journal):
                raise FolderError(
                    f"{shown}: has {size - len(ours)} bytes of {name} that {folder} lacks, so the folder is "
                    "an older state, or lost them in a power cut; they would be overwritten. Go on from what "
                    "is there:  vitc-sweep sync-down ADDRESS NEW_FOLDER"
                )
        strangers = self._store.strangers if not self._there else []
        if strangers:
            raise FolderError(
                f"{shown}: holds other files ({', '.join(strangers[:3])}); add a name for this "
                "sweep to the address"
            )

    def _send_report(self, report: Mapping[str, bytes]) -> None:
        changed = {name: data for name, data in report.items() if not self._is_there(name, data)}
        stale = [name for name in self._there if _REPORT.fullmatch(name) and name not in report]
        # Without a manifest, nobody takes the half of a report for a whole one.
        if (changed or stale) and MANIFEST in self._there:
            self._store.delete(MANIFEST)
            del self._there[MANIFEST]
        for name in stale:
            self._store.delete(name)
        for name, data in report.items():
            if name != MANIFEST:
                self._send(name, data)
        self._send(MANIFEST, report[MANIFEST])

    def _send_weights(self, name: str) -> None:
        # final.json of weights that are being deleted has no final.pt any more.
        if name.endswith(".json") and not (self._folder / name).with_suffix(".pt").exists():
            return
        try:
            self._send_file(name)
        except FileNotFoundError:
            raise _Changed from None

    def _send_file(self, name: str) -> None:
        with (self._folder / name).open("rb") as file:
            # Weights are large, and a file of weights is never shortened.
            if name.endswith(".pt") and os.fstat(file.fileno()).st_size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    self._send(name, content)
            else:
                self._send(name, file.read())

    def _send(self, name: str, data: bytes | mmap.mmap) -> None:
        if self._is_there(name, data):
            self._unchanged += 1
            return
        self._store.write(name, data)
        self._files, self._size = self._files + 1, self._size + len(data)

    def _is_there(self, name: str, data: bytes | mmap.mmap) -> bool:
        self._digests[name] = _digest(data)
        there = self._there.get(name)
        return there is not None and there.size == len(data) and self._known.get(name) == self._digests[name]


def _digest(data: bytes | mmap.mmap) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _names(folder: Path) -> set[str]:
    """Returns the names of the files that belong to a copy, except those at its top."""
    found = set()
    # Folders of checkpoints come and go meanwhile, which `walk` bears.
    for place, _, files in os.walk(folder):
        for file in files:
            name = (Path(place) / file).relative_to(folder).as_posix()
            if any(kind.fullmatch(name) for kind in _KINDS):
                found.add(name)
    return found


def _weights(names: Iterable[str]) -> set[str]:
    return set(filter(_WEIGHTS.fullmatch, names))


def _sealed_files(manifest: bytes | None) -> dict[str, dict[str, Any]]:
    """Returns the files that a report's manifest names. Empty if there is none, or it is damaged."""
    try:
        return dict(parse_json(manifest)["files"]) if manifest else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _cut(folder: Path, sealed: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Returns the bytes to take of each file of the journal, oldest first.

    These are what a later file has sealed, and whole lines of the last file; but at least what the report's
    manifest covers, which may end with a torn line.
    """
    paths = sorted((folder / "journal").glob("*.jsonl"))
    seals: dict[str, int] = {}
    for path in paths:
        for name, size in (seal_of(path) or {}).items():
            seals[name] = min(size, seals.get(name, size))
    cut = {}
    for path in paths:
        name, data = f"journal/{path.name}", path.read_bytes()
        size = seals.get(path.name, data.rfind(b"\n") + 1)
        cut[name] = min(len(data), max(size, int(sealed.get(name, {}).get("bytes", 0))))
    return cut


def _stable_question(folder: Path) -> dict[str, bytes]:
    """Returns the question, the record and the choices of one moment."""
    before: dict[str, bytes] = {}
    while True:
        read = {name: _read(folder / name) for name in (QUESTION, RECORD, *CHOICES)}
        now = {name: data for name, data in read.items() if data is not None}
        if now == before:
            return now
        before = now


def _report(
    folder: Path, manifest: bytes | None, sealed: Mapping[str, Mapping[str, Any]], journal: Mapping[str, int]
) -> dict[str, bytes]:
    """Returns the files of a report, its manifest last.

    Empty if a file is not as sealed, as while the report is written.
    """
    report = {}
    for name, seal in sealed.items():
        if _JOURNAL.fullmatch(name) and journal.get(name, 0) < seal.get("bytes", 0):
            return {}
        if _REPORT.fullmatch(name):
            data = _read(folder / name)
            if data is None or _digest(data) != seal.get("sha256"):
                return {}
            report[name] = data
    return report | {MANIFEST: manifest} if report and manifest else {}


# ---------------------------------------------------------------------------------------------- down


def _download(store: "_Objects", there: Mapping[str, "_Object"], target: Path) -> Copied:
    """Brings all of a copy into an empty folder.

    The journal comes before what was sent before it, so that it promises nothing that is not there.
    """
    files = size = 0

    def bring(name: str) -> None:
        nonlocal files, size
        with replacing(target / name, durable=False) as file:
            for part in store.parts(name):
                size += file.write(part)
        files += 1

    manifest = store.read(MANIFEST) if MANIFEST in there else None
    for name in sorted(filter(_JOURNAL.fullmatch, there)):
        bring(name)
    # Listed again, because the files just read may promise others that have come meanwhile.
    before, there = there, store.names()
    if not _weights(before) <= there.keys():
        raise _Changed
    # sweep.yaml first, because the record was sent before it.
    for name in (QUESTION, RECORD, *CHOICES):
        if name in there:
            bring(name)
    for kind in (_CODE, _WEIGHTS, _LOGS):
        for name in sorted(filter(kind.fullmatch, there)):
            bring(name)
    sealed = _sealed_files(manifest)
    for name in filter(_REPORT.fullmatch, sealed):
        if name in there:
            bring(name)
    cut = {f"journal/{path.name}": path.stat().st_size for path in (target / "journal").glob("*.jsonl")}
    report = _report(target, manifest, sealed, cut)
    if report:
        write_atomically(target / MANIFEST, report[MANIFEST], durable=False)
        files, size = files + 1, size + len(report[MANIFEST])
    else:
        shutil.rmtree(target / "report", ignore_errors=True)
    return Copied(files, size, 0, bool(report))


# ---------------------------------------------------------------------------------------------- the store


@dataclass(frozen=True, slots=True)
class _Object:
    size: int
    #: Time of its last writing in ns.
    time: int


class _Objects:
    """The objects of one copy.

    Attributes:
      shown: the address for messages.
      strangers: other names at the top of the address, as of the last `names`.
      written: number of objects written or deleted.
    """

    def __init__(self, address: str) -> None:
        """
        Raises:
          DataError: no file system handles such an address.
          FolderError: it is on a disk.
        """
        self.shown = redacted(address)
        filesystem, root = open_filesystem(address)
        if filesystem.type_name == "local":
            raise FolderError(
                f"{self.shown}: is on a disk, not in an object store; copy it with `cp -r` or `rsync -a`"
            )
        self._filesystem, self._root = filesystem, root.rstrip("/")
        self.strangers: list[str] = []
        self.written = 0

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        # ArrowInvalid is a ValueError.
        except (OSError, ValueError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise StoreFault(f"{self.shown}: {redacted(said)}") from error

    def names(self) -> dict[str, _Object]:
        """Returns the objects that belong to a copy by their names."""
        import pyarrow.fs

        with self._asking():
            top = self._filesystem.get_file_info(pyarrow.fs.FileSelector(self._root, allow_not_found=True))
            own = {QUESTION, RECORD, INDEX, *CHOICES, "analysis", "code", "journal", "trials", "report"}
            self.strangers = sorted(info.base_name for info in top if info.base_name not in own)
            if len(self.strangers) == len(top):
                return {}
            selector = pyarrow.fs.FileSelector(self._root, recursive=True, allow_not_found=True)
            infos = self._filesystem.get_file_info(selector)
        found = {}
        for info in infos:
            name = info.path.removeprefix(self._root + "/")
            is_ours = name in (QUESTION, RECORD, INDEX, *CHOICES) or any(k.fullmatch(name) for k in _KINDS)
            if info.is_file and is_ours:
                found[name] = _Object(info.size, info.mtime_ns or 0)
        return found

    def read(self, name: str) -> bytes:
        return b"".join(self.parts(name))

    def parts(self, name: str) -> Iterator[bytes]:
        """Yields the content of an object.

        Raises:
          _Changed: it is gone.
        """
        with self._asking():
            try:
                stream = self._filesystem.open_input_stream(f"{self._root}/{name}")
            except FileNotFoundError:
                raise _Changed from None
        with stream:
            while True:
                with self._asking():
                    part = stream.read(_PART)
                if not part:
                    return
                yield part

    def write(self, name: str, data: bytes | mmap.mmap) -> None:
        """Writes an object, which others see once it is whole."""
        # In a thread, because Ctrl-C between two of its lines would close the stream early, and so leave an
        # empty object.
        with ThreadPoolExecutor(1) as thread, self._asking():
            thread.submit(self._write, f"{self._root}/{name}", data).result()
        self.written += 1

    def _write(self, path: str, data: bytes | mmap.mmap) -> None:
        with self._filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def delete(self, name: str) -> None:
        with self._asking(), contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._root}/{name}")
        self.written += 1

    def index(self, there: Mapping[str, _Object]) -> dict[str, str]:
        """Returns the digests of objects that are still as the index says."""
        content = self.read(INDEX) if INDEX in there else b""
        try:
            entries = parse_json(content)["files"]
            return {
                name: entries[name]["sha256"]
                for name, at in there.items()
                if name in entries and (entries[name]["bytes"], entries[name]["time"]) == (at.size, at.time)
            }
        except (ValueError, KeyError, TypeError):
            return {}

    def write_index(self, digests: Mapping[str, str]) -> None:
        """Notes the digests of objects that were written, with their times."""
        files = {
            name: {"bytes": at.size, "time": at.time, "sha256": digests[name]}
            for name, at in self.names().items()
            if name in digests
        }
        self.write(INDEX, json.dumps({"files": files}, indent=1).encode())
