"""Vision transformers with a patchify, convolutional or other stem, and their cost.

Source: Xiao et al. 2021, "Early Convolutions Help Transformers See Better", arXiv 2106.14881,
with the authors' code (pycls) for details that the paper leaves out.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from trainables.models.attention import AnyAttention, Mixing, Reattention, Softmax
from trainables.models.base import Cost, ModelFamily
from trainables.models.stems import STEMS, AnyStem, Stem

if TYPE_CHECKING:
    from torch import nn

    from trainables.models.vision_transformer import VisionTransformer

Positive = Field(gt=0)


#: Width, depth, heads, MLP ratio. The four models of the paper's table 1, the deep and narrow one of its
#: figure 8, the one of its appendix C, and one for 32-pixel images on a CPU. Then those of DeepViT, with what
#: else belongs to them: Zhou et al. 2021, https://arxiv.org/abs/2103.11886, and its code.
SIZES: dict[str, dict[str, Any]] = {
    "nano": {"width": 64, "depth": 4, "heads": 4, "mlp_ratio": 3},
    "1gf": {"width": 192, "depth": 12, "heads": 3, "mlp_ratio": 3},
    "4gf": {"width": 384, "depth": 12, "heads": 6, "mlp_ratio": 3},
    "18gf": {"width": 768, "depth": 12, "heads": 12, "mlp_ratio": 4},
    "16gf": {"width": 384, "depth": 48, "heads": 6, "mlp_ratio": 3},
    "36gf": {"width": 1024, "depth": 14, "heads": 16, "mlp_ratio": 4},
    "72gf": {"width": 1152, "depth": 22, "heads": 18, "mlp_ratio": 4},
    **{
        f"deepvit_{depth}b": {
            **{"width": 384, "depth": depth, "heads": 12, "mlp_ratio": 3},
            "attention": {"name": "reattention"},
        }
        for depth in (16, 24, 32)
    },
    "deepvit_s": {
        **{"width": 396, "depth": 16, "heads": 12, "mlp_ratio": 3, "stem": "hybrid", "branch_scale": 2.0},
        "attention": {"name": "reattention", "blocks": (12, 16), "scale_maps": True},
    },
    "deepvit_l": {
        **{"width": 420, "depth": 32, "heads": 12, "mlp_ratio": 3, "stem": "hybrid", "branch_scale": 2.0},
        "attention": {"name": "reattention", "blocks": (21, 32)},
    },
}

Size = Literal[
    "nano",
    "1gf",
    "4gf",
    "16gf",
    "18gf",
    "36gf",
    "72gf",
    "deepvit_16b",
    "deepvit_24b",
    "deepvit_32b",
    "deepvit_s",
    "deepvit_l",
]

Init = Literal["pycls_2021", "pycls_2022", "torchvision"]


def _rule(error: ValueError) -> str:
    """Returns the rules that a model breaks, without pydantic's words around them."""
    if isinstance(error, ValidationError):
        return "; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())
    return str(error)


class ViTConfig(ModelFamily):
    """A pre-norm vision transformer with a class token and learned positions."""

    head: ClassVar[tuple[str, ...]] = ("head",)

    family: Literal["vit"] = "vit"
    size: Size | None = Field(
        None,
        description="Named sizes fill width, depth, heads and mlp_ratio where these are not given; those of "
        "DeepViT also attention, and S and L stem and branch_scale.",
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
    image_size: int = Field(224, gt=0, le=8192, description="Side of the square input, pixels.")
    patch_size: int = Field(
        16, gt=0, le=8192, description="Side of the square that becomes one token, pixels."
    )
    width: int = Field(gt=0, le=65_536, description="Length of a token vector.")
    depth: int = Field(
        gt=0, le=1000, description="Blocks of the patchify model; a conv stem takes one of them away."
    )
    heads: int = Field(gt=0, le=65_536, description="Attention heads.")
    mlp_ratio: float = Field(gt=0, le=1000, description="Hidden width of the MLP over width.")
    attention: AnyAttention = Field(
        default_factory=Softmax,
        description="softmax, or with maps mixed across heads: reattention, talking_heads.",
    )
    branch_scale: float = Field(
        1.0, gt=0, le=100, description="Factor on what attention and MLP add; 2 in DeepViT-S and -L."
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="Stochastic depth of the last block, linear in depth."
    )
    parametrization: Literal["standard", "mup"] = Field(
        "standard",
        description="mup: weights learn at a rate that falls as their fan-in grows, and scores of attention "
        "as the width of a head does, so that the best lr is the same at all widths. For AdamW and Lion.",
    )
    mup_width: int = Field(
        64, gt=0, le=65_536, description="The width at which mup is the standard parametrization."
    )
    mup_heads: int | None = Field(
        None, gt=0, le=65_536, description="Heads at mup_width; as many as here if left out."
    )
    recompute: bool = Field(
        False,
        description="Activations inside blocks are computed again in the backward pass instead of kept: less "
        "memory, a third more work, the same results.",
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
            elif self.recompute and self._blocks_have_batch_norm:
                faults.append(
                    "recompute would take the statistics of re-attention's batch norm twice: set "
                    "attention.norm to layer or none"
                )
            elif isinstance(self.attention, Mixing) and not self.mixing_blocks:
                faults.append(
                    f"attention.blocks names no block of {self.num_blocks}, got {list(self.attention.blocks)}"
                )
        if not faults and self.parametrization == "mup":
            try:
                self.at_mup_width()
            except ValueError as error:
                faults.append(f"mup_width and mup_heads make no model: {_rule(error)}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def at_mup_width(self) -> Self:
        """Returns the model of `mup_width` that has the same learning rates.

        Raises:
          ValueError: there is none.
        """
        changes = {"parametrization": "standard", "width": self.mup_width, "size": None}
        base = self.model_validate(self.model_dump() | changes | {"heads": self.mup_heads or self.heads})
        own, theirs = self.layers, base.layers
        if (own.kernels, own.strides) != (theirs.kernels, theirs.strides):
            raise ValueError(f"its {self.stem} stem has other layers than that of width {self.width}")
        return base

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
    def mixing_blocks(self) -> range:
        """The indices of blocks whose attention maps are mixed across heads."""
        return self.attention.mixing_blocks(self.num_blocks)

    @property
    def num_tokens(self) -> int:
        """Number of patches plus one for the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        return int(self.width * self.mlp_ratio)

    def block_cost(self) -> Cost:
        """Computes the cost of one transformer block with plain attention."""
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
        mix, m = self.attention.cost(self.heads, self.num_tokens), len(self.mixing_blocks)
        blocks = Cost(
            n * block.params + m * mix.params,
            n * block.flops + m * mix.flops,
            n * block.activations + m * mix.activations,
        )
        return self.layers.cost(self.image_size, self.width) + blocks + head + loose

    def network(self, num_classes: int) -> "VisionTransformer":
        """Builds the network, with initial weights drawn from torch's global generator."""
        from trainables.models.vision_transformer import VisionTransformer

        return VisionTransformer(self, num_classes)

    @property
    def _blocks_have_batch_norm(self) -> bool:
        return isinstance(self.attention, Reattention) and self.attention.norm == "batch"

    def recomputing(self) -> Self | None:
        """Returns the same model with `recompute`, if it is off and blocks have no batch norm."""
        if self.recompute or self._blocks_have_batch_norm:
            return None
        return self.model_copy(update={"recompute": True})

    def channels_inside(self, network: "nn.Module") -> "tuple[nn.Module, ...]":
        """Returns a stem of several convolutions; a single one with large patches is slower so."""
        return (network.get_submodule("stem"),) if self.layers.channels else ()
