"""The precision of a run on a device, and what is put on record of that device."""

import torch

from trainables.base import DeviceUse
from trainables.config import TrainConfig
from trainables.gpu import driver_version
from trainables.io.machine import processor

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
