"""What a task has to say: its loss, its error, and how good a guess is.

Shape suffixes: K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:  # data sets name their task, so that this would be a circle
    from trainables.base import DataInfo


@dataclass(frozen=True, slots=True)
class Objective:
    """The number that a task is judged by: an error in percent, 0 at best and 100 at worst.

    Attributes:
      name: in keys, `top1_error` for example.
      term: in sentences, "top-1 error" for example.
      score: what people quote instead, 100 minus the error ("mIoU"); None where they quote the error.
    """

    name: str
    term: str
    score: str | None = None

    @property
    def label(self) -> str:
        """The text of axes and table heads."""
        return f"{self.term} (%)"


@dataclass(frozen=True, slots=True)
class Score:
    """The result of one evaluation.

    Attributes:
      loss: mean over what is learnt from, without label smoothing.
      error_pct: the error of the task's objective.
      extra: other numbers by name, which decide nothing: `iou/car`.
    """

    loss: float
    error_pct: float
    extra: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """What is learnt from a data set.

    Dimension 1 of the outputs of a network is the class. Targets have the other dimensions, or all of them
    where a target is a probability of each class.
    """

    @property
    def name(self) -> str:
        """The name by which model families say that they answer it."""

    @property
    def objective(self) -> Objective:
        """The error that decides."""

    def output_shape(
        self, num_inputs: int, input_shape: tuple[int, int, int], num_classes: int
    ) -> torch.Size:
        """The shape of the outputs for a batch of inputs of shape (C, H, W)."""

    def loss_sum(self, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The training loss, summed over the samples of a batch.

        Args:
          outputs: as the network gives them, possibly in half precision.
          targets: classes, or probabilities of each class.
          smoothing: probability that is given to all classes alike.
        """

    def new_totals(self, info: "DataInfo", device: torch.device) -> Tensor:
        """Zeros in float64, for `add`; the sum over ranks is the total of all ranks."""

    def add(self, totals: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch to the totals, in place; outputs are in single precision."""

    def score(self, totals: Tensor) -> Score:
        """The score that totals amount to."""

    def chance_error_pct(self, info: "DataInfo") -> float:
        """The error of guessing."""

    def guessing_loss(self, info: "DataInfo") -> float:
        """The mean loss of an answer that gives all classes the same probability."""
