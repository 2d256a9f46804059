"""What every part of the training library shares: the config base, the result row, seeds.

Nothing heavy is imported here: processes that only pass rows on import it, too.
"""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from trainables.errors import UserError

#: The largest error there is, in percent; a diverged run counts as it.
WORST_PCT = 100.0


class Frozen(BaseModel):
    """A configuration: immutable, hashable, refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Diverged(Exception):
    """Training is over because nothing can come of it: a non-finite loss, or no learning at all."""


class Invalid(Exception):
    """A configuration that passes its checks but cannot be built on the data or workers it got."""


class DataError(UserError):
    """The data cannot be used as asked; the message names the file and, where there is one, the row."""


class Preempted(Exception):
    """Training was asked to stop, and all ranks have; the checkpoint is written."""


def derive_seed(*names: object) -> int:
    """A seed of 63 bits that depends on every name and on nothing else, the same in every process."""
    # A digest, not hash(): Python salts the hash of a string anew in every process.
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def _column(label: str, **default: Any) -> Any:
    return field(metadata={"label": label}, **default)


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
    peak_memory_gib: float | None = _column("peak of a GPU's memory in this epoch (GiB)", default=None)
    #: `clean` is the error on the images that were corrupted, before they were.
    shift_top1_error_pct: dict[str, float] | None = field(
        default=None,
        metadata={"label": "top-1 errors under corruption and shift (%), last epoch only", "several": True},
    )


#: Fields of a row that measure the machine and not the run: two identical runs may differ in them.
TIMING_FIELDS = ("train_seconds", "val_seconds", "peak_memory_gib")

#: Fields of one number each.
EPOCH_LABELS: dict[str, str] = {
    f.name: f.metadata["label"] for f in dataclasses.fields(Epoch) if "several" not in f.metadata
}
