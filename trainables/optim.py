"""Optimizers, the parameters that decay, and the learning-rate schedule as a function of progress."""

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from trainables.base import Frozen

if TYPE_CHECKING:  # settings are read without torch
    from torch import nn
    from torch.optim import Optimizer


_INDEPENDENT = "With mup: weights of all widths decay alike, instead of as their scaled learning rate."


class _Base(Frozen):
    lr: float = Field(gt=0, le=1e30, description="Peak learning rate, for a batch of `lr_batch_size`.")
    lr_batch_size: int | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Batch size that `lr` is quoted for; left out, lr is used unchanged.",
    )
    lr_scaling: Literal["linear", "sqrt"] = Field(
        "linear", description="How lr follows from lr_batch_size to batch_size."
    )
    weight_decay: float = Field(
        ge=0,
        le=1e30,
        description="Not on biases nor on gains of norms; on positions and class token, as the paper.",
    )

    def peak_lr(self, batch_size: int) -> float:
        """Returns the peak learning rate of the optimizer for a batch size."""
        if self.lr_batch_size is None:
            return self.lr
        ratio = batch_size / self.lr_batch_size
        return self.lr * (ratio if self.lr_scaling == "linear" else math.sqrt(ratio))

    def build(self, model: "nn.Module", batch_size: int, outer: Collection[str]) -> "Optimizer":
        """The optimizer of a model, at its peak learning rate.

        Args:
          model: the network.
          batch_size: images per step.
          outer: parameters that embed or classify, as the model's family names them (`outer_names`).
        """
        raise NotImplementedError

    def _groups(self, model: "nn.Module") -> list[dict[str, Any]]:
        from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]

        # As timm's own training: what a network names itself does not decay, either.
        exempt: Any = getattr(model, "no_weight_decay", tuple)()
        groups: list[dict[str, Any]] = param_groups_weight_decay(
            model, self.weight_decay, no_weight_decay_list=exempt
        )
        assert sum(len(group["params"]) for group in groups) == sum(
            p.requires_grad for p in model.parameters()
        )
        return [part for group in groups for part in self._by_rate(group)]

    def _by_rate(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """Splits a group by the factor on the learning rate that a network gave its weights (`lr_scale`)."""
        parts: dict[float, list[Any]] = {}
        for parameter in group["params"]:
            parts.setdefault(getattr(parameter, "lr_scale", 1.0), []).append(parameter)
        if set(parts) <= {1.0}:
            return [group]
        independent = getattr(self, "independent_decay", False)
        return [
            group
            | {"params": parameters, "lr_scale": scale}
            # A step shrinks weights by lr times weight_decay.
            | {"weight_decay": group["weight_decay"] / (scale if independent else 1.0)}
            for scale, parameters in parts.items()
        ]


class AdamW(_Base):
    """AdamW with PyTorch's decoupled decay: a step shrinks weights by lr times weight_decay."""

    name: Literal["adamw"] = "adamw"
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    independent_decay: bool = Field(False, description=_INDEPENDENT)

    def build(self, model: "nn.Module", batch_size: int, outer: Collection[str]) -> "Optimizer":
        """Builds the optimizer of a model, at its peak learning rate. See `_Base.build`."""
        import torch

        return torch.optim.AdamW(self._groups(model), self.peak_lr(batch_size), (self.beta1, self.beta2))


class SGD(_Base):
    """SGD with Nesterov momentum; decay is added to the gradient."""

    name: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1, description="Share of the last step that is kept.")
    nesterov: bool = Field(True, description="Nesterov's form of momentum.")

    def build(self, model: "nn.Module", batch_size: int, outer: Collection[str]) -> "Optimizer":
        """Builds the optimizer of a model, at its peak learning rate. See `_Base.build`."""
        import torch

        nesterov = self.nesterov and self.momentum > 0
        return torch.optim.SGD(
            self._groups(model), self.peak_lr(batch_size), momentum=self.momentum, nesterov=nesterov
        )


class Lion(_Base):
    """Steps by the sign of an interpolated momentum, so that all steps have equal length; decays as AdamW.

    Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms",
    https://arxiv.org/abs/2302.06675, by timm. They advise an lr 3 to 10 times lower than AdamW's and a
    weight decay higher by the same factor.
    """

    name: Literal["lion"] = "lion"
    beta1: float = Field(0.9, ge=0, lt=1, description="Weight of the momentum in the step.")
    beta2: float = Field(0.99, ge=0, lt=1, description="Decay of the momentum.")
    independent_decay: bool = Field(False, description=_INDEPENDENT)

    def build(self, model: "nn.Module", batch_size: int, outer: Collection[str]) -> "Optimizer":
        """Builds the optimizer of a model, at its peak learning rate. See `_Base.build`."""
        from timm.optim import Lion as TimmLion  # type: ignore[attr-defined]

        optimizer: Optimizer = TimmLion(
            self._groups(model), self.peak_lr(batch_size), (self.beta1, self.beta2)
        )
        return optimizer


class LAMB(_Base):
    """Adam with the step of each tensor scaled to the norm of the tensor times lr.

    Source: You et al. 2020, "Large Batch Optimization for Deep Learning",
    https://arxiv.org/abs/1904.00962, by timm. Biases and gains do not decay and are not scaled, as in
    NVIDIA's code. The run's `clip_grad_norm` clips gradients; LAMB itself does not.
    """

    name: Literal["lamb"] = "lamb"
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(1e-6, gt=0, le=1, description="Added to the root of the second moment.")

    def build(self, model: "nn.Module", batch_size: int, outer: Collection[str]) -> "Optimizer":
        """Builds the optimizer of a model, at its peak learning rate. See `_Base.build`."""
        from timm.optim import Lamb  # type: ignore[attr-defined]

        optimizer: Optimizer = Lamb(
            self._groups(model),
            self.peak_lr(batch_size),
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            max_grad_norm=None,
        )
        return optimizer


class MuonAdamW(_Base):
    """Muon for the matrices inside the network, AdamW for the rest, under one learning rate.

    The step of a matrix is its momentum made orthogonal, scaled to the size of AdamW's steps. Convolutions
    count as matrices (out, in x kernel). Depthwise convolutions, the first layer, the head, positions, class
    token, biases and gains get AdamW.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the scale
    0.2 sqrt(max(out, in)) by Liu et al. 2025, https://arxiv.org/abs/2502.16982; by timm.
    """

    name: Literal["muon"] = "muon"
    momentum: float = Field(0.95, ge=0, lt=1, description="Decay of the momentum of the matrices.")
    nesterov: bool = Field(True, description="Nesterov's form of momentum for the matrices.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of AdamW's first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of AdamW's second moment.")

    def build(self, model: "nn.Module", batch_size: int, outer: Collection[str]) -> "Optimizer":
        """Builds the optimizer of a model, at its peak learning rate. See `_Base.build`."""
        from timm.optim import Muon  # type: ignore[attr-defined]

        matrices = {id(p) for name, p in model.named_parameters() if name not in outer and _is_matrix(p)}
        groups = []
        for group in self._groups(model):
            inner = [p for p in group["params"] if id(p) in matrices]
            outer = [p for p in group["params"] if id(p) not in matrices]
            # With nesterov, timm would use NAdamW for the rest. AdamW also needs its own epsilon.
            groups.append(group | {"params": outer, "use_fallback": True, "nesterov": False, "eps": 1e-8})
            groups.append(group | {"params": inner, "use_muon": True})
        optimizer: Optimizer = Muon(
            [group for group in groups if group["params"]],
            self.peak_lr(batch_size),
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_coefficients="original",
            adjust_lr_fn="match_rms_adamw",
            betas=(self.beta1, self.beta2),
        )
        return optimizer


def _is_matrix(parameter: "nn.Parameter") -> bool:
    # 3 input channels: the first layer. 1: depthwise, so not a matrix.
    is_thin = parameter.ndim == 4 and parameter.shape[1] in (1, 3)
    return parameter.ndim >= 2 and not is_thin


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
    """Converts a duration to epochs, for a run of `epochs`."""
    return duration.share * epochs if isinstance(duration, Share) else duration


class Cosine(Frozen):
    """Half a cosine from the peak to a floor, whose start is multiplied by a linear warm-up."""

    epochs: int = Field(gt=0, le=1_000_000, description="Length of the run.")
    warmup: Duration = Field(Share(share=0.1), description="Length of the warm-up: epochs, or as `10%`.")
    warmup_start: float = Field(0.1, ge=0, le=1, description="First learning rate over the peak one.")
    floor: float = Field(0.005, ge=0, le=1, description="Last learning rate over the peak one.")
    per: Literal["step", "epoch"] = Field("step", description="When lr changes; the paper's code: epoch.")

    def factor(self, epoch: float) -> float:
        """Learning rate over its peak after `epoch` epochs, which is fractional if `per` is step.

        Source: pycls, `get_epoch_lr`. The warm-up multiplies the cosine instead of preceding it.
        """
        if self.per == "epoch":
            epoch = math.floor(epoch)
        factor = 0.5 * (1 + math.cos(math.pi * min(epoch / self.epochs, 1)))
        factor = (1 - self.floor) * factor + self.floor
        if epoch < (warmup := in_epochs(self.warmup, self.epochs)):
            done = epoch / warmup
            factor *= self.warmup_start * (1 - done) + done
        return factor
