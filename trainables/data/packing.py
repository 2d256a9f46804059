"""Packs the images of a folder tree into Parquet files."""

import collections
import contextlib
import io
import json
import mimetypes
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from trainables.base import DataError, Split
from trainables.data.decode import FORMATS, IMAGE_EXTENSIONS, decode
from trainables.data.tree import Tree, find_tree

#: A row group holds at most so many bytes of images, or one image, so that few are in memory at a time.
GROUP_BYTES = 2**26

_GROUP_IMAGES = 1024

#: Images that are decoded at a time. A photograph of 12 megapixels takes 36 MB then.
_MOST_THREADS = 8

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
      left_out: files and folders that are not in the set, with the reason.
    """

    files: dict[Split, Path]
    classes: tuple[str, ...]
    counts: dict[Split, list[int]]
    sides: tuple[int, int] = (2**31, 0)
    num_turned: int = 0
    left_out: dict[Path, str] = field(default_factory=dict)

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
    tree = find_tree(source, _is_image)
    targets = _targets(source, target, tree, overwrite)
    result = Imported(targets, tree.classes, {}, left_out=tree.left_out)
    schema = _schema(tree.classes)
    total, done = sum(map(len, tree.files.values())), 0
    bad: list[_Read] = []
    with contextlib.ExitStack() as stack:
        partials = {}
        for split, files in tree.files.items():
            path = partials[split] = targets[split].with_name(f".{targets[split].name}.part")
            stack.callback(path.unlink, missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            result.counts[split] = [0] * len(tree.classes)
            with pq.ParquetWriter(path, schema) as writer:
                group = _Group(writer, schema, source)
                for read in _read_all(files, min(threads, _MOST_THREADS)):
                    done += 1
                    tell(done, total)
                    if read.left_out:
                        tree.left_out[read.path] = read.left_out
                    elif read.fault:
                        bad.append(read)
                        tree.left_out[read.path] = "an image that does not decode"
                    else:
                        _count(result, split, read)
                        # After a bad image, only the others are looked for.
                        if not bad or on_bad_image == "skip":
                            group.add(read)
                group.write()
        if bad and on_bad_image == "fail":
            raise DataError(_named(bad))
        if not sum(result.counts["train"]):
            raise DataError(f"{source}: holds no images in folders, one folder per class")
        for split, path in partials.items():
            os.replace(path, targets[split])
    return result


def _targets(source: Path, target: Path, tree: Tree, overwrite: bool) -> dict[Split, Path]:
    is_file = target.suffix == ".parquet"
    if tree.has_splits and is_file:
        raise DataError(
            f"{source}: holds the splits {', '.join(tree.files)}, which become a file each: name a folder "
            f"for them, as in  vitc-sweep data import {source} {target.with_suffix('')}"
        )
    if is_file:
        targets: dict[Split, Path] = {"train": target}
    else:
        targets = {split: target / f"{split}.parquet" for split in tree.files}
    for path in targets.values():
        if path.exists() and not overwrite:
            raise DataError(f"{path}: is there already; --overwrite replaces it")
    return targets


def _schema(classes: Sequence[str]) -> pa.Schema:
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    return pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


class _Group:
    """Collects images and writes them as row groups."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema, source: Path) -> None:
        self._writer, self._schema, self._source = writer, schema, source
        self._reads: list[_Read] = []
        self._num_bytes = 0

    def add(self, read: _Read) -> None:
        if self._num_bytes + len(read.data) > GROUP_BYTES or len(self._reads) == _GROUP_IMAGES:
            self.write()
        self._reads.append(read)
        self._num_bytes += len(read.data)

    def write(self) -> None:
        if self._reads:
            # Names that are no text in the encoding of the file system are written with replacements.
            names = [os.path.relpath(read.path, self._source) for read in self._reads]
            images = [
                {"bytes": read.data, "path": name.encode(errors="replace").decode()}
                for read, name in zip(self._reads, names, strict=True)
            ]
            labels = [read.label for read in self._reads]
            columns = [pa.array(images, self._schema.field(0).type), pa.array(labels, pa.int64())]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._reads, self._num_bytes = [], 0


def _count(result: Imported, split: Split, read: _Read) -> None:
    result.counts[split][read.label] += 1
    result.num_turned += read.is_turned
    result.sides = (min(result.sides[0], *read.size), max(result.sides[1], *read.size))


def _read_all(files: Sequence[tuple[Path, int]], threads: int) -> Iterator[_Read]:
    """Reads and decodes files, several at a time, and yields them in their order."""
    if threads == 1:
        yield from (_read(*file) for file in files)
        return
    waiting: collections.deque[Future[_Read]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for file in files:
                waiting.append(pool.submit(_read, *file))
                if len(waiting) == 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read(path: Path, label: int) -> _Read:
    try:
        data = path.read_bytes()
    except OSError as error:
        return _Read(path, label, fault=f"cannot be read: {error.strerror}")
    try:
        image = decode(data)
    except DataError as error:
        if reason := _reason_to_leave_out(path, data):
            return _Read(path, label, left_out=reason)
        return _Read(path, label, fault=str(error))
    return _Read(path, label, data, image.size, image.info.get("turned", False))


#: Extensions of kinds of images that are not read, and that Python does not know.
_OTHER_EXTENSIONS = (
    ".avif",
    ".heic",
    ".heif",
    ".jp2",
    ".jxl",
    ".psd",
    ".raw",
    ".cr2",
    ".nef",
    ".arw",
    ".dng",
)


def _reason_to_leave_out(path: Path, data: bytes) -> str:
    """Returns why a file that does not decode is no bad image. Empty if it is one."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_EXTENSIONS or _is_readable(io.BytesIO(data)):
        return ""
    kind = mimetypes.guess_type(path.name)[0] or ""
    is_other = kind.startswith("image/") or suffix in _OTHER_EXTENSIONS
    return "a kind of image that is not read" if is_other else "no image"


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_EXTENSIONS or _is_readable(path)


def _is_readable(file: Path | IO[bytes]) -> bool:
    """Returns whether a file begins as an image of a kind that is read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS):
                return True
    # PIL raises any exception on hostile bytes.
    except Exception:
        return False


def _named(bad: Sequence[_Read]) -> str:
    if len(bad) == 1:
        return f"{bad[0].path} {bad[0].fault}; --on-bad-image skip leaves it out"
    lines = [f"  {read.path} {read.fault}" for read in bad[:_NAMED]]
    if len(bad) > _NAMED:
        lines.append(f"  and {len(bad) - _NAMED} more")
    return f"{len(bad)} images cannot be used; --on-bad-image skip leaves them out:\n" + "\n".join(lines)
