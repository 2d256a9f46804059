"""One optimizer step, shared by training, the dry run before a sweep, and the footprint on fake tensors."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

#: Returns a context of mixed precision, or an empty context if everything is fp32.
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class Learner:
    """The parts of a run that every optimizer step uses.

    Attributes:
      network: the model, or with several workers the `DistributedDataParallel` around it.
      optimizer: holds the parameters of the network.
      scaler: scales the loss for fp16; a disabled one changes nothing.
      loss_sum: computes the sum of the losses of a batch from its outputs and targets.
      autocast: returns a context of mixed precision, or an empty context if everything is fp32.
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
      learner: the parts of the run, which are trained in place.
      inputs: a batch for the network, after mixing.
      targets: the targets of these inputs.
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
