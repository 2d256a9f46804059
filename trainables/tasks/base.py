"""The interface of tasks: loss, error, and the error of guessing.

Shape suffixes: K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # settings name their task, and are read without torch
    import torch
    from torch import Tensor

    from trainables.base import DataInfo


@dataclass(frozen=True, slots=True)
class Objective:
    """The number that judges a network on a task: an error in percent, 0 at best and 100 at worst.

    Attributes:
      name: its name in keys, for example `top1_error`.
      term: its name in sentences, for example "top-1 error".
      score: name of the usual score, which is 100 minus the error ("mIoU"). None if the error is usual.
    """

    name: str
    term: str
    score: str | None = None

    @property
    def label(self) -> str:
        """Text of axes and table headings."""
        return f"{self.term} (%)"


@dataclass(frozen=True, slots=True)
class Score:
    """The result of one evaluation.

    Attributes:
      loss: mean over the labelled elements (images or pixels), without label smoothing.
      error_pct: the error of the task's objective.
      extra: other numbers by name, which decide nothing, for example `iou/car`.
    """

    loss: float
    error_pct: float
    extra: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """The loss and error for a kind of label.

    Dimension 1 of the outputs of a network is the class. Targets have the other dimensions only, or all of
    them if they are probabilities of each class.
    """

    @property
    def name(self) -> str:
        """Name by which model families list the tasks that they support."""

    @property
    def objective(self) -> Objective:
        """The error that decides between runs."""

    def output_shape(
        self, num_inputs: int, input_shape: tuple[int, int, int], num_classes: int
    ) -> "torch.Size":
        """Returns the shape of the outputs for a batch of inputs of shape (C, H, W)."""

    def loss_sum(self, outputs: "Tensor", targets: "Tensor", smoothing: float) -> "Tensor":
        """Computes the training loss, summed over the samples of a batch.

        Args:
          outputs: outputs of the network, possibly in half precision.
          targets: classes, or probabilities of each class.
          smoothing: probability that is shared equally by all classes.
        """

    def new_totals(self, info: "DataInfo", device: "torch.device") -> "Tensor":
        """Returns zeros in float64 for `add`. Totals of several ranks are combined by their sum."""

    def add(self, totals: "Tensor", outputs: "Tensor", targets: "Tensor") -> None:
        """Adds a batch to the totals, in place. Outputs are in single precision."""

    def score(self, totals: "Tensor") -> Score:
        """Computes the score from the totals."""

    def chance_error_pct(self, info: "DataInfo") -> float:
        """Returns the error of guessing, in percent."""

    def guessing_loss(self, info: "DataInfo") -> float:
        """Returns the mean loss of a prediction that gives all classes the same probability."""
