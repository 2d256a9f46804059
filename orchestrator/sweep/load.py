"""A sweep file read, with all its faults at once."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.sweep.checks import RUN_PATHS, check, concerns
from orchestrator.sweep.config import Sweep
from orchestrator.sweep.document import Override, Source, SweepError, read_source, with_overrides
from orchestrator.sweep.space import DOMAIN_WORDS, WANTED
from trainables.io.faults import Fault, faults_in, nearest, nearest_path, shorten


def load_sweep(path: Path, overrides: Sequence[Override] = (), points: int | None = None) -> Sweep:
    """Reads a sweep file and checks all that can be checked without looking at data.

    Raises:
      SweepError: with every fault there is.
    """
    return _built(_overridden(path, overrides, points))


def build_sweep(
    tree: dict[str, Any], source: str, overrides: Sequence[Override] = (), points: int | None = None
) -> Sweep:
    """A sweep from the content of a file that extends no other.

    Raises:
      SweepError: with every fault there is.
    """
    if not isinstance(tree, dict):
        raise SweepError(source, [Fault("file", "must be a mapping of keys to values", shorten(tree))])
    return _built(with_overrides(Source(source, tree), overrides, points, Sweep.model_fields))


def located(
    faults: Iterable[Fault], path: Path, overrides: Sequence[Override] = (), points: int | None = None
) -> SweepError:
    """Faults found after a sweep was loaded, as what loading it would have raised."""
    return _overridden(path, overrides, points).error(faults)


def _overridden(path: Path, overrides: Sequence[Override], points: int | None) -> Source:
    source = read_source(path)
    source.tree.setdefault("name", path.stem)
    return with_overrides(source, overrides, points, Sweep.model_fields)


def _built(source: Source) -> Sweep:
    try:
        sweep = Sweep.model_validate(source.tree)
    except ValidationError as error:
        faults = [_as_written(fault) for fault in faults_in(error, Sweep)]
        raise source.error(faults + _faults_of_the_rest(source.tree, faults)) from error
    if faults := check(sweep):
        raise source.error(faults)
    return sweep


def _faults_of_the_rest(tree: Mapping[str, Any], faults: Sequence[Fault]) -> list[Fault]:
    """What else is wrong where the form is faulty: checked with harmless things in the faulty places."""
    rest = dict(tree)
    silent = set()
    for fault in faults:
        first, _, path = fault.path.partition(".")
        if first in ("base", "arms", "cells", "name", "file"):
            return []
        if first == "design":
            rest["design"] = {"kind": "random", "points": 1}
        elif first == "vary" and path and isinstance(rest["vary"], Mapping):
            faulty = {name for name in rest["vary"] if f"{path}.".startswith(f"{name}.")}
            silent |= faulty
            rest["vary"] = {name: window for name, window in rest["vary"].items() if name not in faulty}
        elif first == "where" and path:
            rest["where"] = [_HOLDS if str(i) == path else text for i, text in enumerate(rest["where"])]
        else:
            rest.pop(first, None)
    try:
        found = check(Sweep.model_validate(rest))
    except ValidationError:
        return []
    return [fault for fault in found if not concerns(fault, silent)]


#: A constraint that every run fulfils.
_HOLDS = "batch_size > 0"


def _as_written(fault: Fault) -> Fault:
    """A fault of the file's form: paths as they stand there, and keys of a run that stand at the top."""
    path = fault.path.replace(".everywhere", "", 1).replace(".by_name", "", 1)
    fault = dataclasses.replace(fault, path=path if fault.path.startswith("vary.") else fault.path)
    if fault.rule == WANTED and fault.found:
        meant = (nearest(word, DOMAIN_WORDS) for word in re.findall(r"\w+", fault.found))
        return dataclasses.replace(fault, hint=next(filter(None, meant), ""))
    at_top = fault.rule == "unknown key" and "." not in fault.path
    if at_top and not fault.hint and (hint := nearest_path(fault.path, RUN_PATHS)):
        return dataclasses.replace(fault, hint=f"base.{hint}")
    return fault
