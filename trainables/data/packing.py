"""Packs the images of a folder tree into Parquet files."""

import collections
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainables.base import DataError, Split
from trainables.data.decode import decode
from trainables.data.kinds import HEAD_BYTES, is_image, is_raw, is_readable, reason_to_leave_out
from trainables.data.tree import Tree, find_tree
from trainables.io.files import replacing
from trainables.io.streams import printable

#: A row group holds at most so many bytes of images, or one image, so that few are in memory at a time.
GROUP_BYTES = 2**24

_GROUP_IMAGES = 1024

#: Images that are decoded at a time. A photograph of 12 megapixels takes 36 MB then.
_MOST_THREADS = 8

#: Files of more bytes are looked at before they are read whole, because films lie among photographs.
_LARGE_BYTES = 2**22

#: An image of more bytes is a bad one.
MAX_FILE_BYTES = 2**28

#: An image without any brighter value, of 255, is counted as nearly black.
_DARK = 16

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

    files: dict[Split, Path]
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


@dataclass(frozen=True)
class _Read:
    """A file that was read: an image, or the reason why it is none."""

    path: Path
    label: int
    data: bytes = b""
    size: tuple[int, int] = (0, 0)
    is_turned: bool = False
    is_dark: bool = False
    fault: str = ""
    left_out: str = ""


def import_folder(
    source: Path,
    target: Path,
    on_bad_image: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
    threads: int = 1,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Imported:
    """Writes a tree of one folder of images per class as Parquet files in the Hugging Face image layout.

    A tree of splits becomes a folder with a file for each, any other tree one file. Bytes are copied
    unchanged. Each image is decoded once to check it. Files appear once all are complete.

    Args:
      source: the tree.
      target: a file `*.parquet`, or a folder.
      on_bad_image: fail: images that do not decode are an error, which names them all. skip: left out.
      overwrite: whether files that are there may be replaced.
      threads: images that are decoded at a time.
      tell: is called with the number of files that are done, and of all.

    Raises:
      DataError: see `find_tree`; there is no image, an image does not decode, or a file is in the way.
        Nothing is written.
    """
    tree = find_tree(source, is_image)
    targets = _targets(source, target, tree, overwrite)
    result = Imported({}, tree.classes, {}, left_out=tree.left_out, notices=tree.notices)
    reads = _Reads(min(threads, _MOST_THREADS), sum(map(len, tree.files.values())), tell)
    bad: list[_Read] = []
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_removed_on_failure(targets["train"].parent))
            for split, files in tree.files.items():
                result.counts[split] = [0] * len(tree.classes)
                groups = _Groups(stack, targets[split], source, tree.classes)
                for read in reads.of(files):
                    if read.left_out:
                        tree.left_out[read.path] = read.left_out
                    elif read.fault:
                        bad.append(read)
                        tree.left_out[read.path] = "an image that cannot be used"
                    else:
                        _count(result, split, read)
                        # After a bad image, only the others are looked for.
                        if not bad or on_bad_image == "skip":
                            groups.add(read)
                groups.close()
                if groups.is_open:
                    result.files[split] = targets[split]
                elif split != "train":
                    del result.counts[split]
                    result.notices.append(f"no image of {split} can be read, so the split is left out")
            if bad and on_bad_image == "fail":
                raise DataError(_named(bad))
            _check_classes(source, result)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{target}: cannot be written: {error}") from error
    return result


def _check_classes(source: Path, result: Imported) -> None:
    """Raises `DataError` unless two classes have a training image."""
    there = [name for name, count in zip(result.classes, result.counts["train"], strict=True) if count]
    if len(there) < 2:
        held = f"of the class {there[0]!r} only" if there else "of no class"
        raise DataError(f"{source}: holds images that can be read {held}; two classes or more are needed")


def _targets(source: Path, target: Path, tree: Tree, overwrite: bool) -> Mapping[Split, Path]:
    """Returns the files to write.

    Raises:
      DataError: something is in the way.
    """
    if len(target.parts) > 1 and target.parts[0].endswith(":"):
        raise DataError(f"{target}: is an address; an import writes local files, which can be copied there")
    if target.suffix.lower() in _OTHER_FORMATS:
        raise DataError(f"{target}: an import writes Parquet: name a file *.parquet, or a folder")
    if target.suffix.lower() == ".parquet":
        if tree.has_splits:
            raise DataError(
                f"{source}: holds the splits {', '.join(tree.files)}, which become a file each: name a "
                f"folder for them, as in  vitc-sweep data import {source} {target.with_suffix('')}_splits"
            )
        targets: dict[Split, Path] = {"train": target}
    else:
        if target.resolve() == source.resolve():
            raise DataError(f"{target}: is the folder of the images; name another one for the result")
        targets = {split: target / f"{split}.parquet" for split in tree.files}
        # They would become parts of the data set.
        if others := sorted(set(target.rglob("*.parquet")) - set(targets.values())):
            names = ", ".join(os.path.relpath(path, target) for path in others[:3])
            more = ", ..." if len(others) > 3 else ""
            raise DataError(
                f"{target}: holds other data, {names}{more}, which a sweep would read, too: remove them, or "
                "name another folder"
            )
    for path in targets.values():
        if path.is_dir():
            raise DataError(f"{path}: is a folder")
        if path.exists() and not overwrite:
            raise DataError(f"{path}: is there already; --overwrite replaces it")
    return targets


@contextlib.contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    """Makes a folder and those around it, and removes them again if the block raises."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for place in made:
                place.rmdir()
        raise


def _schema(classes: Sequence[str]) -> pa.Schema:
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    return pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


class _Groups:
    """Writes images as row groups of a file, which is made with the first and appears when `stack` closes."""

    def __init__(
        self, stack: contextlib.ExitStack, target: Path, source: Path, classes: Sequence[str]
    ) -> None:
        self._stack, self._target, self._source = stack, target, source
        self._schema = _schema(classes)
        self._writer: pq.ParquetWriter | None = None
        self._reads: list[_Read] = []
        self._num_bytes = 0

    @property
    def is_open(self) -> bool:
        """True if there was an image."""
        return self._writer is not None

    def add(self, read: _Read) -> None:
        if self._num_bytes + len(read.data) > GROUP_BYTES or len(self._reads) == _GROUP_IMAGES:
            self._write()
        self._reads.append(read)
        self._num_bytes += len(read.data)

    def close(self) -> None:
        self._write()
        if self._writer is not None:
            self._writer.close()

    def _write(self) -> None:
        if not self._reads:
            return
        if self._writer is None:
            file = self._stack.enter_context(replacing(self._target, durable=False))
            # Closed by the stack before the file, whatever happens.
            self._writer = self._stack.enter_context(pq.ParquetWriter(file, self._schema))
        images = [
            {"bytes": read.data, "path": printable(os.path.relpath(read.path, self._source))}
            for read in self._reads
        ]
        labels = [read.label for read in self._reads]
        columns = [pa.array(images, self._schema.field(0).type), pa.array(labels, pa.int64())]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._reads, self._num_bytes = [], 0


def _count(result: Imported, split: Split, read: _Read) -> None:
    result.counts[split][read.label] += 1
    result.num_turned += read.is_turned
    result.sides = (min(result.sides[0], *read.size), max(result.sides[1], *read.size))
    if read.is_dark:
        result.dark.append(read.path)


class _Reads:
    """Reads and decodes files, several at a time."""

    def __init__(self, threads: int, total: int, tell: Callable[[int, int], None]) -> None:
        self._threads, self._total, self._tell = threads, total, tell
        self._done = 0

    def of(self, files: Sequence[tuple[Path, int]]) -> Iterator[_Read]:
        """Yields files in their order."""
        for read in self._in_threads(files) if self._threads > 1 else (_read(*file) for file in files):
            self._done += 1
            self._tell(self._done, self._total)
            yield read

    def _in_threads(self, files: Sequence[tuple[Path, int]]) -> Iterator[_Read]:
        waiting: collections.deque[Future[_Read]] = collections.deque()
        with ThreadPoolExecutor(self._threads) as pool:
            try:
                for file in files:
                    waiting.append(pool.submit(_read, *file))
                    if len(waiting) == 2 * self._threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _read(path: Path, label: int) -> _Read:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            size = os.fstat(file.fileno()).st_size
            if is_raw(path.name) or (size > _LARGE_BYTES and not is_readable(file)):
                return _not_read(path, label, head, "does not decode: it is no image of a kind that is known")
            if size > MAX_FILE_BYTES:
                return _Read(path, label, fault=f"has {size:,} bytes, over {MAX_FILE_BYTES:,}")
            file.seek(0)
            data = file.read()
    except OSError as error:
        return _Read(path, label, fault=f"cannot be read: {error.strerror}")
    try:
        image = decode(data)
    except DataError as error:
        if is_readable(data):
            return _Read(path, label, fault=str(error))
        return _not_read(path, label, head, str(error))
    is_dark = bool(np.max(image.getextrema()) < _DARK)
    return _Read(path, label, data, image.size, image.info.get("turned", False), is_dark)


def _not_read(path: Path, label: int, head: bytes, fault: str) -> _Read:
    """Returns a file that is left out, or a bad image if its name says that it is one."""
    reason = reason_to_leave_out(path.name, head)
    return _Read(path, label, left_out=reason, fault="" if reason else fault)


def _named(bad: Sequence[_Read]) -> str:
    if len(bad) == 1:
        return f"{printable(bad[0].path)} {bad[0].fault}; --on-bad-image skip leaves it out"
    lines = [f"  {printable(read.path)} {read.fault}" for read in bad[:_NAMED]]
    if len(bad) > _NAMED:
        lines.append(f"  and {len(bad) - _NAMED} more")
    return f"{len(bad)} images cannot be used; --on-bad-image skip leaves them out:\n" + "\n".join(lines)
