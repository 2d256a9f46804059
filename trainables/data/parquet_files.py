"""Finds the Parquet files of a data set, and the split that each belongs to."""

import posixpath
import re
import shlex
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Any

import pyarrow.fs
from pydantic import Field, field_validator

from trainables.base import SPLITS, DataError, Frozen, Split
from trainables.io.storage import open_filesystem

#: First words of names of files or folders, as on the Hugging Face hub, and the split they stand for.
WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout", "heldout"), "test"),
}

#: The number of a shard, and how many there are: `train-00003-of-00257.parquet`.
_SHARD = re.compile(r"(.*?)[-_.](\d+)-of-(\d+)\b")


#: Extensions by which a folder of pictures is recognised.
_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")


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
    names = sorted(
        name
        for entry in listed
        if entry.type == pyarrow.fs.FileType.File
        and (name := posixpath.relpath(entry.path, inner)).endswith(".parquet")
        and not any(part.startswith((".", "_")) for part in name.split("/"))
    )
    if not names and any(entry.extension.lower() in _PICTURES for entry in listed):
        fault = f"{path}: holds pictures in folders, and no Parquet file."
        if "://" in path:
            raise DataError(
                f"{fault} Pack them on a disk, with `vitc-sweep data import`, and copy what it writes"
            )
        command = shlex.join(["vitc-sweep", "data", "import", path, f"{path.rstrip('/')}.parquet"])
        raise DataError(f"{fault} To pack them:  {command}")
    chosen = _named(path, names, splits) if splits else _recognised(path, names)
    files = {
        split: [posixpath.join(inner, name) for name in chosen[split]] for split in SPLITS if chosen[split]
    }
    found = Found(filesystem, files)
    used = {name for several in chosen.values() for name in several}
    if unused := [name for name in names if name not in used]:
        why = "`splits` does not name" if splits else "their names tell no split of"
        found.notices.append(f"left out {_some(unused)}: {why} {'it' if len(unused) == 1 else 'them'}")
    return found


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
        if not names:
            raise DataError(f"{path}: holds no file named train*.parquet")
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
    there: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if shard := _SHARD.match(name):
            there.setdefault((shard[1], int(shard[3])), set()).add(int(shard[2]))
    counts: dict[str, list[int]] = {}
    for (prefix, count), numbers in there.items():
        counts.setdefault(prefix, []).append(count)
        if missing := sorted(set(range(count)) - numbers):
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
