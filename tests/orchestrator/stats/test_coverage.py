"""The promise of every interval in short: the benchmark on two populations, 250 sweeps of 32 points each."""

import dataclasses

import numpy as np
import pytest

from benchmarks import coverage
from benchmarks.populations import POPULATIONS


@pytest.fixture(scope="module")
def found():
    # The cliff, where few points diverge in one arm only, and the bowl, where none does.
    cliff = [population for population in POPULATIONS if population.name in ("cliff", "bowl")]
    return coverage.measure_coverage(250, (32,), cliff, ("iid",), num_surrogates=8)


def test_every_stated_interval_covers_and_every_decision_keeps_its_level(found):
    assert coverage.faults(found) == []


def test_the_naive_intervals_fail_where_those_of_the_report_hold(found):
    by_name = {(cell.statistic, cell.population): cell for cell in found.cells}
    for population in ("bowl", "cliff"):
        assert by_name["naive bootstrap of best-of-k, k = n", population].fails
        assert not by_name["band of median best-of-k, all k", population].fails
    assert by_name["plain t of the common area difference", "cliff"].fails
    assert not by_name["difference of common area, unconfirmed", "cliff"].fails


def test_what_the_report_must_state_is_stated(found):
    for cell in found.cells:
        # Shares within the bar differ in too few pairs for an interval, in most sweeps.
        if cell.statistic != "lr sensitivity" and not cell.statistic.startswith("net share"):
            assert cell.num_stated >= 0.95 * cell.num_repeats, cell.statistic


def test_the_guard_that_holds_everywhere_is_a_fault(found):
    passed = [dataclasses.replace(cell, coverage=0.95) for cell in found.cells]
    guards = {cell.statistic for cell in passed if cell.kind == "guard"}
    assert len(guards) == 2
    said = coverage.faults(dataclasses.replace(found, cells=passed))
    assert set(said) == {f"{guard} (guard) holds everywhere: this benchmark cannot tell" for guard in guards}


def test_an_interval_that_is_half_as_wide_is_a_fault():
    rng = np.random.default_rng(0)
    value = rng.normal(0, 1, 400)
    for half, fails in ((1.96, False), (0.98, True)):
        row = coverage.Row("mean", value, value - half, value + half, 0.0)
        cell = coverage.cell_of(row, "normal", "iid", 1)
        assert cell.fails is fails
        # The oracle's is 1.96 to both sides; its ends, from 400 values, are known to about a tenth.
        assert cell.width == pytest.approx(half / 1.96, rel=0.15)


def test_signed_ranks_of_all_sweeps_at_once_are_those_of_each():
    coverage.check_twins(np.random.default_rng(3))
