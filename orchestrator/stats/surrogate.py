"""A surrogate of an arm's error over its window, by Gaussian-process regression."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from orchestrator.stats.measures import AREA_LIMIT_PP

Array = NDArray[np.float64]
Side = Literal["low", "high"]
#: A surrogate needs at least this many points.
MIN_POINTS = 8
NUM_REFITS = 100


@dataclass(frozen=True, slots=True)
class Axis:
    """A varied parameter as a coordinate.

    Attributes:
      name: path of the parameter in the configuration.
      kind: `log`, `linear` and `ordinal` are ordered, `choice` is not.
      low, high: the ends of its window; 0 and the number of values for listed values.
      levels: the values of a choice or an ordinal.
    """

    name: str
    kind: Literal["log", "linear", "ordinal", "choice"]
    low: float
    high: float
    levels: tuple[Any, ...] = ()

    @property
    def ordered(self) -> bool:
        """True unless the parameter is a choice, which has no notion of distance."""
        return self.kind != "choice"

    @property
    def width(self) -> float:
        """The width of the window, in `unit`."""
        return math.log2(self.high / self.low) if self.kind == "log" else self.high - self.low

    @property
    def unit(self) -> str:
        """The unit of `width`."""
        return {"log": "octaves", "linear": "units", "ordinal": "levels", "choice": "levels"}[self.kind]

    def quantile(self, value: Any) -> float:
        """Returns the position of a value, from 0 at the low end to 1 at the high end.

        A listed value has the middle of its share of the axis.
        """
        if self.levels:
            return (self.levels.index(value) + 0.5) / len(self.levels)
        if self.kind == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float((value - self.low) / (self.high - self.low))

    def at(self, quantile: float) -> Any:
        """Returns the value at a quantile."""
        if self.levels:
            return self.levels[min(int(quantile * len(self.levels)), len(self.levels) - 1)]
        if self.kind == "log":
            return self.low * math.exp(quantile * math.log(self.high / self.low))
        return self.low + quantile * (self.high - self.low)


@dataclass(frozen=True, eq=False)
class Landscape:
    """The errors of one arm in one cell over the points of its window.

    Attributes:
      cell, arm: names of the two.
      axes: parameters that vary; parameters with one value are left out.
      points: point numbers of the design; points without a result are absent.
      quantiles_ND: coordinates of the points.
      errors_pct: mean over the replicates with a result; a diverged run counts as 100.
      trained: True if a replicate of the point may be the arm's best.
      chance_pct: the error of guessing.
      num_planned: points of the design, with or without a result.
      num_censored: trials that a rule ended because of their error. Their results are not missing at random,
        so every measure is refused.
    """

    cell: str
    arm: str
    axes: tuple[Axis, ...]
    points: tuple[int, ...]
    quantiles_ND: Array
    errors_pct: Array
    trained: NDArray[np.bool_]
    chance_pct: float
    num_planned: int
    num_censored: int = 0

    def axis(self, name: str) -> int | None:
        """Returns the index of an ordered axis. None if the parameter does not vary or is a choice."""
        found = [index for index, axis in enumerate(self.axes) if axis.name == name and axis.ordered]
        return found[0] if found else None

    def taking(self, points: Sequence[int]) -> "Landscape":
        """Returns the landscape of these points only, in this order."""
        at = {point: row for row, point in enumerate(self.points)}
        rows = [at[point] for point in points]
        return dataclasses.replace(
            self,
            points=tuple(points),
            quantiles_ND=self.quantiles_ND[rows],
            errors_pct=self.errors_pct[rows],
            trained=self.trained[rows],
        )


# ---------------------------------------------------------------------------------------- the surrogate

#: The Delta at which z changes from linear to logarithmic, in pp.
_SOFT_PP = 3.0
_LENGTHS = (0.15, 0.25, 0.4, 0.65, 1.0, 1.6, 2.5, 6.0)
_NOISES = (1e-3, 4e-3, 1.6e-2, 6.4e-2, 0.25, 1.0)
#: Prior variance of the trend's coefficients, large enough that the data alone determine them.
_TREND = 100.0
#: The smoothing is chosen on this many points at most, because more change little and the cost grows as n^3.
_MAX_TUNING = 128
LINE = np.linspace(0, 1, 129)
PLANE = np.linspace(0, 1, 65)


@dataclass(frozen=True, slots=True)
class Quality:
    """The accuracy of a surrogate in leave-one-out prediction.

    Attributes:
      num_points: number of points of the fit.
      r2: 1 - (leave-one-out squared error) / (that of predicting the mean of the others), for z. It is
        slightly optimistic, because the smoothing is chosen by the same figure.
      min_r2: threshold below which the surrogate is not used: 3 / n^0.65. On pure noise, one surface in
        twenty reaches it by the choice of smoothing alone (simulated for n = 8 to 128).
      mae_pp: mean absolute leave-one-out error over the points within 10 pp of the best.
    """

    num_points: int
    r2: float
    min_r2: float
    mae_pp: float

    @property
    def useful(self) -> bool:
        """True if the surrogate predicts better than the mean."""
        return self.r2 >= self.min_r2


@dataclass(frozen=True, eq=False)
class Surrogate:
    """B fits of one landscape: one per resample, or the fit to the points themselves (B = 1).

        z(u) = sum_n alpha_n prod_d k(|u_d - u_nd| / length_d) + (1, 2u - 1) beta

    k is Matern 3/2. Two levels of a choice have distance 1. The coefficients solve
    (K + c H H' + noise / counts) alpha = z and beta = c H' alpha.

    Source: Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", sections 2.7 (trend) and
      5.4.2 (leave-one-out in closed form).
    """

    landscape: Landscape
    cap_pp: float
    lengths_D: Array
    noise: float
    alphas_BN: Array
    betas_BH: Array
    mean: float
    scale: float
    quality: Quality

    @property
    def base_pct(self) -> float:
        """The lowest observed error, from which z is measured."""
        return float(self.landscape.errors_pct.min())

    def refits(self, counts_BN: NDArray[np.int64]) -> "Surrogate":
        """Returns fits to B resamples with point n counts[b, n] times. Length scales and noise are kept."""
        z_N = _soft(self.landscape.errors_pct, self.base_pct, self.cap_pp)
        kernel_NN = _kernel(self.landscape, self.lengths_D)
        target_N = (z_N - self.mean) / self.scale
        trend_NH = _trend(self.landscape.quantiles_ND, self.landscape.axes)
        alphas = np.stack([_solve(kernel_NN, target_N, self.noise, counts_N) for counts_N in counts_BN])
        return dataclasses.replace(self, alphas_BN=alphas, betas_BH=_TREND * alphas @ trend_NH)

    def error_pct(self, quantiles_MD: Array) -> Array:
        """Returns predicted errors (B, M) at the coordinates (M, D)."""
        weights_MN = np.ones((len(quantiles_MD), len(self.landscape.points)))
        for index in range(len(self.landscape.axes)):
            weights_MN *= self._near(index, quantiles_MD[:, index])
        trend_MH = _trend(quantiles_MD, self.landscape.axes)
        return self._error(self.alphas_BN @ weights_MN.T + self.betas_BH @ trend_MH.T)

    def optima(self) -> tuple[Array, Array]:
        """Returns coordinates (B, D) and values (B) of the lowest prediction in the window.

        The search starts from the best of the points and 1,024 Sobol points. Three rounds of line searches
        along each axis follow, ends included.
        """
        axes, num_fits = self.landscape.axes, len(self.alphas_BN)
        more = qmc.Sobol(len(axes), scramble=False).random(1024)
        candidates = np.concatenate([self.landscape.quantiles_ND, more])
        for index, axis in enumerate(axes):
            if not axis.ordered:
                candidates[:, index] = level_middle(candidates[:, index], axis)
        found_BD = candidates[self.error_pct(candidates).argmin(axis=1)].copy()
        lowest_B = np.empty(num_fits)
        for _ in range(3):
            for index in range(len(axes)):
                grid = self.grid(index)
                values_BM = self.along(index, found_BD)
                at = values_BM.argmin(axis=1)
                found_BD[:, index], lowest_B = grid[at], values_BM[np.arange(num_fits), at]
        return found_BD, lowest_B

    def grid(self, index: int) -> Array:
        """Returns the quantiles at which `along` predicts."""
        axis = self.landscape.axes[index]
        return LINE if axis.ordered else (np.arange(len(axis.levels)) + 0.5) / len(axis.levels)

    def along(self, index: int, through_BD: Array) -> Array:
        """Returns predicted errors (B, M) on the line along one axis through one place per fit."""
        grid = self.grid(index)
        weights_BN = self._others(through_BD, (index,))
        fixed_B, slopes = self._fixed_trend(through_BD, (index,))
        ramp_BM = np.outer(slopes[index], 2 * grid - 1) if index in slopes else 0.0
        return self._error(weights_BN @ self._near(index, grid).T + fixed_B[:, None] + ramp_BM)

    def over(self, first: int, second: int, through_BD: Array) -> Array:
        """Returns predicted errors (B, M, M) on the plane of two ordered axes through one place per fit."""
        weights_BN = self._others(through_BD, (first, second))
        fixed_B, slopes = self._fixed_trend(through_BD, (first, second))
        near_first, near_second = self._near(first, PLANE), self._near(second, PLANE)
        planes = np.stack([(near_first * weights_N) @ near_second.T for weights_N in weights_BN])
        ramp = 2 * PLANE - 1
        planes += fixed_B[:, None, None]
        planes += slopes[first][:, None, None] * ramp[:, None] + slopes[second][:, None, None] * ramp
        return self._error(planes)

    def _error(self, z: Array) -> Array:
        z = np.minimum(self.mean + self.scale * z, math.log1p(self.cap_pp / _SOFT_PP))
        return np.asarray(self.base_pct + _SOFT_PP * np.expm1(z))

    def _near(self, index: int, quantiles_M: Array) -> Array:
        own_N = self.landscape.quantiles_ND[:, index]
        return _matern(
            _distance(quantiles_M, own_N, self.landscape.axes[index]) / float(self.lengths_D[index])
        )

    def _others(self, through_BD: Array, free: Sequence[int]) -> Array:
        weights_BN = self.alphas_BN.copy()
        for index in range(len(self.landscape.axes)):
            if index not in free:
                weights_BN *= self._near(index, through_BD[:, index])
        return weights_BN

    def _fixed_trend(self, through_BD: Array, free: Sequence[int]) -> tuple[Array, dict[int, Array]]:
        """Returns the trend (B) of the fixed axes, and the slope (B) along each free axis."""
        fixed_B, slopes = self.betas_BH[:, 0].copy(), {}
        ordered = [index for index, axis in enumerate(self.landscape.axes) if axis.ordered]
        for column, index in enumerate(ordered, start=1):
            if index in free:
                slopes[index] = self.betas_BH[:, column]
            else:
                fixed_B += self.betas_BH[:, column] * (2 * through_BD[:, index] - 1)
        return fixed_B, slopes


# Cached, because basin, edges, importance and figures share a surrogate. A landscape hashes by identity.
@functools.lru_cache(maxsize=32)
def fit_surrogate(landscape: Landscape, cap_pp: float = AREA_LIMIT_PP) -> Surrogate:
    """Returns the surrogate of a landscape. `quality.useful` says if it predicts better than the mean.

    Args:
      landscape: an arm with at least MIN_POINTS points.
      cap_pp: upper limit of Delta; larger values are clipped.

    Raises:
      ValueError: there are too few points, nothing varies, all errors are equal, no point trained, or trials
        were stopped early.
    """
    if why := unfit(landscape):
        raise ValueError(why)
    errors = landscape.errors_pct
    z_N = _soft(errors, float(errors.min()), cap_pp)
    mean, scale = float(z_N.mean()), float(z_N.std())
    target_N = (z_N - mean) / scale
    lengths_D, noise = _smoothing(landscape, target_N)
    kernel_NN = _kernel(landscape, lengths_D)
    ones_N = np.ones(len(errors), dtype=np.int64)
    alpha_N = _solve(kernel_NN, target_N, noise, ones_N)
    left_out_N = alpha_N / np.diag(np.linalg.inv(kernel_NN + noise * np.eye(len(errors))))
    n = len(errors)
    # The distance to the mean of the others is n / (n - 1) times the distance to the mean of all.
    r2 = 1 - float(np.mean(left_out_N**2)) / (n / (n - 1)) ** 2
    near = errors - errors.min() <= AREA_LIMIT_PP
    predicted = np.minimum(z_N - scale * left_out_N, math.log1p(cap_pp / _SOFT_PP))
    misses = np.abs(_SOFT_PP * np.expm1(predicted) - np.minimum(errors - errors.min(), cap_pp))
    return Surrogate(
        landscape=landscape,
        cap_pp=cap_pp,
        lengths_D=lengths_D,
        noise=noise,
        alphas_BN=alpha_N[None],
        betas_BH=_TREND * alpha_N[None] @ _trend(landscape.quantiles_ND, landscape.axes),
        mean=mean,
        scale=scale,
        quality=Quality(n, r2, 3 / n**0.65, float(misses[near].mean())),
    )


def useful_surrogate(landscape: Landscape, cap_pp: float = AREA_LIMIT_PP) -> tuple[Surrogate | None, str]:
    """Returns the surrogate if it predicts better than the mean, else None and the reason."""
    if why := unfit(landscape):
        return None, why
    surrogate = fit_surrogate(landscape, cap_pp)
    if not (quality := surrogate.quality).useful:
        return None, (
            f"no smooth surface predicts these {quality.num_points} points reliably (leave-one-out R2 "
            f"{quality.r2:.2f}; with so few, chance alone reaches {quality.min_r2:.2f})"
        )
    return surrogate, ""


def resample_counts(num_points: int, num_resamples: int = NUM_REFITS, seed: int = 0) -> NDArray[np.int64]:
    """Returns the number of times (B, N) that each point occurs in each bootstrap resample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_points, np.full(num_points, 1 / num_points), num_resamples)


def unfit(landscape: Landscape) -> str:
    if landscape.num_censored:
        return f"{landscape.num_censored} trials were stopped early"
    if not landscape.axes:
        return "nothing varies"
    if (n := len(landscape.points)) < MIN_POINTS:
        return f"{n} points have a result, {MIN_POINTS} are needed"
    if not landscape.trained.any():
        return "no point trained"
    if np.ptp(landscape.errors_pct) == 0:
        return "all points have the same error"
    return ""


def _soft(errors_pct: Array, base_pct: float, cap_pp: float) -> Array:
    return np.asarray(np.log1p(np.minimum(errors_pct - base_pct, cap_pp) / _SOFT_PP))


def _matern(distance: Array) -> Array:
    scaled = math.sqrt(3) * distance
    return np.asarray((1 + scaled) * np.exp(-scaled))


def _distance(a: Array, b: Array, axis: Axis) -> Array:
    if axis.ordered:
        return np.asarray(np.abs(a[:, None] - b))
    return np.asarray(np.abs(a[:, None] - b) > 1e-9, dtype=np.float64)


def level_middle(quantiles: Array, axis: Axis) -> Array:
    count = len(axis.levels)
    return np.asarray((np.minimum(np.floor(quantiles * count), count - 1) + 0.5) / count)


def _trend(quantiles_MD: Array, axes: Sequence[Axis]) -> Array:
    ordered = [index for index, axis in enumerate(axes) if axis.ordered]
    return np.concatenate([np.ones((len(quantiles_MD), 1)), 2 * quantiles_MD[:, ordered] - 1], axis=1)


def _kernel(landscape: Landscape, lengths_D: Array) -> Array:
    trend_NH = _trend(landscape.quantiles_ND, landscape.axes)
    product_NN = np.ones((len(landscape.points), len(landscape.points)))
    for index, axis in enumerate(landscape.axes):
        own_N = landscape.quantiles_ND[:, index]
        product_NN *= _matern(_distance(own_N, own_N, axis) / float(lengths_D[index]))
    return np.asarray(product_NN + _TREND * trend_NH @ trend_NH.T)


def _solve(kernel_NN: Array, target_N: Array, noise: float, counts_N: NDArray[np.int64]) -> Array:
    alpha_N, kept = np.zeros(len(target_N)), np.flatnonzero(counts_N)
    # A point that was drawn twice has half the noise variance.
    alpha_N[kept] = np.linalg.solve(
        kernel_NN[np.ix_(kept, kept)] + np.diag(noise / counts_N[kept]), target_N[kept]
    )
    return alpha_N


def _smoothing(landscape: Landscape, target_N: Array) -> tuple[Array, float]:
    """Returns the length scales and noise of least leave-one-out error, by two rounds over the axes."""
    few = landscape.taking(landscape.points[:_MAX_TUNING])
    target_N = target_N[:_MAX_TUNING]

    def loss(lengths: tuple[float, ...]) -> tuple[float, float]:
        eigenvalues, vectors = np.linalg.eigh(_kernel(few, np.array(lengths)))
        inverse = 1 / (np.maximum(eigenvalues, 0) + np.array(_NOISES)[:, None])
        # Leave-one-out residual i of K^-1 y is (K^-1 y)_i / (K^-1)_ii, here for every noise at once.
        residuals = (inverse * (target_N @ vectors)) @ vectors.T / (inverse @ (vectors**2).T)
        losses = (residuals**2).mean(axis=1)
        return float(losses.min()), _NOISES[int(losses.argmin())]

    tried: dict[tuple[float, ...], tuple[float, float]] = {}
    lengths = (0.65,) * len(few.axes)
    for _ in range(2):
        for index in range(len(few.axes)):
            options = [(*lengths[:index], length, *lengths[index + 1 :]) for length in _LENGTHS]
            tried |= {option: loss(option) for option in options if option not in tried}
            lengths = min(options, key=lambda option: tried[option][0])
    return np.array(lengths), tried[lengths][1]
