"""Checks that the journal bears out what was declared, and when.

Each file of the journal has the digest of those before it, and each declaration has its time and the number
of results before it. A declaration that is changed, moved or put in later contradicts them.

Like the manifest this is no signature: who writes all files of a journal anew can make them agree. A
fingerprint that was quoted before makes that detectable.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.store.journal import chain_of, digest_of, read_journal
from orchestrator.sweep.load import build_sweep
from orchestrator.trials.declared import Declaration, differences, result_of, same
from orchestrator.trials.events import DeclarationMade, time_of
from trainables.errors import UserError
from trainables.io.yaml import load_yaml

#: Clocks of the machines that write one journal in turn differ by less.
CLOCKS_DIFFER_SECONDS = 600.0

#: File, place and rule, followed by the found and the expected value if there are two.
Fault = tuple[str, ...]


def chain_faults(folder: Path, notes: list[str]) -> Iterator[Fault]:
    """Yields the first file of the journal whose digest of the earlier files is not theirs.

    Args:
      folder: of a sweep.
      notes: receives a remark on each file that lacks a digest although an earlier one has it.
    """
    has_begun = False
    for path in sorted((folder / "journal").glob("*.jsonl")):
        name = f"journal/{path.name}"
        try:
            chain, lines = chain_of(path), path.read_bytes().splitlines()
            if chain is not None and digest_of(path.parent, chain[0]) != chain[1]:
                # Later files cover the same ones, so they say nothing more.
                yield (
                    name,
                    "line 2",
                    "the files of the journal before this one were changed after it was begun",
                )
                return
        except (OSError, ValueError, LookupError, TypeError) as error:
            yield name, "", f"what it says of the files before it cannot be read: {error}"
            return
        if chain is None and has_begun and len(lines) > 1:
            notes.append(
                f"{name}: has no digest of the files before it: an earlier version wrote it, or it was "
                "taken out"
            )
        declares = any(b'"kind":"declared"' in line[:64] for line in lines[:4])
        has_begun = has_begun or chain is not None or declares


def declaration_faults(folder: Path) -> Iterator[Fault]:
    """Yields declarations that do not stand in their order, and a sweep that is not the one last declared."""
    last: Declaration | None = None
    results: set[str] = set()
    latest = declared = -math.inf
    try:
        for event in read_journal(folder).events:
            if (trial := result_of(event)) is not None:
                results.add(trial)
            if isinstance(event, DeclarationMade):
                last = Declaration.from_json(event.declaration)
                if event.results != len(results):
                    rule = "a declaration counts other results before it than stand before it"
                    yield "journal", "", rule, str(event.results), str(len(results))
                if event.made < latest - CLOCKS_DIFFER_SECONDS:
                    rule = "a declaration is older than records that stand before it"
                    yield "journal", "", rule, _utc(event.made), _utc(latest)
                declared = max(declared, event.made)
            elif (when := time_of(event)) is not None:
                if when < declared - CLOCKS_DIFFER_SECONDS:
                    rule = "a record that stands after a declaration is older than it"
                    yield "journal", "", rule, _utc(when), _utc(declared)
                    # One such record says it.
                    declared = -math.inf
                latest = max(latest, when)
        if last is None:
            return
        now = Declaration.of(build_sweep(load_yaml(folder / "sweep.yaml"), "sweep.yaml"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError) as error:
        yield "journal", "", f"its declarations cannot be read: {type(error).__name__}: {error}"
        return
    if not same(last, now):
        texts = [text for _, text in differences(last, dataclasses.replace(now, looks=last.looks))]
        told = "; ".join(texts) or f"design.points was {last.points}, now {now.points}"
        yield "sweep.yaml", "", f"is not what the last session declared: {told}"


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
