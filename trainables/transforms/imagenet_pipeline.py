"""The paper's ImageNet pipeline: images decoded and augmented one at a time.

Every random choice is a function of (seed, epoch, sample). So the augmentation of a sample does not depend on
its position in the batch, the number of ranks, or whether training was resumed.

Shape suffixes: B batch, C channels, H W image side, N samples of a split.
"""

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from trainables.base import derive_seed
from trainables.context import Context
from trainables.data.base import Images
from trainables.data.order import epoch_order, num_steps, step_samples
from trainables.transforms.base import Batch, Change, eval_rows, normalise, resize_and_crop
from trainables.transforms.imagenet import Paper

# ImageNet's usual mean and standard deviation per channel, and its colour axes (AlexNet).
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_PCA_VALUES = torch.tensor([0.2175, 0.0188, 0.0045])
_PCA_VECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


class PaperPipeline:
    """Makes batches from images decoded and augmented one at a time, in loader processes if there are any."""

    def __init__(self, config: Paper, image_size: int, seed: int, context: Context) -> None:
        self.config, self.image_size, self.seed, self.context = config, image_size, seed, context

    def train_batches(
        self, images: Images, order_seed: int, batch_size: int, epoch: int, first_step: int = 0
    ) -> Iterator[Batch]:
        """Yields the batches of this rank in one epoch, from step `first_step` on."""
        order = epoch_order(len(images), order_seed, epoch)
        if self.config.repeats > 1:
            # The number of a repeated sample encodes its copy: `copy * len(images) + row`.
            copies = np.tile(np.arange(self.config.repeats), len(order))
            order = (np.repeat(order, self.config.repeats) + len(images) * copies)[: len(order)]
        rows = [
            step_samples(order, batch_size, step, self.context.rank, self.context.world_size).tolist()
            for step in range(first_step, num_steps(len(order), batch_size))
        ]
        seed = derive_seed(self.seed, "epoch", epoch)
        yield from self._load(_TrainImages(images, self.config, self.image_size, seed), rows)

    def eval_batches(self, images: Images, batch_size: int, change: Change | None = None) -> Iterator[Batch]:
        """Yields this rank's share of a split without augmentation, after `change` if it is given."""
        rows = [part.tolist() for part in eval_rows(len(images), batch_size, self.context)]
        yield from self._load(_EvalImages(images, self.config, self.image_size, change), rows)

    def _load(self, dataset: "Dataset[tuple[Tensor, int]]", rows: list[list[int]]) -> Iterator[Batch]:
        on_gpu = self.context.device.type == "cuda"
        loader = DataLoader(
            dataset, batch_sampler=rows, num_workers=self.context.loader_workers, pin_memory=on_gpu
        )
        for pixels_BCHW, labels_B in loader:
            pixels = pixels_BCHW.to(self.context.device, non_blocking=True)
            if pixels.dtype == torch.uint8:
                pixels = normalise(pixels, _IMAGENET_MEAN, _IMAGENET_STD)
            yield pixels, labels_B.to(self.context.device, non_blocking=True)


def _rand_augment(word: str) -> Callable[[Image.Image], Image.Image]:
    # Areas uncovered by shifts and rotations get the mean colour, as in DeiT.
    grey = tuple(round(255 * mean) for mean in _IMAGENET_MEAN)
    policy = rand_augment_transform(word, {"img_mean": grey})
    for operation in policy.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return policy  # type: ignore[no-any-return]


def _posterize(image: Image.Image, bits: int, **unused: object) -> Image.Image:
    """Keeps the highest `bits` of each byte. timm may pass 0, which Pillow's version refuses."""
    return image.point([value & ~(2 ** (8 - bits) - 1) for value in range(256)] * 3)


@contextlib.contextmanager
def _global_generators(seed: int) -> Iterator[None]:
    """Seeds the generators of torch (for torchvision), Python and numpy (for timm), and restores them."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


class _TrainImages(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Images, config: Paper, image_size: int, seed: int) -> None:
        self.images, self.config, self.seed = images, config, seed
        self.erase = RandomErasing(config.erasing, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]
        steps: list[Callable[[Image.Image], Image.Image]] = [
            v2.RandomResizedCrop(
                image_size, (config.min_area, 1.0), interpolation=InterpolationMode.BILINEAR, antialias=True
            ),
            v2.RandomHorizontalFlip(config.flip),
        ]
        if config.auto_augment:
            steps.append(v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET))
        if config.rand_augment is not None:
            steps.append(_rand_augment(config.rand_augment))
        self.transform = v2.Compose(steps)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        copy, row = divmod(number, len(self.images))
        image = self.images.read(row)
        # The first copy has the same seed as without repeats.
        with _global_generators(derive_seed(self.seed, row, *([copy] if copy else []))):
            pixels_CHW = F.pil_to_tensor(self.transform(image))
            if self.config.pca_std:
                shift_C = _PCA_VECTORS @ (_PCA_VALUES * torch.randn(3) * self.config.pca_std)
                # Kept as floats, because bytes would round the jitter away.
                pixels_CHW = normalise(
                    pixels_CHW[None] + 255 * shift_C[:, None, None], _IMAGENET_MEAN, _IMAGENET_STD
                )[0]
            if self.config.erasing:
                if pixels_CHW.dtype == torch.uint8:
                    pixels_CHW = normalise(pixels_CHW[None], _IMAGENET_MEAN, _IMAGENET_STD)[0]
                pixels_CHW = self.erase(pixels_CHW)
        return pixels_CHW, int(self.images.labels[row])


class _EvalImages(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Images, config: Paper, image_size: int, change: Change | None = None) -> None:
        self.images, self.crop, self.change = images, image_size, change
        self.resize = round(image_size * config.eval_resize)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        picture = resize_and_crop(self.images.read(row), self.resize, self.crop)
        if self.change is not None:
            picture = Image.fromarray(self.change(np.asarray(picture), row))
        return F.pil_to_tensor(picture), int(self.images.labels[row])
