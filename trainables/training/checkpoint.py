"""Checkpoints: decides when to take one, writes it while training continues, and reads it back.

`State.content` defines the content of a checkpoint. This module treats it as a tree of tensors and plain
values.

A checkpoint is one file: `MAGIC`, the output of `torch.save`, and a footer with its length and SHA-256. The
checksum comes last so that a state of gigabytes streams through it and is never in memory twice. If a file
was truncated or changed anywhere, its checksum does not match, and the previous checkpoint is used.

Rates are in GB/s of 1e9 bytes; all times are in seconds.
"""

import contextlib
import functools
import hashlib
import io
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self, cast

import pyarrow as pa
import pyarrow.fs
import torch
from torch import Tensor

from trainables.config import ModelConfig, OptimConfig, TrainConfig
from trainables.context import Context
from trainables.io.storage import open_filesystem, write_durably

Content = dict[str, Any]

#: First bytes of a checkpoint; the digit is the version of its content.
MAGIC = b"vitc-ck1"
_FOOTER = struct.Struct(">Q32s")
_SUFFIX = ".ckpt"

#: Checkpoints of a run that are kept: the newest, and one more in case the newest cannot be read.
KEPT = 2

#: Share of a run's time that its checkpoints may take.
SHARE = 0.005

#: Least seconds between two checkpoints. Restarting a worker group takes longer than this.
LEAST_SECONDS = 10.0

#: Assumed speed of copying, hashing and writing a state, until the first checkpoint has been measured.
GUESSED_GB_PER_SECOND = 0.5

#: Seconds before each retry of a failed write. After the last retry the checkpoint is given up.
BACKOFF_SECONDS = (1.0, 2.0, 4.0)


class Corrupt(ValueError):
    """Bytes that are not a complete checkpoint of this version."""


class _Abandoned(Exception):
    """The checkpointer has closed and needs this checkpoint no longer."""


# ---------------------------------------------------------------------------------------------------
# The format


class _Checked(io.RawIOBase):
    """A file for `torch.save` that counts and hashes the bytes written to it."""

    def __init__(self, file: IO[bytes], abandoned: threading.Event) -> None:
        super().__init__()
        self._file, self._abandoned = file, abandoned
        self._digest, self._length = hashlib.sha256(), 0

    def writable(self) -> bool:
        """Returns True."""
        return True

    def write(self, data: Any) -> int:
        """Counts and hashes bytes, and writes them to the file."""
        if self._abandoned.is_set():
            raise _Abandoned
        view = memoryview(data)
        self._digest.update(view)
        self._length += view.nbytes
        self._file.write(view)
        return view.nbytes

    def footer(self) -> bytes:
        """Returns the bytes that follow the content: its length and its digest."""
        return _FOOTER.pack(self._length, self._digest.digest())


def dump(content: Content, file: IO[bytes], abandoned: threading.Event | None = None) -> None:
    """Writes a checkpoint front to back. Raises `_Abandoned` if `abandoned` is set during the write."""
    file.write(MAGIC)
    checked = _Checked(file, abandoned or threading.Event())
    torch.save(content, cast(IO[bytes], checked))
    file.write(checked.footer())


def parse(data: bytes | memoryview) -> Content:
    """Reads the content of a checkpoint into the memory of the CPU.

    Raises:
      Corrupt: bytes are missing, added or changed, or another version wrote the checkpoint.
    """
    view = memoryview(data)
    body = view[len(MAGIC) : -_FOOTER.size]
    if len(view) < len(MAGIC) + _FOOTER.size or bytes(view[: len(MAGIC)]) != MAGIC:
        raise Corrupt("it is not a checkpoint of this version")
    length, digest = _FOOTER.unpack(view[-_FOOTER.size :])
    if length != len(body) or digest != hashlib.sha256(body).digest():
        raise Corrupt("its checksum does not match")
    content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise Corrupt("it holds no state")
    return content


# ---------------------------------------------------------------------------------------------------
# Storage


class Store:
    """The checkpoints of one run, in a folder of its own on any file system that pyarrow supports.

    A file is written under a name that readers ignore and then moved. An object store receives it in one
    upload instead. Reading verifies it in both cases.
    """

    def __init__(self, place: str | Path) -> None:
        """
        Args:
          place: a folder, or its URI (`s3://`, `gs://`, `file://`); it need not exist.

        Raises:
          DataError: no file system supports such paths.
        """
        self.place = str(place)
        self._filesystem, self._folder = open_filesystem(self.place)

    def paths(self) -> list[str]:
        """Returns the paths of the existing checkpoints, oldest first."""
        return sorted(path for path in self._all() if path.endswith(_SUFFIX))

    def _all(self) -> list[str]:
        selector = pyarrow.fs.FileSelector(self._folder, allow_not_found=True)
        return [entry.path for entry in self._filesystem.get_file_info(selector) if entry.is_file]

    def write(self, content: Content, abandoned: threading.Event | None = None) -> str:
        """Writes a state durably, then deletes the checkpoints that are no longer needed.

        Equal positions mean equal states. So a second writer, left over from an attempt of the same run that
        was considered lost, does no harm.

        Args:
          content: the state; its `epoch` and `step` name the file.
          abandoned: ends the write early when set.

        Returns:
          The path of the file.
        """
        name = f"{content['epoch']:06d}-{content['step']:09d}{_SUFFIX}"
        path = f"{self._folder}/{name}"
        write_durably(self._filesystem, path, lambda file: dump(content, file, abandoned))
        for old in self.paths()[:-KEPT]:
            self._delete(old)
        return path

    def read(self, most_epochs: int | None = None) -> tuple[Content | None, list[str]]:
        """Returns the newest complete checkpoint, and a notice about each newer one that failed.

        The checkpoint is None if there is none. Damaged files are deleted. Files that could not be read
        because of an error of the storage stay.

        Args:
          most_epochs: ignores checkpoints with more finished epochs than this.
        """
        notices: list[str] = []
        for path in reversed(self.paths()):
            try:
                with self._filesystem.open_input_file(path) as file:
                    content = parse(memoryview(file.read_buffer()))
                if most_epochs is None or content["epoch"] <= most_epochs:
                    return content, notices
            except (OSError, pa.ArrowException) as error:
                notices.append(f"{path}: could not be read: {error}")
            except Exception as error:
                # torch.load may raise any exception on a damaged file.
                notices.append(f"{path}: {error}")
                self._delete(path)
        return None, notices

    def clear(self) -> None:
        """Deletes every checkpoint and the partial files of killed writers; other files stay."""
        for path in self._all():
            if path.endswith((_SUFFIX, f"{_SUFFIX}.part")) or f"{_SUFFIX}." in path:
                self._delete(path)

    def delete(self) -> None:
        """Deletes the folder with all that is in it."""
        with contextlib.suppress(OSError):
            self._filesystem.delete_dir(self._folder)

    def _delete(self, path: str) -> None:
        with contextlib.suppress(OSError):
            self._filesystem.delete_file(path)


# ---------------------------------------------------------------------------------------------------
# Schedule and background writes


class Checkpointer:
    """Takes the checkpoints of a run. Each rank has a checkpointer, and only that of rank 0 has the store.

    The cost of a checkpoint is measured: the copy, during which training waits, and the processor time of the
    writing thread. The next one is taken as soon as the total cost stays within `share` of the time since the
    start. Checkpoints are written one at a time, at least `least_seconds` apart. So a run loses at most
    max(least_seconds, cost / share) plus the time of the write, and half of that on average.

    A failed write is tried again, then given up with a notice; it never fails the run.
    """

    def __init__(
        self,
        store: Store | None,
        should_stop: Callable[[], bool] = lambda: False,
        share: float = SHARE,
        least_seconds: float = LEAST_SECONDS,
        backoff_seconds: tuple[float, ...] = BACKOFF_SECONDS,
        most_epochs: int | None = None,
        on_look: Callable[[int], None] = lambda step: None,
    ) -> None:
        """
        Args:
          store: the storage of the checkpoints; None on all ranks but 0.
          should_stop: returns whether this process is about to be stopped. It is polled, so it must be cheap.
          share: share of the time that checkpoints may take, 0 to 1.
          least_seconds: least time between two checkpoints.
          backoff_seconds: waits before the second and every further try of a write.
          most_epochs: finished epochs whose rows are on record; later checkpoints are not used.
          on_look: called with the run's step at its beginning, about once a second, and before evaluation.
        """
        self._store, self.should_stop, self.on_look = store, should_stop, on_look
        self.share, self.least_seconds, self._backoff = share, least_seconds, backoff_seconds
        self._most_epochs = most_epochs
        self.notices: list[str] = []
        self.written = 0
        self.spent_seconds = 0.0
        self._cost: float | None = None
        self._started = self._last = time.perf_counter()
        self._buffers: list[Tensor] = []
        self._thread: threading.Thread | None = None
        self._abandoned = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Abandons the write in progress. Nothing is written afterwards."""
        self._abandoned.set()
        self._join()

    def read(self, context: Context) -> Content | None:
        """Returns the newest complete checkpoint, which rank 0 reads for all. Every rank must call this."""
        read: list[Any] = [None]
        if self._store is not None:
            try:
                read[0], notices = self._store.read(self._most_epochs)
                self.notices += notices
            except (OSError, pa.ArrowException) as error:
                self.notices.append(f"{self._store.place}: could not be read: {error}")
        if context.world_size > 1:
            torch.distributed.broadcast_object_list(read, src=0)
        content: Content | None = read[0]
        return content

    def is_due(self, content: Callable[[], Content]) -> bool:
        """Returns whether a checkpoint is within the allowed cost now. Without a store it is always False."""
        if self._store is None or self._is_writing():
            return False
        now = time.perf_counter()
        if now - self._last < self.least_seconds:
            return False
        if self._cost is None:
            num_bytes = sum(tensor.nbytes for tensor in _tensors(content()))
            self._cost = num_bytes / 1e9 / GUESSED_GB_PER_SECOND
        return self.spent_seconds + self._cost <= self.share * (now - self._started)

    def take(self, content: Content, wait: bool = False) -> None:
        """Copies a state and starts to write it. Training may continue when this returns.

        Args:
          content: the live state.
          wait: whether to return only once the checkpoint is durable or given up.
        """
        if self._store is None:
            return
        self._join()
        began = time.perf_counter()
        copied = self._copy(content)
        ready = None
        if any(tensor.is_cuda for tensor in _tensors(content)):
            # The copies are queued before the kernels of the next step, so those cannot change them.
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        self._last = time.perf_counter()
        self._thread = threading.Thread(
            target=self._write, args=(copied, ready, self._last - began), name="checkpoint", daemon=True
        )
        self._thread.start()
        if wait:
            self._join()

    def _is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _copy(self, content: Content) -> Content:
        """Copies into buffers that are kept, because pinning or touching new pages would cost more."""
        live = list(_tensors(content))
        if [_kind(tensor) for tensor in live] != [_kind(tensor) for tensor in self._buffers]:
            self._buffers = [
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda) for tensor in live
            ]
        for buffer, tensor in zip(self._buffers, live, strict=True):
            buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        buffers = iter(self._buffers)
        copied: Content = _map_tensors(content, lambda _: next(buffers))
        return copied

    def _write(self, content: Content, ready: "torch.cuda.Event | None", copy_seconds: float) -> None:
        assert self._store is not None
        began = time.thread_time()
        try:
            if ready is not None:
                ready.synchronize()
            for delay in (*self._backoff, None):
                try:
                    self._store.write(content, self._abandoned)
                    self.written += 1
                    return
                except _Abandoned:
                    return
                except Exception as error:
                    place = f"{self._store.place}: epoch {content['epoch']}, step {content['step']}"
                    if delay is None or self._abandoned.wait(delay):
                        self.notices.append(f"{place}: no checkpoint: {type(error).__name__}: {error}")
                        return
        finally:
            self._cost = copy_seconds + time.thread_time() - began
            self.spent_seconds += self._cost


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Yields the tensors of a tree, in the order of `_map_tensors`."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)


def _map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Returns a tree of new containers with each tensor replaced by a function of it."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _map_tensors(value, function) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map_tensors(value, function) for value in tree)
    return tree


# ---------------------------------------------------------------------------------------------------
# Size


def checkpoint_bytes(config: TrainConfig) -> int:
    """Bytes of the tensors in one checkpoint: weights, their average, the optimizer. Allocates no tensors.

    The file is larger by about 0.4 KB a tensor. A run stores `KEPT` of them, and one more during a write.

    Raises:
      DataError: the data cannot be read, so the number of classes is unknown.
    """
    return _state_bytes(config.model, config.optim, config.ema is not None, config.data.info().num_classes)


@functools.lru_cache(maxsize=1024)
def _state_bytes(
    model_config: ModelConfig, optim_config: OptimConfig, has_ema: bool, num_classes: int
) -> int:
    with torch.device("meta"):
        model = model_config.network(num_classes)
    optimizer = optim_config.build(model, 1, model_config.outer_names(model))
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    # On the meta device a step computes nothing but creates the state of the optimizer.
    optimizer.step()
    weights: int = sum(tensor.nbytes for tensor in _tensors(model.state_dict()))
    moments: int = sum(tensor.nbytes for tensor in _tensors(optimizer.state_dict()))
    return weights * (2 if has_ema else 1) + moments
