"""Surrogates and basins, against closed forms of planted surfaces."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import qmc

from orchestrator.analysis.basin import LR, WEIGHT_DECAY, axis_of, basin, landscapes
from orchestrator.analysis.sensitivity import importances, transfers
from orchestrator.stats.surrogate import Axis, Landscape, fit_surrogate
from orchestrator.sweep.space import Choice, IntRange, LogUniform, Uniform
from orchestrator.trials.records import results_of
from tests.support.sweeps import base_tree, ended, epoch_row, plan_of

OCTAVES = 5.0
AXES = (Axis(LR, "log", 2.0**-10, 2.0**-5), Axis(WEIGHT_DECAY, "log", 2.0**-6, 2.0**-1))


def planted(delta, n=64, seed=0, noise=0.0, axes=AXES, arm="a"):
    """A landscape of error 20 + delta(x, y) at Sobol points, x and y in octaves from the window's middle."""
    rng = np.random.default_rng(seed)
    quantiles = qmc.Sobol(len(axes), scramble=True, rng=rng).random(n)
    errors = 20 + delta(*((quantiles - 0.5) * OCTAVES).T) + rng.normal(0, noise, n)
    errors = np.where(errors > 85, 100.0, errors)
    return Landscape("all", arm, axes, tuple(range(n)), quantiles, errors, errors < 100, 90.0, n)


def bowl(a, b, x0=0.0, y0=0.0):
    return lambda x, y: a * (x - x0) ** 2 + b * (y - y0) ** 2


@pytest.mark.parametrize(("a", "b"), [(2.0, 0.8), (1.5, 1.5), (3.0, 0.7)])
@pytest.mark.parametrize("within_pp", [1.0, 2.0])
def test_width_and_area_of_a_quadratic_basin_are_those_of_its_ellipse(a, b, within_pp):
    found = basin(planted(bowl(a, b), n=128), within_pp)
    width = {extent.names[0]: extent for extent in found.widths}
    assert width[LR].size.value == pytest.approx(2 * math.sqrt(within_pp / a), rel=0.1)
    assert width[WEIGHT_DECAY].size.value == pytest.approx(2 * math.sqrt(within_pp / b), rel=0.1)
    area = math.pi * within_pp / math.sqrt(a * b)
    assert found.area.size.value == pytest.approx(area, rel=0.1)
    assert found.area.share == pytest.approx(area / OCTAVES**2, rel=0.1)
    assert found.area.window == pytest.approx(OCTAVES**2)
    assert (width[LR].unit, found.area.unit) == ("octaves", "octaves x octaves")
    assert not found.area.touches


def test_a_basin_that_reaches_the_edge_of_the_window_is_clipped_and_says_so():
    found = basin(planted(bowl(2.0, 0.8, x0=-2.5)), 2.0)
    # Half an ellipse is left, and half of its width.
    assert found.widths[0].touches == ((LR, "low"),)
    assert found.widths[0].size.value == pytest.approx(1.0, rel=0.15)
    assert found.area.touches == ((LR, "low"),)
    assert found.area.size.value == pytest.approx(math.pi / math.sqrt(2.0 * 0.8), rel=0.2)


def test_the_optimum_is_found_between_the_points():
    found = basin(planted(bowl(2.0, 0.8, x0=1.0, y0=-0.7), noise=0.2), 2.0)
    assert math.log2(found.optimum[LR]) == pytest.approx(-7.5 + 1.0, abs=0.3)
    assert math.log2(found.optimum[WEIGHT_DECAY]) == pytest.approx(-3.5 - 0.7, abs=0.4)
    assert found.optimum_pct == pytest.approx(20, abs=0.5)


def test_a_cliff_of_divergence_does_not_swallow_the_basin():
    found = basin(planted(lambda x, y: np.where(x > 1.0, 80, 1.5 * x**2 + 0.3 * y**2), noise=0.3), 2.0)
    # From -sqrt(2 / 1.5) to the cliff at 1; the points lie about half an octave apart.
    assert found.widths[0].size.value == pytest.approx(math.sqrt(2 / 1.5) + 1, abs=0.4)


def test_the_intervals_hold_the_truth_of_noisy_quadratic_surfaces_mostly():
    covered, truth = 0, math.pi * 2 / math.sqrt(1.5 * 0.7)
    for seed in range(12):
        size = basin(planted(bowl(1.5, 0.7, 0.5, -0.5), n=32, seed=seed, noise=0.3), 2.0).area.size
        covered += size.low <= truth <= size.high
    # Below 10 of 12 once in 50 times at 95 %.
    assert covered >= 10


def test_a_basin_of_few_points_has_no_interval():
    size = basin(planted(bowl(1.5, 0.7), n=16, noise=0.3), 2.0).area.size
    assert (size.low, size.high, size.because) == (None, None, "16 points, 24 are needed")


def test_an_lr_sensitivity_with_divergences_has_no_interval():
    cliff = basin(planted(lambda x, y: np.where(x > 1.0, 80, 1.5 * x**2 + 0.3 * y**2), noise=0.3), 2.0)
    assert cliff.lr_sensitivity_pp.low is None
    assert "points diverged" in cliff.lr_sensitivity_pp.because
    assert basin(planted(bowl(1.5, 0.7), noise=0.3), 2.0).lr_sensitivity_pp.low is not None


def test_lr_sensitivity_of_a_quadratic_is_its_mean_over_the_window():
    found = basin(planted(bowl(2.0, 0.8), n=128), 2.0)
    # The mean of a x^2 over +-h is a h^2 / 3.
    assert found.lr_sensitivity_pp.value == pytest.approx(2.0 * 2.5**2 / 3, rel=0.1)


def test_lr_sensitivity_counts_no_error_above_chance():
    found = basin(planted(lambda x, y: np.where(x > 0, 80.0, 0.0 * x) + 0.1 * y**2, n=128), 2.0)
    # Half of the window is lost: 90 % is guessing, 20 % the best.
    assert found.lr_sensitivity_pp.value == pytest.approx(0.5 * 70, rel=0.1)


def test_a_confirmed_reference_replaces_the_surrogate_s_own():
    surface = planted(bowl(2.0, 0.8), n=128)
    found = basin(surface, 2.0, reference_pct=19.0)
    # One of the two pp is used up.
    assert found.widths[0].size.value == pytest.approx(2 * math.sqrt(1 / 2.0), rel=0.12)
    assert found.reference_pct == pytest.approx(19.0)


@pytest.mark.parametrize("n", [8, 16, 32, 64])
def test_pure_noise_is_refused_in_19_of_20_sweeps(n):
    surfaces = [planted(lambda x, y: 0 * x, n, seed, noise=1.0) for seed in range(40)]
    # With 40 sweeps and a rate of 5 %, seven or more are useful once in 300 times.
    assert sum(fit_surrogate(surface).quality.useful for surface in surfaces) <= 6
    found = basin(surfaces[0])
    assert "no smooth surface predicts these" in found.because
    assert found.area is None
    assert not found.quality.useful


def test_seven_points_are_refused():
    surface = planted(lambda x, y: 10 + 2 * x + y, n=8)
    assert basin(surface.taking(range(8))).because == ""
    # Eight are enough for a slope; of a bowl they say too little.
    assert "points reliably (leave-one-out R2" in basin(planted(bowl(1.0, 1.0), n=8)).because
    assert basin(surface.taking(range(7))).because == "7 points have a result, 8 are needed"
    with pytest.raises(ValueError, match="8 are needed"):
        fit_surrogate(surface.taking(range(7)))


def test_stopped_trials_refuse_a_basin():
    surface = dataclasses.replace(planted(bowl(1.0, 1.0)), num_censored=3)
    assert basin(surface).because == "3 trials were stopped early"


def test_leave_one_out_quality_is_that_of_refits_without_the_point():
    surface = planted(bowl(1.5, 0.7), n=16, noise=0.5)
    fitted = fit_surrogate(surface)
    misses = []
    for row in range(16):
        counts = np.ones((1, 16), dtype=np.int64)
        counts[0, row] = 0
        predicted = fitted.refits(counts).error_pct(surface.quantiles_ND[[row]])[0, 0]
        delta = surface.errors_pct[row] - surface.errors_pct.min()
        if delta <= 10:
            misses.append(abs(predicted - surface.errors_pct.min() - delta))
    assert fitted.quality.mae_pp == pytest.approx(np.mean(misses), rel=1e-6)


def test_transfer_regret_is_what_the_other_s_best_point_costs():
    arm, donor = planted(bowl(2.0, 0.5)), planted(bowl(2.0, 0.5, x0=1.0), arm="b")
    there, back = transfers([arm, donor])
    assert (there.arm, there.donor, back.arm, back.donor) == ("a", "b", "b", "a")
    # By hand: the errors of the arm at the donor's best point, and at its own.
    expected = arm.errors_pct[donor.errors_pct.argmin()] - arm.errors_pct.min()
    assert there.regret_pp.value == pytest.approx(expected)
    assert there.regret_pp.because == "its own best is a sample minimum"
    # a x^2 an octave away.
    assert there.smooth_pp.value == pytest.approx(2.0, rel=0.3)


def test_arms_of_different_windows_share_no_settings_to_transfer():
    moved = tuple(dataclasses.replace(axis, high=2 * axis.high) for axis in AXES)
    found = transfers([planted(bowl(1, 1)), planted(bowl(1, 1), axes=moved, arm="b")])
    assert all("windows differ" in transfer.because for transfer in found)


def test_importance_of_an_additive_quadratic_is_the_share_of_its_variance():
    # Var(a x^2) is proportional to a^2 on equal windows; all below the cap of 10 pp.
    found = importances(planted(bowl(1.0, 0.5), n=128))
    shares = {importance.name: importance for importance in found.parameters}
    assert shares[LR].main == pytest.approx(1.0 / 1.25, abs=0.06)
    assert shares[WEIGHT_DECAY].main == pytest.approx(0.25 / 1.25, abs=0.06)
    assert shares[LR].total == pytest.approx(shares[LR].main, abs=0.05)
    assert found.parameters[0].name == LR


def test_a_product_is_all_interaction():
    found = importances(planted(lambda x, y: 5 + 0.8 * x * y, n=128))
    assert all(importance.main < 0.05 for importance in found.parameters)
    assert all(importance.total > 0.9 for importance in found.parameters)


def test_a_single_parameter_explains_everything():
    surface = planted(lambda x: 1.0 * x**2, n=64, axes=AXES[:1])
    [importance] = importances(surface).parameters
    assert (importance.name, importance.main, importance.total) == (LR, 1.0, 1.0)


def test_a_choice_is_a_parameter_too():
    axes = (*AXES, Axis("model.norm", "choice", 0.0, 2.0, ("batch", "layer")))
    surface = planted(lambda x, y, z: 0.1 * x**2 + 0.1 * y**2 + 4 * (z > 0), n=128, axes=axes)
    middles = surface.quantiles_ND.copy()
    middles[:, 2] = np.where(middles[:, 2] < 0.5, 0.25, 0.75)
    surface = dataclasses.replace(surface, quantiles_ND=middles)
    assert importances(surface).parameters[0].name == "model.norm"
    found = basin(surface)
    assert found.optimum["model.norm"] == "batch"
    assert {extent.names for extent in found.widths} == {(LR,), (WEIGHT_DECAY,)}


@pytest.mark.parametrize(
    "domain",
    [LogUniform(log_uniform=(1e-4, 3e-2)), Uniform(uniform=(-2.0, 5.0)), Choice(choice=("a", "b", "c"))],
    ids=lambda domain: type(domain).__name__,
)
def test_an_axis_undoes_its_domain(domain):
    axis = axis_of("x", domain)
    for u in (0.0, 0.2, 0.5, 0.99):
        assert axis.at(u) == domain.at(u)
        assert axis.quantile(domain.at(u)) == pytest.approx(u, abs=1e-9 if axis.ordered else 1 / 3)


def test_whole_numbers_are_an_ordered_axis():
    axis = axis_of("model.depth", IntRange(int_range=(2, 6)))
    assert axis.ordered
    assert (axis.quantile(2), axis.quantile(6)) == (0, 1)


def make(window, points=16, **keys):
    return plan_of(
        base=base_tree(schedule={"epochs": 1}),
        arms={"a": {"model.depth": 2}, "b": {"model.depth": 3}},
        vary={"optim.lr": window, "optim.weight_decay": {"log_uniform": [0.02, 0.64]}},
        design={"kind": "sobol", "points": points, "seed": 0},
        **keys,
    )


def test_landscapes_hold_the_draws_of_the_sweep_and_nothing_else():
    plan = make({"log_uniform": [1e-4, 1e-2]}, points=8, noise={"points": 2, "seeds": 2})
    records = {}
    for trial in plan.trials:
        outcome = "diverged" if trial.point == 3 else "failed" if trial.point == 5 else "finished"
        error = 20.0 + trial.point if trial.role == "sweep" else 1.0
        records[trial.id] = ended([epoch_row(1, error)], outcome)
    first, second = landscapes(plan, results_of(plan, records))
    assert (first.arm, second.arm, first.cell) == ("a", "b", "all")
    assert first.points == (0, 1, 2, 3, 4, 6, 7)
    assert list(first.errors_pct) == [20, 21, 22, 100, 24, 26, 27]
    assert list(first.trained) == [True, True, True, False, True, True, True]
    assert (first.num_planned, first.chance_pct) == (8, 90.0)
    expected = plan.sweep.design.quantiles(plan.sweep.levels())
    rows = list(first.points)
    assert first.quantiles_ND[:, 0] == pytest.approx(expected["optim.lr"][rows])
    assert first.quantiles_ND[:, 1] == pytest.approx(expected["optim.weight_decay"][rows])


def test_measures_are_the_same_for_lr_with_its_prior_and_for_log_lr():
    logarithmic = (AXES[0], AXES[1])
    linear = (Axis(LR, "linear", -10.0, -5.0), Axis(WEIGHT_DECAY, "linear", -6.0, -1.0))
    values = [[axis.at(u) for axis in logarithmic] for u in (0.1, 0.7)]
    for row in values:
        for log_axis, axis, value in zip(logarithmic, linear, row, strict=True):
            assert axis.quantile(math.log2(value)) == pytest.approx(log_axis.quantile(value))
    one, other = (planted(bowl(1.5, 0.7), n=32, noise=0.3, axes=axes) for axes in (logarithmic, linear))
    a, b = basin(one), basin(other)
    assert a.area.size == b.area.size
    assert [extent.size for extent in a.widths] == [extent.size for extent in b.widths]
    assert a.lr_sensitivity_pp == b.lr_sensitivity_pp
    assert importances(one).parameters == importances(other).parameters
    assert a.optimum[LR] == pytest.approx(2 ** b.optimum[LR])
