"""Steps between two looks of the training loop never wait for a GPU."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.sweeps import tiny_base
from trainables.config import TrainConfig
from trainables.context import Context
from trainables.data.base import Images
from trainables.training.loop import TrainingRun
from trainables.transforms.base import Batch
from trainables.transforms.imagenet import Paper
from trainables.transforms.imagenet_pipeline import PaperPipeline
from trainables.transforms.light import Light
from trainables.transforms.light_pipeline import LightPipeline

ATEN = torch.ops.aten
#: A device without content stands in for a GPU: operations and copies are those of one.
STAND_IN = torch.device("meta")


class Copies(TorchDispatchMode):
    """Lists the operations by which the CPU would wait for a GPU, and counts the copies to it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        goes_to = kwargs.get("device")
        if func is ATEN._local_scalar_dense.default and args[0].device == STAND_IN:
            self.waits.append(str(func))
        if func is ATEN._to_copy.default and goes_to is not None and args[0].device != goes_to:
            self.copies += 1
            if args[0].device == STAND_IN or not kwargs.get("non_blocking"):
                self.waits.append(f"{func} of {tuple(args[0].shape)}")
        if func is ATEN.copy_.default and args[0].device != args[1].device:
            self.copies += 1
            if not (args[2:] or (False,))[0]:
                self.waits.append(f"{func} of {tuple(args[1].shape)}")
        return func(*args, **kwargs)


class Made(TorchFunctionMode):
    """Lists the tensors that are made of Python's numbers on a GPU, which is a copy that waits for it."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == STAND_IN:
            self.waits.append(f"a tensor of {args[0]}")
        return func(*args, **kwargs)


@pytest.fixture
def images() -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    return Images(np.arange(40) % 10, lambda row: Image.fromarray(pixels[row]))


@pytest.mark.parametrize(
    ("pipeline", "copies"),
    [
        # The rows of the batch, the shifts, and who is mirrored.
        (LightPipeline(Light(shift=0.1, flip=0.5), 8, 0, Context(STAND_IN)), 3),
        (LightPipeline(Light(shift=0.0, flip=0.0), 8, 0, Context(STAND_IN)), 1),
        # Images and labels, with and without the shifts of the jitter.
        (PaperPipeline(Paper(), 8, 0, Context(STAND_IN)), 3),
        (PaperPipeline(Paper(pca_std=0, erasing=0), 8, 0, Context(STAND_IN)), 2),
        # And the noise of all patches together.
        (PaperPipeline(Paper(erasing=1), 8, 0, Context(STAND_IN)), 4),
    ],
    ids=["light", "light, plain", "paper", "paper, plain", "paper, erasing"],
)
def test_batches_wait_for_nothing(images, pipeline, copies):
    def batches() -> Iterator[Batch]:
        yield from pipeline.train_batches(images, 0, 8, 0)

    # The first one collects the images and makes what is kept.
    made = batches()
    next(made)
    with Copies() as counted, Made(counted.waits):
        for _ in range(2):
            pixels, labels = next(made)
    assert (pixels.device, labels.device) == (STAND_IN, STAND_IN)
    assert counted.waits == []
    assert counted.copies == 2 * copies


@pytest.mark.parametrize("changes", [{}, {"clip_grad_norm": 1.0}, {"label_smoothing": 0.1}], ids=str)
def test_steps_wait_for_nothing(changes):
    optim = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}
    config = TrainConfig.model_validate(tiny_base(optim=optim) | changes)
    info, images = config.data.info(), config.data.open()["train"]
    run = TrainingRun(config, Context(STAND_IN), info, images)
    batches = run.pipeline.train_batches(images, 0, config.batch_size, 0)
    run.train_step(next(batches), 1e-3, 0, config.batch_size)
    with Copies() as counted, Made(counted.waits):
        for step in (1, 2):
            run.train_step(next(batches), 1e-3, step, config.batch_size)
    assert counted.waits == []
