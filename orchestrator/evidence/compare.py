"""Comparison of the arms of several sweeps in one report."""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from orchestrator.evidence.seal import fingerprint, report_details, write_sealed_report
from orchestrator.store.folder import Folder, save_confirmation, save_question
from orchestrator.store.journal import FolderError, Writer
from orchestrator.trials.events import trial_of
from orchestrator.trials.joint_sweep import Merged, MergeError, Part, merge
from trainables.io.files import write_atomically
from trainables.io.json import parse_json

# ---------------------------------------------------------------------------------------------- comparisons


def compare(folders: Sequence[Folder], out: Path) -> tuple[Path, list[str]]:
    """Writes a sweep folder with the arms of several sweeps, and its sealed report.

    `status`, `report`, `export`, `verify` and `bundle` work on it as on any sweep folder. Its record names
    the source sweeps. It replaces an earlier comparison at `out`.

    Returns:
      The path of report.html, and a line per item that was renamed or shared.

    Raises:
      MergeError: the sweeps are not comparable. The message has every reason.
      FolderError: `out` is neither empty nor a comparison.
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
    """Returns True if `compare` accepts these sweeps."""
    try:
        merge({name: part for name, (_, part) in _parts(folders).items()})
    except MergeError:
        return False
    return True


def _parts(folders: Sequence[Folder]) -> dict[str, tuple[Folder, Part]]:
    parts: dict[str, tuple[Folder, Part]] = {}
    for opened in folders:
        plan, declared = opened.plan, opened.declared
        # What was changed after the results were known was not declared beforehand here either.
        if declared is not None and not declared.primary_was_declared:
            plan = dataclasses.replace(plan, sweep=plan.sweep.model_copy(update={"primary": None}))
        parts[_free_name(opened, parts)] = (
            opened,
            Part(plan, opened.records, opened.record.get("shifted", {})),
        )
    return parts


def _free_name(opened: Folder, taken: Iterable[str]) -> str:
    """Returns the sweep's name, or that of its folder if another sweep has the name."""
    names = [opened.plan.sweep.name, opened.path.resolve().name]
    names += [f"{names[0]}-{number}" for number in range(2, 1000)]
    return next(name for name in names if name not in taken)


def _is_comparison(folder: Path) -> bool:
    try:
        return "sources" in parse_json((folder / "record.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _write_comparison(folder: Path, merged: Merged, sources: Mapping[str, Folder]) -> None:
    shifted = {name: marks for s in sources.values() for name, marks in s.record.get("shifted", {}).items()}
    save_question(folder, merged.plan, declare=False, shifted=shifted)
    if merged.confirmation:
        save_confirmation(folder, merged.confirmation)
    for name, source in sources.items():
        writer = Writer(folder)
        writer.append([event for event in source.events if merged.origin.get(trial_of(event) or "") == name])
        writer.close()
    record = parse_json((folder / "record.json").read_bytes())
    record["sources"] = {
        name: {
            **report_details(source),
            "fingerprint": fingerprint(source.path) or "not sealed",
        }
        for name, source in sources.items()
    }
    if merged.notices:
        record["notices"] = merged.notices
    write_atomically(folder / "record.json", json.dumps(record, indent=2) + "\n")
    write_sealed_report(folder)
