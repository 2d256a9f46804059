"""Makes local paths in a configuration file absolute, because workers run in folders of their own.

Fields that hold paths have the type `trainables.io.storage.Place`. A new setting of this type needs no
change here.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainables.io.faults import Branch, below, items
from trainables.io.surroundings import check_folder
from trainables.presets import expand


@dataclass(frozen=True, slots=True)
class Lookup:
    """The folders in which relative paths are looked up.

    Attributes:
      folders: in order of search. A path that exists in none of them is taken relative to the first one.
      keeps: whether a path that exists in none of them stays relative instead.
      in_vain: for each absolute path whose file was not found, a sentence that names the searched folders.
      relative: for each path that was made absolute, the text that was written.
    """

    folders: Sequence[Path]
    keeps: bool = False
    in_vain: dict[str, str] = field(default_factory=dict)
    relative: dict[str, str] = field(default_factory=dict)

    @classmethod
    def beside(cls, file: Path) -> "Lookup":
        """Searches the folder of a file, then the current folder."""
        check_folder()
        return cls([file.parent.absolute(), Path.cwd()])

    @classmethod
    def here(cls) -> "Lookup":
        """Searches the current folder."""
        check_folder()
        return cls([Path.cwd()])

    @classmethod
    def above(cls, folder: Path) -> "Lookup":
        """Searches the parents of a folder of results, the nearest first, then the current folder."""
        return cls([*folder.absolute().parents, Path.cwd()], keeps=True)

    def absolute(self, written: str) -> str:
        """Returns a path that every process can open. URIs and absolute paths stay unchanged."""
        path = self._found(written)
        if path != written:
            self.relative[path] = written
        return path

    def _found(self, written: str) -> str:
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
    """Returns the path without `.` and `..`, unless a symbolic link makes that a different file."""
    normal = os.path.normpath(path)
    try:
        return normal if os.path.realpath(normal) == os.path.realpath(path) else path
    except ValueError:
        # The text cannot be a path; opening it raises the error.
        return path


def explained(message: str, in_vain: Mapping[str, str]) -> str:
    """Returns the message with the folders in which a path that it names was searched."""
    notes = [note for place, note in in_vain.items() if f"{place}:" in message]
    return message + "".join(f" ({note})" for note in notes)


def with_absolute_paths(value: Any, kinds: Sequence[Branch], lookup: Lookup, path: str = "") -> Any:
    """Returns a part of an unchecked configuration with every local path made absolute.

    Args:
      value: the part; keys may be dotted, and short forms stay short.
      kinds: the types that this part may have.
      lookup: the folders in which relative paths are looked up.
      path: the dotted path of the part in a run.
    """
    if isinstance(value, str):
        # `data: photos.parquet` is short for a mapping with the place in it.
        short = expand(path, value)
        whole = [] if short is value else [below(kinds, key) for key in short if short[key] == value]
        marks = [kind.place for found in (kinds, *whole) for kind in found if kind.place]
        return marks[0].settled(value, lookup.absolute) if marks else value
    if isinstance(value, Mapping):
        # Not a comprehension, whose extra stack frames could exceed the recursion limit on a nested file
        # that the YAML reader accepted.
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
    """Returns the types that a value at a dotted path may have."""
    for key in str(path).split("."):
        kinds = below(kinds, key)
    return kinds
