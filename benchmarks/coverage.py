"""How often the intervals and bands hold the truth, on planted populations of which it is known.

    python -m benchmarks.coverage [--repeats 1000] [--quick]

One table: a row per statistic, population and design, a column per number of points. Every interval claims
95 %; `!` marks a cell below 93. Each cell is the share of the repeats, with its Monte-Carlo standard error.
Truths are from 2^21 draws, optima from the surfaces themselves.

Three kinds of rows. "guard" is the naive percentile bootstrap of best-of-k, which has to fail: a check that
the benchmark can tell. "proposal" is a method that the report does not use. All others are what it prints.
In the rows of "no difference" the complement is the rate of false alarms, which is to lie in 3..5 %. There
the arms are the same surface, with noise of their own, or the same surface turned round in lr.

The bootstrap is a twin of `stats.bootstrap_mean` that resamples all repeats at once, with fewer resamples;
the two are compared before anything is counted.
"""

import argparse
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy import stats as scipy_stats

from benchmarks.populations import POPULATIONS, Population, draw_points, null
from orchestrator import peak, stats

Floats = NDArray[np.float64]
Bounds = tuple[Floats, Floats]
Held = NDArray[np.bool_]
Kind = Literal["report", "guard", "proposal"]

NUM_POINTS = (8, 16, 32, 64, 128)
DESIGNS = ("iid", "Sobol")
#: A cell counts as too low under this.
LEAST = stats.CONFIDENCE - 0.02
FALSE_ALARMS = (0.03, 0.05)
NUM_RESAMPLES = 1_000
NUM_CONFIRMATIONS = 5
#: Repeats in which the rank test is done, too: it is not vectorised.
NUM_TESTED = 200


@dataclass(frozen=True, slots=True)
class Cell:
    """How often one statistic held the truth on one population."""

    statistic: str
    kind: Kind
    population: str
    design: str
    num_points: int
    coverage: float
    num_repeats: int

    @property
    def standard_error(self) -> float:
        """Of the coverage, by Monte Carlo; that of 1 in the repeats where all or none held."""
        share = min(max(self.coverage, 1 / self.num_repeats), 1 - 1 / self.num_repeats)
        return math.sqrt(share * (1 - share) / self.num_repeats)


class Truth:
    """What is known of one arm of a population: a very large draw, and the optimum of its surface."""

    def __init__(self, population: Population, arm: int) -> None:
        """Draws; the same for everyone."""
        rng = np.random.default_rng([7, arm])
        points = draw_points("Sobol", 1, 2**21, rng)[0]
        self.errors_pct = np.sort(population.errors_pct(points, rng, arm))
        self.optimum_pct = population.optimum_pct(arm)

    def median_best_of(self, budgets: NDArray[np.int64]) -> Floats:
        """Median of the best of k."""
        levels = 1 - 0.5 ** (1 / budgets)
        return np.asarray(self.errors_pct[(levels * self.errors_pct.size).astype(int)])

    def mean_best_of(self, budgets: NDArray[np.int64]) -> Floats:
        """Mean of the best of k: the integral of (1 - F)^k."""
        above = 1 - np.arange(1, self.errors_pct.size) / self.errors_pct.size
        gaps = np.diff(self.errors_pct)
        return np.array([float(self.errors_pct[0] + gaps @ above ** int(k)) for k in budgets])

    def measure(self, name: stats.Measure, references_pct: Floats) -> Floats:
        """A measure with Delta taken from each of the references: interpolated between 41 of them."""
        if np.ptp(references_pct) == 0:
            at = float(references_pct[0])
            every: Any = self.errors_pct
            return np.full(references_pct.size, float(stats.point_scores(name, every, at).mean()))
        sample: Any = self.errors_pct[:: self.errors_pct.size // 2**15]
        grid = np.linspace(references_pct.min(), references_pct.max() + 1e-9, 41)
        measured = [float(stats.point_scores(name, sample, at).mean()) for at in grid.tolist()]
        return np.asarray(np.interp(references_pct, grid, measured))


def resample_counts(num_points: int, num_resamples: int = NUM_RESAMPLES) -> Floats:
    """(num_resamples, num_points): how often each point is drawn."""
    rng = np.random.default_rng(num_points)
    return rng.multinomial(num_points, np.full(num_points, 1 / num_points), num_resamples).astype(np.float64)


def expanded_tail(num_points: int) -> float:
    """The lower quantile that `stats.bootstrap_mean` takes."""
    t = scipy_stats.t.ppf((1 + stats.CONFIDENCE) / 2, num_points - 1)
    return float(special.ndtr(-t * math.sqrt(num_points / (num_points - 1))))


def bootstrap_means(scores: Floats, counts: Floats, shifts: Floats | float = 0.0) -> Bounds:
    """`stats.bootstrap_mean` for every row of (repeats, points); `shifts` are added to what it resamples."""
    tail = expanded_tail(scores.shape[1])
    low, high = np.quantile(scores @ counts.T / scores.shape[1] + shifts, [tail, 1 - tail], axis=1)
    return low, high


def check_twin(num_points: int, counts: Floats) -> None:
    """The twin's interval is the report's but for the noise of resampling.

    Raises:
      AssertionError: `stats.bootstrap_mean` does something else by now, and this benchmark has to follow.
    """
    for row in np.random.default_rng(1).lognormal(size=(3, num_points)):
        low, high = (float(bound[0]) for bound in bootstrap_means(row[None], counts))
        real = stats.bootstrap_mean(row)
        assert real.low is not None
        assert real.high is not None
        # The 2.5 % quantile of 1,000 resamples has a standard error of about 1/15 of the half-width, in a
        # normal sample, and several times that in the upper tail of a skewed one.
        assert max(abs(low - real.low), abs(high - real.high)) < 0.25 * (real.high - real.low)


def bootstrap_t_means(scores: Floats, counts: Floats) -> Bounds:
    """Studentised bootstrap of the mean: quantiles of (mean* - mean) / se*, turned round."""
    num_points = scores.shape[1]
    mean, spread = scores.mean(axis=1), scores.std(axis=1, ddof=1) / math.sqrt(num_points)
    means = scores @ counts.T / num_points
    variances = np.maximum(scores**2 @ counts.T / num_points - means**2, 1e-12) / (num_points - 1)
    low, high = np.quantile((means - mean[:, None]) / np.sqrt(variances), [0.025, 0.975], axis=1)
    return mean - high * spread, mean - low * spread


def plus_half_a_pair(differences: Floats) -> Bounds:
    """Student's interval of the mean difference, with half a pair of +1 and half a pair of -1 added.

    Where one arm diverges and the other does not, areas differ by nearly 1: a few such pairs decide, and a
    sample without any cannot know of them. Agresti and Min 2005 add half a pair to each cell of a paired
    2 x 2 table for the same reason.
    """
    num_points = differences.shape[1]
    weight = num_points + 1
    mean = differences.sum(axis=1) / weight
    variance = ((differences**2).sum(axis=1) + 1) / weight - mean**2
    half = scipy_stats.t.ppf((1 + stats.CONFIDENCE) / 2, num_points - 1) * np.sqrt(variance / weight)
    return mean - half, mean + half


def naive_best_of(errors_pct: Floats, budget: int, counts: Floats) -> Bounds:
    """Percentile bootstrap of the unbiased estimator of best-of-k, for every row of (repeats, points)."""
    num_points = errors_pct.shape[1]
    upto = np.concatenate([np.zeros((len(counts), 1)), counts.cumsum(axis=1)], axis=1)
    # C(n - upto, k) / C(n, k): the chance that k of the resample all lie above a point.
    above = num_points - upto
    with np.errstate(invalid="ignore"):
        logs = special.gammaln(above + 1) - special.gammaln(above - budget + 1)
        total = math.lgamma(num_points + 1) - math.lgamma(num_points - budget + 1)
        chance = np.where(above >= budget, np.exp(logs - total), 0.0)
    weights = chance[:, :-1] - chance[:, 1:]
    low, high = np.quantile(np.sort(errors_pct, axis=1) @ weights.T, [0.025, 0.975], axis=1)
    return low, high


def held(bounds: Bounds, truth: Floats | float) -> Held:
    """Which intervals hold the truth; rounding is no miss."""
    low, high = bounds
    return np.asarray((low <= truth + 1e-9) & (truth - 1e-9 <= high))


def scores_of(name: stats.Measure, errors_pct: Floats, references_pct: Floats) -> Floats:
    """`stats.point_scores` of every repeat, each with its own reference."""
    if name == "error":
        references_pct = np.zeros_like(references_pct)
    above_pct: Any = errors_pct - references_pct[:, None]
    return stats.point_scores(name, above_pct, 0.0)


def wilson_shares(scores: Floats) -> Bounds:
    """Wilson's interval for every row of zeros and ones."""
    num_points = scores.shape[1]
    ends = np.array([stats.wilson(count, num_points) for count in range(num_points + 1)])
    found = ends[scores.sum(axis=1).astype(int)]
    return found[:, 0], found[:, 1]


#: A statistic, and for every repeat whether the truth was held.
Found = Iterator[tuple[str, Kind, Held]]


def peak_rows(errors_pct: Floats, truth: Truth, counts: Floats) -> Found:
    """Best-of-k: bands of `orchestrator.peak`, and the naive bootstrap beside them."""
    num_points = errors_pct.shape[1]
    limit = peak.largest_budget(num_points)
    budgets = np.arange(1, limit + 1)
    for name, band, curve in (
        ("median", peak.median_band, truth.median_best_of(budgets)),
        ("mean", peak.mean_band, truth.mean_best_of(budgets)),
    ):
        bands = [band(row, budgets.tolist()) for row in errors_pct]
        low, high = (np.stack(side) for side in zip(*bands, strict=True))
        inside = np.asarray((low <= curve) & (curve <= high))
        yield f"band of {name} best-of-k, all k to the limit", "report", np.asarray(inside.all(axis=1))
        if name == "median":
            yield "band of median best-of-k, at k = limit", "report", inside[:, -1]
    for label, budget in (("n", num_points), ("n / 4", num_points // 4)):
        expected = float(truth.mean_best_of(np.array([budget]))[0])
        yield (
            f"naive bootstrap of mean best-of-k, k = {label}",
            "guard",
            held(naive_best_of(errors_pct, budget, counts), expected),
        )


def measure_rows(
    population: Population, truths: tuple[Truth, Truth], points: Floats, errors: tuple[Floats, Floats],
    counts: Floats, rng: np.random.Generator,
) -> Found:  # fmt: skip
    """Shares, areas and their differences, by what Delta is measured from."""
    num_repeats = len(points)
    area: stats.Measure = "area_under_delta_edf"
    every = np.arange(num_repeats)
    best = [arm.argmin(axis=1) for arm in errors]
    optima = [np.full(num_repeats, truth.optimum_pct) for truth in truths]
    minima = [arm.min(axis=1) for arm in errors]
    # The winner's own true mean, and what five fresh seeds say it is. There the truth is measured from the
    # former: how far the winner is from the optimum of the space is another question.
    own = [population.means_pct(points[every, best[arm]], arm) for arm in (0, 1)]
    noise = population.noise_sd_pct / math.sqrt(NUM_CONFIRMATIONS)
    confirmed = [mean + noise * rng.standard_normal(num_repeats) for mean in own]
    references: dict[str, tuple[list[Floats], list[Floats], Kind]] = {
        "true optimum": (optima, optima, "report"),
        "sample minimum": (minima, optima, "report"),
        "winner's 5 fresh seeds": (confirmed, own, "report"),
    }
    for label, (used, meant, kind) in references.items():
        f2_truth = truths[0].measure("f2", meant[0])
        f2 = scores_of("f2", errors[0], used[0])
        yield f"F(2) Wilson, from {label}", kind, held(wilson_shares(f2), f2_truth)
        scores = [scores_of(area, errors[arm], used[arm]) for arm in (0, 1)]
        areas = [truths[arm].measure(area, meant[arm]) for arm in (0, 1)]
        yield f"area, from {label}", kind, held(bootstrap_means(scores[0], counts), areas[0])
        difference, truth = scores[1] - scores[0], areas[1] - areas[0]
        yield f"area difference, from {label}", kind, held(bootstrap_means(difference, counts), truth)
        if label == "true optimum":
            yield (
                f"area, bootstrap-t, from {label}",
                "proposal",
                held(bootstrap_t_means(scores[0], counts), areas[0]),
            )
            yield (
                f"area difference, bootstrap-t, from {label}",
                "proposal",
                held(bootstrap_t_means(difference, counts), truth),
            )
        if label == "winner's 5 fresh seeds":
            shifts = reference_shifts(scores, noise, len(counts), rng)
            yield (
                f"area difference, from {label}, their noise included",
                "proposal",
                held(bootstrap_means(difference, counts, shifts), truth),
            )
    bar = np.minimum(*confirmed)
    scores = [scores_of(area, errors[arm], bar) for arm in (0, 1)]
    truth = truths[1].measure(area, bar) - truths[0].measure(area, bar)
    yield (
        "area difference, from the lower reference of the two",
        "report",
        held(bootstrap_means(scores[1] - scores[0], counts), truth),
    )
    yield (
        "area difference, from the lower reference, plus half a pair",
        "proposal",
        held(plus_half_a_pair(scores[1] - scores[0]), truth),
    )


def reference_shifts(
    scores: list[Floats], noise: float, num_resamples: int, rng: np.random.Generator
) -> Floats:
    """(repeats, num_resamples): what the noise of two confirmed references does to a difference of areas.

    An area moves by its slope, the share of points within its limit over that limit. The spread is that of
    seeds as it is found: pooled over both arms, 2 (NUM_CONFIRMATIONS - 1) degrees of freedom.
    """
    freedom = 2 * (NUM_CONFIRMATIONS - 1)
    slopes = [np.mean(arm > 0, axis=1) / stats.AREA_LIMIT_PP for arm in scores]
    spread = noise * np.sqrt(rng.chisquare(freedom, len(scores[0])) / freedom) * np.hypot(*slopes)
    return np.asarray(spread[:, None] * rng.standard_t(freedom, num_resamples))


def null_rows(population: Population, points: Floats, counts: Floats, rng: np.random.Generator) -> Found:
    """How often the primary contrast stays silent where there is no difference."""
    num_repeats = len(points)
    every = np.arange(num_repeats)
    errors = [population.errors_pct(points, rng, arm) for arm in (0, 1)]
    minima = [arm.min(axis=1) for arm in errors]
    optima = [np.full(num_repeats, population.optimum_pct())] * 2
    noise = population.noise_sd_pct / math.sqrt(NUM_CONFIRMATIONS)
    own = [population.means_pct(points[every, errors[arm].argmin(axis=1)], arm) for arm in (0, 1)]
    confirmed = [mean + noise * rng.standard_normal(num_repeats) for mean in own]
    bars = [np.minimum(*confirmed)] * 2
    choices: tuple[tuple[str, stats.Measure, list[Floats], Kind], ...] = (
        ("mean error", "error", minima, "report"),
        ("area from sample minima", "area_under_delta_edf", minima, "report"),
        ("area from true optima", "area_under_delta_edf", optima, "report"),
        ("area from winners' 5 fresh seeds", "area_under_delta_edf", confirmed, "report"),
        ("area from winners' 5 fresh seeds, noise included", "area_under_delta_edf", confirmed, "proposal"),
        ("area from the lower reference of the two", "area_common", bars, "report"),
        ("area from the lower reference, plus half a pair", "area_under_delta_edf", bars, "proposal"),
    )
    tested = ("area from winners' 5 fresh seeds", "area from the lower reference of the two")
    for label, measure, references, kind in choices:
        scores = [scores_of(measure, errors[arm], references[arm]) for arm in (0, 1)]
        difference = scores[1] - scores[0]
        shifts = reference_shifts(scores, noise, len(counts), rng) if "included" in label else 0.0
        low, high = (
            plus_half_a_pair(difference) if "plus" in label else bootstrap_means(difference, counts, shifts)
        )
        # As `stats.contrasts` decides: too few pairs that differ are no verdict.
        silent = (np.abs(difference) > 1e-12).sum(axis=1) < stats.MIN_SAMPLE
        yield f"no difference: {label}", kind, silent | ((low <= 0) & (high >= 0))
        if label in tested:
            tests = [stats.signed_rank_p(row) >= 1 - stats.CONFIDENCE for row in difference[:NUM_TESTED]]
            yield f"no difference: {label}, signed ranks", kind, np.array(tests)


def measure_coverage(
    num_repeats: int,
    num_points: Iterable[int] = NUM_POINTS,
    populations: Iterable[Population] = POPULATIONS,
    designs: Iterable[str] = DESIGNS,
) -> list[Cell]:
    """Every statistic on every population, design and number of points."""
    cells: list[Cell] = []
    rng = np.random.default_rng(0)
    truth_of: Callable[[Population], tuple[Truth, Truth]] = functools.cache(
        lambda population: (Truth(population, 0), Truth(population, 1))
    )
    populations = tuple(populations)
    for design in designs:
        for count in num_points:
            counts = resample_counts(count)
            check_twin(count, counts)
            points = draw_points(design, num_repeats, count, rng)
            for population in populations:
                truths = truth_of(population)
                errors = (population.errors_pct(points, rng, 0), population.errors_pct(points, rng, 1))
                found = list(peak_rows(errors[0], truths[0], counts))
                found += measure_rows(population, truths, points, errors, counts, rng)
                for mirrored, which in ((False, "same arms"), (True, "mirrored arms")):
                    found += [
                        (f"{statistic}, {which}", kind, hits)
                        for statistic, kind, hits in null_rows(
                            null(population, mirrored), points, counts, rng
                        )
                    ]
                cells += [
                    Cell(statistic, kind, population.name, design, count, float(hits.mean()), hits.size)
                    for statistic, kind, hits in found
                ]
    return cells


def table(cells: Iterable[Cell]) -> str:
    """The table, and what it comes to."""
    cells = list(cells)
    columns = sorted({cell.num_points for cell in cells})
    lines = [f"{'':24}" + "".join(f"{f'n = {count}':>14}" for count in columns)]
    by_statistic: dict[tuple[Kind, str], list[Cell]] = {}
    for cell in cells:
        by_statistic.setdefault((cell.kind, cell.statistic), []).append(cell)
    for (kind, statistic), group in by_statistic.items():
        lines.append(f"\n{statistic}" + (f"  ({kind})" if kind != "report" else ""))
        rows: dict[tuple[str, str], dict[int, Cell]] = {}
        for cell in group:
            rows.setdefault((cell.population, cell.design), {})[cell.num_points] = cell
        for (population, design), row in rows.items():
            shown = (
                f"{100 * cell.coverage:7.1f} ±{100 * cell.standard_error:3.1f}"
                + ("!" if cell.coverage < LEAST else " ")
                for cell in (row[count] for count in columns)
            )
            lines.append(f"  {population:14}{design:8}" + " ".join(shown))
    lines.append(f"\n{'cells below 93 %, lowest and mean coverage':48}{'below':>10}{'lowest':>8}{'mean':>7}")
    for (kind, statistic), group in by_statistic.items():
        shares = [cell.coverage for cell in group]
        below = f"{sum(share < LEAST for share in shares)}/{len(group)}"
        label = statistic + (f" ({kind})" if kind != "report" else "")
        lines.append(f"{label:58}{below:>8}{100 * min(shares):8.1f}{100 * np.mean(shares):7.1f}")
    for kind in ("report", "proposal"):
        lines += [
            false_alarms(statistic, group)
            for (its, statistic), group in by_statistic.items()
            if its == kind and statistic.startswith("no difference")
        ]
    counts = [
        f"{sum(cell.coverage < LEAST for cell in group)} of {len(group)} {kind} cells"
        for kind in ("report", "guard", "proposal")
        if (group := [cell for cell in cells if cell.kind == kind])
    ]
    lines.append(f"below nominal - 2 points: {', '.join(counts)}")
    return "\n".join(lines)


def false_alarms(statistic: str, cells: list[Cell]) -> str:
    """One line on the rates of false alarms of one contrast."""
    rates, (low, high) = np.array([1 - cell.coverage for cell in cells]), FALSE_ALARMS
    return (
        f"false alarms, {statistic.removeprefix('no difference: ')}: mean {100 * rates.mean():.1f} %,"
        f" {100 * rates.min():.1f} to {100 * rates.max():.1f}; of {rates.size} cells"
        f" {np.sum(rates < low)} below {100 * low:g} %, {np.sum(rates > high)} above {100 * high:g} %"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000, help="sweeps per cell (default: 1000)")
    parser.add_argument("--quick", action="store_true", help="100 sweeps, n = 8 and 32 only")
    arguments = parser.parse_args()
    began = time.perf_counter()
    cells = measure_coverage(100, (8, 32)) if arguments.quick else measure_coverage(arguments.repeats)
    print(table(cells))
    print(f"{len(cells)} cells of {cells[0].num_repeats} sweeps in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
