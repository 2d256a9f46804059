"""A transformer block whose parts can be observed and switched. With nothing set it is timm's, to the bit.

Shape suffixes: B batch, T tokens, D width, H heads, M hidden width of the MLP.
"""

from collections.abc import Callable
from typing import Any, cast

from timm.layers import LayerNorm  # type: ignore[attr-defined]
from timm.layers.attention import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

#: Sees the attention maps of a batch, (B, H, T, T) each: as softmax leaves them, and as they multiply values.
Observer = Callable[[Tensor, Tensor], None]


class HeadMix(nn.Module):
    """A learned linear map across heads, at each pair of tokens. Source: Shazeer et al. 2020, talking heads.

    Its weights are named as in timm's `TalkingHeadAttn`.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.mix = nn.Linear(heads, heads)

    def forward(self, maps_BHTT: Tensor) -> Tensor:
        """Returns mixed maps."""
        return cast(Tensor, self.mix(maps_BHTT.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class Reattend(nn.Module):
    """Mixes maps across heads and normalises each head's. Source: Zhou et al. 2021, DeepViT, and its code.

    Rows no longer add up to 1 and may be negative.
    """

    def __init__(self, heads: int, norm: nn.Module, scale: float = 1.0, identity: bool = False) -> None:
        """
        Args:
          heads: number of attention heads.
          norm: takes and returns (B, H, T, T).
          scale: factor on the result.
          identity: whether the mix begins as the identity, instead of as a convolution of torch.
        """
        super().__init__()
        self.mix, self.norm, self.scale = nn.Conv2d(heads, heads, 1), norm, scale
        if identity:
            nn.init.dirac_(self.mix.weight)
            assert self.mix.bias is not None
            nn.init.zeros_(self.mix.bias)

    def forward(self, maps_BHTT: Tensor) -> Tensor:
        """Returns the maps that multiply values."""
        mixed: Tensor = self.norm(self.mix(maps_BHTT))
        return mixed if self.scale == 1.0 else mixed * self.scale


class Attention(TimmAttention):
    """Self-attention with optional hooks; while none needs the map, it is computed by a fused kernel.

    Attributes:
      scores: changes scores before softmax, (B, H, T, T).
      maps: changes maps after softmax, (B, H, T, T).
      rows: share of softmax in each row of a map, (H, T); the rest of a row is its squared scores over T.
        Source: PriViT, Dhyani et al. 2024, https://arxiv.org/abs/2310.04604.
      channels: factor on each channel of queries, keys and values, (D,).
      observer: sees the maps.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes timm's arguments."""
        super().__init__(*args, **kwargs)
        self.scores: nn.Module | None = None
        self.maps: nn.Module | None = None
        self.rows: Tensor | None = None
        self.channels: Tensor | None = None
        self.observer: Observer | None = None
        self._is_rescaled = False

    def rescale(self, scale: float) -> None:
        """Makes `scale` the factor on products of queries and keys, which is else 1 / sqrt(head width)."""
        self.scale, self._is_rescaled = scale, True

    def forward(self, x_BTD: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Returns (B, T, D)."""
        assert attn_mask is None
        assert not is_causal
        needs_map = any(hook is not None for hook in (self.scores, self.maps, self.rows, self.observer))
        if not needs_map and self.channels is None and not self._is_rescaled:
            return super().forward(x_BTD)
        qkv = self.qkv(x_BTD)
        if self.channels is not None:
            qkv = qkv * self.channels.repeat(3)
        q, k, v = qkv.unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        fused = nn.functional.scaled_dot_product_attention
        x_BHTd = self._weights(q, k) @ v if needs_map else fused(q, k, v, scale=self.scale)
        return cast(Tensor, self.proj(x_BHTd.transpose(1, 2).flatten(2)))

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores_BHTT = (q * self.scale) @ k.transpose(-2, -1)
        if self.scores is not None:
            scores_BHTT = self.scores(scores_BHTT)
        soft_BHTT = scores_BHTT.softmax(dim=-1)
        if self.rows is not None:
            share_HT1 = self.rows.unsqueeze(-1)
            squared_BHTT = scores_BHTT.square() / scores_BHTT.shape[-1]
            soft_BHTT = share_HT1 * soft_BHTT + (1 - share_HT1) * squared_BHTT
        maps_BHTT: Tensor = soft_BHTT if self.maps is None else self.maps(soft_BHTT)
        if self.observer is not None:
            self.observer(soft_BHTT.detach(), maps_BHTT.detach())
        return maps_BHTT


class SwitchedGELU(nn.GELU):
    """GELU with optional hooks.

    Attributes:
      tokens: share of GELU at each token, (T,); the rest is the identity.
      channels: factor on each hidden channel, (M,).
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens: Tensor | None = None
        self.channels: Tensor | None = None

    def forward(self, x_BTM: Tensor) -> Tensor:
        """Returns (B, T, M)."""
        out_BTM = super().forward(x_BTM)
        if self.tokens is not None:
            share_T1 = self.tokens.unsqueeze(-1)
            out_BTM = share_T1 * out_BTM + (1 - share_T1) * x_BTM
        return out_BTM if self.channels is None else out_BTM * self.channels


class Block(TimmBlock):
    """A pre-norm block.

    Attributes:
      branch_scale: factor on what attention and MLP add.
      gate: a further factor on both, of one element; None is 1.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        drop_path: float = 0.0,
        branch_scale: float = 1.0,
        norm: Callable[..., nn.Module] = LayerNorm,
    ) -> None:
        super().__init__(
            width,
            heads,
            mlp_ratio,
            qkv_bias=True,
            drop_path=drop_path,
            norm_layer=norm,  # type: ignore[arg-type]
            act_layer=SwitchedGELU,
            attn_layer=Attention,
        )
        self.branch_scale = branch_scale
        self.gate: Tensor | None = None

    def forward(self, x_BTD: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Returns (B, T, D)."""
        if self.branch_scale == 1.0 and self.gate is None:
            return super().forward(x_BTD)
        factor: Any = self.branch_scale if self.gate is None else self.branch_scale * self.gate
        x_BTD = x_BTD + factor * self.drop_path1(self.attn(self.norm1(x_BTD)))
        return cast(Tensor, x_BTD + factor * self.drop_path2(self.mlp(self.norm2(x_BTD))))
