"""Vision transformers with a patchify or a convolutional stem, and what they cost.

Source: Xiao et al. 2021, "Early Convolutions Help Transformers See Better", arXiv 2106.14881,
with the authors' code (pycls) for what the paper leaves out.

Shape suffixes: B batch, C channels, H W image side, N patches, T tokens (N and the class token),
D width, K classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Discriminator, Field, Tag, model_validator
from timm.layers.norm import LayerNorm2d
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from trainables.base import Frozen
from trainables.tasks.classification import Classification

Positive = Field(gt=0)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one forward pass of one image costs, in the paper's convention (its appendix D).

    Attributes:
      params: numbers that are learnt, or would be were they not frozen.
      flops: multiply-adds of convolutions and matrix products.
      activations: elements that convolutions and matrix products write.
    """

    params: int
    flops: int
    activations: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.params + other.params, self.flops + other.flops, self.activations + other.activations
        )

    @property
    def params_m(self) -> float:
        """Parameters in millions."""
        return self.params / 1e6

    @property
    def flops_g(self) -> float:
        """Multiply-adds in thousands of millions."""
        return self.flops / 1e9

    @property
    def activations_m(self) -> float:
        """Activations in millions."""
        return self.activations / 1e6


Norm = Literal["batch", "layer", "none"]
Activation = Literal["relu", "gelu", "none"]


class Stem(Frozen):
    """Convolutions, each with normalisation and activation, then one convolution to the width.

    Without convolutions the projection is the whole stem, and that is patchify. Kernels of 3 are
    padded by 1, all others are not, as in the paper's table 3.
    """

    channels: tuple[int, ...] = Field((), description="Output channels of each convolution.")
    kernels: tuple[int, ...] = Field((), description="Kernel side of each convolution; 3 each if left out.")
    strides: tuple[int, ...] = Field((), description="Stride of each convolution; 2 each if left out.")
    projection: int = Field(1, gt=0, description="Stride, and kernel side, of the last convolution.")
    projection_kernel: int | None = Field(
        None, description="An odd kernel above the last stride, padded by half of itself: patches overlap."
    )
    norm: Norm = Field("batch", description="Normalisation after each; none gives the convolutions biases.")
    activation: Activation = Field("relu", description="Activation after each.")
    patch_norm: bool = Field(
        False, description="Layer norm over all pixels of a patch before the first convolution."
    )
    projection_norm: Norm = Field("none", description="Normalisation after the last convolution.")
    projection_activation: Activation = Field("none", description="Activation after the last convolution.")
    replaces_blocks: int = Field(1, ge=0, description="Transformer blocks left out to pay for the stem.")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(channels := data.get("channels"), list | tuple):
            data = {"kernels": (3,) * len(channels), "strides": (2,) * len(channels)} | data
        return data

    @model_validator(mode="after")
    def _same_lengths(self) -> Self:
        if not len(self.channels) == len(self.kernels) == len(self.strides):
            raise ValueError(
                "channels, kernels and strides must be equally long, got "
                f"{len(self.channels)}, {len(self.kernels)}, {len(self.strides)}"
            )
        if any(value < 1 for value in (*self.channels, *self.kernels, *self.strides)):
            raise ValueError("channels, kernels and strides must all be 1 or more")
        kernel = self.projection_kernel
        if kernel is not None and (kernel <= self.projection or kernel % 2 == 0):
            raise ValueError(
                f"projection_kernel must be odd and above projection, got {kernel} and {self.projection}"
            )
        return self

    @property
    def patch_size(self) -> int:
        """Pixels per token side: the product of all strides."""
        return math.prod(self.strides) * self.projection

    def sides(self, image_size: int) -> list[int]:
        """The side of the feature map after each convolution."""
        sides = []
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            padding = 1 if kernel == 3 else 0
            image_size = (image_size + 2 * padding - kernel) // stride + 1
            sides.append(image_size)
        return sides

    def cost(self, image_size: int, width: int) -> Cost:
        """Of the whole stem, projection included."""
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
    """The paper's C stem for a width and patch size: strides of 2, channels double up to the width.

    From a width of 768 on, at a patch of 16, the paper uses one fixed stem of six convolutions.

    Raises:
      ValueError: the patch size is not a power of two of 2 or more, or the width cannot be halved
        often enough.
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
    """Patches that are merged step by step and never overlap: a 4x4 convolution, then 2x2 ones.

    Batch norm after each, GELU between them. The published code also gives biases to convolutions
    under a batch norm, which takes them off again; they are left out here.

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


def _patchify(patch_size: int, **settings: Any) -> Stem:
    return Stem(projection=patch_size, replaces_blocks=0, **settings)


def _of_16_pixels(**settings: Any) -> Callable[[int, int], Stem]:
    """A stem of the paper's table 3: channels as printed, for patches of 16 pixels and no others."""

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
]

#: What a stem's word stands for, given width and patch size. All but `conv` and its kin and s1 to s4
#: leave every transformer block in place.
STEMS: dict[StemWord, Callable[[int, int], Stem]] = {
    # Xiao et al. 2021, section 3.
    "patchify": lambda width, patch_size: _patchify(patch_size),
    # Its figure 7: what the C stem has after its convolutions, after the one of P.
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
    # The arm that Xiao et al. lack and Wang et al. 2022, "Scaled ReLU Matters",
    # https://arxiv.org/abs/2109.03810, call decisive.
    "conv_bare": lambda width, patch_size: conv_stem(width, patch_size).model_copy(
        update={"norm": "none", "activation": "none"}
    ),
    # Xiao et al. 2021, table 3. It prints 42 for the first channels of S1, which breaks its own rule of
    # doubling and its own count of multiply-adds; 52 keeps both.
    "s1": _of_16_pixels(channels=(52, 104, 208, 416), kernels=(3, 3, 3, 2), strides=(2, 2, 2, 2)),
    "s2": _of_16_pixels(channels=(32, 64, 128, 256), kernels=(3, 3, 3, 4), strides=(2, 2, 1, 4)),
    "s3": _of_16_pixels(channels=(17, 34, 68, 136), kernels=(3, 3, 3, 8), strides=(2, 1, 1, 8)),
    "s4": _of_16_pixels(channels=(8, 16, 32, 64), kernels=(3, 3, 3, 16), strides=(1, 1, 1, 16)),
    "hmlp": hmlp_stem,
}

#: By a word, or written out; told apart by form, so that a fault is reported of the one that was meant.
AnyStem = Annotated[
    Annotated[StemWord, Tag("stem word")] | Annotated[Stem, Tag("stem layers")],
    Discriminator(lambda stem: "stem layers" if isinstance(stem, dict | Stem) else "stem word"),
]


#: Width, depth, heads, MLP ratio. The four of the paper's table 1, the deep and narrow one of its figure 8,
#: the one of its appendix C, and one for 32-pixel images on a CPU.
SIZES: dict[str, dict[str, float]] = {
    "nano": {"width": 64, "depth": 4, "heads": 4, "mlp_ratio": 3},
    "1gf": {"width": 192, "depth": 12, "heads": 3, "mlp_ratio": 3},
    "4gf": {"width": 384, "depth": 12, "heads": 6, "mlp_ratio": 3},
    "18gf": {"width": 768, "depth": 12, "heads": 12, "mlp_ratio": 4},
    "16gf": {"width": 384, "depth": 48, "heads": 6, "mlp_ratio": 3},
    "36gf": {"width": 1024, "depth": 14, "heads": 16, "mlp_ratio": 4},
    "72gf": {"width": 1152, "depth": 22, "heads": 18, "mlp_ratio": 4},
}

Init = Literal["pycls_2021", "pycls_2022", "torchvision"]


class ViTConfig(Frozen):
    """A pre-norm vision transformer with a class token and learned positions."""

    #: Names of the tasks that it answers.
    tasks: ClassVar[frozenset[str]] = frozenset({Classification.name})

    family: Literal["vit"] = "vit"
    size: Literal["nano", "1gf", "4gf", "16gf", "18gf", "36gf", "72gf"] | None = Field(
        None, description="Named sizes fill width, depth, heads and mlp_ratio where these are not given."
    )
    stem: AnyStem = Field(
        "patchify", description="A word, as the derivation from width and patch_size, or one written out."
    )
    freeze_stem: bool | Literal["convolutions"] = Field(
        False,
        description="The stem keeps the weights it starts with; batch norm in it still takes statistics. "
        "convolutions: all but its last layer, the projection to the width.",
    )
    image_size: int = Field(224, gt=0, description="Side of the square input, pixels.")
    patch_size: int = Field(16, gt=0, description="Side of the square that becomes one token, pixels.")
    width: int = Field(gt=0, description="Length of a token vector.")
    depth: int = Field(gt=0, description="Blocks of the patchify model; a conv stem takes one of them away.")
    heads: int = Field(gt=0, description="Attention heads.")
    mlp_ratio: float = Field(gt=0, description="Hidden width of the MLP over width.")
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="Stochastic depth of the last block, linear in depth."
    )
    init: Init = Field("pycls_2021", description="Whose initial weights; the paper's are pycls_2021.")

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(size := data.get("size"), str):
            # An unknown size is one fault; what it would have filled is not four more.
            data = SIZES.get(size, SIZES["nano"]) | data
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = []
        if self.image_size % self.patch_size:
            faults.append(
                f"patch_size must divide image_size, got patch_size={self.patch_size}, "
                f"image_size={self.image_size}"
            )
        if self.width % self.heads:
            faults.append(f"heads must divide width, got heads={self.heads}, width={self.width}")
        try:
            stem = self.layers
        except ValueError as error:
            faults.append(str(error))
        else:
            if stem.patch_size != self.patch_size:
                faults.append(
                    f"the stem's strides must multiply to patch_size, got {list(stem.strides)} and a "
                    f"projection of {stem.projection} for patch_size={self.patch_size}"
                )
            elif not faults and stem.channels:
                wanted = self.image_size // self.patch_size * stem.projection
                if (side := stem.sides(self.image_size)[-1]) != wanted:
                    faults.append(
                        f"the stem turns {self.image_size} pixels into {side}, not {wanted}: kernels "
                        f"{list(stem.kernels)} do not fit strides {list(stem.strides)}"
                    )
            if self.depth <= stem.replaces_blocks:
                faults.append(f"depth must exceed the {stem.replaces_blocks} block(s) the stem replaces")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an input."""
        return (3, self.image_size, self.image_size)

    @property
    def layers(self) -> Stem:
        """The stem, written out."""
        if isinstance(self.stem, Stem):
            return self.stem
        return STEMS[self.stem](self.width, self.patch_size)

    @property
    def num_blocks(self) -> int:
        """Transformer blocks that are really there."""
        return self.depth - self.layers.replaces_blocks

    @property
    def num_tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        return int(self.width * self.mlp_ratio)

    def block_cost(self) -> Cost:
        """Of one transformer block."""
        width, tokens, hidden = self.width, self.num_tokens, self.hidden
        matrices = 4 * width**2 + 2 * width * hidden
        return Cost(
            # q, k, v, output and MLP biases; two layer norms.
            params=matrices + (4 * width + hidden + width) + 4 * width,
            flops=tokens * matrices + 2 * tokens**2 * width,
            # q, k, v; logits of every head; attention times v; output; MLP hidden and output.
            activations=tokens * (6 * width + hidden) + self.heads * tokens**2,
        )

    def cost(self, num_classes: int) -> Cost:
        """In closed form; nothing is built."""
        block, n = self.block_cost(), self.num_blocks
        head = Cost(self.width * num_classes + num_classes, self.width * num_classes, num_classes)
        # Class token, positions and the last layer norm.
        loose = Cost(self.width + self.num_tokens * self.width + 2 * self.width, 0, 0)
        blocks = Cost(n * block.params, n * block.flops, n * block.activations)
        return self.layers.cost(self.image_size, self.width) + blocks + head + loose

    def build(self, num_classes: int) -> "VisionTransformer":
        """The network, its initial weights drawn from torch's global generator."""
        return VisionTransformer(self, num_classes)


class VisionTransformer(nn.Module):
    """The network that a `ViTConfig` describes."""

    def __init__(self, config: ViTConfig, num_classes: int) -> None:
        super().__init__()
        self.stem = build_stem(config.layers, config.width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position = nn.Parameter(torch.empty(1, config.num_tokens, config.width))
        # eps as in the authors' configs.
        self.blocks = nn.Sequential(
            *(
                Block(
                    config.width,
                    config.heads,
                    config.mlp_ratio,
                    qkv_bias=True,
                    drop_path=config.drop_path * index / max(config.num_blocks - 1, 1),
                    norm_layer=_layer_norm,  # type: ignore[arg-type]
                )
                for index in range(config.num_blocks)
            )
        )
        self.norm = _layer_norm(config.width)
        self.head = nn.Linear(config.width, num_classes)
        init_weights(self, config.init)
        # Chen et al. 2021, MoCo v3, https://arxiv.org/abs/2104.02057: a random patch projection that is
        # never trained. No gradient is computed for it, and no optimizer sees it.
        for layer in self.stem if config.freeze_stem is True else before_projection(self.stem):
            layer.requires_grad_(not config.freeze_stem)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits of shape (B, K)."""
        x_BND = self.stem(images_BCHW).flatten(2).transpose(1, 2)
        x_BTD = torch.cat([self.class_token.expand(len(x_BND), -1, -1), x_BND], dim=1) + self.position
        x_BD = self.norm(self.blocks(x_BTD)[:, 0])
        logits_BK: Tensor = self.head(x_BD)
        return logits_BK


def _layer_norm(width: int, **kwargs: Any) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, **kwargs)


_NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "layer": LayerNorm2d}
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": lambda: nn.ReLU(inplace=True), "gelu": nn.GELU}


def _after(channels: int, norm: Norm, activation: Activation) -> list[nn.Module]:
    layers: list[nn.Module] = []
    if norm != "none":
        layers.append(_NORMS[norm](channels))
    if activation != "none":
        layers.append(_ACTIVATIONS[activation]())
    return layers


def build_stem(stem: Stem, width: int) -> nn.Sequential:
    """Images of shape (B, 3, H, H) to features of shape (B, D, H / patch_size, H / patch_size)."""
    layers: list[nn.Module] = []
    if stem.patch_norm:
        # A patch becomes the channels of one place, and is laid out again.
        side = stem.patch_size
        layers += [nn.PixelUnshuffle(side), LayerNorm2d(3 * side**2), nn.PixelShuffle(side)]
    previous = 3
    for channels, kernel, stride in zip(stem.channels, stem.kernels, stem.strides, strict=True):
        padding = 1 if kernel == 3 else 0
        layers.append(nn.Conv2d(previous, channels, kernel, stride, padding, bias=stem.norm == "none"))
        layers += _after(channels, stem.norm, stem.activation)
        previous = channels
    kernel, padding = stem.projection, 0
    if stem.projection_kernel is not None:
        kernel, padding = stem.projection_kernel, stem.projection_kernel // 2
    layers.append(nn.Conv2d(previous, width, kernel, stem.projection, padding))
    layers += _after(width, stem.projection_norm, stem.projection_activation)
    return nn.Sequential(*layers)


def before_projection(stem: nn.Sequential) -> nn.Sequential:
    """The layers before the last convolution, which projects to the width."""
    return stem[: max(place for place, layer in enumerate(stem) if isinstance(layer, nn.Conv2d))]


@torch.no_grad()
def init_weights(model: VisionTransformer, init: Init) -> None:
    """Sets the initial weights as the code named by `init` does.

    The paper says nothing of initialisation. `pycls_2021` is the code that most likely made its
    numbers; `pycls_2022` is pycls since March 2022; `torchvision` is its `conv_stem_configs`. All agree
    on a zero head, so every model starts at a loss of ln(classes) exactly.
    """
    *convs, projection = [layer for layer in model.stem if isinstance(layer, nn.Conv2d)]
    for conv in convs:
        if init == "pycls_2022":
            nn.init.normal_(conv.weight, std=math.sqrt(2 / conv.out_channels))
    if convs:
        gain = 1 if init == "pycls_2022" else 2
        nn.init.normal_(projection.weight, std=math.sqrt(gain / projection.out_channels))
    else:
        fan_in = projection.in_channels * projection.kernel_size[0] ** 2
        nn.init.trunc_normal_(projection.weight, std=math.sqrt(1 / fan_in))
    assert projection.bias is not None
    nn.init.zeros_(projection.bias)
    for block in model.blocks:
        attention: Any = block.attn
        nn.init.xavier_uniform_(attention.qkv.weight)
        nn.init.zeros_(attention.qkv.bias)
        nn.init.zeros_(attention.proj.bias)
        mlp: Any = block.mlp
        for linear in (mlp.fc1, mlp.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)
    nn.init.normal_(model.position, std=0.02)
    nn.init.zeros_(model.class_token)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
