"""Stems of vision transformers: patchify, convolutional, and others. `vision_transformer` builds them."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from trainables.base import Frozen
from trainables.models.base import Cost

Norm = Literal["batch", "layer", "none"]
Activation = Literal["relu", "gelu", "none"]


Side = Annotated[int, Field(le=8192)]


class Stem(Frozen):
    """Convolutions, each with normalisation and activation, then one convolution to the width.

    Without the first convolutions, the projection is the whole stem, which is patchify. If left out, paddings
    are 1 for kernels of 3 and none for all others, as in the paper's table 3.
    """

    channels: tuple[Annotated[int, Field(le=65_536)], ...] = Field(
        (), description="Output channels of each convolution."
    )
    kernels: tuple[Side, ...] = Field((), description="Kernel side of each convolution; 3 each if left out.")
    strides: tuple[Side, ...] = Field((), description="Stride of each convolution; 2 each if left out.")
    paddings: tuple[Side, ...] = Field(
        (), description="Padding of each convolution; if left out, 1 for kernels of 3 and 0 for others."
    )
    projection: int = Field(1, gt=0, le=8192, description="Stride, and kernel side, of the last convolution.")
    projection_kernel: Side | None = Field(
        None, description="An odd kernel above the last stride, padded by half of itself: patches overlap."
    )
    norm: Norm = Field("batch", description="Normalisation after each; none gives the convolutions biases.")
    activation: Activation = Field("relu", description="Activation after each.")
    patch_norm: bool = Field(
        False, description="Layer norm over all pixels of a patch before the first convolution."
    )
    projection_norm: Norm = Field("none", description="Normalisation after the last convolution.")
    projection_activation: Activation = Field("none", description="Activation after the last convolution.")
    replaces_blocks: int = Field(
        1, ge=0, le=1000, description="Transformer blocks left out to pay for the stem."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(channels := data.get("channels"), list | tuple):
            data = {"kernels": (3,) * len(channels), "strides": (2,) * len(channels)} | data
        return data

    @model_validator(mode="after")
    def _same_lengths(self) -> Self:
        lists = [self.channels, self.kernels, self.strides, *([self.paddings] if self.paddings else [])]
        if len({len(values) for values in lists}) > 1:
            names = (
                "channels, kernels, strides and paddings"
                if self.paddings
                else "channels, kernels and strides"
            )
            told = ", ".join(str(len(values)) for values in lists)
            raise ValueError(f"{names} must be equally long, got {told}")
        if any(value < 1 for value in (*self.channels, *self.kernels, *self.strides)):
            raise ValueError("channels, kernels and strides must all be 1 or more")
        if any(2 * padding > kernel for padding, kernel in zip(self.padded, self.kernels, strict=True)):
            raise ValueError(
                f"paddings must be 0 to half of their kernels, got {list(self.paddings)} and "
                f"{list(self.kernels)}"
            )
        kernel = self.projection_kernel
        if kernel is not None and (kernel <= self.projection or kernel % 2 == 0):
            raise ValueError(
                f"projection_kernel must be odd and above projection, got {kernel} and {self.projection}"
            )
        return self

    @property
    def padded(self) -> tuple[int, ...]:
        """The padding of each convolution."""
        return self.paddings or tuple(1 if kernel == 3 else 0 for kernel in self.kernels)

    @property
    def patch_size(self) -> int:
        """Pixels per token side: the product of all strides."""
        return math.prod(self.strides) * self.projection

    def sides(self, image_size: int) -> list[int]:
        """Computes the side of the feature map after each convolution."""
        sides = []
        for kernel, stride, padding in zip(self.kernels, self.strides, self.padded, strict=True):
            image_size = (image_size + 2 * padding - kernel) // stride + 1
            sides.append(image_size)
        return sides

    def cost(self, image_size: int, width: int) -> Cost:
        """Computes the cost of the whole stem, projection included."""
        total, previous = Cost(0, 0, 0), 3
        for channels, kernel, side in zip(self.channels, self.kernels, self.sides(image_size), strict=True):
            weights = kernel**2 * previous * channels
            bias_or_norm = channels if self.norm == "none" else 2 * channels
            total += Cost(weights + bias_or_norm, weights * side**2, channels * side**2)
            previous = channels
        patches = (image_size // self.patch_size) ** 2
        weights = (self.projection_kernel or self.projection) ** 2 * previous * width
        norms = 2 * width * (self.projection_norm != "none") + 6 * self.patch_size**2 * self.patch_norm
        return total + Cost(weights + width + norms, weights * patches, width * patches)


def conv_stem(width: int, patch_size: int) -> Stem:
    """Returns the paper's C stem for a width and patch size. Strides are 2; channels double up to the width.

    For widths of 768 and above and patches of 16, the paper uses one fixed stem of six convolutions.

    Raises:
      ValueError: the patch size is not a power of two of 2 or more, or the width is not divisible by
        the necessary power of two.
    """
    if width >= 768 and patch_size == 16:
        return Stem(channels=(64, 128, 128, 256, 256, 512), kernels=(3,) * 6, strides=(2, 2, 1, 2, 1, 2))
    count = patch_size.bit_length() - 1
    if count < 1 or 2**count != patch_size:
        raise ValueError(f"the conv stem needs a patch_size that is a power of two above 1, got {patch_size}")
    if width % 2 ** (count - 1):
        raise ValueError(
            f"the conv stem halves the width {count - 1} times for a patch_size of {patch_size}, "
            f"but width {width} is not divisible by {2 ** (count - 1)}"
        )
    return Stem(channels=tuple(width // 2**k for k in reversed(range(count))))


def hmlp_stem(width: int, patch_size: int) -> Stem:
    """Returns a stem that merges patches step by step without overlap: a 4x4 convolution, then 2x2 ones.

    Batch norm follows each, and GELU is between them. The published code also has biases in convolutions
    before a batch norm, which subtracts them again; they are left out here.

    Raises:
      ValueError: the patch size is not a power of two of 8 or more, or 4 does not divide the width.

    Source: Touvron et al. 2022, "Three things everyone should know about Vision Transformers",
    section 5, https://arxiv.org/abs/2203.09795
    """
    if patch_size < 8 or patch_size & (patch_size - 1):
        raise ValueError(
            f"the hmlp stem needs a patch_size that is a power of two from 8 on, got {patch_size}"
        )
    if width % 4:
        raise ValueError(f"the hmlp stem needs a width divisible by 4, got {width}")
    merges = (2,) * (patch_size.bit_length() - 4)
    return Stem(
        channels=(width // 4,) * (1 + len(merges)),
        kernels=(4, *merges),
        strides=(4, *merges),
        projection=2,
        activation="gelu",
        projection_norm="batch",
        replaces_blocks=0,
    )


def hybrid_stem(width: int, patch_size: int) -> Stem:
    """Returns the stem of DeepViT-S and -L: two convolutions of 64 channels, then patches of half the size.

    The channels are a quarter of the width for widths below 256.

    Raises:
      ValueError: the patch size is odd, or the width below 4.

    Source: Zhou et al. 2021, DeepViT, https://arxiv.org/abs/2103.11886: `PatchEmbed_CNN` of its code.
    """
    if patch_size % 2 or width < 4:
        raise ValueError(
            f"the hybrid stem needs an even patch_size and a width from 4 on, got {patch_size} and {width}"
        )
    return Stem(
        channels=(min(64, width // 4),) * 2,
        kernels=(7, 3),
        strides=(2, 1),
        paddings=(3, 1),
        projection=patch_size // 2,
        replaces_blocks=0,
    )


def _patchify(patch_size: int, **settings: Any) -> Stem:
    return Stem(projection=patch_size, replaces_blocks=0, **settings)


def _of_16_pixels(**settings: Any) -> Callable[[int, int], Stem]:
    """Returns a stem of the paper's table 3, with its channels, for patches of 16 pixels only."""

    def make(width: int, patch_size: int) -> Stem:
        if patch_size != 16:
            raise ValueError(f"the stems s1 to s4 are for a patch_size of 16, got {patch_size}")
        return Stem(**settings)

    return make


StemWord = Literal[
    "patchify",
    "patchify_bn_relu",
    "patchify_ln",
    "dual_patchnorm",
    "overlap",
    "conv",
    "conv_ln",
    "conv_bare",
    "s1",
    "s2",
    "s3",
    "s4",
    "hmlp",
    "hybrid",
]

#: The stem of each word, given width and patch size. `conv`, its variants and s1 to s4 replace a transformer
#: block; the others replace none.
STEMS: dict[StemWord, Callable[[int, int], Stem]] = {
    # Xiao et al. 2021, section 3.
    "patchify": lambda width, patch_size: _patchify(patch_size),
    # Its figure 7: the convolution of P followed by the batch norm and ReLU of the C stem.
    "patchify_bn_relu": lambda width, patch_size: _patchify(
        patch_size, projection_norm="batch", projection_activation="relu"
    ),
    # Liu et al. 2021, Swin, https://arxiv.org/abs/2103.14030: `patch_norm` of its code.
    "patchify_ln": lambda width, patch_size: _patchify(patch_size, projection_norm="layer"),
    # Kumar et al. 2023, "Dual PatchNorm", https://arxiv.org/abs/2302.01327
    "dual_patchnorm": lambda width, patch_size: _patchify(
        patch_size, patch_norm=True, projection_norm="layer"
    ),
    # Wang et al. 2022, PVT v2, https://arxiv.org/abs/2106.13797: a kernel of 2 S - 1 for a stride of S.
    "overlap": lambda width, patch_size: _patchify(patch_size, projection_kernel=2 * patch_size - 1),
    # Xiao et al. 2021, section 3 and, with layer norm, figure 7.
    "conv": conv_stem,
    "conv_ln": lambda width, patch_size: conv_stem(width, patch_size).model_copy(update={"norm": "layer"}),
    # Not tested by Xiao et al.; Wang et al. 2022, "Scaled ReLU Matters",
    # https://arxiv.org/abs/2109.03810, call norm and ReLU decisive.
    "conv_bare": lambda width, patch_size: conv_stem(width, patch_size).model_copy(
        update={"norm": "none", "activation": "none"}
    ),
    # Xiao et al. 2021, table 3. It prints 42 for the first channels of S1, which contradicts its rule of
    # doubling and its count of multiply-adds; 52 agrees with both.
    "s1": _of_16_pixels(channels=(52, 104, 208, 416), kernels=(3, 3, 3, 2), strides=(2, 2, 2, 2)),
    "s2": _of_16_pixels(channels=(32, 64, 128, 256), kernels=(3, 3, 3, 4), strides=(2, 2, 1, 4)),
    "s3": _of_16_pixels(channels=(17, 34, 68, 136), kernels=(3, 3, 3, 8), strides=(2, 1, 1, 8)),
    "s4": _of_16_pixels(channels=(8, 16, 32, 64), kernels=(3, 3, 3, 16), strides=(1, 1, 1, 16)),
    "hmlp": hmlp_stem,
    "hybrid": hybrid_stem,
}

#: A stem by its word or written out. The form decides which, so that faults are reported for that one only.
AnyStem = Annotated[
    Annotated[StemWord, Tag("stem word")] | Annotated[Stem, Tag("stem layers")],
    Discriminator(lambda stem: "stem layers" if isinstance(stem, dict | Stem) else "stem word"),
]
