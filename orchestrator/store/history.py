"""Measured speeds from earlier sweeps, which a plan bases its estimates on."""

from pathlib import Path

from orchestrator.cost.devices import listed_name
from orchestrator.cost.speed import Sample, samples_of
from orchestrator.store.folder import open_folder
from orchestrator.store.journal import FolderError
from trainables.io.code import CodeError


def past_samples(root: Path, newest: int | None = None) -> tuple[list[Sample], list[str]]:
    """Returns the measured speeds of the sweeps in a folder, and a notice for each unreadable sweep.

    Args:
      root: the folder that holds the sweep folders.
      newest: how many of the newest sweeps to read; all if None.
    """
    samples: list[Sample] = []
    notices = []
    found = sorted(root.glob("*/sweep.yaml"))
    if newest is not None:
        found = sorted(found, key=lambda path: path.stat().st_mtime)[-newest:]
    for path in found:
        try:
            folder = open_folder(path.parent)
        except FolderError as error:
            notices.append(f"skipped: {str(error).splitlines()[0]}")
            continue
        known = folder.record.get("machine", {})
        gpus = known.get("gpus") or []
        # Of epochs that do not tell theirs, because an earlier version recorded them.
        device = listed_name(gpus[0]) if gpus else known.get("processor", "")
        try:
            samples += samples_of(folder.plan, folder.records, device, bool(gpus))
        except CodeError:
            notices.append(
                f"skipped: {path.parent}: its networks are of code that is not run to read results"
            )
    return samples, notices
