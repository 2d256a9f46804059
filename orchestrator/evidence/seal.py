"""The seal of a report: a manifest of the files that count and their digests."""

import contextlib
import functools
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from orchestrator.cost.ledger import ledger
from orchestrator.evidence.analyses import load_collapse
from orchestrator.report.document import device_rows
from orchestrator.report.page import write_report
from orchestrator.store.folder import ANALYSES, Folder, open_folder
from orchestrator.store.journal import FolderError
from orchestrator.store.provenance import provenance, source_root
from trainables.base import Frozen
from trainables.io.code import COPIES
from trainables.io.files import write_atomically
from trainables.io.json import parse_json

MANIFEST = "report/manifest.json"
QUESTION_FILES = ("sweep.yaml", "search.json", "confirm.json", "record.json", "planned.json")

#: Number of differences that are listed per file; further ones are only counted.
MAX_SHOWN = 20

#: Libraries that affect a report's bytes, besides our own code and the processor.
_LIBRARIES = ("numpy", "scipy", "matplotlib", "jinja2", "pydantic")


# ---------------------------------------------------------------------------------------------- the seal


class Sealed(Frozen):
    """Size and digests of a file at the time of sealing."""

    bytes: int
    sha256: str
    #: The first eight digits of each line's SHA-256, in one string. They identify a changed line.
    lines: str | None = None


class Manifest(Frozen):
    """The sealed files by their path in the folder, and the code that ran the trials and wrote the report."""

    format: Literal[1] = 1
    files: dict[str, Sealed]
    ran_with: dict[str, Any]
    written_with: dict[str, Any]


def seal(folder: Path) -> Path:
    """Writes the manifest of a folder after its report was written.

    No `run` may write to the folder at the same time. `write_sealed_report` is for a sweep that is running.

    Returns:
      The path of the manifest.

    Raises:
      FolderError: the folder has no report.
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
    record = parse_json((folder / "record.json").read_bytes())
    ran_with = {key: record[key] for key in ("code", "python", "versions") if key in record}
    manifest = Manifest(files=files, ran_with=ran_with, written_with=environment())
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=1, ensure_ascii=False)
    write_atomically(folder / MANIFEST, text + "\n")
    return folder / MANIFEST


def fingerprint(folder: Path) -> str | None:
    """Returns the SHA-256 of a folder's manifest. None if it has none."""
    path = folder / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def evidence_files(folder: Path) -> list[str]:
    """Returns the sorted paths, relative to the folder, of all files that count except the manifest."""
    names = [name for name in (*QUESTION_FILES, *ANALYSES) if (folder / name).is_file()]
    names += [f"journal/{path.name}" for path in (folder / "journal").glob("*.jsonl")]
    copies = (f"{COPIES}/{path.name}" for path in (folder / COPIES).glob("*.py") if path.is_file())
    names += [name for name in copies if belongs(name)]
    for path in (folder / "report").rglob("*"):
        name = path.relative_to(folder).as_posix()
        # Files with a leading dot are left out, because they are incomplete.
        if path.is_file() and name != MANIFEST and not path.name.startswith("."):
            names.append(name)
    return sorted(names)


def line_digests(data: bytes) -> list[str]:
    return [hashlib.sha256(line).hexdigest()[:8] for line in data.splitlines(keepends=True)]


def environment() -> dict[str, Any]:
    """Returns the code, libraries and processor that affect a report's bytes besides its input."""
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


@functools.cache  # because loaded code does not change when the files do
def _source_digest() -> str:
    return source_digest(source_root())


def source_digest(root: Path) -> str:
    """Returns a digest of our own code in a folder, sub-packages included. It does not need git."""
    digest = hashlib.sha256()
    for package in ("orchestrator", "trainables"):
        for path in sorted((root / package).rglob("*")):
            if path.suffix in (".py", ".j2"):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------- the report


def report_details(opened: Folder) -> dict[str, Any]:
    """Returns the parts of record.json that a report prints at its end, and the devices of the trials."""
    keys = ("created", "code", "python", "versions", "machine", "sources", "notices")
    details = {key: opened.record[key] for key in keys if key in opened.record}
    # The machine of record.json is the one that the command ran on, which may train nothing.
    if devices := device_rows(opened.records.values()):
        details["devices"] = devices
    return details


def write_report_into(opened: Folder, copy: Path) -> None:
    details, spent = report_details(opened), ledger(opened.events)
    write_report(
        opened.plan,
        opened.records,
        copy / "report",
        details,
        spent if spent.total else None,
        opened.planned,
        opened.declared,
        load_collapse(opened.path),
    )


def write_sealed_report(folder: Path) -> Path:
    """Writes and seals the report of a sweep folder. The sweep may be running.

    Question, record, analyses and journal are copied once, and the report is computed from the copy. Files
    that only an earlier report has are removed. Files that no report wrote are not touched.

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
            write_report_into(open_folder(copy), copy)
        seal(copy)
        new = [name for name in evidence_files(copy) if name.startswith("report/")]
        # The manifest is written last, so that `verify` detects a report that was interrupted before it.
        for name in [*new, MANIFEST]:
            write_atomically(folder / name, (copy / name).read_bytes())
    for name in old - set(new):
        (folder / name).unlink(missing_ok=True)
    return folder / "report" / "report.html"


def _old_files(folder: Path) -> set[str]:
    """Returns the files of the existing report from its manifest."""
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
    """Replaces the path of the copy by that of the user's folder in error messages."""
    try:
        yield
    except FolderError as error:
        raise FolderError(str(error).replace(str(copy), str(folder))) from error


def read_manifest(folder: Path) -> Manifest | None:
    """Returns the manifest. None if there is none.

    Raises:
      FolderError: it is damaged, or names files that are no part of a sweep.
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
    """Returns True if a path may lead out of its folder."""
    parts = name.split("/")
    return any(part in ("", ".", "..") or "\\" in part or "\0" in part or ":" in part for part in parts)


def belongs(name: str) -> bool:
    """Returns True if a path in a sweep folder is part of a bundle."""
    return (
        name in (*QUESTION_FILES, *ANALYSES)
        or re.fullmatch(r"journal/[0-9]+\.jsonl", name) is not None
        or re.fullmatch(rf"{COPIES}/[0-9a-f]{{16}}\.py", name) is not None
        or re.fullmatch(r"report/([^/]+/)*[^/.][^/]*", name) is not None
    )
