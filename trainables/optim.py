"""Optimizers, what of a model decays, and the learning-rate schedule as a function of progress."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Discriminator, Field, Tag
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import nn
from torch.optim import Optimizer

from trainables.base import Frozen


class _Base(Frozen):
    lr: float = Field(gt=0, description="Peak learning rate, for a batch of `lr_batch_size`.")
    lr_batch_size: int | None = Field(
        None, gt=0, description="Batch size that `lr` is quoted for; left out, lr is used as it stands."
    )
    lr_scaling: Literal["linear", "sqrt"] = Field(
        "linear", description="How lr follows from lr_batch_size to batch_size."
    )
    weight_decay: float = Field(
        ge=0, description="Not on biases nor on gains of norms; on positions and class token, as the paper."
    )

    def peak_lr(self, batch_size: int) -> float:
        """The learning rate the optimizer gets at its peak."""
        if self.lr_batch_size is None:
            return self.lr
        ratio = batch_size / self.lr_batch_size
        return self.lr * (ratio if self.lr_scaling == "linear" else math.sqrt(ratio))

    def _groups(self, model: nn.Module) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = param_groups_weight_decay(model, self.weight_decay)
        assert sum(len(group["params"]) for group in groups) == sum(
            p.requires_grad for p in model.parameters()
        )
        return groups


class AdamW(_Base):
    """AdamW with PyTorch's decoupled decay: a step shrinks weights by lr times weight_decay."""

    name: Literal["adamw"] = "adamw"
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")

    def build(self, model: nn.Module, batch_size: int) -> Optimizer:
        """The optimizer of a model, at its peak learning rate."""
        return torch.optim.AdamW(self._groups(model), self.peak_lr(batch_size), (self.beta1, self.beta2))


class SGD(_Base):
    """SGD with Nesterov momentum; decay is added to the gradient."""

    name: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1, description="Share of the last step that is kept.")
    nesterov: bool = Field(True, description="Nesterov's form of momentum.")

    def build(self, model: nn.Module, batch_size: int) -> Optimizer:
        """The optimizer of a model, at its peak learning rate."""
        nesterov = self.nesterov and self.momentum > 0
        return torch.optim.SGD(
            self._groups(model), self.peak_lr(batch_size), momentum=self.momentum, nesterov=nesterov
        )


class Share(Frozen):
    """A part of the whole run, written as `10%`."""

    share: float = Field(ge=0, le=1, description="Part of the run.")


def _parse_percent(value: Any) -> Any:
    if isinstance(value, str) and value.endswith("%"):
        try:
            return {"share": float(value[:-1]) / 100}
        except ValueError:
            return value
    return value


#: A duration in epochs, or as a percentage of the run.
Duration = Annotated[
    Annotated[
        Annotated[float, Field(ge=0), Tag("number of epochs")] | Annotated[Share, Tag("part of the run")],
        Discriminator(
            lambda value: "part of the run" if isinstance(value, dict | Share) else "number of epochs"
        ),
    ],
    BeforeValidator(_parse_percent),
]


def in_epochs(duration: float | Share, epochs: int) -> float:
    """A duration of a run of `epochs`, in epochs."""
    return duration.share * epochs if isinstance(duration, Share) else duration


class Cosine(Frozen):
    """Half a cosine from the peak to a floor, with a linear warm-up laid over its start."""

    epochs: int = Field(gt=0, description="Length of the run.")
    warmup: Duration = Field(Share(share=0.1), description="Length of the warm-up: epochs, or as `10%`.")
    warmup_start: float = Field(0.1, ge=0, le=1, description="First learning rate over the peak one.")
    floor: float = Field(0.005, ge=0, le=1, description="Last learning rate over the peak one.")
    per: Literal["step", "epoch"] = Field("step", description="When lr changes; the paper's code: epoch.")

    def factor(self, epoch: float) -> float:
        """Learning rate over its peak after `epoch` epochs, a fraction where `per` is step.

        Source: pycls, `get_epoch_lr`: the warm-up multiplies the cosine, it does not precede it.
        """
        if self.per == "epoch":
            epoch = math.floor(epoch)
        factor = 0.5 * (1 + math.cos(math.pi * min(epoch / self.epochs, 1)))
        factor = (1 - self.floor) * factor + self.floor
        if epoch < (warmup := in_epochs(self.warmup, self.epochs)):
            done = epoch / warmup
            factor *= self.warmup_start * (1 - done) + done
        return factor
