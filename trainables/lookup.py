"""Local paths that a file names, made absolute where it is read: workers run in folders of their own.

Which texts name a place is said by the types of their fields (`places.Place`), so a new setting that holds a
path is looked up without a word here.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainables.io.faults import Branch, below, items
from trainables.presets import expand


@dataclass(frozen=True, slots=True)
class Lookup:
    """Where relative paths are looked for.

    Attributes:
      folders: in order; a path is taken from the first one that has it, else it is of the first one.
      keeps: whether a path that none of them has stays as it is written.
      in_vain: where a path that none of them has was looked for, in words, by what it became.
    """

    folders: Sequence[Path]
    keeps: bool = False
    in_vain: dict[str, str] = field(default_factory=dict)

    @classmethod
    def beside(cls, file: Path) -> "Lookup":
        """In the folder of a file, then in the current one."""
        return cls([file.parent.absolute(), Path.cwd()])

    @classmethod
    def here(cls) -> "Lookup":
        """In the current folder."""
        return cls([Path.cwd()])

    @classmethod
    def above(cls, folder: Path) -> "Lookup":
        """In the folders that a folder of results lies in, the nearest first, then in the current one."""
        return cls([*folder.absolute().parents, Path.cwd()], keeps=True)

    def absolute(self, written: str) -> str:
        """A path as every process can open it; URIs and absolute paths stay as they are."""
        path = os.path.expanduser(written)
        if not path or "://" in path or os.path.isabs(path):
            return path
        tried = [os.path.join(folder, path) for folder in dict.fromkeys(self.folders)]
        for place in tried:
            if os.path.exists(place):
                return _normal(place)
        if self.keeps:
            return written
        place = _normal(tried[0])
        if len(tried) > 1:
            self.in_vain[place] = f"{written} was looked for in {' and in '.join(map(str, self.folders))}"
        return place


def _normal(path: str) -> str:
    """The path without `.` and `..`, unless a link makes that another place."""
    normal = os.path.normpath(path)
    try:
        return normal if os.path.realpath(normal) == os.path.realpath(path) else path
    except ValueError:
        # What no file can be called; whoever opens it says so.
        return path


def explained(message: str, in_vain: Mapping[str, str]) -> str:
    """The message with where a path that it names was looked for."""
    notes = [note for place, note in in_vain.items() if f"{place}:" in message]
    return message + "".join(f" ({note})" for note in notes)


def with_absolute_paths(value: Any, kinds: Sequence[Branch], lookup: Lookup, path: str = "") -> Any:
    """A part of a configuration, unchecked, with every local path in it made absolute.

    Args:
      value: keys may be dotted; short forms stay short.
      kinds: the types that may stand there.
      lookup: where relative paths are looked for.
      path: of the part in a run.
    """
    if isinstance(value, str):
        # `data: photos.parquet` is short for a mapping with the place in it.
        short = expand(path, value)
        whole = [] if short is value else [below(kinds, key) for key in short if short[key] == value]
        marks = [kind.place for found in (kinds, *whole) for kind in found if kind.place]
        return marks[0].settled(value, lookup.absolute) if marks else value
    if isinstance(value, Mapping):
        # Not in a comprehension: what was not nested too deeply for YAML is not for us.
        result = {}
        for key, part in value.items():
            inner = f"{path}.{key}".lstrip(".")
            result[key] = with_absolute_paths(part, kinds_at(kinds, key), lookup, inner)
        return result
    if isinstance(value, list | tuple):
        parts = []
        for part in value:
            parts.append(with_absolute_paths(part, items(kinds), lookup))  # noqa: PERF401
        return parts
    return value


def kinds_at(kinds: Sequence[Branch], path: str) -> Sequence[Branch]:
    """The types that may stand at a dotted path."""
    for key in str(path).split("."):
        kinds = below(kinds, key)
    return kinds
