"""Mixup and CutMix."""

from typing import TYPE_CHECKING

from pydantic import Field

from trainables.base import Frozen

if TYPE_CHECKING:  # settings are read without torch
    from torch import Tensor


class Mixup(Frozen):
    """Mixup or CutMix, chosen at random for each batch, with one mixing weight per batch and rank."""

    mixup_alpha: float = Field(0.8, ge=0, le=1000, description="Beta parameter of mixup; 0 switches it off.")
    cutmix_alpha: float = Field(
        1.0, ge=0, le=1000, description="Beta parameter of CutMix; 0 switches it off."
    )

    def apply(
        self, images_BCHW: "Tensor", labels_B: "Tensor", num_classes: int, seed: int
    ) -> "tuple[Tensor, Tensor]":
        """Returns mixed images, and labels as class probabilities of shape (B, K), all decided by `seed`."""
        import torch
        from torchvision.transforms import v2

        choices = [
            kind(alpha=alpha, num_classes=num_classes)
            for kind, alpha in ((v2.MixUp, self.mixup_alpha), (v2.CutMix, self.cutmix_alpha))
            if alpha > 0
        ]
        if not choices:
            return images_BCHW, labels_B
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            mixed: tuple[Tensor, Tensor] = v2.RandomChoice(choices)(images_BCHW, labels_B)
        return mixed
