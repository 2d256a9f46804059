"""Finds the images of a folder tree with one folder per class, and what in it is no image of a class."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainables.base import SPLITS, DataError, Split
from trainables.data.parquet_files import WORDS
from trainables.io.streams import printable

#: Names that file managers, notebooks and archives leave in folders.
_OF_THE_SYSTEM = {
    "__macosx",
    "@eadir",
    "thumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
}

_LOOSE = "in no folder of a class"


@dataclass
class Tree:
    """The files of a tree.

    Attributes:
      classes: names, in the order of their labels.
      files: by split, files with their class number; under "train" alone if the tree has no splits.
      has_splits: whether the tree is divided into splits.
      left_out: files and folders that belong to no class, with the reason.
      notices: sentences about the tree that its user should know.
    """

    classes: tuple[str, ...]
    files: dict[Split, list[tuple[Path, int]]]
    has_splits: bool
    left_out: dict[Path, str]
    notices: list[str] = field(default_factory=list)


def find_tree(source: Path, is_image: Callable[[Path], bool]) -> Tree:
    """Finds classes, splits and files.

    A folder that holds only one other folder is looked through. Folders named `train`, `val`, `test` and the
    like with folders in them are splits. Links to folders outside the tree are followed above the classes
    only, each folder once.

    Args:
      source: the tree.
      is_image: looks at a file. A folder without an image is no class; other files are not looked at.

    Raises:
      DataError: a folder cannot be read, there are fewer than two classes, a split has classes that train
        lacks, or folders named as splits are not arranged as splits.
    """
    if not source.is_dir():
        raise DataError(
            f"{source}: is a file; an import reads a folder with a folder of images per class"
            if source.exists()
            else f"{source}: there is no such folder"
        )
    listing = _Listing(source)
    root = _unwrapped(source, listing, is_image)
    splits = _splits(root, listing)
    found = {
        split: _classes(folder, listing, is_image) for split, folder in (splits or {"train": root}).items()
    }
    classes = found["train"]
    if splits is None:
        _check_names(root, classes)
    _check_inside(found, listing)
    _check_number((splits or {"train": root})["train"], classes, listing)
    for split, others in found.items():
        if strange := sorted(others.keys() - classes.keys()):
            raise DataError(f"{root}: {split} has {_some(strange)}, and train has no class of that name")
        if not others and splits:
            listing.left_out[splits[split]] = "a split without images"
    names = tuple(sorted(classes))
    number = {name: label for label, name in enumerate(names)}
    files = {
        split: [(path, number[name]) for name in sorted(found[split]) for path in found[split][name].files]
        for split in SPLITS
        if found.get(split)
    }
    notices = [*_deeper(source, found.values()), *alike(names)]
    return Tree(names, files, splits is not None, listing.left_out, notices)


@dataclass(frozen=True)
class _Class:
    """A folder, and all files in it and below it."""

    folder: Path
    files: list[Path]


class _Listing:
    """Lists each folder once, without what is hidden, and collects what is left out."""

    def __init__(self, source: Path) -> None:
        self.left_out: dict[Path, str] = {}
        self._known: dict[Path, tuple[list[Path], list[Path]]] = {}
        #: Real paths of the tree, and of the folders outside that links make part of it.
        self._places = [source.resolve()]

    def of(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Returns folders and files of a folder, each in the order of their names."""
        if folder not in self._known:
            self._known[folder] = self._read(folder)
        return self._known[folder]

    def _read(self, folder: Path) -> tuple[list[Path], list[Path]]:
        folders: list[Path] = []
        files: list[Path] = []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
        for entry in entries:
            path = Path(entry.path)
            if is_hidden(entry.name):
                self.left_out[path] = "hidden, or of the system"
                continue
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            # A link to itself, or into a folder that cannot be read.
            except OSError:
                is_folder = is_file = False
            if is_folder and entry.is_symlink() and not self._is_new(path):
                self.left_out[path] = "a link to a folder that is in the tree, or around it"
            elif is_folder:
                folders.append(path)
            elif is_file:
                files.append(path)
            else:
                self.left_out[path] = "a link that leads nowhere" if entry.is_symlink() else "no file"
        return folders, files

    def _is_new(self, link: Path) -> bool:
        """Returns whether a linked folder shares nothing with those known, and makes it known."""
        place = link.resolve()
        if any(place.is_relative_to(known) or known.is_relative_to(place) for known in self._places):
            return False
        self._places.append(place)
        return True


def is_hidden(name: str) -> bool:
    """Returns whether a name is of a hidden file, or of one that a file manager or archive leaves behind."""
    return name.startswith(".") or name.lower() in _OF_THE_SYSTEM


def _unwrapped(folder: Path, listing: _Listing, is_image: Callable[[Path], bool]) -> Path:
    """Returns the innermost folder that alone holds all folders."""
    while True:
        folders, files = listing.of(folder)
        if len(folders) != 1 or not listing.of(folders[0])[0] or any(map(is_image, files)):
            return folder
        listing.left_out |= dict.fromkeys(files, _LOOSE)
        folder = folders[0]


# ---------------------------------------------------------------------------------------------------
# Splits


def _split_named(name: str) -> Split | None:
    """Returns the split that a word of a name stands for, as in `seg_train`. None unless it is one."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    splits = {WORDS[word.lower()] for word in words if word.lower() in WORDS}
    return splits.pop() if len(splits) == 1 else None


def _is_plain(folder: Path) -> bool:
    """Returns whether the whole name of a folder is a word for a split."""
    return folder.name.lower() in WORDS


def _splits(root: Path, listing: _Listing) -> dict[Split, Path] | None:
    """Returns the folders of splits, or None if the folders of the root are classes.

    A name such as `seg_train` is less certain than `train`: such a folder is a split only if there is no
    folder of the plain name, and if training and another split have a class in common.

    Raises:
      DataError: two folders are the same split, or there is no train.
    """
    folders, files = listing.of(root)
    likely: dict[Split, list[Path]] = {}
    taught: set[str] = set()
    for split in SPLITS:
        of_split = [f for f in folders if _split_named(f.name) == split and listing.of(f)[0]]
        likely[split] = [folder for folder in of_split if _is_plain(folder)] or of_split
        if split == "train":
            taught = {name for folder in likely[split] for name in _names_inside(folder, split, listing)}
        else:
            likely[split] = [
                folder
                for folder in likely[split]
                if _is_plain(folder) or taught & _names_inside(folder, split, listing)
            ]
    evaluated = likely["val"] + likely["test"]
    if not likely["train"]:
        if evaluated:
            held = _some(folder.name for folder in evaluated)
            raise DataError(f"{root}: holds {held} and no folder `train` with a folder of images per class")
        return None
    if not evaluated and not _is_plain(likely["train"][0]):
        return None
    splits: dict[Split, Path] = {}
    for split, several in likely.items():
        if len(several) > 1:
            one, other = several[:2]
            raise DataError(f"{root}: {one.name} and {other.name} are both the {split} split")
        if several:
            splits[split] = _inner(several[0], split, listing)
    outer = [folder for several in likely.values() for folder in several]
    for folder in folders:
        if folder not in outer:
            no_classes = _split_named(folder.name) and not listing.of(folder)[0]
            why = "a split without folders of classes" if no_classes else "beside the splits, and none"
            listing.left_out[folder] = why
    listing.left_out |= dict.fromkeys(files, _LOOSE)
    return splits


def _inner(folder: Path, split: Split, listing: _Listing) -> Path:
    """Looks through folders in a split that are named as the split again: `seg_train/seg_train`."""
    while True:
        folders, files = listing.of(folder)
        if len(folders) != 1 or _split_named(folders[0].name) != split or not listing.of(folders[0])[0]:
            return folder
        listing.left_out |= dict.fromkeys(files, _LOOSE)
        folder = folders[0]


def _names_inside(folder: Path, split: Split, listing: _Listing) -> set[str]:
    return {_class_name(inner) for inner in listing.of(_inner(folder, split, listing))[0]}


def _check_number(root: Path, classes: Mapping[str, _Class], listing: _Listing) -> None:
    """Raises `DataError` if there are fewer than two classes."""
    if len(classes) > 1:
        return
    held, hint = "no folders with images", ""
    for name, one in classes.items():
        held = f"one class only, {name!r}"
        if len(listing.of(one.folder)[0]) > 1:
            hint = f". To import the folders in it, name {one.folder}"
    raise DataError(f"{root}: holds {held}; a data set is a folder of images per class, of two or more{hint}")


def _check_names(root: Path, classes: Iterable[str]) -> None:
    """Raises `DataError` if classes are named as training and evaluation: then they are no classes."""
    named = {name: split for name in classes if (split := _split_named(name))}
    if "train" in named.values() and len(set(named.values())) > 1:
        raise DataError(
            f"{root}: holds {_some(named)}, which are named as splits and not classes; the folders of splits "
            "hold a folder of images per class, and their classes have the same names"
        )


def _check_inside(found: Mapping[Split, Mapping[str, _Class]], listing: _Listing) -> None:
    """Raises `DataError` if a class holds splits: its images would all be of one split."""
    for classes in found.values():
        for one in classes.values():
            named = {inner.name: _split_named(inner.name) for inner in listing.of(one.folder)[0]}
            if "train" in named.values() and {"val", "test"} & set(named.values()):
                shown = _some(name for name, split in named.items() if split)
                raise DataError(
                    f"{one.folder}: is a class that holds the splits {shown}; a tree is read with the splits "
                    "outside and the classes in them: train/cat, not cat/train"
                )


# ---------------------------------------------------------------------------------------------------
# Classes


def _classes(root: Path, listing: _Listing, is_image: Callable[[Path], bool]) -> dict[str, _Class]:
    """Returns the folders of a folder that hold images, by the names of their classes.

    Raises:
      DataError: the name of a folder is no text, or two folders have the same name.
    """
    folders, files = listing.of(root)
    listing.left_out |= dict.fromkeys(files, _LOOSE)
    classes: dict[str, _Class] = {}
    for folder in folders:
        inside = _files_below(folder, listing)
        if not any(map(is_image, inside)):
            listing.left_out[folder] = "a folder without images"
            continue
        name = _class_name(folder)
        if printable(name) != name:
            raise DataError(f"{printable(folder)}: the name of a class must be text that can be printed")
        if name in classes:
            raise DataError(f"{root}: holds two folders {name!r}, whose names differ in their encoding only")
        classes[name] = _Class(folder, inside)
    return classes


def _class_name(folder: Path) -> str:
    # Archives from a Mac write é as two characters, others as one.
    return unicodedata.normalize("NFC", folder.name)


def _files_below(folder: Path, listing: _Listing) -> list[Path]:
    """Returns the files in a folder and in the folders in it, sorted."""
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        folders, files = listing.of(waiting.pop())
        found += files
        for inner in folders:
            if inner.is_symlink():
                listing.left_out[inner] = "a link to a folder"
            else:
                waiting.append(inner)
    return sorted(found)


def _deeper(source: Path, found: Iterable[Mapping[str, _Class]]) -> Iterator[str]:
    """Yields a notice of files in folders inside classes."""
    deeper = [
        file
        for classes in found
        for one in classes.values()
        for file in one.files
        if file.parent != one.folder
    ]
    if deeper:
        inner = _shown(sorted({os.path.relpath(file.parent, source) for file in deeper}), 3)
        yield f"{len(deeper):,} files are in folders inside their class, and count in the class: {inner}"


def alike(names: Iterable[str]) -> Iterator[str]:
    """Yields notices of classes that may be meant to be one."""
    known: dict[str, str] = {}
    for name in names:
        if (other := known.setdefault("".join(name.casefold().split()), name)) != name:
            yield f"{other!r} and {name!r} are two classes, whose names differ in case or spaces only"


# ---------------------------------------------------------------------------------------------------
# Words


def left_out_lines(source: Path, left_out: Mapping[Path, str]) -> list[str]:
    """Describes what was left out: one line per reason, with the kinds of files and the first of them."""
    by_reason: dict[str, list[Path]] = {}
    for path, reason in left_out.items():
        by_reason.setdefault(reason, []).append(path)
    lines = []
    for reason, paths in by_reason.items():
        first = _shown([os.path.relpath(path, source) for path in paths], 3)
        lines.append(f"left out {_counted(paths)}: {reason}: {first}")
    return lines


def _counted(paths: list[Path]) -> str:
    """Returns how many files and folders there are, and how many files in the folders."""
    folders = [path for path in paths if path.is_dir() and not path.is_symlink()]
    files = set(paths).difference(folders)
    parts = []
    if files:
        kinds = Counter((path.suffix or path.name).lower() for path in files)
        several = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        shown = _shown([f"{count:,} {kind}" for kind, count in several], 4)
        parts.append(f"{len(files):,} file{'s' * (len(files) > 1)} ({shown})")
    if folders:
        inside = sum(len(files) for folder in folders for _, _, files in os.walk(folder))
        held = f"{inside:,} file{'s' * (inside != 1)} in {'them' if len(folders) > 1 else 'it'}"
        parts.append(f"{len(folders):,} folder{'s' * (len(folders) > 1)} ({held})")
    return " and ".join(parts)


def _shown(names: list[str], most: int) -> str:
    return ", ".join(map(printable, names[:most])) + (", ..." if len(names) > most else "")


def _some(names: Iterable[str]) -> str:
    several = sorted(names)
    return ", ".join(map(repr, several[:3])) + (f" and {len(several) - 3} more" if len(several) > 3 else "")
