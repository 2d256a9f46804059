"""Differences over sizes, from planted records of a sweep to words."""

import json

import pytest

from orchestrator.analysis.scale import ladders
from orchestrator.report.tables_shape import ladder_lines, ladder_rows
from orchestrator.trials.records import Record, results_of
from orchestrator.trials.trial import unique_trials
from tests.support.sweeps import TINY, epoch_row, plan_of, save_records, tiny_base

#: Planted differences of c to p by width, falling with the size.
GAPS = {16: -4.0, 32: -3.1, 64: -2.0, 128: -1.2}


def made(widths):
    return plan_of(
        base=tiny_base(model=TINY, schedule={"epochs": 1}),
        cells={"width": {f"w{width}": {"model.width": width} for width in widths}},
        design={"kind": "sobol", "points": 3},
    )


def planted(plan):
    records = {}
    for trial in unique_trials(plan.trials):
        gap = GAPS[trial.config.model.width] if trial.arm == "c" else 0.0
        row = epoch_row(1, 30.0 + 5 * trial.point + gap, test_pct=50.0)
        records[trial.id] = Record(outcome="finished", attempts=1, rows={1: row}, busy_seconds=1.0)
    return records


def test_the_rungs_are_paired_differences_and_the_next_one_follows():
    plan = made(GAPS)
    records = planted(plan)
    # A point that one arm lacks is no pair, and does not shift the mean.
    lost = next(t for t in plan.trials if t.arm == "c" and t.config.model.width == 16 and t.point == 2)
    records[lost.id] = Record(outcome="failed", attempts=1)
    [found] = ladders(results_of(plan, records), plan.cost)
    assert (found.arm, found.base_arm) == ("c", "p")
    assert [rung.difference_pp for rung in found.rungs] == pytest.approx(list(GAPS.values()))
    assert [rung.pairs for rung in found.rungs] == [2, 3, 3, 3]
    costs = {t.config.model.width: plan.cost(t).model.flops_g for t in plan.trials if t.arm == "p"}
    assert [rung.flops_g for rung in found.rungs] == pytest.approx([costs[width] for width in GAPS], rel=1e-5)
    assert found.found.next_size > found.rungs[-1].flops_g
    assert found.found.per_doubling > 0
    assert ladder_rows([found])[0]["error minus p's (pp)"] == "-4.00"
    [line] = ladder_lines([found])
    assert line.startswith("c minus p: changes by +0.")
    assert "its sign is not settled" in line


def test_three_sizes_are_refused():
    plan = made([16, 32, 64])
    [found] = ladders(results_of(plan, planted(plan)), plan.cost)
    assert found.found is None
    assert ladder_lines([found]) == ["c: no next size: 4 sizes are needed for a next one; there are 3"]
    assert ladders([], plan.cost) == []


def test_the_command_tells_it(tmp_path, cli):
    plan = made(GAPS)
    folder = save_records(tmp_path / "small", plan, planted(plan))
    code, out, err = cli("analyse", "scale", folder)
    assert code == 0, err
    assert "pp per doubling" in out
    code, out, _ = cli("analyse", "scale", folder, "--json")
    assert [rung["difference_pp"] for rung in json.loads(out)[0]["rungs"]] == pytest.approx(
        list(GAPS.values())
    )
