"""Settings of attention in a vision transformer: whether, where and how maps are mixed across heads."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainables.base import Frozen
from trainables.models.base import Cost

#: The first and last block, counted from 1. Blocks that a stem replaces are missing at the end.
Blocks = Literal["all"] | tuple[Annotated[int, Field(ge=1, le=1000)], Annotated[int, Field(ge=1, le=1000)]]

_BLOCKS = "all, or the first and last block as [12, 16], counted from 1."


class Softmax(Frozen):
    """Plain attention."""

    name: Literal["softmax"] = "softmax"

    def mixing_blocks(self, num_blocks: int) -> range:
        """Returns the indices of blocks whose maps are mixed: none."""
        return range(0)

    def cost(self, heads: int, tokens: int) -> Cost:
        """Computes what a block costs more than with plain attention: nothing."""
        return Cost(0, 0, 0)


class Mixing(Frozen):
    """Attention whose maps are mixed across heads in some blocks."""

    blocks: Blocks = Field("all", description=_BLOCKS)

    def mixing_blocks(self, num_blocks: int) -> range:
        """Returns the indices of blocks whose maps are mixed."""
        if self.blocks == "all":
            return range(num_blocks)
        first, last = self.blocks
        return range(first - 1, min(last, num_blocks))


class TalkingHeads(Mixing):
    """Mixes scores and maps across heads by a learned matrix each.

    Source: Shazeer et al. 2020, https://arxiv.org/abs/2003.02436, as in timm's CaiT.
    """

    name: Literal["talking_heads"] = "talking_heads"

    def cost(self, heads: int, tokens: int) -> Cost:
        """Computes what a mixing block costs more than with plain attention."""
        return Cost(2 * (heads**2 + heads), 2 * heads**2 * tokens**2, 2 * heads * tokens**2)


class Reattention(Mixing):
    """Mixes maps across heads by a learned matrix and normalises them.

    Source: Zhou et al. 2021, DeepViT, https://arxiv.org/abs/2103.11886, and its code.
    """

    name: Literal["reattention"] = "reattention"
    norm: Literal["batch", "layer", "none"] = Field(
        "batch", description="Normalisation of the maps over heads; the paper's code: batch."
    )
    init: Literal["default", "identity"] = Field(
        "default", description="default: the mix begins as a convolution of torch does; identity: as none."
    )
    scale_maps: bool = Field(
        False, description="Maps are divided by the root of a head's width, as in DeepViT-S."
    )

    def cost(self, heads: int, tokens: int) -> Cost:
        """Computes what a mixing block costs more than with plain attention."""
        norm = 0 if self.norm == "none" else 2 * heads
        return Cost(heads**2 + heads + norm, heads**2 * tokens**2, heads * tokens**2)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


_Written = Annotated[Softmax | TalkingHeads | Reattention, Field(discriminator="name")]

#: Attention by its name alone or written out.
AnyAttention = Annotated[
    _Written,
    BeforeValidator(
        _named, json_schema_input_type=Literal["softmax", "talking_heads", "reattention"] | _Written
    ),
]
