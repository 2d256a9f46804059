"""GPUs as torch sees them: which it can use, and what their errors mean."""

import platform
import re
from pathlib import Path
from typing import Literal

import torch

#: Where a process computes. A run is told, because what a process sees is not what it was given.
DeviceKind = Literal["cpu", "cuda"]

#: Least Linux driver by the major version of CUDA that torch was built for: NVIDIA, "CUDA Compatibility",
#: minor version compatibility.
LEAST_DRIVERS = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}

_DRIVER = Path("/proc/driver/nvidia/version")

#: What CUDA, its libraries and the CPU's allocator say when memory is what was missing.
_MEMORY_TEXTS = re.compile(
    r"out of memory|can't allocate memory|STATUS_ALLOC_FAILED|DEVICE_ALLOCATION_FAILED|CUFFT_ALLOC_FAILED",
    re.IGNORECASE,
)


def visible_device() -> DeviceKind:
    """Returns "cuda" if this process sees a GPU, for callers that nobody has given a device."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def driver_version() -> str:
    """Returns the version of this machine's NVIDIA driver. "" if there is none."""
    try:
        found = re.search(r"Kernel Module\b.*?\s(\d+\.[\d.]+)", _DRIVER.read_text("utf-8"))
    except OSError:
        return ""
    return found[1] if found else ""


def gpu_fault() -> str:
    """Returns why torch can use no GPU here, and the remedies. "" if it can."""
    if torch.cuda.is_available():
        return ""
    return fault_text(platform.node(), driver_version(), torch.__version__, torch.version.cuda)


def fault_text(machine: str, driver: str, version: str, cuda: str | None) -> str:
    """Returns the message for a machine that claims a GPU which torch cannot use.

    Args:
      machine: its name.
      driver: version of its NVIDIA driver; "" if there is none.
      version: of torch.
      cuda: version of CUDA that torch was built for; None if it was built for CPUs alone.
    """
    have = f"its NVIDIA driver is {driver}" if driver else "it has no NVIDIA driver"
    major = (cuda or "").partition(".")[0]
    least = LEAST_DRIVERS.get(major)
    wants = f"is built for CUDA {cuda}" if cuda else "is built for CPUs alone"
    wants += f" and wants driver {least} or newer" if least else ""
    return (
        f"{machine} claims a GPU, and torch cannot use it: {have}; torch {version} {wants}. "
        "Start the machine from an image with a newer driver, or install a build of torch for the CUDA "
        "version of its driver (such as cu126)"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether memory was missing: of the GPU, also in cuBLAS, cuDNN or NCCL, or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_MEMORY_TEXTS.search(str(error)))


def has_lost_device(error: BaseException, device: torch.device) -> bool:
    """Returns whether this process can use its GPU no more, as after an illegal address or a device assert.

    CUDA then answers every call with that error, until the process has ended.
    """
    if is_out_of_memory(error):
        return False
    if isinstance(error, torch.AcceleratorError):
        return True
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False
