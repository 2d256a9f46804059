"""What makes a report evidence: a seal on its sources, a check that it follows from them, an archive of both.

`report/manifest.json` holds, of the moment the report was written, a SHA-256 of the question, of the
choice of what to confirm, of the record, of the plan made beforehand, of each file of the journal at its
length then, and of every file of the report. `verify` holds the folder against it, and writes the report
anew from the journal, elsewhere, to compare every number. So a change is found where it was made, and a
change whose hash was changed with it is found where it shows.

A manifest is no signature: who may change everything may seal it again. Its own SHA-256, the
`fingerprint`, tells one seal from another; a paper that quotes it can be held to it.
"""

import contextlib
import csv
import functools
import gzip
import hashlib
import io
import json
import math
import os
import re
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import ValidationError

from orchestrator.cost.ledger import ledger
from orchestrator.report.page import write_report
from orchestrator.store.folder import Folder, open_folder, save_confirmation, save_question
from orchestrator.store.journal import FolderError, Writer, tree_of
from orchestrator.store.provenance import provenance, source_root
from orchestrator.trials.events import trial_of
from orchestrator.trials.joint_sweep import Merged, MergeError, Part, merge
from trainables.base import Frozen
from trainables.io.files import write_atomically

MANIFEST = "report/manifest.json"
_QUESTION = ("sweep.yaml", "search.json", "confirm.json", "record.json", "planned.json")

#: Of an archive once unpacked; a sweep of 10,000 trials of 100 epochs is near 400 MB.
MAX_BUNDLE_BYTES = 4 * 2**30
MAX_BUNDLE_FILES = 100_000
#: What may be read in one go: more is asked for only by a header that lies.
_MAX_READ_BYTES = 2**24

#: Of one file: after so many differences the others are counted only.
_MAX_SHOWN = 20

#: Files that the same input gives the same bytes of. Of others only the hash is checked.
_DETERMINISTIC = (".csv", ".json", ".html", ".svg", ".pdf", ".md", ".tex", ".txt")

#: Numbers computed by another processor or library may differ in their last digits.
_TOLERANCE = 1e-9

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
    for name in _evidence(folder):
        data = (folder / name).read_bytes()
        files[name] = Sealed(
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            lines=None if name.startswith("report/") else "".join(_line_digests(data)),
        )
    record = json.loads((folder / "record.json").read_bytes())
    ran_with = {key: record[key] for key in ("code", "python", "versions") if key in record}
    manifest = Manifest(files=files, ran_with=ran_with, written_with=_environment())
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=1, ensure_ascii=False)
    write_atomically(folder / MANIFEST, text + "\n")
    return folder / MANIFEST


def fingerprint(folder: Path) -> str | None:
    """The SHA-256 of a folder's manifest, None if it has none."""
    path = folder / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _evidence(folder: Path) -> list[str]:
    """Every file that counts, but for the manifest, by its path in the folder; sorted."""
    names = [name for name in _QUESTION if (folder / name).is_file()]
    names += [f"journal/{path.name}" for path in (folder / "journal").glob("*.jsonl")]
    for path in (folder / "report").rglob("*"):
        name = path.relative_to(folder).as_posix()
        # Names that begin with a dot are files that are being written.
        if path.is_file() and name != MANIFEST and not path.name.startswith("."):
            names.append(name)
    return sorted(names)


def _line_digests(data: bytes) -> list[str]:
    return [hashlib.sha256(line).hexdigest()[:8] for line in data.splitlines(keepends=True)]


def _environment() -> dict[str, Any]:
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


def _write_report(opened: Folder, copy: Path) -> None:
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
        names = [name for name in _evidence(folder) if not name.startswith("report/")]
        for name in names:
            _write(copy / name, (folder / name).read_bytes())
        with _speaking_of(copy, folder):
            opened = open_folder(copy)
        _write_report(opened, copy)
        seal(copy)
        new = [name for name in _evidence(copy) if name.startswith("report/")]
        # The manifest last: a report without its own is found out, one with another's is, too.
        for name in [*new, MANIFEST]:
            write_atomically(folder / name, (copy / name).read_bytes())
    for name in old - set(new):
        (folder / name).unlink(missing_ok=True)
    return folder / "report" / "report.html"


def _old_files(folder: Path) -> set[str]:
    """Files of the report that is there, as its manifest lists them."""
    try:
        manifest = _read_manifest(folder)
    except FolderError:
        return set()
    return {name for name in manifest.files if name.startswith("report/")} if manifest else set()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@contextlib.contextmanager
def _speaking_of(copy: Path, folder: Path) -> Iterator[None]:
    """Lets errors name the folder that people know instead of its copy."""
    try:
        yield
    except FolderError as error:
        raise FolderError(str(error).replace(str(copy), str(folder))) from error


# ---------------------------------------------------------------------------------------------- verify


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One thing that does not hold.

    Attributes:
      file: by its path in the folder.
      place: a line, a row and column, or a key; empty if it is the whole file.
      rule: what should be so, or what is not.
      found, expected: the two values where there are two.
    """

    file: str
    place: str
    rule: str
    found: str | None = None
    expected: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}, {self.place}" if self.place else self.file
        values = "" if self.found is None else f" (found {self.found}, recomputed {self.expected})"
        return f"{where}: {self.rule}{values}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    Attributes:
      faults: what does not hold; none if the report follows from the journal, and both are as sealed.
      notes: what should be known and is no fault.
      counts: of what was looked at: files, journal lines, trials, numbers.
      fingerprint: the SHA-256 of the manifest, None if there is none.
    """

    faults: tuple[Discrepancy, ...]
    notes: tuple[str, ...]
    counts: dict[str, int]
    fingerprint: str | None

    @property
    def ok(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    def lines(self) -> list[str]:
        """All of it, for people."""
        done = ", ".join(f"{count} {what}" for what, count in self.counts.items())
        verdict = "verified" if self.ok else f"{len(self.faults)} fault(s)"
        return [
            *(f"note: {note}" for note in self.notes),
            *(f"fault: {fault}" for fault in self.faults),
            f"{verdict}: {done}",
            f"fingerprint: {self.fingerprint or 'none, as there is no manifest'}",
        ]


def verify(path: Path) -> Verification:
    """Holds a sweep folder, or a bundle of one, against its manifest and against its own journal.

    Writes nothing into the folder.

    Raises:
      FolderError: it is no sweep folder, or no bundle that may be unpacked.
    """
    if path.is_file():
        with tempfile.TemporaryDirectory(prefix="vitc-sweep-") as place:
            return _Check(open_bundle(path, Path(place))).run()
    if not (path / "sweep.yaml").is_file():
        raise FolderError(f"{path}: holds no sweep (there is no sweep.yaml in it)")
    return _Check(path).run()


def _read_manifest(folder: Path) -> Manifest | None:
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
    if strange := [name for name in manifest.files if _unsafe(name) or not _belongs(name)]:
        raise FolderError(f"names files that are no part of a sweep: {', '.join(strange[:3])}")
    return manifest


@dataclass
class _Check:
    """One verification under way."""

    folder: Path
    faults: list[Discrepancy] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    manifest: Manifest | None = None
    #: Whether the report was written by this code, these libraries and this kind of processor.
    same_code: bool = True
    same_environment: bool = True
    #: Files of which a change is told already.
    broken: set[str] = field(default_factory=set)
    #: Per file of the journal, lines whose checksum is wrong.
    bad_lines: dict[str, set[int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def run(self) -> Verification:
        try:
            self.manifest = _read_manifest(self.folder)
        except FolderError as error:
            self.fault(MANIFEST, "", str(error))
        else:
            if self.manifest is None:
                advice = f"write report and manifest with  vitc-sweep report {self.folder}"
                self.fault(MANIFEST, "", f"is missing, so nothing says whether files were changed; {advice}")
        self.note_versions()
        for name in _evidence(self.folder):
            if name.startswith("journal/"):
                self.check_lines(name)
        if self.manifest:
            self.check_seal(self.manifest)
        self.recompute()
        names = {
            "files": "files",
            "lines": "journal lines",
            "trials": "trials",
            "numbers": "table and summary values",
        }
        return Verification(
            tuple(self.faults),
            tuple(dict.fromkeys(self.notes)),
            {text: self.counts[name] for name, text in names.items()},
            fingerprint(self.folder),
        )

    def fault(self, *parts: str) -> None:
        self.faults.append(Discrepancy(*parts))

    def note_versions(self) -> None:
        """Compares what wrote the report to what checks it."""
        if not self.manifest:
            return
        then, now = self.manifest.written_with, _environment()
        self.same_code = then.get("source") == now["source"]
        differing = [
            key for key in ("source", "python", "versions", "processor") if then.get(key) != now[key]
        ]
        self.same_environment = not differing
        if not self.same_code:
            self.notes.append(
                f"the report was written by other code ({_code_text(then.get('code'))}; here "
                f"{_code_text(now['code'])}): what only one of the two writes is not compared"
            )
        if set(differing) - {"source"}:
            self.notes.append(
                "the report was written with other "
                + " and ".join(
                    sorted(
                        {"python": "Python", "versions": "libraries"}.get(k, k)
                        for k in differing
                        if k != "source"
                    )
                )
                + f": unchanged files are compared to {_TOLERANCE:g} of each number"
            )
        ran = self.manifest.ran_with.get("code")
        if ran != now["code"]:
            self.notes.append(f"the trials ran with other code ({_code_text(ran)})")

    # --------------------------------------------------------------------------------- against the seal

    def check_lines(self, name: str) -> None:
        """Checksums of a file of the journal."""
        lines = (self.folder / name).read_bytes().splitlines(keepends=True)
        self.counts["lines"] += len(lines)
        for number, line in enumerate(lines, 1):
            if tree_of(line) is not None:
                continue
            if number == len(lines) and not line.endswith(b"\n"):
                self.notes.append(f"{name}, line {number}: was cut off by a crash; it does not count")
            else:
                self.bad_lines.setdefault(name, set()).add(number)
                self.fault(name, f"line {number}", f"its checksum does not match{_subject(line)}")

    def check_seal(self, manifest: Manifest) -> None:
        """Every file against its hash."""
        for name, sealed in manifest.files.items():
            path = self.folder / name
            if not path.is_file():
                self.broken.add(name)
                self.fault(name, "", "is missing")
                continue
            self.counts["files"] += 1
            data = path.read_bytes()
            if name.startswith("journal/") and len(data) > sealed.bytes:
                more = len(data[sealed.bytes :].splitlines())
                self.notes.append(
                    f"{name}: {more} line(s) were appended after the report was written; it is checked "
                    "without them"
                )
                data = data[: sealed.bytes]
            if hashlib.sha256(data).hexdigest() != sealed.sha256:
                self.broken.add(name)
                self.name_changed_lines(name, data, sealed)
        for name in _evidence(self.folder):
            if name in manifest.files:
                continue
            if name.startswith("journal/"):
                self.notes.append(f"{name}: was begun after the report was written; it is checked without it")
            else:
                self.broken.add(name)
                self.fault(name, "", "is not in the manifest")

    def name_changed_lines(self, name: str, data: bytes, sealed: Sealed) -> None:
        rule = "is not what was sealed"
        if name in _QUESTION:
            rule += " (if a `run` did this, `report` writes a report of it)"
        if sealed.lines is None:
            self.fault(name, "", rule)
            return
        now, lines = _line_digests(data), data.splitlines()
        then = [sealed.lines[at : at + 8] for at in range(0, len(sealed.lines), 8)]
        if len(now) != len(then):
            self.fault(name, "", f"has {len(now)} lines, {len(then)} were sealed")
        told = self.bad_lines.get(name, set())
        changed = [n for n, (a, b) in enumerate(zip(now, then, strict=False), 1) if a != b and n not in told]
        if len(now) != len(then):
            # What follows the first is shifted, not changed.
            changed = changed[:1]
        for number in changed[:_MAX_SHOWN]:
            line = lines[number - 1]
            said = (
                _subject(line) if name.startswith("journal/") else f": {line[:80].decode(errors='replace')}"
            )
            self.fault(name, f"line {number}", rule + said)
        if len(changed) > _MAX_SHOWN:
            self.fault(name, "", f"{len(changed) - _MAX_SHOWN} more lines are not what was sealed")
        if not changed and not told:
            self.fault(name, "", rule)

    # --------------------------------------------------------------------------------- against the journal

    def recompute(self) -> None:
        """Writes the report anew in another place and compares."""
        if not (self.folder / "report").is_dir():
            self.fault("report", "", "there is none")
            return
        with tempfile.TemporaryDirectory(prefix="vitc-sweep-") as place:
            copy = Path(place) / "sweep"
            self.copy_sources(copy)
            try:
                with _speaking_of(copy, self.folder):
                    opened = open_folder(copy)
                self.counts["trials"] = len({trial.id for trial in opened.plan.trials})
                _write_report(opened, copy)
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
                # Whatever stands in a line whose checksum was made to fit.
                self.fault(
                    "report", "", f"cannot be computed from the journal: {type(error).__name__}: {error}"
                )
                return
            self.compare_files(copy)

    def copy_sources(self, copy: Path) -> None:
        """Question, record and journal as they were sealed, less the lines that are damaged."""
        for name in _evidence(self.folder):
            if name.startswith("report/"):
                continue
            data = (self.folder / name).read_bytes()
            if self.manifest and name.startswith("journal/"):
                if name not in self.manifest.files:
                    continue
                data = data[: self.manifest.files[name].bytes]
            if bad := self.bad_lines.get(name):
                lines = data.splitlines(keepends=True)
                data = b"".join(line for number, line in enumerate(lines, 1) if number not in bad)
            _write(copy / name, data)

    def compare_files(self, copy: Path) -> None:
        found, expected = (
            {name for name in _evidence(folder) if name.startswith("report/")}
            for folder in (self.folder, copy)
        )
        for name in sorted(found | expected):
            if name not in found:
                if not self.same_code:
                    self.notes.append(f"{name}: is not in the report; the code of this version writes it")
                elif name not in self.broken:
                    self.fault(name, "", "is missing")
                continue
            if name not in expected:
                if not self.same_code and name not in self.broken:
                    self.notes.append(f"{name}: the code of this version does not write it; not recomputed")
                else:
                    self.fault(name, "", "is no part of the report that the journal gives")
                continue
            ours, theirs = (copy / name).read_bytes(), (self.folder / name).read_bytes()
            if name.endswith((".csv", ".json")):
                self.counts["numbers"] += _num_values(name, ours)
            if ours != theirs:
                self.compare(name, theirs, ours)

    def compare(self, name: str, found: bytes, expected: bytes) -> None:
        """Names what differs in a file of the report."""
        exact = self.same_environment or name in self.broken
        tolerance = 0.0 if exact else _TOLERANCE
        try:
            before, now = found.decode(), expected.decode()
            if name.endswith(".csv"):
                differing = list(_csv_differences(before, now, tolerance, self.same_code))
            elif name.endswith(".json"):
                differing = list(_json_differences(before, now, tolerance, self.same_code))
            elif not name.endswith(_DETERMINISTIC):
                differing = []
            else:
                differing = self.text_differences(name, before, now, tolerance)
        except UnicodeDecodeError:
            differing = []
        except (ValueError, RecursionError, csv.Error) as error:
            self.fault(name, "", f"cannot be read: {error}")
            return
        for place, rule, *values in differing[:_MAX_SHOWN]:
            self.fault(name, place, rule, *values)
        if len(differing) > _MAX_SHOWN:
            self.fault(name, "", f"{len(differing) - _MAX_SHOWN} more differences")
        if not differing and name not in self.broken:
            if exact and name.endswith(_DETERMINISTIC):
                self.fault(name, "", "differs from what the journal gives, in its bytes only")
            else:
                self.notes.append(
                    f"{name}: is as sealed; drawn anew it differs in its bytes, not in its numbers"
                )

    def text_differences(self, name: str, found: str, expected: str, tolerance: float) -> list["_Difference"]:
        if not self.same_environment and name not in self.broken:
            # Another version of the drawing library draws otherwise.
            if name.endswith(".svg"):
                return []
            found, expected = (
                re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL) for text in (found, expected)
            )
            if not self.same_code or _alike(found, expected, tolerance):
                return []
        return [_first_difference(found, expected)]


#: Place, rule, and where there are two values: found, expected.
_Difference = tuple[str, ...]
_VALUE = "is not what the journal gives"


def _code_text(code: Any) -> str:
    if not isinstance(code, Mapping) or not code.get("commit"):
        return "of unknown commit"
    return f"commit {str(code['commit'])[:12]}" + (" with changes" if code.get("changed") else "")


def _subject(line: bytes) -> str:
    """Which trial and epoch a line of the journal speaks of, as far as it can be read."""
    try:
        event = json.loads(line[9:])
        text = f" ({event['kind']} of trial {event['trial']}"
        row = event.get("row")
        return text + (f", epoch {row['epoch']})" if row else ")")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""


def _num_values(name: str, data: bytes) -> int:
    if name.endswith(".json"):
        return len(_leaves(json.loads(data)))
    return sum(len(row) for row in csv.reader(io.StringIO(data.decode(), newline="")))


def _same_number(a: Any, b: Any, tolerance: float) -> bool:
    try:
        return tolerance > 0 and math.isclose(float(a), float(b), rel_tol=tolerance, abs_tol=tolerance)
    except (TypeError, ValueError):
        return False


def _csv_differences(found: str, expected: str, tolerance: float, same_code: bool) -> Iterator[_Difference]:
    """Rows and columns that differ; a row is known by its key, so that one lost row is one difference."""
    tables = [list(csv.reader(io.StringIO(text, newline=""))) for text in (found, expected)]
    heads = [table[0] if table else [] for table in tables]
    for columns, others, rule in (
        (heads[0], heads[1], "a column the journal gives no values of"),
        (heads[1], heads[0], "the column is missing"),
    ):
        for column in columns:
            if column not in others and same_code:
                yield f"column {column}", rule
    shared = [column for column in heads[1] if column in heads[0]]
    keyed = [dict(_keyed_rows(table)) for table in tables]
    for key in keyed[0]:
        if key not in keyed[1]:
            yield key, "a row the journal does not give"
    for key, row in keyed[1].items():
        if key not in keyed[0]:
            yield key, "the row is missing"
            continue
        if len(keyed[0][key]) != len(heads[0]):
            yield key, f"has {len(keyed[0][key])} values for {len(heads[0])} columns"
            continue
        for column in shared:
            a, b = keyed[0][key][heads[0].index(column)], row[heads[1].index(column)]
            if a != b and not _same_number(a, b, tolerance):
                yield f"{key}, column {column}", _VALUE, a or "nothing", b or "nothing"
    if list(keyed[0]) != list(keyed[1]) and sorted(keyed[0]) == sorted(keyed[1]):
        yield "rows", "stand in another order"


_KEYS = ("trial", "cell", "arm", "measure", "point", "replicate", "role")


def _keyed_rows(table: Sequence[Sequence[str]]) -> Iterator[tuple[str, Sequence[str]]]:
    """Rows by what names them, as people read it: `trial 0a1b…, adamw, vit_p`."""
    if not table:
        return
    head = table[0]
    # A trial's id and the arm and cell it is in are enough; what else is its own is compared, not its name.
    named = [key for key in _KEYS[:3] if key in head] if "trial" in head else [k for k in _KEYS if k in head]
    keys = [head.index(key) for key in named]
    seen: Counter[str] = Counter()
    for row in table[1:]:
        parts = [f"{head[at]} {row[at]}" for at in keys if at < len(row) and row[at]]
        name = ", ".join(parts) or "row"
        seen[name] += 1
        # A table without keys goes by the order of its rows.
        yield (name if parts and seen[name] == 1 else f"{name} {seen[name]}"), row


def _json_differences(found: str, expected: str, tolerance: float, same_code: bool) -> Iterator[_Difference]:
    a, b = _leaves(json.loads(found)), _leaves(json.loads(expected))
    for path in dict.fromkeys([*a, *b]):
        if path not in b or path not in a:
            if same_code:
                rule = "the key is missing" if path in b else "a key the journal gives no value of"
                yield (b if path in b else a)[path][0], rule
            continue
        (_, x), (label, y) = a[path], b[path]
        if (type(x), x) != (type(y), y) and not _same_number(x, y, tolerance):
            yield label, _VALUE, json.dumps(x), json.dumps(y)


def _leaves(value: Any, path: str = "", label: str = "") -> dict[str, tuple[str, Any]]:
    """Every value of a tree by its path, with the path for people: entries of lists go by what names them."""
    found: dict[str, tuple[str, Any]] = {}
    if isinstance(value, dict) and value:
        for key, item in value.items():
            found |= _leaves(item, f"{path}.{key}", f"{label}.{key}".lstrip("."))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            keys = [str(item[key]) for key in _KEYS if item.get(key)] if isinstance(item, dict) else []
            found |= _leaves(item, f"{path}.{index}", f"{label}[{', '.join(keys) or index}]")
    else:
        found[path] = (label, value)
    return found


_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)")


def _alike(found: str, expected: str, tolerance: float) -> bool:
    """Whether two texts are the same but for the last digits of their numbers."""
    parts, others = _NUMBER.split(found), _NUMBER.split(expected)
    return len(parts) == len(others) and all(
        a == b or _same_number(a, b, tolerance) for a, b in zip(parts, others, strict=True)
    )


def _first_difference(found: str, expected: str) -> _Difference:
    lines, others = found.splitlines(), expected.splitlines()
    for number, (a, b) in enumerate(zip(lines, others, strict=False), 1):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            cut = slice(max(at - 20, 0), at + 40)
            return f"line {number}", "is not what the journal gives", repr(a[cut]), repr(b[cut])
    return "", f"has {len(lines)} lines, the journal gives {len(others)}"


# ---------------------------------------------------------------------------------------------- bundles


def bundle(folder: Path, target: Path) -> Path:
    """Packs question, record, journal, report and manifest into one archive that `verify` takes anywhere.

    Checkpoints, tracebacks, locks and links to a tracker stay behind. The same folder gives the same bytes.

    Args:
      folder: of a sweep with a sealed report.
      target: a file that ends in .tar.gz, or a folder to put <folder's name>.tar.gz into.

    Returns:
      The path of the archive.

    Raises:
      FolderError: the folder is no sweep or has no sealed report; a file in it is a link; or the target
        does not end in .tar.gz.
    """
    top = folder.resolve().name
    if target.is_dir():
        target = target / f"{top}.tar.gz"
    if not target.name.endswith(".tar.gz"):
        raise FolderError(f"{target}: a bundle's name must end in .tar.gz")
    if not (folder / "sweep.yaml").is_file():
        raise FolderError(f"{folder}: holds no sweep (there is no sweep.yaml in it)")
    if not (folder / MANIFEST).is_file():
        raise FolderError(f"{folder}: has no sealed report; write it with  vitc-sweep report {folder}")
    names = sorted([*_evidence(folder), MANIFEST])
    if links := [name for name in names if (folder / name).is_symlink()]:
        raise FolderError(f"{folder}: links are not packed: {', '.join(links)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        # No name and no time in the header of the compressed stream, none of the machine's in the archive.
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
    """A compressed stream that refuses to grow past a limit, or to be read in pieces only a lie asks for."""

    limit = MAX_BUNDLE_BYTES

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ_BYTES:
            raise FolderError(f"has a header that asks for {size} bytes")
        data = super().read(size)
        if self.tell() > self.limit:
            raise FolderError(f"unpacks to more than the {self.limit} bytes a bundle may")
        return data


def open_bundle(path: Path, into: Path, max_bytes: int = MAX_BUNDLE_BYTES) -> Path:
    """Unpacks a bundle, which anyone may have made.

    Only plain files of a sweep are taken, by their own names, under one folder; nothing is written before
    all names and sizes have been seen.

    Args:
      path: of the archive.
      into: where the sweep's folder is put.
      max_bytes: what the archive may unpack to, headers included.

    Returns:
      The path of the sweep's folder.

    Raises:
      FolderError: it is no bundle, it holds what does not belong there (every fault is named), it is larger
        than allowed, or the folder exists.
    """
    try:
        top = _look_through(path, max_bytes)
        if (into / top).exists():
            raise FolderError(f"{into / top} exists already")
        with _opened(path, max_bytes) as archive:
            for member in archive:
                # By hand: `extract` is told to trust nothing from Python 3.11.4 on only.
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
        # Blocks of zeros end an archive; they count, too.
        stream.limit = max_bytes
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            yield archive


def _look_through(path: Path, max_bytes: int) -> str:
    """The name of the folder in an archive, if it holds what it may."""
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
            elif _unsafe(member.name) or not _belongs("/".join(PurePosixPath(member.name).parts[1:])):
                faults.append(f"{member.name!r} is no part of a sweep")
        # To the end of the stream, whose checksum stands there.
        stream = archive.fileobj
        assert stream is not None
        while stream.read(2**20):
            pass
    if len(tops := {PurePosixPath(name).parts[0] for name in names if not _unsafe(name)}) > 1:
        faults.append(f"holds more than one folder: {', '.join(sorted(tops))}")
    faults += [f"{name!r} stands there {count} times" for name, count in Counter(names).items() if count > 1]
    if faults:
        shown = "; ".join(faults[:_MAX_SHOWN])
        raise FolderError(f"is no bundle that may be unpacked: {shown}")
    if not names:
        raise FolderError("is empty")
    return tops.pop()


def _unsafe(name: str) -> bool:
    """Whether a name leads anywhere but down."""
    parts = name.split("/")
    return any(part in ("", ".", "..") or "\\" in part or "\0" in part or ":" in part for part in parts)


def _belongs(name: str) -> bool:
    """Whether a path in a folder is one that a bundle holds."""
    return (
        name in _QUESTION
        or re.fullmatch(r"journal/[0-9]+\.jsonl", name) is not None
        or re.fullmatch(r"report/([^/]+/)*[^/.][^/]*", name) is not None
    )


# ---------------------------------------------------------------------------------------------- comparisons


def compare(folders: Sequence[Folder], out: Path) -> tuple[Path, list[str]]:
    """Writes a sweep folder that holds the arms of several, with its sealed report.

    The folder is like any other: `status`, `report`, `export`, `verify` and `bundle` work on it, and its
    record names the sweeps it was made of. An earlier comparison in its place is replaced.

    Returns:
      The path of report.html, and what was renamed or shared, a line each.

    Raises:
      MergeError: the sweeps are not comparable; every reason is told.
      FolderError: `out` holds something else than a comparison.
    """
    parts = _parts(folders)
    merged = merge({name: part for name, (_, part) in parts.items()})
    if out.exists() and not _is_comparison(out) and any(out.iterdir()):
        raise FolderError(f"{out}: holds something else than a comparison; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    try:
        _write_comparison(staged, merged, {name: opened for name, (opened, _) in parts.items()})
        if out.exists():
            shutil.rmtree(out)
        staged.chmod(0o755)
        os.replace(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return out / "report" / "report.html", merged.notices


def comparable(folders: Sequence[Folder]) -> bool:
    """Whether `compare` would take these sweeps."""
    try:
        merge({name: part for name, (_, part) in _parts(folders).items()})
    except MergeError:
        return False
    return True


def _parts(folders: Sequence[Folder]) -> dict[str, tuple[Folder, Part]]:
    parts: dict[str, tuple[Folder, Part]] = {}
    for opened in folders:
        parts[_free_name(opened, parts)] = (opened, Part(opened.plan, opened.records))
    return parts


def _free_name(opened: Folder, taken: Iterable[str]) -> str:
    """The sweep's name, or its folder's where sweeps share one."""
    names = [opened.plan.sweep.name, opened.path.resolve().name]
    names += [f"{names[0]}-{number}" for number in range(2, 1000)]
    return next(name for name in names if name not in taken)


def _is_comparison(folder: Path) -> bool:
    try:
        return "sources" in json.loads((folder / "record.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _write_comparison(folder: Path, merged: Merged, sources: Mapping[str, Folder]) -> None:
    save_question(folder, merged.plan)
    if merged.confirmation:
        save_confirmation(folder, merged.confirmation)
    for name, source in sources.items():
        writer = Writer(folder)
        writer.append([event for event in source.events if merged.origin.get(trial_of(event) or "") == name])
        writer.close()
    record = json.loads((folder / "record.json").read_bytes())
    record["sources"] = {
        name: {
            **report_details(source.record),
            "fingerprint": fingerprint(source.path) or "not sealed",
        }
        for name, source in sources.items()
    }
    if merged.notices:
        record["notices"] = merged.notices
    write_atomically(folder / "record.json", json.dumps(record, indent=2) + "\n")
    write_sealed_report(folder)
