"""Model FLOPs utilization (MFU): the share of a GPU's arithmetic that goes into training the model."""

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.cost.devices import DEVICES, device_called
from orchestrator.trials.gang import Gang
from orchestrator.trials.trial import TrialCost
from trainables.base import DeviceUse, Epoch


def peak_flops(use: DeviceUse) -> float | None:
    """Returns the multiply-adds per second of one GPU at its data sheet's peak for the precision of a run.

    None for a CPU, a GPU that is not in `DEVICES`, and matrix products in TF32, which are in no table here.
    """
    key = device_called(use.name) if use.is_gpu else None
    if key is None:
        return None
    if use.dtype != "fp32":
        return DEVICES[key].half_tflops * 1e12 / 2
    return None if "matmul" in use.tf32 else DEVICES[key].fp32_tflops * 1e12 / 2


@dataclass(slots=True)
class Utilization:
    """Multiply-adds that training needed, and those that its GPUs could have made meanwhile.

    A training step counts as three forward passes, whatever is computed twice, as in Chowdhery et al. 2022,
    "PaLM", appendix B, https://arxiv.org/abs/2204.02311. Evaluation counts in neither.
    """

    needed: float = 0.0
    possible: float = 0.0

    def count(self, row: Epoch, use: DeviceUse | None, cost: TrialCost, gang: Gang) -> None:
        """Adds an epoch of a trial, unless the peak of its device is unknown."""
        peak = None if use is None else peak_flops(use)
        if peak is not None and row.train_seconds > 0:
            self.needed += cost.train_flops / cost.epochs
            self.possible += row.train_seconds * gang.workers * (gang.gpus or 1.0) * peak

    @property
    def mfu_pct(self) -> float | None:
        """The share in percent. None without an epoch on a known GPU."""
        return 100 * self.needed / self.possible if self.possible else None


def mfu_pct(rows: Iterable[tuple[Epoch, DeviceUse | None]], cost: TrialCost, gang: Gang) -> float | None:
    """Returns the utilization over some epochs of a trial, each with its device."""
    total = Utilization()
    for row, use in rows:
        total.count(row, use, cost, gang)
    return total.mfu_pct
