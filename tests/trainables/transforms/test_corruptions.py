import colorsys
import io
import math
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import ndimage, stats

from trainables.transforms import corruptions
from trainables.transforms.corruptions import _CIFAR, _IMAGENET, KINDS, SEVERITIES, Corruptions, Kind, corrupt


def picture(side: int = 32) -> np.ndarray:
    """Smooth blobs of many colours, from the same few random ones at any size."""
    few = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(few).resize((side, side), Image.Resampling.BICUBIC))


def flat(value: int, side: int = 32) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def made(kind, severity, pixels, index=0, seed=0) -> np.ndarray:
    return corrupt(pixels, kind, severity, seed=seed, index=index).astype(np.float64)


def rng_of(kind, severity, index=0, seed=0) -> np.random.Generator:
    return np.random.default_rng(corruptions.derive_seed(seed, kind, severity, index))


# --- what holds for all -------------------------------------------------------------------------------


def test_there_are_fifteen_kinds_with_five_published_settings_each():
    assert len(KINDS) == 15
    assert set(KINDS) == set(get_args(Kind)) == set(_CIFAR) == set(_IMAGENET)
    for table in (_CIFAR, _IMAGENET):
        assert all(len(settings) == 5 for settings in table.values())
    assert Corruptions().kinds == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_keeps_the_form_changes_the_image_and_depends_on_its_names_alone(kind):
    for side in (9, 32, 50):
        pixels = picture(side)
        before = pixels.copy()
        results = [corrupt(pixels, kind, severity, seed=0, index=3) for severity in SEVERITIES]
        for severity, result in zip(SEVERITIES, results, strict=True):
            assert (result.shape, result.dtype) == ((side, side, 3), np.uint8)
            # Whatever else was drawn in between.
            np.random.default_rng().random(5)
            assert np.array_equal(result, corrupt(pixels, kind, severity, seed=0, index=3))
        assert np.array_equal(pixels, before)
    assert not np.array_equal(results[4], pixels)
    assert len({result.tobytes() for result in results}) == 5
    unaffected = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    for changed in ({"seed": 1, "index": 3}, {"seed": 0, "index": 4}):
        same = np.array_equal(corrupt(pixels, kind, 5, **changed), results[4])
        assert same == (kind in unaffected)


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "impulse_noise", "contrast", "brightness"])
@pytest.mark.parametrize("side", [32, 224])
def test_what_has_no_length_grows_with_severity(kind, side):
    pixels = picture(side)
    changes = [np.abs(made(kind, severity, pixels) - pixels).mean() for severity in SEVERITIES]
    assert changes == sorted(changes)


def test_the_nearer_table_is_taken_and_its_lengths_grow_with_the_image():
    # The middle between 32 and 224, as a ratio, is the root of their product, 84.7.
    assert corruptions._parameters("motion_blur", 1, 32) == ((6, 1), 1)
    assert corruptions._parameters("motion_blur", 1, 84) == ((6, 1), 84 / 32)
    assert corruptions._parameters("motion_blur", 1, 85) == ((10, 3), 85 / 224)
    assert corruptions._parameters("motion_blur", 1, 224) == ((10, 3), 1)


# --- noise: closed forms ------------------------------------------------------------------------------

# Samples of an image of 96 x 96 x 3; a standard deviation of n samples has error std / sqrt(2 n).
SIDE, COUNT = 96, 96 * 96 * 3


def test_gaussian_noise_has_its_standard_deviation():
    # Middle grey, so that little is cut off; rounding down adds the variance of a uniform of width 1.
    noise = made("gaussian_noise", 2, flat(128, SIDE)) - 128
    std = math.hypot(0.12 * 255, math.sqrt(1 / 12))
    assert noise.std() == pytest.approx(std, abs=5 * std / math.sqrt(2 * COUNT))
    assert noise.mean() == pytest.approx(-0.5, abs=5 * std / math.sqrt(COUNT))
    assert stats.kurtosis(noise.ravel()) == pytest.approx(0, abs=5 * math.sqrt(24 / COUNT))


def test_shot_noise_has_the_variance_of_its_count_of_photons():
    # A grey of 51 / 255 = 0.2 is 12 photons of 60: variance 12 / 60^2.
    noise = made("shot_noise", 1, flat(51, SIDE))
    variance = 255**2 * 12 / 60**2 + 1 / 12
    # Of a Poisson variable with mean m the excess kurtosis is 1 / m.
    error = variance * math.sqrt((2 + 1 / 12) / COUNT)
    assert noise.var() == pytest.approx(variance, abs=5 * error)


def test_impulse_noise_hits_its_share_black_and_white_alike():
    for severity, share in zip(SEVERITIES, _IMAGENET["impulse_noise"], strict=True):
        noise = made("impulse_noise", severity, flat(128, SIDE))
        for value in (0, 255):
            count = (noise == value).sum()
            assert count == pytest.approx(COUNT * share / 2, abs=5 * math.sqrt(COUNT * share / 2))
        assert set(np.unique(noise)) == {0, 128, 255}


# --- blurs: by definition, or another library ---------------------------------------------------------


def test_defocus_blur_spreads_a_point_over_a_disk():
    point = np.zeros((225, 225, 3))
    point[112, 112] = 1
    parameters, scale = corruptions._parameters("defocus_blur", 5, 224)
    spread = corruptions._defocus_blur(point, parameters, scale, rng_of("defocus_blur", 5))[..., 0]
    rows, columns = np.nonzero(spread)
    # Radius 10 and two each way for the soft edge; 317 points of a grid lie within 10 (OEIS A000328).
    assert np.hypot(rows - 112, columns - 112).max() < 10 + math.hypot(2, 2)
    inside = np.hypot(*np.mgrid[-112:113, -112:113]) < 8
    assert np.allclose(spread[inside], 1 / 317, rtol=1e-3)
    # As published: the edge is softened as if the disk, which ends there, went on, and weighs 1 % more.
    assert spread.sum() == pytest.approx(1, abs=0.02)


def test_defocus_blur_of_a_disk_without_a_soft_edge_is_its_mean():
    kernel = corruptions._disk(3, 1e-3)
    assert np.count_nonzero(kernel > 1e-12) == 29
    assert kernel.max() == pytest.approx(1 / 29)


def test_the_soft_edge_is_a_gaussian():
    # Five taps of a sigma of 0.5 are what scipy takes, too.
    theirs = ndimage.gaussian_filter(corruptions._disk(10, 1e-3), 0.5, truncate=4, mode="mirror")
    assert np.allclose(corruptions._disk(10, 0.5), theirs)


def test_glass_blur_takes_pixels_from_where_the_published_loop_takes_them():
    pixels, kind, severity = picture(20), "glass_blur", 5
    (sigma, reach, rounds), scale = corruptions._parameters(kind, severity, 20)
    sigma, reach = sigma * scale, max(1, round(reach * scale))
    rng = rng_of(kind, severity)
    blurred = ndimage.gaussian_filter(pixels / 255, sigma, axes=(0, 1), mode="nearest")
    x = np.uint8(blurred * 255)
    for _ in range(rounds):
        moves = iter(rng.integers(-reach, reach, ((20 - 2 * reach) ** 2, 2)))
        for h in range(20 - reach, reach, -1):
            for w in range(20 - reach, reach, -1):
                dx, dy = next(moves)
                # The line of the published code: views of one array, so the second write copies back.
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
    expected = ndimage.gaussian_filter(x / 255.0, sigma, axes=(0, 1), mode="nearest").clip(0, 1) * 255
    assert np.abs(made(kind, severity, pixels) - np.floor(expected)).max() <= 1


def test_motion_blur_draws_a_point_into_half_a_gaussian_along_its_angle():
    side = 225
    point = np.zeros((side, side, 1))
    point[112, 112] = 1
    level = corruptions._along(point, 10, 3, 0)[..., 0]
    # Each pixel looks to its right, so light moves to the left; 21 taps of exp(-i^2 / 18).
    taps = np.array([math.exp(-(i**2) / 18) for i in range(21)])
    assert np.allclose(level[112, 112 : 112 - 21 : -1], taps / taps.sum())
    assert level.sum() == pytest.approx(1)
    upwards = corruptions._along(point, 10, 3, 90)[..., 0]
    assert np.allclose(upwards, level.T)
    slanted = corruptions._along(point, 10, 3, 45)[..., 0]
    rows, columns = np.nonzero(slanted)
    assert (rows == columns).all()
    # Beyond the edge the last pixel goes on.
    assert np.allclose(corruptions._along(np.full((9, 9, 1), 0.3), 8, 3, 30), 0.3)


def test_motion_blur_lies_within_45_degrees():
    angles = [rng_of("motion_blur", 1, index).uniform(-45, 45) for index in range(200)]
    assert -45 < min(angles) < -35
    assert 35 < max(angles) < 45


def test_zoom_blur_is_the_mean_of_enlarged_centres():
    # A ramp of colours enlarged around its middle stays a ramp, less steep by the factor: the mean of
    # all is a ramp, too, away from the trimming of whole pixels.
    ramp = np.linspace(0, 255, 224).astype(np.uint8)
    pixels = np.repeat(np.tile(ramp, (224, 1))[:, :, None], 3, 2)
    blurred = made("zoom_blur", 3, pixels)[112, 30:190, 0]
    factors = np.arange(1, 1.21, 0.02)
    slope = (1 + sum(1 / factor for factor in factors)) / (len(factors) + 1) * 255 / 223
    assert np.polyfit(np.arange(160), blurred, 1)[0] == pytest.approx(slope, rel=0.02)
    assert np.abs(made("zoom_blur", 3, flat(77)) - 77).max() == 0


# --- weather ------------------------------------------------------------------------------------------


def test_snow_whitens_and_lays_flakes_on_top_that_no_colour_escapes():
    pixels = picture()
    *_, kept = _CIFAR["snow"][2]
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float64)[:, :, None] / 255
    whitened = 255 * (kept * (pixels / 255) + (1 - kept) * np.maximum(pixels / 255, 1.5 * grey + 0.5))
    flakes = made("snow", 3, pixels) - whitened
    unclipped = (made("snow", 3, pixels) < 255).all(2)
    assert unclipped.mean() > 0.3
    # Pillow rounds grey to whole numbers, we round down.
    assert flakes[unclipped].min() > -1.5
    assert np.ptp(flakes[unclipped], axis=1).max() < 1.5
    # The layer is laid on twice, once turned by half a turn.
    both = unclipped & unclipped[::-1, ::-1]
    assert np.abs(flakes - flakes[::-1, ::-1])[both].max() < 1.5


def test_fog_is_a_height_map_that_keeps_the_brightest_as_bright():
    pixels = flat(200)
    height, mix = rng_of("fog", 4), 1
    plasma = corruptions._plasma(32, 2, height)
    expected = 255 * (200 / 255 + mix * plasma) * (200 / 255) / (200 / 255 + mix)
    assert np.abs(made("fog", 4, pixels)[..., 1] - np.floor(expected)).max() <= 1
    assert made("fog", 4, pixels).max() <= 255


def test_a_height_map_has_the_roughness_of_its_decay():
    # Offsets uniform within w^2 have variance w^4 / 3; each halving divides w by the decay. Neighbours
    # differ by the last offsets, points half a side apart by the first: the ratio of the spreads rises
    # with the decay.
    def ratio(decay):
        found = []
        for seed in range(20):
            heights = corruptions._plasma(64, decay, np.random.default_rng(seed))
            assert (heights.min(), heights.max()) == (0, 1)
            found.append(np.diff(heights).std() / (heights[:, 32:] - heights[:, :32]).std())
        return np.mean(found)

    assert ratio(3) < ratio(2) < ratio(1.4) < ratio(1)


def test_a_height_map_of_any_side_is_a_part_of_the_next_power_of_two():
    whole = corruptions._plasma(64, 2, np.random.default_rng(0))
    part = corruptions._plasma(50, 2, np.random.default_rng(0))
    assert np.array_equal(part, whole[:50, :50])


def test_frost_adds_a_bluish_pattern_and_darkens_what_is_under_it():
    dark, light = made("frost", 5, flat(0)), made("frost", 5, flat(100))
    # 0.75 of the image and 0.45 of the frost, which is the same for both.
    assert np.abs(light - dark - 75).max() <= 1
    frost = dark / 0.45
    assert 60 < frost.mean() < 200
    assert frost.std() > 10
    assert (frost[..., 2] >= frost[..., 0]).all()


# --- colours and compression --------------------------------------------------------------------------


def test_brightness_raises_the_value_and_keeps_hue_and_saturation():
    pixels = picture()
    pixels = pixels.copy()
    pixels[0, 0] = 0
    ours = made("brightness", 4, pixels)
    for row, column in [(0, 0), (3, 7), (20, 20), (31, 5)]:
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixels[row, column] / 255))
        theirs = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))
        assert np.abs(ours[row, column] - np.multiply(theirs, 255)).max() <= 1


def test_contrast_shrinks_the_distance_to_the_mean_of_each_channel():
    pixels = picture()
    ours = made("contrast", 5, pixels)
    for channel in range(3):
        slope, intercept = np.polyfit(pixels[..., channel].ravel(), ours[..., channel].ravel(), 1)
        assert slope == pytest.approx(0.15, abs=0.01)
        assert intercept == pytest.approx(0.85 * pixels[..., channel].mean() - 0.5, abs=0.5)


def test_pixelate_makes_blocks_of_the_mean():
    pixels = picture(64)
    # At 96 pixels the table is that of 224, whose severity 2 halves the side.
    ours = made("pixelate", 2, picture(96))
    means = picture(96).reshape(48, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(ours.reshape(48, 2, 48, 2, 3) - means[:, None, :, None]).max() <= 1
    # And of 64 pixels in the other table, 0.75 leaves 48: as torch averages them.
    small = torch.nn.functional.interpolate(
        torch.tensor(pixels, dtype=torch.float64).permute(2, 0, 1)[None], size=48, mode="area"
    )
    shrunk = np.asarray(Image.fromarray(pixels).resize((48, 48), Image.Resampling.BOX))
    assert np.abs(small[0].permute(1, 2, 0).numpy() - shrunk).mean() < 8
    assert np.array_equal(
        made("pixelate", 4, pixels),
        np.asarray(Image.fromarray(shrunk).resize((64, 64), Image.Resampling.BOX)),
    )


def test_jpeg_is_pillows():
    pixels = picture()
    for severity, quality in zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        assert np.array_equal(made("jpeg_compression", severity, pixels), np.asarray(Image.open(file)))


# --- elastic ------------------------------------------------------------------------------------------


def test_the_first_elastic_transform_of_small_images_is_pillows_affine_map():
    # At severity 1 of 32 pixels nothing bends: three points move by up to 0.08 of the side, and the
    # rest with them.
    pixels = picture()
    rng = rng_of("elastic_transform", 1)
    before = np.array([[26.0, 26], [26, 6], [6, 6]])
    after = before + rng.uniform(-2.56, 2.56, (3, 2))
    # Pillow wants, for each pixel of the result, where it comes from.
    back = np.linalg.solve(np.column_stack([after, np.ones(3)]), before).T.copy()
    # It counts from the corners of pixels, we from their middles.
    back[:, 2] += back[:, :2] @ [-0.5, -0.5] + 0.5
    theirs = Image.fromarray(pixels).transform(
        (32, 32), Image.Transform.AFFINE, tuple(back.ravel()), Image.Resampling.BILINEAR
    )
    inner = slice(8, -8)
    difference = made("elastic_transform", 1, pixels) - np.asarray(theirs, np.float64)
    assert np.abs(difference[inner, inner]).max() <= 2


def test_an_elastic_transform_moves_pixels_as_far_as_its_field():
    # A ramp shows where each pixel came from. With the three points at rest only the field moves it.
    side = 64
    ramp = np.repeat(np.tile(np.arange(side, dtype=np.float64), (side, 1))[:, :, None], 3, 2) / side
    shift, sigma = 32 * 0.1, 32 * 0.03
    moved = (
        corruptions._elastic_transform(ramp, (shift, sigma, 0), 1, np.random.default_rng(1))[..., 0] * side
    )
    field = (moved - np.arange(side))[:, 8:-8]
    # A uniform of variance 1/3, smoothed: times the sum of the squared weights of the Gaussian.
    weights = ndimage.gaussian_filter(np.pad([[1.0]], 20), sigma, truncate=3)
    assert field.std() == pytest.approx(shift * math.sqrt((weights**2).sum() / 3), rel=0.1)


def test_blurring_is_what_pillow_does_by_other_means():
    # Pillow's Gaussian is three box blurs: alike to a few grey levels.
    pixels = picture(64)
    ours = 255 * corruptions._blurred(pixels / 255, 3)
    theirs = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3)), np.float64)
    assert np.abs(ours - theirs).mean() < 1.5
