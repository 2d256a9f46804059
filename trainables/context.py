"""The device, rank and group of one process of a run."""

from dataclasses import dataclass, field

import torch
import torch.distributed
from torch import Tensor

from trainables.gpu import DeviceKind


@dataclass(frozen=True, slots=True)
class Context:
    """The device, rank and group of one process of a run.

    Attributes:
      device: the device of the model.
      rank: the number of this process among `world_size`; rank 0 reports.
      world_size: processes that train this model together; above 1, a default process group exists.
      loader_workers: processes that decode images for this one; with 0 it decodes them itself.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1
    loader_workers: int = 0

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum over all ranks to every rank, so that all make the same decision from it."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values


def this_process(
    rank: int = 0,
    world_size: int = 1,
    threads: int | None = 1,
    device: DeviceKind = "cpu",
    cores: int | None = None,
) -> Context:
    """Returns the context of this process, and sets the number of CPU threads.

    Args:
      rank, world_size: see `Context`.
      threads: part of a result, because a different number may round differently. None leaves torch's own.
      device: where the run computes; "cuda" is the current GPU. A GPU that is only visible is not used,
        because it may be another run's.
      cores: with a GPU, those on which images are decoded; as many as threads if left out.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cuda":
        gpu = torch.device("cuda", torch.cuda.current_device())
        return Context(gpu, rank, world_size, loader_workers=max((cores or threads or 1) - 1, 0))
    return Context(torch.device("cpu"), rank, world_size)
