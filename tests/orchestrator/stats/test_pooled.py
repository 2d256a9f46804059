"""Differences pooled over cells, against closed forms, scipy, least squares and all signs; its benchmark."""

import math

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats

from benchmarks import coverage_cells
from benchmarks.populations import CLEAR, POPULATIONS, swapped
from orchestrator.stats.intervals import block_mean, bounded_mean
from orchestrator.stats.measures import point_scores
from orchestrator.stats.pooled import (
    deviations,
    heterogeneity,
    in_a_new_cell,
    over_these_cells,
)

ENDS = (-1.0, 1.0)


def sample(num_points=16, num_cells=4, means=0.0, seed=0):
    """Differences that share a part at each point."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 0.1, (num_points, 1))
    return np.clip(means + shared + rng.normal(0, 0.1, (num_points, num_cells)), *ENDS)


def test_over_these_cells_the_unit_is_the_point():
    found = sample(means=0.2)
    assert over_these_cells(found, ENDS) == bounded_mean(found.mean(axis=1), ENDS)
    # Cells that repeat each other tell no more than one of them.
    repeated = np.repeat(found[:, :1], 5, axis=1)
    one, five = over_these_cells(found[:, :1], ENDS), over_these_cells(repeated, ENDS)
    assert (five.value, five.low, five.high) == pytest.approx((one.value, one.low, one.high))
    blocks = [point % 8 for point in range(16)]
    assert over_these_cells(found, ENDS, blocks) == block_mean(found.mean(axis=1), blocks, ENDS)
    assert over_these_cells(found, ENDS, [0] * 16) == over_these_cells(found, ENDS)
    few = over_these_cells(found[:5], ENDS)
    assert (few.low, few.because) == (None, "5 points, 6 are needed")


@pytest.mark.parametrize("num_cells", [3, 6])
def test_in_a_new_cell_is_students_prediction_if_points_are_certain(num_cells):
    # The same difference at every point of a cell, so only cells are uncertain.
    cells = np.random.default_rng(num_cells).normal(0.1, 0.02, num_cells)
    found = np.tile(cells, (200, 1))
    mean = cells.mean()
    certain = over_these_cells(found, (mean - 1e-9, mean + 1e-9))
    new = in_a_new_cell(found, ENDS, certain)
    half = scipy_stats.t.ppf(0.975, num_cells - 1) * cells.std(ddof=1) * math.sqrt(1 + 1 / num_cells)
    assert (new.value, new.low, new.high) == pytest.approx((mean, mean - half, mean + half))


def test_a_new_cell_is_never_surer_than_these_cells():
    # Cells that are alike to the last digit leave the points as the only doubt.
    alike = np.repeat(sample(means=0.3)[:, :1], 4, axis=1)
    over = over_these_cells(alike, ENDS)
    new = in_a_new_cell(alike, ENDS, over)
    assert (new.low, new.high) == pytest.approx((over.low, over.high))
    apart = sample(means=[0.1, 0.2, 0.3, 0.4])
    over = over_these_cells(apart, ENDS)
    new = in_a_new_cell(apart, ENDS, over)
    assert -1 <= new.low < over.low < over.high < new.high <= 1


def test_without_enough_cells_or_points_nothing_is_predicted():
    two = sample(num_cells=2)
    assert in_a_new_cell(two, ENDS, over_these_cells(two, ENDS)).because == "2 cells, 3 are needed"
    few = sample(num_points=5)
    new = in_a_new_cell(few, ENDS, over_these_cells(few, ENDS))
    assert (new.low, new.because) == (None, "5 points, 6 are needed")
    for cell in [*deviations(two), *deviations(few)]:
        assert (cell.p_value, cell.p_adjusted, cell.disagrees) == (None, None, False)
    for wrong in (np.zeros((1, 3)), np.zeros((8, 1))):
        for of in (heterogeneity, deviations):
            with pytest.raises(ValueError, match="need two points and two cells"):
                of(wrong)


def rss(design, values):
    """Sum of squares that least squares leaves."""
    solution, *_ = np.linalg.lstsq(design, values, rcond=None)
    return float(np.sum((values - design @ solution) ** 2))


def test_cells_are_tested_as_least_squares_does():
    found = sample(num_points=12, num_cells=4, means=[0, 0.05, 0.1, 0.3])
    points, cells = (np.repeat(np.arange(12), 4), np.tile(np.arange(4), 12))
    of_points, of_cells = np.eye(12)[points], np.eye(4)[cells]
    without = rss(of_points, found.ravel())
    left = rss(np.hstack([of_points, of_cells]), found.ravel())
    f = ((without - left) / 3) / (left / 33)
    told = heterogeneity(found)
    assert told.q == pytest.approx(3 * f)
    assert told.i_squared == pytest.approx(1 - 1 / f)
    # Greenhouse and Geisser by eigenvalues of three orthonormal contrasts of the cells.
    contrasts = np.linalg.svd(np.eye(4) - 1 / 4)[0][:, :3]
    roots = np.linalg.eigvalsh(contrasts.T @ np.cov(found, rowvar=False) @ contrasts)
    epsilon = roots.sum() ** 2 / (3 * (roots**2).sum())
    assert told.p_value == pytest.approx(scipy_stats.f.sf(f, 3 * epsilon, 33 * epsilon))


def test_two_cells_are_tested_as_pairs():
    found = sample(num_cells=2, means=[0, 0.08])
    expected = scipy_stats.ttest_rel(found[:, 0], found[:, 1])
    told = heterogeneity(found)
    assert (told.q, told.p_value) == pytest.approx((expected.statistic**2, expected.pvalue))


def test_the_spread_of_cells_is_paule_and_mandels():
    # With one variance s and one covariance c of all cells, of which Q depends on the difference alone.
    found = sample(num_points=20, num_cells=5, means=[0, 0.1, 0.2, 0.3, 0.1])
    covariance = np.cov(found, rowvar=False) / 20
    s, c = covariance.diagonal().mean(), covariance[~np.eye(5, dtype=bool)].mean()
    means = found.mean(axis=0)

    def q(between):
        inverse = np.linalg.inv(np.full((5, 5), c) + (s - c + between) * np.eye(5))
        ones = np.ones(5)
        mean = ones @ inverse @ means / (ones @ inverse @ ones)
        return (means - mean) @ inverse @ (means - mean)

    expected = math.sqrt(optimize.brentq(lambda between: q(between) - 4, 0, 1))
    assert heterogeneity(found).between_sd == pytest.approx(expected)


def test_cells_without_noise_differ_or_do_not():
    base = sample(num_cells=1)
    same = heterogeneity(np.repeat(base, 3, axis=1))
    assert (same.between_sd, same.q, same.i_squared, same.p_value) == (0, None, None, None)
    apart = heterogeneity(base + np.array([0, 0, 0.1]))
    assert (apart.between_sd, apart.q, apart.p_value) == (pytest.approx(math.sqrt(0.01 / 3)), None, 0.0)


def test_a_cell_against_two_others_by_hand():
    found = sample(num_points=10, num_cells=3, means=[0.4, 0.0, 0.1])
    first, second, third = found.T
    deviation = first - (second + third) / 2
    # At least what the points explain of cells that are alike, from the residuals of points and cells.
    residuals = found - found.mean(axis=1, keepdims=True) - found.mean(axis=0) + found.mean()
    if_alike = (residuals**2).sum() / (9 * 2) / 10 * (1 + 1 / 2)
    of_points = max(if_alike, deviation.var(ddof=1) / 10)
    # Two means have the variance of half their squared distance; that of their points is taken off.
    spread = (second.mean() - third.mean()) ** 2 / 2 - (second - third).var(ddof=1) / 20
    of_cells = max(0, spread) * 1.5
    assert of_cells > 0
    freedom = (of_points + of_cells) ** 2 / (of_points**2 / 9 + of_cells**2 / 1)
    t = deviation.mean() / math.sqrt(of_points + of_cells)
    cells = deviations(found)
    assert cells[0].p_value == pytest.approx(2 * scipy_stats.t.sf(abs(t), freedom))
    assert cells[0].value == pytest.approx(first.mean())
    assert cells[0].others == pytest.approx((second.mean() + third.mean()) / 2)
    ordered = sorted(cells, key=lambda cell: cell.p_value)
    assert ordered[0].p_adjusted == pytest.approx(min(1, 3 * ordered[0].p_value))


def test_the_odd_cell_is_named_and_it_alone():
    cells = deviations(sample(num_points=32, means=[0.2, 0.2, -0.2, 0.2]))
    assert [cell.disagrees for cell in cells] == [False, False, True, False]
    assert not any(cell.disagrees for cell in deviations(sample(num_points=32, means=0.2)))
    # All differ, so none is odd.
    assert not any(cell.disagrees for cell in deviations(sample(num_points=32, means=[-0.4, 0.4, 0, 0.2])))


def test_a_cell_in_which_a_rare_divergence_was_not_drawn_is_not_named():
    # Seven of eight cells diverge at two points of their own; the last seems certain, and is like them.
    found = np.random.default_rng(0).normal(0, 0.001, (16, 8))
    for cell in range(7):
        found[[cell, 15 - cell], cell] = -1
    cells = deviations(found)
    own = found[:, 7] - found[:, :7].mean(axis=1)
    # By its own variance it would be.
    assert scipy_stats.ttest_1samp(own, 0).pvalue < 0.05 / 8
    assert not any(cell.disagrees for cell in cells)


# ---------------------------------------------------------------------------------------------- the benchmark


@pytest.fixture(scope="module")
def found():
    kinds = [kind for kind in coverage_cells.KINDS if kind.name in ("alike: cliff", "differing")]
    return coverage_cells.measure_cells(150, (4,), (16,), kinds, ("iid",), nulls=POPULATIONS[1:2])


def test_every_interval_covers_and_every_decision_keeps_its_level(found):
    assert coverage_cells.faults(found) == []


def test_the_naive_ways_fail_where_those_of_the_report_hold(found):
    failing = {cell.statistic for cell in found.cells if cell.fails}
    assert failing == {
        "fixed effect, over these cells",
        "fixed effect, in a new cell",
        "textbook's prediction, in a new cell",
    }


def test_a_guard_that_holds_everywhere_is_a_fault(found):
    kept = [cell for cell in found.cells if not (cell.kind == "guard" and cell.fails)]
    others = coverage_cells.Measured(kept, found.alarms, found.at_random, found.named)
    assert any("(guard) holds everywhere" in text for text in coverage_cells.faults(others))


def test_a_planted_cell_that_is_rarely_named_is_a_fault():
    rare = coverage_cells.Named("clear", "common area", 4, 0.7, 300)
    told = coverage_cells.faults(coverage_cells.Measured([], [], [], [rare]))
    assert told == ["the cell that disagrees is named in 70.0 % only: clear, 4 cells"]


@pytest.mark.parametrize("measure", ["area_common", "within_common_bar", "error"])
def test_the_truth_is_that_of_a_direct_sum(measure):
    population = CLEAR[1]
    bars = np.array([20.9, 22.0, 30.0])
    draws = [coverage_cells._draw(population, arm)[0] for arm in (0, 1)]
    direct = [np.subtract(*(point_scores(measure, draws[arm], bar).mean() for arm in (1, 0))) for bar in bars]
    assert coverage_cells.true_difference(population, measure, bars) == pytest.approx(direct, abs=1e-9)
    turned = coverage_cells.true_difference(swapped(population), measure, bars)
    assert turned == pytest.approx(-np.array(direct), abs=0.01 if measure != "error" else 0.2)
