"""Digests of the images of Parquet files, by which a data set is known whatever its files are called.

Every byte of every image counts. Each machine reads a large file once for this, and remembers the digests
under the file's address, size, time of change and footer.
"""

import contextlib
import fcntl
import hashlib
import posixpath
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainables.io.files import replacing
from trainables.io.machine import cache_folder
from trainables.io.reading import tell_read

#: Bytes of one digest.
WIDTH = 16

#: The digest of an image whose bytes are there and none.
NO_BYTES = np.frombuffer(hashlib.sha256(b"").digest()[:WIDTH], np.uint8)

#: Digests of smaller files are computed again by every process, which takes milliseconds.
_REMEMBERED_BYTES = 2**24

#: Encoded images that are in memory at a time, together.
_BATCH_BYTES = 2**26


def image_batches(file: pq.ParquetFile, column: str) -> Iterator[pa.LargeBinaryArray]:
    """Yields the encoded images of a file in batches, each of at most 256 images and about 64 MiB."""
    metadata = file.metadata
    num_bytes = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    most = max(1, min(256, _BATCH_BYTES * max(metadata.num_rows, 1) // max(num_bytes, 1)))
    for batch in file.iter_batches(batch_size=most, columns=[column]):
        yield pc.struct_field(batch.column(0), "bytes").cast(pa.large_binary())


def image_digests(filesystem: pyarrow.fs.FileSystem, name: str, column: str) -> NDArray[np.uint8]:
    """Returns the digests of a file's images, of shape (images, WIDTH). An image without bytes has zeros.

    Raises:
      OSError, pyarrow.ArrowException: the file cannot be read.
    """
    stamp, num_rows, size = stamp_of(filesystem, name, column)
    if stamp not in _known:
        place = _place(stamp)
        if size < _REMEMBERED_BYTES and not place.exists():
            _known[stamp] = _computed(filesystem, name, column)
        else:
            _known[stamp] = _remembered(place, num_rows, filesystem, name, column)
    return _known[stamp]


def stamp_of(filesystem: pyarrow.fs.FileSystem, name: str, column: str) -> tuple[str, int, int]:
    """Returns a digest that changes with a file's address or content, its rows, and its size in bytes.

    Raises:
      OSError, pyarrow.ArrowException: the file cannot be read.
    """
    with pq.ParquetFile(name, filesystem=filesystem) as file:
        num_rows, footer = file.metadata.num_rows, file.metadata.serialized_size
    found = filesystem.get_file_info(name)
    with filesystem.open_input_file(name) as stream:
        stream.seek(max(0, found.size - footer - 8))
        tail = hashlib.sha256(stream.read()).hexdigest()
    text = f"{filesystem.type_name} {name} {found.size} {found.mtime_ns} {column} {tail}"
    return hashlib.sha256(text.encode()).hexdigest()[:32], num_rows, found.size


def _place(stamp: str) -> Path:
    return cache_folder() / "digests" / stamp


def digests_of(images: pa.LargeBinaryArray) -> bytes:
    """Returns the digests of encoded images, one after the other."""
    return b"".join(
        bytes(WIDTH) if image is None else hashlib.sha256(image).digest()[:WIDTH]
        for image in map(pa.LargeBinaryScalar.as_buffer, images)
    )


def remember(stamp: str, digests: bytes) -> None:
    """Keeps the digests of a file that has been read for another purpose."""
    # An unwritable cache costs time only.
    with contextlib.suppress(OSError), replacing(_place(stamp), durable=False) as file:
        file.write(digests)


#: Digests by the stamp of their file, as this process has found them.
_known: dict[str, NDArray[np.uint8]] = {}


def _computed(filesystem: pyarrow.fs.FileSystem, name: str, column: str) -> NDArray[np.uint8]:
    digests, done = [], 0
    with pq.ParquetFile(name, filesystem=filesystem) as file:
        for batch in image_batches(file, column):
            digests.append(digests_of(batch))
            done += len(batch)
            tell_read(posixpath.basename(name), done, file.metadata.num_rows)
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, WIDTH)


def _remembered(
    place: Path, num_rows: int, filesystem: pyarrow.fs.FileSystem, name: str, column: str
) -> NDArray[np.uint8]:
    """Returns the digests that are kept at a place, or computes them and keeps them there."""
    with _alone(place):
        with contextlib.suppress(OSError, ValueError):
            return np.frombuffer(place.read_bytes(), np.uint8).reshape(num_rows, WIDTH)
        digests = _computed(filesystem, name, column)
        # An unwritable cache costs time only.
        with contextlib.suppress(OSError), replacing(place, durable=False) as file:
            file.write(digests.tobytes())
    return digests


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Lets one process of a machine at a time read a file, so that the others find its digests."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(place.with_suffix(".lock").open("a", encoding="utf-8"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def num_repeated(digests: NDArray[np.uint8]) -> int:
    """Returns how many images equal an earlier one, byte for byte."""
    return len(digests) - len(np.unique(_as_keys(digests)))


def num_contrary(digests: NDArray[np.uint8], labels: NDArray[np.int64]) -> int:
    """Returns how many different images are there under more than one label."""
    pairs = np.unique(np.stack([_as_keys(digests), labels.astype(np.uint64)]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def num_shared(digests: NDArray[np.uint8], others: NDArray[np.uint8]) -> int:
    """Returns how many images are also among the others, byte for byte."""
    return int(np.isin(_as_keys(digests), _as_keys(others)).sum())


def _as_keys(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    # Half of a digest is enough to count with: some two of a billion images agree by chance once in 37 sets.
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64).ravel()
