"""Verification of a report against its manifest and its journal.

`report/manifest.json` has SHA-256 digests from the time when the report was written: of the question, the
choice of what to confirm, the record, the plan from before the run, what `analyse` found, each file of the
journal at its length then, and every file of the report. `verify` compares the folder to the manifest. It
also writes the report again from the journal, in a temporary folder, and compares every number. So it locates
a change in a file. If the digest was changed as well, it finds the change by its effect on the report.

A manifest is no signature, because a user with write access can seal the folder again. The `fingerprint` is
the SHA-256 of the manifest, and identifies a seal. A paper that quotes it makes later changes detectable.

What was declared beforehand is checked by the journal itself (`evidence.declarations`).
"""

import csv
import hashlib
import io
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.evidence.bundle import open_bundle
from orchestrator.evidence.declarations import chain_faults, declaration_faults
from orchestrator.evidence.seal import (
    MANIFEST,
    MAX_SHOWN,
    QUESTION_FILES,
    Manifest,
    Sealed,
    environment,
    evidence_files,
    fingerprint,
    line_digests,
    read_manifest,
    speaking_of,
    write_bytes,
    write_report_into,
)
from orchestrator.store.folder import ANALYSES, check_sweep, open_folder
from orchestrator.store.journal import FolderError, tree_of

#: File types with the same bytes for the same input. Of other files only the hash is checked.
_DETERMINISTIC = (".csv", ".json", ".html", ".svg", ".pdf", ".md", ".tex", ".txt")

#: Relative tolerance for numbers from another processor or library, which may differ in their last digits.
_TOLERANCE = 1e-9


# ---------------------------------------------------------------------------------------------- verify


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One fault of a sweep folder.

    Attributes:
      file: path in the folder.
      place: a line, a row and column, or a key; empty for the whole file.
      rule: the rule that does not hold, or a description of the fault.
      found, expected: the two values, if the fault is a difference.
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
    """The result of `verify`.

    Attributes:
      faults: discrepancies. There are none if the report follows from the journal and both are as sealed.
      notes: remarks that are no faults.
      counts: number of checked files, journal lines, trials and values.
      fingerprint: the SHA-256 of the manifest. None if there is none.
    """

    faults: tuple[Discrepancy, ...]
    notes: tuple[str, ...]
    counts: dict[str, int]
    fingerprint: str | None

    @property
    def ok(self) -> bool:
        """True if there are no faults."""
        return not self.faults

    def lines(self) -> list[str]:
        """Returns the result as lines of text for the user."""
        done = ", ".join(f"{count} {what}" for what, count in self.counts.items())
        verdict = "verified" if self.ok else f"{len(self.faults)} fault(s)"
        return [
            *(f"note: {note}" for note in self.notes),
            *(f"fault: {fault}" for fault in self.faults),
            f"{verdict}: {done}",
            f"fingerprint: {self.fingerprint or 'none, as there is no manifest'}",
        ]


def verify(path: Path) -> Verification:
    """Checks a sweep folder, or a bundle of one, against its manifest and its own journal.

    It writes nothing into the folder.

    Raises:
      FolderError: the path is no sweep folder, or no bundle that may be unpacked.
    """
    if path.is_file():
        with tempfile.TemporaryDirectory(prefix="vitc-sweep-") as place:
            return _Check(open_bundle(path, Path(place))).run()
    check_sweep(path)
    return _Check(path).run()


@dataclass
class _Check:
    """A verification in progress."""

    folder: Path
    faults: list[Discrepancy] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    manifest: Manifest | None = None
    #: True if the report was written by this code.
    same_code: bool = True
    #: True if it was written by this code, these libraries and this kind of processor.
    same_environment: bool = True
    #: Files with a reported change.
    broken: set[str] = field(default_factory=set)
    #: Numbers of lines with a wrong checksum, per file of the journal.
    bad_lines: dict[str, set[int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def run(self) -> Verification:
        try:
            self.manifest = read_manifest(self.folder)
        except FolderError as error:
            self.fault(MANIFEST, "", str(error))
        else:
            if self.manifest is None:
                advice = f"write report and manifest with  vitc-sweep report {self.folder}"
                self.fault(MANIFEST, "", f"is missing, so nothing says whether files were changed; {advice}")
        self.note_versions()
        for name in evidence_files(self.folder):
            if name.startswith("journal/"):
                self.check_lines(name)
        if self.manifest:
            self.check_seal(self.manifest)
        for parts in [*chain_faults(self.folder, self.notes), *declaration_faults(self.folder)]:
            self.fault(*parts)
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
        """Compares the code and environment that wrote the report to those that verify it."""
        if not self.manifest:
            return
        then, now = self.manifest.written_with, environment()
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
        """Checks the line checksums of a file of the journal."""
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
        """Checks every file against its hash."""
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
        for name in evidence_files(self.folder):
            if name in manifest.files:
                continue
            if name in ANALYSES:
                self.notes.append(
                    f"{name}: was written after the report, which is checked without it; `report` adds it"
                )
            elif name.startswith("journal/"):
                self.notes.append(f"{name}: was begun after the report was written; it is checked without it")
            else:
                self.broken.add(name)
                self.fault(name, "", "is not in the manifest")

    def name_changed_lines(self, name: str, data: bytes, sealed: Sealed) -> None:
        rule = "is not what was sealed"
        if name in ANALYSES:
            rule += " (if `analyse` did this, `report` writes a report of it)"
        if name in QUESTION_FILES:
            rule += " (if a `run` did this, `report` writes a report of it)"
        if sealed.lines is None:
            self.fault(name, "", rule)
            return
        now, lines = line_digests(data), data.splitlines()
        then = [sealed.lines[at : at + 8] for at in range(0, len(sealed.lines), 8)]
        if len(now) != len(then):
            self.fault(name, "", f"has {len(now)} lines, {len(then)} were sealed")
        told = self.bad_lines.get(name, set())
        changed = [n for n, (a, b) in enumerate(zip(now, then, strict=False), 1) if a != b and n not in told]
        if len(now) != len(then):
            # Only the first one, because the lines after it are shifted instead of changed.
            changed = changed[:1]
        for number in changed[:MAX_SHOWN]:
            line = lines[number - 1]
            said = (
                _subject(line) if name.startswith("journal/") else f": {line[:80].decode(errors='replace')}"
            )
            self.fault(name, f"line {number}", rule + said)
        if len(changed) > MAX_SHOWN:
            self.fault(name, "", f"{len(changed) - MAX_SHOWN} more lines are not what was sealed")
        if not changed and not told:
            self.fault(name, "", rule)

    # --------------------------------------------------------------------------------- against the journal

    def recompute(self) -> None:
        """Writes the report again in a temporary folder and compares."""
        if not (self.folder / "report").is_dir():
            self.fault("report", "", "there is none")
            return
        with tempfile.TemporaryDirectory(prefix="vitc-sweep-") as place:
            copy = Path(place) / "sweep"
            self.copy_sources(copy)
            try:
                with speaking_of(copy, self.folder):
                    opened = open_folder(copy)
                    self.counts["trials"] = len({trial.id for trial in opened.plan.trials})
                    write_report_into(opened, copy)
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
                # Many types of error, because a line with a forged checksum may have any content.
                self.fault(
                    "report", "", f"cannot be computed from the journal: {type(error).__name__}: {error}"
                )
                return
            self.compare_files(copy)

    def copy_sources(self, copy: Path) -> None:
        """Copies question, record and journal as sealed, without damaged lines."""
        for name in evidence_files(self.folder):
            if name.startswith("report/"):
                continue
            if self.manifest and name in ANALYSES and name not in self.manifest.files:
                continue
            data = (self.folder / name).read_bytes()
            if self.manifest and name.startswith("journal/"):
                if name not in self.manifest.files:
                    continue
                data = data[: self.manifest.files[name].bytes]
            if bad := self.bad_lines.get(name):
                lines = data.splitlines(keepends=True)
                data = b"".join(line for number, line in enumerate(lines, 1) if number not in bad)
            write_bytes(copy / name, data)

    def compare_files(self, copy: Path) -> None:
        found, expected = (
            {name for name in evidence_files(folder) if name.startswith("report/")}
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
        """Reports the differences in a file of the report."""
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
        for place, rule, *values in differing[:MAX_SHOWN]:
            self.fault(name, place, rule, *values)
        if len(differing) > MAX_SHOWN:
            self.fault(name, "", f"{len(differing) - MAX_SHOWN} more differences")
        if not differing and name not in self.broken:
            if exact and name.endswith(_DETERMINISTIC):
                self.fault(name, "", "differs from what the journal gives, in its bytes only")
            else:
                self.notes.append(
                    f"{name}: is as sealed; redrawn it differs in its bytes, but not in its numbers"
                )

    def text_differences(self, name: str, found: str, expected: str, tolerance: float) -> list["_Difference"]:
        if not self.same_environment and name not in self.broken:
            # SVG is not compared, because another version of the drawing library gives other bytes.
            if name.endswith(".svg"):
                return []
            found, expected = (
                re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL) for text in (found, expected)
            )
            if not self.same_code or _alike(found, expected, tolerance):
                return []
        return [_first_difference(found, expected)]


#: Place and rule, followed by the found and the expected value if there are two.
_Difference = tuple[str, ...]
_VALUE = "is not what the journal gives"


def _code_text(code: Any) -> str:
    if not isinstance(code, Mapping) or not code.get("commit"):
        return "of unknown commit"
    return f"commit {str(code['commit'])[:12]}" + (" with changes" if code.get("changed") else "")


def _subject(line: bytes) -> str:
    """Returns the trial and epoch of a line of the journal as text. Empty if it cannot be parsed."""
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
    """Yields the rows and columns that differ. Rows are matched by key, so a lost row is one difference."""
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
            if not same_code and _is_wording(a, b):
                continue
            if a != b and not _same_number(a, b, tolerance):
                yield f"{key}, column {column}", _VALUE, a or "nothing", b or "nothing"
    if list(keyed[0]) != list(keyed[1]) and sorted(keyed[0]) == sorted(keyed[1]):
        yield "rows", "are in another order"


_KEYS = ("trial", "cell", "arm", "measure", "point", "replicate", "role")


def _keyed_rows(table: Sequence[Sequence[str]]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields each row with a readable key such as `trial 0a1b…, cell adamw, arm vit_p`."""
    if not table:
        return
    head = table[0]
    # Other columns of a trial are no part of its key, so that a changed value is one difference, not a lost
    # row.
    named = [key for key in _KEYS[:3] if key in head] if "trial" in head else [k for k in _KEYS if k in head]
    keys = [head.index(key) for key in named]
    seen: Counter[str] = Counter()
    for row in table[1:]:
        parts = [f"{head[at]} {row[at]}" for at in keys if at < len(row) and row[at]]
        name = ", ".join(parts) or "row"
        seen[name] += 1
        # Rows without a key, and duplicates, are numbered in their order.
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
        if not same_code and (path == ".format" or _is_wording(x, y)):
            continue
        if (type(x), x) != (type(y), y) and not _same_number(x, y, tolerance):
            yield label, _VALUE, json.dumps(x), json.dumps(y)


def _is_wording(found: Any, expected: Any) -> bool:
    """Returns True for two sentences. Another version of the code may word them differently."""
    return isinstance(found, str) and isinstance(expected, str) and " " in found and " " in expected


def _leaves(value: Any, path: str = "", label: str = "") -> dict[str, tuple[str, Any]]:
    """Returns every value of a tree by its path, with a readable path that has keys for entries of lists."""
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
    """Returns True if two texts are equal except for the last digits of their numbers."""
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
