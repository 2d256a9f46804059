"""The light pipeline: a split in memory, augmented a batch at a time on the device."""

import functools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from trainables.base import derive_seed
from trainables.context import Context
from trainables.data.base import Images
from trainables.data.cache import Collected, collect
from trainables.data.order import epoch_order, num_steps, step_samples
from trainables.transforms.base import Batch, Change, eval_rows, normalise, resize_and_crop, sent
from trainables.transforms.light import Light

#: Most bytes that the images of a split may take in memory.
COLLECT_BYTES = 8 * 2**30


class LightPipeline:
    """Makes batches from images in memory, and augments a whole batch at once on the training device."""

    def __init__(self, config: Light, image_size: int, seed: int, context: Context) -> None:
        self.config, self.image_size, self.seed, self.context = config, image_size, seed, context

    def train_batches(
        self,
        images: Images,
        order_seed: int,
        batch_size: int,
        epoch: int,
        first_step: int = 0,
        stop_step: int | None = None,
    ) -> Iterator[Batch]:
        """Yields the batches of this rank in one epoch: from `first_step` on, until `stop_step` if given."""
        collected = _collected_light(images, self.image_size, self.context.device)
        order = epoch_order(len(images), order_seed, epoch)
        # One row of uniform numbers per sample, the same on all ranks: shift down, shift right, mirror.
        uniforms_N3 = np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).random((len(images), 3))
        for step in range(num_steps(len(order), batch_size))[first_step:stop_step]:
            rows = step_samples(order, batch_size, step, self.context.rank, self.context.world_size)
            at = sent(torch.from_numpy(rows), self.context.device)
            pixels_BCHW = self._augment(collected.pixels_NCHW[at], uniforms_N3[rows])
            yield normalise(pixels_BCHW, (0.5,) * 3, (0.5,) * 3), collected.labels_N[at]

    def eval_batches(self, images: Images, batch_size: int, change: Change | None = None) -> Iterator[Batch]:
        """Yields this rank's share of a split without augmentation, after `change` if it is given."""
        collected = _collected_light(images, self.image_size, self.context.device)
        for rows in eval_rows(len(images), batch_size, self.context):
            at = sent(torch.from_numpy(rows), self.context.device)
            pixels_BCHW = collected.pixels_NCHW[at]
            if change is not None:
                pixels_BHWC = pixels_BCHW.permute(0, 2, 3, 1).cpu().numpy()
                changed = [change(pixels, int(row)) for pixels, row in zip(pixels_BHWC, rows, strict=True)]
                pixels_BCHW = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).to(at.device)
            yield normalise(pixels_BCHW, (0.5,) * 3, (0.5,) * 3), collected.labels_N[at]

    def expect(self, splits: Iterable[Images]) -> None:
        """Does nothing. Splits are collected when they are first asked for."""

    def close(self) -> None:
        """Ends nothing, because images in memory need no processes."""

    def _augment(self, pixels_BCHW: Tensor, uniforms_B3: NDArray[np.float64]) -> Tensor:
        side = pixels_BCHW.shape[-1]
        reach = round(self.config.shift * side)
        if reach:
            padded = torch.nn.functional.pad(pixels_BCHW, (reach,) * 4)
            offsets_B2 = torch.from_numpy((uniforms_B3[:, :2] * (2 * reach + 1)).astype(np.int64))
            at_B2S = sent(offsets_B2[:, :, None] + torch.arange(side), pixels_BCHW.device)
            batch = torch.arange(len(padded), device=pixels_BCHW.device)[:, None, None]
            # Permuted, because indexing with sliced channels moves them last.
            pixels_BCHW = padded[batch, :, at_B2S[:, 0, :, None], at_B2S[:, 1, None, :]].permute(0, 3, 1, 2)
        if self.config.flip:
            mirror = sent(torch.from_numpy(uniforms_B3[:, 2] < self.config.flip), pixels_BCHW.device)
            pixels_BCHW = torch.where(mirror[:, None, None, None], pixels_BCHW.flip(3), pixels_BCHW)
        return pixels_BCHW


# Trials of one lane with the same data and image size share decoded images. Six splits are two data sets.
@functools.lru_cache(maxsize=6)
def _collected_light(images: Images, image_size: int, device: torch.device) -> Collected:
    if (size := len(images) * 3 * image_size**2) > COLLECT_BYTES:
        raise MemoryError(
            f"augment light keeps all images in memory, {size / 2**30:.1f} GiB here; use augment paper"
        )
    return collect(images, functools.partial(_light_bytes, image_size=image_size), device)


def _light_bytes(image: Image.Image, image_size: int) -> Tensor:
    pixels_CHW: Tensor = F.pil_to_tensor(resize_and_crop(image, image_size, image_size))
    return pixels_CHW
