"""Noise of the error between seeds: variance components per stream of randomness, and the noise floor.

A group is one setting that was run several times with different seeds. The runs of a stream's group differ in
that stream's seed only; the runs of a `total` group differ in all seeds. The variance within groups is pooled
over points, with weight (runs - 1) per group. The pooling averages over settings if their noise differs.
Intervals are chi-square and assume normal errors.

A group with both diverged and trained runs is left out and counted, because divergence is no noise around a
mean. A group of diverged runs alone has no error to pool.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from orchestrator.stats.intervals import CONFIDENCE, Estimate
from orchestrator.trials.records import Result, by_cell_and_arm
from orchestrator.trials.trial import Role

Stream = Literal["init", "order", "augment"]
_ROLES: dict[Role, Stream] = {"noise_init": "init", "noise_order": "order", "noise_augment": "augment"}


@dataclass(frozen=True, slots=True)
class Component:
    """The standard deviation of single runs from one source of randomness.

    Attributes:
      sd_pp: standard deviation of the error, in pp. It has no interval if all runs were equal.
      freedom: degrees of freedom, runs minus groups; a fraction if variances were added.
      num_groups: number of settings that were run again.
    """

    sd_pp: Estimate
    freedom: float
    num_groups: int


@dataclass(frozen=True, slots=True)
class NoiseSummary:
    """The noise of one arm in one cell.

    Attributes:
      cell, arm: names of the two.
      streams: the component of each measured stream, with all other seeds fixed.
      total: the component of all streams together, from replicates of the design and from confirmations. None
        if there are neither.
      num_diverged_groups: groups left out because some but not all of their runs diverged.
    """

    cell: str
    arm: str
    streams: dict[Stream, Component]
    total: Component | None
    num_diverged_groups: int

    @property
    def floor(self) -> Component | None:
        """The noise of one run: `total` if measured, else the sum of all three streams, else None.

        The sum does not include interactions of streams (an initialisation that suits an order).
        """
        if self.total is not None:
            return self.total
        return _sum(list(self.streams.values())) if len(self.streams) == len(_ROLES) else None


def component(groups: Iterable[Sequence[float]]) -> Component | None:
    """Returns the pooled standard deviation within groups with its 95 % chi-square interval.

    Returns:
      None if no group has two values.
    """
    samples = [np.asarray(group, dtype=np.float64) for group in groups if len(group) > 1]
    freedom = sum(sample.size - 1 for sample in samples)
    if not freedom:
        return None
    squares = sum(float(np.sum((sample - sample.mean()) ** 2)) for sample in samples)
    return _component(squares / freedom, freedom, len(samples))


def _component(variance: float, freedom: float, num_groups: int) -> Component:
    if variance == 0:
        return Component(Estimate(0.0), freedom, num_groups)
    quantiles = stats.chi2.ppf([(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2], freedom)
    low, high = (math.sqrt(freedom * variance / float(quantile)) for quantile in quantiles)
    return Component(Estimate(math.sqrt(variance), low, high), freedom, num_groups)


def _sum(parts: Sequence[Component]) -> Component:
    """Returns the component of a sum of independent parts, with Satterthwaite's degrees of freedom.

    Source: Satterthwaite 1946, "An Approximate Distribution of Estimates of Variance Components",
      Biometrics Bulletin 2, 110-114.
    """
    variances = [part.sd_pp.value**2 for part in parts]
    variance = sum(variances)
    uncertainty = sum(v**2 / part.freedom for v, part in zip(variances, parts, strict=True))
    freedom = variance**2 / uncertainty if uncertainty else sum(part.freedom for part in parts)
    return _component(variance, freedom, min(part.num_groups for part in parts))


def noise(results: Iterable[Result]) -> list[NoiseSummary]:
    """Returns the noise of every arm and cell with a setting that was run twice, in the order of the plan."""
    found = [_noise_summary(cell, arm, group) for (cell, arm), group in by_cell_and_arm(results).items()]
    return [summary for summary in found if summary.streams or summary.total]


def _noise_summary(cell: str, arm: str, results: Sequence[Result]) -> NoiseSummary:
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        trial = result.trial
        # The group of a confirmation has no run of the sweep, because a lucky run is why its point was
        # chosen.
        groups.setdefault((trial.role, trial.point), []).append(result)
        if trial.role == "sweep" and trial.replicate == 0:
            for role in _ROLES:
                groups.setdefault((role, trial.point), []).append(result)
    errors: dict[str, list[list[float]]] = {}
    num_diverged = 0
    for (kind, _), group in groups.items():
        counted = [result for result in group if result.error_pct is not None]
        diverged = {result.state == "diverged" for result in counted}
        if len(counted) > 1 and diverged == {True, False}:
            num_diverged += 1
        if len(counted) > 1 and diverged == {False}:
            errors.setdefault(kind, []).append([e for r in counted if (e := r.error_pct) is not None])
    streams = {stream: found for role, stream in _ROLES.items() if (found := component(errors.get(role, [])))}
    total = component([*errors.get("sweep", []), *errors.get("search", []), *errors.get("confirm", [])])
    return NoiseSummary(cell, arm, streams, total, num_diverged)


def noise_floor_pp(one: NoiseSummary, other: NoiseSummary | None = None) -> Estimate | None:
    """Returns the standard deviation of the difference of two single runs that differ by chance only, in pp.

    The two runs are taken as independent. Arms share the seeds of a point, and the reduction of a pair's
    difference by that is not included.

    Args:
      one: noise of the arm of the first run.
      other: noise of the arm of the second run. The default is the same arm.

    Returns:
      None if an arm has neither a total nor all three streams.
    """
    if one.floor is None or (other is not None and other.floor is None):
        return None
    if other is None or other.floor is None:
        sd, root = one.floor.sd_pp, math.sqrt(2)
        low, high = (None if end is None else root * end for end in (sd.low, sd.high))
        return Estimate(root * sd.value, low, high)
    return _sum([one.floor, other.floor]).sd_pp
