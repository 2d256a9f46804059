import math

import numpy as np
import pytest
import torch
from PIL import Image

from trainables import augment
from trainables.augment import Light, Mixup, Paper
from trainables.context import Context
from trainables.data import Digits, Images, epoch_order

SIDE = 16
AUGMENTS = [Light(shift=0.2, flip=0.5), Paper()]
IDS = ["light", "paper"]


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
    before = torch.get_rng_state()
    next(batches)
    assert torch.equal(torch.get_rng_state(), before)


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
    monkeypatch.setattr(augment, "COLLECT_BYTES", 1000)
    fresh = Images(images.labels, images.read)
    with pytest.raises(MemoryError, match="use augment paper"):
        next(Light().pipeline(SIDE, 0, Context()).train_batches(fresh, 0, 8, 0))


def test_only_a_few_collected_splits_are_kept(images):
    for _ in range(10):
        list(Light().pipeline(8, 0, Context()).eval_batches(Images(images.labels[:2], images.read), 8))
    assert len(augment._COLLECTED) <= 6


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
