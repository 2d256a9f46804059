"""The state of a training run between two epochs."""

import hashlib
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import torch
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import nn
from torch.optim import Optimizer

from trainables.base import Invalid


@dataclass
class State:
    """All that a run needs to go on from any step, by reference; `save` copies it out.

    No generator states: every random number is a function of seeds, epoch and step. Nothing of it depends on
    the number of workers, either, so another number of them may go on.

    Attributes:
      model, optimizer, scaler, ema: what is trained, with the buffers of rank 0.
      run: the identity of the run this is a state of.
      epoch: epochs finished and evaluated.
      step: optimizer steps taken since.
      loss_sums: each rank's sum of losses over these steps.
      train_seconds: what these steps took.
      dead_epochs: finished epochs in a row without learning.
      error_pct: the error after the last finished epoch.
    """

    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    run: str = ""
    epoch: int = 0
    step: int = 0
    loss_sums: tuple[float, ...] = ()
    train_seconds: float = 0.0
    dead_epochs: int = 0
    error_pct: float = 0.0

    def content(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it loads without unpickling code."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    @property
    def evaluated(self) -> nn.Module:
        """The network whose error counts: the average where there is one."""
        return self.ema.module if self.ema else self.model

    def weights_digest(self) -> str:
        """16 hexadecimal digits that change with any bit of the evaluated weights."""
        digest = hashlib.sha256()
        for name, tensor in self.evaluated.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, file: BinaryIO) -> None:
        """Writes a checkpoint that `load` reads."""
        torch.save(self.content(), file)

    def save_weights(self, file: IO[bytes]) -> None:
        """Writes the evaluated weights alone, in the form of `save`: another run can start from them."""
        torch.save({"run": self.run, "model": self.evaluated.state_dict(), "ema": None}, file)

    def load(self, file: BinaryIO) -> None:
        """Takes up what `save` wrote."""
        self.restore(torch.load(file, map_location="cpu", weights_only=True))

    def restore(self, content: dict[str, Any]) -> None:
        """Takes up a `content`.

        Raises:
          Invalid: it is of another run, or does not fit.
        """
        if content.get("run") != self.run:
            raise Invalid("the checkpoint is of a run with other settings or other data")
        try:
            self.model.load_state_dict(content["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(content["ema"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
            for name in _PLAIN:
                setattr(self, name, content[name])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise Invalid(f"the checkpoint does not fit: {str(error).splitlines()[0]}") from error


#: The fields of a state that are plain values.
_PLAIN = ("run", "epoch", "step", "loss_sums", "train_seconds", "dead_epochs", "error_pct")
