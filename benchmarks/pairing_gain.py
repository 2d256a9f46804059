"""Measures the gain of a paired Sobol design in trials, and the coverage of intervals over its blocks.

    python -m benchmarks.pairing_gain [--repeats 1000] [--only real]

Two arms are compared by n trials each, over and over. Four designs: points drawn for each arm by itself
("apart"); the same independent points for both ("iid"); one scrambled Sobol sequence for both ("one"); and
the same number of points in 8 independently scrambled blocks ("blocks"). The gain of a design over another
is the ratio of the variances of the estimated difference, and so the factor of trials that the other one
needs. It is printed with its jackknife standard error over 20 groups of sweeps.

Intervals claim 95 %: over blocks by `intervals.block_mean`, over points by Student's t as if the points were
independent. A third interval, "neighbours", is for comparison; the report does not use it. It takes the
variance of one sequence's mean from the differences of each point and its nearest, (a - b)^2 / 2n, and t with
n / 2 degrees of freedom. Such a difference contains the noise and the change of the surface between two
points. It excludes the change over the whole window, which adds no variance to an evenly spread design.

Populations are the planted surfaces of `benchmarks.populations`, and a table of real trials
(`benchmarks.digits_table`): N points, one in each cell of a grid. A point that the table lacks is looked up
in two ways that err differently. "cells" takes the trial of the point's cell. Its errors are real, but slopes
become steps, and the noise of a cell is always the same, so that little varies at n near N; it is used for n
up to N / 4. "smooth" takes a thin-plate spline and adds the residuals, of both arms together, of one of the 8
nearest points. It draws new noise, but the surface is as smooth as the spline.

Delta is relative to the better arm's optimum (planted) or lowest error (table). This reference is the same in
every sweep, because the benchmark tests the choice of points, not that of a reference.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from scipy.interpolate import RBFInterpolator
from scipy.spatial import KDTree

from benchmarks.digits_table import TABLE
from benchmarks.populations import POPULATIONS, Population, draw_points
from orchestrator.stats import intervals as stats_intervals
from orchestrator.stats import measures

Floats = NDArray[np.float64]

NUM_POINTS = (16, 32, 64)
NUM_SCRAMBLES = 8
MEASURES: tuple[measures.Measure, ...] = ("area_common", "error")
NUM_GROUPS = 20
#: Coverage below this counts as too low.
LEAST = stats_intervals.CONFIDENCE - 0.02
NEAREST = 8
SMOOTHINGS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


class Source(Protocol):
    """Two arms over the unit square."""

    @property
    def name(self) -> str:
        """Short name for the table."""

    @property
    def reference_pct(self) -> float:
        """Reference error of Delta, for both arms."""

    def pair_pct(self, points: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Returns errors in percent of one run of each arm at points (..., 2)."""


@dataclass(frozen=True)
class Planted:
    """A planted surface with known truth."""

    population: Population

    @property
    def name(self) -> str:
        """Name of the surface."""
        return self.population.name

    @property
    def reference_pct(self) -> float:
        """Error at the optimum of the better arm."""
        return min(self.population.optimum_pct(0), self.population.optimum_pct(1))

    def pair_pct(self, points: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Returns errors with independent seed noise of the two arms."""
        return self.population.errors_pct(points, rng, 0), self.population.errors_pct(points, rng, 1)


class Cells:
    """Real trials, looked up by the cell of a square grid. Every cell contains one trial."""

    def __init__(self, name: str, places: Floats, errors_pct: Floats) -> None:
        """Takes places (n, 2) in the unit square, and errors (n, 2) of the two arms there, in percent."""
        self.name, self.errors_pct = f"{name}, cells", errors_pct
        self.reference_pct = float(errors_pct.min())
        columns = 2 ** math.ceil(math.log2(len(places)) / 2)
        self.grid = columns, len(places) // columns
        self.row_of_cell = np.argsort(self._cells(places))
        if not np.array_equal(np.sort(self._cells(places)), np.arange(math.prod(self.grid))):
            raise ValueError("the table must have one point in every cell")

    def _cells(self, points: Floats) -> NDArray[np.int64]:
        at = (points * self.grid).astype(np.int64)
        return np.asarray(at[..., 0] * self.grid[1] + at[..., 1])

    def pair_pct(self, points: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Returns the errors of both arms in the point's cell, without random noise."""
        errors = self.errors_pct[self.row_of_cell[self._cells(points)]]
        return errors[..., 0], errors[..., 1]


class Smooth:
    """Real trials smoothed, with residuals of neighbouring points as noise."""

    def __init__(self, name: str, places: Floats, errors_pct: Floats) -> None:
        """Takes the same arguments as `Cells`. Chooses the smoothing by 8-fold cross-validation."""
        self.name = f"{name}, smooth"
        self.reference_pct = float(errors_pct.min())
        fold = np.arange(len(places)) % 8

        def missed(smoothing: float) -> float:
            total = 0.0
            for k in range(8):
                fitted = self._fit(places[fold != k], errors_pct[fold != k], smoothing)
                total += float(np.sum((fitted(places[fold == k]) - errors_pct[fold == k]) ** 2))
            return total

        self.surface = self._fit(places, errors_pct, min(SMOOTHINGS, key=missed))
        self.residuals_pct = errors_pct - self.surface(places)
        self.tree = KDTree(places)

    @staticmethod
    def _fit(places: Floats, errors_pct: Floats, smoothing: float) -> RBFInterpolator:
        return RBFInterpolator(places, errors_pct, smoothing=smoothing)

    def pair_pct(self, points: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Returns the spline plus the residuals of both arms at one of the nearest real points."""
        flat = points.reshape(-1, 2)
        _, nearest = self.tree.query(flat, NEAREST)
        chosen = nearest[np.arange(len(flat)), rng.integers(NEAREST, size=len(flat))]
        errors = np.clip(self.surface(flat) + self.residuals_pct[chosen], 0, 100)
        return errors[:, 0].reshape(points.shape[:-1]), errors[:, 1].reshape(points.shape[:-1])


def real_sources() -> Iterator[Source]:
    """Yields both neighbouring pairs of arms of the table, looked up in both ways."""
    header, *rows = [line.split(",") for line in TABLE.read_text("utf-8").splitlines()]
    table = np.array(rows, dtype=np.float64)
    arms = [name.removesuffix("_error_pct") for name in header[3:]]
    for first in range(len(arms) - 1):
        name = f"{arms[first]}/{arms[first + 1]}"
        for lookup in (Cells, Smooth):
            yield lookup(name, table[:, 1:3], table[:, 3 + first : 5 + first])


def draw_scrambled(num_repeats: int, num_points: int, rng: np.random.Generator) -> Floats:
    """Returns (num_repeats, num_points, 2). Point i is in block i % NUM_SCRAMBLES, as in `SobolDesign`."""
    blocks = draw_points("Sobol", num_repeats * NUM_SCRAMBLES, num_points // NUM_SCRAMBLES, rng)
    return blocks.reshape(num_repeats, NUM_SCRAMBLES, -1, 2).swapaxes(1, 2).reshape(num_repeats, -1, 2)


def score(source: Source, measure: measures.Measure, errors_pct: Floats) -> Floats:
    """Returns one number per point, whose mean is the measure."""
    values: list[float] = errors_pct.ravel().tolist()
    return measures.point_scores(measure, values, source.reference_pct).reshape(errors_pct.shape)


def differences(source: Source, measure: measures.Measure, pair_pct: tuple[Floats, Floats]) -> Floats:
    """Returns the score of the second arm minus that of the first, per point."""
    return score(source, measure, pair_pct[1]) - score(source, measure, pair_pct[0])


def gain(base: Floats, other: Floats) -> tuple[float, float]:
    """Returns the ratio of the variances of two estimates over sweeps, and its standard error."""
    group = np.arange(base.size) % NUM_GROUPS
    ratio = float(base.var(ddof=1) / other.var(ddof=1))
    without = [float(base[group != g].var() / other[group != g].var()) for g in range(NUM_GROUPS)]
    return ratio, math.sqrt((NUM_GROUPS - 1) * float(np.var(without)))


def interval(values: Floats) -> tuple[Floats, Floats]:
    """Returns mean and half-width of Student's interval for every row."""
    count = values.shape[1]
    quantile = scipy_stats.t.ppf((1 + stats_intervals.CONFIDENCE) / 2, count - 1)
    return values.mean(axis=1), quantile * values.std(axis=1, ddof=1) / math.sqrt(count)


def neighbour_interval(points: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Returns mean and half-width from differences of nearest neighbours, for every row."""
    count = values.shape[1]
    apart = np.sum((points[:, :, None] - points[:, None]) ** 2, axis=-1) + np.diag(np.full(count, np.inf))
    steps = values - np.take_along_axis(values, apart.argmin(axis=2), axis=1)
    quantile = scipy_stats.t.ppf((1 + stats_intervals.CONFIDENCE) / 2, count / 2)
    return values.mean(axis=1), quantile * np.sqrt(np.mean(steps**2, axis=1) / 2 / count)


def block_means(values: Floats) -> Floats:
    """Averages (sweeps, points) to (sweeps, blocks)."""
    return values.reshape(len(values), -1, NUM_SCRAMBLES).mean(axis=1)


def check_twin(values: Floats) -> None:
    """Checks that `intervals.block_mean` equals the benchmark's vectorised version.

    Raises:
      AssertionError: it has changed, so this benchmark must be updated.
    """
    means, halves = interval(block_means(values))
    for row, mean, half in zip(values[:5], means, halves, strict=False):
        found = stats_intervals.block_mean(row, (np.arange(row.size) % NUM_SCRAMBLES).tolist())
        if found.low is not None and found.high is not None:
            assert np.allclose((found.low, found.high), (mean - half, mean + half))


@dataclass(frozen=True, slots=True)
class Row:
    """One population, measure and number of points.

    Attributes:
      gains: ratio of variances and its standard error, per pair of designs.
      coverage: per design and interval.
      width: root mean square width over sweeps, relative to that of independent points.
    """

    source: str
    measure: measures.Measure
    num_points: int
    gains: dict[str, tuple[float, float]]
    coverage: dict[str, float]
    width: dict[str, float]


def measure_gains(num_repeats: int, sources: list[Source]) -> Iterator[Row]:
    """Measures all populations at all numbers of points."""
    rng = np.random.default_rng(0)
    many = draw_points("Sobol", 1, 2**19, rng)[0]
    truth = {
        (source.name, measure): float(differences(source, measure, pair).mean())
        for source in sources
        for pair in [source.pair_pct(many[: 2**17] if isinstance(source, Smooth) else many, rng)]
        for measure in MEASURES
    }
    for num_points in NUM_POINTS:
        designs = {
            "iid": draw_points("iid", num_repeats, num_points, rng),
            "one": draw_points("Sobol", num_repeats, num_points, rng),
            "blocks": draw_scrambled(num_repeats, num_points, rng),
        }
        others = draw_points("iid", num_repeats, num_points, rng)
        for source in sources:
            pairs = {design: source.pair_pct(points, rng) for design, points in designs.items()}
            apart = (pairs["iid"][0], source.pair_pct(others, rng)[1])
            for measure in MEASURES:
                found = {design: differences(source, measure, pair) for design, pair in pairs.items()}
                means = {design: values.mean(axis=1) for design, values in found.items()}
                means["apart"] = differences(source, measure, apart).mean(axis=1)
                check_twin(found["blocks"])
                intervals = {f"{design}, points": interval(values) for design, values in found.items()}
                intervals["one, neighbours"] = neighbour_interval(designs["one"], found["one"])
                intervals["blocks, blocks"] = interval(block_means(found["blocks"]))
                at = truth[source.name, measure]
                sizes = {name: math.sqrt(np.mean(half**2)) for name, (_, half) in intervals.items()}
                yield Row(
                    source.name, measure, num_points,
                    {
                        f"{a} / {b}": gain(means[a], means[b])
                        for a, b in (("apart", "iid"), ("iid", "one"), ("apart", "one"),
                                     ("iid", "blocks"), ("apart", "blocks"))
                    },
                    {
                        name: float(np.mean(np.abs(mean - at) <= half + 1e-12))
                        for name, (mean, half) in intervals.items()
                    },
                    {name: size / sizes["iid, points"] for name, size in sizes.items()},
                )  # fmt: skip


def table(rows: list[Row], num_repeats: int) -> str:
    """Returns a table of gains, then of coverage and widths, and a summary."""
    lines = []
    for measure in MEASURES:
        mine = [row for row in rows if row.measure == measure]
        gains, intervals = list(mine[0].gains), list(mine[0].coverage)
        lines.append(f"\n{measure}: equivalent trials, first design / second design")
        lines.append(f"{'':28} n" + "".join(f"{name:>16}" for name in gains))
        for row in mine:
            ratios = "".join(f"{ratio:10.2f} ±{error:4.2f}" for ratio, error in row.gains.values())
            lines.append(f"{row.source:27}{row.num_points:3}{ratios}")
        lines += [
            f"{'median':27}{num_points:3}"
            + "".join(
                f"{np.median([r.gains[name][0] for r in mine if r.num_points == num_points]):10.2f}      "
                for name in gains
            )
            for num_points in NUM_POINTS
        ]
        lines.append(
            f"\n{measure}: coverage in % (width over that of independent points) by design and interval"
        )
        lines.append(f"{'':28} n" + "".join(f"{name:>17}" for name in intervals))
        for row in mine:
            shares = "".join(
                f"{100 * share:8.1f}{'!' if share < LEAST else ' '} ({row.width[name]:4.2f}) "
                for name, share in row.coverage.items()
            )
            lines.append(f"{row.source:27}{row.num_points:3}{shares}")
        below = [sum(row.coverage[name] < LEAST for row in mine) for name in intervals]
        lines.append(f"{'below 93 %, of':27}{len(mine):3}" + "".join(f"{count:9}        " for count in below))
    error = math.sqrt(stats_intervals.CONFIDENCE * (1 - stats_intervals.CONFIDENCE) / num_repeats)
    lines.append(f"standard error of a coverage of 95 %: {100 * error:.1f}; ! is below {100 * LEAST:g} %")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000, help="sweeps per cell (default: 1000)")
    parser.add_argument("--only", choices=("planted", "real"), help="surfaces, or the table of real trials")
    arguments = parser.parse_args()
    began = time.perf_counter()
    sources: list[Source] = []
    if arguments.only != "real":
        sources += [Planted(population) for population in POPULATIONS]
    if arguments.only != "planted":
        sources += real_sources()
    print(table(list(measure_gains(arguments.repeats, sources)), arguments.repeats))
    print(f"{arguments.repeats} sweeps of each kind, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
