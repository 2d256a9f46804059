"""Loads sweep files and reports all their faults at once."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.sweep.checks import RUN_PATHS, check, concerns
from orchestrator.sweep.config import Sweep
from orchestrator.sweep.document import Override, Source, SweepError, read_source, with_overrides
from orchestrator.sweep.sizing import with_points
from orchestrator.sweep.space import DOMAIN_WORDS, WANTED
from trainables.io.code import trusting_code
from trainables.io.faults import Fault, faults_in, nearest, nearest_path, shorten


def load_sweep(path: Path, overrides: Sequence[Override] = (), points: int | None = None) -> Sweep:
    """Reads a sweep file and checks everything that can be checked without the data.

    Files of the user that make networks are run.

    Raises:
      SweepError: with every fault there is.
    """
    source = overridden(path, overrides, points)
    # The sweep file that a folder of results keeps has copies of the files beside it.
    with trusting_code(path.parent):
        sweep = _built(source)
    if faults := [fault for override in overrides for fault in _without_effect(sweep, override)]:
        raise source.error(faults)
    return sweep


def _without_effect(sweep: Sweep, override: Override) -> Iterator[Fault]:
    """Yields a fault if the command line sets what is drawn anyway, for all arms or for one."""
    place, arm = "base", ""
    path = override.key.removeprefix("base.")
    if found := re.fullmatch(r"arms\.([^.]+)\.(.+)", path):
        arm, path = found.groups()
        place = f"arms.{arm}"
    window = sweep.vary.get(path)
    if window is None or window.when:
        return
    # Of an arm it counts in a cell that does not draw it.
    if not arm or all(path in sweep.windows(arm, cell) for cell in sweep.all_cells()):
        rule = "has no effect, because `vary` draws it; what is drawn is set by"
        yield Fault(f"{place}.{path}", f"{rule} --set 'vary.{path}={{...}}'", shorten(override.value))


def build_sweep(
    tree: dict[str, Any], source: str, overrides: Sequence[Override] = (), points: int | None = None
) -> Sweep:
    """Returns a sweep from the content of a file that extends no other.

    Raises:
      SweepError: with every fault there is.
    """
    if not isinstance(tree, dict):
        raise SweepError(source, [Fault("file", "must be a mapping of keys to values", shorten(tree))])
    return _built(with_overrides(Source(source, tree), overrides, points, Sweep.model_fields))


def located(
    faults: Iterable[Fault], path: Path, overrides: Sequence[Override] = (), points: int | None = None
) -> SweepError:
    """Returns the error that loading would have raised for faults that were found later."""
    return overridden(path, overrides, points).error(faults)


def overridden(path: Path, overrides: Sequence[Override] = (), points: int | None = None) -> Source:
    """Reads a sweep file with what it extends, and applies the settings of the command line. Checks no more.

    Raises:
      SweepError: a file cannot be read.
    """
    source = read_source(path)
    # `my sweep.yaml` is a name for a file, and its folder gets one without the blank.
    source.tree.setdefault("name", re.sub(r"[^A-Za-z0-9_.+-]+", "-", path.stem).strip("-._+") or "sweep")
    return with_overrides(source, overrides, points, Sweep.model_fields)


def _built(source: Source) -> Sweep:
    try:
        sweep = Sweep.model_validate(source.tree)
    except ValidationError as error:
        faults = [_as_written(fault) for fault in faults_in(error, Sweep)]
        rest = [*_faults_of_the_rest(source.tree, faults), *_missing_data(source)]
        raise source.error(faults + rest) from error
    sized = with_points(sweep)
    if isinstance(sized, Fault):
        raise source.error([sized, *_faults_of_the_rest(source.tree, [sized]), *_missing_data(source)])
    if faults := check(sized):
        raise source.error([*faults, *_missing_data(source)])
    return sized


def _missing_data(source: Source) -> list[Fault]:
    """Returns a fault if the data of the base are not there. It is otherwise told when the data are read."""
    base = source.tree.get("base")
    data = base.get("data") if isinstance(base, Mapping) else None
    path = data.get("path") if isinstance(data, Mapping) and not data.get("expects") else data
    if isinstance(path, str) and path in source.in_vain:
        return [Fault("base.data", f"{path}: there is no such file or folder")]
    return []


def _faults_of_the_rest(tree: Mapping[str, Any], faults: Sequence[Fault]) -> list[Fault]:
    """Checks the rest of a faulty file, with valid placeholders in place of faulty values."""
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
    """Returns a fault of the file's form with its path as written in the file.

    Also adds a hint for misspelt domains and for settings of a run at the top of the file.
    """
    path = fault.path.replace(".everywhere", "", 1).replace(".by_name", "", 1)
    fault = dataclasses.replace(fault, path=path if fault.path.startswith("vary.") else fault.path)
    if fault.rule == WANTED and fault.found:
        meant = (nearest(word, DOMAIN_WORDS) for word in re.findall(r"\w+", fault.found))
        return dataclasses.replace(fault, hint=next(filter(None, meant), ""))
    at_top = fault.rule == "unknown key" and "." not in fault.path
    if at_top and not fault.hint and (hint := nearest_path(fault.path, RUN_PATHS)):
        return dataclasses.replace(fault, hint=f"base.{hint}")
    return fault
