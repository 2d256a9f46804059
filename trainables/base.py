"""What every part of the training library shares: the config base, the result row, seeds.

Nothing heavy is imported here: processes that only pass rows on import it, too.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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


#: Names in `Epoch.extra`: the error on the images that were corrupted, before they were; errors under each
#: kind of corruption; errors on shifted sets.
CLEAN, CORRUPTION, SHIFTED = "clean", "corruption/", "shifted/"


def _column(label: str, **default: Any) -> Any:
    return field(metadata={"label": label}, **default)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One row of results. Column names, tracker keys and axis labels follow from these fields."""

    epoch: int = _column("epochs finished")
    step: int = _column("optimizer steps taken")
    lr: float = _column("learning rate of the last step, as the optimizer used it")
    train_loss: float = _column("mean training loss over the epoch")
    val_loss: float = _column("loss on the selection split, without label smoothing")
    val_error_pct: float = _column("error on the selection split (%)")
    val_raw_error_pct: float = _column("error without weight averaging (%)")
    train_seconds: float = _column("seconds of training in this epoch")
    val_seconds: float = _column("seconds of evaluation after this epoch")
    test_error_pct: float | None = _column("error on the final split (%), last epoch only")
    peak_memory_gib: float | None = _column("peak of a GPU's memory in this epoch (GiB)", default=None)
    #: Errors in % under `corruption/fog` and on `shifted/imagenet_v2`, after the last epoch; and what else a
    #: task measures, by names of its own.
    extra: dict[str, float] | None = field(
        default=None, metadata={"label": "numbers that decide nothing", "several": True}
    )

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Epoch":
        """Reads a row as a journal holds it, in the columns of today or of earlier versions.

        Columns that are not known are passed over.

        Raises:
          TypeError: a column is missing.
        """
        if "val_top1_error_pct" in row:
            row = _with_names_of_today(row)
        return cls(**{name: row[name] for name in _COLUMNS if name in row})


_COLUMNS = tuple(f.name for f in dataclasses.fields(Epoch))

#: Columns by the names that they had while every task was classification.
_OLD_COLUMNS = {
    "val_top1_error_pct": "val_error_pct",
    "val_raw_top1_error_pct": "val_raw_error_pct",
    "test_top1_error_pct": "test_error_pct",
    "shift_top1_error_pct": "extra",
}

#: The corruptions there were then; every other error of `shift_top1_error_pct` was of a shifted set.
_OLD_CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip


def _with_names_of_today(row: Mapping[str, Any]) -> dict[str, Any]:
    columns = {_OLD_COLUMNS.get(name, name): value for name, value in row.items()}
    if errors := columns.get("extra"):
        prefixes = {CLEAN: "", **dict.fromkeys(_OLD_CORRUPTIONS, CORRUPTION)}
        columns["extra"] = {prefixes.get(name, SHIFTED) + name: error for name, error in errors.items()}
    return columns


#: Fields of a row that measure the machine and not the run: two identical runs may differ in them.
TIMING_FIELDS = ("train_seconds", "val_seconds", "peak_memory_gib")

#: Fields of one number each.
EPOCH_LABELS: dict[str, str] = {
    f.name: f.metadata["label"] for f in dataclasses.fields(Epoch) if "several" not in f.metadata
}

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class DataInfo:
    """What a data set holds, told without decoding an image.

    Attributes:
      name: for people.
      num_classes: labels run from 0 to one less.
      class_names: one per class.
      sizes: images per split.
      splits: where each split comes from, in words; the report prints it.
      fingerprint: changes when the images or labels do, not when the files move.
      skipped: images left out because they do not decode (policy `skip`).
      chance_error_pct: the error of guessing, as the task has it.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    sizes: dict[Split, int]
    splits: dict[Split, str]
    fingerprint: str
    skipped: int = 0
    chance_error_pct: float = 100.0
