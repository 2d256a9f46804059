"""The manifest that seals a report: which files count, and their digests."""

import contextlib
import functools
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from orchestrator.cost.ledger import ledger
from orchestrator.report.page import write_report
from orchestrator.store.folder import Folder, open_folder
from orchestrator.store.journal import FolderError
from orchestrator.store.provenance import provenance, source_root
from trainables.base import Frozen
from trainables.io.files import write_atomically

MANIFEST = "report/manifest.json"
QUESTION_FILES = ("sweep.yaml", "search.json", "confirm.json", "record.json", "planned.json")

#: Of one file: after so many differences the others are counted only.
MAX_SHOWN = 20

#: What decides a report's bytes, besides our own code and the processor.
_LIBRARIES = ("numpy", "scipy", "matplotlib", "jinja2", "pydantic")


# ---------------------------------------------------------------------------------------------- the seal


class Sealed(Frozen):
    """A file as it was when it was sealed."""

    bytes: int
    sha256: str
    #: The first eight digits of each line's SHA-256, in one string: they tell which line was changed.
    lines: str | None = None


class Manifest(Frozen):
    """What was sealed: files by their path in the folder, and what ran the trials and wrote the report."""

    format: Literal[1] = 1
    files: dict[str, Sealed]
    ran_with: dict[str, Any]
    written_with: dict[str, Any]


def seal(folder: Path) -> Path:
    """Writes the manifest of a folder whose report has just been written.

    For a folder that no `run` writes to: one that grows meanwhile is what `write_sealed_report` is for.

    Returns:
      The path of the manifest.

    Raises:
      FolderError: the folder holds no report.
    """
    if not (folder / "report" / "report.html").is_file():
        raise FolderError(f"{folder}: holds no report; write it with  vitc-sweep report {folder}")
    files: dict[str, Sealed] = {}
    for name in evidence_files(folder):
        data = (folder / name).read_bytes()
        files[name] = Sealed(
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            lines=None if name.startswith("report/") else "".join(line_digests(data)),
        )
    record = json.loads((folder / "record.json").read_bytes())
    ran_with = {key: record[key] for key in ("code", "python", "versions") if key in record}
    manifest = Manifest(files=files, ran_with=ran_with, written_with=environment())
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=1, ensure_ascii=False)
    write_atomically(folder / MANIFEST, text + "\n")
    return folder / MANIFEST


def fingerprint(folder: Path) -> str | None:
    """The SHA-256 of a folder's manifest, None if it has none."""
    path = folder / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def evidence_files(folder: Path) -> list[str]:
    """Every file that counts, but for the manifest, by its path in the folder; sorted."""
    names = [name for name in QUESTION_FILES if (folder / name).is_file()]
    names += [f"journal/{path.name}" for path in (folder / "journal").glob("*.jsonl")]
    for path in (folder / "report").rglob("*"):
        name = path.relative_to(folder).as_posix()
        # Names that begin with a dot are files that are being written.
        if path.is_file() and name != MANIFEST and not path.name.startswith("."):
            names.append(name)
    return sorted(names)


def line_digests(data: bytes) -> list[str]:
    return [hashlib.sha256(line).hexdigest()[:8] for line in data.splitlines(keepends=True)]


def environment() -> dict[str, Any]:
    """What a report's bytes depend on besides its input."""
    here = provenance()
    versions = {}
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return {
        "code": here["code"],
        "source": _source_digest(),
        "python": here["python"],
        "versions": versions,
        "processor": here["machine"]["processor"],
    }


@functools.cache  # what this process has loaded does not change when the files do
def _source_digest() -> str:
    return source_digest(source_root())


def source_digest(root: Path) -> str:
    """A digest of our own code as it is installed in a folder, sub-packages included, with or without git."""
    digest = hashlib.sha256()
    for package in ("orchestrator", "trainables"):
        for path in sorted((root / package).rglob("*")):
            if path.suffix in (".py", ".j2"):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------- the report


def report_details(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of record.json a report prints at its end."""
    keys = ("created", "code", "python", "versions", "machine", "sources", "notices")
    return {key: record[key] for key in keys if key in record}


def write_report_into(opened: Folder, copy: Path) -> None:
    details, spent = report_details(opened.record), ledger(opened.events)
    write_report(
        opened.plan,
        opened.records,
        copy / "report",
        details,
        spent if spent.total else None,
        opened.planned,
    )


def write_sealed_report(folder: Path) -> Path:
    """Writes the report of a sweep folder, and seals it; the sweep may be running.

    Question, record and journal are copied once, and everything follows from the copy. Files that an
    earlier report left and this one lacks are removed; files that no report wrote are not touched.

    Returns:
      The path of report.html.

    Raises:
      FolderError: the folder is no sweep, or is damaged beyond use.
    """
    old = _old_files(folder)
    with tempfile.TemporaryDirectory(prefix="vitc-sweep-") as place:
        copy = Path(place) / "sweep"
        names = [name for name in evidence_files(folder) if not name.startswith("report/")]
        for name in names:
            write_bytes(copy / name, (folder / name).read_bytes())
        with speaking_of(copy, folder):
            opened = open_folder(copy)
        write_report_into(opened, copy)
        seal(copy)
        new = [name for name in evidence_files(copy) if name.startswith("report/")]
        # The manifest last: a report without its own is found out, one with another's is, too.
        for name in [*new, MANIFEST]:
            write_atomically(folder / name, (copy / name).read_bytes())
    for name in old - set(new):
        (folder / name).unlink(missing_ok=True)
    return folder / "report" / "report.html"


def _old_files(folder: Path) -> set[str]:
    """Files of the report that is there, as its manifest lists them."""
    try:
        manifest = read_manifest(folder)
    except FolderError:
        return set()
    return {name for name in manifest.files if name.startswith("report/")} if manifest else set()


def write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@contextlib.contextmanager
def speaking_of(copy: Path, folder: Path) -> Iterator[None]:
    """Lets errors name the folder that people know instead of its copy."""
    try:
        yield
    except FolderError as error:
        raise FolderError(str(error).replace(str(copy), str(folder))) from error


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest, None if there is none.

    Raises:
      FolderError: it is damaged, or names files outside the folder.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, ValueError) as error:
        raise FolderError(f"is damaged: {str(error).splitlines()[0]}") from error
    if strange := [name for name in manifest.files if is_unsafe(name) or not belongs(name)]:
        raise FolderError(f"names files that are no part of a sweep: {', '.join(strange[:3])}")
    return manifest


def is_unsafe(name: str) -> bool:
    """Whether a name leads anywhere but down."""
    parts = name.split("/")
    return any(part in ("", ".", "..") or "\\" in part or "\0" in part or ":" in part for part in parts)


def belongs(name: str) -> bool:
    """Whether a path in a folder is one that a bundle holds."""
    return (
        name in QUESTION_FILES
        or re.fullmatch(r"journal/[0-9]+\.jsonl", name) is not None
        or re.fullmatch(r"report/([^/]+/)*[^/.][^/]*", name) is not None
    )
