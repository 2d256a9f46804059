"""Packs parts in several processes."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event, Lock

from trainables.base import DataError
from trainables.data import decode
from trainables.data.packing_parts import Packer, Part, Record


def pack_all(
    packer: Packer, parts: Sequence[Part], processes: int, tell: Callable[[int], None]
) -> Iterator[tuple[Part, Record]]:
    """Packs parts, and yields each once it is complete, in any order.

    With one process, that is this one, and `tell` hears of each file. If the caller leaves the loop, the
    other processes end after the images at hand.

    Args:
      packer: packs them, with its threads in each process.
      parts: the parts.
      processes: how many are packed at a time.
      tell: is called with the number of files that are done.

    Raises:
      DataError: a process was killed.
      OSError, pa.ArrowException: a file cannot be written.
    """
    done = 0
    if processes < 2:
        for part in parts:
            before = done
            record = packer.pack(part, lambda number, before=before: tell(before + number))  # type: ignore[misc]
            done += len(part.files)
            yield part, record
        return
    # Not forked: this process may have threads, whose locks a copy would never see released.
    context = multiprocessing.get_context("spawn")
    stop, large = context.Event(), context.Lock()
    with ProcessPoolExecutor(processes, context, _begin, (stop, large)) as pool:
        futures: dict[Future[Record], Part] = {}
        try:
            # Ctrl-C reaches all processes of a terminal. The others must not see it, not even as they start.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                futures.update({pool.submit(_pack, packer, part): part for part in parts})
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for future in as_completed(futures):
                done += len(futures[future].files)
                tell(done)
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process of the import was killed, as it is if memory runs out; --workers says how many "
                "there are"
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


_stop: Event


def _begin(stop: Event, large: Lock) -> None:
    """Prepares a process of the pool."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    decode.share_large(large)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # The pool's processes would wait for work for ever if that of the import is killed.
    if (parent := multiprocessing.parent_process()) is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


class _Stopped(Exception):
    """The import has ended."""


def _pack(packer: Packer, part: Part) -> Record:
    def look(done: int) -> None:
        if _stop.is_set():
            raise _Stopped

    return packer.pack(part, look)
