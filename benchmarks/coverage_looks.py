"""Measures verdicts over several looks, on planted populations: `python -m benchmarks.coverage --looks ...`.

Three promises. A difference is found at any of the looks in at most 5 % of sweeps without one. Arms that are
the same are called alike in at least 80 %, and arms that differ by the margin in at most 5 %. A difference of
0.3 in area is settled, in the median, at half of the last look's points or fewer. Next to the first promise
is the naive way, the same test at the 5 % level at every look, which must fail.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy import stats as scipy_stats

from benchmarks import coverage
from benchmarks.populations import POPULATIONS, Floats, Population, Surface, bowl, draw_points, null
from orchestrator.analysis.contrasts import ALPHA, ALPHA_ALIKE
from orchestrator.stats import intervals
from orchestrator.stats.looks import Looks
from orchestrator.stats.measures import MEASURES, Measure

#: The difference in area that is to be settled early.
PLANTED = 0.3
#: Least share of equal arms that are called alike at the last look, and most of arms a margin apart.
LEAST_ALIKE = 0.8


@dataclass(frozen=True, slots=True)
class Rate:
    """The share of sweeps in which something was decided.

    Attributes:
      what, population, design: names.
      share, num_repeats: of the sweeps.
      most, least: what is promised of the share.
      guard: a naive way, which must break the promise on some population.
    """

    what: str
    population: str
    design: str
    share: float
    num_repeats: int
    most: float = 1.0
    least: float = 0.0
    guard: bool = False

    @property
    def fails(self) -> bool:
        """True if the promise is broken by more than chance."""
        made = round(self.share * self.num_repeats)
        above = scipy_stats.binom.sf(made - 1, self.num_repeats, self.most) if self.most < 1 else 1.0
        below = scipy_stats.binom.cdf(made, self.num_repeats, self.least) if self.least > 0 else 1.0
        return bool(min(above, below) < coverage.CHANCE)


def differences_at(measure: Measure, errors: Sequence[Floats], num_points: int) -> Floats:
    """Returns the paired differences of every sweep at a look, with the reference of its own points."""
    first = [arm[:, :num_points] for arm in errors]
    bars = np.minimum(*(arm.min(axis=1) for arm in first))
    scores = [coverage.scores_of(measure, arm, bars) for arm in first]
    return scores[1] - scores[0]


def decided(measure: Measure, errors: Sequence[Floats], looks: Looks, levels: Iterable[float]) -> Floats:
    """Returns the points at which each sweep is first decided; infinity if at no look."""
    found = np.full(len(errors[0]), math.inf)
    for count, level in zip(looks.points, levels, strict=True):
        made = coverage.decided(measure, differences_at(measure, errors, count), level)
        found[made & np.isinf(found)] = count
    return found


def alike(measure: Measure, errors: Sequence[Floats], looks: Looks) -> NDArray[np.bool_]:
    """Returns whether each sweep is called alike at any look."""
    margin, found = MEASURES[measure].margin or 0.0, np.zeros(len(errors[0]), dtype=bool)
    for count, level in zip(looks.points, looks.levels(ALPHA_ALIKE), strict=True):
        differences = differences_at(measure, errors, count)
        square, mean = (differences**2).mean(axis=1), differences.mean(axis=1)
        low, high = intervals.with_both_ends(mean, square, count, (-1.0, 1.0), None, 1 - level)
        found |= (-margin < low) & (high < margin)
    return found


def apart(difference: float, planted: str) -> Population:
    """Returns two arms whose areas differ by a number: the second is worse, everywhere or at random."""
    surface = bowl(21, 2.2)

    def worse(by: float) -> Surface:
        def other(x: Floats, w: Floats) -> tuple[Floats, Floats]:
            mean, diverges = surface(x, w)
            return (mean + by, diverges) if planted == "everywhere" else (mean, diverges + by)

        return other

    def lack(by: float) -> float:
        return area_difference(Population("", "", (surface, worse(by)))) + difference

    by = float(optimize.brentq(lack, 0.0, 10.0 if planted == "everywhere" else 1.0, xtol=1e-4))
    return Population(f"{difference:g} apart, {planted}", "", (surface, worse(by)))


def area_difference(population: Population) -> float:
    """Returns the second arm's common area minus the first's, of 2^16 evenly spread points."""
    rng = np.random.default_rng(5)
    points = draw_points("Sobol", 1, 2**16, rng)
    errors = [population.errors_pct(points, rng, arm) for arm in (0, 1)]
    # The references of small sweeps lie a little above the optimum; 0.1 pp move an area by 0.01 of 1.
    reference = np.array([min(population.optimum_pct(arm) for arm in (0, 1))])
    scores = [coverage.scores_of("area_common", arm, reference) for arm in errors]
    return float((scores[1] - scores[0]).mean())


def measure_looks(points: Sequence[int], num_repeats: int) -> tuple[list[Rate], dict[str, float]]:
    """Returns all rates, and the median number of points that settle the planted difference, by design."""
    looks = Looks.of(points[0], points[-1])
    if looks.points != tuple(points):
        raise ValueError(f"looks are doublings: {looks.points}, got {tuple(points)}")
    rng, rates, medians = np.random.default_rng(17), [], {}
    naive = [ALPHA] * len(points)
    for design in coverage.DESIGNS:
        for population in POPULATIONS:
            for mirrored in (False, True):
                arms = null(population, mirrored)
                where = draw_points(design, num_repeats, points[-1], rng)
                errors = [arms.errors_pct(where, rng, arm) for arm in (0, 1)]
                for name, said in coverage.COMMON:
                    for levels, guard in ((looks.levels(ALPHA), False), (naive, True)):
                        made = np.isfinite(decided(name, errors, looks, levels))
                        what = f"{said}, every look at 5 %" if guard else f"{said}, declared looks"
                        rates.append(
                            Rate(what, arms.name, design, float(made.mean()), num_repeats, ALPHA, guard=guard)
                        )
            # The same stem as two arms, and arms that differ by the margin.
            arms = null(population, mirrored=False)
            where = draw_points(design, num_repeats, points[-1], rng)
            errors = [arms.errors_pct(where, rng, arm) for arm in (0, 1)]
            share = float(alike("area_common", errors, looks).mean())
            rates.append(Rate("alike, same arm", arms.name, design, share, num_repeats, least=LEAST_ALIKE))
        margin = MEASURES["area_common"].margin or 0.0
        for planted in ("everywhere", "at random"):
            arms = apart(margin, planted)
            where = draw_points(design, num_repeats, points[-1], rng)
            errors = [arms.errors_pct(where, rng, arm) for arm in (0, 1)]
            share = float(alike("area_common", errors, looks).mean())
            rates.append(Rate("alike, a margin apart", arms.name, design, share, num_repeats, most=ALPHA))
        arms = apart(PLANTED, "everywhere")
        where = draw_points(design, num_repeats, points[-1], rng)
        errors = [arms.errors_pct(where, rng, arm) for arm in (0, 1)]
        medians[design] = float(np.median(decided("area_common", errors, looks, looks.levels(ALPHA))))
    return rates, medians


#: Weights of the looks by their share t of the points. The second is that of `Looks.of` with `max_points`.
SHAPES: dict[str, Callable[[float], float]] = {
    "equal levels": lambda t: 1.0,
    "levels by the root of the points": math.sqrt,
    "levels in proportion to the points": lambda t: t,
    "one look at all points": lambda t: float(t == 1),
}


def power_rows(points: Sequence[int], num_repeats: int) -> list[tuple[str, float, float]]:
    """Returns the share of sweeps that are decided and their mean number of points, by shape of the levels.

    They are means over the populations, whose arms do differ, and over the designs, by common area.
    """
    rng = np.random.default_rng(23)
    found: dict[str, list[tuple[float, float]]] = {shape: [] for shape in SHAPES}
    for population in POPULATIONS:
        for design in coverage.DESIGNS:
            where = draw_points(design, num_repeats, points[-1], rng)
            errors = [population.errors_pct(where, rng, arm) for arm in (0, 1)]
            for shape, weight in SHAPES.items():
                taken = [count for count in points if weight(count / points[-1]) > 0]
                looks = Looks(tuple(taken), tuple(weight(count / points[-1]) for count in taken))
                at = decided("area_common", errors, looks, looks.levels(ALPHA))
                needed = np.minimum(at, points[-1]).mean()
                found[shape].append((float(np.isfinite(at).mean()), float(needed)))
    return [
        (shape, *(float(np.mean(column)) for column in zip(*rows, strict=True)))
        for shape, rows in found.items()
    ]


def report(points: Sequence[int], num_repeats: int) -> list[str]:
    """Prints the table. Returns a line for each broken promise."""
    rates, medians = measure_looks(points, num_repeats)
    print(f"looks at {', '.join(map(str, points))} points, {num_repeats} sweeps a cell")
    print(f"{'':40}{'cells':>6}{'fails':>6}{'least %':>9}{'mean %':>8}{'most %':>8}   promised")
    for what in dict.fromkeys(rate.what for rate in rates):
        these = [rate for rate in rates if rate.what == what]
        shares = [100 * rate.share for rate in these]
        first = these[0]
        promise = f"at most {100 * first.most:g} %" if first.most < 1 else f"at least {100 * first.least:g} %"
        print(
            f"{what:40}{len(these):6}{sum(rate.fails for rate in these):6}{min(shares):9.1f}"
            f"{np.mean(shares):8.1f}{max(shares):8.1f}   {'must fail' if first.guard else promise}"
        )
    print("\ndecided where arms differ, with the mean number of points it takes")
    for shape, share, needed in power_rows(points, num_repeats):
        print(f"{shape:40}{100 * share:8.1f} %{needed:8.1f} points")
    said = []
    for design, median in medians.items():
        print(f"a difference of {PLANTED} in area, {design}: settled at a median of {median:g} points")
        if median > points[-1] / 2:
            said.append(f"{design}: a difference of {PLANTED} takes {median:g} points in the median")
    said += [
        f"{rate.what}: {100 * rate.share:.1f} % on {rate.population}, {rate.design}"
        for rate in rates
        if rate.fails and not rate.guard
    ]
    if not any(rate.fails for rate in rates if rate.guard):
        said.append("a test at every look holds its level: this benchmark cannot tell")
    return said
