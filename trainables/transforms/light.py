"""The settings of the light pipeline: small images, augmented on the device."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainables.base import Frozen

if TYPE_CHECKING:
    from trainables.context import Context
    from trainables.transforms.light_pipeline import LightPipeline


class Light(Frozen):
    """Augmentation of small images by shifts and mirroring. Images are decoded once and kept in memory."""

    name: Literal["light"] = "light"
    shift: float = Field(0.1, ge=0, lt=0.5, description="Largest shift either way, share of the image side.")
    flip: float = Field(0.0, ge=0, le=1, description="Probability of a left-right mirror image.")

    def pipeline(self, image_size: int, seed: int, context: "Context") -> "LightPipeline":
        """Builds the pipeline of one run. `seed` affects augmentation only."""
        from trainables.transforms.light_pipeline import LightPipeline

        return LightPipeline(self, image_size, seed, context)
