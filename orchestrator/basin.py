"""How wide the basin around an arm's optimum is: a smooth surrogate of its error, and what follows from it.

Everything is computed in quantiles: coordinate u in [0, 1] of a parameter is the share of its window below
the value, in the logarithm for a `log_uniform` one. So the same sweep has the same measures whether the file
says lr with a log-uniform window or log2 lr with a uniform one. Widths are quantiles times the window's
width: octaves (factors of two) on a log axis, the parameter's own unit otherwise.

The surrogate is kriging (a Gaussian process with a linear trend, Matern 3/2 along each parameter) of
z = log(1 + min(Delta, cap) / 3 pp): errors are followed closely near the optimum and coarsely where a run
was lost anyway, so that a cliff of 80 pp does not ring through the basin. Length scales and the noise are
those of the least leave-one-out error. Every choice was settled on planted surfaces, with and without cliffs.

Intervals are bootstraps over the points of the design: the surrogate is refitted to each resample with the
length scales held. A refit sees 63 % of the places and is biased for it, so the interval is not made of its
percentiles but reaches 2.2 t standard deviations to both sides, the deviation taken from the estimate itself:
the bias counts as spread. A twentieth of the value is added to that deviation in squares: the surface is
smoother than the truth and its basin too wide by a few percent, which no resample shows. Both numbers are
calibrated on planted bowls, plateaus and cliffs, oblique ones too: with 1.5 and nothing, intervals of 95 %
covered 63 to 95 %. Below 24 points there is none. Across a cliff the basin's edge is known to about the
distance between points, and no better.

Shape suffixes in names: B resamples, N points of the design, M places to predict at, D parameters.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.stats import qmc, sobol_indices, uniform

from orchestrator.plan import Plan, Trial
from orchestrator.results import Result, by_cell_and_arm, by_point
from orchestrator.stats import AREA_LIMIT_PP, CONFIDENCE, MIN_SAMPLE, Estimate
from orchestrator.sweep.space import Choice, Domain, Listed, LogUniform
from trainables.base import WORST_PCT

Array = NDArray[np.float64]
Side = Literal["low", "high"]

#: The basin is where the predicted error is at most this much above the arm's reference, in pp.
WITHIN_PP = 2.0
#: With fewer points there is no surrogate.
MIN_POINTS = 8
NUM_REFITS = 100
#: With fewer points a basin has no interval.
MIN_INTERVAL_POINTS = 24
#: Refits share the smoothing and most places, so their spread is too small; see the module's docstring.
_WIDENING, _SMOOTHER = 2.2, 0.05

LR, WEIGHT_DECAY = "optim.lr", "optim.weight_decay"


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


def landscapes(plan: Plan, results: Iterable[Result]) -> list[Landscape]:
    """Every arm in every cell, cells first, from the draws of the sweep alone.

    Confirmations and runs for the noise floor are no draws from the window and are left out.
    """
    draws = by_cell_and_arm(result for result in results if result.trial.role == "sweep")
    return [_landscape(plan, group) for group in draws.values()]


def axis_of(name: str, domain: Domain) -> Axis:
    """Returns the coordinate of a parameter from what the sweep file says of it."""
    if isinstance(domain, Listed):
        kind: Literal["choice", "ordinal"] = "choice" if isinstance(domain, Choice) else "ordinal"
        return Axis(name, kind, 0.0, float(len(domain.values)), domain.values)
    low, high = (float(end) for end in domain.ends)
    return Axis(name, "log" if isinstance(domain, LogUniform) else "linear", low, high)


def _landscape(plan: Plan, draws: Sequence[Result]) -> Landscape:
    trials = [result.trial for result in draws]
    first = trials[0]
    # A parameter that exists at some points only, or moves with another, is no coordinate of its own.
    domains = {
        name: domain
        for name, domain in plan.sweep.domains(first.arm, first.cell).items()
        if plan.sweep.vary[name].zip is None and all(name in trial.values for trial in trials)
    }
    axes = tuple(axis for name, domain in domains.items() if (axis := axis_of(name, domain)).width > 0)
    axes = tuple(axis for axis in axes if not axis.levels or len(axis.levels) > 1)
    rows: list[tuple[int, Trial, float, bool]] = []
    points = by_point(draws)
    for point, results in points.items():
        errors = [result.error_pct for result in results if result.error_pct is not None]
        if errors:
            trained = any(result.rule is not None and result.rule.ranked for result in results)
            rows.append((point, results[0].trial, float(np.mean(errors)), trained))
    places = [[axis.quantile(trial.values[axis.name]) for axis in axes] for _, trial, _, _ in rows]
    return Landscape(
        cell=first.cell_name,
        arm=first.arm,
        axes=axes,
        points=tuple(point for point, _, _, _ in rows),
        quantiles_ND=np.array(places, dtype=np.float64).reshape(len(rows), len(axes)),
        errors_pct=np.array([error for _, _, error, _ in rows], dtype=np.float64),
        trained=np.array([trained for _, _, _, trained in rows], dtype=np.bool_),
        chance_pct=plan.infos[first.config.data].chance_error_pct,
        num_planned=len(points),
        num_censored=sum(result.censored for result in draws),
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
_LINE = np.linspace(0, 1, 129)
_PLANE = np.linspace(0, 1, 65)


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
                candidates[:, index] = _level_middle(candidates[:, index], axis)
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
        return _LINE if axis.ordered else (np.arange(len(axis.levels)) + 0.5) / len(axis.levels)

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
        near_first, near_second = self._near(first, _PLANE), self._near(second, _PLANE)
        planes = np.stack([(near_first * weights_N) @ near_second.T for weights_N in weights_BN])
        ramp = 2 * _PLANE - 1
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
    if why := _unfit(landscape):
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
    if why := _unfit(landscape):
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


def _unfit(landscape: Landscape) -> str:
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


def _level_middle(quantiles: Array, axis: Axis) -> Array:
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


# -------------------------------------------------------------------------------------------- measures


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a basin reaches, clipped by the window.

    Attributes:
      names: the one parameter of a width, the two of an area.
      size: in `unit`, with its interval.
      unit: octaves, for instance, or octaves x octaves.
      window: how much there is at most.
      share: `size` over `window`: for an area over all that varies, the share F(t) that a dense design
        would see.
      touches: parameter and side of each edge of the window that the basin reaches: it may go on there,
        and the size is a lower bound.
    """

    names: tuple[str, ...]
    size: Estimate
    unit: str
    window: float
    share: float
    touches: tuple[tuple[str, Side], ...]


@dataclass(frozen=True, slots=True)
class Basin:
    """The basin of one arm in one cell.

    Attributes:
      cell, arm: which.
      within_pp: t; the basin is {Delta <= t}.
      because: why there is no basin; empty if there is one.
      quality: of the surrogate; None if it could not be fitted.
      optimum: setting of the lowest predicted error.
      optimum_pct: that error.
      reference_pct: what Delta is measured from: as given, else the surrogate's lowest error, which is that
        of a surface and not of one lucky run.
      widths: per ordered parameter, on the line through the optimum.
      area: in the plane of lr and weight decay through the optimum; None unless both vary.
      lr_sensitivity_pp: mean over log-spaced lr at the best of the rest of min(error, chance) minus the best
        error; None unless lr varies, and without an interval where a point diverged. It depends on the
        window's width, so it is comparable at equal widths only. Source: Wortsman et al. 2023, "Small-scale
        proxies for large-scale Transformer training instabilities", https://arxiv.org/abs/2309.14322
    """

    cell: str
    arm: str
    within_pp: float
    because: str
    quality: Quality | None = None
    optimum: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optimum_pct: float | None = None
    reference_pct: float | None = None
    widths: tuple[Extent, ...] = ()
    area: Extent | None = None
    lr_sensitivity_pp: Estimate | None = None


def basin(landscape: Landscape, within_pp: float = WITHIN_PP, reference_pct: float | None = None) -> Basin:
    """Width, area and sensitivity around the optimum of one arm in one cell.

    Args:
      landscape: of the arm.
      within_pp: the t of {Delta <= t}, in pp, above 0.
      reference_pct: the arm's confirmed error, if there is one.

    Raises:
      ValueError: t is not above 0.
    """
    if within_pp <= 0:
        raise ValueError(f"a basin needs a t above 0 pp, got {within_pp}")
    cap_pp = max(AREA_LIMIT_PP, 4 * within_pp)
    surrogate, because = useful_surrogate(landscape, cap_pp)
    if surrogate is None:
        quality = None if _unfit(landscape) else fit_surrogate(landscape, cap_pp).quality
        return Basin(landscape.cell, landscape.arm, within_pp, because, quality)
    counts_BN = resample_counts(len(landscape.points))
    refits = surrogate.refits(counts_BN)
    (place_BD, lowest_B), (places_BD, lowests_B) = surrogate.optima(), refits.optima()
    level_B = (lowest_B if reference_pct is None else np.array([reference_pct])) + within_pp
    levels_B = (lowests_B if reference_pct is None else np.full(len(counts_BN), reference_pct)) + within_pp
    axes, widths, area = landscape.axes, [], None
    for index, axis in enumerate(axes):
        if axis.ordered:
            line_M = surrogate.along(index, place_BD)[0]
            shares_B = _share_below(refits.along(index, places_BD), levels_B)
            share = float(_share_below(line_M[None], level_B)[0])
            touches = _touched(axis.name, line_M[:1], line_M[-1:], level_B[0])
            widths.append(_extent([axis], share, shares_B, touches, len(landscape.points)))
    lr, weight_decay = landscape.axis(LR), landscape.axis(WEIGHT_DECAY)
    if lr is not None and weight_decay is not None:
        plane = surrogate.over(lr, weight_decay, place_BD)
        shares_B = _share_of_plane(refits.over(lr, weight_decay, places_BD), levels_B)
        touches = _touched(LR, plane[0, 0], plane[0, -1], level_B[0])
        touches += _touched(WEIGHT_DECAY, plane[0, :, 0], plane[0, :, -1], level_B[0])
        share = float(_share_of_plane(plane, level_B)[0])
        area = _extent([axes[lr], axes[weight_decay]], share, shares_B, touches, len(landscape.points))
    return Basin(
        cell=landscape.cell,
        arm=landscape.arm,
        within_pp=within_pp,
        because="",
        quality=surrogate.quality,
        optimum={axis.name: axis.at(float(u)) for axis, u in zip(axes, place_BD[0], strict=True)},
        optimum_pct=float(lowest_B[0]),
        reference_pct=float(level_B[0]) - within_pp,
        widths=tuple(widths),
        area=area,
        lr_sensitivity_pp=None if lr is None else _lr_sensitivity(landscape, lr, counts_BN),
    )


def _lr_sensitivity(landscape: Landscape, lr: int, counts_BN: NDArray[np.int64]) -> Estimate | None:
    """From a surrogate of its own, capped at chance: here it matters how much is lost far away."""
    room_pp = landscape.chance_pct - float(landscape.errors_pct.min())
    if room_pp <= 0:
        return None
    surrogate, _ = useful_surrogate(landscape, room_pp)
    if surrogate is None:
        return None

    def sensitivity(fits: Surrogate) -> Array:
        places_BD, lowest_B = fits.optima()
        lines_BM = np.minimum(fits.along(lr, places_BD), landscape.chance_pct)
        return np.asarray(np.trapezoid(lines_BM, _LINE, axis=1) - lowest_B)

    value = float(sensitivity(surrogate)[0])
    if num_diverged := int(np.count_nonzero(landscape.errors_pct >= WORST_PCT)):
        # Between points that train at random, the surface is no mean: intervals would hold in 25 to 90 %.
        return Estimate(value, because=f"{num_diverged} points diverged, and the surface cannot weigh them")
    return _around(value, sensitivity(surrogate.refits(counts_BN)), len(landscape.points), room_pp)


def _around(value: float, resampled_B: Array, num_points: int, most: float = math.inf) -> Estimate:
    """A value of at least 0 with its interval from refits; see the module's docstring."""
    if num_points < MIN_INTERVAL_POINTS:
        return Estimate(value, because=f"{num_points} points, {MIN_INTERVAL_POINTS} are needed")
    error = math.hypot(_WIDENING * math.sqrt(float(np.mean((resampled_B - value) ** 2))), _SMOOTHER * value)
    half = float(special.stdtrit(num_points - 1, (1 + CONFIDENCE) / 2)) * error
    return Estimate(value, max(value - half, 0.0), min(value + half, most))


def _extent(
    axes: Sequence[Axis],
    share: float,
    shares_B: Array,
    touches: tuple[tuple[str, Side], ...],
    num_points: int,
) -> Extent:
    window = math.prod(axis.width for axis in axes)
    return Extent(
        names=tuple(axis.name for axis in axes),
        size=_around(share * window, shares_B * window, num_points, window),
        unit=" x ".join(axis.unit for axis in axes),
        window=window,
        share=share,
        touches=touches,
    )


def _touched(name: str, at_low: Array, at_high: Array, level: float) -> tuple[tuple[str, Side], ...]:
    sides: tuple[tuple[Side, Array], ...] = (("low", at_low), ("high", at_high))
    return tuple((name, side) for side, values in sides if (values <= level).any())


def _share_below(lines_BM: Array, levels_B: Array) -> Array:
    """The share (B) of lines on which a value is at most the level, linear between neighbours."""
    lower = np.minimum(lines_BM[:, :-1], lines_BM[:, 1:])
    rise = np.maximum(np.abs(np.diff(lines_BM, axis=1)), 1e-12)
    return np.asarray(np.clip((levels_B[:, None] - lower) / rise, 0, 1).mean(axis=1))


def _share_of_plane(planes_BMM: Array, levels_B: Array) -> Array:
    """The share (B) of planes at most at the level: exact along the first axis, trapezoid over the second."""
    count, size, _ = planes_BMM.shape
    lines = planes_BMM.transpose(0, 2, 1).reshape(count * size, size)
    shares = _share_below(lines, np.repeat(levels_B, size)).reshape(count, size)
    return np.asarray(np.trapezoid(shares, _PLANE, axis=1))


@dataclass(frozen=True, slots=True)
class Transfer:
    """What it costs an arm to run at the best setting of another one, in one cell.

    Attributes:
      cell, arm, donor: whose settings the arm is given.
      because: why there is no regret; empty if there is one.
      num_pairs: points that both have.
      point, own_point: of the design, the donor's best and the arm's own.
      regret_pp: the arm's error at the donor's best point minus the arm's own best, in pp, both from the same
        runs. The own best is a sample minimum, hence lucky: even equal arms have a regret above 0, and no
        interval is made of it.
      smooth_pp: the same from the surrogates, free of that luck; None unless both are of use. Without an
        interval: on a plateau the two surfaces put their optima anywhere, and refits do not show it.
    """

    cell: str
    arm: str
    donor: str
    because: str
    num_pairs: int = 0
    point: int | None = None
    own_point: int | None = None
    regret_pp: Estimate | None = None
    smooth_pp: Estimate | None = None


def transfers(found: Sequence[Landscape]) -> list[Transfer]:
    """Every arm with the best setting of every other arm of its cell."""
    return [
        _transfer(arm, donor)
        for arm in found
        for donor in found
        if arm.cell == donor.cell and arm.arm != donor.arm
    ]


def _transfer(arm: Landscape, donor: Landscape) -> Transfer:
    if num_censored := arm.num_censored + donor.num_censored:
        return Transfer(arm.cell, arm.arm, donor.arm, f"{num_censored} trials were stopped early")
    if arm.axes != donor.axes:
        return Transfer(arm.cell, arm.arm, donor.arm, "their windows differ: a point is no common setting")
    shared = [point for point in donor.points if point in set(arm.points)]
    arm, donor = arm.taking(shared), donor.taking(shared)
    if len(shared) < MIN_SAMPLE:
        why = f"{len(shared)} points have a result in both arms, {MIN_SAMPLE} are needed"
        return Transfer(arm.cell, arm.arm, donor.arm, why, len(shared))
    if not (arm.trained.any() and donor.trained.any()):
        return Transfer(arm.cell, arm.arm, donor.arm, "an arm trained at no common point", len(shared))
    own, theirs = (
        np.where(side.trained, side.errors_pct, np.maximum(side.errors_pct, WORST_PCT))
        for side in (arm, donor)
    )
    at, own_at = int(theirs.argmin()), int(own.argmin())
    return Transfer(
        cell=arm.cell,
        arm=arm.arm,
        donor=donor.arm,
        because="",
        num_pairs=len(shared),
        point=shared[at],
        own_point=shared[own_at],
        regret_pp=Estimate(float(own[at] - own[own_at]), because="its own best is a sample minimum"),
        smooth_pp=_smooth_regret(arm, donor),
    )


def _smooth_regret(arm: Landscape, donor: Landscape) -> Estimate | None:
    # Up to chance: how much is lost counts here, not only whether.
    (own, _), (theirs, _) = (useful_surrogate(side, WORST_PCT) for side in (arm, donor))
    if own is None or theirs is None:
        return None
    (place_D,), _ = theirs.optima()
    _, (lowest,) = own.optima()
    regret_pp = float(own.error_pct(place_D[None])[0, 0] - lowest)
    return Estimate(regret_pp, because="two optima of surfaces may lie anywhere on a plateau")


@dataclass(frozen=True, slots=True)
class Importance:
    """How much of the variance of min(Delta, 10 pp) over the window follows from one parameter.

    Attributes:
      name: of the parameter.
      main: share explained by it alone (first-order Sobol index).
      total: share that involves it, alone or with others; `total` far above `main` means interaction.
    """

    name: str
    main: float
    total: float


@dataclass(frozen=True, slots=True)
class Importances:
    """Of all that varies, in one arm and cell; none, and why, where the surrogate is of no use."""

    cell: str
    arm: str
    because: str
    quality: Quality | None
    parameters: tuple[Importance, ...] = ()


def importances(landscape: Landscape) -> Importances:
    """Functional analysis of variance of the surrogate, most important first.

    The indices are those of Sobol, computed by `scipy.stats.sobol_indices` from 4,096 places of the surrogate
    per column. Capped at 10 pp, the quantity is the one whose mean is the area under the Delta-EDF, so the
    shares say what moves that area. They are exact to about 0.02 for the surrogate; there is no interval for
    how well the surrogate knows the arm beyond its quality.

    Source: Hutter, Hoos and Leyton-Brown 2014, "An Efficient Approach for Assessing Hyperparameter
      Importance", ICML; Saltelli et al. 2010, Comput. Phys. Commun. 181, 259-270.
    """
    surrogate, because = useful_surrogate(landscape)
    if surrogate is None:
        return Importances(landscape.cell, landscape.arm, because, None)
    fitted, axes = surrogate, landscape.axes

    def capped_delta(quantiles_DM: Array) -> Array:
        places_MD = np.asarray(quantiles_DM, dtype=np.float64).T.copy()
        for index, axis in enumerate(axes):
            if not axis.ordered:
                places_MD[:, index] = _level_middle(places_MD[:, index], axis)
        return fitted.error_pct(places_MD)

    indices = sobol_indices(
        func=capped_delta, n=4096, dists=[uniform()] * len(axes), rng=np.random.default_rng(0)
    )
    pairs = zip(np.ravel(indices.first_order), np.ravel(indices.total_order), strict=True)
    found = [
        Importance(axis.name, float(np.clip(main, 0, 1)), float(np.clip(total, 0, 1)))
        for axis, (main, total) in zip(axes, pairs, strict=True)
    ]
    found.sort(key=lambda importance: -importance.total)
    return Importances(landscape.cell, landscape.arm, "", surrogate.quality, tuple(found))
