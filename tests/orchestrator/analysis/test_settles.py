"""What a plan says that its points can settle, against the power that it is computed from."""

import numpy as np
import pytest

from orchestrator.analysis.power import detectable
from orchestrator.analysis.settles import assumptions, what_points_settle
from orchestrator.stats.paired import SignedRanks
from orchestrator.stats.power import Planted, _simulated_power
from tests.orchestrator.analysis.test_contrasts import make


def test_enough_points_are_said_to_settle_what_the_table_shows_and_four_times_as_many_more():
    (line,) = what_points_settle(make(points=16))
    found = {
        points: next(d.simulated for d in detectable(make(points=points)) if d.measure == "area_common")
        for points in (16, 64)
    }
    assert line == (
        f"16 points per arm settle a difference of {found[16]:.2f} in robustness (0 to 1) in 80 % of sweeps; "
        f"64 points settle one of {found[64]:.2f}."
    )
    assert found[64] < 0.6 * found[16]


@pytest.mark.parametrize(("points", "said"), [(1, "1 point per arm can"), (4, "4 points per arm can")])
def test_too_few_points_are_said_to_settle_nothing_and_how_many_would(points, said):
    (line,) = what_points_settle(make(points=points))
    # Six pairs of one sign have a p-value of 2 / 2^6, five one of 2 / 2^5.
    assert (
        SignedRanks.of(np.array([1.0, 2, 3, 4, 5])).p_value
        > 0.05
        > SignedRanks.of(np.array([1.0, 2, 3, 4, 5, 6])).p_value
    )
    assert line.startswith(f"{said} settle nothing: 6 are the least, 8 settle a difference of 0.31 in ")
    assert line.endswith(", 32 one of 0.15.")


def test_the_least_number_of_points_is_not_said_to_settle_what_it_hardly_ever_does():
    (line,) = what_points_settle(make(points=6))
    assert line.startswith("6 points per arm can hardly settle anything: 6 are the least, 8 settle")
    # Even if the other arm is always at the best.
    assert _simulated_power("area_common", 6, Planted(), 1e-3) < 0.8


def test_one_arm_compares_nothing():
    (line,) = what_points_settle(make(points=16, arms=("a",)))
    assert line.startswith("One arm: nothing is compared.")


def test_cells_of_other_numbers_of_points_are_told_apart_and_equal_ones_are_told_once():
    cells = {"length": {"short": {"schedule.epochs": 2}, "long": {"schedule.epochs": 3}}}
    assert len(what_points_settle(make(points=8, arms=("a", "b", "c"), cells=cells))) == 1


def test_a_search_is_for_the_best_and_settles_no_spread():
    assert what_points_settle(make(points=16, search={"round": 8})) == []


def test_the_assumptions_name_the_planted_population():
    assert "average 4 points above the best" in assumptions()
    assert "correlation of 0.5" in assumptions()
