"""The settings of the paper's ImageNet pipeline: images decoded and augmented one at a time."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from trainables.base import Frozen

if TYPE_CHECKING:
    from trainables.context import Context
    from trainables.transforms.imagenet_pipeline import PaperPipeline


class Paper(Frozen):
    """The paper's ImageNet recipe: random resized crop, mirror, AutoAugment, PCA colour jitter."""

    name: Literal["paper"] = "paper"
    min_area: float = Field(0.08, gt=0, le=1, description="Smallest crop, share of the image's area.")
    flip: float = Field(0.5, ge=0, le=1, description="Probability of a left-right mirror image.")
    auto_augment: bool = Field(True, description="AutoAugment's ImageNet policy, 25 sub-policies.")
    rand_augment: str | None = Field(
        None,
        pattern=r"^rand(-([mnpw][0-9.]+|mstd[0-9.]+|mmax[0-9.]+|inc[01]))*$",
        description="RandAugment by timm's words, DeiT's are rand-m9-mstd0.5-inc1; needs auto_augment false.",
    )
    erasing: float = Field(
        0.0, ge=0, le=1, description="Probability that a rectangle becomes noise; DeiT: 0.25."
    )
    repeats: int = Field(
        1,
        gt=0,
        le=100,
        description="Augmented copies of an image in a row; an epoch has 1/repeats of the images.",
    )
    pca_std: float = Field(
        0.1, ge=0, le=10, description="AlexNet colour jitter along ImageNet's colour axes."
    )
    eval_resize: float = Field(
        256 / 224, ge=1, le=4, description="Shorter side over image_size at evaluation."
    )

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        if self.rand_augment is not None and self.auto_augment:
            raise ValueError("auto_augment and rand_augment are two policies, set auto_augment to false")
        return self

    def pipeline(self, image_size: int, seed: int, context: "Context") -> "PaperPipeline":
        """Builds the pipeline of one run. `seed` affects augmentation only."""
        from trainables.transforms.imagenet_pipeline import PaperPipeline

        return PaperPipeline(self, image_size, seed, context)
