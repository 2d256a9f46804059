"""The order of the samples in an epoch, and its division into steps."""

import math

import numpy as np
from numpy.typing import NDArray

from trainables.base import derive_seed


def num_steps(num_samples: int, batch_size: int) -> int:
    """Number of optimizer steps in one epoch."""
    return math.ceil(num_samples / batch_size)


def share_of(values: NDArray[np.int64], index: int, count: int) -> NDArray[np.int64]:
    """Returns part `index` of `count` parts that hold all values and differ by at most one in size."""
    return values[len(values) * index // count : len(values) * (index + 1) // count]


def epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which epoch `epoch` visits the samples, a function of the arguments alone."""
    return np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(num_samples)


def step_samples(
    order: NDArray[np.int64], batch_size: int, step: int, rank: int, world_size: int
) -> NDArray[np.int64]:
    """Returns the samples of one rank in one step.

    An epoch is cut into equal steps of at most `batch_size`, instead of full steps and a remainder. So
    every sample is seen exactly once, and no step is too small for batch normalisation.
    """
    batch = share_of(order, step, num_steps(len(order), batch_size))
    return share_of(batch, rank, world_size)
