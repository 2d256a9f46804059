"""Designs of experiments: which points of the unit cube are tried.

Every design is a pure function: quantile i of a parameter depends on the seed, the parameter's name and
i, and on nothing else. So a longer sweep begins with the shorter one, adding a parameter keeps the values
of the others, and two arms that share the parameters share the points.

Points of one scrambled Sobol sequence are spread evenly because they know of each other, so their spread says
nothing of how well their mean is known: another scrambling would say it. A design of several scrambles has
those at hand, blocks of points that are independent of each other.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import qmc

from trainables.base import Frozen, derive_seed

#: Per parameter the number of its values, or None where they are too many to count.
Levels = Mapping[str, int | None]
Quantiles = dict[str, NDArray[np.float64]]


class _Drawn(Frozen):
    #: Whether a longer design begins with the shorter one.
    extendable: ClassVar[bool] = True

    points: int = Field(gt=0, description="Points per arm and cell.")
    seed: int = Field(0, ge=0, description="Another seed, other points.")

    def num_points(self, levels: Levels) -> int:
        """How many points the design has."""
        return self.points

    def block(self, point: int) -> int:
        """Which of the design's independent parts a point belongs to; 0 where there is one part only."""
        return 0


class RandomDesign(_Drawn):
    """Independent uniform draws: the paper's design."""

    kind: Literal["random"] = "random"

    def quantiles(self, levels: Levels) -> Quantiles:
        """Per parameter a quantile in [0, 1) for each point."""
        return {
            name: np.random.default_rng(derive_seed(self.seed, "random", name)).random(self.points)
            for name in levels
        }


# Two parameters that most questions vary get the two coordinates that fill a plane best.
_FIRST_DIMENSIONS = {"optim.lr": 0, "optim.weight_decay": 1}
_NUM_DIMENSIONS = 512


class SobolDesign(_Drawn):
    """A scrambled Sobol sequence: as unbiased as random draws, but evenly spread; best with 2^k points.

    Which coordinate of the sequence a parameter gets follows from its name. Should two names meet on one
    coordinate, the one that stands later in the file moves to the next.

    With several scrambles the points are dealt out in turn: point i is number i // scrambles of block
    i % scrambles. A block is a sequence of its own, best with 2^k points, too. Dealt in turn, a point depends
    on its index alone; runs of consecutive points would have to know how many points follow. And a sweep that
    is cut off, or not a multiple of the scrambles, has blocks that differ by one point at most.

    One scramble spreads points more evenly than several do, so it is the default: up to 32 points, 8 blocks
    lose most of the gain over independent draws (`python -m benchmarks.pairing_gain`). With six or more, the
    spread between blocks tells how well a difference is known (`stats.block_mean`).
    """

    kind: Literal["sobol"] = "sobol"
    scrambles: int = Field(
        1, gt=0, description="Independent scrambles of the sequence; 6 or more give intervals over them."
    )

    def block(self, point: int) -> int:
        """Which scrambling a point belongs to."""
        return point % self.scrambles

    def quantiles(self, levels: Levels) -> Quantiles:
        """Per parameter a quantile in [0, 1) for each point."""
        taken: dict[int, str] = {}
        for name in levels:
            free = _NUM_DIMENSIONS - len(_FIRST_DIMENSIONS)
            at = _FIRST_DIMENSIONS.get(name, len(_FIRST_DIMENSIONS) + derive_seed("sobol", name) % free)
            while at in taken:
                at = (at + 1) % _NUM_DIMENSIONS
            taken[at] = name
        # The last dimension is that of the parameters.
        points = np.empty((self.points, len(taken)))
        for block in range(min(self.scrambles, self.points)):
            rows = points[block :: self.scrambles]
            rows[:] = self._scrambled(block, len(rows))[:, list(taken)]
        return {name: points[:, column] for column, name in enumerate(taken.values())}

    def _scrambled(self, block: int, num_points: int) -> NDArray[np.float64]:
        """(num_points, _NUM_DIMENSIONS): the beginning of one scrambled sequence."""
        # The first block is what the design is without the others.
        words = ("sobol", "block", block) if block else ("sobol",)
        # Always all coordinates: the scrambling of one must not depend on how many are used.
        engine = qmc.Sobol(
            _NUM_DIMENSIONS, scramble=True, rng=np.random.default_rng(derive_seed(self.seed, *words))
        )
        return np.asarray(engine.random_base2((num_points - 1).bit_length())[:num_points])


class GridDesign(Frozen):
    """Every combination: all values of a choice, `levels` values of an interval, ends included."""

    kind: Literal["grid"] = "grid"
    levels: int = Field(4, gt=0, description="Values per interval, evenly spaced in quantile.")
    seed: int = Field(0, ge=0, description="Seeds of the trials follow from it; the points do not.")

    def _values(self, levels: int | None) -> NDArray[np.float64]:
        if levels is not None:
            return (np.arange(levels) + 0.5) / levels
        return np.linspace(0, 1, self.levels) if self.levels > 1 else np.array([0.5])

    def num_points(self, levels: Levels) -> int:
        """How many points the design has."""
        return math.prod(self.levels if count is None else count for count in levels.values())

    def block(self, point: int) -> int:
        """A grid is one part."""
        return 0

    def quantiles(self, levels: Levels) -> Quantiles:
        """Per parameter a quantile in [0, 1] for each point."""
        rows = np.array(list(itertools.product(*(self._values(count) for count in levels.values()))))
        return {name: rows[:, column] for column, name in enumerate(levels)}


class LatinDesign(_Drawn):
    """A Latin hypercube: of `points` equal intervals of every parameter each holds one point.

    It spreads a few points well in each parameter alone. It cannot be extended: with another number of points
    all of them move, so a folder keeps the number it began with; take `sobol` where more may be wanted.

    Source: McKay, Beckman and Conover 1979; `scipy.stats.qmc.LatinHypercube`, one per parameter, from the
    parameter's name: independent permutations make a Latin hypercube.
    """

    kind: Literal["latin"] = "latin"
    extendable: ClassVar[bool] = False

    def quantiles(self, levels: Levels) -> Quantiles:
        """Per parameter a quantile in [0, 1) for each point."""
        return {name: self._stratified(name) for name in levels}

    def _stratified(self, name: str) -> NDArray[np.float64]:
        rng = np.random.default_rng(derive_seed(self.seed, "latin", name))
        column: NDArray[np.float64] = qmc.LatinHypercube(1, rng=rng).random(self.points)[:, 0]
        # scipy puts point i at (i + 1 - u) / n with u in [0, 1), which may be 1; quantiles stay below.
        return np.minimum(column, np.nextafter(1, 0))


Design = Annotated[RandomDesign | SobolDesign | GridDesign | LatinDesign, Field(discriminator="kind")]
