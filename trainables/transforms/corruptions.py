"""Fifteen common corruptions of images at five severities, computed on the fly for any image size.

Source: Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", https://arxiv.org/abs/1903.12261, and their code, https://github.com/hendrycks/robustness.
The parameters are theirs for CIFAR-C (32 pixels) and ImageNet-C (224 pixels). Other sizes use the table whose
size is nearer (as a ratio), with lengths scaled to the image. Levels of noise, contrast and compression are
not lengths and stay unchanged. Far below 32 pixels, lengths under a pixel have little effect.

Differences from the published sets: numpy, scipy and Pillow replace OpenCV, scikit-image and ImageMagick,
with the same definitions; images are not stored as JPEG in between; and frost is drawn instead of taken from
photographs (see `_frost`). So errors are comparable between models measured here, but not digit by digit
with published ones.

Every random choice is a function of (seed, kind, severity, image), so all arms see the same corrupted images.

Shape suffixes: H W image side, C channels. Values are floats from 0 to 1 inside, bytes outside.
"""

import functools
import io
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from trainables.base import Frozen, derive_seed

Kind = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
Severity = Literal[1, 2, 3, 4, 5]
Floats = NDArray[np.float64]

#: Image sides of the published parameters.
CIFAR_SIDE, IMAGENET_SIDE = 32, 224

# One entry per severity. These are lengths, in pixels of a 32-pixel image: defocus radius; glass sigma and
# reach; motion radius and sigma; zoom, radius and sigma of snowflakes; all three of the elastic transform.
_CIFAR: dict[Kind, tuple[Any, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": (
        (0, 0, 32 * 0.08),
        (32 * 0.05, 32 * 0.2, 32 * 0.07),
        (32 * 0.08, 32 * 0.06, 32 * 0.06),
        (32 * 0.1, 32 * 0.04, 32 * 0.05),
        (32 * 0.1, 32 * 0.03, 32 * 0.03),
    ),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
}
# The same, in pixels of a 224-pixel image; the published code has 244 in the elastic transform.
_IMAGENET: dict[Kind, tuple[Any, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": (
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),
}


def _parameters(kind: Kind, severity: Severity, side: int) -> tuple[Any, float]:
    """Returns the published parameters, and the factor of their lengths for this image side."""
    table, base = (_CIFAR, CIFAR_SIDE) if side**2 < CIFAR_SIDE * IMAGENET_SIDE else (_IMAGENET, IMAGENET_SIDE)
    return table[kind][severity - 1], side / base


def _gaussian_noise(image: Floats, c: float, scale: float, rng: np.random.Generator) -> Floats:
    return image + rng.normal(0, c, image.shape)


def _shot_noise(image: Floats, c: float, scale: float, rng: np.random.Generator) -> Floats:
    return rng.poisson(image * c) / c


def _impulse_noise(image: Floats, c: float, scale: float, rng: np.random.Generator) -> Floats:
    # Channels of a pixel are hit independently; half of the hits are black.
    hit, white = rng.random(image.shape) < c, rng.random(image.shape) < 0.5
    return np.where(hit, white.astype(np.float64), image)


def _defocus_blur(image: Floats, c: Any, scale: float, rng: np.random.Generator) -> Floats:
    kernel = _disk(c[0] * scale, c[1])
    return scipy.ndimage.correlate(image, kernel[:, :, None], mode="mirror")  # type: ignore[no-any-return]


def _disk(radius: float, alias_sigma: float) -> Floats:
    """Returns a disk of weight 1 with edges softened by a Gaussian of 3 taps, or 5 for large disks."""
    reach, taps = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    at = np.arange(-reach, reach + 1)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).astype(np.float64)
    offsets = np.arange(-taps, taps + 1)
    tap = np.exp(-(offsets**2) / (2 * alias_sigma**2))
    tap /= tap.sum()
    soft = scipy.ndimage.correlate1d(disk / disk.sum(), tap, 0, mode="mirror")
    return scipy.ndimage.correlate1d(soft, tap, 1, mode="mirror")  # type: ignore[no-any-return]


def _blurred(image: Floats, sigma: float) -> Floats:
    return scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")  # type: ignore[no-any-return]


def _glass_blur(image: Floats, c: Any, scale: float, rng: np.random.Generator) -> Floats:
    sigma, reach, rounds = c[0] * scale, max(1, round(c[1] * scale)), c[2]
    side = len(image)
    pixels = np.floor(255 * _blurred(image, sigma)) / 255
    at = range(side - reach, reach, -1)
    # The published code intends to swap two pixels, but in numpy it makes the first a copy of the second.
    # Lists, because each step depends on the one before, and numpy is slow on single numbers.
    order = np.arange(side * side).tolist()
    for _ in range(rounds):
        moves = rng.integers(-reach, reach, (len(at) ** 2, 2))
        steps = (moves[:, 1] * side + moves[:, 0]).tolist()
        places = (row * side + column for row in at for column in at)
        for place, step in zip(places, steps, strict=True):
            order[place] = order[place + step]
    return _blurred(pixels.reshape(-1, 3)[order].reshape(pixels.shape), sigma)


def _motion_blur(image: Floats, c: Any, scale: float, rng: np.random.Generator) -> Floats:
    return _along(image, c[0] * scale, c[1] * scale, rng.uniform(-45, 45))


def _along(image: Floats, radius: float, sigma: float, angle_degrees: float) -> Floats:
    """Blurs along a line, as ImageMagick: each pixel is a one-sided Gaussian mean of those ahead of it."""
    length = 2 * math.ceil(radius) + 1
    weights = np.exp(-(np.arange(length) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = math.radians(angle_degrees)
    rows, columns = np.arange(image.shape[0]), np.arange(image.shape[1])
    total = np.zeros_like(image)
    for step, weight in enumerate(weights):
        down = (rows + math.ceil(step * math.sin(angle) - 0.5)).clip(0, len(rows) - 1)
        right = (columns + math.ceil(step * math.cos(angle) - 0.5)).clip(0, len(columns) - 1)
        total += weight * image[down[:, None], right]
    return total


def _zoom_blur(image: Floats, c: Any, scale: float, rng: np.random.Generator) -> Floats:
    factors = np.arange(1, *c)
    return (image + sum(_zoomed(image, factor) for factor in factors)) / (len(factors) + 1)


def _zoomed(image: Floats, factor: float) -> Floats:
    """Enlarges the centre of an image to the size of the whole."""
    side = len(image)
    kept = math.ceil(side / factor)
    top = (side - kept) // 2
    centre = image[top : top + kept, top : top + kept]
    larger = scipy.ndimage.zoom(centre, (factor, factor, 1), order=1)
    trim = (len(larger) - side) // 2
    return larger[trim : trim + side, trim : trim + side]  # type: ignore[no-any-return]


def _snow(image: Floats, c: Any, scale: float, rng: np.random.Generator) -> Floats:
    mean, spread, zoom, threshold, radius, sigma, kept = c
    # Flakes are at least one pixel large.
    flakes = _zoomed(rng.normal(mean, spread, (*image.shape[:2], 1)), max(1.0, zoom * scale))
    flakes = np.floor(255 * np.where(flakes < threshold, 0, flakes).clip(0, 1)) / 255
    flakes = _along(flakes, radius * scale, sigma * scale, rng.uniform(-135, -45))
    grey = image @ np.array([0.299, 0.587, 0.114])
    whitened = kept * image + (1 - kept) * np.maximum(image, 1.5 * grey[:, :, None] + 0.5)
    return whitened + flakes + np.rot90(flakes, 2)  # type: ignore[no-any-return]


def _frost(image: Floats, c: Any, scale: float, rng: np.random.Generator) -> Floats:
    """Draws frost as bluish ridges of fractal noise. The published code crops one of five photographs.

    A fractal makes a line at its middle level. Lines of a coarse and a fine fractal are drawn on a pale
    ground, which is thicker towards the edges of the image.
    """
    side = len(image)
    coarse, fine = (1 - np.abs(2 * _plasma(side, decay, rng) - 1) for decay in (2.0, 1.4))
    at = np.abs(np.linspace(-1, 1, side))
    edge = np.maximum(at[:, None], at)
    frost = (0.25 + 0.45 * coarse**4 + 0.3 * fine**2) * (0.7 + 0.3 * edge)
    return c[0] * image + c[1] * frost[:, :, None] * np.array([0.88, 0.95, 1.0])  # type: ignore[no-any-return]


def _fog(image: Floats, c: Any, scale: float, rng: np.random.Generator) -> Floats:
    brightest = image.max()
    foggy = image + c[0] * _plasma(len(image), c[1], rng)[:, :, None]
    return foggy * brightest / (brightest + c[0])  # type: ignore[no-any-return]


def _plasma(side: int, decay: float, rng: np.random.Generator) -> Floats:
    """Returns the first `side` rows and columns of a diamond-square height map from 0 to 1.

    Each point is the mean of four points half a step away, plus a random offset. The range of the offset
    shrinks by `decay` squared with each halving of the step.
    """
    size = 2 ** math.ceil(math.log2(side)) if side > 1 else 2
    heights = np.zeros((size, size))
    step, offset = size, 1.0

    def mean_of(four: Floats) -> Floats:
        return four / 4 + offset * rng.uniform(-offset, offset, four.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        below = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = mean_of(below + np.roll(below, -1, 1))
        middles, corners = heights[half::step, half::step], heights[::step, ::step]
        beside = middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1)
        heights[::step, half::step] = mean_of(beside)
        beside = middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0)
        heights[half::step, ::step] = mean_of(beside)
        step, offset = half, offset / decay
    heights -= heights.min()
    return heights[:side, :side] / heights.max()  # type: ignore[no-any-return]


def _brightness(image: Floats, c: float, scale: float, rng: np.random.Generator) -> Floats:
    # The HSV value is the largest channel. Scaling all channels alike keeps hue and saturation.
    value = image.max(2, keepdims=True)
    brighter = (value + c).clip(0, 1)
    return np.where(value > 0, image * (brighter / np.where(value > 0, value, 1)), brighter)  # type: ignore[no-any-return]


def _contrast(image: Floats, c: float, scale: float, rng: np.random.Generator) -> Floats:
    mean = image.mean((0, 1), keepdims=True)
    return (image - mean) * c + mean  # type: ignore[no-any-return]


def _elastic_transform(image: Floats, c: Any, scale: float, rng: np.random.Generator) -> Floats:
    shift, sigma, jitter = (length * scale for length in c)
    side = len(image)
    # Three points move at random; their affine map moves all other points.
    middle, reach = side // 2, side // 3
    before = np.array(
        [
            [middle + reach, middle + reach],
            [middle + reach, middle - reach],
            [middle - reach, middle - reach],
        ],
        dtype=np.float64,
    )
    after = before + rng.uniform(-jitter, jitter, before.shape)
    inverse = np.linalg.solve(np.column_stack([after, np.ones(3)]), before)
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    places = np.stack([columns, rows, np.ones_like(rows)], -1) @ inverse
    image = _sampled(image, places[..., 1], places[..., 0], "mirror")
    down, right = (
        shift * scipy.ndimage.gaussian_filter(rng.uniform(-1, 1, (side, side)), sigma, truncate=3)
        for _ in range(2)
    )
    return _sampled(image, rows + down, columns + right, "reflect")


def _sampled(image: Floats, rows: Floats, columns: Floats, mode: str) -> Floats:
    channels = [
        scipy.ndimage.map_coordinates(image[:, :, channel], [rows, columns], order=1, mode=mode)
        for channel in range(image.shape[2])
    ]
    return np.stack(channels, 2)


def _pixelate(image: Floats, c: float, scale: float, rng: np.random.Generator) -> Floats:
    side = len(image)
    picture = Image.fromarray(_bytes(image))
    few = max(1, int(side * c))
    small = picture.resize((few, few), Image.Resampling.BOX)
    return np.asarray(small.resize((side, side), Image.Resampling.BOX)) / 255


def _jpeg_compression(image: Floats, c: int, scale: float, rng: np.random.Generator) -> Floats:
    file = io.BytesIO()
    Image.fromarray(_bytes(image)).save(file, "JPEG", quality=c)
    with Image.open(file) as picture:
        return np.asarray(picture) / 255


def _bytes(image: Floats) -> NDArray[np.uint8]:
    """Converts to bytes, rounded down as in the published code. The small offset keeps exact bytes exact."""
    return np.floor(image.clip(0, 1) * 255 + 1e-6).astype(np.uint8)


_MAKERS: dict[Kind, Callable[[Floats, Any, float, np.random.Generator], Floats]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
KINDS: tuple[Kind, ...] = tuple(_MAKERS)
SEVERITIES: tuple[Severity, ...] = (1, 2, 3, 4, 5)


def corrupt(
    pixels_HWC: NDArray[np.uint8], kind: Kind, severity: Severity, *, seed: int, index: int
) -> NDArray[np.uint8]:
    """Returns a corrupted copy of a square image.

    Args:
      pixels_HWC: the image, 8-bit RGB.
      kind: one of the 15 kinds.
      severity: 1 (mildest) to 5.
      seed, index: with kind and severity they determine every random number; index is the position of the
        image in its split.
    """
    parameters, scale = _parameters(kind, severity, len(pixels_HWC))
    rng = np.random.default_rng(derive_seed(seed, kind, severity, index))
    return _bytes(_MAKERS[kind](pixels_HWC / 255, parameters, scale, rng))


class Corruptions(Frozen):
    """A test on the final split under corruption: 15 kinds at 5 severities, and a mean error per kind."""

    kinds: tuple[Kind, ...] = Field(KINDS, min_length=1, description="Which corruptions; all 15 if left out.")
    severities: tuple[Severity, ...] = Field(
        SEVERITIES, min_length=1, description="Which severities each kind's error is the mean of."
    )
    images: int | None = Field(
        None, gt=0, description="Corrupt this many images, the classes in proportion; all if left out."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Which noise; no trial's seed changes it.")

    def change(self, kind: Kind, severity: Severity) -> Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]:
        """Returns a function that corrupts an image, given its row in the split."""
        return functools.partial(_corrupt_row, kind=kind, severity=severity, seed=self.seed)


# At the top of the module, because loader processes unpickle it by name.
def _corrupt_row(
    pixels_HWC: NDArray[np.uint8], row: int, *, kind: Kind, severity: Severity, seed: int
) -> NDArray[np.uint8]:
    return corrupt(pixels_HWC, kind, severity, seed=seed, index=row)
