"""Size of the basin around an arm's optimum, and its sensitivity to lr, from a surrogate of the error.

All computations use quantiles. The coordinate u in [0, 1] of a parameter is the share of its window below the
value, in the logarithm for `log_uniform`. So lr with a log-uniform window and log2 lr with a uniform one give
the same measures. Widths are quantiles times the window's width: octaves (factors of two) on a log axis,
the parameter's own unit otherwise.

The surrogate is kriging (a Gaussian process with a linear trend, Matern 3/2 along each parameter) of
z = log(1 + min(Delta, cap) / 3 pp). It is accurate near the optimum and coarse at large errors, so that a
cliff of 80 pp does not cause oscillations inside the basin. Length scales and noise minimise the
leave-one-out error. Every choice was made on planted surfaces, with and without cliffs.

Intervals are bootstraps over the points of the design. The surrogate is refitted to each resample with fixed
length scales. A refit has 63 % of the points and is biased by that, so percentiles are not used. The interval
reaches 2.2 t standard deviations to both sides. The deviation is measured from the estimate itself, so that
it includes the bias. A twentieth of the value is added to it in quadrature: the surface is smoother than the
truth and its basin a few percent too wide, which no resample shows. Both numbers were calibrated on planted
bowls, plateaus and cliffs, including oblique ones. With 1.5 and no addition, 95 % intervals covered 63 to
95 %. There is no interval below 24 points. Across a cliff, the accuracy of the basin's edge is about the
distance between points.

Shape suffixes in names: B resamples, N points of the design, M places to predict at, D parameters.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from orchestrator.stats.intervals import CONFIDENCE, Estimate
from orchestrator.stats.measures import AREA_LIMIT_PP
from orchestrator.stats.surrogate import (
    LINE,
    PLANE,
    Array,
    Axis,
    Landscape,
    Quality,
    Side,
    Surrogate,
    fit_surrogate,
    resample_counts,
    unfit,
    useful_surrogate,
)
from orchestrator.sweep.space import Choice, Domain, Listed, LogUniform
from orchestrator.trials.records import Result, by_cell_and_arm, by_point
from orchestrator.trials.trial import Plan, Trial
from trainables.base import WORST_PCT

#: The basin is the region with a predicted error at most this much above the arm's reference, in pp.
WITHIN_PP = 2.0
#: The interval of a basin needs at least this many points.
MIN_INTERVAL_POINTS = 24
#: Corrections of the spread of refits, which share the smoothing and most points; see the module's docstring.
_WIDENING, _SMOOTHER = 2.2, 0.05

LR, WEIGHT_DECAY = "optim.lr", "optim.weight_decay"


def landscapes(plan: Plan, results: Iterable[Result]) -> list[Landscape]:
    """Returns the landscape of every arm in every cell, cells first, from the trials of role `sweep`.

    Confirmations and runs for the noise floor are left out, because they are no draws from the window.
    """
    draws = by_cell_and_arm(result for result in results if result.trial.role == "sweep")
    return [_landscape(plan, group) for group in draws.values()]


def axis_of(name: str, domain: Domain) -> Axis:
    """Returns the axis of a parameter with the domain that the sweep file gives it."""
    if isinstance(domain, Listed):
        kind: Literal["choice", "ordinal"] = "choice" if isinstance(domain, Choice) else "ordinal"
        return Axis(name, kind, 0.0, float(len(domain.values)), domain.values)
    low, high = (float(end) for end in domain.ends)
    return Axis(name, "log" if isinstance(domain, LogUniform) else "linear", low, high)


def _landscape(plan: Plan, draws: Sequence[Result]) -> Landscape:
    trials = [result.trial for result in draws]
    first = trials[0]
    # A parameter that exists at some points only, or is zipped with another, is no independent coordinate.
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


# -------------------------------------------------------------------------------------------- measures


@dataclass(frozen=True, slots=True)
class Extent:
    """The width or area of a basin, clipped by the window.

    Attributes:
      names: the parameter of a width, or both parameters of an area.
      size: width or area in `unit`, with its interval.
      unit: for example octaves, or octaves x octaves.
      window: size of the window, the largest possible value.
      share: `size` over `window`. For an area over all varied parameters it is the F(t) of a dense design.
      touches: parameter and side of each edge of the window that the basin reaches. If there is any, the size
        is a lower bound.
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
      cell, arm: names of the two.
      within_pp: t; the basin is {Delta <= t}.
      because: the reason if there is no basin, else empty.
      quality: accuracy of the surrogate; None if it could not be fitted.
      optimum: setting of the lowest predicted error.
      optimum_pct: the lowest predicted error.
      reference_pct: the error from which Delta is measured. If none was given, it is the surrogate's lowest
        error, which does not depend on a single lucky run.
      widths: per ordered parameter, on the line through the optimum.
      area: in the plane of lr and weight decay through the optimum; None unless both vary.
      lr_sensitivity_pp: mean over log-spaced lr of min(error, chance) minus the best error, with all other
        parameters at their best. None unless lr varies. It has no interval if a point diverged. It depends
        on the window's width, so it is comparable at equal widths only. Source: Wortsman et al. 2023,
        "Small-scale proxies for large-scale Transformer training instabilities",
        https://arxiv.org/abs/2309.14322
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
    """Returns width, area and lr sensitivity of the basin of one arm in one cell.

    Args:
      landscape: the errors of the arm.
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
        quality = None if unfit(landscape) else fit_surrogate(landscape, cap_pp).quality
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
    """Returns the lr sensitivity, from a second surrogate capped at chance. None if that is not useful.

    The larger cap is necessary because errors far from the optimum contribute to the mean.
    """
    room_pp = landscape.chance_pct - float(landscape.errors_pct.min())
    if room_pp <= 0:
        return None
    surrogate, _ = useful_surrogate(landscape, room_pp)
    if surrogate is None:
        return None

    def sensitivity(fits: Surrogate) -> Array:
        places_BD, lowest_B = fits.optima()
        lines_BM = np.minimum(fits.along(lr, places_BD), landscape.chance_pct)
        return np.asarray(np.trapezoid(lines_BM, LINE, axis=1) - lowest_B)

    value = float(sensitivity(surrogate)[0])
    if num_diverged := int(np.count_nonzero(landscape.errors_pct >= WORST_PCT)):
        # No interval, because a surface through random divergences is no mean: coverage would be 25 to 90 %.
        return Estimate(value, because=f"{num_diverged} points diverged, and the surface cannot weigh them")
    return _around(value, sensitivity(surrogate.refits(counts_BN)), len(landscape.points), room_pp)


def _around(value: float, resampled_B: Array, num_points: int, most: float = math.inf) -> Estimate:
    """Returns a value of at least 0 with its interval from refits; see the module's docstring."""
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
    """Returns the share (B) of each line at or below the level, with linear interpolation."""
    lower = np.minimum(lines_BM[:, :-1], lines_BM[:, 1:])
    rise = np.maximum(np.abs(np.diff(lines_BM, axis=1)), 1e-12)
    return np.asarray(np.clip((levels_B[:, None] - lower) / rise, 0, 1).mean(axis=1))


def _share_of_plane(planes_BMM: Array, levels_B: Array) -> Array:
    """Returns the share (B) of each plane at or below the level.

    The integral is that of `_share_below` along the first axis, and the trapezoid rule along the second.
    """
    count, size, _ = planes_BMM.shape
    lines = planes_BMM.transpose(0, 2, 1).reshape(count * size, size)
    shares = _share_below(lines, np.repeat(levels_B, size)).reshape(count, size)
    return np.asarray(np.trapezoid(shares, PLANE, axis=1))
