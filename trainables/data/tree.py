"""Finds the images of a folder tree with one folder per class, and what in it is no image of a class."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainables.base import SPLITS, DataError, Split
from trainables.data.parquet_files import WORDS

#: Names that file managers, notebooks and archives leave in folders.
_OF_THE_SYSTEM = {
    "__macosx",
    "@eadir",
    "thumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
}


@dataclass
class Tree:
    """The files of a tree.

    Attributes:
      classes: names, in the order of their labels.
      files: by split, files with their class number; under "train" alone if the tree has no splits.
      has_splits: whether the tree is divided into splits.
      left_out: files and folders that belong to no class, with the reason.
    """

    classes: tuple[str, ...] = ()
    files: dict[Split, list[tuple[Path, int]]] = field(default_factory=dict)
    has_splits: bool = False
    left_out: dict[Path, str] = field(default_factory=dict)


def find_tree(source: Path, is_image: Callable[[Path], bool]) -> Tree:
    """Finds classes, splits and files.

    A folder that holds only one other folder is looked through. Folders named `train`, `val`, `test` and the
    like with folders in them are splits. Links to folders are followed above the classes only.

    Args:
      source: the tree.
      is_image: looks at a file. A folder without an image is no class; other files are not looked at.

    Raises:
      DataError: a folder cannot be read, there are fewer than two classes, or a split has classes that train
        lacks.
    """
    if not source.is_dir():
        raise DataError(f"{source}: there is no such folder")
    tree = Tree()
    root = _unwrapped(source, tree)
    splits = _splits(root, tree)
    tree.has_splits = splits is not None
    places = splits or {"train": root}
    found = {split: _classes(folder, tree, is_image) for split, folder in places.items()}
    classes = found["train"]
    if len(classes) < 2:
        held = f"one class only, {next(iter(classes))!r}" if classes else "no folders with images"
        raise DataError(f"{root}: holds {held}; a data set is a folder of images per class, of two or more")
    for split, others in found.items():
        if strange := sorted(others.keys() - classes.keys()):
            raise DataError(f"{root}: {split} has {_some(strange)}, and train has no class of that name")
    tree.classes = tuple(sorted(classes))
    number = {name: label for label, name in enumerate(tree.classes)}
    for split in SPLITS:
        if split in found:
            tree.files[split] = [
                (path, number[name]) for name in sorted(found[split]) for path in found[split][name]
            ]
    return tree


def _unwrapped(folder: Path, tree: Tree) -> Path:
    """Returns the innermost folder that alone holds everything."""
    while True:
        folders, files = _content(folder, tree)
        if files or len(folders) != 1 or not any(_content(folders[0], tree)[0]):
            return folder
        folder = folders[0]


def _splits(root: Path, tree: Tree) -> dict[Split, Path] | None:
    """Returns the folders of splits, or None if the folders of the root are classes."""
    folders, files = _content(root, tree)
    named = {folder: WORDS[folder.name.lower()] for folder in folders if folder.name.lower() in WORDS}
    divided = {folder: split for folder, split in named.items() if _content(folder, tree)[0]}
    if "train" not in divided.values():
        if divided:
            raise DataError(f"{root}: holds {_some(sorted(f.name for f in divided))} and no folder `train`")
        return None
    splits: dict[Split, Path] = {}
    for folder, split in divided.items():
        if (other := splits.setdefault(split, folder)) != folder:
            raise DataError(f"{root}: {other.name} and {folder.name} are both the {split} split")
    for folder in folders:
        if folder not in divided:
            why = "a split without folders of classes" if folder in named else "beside the splits, and none"
            tree.left_out[folder] = why
    tree.left_out |= dict.fromkeys(files, "in no folder of a class")
    return splits


def _classes(root: Path, tree: Tree, is_image: Callable[[Path], bool]) -> dict[str, list[Path]]:
    """Returns the files below each folder of a folder."""
    folders, files = _content(root, tree)
    tree.left_out |= dict.fromkeys(files, "in no folder of a class")
    classes = {}
    for folder in folders:
        inside = sorted(_files_below(folder, tree))
        if any(map(is_image, inside)):
            classes[folder.name] = inside
        else:
            tree.left_out[folder] = "a folder without images"
    return classes


def _files_below(folder: Path, tree: Tree) -> Iterator[Path]:
    folders, files = _content(folder, tree)
    yield from files
    for inner in folders:
        if inner.is_symlink():
            # It may lead out of the tree, or back into it.
            tree.left_out[inner] = "a link to a folder"
        else:
            yield from _files_below(inner, tree)


def _content(folder: Path, tree: Tree) -> tuple[list[Path], list[Path]]:
    """Returns folders and files of a folder, each sorted, without what is hidden."""
    folders, files = [], []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith(".") or entry.name.lower() in _OF_THE_SYSTEM:
            tree.left_out[path] = "hidden, or of the system"
        elif entry.is_dir():
            folders.append(path)
        elif entry.is_file():
            files.append(path)
        else:
            tree.left_out[path] = "a link that leads nowhere" if entry.is_symlink() else "no file"
    return folders, files


def left_out_lines(source: Path, left_out: Mapping[Path, str]) -> list[str]:
    """Describes what was left out: one line per reason, with the kinds of files and some of them."""
    lines = []
    by_reason: dict[str, list[Path]] = {}
    for path, reason in left_out.items():
        by_reason.setdefault(reason, []).append(path)
    for reason, paths in by_reason.items():
        kinds = Counter(path.suffix.lower() or path.name for path in paths)
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
        first = ", ".join(os.path.relpath(path, source) for path in paths[:2])
        more = ", ..." if len(paths) > 2 else ""
        lines.append(f"left out {len(paths):,}: {reason} ({shown}): {first}{more}")
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
