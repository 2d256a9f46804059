"""Known devices, and the machine that this process runs on."""

import os
import re
from dataclasses import dataclass

from orchestrator.trials.gang import Node
from trainables.io.machine import processor, usable_cpus


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as in its data sheet.

    Attributes:
      memory_gib: memory in GB of the data sheet. Programs can use a few per cent less.
      fp32_tflops: without tensor cores, which torch does not use for fp32 matrix products by default.
      half_tflops: fp16 or bf16 on tensor cores, with fp32 sums and without sparsity.
      bandwidth_gb_s: bandwidth of its memory.
      source: source of these numbers.
    """

    memory_gib: float
    fp32_tflops: float
    half_tflops: float
    bandwidth_gb_s: float
    source: str


#: Devices by the name that `plan --on` takes. The SXM variant if there are several.
DEVICES: dict[str, Device] = {
    "V100": Device(32, 15.7, 125, 900, "NVIDIA V100 data sheet (SXM2, 32 GB)"),
    "T4": Device(16, 8.1, 65, 320, "NVIDIA T4 data sheet"),
    "L4": Device(24, 30.3, 121, 300, "NVIDIA L4 data sheet, half of the figure with sparsity"),
    "A10G": Device(24, 35, 70, 600, "NVIDIA A10G data sheet, as in AWS's G5 instances"),
    "L40S": Device(48, 91.6, 362, 864, "NVIDIA L40S data sheet"),
    "A100-40GB": Device(40, 19.5, 312, 1555, "NVIDIA A100 data sheet (SXM4)"),
    "A100-80GB": Device(80, 19.5, 312, 2039, "NVIDIA A100 data sheet (SXM4)"),
    "H100": Device(80, 67, 989, 3350, "NVIDIA H100 data sheet (SXM5), half of the figures with sparsity"),
    "H200": Device(141, 67, 989, 4800, "NVIDIA H200 data sheet (SXM), half of the figures with sparsity"),
    "B200": Device(180, 75, 2250, 7700, "NVIDIA HGX B200 data sheet, half of the figures with sparsity"),
    "RTX-3090": Device(24, 35.6, 71, 936, "NVIDIA GA102 architecture paper, fp16 with fp32 sums"),
    "RTX-4090": Device(24, 82.6, 165.2, 1008, "NVIDIA Ada architecture paper, fp16 with fp32 sums"),
}


def device_called(name: str) -> str | None:
    """Returns the key of `DEVICES` that a name from torch or the user means. None if there is none."""
    squeezed = re.sub(r"[^a-z0-9]", "", name.lower())
    for key in DEVICES:
        model, _, size = key.lower().replace("rtx-", "rtx").partition("-")
        # An L40 is no L4.
        if re.search(rf"{model}(?!0)", squeezed) and (not size or size in squeezed):
            return key
    return "A100-80GB" if "a100" in squeezed else None


def listed_name(name: str) -> str:
    """Returns the name under which a device's speed is known: its key in `DEVICES`, else the name itself."""
    return device_called(name) or name


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware that a sweep runs on.

    Attributes:
      device: name of the GPU, as in `DEVICES` if it is listed. Without GPUs, name of the processor.
      nodes: machines with their CPUs and GPUs.
      memory_gib: memory of one GPU, or of the node if it has none. None if unknown.
    """

    device: str
    nodes: tuple[Node, ...]
    memory_gib: float | None = None

    @property
    def has_gpus(self) -> bool:
        """Returns whether trials that do not set a number of GPUs get one."""
        return any(node.gpus >= 1 for node in self.nodes)


#: Cores assumed for a machine given by its GPUs only: enough for any gang.
_MANY_CPUS = 10**6


def this_machine() -> Machine:
    """Returns the machine of this process, as a cluster of one node."""
    import torch

    cpus = float(usable_cpus())
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        memory_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        node = Node(cpus, float(torch.cuda.device_count()))
        return Machine(listed_name(name), (node,), memory_gib)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(processor(), (Node(cpus, 0.0),), memory_gib)


def described(text: str) -> Machine:
    """Returns the machine of a description by GPUs, `8xH100` or `A100-40GB`, or by cores, `64xcpu`.

    Its cores are assumed to be enough for its GPUs, and as fast as those of this machine.

    Raises:
      ValueError: the GPU is not in the table.
    """
    match = re.fullmatch(r"(?:(\d{1,6})\s*x\s*)?([a-z].*)", text.strip(), re.IGNORECASE)
    count, name = (int(match[1] or 1), match[2]) if match else (0, "")
    if name.lower() in ("cpu", "cpus") and count:
        return Machine(processor(), (Node(float(count), 0.0),))
    device = device_called(name)
    if device is None or count < 1:
        raise ValueError(
            f"must be COUNTxGPU, the GPU one of {', '.join(DEVICES)}, or COUNTxcpu; got {text!r}"
        )
    return Machine(device, (Node(_MANY_CPUS, float(count)),), DEVICES[device].memory_gib)
