"""What a paper says of the arms of a sweep, so that it can stand beside what the sweep finds."""

from collections.abc import Collection
from typing import Literal, Self

from pydantic import Field, model_validator

from trainables.base import Frozen

#: What a paper may have claimed of two arms: a verdict of the report, by its name there.
ClaimMeasure = Literal["area_common", "within_common_bar", "error", "optimizer_gap", "training_length_gap"]


class PaperValues(Frozen):
    """Errors that a paper prints, by cell and arm."""

    source: str = Field(min_length=1, description="Where it prints them, as `table 2`.")
    top1_error_pct: dict[str, dict[str, float]] = Field(
        description="By the cell's name in the plan, then by arm; what has no number is left out."
    )


class Claim(Frozen):
    """One arm is better than another, says the paper."""

    says: str = Field(min_length=1, description="In its words, or nearly.")
    source: str = Field(min_length=1, description="Where, as `section 5.3, figure 5`.")
    measure: ClaimMeasure = Field(description="By what.")
    better: str = Field(description="The better arm.")
    than: str = Field(description="The other one.")
    why_not: str = Field("", description="Where a sweep has not found so, why we think so.")

    @model_validator(mode="after")
    def _two_arms(self) -> Self:
        if self.better == self.than:
            raise ValueError(f"better and than must be two arms, got {self.better} twice")
        return self


class PaperSays(Frozen):
    """What a paper says; nothing of it decides anything."""

    values: tuple[PaperValues, ...] = Field((), description="Numbers, for a table of the report.")
    claims: tuple[Claim, ...] = Field((), description="Verdicts, each set beside the sweep's.")

    def unknown_names(self, cells: Collection[str], arms: Collection[str]) -> list[tuple[str, str]]:
        """Cells and arms it names that the sweep does not have, each with its place in the file."""
        found: list[tuple[str, str]] = []
        for index, values in enumerate(self.values):
            place = f"paper.values.{index}.top1_error_pct"
            for cell, by_arm in values.top1_error_pct.items():
                found += [(place, cell)] if cell not in cells else []
                found += [(f"{place}.{cell}", arm) for arm in by_arm if arm not in arms]
        for index, claim in enumerate(self.claims):
            places = {"better": claim.better, "than": claim.than}
            found += [(f"paper.claims.{index}.{key}", arm) for key, arm in places.items() if arm not in arms]
        return found
