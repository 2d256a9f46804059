"""Whether the window decided the verdict: optima at its edge, and other windows by re-weighting.

An arm whose optimum lies at the edge of what was searched has not had its chance; `edge_check` says so, and
which extension would settle it. `audit` asks of the points that were trained already what the difference
between two arms would have been in a smaller, a shifted or a differently weighted window.

Points are drawn uniformly in quantile. Under another prior with density w relative to that, a mean over the
window is estimated by the mean over the points weighted by w (self-normalised importance sampling); a smaller
window is the case of weights 0 and 1. No weight reaches beyond the window: of a shifted one only the part
that overlaps is judged, and how much that is is said.

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

#: An optimum within this share of the window from an edge lies at it. Wider than `search.BEST_EDGE_SHARE`,
#: because the points of a design are spread over the window, and so the optimum's place is less certain.
OPTIMUM_EDGE_SHARE = 0.1
#: The measures that are audited.
AUDITED: tuple[Measure, ...] = ("area_common", "within_common_bar")
#: By how much windows are shrunk, shifted and extended.
OCTAVES = 1.0
#: The same on an axis that has no octaves, as a share of the window: that of one octave in the paper's five.
LINEAR_SHARE = 0.2

#: Share of refits that put the optimum at an edge for it to be flagged, whatever the fit itself says.
SUPPORT = 1 / 3

Sign = Literal["surrogate", "refits", "best point"]


@dataclass(frozen=True, slots=True)
class Extension:
    """The strip that would settle an edge flag, to be run as a window of its own beside the first.

    Widening the window itself would move every point of the design, and nothing that has run would count.

    Attributes:
      parameter, side: where the window is to grow.
      low, high: the ends of the strip, in the parameter's own unit.
      num_points: as many as fill it as densely as the window was filled.
    """

    parameter: str
    side: Side
    low: float
    high: float
    num_points: int


@dataclass(frozen=True, slots=True)
class EdgeFlag:
    """An arm's best lies at an edge, or it may well do so.

    Attributes:
      cell, arm, parameter, side: which.
      signs: what lies there: the lowest of the surrogate, a third of its refits or more, the best point. The
        last alone is no flag.
      value: of the parameter at the surrogate's optimum; where that lies elsewhere, at the median of the
        refits that lie at the edge.
      fall_pp: by how much the predicted error falls over the last tenth of the window; about 0 where the
        optimum lies at the edge itself.
      support: share of bootstrap refits whose optimum lies at this edge.
      extension: what would settle it.
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
    """All flags of one arm in one cell; `because` says why it could not be judged, empty if it was."""

    cell: str
    arm: str
    because: str
    flags: tuple[EdgeFlag, ...] = ()


def edge_check(landscape: Landscape) -> EdgeCheck:
    """Every edge of the window at which the arm's best lies, or may well lie.

    To lie at an edge is to be within a tenth of the window from it (in the logarithm where the axis has one).
    An edge is flagged where the surrogate's optimum does so, or that of at least a third of the refits to
    resampled points. Whether the error still falls there is told and not asked for: of an optimum exactly at
    the edge it does not. A parameter that moves the predicted error, on the line through the optimum, by less
    than twice the surrogate's mean miss has no optimum to speak of, and is not flagged.

    How often an optimum at or beyond the edge is caught, and one inside of it flagged:
    `python -m benchmarks.coverage`.
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
    """The window's neighbour on one side, an octave wide (or a fifth of the window where there are none)."""
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
    """One octave as a share of the window."""
    return OCTAVES / axis.width if axis.kind == "log" else LINEAR_SHARE


# --------------------------------------------------------------------------------------- other windows


@dataclass(frozen=True, slots=True)
class View:
    """Another prior over the same window.

    Attributes:
      name: for tables.
      boxes: per arm and parameter the part of the window that counts, in quantiles; absent means all of it.
      tilt: a parameter and where the density rises to, linearly from 0: a side, or the middle.
      covered: share of the window asked for that has points.
    """

    name: str
    boxes: Mapping[tuple[str, str], tuple[float, float]]
    tilt: tuple[str, Side | Literal["middle"]] | None = None
    covered: float = 1.0

    def weights(self, landscape: Landscape) -> Array:
        """The density (N) relative to the prior that the points were drawn from, up to a factor."""
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
      view: its name; `as drawn` is the sweep's own.
      covered: as in View.
      measure: which.
      base_value, value: weighted means over the paired points; Delta is measured from the reference as given,
        else from the lowest error of the arm's points that count in this view.
      difference: `value` minus `base_value` with its interval; None where it is refused.
      effective_points: (sum w)^2 / sum w^2, of the arm that has less; below 6 there is no estimate.
      better: the arm that is better, by a t-test of the weighted pairs; None if that is not settled, and
        `because` says why.
      flip: how it departs from `as drawn`: `reversed`: the other arm is better; `lost`: no longer settled;
        `gained`: settled only here; empty if it does not, or if it could not be judged.
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
    """How the verdict between two arms of one cell moves with the window.

    Attributes:
      cell, base_arm, arm: which.
      because: why there is no audit; empty if there is one.
      verdicts: by measure, `as drawn` first.
    """

    cell: str
    base_arm: str
    arm: str
    because: str
    verdicts: tuple[Verdict, ...] = ()

    @property
    def flips(self) -> tuple[Verdict, ...]:
        """The verdicts that depart from the sweep's own."""
        return tuple(verdict for verdict in self.verdicts if verdict.flip)


def audits(
    found: Sequence[Landscape], references_pct: Mapping[tuple[str, str], float] | None = None
) -> list[Audit]:
    """Every arm against the first of its cell.

    Args:
      found: the landscapes of a sweep.
      references_pct: by cell and arm, what Delta is measured from (confirmed errors); left out, the lowest
        error among the points that count in each view.
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
    """The sweep's own window; smaller, shifted and tilted along each axis; smaller and re-centred whole.

    Re-centred means for each arm a window of its own around its surrogate's optimum, an octave smaller on
    each side: it asks how forgiving an arm is once its settings are about right.
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
    """Two arms of one cell under each view; the first view is what the others are held against."""
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
    """(sum w)^2 / sum w^2: as many equally weighted points know as much; 0 without weight."""
    return float(weights.sum() ** 2 / (weights**2).sum()) if weights.any() else 0.0


def _reference(
    landscape: Landscape, weights_N: Array, references_pct: Mapping[tuple[str, str], float]
) -> float | None:
    """What an arm's Delta is measured from under a view; None where no point that counts trained."""
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
    """Difference of the weighted means with the interval of `bounded_mean`, and the p-value of a t-test.

    A weighted mean moves by w (score - mean) / sum w for each of its points; the squares of what both means
    move by together sum to the variance. With equal weights this is the paired t-test.
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
