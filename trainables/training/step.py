"""One optimizer step: the same code trains, is tried before a sweep, and is counted on fake tensors."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

#: Enters mixed precision, or nothing where all is fp32.
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class Learner:
    """The parts of a run that every optimizer step uses.

    Attributes:
      network: gives the outputs; with several workers, the `DistributedDataParallel` around the model.
      optimizer: holds the parameters of the network.
      scaler: scales the loss for fp16; a disabled one changes nothing.
      loss_sum: the sum of the losses of a batch, from its outputs and targets.
      autocast: enters mixed precision, or nothing where all is fp32.
      clip_grad_norm: the largest norm of the gradient; None does not clip.
    """

    network: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    loss_sum: Callable[[Tensor, Tensor], Tensor]
    autocast: Autocast
    clip_grad_norm: float | None = None


def training_step(learner: Learner, inputs: Tensor, targets: Tensor, lr: float, scale: float) -> Tensor:
    """Takes one optimizer step.

    Args:
      learner: what is trained, in place.
      inputs: a batch as the network gets it; mixing is done already.
      targets: of these inputs.
      lr: the learning rate of this step.
      scale: factor from the sum of the losses to the loss whose gradient is taken.

    Returns:
      The sum (not the mean) of the losses before the step.
    """
    optimizer, scaler = learner.optimizer, learner.scaler
    for group in optimizer.param_groups:
        group["lr"] = lr
    with learner.autocast():
        outputs = learner.network(inputs)
        loss_sum = learner.loss_sum(outputs, targets)
    loss = loss_sum * scale
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    if learner.clip_grad_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(learner.network.parameters(), learner.clip_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    return loss_sum.detach()
