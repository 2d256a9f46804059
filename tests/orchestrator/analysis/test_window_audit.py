"""Edge flags and verdicts under other windows, against planted surfaces and brute-force resampling."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import qmc

from orchestrator.analysis.basin import LR, WEIGHT_DECAY
from orchestrator.analysis.window_audit import (
    View,
    audit,
    audits,
    edge_check,
    effective_points,
    extension,
    views,
)
from orchestrator.stats.intervals import bounded_mean
from orchestrator.stats.surrogate import Axis, Landscape

AXES = (Axis(LR, "log", 2.0**-10, 2.0**-5), Axis(WEIGHT_DECAY, "log", 2.0**-6, 2.0**-1))


def bowl(a, b, x0=0.0, y0=0.0):
    return lambda x, y: a * (x - x0) ** 2 + b * (y - y0) ** 2


def planted(delta, n=32, seed=0, noise=0.3, arm="a", box=((0, 1), (0, 1))):
    """Error 20 + delta(x, y), x and y in octaves from the middle, at Sobol points of a box of quantiles."""
    quantiles = qmc.Sobol(2, scramble=True, rng=np.random.default_rng(seed)).random(n)
    low, high = np.array(box).T
    quantiles = low + quantiles * (high - low)
    errors = 20 + delta(*((quantiles - 0.5) * 5).T)
    errors += np.random.default_rng([seed, len(arm), ord(arm[0])]).normal(0, noise, n)
    errors = np.where(errors > 85, 100.0, errors)
    return Landscape("all", arm, AXES, tuple(range(n)), quantiles, errors, errors < 100, 90.0, n)


@pytest.mark.parametrize(
    ("x0", "y0", "parameter", "side"),
    [(3.5, 0, LR, "high"), (-3.5, 0, LR, "low"), (0, -3.5, WEIGHT_DECAY, "low"), (2.5, 0, LR, "high")],
)
def test_an_optimum_beyond_the_edge_or_at_it_is_flagged_in_95_of_100_sweeps(x0, y0, parameter, side):
    surfaces = [planted(bowl(1.5, 0.8, x0, y0), seed=seed) for seed in range(30)]
    flags = [edge_check(surface).flags for surface in surfaces]
    caught = [any((f.parameter, f.side) == (parameter, side) for f in found) for found in flags]
    assert np.mean(caught) >= 0.95


@pytest.mark.parametrize(("x0", "y0", "curve"), [(0.7, -0.5, 0.5), (1.5, 0.0, 0.5), (0.0, 0.0, 0.0)])
def test_an_optimum_inside_or_a_parameter_without_effect_is_seldom_flagged(x0, y0, curve):
    checks = [edge_check(planted(bowl(1.5, curve, x0, y0), seed=seed)) for seed in range(30)]
    assert not any(check.because for check in checks)
    # At a rate of 5 %, five or more of 30 are flagged once in 60 times.
    assert sum(bool(check.flags) for check in checks) <= 4


def test_noise_is_not_judged():
    check = edge_check(planted(lambda x, y: 0 * x, noise=1.0))
    assert "no smooth surface predicts these" in check.because
    assert not check.flags


def test_a_flag_says_what_would_settle_it():
    (flag,) = edge_check(planted(bowl(1.5, 0.5, x0=3.5))).flags
    # One octave above 2^-5, as dense as 32 points over five octaves.
    strip = flag.extension
    assert (strip.parameter, strip.side, strip.num_points) == (LR, "high", 7)
    assert (strip.low, strip.high) == pytest.approx((2.0**-5, 2.0**-4))
    assert flag.fall_pp > 0
    assert flag.support > 0.5


def test_an_axis_without_octaves_grows_by_a_fifth():
    strip = extension(Axis("regularizers.drop", "linear", 1.0, 2.0), "low", 10)
    assert (strip.low, strip.high, strip.num_points) == (pytest.approx(0.8), 1.0, 2)


def test_effective_points_are_those_of_equal_weights():
    assert effective_points(np.ones(12)) == pytest.approx(12)
    assert effective_points(np.array([1.0, 1, 1, 0, 0])) == pytest.approx(3)
    # (1 + 2 + 3)^2 / (1 + 4 + 9)
    assert effective_points(np.array([1.0, 2, 3])) == pytest.approx(36 / 14)
    assert effective_points(np.zeros(3)) == 0


def test_the_first_view_is_the_sweep_itself():
    base, arm = planted(bowl(2.0, 0.8)), planted(bowl(0.8, 0.4), arm="b")
    first = audit(base, arm, views(base, arm)).verdicts[0]
    bar = min(base.errors_pct.min(), arm.errors_pct.min())
    scores = [1 - np.minimum(side.errors_pct - bar, 10) / 10 for side in (base, arm)]
    assert first.view == "as drawn"
    expected, found = bounded_mean(scores[1] - scores[0], (-1, 1)), first.difference
    # Weighted sums are added up in another order; which last bits that moves depends on the processor.
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high), rel=1e-12
    )
    assert (first.better, first.effective_points, first.flip) == ("b", 32, "")


# Reference given, so that the truth does not depend on how many points there are.
REFERENCES = {("all", "a"): 20.0, ("all", "b"): 20.0}


@pytest.mark.parametrize("name", ["optim.lr shrunk on both sides", "optim.lr shifted up"])
def test_a_smaller_window_reads_as_a_sweep_of_that_window_would(name):
    one, other = bowl(2.0, 0.8, x0=1.0), bowl(0.9, 0.4, x0=-0.5)
    base, arm = planted(one, 256), planted(other, 256, arm="b")
    (view,) = (view for view in views(base, arm) if view.name == name)
    box = (view.boxes["a", LR], (0, 1))
    fresh = audit(
        planted(one, 4096, seed=9, box=box),
        planted(other, 4096, seed=9, arm="b", box=box),
        [View("as drawn", {})],
        REFERENCES,
    )
    found = audit(base, arm, [view], REFERENCES)
    for verdict, truth in zip(found.verdicts, fresh.verdicts, strict=True):
        assert verdict.value == pytest.approx(truth.value, abs=0.03)
        assert verdict.base_value == pytest.approx(truth.base_value, abs=0.03)
        assert verdict.difference.low <= truth.difference.value <= verdict.difference.high
        assert verdict.better == truth.better


def test_a_tilted_prior_reads_as_draws_from_it_would():
    one, other = bowl(2.0, 0.8, x0=1.0), bowl(0.9, 0.4, x0=-0.5)
    base, arm = planted(one, 256), planted(other, 256, arm="b")
    (view,) = (view for view in views(base, arm) if view.name == f"{LR} weighted to the high side")
    found = audit(base, arm, [view], REFERENCES).verdicts[0]
    # Density 2u: the square root of a uniform.
    u, v = np.random.default_rng(1).random((2, 200_000))
    x, y = (np.sqrt(u) - 0.5) * 5, (v - 0.5) * 5
    truths = [1 - np.minimum(delta(x, y), 10).mean() / 10 for delta in (one, other)]
    assert (found.base_value, found.value) == (
        pytest.approx(truths[0], abs=0.03),
        pytest.approx(truths[1], abs=0.03),
    )
    assert found.difference.low <= truths[1] - truths[0] <= found.difference.high
    # (E w)^2 / E w^2 of w = 2u is 3/4.
    assert found.effective_points == pytest.approx(0.75 * 256, rel=0.02)


def test_the_views_that_flip_are_those_that_fresh_sweeps_flip_in():
    # Each arm is better on its own side of the window.
    one, other = bowl(1.5, 0.3, x0=-1.5), bowl(1.5, 0.3, x0=1.3)
    base, arm = planted(one, 128, noise=0.1), planted(other, 128, noise=0.1, arm="b")
    low, high = ((0.0, 0.45), (0.55, 1.0))
    over = [
        View("as drawn", {}),
        View("low", {("a", LR): low, ("b", LR): low}),
        View("high", {("a", LR): high, ("b", LR): high}),
    ]
    found = audit(base, arm, over, REFERENCES)
    area = {verdict.view: verdict for verdict in found.verdicts if verdict.measure == "area_common"}
    for name, box in (("low", low), ("high", high)):
        (fresh, _) = audit(
            planted(one, 2048, seed=5, box=(box, (0, 1))),
            planted(other, 2048, seed=5, arm="b", box=(box, (0, 1))),
            over[:1],
            REFERENCES,
        ).verdicts
        assert area[name].better == fresh.better
    assert (area["low"].better, area["high"].better) == ("a", "b")
    flipped = {v.view for v in found.flips if v.measure == "area_common"}
    assert flipped == {name for name in ("low", "high") if area[name].better != area["as drawn"].better}
    assert flipped


def test_fewer_than_six_effective_points_are_refused():
    base, arm = planted(bowl(2, 1), 16), planted(bowl(1, 1), 16, arm="b")
    corner = {(name, LR): (0.0, 0.2) for name in ("a", "b")}
    verdict = audit(base, arm, [View("as drawn", {}), View("corner", corner)]).verdicts[1]
    assert verdict.difference is None
    assert verdict.because.endswith("effective points, 6 are needed")
    assert verdict.flip == ""


def test_a_shift_says_how_much_of_the_window_asked_for_has_points():
    base, arm = planted(bowl(2, 1)), planted(bowl(1, 1), arm="b")
    shifted = {view.name: view for view in views(base, arm)}
    assert shifted[f"{LR} shifted up"].covered == pytest.approx(4 / 5)
    assert shifted[f"{LR} shifted up"].boxes["a", LR] == pytest.approx((1 / 5, 1))
    assert shifted["as drawn"].covered == 1


def test_a_window_recentred_on_each_optimum_makes_equal_bowls_equal():
    # The same bowl, but one lies so far out that the window cuts it.
    base, arm = planted(bowl(1, 0.5, x0=0.8), 128), planted(bowl(1, 0.5, x0=-0.8), 128, arm="b")
    found = {view.name: view for view in views(base, arm)}["re-centred on each arm's optimum"]
    assert found.boxes["a", LR] == pytest.approx((0.36, 0.96), abs=0.06)
    assert found.boxes["b", LR] == pytest.approx((0.04, 0.64), abs=0.06)
    verdict = audit(base, arm, [found], REFERENCES).verdicts[0]
    assert verdict.difference.value == pytest.approx(0, abs=0.06)


def test_the_order_of_points_and_unpaired_ones_do_not_matter():
    base, arm = planted(bowl(2, 1)), planted(bowl(1, 0.5), arm="b")
    fewer = arm.taking([point for point in reversed(arm.points) if point not in (3, 4)])
    one = audit(
        base.taking([p for p in base.points if p not in (3, 4)]), fewer, views(base, arm)[:1], REFERENCES
    )
    other = audit(base, fewer, views(base, arm)[:1], REFERENCES)
    assert one.verdicts == other.verdicts


def test_arms_that_were_stopped_early_are_not_audited():
    base, arm = planted(bowl(2, 1)), dataclasses.replace(planted(bowl(1, 1), arm="b"), num_censored=2)
    (found,) = audits([base, arm])
    assert found.because == "2 trials were stopped early"
    assert not found.verdicts
