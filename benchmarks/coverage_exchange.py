"""Measures the coverage of the exchange rate of tuning effort on planted populations with known truth.

    python -m benchmarks.coverage_exchange [--repeats 400] [--quick] [--cells]

For every statement it prints how often it is right: the share of planted sweeps in which the band contains
the true curve at all k, the bound "one trial is worth at least R trials" is no higher than the true rate, in
both directions at once, and the interval of the chance of the better best contains the truth. 95 % is
claimed and 93 % required of every cell: each pair of arms, design and number of points. A cell fails if a
rate as low as its own had a probability below 1e-4 at 93 %.

Next to them is the naive way: a percentile bootstrap of the distance between the two sample curves. It must
fail somewhere, or the benchmark cannot detect failures. Exit code 1 means that a statement fails, or that the
naive way does not.

Truths are from 2^20 draws per arm. `settled` is the share of sweeps in which one arm's trial is found to be
worth more than one of the other's, and `at least` the median bound of these, next to the true rate.
"""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage import (
    DESIGNS,
    Cell,
    cell_table,
    command_line,
    conclude,
    interval_faults,
    interval_lines,
)
from benchmarks.populations import POPULATIONS, Population, Surface, draw_points, null
from orchestrator.stats.best_of import median_level
from orchestrator.stats.exchange import chance_of_best, exchange_rate, largest_chance_budget

Floats = NDArray[np.float64]

NUM_POINTS = (16, 32, 64)
NUM_RESAMPLES, NUM_DRAWS = 200, 2**20
#: The exchange rate of the planted pair that has the same rate at every level.
PLANTED_RATE = 6.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two arms of a population. `step_pct` is the step that errors are rounded to, 0 for none."""

    population: Population
    step_pct: float = 0.0

    def errors_pct(self, points: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Draws the errors of base and arm at the same points."""
        found = [self.population.errors_pct(points, rng, arm) for arm in (0, 1)]
        if self.step_pct:
            found = [np.round(errors / self.step_pct) * self.step_pct for errors in found]
        return found[0], found[1]


def _lower(surface: Surface, by_pp: float) -> Surface:
    def lower(x: Floats, w: Floats) -> tuple[Floats, Floats]:
        mean, diverges = surface(x, w)
        return mean - by_pp, diverges

    return lower


def _power(rate: float, sign: float) -> Surface:
    def surface(x: Floats, w: Floats) -> tuple[Floats, Floats]:
        return 20 + 10 * (1 - (0.5 - sign * x / 3) ** (1 / rate)), np.zeros_like(x)

    return surface


def _flat(level: float) -> Surface:
    def surface(x: Floats, w: Floats) -> tuple[Floats, Floats]:
        return level + 0.2 * np.abs(x) + 0.1 * w**2, np.zeros_like(x)

    return surface


def pairs() -> list[Pair]:
    """Returns the planted pairs: those of all benchmarks, equal arms, and arms far apart."""
    bowl, cliff = POPULATIONS[0], POPULATIONS[1]

    def planted(name: str, means: str, second: Surface, first: Surface = bowl.arms[0]) -> Population:
        return Population(name, means, (first, second))

    powers = (_power(1.0, 1.0), _power(PLANTED_RATE, -1.0))
    made = (
        null(cliff, mirrored=True),
        planted("apart", "the bowl, and one that is 1.5 pp lower", _lower(bowl.arms[0], 1.5)),
        planted("far apart", "the bowl, and one that is 6 pp lower", _lower(bowl.arms[0], 6.0)),
        planted("crossing", "the bowl, and a plain that is better in the middle, not at best", _flat(22.0)),
        Population("same rate", "one trial is worth six at every level", powers, 0.0),
    )
    coarse = Population("coarse", "the cliff, with errors in whole percents", cliff.arms)
    return [*(Pair(population) for population in (*POPULATIONS, *made)), Pair(coarse, 1.0)]


# --------------------------------------------------------------------------------------------------- truths


class Truth:
    """The truth about a pair: very large draws of both arms."""

    def __init__(self, pair: Pair) -> None:
        """Draws the errors, with a fixed seed."""
        rng = np.random.default_rng(7)
        base, own = pair.errors_pct(draw_points("iid", 1, NUM_DRAWS, rng)[0], rng)
        self.base, self.own = np.sort(base), np.sort(own)

    def rates(self, most: int, swapped: bool = False) -> Floats:
        """Returns r(k) for k = 1..most. Equal errors are in random order."""
        own, base = (self.base, self.own) if swapped else (self.own, self.base)
        found = []
        for k in range(1, most + 1):
            level = 1 - 0.5 ** (1 / k)
            at = own[int(level * own.size)]
            (own_below, own_upto), (below, upto) = (
                [np.searchsorted(errors, at, side) / errors.size for side in ("left", "right")]
                for errors in (own, base)
            )
            share = below + (upto - below) * (level - own_below) / (own_upto - own_below)
            hazard = -math.log1p(-share) if share < 1 else math.inf
            found.append(math.log(2) / k / hazard if hazard > 0 else math.inf)
        return np.array(found)

    def chance(self, budget: int) -> float:
        """Returns the chance that the arm's best of k is below the base's, ties as half."""
        reached = 1 - (1 - np.arange(self.own.size + 1) / self.own.size) ** budget
        above = [
            1 - np.searchsorted(self.base, self.own, side) / self.base.size for side in ("left", "right")
        ]
        return float(np.diff(reached) @ (above[0] ** budget + above[1] ** budget) / 2)


# ----------------------------------------------------------------------------------------------- statements


def naive_interval(own: Floats, base: Floats, budget: int, rng: np.random.Generator) -> tuple[float, float]:
    """Returns the percentile bootstrap of the distance between the two sample curves at k."""
    level = float(median_level(np.array([budget]))[0])
    owns = np.sort(rng.choice(own, (NUM_RESAMPLES, own.size)), axis=1)
    bases = rng.choice(base, (NUM_RESAMPLES, base.size))
    at = owns[:, math.ceil(level * own.size) - 1]
    shares = np.mean(bases <= at[:, None], axis=1)
    with np.errstate(divide="ignore"):
        rates = math.log(0.5) / (budget * np.log1p(-shares))
    low, high = np.quantile(rates, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Sharpness:
    """What the sweeps of one cell say: the better arm's true rate, and the bounds that are above 1."""

    pair: str
    design: str
    num_points: int
    rate: float
    settled: float
    at_least: float


def measured(
    pair: Pair, truth: Truth, design: str, num_points: int, num_repeats: int
) -> tuple[list[Cell], Sharpness]:
    """Returns how often every statement is right over the planted sweeps of one cell, and what they say."""
    # A seed by the names, so that no cell depends on which others are measured.
    name = pair.population.name
    rng = np.random.default_rng([num_points, *f"{name}, {design}".encode()])
    bases, owns = pair.errors_pct(draw_points(design, num_repeats, num_points, rng), rng)
    budgets = [k for k in (1, 2, 4, 8) if k <= largest_chance_budget(num_points)]
    chances = {k: truth.chance(k) for k in budgets}
    held: dict[str, int] = {}
    quoted, true = [], None
    for base, own in zip(bases, owns, strict=True):
        one_way, other_way = exchange_rate(own, base), exchange_rate(base, own)
        most = one_way.largest_budget
        if true is None:
            true = truth.rates(most), truth.rates(most, swapped=True)
        right = {
            f"band of the rate, all k, {way}": all(
                rate.low <= value <= rate.high for rate, value in zip(said.rates, values, strict=True)
            )
            for way, said, values in (
                ("arm in trials of base", one_way, true[0]), ("base in trials of arm", other_way, true[1]),
            )
        }  # fmt: skip
        right["at least R, one trial, either way"] = all(
            (said.at_least or 0) <= values[0] for said, values in zip((one_way, other_way), true, strict=True)
        )
        right["at least R, every k, either way"] = all(
            (said.at_least_throughout or 0) <= values.min()
            for said, values in zip((one_way, other_way), true, strict=True)
        )
        for k in budgets:
            found = chance_of_best(own, base, k)
            ends = (math.nan, math.nan) if found is None else (found.low or 0.0, found.high or 0.0)
            right[f"chance of the better best of {k}"] = ends[0] <= chances[k] <= ends[1]
        low, high = naive_interval(own, base, most, rng)
        right["naive bootstrap of the rate, last k"] = low <= true[0][-1] <= high
        for statement, holds in right.items():
            held[statement] = held.get(statement, 0) + bool(holds)
        quoted.append(max(one_way.at_least or 0, other_way.at_least or 0))
    above = [bound for bound in quoted if bound > 1]
    return [
        Cell(
            statement,
            # A naive way must fail somewhere.
            "guard" if statement.startswith("naive") else "report",
            name,
            design,
            num_points,
            count / num_repeats,
            num_repeats,
            num_repeats,
            math.nan,
        )
        for statement, count in held.items()
    ], Sharpness(
        name,
        design,
        num_points,
        max(truth.rates(1)[0], truth.rates(1, swapped=True)[0]),
        len(above) / num_repeats,
        float(np.median(above)) if above else math.nan,
    )


def measure(
    num_repeats: int,
    num_points: Sequence[int] = NUM_POINTS,
    planted: Iterable[Pair] | None = None,
    designs: Sequence[str] = DESIGNS,
) -> Iterator[tuple[list[Cell], Sharpness]]:
    """Yields every cell of the planted pairs (all of them by default)."""
    for pair in pairs() if planted is None else planted:
        truth = Truth(pair)
        for design in designs:
            for count in num_points:
                yield measured(pair, truth, design, count, num_repeats)


# --------------------------------------------------------------------------------------------------- output


def summary(cells: Sequence[Cell], sharp: Sequence[Sharpness]) -> str:
    """Returns the tables: statements with their worst cell, and how sharp the quoted bound is."""
    lines = interval_lines(cells, "statement")
    lines.append(
        f"\n{'one trial is worth':24}{'design':8}{'n':>4}{'true rate':>11}{'settled %':>11}{'at least':>10}"
    )
    lines += [
        f"{one.pair:24}{one.design:8}{one.num_points:4}{min(one.rate, 1e4):11.2f}{100 * one.settled:11.1f}"
        f"{one.at_least:10.2f}"
        for one in sharp
    ]
    return "\n".join(lines)


def main() -> int:
    """Prints the tables. Returns 1 if a statement fails."""
    parser = command_line(__doc__, 400, "cell", "100 sweeps per cell")
    parser.add_argument("--cells", action="store_true", help="every cell, too")
    arguments = parser.parse_args()
    began = time.perf_counter()
    found = list(measure(100 if arguments.quick else arguments.repeats))
    cells, sharp = [cell for part, _ in found for cell in part], [one for _, one in found]
    if arguments.cells:
        print(cell_table(cells), end="\n\n")
    print(summary(cells, sharp))
    print(f"\n{len(cells)} cells of {cells[0].num_repeats} sweeps in {time.perf_counter() - began:.0f} s")
    return conclude(interval_faults(cells), "every statement keeps its promise")


if __name__ == "__main__":
    sys.exit(main())
