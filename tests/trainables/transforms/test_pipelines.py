import itertools
import math
import multiprocessing
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from pydantic import ValidationError
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch.utils.data import dataloader
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from trainables.base import derive_seed
from trainables.context import Context
from trainables.data.base import Images
from trainables.data.digits import Digits
from trainables.data.order import epoch_order
from trainables.transforms import imagenet_pipeline, light_pipeline
from trainables.transforms.imagenet import Paper
from trainables.transforms.imagenet_pipeline import Augment, _posterize
from trainables.transforms.light import Light
from trainables.transforms.mixup import Mixup

SIDE = 16
DEIT = Paper(auto_augment=False, rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25)
AUGMENTS = [Light(shift=0.2, flip=0.5), Paper(), DEIT]
IDS = ["light", "paper", "deit"]


@pytest.fixture(scope="module")
def images() -> Images:
    """101 colourful pictures; the label is the row, so that a sample can be recognised."""
    pixels = np.random.default_rng(0).integers(0, 256, (101, 20, 24, 3), np.uint8)
    return Images(np.arange(101), lambda i: Image.fromarray(pixels[i]))


def by_row(config, images, batch_size=32, ranks=1, epoch=0, seed=0, order_seed=0, first_step=0) -> dict:
    found = {}
    for rank in range(ranks):
        pipeline = config.pipeline(SIDE, seed, Context(rank=rank, world_size=ranks))
        for pixels, labels in pipeline.train_batches(images, order_seed, batch_size, epoch, first_step):
            for row, picture in zip(labels.tolist(), pixels, strict=True):
                assert row not in found
                found[row] = picture
    return found


@pytest.mark.parametrize("config", AUGMENTS, ids=IDS)
def test_a_sample_is_augmented_alike_whatever_its_batch_its_rank_and_its_order(config, images):
    reference = by_row(config, images)
    assert sorted(reference) == list(range(101))
    for others in (
        by_row(config, images, batch_size=7),
        by_row(config, images, ranks=3),
        by_row(config, images, order_seed=5),
    ):
        assert sorted(others) == list(range(101))
        assert all(torch.equal(reference[row], others[row]) for row in reference)


@pytest.mark.parametrize("config", AUGMENTS, ids=IDS)
def test_going_on_in_the_middle_of_an_epoch_gives_the_rest_of_it(config, images):
    reference, rest = by_row(config, images), by_row(config, images, first_step=2)
    # 101 images in four equal steps: 25, 25, 25, 26; in the order of the epoch.
    assert sorted(rest) == sorted(epoch_order(101, 0, 0)[50:].tolist())
    assert all(torch.equal(reference[row], rest[row]) for row in rest)


@pytest.mark.parametrize("config", AUGMENTS, ids=IDS)
def test_every_epoch_and_every_seed_augments_anew(config, images):
    reference = by_row(config, images)
    for others in (by_row(config, images, epoch=1), by_row(config, images, seed=1)):
        changed = sum(not torch.equal(reference[row], others[row]) for row in reference)
        assert changed > 80


@pytest.mark.parametrize("config", AUGMENTS, ids=IDS)
def test_torchs_own_generator_is_left_as_it_was(config, images):
    # In each sample; making a loader draws a seed for its processes, which all else is independent of.
    batches = config.pipeline(SIDE, 0, Context()).train_batches(images, 0, 32, 0)
    next(batches)
    others = random.getstate(), np.random.get_state()[1].tolist()
    before = torch.get_rng_state()
    next(batches)
    assert torch.equal(torch.get_rng_state(), before)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == others


@pytest.mark.parametrize("config", AUGMENTS, ids=IDS)
@pytest.mark.parametrize("ranks", [1, 3])
def test_evaluation_sees_every_image_once_and_as_it_is(config, ranks, images):
    seen = {}
    for rank in range(ranks):
        for seed in (0, 1):
            pipeline = config.pipeline(SIDE, seed, Context(rank=rank, world_size=ranks))
            for pixels, labels in pipeline.eval_batches(images, 8):
                assert len(labels) <= 8
                for row, picture in zip(labels.tolist(), pixels, strict=True):
                    assert torch.equal(seen.setdefault(row, picture), picture)
    assert sorted(seen) == list(range(101))


def test_evaluation_can_have_fewer_images_than_ranks():
    few = Images(np.arange(2), lambda i: Image.new("RGB", (8, 8)))
    for config in AUGMENTS:
        pipeline = config.pipeline(SIDE, 0, Context(rank=2, world_size=3))
        assert list(pipeline.eval_batches(few, 8)) == []


# --- light --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crosses() -> Images:
    """4000 times one picture with a single white pixel left of the middle of a black square."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[8, 6] = 255
    return Images(np.arange(4000), lambda i: Image.fromarray(pixels))


def positions(config: Light, images: Images) -> np.ndarray:
    """Where the white pixel went: row and column, per sample."""
    found = by_row(config, images, batch_size=1000)
    stack = torch.stack([found[row][0] for row in range(len(images))])
    return np.stack(np.divmod(stack.flatten(1).argmax(1).numpy(), SIDE), axis=1)


def test_shifts_reach_as_far_as_they_should_and_are_uniform(crosses):
    at = positions(Light(shift=0.2), crosses)
    # A fifth of 16 pixels is 3: seven positions each way.
    for axis, middle in ((0, 8), (1, 6)):
        values, counts = np.unique(at[:, axis], return_counts=True)
        assert values.tolist() == list(range(middle - 3, middle + 4))
        # A count has mean n/7 = 571 and standard error sqrt(n 1/7 6/7) = 22; five of them.
        assert np.all(np.abs(counts - 4000 / 7) < 5 * math.sqrt(4000 * 6 / 49))
    # Down and right are drawn independently: standard error 1 / sqrt(n).
    assert abs(np.corrcoef(at.T)[0, 1]) < 5 / math.sqrt(4000)


def test_a_shift_moves_the_picture_and_fills_with_black():
    picture = np.full((SIDE, SIDE, 3), 255, np.uint8)
    white = Images(np.arange(50), lambda i: Image.fromarray(picture))
    for sample in by_row(Light(shift=0.2), white).values():
        # A rectangle of white with a border of black of up to three rows and columns.
        rows, columns = (sample[0] > 0).any(1).sum(), (sample[0] > 0).any(0).sum()
        assert rows >= SIDE - 3
        assert columns >= SIDE - 3
        assert (sample[0] > 0).sum() == rows * columns


@pytest.mark.parametrize("flip", [0.0, 0.3, 1.0])
def test_mirror_images_come_as_often_as_they_should(flip, crosses):
    columns = positions(Light(shift=0, flip=flip), crosses)[:, 1]
    # Column 6 of 0 to 15 is column 9 in the mirror.
    assert set(columns.tolist()) <= {6, 9}
    # Five standard errors of a share: sqrt(p (1 - p) / n).
    assert abs((columns == 9).mean() - flip) <= 5 * math.sqrt(flip * (1 - flip) / 4000)


def test_light_pixels_run_from_minus_one_to_one(crosses):
    [(pixels, _)] = (
        Light().pipeline(SIDE, 0, Context()).eval_batches(Images(np.arange(1), crosses.read), batch_size=8)
    )
    assert (pixels.min(), pixels.max()) == (-1, 1)


def test_images_too_many_for_memory_are_refused_with_the_way_out(images, monkeypatch):
    monkeypatch.setattr(light_pipeline, "COLLECT_BYTES", 1000)
    fresh = Images(images.labels, images.read)
    with pytest.raises(MemoryError, match="use augment paper"):
        next(Light().pipeline(SIDE, 0, Context()).train_batches(fresh, 0, 8, 0))


def test_only_a_few_collected_splits_are_kept(images):
    for _ in range(10):
        list(Light().pipeline(8, 0, Context()).eval_batches(Images(images.labels[:2], images.read), 8))
    assert light_pipeline._collected_light.cache_info().currsize <= 6


# --- paper --------------------------------------------------------------------------------------------


def test_paper_evaluation_takes_the_middle_of_the_resized_picture():
    # A picture of 512 x 256 with a white square of 16 pixels around its middle.
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[120:136, 248:264] = 255
    images = Images(np.zeros(1, np.int64), lambda i: Image.fromarray(pixels))
    [(batch, _)] = Paper().pipeline(224, 0, Context()).eval_batches(images, 8)
    assert batch.shape == (1, 3, 224, 224)
    # The shorter side is 256 already, so pixels stay as they are: 112 - 8 to 112 + 8 is white.
    white = (batch[0] - batch[0].amin((1, 2), keepdim=True)).sum(0) > 1
    assert white.nonzero().amin(0).tolist() == [104, 104]
    assert white.nonzero().amax(0).tolist() == [119, 119]
    # ImageNet's mean and standard deviation: white is (1 - mean) / std, black is -mean / std.
    assert batch[0, :, 112, 112].tolist() == pytest.approx([2.2489, 2.4286, 2.6400], abs=1e-3)
    assert batch[0, :, 0, 0].tolist() == pytest.approx([-2.1179, -2.0357, -1.8044], abs=1e-3)


def test_paper_evaluation_resizes_the_shorter_side():
    # 64 x 128, white on its right half, becomes 256 x 512, of which the middle 224 x 224 is taken.
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 64:] = 255
    images = Images(np.zeros(1, np.int64), lambda i: Image.fromarray(pixels))
    [(batch, _)] = Paper().pipeline(224, 0, Context()).eval_batches(images, 8)
    assert (batch[0, 0, 100] > 0).sum() == 112


def test_paper_mirrors_half_of_the_pictures():
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:, : SIDE // 2] = 255
    images = Images(np.arange(400), lambda i: Image.fromarray(pixels))
    config = Paper(min_area=1, auto_augment=False, pca_std=0)
    found = by_row(config, images, batch_size=100)
    mirrored = np.mean([bool(found[row][0, 8, 0] < found[row][0, 8, -1]) for row in found])
    # Standard error sqrt(1/4 / 400) = 0.025; five of them.
    assert abs(mirrored - 0.5) < 0.125


def test_paper_colour_jitter_moves_all_pixels_along_the_axes_of_imagenet():
    images = Images(np.arange(500), lambda i: Image.new("RGB", (4, 4), (128, 128, 128)))
    config = Paper(min_area=1, flip=0, auto_augment=False, pca_std=0.1)
    found = by_row(config, images, batch_size=100)
    samples = torch.stack([found[row] for row in range(500)])
    assert torch.equal(samples, samples[:, :, :1, :1].expand_as(samples))
    std = torch.tensor([0.229, 0.224, 0.225])
    shifts = (samples[:, :, 0, 0] * std).double()
    values, axes = torch.linalg.eigh(torch.cov(shifts.T))
    # The largest axis is near grey, with standard deviation 0.1 x 0.2175, known to 1 / sqrt(2 n) = 3 %.
    assert values[-1].sqrt().item() == pytest.approx(0.1 * 0.2175, rel=0.16)
    grey = axes[:, -1] * axes[:, -1].sum().sign()
    assert grey.tolist() == pytest.approx([0.5675, 0.5808, 0.5836], abs=0.02)


def test_paper_crops_show_parts_of_the_picture():
    gradient = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3))
    images = Images(np.arange(200), lambda i: Image.fromarray(gradient))
    found = by_row(Paper(flip=0, auto_augment=False, pca_std=0), images, batch_size=100)
    # The width of a crop shows in how far grey rises across it; area from 8 % to all of the picture.
    spans = np.array([float(picture[0, 8, -1] - picture[0, 8, 0]) for picture in found.values()])
    full = 252 / 255 / 0.229
    assert spans.max() <= full + 1e-3
    assert spans.min() < 0.5 * full
    assert spans.max() > 0.9 * full


#: One sample of this shows the whole picture as it is, but for what is switched on.
PLAIN = {"auto_augment": False, "pca_std": 0, "min_area": 1, "flip": 0}


def test_rand_augment_is_timms_with_the_seed_of_the_sample(images):
    word = "rand-m9-mstd0.5-inc1"
    plain, ours = Augment(Paper(**PLAIN), SIDE), Augment(Paper(**PLAIN, rand_augment=word), SIDE)
    policy = rand_augment_transform(word, {"img_mean": (124, 116, 104)})
    changed = 0
    for row in range(20):
        seed = derive_seed(0, row)
        before, made = (augment(images.read(row), seed).pixels_HWC for augment in (plain, ours))
        random.seed(seed)
        np.random.seed(seed % 2**32)
        after = np.asarray(policy(Image.fromarray(before)))
        assert np.array_equal(made, after)
        changed += not np.array_equal(before, after)
    # Of two operations each with probability one half, one or more comes three times in four.
    assert 8 < changed <= 20


def test_posterizing_keeps_the_highest_bits_and_none_of_them_is_black(images):
    picture = images.read(0)
    for bits in (1, 4, 8):
        assert _posterize(picture, bits).tobytes() == ImageOps.posterize(picture, bits).tobytes()
    assert not np.asarray(_posterize(picture, 0)).any()


def test_erasing_puts_noise_into_one_rectangle_of_its_share_of_pictures():
    grey = Images(np.zeros(400, np.int64), lambda row: Image.new("RGB", (64, 64), (124, 116, 104)))
    erased = Paper(**PLAIN, erasing=0.25).pipeline(64, 0, Context()).train_batches(grey, 0, 50, 0)
    shares, values = [], []
    for picture in itertools.chain.from_iterable(images_BCHW for images_BCHW, _ in erased):
        # The mean of ImageNet is zero after normalising, to within the rounding of bytes.
        hit = (picture.abs() > 0.01).any(0)
        if hit.any():
            rows, columns = hit.any(1).nonzero()[:, 0], hit.any(0).nonzero()[:, 0]
            assert hit.sum() == len(rows) * len(columns) == hit[rows[0] : rows[-1] + 1].sum()
            shares.append(hit.float().mean().item())
            values.append(picture[:, hit].flatten())
    # 400 draws of 1/4: 100, with a standard deviation of 8.7.
    assert len(shares) == pytest.approx(100, abs=5 * 8.7)
    # Zhong et al. 2020: from 2 % to a third of the picture.
    assert 0.015 < min(shares) < 0.06
    assert 0.27 < max(shares) < 0.35
    noise = torch.cat(values)
    assert noise.mean().item() == pytest.approx(0, abs=5 / math.sqrt(len(noise)))
    assert noise.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * len(noise)))


@pytest.mark.parametrize("processes", [0, 2])
def test_jitter_and_noise_on_the_device_are_those_of_one_image_at_a_time(images, processes):
    """The reference is the order of torchvision and timm: an image at a time, as floats, from its seed on."""
    config = Paper(erasing=0.9)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, (0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET),
        ]
    )
    erase = RandomErasing(0.9, mode="pixel", device="cpu")
    mean = torch.tensor((0.485, 0.456, 0.406))[:, None, None] * 255
    std = torch.tensor((0.229, 0.224, 0.225))[:, None, None] * 255
    values, vectors = torch.tensor([0.2175, 0.0188, 0.0045]), imagenet_pipeline._PCA_VECTORS
    pipeline = config.pipeline(SIDE, 0, Context(loader_workers=processes))
    for pictures, labels in pipeline.train_batches(images, 0, 32, 3):
        for row, picture in zip(labels.tolist(), pictures, strict=True):
            seed = derive_seed(derive_seed(0, "epoch", 3), row)
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            pixels_CHW = F.pil_to_tensor(transform(images.read(row)))
            shift_C = vectors @ (values * torch.randn(3) * 0.1)
            expected = erase((pixels_CHW + 255 * shift_C[:, None, None] - mean) / std)
            assert torch.equal(picture, expected)
    pipeline.close()


def test_loader_processes_serve_all_epochs_and_splits_and_forget_what_was_broken_off(images, monkeypatch):
    starts, before = [], set(multiprocessing.active_children())
    begin = dataloader._MultiProcessingDataLoaderIter.__init__

    def counted(self, loader):
        # Not the loader, which would live on.
        starts.append(id(loader))
        begin(self, loader)

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "__init__", counted)
    few = Images(images.labels[:9], images.read)
    alone, several = (Paper().pipeline(SIDE, 0, Context(loader_workers=count)) for count in (0, 2))
    several.expect([images, few])

    def batches(pipeline) -> list[torch.Tensor]:
        found = []
        for epoch in range(2):
            # The rest of what was made ahead of time must not come with the next split.
            begun = pipeline.train_batches(images, 0, 8, epoch)
            found += [pixels for pixels, _ in itertools.islice(begun, 2)]
            found += [pixels for pixels, _ in pipeline.eval_batches(few, 4)]
            found += [pixels for pixels, _ in pipeline.train_batches(images, 0, 8, epoch, 3, 5)]
        return found

    expected, found = batches(alone), batches(several)
    assert len(expected) == 2 * (2 + 3 + 2)
    assert all(map(torch.equal, expected, found))
    assert len(starts) == 1
    # A split that nobody has named is served as well, by processes that know it.
    other = Images(images.labels[:5], images.read)
    assert [labels.tolist() for _, labels in several.eval_batches(other, 8)] == [[0, 1, 2, 3, 4]]
    assert len(starts) == 2
    assert len(set(multiprocessing.active_children()) - before) == 2
    several.close()
    assert set(multiprocessing.active_children()) <= before


def test_repeated_pictures_come_in_a_row_and_are_augmented_anew(images):
    batches = list(Paper(repeats=3).pipeline(SIDE, 0, Context()).train_batches(images, 0, 32, 0))
    pictures, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    # An epoch is as long as without: 101 samples, of the first 34 pictures in its order.
    assert labels.tolist() == [row for row in epoch_order(101, 0, 0) for _ in range(3)][:101]
    first, second, third = pictures[:99].unflatten(0, (33, 3)).unbind(1)
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(second, third, strict=True))
    # The first of three is the one that would have come alone.
    alone = by_row(Paper(), images)
    assert all(
        torch.equal(alone[row], picture) for row, picture in zip(labels[::3].tolist(), first, strict=False)
    )
    # The later ones follow from seed, row and number alone.
    again = Paper(repeats=3).pipeline(SIDE, 0, Context()).train_batches(images, 0, 7, 0, first_step=2)
    rest = torch.cat([batch for batch, _ in again])
    assert torch.equal(rest, pictures[-len(rest) :])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rand_augment": "rand-m9"}, "set auto_augment to false"),
        ({"rand_augment": "rand-m9-foo", "auto_augment": False}, "match pattern"),
        ({"repeats": 0}, "greater than 0"),
        ({"erasing": 1.5}, "less than or equal to 1"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        Paper(**settings)


def test_auto_augment_changes_pictures(images):
    plain = by_row(Paper(auto_augment=False), images)
    auto = by_row(Paper(), images)
    assert sum(not torch.equal(plain[row], auto[row]) for row in plain) > 50


# --- mixing -------------------------------------------------------------------------------------------


def mixed(seed: int, config: Mixup | None = None):
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16).contiguous()
    return (config or Mixup()).apply(images, torch.tensor([0, 1, 2, 0]), 3, seed)


def kind(images: torch.Tensor) -> str:
    """Mixup blends whole pictures, CutMix pastes a box: its pixels are all whole numbers."""
    if torch.equal(images, images.round()):
        return "cutmix"
    return "mixup" if bool((images == images[:, :, :1, :1]).all()) else "neither"


def test_each_batch_is_mixed_by_one_of_both_kinds_half_and_half():
    kinds = [kind(mixed(seed)[0]) for seed in range(400)]
    assert set(kinds) == {"mixup", "cutmix"}
    # Standard error sqrt(1/4 / 400) = 0.025; five of them.
    assert abs(kinds.count("mixup") / 400 - 0.5) < 0.125


def test_labels_are_mixed_with_the_weights_of_the_pictures():
    for seed in range(50):
        images, labels = mixed(seed)
        assert torch.allclose(labels.sum(1), torch.ones(4))
        # Each picture is a flat grey of its index, so its mean tells the share of its partner: the
        # picture before it, and for the first one the last, of index 3.
        own = labels[1, 1].item()
        assert images[1].mean().item() == pytest.approx(own * 1 + (1 - own) * 0, abs=1e-5)
        assert labels[1, 0].item() == pytest.approx(1 - own, abs=1e-5)
        assert images[2].mean().item() == pytest.approx(own * 2 + (1 - own) * 1, abs=1e-5)


def test_mixing_follows_its_seed_and_leaves_torchs_generator_alone():
    before = torch.get_rng_state()
    first, again, other = mixed(1), mixed(1), mixed(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_either_kind_can_be_switched_off():
    assert {kind(mixed(seed, Mixup(cutmix_alpha=0))[0]) for seed in range(30)} == {"mixup"}
    assert {kind(mixed(seed, Mixup(mixup_alpha=0))[0]) for seed in range(30)} == {"cutmix"}
    images, labels = mixed(0, Mixup(mixup_alpha=0, cutmix_alpha=0))
    assert labels.tolist() == [0, 1, 2, 0]
    assert images[3].mean() == 3


def test_digits_are_enlarged_to_the_image_size():
    images = Digits().open()["val"]
    [(pixels, labels), *_] = Light().pipeline(32, 0, Context()).eval_batches(images, 4)
    assert pixels.shape == (4, 3, 32, 32)
    assert labels.tolist() == images.labels[:4].tolist()
    # The mean grey of a picture stays, but for its borders, when it is made larger.
    original = np.asarray(images.read(0)).mean() / 127.5 - 1
    assert pixels[0].mean().item() == pytest.approx(original, abs=0.05)
