"""The network of a `ViTConfig`: its stem, its blocks, and its initial weights.

Shape suffixes: B batch, C channels, H W image side, N patches, T tokens (N and the class token),
D width, K classes.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainables.models.attention import Reattention, TalkingHeads
from trainables.models.block import Attention, Block, HeadMix, Reattend
from trainables.models.stems import Activation, Norm, Stem
from trainables.models.vit import Init, ViTConfig


def layer_norm(width: int, **kwargs: Any) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, **kwargs)


_NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "layer": LayerNorm2d}
_HEAD_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": LayerNorm2d,
    "none": lambda heads: nn.Identity(),
}
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": lambda: nn.ReLU(inplace=True), "gelu": nn.GELU}


def _after(channels: int, norm: Norm, activation: Activation) -> list[nn.Module]:
    layers: list[nn.Module] = []
    if norm != "none":
        layers.append(_NORMS[norm](channels))
    if activation != "none":
        layers.append(_ACTIVATIONS[activation]())
    return layers


def build_stem(stem: Stem, width: int) -> nn.Sequential:
    """Builds a stem from (B, 3, H, H) images to (B, D, H / patch_size, H / patch_size) features."""
    layers: list[nn.Module] = []
    if stem.patch_norm:
        # For a layer norm over all pixels of a patch, these become channels and are put back afterwards.
        side = stem.patch_size
        layers += [nn.PixelUnshuffle(side), LayerNorm2d(3 * side**2), nn.PixelShuffle(side)]
    previous = 3
    for channels, kernel, stride, padding in zip(
        stem.channels, stem.kernels, stem.strides, stem.padded, strict=True
    ):
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
    """Returns the layers before the last convolution, which projects to the width."""
    return stem[: max(place for place, layer in enumerate(stem) if isinstance(layer, nn.Conv2d))]


def mix_heads(attention: Attention, config: ViTConfig) -> None:
    """Gives an attention layer the mix of maps that a configuration describes."""
    heads, kind = config.heads, config.attention
    if isinstance(kind, TalkingHeads):
        attention.scores, attention.maps = HeadMix(heads), HeadMix(heads)
    elif isinstance(kind, Reattention):
        norm = _HEAD_NORMS[kind.norm](heads)
        scale = (config.width // heads) ** -0.5 if kind.scale_maps else 1.0
        attention.maps = Reattend(heads, norm, scale, identity=kind.init == "identity")


class VisionTransformer(nn.Module):
    """The network that a `ViTConfig` describes."""

    def __init__(self, config: ViTConfig, num_classes: int) -> None:
        super().__init__()
        self.recomputes = config.recompute
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
                    drop_path=config.drop_path * index / max(config.num_blocks - 1, 1),
                    branch_scale=config.branch_scale,
                    norm=layer_norm,
                )
                for index in range(config.num_blocks)
            )
        )
        # What the mixes draw shifts no other initial weight, so that arms with and without them are paired.
        with torch.random.fork_rng(devices=[]):
            for index in config.mixing_blocks:
                attention: Any = self.blocks[index].attn
                mix_heads(attention, config)
        self.norm = layer_norm(config.width)
        self.head = nn.Linear(config.width, num_classes)
        init_weights(self, config.init)
        if config.parametrization == "mup":
            _apply_mup(self, config)
        # A frozen stem gets no gradient and is not given to the optimizer. Source: Chen et al. 2021, MoCo v3,
        # https://arxiv.org/abs/2104.02057, with a random patch projection.
        for layer in self.stem if config.freeze_stem is True else before_projection(self.stem):
            layer.requires_grad_(not config.freeze_stem)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns logits of shape (B, K)."""
        x_BND = self.stem(images_BCHW).flatten(2).transpose(1, 2)
        x_BTD = torch.cat([self.class_token.expand(len(x_BND), -1, -1), x_BND], dim=1) + self.position
        x_BD = self.norm(self._through_blocks(x_BTD)[:, 0])
        logits_BK: Tensor = self.head(x_BD)
        return logits_BK

    def _through_blocks(self, x_BTD: Tensor) -> Tensor:
        if not (self.recomputes and torch.is_grad_enabled()):
            return cast(Tensor, self.blocks(x_BTD))
        for block in self.blocks:
            # Stochastic depth draws the same numbers again, because the state of the generator is kept.
            x_BTD = cast(Tensor, checkpoint(block, x_BTD, use_reentrant=False))
        return x_BTD


def _apply_mup(model: VisionTransformer, config: ViTConfig) -> None:
    """Gives weights the factor on their learning rate, as `lr_scale`, and attention its scale.

    The initial weights already have the variances that the parametrization asks for: 1 / fan-in, or zero at
    the head. What only adds or multiplies (biases, gains, positions, class token) and layers of a fixed
    fan-in keep their rate.

    Source: Yang et al. 2022, "Tensor Programs V", https://arxiv.org/abs/2203.03466, table 3, Adam, and
    definition 4.1 for attention; equal to the standard parametrization at `mup_width`.
    """
    base = config.at_mup_width()
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        small = VisionTransformer(base, model.head.out_features)
    layers = dict(small.named_modules())
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            ratio = layer.weight[0].numel() / layers[name].weight[0].numel()
            if ratio != 1:
                layer.weight.lr_scale = 1 / ratio  # type: ignore[attr-defined]
    width, base_width = config.width // config.heads, base.width // base.heads
    if width != base_width:
        for block in model.blocks:
            attention: Any = block.attn
            attention.rescale(math.sqrt(base_width) / width)


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
