"""One class for every image, judged by the top-1 error.

Shape suffixes: B batch, K classes.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainables.tasks.base import Objective, Score

if TYPE_CHECKING:
    from trainables.base import DataInfo


@dataclass(frozen=True)
class Classification:
    """One class for every image; totals are the loss, the wrong answers and the answers."""

    name: ClassVar[str] = "classification"
    objective: ClassVar[Objective] = Objective("top1_error", "top-1 error")

    def output_shape(
        self, num_inputs: int, input_shape: tuple[int, int, int], num_classes: int
    ) -> torch.Size:
        """(B, K), whatever the image."""
        return torch.Size((num_inputs, num_classes))

    def loss_sum(self, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The cross-entropy."""
        return cross_entropy(outputs.float(), targets, reduction="sum", label_smoothing=smoothing)

    def new_totals(self, info: "DataInfo", device: torch.device) -> Tensor:
        """Three zeros."""
        return torch.zeros(3, device=device, dtype=torch.float64)

    def add(self, totals: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch; the answer is the class of the largest output."""
        totals[0] += cross_entropy(outputs, targets, reduction="sum").double()
        totals[1] += (outputs.argmax(1) != targets).sum()
        totals[2] += len(targets)

    def score(self, totals: Tensor) -> Score:
        """The mean cross-entropy, and the share of wrong answers."""
        loss, wrong = (totals[:2] / totals[2]).tolist()
        return Score(loss, 100 * wrong)

    def chance_error_pct(self, info: "DataInfo") -> float:
        """The error of an answer that any class is as likely to be."""
        return 100 * (1 - 1 / info.num_classes)

    def guessing_loss(self, info: "DataInfo") -> float:
        """ln(classes), with or without smoothing and mixing."""
        return math.log(info.num_classes)
