"""Copies of a data set's images in memory and on disk."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image

from trainables.data.base import Images

if TYPE_CHECKING:  # settings are read without torch
    import torch
    from torch import Tensor

#: Encoded images of a split up to this total size are held in memory. Above it, a memory-mapped copy is made
#: once.
IN_MEMORY_BYTES = 2**30


class Collected:
    """Images of one size as bytes in memory, on the device that uses them."""

    def __init__(self, pixels_NCHW: "Tensor", labels_N: "Tensor") -> None:
        self.pixels_NCHW = pixels_NCHW
        self.labels_N = labels_N

    def __len__(self) -> int:
        return len(self.labels_N)


def collect(images: Images, prepare: "Callable[[Image.Image], Tensor]", device: "torch.device") -> Collected:
    """Decodes and prepares a whole split once.

    Args:
      images: the split.
      prepare: turns an image into uint8 of shape (3, side, side).
      device: the device that holds the bytes.
    """
    import torch

    first = prepare(images.read(0))
    pixels = torch.empty((len(images), *first.shape), dtype=torch.uint8)
    pixels[0] = first
    for row in range(1, len(images)):
        pixels[row] = prepare(images.read(row))
    return Collected(pixels.to(device), torch.from_numpy(images.labels).to(device))
