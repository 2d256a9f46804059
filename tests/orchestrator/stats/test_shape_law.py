"""The law of shapes against planted truths, a bounded minimiser, and families that grow alike or not."""

import numpy as np
import pytest
from scipy import optimize

from benchmarks.coverage_shape import REFERENCE as PAPERS_REFERENCE
from benchmarks.coverage_shape import planted
from orchestrator.stats.shape_law import Runs, extrapolation_error, fit, shared_exponents_test, with_reference

NAMES = ("width", "depth")
CENTRE = np.array([512.0, 16.0])
C, S = 0.4, np.array([0.25, 0.45])
REFERENCE = 1e6


def star() -> tuple[np.ndarray, np.ndarray]:
    """One dimension at a time below the centre, each at three lengths of training, up to 16 times as long."""
    shapes = [CENTRE]
    for place, factors in ((0, (0.2, 0.3, 0.45, 0.65, 0.85)), (1, (0.15, 0.25, 0.4, 0.6, 0.8))):
        for factor in factors:
            shape = CENTRE.copy()
            shape[place] *= factor
            shapes.append(shape)
    shapes = np.repeat(shapes, 3, axis=0)
    images = np.tile([1.0, 4.0, 16.0], len(shapes) // 3)
    return shapes, shapes[:, 0] ** 2 * shapes[:, 1] * images / 4


def truth(shapes: np.ndarray, compute: np.ndarray, s: np.ndarray = S, height: float = 1.0) -> np.ndarray:
    """The law as the paper writes it."""
    t, x = compute / REFERENCE, shapes / CENTRE
    alpha, best = (0.05, 0.04), (0.5, 0.4)
    errors = 0.1 + 0.06 * t**-C
    for k in range(2):
        a = b = C / s[k] / 2
        beta = alpha[k] * a / (b * best[k] ** (a + b))
        errors = errors + alpha[k] * x[:, k] ** -a + beta * x[:, k] ** b * t**-C
    return height * errors


def runs(noise: float = 0.0, seed: int = 0, **changes) -> Runs:
    shapes, compute = star()
    errors = truth(shapes, compute, **changes)
    return Runs(
        NAMES,
        shapes,
        compute,
        errors * (1 + noise * np.random.default_rng(seed).standard_normal(len(errors))),
    )


@pytest.fixture(scope="module")
def exact():
    return fit(runs(), REFERENCE, starts=8)


def test_a_law_without_noise_is_found_again(exact):
    assert list(exact.exponents.values()) == pytest.approx(S, abs=5e-4)
    assert exact.compute_exponent == pytest.approx(C, abs=5e-4)
    assert list(exact.best.values()) == pytest.approx([0.5 * 512, 0.4 * 16], rel=1e-3)
    shapes, compute = star()
    assert exact.predicted(shapes, compute) == pytest.approx(truth(shapes, compute), rel=1e-6)
    assert exact.residual < 1e-6


@pytest.mark.parametrize("factor", [0.1, 1.0, 50.0])
def test_the_best_shape_is_where_a_minimiser_finds_the_least_error(factor, exact):
    law = with_reference(exact, factor * REFERENCE)
    for place, name in enumerate(NAMES):

        def error(log_size: float, place: int = place) -> float:
            shape = CENTRE.copy()
            shape[place] = np.exp(log_size)
            return float(truth(shape[None], np.array([factor * REFERENCE]))[0])

        least = optimize.minimize_scalar(error, bounds=(-3, 12), method="bounded", options={"xatol": 1e-9})
        assert law.best[name] == pytest.approx(np.exp(least.x), rel=1e-3)
    shapes, compute = star()
    assert law.predicted(shapes, compute) == pytest.approx(exact.predicted(shapes, compute))


def test_little_noise_leaves_intervals_that_hold_the_truth():
    law = fit(runs(0.002), REFERENCE, starts=8)
    for name, s in zip(NAMES, S, strict=True):
        found = law.exponent(name)
        assert found.low is None or found.low <= s
        assert found.high is None or s <= found.high
        assert law.p_value(name, s) > 0.05
    # An end of an interval is where the test just does not refute.
    width = law.exponent("width")
    assert width.low is not None
    assert law.p_value("width", width.low) == pytest.approx(0.05, abs=0.01)
    best = law.best_size("width")
    assert best.low < best.value < best.high


def test_noise_of_one_percent_leaves_nothing_to_tell_in_the_papers_star_however_well_the_law_fits():
    law = fit(planted(0.01, seed=0), PAPERS_REFERENCE, starts=6)
    assert law.residual < 0.015
    assert not any(law.exponent(name).is_told for name in law.runs.dimensions)


def test_families_that_grow_alike_are_told_from_others():
    def laws(*families):
        return [fit(family, REFERENCE, starts=8) for family in families]

    alike = laws(runs(0.002, 1), runs(0.002, 2, height=1.4))
    assert shared_exponents_test(alike) > 0.05
    apart = laws(runs(0.0005, 1), runs(0.0005, 2, s=np.array([0.6, 0.2])))
    assert shared_exponents_test(apart) < 0.01


def test_a_law_that_holds_predicts_the_longest_runs_that_it_has_not_seen(exact):
    assert extrapolation_error(exact) < 1e-3
    # One that does not hold there does not.
    late = exact.runs.compute > np.quantile(exact.runs.compute, 0.8)
    bent = np.where(late, 2 * exact.runs.errors, exact.runs.errors)
    broken = fit(Runs(NAMES, exact.runs.shapes, exact.runs.compute, bent), REFERENCE, starts=8)
    assert extrapolation_error(broken) > 0.3


def test_too_few_runs_give_no_law():
    few = runs()[:11]
    assert few.num_parameters == 11
    assert fit(few, REFERENCE) is None
