"""Domains, which map a quantile to a value, and windows, which assign domains to arms and levels."""

import math
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from trainables.base import Frozen
from trainables.io.faults import nearest
from trainables.presets import leaves

Cell = tuple[tuple[str, str], ...]

#: Largest number of values in a list: more than any window needs. Every value is tried before anything runs.
MAX_VALUES = 1000


class Listed(Frozen):
    """Base of the domains that list their values. Each value is equally likely."""

    @property
    def values(self) -> tuple[Any, ...]:
        """The values, in the order of the file."""
        raise NotImplementedError

    @property
    def num_levels(self) -> int | None:
        """The number of values."""
        return len(self.values)

    def at(self, quantile: float) -> Any:
        """Returns the value at a quantile in [0, 1)."""
        return self.values[min(int(quantile * len(self.values)), len(self.values) - 1)]

    def extremes(self) -> tuple[Any, ...]:
        """Returns values that must all be valid for every value of the domain to be valid."""
        return self.values


class Choice(Listed):
    """One of the listed values, each equally likely. Their order has no meaning."""

    choice: tuple[Any, ...] = Field(
        min_length=1,
        max_length=MAX_VALUES,
        description="The values: numbers, words, or structures such as a model.",
        examples=[[16, 32], ["patchify", "conv"]],
    )

    @property
    def values(self) -> tuple[Any, ...]:
        """The values, in the order of the file."""
        return self.choice


class Ordinal(Listed):
    """One of the listed values, each equally likely. They are in a meaningful order, from small to large."""

    ordinal: tuple[Any, ...] = Field(
        min_length=1, max_length=MAX_VALUES, description="The values, in order.", examples=[[64, 128, 256]]
    )

    @property
    def values(self) -> tuple[Any, ...]:
        """The values, in order."""
        return self.ordinal


class _Interval(Frozen):
    """Base of the domains with two ends. Both ends can be drawn."""

    @property
    def ends(self) -> tuple[float, float]:
        """The low and the high end."""
        raise NotImplementedError

    @property
    def num_levels(self) -> int | None:
        """None, because a continuous domain has no list of values."""
        return None

    def extremes(self) -> tuple[Any, ...]:
        """Returns values that must all be valid for every value of the domain to be valid."""
        return self.ends

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.ends
        if low > high:
            raise ValueError(f"low <= high must hold, got {low} and {high}")
        if not abs(high - low) <= sys.float_info.max:
            raise ValueError("the ends are too far apart")
        return self


class Uniform(_Interval):
    """A number between two ends, both included."""

    uniform: tuple[float, float] = Field(description="Low and high.", examples=[[0, 0.3]])

    @property
    def ends(self) -> tuple[float, float]:
        """The low and the high end."""
        return self.uniform

    def at(self, quantile: float) -> float:
        """Returns the value at a quantile in [0, 1]."""
        low, high = self.uniform
        # Rounding may exceed the upper end.
        return min(low + quantile * (high - low), high)


class LogUniform(_Interval):
    """A number above 0 between two ends, uniform in its logarithm."""

    log_uniform: tuple[float, float] = Field(
        description="Low and high, both above 0.", examples=[[2.5e-4, 8e-3]]
    )

    @property
    def ends(self) -> tuple[float, float]:
        """The low and the high end."""
        return self.log_uniform

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.log_uniform[0] <= 0:
            raise ValueError(f"a log_uniform domain must be above 0, got {list(self.log_uniform)}")
        if not math.isfinite(self.log_uniform[1] / self.log_uniform[0]):
            raise ValueError("the ends are too far apart")
        return self

    def at(self, quantile: float) -> float:
        """Returns the value at a quantile in [0, 1]."""
        low, high = self.log_uniform
        # Clipping keeps rounding from leaving the window: quantiles 0 and 1 give exactly the ends.
        return min(max(low * math.exp(quantile * math.log(high / low)), low), high)


class IntRange(_Interval):
    """A whole number between two ends, each equally likely."""

    int_range: tuple[int, int] = Field(description="Low and high.", examples=[[2, 12]])

    @property
    def ends(self) -> tuple[float, float]:
        """The low and the high end."""
        return self.int_range

    @property
    def num_levels(self) -> int | None:
        """The number of whole numbers in the range."""
        return self.int_range[1] - self.int_range[0] + 1

    def at(self, quantile: float) -> int:
        """Returns the value at a quantile in [0, 1]."""
        low, high = self.int_range
        return min(low + int(quantile * (high - low + 1)), high)


DOMAINS: tuple[type[Choice | Ordinal | Uniform | LogUniform | IntRange], ...] = (
    Choice,
    Ordinal,
    Uniform,
    LogUniform,
    IntRange,
)

#: Words that name a domain in a file. Each is the one field of its class.
DOMAIN_WORDS: tuple[str, ...] = tuple(word for domain in DOMAINS for word in domain.model_fields)

#: The rule that a value breaks if it is not a domain.
WANTED = f"a domain is one of {{{', '.join(DOMAIN_WORDS)}}}, as in {{uniform: [0, 1]}}"


def _word(value: Any) -> str:
    words = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    return next((word for word in words if word in DOMAIN_WORDS), "unknown")


Domain = Annotated[
    Annotated[Choice, Tag("choice")]
    | Annotated[Ordinal, Tag("ordinal")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("log_uniform")]
    | Annotated[IntRange, Tag("int_range")],
    Discriminator(_word, custom_error_type="unknown_domain", custom_error_message=WANTED),
]


def _flat(value: Any) -> Any:
    """Flattens nested mappings to dotted paths. Refuses a path that is set twice."""
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for path, leaf in leaves(value):
        if path in flat:
            raise ValueError(f"`{path}` is set twice, once dotted and once nested")
        flat[path] = leaf
    return flat


#: Settings by dotted path. Nested mappings are flattened.
Settings = Annotated[dict[str, Any], BeforeValidator(_flat)]


class Window(Frozen):
    """The window of one parameter: one domain, or one per arm or level of a cell factor.

    A name may join several by slashes: the domain of `vit_p/sgd` applies where both hold.

    A window may also have `when`, the settings that the parameter depends on, and `zip`, the parameter whose
    quantile it shares.
    """

    everywhere: Domain | None = Field(None, description="The domain in every arm and cell.")
    by_name: dict[str, Domain] = Field(default_factory=dict, description="Domains by arm or level.")
    when: Settings = Field(
        default_factory=dict,
        description="The parameter is drawn only where these settings have this or one of these values.",
        examples=[{"optim.name": "sgd"}],
    )
    zip: str | None = Field(
        None,
        description="Another varied path: both take the same quantile at every point.",
        examples=["model.width"],
    )

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise ValueError(WANTED)
        if "everywhere" in data or "by_name" in data:
            return data
        beside = {key: data[key] for key in ("when", "zip") if key in data}
        domains = {key: value for key, value in data.items() if key not in beside}
        # A name of an arm or level maps to a mapping. A key with a list was meant as a domain.
        if any(word in DOMAIN_WORDS for word in domains):
            return {"everywhere": domains, **beside}
        if not domains or not all(isinstance(value, Mapping) for value in domains.values()):
            close = next((word for key in domains if (word := nearest(key, DOMAIN_WORDS))), "")
            raise ValueError(WANTED + (f"; did you mean `{close}`?" if close else ""))
        return {"by_name": domains, **beside}

    def plain(self) -> dict[str, Any]:
        """Returns the window in the form of a sweep file."""
        domains = {name: domain.model_dump(mode="json") for name, domain in self.by_name.items()}
        whole = self.everywhere.model_dump(mode="json") if self.everywhere is not None else domains
        return whole | ({"when": self.when} if self.when else {}) | ({"zip": self.zip} if self.zip else {})

    def domains(self) -> list[Domain]:
        """Returns all domains of the window."""
        return [self.everywhere] if self.everywhere is not None else list(self.by_name.values())

    def domain(self, arm: str, cell: Cell) -> Domain | None:
        """Returns the domain that applies in one arm and cell. None if the parameter does not vary there."""
        if self.everywhere is not None:
            return self.everywhere
        here = {arm, *(level for _, level in cell)}
        return next((self.by_name[name] for name in self.by_name if here.issuperset(name.split("/"))), None)
