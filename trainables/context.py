"""The device, rank and group of one process of a run."""

from dataclasses import dataclass, field

import torch
import torch.distributed
from torch import Tensor


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


def this_process(rank: int = 0, world_size: int = 1, threads: int = 1) -> Context:
    """Returns the context of this process, on a GPU if it sees one, and sets the number of CPU threads.

    The number of threads is part of a result: a different one may round differently.
    """
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        return Context(device, rank, world_size, loader_workers=max(threads - 1, 0))
    return Context(torch.device("cpu"), rank, world_size)
