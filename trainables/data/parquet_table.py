"""Reads the Parquet files of one split as a table: labels and class names now, images on demand."""

import functools
import itertools
import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from trainables.base import DataError
from trainables.data.base import digest_of
from trainables.data.cache import IN_MEMORY_BYTES
from trainables.data.content import (
    WIDTH,
    digests_of,
    image_batches,
    image_digests,
    remember,
    stamp_of,
)
from trainables.data.copies import held_copy
from trainables.data.decode import LFS_POINTER, OF_LFS, decode
from trainables.io.json import parse_json
from trainables.io.streams import printable

#: Numbers of a file without class names may be at most this, because each number up to it is a class.
MAX_CLASSES = 2**20

#: Of files that lie elsewhere, more bytes are copied to this machine once, instead of read by each process.
_DISTANT_BYTES = 2**24

#: Files that are read at a time.
_READERS = 4

#: Bytes that are read at a time where little of a file is wanted, instead of a whole row group.
_BUFFER_BYTES = 2**18


@dataclass(frozen=True)
class Table:
    """The rows of one split.

    Attributes:
      files: their paths.
      labels: class of every row, as the files number them.
      class_names: names by number; None if no file stores any.
      load: reads the images, or makes their copy on this machine. Processes that are forked afterwards
        share them.
      read: decodes the image of a row.
      digests: computes digests of the images, of shape (rows, bytes).
      first_images: reads the bytes of the first image of each file; none if a file has no image.
      earlier_fingerprint: computes the digest by which versions before 2026-12 knew these rows.
      describe: the files in words.
      notices: sentences about the files that their user should know.
    """

    files: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] | None
    load: Callable[[], object] = field(repr=False)
    read: Callable[[int], Image.Image] = field(repr=False)
    digests: Callable[[], NDArray[np.uint8]] = field(repr=False)
    first_images: Callable[[], list[bytes]] = field(repr=False)
    earlier_fingerprint: Callable[[], str] = field(repr=False)
    describe: str
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class _File:
    """The parts of a file that are read at once."""

    name: str
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] | None
    num_bytes: int
    footer: bytes


def read_table(
    filesystem: pyarrow.fs.FileSystem, names: Sequence[str], image_column: str, label_column: str
) -> Table:
    """Reads the labels, class names and digests of files whose rows follow each other.

    Class names of a later file may be in another order than those of the first; its labels are then mapped.

    Raises:
      DataError: a file cannot be read, lacks a column, has labels without a class, or other classes.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        files = list(pool.map(lambda name: _read_file(filesystem, name, image_column, label_column), names))
    bounds = np.cumsum([0, *(len(file.labels) for file in files)])
    if not bounds[-1]:
        raise DataError(f"{names[0]}: holds no rows")
    raw = np.concatenate([file.labels for file in files])
    class_names = next((file.class_names for file in files if file.class_names), None)
    labels, notices = raw, []
    if class_names is not None:
        for file in files:
            _check_labels(file, class_names)
        labels = np.concatenate([mapped(f.name, f.labels, f.class_names, class_names) for f in files])
        if not np.array_equal(labels, raw):
            notices.append(f"the files {_shown(names)} number their classes differently; mapped by name")
    num_bytes = sum(file.num_bytes for file in files)

    @functools.cache
    def load() -> "pa.ChunkedArray | _Copy":
        is_distant = not isinstance(filesystem, pyarrow.fs.LocalFileSystem)
        try:
            if num_bytes > IN_MEMORY_BYTES or (is_distant and num_bytes > _DISTANT_BYTES):
                return _copied(filesystem, names, image_column, num_bytes)
            with ThreadPoolExecutor(_READERS) as pool:
                several = pool.map(lambda name: list(_batches(filesystem, name, image_column)), names)
                batches = [batch for one in several for batch in one]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{_shown(names)}: the images cannot be read: {error}") from error
        return pa.chunked_array(batches, type=pa.large_binary())

    @functools.cache
    def digests() -> NDArray[np.uint8]:
        try:
            if isinstance(loaded := load() if load.cache_info().currsize else None, pa.ChunkedArray):
                parts = b"".join(digests_of(chunk) for chunk in loaded.chunks)
                return np.frombuffer(parts, np.uint8).reshape(-1, WIDTH)
            return np.concatenate([image_digests(filesystem, name, image_column) for name in names])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{_shown(names)}: the images cannot be read: {error}") from error

    def read(row: int) -> Image.Image:
        try:
            data = load()[row].as_py()
            if data is None:
                raise DataError("has no bytes; images stored as paths only are not supported")
            return decode(data)
        except (DataError, pa.ArrowException, OSError) as error:
            index = int(np.searchsorted(bounds, row, side="right")) - 1
            raise DataError(f"{names[index]}: row {row - bounds[index]} {error}") from error

    @functools.cache
    def first_images() -> list[bytes]:
        try:
            if load.cache_info().currsize:
                # Files without rows have no first one.
                return [
                    load()[int(start)].as_py() or b"" if start < stop else b""
                    for start, stop in itertools.pairwise(bounds)
                ]
            # The first image alone cannot be read, only those around it, too.
            with ThreadPoolExecutor(_READERS) as pool:
                return list(pool.map(lambda name: _first_image(filesystem, name, image_column), names))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{_shown(names)}: the images cannot be read: {error}") from error

    def earlier() -> str:
        return digest_of(raw.tobytes(), *(file.footer for file in files), *first_images())

    return Table(
        files=tuple(names),
        labels=labels,
        class_names=class_names,
        load=load,
        read=read,
        digests=digests,
        first_images=first_images,
        earlier_fingerprint=earlier,
        describe=_shown(names),
        notices=tuple(notices),
    )


def mapped(
    place: str,
    labels: NDArray[np.int64],
    names: tuple[str, ...] | None,
    wanted: tuple[str, ...],
) -> NDArray[np.int64]:
    """Returns labels in the numbers of other class names. Labels without names are taken as they are.

    Raises:
      DataError: a label stands for a class that the other names lack.
    """
    if names is None or names == wanted[: len(names)] or (labels == -1).all():
        return labels
    index = {name: number for number, name in enumerate(wanted)}
    numbers = np.array([index.get(name, -1) for name in names], dtype=np.int64)
    present = np.unique(labels)
    if unknown := [names[label] for label in present if numbers[label] < 0]:
        shown = ", ".join(map(repr, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
        raise DataError(
            f"{place}: {len(unknown)} of its {len(present)} classes are not among those of the first "
            f"training file: {shown}"
        )
    return numbers[labels]


def _read_file(filesystem: pyarrow.fs.FileSystem, name: str, image_column: str, label_column: str) -> _File:
    try:
        with pq.ParquetFile(name, filesystem=filesystem, buffer_size=_BUFFER_BYTES) as file:
            schema, metadata = file.schema_arrow, file.metadata
            _check_columns(name, schema, image_column, label_column)
            column = file.read(columns=[label_column]).column(0)
            num_bytes = sum(metadata.row_group(g).total_byte_size for g in range(metadata.num_row_groups))
            footer = f"{metadata.num_rows} {metadata.serialized_size}".encode()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: {_not_readable(filesystem, name, error)}") from error
    if column.null_count:
        raise DataError(f"{name}: column {label_column!r} has {column.null_count} empty labels")
    try:
        labels = column.cast(pa.int64()).to_numpy()
    except pa.ArrowException as error:
        raise DataError(f"{name}: column {label_column!r} holds no labels: {error}") from error
    return _File(name, labels, _class_names(name, schema, label_column), num_bytes, footer)


def _first_image(filesystem: pyarrow.fs.FileSystem, name: str, column: str) -> bytes:
    with pq.ParquetFile(name, filesystem=filesystem) as file:
        for batch in file.iter_batches(batch_size=1, columns=[column]):
            return pc.struct_field(batch.column(0), "bytes")[0].as_py() or b""
    return b""


def _not_readable(filesystem: pyarrow.fs.FileSystem, name: str, error: Exception) -> str:
    try:
        with filesystem.open_input_file(name) as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                return f"is {OF_LFS}"
    except (pa.ArrowException, OSError):
        pass
    return f"is not a readable Parquet file: {error}"


def _check_columns(name: str, schema: pa.Schema, image_column: str, label_column: str) -> None:
    for column in (image_column, label_column):
        if not (count := schema.names.count(column)):
            raise DataError(
                f"{name}: has no column {column!r}, only {schema.names}{_columns_meant(schema, label_column)}"
            )
        if count > 1:
            raise DataError(f"{name}: has {count} columns {column!r}, so which is meant is unknown")
    image = schema.field(image_column).type
    if not (pa.types.is_struct(image) and image.get_field_index("bytes") >= 0):
        raise DataError(f"{name}: column {image_column!r} must be a struct with `bytes`, is {image}")
    content = image.field("bytes").type
    if not (
        pa.types.is_binary(content) or pa.types.is_large_binary(content) or pa.types.is_binary_view(content)
    ):
        raise DataError(f"{name}: the `bytes` of column {image_column!r} must be binary, are {content}")
    if not pa.types.is_integer(label := schema.field(label_column).type):
        raise DataError(
            f"{name}: column {label_column!r} must hold integers, holds {label}: number the classes from 0, "
            "and store their names in the metadata, as `datasets.ClassLabel` does"
        )


def _columns_meant(schema: pa.Schema, label_column: str) -> str:
    """Returns a hint with the settings for columns of other names, if one column can hold the images."""
    images = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    if len(images) != 1 or not integers:
        return ""
    alike = [name for name in integers if "label" in name.lower() or "class" in name.lower()]
    label = label_column if label_column in integers else (alike or integers)[0]
    return f". To name them:  data: {{path: ..., image_column: {images[0]}, label_column: {label}}}"


def _class_names(name: str, schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    """Returns the class names in the metadata of the Hugging Face layout. None if there are none.

    Raises:
      DataError: a name stands twice, so that two labels would be one class.
    """
    metadata = (schema.metadata or {}).get(b"huggingface")
    try:
        names: Any = parse_json(metadata)["info"]["features"][label_column]["names"] if metadata else None
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(names, dict) and set(names) == {str(number) for number in range(len(names))}:
        # As the cards of the hub write them.
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        return None
    # A Mac writes é as two characters. Nothing that a terminal would obey gets to one.
    texts = tuple(printable(unicodedata.normalize("NFC", str(one))) for one in names)
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise DataError(f"{name}: its metadata name the class {twice!r} twice")
    return texts


def _check_labels(file: _File, class_names: tuple[str, ...]) -> None:
    """Raises `DataError` if a label is outside the classes. -1 for all rows is no label, and passes."""
    num_classes = len(file.class_names or class_names)
    bad = np.flatnonzero((file.labels < 0) | (file.labels >= num_classes))
    if len(bad) and not (file.labels == -1).all():
        raise DataError(
            f"{file.name}: row {bad[0]} has label {file.labels[bad[0]]}, outside the {num_classes} classes "
            f"0 to {num_classes - 1} ({len(bad)} such row(s))"
        )


@dataclass(frozen=True)
class _Copy:
    """The images in the copy on this machine, which stays as long as this does."""

    images: pa.ChunkedArray
    hold: IO[str]

    def __getitem__(self, row: int) -> pa.Scalar:
        return self.images[row]


def _batches(filesystem: pyarrow.fs.FileSystem, name: str, column: str) -> Iterator[pa.LargeBinaryArray]:
    with pq.ParquetFile(name, filesystem=filesystem) as file:
        yield from image_batches(file, column)


def _copied(filesystem: pyarrow.fs.FileSystem, names: Sequence[str], column: str, num_bytes: int) -> _Copy:
    """Returns the encoded images of some files, for random access, from a copy on this machine.

    The copy is of Arrow files, because Parquet does not allow fast reads of single rows in random order. It
    is known by the addresses, sizes, times and footers of the files, so that a changed file gets another
    copy. The images are read once, for the copy and for their digests.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        stamps = [stamp for stamp, *_ in pool.map(lambda name: stamp_of(filesystem, name, column), names)]

        def make(folder: Path) -> None:
            def one(number: int) -> None:
                digests = []
                with (
                    (folder / f"{number:05}.arrow").open("wb") as file,
                    pa.ipc.new_file(file, schema) as writer,
                ):
                    for batch in _batches(filesystem, names[number], column):
                        digests.append(digests_of(batch))
                        writer.write_batch(pa.record_batch([batch], schema=schema))
                    writer.close()
                    file.flush()
                    os.fsync(file.fileno())
                remember(stamps[number], b"".join(digests))

            schema = pa.schema([("bytes", pa.large_binary())])
            list(pool.map(one, range(len(names))))

        place, hold = held_copy(digest_of(*(stamp.encode() for stamp in stamps)), num_bytes, make)
    columns = [
        pa.ipc.open_file(pa.memory_map(str(place / f"{number:05}.arrow"))).read_all().column(0)
        for number in range(len(names))
    ]
    chunks = [chunk for column in columns for chunk in column.chunks]
    return _Copy(pa.chunked_array(chunks, type=pa.large_binary()), hold)


def _shown(names: Sequence[str]) -> str:
    return posixpath.basename(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
