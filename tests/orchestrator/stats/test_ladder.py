"""The prediction for the next size: against scipy, covering on planted ladders, refused at three sizes."""

import numpy as np
import pytest
from scipy import stats

from orchestrator.stats.ladder import ladder


def test_the_line_is_scipys():
    sizes, differences = np.array([1.0, 2.1, 4.3, 8.0, 17.0]), np.array([-3.0, -2.2, -2.4, -1.1, -0.9])
    found, theirs = ladder(sizes, differences), stats.linregress(np.log2(sizes), differences)
    assert found.per_doubling == pytest.approx(theirs.slope)
    assert found.per_doubling_half == pytest.approx(stats.t.ppf(0.975, 3) * theirs.stderr)
    step = np.log2(17.0) / 4
    assert found.next_size == pytest.approx(2 ** (np.log2(17.0) + step))
    assert found.expected == pytest.approx(theirs.intercept + theirs.slope * np.log2(found.next_size))
    # Order does not matter.
    assert ladder(sizes[::-1], differences[::-1]) == found


def test_the_next_size_is_covered_on_planted_ladders_and_not_by_the_line_alone():
    rng = np.random.default_rng(0)
    inside = naive = 0
    for _ in range(2000):
        sizes = 2.0 ** np.cumsum(rng.uniform(0.7, 1.3, 5))
        slope, noise = rng.normal(), rng.uniform(0.1, 2)
        found = ladder(sizes[:4], 1 + slope * np.log2(sizes[:4]) + noise * rng.standard_normal(4))
        there = 1 + slope * np.log2(found.next_size) + noise * rng.standard_normal()
        inside += found.low <= there <= found.high
        # The interval of the slope alone, carried to the next size.
        naive += abs(there - found.expected) <= found.per_doubling_half
    assert inside / 2000 >= 0.94
    assert naive / 2000 < 0.9


def test_three_sizes_predict_nothing():
    assert ladder(np.array([1.0, 2.0, 4.0]), np.array([-3.0, -2.0, -1.0])) is None
