"""Packs the images of a list of files into one Parquet file, and records what was found in them."""

import collections
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainables.base import DataError, Split
from trainables.data.decode import decode, is_nearly_black
from trainables.data.kinds import HEAD_BYTES, is_raw, is_readable, reason_to_leave_out
from trainables.io.files import replacing, write_atomically
from trainables.io.streams import printable

#: Files of more bytes are looked at before they are read whole, because films lie among photographs.
_LARGE_BYTES = 2**22

#: An image of more bytes is a bad one.
MAX_FILE_BYTES = 2**28


@dataclass(frozen=True)
class Layout:
    """Sizes that decide how images are divided into files. All sizes in bytes are those of the source files.

    Attributes:
      group_bytes: a row group holds at most so many bytes, or one image, so that few are in memory at a time.
      group_images: a row group holds at most so many images.
      part_bytes, part_files: limits of a part of a single file. Parts are packed side by side.
      shard_bytes, shard_files: in a folder, a split of more bytes or files becomes shards of at most so many.
    """

    group_bytes: int = 2**24
    group_images: int = 1024
    part_bytes: int = 2**25
    part_files: int = 2**12
    shard_bytes: int = 2**28
    shard_files: int = 2**16


#: The usual sizes.
LAYOUT = Layout()


@dataclass(frozen=True)
class Part:
    """Files of one split that are packed together, by one process.

    Attributes:
      split: their split.
      name: the name of the part's files, without extension.
      files: paths and class numbers, in order.
    """

    split: Split
    name: str
    files: Sequence[tuple[Path, int]] = field(repr=False)


@dataclass
class Record:
    """The findings in the files of a part. Files are named by their positions in it.

    Attributes:
      num_bytes: the size of the Parquet file.
      counts: images of every class.
      sides: the shortest and the longest side of an image, in pixels.
      num_turned: images that are stored turned or mirrored.
      dark: images that are nearly black.
      bad: images that cannot be used, with the reason.
      left_out: files that are no images, with the reason.
    """

    counts: list[int]
    num_bytes: int = 0
    sides: tuple[int, int] = (2**31, 0)
    num_turned: int = 0
    dark: list[int] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    left_out: list[tuple[int, str]] = field(default_factory=list)


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


@dataclass(frozen=True)
class Packer:
    """Packs parts of one tree into a folder.

    Attributes:
      folder: receives a Parquet file and a record of each part.
      source: the tree; paths are stored relative to it.
      classes: their names.
      layout: sizes of row groups.
      threads: images that are decoded at a time.
    """

    folder: Path
    source: Path
    classes: tuple[str, ...]
    layout: Layout
    threads: int = 1

    def pack(self, part: Part, tell: Callable[[int], None] = lambda done: None) -> Record:
        """Writes the images of a part, and then its record, each durably and under its name once complete.

        Args:
          part: its files. Images that cannot be used are recorded, and not written.
          tell: is called with the number of files done, after each; what it raises ends the packing.

        Raises:
          OSError, pa.ArrowException: a file cannot be written.
        """
        record = Record([0] * len(self.classes))
        with replacing(self.file_of(part), durable=True) as file:
            with pq.ParquetWriter(file, schema_of(self.classes)) as writer:
                groups = _Groups(writer, self.source, self.layout)
                for number, read in enumerate(_reads(part.files, self.threads)):
                    if read.left_out:
                        record.left_out.append((number, read.left_out))
                    elif read.fault:
                        record.bad.append((number, read.fault))
                    else:
                        _count(record, number, read)
                        groups.add(read)
                    tell(number + 1)
                groups.write()
            record.num_bytes = file.tell()
        # Made durable last: a part that has a record is complete.
        write_atomically(self._record_of(part), json.dumps(dataclasses.asdict(record)))
        return record

    def packed(self, part: Part) -> Record | None:
        """Returns the record of a part that is complete, whether or not its images have been moved away."""
        try:
            values = json.loads(self._record_of(part).read_bytes())
        except (OSError, ValueError):
            return None
        return Record(
            **values
            | {
                "sides": tuple(values["sides"]),
                "bad": [(number, fault) for number, fault in values["bad"]],
                "left_out": [(number, reason) for number, reason in values["left_out"]],
            }
        )

    def file_of(self, part: Part) -> Path:
        """The Parquet file of a part."""
        return self.folder / f"{part.name}.parquet"

    def _record_of(self, part: Part) -> Path:
        return self.folder / f"{part.name}.json"

    def join(self, parts: Sequence[Part], target: Path) -> None:
        """Writes one file of the row groups of several parts, durably."""
        with (
            replacing(target, durable=True) as file,
            pq.ParquetWriter(file, schema_of(self.classes)) as writer,
        ):
            for part in parts:
                with pq.ParquetFile(self.file_of(part)) as packed:
                    for group in range(packed.num_row_groups):
                        writer.write_table(packed.read_row_group(group))


def schema_of(classes: Sequence[str]) -> pa.Schema:
    """Returns the Hugging Face image layout, with the names of classes."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    return pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


class _Groups:
    """Writes images as row groups of limited size."""

    def __init__(self, writer: pq.ParquetWriter, source: Path, layout: Layout) -> None:
        self._writer, self._source, self._layout = writer, source, layout
        self._reads: list[_Read] = []
        self._num_bytes = 0

    def add(self, read: _Read) -> None:
        is_full = len(self._reads) == self._layout.group_images
        if is_full or self._num_bytes + len(read.data) > self._layout.group_bytes:
            self.write()
        self._reads.append(read)
        self._num_bytes += len(read.data)

    def write(self) -> None:
        if not self._reads:
            return
        images = [
            {"bytes": read.data, "path": printable(os.path.relpath(read.path, self._source))}
            for read in self._reads
        ]
        labels = [read.label for read in self._reads]
        schema = self._writer.schema
        columns = [pa.array(images, schema.field(0).type), pa.array(labels, pa.int64())]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        self._reads, self._num_bytes = [], 0


def _count(record: Record, number: int, read: _Read) -> None:
    record.counts[read.label] += 1
    record.num_turned += read.is_turned
    record.sides = (min(record.sides[0], *read.size), max(record.sides[1], *read.size))
    if read.is_dark:
        record.dark.append(number)


def _reads(files: Sequence[tuple[Path, int]], threads: int) -> Iterator[_Read]:
    """Reads and decodes files, several at a time. Yields them in their order."""
    if threads < 2:
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
    turned = image.info.get("turned", False)
    return _Read(path, label, data, image.size, turned, is_nearly_black(image))


def _not_read(path: Path, label: int, head: bytes, fault: str) -> _Read:
    """Returns a file that is left out, or a bad image if its name says that it is one."""
    reason = reason_to_leave_out(path.name, head)
    return _Read(path, label, left_out=reason, fault="" if reason else fault)
