"""The order of an epoch and the steps it is cut into."""

import math

import numpy as np
from numpy.typing import NDArray

from trainables.base import derive_seed


def num_steps(num_samples: int, batch_size: int) -> int:
    """Optimizer steps in one epoch."""
    return math.ceil(num_samples / batch_size)


def share_of(values: NDArray[np.int64], index: int, count: int) -> NDArray[np.int64]:
    """Part `index` of `count` nearly equal parts: sizes differ by at most one, nothing is lost."""
    return values[len(values) * index // count : len(values) * (index + 1) // count]


def epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which epoch `epoch` visits the samples: a function of its arguments alone."""
    return np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(num_samples)


def step_samples(
    order: NDArray[np.int64], batch_size: int, step: int, rank: int, world_size: int
) -> NDArray[np.int64]:
    """What one rank sees in one step.

    An epoch is cut into equal steps of at most `batch_size` rather than full ones and a rest, so every
    sample is seen exactly once and no step is too small for batch normalisation.
    """
    batch = share_of(order, step, num_steps(len(order), batch_size))
    return share_of(batch, rank, world_size)
