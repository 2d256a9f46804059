"""The verdict over cells of planted sweeps: rows, sentence, table, figure and numbers."""

import csv
import json

import numpy as np
import pytest
from scipy import stats as scipy_stats

from orchestrator.analysis.contrasts import contrasts
from orchestrator.analysis.findings import gather
from orchestrator.analysis.pooled import pooled
from orchestrator.analysis.summary import summarise
from orchestrator.report.page import write_report
from orchestrator.report.tables_pooled import headline_pooled, pooled_sentence, pooled_table
from orchestrator.trials.records import results_of
from tests.support import sweeps as support
from tests.support.sweeps import base_tree, epoch_row, plan_from, sweep_tree

LENGTHS = {"length": {f"e{n}": {"schedule.epochs": n} for n in (2, 3, 4, 5)}}


def make(points=16, cells=LENGTHS, arms=("a", "b"), **keys):
    """A plan of cheap arms that differ in depth, in four cells."""
    tree = sweep_tree(
        base=base_tree(schedule={"epochs": 2}),
        arms={arm: {"model.depth": 2 + index} for index, arm in enumerate(arms)},
        cells=cells,
        design={"kind": "random", "points": points, "seed": 0},
    )
    return plan_from(tree | keys)


def records_of(plan, error, left_out=()):
    """Records that end at `error(trial)`, but for those with an index in `left_out`."""
    return {
        trial.id: support.ended([epoch_row(1, error(trial))], "finished", busy_seconds=2.0)
        for index, trial in enumerate(plan.trials)
        if index not in left_out
    }


def better_b(trial, odd=(), size=3.0):
    """Arm b is better by `size` pp and some noise, and worse in the cells that are odd."""
    noise = np.random.default_rng([trial.point, hash_of(trial.cell_name), trial.arm == "b"]).normal(0, 0.3)
    base = 10 + 0.1 * trial.point
    lead = size if trial.cell_name not in odd else -size
    at_best = base if (trial.arm == "b") == (lead > 0) else base + abs(lead)
    return at_best + noise


def hash_of(name):
    return sum(map(ord, name))


def found(plan, records):
    return gather(plan, records)


def test_the_points_mean_over_cells_is_what_is_tested():
    plan = make()
    records = records_of(plan, better_b)
    errors = {(t.cell_name, t.arm, t.point): records[t.id].last.val_error_pct for t in plan.trials}
    cells = [f"e{n}" for n in (2, 3, 4, 5)]
    means = np.array(
        [np.mean([errors[cell, "b", i] - errors[cell, "a", i] for cell in cells]) for i in range(16)]
    )
    rows = {row.measure: row for row in pooled(summarise(results_of(plan, records)))}
    assert set(rows) == {"area_common", "within_common_bar", "error"}
    error = rows["error"]
    assert (error.cells, error.num_points, error.num_left_out) == (tuple(cells), 16, 0)
    assert error.over.value == pytest.approx(means.mean())
    assert error.p_value == pytest.approx(scipy_stats.wilcoxon(means, method="exact").pvalue)
    assert (error.better, error.because, error.disagreeing) == ("b", "", {})
    # By the definition: the median of the means of all pairs of points, each with itself.
    pairs = [(means[i] + means[j]) / 2 for i in range(16) for j in range(i, 16)]
    assert (error.look, error.shift.value) == (16, pytest.approx(np.median(pairs)))
    # One look has the whole 5 %. Wilcoxon's tables have 29 for 16 pairs.
    averages = np.sort(pairs)
    assert (error.shift.low, error.shift.high) == pytest.approx((averages[29], averages[-30]))
    for row in rows.values():
        assert row.shift.excludes_0 == (row.better is not None)
    # Every arm of a cell shares its bar, so 3 pp are 0.3 of area.
    assert rows["area_common"].over.value == pytest.approx(0.3, abs=0.05)
    assert rows["area_common"].better == "b"


def test_the_mean_over_cells_is_that_of_the_contrasts_of_all_arms():
    """The common reference is that of every arm of a cell, also of one that is not compared."""
    plan = make(arms=("a", "b", "best"))
    lead = {"a": 0.0, "b": -1.0, "best": -6.0}
    records = records_of(plan, lambda t: 20 + 0.5 * ((7 * t.point) % 16) + lead[t.arm])
    summaries = summarise(results_of(plan, records))
    rows = {(row.measure, row.arm): row for row in pooled(summaries)}
    for measure, arm in (("area_common", "b"), ("area_common", "best"), ("within_common_bar", "b")):
        of_cells = [
            c.difference.value for c in contrasts(summaries, None) if (c.measure, c.arm) == (measure, arm)
        ]
        assert len(of_cells) == 4
        assert rows[measure, arm].over.value == pytest.approx(np.mean(of_cells))


def test_a_point_that_one_cell_lacks_is_left_out_in_all():
    plan = make(points=8)
    missing = next(i for i, t in enumerate(plan.trials) if (t.point, t.cell_name, t.arm) == (3, "e4", "b"))
    rows = pooled(summarise(results_of(plan, records_of(plan, better_b, {missing}))))
    assert {(row.num_points, row.num_left_out) for row in rows} == {(7, 1)}
    nothing = pooled(summarise(results_of(plan, {})))
    assert {(row.better, row.over, row.because) for row in nothing} == {
        (None, None, "no point has a result in every cell")
    }
    assert pooled_sentence(nothing[:1]) == (
        "Over the 4 cells b and a are not compared, as no point has a result in every cell."
    )


def test_one_cell_or_one_arm_has_nothing_to_pool():
    for keys in ({"cells": {}}, {"arms": ("a",)}):
        plan = make(points=8, **keys)
        told = found(plan, records_of(plan, better_b))
        assert told.pooled == ()
        assert pooled_table(told).rows == []
        assert pooled_sentence(headline_pooled(told)) == ""


def test_the_sentence_tells_verdict_prediction_and_the_odd_cell():
    plan = make(points=32)
    told = found(plan, records_of(plan, better_b))
    [row] = headline_pooled(told)
    low, high = row.shift.low, row.shift.high
    assert pooled_sentence([row]) == (
        f"Over the 4 cells b is the more robust, typically by {row.shift.value:+.2f} of area, "
        f"95\u00a0% interval {low:+.2f} to {high:+.2f}, over a; in a new cell of this kind an advantage of "
        f"{row.new_cell.low:+.2f} to {row.new_cell.high:+.2f} is to be expected."
    )
    told = found(plan, records_of(plan, lambda t: better_b(t, odd=("e5",))))
    [row] = headline_pooled(told)
    assert list(row.disagreeing) == ["e5"]
    value, others = row.deviations[3].value, row.deviations[3].others
    assert (value, others) == (pytest.approx(-0.3, abs=0.05), pytest.approx(0.3, abs=0.05))
    assert pooled_sentence([row]).endswith(f"; e5 disagrees (−{-value:.2f}, the others +{others:.2f}).")


def test_the_sentence_speaks_of_the_better_arms_advantage_whichever_it_is():
    plan = make(points=32)
    records = records_of(plan, lambda t: better_b(t, odd=("e2", "e3", "e4", "e5")))
    told = found(plan, records)
    [row] = headline_pooled(told)
    assert (row.better, row.over.value < 0) == ("a", True)
    text = pooled_sentence([row])
    assert text.startswith(
        f"Over the 4 cells a is the more robust, typically by {-row.shift.value:+.2f} of area, "
        f"95\u00a0% interval {-row.shift.high:+.2f} to {-row.shift.low:+.2f}, over b"
    )
    [error] = [row for row in told.pooled if row.measure == "error"]
    assert (error.better, error.over.value > 0) == ("a", True)
    # Divergences that were not drawn could turn the mean. The interval beside the verdict is the test's.
    assert error.over.low < 0 < error.shift.low
    assert pooled_sentence([error]).startswith(
        "Over the 4 cells a has the lower mean error, typically by "
        f"{error.shift.value:+.2f} pp of mean error, 95\u00a0% interval "
        f"{error.shift.low:+.2f} to {error.shift.high:+.2f}, over b"
    )


def test_what_is_open_and_two_cells_are_told_as_such():
    two = {"length": {f"e{n}": {"schedule.epochs": n} for n in (2, 3)}}
    plan = make(points=16, cells=two)
    told = found(plan, records_of(plan, lambda t: better_b(t, size=0.0)))
    [row] = headline_pooled(told)
    assert row.better is None
    text = pooled_sentence([row])
    assert text.startswith("Over the 2 cells it is open whether b or a is the more robust (")
    assert "new cell" not in text
    assert row.new_cell.because == "2 cells, 3 are needed"
    # The two cells contradict each other: the mean says little, and neither is the odd one.
    told = found(plan, records_of(plan, lambda t: better_b(t, odd=("e3",))))
    assert "the cells differ among themselves (p < 0.001)" in pooled_sentence(headline_pooled(told))


def test_several_arms_are_one_family_of_holm():
    plan = make(arms=("a", "b", "c"))
    rows = [row for row in found(plan, records_of(plan, better_b)).pooled if row.measure == "error"]
    assert [(row.arm, row.num_in_family) for row in rows] == [("b", 2), ("c", 2)]
    least = min(row.p_value for row in rows)
    assert min(row.p_adjusted for row in rows) == pytest.approx(2 * least)


def test_page_numbers_and_tables_have_the_rows(tmp_path):
    plan = make()
    page = write_report(plan, records_of(plan, better_b), tmp_path, {}).read_text()
    assert "Over cells</h3>" in page
    assert "Over the 4 cells b is the more robust" in page
    document = json.loads((tmp_path / "summary.json").read_text())
    assert [entry["measure"] for entry in document["pooled"]] == ["area_common", "within_common_bar", "error"]
    assert [entry["disagreeing"] for entry in document["pooled"]] == [[], [], []]
    assert len(document["pooled"][0]["deviations"]) == 4
    with (tmp_path / "tables" / "pooled.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["better"] for row in rows] == ["b", "b", "b"]
    assert float(rows[0]["over"]) == document["pooled"][0]["over"]["value"]
    drawn = (tmp_path / "figures" / "differences~area_common.svg").read_text()
    assert "over these cells" in drawn
    assert "in a new cell" in drawn
