"""The unchecked content of sweep files: merged by `extends`, with `--set` on top, and with places."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.sweep.config import Resources, Sweep
from orchestrator.sweep.constraints import with_words
from orchestrator.sweep.space import DOMAIN_WORDS
from trainables.config import TrainConfig
from trainables.errors import UserError
from trainables.io.faults import Branch, Fault, branches, fault_lines, placed, shorten
from trainables.io.yaml import YamlError, load_document, parse_yaml
from trainables.lookup import Lookup, explained, kinds_at, with_absolute_paths
from trainables.presets import leaves


class SweepError(UserError):
    """A sweep that cannot be run as written, with all its faults."""

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source, self.faults = source, tuple(faults)
        super().__init__(fault_lines(source, faults))


@dataclass(frozen=True, slots=True)
class Override:
    """One `--set key=value`."""

    key: str
    value: Any

    @classmethod
    def parse(cls, text: str) -> "Override":
        """Parses `key=value`, where the value is YAML.

        Raises:
          SweepError: there is no `=`, or the value is not YAML.
        """
        key, equals, value = text.partition("=")
        if not equals or not key.strip(" ."):
            raise SweepError("--set", [Fault(text, "must be key=value")])
        try:
            return cls(key.strip(), parse_yaml(value, f"--set {key.strip()}"))
        except YamlError as error:
            raise SweepError("--set", [Fault("", error.rule, place=error.place)]) from error

    @property
    def place(self) -> str:
        """The override as messages show it."""
        return f"--set {self.key}={shorten(self.value) if not isinstance(self.value, str) else self.value}"


@dataclass(frozen=True)
class Source:
    """The tree of a sweep file.

    Attributes:
      name: of the file, for messages.
      tree: keys and values as in the file.
      places: the place of each key by dotted path: `file:line:column`, or the option that set it.
      in_vain: for local paths that do not exist, the places that were searched, as text by absolute path.
      relative: for local paths that were made absolute, the text that was written.
    """

    name: str
    tree: dict[str, Any]
    places: Mapping[str, str] = dataclasses.field(default_factory=dict)
    in_vain: Mapping[str, str] = dataclasses.field(default_factory=dict)
    relative: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def error(self, faults: Iterable[Fault]) -> SweepError:
        """Returns an error that lists faults with their places, in the order of the file."""
        found = [
            dataclasses.replace(
                fault,
                rule=explained(fault.rule, self.in_vain),
                place=fault.place or placed(fault, self.places),
            )
            for fault in faults
        ]
        return SweepError(self.name, sorted(found, key=_order))


def _order(fault: Fault) -> tuple[str, list[int]]:
    file, *numbers = fault.place.split(":")
    return (
        (file, [int(number) for number in numbers]) if all(map(str.isdecimal, numbers)) else (fault.place, [])
    )


# ------------------------------------------------------------------------------------ files and extends

#: Depth at which a mapping from dotted paths to values begins. Keys below it are settings.
_SETTINGS_DEPTH = {"base": 1, "arms": 2, "cells": 3}
#: Largest number of files that one sweep file may extend, directly or not, because such lists grow quickly.
MAX_FILES = 100


def read_source(path: Path) -> Source:
    """Reads a sweep file and merges it over the files that it extends.

    `extends` is a file or a list of files, relative to the file that names them; later ones win. Mappings are
    merged key by key, and settings under base, arms and cells by their dotted paths. A window under `vary`, a
    list and any other value replace the whole earlier value. `null` removes a key, except among settings,
    where it is a value. A `design` of another kind keeps nothing of the earlier one. `name` is not inherited.
    Local paths are made absolute: relative to the file that holds them, or to the current folder if they
    exist only there.

    Raises:
      SweepError: a file cannot be read, is not a mapping, or extends itself.
    """
    return _read(path, str(path), (), [])


def _read(path: Path, source: str, above: tuple[Path, ...], read: list[Path]) -> Source:
    read.append(path)
    try:
        document = load_document(path)
    except YamlError as error:
        raise SweepError(source, [Fault("", error.rule, place=error.place)]) from error
    tree = document.value
    if not isinstance(tree, dict):
        rule = "must be a mapping of keys to values" if tree is not None else "is empty"
        found = shorten(tree) if tree is not None else ""
        raise SweepError(source, [Fault("file", rule, found, place=str(path) if above else "")])
    lookup = Lookup.beside(path)
    tree = with_absolute_places(tree, lookup)
    own = Source(source, tree, document.places)
    parents = tree.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise own.error([Fault("extends", "must be a file, or a list of files", shorten(parents))])
    here = (*above, path.resolve())
    under: dict[str, Any] = {}
    places: dict[str, str] = {}
    in_vain: dict[str, str] = {}
    relative: dict[str, str] = {}
    for parent in parents:
        other = path.parent / parent
        try:
            target, exists = other.resolve(), other.exists()
        except (OSError, ValueError) as error:
            raise own.error([Fault("extends", "is no path of a file", shorten(parent))]) from error
        if target in here:
            way = " extends ".join(str(file) for file in (*here[here.index(target) :], target))
            raise own.error([Fault("extends", f"is circular: {way}")])
        if not exists:
            raise own.error([Fault("extends", "there is no such file", shorten(parent))])
        if len(read) >= MAX_FILES:
            raise own.error([Fault("extends", f"leads to more than {MAX_FILES} files")])
        base = _read(other, source, here, read)
        under = _merged(under, {key: value for key, value in base.tree.items() if key != "name"}, ())
        places |= base.places
        in_vain |= base.in_vain
        relative |= base.relative
    whole = _merged(under, tree, ()) if parents else tree
    return Source(
        source, whole, places | dict(document.places), in_vain | lookup.in_vain, relative | lookup.relative
    )


class _Settings(TrainConfig):
    """The type that settings describe: a run and its resources."""

    resources: Resources


#: Types of the keys of a sweep, and of settings.
_KEYS, _SETTINGS = branches(Sweep), branches(_Settings)


def with_absolute_places(tree: Mapping[str, Any], lookup: Lookup) -> dict[str, Any]:
    """Returns the unchecked tree of a sweep file with every local path in it made absolute."""
    result = dict(tree)
    for key, value in tree.items():
        if key in _SETTINGS_DEPTH:
            result[key] = _in_settings(value, _SETTINGS_DEPTH[key] - 1, lookup)
        elif key == "vary" and isinstance(value, Mapping):
            result[key] = {
                path: _in_window(window, kinds_at(_SETTINGS, path), lookup, path)
                for path, window in value.items()
            }
        elif key == "where" and isinstance(value, list):
            result[key] = [
                with_words(text, _is_place, lookup.absolute) if isinstance(text, str) else text
                for text in value
            ]
        else:
            result[key] = with_absolute_paths(value, kinds_at(_KEYS, key), lookup)
    return result


def _is_place(path: str) -> bool:
    return any(kind.place for kind in kinds_at(_SETTINGS, path))


def _in_settings(tree: Any, depth: int, lookup: Lookup) -> Any:
    """Makes paths absolute in settings, or in mappings of names to settings that are `depth` levels deep."""
    if depth and isinstance(tree, Mapping):
        return {name: _in_settings(inner, depth - 1, lookup) for name, inner in tree.items()}
    return with_absolute_paths(tree, _SETTINGS, lookup)


def _in_window(window: Any, kinds: Sequence[Branch], lookup: Lookup, path: str) -> Any:
    """Makes paths absolute in a domain, or in several by arm or level, and in the settings under `when`."""
    if not isinstance(window, Mapping):
        return window
    result = dict(window)
    for key, value in window.items():
        if key == "when" and isinstance(value, Mapping):
            result[key] = {
                needed: _each(wanted, kinds_at(_SETTINGS, needed), lookup, needed)
                for needed, wanted in value.items()
            }
        elif key in DOMAIN_WORDS:
            result[key] = _each(value, kinds, lookup, path)
        else:
            result[key] = _in_window(value, kinds, lookup, path)
    return result


def _each(value: Any, kinds: Sequence[Branch], lookup: Lookup, path: str) -> Any:
    """Makes paths absolute in a value of a setting, or in a list of such values."""
    values = value if isinstance(value, list | tuple) else [value]
    found = [with_absolute_paths(one, kinds, lookup, path) for one in values]
    return found if isinstance(value, list | tuple) else found[0]


def _merged(under: Mapping[str, Any], over: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Returns one mapping of a sweep file merged over another. `path` is their place in the file."""
    result = dict(under)
    if path and len(path) == _SETTINGS_DEPTH.get(path[0]):
        for key, value in leaves(over):
            _replace(result, key, value)
        return result
    if path == ("design",) and "kind" in over and over["kind"] != under.get("kind"):
        return dict(over)
    for key, value in over.items():
        before = result.get(key)
        if value is None and under:
            result.pop(key, None)
        elif isinstance(before, Mapping) and isinstance(value, Mapping) and path != ("vary",):
            result[key] = _merged(before, value, (*path, key))
        else:
            result[key] = value
    return _told_once(result, over) if path == ("design",) else result


#: What says the number of points of a design, and what says it in another way or goes with that.
_OTHER_WAYS = {"points": {"detect", "power", "chosen_for"}, "detect": {"points", "chosen_for"}}


def _told_once(design: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a design without what `over`, which was merged over it, says in another way."""
    dropped = {key for way in over for key in _OTHER_WAYS.get(way, ()) if over[way] is not None}
    return {key: value for key, value in design.items() if key in over or key not in dropped}


# -------------------------------------------------------------------------------------- the command line


def with_overrides(
    source: Source, overrides: Sequence[Override], points: int | None, sweep_keys: Iterable[str]
) -> Source:
    """Returns the source with the settings of the command line on top.

    Args:
      source: the file.
      overrides: in order. A key that begins with none of `sweep_keys` is a path into `base`. Local paths in
        values are relative to the current folder.
      points: number of points of the design. None keeps the file's.
      sweep_keys: the top-level keys of a sweep file.
    """
    tree, places, known = dict(source.tree), dict(source.places), set(sweep_keys)
    lookup = Lookup.here()
    for override in overrides:
        first, _, rest = override.key.partition(".")
        if first in known and not rest:
            tree[first] = override.value
        else:
            branch, key = (first, rest) if first in known else ("base", override.key)
            below = tree.get(branch)
            tree[branch] = below = dict(below) if isinstance(below, dict) else {}
            _replace(below, key, override.value)
            if branch == "design":
                tree[branch] = _told_once(below, {key: override.value})
        path = override.key if first in known else f"base.{override.key}"
        places = {key: place for key, place in places.items() if not key.startswith(f"{path}.")}
        places[path] = override.place
    if overrides:
        # Paths from files are absolute by now, so this changes only those of the overrides.
        tree = with_absolute_places(tree, lookup)
    if points is not None and isinstance(tree.get("design"), dict):
        tree["design"] = _told_once(tree["design"] | {"points": points}, {"points": points})
        places["design.points"] = f"--points {points}"
    return Source(source.name, tree, places, source.in_vain, {**source.relative, **lookup.relative})


def _replace(tree: dict[str, Any], path: str, value: Any) -> None:
    """Sets a path in a tree whose keys may be dotted. Everything below the path is dropped."""
    for key in [key for key in tree if key == path or key.startswith(f"{path}.")]:
        del tree[key]
    wholes = [key for key in tree if path.startswith(f"{key}.") and isinstance(tree[key], dict)]
    if wholes:
        whole = max(wholes, key=len)
        tree[whole] = branch = dict(tree[whole])
        _replace(branch, path.removeprefix(f"{whole}."), value)
    else:
        tree[path] = value
