"""Classification: one class for every image, judged by the top-1 error.

Shape suffixes: B batch, K classes.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainables.tasks.base import Objective, Score

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainables.base import DataInfo


@dataclass(frozen=True)
class Classification:
    """One class for every image. The totals are the loss, the number of errors, and the number of images."""

    name: ClassVar[str] = "classification"
    objective: ClassVar[Objective] = Objective("top1_error", "top-1 error")

    def output_shape(
        self, num_inputs: int, input_shape: tuple[int, int, int], num_classes: int
    ) -> "torch.Size":
        """Returns (B, K), for any shape of the images."""
        import torch

        return torch.Size((num_inputs, num_classes))

    def loss_sum(self, outputs: "Tensor", targets: "Tensor", smoothing: float) -> "Tensor":
        """Computes the cross-entropy, summed over the batch."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs.float(), targets, reduction="sum", label_smoothing=smoothing)

    def new_totals(self, info: "DataInfo", device: "torch.device") -> "Tensor":
        """Returns three zeros."""
        import torch

        return torch.zeros(3, device=device, dtype=torch.float64)

    def add(self, totals: "Tensor", outputs: "Tensor", targets: "Tensor") -> None:
        """Adds a batch. The predicted class is that of the largest output."""
        from torch.nn.functional import cross_entropy

        totals[0] += cross_entropy(outputs, targets, reduction="sum").double()
        totals[1] += (outputs.argmax(1) != targets).sum()
        totals[2] += len(targets)

    def score(self, totals: "Tensor") -> Score:
        """Returns the mean cross-entropy and the share of errors in percent."""
        loss, wrong = (totals[:2] / totals[2]).tolist()
        return Score(loss, 100 * wrong)

    def chance_error_pct(self, info: "DataInfo") -> float:
        """Returns the least error in percent of an answer that is the same for all images."""
        return 100 * (1 - (info.majority_share or 1 / info.num_classes))

    def guessing_loss(self, info: "DataInfo") -> float:
        """Returns ln(classes), which smoothing and mixing do not change."""
        return math.log(info.num_classes)
