"""Measures the coverage of the report's intervals and decisions on planted populations with known truth.

    python -m benchmarks.coverage [--repeats 1000] [--quick] [--cells] [--looks 8,16,32,64]

For every interval and band of the report, it prints the coverage: the share of planted sweeps in which the
interval contains the truth. It also prints the rate of refusals and the width. An interval claims 95 %. 93 %
is required of every cell: each population, design and number of points. A cell fails if a rate as low as its
own had a probability below 1e-4 at 93 %. The bound is low, because there are thousands of rates. Then follow
the decisions of the tests between equal arms (at most 5 %), the optimism of confirmed peaks, and the edge
flags.

Exit code 1 means that a stated interval or a decision fails, or that a control does not fail. The controls
are the naive percentile bootstrap of best-of-k, next to the band, and Student's interval, next to that of the
difference of areas. Both must fail somewhere, or the benchmark cannot detect failures.

Truths are from 2^21 draws, optima from the surfaces themselves. `width` is the mean width over that of the
oracle: the shortest central interval, given the distribution of the estimate.
"""

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import signal as scipy_signal
from scipy import special
from scipy import stats as scipy_stats

from benchmarks.populations import POPULATIONS, Population, draw_points, null
from orchestrator.analysis import basin, gaps, noise, window_audit
from orchestrator.stats import best_of, intervals, measures, surrogate
from orchestrator.stats import confirmed as stats_confirmed
from orchestrator.stats.paired import NetShare, SignedRanks

Floats = NDArray[np.float64]
Bounds = tuple[Floats, Floats]
Kind = Literal["report", "guard"]

NUM_POINTS = (8, 16, 32, 64, 128)
DESIGNS = ("iid", "Sobol")
#: Least coverage of a cell: the nominal one minus two points.
LEAST = intervals.CONFIDENCE - 0.02
ALPHA = 1 - intervals.CONFIDENCE
#: Probability of a rate below which its cell fails; low, because there are thousands of rates.
CHANCE = 1e-4
NUM_RESAMPLES = 1_000
NUM_CONFIRMED, NUM_SEEDS = 3, 5
#: Numbers of repeats with statistics that are not vectorised, and with surrogates, which take 20 ms each.
NUM_LOOPED, NUM_SURROGATES = 200, 20
CHANCE_PCT = 90.0


@dataclass(frozen=True, slots=True)
class Row:
    """One statistic over the repeats of a cell; nan where an interval is refused."""

    statistic: str
    value: Floats
    low: Floats
    high: Floats
    truth: Floats | float
    kind: Kind = "report"


@dataclass(frozen=True, slots=True)
class Cell:
    """The coverage of one statistic on one population.

    Attributes:
      coverage: share of the stated intervals that contain the truth; nan if none was stated.
      num_stated, num_repeats: number of stated intervals, and of sweeps.
      width: mean width of the stated intervals over the oracle's.
    """

    statistic: str
    kind: Kind
    population: str
    design: str
    num_points: int
    coverage: float
    num_stated: int
    num_repeats: int
    width: float

    @property
    def doubt(self) -> float:
        """Probability of a coverage this low or lower if the true coverage were 93 %."""
        held = round(self.coverage * self.num_stated)
        return float(scipy_stats.binom.cdf(held, self.num_stated, LEAST))

    @property
    def fails(self) -> bool:
        """True if the coverage is below 93 % by more than chance."""
        return self.num_stated > 0 and self.doubt < CHANCE


@dataclass(frozen=True, slots=True)
class Alarms:
    """The rate of decisions between arms that do not differ."""

    decision: str
    population: str
    design: str
    num_points: int
    rate: float
    num_repeats: int

    @property
    def fails(self) -> bool:
        """True if the rate is above 5 % by more than chance."""
        made = round(self.rate * self.num_repeats)
        return float(scipy_stats.binom.sf(made - 1, self.num_repeats, ALPHA)) < CHANCE


class Truth:
    """The truth about one arm of a population: a very large draw, and the optimum of its surface."""

    def __init__(self, population: Population, arm: int) -> None:
        """Draws the errors, with a fixed seed."""
        rng = np.random.default_rng([7, arm])
        points = draw_points("Sobol", 1, 2**21, rng)[0]
        errors = population.errors_pct(points, rng, arm)
        order = np.argsort(errors)
        self.errors_pct, self.weights = errors[order], points[order, 0]
        self.diverged = float(np.mean(errors >= 100))

    def mean_best_of(self, budget: int) -> float:
        """Returns the mean of the best of k: the integral of (1 - F)^k."""
        above = 1 - np.arange(1, self.errors_pct.size) / self.errors_pct.size
        return float(self.errors_pct[0] + np.diff(self.errors_pct) @ above**budget)

    def median_best_of(self, budgets: NDArray[np.int64]) -> Floats:
        """Returns the median of the best of k."""
        levels = 1 - 0.5 ** (1 / budgets)
        return np.asarray(self.errors_pct[(levels * self.errors_pct.size).astype(int)])

    def measure(self, name: measures.Measure, references_pct: Floats, weighted: bool = False) -> Floats:
        """Returns a measure with Delta relative to each reference, interpolated between 41 of them.

        `weighted` uses a prior whose density rises linearly with the logarithm of lr.
        """
        stride = self.errors_pct.size // 2**15
        sample: Any = self.errors_pct[::stride]
        weights = self.weights[::stride] if weighted else np.ones(sample.size)
        grid = np.linspace(references_pct.min(), references_pct.max() + 1e-9, 41)
        measured = [measures.point_scores(name, sample, at) @ weights for at in grid.tolist()]
        return np.asarray(np.interp(references_pct, grid, np.array(measured) / weights.sum()))


# ------------------------------------------------------- `orchestrator.stats`, vectorised over all sweeps


def scores_of(name: measures.Measure, errors_pct: Floats, references_pct: Floats) -> Floats:
    """Returns `measures.point_scores` of every repeat, each with its own reference."""
    if name == "error":
        references_pct = np.zeros_like(references_pct)
    above_pct: Any = errors_pct - references_pct[:, None]
    return measures.point_scores(name, above_pct, 0.0)


def bounded_means(scores: Floats, ends: tuple[Any, Any]) -> Bounds:
    """Returns `intervals.bounded_mean` for every row."""
    return intervals.with_both_ends(scores.mean(axis=1), (scores**2).mean(axis=1), scores.shape[1], ends)


def shares(scores: Floats) -> Bounds:
    """Returns `intervals.share_interval` for every row of zeros and ones."""
    num_points = scores.shape[1]
    ends = np.array([intervals.share_interval(count, num_points) for count in range(num_points + 1)])
    found = ends[scores.sum(axis=1).astype(int)]
    return found[:, 0], found[:, 1]


def one_arm(name: measures.Measure, errors_pct: Floats, references_pct: Floats) -> tuple[Floats, Bounds]:
    """Returns value and interval of a measure in one arm."""
    scores = scores_of(name, errors_pct, references_pct)
    if measures.MEASURES[name].within_pp is not None:
        return scores.mean(axis=1), shares(scores)
    least = np.minimum(references_pct, errors_pct.min(axis=1))
    return scores.mean(axis=1), bounded_means(scores, (least, 100.0) if name == "error" else (0.0, 1.0))


def two_arms(
    name: measures.Measure, errors: Sequence[Floats], references: Sequence[Floats]
) -> tuple[Floats, Bounds]:
    """Returns value and interval of the difference of a measure. Each arm has its own reference."""
    differences = scores_of(name, errors[1], references[1]) - scores_of(name, errors[0], references[0])
    span: Any = 1.0
    if name == "error":
        span = 100 - np.minimum.reduce([*references, errors[0].min(axis=1), errors[1].min(axis=1)])
    return differences.mean(axis=1), bounded_means(differences, (-span, span))


@functools.cache
def signed_rank_table(count: int) -> Floats:
    """Returns two-sided p-values by the sum of positive ranks, from all sign patterns of `count` values.

    Source: the recursion of Wilcoxon 1945 by generating function: the product of (1 + x^rank) / 2.
    """
    chances = np.ones(1)
    for rank in range(1, count + 1):
        chances = (np.concatenate([chances, np.zeros(rank)]) + np.concatenate([np.zeros(rank), chances])) / 2
    below = np.cumsum(chances)
    return np.minimum(1.0, 2 * np.minimum(below, below[::-1]))


def signed_ranks(differences: Floats) -> tuple[Floats, Floats]:
    """Returns p-value and signed sum of ranks of every row, as `stats` does without ties."""
    rounded = np.round(differences, 9)
    count = np.count_nonzero(rounded, axis=1)
    ranks = scipy_stats.rankdata(np.abs(rounded), axis=1) - (differences.shape[1] - count)[:, None]
    positive = np.where(rounded > 0, ranks, 0).sum(axis=1)
    total = count * (count + 1) / 2
    spread = np.sqrt(count * (count + 1) * (2 * count + 1) / 24)
    found = 2 * special.ndtr(-np.abs(positive - total / 2) / np.maximum(spread, 1e-9))
    for size in np.unique(count[count <= 50]):
        rows = count == size
        found[rows] = signed_rank_table(int(size))[np.round(positive[rows]).astype(int)]
    return found, 2 * positive - total


def decided(name: measures.Measure, differences: Floats, alpha: float = ALPHA) -> NDArray[np.bool_]:
    """Returns whether `analysis.contrasts` would settle each row, tested alone."""
    higher, lower = ((sign * differences > intervals.DIFFERS).sum(axis=1) for sign in (1, -1))
    enough = higher + lower >= intervals.MIN_SAMPLE
    if measures.MEASURES[name].test == "mcnemar":
        p_values, favoured = 2 * scipy_stats.binom.cdf(np.minimum(higher, lower), higher + lower, 0.5), None
    else:
        p_values, favoured = signed_ranks(differences)
    agree = True if favoured is None else favoured * differences.mean(axis=1) > 0
    return np.asarray(enough & (p_values <= alpha) & agree)


def check_twins(rng: np.random.Generator) -> None:
    """Checks that the vectorised statistics equal those that the report computes for one sweep.

    Raises:
      AssertionError: `orchestrator.analysis.summary` has changed, so this benchmark must be updated.
    """
    errors = 20 + rng.exponential(4, (2, 20, 24))
    errors[rng.random(errors.shape) < 0.1] = 100.0
    bars = errors.min(axis=(0, 2))
    for name in ("area_common", "within_common_bar", "error"):
        values, (low, high) = one_arm(name, errors[0], bars)
        differences = scores_of(name, errors[1], bars) - scores_of(name, errors[0], bars)
        _, (below, above) = two_arms(name, errors, [bars, bars])
        for row, bar in enumerate(bars.tolist()):
            sample = errors[0, row].tolist()
            real = measures.measures_of(sample, None, bar)[name]
            np.testing.assert_allclose((real.value, real.low, real.high), (values[row], low[row], high[row]))
            ends = (-1.0, 1.0) if name != "error" else (bar - 100, 100 - bar)
            real = intervals.bounded_mean(differences[row], ends)
            np.testing.assert_allclose((real.low, real.high), (below[row], above[row]))
    distinct = rng.standard_normal((20, 24)) * (rng.random((20, 24)) < 0.8)
    p_values, sums = signed_ranks(distinct)
    for row, sample in enumerate(distinct):
        np.testing.assert_allclose(
            (SignedRanks.of(sample).p_value, np.sign(SignedRanks.of(sample).interval(ALPHA).value)),
            (p_values[row], np.sign(sums[row])),
        )


# --------------------------------------------------------------------------------------------------- rows


def of(estimates: Iterable[intervals.Estimate | None], statistic: str, truth: Floats | float) -> Row:
    """Returns a row from the report's own estimates. None, or an estimate without ends, is a refusal."""
    ends = [
        (math.nan,) * 3
        if found is None
        else (found.value, *(math.nan if end is None else end for end in (found.low, found.high)))
        for found in estimates
    ]
    value, low, high = np.array(ends, dtype=np.float64).reshape(-1, 3).T
    return Row(statistic, value, low, high, truth)


def naive_best_of(errors_pct: Floats, budget: int) -> tuple[Floats, Bounds]:
    """Returns the unbiased estimator of best-of-k with the percentile bootstrap, for every row."""
    num_points = errors_pct.shape[1]
    rng = np.random.default_rng(num_points)
    counts = rng.multinomial(num_points, np.full(num_points, 1 / num_points), NUM_RESAMPLES)
    upto = np.concatenate([np.zeros((len(counts), 1)), counts.cumsum(axis=1)], axis=1)
    # C(n - upto, k) / C(n, k): the chance that k of the resample are all above a point.
    above = num_points - upto
    with np.errstate(invalid="ignore"):
        logs = special.gammaln(above + 1) - special.gammaln(above - budget + 1)
        total = math.lgamma(num_points + 1) - math.lgamma(num_points - budget + 1)
        chance = np.where(above >= budget, np.exp(logs - total), 0.0)
    weights, ordered = chance[:, :-1] - chance[:, 1:], np.sort(errors_pct, axis=1)
    low, high = np.quantile(ordered @ weights.T, [0.025, 0.975], axis=1)
    return ordered @ best_of.best_of_weights(num_points, np.array([budget]))[0], (low, high)


def peak_rows(errors_pct: Floats, truth: Truth) -> Iterator[Row]:
    """Yields rows of best-of-k: the band of `orchestrator.stats.best_of`, and the naive bootstrap."""
    num_points = errors_pct.shape[1]
    budgets = np.arange(1, best_of.largest_budget(num_points) + 1)
    bands = [best_of.median_band(row, budgets.tolist()) for row in errors_pct]
    low, high = (np.stack(side) for side in zip(*bands, strict=True))
    curve = truth.median_best_of(budgets)
    # The whole band as one interval: the largest distance of the curve outside it.
    outside = np.maximum(low - curve, curve - high).max(axis=1)
    yield Row(
        "band of median best-of-k, all k", outside * math.nan, outside, np.full(len(low), math.inf), 0.0
    )
    medians = np.quantile(errors_pct, 1 - 0.5 ** (1 / budgets[-1]), axis=1, method="median_unbiased")
    yield Row("band of median best-of-k, last k", medians, low[:, -1], high[:, -1], float(curve[-1]))
    value, bounds = naive_best_of(errors_pct, num_points)
    truth_pct = truth.mean_best_of(num_points)
    yield Row("naive bootstrap of best-of-k, k = n", value, *bounds, truth_pct, "guard")


COMMON: tuple[tuple[measures.Measure, str], ...] = (
    ("area_common", "common area"), ("within_common_bar", "common bar"), ("error", "mean error"),
)  # fmt: skip


def common_rows(truths: Sequence[Truth], errors: Sequence[Floats], bars: Floats, label: str) -> Iterator[Row]:
    """Yields rows of the deciding measures, of one arm and between arms, with one reference for both."""
    for name, said in COMMON:
        values, bounds = one_arm(name, errors[0], bars)
        truth = [arm.measure(name, bars) for arm in truths]
        yield Row(f"{said}, {label}", values, *bounds, truth[0])
        values, bounds = two_arms(name, errors, [bars, bars])
        yield Row(f"difference of {said}, {label}", values, *bounds, truth[1] - truth[0])
        if (name, label) == ("area_common", "unconfirmed"):
            differences = scores_of(name, errors[1], bars) - scores_of(name, errors[0], bars)
            num_points = differences.shape[1]
            half = special.stdtrit(num_points - 1, 1 - ALPHA / 2) * differences.std(axis=1, ddof=1)
            half /= math.sqrt(num_points)
            yield Row(
                f"plain t of the {said} difference", values, values - half, values + half,
                truth[1] - truth[0], "guard",
            )  # fmt: skip


def typical_rows(
    population: Population, errors: Sequence[Floats], bars: Floats, label: str = "unconfirmed"
) -> Iterator[Row]:
    """Yields rows of the intervals that belong to the deciding tests, at the pairs that differ."""
    for name, said in COMMON:
        differences = scores_of(name, errors[1], bars) - scores_of(name, errors[0], bars)
        test = NetShare if measures.MEASURES[name].test == "mcnemar" else SignedRanks
        found = [test.of(row).interval(ALPHA) for row in differences]
        kind = "net share" if test is NetShare else "typical difference"
        yield of(found, f"{kind} of {said}, {label}", typical_truth(population, name, bars))


def typical_truth(population: Population, name: measures.Measure, bars: Floats) -> Floats:
    """Returns the truth about the pairs that differ, for each reference, interpolated between 9 of them.

    For shares it is the net share. Else it is the median of (d + d') / 2 of two independent differences. Its
    distribution is that of d convolved with itself, from 2^20 differences in 2^14 bins.
    """
    sample = typical_sample(population)
    grid = np.linspace(bars.min(), bars.max() + 1e-9, 9) if name != "error" else bars[:1]
    found = []
    for bar in grid:
        scores = [scores_of(name, arm[None], np.array([bar]))[0] for arm in sample]
        differences = scores[1] - scores[0]
        differing = differences[np.abs(differences) > intervals.DIFFERS]
        if measures.MEASURES[name].test == "mcnemar":
            found.append(float(np.sign(differing).mean()) if differing.size else 0.0)
            continue
        counts, edges = np.histogram(differing, 2**14)
        twice = np.cumsum(scipy_signal.fftconvolve(counts, counts))
        at = np.interp(twice[-1] / 2, twice, np.arange(twice.size))
        width = edges[1] - edges[0]
        # Bin i of the convolution is the sum of two differences around 2 * edges[0] + (i + 1) * width.
        found.append(float(edges[0] + (at + 0.5) * width / 2 + width / 4))
    return np.asarray(np.interp(bars, grid, found)) if len(grid) > 1 else np.full(bars.shape, found[0])


@functools.cache
def typical_sample(population: Population) -> tuple[Floats, Floats]:
    """Returns a very large draw of both arms at the same points."""
    rng = np.random.default_rng(11)
    points = rng.random((2**20, 2))
    return population.errors_pct(points, rng, 0), population.errors_pct(points, rng, 1)


@dataclass(frozen=True, slots=True)
class Confirmations:
    """The confirmed best of one arm in every sweep, from fresh seeds."""

    confirmed: list[stats_confirmed.Confirmed | None]
    truth_pct: Floats

    @property
    def estimates(self) -> list[intervals.Estimate | None]:
        """Errors of the confirmed best. None if one of its runs, or every point, diverged."""
        return [None if found is None or found.num_diverged else found.val for found in self.confirmed]

    @property
    def ends(self) -> tuple[Floats, Floats, Floats]:
        """Value and interval of the reference; nan if there is none."""
        row = of(self.estimates, "", 0.0)
        return row.value, row.low, row.high


def confirm(
    population: Population, points: Floats, errors_pct: Floats, arm: int, rng: np.random.Generator
) -> Confirmations:
    """Runs the three lowest points of every sweep again with five fresh seeds."""
    best = np.argsort(errors_pct, axis=1)[:, :NUM_CONFIRMED]
    chosen = np.take_along_axis(points, best[..., None], axis=1)
    fresh = population.errors_pct(np.repeat(chosen[:, :, None], NUM_SEEDS, axis=2), rng, arm)
    means = population.means_pct(chosen, arm)
    found = [stats_confirmed.confirmed_of(list(range(NUM_CONFIRMED)), runs, None) for runs in fresh]
    truth = [math.nan if c is None else mean[c.point] for c, mean in zip(found, means, strict=True)]
    return Confirmations(found, np.array(truth))


def _welch(
    base: stats_confirmed.Confirmed | None, other: stats_confirmed.Confirmed | None
) -> intervals.Estimate | None:
    told = None if base is None or other is None else stats_confirmed.welch(base, other, "val")
    return None if told is None else told[0]


def confirmed_rows(
    truths: Sequence[Truth], errors: Sequence[Floats], confirmations: Sequence[Confirmations]
) -> Iterator[Row]:
    """Yields rows of confirmed peaks, their difference, and measures relative to each arm's own."""
    first, second = confirmations
    yield of(first.estimates, "confirmed best of three, five seeds", first.truth_pct)
    welch = [
        None if None in estimates else _welch(base, other)
        for base, other, *estimates in zip(
            first.confirmed, second.confirmed, first.estimates, second.estimates, strict=True
        )
    ]
    yield of(welch, "difference of confirmed bests", second.truth_pct - first.truth_pct)
    ends = [arm.ends for arm in confirmations]
    known = np.isfinite(ends[0][0]) & np.isfinite(ends[1][0])
    if not known.any():
        return
    kept = [arm[known] for arm in errors]
    value, low, high = ([arm[side][known] for arm in ends] for side in range(3))
    meant = [arm.truth_pct[known] for arm in confirmations]
    yield from common_rows(truths, kept, np.minimum(*value), "confirmed")
    for name, said in (("f1", "F(1)"), ("f2", "F(2)"), ("f4", "F(4)"), ("area_under_delta_edf", "own area")):
        truth = [truths[arm].measure(name, meant[arm]) for arm in (0, 1)]
        values, _ = one_arm(name, kept[0], value[0])
        least, most = (one_arm(name, kept[0], end[0])[1] for end in (low, high))
        yield Row(f"{said}, confirmed", values, least[0], most[1], truth[0])
        values, _ = two_arms(name, kept, value)
        least, most = (two_arms(name, kept, end)[1] for end in ([high[0], low[1]], [low[0], high[1]]))
        yield Row(f"difference of {said}, confirmed", values, least[0], most[1], truth[1] - truth[0])


def gap_rows(truths: Sequence[Truth], errors: Sequence[Floats], again: Sequence[Floats]) -> Iterator[Row]:
    """Yields rows of gaps at equal best-of-k, with arms as cells, and of the difference of two gaps."""
    budget = max(errors[0].shape[1] // 4, 1)
    truth = truths[1].mean_best_of(budget) - truths[0].mean_best_of(budget)
    pairs = list(zip(*errors, *again, strict=True))
    found = [gaps.best_of_difference([(1.0, b), (-1.0, a)], budget) for a, b, _, _ in pairs]
    yield of(found, "gap of best-of-k, k = n / 4", truth)
    terms = [[(1.0, b), (-1.0, a), (-1.0, c), (1.0, d)] for a, b, c, d in pairs]
    found = [gaps.best_of_difference(four, budget) for four in terms]
    # The second arm's gap is the first one's with the opposite sign.
    yield of(found, "difference of two gaps", 2 * truth)


def view_rows(
    truths: Sequence[Truth], points: Floats, errors: Sequence[Floats], bars: Floats
) -> Iterator[Row]:
    """Yields rows of the common area under another prior, whose density rises with lr."""
    scores = [scores_of("area_common", arm, bars) for arm in errors]
    found = [
        window_audit.difference(base, weights, other, weights)[0]
        for base, other, weights in zip(*scores, points[..., 0], strict=True)
    ]
    truth = [arm.measure("area_common", bars, weighted=True) for arm in truths]
    yield of(found, "difference of common area, re-weighted", truth[1] - truth[0])


def noise_rows(num_points: int, num_repeats: int, rng: np.random.Generator) -> Iterator[Row]:
    """Yields rows of the spread between seeds: three runs of every eighth point; a sum of three streams."""
    num_groups = max(num_points // 8, 1)
    spreads = (0.15, 0.1, 0.05)
    found: list[intervals.Estimate | None] = []
    summed: list[intervals.Estimate | None] = []
    for _ in range(num_repeats):
        parts = [noise.component(rng.normal(20, sd, (num_groups, 3)).tolist()) for sd in spreads]
        found.append(parts[0].sd_pp if parts[0] else None)
        streams = {name: part for name, part in zip(("init", "order", "augment"), parts, strict=True) if part}
        floor = noise.NoiseSummary("", "", streams, None, 0).floor
        summed.append(floor.sd_pp if floor else None)
    yield of(found, "sd between seeds", spreads[0])
    yield of(summed, "sd of the noise floor, three streams", math.hypot(*spreads))


AXES = (
    surrogate.Axis(basin.LR, "log", 10**-1.5, 10**1.5), surrogate.Axis(basin.WEIGHT_DECAY, "log", 0.1, 10.0),
)  # fmt: skip


def landscape(points: Floats, errors_pct: Floats, arm: int) -> surrogate.Landscape:
    """Returns one sweep in the form that the surrogate takes."""
    count = len(points)
    return surrogate.Landscape(
        "all", "ab"[arm], AXES, tuple(range(count)), points, errors_pct, errors_pct < 100, CHANCE_PCT, count
    )


@functools.cache
def true_basin(population: Population) -> dict[str, float]:
    """Returns width in lr and weight decay, area, and sensitivity to lr, from a fine grid of the surface."""
    grid = np.linspace(0, 1, 1001)
    mean, diverges = population.surface(np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1), 0)
    error = np.where(diverges > 0, 100 * diverges + (1 - diverges) * mean, mean)
    row, column = np.unravel_index(int(error.argmin()), error.shape)
    inside = error <= error.min() + basin.WITHIN_PP
    width, height = (axis.width for axis in AXES)
    return {
        "basin's width in lr": float(inside[:, column].mean()) * width,
        "basin's width in weight decay": float(inside[row].mean()) * height,
        "basin's area": float(inside.mean()) * width * height,
        "lr sensitivity": float(np.minimum(error[:, column], CHANCE_PCT).mean() - error.min()),
    }


def basin_rows(population: Population, points: Floats, errors_pct: Floats) -> Iterator[Row]:
    """Yields rows of the basin's extents and the sensitivity to lr, of the first arm."""
    found: dict[str, list[intervals.Estimate | None]] = {name: [] for name in true_basin(population)}
    for at, errors in zip(points, errors_pct, strict=True):
        one = basin.basin(landscape(at, errors, 0))
        sizes = [extent.size for extent in (*one.widths, one.area) if extent is not None]
        estimates = [*sizes, one.lr_sensitivity_pp] if sizes else [None] * len(found)
        for name, estimate in zip(found, estimates, strict=True):
            found[name].append(estimate)
    for name, estimates in found.items():
        yield of(estimates, name, true_basin(population)[name])


# -------------------------------------------------------------------------------------------- no difference


def alarm_rates(
    population: Population, points: Floats, rng: np.random.Generator
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Returns the rate of each decision between two arms that do not differ."""
    errors = [population.errors_pct(points, rng, arm) for arm in (0, 1)]
    bars = np.minimum(*(arm.min(axis=1) for arm in errors))
    for name, said in COMMON:
        differences = scores_of(name, errors[1], bars) - scores_of(name, errors[0], bars)
        yield said, decided(name, differences)
        # Three sweeps taken as cells of one: Holm's first step, which any of them may pass.
        thirds = decided(name, differences, ALPHA / 3)
        yield f"{said}, any of 3 cells (Holm)", thirds[: len(thirds) // 3 * 3].reshape(-1, 3).any(axis=1)
    scores = [scores_of("area_common", arm, bars)[:NUM_LOOPED] for arm in errors]
    p_values = [
        # Weights symmetric about the middle of lr, so that mirroring lr changes nothing.
        window_audit.difference(base, weights, other, weights)[1]
        for base, other, weights in zip(*scores, 1 - abs(2 * points[:NUM_LOOPED, :, 0] - 1), strict=True)
    ]
    enough = (np.abs(scores[1] - scores[0]) > intervals.DIFFERS).sum(axis=1) >= intervals.MIN_SAMPLE
    yield "common area, re-weighted (t-test)", (np.array(p_values) < ALPHA) & enough
    few = points[:NUM_LOOPED]
    confirmations = [confirm(population, few, arm[:NUM_LOOPED], i, rng) for i, arm in enumerate(errors)]
    bars = np.fmin(*(found.ends[0] for found in confirmations))
    for name, said in COMMON:
        at = [scores_of(name, arm[:NUM_LOOPED], bars) for arm in errors]
        yield f"{said}, confirmed bar", decided(name, at[1] - at[0])
    welch = [
        None if base is None or other is None else stats_confirmed.welch(base, other, "val")
        for base, other in zip(*(found.confirmed for found in confirmations), strict=True)
    ]
    p_values = [1.0 if told is None or told[1] is None else told[1] for told in welch]
    # Only winners that are equally good by construction count, because others do differ.
    alike = np.isclose(
        *(found.truth_pct for found in confirmations), rtol=0, atol=population.noise_sd_pct / 100
    )
    yield "confirmed bests (Welch)", ((np.array(p_values) < ALPHA) & alike)[alike]


@dataclass(frozen=True, slots=True)
class EdgeRate:
    """The rate at which an edge is flagged. `wanted` is true if the optimum is there."""

    case: str
    wanted: bool
    num_points: int
    rate: float
    num_judged: int


#: Bowls over five octaves: 1.5 pp / octave^2 in lr, 0.5 in weight decay; the optimum's offset in octaves.
EDGES: dict[str, tuple[float, float, float]] = {
    "optimum an octave beyond the edge of lr": (3.5, 0.0, 0.5),
    "optimum exactly at the edge of lr": (2.5, 0.0, 0.5),
    "optimum in the middle": (0.0, 0.0, 0.5),
    "optimum 0.7 octaves off the middle": (0.7, -0.5, 0.5),
    "optimum 1.5 octaves off the middle": (1.5, 0.0, 0.5),
    "weight decay without effect": (0.0, 0.0, 0.0),
}


def edge_rates(num_repeats: int, num_points: Iterable[int]) -> list[EdgeRate]:
    """Returns rates of `window_audit.edge_check` flags on planted bowls with noise of 0.3 pp.

    A flag counts at lr's upper edge if the optimum is there, else at any edge.
    """
    rates, rng = [], np.random.default_rng(0)
    for case, (x0, y0, curve) in EDGES.items():
        for count in num_points:
            flagged = []
            for points in draw_points("Sobol", num_repeats, count, rng):
                x, y = (5 * points - 2.5).T
                errors = 20 + 1.5 * (x - x0) ** 2 + curve * (y - y0) ** 2 + rng.normal(0, 0.3, count)
                check = window_audit.edge_check(landscape(points, errors, 0))
                if not check.because:
                    flags = {(flag.parameter, flag.side) for flag in check.flags}
                    flagged.append((basin.LR, "high") in flags if x0 >= 2.5 else bool(flags))
            rates.append(EdgeRate(case, x0 >= 2.5, count, float(np.mean(flagged)), len(flagged)))
    return rates


# ------------------------------------------------------------------------------------------------ the table


def cell_of(row: Row, population: str, design: str, num_points: int) -> Cell:
    """Returns the coverage and width of a statistic over its repeats."""
    stated = np.isfinite(row.low) | np.isfinite(row.high)
    low, high, value = (side[stated] for side in (row.low, row.high, row.value))
    truth = np.broadcast_to(row.truth, row.value.shape)[stated]
    # Tolerates rounding.
    held = (low <= truth + 1e-9) & (truth - 1e-9 <= high)
    width = math.nan
    if stated.any() and np.isfinite(high - low).all():
        oracle = float(np.ptp(np.quantile(value - truth, [ALPHA / 2, 1 - ALPHA / 2])))
        width = float(np.mean(high - low)) / oracle if oracle > 0 else math.nan
    coverage = float(held.mean()) if stated.any() else math.nan
    return Cell(
        row.statistic, row.kind, population, design, num_points, coverage, len(low), len(stated), width
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """All results of the benchmark.

    Attributes:
      optimism: per population, the confirmed error minus the setting's true error, in sd between seeds, and
        its standard error.
    """

    cells: list[Cell]
    alarms: list[Alarms]
    optimism: dict[str, tuple[float, float]]
    edges: list[EdgeRate]


def measure_coverage(
    num_repeats: int,
    num_points: Sequence[int] = NUM_POINTS,
    populations: Sequence[Population] = POPULATIONS,
    designs: Sequence[str] = DESIGNS,
    num_surrogates: int = NUM_SURROGATES,
) -> Measured:
    """Measures every statistic on every population, design and number of points."""
    cells: list[Cell] = []
    alarms: list[Alarms] = []
    misses: dict[str, list[Floats]] = {}
    rng = np.random.default_rng(0)
    check_twins(rng)
    truth_of: Callable[[Population], list[Truth]] = functools.cache(
        lambda population: [Truth(population, arm) for arm in (0, 1)]
    )
    for design in designs:
        for count in num_points:
            points = draw_points(design, num_repeats, count, rng)
            few = points[:NUM_LOOPED]
            cells += [cell_of(row, "normal noise", design, count) for row in noise_rows(count, len(few), rng)]
            for population in populations:
                truths = truth_of(population)
                errors = [population.errors_pct(points, rng, arm) for arm in (0, 1)]
                again = [population.errors_pct(few, rng, arm) for arm in (0, 1)]
                some = [arm[: len(few)] for arm in errors]
                confirmations = [confirm(population, few, arm, i, rng) for i, arm in enumerate(some)]
                rows = list(peak_rows(errors[0], truths[0]))
                diverged = (errors[0] >= 100).astype(np.float64)
                rows.append(Row("diverged", diverged.mean(axis=1), *shares(diverged), truths[0].diverged))
                bars = np.minimum(*(arm.min(axis=1) for arm in errors))
                rows += common_rows(truths, errors, bars, "unconfirmed")
                rows += typical_rows(population, some, bars[: len(few)])
                rows += confirmed_rows(truths, some, confirmations)
                rows += gap_rows(truths, some, again)
                rows += view_rows(truths, few, some, bars[: len(few)])
                rows += basin_rows(population, points[:num_surrogates], errors[0][:num_surrogates])
                cells += [cell_of(row, population.name, design, count) for row in rows]
                first = confirmations[0]
                off = (first.ends[0] - first.truth_pct) / population.noise_sd_pct
                misses.setdefault(population.name, []).append(off[np.isfinite(off)])
                for mirrored, which in ((False, "alike"), (True, "mirrored")):
                    alarms += [
                        Alarms(
                            decision,
                            f"{population.name}, {which}",
                            design,
                            count,
                            float(made.mean()),
                            made.size,
                        )
                        for decision, made in alarm_rates(null(population, mirrored), points, rng)
                        if made.size
                    ]
    optimism = {}
    for name, found in misses.items():
        every = np.concatenate(found)
        optimism[name] = (float(every.mean()), float(every.std() / math.sqrt(every.size)))
    edges = edge_rates(num_surrogates, [count for count in num_points if count >= 16])
    return Measured(cells, alarms, optimism, edges)


def cell_table(cells: Iterable[Cell]) -> str:
    """Returns a table of the coverage of every cell with its Monte-Carlo standard error; `!` below 93 %."""
    cells = list(cells)
    columns = sorted({cell.num_points for cell in cells})
    lines = [f"{'':24}" + "".join(f"{f'n = {count}':>14}" for count in columns)]
    for statistic in dict.fromkeys(cell.statistic for cell in cells):
        lines.append(f"\n{statistic}")
        rows: dict[tuple[str, str], dict[int, Cell]] = {}
        for cell in cells:
            if cell.statistic == statistic:
                rows.setdefault((cell.population, cell.design), {})[cell.num_points] = cell
        for (population, design), row in rows.items():
            shown = []
            for count in columns:
                cell = row.get(count)
                if cell is None or not cell.num_stated:
                    shown.append(f"{'refused':>12}")
                    continue
                share = min(max(cell.coverage, 1 / cell.num_stated), 1 - 1 / cell.num_stated)
                error = math.sqrt(max(share * (1 - share), 0) / cell.num_stated)
                mark = "!" if cell.coverage < LEAST else " "
                shown.append(f"{100 * cell.coverage:6.1f} ±{100 * error:3.1f}{mark}")
            lines.append(f"  {population:14}{design:8}" + " ".join(shown))
    return "\n".join(lines)


def interval_lines(cells: Sequence[Cell], head: str = "interval") -> list[str]:
    """Returns a table with a line per statistic and its worst cell; guards are last."""
    lines = [
        f"{head:50}{'cells':>6}{'below 93':>9}{'fails':>6}{'worst %':>8}{'mean %':>7}"
        f"{'refused %':>10}{'width':>7}   worst cell"
    ]
    for kind in ("report", "guard"):
        for statistic in dict.fromkeys(cell.statistic for cell in cells if cell.kind == kind):
            group = [cell for cell in cells if cell.statistic == statistic]
            refused = 1 - sum(cell.num_stated for cell in group) / sum(cell.num_repeats for cell in group)
            stated = [cell for cell in group if cell.num_stated]
            if not stated:
                lines.append(f"{statistic:50}{0:6}{'':30}{100 * refused:10.1f}")
                continue
            # By probability, because a cell of ten intervals easily misses by many points.
            worst = min(stated, key=lambda cell: (cell.doubt, cell.coverage))
            widths = [cell.width for cell in stated if math.isfinite(cell.width)]
            lines.append(
                f"{statistic:50}{len(stated):6}{sum(cell.coverage < LEAST for cell in stated):9}"
                f"{sum(cell.fails for cell in stated):6}{100 * worst.coverage:8.1f}"
                f"{100 * np.mean([cell.coverage for cell in stated]):7.1f}{100 * refused:10.1f}"
                f"{np.median(widths) if widths else math.nan:7.2f}   {worst.population}, {worst.design}, "
                f"n = {worst.num_points}" + (" (guard)" if kind == "guard" else "")
            )
    return lines


def interval_faults(cells: Sequence[Cell]) -> list[str]:
    """Returns a line for each cell that fails, and for each guard that fails nowhere."""
    said = [
        f"{cell.statistic}: {100 * cell.coverage:.1f} % of {cell.num_stated} on {cell.population}, "
        f"{cell.design}, n = {cell.num_points}"
        for cell in cells
        if cell.kind == "report" and cell.fails
    ]
    guards = [cell for cell in cells if cell.kind == "guard"]
    return said + [
        f"{statistic} (guard) holds everywhere: this benchmark cannot tell"
        for statistic in dict.fromkeys(cell.statistic for cell in guards)
        if not any(cell.fails for cell in guards if cell.statistic == statistic)
    ]


def alarm_faults(alarms: Iterable[Alarms]) -> list[str]:
    """Returns a line for each decision that is made too often."""
    return [
        f"{alarm.decision}: in {100 * alarm.rate:.1f} % on {alarm.population}, {alarm.design}, "
        f"n = {alarm.num_points}, where there is no difference"
        for alarm in alarms
        if alarm.fails
    ]


def command_line(doc: str | None, repeats: int, unit: str, quick: str) -> argparse.ArgumentParser:
    """Returns the options that the benchmarks of coverage share: --repeats and --quick."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=repeats, help=f"sweeps per {unit} (default: {repeats})"
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def conclude(broken: Sequence[str], promise: str) -> int:
    """Prints the faults, or that the promise holds. Returns the exit code."""
    print("\n".join(broken) if broken else promise)
    return 1 if broken else 0


def summary(found: Measured) -> str:
    """Returns a summary with a line per interval, decision, population and edge."""
    lines = interval_lines(found.cells)
    lines.append(
        f"\n{'decided where there is no difference':44}{'cells':>6}{'above 5':>9}{'fails':>6}{'worst %':>8}"
        f"{'mean %':>7}{'alike, iid %':>14}"
    )
    for decision in dict.fromkeys(alarm.decision for alarm in found.alarms):
        these = [alarm for alarm in found.alarms if alarm.decision == decision]
        alike = [a.rate for a in these if a.population.endswith("alike") and a.design == "iid"]
        lines.append(
            f"{decision:44}{len(these):6}{sum(a.rate > ALPHA for a in these):9}"
            f"{sum(a.fails for a in these):6}{100 * max(a.rate for a in these):8.1f}"
            f"{100 * np.mean([a.rate for a in these]):7.1f}"
            f"{100 * np.mean(alike) if alike else math.nan:14.1f}"
        )
    lines.append("\nconfirmed best of three minus the truth of its setting, in sd between seeds")
    lines += [f"  {name:42}{mean:+8.3f} ±{error:.3f}" for name, (mean, error) in found.optimism.items()]
    lines.append("\nedge flags: optimum at the upper edge of lr caught, or any edge flagged without reason")
    for case in dict.fromkeys(rate.case for rate in found.edges):
        of_case = [rate for rate in found.edges if rate.case == case]
        told = ", ".join(f"n = {rate.num_points}: {100 * rate.rate:.0f} %" for rate in of_case)
        lines.append(f"  {case:42}{'caught' if of_case[0].wanted else 'false':>7}  {told}")
    return "\n".join(lines)


def faults(found: Measured) -> list[str]:
    """Returns a line for each failure."""
    return interval_faults(found.cells) + alarm_faults(found.alarms)


def main() -> int:
    """Prints the tables. Returns 1 if an interval or decision fails."""
    parser = command_line(__doc__, 1000, "cell", "200 sweeps, n = 16 and 32 only")
    parser.add_argument("--cells", action="store_true", help="every cell, too")
    parser.add_argument("--looks", help="instead, verdicts over looks at these numbers of points: 8,16,32,64")
    arguments = parser.parse_args()
    began = time.perf_counter()
    if arguments.looks:
        # Imported here, because it builds on this module.
        from benchmarks import coverage_looks

        numbers = [int(number) for number in arguments.looks.split(",")]
        broken = coverage_looks.report(numbers, 300 if arguments.quick else arguments.repeats)
        return conclude(broken, "every verdict over looks keeps its promise")
    found = measure_coverage(200, (16, 32)) if arguments.quick else measure_coverage(arguments.repeats)
    if arguments.cells:
        print(cell_table(found.cells), end="\n\n")
    print(summary(found))
    seconds = time.perf_counter() - began
    print(f"\n{len(found.cells)} cells and {len(found.alarms)} rates of decisions in {seconds:.0f} s")
    return conclude(faults(found), "every stated interval and every decision keeps its promise")


if __name__ == "__main__":
    sys.exit(main())
