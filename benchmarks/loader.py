"""Measures the process time of an image in the paper's pipeline, against floats and against timm's loader.

    python -m benchmarks.loader [--images 256] [--rounds 7]

One process on one thread makes training batches of 224 x 224 pixels from a JPEG of 500 x 375 pixels and
76 kB, as each loader process of a run does. The ways take turns, and each figure is the median of the rounds,
with the smallest and the largest. Process time hardly depends on what else the machine does.

  floats   one image at a time becomes floats with its jitter, and batches of floats are stacked
  bytes    the project's loader: batches are bytes, and floats are made of a whole batch on the device
  timm     timm's loader with its prefetcher, which makes floats of whole batches as well; it has no jitter
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from timm.data.loader import create_loader
from torch.utils.data import Dataset, default_collate

from benchmarks.import_images import jpeg
from trainables.base import derive_seed
from trainables.context import Context
from trainables.data.base import Images
from trainables.data.decode import decode
from trainables.transforms.base import normalise
from trainables.transforms.imagenet import Paper
from trainables.transforms.imagenet_pipeline import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    Job,
    Maker,
    PaperPipeline,
)

SIDE, BATCH = 224, 64
#: What a sample of floats takes, and a sample of bytes with its jitter. Labels come on top of both.
FLOAT_BYTES, SENT_BYTES = 4 * 3 * SIDE**2, 3 * SIDE**2 + 3 * 4


class Files(Dataset[tuple[Image.Image, int]]):
    """Images as a user of timm reads them. timm sets the transform."""

    def __init__(self, data: bytes, count: int) -> None:
        self.data, self.count = data, count
        self.transform: Callable[[Image.Image], Image.Image] = lambda image: image

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        with Image.open(io.BytesIO(self.data)) as image:
            return self.transform(image.convert("RGB")), 0


def used(work: Callable[[], object], count: int) -> float:
    """Returns the process time of some work in milliseconds an image."""
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began) / count


def as_floats(images: Images, config: Paper) -> None:
    """Makes the batches of an epoch as floats, an image at a time."""
    augment = Augment(config, SIDE)
    rows = np.random.default_rng(0).permutation(len(images))
    for start in range(0, len(rows), BATCH):
        batch = []
        for row in rows[start : start + BATCH]:
            sample = augment(images.read(int(row)), derive_seed(0, int(row)))
            pixels_CHW = torch.from_numpy(sample.pixels_HWC.transpose(2, 0, 1).copy())
            shift_C = torch.zeros(3) if sample.shift_C is None else sample.shift_C
            floats = normalise((pixels_CHW + shift_C[:, None, None])[None], IMAGENET_MEAN, IMAGENET_STD)[0]
            batch.append((floats, 0))
        default_collate(batch)


def ways(data: bytes, count: int) -> dict[str, Callable[[], object]]:
    """Returns what is measured: each makes `count` images, or does a part of that."""
    images = Images(np.zeros(count, np.int64), lambda row: decode(data))
    picture = decode(data)
    paper, plain, bare = Paper(), Paper(pca_std=0), Paper(auto_augment=False, pca_std=0)

    def made(config: Paper) -> Callable[[], object]:
        make = Maker(config, SIDE, [images])
        rows = np.random.default_rng(0).permutation(count)
        return lambda: [
            None for start in range(0, count, BATCH) if make(Job(0, rows[start : start + BATCH], 0))
        ]

    def finished(config: Paper) -> Callable[[], object]:
        pipeline = PaperPipeline(config, SIDE, 0, Context())
        return lambda: [None for _ in pipeline.train_batches(images, 0, BATCH, 0)]

    def changed(config: Paper) -> Callable[[], object]:
        augment = Augment(config, SIDE)
        return lambda: [augment(picture, row) for row in range(count)]

    timm = create_loader(
        Files(data, count),
        (3, SIDE, SIDE),
        BATCH,
        is_training=True,
        color_jitter=0.0,
        auto_augment="original",
        interpolation="bilinear",
        num_workers=0,
        device=torch.device("cpu"),
        persistent_workers=False,
    )
    return {
        "part: decode": lambda: [decode(data) for _ in range(count)],
        "part: seeds, crop, mirror": changed(bare),
        "part: the same and AutoAugment": changed(plain),
        "loader process, floats": lambda: as_floats(images, paper),
        "loader process, bytes": made(paper),
        "all on this CPU, bytes": finished(paper),
        "all without jitter, bytes": finished(plain),
        "all without jitter, timm": lambda: [None for _ in timm],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256, help="images of a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = jpeg((500, 375), 76_000)
    measured = ways(data, options.images)
    found: dict[str, list[float]] = {name: [] for name in measured}
    for number in range(options.rounds + 1):
        for name, work in measured.items():
            took = used(work, options.images)
            if number:  # the first round fills caches
                found[name].append(took)
    print(
        f"{len(data) / 1000:.0f} kB, torch {torch.__version__}, {options.rounds} rounds of {options.images}"
    )
    print(f"{'ms of process time an image':32} median    min    max   images/s and core")
    for name, times in found.items():
        middle = statistics.median(times)
        print(f"{name:32}{middle:>7.2f}{min(times):>7.2f}{max(times):>7.2f}{1000 / middle:>11.0f}")
    floats, made = (found[f"loader process, {way}"] for way in ("floats", "bytes"))
    ours, timms = (found[f"all without jitter, {way}"] for way in ("bytes", "timm"))
    for text, slow, fast in (("floats over bytes", floats, made), ("timm over bytes", timms, ours)):
        ratios = [a / b for a, b in zip(slow, fast, strict=True)]
        print(f"{text}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"bytes of an image to the device: {SENT_BYTES:,} instead of {FLOAT_BYTES:,}")


if __name__ == "__main__":
    main()
