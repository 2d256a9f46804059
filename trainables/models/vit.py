"""Vision transformers with a patchify, convolutional or other stem, and their cost.

Source: Xiao et al. 2021, "Early Convolutions Help Transformers See Better", arXiv 2106.14881,
with the authors' code (pycls) for details that the paper leaves out.

Shape suffixes: B batch, C channels, H W image side, N patches, T tokens (N and the class token),
D width, K classes.
"""

import math
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from trainables.models.base import Cost, ModelFamily
from trainables.models.stems import STEMS, AnyStem, Stem, before_projection, build_stem, layer_norm

Positive = Field(gt=0)


#: Width, depth, heads, MLP ratio. The four models of the paper's table 1, the deep and narrow one of its
#: figure 8, the one of its appendix C, and one for 32-pixel images on a CPU.
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


class ViTConfig(ModelFamily):
    """A pre-norm vision transformer with a class token and learned positions."""

    head: ClassVar[tuple[str, ...]] = ("head",)

    family: Literal["vit"] = "vit"
    size: Literal["nano", "1gf", "4gf", "16gf", "18gf", "36gf", "72gf"] | None = Field(
        None, description="Named sizes fill width, depth, heads and mlp_ratio where these are not given."
    )
    stem: AnyStem = Field(
        "patchify",
        description="A word, which derives the stem from width and patch_size, or a stem written out.",
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
    init: Init = Field(
        "pycls_2021", description="Code whose initial weights are used; the paper: pycls_2021."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(size := data.get("size"), str):
            # An unknown size is filled with `nano`, so that the missing fields are not reported as well.
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
        """Transformer blocks in the model, after the stem has replaced some."""
        return self.depth - self.layers.replaces_blocks

    @property
    def num_tokens(self) -> int:
        """Number of patches plus one for the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        return int(self.width * self.mlp_ratio)

    def block_cost(self) -> Cost:
        """Computes the cost of one transformer block."""
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
        """Computes the cost in closed form, without building the model."""
        block, n = self.block_cost(), self.num_blocks
        head = Cost(self.width * num_classes + num_classes, self.width * num_classes, num_classes)
        # Class token, positions and the last layer norm.
        loose = Cost(self.width + self.num_tokens * self.width + 2 * self.width, 0, 0)
        blocks = Cost(n * block.params, n * block.flops, n * block.activations)
        return self.layers.cost(self.image_size, self.width) + blocks + head + loose

    def network(self, num_classes: int) -> "VisionTransformer":
        """Builds the network, with initial weights drawn from torch's global generator."""
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
                    norm_layer=layer_norm,  # type: ignore[arg-type]
                )
                for index in range(config.num_blocks)
            )
        )
        self.norm = layer_norm(config.width)
        self.head = nn.Linear(config.width, num_classes)
        init_weights(self, config.init)
        # A frozen stem gets no gradient and is not given to the optimizer. Source: Chen et al. 2021, MoCo v3,
        # https://arxiv.org/abs/2104.02057, with a random patch projection.
        for layer in self.stem if config.freeze_stem is True else before_projection(self.stem):
            layer.requires_grad_(not config.freeze_stem)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns logits of shape (B, K)."""
        x_BND = self.stem(images_BCHW).flatten(2).transpose(1, 2)
        x_BTD = torch.cat([self.class_token.expand(len(x_BND), -1, -1), x_BND], dim=1) + self.position
        x_BD = self.norm(self.blocks(x_BTD)[:, 0])
        logits_BK: Tensor = self.head(x_BD)
        return logits_BK


@torch.no_grad()
def init_weights(model: VisionTransformer, init: Init) -> None:
    """Sets the initial weights as the code named by `init` does.

    The paper does not describe its initialisation. `pycls_2021` is the code that most likely produced its
    results. `pycls_2022` is pycls since March 2022. `torchvision` is torchvision's
    `conv_stem_configs`. All have a zero head, so every model starts at a loss of exactly ln(classes).
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
