"""Operations that all pipelines share."""

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
    device = pixels_BCHW.device
    scale = torch.tensor(std, device=device).view(1, 3, 1, 1) * 255
    offset = torch.tensor(mean, device=device).view(1, 3, 1, 1) * 255
    return (pixels_BCHW.float() - offset) / scale


def eval_rows(num_samples: int, batch_size: int, context: Context) -> Iterator[NDArray[np.int64]]:
    rows = np.arange(context.rank, num_samples, context.world_size)
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]
