"""What this machine is, what it was seen to do, and what a person means by `--on 8xH100`."""

import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cost.actual import planned
from orchestrator.cost.devices import Machine, device_called, this_machine
from orchestrator.cost.estimate import estimate
from orchestrator.cost.shapes import ShapeTable
from orchestrator.cost.speed import Sample, samples_of
from orchestrator.execution.preflight import Checked, samples_of_steps
from orchestrator.store.folder import open_folder, save_planned
from orchestrator.store.journal import FolderError
from orchestrator.trials.gang import Node
from orchestrator.trials.trial import Plan

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
