"""Types that every part of the training library shares: the config base, the result row, errors, seeds.

This module imports nothing heavy, because processes that only pass rows on import it as well.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

from trainables.errors import UserError

#: The largest possible error, in percent; a diverged run counts as this.
WORST_PCT = 100.0


def _kinds(annotation: Any) -> set[Any]:
    """Returns the types that an annotation is a union of."""
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {annotation}


class Frozen(BaseModel):
    """A configuration that is immutable and hashable, and refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, data: Any) -> Any:
        if isinstance(data, dict) and any(isinstance(value, bool) for value in data.values()):
            # As texts they are refused at their place, where pydantic would take true for 1.
            return {
                name: str(value).lower() if isinstance(value, bool) and name in cls._numbers() else value
                for name, value in data.items()
            }
        return data

    @classmethod
    def _numbers(cls) -> set[str]:
        """Returns the names of fields that take numbers and no truth values."""
        kinds = {name: _kinds(field.annotation) for name, field in cls.model_fields.items()}
        return {name for name, them in kinds.items() if them & {int, float} and not them & {bool, Any}}


class Diverged(Exception):
    """Training ended early because the loss is not finite or the run learns nothing."""


class Invalid(Exception):
    """A valid configuration that cannot be built with the given data or number of workers."""


class DataError(UserError):
    """Data that cannot be used as configured. The message names the file and, if there is one, the row."""


class Preempted(Exception):
    """Training was asked to stop. All ranks have stopped, and the checkpoint is written."""


def derive_seed(*names: object) -> int:
    """Returns a seed of 63 bits that depends on the names alone. It is the same in every process."""
    # A digest, not hash(), because Python salts the hash of a string differently in every process.
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


#: Names in `Epoch.extra`: the error on the images of the corruption test without corruption; the prefix of
#: errors under each kind of corruption; the prefix of errors on shifted sets.
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
    #: Errors in % after the last epoch, named as `corruption/fog` and `shifted/imagenet_v2`; and other
    #: measurements of the task, by the task's own names.
    extra: dict[str, float] | None = field(
        default=None, metadata={"label": "numbers that decide nothing", "several": True}
    )

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Epoch":
        """Reads a row of a journal, with the columns of this or an earlier version.

        Unknown columns are ignored.

        Raises:
          TypeError: a column is missing.
        """
        if "val_top1_error_pct" in row:
            row = _with_names_of_today(row)
        return cls(**{name: row[name] for name in _COLUMNS if name in row})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """The device that trains a model, and how it computes.

    Attributes:
      name: of the GPU as torch gives it, or of the processor.
      dtype: of the products of matrices: `fp32`, or under mixed precision `bf16` or `fp16`.
      driver: version of the NVIDIA driver; "" on a CPU.
      cuda: version of CUDA that torch was built for; "" on a CPU.
      tf32: what may be rounded to TF32: `matmul`, `conv`, `matmul conv`; "" if nothing is, as on a CPU.
      deterministic: whether torch uses deterministic algorithms only.
    """

    name: str
    dtype: str = "fp32"
    driver: str = ""
    cuda: str = ""
    tf32: str = ""
    deterministic: bool = False

    @property
    def is_gpu(self) -> bool:
        """Returns whether it is a GPU."""
        return bool(self.cuda)

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype})"


_COLUMNS = tuple(f.name for f in dataclasses.fields(Epoch))

#: Column names of earlier versions, in which every task was classification, and the present ones.
_OLD_COLUMNS = {
    "val_top1_error_pct": "val_error_pct",
    "val_raw_top1_error_pct": "val_raw_error_pct",
    "test_top1_error_pct": "test_error_pct",
    "shift_top1_error_pct": "extra",
}

#: The corruptions of those versions; every other error in `shift_top1_error_pct` was of a shifted set.
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


#: Fields of a row that measure the machine, not the run; two identical runs may differ in them.
TIMING_FIELDS = ("train_seconds", "val_seconds", "peak_memory_gib")

#: Labels of the fields that hold one number each.
EPOCH_LABELS: dict[str, str] = {
    f.name: f.metadata["label"] for f in dataclasses.fields(Epoch) if "several" not in f.metadata
}

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class DataInfo:
    """The content of a data set, found without decoding an image.

    Attributes:
      name: for display.
      num_classes: labels run from 0 to `num_classes` - 1.
      class_names: one per class.
      sizes: images per split.
      splits: the source of each split in words; the report prints it.
      fingerprint: changes when a byte of an image or a label changes, but not when the files move.
      skipped: images left out because they do not decode (policy `skip`).
      chance_error_pct: the error of guessing, as the task defines it.
      majority_share: share of the largest class in the selection split; None if all classes count as equal.
      notices: sentences about the data that their user should know.
      earlier_fingerprint: the fingerprint by which earlier versions knew the same data; "" if there is none.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    sizes: dict[Split, int]
    splits: dict[Split, str]
    fingerprint: str
    skipped: int = 0
    chance_error_pct: float = 100.0
    majority_share: float | None = None
    notices: tuple[str, ...] = ()
    earlier_fingerprint: str = ""

    def is_known_as(self, fingerprint: str) -> bool:
        """Returns whether this or an earlier version gives these data a fingerprint."""
        return fingerprint in (self.fingerprint, self.earlier_fingerprint)
