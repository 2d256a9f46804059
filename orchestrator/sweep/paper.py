"""Results and claims of a paper about the arms of a sweep, to compare with those of the sweep."""

from collections.abc import Collection
from typing import Literal, Self

from pydantic import Field, model_validator

from trainables.base import Frozen

#: Quantities that a claim may be about, by the names of the report's verdicts.
ClaimMeasure = Literal["area_common", "within_common_bar", "error", "optimizer_gap", "training_length_gap"]


class PaperValues(Frozen):
    """Errors that a paper reports, by cell and arm."""

    source: str = Field(min_length=1, description="Place in the paper, such as `table 2`.")
    top1_error_pct: dict[str, dict[str, float]] = Field(
        description="Error by the cell's name in the plan, then by arm; leave out what has no number."
    )


class Claim(Frozen):
    """A claim of a paper that one arm is better than another."""

    says: str = Field(min_length=1, description="The claim, in the paper's words or close to them.")
    source: str = Field(min_length=1, description="Place in the paper, such as `section 5.3, figure 5`.")
    measure: ClaimMeasure = Field(description="The quantity that is compared.")
    better: str = Field(description="The better arm.")
    than: str = Field(description="The other arm.")
    why_not: str = Field("", description="Likely reason why a sweep does not reproduce the claim.")

    @model_validator(mode="after")
    def _two_arms(self) -> Self:
        if self.better == self.than:
            raise ValueError(f"better and than must be two arms, got {self.better} twice")
        return self


class PaperSays(Frozen):
    """Results and claims of a paper. They decide nothing in the sweep."""

    values: tuple[PaperValues, ...] = Field((), description="Errors, for a table of the report.")
    claims: tuple[Claim, ...] = Field((), description="Claims, each shown next to the sweep's verdict.")

    def unknown_names(self, cells: Collection[str], arms: Collection[str]) -> list[tuple[str, str]]:
        """Returns cells and arms that the sweep does not have, each with its place in the file."""
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
