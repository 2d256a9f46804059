"""timm's RegNet with stages that are written out."""

from typing import Any

import torch
from timm.models.regnet import RegNet, RegNetCfg


class StagedRegNet(RegNet):
    """A RegNet with explicit stages, because timm's linear parameters cannot express all of them."""

    def __init__(
        self, cfg: RegNetCfg, depths: tuple[int, ...], widths: tuple[int, ...], **kwargs: Any
    ) -> None:
        self._stages = (depths, widths)
        super().__init__(cfg, **kwargs)

    def _get_stage_args(
        self, cfg: RegNetCfg, default_stride: int = 2, output_stride: int = 32, drop_path_rate: float = 0.0
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        rates = torch.linspace(0, drop_path_rate, sum(self._stages[0]), device="cpu").tolist()
        stages = []
        for depth, width in zip(*self._stages, strict=True):
            stages.append(
                {
                    "out_chs": width,
                    "stride": default_stride,
                    "dilation": 1,
                    "depth": depth,
                    "bottle_ratio": cfg.bottle_ratio,
                    # Limited, because the grouped convolution is as wide as the bottleneck.
                    "group_size": min(cfg.group_size, round(width * cfg.bottle_ratio)),
                    "drop_path_rates": rates[:depth],
                }
            )
            rates = rates[depth:]
        common = {
            "downsample": cfg.downsample,
            "se_ratio": cfg.se_ratio,
            "linear_out": cfg.linear_out,
            "act_layer": cfg.act_layer,
            "norm_layer": cfg.norm_layer,
        }
        return stages, common
