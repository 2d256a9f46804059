"""What varies: domains, each a function from a quantile to a value."""

import math
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from trainables.base import Frozen


class Choice(Frozen):
    """One of the values listed, each equally likely."""

    choice: tuple[Any, ...] = Field(min_length=1, description="The values.")

    @property
    def num_levels(self) -> int | None:
        """How many values there are."""
        return len(self.choice)

    def at(self, quantile: float) -> Any:
        """The value at a quantile of [0, 1)."""
        return self.choice[min(int(quantile * len(self.choice)), len(self.choice) - 1)]

    def extremes(self) -> tuple[Any, ...]:
        """Values that must all be valid for every value to be."""
        return self.choice


class _Interval(Frozen):
    """Shared by the domains with two ends; both ends can be drawn."""

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high."""
        raise NotImplementedError

    @property
    def num_levels(self) -> int | None:
        """None: there are more than anyone counts."""
        return None

    def extremes(self) -> tuple[Any, ...]:
        """Values that must all be valid for every value to be."""
        return self.ends

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.ends
        if low > high:
            raise ValueError(f"low <= high must hold, got {low} and {high}")
        return self


class Uniform(_Interval):
    """A number between two ends."""

    uniform: tuple[float, float] = Field(description="Low and high.")

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high."""
        return self.uniform

    def at(self, quantile: float) -> float:
        """The value at a quantile of [0, 1]."""
        low, high = self.uniform
        # Rounding may lead a little past the end.
        return min(low + quantile * (high - low), high)


class LogUniform(_Interval):
    """A number above 0 between two ends, uniform in its logarithm."""

    log_uniform: tuple[float, float] = Field(description="Low and high, both above 0.")

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high."""
        return self.log_uniform

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.log_uniform[0] <= 0:
            raise ValueError(f"a log_uniform domain must lie above 0, got {list(self.log_uniform)}")
        return self

    def at(self, quantile: float) -> float:
        """The value at a quantile of [0, 1]."""
        low, high = self.log_uniform
        # Exactly the ends at 0 and 1, so that rounding never leaves the window.
        return min(max(low * math.exp(quantile * math.log(high / low)), low), high)


class IntRange(_Interval):
    """A whole number between two ends, each equally likely."""

    int_range: tuple[int, int] = Field(description="Low and high.")

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high."""
        return self.int_range

    @property
    def num_levels(self) -> int | None:
        """How many whole numbers there are."""
        return self.int_range[1] - self.int_range[0] + 1

    def at(self, quantile: float) -> int:
        """The value at a quantile of [0, 1]."""
        low, high = self.int_range
        return min(low + int(quantile * (high - low + 1)), high)


DOMAINS: tuple[type[Choice | Uniform | LogUniform | IntRange], ...] = (Choice, Uniform, LogUniform, IntRange)

#: The word that names a domain in a file is its one field.
DOMAIN_WORDS: tuple[str, ...] = tuple(word for domain in DOMAINS for word in domain.model_fields)


def _word(value: Any) -> str:
    words = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    return next((word for word in words if word in DOMAIN_WORDS), "unknown")


Domain = Annotated[
    Annotated[Choice, Tag("choice")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("log_uniform")]
    | Annotated[IntRange, Tag("int_range")],
    Discriminator(
        _word,
        custom_error_type="unknown_domain",
        custom_error_message=f"a domain is one of {{{', '.join(DOMAIN_WORDS)}}}, as in {{uniform: [0, 1]}}",
    ),
]
