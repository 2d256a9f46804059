"""Window audit: tests if a verdict depends on the window, by optima at its edge and by re-weighted points.

An arm with its optimum at the edge of the window may have a better setting outside. `edge_check` flags it,
with the extension of the window that would settle it. `audit` estimates the difference between two arms in a
smaller, a shifted or a differently weighted window from the existing points.

Points are drawn uniformly in quantile. Under a prior with density w relative to that, the mean over the
window is estimated by the mean of the points weighted by w (self-normalised importance sampling). A smaller
window has weights 0 and 1. Weights cannot extend the window, so only the overlap of a shifted window is
judged, and `covered` is its share.

Source: Kong 1992, "A note on importance sampling using standardized weights", Univ. of Chicago TR 348
  (effective sample size).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from orchestrator.stats.intervals import CONFIDENCE, DIFFERS, MIN_SAMPLE, Estimate, with_both_ends
from orchestrator.stats.measures import MEASURES, Measure, point_scores
from orchestrator.stats.surrogate import (
    Array,
    Axis,
    Landscape,
    Side,
    Surrogate,
    resample_counts,
    useful_surrogate,
)

#: An optimum within this share of the window from an edge is at that edge. It is larger than
#: `trials.search.BEST_EDGE_SHARE`, because the points of a design are spread over the window. So the position
#: of the optimum is less certain.
OPTIMUM_EDGE_SHARE = 0.1
#: The measures that are audited.
AUDITED: tuple[Measure, ...] = ("area_common", "within_common_bar")
#: Step by which windows are shrunk, shifted and extended.
OCTAVES = 1.0
#: The same on an axis without octaves, as a share of the window: one of the paper's five octaves.
LINEAR_SHARE = 0.2

#: Share of refits with the optimum at an edge that is enough for a flag, even if the fit's optimum is
#: elsewhere.
SUPPORT = 1 / 3

Sign = Literal["surrogate", "refits", "best point"]


@dataclass(frozen=True, slots=True)
class Extension:
    """The strip next to the window that would settle an edge flag, to be run as a separate window.

    A wider window instead would move every point of the design, so that no finished trial could be reused.

    Attributes:
      parameter, side: the edge at which to extend the window.
      low, high: the ends of the strip, in the parameter's own unit.
      num_points: number of points with the density of the window.
    """

    parameter: str
    side: Side
    low: float
    high: float
    num_points: int


@dataclass(frozen=True, slots=True)
class EdgeFlag:
    """An edge of the window at which an arm's optimum is or may be.

    Attributes:
      cell, arm, parameter, side: names of the edge.
      signs: the optima at this edge: of the surrogate, of at least a third of its refits, the best point. The
        best point alone is no flag.
      value: the parameter at the surrogate's optimum. If that is elsewhere, the median of the refits at the
        edge.
      fall_pp: decrease of the predicted error over the last tenth of the window, towards the edge. It is
        about 0 if the optimum is exactly at the edge.
      support: share of bootstrap refits with the optimum at this edge.
      extension: the strip that would settle it.
    """

    cell: str
    arm: str
    parameter: str
    side: Side
    signs: tuple[Sign, ...]
    value: float
    fall_pp: float
    support: float
    extension: Extension


@dataclass(frozen=True, slots=True)
class EdgeCheck:
    """All flags of one arm in one cell. `because` is the reason if it could not be judged, else empty."""

    cell: str
    arm: str
    because: str
    flags: tuple[EdgeFlag, ...] = ()


def edge_check(landscape: Landscape) -> EdgeCheck:
    """Flags every edge of the window at which the arm's optimum is or may be.

    A position is at an edge if it is within a tenth of the window from it (in the logarithm on a log axis).
    An edge is flagged if the surrogate's optimum is there, or that of at least a third of the refits to
    resampled points. The decrease of the error at the edge is reported but not required, because it is 0 for
    an optimum exactly at the edge. A parameter is not flagged if it changes the predicted error, on the line
    through the optimum, by less than twice the surrogate's mean absolute error. It has no clear optimum.

    `python -m benchmarks.coverage` measures the rates of true and false flags.
    """
    surrogate, because = useful_surrogate(landscape)
    if surrogate is None:
        return EdgeCheck(landscape.cell, landscape.arm, because)
    (place_D,), _ = surrogate.optima()
    refitted_BD, _ = surrogate.refits(resample_counts(len(landscape.points))).optima()
    trained = np.where(landscape.trained, landscape.errors_pct, np.inf)
    best_D = landscape.quantiles_ND[int(trained.argmin())]
    flags = []
    for index, axis in enumerate(landscape.axes):
        if not axis.ordered:
            continue
        if np.ptp(surrogate.along(index, place_D[None])) < 2 * surrogate.quality.mae_pp:
            continue
        sides: tuple[Side, ...] = ("low", "high")
        for side in sides:
            there_B = np.array([_side(float(u)) == side for u in refitted_BD[:, index]])
            signs: dict[Sign, bool] = {
                "surrogate": _side(float(place_D[index])) == side,
                "refits": bool(there_B.mean() >= SUPPORT),
                "best point": _side(float(best_D[index])) == side,
            }
            if not (signs["surrogate"] or signs["refits"]):
                continue
            at = place_D[index] if signs["surrogate"] else np.median(refitted_BD[there_B, index])
            flags.append(
                EdgeFlag(
                    cell=landscape.cell,
                    arm=landscape.arm,
                    parameter=axis.name,
                    side=side,
                    signs=tuple(sign for sign, lies in signs.items() if lies),
                    value=float(axis.at(float(at))),
                    fall_pp=_fall(surrogate, index, side, place_D),
                    support=float(there_B.mean()),
                    extension=extension(axis, side, landscape.num_planned),
                )
            )
    return EdgeCheck(landscape.cell, landscape.arm, "", tuple(flags))


def extension(axis: Axis, side: Side, num_points: int) -> Extension:
    """Returns the strip next to one side of the window, an octave wide (a fifth of the window if not log)."""
    share = _step(axis)
    ends = (axis.at(-share), axis.low) if side == "low" else (axis.high, axis.at(1 + share))
    return Extension(axis.name, side, float(ends[0]), float(ends[1]), int(np.ceil(num_points * share)))


def _side(quantile: float) -> Side | None:
    if quantile <= OPTIMUM_EDGE_SHARE:
        return "low"
    return "high" if quantile >= 1 - OPTIMUM_EDGE_SHARE else None


def _fall(surrogate: Surrogate, index: int, side: Side, through_D: Array) -> float:
    ends_2D = np.stack([through_D, through_D])
    ends_2D[:, index] = (OPTIMUM_EDGE_SHARE, 0) if side == "low" else (1 - OPTIMUM_EDGE_SHARE, 1)
    inside, edge = surrogate.error_pct(ends_2D)[0]
    return float(inside - edge)


def _step(axis: Axis) -> float:
    """Returns one octave as a share of the window, or LINEAR_SHARE on an axis without octaves."""
    return OCTAVES / axis.width if axis.kind == "log" else LINEAR_SHARE


# --------------------------------------------------------------------------------------- other windows


@dataclass(frozen=True, slots=True)
class View:
    """Another prior over the same window.

    Attributes:
      name: name for tables.
      boxes: the part of the window that counts per arm and parameter, in quantiles. The default is all of it.
      tilt: a parameter, and the side (or the middle) towards which the density rises linearly from 0.
      covered: share of the requested window that is inside the sweep's window.
    """

    name: str
    boxes: Mapping[tuple[str, str], tuple[float, float]]
    tilt: tuple[str, Side | Literal["middle"]] | None = None
    covered: float = 1.0

    def weights(self, landscape: Landscape) -> Array:
        """Returns the density (N) relative to the prior of the points, up to a factor."""
        weights_N = np.ones(len(landscape.points))
        for index, axis in enumerate(landscape.axes):
            low, high = self.boxes.get((landscape.arm, axis.name), (0.0, 1.0))
            u_N = landscape.quantiles_ND[:, index]
            weights_N *= (low <= u_N) & (u_N <= high)
            if self.tilt is not None and self.tilt[0] == axis.name:
                to = self.tilt[1]
                weights_N *= u_N if to == "high" else 1 - u_N if to == "low" else 1 - np.abs(2 * u_N - 1)
        return weights_N


@dataclass(frozen=True, slots=True)
class Verdict:
    """The difference between two arms under one view, on the points that both have.

    Attributes:
      view: name of the view; `as drawn` is the sweep's own window.
      covered: as in `View`.
      measure: name of the measure.
      base_value, value: weighted means over the paired points. Delta is measured from the given reference, or
        from the lowest error of the arm's points that count in this view.
      difference: `value` minus `base_value` with its interval. None if it is refused.
      effective_points: (sum w)^2 / sum w^2, of the arm with fewer. There is no estimate below 6.
      better: the better arm by a t-test of the weighted pairs. None if it is not settled.
      because: the reason if it is not settled or refused, else empty.
      flip: the change from `as drawn`. `reversed`: the other arm is better. `lost`: no longer settled.
        `gained`: settled only here. Empty if there is no change, or if it could not be judged.
    """

    view: str
    covered: float
    measure: Measure
    base_value: float | None
    value: float | None
    difference: Estimate | None
    effective_points: float
    better: str | None
    because: str
    flip: Literal["", "reversed", "lost", "gained"] = ""


@dataclass(frozen=True, slots=True)
class Audit:
    """The verdicts between two arms of one cell under each view of the window.

    Attributes:
      cell, base_arm, arm: names of the three.
      because: the reason if there is no audit, else empty.
      verdicts: by measure, `as drawn` first.
    """

    cell: str
    base_arm: str
    arm: str
    because: str
    verdicts: tuple[Verdict, ...] = ()

    @property
    def flips(self) -> tuple[Verdict, ...]:
        """The verdicts that differ from the sweep's own."""
        return tuple(verdict for verdict in self.verdicts if verdict.flip)


def audits(
    found: Sequence[Landscape], references_pct: Mapping[tuple[str, str], float] | None = None
) -> list[Audit]:
    """Returns the audit of every arm against the first of its cell.

    Args:
      found: the landscapes of a sweep.
      references_pct: by cell and arm, the confirmed error from which Delta is measured. The default is the
        lowest error among the points that count in each view.
    """
    cells: dict[str, list[Landscape]] = {}
    for landscape in found:
        cells.setdefault(landscape.cell, []).append(landscape)
    return [
        audit(base, arm, views(base, arm), references_pct or {})
        for base, *others in cells.values()
        for arm in others
    ]


def views(base: Landscape, arm: Landscape) -> list[View]:
    """Returns the views of the audit, with the sweep's own window first.

    Each axis has views that are smaller, shifted and weighted. Two views change all axes: one is smaller, the
    other re-centred. The latter has a window per arm around its surrogate's optimum, an octave smaller on
    each side. It shows how forgiving an arm is once its settings are approximately right.
    """
    names = [axis.name for axis in base.axes if axis.ordered and arm.axis(axis.name) is not None]
    steps = {(a.arm, axis.name): _step(axis) for a in (base, arm) for axis in a.axes if axis.name in names}
    inner = {key: (step, 1 - step) for key, step in steps.items() if step < 0.5}
    found = [View("as drawn", {})]
    for name in names:
        mine = {key: box for key, box in inner.items() if key[1] == name}
        if len(mine) == 2:
            found.append(View(f"{name} shrunk on both sides", mine))
            lower = {key: (0.0, 1 - steps[key]) for key in mine}
            upper = {key: (steps[key], 1.0) for key in mine}
            covered = 1 - max(steps[key] for key in mine)
            found.append(View(f"{name} shifted down", lower, covered=covered))
            found.append(View(f"{name} shifted up", upper, covered=covered))
        found.append(View(f"{name} weighted to the low side", {}, tilt=(name, "low")))
        found.append(View(f"{name} weighted to the middle", {}, tilt=(name, "middle")))
        found.append(View(f"{name} weighted to the high side", {}, tilt=(name, "high")))
    if len(names) > 1 and len(inner) == 2 * len(names):
        found.append(View("all shrunk on both sides", inner))
    if inner and (centred := {**_centred(base, inner), **_centred(arm, inner)}).keys() == inner.keys():
        found.append(View("re-centred on each arm's optimum", centred))
    return found


def _centred(
    landscape: Landscape, inner: Mapping[tuple[str, str], tuple[float, float]]
) -> dict[tuple[str, str], tuple[float, float]]:
    surrogate, _ = useful_surrogate(landscape)
    if surrogate is None:
        return {}
    place_D = surrogate.optima()[0][0]
    boxes: dict[tuple[str, str], tuple[float, float]] = {}
    for index, axis in enumerate(landscape.axes):
        if (key := (landscape.arm, axis.name)) in inner:
            half = 0.5 - inner[key][0]
            middle = float(np.clip(place_D[index], half, 1 - half))
            boxes[key] = (middle - half, middle + half)
    return boxes


def audit(
    base: Landscape,
    arm: Landscape,
    over: Sequence[View],
    references_pct: Mapping[tuple[str, str], float] | None = None,
    measures: Sequence[Measure] = AUDITED,
) -> Audit:
    """Returns the audit of two arms of one cell. Each view is compared to the first one."""
    if num_censored := base.num_censored + arm.num_censored:
        return Audit(base.cell, base.arm, arm.arm, f"{num_censored} trials were stopped early")
    if not (base.trained.any() and arm.trained.any()):
        return Audit(base.cell, base.arm, arm.arm, "an arm trained at no point")
    found: list[Verdict] = []
    for measure in measures:
        own, *others = (_verdict(base, arm, view, measure, references_pct or {}) for view in over)
        found += [own, *(_flipped(verdict, own) for verdict in others)]
    return Audit(base.cell, base.arm, arm.arm, "", tuple(found))


def effective_points(weights: Array) -> float:
    """Returns (sum w)^2 / sum w^2, the equivalent number of equally weighted points; 0 without weight."""
    return float(weights.sum() ** 2 / (weights**2).sum()) if weights.any() else 0.0


def _reference(
    landscape: Landscape, weights_N: Array, references_pct: Mapping[tuple[str, str], float]
) -> float | None:
    """Returns the reference of an arm's Delta under a view. None if no point that counts trained."""
    counting = landscape.errors_pct[landscape.trained & (weights_N > 0)]
    if not counting.size:
        return None
    return references_pct.get((landscape.cell, landscape.arm), float(counting.min()))


def _verdict(
    base: Landscape,
    arm: Landscape,
    view: View,
    measure: Measure,
    references_pct: Mapping[tuple[str, str], float],
) -> Verdict:
    at, base_at = ({point: row for row, point in enumerate(side.points)} for side in (arm, base))
    shared = [point for point in base.points if point in at]
    over = {side.arm: view.weights(side) for side in (base, arm)}
    references = {side.arm: _reference(side, over[side.arm], references_pct) for side in (base, arm)}
    if MEASURES[measure].common:
        known = [reference for reference in references.values() if reference is not None]
        references = dict.fromkeys(references, min(known, default=None))
    sides, weights = [], []
    for side, rows in ((base, [base_at[p] for p in shared]), (arm, [at[p] for p in shared])):
        reference = references[side.arm]
        scores = None if reference is None else point_scores(measure, side.errors_pct, reference)
        sides.append((scores, rows))
        weights.append(over[side.arm][rows])
    effective = min(effective_points(side) for side in weights)

    def refused(because: str) -> Verdict:
        return Verdict(view.name, view.covered, measure, None, None, None, effective, None, because)

    if effective < MIN_SAMPLE:
        return refused(f"{effective:.1f} effective points, {MIN_SAMPLE} are needed")
    (base_all, base_rows), (arm_all, rows) = sides
    if base_all is None or arm_all is None:
        return refused("an arm trained at no point of this view")
    base_scores, scores = base_all[base_rows], arm_all[rows]
    told, p_value = difference(base_scores, weights[0], scores, weights[1])
    counting = (weights[0] > 0) | (weights[1] > 0)
    num_differing = int(np.count_nonzero(np.abs(scores - base_scores)[counting] > DIFFERS))
    better, because = None, ""
    if num_differing < MIN_SAMPLE:
        because = f"{num_differing} pairs differ, {MIN_SAMPLE} are needed"
    elif p_value >= 1 - CONFIDENCE:
        because = f"p = {p_value:.2f}"
    else:
        better = arm.arm if (told.value > 0) == MEASURES[measure].higher_is_better else base.arm
    return Verdict(
        view=view.name,
        covered=view.covered,
        measure=measure,
        base_value=float(np.average(base_scores, weights=weights[0])),
        value=float(np.average(scores, weights=weights[1])),
        difference=told,
        effective_points=effective,
        better=better,
        because=because,
    )


def difference(
    base_scores: Array, base_weights: Array, scores: Array, weights: Array
) -> tuple[Estimate, float]:
    """Returns the difference of weighted means with the interval of `bounded_mean`, and a t-test's p-value.

    A point contributes w (score - mean) / sum w to the deviation of a weighted mean. The variance is the sum
    of squares of these contributions, as differences between the two arms at each point. With equal weights
    this is the paired t-test.
    """
    means = [np.average(base_scores, weights=base_weights), np.average(scores, weights=weights)]
    value = float(means[1] - means[0])
    moved = weights * (scores - means[1]) / weights.sum()
    moved -= base_weights * (base_scores - means[0]) / base_weights.sum()
    variance = float(moved @ moved)
    count = min(effective_points(weights), effective_points(base_weights))
    low, high = with_both_ends(value, count * variance + value**2, count, (-1.0, 1.0))
    estimate = Estimate(value, float(low), float(high))
    if variance == 0:
        return estimate, 1.0 if value == 0 else 0.0
    t = value / math.sqrt(variance * count / (count - 1))
    return estimate, 2 * float(special.stdtr(count - 1, -abs(t)))


def _flipped(verdict: Verdict, own: Verdict) -> Verdict:
    flip: Literal["", "reversed", "lost", "gained"] = ""
    if verdict.difference is not None and own.difference is not None and verdict.better != own.better:
        flip = "gained" if own.better is None else "lost" if verdict.better is None else "reversed"
    return dataclasses.replace(verdict, flip=flip)
