"""The precision of a run on a device, and what is put on record of that device."""

import torch
from torch import nn

from trainables.base import DeviceUse
from trainables.config import TrainConfig
from trainables.gpu import driver_version
from trainables.io.machine import processor
from trainables.models.base import ModelFamily

_NAMES = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """Returns the type of mixed precision. None if everything is fp32."""
    match config.precision:
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
        case "auto" if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return None


def lay_out(network: nn.Module, model: ModelFamily, device: torch.device, dtype: torch.dtype | None) -> None:
    """Orders the axes of a network's weights for speed on a device. Their values do not change.

    Args:
      network: the network of the model.
      model: knows which parts compute faster with channels as the innermost axis.
      device: where it will compute; on a CPU nothing changes.
      dtype: the type of mixed precision; with None nothing changes.
    """
    if device.type == "cuda" and dtype is not None:
        for part in model.channels_inside(network):
            # Turns weights with four axes only.
            part.to(memory_format=torch.channels_last)


def device_use(config: TrainConfig, device: torch.device) -> DeviceUse:
    """Returns the device of a run, and how it computes by the settings of torch in this process."""
    dtype = _NAMES[autocast_dtype(config, device)]
    deterministic = torch.are_deterministic_algorithms_enabled()
    if device.type != "cuda":
        return DeviceUse(name=processor(), dtype=dtype, deterministic=deterministic)
    # Read through the new names, because torch refuses to read the old ones once both have been used.
    matmul = torch.backends.cuda.matmul.fp32_precision
    conv = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return DeviceUse(
        name=torch.cuda.get_device_name(device),
        dtype=dtype,
        driver=driver_version(),
        cuda=torch.version.cuda or "",
        tf32=" ".join(name for name, how in (("matmul", matmul), ("conv", conv)) if how == "tf32"),
        deterministic=deterministic,
    )
