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
    """The live objects and values that a run needs to continue from any step; `save` writes them.

    There are no generator states, because every random number is a function of seeds, epoch and step. Nothing
    depends on the number of workers, so a different number of workers may continue.

    Attributes:
      model, optimizer, scaler, ema: the trained parts, with the buffers of rank 0.
      run: the identity of the run.
      epoch: epochs finished and evaluated.
      step: optimizer steps taken in the current epoch.
      loss_sums: each rank's sum of losses over these steps.
      train_seconds: duration of these steps.
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
        """Returns the state as tensors and plain values only, so that it loads without unpickling code."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    @property
    def evaluated(self) -> nn.Module:
        """The network whose error counts: the average if there is one, else the model."""
        return self.ema.module if self.ema else self.model

    def weights_digest(self) -> str:
        """Returns 16 hexadecimal digits that change with any bit of the evaluated weights."""
        digest = hashlib.sha256()
        for name, tensor in self.evaluated.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, file: BinaryIO) -> None:
        """Writes a checkpoint that `load` reads."""
        torch.save(self.content(), file)

    def save_weights(self, file: IO[bytes]) -> None:
        """Writes the evaluated weights alone, in the format of `save`, for another run to start from."""
        torch.save({"run": self.run, "model": self.evaluated.state_dict(), "ema": None}, file)

    def load(self, file: BinaryIO) -> None:
        """Restores a state that `save` wrote."""
        self.restore(torch.load(file, map_location="cpu", weights_only=True))

    def restore(self, content: dict[str, Any]) -> None:
        """Restores a state from its `content`.

        Raises:
          Invalid: the content is of another run, or does not fit.
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
