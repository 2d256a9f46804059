"""Finds the Parquet files of a data set, and the split that each belongs to."""

import os
import posixpath
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow.fs
from pydantic import Field, field_validator

from trainables.base import SPLITS, DataError, Frozen, Split
from trainables.data.kinds import image_extensions
from trainables.io.storage import open_filesystem

#: First words of names of files or folders, as on the Hugging Face hub, and the split they stand for.
WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout", "heldout"), "test"),
}

#: The number of a shard, and how many there are: `train-00003-of-00257.parquet`.
_SHARD = re.compile(r"(.*?)[-_.](\d+)-of-(\d+)\b")

#: A number at the end of a name that does not say how many there are: `train-3.parquet`, `0003.parquet`.
_NUMBERED = re.compile(r"(.*?)[-_.]?(\d+)\.parquet", re.IGNORECASE)


class SplitFiles(Frozen):
    """The files of each split, by names or patterns relative to the path: `en/train-*.parquet`."""

    train: tuple[str, ...] = Field(min_length=1, description="Files to train on.")
    val: tuple[str, ...] = Field((), description="Files of the selection split; held out if left out.")
    test: tuple[str, ...] = Field((), description="Files of the final split; held out if left out.")

    @field_validator("*", mode="before")
    @classmethod
    def _as_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Found:
    """The files of a data set.

    Attributes:
      filesystem: where they are.
      files: their paths by split, in the order of their names.
      notices: sentences about files that are left out.
    """

    def __init__(self, filesystem: pyarrow.fs.FileSystem, files: dict[Split, list[str]]) -> None:
        self.filesystem = filesystem
        self.files = files
        self.notices: list[str] = []


def find_files(path: str, splits: SplitFiles | None) -> Found:
    """Finds the files at a path: one file, or those of a folder and the folders in it.

    Without `splits`, the first word of a file's name, or of a folder's around it, says its split.

    Raises:
      DataError: there are none, shards are missing, or the files are of several data sets.
    """
    filesystem, inner = open_filesystem(path)
    try:
        kind = filesystem.get_file_info(inner).type
        if kind == pyarrow.fs.FileType.File:
            if splits:
                raise DataError(f"{path}: is one file, and `splits` names the files of a folder")
            return Found(filesystem, {"train": [inner]})
        if kind != pyarrow.fs.FileType.Directory:
            raise DataError(f"{path}: there is no such file or folder")
        listed = filesystem.get_file_info(pyarrow.fs.FileSelector(inner, recursive=True))
    except OSError as error:
        raise DataError(f"{path}: {error}") from error
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        listed = [entry for entry in listed if not _is_loop(entry.path, inner)]
        _check_links(path, inner)
    named = {
        name: entry.type
        for entry in listed
        if entry.type != pyarrow.fs.FileType.Directory
        and (name := posixpath.relpath(entry.path, inner)).lower().endswith(".parquet")
        and not any(part.startswith((".", "_")) for part in name.split("/"))
    }
    names = sorted(named)
    if unusable := [name for name in names if named[name] != pyarrow.fs.FileType.File]:
        raise DataError(f"{path}: {unusable[0]} is no file, but a pipe or a device")
    if not names and any(f".{entry.extension.lower()}" in image_extensions() for entry in listed):
        fault = f"{path}: holds pictures in folders, and no Parquet file."
        if "://" in path:
            raise DataError(
                f"{fault} Pack them on a disk, with `vitc-sweep data import`, and copy what it writes"
            )
        # Splits become a file each.
        folders = {posixpath.relpath(entry.path, inner).split("/")[0].lower() for entry in listed}
        target = (
            "_splits" if folders & {word for word, split in WORDS.items() if split == "train"} else ".parquet"
        )
        command = shlex.join(["vitc-sweep", "data", "import", path, path.rstrip("/") + target])
        raise DataError(f"{fault} To pack them:  {command}")
    if not names:
        raise DataError(f"{path}: holds no Parquet file, {_held(listed)}")
    chosen = _named(path, names, splits) if splits else _recognised(path, names)
    files = {
        split: [posixpath.join(inner, name) for name in chosen[split]] for split in SPLITS if chosen[split]
    }
    found = Found(filesystem, files)
    used = {name for several in chosen.values() for name in several}
    if unused := [name for name in names if name not in used]:
        one = len(unused) == 1
        why = f"which `splits` does not name: {_some(unused)}" if splits else f"{_some(unused)}"
        told = "" if splits else f": {'its name tells' if one else 'their names tell'} no split"
        found.notices.append(f"left out {len(unused)} file{'s' * (not one)}, {why}{told}")
    if not splits:
        found.notices += [text for split in SPLITS for text in _remarks(split, chosen[split])]
    return found


def _is_loop(path: str, root: str) -> bool:
    """Returns whether a path under a root leads through a link to the root, or to a folder around it."""
    root = os.path.realpath(root)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    while len(folder) > len(root):
        if os.path.islink(folder) and Path(root).is_relative_to(os.path.realpath(folder)):
            return True
        folder = os.path.dirname(folder)
    return False


def _check_links(path: str, root: str) -> None:
    """Raises `DataError` for a link to a Parquet file that is gone. pyarrow does not list it."""
    for folder, _, names in os.walk(root):
        for name in names:
            link = os.path.join(folder, name)
            if (
                name.lower().endswith(".parquet")
                and not name.startswith((".", "_"))
                and not os.path.exists(link)
            ):
                raise DataError(f"{path}: {os.path.relpath(link, root)} is a link that leads nowhere")


def _held(listed: Sequence[pyarrow.fs.FileInfo]) -> str:
    """Describes the files of a folder that is no data set, by their kinds."""
    kinds = Counter(
        f".{entry.extension}" if entry.extension else entry.base_name
        for entry in listed
        if entry.type == pyarrow.fs.FileType.File
    )
    if not kinds:
        return "nor any other"
    return "only " + _some([f"{count:,} {kind}" for kind, count in kinds.most_common()])


def _remarks(split: Split, names: Sequence[str]) -> Iterator[str]:
    """Yields sentences about files of one split that may not belong together, or are not all there."""
    series: dict[str, list[int]] = {}
    for name in names:
        if shard := _SHARD.match(name):
            series.setdefault(shard[1], [])
        elif numbered := _NUMBERED.fullmatch(name):
            series.setdefault(numbered[1], []).append(int(numbered[2]))
        else:
            series.setdefault(name, [])
    if len(series) > 1:
        yield f"{split}: files of {len(series)} names are read as one split: {_some(list(series))}"
    for prefix, numbers in series.items():
        if numbers and (missing := sorted(set(range(min(numbers), max(numbers))) - set(numbers))):
            yield (
                f"{split}: {len(missing)} of the files {prefix}* that are numbered up to {max(numbers)} are "
                f"missing, the first is number {missing[0]}"
            )


def _named(path: str, names: Sequence[str], splits: SplitFiles) -> dict[Split, list[str]]:
    patterns: dict[Split, tuple[str, ...]] = {"train": splits.train, "val": splits.val, "test": splits.test}
    chosen: dict[Split, list[str]] = {split: [] for split in SPLITS}
    owner: dict[str, Split] = {}
    for split, several in patterns.items():
        for pattern in several:
            matching = [name for name in names if fnmatch(name, pattern)]
            if not matching:
                raise DataError(f"{path}: holds no Parquet file {pattern!r}, which `splits.{split}` names")
            for name in matching:
                if (other := owner.setdefault(name, split)) != split:
                    raise DataError(f"{path}: `splits` names {name} for {other} and for {split}")
                if name not in chosen[split]:
                    chosen[split].append(name)
    return chosen


def _recognised(path: str, names: Sequence[str]) -> dict[Split, list[str]]:
    chosen: dict[Split, list[str]] = {split: [] for split in SPLITS}
    folders: dict[str, str] = {}
    for name in names:
        split, folder = _split_of(name)
        if split is not None:
            chosen[split].append(name)
            folders.setdefault(folder, name)
    if not chosen["train"]:
        raise DataError(
            f"{path}: holds no file named train*.parquet, only {_some(names)}; `splits` can say which files "
            "are which"
        )
    if len(folders) > 1:
        one, other = list(folders.values())[:2]
        raise DataError(
            f"{path}: holds several data sets, as {one} and {other}: give the folder of one of them, or name "
            "the files under `splits`"
        )
    for split, several in chosen.items():
        _check_shards(path, split, several)
    return chosen


def _split_of(name: str) -> tuple[Split | None, str]:
    """Returns the split of a file, and the folder of the data set that it belongs to."""
    *folders, base = name.split("/")
    if split := _first_word(base):
        # Of `train/train-0.parquet`, both parts say the split.
        if folders and _first_word(folders[-1]) == split:
            folders.pop()
        return split, "/".join(folders)
    for depth in range(len(folders) - 1, -1, -1):
        if split := _first_word(folders[depth]):
            return split, "/".join(folders[:depth])
    return None, ""


def _first_word(name: str) -> Split | None:
    word = re.match(r"[a-z]*", name.lower())
    return WORDS.get(word[0]) if word else None


def _check_shards(path: str, split: Split, names: Iterable[str]) -> None:
    """Raises `DataError` unless the numbered files of a split are all there, of one numbering."""
    there: dict[tuple[str, int], dict[int, str]] = {}
    for name in names:
        if shard := _SHARD.match(name):
            known = there.setdefault((shard[1], int(shard[3])), {})
            if (other := known.setdefault(int(shard[2]), name)) != name:
                raise DataError(
                    f"{path}: {other} and {name} are both number {int(shard[2])} of {shard[3]}: name "
                    "those to use under `splits`"
                )
    counts: dict[str, list[int]] = {}
    for (prefix, count), numbers in there.items():
        counts.setdefault(prefix, []).append(count)
        if missing := sorted(set(range(count)) - numbers.keys()):
            raise DataError(
                f"{path}: {len(missing)} of {count} {split} files are missing, the first is number "
                f"{missing[0]} of {prefix}-*-of-{count:05d}: copy them, too, or name others under `splits`"
            )
    for prefix, several in counts.items():
        if len(several) > 1:
            raise DataError(
                f"{path}: {prefix} is there in {several[0]} and in {several[1]} parts: name those to use "
                "under `splits`"
            )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
