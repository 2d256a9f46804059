"""What every part of the training library shares: the config base, the result row, the place of work."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class Frozen(BaseModel):
    """A configuration: immutable, hashable, refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Diverged(Exception):
    """Training is over because nothing can come of it: a non-finite loss, or no learning at all."""


def derive_seed(*names: object) -> int:
    """A seed of 63 bits that depends on every name and on nothing else, the same in every process."""
    # A digest, not hash(): Python salts the hash of a string anew in every process.
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def _column(label: str) -> Any:
    return field(metadata={"label": label})


@dataclass(frozen=True, slots=True)
class Epoch:
    """One row of results. Column names, tracker keys and axis labels follow from these fields."""

    epoch: int = _column("epochs finished")
    step: int = _column("optimizer steps taken")
    lr: float = _column("learning rate of the last step, as the optimizer used it")
    train_loss: float = _column("mean training loss over the epoch")
    val_loss: float = _column("cross-entropy on the selection split, without label smoothing")
    val_top1_error_pct: float = _column("top-1 error on the selection split (%)")
    val_raw_top1_error_pct: float = _column("top-1 error without weight averaging (%)")
    train_seconds: float = _column("seconds of training in this epoch")
    val_seconds: float = _column("seconds of evaluation after this epoch")
    test_top1_error_pct: float | None = _column("top-1 error on the final split (%), last epoch only")


#: Fields of a row that measure the machine and not the run: two identical runs may differ in them.
TIMING_FIELDS = ("train_seconds", "val_seconds")

EPOCH_LABELS: dict[str, str] = {f.name: f.metadata["label"] for f in dataclasses.fields(Epoch)}


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
