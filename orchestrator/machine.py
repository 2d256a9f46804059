"""What this machine is, what it was seen to do, and what a person means by `--on 8xH100`."""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from orchestrator.cost import (
    DEVICES,
    Machine,
    Rates,
    Sample,
    ShapeTable,
    device_called,
    estimate,
    planned,
    samples_of,
)
from orchestrator.folder import open_folder, processor, save_planned
from orchestrator.journal import FolderError
from orchestrator.preflight import Checked, samples_of_steps
from orchestrator.trials.gang import Node
from orchestrator.trials.trial import Plan
from trainables.profiling.footprint import probe

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


#: Sweeps beside a new one whose rows its plan goes by, the newest: to read large ones takes seconds each.
_NEWEST = 3

#: Shapes that are counted for the record at the start of a run; each takes up to a second.
MAX_RECORDED_SHAPES = 64


def record_plan(folder: Path, plan: Plan, nodes: Sequence[Node], checked: Sequence[Checked]) -> bool:
    """Writes into a sweep's folder what it is expected to cost, for the report; before the first trial runs.

    Args:
      folder: of the sweep.
      plan: the sweep.
      nodes: what it is to run on.
      checked: what its preflight has run.

    Returns:
      Whether it has; not of a sweep of more than `MAX_RECORDED_SHAPES` shapes.
    """
    if len(ShapeTable(plan).groups) > MAX_RECORDED_SHAPES:
        return False
    here = this_machine()
    # GPUs of other machines have a name that is not known here.
    device = "GPU" if any(node.gpus for node in nodes) and not here.has_gpus else here.device
    machine = Machine(device, tuple(nodes), here.memory_gib)
    samples, _ = past_samples(folder.parent, newest=_NEWEST)
    samples += samples_of_steps(plan, checked, machine.device, nodes)
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    save_planned(folder, planned(plan, estimate(plan, machine, samples), made))
    return True


def past_samples(root: Path, newest: int | None = None) -> tuple[list[Sample], list[str]]:
    """What the sweeps under a folder measured, all or the newest; and which of them cannot be read."""
    samples: list[Sample] = []
    notices = []
    found = sorted(root.glob("*/sweep.yaml"))
    if newest is not None:
        found = sorted(found, key=lambda path: path.stat().st_mtime)[-newest:]
    for path in found:
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
