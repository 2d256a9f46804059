"""Planted populations: surfaces with known truth, to test statistics on.

A population has two arms over the unit square (lr and wd as quantiles) and normal or Bernoulli seed noise.
Errors are in percent; a diverged trial is 100. `x` is the offset of the learning rate in decades, uniform on
+-1.5, and `w` that of the weight decay, uniform on +-1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.stats import qmc

Floats = NDArray[np.float64]
#: Maps (x, w) to the mean error of the runs that train, and the probability to diverge.
Surface = Callable[[Floats, Floats], tuple[Floats, Floats]]

DIVERGED_PCT = 100.0


@dataclass(frozen=True, slots=True)
class Population:
    """Two arms with known surfaces.

    Attributes:
      name, means: a short name, and a description.
      arms: the surfaces.
      noise_sd_pct: seed noise of a run that trains.
    """

    name: str
    means: str
    arms: tuple[Surface, Surface]
    noise_sd_pct: float = 0.15

    def surface(self, points: Floats, arm: int = 0) -> tuple[Floats, Floats]:
        """Returns mean error and probability to diverge at points (..., 2) of the unit square."""
        return self.arms[arm](3 * points[..., 0] - 1.5, 2 * points[..., 1] - 1)

    def means_pct(self, points: Floats, arm: int = 0) -> Floats:
        """Returns mean errors of runs that train, at points (..., 2) of the unit square."""
        return self.surface(points, arm)[0]

    def errors_pct(self, points: Floats, rng: np.random.Generator, arm: int = 0) -> Floats:
        """Draws the error of one run at each point."""
        mean, diverges = self.surface(points, arm)
        errors = np.clip(mean + self.noise_sd_pct * rng.standard_normal(mean.shape), 0, DIVERGED_PCT)
        return np.where(rng.random(mean.shape) < diverges, DIVERGED_PCT, errors)

    def optimum_pct(self, arm: int = 0) -> float:
        """Returns the lowest mean error of settings that never diverge, by a fine grid and a local search."""
        surface, x, w = self.arms[arm], *np.meshgrid(np.linspace(-1.5, 1.5, 601), np.linspace(-1, 1, 401))
        mean, diverges = surface(x, w)
        best = int(np.where(diverges == 0, mean, np.inf).argmin())
        found = optimize.minimize(
            lambda at: float(surface(np.array(at[0]), np.array(at[1]))[0]),
            (x.flat[best], w.flat[best]),
            method="Nelder-Mead",
            bounds=(
                (x.flat[best] - 0.005, x.flat[best] + 0.005),
                (w.flat[best] - 0.005, w.flat[best] + 0.005),
            ),
        )
        return float(found.fun)


def bowl(peak: float, curve: float, edge: float = np.inf, at: float = 0.0) -> Surface:
    """Returns a surface that is quadratic in x and w, and diverges where x is beyond the edge."""

    def surface(x: Floats, w: Floats) -> tuple[Floats, Floats]:
        off = x - at
        return peak + curve * off**2 + 0.6 * w**2 + 0.5 * off * w, (x > edge).astype(np.float64)

    return surface


def _plateau(peak: float, cliff: float) -> Surface:
    def surface(x: Floats, w: Floats) -> tuple[Floats, Floats]:
        return peak + 0.2 * np.abs(x) + 0.1 * w**2 + 3 * np.maximum(-1 - x, 0), (x > cliff).astype(np.float64)

    return surface


def _two_basins(peak: float, risk: float) -> Surface:
    def surface(x: Floats, w: Floats) -> tuple[Floats, Floats]:
        lower = peak + 4 * (x + 0.7) ** 2 + w**2
        upper = peak + 8 + (x - 0.8) ** 2
        return np.minimum(lower, upper), np.where(x > 0.2, risk, 0.0)

    return surface


def _heavy_tail(peak: float, shape: float) -> Surface:
    def surface(x: Floats, w: Floats) -> tuple[Floats, Floats]:
        far = np.clip((np.abs(x) + np.abs(w) / 3) / (1.5 + 1 / 3), 0, 1 - 1e-9)
        return np.minimum(peak + (1 - far) ** (-shape) - 1, DIVERGED_PCT), np.zeros_like(far)

    return surface


POPULATIONS = (
    Population("bowl", "a Gaussian bowl: quadratic, normal noise", (bowl(21, 2.2), bowl(20.9, 1.8))),
    Population(
        "cliff", "the bowl, diverging beyond an edge of lr", (bowl(21, 2.2, 1.15), bowl(20.9, 1.8, 1.25))
    ),
    Population(
        "plateau", "all alike up to an edge of lr, then diverging", (_plateau(20, 0.7), _plateau(20, 1.0))
    ),
    Population(
        "bimodal", "two basins 8 pp apart, the upper of which diverges at random",
        (_two_basins(18, 0.5), _two_basins(18, 0.3)),
    ),
    Population("heavy tail", "errors with a power-law tail", (_heavy_tail(20, 1.4), _heavy_tail(20, 1.1))),
    Population(
        "shifted", "the second arm's optimum is 0.8 decades of lr away, and it diverges later",
        (bowl(21, 2.2, 1.15, -0.4), bowl(21, 2.2, 1.25, 0.4)),
    ),
)  # fmt: skip


def null(population: Population, mirrored: bool) -> Population:
    """Returns two arms of equal distribution: the same surface, or the second mirrored in lr.

    Mirrored arms have equal measures although few pairs of points are alike.
    """
    first = population.arms[0]

    def second(x: Floats, w: Floats) -> tuple[Floats, Floats]:
        return first(-x, w) if mirrored else first(x, w)

    name = f"{population.name}, {'mirrored' if mirrored else 'same'}"
    return Population(name, population.means, (first, second), population.noise_sd_pct)


def draw_points(design: str, num_repeats: int, num_points: int, rng: np.random.Generator) -> Floats:
    """Returns points (num_repeats, num_points, 2) of the unit square. Every repeat has its own scrambling.

    Scrambled Sobol points are from the first two coordinates, which lr and wd use in a sweep.
    """
    if design == "iid":
        return rng.random((num_repeats, num_points, 2))
    exponent = (num_points - 1).bit_length()
    return np.stack(
        [qmc.Sobol(2, scramble=True, rng=rng).random_base2(exponent)[:num_points] for _ in range(num_repeats)]
    )


def swapped(population: Population) -> Population:
    """Returns the population with its arms exchanged, so that every difference has the other sign."""
    first, second = population.arms
    return Population(
        f"{population.name}, swapped", population.means, (second, first), population.noise_sd_pct
    )


#: Two arms that differ by about 0.2 of area, as a cell that others may disagree with.
CLEAR = (
    Population("clear bowl", "bowls of different width", (bowl(21, 5), bowl(20.9, 2))),
    Population("clear cliff", "the same, diverging", (bowl(21, 5, 1.15), bowl(20.9, 2, 1.3))),
)


def differing_cells(num_cells: int) -> list[Population]:
    """Returns cells that differ: the curvature of the second arm's bowl is log-normal around the first's."""
    rng = np.random.default_rng(num_cells)
    curves = 4 * np.exp(rng.normal(-0.3, 0.4, num_cells))
    return [
        Population("differing", "bowls of random width", (bowl(21, 4), bowl(20.9, float(curve))))
        for curve in curves
    ]


def rarely_diverging_cells(num_cells: int) -> list[Population]:
    """Returns bowls of which every fourth diverges beyond an edge, at 3 % of the points, in the first arm."""
    return [
        Population("one diverges", "bowls, rarely diverging", (bowl(21, 2.2, edge), bowl(20.9, 1.8)))
        for edge in (1.41 if cell % 4 == 0 else np.inf for cell in range(num_cells))
    ]
