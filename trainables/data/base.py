"""The images of a split, and the functions that draw splits."""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainables.base import DataInfo
from trainables.tasks.base import Task


def with_chance(info: DataInfo, task: Task) -> DataInfo:
    """Fills in the error of guessing, which the task computes from the other fields."""
    return dataclasses.replace(info, chance_error_pct=task.chance_error_pct(info))


@dataclass(frozen=True, eq=False)
class Images:
    """One split, with labels in memory and images read on demand.

    Attributes:
      labels: class of every image.
      read: reads the image at a position, as an RGB PIL image.
    """

    labels: NDArray[np.int64]
    read: Callable[[int], Image.Image] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)


def held_out(
    labels: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits positions into those that stay and those held out: `share` of every class, at least one image.

    A class of a single image stays whole.
    """
    rng = np.random.default_rng(seed)
    out = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        out.append(members[:count])
    held = np.sort(np.concatenate(out))
    return np.setdiff1d(np.arange(len(labels)), held), held


def drawn_from(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Draws `count` positions, each class in proportion to within one image (largest remainders)."""
    rng = np.random.default_rng(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    whole, rest = np.divmod(sizes * count, len(labels))
    whole[np.argsort(-rest, kind="stable")[: count - whole.sum()]] += 1
    drawn = [
        rng.permutation(np.flatnonzero(labels == label))[:size]
        for label, size in zip(classes, whole, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def digest_of(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()[:16]
