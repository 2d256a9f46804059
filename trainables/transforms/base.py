"""Operations that all pipelines share."""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from trainables.context import Context

Batch = tuple[Tensor, Tensor]
#: A change of an evaluation image after cropping, given bytes of shape (H, W, C) and its row in the split.
Change = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]


def resize_and_crop(image: Image.Image, resize: int, crop: int) -> Image.Image:
    """Resizes the shorter side to `resize`, then crops the centre square of side `crop`."""
    resized: Image.Image = F.resize(image, [resize], InterpolationMode.BILINEAR, antialias=True)
    cropped: Image.Image = F.center_crop(resized, [crop, crop])
    return cropped


def normalise(pixels_BCHW: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Returns bytes as numbers of mean 0 and standard deviation 1 per channel, on the device of the bytes."""
    offset, scale = (_of_bytes(values, pixels_BCHW.device) for values in (mean, std))
    return (pixels_BCHW - offset).div_(scale)


# Kept, because making them on a GPU copies from memory that is not pinned, which waits for the GPU.
@functools.lru_cache(maxsize=16)
def _of_bytes(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, 3, 1, 1) * 255


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor of the CPU on a device. The CPU does not wait for the device."""
    if device.type == "cuda":
        # A copy from other memory waits for all that the GPU has been given.
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def eval_rows(num_samples: int, batch_size: int, context: Context) -> Iterator[NDArray[np.int64]]:
    rows = np.arange(context.rank, num_samples, context.world_size)
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]
