"""Designs of experiments: which points of the unit cube are tried.

A random or Sobol design is a pure function: quantile i of a parameter depends only on the seed, the
parameter's name and i. So a longer sweep begins with the shorter one. Adding a parameter keeps the values of
the others. Two arms that share the parameters share the points.

Points of one scrambled Sobol sequence depend on each other, which spreads them evenly. So their spread does
not show how well their mean is known; only another scramble can. A design of several scrambles has blocks of
points that are independent of each other.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import scipy
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from trainables.base import Frozen, derive_seed

#: Number of values of each parameter. None for a continuous parameter.
Levels = Mapping[str, int | None]
Quantiles = dict[str, NDArray[np.float64]]


class _Drawn(Frozen):
    #: Whether a longer design begins with the shorter one.
    extendable: ClassVar[bool] = True
    #: What the report calls the points.
    words: ClassVar[str]

    points: int = Field(gt=0, description="Points per arm and cell.")
    seed: int = Field(0, ge=0, description="Another seed gives other points.")

    def num_points(self, levels: Levels) -> int:
        """Returns the number of points."""
        return self.points

    def block(self, point: int) -> int:
        """Returns the index of the independent block that a point belongs to. 0 if there is only one."""
        return 0


class ChosenFor(Frozen):
    """The aim that the number of points was chosen for, and that number, which later versions keep."""

    detect: float = Field(gt=0, le=100, description="As `design.detect`.")
    power: float = Field(ge=0.5, le=0.99, description="As `design.power`.")
    points: int = Field(gt=0, description="The number of points that was chosen.")


class _Extendable(_Drawn):
    #: 0 until the file is loaded, if `detect` chooses the number.
    points: int = Field(default_factory=int, gt=0, description="Points per arm and cell. Or set `detect`.")
    detect: float | None = Field(
        None,
        gt=0,
        le=100,
        validate_default=True,
        description="In place of `points`: a difference between arms to be found, in the unit of the primary "
        "measure. It chooses the number of points.",
    )
    power: float | None = Field(
        None,
        ge=0.5,
        le=0.99,
        description="The share of sweeps in which a difference of `detect` is found; left out: 0.8.",
    )
    chosen_for: ChosenFor | None = Field(
        None, description="What `points` was chosen for; a run writes it in place of `detect` and `power`."
    )
    max_points: int | None = Field(
        None,
        gt=0,
        description="The most points this sweep may be extended to. Verdicts are taken at `points`, doubled "
        "until this number. If equal to `points`, there is one verdict with the whole 5 %; left out: "
        "4 times `points`, and most of the 5 % is for the first verdict.",
    )

    @field_validator("detect")
    @classmethod
    def _points_or_detect(cls, detect: float | None, others: ValidationInfo) -> float | None:
        # A faulty number of points is absent here, and a fault of its own.
        points = others.data.get("points")
        if points and detect is not None:
            raise ValueError("set either points or detect, which chooses their number")
        if points == 0 and detect is None:
            raise ValueError("is missing, and points as well: set one of the two")
        return detect

    @field_validator("power", "chosen_for")
    @classmethod
    def _of_its_number(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None:
            return value
        if info.field_name == "power" and info.data.get("detect", 0.0) is None:
            raise ValueError("is the power to find a difference: set detect, too")
        if info.field_name == "chosen_for" and info.data.get("detect") is not None:
            raise ValueError("is of a number of points: set points, not detect")
        return value

    @field_validator("max_points")
    @classmethod
    def _not_below_points(cls, max_points: int | None, others: ValidationInfo) -> int | None:
        points = others.data.get("points", 1)
        if max_points is not None and max_points < points:
            raise ValueError(f"must be at least points, which is {points} (got {max_points})")
        return max_points


class RandomDesign(_Extendable):
    """Independent uniform draws: the paper's design."""

    words: ClassVar[str] = "independent random draws"
    kind: Literal["random"] = "random"

    def quantiles(self, levels: Levels) -> Quantiles:
        """Returns a quantile in [0, 1) of each parameter for each point."""
        return {
            name: np.random.default_rng(derive_seed(self.seed, "random", name)).random(self.points)
            for name in levels
        }


# Most sweeps vary these two parameters, so they get the two coordinates that fill a plane best.
_FIRST_DIMENSIONS = {"optim.lr": 0, "optim.weight_decay": 1}
_NUM_DIMENSIONS = 512


class SobolDesign(_Extendable):
    """A scrambled Sobol sequence: as unbiased as random draws, but evenly spread; best with 2^k points.

    A parameter's name decides its coordinate of the sequence. If two names hash to one coordinate, the later
    one in the file moves to the next free coordinate.

    Several scrambles share the points in turn: point i is number i // scrambles of block i % scrambles. Each
    block is a sequence of its own, also best with 2^k points. So a point depends on its index alone. If each
    block were a run of consecutive points, it would depend on their number. The sizes of blocks differ by one
    point at most, even if a sweep is cut off.

    One scramble is the default because it spreads points more evenly than several do. Up to 32 points, 8
    blocks lose most of the gain over independent draws (`python -m benchmarks.pairing_gain`). With six or
    more blocks, the spread between them shows how well a difference is known (`stats.intervals.block_mean`).
    """

    words: ClassVar[str] = "a scrambled Sobol sequence"
    kind: Literal["sobol"] = "sobol"
    scrambles: int = Field(
        1, gt=0, description="Independent scrambles of the sequence; 6 or more give intervals over them."
    )

    def block(self, point: int) -> int:
        """Returns the index of the scramble that a point belongs to."""
        return point % self.scrambles

    def quantiles(self, levels: Levels) -> Quantiles:
        """Returns a quantile in [0, 1) of each parameter for each point."""
        taken: dict[int, str] = {}
        for name in levels:
            free = _NUM_DIMENSIONS - len(_FIRST_DIMENSIONS)
            at = _FIRST_DIMENSIONS.get(name, len(_FIRST_DIMENSIONS) + derive_seed("sobol", name) % free)
            while at in taken:
                at = (at + 1) % _NUM_DIMENSIONS
            taken[at] = name
        # Rows are points, columns are parameters.
        points = np.empty((self.points, len(taken)))
        for block in range(min(self.scrambles, self.points)):
            rows = points[block :: self.scrambles]
            rows[:] = self._scrambled(block, len(rows))[:, list(taken)]
        return {name: points[:, column] for column, name in enumerate(taken.values())}

    def _scrambled(self, block: int, num_points: int) -> NDArray[np.float64]:
        """Returns the beginning of one scrambled sequence, of shape (num_points, _NUM_DIMENSIONS)."""
        # The first block has the seed of a design with one scramble.
        words = ("sobol", "block", block) if block else ("sobol",)
        # All coordinates are drawn, because the scramble of one must not depend on how many are used.
        engine = scipy.stats.qmc.Sobol(
            _NUM_DIMENSIONS, scramble=True, rng=np.random.default_rng(derive_seed(self.seed, *words))
        )
        return np.asarray(engine.random_base2((num_points - 1).bit_length())[:num_points])


class Listing(Frozen):
    """A design whose points are combinations of listed values, so that it cannot be extended."""

    words: ClassVar[str]

    seed: int = Field(0, ge=0, description="Seeds of the trials follow from it; the points do not.")

    def block(self, point: int) -> int:
        """Returns 0, because a listing is one block."""
        return 0


class GridDesign(Listing):
    """Every combination: all values of a choice, and `levels` values of an interval with both ends."""

    words: ClassVar[str] = "a grid"
    kind: Literal["grid"] = "grid"
    levels: int = Field(4, gt=0, description="Values per interval, evenly spaced in quantile.")

    def _values(self, levels: int | None) -> NDArray[np.float64]:
        if levels is not None:
            return (np.arange(levels) + 0.5) / levels
        return np.linspace(0, 1, self.levels) if self.levels > 1 else np.array([0.5])

    def num_points(self, levels: Levels) -> int:
        """Returns the number of points."""
        return math.prod(self.levels if count is None else count for count in levels.values())

    def quantiles(self, levels: Levels) -> Quantiles:
        """Returns a quantile in [0, 1] of each parameter for each point."""
        rows = np.array(list(itertools.product(*(self._values(count) for count in levels.values()))))
        return {name: rows[:, column] for column, name in enumerate(levels)}


class StarDesign(Listing):
    """A centre, and one parameter at a time at each of its other values; some parameters cross all of these.

    It needs 1 + sum(n - 1) points where a grid needs their product. Every parameter has listed values.

    Source: Alabdulmohsin et al. 2023, https://arxiv.org/abs/2305.13035, section 4: width, depth and MLP one
    at a time below the centre, at three lengths of training each.
    """

    words: ClassVar[str] = "a star"
    kind: Literal["star"] = "star"
    centre: Literal["first", "last"] = Field(
        "last", description="The value of each list that the centre has; the paper's is the largest."
    )
    cross: tuple[str, ...] = Field(
        (), description="Parameters that take each value with each shape of the star, as [schedule.epochs]."
    )

    def num_points(self, levels: Levels) -> int:
        """Returns the number of points."""
        return len(self._rows(levels))

    def quantiles(self, levels: Levels) -> Quantiles:
        """Returns a quantile in (0, 1) of each parameter for each point."""
        rows = self._rows(levels)
        return {name: (np.array([row[name] for row in rows]) + 0.5) / (levels[name] or 1) for name in levels}

    def _rows(self, levels: Levels) -> list[dict[str, int]]:
        """Returns the number of the value of each parameter at each point."""
        counts = {name: count or 1 for name, count in levels.items()}
        centre = {name: 0 if self.centre == "first" else count - 1 for name, count in counts.items()}
        arms = [
            centre | {name: value}
            for name, count in counts.items()
            if name not in self.cross
            for value in range(count)
            if value != centre[name]
        ]
        crossed = [name for name in counts if name in self.cross]
        return [
            shape | dict(zip(crossed, values, strict=True))
            for shape in [centre, *arms]
            for values in itertools.product(*(range(counts[name]) for name in crossed))
        ]


class LatinDesign(_Drawn):
    """A Latin hypercube: each of `points` equal intervals of every parameter holds one point.

    It spreads a few points well in each parameter alone. It cannot be extended, because all points move when
    their number changes. So a folder keeps its number of points; use `sobol` if more may be wanted later.

    Source: McKay, Beckman and Conover 1979. Each parameter has its own one-dimensional
    `scipy.stats.qmc.LatinHypercube`, seeded by its name. Independent permutations make a Latin hypercube.
    """

    words: ClassVar[str] = "a Latin hypercube"
    kind: Literal["latin"] = "latin"
    extendable: ClassVar[bool] = False

    def quantiles(self, levels: Levels) -> Quantiles:
        """Returns a quantile in [0, 1) of each parameter for each point."""
        return {name: self._stratified(name) for name in levels}

    def _stratified(self, name: str) -> NDArray[np.float64]:
        rng = np.random.default_rng(derive_seed(self.seed, "latin", name))
        column: NDArray[np.float64] = scipy.stats.qmc.LatinHypercube(1, rng=rng).random(self.points)[:, 0]
        # scipy puts point i at (i + 1 - u) / n with u in [0, 1), which may be 1. Quantiles must stay below 1.
        return np.minimum(column, np.nextafter(1, 0))


Design = Annotated[
    RandomDesign | SobolDesign | GridDesign | StarDesign | LatinDesign, Field(discriminator="kind")
]
