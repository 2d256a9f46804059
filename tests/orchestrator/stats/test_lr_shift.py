"""The shift of the best learning rate on planted valleys: found, covered, and refused where there is none."""

import numpy as np
import pytest

from orchestrator.stats.lr_shift import Shift, shift_of

RATES = 2.0 ** np.linspace(-11, -5, 8)
SIZES = (32.0, 64.0, 128.0)


def planted(shift, noise=0.0, seed=0, curvature=0.15, steep=0.0):
    """Errors of a valley that moves by so many octaves of lr per doubling, with noise in octaves of error."""
    rng = np.random.default_rng(seed)
    rows = [(size, rate) for size in SIZES for rate in RATES]
    sizes, rates = (np.array(column) for column in zip(*rows, strict=True))
    y = np.log2(rates) + 8 - shift * np.log2(sizes / 32)
    heights = 2.0 - 0.3 * np.log2(sizes / 32) + curvature * y**2 + steep * y**3
    return sizes, rates, 2 ** (heights + noise * rng.standard_normal(len(heights)))


@pytest.mark.parametrize("shift", [-1.0, -0.37, 0.0, 0.5])
def test_a_planted_shift_is_found(shift):
    found = shift_of(*planted(shift))
    assert isinstance(found, Shift)
    assert found.value == pytest.approx(shift, abs=0.011)
    assert found.is_told


def test_intervals_cover_planted_shifts_and_those_of_single_bests_do_not():
    inside = naive = 0
    for seed in range(300):
        shift = (-1.0, 0.0, -0.5)[seed % 3]
        sizes, rates, errors = planted(shift, noise=0.1, seed=seed)
        found = shift_of(sizes, rates, errors)
        assert isinstance(found, Shift)
        inside += (found.low is None or found.low <= shift) and (found.high is None or shift <= found.high)
        # The rate with the lowest error at each size, and the usual interval of a line through three.
        bests = np.log2([rates[sizes == size][errors[sizes == size].argmin()] for size in SIZES])
        slope, residual = (bests[2] - bests[0]) / 2, bests[1] - bests.mean()
        naive += abs(slope - shift) <= 1.96 * abs(residual) * np.sqrt(1.5) / np.sqrt(2) + 1e-12
    # Binomial, 300 draws: three standard errors below 95 %.
    assert inside / 300 >= 0.912
    assert naive / 300 < 0.912


def test_noise_as_large_as_the_valley_leaves_nothing_to_tell():
    told = [
        isinstance(found := shift_of(*planted(-1.0, noise=0.6, seed=seed)), Shift) and found.is_told
        for seed in range(20)
    ]
    assert sum(told) <= 4


def test_what_gives_no_shift_is_said():
    sizes, rates, errors = planted(-1.0)
    two = sizes < 100
    assert "3 sizes with 4 errors" in shift_of(sizes[two], rates[two], errors[two])
    # Falling throughout: the best lr lies beyond the window.
    assert "the window is too narrow" in shift_of(sizes, rates, 2 ** (-0.2 * np.log2(rates)))
    # Diverged runs are not of the valley.
    errors[rates > 2**-6] = 90.0
    assert isinstance(shift_of(sizes, rates, errors), Shift)
