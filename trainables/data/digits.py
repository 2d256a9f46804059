"""The digits data set of scikit-learn."""

import functools
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from trainables.base import SPLITS, DataInfo, Frozen, Split
from trainables.data.base import Images, digest_of, held_out, with_chance
from trainables.tasks.base import Task
from trainables.tasks.classification import Classification


class Digits(Frozen):
    """scikit-learn's digits: 1,797 real 8x8 scans of ten handwritten digits, part of its wheel."""

    task: ClassVar[Task] = Classification()
    name: Literal["digits"] = "digits"
    val_share: float = Field(1 / 6, gt=0, lt=0.5, description="Share of all images used for selection.")
    test_share: float = Field(1 / 6, gt=0, lt=0.5, description="Share of all images kept for the end.")
    split_seed: int = Field(
        0, ge=0, lt=2**63, description="Which images go to which split; no trial's seed changes it."
    )

    def info(self) -> DataInfo:
        """Describes the data: sizes, classes and fingerprint."""
        splits = _digits_splits(self)
        shares = {"train": "the rest", "val": "held out by seed", "test": "held out by seed"}
        info = DataInfo(
            name="digits",
            num_classes=10,
            class_names=tuple("0123456789"),
            sizes={split: len(splits[split]) for split in SPLITS},
            splits={split: f"scikit-learn digits, {shares[split]}" for split in SPLITS},
            fingerprint=digest_of(
                *(splits[split].labels.tobytes() for split in SPLITS), _digits()[0].tobytes()
            ),
        )
        return with_chance(info, self.task)

    def open(self) -> dict[Split, Images]:
        """Returns the images of every split."""
        return _digits_splits(self)


@functools.cache
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Scaled to bytes, because the grey levels run from 0 to 16.
    return (bunch.images * 255 / 16).round().astype(np.uint8), bunch.target.astype(np.int64)


@functools.cache
def _digits_splits(config: Digits) -> dict[Split, Images]:
    pixels, labels = _digits()
    rest, test = held_out(labels, config.test_share, config.split_seed)
    share = config.val_share / (1 - config.test_share)
    train, val = (rest[part] for part in held_out(labels[rest], share, config.split_seed + 1))

    def images(rows: NDArray[np.int64]) -> Images:
        return Images(labels[rows], lambda i: Image.fromarray(pixels[rows[i]]).convert("RGB"))

    return {"train": images(train), "val": images(val), "test": images(test)}
