"""The paper's ImageNet pipeline: images decoded and cropped one at a time, coloured a batch at a time.

Every random choice is a function of (seed, epoch, sample). So the augmentation of a sample does not depend on
its position in the batch, the number of ranks, or whether training was resumed.

Loader processes send bytes to the device, a quarter of what floats take, with the random numbers of what is
done there: jitter and noise.

Shape suffixes: B batch, C channels, H W image side, N samples of a split, P patches of noise.
"""

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from trainables.base import derive_seed
from trainables.context import Context
from trainables.data.base import Images
from trainables.data.order import epoch_order, num_steps, step_samples
from trainables.transforms.base import Batch, Change, eval_rows, normalise, resize_and_crop
from trainables.transforms.imagenet import Paper
from trainables.transforms.loader import Loader

# ImageNet's usual mean and standard deviation per channel, and its colour axes (AlexNet).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_PCA_VALUES = torch.tensor([0.2175, 0.0188, 0.0045])
_PCA_VECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


class PaperPipeline:
    """Makes batches from images decoded and augmented one at a time, in loader processes if there are any.

    The processes are started once. They start again when a split is asked for that was not expected.
    """

    def __init__(self, config: Paper, image_size: int, seed: int, context: Context) -> None:
        self.config, self.image_size, self.seed, self.context = config, image_size, seed, context
        self._splits: list[Images] = []
        on_gpu = context.device.type == "cuda"
        self._loader = Loader(Maker(config, image_size, self._splits), context.loader_workers, on_gpu)

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
        order = epoch_order(len(images), order_seed, epoch)
        if self.config.repeats > 1:
            # The number of a repeated sample encodes its copy: `copy * len(images) + row`.
            copies = np.tile(np.arange(self.config.repeats), len(order))
            order = (np.repeat(order, self.config.repeats) + len(images) * copies)[: len(order)]
        steps = range(num_steps(len(order), batch_size))[first_step:stop_step]
        seed, split = derive_seed(self.seed, "epoch", epoch), self._number(images)
        rank, ranks = self.context.rank, self.context.world_size
        jobs = [Job(split, step_samples(order, batch_size, step, rank, ranks), seed) for step in steps]
        return map(self._finished, self._loader.load(jobs))

    def eval_batches(self, images: Images, batch_size: int, change: Change | None = None) -> Iterator[Batch]:
        """Yields this rank's share of a split without augmentation, after `change` if it is given."""
        split, rows = self._number(images), eval_rows(len(images), batch_size, self.context)
        return map(self._finished, self._loader.load([Job(split, part, None, change) for part in rows]))

    def expect(self, splits: Iterable[Images]) -> None:
        """Names splits that will be asked for, so that the loader processes know them from the start."""
        for images in splits:
            self._number(images)

    def close(self) -> None:
        """Ends the loader processes."""
        self._loader.close()

    def _number(self, images: Images) -> int:
        """Returns the number of a split. The loader processes start again if it is new."""
        if images not in self._splits:
            self._loader.close()
            self._splits.append(images)
        return self._splits.index(images)

    def _finished(self, made: "_Made") -> Batch:
        """Returns a batch on the device, with images as floats that have their jitter and noise."""
        device = self.context.device
        pixels_BCHW = made.pixels_BHWC.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        if made.shifts_BC is not None:
            # Not as bytes, which would round the jitter away.
            pixels_BCHW = pixels_BCHW + made.shifts_BC.to(device, non_blocking=True)[:, :, None, None]
        images_BCHW = normalise(pixels_BCHW, IMAGENET_MEAN, IMAGENET_STD)
        if made.noise is not None and made.boxes_P5 is not None:
            noise, start = made.noise.to(device, non_blocking=True), 0
            for sample, top, left, height, width in made.boxes_P5.tolist():
                stop = start + 3 * height * width
                patch = noise[start:stop].view(3, height, width)
                images_BCHW[sample, :, top : top + height, left : left + width] = patch
                start = stop
        return images_BCHW, made.labels_B.to(device, non_blocking=True)


# ---------------------------------------------------------------------------------------------------
# In the loader processes


class Job(NamedTuple):
    """A batch that is to be made.

    Attributes:
      split: number of its split.
      numbers: its samples.
      seed: the seed of the epoch; None prepares images for evaluation.
      change: of evaluation images.
    """

    split: int
    numbers: NDArray[np.int64]
    seed: int | None
    change: Change | None = None


class _Made(NamedTuple):
    """A batch as bytes, with what is left to do.

    Attributes:
      pixels_BHWC: bytes.
      labels_B: classes.
      shifts_BC: what the jitter adds to the bytes of a sample; None without jitter.
      boxes_P5: number of the sample, top, left, height and width of each patch of noise.
      noise: the values of all patches, one after the other; None if there is no patch.
    """

    pixels_BHWC: Tensor
    labels_B: Tensor
    shifts_BC: Tensor | None = None
    boxes_P5: Tensor | None = None
    noise: Tensor | None = None


class _Sample(NamedTuple):
    """One augmented image.

    Attributes:
      pixels_HWC: bytes.
      shift_C: what the jitter adds to the bytes; None without jitter.
      patches: top and left of each patch of noise, and its values of shape (3, height, width).
    """

    pixels_HWC: NDArray[np.uint8]
    shift_C: Tensor | None
    patches: list[tuple[int, int, Tensor]]


class Maker:
    """Makes the batches of jobs."""

    def __init__(self, config: Paper, image_size: int, splits: list[Images]) -> None:
        self._augment = Augment(config, image_size)
        self._image_size, self._resize = image_size, round(image_size * config.eval_resize)
        self._splits = splits

    def __call__(self, job: Job) -> _Made:
        images = self._splits[job.split]
        labels_B = torch.from_numpy(images.labels[job.numbers % len(images)])
        if job.seed is None:
            pictures = [self._evaluated(images, int(row), job.change) for row in job.numbers]
            return _Made(torch.from_numpy(np.stack(pictures)), labels_B)
        with _kept_generators():
            samples = [self._augmented(images, job.seed, int(number)) for number in job.numbers]
        shifts = [sample.shift_C for sample in samples if sample.shift_C is not None]
        boxes = [
            (number, top, left, *noise.shape[1:])
            for number, sample in enumerate(samples)
            for top, left, noise in sample.patches
        ]
        return _Made(
            torch.from_numpy(np.stack([sample.pixels_HWC for sample in samples])),
            labels_B,
            torch.stack(shifts) if shifts else None,
            torch.tensor(boxes) if boxes else None,
            torch.cat([noise.flatten() for one in samples for *_, noise in one.patches]) if boxes else None,
        )

    def _evaluated(self, images: Images, row: int, change: Change | None) -> NDArray[np.uint8]:
        pixels_HWC = np.asarray(resize_and_crop(images.read(row), self._resize, self._image_size))
        return pixels_HWC if change is None else change(pixels_HWC, row)

    def _augmented(self, images: Images, seed: int, number: int) -> _Sample:
        copy, row = divmod(number, len(images))
        # The first copy has the same seed as without repeats.
        return self._augment(images.read(row), derive_seed(seed, row, *([copy] if copy else [])))


class Augment:
    """The random changes of one image. Seeds the generators of torch, Python and numpy, and uses them all."""

    def __init__(self, config: Paper, image_size: int) -> None:
        self._pca_std, self._image_size = config.pca_std, image_size
        self._erase: RandomErasing | None = None
        if config.erasing:
            self._erase = RandomErasing(config.erasing, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]
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
        self._transform = v2.Compose(steps)

    def __call__(self, image: Image.Image, seed: int) -> _Sample:
        # Not `torch.manual_seed`, which also notes where it was called from for a GPU that is not in use yet.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        pixels_HWC = np.asarray(self._transform(image))
        shift_C = None
        if self._pca_std:
            shift_C = 255 * (_PCA_VECTORS @ (_PCA_VALUES * torch.randn(3) * self._pca_std))
        canvas = _Canvas(self._image_size)
        if self._erase is not None:
            self._erase(canvas)
        return _Sample(pixels_HWC, shift_C, canvas.patches)


class _Canvas:
    """Stands in for an image in timm's random erasing, and notes which noise is put where."""

    dtype = torch.float32

    def __init__(self, side: int) -> None:
        self._side = side
        self.patches: list[tuple[int, int, Tensor]] = []

    def size(self) -> tuple[int, int, int]:
        return 3, self._side, self._side

    def __setitem__(self, place: tuple[slice, slice, slice], noise: Tensor) -> None:
        _, rows, columns = place
        self.patches.append((rows.start, columns.start, noise))


def _rand_augment(word: str) -> Callable[[Image.Image], Image.Image]:
    # Areas uncovered by shifts and rotations get the mean colour, as in DeiT.
    grey = tuple(round(255 * mean) for mean in IMAGENET_MEAN)
    policy = rand_augment_transform(word, {"img_mean": grey})
    for operation in policy.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return policy  # type: ignore[no-any-return]


def _posterize(image: Image.Image, bits: int, **unused: object) -> Image.Image:
    """Keeps the highest `bits` of each byte. timm may pass 0, which Pillow's version refuses."""
    return image.point([value & ~(2 ** (8 - bits) - 1) for value in range(256)] * 3)


@contextlib.contextmanager
def _kept_generators() -> Iterator[None]:
    """Restores the generators of torch, Python and numpy after the block, which may seed them."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
