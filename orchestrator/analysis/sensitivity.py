"""Importance of each parameter, and transfer of the best setting from one arm to another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import sobol_indices, uniform

from orchestrator.stats.intervals import MIN_SAMPLE, Estimate
from orchestrator.stats.surrogate import Array, Landscape, Quality, level_middle, useful_surrogate
from trainables.base import WORST_PCT


@dataclass(frozen=True, slots=True)
class Transfer:
    """The regret of an arm at the best setting of another arm (the donor), in one cell.

    Attributes:
      cell, arm, donor: names of the three.
      because: the reason if there is no regret, else empty.
      num_pairs: points that both arms have.
      point, own_point: point numbers of the donor's best and of the arm's own best.
      regret_pp: the arm's error at the donor's best point minus the arm's own best, in pp, both from the same
        runs. It has no interval, because the own best is a sample minimum. So even equal arms have a regret
        above 0.
      smooth_pp: the same from the surrogates, without the bias of a sample minimum. None unless both
        surrogates are useful. It has no interval, because optima on a plateau are arbitrary and refits do not
        show that.
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
    """Returns the transfer to every arm from every other arm of its cell."""
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
    # Capped at 100 %, because the size of a large loss counts here.
    (own, _), (theirs, _) = (useful_surrogate(side, WORST_PCT) for side in (arm, donor))
    if own is None or theirs is None:
        return None
    (place_D,), _ = theirs.optima()
    _, (lowest,) = own.optima()
    regret_pp = float(own.error_pct(place_D[None])[0, 0] - lowest)
    return Estimate(regret_pp, because="two optima of surfaces may lie anywhere on a plateau")


@dataclass(frozen=True, slots=True)
class Importance:
    """The share of the variance of min(Delta, 10 pp) over the window that one parameter explains.

    Attributes:
      name: path of the parameter.
      main: share explained by the parameter alone (first-order Sobol index).
      total: share that involves it, alone or with others (total Sobol index). A `total` far above `main`
        means interaction.
    """

    name: str
    main: float
    total: float


@dataclass(frozen=True, slots=True)
class Importances:
    """The importances of all varied parameters of one arm in one cell.

    There are none if the surrogate is not useful, and `because` is the reason.
    """

    cell: str
    arm: str
    because: str
    quality: Quality | None
    parameters: tuple[Importance, ...] = ()


def importances(landscape: Landscape) -> Importances:
    """Returns a functional analysis of variance of the surrogate, most important parameter first.

    `scipy.stats.sobol_indices` computes the indices from 4,096 points of the surrogate per column. The mean
    of Delta capped at 10 pp determines the area under the Delta-EDF, so the shares explain that area. They
    are exact to about 0.02 for the surrogate. The error of the surrogate itself has no interval, only its
    quality.

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
                places_MD[:, index] = level_middle(places_MD[:, index], axis)
        return fitted.error_pct(places_MD)

    if len(axes) == 1:
        # SciPy 1.17 cannot do it (an index of one parameter is a number to it), and nothing is to be divided.
        alone = (Importance(axes[0].name, 1.0, 1.0),)
        return Importances(landscape.cell, landscape.arm, "", surrogate.quality, alone)
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
