"""Packs the images of a folder tree into Parquet files."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import pyarrow as pa

from trainables.base import DataError, Split
from trainables.data.kinds import is_image
from trainables.data.packing_parts import LAYOUT, Layout, Packer, Part, Record
from trainables.data.packing_pool import pack_all
from trainables.data.packing_state import State, stamp_of
from trainables.data.tree import Tree, find_tree
from trainables.io.streams import printable

#: Images that a process decodes at a time. A photograph of 12 megapixels takes 36 MB then.
_MOST_THREADS = 8

#: Suffixes of files that an import does not write. A folder of such a name is not meant.
_OTHER_FORMATS = {
    ".arrow", ".csv", ".feather", ".h5", ".hdf5", ".json", ".jsonl", ".lmdb", ".npy", ".npz", ".parq", ".pq",
    ".tar", ".tfrecord", ".tsv", ".zip",
}  # fmt: skip

#: Bad images that a message names.
_NAMED = 20


@dataclass
class Imported:
    """The result of an import.

    Attributes:
      files: what was written, by split.
      classes: their names, in the order of their labels.
      counts: images of every class, by split.
      sides: the shortest and the longest side of an image, in pixels.
      num_turned: images that are stored turned or mirrored; readers turn them upright.
      dark: images that are nearly black.
      left_out: files and folders that are not in the set, with the reason.
      notices: sentences about the tree that its user should know.
    """

    files: dict[Split, list[Path]]
    classes: tuple[str, ...]
    counts: dict[Split, list[int]]
    sides: tuple[int, int] = (2**31, 0)
    num_turned: int = 0
    dark: list[Path] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """Images of all splits."""
        return sum(map(sum, self.counts.values()))


def import_folder(
    source: Path,
    target: Path,
    on_bad_image: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
    workers: int = 1,
    tell: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
    layout: Layout = LAYOUT,
) -> Imported:
    """Writes a tree of one folder of images per class as Parquet files in the Hugging Face image layout.

    A tree of splits becomes a folder with a file or several shards for each, any other tree one file, or a
    folder if `target` is one. Bytes are copied unchanged. Each image is decoded once to check it. Files
    appear once all are complete, and are the same whatever the number of workers.

    An import that was stopped or killed goes on where it was if it is called again with the same arguments.
    What is done lies in a hidden folder beside the target, or in it. An import that is too small for
    several parts begins anew instead.

    Args:
      source: the tree.
      target: a file `*.parquet`, or a folder.
      on_bad_image: fail: images that do not decode are an error, which names them all. skip: left out.
      overwrite: whether files that are there may be replaced.
      workers: images that are decoded at a time, in as many processes if there are as many parts. With more
        than one, the main module of the program must be safe to import.
      tell: is called with the number of files that are done, and of all.
      say: is called with a sentence on what an earlier import has left, or this one leaves.
      layout: sizes of files and parts.

    Raises:
      DataError: see `find_tree`; there is no image, an image does not decode, or a file is in the way.
        No file of the result is written.
    """
    tree = find_tree(source, is_image)
    _check_target(source, target, tree)
    plan = _planned(source, target, tree, layout)
    if not plan.state.is_publishing():
        _check_free(target, plan, overwrite)
    try:
        with _held(plan, say):
            return _imported(source, tree, plan, on_bad_image, workers, tell, say)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{target}: cannot be written: {error}") from error


@dataclass(frozen=True)
class _Plan:
    """The parts of an import, and the files that they become.

    Attributes:
      parts: by split, in the order of its files.
      targets: by split, a file for each part, or one for all of them.
      packer: packs them into the folder of the state.
      state: the folder.
    """

    parts: dict[Split, list[Part]]
    targets: dict[Split, list[Path]]
    packer: Packer
    state: State

    @property
    def has_several_parts(self) -> bool:
        """True if an import that is stopped may leave something worth keeping."""
        return any(len(several) > 1 for several in self.parts.values())


def _planned(source: Path, target: Path, tree: Tree, layout: Layout) -> _Plan:
    """Divides files into parts, by their number and sizes alone."""
    is_file = target.suffix.lower() == ".parquet"
    stamps: list[tuple[str, int, int, int]] = []
    plan: dict[Split, list[Part]] = {}
    targets: dict[Split, list[Path]] = {}
    for split, files in tree.files.items():
        sizes = []
        for path, label in files:
            size, changed = _size_and_change(path)
            sizes.append(size)
            stamps.append((os.path.relpath(path, source), label, size, changed))
        is_large = sum(sizes) > layout.shard_bytes or len(files) > layout.shard_files
        if is_file or not is_large:
            bounds = _bounds(sizes, layout.part_bytes, layout.part_files)
            targets[split] = [target if is_file else target / f"{split}.parquet"]
        else:
            bounds = _bounds(sizes, layout.shard_bytes, layout.shard_files)
            count = len(bounds) - 1
            targets[split] = [target / f"{split}-{i:05}-of-{count:05}.parquet" for i in range(count)]
        plan[split] = [
            Part(split, f"{split}-{number:05}", files[start:stop])
            for number, (start, stop) in enumerate(itertools.pairwise(bounds))
        ]
    folder = target.with_name(f".{target.name}.import") if is_file else target / ".import"
    settings = {
        "result": "a file" if is_file else "a folder",
        "splits": {split: len(files) for split, files in tree.files.items()},
        "classes": tree.classes,
        "sizes_of_parts": dataclasses.asdict(layout),
        "version_of_pyarrow": pa.__version__,
        "version_of_Pillow": PIL.__version__,
    }
    state = State(folder, stamp_of(stamps), settings)
    return _Plan(plan, targets, Packer(folder, source, tree.classes, layout), state)


def _size_and_change(path: Path) -> tuple[int, int]:
    """Returns the size in bytes of a file, and its time of change in ns. What cannot be read has zeros."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _bounds(sizes: Sequence[int], most_bytes: int, most_files: int) -> list[int]:
    """Returns where parts begin, and the end of the last: each has one file, or what the limits allow."""
    bounds, num_bytes = [0], 0
    for number, size in enumerate(sizes):
        count = number - bounds[-1]
        if count and (count == most_files or num_bytes + size > most_bytes):
            bounds.append(number)
            num_bytes = 0
        num_bytes += size
    return [*bounds, len(sizes)]


def _imported(
    source: Path,
    tree: Tree,
    plan: _Plan,
    on_bad_image: Literal["fail", "skip"],
    workers: int,
    tell: Callable[[int, int], None],
    say: Callable[[str], None],
) -> Imported:
    """Packs what is missing, and moves files to their places."""
    parts = [part for several in plan.parts.values() for part in several]
    records = {part.name: record for part in parts if (record := plan.packer.packed(part)) is not None}
    missing = [part for part in parts if part.name not in records]
    total = sum(len(part.files) for part in parts)
    before = total - sum(len(part.files) for part in missing)
    if records:
        say(f"goes on with an import that was stopped: {len(records):,} of {len(parts):,} parts are done")
        tell(before, total)
    processes = max(1, min(workers, len(missing)))
    packer = dataclasses.replace(plan.packer, threads=min(workers // processes, _MOST_THREADS))
    for part, record in pack_all(packer, missing, processes, lambda done: tell(before + done, total)):
        records[part.name] = record
    result, bad = _added_up(tree, plan, records)
    if bad and on_bad_image == "fail":
        raise DataError(_named(bad))
    _check_classes(source, result)
    moves: list[tuple[str, Path]] = []
    for split, files in result.files.items():
        names = [f"{part.name}.parquet" for part in plan.parts[split]]
        if len(files) < len(names):
            names = [f"{split}.parquet"]
            if not plan.state.is_publishing():
                plan.packer.join(plan.parts[split], plan.packer.folder / names[0])
        moves += zip(names, files, strict=True)
    plan.state.publish(moves)
    return result


def _added_up(
    tree: Tree, plan: _Plan, records: Mapping[str, Record]
) -> tuple[Imported, list[tuple[Path, str]]]:
    """Returns the result of all parts, and bad images with the reason, in the order of the files."""
    result = Imported({}, tree.classes, {}, left_out=tree.left_out, notices=tree.notices)
    bad: list[tuple[Path, str]] = []
    for split, parts in plan.parts.items():
        counts = np.zeros(len(tree.classes), np.int64)
        for part in parts:
            record = records[part.name]
            counts += record.counts
            result.num_turned += record.num_turned
            result.sides = (min(result.sides[0], record.sides[0]), max(result.sides[1], record.sides[1]))
            result.dark += [part.files[number][0] for number in record.dark]
            result.left_out |= {part.files[number][0]: reason for number, reason in record.left_out}
            bad += [(part.files[number][0], fault) for number, fault in record.bad]
        if counts.any():
            result.files[split] = plan.targets[split]
        if counts.any() or split == "train":
            result.counts[split] = counts.tolist()
        else:
            result.notices.append(f"no image of {split} can be read, so the split is left out")
    result.left_out |= {path: "an image that cannot be used" for path, _ in bad}
    return result, bad


def _check_classes(source: Path, result: Imported) -> None:
    """Raises `DataError` unless two classes have a training image."""
    there = [name for name, count in zip(result.classes, result.counts["train"], strict=True) if count]
    if len(there) < 2:
        held = f"of the class {there[0]!r} only" if there else "of no class"
        raise DataError(f"{source}: holds images that can be read {held}; two classes or more are needed")


def _check_target(source: Path, target: Path, tree: Tree) -> None:
    """Raises `DataError` if a tree cannot become what `target` names."""
    if len(target.parts) > 1 and target.parts[0].endswith(":"):
        raise DataError(f"{target}: is an address; an import writes local files, which can be copied there")
    if target.suffix.lower() in _OTHER_FORMATS:
        raise DataError(f"{target}: an import writes Parquet: name a file *.parquet, or a folder")
    if target.suffix.lower() == ".parquet" and tree.has_splits:
        raise DataError(
            f"{source}: holds the splits {', '.join(tree.files)}, which become a file each: name a "
            f"folder for them, as in  vitc-sweep data import {source} {target.with_suffix('')}_splits"
        )
    if target.suffix.lower() != ".parquet" and target.resolve() == source.resolve():
        raise DataError(f"{target}: is the folder of the images; name another one for the result")


def _check_free(target: Path, plan: _Plan, overwrite: bool) -> None:
    """Raises `DataError` if something is in the way."""
    targets = [path for several in plan.targets.values() for path in several]
    if target.suffix.lower() != ".parquet":
        found = {path for path in target.rglob("*.parquet") if plan.state.folder not in path.parents}
        # They would become parts of the data set.
        if others := sorted(found.difference(targets)):
            names = ", ".join(os.path.relpath(path, target) for path in others[:3])
            more = ", ..." if len(others) > 3 else ""
            raise DataError(
                f"{target}: holds other data, {names}{more}, which a sweep would read, too: remove them, or "
                "name another folder"
            )
    for path in targets:
        if path.is_dir():
            raise DataError(f"{path}: is a folder")
        if path.exists() and not overwrite:
            raise DataError(f"{path}: is there already; --overwrite replaces it")


@contextlib.contextmanager
def _held(plan: _Plan, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the state's folder. If the block raises, it stays only if parts in it are done."""
    state = plan.state
    made = [place for place in state.folder.parents if not place.exists()]
    try:
        if fault := state.hold():
            say(f"an import was stopped here before, but {fault}: begins anew")
        try:
            yield
        except BaseException as error:
            done = [part for several in plan.parts.values() for part in several if plan.packer.packed(part)]
            if done and plan.has_several_parts:
                state.release()
                rest = (
                    f"{len(done):,} parts that are done stay in {state.folder}: the same command goes on "
                    "from there; to give up, delete that folder"
                )
                if isinstance(error, DataError):
                    # What is wrong comes first.
                    raise DataError(f"{error}\n{rest}") from error
                say(rest)
            else:
                state.discard()
            raise
    except BaseException:
        with contextlib.suppress(OSError):
            for place in made:
                place.rmdir()
        raise


def _named(bad: Sequence[tuple[Path, str]]) -> str:
    if len(bad) == 1:
        path, fault = bad[0]
        return f"{printable(path)} {fault}; --on-bad-image skip leaves it out"
    lines = [f"  {printable(path)} {fault}" for path, fault in bad[:_NAMED]]
    if len(bad) > _NAMED:
        lines.append(f"  and {len(bad) - _NAMED} more")
    return f"{len(bad)} images cannot be used; --on-bad-image skip leaves them out:\n" + "\n".join(lines)
