"""One optimizer step, shared by training, the dry run before a sweep, and the footprint on fake tensors."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
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


def num_parts(rows: int, micro_batch: int | None) -> int:
    """Returns in how many parts a worker computes so many images, each of at most `micro_batch`."""
    return 1 if micro_batch is None else math.ceil(rows / micro_batch)


def training_step(
    learner: Learner, inputs: Tensor, targets: Tensor, lr: float, scale: float, parts: int = 1
) -> Tensor:
    """Takes one optimizer step.

    Args:
      learner: the parts of the run, which are trained in place.
      inputs: a batch for the network, after mixing.
      targets: the targets of these inputs.
      lr: the learning rate of this step.
      scale: factor from the sum of the losses to the loss whose gradient is taken.
      parts: in how many parts the batch is computed. Their gradients are summed, so that the step is that of
        the whole batch, but for batch norm, which normalises each part by itself, and for the draws of
        stochastic depth.

    Returns:
      The sum (not the mean) of the losses before the step.
    """
    optimizer, scaler = learner.optimizer, learner.scaler
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    optimizer.zero_grad(set_to_none=True)
    loss_sums = [
        _add_gradients(learner, *part, scale, number == parts)
        for number, part in enumerate(
            zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True), start=1
        )
    ]
    if learner.clip_grad_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(learner.network.parameters(), learner.clip_grad_norm)
    scaler.step(optimizer)
    scaler.update()
    return loss_sums[0] if parts == 1 else torch.stack(loss_sums).sum()


def _add_gradients(learner: Learner, inputs: Tensor, targets: Tensor, scale: float, is_last: bool) -> Tensor:
    """Adds the gradients of a part of a batch, and returns its loss. Workers exchange those of the last."""
    network = learner.network
    waiting: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if isinstance(network, DistributedDataParallel) and not is_last:
        waiting = network.no_sync()
    with waiting:
        with learner.autocast():
            outputs = network(inputs)
            loss_sum = learner.loss_sum(outputs, targets)
        learner.scaler.scale(loss_sum * scale).backward()  # type: ignore[no-untyped-call]
    return loss_sum.detach()
