"""A smooth surface through the errors of an arm, by Gaussian-process regression."""

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
#: With fewer points there is no surrogate.
MIN_POINTS = 8
NUM_REFITS = 100


@dataclass(frozen=True, slots=True)
class Axis:
    """A varied parameter as a coordinate.

    Attributes:
      name: its path.
      kind: `log`, `linear` and `ordinal` are ordered, `choice` is not.
      low, high: the ends of its window; 0 and the number of values where they are listed.
      levels: the values of a choice or an ordinal.
    """

    name: str
    kind: Literal["log", "linear", "ordinal", "choice"]
    low: float
    high: float
    levels: tuple[Any, ...] = ()

    @property
    def ordered(self) -> bool:
        """Whether nearness means anything along it."""
        return self.kind != "choice"

    @property
    def width(self) -> float:
        """Of the window, in `unit`."""
        return math.log2(self.high / self.low) if self.kind == "log" else self.high - self.low

    @property
    def unit(self) -> str:
        """Of `width`."""
        return {"log": "octaves", "linear": "units", "ordinal": "levels", "choice": "levels"}[self.kind]

    def quantile(self, value: Any) -> float:
        """Where a value lies, 0 at the low end and 1 at the high one; the middle of a listed value."""
        if self.levels:
            return (self.levels.index(value) + 0.5) / len(self.levels)
        if self.kind == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float((value - self.low) / (self.high - self.low))

    def at(self, quantile: float) -> Any:
        """The value at a quantile."""
        if self.levels:
            return self.levels[min(int(quantile * len(self.levels)), len(self.levels) - 1)]
        if self.kind == "log":
            return self.low * math.exp(quantile * math.log(self.high / self.low))
        return self.low + quantile * (self.high - self.low)


@dataclass(frozen=True, eq=False)
class Landscape:
    """The errors of one arm in one cell over the points of its window.

    Attributes:
      cell, arm: which.
      axes: what varies, parameters with one value left out.
      points: their numbers in the design; those without a result are absent.
      quantiles_ND: where they lie.
      errors_pct: mean over the replicates there are; a diverged run counts 100.
      trained: whether any replicate of the point may be the arm's best.
      chance_pct: the error of guessing.
      num_planned: points of the design, with a result or without.
      num_censored: trials ended by a judgement of how they did: what is missing then is not missing by
        chance, and every measure is refused.
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
        """The number of an ordered axis; None where the parameter does not vary, or is a choice."""
        found = [index for index, axis in enumerate(self.axes) if axis.name == name and axis.ordered]
        return found[0] if found else None

    def taking(self, points: Sequence[int]) -> "Landscape":
        """With these points only, in this order."""
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

#: Where z turns from linear in Delta to logarithmic, in pp.
_SOFT_PP = 3.0
_LENGTHS = (0.15, 0.25, 0.4, 0.65, 1.0, 1.6, 2.5, 6.0)
_NOISES = (1e-3, 4e-3, 1.6e-2, 6.4e-2, 0.25, 1.0)
#: Prior variance of the trend's coefficients, so large that the data alone decide them.
_TREND = 100.0
#: Smoothing is chosen on this many points at most: more would change little and cost n^3.
_MAX_TUNING = 128
LINE = np.linspace(0, 1, 129)
PLANE = np.linspace(0, 1, 65)


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a surrogate predicts points it has not seen, each left out in turn.

    Attributes:
      num_points: of the fit.
      r2: 1 - (leave-one-out squared error) / (that of predicting the mean of the others), of z. Smoothing is
        chosen by the same figure, so it is a little too good.
      min_r2: below this the surrogate is not used: 3 / n^0.65, which choosing the smoothing alone reaches on
        one surface of pure noise in twenty (simulated for n = 8 to 128).
      mae_pp: mean absolute leave-one-out error over the points within 10 pp of the best.
    """

    num_points: int
    r2: float
    min_r2: float
    mae_pp: float

    @property
    def useful(self) -> bool:
        """Whether it predicts better than the mean does."""
        return self.r2 >= self.min_r2


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Fits of B resamples of one landscape, as one value; the first fit is that of the points themselves.

    z(u) = sum_n alpha_n prod_d k(|u_d - u_nd| / length_d) + (1, 2u - 1) beta,  k Matern 3/2; levels of a
    choice are 0 or 1 apart. Alpha and beta solve (K + c H H' + noise / counts) alpha = z,  beta = c H' alpha.

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
        """The lowest error observed; z is measured from it."""
        return float(self.landscape.errors_pct.min())

    def refits(self, counts_BN: NDArray[np.int64]) -> "Surrogate":
        """Refitted with point n counts[b, n] times in resample b; length scales and noise are held."""
        z_N = _soft(self.landscape.errors_pct, self.base_pct, self.cap_pp)
        kernel_NN = _kernel(self.landscape, self.lengths_D)
        target_N = (z_N - self.mean) / self.scale
        trend_NH = _trend(self.landscape.quantiles_ND, self.landscape.axes)
        alphas = np.stack([_solve(kernel_NN, target_N, self.noise, counts_N) for counts_N in counts_BN])
        return dataclasses.replace(self, alphas_BN=alphas, betas_BH=_TREND * alphas @ trend_NH)

    def error_pct(self, quantiles_MD: Array) -> Array:
        """Predicted errors (B, M) at the places."""
        weights_MN = np.ones((len(quantiles_MD), len(self.landscape.points)))
        for index in range(len(self.landscape.axes)):
            weights_MN *= self._near(index, quantiles_MD[:, index])
        trend_MH = _trend(quantiles_MD, self.landscape.axes)
        return self._error(self.alphas_BN @ weights_MN.T + self.betas_BH @ trend_MH.T)

    def optima(self) -> tuple[Array, Array]:
        """Places (B, D) and values (B) of the lowest prediction in the window.

        The best of the points and 1,024 more, then three rounds along each axis, ends included.
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
        """Quantiles at which `along` predicts."""
        axis = self.landscape.axes[index]
        return LINE if axis.ordered else (np.arange(len(axis.levels)) + 0.5) / len(axis.levels)

    def along(self, index: int, through_BD: Array) -> Array:
        """Predicted errors (B, M) on the lines along one axis through one place per fit."""
        grid = self.grid(index)
        weights_BN = self._others(through_BD, (index,))
        fixed_B, slopes = self._fixed_trend(through_BD, (index,))
        ramp_BM = np.outer(slopes[index], 2 * grid - 1) if index in slopes else 0.0
        return self._error(weights_BN @ self._near(index, grid).T + fixed_B[:, None] + ramp_BM)

    def over(self, first: int, second: int, through_BD: Array) -> Array:
        """Predicted errors (B, M, M) on the planes along two ordered axes through one place per fit."""
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
        """The trend (B) of what is held, and the slopes (B) along what is free."""
        fixed_B, slopes = self.betas_BH[:, 0].copy(), {}
        ordered = [index for index, axis in enumerate(self.landscape.axes) if axis.ordered]
        for column, index in enumerate(ordered, start=1):
            if index in free:
                slopes[index] = self.betas_BH[:, column]
            else:
                fixed_B += self.betas_BH[:, column] * (2 * through_BD[:, index] - 1)
        return fixed_B, slopes


# Basin, edges, importance and figures ask for the same one; a landscape is known by identity.
@functools.lru_cache(maxsize=32)
def fit_surrogate(landscape: Landscape, cap_pp: float = AREA_LIMIT_PP) -> Surrogate:
    """The surrogate of a landscape; whether it is of use is for `quality` to say.

    Args:
      landscape: at least MIN_POINTS points.
      cap_pp: Delta above this counts as this.

    Raises:
      ValueError: fewer points, nothing that varies, or all errors alike.
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
    # Predicting the mean of the others misses by (n / (n - 1)) times the distance from the mean of all.
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
    """The surrogate where it predicts better than the mean, or None and why not."""
    if why := unfit(landscape):
        return None, why
    surrogate = fit_surrogate(landscape, cap_pp)
    if not (quality := surrogate.quality).useful:
        return None, (
            f"a smooth surface predicts these {quality.num_points} points no better than their mean does "
            f"(leave-one-out R2 {quality.r2:.2f}, {quality.min_r2:.2f} is needed)"
        )
    return surrogate, ""


def resample_counts(num_points: int, num_resamples: int = NUM_REFITS, seed: int = 0) -> NDArray[np.int64]:
    """How often each point stands in each bootstrap resample."""
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
    # A point drawn twice is one point known with half the variance.
    alpha_N[kept] = np.linalg.solve(
        kernel_NN[np.ix_(kept, kept)] + np.diag(noise / counts_N[kept]), target_N[kept]
    )
    return alpha_N


def _smoothing(landscape: Landscape, target_N: Array) -> tuple[Array, float]:
    """Length scales and noise of the least leave-one-out error, one axis at a time, twice around."""
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
