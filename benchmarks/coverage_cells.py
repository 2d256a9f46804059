"""Measures the coverage of what is pooled over cells, on planted cells with known truth.

    python -m benchmarks.coverage_cells [--repeats 1000] [--quick]

A planted sweep has 2 to 12 cells, each with the arms of a population of `benchmarks.populations`, at 8 to
64 points. The cells are drawn from a kind: all alike, differing at random, or bowls of which one in four
diverges rarely in one arm. They share their points, as in a sweep, or have points of their own. Counted is
how often the interval over these cells contains the mean of their true differences, and how often the
prediction interval contains the true difference of one more cell of the kind. 93 % is required, as in
`benchmarks.coverage`, with the same allowance for chance.

The guards must fail somewhere, or the benchmark cannot tell: the weighted mean of fixed-effect meta-analysis
with a normal interval, for these cells and for a new one, and the textbook's prediction interval from Paule
and Mandel's variance between cells, which takes cells as independent studies.

Then the decisions: a verdict over cells between arms that do not differ, and a cell that is named where all
are alike, in at most 5 % of sweeps. A cell whose arms are exchanged is named in at least 90 % at 32 points.
Its difference of about 0.2 of area then has the other sign.

Exit code 1 means that one of these is not so.
"""

import functools
import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy import stats as scipy_stats

from benchmarks.coverage import (
    ALPHA,
    CHANCE,
    DESIGNS,
    Alarms,
    Cell,
    Row,
    alarm_faults,
    cell_of,
    command_line,
    conclude,
    interval_faults,
    interval_lines,
    of,
)
from benchmarks.populations import (
    CLEAR,
    POPULATIONS,
    Floats,
    Population,
    differing_cells,
    draw_points,
    null,
    rarely_diverging_cells,
    swapped,
)
from orchestrator.stats import pooled
from orchestrator.stats.measures import AREA_LIMIT_PP, Measure, point_scores
from orchestrator.stats.measures import MEASURES as MEASURE_INFOS
from orchestrator.stats.paired import SignedRanks

NUM_CELLS = (2, 3, 4, 8, 12)
NUM_POINTS = (8, 16, 32, 64)
MEASURES: tuple[tuple[Measure, str], ...] = (
    ("area_common", "common area"), ("within_common_bar", "common bar"), ("error", "mean error"),
)  # fmt: skip
#: Sweeps per rate of a cell that is named, which takes a few milliseconds.
NUM_NAMED = 300
LEAST_NAMED = 0.9
POINTS_NAMED = 32
NUM_IN_KIND = 40


@dataclass(frozen=True, slots=True)
class Kind:
    """A population of cells, from which the cells of a sweep are drawn."""

    name: str
    cells: Sequence[Population]


KINDS = (
    *(Kind(f"alike: {population.name}", [population]) for population in POPULATIONS),
    Kind("differing", differing_cells(NUM_IN_KIND)),
    Kind("one in four diverges", rarely_diverging_cells(NUM_IN_KIND)),
)


@dataclass(frozen=True, slots=True)
class Named:
    """The rate at which a planted cell that disagrees is named."""

    population: str
    measure: str
    num_cells: int
    rate: float
    num_repeats: int

    @property
    def fails(self) -> bool:
        """True if the rate is below 90 % by more than chance."""
        made = round(self.rate * self.num_repeats)
        return float(scipy_stats.binom.cdf(made, self.num_repeats, LEAST_NAMED)) < CHANCE


@functools.cache
def _draw(population: Population, arm: int) -> tuple[Floats, Floats]:
    """Returns 2^16 errors of an arm in ascending order, and their cumulative sums from 0."""
    rng = np.random.default_rng([7, arm])
    errors = np.sort(population.errors_pct(draw_points("Sobol", 1, 2**16, rng)[0], rng, arm))
    return errors, np.concatenate([[0.0], np.cumsum(errors)])


def true_difference(population: Population, measure: Measure, bars_pct: Floats) -> Floats:
    """Returns the true difference of the arms at each bar, by partial sums over a very large draw."""

    def of_arm(arm: int) -> Floats:
        errors, sums = _draw(population, arm)
        if measure == "error":
            return np.full(bars_pct.shape, errors.mean())
        within = MEASURE_INFOS[measure].within_pp
        top = AREA_LIMIT_PP if within is None else within
        best, reached = (np.searchsorted(errors, bars_pct + by, side="right") for by in (0.0, top))
        if within is not None:
            return reached / errors.size
        above = sums[reached] - sums[best] - bars_pct * (reached - best)
        return np.asarray(1 - (above / top + errors.size - reached) / errors.size)

    return of_arm(1) - of_arm(0)


@dataclass(frozen=True, eq=False)
class Sweeps:
    """Planted sweeps: R repeats of P points in C cells.

    Attributes:
      errors_pct: of each arm, of shape (R, P, C).
      bars_pct: the lowest error of both arms, of shape (R, C).
    """

    errors_pct: tuple[Floats, Floats]
    bars_pct: Floats

    def differences(self, measure: Measure) -> Floats:
        """Returns the paired differences, of shape (R, P, C)."""
        if measure == "error":
            return self.errors_pct[1] - self.errors_pct[0]
        above = [errors - self.bars_pct[:, None] for errors in self.errors_pct]
        return point_scores(measure, above[1], 0.0) - point_scores(measure, above[0], 0.0)


def planted(
    cells: Sequence[Population],
    chosen_RC: NDArray[np.int64],
    num_points: int,
    design: str,
    shared: bool,
    rng: np.random.Generator,
) -> Sweeps:
    """Draws sweeps whose cells are given by their index; the cells share their points, or do not."""
    num_repeats, num_cells = chosen_RC.shape
    errors = np.empty((2, num_repeats, num_points, num_cells))
    points = draw_points(design, num_repeats, num_points, rng)
    for cell in range(num_cells):
        if cell and not shared:
            points = draw_points(design, num_repeats, num_points, rng)
        for index in np.unique(chosen_RC[:, cell]):
            rows = chosen_RC[:, cell] == index
            for arm in (0, 1):
                errors[arm, rows, :, cell] = cells[index].errors_pct(points[rows], rng, arm)
    return Sweeps((errors[0], errors[1]), errors.min(axis=(0, 2)))


def truths_of(
    cells: Sequence[Population], chosen_RC: NDArray[np.int64], bars_RC: Floats, measure: Measure
) -> Floats:
    """Returns the true difference of every planted cell at its bar."""
    found = np.empty_like(bars_RC)
    for index in np.unique(chosen_RC):
        at = chosen_RC == index
        found[at] = true_difference(cells[index], measure, bars_RC[at])
    return found


def fixed_effect(differences_RPC: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns the mean weighted by inverse variance with its normal interval, for every repeat."""
    num_points = differences_RPC.shape[1]
    # Cells without variance would have an infinite weight.
    weights = num_points / np.maximum(differences_RPC.var(axis=1, ddof=1), 1e-8)
    mean = (weights * differences_RPC.mean(axis=1)).sum(axis=1) / weights.sum(axis=1)
    half = scipy_stats.norm.ppf(1 - ALPHA / 2) / np.sqrt(weights.sum(axis=1))
    return mean, mean - half, mean + half


def textbook_prediction(differences_PC: Floats) -> tuple[float, float, float]:
    """Returns the mean and prediction interval of random-effects meta-analysis, cells as independent studies.

    The variance between cells is Paule and Mandel's (1982, J. Res. NBS 87, 377-385); the interval is that of
    Higgins, Thompson and Spiegelhalter 2009, with two degrees of freedom less than cells.
    """
    num_points, num_cells = (int(size) for size in differences_PC.shape)
    means = differences_PC.mean(axis=0)
    within = np.maximum(differences_PC.var(axis=0, ddof=1) / num_points, 1e-8)

    def excess(between: float) -> float:
        weights = 1 / (within + between)
        spread = (means - np.average(means, weights=weights)) ** 2
        return float(weights @ spread) - num_cells + 1

    most = float(means.var(ddof=1)) + 1e-6
    between = 0.0 if excess(0.0) <= 0 else float(optimize.brentq(excess, 0.0, num_cells * most))
    weights = 1 / (within + between)
    mean = float(np.average(means, weights=weights))
    half = float(scipy_stats.t.ppf(1 - ALPHA / 2, num_cells - 2)) * math.sqrt(between + 1 / weights.sum())
    return mean, mean - half, mean + half


def rows_of(cells: Sequence[Population], chosen_RC: NDArray[np.int64], sweeps: Sweeps) -> Iterator[Row]:
    """Yields the rows of every measure. The last cell is the new one, which no estimate sees."""
    num_cells = sweeps.bars_pct.shape[1] - 1
    for measure, said in MEASURES:
        differences = sweeps.differences(measure)[..., :-1]
        truths = truths_of(cells, chosen_RC, sweeps.bars_pct, measure)
        reaches = np.ones(len(truths))
        if measure == "error":
            reaches = 100 - sweeps.bars_pct[:, :-1].mean(axis=1)
        all_ends = [(-reach, reach) for reach in reaches.tolist()]
        over = [pooled.over_these_cells(one, ends) for one, ends in zip(differences, all_ends, strict=True)]
        new = [
            pooled.in_a_new_cell(one, ends, mean)
            for one, ends, mean in zip(differences, all_ends, over, strict=True)
        ]
        yield of(over, f"over these cells, {said}", truths[:, :-1].mean(axis=1))
        yield of(new, f"in a new cell, {said}", truths[:, -1])
        if measure == "area_common":
            naive = fixed_effect(differences)
            yield Row("fixed effect, over these cells", *naive, truths[:, :-1].mean(axis=1), "guard")
            yield Row("fixed effect, in a new cell", *naive, truths[:, -1], "guard")
            if num_cells > 2:
                mean, low, high = np.array([textbook_prediction(one) for one in differences]).T
                yield Row("textbook's prediction, in a new cell", mean, low, high, truths[:, -1], "guard")


def settled(differences_PC: Floats) -> bool:
    """Returns whether `analysis.pooled` would name a better arm from these points."""
    means = differences_PC.mean(axis=1)
    shift = SignedRanks.of(means).interval(ALPHA)
    return shift.excludes_0 and bool(shift.value * means.mean() > 0)


@dataclass(frozen=True, slots=True)
class Measured:
    """All results of the benchmark.

    Attributes:
      at_random: as `alarms`, of a cell named where cells differ at random: it is no promise.
    """

    cells: list[Cell]
    alarms: list[Alarms]
    at_random: list[Alarms]
    named: list[Named]


def measure_cells(
    num_repeats: int,
    num_cells: Sequence[int] = NUM_CELLS,
    num_points: Sequence[int] = NUM_POINTS,
    kinds: Sequence[Kind] = KINDS,
    designs: Sequence[str] = DESIGNS,
    nulls: Sequence[Population] = POPULATIONS,
) -> Measured:
    """Measures every statistic on every kind of cells."""
    rng = np.random.default_rng(0)
    found = Measured([], [], [], [])
    for design, count, points, shared in itertools.product(designs, num_cells, num_points, (True, False)):
        own = f"{count} cells with {'shared' if shared else 'own'} points"
        for kind in kinds:
            chosen = rng.integers(len(kind.cells), size=(num_repeats, count + 1))
            sweeps = planted(kind.cells, chosen, points, design, shared, rng)
            place = f"{kind.name}, {own}"
            found.cells.extend(
                cell_of(row, place, design, points) for row in rows_of(kind.cells, chosen, sweeps)
            )
            if count >= pooled.MIN_CELLS:
                alarms = found.alarms if len(kind.cells) == 1 else found.at_random
                if kind.name != "one in four diverges":
                    alarms.extend(_false_names(sweeps, place, design, points))
        for population, mirrored in itertools.product(nulls, (False, True)):
            same = null(population, mirrored)
            chosen = np.zeros((min(num_repeats, NUM_NAMED), count), dtype=np.int64)
            sweeps = planted([same], chosen, points, design, shared, rng)
            for measure, said in MEASURES:
                made = [settled(one) for one in sweeps.differences(measure)]
                rate = float(np.mean(made))
                decision = f"better over these cells, {said}"
                found.alarms.append(Alarms(decision, f"{same.name}, {own}", design, points, rate, len(made)))
    for count, shared, population in itertools.product(num_cells, (True, False), CLEAR):
        if count >= pooled.MIN_CELLS:
            own = f"{population.name}, {'shared' if shared else 'own'} points"
            chosen = np.zeros((min(num_repeats, NUM_NAMED), count), dtype=np.int64)
            chosen[:, 0] = 1
            cells = [population, swapped(population)]
            sweeps = planted(cells, chosen, POINTS_NAMED, "iid", shared, rng)
            for measure, said in MEASURES[:1]:
                every = [pooled.deviations(one) for one in sweeps.differences(measure)]
                rate = float(np.mean([one[0].disagrees for one in every]))
                found.named.append(Named(own, said, count, rate, len(every)))
    return found


def _false_names(sweeps: Sweeps, place: str, design: str, num_points: int) -> Iterator[Alarms]:
    for measure, said in MEASURES:
        made = [
            any(one.disagrees for one in pooled.deviations(differences))
            for differences in sweeps.differences(measure)[:NUM_NAMED, :, :-1]
        ]
        yield Alarms(f"a cell is named, {said}", place, design, num_points, float(np.mean(made)), len(made))


def summary(found: Measured) -> str:
    """Returns a line per statistic, with its worst case."""
    lines = interval_lines(found.cells)
    for head, alarms in (
        ("decided where there is no difference", found.alarms),
        ("named where cells differ at random", found.at_random),
    ):
        lines.append(
            f"\n{head:40}{'cases':>6}{'above 5':>9}{'fails':>6}{'worst %':>8}{'mean %':>7}   worst case"
        )
        for decision in dict.fromkeys(alarm.decision for alarm in alarms):
            these = [alarm for alarm in alarms if alarm.decision == decision]
            most = max(these, key=lambda alarm: alarm.rate)
            lines.append(
                f"{decision:40}{len(these):6}{sum(a.rate > ALPHA for a in these):9}"
                f"{sum(a.fails for a in these):6}{100 * most.rate:8.1f}"
                f"{100 * np.mean([a.rate for a in these]):7.1f}   {most.population}, {most.design}, "
                f"n = {most.num_points}"
            )
    lines.append(f"\nthe one cell with exchanged arms is named, of sweeps with {POINTS_NAMED} points")
    for population in dict.fromkeys(one.population for one in found.named):
        rates = [one for one in found.named if one.population == population]
        told = ", ".join(f"{one.num_cells} cells: {100 * one.rate:.0f} %" for one in rates)
        lines.append(f"  {population:38}{told}")
    for clear in CLEAR:
        [truth] = true_difference(clear, "area_common", np.array([clear.optimum_pct(1)]))
        lines.append(f"  {clear.name}: its true difference is {truth:.2f} of area")
    return "\n".join(lines)


def faults(found: Measured) -> list[str]:
    """Returns a line for each failure."""
    return [
        *interval_faults(found.cells),
        *alarm_faults(found.alarms),
        *(
            f"the cell that disagrees is named in {100 * one.rate:.1f} % only: {one.population}, "
            f"{one.num_cells} cells"
            for one in found.named
            if one.fails
        ),
    ]


def main() -> int:
    """Prints the tables. Returns 1 if an interval, a decision or a guard is not as it should be."""
    parser = command_line(__doc__, 1000, "case", "200 sweeps, 2, 4 and 8 cells, n = 16 and 32")
    arguments = parser.parse_args()
    began = time.perf_counter()
    found = measure_cells(200, (2, 4, 8), (16, 32)) if arguments.quick else measure_cells(arguments.repeats)
    print(summary(found))
    rates = len(found.cells) + len(found.alarms) + len(found.named)
    print(f"\n{rates} rates in {time.perf_counter() - began:.0f} s")
    return conclude(faults(found), "every interval and every decision keeps its promise")


if __name__ == "__main__":
    sys.exit(main())
