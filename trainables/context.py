"""Where one process of a run works."""

from dataclasses import dataclass, field

import torch
import torch.distributed
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Context:
    """Where one process of a run works.

    Attributes:
      device: where the model lives.
      rank: this process among `world_size`; 0 reports.
      world_size: processes that train this model together; above 1 a default process group exists.
      loader_workers: processes that decode images for this one; 0 decodes in line.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1
    loader_workers: int = 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks; every rank gets it, so decisions made on it agree."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values


def this_process(rank: int = 0, world_size: int = 1, threads: int = 1) -> Context:
    """The context of this process, on a GPU if it sees one; fixes the number of CPU threads.

    The number of threads is part of a result: a different one may round differently.
    """
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        return Context(device, rank, world_size, loader_workers=max(threads - 1, 0))
    return Context(torch.device("cpu"), rank, world_size)
