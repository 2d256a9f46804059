"""Convolutional baselines from timm, with the interface of `ViTConfig`.

Source of shapes and costs: Xiao et al. 2021, table 2, and the authors' configs. The RegNetY models are
the "fast scaling" variants of Dollar et al. 2021, not those of the model zoo.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainables.models.base import CountedFamily

if TYPE_CHECKING:
    from torch import nn

StageDepth = Annotated[int, Field(gt=0, le=1000)]
StageWidth = Annotated[int, Field(gt=0, le=65_536)]

#: depths, widths, group width, training resolution.
_REGNETY: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int]] = {
    "nano": ((1, 1, 2, 1), (16, 32, 64, 128), 16, 32),
    "1gf": ((1, 4, 10, 3), (40, 120, 328, 904), 4, 232),
    # The stages that follow from depth 26, w0 88, wa 30.3, wm 2.404.
    "4gf": ((2, 6, 16, 2), (96, 192, 512, 1216), 32, 240),
    "16gf": ((2, 7, 18, 2), (168, 336, 896, 2128), 56, 256),
    "32gf": ((2, 7, 20, 2), (216, 432, 1152, 2808), 72, 268),
}


class RegNetYConfig(CountedFamily):
    """RegNetY: squeeze-and-excitation of 0.25, bottleneck ratio 1, stem of 32 channels."""

    head: ClassVar[tuple[str, ...]] = ("head",)

    family: Literal["regnety"] = "regnety"
    size: Literal["nano", "1gf", "4gf", "16gf", "32gf"] | None = Field(
        None, description="Named sizes fill depths, widths, group_width and image_size."
    )
    depths: tuple[StageDepth, StageDepth, StageDepth, StageDepth] = Field(description="Blocks per stage.")
    widths: tuple[StageWidth, StageWidth, StageWidth, StageWidth] = Field(description="Channels per stage.")
    group_width: int = Field(gt=0, le=65_536, description="Channels per group of the 3x3 convolutions.")

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(size := data.get("size"), str):
            names = ("depths", "widths", "group_width", "image_size")
            # An unknown size is filled with `nano`, so that the missing fields are not reported as well.
            data = dict(zip(names, _REGNETY.get(size, _REGNETY["nano"]), strict=True)) | data
        return data

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if bad := [width for width in self.widths if width % min(self.group_width, width)]:
            raise ValueError(f"group_width must divide widths, got {self.group_width} and {bad}")
        return self

    def network(self, num_classes: int) -> "nn.Module":
        """Builds the network, with initial weights drawn from torch's global generator."""
        from timm.models.regnet import RegNetCfg

        from trainables.models.staged_regnet import StagedRegNet

        cfg = RegNetCfg(group_size=self.group_width, se_ratio=0.25, stem_width=32)
        return StagedRegNet(
            cfg, self.depths, self.widths, num_classes=num_classes, drop_path_rate=self.drop_path
        )


#: depths, widths, group width, training resolution, channels before the classifier.
_REGNETZ: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int, int]] = {
    "nano": ((1, 1, 2, 1), (16, 24, 32, 64), 8, 32, 128),
    # The stages that follow from depth 28, w0 48, wa 14.5, wm 2.226.
    "4gf": ((2, 6, 14, 6), (48, 104, 240, 528), 8, 256, 1024),
}


class RegNetZConfig(CountedFamily):
    """RegNetZ: inverted bottlenecks of 4, no activation after a block, SiLU, a wide layer before the head.

    Source: Dollar et al. 2021, https://arxiv.org/abs/2103.06877; the shape of 4gf as in timm. The
    shapes of the 1, 16 and 32 GF models of Xiao et al. are not published with their code.
    """

    head: ClassVar[tuple[str, ...]] = ("head",)

    family: Literal["regnetz"] = "regnetz"
    size: Literal["nano", "4gf"] | None = Field(
        None, description="Named sizes fill depths, widths, group_width, head_width and image_size."
    )
    depths: tuple[StageDepth, StageDepth, StageDepth, StageDepth] = Field(description="Blocks per stage.")
    widths: tuple[StageWidth, StageWidth, StageWidth, StageWidth] = Field(
        description="Channels per stage; 4 times as many inside a block."
    )
    group_width: int = Field(gt=0, le=65_536, description="Channels per group of the 3x3 convolutions.")
    head_width: int = Field(
        gt=0, le=65_536, description="Channels of the 1x1 convolution before the classifier."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(size := data.get("size"), str):
            names = ("depths", "widths", "group_width", "image_size", "head_width")
            # An unknown size is filled with `nano`, so that the missing fields are not reported as well.
            data = dict(zip(names, _REGNETZ.get(size, _REGNETZ["nano"]), strict=True)) | data
        return data

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if bad := [4 * width for width in self.widths if 4 * width % self.group_width]:
            raise ValueError(f"group_width must divide 4 x widths, got {self.group_width} and {bad}")
        return self

    def network(self, num_classes: int) -> "nn.Module":
        """Builds the network, with initial weights drawn from torch's global generator."""
        from timm.models.regnet import RegNetCfg

        from trainables.models.staged_regnet import StagedRegNet

        cfg = RegNetCfg(
            group_size=self.group_width,
            bottle_ratio=4.0,
            se_ratio=0.25,
            stem_width=32,
            downsample=None,
            linear_out=True,
            num_features=self.head_width,
            act_layer="silu",
        )
        return StagedRegNet(
            cfg,
            self.depths,
            self.widths,
            num_classes=num_classes,
            drop_path_rate=self.drop_path,
            zero_init_last=False,
        )


#: Training resolution.
_EFFICIENTNETS: dict[str, int] = {"b0": 224, "b2": 260, "b4": 380, "b5": 456}


class EfficientNetConfig(CountedFamily):
    """EfficientNet, without the dropout its own recipe has before the classifier.

    Source: Tan and Le 2019, https://arxiv.org/abs/1905.11946.
    """

    head: ClassVar[tuple[str, ...]] = ("classifier",)

    family: Literal["efficientnet"] = "efficientnet"
    variant: Literal["b0", "b2", "b4", "b5"] = Field("b0", description="Which one; fills image_size.")

    @model_validator(mode="before")
    @classmethod
    def _fill_resolution(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(variant := data.get("variant"), str):
            data = {"image_size": _EFFICIENTNETS.get(variant, _EFFICIENTNETS["b0"])} | data
        return data

    def network(self, num_classes: int) -> "nn.Module":
        """Builds the network, with initial weights drawn from torch's global generator."""
        from timm.models import efficientnet

        make: Any = getattr(efficientnet, f"efficientnet_{self.variant}")
        model: nn.Module = make(num_classes=num_classes, drop_path_rate=self.drop_path)
        return model


_RESNET_DEPTHS: dict[int, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


class ResNetConfig(CountedFamily):
    """ResNet; bottleneck blocks from 50 layers on."""

    head: ClassVar[tuple[str, ...]] = ("fc",)

    family: Literal["resnet"] = "resnet"
    layers: Literal[18, 50, 101, 152, 200] = Field(50, description="Which one, by its number of layers.")

    def network(self, num_classes: int) -> "nn.Module":
        """Builds the network, with initial weights drawn from torch's global generator."""
        from timm.models.resnet import BasicBlock, Bottleneck, ResNet

        # Any, because timm expects the class but annotates an instance.
        block: Any = Bottleneck if self.layers >= 50 else BasicBlock
        return ResNet(
            block, _RESNET_DEPTHS[self.layers], num_classes=num_classes, drop_path_rate=self.drop_path
        )

    def channels_inside(self, network: "nn.Module") -> "tuple[nn.Module, ...]":
        """Returns the whole network."""
        return (network,)
