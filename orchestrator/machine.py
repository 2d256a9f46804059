"""What this machine is, what it was seen to do, and what a person means by `--on 8xH100`."""

import os
import re
from pathlib import Path

import torch

from orchestrator.cost import DEVICES, Machine, Rates, Sample, device_called, samples_of
from orchestrator.folder import open_folder, processor
from orchestrator.gang import Node
from orchestrator.journal import FolderError
from trainables.footprint import probe

#: Cores of a machine that nobody has described: enough for any gang.
_MANY_CPUS = 10**6


def this_machine() -> Machine:
    """The machine that this runs on, as a cluster of one node."""
    cpus = float(os.cpu_count() or 1)
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        memory_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        node = Node(cpus, float(torch.cuda.device_count()))
        return Machine(device_called(name) or name, (node,), memory_gib)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(processor(), (Node(cpus, 0.0),), memory_gib)


def described(text: str) -> Machine:
    """A machine by how many and which GPUs: `8xH100`, `A100-40GB`; or by its cores: `64xcpu`.

    Its cores are taken to be enough for its GPUs; cores are taken to be as fast as those here.

    Raises:
      ValueError: the GPU is not in the table.
    """
    match = re.fullmatch(r"(?:(\d+)\s*x\s*)?(.+)", text.strip())
    assert match is not None or not text.strip()
    count, name = (int(match[1] or 1), match[2]) if match else (0, "")
    if name.lower() in ("cpu", "cpus"):
        return Machine(processor(), (Node(float(count), 0.0),))
    device = device_called(name)
    if device is None or count < 1:
        raise ValueError(
            f"must be COUNTxGPU, the GPU one of {', '.join(DEVICES)}, or COUNTxcpu; got {text!r}"
        )
    return Machine(device, (Node(_MANY_CPUS, float(count)),), DEVICES[device].memory_gib)


def past_samples(root: Path) -> tuple[list[Sample], list[str]]:
    """What the sweeps under a folder measured, and which of them cannot be read."""
    samples: list[Sample] = []
    notices = []
    for path in sorted(root.glob("*/sweep.yaml")):
        try:
            folder = open_folder(path.parent)
        except FolderError as error:
            notices.append(f"passed over: {str(error).splitlines()[0]}")
            continue
        known = folder.record.get("machine", {})
        gpus = known.get("gpus") or []
        device = (device_called(gpus[0]) or gpus[0]) if gpus else known.get("processor", "")
        samples += samples_of(folder.plan, folder.records, device, bool(gpus))
    return samples, notices


def probe_rates() -> Rates:
    """What a core of this machine takes, by a second of arithmetic."""
    return Rates(*probe())
