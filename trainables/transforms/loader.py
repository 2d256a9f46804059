"""Processes that make batches ahead of time, and live as long as the run that they serve."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset, Sampler

Job = TypeVar("Job")
Made = TypeVar("Made")


class Loader(Generic[Job, Made]):
    """Makes batches by jobs in processes that stay for later jobs.

    torch's loader ends its processes after each pass over a data set, or keeps them for the same one. Here a
    job says what a batch is of, so that the same processes serve all epochs and splits of a run.
    """

    def __init__(self, make: Callable[[Job], Made], num_processes: int, pinned: bool) -> None:
        """
        Args:
          make: makes a batch. Processes are forked with it and with what it refers to.
          num_processes: with 0, this process makes the batches when they are wanted.
          pinned: whether tensors are put into memory from which a GPU copies by itself.
        """
        self._make, self._num_processes, self._pinned = make, num_processes, pinned
        self._jobs: _Jobs[Job] = _Jobs()
        self._loader: DataLoader[Made] | None = None

    def load(self, jobs: Sequence[Job]) -> Iterator[Made]:
        """Yields the batches of jobs in their order. A load that was broken off before is forgotten."""
        if self._loader is None:
            self._loader = DataLoader(
                _Making(self._make),
                batch_size=None,
                sampler=self._jobs,
                num_workers=self._num_processes,
                persistent_workers=self._num_processes > 0,
                # What is open in this process is open in those forked from it.
                multiprocessing_context="fork" if self._num_processes else None,
                pin_memory=self._pinned,
                collate_fn=_as_it_is,
            )
        self._jobs.now = jobs
        yield from self._loader

    def close(self) -> None:
        """Ends the processes. A later load starts others."""
        self._loader = None


class _Jobs(Sampler[Job]):
    def __init__(self) -> None:
        self.now: Sequence[Job] = ()

    def __iter__(self) -> Iterator[Job]:
        return iter(self.now)


class _Making(Dataset[Made], Generic[Job, Made]):
    def __init__(self, make: Callable[[Job], Made]) -> None:
        self._make = make

    def __getitem__(self, job: Any) -> Made:
        return self._make(job)


def _as_it_is(batch: Made) -> Made:
    return batch
